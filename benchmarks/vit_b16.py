"""A real ViT-B/16 with random weights, from a small version of the config `cifar100`: images per second, and memory.

    python -m benchmarks.vit_b16                                                   # a processor, in minutes
    python -m benchmarks.vit_b16 --device cuda --precision bf16 --batch 256 --steps 60 --images 400

Two tasks of ten classes; the data set is an archive of CIFAR-100's own layout with noisy pictures, written, like the
weights, into a folder that is deleted afterwards: nothing is downloaded, and accuracies mean nothing. Each method runs
in a process of its own, so that its peak memory is its own. Rows are kept in vit_b16.json, one for each method, device,
precision and batch size; vit_b16.md is written from them.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import open_clip
import torch
from safetensors.torch import save_file
from tests.data import cifar

from everclip._version import __version__
from everclip.config import load_config
from everclip.data.sources import cifar100
from everclip.models.catalogue import costs
from everclip.runs.resolve import resolve
from everclip.runs.run import Run
from everclip.system.progress import Progress
from everclip.training import estimate, pace
from everclip.training.loop import train
from everclip.training.restore import device as device_of

HERE = Path(__file__).parent
ROWS, PAGE = HERE / "vit_b16.json", HERE / "vit_b16.md"
METHODS = ("gcl", "gdro")
CLASSES, TEST = 20, 1
MODEL = "ViT-B-16"


def weights(folder: Path) -> Path:
    """The model with random weights, as open_clip saves one."""
    folder.mkdir()
    torch.manual_seed(0)
    save_file(open_clip.create_model(MODEL).state_dict(), folder / "open_clip_model.safetensors")
    config = {"model_cfg": open_clip.get_model_config(MODEL), "preprocess_cfg": {}}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    return folder


def pictures(folder: Path, images: int) -> Path:
    """A small CIFAR-100, which the source is told to take for the original."""
    values = cifar.contents(CLASSES, images, TEST)
    files = {name: cifar.python2_pickle(part) for name, part in values.items()}
    cifar100.MD5.update({name: cifar.md5(content) for name, content in files.items()})
    return cifar.write(folder, files)


def measure(method: str, wanted: argparse.Namespace) -> dict[str, Any]:
    """One run and its row."""
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        words = [
            "cifar100",
            f"data=cifar100:{pictures(root / 'cifar', wanted.images)}",
            f"model=local-dir:{weights(root / 'model')}",
            f"method={method}",
            "scenario.tasks=2",
            f"memory.budget={2 * CLASSES}",
            'templates=["a photo of a {}."]',
            f"train.steps={wanted.steps}",
            f"train.batch_size={wanted.batch}",
            f"train.precision={wanted.precision}",
            f"device={wanted.device}",
            f"out={root / 'run'}",
        ]
        config = resolve(load_config(words))
        with Run.open(config) as run:
            results = train(run, Progress())
    device = device_of(wanted.device)
    model = costs(f"{MODEL}:any")
    assert model is not None
    classes = CLASSES // 2
    sizes = estimate.Sizes((classes * wanted.images,) * 2, (classes * TEST,) * 2, (classes, CLASSES), 1)
    # an image, and its share of the captions of a step, forward and backward
    captions = min(CLASSES, wanted.batch) / wanted.batch
    operations = 3 * (model.image_flops + captions * model.text_flops)
    return {
        "method": method,
        "device": torch.cuda.get_device_name() if device.startswith("cuda") else "processor",
        "precision": wanted.precision,
        "batch": wanted.batch,
        "steps": results["optimizer_steps"],
        "images_per_second": round(results["images_per_second"], 3),
        "share": round(
            results["images_per_second"] * operations / pace.products(device, wanted.precision, 2048), 3
        ),
        "peak_gib": round(results["peak_memory_bytes"] / 2**30, 2),
        "estimated_gib": round(estimate.device_bytes(config, model, sizes) / 2**30, 2),
        "seconds": round(results["seconds"], 1),
        "load": round(os.getloadavg()[0] / (os.cpu_count() or 1), 1),
        "date": datetime.now(UTC).date().isoformat(),
        "machine": f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads",
        "versions": f"everclip {__version__}, torch {torch.__version__}, open_clip {open_clip.__version__}",
        "command": " ".join(
            f"--{name} {shlex.quote(str(getattr(wanted, name)))}"
            for name in ("device", "precision", "batch", "steps", "images")
        ),
    }


KEY = ("method", "device", "precision", "batch")


def keep(row: dict[str, Any]) -> None:
    """Put a row among the others, in the place of an older one of its kind, and write the page."""
    rows = json.loads(ROWS.read_text(encoding="utf-8")) if ROWS.exists() else []
    rows = [other for other in rows if any(other[key] != row[key] for key in KEY)] + [row]
    rows.sort(key=lambda other: [str(other[key]) for key in KEY[1:]] + [other["method"]])
    ROWS.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    PAGE.write_text(page(rows), encoding="utf-8")


INTRODUCTION = """\
# ViT-B/16 with random weights, from the config `cifar100`

Two tasks of ten classes, a memory of 40 images, one template, both towers trained, 224 x 224 pixels. Weights are random
and the pictures are noise in CIFAR-100's layout, so only speed and memory are measured.

- *fraction*: of the rate of matrix products on the same device right after the run.
- *peak*: of the process, or of a GPU's allocator. *estimate*: what `everclip doctor --config` says of the device's
  memory; on a CPU, the process adds torch itself and decoded pictures.
- *load*: processes per core that wanted to run at the end. Above 1, other work took part of the machine: the speed is
  then a lower bound, and the fraction is rough.
"""
HEAD = (
    "method",
    "device",
    "precision",
    "batch",
    "images/s",
    "fraction",
    "peak GiB",
    "estimate GiB",
    "load",
    "steps",
    "date",
)


def page(rows: list[dict[str, Any]]) -> str:
    """The result page."""
    lines = [INTRODUCTION, f"| {' | '.join(HEAD)} |", "|---" * len(HEAD) + "|"]
    for row in rows:
        numbers = [f"{row['images_per_second']:.3g}", f"{row['share']:.0%}"]
        numbers += [f"{row[key]:.1f}" for key in ("peak_gib", "estimated_gib", "load")]
        kind = [str(row[key]) for key in KEY]
        lines.append(f"| {' | '.join([*kind, *numbers, str(row['steps']), row['date']])} |")
    lines += ["", "Commands, machines and versions:", ""]
    ran = [
        f"`python -m benchmarks.vit_b16 {row['command']}`: {row['machine']}; {row['versions']}"
        for row in rows
    ]
    return "\n".join([*lines, *(f"- {text}" for text in dict.fromkeys(ran))]) + "\n"


def main() -> int:
    """Measure each method in a process of its own."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=3, help="of each task")
    parser.add_argument("--images", type=int, default=8, help="training images of each class")
    parser.add_argument("--method", choices=METHODS, help="this one alone, in this process")
    wanted = parser.parse_args()
    if wanted.method:
        row = measure(wanted.method, wanted)
        keep(row)
        print(json.dumps(row))
        return 0
    command = [sys.executable, "-m", "benchmarks.vit_b16", *sys.argv[1:]]
    codes = [
        subprocess.run([*command, "--method", name], env=os.environ, check=False).returncode
        for name in METHODS
    ]
    return max(map(abs, codes))


if __name__ == "__main__":
    sys.exit(main())
