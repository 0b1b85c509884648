"""Write the pages of the site: those of docs/ and beside it, and those that follow from the code.

    python tools/pages.py build/pages      # "make docs" then has mkdocs turn them into HTML

On GitHub pages link to each other, and to files, by their places in the repository. Here these links are made to fit
the places on the site; a link to a file that the site does not have is left as its text.
"""

from __future__ import annotations

import ast
import io
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path
from types import ModuleType
from typing import Any

import everclip
from everclip import plots
from everclip.cli.app import COMMANDS, build
from everclip.cli.app import main as command
from everclip.errors import shown

ROOT = Path(__file__).parents[1]
CATALOGUES = {
    "methods": ("Methods", "method."),
    "datasets": ("Data sets", "source."),
    "policies": ("Memory policies", "memory."),
    "scenarios": ("Scenarios", "scenario."),
    "tunings": ("Ways of tuning", "tuning."),
    "trackers": ("Trackers", "tracker.NAME."),
}
"""Commands that list plug-ins: the title of their page, and what stands before an option."""
_WRITTEN = {"docs/decisions": "decisions/index.md", "examples": "examples/index.md", "README.md": "index.md"}
"""Places in the repository that have a page of another kind on the site."""
_LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)#\s]*)(#[^)]*)?\)")
_FENCES = re.compile(r"(^```.*?^```$)", re.DOTALL | re.MULTILINE)


def sources() -> dict[str, str]:
    """The pages of the repository: their places in it, and on the site."""
    found = [*ROOT.glob("docs/**/*.md"), *ROOT.glob("benchmarks/*.md")]
    names = [path.relative_to(ROOT).as_posix() for path in found]
    names += ["CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md"]
    return {name: _place(name) for name in sorted(names)}


def _place(name: str) -> str:
    folder, _, file = name.removeprefix("docs/").rpartition("/")
    if file == "README.md":  # of a folder; one that has a page of HTML already keeps it
        file = "about.md" if (ROOT / name).with_name("index.html").exists() else "index.md"
    return f"{folder}/{file}".lstrip("/")


def linked(text: str, name: str, places: dict[str, str], out: Path) -> str:
    """The text of the page ``name`` with links that fit the site; pictures and such are copied into ``out``."""

    def target(found: re.Match[str]) -> str:
        mark, words, link, anchor = found.groups()
        if not link or ":" in link:
            return found[0]
        place = os.path.normpath(os.path.join(os.path.dirname(name), link))
        pages = {**places, **_WRITTEN}
        to = pages.get(place) or pages.get(f"{place}/README.md")
        if to is None and place.startswith("docs/") and place.endswith(".ipynb"):
            to = _place(place).replace(".ipynb", ".md")
        if to is None and Path(place).suffix in {".html", ".sh", ".svg"}:
            to = _place(place)
            (out / to).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / place, out / to)
        if to is None:
            return words
        return f"{mark}[{words}]({os.path.relpath(to, os.path.dirname(places[name]) or '.')}{anchor or ''})"

    parts = _FENCES.split(text)
    return "".join(part if part.startswith("```") else _LINK.sub(target, part) for part in parts)


def generated() -> Iterator[tuple[str, str]]:
    """Pages that follow from the code: their places on the site, and texts."""
    yield "reference/commands.md", commands()
    names = [name for name in everclip.__all__ if not name.startswith("_")]
    yield "reference/python.md", _members("Python", everclip, names)
    yield "reference/plots.md", _members("Charts in Python", plots, plots.__all__)
    for name in CATALOGUES:
        yield f"catalogues/{name}.md", catalogue(name)
    yield "decisions/index.md", _decisions()
    yield "examples/index.md", _examples()


def commands() -> str:
    """Every command with its examples and options, as its help says."""
    app = build()
    text = app.generate_docs().replace("# everclip\n", "# Commands\n", 1)
    text = re.sub(r"## Table of Contents\n.*?(?=^\*\*)", "", text, count=1, flags=re.DOTALL | re.MULTILINE)
    for name, about in COMMANDS.items():
        heading = f"## everclip {name}\n"
        assert text.count(heading) == 1
        lines = "\n".join(line.removeprefix("  ") for line in about.examples.splitlines())
        text = text.replace(heading, f"## {name}\n\n```sh\n{lines}\n```\n").replace(
            f"](#everclip-{name})", f"](#{name})"
        )
    return text


def catalogue(name: str) -> str:
    """What a catalogue such as ``everclip methods`` lists, each with its explanation and options."""
    title, prefix = CATALOGUES[name]
    text = f"# {title}\n\nWhat `everclip {name}` lists, and `everclip {name} NAME` says of each.\n"
    for one in _told(name):
        about: dict[str, Any] = _told(name, one["name"])
        text += f"\n## {one['name']}\n\n```text\n{about['description'].strip()}\n```\n"
        if about["options"]:
            text += "\n| option | default | allowed | meaning |\n|---|---|---|---|\n"
        for option in about["options"]:
            default = "" if option.get("required") else f"`{shown(option['default'])}`"
            cells = (f"`{prefix}{option['name']}`", default, option["allowed"], option["help"])
            text += "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"
    return text


def _told(*words: str) -> Any:
    """What a reading command says as JSON."""
    told = io.StringIO()
    with redirect_stdout(told):
        assert command([*words, "--json"]) == 0
    return json.loads(told.getvalue())


def _members(title: str, module: ModuleType, names: list[str]) -> str:
    """What mkdocstrings fills with the docstrings of a module's public names."""
    text = f"# {title}\n"
    for name in names:
        # A function may be called as the module that it stands in, so it is asked for where it is defined.
        place = getattr(getattr(module, name), "__module__", module.__name__)
        heading = f"{module.__name__}.{name}"
        text += f"\n::: {place}.{name}\n    options:\n      heading: {heading}\n      toc_label: {name}\n"
    return text


def _decisions() -> str:
    lines = []
    for path in sorted(ROOT.glob("docs/decisions/*.md")):
        number, _, title = (
            path.read_text(encoding="utf-8").split("\n", 1)[0].removeprefix("# ").partition(". ")
        )
        lines.append(f"{number}. [{title}]({path.name})")
    return "# Decisions\n\nWhy it is built so: context, choice and consequence, a page each.\n\n" + "\n".join(
        lines
    )


def _examples() -> str:
    text = "# Examples\n\nWhole programs, which run on the offline default.\n"
    for path in sorted(ROOT.glob("examples/*.py")):
        code = path.read_text(encoding="utf-8")
        title, _, about = (ast.get_docstring(ast.parse(code)) or "").partition("\n\n")
        body = code.split('"""', 2)[2].strip()
        text += f"\n## {title.rstrip('.')}\n\n{about}\n\n```python\n{body}\n```\n"
    return text


def main(out: Path) -> None:
    """Write all pages into ``out``, in place of what is there."""
    shutil.rmtree(out, ignore_errors=True)
    places = sources()
    for name, place in places.items():
        (out / place).parent.mkdir(parents=True, exist_ok=True)
        text = (ROOT / name).read_text(encoding="utf-8")
        (out / place).write_text(linked(text, name, places, out), encoding="utf-8")
    for place, text in generated():
        (out / place).parent.mkdir(parents=True, exist_ok=True)
        (out / place).write_text(text, encoding="utf-8")
    shutil.copy(Path(__file__).with_name("site.css"), out)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
