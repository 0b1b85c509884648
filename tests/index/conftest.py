from __future__ import annotations

from pathlib import Path

import pytest

from everclip.index import embed
from tests.cli.conftest import say
from tests.pictures import COLOURS, picture

__all__ = ["say"]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards of eight pictures in batches of four."""
    monkeypatch.setattr(embed, "BATCH", 4)
    monkeypatch.setattr(embed, "SHARD", 8)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Twenty pictures in two folders, one of them broken."""
    (tmp_path / "pictures" / "deep").mkdir(parents=True)
    for number in range(19):
        colour = list(COLOURS.values())[number % 6]
        picture(colour, number).save(
            tmp_path / "pictures" / ("deep" if number % 2 else "") / f"{number:02d}.png"
        )
    (tmp_path / "pictures" / "03b.png").write_text("broken")
    return tmp_path / "pictures"
