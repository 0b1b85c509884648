"""SampleTable against a dict."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from everclip.methods.base.sample_table import SampleTable

IDS = st.integers(-(2**63), 2**63 - 1) | st.integers(0, 9)


def filled() -> SampleTable:
    table = SampleTable(2)
    table.set([30, -1, 2**62], torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]))
    return table


@settings(deadline=None)
@given(
    steps=st.lists(st.tuples(st.booleans(), st.lists(IDS, unique=True, max_size=6)), max_size=12),
    asked=st.lists(IDS, max_size=8),
)
def test_like_a_dict(steps: list[tuple[bool, list[int]]], asked: list[int]) -> None:
    table, reference, value = SampleTable(2), dict[int, list[float]](), 0.0
    for drop, ids in steps:
        if drop:
            table.drop(ids)
            reference = {key: row for key, row in reference.items() if key not in ids}
            continue
        rows = [[value + k, -value - k] for k in range(len(ids))]
        value += 100
        table.set(ids, torch.tensor(rows).view(-1, 2))
        reference |= zip(ids, rows, strict=True)
    everyone = sorted({*reference, *asked})
    values, seen = table.get(everyone)
    assert seen.tolist() == [key in reference for key in everyone]
    assert values.tolist() == [reference.get(key, [0.0, 0.0]) for key in everyone]
    assert table.ids().tolist() == sorted(reference)
    assert (len(table), table.nbytes) == (len(reference), 16 * len(reference))


def test_order_does_not_matter() -> None:
    table, other = filled(), SampleTable(2)
    for row, sample in ((2, 2**62), (0, 30), (1, -1)):
        other.set([sample], torch.tensor([[2.0 * row + 1, 2.0 * row + 2]]))
    for key, tensor in table.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[key])
    assert table.get([2**62, 30, 2**62])[0].tolist() == [[5, 6], [1, 2], [5, 6]]


def test_ids_as_tensor_array_or_list() -> None:
    ids = [30, 7, -1]
    for given_as in (ids, tuple(ids), np.array(ids), torch.tensor(ids)):
        values, seen = filled().get(given_as)
        assert seen.tolist() == [True, False, True]
        assert values.tolist() == [[1, 2], [0, 0], [3, 4]]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 0.0])
def test_every_value_is_seen(value: float) -> None:
    table = SampleTable(1)
    table.set([1], torch.tensor([[value]]))
    values, seen = table.get([1, 2])
    assert seen.tolist() == [True, False]
    assert values[0].item() == pytest.approx(value, nan_ok=True)


def test_keeps_fp32_copies_without_gradient() -> None:
    table, values = SampleTable(1), torch.ones(2, 1, dtype=torch.float64, requires_grad=True)
    table.set([1, 2], values * 0.1)
    stored, _ = table.get([1, 2])
    assert (stored.dtype, stored.requires_grad) == (torch.float32, False)
    stored += 1
    assert table.get([1])[0].item() == pytest.approx(0.1)


def test_dropped_ids_start_afresh() -> None:
    table = filled()
    table.drop(np.array([30, 99]))
    assert table.ids().tolist() == [-1, 2**62]
    assert table.get([30])[1].tolist() == [False]
    table.set([30, 31], torch.tensor([[7.0, 7.0], [8.0, 8.0]]))
    assert table.get([-1, 30, 31, 2**62])[0].tolist() == [[3, 4], [7, 7], [8, 8], [5, 6]]


def test_state_through_a_file() -> None:
    file = io.BytesIO()
    torch.save(filled().state_dict(), file)
    file.seek(0)
    table = SampleTable(2)
    table.set([5], torch.zeros(1, 2))
    table.load_state_dict(torch.load(file, weights_only=True))
    assert table.ids().tolist() == [-1, 30, 2**62]
    assert table.get([-1, 30, 2**62])[0].tolist() == [[3, 4], [1, 2], [5, 6]]


def test_state_is_a_snapshot() -> None:
    table = filled()
    state = table.state_dict()
    table.set([30], torch.zeros(1, 2))
    assert state["values"].tolist() == [[3, 4], [1, 2], [5, 6]]


def test_empty() -> None:
    table = SampleTable(2)
    values, seen = table.get([])
    assert (tuple(values.shape), tuple(seen.shape), len(table), table.nbytes) == ((0, 2), (0,), 0, 0)
    table.drop([1])
    table.load_state_dict(SampleTable(2).state_dict())
    assert table.get([1])[1].tolist() == [False]
