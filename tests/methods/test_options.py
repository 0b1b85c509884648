"""Options of GCL, GDRO and fine-tuning, each against what it says it does."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from everclip.data.images import ImageSet
from everclip.data.loader import Batch, Phase
from everclip.data.scenario import Task
from everclip.losses import contrastive
from everclip.methods.finetune import Finetune
from everclip.methods.gcl import Gcl
from everclip.methods.gdro import Gdro
from everclip.models.clip import Clip
from tests.methods.plain import PROMPTS, STORE, batch, cosines, step


def task_of(labels: list[int], domains: list[int] | None = None, first: int = 0) -> Task:
    """A task whose images have these labels and domains, ids from ``first``."""
    ids = np.arange(first, first + len(labels))
    images = ImageSet(STORE, ids, np.array(labels), np.array(domains or [0] * len(labels)), ids)
    return Task(0, "task", tuple(dict.fromkeys(labels)), images, images)


def gdro(clip: Clip, task: Task, train: ImageSet | None = None, **options: Any) -> Gdro:
    given = {"tau": 0.1, "gamma": 1.0, "gamma_class": 1.0, "margin": 1.0} | options
    method = Gdro(Gdro.Config.model_validate(given), PROMPTS)
    method.begin_task(clip, task, task.train if train is None else train)
    return method


def at_epoch(on: Batch, epoch: int) -> Batch:
    return Batch(on.images, on.labels, on.domains, on.ids, on.current, key=(0, 0, epoch, 0))


def test_gamma_falls_for_new_samples_and_spares_carried_ones(clip: Clip) -> None:
    method = Gcl(Gcl.Config(tau=0.1, gamma=0.2, gamma_decay=4), PROMPTS)
    method.estimators.set([0], torch.full((1, 2), 5.0))
    method.begin_task(clip, task_of([0, 1, 2]), task_of([0, 1, 2]).train)
    on, s = batch([0, 1, 2]), cosines(3, 0)
    step(method, s, at_epoch(on, 0))
    among = contrastive.negatives(on.labels, "instance")
    fresh = contrastive.log_means(contrastive.differences(s), among, 0.1).float()
    held = method.estimators.get([0, 1, 2])[0]
    assert_close(held[0].exp(), 0.8 * math.exp(5) + 0.2 * fresh[0].exp(), rtol=1e-5, atol=0)
    assert_close(held[1:], fresh[1:])
    method.estimators.set([1], torch.full((1, 2), 5.0))
    step(method, s, at_epoch(on, 2))
    half = 0.2 + 0.5 * 0.8 * (1 + math.cos(math.pi / 2))
    held = method.estimators.get([1])[0]
    assert_close(held[0].exp(), (1 - half) * math.exp(5) + half * fresh[1].exp(), rtol=1e-5, atol=0)


def test_nothing_is_carried_over_where_told_so(clip: Clip) -> None:
    method = gdro(clip, task_of([0, 1]), carry_over=False)
    step(method, cosines(2, 0), batch([0, 1]))
    assert len(method.estimators) == len(method.groups.losses) == 2
    method.begin_task(clip, task_of([0, 1]), task_of([0, 1]).train)
    assert len(method.estimators) == len(method.groups.losses) == 0


@pytest.mark.parametrize("kind", ["learnable", "per_sample"])
def test_temperatures_move_down_their_gradient_within_bounds(clip: Clip, kind: str) -> None:
    options = {"tau": 0.1, "temperature": kind, "rho": 0.0, "temperature_lr": 1e-3, "gamma": 1.0}
    method = Gcl(Gcl.Config.model_validate(options), PROMPTS)
    on, s = batch([0, 1, 2]), cosines(3, 1)
    losses, among = contrastive.differences(s), contrastive.negatives(on.labels, "instance")
    log_u = contrastive.log_means(losses, among, 0.1)
    gradient = contrastive.temperature_gradient(losses, log_u, among, 0.1, 0.0)
    value, _ = step(method, s, on)
    assert_close(
        value, contrastive.objective(log_u, 0.1).mean(), msg="this batch still used the old temperature"
    )
    if kind == "learnable":
        assert float(method.get_buffer("tau")) == pytest.approx(0.1 - 1e-3 * float(gradient.mean()), rel=1e-5)
    else:
        assert_close(method.temperatures.get(on.ids)[0][:, 0], (0.1 - 1e-3 * gradient).float())
    far = Gcl(Gcl.Config.model_validate(options | {"rho": 1e6}), PROMPTS)
    step(far, s, on)
    lowest = far.get_buffer("tau") if kind == "learnable" else far.temperatures.get(on.ids)[0]
    assert_close(lowest, torch.full_like(lowest, 0.005))


def test_groups_by_origin_tell_new_from_memory(clip: Clip) -> None:
    new, old = task_of([0, 0, 1], first=0), task_of([0, 1, 1], first=10)
    method = gdro(clip, new, new.train + old.train, groups="class_origin")
    on = batch([0, 1, 0, 1], ids=[0, 2, 10, 11])
    on = Batch(on.images, on.labels, on.domains, on.ids, torch.tensor([True, True, False, False]))
    step(method, cosines(4, 2), on)
    assert method.groups.losses.ids().tolist() == [0, 1, 2, 3]
    assert sum(method.class_weights().values()) == pytest.approx(1)
    assert set(method.class_weights()) == {0, 1}


def test_groups_by_domain(clip: Clip) -> None:
    task = task_of([0, 1, 0, 1], domains=[0, 0, 2, 2])
    method = gdro(clip, task, groups="class_domain")
    on = batch([0, 1, 0, 1])
    on = Batch(on.images, on.labels, torch.tensor([0, 0, 2, 2]), on.ids, on.current)
    step(method, cosines(4, 2), on)
    assert method.groups.losses.ids().tolist() == [0, 1, 12, 13]


def test_without_dro_every_image_counts_once(clip: Clip) -> None:
    task = task_of([0, 0, 0, 1])
    plain, weighted = gdro(clip, task, dro="none"), gdro(clip, task)
    s, on = cosines(4, 5), batch([0, 0, 0, 1])
    value, gradient = step(plain, s, on)
    like = Gcl(
        Gcl.Config(tau=0.1, gamma=1.0, negatives="other_class", surrogate="squared_hinge", margin=1.0),
        PROMPTS,
    )
    same_value, same_gradient = step(like, s, on)
    assert_close(value, same_value)
    assert_close(gradient, same_gradient)
    assert not torch.equal(gradient, step(weighted, s, on)[1])
    assert plain.class_weights() == {}


def test_sagawa_follows_the_batch(clip: Clip) -> None:
    method = gdro(clip, task_of([0, 0, 1, 2]), dro="sagawa", step_size=0.5)
    s, on = cosines(3, 6), batch([0, 0, 1])
    value, gradient = step(method, s, on)
    among = contrastive.negatives(on.labels, "other_class")
    leaf = s.clone().requires_grad_()
    losses = [contrastive.squared_hinge(d, 1.0) for d in contrastive.differences(leaf)]
    per_image = 0.1 * torch.stack([contrastive.log_mean_exp(loss / 0.1, among) for loss in losses]).sum(0)
    means = torch.stack([per_image[:2].mean(), per_image[2], torch.zeros((), dtype=s.dtype)])
    q = (0.5 * means.detach()).exp() / (0.5 * means.detach()).exp().sum()
    assert_close(value, (q * means).sum().detach(), rtol=1e-5, atol=1e-7)
    (expected,) = torch.autograd.grad((q * means).sum(), leaf)
    assert_close(gradient, expected, rtol=1e-5, atol=1e-7)
    assert_close(method.groups.adversary.get([0, 1, 2])[0][:, 0], q.float())


def test_class_balanced_weights_go_with_class_balanced_batches(clip: Clip) -> None:
    method = gdro(clip, task_of([0] * 8 + [1] * 2), sampling="class_balanced")
    assert method.phases(task_of([0]))[0] == Phase(sampler="class_balanced")
    on, s = batch([0, 0, 1, 1], ids=[0, 1, 8, 9]), cosines(4, 7)
    _, gradient = step(method, s, on)
    weights = method.class_weights()
    leaf = s.clone().requires_grad_()
    losses = [contrastive.squared_hinge(d, 1.0) for d in contrastive.differences(leaf)]
    among = contrastive.negatives(on.labels, "other_class")
    per_image = 0.1 * torch.stack([contrastive.log_mean_exp(loss / 0.1, among) for loss in losses]).sum(0)
    (expected,) = torch.autograd.grad(
        weights[0] * per_image[:2].mean() + weights[1] * per_image[2:].mean(), leaf
    )
    assert_close(gradient, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", ["gcl", "gdro"])
def test_class_balanced_batches_weigh_classes_alike_where_no_group_is_weighed(name: str, clip: Clip) -> None:
    """Nothing takes back how images were drawn; the option says so."""
    task, options = task_of([0] * 8 + [1] * 2), {"tau": 0.1, "gamma": 1.0, "sampling": "class_balanced"}
    method = (
        gdro(clip, task, dro="none", **options) if name == "gdro" else Gcl(Gcl.Config(**options), PROMPTS)
    )
    on, s = batch([0, 0, 1, 1], ids=[0, 1, 8, 9]), cosines(4, 7)
    _, gradient = step(method, s, on)
    leaf = s.clone().requires_grad_()
    losses, among = contrastive.differences(leaf), contrastive.negatives(on.labels, "instance")
    if name == "gdro":
        losses = [contrastive.squared_hinge(d, 1.0) for d in losses]
        among = contrastive.negatives(on.labels, "other_class")
    per_image = 0.1 * torch.stack([contrastive.log_mean_exp(loss / 0.1, among) for loss in losses]).sum(0)
    (expected,) = torch.autograd.grad((per_image[:2].mean() + per_image[2:].mean()) / 2, leaf)
    assert_close(gradient, expected, rtol=1e-5, atol=1e-7)
    assert "weighs classes alike" in str(type(method).Config.model_fields["sampling"].description)


def test_weights_are_clipped(clip: Clip) -> None:
    task = task_of([0] * 9 + [1])
    gradients = []
    for most in (None, 1e-9):
        method = gdro(clip, task, weight_clip=most)
        gradients.append(step(method, cosines(3, 8), batch([0, 0, 1], ids=[0, 1, 9]))[1].abs().sum())
    assert gradients[1] < 1e-6 < gradients[0]


def test_a_linear_head_keeps_its_rows_and_starts_as_told(clip: Clip) -> None:
    method = Finetune(Finetune.Config(head="linear", head_init="zero_shot"), PROMPTS)
    method.grow(clip, task_of([2, 0]))
    with torch.no_grad():
        expected = clip.class_embeddings(["c", "a"], PROMPTS.templates)
    assert_close(method.head.weight.data, expected)
    before = method.head.weight.data.clone()
    method.grow(clip, task_of([1]))
    assert method.head.weight.shape[0] == 3
    assert torch.equal(method.head.weight.data[:2], before)
    images = clip.normalise(torch.zeros(2, 3, 32, 32, dtype=torch.uint8))
    with torch.no_grad():
        scores = method.classifier(clip, (1, 2, 5))(images)
        text = clip.encode_image(images) @ clip.class_embeddings(["b", "c"], PROMPTS.templates).T
    assert_close(scores[:, :2], clip.logit_scale.exp().detach() * text)
    assert (scores[:, 2] == -math.inf).all(), "a class without a row is never chosen"


def test_the_label_set_can_be_that_of_the_images(clip: Clip) -> None:
    features = {"image": torch.eye(3), "classes": torch.eye(3)[:2], "scale": torch.tensor(1.0)}
    for classes, expected in (("seen", 3), ("present", 2)):
        method = Finetune(Finetune.Config.model_validate({"classes": classes}), PROMPTS)
        method.grow(clip, task_of([3]))
        method.grow(clip, task_of([0, 1]))
        method.begin_task(clip, task_of([0, 1]), task_of([0, 1]).train)
        assert len(method._labels) == expected
    loss = method.loss(features, batch([0, 1, 0]), Phase())["cross_entropy"]
    logits = torch.tensor([[1.0, 0], [0, 1], [0, 0]])
    assert_close(loss, torch.nn.functional.cross_entropy(logits, torch.tensor([0, 1, 0])))
