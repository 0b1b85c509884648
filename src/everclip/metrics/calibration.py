"""Measure how reliable probabilities are, and find the one temperature that makes them reliable.

    p_i = softmax( z_i / T ),   z_i the logits of image i,   T = argmin_T - mean_i log p_i[y_i]      on held-out images

Temperature scaling (Guo et al. 2017, https://arxiv.org/abs/1706.04599, section 4.2) changes no prediction: the order of
the classes stays. The objective is convex in 1 / T, so its minimum is where its derivative crosses 0. If every image is
classified correctly it never does: the smaller T, the better. The expected calibration error is theirs too (section 2):
images in 15 bins of equal width by the probability of their class,

    ECE = sum_b |b| / n * | accuracy(b) - mean probability(b) |
"""

from __future__ import annotations

import math
from typing import Annotated

import numpy as np
from jaxtyping import Bool, Float, Int64
from pydantic import BaseModel, ConfigDict, Field
from scipy import special

BINS = 15
"""Bins of the expected calibration error."""
LOWEST, HIGHEST = 1e-3, 1e3
"""Temperatures looked for."""
CHUNK = 1000
"""Images whose probabilities are computed at a time."""
FEW = 100
"""Images below which a fitted temperature is rough."""

Number = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Calibration(BaseModel):
    """A temperature, and what it was fitted on.

    The errors are measured on two halves in turn, each with the temperature fitted on the other half. On the images
    that a temperature was fitted on, they would flatter it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    temperature: float = Field(gt=0, allow_inf_nan=False, description="what logits are divided by")
    data: str = Field(description="the images that it was fitted on")
    images: int = Field(ge=1, description="how many")
    ece_before: Number = Field(description="expected calibration error with temperature 1")
    ece: Number = Field(description="and with one fitted on the other half")
    nll_before: Number = Field(description="mean negative log-likelihood with temperature 1")
    nll: Number = Field(description="and with one fitted on the other half")


def probabilities(logits: Float[np.ndarray, "n c"], temperature: float = 1.0) -> Float[np.ndarray, "n c"]:
    """Return softmax(logits / temperature), in double precision; 0 for a class with logit -inf."""
    return special.softmax(logits.astype(np.float64) / temperature, axis=1)


def expected_error(p: Float[np.ndarray, "n c"], truth: Int64[np.ndarray, " n"], bins: int = BINS) -> float:
    """Return the ECE in 0..1 of probabilities ``p``; ``truth`` is each image's column."""
    return error_of(p.max(axis=1), p.argmax(axis=1) == truth, bins)


def error_of(confidence: Float[np.ndarray, " n"], right: Bool[np.ndarray, " n"], bins: int = BINS) -> float:
    """Return the ECE in 0..1 of answers that are right or not, from the probability of each."""
    bin_of = bins_of(confidence, bins)
    gaps = np.bincount(bin_of, right, bins) - np.bincount(bin_of, confidence, bins)
    return float(np.abs(gaps).sum() / len(right))


def bins_of(confidence: Float[np.ndarray, " n"], bins: int = BINS) -> Int64[np.ndarray, " n"]:
    """Return the bin of each probability; bins are (lower, upper], so that 1 belongs to the last one."""
    return np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)


def likelihood(
    logits: Float[np.ndarray, "n c"], truth: Int64[np.ndarray, " n"], temperature: float = 1.0
) -> float:
    """Return the mean of -log p[truth], in nats; infinite where a true class has logit -inf."""
    logs = special.log_softmax(logits.astype(np.float64) / temperature, axis=1)
    return 0.0 - float(logs[np.arange(len(logs)), truth].mean())  # not -0.0 where every answer is certain


def none_best(logits: Float[np.ndarray, "n c"], truth: Int64[np.ndarray, " n"]) -> str | None:
    """Return why no temperature is best, as words for the classifier on these images; None if one is."""
    if (logits[np.arange(len(logits)), truth] == logits.max(axis=1)).all():
        return "always right"
    return "no better than chance" if _slope(logits, truth, 1 / HIGHEST) >= 0 else None


def best_temperature(logits: Float[np.ndarray, "n c"], truth: Int64[np.ndarray, " n"]) -> float:
    """Return the temperature with the least mean negative log-likelihood, from ``LOWEST`` to ``HIGHEST``, for images
    that have one (``none_best``)."""
    low, high = math.log(1 / HIGHEST), math.log(1 / LOWEST)

    def slope(log_sharpness: float) -> float:
        return _slope(logits, truth, math.exp(log_sharpness))

    if slope(low) >= 0:  # the objective is least at an end
        return HIGHEST
    if slope(high) <= 0:
        return LOWEST
    # imported here, as it takes as long as numpy, and few commands calibrate
    from scipy.optimize import root_scalar

    return math.exp(-root_scalar(slope, bracket=(low, high), xtol=1e-13).root)


def _slope(logits: Float[np.ndarray, "n c"], truth: Int64[np.ndarray, " n"], sharpness: float) -> float:
    """Return the derivative of the objective in 1 / T, which grows with 1 / T."""
    total = 0.0
    for start in range(0, len(logits), CHUNK):  # all at once, in doubles, would fill the memory
        part, own = logits[start : start + CHUNK], truth[start : start + CHUNK]
        # -inf would make 0 * inf below; a class that cannot be chosen weighs nothing either way
        finite = np.where(np.isfinite(part), part, 0).astype(np.float64)
        expected = (probabilities(part, 1 / sharpness) * finite).sum(axis=1)
        total += (expected - finite[np.arange(len(finite)), own]).sum()
    return total / len(logits)


def fit(logits: Float[np.ndarray, "n c"], truth: Int64[np.ndarray, " n"], data: str) -> Calibration:
    """Return the temperature of all images, with errors measured by halves (see Calibration); a half that has no best
    temperature leaves the other half unscaled.

    Args:
        truth: each image's column, whose logit must not be -inf.
        data: name of the images, for the record.
    """
    even = np.arange(len(truth)) % 2 == 0
    scaled = np.empty(logits.shape)
    for fitted, measured in ((even, ~even), (~even, even)):
        half = logits[fitted], truth[fitted]
        temperature = best_temperature(*half) if fitted.any() and none_best(*half) is None else 1.0
        scaled[measured] = logits[measured] / temperature
    return Calibration(
        temperature=best_temperature(logits, truth),
        data=data,
        images=len(truth),
        ece_before=expected_error(probabilities(logits), truth),
        ece=expected_error(probabilities(scaled), truth),
        nll_before=likelihood(logits, truth),
        nll=likelihood(scaled, truth),
    )
