"""Every loss on features of a batch that processes share, and its gradient by what made the features."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from everclip.distributed import collectives
from everclip.losses import contrastive, distill, dro, elastic, prototypes, supcon
from everclip.losses.contrastive import Part

IMAGES, WIDTH, CLASSES = 7, 5, 3  # 7: two processes have 4 and 3


@dataclass
class Batch:
    """Features with gradient, of which each process has made its own rows, and what a loss needs beside them."""

    image: Tensor
    second: Tensor
    text: Tensor
    head: Tensor
    labels: Tensor
    share: collectives.Share | None
    teacher: Tensor

    @property
    def logits(self) -> Tensor:
        return 4 * self.image @ self.head.T


def pair(on: Batch, kind: contrastive.Negatives, form: contrastive.PairLoss, light: bool = False) -> Tensor:
    """GDRO's way through the losses of pairs: means, moving averages, group weights, surrogate, objective."""
    among = contrastive.negatives(on.labels, kind)
    positives = ~among if kind == "multi_positive" else None
    losses = contrastive.differences(on.image @ on.text.T, positives)
    losses = tuple(contrastive.pair_loss(side, form, 0.3) for side in losses)
    assert len(losses) == 2
    fresh = contrastive.log_means(losses, among, 0.1)
    log_u = contrastive.moving_average(fresh - 1, torch.ones_like(fresh, dtype=torch.bool), fresh, 0.7)
    _, means = dro.group_means(contrastive.objective(log_u, 0.1), on.labels)
    weights = (
        dro.kl_weights(means, 0.2)[on.labels] + dro.sagawa_step(weights_of(means), means, 0.1)[on.labels]
    )
    if light and on.share is not None:
        part = Part(on.image, on.text, among, on.share.own, form, 0.3)
        own = tuple(contrastive.pair_loss(side, form, 0.3) for side in part.rows())
        assert len(own) == 2
        return part.surrogate(own, log_u, 0.1, weights)
    return contrastive.surrogate(losses, log_u, among, 0.1, weights)


def weights_of(means: Tensor) -> Tensor:
    return torch.full_like(means, 1 / len(means))


def imported(on: Batch) -> Tensor:
    drawn = torch.linspace(0.2, 0.8, IMAGES, dtype=torch.float64)
    exemplar = torch.arange(IMAGES) % 2 == 0
    return prototypes.importance(on.labels, on.labels, exemplar, drawn, 2, CLASSES)


def averaged(on: Batch) -> Tensor:
    seen = torch.arange(IMAGES) % 2 == 0
    return supcon.sogclr(on.image, on.second, torch.zeros(IMAGES, dtype=torch.float64), seen, 0.2, 0.8)[0]


CASES: dict[str, Callable[[Batch], Tensor]] = {
    "clip_loss": lambda on: contrastive.clip_loss(on.image, on.text, 5.0),
    "sigmoid_loss": lambda on: contrastive.sigmoid_loss(on.image, on.text, 5.0, -5.0),
    "surrogate": lambda on: pair(on, "other_class", "squared_hinge"),
    "surrogate instance": lambda on: pair(on, "instance", "identity"),
    "surrogate multi_positive": lambda on: pair(on, "multi_positive", "squared_hinge"),
    "light": lambda on: pair(on, "other_class", "squared_hinge", light=True),
    "light instance": lambda on: pair(on, "instance", "identity", light=True),
    "kl_objective": lambda on: dro.kl_objective(on.logits.mean(0), 0.3),
    "distillation": lambda on: distill.distillation(on.teacher, on.logits, 2.0),
    "penalty": lambda on: elastic.penalty(
        {"head": on.head}, {"head": 0 * on.head.detach()}, {"head": on.head.detach() ** 2}
    ),
    "balanced_distillation": lambda on: distill.distillation(
        on.teacher, on.logits, 2.0, distill.effective_weights(on.labels.bincount(), 0.9).double()
    ),
    "prototype_contrast": lambda on: prototypes.prototype_contrast(on.logits, on.labels, imported(on)),
    "mean_contrast": lambda on: prototypes.mean_contrast(on.image, on.head, on.labels, 0.1),
    "known_outputs": lambda on: distill.known_outputs(on.logits, on.teacher[:, :2]).mean(),
    "supervised": lambda on: supcon.supervised(
        torch.cat([on.image, on.second]), on.labels.repeat(2), 0.2, torch.arange(2 * IMAGES) < IMAGES
    ),
    "simclr": lambda on: supcon.simclr(on.image, on.second, 0.2),
    "sogclr": averaged,
    "relation_distillation": lambda on: supcon.relation_distillation(on.text.detach(), on.image, 0.1, 0.2),
}
"""By the function that is called on, and a word more where there are several of one."""


def gradients() -> dict[str, list[float]]:
    """By case: the loss, and the gradients by the image map, the text map and the head."""
    random = torch.Generator().manual_seed(0)

    def numbers(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random, dtype=torch.float64)

    inputs, views, captions = (numbers(IMAGES, WIDTH) for _ in range(3))
    maps = [numbers(WIDTH, WIDTH), numbers(WIDTH, WIDTH), normalize(numbers(CLASSES, WIDTH), dim=1)]
    labels, teacher = torch.tensor([0, 1, 2, 0, 1, 0, 2]), numbers(IMAGES, CLASSES)
    found = {}
    for name, loss in CASES.items():
        image_map, text_map, head = leaves = [torch.nn.Parameter(value.clone()) for value in maps]
        share, own = None, slice(None)
        if collectives.size() > 1:
            share = collectives.Share(
                tuple(len(inputs[part]) for part in collectives.parts(IMAGES)), "light" in name
            )
            own = share.own
        image = normalize(torch.cat([inputs[own], views[own]]) @ image_map, dim=1)
        text = normalize(captions[own] @ text_map, dim=1)
        if share is not None:
            image, text = share.whole(image), share.whole(text)
        first, second = image.chunk(2)
        value = loss(Batch(first, second, text, head, labels, share, teacher))
        value.backward()
        collectives.mean_gradients(leaves)
        flat = [leaf.grad.flatten() for leaf in leaves if leaf.grad is not None]
        found[name] = [*torch.cat(flat).tolist(), *([] if "light" in name else [value.item()])]
    return found
