"""New classes: a model that knows ten kinds of things learns five more.

    python examples/new_classes.py [FOLDER]

The pictures are those of the offline default. The version is written to FOLDER (pets, or whatever you call it), which
everclip predict, evaluate, export and update accept; its verdict.html says what was compared.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace

import everclip
from everclip import data
from everclip.data.images import Dataset

KNOWN, NEW = range(10), range(10, 15)


def part(pictures: Dataset, labels: Sequence[int]) -> Dataset:
    """Some classes of a data set."""
    train, test = pictures.train.of_classes(labels), pictures.test.of_classes(labels)
    return replace(pictures, train=train, test=test)


def main(folder: str | None = None) -> float:
    """Accuracy in 0..1 on held-out pictures of old and new classes."""
    emoji = data.load("emoji", model="lite")
    learner = everclip.Learner("lite", image_size=96)
    learner.learn(part(emoji, KNOWN))
    verdict = learner.update(part(emoji, NEW), test=part(emoji, [*KNOWN, *NEW]), max_drop=10)
    print(f"kept: {verdict['chosen']}, {verdict['reason']}")
    print(f"{verdict['gate']['words']}; passed: {verdict['gate']['passed']}")
    print(f"{len(learner.classes)} classes, {verdict['test']['accuracy']:.1%} right on held-out pictures")
    if folder:
        print(f"written: {learner.save(folder)}")
    return verdict["test"]["accuracy"]


if __name__ == "__main__":
    main(*sys.argv[1:])
