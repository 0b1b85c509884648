from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from everclip.data.images import FileStore, ImageSet
from everclip.data.memory import Memory
from everclip.data.policies import build
from everclip.updating.images import Filled


def images(labels: list[int], domains: list[int] | None = None, start: int = 0) -> ImageSet:
    count = len(labels)
    return ImageSet(
        STORE,
        np.arange(start, start + count),
        np.array(labels, dtype=np.int64),
        np.array(domains or [0] * count, dtype=np.int64),
        np.arange(start, start + count, dtype=np.int64) * 7919 + 13,
    )


STORE = FileStore(Path(), [f"{n}.jpg" for n in range(100_000)])
EMPTY = images([]).select(np.zeros(0, dtype=np.int64))


def test_quota_of_the_literature() -> None:
    """M = 2000 in steps of 10 classes (methods.md 4.3)."""
    memory = Memory(2000, 0, EMPTY)
    assert [memory.per_class(10 * t) for t in range(1, 11)] == [200, 100, 66, 50, 40, 33, 28, 25, 22, 20]


def test_equal_random_and_nested() -> None:
    memory = Memory(60, 3, EMPTY)
    held: list[set[int]] = []
    for stage in range(3):
        labels = [2 * stage, 2 * stage + 1] * 40
        gone = memory.update(images(labels, start=1000 * stage), 2 * stage + 2)
        now = memory.images()
        assert set(Counter(now.labels.tolist()).values()) == {60 // (2 * stage + 2)}
        held.append(set(now.ids.tolist()))
        assert not held[-1] & set(gone.tolist())
    assert {i for i in held[2] if i < 1000 * 7919} <= {i for i in held[1] if i < 1000 * 7919} <= held[0]


def test_evicted_are_all_that_is_not_held() -> None:
    memory = Memory(4, 0, EMPTY)
    new = images([0, 0, 0, 1, 1, 1])
    gone = memory.update(new, 2)
    assert sorted([*gone, *memory.images().ids]) == sorted(new.ids)


def test_choice_depends_on_the_seed_and_not_on_the_order_of_rows() -> None:
    new = images([0] * 50)
    chosen = []
    for seed, part in ((0, new), (0, new.select(np.arange(50)[::-1].copy())), (1, new)):
        memory = Memory(5, seed, EMPTY)
        memory.update(part, 1)
        chosen.append(set(memory.images().ids.tolist()))
    assert chosen[0] == chosen[1] != chosen[2]


def test_zero_and_all() -> None:
    new = images([0, 1, 1])
    nothing, everything = Memory(0, 0, EMPTY), Memory("all", 0, EMPTY)
    for memory, count in ((nothing, 0), (everything, 3)):
        memory.update(new, 2)
        assert len(memory.images()) == count
    assert Memory("all", 0, EMPTY).per_class(5) is None


def test_below_one_a_class_keeps_nothing() -> None:
    memory = Memory(3, 0, EMPTY)
    memory.update(images([0, 1, 2, 3]), 4)
    assert len(memory.images()) == 0


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 40), st.integers(1, 5), st.integers(1, 3), st.integers(0, 9))
def test_domains_share_a_class_quota_equally(budget: int, domains: int, classes: int, seed: int) -> None:
    memory = Memory(budget, seed, EMPTY)
    before: set[int] | None = None
    for domain in range(domains):
        labels = list(range(classes)) * 40
        new = images(labels, [domain] * len(labels), start=1000 * domain)
        memory.update(new, classes)
        held = memory.images()
        quota = budget // classes
        assert len(held) == quota * classes  # 40 images of a class and domain are enough for any share here
        for label in range(classes):
            shares = Counter(held.domains[held.labels == label].tolist())
            counts = [shares.get(d, 0) for d in range(domain + 1)]
            assert max(counts) - min(counts) <= 1
        if before is not None:
            assert {i for i in held.ids.tolist() if i < 1000 * domain * 7919} <= before
        before = set(held.ids.tolist())


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 30), st.lists(st.integers(0, 9), min_size=1, max_size=6), st.integers(0, 9))
def test_a_domain_with_few_images_leaves_its_share_to_the_others(
    quota: int, counts: list[int], seed: int
) -> None:
    memory, before = Memory(quota, seed, EMPTY, Filled()), {0: 10}
    for domain, count in enumerate([10, *counts]):
        memory.update(images([0] * count, [domain] * count, start=1000 * domain), 1)
        held = Counter(memory.images().domains.tolist())
        there = min(quota, sum(before.values()) + (count if domain else 0))
        assert sum(held.values()) == there
        assert all(held[one] <= most for one, most in before.items())
        full = [held[one] for one in held if held[one] < (before | {domain: count})[one]]
        assert not full or max(held.values()) - min(full) <= 1
        before = dict(held)


def test_state_round_trip() -> None:
    new = images([0, 1] * 20)
    memory = Memory(10, 0, EMPTY)
    memory.update(new, 2)
    again = Memory(10, 0, EMPTY)
    again.load_state_dict(memory.state_dict(), new)
    assert np.array_equal(again.images().ids, memory.images().ids)
    assert np.array_equal(again.images().labels, memory.images().labels)


@pytest.mark.parametrize("budget", [0, 7, "all"])
def test_bytes_are_those_of_the_files(tmp_path: Path, budget: int | Literal["all"]) -> None:
    keys = [f"{n}.jpg" for n in range(10)]
    for n, key in enumerate(keys):
        (tmp_path / key).write_bytes(b"x" * (n + 1))
    new = images([0] * 10)
    new = ImageSet(FileStore(tmp_path, keys), new.rows, new.labels, new.domains, new.ids)
    memory = Memory(budget, 0, new.select(np.zeros(0, dtype=np.int64)))
    memory.update(new, 1)
    assert memory.images().nbytes() == sum(int(row) + 1 for row in memory.images().rows)


@pytest.mark.parametrize("policy", ["random", "herding", "exp", "equal_task"])
def test_a_quota_of_each_class_lets_the_memory_grow(policy: str) -> None:
    """No class loses an exemplar to a later one, unless tasks have shares."""
    memory = Memory(15, 0, EMPTY, build(policy, {}), quota=5)
    for stage in range(3):
        before = set(memory.images().ids.tolist())
        memory.update(images([stage] * 20, start=100 * stage), stage + 1, np.eye(20))
        assert len(memory.images()) == 5 * (stage + 1)
        if policy in ("random", "herding"):
            assert before <= set(memory.images().ids.tolist())
            assert memory.per_class(stage + 1) == 5
