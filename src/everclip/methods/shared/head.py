"""Grow a linear head with the classes, and build the classifier from it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float, Int64
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from everclip.methods.base.method import Classifier, Clip, Images, Prompts, Task

HeadInit = Literal["zero", "kaiming", "zero_shot"]


def initial_rows() -> Any:
    """Return the field of a method's ``Config`` for ``HeadInit``."""
    said = "initial value of a head's new rows: 0, random (Kaiming-uniform), or the class embeddings"
    return Field(default="zero", description=said, json_schema_extra={"before": "kaiming"})


class Head(nn.Module):
    """``scale * W f + b`` with a row per class, in the order in which the classes came.

    Old rows are kept when it grows (PyCIL and everything built on it). ``scale`` is the encoder's own, 1 / temperature:
    without it, rows on unit-length features would have to grow a hundredfold before a softmax could decide.
    """

    def __init__(self) -> None:
        super().__init__()
        self.labels: list[int] = []
        self.weight = nn.Parameter(torch.zeros(0, 0))
        self.bias = nn.Parameter(torch.zeros(0))

    def grow(self, labels: Sequence[int], rows: Float[Tensor, "n d"]) -> None:
        """Append rows for ``labels``, which are new; biases start at 0."""
        self.labels += labels
        old = self.weight.detach().to(rows).reshape(-1, rows.shape[1])
        self.weight = nn.Parameter(torch.cat([old, rows.detach()]))
        self.bias = nn.Parameter(functional.pad(self.bias.detach().to(rows), (0, len(labels))))

    def grow_for(self, task: Task, clip: Clip, prompts: Prompts, init: HeadInit, extractors: int = 1) -> None:
        """Append rows for the classes of a task that have none, as ``first_rows`` makes them."""
        if new := [label for label in task.classes if label not in self.labels]:
            self.grow(new, first_rows(new, clip, prompts, init, extractors))

    def widen(self, count: int, init: HeadInit) -> None:
        """Append columns for ``count`` more features: 0, which leaves every score as it was, or Kaiming-uniform.

        Zero-shot rows get zeros too: a head that starts as a classifier should not start with noise.
        """
        rows, width = self.weight.shape
        drawn = kaiming(rows, width + count)[:, :count] if init == "kaiming" else torch.zeros(rows, count)
        self.weight = nn.Parameter(torch.cat([self.weight.detach(), drawn.to(self.weight)], 1))

    @torch.no_grad()
    def align(self, new: Sequence[int]) -> None:
        """Scale the rows of ``new`` so that their mean length is that of the other rows (Zhao et al. 2020,
        https://arxiv.org/abs/1911.07053); nothing happens if one kind has no rows, or only zeros.
        """
        fresh = torch.tensor([label in new for label in self.labels], device=self.weight.device)
        if fresh.any() and not fresh.all():
            norms = self.weight.norm(dim=1)
            if norms[fresh].any() and norms[~fresh].any():
                self.weight[fresh] *= norms[~fresh].mean() / norms[fresh].mean()

    def forward(
        self, features: Float[Tensor, "b d"], scale: Float[Tensor, ""] | float = 1.0
    ) -> Float[Tensor, "b c"]:
        return scale * features @ self.weight.T + self.bias

    def columns(self, labels: Int64[Tensor, " b"]) -> Int64[Tensor, " b"]:
        """Return the column of each label's score; -1 for a label without a row."""
        return columns(self.labels, labels)


def columns(known: Sequence[int], labels: Int64[Tensor, " b"]) -> Int64[Tensor, " b"]:
    """Return the position of each of ``labels`` in ``known``, -1 where it is not."""
    table = torch.full((max([*known, *labels.tolist()], default=0) + 1,), -1, device=labels.device)
    table[list(known)] = torch.arange(len(known), device=labels.device)
    return table[labels]


@torch.no_grad()
def first_rows(
    labels: Sequence[int], clip: Clip, prompts: Prompts, init: HeadInit, extractors: int = 1
) -> Float[Tensor, "n w"]:
    """Return rows that a head starts with: 0, Kaiming-uniform, or the class embeddings.

    Times a logit scale of 100, Kaiming-uniform rows start with logits whose standard deviation is above 4. For features
    of several ``extractors`` side by side, a zero-shot score is the mean of theirs.
    """
    names = [prompts.names[label] for label in labels]
    if init == "zero_shot":
        return clip.class_embeddings(names, prompts.templates).repeat(1, extractors) / extractors
    one = clip.class_embeddings(names[:1], prompts.templates[:1])  # says how wide they are
    rows = one.new_zeros(len(labels), extractors * one.shape[1])
    return kaiming(*rows.shape).to(rows) if init == "kaiming" else rows


def kaiming(rows: int, width: int) -> Float[Tensor, "n d"]:
    """Return rows uniform in +-sqrt(3 / width), from torch's random state."""
    return nn.init.kaiming_uniform_(torch.empty(rows, width), nonlinearity="linear")


class Columns(Classifier):
    """Scores that ``score`` gives images of the classes ``known``, for labels asked for; -inf for one that is not."""

    def __init__(
        self, score: Callable[[Tensor], Tensor], known: Sequence[int], labels: Sequence[int]
    ) -> None:
        super().__init__()
        self.score, self.places = score, columns(known, torch.tensor(labels)).tolist()

    def forward(self, images: Images) -> Float[Tensor, "b c"]:
        return functional.pad(self.score(images), (0, 1), value=-torch.inf)[:, self.places]


class HeadClassifier(Columns):
    """A head's scores of the features that ``encode`` gives, one column per label; -inf for one without a row."""

    def __init__(
        self,
        encode: Callable[[Tensor], Tensor],
        head: Head,
        labels: Sequence[int],
        scale: Float[Tensor, ""] | float = 1.0,
    ) -> None:
        super().__init__(lambda images: head(encode(images), scale), head.labels, labels)
        self.head = head
