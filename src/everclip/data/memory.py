"""Keep exemplars in a memory: a constant budget, shared as a policy says, or a quota per class."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from everclip.data.images import ImageSet
from everclip.data.policies import Policy, Pool
from everclip.data.policies.random import Random
from everclip.errors import UserError, shown
from everclip.plugins import returned
from everclip.seeding import hash64

Scores = Callable[[ImageSet], NDArray[np.float64]]
"""Scores ``[n]`` of images, at least 0, in their order."""


class Memory:
    """At most ``budget`` exemplars, chosen by a policy when a task has ended.

    Each image has a fixed priority, from seed and id or from the rank that the policy gives it when its task ends, and
    a policy keeps the images with the lowest. So trimming is nested (exemplars of a later stage are among those of an
    earlier one) and depends on no random state.

    Args:
        budget: number of exemplars, or ``"all"``. 0 keeps nothing.
        seed: of the priorities.
        empty: what the memory holds before the first task: an empty ImageSet over the training store, or the exemplars
            that an update begins with, which count as the first task's.
        policy: chooses the exemplars; default: at random, equally many per class (paper, section 3.1).
        quota: exemplars of each class from the start, where the budget is not shared by the classes seen.
    """

    def __init__(
        self,
        budget: int | Literal["all"],
        seed: int,
        empty: ImageSet,
        policy: Policy | None = None,
        quota: int | None = None,
    ) -> None:
        self.policy = policy or Random()
        whole: dict[str, int | Literal["all"]] = {"all": "all", "none": 0}
        self.budget: int | Literal["all"] = whole.get(self.policy.keeps, budget)
        self.quota = quota
        self.seed = seed
        self._images = empty
        self._stages = 0
        self._stage: dict[int, int] = dict.fromkeys(empty.ids.tolist(), 0)
        self._rank: dict[int, int] = {}

    def images(self) -> ImageSet:
        """Return the exemplars."""
        return self._images

    @property
    def ranks(self) -> bool:
        """Whether its policy ranks a task's images by features, so that ``update`` needs these."""
        return self.policy.features and self.budget != 0

    def per_class(self, classes_seen: int) -> int | None:
        """Return the quota of a class: floor(M / classes seen), or the same from the start; None without quotas."""
        if not self.policy.per_class:
            return None
        if self.quota is not None:
            return self.quota
        return self.budget // classes_seen if isinstance(self.budget, int) else None

    def update(
        self,
        new: ImageSet,
        classes_seen: int,
        features: Float[np.ndarray, "n d"] | None = None,
        scores: Scores | None = None,
    ) -> NDArray[np.int64]:
        """Take exemplars of ``new`` and trim the old ones to what the policy leaves them. Raises UserError where the
        policy returns invalid ranks or positions.

        Args:
            features: of ``new``, unit length, where the memory ``ranks``; without them the policy chooses as if it had
                no ranks.
            scores: for a policy that reads them; without them it has none.

        Returns:
            int64 ``[k]``: ids, old or new, that are not held from here on: no later stage sees them again.
        """
        pool = self._images + new
        self._stage |= dict.fromkeys(new.ids.tolist(), self._stages)
        self._stages += 1
        if self.ranks and features is not None:
            ranks = _numbers(self.policy, "ranks", self.policy.ranks(new, features))
            if len(ranks) != len(new):
                gave = returned(self.policy, "ranks")
                raise UserError(f"{gave} {len(ranks)} numbers for {len(new)} images: return one for each")
            self._rank |= dict(zip(new.ids.tolist(), ranks.tolist(), strict=True))
        kept = pool
        if self.budget != "all":
            asked = scores if self.policy.scores and self.budget != 0 else None
            known = None if asked is None else asked(pool)
            kept = pool.select(self._chosen(self._pool(pool, self.budget, classes_seen, known)))
        evicted = np.setdiff1d(pool.ids, kept.ids)
        for sample in evicted.tolist():
            self._stage.pop(sample, None)
            self._rank.pop(sample, None)
        self._images = kept
        return evicted

    def _pool(
        self, images: ImageSet, budget: int, classes_seen: int, scores: NDArray[np.float64] | None
    ) -> Pool:
        """Return what the policy chooses from."""
        ids = images.ids.tolist()
        # Ranks are below any hash, so an image with one goes before one whose features were not known.
        priority = [self._rank.get(sample, hash64("priority", self.seed, sample)) for sample in ids]
        return Pool(
            images,
            np.array([self._stage[sample] for sample in ids], dtype=np.int64),
            self._stages,
            np.array([self._rank.get(sample, -1) for sample in ids], dtype=np.int64),
            np.array(priority, dtype=np.float64) / 2**63,
            scores,
            budget if self.quota is None else self.quota * classes_seen,
            budget // classes_seen if self.quota is None else self.quota,
            classes_seen,
            self.seed,
        )

    def _chosen(self, pool: Pool) -> NDArray[np.int64]:
        """Return positions of the images to keep, in the pool's order."""
        if pool.budget == 0:
            return np.zeros(0, dtype=np.int64)
        found = np.unique(_numbers(self.policy, "choose", self.policy.choose(pool)))
        wrong = ""
        if len(found) and found[-1] >= len(pool.images):
            wrong = f"the position {found[-1]}: return positions in pool.images"
        elif len(found) > pool.budget:
            wrong = f"{len(found)} positions: return pool.budget ({pool.budget}) at most"
        if wrong:
            raise UserError(f"{returned(self.policy, 'choose')} {wrong}")
        return found

    def state_dict(self) -> dict[str, Any]:
        """Return the exemplars' ids, the task each came from and its rank; the rest is in the config."""
        ids = self._images.ids.tolist()
        return {
            "ids": ids,
            "stages": self._stages,
            "stage": [self._stage[sample] for sample in ids],
            "rank": [self._rank.get(sample, -1) for sample in ids],
        }

    def load_state_dict(self, state: Mapping[str, Any], train: ImageSet) -> None:
        """Find the exemplars again among ``train``, the images of all tasks. Raises UserError where some are gone."""
        position = {sample: row for row, sample in enumerate(train.ids.tolist())}
        lost = [sample for sample in state["ids"] if sample not in position]
        if lost:
            raise UserError(f"{len(lost)} exemplars of the memory are no longer in the data: put them back")
        self._images = train.select(np.array([position[sample] for sample in state["ids"]], dtype=np.int64))
        self._stages = state["stages"]
        self._stage = dict(zip(state["ids"], state["stage"], strict=True))
        self._rank = {s: rank for s, rank in zip(state["ids"], state["rank"], strict=True) if rank >= 0}


def _numbers(policy: Policy, name: str, found: Any) -> NDArray[np.int64]:
    """Check what a policy has returned, whole numbers from 0. Raises UserError for anything else."""
    numbers = np.asarray(found)
    if numbers.ndim != 1 or (len(numbers) and numbers.dtype.kind not in "iu") or (numbers < 0).any():
        raise UserError(f"{returned(policy, name)} {shown(repr(found))}: return whole numbers from 0")
    return numbers.astype(np.int64)
