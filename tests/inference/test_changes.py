"""Another version takes the folder while a model is opened, calibrated or exported: nothing mixes the two."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from everclip.cli.export import drawn
from everclip.errors import UserError
from everclip.export import export
from everclip.inference import assess
from everclip.inference import model as module
from everclip.inference.model import open_model
from everclip.runs.card import CALIBRATION_FILE
from everclip.updating.versions import rollback
from tests import versions
from tests.cli.conftest import Say, say
from tests.learned import coloured

__all__ = ["say"]


@pytest.fixture(scope="module")
def made(toy: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A version with the one before it inside."""
    root = tmp_path_factory.mktemp("changes")
    state = versions.written(versions.first(toy, root), versions.begin(toy), root / "v1")
    cold, test = (
        versions.colours(root / name, versions.COLD, 4, seed) for name, seed in (("a", 1), ("b", 2))
    )
    versions.written(versions.updated(state, cold, test, method="means"), state, root / "v2")
    return root / "v2"


@pytest.fixture
def version(made: Path, tmp_path: Path) -> Path:
    """A copy of it, to change."""
    return Path(shutil.copytree(made, tmp_path / "v2"))


def test_files_of_two_versions_are_no_model(
    version: Path, tmp_path: Path, say: Say, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They fit together, as the later version only has another name for a class."""
    named = tmp_path / "named"
    assert say("classes", version, "rename", "red=scarlet", "-o", named)[0] == 0
    reading = module.read_state

    def late(*given: Any) -> object:
        monkeypatch.undo()
        rollback(named)
        return reading(*given)

    monkeypatch.setattr(module, "read_state", late)
    with pytest.raises(UserError, match="named has changed while it was opened: repeat the command"):
        open_model(str(named))
    assert open_model(str(named)).names == ("red", "yellow", "blue", "green")


def test_a_temperature_replaces_none_of_another_version(version: Path, tmp_path: Path) -> None:
    model = open_model(str(version))
    data = coloured(tmp_path / "held", versions.WARM | versions.COLD, 8, 3)
    fitted = assess.fit_temperature(model, data)
    rollback(version)
    (version / CALIBRATION_FILE).write_text("its own")
    with pytest.raises(UserError, match="v2 has changed since it was opened: repeat the command"):
        assess.keep_calibration(model, *fitted)
    assert (version / CALIBRATION_FILE).read_text() == "its own"


@pytest.mark.parametrize("change", [rollback, shutil.rmtree])
def test_a_card_has_no_numbers_of_another_version(
    version: Path, tmp_path: Path, change: Callable[[Path], object]
) -> None:
    model = open_model(str(version))
    change(version)
    export(model, "open-clip", str(tmp_path / "m"), drawn(32)[:4])
    card = (tmp_path / "m" / "README.md").read_text()
    assert "| all classes | not measured |" in card
    assert "| red |\n" in card
    assert "keeps" not in card
