"""Comparing runs: cells, repetitions, tests, what is refused."""

from __future__ import annotations

import csv
import io
import json
import random
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from everclip.cli.app import main
from everclip.compare import show, verdict
from everclip.errors import UserError
from everclip.metrics import stats
from everclip.runs.find import find_runs
from tests.compare.folders import answers, run_folder

Json = dict[str, Any]


@pytest.fixture
def grid(tmp_path: Path) -> Path:
    """Two methods, ewc with its state, ncm without memory, joint; two memories, five seeds."""
    rng, root = random.Random(0), tmp_path / "runs"
    for seed in range(5):
        luck = rng.gauss(0, 0.01)
        run_folder(root / f"ncm-s{seed}", 0.6 + luck, method="ncm", budget=0, seed=seed)
        one = {"tasks": ["all"], "test_counts": [50], "zero_shot_after_stage": [0.1], "forgetting": None}
        run_folder(root / f"joint-s{seed}", 0.9, method="joint", budget=0, seed=seed, **one)
        for budget, base in ((0, 0.4), (500, 0.7)):
            for method, gain in (("gcl", 0.0), ("gdro", 0.03), ("ewc", -0.1)):
                last = base + gain + luck + rng.gauss(0, 0.004)
                state = 400_000 if method == "ewc" else 0
                folder = root / f"{method}-m{budget}-s{seed}"
                run_folder(folder, last, method=method, budget=budget, seed=seed, state_bytes=state)
    return root


def compared(*paths: Path, **options: Any) -> Json:
    return verdict.compare(find_runs(paths), **options)


def rows(comparison: Json, section: int = 0) -> dict[str, Json]:
    return {row["label"]: row for row in comparison["sections"][section]["rows"]}


def lasts(*folders: Path) -> list[float]:
    return [json.loads((folder / "results.json").read_text())["last"] for folder in folders]


def test_a_section_for_each_memory_and_a_row_for_each_method(grid: Path) -> None:
    found = compared(grid)
    assert [section["by"] for section in found["sections"]] == [{"memory.budget": 0}, {"memory.budget": 500}]
    assert found["runs"] == 40
    for section in (0, 1):
        here = rows(found, section)
        assert list(here) == ["ewc", "gcl", "gdro", "ncm", "joint", "zero_shot"]
        assert [row["reference"] for row in here.values()] == [False] * 4 + [True] * 2
        assert all(row["metrics"]["last"]["n"] == 5 for row in here.values())
        assert here["joint"]["metrics"]["forgetting"] is None
    gcl = [grid / f"gcl-m500-s{seed}" for seed in range(5)]
    last = rows(found, 1)["gcl"]["metrics"]["last"]
    assert {key: last[key] for key in ("mean", "low", "high", "n")} == pytest.approx(
        stats.interval(lasts(*gcl))._asdict()
    )
    assert last["values"] == lasts(*gcl)
    assert last["std"] == pytest.approx(np.std(lasts(*gcl), ddof=1))
    # ncm keeps no exemplars: the same runs stand in both
    assert rows(found, 0)["ncm"]["paths"] == rows(found, 1)["ncm"]["paths"]
    assert rows(found)["zero_shot"]["metrics"]["average"]["mean"] == pytest.approx(0.15)


def test_paired_tests_against_the_best_corrected_for_their_number(grid: Path) -> None:
    found = compared(grid, metrics=["last"])
    assert [section["against"] for section in found["sections"]] == ["ncm", "gdro"]
    tests = {(s, label): row["test"] for s in (0, 1) for label, row in rows(found, s).items() if row["test"]}
    assert len(tests) == 6
    gcl, gdro = ([grid / f"{method}-m500-s{seed}" for seed in range(5)] for method in ("gcl", "gdro"))
    expected = stats.paired(lasts(*gcl), lasts(*gdro))
    assert tests[1, "gcl"]["p"] == pytest.approx(expected.p)
    assert tests[1, "gcl"]["difference"] == pytest.approx(expected.difference)
    assert tests[1, "gcl"]["sign_flip"] == pytest.approx(0.0625)
    corrected = stats.holm([test["p"] for test in tests.values()])
    assert [test["p_holm"] for test in tests.values()] == pytest.approx(corrected)
    against = compared(grid, against="gcl")
    assert [section["against"] for section in against["sections"]] == ["gcl", "gcl"]
    assert rows(against, 1)["gdro"]["test"]["difference"] > 0
    assert rows(against, 1)["gcl"]["test"] is None


def test_a_test_that_every_section_has_is_counted_once(tmp_path: Path) -> None:
    """Methods without a memory stand in the section of each size."""
    for seed in range(4):
        for method, last in (("coda_prompt", 0.5 + 0.01 * seed), ("moe_adapters", 0.48 + 0.013 * seed)):
            run_folder(
                tmp_path / f"{method}{seed}", last, method=method, budget=100, seed=seed, memory_bytes=0
            )
        for budget in (100, 500):
            run_folder(tmp_path / f"gcl{budget}-{seed}", 0.3 + 0.02 * seed, budget=budget, seed=seed)
    found = compared(tmp_path, metrics=["last"], over=["seed"], against="coda_prompt")
    first, second = (rows(found, section)["moe_adapters"]["test"] for section in (0, 1))
    tests = [first, *(rows(found, section)["gcl"]["test"] for section in (0, 1))]
    assert first == second
    assert [test["p_holm"] for test in tests] == pytest.approx(stats.holm([test["p"] for test in tests]))


def test_a_method_of_several_rows_is_no_row_to_test_against(tmp_path: Path) -> None:
    for tau in (0.01, 0.05):
        run_folder(tmp_path / f"gcl{tau}", 0.5 + tau, config={"method.tau": tau})
    run_folder(tmp_path / "gdro", 0.5, method="gdro")
    with pytest.raises(UserError, match='several rows to test against are "gcl": use one of "gcl tau=0'):
        compared(tmp_path, against="gcl")
    assert compared(tmp_path, against="gcl tau=0.01")["sections"][0]["against"] == "gcl tau=0.01"
    with pytest.raises(UserError, match='no row to test against is "gdrro"; did you mean "gdro"'):
        compared(tmp_path, against="gdrro", equal="bytes")


def test_less_forgetting_is_better(tmp_path: Path) -> None:
    run_folder(tmp_path / "a", 0.5, method="gcl", forgetting=0.3)
    run_folder(tmp_path / "b", 0.5, method="gdro", forgetting=0.1)
    found = compared(tmp_path, metrics=["forgetting", "last"])
    assert found["sections"][0]["against"] == "gdro"
    assert rows(found)["gdro"]["rank"] == 1


def test_ranks_over_repetitions_and_sections(grid: Path) -> None:
    found = compared(grid)
    assert rows(found, 1)["gdro"]["rank"] == 1
    assert rows(found, 0)["ncm"]["rank"] == 1
    assert found["ranks"]["blocks"] == 2
    assert found["ranks"]["mean_rank"] == {"ewc": 3.5, "gcl": 2.5, "gdro": 1.5, "ncm": 2.5}
    assert compared(grid / "gcl-m0-s0", grid / "gdro-m0-s0")["ranks"] is None


def test_a_row_has_one_name_in_all_tables_and_those_not_ranked_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for data in ("emoji", "digits"):
        for name, last, margin in (
            ("gcl", 0.5, 0.1),
            ("gdro", 0.6, 0.1),
            ("gdro", 0.7, 0.3),
            ("ewc", 0.4, 0.1),
        ):
            for memory in (0, 500) if margin == 0.1 else (0,):
                run_folder(
                    tmp_path / f"{data}-{name}{margin}-{memory}",
                    last + memory / 5000,
                    method=name,
                    budget=memory,
                    data=data,
                    # the rate is tuned for each margin and memory
                    config={"data": data, "method.margin": margin, "train.lr": margin / (1 + memory)},
                    tuned_on="emoji, tasks 1-2; train.lr 0.1: 0.5",
                )
    found = compared(*tmp_path.glob("emoji-*"))
    assert list(rows(found))[:4] == ["ewc", "gcl", "gdro margin=0.1", "gdro margin=0.3"]
    assert list(rows(found, 1))[:3] == ["ewc", "gcl", "gdro margin=0.1"]
    ranks = found["ranks"]
    assert ranks["mean_rank"] == {"ewc": 3, "gcl": 2, "gdro margin=0.1": 1}
    assert ranks["left_out"] == ["gdro margin=0.3"]
    assert ranks["friedman_p"] is ranks["critical_difference"] is None  # memories are not independent
    text = "\n".join(printed(capsys, *map(str, tmp_path.glob("emoji-*"))))
    assert "not ranked, as not in every table: gdro margin=0.3" in text
    assert "Nemenyi" not in text
    by_data = [*map(str, tmp_path.glob("*-0")), "--by", "data"]
    assert "Nemenyi" in "\n".join(printed(capsys, *by_data))
    asked = compared(*tmp_path.glob("emoji-*"), equal="bytes")
    assert [list(rows(asked, s))[:3] for s in (0, 1)] == [
        ["ewc budget=0", "gcl budget=0", "gdro margin=0.1 budget=0"],
        ["ewc budget=500", "gcl budget=500", "gdro margin=0.1 budget=500"],
    ]
    for name, state in (("gcl", 1200), ("gdro", 14_130_000)):
        run_folder(tmp_path / name / "few", 0.5, method=name, budget=0, state_bytes=state)
    small = compared(*tmp_path.glob("emoji-*-0"), *tmp_path.glob("*/few"), equal="bytes")
    costs = [section["by"]["cost"] for section in small["sections"]]
    assert costs == ["at most 0 bytes", "at most 1.2 kB", "at most 14.1 MB"]


def test_settings_that_differ_within_a_method_make_rows(tmp_path: Path) -> None:
    for seed in (0, 1):
        for margin in (0.1, 0.3):
            run_folder(
                tmp_path / f"gdro-{margin}-{seed}",
                0.5 + margin,
                method="gdro",
                seed=seed,
                config={"method.margin": margin},
            )
        run_folder(
            tmp_path / f"gcl-{seed}", 0.5, seed=seed, config={"loader.workers": seed, "train.lr": 3e-4}
        )
    found = compared(tmp_path)
    assert list(rows(found)) == ["gcl", "gdro margin=0.1", "gdro margin=0.3", "zero_shot"]
    assert rows(found)["gdro margin=0.3"]["settings"]["method.margin"] == 0.3
    by = compared(tmp_path, by=["method.margin"])
    assert [section["by"] for section in by["sections"]] == [{"method.margin": 0.1}, {"method.margin": 0.3}]
    assert list(rows(by, 1)) == ["gcl", "gdro", "zero_shot"]  # gcl has no margin, and stands in both


def test_a_repeated_run_counts_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run_folder(tmp_path / "a", 0.5)
    run_folder(tmp_path / "b", 0.7)
    assert rows(compared(tmp_path))["gcl"]["metrics"]["last"]["n"] == 1
    assert f"{tmp_path / 'b'} repeats {tmp_path / 'a'}: left out" in caplog.text


def test_one_run_each_is_tested_over_images(tmp_path: Path) -> None:
    answers(run_folder(tmp_path / "a", 0.8, method="gcl"), 40, 50)
    answers(run_folder(tmp_path / "b", 0.6, method="gdro"), 30, 50)
    test = rows(compared(tmp_path))["gdro"]["test"]
    assert test["name"] == "mcnemar"
    assert test["difference"] == pytest.approx(-0.2)
    assert test["p"] == pytest.approx(2 / 2**10)
    assert rows(compared(tmp_path, metrics=["average"]))["gdro"]["test"] is None


def test_deterministic_rows_are_tested_over_images_however_often_they_ran(tmp_path: Path) -> None:
    for seed in range(3):
        answers(run_folder(tmp_path / f"a{seed}", 0.8, method="ridge", seed=seed, memory_bytes=0), 40, 50)
        answers(run_folder(tmp_path / f"b{seed}", 0.6, method="slda", seed=seed, memory_bytes=0), 30, 50)
    test = rows(compared(tmp_path))["slda"]["test"]
    assert (test["name"], test["p"]) == ("mcnemar", pytest.approx(2 / 2**10))
    answers(run_folder(tmp_path / "c", 0.7, method="gcl", seed=1), 35, 50)
    assert rows(compared(tmp_path))["gcl"]["test"]["name"] == "mcnemar"
    answers(run_folder(tmp_path / "d", 0.7, method="gcl", seed=2), 35, 50)
    assert rows(compared(tmp_path))["gcl"]["test"]["name"] == "paired t"


def test_a_deterministic_row_stands_at_every_seed_of_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    lasts = (0.60, 0.80, 0.82)
    for seed, last in enumerate(lasts):
        answers(run_folder(tmp_path / f"gcl{seed}", last, seed=seed), int(50 * last), 50)
    answers(run_folder(tmp_path / "slda", 0.70, method="slda", seed=5, memory_bytes=0), 35, 50)
    found = compared(tmp_path)
    test = rows(found)["slda"]["test"]
    expected = stats.paired([0.70] * 3, lasts)
    assert {key: test[key] for key in expected._fields} == pytest.approx(expected._asdict())
    assert (test["name"], test["left_out"]) == ("paired t", 0)
    assert [rows(found)[name]["rank"] for name in ("gcl", "slda")] == pytest.approx([4 / 3, 5 / 3])
    text = "\n".join(printed(capsys, str(tmp_path)))
    assert "-4.0 ± 30.2" in text
    assert "†" not in text


@pytest.mark.parametrize(("choice", "seeds"), [("gcv", 3), ("task", 1)])
def test_the_options_of_a_wrapped_method_tell_whether_it_is_deterministic(
    choice: str, seeds: int, tmp_path: Path
) -> None:
    """lam_choice=task holds out images by the seed, so that one run says nothing of another seed."""
    for seed, last in enumerate((0.60, 0.80, 0.82)):
        run_folder(tmp_path / f"gcl{seed}", last, seed=seed)
    config = {"method.loss": "ridge", "method.options.lam_choice": choice}
    run_folder(tmp_path / "ridge", 0.70, method="wise_ft", seed=1, memory_bytes=0, config=config)
    assert rows(compared(tmp_path))["wise_ft"]["test"]["n"] == seeds


def test_seeds_that_only_one_row_has_are_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    for seed, last in enumerate((0.50, 0.52, 0.90, 0.55, 0.56)):
        run_folder(tmp_path / f"gcl{seed}", last, seed=seed)
        run_folder(tmp_path / f"gdro{seed}", last - 0.1, method="gdro", seed=seed + 3)
    found = compared(tmp_path)
    test = rows(found)["gdro"]["test"]
    assert (test["n"], test["left_out"], found["sections"][0]["ranked"]) == (2, 6, 2)
    lines = printed(capsys, str(tmp_path))
    (gdro,) = (line for line in lines if line.startswith("gdro"))
    assert "(n=2)" in gdro
    assert any(line.startswith("difference (n=...): over the n values of seed") for line in lines)
    ranked = "rank: over the values of seed that all methods of a table have"
    assert ranked in lines
    monkeypatch.setenv("COLUMNS", "80")  # no room for ranks
    assert ranked not in printed(capsys, str(tmp_path))
    monkeypatch.setenv("COLUMNS", "160")
    (told,) = (
        row for row in csv.DictReader(printed(capsys, str(tmp_path), "--csv")) if row["method"] == "gdro"
    )
    assert told["test_n"] == "2"
    shutil.rmtree(tmp_path / "gdro0")  # one common seed is no test over images: the means are over more
    answers(tmp_path / "gcl4", 40, 50)
    answers(tmp_path / "gdro1", 30, 50)
    test = rows(compared(tmp_path))["gdro"]["test"]
    assert (test["name"], test["n"], test["p"], test["sign_flip"]) == ("paired t", 1, None, None)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("model", {"model": "other"}),
        ("image_size", {"image_size": 224}),
        ("templates", {"templates": ["{}"]}),
        ("data", {"data": "cifar100"}),
        ("scenario", {"scenario": "domain-incremental"}),
        ("class order", {"classes": ["b", "a", "c", "d"]}),
        ("task order", {"tasks": ["task 2", "task 1"]}),
        ("test counts", {"test_counts": [20, 29]}),
        ("smoke", {"smoke": True}),
        ("validation", {"validation": 0.2}),
        ("memory accounting", {"config": {"memory.policy": "all"}}),
    ],
)
def test_runs_that_are_not_alike_are_refused(
    tmp_path: Path, name: str, change: Json, capsys: pytest.CaptureFixture[str]
) -> None:
    first, other = run_folder(tmp_path / "a", 0.5), run_folder(tmp_path / "b", 0.6, method="gdro", **change)
    assert main(["compare", str(first), str(other)]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert f"these runs differ in {name} (" in message
    assert str(other) in message
    assert "--anyway" in message
    assert main(["compare", str(first), str(other), "--anyway"]) == 0


def test_joint_has_one_task_of_the_same_images(tmp_path: Path) -> None:
    run_folder(tmp_path / "a", 0.5)
    one = {"tasks": ["all"], "method": "joint", "budget": 0, "zero_shot_after_stage": [0.1]}
    run_folder(tmp_path / "b", 0.9, test_counts=[50], **one)
    for name in ("b", "0"):  # read after the other, and before
        found = rows(compared(tmp_path / "a", (tmp_path / "b").rename(tmp_path / name)))
        assert list(found) == ["gcl", "joint", "zero_shot"]
        assert found["zero_shot"]["metrics"]["average"]["mean"] == pytest.approx(0.15)
        (tmp_path / name).rename(tmp_path / "b")
    run_folder(tmp_path / "0", 0.9, seed=2, test_counts=[50], **one)  # the first to be looked at
    run_folder(tmp_path / "d", 0.5, seed=3, test_counts=[30, 20])
    with pytest.raises(UserError, match="differ in test counts"):
        compared(tmp_path)
    shutil.rmtree(tmp_path / "d")
    run_folder(tmp_path / "c", 0.9, seed=1, test_counts=[51], **one)
    with pytest.raises(UserError, match="differ in test counts"):
        compared(tmp_path)


def test_joint_has_neither_a_course_nor_a_count_of_what_it_needs(tmp_path: Path) -> None:
    run_folder(tmp_path / "gcl", 0.5, any_time=0.6)
    one: Json = {"tasks": ["all"], "test_counts": [50], "any_time": 0.9, "kept_bytes": 0}
    run_folder(tmp_path / "joint", 0.9, method="joint", budget=0, zero_shot_after_stage=[0.1], **one)
    runs = find_runs([tmp_path])
    assert "any_time" in verdict.metrics_of(runs)
    asked = ["last", "average", "any_time", "kept_bytes"]
    found = rows(verdict.compare(runs, metrics=asked))
    assert [metric for metric in asked if found["joint"]["metrics"][metric] is not None] == ["last"]
    assert all(found["gcl"]["metrics"][metric] is not None for metric in asked)
    assert found["joint"]["kept"] is None
    alone = rows(compared(tmp_path / "joint"))["zero_shot"]["metrics"]
    assert (alone["last"]["mean"], alone["average"]) == (0.1, None)


def test_what_is_shown_by_may_differ_between_sections(tmp_path: Path) -> None:
    other = {"model": "other", "image_size": 224, "config": {"model": "other"}}
    run_folder(tmp_path / "a", 0.5)
    run_folder(tmp_path / "b", 0.6, **other)
    run_folder(tmp_path / "c", 0.6, method="gdro", **other)
    with pytest.raises(UserError, match="compare them separately, --by model, or use --anyway"):
        compared(tmp_path)
    found = compared(tmp_path, by=["model"])
    assert [len(section["rows"]) for section in found["sections"]] == [2, 3]
    run_folder(tmp_path / "d", 0.6, method="ewc", classes=["d", "c", "b", "a"], **other)
    with pytest.raises(UserError, match="differ in class order"):
        compared(tmp_path, by=["model"])


def test_options_of_the_source_keep_runs_apart(tmp_path: Path) -> None:
    for every in (1, 4):
        run_folder(tmp_path / f"gcl-{every}", 0.5, config={"source.every": every})
        run_folder(tmp_path / f"gdro-{every}", 0.6, method="gdro", config={"source.every": every})
    with pytest.raises(
        UserError, match=r"differ in source\.every \(1 in .*, 4 in .* separately, --by source\.every"
    ):
        compared(tmp_path)
    found = compared(tmp_path, by=["source.every"])
    assert [section["by"] for section in found["sections"]] == [{"source.every": 1}, {"source.every": 4}]
    run_folder(tmp_path / "older", 0.5, method="ewc")  # does not say, so it fits either
    compared(tmp_path / "gcl-1", tmp_path / "older")


def test_class_orders_as_repetitions(tmp_path: Path) -> None:
    for order in (1, 2, 3):
        for method, gain in (("gcl", 0.0), ("gdro", 0.1)):
            run_folder(
                tmp_path / f"{method}-{order}",
                0.5 + order / 100 + gain * order,
                method=method,
                classes=[*"abcd"[order:], *"abcd"[:order]],
                config={"scenario.order": order},
            )
    with pytest.raises(UserError, match=r"--by scenario\.order"):
        compared(tmp_path)
    found = compared(tmp_path, over=["seed", "scenario.order"])
    assert rows(found)["gcl"]["test"]["n"] == 3


def test_class_orders_by_the_seed_are_repetitions_without_a_word(tmp_path: Path) -> None:
    for seed in (1, 2, 3):
        for method, gain in (("gcl", 0.0), ("gdro", 0.1)):
            run_folder(
                tmp_path / f"{method}-{seed}",
                0.5 + seed / 100 + gain * seed,
                method=method,
                seed=seed,
                classes=[*"abcd"[seed:], *"abcd"[:seed]],
                test_counts=[10 + seed, 30 - seed],
                config={"scenario.order": "seed"},
            )
    found = rows(compared(tmp_path))
    assert found["gcl"]["test"]["n"] == 3
    assert found["zero_shot"]["random"]  # as recorded by each run: its average is over other tasks
    run_folder(tmp_path / "fixed", 0.5, method="ewc", seed=1, classes=[*"bcda"])
    with pytest.raises(UserError, match=r"differ in class order"):
        compared(tmp_path)
    shutil.rmtree(tmp_path / "fixed")
    run_folder(tmp_path / "others", 0.5, seed=4, classes=[*"bcde"], config={"scenario.order": "seed"})
    with pytest.raises(UserError, match=r"differ in class order"):
        compared(tmp_path)


def test_orders_that_a_scenario_ignores_are_no_repetitions(tmp_path: Path) -> None:
    for seed in range(3):
        for order in (1993, 1994):
            for method, gain in (("gcl", 0.0), ("gdro", 0.01 * seed)):
                folder, asked = tmp_path / f"{method}-{seed}-{order}", {"scenario.order": order}
                run_folder(folder, 0.5 + gain, method=method, seed=seed, config=asked)
    assert rows(compared(tmp_path, over=["seed", "scenario.order"]))["gcl"]["test"]["n"] == 3


def test_what_the_seed_does_not_change_differs_between_class_orders(tmp_path: Path) -> None:
    for order in range(3):
        for method in ("ncm", "gcl"):
            folder, asked = tmp_path / f"{method}-{order}", {"scenario.order": order}
            run_folder(
                folder,
                0.5 + order / 10,
                method=method,
                classes=[*"abcd"[order:], *"abcd"[:order]],
                config=asked,
            )
    for row in rows(compared(tmp_path, over=["scenario.order"])).values():
        assert row["random"]
    assert not rows(compared(tmp_path / "ncm-0"))["ncm"]["random"]


@pytest.mark.parametrize("kind", ["./mine.py", "my_package.mine"])
def test_a_scenario_from_outside_may_draw_by_the_seed(kind: str, tmp_path: Path) -> None:
    for seed in range(3):
        asked = {"scenario.kind": kind}
        run_folder(
            tmp_path / f"{seed}", 0.5 + seed / 10, method="ncm", seed=seed, scenario=kind, config=asked
        )
    assert rows(compared(tmp_path))["ncm"]["random"]
    assert rows(compared(tmp_path))["zero_shot"]["random"]


def test_a_memory_that_ended_empty_has_its_own_size(tmp_path: Path) -> None:
    for budget in (2, 200, 1000):
        run_folder(tmp_path / f"m{budget}", budget / 1000, budget=budget, memory_bytes=budget - 2)
    found = compared(tmp_path)
    assert [section["by"] for section in found["sections"]] == [{"memory.budget": n} for n in (2, 200, 1000)]
    assert [rows(found, k)["gcl"]["metrics"]["last"]["mean"] for k in range(3)] == [0.002, 0.2, 1.0]


def test_the_policy_of_runs_without_memory_names_no_row(tmp_path: Path) -> None:
    run_folder(tmp_path / "kept", 0.5, method="ncm", memory_bytes=200, config={"memory.policy": "herding"})
    for adapt in ("none", "finetune"):
        run_folder(tmp_path / adapt, 0.6, method="ncm", budget=0, config={"method.adapt": adapt})
    assert not any("policy" in label for label in rows(compared(tmp_path, over=["seed", "memory.budget"])))


def test_runs_that_fit_no_section_have_one(tmp_path: Path) -> None:
    run_folder(tmp_path / "ncm", 0.5, method="ncm", config={"data": "photos"})
    alone = compared(tmp_path, by=["memory.budget"])
    assert json.loads(json.dumps(alone["sections"]))[0]["by"] == {"memory.budget": "any"}
    run_folder(tmp_path / "gcl", 0.5)
    found = compared(tmp_path, by=["data", "memory.budget"])
    assert [[*rows(found, k)] for k in range(2)] == [["gcl", "zero_shot"], ["ncm", "zero_shot"]]
    for key in ("by", "over"):
        with pytest.raises(UserError, match=r'no run has the key "method\.marign"'):
            compared(tmp_path / "gcl", **{key: ["method.marign"]})


def test_at_equal_cost_every_method_has_its_dearest_setting_that_costs_no_more(grid: Path) -> None:
    found = compared(grid, equal="bytes")
    labels = [list(rows(found, s))[:4] for s in range(len(found["sections"]))]
    assert labels[0] == [
        "gcl budget=0",
        "gdro budget=0",
        "ncm",
        "joint",
    ]  # ewc keeps 400 kB whatever the memory
    assert labels[1] == ["ewc budget=0", "gcl budget=0", "gdro budget=0", "ncm"]
    assert labels[2] == ["ewc budget=0", "gcl budget=500", "gdro budget=500", "ncm"]
    assert labels[3] == ["ewc budget=500", "gcl budget=500", "gdro budget=500", "ncm"]
    assert found["sections"][2]["by"] == {"cost": "at most 500 kB"}
    assert rows(found, 3)["ewc budget=500"]["cost"] == 900_000
    legend = show.legend(compared(grid, equal="bytes", against="gcl"), wide=True)
    assert any(line.startswith("difference of last to gcl of each table") for line in legend)
    asked = compared(grid, equal="bytes", against="ewc")
    assert [section["by"]["cost"] for section in asked["sections"]] == ["at most 400 kB", "at most 900 kB"]
    with pytest.raises(UserError, match="use bytes, steps or samples"):
        compared(grid, equal="money")


@pytest.mark.parametrize(
    ("unit", "key", "more"), [("bytes", "memory_bytes", 50), ("steps", "optimizer_steps", 0)]
)
def test_bytes_are_equal_within_five_percent_and_steps_exactly(
    unit: str, key: str, more: int, tmp_path: Path
) -> None:
    for method in ("gcl", "gdro"):
        recorded: Json = {key: 1000}
        run_folder(tmp_path / method, 0.5, method=method, **recorded)
    for extra, chosen in ((more, 1000 + more), (more + 1, 1000)):
        dearer: Json = {key: 1000 + extra}
        run_folder(tmp_path / "larger", 0.6, budget=300, **dearer)
        found = rows(compared(tmp_path, equal=unit, against="gdro"))
        assert [row["cost"] for row in found.values() if row["method"] == "gcl"] == [chosen]
        shutil.rmtree(tmp_path / "larger")


@pytest.mark.parametrize(("unit", "key"), [("steps", "optimizer_steps"), ("bytes", "memory_bytes")])
def test_a_cost_that_was_not_recorded_is_no_cost_of_zero(unit: str, key: str, tmp_path: Path) -> None:
    """Runs without it are left out of a row's cost, as of what it keeps; a row of them alone has no place."""
    for method, cost in (("gcl", 1000), ("gdro", 2000)):
        recorded: Json = {key: cost}
        for seed in (0, 1):
            run_folder(tmp_path / f"{method}{seed}", 0.5, method=method, seed=seed, **recorded)

    def forget(name: str) -> None:
        file = tmp_path / name / "results.json"
        file.write_text(json.dumps({k: v for k, v in json.loads(file.read_text()).items() if k != key}))

    forget("gdro0")
    assert rows(compared(tmp_path, equal=unit))["gdro"]["cost"] == 2000
    forget("gdro1")
    with pytest.raises(UserError, match=f"--equal {unit}: .*gdro0 has recorded no .*: leave it out"):
        compared(tmp_path, equal=unit)


@pytest.mark.parametrize("key", ["skipped_steps", "duplicates", "train_copies", "forgetting"])
def test_fewer_of_what_harms_is_better(key: str, tmp_path: Path) -> None:
    for method, number in (("gcl", 1), ("gdro", 0)):
        recorded: Json = {key: number}
        run_folder(tmp_path / method, 0.5, method=method, **recorded)
    assert compared(tmp_path, metrics=[key])["sections"][0]["against"] == "gdro"


def test_a_median_rank_may_be_a_half(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_folder(tmp_path / "gcl", 0.5, image_to_text_median_rank=1.5)
    text = "\n".join(printed(capsys, str(tmp_path), "--metric", "image_to_text_median_rank"))
    assert re.search(r"^gcl +1\.5\b", text, re.MULTILINE)


def test_nothing_to_compare_and_unknown_names(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no finished run to compare"):
        compared(tmp_path)
    run_folder(tmp_path / "a", 0.5)
    with pytest.raises(UserError, match='has no number "lst"; did you mean "last"'):
        compared(tmp_path, metrics=["lst"])
    with pytest.raises(UserError, match=r'no run has the key "memory\.budgt"; did you mean "memory\.budget"'):
        compared(tmp_path, by=["memory.budgt"])
    with pytest.raises(UserError, match='no row to test against is "gcll"; did you mean "gcl"'):
        compared(tmp_path, against="gcll")


# The command --------------------------------------------------------------------------------------------------------


def test_a_number_is_never_cut_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """80 columns are the width of every pipe and log file."""
    monkeypatch.setenv("COLUMNS", "80")
    for seed in range(3):
        for method, last in (("gcl", 0.5), ("gdro", 0.6)):
            run_folder(
                tmp_path / f"{method}{seed}", last + seed / 100, method=method, seed=seed, seconds=12345.678
            )
    metrics = "last,average,forgetting,seconds,optimizer_steps,samples_seen,kept_bytes"
    assert main(["compare", str(tmp_path), "--metric", metrics, "--against", "gcl"]) == 0
    table = capsys.readouterr().out
    assert "\N{HORIZONTAL ELLIPSIS}" not in table
    assert table.count("12,346") == 2


def test_tables_fit_the_terminal(
    grid: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for width in (80, 120):
        monkeypatch.setenv("COLUMNS", str(width))
        assert main(["compare", str(grid)]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert max(map(len, lines)) <= width
        (gdro,) = [line for line in lines if line.startswith("gdro") and "reference" in line]
        assert ("rank" in lines[3]) == ("kept MB" in lines[3]) == (width == 120)
        assert "0.50 + 0.40" in " ".join(lines)  # of ewc: images + state
        mean, low, _, _ = stats.interval(lasts(*[grid / f"gdro-m500-s{seed}" for seed in range(5)]))
        assert low is not None
        assert gdro.split()[1:4] == [f"{100 * mean:.1f}", "±", f"{100 * (mean - low):.1f}"]
    assert lines[0] == "40 runs; mean ± 95 % interval over 5 values of seed"
    assert "difference of last to the best of each table; p corrected for 6 comparisons (Holm)" in lines


def printed(capsys: pytest.CaptureFixture[str], *words: str) -> list[str]:
    assert main(["compare", *words]) == 0
    return capsys.readouterr().out.splitlines()


def test_streams_show_what_they_are_judged_by(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    groups = {"many": 0.8, "medium": 0.6, "few": 0.4}
    for name, better in (("ridge", 0.1), ("gcl", 0.0)):
        told: dict[str, Any] = {group: {"classes": 3, "accuracy": v + better} for group, v in groups.items()}
        told |= {"many_above": 9, "few_below": 3}
        run_folder(tmp_path / name, 0.5, method=name, budget=0, by_frequency=told, any_time=0.7 + better)
    head, *rows = (
        line.split() for line in printed(capsys, str(tmp_path)) if "-shot" in line or "ridge" in line
    )
    assert [word for word in head if word != "%"][4:8] == ["any-time", "many-shot", "medium-shot", "few-shot"]
    assert rows[0][4:8] == ["80.0", "90.0", "70.0", "50.0"]
    assert main(["compare", str(tmp_path), "--fail-if", "by_frequency.few.accuracy<0.45"]) == 3
    assert "gcl: by_frequency.few.accuracy 0.4 < 0.45" in capsys.readouterr().err
    for wrong in ("by_frequency.rare.accuracy", "by_frequency.few", "last.few"):
        assert main(["compare", str(tmp_path), "--metric", wrong]) == 2
        assert f'has no number "{wrong}"' in capsys.readouterr().err


def test_transfer_stands_beside_that_of_the_pretrained_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cross = {"transfer": 0.5, "transfer_of_zero_shot": 0.6, "average": 0.7, "last": 0.8}
    told = {"task_id": "known", "matrix": [[0.5, 0.5], [0.8, 0.8]]}
    run_folder(tmp_path / "gcl", 0.5, cross_domain=cross | told)
    lines = printed(capsys, str(tmp_path), "--metric", "cross_domain.transfer,cross_domain.last", "--csv")
    rows = {row["label"]: row for row in csv.DictReader(lines)}
    assert float(rows["gcl"]["cross_domain.transfer"]) == 0.5
    assert float(rows["zero_shot"]["cross_domain.transfer"]) == 0.6
    assert rows["zero_shot"]["cross_domain.last"] == ""
    lines = printed(capsys, str(tmp_path), "--metric", "cross_domain.transfer_of_zero_shot")
    assert "Transfer of zero shot %" in "\n".join(lines)


def test_what_stands_beside_a_mean(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    lasts = (0.60, 0.62, 0.67)
    for seed, last in enumerate(lasts[:2]):
        run_folder(tmp_path / f"gcl{seed}", last, seed=seed)
        run_folder(tmp_path / f"ridge{seed}", 0.57, method="ridge", seed=seed, memory_bytes=0)
    words = [str(tmp_path), "--metric", "last"]

    def shown(spread: str, name: str = "gcl") -> str:
        lines = printed(capsys, *words, "--spread", spread)
        return next(line for line in lines if line.startswith(name)).partition("   ")[2].strip()

    assert [shown(spread).partition(")")[0] for spread in ("ci", "std")] == ["61.0 (n=2"] * 2
    assert shown("range").startswith("61.0 [60.0, 62.0]")
    assert shown("ci", "ridge°").startswith("57.0   ")  # nothing random: no n, no spread
    title = printed(capsys, *words)[0]
    assert title.endswith("mean over 2 values of seed, too few for an interval")
    run_folder(tmp_path / "gcl2", lasts[2], seed=2)
    run_folder(tmp_path / "ridge2", 0.57, method="ridge", seed=2, memory_bytes=0)
    _, low, high, _ = stats.interval(lasts)
    assert low is not None
    assert high is not None
    assert shown("ci").startswith(f"63.0 ± {100 * (high - low) / 2:.1f} ")
    assert shown("std").startswith(f"63.0 ± {100 * np.std(lasts, ddof=1):.1f} ")
    assert shown("range").startswith("63.0 [60.0, 67.0]")
    lines = printed(capsys, *words, "--csv", "--spread", "range")
    rows = {row["label"]: row for row in csv.DictReader(lines)}
    assert [float(rows["gcl"][key]) for key in ("last_low", "last_high")] == [0.60, 0.67]
    assert rows["ridge"]["last_low"] == ""
    assert "{63.0 [60.0,\\ 67.0]}$" in "\n".join(printed(capsys, *words, "--latex", "--spread", "range"))


def test_fractions_are_in_percent_and_what_is_equal_but_for_rounding_has_no_spread(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    more: Json = {"frozen_features": 0.807, "validation": 0.5}
    for seed, rounding in enumerate((0.0, 1e-16, 0.0)):
        run_folder(tmp_path / f"gcl{seed}", 251 / 300 + rounding, seed=seed, **more)
        run_folder(tmp_path / f"gdro{seed}", 0.807, method="gdro", seed=seed, **more)
    lines = printed(capsys, str(tmp_path), "--metric", "last,frozen_features,validation")
    (row,) = (line.split() for line in lines if line.startswith("gcl"))
    assert row[1:4] == ["83.7", "80.7", "50.0"]
    assert all("±" not in line for line in lines[1:])


def test_long_labels_are_wrapped_and_no_column_is_lost(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    for seed in (0, 1):
        for surrogate in ("squared_hinge_with_a_margin", "identity_of_the_difference"):
            last = 0.5 + len(surrogate) / 100 + seed * len(surrogate) / 200
            run_folder(
                tmp_path / f"{surrogate}{seed}", last, seed=seed, config={"method.surrogate": surrogate}
            )
    assert main(["compare", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert " p\n" in text
    assert max(map(len, text.splitlines())) <= 80


def test_json_csv_and_latex_have_the_numbers(grid: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", str(grid), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert main(["compare", str(grid), "--csv"]) == 0
    table = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert len(table) == 12
    for line, row in zip(
        table, [row for section in found["sections"] for row in section["rows"]], strict=True
    ):
        assert line["label"] == row["label"]
        assert float(line["last"]) == row["metrics"]["last"]["mean"]
        assert line["kept_state_bytes"] == ("" if row["kept"] is None else str(row["kept"]["state_bytes"]))
        assert line["p_holm"] == ("" if row["test"] is None else str(row["test"]["p_holm"]))
    assert main(["compare", str(grid), "--latex", "--metric", "last"]) == 0
    latex = capsys.readouterr().out
    assert "\\begin{tabular}{lrr}" in latex
    assert "$0.50 + 0.40$" in latex
    assert "last \\%" in latex
    assert "zero\\_shot$^\\circ$ & $10.0$" in latex
    assert latex.count("\\mathbf") == 2
    assert main(["compare", str(grid), "--latex", "--csv"]) == 2


@pytest.mark.parametrize(
    ("conditions", "code", "said"),
    [
        (["gdro<gcl"], 0, ""),
        (["gcl<gdro"], 3, "gate not met: last of gcl"),
        (["gcl < gdro"], 3, "at memory.budget=500"),
        (["method=gdro last<0.8"], 3, "gdro: last 0.7"),
        (["method=gdro memory.budget=500 last<0.5"], 0, ""),
        (["method=gdro memory.budget=0 last<0.5"], 3, "at memory.budget=0"),
        (["optimizer_steps>=40", "gdro<gcl"], 3, "ncm: optimizer_steps 40"),
        (["nobody<gcl"], 2, "matches no row"),
        (["method=gdro model=x last<0.8"], 2, "matches no row"),
        (["gdro"], 2, "is not a condition"),
        (["<"], 2, "is not a condition"),
        (["last<nan"], 2, "is not a condition"),
        (["method=gdro speed<3"], 2, 'has no number "speed"'),
    ],
)
def test_gates(
    grid: Path, conditions: list[str], code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [word for condition in conditions for word in ("--fail-if", condition)]
    assert main(["compare", str(grid), *words]) == code
    out, err = capsys.readouterr()
    assert said in err
    assert ("optimizer steps" in out) is False
    assert bool(out) == (code != 2)


def test_a_metric_that_names_nothing(grid: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", str(grid), "--metric", ","]) == 2
    assert "--metric names no number" in capsys.readouterr().err


def test_a_metric_that_is_named_twice_is_shown_once(grid: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", str(grid), "--csv", "--metric", "last,last", "--fail-if", "forgetting>1"]) == 0
    assert capsys.readouterr().out.splitlines()[0].count(",last,") == 1
    main(["compare", str(grid), "--json", "--metric", "last,last", "--fail-if", "forgetting>1"])
    assert json.loads(capsys.readouterr().out)["metrics"] == ["last"]
