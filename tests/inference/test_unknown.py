"""Unknown scores and thresholds of models in use."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from everclip.cli.export import drawn
from everclip.data.images import FileStore
from everclip.errors import UserError
from everclip.inference.model import open_model
from everclip.inference.predict import answers
from everclip.inference.unknown import ROUNDING, Judge, available, judged, least_rate, threshold
from everclip.methods.shared.statistics import Linear, Statistics
from everclip.metrics.unknown import held_out
from everclip.models.clip import Clip
from everclip.runs import card
from tests.learned import learned
from tests.pictures import picture


@pytest.fixture(scope="module")
def run(toy: str, photos: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return learned(tmp_path_factory.mktemp("runs") / "run", toy, photos, "method=multilayer_lda")


@pytest.fixture(scope="module")
def text(toy: str, photos: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return learned(tmp_path_factory.mktemp("runs") / "text", toy, photos, "method=zero_shot")


def test_a_closed_form_judges_by_its_own_sums(run: Path) -> None:
    model, pictures = open_model(str(run)), drawn(32)[:5]
    assert available(model) == ("maximum_logit", "mahalanobis", "relative_mahalanobis")
    logits, found = judged(model, Judge(model, available(model)), pictures)
    np.testing.assert_allclose(logits, model.logits(pictures))
    np.testing.assert_allclose(found[:, 0], -logits.max(1))
    assert model.plan is not None
    method, linear = model.plan.method, model.classifier
    assert isinstance(method, Statistics)
    assert isinstance(linear, Linear)
    with torch.no_grad():
        rows = linear.encode(pictures).numpy()
    gram, sums, counts = (part.numpy() for part in (method.gram, method.sums, method.counts))
    means = sums / counts[:, None]
    spread = (gram - means.T @ sums) / counts.sum()
    mean = sums.sum(0) / counts.sum()
    share = method.shrinkage(method.cells())
    assert share is not None
    total, one = gram / counts.sum() - np.outer(mean, mean), np.eye(len(spread))
    p = np.linalg.inv(spread + share * np.trace(spread) / len(spread) * one)
    q = np.linalg.inv(total + share * np.trace(total) / len(spread) * one)
    near = np.array([[(row - mu) @ p @ (row - mu) for mu in means] for row in rows]).min(1)
    np.testing.assert_allclose(found[:, 1], near, rtol=1e-6)
    far = np.array([(row - mean) @ q @ (row - mean) for row in rows])
    np.testing.assert_allclose(found[:, 2], near - far, rtol=1e-6, atol=1e-9)


def test_any_other_model_has_its_logits(text: Path) -> None:
    model, pictures = open_model(str(text)), drawn(32)[:5]
    assert available(model) == ("maximum_logit",)
    _, found = judged(model, model.judge, pictures)
    np.testing.assert_allclose(found[:, 0], -model.logits(pictures).max(1))


def test_answers_say_who_is_unknown(run: Path, tmp_path: Path) -> None:
    from dataclasses import replace

    paths = []
    for number in range(5):
        paths.append(str(tmp_path / f"{number}.png"))
        picture((40 * number, 90, 10), number).save(paths[-1])
    paths.insert(2, str(tmp_path / "gone.png"))
    model = open_model(str(run))
    plain = [*answers(model, [FileStore(Path(), paths)])]
    assert all(one.score is None and not one.unknown for one in plain)
    model = replace(model, unknown=held_out(available(model)[-1], "some", np.linspace(-1e9, 1e9, 99)))
    scores = [one.score for one in answers(model, [FileStore(Path(), paths)], 0.5)]
    assert scores[2] is None
    middle = float(np.median([score for score in scores if score is not None]))
    model = replace(model, unknown=held_out(available(model)[-1], "some", np.full(19, middle)))
    found = [*answers(model, [FileStore(Path(), paths)], 0.05)]
    assert sum(one.unknown for one in found) == 2
    assert all(one.unknown == (one.score is not None and one.score > middle) for one in found)
    for one, other in zip(plain, found, strict=True):
        if one.probabilities is not None and other.probabilities is not None:
            np.testing.assert_allclose(one.probabilities, other.probabilities, atol=1e-6)


def test_what_sets_no_threshold(run: Path) -> None:
    from dataclasses import replace

    model = open_model(str(run))
    with pytest.raises(UserError, match=r"keeps no scores of held-out images.*--calibrate DATA"):
        threshold(model, 0.05)
    name = available(model)[-1]
    few = replace(model, unknown=held_out(name, "some", np.arange(12.0)))
    with pytest.raises(UserError, match="5 % needs 19 held-out images of known classes, 7 more than the 12"):
        threshold(few, 0.05)
    assert threshold(few, 0.1) == 11
    other = replace(model, unknown=held_out("typicality", "some", np.arange(12.0)))
    with pytest.raises(UserError, match="has no score typicality any more"):
        threshold(other, 0.5)
    many = replace(model, unknown=held_out(name, "some", np.arange(3000.0)))
    with pytest.raises(UserError, match=r"finer than 0\.1 %"):
        threshold(many, 0.0005)


@pytest.mark.parametrize("images", [2, 3, 6, 19, 30, 97, 8191])
def test_the_least_rate_that_is_said_is_accepted(images: int) -> None:
    finest = 1 / (images + 1)
    said = float(least_rate(finest)) / 100
    assert finest - ROUNDING <= said < finest + 1e-5


def test_scores_stay_with_a_folder_and_a_damaged_file_is_refused(run: Path, tmp_path: Path) -> None:
    from dataclasses import replace

    from everclip.inference.model import save

    model = open_model(str(run))
    save(model, tmp_path / "plain")
    assert "unknown" not in json.loads((tmp_path / "plain" / card.FILE).read_text())
    assert open_model(str(tmp_path / "plain")).unknown is None
    held = held_out("relative_mahalanobis", "some", np.arange(30.0))
    save(replace(model, unknown=held), tmp_path / "folder")
    again = open_model(str(tmp_path / "folder"))
    assert again.unknown == held
    assert isinstance(again.clip, Clip)
    content = json.loads((tmp_path / "folder" / card.FILE).read_text())
    for wrong in ({"scores": [3.0, 1.0]}, {"scores": [1e999]}, {"scores": "all"}, {"code": "print()"}):
        text = json.dumps(content | {"unknown": content["unknown"] | wrong})
        (tmp_path / "folder" / card.FILE).write_text(text)
        with pytest.raises(UserError, match=r"everclip\.json"):
            open_model(str(tmp_path / "folder"))
