"""Define the look of charts: a style sheet for matplotlib, and the colour, dash and marker of each method.

The colours are those of Okabe and Ito (2008, "Color Universal Design"), without yellow, which is hard to see on
white. ``matplotlib.rc_context(STYLE)`` gives the look of the report page.
"""

from __future__ import annotations

from typing import Any

from matplotlib.colors import Colormap, LinearSegmentedColormap

INK, DIM, GRID, EDGE, PAGE = "#1c2126", "#5b6570", "#dfe3e7", "#a9b1b9", "#ffffff"
FIRST, SECOND = "#0b62a4", "#b84a00"
"""Colours of a run's own line, and of a second one."""
ON_DARK, ON_LIGHT = "#f8f9fa", "#111111"
"""Colours of text on dark and on light cells."""
ORANGE, BLUE = "#d95f02", "#1874cd"
"""Colours of values above and below a neutral one."""

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", INK)
DASHES = ("-", (0, (3.5, 2)), (0, (1, 1.5)), (0, (4.5, 1.5, 1, 1.5)))
MARKERS = ("o", "s", "^", "D", "v", "P")

STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 12,
    "text.color": INK,
    "axes.axisbelow": True,
    "axes.edgecolor": DIM,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.labelcolor": DIM,
    "axes.labelsize": 10.5,
    "axes.linewidth": 1,
    "axes.spines.left": False,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "figure.facecolor": "none",
    "grid.color": GRID,
    "grid.linewidth": 1,
    "hatch.color": GRID,
    "lines.linewidth": 2,
    "lines.markersize": 7,
    "xtick.bottom": False,
    "xtick.color": DIM,
    "ytick.color": DIM,
    "ytick.left": False,
    "pdf.fonttype": 42,
    "svg.fonttype": "none",
}
"""Settings of matplotlib for the report page."""


def look(number: int | None) -> dict[str, Any]:
    """Return the settings of a line by its number, distinct up to 84, and in colour up to 7; grey for None."""
    if number is None:
        return {"color": DIM}
    return {
        "color": COLOURS[number % len(COLOURS)],
        "linestyle": DASHES[number % len(DASHES)],
        "marker": MARKERS[number % len(MARKERS)],
    }


def diverging(strongest: float = 1.0) -> Colormap:
    """Return a colour map from blue to orange, transparent in the middle.

    Args:
        strongest: opacity at both ends; text is readable up to 0.75.
    """
    stops = [(0.0, (BLUE, strongest)), (0.5, (BLUE, 0.0)), (0.5, (ORANGE, 0.0)), (1.0, (ORANGE, strongest))]
    # An odd number of colours has one for the middle; few make small images.
    return LinearSegmentedColormap.from_list("more_or_less", stops, N=103)
