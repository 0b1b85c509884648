"""A linear head that grows with the classes, and the classifier made of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional

from everclip.methods._base import Clip, Prompts, Task

HeadInit = Literal["kaiming", "zero_shot"]


class Head(nn.Module):
    """``scale * W f + b`` with a row a class, in the order in which the classes came.

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

    def grow_for(self, task: Task, clip: Clip, prompts: Prompts, init: HeadInit) -> None:
        """Append rows for the classes of a task that have none: Kaiming-uniform, or their class embeddings."""
        if new := [label for label in task.classes if label not in self.labels]:
            with torch.no_grad():
                rows = clip.class_embeddings([prompts.names[label] for label in new], prompts.templates)
            self.grow(new, rows if init == "zero_shot" else kaiming(*rows.shape).to(rows))

    def forward(
        self, features: Float[Tensor, "b d"], scale: Float[Tensor, ""] | float = 1.0
    ) -> Float[Tensor, "b c"]:
        return scale * features @ self.weight.T + self.bias

    def columns(self, labels: Int64[Tensor, " b"]) -> Int64[Tensor, " b"]:
        """Where each label's score stands; -1 for a label without a row."""
        return columns(self.labels, labels)


def columns(known: Sequence[int], labels: Int64[Tensor, " b"]) -> Int64[Tensor, " b"]:
    """Position of each of ``labels`` in ``known``, -1 where it is not."""
    table = torch.full((max([*known, *labels.tolist()], default=0) + 1,), -1, device=labels.device)
    table[list(known)] = torch.arange(len(known), device=labels.device)
    return table[labels]


def kaiming(rows: int, width: int) -> Float[Tensor, "n d"]:
    """Rows uniform in +-sqrt(3 / width), from torch's random state."""
    return nn.init.kaiming_uniform_(torch.empty(rows, width), nonlinearity="linear")


class HeadClassifier(nn.Module):
    """A head's scores of normalised images, a column a label asked for; -inf for a label without a row.

    Args:
        encode: normalised images to the features that the head was trained on.
    """

    def __init__(
        self,
        encode: Callable[[Tensor], Tensor],
        head: Head,
        labels: Sequence[int],
        scale: Float[Tensor, ""] | float = 1.0,
    ) -> None:
        super().__init__()
        self.encode, self.head, self.scale = encode, head, scale
        self.rows = head.columns(torch.tensor(labels)).tolist()

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c"]:
        scores = self.head(self.encode(images), self.scale)
        return functional.pad(scores, (0, 1), value=-torch.inf)[:, self.rows]
