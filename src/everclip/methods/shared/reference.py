"""Provide texts and pictures that a teacher is asked about and that no task is made of."""

from __future__ import annotations

from collections.abc import Collection, Iterable

import numpy as np
from jaxtyping import UInt8
from torch import Tensor

from everclip.data.images import ZipStore
from everclip.data.pixels import Pixels
from everclip.data.prompts import PHOTO, fill
from everclip.data.sources import SourceConfig, emoji
from everclip.models.clip import Clip
from everclip.models.foreign import open_clip
from everclip.seeding import generator, hash64

SENTENCES, WORDS = 1000, 10


def captions(names: Iterable[str]) -> list[str]:
    """Return the default prompt of each class name."""
    return [fill(PHOTO, name) for name in names]


def imagenet() -> list[str]:
    """Return prompts of the thousand class names of ImageNet, as open_clip words them."""
    return captions(open_clip.IMAGENET_CLASSNAMES)


def sentences() -> list[str]:
    """Return a thousand times ten random words out of ImageNet's class names, always the same."""
    words = sorted({word for name in open_clip.IMAGENET_CLASSNAMES for word in name.split()})
    drawn = generator(0, "random sentences").integers(len(words), size=(SENTENCES, WORDS))
    return [" ".join(words[word] for word in row) for row in drawn.tolist()]


def some(texts: Iterable[str]) -> list[str]:
    """Return a thousand of these texts at most, the same each time."""
    return sorted(texts, key=lambda text: hash64("reference", text))[:SENTENCES]


def pictures(clip: Clip, but: Collection[str], count: int) -> UInt8[Tensor, "n 3 s s"]:
    """At most ``count`` of the emoji pictures that come with the package, the same each time, ready for ``clip``.

    Args:
        but: paths to leave out: those of a run that learns emoji, whose later tasks and test images are no reference.
    """
    kinds = ("class-incremental", "domain-incremental")
    source = emoji.Emoji(SourceConfig())
    every = {key for kind in kinds for key in source.load(None, kind).train.store.keys}
    chosen = sorted(every.difference(but), key=lambda key: hash64("reference", key))[:count]
    store = ZipStore(emoji.verified("pictures.zip"), chosen)
    decoded, _ = Pixels(store, clip.eval_transform, clip.image_size, 0, 0).load(np.arange(len(chosen)))
    return decoded
