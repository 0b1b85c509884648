"""Add hover texts to charts saved as SVG: ``<title>`` elements over points, cells and rows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backend_bases import RendererBase
from numpy.typing import ArrayLike

from everclip.plots.text import printable

_AROUND = 6.0
"""Half the side of a point's rectangle, in points."""


class Tips(Artist):
    """Invisible rectangles with hover texts, in SVG alone.

    Args:
        boxes: ``[n, 4]``, left, top, right and bottom in data coordinates; a point has no width and no height.
        texts: of the boxes.
    """

    def __init__(self, ax: Axes, boxes: ArrayLike, texts: Sequence[str]) -> None:
        super().__init__()
        self.boxes = np.asarray(boxes, dtype=np.float64).reshape(-1, 2, 2)
        self.texts = [printable(text) for text in texts]
        self.set_in_layout(False)
        self.set_zorder(10)
        ax.add_artist(self)
        self.set_clip_on(False)

    def draw(self, renderer: RendererBase) -> None:
        """Write the rectangles to an SVG."""
        writer = getattr(renderer, "writer", None)  # only the SVG backend has one
        if writer is None or self.axes is None:
            return
        _, height = renderer.get_canvas_width_height()
        for box, text in zip(self.boxes, self.texts, strict=True):
            corners = self.axes.transData.transform(box)
            if not np.isfinite(corners).all():
                continue
            (left, low), (right, high) = corners.min(0), corners.max(0)
            if left == right and low == high:
                left, low, right, high = left - _AROUND, low - _AROUND, right + _AROUND, high + _AROUND
            place = {"x": left, "y": height - high, "width": right - left, "height": high - low}
            look = {"class": "hit", "fill": "none", "pointer-events": "all"}
            writer.start("rect", attrib=look | {key: f"{value:.1f}" for key, value in place.items()})
            writer.element("title", text)
            writer.end("rect")


def at_points(ax: Axes, xs: Sequence[float], ys: Sequence[float | None], texts: Sequence[str]) -> None:
    """Add hover texts to the points whose y is not None."""
    known = [(x, y, text) for x, y, text in zip(xs, ys, texts, strict=True) if y is not None]
    if known:
        Tips(ax, [(x, y, x, y) for x, y, _ in known], [text for *_, text in known])
