"""Keep exemplars in a memory: a constant budget, shared by the classes or the tasks seen, or a quota per class."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from everclip.data import policies
from everclip.data.images import ImageSet
from everclip.errors import UserError
from everclip.seeding import hash64

Policy = Literal["random", "herding", "score", "exp", "equal_task"]
Features = Callable[[ImageSet], NDArray[np.float64]]
"""Unit-length features ``[n, d]`` of images that can be read, in their order."""
Scores = Callable[[ImageSet], NDArray[np.float64]]
"""Scores ``[n]`` of images, at least 0, in their order."""


class Memory:
    """At most ``budget`` exemplars, floor(budget / classes seen) per class, chosen at random (paper, section 3.1).

    Each image has a fixed priority, and a class keeps the images of the lowest: so trimming is nested (the exemplars
    of a later stage are among those of an earlier one) and depends on no random state. Where a class has
    images of several domains, its quota is shared equally by the domains seen; a remainder goes to the domains that
    come first in a fixed random order of the class.

    ``herding`` takes the place in the class's herding order as the priority. ``score`` draws in proportion to scores
    that the method gives new images and exemplars after each task (``policies.race``). ``exp`` and ``equal_task`` share
    the budget among the tasks seen, then among a task's classes (TiC-CLIP).

    Args:
        budget: number of exemplars, or ``"all"``. 0 keeps nothing.
        seed: of the priorities.
        empty: an empty ImageSet over the training store, what the memory holds before the first task.
        policy: how exemplars are chosen.
        quota: exemplars of each class from the start, where the budget is not shared by the classes seen.
    """

    def __init__(
        self,
        budget: int | Literal["all"],
        seed: int,
        empty: ImageSet,
        policy: Policy = "random",
        quota: int | None = None,
    ) -> None:
        self.budget: int | Literal["all"] = budget
        self.quota = quota
        self.seed = seed
        self.policy = policy
        self._images = empty
        self._stages = 0
        self._stage: dict[int, int] = {}
        self._rank: dict[int, int] = {}

    def images(self) -> ImageSet:
        """The exemplars."""
        return self._images

    def per_class(self, classes_seen: int) -> int | None:
        """The quota of a class: floor(M / classes seen), or the same from the start; None where everything is kept, or
        tasks have shares."""
        if self.policy in ("exp", "equal_task"):
            return None
        if self.quota is not None:
            return self.quota
        return self.budget // classes_seen if isinstance(self.budget, int) else None

    def update(
        self,
        new: ImageSet,
        classes_seen: int,
        features: Features | None = None,
        scores: Scores | None = None,
    ) -> NDArray[np.int64]:
        """Take exemplars of ``new`` and trim the old ones to the new quota.

        Args:
            features: for ``herding``, which is random without them.
            scores: for ``score``, alike.

        Returns:
            int64 ``[k]``: ids, old or new, that are not held from here on: no later stage sees them again.
        """
        pool = self._images + new
        self._stage |= dict.fromkeys(new.ids.tolist(), self._stages)
        self._stages += 1
        if self.policy == "herding" and features is not None and self.budget != 0:
            self._herd(new, features(new))
        scored = None
        if self.policy == "score" and scores is not None and self.budget not in (0, "all"):
            scored = scores(pool)
        kept = (
            pool
            if self.budget == "all"
            else pool.select(self._choose(pool, self.budget, classes_seen, scored))
        )
        evicted = np.setdiff1d(pool.ids, kept.ids)
        for sample in evicted.tolist():
            self._stage.pop(sample, None)
            self._rank.pop(sample, None)
        self._images = kept
        return evicted

    def _herd(self, new: ImageSet, features: NDArray[np.float64]) -> None:
        """Note the place of each new image in the herding order of its class and domain."""
        pairs = np.stack([new.labels, new.domains])
        for pair in np.unique(pairs, axis=1).T:
            where = np.flatnonzero((pairs == pair[:, None]).all(axis=0))
            ordered = new.ids[where[policies.herding(features[where])]].tolist()
            self._rank |= {sample: rank for rank, sample in enumerate(ordered)}

    def _choose(
        self, pool: ImageSet, budget: int, classes_seen: int, scores: NDArray[np.float64] | None
    ) -> NDArray[np.int64]:
        """Positions in ``pool`` of the images to keep, in ``pool``'s order."""
        # Ranks are below any hash, so a herded image goes before one whose features were not known.
        priority = np.array(
            [self._rank.get(sample, hash64("priority", self.seed, sample)) for sample in pool.ids.tolist()],
            dtype=np.float64,
        )
        if scores is not None:
            priority = policies.race(priority / 2**63, scores)
        if self.policy in ("exp", "equal_task"):
            return self._shared(pool, priority, budget if self.quota is None else self.quota * classes_seen)
        chosen: list[NDArray[np.int64]] = []
        quota = budget // classes_seen if self.quota is None else self.quota
        for label in np.unique(pool.labels):
            of_class = pool.labels == label
            domains = sorted(
                np.unique(pool.domains[of_class]).tolist(),
                key=lambda domain, label=label: hash64("domain", self.seed, label, domain),
            )
            for rank, domain in enumerate(domains):
                where = np.flatnonzero(of_class & (pool.domains == domain))
                # ceil((quota - rank) / domains): shares differ by one at most, and never grow as domains come.
                share = max(0, -(-(quota - rank) // len(domains)))
                chosen.append(where[np.argsort(priority[where], kind="stable")[:share]])
        return np.sort(np.concatenate(chosen)) if chosen else np.zeros(0, dtype=np.int64)

    def _shared(self, pool: ImageSet, priority: NDArray[np.float64], budget: int) -> NDArray[np.int64]:
        """Positions of each task's share, equally many per class."""
        stage = np.array([self._stage[sample] for sample in pool.ids.tolist()], dtype=np.int64)
        members = [np.flatnonzero(stage == number) for number in range(self._stages)]
        kind: Literal["exp", "equal_task"] = "exp" if self.policy == "exp" else "equal_task"
        counts = policies.shares(kind, budget, [len(part) for part in members])
        parts = [
            part[policies.spread(pool.labels[part], priority[part], count)]
            for part, count in zip(members, counts, strict=True)
        ]
        return np.sort(np.concatenate(parts))

    def state_dict(self) -> dict[str, Any]:
        """The exemplars' ids, the task each came from and its herding rank; the rest stands in the config."""
        ids = self._images.ids.tolist()
        return {
            "ids": ids,
            "stages": self._stages,
            "stage": [self._stage[sample] for sample in ids],
            "rank": [self._rank.get(sample, -1) for sample in ids],
        }

    def load_state_dict(self, state: Mapping[str, Any], train: ImageSet) -> None:
        """Find the exemplars again among ``train``, the training images of all tasks.

        Raises:
            UserError: some are no longer there.
        """
        position = {sample: row for row, sample in enumerate(train.ids.tolist())}
        lost = [sample for sample in state["ids"] if sample not in position]
        if lost:
            raise UserError(
                f"{len(lost)} exemplars of the memory are no longer in the data: put the images back,"
                " or start a new run"
            )
        self._images = train.select(np.array([position[sample] for sample in state["ids"]], dtype=np.int64))
        self._stages = state["stages"]
        self._stage = dict(zip(state["ids"], state["stage"], strict=True))
        self._rank = {s: rank for s, rank in zip(state["ids"], state["rank"], strict=True) if rank >= 0}
