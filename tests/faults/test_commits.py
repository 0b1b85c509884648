"""A part of the campaign on commands that write: killed at calls that change names, and two of them at once."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.faults import commits, pairs
from tests.faults.bench import Bench
from tests.faults.commands import COMMANDS, Command
from tests.faults.commits import Killed, Point, at_home
from tests.faults.forks import Forks
from tests.faults.looks import Expected, look
from tests.faults.strikes import Strike
from tests.marks import slow_after

FAST = ("rollback", "forget", "calibrate a version", "export")
"""Commands that take well under a second."""
LONG = ("sweep", "report", "export to ONNX")
"""Commands that take seconds."""
NAMES = ("rename", "replace", "exchange")
"""Calls that put something in the place of something else."""


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with Forks() as forks:
        yield Bench.at(tmp_path_factory.mktemp("commits"), forks)


def decisive(calls: Sequence[str]) -> list[int]:
    """The last two calls that put something in place."""
    return [number for number, call in enumerate(calls, 1) if call.startswith(NAMES)][-2:]


@pytest.mark.slow
@pytest.mark.parametrize("name", slow_after(1, FAST))
def test_killed_where_names_change(bench: Bench, name: str) -> None:
    with at_home(bench, name) as plain:
        for number in decisive(plain.calls):
            for after in (False, True):
                point = Point(number, after)
                assert Killed(bench, plain, point).judge() == [], point.words(plain)


@pytest.mark.parametrize("name", slow_after(1, FAST))
def test_two_at_once(bench: Bench, name: str) -> None:
    with at_home(bench, name) as one, at_home(bench, name, rival=True) as other:
        for number in (1, *decisive(one.calls)):
            assert pairs.Pair(bench, (one, other)).stopped(number) == [], one.calls[number - 1]
        assert pairs.Pair(bench, (one, other)).apart(0.0) == []


@pytest.mark.parametrize("name", ["forget", "export"])
def test_what_appears_at_the_target_stays(bench: Bench, name: str) -> None:
    with at_home(bench, name) as plain:
        last = decisive(plain.calls)[-1]
        for number in (last, last - 1):
            assert pairs.appeared(bench, plain, number) == [], plain.calls[number - 1]


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_a_share_of_each_command(bench: Bench, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Few of its calls, and of the long ones no two at once; ``benchmarks.reliability`` tries all."""
    monkeypatch.setattr(commits, "SHARES", 200)
    monkeypatch.setattr(commits, "CHILDREN", 1)
    monkeypatch.setattr(pairs, "SHARES", 200)
    monkeypatch.setattr(pairs, "TIMED", 1)
    for goal in (commits.killed,) if name in LONG else (commits.killed, pairs.paired):
        row = goal(name, bench, 3)
        assert row["ok"], row


# The campaign itself ----------------------------------------------------------------------------------------------


def change(words: Sequence[str]) -> int:
    """A few changes, as commands make them."""
    folder = Path(words[0])
    folder.mkdir()
    (folder / "a").write_text("whole")
    (folder / "a").rename(folder / "b")
    Path(words[1]).write_text("elsewhere")
    (folder / "b").unlink()
    return 0


CHANGES = ["mkdir new", "open new/a", "rename new/a new/b", "unlink new/b"]
LEFT = [[], ["new"], ["new", "new/a"], ["new", "new/b"], ["new"]]


@pytest.mark.slow
def test_a_process_is_struck_before_and_after_each_call(bench: Bench) -> None:
    call, log = f"{__name__}:change", bench.folder / "changes.json"
    for number in range(len(CHANGES) + 1):
        for after in (False, True)[: number + 1]:
            work = bench.fresh("changed")
            work.mkdir()
            strike = Strike(str(work), number, after, log=str(log))
            words = [f"{work}/new", str(bench.folder / "outside")]
            ended = bench.forks.run(words, call=call, strike=strike)
            assert ended.status == (-9 if number else 0), ended
            assert sorted(look(work)) == LEFT[number - 1 + after], (number, after)
    assert json.loads(log.read_text()) == CHANGES


def careless(words: Sequence[str]) -> int:
    """A command as it is not to be: what it makes is in place before it is whole, and its name beside is the user's."""
    half = Path("out.tmp")
    if half.is_dir():
        (half / "photo.png").unlink()
        half.rmdir()
    Path("out").mkdir(exist_ok=True)
    for name in ("a", "b"):
        (Path("out") / f"{name}.json").write_text(json.dumps({"by": words[0]}))
    return 0


@pytest.mark.slow
def test_what_would_be_a_failure_is_one(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    command = Command(("one",), ("other",), "out", (), call=f"{__name__}:careless")
    monkeypatch.setitem(COMMANDS, "careless", command)
    with at_home(bench, "careless") as one, at_home(bench, "careless", rival=True) as other:
        last = len(one.calls)
        killed = "; ".join(Killed(bench, one, Point(last, after=True)).judge())
        both = "; ".join(pairs.Pair(bench, (one, other)).stopped(last))
        alone = "; ".join(pairs.appeared(bench, one, 1))
    assert "out/b.json is torn" in killed
    assert "out.tmp/photo.png, the user's, is gone" in killed
    assert "out is there in parts: out/b.json is another file" in killed
    assert "2 of them say that they are done" in both
    assert "out/b.json is another file" in both
    assert "out.tmp, the user's, is gone" in alone
    row = commits.summed({}, {"points": {"here": [killed], "there": []}})
    assert (row["ok"], row["points"], row["lost"]) == (False, 2, {"points": 1})


def test_two_undisturbed_commands_have_to_write_the_same_names(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text('{"seconds": 1.5}')
    one = look(tmp_path)
    (tmp_path / "results.json").write_text('{"seconds": 2.25e-01}')
    expected = Expected.of(one, look(tmp_path))
    assert expected.differences(one) == []
    (tmp_path / "results.json").write_text('{"hours": 1.5}')
    assert expected.differences(look(tmp_path)) == ["results.json is another text"]
    (tmp_path / "more").touch()
    with pytest.raises(RuntimeError, match="more"):
        Expected.of(one, look(tmp_path))
