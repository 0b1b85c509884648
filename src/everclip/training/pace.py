"""Estimate how long a run, or a pass of a tower, takes on this machine: measured on blank images, or assumed from the
rate of matrix products where the model's weights are not here.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from everclip.config import Config
from everclip.models import weights, zoo
from everclip.models.catalogue import Costs, costs
from everclip.models.clip import Clip
from everclip.training import estimate, references, restore
from everclip.training.estimate import Sizes, Work
from everclip.training.plan import Plan

TRIED = 16
"""Number of blank images, and of prompts, in a measurement."""
OVERHEAD = 5.0
"""Seconds for reading the model and writing results and page."""
SHARE = {("cpu", False): 0.6, ("cpu", True): 0.3, ("gpu", False): 0.3, ("gpu", True): 0.15}
"""Fraction of the rate of matrix products that training reaches, by device and whether the image tower is
convolutional."""


class Pace(NamedTuple):
    """Seconds of a forward pass of one image, and of one prompt."""

    image: float
    text: float


class Estimate(NamedTuple):
    """Time and disk space of a run.

    Args:
        measured: whether its model was timed; else its operations were counted.
        shared: seconds that only one of several runs on the same images spends, for all of them: with ``cache.shared``,
            those of the frozen part.
    """

    seconds: float
    disk: float
    measured: bool
    shared: float

    def words(self) -> str:
        """Return the estimate on one line."""
        how = "timed on blank images on this machine" if self.measured else "from its operations"
        return f"{estimate.duration(self.seconds)} ({how}), {self.disk / 1e6:,.0f} MB of disk at most"


@torch.inference_mode()
def measured(clip: Clip, prompts: bool) -> Pace:
    """Return the pace of a model, from the best of three batches; ``prompts``: whether it reads any."""
    blank = clip.blank(TRIED)
    names = [f"a photo of a thing {number}." for number in range(TRIED)]

    def best(compute: Callable[[], Tensor]) -> float:
        took = []
        for _ in range(3):
            begin = time.perf_counter()
            compute().sum().item()
            took.append(time.perf_counter() - begin)
        return min(took) / TRIED

    text = best(lambda: clip.encode_text(names)) if prompts else 0.0
    return Pace(best(lambda: clip.encode_image(blank)), text)


def assumed(model: Costs, rate: float) -> Pace:
    """Return the pace of a model at a rate of operations per second."""
    return Pace(model.image_flops / rate, model.text_flops / rate)


def share(model: Costs, device: str) -> float:
    """Return the fraction of the rate of matrix products that training reaches on a device."""
    return SHARE["cpu" if device == "cpu" else "gpu", model.convolutional]


@functools.cache
def products(device: str, precision: str, side: int = 1024) -> float:
    """Return operations per second of square matrix products, measured for a third of a second, once in a process."""
    kind = torch.bfloat16 if precision == "bf16" else torch.float32
    first = torch.ones(side, side, dtype=kind, device=device)

    product = first @ first
    product[0, 0].item()  # which a GPU of any kind waits for
    start, count = time.perf_counter(), 0
    while (spent := time.perf_counter() - start) < 0.3:
        for _ in range(4):
            torch.matmul(first, first, out=product)
        product[0, 0].item()
        count += 4
    return 2 * side**3 * count / spent


def work(config: Config, sizes: Sizes) -> Work:
    """Count what a resolved config computes, including the references that it is measured against."""
    return estimate.work(config, sizes) + references.work(config, sizes)


def seconds(config: Config, sizes: Sizes, model: Costs, pace: Pace) -> float:
    """Return seconds of a run of a resolved config."""
    images, prompts = work(config, sizes).passes(model, config)
    return OVERHEAD + images * pace.image + prompts * pace.text


def of_plan(plan: Plan) -> Estimate | None:
    """Estimate a run of a plan; None if the model's operations are unknown.

    Raises:
        UserError: the device or the model is not available.
    """
    config, sizes = plan.config, plan.sizes()
    model = costs(config.model, config.image_size)
    if model is None:
        return None
    here, device = weights.are_here(config.model), restore.device(config.device)
    if here:
        pace = _pace_of(config.model, config.image_size, device)
    else:
        pace = assumed(model, products(device, config.train.precision) * share(model, device))
    disk = estimate.disk_bytes(config, model, len(sizes.train))
    shared = work(config, sizes).frozen(model, config) * pace.image if config.cache.shared else 0.0
    return Estimate(seconds(config, sizes, model, pace), disk, here, shared)


@functools.cache
def _pace_of(spec: str, image_size: int | None, device: str) -> Pace:
    """Load a model and return its pace, once in a process."""
    clip = zoo.load(spec, image_size, device)
    return measured(clip, bool(clip.image_size))
