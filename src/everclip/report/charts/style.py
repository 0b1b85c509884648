"""Style charts: CSS classes in place of fixed colours, and the looks of the lines that stand for methods.

The page turns the classes dark, light or printable without a second copy of a chart; ``FIGURE_CSS`` carries the light
colours as fallbacks, which a downloaded SVG and the PDF files show. Methods have the colours of Okabe and Ito (2008,
"Color Universal Design"), without the yellow, which is lost on white; dashes and markers say the same again.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "var(--ink, #1c2126)")
DASHES = ("none", "7 4", "2 3", "9 3 2 3")

FIGURE_CSS = """
svg.fig { font: 12px system-ui, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
svg.fig text { fill: var(--ink, #1c2126); }
svg.fig text.dim { fill: var(--dim, #5b6570); }
svg.fig text.strong { font-weight: 650; }
svg.fig text.halo { paint-order: stroke; stroke: var(--page, #fff); stroke-width: 5px; }
svg.fig text.small { font-size: 10.5px; }
svg.fig text.cell { font-size: 10.5px; text-anchor: middle; }
svg.fig text.onlight { fill: #111; }
svg.fig text.ondark { fill: #fff; }
svg.fig text.onpage { fill: var(--page, #fff); }
svg.fig text.ahead { font-style: italic; }
svg.fig text.c1 { fill: var(--c1, #0b62a4); font-weight: 650; }
svg.fig text.c2 { fill: var(--c2, #b84a00); font-weight: 650; }
svg.fig .grid { stroke: var(--grid, #dfe3e7); stroke-width: 1; fill: none; }
svg.fig .axis { stroke: var(--dim, #5b6570); stroke-width: 1; fill: none; }
svg.fig .border { stroke: var(--edge, #a9b1b9); stroke-width: 1; fill: none; }
svg.fig .seam { stroke: var(--seam, #fff); stroke-width: 1; }
svg.fig .line { fill: none; stroke-width: 2; stroke-linejoin: round; stroke-linecap: round; }
svg.fig .thin { fill: none; stroke-width: 1.4; stroke-linejoin: round; }
svg.fig .s1 { stroke: var(--c1, #0b62a4); }
svg.fig .s2 { stroke: var(--c2, #b84a00); }
svg.fig .sdim { stroke: var(--dim, #5b6570); }
svg.fig .dash { stroke-dasharray: 5 4; }
svg.fig .dots { stroke-dasharray: 1.5 3.5; }
svg.fig .whisker { stroke-width: 1.4; stroke-opacity: .6; }
svg.fig .faint { fill-opacity: .5; }
svg.fig .f1 { fill: var(--c1, #0b62a4); }
svg.fig .f2 { fill: var(--c2, #b84a00); }
svg.fig .fdim { fill: var(--dim, #5b6570); }
svg.fig .band { fill-opacity: .18; stroke: none; }
svg.fig .hit { fill: transparent; stroke: none; }
svg.fig .hit:hover { stroke: var(--ink, #1c2126); stroke-width: 1; }
svg.fig .frame { fill: none; stroke: var(--ink, #1c2126); stroke-width: 1.6; }
svg.fig .hatch { stroke: var(--grid, #dfe3e7); stroke-width: 1.5; }
svg.fig .pixels { image-rendering: pixelated; }
svg.fig .cells { image-rendering: pixelated; }
"""

FIGURE_CSS += "".join(
    f"svg.fig .so{k} {{ stroke: {colour}; }}\nsvg.fig .fo{k} {{ fill: {colour}; }}\n"
    for k, colour in enumerate(COLOURS)
)
FIGURE_CSS += "".join(
    f"svg.fig .d{k} {{ stroke-dasharray: {dash}; }}\n" for k, dash in enumerate(DASHES) if dash != "none"
)


def light(css: str) -> str:
    """The style sheet for programs that know no CSS variables: the light colours in their place."""
    return re.sub(r"var\(--\w+, ([^)]+)\)", r"\1", css)


def stroke(look: int) -> str:
    """Classes of a line in the look of this number: all differ up to 28, in colour alone up to 7."""
    return f"so{look % len(COLOURS)} d{look % len(DASHES)}"


def fill(look: int) -> str:
    """The class of what is filled in the colour of this look."""
    return f"fo{look % len(COLOURS)}"


SHAPES: tuple[Sequence[tuple[float, float]], ...] = (
    (),
    ((-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)),
    ((0, -1.2), (1.15, 0.8), (-1.15, 0.8)),
    ((0, -1.3), (1.2, 0), (0, 1.3), (-1.2, 0)),
    ((0, 1.2), (1.15, -0.8), (-1.15, -0.8)),
    (
        *((-0.4, -1.1), (0.4, -1.1), (0.4, -0.4), (1.1, -0.4), (1.1, 0.4), (0.4, 0.4)),
        *((0.4, 1.1), (-0.4, 1.1), (-0.4, 0.4), (-1.1, 0.4), (-1.1, -0.4), (-0.4, -0.4)),
    ),
)
"""Corners of the markers, in half widths around the point; the first is a disc."""


def corners(look: int) -> Sequence[tuple[float, float]]:
    """Corners of the look's marker; none for the disc."""
    return SHAPES[look % len(SHAPES)]
