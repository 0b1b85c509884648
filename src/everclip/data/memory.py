"""The memory of exemplars: a constant budget, shared equally by the classes seen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from everclip.data.images import ImageSet
from everclip.errors import UserError
from everclip.seeding import hash64


class Memory:
    """At most ``budget`` exemplars, floor(budget / classes seen) a class, chosen at random (paper, section 3.1).

    Each image has a fixed random priority, and a class keeps the images of the lowest: so trimming is nested (the
    exemplars of a later stage are among those of an earlier one) and depends on no random state. Where a class has
    images of several domains, its quota is shared equally by the domains seen; a remainder goes to the domains that
    come first in a fixed random order of the class.

    Args:
        budget: number of exemplars, or ``"all"``. 0 keeps nothing.
        seed: of the priorities.
        empty: an empty ImageSet over the training store, what the memory holds before the first task.
    """

    def __init__(self, budget: int | Literal["all"], seed: int, empty: ImageSet) -> None:
        self.budget = budget
        self.seed = seed
        self._images = empty

    def images(self) -> ImageSet:
        """The exemplars."""
        return self._images

    def per_class(self, classes_seen: int) -> int | None:
        """The quota of a class: floor(M / classes seen); None where everything is kept."""
        return self.budget // classes_seen if isinstance(self.budget, int) else None

    def update(self, new: ImageSet, classes_seen: int) -> NDArray[np.int64]:
        """Take exemplars of ``new`` and trim the old ones to the new quota.

        Returns:
            int64 ``[k]``: ids, old or new, that are not held from here on: no later stage sees them again.
        """
        pool = self._images + new
        quota = self.per_class(classes_seen)
        kept = pool if quota is None else pool.select(self._choose(pool, quota))
        evicted = np.setdiff1d(pool.ids, kept.ids)
        self._images = kept
        return evicted

    def _choose(self, pool: ImageSet, quota: int) -> NDArray[np.int64]:
        """Positions in ``pool`` of the images to keep, in ``pool``'s order."""
        priority = np.array([hash64("priority", self.seed, sample) for sample in pool.ids.tolist()])
        chosen: list[NDArray[np.int64]] = []
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

    def state_dict(self) -> dict[str, Any]:
        """The exemplars' ids; budget and seed stand in the config."""
        return {"ids": self._images.ids.tolist()}

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
