"""MoE-Adapters: golden numbers, experts by hand in both towers, and what stays as it is."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.testing import assert_close

from everclip.errors import UserError
from everclip.methods.shared.mixture import BlockExperts, Experts, branches
from everclip.models import zoo
from tests.methods.stages import Course, same, state


def golden() -> Experts:
    experts = Experts(2, 1, 3, 0.0)
    values = [((1, 1), 0.0, (1, 0), (0, 0)), ((1, -1), 0.5, (0, 2), (0, 1)), ((0, 0), 0.0, (0, 0), (0, 0))]
    with torch.no_grad():
        parts: Any = zip(experts.down, experts.up, values, strict=True)
        for down, up, (weight, bias, out, shift) in parts:
            down.weight.copy_(torch.tensor([weight]))
            down.bias.fill_(bias)
            up.weight.copy_(torch.tensor(out)[:, None])
            up.bias.copy_(torch.tensor(shift))
        experts.router.copy_(torch.tensor([[1, 0, 0.5], [0, 1, 0.25]]))
    return experts


def test_golden() -> None:
    tokens = torch.tensor([[[1.0, 2.0], [3.0, 1.0]]])
    assert_close(golden().gates(tokens[:, 0])[0], torch.tensor([0.26894142, 0.73105858, 0]))
    expected = torch.tensor([[0.08068243, 0.07310586], [0.10757657, 0.43863515]])
    assert_close(golden()(tokens)[0], expected)


def test_noise_of_the_gate_is_that_of_the_generator() -> None:
    experts, first = golden(), torch.tensor([[1.0, 2.0]]).repeat(400, 1)
    with torch.no_grad():
        experts.noise.copy_(torch.tensor([[0.5, 0, -1], [0.25, 1, 0]]))
    draws = [experts.gates(first, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    assert ((draws[0] > 0).sum(1) == 2).all()
    normal = torch.randn(400, 3, generator=torch.Generator().manual_seed(0))
    logits = torch.tensor([1, 2, 1]) + normal * (torch.tensor([1.0, 2.0, -1.0]).exp().log1p() + 0.01)
    out = logits.scatter(1, logits.argmin(1, keepdim=True), -torch.inf)
    assert_close(draws[0], out.softmax(1))


@torch.no_grad()
def test_experts_stand_beside_the_mlp_of_each_block(toy: str) -> None:
    clip = zoo.load(toy)
    adapters = BlockExperts(clip.model, 4, 2, 0.1)
    assert len(adapters.layers) == 3, "two blocks of the image tower, one of the text tower"
    experts: Any = adapters.layers[0]
    block = clip.model.visual.transformer.resblocks[0]
    x = torch.randn(2, 5, 32)
    before, heard = block(x), []
    hook = block.ln_2.register_forward_hook(lambda *found: heard.append(found[1][0]))
    with adapters.beside(clip.model):
        assert torch.equal(block(x), before), "up starts at zero"
        for part in experts.up.parameters():
            part.normal_()
        after = block(x)
    hook.remove()
    change = sum(
        0.5 * 0.1 * up(down(heard[-1]).relu()) for down, up in zip(experts.down, experts.up, strict=True)
    )
    assert_close(after, before + change, rtol=1e-4, atol=1e-5)
    assert torch.equal(block(x), before), "closed"


def test_both_towers_learn_and_stay(toy: str, photos: str) -> None:
    words = (f"data={photos}", f"model={toy}", "scenario.tasks=2", "method=moe_adapters")
    course = Course.of(*words)
    before = state(course.clip.model)
    task = course.enter(0)
    (phase,) = course.learner.phases(task)
    update, on = course.update(phase), course.sample(task)
    features = course.method.encode(course.clip, on, phase)
    loss = course.method.loss(features, on, phase)["cross_entropy"]
    grades = torch.autograd.grad(loss, [layer.up[0].weight for layer in course.method.experts.layers])
    assert all(grade.abs().sum() > 0 for grade in grades)
    first = course.step(update, on, phase)["cross_entropy"]
    losses = [course.step(update, on, phase)["cross_entropy"] for _ in range(5)]
    assert losses[-1] < first
    course.leave(task)
    assert same(state(course.clip.model), before)
    assert len(branches(course.clip.model)) == 6
    plain = course.clip.encode_image(course.images())
    assert not torch.allclose(course.method.features(course.clip, course.images()), plain)


def test_a_tower_without_blocks_is_refused(convolutional: str, photos: str) -> None:
    course = Course.of(f"data={photos}", f"model={convolutional}", "method=moe_adapters")
    with pytest.raises(UserError, match=r"^method=moe_adapters puts adapters .* use model=ViT-B-16"):
        course.enter(0)
