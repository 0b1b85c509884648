"""RAIL: golden numbers, the authors' recursion, and the gate of the fusion."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from everclip.errors import UserError
from everclip.methods.rail import Fused
from everclip.models.clip import Clip
from tests.methods.closed import LABELS, QUERY, T, by_class, learn, make, near, pictures, scores

P = torch.tensor([[1, -1, 0.5], [-0.5, 1, 1]], dtype=torch.float64)
NAMES = torch.tensor([[1, 0], [0, 1], [0.6, 0.8], [0.8, 0.6]], dtype=torch.float64)


def test_golden_primal(clip: Clip) -> None:
    method, labels = make("rail", width=0), torch.tensor(LABELS)
    method.build(clip, 3)
    for block in ([0, 1, 2, 3], [4, 5]):
        method.add((T[block] @ P).relu(), labels[block])
    near(
        method.regression(clip, [0, 1, 2])((QUERY @ P).relu()[None])[0], [0.06964276, 0.08949972, 0.63545737]
    )


def test_golden_dual(clip: Clip) -> None:
    method = make("rail", kernel="dual", gamma=1, dual_lam=0.1)
    method.build(clip, 2)
    for block in ([0, 1, 2, 3], [4, 5]):
        method.add(T[block], torch.tensor(LABELS)[block])
    near(method.regression(clip, [0, 1, 2])(QUERY[None])[0], [0.24611512, 0.24704923, 0.55642992])


def test_golden_fusion(clip: Clip) -> None:
    fused = Fused(clip, NAMES, torch.tensor([True, True, True, False]), 0.8, told=True)
    fused.scale = 10.0
    r = torch.tensor([[0.06964276, 0.08949972, 0.63545737, 0.0]], dtype=torch.float64)
    near(fused.mix(QUERY[None] / QUERY.norm())[0], [0.01458539, 0.05247773, 0.52586936, 0.40706752])
    fused.regress = lambda _: r
    near(fused.mix(QUERY[None] / QUERY.norm())[0], [0.05863128, 0.08209532, 0.61353977, 0.0814135])
    fused.known = torch.tensor([True, True, False, False])
    near(fused.mix(QUERY[None] / QUERY.norm())[0], [0.01458539, 0.05247773, 0.52586936, 0.40706752])


def test_a_kernel_has_no_weights_of_classes() -> None:
    with pytest.raises(UserError, match=r"method\.kernel=dual has no weights of classes: use"):
        make("rail", kernel="dual", class_weights=True)


@torch.no_grad()
def test_the_recursion_of_the_authors(clip: Clip) -> None:
    """R <- R - R H'(I + H R H')^-1 H R, W <- W + R H'(Y - H W), batch after batch."""
    method = learn(make("rail"), clip, by_class([4, 1], [0, 2, 5, 3]), 8)
    on = pictures()
    h = method.rows(clip.encode_image(on.images))
    targets = torch.nn.functional.one_hot(on.labels, 6).double()
    inverse, weight = torch.eye(24, dtype=torch.float64) / 0.1, torch.zeros(24, 6, dtype=torch.float64)
    for block in torch.arange(48).split(7):
        part = h[block]
        inner = torch.linalg.inv(torch.eye(len(part), dtype=torch.float64) + part @ inverse @ part.T)
        inverse = inverse - inverse @ part.T @ inner @ part @ inverse
        weight = weight + inverse @ part.T @ (targets[block] - part @ weight)
    assert_close(method.solve(clip, [*range(6)])[0], weight, rtol=1e-6, atol=1e-8)
    text = clip.class_embeddings([*"abcdef"], method.prompts.templates)
    p = (clip.logit_scale.exp() * clip.encode_image(on.images) @ text.T).softmax(1)
    assert_close(scores(method, clip), 0.2 * p + 0.8 * (h @ weight).float(), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_names_of_classes_to_come(clip: Clip) -> None:
    """Images that zero-shot CLIP takes for a class never trained are left to it."""
    text = clip.class_embeddings([*"abcdef"], make("rail").prompts.templates)
    p = (clip.logit_scale.exp() * clip.encode_image(pictures().images) @ text.T).softmax(1)
    first = int(p.argmax(1)[0])
    others = [label for label in range(6) if label != first]
    for known in (others, [first, others[0]]):
        found, wanted = (
            scores(learn(make("rail", names="all"), clip, by_class(known)), clip, known),
            p[:, known],
        )
        alone = torch.isclose(found, wanted).all(1)
        assert torch.equal(alone, ~torch.isin(p.argmax(1), torch.tensor(known)))


@torch.no_grad()
def test_names_never_trained_alone_are_left_to_the_pretrained_model(clip: Clip) -> None:
    method = learn(make("rail"), clip, by_class([0, 1, 2]))
    text = clip.class_embeddings([*"def"], method.prompts.templates)
    p = (clip.logit_scale.exp() * clip.encode_image(pictures().images) @ text.T).softmax(1)
    assert_close(scores(method, clip, [3, 4, 5]), p)


def test_the_dual_form_counts_what_it_keeps(clip: Clip) -> None:
    method = learn(make("rail", kernel="dual"), clip, by_class([0, 1, 2]))
    assert method.kept["rows"].shape == (24, 16)
    assert method.state_bytes() >= 24 * 16 * 8
