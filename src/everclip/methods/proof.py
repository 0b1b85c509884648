"""A projection per task on both sides, prototypes and context, fused by attention (PROOF, Zhou et al. 2025).

    Z = unit( sum_j I_j f ),   E = unit( sum_j T_j e ),   P = unit( sum_j I_j p_k )           j over tasks
    Q = [ Z_i ; E ; P ; c ],   O = LayerNorm( Q + W_o softmax( Q W_q' (Q W_k')' / sqrt d ) Q W_v' + b )
    loss  = CE( Z~ E~' ) + CE( Z~ P~' ) + third term            over `classes`, neither scaled nor normalised
    score = F E' + Z~ E~' + Z~ P~'

f and e are features as the frozen towers give them, p_k the mean of unit-length f over the images of class k, c three
rows of context per task, ~ an output of the attention. Projections and context of earlier tasks are frozen; the paper
freezes text projections too, the code trains all of them (`text=code`). The third term is the loss of `clip` on Z and
E of the batch's own classes in the code (`third=pairs`), and in the paper, as far as it could be read, the CE of
Z E' (`third=classes`). `classes` are those with images now. The logit scale trains.

In training E~ and P~ are means over the batch. At test the code takes them over the test batch, whose images it sorts
by class, with F = sum_j I_j f not normalised (`test=batch`); the default scores each image alone, with F = Z (ours).
Prototypes are read in a phase of one epoch before training and once more, from plain images, after it.

    Parameters  two d x d layers and three rows per task; attention of 4 d^2, the logit scale
    State       these, a mean per class: 2.1 MB per task, 4.2 MB and 2 kB per class (fp32) at d = 512
    Passes      1 of the image tower, without gradient; one more epoch for the prototypes
    Exemplars   trains on exemplars and new images

Paper: https://arxiv.org/abs/2305.19270
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from everclip.data.images import ImageSet
from everclip.losses.contrastive import clip_loss
from everclip.methods.base.method import Batch, Capabilities, Clip, Images, MethodConfig, Phase, Prompts, Task
from everclip.methods.shared.attention import Attend
from everclip.methods.shared.classify import softmax_classes, softmax_labels
from everclip.methods.shared.frozen import random, total
from everclip.methods.shared.head import Columns, columns
from everclip.methods.shared.prototypes import READ, Prototypes


class Proof(Prototypes):
    """Projections that add up, and attention over them."""

    class Config(MethodConfig):
        rates: ClassVar = ("lr_head",)
        # a tenth of the authors' rate, which is for SGD
        recommends: ClassVar = {"lr_head": 1e-4}
        search: ClassVar = {"third": ("pairs", "classes")}

        text: Literal["paper", "code"] = Field(
            default="paper", description="text projections that train: the newest, or all"
        )
        classes: Literal["seen", "present"] = softmax_classes()
        third: Literal["pairs", "classes"] = Field(
            default="pairs", description="third term of the loss: that of clip on pairs, or CE over classes"
        )
        test: Literal["image", "batch"] = Field(
            default="image", description="outputs of class tokens at test: of each image, or the batch's mean"
        )
        dropout: float = Field(default=0.1, ge=0, lt=1, description="dropout of the attention and its output")

    config: Config
    capabilities = Capabilities(memory_policy="herding", centers=False)

    def __init__(self, config: Config, prompts: Prompts) -> None:
        super().__init__(config, prompts)
        self.image, self.words, self.context = nn.ModuleList(), nn.ModuleList(), nn.ParameterList()
        self.attend = Attend(1, config.dropout)
        self._labels: list[int] = []

    def build(self, clip: Clip, width: int) -> None:
        self.attend = Attend(width, self.config.dropout)
        super().build(clip, width)

    def widen(self, clip: Clip, task: Task) -> None:
        super().widen(clip, task)
        width = self.text.shape[1]
        self.image.append(nn.Linear(width, width))
        self.words.append(nn.Linear(width, width))
        self.context.append(nn.Parameter(torch.randn(3, width)))

    def begin_task(self, clip: Clip, task: Task, train: ImageSet) -> None:
        super().begin_task(clip, task, train)
        self._labels = softmax_labels(self.config.classes, self.seen, train)

    def phases(self, task: Task) -> list[Phase]:
        return [READ, Phase()]

    def trainable(self, clip: Clip, phase: Phase) -> Iterator[nn.Parameter]:
        yield from self.image[-1].parameters()
        yield from (self.words if self.config.text == "code" else self.words[-1]).parameters()
        yield self.context[-1]
        yield from self.attend.parameters()
        if phase.name != READ.name:
            yield clip.logit_scale

    def projected(self, words: Tensor) -> tuple[Float[Tensor, "c d"], Float[Tensor, "c d"]]:
        """Return E and P."""
        texts, means = total(self.words, words), total(self.image, self.prototypes())
        return normalize(texts, dim=1), normalize(means, dim=1)

    def encode(self, clip: Clip, batch: Batch, phase: Phase) -> dict[str, Tensor]:
        if phase.name == READ.name:
            return self.read(clip, batch)
        raw, scale = self.raw(clip, batch.images), clip.logit_scale.exp()
        with torch.autocast(clip.device.type, enabled=False):  # what enters the loss is fp32
            z, (e, p) = normalize(total(self.image, raw), dim=1), self.projected(self.words_seen(clip))
            found = self.attend(z, e, p, torch.cat([*self.context]), random(batch, "dropout", clip.device))
        images, *classes = (part if part.ndim == 2 else part.mean(0) for part in found)
        return {"z": z, "e": e, "scale": scale, "fused": images, "text": classes[0], "means": classes[1]}

    def loss(self, features: Mapping[str, Tensor], batch: Batch, phase: Phase) -> dict[str, Tensor]:
        if phase.name == READ.name:
            return dict(features)
        where, scale, fused = self.places(torch.tensor(self._labels)), features["scale"], features["fused"]
        target = columns(self._labels, batch.labels).to(fused.device)
        terms = {name: cross_entropy(fused @ features[name][where].T, target) for name in ("text", "means")}
        if self.config.third == "pairs":
            third = clip_loss(features["z"], features["e"][where][target], scale)
        else:
            third = cross_entropy(scale * features["z"] @ features["e"][where].T, target)
        return terms | {self.config.third: third}

    @torch.no_grad()
    def classifier(self, clip: Clip, labels: tuple[int, ...]) -> nn.Module:
        e, p = self.projected(self.words_seen(clip))

        def score(images: Images) -> Float[Tensor, "b c"]:
            return self.compare(self.raw(clip, images), e, p)

        return Columns(score, self.seen, labels)

    def compare(
        self, raw: Float[Tensor, "b d"], e: Float[Tensor, "c d"], p: Float[Tensor, "c d"]
    ) -> Float[Tensor, "b c"]:
        """Return the scores of images by their features."""
        plain, each = total(self.image, raw), self.config.test == "image"
        first = normalize(plain, dim=1) if each else plain
        z, *classes = self.attend(first, e, p, torch.cat([*self.context]))
        texts, means = (part if each else part.mean(0, keepdim=True) for part in classes)
        return first @ e.T + ((texts + means) * z[:, None]).sum(2)
