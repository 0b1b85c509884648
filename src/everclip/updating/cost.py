"""Predict the time, memory and disk space of an update, measured on a few blank images before anything trains."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from everclip.models.clip import Clip
from everclip.system.machine import peak_resident
from everclip.training.pace import measured
from everclip.updating.candidates import SHARES
from everclip.updating.classifiers import Known, width
from everclip.updating.images import Pictures
from everclip.updating.rule import Decision

BATCH = 32
COPIES = 4
"""Copies of the model at the same time: the frozen, the initial, the trained and an interpolated one."""
OVERHEAD = 3.0
"""Seconds for reading the model, hashing and writing."""


@dataclass(frozen=True)
class Cost:
    """A prediction.

    Args:
        seconds, training_seconds: total time, and the part spent training.
        memory: peak bytes of main memory.
        disk: bytes of the version, without its exemplars.
    """

    seconds: float
    training_seconds: float
    memory: int
    disk: int


def predict(clip: Clip, pictures: Pictures, decision: Decision, tested: int) -> Cost:
    """Return the cost of an update whose images are read already.

    Args:
        clip: the frozen model.
        tested: held-out images.
    """
    classes, prompts = len(pictures.known.names), len(pictures.known.templates)
    image, text = measured(clip, prompts > 0)
    training = mixtures = 0.0
    if decision.train:
        per_step = BATCH * image + min(classes, BATCH) * text
        training = 3 * decision.steps * per_step
        mixtures = (1 + len(SHARES)) * (len(pictures.checks) * image + classes * prompts * text)
    # the layers are read for a picture and for its mirror image
    once = 2 * (len(pictures.new) + len(pictures.older)) + 5 * len(pictures.checks) + 4 * tested
    known = 4 * classes * prompts * text
    return Cost(
        seconds=OVERHEAD + once * image + known + training + mixtures,
        training_seconds=training,
        memory=_memory(clip, pictures, decision.train),
        disk=_weights(clip) * (2 if decision.train else 1) + 2 * 8 * width(pictures.known, clip) ** 2,
    )


def least(known: Known, clip: Clip) -> int:
    """Return the bytes that any version of a model takes on a disk: its weights, and half of a symmetric matrix."""
    return _weights(clip) + 8 * width(known, clip) ** 2 // 2


def _weights(clip: Clip) -> int:
    return sum(value.nbytes for value in clip.model.state_dict().values())


def _memory(clip: Clip, pictures: Pictures, train: bool) -> int:
    """Return bytes: the process's peak so far, copies of the model, gradients and moments, activations, sums."""
    now = peak_resident()
    sums = 6 * 8 * width(pictures.known, clip) ** 2
    if not train:
        return now + sums + _weights(clip)
    classes = min(len(pictures.known.names), BATCH)
    blank = clip.blank()
    image = _activations(clip, lambda: clip.encode_image(blank))
    text = _activations(clip, lambda: clip.encode_text(["a photo of a thing."]))
    return now + sums + (COPIES + 3) * _weights(clip) + BATCH * image + classes * text


@torch.inference_mode()
def _activations(clip: Clip, work: Callable[[], Tensor]) -> int:
    """Return the bytes that a tower's layers output, which training keeps."""
    total = 0

    def note(_module: nn.Module, _inputs: object, output: object) -> None:
        nonlocal total
        total += output.nbytes if isinstance(output, Tensor) else 0

    leaves = [module for module in clip.model.modules() if not list(module.children())]
    with ExitStack() as hooks:
        for module in leaves:
            hooks.enter_context(module.register_forward_hook(note))
        work()
    return total
