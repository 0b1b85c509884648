"""MG-CLIP: golden numbers, updates of keys and values by hand, its losses, and what it needs."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import normalize
from torch.testing import assert_close

from everclip.methods.shared.attention import attentions
from everclip.methods.shared.tuned import KeyValue, mixed, moved, wrong
from everclip.models import zoo
from tests.methods.closed import near
from tests.methods.stages import Course, clip_with, same, state
from tests.methods.test_coda_prompt import CUSTOM_VIT

LOGITS = torch.tensor([[25.0, 24.0, 22.0]], dtype=torch.float64)
COSINES = torch.tensor([[0.70, 0.71, 0.78]], dtype=torch.float64)


def test_golden_scores() -> None:
    near(mixed(LOGITS, COSINES, twice=True)[0], [0.35156459, 0.32072759, 0.32770783])
    near(mixed(LOGITS, COSINES, twice=False)[0], [0.39969727, 0.31311883, 0.28718390])


def test_golden_stop() -> None:
    logits = torch.tensor([[30.0, 20, 18], [19, 28, 21], [17, 22, 27]])
    assert wrong(logits, torch.arange(3)) == 19.5
    assert moved(22, 19.5) == pytest.approx(0.11363636)
    assert moved(21, 19.5) < 0.1
    assert math.isnan(wrong(logits[:, :1], torch.zeros(3, dtype=torch.int64)))


@pytest.mark.parametrize("custom", [False, True])
@torch.no_grad()
def test_keys_and_values_of_both_towers(custom: bool, toy: str, tmp_path: Path) -> None:
    """Equal to the towers with W + B A / 8 in place of W; queries stay."""
    clip = zoo.load(clip_with(tmp_path / "model", **CUSTOM_VIT) if custom else toy)
    updates = KeyValue(clip.model, 8)
    assert len(updates.layers) == 3
    images = clip.normalise(torch.randint(0, 255, (2, 3, 32, 32), dtype=torch.uint8))
    plain = clip.encode_image(images), clip.encode_text(["a", "a photo of b"])
    with updates.beside(clip.model):
        assert_close(clip.encode_image(images), plain[0], rtol=1e-4, atol=1e-5)
        assert_close(clip.encode_text(["a", "a photo of b"]), plain[1], rtol=1e-4, atol=1e-5)
    layers: Any = updates.layers
    for layer in layers:
        layer.b.normal_(std=0.5)
    with updates.beside(clip.model):
        found = clip.encode_image(images), clip.encode_text(["a", "a photo of b"])
    for attention, layer in zip(attentions(clip.model), layers, strict=True):
        width = attention.in_proj_weight.shape[1]
        for place in (0, 1):
            rows = slice((1 + place) * width, (2 + place) * width)
            attention.in_proj_weight[rows] += layer.b[place] @ layer.a[place] / 8
    assert_close(clip.encode_image(images), found[0], rtol=1e-4, atol=1e-5)
    assert_close(clip.encode_text(["a", "a photo of b"]), found[1], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(found[0], plain[0], atol=1e-3)
    assert not torch.allclose(found[1], plain[1], atol=1e-3)


def test_losses_by_hand(toy: str, photos: str) -> None:
    course = Course.of(f"data={photos}", f"model={toy}", "scenario.tasks=3", "method=mg_clip").learn(0)
    task = course.enter(1)
    method, (tune, read, head) = course.method, course.learner.phases(task)
    on, own = course.sample(task), list(task.classes)
    features = method.encode(course.clip, on, tune)
    terms = method.loss(features, on, tune)
    new, old = [], []
    for z, label, current in zip(features["image"], on.labels.tolist(), on.current.tolist(), strict=True):
        scores = torch.stack([features["scale"] * z @ e for e in features["classes"]])
        if current:
            picked = scores[[method.seen.index(k) for k in own]]
            new.append(-picked.log_softmax(0)[own.index(label)])
        else:
            old.append(-scores.log_softmax(0)[method.seen.index(label)])
    assert_close(terms["cross_entropy"], torch.stack(new).mean(), rtol=1e-4, atol=1e-5)
    assert_close(terms["replay"], 0.1 * torch.stack(old).mean(), rtol=1e-4, atol=1e-5)
    before = method.rows.detach().clone()
    course.phase(task, read, 1)
    course.learner.begin_phase(course.clip, head)
    means = normalize(method.prototypes()[[method.seen.index(k) for k in own]], dim=1)
    assert_close(method.rows[own].detach(), means)
    assert torch.equal(method.rows[course.seen].detach(), before[course.seen])


def test_towers_stay_and_the_log_says_how_far_logits_moved(
    toy: str, photos: str, caplog: pytest.LogCaptureFixture
) -> None:
    course = Course.of(f"data={photos}", f"model={toy}", "scenario.tasks=3", "method=mg_clip")
    before = state(course.clip.model)
    with caplog.at_level(logging.INFO, logger="everclip"):
        course.learn(0)
    assert "logits of wrong classes" in caplog.text
    assert same(state(course.clip.model), before)
    assert any(layer.b.any() for layer in course.method.updates.layers)
    found = course.scores(*range(6)).exp()
    assert_close(found[:, course.seen].sum(1), torch.ones(len(found)))
    assert (found == 0).all(0).sum() == 4


def test_a_convolutional_tower_has_updates_of_its_text_tower(convolutional: str, photos: str) -> None:
    course = Course.of(f"data={photos}", f"model={convolutional}", "method=mg_clip")
    course.enter(0)
    assert len(course.method.updates.layers) == 1
