"""BOFA: golden numbers, its loss by hand, which directions move, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy, normalize
from torch.testing import assert_close

from everclip.errors import UserError
from everclip.methods.shared.prototypes import free, moments
from everclip.models import zoo
from everclip.models.pooled import both, projection_of
from tests.methods.closed import near
from tests.methods.stages import Course, batch, clip_with

X = torch.tensor([[2, 0, 1], [1, 0, 1], [2, 1, 1]], dtype=torch.float64)
FIRST = torch.tensor([[1, 0, 0], [0, 1, 0]], dtype=torch.float64)
LEARNED = torch.tensor([[1.1, 0.2, -0.1], [0, 0.9, 0.3]], dtype=torch.float64)


def course_of(toy: str, photos: str, *options: str) -> Course:
    words = ("scenario.tasks=3", "method=bofa", "method.rank=4", *options)
    return Course.of(f"data={photos}", f"model={toy}", *words)


def test_golden() -> None:
    found = moments(X, mean=True)
    near(torch.linalg.eigvalsh(found), [0.06936947, 0.29415954, 6.13677098])
    basis = free(found, 1)
    weight = FIRST + (LEARNED - FIRST) @ basis @ basis.T
    near(weight, [[1.04264449, -0.02104291, -0.06716133], [-0.11362695, 1.05606918, 0.17895248]])
    near(moments(X, mean=False), (X.T @ X).tolist())


def test_a_projection_is_what_the_tower_ends_with(toy: str, convolutional: str) -> None:
    for spec in (toy, convolutional):
        clip = zoo.load(spec)
        with torch.no_grad():
            output, rows = both(clip.model.visual, clip.normalise(clip.blank(2)))
        weight, bias = projection_of(clip.model.visual)
        assert_close(rows @ weight.T + bias, output)


@pytest.mark.parametrize("classes", ["present", "seen"])
def test_without_exemplars_the_loss_is_over_present_classes(classes: str, toy: str, photos: str) -> None:
    course = course_of(toy, photos, f"method.classes={classes}").learn(0)
    task = course.enter(1, memory=False)
    method, (read, train, _) = course.method, course.learner.phases(task)
    course.phase(task, read, 1)
    on = batch(list(task.classes) * 2)
    features = method.encode(course.clip, on, train)
    places = method.places(torch.tensor(task.classes if classes == "present" else method.seen))
    z = normalize(features["rows"] @ method.weight.T, dim=1)
    logits = features["scale"].log() * z @ method.mixed(method.text, method.weight)[places].T
    target = torch.tensor([places.tolist().index(at) for at in method.places(on.labels).tolist()])
    assert_close(method.loss(features, on, train)["cross_entropy"], cross_entropy(logits, target))


def test_the_loss_by_hand(toy: str, photos: str) -> None:
    course = course_of(toy, photos, "method.mix=0.3").learn(0)
    task = course.enter(1)
    method, (read, train, safe) = course.method, course.learner.phases(task)
    course.phase(task, read, 1)
    course.phase(task, train, 2)
    course.learner.begin_phase(course.clip, safe)
    on = course.sample(task)
    features = method.encode(course.clip, on, safe)
    loss = method.loss(features, on, safe)["cross_entropy"]
    basis = torch.linalg.eigh(method.kept["moments"]).eigenvectors[:, :4].float()
    weight = method.first + (method.weight - method.first) @ basis @ basis.T
    means = method.prototypes()
    p = torch.stack(
        [
            0.7 * e + 0.3 * normalize(method.first @ mu, dim=0)
            for e, mu in zip(method.text, means, strict=True)
        ]
    )
    logits = torch.stack(
        [features["scale"].log() * p @ normalize(weight @ x, dim=0) for x in features["rows"]]
    )
    assert_close(loss, cross_entropy(logits, method.places(on.labels)), rtol=1e-4, atol=1e-5)
    course.phase(task, safe, 2)
    assert method.moved.requires_grad
    moved = method.projection("safe") - method.first
    assert_close(moved @ basis @ basis.T, moved, atol=1e-6, rtol=1e-4)


def test_the_projection_at_test_is_the_mean_over_tasks(toy: str, photos: str) -> None:
    course = course_of(toy, photos, "method.rule=0", "method.mix=0").learn(0)
    first = course.method.kept["total"].clone()
    assert torch.equal(first, course.method.weight)
    course.learn(1)
    mean = (first + course.method.projection("safe").detach()) / 2
    with torch.no_grad():
        z = normalize(course.method.pooled(course.clip, course.images()) @ mean.T, dim=1)
    known = course.seen
    assert_close(course.scores(*known), z @ course.method.embed(course.clip, known).T, rtol=1e-4, atol=1e-6)


def test_a_tower_that_ends_otherwise_is_refused(tmp_path: Path, photos: str) -> None:
    vision = {"layers": [1, 1, 1, 1], "width": 8, "head_width": 8, "image_size": 32}
    course = course_of(clip_with(tmp_path / "model", **vision), photos)
    with pytest.raises(UserError, match=r"^method=bofa needs .* not ModifiedResNet"):
        course.enter(0)
