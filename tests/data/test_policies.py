"""Herding, and the shares of earlier tasks."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from everclip import plugins
from everclip.data.images import ImageSet
from everclip.data.memory import Memory
from everclip.data.policies import Policy, Pool, build, herding_order, shares, spread
from everclip.data.policies.exp import weights
from everclip.errors import UserError
from everclip.seeding import hash64
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


@pytest.mark.parametrize("kind", ["apart", "tied", "single"])
def test_herding_compares_few_rows_and_gives_the_plain_order(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    features = np.random.default_rng(1).normal(size=(60, 7)) + 1
    features = features.astype(np.float32) if kind == "single" else features
    features = np.round(features)[[*range(30), *range(30)]] if kind == "tied" else features
    mean, total, left, plain = features.mean(axis=0), np.zeros(7), np.ones(60, dtype=bool), []
    for k in range(1, 61):
        distance = np.linalg.norm(mean - (features + total) / k, axis=1)
        plain.append(int(np.where(left, distance, np.inf).argmin()))
        left[plain[-1]] = False
        total = total + features[plain[-1]]
    norm, compared = np.linalg.norm, list[int]()
    monkeypatch.setattr(
        np.linalg, "norm", lambda rows, axis: compared.append(len(rows)) or norm(rows, axis=axis)
    )
    assert herding_order(features).tolist() == plain
    assert sum(compared) < 60 * (8 if kind == "tied" else 2)


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
    memory.update(new, 2, features)
    for label in (0, 1):
        where = np.flatnonzero(new.labels == label)
        expected = new.ids[where[herding_order(features[where])]]
        held = memory.images()
        assert set(held.ids[held.labels == label].tolist()) == set(expected[:4].tolist())
    state = memory.state_dict()
    memory.update(images([2] * 8, start=500), 4, np.random.default_rng(3).normal(size=(8, 4)))
    again = Memory(8, 0, EMPTY, build("herding", {}))
    again.load_state_dict(state, new)
    again.update(images([2] * 8, start=500), 4, np.random.default_rng(3).normal(size=(8, 4)))
    assert again.state_dict() == memory.state_dict()
    held = memory.images()
    for label in (0, 1):
        where = np.flatnonzero(new.labels == label)
        expected = new.ids[where[herding_order(features[where])]]
        assert set(held.ids[held.labels == label].tolist()) == set(expected[:2].tolist())


def tasks() -> list[ImageSet]:
    """Five tasks of new classes in twos, with images of earlier classes in other domains, of different sizes."""
    random = np.random.default_rng(5)
    sizes = [(30, 1), (18, 2), (25, 2), (0, 1), (21, 3)]
    return [
        images(
            random.integers(max(0, 2 * n - 2), 2 * n + 2, count).tolist(),
            random.integers(0, domains, count).tolist(),
            start=1000 * n,
        )
        for n, (count, domains) in enumerate(sizes)
    ]


def features(of: ImageSet) -> NDArray[np.float64]:
    return np.array([np.random.default_rng(int(i)).normal(size=5) for i in of.ids]).reshape(-1, 5)


def scores(of: ImageSet) -> NDArray[np.float64]:
    return of.ids % 7 / 3


@pytest.mark.parametrize(
    ("policy", "budget", "quota", "expected"),
    [
        ("random", 26, None, 126653047),
        ("random", 200, 3, 3214364176),
        ("herding", 26, None, 1714977871),
        ("herding", 200, 3, 2112149793),
        ("herding", "all", None, 4081124472),
        ("score", 26, None, 4196657347),
        ("exp", 26, None, 2673916068),
        ("exp", 200, 3, 714098447),
        ("equal_task", 26, None, 2561606558),
    ],
)
def test_the_exemplars_and_the_state_of_each_policy(
    policy: str, budget: int | Literal["all"], quota: int | None, expected: int
) -> None:
    """As the version before policies were plug-ins chose them: checkpoints of that time go on."""
    states: list[dict[str, Any]] = []
    memory = Memory(budget, 3, EMPTY, build(policy, {}), quota)
    for number, new in enumerate(tasks()):
        memory.update(new, 2 * number + 2, features(new), scores)
        states.append(memory.state_dict())
    assert hash64(json.dumps(states)) % 2**32 == expected


@pytest.mark.parametrize("policy", plugins.names("data/policies"))
def test_any_policy_keeps_to_the_budget_and_brings_nothing_back(policy: str) -> None:
    chooser = build(policy, {})
    memory, gone, known = Memory(20, 3, EMPTY, chooser), set[int](), 0
    for number, new in enumerate(tasks()):
        known += len(new)
        gone |= set(memory.update(new, 2 * number + 2, features(new), scores).tolist())
        held = memory.images().ids.tolist()
        assert len(held) + len(gone) == known
        assert not gone & set(held)
        assert chooser.keeps == "all" or len(held) <= 20
    assert chooser.keeps != "none" or not len(memory.images())


class Wrong(Policy):
    """What a plug-in may return by mistake."""

    features = True
    ranked: Any = None
    chosen: Any = ()

    def ranks(self, new: ImageSet, features: NDArray[np.float64]) -> Any:
        return np.zeros(len(new), dtype=np.int64) if self.ranked is None else self.ranked

    def choose(self, pool: Pool) -> Any:
        return self.chosen


@pytest.mark.parametrize(
    ("ranked", "chosen", "message"),
    [
        (
            [1, 2],
            (),
            r"^Wrong\.ranks \(.*test_policies\.py\) has returned 2 numbers for 4 images: return one for each$",
        ),
        ([0.5] * 4, (), r"has returned \"\[0\.5, .*\": return whole numbers from 0$"),
        (None, np.ones(4, dtype=bool), r"^Wrong\.choose .* return whole numbers from 0$"),
        (None, [-1], r"return whole numbers from 0$"),
        (None, 3, r"return whole numbers from 0$"),
        (None, [0, 4], r"has returned the position 4: return positions in pool\.images$"),
        (None, [0, 1, 2], r"has returned 3 positions: return pool\.budget \(2\) at most$"),
    ],
)
def test_what_a_policy_returns_is_checked(ranked: Any, chosen: Any, message: str) -> None:
    policy = Wrong()
    policy.ranked, policy.chosen = ranked, chosen
    with pytest.raises(UserError, match=message):
        Memory(2, 0, EMPTY, policy).update(images([0, 0, 1, 1]), 2, np.eye(4))


@pytest.mark.parametrize("policy", ["herding", "score", "exp", "equal_task", "all", "none"])
def test_every_policy_runs_and_counts(tmp_path: Path, toy: str, photos: str, policy: str) -> None:
    words = [f"data={photos}", f"model={toy}", "method=gcl", f"memory.policy={policy}", "memory.budget=9"]
    run(tmp_path / "run", *words)
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    counts = [stage["memory"]["count"] for stage in map(json.loads, lines) if stage["event"] == "stage"]
    # six classes of four pictures in three tasks
    expected = {
        "herding": [8, 8, 6],
        "score": [8, 8, 6],
        "exp": [8, 9, 9],
        "equal_task": [8, 9, 9],
        "all": [8, 16, 24],
        "none": [0, 0, 0],
    }
    assert counts == expected[policy]
