"""What is built once and kept: compared with its manifest, made again where it is damaged, never used as it is then."""

from __future__ import annotations

import pwd
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from everclip.cli.app import main
from everclip.errors import RunError, UserError
from everclip.models import lite
from everclip.system import cache_folder
from everclip.system.checkpoint import MANIFEST, verify
from tests.models.test_lite import needs_files

CONTENT = {"config.json": b"{}", "weights": bytes(range(256)) * 64}


def make(folder: Path) -> None:
    for name, content in CONTENT.items():
        (folder / name).write_bytes(content)


def gone(folder: Path) -> None:
    raise UserError("the sources are not there: install them")


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != MANIFEST}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, as a process that has just begun sees it."""
    monkeypatch.setenv("EVERCLIP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(cache_folder, "_verified", set())
    return cache_folder.folder()


def test_without_a_home_one_line_says_where_to_put_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container whose user has no name."""

    def nobody(user: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {user}")

    for name in ("HOME", "XDG_CACHE_HOME", "EVERCLIP_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", nobody)
    with pytest.raises(
        UserError, match=r"~/\.cache/everclip cannot be written; set EVERCLIP_CACHE to a folder"
    ):
        cache_folder.folder()


def zeros(folder: Path) -> None:
    (folder / "weights").write_bytes(bytes(len(CONTENT["weights"])))


def no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def no_manifest(folder: Path) -> None:
    (folder / MANIFEST).unlink()


def a_file(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    folder.write_text("what is this?")


def a_link(folder: Path) -> None:
    a_file(folder)
    folder.unlink()
    folder.symlink_to(folder.parent / "nowhere")


DAMAGE = [zeros, no_config, no_manifest, a_file, a_link]


@pytest.mark.parametrize("damage", DAMAGE)
def test_what_is_damaged_is_made_again_and_told_in_one_line(
    damage: Callable[[Path], None],
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    folder = cache_folder.built("toy", make)
    assert not caplog.messages
    damage(folder)
    assert cache_folder.problem("toy")
    monkeypatch.setattr(cache_folder, "_verified", set())
    assert cache_folder.built("toy", make) == folder
    assert files(folder) == CONTENT
    verify(folder)
    (line,) = caplog.messages
    assert line.startswith(f"{folder} was damaged or outdated (")
    assert line.endswith("): it was built again")
    assert sorted(path.name for path in cache.iterdir()) == ["toy", "toy.lock"]


@pytest.mark.parametrize("damage", DAMAGE)
def test_what_cannot_be_made_again_is_refused_and_left_alone(
    damage: Callable[[Path], None], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = cache_folder.built("toy", make)
    damage(folder)
    monkeypatch.setattr(cache_folder, "_verified", set())
    message = (
        rf"^{folder} is damaged \(.*\) and cannot be built again: the sources are not there: install them$"
    )
    with pytest.raises(UserError, match=message):
        cache_folder.built("toy", gone)
    assert folder.is_dir() or folder.is_file() or folder.is_symlink()


def test_it_is_made_once_and_compared_once_in_a_process(cache: Path) -> None:
    folder = cache_folder.built("toy", make)
    assert cache_folder.built("toy", gone) == folder
    a_file(folder)
    with pytest.raises(UserError, match="is damaged"):
        cache_folder.built("toy", gone)


def test_a_killed_build_leaves_nothing_for_good(cache: Path) -> None:
    script = """
import os, signal
from everclip.system import cache_folder as _cache
def make(folder):
    (folder / "weights").write_bytes(bytes(1000))
    os.kill(os.getpid(), signal.SIGKILL)
_cache.built("toy", make)
"""
    done = subprocess.run([sys.executable, "-c", script], check=False)
    assert done.returncode == -9
    assert len([*cache.iterdir()]) == 2  # the lock and what it has left
    own = ["toy.tmp", "toy-x1y2", ".toy.everclip", "toys"]  # names that the user may have there
    for name in own:
        (cache / name).mkdir()
    assert files(cache_folder.built("toy", make)) == CONTENT
    assert sorted(path.name for path in cache.iterdir()) == sorted(["toy", "toy.lock", *own])


def test_a_full_disk_is_one_line(cache: Path) -> None:
    def full(folder: Path) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(RunError, match=r"toy cannot be used \(No space left on device\): make room"):
        cache_folder.built("toy", full)
    assert sorted(path.name for path in cache.iterdir()) == ["toy.lock"]


@needs_files
def test_the_doctor_compares_lite_with_its_manifest(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["doctor"])
    assert "files as expected, built on first use" in capsys.readouterr().out
    folder = cache_folder.built(lite.CACHED, make)
    main(["doctor"])
    assert "files as expected, built and intact" in " ".join(capsys.readouterr().out.split())
    zeros(folder)
    main(["doctor"])
    told = "".join(capsys.readouterr().out.split())  # lines are wrapped
    no_manifest(folder)
    main(["doctor"])
    assert "built by an earlier version; the next use builds it again" in " ".join(
        capsys.readouterr().out.split()
    )
    assert f"{folder}isdamaged(weightsisnotwhatwaswritten)-thenextusebuildsitagain" in told
