"""RAPF: golden numbers, its loss against loops, and what it draws and keeps."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn.functional import normalize
from torch.testing import assert_close

from everclip.methods.rapf import fuse, hinge
from everclip.methods.shared.gaussian import Gaussian, covariance, root, spread
from tests.methods.closed import near
from tests.methods.stages import Course

A = torch.tensor([[1, 0.2], [-0.1, 0.9]], dtype=torch.float64)
F = torch.tensor([[1, 0.4], [0.5, 0.8]], dtype=torch.float64)
E = torch.tensor([[1, 0], [0.8, 0.6], [0, 1]], dtype=torch.float64)


@pytest.fixture
def course(toy: str, photos: str) -> Course:
    words = ("scenario.tasks=3", "method=rapf", "method.theta=2", "method.samples=0.4")
    return Course.of(f"data={photos}", f"model={toy}", *words).learn(0)


def test_golden_fusion() -> None:
    old, new = (torch.tensor(m, dtype=torch.float64) for m in ([[2, 1], [0, 1]], [[2.1, 1], [0.3, 0.7]]))
    near(fuse(old, new, 0.6), [[2.1, 1.01099689], [0.3, 0.70259601]])
    near(fuse(old, new, 0.2), [[2.06268835, 1.03782971], [0.29119191, 0.70893038]])
    assert_close(fuse(old, old, 0.2), old)


def test_golden_losses() -> None:
    rows = normalize(F @ A.T, dim=1)
    near(hinge(rows[None], E[:1], E[1:2], 0.1)[0], [0.04598758, 0.38708787])


def test_golden_samples() -> None:
    rows = torch.tensor([[1, 0], [0.8, 0.2], [0.9, 0.4]], dtype=torch.float64)
    near(covariance(rows) + 1e-4 * torch.eye(2), [[0.0101, -0.01], [-0.01, 0.0401]])
    noise = torch.tensor([1.0, -1.0], dtype=torch.float64)
    near(rows.mean(0) + root(covariance(rows), shrink=False) @ noise, [1.00049876, -0.07328234])
    near(
        spread(torch.tensor([[0.04, 0.01], [0.01, 0.02]], dtype=torch.float64)), [[0.07, 0.02], [0.02, 0.05]]
    )


def test_rows_of_two_tasks_are_those_of_one() -> None:
    rows = torch.randn(9, 3, generator=torch.Generator().manual_seed(0)).double()
    both, whole = Gaussian.of(rows[:2]).with_rows_of(Gaussian.of(rows[2:])), Gaussian.of(rows)
    assert both.number == 9
    assert_close(both[1:], whole[1:])


def test_a_class_without_a_readable_image_is_in_no_pair(course: Course) -> None:
    lost = course.seen[0]
    course.method.kept = {
        key: value for key, value in course.method.kept.items() if not key.endswith(f"{lost}.0")
    }
    course.enter(1)
    assert course.method._pairs
    assert lost not in [course.method.seen[old] for old, _ in course.method._pairs]


def test_the_loss_by_hand(course: Course) -> None:
    task = course.enter(1)
    method, (phase,) = course.method, course.learner.phases(task)
    method.begin_phase(course.clip, phase)
    features = method.encode(course.clip, course.sample(task), phase)
    terms = method.loss(features, course.sample(task), phase)
    assert features["image"].shape[0] == len(course.sample(task)) + 2 * 4, (
        "two old classes, four samples each"
    )
    assert features["near"].shape[:2] == (4, 8), "each old class with each new one"
    e, scale, total = method.text, features["scale"], 0.0
    for x, place in zip(features["image"], features["places"].tolist(), strict=True):
        adapted = method.adapter.weight @ x
        scores = torch.stack([scale * adapted @ one / adapted.norm() for one in e])
        total += (scores.exp().sum().log() - scores[place]) / len(features["image"])
    assert_close(terms["cross_entropy"], total)
    values = []
    for (a, b), drawn in zip(method._pairs, features["near"], strict=True):
        for x in drawn:
            adapted = normalize(method.adapter.weight @ x, dim=0)
            values.append(max(0.0, float(0.1 - adapted @ e[a] + adapted @ e[b])))
    assert terms["hinge"].item() == pytest.approx(sum(values) / len(values), rel=1e-4)


def test_each_old_class_has_its_turn(course: Course) -> None:
    method = course.learn(1).method
    on = course.sample(course.enter(2))
    turns = [name for n in range(6) for name in method.turn(replace(on, number=n), 2)]
    assert all(sorted(turns[start : start + 4]) == sorted(method.roots) for start in (0, 4, 8))


def test_what_a_task_leaves(course: Course) -> None:
    method = course.method
    labels = course.plan.tasks[0].classes
    assert {name for name in method.kept if name.startswith("mean")} == {f"mean{k}.0" for k in labels}
    assert method.state_bytes() == 4 * 16 * 16 + 2 * (4 * 16 * 17 + 8)
    before = method.adapter.weight.detach().clone()
    course.learn(1)
    assert not torch.equal(method.adapter.weight, before)


def test_one_class_in_the_first_task_leaves_the_features_alone(toy: str, photos: str) -> None:
    course = Course.of(f"data={photos}", f"model={toy}", "method=rapf", "scenario.tasks=[1,5]")
    course.enter(0)
    assert torch.equal(course.method.adapter.weight.detach(), torch.eye(16))
