"""Where a run is not written: what is not a folder, and what would lead elsewhere."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from everclip.cli.app import main
from everclip.errors import UserError
from tests.running import run


@pytest.fixture
def tokens(toy: str, photos: str) -> list[str]:
    return [f"data={photos}", f"model={toy}"]


@pytest.mark.parametrize("out", ["/dev/null", "/dev/null/x"])
def test_a_dry_run_refuses_what_training_would(
    tokens: list[str], out: str, capsys: pytest.CaptureFixture[str]
) -> None:
    said = []
    for more in ([], ["--dry-run"]):
        assert main(["train", *tokens, "scenario.tasks=2", f"out={out}", *more]) == 2
        said.append(capsys.readouterr())
    assert said[0] == said[1]
    assert "give" in said[0].err


@pytest.mark.usefixtures("unprivileged")
def test_a_folder_that_cannot_be_written(tmp_path: Path, tokens: list[str]) -> None:
    tmp_path.chmod(0o500)
    said = rf"out={tmp_path}/run cannot be used \({tmp_path} is not writable\): give another out"
    with pytest.raises(UserError, match=said):
        run(tmp_path / "run", *tokens)
    tmp_path.chmod(0o700)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        ".lock",
        ".holder",
        "run.log",
        "metrics.jsonl",
        "checkpoints",
        "tensorboard",
        "wandb",
        "wandb-run-id",
        "mlflow-run-id",
    ],
)
@pytest.mark.parametrize("kind", ["link", "loose link", "pipe"])
def test_a_run_writes_into_its_own_folder_alone(
    tmp_path: Path, tokens: list[str], name: str, kind: str
) -> None:
    run(tmp_path / "run", *tokens)
    theirs = tmp_path / "theirs"
    theirs.write_text("keep me")
    place = tmp_path / "run" / name
    if place.is_dir():
        place.rename(tmp_path / "elsewhere")
    place.unlink(missing_ok=True)
    os.mkfifo(place) if kind == "pipe" else place.symlink_to(
        theirs if kind == "link" else tmp_path / "nothing"
    )
    (tmp_path / "run" / "results.json").unlink()
    with pytest.raises(
        UserError, match=f"cannot be written, as {name} is a (link|pipe): a run writes only into"
    ):
        run(tmp_path / "run", *tokens)
    assert main(["resume", str(tmp_path / "run")]) == 2
    assert theirs.read_text() == "keep me"
    assert not (tmp_path / "nothing").exists()
