"""Embed matplotlib's SVG in the page in few characters, with text as text and colours as CSS variables."""

from __future__ import annotations

import base64
import io
import re
import warnings
from collections.abc import Mapping
from xml.etree import ElementTree

import numpy as np
from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.figure import Figure
from PIL import Image

from everclip.plots import style
from everclip.plots.text import printable

VARIABLES = {
    style.INK: "ink",
    style.DIM: "dim",
    style.GRID: "grid",
    style.EDGE: "edge",
    style.PAGE: "page",
    style.FIRST: "c1",
    style.SECOND: "c2",
}
"""CSS variables of the page by their light colours in charts."""
CSS = """
svg.fig { font: 12px system-ui, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
svg.fig .hit { fill: none; pointer-events: all; }
svg.fig .hit:hover { stroke: var(--ink, #1c2126); stroke-width: 1; }
svg.fig image { image-rendering: pixelated; }
"""
_SVG = "http://www.w3.org/2000/svg"
_USUAL = {
    *("stroke-linejoin: round", "stroke-linecap: butt", "stroke-dashoffset: 0"),
    *("font-size: 12px", "text-anchor: start"),
}
"""Styles of the root element, and defaults."""
_NUMBER = re.compile(r"-?\d+\.\d+(e-?\d+)?")
_MOVED = re.compile(r"rotate\(-0 [^)]*\)")
Element = ElementTree.Element


def embedded(figure: Figure, ident: str, title: str, description: str) -> Markup:
    """Return a figure as an ``<svg>`` of the page, the same to the byte each time.

    Args:
        ident: prefix of the ids inside, unique in the page.
        title, description: what a screen reader says.
    """
    file = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": ident}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # the reader's browser has more fonts than the one here
        figure.savefig(file, format="svg", metadata={"Date": None})
    root = ElementTree.fromstring(file.getvalue())
    _, _, width, height = root.attrib["viewBox"].split()
    ids = {one.attrib["id"] for one in root.iter() if "id" in one.attrib}
    used = dict.fromkeys(name for name in re.findall(r"#([^\")]+)", file.getvalue()) if name in ids)
    names = {name: f"{ident}-{k}" for k, name in enumerate(used)}
    inside = Markup("".join(_written(one, names) for one in root))
    texts = {"t": printable(title), "d": printable(description), "inside": inside}
    return Markup(
        '<svg class="fig" xmlns="{x}" viewBox="0 0 {w} {h}" width="{w}" height="{h}" role="img"'
        ' aria-labelledby="{i}-t {i}-d" stroke-linejoin="round"><title id="{i}-t">{t}</title><desc'
        ' id="{i}-d">{d}</desc>{inside}</svg>'
    ).format(x=_SVG, w=width, h=height, i=ident, **texts)


def _written(element: Element, names: dict[str, str]) -> str:
    """Return an element in few characters; empty if it is invisible."""
    tag = element.tag.rpartition("}")[2]
    inside = "".join(_written(one, names) for one in element)
    if tag in ("metadata", "style") or (tag in ("g", "defs") and not inside):
        return ""
    found = {key.rpartition("}")[2]: value for key, value in element.attrib.items()}
    for key in ("id", *(("fill", "pointer-events") if found.get("class") == "hit" else ())):
        found.pop(key, None)  # the style sheet says the same
    if (name := names.get(element.attrib.get("id", ""))) is not None:
        found["id"] = name
    if "style" in found:
        found["style"] = _style(found["style"])
    if tag == "path" and found.get("style") in ("", "fill:none"):
        return inside
    if _MOVED.fullmatch(found.get("transform", "")):
        del found["transform"]
    if tag == "image":
        found |= _image(found.pop("href")) | {"preserveAspectRatio": "none"}
        found.pop("style", None)
    for key, value in found.items():
        if key in ("d", "x", "y", "transform") and tag != "image":
            value = _NUMBER.sub(lambda number: f"{float(number[0]):.1f}".removesuffix(".0"), value)
            found[key] = re.sub(r"\s*([a-zA-Z])\s*", r"\1", value.strip()) if key == "d" else value
        elif key in ("href", "clip-path", "style") and tag != "image":
            found[key] = re.sub(r"#([^\")]+)", lambda ref: f"#{names.get(ref[1], ref[1])}", found[key])
    given = {key: value for key, value in found.items() if value}
    if tag == "g" and not given:
        return inside
    words = Markup("").join(Markup(' {}="{}"').format(key, value) for key, value in given.items())
    text = (element.text or "").strip("\n") if tag in ("text", "title", "tspan") else ""
    inside = Markup.escape(text) + Markup(inside)
    return f"<{tag}{words}>{inside}</{tag}>" if inside else f"<{tag}{words}/>"


def _style(text: str) -> str:
    """Return a style without usual parts, with variables for the page's colours."""
    kept = [part for part in text.split("; ") if part not in _USUAL and not part.startswith("font-family")]
    short = ";".join(part.replace(": ", ":") for part in kept)
    for colour, name in VARIABLES.items():
        short = short.replace(colour, f"var(--{name}, {colour})")
    return short


def _image(address: str) -> dict[str, str]:
    """Return the attributes of an embedded PNG image: with a palette if it has few colours, for a third of the size,
    and a class if it is partly transparent."""
    head, _, data = address.partition(",")
    rgba = np.array(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGBA"))
    whole, places = np.unique(rgba.view(np.uint32).ravel(), return_inverse=True)
    colours = whole.view(np.uint8).reshape(-1, 4)
    through = ((colours[:, 3] > 0) & (colours[:, 3] < 255)).any()
    attributes = {"class": "through"} if through else {}
    if len(colours) > 256:
        return attributes | {"href": address.replace("\n", "")}
    image = Image.fromarray(places.reshape(rgba.shape[:2]).astype(np.uint8), "P")
    image.putpalette(colours.tobytes(), "RGBA")
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True)
    return attributes | {"href": f"{head},{base64.b64encode(file.getvalue()).decode()}"}


def light(svg: str, others: Mapping[str, str] | None = None) -> str:
    """Return an SVG for programs without CSS variables: with the light colours in their place, and a font.

    Args:
        others: colours to use instead, by the variable's name.
    """
    head, _, body = svg.partition(">")
    whole, given = f"{head}><style>{CSS}</style>{body}", others or {}
    return re.sub(r"var\(--(\w+), ([^)]+)\)", lambda found: given.get(found[1], found[2]), whole)
