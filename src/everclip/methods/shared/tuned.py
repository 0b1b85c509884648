"""Read both towers with low-rank updates of the keys and values of each attention, kept beside them (MG-CLIP)."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from everclip.errors import UserError
from everclip.methods.base.method import Clip, Images, MethodConfig, Prompts
from everclip.methods.shared.attention import PACKED, attending, attentions
from everclip.methods.shared.prototypes import Prototypes


class LowRank(nn.Module):
    """x -> [ 0 ; B_k A_k x ; B_v A_v x ] / r, with A Xavier-uniform and B 0 at the start."""

    def __init__(self, width: int, rank: int) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.empty(2, rank, width))
        self.b = nn.Parameter(torch.zeros(2, width, rank))
        for part in self.a.data:
            nn.init.xavier_uniform_(part)

    def forward(self, x: Float[Tensor, "b l w"]) -> Float[Tensor, "b l v"]:
        parts = [x.to(a) @ a.T @ b.T / len(a) for a, b in zip(self.a, self.b, strict=True)]
        return torch.cat([torch.zeros_like(parts[0]), *parts], 2)


class KeyValue(nn.Module):
    """One update for each attention of a model, which itself is not changed."""

    def __init__(self, model: nn.Module, rank: int) -> None:
        super().__init__()
        widths = [
            found.in_proj_weight.shape[1] if isinstance(found, PACKED) else found.qkv.in_features
            for found in attentions(model)
        ]
        self.layers = nn.ModuleList(LowRank(width, rank) for width in widths)

    def beside(self, model: nn.Module) -> AbstractContextManager[None]:
        """While open, run each attention with its update."""
        return attending(model, ({"change": layer} for layer in self.layers))


class Tuned(Prototypes):
    """Base of methods whose features and embeddings are those of towers with updates of rank ``rank``."""

    def __init__(self, config: MethodConfig, prompts: Prompts) -> None:
        super().__init__(config, prompts)
        self.can(reads="pixels")
        self.updates, self.rank = KeyValue(nn.Identity(), 1), 1

    def build(self, clip: Clip, width: int) -> None:
        self.updates = KeyValue(clip.model, self.rank).to(clip.device)
        super().build(clip, width)
        if not len(self.updates.layers):
            raise UserError("method=mg_clip updates attention, which neither tower has: use another method")

    def embed(self, clip: Clip, labels: Iterable[int]) -> Float[Tensor, "c d"]:
        if not self.kept:  # before the first task there are no updates
            return super().embed(clip, labels)
        with self.updates.beside(clip.model):
            return super().embed(clip, labels)

    def features(self, clip: Clip, images: Images) -> Float[Tensor, "n d"]:
        with self.updates.beside(clip.model):
            return clip.encode_image(images)

    def summarised(self, clip: Clip, images: Images) -> Float[Tensor, "n d"]:
        return self.features(clip, images)

    def wrong(self, clip: Clip, z: Float[Tensor, "n d"], labels: Int64[Tensor, " n"], tuned: bool) -> float:
        """Return N of images by their features, which have the updates or not, as the texts then have."""
        text = self.embed(clip, self.seen) if tuned else super().embed(clip, self.seen)
        return wrong(clip.logit_scale.exp() * z @ text.T, self.places(labels).to(z.device))


def mixed(logits: Float[Tensor, "b c"], cosines: Float[Tensor, "b c"], twice: bool) -> Float[Tensor, "b c"]:
    """Return the mean of the probabilities of both sides, the visual one with a weight of 4."""
    text = logits.softmax(1).softmax(1) if twice else logits.softmax(1)
    return (text + 4 * cosines.softmax(1)) / 5


def wrong(logits: Float[Tensor, "n c"], places: Int64[Tensor, " n"]) -> float:
    """Return N, the mean logit of wrong classes; nan if there is only one class."""
    others = torch.ones_like(logits).scatter(1, places[:, None], 0)
    return ((logits * others).sum() / others.sum()).item()


def moved(before: float, after: float) -> float:
    """Return |N0 - N| / N0."""
    return abs(before - after) / abs(before)
