"""The examples, on the offline default."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from everclip.cli.app import main
from tests.smaller import smaller

EXAMPLES = Path(__file__).parents[1] / "examples"
CHANGES = {
    "new_classes": {"range(10), range(10, 15)": "range(3), range(3, 5)", "image_size=96": "image_size=64"},
    "new_domain": {
        "np.isin(images.domains, domains)": "np.flatnonzero(np.isin(images.domains, domains))[::4]",
        "image_size=96": "image_size=32",
    },
    "many_updates": {"CLASSES, BATCH = 12, 12": "CLASSES, BATCH = 4, 12", "image_size=96": "image_size=64"},
}
"""What makes an example quick: fewer classes or pictures, and smaller ones."""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "least"), [("new_classes", 0.8), ("new_domain", 0.3), ("many_updates", 0.8)]
)
def test_an_example_learns_and_writes_a_version(
    name: str, least: float, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = smaller((EXAMPLES / f"{name}.py").read_text(encoding="utf-8"), CHANGES[name])
    example: dict[str, Any] = {"__name__": name}
    exec(compile(text, name, "exec"), example)
    assert example["main"](str(tmp_path / "v1")) >= least
    capsys.readouterr()
    assert main(["evaluate", str(tmp_path / "v1"), "--data", "emoji", "--json"]) == 0


def test_every_example_is_tested() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.py")} == {"new_classes", "new_domain", "many_updates"}
