"""Plug-ins are found by file name, inside the package and outside it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from everclip import plugins
from everclip.errors import UserError, suggest

KINDS = ["methods", "data/sources"]
SHIPPED = [(kind, name) for kind in KINDS for name in plugins.names(kind)]


def test_names_are_the_files_that_do_not_start_with_an_underscore() -> None:
    names = plugins.names("methods")
    assert names == sorted(names)
    assert {"zero_shot", "finetune"} <= set(names)
    assert "_base" not in names
    assert {"emoji", "imagefolder", "domainfolder"} <= set(plugins.names("data/sources"))


@pytest.mark.parametrize(("kind", "name"), SHIPPED)
def test_a_shipped_plug_in_explains_itself_and_loads(kind: str, name: str) -> None:
    text = plugins.docstring(kind, name)
    assert text
    assert plugins.load(kind, name).__doc__ is not None
    assert (plugins.load(kind, name).__doc__ or "").startswith(text.split("\n")[0])


def test_docstrings_are_read_without_importing() -> None:
    code = (
        "import sys; from everclip import plugins\n"
        "[plugins.docstring('methods', name) for name in plugins.names('methods')]\n"
        "sys.exit('torch' in sys.modules or 'everclip.methods.base.method' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_dotted_name_is_a_module_of_the_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "everclip_test_package").mkdir()
    (tmp_path / "everclip_test_package" / "plug_in.py").write_text("ANSWER = 42\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert plugins.load("methods", "everclip_test_package.plug_in").ANSWER == 42


@pytest.mark.parametrize(
    ("kind", "name", "message"),
    [
        ("methods", "zero_shto", 'unknown method "zero_shto"; did you mean "zero_shot"?'),
        ("methods", "_base", 'unknown method "_base"'),
        ("data/sources", "imagefoldr", 'unknown source "imagefoldr"; did you mean "imagefolder"'),
        ("methods", "no.such_module", "method \"no.such_module\" cannot be imported: No module named 'no'"),
    ],
)
def test_what_is_not_there_is_refused_with_a_suggestion(kind: str, name: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        plugins.load(kind, name)
    assert str(caught.value).startswith(message)
    assert len(str(caught.value).splitlines()) == 1


def test_a_suggestion_is_the_nearest_or_all() -> None:
    assert suggest("gdor", ["gdro", "gcl"]) == '; did you mean "gdro"?'
    assert suggest("xyz", ["gdro", "gcl"]) == "; known: gcl, gdro"
