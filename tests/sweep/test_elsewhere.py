"""A sweep writes into its own folder alone, whatever stands there before."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from everclip.cli.app import main
from everclip.errors import UserError
from everclip.sweep.folder import Folder
from everclip.sweep.pool import Child, Work


@pytest.mark.parametrize("name", ["logs", "logs/gcl_s0.log", "tune", "tune/gcl", "slurm"])
@pytest.mark.parametrize("kind", ["link", "loose link", "pipe"])
def test_a_folder_of_others_leads_nowhere(tmp_path: Path, name: str, kind: str) -> None:
    theirs = tmp_path / "theirs"
    theirs.write_text("keep me")
    place = tmp_path / "s" / name
    place.parent.mkdir(parents=True)
    os.mkfifo(place) if kind == "pipe" else place.symlink_to(
        theirs if kind == "link" else tmp_path / "nothing"
    )
    wrong = f"cannot be used, as {name} is a (link|pipe): give another out"
    with pytest.raises(UserError, match=wrong), Folder(tmp_path / "s"):
        pass
    assert not (tmp_path / "s" / ".sweep.lock").exists()
    assert theirs.read_text() == "keep me"
    assert not (tmp_path / "nothing").exists()


def test_a_sweep_appends_to_no_linked_log(
    tmp_path: Path, toy: str, photos: str, capsys: pytest.CaptureFixture[str]
) -> None:
    theirs, logs = tmp_path / "theirs", tmp_path / "s" / "logs"
    theirs.write_text("keep me")
    logs.mkdir(parents=True)
    (logs / "gcl_s0.log").symlink_to(theirs)
    words = [f"data={photos}", f"model={toy}", "scenario.tasks=3", "device=cpu", "method=gcl", "seed=0,1"]
    assert main(["sweep", *words, f"out={tmp_path / 's'}"]) == 2
    assert "logs/gcl_s0.log is a link: give another out" in capsys.readouterr().err
    assert theirs.read_text() == "keep me"


@pytest.mark.parametrize("kind", ["link", "loose link", "pipe", "folder"])
def test_a_log_that_has_become_something_else_is_not_written(tmp_path: Path, kind: str) -> None:
    theirs, log = tmp_path / "theirs", tmp_path / "x.log"
    theirs.write_text("keep me")
    if kind == "pipe":
        os.mkfifo(log)
    elif kind == "folder":
        log.mkdir()
    else:
        log.symlink_to(theirs if kind == "link" else tmp_path / "nothing")
    with pytest.raises(UserError, match=r"cannot be (used|written).*: remove it, or give another out$"):
        Child(Work("x", ["--version"], tmp_path / "run", log), {})
    assert theirs.read_text() == "keep me"
    assert not (tmp_path / "nothing").exists()
