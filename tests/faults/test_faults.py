"""A part of the campaign of ``benchmarks/reliability.py``, the same on every machine."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from benchmarks.reliability import pending, portable

from everclip import plugins
from everclip.seeding import generator
from tests.faults import inputs
from tests.faults.bench import FACTORS, LEAST, Bench, combination
from tests.faults.forks import Forks
from tests.faults.goals import GOALS, KILLS
from tests.faults.stages import judged, stages
from tests.marks import slow_after


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with Forks() as forks:
        yield Bench.at(tmp_path_factory.mktemp("faults"), forks, seed=0)


def test_every_value_of_every_factor_comes_often_enough() -> None:
    drawn = [combination(0, index, KILLS) for index in range(KILLS)]
    for name, values in FACTORS.items():
        for value in values:
            assert sum(one[name] == value for one in drawn) >= LEAST, (name, value)
    assert drawn == [combination(0, index, KILLS) for index in range(KILLS)]
    assert drawn != [combination(1, index, KILLS) for index in range(KILLS)]
    assert FACTORS["method"] == plugins.names("methods")


def test_all_goals_advance_alike() -> None:
    items = pending([], [*GOALS])
    assert len(items) == len({*items}) == sum(goal.count for goal in GOALS.values())
    for done in (len(items) // 4, len(items) // 2 + 1):
        there = [name for name, _ in items[:done]]
        for name, goal in GOALS.items():
            assert abs(there.count(name) - goal.count * done / len(items)) <= 1, name
    rest = pending([{"goal": name, "index": index} for name, index in items[:100]], [*GOALS])
    assert rest == items[100:]


def test_a_row_has_no_folder_of_this_machine() -> None:
    why = (
        'exit 1: Traceback\n  File "/opt/it/src/everclip/loop.py", line 3, in train\n'
        "    data=imagefolder:/data/my photos/a (/usr/lib/x.py) see https://a.org/b/c: 1/2 of a/b.png\n"
        "error: /scratch/killed cannot be written"
    )
    row = portable(
        {"why": why, "index": 3, "killed": [True], "in": {"a": ["/b/c"]}},
        (Path("/scratch"), Path("/opt/it")),
    )
    assert row == {
        "why": 'exit 1: Traceback\n  File "src/everclip/loop.py", line 3, in train\n'
        "    data=imagefolder:my photos/a (x.py) see https://a.org/b/c: 1/2 of a/b.png\n"
        "error: killed cannot be written",
        "index": 3,
        "killed": [True],
        "in": {"a": ["c"]},
    }


@pytest.mark.slow
@pytest.mark.parametrize("index", slow_after(1, (1, 0, *range(2, 8))))
def test_killed(bench: Bench, index: int) -> None:
    row = GOALS["R1"].item(bench, index)
    assert row["ok"], row
    assert row["moment"] == "clock" or any(row["killed"]), "a blow that never came proves nothing"


@pytest.mark.slow
@pytest.mark.parametrize("index", slow_after(1, range(2)))
def test_damaged_checkpoints(bench: Bench, index: int) -> None:
    row = GOALS["R3"].item(bench, index)
    assert row["ok"], row
    assert not row["unnoticed"]


@pytest.mark.slow
@pytest.mark.parametrize("index", slow_after(1, range(3)))
def test_a_full_disk(bench: Bench, index: int) -> None:
    row = GOALS["R4"].item(bench, index)
    assert row["ok"], row


@pytest.mark.parametrize("index", slow_after(1, range(3)))
def test_preempted(bench: Bench, index: int) -> None:
    row = GOALS["R5"].item(bench, index)
    assert row["ok"], row


def test_damaged_pictures() -> None:
    row = inputs.images(generator(0, "pictures"), 300)
    assert row["ok"], row
    assert 0 < row["decoded"] < 300


def test_mistaken_configs(bench: Bench, toy: str, photos: str, tmp_path: Path) -> None:
    row = inputs.configs(
        generator(0, "settings"), 100, [f"data={photos}", f"model={toy}", "scenario.tasks=2"], tmp_path
    )
    assert row["ok"], row
    assert 0 < row["refused"] < 100


def test_a_setting_that_is_lost_is_noticed(tmp_path: Path) -> None:
    file = tmp_path / "mistaken.toml"
    file.write_text("seed = 3\n[train]\nlr = 1e-4\nclip_norm = 'none'\n")
    good = {"seed": 3, "train": {"lr": 1e-4, "clip_norm": None, "warmup": 0.5}}
    for tokens in ([str(file), "train.warmup=.5"], ["seed=3", "train.lr=1e-4", "train.clip_norm=none"]):
        assert inputs.wrong(tokens, 0, json.dumps({"config": good}), "") == ""
        for lost in ({"seed": 0}, {"train": good["train"] | {"lr": None}}, {"train": {}}):
            assert inputs.wrong(tokens, 0, json.dumps({"config": good | lost}), "")


@pytest.mark.slow
def test_one_of_two_processes_killed(bench: Bench) -> None:
    row = GOALS["R6"].item(bench, 0)
    assert row["ok"], row
    assert row["killed"]


@pytest.mark.slow
def test_many_stages(bench: Bench, tmp_path: Path) -> None:
    row = stages(tmp_path / "stages", bench.folder / "model", 60, every=0.1)
    assert row["ok"], row


def test_a_leak_over_many_stages_is_noticed() -> None:
    def looks(size: int, every: int) -> list[tuple[int, int, int]]:
        """Two a stage, at the second of which a checkpoint is written."""
        seen = [(done, 500_000_000 + size * done, 5 + done // every) for done in range(1, 60)]
        return [look for a, b, c in seen for look in ((a, b, c), (a, b, c + 4))]

    assert judged(0, 60, looks(50_000, 1000))["ok"]
    for code, size, every in ((1, 0, 1000), (0, 1_000_000, 1000), (0, 0, 10)):
        assert not judged(code, 60, looks(size, every))["ok"]


@pytest.mark.slow
def test_what_would_be_a_failure_is_one(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The campaign can fail: a run of another seed is not the reference."""
    tokens = Bench.tokens
    monkeypatch.setattr(
        Bench,
        "tokens",
        lambda self, drawn: [*tokens(self, drawn), *(["seed=1"] if "moment" in drawn else [])],
    )
    row = GOALS["R1"].item(bench, 0)
    assert not row["ok"]
    assert row["why"] == "other results"
