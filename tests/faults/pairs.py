"""Two commands at once on one target, and what appears at a target while a command works.

The first stops (SIGSTOP) before one of the calls that change what is on the disk, and goes on when the second has ended
or has waited for it; others begin apart by a time that is drawn.
"""

from __future__ import annotations

from functools import partial

from tests.faults.bench import Bench, Goal, Row
from tests.faults.commands import COMMANDS
from tests.faults.commits import SHARES, Undisturbed, answered, at_home, copied, refused, summed
from tests.faults.forks import Ended, order
from tests.faults.looks import Look, look, torn, touched
from tests.faults.strikes import Strike

TIMED = 3
"""Pairs of an item that begin apart by a time."""
UNSTOPPED = "the first was not stopped"


class Pair:
    """Two commands on one target, in a folder of their own.

    Args:
        plain: both of them, undisturbed.
    """

    def __init__(self, bench: Bench, plain: tuple[Undisturbed, Undisturbed]) -> None:
        self.bench, self.plain = bench, plain
        self.work = bench.folder / "work"
        copied(plain[0].pristine, self.work)

    def stopped(self, number: int) -> list[str]:
        """What is wrong where the second comes while the first has stopped before that call."""
        first = self.plain[0].command.order(self.work, strike=Strike(str(self.work), number, what="stop"))
        wrong, stopped = self._run(first)
        return wrong if stopped else [*wrong, UNSTOPPED]

    def apart(self, delay: float) -> list[str]:
        """What is wrong where the second begins so many seconds after the first."""
        return self._run(self.plain[0].command.order(self.work), delay)[0]

    def _run(self, first: dict[str, object], delay: float = 0.0) -> tuple[list[str], bool]:
        second = self.plain[1].command.order(self.work)
        patience = 1.5 * self.plain[1].seconds + 0.5
        *ended, stopped = self.bench.forks.both(first, second, delay, patience)
        return self._judged(ended), stopped

    def _judged(self, ended: list[Ended]) -> list[str]:
        wrong = [
            f"exit {one.status}: {one.err[-300:]}" for one in ended if one.status != 0 and not refused(one)
        ]
        won = [plain for plain, one in zip(self.plain, ended, strict=True) if one.status == 0]
        if not won or (len(won) > 1 and self.plain[0].command.finished != "repeats"):
            said = " and ".join(one.last for one in ended)
            wrong.append(f"{len(won)} of them say that they are done ({said[:300]})")
        found = look(self.work)
        wrong += touched(self.plain[0].before, found, self.plain[0].own)
        wrong += torn(self.work)
        wrong += self._result(won, found)
        return [*dict.fromkeys(wrong)]

    def _result(self, won: list[Undisturbed], found: dict[str, Look]) -> list[str]:
        """What is wrong with what the two have left: it is to be the work of one that says it is done."""
        names = frozenset[str]().union(*(plain.expected.names for plain in won))
        wrong: list[str] = []
        for plain in won:
            own = {path: entry for path, entry in found.items() if path in plain.expected.names}
            wrong = plain.expected.differences(own)
            wrong += [f"{path} is left" for path in sorted(found.keys() - names)]
            if answered(self.bench, plain.command, self.work) != plain.answers[1]:
                wrong.append("other answers")
            if not wrong:
                return []
        return wrong


def appeared(bench: Bench, plain: Undisturbed, number: int) -> list[str]:
    """What is wrong where something of the user's appears at the target while a command has stopped before a call."""
    work = bench.folder / "work"
    copied(plain.pristine, work)
    target, kind = plain.command.target, ("folder", "file")[number % 2]
    first = plain.command.order(work, strike=Strike(str(work), number, what="stop"))
    call = order([target, kind], call=f"{type(plain.command).__module__}:appear", cwd=work)
    ended, planted, stopped = bench.forks.both(first, call, patience=60.0)
    found = look(work)
    wrong = touched(plain.before, found, plain.own) + ([] if stopped else [UNSTOPPED])
    if planted.out.strip() == "nothing":
        wrong += [] if ended.status == 0 else [f"exit {ended.status}: {ended.err[-300:]}"]
        return wrong + plain.expected.differences(found)
    if not refused(ended):
        wrong.append(f"a {kind} appeared: exit {ended.status}: {ended.err[-300:]}")
    new = {target, f"{target}/photo.png"} if kind == "folder" else {target}
    wrong += [f"{path}, which appeared, is gone" for path in sorted(new - found.keys())]
    wrong += [f"{path} is left" for path in sorted(found.keys() - plain.before.keys() - new)]
    return wrong


def paired(name: str, bench: Bench, index: int) -> Row:
    """A share of the calls of a command, before each of which another one comes in, or something of the user's."""
    rng, pairs, alone = bench.rng(f"pair {name}", index), dict[str, list[str]](), dict[str, list[str]]()
    with at_home(bench, name) as one, at_home(bench, name, rival=True) as other:
        for number in range(1 + index, len(one.calls) + 1, SHARES):
            where = f"{number} before {one.calls[number - 1]}"
            pairs[where] = Pair(bench, (one, other)).stopped(number)
            if one.command.finished == "refuses":
                alone[where] = appeared(bench, one, number)
        for delay in rng.uniform(0, one.seconds, TIMED).tolist():
            pairs[f"{delay:.3f} s apart"] = Pair(bench, (one, other)).apart(delay)
    return summed({"command": name}, {"pairs": pairs, "appeared": alone})


PAIRS = {
    f"pair {name}": Goal(
        f"{name}: two at once on one target, at each call and at any time", SHARES, partial(paired, name)
    )
    for name in COMMANDS
}
"""The goals of this module."""
