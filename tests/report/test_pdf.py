"""Charts as PDF files."""

from __future__ import annotations

import re
import shutil
import subprocess
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from everclip.report.charts.canvas import Canvas, Panel, png
from everclip.report.charts.pdf import pdf


def canvas() -> Canvas:
    return Canvas(400, 200, ident="x", title="a (chart) \\ слон", description="")


def content(file: bytes) -> str:
    """The operators of the page: the longest text stream."""
    streams = re.findall(rb"stream\n(.*?)\nendstream", file, re.DOTALL)
    return max((zlib.decompress(stream) for stream in streams), key=len).decode("ascii")


def picture(file: bytes, folder: Path) -> np.ndarray:
    """The page as another program draws it, 4 pixels a px of the chart."""
    if shutil.which("pdftoppm") is None:
        pytest.skip("needs pdftoppm")
    (folder / "x.pdf").write_bytes(file)
    done = subprocess.run(
        ["pdftoppm", "-r", "384", "-png", "-singlefile", "x.pdf", "x"],
        cwd=folder, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stderr == ""
    return np.array(Image.open(folder / "x.png").convert("RGB"))


def test_is_a_sound_file() -> None:
    drawn = canvas()
    drawn.text(10, 20, "hello", "strong")
    file = pdf(drawn.svg())
    assert file.startswith(b"%PDF-1.5\n")
    start = int(file.rsplit(b"startxref\n", 1)[1].split()[0])
    places = re.findall(rb"(\d{10}) 00000 n ", file[start:])
    for number, place in enumerate(places, 1):
        assert file[int(place) :].startswith(b"%d 0 obj\n" % number)
    assert b"/MediaBox [0 0 300 150]" in file  # points: 3/4 of a px
    title = re.findall(rb"/Title <FEFF([0-9a-f]+)>", file)[0]
    assert bytes.fromhex(title.decode()).decode("utf-16-be") == "a (chart) \\ слон"
    assert file == pdf(drawn.svg())


def test_needs_no_font() -> None:
    drawn = canvas()
    for k, (text, class_) in enumerate([("ß½−слон قطة 日本", None), ("bold", "strong"), ("italic", "ahead")]):
        drawn.text(10, 20 + 20 * k, text, class_)
    drawn.turned(10, 150, "turned", -45, "end")
    file = pdf(drawn.svg())
    assert b"/Font" not in file
    assert len(content(file)) > 3000  # the outlines


def test_looks_like_the_chart(tmp_path: Path) -> None:
    drawn = canvas()
    drawn.rect(10, 10, 30, 20, class_="f1")
    drawn.rect(50, 10, 30, 20, fill="rgb(200,0,0)", fill_opacity="0.50")
    drawn.line(10, 50, 90, 50, "axis")
    drawn.mark(2, 20, 80)  # a triangle
    drawn.mark(0, 60, 80)  # a disc
    drawn.rect(200, 10, 30, 20, class_="hit", tip="unseen")
    colours = np.zeros((2, 2, 4), dtype=np.uint8)
    colours[0, 0], colours[1, 1] = (10, 20, 30, 255), (0, 0, 255, 51)
    drawn.add(
        "image", href=png(colours), x=100.0, y=10.0, width=40.0, height=40.0, preserveAspectRatio="none"
    )
    panel = Panel(drawn, 250, 50, 100, 100, (0, 1), (0, 1))
    panel.path([0, 1], [0.5, 0.5], "line so1")
    panel.band([0, 1], [0.7, 0.7], [0.9, 0.9], "f1")
    drawn.text(390, 190, "end", None, "end")
    seen = picture(pdf(drawn.svg()), tmp_path)

    def at(x: float, y: float) -> tuple[int, ...]:
        return tuple(int(value) for value in seen[int(4 * y), int(4 * x)])

    assert seen.shape == (800, 1600, 3)
    assert at(25, 20) == (0x0B, 0x62, 0xA4)
    assert at(65, 20) == pytest.approx((228, 127, 127), abs=2)
    assert at(50, 50) == pytest.approx((0x5B, 0x65, 0x70), abs=2)
    assert at(50, 53) == at(215, 20) == (255, 255, 255)
    assert at(20, 80) == (0x00, 0x9E, 0x73)
    assert at(60, 80) == (0x00, 0x72, 0xB2)
    assert at(60, 77) == (0x00, 0x72, 0xB2)
    assert at(56.5, 76.5) == (255, 255, 255)  # outside of the disc's round corner
    assert at(110, 20) == (10, 20, 30)
    assert at(130, 40) == pytest.approx((204, 204, 255), abs=2)
    assert at(130, 20) == (255, 255, 255)
    assert at(300, 100) == (0xD5, 0x5E, 0x00)
    assert at(300, 70) == pytest.approx((211, 227, 238), abs=2)
    dark = np.argwhere((seen[700:, 1400:] < 128).all(axis=-1))
    assert len(dark) > 100
    assert dark[:, 1].max() + 1400 == pytest.approx(4 * 390, abs=6)  # the text ends where it should


def test_gradient_and_hatching(tmp_path: Path) -> None:
    from markupsafe import Markup

    drawn = canvas()
    stops = Markup(
        '<stop offset="0%" stop-color="#000"/><stop offset="100%" stop-color="#ff0000" stop-opacity="0.5"/>'
    )
    drawn.add("linearGradient", stops, id="g")
    drawn.rect(10, 10, 100, 20, fill="url(#g)")
    lines = Markup('<path d="M-1 7L7 -1" class="hatch"/>')
    drawn.add("pattern", lines, id="h", width=6, height=6, patternUnits="userSpaceOnUse")
    drawn.rect(10, 50, 100, 60, fill="url(#h)")
    seen = picture(pdf(drawn.svg()), tmp_path).astype(int)
    assert seen[80, 44].max() < 10
    assert seen[80, 436] == pytest.approx((255, 127, 127), abs=6)
    inside, outside = seen[204:436, 44:436], seen[460:, 40:440]
    assert 0.1 < (inside < 255).any(axis=-1).mean() < 0.9
    assert (outside == 255).all()


def test_every_marker_and_dash_differs() -> None:
    from everclip.report.charts import style

    looks = [(style.stroke(k), style.fill(k), tuple(style.corners(k))) for k in range(84)]
    assert len(set(looks)) == 84
    assert len({style.stroke(k) for k in range(28)}) == 28
