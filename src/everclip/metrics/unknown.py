"""Tell images of unknown classes from those of known ones by a score that is higher for the unknown.

A threshold for a stated rate a of false alarms, from the scores s_(1) <= ... <= s_(n) of held-out images of known
classes (split conformal prediction: Vovk et al. 2005; Lei et al. 2018, https://arxiv.org/abs/1604.04173, section 2.2):

    t = s_(k),  k = ceil( (n + 1) (1 - a) ),        an image is unknown if its score is above t

A further image of known classes that is drawn as these were is called unknown with probability at most a, whatever the
score and however few images there are. But n has to be at least 1 / a - 1, or there is no such k.

How well a score tells two sets apart (Hendrycks and Gimpel 2017, https://arxiv.org/abs/1610.02136; Liang et al. 2018,
https://arxiv.org/abs/1706.02690): AUROC, the probability that an unknown image has a higher score than a known one, and
FPR95, the fraction of unknown images that pass where 95 % of the known ones do.
"""

from __future__ import annotations

import math
from typing import Annotated

import numpy as np
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, Field, model_validator

MOST = 999
"""Largest number of scores that are kept: rates down to 0.1 %."""
ROUNDING = 1e-9
"""Largest rounding error of a product of rate and count."""

Score = Annotated[float, Field(allow_inf_nan=False)]


class HeldOut(BaseModel):
    """The scores of held-out images of known classes."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    score: str = Field(min_length=1, max_length=40, description="which score it is")
    data: str = Field(description="the images")
    images: int = Field(ge=1, description="how many they were")
    scores: list[Score] = Field(min_length=1, max_length=MOST, description="their scores, sorted")

    @model_validator(mode="after")
    def _consistent(self) -> HeldOut:
        if self.scores != sorted(self.scores) or len(self.scores) > self.images:
            raise ValueError("scores are not sorted, or more than there were images")
        return self

    @property
    def finest(self) -> float:
        """The lowest rate of false alarms that can be asked for."""
        return 1 / (len(self.scores) + 1)

    def threshold(self, rate: float) -> float:
        """Return t for a rate from ``finest`` to 1; see the module."""
        assert self.finest - ROUNDING <= rate < 1
        return self.scores[max(1, math.ceil((len(self.scores) + 1) * (1 - rate) - ROUNDING)) - 1]


def held_out(score: str, data: str, values: Float[np.ndarray, " n"]) -> HeldOut:
    """Keep scores; of more than ``MOST``, so many order statistics, which guarantee the rate as all of them would.

    Args:
        values: at least one, all finite.
    """
    ordered, n = np.sort(values.astype(np.float64)), len(values)
    if n > MOST:  # the j-th of those kept is at or above the fraction j / (MOST + 1)
        ordered = ordered[-(-np.arange(1, MOST + 1) * (n + 1) // (MOST + 1)) - 1]
    return HeldOut(score=score, data=data, images=n, scores=ordered.tolist())


def images_for(rate: float) -> int:
    """Return the least number of held-out images for a rate of false alarms; rates below 1e-18 count as 1e-18, whose
    inverse is finite."""
    return max(1, math.ceil(1 / max(rate, 1e-18) - 1 - ROUNDING))


def auroc(known: Float[np.ndarray, " n"], unknown: Float[np.ndarray, " m"]) -> float:
    """Return AUROC in 0..1; equal scores count half."""
    ordered = np.sort(known)
    below, up_to = np.searchsorted(ordered, unknown, "left"), np.searchsorted(ordered, unknown, "right")
    return float((below.mean() + up_to.mean()) / 2 / len(known))


def fpr95(known: Float[np.ndarray, " n"], unknown: Float[np.ndarray, " m"]) -> float:
    """Return FPR95 in 0..1."""
    passing = np.sort(known)[math.ceil(0.95 * len(known) - ROUNDING) - 1]
    return float((unknown <= passing).mean())
