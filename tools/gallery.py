"""Draw the pictures of docs/plots.md: each is what the line of code above it draws.

    python tools/gallery.py RUNS

RUNS is the folder of the sweep that the page names; the pictures go to docs/plots.
"""

from __future__ import annotations

import ast
import re
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.figure import Figure

from everclip import plots
from everclip.report.svg import embedded, light

PAGE = Path(__file__).parents[1] / "docs" / "plots.md"
_SHOWN = re.compile(r"^```python\nplots\.(\w+)\(([^`]+)\)\n```\n\n!\[(.+)\]\((.+)\)$", re.MULTILINE)
_SIZES = {
    "accuracy_matrix": (8.0, 4.0),
    "class_weights": (9.5, 5.0),
    "class_losses": (9.5, 5.0),
    "per_class": (6.0, 4.5),
}


def calls() -> Iterator[tuple[str, str, dict[str, Any], str, str]]:
    """(function, runs, keywords, what the picture shows, its file) of each picture; values are literals."""
    for name, arguments, about, file in _SHOWN.findall(PAGE.read_text(encoding="utf-8")):
        call = ast.parse(f"f({arguments})", mode="eval").body
        assert isinstance(call, ast.Call)
        keywords = {str(one.arg): ast.literal_eval(one.value) for one in call.keywords}
        yield name, ast.literal_eval(call.args[0]), keywords, about, file


def picture(name: str, runs: str, keywords: dict[str, Any], about: str) -> str:
    """One picture as SVG in the light colours of the page."""
    with rc_context({**plots.STYLE, "figure.facecolor": "white"}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")
        figure = Figure(figsize=_SIZES.get(name, (7.0, 3.6)), dpi=72, layout="constrained")
        getattr(plots, name)(runs, figure.add_subplot(), **keywords)
        return light(embedded(figure, name, about, Markup("docs/plots.md")))


def main(folder: Path, out: Path) -> None:
    """Write the pictures into ``out``, from the runs in ``folder``."""
    out.mkdir(parents=True, exist_ok=True)
    for name, runs, keywords, about, file in calls():
        svg = picture(name, runs.replace("runs/S", str(folder), 1), keywords, about)
        (out / Path(file).name).write_text(svg + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), PAGE.with_suffix(""))
