"""Read outlines of the letters of DejaVu Sans, as PDF path operators."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from fontTools.pens.basePen import BasePen
from fontTools.ttLib import TTFont

UNITS = 500
"""Units of the outlines to an em."""


class Face:
    """One face of DejaVu Sans, read as far as it is asked for; y goes upwards.

    A character that the face does not have (Chinese, Japanese, Korean) is drawn as the empty box.
    """

    def __init__(self, path: Path) -> None:
        self._font = TTFont(path, lazy=True)
        self._names: dict[int, str] = self._font.getBestCmap() or {}
        self._em: int = self._font["head"].unitsPerEm  # pyright: ignore[reportAttributeAccessIssue]
        self._glyphs = self._font.getGlyphSet()

    def _name(self, code: int) -> str:
        return self._names.get(code, ".notdef")

    @cache  # noqa: B019 (faces live as long as the program)
    def advance(self, code: int) -> float:
        """Distance to the next letter, in ems."""
        return self._glyphs[self._name(code)].width / self._em

    @cache  # noqa: B019
    def outline(self, code: int) -> str:
        """Path operators that fill the letter at the origin, in ``UNITS``; nothing for a space."""
        pen = _Pen(self._glyphs, UNITS / self._em)
        self._glyphs[self._name(code)].draw(pen)
        return " ".join([*pen.words, "f"]) if pen.words else ""


class _Pen(BasePen):
    """Collect path operators; quadratic curves come as cubic ones."""

    def __init__(self, glyphs: Any, scale: float) -> None:
        super().__init__(glyphs)
        self.scale = scale
        self.words: list[str] = []

    def _put(self, operator: str, *points: tuple[float, float]) -> None:
        numbers = " ".join(f"{round(self.scale * value)}" for point in points for value in point)
        self.words.append(f"{numbers} {operator}".lstrip())

    def _moveTo(self, pt: tuple[float, float]) -> None:
        self._put("m", pt)

    def _lineTo(self, pt: tuple[float, float]) -> None:
        self._put("l", pt)

    def _curveToOne(
        self, pt1: tuple[float, float], pt2: tuple[float, float], pt3: tuple[float, float]
    ) -> None:
        self._put("c", pt1, pt2, pt3)

    def _closePath(self) -> None:
        self._put("h")


@cache
def face(bold: bool, italic: bool) -> Face:
    """The face that matplotlib ships."""
    import matplotlib  # slow to import, so only when a chart is drawn

    kind = {(True, False): "-Bold", (False, True): "-Oblique", (True, True): "-BoldOblique"}.get(
        (bold, italic), ""
    )
    return Face(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"DejaVuSans{kind}.ttf")
