"""CCLIS: contrast of images with prototypes, importance-weighted exemplars, distilled relations to old prototypes.

    L    = mean_i [ -l_{y_i,i} + log sum_j exp(l_{y_i,j}) / v_{y_i,j} ] + w mean_i CE( q*_i, q_i )
    l_kj = <c_k, z_j>/tau
    v_kj = n_g p_j   for an exemplar j of another class than k, where k is an old class;   1 otherwise
    q_i  = softmax_{k old}( <c_k, z_i>/tau_student ),    q*_i = softmax_{k old}( <c*_k, z*_i>/tau_teacher )

with z the unit-length projections of the image features, c_k one prototype per class, made unit length after each step,
n_g the exemplars of j's class in the batch, and stars for the frozen model of the previous task; the second term starts
with the second task. Then a linear probe is learned. After a task each image scores s_j, the mean over the other
classes k of its fraction of sum_j' exp(l_kj'). Exemplars are drawn without replacement in proportion to s_j, and p_j is
s_j over the sum of its class, so that weighted exemplars estimate the sum over all that they were drawn from.

Where a class recurs in another domain, exemplars are drawn, counted and weighted by class and domain (ours). An
exemplar that was not drawn by score (`memory.policy=random`, `memory.budget=all`) has v = 1.

    Parameters  a projector of two layers, a prototype per class; a linear head
    State       these, and one probability (fp32) per exemplar
    Passes      1 of the image tower, 1 of its frozen copy after the first task; 1 for the probe, 1 for scores
    Exemplars   trains on exemplars and new images; chooses them by score

Paper: https://arxiv.org/abs/2403.04599
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar, Literal

import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import normalize

from everclip.data.images import ImageSet
from everclip.losses.distill import distillation
from everclip.losses.prototypes import draw_scores, importance, prototype_contrast, shares
from everclip.methods.base.cost import Passes, teacher
from everclip.methods.base.method import Batch, Capabilities, Clip, Method, Prompts, Task
from everclip.methods.base.sample_table import SampleTable
from everclip.methods.shared.represent import Represent, RepresentConfig


class Cclis(Represent):
    """Contrastive continual learning with importance sampling."""

    class Config(RepresentConfig):
        search: ClassVar = {"tau": (0.1, 0.5), "distill": (0.2, 0.6, 2.0), "probe_penalty": (0.01, 0.1, 1.0)}

        tau: float = Field(default=0.5, gt=0, description="temperature of the contrastive loss")
        prototypes: Literal["learned", "text"] = Field(
            default="learned",
            description="prototypes: one learned per class; or the class embeddings, with raw features, no"
            " projector, and the text tower as classifier instead of a probe",
        )
        start: Literal["text", "random"] = Field(
            default="text",
            description="initial value of learned prototypes: the projected class embedding, or random",
        )
        distill: float = Field(default=0.6, ge=0, description="w: weight of the relations; 0: off")
        tau_student: float = Field(default=0.2, gt=0, description="temperature of the current relations")
        tau_teacher: float = Field(
            default=0.01, gt=0, description="temperature of the previous task's relations"
        )

    config: Config
    capabilities = Capabilities(memory_policy="score")
    passes = Passes(teacher(), "none", after=(0.0, 1.0))

    def __init__(self, config: Config, prompts: Prompts) -> None:
        super().__init__(config, prompts)
        self.probes = config.prototypes == "learned"
        if not self.probes:
            self.can(fits="never")
        self.drawn = SampleTable(1)
        self.prototypes = nn.Parameter(torch.zeros(0, 0))
        self._known = 0
        self._before = torch.zeros(0, 0)

    def tables(self) -> dict[str, SampleTable]:
        return {"drawn": self.drawn}

    def drop(self, ids: NDArray[Any]) -> None:
        self.drawn.drop(ids)

    def make_projector(self, width: int) -> nn.Module:
        return nn.Identity() if self.config.prototypes == "text" else super().make_projector(width)

    def learners(self, clip: Clip) -> Iterator[nn.Parameter]:
        yield from super().learners(clip)
        if self.config.prototypes == "learned":
            yield self.prototypes

    def grow(self, clip: Clip, task: Task) -> None:
        """Append the prototypes of new classes; old ones stay in front."""
        self._known = len(self.head.labels)
        super().grow(clip, task)
        if new := self.head.labels[self._known :]:
            with torch.no_grad():
                rows = self.projector(self.embed(clip, new))
                if self.config.prototypes == "learned" and self.config.start == "random":
                    rows = torch.randn(rows.shape).to(rows)
            old = self.prototypes.detach().to(rows).reshape(-1, rows.shape[1])
            self.prototypes = nn.Parameter(torch.cat([old, normalize(rows, dim=1)]))

    def begin_task(self, clip: Clip, task: Task, train: ImageSet) -> None:
        super().begin_task(clip, task, train)
        self._before = self.prototypes.detach()[: self._known].clone()

    def after_step(self, clip: Clip) -> None:
        if self.prototypes.requires_grad:
            with torch.no_grad():
                self.prototypes.copy_(normalize(self.prototypes, dim=1))

    def contrast(self, features: Mapping[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        config, target = self.config, self.head.columns(batch.labels)
        cosines = normalize(self.projector(features["image"]), dim=1) @ self.prototypes.T
        drawn, seen = (part.to(cosines.device) for part in self.drawn.get(batch.ids))
        groups = batch.labels + len(self.prompts.names) * batch.domains
        weights = importance(
            target, groups, seen & ~batch.current, drawn[:, 0].to(cosines), self._known, len(self.prototypes)
        )
        terms = {"contrast": prototype_contrast(cosines / config.tau, target, weights)}
        past = self.past(features)
        if past is not None and config.distill > 0:
            then = past @ self._before.T / config.tau_teacher
            now = cosines[:, : self._known] / config.tau_student
            terms["relations"] = config.distill * distillation(then, now, 1.0)
        return terms

    @torch.no_grad()
    def scores(self, clip: Clip, batches: Iterable[Batch]) -> dict[int, float]:
        """Return s_j of each image; note p_j, its fraction of the class's (and domain's) scores."""
        met = [
            (self.projector(clip.encode_image(b.images)).cpu(), b.labels, b.domains, b.ids) for b in batches
        ]
        rows, labels, domains, ids = (torch.cat(column) for column in zip(*met, strict=True))
        logits = normalize(rows, dim=1).double() @ self.prototypes.cpu().double().T / self.config.tau
        scores = draw_scores(logits, self.head.columns(labels))
        self.drawn.set(ids, shares(scores, labels + len(self.prompts.names) * domains)[:, None])
        return dict(zip(ids.tolist(), scores.tolist(), strict=True))

    def classifier(self, clip: Clip, labels: tuple[int, ...]) -> nn.Module:
        if self.config.prototypes == "text":
            return Method.classifier(self, clip, labels)
        return super().classifier(clip, labels)
