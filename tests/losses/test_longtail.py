"""FOSTER's weights and its balanced distillation, against golden numbers and naive forms."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import cross_entropy

from everclip.losses.distill import distillation, effective_weights

WEIGHTS = [1.22139604, 1.22139604, 0.55720792]


def logits(rows: int, classes: int, seed: int) -> torch.Tensor:
    return 3 * torch.randn(rows, classes, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_golden_weights() -> None:
    weights = effective_weights(torch.tensor([20, 20, 500]), 0.97)
    assert weights.tolist() == pytest.approx(WEIGHTS, abs=1e-7)


def test_golden_aligned_cross_entropy() -> None:
    z, y = torch.tensor([[2.0, 1.0, 0.5]], dtype=torch.float64), torch.tensor([2])
    assert cross_entropy(z, y).item() == pytest.approx(1.9643687841, abs=1e-10)
    weights = effective_weights(torch.tensor([20, 20, 500]), 0.97)
    assert cross_entropy(z / weights, y).item() == pytest.approx(1.3914413826, abs=2e-7)


def test_golden_distillation() -> None:
    """The loss is linear in the log-probabilities, so that its value at three students gives the target away."""
    teacher = torch.tensor([[2.0, 1.0, 0.5]], dtype=torch.float64)
    weights = torch.tensor(WEIGHTS, dtype=torch.float64)
    student = torch.zeros(1, 3, dtype=torch.float64, requires_grad=True)
    for given, expected in (
        (torch.ones(3, dtype=torch.float64), [0.48102426, 0.29175596, 0.22721977]),
        (weights, [0.54883929, 0.33288785, 0.11827286]),
    ):
        (gradient,) = torch.autograd.grad(distillation(teacher, student, 2.0, given), student)
        assert (1 / 3 - 2 * gradient[0]).tolist() == pytest.approx(expected, abs=1e-8)


@pytest.mark.parametrize("beta", [0.0, 0.9, 0.97])
def test_equal_counts_weigh_nothing(beta: float) -> None:
    weights = effective_weights(torch.tensor([7, 7, 7, 7]), beta)
    assert torch.equal(weights, torch.ones(4))
    teacher, student = logits(5, 4, 0), logits(5, 4, 1)
    plain = distillation(teacher, student, 2.0)
    assert distillation(teacher, student, 2.0, weights).item() == pytest.approx(plain.item())


def test_beta_zero_weighs_all_alike_and_a_large_beta_by_count() -> None:
    counts = torch.tensor([1, 3, 9])
    assert torch.equal(effective_weights(counts, 0.0), torch.ones(3))
    inverse = 1 / counts.double()
    assert effective_weights(counts, 1 - 1e-9).tolist() == pytest.approx(
        (inverse / inverse.mean()).tolist(), rel=1e-5
    )


def test_a_class_without_images_is_as_rare_as_one_of_a_single_image() -> None:
    weights = effective_weights(torch.tensor([0, 1, 50]), 0.96)
    assert weights[0] == weights[1] > 1 > weights[2]
    assert weights.mean().item() == pytest.approx(1)


def test_naive_reference() -> None:
    teacher, student = logits(6, 4, 2), logits(6, 4, 3)
    weights, t = [0.5, 1.0, 2.0, 0.5], 3.0
    total = 0.0
    for i in range(6):
        p = [math.exp(v / t) * w for v, w in zip(teacher[i].tolist(), weights, strict=True)]
        q = [math.exp(v / t) for v in student[i].tolist()]
        total -= sum(p[k] / sum(p) * math.log(q[k] / sum(q)) for k in range(4))
    loss = distillation(teacher, student, t, torch.tensor(weights, dtype=torch.float64))
    assert loss.item() == pytest.approx(total / 6, rel=1e-12)


def test_at_the_balanced_teacher_there_is_no_gradient_and_none_ever_in_the_teacher() -> None:
    teacher = logits(5, 3, 4).requires_grad_()
    weights, t = torch.tensor([0.5, 1.0, 1.5], dtype=torch.float64), 2.0
    student = (teacher.detach() + t * weights.log()).requires_grad_()
    loss = distillation(teacher, student, t, weights)
    (gradient,) = torch.autograd.grad(loss, student)
    assert gradient.abs().max() < 1e-15
    assert teacher.grad is None
