"""Write the page of ``everclip data check`` with its findings and small pictures."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from markupsafe import Markup
from PIL import Image, ImageOps

from everclip.audit.check import Findings
from everclip.data.pixels import Pixels
from everclip.report.templates import render
from everclip.system.atomic import write_atomic

SIDE = 80
"""Side of a small picture in pixels."""
IN_A_GROUP = 6
"""Most pictures shown per group of copies."""


class Shown(NamedTuple):
    """A picture on the page: its path, part, class and a ``data:`` address (empty where it cannot be decoded)."""

    key: str
    part: str
    name: str
    address: Markup


class Row(NamedTuple):
    """Pictures side by side, with a text."""

    pictures: list[Shown]
    words: str


def write(findings: Findings, out: Path, most: int) -> Path:
    """Write the page as one self-contained HTML file, with up to ``most`` rows per kind. Raises OSError."""
    draw, names = _Drawn(findings), findings.data.class_names
    shown: dict[str, list[Row]] = {"copies": [], "near": [], "suspects": [], "tiny": []}
    for group in findings.groups[:most]:
        shown["copies"].append(Row(draw.all(findings.telling(group)[:IN_A_GROUP]), _copies(findings, group)))
    for pair in findings.pairs[:most]:
        shown["near"].append(Row(draw.all(pair[:2]), f"cosine {pair.cosine:.3f}"))
    for one in (findings.suspects or [])[:most]:
        told = f"looks like {names[one.other]}, which is {one.doubt:.2f} ahead"
        shown["suspects"].append(Row(draw.all([one.place]), told))
    for place in findings.tiny[:most]:
        width, height = findings.sides[place]
        shown["tiny"].append(Row(draw.all([place]), f"{width} x {height} pixels"))
    broken = [(findings.key(place), why) for place, why in list(findings.broken.items())[:most]]
    text = render("data.html.j2", title=findings.data.name, found=findings, rows=shown, broken=broken)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(out, text.encode("utf-8", errors="backslashreplace"))
    return out


def _copies(findings: Findings, group: list[int]) -> str:
    words = f"{len(group)} times"
    if group in findings.two_labels:
        words += ", under several labels"
    return words + (", in both parts" if group[0] < findings.train <= group[-1] else "")


class _Drawn:
    """Makes small pictures of a data set."""

    def __init__(self, findings: Findings) -> None:
        self._findings = findings
        store = findings.images.store
        self._pixels = Pixels(store, partial(ImageOps.pad, size=(SIDE, SIDE), color="white"), SIDE, 0, 0)

    def all(self, places: Iterable[int]) -> list[Shown]:
        """Return the pictures at some places."""
        return [self._one(place) for place in places]

    def _one(self, place: int) -> Shown:
        found, _ = self._pixels.load(self._findings.images.rows[[place]])
        address = ""
        if len(found):
            content = io.BytesIO()
            rows = np.ascontiguousarray(found[0].numpy().transpose(1, 2, 0))
            Image.fromarray(rows).save(content, "JPEG", quality=70)
            address = f"data:image/jpeg;base64,{base64.b64encode(content.getvalue()).decode()}"
        # base64 needs no escapes
        about = self._findings
        return Shown(about.key(place), about.part(place), about.name(place), Markup(address))
