"""Draw the figures about one run; None for those without data."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import islice

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing

from everclip.compare.groups import settings
from everclip.plots import style
from everclip.plots.accuracy import FROZEN, ZERO_SHOT, stages_panel
from everclip.plots.class_maps import HATCHED, ClassMap, loss_map, loss_strip, weight_map, weight_strips
from everclip.plots.matrix import Shown, accuracy_matrix
from everclip.plots.panels import Panel, draw, label_ends, span
from everclip.plots.text import number, shorten, text_width
from everclip.plots.training import MOST_POINTS, estimator_values, shares, step_line, steps_panel
from everclip.report.figure import WIDE, Figure, canvas, colour_bar, csv_text, fill, place, stack, write
from everclip.runs.read import ClassValues, RunData, finite
from everclip.runs.words import rivals

_MOST_CELLS = 25_000  # of a CSV file, to keep the page small
_PANEL, _STRIP = 132.0, 118.0  # px from one panel, or line chart beneath a map, to the next


def figures(run: RunData, prefix: str) -> dict[str, Figure]:
    """Return all figures that ``run`` has data for, by key; ids begin with ``prefix``."""
    kinds = (_accuracy, _matrix, weights, _losses, _curves, _estimators)
    return {figure.key: figure for make in kinds if (figure := make(run, prefix)) is not None}


def _accuracy(run: RunData, prefix: str) -> Figure | None:
    """Return A_t of the run, of the pretrained model, and of the closed form on its features."""
    (setting,) = settings([run])
    panel = stages_panel(setting, setting.every)
    if panel is None or not run.accuracy:
        return None
    method, bases = str(run.value("method") or "run"), {ZERO_SHOT: run.zero_shot, FROZEN: run.frozen_features}
    bases = {name: values for name, values in bases.items() if values}
    counts = [list(run.class_task.values()).count(t) for t in range(len(run.tasks))]
    seen, last = [sum(counts[: t + 1]) for t in range(len(run.tasks))], len(run.accuracy) - 1
    told = [f"{method} ends at {100 * run.accuracy[last]:.1f} % after {last + 1} tasks."]
    for name, values in bases.items():
        told.append(f"{name.capitalize()} at that point: {100 * values[last]:.1f} %.")

    def make(width: float) -> Drawing:
        drawing = canvas(width, 330)
        names = [method, *(name if width == WIDE else name.removesuffix(" features") for name in bases)]
        right = min(width * 0.34, 16 + max(text_width(f"{name} 00.0", 12.5) for name in names))
        ax = place(drawing, 46, 42, width - 46 - right, 226)
        room = right - 9 - text_width(" 00.0", 12.5)
        own = {"color": style.FIRST, "linestyle": "-", "marker": "o", "label": shorten(method, room)}
        styles = {panel.lines[-1].name: own}
        styles |= {ZERO_SHOT: {"color": style.SECOND}, FROZEN: {"linestyle": ":"}}
        if width < WIDE:
            styles[FROZEN]["label"] = "frozen"
        draw(panel, ax, styles=styles)
        ticks = [int(tick) for tick in ax.get_xticks() if 1 <= tick <= len(run.tasks)]
        ax.set_xticks(ticks, [f"{tick}\n{seen[tick - 1]}" for tick in ticks])
        ax.set(xlabel="tasks learned; beneath, classes learned", ylabel="")
        write(drawing, 8, 14, "accuracy on all classes learned so far", color=style.DIM)
        if len(run.tasks) <= (14 if width == WIDE else 6):
            _number_points(ax, run, list(bases.values()))
        label_ends(ax, values=lambda value: f"{value:.1f}", sample=False, size=12.5)
        return drawing

    columns: dict[str, Sequence[object]] = {
        "task": range(1, len(run.tasks) + 1),
        "name": run.tasks,
        "classes_seen": seen,
        "accuracy": run.accuracy,
        "zero_shot": run.zero_shot or [""] * len(run.tasks),
    }
    caption = (
        f"Accuracy on the test images of all tasks learned so far, {rivals([run.task_id])}"
        " (the test set grows and, with more classes, gets harder from left to right). Dashed: the pretrained model"
        " on the same images."
    )
    if run.frozen_features:
        caption += (
            " Dotted: the best of ncm, ridge and slda on the pretrained model's features, without training."
        )
        columns["frozen_features"] = run.frozen_features
    csv = csv_text(list(columns), zip(*columns.values(), strict=False))
    return Figure("accuracy", "Accuracy after each task", caption, " ".join(told), csv, make, prefix)


def _number_points(ax: Axes, run: RunData, bases: Sequence[Sequence[float]]) -> None:
    """Write the accuracy at each point but the last, away from the nearest reference."""
    for t, value in enumerate(run.accuracy[:-1]):
        nearest = min((base[t] for base in bases), key=lambda base: abs(base - value), default=-1.0)
        offset = (0, 7) if value >= nearest else (0, -16)
        text = {"xytext": offset, "textcoords": "offset points", "ha": "center", "fontsize": 10.5}
        ax.annotate(f"{100 * value:.1f}", (t + 1, 100 * value), **text)


def _matrix(run: RunData, prefix: str) -> Figure | None:
    """Return R[t, i] with the zero-shot row above and forgetting beneath."""
    if not run.matrix:
        return None
    shown = Shown.of(run)
    tasks, extra = len(shown.tasks), (1.2 if shown.base else 0.0) + 1.2

    def make(width: float) -> Drawing:
        names = [f"after {name}" for name in shown.tasks] if width == WIDE else []
        left = 12 + min(190.0, max(text_width(name) for name in [*names, "forgetting"]))
        cell = min(64.0, (width - left - 2) / (1.06 * tasks + 0.1))
        high = min(30.0, max(cell, 9.0))
        columns = zip(shown.places, shown.tasks, strict=True)
        longest = max(text_width(f"{p + 1}" if n == f"task {p + 1}" else n) for p, n in columns)
        top = 38 + (min(longest, 110.0) * 0.75 if longest > cell - 4 else 6.0)
        drawing = canvas(width, top + high * (len(shown.matrix) + extra) + 62)
        wide = min(cell * (1.012 * tasks + 0.1 + max(1.0, 0.05 * tasks)), width - left - 2)
        ax = place(drawing, left, top, wide, high * (len(shown.matrix) + extra))
        accuracy_matrix(run, ax)
        write(drawing, left, 10, "accuracy on test images of task", color=style.DIM)
        corner, bar = (left, drawing.get_figheight() * 72 - 26), min(260.0, width - left - 40)
        colour_bar(drawing, corner, bar, colormaps["cividis"], ("0 %", "50 %", "100 %"), "accuracy")
        return drawing

    rows: list[list[object]] = [["zero-shot", *shown.base, ""]] if shown.base else []
    learned = zip(shown.tasks, shown.matrix, shown.accuracy, strict=False)
    rows += [[f"after {task}", *row, all_] for task, row, all_ in learned]
    rows.append(["forgetting", *shown.forgetting, ""])
    caption = (
        "Each row is the model after one more task, each column the test images of one task (in %,"
        f" {rivals([run.task_id])}). Outlined: the task just learned. Italic: a task not learned yet, measured one"
        " ahead. Bottom row: points lost since the task's best earlier accuracy."
    )
    if shown.base:
        same = "likewise" if run.task_id else "among the classes up to it"
        caption += f" Top row: the pretrained model, on each task {same}."
    if tasks < len(run.tasks):
        caption += f" {tasks} of {len(run.tasks):,} tasks are drawn; the run's matrix.csv has all."
    told = f"{len(shown.matrix)} rows (after each task) by {tasks} columns (tasks); the numbers are in the CSV file."
    csv = csv_text(["stage", *shown.tasks, "all_seen"], rows)
    return Figure("matrix", "Accuracy per task after each task", caption, told, csv, make, prefix)


def weights(run: RunData, prefix: str) -> Figure | None:
    """Return GDRO's class weights over steps, relative to uniform, with their entropy and the largest weight."""
    found = weight_map(run)
    if found is None:
        return None
    strips = weight_strips(run)
    caption = (
        "One row per class, in the order learned: its weight in the loss as a multiple of uniform (1"
        " / number of classes learned so far). At the right: the last multiple, of only the heaviest classes if"
        " there are too many to name. Entropy is 1 when all classes have the same weight; dashed: uniform."
    )
    told = f"Normalised entropy at the end: {strips[0].lines[0].ys[-1]:.3f}."
    records = [shares(record) for record in run.class_weights]
    about = ("weights", "Class weights over time (GDRO)", caption, told)
    return _map_figure(about, found, strips, records, prefix)


def _losses(run: RunData, prefix: str) -> Figure | None:
    """Return each class's mean loss since the previous record, with the mean and the largest of them."""
    found = loss_map(run)
    if found is None:
        return None
    strip = loss_strip(run)
    largest, mean = (line.ys[-1] or 0.0 for line in strip.lines)
    caption = (
        "One row per class, in the order learned: the mean loss of its training images since the"
        " previous record (if it had none, the value of its nearest record in the task), orange above the"
        " median of the whole run, blue below, hatched if the task had no image of it. At the right: the last"
        " losses, only the largest if there are too many; below: mean and maximum (dashed) over classes in each"
        " record."
    )
    told = f"At the end the mean over classes is {number(mean)}, the largest {number(largest)}."
    about = ("losses", "Class losses over time", caption, told)
    return _map_figure(about, found, [strip], run.class_losses, prefix)


def _map_figure(
    about: tuple[str, str, str, str],
    of: ClassMap,
    strips: Sequence[Panel],
    numbers: Sequence[ClassValues],
    prefix: str,
) -> Figure:
    """Return a map with line charts beneath it.

    Args:
        about: key, title, caption, and the end of the description.
        numbers: the records for the CSV file.
    """
    (key, title, caption, told), run, rows = about, of.run, len(of.classes)

    def make(width: float) -> Drawing:
        left, right = (64.0, 150.0) if width == WIDE else (42.0, 100.0)
        right += (24.0 if width == WIDE else 18.0) if of.accuracy else 0.0
        row = min(15.0, max(110.0, min(520.0, 5.0 * rows)) / rows)
        row = max(row, min(15.0, 200.0 / rows))
        foot = 34 + row * rows + 24 + _STRIP * len(strips)
        drawing = canvas(width, foot + 78)
        ax = of.draw(place(drawing, left, 34, width - left - right, row * rows))
        ax.set_xlabel("")
        ax.tick_params(labelbottom=False)
        box = (left, 34 + row * rows + 30, width - left - right, _STRIP)
        lower = stack(drawing, run, strips, box, named=False)
        for ax, strip in zip(lower, strips, strict=True):
            ax.set_xlim(span(of.steps))
            label_ends(ax, values=lambda v, suffix=strip.suffix: number(v) + suffix, sample=False)
        ticks, corner = of.scale.ticks, (left, foot + 48)
        colour_bar(drawing, corner, 168, style.diverging(), ticks, of.scale.title, above=True)
        fill(drawing, (left + 192, foot + 48), 22, 10, **HATCHED)
        fill(drawing, (left + 192, foot + 48), 22, 10, fill=False, edgecolor=style.EDGE)
        write(drawing, left + 220, foot + 53, of.scale.missing, color=style.DIM, fontsize=10.5)
        return drawing

    thin = math.ceil(len(numbers) * rows / _MOST_CELLS)
    cells = [
        [r.step, *(f"{r.values[name]:.3g}" if name in r.values else "" for name in of.classes)]
        for r in numbers[::-thin][::-1]
    ]
    if of.accuracy:
        caption += (
            " The two columns beside the map: the accuracy on the class right after its task, and at the end."
        )
    if thin > 1:
        caption += f" The CSV file has every {thin}th record; metrics.jsonl has all."
    if rows < len(of.records[-1].values):
        caption += f" Only {rows} of the classes are drawn, evenly spaced in their order."
    told = f"{rows} classes by {len(of.records)} recorded steps; numbers in the CSV file. {told}"
    return Figure(key, title, caption, told, csv_text(["step", *of.classes], cells), make, prefix)


def _curves(run: RunData, prefix: str) -> Figure | None:
    """Return the loss terms, the gradient norm and the learning rate over steps."""
    panels: dict[str, dict[str, list[object]]] = {}
    for term in dict.fromkeys(term for step in run.steps for term in step["loss"]):
        panels[f"loss: {term}"] = {f"loss: {term}": [step["loss"].get(term) for step in run.steps]}
    for key, label in (("grad_norm", "gradient norm"), ("lr", "learning rate")):
        if any(key in step for step in run.steps):
            panels[label] = {label: [step.get(key) for step in run.steps]}
    title = "Loss, gradient norm and learning rate"
    return _stack(run, prefix, "curves", title, panels, "Vertical lines: a new task begins.")


def _estimators(run: RunData, prefix: str) -> Figure | None:
    """Return the mean and the maximum over each batch of log u (``plots.estimators``)."""
    found = estimator_values(run)
    caption = (
        "For each image-text pair the loss keeps moving averages u of how strongly the negatives"
        " compete with the pair: the lower log u, the better the pair stands out. The chart shows the mean and"
        " maximum over each batch; a maximum far above the mean comes from a few hard pairs."
    )
    title = "Estimators of the global contrastive loss"
    return _stack(run, prefix, "estimators", title, {"log u": found} if found else {}, caption)


def _stack(
    run: RunData, prefix: str, key: str, title: str, of: dict[str, dict[str, list[object]]], caption: str
) -> Figure | None:
    """Return curves one above the other; ``of`` has values per step by panel and column of the CSV file."""
    if not of:
        return None
    steps = len(run.steps)
    panels: list[Panel] = []
    for told, lines in of.items():
        names = [name.removeprefix("log_u_") if key == "estimators" else "" for name in lines]
        drawn = [step_line(run, *named, k) for k, named in enumerate(zip(names, lines.values(), strict=True))]
        panels.append(steps_panel(run, drawn, told))

    def make(width: float) -> Drawing:
        left = 56.0 if width == WIDE else 46.0
        drawing = canvas(width, 34 + _PANEL * len(panels) + 28)
        made = stack(drawing, run, panels, (left, 34.0, width - left - 14, _PANEL), named=True)
        for k, (ax, panel) in enumerate(zip(made, panels, strict=True)):
            _last_values(drawing, ax, panel, (width - 14, 40 + _PANEL * k))
        return drawing

    thin = math.ceil(steps / 1000)
    columns = {name: values for lines in of.values() for name, values in lines.items()}
    rows: list[list[object]] = []
    for k, step in islice(enumerate(run.steps), 0, None, thin):
        values = (column[k] for column in columns.values())
        texts = (f"{value:.5g}" if finite(value) else "" for value in values)
        rows.append([step["global_step"], step["stage"] + 1, *texts])
    caption += " Lines are means over neighbouring steps, bands their range." if steps > MOST_POINTS else ""
    caption += f" The CSV file has every {thin}th step; metrics.jsonl has all." if thin > 1 else ""
    told = f"{', '.join(of)} over {steps} recorded steps."
    return Figure(key, title, caption, told, csv_text(["step", "task", *columns], rows), make, prefix)


def _last_values(drawing: Drawing, ax: Axes, panel: Panel, corner: tuple[float, float]) -> None:
    """Write the last value of each curve at the right edge, in its colour where there are several."""
    if not any(y is not None for line in panel.lines for y in line.ys):
        ax.text(0.01, 0.5, "no finite value", transform=ax.transAxes, color=style.DIM)
        return
    right, y = corner
    for line in reversed(panel.lines):
        last = next(value for value in reversed(line.ys) if value is not None)
        text = f"{line.name or 'last'} {number(last)}{', log scale' if panel.log else ''}"
        look = {"color": line.settings["color"], "fontweight": "bold"} if line.name else {"color": style.DIM}
        write(drawing, right, y, text, ha="right", **look)
        right -= text_width(text, 13) + 12
