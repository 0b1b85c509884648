"""Standard streams that are closed, full, left, or of another encoding, in every command that prints; no memory left;
Ctrl-C at any moment.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from everclip.errors import RunError, UserError, memory_words
from tests.learned import learned
from tests.marks import slow_after
from tests.pictures import COLOURS, image_folder
from tests.report.synthetic import write_run

FULL = "error: stdout cannot be written (No space left on device): send the output elsewhere\n"
WORDS = {
    "help": ["--help"],
    "version": ["--version"],
    "methods": ["methods"],
    "one method": ["methods", "gdro", "--json"],
    "datasets": ["datasets"],
    "scenarios": ["scenarios"],
    "configs": ["configs", "default"],
    "models": ["models"],
    "resume": ["resume", "{run}"],
    "compare": ["compare", "{run}"],
    "report": ["report", "{run}", "-o", "{tmp}/page.html", "--json"],
    "predict": ["predict", "{run}", "{photos}"],
    "evaluate": ["evaluate", "{run}"],
}


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory, toy: str) -> dict[str, str]:
    """A finished run of classes with names in other scripts."""
    root = tmp_path_factory.mktemp("other")
    photos = image_folder(root / "photos", {"train": 4, "test": 2})
    for name, other in zip(COLOURS, ("слон", "日本の猫", "قطة", "ñandú", "😀", "red"), strict=False):
        for part in ("train", "test"):
            (photos / part / name).rename(photos / part / other)
    run = learned(root / "run", toy, f"imagefolder:{photos}")
    (run / "report.html").write_text("there")
    return {"run": str(run), "photos": str(photos / "test"), "tmp": str(root)}


def shell(places: dict[str, str], words: list[str], streams: str, **environment: str) -> tuple[int, str, str]:
    """Run a command line with its streams as a shell sets them; its exit code, stdout and stderr."""
    command = [sys.executable, "-m", "everclip", *(word.format(**places) for word in words)]
    found = subprocess.run(
        ["bash", "-c", f'"$@" {streams}', "bash", *command],
        capture_output=True,
        check=False,
        timeout=100,
        env=os.environ | environment,
    )
    return found.returncode, found.stdout.decode(), found.stderr.decode()


@pytest.mark.parametrize("name", slow_after(2, ["help", "version", "one method", "resume", "predict"]))
def test_a_full_disk_behind_stdout_is_one_line(places: dict[str, str], name: str) -> None:
    code, out, err = shell(places, WORDS[name], "> /dev/full")
    assert (code, out) == (1, "")
    assert err.endswith(FULL)
    assert "Traceback" not in err
    assert "Exception ignored" not in err


STREAMS = (
    ("> /dev/full", (1,)),
    (">&-", (0,)),
    ("2>&-", (0,)),
    ("2> /dev/full", (0,)),
    ("<&- >&- 2>&-", (0,)),
    ("2>&1 | head -c 1; exit ${PIPESTATUS[0]}", (0, 1)),
)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "streams", "codes"),
    [
        (name, *streams)
        for place, name in enumerate(WORDS)
        for number, streams in enumerate(STREAMS)
        if (place + number) % 2 == 0  # each command with half of them, each of them with half of the commands
    ],
)
def test_every_command_with_any_streams(
    places: dict[str, str], name: str, streams: str, codes: tuple[int, ...]
) -> None:
    code, _, err = shell(places, WORDS[name], streams)
    assert code in codes
    assert "Traceback" not in err
    assert "Exception ignored" not in err


@pytest.mark.parametrize(
    ("words", "streams", "code"),
    [
        (["methods"], ">&-", 0),
        (["methods"], "2>&-", 0),
        (["methods", "gdor"], "2>&-", 2),
        (["methods", "gdor"], "2> /dev/full", 2),
        (["methods"], "<&- >&- 2>&-", 0),
    ],
)
def test_closed_streams(places: dict[str, str], words: list[str], streams: str, code: int) -> None:
    found, out, err = shell(places, words, streams)
    assert (found, err) == (code, "")
    assert bool(out) == (words == ["methods"] and ">&-" not in streams.replace("2>&-", ""))


@pytest.mark.slow
def test_nothing_that_is_said_goes_into_a_file(places: dict[str, str], tmp_path: Path) -> None:
    """With stdout and stderr closed the next files that are opened would get their numbers."""
    words = ["report", "{run}", "-o", str(tmp_path / "page.html"), "--figures", str(tmp_path / "figures")]
    assert shell(places, words, ">&- 2>&-")[0] == 0
    assert (
        shell(places, ["train", "{run}/config.toml", "out=" + str(tmp_path / "run")], "<&- >&- 2>&-")[0] == 0
    )
    assert (tmp_path / "page.html").read_text().startswith("<!DOCTYPE html>")
    for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines():
        json.loads(line)
    for line in (tmp_path / "run" / "run.log").read_text().splitlines():
        assert re.match(r"\d{4}-\d\d-\d\d [\d:,]+ (INFO|WARNING) ", line)


ASCII = {"PYTHONIOENCODING": "ascii"}
C_LOCALE = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resume", "compare", "predict", "evaluate"])
def test_a_terminal_that_knows_ascii_alone(places: dict[str, str], name: str) -> None:
    code, out, err = shell(places, WORDS[name], "", **ASCII)
    assert code == 0, err
    assert (out + err).isascii()
    if name in ("predict", "evaluate"):
        assert "\\u65e5\\u672c\\u306e\\u732b" in out


@pytest.mark.slow
def test_a_locale_without_other_scripts(places: dict[str, str]) -> None:
    code, out, err = shell(places, WORDS["resume"], "", **C_LOCALE)
    assert code == 0, err
    assert (out + err).isascii()
    code, out, err = shell(places, WORDS["predict"], "", **C_LOCALE)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "is not text in this locale: set LC_ALL=C.UTF-8" in err


def test_json_stays_json_where_stdout_knows_ascii_alone(places: dict[str, str]) -> None:
    code, out, err = shell(places, [*WORDS["evaluate"], "--json"], "", **ASCII)
    assert code == 0, err
    assert {row["class"] for row in json.loads(out)["per_class"]} >= {"日本の猫", "😀", "ñandú"}


STARVED = """
import contextlib, importlib, json, os, pkgutil, resource, sys
import torch, everclip
from everclip.cli.app import main
torch.set_num_threads(1)
for module in pkgutil.walk_packages(everclip.__path__, "everclip."):
    if module.name != "everclip.__main__":
        with contextlib.suppress(ImportError):
            importlib.import_module(module.name)
while line := sys.stdin.readline():
    room, errors, words = json.loads(line)
    child = os.fork()
    if not child:
        for number, path in ((0, os.devnull), (1, os.devnull), (2, errors)):
            os.dup2(os.open(path, os.O_RDWR | os.O_CREAT), number)
        now = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now + room,) * 2)
        sys.exit(main(words))
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
"""A process that imports everything once, which takes longer than all commands, and a fork of it for each of them."""


@pytest.fixture(scope="module")
def starved(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Callable[[int, Sequence[str]], tuple[int, str]]]:
    """Runs a command line with so many bytes left; its exit code and what it says on stderr."""
    errors = tmp_path_factory.mktemp("starved") / "stderr"
    process = subprocess.Popen(
        [sys.executable, "-c", STARVED], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None
    assert process.stdout is not None
    told, said = process.stdin, process.stdout

    def run(room: int, words: Sequence[str]) -> tuple[int, str]:
        errors.unlink(missing_ok=True)
        told.write(json.dumps([room, str(errors), [*words]]) + "\n")
        told.flush()
        return int(said.readline()), errors.read_text(encoding="utf-8")

    with process:
        yield run
        told.close()


@pytest.mark.slow
@pytest.mark.parametrize("words", ["train", "predict", "update", "report"])
@pytest.mark.parametrize("room", [1, 5_000_000])
def test_no_memory_left_is_one_line(
    places: dict[str, str],
    starved: Callable[[int, Sequence[str]], tuple[int, str]],
    tmp_path: Path,
    words: str,
    room: int,
) -> None:
    lines = {
        "train": ["train", "{run}/config.toml", f"out={tmp_path / 'run'}"],
        "predict": WORDS["predict"],
        "update": ["update", "{run}", "--add", "imagefolder:{photos}", "--dry-run"],
        "report": ["report", "{run}", "-o", str(tmp_path / "page.html")],
    }
    if words == "report":
        write_run(tmp_path / "large", tasks=10, per_task=500, steps=3000)
        lines["report"][1] = str(tmp_path / "large")
    code, err = starved(room, [word.format(**places) for word in lines[words]])
    assert code == 1
    assert "Traceback" not in err
    last = err.splitlines()[-1]
    assert last.startswith("error: not enough memory")
    assert "ulimit -v" in last


@pytest.mark.parametrize(
    ("error", "asked"),
    [
        (MemoryError(), ""),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:113] . DefaultCPUAllocator: can't allocate memory: you tried to"
                      " allocate 8000000000 bytes. Error code 12 (Cannot allocate memory)"), "8000000000 bytes"),
        (RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has"), "2.00 GiB"),
        (OSError(12, "Cannot allocate memory"), ""),
        (RuntimeError("can't start new thread"), ""),
        (MemoryError("Unable to allocate 7.45 GiB for an array with shape (1000000000,)"), "7.45 GiB"),
    ],
)  # fmt: skip
def test_what_is_for_want_of_memory(error: Exception, asked: str) -> None:
    assert asked in memory_words(error)
    outer = UserError("the model cannot be loaded")
    outer.__cause__ = error
    assert memory_words(outer).startswith("not enough memory")
    for other in (
        ValueError("x"),
        UserError("out of memory, says a name"),
        RunError("y"),
        OSError(28, "full"),
    ):
        assert memory_words(other) == ""


STARTED = """
import os, sys
from everclip.__main__ import main
os.write({end}, b"begun")
os.close({end})
sys.exit(main())
"""


def interrupted(words: list[str], ready: Callable[[float], bool]) -> tuple[int, str]:
    """Ctrl-C once it is time for it, counted from where Python itself has started."""
    begun, end = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-c", STARTED.format(end=end), *words],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        pass_fds=[end],
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    os.close(end)
    with os.fdopen(begun) as line:
        assert line.read() == "begun"
    start = time.monotonic()
    while process.poll() is None and not ready(time.monotonic() - start):
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    return process.returncode, err


@pytest.mark.slow
@pytest.mark.parametrize("after", [0.1, 0.3, 0.8, 1.6])
@pytest.mark.parametrize("name", ["methods", "compare", "predict", "report", "evaluate"])
def test_ctrl_c_at_any_moment_leaves_no_traceback(places: dict[str, str], name: str, after: float) -> None:
    words = [word.format(**places) for word in WORDS[name]]
    code, err = interrupted(words, lambda seconds: seconds > after)
    assert code in (0, 130, -signal.SIGINT)
    assert "Traceback" not in err
    assert "Exception ignored" not in err


@pytest.mark.parametrize("busy", [0.0, 0.1], ids=["at once", "while the first is handled"])
def test_ctrl_c_that_python_can_only_print_is_given_again(busy: float) -> None:
    """As where it comes within a destructor, or within a callback of a library written in C."""
    script = """
import _thread, signal, sys, time, types
signal.signal(signal.SIGINT, signal.default_int_handler)
class Late:
    def __del__(self):
        raise KeyboardInterrupt
def command():
    Late()
    time.sleep(30)
start = _thread.start_new_thread
def slow(*words):
    _thread.start_new_thread = start
    start(*words)
    time.sleep(float(sys.argv[1]))
_thread.start_new_thread = slow
sys.modules["everclip.cli.app"] = types.SimpleNamespace(main=command)
from everclip.__main__ import main
sys.exit(main())
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(busy)], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (130, "")


def test_ctrl_c_while_torch_is_imported_ends_the_process_at_once(tmp_path: Path) -> None:
    """Torch calls Python from C++, where KeyboardInterrupt would abort the process with a trace."""
    (tmp_path / "torch.py").write_text(
        "import os, signal\ntry:\n    signal.raise_signal(signal.SIGINT)\nexcept BaseException:\n    os.abort()\n"
    )
    script = """
import signal, sys, types
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.path.insert(0, sys.argv[1])
sys.modules["everclip.cli.app"] = types.SimpleNamespace(main=lambda: __import__("torch"))
from everclip.__main__ import main
sys.exit(main())
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, done.stderr) == (-signal.SIGINT, "")
