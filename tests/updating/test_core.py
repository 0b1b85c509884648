from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from everclip.data.images import content_id
from everclip.errors import UserError
from everclip.inference.assess import keep_calibration
from everclip.inference.model import open_model
from everclip.metrics.calibration import fit, probabilities
from everclip.metrics.unknown import held_out
from everclip.system import checkpoint
from everclip.system.checkpoint import BEFORE
from everclip.updating import core, gate, start
from everclip.updating import images as pictures
from everclip.updating.gate import gate_of
from everclip.updating.images import collect, plain
from everclip.updating.state import read
from everclip.updating.verdict import lines, page
from everclip.updating.versions import rollback
from tests.complaints import complaint
from tests.learned import coloured
from tests.running import run
from tests.versions import COLD, ENDS, WARM, begin, colours, first, load, updated, written

BLANK = torch.randint(0, 255, (3, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_an_update_adds_classes_and_keeps_what_the_next_one_needs(toy: str, tmp_path: Path) -> None:
    one = first(toy, tmp_path)
    state = written(one, begin(toy), tmp_path / "v1")
    assert state.known.names == ("red", "yellow")
    assert state.version == 1
    two = updated(state, colours(tmp_path / "cold", COLD), colours(tmp_path / "t", WARM | COLD, 4, 9))
    again = written(two, state, tmp_path / "v2")
    assert again.known.names == ("red", "yellow", "blue", "green")
    assert again.sums.counts.tolist() == [6, 6, 6, 6]
    assert np.bincount(again.exemplars.labels).tolist() == [3, 3, 3, 3]
    assert np.bincount(again.checks.labels).tolist() == [1, 1, 1, 1]
    assert not set(again.exemplars.ids.tolist()) & set(again.checks.ids.tolist())
    assert [line["chosen"] for line in again.record["history"]] == [
        one.verdict["chosen"],
        two.verdict["chosen"],
    ]
    assert {row["name"] for row in two.verdict["candidates"]} == {
        "nothing",
        "means",
        "ridge",
        "layers",
    }  # 8 are too few


@pytest.mark.slow
@pytest.mark.parametrize("method", ["nothing", "means", "ridge", "layers", "trained", "interpolated"])
def test_every_form_is_read_as_it_was_written(method: str, toy: str, tmp_path: Path) -> None:
    state = begin(toy, ["red", "yellow"])
    if method in ("means", "layers"):  # which names alone do not give
        state = written(first(toy, tmp_path), begin(toy), tmp_path / "v1")
    made = updated(state, colours(tmp_path / "cold", COLD), method=method)
    again = written(made, state, tmp_path / "v2")
    assert made.state.model is not None
    assert again.model is not None
    ours, theirs = made.state.model.logits(BLANK), again.model.logits(BLANK)
    assert np.abs(probabilities(ours) - probabilities(theirs)).max() < 1e-5
    third = updated(again, colours(tmp_path / "ends", ENDS), method=method)
    assert third.state.known.names == ("red", "yellow", "blue", "green", "black", "white")
    assert third.verdict["chosen"] == method
    trained = method in ("trained", "interpolated")
    assert (again.tuned is not None) == trained
    frozen = {key: value.clone() for key, value in state.frozen.model.state_dict().items()}
    assert all(value.equal(frozen[key]) for key, value in again.frozen.model.state_dict().items())


def test_images_kept_are_the_files_as_they_came(toy: str, tmp_path: Path) -> None:
    one = first(toy, tmp_path)
    state = written(one, begin(toy), tmp_path / "v1")
    originals = {file.read_bytes() for file in (tmp_path / "warm").rglob("*.png")}
    for images in (state.exemplars, state.checks):
        assert len(images)
        assert all(images.store.read(row) in originals for row in images.rows.tolist())


def test_more_images_of_a_known_class_are_a_new_domain(toy: str, tmp_path: Path) -> None:
    state = first(toy, tmp_path).state
    other = colours(tmp_path / "again", {"red": (120, 10, 10), "blue": (40, 60, 220)}, 6, 5)
    made = updated(state, other)
    assert made.state.known.names == ("red", "yellow", "blue")
    assert made.verdict["facts"]["again"] == 1
    assert made.verdict["facts"]["new"] == 1
    domains = made.state.exemplars.domains[made.state.exemplars.labels == 0]
    assert len(set(domains.tolist())) == 2  # the quota of red is shared by both


def test_several_domains_may_come_at_once(toy: str, tmp_path: Path) -> None:
    for seed, domain in enumerate(("one", "two")):
        coloured(tmp_path / "d" / domain, WARM, 6, seed)
    found = load(f"domainfolder:{tmp_path / 'd'}", begin(toy))
    made = updated(begin(toy), found, method="ridge")
    assert made.state.domains == ("before", "one", "two")
    assert made.state.sums.counts.tolist() == [12, 12]
    for label in (0, 1):
        domains = made.state.exemplars.domains[made.state.exemplars.labels == label]
        assert sorted(np.bincount(domains, minlength=3).tolist()) == [0, 1, 2]  # three exemplars, shared


def test_one_new_class_is_enough(toy: str, tmp_path: Path) -> None:
    made = updated(first(toy, tmp_path).state, colours(tmp_path / "one", {"blue": (40, 60, 220)}))
    assert made.state.known.names == ("red", "yellow", "blue")


def test_a_model_without_classes_may_stay_as_it_is(toy: str, tmp_path: Path) -> None:
    state = begin(toy)
    made = updated(state, colours(tmp_path / "warm", WARM), method="nothing")
    again = written(made, state, tmp_path / "v1")
    assert again.model is not None
    weights = state.frozen.class_embeddings(["red", "yellow"], state.known.templates)
    pixels = state.frozen.normalise(BLANK)
    expected = state.frozen.encode_image(pixels) @ weights.T * state.frozen.logit_scale.exp()
    assert np.allclose(again.model.logits(BLANK), expected.detach().numpy(), atol=1e-4)


def test_check_images_are_not_in_what_is_compared_on_them(toy: str, tmp_path: Path) -> None:
    state = begin(toy)
    new = colours(tmp_path / "warm", WARM)
    found = collect(state, new, 4, {})
    trial = core._trial(
        state, found, core.rule.decide(core.prepare(state, new, core.Options())[1], "auto"), 0
    )
    assert trial.checked.counts.tolist() == [5, 5]
    assert trial.sums.counts.tolist() == [6, 6]
    direct = trial.state.sums.widened(2).plus(
        core.features(state.frozen, found.new, found.pixels, state.known.depths),
        torch.from_numpy(found.new.labels),
        torch.from_numpy(found.new.ids),
    )
    torch.testing.assert_close(trial.checked.gram, direct.gram, atol=1e-12, rtol=0)
    torch.testing.assert_close(trial.checked.sums, direct.sums, atol=1e-12, rtol=0)


def test_a_picture_is_learned_once_and_under_one_name(toy: str, tmp_path: Path) -> None:
    """Those in the sums alone count too: of six of a class four are kept."""
    state = first(toy, tmp_path).state
    kept = {*state.exemplars.ids.tolist(), *state.checks.ids.tolist()}
    files = sorted((tmp_path / "warm" / "red").iterdir())
    file = next(file for file in files if content_id(file.read_bytes()) not in kept)
    more = coloured(tmp_path / "more", {"red": (200, 30, 30), "scarlet": (220, 30, 10)}, 6, 8)
    shutil.copy(file, tmp_path / "more" / "red" / "again.png")
    found = collect(state, load(more, state), 4, {})
    assert len(found.new) + len(found.fresh) == 12
    assert content_id(file.read_bytes()) not in {*found.new.ids.tolist(), *found.fresh.ids.tolist()}
    shutil.move(tmp_path / "more" / "red" / "again.png", tmp_path / "more" / "scarlet")
    assert complaint(collect, state, load(more, state), 4, {}) == (
        'scarlet/again.png is a picture of "scarlet", but was learned as "red": if they are one class use'
        ' --same "scarlet=red" (in Python: call both "red"), else save the model, and load'
        " what everclip forget SAVED --images FILE -o FOLDER makes"
    )
    (tmp_path / "more" / "scarlet" / "again.png").unlink()
    shutil.copy(tmp_path / "more" / "red" / "0.png", tmp_path / "more" / "scarlet" / "twice.png")
    assert complaint(collect, state, load(more, state), 4, {}) == (
        'scarlet/twice.png is a picture of "scarlet", but also appears as "red": if they are one class use'
        ' --same "scarlet=red" (in Python: call both "red"), else remove it from one of them'
    )


def test_a_class_whose_images_are_all_known_is_not_learned_again(
    toy: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A folder that grows each night has it again each night; counted as often, its old images would weigh too much."""
    state = first(toy, tmp_path).state
    coloured(tmp_path / "more", {"red": (200, 30, 30)}, 3, 8)
    shutil.copytree(tmp_path / "warm" / "yellow", tmp_path / "more" / "yellow")
    made = updated(state, load(f"imagefolder:{tmp_path / 'more'}", state))
    assert [task.labels for task in made.state.known.tasks] == [[0, 1], [0]]
    assert made.verdict["classes"]["again"] == ["red"]
    assert made.verdict["facts"]["again"] == 1
    assert made.state.record["history"][-1]["classes"] == ["red"]
    assert "known already" not in caplog.text
    spec = f"imagefolder:{tmp_path / 'warm'}"
    made = updated(state, load(spec, state))
    assert f"all images of {spec} are known already: nothing new is learned" in caplog.text
    assert made.state.known.tasks == state.known.tasks
    assert made.verdict["facts"]["per_class"] == 0
    assert (made.state.version, made.state.record["history"][-1]["classes"]) == (2, [])
    again = written(made, state, tmp_path / "v2")
    assert again.sums.counts.tolist() == [6, 6]
    with pytest.raises(UserError, match="--method trained cannot be used here"):
        updated(state, load(spec, state), method="trained")


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("C++", "C#", False),
        ("size 1.0", "size 10", False),
        ("\N{CAT FACE}", "\N{DOG FACE}", False),
        ("\u0915\u093f", "\u0915\u0941", False),  # Devanagari ki and ku
        ("caf\N{LATIN SMALL LETTER E WITH ACUTE}", "cafe\N{COMBINING ACUTE ACCENT}", True),
        ("Sports-Car", "sports car", True),
        ("sports_car", "SportsCar", True),
    ],
)
def test_names_that_differ_in_spelling_alone_are_variants(one: str, other: str, same: bool) -> None:
    assert (plain(one) == plain(other)) == same


def test_a_run_is_updated_from_its_images(toy: str, photos: str, tmp_path: Path) -> None:
    run(tmp_path / "run", f"data={photos}", f"model={toy}", "method=ncm")
    state = begin(str(tmp_path / "run"))
    purple = colours(tmp_path / "purple", {"purple": (150, 30, 160)})
    made = updated(state, purple, colours(tmp_path / "t", WARM | {"purple": (150, 30, 160)}, 4, 3))
    again = written(made, state, tmp_path / "v1")
    assert len(again.known.names) == 7
    assert again.known.names[-1] == "purple"
    assert made.verdict["facts"]["summed"] == 1.0
    assert again.sums.counts.tolist() == [4] * 6 + [6]
    assert rollback(tmp_path / "v1") == (tmp_path / "v1", tmp_path / "v1.undone")
    assert open_model(str(tmp_path / "v1")).names == open_model(str(tmp_path / "run")).names


def test_what_a_run_has_learned_is_recognised_from_another_folder(
    toy: str, photos: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also those of its images that are not learned again."""
    monkeypatch.setattr(start, "MOST_OLDER", 2)
    run(tmp_path / "run", f"data={photos}", f"model={toy}", "method=ncm")
    monkeypatch.chdir(tmp_path)
    state = begin("run")
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    known = Path(photos.partition(":")[2]) / "train"
    shutil.copytree(known / "red", tmp_path / "t" / "red")
    test = load(coloured(tmp_path / "t", {"blue": (40, 60, 220)}, 3, 9), state)
    made = updated(state, colours(tmp_path / "purple", {"purple": (150, 30, 160)}), test)
    assert (made.verdict["test"]["images"], made.verdict["test"]["duplicates"]) == (3, 4)


def changed(wrong: int, right: int) -> dict[str, Any]:
    """What the test of an update says of images that changed sides, among 20 that did not."""
    before = np.array([True] * (wrong + 20) + [False] * right)
    now = np.array([False] * wrong + [True] * (20 + right))
    return gate._changed(before, now)


@pytest.mark.parametrize(("drop", "words"), [(2.2989, "2.3"), (1.0003, "1.01"), (1.5, "1.5"), (3, "3")])
def test_points_lost_are_rounded_up(drop: float, words: str) -> None:
    assert gate.lost(drop) == words


def test_the_gate_counts_points(toy: str) -> None:
    state = begin(toy, ["red", "yellow"])
    rows = [{"class": "red", "n": 7}, {"class": "blue", "n": 5}]
    result = {"old_before": 0.9, "old_after": 0.885, "per_class": rows}
    assert gate_of(result, 1.5, state)["passed"]
    assert not gate_of(result, 1.4, state)["passed"]
    assert gate_of(result, 1.4, state)["drop"] == 1.5
    assert gate_of(None, 1.0, state)["drop"] is None
    close = gate_of(result | {"old_after": 0.88995}, 1.0, state)
    assert (close["passed"], close["drop"]) == (False, 1.005)  # not 1.0, which would be allowed
    told = gate_of(result, 1.5, state)
    assert told["unmeasured"] == ["yellow"]
    assert told["words"] == "old classes 90.0 % -> 88.5 % on 7 held-out images of 1 of 2 classes"
    few, many = (gate_of(result | changed(wrong, 0), 1.5, state)["words"] for wrong in (5, 6))
    assert few.endswith(" of 1 of 2 classes (5 newly wrong, 0 newly right, which may be chance)")
    assert many.endswith(" (6 newly wrong, 0 newly right)")
    rows.append({"class": "yellow", "n": 1})
    told = gate_of(result, 1.5, state)
    assert told["unmeasured"] == []
    assert told["words"] == "old classes 90.0 % -> 88.5 % on 8 held-out images of 2 of 2 classes"


def test_old_classes_without_test_images_are_named(
    toy: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state = first(toy, tmp_path).state
    test = colours(tmp_path / "t", {"red": (220, 40, 40)} | COLD, 4, 9)
    made = updated(state, colours(tmp_path / "cold", COLD), test, unmeasured=False)
    assert (
        "no test image shows 1 of 2 old classes, and what these lose is not measured: yellow" in caplog.text
    )
    assert made.verdict["gate"]["unmeasured"] == ["yellow"]
    for shown in ("\n".join(lines(made.verdict)), page(made.verdict).lower()):
        assert "not measured, as there are no held-out images: old classes yellow" in shown


def test_rollback_restores_the_version_before_bit_for_bit(toy: str, tmp_path: Path) -> None:
    one = first(toy, tmp_path)
    state = written(one, begin(toy), tmp_path / "v1")
    before = {file.name: file.read_bytes() for file in (tmp_path / "v1").iterdir()}
    written(updated(state, colours(tmp_path / "cold", COLD)), state, tmp_path / "v2")
    assert {f.name: f.read_bytes() for f in (tmp_path / "v1").iterdir() if f.is_file()} == before
    rollback(tmp_path / "v2")
    assert {file.name: file.read_bytes() for file in (tmp_path / "v2").iterdir()} == before
    assert read(tmp_path / "v2.undone").version == 2
    with pytest.raises(UserError, match="keeps no previous version"):
        rollback(tmp_path / "v2")


def test_what_is_done_to_the_old_folder_does_not_reach_the_new_one(toy: str, tmp_path: Path) -> None:
    """Its files are links to those of the old one."""
    state = written(first(toy, tmp_path), begin(toy), tmp_path / "v1")
    (tmp_path / "v1" / "notes.txt").write_text("mine")
    written(updated(state, colours(tmp_path / "cold", COLD)), state, tmp_path / "v2")
    fitted = fit(np.random.default_rng(0).normal(size=(40, 2)), np.arange(40) % 2, "some")
    held = held_out("maximum_logit", "some", np.arange(40.0))
    assert keep_calibration(open_model(str(tmp_path / "v1")), fitted, held) is not None
    checkpoint.verify(tmp_path / "v1")
    rollback(tmp_path / "v2")
    assert open_model(str(tmp_path / "v1")).calibration == fitted
    assert open_model(str(tmp_path / "v1")).unknown == held
    assert open_model(str(tmp_path / "v2")).calibration is None
    assert not (tmp_path / "v2" / "notes.txt").exists()


@pytest.mark.parametrize("kept", [0, 1 << 20])
def test_images_that_cannot_be_read_are_left_out(
    kept: int, toy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether decoded pixels are kept or not."""
    monkeypatch.setattr(pictures, "KEPT_BYTES", kept)
    new = colours(tmp_path / "warm", WARM)
    broken = tmp_path / "warm" / "red" / "2.png"
    broken.write_bytes(broken.read_bytes()[:60])
    made = updated(begin(toy), new)
    assert made.state.sums.counts.tolist() == [5, 6]
    assert list(made.verdict["skipped_images"]) == ["red/2.png"]


def test_a_damaged_version_is_refused(toy: str, tmp_path: Path) -> None:
    written(first(toy, tmp_path), begin(toy), tmp_path / "v1")
    record = tmp_path / "v1" / "update.json"
    record.write_text(record.read_text().replace('"version": 1', '"version": 7', 1))
    with pytest.raises(UserError, match=r"v1 is damaged \(update.json is not what was written\)"):
        begin(str(tmp_path / "v1"))
    with pytest.raises(checkpoint.Damaged):
        checkpoint.verify(tmp_path / "v1")


def test_a_failed_write_leaves_nothing_and_the_old_version_alone(toy: str, tmp_path: Path) -> None:
    state = written(first(toy, tmp_path), begin(toy), tmp_path / "v1")
    made = updated(state, colours(tmp_path / "cold", COLD))
    away = tmp_path / "away.zip"
    before = {file.name: file.read_bytes() for file in (tmp_path / "v1").iterdir()}
    (tmp_path / "v1" / "images.zip").rename(
        away
    )  # the old exemplars are gone when they are to be written again
    with pytest.raises(UserError, match=r"v1/images\.zip cannot be read \(No such file .*\): put it back"):
        written(made, state, tmp_path / "v2")
    away.rename(tmp_path / "v1" / "images.zip")
    assert not [path for path in tmp_path.iterdir() if "v2" in path.name]
    assert {f.name: f.read_bytes() for f in (tmp_path / "v1").iterdir() if f.is_file()} == before


def test_the_verdict_is_a_page_and_json(toy: str, tmp_path: Path) -> None:
    state = written(first(toy, tmp_path), begin(toy), tmp_path / "v1")
    test = colours(tmp_path / "t", WARM | COLD, 4, 9)
    written(updated(state, colours(tmp_path / "cold", COLD), test), state, tmp_path / "v2")
    verdict = json.loads((tmp_path / "v2" / "verdict.json").read_text())
    page = (tmp_path / "v2" / "verdict.html").read_text()
    assert verdict["classes"]["new"] == ["blue", "green"]
    for word in (
        "Passed",
        f"version 2 uses {verdict['chosen']}",
        "ridge",
        "nothing",
        "means",
        "blue",
        "Held-out",
    ):
        assert word in " ".join(page.split())
    assert page.count('<div class="scroll"><table>') == page.count("<table") == 2  # narrow windows
    assert verdict["test"]["images"] == 16
    assert (tmp_path / "v2" / BEFORE / "everclip.json").is_file()
