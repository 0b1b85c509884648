"""The scale and the bias of method=clip method.objective=sigmoid."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from everclip.data.prompts import PHOTO, Prompts
from everclip.methods.base.registry import method_class, options_of
from everclip.methods.clip import ClipLoss
from everclip.models import zoo
from tests.methods.learning import batch_of, begin, steps, task_of

PROMPTS = Prompts(("cat", "dog", "bird"), (PHOTO,))


def made(**options: object) -> ClipLoss:
    method = method_class("clip").create(options_of("clip", {"objective": "sigmoid", **options}), PROMPTS)
    assert isinstance(method, ClipLoss)
    return method


@pytest.mark.parametrize(
    ("options", "own", "scale", "bias"),
    [({}, None, 10.0, -10.0), ({"scale": 30.0, "bias": -8}, None, 30.0, -8.0), ({}, -12.5, None, -12.5)],
)
def test_where_they_begin(
    toy: str, options: dict[str, object], own: float | None, scale: float | None, bias: float
) -> None:
    """The paper's, those given, or the model's."""
    clip, task = zoo.load(toy, None, torch.device("cpu")), task_of([0, 1, 2])
    if own is not None:
        clip.model.logit_bias = nn.Parameter(torch.tensor(own))
    method = made(**options)
    begin(method, clip, task)
    found = method.diagnostics()
    assert found["scale"] == pytest.approx(clip.logit_scale.exp().item() if scale is None else scale)
    assert found["bias"] == bias


def test_they_learn_and_are_kept(toy: str) -> None:
    clip, task = zoo.load(toy, None, torch.device("cpu")), task_of([0, 1, 2])
    method = made()
    begin(method, clip, task)
    before = clip.logit_scale.item()
    terms = steps(method, clip, task, batch_of(task), 4, "train.lr_head=1e-2")
    assert terms[-1]["sigmoid"] < terms[0]["sigmoid"]
    found = method.diagnostics()
    assert found["scale"] > 10.0
    assert found["bias"] > -10.0
    assert clip.logit_scale.item() == before
    again = made()
    again.grow(clip, task)
    again.load_state_dict(method.state_dict())
    assert again.diagnostics() == found
    assert method.state_bytes() == 8
    assert math.isfinite(terms[-1]["sigmoid"])


def test_softmax_has_neither() -> None:
    method = method_class("clip").create(options_of("clip", {}), PROMPTS)
    assert list(method.parameters()) == []
    assert method.diagnostics() == {}
