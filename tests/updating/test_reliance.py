"""What an update, an edit and forgetting make of check images: a temperature and thresholds."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from everclip.cli.app import main
from everclip.data.images import content_id
from everclip.data.pixels import Pixels
from everclip.inference.assess import decoded
from everclip.inference.model import open_model, save
from everclip.inference.unknown import Judge, left_out
from everclip.metrics.calibration import fit
from everclip.metrics.unknown import held_out
from everclip.updating.classifiers import columns_of, features, scores, text_form
from everclip.updating.editing import edit, merge, rename
from everclip.updating.forgetting import forget, without
from everclip.updating.reliance import CALIBRATED, Checked, fitted, refitted, unlearned
from everclip.updating.state import State
from everclip.updating.verdict import lines, page
from tests.versions import COLD, WARM, begin, colours, first, updated, written

FEW = "6 check images are too few for a temperature (40 are needed)"


@pytest.fixture(scope="module")
def one(toy: str, tmp_path_factory: pytest.TempPathFactory) -> State:
    """A version of two colours by the layers, with six check images of each in it."""
    root = tmp_path_factory.mktemp("one")
    made = updated(begin(toy), colours(root / "warm", WARM, 30), method="layers", exemplars=24)
    return written(made, begin(toy), root / "v1")


def test_a_version_keeps_the_scores_of_its_check_images(one: State) -> None:
    assert one.model is not None
    held = one.model.unknown
    assert held is not None
    assert (held.score, held.images) == ("relative_mahalanobis", 12)
    assert len(one.checks) == 12
    again, told = refitted(
        replace(one, model=replace(one.model, unknown=None)), one.model
    )  # the same once more
    assert again.model is not None
    assert again.model.unknown is not None
    np.testing.assert_allclose(again.model.unknown.scores, held.scores, rtol=1e-3)
    assert told["unknown"]["finest_rate"] == pytest.approx(1 / 13)


def test_check_images_are_scored_as_if_they_were_not_in_the_sums(one: State) -> None:
    """By sums with them they would look too well known, and more than the stated share would be called unknown."""
    model = one.model
    assert model is not None
    assert model.unknown is not None
    pixels = Pixels(one.checks.store, one.frozen.eval_transform, one.frozen.image_size, 0)
    rows = features(one.frozen, one.checks, pixels, one.known.depths)[
        :, columns_of("multilayer_lda", one.frozen)
    ]
    wanted = np.sort(left_out(model, "relative_mahalanobis", rows, one.checks.labels))
    np.testing.assert_allclose(model.unknown.scores, wanted, rtol=1e-3)
    apart = left_out(model, "mahalanobis", rows, one.checks.labels)
    assert (Judge(model, ["mahalanobis"]).of_rows(rows.double())[1][:, 0].numpy() < apart).all()


def test_too_few_check_images_keep_the_temperature_and_say_so(one: State, tmp_path: Path) -> None:
    assert one.model is not None
    temperature = fit(np.random.default_rng(0).normal(size=(50, 2)), np.arange(50) % 2, "mine")
    before = replace(
        one, model=replace(one.model, calibration=temperature), checks=one.checks.select(np.arange(2))
    )
    made = updated(before, colours(tmp_path / "cold", COLD, 6), method="layers", exemplars=24)
    assert made.state.model is not None
    assert made.state.model.calibration == temperature
    told = made.verdict["calibration"]
    assert not told["fitted"]
    assert (told["images"], told["needed"]) == (4, CALIBRATED)
    assert told["words"].endswith(
        f"(40 are needed): the old temperature, {temperature.temperature:.3g}, is kept"
    )
    for shown in ("\n".join(lines(made.verdict)), page(made.verdict).replace("&#39;", "'")):
        assert told["words"] in shown
        assert made.verdict["unknown"]["words"] in shown
        assert "12 images given: 10 to learn from, 2 held for checks" in shown
        assert all(line in shown for line in made.verdict["rule"])
    again = written(made, before, tmp_path / "v2")
    assert again.model is not None
    assert again.model.calibration == temperature


def test_enough_check_images_are_measured_before_and_after(toy: str, tmp_path: Path) -> None:
    made = updated(begin(toy), colours(tmp_path / "warm", WARM, 110), method="ridge")
    told = made.verdict["calibration"]
    assert told["fitted"]
    assert made.state.model is not None
    fitted_on = made.state.model.calibration
    assert fitted_on is not None
    assert (told["images"], fitted_on.images) == (44, 44)
    assert (told["ece_before"], told["ece_after"]) == (fitted_on.ece_before, fitted_on.ece)
    assert f"{fitted_on.ece_before:.1%} before, {fitted_on.ece:.1%} after" in "\n".join(lines(made.verdict))


def test_the_temperature_of_another_kind_of_classifier_is_dropped(one: State) -> None:
    assert one.model is not None
    temperature = fit(np.random.default_rng(0).normal(size=(50, 2)), np.arange(50) % 2, "mine")
    old = replace(one.model, calibration=temperature)
    text = text_form(one.spec, one.known, one.frozen, "zero_shot")
    found = np.random.default_rng(1).normal(size=(6, 2)).astype(np.float32)
    checked = Checked(found, np.arange(6) % 2)
    made, told = fitted(text, checked, old)
    assert made.calibration is None
    assert told["calibration"]["words"] == (
        f"probabilities: {FEW}: the old temperature, {temperature.temperature:.3g}, was another classifier's and is"
        " dropped"
    )
    assert made.unknown is not None
    assert made.unknown.score == "maximum_logit"
    sharpness = one.frozen.logit_scale.exp().item()
    np.testing.assert_allclose(made.unknown.scores, np.sort(-sharpness * found.max(1)), rtol=1e-6)


def test_an_unchanged_classifier_keeps_both(one: State) -> None:
    assert one.model is not None
    temperature = fit(np.random.default_rng(0).normal(size=(50, 2)), np.arange(50) % 2, "mine")
    held = held_out("relative_mahalanobis", "mine", np.arange(25.0))
    model = replace(one.model, calibration=temperature, unknown=held)
    found = np.zeros((60, 2), dtype=np.float32)
    made, told = fitted(model, Checked(found, np.arange(60) % 2), model)
    assert (made.calibration, made.unknown) == (temperature, held)
    assert "the classifier is unchanged" in told["calibration"]["words"]


def test_where_all_check_images_are_right_no_temperature_is_best(one: State) -> None:
    """One without end would make every answer certain."""
    assert one.model is not None
    bare = replace(one.model, calibration=None, unknown=None)
    temperature = fit(np.random.default_rng(0).normal(size=(50, 2)), np.arange(50) % 2, "mine")
    checked = Checked(np.eye(2, dtype=np.float32)[np.arange(60) % 2], np.arange(60) % 2)
    for before, words in (
        (None, "there was no temperature before"),
        (
            replace(bare, calibration=temperature),
            f"the old temperature, {temperature.temperature:.3g}, is kept",
        ),
    ):
        made, told = fitted(bare, checked, before)
        assert made.calibration == (before and temperature)
        assert not told["calibration"]["fitted"]
        assert told["calibration"]["words"] == (
            f"probabilities: the classifier is always right on 60 check images, so no temperature is best: {words}"
        )


def test_without_check_images_there_is_no_threshold(one: State) -> None:
    assert one.model is not None
    bare = replace(
        one, checks=one.checks.select(np.zeros(0, dtype=int)), model=replace(one.model, unknown=None)
    )
    after, told = refitted(bare, one.model)
    assert after.model is not None
    assert after.model.unknown is None
    assert told["unknown"]["words"].startswith("unknown pictures: no check images to set a threshold by")


def test_a_class_that_check_images_alone_know_is_said(one: State) -> None:
    """Not that there were none, or too few."""
    assert one.model is not None
    bare = replace(one.model, calibration=None, unknown=None)
    found = np.zeros((60, 2), dtype=np.float32)
    found[:, 1] = -np.inf
    made, told = fitted(bare, Checked(found, np.zeros(60, dtype=np.int64)), None)
    assert (made.calibration, made.unknown) == (None, None)
    words = "without the check images some class has no image to be known by"
    assert told["calibration"]["words"] == f"probabilities: {words}: there was no temperature before"
    assert told["unknown"]["words"].startswith(f"unknown pictures: {words}; give held-out images")


def test_a_closed_form_that_stays_has_thresholds_by_its_scores(one: State, tmp_path: Path) -> None:
    """Its distances would take check images that it has not learned for images in its sums."""
    assert one.model is not None
    bare = replace(one, model=replace(one.model, unknown=None))
    made = updated(bare, colours(tmp_path / "more", WARM, 10, 4), method="nothing", exemplars=24)
    assert made.state.model is not None
    held = made.state.model.unknown
    assert held is not None
    assert (held.score, held.images) == ("maximum_logit", 16)
    assert made.verdict["unknown"]["score"] == "maximum_logit"
    assert made.state.model.judge.names == ("maximum_logit",)


def test_edits_and_forgetting_fit_anew(
    one: State, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    made = edit(one, merge(one.known.names, ["red", "yellow"], "warm"), None, 0.0)
    assert made.state.model is not None
    assert made.state.model.unknown is not None
    assert made.verdict["unknown"]["images"] == 12
    assert made.verdict["calibration"]["words"] in page(made.verdict)
    gone = forget(one, ["yellow"], [])
    assert gone.state.model is not None
    assert gone.state.model.unknown is not None
    assert gone.state.model.unknown.images == 6
    assert main(["forget", one.spec, "--class", "yellow", "-o", str(tmp_path / "less")]) == 0
    said = capsys.readouterr().out
    assert f"{FEW}: there was no temperature before" in said
    assert (
        "unknown pictures: predict --unknown-at from 14.286 % up, by maximum_logit on 6 check images" in said
    )
    card = json.loads((tmp_path / "less" / "everclip.json").read_text())
    assert card["unknown"]["images"] == 6
    assert open_model(str(tmp_path / "less")).unknown is not None


@pytest.mark.parametrize("method", ["means", "ridge", "layers"])
def test_the_deployed_classifier_is_judged_on_what_it_has_not_learned(
    method: str, toy: str, tmp_path: Path
) -> None:
    """Of noise there is nothing to know, but a closed form knows the pictures that it has learned."""
    grey = (128, 128, 128)
    four: dict[str, tuple[int, int, int]] = dict.fromkeys("abcd", grey)
    state = updated(begin(toy), colours(tmp_path / "one", four, 20, 1), method=method, exemplars=40).state
    made = updated(state, colours(tmp_path / "two", {"a": grey}, 5, 2), method=method, exemplars=40)
    (nothing,) = (row for row in made.verdict["candidates"] if row["name"] == "nothing")
    assert nothing["accuracy"] < 0.4
    known = state.checks.ids
    assert set(known.tolist()) <= set(state.sums.ids.tolist())
    pixels = decoded(state.checks, state.encoder)
    found, _ = unlearned(state, state.checks, pixels)
    assert state.model is not None
    seen = scores(state.model, state.checks, pixels)
    apart = without(state, [], list_of(tmp_path / "one", known)).state.model
    assert apart is not None
    np.testing.assert_allclose(found, scores(apart, state.checks, pixels), atol=1e-4)
    right = [(one.argmax(1) == state.checks.labels).mean() for one in (found, seen)]
    assert right[0] < right[1]
    told = edit(state, rename(state.known.names, {"a": "e"}), None, 100.0).verdict
    assert told["test"]["before"] == pytest.approx(right[0])
    assert told["gate"]["words"] == "accuracy on check images, by classifiers that have not learned them"


def list_of(root: Path, ids: np.ndarray) -> list[str]:
    """The files of images."""
    return [str(file) for file in root.rglob("*.png") if content_id(file.read_bytes()) in ids]


def test_a_version_of_before_opens_as_it_did(one: State, toy: str, tmp_path: Path) -> None:
    state = written(first(toy, tmp_path), begin(toy), tmp_path / "v1")
    assert state.model is not None
    bare = replace(state.model, unknown=None)
    save(bare, tmp_path / "old")
    assert "unknown" not in json.loads((tmp_path / "old" / "everclip.json").read_text())
    assert open_model(str(tmp_path / "old")).unknown is None
