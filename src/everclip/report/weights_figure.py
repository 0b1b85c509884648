"""GDRO's class weights over time: a class x step heatmap around uniform, with entropy and largest weight."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence

import numpy as np
from markupsafe import Markup
from PIL import Image

from everclip.report.read import Json, RunData
from everclip.report.svg import (
    BLUE,
    ORANGE,
    WIDE,
    Canvas,
    Figure,
    Panel,
    both,
    csv_address,
    shorten,
    spread,
    step_axis,
    task_borders,
    text_width,
)

_OCTAVES = 3.0  # class weights are coloured from 1/8 to 8 times uniform
_MOST_CELLS = 25_000  # of the CSV file, which would otherwise outweigh the page


def class_weights(run: RunData, prefix: str) -> Figure | None:
    """GDRO's weight of each class over steps, as a ratio to uniform; entropy and largest weight beneath."""
    if not run.class_weights:
        return None
    snapshots = [_Snapshot(event) for event in run.class_weights]
    seen = {name for snapshot in snapshots for name in snapshot.share}
    classes = [name for name in run.classes if name in seen] or sorted(seen)
    thin = math.ceil(len(snapshots) * len(classes) / _MOST_CELLS)
    rows = [
        [s.step, *(f"{s.share[name]:.3g}" if name in s.share else "" for name in classes)]
        for s in snapshots[::-thin][::-1]
    ]
    return Figure(
        "weights",
        "Class weights over time (GDRO)",
        "One row a class, in the order learned: the weight that the loss gives it, as a multiple of uniform"
        " (1 / number of classes learned so far). At the right: the last multiple, of the heaviest classes"
        " where there are too many to name. Entropy is 1 when all classes weigh the same; dashed: uniform."
        + (f" The CSV file has every {thin}th record; metrics.jsonl has all." if thin > 1 else ""),
        *both(lambda width, ident: _Weights(run, snapshots, classes, width, ident).draw(), prefix, "weights"),
        csv_address(["step", *classes], rows),
    )


class _Snapshot:
    """The class weights at one step, scaled to sum to one."""

    def __init__(self, event: Json) -> None:
        self.step, self.stage = int(event["global_step"]), int(event["stage"])
        weights = {str(name): float(weight) for name, weight in event["weights"].items()}
        total = math.fsum(weights.values())
        self.share = {
            name: weight / total if total > 0 else 1 / len(weights) for name, weight in weights.items()
        }

    def ratio(self, name: str) -> float:
        """Weight as a multiple of uniform; NaN for a class not learned yet."""
        return self.share[name] * len(self.share) if name in self.share else math.nan

    @property
    def entropy(self) -> float:
        """Shannon entropy divided by its largest value, so in 0..1 whatever the number of classes."""
        if len(self.share) < 2:
            return 1.0
        return -math.fsum(p * math.log(p) for p in self.share.values() if p > 0) / math.log(len(self.share))


class _Weights:
    """Geometry and drawing of the class weight figure."""

    def __init__(
        self, run: RunData, snapshots: Sequence[_Snapshot], classes: Sequence[str], width: float, ident: str
    ) -> None:
        self.run, self.snapshots, self.classes, self.wide = run, snapshots, classes, width == WIDE
        self.left, self.right = (64.0, 150.0) if self.wide else (42.0, 92.0)
        self.plot = width - self.left - self.right
        self.row = min(15.0, max(110.0, min(520.0, 5.0 * len(classes))) / len(classes))
        self.row = max(self.row, min(15.0, 200.0 / len(classes)))
        self.top = 34.0
        self.bottom = self.top + self.row * len(classes)
        steps = [int(step["global_step"]) for step in run.steps] + [snapshot.step for snapshot in snapshots]
        self.steps = (min(steps), max(steps))
        self.canvas = Canvas(
            width,
            self.bottom + 248 + 92,
            ident=ident,
            title="Class weights over time (GDRO)",
            description=f"{len(classes)} classes by {len(snapshots)} recorded steps; numbers in the CSV file."
            f" Normalised entropy at the end: {snapshots[-1].entropy:.3f}.",
        )

    def draw(self) -> Canvas:
        canvas = self.canvas
        below = self.bottom + 158 + 12 + 74 + 4
        axes = (self.run, canvas, self.left, self.plot, self.steps)
        self._not_yet()
        canvas.add(
            "image",
            href=self._image(),
            x=self.left,
            y=self.top,
            width=self.plot,
            height=self.bottom - self.top,
            preserveAspectRatio="none",
            class_="pixels",
        )
        self._groups()
        self._class_names()
        task_borders(*axes, self.top, below)
        x = [snapshot.step for snapshot in self.snapshots]
        self._curve(self.bottom + 40, "entropy / its maximum", x, [s.entropy for s in self.snapshots], None)
        largest = [100 * max(s.share.values()) for s in self.snapshots]
        uniform = [100 / len(s.share) for s in self.snapshots]
        self._curve(self.bottom + 158, "largest class weight", x, largest, uniform)
        step_axis(canvas, self.left, self.plot, self.steps, below)
        self._legend(below + 58)
        return canvas

    def _image(self) -> str:
        """A pixel row a class, a column a step (at most 600), each showing the stage's nearest snapshot."""
        low, high = self.steps
        borders = self.run.borders
        columns = []
        for step in np.linspace(low, high, min(600, high - low + 1)):
            stage = max((s for s, first in borders if first <= step), default=borders[0][0])
            of_stage = [s for s in self.snapshots if s.stage == stage] or self.snapshots
            nearest = min(of_stage, key=lambda s: abs(s.step - step))
            columns.append([nearest.ratio(name) for name in self.classes])
        file = io.BytesIO()
        Image.fromarray(_ratio_colours(np.array(columns).T)).save(file, "PNG", optimize=True)
        return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()

    def _blocks(self) -> list[tuple[int, int, int]]:
        """(task, first row, last row + 1) of neighbouring classes that one task teaches."""
        blocks: list[tuple[int, int, int]] = []
        for row, name in enumerate(self.classes):
            task = self.run.class_task.get(name, 0)
            if blocks and blocks[-1][0] == task:
                blocks[-1] = (task, blocks[-1][1], row + 1)
            else:
                blocks.append((task, row, row + 1))
        return blocks

    def _not_yet(self) -> None:
        """Hatch the part of each row before its class is learned."""
        ident = f"{self.canvas.ident}-hatch"
        lines = Markup('<path d="M-1 7L7 -1M5 7L7 5M-1 1L1 -1" class="hatch"/>')
        self.canvas.add("pattern", lines, id=ident, width=6, height=6, patternUnits="userSpaceOnUse")
        panel = Panel(self.canvas, self.left, self.top, self.plot, 1, self.steps, (0, 1))
        begins = dict(self.run.borders)
        for task, first, end in self._blocks():
            width = panel.x(begins[task]) - self.left if task in begins else 0.0
            if width > 0:
                y, height = self.top + self.row * first, self.row * (end - first)
                self.canvas.rect(self.left, y, width, height, fill=f"url(#{ident})")

    def _groups(self) -> None:
        canvas = self.canvas
        canvas.rect(self.left, self.top, self.plot, self.bottom - self.top, class_="axis")
        for task, first, end in self._blocks():
            y = self.top + self.row * first
            if first:
                canvas.line(self.left - 5, y, self.left + self.plot, y, "border")
            if self.row * (end - first) >= 11 and len(self._blocks()) > 1:
                name = self.run.tasks[task]
                label = name if text_width(name) <= self.left - 9 else f"{task + 1}"
                canvas.text(self.left - 8, y + self.row * (end - first) / 2 + 4, label, "dim", "end")

    def _class_names(self) -> None:
        """Name the heaviest classes at the right edge (all of them where rows are high enough)."""
        last, canvas, edge = self.snapshots[-1], self.canvas, self.left + self.plot
        here = [name for name in self.classes if name in last.share]
        chosen = here if self.row >= 12 else sorted(here, key=last.ratio, reverse=True)[:8]
        chosen = [name for name in self.classes if name in chosen]
        centre = {name: self.top + self.row * (row + 0.5) for row, name in enumerate(self.classes)}
        for name, y in zip(
            chosen, spread((centre[n] for n in chosen), 14, self.top + 6, self.bottom - 4), strict=True
        ):
            ratio = last.ratio(name)
            canvas.line(edge + 1, centre[name], edge + 8, y, "border")
            canvas.text(edge + 11, y + 4, f"{ratio:.0f}×" if ratio >= 10 else f"{ratio:.1f}×", "strong")
            canvas.text(edge + 48, y + 4, shorten(name, self.right - 50))
        for name in self.classes:
            tip = name if name not in last.share else f"{name}: {last.ratio(name):.2f} × uniform at the end"
            canvas.rect(self.left, centre[name] - self.row / 2, self.plot, self.row, class_="hit", tip=tip)

    def _curve(
        self, top: float, title: str, x: Sequence[int], y: Sequence[float], other: Sequence[float] | None
    ) -> None:
        suffix = " %" if other else ""
        low = 0.0 if other or min(y) < 0.5 else math.floor(10 * min(y)) / 10
        high = 1.0 if other is None else 1.05 * max([*y, *other])
        panel = Panel(self.canvas, self.left, top + 12, self.plot, 74, self.steps, (min(low, 0.9), high))
        panel.grid(3, suffix)
        stages = [snapshot.stage for snapshot in self.snapshots]
        lift = {k for k in range(1, len(x)) if stages[k] != stages[k - 1]}
        if other:
            panel.path(x, other, "line s2 dash", lift)
        panel.path(x, y, "line s1", lift)
        self.canvas.text(self.left, top, title, "strong halo")
        ends = [(y[-1], "c1", "")] + ([(other[-1], "c2", "uniform")] if other else [])
        at = spread((panel.y(value) + 4 for value, _, _ in ends), 15, top + 12, top + 90)
        for (value, class_, word), where in zip(ends, at, strict=True):
            self.canvas.text(self.left + self.plot + 8, where, f"{word} {value:.3g}{suffix}".strip(), class_)

    def _legend(self, y: float) -> None:
        canvas, width = self.canvas, 168.0
        ident = f"{canvas.ident}-ratio"
        colours = _ratio_colours(2.0 ** np.linspace(-_OCTAVES, _OCTAVES, 13))
        stops = Markup("").join(
            Markup('<stop offset="{:.1f}%" stop-color="rgb({},{},{})" stop-opacity="{:.2f}"/>').format(
                100 * k / 12, *rgba[:3], rgba[3] / 255
            )
            for k, rgba in enumerate(colours.tolist())
        )
        canvas.add("linearGradient", stops, id=ident)
        canvas.rect(self.left, y, width, 10, fill=f"url(#{ident})")
        canvas.rect(self.left, y, width, 10, class_="border")
        for k, label in enumerate(("⅛", "¼", "½", "1", "2", "4", "8")):
            canvas.text(self.left + width * k / 6, y + 23, label, "dim small", "middle")
        canvas.text(self.left, y - 6, "weight / uniform weight", "dim small")
        canvas.rect(self.left + width + 24, y, 22, 10, fill=f"url(#{canvas.ident}-hatch)")
        canvas.rect(self.left + width + 24, y, 22, 10, class_="border")
        canvas.text(self.left + width + 52, y + 9, "not learned yet", "dim small")


def _ratio_colours(ratio: np.ndarray) -> np.ndarray:
    """RGBA uint8 of weight / uniform: transparent at 1, orange above, blue below; NaN is transparent.

    Opacity carries the size, so the neutral colour is the page's own, light or dark.
    """
    octaves = np.nan_to_num(np.log2(np.clip(ratio, 2**-_OCTAVES, 2**_OCTAVES)))
    colour = np.where((octaves > 0)[..., None], ORANGE, BLUE)
    opacity = np.round(255 * np.abs(octaves) / _OCTAVES)
    return np.concatenate([colour, opacity[..., None]], axis=-1).astype(np.uint8)
