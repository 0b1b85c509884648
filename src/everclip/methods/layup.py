"""Ridge regression on the concatenated last blocks of a frozen tower (LayUP, Ahrens et al. 2024): no training.

    x = [ c_L ; c_{L-1} ; ... ; c_{L-k+1} ],    W = (G + lam I)^-1 Q,    scores W' x
    G = sum_i x_i x_i',  Q = sum_i x_i y_i'

over the images of all tasks, c_l the class token after block l as it is (for a convolutional tower, which is ours, its
output and then the stages' means over positions), k = `blocks`, no bias. lam is chosen at each task as in the authors'
code (`lam_choice=folds`): the first of 1e-4, 10^-3.5, ..., 1e3 and 1e-8 with the highest mean accuracy over four folds
of the task's images (each class split in order), fitted on the other three folds and all earlier tasks. So it depends
on the order of tasks. A task whose classes all have fewer than four images leaves lam as it was. `gcv` and `fixed` do
not depend on the order.

The authors may tune a ViT on the first task by adapters, with a cosine head; here that is `adapt` with `tune`, by a
loss of this package. A label that was never trained scores -inf.

    Parameters  none
    State       kd x kd sums, kd sums per class (fp64): 170 MB at k = 6 and d = 768
    Passes      1 of the image tower in all; in the first task those of adapt too
    Exemplars   none

Paper: https://arxiv.org/abs/2312.08888
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal

import torch
from jaxtyping import Float, Float64, Int64
from pydantic import Field
from torch import Tensor

from everclip.methods.base.first_session import FirstSessionConfig
from everclip.methods.base.method import Prompts
from everclip.methods.shared.closed_form import Spectrum
from everclip.methods.shared.ridge import LamConfig, RidgeMethod, Weights
from everclip.methods.shared.statistics import Labels, Rows
from everclip.models.depths import Depths

LAMS = (*(10 ** (half / 2) for half in range(-8, 7)), 1e-8)
FOLDS = 4


class Layup(RidgeMethod):
    """Ridge regression on several blocks."""

    class Config(LamConfig, FirstSessionConfig):
        search: ClassVar = {"lam_choice": ("folds", "gcv"), "blocks": (1, 3, 6)}

        blocks: int = Field(
            default=6, ge=1, description="k: number of last blocks to read; all, if there are fewer"
        )
        lam_choice: Literal["folds", "gcv", "fixed", "task", "seen"] = Field(  # pyright: ignore[reportIncompatibleVariableOverride]
            default="folds",
            description="how to choose lam: by four folds of each new task's images (folds); by"
            " generalised cross-validation on the sums, unless lam is given (gcv); lam itself (fixed); or"
            " on a fifth of each new task's images, fitted on the rest (task) or also on all earlier tasks (seen)",
        )

    config: Config

    def __init__(self, config: Config, prompts: Prompts) -> None:
        super().__init__(config, prompts)
        self.read_at(Depths((1.0,) * config.blocks, root=False, mirror=False, raw=True))

    def choose(self, features: Float[Tensor, "b d"], labels: Labels, weights: Weights, order: Labels) -> None:
        """Set lam to the first of ``LAMS`` with the highest mean accuracy over the folds."""
        if self.config.lam_choice != "folds":
            super().choose(features, labels, weights, order)
            return
        if labels.bincount().max() < FOLDS:
            return
        root = weights.sqrt()[:, None]
        rows, targets = root * self.rows(features), root * self.summed.targets(labels)
        right = torch.zeros(len(LAMS), dtype=torch.float64)
        for held in folds(labels):
            fit = rows[~held].T
            gram, cross = torch.addmm(self.gram, fit, fit.T), torch.addmm(self.sums.T, fit, targets[~held])
            right += accuracies(Spectrum.of_gram(gram, cross), self.rows(features[held]), labels[held])
        self.chosen.fill_(LAMS[int(right.argmax())])


def accuracies(spectrum: Spectrum, rows: Rows, labels: Labels) -> Float64[Tensor, " l"]:
    """Return the accuracy of ridge regression on other rows at each of ``LAMS``."""
    guesses = spectrum.predictions(rows, LAMS)
    return torch.stack([(guess.argmax(1) == labels).double().mean() for guess in guesses]).cpu()


def folds(labels: Int64[Tensor, " n"]) -> Iterator[Tensor]:
    """Yield masks of four folds of nearly equal size, into which each class is cut in its order.

    As in scikit-learn's StratifiedKFold without shuffling: with labels sorted by the first appearance of their class,
    fold i gets as many images of a class as there are among every fourth label, from the i-th on.
    """
    classes = list(dict.fromkeys(labels.tolist()))
    ordered = torch.cat([labels[labels == label] for label in classes])
    place = torch.empty_like(labels)
    for label in classes:
        shares = torch.stack([(ordered[first::FOLDS] == label).sum() for first in range(FOLDS)])
        place[labels == label] = torch.arange(FOLDS, device=labels.device).repeat_interleave(shares)
    for fold in range(FOLDS):
        yield place == fold
