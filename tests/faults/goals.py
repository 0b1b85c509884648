"""The goals of reliability that faults are done for; each item of one is drawn by the seed and its number alone."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from open_clip import CLIP
from safetensors.torch import save_file

from everclip import plugins
from everclip.checkpoint import Damaged, Place, Store, verify
from everclip.seeding import generator
from tests.distributed import processes
from tests.faults import inputs
from tests.faults.forks import Ended, Forks
from tests.faults.server import PARTS
from tests.faults.stages import stages
from tests.pictures import image_folder
from tests.running import logged, timeless

Row = dict[str, Any]

MODEL = {
    "embed_dim": 8,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 16, "head_width": 8, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 4, "heads": 2, "layers": 1},
}
"""Under 1 MB, most of it the embeddings of the tokens."""

QUICK = {
    "cassle": ["method.probe_epochs=1", "method.hidden=16"],
    "cclis": ["method.probe_epochs=1"],
    "co2l": ["method.probe_epochs=1"],
    "ranpac": ["method.width=40"],
    "zscl": ["method.emoji_count=9", "method.ensemble_every=2"],
}
"""Options that make a method's run short or small."""

FACTORS: dict[str, Sequence[str]] = {
    "method": plugins.names("methods"),
    "train.precision": ("fp32", "bf16"),
    "loader.workers": ("0", "2"),
    "loader.cache_mb": ("0", "64"),
    "checkpoint.every": ("task", "steps:1", "steps:3"),
    "moment": (*PARTS, "clock"),
    "times": ("1", "1", "2"),
}
"""What a run is drawn from. ``times``: killed so often in a row; ``clock``: killed after a time, whatever it does."""
DECISIVE = ("method", "train.precision")
"""Factors that decide what a run computes: whatever the others are, it is held to one and the same reference."""
LEAST = 10
"""Items that each value of a factor has."""


def combination(seed: int, index: int, count: int) -> dict[str, str]:
    """The factors of one item: in ``count`` items each value of each factor comes equally often."""
    drawn: dict[str, str] = {}
    for name, values in FACTORS.items():
        order = generator(seed, name).permutation(np.resize(np.arange(len(values)), count))
        drawn[name] = values[int(order[index])]
    return drawn


class Reference(NamedTuple):
    """An undisturbed run.

    Args:
        print: of all that it computed.
        parts: of its events, as the server writes them.
        seconds: that it took.
    """

    print: str
    parts: bytes
    seconds: float


@dataclass
class Bench:
    """What faults are done with. Use ``Bench.at`` to set one up in a folder.

    Args:
        references: undisturbed runs by their settings, made when they are first asked for.
    """

    folder: Path
    forks: Forks
    seed: int = 0
    references: dict[tuple[str, ...], Reference] = field(default_factory=dict)

    @classmethod
    def at(cls, folder: Path, forks: Forks, seed: int = 0) -> Bench:
        """A bench whose model and pictures are in ``folder``."""
        if not (folder / "model").exists():
            small_model(folder / "model")
            image_folder(folder / "photos", {"train": 4, "test": 2})
        return cls(folder, forks, seed)

    def rng(self, goal: str, index: int) -> np.random.Generator:
        """The random numbers of one item."""
        return generator(self.seed, goal, index)

    def tokens(self, drawn: dict[str, str]) -> list[str]:
        """The settings of a small run."""
        settings = [f"{key}={value}" for key, value in drawn.items() if "." in key or key == "method"]
        fixed = [f"data=imagefolder:{self.folder / 'photos'}", f"model=local-dir:{self.folder / 'model'}"]
        fixed += [
            "scenario.tasks=2",
            "train.epochs=2",
            "train.batch_size=8",
            "memory.budget=12",
            "device=cpu",
        ]
        return [*fixed, *settings, *QUICK.get(drawn["method"], [])]

    def reference(self, drawn: dict[str, str]) -> Reference:
        """The undisturbed run of these factors. Raises RuntimeError where it fails, or computes what it may not."""
        every = {"checkpoint.every": drawn.get("checkpoint.every", "task")}  # makes other events
        tokens = self.tokens({key: drawn[key] for key in DECISIVE} | every)
        key = (*(drawn[key] for key in DECISIVE), *every.values())
        if key not in self.references:
            out, trace = self.fresh("reference"), self.folder / "trace"
            first = self.forks.run(["train", *tokens, f"out={out}"], trace=trace)
            if first.status:
                raise RuntimeError(f"an undisturbed run fails: {first.last}")
            seconds = json.loads((out / "results.json").read_text())["seconds"]
            found = self.references[key] = Reference(fingerprint(out), trace.read_bytes(), seconds)
            if any(
                other.print != found.print for known, other in self.references.items() if known[:2] == key[:2]
            ):
                raise RuntimeError(f"{' '.join(tokens)} computes something else when it is saved more often")
        return self.references[key]

    def fresh(self, name: str) -> Path:
        """A path with nothing there."""
        path = self.folder / name
        shutil.rmtree(path, ignore_errors=True)
        return path

    def moment(self, parts: bytes, part: str, rng: np.random.Generator) -> dict[str, Any]:
        """A random event of a part, or of all where it has none."""
        count = parts.count(PARTS.index(part)) if part in PARTS else 0
        return {"at": int(rng.integers(count or len(parts))) + 1, "part": part if count else None}


def small_model(folder: Path) -> None:
    """Save a CLIP model of random weights as a ``local-dir``."""
    folder.mkdir(parents=True)
    config = {"model_cfg": MODEL, "preprocess_cfg": {"mean": [0.5, 0.4, 0.3], "std": [0.3, 0.25, 0.2]}}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        save_file(CLIP(**MODEL).state_dict(), folder / "open_clip_model.safetensors")


def fingerprint(out: Path) -> str:
    """A hash of all that a finished run computed: weights, the method's state, memory, results, log, predictions."""
    newest = Store(out / "checkpoints", 1).places()[-1]
    folder = out / "checkpoints" / newest.name
    verify(folder)
    state = torch.load(folder / "state.pt", weights_only=True)
    digest = hashlib.sha256()

    def take(value: object) -> None:
        if isinstance(value, torch.Tensor):
            digest.update(f"{value.dtype} {tuple(value.shape)}".encode())
            digest.update(
                value.contiguous().flatten().view(torch.uint8).numpy().tobytes() if value.numel() else b""
            )
        elif isinstance(value, dict):
            for key in sorted(value):
                digest.update(f"{key}:".encode())
                take(value[key])
        elif isinstance(value, list | tuple):
            for part in value:
                take(part)
        else:
            digest.update(repr(value).encode())

    results = timeless(json.loads((out / "results.json").read_text()))
    take([state["method"], state["memory"], state["skipped"], results, logged(out)])
    for name in ("matrix.csv", "per_class.csv", "predictions.npz"):
        digest.update((out / name).read_bytes())
    digest.update((folder / "open_clip_model.safetensors").read_bytes())
    return f"{newest.name} {digest.hexdigest()}"


def finish(bench: Bench, out: Path, expected: Reference) -> Row:
    """Resume a run, and see whether it has become what it would have been."""
    last = bench.forks.run(["resume", str(out)])
    if last.status:
        return {"ok": False, "why": f"resume: exit {last.status}: {last.err[-600:]}"}
    found = fingerprint(out)
    whole = (out / "report.html").exists()
    return {
        "ok": found == expected.print and whole,
        "why": "" if found == expected.print else "other results",
    }


def start_again(bench: Bench, out: Path, tokens: list[str]) -> list[str]:
    """The command that goes on with a run: ``resume``, or the same one where there is no config yet to read."""
    return ["resume", str(out)] if (out / "config.toml").exists() else ["train", *tokens, f"out={out}"]


# R1: kill -9 ------------------------------------------------------------------------------------------------


def kill(bench: Bench, index: int) -> Row:
    """A run killed at an arbitrary moment, once or twice in a row, then continued."""
    drawn, rng = combination(bench.seed, index, KILLS), bench.rng("kill", index)
    expected, tokens, out = bench.reference(drawn), bench.tokens(drawn), bench.fresh("killed")
    command, killed = ["train", *tokens, f"out={out}"], []
    for _ in range(int(drawn["times"])):
        if drawn["moment"] == "clock":
            ended = bench.forks.run(command, after=float(rng.uniform(0, 1.3 * expected.seconds)))
        else:
            ended = bench.forks.run(command, **bench.moment(expected.parts, drawn["moment"], rng))
        killed.append(ended.status == -9)
        if ended.status not in (0, -9):
            return drawn | {"ok": False, "why": f"exit {ended.status}: {ended.err[-600:]}"}
        command = start_again(bench, out, tokens)
    if command[0] == "train" and (again := bench.forks.run(command)).status:
        return drawn | {"ok": False, "why": f"exit {again.status}: {again.err[-600:]}"}
    return drawn | {"killed": killed} | finish(bench, out, expected)


KILLS = max(200, LEAST * max(map(len, FACTORS.values())))


# R3: damaged checkpoints ------------------------------------------------------------------------------------

FLIPS, CUTS = 100, 10


def damage(bench: Bench, index: int) -> Row:
    """Bytes of checkpoints flipped and files of them cut off; then a command that meets one of these."""
    rng, drawn = bench.rng("damage", index), {"method": "gdro", "train.precision": "fp32"}
    drawn["checkpoint.every"] = "steps:1"
    tokens, expected, pristine = bench.tokens(drawn), bench.reference(drawn), bench.folder / "pristine"
    if not pristine.exists():
        late = {"at": int(0.9 * expected.parts.count(PARTS.index("step"))), "part": "step"}
        half = bench.forks.run(["train", *tokens, f"out={pristine}"], **late)
        assert half.status == -9, half
    files = sorted(path for path in (pristine / "checkpoints").rglob("*") if path.is_file())
    unnoticed: list[str] = []
    for number in range(FLIPS + CUTS):
        path = files[int(rng.integers(len(files)))]
        good = path.read_bytes()
        path.write_bytes(_spoiled(good, rng, number < FLIPS))
        try:
            verify(path.parent)
            unnoticed.append(f"{path.parent.name}/{path.name}")
        except Damaged:
            pass
        finally:
            path.write_bytes(good)
    out = bench.fresh("damaged")
    shutil.copytree(pristine, out)
    newest = Store(out / "checkpoints", 1).places()[-1].name
    path = sorted((out / "checkpoints" / newest).iterdir())[index % 3]
    path.write_bytes(_spoiled(path.read_bytes(), rng, bool(rng.random() < 0.8)))
    said = bench.forks.run(["resume", str(out)])
    warned = f"checkpoint {newest} cannot be used" in said.err
    row = {"flips": FLIPS, "cuts": CUTS, "unnoticed": unnoticed, "command": newest, "warned": warned}
    same = said.status == 0 and fingerprint(out) == expected.print
    return row | {"ok": same and warned and not unnoticed, "why": "" if same else said.err[-600:]}


def _spoiled(good: bytes, rng: np.random.Generator, flip: bool) -> bytes:
    """The content with a bit flipped, or cut off somewhere."""
    place = int(rng.integers(len(good)))
    if not flip:
        return good[:place]
    return good[:place] + bytes([good[place] ^ 1 << int(rng.integers(8))]) + good[place + 1 :]


# R4: a full disk --------------------------------------------------------------------------------------------


def full_disk(bench: Bench, index: int) -> Row:
    """From an arbitrary moment on no file can grow; then there is room again, and the run is continued."""
    drawn, rng = combination(bench.seed, index, KILLS), bench.rng("full", index)
    expected, tokens = bench.reference(drawn), bench.tokens(drawn)
    moment = ("save", "between", "step", "save")[index % 4]
    blow = bench.moment(expected.parts, moment, rng)
    while True:
        out = bench.fresh("full")
        ended = bench.forks.run(["train", *tokens, f"out={out}"], what="full", **blow)
        if ended.status or blow["at"] == 1:
            break
        # it ended before: pictures that other threads decode are no events, and in the reference they were
        blow["at"] //= 2
    row = drawn | {"moment": moment, "status": ended.status, "line": ended.last[-200:]}
    bad = _one_line(ended) or _whole(out)
    if bad:
        return row | {"ok": False, "why": bad}
    again = start_again(bench, out, tokens)
    if again[0] == "train" and (failed := bench.forks.run(again)).status:
        return row | {"ok": False, "why": failed.err[-600:]}
    return row | finish(bench, out, expected)


def _one_line(ended: Ended) -> str:
    """What is wrong with how a command failed; empty where it is one line and exit code 1 or 2."""
    if ended.status not in (1, 2) or "Traceback" in ended.err or not ended.last.startswith("error: "):
        return f"exit {ended.status}: {ended.err[-600:]}"
    return ""


def _whole(out: Path) -> str:
    """What is wrong with the checkpoints that a run has left."""
    store = Store(out / "checkpoints", 1)
    for place in store.places():
        try:
            verify(store.folder(place))
        except Damaged as error:
            return f"{place.name}: {error}"
    return ""


# R5: signals ------------------------------------------------------------------------------------------------


def preempt(bench: Bench, index: int) -> Row:
    """A signal at an arbitrary moment: exit 75, nothing lost but what was not trained on yet."""
    drawn, rng = combination(bench.seed, index, KILLS), bench.rng("preempt", index)
    expected, tokens, out = bench.reference(drawn), bench.tokens(drawn), bench.fresh("preempted")
    name = ("SIGTERM", "SIGUSR1")[index % 2]
    moment = (*PARTS[:1], "any")[index // 2 % 2]
    ended = bench.forks.run(
        ["train", *tokens, f"out={out}"], what=name, **bench.moment(expected.parts, moment, rng)
    )
    row = drawn | {"moment": moment, "signal": name, "status": ended.status}
    if (
        ended.status != 75
        or "Traceback" in ended.err
        or f"stopped by {name}; everclip resume" not in ended.last
    ):
        return row | {"ok": False, "why": f"exit {ended.status}: {ended.err[-600:]}"}
    row["at"] = str(max(Store(out / "checkpoints", 1).places(), default=Place(0)).name)
    return row | finish(bench, out, expected)


# R6: one of two processes -------------------------------------------------------------------------------------

SHARED = ("gdro", "gcl", "icarl", "ewc", "finetune")
"""Methods of the runs that two processes share."""


def kill_one_of_two(bench: Bench, index: int) -> Row:
    """One of two processes killed at an arbitrary line of the log: the other ends within a minute with one line, and
    two processes go on.
    """
    rng = bench.rng("two", index)
    drawn = {"method": SHARED[index % 5], "train.precision": ("fp32", "bf16")[index // 5 % 2]}
    tokens, out = bench.tokens(drawn | {"checkpoint.every": "steps:3"}), bench.fresh("shared")
    key = ("two", *drawn.values())
    if key not in bench.references:
        ended = processes.finish(processes.start(2, ["-m", "everclip", "train", *tokens, f"out={out}"]))
        assert all(code == 0 for code, _, _ in ended), ended
        bench.references[key] = Reference(fingerprint(out), (out / "metrics.jsonl").read_bytes(), 0.0)
        out = bench.fresh("shared")
    expected, victim = bench.references[key], int(rng.integers(2))
    lines = int(rng.integers(1, expected.parts.count(b"\n")))
    pair = processes.start(2, ["-m", "everclip", "train", *tokens, f"out={out}"])
    log, deadline = out / "metrics.jsonl", time.monotonic() + 120
    while not log.exists() or log.read_bytes().count(b"\n") < lines:
        if time.monotonic() > deadline or pair[victim].poll() is not None:
            break
        time.sleep(0.01)
    pair[victim].kill()
    begun = time.monotonic()
    pair[1 - victim].wait(100)
    seconds = time.monotonic() - begun
    ended = processes.finish(pair)
    said = [line for line in ended[1 - victim][2].splitlines() if line.startswith("error: ")]
    row: Row = drawn | {"victim": victim, "line": lines, "killed": ended[victim][0] == -9}
    row |= {"seconds_to_end": round(seconds, 1), "said": said[-1:]}
    if row["killed"] and ended[1 - victim][0] and (len(said) != 1 or seconds > 60):
        return row | {"ok": False, "why": f"{said} after {seconds:.0f} s: {ended[1 - victim][2][-400:]}"}
    again = processes.finish(processes.start(2, ["-m", "everclip", *start_again(bench, out, tokens)]))
    if any(code for code, _, _ in again):
        return row | {"ok": False, "why": f"going on: {again[0][2][-400:]}"}
    same = fingerprint(out) == expected.print
    return row | {"ok": same, "why": "" if same else "other results"}


# R8, R9, R12: what comes from outside, and many stages ------------------------------------------------------

PICTURES, SETTINGS, STAGES = 100, 50, 1000


def pictures(bench: Bench, index: int) -> Row:
    """Spoiled pictures through the decoder."""
    return inputs.images(bench.rng("pictures", index), PICTURES)


def mistakes(bench: Bench, index: int) -> Row:
    """Mistaken settings through ``everclip train --dry-run``."""
    base = bench.tokens({"method": "gdro"})[:3]
    return inputs.configs(bench.rng("settings", index), SETTINGS, base, bench.folder)


def many_stages(bench: Bench, index: int) -> Row:
    """A thousand tasks in one run."""
    return stages(bench.fresh("stages"), bench.folder / "model", STAGES)


@dataclass(frozen=True)
class Goal:
    """A goal: how many items it has in all, and what does one."""

    title: str
    count: int
    item: Callable[[Bench, int], Row]


GOALS = {
    "R1": Goal("kill -9 at an arbitrary moment, once or twice in a row; resumed bit for bit", KILLS, kill),
    "R3": Goal(
        f"{FLIPS} flipped bits and {CUTS} cut files of checkpoints, and a resume that meets one", 100, damage
    ),
    "R4": Goal(
        "the disk full from an arbitrary moment on; then room again, and resumed bit for bit", 100, full_disk
    ),
    "R5": Goal("SIGTERM or SIGUSR1 at an arbitrary moment: exit 75; resumed bit for bit", 50, preempt),
    "R6": Goal(
        "one of two processes killed: the other ends within 60 s with one line; two go on, bit for bit",
        30,
        kill_one_of_two,
    ),
    "R8": Goal(f"{PICTURES} damaged pictures: decoded or left out with a reason", 30, pictures),
    "R9": Goal(f"{SETTINGS} mistaken configs: one line, nothing silently ignored", 10, mistakes),
    "R12": Goal(f"{STAGES} stages: memory and open files stay", 1, many_stages),
}
"""By the names of the goals. Another goal is another entry: an item is a function of the bench and a number."""
