"""No way in runs what a stranger planted; each payload runs where it is let."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.attacks import plant
from tests.attacks.table import ATTACKS, NOTHING, Row, table
from tests.attacks.ways import WAYS

LOADS_NOTHING = {"report", "compare", "load_runs"}
"""Ways that may neither run nor refuse anything: runs are only read."""


def _held(rows: Sequence[Row]) -> None:
    tries = [row for row in rows if row.way != "control" and row.attack != NOTHING]
    assert [row for row in tries if row.ran] == []
    for row in tries:
        assert (
            row.code in (0, 2)
            or (row.code is None and row.said.startswith(("UserError: ", "Refused: ")))
            or (row.way == "doctor --config" and row.code == 1)
        ), row
        # a config that is trained anew leaves the run's checkpoints alone, and what was planted in them
        meets = row.way == "resume" or (row.way == "train TOML" and row.attack in plant.NAMES)
        assert row.code != 0 or not meets or row.attack == "tracker", row
        assert row.code == 0 or row.way not in LOADS_NOTHING, row
        if row.met in ("model", "hub") and row.way in ("predict", "train", "Learner"):
            assert row.code != 0, row
        if row.code == 2 and row.attack in plant.NAMES and "asks to run" in row.said:
            assert "--trust " in row.said
            assert ".payload" in row.said


def _live(rows: Sequence[Row]) -> None:
    controls = [row for row in rows if row.way == "control"]
    assert {row.attack for row in controls} == {name for attacks in ATTACKS.values() for name in attacks}
    assert [row for row in controls if not row.ran] == []
    harmless = [row for row in rows if row.attack == NOTHING]
    assert [row.met for row in harmless] == [*ATTACKS]
    assert [row for row in harmless if row.code != 0] == []


@pytest.mark.slow
def test_each_way_with_each_attack(tmp_path: Path) -> None:
    """A third of the pairs, in which each comes; ``python -m benchmarks.reliability --attacks`` tries all."""
    rows = table(tmp_path, 3)
    tries = [row for row in rows if row.way != "control"]
    assert len(tries) > 200
    assert {(row.met, row.way) for row in tries} == {
        (met, way) for met in ATTACKS for way in WAYS["model" if met == "hub" else met]
    }
    assert {(row.met, row.attack) for row in tries} == {
        (met, attack) for met, attacks in ATTACKS.items() for attack in (*attacks, NOTHING)
    }
    _held(rows)
    _live(rows)
