"""The page of many runs: what it says, what it never averages, and how heavy it is."""

from __future__ import annotations

import json
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from everclip.metrics.stats import interval
from everclip.plots.matrix import forgotten
from everclip.report import run_figures
from everclip.report.build import build, collect, write
from everclip.report.many import class_table
from everclip.report.many_figures import stages
from everclip.report.map_figures import maps
from everclip.report.provenance import command
from everclip.report.tables import table, words
from everclip.runs.read import read_run
from everclip.runs.tuned import searched
from tests.report.page import PARTS, Page
from tests.report.synthetic import write_run, write_sweep
from tests.report.test_report import test_ids_are_unique_and_references_resolve as ids_are_sound
from tests.report.test_report import test_loads_nothing as loads_nothing
from tests.runs.test_find import unfinished

SMALL: dict[str, Any] = {"tasks": 3, "per_task": 4, "steps": 30, "answers": True}


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seeds of four methods at four memory sizes, with joint training and zero-shot."""
    folder = tmp_path_factory.mktemp("sweep")
    assert write_sweep(folder, seeds=2, tasks=3, per_task=4, steps=30) == 40
    return folder


@pytest.fixture(scope="module")
def whole(sweep: Path) -> str:
    return build([sweep], sweep / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def seen(whole: str) -> Page:
    return Page(whole)


def rows_of(page: Page, *start: str) -> list[list[str]]:
    """Table rows that begin so."""
    return [row for row in page.rows if tuple(row[: len(start)]) == start]


def results(folder: Path, pattern: str) -> list[dict[str, Any]]:
    return [json.loads((run / "results.json").read_text()) for run in sorted(folder.glob(pattern))]


def test_measures_of_streams_have_a_table(tmp_path: Path) -> None:
    for seed, area in ((0, 0.5), (1, 0.7)):
        write_run(tmp_path / f"r{seed}", seed=seed, **SMALL)
        file = tmp_path / f"r{seed}" / "results.json"
        found = json.loads(file.read_text())
        more = {"macro": 0.25, "worst_class": {"class": "owl", "last": 0.125}, "any_time": area}
        file.write_text(json.dumps(found | more))
    page = Page(build([tmp_path], tmp_path / "p.html").read_text(encoding="utf-8"))
    assert ["gdro", "200", "25.0 (n=2)", "12.5 (n=2)", "60.0 (n=2)"] in page.rows
    assert "Any-time is the area under" in page.text
    assert "Transfer" not in page.text, "no sentence on a column that is not there"


def test_has_every_part(whole: str, seen: Page) -> None:
    ids = {attributes.get("id") for _, attributes in seen.elements}
    assert {f"all-{part}" for part in PARTS} <= ids
    links = {a["href"] for tag, a in seen.elements if tag == "a" and (a["href"] or "").startswith("#")}
    assert links == {f"#all-{part}" for part in PARTS}
    assert "40 runs" in seen.text
    assert "All 40 runs are finished." in seen.text
    assert not any(tag == "article" for tag, _ in seen.elements)  # 40 runs in full would be too heavy
    ids_are_sound(whole, seen)
    loads_nothing(whole, seen)


def test_each_figure_has_its_files(whole: str, seen: Page) -> None:
    names = [a["download"] or "" for tag, a in seen.elements if tag == "a" and "download" in a]
    assert len(names) == len(set(names))
    figures = sum(tag == "figure" for tag, _ in seen.elements)
    assert figures == 14
    assert "data:application/pdf" not in whole
    assert whole.count('class="save-svg') == figures
    assert sum(name.endswith(".csv") for name in names) >= figures
    for svg in re.findall(r"<svg .*?</svg>", whole, flags=re.DOTALL):
        root = ElementTree.fromstring(svg)
        assert float(root.attrib["width"]) <= 920


def test_means_and_intervals_are_those_of_the_runs(sweep: Path, seen: Page) -> None:
    for memory in (0, 2000):
        span = interval([one["last"] for one in results(sweep, f"gdro_m{memory}_s*")])
        cell = f"{100 * span.mean:.1f} (n=2)"
        row = next(row for row in rows_of(seen, "gdro", str(memory)) if "(n=2)" in row[3])
        assert row[2:4] == ["2", cell]
        in_file = next(
            row for row in seen.csv("runs-memory-last.csv") if row[1:4] == ["gdro", "", str(memory)]
        )
        assert [float(v) for v in in_file[4:6]] == pytest.approx([2, span.mean], abs=1e-6)
        assert in_file[6:] == ["", ""]  # two seeds have no interval
        table = next(row for row in seen.csv("set1-results.csv") if row[:2] == ["gdro", str(memory)])
        assert float(table[3]) == pytest.approx(span.mean)
    zero_shot = results(sweep, "gdro_m0_s0")[0]["zero_shot"]
    assert f"zero-shot ({100 * zero_shot:.1f} %)" in seen.text
    joint = interval([one["last"] for one in results(sweep, "joint_m0_s*")]).mean
    assert f"joint training ({100 * joint:.1f} %)" in seen.text
    row = next(row for row in rows_of(seen, "joint", "–") if row[3] == f"{100 * joint:.1f} (n=2)")
    assert (row[4], row[-1]) == ("–", "–")  # one stage has no average, and its images are not counted
    (row,) = rows_of(seen, "joint_m0_s0")
    assert row[5:7] == [f"{100 * results(sweep, 'joint_m0_s0')[0]['last']:.1f}", "–"]


def test_the_verdict_names_the_best_and_how_sure_that_is(sweep: Path, seen: Page) -> None:
    means = {
        f"{method}, memory {memory}": interval(
            [one["last"] for one in results(sweep, f"{method}_m{memory}_s*")]
        ).mean
        for method in ("clip", "finetune", "gcl", "gdro")
        for memory in (0, 500, 1000, 2000)
    }
    best = max(means, key=lambda name: means[name])
    assert f"Best: {best}, {100 * means[best]:.1f} % after the last task (2 seeds)" in seen.text
    assert "Memory 0: gdro" in seen.text
    assert "with 2 seeds the difference may be chance" in seen.text
    assert "10 runs: repeats" not in seen.text
    assert "4 runs: repetitions of a seed" in seen.text  # joint and zero-shot were run at two memory sizes


def test_classes_are_worst_first(sweep: Path, seen: Page) -> None:
    rows = seen.csv("set1-classes.csv")
    assert len(rows) == 1 + 12
    means = [float(row[3]) for row in rows[1:]]
    assert means == sorted(means)
    column = rows[0].index("gdro, memory 500")
    first = [
        {row["class"]: row["last"] for row in one["per_class"]} for one in results(sweep, "gdro_m500_s*")
    ]
    for row in rows[1:]:
        assert float(row[column]) == pytest.approx(sum(known[row[0]] for known in first) / 2, abs=1e-4)


def test_classes_have_a_task_only_where_all_runs_agree(tmp_path: Path) -> None:
    for seed in (0, 1):
        write_run(tmp_path / f"r{seed}", seed=seed, **SMALL)
        config = tmp_path / f"r{seed}" / "config.toml"
        config.write_text(config.read_text().replace("tasks = 10", 'tasks = 10\norder = "seed"'))
    for columns in (["class", "task", "zero-shot", "mean of all"], ["class", "zero-shot", "mean of all"]):
        (setting,) = collect([tmp_path]).settings
        found = class_table(setting)
        assert found is not None
        assert [name for name, _ in found[0].columns][:-1] == columns
        assert found[0].sorted_by == columns.index("mean of all")
        file = tmp_path / "r1" / "results.json"
        known = json.loads(file.read_text())
        known["per_class"] = [row | {"task": 2 - row["task"]} for row in known["per_class"]]
        file.write_text(json.dumps(known))


def test_heatmaps_are_means_over_seeds(sweep: Path, seen: Page) -> None:
    runs = results(sweep, "clip_m500_s*")
    rows = [row for row in seen.csv("set1-matrix.csv") if row[:3] == ["clip", "", "500"]]
    assert float(rows[2][4]) == pytest.approx(sum(run["matrix"][2][0] for run in runs) / 2, abs=1e-4)
    lost = [row for row in seen.csv("set1-forgetting.csv") if row[:3] == ["clip", "", "500"]]
    assert [row[3] for row in lost] == ["2", "3"]
    first, second = ([row[i] for row in lost] for i in (4, 5))
    best = [max(run["matrix"][0][0], run["matrix"][1][0]) for run in runs]
    ends = [run["matrix"][2][0] for run in runs]
    assert float(first[1]) == pytest.approx((sum(best) - sum(ends)) / 2, abs=1e-4)
    assert second[0] == ""
    assert float(second[1]) == pytest.approx(
        sum(run["matrix"][1][1] - run["matrix"][2][1] for run in runs) / 2, abs=1e-4
    )


@pytest.mark.parametrize("task_id", ["known", "unknown", None])
def test_captions_say_which_classes_compete(task_id: str | None, tmp_path: Path) -> None:
    """In cross-domain those of each task, or of all; also while no run has finished."""
    found = write_run(tmp_path / "run", **SMALL)
    if task_id is not None:
        cross = dict.fromkeys(("transfer", "transfer_of_zero_shot", "average", "last"), 0.5)
        found |= {"cross_domain": {"task_id": task_id, "matrix": found["matrix"], **cross}}
        (tmp_path / "run" / "results.json").write_text(json.dumps(found))
        config = tmp_path / "run" / "config.toml"
        config.write_text(config.read_text().replace("tasks = 10", f'task_id = "{task_id}"'))
    words = {"known": "each among the classes of its own task", "unknown": "among the classes of all tasks"}
    for done in (True, False):
        (setting,) = collect([tmp_path / "run"]).settings
        shown = run_figures.figures(setting.runs[0], "run1")
        figures = [stages(setting), maps(setting, "accuracy"), shown["accuracy"], shown["matrix"]]
        captions = [figure.caption for figure in figures if figure is not None]
        assert len(captions) == 4
        for caption in captions:
            assert words.get(str(task_id), "among all classes learned by then") in caption
            assert ("among all classes learned" in caption) == (task_id is None)
        assert ("on each task among the classes up to it" in captions[-1]) == (done and task_id is None)
        (tmp_path / "run" / "results.json").unlink(missing_ok=True)


def test_settings_are_never_averaged(tmp_path: Path) -> None:
    for seed in (0, 1):
        for data in ("photos", "drawings"):
            write_run(tmp_path / f"{data}{seed}", seed=seed, data=f"imagefolder:{data}", **SMALL)
            write_run(
                tmp_path / f"{data}{seed}gcl", seed=seed, data=f"imagefolder:{data}", method="gcl", **SMALL
            )
    page = Page(build([tmp_path], tmp_path / "r.html").read_text())
    assert (
        "The runs belong to 2 settings, which are compared but never averaged: they differ in data."
        in page.text
    )
    assert [row[2] for row in page.rows if row[:2] == ["gdro", "200"] and "(n=2)" in row[3]] == ["2", "2"]
    csv = page.csv("runs-memory-last.csv")
    assert [row[0] for row in csv if row[1] == "gcl"] == ["imagefolder:drawings", "imagefolder:photos"]
    assert ["data", "imagefolder:drawings", "imagefolder:photos"] in page.rows


def test_a_sweep_that_still_goes_on(sweep: Path, tmp_path: Path) -> None:
    """Failed, stopped and waiting runs are named; what is finished is shown."""
    folder = tmp_path / "s"
    folder.mkdir()
    for name in ("gdro_m0_s0", "gdro_m500_s0", "gcl_m0_s0"):
        shutil.copytree(sweep / name, folder / name)
    (folder / "gcl_m0_s0" / "results.json").unlink()
    (folder / "gdro_m500_s0" / "results.json").unlink()
    (folder / "logs").mkdir()
    (folder / "logs" / "gcl_m0_s0.log").write_text("error: out of <memory>\n")
    shutil.copy(sweep / "sweep.json", folder)
    page = Page(build([folder], tmp_path / "r.html").read_text())
    assert "1 of 40 runs are finished; 1 has stopped early, 1 has failed, 37 are waiting." in page.text
    assert "gcl_m0_s0: failed after 3 of 3 tasks: out of <memory>" in page.text
    assert "gdro_m500_s0: stopped after 3 of 3 tasks" in page.text
    assert "gdro_m2000_s1 (method gdro, memory.budget 2000, seed 1)" in page.text
    assert "Best so far: gdro, memory 0" in page.text
    assert rows_of(page, "gcl", "0", "0 of 1")
    states = {row[0]: row[4] for row in page.rows if len(row) > 4 and row[0].startswith(("gcl_m", "gdro_m"))}
    assert states["gcl_m0_s0"].startswith("failed")
    assert "Unfinished runs, so far: gcl, memory 0; gdro, memory 500." in page.text


def test_a_sweep_that_has_only_begun(tmp_path: Path) -> None:
    cells = [{"method": "gcl", "run": "gcl"}, {"method": "gdro", "run": "gdro"}]
    (tmp_path / "sweep.json").write_text(json.dumps({"schema": 1, "cells": cells}))
    page = Page(build([tmp_path], tmp_path / "r.html").read_text())
    assert "0 of 2 runs are finished; 2 are waiting." in page.text
    (tmp_path / "gcl").mkdir()
    (tmp_path / "gcl" / "config.toml").write_text('data = "emoji"\n[method]\nname = "gcl"\n')
    page = Page(build([tmp_path], tmp_path / "r.html").read_text())
    assert "No run of this setting has finished." in page.text
    assert "gcl: stopped after no task" in page.text
    unfinished(tmp_path / "gdro")
    page = Page(build([tmp_path], tmp_path / "r.html").read_text())
    assert "gdro, memory 200: 1 of 2 tasks" in page.text


def test_few_runs_are_shown_in_full_too(sweep: Path, tmp_path: Path) -> None:
    paths = [sweep / "gdro_m0_s0", sweep / "gcl_m0_s0"]
    html = build(paths, tmp_path / "r.html").read_text()
    page = Page(html)
    assert [a["id"] for tag, a in page.elements if tag == "article"] == ["run1", "run2"]
    assert {f"#run{k}" for k in (1, 2)} <= {a.get("href") for _, a in page.elements}
    ids_are_sound(html, page)
    for key in ("fates", "coverage", "reliability"):
        assert len(page.csv(f"gdro_m0_s0-{key}.csv")) > 1


def test_configs_that_differ(tmp_path: Path) -> None:
    for margin in (0.1, 0.3):
        write_run(tmp_path / f"m{margin}", options=f"margin = {margin}\ntau = 0.05\n", **SMALL)
    environment = {
        "python": "3.13.0",
        "versions": {"torch": "2.10", "open_clip": "3.3"},
        "seeds": {"order": 7},
    }
    (tmp_path / "m0.3" / "environment.json").write_text(json.dumps(environment))
    html = build([tmp_path], tmp_path / "r.html").read_text()
    page = Page(html)
    assert ["method.margin (gdro)", "0.1", "gdro, margin 0.1, memory 200"] in page.rows
    assert ["python", "3.13.0", "gdro, margin 0.3, memory 200"] in page.rows
    assert "method.tau (gdro) = 0.05" in page.text
    assert "versions.torch = 2.10" in page.text
    assert f"everclip train {tmp_path}/m0.1/config.toml out={tmp_path}/m0.1-again" in page.text
    assert "--trust" not in page.text


def test_a_method_of_ones_own_is_repeated_with_the_permission_that_it_needs(tmp_path: Path) -> None:
    write_run(tmp_path / "own", method="my_package.my_method", options="", tasks=2, per_task=2, steps=2)
    assert command(read_run(tmp_path / "own")).endswith(f"own-again --trust {tmp_path}/own")


def test_what_was_not_recorded_is_said(tmp_path: Path) -> None:
    for seed in (0, 1):
        write_run(tmp_path / f"s{seed}", seed=seed, tasks=2, per_task=3, steps=6)
    page = Page(build([tmp_path], tmp_path / "r.html").read_text())
    assert "No confusions: 2 finished runs did not record the labels of classes" in page.text
    assert "2 runs of 2 left no predictions.npz" in page.text
    write_run(tmp_path / "s0", seed=0, tasks=2, per_task=3, steps=6, answers=True)
    with open(tmp_path / "s0" / "predictions.npz", "rb") as file:
        kept = {key: value for key, value in np.load(file).items() if key != "confidence"}
    np.savez(tmp_path / "s0" / "predictions.npz", **kept)
    page = Page(build([tmp_path], tmp_path / "r.html").read_text())
    assert "1 run of 2 recorded no probabilities: calibration is unknown." in page.text
    assert "It recorded no probabilities: calibration is unknown." in page.text
    assert "Accuracy of the most confident answers" in page.text


def without_predictions(folder: Path, _: dict[str, Any]) -> None:
    (folder / "predictions.npz").unlink()


def without_labels(folder: Path, results: dict[str, Any]) -> None:
    del results["class_labels"]


def without_mistakes(folder: Path, _: dict[str, Any]) -> None:
    with np.load(folder / "predictions.npz") as file:
        kept = dict(file)
    kept["top"][:, 0] = kept["label"]
    np.savez(folder / "predictions.npz", **kept)


def with_captions(folder: Path, results: dict[str, Any]) -> None:
    without_predictions(folder, results)
    way = {"recall_at_1": 0.5, "recall_at_5": 1.0, "recall_at_10": 1.0, "median_rank": 1.0}
    found = {"images": 3, "captions": 3, "image_to_text": way, "text_to_image": way}
    parts = {"tasks": [found] * len(results["tasks"]), "together": found}
    results["retrieval"] = {"zero_shot": parts, "after_stage": [parts]}


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (without_predictions, "left no predictions.npz that can be read"),
        (without_labels, "did not record the labels of classes (class_labels in results.json)"),
        (without_mistakes, "classified every test image correctly"),
        (with_captions, "learned captions, in place of classes"),
    ],
)
def test_why_there_are_no_confusions(
    tmp_path: Path, change: Callable[[Path, dict[str, Any]], None], why: str
) -> None:
    """On the page of many runs, and on that of one."""
    for seed in (0, 1):
        results = write_run(tmp_path / f"s{seed}", seed=seed, tasks=2, per_task=4, steps=6, answers=True)
        change(tmp_path / f"s{seed}", results)
        (tmp_path / f"s{seed}" / "results.json").write_text(json.dumps(results), encoding="utf-8")
    many = Page(build([tmp_path], tmp_path / "many.html").read_text(encoding="utf-8")).text
    assert f"No confusions: 2 finished runs {why}." in many
    one = Page(build([tmp_path / "s0"], tmp_path / "one.html").read_text(encoding="utf-8")).text
    assert f"No confusions: this run {why}." in one
    lost = change is without_predictions
    assert ("left no predictions.npz, so their confidence is unknown" in many) == lost
    assert ("It left no predictions.npz that can be read, so its confidence is unknown." in one) == lost


def test_a_calibration_error_names_the_bins_of_its_definition(tmp_path: Path) -> None:
    write_run(tmp_path / "s0", tasks=2, per_task=3, steps=6, answers=True)  # some of the bins have no image
    assert (
        "(expected calibration error, 15 bins)"
        in Page(build([tmp_path], tmp_path / "r.html").read_text()).text
    )


def test_a_column_left_out_moves_the_sorted_one() -> None:
    columns, cells = ["class", "zero-shot", "mean"], [words("a"), words("–"), words("b")]
    assert table("classes", columns, [cells], sorted_by=2).sorted_by == 1


@pytest.mark.slow
def test_figures_as_files(tmp_path: Path) -> None:
    """Also of runs of one name, which have their own."""
    places = [tmp_path / part / "gdro_s0" for part in "ab"]
    for seed, place in enumerate(places):
        write_run(place, seed=seed, **SMALL)
    found = collect(places)
    write(found, tmp_path / "r.html", tmp_path / "figures")
    names = {path.name for path in (tmp_path / "figures").iterdir()}
    assert {f"memory-last.{ending}" for ending in ("svg", "pdf", "png", "csv")} <= names
    first, second = ({name for name in names if name.startswith(f"run{k}-gdro_s0-")} for k in (1, 2))
    assert len(first) == len(second) > 0
    assert "run1-gdro_s0-accuracy.pdf" in first
    assert len({name.rpartition(".")[0] for name in names}) * 4 == len(names)
    write(found, tmp_path / "r2.html", tmp_path / "again")
    for path in (tmp_path / "figures").iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes()
    for path in (tmp_path / "figures").glob("*.pdf"):
        assert b"/Type3" not in path.read_bytes()  # publishers refuse such fonts
    for path in (tmp_path / "figures").glob("*.svg"):
        text = path.read_text(encoding="utf-8")
        assert ElementTree.fromstring(text).tag.endswith("svg")
        assert "var(" not in text
        assert "#1c2126" in text  # it brings its style along
    assert (tmp_path / "figures" / "memory-last.csv").read_text(encoding="utf-8").startswith("\ufeffsetting,")


def test_many_settings_stay_light(tmp_path: Path) -> None:
    for data in "abcd":
        write_run(tmp_path / f"{data}0", data=f"imagefolder:{data}", **SMALL)
        write_run(tmp_path / f"{data}1", data=f"imagefolder:{data}", seed=1, **SMALL)
    html = build([tmp_path], tmp_path / "r.html").read_text()
    assert html.count('id="set1-weights-wide-t"') == html.count('id="set2-weights-wide-t"') == 1
    assert "set3-weights-wide" not in html
    assert "set4-entropy-wide" in html


@pytest.mark.slow
def test_100_runs_weigh_less_than_2_mb(tmp_path: Path) -> None:
    assert write_sweep(tmp_path, steps=60) == 100
    page = build([tmp_path], tmp_path / "r.html")
    assert page.stat().st_size < 2_000_000
    assert "100 runs" in Page(page.read_text(encoding="utf-8")).text


def test_forgetting_is_against_the_best_earlier_accuracy() -> None:
    rng = random.Random(0)
    matrix = [[rng.random() if i <= t + 1 else None for i in range(6)] for t in range(6)]
    matrix[3][2] = None
    for t, row in enumerate(forgotten(matrix)):
        for i, found in enumerate(row):
            earlier = [value for s in range(i, t) if (value := matrix[s][i]) is not None]
            now = matrix[t][i]
            assert found == (max(earlier) - now if earlier and now is not None else None)


@pytest.mark.slow
def test_what_was_tuned_is_shown(tmp_path: Path) -> None:
    text = (
        "imagefolder:photos, tasks 1-2, 0.2 of their training images, memory 200, seed 0, 6 of 6 trials"
        " (still at the"
        " edge of its grid: train.lr); train.lr 1e-05: 0.5125, 0.0003: 0.6500; method.margin 0.1: -, 0.3:"
        " 0.6500, 0.5: 0.6"
    )
    for seed in (0, 1):
        results = write_run(tmp_path / f"{seed}", seed=seed, **SMALL)
        (tmp_path / f"{seed}" / "results.json").write_text(json.dumps(results | {"tuned_on": text}))
        config = tmp_path / f"{seed}" / "config.toml"
        config.write_text(config.read_text() + "[train]\nlr = 3e-4\n")
    for paths in ([tmp_path], [tmp_path / "0"]):
        page = Page(build(paths, tmp_path / "r.html").read_text())
        rows = [row[-5:] for row in page.rows if row[-4:-3] in (["train.lr"], ["method.margin"])]
        assert rows[:2] == [
            ["6 of 6", "train.lr", "1e-05: 51.2, 0.0003: 65.0", "0.0003", "yes"],
            ["6 of 6", "method.margin", "0.1: not finite, 0.3: 65.0, 0.5: 60.0", "0.3", ""],
        ]
    assert searched("chosen by hand") is None
