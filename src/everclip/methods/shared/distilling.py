"""Distil image-text similarities on reference images and texts."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, UInt8
from pydantic import Field
from torch import Tensor, nn

from everclip.data.gathered import Archive
from everclip.data.pixels import Pixels
from everclip.data.prompts import PHOTO, fill
from everclip.data.sources import SourceConfig, emoji
from everclip.losses.contrastive import clip_loss
from everclip.losses.distill import distillation
from everclip.methods.base.method import Batch, Capabilities, Clip, Phase, Prompts, pairs
from everclip.methods.shared.classify import Classify, LabelsConfig, softmax_classes
from everclip.models.foreign import open_clip
from everclip.seeding import generator, hash64

SENTENCES, WORDS = 1000, 10


class DistillingConfig(LabelsConfig):
    """Options of the distillation."""

    classes: Literal["seen", "present"] = softmax_classes()
    label_smoothing: float = Field(
        default=0.2, ge=0, lt=1, description="fraction of the target spread over all classes"
    )
    temperature: float = Field(default=2.0, gt=0, description="T: temperature of the distillation")
    image_weight: float = Field(
        default=5.0, ge=0, description="weight of each image's distribution over texts"
    )
    text_weight: float = Field(
        default=5.0, ge=0, description="weight of each text's distribution over images"
    )


class Distilling(Classify):
    """Base of methods that keep the similarities of reference images and texts near a frozen model's.

    The texts' embeddings are the frozen model's on both sides, so only the image tower learns from them. The logit
    scale is not trained. For data with captions, CLIP's own loss replaces the cross-entropy over classes.
    """

    capabilities = Capabilities(pairs=True)

    def __init__(self, config: DistillingConfig, prompts: Prompts) -> None:
        super().__init__(config, prompts)
        self.distill: DistillingConfig = config
        self._texts: Float[Tensor, "r d"] = torch.zeros(0, 0)

    def trainable(self, clip: Clip, phase: Phase) -> Iterator[nn.Parameter]:
        yield from (parameter for _, parameter in clip.image_parameters())
        yield from (parameter for _, parameter in clip.text_parameters())

    def encode(self, clip: Clip, batch: Batch, phase: Phase) -> dict[str, Tensor]:
        return super().encode(clip, batch, phase) if batch.texts is None else pairs(clip, self.prompts, batch)

    def loss(self, features: Mapping[str, Tensor], batch: Batch, phase: Phase) -> dict[str, Tensor]:
        if batch.texts is None:
            terms = super().loss(features, batch, phase)
        else:  # captions are not classes: every other pair of the batch is a negative
            terms = {"clip": clip_loss(features["image"], features["text"], features["scale"])}
        if "teacher" in features and len(features["teacher"]) and len(self._texts):
            teacher, student = (
                features["scale"].detach() * features[who] @ self._texts.T for who in ("teacher", "reference")
            )
            options = self.distill
            for name, weight, sides in (
                ("distill_image", options.image_weight, (teacher, student)),
                ("distill_text", options.text_weight, (teacher.T, student.T)),
            ):
                if weight:
                    scale = weight * options.temperature**2
                    terms[name] = scale * distillation(*sides, options.temperature)
        return terms


def captions(names: Iterable[str]) -> list[str]:
    """Return the default prompt of each class name."""
    return [fill(PHOTO, name) for name in names]


def imagenet() -> list[str]:
    """Return prompts of the thousand class names of ImageNet, as open_clip words them."""
    return captions(open_clip.IMAGENET_CLASSNAMES)


def sentences() -> list[str]:
    """Return a thousand sentences of ten random words from ImageNet's class names, always the same."""
    words = sorted({word for name in open_clip.IMAGENET_CLASSNAMES for word in name.split()})
    drawn = generator(0, "random sentences").integers(len(words), size=(SENTENCES, WORDS))
    return [" ".join(words[word] for word in row) for row in drawn.tolist()]


def some(texts: Iterable[str]) -> list[str]:
    """Return at most a thousand of these texts, the same each time."""
    return sorted(texts, key=lambda text: hash64("reference", text))[:SENTENCES]


def pictures(clip: Clip, but: Collection[str], count: int) -> UInt8[Tensor, "n 3 s s"]:
    """Return at most ``count`` of the emoji pictures of the package, the same each time, ready for ``clip``.

    Those in ``but`` are left out: for a run that learns emoji, its later tasks and test images are among them.
    """
    kinds = ("class-incremental", "domain-incremental")
    source = emoji.Emoji(SourceConfig())
    every = {key for kind in kinds for key in source.load(None, kind).train.store.keys}
    chosen = sorted(every.difference(but), key=lambda key: hash64("reference", key))[:count]
    store = Archive(emoji.verified("pictures.zip"), chosen)
    decoded, _ = Pixels(store, clip.eval_transform, clip.image_size, 0, 0).load(np.arange(len(chosen)))
    return decoded
