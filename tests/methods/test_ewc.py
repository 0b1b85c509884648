"""EWC: its Fishers against naive ones, where it pulls, and what it leaves free."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from everclip.data.loader import Batch
from everclip.data.prompts import PHOTO, fill
from everclip.methods.ewc import ANCHOR, FISHER, Ewc
from everclip.methods.shared import fisher as _fisher
from everclip.methods.shared.weights import tower_weights, value
from everclip.models import zoo
from everclip.models.clip import Clip
from everclip.models.tunings import tuning_of
from tests.methods.learning import batch_of, begin, steps, task_of
from tests.methods.plain import PROMPTS, batch, saved

FIRST, SECOND = task_of([0, 1, 2, 0]), task_of([3, 3, 4, 4], 1, 10)


@pytest.fixture
def clip(toy: str) -> Clip:
    return zoo.load(toy)


def learned(clip: Clip, *tokens: str, **options: Any) -> Ewc:
    """The method after its first task."""
    method = Ewc(Ewc.Config.model_validate(options), PROMPTS)
    begin(method, clip, FIRST)
    steps(method, clip, FIRST, batch_of(FIRST), 2, *tokens)
    method.end_task(clip, FIRST, [batch_of(FIRST)], [])
    return method


def named(clip: Clip) -> dict[str, torch.nn.Parameter]:
    return {name: p for name, p in clip.model.named_parameters() if name != "logit_bias"}


def squared(clip: Clip, on: Batch, rows: list[int], targets: list[int]) -> dict[str, Tensor]:
    """(gradient of the mean CE of some images)^2, by the definition."""
    texts = clip.encode_text([fill(PHOTO, PROMPTS.names[label]) for label in (0, 1, 2)])
    z = clip.encode_image(on.images[rows])
    logits = clip.logit_scale.exp() * z @ texts.T
    loss = torch.stack([-logits[i].log_softmax(0)[targets[row]] for i, row in enumerate(rows)]).mean()
    parameters = named(clip)
    gradients = torch.autograd.grad(loss, list(parameters.values()), materialize_grads=True)
    return {name: gradient**2 for name, gradient in zip(parameters, gradients, strict=True)}


@pytest.mark.parametrize("kind", ["batch", "empirical"])
def test_fisher_is_that_of_the_definition(clip: Clip, kind: str) -> None:
    method = learned(clip, fisher=kind, fisher_max=None)
    on = batch_of(FIRST)
    groups = [[0, 1, 2, 3]] if kind == "batch" else [[0], [1], [2], [3]]
    parts = [squared(clip, on, rows, on.labels.tolist()) for rows in groups]
    assert {name for name in method.kept if name.startswith(FISHER)} == {FISHER + n for n in named(clip)}
    for name, parameter in named(clip).items():
        expected = sum(part[name] for part in parts) / len(parts)
        assert_close(method.kept[FISHER + name], expected, rtol=1e-3, atol=1e-8)
        assert torch.equal(method.kept[ANCHOR + name], parameter)


def test_true_fisher_draws_its_labels_from_the_model(clip: Clip) -> None:
    logits = torch.tensor([[1.0, 0.0, -1.0, 0.5]])
    drawn = [int(_fisher.drawn(logits, batch([0], [sample]))) for sample in range(4000)]
    shares = torch.tensor(drawn).bincount(minlength=4) / len(drawn)
    assert_close(shares, logits[0].softmax(0), atol=0.03, rtol=0)
    method, on = learned(clip, fisher="true", fisher_max=None), batch_of(FIRST)
    with torch.no_grad():
        texts = clip.encode_text([fill(PHOTO, PROMPTS.names[label]) for label in (0, 1, 2)])
        scores = clip.logit_scale.exp() * clip.encode_image(on.images) @ texts.T
    targets = [
        int(_fisher.drawn(scores[[row]], Batch(**{n: vars(on)[n][[row]] for n in COLUMNS})))
        for row in range(4)
    ]
    parts = [squared(clip, on, [row], targets) for row in range(4)]
    name = "visual.proj"
    assert_close(method.kept[FISHER + name], sum(p[name] for p in parts) / 4, rtol=1e-3, atol=1e-8)


COLUMNS = ("images", "labels", "domains", "ids", "current")


def test_fisher_of_some_images_and_at_most(clip: Clip) -> None:
    method = learned(clip, fisher="empirical", fisher_images=1, fisher_max=None)
    on = batch_of(FIRST)
    alone = [squared(clip, on, [row], on.labels.tolist())["visual.proj"] for row in range(4)]
    found = method.kept[FISHER + "visual.proj"]
    assert sum(torch.allclose(found, one, rtol=1e-3, atol=1e-8) for one in alone) == 1
    bounded = learned(clip, fisher_max=1e-6)
    most = max(float(t.max()) for name, t in bounded.kept.items() if name.startswith(FISHER))
    assert most == pytest.approx(1e-6)


def test_penalty_is_zero_at_the_anchor_and_that_of_the_definition_elsewhere(clip: Clip) -> None:
    method = learned(clip, strength=30.0, fisher_max=None)
    assert Ewc(Ewc.Config(), PROMPTS).penalty(clip) == {}, "nothing to hold before the first task ends"
    begin(method, clip, SECOND)
    at_anchor = method.penalty(clip)["ewc"]
    gradients = torch.autograd.grad(at_anchor, list(named(clip).values()))
    assert at_anchor == 0
    assert all(torch.equal(g, torch.zeros_like(g)) for g in gradients)
    random = torch.Generator().manual_seed(0)
    expected = 0.0
    with torch.no_grad():
        for name, parameter in named(clip).items():
            move = 0.01 * torch.randn(parameter.shape, generator=random)
            parameter += move
            fisher = method.kept[FISHER + name].double()
            expected += 15 * float((fisher * (parameter - method.kept[ANCHOR + name]).double() ** 2).sum())
    assert method.penalty(clip)["ewc"].item() == pytest.approx(expected, rel=1e-5)


def test_merging_the_same_fisher_twice(clip: Clip) -> None:
    for merge, factor in (("merged", 1.0), ("online", 1.6)):
        method = learned(clip, merge=merge, decay=0.6, fisher_max=None)
        before = {name: tensor.clone() for name, tensor in method.kept.items()}
        begin(method, clip, task_of([0, 1, 2, 0], 1))
        method._names = [*tower_weights(clip)]
        method.end_task(clip, FIRST, [batch_of(FIRST)], [])
        for name, tensor in method.kept.items():
            assert_close(tensor, before[name] * (factor if name.startswith(FISHER) else 1))


def test_share_of_the_old_fisher_is_that_of_its_classes(clip: Clip) -> None:
    """Three classes, then two: F <- 3/5 F + 2/5 F_new."""
    method = learned(clip, fisher_max=None)
    old = method.kept[FISHER + "visual.proj"].clone()
    begin(method, clip, SECOND)
    method._names = [*tower_weights(clip)]
    alone = Ewc(Ewc.Config(fisher_max=None), PROMPTS)
    for task in (FIRST, SECOND):
        alone.grow(clip, task)
    alone._names = method._names
    for one in (method, alone):
        one.end_task(clip, SECOND, [batch_of(SECOND)], [])
    fresh = alone.kept[FISHER + "visual.proj"]
    assert_close(method.kept[FISHER + "visual.proj"], 0.6 * old + 0.4 * fresh)


def test_a_linear_head_is_held_in_its_old_rows_alone(clip: Clip) -> None:
    method = learned(clip, head="linear", strength=2.0, fisher_max=None)
    assert not any(name.startswith((FISHER + "transformer", FISHER + "token")) for name in method.kept)
    begin(method, clip, SECOND)
    with torch.no_grad():
        method.head.weight.add_(1)
    held = sum(
        float(t.sum()) for name, t in method.kept.items() if name.startswith(FISHER + "head") and t.ndim > 1
    )
    assert method.penalty(clip)["ewc"].item() == pytest.approx(held, rel=1e-5)
    (gradient,) = torch.autograd.grad(method.penalty(clip)["ewc"], method.head.weight)
    assert gradient.abs().sum(1).gt(0).tolist() == [True, True, True, False, False]
    steps(method, clip, SECOND, batch_of(SECOND), 1)
    method.end_task(clip, SECOND, [batch_of(SECOND)], [])
    assert {len(t) for name, t in method.kept.items() if "head" in name and "visual" not in name} == {5}


def test_it_holds_the_model_back(toy: str) -> None:
    """After some steps into the second task, in the distance that the Fisher measures."""
    moved = []
    for strength in (1e-3, 1e6):
        model = zoo.load(toy)
        method = learned(model, strength=strength)
        begin(method, model, SECOND)
        log = steps(method, model, SECOND, batch_of(SECOND), 12)
        assert log[0]["ewc"] == 0
        moved.append(method.penalty(model)["ewc"].item() / strength)
    assert moved[1] < 0.5 * moved[0]


def test_low_rank_updates_are_held_as_the_weights_they_make(clip: Clip) -> None:
    method = learned(clip, fisher_max=None, strength=1e3)
    torch.manual_seed(0)
    tuning_of("lora:2").begin(clip)
    begin(method, clip, SECOND)
    steps(method, clip, SECOND, batch_of(SECOND), 2)
    attached = method.penalty(clip)["ewc"]
    assert attached.requires_grad
    assert "visual.transformer.resblocks.0.attn.in_proj_weight" in method._names
    tuning_of("lora:2").end(clip)
    assert attached > 0
    assert_close(method.penalty(clip)["ewc"], attached)
    method.end_task(clip, SECOND, [batch_of(SECOND)], [])
    name = "visual.transformer.resblocks.0.attn.in_proj_weight"
    assert torch.equal(method.kept[ANCHOR + name], value(clip, name))


def test_a_frozen_text_tower_takes_no_room(clip: Clip) -> None:
    method = learned(clip, "train.lr_text=0")
    assert {name.removeprefix(ANCHOR).split(".")[0] for name in method.kept if name.startswith(ANCHOR)} == {
        "visual",
        "logit_scale",
    }
    assert method.state_bytes() == sum(tensor.nbytes for tensor in method.kept.values())


def test_state_comes_back_bit_for_bit(clip: Clip) -> None:
    method, again = learned(clip), Ewc(Ewc.Config(), PROMPTS)
    again.grow(clip, FIRST)
    again.load_state_dict(saved(method.state_dict()))
    assert again.kept.keys() == method.kept.keys()
    assert all(torch.equal(again.kept[name], tensor) for name, tensor in method.kept.items())
