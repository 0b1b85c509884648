"""Prompts composed of components, weighted by the image's feature (CODA-Prompt, Smith et al. 2023).

    alpha_m = cos( q * A_m, K_m ),   p = sum_m alpha_m P_m                    in each of the first `blocks` blocks
    rows 1 to 4 of p join the keys of the block's attention, rows 5 to 8 its values
    loss    = CE( linear head, y ) over the task's classes + penalty sum_B mean (B B' - I)^2,   B = A, K, P

q is the frozen tower's feature of the image, which takes a pass of its own. Each task adds `components` to those of
earlier tasks, which are frozen. In the code a task's new rows are made orthogonal to all others and there is no
penalty; the paper, as far as it could be read, has a penalty of 0.1 (`penalty=0.1`). The code splits a hundred
components among the tasks, whose number it knows; here they grow, ten a task. Where classes recur in another domain,
the loss runs over all classes of the task (ours). It needs a vision transformer, and reads no text.

    Parameters  per task and block `components` rows of A, K and 8 of P: 1.5 MB at width 768; a linear head
    State       these of all tasks
    Passes      2 of the image tower, one without gradient; 2 to predict
    Exemplars   none

Paper: https://arxiv.org/abs/2211.13218
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import ClassVar

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from everclip.config import MethodConfig
from everclip.data.images import ImageSet
from everclip.methods.base.cost import Passes
from everclip.methods.base.method import Batch, Capabilities, Clip, Images, Method, Phase, Prompts, Task
from everclip.methods.shared.attention import attentions, demand_blocks
from everclip.methods.shared.head import Head, HeadClassifier, columns
from everclip.methods.shared.prefix import orthogonal, prefixed, prompt, skew
from everclip.models.pooled import pooled


class CodaPrompt(Method):
    """Decomposed prompts before the attention of a frozen vision transformer."""

    class Config(MethodConfig):
        rates: ClassVar = ("lr_head",)
        search: ClassVar = {"components": (5, 10, 20), "penalty": (0.0, 0.1)}

        components: int = Field(default=10, ge=1, description="components that each task adds")
        blocks: int = Field(
            default=5, ge=1, description="number of first blocks with prompts; all, if there are fewer"
        )
        penalty: float = Field(default=0.0, ge=0, description="weight of the distance from orthogonal rows")

    config: Config
    capabilities = Capabilities(uses_memory=False, reads="pixels", centers=False)
    passes = Passes(lambda stage: (1.0, 1.0), "none", read=lambda stage: 2.0, frozen=lambda stage: 0.0)

    def __init__(self, config: Config, prompts: Prompts) -> None:
        super().__init__(config, prompts)
        self.parts = nn.ParameterList()  # [task * blocks + block]: rows of A, of K and of P, side by side
        self.head = Head()
        self._blocks = 0
        self._labels: list[int] = []
        self._rows = torch.zeros(0, 0)  # of the head at the task's start

    def grow(self, clip: Clip, task: Task) -> None:
        """Add a task's components, orthogonal to the others. Raises UserError for a tower without such blocks."""
        demand_blocks(clip, "coda_prompt", "prompts")
        self._blocks = min(self.config.blocks, len(attentions(clip.model.visual)))
        with torch.no_grad():
            width = self.query(clip, clip.blank()).shape[1]
        for block in range(self._blocks):
            old = [part.detach() for part in self.parts[block :: self._blocks]]
            self.parts.append(nn.Parameter(orthogonal(old, self.config.components, width).to(clip.device)))
        new = [label for label in task.classes if label not in self.head.labels]
        self.head.grow(new, torch.zeros(len(new), width, device=clip.device))

    def begin_task(self, clip: Clip, task: Task, train: ImageSet) -> None:
        self._labels = list(task.classes)
        self._rows = self.head.weight.detach().clone()

    @torch.no_grad()
    def after_step(self, clip: Clip) -> None:
        """Put back the head's rows of other classes, which no loss reaches but weight decay would shrink."""
        own = self.head.columns(torch.tensor(self._labels)).tolist()
        self._rows[own] = self.head.weight[own]
        self.head.weight.copy_(self._rows)

    def trainable(self, clip: Clip, phase: Phase) -> Iterator[nn.Parameter]:
        yield from (*self.parts[-self._blocks :], *self.head.parameters())

    @torch.no_grad()
    def query(self, clip: Clip, images: Images) -> Float[Tensor, "b w"]:
        """Return q."""
        return pooled(clip.model.visual, clip.normalise(images))

    def prompted(self, clip: Clip, images: Images) -> Float[Tensor, "b w"]:
        """Return features of images with their prompts."""
        pictures = clip.normalise(images)
        q = self.query(clip, pictures)
        prompts = []
        for block in range(self._blocks):
            own = [*self.parts[block :: self._blocks]]
            prompts.append(prompt(q, torch.cat([*(part.detach() for part in own[:-1]), own[-1]])))
        with prefixed(clip.model.visual, prompts):
            return pooled(clip.model.visual, pictures)

    def encode(self, clip: Clip, batch: Batch, phase: Phase) -> dict[str, Tensor]:
        return {"image": clip.whole(self.prompted(clip, batch.images))}

    def loss(self, features: Mapping[str, Tensor], batch: Batch, phase: Phase) -> dict[str, Tensor]:
        own = self.head.columns(torch.tensor(self._labels)).tolist()
        logits, target = self.head(features["image"])[:, own], columns(self._labels, batch.labels)
        terms = {"cross_entropy": cross_entropy(logits, target.to(logits.device))}
        if self.config.penalty:
            blocks = (torch.cat([*self.parts[block :: self._blocks]]) for block in range(self._blocks))
            terms["orthogonal"] = self.config.penalty * sum(map(skew, blocks), torch.zeros(()).to(logits))
        return terms

    def features(self, clip: Clip, images: Images) -> Float[Tensor, "b d"]:
        return normalize(self.prompted(clip, images), dim=1)

    def classifier(self, clip: Clip, labels: tuple[int, ...]) -> nn.Module:
        return HeadClassifier(lambda images: self.prompted(clip, images), self.head, labels)
