"""docs/plots.md: its lines of code draw its pictures."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from matplotlib import pyplot
from tools import gallery

from everclip import plots


@pytest.mark.slow
def test_each_chart_is_shown_by_a_line_that_draws_it(many: Path) -> None:
    shown = list(gallery.calls())
    assert {name for name, *_ in shown} == set(plots.__all__) - {"STYLE", "label_ends"}
    assert len(shown) == gallery.PAGE.read_text(encoding="utf-8").count("![")
    for name, runs, keywords, about, file in shown:
        assert (gallery.PAGE.parent / file).is_file()
        given = many / "gdro_200_0" if "gdro" in runs else many
        known = {"memory": 200} if "memory" in keywords else {}
        svg = gallery.picture(name, str(given), keywords | known, about)
        assert svg == gallery.picture(name, str(given), keywords | known, about)
        assert "var(" not in svg
        assert re.search(rf"<title [^>]*>{re.escape(about.replace(chr(39), '&#39;'))}</title>", svg)


def test_the_first_lines_run(many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "S").symlink_to(many, target_is_directory=True)
    monkeypatch.chdir(tmp_path)
    page = gallery.PAGE.read_text(encoding="utf-8")
    (lines,) = re.findall(r"^```python\n(from .*?)^```$", page, re.DOTALL | re.MULTILINE)
    exec(lines, {})
    pyplot.close("all")
    assert (tmp_path / "memory.pdf").is_file()


def test_the_pictures_are_small() -> None:
    assert sum(path.stat().st_size for path in gallery.PAGE.with_suffix("").iterdir()) < 300_000
