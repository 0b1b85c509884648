"""Herding, and the shares of earlier tasks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from everclip.data.memory import Memory
from everclip.data.policies import build, herding_order, shares, spread
from everclip.data.policies.exp import weights
from tests.data.test_memory import EMPTY, images
from tests.running import run


def alike(tasks: int) -> list[Fraction]:
    return [Fraction(1)] * tasks


WEIGHTS: dict[str, Callable[[int], list[Fraction]]] = {"exp": weights, "equal_task": alike}


def test_herding_golden() -> None:
    """methods.md 4.3; the rows are not at unit length there."""
    features = np.array([[1, 0], [0, 1], [0.9, 0.1], [0.5, 0.45]])
    order = herding_order(features)
    assert order.tolist() == [3, 2, 1, 0]
    means = [features[order[:k]].mean(axis=0) for k in range(1, 5)]
    distances = [np.linalg.norm(features.mean(axis=0) - mean) for mean in means]
    assert distances == pytest.approx([0.1179, 0.1505, 0.1856, 0], abs=1e-4)


def test_herding_is_greedy() -> None:
    features = np.random.default_rng(0).normal(size=(12, 5))
    order, mean = herding_order(features).tolist(), features.mean(axis=0)
    for k in range(12):
        tries = {i: np.linalg.norm(mean - features[[*order[:k], i]].mean(axis=0)) for i in order[k:]}
        assert tries[order[k]] == pytest.approx(min(tries.values()))
    assert sorted(order) == list(range(12))


@pytest.mark.parametrize(
    ("kind", "step", "budget", "expected"),
    [
        ("exp", 2, 7, [7]),
        ("exp", 3, 10, [5, 5]),
        ("exp", 4, 10, [2, 3, 5]),
        ("exp", 5, 16, [2, 2, 4, 8]),
        ("exp", 5, 15, [2, 2, 4, 7]),
        ("exp", 6, 10, [1, 1, 1, 2, 5]),
        ("equal_task", 5, 10, [2, 2, 3, 3]),
        ("equal_task", 4, 10, [3, 3, 4]),
    ],
)
def test_shares_golden(kind: str, step: int, budget: int, expected: list[int]) -> None:
    """methods-more.md 11.4: what is kept of steps 1..t-1 when step t is learned."""
    assert shares(budget, [1000] * (step - 1), WEIGHTS[kind](step - 1)) == expected


def test_a_share_beyond_what_a_task_owns_is_spread_over_the_others() -> None:
    assert shares(16, [100, 100, 100, 3], weights(4)) == [3, 3, 7, 3]
    assert shares(16, [1, 0, 2], weights(3)) == [1, 0, 2]
    assert shares(0, [4, 4], alike(2)) == [0, 0]


@settings(deadline=None)
@given(
    kind=st.sampled_from(["exp", "equal_task"]),
    budget=st.integers(0, 60),
    owned=st.lists(st.integers(0, 20), max_size=8),
)
def test_shares_are_filled_and_never_more_than_owned(kind, budget: int, owned: list[int]) -> None:
    given_ = shares(budget, owned, WEIGHTS[kind](len(owned)))
    assert sum(given_) == min(budget, sum(owned))
    assert all(0 <= n <= most for n, most in zip(given_, owned, strict=True))


def test_spread_is_even_and_nested() -> None:
    labels, priority = np.array([0] * 6 + [1] * 6 + [2]), np.random.default_rng(1).random(13)
    before: set[int] = set()
    for count in range(14):
        chosen = spread(labels, priority, count)
        assert len(chosen) == count
        assert before <= set(chosen.tolist())
        before = set(chosen.tolist())
        counts = Counter(labels[chosen].tolist())
        assert count < 3 or max(counts[0], counts[1]) - min(counts[0], counts[1]) <= 1
    first = [i for i in spread(labels, priority, 5) if labels[i] == 0]
    assert max(priority[first]) < min(priority[i] for i in range(6) if i not in first)


@pytest.mark.parametrize("policy", ["exp", "equal_task"])
def test_shares_in_a_memory(policy: str) -> None:
    memory = Memory(12, 0, EMPTY, build(policy, {}))
    held: list[set[int]] = []
    for stage in range(4):
        memory.update(images([2 * stage, 2 * stage + 1] * 10, start=1000 * stage), 2 * stage + 2)
        held.append(set(memory.images().ids.tolist()))
    tasks = Counter((memory.images().labels // 2).tolist())
    assert [tasks[task] for task in range(4)] == shares(12, [100] * 4, WEIGHTS[policy](4))
    assert held[3] <= set.union(*held[:3]) | {(3000 + n) * 7919 + 13 for n in range(20)}
    old = {i for i in held[3] if i < 3000 * 7919}
    assert old <= held[2], "what was dropped never comes back"
    assert memory.per_class(8) is None


def test_a_herding_memory_keeps_the_head_of_the_order() -> None:
    new = images([0, 1] * 8)
    features = np.random.default_rng(2).normal(size=(16, 4))
    memory = Memory(8, 0, EMPTY, build("herding", {}))
    memory.update(new, 2, lambda part: features)
    for label in (0, 1):
        where = np.flatnonzero(new.labels == label)
        expected = new.ids[where[herding_order(features[where])]]
        held = memory.images()
        assert set(held.ids[held.labels == label].tolist()) == set(expected[:4].tolist())
    state = memory.state_dict()
    memory.update(images([2] * 8, start=500), 4, lambda part: np.random.default_rng(3).normal(size=(8, 4)))
    again = Memory(8, 0, EMPTY, build("herding", {}))
    again.load_state_dict(state, new)
    again.update(images([2] * 8, start=500), 4, lambda part: np.random.default_rng(3).normal(size=(8, 4)))
    assert again.state_dict() == memory.state_dict()
    held = memory.images()
    for label in (0, 1):
        where = np.flatnonzero(new.labels == label)
        expected = new.ids[where[herding_order(features[where])]]
        assert set(held.ids[held.labels == label].tolist()) == set(expected[:2].tolist())


@pytest.mark.parametrize("policy", ["herding", "exp", "equal_task", "all", "none"])
def test_every_policy_runs_and_counts(tmp_path: Path, toy: str, photos: str, policy: str) -> None:
    words = [f"data={photos}", f"model={toy}", "method=gcl", f"memory.policy={policy}", "memory.budget=9"]
    run(tmp_path / "run", *words)
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    import json

    counts = [stage["memory"]["count"] for stage in map(json.loads, lines) if stage["event"] == "stage"]
    # six classes of four pictures in three tasks
    expected = {
        "herding": [8, 8, 6],
        "exp": [8, 9, 9],
        "equal_task": [8, 9, 9],
        "all": [8, 16, 24],
        "none": [0, 0, 0],
    }
    assert counts == expected[policy]
