"""Vis: golden numbers with targets of 0 and 1 and of -1 and 1, its loss by hand, and what stays as it is."""

from __future__ import annotations

import pytest
import torch

from everclip.methods.shared.ridge import RidgeMethod
from everclip.methods.vis import Vis
from everclip.models.clip import Clip
from tests.methods.closed import LABELS, QUERY, T, make, near
from tests.methods.stages import Course, same, state
from tests.methods.test_rail import P


@pytest.fixture
def course(toy: str, photos: str) -> Course:
    return Course.of(f"data={photos}", f"model={toy}", "scenario.tasks=3", "method=vis", "memory.budget=0")


def test_golden(clip: Clip) -> None:
    """A tenth of the paper's lam of 0.1, and its targets of -1 and 1 from ours."""
    method = make("vis", width=0, lam=0.01, lam_unit="absolute", lam_choice="fixed")
    RidgeMethod.build(method, clip, 3)
    rows = torch.nn.functional.pad((T @ P).relu(), (0, 1), value=1.0)
    for block in ([0, 1, 2, 3], [4, 5]):
        method.add(rows[block], torch.tensor(LABELS)[block])
    plus = 2 * method.sums - method.sums.sum(0)
    near(plus[:3].T[:4], [[1.15, -2.25, -1.15], [-2, 1.6, -1.6], [-3, -1.3, -0.9], [-2, -2, -2]])
    weight, _ = method.solve(clip, [0, 1, 2])
    scores = torch.nn.functional.pad((QUERY @ P).relu(), (0, 1), value=1.0) @ weight
    near(scores, [0.26105937, 0.14481585, 0.53644641])
    near(2 * scores - scores.sum(), [-0.42020289, -0.65268994, 0.13057119])


def test_the_loss_by_hand(course: Course) -> None:
    task = course.enter(0)
    method, (phase,) = course.method, course.learner.phases(task)
    update = course.update(phase)
    on = course.sample(task)
    first = course.step(update, on, phase)
    assert first["stay"] == 0, "a new mixer changes nothing"
    features = method.encode(course.clip, on, phase)
    terms, total, moved = method.loss(features, on, phase), 0.0, 0.0
    for blocks, label in zip(features["blocks"], on.labels.tolist(), strict=True):
        change = method.mixer[2](torch.nn.functional.gelu(method.mixer[0](blocks)))
        scores = method.head(blocks[:32] + change)
        total -= scores.log_softmax(0)[method._labels.index(label)].item()
        moved += change.square().sum().item()
    assert terms["cross_entropy"].item() == pytest.approx(total / len(on), rel=1e-4)
    assert terms["stay"].item() == pytest.approx(0.01 * moved / len(on), rel=1e-3)
    assert moved > 0


def test_only_the_first_task_trains(course: Course) -> None:
    method = course.learn(0).method
    chosen, before = method.chosen.item(), state(method.mixer)
    assert chosen in Vis.grid
    task = course.enter(1)
    assert course.learner.phases(task) == []
    course.leave(task)
    assert method.chosen == chosen
    assert same(state(method.mixer), before)
    assert not list(method.head.parameters())
