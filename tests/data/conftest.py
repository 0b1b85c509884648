from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def hf_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of the test's own, into which the package `datasets` writes what it prepares."""
    datasets: Any = pytest.importorskip("datasets")
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", folder)
    return folder
