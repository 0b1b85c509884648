"""Disks that are full: said before a run, or in one line when it happens (tests/faults does it to whole runs)."""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from everclip.cli.app import main
from everclip.errors import RunError, UserError, causes
from everclip.models import zoo
from everclip.models.savable import save_state
from everclip.runs.run import Run
from everclip.system.checkpoint import Place
from everclip.system.signals import Stopped
from everclip.training import disk
from everclip.training.disk import check_room, on_disk, room, writing
from tests.running import configured, files_up_to, run, timeless


@pytest.mark.parametrize("size", [0, 1, 1000, 100_000, 400_000])
def test_what_the_disk_says_is_not_lost(tmp_path: Path, size: int) -> None:
    state = {"weights": torch.zeros(100_000), "record": {"steps": 3}}
    with files_up_to(size), pytest.raises(OSError, match="File too large") as error:
        save_state(state, tmp_path / "state.pt")
    assert error.value.errno == errno.EFBIG
    save_state(state, tmp_path / "state.pt")
    again = torch.load(tmp_path / "state.pt", weights_only=True)
    assert torch.equal(again["weights"], state["weights"])
    assert again["record"] == state["record"]


def test_an_error_that_is_none_of_the_disks_stays(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="meta"):
        save_state({"weights": torch.zeros(3, device="meta").untyped_storage()}, tmp_path / "state.pt")
    with pytest.raises(FileNotFoundError), writing(tmp_path):
        (tmp_path / "nothing").read_text()
    with pytest.raises(RuntimeError, match="a fault"), writing(tmp_path):
        raise RuntimeError("a fault")


def test_a_run_that_is_taken_away(tmp_path: Path) -> None:
    gone = tmp_path / "run"
    with pytest.raises(RunError, match=r"run is gone: the folder was removed or"), writing(gone):
        (gone / "metrics.jsonl").open("a")


@pytest.mark.parametrize("code", [errno.EBUSY, errno.EXDEV])
def test_a_folder_that_cannot_be_renamed_to_its_name(tmp_path: Path, code: int) -> None:
    """Where a disk was mounted in the meantime, or some layered disks."""
    with (
        pytest.raises(RunError, match=rf"m cannot be written \({os.strerror(code)}\)"),
        on_disk(tmp_path / "m"),
    ):
        raise OSError(code, os.strerror(code))


def test_a_disk_that_may_not_be_written(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"cannot be written \(Permission denied\)"), writing(tmp_path):
        raise PermissionError(errno.EACCES, "Permission denied")


def test_one_line_for_whoever_writes(tmp_path: Path) -> None:
    def texts() -> None:
        (tmp_path / "log").write_text("x" * 2000)

    def tensors() -> None:
        save_file({"a": torch.zeros(1000)}, tmp_path / "model.safetensors")

    for write in (texts, tensors):
        with pytest.raises(RunError) as error, writing(tmp_path), files_up_to(1000):
            write()
        assert str(error.value) == (
            f"{tmp_path} cannot be written (File too large); its last checkpoint is intact: make room, then"
            f" everclip resume {tmp_path}"
        )


def test_room_is_looked_for_before_a_run(
    tmp_path: Path,
    toy: str,
    photos: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tokens = [f"data={photos}", f"model={toy}", "scenario.tasks=2", f"out={tmp_path / 'run'}"]
    with monkeypatch.context() as patch:
        patch.setattr(disk.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 9, 1))
        assert main(["train", *tokens]) == 2
    stderr = capsys.readouterr().err
    assert "the run may write 0.0" in stderr
    assert "whose disk has 0.00 GiB free: make room, give out=PATH on another disk, or use" in stderr
    assert not (tmp_path / "run").exists()


REALLY_FULL = """
import json, os, sys
from pathlib import Path
from everclip.system.checkpoint import verify
from everclip.errors import RunError
from everclip.training.loop import train
from everclip.system.progress import Progress
from everclip.runs.run import Run
from tests.running import configured, timeless

here, *tokens = sys.argv[1:]

class Filling(Progress):
    def step(self, note="", count=1):
        if note.startswith("loss"):
            with open(f"{here}/filler", "ab", buffering=0) as file:
                try:
                    while True:
                        file.write(bytes(1 << 16))
                except OSError as error:
                    assert error.errno == 28, error

config = configured(*tokens, f"out={here}/run")
said = ""
try:
    with Run.open(config) as opened:
        train(opened, Filling())
except RunError as error:
    said = str(error)
store = Run(Path(here) / "run", config).store
for place in store.places():
    verify(store.folder(place))
left = [path.name for path in store.path.iterdir()]
os.unlink(f"{here}/filler")
with Run.open(config) as opened:
    resumed = timeless(train(opened, Progress()))
print(json.dumps([said, left, resumed]))
"""


@pytest.mark.slow
def test_a_disk_that_is_really_full(tmp_path: Path, toy: str, photos: str) -> None:
    """On a file system of its own, of 160 MB in memory."""
    here = tmp_path / "small"
    here.mkdir()
    mount = ["unshare", "-rm", "sh", "-c", 'mount -t tmpfs -o size=160m tmpfs "$0" && exec "$@"', str(here)]
    if subprocess.run([*mount, "true"], capture_output=True, check=False).returncode:
        pytest.skip("needs file systems of its own (unshare, mount)")
    tokens = [f"data={photos}", f"model={toy}", "scenario.tasks=2", "checkpoint.every=steps:1"]
    done = subprocess.run(
        [*mount, sys.executable, "-c", REALLY_FULL, str(here), *tokens],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said, left, resumed = json.loads(done.stdout.splitlines()[-1])
    assert said.startswith(f"{here}/run cannot be written (No space left on device); its last checkpoint is")
    assert left == ["begin"]
    assert resumed == json.loads(json.dumps(timeless(run(tmp_path / "whole", *tokens))))


def test_what_is_there_already_counts(tmp_path: Path, toy: str, photos: str) -> None:
    run(tmp_path / "run", f"data={photos}", f"model={toy}")
    free = shutil.disk_usage(tmp_path).free
    check_room(tmp_path / "run", free)
    with pytest.raises(UserError, match="make room"):
        check_room(tmp_path / "run", 2 * free + 1e9)


def test_within_a_task_the_moments_are_counted(toy: str) -> None:
    clip = zoo.load(toy)
    size = sum(value.nbytes for value in clip.parameters())
    needed = {
        every: room(configured("data=emoji", f"checkpoint.every={every}"), clip, 3) - 50e6
        for every in ("task", "steps:5")
    }
    assert needed["task"] == pytest.approx(3 * size)
    assert needed["steps:5"] == pytest.approx(3 * size + 3 * 3 * size)


def test_a_full_disk_leaves_the_checkpoint_before(tmp_path: Path, toy: str, photos: str) -> None:
    tokens = [f"data={photos}", f"model={toy}", "scenario.tasks=2", "checkpoint.every=steps:1"]
    run(tmp_path / "run", *tokens, "smoke=true")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "stage-001")
    (tmp_path / "run" / "results.json").unlink()
    with files_up_to(1_000_000), pytest.raises(RunError, match="cannot be written"):
        run(tmp_path / "run", *tokens, "smoke=true")
    store = Run(tmp_path / "run", configured(*tokens)).store
    assert store.newest() == [Place(1)]
    assert not list(store.path.glob(".*"))
    assert run(tmp_path / "run", *tokens, "smoke=true")["smoke"]


@pytest.mark.parametrize("kind", [Stopped(signal.SIGUSR1), KeyboardInterrupt()])
def test_a_signal_within_a_write_is_what_is_raised(kind: BaseException) -> None:
    """And not the error that torch makes of a write that has not ended."""

    class Interrupted(io.BytesIO):
        writes = 0

        def write(self, data: Any) -> int:
            self.writes += 1
            if self.writes == 2:
                raise kind
            return super().write(data)

    class Target:
        def open(self, mode: str) -> io.BytesIO:
            return Interrupted()

    target: Any = Target()
    with pytest.raises(type(kind)):
        save_state({"weights": torch.zeros(3)}, target)


def test_an_error_that_is_its_own_cause_is_met_once() -> None:
    error = RuntimeError("a circle")
    error.__cause__ = error
    assert [*causes(error)] == [error]
