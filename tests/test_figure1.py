"""``benchmarks.figure1``: what the page says follows from the runs, and drawing it again changes no byte."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from benchmarks import figure1, figure1_page

from everclip.plots import style
from everclip.runs.read import read_run
from tests.learned import learned

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def kept(toy: str, photos: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The kept runs of two sets: GCL and fine-tuning without exemplars and with twelve, two seeds each."""
    swept, kept = (tmp_path_factory.mktemp(name) for name in ("swept", "kept"))
    for name, budget in (("emoji-0", 0), ("emoji", 12)):
        for method in ("gcl", "finetune"):
            for seed in (0, 1):
                words = (f"method={method}", f"memory.budget={budget}", f"seed={seed}", "train.lr=3e-3")
                learned(swept / name / f"{method}_s{seed}", toy, photos, *words)
        assert figure1.copy(swept / name, kept / "runs" / name) == 4
        assert figure1.copy(swept / name, kept / "runs" / name) == 0
    return kept


def last(kept: Path, name: str) -> float:
    """The mean of a row's last accuracies, in percent."""
    return 100 * float(
        np.mean([read_run(kept / "runs" / f"{name}_s{seed}").results["last"] for seed in (0, 1)])
    )


def test_the_page_says_what_the_runs_say(kept: Path) -> None:
    figure1_page.draw(kept)
    page = (kept / "cells.md").read_text("utf-8")
    assert "## emoji\n" in page
    for name, memory in (("emoji-0", 0), ("emoji", 12)):
        gcl, other = (last(kept, f"{name}/{method}") for method in ("gcl", "finetune"))
        (claim,) = [line for line in page.splitlines() if line.startswith(f"| {memory} |")]
        assert claim.count(f"| {gcl - other:+.1f} (") == 1, claim  # GCL - best other; GDRO has no run
        assert claim.endswith("| finetune |")
        (row,) = [line for line in page.splitlines() if line.startswith(f"| gcl | {memory} |")]
        assert f"| {gcl:.1f} (" in row
        assert "| 0, 1 |" in row


def test_drawing_again_changes_no_byte(kept: Path) -> None:
    names = ("figure.svg", "figure-dark.svg", "figure.pdf", "cells.md", "index.html")
    found = []
    for _ in range(2):
        figure1_page.draw(kept)
        found.append([(kept / name).read_bytes() for name in names])
    assert found[0] == found[1]
    bright, dark = found[0][:2]
    assert b"not run yet" in bright
    ink, dim = style.INK.encode(), style.DIM.encode()
    assert (ink in bright, dim in bright) == (True, True)
    drawn = dark.partition(b"</style>")[2]  # lines are of these colours, too
    assert (ink in drawn, dim in drawn) == (False, False)


def test_which_images_are_right_is_kept(kept: Path) -> None:
    for folder in (kept / "runs").glob("*/*"):
        run = read_run(folder)
        right = figure1_page.right(run)
        assert set(right) <= {0.0, 1.0}
        assert right.mean() == pytest.approx(run.results["last"])
