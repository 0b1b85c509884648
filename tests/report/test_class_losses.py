"""Class losses and the estimators of the global contrastive loss on the report page."""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from everclip.report.build import build
from everclip.runs.read import read_run
from tests.report.page import Page
from tests.report.synthetic import NASTY, write_run

Event = dict[str, Any]
ORANGE, BLUE = (217, 95, 2), (24, 116, 205)


def report(folder: Path, change: Callable[[list[Event]], list[Event]]) -> str:
    """The page of a run of 2 tasks by 8 classes whose log was changed."""
    write_run(folder, tasks=2, per_task=8, steps=20)
    log = folder / "metrics.jsonl"
    events = change([json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()])
    log.write_text("".join(json.dumps(event) + "\n" for event in events))
    return build([folder], folder / "r.html").read_text(encoding="utf-8")


def of_kind(events: list[Event], kind: str) -> list[Event]:
    return [event for event in events if event["event"] == kind]


def without(kind: str) -> Callable[[list[Event]], list[Event]]:
    return lambda events: [event for event in events if event["event"] != kind]


def figure(html: str, title: str) -> str:
    """The wide chart of that title."""
    return re.findall(rf'<svg class="fig"[^>]*><title [^>]*>{re.escape(title)}</title>.*?</svg>', html, re.S)[
        0
    ]


def test_class_losses_as_logged(tmp_path: Path) -> None:
    kept: list[Event] = []

    def change(events: list[Event]) -> list[Event]:
        kept.extend(of_kind(events, "class_losses"))
        return events[::-1]  # the order of the lines does not matter

    page = Page(report(tmp_path / "r", change))
    run = read_run(tmp_path / "r")
    assert [(r.step, r.stage, r.values) for r in run.class_losses] == [
        (line["global_step"], line["stage"], line["losses"]) for line in kept
    ]
    header, *rows = page.csv("-losses.csv")
    assert header == ["step", *run.classes]
    for row, line in zip(rows, kept, strict=True):
        values = {name: float(v) for name, v in zip(header, row, strict=True) if v and name != "step"}
        assert values == pytest.approx(line["losses"], rel=0.01)
    assert min(v for r in run.class_losses for v in r.values.values()) < 0


def test_class_names_are_escaped(html: str, page: Page) -> None:
    assert set(NASTY) <= set(page.csv("-losses.csv")[0])
    assert "&lt;script&gt;alert(1)&lt;/script&gt;: loss " in figure(html, "Class losses over time")
    assert "<script>alert" not in html
    assert "<img" not in html


def test_no_class_losses(tmp_path: Path) -> None:
    html = report(tmp_path / "r", without("class_losses"))
    assert "Class losses" not in html
    assert "run1-losses" not in html
    assert "Class weights over time" in html


def test_class_losses_alone(tmp_path: Path) -> None:
    html = report(tmp_path / "r", lambda events: of_kind(events, "class_losses"))
    assert "Class losses over time" in html
    assert "Class weights" not in html
    assert read_run(tmp_path / "r").borders == [(0, 0), (1, 10)]


def test_colours(tmp_path: Path) -> None:
    """High orange, low blue, the median clear, a class that was not met like its nearest record."""

    def change(events: list[Event]) -> list[Event]:
        names = events[0]["classes"]
        for event in of_kind(events, "class_losses"):
            event["losses"] = dict.fromkeys(names[3:], 0.5) | {names[0]: 2.5, names[1]: -1.5}
            if event["global_step"] in (2, 15):
                event["losses"][names[2]] = 2.5 if event["stage"] else -1.5
        return events

    chart = figure(report(tmp_path / "r", change), "Class losses over time")
    found = re.findall(r'href="data:image/png;base64,([^"]+)"', chart)
    pixels = np.array(Image.open(io.BytesIO(base64.b64decode(found[0]))).convert("RGBA"))
    assert len(pixels) == 16
    assert (pixels[0] == (*ORANGE, 255)).all()
    assert (pixels[1] == (*BLUE, 255)).all()
    assert (pixels[3:, :, 3] == 0).all()
    border = round(600 * 10 / 19)  # the second task begins at step 10 of 0..19
    assert (pixels[2, : border - 1] == (*BLUE, 255)).all()
    assert (pixels[2, border + 1 :] == (*ORANGE, 255)).all()


def test_hatched_where_a_class_is_not_met(tmp_path: Path) -> None:
    def first_task_is_not_replayed(events: list[Event]) -> list[Event]:
        learned = events[0]["tasks"][0]["classes"]
        for event in of_kind(events, "class_losses"):
            if event["stage"] == 1:
                event["losses"] = {k: v for k, v in event["losses"].items() if k not in learned}
        return events

    hatched = "fill:url(#run1-losses-wide-"
    chart = figure(report(tmp_path / "r", lambda events: events), "Class losses over time")
    assert chart.count(hatched) == 2  # the second task's classes before they are learned, and the legend
    chart = figure(report(tmp_path / "s", first_task_is_not_replayed), "Class losses over time")
    assert chart.count(hatched) == 3
    assert "<title>fox; accuracy " in chart  # no loss at the end
    assert re.search(r"<title>owl 1: loss [−\d.e-]+ at the end", chart) is None


@pytest.mark.parametrize(
    "odd",
    [
        {"losses": None},
        {"losses": [0.1, 0.2]},
        {"losses": "NaN"},
        {"stage": "0"},
        {"stage": None},
        {"global_step": 1.5},
        {"global_step": [3]},
    ],
)
def test_an_unusable_line_is_skipped(tmp_path: Path, odd: Event) -> None:
    def change(events: list[Event]) -> list[Event]:
        line = of_kind(events, "class_losses")[3]
        line |= odd
        return events

    page = Page(report(tmp_path / "r", change))
    assert "1 unusable line of metrics.jsonl skipped." in page.text
    assert len(page.csv("-losses.csv")) == 20  # header and 19 of 20 lines


def test_lines_that_are_no_events(tmp_path: Path) -> None:
    odd: list[Any] = [3, None, "class_losses", [], {}, {"event": ["class_losses"]}, {"event": "class_losses"}]
    page = Page(report(tmp_path / "r", lambda events: [*events, *odd]))
    assert "7 unusable lines of metrics.jsonl skipped." in page.text
    assert len(page.csv("-losses.csv")) == 21


def test_losses_that_are_no_numbers(tmp_path: Path) -> None:
    def change(events: list[Event]) -> list[Event]:
        lines = of_kind(events, "class_losses")
        odd = ["NaN", "0.1", None, True, [0.1], float("nan"), float("inf"), -(10**400)]
        lines[0]["losses"] = dict(zip(lines[0]["losses"], odd, strict=False))
        lines[1]["losses"] |= {next(iter(lines[1]["losses"])): "Infinity"}
        lines[2]["losses"] = {}
        return events

    html = report(tmp_path / "r", change)
    assert not re.search(r'"[^"]*\b(nan|inf)\b[^"]*"', html)
    rows = Page(html).csv("-losses.csv")[1:]
    assert [row[0] for row in rows] == [str(step) for step in range(20) if step not in (0, 2)]
    assert not any(record.values for record in read_run(tmp_path / "r").class_losses if record.step == 0)


def test_equal_losses(tmp_path: Path) -> None:
    def change(events: list[Event]) -> list[Event]:
        for event in of_kind(events, "class_losses"):
            event["losses"] = dict.fromkeys(event["losses"], 0)
        return events

    assert "mean over classes is 0, the largest 0" in report(tmp_path / "r", change)


def test_estimators(page: Page) -> None:
    header, *rows = page.csv("-estimators.csv")
    assert header == ["step", "task", "log_u_mean", "log_u_max"]
    assert len(rows) == 300
    assert all(float(row[3]) == pytest.approx(float(row[2]) + 2, abs=0.001) for row in rows)


def test_estimators_only_where_logged(tmp_path: Path) -> None:
    def empty(events: list[Event]) -> list[Event]:
        for event, odd in zip(
            of_kind(events, "step"), [{}, None, [], "x", {"log_u_mean": "NaN"}] * 4, strict=True
        ):
            event["diagnostics"] = odd
        del of_kind(events, "step")[0]["diagnostics"]
        return events

    html = report(tmp_path / "r", empty)
    assert "Estimators" not in html
    assert "Loss, gradient norm and learning rate" in html

    def one(events: list[Event]) -> list[Event]:
        empty(events)
        of_kind(events, "step")[7]["diagnostics"] = {"log_u_mean": -0.25, "log_u_max": float("inf")}
        return events

    html = report(tmp_path / "s", one)
    assert "mean −0.25" in figure(html, "Estimators of the global contrastive loss")
    assert Page(html).csv("-estimators.csv")[0] == ["step", "task", "log_u_mean"]


def test_estimators_of_many_steps_are_binned(tmp_path: Path) -> None:
    write_run(tmp_path / "r", tasks=2, per_task=3, steps=900)
    chart = figure(
        build([tmp_path / "r"], tmp_path / "r.html").read_text(), "Estimators of the global contrastive loss"
    )
    assert chart.count("fill-opacity:0.18") == chart.count("fill-opacity: 0.18") + 2 == 2
