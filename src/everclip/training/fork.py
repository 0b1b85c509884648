"""Start a run from another one's state after K tasks (``fork = "RUNS@K"``), and learn the rest with its own settings.

The other run's checkpoint is copied with the log up to there, so the new directory does not depend on the old one.
Settings that determine those tasks' images and the model must agree; settings that only affect training (rates,
lengths, exemplars, the method's options) may differ, which is the purpose of a fork.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from everclip import methods
from everclip.config import Config, config_hash
from everclip.config.values import dotted
from everclip.errors import UserError
from everclip.methods.base.method import Method
from everclip.runs.find import find_runs
from everclip.runs.run import IMAGES, Run
from everclip.system import trust
from everclip.system.checkpoint import Damaged, Place, verify
from everclip.system.reading import open_regular, read_json
from everclip.training import noted, references
from everclip.training.environment import environment
from everclip.training.plan import Plan
from everclip.training.restore import RECORD, SETTINGS, device, fitting, restore, saved

SAME = (
    "data",
    "source",
    "model",
    "classnames",
    "templates",
    "image_size",
    "center",
    "tune",
    "tuning",
    "smoke",
    "seed",
    "scenario",
    "method.name",
    "train.precision",
)
"""Keys in which a run and the one that it is forked from must agree."""


class Source(NamedTuple):
    """The checkpoint that a run is forked from."""

    run: Run
    place: Place

    @property
    def folder(self) -> Path:
        """The checkpoint's folder, in the run that is forked."""
        return self.run.store.folder(self.place)


def source(config: Config) -> Source:
    """Return the checkpoint that ``config.fork`` asks for.

    Raises:
        UserError: no run fits the config, or several do, or the one that does has no checkpoint there.
    """
    assert config.fork is not None
    where, _, number = config.fork.rpartition("@")
    fitting, reasons = [], dict[str, None]()
    for finished in find_runs([where]):
        try:
            with trust.reading():
                other = Run.read_config(finished.path)
        except trust.Refused as error:
            reasons[str(error)] = None
            continue
        different = _different(other, config)
        if different:
            reasons[different] = None
        else:
            fitting.append(Run(finished.path, other))
    if not fitting:
        raise UserError(
            f"fork={config.fork}: no finished run there can be the start of this one"
            f" ({'; '.join(reasons) or 'there is none'}): give one that differs only in how it trains"
        )
    if len(fitting) > 1:
        names = " and ".join(str(run.path) for run in fitting[:2])
        raise UserError(f"fork={config.fork}: {len(fitting)} runs fit, such as {names}: name one of them")
    (run,), place = fitting, Place(int(number))
    there = [place.task for place in run.store.places() if place.whole and place.task]
    if not there:
        raise UserError(
            f"fork={config.fork}: the checkpoints of {run.path} are gone: train it again, and keep them"
        )
    if place.task not in there:
        have = ", ".join(map(str, there))
        raise UserError(
            f"fork={config.fork}: {run.path} has checkpoints after {have} tasks: use one of these numbers,"
            f" or repeat the run with checkpoint.keep={len(there) + place.task} to keep more"
        )
    return Source(run, place)


def check(plan: Plan) -> Source:
    """Make sure that a plan can continue from the checkpoint that its config asks for; the plan is not changed.

    Raises:
        UserError: it cannot; or as ``source`` does.
    """
    found = source(plan.config)
    if found.place.task >= len(plan.tasks):
        raise UserError(
            f"fork={plan.config.fork}: there are {len(plan.tasks)} tasks: fork after fewer, or nothing is"
            f" left to learn"
        )
    try:
        verify(found.folder)
        kept = saved(found.folder, found.place)
        made = methods.build(plan.config, plan.prompts)
        _check_reads(found.run.config, methods.build(found.run.config, plan.prompts), made)
        restore(replace(plan, method=made), kept)
        different = noted.difference(found.run.path, plan)
        with fitting(found.folder):
            measured = (kept.state["record"].get("frozen") or {}).get("frozen_features") is not None
    except Damaged as error:
        raise UserError(
            f"fork={plan.config.fork}: {found.folder} is damaged ({error}): use another K, or train it again"
        ) from None
    except UserError as error:
        raise UserError(f"fork={plan.config.fork} cannot be continued from: {error}") from error
    if plan.config.references == "all" and references.wanted(plan.config, plan.sizes()) and not measured:
        raise UserError(
            f"fork={plan.config.fork}: references=all, but {found.run.path} has not measured the frozen features,"
            " which is done before the first task: leave references out, or repeat that run with references=all"
        )
    if different:
        raise UserError(
            f"fork={plan.config.fork}: {different}; put the data back, or learn all tasks in a new run"
        )
    return found


def _check_reads(config: Config, there: Method, here: Method) -> None:
    """Refuse a method whose sums would be over other features than they are so far. Raises UserError."""
    if getattr(there, "depths", None) != getattr(here, "depths", None):
        raise UserError(
            f"{config.method.name} there reads other parts of the tower: give the method's options of that run, or its"
            f" defaults={config.defaults}"
        )


def begin(run: Run, plan: Plan) -> None:
    """Copy the checkpoint that a new run's config asks for.

    Raises:
        UserError: as ``check`` does.
    """
    found = check(plan)
    record = read_json(found.folder / RECORD)
    record["record"]["forked_from"] = {
        "run": str(found.run.path),
        "stage": found.place.task,
        "config": config_hash(found.run.config),
    }
    with open_regular(found.run.path / "metrics.jsonl") as log:
        run.write("metrics.jsonl", log.read(min(record["log_bytes"], os.fstat(log.fileno()).st_size)))
    run.write("environment.json", json.dumps(environment(device(plan.config.device)), indent=2) + "\n")
    if (found.run.path / IMAGES).is_file():
        run.write(IMAGES, (found.run.path / IMAGES).read_bytes())

    def copy(folder: Path) -> None:
        others = shutil.ignore_patterns("manifest.json", SETTINGS)  # the fork has settings of its own
        shutil.copytree(found.folder, folder, dirs_exist_ok=True, ignore=others)
        (folder / RECORD).write_text(json.dumps(record), encoding="utf-8")

    run.store.commit(found.place, copy)


def _different(other: Config, config: Config) -> str:
    """Return the first key that must agree in two configs but does not, with both values; empty where there is none."""
    there, here = (dotted(one.model_dump()) for one in (other, config))
    for key in there | here:
        fixed = any(f"{key}.".startswith(f"{same}.") for same in SAME)
        if fixed and there.get(key) != here.get(key):
            return f"{key} is {there.get(key)} there and {here.get(key)} here"
    return ""
