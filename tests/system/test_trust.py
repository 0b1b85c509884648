"""Modules that a file names are imported from trusted folders alone; those that the user names, always."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import everclip
from everclip import data
from everclip.cli.app import main
from everclip.config import load_config
from everclip.errors import UserError
from everclip.sweep.session import Session
from everclip.system import trust
from tests.attacks.plant import payload
from tests.cli.conftest import Say, say
from tests.running import run, run_for

__all__ = ["say"]

METHOD = """
from pathlib import Path
from everclip.methods.gcl import Gcl

Path({marker!r}).write_text("imported")

class Mine(Gcl):
    pass
"""
QUICK = ["scenario.tasks=2", "train.epochs=1", "train.batch_size=8", "memory.budget=6", "device=cpu"]


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    """What a test trusts or types is forgotten after it."""
    with trust.session(strict=False):
        yield


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of a method outside the package, which leaves ``imported`` when it is."""
    package = tmp_path / "path" / "everclip_test_mine"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "method.py").write_text(METHOD.format(marker=str(tmp_path / "imported")))
    monkeypatch.syspath_prepend(str(package.parent))
    monkeypatch.setenv("PYTHONPATH", f"{package.parent}:{Path(everclip.__file__).parents[1]}")
    yield "everclip_test_mine.method"
    _forget()


def _forget() -> None:
    for name in ("everclip_test_mine.method", "everclip_test_mine"):
        sys.modules.pop(name, None)


def _imported(tmp_path: Path) -> bool:
    """Whether the method was imported since this was asked last; it can be again after that."""
    _forget()
    marker = tmp_path / "imported"
    there = marker.exists()
    marker.unlink(missing_ok=True)
    return there


@pytest.mark.slow
def test_a_run_is_continued_with_code_that_is_trusted(
    tmp_path: Path, toy: str, photos: str, mine: str, say: Say
) -> None:
    half, words = tmp_path / "half", [f"data={photos}", f"model={toy}", f"method={mine}"]
    assert run_for(half, 2, *words, "checkpoint.every=steps:1") is None
    assert _imported(tmp_path)
    for other in ([], ["--trust", tmp_path / "path"]):
        code, out, err = say("resume", half, *other)
        assert (code, out) == (2, "")
        assert err == (
            f'error: {half}/config.toml asks to run the code "{mine}", which may do anything: look at it, then add'
            f" --trust {half} if you trust it\n"
        )
        assert not _imported(tmp_path)
    code, _, err = say("resume", half, f"--trust={half}")
    assert code == 0
    line = (
        f"--trust: {half}/config.toml has {mine} imported, from {tmp_path}/path/everclip_test_mine/method.py"
    )
    assert err.splitlines().count(line) == 1
    assert _imported(tmp_path)
    assert (half / "results.json").exists()
    # what is only read imports nothing, trusted or not
    assert say("report", half, "-o", tmp_path / "x.html", "--trust", half)[0] == 0
    assert say("compare", half, "--trust", half)[0] == 0
    assert everclip.load_runs(half)[0]["method"] == mine
    grid = [f"data={photos}", f"model={toy}", "method=gcl", "seed=0,1", *QUICK, f"out={tmp_path}"]
    code, _, err = say("sweep", *grid, "--print", "--trust", half)
    assert code == 0
    assert f'{half} is not touched: {half}/config.toml asks for the code "{mine}", which is not run' in err
    code, _, err = say("train", f"data={photos}", f"model={toy}", "method=gcl", *QUICK, f"out={half}")
    assert code == 2
    assert "holds a run of another config" in err
    assert not _imported(tmp_path)


def test_a_name_that_is_typed_is_imported(tmp_path: Path, toy: str, photos: str, mine: str, say: Say) -> None:
    """Also where a file names it too; a name in another place of the line does not count."""
    file = tmp_path / f"{mine}.toml"
    file.write_text(
        f'data = "{photos}"\nmodel = "{toy}"\ndevice = "cpu"\nmethod = "{mine}"\nscenario.tasks = 2\n'
    )
    code, _, err = say("train", file, "--dry-run", f"tuned_on={mine}", f"out={tmp_path / mine}")
    assert code == 2
    assert "--trust" in err
    assert not _imported(tmp_path)
    assert say("train", file, f"method={mine}", "--dry-run")[0] == 0
    assert _imported(tmp_path)
    assert say("methods", mine)[0] == 0
    assert _imported(tmp_path)
    assert say("doctor", "--config", file)[0] == 2
    assert not _imported(tmp_path)


def test_the_file_itself_must_be_in_the_folder(
    tmp_path: Path, toy: str, photos: str, mine: str, say: Say
) -> None:
    """Of files that extend one another the one with the name; not one that a link in the folder leads to."""
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    for folder in (inside, outside):
        folder.mkdir()
    common = f'data = "{photos}"\nmodel = "{toy}"\ndevice = "cpu"\nscenario.tasks = 2\n'
    (outside / "base.toml").write_text(f'{common}method = "{mine}"\n')
    (inside / "link.toml").symlink_to(outside / "base.toml")
    (inside / "extends.toml").write_text('extends = "../outside/base.toml"\n')
    for name in ("link.toml", "extends.toml"):
        code, _, err = say("train", inside / name, "--dry-run", "--trust", inside)
        assert code == 2
        assert f"{inside}" in err
        assert not _imported(tmp_path)
        assert say("train", inside / name, "--dry-run", "--trust", inside, "--trust", outside)[0] == 0
        assert _imported(tmp_path)


def test_a_model_folder_in_python(tmp_path: Path, toy: str, photos: str, mine: str, say: Say) -> None:
    run(tmp_path / "run", f"data={photos}", f"model={toy}", f"method={mine}")
    assert say("export", tmp_path / "run", "-o", tmp_path / "model", "--trust", tmp_path / "run")[0] == 0
    assert _imported(tmp_path)
    with trust.session(strict=False):
        with pytest.raises(UserError, match=r"everclip\.json asks to run the code"):
            everclip.Learner(str(tmp_path / "model"))
        assert not _imported(tmp_path)
        learner = everclip.Learner(str(tmp_path / "model"), trust=tmp_path / "model")
        assert "red" in learner.classes
        assert _imported(tmp_path)


def test_a_sweep_goes_on_with_what_was_typed(tmp_path: Path, toy: str, photos: str, mine: str) -> None:
    """A run that it continues is trusted by its command only as far as the sweep's own words go."""
    words = [f"data={photos}", f"model={toy}", *QUICK, f"method={mine}", f"out={tmp_path / 's'}"]
    place = tmp_path / "s" / "here"
    assert run_for(place, 2, *words[:-1], "checkpoint.every=steps:1") is None
    with trust.session():
        session = Session.of(words)
        (job,) = session.jobs
        assert session.folder.command(job) == ["resume", str(place), "--trust", str(place)]
        text = (place / "config.toml").read_text()
        (place / "config.toml").write_text(
            f'trackers = ["stranger.payload"]\n{text.replace("trackers = []", "")}'
        )
        session.refresh()
        assert session.folder.command(job) == ["resume", str(place)]
    with trust.session([tmp_path]):
        session = Session.of(words)
        assert session.folder.command(job)[2:] == ["--trust", str(tmp_path)]


def test_what_a_strangers_search_has_chosen_is_not_taken_for_typed(
    tmp_path: Path, toy: str, photos: str, mine: str, say: Say
) -> None:
    words = [f"data={photos}", f"model={toy}", *QUICK, "method=wise_ft", f"out={tmp_path / 's'}"]
    session = Session.of(words, ["method.loss=gcl,finetune"])
    (search,) = session.tune
    search.path.mkdir(parents=True)
    head = "photos, tasks 1-2, 0.2 of their training images, memory 0, seed 0"
    text = f'tuned_on = "{head}; method.loss gcl: 0.1, finetune: 0.2, {mine}: 0.3"\n'
    (search.path / "tuned.toml").write_text(f'{text}[method]\nname = "wise_ft"\nloss = "{mine}"\n')
    code, out, _ = say("sweep", *words, "--tune", "method.loss=gcl,finetune", "--dry-run")
    assert code == 0
    assert f"tune {search.name}" in out, "it is no outcome of this search"
    assert not _imported(tmp_path)


@pytest.mark.parametrize("name", ["./own\x1b[2K.py", "./own\u202e.py", "./own\n.py"])
def test_code_whose_name_would_change_a_terminal_is_refused(tmp_path: Path, name: str) -> None:
    """Also where its folder is trusted: what is imported is said, and must be what was looked at."""
    with trust.session([str(tmp_path)]):
        trust.asked({"method": name}, tmp_path / "config.toml")
        with pytest.raises(trust.Refused, match="which cannot be printed: name it otherwise"):
            trust.check(name)


def test_a_trusted_file_is_said_without_what_a_terminal_obeys(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with trust.session([str(tmp_path)]):
        trust.asked({"method": "a.b"}, tmp_path / "c\x1b[2K.toml")
        trust.check("a.b")
    assert capsys.readouterr().err.startswith(f"--trust: {tmp_path}/c\\x1b[2K.toml has a.b imported")


@pytest.mark.parametrize(
    ("word", "why"),
    [
        ("method=os.path", "module os.path defines no method"),
        ("data=os.path", "module os.path defines no source"),
        ("tune=os.path", "module os.path defines no tuning"),
        ("trackers=os.path", "module os.path defines no tracker"),
        ("model=os.path", 'unknown model "os.path"'),
    ],
)
def test_a_module_of_another_kind_is_refused(
    word: str, why: str, toy: str, photos: str, tmp_path: Path, say: Say
) -> None:
    key = word.partition("=")[0]
    words = [
        w for w in (f"data={photos}", f"model={toy}", "method=gcl", *QUICK) if not w.startswith(f"{key}=")
    ]
    for more in (
        ["train", "--dry-run"],
        ["train"],
        ["tune", "train.lr=1e-4,1e-3"],
        ["sweep", "seed=0,1", "--dry-run"],
    ):
        code, out, err = say(*more[:1], *words, word, *more[1:], f"out={tmp_path / 'new'}")
        assert (code, out) == (2, ""), more
        assert why in err
        assert err.count("\n") == 1
        assert not [*(tmp_path / "new").rglob("*")]


def test_the_option(tmp_path: Path, say: Say, monkeypatch: pytest.MonkeyPatch) -> None:
    assert trust.taken(["a", "--trust", "b", "--trust=c", "--", "--trust", "d"]) == (
        ["a", "--", "--trust", "d"],
        ["b", "c"],
    )
    for words in (["train", "--trust"], ["train", "--trust="], ["train", "--trust", "--dry-run"]):
        assert say(*words) == (2, "", "error: --trust needs a folder: use --trust FOLDER\n")
    monkeypatch.chdir(tmp_path)
    for name in ("--trust=.", "--trust"):  # as a pattern such as * has them
        (tmp_path / name).touch()
        assert say("methods", name, ".") == (
            2,
            "",
            f'error: a file here is called "{name}": give files as ./*, or use --trust from another folder\n',
        )
        (tmp_path / name).unlink()
    assert 'error: --trust "none" is not a folder' in say("methods", "--trust", "none")[2]
    assert say("methods", "--trust", tmp_path)[0] == 0
    for command in ("train", "resume", "sweep", "predict", "update"):
        assert "--trust FOLDER" in say(command, "--help")[1]


def test_a_place_is_found_without_an_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of packages, of folders without __init__.py, and of what is not there."""
    for folder in ("everclip_test_a", "everclip_test_b"):
        (tmp_path / folder / "inner").mkdir(parents=True)
        (tmp_path / folder / "inner" / "module.py").write_text("raise SystemExit\n")
    (tmp_path / "everclip_test_a" / "__init__.py").write_text("raise SystemExit\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    for folder in ("everclip_test_a", "everclip_test_b"):
        assert trust.place(f"{folder}.inner.module") == str(tmp_path / folder / "inner" / "module.py")
        assert trust.place(f"{folder}.inner") == str(tmp_path / folder / "inner")
        assert trust.place(f"{folder}.none.module") == "a file that PYTHONPATH does not show"
        assert folder not in sys.modules


def test_sessions_of_threads_that_overlap_do_not_lend_each_other_trust(tmp_path: Path) -> None:
    mine, theirs = tmp_path / "mine", tmp_path / "theirs"
    for where in (mine, theirs):
        where.mkdir()
    steps = threading.Barrier(2, timeout=20)
    refused: list[str] = []

    def first() -> None:
        with trust.session([mine]):
            steps.wait()
            steps.wait()
        steps.wait()

    def second() -> None:
        steps.wait()
        with trust.session([theirs]):
            for _ in range(2):  # while the other one is open, and when it has ended
                steps.wait()
                trust.asked({"method": "evil.mod"}, mine / "config.toml")
                with pytest.raises(UserError) as found:
                    trust.check("evil.mod")
                refused.append(str(found.value))

    threads = [threading.Thread(target=work) for work in (first, second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(refused) == 2
    with trust.session([]):
        trust.asked({"method": "evil.mod"}, mine / "config.toml")
        with pytest.raises(UserError, match=r"asks to run the code \"evil\.mod\""):
            trust.check("evil.mod")


def test_a_command_line_leaves_nothing_behind(tmp_path: Path) -> None:
    """What one allows the next one does not."""
    assert main(["methods", "--trust", str(tmp_path)]) == 0
    assert trust.passed_on() == []
    with trust.session():
        with pytest.raises(trust.Refused, match=r'a file asks to run the code "a\.b"'):
            trust.check("a.b")
        trust.typed(["x", {"y": "a.b:c"}])
        trust.check("a.b")
    trust.check("a.b")  # in Python, what no file asks for is the caller's own


@pytest.mark.parametrize(
    "values", ['data = "joined:{}:x+emoji"', 'data = "joined"\nsource.of = ["emoji", "{}:x"]']
)
def test_a_part_of_joined_data_is_named_by_whoever_names_the_whole(
    tmp_path: Path, toy: str, say: Say, values: str
) -> None:
    """A file's part runs no code, a typed or trusted one does."""
    code, ran, folder = tmp_path / "mine" / "source.py", tmp_path / "ran", tmp_path / "config"
    payload(code, ran, "raise ValueError")  # else it would be imported once
    folder.mkdir()
    file = folder / "mine.toml"
    file.write_text(f'{values.format(code)}\nmodel = "{toy}"\nmethod = "gcl"\ndevice = "cpu"\n')
    status, _, err = say("train", file, "--dry-run")
    assert (status, f'{file} asks to run the code "{code}"' in err, err.count("\n")) == (2, True, 1)
    with pytest.raises(UserError, match="asks to run the code"), trust.session(strict=False):
        data.of(load_config([str(file)]))
    assert not ran.exists()
    typed = f'source.of=["{code}:x","emoji"]'
    for words in (
        ("train", file, "--dry-run", "--trust", folder),
        ("evaluate", toy, "--data", f"joined:emoji + {code}:x"),
        ("train", "data=joined", typed, f"model={toy}", "method=gcl", "--dry-run"),
    ):
        say(*words)
        assert ran.exists(), words
        ran.unlink()


def test_code_with_a_colon_in_its_path_counts_too() -> None:
    """A tracker, or a method within another, is a name alone, whatever colons are in it."""
    assert [*trust.names(["x:/evil.py", "lora:8", "a.b:c"])] == ["x:/evil.py", "a.b"]
    assert [*trust.names("joined:joined:a.b:x+./c.py:d + e.f")] == ["./c.py", "e.f"]
