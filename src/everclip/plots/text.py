"""Fit text into charts: make it printable, estimate its width, and keep labels apart."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable

import numpy as np

FONT = 12.0
"""Default size of text in points."""


def printable(text: object) -> str:
    """Return ``text`` for fonts and XML, with spaces for control characters and escapes for lone surrogates."""
    clean = "".join(" " if unicodedata.category(c) == "Cc" or c in "\ufffe\uffff" else c for c in str(text))
    return clean.encode("utf-8", "backslashreplace").decode("utf-8")


def text_width(text: str, size: float = FONT) -> float:
    """Estimate the width of sans-serif text in points: wide (CJK) characters are 1 em, others about 0.57 em."""
    return size * sum(1.0 if unicodedata.east_asian_width(c) in "WF" else 0.57 for c in text)


def shorten(text: object, room: float) -> str:
    """Return ``text`` cut to ``room`` points, with an ellipsis for what is cut."""
    text = printable(text)
    if text_width(text) <= room:
        return text
    while text and text_width(text + "…") > room:
        text = text[:-1]
    return text + "…"


def number(value: float, digits: int = 3) -> str:
    """Return a short label with ``digits`` significant digits, a true minus sign, and exponents such as ``1e-5``."""
    size = abs(value)
    text = f"{size:.{digits - 1}e}" if 0 < size < 1e-3 else f"{size:.{digits}g}"
    if "e" in text:
        mantissa, exponent = text.split("e")
        text = f"{float(mantissa):g}e{int(exponent)}"
    return f"−{text}" if value < 0 else text


def spread(wanted: Iterable[float], gap: float, low: float, high: float) -> list[float]:
    """Move label positions at least ``gap`` apart inside [low, high], in their order, by least squares."""
    from scipy.optimize import isotonic_regression

    places = np.array([*wanted], dtype=np.float64)
    if not len(places):
        return []
    order, gaps = np.argsort(places, kind="stable"), gap * np.arange(len(places))
    places[order] = np.clip(isotonic_regression(places[order] - gaps).x, low, high - gaps[-1]) + gaps
    return places.tolist()
