"""Run many trainings from one resumable command: the tables in this folder are made with it.

A job is a run of ``everclip``; its results.json, with the processor's seconds added, is kept in a folder of the
project, and a job whose file is there is not run again, unless its words or the defaults have changed. Jobs run side by
side, one thread each, which gives more runs an hour than one after another. Sets of pictures lie in, or are unpacked or
linked into, the scratch folder, and jobs run there, so that no path of a machine gets into a result.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import pacs_part
from everclip import plugins
from everclip.config.fields import before
from everclip.config.models import NEWEST
from everclip.methods.base.registry import method_class

Json = dict[str, Any]
GENERAL = 2
"""The newest generation of defaults that concerns every method."""


@dataclass(frozen=True)
class Job:
    """One command ``everclip COMMAND WORDS out=NAME``.

    ``held_out``: words of ``everclip evaluate MODEL`` for a data set on which the encoder is then tested zero-shot
    (``held_out_accuracy`` of the result).
    """

    name: str
    words: tuple[str, ...]
    command: str = "train"
    held_out: tuple[str, ...] = ()


@dataclass(frozen=True)
class Bench:
    """Where jobs run and where their results are kept."""

    scratch: Path
    results: Path
    parallel: int

    @classmethod
    def from_arguments(cls, about: str, results: Path, *sets: str) -> Bench:
        """Return the bench that the command line asks for; ``sets`` of pictures (``pictures``) are put in place."""
        parser = argparse.ArgumentParser(
            description=about, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        parser.add_argument("--scratch", type=Path, default=Path("runs/benchmarks"), help="work goes here")
        parser.add_argument("--parallel", type=int, default=os.cpu_count() or 1, help="jobs side by side")
        arguments = parser.parse_args()
        bench = cls(arguments.scratch.resolve(), results, arguments.parallel)
        bench.scratch.mkdir(parents=True, exist_ok=True)
        bench.results.mkdir(parents=True, exist_ok=True)
        if sets:
            pictures(Path(os.environ["EVERCLIP_DATA"]).resolve(), bench.scratch, *sets)
        return bench

    def run(self, jobs: Sequence[Job]) -> dict[str, Json]:
        """Results by name, from the kept files or from running what is missing."""
        there = self.kept(jobs)
        print(f"{len(there)} of {len(jobs)} jobs are there already", file=sys.stderr)
        for _ in self.follow([job] for job in jobs if job.name not in there):
            pass
        return self.kept(jobs)

    def follow(self, chains: Iterable[Iterable[Job]]) -> Iterator[None]:
        """Run chains side by side, the jobs of a chain one after another; yield when a chain has ended.

        A chain may ask ``kept`` for its earlier jobs before it names the next.
        """

        def follow(chain: Iterable[Job]) -> None:
            for job in chain:
                if not self.kept([job]):
                    print(self._run(job), file=sys.stderr, flush=True)

        with ThreadPoolExecutor(self.parallel) as pool:
            for done in as_completed([pool.submit(follow, chain) for chain in chains]):
                yield done.result()

    def kept(self, jobs: Sequence[Job]) -> dict[str, Json]:
        """Results by name, of the jobs that are done."""
        found: dict[str, Json] = {}
        for job in jobs:
            file = self.results / f"{job.name}.json"
            result = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
            if result.get("asked") == _asked(job):
                found[job.name] = result
        return found

    def _run(self, job: Job) -> str:
        """Run one job; return a line on how it went. A failed one leaves its output beside its run directory.

        What a killed job left is continued, unless the job asks for something else by now.
        """
        begun = self.scratch / f"{job.name}.asked"
        if (self.scratch / job.name).exists() and not (begun.exists() and begun.read_text() == _asked(job)):
            shutil.rmtree(self.scratch / job.name)
        begun.write_text(_asked(job))
        resumed = (self.scratch / job.name).exists()
        words = [job.command, *job.words, f"out={job.name}", "--json"]
        result, seconds = self._everclip(job.name, words)
        if result is None:
            return f"{job.name}: FAILED, see {self.scratch / job.name}.log"
        result |= {"asked": _asked(job), "cpu_seconds": round(seconds, 1), "machine": machine()}
        result.pop("peak_memory_bytes", None)
        if resumed:
            result["resumed"] = True  # cpu_seconds are those of the last process alone
        if job.held_out:
            newest = max((self.scratch / job.name / "checkpoints").iterdir()).relative_to(self.scratch)
            tested, _ = self._everclip(job.name, ["evaluate", str(newest), *job.held_out, "--json"])
            if tested is None:
                return f"{job.name}: FAILED on {' '.join(job.held_out)}, see {self.scratch / job.name}.log"
            result["held_out_accuracy"] = tested["accuracy"]
        write(self.results / f"{job.name}.json", result)
        shutil.rmtree(self.scratch / job.name)  # a hundred runs' checkpoints would fill a disk
        return f"{job.name}: {result.get('last', '')}"

    def _everclip(self, name: str, words: Sequence[str]) -> tuple[Json | None, float]:
        """What the command prints as JSON, None where it fails, and the processor's seconds it took."""
        with (self.scratch / f"{name}.log").open("a") as log:
            child = subprocess.Popen(
                [sys.executable, "-m", "everclip", *words],
                cwd=self.scratch,
                stdout=subprocess.PIPE,
                stderr=log,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
            )
            assert child.stdout is not None
            text = child.stdout.read()
            _, status, usage = os.wait4(child.pid, 0)
            child.returncode = os.waitstatus_to_exitcode(status)
        return None if child.returncode else json.loads(text), usage.ru_utime + usage.ru_stime


def _asked(job: Job) -> str:
    """The words and the defaults that a result depends on."""
    return " ".join([*job.words, *job.held_out, f"defaults={_generation(job)}"])


def _generation(job: Job) -> int:
    given = [word.partition("=")[2] for word in job.words if word.startswith("method=")]
    return generation(given[-1]) if given else GENERAL


def generation(method: str) -> int:
    """The newest generation of defaults that differs from the one before for a method."""
    if method not in plugins.names("methods"):
        return NEWEST
    options = method_class(method).Config
    return next((later for later in range(NEWEST, GENERAL, -1) if before(options, later - 1)), GENERAL)


def current(row: Json) -> bool:
    """Whether a kept line still holds; ``defaults`` says the generation that its closed form on layers had."""
    return row.get("defaults") in (None, generation("multilayer_lda"))


def machine() -> str:
    """The processor's name, where Linux tells it, and how many cores there are."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{(names or [platform.processor() or 'unknown processor'])[0]}, {os.cpu_count()} cores"


def machines(results: Mapping[str, Json]) -> str:
    """All machines that results come from, in words."""
    return " and ".join(sorted({run["machine"] for run in results.values() if "machine" in run}))


def apart(first: Sequence[Json], second: Sequence[Json]) -> str:
    """The difference of ``over_classes`` and its interval, as a text."""
    found, low, high = over_classes(first, second)
    return f"{found:.1f} ({low:.1f} to {high:.1f})"


def over_classes(first: Sequence[Json], second: Sequence[Json]) -> tuple[float, float, float]:
    """The difference of mean last accuracies in points, and the ends of its 95 % interval, a bootstrap over classes.

    It says what other classes of the same kind would give, not what other seeds would. One over test images would be
    too narrow, as the images of a class are forgotten together.
    """
    gain: dict[str, float] = {}
    count: dict[str, int] = {}
    for runs, sign in ((first, 1), (second, -1)):
        for run in runs:
            for row in run["per_class"]:
                right = sign * (row["last"] or 0.0) * row["n"] / len(runs)
                gain[row["class"]] = gain.get(row["class"], 0.0) + right
                count[row["class"]] = row["n"]
    gains, counts = (np.array([part[name] for name in sorted(count)]) for part in (gain, count))
    drawn = np.random.default_rng(0).integers(len(counts), size=(10_000, len(counts)))
    low, high = np.percentile(100 * gains[drawn].sum(1) / counts[drawn].sum(1), [2.5, 97.5])
    return 100 * gains.sum() / counts.sum(), low, high


def packed(right: NDArray[Any]) -> str:
    """Which test images are right, a bit each, as hexadecimal digits."""
    return np.packbits(right).tobytes().hex()


def unpacked(digits: str, images: int) -> NDArray[Any]:
    """Which of so many test images are right, as 0 and 1."""
    return np.unpackbits(np.frombuffer(bytes.fromhex(digits), dtype=np.uint8), count=images).astype(float)


def rows(header: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table; the first column is text."""
    rule = ["---", *["---:"] * (len(header) - 1)]
    return ["| " + " | ".join(row) + " |" for row in (header, rule, *body)] + [""]


def paragraph(text: str) -> list[str]:
    """Lines of running text, and an empty one."""
    return [*textwrap.wrap(" ".join(text.split()), 110), ""]


def write(file: Path, value: Json) -> None:
    """A JSON file, whole or not at all: one line a key, so that differences can be read."""
    lines = ",\n".join(f"{json.dumps(k)}: {json.dumps(v, ensure_ascii=False)}" for k, v in value.items())
    half = file.with_suffix(".part")
    half.write_text("{\n" + lines + "\n}\n", encoding="utf-8")
    half.replace(file)


def pictures(source: Path, scratch: Path, *sets: str) -> None:
    """Put sets of pictures into the scratch folder, from folders or archives of ``source``.

    pacs128 comes with its part pacs_part/, imagenet1k-sample with imagenet/, one picture of each class.
    """
    for name in sets:
        target = scratch / name
        if target.exists():
            continue
        if (source / name).is_dir():
            target.symlink_to(source / name)
        elif (source / f"{name}.tar").exists():
            with tarfile.open(source / f"{name}.tar") as archive:
                archive.extractall(scratch, filter="data")
        else:
            raise SystemExit(f"{source} has neither a folder {name} nor {name}.tar: see EVERCLIP_DATA")
    _one_of_each_class(scratch / "imagenet1k-sample", scratch / "imagenet")
    if "pacs128" in sets and not (scratch / "pacs_part").exists():
        pacs_part.build(scratch / "pacs128", scratch / "pacs_part")


def imagenet_part(source: Path, scratch: Path) -> Path:
    """The folder of one picture a class of ImageNet, made in ``scratch`` from those in ``source``."""
    _one_of_each_class(source / "imagenet1k-sample", scratch / "imagenet")
    return scratch / "imagenet"


def _one_of_each_class(pictures: Path, target: Path) -> None:
    """One picture of each of ImageNet's classes as a validation folder, where the folder ``pictures`` is there."""
    if target.exists() or not pictures.is_dir():
        return
    half = target.with_name(f"{target.name}.part")
    for picture in pictures.iterdir():
        folder = half / "val" / picture.name.partition("_")[0]
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(picture, folder / picture.name)
    half.rename(target)
