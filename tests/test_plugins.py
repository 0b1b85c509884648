"""Plug-ins are found by file name, inside the package and outside it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path, PurePath

import pytest

from everclip import plugins
from everclip.cli.app import main
from everclip.errors import UserError, suggest
from everclip.seeding import hash64
from tests.complaints import complaint

KINDS = ["methods", "data/sources", "data/policies", "data/scenarios", "models/tunings", "trackers"]
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


def test_a_package_in_the_working_folder_is_found_and_nothing_else_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "everclip_test_here").mkdir()
    (tmp_path / "everclip_test_here" / "plug_in.py").write_text("ANSWER = 43\n")
    (tmp_path / "everclip_test_other.py").write_text("raise RuntimeError\n")
    monkeypatch.chdir(tmp_path)
    assert plugins.load("methods", "everclip_test_here.plug_in").ANSWER == 43
    assert str(tmp_path) not in sys.path
    with pytest.raises(ModuleNotFoundError):
        __import__("everclip_test_other")


BROKEN = """
from everclip.methods import Method

class Broken(Method):
    def encode(self, clip, batch, phase):
        {encode}

    def loss(self, features, batch, phase):
        {loss}

    def penalty(self, clip):
        return {penalty}
"""
GOOD = {
    "encode": 'return {"image": clip.encode_image(batch.images)}',
    "loss": 'return {"loss": features["image"].sum()}',
    "penalty": "{}",
}


@pytest.mark.parametrize(
    ("change", "code", "message"),
    [
        ({"encode": "return 1 / 0"}, 1, "broken.py, line 6, in encode: ZeroDivisionError: division by zero"),
        ({"loss": "return features['text']"}, 1, "broken.py, line 9, in loss: KeyError: 'text'"),
        ({"loss": "return ("}, 1, "broken.py, line 9: SyntaxError: '(' was never closed"),
        ({"penalty": "0"}, 2, "broken.py) has returned 0: return a dict of names and scalar tensors"),
        ({"loss": 'return {"x": features["image"]}'}, 2, 'has returned "x" of shape (24, 16): return a dict'),
        ({"encode": 'return {"image": None}'}, 2, 'has returned "image": None: return a dict'),
    ],
)
def test_an_error_of_a_plug_in_names_its_line_and_is_not_everclips(
    change: dict[str, str],
    code: int,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    toy: str,
    photos: str,
) -> None:
    name = f"mine_{hash64('broken', str(change)):x}"  # modules of other cases stay imported
    (tmp_path / name).mkdir()
    (tmp_path / name / "broken.py").write_text(BROKEN.format(**(GOOD | change)))
    monkeypatch.chdir(tmp_path)
    words = [f"method={name}.broken", f"data={photos}", f"model={toy}", "out=run", "device=cpu"]
    assert main(["train", *words, "scenario.tasks=1", "train.batch_size=24"]) == code
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert message in line
    assert "internal error" not in line


@pytest.mark.parametrize(
    ("kind", "name", "message"),
    [
        ("methods", "zero_shto", 'unknown method "zero_shto"; did you mean "zero_shot"?'),
        ("methods", "_base", 'unknown method "_base"'),
        ("data/policies", "herdng", 'unknown policy "herdng"; did you mean "herding"?'),
        ("data/sources", "imagefoldr", 'unknown source "imagefoldr"; did you mean "imagefolder"'),
        ("methods", "no.such_module", "method \"no.such_module\" cannot be imported: No module named 'no'"),
    ],
)
def test_what_is_not_there_is_refused_with_a_suggestion(kind: str, name: str, message: str) -> None:
    assert complaint(plugins.load, kind, name).startswith(message)


def test_a_file_is_a_plug_in_wherever_it_lies(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    toy: str,
    photos: str,
) -> None:
    name = f"mine-{hash64('file', str(tmp_path)):x}.py"
    (tmp_path / name).write_text(BROKEN.format(**GOOD))
    monkeypatch.chdir(tmp_path)
    words = [f"data={photos}", f"model={toy}", "device=cpu", "scenario.tasks=1", "train.epochs=1"]
    assert main(["train", f"method=./{name}", *words]) == 0
    (folder,) = (tmp_path / "runs").iterdir()
    assert name in folder.name
    capsys.readouterr()
    assert main(["resume", str(folder)]) == 2
    assert f'asks to run the code "./{name}"' in capsys.readouterr().err
    assert main(["methods", f"./{name}"]) == 0
    assert main(["methods", "./none.py"]) == 2
    assert 'method "./none.py" does not exist: give the path' in capsys.readouterr().err


def test_a_plug_in_is_the_one_class_of_its_kind(tmp_path: Path) -> None:
    file = tmp_path / "two.py"
    file.write_text("from pathlib import PurePath\nclass A(PurePath): ...\nclass B(PurePath): ...\n")
    with pytest.raises(
        UserError, match=r"defines A and B: it must define one subclass of everclip.data.policies.PurePath"
    ):
        plugins.find("data/policies", str(file), PurePath)
    file = tmp_path / "none.py"
    file.write_text("")
    with pytest.raises(UserError, match="defines no policy: it must"):
        plugins.find("data/policies", str(file), PurePath)
    file = tmp_path / "named_twice.py"
    file.write_text("from pathlib import PurePath\nclass A(PurePath): ...\nALIAS, NAMES = A, []\n")
    assert plugins.find("data/policies", str(file), PurePath).__name__ == "A"


def test_a_suggestion_is_the_nearest_or_all() -> None:
    assert suggest("gdor", ["gdro", "gcl"]) == '; did you mean "gdro"?'
    assert suggest("xyz", ["gdro", "gcl"]) == "; known: gcl, gdro"


@pytest.mark.parametrize(("text", "error"), [("1 / 0", "ZeroDivisionError"), ("def (", "SyntaxError")])
def test_a_file_that_cannot_be_imported_is_named(
    text: str, error: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "wrong.py"
    file.write_text(text)
    assert main(["policies", str(file)]) == 1
    said = capsys.readouterr().err
    assert f"error: {file}, line 1" in said
    assert error in said
    assert "internal error" not in said
