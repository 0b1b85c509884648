"""A part of the campaign on folders of strangers, and that it would notice what it looks for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.bench import Bench
from tests.faults.folders import COMMANDS, COUNT, GOAL, PEAK, Ended, World, folder, spoil, wrong
from tests.faults.forks import Forks

PART = 24


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with Forks() as forks:
        yield Bench.at(tmp_path_factory.mktemp("folders"), forks, seed=0)


@pytest.mark.slow
def test_folders_of_which_one_thing_was_changed(bench: Bench) -> None:
    rows = [folder(bench, index) for index in range(PART)]
    failed = [row for row in rows if not row["ok"]]
    assert not failed, failed[:3]
    assert {row["kind"] for row in rows} == {*COMMANDS}
    ended = [status for row in rows for _, status in row["commands"]]
    assert 0.2 < sum(status == 0 for status in ended) / len(ended) < 0.8
    assert GOAL["R15"].count == COUNT


@pytest.mark.slow
def test_what_is_drawn_is_the_same_each_time(bench: Bench) -> None:
    world = bench.kept.setdefault("world", World(bench))
    drawn = []
    for _ in range(2):
        it, rng = world.fresh("run"), bench.rng("again", 7)
        drawn.append([spoil(it, rng) for _ in range(5)])
    assert drawn[0] == drawn[1]


@pytest.mark.slow
def test_harm_is_noticed(bench: Bench, tmp_path: Path) -> None:
    world = World(bench)
    assert world.harm() == ""
    (world.root / "canary" / "theirs.json").write_text("other")
    assert world.harm() == "changed: canary/theirs.json"
    (world.root / "more").write_text("x")
    assert world.harm() == "changed: canary/theirs.json, more"
    (world.place / "it").mkdir()
    (world.place / ".it.lock").touch()
    assert world.harm() == "changed: canary/theirs.json, more"
    (world.place / "authorized_keys").touch()
    assert world.harm() == "changed: canary/theirs.json, more, place/authorized_keys"
    (world.root / "place" / "EXECUTED").write_text("x")
    assert world.harm() == "code of the folder has run"


def test_what_would_be_a_failure_is_one() -> None:
    good = Ended(2, "", f"error: no such thing\n{PEAK} 400000\n", 1.0)
    assert wrong(good) == ""
    assert wrong(good._replace(status=0, err="", seconds=30.0)) == ""
    for changed, why in (
        ({"seconds": 11.0}, "took 11 s"),
        ({"status": 0, "seconds": 61.0}, "took 61 s"),
        ({"status": -9}, "took 1 s, exit -9"),
        ({"status": -11}, "exit -11"),
        ({"err": f"Traceback\nerror: x\n{PEAK} 4"}, "exit 2"),
        ({"err": f"error: x\n{PEAK} 1600000"}, "took 1.6 GB"),
        ({"err": "error: not enough memory: end"}, "took 0.0 GB"),
        ({"err": "error: x\nand more\n"}, "without one line"),
        ({"err": "error: x\nerror: y\n"}, "without one line"),
        ({"err": "oh\n"}, "without one line"),
        ({"err": f"error: {'x' * 2000}\n"}, "a line of"),
        ({"err": "error: internal error (KeyError): please\n"}, "without one line"),
        ({"status": 0, "out": "\x1b[31m"}, "an escape"),
    ):
        assert why in wrong(good._replace(**changed)), changed
