"""Define what a memory policy is. The memory knows this class and no policy's name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from everclip.config.sections import Section
from everclip.data.images import ImageSet


@dataclass(frozen=True, eq=False)
class Pool:
    """What a policy chooses from when a task has ended: the exemplars held so far, then the task's images.

    Args:
        images: their ``labels``, ``domains`` and ``ids``; the arrays that follow have an entry for each of them.
        task: int64 ``[n]``, number of the task that an image came with, from 0.
        tasks: number of tasks that have ended, including this one.
        ranks: int64 ``[n]``, what ``Policy.ranks`` gave an image; -1 where it gave none.
        priority: float64 ``[n]`` from 0 to 1, the same for an image as long as it is held; the lowest are kept first. A
            random number from seed and id; ranks lie below all of these.
        scores: float64 ``[n]``, at least 0; None where the policy does not read them, or nothing can give them.
        budget: largest number of images to keep, at least 1.
        quota: largest number of them per class, where classes have equal shares.
        classes: number of classes seen.
        seed: for what a policy draws itself (``seeding.hash64``).
    """

    images: ImageSet
    task: NDArray[np.int64]
    tasks: int
    ranks: NDArray[np.int64]
    priority: NDArray[np.float64]
    scores: NDArray[np.float64] | None
    budget: int
    quota: int
    classes: int
    seed: int


class Policy:
    """A rule for which images stay in the memory.

    A concrete policy lives in a file of its own, is final, and may have a nested ``Config`` whose fields are its
    options; they stand in the section ``memory``. It keeps no state: what it knows of an image is in the pool.
    """

    class Config(Section):
        """No options."""

    features: ClassVar[bool] = False
    """Whether it ranks a task's images by the method's features of them (``ranks``)."""
    scores: ClassVar[bool] = False
    """Whether it reads the method's scores, which are computed anew for the whole pool after each task."""
    per_class: ClassVar[bool] = True
    """Whether each class has the same quota, known beforehand, for the log."""
    keeps: ClassVar[Literal["part", "all", "none"]] = "part"
    """What stays: a part, as ``choose`` says; or everything or nothing, whatever the budget."""

    def __init__(self, config: Section | None = None) -> None:
        self.config = self.Config() if config is None else config

    def ranks(self, new: ImageSet, features: Float[np.ndarray, "n d"]) -> NDArray[np.int64]:
        """Return a number from 0 for each of a task's images, which stays with it; called where ``features`` is true.

        Args:
            features: unit length, of the images in their order.
        """
        raise NotImplementedError(f"{type(self).__name__} ranks nothing")

    def choose(self, pool: Pool) -> NDArray[np.int64]:
        """Return positions in the pool of the images to keep, at most ``pool.budget``, in any order; called where
        ``keeps`` is "part"."""
        raise NotImplementedError(f"{type(self).__name__} chooses nothing")
