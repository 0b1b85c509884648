"""The command line: help, exit codes and one-line messages."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from docstring_parser import google
from PIL import Image
from pydantic_core import SchemaError

import everclip
from everclip.cli import app, catalogue, doctor
from everclip.errors import UserError

LIGHT = ("torch", "open_clip", "numpy", "PIL", "pydantic", "matplotlib")


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "everclip", *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | environment,
    )


def complaint(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 2) -> str:
    """What a command line that must fail says: one line on stderr, nothing on stdout."""
    assert app.main(arguments) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    return captured.err.rstrip("\n")


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from everclip.cli.app import main; code = main(['--help'])\n"
        f"sys.exit(code or ' '.join(name for name in {LIGHT!r} if name in sys.modules) or 0)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr


def test_where_it_cannot_run_one_line_says_so() -> None:
    """Windows has no fcntl."""
    code = (
        "import os, sys; os.name = 'nt'; sys.modules['fcntl'] = None\n"
        "from everclip.__main__ import main; sys.exit(main())"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    told = "error: everclip needs Linux or macOS: on Windows use it in WSL (wsl --install)\n"
    assert (found.returncode, found.stdout, found.stderr) == (2, "", told)


def test_a_plug_in_that_ends_the_process_is_quoted(tmp_path: Path) -> None:
    (tmp_path / "ends.py").write_text('import sys\nsys.exit("a licence is needed")\n')
    found = run("methods", str(tmp_path / "ends.py"))
    assert (found.returncode, found.stdout, found.stderr) == (1, "", "a licence is needed\n")
    (tmp_path / "quits.py").write_text("import sys\nsys.exit(7)\n")
    assert run("methods", str(tmp_path / "quits.py")).returncode == 7


def test_help_starts_with_examples(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--help"], *([name, "--help"] for name in app.COMMANDS)):
        assert app.main(arguments) == 0
        text = capsys.readouterr().out
        assert text.startswith("Examples:\n  everclip ")
        assert "Usage: everclip" in text
        examples = text.split("Usage:")[0]
        assert all(line.startswith("  everclip ") for line in examples.strip().splitlines()[1:]), (
            "wrapped at 80"
        )


def test_what_a_docstring_says_of_an_option_is_in_the_help(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A docstring that the parser cannot read would leave all its options without a word."""
    monkeypatch.setenv("COLUMNS", "200")
    for name in app.COMMANDS:
        command = app.build()[name]
        text = command.default_command.__doc__ or ""
        if "Args:" not in text:
            continue
        said = google.parse(text).params
        assert said, name
        assert app.main([name, "--help"]) == 0
        shown = " ".join(re.sub("[│╭╮╰╯─]", " ", capsys.readouterr().out).split())
        for one in said:
            words = " ".join((one.description or "").split())
            assert words[:40] in shown, (name, one.arg_name)


def test_every_command_is_in_the_help_and_can_be_loaded(capsys: pytest.CaptureFixture[str]) -> None:
    app.main([])
    text = capsys.readouterr().out
    for name, command in app.COMMANDS.items():
        assert name in text
        assert command.line.split()[0] in text
        assert callable(app.build()[name].default_command)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert app.main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == everclip.__version__


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], 'unknown command "trian"; did you mean "train"?'),
        (["--foo"], 'unknown command "--foo"; known: classes, compare, configs'),
        (["train", "--lr=3"], 'unknown option "--lr=3": settings have no dashes, use train.lr=VALUE'),
        (
            ["train", "--batch-size", "3"],
            'unknown option "--batch-size": settings have no dashes, use train.batch',
        ),
        (["train", "--dry"], "Unknown option: --dry. Did you mean --dry-run? See everclip train --help"),
        (["train", "sed=1"], 'unknown key "sed"; did you mean "seed"?'),
        (["train", "seed=x", "--dry-run"], 'seed is "x": use a whole number'),
        (["evaluate"], "everclip evaluate needs RUN: see everclip evaluate --help"),
        (["resume", "a", "b"], 'everclip resume does not take "b": see everclip resume --help'),
        (["methods", "gdor"], 'unknown method "gdor"; '),
        (["datasets", "emojy"], 'unknown source "emojy"; did you mean "emoji"?'),
        (["models", "ViT-B-61:openai"], 'unknown model "ViT-B-61:openai"; the nearest are ViT-B-16:openai'),
        (["models", "zzzz"], 'unknown model "zzzz"; the nearest are '),
        (["scenarios", "class"], 'unknown scenario "class"'),
        (["doctor", "--jsn"], "Unknown option: --jsn. Did you mean --json? See everclip doctor --help"),
    ],
)
def test_a_mistake_gives_one_line_and_code_2(
    capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert complaint(capsys, *arguments).startswith(f"error: {message}")


def test_exit_codes_of_the_process() -> None:
    found = run("train", "sed=1")
    assert (found.returncode, found.stdout) == (2, "")
    assert found.stderr == 'error: unknown key "sed"; did you mean "seed"?\n'
    assert run("--version").returncode == 0
    assert run("bogus").returncode == 2


def raising(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def command(*, json: bool = False) -> int:
        raise error

    monkeypatch.setattr(doctor, "doctor", command)


def test_an_interruption_says_how_to_go_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    raising(monkeypatch, KeyboardInterrupt())
    assert (
        complaint(capsys, "doctor", code=130) == 'interrupted; "everclip resume RUN" continues a stopped run'
    )
    raising(monkeypatch, SchemaError('Error building "model" validator:\n  KeyboardInterrupt: '))
    assert complaint(capsys, "doctor", code=130).startswith("interrupted; ")
    raising(monkeypatch, KeyboardInterrupt("interrupted; everclip resume runs/X continues it"))
    assert complaint(capsys, "doctor", code=130) == "interrupted; everclip resume runs/X continues it"


def test_a_message_of_several_lines_becomes_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    raising(monkeypatch, UserError("wrong\n here"))
    assert complaint(capsys, "doctor") == "error: wrong here"


def test_a_fault_of_ours_shows_a_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    raising(monkeypatch, ZeroDivisionError("oh"))
    assert app.main(["doctor"]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("Traceback")
    assert lines[-1] == "error: internal error (ZeroDivisionError): please report it with the lines above"


@pytest.mark.parametrize("command", ["report", "compare", "resume", "evaluate", "predict lite"])
def test_a_path_that_cannot_be_looked_at_gives_one_line(
    capsys: pytest.CaptureFixture[str], command: str
) -> None:
    line = complaint(capsys, *command.split(), "x" * 300)
    assert re.fullmatch(r"error: x{200} cannot be used \(File name too long\): give another path", line)


def test_a_folder_that_may_not_be_read_gives_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    raising(monkeypatch, PermissionError(errno.EACCES, "Permission denied", "runs/theirs/config.toml"))
    line = complaint(capsys, "doctor")
    assert line == "error: runs/theirs/config.toml cannot be used (Permission denied): give another path"
    raising(monkeypatch, FileNotFoundError(errno.ENOENT, "No such file or directory", "ours"))
    assert app.main(["doctor"]) == 1
    assert capsys.readouterr().err.startswith("Traceback"), "a lost file of ours is a fault"


@pytest.mark.parametrize("words", [("resume",), ("predict", "photo.jpg")])
def test_an_unknown_users_home_gives_one_line(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: tuple[str, ...],
) -> None:
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (8, 8)).save("photo.jpg")
    said = 'error: a path begins with "~" and a user who has no home folder here: write the path in full'
    assert complaint(capsys, words[0], "~nobody-there/x", *words[1:]) == said


def test_a_result_is_the_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "doctor", lambda *, json=False: 1)
    assert app.main(["doctor"]) == 1
    monkeypatch.setattr(catalogue, "methods", lambda *, json=False: None)
    assert app.main(["methods"]) == 0


def test_a_reader_that_has_left_causes_no_traceback() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    for arguments in (["models"], ["--help"]):
        found = subprocess.run(
            [sys.executable, "-m", "everclip", *arguments], stdout=writer, stderr=subprocess.PIPE, check=False
        )
        assert (found.returncode, found.stderr) == (1, b"")
    os.close(writer)


def test_no_color_is_honoured() -> None:
    assert not re.search(r"\x1b\[[0-9;]*3[0-9]m", run("--help", NO_COLOR="1", FORCE_COLOR="1").stdout)
    assert "\x1b[" not in run("--help").stdout
