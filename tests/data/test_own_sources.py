"""Sources outside the package, with options and without, through the commands; and what holds of every shipped one."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest

from everclip import data, plugins
from everclip.cli.app import main
from everclip.data.sources import Source
from everclip.errors import UserError
from everclip.runs import card
from everclip.runs.run import Run
from everclip.seeding import hash64
from everclip.system import trust
from everclip.training import fork
from tests.complaints import complaint
from tests.pictures import COLOURS, picture
from tests.printed import printed
from tests.running import configured, run

ONE = '''"""one:FOLDER - its pictures, CLASS-NUMBER.png."""

from pathlib import Path

from everclip.data.images import FileStore, build
from everclip.data.sources import Source


class One(Source):
    def load(self, argument, kind):
        keys = sorted(path.name for path in Path(argument).iterdir())
        names = sorted({key.split("-")[0] for key in keys})
        labels = [names.index(key.split("-")[0]) for key in keys]
        is_test = [key.endswith("-0.png") for key in keys]
        store = FileStore(Path(argument), keys)
        return build("one", store, labels, [0] * len(keys), is_test, names, [""], ["a {}."])
'''
TWO = printed("MySource")
"""The example of CONTRIBUTING as it stands."""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A package in the working folder with two sources, beside a folder of pictures."""
    name = f"mine_{hash64('sources', str(tmp_path)):x}"  # modules of other tests stay imported
    (tmp_path / name).mkdir()
    (tmp_path / name / "one.py").write_text(ONE, encoding="utf-8")
    (tmp_path / name / "two.py").write_text(TWO, encoding="utf-8")
    (tmp_path / "pictures").mkdir()
    for colour in ("blue", "green", "red"):
        for number in range(4):
            picture(COLOURS[colour], number).save(tmp_path / "pictures" / f"{colour}-{number}.png")
    monkeypatch.chdir(tmp_path)
    return name


def words(spec: str, toy: str, *more: str) -> list[str]:
    return [f"data={spec}:pictures", f"model={toy}", "method=finetune", "device=cpu", "scenario.tasks=3",
            "train.epochs=1", "train.batch_size=8", *more]  # fmt: skip


def test_a_source_of_a_package_is_trained_on(package: str, toy: str) -> None:
    assert main(["train", *words(f"{package}.one", toy, "out=run")]) == 0
    results = json.loads(Path("run/results.json").read_text())
    assert results["test_counts"] == [1, 1, 1]
    assert sorted(results["classes"]) == ["blue", "green", "red"]
    assert "source" not in tomllib.loads(Path("run/config.toml").read_text())


def test_the_example_of_contributing_is_a_source_and_its_options_are_kept(package: str, toy: str) -> None:
    assert main(["train", *words(f"{package}.two", toy, "source.every=2", "out=run")]) == 0
    assert json.loads(Path("run/results.json").read_text())["test_counts"] == [2, 2, 2]
    assert tomllib.loads(Path("run/config.toml").read_text())["source"] == {"every": 2}
    Path("my_source.py").write_text(TWO, encoding="utf-8")
    config = configured(*words("./my_source.py", toy))
    assert config.source.options == {"every": 5}, "filled in"
    assert len(data.of(config).test) == 3
    assert len(data.load("./my_source.py:pictures", options={"every": 3}).test) == 4


@pytest.mark.parametrize(
    ("module", "word", "message"),
    [
        ("two", "source.evry=2", 'unknown key "source.evry"; did you mean "source.every"?'),
        ("two", "source.every=1", "source.every is 1: use a whole number from 2"),
        ("one", "source.every=2", 'unknown key "source.every": there are no options; leave it out'),
    ],
)
def test_a_wrong_option_is_refused(
    package: str, toy: str, module: str, word: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", *words(f"{package}.{module}", toy, word, "out=run")]) == 2
    assert capsys.readouterr().err == f"error: {message}\n"
    assert not Path("run").exists()
    options = {word[7:-2]: int(word[-1])}
    assert complaint(data.load, f"{package}.{module}:pictures", options=options) == message


@pytest.mark.parametrize("own", ["PACKAGE.two", "./my_source.py"])
def test_datasets_explains_a_source_of_ones_own(
    package: str, own: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("my_source.py").write_text(TWO, encoding="utf-8")
    own = own.replace("PACKAGE", package)
    assert main(["datasets", own]) == 0
    text = capsys.readouterr().out
    assert text.startswith("my_source:FOLDER - pictures called CLASS-NUMBER.png in one folder.\n")
    assert text.splitlines()[-1].split(maxsplit=2) == [
        *("source.every", "5"),
        "one picture in so many is a test picture (a whole number from 2)",
    ]
    assert main(["datasets", own, "--json"]) == 0
    (option,) = json.loads(capsys.readouterr().out)["options"]
    assert (option["name"], option["default"]) == ("every", 5)
    assert main(["datasets", "check", f"{own}:pictures"]) == 0
    assert capsys.readouterr().out.endswith("complete\n")


def test_a_module_that_defines_no_source_or_two(package: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path(package, "both.py").write_text(ONE + ONE[ONE.index("class One") :].replace("One", "Other"))
    assert main(["datasets", f"{package}.both"]) == 2
    need = "it must define one subclass of everclip.data.sources.Source"
    assert f"module {package}.both defines One and Other: {need}" in capsys.readouterr().err
    assert main(["train", "data=os.path:x", "--dry-run"]) == 2
    assert f"module os.path defines no source: {need}" in capsys.readouterr().err


def test_a_run_is_read_where_its_source_may_not_be_imported(tmp_path: Path, package: str, toy: str) -> None:
    run(tmp_path / "run", *words(f"{package}.two", toy, "source.every=2"))
    with trust.session():
        config = Run.read_config(tmp_path / "run")
        assert config.source.options == {"every": 2}
        folder = next((tmp_path / "run" / "checkpoints").glob("*/everclip.json")).parent
        assert card.read(folder).config().source == config.source
        with pytest.raises(trust.Refused, match=f'asks to run the code "{package}.two"'):
            data.of(config)


def test_a_run_is_no_beginning_of_one_with_other_options(tmp_path: Path, package: str, toy: str) -> None:
    tokens = words(f"{package}.two", toy)
    run(tmp_path / "run", *tokens, "source.every=2")
    asked = [*tokens, f"fork={tmp_path / 'run'}@2"]
    assert fork.source(configured(*asked, "source.every=2")).folder.is_dir()
    with pytest.raises(UserError, match=r"source\.every is 2 there and 3 here"):
        fork.source(configured(*asked, "source.every=3"))


@pytest.mark.parametrize("name", plugins.names("data/sources"))
def test_a_shipped_source(name: str) -> None:
    cls = plugins.find("data/sources", name, Source)
    source, argument = data.source(f"{name}:~/x", {})
    assert type(source) is cls
    assert argument == str(Path("~/x").expanduser())
    assert all(field.description for field in cls.Config.model_fields.values())
    assert not source.remotes() or source.official
    assert plugins.docstring("data/sources", name).startswith(name), "what is written after data="
