"""Ridge regression on random or kernel features, fused with zero-shot CLIP (RAIL, Xu et al. 2024): no training.

    primal   r = W' h,  h = relu(P' z),  W = (sum h h' + lam I)^-1 sum h y'        P uniform in +-1/sqrt(d), drawn once
    dual     r = A' k(z),  k_i = exp(-g |z - z_i|^2),  A = (K + lam' I)^-1 Y       over the images of all tasks
    p        = softmax( scale <z, e_k> ) over the names
    score    = (1 - beta) p + beta r,  r = 0 for a name never trained;   p alone where argmax p was never trained

over all images so far, y one-hot. The authors' recursion over R = (G + lam I)^-1 gives the same W, whatever the order,
with lam once and not with each task. The dual form keeps the features of all images in fp64, four thousand bytes each
at d = 512, which its state counts: compare it with methods that have as much memory.

`names=all` is the authors' setting: the softmax also runs over the names of future classes, which the method then knows
in advance. By default it runs over the trained ones among the labels asked for. An untrained name that is asked for too
does not change their scores: it wins where it is argmax p over all names asked for, and nowhere else.

    Parameters  none
    State       M x M sums, M sums per class (fp64; 1.8 GB at M = 15000), the random layer is drawn again; or d numbers
                (fp64) per image
    Passes      1 of the image tower in all
    Exemplars   none; kernel=dual keeps the features of all images

Paper: https://arxiv.org/abs/2406.18868
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float, Float64
from pydantic import Field
from torch import Tensor, nn

from everclip.errors import UserError
from everclip.methods.base.method import Classifier, Clip, Images, Prompts
from everclip.methods.shared.ridge import LamConfig, RidgeMethod, Weights
from everclip.methods.shared.statistics import Labels, Rows
from everclip.methods.shared.weights import Kept


class Rail(Kept, RidgeMethod):
    """A ridge adapter added to zero-shot CLIP."""

    class Config(LamConfig):
        search: ClassVar = {"beta": (0.2, 0.5, 0.8, 1.0), "lam": (0.01, 0.1, 1.0)}

        lam: float | None = Field(
            default=0.1,
            gt=0,
            description="strength of the primal ridge, unless lam_choice is task or seen; none: by lam_choice",
        )
        lam_unit: Literal["relative", "absolute"] = Field(
            default="absolute", description="lam as a multiple of the mean of G's diagonal, or as it is"
        )
        kernel: Literal["primal", "dual"] = Field(
            default="primal",
            description="random features, or a Gaussian kernel on the features of all images",
        )
        width: int = Field(default=15_000, ge=0, description="M, random features; 0: the features themselves")
        gamma: float = Field(default=0.1, gt=0, description="g: factor in the kernel's exponent")
        dual_lam: float = Field(default=0.001, gt=0, description="lam': strength of the dual ridge")
        beta: float = Field(
            default=0.8, ge=0, le=1, description="weight of the regression; zero-shot gets the rest"
        )
        names: Literal["asked", "all"] = Field(
            default="asked",
            description="names in the softmax: of the labels asked for, or of the whole data set, later ones too",
        )

    config: Config
    uniform = True

    def __init__(self, config: Config, prompts: Prompts) -> None:
        super().__init__(config, prompts)
        self.dual = config.kernel == "dual"
        if self.dual and config.class_weights:
            raise UserError("method.kernel=dual has no weights of classes: use method.class_weights=false")
        self.widen(0 if self.dual else config.width)
        self.can(needs_text=True)

    def add(self, rows: Rows, labels: Labels, weights: Weights | None = None) -> None:
        super().add(rows, labels, weights)
        if self.dual:
            for name, more in (("rows", rows), ("labels", labels)):
                self.kept[name] = torch.cat([self.kept[name], more]) if name in self.kept else more

    def regression(
        self, clip: Clip, labels: list[int]
    ) -> Callable[[Float[Tensor, "b d"]], Float64[Tensor, "b c"]]:
        """Return the map from unit-length features to r."""
        if not self.dual:
            weight, _ = self.solve(clip, labels)
            return lambda features: self.rows(features) @ weight
        known, gamma = self.kept["rows"], self.config.gamma
        inner = gaussian(known, known, gamma)
        inner.diagonal().add_(self.config.dual_lam)
        targets = self.summed.targets(self.kept["labels"])
        alpha = torch.cholesky_solve(targets, torch.linalg.cholesky(inner))[:, labels]
        return lambda features: gaussian(self.rows(features), known, gamma) @ alpha

    @torch.no_grad()
    def classifier(self, clip: Clip, labels: tuple[int, ...]) -> nn.Module:
        names = range(len(self.prompts.names)) if self.config.names == "all" else labels
        text = self.embed(clip, names)
        known = (self.counts > 0).to(text.device)
        classifier = Fused(clip, text, known[[*names]], self.config.beta, self.config.names == "all")
        classifier.columns = [list(names).index(label) for label in labels]
        trained = known[[*labels]].to(self.sums.device)
        if classifier.known.any():
            regress = self.regression(clip, [*labels])
            classifier.regress = lambda features: regress(features) * trained
        return classifier


class Fused(Classifier):
    """Mix zero-shot probabilities with the scores of a regression.

    Args:
        text: unit-length embeddings of the names in the softmax; known: which of these have been trained.
        told: whether the softmax of trained names also has those that were never trained.

    Attributes:
        columns: the names that are asked for; regress: maps features to r of these names.
    """

    def __init__(
        self, clip: Clip, text: Float[Tensor, "n d"], known: Bool[Tensor, " n"], beta: float, told: bool
    ) -> None:
        super().__init__()
        self.clip, self.text, self.known, self.beta, self.told = clip, text, known, beta, told
        self.scale = self.to_logits = clip.logit_scale.exp().item()
        self.columns = [*range(len(text))]
        self.regress: Callable[[Tensor], Tensor] | None = None

    def forward(self, images: Images) -> Float[Tensor, "b c"]:
        return self.mix(self.clip.encode_image(images))

    def mix(self, features: Float[Tensor, "b d"]) -> Float[Tensor, "b c"]:
        """Return the scores of unit-length features."""
        logits = self.scale * features @ self.text.T
        p = logits.softmax(1)
        seen = self.known[p.argmax(1)][:, None]
        if self.regress is None:
            return p[:, self.columns]
        r = self.regress(features).to(p)
        if self.told:
            p = p[:, self.columns]
            return torch.where(seen, (1 - self.beta) * p + self.beta * r, p)
        own = logits.masked_fill(~self.known, -torch.inf).softmax(1)
        mixed = (1 - self.beta) * own + self.beta * r
        # A name never trained is above all others where the gate is closed, and below them where it is open.
        least, most = (end(mixed, dim=1, keepdim=True) for end in (torch.amin, torch.amax))
        return torch.where(self.known, mixed, p + torch.where(seen, least - 1, most))


def gaussian(
    one: Float64[Tensor, "b d"], other: Float64[Tensor, "n d"], gamma: float
) -> Float64[Tensor, "b n"]:
    """Return exp(-g |a - b|^2) of all pairs of rows."""
    return (-gamma * torch.cdist(one, other).square()).exp()
