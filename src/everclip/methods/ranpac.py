"""Ridge regression on random projections of frozen features (RanPAC, McDonnell et al. 2023).

    h = relu(P' x),  P in R^{d x M} with entries N(0, 1), drawn once
    W = (G + lam I)^-1 Q,    G = sum_i h_i h_i',  Q = sum_i h_i y_i',    scores W' h

over the images of all tasks. lam is chosen at each task as in the authors' code: the one of 1e-8, 1e-7, ..., 1e8 whose
solution on 80 % of the task's images has the least squared error on the rest; so it depends on the order of tasks.
`lam_choice=seen` also fits on the sums of earlier tasks; with `gcv`, from all sums, and `fixed` the classifier does not
depend on the order. `width=0` leaves the projection out.

The paper adapts the model to the first task and freezes it after; `adapt` does so by a loss of this package, on what
`tune` and the rates of [train] say, where the authors train an adapter with cross-entropy. Their CLIP results are
without it, as is the default. They use pooled features (`feature=pooled`). A label that was never trained scores -inf.

    Parameters  none
    State       M x M sums, M sums per class (fp64); the projection is drawn again
    Passes      1 of the image tower in all; in the first task those of adapt too
    Exemplars   none

Paper: https://arxiv.org/abs/2307.02251
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from everclip.methods.base.method import Prompts
from everclip.methods.shared.ridge import RidgeConfig, RidgeMethod


class RanPac(RidgeMethod):
    """Random projection and ridge regression."""

    class Config(RidgeConfig):
        search: ClassVar = {"lam_choice": ("task", "seen")}

        width: int = Field(
            default=10_000,
            ge=0,
            description="M, random features; the state has M x M numbers (800 MB at 10000); 0: none",
        )
        lam_choice: Literal["gcv", "fixed", "task", "seen"] = Field(
            default="task",
            description="how to choose lam: the best of 1e-8, 1e-7, ..., 1e8 on a fifth of each new task's"
            " images, fitted on the rest of them (task) or on that and all earlier tasks (seen); by"
            " generalised cross-validation on the sums, unless lam is given (gcv), which takes minutes at M"
            " = 10000; or lam itself (fixed)",
        )

    config: Config

    def __init__(self, config: Config, prompts: Prompts) -> None:
        super().__init__(config, prompts)
        self.widen(config.width)
