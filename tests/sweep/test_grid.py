"""Words to cells, cells to runs."""

from __future__ import annotations

import pytest

from everclip.config import load_config
from everclip.errors import UserError
from everclip.runs.resolve import resolve
from everclip.sweep.grid import Grid, content_key, parted, read
from tests.complaints import complaint


def names(grid: Grid) -> list[str]:
    return [job.name for job in grid.jobs()]


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("0", ["0"]),
        ("0..3", ["0", "1", "2", "3"]),
        ("0..2,7", ["0", "1", "2", "7"]),
        ("7..7", ["7"]),
        ("a, b", ["a", "b"]),
        ("a,a", ["a"]),
        ("[1,2],[3, [4,5]]", ["[1,2]", "[3, [4,5]]"]),
        ('"a,b",c', ['"a,b"', "c"]),
        ("'a,]b',c", ["'a,]b'", "c"]),
        ("1e-4,3e-4", ["1e-4", "3e-4"]),
        ("imagefolder:../x", ["imagefolder:../x"]),
        ('["it, {}", "a {}"]', ['["it, {}", "a {}"]']),
    ],
)
def test_values_are_parted_at_commas_outside_of_brackets_and_quotes(text: str, values: list[str]) -> None:
    assert parted(text, "key") == values


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,", "has an empty value"),
        (",a", "has an empty value"),
        ("4..0", "is not a range"),
        ("0..9" + 5000 * "9", None),
        ("0..99999999999", "has 100,000,000,000 values: use at most 10,000"),
    ],
)
def test_values_that_are_none(text: str, message: str | None) -> None:
    if message is None:  # not read as a range: the config refuses it
        assert parted(text, "seed") == [text]
        return
    with pytest.raises(UserError, match=message):
        parted(text, "seed")


def test_cells_and_their_names() -> None:
    grid = read(["method=gcl,gdro", "memory.budget=0,500", "seed=0..1", "out=x,y"])
    assert len(grid.cells) == 8
    assert grid.out == "x,y"
    assert grid.axes == {"method": ["gcl", "gdro"], "memory.budget": ["0", "500"], "seed": ["0", "1"]}
    # the first seed of everything comes first: half of the grid is a table
    assert names(grid)[:4] == ["gcl_m0_s0", "gcl_m500_s0", "gdro_m0_s0", "gdro_m500_s0"]
    assert {cell.config.seed for cell in grid.cells} == {0, 1}
    assert names(read([])) == ["gdro"]
    assert names(read(["scenario.tasks=[20, 80],[50, 50]"])) == ["gdro_tasks-20-80", "gdro_tasks-50-50"]


def test_an_option_of_one_method_alone() -> None:
    grid = read(
        ["method=gcl,ewc,gdro", "method.ewc.strength=10,100", "method.tau=0.1", "method.gdro.tau=0.2"][:2]
    )
    assert names(grid) == ["gcl", "ewc_strength10", "ewc_strength100", "gdro"]
    assert [cell.config.method.options.get("strength") for cell in grid.cells][1:3] == [10.0, 100.0]
    both = read(["method=gcl,gdro", "method.tau=0.1", "method.gdro.tau=0.2"])
    assert [cell.config.method.options["tau"] for cell in both.cells] == [0.1, 0.2]
    with pytest.raises(
        UserError, match=r"method\.ewc\.strength is an option of ewc, which is not in the grid"
    ):
        read(["method=gcl", "method.ewc.strength=10"])


def test_options_of_a_wrapped_method_are_no_methods_name() -> None:
    (cell,) = read(["method=joint", "method.loss=gcl", "method.options.tau=0.1"]).cells
    assert cell.config.method.options["options"] == {"tau": 0.1}


def test_a_config_of_ones_own_is_the_base(tmp_path: pytest.TempPathFactory) -> None:
    path = tmp_path / "my.toml"  # type: ignore[operator]
    path.write_text('[method]\nname = "gdro"\nmargin = 0.4\n[train]\nepochs = 2\n')
    grid = read([str(path), "seed=0,1"])
    assert [cell.config.method.options["margin"] for cell in grid.cells] == [0.4, 0.4]
    grid = read([str(path), "method=gcl,gdro"], ["smoke=true"])
    assert [cell.config.method.name for cell in grid.cells] == ["gcl", "gdro"]
    assert grid.cells[1].config.method.options["margin"] == 0.4
    assert all(cell.config.smoke and cell.config.train.epochs == 2 for cell in grid.cells)


def test_a_method_without_memory_is_run_once() -> None:
    grid = read(["method=ncm,zero_shot,gcl,joint", "memory.budget=500,2000"])
    assert names(grid) == ["ncm_m0", "zero_shot_m0", "gcl_m500", "gcl_m2000", "joint_m0"]
    assert [len(job.cells) for job in grid.jobs()] == [2, 2, 1, 1, 2]
    for job in grid.jobs():
        again = resolve(load_config(job.words))
        assert content_key(again) == job.key
        assert again.memory == job.config.memory


def test_a_memory_per_class() -> None:
    grid = read(["method=ncm,gcl", "memory.per_class=0,5"])
    assert [job.name for job in grid.jobs()] == ["ncm_k0", "gcl_k0", "gcl_k5"]
    for job in grid.jobs():
        again = resolve(load_config(job.words))
        assert content_key(again) == job.key
        assert again.memory == job.config.memory
    assert grid.jobs()[1].key == read(["method=gcl", "memory.budget=0"]).jobs()[0].key


def test_policies_that_decide_the_budget_share_runs_too() -> None:
    grid = read(["method=gcl", "memory.budget=100,200", "memory.policy=all,none,herding"])
    assert [len(job.cells) for job in grid.jobs()] == [2, 2, 1, 1]


def test_the_content_of_a_config() -> None:
    def key(*words: str) -> str:
        return content_key(resolve(load_config(words)))

    assert key("out=a", "checkpoint.keep=5", "trackers=wandb") == key("out=b")
    assert key("train.lr=1e-4") == key("train.lr=0.0001")
    assert key("method=cassle", "memory.budget=5") == key("method=cassle")
    assert key("method=cassle", "method.probe=mixed", "memory.budget=5") != key(
        "method=cassle", "method.probe=mixed"
    )
    assert key("seed=1") != key("seed=2")


def test_every_complaint_is_made_before_anything_runs() -> None:
    words = ["method=gcl,gdr,der,wise_ft", "method.wise_ft.loss=joint", "memory.budget=0,-1", "seed=0..1"]
    message = complaint(read, words)
    assert message.startswith("14 cells of the grid are invalid: memory.budget is -1")
    for part in ('unknown method "gdr"', "use der_expand", "wraps a method itself"):
        assert message.count(part) == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["seed=0", "seed=1"], "is given twice"),
        (["gcl"], "is not a shipped config"),
        (["seed=0", "gcl"], "is not KEY=VALUE"),
        (["sed=0,1"], 'unknown key "sed"'),
        (["seed=0,"], "has an empty value"),
        (["method=ncm,gdro", "method.margin=0.1"], 'method "ncm" has no option "margin"'),
    ],
)
def test_words_that_are_wrong(words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        read(words)
