"""Write charts as vector PDF files, drawn from the finished SVG.

A page holds a dozen charts and is written at the end of each run, so this has to be quick: it knows the few elements
that ``svg.Canvas`` writes and nothing else. Text is drawn as outlines of DejaVu Sans, which matplotlib ships: the file
needs no font, embedded or not, and looks the same everywhere.
"""

from __future__ import annotations

import base64
import io
import re
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from itertools import pairwise
from math import cos, radians, sin
from typing import Any
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from everclip.report.charts.outlines import UNITS, face
from everclip.report.charts.style import FIGURE_CSS, light

_SMALLER = 0.9  # DejaVu Sans is as much wider than the fonts that the charts are laid out for
_SLICES = 48  # of a gradient
_OFTEN = 16  # times from which a letter takes less room where its outline is kept once, and drawn from there
Element = ElementTree.Element
Style = Mapping[str, str]


def pdf(svg: str) -> bytes:
    """A one-page PDF file of an SVG made by ``svg.Canvas``; 1 px is 1/96 inch. The same bytes for the same chart."""
    root = ElementTree.fromstring(svg)
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
    page = _Page(root)
    for element in root:
        page.draw(element)
    return page.file()


class _Page:
    """Drawing operators of the page, and the objects that they refer to."""

    def __init__(self, root: Element) -> None:
        self.width, self.height = (float(root.attrib[key]) for key in ("width", "height"))
        self.title = root.findtext("title") or ""
        self.named = {found.attrib["id"]: found for found in root.iter() if "id" in found.attrib}
        self.out: list[str | tuple[str, int]] = []
        self.alphas: dict[str, str] = {}
        self.images: list[Image.Image] = []

    def draw(self, element: Element) -> None:
        """Draw one element; what is not drawn (titles, definitions) is passed over."""
        kinds = {
            "text": self._text,
            "image": self._image,
            "rect": self._shape,
            "line": self._shape,
            "circle": self._shape,
            "path": self._shape,
            "polygon": self._shape,
        }
        if element.tag in kinds:
            self.out.append("q")
            kinds[element.tag](element, _style(element))
            self.out.append("Q")

    def _shape(self, element: Element, style: Style) -> None:
        paint, line = style.get("fill", "#000"), style.get("stroke", "none")
        if paint.startswith("url("):
            self._special(element, self.named[paint[5:-1]])
            paint = "none"
        filled = paint not in ("none", "transparent")
        stroked = line != "none" and element.get("class") != "hit"
        if not filled and not stroked:
            return
        if filled:
            self.out.append(f"{_colour(paint)} rg")
            self._alpha(style.get("fill-opacity", "1"))
        if stroked:
            dash = "none" if "none" in style.get("stroke-dasharray", "none") else style["stroke-dasharray"]
            round_ = style.get("stroke-linecap") == "round"
            self._alpha(style.get("stroke-opacity", "1"), "CA")
            self.out.append(f"{_colour(line)} RG {style.get('stroke-width', '1').removesuffix('px')} w")
            self.out.append(f"{int(round_)} J 1 j [{'' if dash == 'none' else dash}] 0 d")
        self.out.append(_outline(element))
        self.out.append("B" if filled and stroked else "f" if filled else "S")

    def _special(self, element: Element, what: Element) -> None:
        """Fill a rectangle with a gradient from left to right, or with the hatching."""
        x, y, width, height = _box(element)
        self.out.append(f"q {x} {y} {width} {height} re W n")
        if what.tag == "linearGradient":
            for k in range(_SLICES):
                colour, alpha = _between(what, (k + 0.5) / _SLICES)
                self._alpha(alpha)
                self.out.append(
                    f"{colour} rg {x + width * k / _SLICES:.2f} {y} {width / _SLICES:.2f} {height} re f"
                )
        else:
            step, style = float(what.attrib["width"]), _style(what[0])
            self.out.append(f"{_colour(style['stroke'])} RG {style['stroke-width']} w")
            for k in range(int((width + height) / step) + 1):
                self.out.append(f"{x + k * step:.1f} {y} m {x + k * step - height:.1f} {y + height} l S")
        self.out.append("Q")

    def _alpha(self, value: str, of: str = "ca") -> None:
        """Set how opaque fills (ca) or strokes (CA) are; a new page is opaque."""
        if float(value) < 1 or self.alphas:
            state = f"/{of} {float(value):.2f}"
            self.out.append(f"/{self.alphas.setdefault(state, f'A{len(self.alphas)}')} gs")

    def _text(self, element: Element, style: Style) -> None:
        text, size = element.text or "", _SMALLER * float(style.get("font-size", "12px").removesuffix("px"))
        font = face(float(style.get("font-weight", "400")) >= 600, style.get("font-style") == "italic")
        turn = re.fullmatch(
            r"translate\(([-\d.]+) ([-\d.]+)\) rotate\(([-\d.]+)\)", element.get("transform", "")
        )
        x, y = (
            (float(turn[1]), float(turn[2])) if turn else (float(element.get(key, 0)) for key in ("x", "y"))
        )
        length = size * sum(font.advance(ord(letter)) for letter in text)
        anchor = element.get("text-anchor") or style.get("text-anchor", "")
        start = {"end": -length, "middle": -length / 2}.get(anchor, 0.0)
        a, b = _turned(float(turn[3])) if turn else (1.0, 0.0)
        self.out.append(f"{a:.4f} {b:.4f} {-b:.4f} {a:.4f} {x:.2f} {y:.2f} cm")
        if style.get("stroke", "none") != "none":  # the light halo that keeps text readable on top of lines
            self.out.append(
                f"{_colour(style['stroke'])} rg {start - 2:.2f} {-size:.2f} {length + 4:.2f} {1.3 * size:.2f} re f"
            )
        em = size / UNITS
        self.out.append(f"{_colour(style.get('fill', '#000'))} rg {em:.5f} 0 0 {-em:.5f} {start:.2f} 0 cm")
        for letter in text:
            self.out.append((font.outline(ord(letter)), round(UNITS * font.advance(ord(letter)))))

    def _image(self, element: Element, style: Style) -> None:
        _, _, data = element.attrib["href"].partition("base64,")
        self.images.append(Image.open(io.BytesIO(base64.b64decode(data)), formats=("PNG",)).convert("RGBA"))
        x, y, width, height = _box(element)
        self.out.append(f"{width} 0 0 {-height} {x} {y + height} cm /I{len(self.images) - 1} Do")

    def file(self) -> bytes:
        """The finished file."""
        file = _File()
        counts = Counter(part[0] for part in self.out if isinstance(part, tuple))
        forms = {
            outline: f"G{k}" for k, outline in enumerate(counts) if outline and counts[outline] >= _OFTEN
        }
        box = f"/Subtype /Form /BBox [{-UNITS} {-UNITS} {3 * UNITS} {3 * UNITS}]"
        names = " ".join(f"/{name} {file.add(box, text.encode('ascii'))} 0 R" for text, name in forms.items())
        names += "".join(f" /I{k} {_picture(file, image)} 0 R" for k, image in enumerate(self.images))
        states = " ".join(f"/{name} << {alpha} >>" for alpha, name in self.alphas.items())
        scale = 0.75  # px to points
        content = f"{scale} 0 0 {-scale} 0 {self.height * scale} cm\n" + "\n".join(
            part
            if isinstance(part, str)
            else f"{f'/{forms[part[0]]} Do' if part[0] in forms else part[0]} 1 0 0 1 {part[1]} 0 cm"
            for part in self.out
        )
        stream = file.add("", content.encode("ascii"))
        box = f"/MediaBox [0 0 {self.width * scale:g} {self.height * scale:g}]"
        return file.finish(
            f"{box} /Resources << /XObject << {names} >> /ExtGState << {states} >> >>", stream, self.title
        )


class _File:
    """Numbered objects, put together with the table of where each begins."""

    def __init__(self) -> None:
        self.objects: list[bytes] = []

    def add(self, entries: str, stream: bytes | None = None) -> int:
        """Append a dictionary, with a compressed stream where there is one; its number."""
        body = f"<< {entries} >>".encode("ascii")
        if stream is not None:
            stream = zlib.compress(stream, 9)
            head = f"<< {entries} /Filter /FlateDecode /Length {len(stream)} >>".encode("ascii")
            body = head + b"\nstream\n" + stream + b"\nendstream"
        self.objects.append(body)
        return len(self.objects)

    def finish(self, page: str, content: int, title: str) -> bytes:
        """The bytes of the file with its one page."""
        pages = len(self.objects) + 2
        self.add(f"/Type /Page /Parent {pages} 0 R {page} /Contents {content} 0 R")
        self.add(f"/Type /Pages /Kids [{pages - 1} 0 R] /Count 1")
        root = self.add(f"/Type /Catalog /Pages {pages} 0 R")
        info = self.add(f"/Title <FEFF{title.encode('utf-16-be', 'replace').hex()}> /Producer (everclip)")
        out, places = io.BytesIO(), []
        out.write(b"%PDF-1.5\n%\xe2\xe3\xcf\xd3\n")
        for number, body in enumerate(self.objects, 1):
            places.append(out.tell())
            out.write(b"%d 0 obj\n%s\nendobj\n" % (number, body))
        start = out.tell()
        out.write(b"xref\n0 %d\n0000000000 65535 f \n" % (len(places) + 1))
        out.writelines(b"%010d 00000 n \n" % place for place in places)
        out.write(b"trailer\n<< /Size %d /Root %d 0 R /Info %d 0 R >>\n" % (len(places) + 1, root, info))
        out.write(b"startxref\n%d\n%%%%EOF\n" % start)
        return out.getvalue()


def _picture(file: _File, image: Image.Image) -> int:
    """An RGBA image, on white paper; with a palette, which suits charts."""
    paper = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    colours, places = colours_of(np.asarray(paper.convert("RGBA")))
    size = f"/Type /XObject /Subtype /Image /Width {image.width} /Height {image.height} /BitsPerComponent 8"
    if len(colours) > 256:
        return file.add(f"{size} /ColorSpace /DeviceRGB", paper.tobytes())
    palette = f"[/Indexed /DeviceRGB {len(colours) - 1} <{colours[:, :3].tobytes().hex()}>]"
    return file.add(f"{size} /ColorSpace {palette}", places.astype(np.uint8).tobytes())


def colours_of(rgba: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """The colours ``[n, 4]`` of an image ``[height, width, 4]``, and which of them each pixel has."""
    keys, places = np.unique(np.ascontiguousarray(rgba).view(np.uint32)[..., 0], return_inverse=True)
    return keys[:, None].view(np.uint8), places.reshape(rgba.shape[:2])


def _turned(degrees: float) -> tuple[float, float]:
    return cos(radians(degrees)), sin(radians(degrees))


def _box(element: Element) -> tuple[float, float, float, float]:
    x, y, width, height = (float(element.attrib[key]) for key in ("x", "y", "width", "height"))
    return x, y, width, height


def _outline(element: Element) -> str:
    """The path operators of a shape."""
    given = element.attrib
    if element.tag == "rect":
        return "{} {} {} {} re".format(*_box(element))
    if element.tag == "line":
        return f"{given['x1']} {given['y1']} m {given['x2']} {given['y2']} l"
    if element.tag == "polygon":
        points = [point.replace(",", " ") for point in given["points"].split()]
        return f"{points[0]} m " + " ".join(f"{point} l" for point in points[1:]) + " h"
    if element.tag == "circle":
        return _disc(*(float(given[key]) for key in ("cx", "cy", "r")))
    return " ".join(_steps(given["d"]))


def _disc(x: float, y: float, r: float) -> str:
    """A circle of four Bezier curves."""
    k, ends = 0.5523 * r, ((1, 0), (0, 1), (-1, 0), (0, -1))
    words = [f"{x + r:.2f} {y:.2f} m"]
    for (a, b), (c, d) in zip(ends, (*ends[1:], ends[0]), strict=True):
        first, second = (x + r * a + k * c, y + r * b + k * d), (x + r * c + k * a, y + r * d + k * b)
        points = (*first, *second, x + r * c, y + r * d)
        words.append(" ".join(f"{value:.2f}" for value in points) + " c")
    return " ".join(words) + " h"


def _steps(path: str) -> Iterator[str]:
    """The operators of a path of M, L and h."""
    x = y = 0.0
    for letter, numbers in re.findall(r"([MLh])([^MLh]*)", path):
        values = [float(value) for value in numbers.split()]
        x, y = (x + values[0], y) if letter == "h" else (values[0], values[1])
        yield f"{x:.2f} {y:.2f} {'m' if letter == 'M' else 'l'}"


def _between(gradient: Element, at: float) -> tuple[str, str]:
    """Colour and opacity of a gradient at a place in 0..1."""
    stops = [
        (
            float(stop.attrib["offset"].rstrip("%")) / 100,
            [*map(float, _colour(stop.attrib["stop-color"]).split()), float(stop.get("stop-opacity", 1))],
        )
        for stop in gradient
    ]
    for (left, before), (right, after) in pairwise(stops):
        if left <= at <= right:
            share = (at - left) / (right - left)
            mixed = [(1 - share) * a + share * b for a, b in zip(before, after, strict=True)]
            return " ".join(f"{value:.3f}" for value in mixed[:3]), f"{mixed[3]}"
    raise AssertionError("a gradient reaches from 0 to 100 %")


@cache
def _colour(text: str) -> str:
    """``rgb(1,2,3)``, ``#abc`` or ``#aabbcc`` as three numbers in 0..1."""
    if text.startswith("rgb"):
        parts: Sequence[int] = [int(value) for value in re.findall(r"\d+", text)]
    else:
        digits = text[1:] if len(text) == 7 else "".join(2 * digit for digit in text[1:])
        parts = [int(digits[k : k + 2], 16) for k in (0, 2, 4)]
    return " ".join(f"{value / 255:.3f}" for value in parts)


@cache
def _rules() -> list[tuple[str, frozenset[str], dict[str, str]]]:
    """(tag or nothing, classes, declarations) of each rule of the style sheet; colours are the light ones."""
    rules = []
    for selector, body in re.findall(r"svg\.fig ?([^{]*?) ?\{([^}]*)\}", light(FIGURE_CSS)):
        tag, *classes = selector.split(".")
        if ":" not in selector:
            pairs = (line.partition(":") for line in body.split(";") if ":" in line)
            rules.append((tag, frozenset(classes), {key.strip(): value.strip() for key, _, value in pairs}))
    return rules


def _style(element: Element) -> dict[str, str]:
    """Return what the style sheet and the element's own attributes say of it."""
    classes = set(element.get("class", "").split())
    found: dict[str, str] = {}
    attributes: dict[str, Any] = {
        key: value for key, value in element.attrib.items() if key in ("fill", "fill-opacity", "stroke")
    }
    for tag, wanted, declared in _rules():
        if (tag in ("", element.tag)) and wanted <= classes and (tag or wanted):
            found |= declared
    return attributes | found
