"""Many small updates in a row, as pictures arrive: a stream of batches.

    python examples/many_updates.py [FOLDER]

Batches of twelve pictures come with their names; some bring a class for the first time. Nothing is trained: such
batches are too small for training, and sums over frozen features take them in exactly.
"""

from __future__ import annotations

import io
import sys

import numpy as np
from PIL import Image

import everclip
from everclip import data

CLASSES, BATCH = 12, 12


def main(folder: str | None = None) -> float:
    """Accuracy in 0..1 on held-out pictures after the last batch."""
    emoji = data.load("emoji", model="lite")
    train = emoji.train.of_classes(range(CLASSES))
    order = np.argsort(train.labels, kind="stable")  # class after class, as in life
    pictures = [Image.open(io.BytesIO(train.store.read(row))) for row in train.rows[order].tolist()]
    names = [emoji.class_names[label] for label in train.labels[order].tolist()]
    learner = everclip.Learner("lite", image_size=96, method="ridge")
    test = emoji.test.of_classes(range(CLASSES))
    held = [test.store.read(row) for row in test.rows.tolist()]
    truth = [emoji.class_names[label] for label in test.labels.tolist()]
    accuracy = 0.0
    for start in range(0, len(pictures), BATCH):
        learner.partial_fit(pictures[start : start + BATCH], names[start : start + BATCH])
        found = learner.predict(held)
        accuracy = float(np.mean([one == other for one, other in zip(found, truth, strict=True)]))
        print(
            f"{start + BATCH:4d} pictures, {len(learner.classes):2d} classes: {accuracy:.1%} of {CLASSES} classes"
        )
    if folder:
        print(f"written: {learner.save(folder)}")
    return accuracy


if __name__ == "__main__":
    main(*sys.argv[1:])
