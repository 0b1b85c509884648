"""Decide whether, where and in what size a run keeps the activations of its model's frozen part.

Config, method and model alone decide where the image tower is cut: whoever opens the run later has to cut in the same
place. Where the activations are kept affects only the time taken (and, where a class comes in many tasks, the last
bit); without room for them they are computed anew each time, and not rounded. docs/decisions/0009-frozen-trunk.md has
the reasons.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch

from everclip.config import Config
from everclip.data.cache.activations import Activations, fingerprint
from everclip.data.cache.rows import Memory, Rows, Shared, Spilled
from everclip.data.cache.views import SCHEME
from everclip.data.images import ImageSet, joined
from everclip.data.loader import Loader
from everclip.data.pixels import Pixels
from everclip.distributed import collectives
from everclip.errors import UserError
from everclip.methods.base.method import Method
from everclip.models import precision, zoo
from everclip.models.clip import Clip
from everclip.models.pooled import both
from everclip.models.trunk import Beside
from everclip.models.tunings import tuning_of
from everclip.runs import words
from everclip.system import cache_folder
from everclip.system.machine import free_memory
from everclip.system.progress import Progress
from everclip.training.cache_size import Size
from everclip.training.plan import Plan

FORMAT = 5
"""Version of a shared cache's rows; raise it when they are computed in another way."""
SHARE = 0.8
"""Fraction of the free main memory that kept activations may take."""


def blocks_above(config: Config, method: Method) -> int | None:
    """Return how many last blocks of the image tower stay above the cut; None where it is not cut.

    Raises:
        UserError: ``cache.trunk=on`` with nothing to keep, or ``cache.views`` with an augmentation that cannot be kept.
    """
    cache, augment = config.cache, config.train.augment
    if cache.trunk == "off":
        return None
    trains, reads = method.capabilities.trains, method.capabilities.reads
    frozen = tuning_of(config.tune, config.tuning.options).blocks[0] if trains else 0
    reason = None
    if frozen is None:
        reason = (
            f"keeps the output of the image tower's frozen part, but tune={config.tune} trains all of it",
            "tune=top:K, tune=head",
        )
    elif reads == "pixels":
        reason = f"but method={config.method.name} reads the pictures or changes all blocks", "another method"
    elif trains and config.train.patch_dropout:
        reason = "but train.patch_dropout drops other patches in each step", "train.patch_dropout=0"
    elif trains and cache.views > 1 and augment == "none":
        raise UserError(
            f"cache.views={cache.views} keeps augmented views, but train.augment=none makes none:"
            " use train.augment=shift_flip, or cache.views=1"
        )
    elif trains and cache.views > 1 and augment != "shift_flip":
        raise UserError(
            f"cache.views={cache.views} keeps shifted and mirrored views, but train.augment={augment} asks"
            f" for others: use train.augment=shift_flip, or cache.views=1"
        )
    elif trains and cache.views == 1 and augment != "none":
        reason = (
            f"keeps the unchanged picture with cache.views=1, but train.augment={augment} draws a new view"
            f" each time",
            "train.augment=none, cache.views=4",
        )
    if reason is None:
        # a method that copies last blocks needs one
        return max(frozen or 0, 1) if reads == "blocks" else frozen
    if cache.trunk == "on":
        raise UserError(f"cache.trunk=on {reason[0]}: use {reason[1]} or cache.trunk=off")
    return None


def cut(clip: Clip, config: Config, method: Method) -> None:
    """Cut a model where config and method require, before it is used.

    Raises:
        UserError: as ``blocks_above``; ``cache.trunk=on`` and a tower that cannot be cut.
    """
    blocks = blocks_above(config, method)
    if blocks is not None:
        try:
            clip.cut(blocks, beside=beside(method))
        except UserError:
            if config.cache.trunk == "on":
                raise
    if config.cache.trunk == "off" or not method.capabilities.trains:
        return
    if clip.trunk is not None:  # auto is settled at the first step, after the first rows
        clip.trunk.bf16 = config.train.precision == "bf16" and not clip.trunk.vectors
    clip.keep_features()
    tuning = tuning_of(config.tune, config.tuning.options)
    if count := tuning.blocks[1]:
        clip.keep_text(tuning.held(clip), count)


def beside(method: Method) -> Beside | None:
    """Return what a method reads from the tower besides its features."""
    if method.capabilities.depths is not None:
        return method.capabilities.depths.beside
    return both if method.capabilities.reads == "pooled" else None


def forecast(plan: Plan) -> Size | None:
    """Forecast what a run of the plan will keep; None if nothing. Loads the model.

    Raises:
        UserError: the model is not available, or cannot be cut (see ``cut``).
    """
    clip = zoo.load(plan.config.model, plan.config.image_size)
    cut(clip, plan.config, plan.method)
    return None if clip.trunk is None else Size.of(plan, clip)


def loader(plan: Plan, clip: Clip, folder: Path, progress: Progress) -> Loader:
    """Return the loader of a run, with a cache of activations where the model was cut.

    Args:
        folder: the run's; a cache that does not fit into memory is an unnamed file in it.

    Raises:
        UserError: the disk has no room, but ``cache.trunk=on`` or ``cache.views`` asks for the cache.
    """
    config = plan.config
    size = None if clip.trunk is None else Size.of(plan, clip)
    parts = _parts(plan)
    rows = None if size is None else _rows(plan, clip, size, [*parts[0], *parts[1]], folder, progress)
    pixels = Pixels(
        plan.data.train.store,
        clip.eval_transform,
        clip.image_size,
        config.loader.cache_mb << 20 if rows is None or size is None or not size.views else 0,
        config.loader.workers,
    )
    activations = None
    if rows is not None and size is not None and clip.trunk is not None:
        begin = partial(progress.aside, "computing activations to keep")
        training = partial(precision.training, clip, "bf16") if clip.trunk.bf16 else nullcontext
        activations = Activations(
            pixels, clip.normalise, rows, size.views, *parts, size.rows, begin, training
        )
    light = config.distributed.gather == "light"
    return Loader(pixels, config.train.batch_size, config.train.augment, config.seed, activations, light)


def _parts(plan: Plan) -> tuple[list[ImageSet], list[ImageSet]]:
    """Return the training and the test images of a run, in the parts that its cache groups them by.

    A cache of the run's own keeps only the rows of a group that a task needs: if a group spanned several tasks, as it
    could where a class comes in many, each task would compute all of it. A shared cache keeps whole groups, which serve
    any cut into tasks.
    """
    train, test = [task.train for task in plan.tasks], [task.test for task in plan.tasks]
    return ([joined(train)], [joined(test)]) if plan.config.cache.shared else (train, test)


def _rows(
    plan: Plan, clip: Clip, size: Size, parts: list[ImageSet], folder: Path, progress: Progress
) -> Rows | None:
    """Return the rows that keep the activations, and report them in a line; None where there is no room."""
    cache = plan.config.cache
    if cache.shared:
        about = _about(plan, clip, size, parts)
        name = hashlib.blake2b(json.dumps(about, sort_keys=True).encode(), digest_size=12).hexdigest()
        rows = Shared(size.shape, size.exact, cache_folder.folder() / "activations" / name, about)
        if not _room(max(0, size.nbytes - rows.nbytes), size.views, rows.folder, plan, progress):
            return None
        there = f", {len(rows):,} of them done already" if len(rows) else ""
        progress.say(f"{size.words()} in {rows.folder}{there}")
        return rows
    free, here = free_memory(), collectives.here()  # each process here keeps all rows
    fits = size.nbytes <= cache.ram_mb << 20 and (free is None or here * size.nbytes <= SHARE * free)
    if not _room(0 if fits else here * size.nbytes, size.views, folder, plan, progress):
        return None
    if fits:
        progress.say(f"{size.words()} in memory")
        return Memory(size.shape, size.exact)
    progress.say(f"{size.words()} in a file in {folder}")
    return Spilled(size.shape, size.exact, folder)


def _room(needed: int, views: int, folder: Path, plan: Plan, progress: Progress) -> bool:
    """Return whether the disks of all processes have room: they keep the rows together or not at all, as those that do
    wait for each other. Raises UserError where one has not and the config demands the rows."""
    asked = collectives.told(
        [needed, _free(folder) if needed else 0]
    )  # on another machine there may be no such folder
    lacking = [(needed, free) for needed, free in asked if needed > free]
    if not lacking:
        return True
    needed, free = lacking[0]
    line = f"the kept activations need {words.size(needed)} and {folder} has {words.size(free)} free"
    if plan.config.cache.trunk == "on" or views > 1:
        raise UserError(f"{line}: make room, or use cache.trunk=off")
    progress.say(f"{line}: they are computed again each time instead")
    return False


def _free(folder: Path) -> int:
    return shutil.disk_usage(folder).free


def _about(plan: Plan, clip: Clip, size: Size, parts: list[ImageSet]) -> dict[str, Any]:
    """Return all that a row depends on, except its image."""
    assert clip.trunk is not None
    depths = plan.method.capabilities.depths
    return (
        {
            "format": FORMAT,
            "tower": clip.config["vision_cfg"],
            "trunk": clip.trunk.digest(),
            "preprocessing": clip.preprocessing(),
            "row": [*size.shape],
            "dtype": "float32" if size.exact else "float16",
            "views": SCHEME,
            "images": fingerprint(parts),
            "device": clip.device.type,
            "torch": torch.__version__,
        }
        | ({"training": "bf16"} if clip.trunk.bf16 else {})
        | ({} if depths is None else {"depths": repr(depths)})
    )
