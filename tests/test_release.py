"""A release: what has to agree before one is built, and what is in the wheel and the sdist."""

from __future__ import annotations

import re
import shutil
import subprocess
import zipfile
from pathlib import Path
from types import NoneType

import pytest
from tools import release

from everclip import plugins
from everclip.cli.app import main
from everclip.config.fields import before
from everclip.config.models import Config
from everclip.errors import UserError
from everclip.methods.base.registry import method_class

PAGES = ("CHANGELOG.md", "CITATION.cff", "src/everclip/_version.py")


@pytest.fixture
def pages(tmp_path: Path) -> Path:
    """A folder with the pages that a release compares, as they were for the last release."""
    for name in PAGES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(release.ROOT / name, tmp_path / name)
    (tmp_path / PAGES[-1]).write_text('__version__ = "0.1.0"\n', encoding="utf-8")
    return tmp_path


@pytest.fixture
def checkout(pages: Path) -> Path:
    """The same as a commit."""
    _git(pages, "init", "--quiet")
    _git(pages, "config", "user.name", "somebody")
    _git(pages, "config", "user.email", "somebody@example.org")
    _commit(pages)
    return pages


def _git(folder: Path, *words: str) -> None:
    subprocess.run(["git", *words], cwd=folder, check=True)


def _commit(folder: Path) -> None:
    _git(folder, "add", ".")
    _git(folder, "commit", "--quiet", "--message", "all")


def test_the_pages_of_the_last_release_agree(pages: Path) -> None:
    assert release.check_pages(pages) == "0.1.0"


def test_a_version_in_development_is_not_released(pages: Path) -> None:
    (pages / PAGES[-1]).write_text('__version__ = "0.1.1.dev3"\n', encoding="utf-8")
    with pytest.raises(UserError, match=r"0\.1\.1\.dev3, a version in development: write 0\.1\.1$"):
        release.check_pages(pages)


@pytest.mark.parametrize(
    ("name", "old", "new", "said"),
    [
        ("CHANGELOG.md", r"^## 0\.1\.0 - .*$", "## 0.1.0", "CHANGELOG.md has no date at 0.1.0"),
        ("CHANGELOG.md", r"^## 0\.1\.0 - .*$", "## Next", "CHANGELOG.md has no section 0.1.0"),
        ("CHANGELOG.md", r"^- ", "", "CHANGELOG.md says nothing of 0.1.0"),
        ("CITATION.cff", r"^version: .*$", "version: 0.0.9", "CITATION.cff has version 0.0.9: write 0.1.0"),
        ("CITATION.cff", r"^date-released: .*$", "", "CITATION.cff has date-released None"),
        ("CITATION.cff", "The everclip contributors", "Somebody", "CITATION.cff has authors"),
        ("CITATION.cff", "2605.03866", "1234.56789", "CITATION.cff does not cite the paper"),
        ("src/everclip/_version.py", "__version__ = .*", "", "_version.py has no line"),
    ],
)
def test_what_does_not_agree_is_refused(pages: Path, name: str, old: str, new: str, said: str) -> None:
    text = (pages / name).read_text(encoding="utf-8")
    (pages / name).write_text(re.sub(old, new, text, flags=re.MULTILINE), encoding="utf-8")
    with pytest.raises(UserError, match=re.escape(said)):
        release.check_pages(pages)


def test_only_a_commit_is_released(checkout: Path) -> None:
    release.check_tree(checkout, "0.1.0")
    (checkout / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"1 changes, such as '\?\? notes.txt'"):
        release.check_tree(checkout, "0.1.0")


def test_a_tag_stays_with_its_content(checkout: Path) -> None:
    _git(checkout, "tag", "v0.1.0")
    release.check_tree(checkout, "0.1.0")
    (checkout / "CHANGELOG.md").write_text("more")
    _commit(checkout)
    with pytest.raises(UserError, match=r"the tag v0\.1\.0 has other content"):
        release.check_tree(checkout, "0.1.0")
    release.check_tree(checkout, "0.2.0")


def test_the_upgrade_note_lists_each_default_that_changed() -> None:
    page = (release.ROOT / "docs" / "upgrade.md").read_text(encoding="utf-8")
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in page.splitlines()
        if line.startswith("| `")
    ]
    table = {(row[0].strip("`"), row[1]): row[2:] for row in rows if len(row) == 4}
    changed = {("references", "all", "none", Config.model_fields["references"].default)}
    for name in plugins.names("methods"):
        options = method_class(name).Config
        changed |= {
            (f"method.{key}", name, old, options.model_fields[key].default)
            for key, old in before(options).items()
        }
    for key, name, old, new in changed:
        here = [
            row
            for (setting, who), row in table.items()
            if setting == key and (f"`{name}`" in who or "all" in who)
        ]
        assert len(here) == 1, (key, name)
        assert here[0][0].startswith(f"`{_toml(old)}`"), (key, name)
        assert here[0][1].startswith(f"`{_toml(new)}`"), (key, name)


def _toml(value: object) -> str:
    return "none" if isinstance(value, NoneType) else str(value)


@pytest.mark.slow
def test_wheel_and_sdist_hold_what_they_should(tmp_path: Path) -> None:
    if not release.git(release.ROOT, "rev-parse", "HEAD"):
        pytest.skip("not a git checkout: which files belong there is not known")
    wheel, sdist = release.build(release.ROOT, tmp_path)
    release.check_content(release.ROOT, wheel, sdist)
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    info = f"everclip-{release.version(release.ROOT)}.dist-info"
    assert {name.partition("/")[0] for name in names} == {"everclip", info}
    with zipfile.ZipFile(wheel, "a") as archive:
        archive.writestr("tests/test_release.py", "")
    with pytest.raises(UserError, match=r"1 files that do not belong there, such as tests/test_release\.py"):
        release.check_content(release.ROOT, wheel, sdist)


@pytest.mark.slow
def test_the_demo_from_the_wheel_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["train", "demo", "smoke=true", "out=run"]) == 0
    assert re.fullmatch(r"last \d+\.\d%, page of \d\.\d MB", release.ended(tmp_path / "run"))
