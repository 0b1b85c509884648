"""Closed-form methods: golden numbers, equality with all images at once in any order, and what they keep."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from everclip.data.loader import Phase
from everclip.data.prompts import PHOTO, Prompts
from everclip.data.scenario import Task
from everclip.errors import UserError
from everclip.methods.base.registry import method_class
from everclip.methods.shared.discriminant import strength
from everclip.methods.shared.sums import Sums
from everclip.models import zoo
from everclip.models.clip import Clip
from tests.methods.closed import (
    COURSES,
    EVERYTHING,
    LABELS,
    NAMES,
    QUERY,
    T,
    brute_force,
    by_class,
    give,
    learn,
    make,
    near,
    of_rows,
    part,
    pictures,
    scores,
)
from tests.methods.plain import PROMPTS, images, saved
from tests.running import run


def test_ncm_golden(clip: Clip) -> None:
    method = of_rows(clip, "ncm")
    give(method, range(6))
    weight, bias = method.solve(clip, [2, 0, 1])
    cosines = QUERY / QUERY.norm() @ weight + bias
    near(cosines, [0.9998127477, 0.7211047103, 0.8008068117])


def test_unit_features_before_the_mean(clip: Clip) -> None:
    plain, unit = (of_rows(clip, "ncm", normalize=n, feature="pooled") for n in (False, True))
    rows = torch.tensor([[3.0, 0.0], [0.0, 1.0]])
    for method in (plain, unit):
        method.add(method.rows(rows), torch.tensor([0, 0]))
    near(plain.solve(clip, [0])[0][:, 0] * 10**0.5, [3, 1])
    near(unit.solve(clip, [0])[0][:, 0] * 2**0.5, [1, 1])


def test_slda_golden(clip: Clip) -> None:
    for order in ([0, 1, 2, 3, 4, 5], [5, 3, 1, 4, 2, 0]):
        method = of_rows(clip, "slda", eps=0.1, target="one")
        give(method, order)
        near(method.covariance(), [[0.005, -0.005], [-0.005, 0.005]])
        weight, bias = method.solve(clip, [0, 1, 2])
        near(QUERY @ weight + bias, [1.16513761, 1.55504587, 2.82293578])
    priors = of_rows(clip, "slda", eps=0.1, target="one", log_priors=True)
    give(priors, range(6))
    near(priors.solve(clip, [0, 1, 2])[1], (bias - np.log(3)).tolist())


@pytest.mark.parametrize("target", ["mean", "one"])
def test_slda_with_the_strength_of_cross_validation(clip: Clip, target: str) -> None:
    """Sigma + s m I, but for a factor, which moves no score past another."""
    rows = torch.randn(60, 5, generator=torch.Generator().manual_seed(0)).double()
    labels = torch.arange(60) % 6
    method = make("slda", eps="gcv", target=target)
    method.build(clip, 5)
    method.add(rows + labels[:, None] / 3, labels)
    weight, bias = method.solve(clip, [*range(6)])
    sigma, share = method.covariance(), strength(method.gram, method.sums, method.counts)
    regular = sigma + share * sigma.trace() / 5 * torch.eye(5)
    means = method.sums / 10
    expected = torch.linalg.solve(regular, means.T)
    ratio = (weight / expected)[0, 0]
    assert_close(weight, ratio * expected)
    assert_close(bias, -0.5 * ratio * (means.T * expected).sum(0))


def test_what_slda_cannot_choose_from() -> None:
    with pytest.raises(UserError, match=r"^method\.eps=gcv .* method\.streaming=true"):
        make("slda", eps="gcv", streaming=True)


def test_streaming_slda_golden(clip: Clip) -> None:
    """Its covariance depends on the order of images, not on how they are cut into batches and tasks."""
    in_order = [[0.07130556, 0.05936111], [0.05936111, 0.18241667]]
    for blocks, expected in (
        ([[0, 1, 2, 3, 4, 5]], in_order),
        ([[0], [1, 2, 3], [4, 5]], in_order),
        ([[5, 3], [1, 4, 2, 0]], [[0.08008333, 0.01713889], [0.01713889, 0.08008333]]),
    ):
        method = of_rows(clip, "slda", streaming=True)
        for block in blocks:
            give(method, block)
        near(method.covariance(), expected)


def test_streaming_slda_adds_up_in_fp64(clip: Clip) -> None:
    method, found = of_rows(clip, "slda", streaming=True), torch.zeros(2, 2, dtype=torch.float64)
    give(method, range(6))
    for n, (rows, mean) in enumerate(zip(T, [0 * T[0], T[0], 0 * T[0], T[2], 0 * T[0], T[4]], strict=True)):
        found += n / (n + 1) * torch.outer(rows - mean, rows - mean)
    assert_close(method.gram, found, atol=0, rtol=1e-14)


def test_lda_of_one_image_a_class_is_the_nearest_mean(clip: Clip) -> None:
    method = of_rows(clip, "slda")
    give(method, [0, 2, 4])
    weight, bias = method.solve(clip, [0, 1, 2])
    distances = (T - QUERY).square().sum(1)[[0, 2, 4]]
    assert_close(QUERY @ weight + bias, (QUERY.square().sum() - distances) / 2)


@torch.no_grad()
def at_once(name: str, clip: Clip, method: Any) -> Tensor:
    """The classifier of all pictures together, from its definition."""
    on = pictures()
    x = method.lift(method.extract(clip, clip.normalise(on.images))).double().numpy()
    means = np.stack([x[on.labels == label].mean(0) for label in range(6)])
    if name == "ncm":
        unit = x / np.linalg.norm(x, axis=1, keepdims=True)
        return torch.from_numpy(unit @ (means / np.linalg.norm(means, axis=1, keepdims=True)).T)
    if name == "slda":
        centred = x - means[on.labels]
        sigma = centred.T @ centred / len(x)
        mean = np.trace(sigma) / len(sigma)
        sigma = 0.9 * sigma + 0.1 * mean * np.eye(len(sigma))
        weight = np.linalg.solve(sigma, means.T)
        return torch.from_numpy(x @ weight - 0.5 * (means.T * weight).sum(0))
    lam = brute_force(x, np.eye(6)[on.labels]) if name == "ridge" else 0.3 * np.square(x).mean() * len(x)
    rows = np.concatenate([x, np.sqrt(lam) * np.eye(x.shape[1])])
    targets = np.concatenate([np.eye(6)[on.labels], np.zeros((x.shape[1], 6))])
    return torch.from_numpy(x @ np.linalg.lstsq(rows, targets, rcond=None)[0])


@pytest.mark.parametrize("course", COURSES)
@pytest.mark.parametrize("feature", ["projected", "pooled"])
@pytest.mark.parametrize("name", [*NAMES, "ridge expand=24"])
def test_any_order_of_tasks_gives_the_solution_of_all_images(
    name: str, feature: str, course: str, clip: Clip
) -> None:
    name, *expanded = name.split()
    options: dict[str, Any] = {"eps": 0.1} if name == "slda" else {"expand": 24} if expanded else {}
    tasks, size = COURSES[course]
    method = learn(make(name, feature=feature, **options), clip, tasks, size)
    result, expected = scores(method, clip), at_once(name, clip, method)
    assert_close(result, expected, atol=1e-6 * expected.abs().max().item(), rtol=0)
    assert method.counts.tolist() == [8] * 6


@pytest.mark.parametrize("name", [*NAMES, "multilayer_lda"])
def test_labels_in_the_order_asked_and_never_trained_ones_last(name: str, clip: Clip) -> None:
    method = learn(make(name), clip, by_class([4, 0], [2]))
    known, mixed = scores(method, clip, [0, 2, 4]), scores(method, clip, [4, 5, 0, 1, 2])
    assert_close(mixed[:, [2, 4, 0]], known)
    assert (mixed[:, [1, 3]] == -torch.inf).all()
    assert known.isfinite().all()


@pytest.mark.parametrize("name", [*NAMES, "multilayer_lda"])
def test_restored_state_gives_the_same_classifier_and_next_task(name: str, clip: Clip) -> None:
    tasks = by_class([0, 1], [2, 3], [4, 5])
    options = {"lam_choice": "task"} if name == "ranpac" else {}
    method = learn(make(name, **options), clip, tasks[:2])
    again = learn(make(name, **options), clip, by_class([5]))  # grown, and filled with something else
    again.load_state_dict(saved(method.state_dict()))
    assert torch.equal(scores(method, clip), scores(again, clip))
    on = part(pictures(), tasks[2])
    for one in (method, again):
        one.end_task(clip, Task(2, "task 3", (4, 5), images([4]), images([4])), [on], [])
    assert torch.equal(scores(method, clip), scores(again, clip))


@pytest.mark.parametrize("name", NAMES)
def test_state_has_the_size_of_the_features_whatever_the_tasks(name: str, clip: Clip) -> None:
    one, many = (learn(make(name), clip, tasks) for tasks in ([EVERYTHING], EVERYTHING.split(1)))
    assert one.state_bytes() == many.state_bytes()
    width, d = {"ranpac": 24}.get(name, 16), 16
    square = 0 if name == "ncm" else 8 * width**2
    layer = 4 * d * width if name == "ranpac" else 0
    assert 0 <= one.state_bytes() - (square + 8 * 6 * width + 8 * 6 + layer) <= 8
    stored = {key: value.shape for key, value in one.state_dict().items() if isinstance(value, Tensor)}
    assert stored == {key: value.shape for key, value in many.state_dict().items() if key in stored}
    assert "projection" not in stored, "it is drawn again"
    assert not one.capabilities.uses_memory


# Runs -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_run_in_tasks_equals_joint_training(name: str, tmp_path: Path, toy: str, photos: str) -> None:
    options = ["method.width=64", "method.lam_choice=fixed"] if name == "ranpac" else []
    tokens = (f"data={photos}", f"model={toy}")
    tasks = run(tmp_path / "tasks", *tokens, f"method={name}", *options)
    joined = [option.replace("method.", "method.options.") for option in options]
    joint = run(tmp_path / "joint", *tokens, "method=joint", f"method.loss={name}", *joined)
    assert tasks["last"] == joint["last"]
    assert tasks["optimizer_steps"] == joint["optimizer_steps"] == 0
    assert tasks["memory_bytes"] == 0
    predictions = [
        np.load(tmp_path / folder / "predictions.npz")["top"][:, 0] for folder in ("tasks", "joint")
    ]
    assert sorted(predictions[0].tolist()) == sorted(predictions[1].tolist())


@pytest.mark.parametrize("loss", ["gdro", "finetune"])
def test_first_session_adaptation_trains_in_the_first_task_alone(loss: str, clip: Clip, photos: str) -> None:
    options: dict[str, int | float | bool | str] = {"head": "linear"} if loss == "finetune" else {"tau": 0.1}
    method = make("ridge", adapt=loss, adapt_options=options)
    own = method_class(loss)
    on = part(pictures(), by_class([0, 1, 2])[0])
    train = images(on.labels.tolist())
    first = Task(0, "task 1", (0, 1, 2), train, train)
    method.grow(clip, first)
    method.begin_task(clip, first, train)
    expected = own.create(own.Config.model_validate(options), PROMPTS).phases(first)
    learner = method.learner(first)
    assert learner.phases(first) == expected
    phase: Phase = learner.phases(first)[0]
    learner.begin_phase(clip, phase)
    terms = learner.loss(learner.encode(clip, on, phase), on, phase)
    assert all(term.requires_grad for term in terms.values())
    assert {id(p) for p in learner.trainable(clip, phase)} >= {id(p) for _, p in clip.image_parameters()}
    assert not list(method.parameters()), "its head is not a part of the state"
    method.end_task(clip, first, [on], [])
    second = replace(first, index=1)
    assert method.learner(second) is method
    assert method.phases(second) == []
    with pytest.raises(NotImplementedError, match=r"Ridge has no phase to encode for"):
        method.encode(clip, on, phase)


def test_adapted_features_are_frozen_after_the_first_task(tmp_path: Path, toy: str, photos: str) -> None:
    tokens = (f"data={photos}", f"model={toy}", "method=ncm", "method.adapt=clip", "train.lr=1e-3")
    results = run(tmp_path / "run", *tokens, "checkpoint.keep=3", "tune=lora:2")
    steps = {"optimizer_steps": 1, "memory_bytes": 0}
    assert {key: results[key] for key in steps} == steps
    stages = [zoo.load(str(folder)) for folder in sorted((tmp_path / "run" / "checkpoints").iterdir())]
    assert len(stages) == 3
    pixels = stages[0].normalise(pictures().images)
    with torch.no_grad():
        features = [stage.encode_image(pixels) for stage in [*stages, zoo.load(toy)]]
    assert torch.equal(features[0], features[1])
    assert torch.equal(features[0], features[2])
    assert not torch.equal(features[0], features[3])


def test_options_of_the_lent_loss_are_checked() -> None:
    with pytest.raises(UserError, match=r'method "gcl" has no option "taw"'):
        make("ncm", adapt="gcl", adapt_options={"taw": 1.0})


def test_a_thousand_classes_keep_as_much(clip: Clip) -> None:
    prompts = Prompts(tuple(f"class {n}" for n in range(1000)), (PHOTO,))
    cls = method_class("ridge")
    method: Any = cls.create(cls.Config(), prompts)
    method.build(clip, 16)
    method.add(torch.eye(16).double(), torch.arange(16))
    assert method.state_bytes() == 8 * (16**2 + 16 * 1000 + 1000 + 1)


def test_a_method_and_an_update_have_the_same_sums(clip: Clip) -> None:
    """Sums of a method, added to batch by batch, are those of an update over the same images; both solve alike."""
    rows, labels, ids = T.float(), torch.tensor(LABELS), torch.arange(6)
    given = Sums.empty(6, 2).plus(rows, labels, ids)
    method = of_rows(clip, "ridge")
    for some in (slice(0, 4), slice(4, 6)):
        method.add(method.rows(rows[some]), labels[some])
    assert_close(method.summed.gram, given.gram)
    assert_close(method.summed.sums, given.sums)
    assert method.counts.equal(given.counts)
    own, _ = method.solve(clip, [0, 1, 2])
    method.take(given)
    assert_close(method.solve(clip, [0, 1, 2])[0], own)
    method.add(method.rows(rows), labels)  # to a copy: the update's own stay as they are
    assert (int(given.counts.sum()), int(method.counts.sum())) == (6, 12)
