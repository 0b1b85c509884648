"""How fast embedding and searching are: parts of ``benchmarks.index``, which has the command."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.jobs import machine
from benchmarks.updates import SIZE, Quiet
from everclip.data.formats.folders import image_files
from everclip.data.pixels import Pixels
from everclip.index import embed, folder
from everclip.index.encoder import open_encoder
from everclip.index.folder import IMAGE, Listed, Table
from everclip.index.search import nearest

NEIGHBOURS, KILLS = 10, 3
COUNT, WIDTH = 1_000_000, 512
ROUNDS, TIMED = 3, 16 * embed.BATCH
"""Times that embedding and the bare encoder are measured, in turn, and on how many pictures."""
Json = dict[str, Any]


def embedding(count: int, scratch: Path) -> Json:
    """Compare ``everclip embed`` with the same command killed three times."""
    listed = _pictures(count, scratch)
    words = [
        sys.executable,
        "-m",
        "everclip",
        "embed",
        "lite",
        str(listed),
        "--image-size",
        str(SIZE),
        "--json",
        "-o",
    ]
    done = subprocess.run([*words, str(scratch / "whole")], check=True, stdout=subprocess.PIPE, text=True)
    whole = json.loads(done.stdout)
    shards, killed = len(folder.read(scratch / "whole").shards), 0
    for kill in range(KILLS):
        process = subprocess.Popen([*words, str(scratch / "killed")], stdout=subprocess.DEVNULL)
        most = kill * shards // KILLS
        while process.poll() is None and not _begun(scratch / "killed", most):
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        killed += process.wait() == -signal.SIGKILL
    subprocess.run([*words, str(scratch / "killed")], check=True, stdout=subprocess.DEVNULL)
    equal = _bytes(scratch / "killed") == _bytes(scratch / "whole")
    about = {
        "pictures": whole["vectors"],
        "per_second": whole["per_second"],
        "killed": killed,
        "bit_equal": equal,
    }
    return about | {"load": round(os.getloadavg()[0], 1), "machine": machine()}


def _pictures(count: int, scratch: Path) -> Path:
    """A folder of links to the first pictures of CIFAR-100."""
    listed = scratch / f"cifar100-{count}"
    if not listed.exists():
        half = listed.with_suffix(".part")
        shutil.rmtree(half, ignore_errors=True)
        half.mkdir()
        root = Path(os.environ["EVERCLIP_DATA"]).resolve() / "cifar100"
        for number, name in enumerate(image_files(root, "")[:count]):
            (half / f"{number:05d}{Path(name).suffix}").symlink_to(root / name)
        half.rename(listed)
    return listed


def _begun(path: Path, shards: int) -> bool:
    """Whether so many shards are there, and the next has been worked at for a while."""
    if len(list(path.glob("*.npy"))) < shards or not folder.is_vectors(path):
        return False
    time.sleep(2)
    return True


def _bytes(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.iterdir()}


def speed(scratch: Path) -> Json:
    """Pictures per second, by the clock and by the processor: embedding from files to the disk; encoding alone."""
    pictures = _pictures(TIMED, scratch)
    clip = open_encoder("lite", SIZE)
    every = embed.Work.of(IMAGE, [str(pictures)])
    assert every.images is not None
    some = embed.Work(
        every.sources, every.ids[:TIMED], every.images.select(np.arange(min(TIMED, len(every.ids))))
    )
    assert some.images is not None
    images, _ = Pixels(some.images.store, clip.eval_transform, SIZE).load(some.images.rows)
    found: dict[str, list[tuple[float, float]]] = {"embed": [], "bare": []}

    def bare() -> None:
        with torch.inference_mode():
            for start in range(0, len(images), embed.BATCH):
                clip.encode_image(images[start : start + embed.BATCH])

    def whole() -> None:
        shutil.rmtree(scratch / "timed", ignore_errors=True)
        embed.embed(clip, "lite", SIZE, some, scratch / "timed", False, Quiet())

    bare()  # the first pass is slower
    for _ in range(ROUNDS):
        for name, work in (("embed", whole), ("bare", bare)):
            clock, spent = time.perf_counter(), time.process_time()
            work()
            found[name].append((time.perf_counter() - clock, time.process_time() - spent))
    least = {name: [min(column) for column in zip(*rows, strict=True)] for name, rows in found.items()}
    about = {"timed": len(images), "load": round(os.getloadavg()[0], 1), "machine": machine()}
    return about | {
        f"{name}_per_{unit}": round(len(images) / least[name][place], 1)
        for name in least
        for place, unit in enumerate(("second", "cpu_second"))
    }


def searching(scratch: Path) -> Json:
    """A query over a million synthetic embeddings beside the product of the same numbers in one array."""
    path = scratch / "million"
    random = np.random.default_rng(0)
    if not folder.is_vectors(path) or len(folder.read(path)) < COUNT:
        made = folder.create(path, Table("image", "none", None, "0" * 64, WIDTH, "float32"))
        for first in range(0, COUNT, embed.SHARD):
            rows = random.standard_normal((min(embed.SHARD, COUNT - first), WIDTH), dtype=np.float32)
            rows /= np.linalg.norm(rows, axis=1, keepdims=True)
            made = folder.append(made, rows, Listed([str(first + row) for row in range(len(rows))], {}, []))
    vectors = folder.read(path)
    query = random.standard_normal((1, WIDTH), dtype=np.float32)
    query /= np.linalg.norm(query)
    every = np.concatenate([block for _, block in vectors.blocks])
    exact = np.argsort(-(query @ every.T)[0])[:NEIGHBOURS]
    same = nearest(vectors, query, NEIGHBOURS)[1][0].tolist() == exact.tolist()
    spent = {
        "open": _best(lambda: folder.read(path)),
        "first": _best(lambda: nearest(folder.read(path), query, NEIGHBOURS), 3),
        "search": _best(lambda: nearest(vectors, query, NEIGHBOURS)),
        "product": _best(lambda: query @ every.T),
    }
    units = {f"{name}_{unit}": round(s, 4) for name, row in spent.items() for unit, s in row.items()}
    return (
        {"embeddings": COUNT, "width": WIDTH, "same_as_a_whole_sort": same} | units | {"machine": machine()}
    )


def _best(work: Callable[[], object], times: int = 9) -> dict[str, float]:
    """The least seconds of several calls, by the clock and of the processor."""
    found = []
    for _ in range(times):
        clock, spent = time.perf_counter(), time.process_time()
        work()
        found.append((time.perf_counter() - clock, time.process_time() - spent))
    return {"seconds": min(row[0] for row in found), "cpu_seconds": min(row[1] for row in found)}
