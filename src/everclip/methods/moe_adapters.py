"""Routed adapters beside the MLP of each block of both frozen towers (MoE-Adapters, Yu et al. 2024).

    x    <- a + MLP(LN a) + sum_i g_i E_i(a),     E(a) = 0.1 ( up relu(down a) ),    a after the block's attention
    g    = softmax over the two largest of  c W + n (softplus(c N) + 0.01),          n normal in training, 0 at test
    loss = CE over the prompts of the classes that have images now

c is the first token of a; `up`, W and N start at zero. In text the first token sees only itself, so one gate serves all
prompts. This is the authors' class-incremental form: two experts, one router, and nothing is frozen from task to task.
In their code a flag that is copied once leaves the noise on at test; here it is off. Their form for several data sets
(22 experts, a router per task, frozen experts, an autoencoder on another network's features that chooses the router of
a batch) is left out. It needs a vision transformer; a text tower of another kind has no experts.

    Parameters  per block `experts` x 2 x 64 rows of its width, and two routers: 16 MB for a ViT-B/16 (fp32)
    State       these
    Passes      1 of the image tower; 1 of the text tower for each class with images now
    Exemplars   trains on exemplars and new images; published without exemplars: memory.budget=0

Paper: https://arxiv.org/abs/2403.11549
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import normalize

from everclip.methods.base.cost import Passes
from everclip.methods.base.method import Batch, Capabilities, Clip, Images, Phase, Prompts, Task
from everclip.methods.shared.attention import demand_blocks
from everclip.methods.shared.classify import Classify, LabelsConfig, softmax_classes
from everclip.methods.shared.frozen import Cosines, random, raw_prompts
from everclip.methods.shared.mixture import BlockExperts


class MoeAdapters(Classify):
    """Mixtures of adapters in both towers."""

    class Config(LabelsConfig):
        rates: ClassVar = ("lr_head",)
        search: ClassVar = {"experts": (2, 4), "label_smoothing": (0.0, 0.2)}

        classes: Literal["seen", "present"] = softmax_classes()
        experts: int = Field(default=2, ge=1, description="experts of each block, of which two are used")
        hidden: int = Field(default=64, ge=1, description="width of an expert")
        dropout: float = Field(default=0.1, ge=0, lt=1, description="dropout of an expert's values")

    config: Config
    capabilities = Capabilities(needs_text=True, reads="pixels", shares=False)
    passes = Passes(text="seen")

    def __init__(self, config: Config, prompts: Prompts) -> None:
        super().__init__(config, prompts)
        self.experts = BlockExperts(nn.Identity(), 1, 1, 0.0)  # none yet

    def grow(self, clip: Clip, task: Task) -> None:
        """Put the experts in place at the first task. Raises UserError for a tower without transformer blocks."""
        super().grow(clip, task)
        demand_blocks(clip, "moe_adapters", "adapters")
        if not len(self.experts.layers):
            config = self.config
            made = BlockExperts(clip.model, config.hidden, config.experts, config.dropout)
            self.experts = made.to(clip.device)

    def trainable(self, clip: Clip, phase: Phase) -> Iterator[nn.Parameter]:
        yield from self.experts.parameters()

    def encode(self, clip: Clip, batch: Batch, phase: Phase) -> dict[str, Tensor]:
        prompts = self.prompts.caption(self._labels, batch.rng("captions"))
        with self.experts.beside(clip.model, random(batch, "experts", clip.device)):
            classes = normalize(raw_prompts(clip, prompts), dim=1)
            image = clip.encode_image(batch.images)
        return {"image": image, "classes": classes, "scale": clip.logit_scale.exp()}

    def features(self, clip: Clip, images: Images) -> Float[Tensor, "b d"]:
        with self.experts.beside(clip.model):
            return clip.encode_image(images)

    @torch.no_grad()
    def classifier(self, clip: Clip, labels: tuple[int, ...]) -> nn.Module:
        with self.experts.beside(clip.model):
            classes = self.embed(clip, labels)
        return Cosines(clip, lambda images: self.features(clip, images), classes)
