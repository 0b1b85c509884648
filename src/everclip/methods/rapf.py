"""A linear adapter, pseudo-features of old classes, and fusion of weights (RAPF, Huang et al. 2024).

    scores  s <A f / |A f|, e_k>
    loss    = CE over new images and Gaussian samples of old classes
              + mean over pairs, samples x of a:  max(0, margin - <A x^, e_a> + <A x^, e_b>)     ^ = unit length
    pairs   old classes a and new classes b with |e_a - e_b| < theta
    fuse    A_old = U diag(S) V',  R = diag(S) V',  P = U' A,  D = |P - R|,  M = min(1, D / max D + b),
            A <- U (M P + (1 - M) R)                                  entry by entry, from the second task on

f is the feature as the image tower gives it, A a d x d matrix without bias; towers and scale are frozen. After a task
each of its classes leaves the mean and the covariance S + 1e-4 I of f, from which later tasks draw: in each step
`per_step` old classes in turn, floor(10 `samples`) of each, and floor(20 `samples`) for a pair. `shrink` makes
covariances S + V1 I + V2 (11' - I), as the authors do for ImageNet-R and CUB.

A starts at random, as in the code; with one class in the first task, which cannot train it, at I (ours). A class that
recurs in another domain has a Gaussian for each domain, and no pairs (ours). Exemplars are in the CE (ours).

    Parameters  d x d
    State       A; a mean and a d x d matrix (fp32) per class and domain: 105 MB per hundred at d = 512
    Passes      1 of the image tower, without gradient
    Exemplars   trains on exemplars and new images; published without exemplars: memory.budget=0

Paper: https://arxiv.org/abs/2407.14143
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import ClassVar

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from everclip.data.images import ImageSet
from everclip.methods.base.method import Batch, Clip, MethodConfig, Phase, Prompts, Task
from everclip.methods.shared.frozen import Cosines, random
from everclip.methods.shared.gaussian import Sampled, label_of


class Rapf(Sampled):
    """A linear adapter of image features."""

    class Config(MethodConfig):
        rates: ClassVar = ("lr_head",)
        search: ClassVar = {"samples": (0.6, 1.0, 2.0), "fuse": (0.4, 0.6, 0.8), "theta": (0.55, 0.65, 1.3)}

        samples: float = Field(
            default=2.0, ge=0.1, description="beta: a tenth of the number of samples per class and step"
        )
        per_step: int = Field(default=2, ge=1, description="old classes sampled per step")
        theta: float = Field(
            default=0.55,
            ge=0,
            description="distance between embeddings below which classes pair; use 1.3 for lite",
        )
        margin: float = Field(default=0.1, ge=0, description="margin of the hinge loss of pairs")
        fuse: float | None = Field(
            default=0.6,
            ge=0,
            le=1,
            description="b: smallest fraction of the new matrix in the fused one; none: no fusion",
        )
        shrink: bool = Field(default=False, description="shrink the covariances that are sampled from")

    config: Config

    def __init__(self, config: Config, prompts: Prompts) -> None:
        super().__init__(config, prompts)
        self.adapter = nn.Linear(1, 1, bias=False)
        self._before = torch.zeros(0, 0)
        self._pairs: list[tuple[int, int]] = []

    def build(self, clip: Clip, width: int) -> None:
        self.adapter = nn.Linear(width, width, bias=False)
        if len(self.seen) == 1:
            nn.init.eye_(self.adapter.weight)

    def begin_task(self, clip: Clip, task: Task, train: ImageSet) -> None:
        super().begin_task(clip, task, train)
        self._before = self.adapter.weight.detach().clone()
        self.prepare(self.config.shrink)
        near = torch.cdist(self.text[: self.old], self.text[self.old :]) < self.config.theta
        drawn = {label_of(name) for name in self.roots}  # a class without a readable image has none
        self._pairs = [(a, self.old + b) for a, b in near.nonzero().tolist() if self.seen[a] in drawn]

    def trainable(self, clip: Clip, phase: Phase) -> Iterator[nn.Parameter]:
        yield from self.adapter.parameters()

    def encode(self, clip: Clip, batch: Batch, phase: Phase) -> dict[str, Tensor]:
        features, places = self.raw(clip, batch.images), self.places(batch.labels)
        draw, each = random(batch, "samples", clip.device), self.config.samples
        for name in self.turn(batch, self.config.per_step):
            drawn = self.sample(name, int(10 * each), draw)
            features = torch.cat([features, drawn])
            label = self.places(torch.tensor([label_of(name)]))
            places = torch.cat([places, label.to(places.device).repeat(len(drawn))])
        found = {"image": features, "places": places, "scale": clip.logit_scale.exp()}
        if self._pairs:
            names = {label_of(name): name for name in self.roots}
            old = (names[self.seen[a]] for a, _ in self._pairs)
            found["near"] = torch.stack([self.sample(name, int(20 * each), draw) for name in old])
        return found

    def loss(self, features: Mapping[str, Tensor], batch: Batch, phase: Phase) -> dict[str, Tensor]:
        adapted = normalize(self.adapter(features["image"]), dim=1)
        logits = features["scale"] * adapted @ self.text.T
        terms = {"cross_entropy": cross_entropy(logits, features["places"])}
        if "near" in features:
            rows = normalize(self.adapter(features["near"]), dim=2)
            first, second = zip(*self._pairs, strict=True)
            terms["hinge"] = hinge(rows, self.text[[*first]], self.text[[*second]], self.config.margin).mean()
        return terms

    @torch.no_grad()
    def end_task(self, clip: Clip, task: Task, new: Iterable[Batch], memory: Iterable[Batch]) -> None:
        """Describe the task's classes; fuse the matrix with the one before."""
        self.remember(clip, new)
        if task.index > 0 and self.config.fuse is not None:
            fused = fuse(self._before.cpu().double(), self.adapter.weight.cpu().double(), self.config.fuse)
            self.adapter.weight.copy_(fused)

    @torch.no_grad()
    def classifier(self, clip: Clip, labels: tuple[int, ...]) -> nn.Module:
        def encode(images: Tensor) -> Tensor:
            return normalize(self.adapter(self.raw(clip, images)), dim=1)

        return Cosines(clip, encode, self.embed(clip, labels))


def hinge(
    rows: Float[Tensor, "p n d"], own: Float[Tensor, "p d"], other: Float[Tensor, "p d"], margin: float
) -> Float[Tensor, "p n"]:
    """Return max(0, margin - <x, e_a> + <x, e_b>) of unit-length samples of each pair."""
    return (margin - ((own - other)[:, None] * rows).sum(2)).clamp(min=0)


def fuse(old: Float[Tensor, "d d"], new: Float[Tensor, "d d"], least: float) -> Float[Tensor, "d d"]:
    """Mix two matrices along the singular vectors of the old one, by how far each entry has moved."""
    left, values, right = torch.linalg.svd(old)
    before, after = values[:, None] * right, left.T @ new
    moved = (after - before).abs()
    share = (moved / moved.max().clamp(min=torch.finfo(moved.dtype).tiny) + least).clamp(max=1)
    return left @ (share * after + (1 - share) * before)
