"""Ridge regression on frozen features, accumulated over the tasks (ACIL, Zhuang et al. 2022): no training.

    W = argmin_W |X W - Y|^2 + lam |W - kappa E|^2 = (G + lam I)^-1 (Q + lam kappa E),    scores W' x
    G = sum_i x_i x_i',  Q = sum_i x_i y_i'

over the images of all tasks, y_i one-hot, no bias. The classifier is that of all images at once, whatever their order.
`expand` is ACIL's random layer: x becomes relu(P' x) with P uniform in +-1/sqrt(d), drawn once. ACIL has expand=8192
(CIFAR-100) and lam=0.1 with lam_unit=absolute. Its recursion over R = (G + lam I)^-1 gives the same W and cannot change
lam; lam is added once, not with each task. lam is chosen by generalised cross-validation, exactly, from the sums that
are kept, so it does not depend on the order of tasks either; `lam=0.3` fixes it, as a multiple of the mean of G's
diagonal, since a sum over n unit-length features grows with n.

`class_weights` is AIR's: each image counts 1 / n_k (per task where a class recurs in another domain). `prior=text` is
ours: E are the class embeddings (else 0), and kappa = <Q, E> / <E, G E> over the classes learned makes X kappa E the
nearest to Y, unless it is given. With little data or a large lam it is zero-shot CLIP. A label that was never trained
scores -inf; with the prior it has its column of W (`unseen=solved`), or kappa e_k (`unseen=text`).

    Parameters  none
    State       d x d sums, a sum of features per class (fp64); the random layer is drawn again
    Passes      1 of the image tower in all; in the first task those of adapt too
    Exemplars   none

Paper: https://arxiv.org/abs/2205.14922
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field

from everclip.errors import UserError
from everclip.methods.base.method import Clip, Prompts
from everclip.methods.shared import closed_form
from everclip.methods.shared.ridge import RidgeConfig, RidgeMethod
from everclip.methods.shared.statistics import Scores


class Ridge(RidgeMethod):
    """Ridge regression, with a random layer or a text prior."""

    class Config(RidgeConfig):
        expand: int = Field(default=0, ge=0, description="width of ACIL's random layer; 0: none")
        prior: Literal["none", "text"] = Field(
            default="none", description="target of the ridge penalty: zero, or the class embeddings"
        )
        kappa: float | None = Field(
            default=None, gt=0, description="scale of the class embeddings; none: fitted to the sums"
        )
        unseen: Literal["solved", "text"] = Field(
            default="solved",
            description="with the prior, weights of labels never trained: as solved, or their embedding",
        )

    config: Config
    uniform = True

    def __init__(self, config: Config, prompts: Prompts) -> None:
        super().__init__(config, prompts)
        self.widen(config.expand)
        self.can(needs_text=config.prior == "text")
        if config.prior == "text" and (config.expand or config.feature == "pooled"):
            raise UserError(
                "method.prior=text needs features that class embeddings can be compared with:"
                " use method.feature=projected and method.expand=0"
            )

    def solve(self, clip: Clip, labels: list[int]) -> Scores:
        if self.config.prior == "none":
            return super().solve(clip, labels)
        learned = self.counts > 0
        text = torch.zeros_like(self.sums)
        wanted = sorted({*labels, *learned.nonzero()[:, 0].tolist()})
        text[wanted] = self.embed(clip, wanted).to(text.device).double()
        kappa = self.config.kappa or closed_form.text_scale(self.gram, self.sums[learned].T, text[learned].T)
        prior = kappa * text[labels].T
        lam = self.strength(kappa * torch.where(learned[:, None], text, 0.0).T)
        weight = closed_form.ridge(self.gram, self.sums[labels].T, lam, prior)
        if self.config.unseen == "text":
            weight = torch.where(learned[labels], weight, prior)
        return weight, torch.zeros_like(weight[0])
