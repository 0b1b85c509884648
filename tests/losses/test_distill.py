"""Distillation against golden numbers and its own properties."""

from __future__ import annotations

import pytest
import torch

from everclip.losses.distill import distillation


def test_golden() -> None:
    """methods-more.md 10.1."""
    teacher = torch.tensor([[2.0, 1.0, 0.0]], dtype=torch.float64)
    student = torch.tensor([[1.0, 1.0, 0.0]], dtype=torch.float64, requires_grad=True)
    loss = distillation(teacher, student, 2.0)
    assert loss.item() == pytest.approx(1.0511819496, abs=1e-10)
    (gradient,) = torch.autograd.grad(4 * loss, student)
    assert gradient[0].tolist() == pytest.approx([-0.2456573197, 0.1529116909, 0.0927456288], abs=1e-10)


def test_at_the_teacher_it_is_the_entropy_and_has_no_gradient() -> None:
    teacher = torch.randn(5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    student = teacher.clone().requires_grad_()
    loss = distillation(teacher, student, 3.0)
    p = (teacher / 3).softmax(1)
    assert loss.item() == pytest.approx(-(p * p.log()).sum(1).mean().item())
    (gradient,) = torch.autograd.grad(loss, student)
    assert gradient.abs().max() < 1e-15


def test_nothing_flows_into_the_teacher() -> None:
    teacher, student = torch.ones(2, 3, requires_grad=True), torch.zeros(2, 3, requires_grad=True)
    distillation(teacher, student, 1.0).backward()
    assert teacher.grad is None
