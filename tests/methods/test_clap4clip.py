"""CLAP4CLIP: golden numbers, its loss against loops, heads of several tasks and the second phase."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy
from torch.testing import assert_close

from everclip.methods.shared.gaussian import Heads, apart, deviation, divergence
from tests.methods.closed import near
from tests.methods.stages import Course, batch, same, state

F = torch.tensor([[[1, 0], [0.96, 0.28]], [[0, 1], [0.28, 0.96]]], dtype=torch.float64)
R = torch.tensor([[[0.5, 0.1], [0.2, 0.6]], [[0.4, 0], [0.1, 0.7]]], dtype=torch.float64)
BOTH = ("scenario.tasks=3", "method=clap4clip", "method.draws=3")


def test_golden_distributions() -> None:
    near(deviation(torch.tensor([0.0, -5.0, 2.0], dtype=torch.float64)), [0.69345403, 0.00770863, 2.12580108])
    mu = torch.tensor([[0.2, -0.1], [0.4, 0.3]], dtype=torch.float64)
    sigma = deviation(torch.tensor([[0, -1], [1, 0.5]], dtype=torch.float64))
    near(0.001 * divergence(mu, sigma), 5.27317984e-4)


def test_golden_apart() -> None:
    near(15 * apart(F.mean(1), R.mean(0)), 7.87955533)


def test_golden_start() -> None:
    heads: Any = Heads()
    heads.grow([0, 1], F.mean(1), F.var(1))
    near(heads.means[0].weight.detach(), [[0.49, 0.1372], [0.1372, 0.49]])
    expected = torch.tensor([[7.6864e-4, 3.136e-5], [3.136e-5, 7.6864e-4]], dtype=torch.float64)
    assert_close(heads.deviations[0].weight.detach(), expected, rtol=1e-9, atol=0)


def test_a_class_of_two_tasks_has_the_mean_of_its_heads() -> None:
    heads = Heads()
    for labels in ([4, 2], [2]):
        heads.grow(labels, torch.eye(2)[: len(labels)], torch.eye(2)[: len(labels)])
    scores = heads.pooled([4, 2], torch.tensor([[1.0, 2.0, 6.0]]))
    assert scores.tolist() == [[1.0, 4.0]]


@pytest.mark.parametrize("memory", [True, False])
def test_the_loss_by_hand(memory: bool, toy: str, photos: str) -> None:
    """Without exemplars, over the classes of the task alone."""
    course = Course.of(f"data={photos}", f"model={toy}", *BOTH).learn(0)
    task = course.enter(1, memory=memory)
    method, phase = course.method, course.learner.phases(task)[0]
    method.begin_phase(course.clip, phase)
    on = course.sample(task) if memory else batch([*task.classes] * 2)
    among = method.seen if memory else [*task.classes]
    assert method.heads.labels == method.seen
    where = [method.seen.index(label) for label in among]
    features = method.encode(course.clip, on, phase)
    terms = method.loss(features, on, phase)
    losses = []
    for drawn in features["r"]:
        for z, label in zip(features["z"], on.labels.tolist(), strict=True):
            scores = torch.stack(
                [features["scale"] * z @ (features["u"][place] + drawn[place]) for place in where]
            )
            losses.append(-scores.log_softmax(0)[among.index(label)])
    assert_close(terms["cross_entropy"], torch.stack(losses).mean(), rtol=1e-4, atol=1e-5)
    own = [place for place, which in enumerate(method.heads.tasks) if which == 1]
    rows = method._per_template[own]
    q = torch.stack([torch.stack([(row @ features["r"][:, k].T).mean() for k in own]) for row in rows])
    assert_close(terms["apart"], 15 * cross_entropy(q, torch.arange(len(own))), rtol=1e-4, atol=1e-5)
    normal = torch.distributions.Normal
    kl = torch.distributions.kl_divergence(
        normal(features["mu"][own], features["sigma"][own]), normal(0.0, 1.0)
    )
    assert_close(terms["kl"], 0.001 * kl.mean(0).sum(), rtol=1e-4, atol=1e-7)


def test_the_second_phase_by_hand(toy: str, photos: str) -> None:
    """Both terms of each task add up, and V has no dropout."""
    course = Course.of(f"data={photos}", f"model={toy}", *BOTH).learn(0)
    task, method = course.enter(1), course.method
    phase = course.learner.phases(task)[1]
    method.begin_phase(course.clip, phase)
    on = course.sample(task)
    features = method.encode(course.clip, on, phase)
    terms = method.loss(features, on, phase)
    kl, q = [], []
    for which in (0, 1):
        own = [place for place, other in enumerate(method.heads.tasks) if other == which]
        normal = torch.distributions.Normal(features["mu"][own], features["sigma"][own])
        standard = torch.distributions.Normal(torch.zeros(()), torch.ones(()))
        kl.append(torch.distributions.kl_divergence(normal, standard).mean(0).sum())
        rows = method._per_template[own].mean(1)
        q.append(cross_entropy(rows @ features["r"][:, own].mean(0).T, torch.arange(len(own))))
    assert_close(terms["kl"], 0.001 * sum(kl), rtol=1e-4, atol=1e-7)
    assert_close(terms["apart"], 15 * sum(q), rtol=1e-4, atol=1e-5)
    later = method.encode(course.clip, replace(on, key=(1, 1, 0, 1)), phase)
    assert torch.equal(later["u"], features["u"])
    assert not torch.equal(later["r"], features["r"]), "draws are of the step"


def test_the_decoder_attends_within_a_task_and_to_images(toy: str, photos: str) -> None:
    course = Course.of(f"data={photos}", f"model={toy}", *BOTH).learn(0, 1)
    method = course.method
    method.decoder.eval()
    with torch.no_grad():
        z, text = course.clip.encode_image(course.images()), method.text
        u, moved = method.adapted(z[None], text), text.clone()
        moved[0] = -moved[0]
        other = method.adapted(z[None], moved)
    tasks = torch.tensor(method.heads.tasks)
    same_task = tasks == tasks[0]
    assert torch.allclose(u[0, ~same_task], other[0, ~same_task])
    assert not torch.isclose(u[0, same_task], other[0, same_task]).all(1).any()
    with torch.no_grad():
        assert not torch.allclose(method.adapted(z[:1, None], text), u)


def test_a_domain_that_brings_every_class_is_no_exemplar(toy: str, domains: str) -> None:
    tokens = (f"data={domains}", f"model={toy}", "method=clap4clip", "method.draws=3")
    course = Course.of(*tokens, "scenario.kind=domain-incremental").learn(0)
    for memory, phases in ((False, ["train"]), (True, ["train", "balance"])):
        task = course.enter(1, memory=memory)
        assert [phase.name for phase in course.learner.phases(task)] == phases


@pytest.mark.parametrize("memory", [True, False])
def test_the_second_phase_needs_exemplars(memory: bool, toy: str, photos: str) -> None:
    course = Course.of(f"data={photos}", f"model={toy}", *BOTH, "method.classes=seen").learn(0)
    task = course.enter(1, memory=memory)
    phases = course.learner.phases(task)
    assert [phase.name for phase in phases] == (["train", "balance"] if memory else ["train"])
    before = [state(part) for part in (course.method.decoder, course.method.heads.means[0])]
    course.phase(task, phases[-1])
    found = [
        same(state(p), b)
        for p, b in zip((course.method.decoder, course.method.heads.means[0]), before, strict=True)
    ]
    assert found == ([True, False] if memory else [False, True])
