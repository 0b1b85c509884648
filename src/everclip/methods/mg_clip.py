"""Low-rank updates that stop early, and a visual head that compensates (MG-CLIP, Huang et al. 2025).

    W_k, W_v <- W + B A / r                            in every block of both towers, one set for all tasks
    tune     CE( s <z_i, e_k> over the task's own classes ) for `epochs` epochs
    head     H starts at the class means of z;  CE( cos(z, H_k) over the task's own classes ), without a temperature
    score    ( softmax( softmax( s <z, e_k> ) ) + 4 softmax( cos(z, H_k) ) ) / 5                over the classes seen

The authors tune on the first task until N, the mean logit of wrong classes, has moved by more than a tenth, |N0 - N| /
N0 > 0.1, and give every task as many epochs as were finished before that: 1 for CIFAR-100, 2 for ImageNet-100 and -R.
Here `epochs` is an option, and the log says at the first task's end how far N has moved. The text side goes through
softmax twice in the code, which keeps both sides comparable (`test=twice`). Exemplars, if any, enter the first loss
with `replay_weight`, over all classes seen. A class that recurs starts its row at the mean of all its images (ours).

    Parameters  updates of rank 8: 2.0 MB for a ViT-B/16 (fp32); a head
    State       these, and a sum per class
    Passes      1 of the image tower; 1 of the text tower for each class seen; then 4 epochs with a frozen tower
    Exemplars   trains on exemplars and new images; published without exemplars: memory.budget=0

Paper: https://arxiv.org/abs/2507.09118
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from everclip.data.images import ImageSet
from everclip.methods.base.cost import Passes
from everclip.methods.base.method import Batch, Clip, Images, MethodConfig, Phase, Prompts, Task
from everclip.methods.shared.frozen import raw_prompts
from everclip.methods.shared.head import Columns, columns
from everclip.methods.shared.prototypes import READ
from everclip.methods.shared.tuned import Tuned, mixed, moved

log = logging.getLogger("everclip")
HEAD = "head"


class MgClip(Tuned):
    """Early-stopped low-rank updates, and a visual head."""

    class Config(MethodConfig):
        rates: ClassVar = ("lr_head",)
        search: ClassVar = {"epochs": (1, 2, 4), "rank": (4, 8, 16)}
        search_first: ClassVar = ("epochs",)

        epochs: int = Field(default=1, ge=1, description="E: epochs of the updates in each task")
        rank: int = Field(default=8, ge=1, description="r: rank of the updates")
        head_epochs: int = Field(default=3, ge=1, description="epochs of the visual head")
        replay_weight: float = Field(default=0.1, ge=0, description="weight of the loss on exemplars")
        test: Literal["twice", "once"] = Field(
            default="twice", description="how often the text side goes through softmax"
        )

    config: Config
    passes = Passes(lambda stage: (0.2, 0.8), "seen", after=(0.0, 1.0), frozen=lambda stage: 0.0)

    def __init__(self, config: Config, prompts: Prompts) -> None:
        super().__init__(config, prompts)
        self.rank, self.rows = config.rank, nn.Parameter(torch.zeros(1, 1))
        self._own: list[int] = []

    def build(self, clip: Clip, width: int) -> None:
        super().build(clip, width)
        self.rows = nn.Parameter(torch.zeros(len(self.prompts.names), width, device=clip.device))

    def phases(self, task: Task) -> list[Phase]:
        return [Phase("tune", self.config.epochs), READ, Phase(HEAD, self.config.head_epochs, data="new")]

    def begin_task(self, clip: Clip, task: Task, train: ImageSet) -> None:
        super().begin_task(clip, task, train)
        self._own = list(task.classes)

    def begin_phase(self, clip: Clip, phase: Phase) -> None:
        """Start the task's rows of the head at class means."""
        if phase.name == HEAD:
            with torch.no_grad():
                places = self.places(torch.tensor(self._own))
                self.rows[self._own] = normalize(self.prototypes()[places], dim=1)

    def trainable(self, clip: Clip, phase: Phase) -> Iterator[nn.Parameter]:
        yield from [self.rows] if phase.name == HEAD else self.updates.parameters()

    def encode(self, clip: Clip, batch: Batch, phase: Phase) -> dict[str, Tensor]:
        if phase.name == READ.name:
            return self.read(clip, batch)
        scale = clip.logit_scale.exp()
        if phase.name == HEAD:
            with torch.no_grad():
                return {"image": self.features(clip, batch.images), "scale": scale}
        prompts = self.prompts.caption(self.seen, batch.rng("captions"))
        with self.updates.beside(clip.model):
            classes = normalize(raw_prompts(clip, prompts), dim=1)
            return {"image": clip.encode_image(batch.images), "classes": classes, "scale": scale}

    def loss(self, features: Mapping[str, Tensor], batch: Batch, phase: Phase) -> dict[str, Tensor]:
        if phase.name == READ.name:
            return dict(features)
        z, target = features["image"], columns(self._own, batch.labels).to(features["image"].device)
        if phase.name == HEAD:
            cosines = z @ normalize(self.rows[self._own], dim=1).T
            return {"head": cross_entropy(cosines, target)}
        logits, places = features["scale"] * z @ features["classes"].T, self.places(batch.labels).to(z.device)
        own, new = self.places(torch.tensor(self._own)).tolist(), batch.current.to(z.device)
        terms = {"cross_entropy": cross_entropy(logits[new][:, own], target[new])} if new.any() else {}
        if not new.all():
            terms["replay"] = self.config.replay_weight * cross_entropy(logits[~new], places[~new])
        return terms

    @torch.no_grad()
    def end_task(self, clip: Clip, task: Task, new: Iterable[Batch], memory: Iterable[Batch]) -> None:
        """Take class means from plain images; say after the first task how far wrong logits have moved."""
        parts: list[tuple[Tensor, ...]] = []
        for batch, rows in self.reread(clip, new):
            if not task.index:
                parts.append((clip.encode_image(batch.images), rows, batch.labels))
        if task.index:
            return
        plain, tuned, labels = (torch.cat(column) for column in zip(*parts, strict=True))
        before = self.wrong(clip, plain, labels, tuned=False)
        after = self.wrong(clip, tuned, labels, tuned=True)
        text = "%s: logits of wrong classes %.2f before, %.2f after, moved by %.3f"
        log.info(text, task.name, before, after, moved(before, after))

    @torch.no_grad()
    def classifier(self, clip: Clip, labels: tuple[int, ...]) -> nn.Module:
        known = [label for label in self.seen if self.rows[label].any()]
        text, rows = self.embed(clip, known), normalize(self.rows[known], dim=1)
        scale, twice = clip.logit_scale.exp(), self.config.test == "twice"

        def score(images: Images) -> Float[Tensor, "b c"]:
            z = self.features(clip, images)
            return mixed(scale * z @ text.T, z @ rows.T, twice).log()

        return Columns(score, known, labels)
