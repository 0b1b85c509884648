"""Charts as functions on Axes: they draw the runs' numbers, where they are told to, and can be restyled."""

from __future__ import annotations

import inspect
import io
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import everclip
from everclip import plots
from everclip.errors import UserError
from everclip.metrics.stats import interval
from everclip.plots.accuracy import memory_panel, stages_panel
from everclip.plots.panels import Line, Panel, draw
from everclip.plots.runs import setting_of
from everclip.plots.training import mean_curve
from everclip.report.figure import WIDE, grid
from everclip.runs.predictions import coverage, predictions
from everclip.runs.read import read_run
from tests.plots.conftest import FROZEN, SMALL
from tests.report.synthetic import write_run

CHARTS: list[Callable[..., Axes]] = [
    getattr(plots, name) for name in plots.__all__ if name not in ("STYLE", "label_ends")
]
OF_ONE = (plots.loss_terms, plots.estimators)
OF_MANY = [c for c in CHARTS if "how" in inspect.signature(c).parameters and c not in OF_ONE]


def new() -> Axes:
    return Figure(figsize=(8, 5)).add_subplot()


def results(path: Path) -> dict[str, Any]:
    return json.loads((path / "results.json").read_text())


def lines(ax: Axes) -> dict[str, Any]:
    """The lines that have a name, by it."""
    return {
        str(line.get_label()): line for line in ax.get_lines() if not str(line.get_label()).startswith("_")
    }


def ys(ax: Axes, name: str) -> list[float]:
    return np.asarray(lines(ax)[name].get_ydata(), dtype=float).tolist()


@pytest.mark.parametrize("chart", CHARTS, ids=lambda chart: chart.__name__)
def test_draws_one_run_on_the_axes_given_and_returns_them(chart: Callable[..., Axes], one: Path) -> None:
    ax = new()
    assert chart(one, ax) is ax
    assert ax.has_data()
    from matplotlib import pyplot

    assert pyplot.get_fignums() == []  # no global state


@pytest.mark.parametrize("chart", CHARTS, ids=lambda chart: chart.__name__)
def test_without_axes_makes_a_figure_of_pyplot(chart: Callable[..., Axes], one: Path) -> None:
    from matplotlib import pyplot

    ax = chart(str(one))
    assert pyplot.get_fignums() == [1]
    pyplot.close(ax.get_figure(root=True))


@pytest.mark.parametrize("chart", OF_MANY, ids=lambda chart: chart.__name__)
def test_a_memory_size_has_its_methods_and_those_without(chart: Callable[..., Axes], many: Path) -> None:
    if chart is plots.accuracy_against_memory:
        assert {"gcl", "gdro", "ncm"} <= set(lines(chart(many, new())))
        with pytest.raises(UserError, match="draws every memory"):
            chart(many, new(), memory=200)
        for name, value, meant in (("metric", "lasst", "last"), ("against", "byte", "bytes")):
            misspelt: dict[str, Any] = {name: value}
            with pytest.raises(UserError, match=f'{name} is "{value}"; did you mean "{meant}"'):
                plots.accuracy_against_memory(many, new(), **misspelt)
        return
    assert {"gcl", "gdro", "ncm"} <= set(lines(chart(many, new(), memory=200)))
    with pytest.raises(UserError, match=r'charts have no option "legends"; did you mean "legend"\?'):
        chart(many, new(), legends=False)
    with pytest.raises(UserError, match="memory=300: no run has this many exemplars; use 0, 200"):
        chart(many, new(), memory=300)
    assert {"gcl, memory 0", "gcl, memory 200", "ncm"} <= set(lines(chart(many, new())))


@pytest.mark.parametrize("metric", ["last", "average"])
def test_accuracy_against_memory_is_that_of_the_runs(many: Path, metric: Any) -> None:
    ax = plots.accuracy_against_memory(many, new(), metric=metric)
    for method in ("gcl", "gdro"):
        groups = [[results(many / f"{method}_{memory}_{s}")[metric] for s in range(3)] for memory in (0, 200)]
        assert ys(ax, method) == pytest.approx([100 * interval(values).mean for values in groups])
    level = {"last": FROZEN[-1], "average": np.mean(FROZEN)}[metric]
    assert ys(ax, "frozen features") == pytest.approx([100 * level] * 2)
    assert ys(ax, "ncm") == pytest.approx([100 * results(many / "ncm")[metric]] * 2)
    assert ("joint" in lines(ax)) == (metric == "last")
    assert [label.get_text() for label in ax.get_xticklabels()] == ["0", "200"]
    order = [text.get_text() for text in ax.get_legend().get_texts()]  # pyright: ignore[reportOptionalMemberAccess]
    assert order[:2] == ["zero-shot", "frozen features"]
    assert order[-3:] == ["ncm", "gcl", "gdro"]
    three = [interval([results(many / f"gdro_0_{s}")[metric] for s in range(3)])]
    bars = [bar.get_segments()[0][:, 1] for bar in ax.collections]  # pyright: ignore[reportAttributeAccessIssue]
    ends = [100 * (three[0].low or 0), 100 * (three[0].high or 0)]
    assert any(sorted(bar) == pytest.approx(ends) for bar in bars)


def seeds(folder: Path, method: str, lasts: list[float], memory: int = 0) -> None:
    """Write a run per last accuracy."""
    for seed, last in enumerate(lasts):
        path = folder / f"{method}_{memory}_{seed}"
        found = write_run(path, method=method, seed=seed, memory=memory, **SMALL)
        found |= {"last": last, "memory_bytes": 1000 * memory}
        (path / "results.json").write_text(json.dumps(found))


def spread(panel: Panel | None) -> dict[str, list[float]]:
    """The width of each bar of a panel's lines."""
    assert panel is not None
    bars = {line.name: [bar for bar in line.spans if bar is not None] for line in panel.lines}
    return {name: [high - low for low, high in spans] for name, spans in bars.items() if spans}


def test_bars_are_ranges_while_a_group_has_two_seeds(tmp_path: Path) -> None:
    """Also where other seeds are equal, so that rounding puts their mean beside them."""
    seeds(tmp_path, "gcl", [0.5, 0.6], memory=200)
    seeds(tmp_path, "gdro", [0.175] * 3, memory=200)
    found = spread(memory_panel(setting_of(tmp_path), "last", "images"))
    assert found == {"gcl": [pytest.approx(10)], "gdro": [0]}
    assert lines(plots.accuracy_against_memory(tmp_path, new())).keys() >= {"gcl", "gdro"}


@pytest.mark.parametrize("method", ["joint", "ncm"])
def test_two_seeds_of_what_has_no_spread_leave_the_intervals_of_others(method: str, tmp_path: Path) -> None:
    """References have no bars, and a closed form gives the same with every seed."""
    lasts = [0.5, 0.55, 0.6]
    seeds(tmp_path, "gcl", lasts, memory=200)
    seeds(tmp_path, method, [0.8, 0.8])
    span = interval(lasts)
    for against in ("images", "bytes"):
        found = spread(memory_panel(setting_of(tmp_path), "last", against))
        assert found["gcl"] == [pytest.approx(100 * ((span.high or 0) - (span.low or 0)))]


def test_variants_of_joint_training_have_dashes_of_their_own(many: Path, tmp_path: Path) -> None:
    shutil.copytree(many, tmp_path / "runs")
    for loss in ("gcl", "gdro"):
        options: dict[str, Any] = SMALL | {"options": f'loss = "{loss}"\n'}
        write_run(tmp_path / f"runs/joint-{loss}", method="joint", memory=0, **options)
    setting = setting_of(tmp_path / "runs")
    for panel in (memory_panel(setting, "last", "images"), stages_panel(setting, setting.groups)):
        assert panel is not None
        dashes = [str(line.settings["linestyle"]) for line in panel.lines if line.name.startswith("joint")]
        assert len(set(dashes)) == len(dashes) == 3


def test_bytes_are_the_other_axis(many: Path) -> None:
    ax = plots.accuracy_against_memory(many, new(), against="bytes")
    first, second = (results(many / f"gdro_{memory}_0") for memory in (0, 200))
    kept = [one["memory_bytes"] + one["state_bytes"] for one in (first, second)]
    assert lines(ax)["gdro"].get_xdata() == pytest.approx(np.log10(kept))
    assert "1 MB" in [label.get_text() for label in ax.get_xticklabels()]


def test_after_each_task_is_the_mean_over_seeds(many: Path, one: Path) -> None:
    ax = plots.after_each_task(many, new(), memory=0)
    curves = [results(many / f"gcl_0_{seed}")["accuracy_after_stage"] for seed in range(3)]
    assert ys(ax, "gcl") == pytest.approx(100 * np.mean(curves, axis=0))
    assert ys(ax, "frozen features") == pytest.approx([70, 65, 60])
    ax = plots.after_each_task(one, new())
    assert ys(ax, "gdro") == pytest.approx([100 * value for value in results(one)["accuracy_after_stage"]])


def test_the_matrix_has_each_number(one: Path) -> None:
    ax = plots.accuracy_matrix(one, new())
    known = results(one)
    shown = {text.get_text() for text in ax.texts}
    for value in [v for row in known["matrix"] for v in row if v is not None] + known["zero_shot_per_task"]:
        assert f"{100 * value:.1f}" in shown
    for value in read_run(one).forgetting[:-1]:
        assert value is not None
        assert f"{100 * value:.1f}".replace("-", "−") in shown
    (map_,) = plots.task_heatmap(one, new()).images
    drawn = np.ma.MaskedArray(map_.get_array()).filled(np.nan)
    assert drawn == pytest.approx(np.array(known["matrix"], dtype=float), nan_ok=True)
    (map_,) = plots.task_heatmap(known["matrix"], new(), of="forgetting").images
    assert map_.get_array()[-1, 0] == pytest.approx(read_run(one).forgetting[0])  # pyright: ignore[reportOptionalSubscript]


def test_the_map_of_forgetting_is_the_mean_of_what_each_seed_has_forgotten(tmp_path: Path) -> None:
    """Task 1 was best after another task with each seed: its mean never was that good."""
    for seed, (first, second) in enumerate(((0.5, 0.9), (0.9, 0.5))):
        path = tmp_path / f"{seed}"
        found = write_run(path, seed=seed, **SMALL)
        found["matrix"] = [[first, None, None], [second, 0.5, None], [0.6, 0.5, 0.5]]
        (path / "results.json").write_text(json.dumps(found))
    (map_,) = plots.task_heatmap(tmp_path, new(), of="forgetting").images
    drawn = np.ma.MaskedArray(map_.get_array()).filled(np.nan)
    assert drawn == pytest.approx(np.array([[0.0, np.nan], [0.3, 0.0]]), nan_ok=True)


def test_single_classes_are_worst_first(one: Path) -> None:
    ax = plots.per_class(one, new(), most=5)
    rows = sorted(results(one)["per_class"], key=lambda row: (row["last"], row["class"]))[:5]
    for name, key in (
        ("at the end", "last"),
        ("after its task", "after_learning"),
        ("zero-shot", "zero_shot"),
    ):
        assert lines(ax)[name].get_xdata() == pytest.approx([100 * row[key] for row in rows])


def test_confidence_is_that_of_the_predictions(one: Path) -> None:
    found = predictions(read_run(one))
    assert found is not None
    assert ys(plots.confidence(one, new()), "gdro") == pytest.approx([100 * v for v in coverage(found, 20)])


def test_steps_are_those_of_the_log(one: Path) -> None:
    run = read_run(one)
    norms = [step["grad_norm"] for step in run.steps]
    assert ys(plots.gradient_norm(one, new()), "gdro") == pytest.approx(norms)
    ax = plots.loss_terms(one, new())
    assert set(lines(ax)) == {"gdro", "anchor"}
    assert ys(ax, "anchor") == pytest.approx([step["loss"]["anchor"] for step in run.steps])
    ax = plots.estimators(one, new())
    found = np.array(ys(ax, "mean"))
    assert found[np.isfinite(found)] == pytest.approx([s["diagnostics"]["log_u_mean"] for s in run.steps])
    assert np.isnan(found).sum() == 2  # a gap where a task begins


@pytest.mark.parametrize("chart", [plots.gradient_norm, plots.loss_terms, plots.class_weights])
def test_a_single_step_stands_in_the_middle(chart: Callable[..., Axes], tmp_path: Path) -> None:
    write_run(tmp_path / "short", tasks=1, per_task=2, steps=1)
    low, high = chart(tmp_path / "short", new()).get_xlim()
    assert high - low == 1


def test_can_be_restyled(many: Path) -> None:
    styles = {"gdro": {"color": "red", "label": "ours", "linewidth": 5}}
    ax = plots.accuracy_against_memory(many, new(), styles=styles)
    line = lines(ax)["ours"]
    assert (line.get_color(), line.get_linewidth()) == ("red", 5)
    assert "ours" in [text.get_text() for text in ax.get_legend().get_texts()]  # pyright: ignore[reportOptionalMemberAccess]
    with matplotlib.rc_context(plots.STYLE):
        assert not plots.after_each_task(many, new()).spines["top"].get_visible()
    assert plots.after_each_task(many, new(), legend=False).get_legend() is None


def test_takes_rows_and_frames_of_load_runs(many: Path) -> None:
    rows = everclip.load_runs(many)
    expected = ys(plots.accuracy_against_memory(many, new()), "gdro")
    assert ys(plots.accuracy_against_memory(rows, new()), "gdro") == expected
    assert ys(plots.accuracy_against_memory(f"{many}/g*", new()), "gdro") == expected
    frame = pytest.importorskip("pandas").DataFrame(rows)
    assert ys(plots.accuracy_against_memory(frame, new()), "gdro") == expected


def test_what_cannot_be_drawn_is_said(many: Path, tmp_path: Path) -> None:
    write_run(tmp_path / "other", data="imagefolder:other", **SMALL)
    with pytest.raises(UserError, match="these runs differ in data: their numbers cannot be compared"):
        plots.accuracy_against_memory([many, tmp_path / "other"], new())
    with pytest.raises(UserError, match="this chart shows one run, and 15 are given"):
        plots.class_weights(many, new())
    with pytest.raises(UserError, match="does not exist: give a run directory"):
        plots.class_weights(tmp_path / "nothing", new())
    with pytest.raises(UserError, match="losses of different methods have no common scale"):
        plots.loss_terms(many, new())
    with pytest.raises(UserError, match="differ in their seed alone, and these are gcl, memory 0, gcl"):
        plots.task_heatmap(many, new())
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "config.toml").write_text('data = "x"\n[method]\nname = "gdro"\n')
    for chart in CHARTS:
        with pytest.raises(UserError, match="there is nothing to draw"):
            chart(tmp_path / "new", new())


def test_hover_texts_are_in_svg_alone(one: Path) -> None:
    figure = Figure(figsize=(8, 5))
    plots.accuracy_matrix(one, figure.add_subplot())
    files = {ending: io.BytesIO() for ending in ("svg", "pdf", "png")}
    for ending, file in files.items():
        figure.savefig(file, format=ending)
    last = results(one)["matrix"][-1][0]
    svg = files["svg"].getvalue().decode()
    assert f"<title>after task 3: task 1: {100 * last:.1f} %</title>" in svg
    assert b"after task 3: task 1" not in files["pdf"].getvalue()


def test_the_unit_of_a_hover_text_does_not_depend_on_names(tmp_path: Path) -> None:
    found = write_run(tmp_path / "run", **SMALL)
    found["tasks"][0] = "viewpoints"
    (tmp_path / "run" / "results.json").write_text(json.dumps(found))
    file, figure = io.BytesIO(), Figure(figsize=(8, 5))
    plots.accuracy_matrix(tmp_path / "run", figure.add_subplot())
    figure.savefig(file, format="svg")
    svg = file.getvalue().decode()
    first, lost = found["matrix"][0][0], read_run(tmp_path / "run").forgetting[0]
    assert lost is not None
    assert f"<title>after viewpoints: viewpoints: {100 * first:.1f} %</title>" in svg
    assert f"<title>viewpoints: points lost since its best: {100 * lost:.1f}</title>" in svg


def test_labels_at_the_ends_do_not_collide(many: Path) -> None:
    ax = plots.accuracy_against_memory(many, new(), legend=False)
    plots.label_ends(ax, values=lambda value: f"{value:.1f}")
    texts = [text for text in ax.texts if text.get_text()]
    assert len(texts) == len(lines(ax)) == 6
    height = ax.get_window_extent().height
    heights = sorted(text.get_position()[1] * height for text in texts)
    assert np.diff(heights).min() * 72 / 100 >= 14
    assert all(re.search(r" \d+\.\d$", text.get_text()) for text in texts)


def test_names_are_never_mathematics_and_never_hidden() -> None:
    odd = ["$x_{", "_hidden", "a\x00b", "bad\udcff"]
    drawn = [Line(name, k, [0, 1], [k, k + 1]) for k, name in enumerate(odd)]
    figure = Figure()
    ax = draw(
        Panel(drawn, (0, 1), (0, 9), ticks=[(0, "$y_{")], title="$z_{"), figure.add_subplot(), legend=True
    )
    plots.label_ends(ax)
    figure.savefig(io.BytesIO(), format="svg")
    shown = [text.get_text().strip("\u200b") for text in ax.get_legend().get_texts()]  # pyright: ignore[reportOptionalMemberAccess]
    assert shown == ["$x_{", "_hidden", "a b", "bad\\udcff"]


def test_a_name_that_matplotlib_would_hide_is_in_the_legend_of_several_panels() -> None:
    panel = Panel(
        [Line(name, k, [0, 1], [k, k + 1]) for k, name in enumerate(["_mine.py", "other"])], (0, 1), (0, 9)
    )
    assert "_mine.py" in {text.get_text() for text in grid([panel, panel], WIDE).texts}


def test_every_marker_and_dash_differs() -> None:
    from everclip.plots.style import look

    looks = {tuple(map(str, look(k).values())) for k in range(84)}
    assert len(looks) == 84
    assert len({(look(k)["color"], str(look(k)["linestyle"])) for k in range(28)}) == 28


def test_importing_everclip_imports_no_charts() -> None:
    code = "import sys, everclip; everclip.load_runs; print('matplotlib' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_a_mean_over_seeds_is_over_runs_of_nearly_one_length() -> None:
    longest, shorter, begun = (
        ([0.0, 5.0, 10.0], [1.0, 2.0, 3.0]),
        ([0.0, 9.0], [3.0, 3.0]),
        ([0.0, 4.0], [9.0, 9.0]),
    )
    assert mean_curve([longest, shorter, None, begun]) == ([0.0, 5.0, 10.0], [2.0, 2.5, 3.0])
