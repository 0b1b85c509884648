"""Draw what becomes of test images of old classes: right, or taken for a class of a later, same or earlier task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from everclip.report.charts.canvas import WIDE, Canvas, Figure, both, csv_text, shorten, text_width
from everclip.report.predictions import FATES, fates
from everclip.report.read import RunData

_COLOURS = ("fo0", "fo1", "fdim", "fo4")  # of FATES
_INK = ("ondark", "ondark", "onpage", "onlight")
_HIGH, _STEP = 18.0, 26.0


def old_images(named: Sequence[tuple[str, Sequence[RunData]]], prefix: str) -> Figure | None:
    """A bar for each name: the mean over its runs of the fractions of ``FATES``."""
    bars = [
        (name, [float(share) for share in np.mean(known, axis=0)])
        for name, runs in named
        if (known := [shares for run in runs if (shares := fates(run)) is not None])
    ]
    if not bars:
        return None
    title = "What old classes are taken for"
    return Figure(
        "fates",
        title,
        "Test images of all classes but the last task's, after the last task: the share (in %) that is right, and"
        " what the others are taken for. A lean to new classes shows as a long second part.",
        *both(_Bars(title, bars).draw, prefix, "fates"),
        csv_text(
            ["group", *FATES], [[name, *(round(share, 5) for share in shares)] for name, shares in bars]
        ),
    )


@dataclass(frozen=True)
class _Bars:
    title: str
    bars: Sequence[tuple[str, Sequence[float]]]

    def draw(self, width: float, ident: str) -> Canvas:
        longest = max(text_width(name) for name, _ in self.bars)
        left = min(longest + 12, 0.4 * width)
        entries = [20.0 * k for k in range(len(FATES))] if width != WIDE else [0.0] * len(FATES)
        top = 16 + entries[-1] + 10
        canvas = Canvas(
            width,
            top + _STEP * len(self.bars),
            ident=ident,
            title=self.title,
            description=f"{len(self.bars)} bars; the numbers are in the CSV file.",
        )
        x = 0.0
        for colour, text, y in zip(_COLOURS, FATES, entries, strict=True):
            canvas.rect(x, y + 2, 14, 12, class_=colour)
            canvas.text(x + 20, y + 12, text)
            x += text_width(text) + 44 if width == WIDE else 0.0
        for k, (name, shares) in enumerate(self.bars):
            y = top + _STEP * k
            canvas.text(left - 8, y + 13, shorten(name, left - 8), None, "end")
            self._bar(canvas, left, y, width - left - 2, shares)
        return canvas

    def _bar(self, canvas: Canvas, left: float, y: float, width: float, shares: Sequence[float]) -> None:
        for colour, ink, text, share in zip(_COLOURS, _INK, FATES, shares, strict=True):
            part = width * share
            if part > 0:
                tip = f"{text}: {100 * share:.1f} %"
                canvas.rect(left, y, part, _HIGH, class_=f"{colour} seam", tip=tip)
            if part > 24:
                canvas.text(left + part / 2, y + 13, f"{100 * share:.0f}", f"small {ink}", "middle")
            left += part
