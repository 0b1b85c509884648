"""The report page: what it says, and what it must never load."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from everclip.errors import UserError
from everclip.plots.panels import value_range
from everclip.plots.text import number, shorten, spread
from everclip.report.build import build
from everclip.report.collect import collect
from everclip.report.figure import csv_address
from everclip.report.many import class_table, result_table
from everclip.report.verdicts import verdict
from everclip.runs.read import read_run
from everclip.runs.words import duration, fact, points, size
from tests.report.page import Page
from tests.report.synthetic import IMAGES, NASTY, write_run


def partial(folder: Path, share: float) -> Path:
    """A run stopped in the middle of writing its log."""
    write_run(folder)
    (folder / "results.json").unlink()
    log = (folder / "metrics.jsonl").read_bytes()
    (folder / "metrics.jsonl").write_bytes(log[: int(share * len(log))])
    return folder


def test_has_every_part(page: Page) -> None:
    ids = {attributes.get("id") for _, attributes in page.elements}
    parts = (
        "verdict",
        "accuracy",
        "weights",
        "losses",
        "classes",
        "retention",
        "training",
        "cost",
        "provenance",
    )
    for part in parts:
        assert f"run1-{part}" in ids
    links = [a["href"] or "" for tag, a in page.elements if tag == "a" and (a["href"] or "").startswith("#")]
    assert len(links) == len(parts)
    assert {link[1:] for link in links} <= ids
    assert sum(tag == "figure" for tag, _ in page.elements) == 6


def test_size_for_100_classes(html: str) -> None:
    assert len(html.encode()) < 650_000


def test_loads_nothing(html: str, page: Page) -> None:
    assert "://" not in html.replace("http://www.w3.org/2000/svg", "")
    for tag, attributes in page.elements:
        assert tag not in ("iframe", "object", "embed", "img", "base")
        assert not (tag == "script" and "src" in attributes)
        for key in ("href", "src", "xlink:href", "action", "data"):
            assert (attributes.get(key) or "#").startswith(("#", "data:"))
    assert not re.search(r"@import|url\((?!#)", html)


def test_ids_are_unique_and_references_resolve(html: str, page: Page) -> None:
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert set(re.findall(r"url\(#([^)]+)\)", html)) <= set(ids)
    for tag, attributes in page.elements:
        if tag == "svg":
            assert attributes["role"] == "img"
            assert set((attributes["aria-labelledby"] or "").split()) <= set(ids)


def test_names_are_escaped(html: str, page: Page) -> None:
    names = [row[0] for row in page.rows if len(row) == 8]
    assert set(NASTY) <= set(names)
    assert sum(tag == "script" for tag, _ in page.elements) == 1
    assert not any(attribute.startswith("on") for _, attributes in page.elements for attribute in attributes)
    assert "<script>alert" not in html
    assert "photos/broken <b>.jpg" in page.text
    assert "photos/bad\\udcff.png" in page.text  # a name that is not UTF-8


def test_figures_are_wellformed_xml(html: str) -> None:
    figures = re.findall(r"<svg .*?</svg>", html, flags=re.DOTALL)
    assert len(figures) == 12  # six, wide and narrow
    for figure in figures:
        root = ElementTree.fromstring(figure)
        width, height = float(root.attrib["width"]), float(root.attrib["height"])
        for element in root.iter():
            for key, limit in (("x", width), ("y", height), ("cx", width), ("cy", height)):
                assert -1 <= float(element.attrib.get(key, 0)) <= limit + 1


def test_big_numbers_are_those_of_results(run: tuple[Path, dict[str, Any]], page: Page) -> None:
    results = run[1]
    gap = results["last"] - results["zero_shot"]
    assert f"last accuracy{100 * results['last']:.1f} %" in page.text.replace("accuracy ", "accuracy")
    for key in ("last", "average", "zero_shot"):
        assert f"{100 * results[key]:.1f} %" in page.text
    assert f"{100 * gap:.1f} points better than zero-shot." in page.text
    assert f"lost {100 * results['forgetting']:.1f} points on average" in page.text
    table = page.tables()
    assert table["time"] == "6.9 min (412.7 s)"
    assert table["memory: image bytes"] == "1.2 MB (1,234,567 bytes)"
    assert table["method state beside the model"] == "20.5 kB (20,480 bytes)"
    assert table["peak memory of the process"] == "1.4 GB (1,400,000,000 bytes)"
    assert table["trained parameters"] == "3,371,009"
    assert table["optimizer steps"] == "300"
    assert table["training images per second"] == "118.4"
    assert table["versions.torch"] == "2.10"
    assert table["seeds.order"] == "7"


def test_csv_files_hold_the_numbers(run: tuple[Path, dict[str, Any]], page: Page) -> None:
    results = run[1]
    accuracy = page.csv("-accuracy.csv")[1:]
    assert [float(row[3]) for row in accuracy] == results["accuracy_after_stage"]
    assert [float(row[4]) for row in accuracy] == results["zero_shot_after_stage"]
    assert [int(row[2]) for row in accuracy] == list(range(10, 101, 10))
    header, zero_shot, *stages, forgetting = page.csv("-matrix.csv")
    assert header == ["stage", *results["tasks"], "all_seen"]
    assert [float(v) for v in zero_shot[1:-1]] == results["zero_shot_per_task"]
    assert [[float(v) if v else None for v in row[1:-1]] for row in stages] == results["matrix"]
    assert np.isclose(np.mean([float(v) for v in forgetting[1:-2]]), results["forgetting"])
    assert [row[0] for row in page.csv("-per-class.csv")[1:]] == sorted_worst_first(results)
    weights = page.csv("-weights.csv")
    assert weights[0] == ["step", *results["classes"]]
    assert np.isclose(sum(float(v) for v in weights[-1][1:]), 1, atol=0.01)
    assert weights[1][11:] == [""] * 90  # classes of later tasks
    assert len(page.csv("-curves.csv")) == 301


def sorted_worst_first(results: dict[str, Any]) -> list[str]:
    rows = sorted(results["per_class"], key=lambda r: (r["last"], r["last"] - r["zero_shot"], r["class"]))
    return [row["class"] for row in rows]


def test_per_class_table_is_worst_first(run: tuple[Path, dict[str, Any]], page: Page) -> None:
    rows = [row for row in page.rows if len(row) == 8][1:]
    assert [row[0] for row in rows] == sorted_worst_first(run[1])
    by_name = {row["class"]: row for row in run[1]["per_class"]}
    for name, zero_shot, after, last, change, since, task, images in rows:
        want = by_name[name]
        assert (zero_shot, after, last) == tuple(
            f"{100 * want[key]:.1f}" for key in ("zero_shot", "after_learning", "last")
        )
        assert abs(float(change.replace("−", "-")) - 100 * (want["last"] - want["zero_shot"])) < 0.051
        assert abs(float(since.replace("−", "-")) - 100 * (want["last"] - want["after_learning"])) < 0.051
        assert (int(task), int(images)) == (want["task"] + 1, IMAGES)


def test_where_classes_are_in_several_tasks_none_is_compared_with_its_first(tmp_path: Path) -> None:
    """In domain-incremental the accuracy after the first task is on that task's images alone."""
    results = write_run(tmp_path / "r", tasks=2, per_task=8, steps=8)
    for apart in (False, True):
        if apart:
            rows = [row | {"task": 0} for row in results["per_class"]]
            (tmp_path / "r" / "results.json").write_text(json.dumps(results | {"per_class": rows}))
        html = build([tmp_path / "r"], tmp_path / "r.html").read_text()
        page = Page(html)
        (header,) = (row for row in page.rows if row[:2] == ["class", "zero-shot"])
        (fox,) = (row for row in page.rows if row[0] == "fox")
        assert len(header) == len(fox) == (6 if apart else 8)
        assert ("% after its task" in html) != apart
        assert ("The two columns beside the map" in html) != apart
        (setting,) = collect([tmp_path / "r"]).settings
        found = class_table(setting)
        assert found is not None
        assert any("right after its task" in cell.tip for row in found[0].rows for cell in row) != apart


def test_provenance(run: tuple[Path, dict[str, Any]], page: Page) -> None:
    folder = run[0]
    assert f"everclip train {folder}/config.toml out={folder}-again" in page.text
    assert 'name = "gdro" margin = 0.3' in page.text
    assert "2 could not be read" in page.text
    for template in run[1]["templates"]:
        assert template in page.text


def test_a_strangers_config_is_shown_as_it_is(tmp_path: Path) -> None:
    """A change of direction in it would reorder the page's text."""
    write_run(tmp_path / "x", tasks=2, per_task=2, steps=6)
    with (tmp_path / "x" / "config.toml").open("a", encoding="utf-8") as file:
        file.write("# \u202eno\n")
    html = build([tmp_path / "x"], tmp_path / "x.html").read_text(encoding="utf-8")
    assert "budget = 200\n# \\u202eno\n" in html
    assert "\u202e" not in html


def test_a_memory_of_unknown_size_is_not_empty(tmp_path: Path) -> None:
    """How many images there are is in the log alone."""
    write_run(tmp_path / "r", tasks=2, per_task=3, steps=8)
    (tmp_path / "r" / "metrics.jsonl").unlink()
    text = Page(build([tmp_path / "r"], tmp_path / "r.html").read_text()).text
    assert "images: 1.2 MB; state of the method: 20.5 kB" in text
    assert "no images" not in text


def test_says_when_worse_than_zero_shot(tmp_path: Path) -> None:
    results = write_run(tmp_path / "harm", gain=-0.3)
    text = Page(build([tmp_path / "harm"], tmp_path / "r.html").read_text()).text
    gap = 100 * (results["zero_shot"] - results["last"])
    assert f"Worse than zero-shot by {gap:.1f} points: training did harm." in text


def test_says_when_a_gap_may_be_chance(tmp_path: Path) -> None:
    results = write_run(tmp_path / "r", tasks=2, per_task=3, steps=8)
    close = {"zero_shot": results["last"] + 0.01, "tasks": results["tasks"]}
    (tmp_path / "r" / "results.json").write_text(json.dumps(results | close))
    text = Page(build([tmp_path / "r"], tmp_path / "r.html").read_text()).text
    assert "No better than zero-shot." in text
    assert "With 180 test images a gap below" in text


@pytest.mark.parametrize("share", [0.0005, 0.1, 0.3, 0.6, 0.95])
def test_partial_run(tmp_path: Path, share: float) -> None:
    folder = partial(tmp_path / "going", share)
    run = read_run(folder)
    page = Page(build([folder], tmp_path / "r.html").read_text())
    done = len(run.accuracy)
    assert "Unfinished" in page.text
    assert "1 torn line of metrics.jsonl skipped." in page.text
    if done:
        assert f"{done} of 10 tasks learned so far" in page.text
        assert f"{100 * run.accuracy[-1]:.1f} %" in page.text
        assert f"{100 * run.zero_shot[done - 1]:.1f} %" in page.text
        assert len(page.csv("-matrix.csv")) == done + 2  # header, stages, forgetting
    else:
        assert "no task learned so far" in page.text


def test_run_with_nothing_but_a_config(tmp_path: Path) -> None:
    folder = tmp_path / "new"
    folder.mkdir()
    (folder / "config.toml").write_text('model = "lite"\n')
    text = Page(build([folder], tmp_path / "r.html").read_text()).text
    assert "Nothing is recorded yet." in text
    assert f"everclip train {folder}/config.toml copy" in text


def test_one_task_and_no_class_weights(tmp_path: Path) -> None:
    folder = tmp_path / "joint"
    write_run(folder, tasks=1, per_task=6, steps=20)
    log = folder / "metrics.jsonl"
    log.write_text("".join(x for x in log.read_text().splitlines(keepends=True) if "class_weights" not in x))
    page = Page(build([folder], tmp_path / "r.html").read_text())
    assert sum(tag == "figure" for tag, _ in page.elements) == 5
    assert "run1-weights" not in {attributes.get("id") for _, attributes in page.elements}
    assert "After the only task" in page.text
    assert "on average since their best" not in page.text


@pytest.mark.slow
def test_hundreds_of_tasks_are_drawn_by_a_sample_of_them(tmp_path: Path) -> None:
    results = write_run(tmp_path / "long", tasks=150, per_task=1, steps=150)
    html = build([tmp_path / "long"], tmp_path / "r.html").read_text()
    assert len(html) < 2_000_000
    page = Page(html)
    header, _, *stages, _ = page.csv("-matrix.csv")
    places = [results["tasks"].index(name) for name in header[1:-1]]
    assert len(places) == 60
    assert {places[0], places[-1]} == {0, 149}
    assert [stages[-1][k + 1] for k in (0, 59)] == [str(results["matrix"][-1][i]) for i in (0, 149)]
    assert "60 of 150 tasks are drawn" in page.text


def test_several_runs_and_what_was_left_out(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_run(tmp_path / name, tasks=2, per_task=4, steps=20)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "results.json").write_text("{")
    paths = [tmp_path / name for name in ("a", "missing", "broken", "b")]
    html = build(paths, tmp_path / "r.html").read_text()
    page = Page(html)
    assert [a["id"] for tag, a in page.elements if tag == "article"] == ["run1", "run2"]
    assert f'"{tmp_path}/missing" does not exist' in page.text
    assert f"{tmp_path}/broken/results.json cannot be read" in page.text
    test_ids_are_unique_and_references_resolve(html, page)


def test_no_run_at_all(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist: give a run directory"):
        build([tmp_path / "nothing"], tmp_path / "r.html")
    with pytest.raises(UserError, match="is not a run directory"):
        build([tmp_path], tmp_path / "r.html")
    with pytest.raises(UserError, match="give at least one"):
        build([], tmp_path / "r.html")
    assert not (tmp_path / "r.html").exists()


def test_a_resumed_log_counts_each_step_once(tmp_path: Path) -> None:
    write_run(tmp_path / "r", tasks=2, per_task=3, steps=10)
    log = tmp_path / "r" / "metrics.jsonl"
    lines = log.read_text().splitlines(keepends=True)
    again = json.loads(lines[1]) | {"lr": 0.5}
    log.write_text("".join([*lines[:4], *lines[1:], json.dumps(again) + "\n"]))
    run = read_run(tmp_path / "r")
    assert [step["global_step"] for step in run.steps] == list(range(10))
    assert run.steps[0]["lr"] == 0.5
    assert run.borders == [(0, 0), (1, 5)]


def test_losses_that_are_not_finite_or_missing(tmp_path: Path) -> None:
    write_run(tmp_path / "r", tasks=2, per_task=3, steps=900)
    log = tmp_path / "r" / "metrics.jsonl"
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    steps = [event for event in lines if event["event"] == "step"]
    steps[3]["loss"]["gdro"] = float("nan")
    steps[4]["grad_norm"] = 1e9
    for event in steps[:450]:
        event["loss"]["never"] = float("inf")
        del event["loss"]["anchor"]
    log.write_text("".join(json.dumps(event) + "\n" for event in lines))
    html = build([tmp_path / "r"], tmp_path / "r.html").read_text()
    assert not re.search(r'"[^"]*\bnan\b[^"]*"', html)
    assert "no finite value" in html
    assert "log scale" in html
    assert "bands their range" in html


def test_imports_no_torch_and_no_pyplot() -> None:
    code = "import sys, everclip.report.build; print({'torch', 'matplotlib.pyplot'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_small_helpers() -> None:
    assert (points(-0.0123), points(0.5), points(-0.0001), points(None)) == ("−1.2", "+50.0", "0.0", "–")
    assert (size(999), size(1500), size(2.5e9), size(None)) == ("999 bytes", "1.5 kB", "2.5 GB", "–")
    assert (duration(8.44), duration(412.7), duration(7560)) == ("8.4 s", "6.9 min", "2.1 h")
    assert [number(v) for v in (0.00031, 0.25, 1200, 0)] == ["3.1e-4", "0.25", "1.2e3", "0"]
    assert [number(-0.00031), number(-2.5), number(0.1234, 2)] == ["−3.1e-4", "−2.5", "0.12"]
    assert [value_range(v) for v in ([1, 9], [6, 9], [-1, 9], [2, 2])] == [(0, 9), (6, 9), (-1, 9), (1, 3)]
    assert shorten("日本の猫", 30) == "日…"
    assert shorten("a\x00b", 99) == "a b"
    placed = spread([50, 51, 10, 99], 10, 0, 100)
    assert np.min(np.diff(np.sort(placed))) >= 10
    assert placed[2] == 10
    assert max(placed) <= 100
    assert "%ED" not in csv_address(["a"], [["bad\udcff"]])


def test_facts_are_named_unless_they_tell_by_themselves() -> None:
    options = {"scenario.shots": 5, "scenario.stochastic": False, "source.every": 2, "validation tasks": 3}
    assert [fact(key, value) for key, value in options.items()] == [
        "scenario.shots 5",
        "scenario.stochastic false",
        "source.every 2",
        "validation tasks 3",
    ]
    telling = {"data": "emoji", "image_size": 96, "validation": 0.2, "scenario": "few-shot", "smoke": True}
    assert [fact(key, value) for key, value in telling.items()] == [
        "emoji",
        "96 px",
        "validation fraction 0.2",
        "few-shot",
        "trial runs",
    ]
    assert fact("scenario.shots", None) == "scenario.shots unknown"


def test_of_very_many_classes_some_are_drawn_and_the_csv_file_has_all(tmp_path: Path) -> None:
    write_run(tmp_path / "r", tasks=2, per_task=2500, steps=2)
    text = build([tmp_path / "r"], tmp_path / "r.html").read_text()
    assert "of 5000 classes end below zero-shot. The 2000 worst are listed; the CSV file has all." in text
    assert "Only 1667 of the classes are drawn, evenly spaced in their order." in text
    assert text.count("<tr><th scope") < 2200
    assert text.count("kiwi%20333") >= 1


@pytest.mark.parametrize(
    ("gap", "mood", "head"),
    [
        (0.003, "level", "No better than zero-shot."),
        (-0.003, "level", "No better than zero-shot."),
        (0.0, "level", "No better than zero-shot."),
        (0.2, "better", "20.0 points better than zero-shot."),
        (-0.2, "worse", "Worse than zero-shot by 20.0 points: training did harm."),
    ],
)
def test_a_headline_inside_the_noise_is_neutral(tmp_path: Path, gap: float, mood: str, head: str) -> None:
    results = write_run(tmp_path / "run", tasks=2, per_task=3, steps=2)
    last = results["zero_shot"] + gap
    results |= {"last": last, "accuracy_after_stage": [*results["accuracy_after_stage"][:-1], last]}
    (tmp_path / "run" / "results.json").write_text(json.dumps(results))
    page = Page(build([tmp_path / "run"], tmp_path / "r.html").read_text())
    assert head in page.text
    assert any(element.get("class") == f"verdict {mood}" for _, element in page.elements)
    assert ("With 180 test images a gap below" in page.text) == (mood == "level")
    (setting,) = collect([tmp_path / "run"]).settings
    beside = verdict(setting)[0]
    assert ("; no better than zero-shot" in beside) == (mood == "level")
    (row,) = (row for row in result_table(setting).rows if row[0].text == "gdro")
    assert [cell.class_ for cell in row if cell.text == points(gap)][:1] == [
        {"level": "", "better": "up", "worse": "down"}[mood]
    ]


@pytest.mark.parametrize(("ahead", "mood"), [(0.001, "better"), (0.2, "worse"), (-0.1, "better")])
def test_frozen_features_that_are_ahead_by_chance_are_not_better(
    tmp_path: Path, ahead: float, mood: str
) -> None:
    results = write_run(tmp_path / "run", tasks=2, per_task=3, steps=2)
    results |= {"last": 0.7, "zero_shot": 0.4, "frozen_features_after_stage": [0.5, 0.7 + ahead]}
    results["accuracy_after_stage"][-1] = 0.7
    (tmp_path / "run" / "results.json").write_text(json.dumps(results))
    page = Page(build([tmp_path / "run"], tmp_path / "r.html").read_text())
    assert any(element.get("class") == f"verdict {mood}" for _, element in page.elements)
    assert ("It is more accurate than this run and trains nothing." in page.text) == (mood == "worse")
    assert ("With 180 test images a gap below 9.4 points may be chance." in page.text) == (ahead == 0.001)


def lasts(folder: Path, method: str, values: Sequence[float], first: int = 0) -> None:
    """Write a run per last accuracy, on 180 test images; zero-shot has 0.5."""
    for seed, last in enumerate(values, first):
        run = folder / f"{method}{seed}"
        results = write_run(run, method=method, seed=seed, memory=0, options="", tasks=2, per_task=3, steps=2)
        results |= {"last": last, "zero_shot": 0.5, "zero_shot_after_stage": [0.5, 0.5]}
        (run / "results.json").write_text(json.dumps(results))


@pytest.mark.parametrize(
    ("seeds", "said", "colour"),
    [
        ((0.3, 0.7, 0.95), "15.0 points above zero-shot (50.0 %), but the seeds differ so much that", ""),
        ((0.35, 0.95), "15.0 points above zero-shot (50.0 %), but the seeds differ so much that", ""),
        ((0.52, 0.53, 0.54), "no better than zero-shot (50.0 %; with 180 test images a gap below", ""),
        ((0.64, 0.65, 0.66), "15.0 points above zero-shot (50.0 %).", "up"),
    ],
)
def test_neither_seeds_nor_test_images_may_explain_what_is_called_better(
    tmp_path: Path, seeds: tuple[float, ...], said: str, colour: str
) -> None:
    lasts(tmp_path, "gcl", seeds)
    (setting,) = collect([tmp_path]).settings
    line = verdict(setting)[0]
    assert said in line
    assert ("95 % interval over 3 seeds: " in line) == (len(seeds) == 3)
    cells = [cell for row in result_table(setting).rows for cell in row if cell.text.startswith("+")]
    assert cells[0].class_ == colour


@pytest.mark.parametrize(
    ("method", "ahead", "said"),
    [
        ("gdro", (0.02, 0.021, 0.023), ", but with 180 test images a gap below"),
        ("gdro", (-0.1, 0.1, 0.3), ", which may be chance."),
        ("gdro", (0.2, 0.21, 0.22), ", more than the chance of seeds and test images explains."),
        ("slda", (0.2,), ", more than the chance of seeds and test images explains."),  # stands at every seed
    ],
)
def test_a_first_place_is_certain_beyond_seeds_and_test_images(
    tmp_path: Path, method: str, ahead: tuple[float, ...], said: str
) -> None:
    lasts(tmp_path, "gcl", [0.60, 0.601, 0.602])
    lasts(tmp_path, method, [0.6 + more for more in ahead])
    (setting,) = collect([tmp_path]).settings
    place = verdict(setting)[1]
    assert "95 % interval over 3 seeds, paired" in place
    assert said in place


def test_methods_are_ranked_over_the_seeds_that_they_share(tmp_path: Path) -> None:
    """A third, easy seed that only one method has finished does not make it the best."""
    lasts(tmp_path, "gcl", [0.50, 0.52, 0.90])
    lasts(tmp_path, "gdro", [0.55, 0.57])
    lasts(tmp_path, "joint", [0.60, 0.62, 0.64, 0.98])
    (setting,) = collect([tmp_path]).settings
    best, place = verdict(setting)
    assert best.startswith(
        "Best: gdro, memory 0, 56.0 % after the last task (2 seeds; over seeds 0, 1, which all"
    )
    assert "level with joint training (61.0 %; with 180" in best
    assert place.startswith(
        "Memory 0: gdro 56.0 %, then gcl 51.0 %; with 2 seeds the difference may be chance"
    )
    row = next(row for row in result_table(setting).rows if row[0].text == "gcl")
    assert [row[3].value, row[6].value] == [pytest.approx(0.64), pytest.approx(0.64 - 0.62)]


def test_methods_without_a_common_seed_are_ranked_with_a_warning(tmp_path: Path) -> None:
    lasts(tmp_path, "gcl", [0.50, 0.52])
    lasts(tmp_path, "gdro", [0.55, 0.57], first=2)
    (setting,) = collect([tmp_path]).settings
    best, place = verdict(setting)
    assert "(2 seeds; the methods share no seed, so their order may be chance)" in best
    assert place.endswith("they have no seed in common.")


def test_methods_without_a_memory_have_a_second_place_too(tmp_path: Path) -> None:
    for method, last in (("ncm", 0.5), ("slda", 0.8)):
        lasts(tmp_path, method, [last])
    (setting,) = collect([tmp_path]).settings
    assert setting.memories == []
    assert verdict(setting)[1] == (
        "First slda 80.0 %, then ncm 50.0 %; the difference of +30.0 points is the same for every seed, more than the"
        " chance of test images explains."
    )


def test_known_answers_tell_smaller_differences(tmp_path: Path) -> None:
    """Where all that one run tells right the other does too, 9 images of 180 are no chance of images."""
    lasts(tmp_path, "gcl", [108 / 180] * 3)
    lasts(tmp_path, "gdro", [117 / 180, 117 / 180, 118 / 180])
    (setting,) = collect([tmp_path]).settings
    assert "test images a gap below 9.9" in verdict(setting)[1]
    for run in setting.runs:
        top = np.where(np.arange(180) < round(180 * run.results["last"]), 1, 2)[:, None]
        label = np.ones(180, dtype=np.int64)
        np.savez(run.path / "predictions.npz", id=np.arange(180), label=label, top=top)
    assert verdict(setting)[1].endswith("more than the chance of seeds and test images explains.")
