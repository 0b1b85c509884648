"""SPU: golden numbers, which entries of which weights move, and what a task leaves behind."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from everclip.data.loader import Phase
from everclip.errors import UserError
from everclip.methods.shared.weights import largest
from everclip.methods.spu import Spu
from everclip.models.tunings import tuning_of
from tests.methods.closed import near
from tests.methods.plain import PROMPTS, batch
from tests.methods.stages import Course, state
from tests.methods.stages import batch as images

Z = torch.tensor([[1, 0], [0.6, 0.8]], dtype=torch.float64)
TEXT = torch.tensor([[0.8, 0.6], [0, 1]], dtype=torch.float64)
GRADIENTS = [[0.3, -0.1, 0.05, 0.2], [-0.5, 0.4, 0.1, 0.1], [0.1, 0.1, -0.6, 0]]


def spu(**options: object) -> Spu:
    return Spu(Spu.Config.model_validate(options), PROMPTS)


@pytest.fixture
def course(toy: str, photos: str) -> Course:
    return Course.of(f"data={photos}", f"model={toy}", "scenario.tasks=2", "method=spu")


def test_golden_losses() -> None:
    features = {"image": Z, "text": TEXT, "scale": torch.tensor(10.0, dtype=torch.float64)}
    near(spu().loss(features, batch([0, 1]), Phase("score"))["norm"], 110.08)
    near(spu().loss(features, batch([0, 1]), Phase())["clip"], 0.89211807)
    assert spu().loss(features, batch([1, 1]), Phase())["clip"] == 0
    near(spu().loss(features, batch([1, 1]), Phase("score"))["norm"], 110.08)
    assert spu(score="paper").loss(features, batch([1, 1]), Phase("score"))["clip"] == 0
    logits = torch.tensor([[3.0, 3.0], [2.0, 2.0]])
    target = torch.arange(2)
    sides = [nn.functional.cross_entropy(rows, target) for rows in (logits, logits.T)]
    assert_close(torch.stack(sides), torch.tensor([0.69314718, 0.81326169]))


@pytest.mark.parametrize(
    ("kind", "expected", "best"),
    [("code", [0, 0.6, -0.25, 0.8], [1, 3]), ("paper", [-0.1, 0.4, -0.45, 0.3], [1, 2])],
)
def test_golden_scores(kind: str, expected: list[float], best: list[int]) -> None:
    method = spu(score=kind)
    for gradient in GRADIENTS:
        method._read("w", torch.tensor(gradient, dtype=torch.float64))
    method._read("w", torch.tensor([0, float("nan"), 0, 1], dtype=torch.float64))  # a step that is skipped
    near(method.kept["score w"], expected)
    assert largest(method.kept["score w"].abs(), 0.5).nonzero()[:, 0].tolist() == best


@pytest.mark.parametrize(("decay", "expected"), [("all", [0.489, -0.499]), ("selected", [0.489, -0.5])])
def test_golden_step(
    decay: str, expected: list[float], course: Course, monkeypatch: pytest.MonkeyPatch
) -> None:
    """AdamW on a masked gradient: the code's decay shrinks what the mask leaves out."""
    weight = nn.Parameter(torch.tensor([0.5, -0.5], dtype=torch.float64))
    optimizer = torch.optim.AdamW([weight], lr=0.01, weight_decay=0.2)
    method = spu(decay=decay)
    monkeypatch.setattr(method, "candidates", lambda clip: {"w": weight})
    method._start, method.kept["mask w"] = {"w": weight.detach().clone()}, torch.tensor([True, False])
    weight.register_hook(lambda gradient: method._mask("w", gradient))
    (0.2 * weight).sum().backward()
    optimizer.step()
    method.after_step(course.clip)
    near(weight.detach(), expected)


def test_a_task_changes_few_entries(course: Course) -> None:
    task = course.enter(0)
    method, before = course.method, state(course.clip.model)
    score, train = course.learner.phases(task)
    course.step(course.update(score), course.sample(task), score)
    method.after_step(course.clip)
    assert all(torch.equal(value, before[name]) for name, value in state(course.clip.model).items())
    scored = {name.removeprefix("score ") for name in method.kept if name.startswith("score ")}
    assert scored == {
        f"{tower}transformer.resblocks.{block}.mlp.c_fc.weight"
        for tower, blocks in (("", 1), ("visual.", 2))
        for block in range(blocks)
    }
    course.phase(task, train, 1)
    method.after_step(course.clip)
    moved = {n: (v != before[n]).sum().item() for n, v in state(course.clip.model).items()}
    for name, count in moved.items():
        if name in scored:
            assert 0 < count <= int(0.1 * before[name].numel())
            assert (state(course.clip.model)[name] == before[name])[~method.kept[f"mask {name}"]].all()
        elif name.endswith("c_fc.bias") or name == "visual.proj":
            assert count > 0
        else:
            assert count == 0, name
    course.leave(task)
    assert method.state_bytes() == 0
    assert not any(p._backward_hooks for p in course.clip.model.parameters())


@pytest.mark.parametrize(("kind", "trains"), [("code", True), ("paper", False)])
def test_a_task_of_one_class_changes_no_more(kind: str, trains: bool, toy: str, photos: str) -> None:
    """Its images alone are scored, all of one class; it trains on exemplars of another one too."""
    options = ("scenario.tasks=6", "method=spu", f"method.score={kind}")
    course = Course.of(f"data={photos}", f"model={toy}", *options).learn(0)
    task = course.enter(1)
    method, before = course.method, state(course.clip.model)
    score, train = course.learner.phases(task)
    course.step(course.update(score), images([*task.classes] * 4), score)
    method.after_step(course.clip)
    course.phase(task, train, 1)
    method.after_step(course.clip)
    moved = {name: (value != before[name]).sum().item() for name, value in state(course.clip.model).items()}
    for name, count in moved.items():
        if name.endswith("c_fc.weight"):
            assert (0 < count <= int(0.1 * before[name].numel())) if trains else count == 0
        elif name.endswith("c_fc.bias") or name == "visual.proj":
            assert count > 0, "as the batch has two classes"


def test_the_gradients_of_a_batch_by_hand(course: Course) -> None:
    """Two batches: the code's first one counts twice."""
    task = course.enter(0)
    method, (score, _) = course.method, course.learner.phases(task)
    update, on, name = (
        course.update(score),
        course.sample(task),
        "visual.transformer.resblocks.0.mlp.c_fc.weight",
    )
    for _ in range(2):
        course.step(update, on, score)
        method.after_step(course.clip)
    features = method.encode(course.clip, on, score)
    logits = features["scale"] * features["image"] @ features["text"].T
    (gradient,) = torch.autograd.grad(
        logits.norm(dim=1).square().mean(), [method.candidates(course.clip)[name]]
    )
    # the hook has read this gradient too: 1 + 2 + 3 of them
    assert_close(method.kept[f"score {name}"], 6 * gradient, rtol=1e-3, atol=1e-5)


def test_low_rank_updates_are_refused(toy: str, photos: str) -> None:
    course = Course.of(f"data={photos}", f"model={toy}", "method=spu", "tune=lora:2")
    tuning_of("lora:2", {}).begin(course.clip)
    with pytest.raises(UserError, match=r"^method=spu chooses .* tune=lora"):
        course.enter(0)


def test_a_model_without_blocks_is_refused(photos: str) -> None:
    course = Course.of(f"data={photos}", "model=lite", "method=spu")
    with pytest.raises(UserError, match=r"^method=spu chooses .* no tower of lite .* use model=ViT-B-16"):
        course.enter(0)
