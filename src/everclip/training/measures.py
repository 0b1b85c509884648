"""Compute the keys of results.json that streams are judged by, once a run has finished."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from everclip.metrics import streams

if TYPE_CHECKING:
    from everclip.training.plan import Plan
    from everclip.training.recorder import Recorder


def of(record: Recorder, plan: Plan) -> dict[str, Any]:
    """Return macro accuracy, the worst class, and the measures that the run's scenario asks for; null for the other
    measures."""
    last, scenario = record.last_per_class(), plan.scenario
    worst = min(last, key=lambda label: (last[label], label))
    return {
        "macro": streams.mean([*last.values()]),
        "worst_class": {"class": plan.prompts.names[worst], "last": last[worst]},
        "any_time": streams.area(record.matrix.accuracy_after_stage, [len(task.train) for task in plan.tasks])
        if scenario.any_time
        else None,
        "by_frequency": _by_frequency(last, plan),
        "cross_domain": _cross_domain(record, plan),
    }


def _by_frequency(last: dict[int, float], plan: Plan) -> dict[str, Any] | None:
    """Return the accuracy of the classes with many, with a medium number of, and with few training images."""
    borders = plan.scenario.frequency
    if borders is None:
        return None
    counts = sum(task.train.counts(len(plan.prompts.names)) for task in plan.tasks)
    images = dict(enumerate(np.asarray(counts).tolist()))
    groups = streams.by_frequency(last, images, *borders)
    return {name: group._asdict() for name, group in groups.items()} | {
        "many_above": borders[0],
        "few_below": borders[1],
    }


def _cross_domain(record: Recorder, plan: Plan) -> dict[str, Any] | None:
    """Return Transfer, Average and Last, the matrix that they are read from, and the pretrained model's Transfer."""
    task_id = plan.scenario.task_id
    if task_id is None:
        return None
    found = streams.transfer(record.everywhere)
    pretrained = record.zero_shot["per_task"] or []
    return {
        "task_id": task_id,
        **found._asdict(),
        "transfer_of_zero_shot": streams.mean([value for value in pretrained[1:] if value is not None]),
        "matrix": record.everywhere,
    }
