"""Record a run's images in ``images.npz`` when it begins, and compare them when it continues."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from everclip.data.inventory import Inventory, compare, hashed, of
from everclip.distributed import collectives
from everclip.errors import UserError
from everclip.runs.run import IMAGES, Run
from everclip.system.progress import Progress
from everclip.system.reading import readable
from everclip.training.plan import Plan

log = logging.getLogger("everclip")


class Noted(NamedTuple):
    """The part of results.json about the images.

    Args:
        duplicates: how many test images are training images too; None where that is not known.
        copies: how many training images repeat another one; None likewise.
        changed: what differed when the run continued with --changed-data: "images", how many, and the "first" of them.
    """

    duplicates: int | None
    copies: int | None
    changed: dict[str, Any] | None


NOTHING = Noted(None, None, None)


def read(folder: Path) -> Inventory | None:
    """Read what the run in a folder has noted; None for a run of an earlier version. Raises UserError if damaged."""
    path = folder / IMAGES
    if not path.exists():
        return None
    remedy = "remove it, and the run continues without knowing whether its images changed"
    with readable(path, remedy, "is damaged"):
        return Inventory.read(path)


def keep(run: Run, plan: Plan, goes_on: bool, progress: Progress) -> Noted:
    """Record the images of a run, or compare them if it continues; only the first process does so.

    Raises:
        UserError: they have changed since the run began, and ``run.changed_data`` does not allow that.
    """
    kept, wrong = _kept(run, plan, goes_on, progress) if run.writes else (None, "")
    wrong = collectives.from_first(wrong)
    if wrong:
        raise UserError(wrong)
    if kept is None:
        return NOTHING
    copies = kept.duplicates()
    if copies:
        log.warning(
            "%d of %d test images are also training images, which inflates accuracy",
            *(copies, kept.is_test.sum()),
        )
    return Noted(copies, kept.copies(), kept.changed)


def _kept(run: Run, plan: Plan, goes_on: bool, progress: Progress) -> tuple[Inventory | None, str]:
    """Return the inventory as it is now, or why the run cannot go on."""
    tasks, store = plan.tasks, plan.data.train.store
    before = read(run.path) if goes_on else None
    if before is None:
        if goes_on:
            log.info("this run was begun by an earlier version, so changes to its images cannot be detected")
        return _noted(run, plan, progress, None), ""
    change, now = compare(before, tasks, store)
    if change is None:
        if not (np.array_equal(now.stamps, before.stamps) and now.keys == before.keys):
            run.write(IMAGES, now.packed())  # a copy of the data, which need not be read again
        return now, ""
    words = change.words(plan.config.data, "this run", len(before))
    if not run.changed_data:
        return None, (
            f"{words}; put the data back, start a new run, or use everclip resume {run.path} --changed-data"
            f" to continue anyway"
        )
    log.warning("%s; the run continues anyway", words)
    earlier = before.changed or {"images": 0, "first": change.first}
    changed = {"images": earlier["images"] + change.images, "first": earlier["first"]}
    return _noted(run, plan, progress, changed), ""


def _noted(run: Run, plan: Plan, progress: Progress, changed: dict[str, Any] | None) -> Inventory:
    """Note the images as they are now."""
    tasks, store = plan.tasks, plan.data.train.store
    stamped = of(tasks, store)
    progress.start("recording the images", len(stamped))
    noted = hashed(stamped, tasks, store, progress.count)
    noted = replace(noted, changed=changed)
    run.write(IMAGES, noted.packed())
    return noted


def difference(folder: Path, plan: Plan) -> str:
    """Describe how a plan's images differ from those of the run in a folder; empty where they do not."""
    before = read(folder)
    if before is None:
        return ""
    change, _ = compare(before, plan.tasks, plan.data.train.store)
    return "" if change is None else change.words(plan.config.data, str(folder), len(before))
