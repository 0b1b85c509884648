"""The examples, on the offline default."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

from everclip.cli.app import main

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "least"), [("new_classes", 0.8), ("new_domain", 0.45), ("many_updates", 0.8)]
)
def test_an_example_learns_and_writes_a_version(
    name: str, least: float, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    example = runpy.run_path(str(EXAMPLES / f"{name}.py"))
    assert example["main"](str(tmp_path / "v1")) >= least
    capsys.readouterr()
    assert main(["evaluate", str(tmp_path / "v1"), "--data", "emoji", "--json"]) == 0


def test_every_example_is_tested() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.py")} == {"new_classes", "new_domain", "many_updates"}
