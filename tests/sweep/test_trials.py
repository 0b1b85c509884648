"""The search within a number of trials: on scores that are known, and on real runs."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from everclip.config import load_config
from everclip.errors import NonFinite, RunError, UserError
from everclip.runs.resolve import resolve
from everclip.runs.run import Run
from everclip.runs.tuned import beyond, searched
from everclip.sweep import tune as tuning
from everclip.sweep.folder import busy
from everclip.sweep.trials import outcome, rate_keys, read, search, space, start
from everclip.system.progress import Progress
from everclip.training.loop import train

GRID = {"train.lr": ["1e-05", "3e-05", "9e-05"], "train.epochs": ["2", "4", "8"], "method.how": ["a", "b"]}
OWN = {"train.lr": "3e-05", "train.epochs": "4", "method.how": "a"}


def hill(values: dict[str, str]) -> float:
    """Best at lr 2.43e-3, four grids above the first one's edge, 4 epochs and b."""
    lr = abs(math.log(float(values["train.lr"]) / 2.43e-3)) / 10
    return 0.9 - lr - abs(int(values["train.epochs"]) - 4) / 100 + 0.02 * (values["method.how"] == "b")


@pytest.mark.parametrize("order", [1, -1])
def test_a_grid_grows_while_its_edge_wins(order: int) -> None:
    asked: list[dict[str, str]] = []

    def score(values: dict[str, str]) -> float:
        asked.append(values)
        return hill(values)

    grid = {key: values[::order] for key, values in GRID.items()}  # users write grids in any order
    found = search(grid, OWN, score, 40, lambda key, value: True)
    assert found.values == {"train.lr": "0.00243", "train.epochs": "4", "method.how": "b"}
    assert list(found.tried["train.lr"])[-2:] == ["0.00243", "0.00729"]  # one beyond the winner, which lost
    assert found.tried["train.lr"]["0.00243"] == pytest.approx(0.92)
    assert found.edges == []
    assert asked[0] == OWN
    assert found.trials == len(asked) == len({tuple(values.items()) for values in asked}) < 40


def test_no_trial_is_spent_on_an_option_that_is_not_read() -> None:
    """The weight of a distillation makes no difference to a loss without one."""
    config = resolve(load_config(["method=icarl", "memory.budget=6"]))
    grid = {"method.loss": ["bce", "ce"], "method.distill_weight": ["0.3", "1", "3"]}
    own = {"method.loss": "bce", "method.distill_weight": "1"}
    for best, trials in (("bce", 2), ("ce", 4)):
        asked: list[dict[str, str]] = []

        def score(values: dict[str, str], best: str = best, asked: list[dict[str, str]] = asked) -> float:
            asked.append(values)
            return 0.5 + 0.1 * (values["method.loss"] == best)

        found = search(grid, own, score, 40, lambda key, value: False, lambda values: read(config, values))
        assert found.values["method.loss"] == best
        assert found.trials == len(asked) == trials
        assert [*found.tried["method.distill_weight"]] == ["0.3", "1", "3"]
        assert outcome(found.tried, grid, own, False)


@pytest.mark.parametrize("most", range(1, 8))
def test_a_search_that_runs_out_anywhere_is_one_that_counts_as_finished(most: int) -> None:
    """No value that is not read counts as tried before its turn, for no trial would be spent on it."""
    config = resolve(load_config(["method=icarl", "memory.budget=6"]))
    grid = {"train.lr": ["1", "2"], "method.loss": ["ce", "bce"], "method.distill_weight": ["0.3", "1", "3"]}
    own = start(config, grid) | {"train.lr": "1"}
    for loss in ("ce", "bce"):
        begun = own | {"method.loss": loss}
        found = search(
            grid,
            begun,
            lambda values: 0.5,
            most,
            lambda key, value: False,
            lambda values: read(config, values),
        )
        assert outcome(found.tried, grid, begun, found.trials == most)


@pytest.mark.parametrize("most", [1, 2, 5, 8])
def test_trials_are_a_bound_and_an_edge_that_still_wins_is_told(most: int) -> None:
    count = 0

    def score(values: dict[str, str]) -> float:
        nonlocal count
        count += 1
        return hill(values)

    found = search(GRID, OWN, score, most, lambda key, value: True)
    assert count == found.trials == most
    assert ("train.lr" in found.edges) == (most == 5), "a grid has grown before the next key is tried"
    assert found.values["train.lr"] == OWN["train.lr"] if most == 1 else True


def test_a_constant_grows_once_each_key_was_tried() -> None:
    grid = {"method.weight": ["gcv", "0.1", "0.3"], "method.how": ["a", "b"]}
    own = {"method.weight": "0.3", "method.how": "a"}

    def score(values: dict[str, str]) -> float:
        return (
            0.5
            - 0.1 * (values["method.weight"] == "gcv")
            - float(values["method.weight"].replace("gcv", "0")) / 10
            + 0.2 * (values["method.how"] == "b")
        )

    found = search(grid, own, score, 4, lambda key, value: True)
    assert found.values == {"method.weight": "0.1", "method.how": "b"}
    assert found.edges == ["method.weight"]
    assert search(grid, own, score, 1, lambda key, value: True).edges == [], "no other value was tried"
    found = search(grid, own, score, 40, lambda key, value: float(value) > 0.01)
    assert found.values == {"method.weight": "0.0111", "method.how": "b"}
    assert list(found.tried["method.weight"]) == ["gcv", "0.0111", "0.0333", "0.1", "0.3"]


def test_what_is_not_better_does_not_win_and_what_is_not_finite_loses() -> None:
    found = search(GRID, OWN, lambda values: 0.5, 40, lambda key, value: True)
    assert found.values == OWN
    assert found.trials == 1 + 2 + 2 + 1
    found = search(
        GRID, OWN, lambda v: None if v["train.lr"] == "3e-05" else 0.5, 40, lambda key, value: True
    )
    assert found.values["train.lr"] == "1e-05"
    assert found.tried["train.lr"]["3e-05"] is None


@pytest.mark.parametrize(
    ("values", "winner", "further"),
    [
        (["1e-05", "3e-05"], "3e-05", "9e-05"),
        (["1e-05", "3e-05"], "1e-05", "3.33e-06"),
        (["1e-05", "3e-05", "1e-4"], "3e-05", None),
        (["2", "4", "8"], "8", "16"),
        (["1", "2"], "1", None),
        (["0", "3e-05"], "0", None),
        (["none", "2", "10"], "10", "50"),
        (["none", "2", "10"], "none", None),
        (["gcv", "0.1", "0.3", "1"], "0.1", "0.0333"),
        (["gcv", "0.1", "0.3", "1"], "0.3", None),
        (["gcv", "0.1"], "0.1", None),
        (["random", "herding"], "random", None),
        (["5"], "5", None),
        (["1e-4", "3e-5"], "3e-5", "9e-06"),
        (["1e-4", "0.0001", "3e-4"], "0.0001", "3.33e-05"),
        (["0.1", "9" * 400], "9" * 400, None),
        (["1", "9" * 200], "9" * 200, None),
        (["1", "2", "nan", "inf"], "2", "4"),
    ],
)
def test_what_lies_beyond_an_edge(values: list[str], winner: str, further: str | None) -> None:
    assert beyond(values, winner) == further


@pytest.mark.parametrize(
    ("tried", "ran_out", "same"),
    [
        ({"train.lr": "1e-5 3e-5 9e-5", "train.epochs": "2 4", "method.how": "a b"}, False, True),
        ({"train.lr": "0.00001 3e-5 9e-5", "train.epochs": "4 2", "method.how": "b a"}, False, True),
        ({"train.epochs": "2 4", "train.lr": "1e-5 3e-5 9e-5", "method.how": "a b"}, False, False),
        ({"train.lr": "1e-5 3e-5 9e-5", "train.epochs": "2 4"}, False, False),
        ({"train.lr": "1e-5 3e-5", "train.epochs": "2 4", "method.how": "a b"}, False, False),
        ({"train.lr": "1e-5 3e-5", "train.epochs": "4", "method.how": "a"}, True, True),
        ({"train.lr": "3e-5 9e-5", "train.epochs": "4", "method.how": "a"}, True, False),
        ({"train.lr": "1e-5 3e-5", "train.epochs": "2 4", "method.how": "a"}, True, False),
        ({"train.lr": "1e-5 3e-5 9e-5", "train.epochs": "2 4", "method.how": "b"}, True, False),
        ({"train.lr": "1e-5 3e-5 9e-5 0.00027 0.00081", "train.epochs": "1 2 4 8", "method.how": "a b"}, False, True),
        ({"train.lr": "1e-5 3e-5 9e-5 0.00081", "train.epochs": "2 4", "method.how": "a b"}, False, False),
        ({"train.lr": "1e-5 2e-5 3e-5 9e-5", "train.epochs": "2 4", "method.how": "a b"}, False, False),
        ({"train.lr": "1e-5 3e-5 9e-5", "train.epochs": "2 4", "method.how": "a b c"}, False, False),
    ],
)  # fmt: skip
def test_what_a_search_can_have_tried(tried: dict[str, str], ran_out: bool, same: bool) -> None:
    grid = {"train.lr": ["1e-05", "3e-05", "9e-05"], "train.epochs": ["2", "4"], "method.how": ["a", "b"]}
    own = {"train.lr": "3e-05", "train.epochs": "4", "method.how": "a"}
    known = {key: dict.fromkeys(values.split()) for key, values in tried.items()}
    assert outcome(known, grid, own, ran_out) == same


def test_grids_that_do_not_grow_are_tried_in_turn() -> None:
    asked: list[dict[str, str]] = []

    def score(values: dict[str, str]) -> float:
        asked.append(values)
        return 0.5 + 0.1 * (values == {"train.lr": "9e-05"})

    grid = {"train.lr": ["9e-05", "3e-05"], "method.how": ["b", "a"]}
    found = search(grid, {}, score, 4, lambda key, value: False)
    first = {"train.lr": "9e-05"}
    assert asked == [first, {"train.lr": "3e-05"}, first | {"method.how": "b"}, first | {"method.how": "a"}]
    assert found.values == first | {"method.how": "b"}  # though the config's own, 0.6, was better
    assert outcome(found.tried, grid, {}, False)
    assert not outcome(found.tried, grid | {"train.lr": ["9e-05"]}, {}, False)
    assert not outcome(found.tried, grid | {"train.lr": ["9e-05", "3e-05", "1e-05"]}, {}, False)


@pytest.mark.parametrize(
    ("head", "edges"),
    [
        ("9 of 12 trials (still at the edge of its grid: train.lr, method.tau)", ["train.lr", "method.tau"]),
        ("9 of 12 trials", []),  # epochs may not grow further
        ("seed 0", ["train.epochs"]),
    ],
)
def test_one_reading_of_an_edge(head: str, edges: list[str]) -> None:
    text = f"x, tasks 1-2, 0.3 of their training images, memory 0, {head}"
    found = searched(f"{text}; train.lr 0: 0.5, 1e-4: 0.4; train.epochs 2: 0.5, 5: -, 20: 0.6")
    assert found is not None
    assert (found.edges, found.share) == (edges, 0.3)
    assert found.chose("train.epochs", 20)
    assert found.chose("train.lr", 0.0)
    assert not found.chose("train.lr", 1e-4)
    assert not found.chose("train.lr", None)


def test_a_record_is_read_in_the_time_of_its_length() -> None:
    found = searched("x; method.blocks [1, 2]: 0.5, [3]: -, a: b: 0.25, -, c: 1.0")
    assert found is not None
    assert found.tried == {"method.blocks": {"[1, 2]": 0.5, "[3]": None, "a: b": 0.25, "-, c": 1.0}}
    for length in (99_000, 10**6):  # matched as a whole, such a value took minutes
        assert searched("x; train.lr " + "a" * length) is None
        assert searched("x; train.lr " + "a, " * (length // 3)) is None


def resolved(*words: str) -> Any:
    return resolve(load_config(words))


def test_what_there_is_to_tune() -> None:
    grid = space(resolved("method=gdro", "train.lr=1e-4", "train.lr_text=1e-5", "train.epochs=4"))
    assert grid["train.lr"] == ["3e-05", "0.0001", "0.0003"]
    assert grid["train.lr_text"] == ["3e-06", "1e-05", "3e-05"]
    assert grid["train.epochs"] == ["2", "4", "8"]
    assert next(iter(grid)) == "train.epochs", "longer runs need smaller rates"
    assert "train.lr_head" not in grid
    assert "method.margin" in grid
    assert start(resolved("method=gdro", "train.lr=1e-4"), grid)["train.lr"] == "0.0001"
    assert "train.lr_head" in space(resolved("method=icarl"))
    rates = [key for key in space(resolved("method=rapf")) if key.startswith("train.lr")]
    assert rates == ["train.lr_head"], "what leaves the towers as they are has no rate of theirs"
    assert "train.lr" not in space(resolved("method=icarl", "tune=head"))
    assert "train.lr_text" not in space(resolved("method=finetune", "method.head=linear"))
    assert rate_keys(resolved("method=finetune", "method.head=linear")) == ["train.lr", "train.lr_head"]
    for head in ("text", "linear"):  # its adapters train with either
        assert rate_keys(resolved("method=cmoa", f"method.head={head}", "model=ViT-B-32")) == [
            "train.lr_head"
        ]
    assert rate_keys(resolved("method=ncm")) == []
    online = space(resolved("method=gcl", "scenario.kind=online"))
    assert "train.lr" in online
    assert "train.epochs" not in online, "a stream that passes once"
    assert "method.epochs" not in space(resolved("method=mg_clip", "scenario.kind=online"))
    assert "train.steps" in space(resolved("method=gcl", "train.steps=10"))
    assert not {"train.steps", "train.epochs"} & space(resolved("method=gcl"), ["train.epochs"]).keys()
    assert all(key.startswith("method.") for key in space(resolved("method=slda")))
    assert space(resolved("method=zero_shot")) == {}
    assert "train.epochs" not in space(resolved("method=mg_clip", "model=ViT-B-32")), "its epochs are its own"
    assert next(iter(space(resolved("method=engine")))) == "method.rule"
    assert next(iter(space(resolved("method=ewc")))) == "method.strength", "its rates depend on it"
    # an option outside of its method's grid is tried as well, and is where the search begins
    config = resolved("method=ewc", "method.strength=33")
    assert start(config, space(config))["method.strength"] == "33"


def test_real_trials(tmp_path: Path, toy: str, photos: str) -> None:
    words = [f"data={photos}", f"model={toy}", "scenario.tasks=3", "train.steps=1", "train.batch_size=8"]
    words += ["memory.budget=12", "device=cpu", "method=gdro"]
    begun: list[Path] = []

    def once(run: Run) -> dict[str, Any]:
        begun.append(run.path)
        assert busy(tmp_path), "a sweep waits for a search that another process works in"
        with pytest.raises(UserError, match="in use by another search"):
            tuning.tune(words, tmp_path, once, print, 5)
        return train(run, Progress())

    tuning.tune(words, tmp_path, once, print, 3)
    for trial in tmp_path.glob("*/"):
        trial.rename(tmp_path / f"of-before-{trial.name}")
    choice = tuning.tune(words, tmp_path, once, print, 5)
    assert len(begun) == 5, "the three are known by their content"
    assert not busy(tmp_path)
    assert not [*tmp_path.glob("*/checkpoints")]
    assert choice.config.tuned_on is not None
    assert ", 5 of 5 trials" in choice.config.tuned_on
    assert resolved(str(tmp_path / "tuned.toml")).tuned_on == choice.config.tuned_on
    again = tuning.tune(words, tmp_path, once, print, 5)
    assert (len(begun), again.values) == (5, choice.values)

    def fails(run: Run) -> dict[str, Any]:
        raise NonFinite("the loss is nan")

    with pytest.raises(RunError, match=r"no value of .* trains"):
        tuning.tune(words, tmp_path / "not", fails, print, 3)


def test_epochs_grow_to_four_times_the_own(tmp_path: Path, toy: str, photos: str) -> None:
    words = [f"data={photos}", f"model={toy}", "method=gdro"]

    def longer_is_better(run: Run) -> dict[str, Any]:
        assert run.config.train.epochs is not None
        return {"last": run.config.train.epochs / 1000}

    choice = tuning.tune(words, tmp_path, longer_is_better, print, 40)
    assert [*choice.tried["train.epochs"]] == ["2", "5", "10", "20"]
    assert choice.values["train.epochs"] == "20"
    assert (
        "train.epochs"
        not in (choice.config.tuned_on or "").partition("trials (still at")[2].partition(")")[0]
    )
