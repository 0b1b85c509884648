"""Accuracy against memory: the chart that papers show."""

from __future__ import annotations

import csv
import io
import json
import re
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from everclip.plots.panels import Line, Panel
from everclip.report.collect import collect
from everclip.report.figure import NARROW, WIDE, Figure, grid
from everclip.report.many import result_table
from everclip.report.many_figures import against_memory
from everclip.report.svg import embedded
from everclip.report.tables import change
from everclip.report.verdicts import verdict
from tests.report.synthetic import write_run

SMALL: dict[str, Any] = {"tasks": 2, "per_task": 3, "steps": 2, "options": ""}
METHODS = ("gcl", "gdro", "icarl", "memo", "foster", "co2l", "der_expand", "finetune")


def drawn(folder: Path, seeds: int) -> Figure:
    """Two panels, of eight methods and of one; ncm keeps no exemplars."""
    for seed in range(seeds):
        for number, method in enumerate(METHODS):
            for memory in (0, 100):
                path = folder / f"{method}{memory}{seed}"
                write_run(path, method=method, gain=0.02 * number, memory=memory, seed=seed, **SMALL)
        for method in ("ncm", "joint", "zero_shot"):
            write_run(folder / f"{method}{seed}", method=method, memory=0, seed=seed, **SMALL)
        write_run(folder / f"other{seed}", data="imagefolder:other", seed=seed, **SMALL)
    figure = against_memory(collect([folder]).settings, "last", "images")
    assert figure is not None
    return figure


def texts(svg: str) -> list[tuple[str, float, float]]:
    root = ElementTree.fromstring(svg)
    return [
        (element.text or "", float(element.attrib["x"]), float(element.attrib["y"]))
        for element in root.iter()
        if element.tag.endswith("text")
    ]


def test_each_line_is_named_at_its_end(tmp_path: Path) -> None:
    figure = drawn(tmp_path, 1)
    names = [*METHODS, "ncm", "joint", "zero-shot"]
    wide = [text for text in texts(figure.wide) if text[0] in names and text[1] < WIDE / 2]
    assert sorted(name for name, _, _ in wide) == sorted(names)  # no legend besides, nothing cut short
    heights = sorted(y for _, _, y in wide)
    assert min(after - before for before, after in pairwise(heights)) >= 14
    assert len({x for _, x, _ in wide}) == 1
    narrow = [name for name, _, _ in texts(figure.narrow) if name in names]
    assert sorted(narrow) == sorted(names)  # a phone has a legend
    assert "stroke-opacity:0.6" not in figure.wide  # one seed has no bars
    assert "none with one seed" in figure.caption
    assert "cut off" in figure.caption


@pytest.mark.parametrize(
    ("seeds", "words"), [(2, "from the lowest to the highest seed"), (3, "95 % intervals")]
)
def test_two_seeds_have_a_range_and_more_an_interval(tmp_path: Path, seeds: int, words: str) -> None:
    figure = drawn(tmp_path, seeds)
    assert words in figure.caption
    root = ElementTree.fromstring(figure.wide)
    paths = [
        re.findall(r"[-\d.]+", path.get("d", ""))
        for path in root.iter()
        if "stroke-opacity:0.6" in path.get("style", "")
    ]
    spans = [abs(float(path[1]) - float(path[3])) for path in paths if len(path) == 4 and path[0] == path[2]]
    uses = [
        use for use in root.iter() if use.tag.endswith("use") and "fill-opacity:0.5" in use.get("style", "")
    ]
    dots = [float(dot.attrib["y"]) for dot in uses]
    assert max(spans) > 0
    ranges = [max(dots[k : k + seeds]) - min(dots[k : k + seeds]) for k in range(0, len(dots), seeds)]
    assert len(ranges) == 2 * len(METHODS) + 1
    if seeds == 2:
        assert all(min(abs(length - span) for span in spans) < 0.2 for length in ranges)
    else:
        assert max(spans) > max(ranges)


def test_long_names_go_into_a_legend() -> None:
    lines = [Line("a name " * n, n, [0, 1], [n, n + 1.0]) for n in (1, 9)]
    panels = [Panel(lines, (0, 1), (0, 10), title="p")] * 2
    wide, narrow = (embedded(grid(panels, width, ends=True), "x", "t", "d") for width in (WIDE, NARROW))
    assert len([text for text in texts(wide) if text[0].startswith("a name")]) == 2
    assert len([text for text in texts(narrow) if text[0].startswith("a name")]) == 2


def test_references_alone_are_no_result(tmp_path: Path) -> None:
    for seed in (0, 1):
        write_run(tmp_path / f"z{seed}", method="zero_shot", memory=0, seed=seed, **SMALL)
    (setting,) = collect([tmp_path]).settings
    assert verdict(setting)[0] == "Only references have finished."
    for seed in (0, 1):
        (tmp_path / f"z{seed}" / "results.json").unlink()
    (setting,) = collect([tmp_path]).settings
    assert verdict(setting)[0] == "No run of this setting has finished."
    assert [change(value).class_ for value in (None, 0.0004, -0.0004, 0.001, -0.001)] == [
        "",
        "",
        "",
        "up",
        "down",
    ]


def test_the_other_axis_is_what_is_kept_in_bytes(tmp_path: Path) -> None:
    """ridge has no image and 13 MB of sums: right of what two images take, not at nothing."""
    for method, memory, state in (("gcl", 0, 0), ("gcl", 100, 0), ("gcl", 400, 0), ("ridge", 0, 13_000_000)):
        folder = tmp_path / f"{method}{memory}"
        results = write_run(folder, method=method, memory=memory, **SMALL)
        (folder / "results.json").write_text(json.dumps(results | {"state_bytes": state}))
    write_run(tmp_path / "joint", method="joint", memory=0, **SMALL)
    report = collect([tmp_path])
    figure = against_memory(report.settings, "last", "bytes")
    assert figure is not None
    rows = list(csv.DictReader(io.StringIO(figure.csv)))
    sizes = {
        (row["method"], row["memory"]): (int(row["image_bytes"]), int(row["state_bytes"])) for row in rows
    }
    assert sizes[("ridge", "")] == (0, 13_000_000)
    assert sizes[("gcl", "400")] == (2_469_134, 0)
    at = {text: x for text, x, _ in texts(figure.narrow)}
    assert at["0"] < at["100 kB"] < at["1 MB"] < at["10 MB"] < at["100 MB"]
    (setting,) = report.settings
    ridge = next(row for row in result_table(setting).rows if row[0].text == "ridge")
    assert "0 bytes + 13.0 MB" in [cell.text for cell in ridge]
    numbers = report.to_json()["settings"][0]["groups"]
    assert next(group for group in numbers if group["method"] == "ridge")["kept_bytes"]["mean"] == 13_000_000


def test_three_seeds_have_an_interval_and_what_is_not_random_has_none(tmp_path: Path) -> None:
    for seed in range(3):
        for method, gain in (("gcl", 0.02), ("gdro", 0.3), ("ridge", 0.1)):
            write_run(tmp_path / f"{method}{seed}", method=method, gain=gain, seed=seed, **SMALL)
    (setting,) = collect([tmp_path]).settings
    lines = verdict(setting)
    assert "95 % interval" in lines[0]
    assert "95 % interval over 3 seeds, paired" in lines[1]
    cells = {row[0].text: row for row in result_table(setting).rows}
    assert "±" in cells["gdro"][3].text
    assert cells["ridge"][2].text == "any"
    assert "±" not in cells["ridge"][3].text
