"""Score how unknown a picture looks to a model, and compare the score with a threshold for a rate of false alarms.

    maximum_logit            - max_k z_k, z the logits at temperature 1 (Hendrycks et al. 2022,
                             https://arxiv.org/abs/1911.11132, section 3): any model
    mahalanobis              the distance to the nearest class mean under the pooled covariance, and
    relative_mahalanobis     that minus the distance to all images (methods/shared/mahalanobis.py): a closed form whose
                             own sums know every class

All are higher for the unknown. The last one that a model has is its own score: benchmarks/unknown.md says why. It does
not depend on the temperature, so a new temperature leaves thresholds as they are (metrics/unknown.py).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from everclip.data.images import ImageSet
from everclip.data.loader import Loader
from everclip.data.pixels import Pixels
from everclip.errors import RunError, UserError
from everclip.methods.base.method import sharpness
from everclip.methods.shared.mahalanobis import distances, usable
from everclip.methods.shared.mahalanobis import left_out as distances_left_out
from everclip.methods.shared.statistics import Linear, Statistics
from everclip.metrics.unknown import ROUNDING, images_for
from everclip.models.clip import Images
from everclip.runs.words import several

if TYPE_CHECKING:
    from everclip.inference.model import Deployed

LOGIT, DISTANCE, RELATIVE = "maximum_logit", "mahalanobis", "relative_mahalanobis"
BATCH = 128


class Judge(nn.Module):
    """A model's classifier and some of its unknown scores, from one pass of its tower.

    Args:
        names: of the scores.
    """

    def __init__(self, model: Deployed, names: Sequence[str]) -> None:
        super().__init__()
        self.classifier, self.names = model.classifier, tuple(names)
        self.sharpness = sharpness(self.classifier)
        self.distances = nn.ModuleDict()
        if set(names) - {LOGIT}:
            assert model.plan is not None
            method = model.plan.method
            assert isinstance(method, Statistics)
            found = zip((DISTANCE, RELATIVE), distances(method, model.labels), strict=True)
            self.distances = nn.ModuleDict({name: one for name, one in found if name in names})

    def forward(self, images: Images) -> tuple[Float[Tensor, "b c"], Float[Tensor, "b n"]]:
        """Return scores of the classifier, and unknown scores."""
        if isinstance(self.classifier, Linear):
            return self.of_rows(self.classifier.encode(images))
        return (scores := self.classifier(images)), self._unknown(scores, None)

    def of_rows(self, rows: Float[Tensor, "b m"]) -> tuple[Float[Tensor, "b c"], Float[Tensor, "b n"]]:
        """Return the same from features, for a linear classifier."""
        assert isinstance(self.classifier, Linear)
        return (scores := self.classifier.scored(rows)), self._unknown(scores, rows)

    def _unknown(self, scores: Tensor, rows: Tensor | None) -> Tensor:
        found = {name: distance(rows) for name, distance in self.distances.items()}
        found[LOGIT] = -self.sharpness * scores.amax(1)
        return torch.stack([found[name] for name in self.names], 1)


def available(model: Deployed) -> tuple[str, ...]:
    """Return the names of the unknown scores that a model has; the last is its own."""
    method = None if model.plan is None else model.plan.method
    if not isinstance(model.classifier, Linear) or not isinstance(method, Statistics):
        return (LOGIT,)
    return (LOGIT, DISTANCE, RELATIVE) if usable(method, model.labels) else (LOGIT,)


@torch.inference_mode()
def judged(
    model: Deployed, judge: Judge, images: Images
) -> tuple[Float[np.ndarray, "b c"], Float[np.ndarray, "b n"]]:
    """Return logits of images as the model takes them, and their unknown scores in the columns of ``judge.names``."""
    scores, unknown = judge(images)
    return (scores.double() * model.to_logits).cpu().numpy(), unknown.double().cpu().numpy()


def judged_all(
    model: Deployed, judge: Judge, images: ImageSet, pixels: Pixels
) -> tuple[Float[np.ndarray, "n c"], Float[np.ndarray, "n k"], Int64[np.ndarray, " n"]]:
    """Return the same for the readable images of a set, and their labels. Raises RunError if there are none, or where
    logits are not numbers."""
    batches = Loader(pixels, BATCH).plain(images, BATCH)
    found = [(*judged(model, judge, batch.images), batch.labels.numpy()) for batch in batches if len(batch)]
    if not found:
        raise RunError(f"not one of {len(images)} images can be read")
    logits, unknown, labels = (np.concatenate(column) for column in zip(*found, strict=True))
    if np.isnan(logits).any():
        raise RunError(f"{model.spec} gives NaN instead of logits: use another copy")
    return logits, unknown, labels


def maximum_logit(model: Deployed, scores: Float[np.ndarray, "n c"]) -> Float[np.ndarray, " n"]:
    """Return the unknown score of this name, from the classifier's scores."""
    return -sharpness(model.classifier) * scores.max(1).astype(np.float64)


def left_out(
    model: Deployed, name: str, rows: Float[Tensor, "n m"], labels: Int64[np.ndarray, " n"]
) -> Float[np.ndarray, " n"]:
    """Return an unknown score of images in a model's sums, from their features, each as if it had never been added.

    Args:
        name: not ``maximum_logit``, which does not come from the sums.
        labels: of the images.
    """
    assert model.plan is not None
    method = model.plan.method
    assert isinstance(method, Statistics)
    found = distances_left_out(method, rows.to(method.gram), torch.from_numpy(labels))
    return found[name == RELATIVE].cpu().numpy()


def read_rate(rate: Any, given: str) -> float:
    """Return a rate of false alarms, a number or a text such as 5% or 0.05. Raises UserError with ``given``, which says
    how it was given."""
    number, percent, rest = rate.strip().partition("%") if isinstance(rate, str) else (rate, "", "")
    try:
        found = float(number) / (100 if percent else 1)
    except (TypeError, ValueError, OverflowError):
        found = 0.0
    if rest or not 0 < found < 1:
        raise UserError(f"{given}: use a rate of false alarms above 0 and below 1, such as 5% or 0.05")
    return found


def least_rate(finest: float) -> str:
    """Return the lowest rate that is accepted in percent, rounded up: ``33.334``."""
    return f"{math.ceil(1e5 * finest - 1e-6) / 1e3:g}"


def threshold(model: Deployed, rate: float, unsaved: bool = False) -> float:
    """Return the unknown score above which a picture is unknown, for a rate of false alarms.

    Args:
        unsaved: whether the model is one of ``Learner`` that no folder holds.

    Raises:
        UserError: the model keeps no scores of held-out images, or too few for this rate.
    """
    held = model.unknown
    saved = "save(FOLDER), everclip predict FOLDER --calibrate DATA and Learner.load(FOLDER)"
    give = saved if unsaved else f"everclip predict {model.spec} --calibrate DATA"
    if held is None:
        what = f"scores of held-out images among these {several(len(model.labels), 'class')}"
        raise UserError(f"{model.spec} keeps no {what} to set a threshold by: use {give}")
    if held.score not in available(model):
        raise UserError(f"{model.spec} has no score {held.score} any more: use {give}")
    if rate < held.finest - ROUNDING:
        wanted, least = images_for(rate), f"{least_rate(held.finest)} %"
        raise UserError(
            f"a rate of {100 * rate:.3g} % needs {wanted} held-out images of known classes,"
            f" {wanted - held.images} more than the {held.images} of {model.spec}: use {least} or more, or"
            f" give {wanted} with {give}"
            if wanted > held.images
            else f"a rate of {100 * rate:.3g} % is finer than {least}, the finest that is kept"
        )
    return held.threshold(rate)
