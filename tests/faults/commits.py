"""Commands killed at each call that changes what is on the disk: before it and after it, and what is left then."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from tests.data.web import serving
from tests.faults.bench import Bench, Goal, Row
from tests.faults.commands import ARCHIVE, COMMANDS, SITE, Command, fill, foreign, world
from tests.faults.forks import Ended, order
from tests.faults.looks import Expected, Look, look, state, torn, touched
from tests.faults.strikes import Strike

SHARES = 8
"""Items that the calls of a command are shared out to: of the calls 1, 2, 3, ... every eighth."""
TWICE = 1
"""Kills of an item after which the command that is given again is killed as well, at any call."""
CHILDREN = 2
"""Kills of an item in the processes that a command starts: what they do, the same commands do by themselves as well."""


@dataclass(frozen=True)
class Undisturbed:
    """A command that nobody disturbs.

    Args:
        command: it, with what the environment needs to know.
        pristine: the folder as it was before.
        before: what is in it.
        calls: those that it can be struck at, in words.
        children: those that a process of its own that it starts can be struck at.
        expected: what is in the folder afterwards.
        answers: of its models, before and afterwards.
        seconds: that it takes.
    """

    command: Command
    pristine: Path
    before: dict[str, Look]
    calls: list[str]
    children: list[str]
    expected: Expected
    answers: tuple[dict[str, Any], dict[str, Any]]
    seconds: float

    @property
    def own(self) -> list[str]:
        """Paths of the user's."""
        beside = [path.relative_to(self.pristine) for path in foreign(self.pristine / self.command.target)]
        return [*map(str, beside), *self.command.beside]


@contextmanager
def at_home(bench: Bench, name: str, rival: bool = False) -> Iterator[Undisturbed]:
    """A command, or its rival, with what it needs beside files: a web server, a model that is computed."""
    command, key = COMMANDS[name], name
    if rival and command.rival != command.words:
        command, key = replace(command, words=command.rival), f"{name}, rival"
    if command.warm is not None:
        bench.forks.warm(command.warm)
    with pytest.MonkeyPatch.context() as patch, serving(patch) as site:
        if ARCHIVE in command.needs:
            site.files[f"/{ARCHIVE}"] = (world(bench) / ARCHIVE).read_bytes()
            command = replace(command, env={**command.env, SITE: site.url})
        if key not in bench.kept:
            bench.kept[key] = undisturbed(bench, command, name)
        yield replace(bench.kept[key], command=command)


def undisturbed(bench: Bench, command: Command, name: str) -> Undisturbed:
    """What comes of a command. Raises RuntimeError where it fails."""
    pristine = bench.folder / "commands" / name.replace(" ", "-")
    if not pristine.exists():
        fill(pristine, command, world(bench))
    seconds, works, log = 0.0, [bench.folder / "once", bench.folder / "again"], bench.folder / "calls.json"
    for number, work in enumerate(works):
        copied(pristine, work)
        strike = Strike(str(work), log=str(log)) if number == 0 else None
        begun = time.monotonic()
        ended = bench.forks.do(command.order(work, strike=strike))
        if ended.status:
            raise RuntimeError(f"{name}, undisturbed: exit {ended.status}: {ended.err[-600:]}")
        seconds = time.monotonic() - begun
    expected = Expected.of(look(works[0]), look(works[1]))
    calls, children = json.loads(log.read_text()), []
    if command.children:
        copied(pristine, works[0])
        bench.forks.do(command.order(works[0], strike=Strike(str(works[0]), log=str(log), children=True)))
        children = json.loads(log.read_text())
    answers = (answered(bench, command, pristine), answered(bench, command, works[1]))
    return Undisturbed(command, pristine, look(pristine), calls, children, expected, answers, seconds)


def copied(source: Path, work: Path) -> None:
    """Make a folder anew, as a copy."""
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(source, work)


def answered(bench: Bench, command: Command, work: Path) -> dict[str, Any]:
    """What the models of a folder say, each in words where it fails; of folders that hold the same one is asked."""
    if not command.models:
        return {}
    key = f"answers {command.models} {state(look(work))}"
    if key in bench.kept:
        return bench.kept[key]
    ended = bench.forks.do(order(command.models, call="tests.faults.commands:answer", cwd=work))
    if ended.status:
        raise RuntimeError(f"no answers: {ended.err[-600:]}")
    return bench.kept.setdefault(key, json.loads(ended.out))


def refused(ended: Ended) -> bool:
    """Whether a command ended with exit code 2 and one line."""
    errors = [line for line in ended.err.splitlines() if line.startswith("error: ")]
    return ended.status == 2 and len(errors) == 1 and "Traceback" not in ended.err


class Point(NamedTuple):
    """Where a command is killed: at which call, of its own or of each process that it starts; then once more or not."""

    number: int
    after: bool = False
    again: int = 0
    child: bool = False

    def words(self, plain: Undisturbed) -> str:
        """The point in words."""
        calls = plain.children if self.child else plain.calls
        where = f"{self.number} {'after' if self.after else 'before'} {calls[self.number - 1]}"
        return f"{where}, then {self.again}" if self.again else where


class Killed:
    """A command killed at a call, in a folder of its own.

    Attributes:
        wrong: what is wrong with what came of it, in words.
    """

    def __init__(self, bench: Bench, plain: Undisturbed, point: Point) -> None:
        self.bench, self.plain, self.command = bench, plain, plain.command
        self.work, self.wrong = bench.folder / "work", list[str]()
        copied(plain.pristine, self.work)
        ended = self._kill(Strike(str(self.work), point.number, point.after, children=point.child))
        if ended.status not in ((0, 1) if point.child else (-9,)):  # 0: a child that had its results already
            self.wrong.append(f"not killed but exit {ended.status}: {ended.last}")
        elif point.again:  # it may be done before that
            self._kill(Strike(str(self.work), point.again))

    def _kill(self, strike: Strike) -> Ended:
        return self.bench.forks.do(self.command.order(self.work, strike=strike))

    def judge(self) -> list[str]:
        """Look at what is left, give the command again, and look again; returns what is wrong.

        Where a kill before has left the same, what came of that is what comes of this.
        """
        key = f"judged {self.command.words} {self.command.call} {state(look(self.work))}"
        struck, self.wrong = self.wrong, []
        if key not in self.bench.kept or self.command.children:  # which may be at work still
            self._left()
            self._again()
            self._in_the_end()
            self.bench.kept[key] = self.wrong
        return [*dict.fromkeys([*struck, *self.bench.kept[key]])]

    def _in_the_end(self) -> None:
        """What the command has left that was given again."""
        found = look(self.work)
        self.wrong += self.plain.expected.differences(found) if not self.wrong else []
        self.wrong += touched(self.plain.before, found, self.plain.own)
        self.wrong += torn(self.work)
        if answered(self.bench, self.command, self.work) != self.plain.answers[1]:
            self.wrong.append("other answers in the end")

    def _left(self) -> None:
        """What the kill has left."""
        found = look(self.work)
        self.wrong += touched(self.plain.before, found, self.plain.own)
        self.wrong += torn(self.work)
        answers = answered(self.bench, self.command, self.work)
        whole = self._whole(found)
        self.done = answers == self.plain.answers[1] if self.command.finished == "left" else whole
        for model, said in answers.items():
            if said not in [known[model] for known in self.plain.answers]:
                how = "answers otherwise" if isinstance(said, list) else said[:200]
                self.wrong.append(f"{model}: {how}")

    def _whole(self, found: dict[str, Look]) -> bool:
        """Whether the target is all there; notes where it is there in parts."""
        target = self.command.target
        there = {
            path: entry for path, entry in found.items() if path == target or path.startswith(f"{target}/")
        }
        if there.keys() <= {target} | {path for path in self.plain.before if path.startswith(f"{target}/")}:
            return False
        different = self.plain.expected.under(target).differences(there)
        if different and self.command.finished == "refuses":
            self.wrong.append(f"{target} is there in parts: {', '.join(different[:3])}")
        return not different

    def _again(self) -> None:
        """Give the command again, as a user would who finds it killed."""
        words = [*self.command.words, *self.command.retry]
        ended = self.bench.forks.do(self.command.order(self.work, words))
        if self.done and self.command.finished != "repeats":
            if not refused(ended):
                self.wrong.append(f"given again: exit {ended.status}: {ended.err[-300:]}")
            if self.command.finished == "left":
                return
            shutil.rmtree(self.work / self.command.target)
            ended = self.bench.forks.do(self.command.order(self.work, words))
        if ended.status:
            self.wrong.append(f"given again: exit {ended.status}: {ended.err[-300:]}")


def points(plain: Undisturbed, index: int, rng: np.random.Generator) -> list[Point]:
    """Where an item kills: before and after each call of its share, and at some that are drawn."""
    found = [
        Point(number, after)
        for number in range(1 + index, len(plain.calls) + 1, SHARES)
        for after in (False, True)
    ]
    for _ in range(TWICE):
        number, again = rng.integers(1, len(plain.calls) + 1, 2).tolist()
        found.append(Point(number, bool(rng.integers(2)), again))
    for _ in range(CHILDREN if plain.children else 0):
        found.append(Point(int(rng.integers(1, len(plain.children) + 1)), bool(rng.integers(2)), child=True))
    return found


def killed(name: str, bench: Bench, index: int) -> Row:
    """A share of the calls of a command, each killed before and after."""
    with at_home(bench, name) as plain:
        tried = points(plain, index, bench.rng(f"kill {name}", index))
        wrong = {point.words(plain): Killed(bench, plain, point).judge() for point in tried}
    return summed({"command": name, "calls": len(plain.calls)}, {"points": wrong})


def summed(row: Row, wrong: Mapping[str, dict[str, list[str]]]) -> Row:
    """The row of an item.

    Args:
        wrong: by what was tried ("points"), and where, what is wrong with what came of it.
    """
    row |= {what: len(tried) for what, tried in wrong.items()}
    failed = {
        what: {where: "; ".join(lines)[:400] for where, lines in tried.items() if lines}
        for what, tried in wrong.items()
    }
    why = "; ".join(f"{where}: {lines}" for tried in failed.values() for where, lines in tried.items())
    row["lost"] = {what: len(tried) for what, tried in failed.items() if tried}
    return row | {"failed": failed, "ok": not why, "why": why[:600]}


COMMITS = {
    f"kill {name}": Goal(
        f"{name}: kill -9 before and after each call that changes what is on the disk",
        SHARES,
        partial(killed, name),
    )
    for name in COMMANDS
}
"""The goals of this module."""
