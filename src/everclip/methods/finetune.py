"""Cross-entropy fine-tuning, with the text tower or a linear layer as the classifier.

    text head:    loss = mean_i CE( scale * <z_i, e_k>, y_i ) over the classes k, both towers trained
    linear head:  loss = mean_i CE( scale * <z_i, w_k> + b_k, y_i ), image tower and head trained

with z the image features and e_k the embedding of "a photo of a {class k}.". The classes are those seen so far, or
those of the current task and the memory. The text head is the cross-entropy ablation of FLYP (Goyal et al. 2023,
section 5); the linear head without a memory is the sequential baseline of the everclip paper (section 4.4). Its rows
start at Kaiming-uniform values, as in PyCIL, or at the zero-shot embeddings; old rows are kept when it grows.

Paper: https://arxiv.org/abs/2212.00638
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from everclip.data.images import ImageSet
from everclip.methods._base import Batch, Clip, Method, MethodConfig, Phase, Prompts, Task


class LinearClassifier(nn.Module):
    """``scale * W z + b`` of images; -inf for classes without a row.

    Args:
        rows: row of each column's class, -1 where there is none.
    """

    def __init__(self, clip: Clip, weight: Tensor, bias: Tensor, rows: list[int]) -> None:
        super().__init__()
        self.clip, self.weight, self.bias, self.rows = clip, weight, bias, rows

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c"]:
        scores = self.clip.logit_scale.exp() * self.clip.encode_image(images) @ self.weight.T + self.bias
        return functional.pad(scores, (0, 1), value=-torch.inf)[:, self.rows]


class Finetune(Method):
    """Cross-entropy over class embeddings or a linear head."""

    class Config(MethodConfig):
        """Options of cross-entropy fine-tuning."""

        head: Literal["text", "linear"] = Field(
            default="text",
            description="class embeddings of the text tower, or a linear layer on the image features",
        )
        head_init: Literal["kaiming", "zero_shot"] = Field(
            default="kaiming",
            description="start of a linear head's new rows: random, or the class embeddings",
        )
        classes: Literal["seen", "present"] = Field(
            default="seen",
            description="label set of the softmax: all classes seen so far, or those with images now",
        )
        label_smoothing: float = Field(
            default=0.0, ge=0, lt=1, description="share of the target spread over all classes"
        )

    config: Config

    def __init__(self, config: Config, prompts: Prompts) -> None:
        super().__init__(config, prompts)
        self.seen: list[int] = []
        self._labels: list[int] = []
        if config.head == "linear":
            self.weight = nn.Parameter(torch.zeros(0, 0))
            self.bias = nn.Parameter(torch.zeros(0))

    def grow(self, clip: Clip, task: Task) -> None:
        """Append the task's classes to the label set, and their rows to a linear head."""
        new = [label for label in task.classes if label not in self.seen]
        self.seen += new
        if self.config.head == "linear" and new:
            with torch.no_grad():
                names = [self.prompts.names[label] for label in new]
                rows = clip.class_embeddings(names, self.prompts.templates)
                if self.config.head_init == "kaiming":
                    rows = nn.init.kaiming_uniform_(torch.empty_like(rows), nonlinearity="linear")
                old = self.weight.to(rows).reshape(-1, rows.shape[1])
                self.weight = nn.Parameter(torch.cat([old, rows]))
                self.bias = nn.Parameter(functional.pad(self.bias.to(rows), (0, len(new))))

    def begin_task(self, clip: Clip, task: Task, train: ImageSet) -> None:
        """Settle the label set of the task."""
        present = set(np.unique(train.labels).tolist())
        self._labels = [label for label in self.seen if self.config.classes == "seen" or label in present]

    def trainable(self, clip: Clip, phase: Phase) -> Iterator[nn.Parameter]:
        if self.config.head == "text":
            yield from super().trainable(clip, phase)
            return
        yield from (parameter for _, parameter in clip.image_parameters())
        yield from (self.weight, self.bias)

    def encode(self, clip: Clip, batch: Batch, phase: Phase) -> dict[str, Tensor]:
        features = {
            "image": clip.encode_image(clip.normalise(batch.images)),
            "scale": clip.logit_scale.exp(),
        }
        if self.config.head == "text":
            texts = self.prompts.caption(self._labels, batch.rng("captions"))
            features["classes"] = clip.encode_text(texts)
        return features

    def loss(self, features: Mapping[str, Tensor], batch: Batch, phase: Phase) -> dict[str, Tensor]:
        if self.config.head == "text":
            logits = features["scale"] * features["image"] @ features["classes"].T
        else:
            rows = [self.seen.index(label) for label in self._labels]
            logits = features["scale"] * features["image"] @ self.weight[rows].T + self.bias[rows]
        column = torch.full((len(self.prompts.names),), -1, device=logits.device)
        column[self._labels] = torch.arange(len(self._labels), device=logits.device)
        smoothing = self.config.label_smoothing
        return {
            "cross_entropy": functional.cross_entropy(logits, column[batch.labels], label_smoothing=smoothing)
        }

    def classifier(self, clip: Clip, labels: tuple[int, ...]) -> nn.Module:
        if self.config.head == "text":
            return super().classifier(clip, labels)
        rows = [self.seen.index(label) if label in self.seen else -1 for label in labels]
        return LinearClassifier(clip, self.weight, self.bias, rows)
