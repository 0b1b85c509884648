"""Decide from the data, before anything is trained, which candidate an update prefers, how it trains, and why.

The table is in docs/update.md, with the measurements behind it. The preferred candidate is compared with the others
on check images and gives way to one that is significantly better there.
"""

from __future__ import annotations

from dataclasses import dataclass, field

FEW_IMAGES = 20
"""Number of new images below which nothing is trained: too few to train and to check on."""
SMALL_MEMORY = 1.0
"""Exemplars per class below which old classes count as not remembered."""
CLOSE = 0.9
"""Zero-shot accuracy on the new images above which there is little to learn."""
LEAST_STEPS, EPOCHS, BATCH = 20, 2, 32
"""Length of training: the least number of steps, the number of epochs, and the batch size."""


@dataclass(frozen=True)
class Facts:
    """The facts that the rule decides from.

    Args:
        old, new, again: number of classes known before; not known before; known before and with new images.
        images: number of new images to learn from; ``per_class`` is their median over the classes.
        exemplars: mean number of old images to train on per old class.
        summed: fraction of the old classes that the sums know.
        layers: whether the sums hold the layers as well as the embedding.
        zero_shot: accuracy of the frozen model's text tower on the new check images, among all classes; None where
            there are none.
        towers: whether the model has towers, to train and to embed names with; else it takes features.
    """

    old: int
    new: int
    again: int
    images: int
    per_class: float
    exemplars: float
    summed: float
    layers: bool
    zero_shot: float | None
    towers: bool = True


@dataclass(frozen=True)
class Decision:
    """The rule's decision.

    Args:
        prefer: the candidate to choose unless another one is clearly better on the check images.
        train: whether to train a model, with ``method``, for ``steps`` steps, at ``lr_share`` of its own rate.
        prior: what ridge regression is drawn towards.
        why: the reasons, in sentences.
    """

    prefer: str
    train: bool
    method: str
    lr_share: float
    steps: int
    prior: str
    why: tuple[str, ...] = field(default=())


def decide(facts: Facts, choice: str, keep: bool = False) -> Decision:
    """Apply the rule to these facts.

    Args:
        choice: ``auto``, or the candidate that the user asks for.
        keep: whether the encoder has to stay as it is.
    """
    why = []
    remembered = facts.old == 0 or facts.exemplars >= SMALL_MEMORY
    known = facts.old == 0 or facts.summed == 1
    method = "gcl" if facts.new else "finetune"
    what = "new classes" if facts.new else "only new images of old classes"
    trains = f"{what}: training uses {method} (docs/update.md says why)"
    lr_share = 1 / 3 if remembered else 1 / 10
    seen = facts.images + round(facts.exemplars * facts.old)
    steps = max(LEAST_STEPS, EPOCHS * -(-seen // BATCH))
    train = facts.images >= FEW_IMAGES and (remembered or not facts.new)
    if not facts.towers:
        train = False
        why.append(f"{what}, as features alone: nothing is trained")
    elif facts.images < FEW_IMAGES:
        why.append(f"{facts.images} new images, fewer than {FEW_IMAGES}: nothing is trained")
    elif not train:
        few = f"{facts.exemplars:.1f} exemplars per old class, below {SMALL_MEMORY:g}"
        why.append(f"{few}: training would forget these classes, so nothing is trained")
    elif keep:
        train = False
        why.append("--index keep: nothing is trained, so that embeddings of the previous version fit")
    else:
        why.append(trains)
    prefer, prior = "ridge", "text" if facts.towers else "none"
    if known and facts.layers:
        prefer = "layers"
        why.append("the sums know every old class: discriminants on the frozen model's layers are preferred")
    elif known:
        why.append("the sums know every old class, but only its embeddings: ridge regression is preferred")
    elif not facts.towers:
        why.append(f"{1 - facts.summed:.0%} of the old classes are not in the sums: give features of them")
    else:
        named = f"{1 - facts.summed:.0%} of the old classes are known only by name"
        why.append(f"{named}: ridge regression shrunk towards the class embeddings is preferred")
    if facts.zero_shot is not None and facts.zero_shot >= CLOSE and not known:
        prefer = "nothing"
        right = f"{facts.zero_shot:.0%} of the new check images"
        why.append(f"the text tower alone classifies {right} correctly: it stays")
    if choice != "auto":
        prefer, train = choice, choice in ("trained", "interpolated") and facts.images > 0
        why = [f"--method {choice} was asked for", *[trains] * train]
    return Decision(prefer, train, method, lr_share, steps, prior, tuple(why))
