"""Draw what charts over training steps share: the axis, and where tasks begin."""

from __future__ import annotations

from everclip.report.charts.canvas import Canvas, Panel, text_width, ticks
from everclip.report.read import RunData


def task_borders(
    run: RunData, canvas: Canvas, left: float, width: float, xs: tuple[int, int], top: float, bottom: float
) -> None:
    """A vertical line where each task begins, with its number (its name where there is room) above."""
    panel = Panel(canvas, left, top, width, bottom - top, xs, (0, 1))
    edges = [panel.x(step) for _, step in run.borders] + [left + width]
    for (stage, _), x, following in zip(run.borders, edges, edges[1:], strict=False):
        if stage:
            canvas.line(x, top - 8, x, bottom, "border")
        room = following - x - 4
        name = run.tasks[stage] if stage < len(run.tasks) else f"task {stage + 1}"
        text = name if text_width(name) < room else f"{stage + 1}"
        if text_width(text) < room:
            canvas.text(x + (following - x) / 2, top - 12, text, "dim", "middle")


def step_axis(canvas: Canvas, left: float, width: float, xs: tuple[int, int], y: float) -> None:
    """The shared horizontal axis in optimizer steps."""
    panel = Panel(canvas, left, y, width, 1, xs, (0, 1))
    canvas.line(left, y, left + width, y, "axis")
    for tick in ticks(*xs, 8 if width > 400 else 4):
        canvas.text(panel.x(tick), y + 17, f"{tick:g}", "dim", "middle")
    canvas.text(left + width, y + 33, "optimizer step", "dim", "end")
