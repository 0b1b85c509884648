"""One report of a finished run, which the tests only read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from everclip.report.build import build
from tests.report.page import Page
from tests.report.synthetic import write_run


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("runs") / "gdro_m200_s0"
    return folder, write_run(folder)


@pytest.fixture(scope="session")
def html(run: tuple[Path, dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> str:
    out = tmp_path_factory.mktemp("out") / "deep" / "report.html"
    assert build([run[0]], out) == out
    assert [path.name for path in out.parent.iterdir()] == ["report.html"]  # no half-written file stays
    return out.read_text(encoding="utf-8")


@pytest.fixture(scope="session")
def page(html: str) -> Page:
    return Page(html)
