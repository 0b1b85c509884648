"""The 8-bit graph compared with the fp32 one: accuracy, file size, and images per second in onnxruntime on two cores.

    EVERCLIP_DATA=... python -m benchmarks.int8

A first version of ``caltech50`` is made from its training images at 96 px (``everclip update lite --method layers``),
and exported with ``--format onnx --int8``, calibrated on the version's exemplars. Accuracy is that on all test images,
which neither the version nor the calibration has seen. Speed is that of the graph alone, on decoded images in batches
of 1 and of 32, all graphs in turn: images per second with two threads by the clock, the best of the rounds; and,
compared with fp32, the processor time of one thread, the median of the rounds' ratios, which other work hardly changes.
Variants of the quantisation are measured on the same images. Writes benchmarks/int8.md; the version and the graphs are
kept in the scratch folder, and made again only if they are missing.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import onnxruntime
from onnxruntime import quantization as ort

from benchmarks.jobs import machine
from everclip.cli.app import main as everclip
from everclip.data.pixels import Pixels
from everclip.export.shared import quantised
from everclip.export.shared.session import LOGITS, as_input
from everclip.inference import assess
from everclip.updating.state import State, read

PAGE = Path(__file__).with_suffix(".md")
THREADS = 2
BATCHES = (1, 32)
EACH = 64
"""Images that a round takes."""
VARIANTS: dict[str, dict[str, Any]] = {
    "as exported: int8 weights of 7 bits per channel, uint8 activations": {},
    "weights of 8 bits": {"reduce_range": False},
    "one range for all channels": {"per_channel": False},
    "int8 activations": {"activation_type": ort.QuantType.QInt8},
    "the sums of residuals too": {"op_types_to_quantize": [*quantised.KINDS, "Add"]},
}


@dataclass(frozen=True)
class Row:
    """A graph's results: accuracy in 0..1, share of fp32's answers, bytes; by batch size images per second, and how
    many times as fast as fp32."""

    name: str
    accuracy: float
    same: float
    size: int
    speed: dict[int, float]
    ratio: dict[int, float]


def session(path: Path, threads: int = 1) -> Any:
    """A graph on so many threads."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def logits(path: Path, inputs: np.ndarray) -> np.ndarray:
    """What a graph makes of the images."""
    running = session(path)
    parts = (running.run([LOGITS], {"images": part})[0] for part in np.array_split(inputs, len(inputs) // 32))
    return np.concatenate([*parts])


def seconds(running: Any, inputs: np.ndarray, batch: int, clock: Callable[[], float]) -> float:
    """What ``EACH`` images take in batches of a size."""
    begin = clock()
    for start in range(0, EACH, batch):
        running.run([LOGITS], {"images": inputs[start : start + batch]})
    return clock() - begin


def speeds(
    paths: Sequence[Path], inputs: np.ndarray, rounds: int
) -> Iterator[tuple[dict[int, float], dict[int, float]]]:
    """Speeds of graphs, and ratios to the first one's, by batch size; a first round is not counted."""
    wall: dict[tuple[Path, int], list[float]] = {(path, batch): [] for path in paths for batch in BATCHES}
    alone: dict[tuple[Path, int], list[float]] = {key: [] for key in wall}
    two = {path: session(path, THREADS) for path in paths}
    one = {path: session(path) for path in paths}
    for number in range(rounds + 1):
        for path, batch in wall:
            found = seconds(two[path], inputs, batch, time.perf_counter)
            mine = seconds(one[path], inputs, batch, time.process_time)
            if number:
                wall[path, batch].append(found)
                alone[path, batch].append(mine)
    for path in paths:
        ratios = {
            batch: median(np.array(alone[paths[0], batch]) / np.array(alone[path, batch]))
            for batch in BATCHES
        }
        yield {batch: EACH / min(wall[path, batch]) for batch in BATCHES}, ratios


def version(scratch: Path) -> State:
    """The version, and its fp32 graph in ``scratch / "onnx"``, made if they are missing."""
    data = f"imagefolder:{Path(os.environ['EVERCLIP_DATA']) / 'caltech50'}"
    folder = scratch / "v1"
    if not folder.exists():
        words = ["update", "lite", "--image-size", "96", "--add", data, "--test", data]
        assert everclip([*words, "--index", "keep", "--method", "layers", "-o", str(folder)]) == 0
    if not (scratch / "onnx").exists():
        assert everclip(["export", str(folder), "--format", "onnx", "-o", str(scratch / "onnx")]) == 0
    return read(folder)


def variants(whole: Path, state: State, scratch: Path) -> Iterator[tuple[str, Path]]:
    """The graph quantised in each way."""
    assert state.model is not None
    for number, (name, changes) in enumerate(VARIANTS.items()):
        path = scratch / f"variant{number}.onnx"
        if not path.exists():
            quantised.quantise(whole, path, state.model.clip, state.exemplars, **changes)
        yield name, path


def measured(scratch: Path, rounds: int) -> tuple[list[Row], int, int]:
    """One row per graph, fp32 first; test images; exemplars."""
    state = version(scratch)
    assert state.model is not None
    data = f"imagefolder:{Path(os.environ['EVERCLIP_DATA']) / 'caltech50' / 'test'}"
    test = assess.labelled(state.model, assess.load(data, state.model), "caltech50/test")
    clip = state.model.clip
    inputs = as_input(clip, Pixels(test.store, clip.eval_transform, clip.image_size, 0).load(test.rows)[0])
    whole = scratch / "onnx" / "model.onnx"
    graphs = [("fp32", whole), *variants(whole, state, scratch)]
    base = logits(whole, inputs).argmax(1)
    timed = speeds([path for _, path in graphs], inputs, rounds)
    rows = []
    for (name, path), (speed, ratio) in zip(graphs, timed, strict=True):
        best = logits(path, inputs).argmax(1)
        right, same = float((best == test.labels).mean()), float((best == base).mean())
        rows.append(Row(name, right, same, path.stat().st_size, speed, ratio))
        print(rows[-1], flush=True)
    return rows, len(test), len(state.exemplars)


def page(rows: Sequence[Row], images: int, exemplars: int, load: float) -> str:
    """The page."""
    base, chosen = rows[:2]
    head = [f"images/s, batch {batch} | faster than fp32" for batch in BATCHES]
    lines = [
        "# `everclip export --format onnx --int8`",
        "",
        "`EVERCLIP_DATA=... python -m benchmarks.int8`: `lite` at 96 px, a first version of the 50 classes of Caltech",
        "photographs with `layers`, which reads a picture and its mirror image. Calibrated on the version's",
        f"{min(exemplars, quantised.MOST)} exemplars, tested on {images} other images.",
        "",
        f"onnxruntime {onnxruntime.__version__}, {machine()}. *images/s*: {THREADS} threads, wall-clock, the best of",
        "the rounds. *faster than fp32*: CPU time of one thread, medians of the rounds. Other work was running",
        f"(load {load:.1f}), so the ratios say more than images per second.",
        "",
        f"| graph | accuracy, % | points lost | same class as fp32, % | MB | {' | '.join(head)} |",
        "|---|---|---|---|---|" + "---|---|" * len(BATCHES),
    ]
    for row in rows:
        timed = [f"{row.speed[b]:.0f} | {row.ratio[b]:.2f}" for b in BATCHES]
        lines.append(
            f"| {row.name} | {100 * row.accuracy:.1f} | {100 * (base.accuracy - row.accuracy):.1f} |"
            f" {100 * row.same:.1f} | {row.size / 1e6:.1f} | {' | '.join(timed)} |"
        )
    lines += [
        "",
        f"The 8-bit graph has {chosen.size / base.size:.0%} of the bytes. Weights have 7 bits because sums of products",
        "with 8-bit weights overflow on processors without VNNI. One range for all channels does not suit depthwise",
        "convolutions, whose channels differ much in size. Quantising the sums of residuals too is hardly faster, so",
        "they are left out. The exported variant was chosen among these on the same test images: its accuracy shows no",
        "loss compared with fp32, but not a gain.",
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    """Measure and write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scratch", type=Path, default=Path("runs/int8"), help="work goes here")
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    arguments.scratch.mkdir(parents=True, exist_ok=True)
    rows, images, exemplars = measured(arguments.scratch, arguments.rounds)
    PAGE.write_text(page(rows, images, exemplars, os.getloadavg()[1]), encoding="utf-8")


if __name__ == "__main__":
    main()
