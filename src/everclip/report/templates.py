"""Render pages from templates, with an inline style and script."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from everclip.plots.text import printable
from everclip.report.svg import CSS
from everclip.runs.words import SHOW, count, percent, several

_HERE = Path(__file__).parent


def render(template: str, **values: Any) -> str:
    """Return a self-contained HTML page from a template file and its values, with all texts escaped."""
    environment = Environment(
        loader=FileSystemLoader(_HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(SHOW, percent=percent, printable=printable, count=count, several=several)
    script = (_HERE / "page.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.get_template(template).render(
        style=(_HERE / "page.css").read_text(encoding="utf-8"),
        figure_css=CSS,
        script=script,
        script_hash=digest,
        **values,
    )
