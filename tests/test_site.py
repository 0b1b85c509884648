"""The pages of the site: all of docs/ and what follows from the code, with links that lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from tools import pages

import everclip
from everclip import plots, plugins
from everclip.cli.app import COMMANDS

SETTINGS = (pages.ROOT / "mkdocs.yml").read_text(encoding="utf-8")
KINDS = {
    "methods": "methods",
    "datasets": "data/sources",
    "policies": "data/policies",
    "scenarios": "data/scenarios",
    "tunings": "models/tunings",
    "trackers": "trackers",
}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("site") / "pages"
    pages.main(out)
    return out


def test_links_lead_to_pages_and_pictures_of_the_site(site: Path) -> None:
    found = 0
    for page in site.rglob("*.md"):
        text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
        for link in re.findall(r"\]\(([^)#:\s]+)[)#]", text):
            place = (page.parent / link).resolve()
            if place.parent == site / "notebooks":  # nbconvert writes these pages
                place = pages.ROOT / "docs" / "notebooks" / f"{place.stem}.ipynb"
            assert place.is_file(), f"{page.relative_to(site)}: {link}"
            found += 1
    assert found > 150


@pytest.mark.parametrize(
    ("page", "text", "there"),
    [
        ("docs/a.md", "[b](config.md#all-keys)", "[b](config.md#all-keys)"),
        ("docs/a.md", "[b](../CONTRIBUTING.md)", "[b](CONTRIBUTING.md)"),
        ("docs/a.md", "[b](../benchmarks/best.md)", "[b](benchmarks/best.md)"),
        ("docs/a.md", "[b](../examples), [c](decisions)", "[b](examples/index.md), [c](decisions/index.md)"),
        ("docs/a.md", "[b](notebooks/add_five_classes.ipynb)", "[b](notebooks/add_five_classes.md)"),
        ("benchmarks/a.md", "[b](../docs/figure1)", "[b](../figure1/index.md)"),
        ("CONTRIBUTING.md", "[b](docs/decisions)", "[b](decisions/index.md)"),
        ("docs/a.md", "[the code](../src/everclip/plugins.py)", "the code"),
        ("docs/a.md", "[b](https://arxiv.org/abs/1)", "[b](https://arxiv.org/abs/1)"),
        ("docs/a.md", "```\n[b](../CONTRIBUTING.md)\n```", "```\n[b](../CONTRIBUTING.md)\n```"),
    ],
)
def test_a_link_fits_the_site(page: str, text: str, there: str, tmp_path: Path) -> None:
    places = pages.sources() | {page: page.removeprefix("docs/")}
    assert pages.linked(text, page, places, tmp_path) == there


def test_the_reference_has_all_that_is_public(site: Path) -> None:
    commands = (site / "reference" / "commands.md").read_text(encoding="utf-8")
    assert re.findall(r"^## (.+)$", commands, re.MULTILINE) == list(COMMANDS)
    for name, about in COMMANDS.items():
        assert about.line in commands, name
    for page, names in (("python", everclip.__all__), ("plots", plots.__all__)):
        text = (site / "reference" / f"{page}.md").read_text(encoding="utf-8")
        public = [name for name in names if not name.startswith("_")]
        assert re.findall(r"^::: everclip\.[\w.]+\.(\w+)$", text, re.MULTILINE) == public
    assert set(KINDS) == set(pages.CATALOGUES)
    for name, kind in KINDS.items():
        text = (site / "catalogues" / f"{name}.md").read_text(encoding="utf-8")
        assert set(re.findall(r"^## (.+)$", text, re.MULTILINE)) == set(plugins.names(kind))
        for plugin in plugins.names(kind):
            assert plugins.docstring(kind, plugin).strip().split("\n", 1)[0] in text


def test_each_page_has_its_place(site: Path) -> None:
    listed = set(re.findall(r": ([\w/-]+\.md)$", SETTINGS, re.MULTILINE))
    written = {path.relative_to(site).as_posix() for path in site.rglob("*.md")}
    notebooks = {f"notebooks/{path.stem}.md" for path in pages.ROOT.glob("docs/notebooks/*.ipynb")}
    assert listed - notebooks <= written
    assert notebooks <= listed
    rest = written - listed
    assert {name for name in rest if not re.match(r"decisions/\d|benchmarks/", name)} == {
        "figure1/index.md",
        "figure1/cells.md",
    }


def test_nothing_is_asked_of_another_host() -> None:
    assert "font: false" in SETTINGS
    assert not re.search(
        r"https?:", SETTINGS + (pages.ROOT / "tools" / "site.css").read_text(encoding="utf-8")
    )
