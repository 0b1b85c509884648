"""Images of old classes that are given with --memory, or that a run has."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from everclip.updating import start
from everclip.updating.images import collect
from tests.complaints import complaint
from tests.learned import coloured
from tests.versions import COLD, ENDS, WARM, begin, colours, first, updated, written


def test_old_images_given_again_are_neither_doubled_nor_trained_on(toy: str, tmp_path: Path) -> None:
    """Those that a version checks on stay check images, and those that it learned become none."""
    memory = coloured(tmp_path / "memory", WARM, 8)
    state = begin(toy, [*WARM], memory=memory)
    written(updated(state, colours(tmp_path / "cold", COLD)), state, tmp_path / "v1")
    state = begin(str(tmp_path / "v1"), memory=memory)
    assert len(state.checks.of_classes([0, 1]))
    found = collect(state, colours(tmp_path / "ends", ENDS), 4, {})
    for part in (found.checks, found.exemplars):
        assert len(set(part.ids.tolist())) == len(part)
    assert set(state.checks.ids.tolist()) == set(found.checks.ids.tolist()) - set(found.fresh.ids.tolist())
    learned = {*found.exemplars.ids.tolist(), *found.older.ids.tolist(), *found.new.ids.tolist()}
    assert not learned & set(found.checks.ids.tolist())
    assert updated(state, colours(tmp_path / "more", ENDS)).state.sums.counts.tolist() == [8, 8, 6, 6, 6, 6]


def test_an_old_image_has_the_name_under_which_it_was_learned(toy: str, tmp_path: Path) -> None:
    written(first(toy, tmp_path), begin(toy), tmp_path / "v1")
    memory = coloured(tmp_path / "memory", WARM, 4, 8)
    shutil.copy(tmp_path / "warm" / "red" / "0.png", tmp_path / "memory" / "yellow" / "red.png")
    spec = str(tmp_path / "v1")
    assert complaint(collect, begin(spec, memory=memory), colours(tmp_path / "cold", COLD), 4, {}) == (
        'yellow/red.png is a picture of "yellow" in --memory, but was learned as "red": remove it there, or take it'
        f" out first: everclip forget {spec} --images FILE -o FOLDER"
    )


def test_it_is_said_how_many_images_of_old_classes_are_used(
    toy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory, said = coloured(tmp_path / "memory", WARM, 5), list[str]()
    for most in (5, 4):
        monkeypatch.setattr(start, "MOST_OLDER", most)
        state = begin(toy, [*WARM], memory=memory, say=said.append)
        assert state.older is not None
        assert len(state.older) == 2 * most
    head = f"--memory {memory}: 10 images of 2 classes"
    assert said == [f"{head}, all are used", f"{head}, at most 4 per class are used"]
