"""Folders of a stranger: models, versions, runs and sweeps of which one thing was changed, and the commands that a user
would run on them.

Whatever was changed, a command ends within seconds with a result or one line, takes little memory, runs no code of the
folder's, and changes nothing outside of it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import resource
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from everclip.cli.app import main
from everclip.system import checkpoint
from tests.attacks.plant import hugging
from tests.faults.bench import Bench, Goal, Row
from tests.faults.forks import Ended, order
from tests.faults.mutations import MARKER, Rng, change, drawn
from tests.learned import coloured

COUNT = 1000
SECONDS, RESIDENT = 10.0, 1.5e9
"""Processor seconds that a command may take to refuse, and bytes that it may hold, torch and all."""
LONGER, MORE = 60.0, 6e9
"""The same of one that does what it is asked: a config that has lost all but its seed is a good one and trains."""
WALL = 100.0
"""Seconds by the clock after which it is killed."""
PEAK = "peak resident kilobytes:"
_MORE = {"purple": (150, 30, 160), "orange": (240, 150, 30)}

NEW, HELD = "imagefolder:../new", "imagefolder:../held"
MODEL_COMMANDS = (
    ("predict", "{it}", "../held"),
    ("predict", "{it}", "../held", "--json", "--top", "2"),
    ("evaluate", "{it}", "--data", HELD),
    ("export", "{it}", "-o", "../out/x"),
    ("merge", "{it}", "--with", "zero-shot", "--alpha", "0.5", "-o", "../out/x"),
    ("update", "{it}", "--add", NEW, "--dry-run"),
    ("predict", "{it}", "--calibrate", HELD),
)
TRAIN = (
    "train",
    "data=imagefolder:../photos",
    "scenario.tasks=2",
    "train.steps=1",
    "device=cpu",
    "--dry-run",
)
VERSION_COMMANDS = (
    *MODEL_COMMANDS,
    ("rollback", "{it}"),
    ("forget", "{it}", "--class", "red", "-o", "../out/x"),
    (
        "update",
        "{it}",
        "--add",
        NEW,
        "--test",
        HELD,
        "--max-drop",
        "100",
        "--method",
        "means",
        "-o",
        "../out/x",
    ),
)
RUN_COMMANDS = (
    *MODEL_COMMANDS[:6],
    ("evaluate", "{it}"),
    ("resume", "{it}"),
    ("resume", "{it}", "--json"),
    ("report", "{it}", "-o", "../out/x.html", "--json"),
    ("report", "{it}", "../runs/run", "-o", "../out/x.html"),
    ("compare", "{it}", "../runs/run", "--anyway"),
    ("train", "{it}/config.toml", "--smoke", "out=../out/x"),
    ("train", "{it}/config.toml", "--dry-run"),
    (*TRAIN, "model={it}"),
)
SWEEP_COMMANDS = (
    ("report", "{it}", "-o", "../out/x.html", "--figures", "../out/figures"),
    ("compare", "{it}"),
    ("compare", "{it}", "--by", "method", "--json"),
    ("sweep", "{sweep}", "out={it}", "--dry-run"),
    ("sweep", "{sweep}", "out={it}", "--print"),
    ("resume", "{it}/ridge"),
)
COMMANDS: dict[str, Sequence[tuple[str, ...]]] = {
    "model": (*MODEL_COMMANDS, (*TRAIN, "model={it}")),
    "text": MODEL_COMMANDS,
    "hugging": (
        ("predict", "{it}", "../held", "--classes", "../classes.txt"),
        ("evaluate", "{it}", "--data", HELD),
        ("update", "{it}", "--add", NEW, "--dry-run"),
        (*TRAIN, "model={it}"),
    ),
    "version": VERSION_COMMANDS,
    "run": RUN_COMMANDS,
    "half": RUN_COMMANDS,
    "sweep": SWEEP_COMMANDS,
}
"""What is run on each kind of folder."""
DRAWN = 3
"""Commands for each change."""


def measured(argv: Sequence[str]) -> int:
    """``everclip ARGV`` as ``python -m`` in the present folder, with a bound for what it may take at all."""
    sys.path.insert(0, os.getcwd())
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    room = pages * resource.getpagesize() + 6 * 2**30
    resource.setrlimit(resource.RLIMIT_AS, (room, room))
    code = main(argv)
    status = Path("/proc/self/status").read_text()
    peak = next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))
    print(PEAK, peak, file=sys.stderr)
    return code


class World:
    """The folders, as they are before anything is changed, and what lies beside them."""

    def __init__(self, bench: Bench) -> None:
        self.bench, self.root = bench, bench.fresh("strangers")
        self.good, self.place = self.root / "good", self.root / "place"
        (self.root / "canary").mkdir(parents=True)
        (self.root / "canary" / "theirs.json").write_text('{"keep": "me"}\n')
        self.place.mkdir()
        shutil.copytree(bench.folder / "photos", self.root / "photos")
        shutil.copytree(bench.folder / "model", self.root / "model")
        for name, seed in (("new", 2), ("held", 5)):
            coloured(self.root / name, _MORE, 3, seed)
        (self.root / "classes.txt").write_text("red\ngreen\n")
        self._make()
        self.before = self._snapshot()

    def _make(self) -> None:
        tokens = (
            "model=local-dir:../model",
            "data=imagefolder:../photos",
            "scenario.tasks=2",
            "train.epochs=1",
        )
        tokens += ("train.batch_size=8", "memory.budget=12", "device=cpu", "loader.workers=0")
        self.done("train", *tokens, "method=ridge", "out=../good/run")
        shutil.copytree(self.good / "run", self.root / "runs" / "run")
        self.done("export", "../good/run", "-o", "../good/model")
        self.done("train", *tokens, "method=finetune", "out=../good/half", "checkpoint.every=steps:1")
        self.done("export", "../good/half", "-o", "../good/text")
        (self.good / "half" / "results.json").unlink()
        shutil.rmtree(self.good / "half" / "checkpoints" / "stage-001")
        hugging(self.good / "hugging")
        update = ("--unmeasured", "--method", "means", "--exemplars", "4")
        self.done("update", "../good/run", "--add", NEW, "--test", HELD, *update, "-o", "../good/version")
        self.sweep = (*tokens, "method=finetune,ridge", "seed=0")
        for method in ("finetune", "ridge"):
            self.done("train", *tokens, f"method={method}", f"out=../good/sweep/{method}")
        self.done("sweep", *self.sweep, "out=../good/sweep")  # which finds them finished

    def done(self, *words: str) -> None:
        """Run a command that must go well."""
        ended = self.run(words)
        assert ended.status == 0, ended

    def run(self, words: Sequence[str]) -> Ended:
        """Run a command in the folder where the changed one is."""
        what = order(words, call=f"{__name__}:measured", cwd=self.place) | {"after": WALL}
        return self.bench.forks.do(what)

    def fresh(self, kind: str) -> Path:
        """A new copy of a folder, and nothing else in its place."""
        shutil.rmtree(self.place, ignore_errors=True)
        shutil.rmtree(self.root / "out", ignore_errors=True)
        self.place.mkdir()
        (self.place / "payload.py").write_text(f"open({MARKER!r}, 'w').write('x')\n")
        return Path(shutil.copytree(self.good / kind, self.place / "it"))

    def harm(self) -> str:
        """What has changed outside of the folder; empty where nothing has."""
        if list(self.root.rglob(MARKER)):
            return "code of the folder has run"
        after = self._snapshot()
        changed = sorted(name for name in {*self.before, *after} if self.before.get(name) != after.get(name))
        return f"changed: {', '.join(changed[:3])}" if changed else ""

    def _snapshot(self) -> dict[str, str]:
        ours = (
            "payload.py",
            "it",
            ".it",
        )  # in the place: the folder, and what lies beside it while it is replaced
        tops = [top for top in self.root.iterdir() if top.name not in ("place", "out")]
        tops += [top for top in self.place.iterdir() if not top.name.startswith(ours)]
        files = (path for top in tops for path in (top, *top.rglob("*")))
        return {
            str(path.relative_to(self.root)): hashlib.sha256(path.read_bytes()).hexdigest()
            if path.is_file()
            else ""
            for path in files
        }


def seal(folder: Path) -> None:
    """Make the manifest right again, as whoever changes a folder can."""
    try:
        body = checkpoint._body(folder)
        there = [name for name in body["files"] if (folder / name).is_file()]
        if all((folder / name).stat().st_size < 2**30 for name in there):
            files = {name: checkpoint._entry(folder / name) for name in there}
            (folder / checkpoint.MANIFEST).write_bytes(checkpoint._manifest(files, body["on"]))
    except (OSError, checkpoint.Damaged):
        return


def spoil(folder: Path, rng: Rng) -> tuple[str, str]:
    """Change one file of a folder, or add one; returns which, and how."""
    every = (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    files = sorted(path for path in every if 0 < path.stat().st_size < 2**26)
    kinds = sorted({path.suffix for path in files} - {".html", ".csv", ".log"})
    if rng.random() < 0.06:
        return _added(folder, rng)
    kind = drawn(rng, kinds)
    path = drawn(rng, [path for path in files if path.suffix == kind])
    what = change(path, rng)
    if path.name != checkpoint.MANIFEST and rng.random() < 0.8:
        seal(path.parent)
    return str(path.relative_to(folder)), what


def _added(folder: Path, rng: Rng) -> tuple[str, str]:
    names = (
        "x\ny.json",
        "\udcff.json",
        "a" * 250,
        "before",
        "before-",
        "before-x",
        "tokenizer.py",
        "stage-999999999",
        "sweep.json",
    )
    name = drawn(
        rng, (*names, "config.toml", "everclip.json", "update.json", "results.json", "open_clip_model.bin")
    )
    inner = drawn(rng, [folder, *sorted(path for path in folder.rglob("*") if path.is_dir())])
    with contextlib.suppress(OSError):
        if rng.random() < 0.3:
            (inner / name).mkdir()
        else:
            (inner / name).write_bytes(b"{}")
    return name, "added"


def wrong(ended: Ended) -> str:
    """What is wrong with how a command ended; empty where nothing is."""
    lines = [line for line in ended.err.splitlines() if not line.startswith(PEAK)]
    peak = next((1024 * int(line.split()[-1]) for line in ended.err.splitlines() if line.startswith(PEAK)), 0)
    seconds, resident = (SECONDS, RESIDENT) if ended.status else (LONGER, MORE)
    if ended.seconds > seconds or ended.status == -9:
        return f"took {ended.seconds:.0f} s, exit {ended.status}"
    if ended.status not in (0, 1, 2, 3) or "Traceback" in ended.err + ended.out:
        return f"exit {ended.status}: {ended.err[-600:]}"
    if peak > resident or "not enough memory" in ended.err:
        return f"took {peak / 1e9:.1f} GB: {ended.err[-300:]}"
    errors = [line for line in lines if line.startswith("error: ")]
    if ended.status in (1, 2) and (
        len(errors) != 1 or not lines[-1].startswith("error: ") or "internal error" in errors[0]
    ):
        return f"exit {ended.status} without one line: {ended.err[-600:]}"
    if max(map(len, errors), default=0) > 1500:
        return f"a line of {len(errors[0])} characters: {errors[0][:200]}"
    if "\x1b" in ended.out + ended.err:
        return "an escape reached the terminal"
    return ""


def folder(bench: Bench, index: int) -> Row:
    """Change a folder and run commands on it."""
    if "world" not in bench.kept:
        bench.kept["world"] = World(bench)
    world: World = bench.kept["world"]
    kind = list(COMMANDS)[index % len(COMMANDS)]
    rng = bench.rng("folder", index)
    it = world.fresh(kind)
    spoiled = [spoil(it, rng) for _ in range(int(rng.integers(1, 4)))]
    file, what = (", ".join(words) for words in zip(*spoiled, strict=True))
    several = COMMANDS[kind]
    chosen = rng.permutation(len(several))[:DRAWN].tolist()
    row: Row = {"kind": kind, "file": file, "what": what, "commands": [], "ok": True, "why": ""}
    for place in sorted(chosen, key=lambda place: several[place][0] in ("rollback", "resume")):
        words = [word for part in several[place] for word in (world.sweep if part == "{sweep}" else (part,))]
        shutil.rmtree(world.root / "out", ignore_errors=True)
        ended = world.run([word.format(it="it") for word in words])
        bad = wrong(ended) or world.harm()
        row["commands"].append([several[place][0], ended.status])
        if bad:
            return row | {"ok": False, "why": f"{' '.join(words)}: {bad}"}
    return row


GOAL: dict[str, Any] = {
    "R15": Goal(
        "a stranger's folder, up to three things of it changed: a result or one line, no code, nothing else touched",
        COUNT,
        folder,
    )
}
"""The goal of this module."""
Item = Callable[[Bench, int], Row]
