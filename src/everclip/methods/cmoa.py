"""CMoA: a mixture of convolutional adapters beside each branch of a vision transformer's blocks.

    x <- x + Attn(LN x) + s A(LN x),    x <- x + MLP(LN x) + s A'(LN x)
    A: down to 8 channels, activation, sum_a r_a f_a over the grid of patches, activation, up;    up starts at zero
    r = softmax of a router on the mean patch; f_a: 3 x 3 convolutions; the class token gets the mean of the f_a
    L = CE over the classes + w_s L_s + w_c L_c

L_s (`separate`, 0.2 from the second task on in the authors' script) is the mean over adapters and pairs of experts of
the cosine between their maps. L_c (`contrast`, 1.0 from the third task on) is the cross-entropy of an image's cosines
to class means of earlier tasks, divided by a temperature, for classes that had images then. Both are experimental and
off: the published code lacks them, so their form is ours. So are the frozen tower, the text classifier and the absence
of exemplars.

    Parameters  two adapters per block (15 thousand each at width 768); a linear head with method.head=linear
    State       these; a class mean (fp32) per class with method.contrast
    Passes      1 of the image tower with its adapters
    Exemplars   none

Paper: https://arxiv.org/abs/2302.05936
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import normalize

from everclip.data.images import ImageSet
from everclip.data.policies import herding_order
from everclip.losses.prototypes import mean_contrast
from everclip.methods.base.cost import Passes
from everclip.methods.base.method import Batch, Capabilities, Clip, Images, Phase, Prompts, Task
from everclip.methods.base.sample_table import SampleTable
from everclip.methods.shared.attention import demand_blocks
from everclip.methods.shared.classify import Classify, HeadConfig, LabelsConfig
from everclip.methods.shared.frozen import random
from everclip.methods.shared.head import Head, HeadClassifier, columns
from everclip.methods.shared.mixture import Mixtures, overlap
from everclip.methods.shared.represent import feature_width


class Cmoa(Classify):
    """Continual mixture of adapters."""

    class Config(HeadConfig, LabelsConfig):
        search: ClassVar = {"bottleneck": (8, 32), "scale": (0.3, 1.0, 3.0)}
        rates: ClassVar = ("lr_head",)  # of the adapters, with any head

        bottleneck: int = Field(default=8, ge=1, description="channels per adapter")
        experts: int = Field(default=3, ge=1, description="convolutions mixed in each adapter")
        scale: float = Field(default=1.0, description="s: weight of the adapters")
        dropout: float = Field(default=0.1, ge=0, lt=1, description="dropout of an adapter's values")
        backbone: Literal["frozen", "trained"] = Field(
            default="frozen", description="whether the image tower trains too"
        )
        separate: float = Field(default=0.0, ge=0, description="w_s: weight of L_s; experimental")
        separate_from: int = Field(default=2, ge=1, description="first task with L_s")
        contrast: float = Field(
            default=0.0, ge=0, description="w_c: weight of L_c; experimental, for domains"
        )
        contrast_from: int = Field(default=3, ge=2, description="first task with L_c")
        contrast_tau: float = Field(default=0.1, gt=0, description="temperature of L_c")
        herded: int = Field(default=5, ge=1, description="images per class mean of L_c, chosen by herding")

    config: Config
    capabilities = Capabilities(uses_memory=False, reads="pixels")
    passes = Passes(text="none")

    def __init__(self, config: Config, prompts: Prompts) -> None:
        super().__init__(config, prompts)
        self.mixtures = Mixtures(nn.Identity(), 1, 1, 0.0)  # none yet
        self.means = SampleTable(1)
        self._stage = 0
        self._texts = torch.zeros(0, 0)
        self.can(shares=config.dropout == config.separate == 0)

    def tables(self) -> dict[str, SampleTable]:
        return {"means": self.means}

    def grow(self, clip: Clip, task: Task) -> None:
        """Put the adapters in place at the first task. Raises UserError for a tower without transformer blocks."""
        super().grow(clip, task)
        if len(self.mixtures.layers):
            return
        config = self.config
        demand_blocks(clip, "cmoa", "adapters")
        made = Mixtures(clip.model.visual, config.bottleneck, config.experts, config.dropout)
        self.mixtures = made.to(clip.device)
        self.means = SampleTable(feature_width(clip))

    def begin_task(self, clip: Clip, task: Task, train: ImageSet) -> None:
        super().begin_task(clip, task, train)
        self._stage = task.index + 1
        with torch.no_grad():
            self._texts = self.embed(clip, self._labels)

    def trainable(self, clip: Clip, phase: Phase) -> Iterator[nn.Parameter]:
        yield from self.mixtures.parameters()
        if self.config.head == "linear":
            yield from self.head.parameters()
        if self.config.backbone == "trained":
            yield from (parameter for _, parameter in clip.image_parameters())

    def encode(self, clip: Clip, batch: Batch, phase: Phase) -> dict[str, Tensor]:
        config, draw = self.config, random(batch, "dropout", clip.device)
        with self.mixtures.beside(clip.model.visual, config.scale, draw) as maps:
            image = clip.encode_image(batch.images)
        features = {"image": image, "scale": clip.logit_scale.exp(), "classes": self._texts}
        if config.separate > 0 and config.experts > 1 and self._stage >= config.separate_from:
            features["overlap"] = torch.stack([overlap(part.float()) for part in maps]).mean()
        return features

    def loss(self, features: Mapping[str, Tensor], batch: Batch, phase: Phase) -> dict[str, Tensor]:
        terms = super().loss(features, batch, phase)
        if "overlap" in features:
            terms["separate"] = self.config.separate * features["overlap"]
        if self.config.contrast > 0 and self._stage >= self.config.contrast_from:
            image, known = features["image"], self.means.ids().tolist()
            means, target = self.means.get(known)[0].to(image), columns(known, batch.labels)
            loss = mean_contrast(image, means, target, self.config.contrast_tau)
            terms["contrast"] = self.config.contrast * loss
        return terms

    def features(self, clip: Clip, images: Images) -> Float[Tensor, "b d"]:
        with self.mixtures.beside(clip.model.visual, self.config.scale):
            return clip.encode_image(images)

    @torch.no_grad()
    def end_task(self, clip: Clip, task: Task, new: Iterable[Batch], memory: Iterable[Batch]) -> None:
        """Compute the class means of L_c; a class that recurs gets a new one."""
        if self.config.contrast == 0:
            return
        met = [(self.features(clip, batch.images).cpu(), batch.labels) for batch in new]
        rows, labels = (torch.cat(column) for column in zip(*met, strict=True))
        for label in labels.unique().tolist():
            own = rows[labels == label]
            first = herding_order(own.double().numpy())[: self.config.herded]
            self.means.set([label], normalize(own[torch.from_numpy(first)].mean(0, keepdim=True), dim=1))

    def classifier(self, clip: Clip, labels: tuple[int, ...]) -> nn.Module:
        head = self.head
        if self.config.head == "text":
            head = Head()
            head.grow(labels, self.embed(clip, labels))
        found = HeadClassifier(partial(self.features, clip), head, labels, clip.logit_scale.exp())
        found.any_name = self.config.head == "text"
        return found
