"""Hold check images, and weight them for the comparison of candidates."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float32
from numpy.typing import NDArray

from everclip.data.images import ImageSet
from everclip.updating.classifiers import Known

SPREAD = 4.0


@dataclass(frozen=True, eq=False)
class Checks:
    """Images that nothing is trained on.

    All classes count equally. In a class learned in T updates, the images of the newest update count 1 / T together,
    and the few kept from earlier updates the rest: otherwise a new domain, a fifth of whose images are checks, would
    outvote the old ones.

    Args:
        images: their labels are the columns of the scores.
        fresh: which of them come with the newest update.
        weight: of each image; the sum is 1.
    """

    images: ImageSet
    fresh: Bool[np.ndarray, " n"]
    weight: Float[np.ndarray, " n"]

    @classmethod
    def of(cls, images: ImageSet, new: ImageSet, known: Known) -> Checks:
        """Collect the check images of an update; ``new`` are those of ``images`` that come with it."""
        fresh = np.isin(images.ids, new.ids)
        weight = np.zeros(len(images))
        present = np.unique(images.labels).tolist()
        for label in present:
            here = images.labels == label
            times = sum(label in task.labels for task in known.tasks)
            share = 1 / times if (here & ~fresh).any() and (here & fresh).any() else 1.0
            for part, of in ((here & fresh, share), (here & ~fresh, 1 - share if share < 1 else 1.0)):
                weight[part] = of / max(1, part.sum()) / len(present)
        return cls(images, fresh, weight)

    def __len__(self) -> int:
        return len(self.images)

    def accuracy(
        self, scores: Float32[np.ndarray, "n c"], rows: NDArray[np.bool_] | None = None
    ) -> float | None:
        """Return the weighted fraction of right answers, over all or some rows; None where there are no such rows."""
        weight = self.weight if rows is None else self.weight * rows
        if not weight.sum():
            return None
        return float((weight * (scores.argmax(1) == self.images.labels)).sum() / weight.sum())

    def better(
        self, one: Float32[np.ndarray, "n c"], other: Float32[np.ndarray, "n c"]
    ) -> tuple[float, float]:
        """Return how much ``one`` is ahead of ``other`` in ``accuracy``, and the standard error of that over images.

        It is computed as if they had also disagreed on ``SPREAD`` more images, half of them each way, since few images
        underestimate the spread, or give 0. Weighted, n images are worth n' = 1 / sum_i w_i^2 of equal weight.
        """
        right = [(scores.argmax(1) == self.images.labels).astype(float) for scores in (one, other)]
        difference = right[0] - right[1]
        ahead = float((self.weight * difference).sum())
        equal = 1 / float((self.weight**2).sum())
        share = equal / (equal + SPREAD)
        squares = share * float((self.weight * difference**2).sum()) + 1 - share
        error = np.sqrt((squares - (share * ahead) ** 2) / (equal + SPREAD))
        return ahead, float(error / share)
