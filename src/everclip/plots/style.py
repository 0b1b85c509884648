"""Look of charts: a style sheet for matplotlib, and a colour, a dash and a marker for each method.

The colours of methods are those of Okabe and Ito (2008, "Color Universal Design"), without the yellow, which is lost on
white; dashes and markers say the same again. ``matplotlib.rc_context(STYLE)`` gives the look of the report page.
"""

from __future__ import annotations

from typing import Any

from matplotlib.colors import Colormap, LinearSegmentedColormap

INK, DIM, GRID, EDGE, PAGE = "#1c2126", "#5b6570", "#dfe3e7", "#a9b1b9", "#ffffff"
FIRST, SECOND = "#0b62a4", "#b84a00"
"""Colours of a run's own line and of what stands beside it."""
ON_DARK, ON_LIGHT = "#f8f9fa", "#111111"
"""Text on a coloured cell."""
ORANGE, BLUE = "#d95f02", "#1874cd"
"""More and less than a neutral."""

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
"""Settings of matplotlib with which the page draws."""


def look(number: int | None) -> dict[str, Any]:
    """Return settings of a line in the look of this number: all differ up to 84, in colour alone up to 7; grey without
    one."""
    if number is None:
        return {"color": DIM}
    return {
        "color": COLOURS[number % len(COLOURS)],
        "linestyle": DASHES[number % len(DASHES)],
        "marker": MARKERS[number % len(MARKERS)],
    }


def diverging(strongest: float = 1.0) -> Colormap:
    """Return blue below the middle, orange above, the page's own colour at it: opacity carries the size.

    Args:
        strongest: opacity at both ends; below 0.75 text on it can be read.
    """
    stops = [(BLUE, strongest), (BLUE, 0.0), (ORANGE, 0.0), (ORANGE, strongest)]
    places = [0.0, 0.5, 0.5, 1.0]
    # An odd number of colours has one for the middle; few make small images.
    return LinearSegmentedColormap.from_list("more_or_less", list(zip(places, stops, strict=True)), N=103)
