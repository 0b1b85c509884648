"""A new domain: the same classes in another style of drawing.

    python examples/new_domain.py [FOLDER]

A model learns categories (mammal, fruit, vehicle, ...) from one family of emoji styles, then sees another one.
"""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np

import everclip
from everclip import data
from everclip.data.images import Dataset, ImageSet

OLD, NEW = 0, 1


def style(pictures: Dataset, domains: list[int]) -> Dataset:
    """Some styles of a data set, as one."""

    def of(images: ImageSet) -> ImageSet:
        some = images.select(np.isin(images.domains, domains))
        return replace(some, domains=some.domains * 0)

    return replace(pictures, train=of(pictures.train), test=of(pictures.test), domain_names=("",))


def main(folder: str | None = None) -> float:
    """Accuracy in 0..1 on held-out pictures of both styles."""
    emoji = data.load("emoji", "domain-incremental", model="lite")
    learner = everclip.Learner("lite", image_size=96)
    learner.learn(style(emoji, [OLD]))
    verdict = learner.update(style(emoji, [NEW]), test=style(emoji, [OLD, NEW]), max_drop=5)
    print(f"kept: {verdict['chosen']}, {verdict['reason']}")
    print(f"styles {emoji.domain_names[OLD]} and {emoji.domain_names[NEW]}: {verdict['gate']['words']}")
    if folder:
        print(f"written: {learner.save(folder)}")
    return verdict["test"]["accuracy"]


if __name__ == "__main__":
    main(*sys.argv[1:])
