"""The goals of reliability that faults are done for; each item of one is drawn by the seed and its number alone."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import numpy as np

from everclip.system.checkpoint import Damaged, Place, Store, verify
from tests.distributed import processes
from tests.faults import inputs
from tests.faults.bench import FACTORS, LEAST, Bench, Goal, Reference, Row, combination, fingerprint
from tests.faults.commits import COMMITS
from tests.faults.folders import GOAL as FOLDERS
from tests.faults.forks import Ended
from tests.faults.pairs import PAIRS
from tests.faults.server import PARTS
from tests.faults.stages import stages


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
        or f"stopped by {name}: everclip resume" not in ended.last
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


GOALS = {
    "R1": Goal("kill -9 at an arbitrary moment, once or twice in a row; resumed bit for bit", KILLS, kill),
    "R3": Goal(
        f"{FLIPS} flipped bits and {CUTS} truncated files of checkpoints, and a resume that meets one",
        100,
        damage,
    ),
    "R4": Goal(
        "the disk is full from an arbitrary moment on; resumed bit for bit once there is room", 100, full_disk
    ),
    "R5": Goal("SIGTERM or SIGUSR1 at an arbitrary moment: exit 75; resumed bit for bit", 50, preempt),
    "R6": Goal(
        "one of two processes killed: the other ends within 60 s with one line; resumed bit for bit",
        30,
        kill_one_of_two,
    ),
    "R8": Goal(f"{PICTURES} damaged pictures: decoded or left out with a reason", 30, pictures),
    "R9": Goal(f"{SETTINGS} mistaken configs: one line, nothing silently ignored", 10, mistakes),
    "R12": Goal(f"{STAGES} stages: memory and open files do not grow", 1, many_stages),
    **FOLDERS,
    **COMMITS,
    **PAIRS,
}
"""By the names of the goals. Another goal is another entry: an item is a function of the bench and a number."""
