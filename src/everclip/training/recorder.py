"""Record a run's measurements, and write them to results.json (schema 1)."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from everclip._version import __version__
from everclip.data.loader import Loader
from everclip.data.memory import Memory
from everclip.data.scenario import Task, seen
from everclip.data.templates import set_name
from everclip.methods.base.method import Method
from everclip.metrics.matrix import Matrix
from everclip.runs.run import Clock, Run
from everclip.system.text import csv_text
from everclip.training import measures
from everclip.training.environment import peak_memory
from everclip.training.evaluate import Measured, Scores
from everclip.training.noted import NOTHING, Noted
from everclip.training.retrieve import Recalls, told

if TYPE_CHECKING:
    from everclip.training.plan import Plan

SCHEMA = 1
NOT_MEASURED: dict[str, Any] = dict.fromkeys(
    ("frozen_features", "frozen_features_after_stage", "frozen_features_methods")
)
"""Keys of results.json on the frozen features, where they were not measured."""
_SAVED = (
    *("optimizer_steps", "samples_seen", "training_seconds", "trainable_parameters", "precision"),
    *("zero_shot", "frozen", "forked_from", "everywhere", "retrieval"),
)
"""Attributes stored unchanged in a checkpoint."""
_UNSAVED = {"frozen": NOT_MEASURED, "forked_from": None, "everywhere": [], "retrieval": None}
"""Attributes that earlier versions did not store."""


class Recorder:
    """Measurements of a run. ``state_dict`` holds all but the last stage's scores, so that a resume continues counting.

    Args:
        images: what the writing process recorded about them.

    Attributes:
        frozen: accuracies of the frozen features, as in results.json.
        precision: what ``train.precision=auto`` became at the run's first step.
        everywhere: after each stage the accuracy on each task, learned or not, where all are tested.
        forked_from: the run, its number of tasks and its config's hash, if this run was forked from another.
        retrieval: for data with captions, recalls and ranks of the pretrained model and after each stage.
        skipped_steps, skipped_in_a_row: skipped steps in all, and since the last step taken.
    """

    def __init__(self, tasks: Sequence[Task], images: Noted = NOTHING) -> None:
        self.tasks = tasks
        self.images = images
        self.matrix = Matrix()
        self.optimizer_steps = 0
        self.samples_seen = 0
        self.skipped_steps = 0
        self.skipped_in_a_row = 0
        self.precision: str | None = None
        self.forked_from: dict[str, Any] | None = None
        self.retrieval: dict[str, Any] | None = None
        self.training_seconds = 0.0
        self.trainable_parameters = 0
        self.zero_shot: dict[str, Any] = {"per_task": None, "after_stage": None, "per_class": {}}
        self.frozen = NOT_MEASURED
        self.everywhere: list[list[float | None]] = []
        self._after_learning: dict[int, float] = {}
        self.scores: Measured | None = None
        self.clock = Clock()
        self._stage = Clock()
        self._training = Clock()

    @property
    def stages(self) -> int:
        """Finished stages."""
        return self.matrix.stages

    def _seen(self, stage: int) -> int:
        return len(seen(self.tasks[: stage + 1]))

    def set_zero_shot(self, scores: Measured) -> None:
        """Keep the scores of the pretrained model: A_t, b_i (among the classes of tasks 1..i), and per class."""
        tasks = range(len(self.tasks))
        per_task = [scores.accuracy(task, self._seen(task)) for task in tasks]
        after = [scores.accuracy_up_to(task, self._seen(task)) for task in tasks]
        self.zero_shot = {
            "per_task": per_task,
            "after_stage": after,
            "per_class": {str(k): v for k, v in scores.per_class(len(scores.labels), len(tasks)).items()},
        }
        if isinstance(scores, Recalls):
            self.retrieval = {"zero_shot": scores.summary(len(tasks)), "after_stage": []}

    def start(self, plan: Plan) -> dict[str, Any]:
        """Return fields of the log's first line."""
        names = plan.prompts.names
        return {
            "classes": [names[label] for label in seen(plan.tasks)],
            "tasks": [
                {
                    "name": task.name,
                    "classes": [names[label] for label in task.classes],
                    "train": len(task.train),
                    "test": len(task.test),
                }
                for task in plan.tasks
            ],
            "zero_shot": self.zero_shot["after_stage"] or [],
        } | ({"frozen_features": found} if (found := self.frozen["frozen_features_after_stage"]) else {})

    def begin_stage(self) -> None:
        """Begin a stage."""
        self._stage = Clock()

    def begin_phase(self, trainable: int) -> None:
        """Begin a phase that trains this many parameters."""
        self.trainable_parameters = max(self.trainable_parameters, trainable)
        self._training = Clock(self.training_seconds)

    def step(self, images: int) -> None:
        """Count a training step on this many images."""
        self.optimizer_steps += 1
        self.skipped_in_a_row = 0
        self.samples_seen += images
        self.training_seconds = self._training.seconds()

    def skip(self) -> None:
        """Count a skipped training step."""
        self.skipped_steps += 1
        self.skipped_in_a_row += 1
        self.training_seconds = self._training.seconds()

    def images_per_second(self) -> float:
        """Return training images per second of training time so far."""
        return self.samples_seen / max(self.training_seconds, 1e-9)

    def end_stage(self, task: Task, scores: Measured, memory: Memory, state_bytes: int) -> dict[str, Any]:
        """Take the scores of a finished stage, and return the fields of its line in the log.

        Args:
            scores: of tasks 0..t and, where there is one, of task t + 1.
            state_bytes: of all that the method keeps besides model and memory.
        """
        stage = task.index
        known = self._seen(stage)
        row = [scores.accuracy(index, known) for index in range(stage + 1)]
        ahead = scores.accuracy(stage + 1, self._seen(stage + 1)) if stage + 1 < len(self.tasks) else None
        self.matrix.add_stage(row, [scores.count(index) for index in range(stage + 1)], ahead)
        if scores.everything:
            self.everywhere.append([scores.accuracy(task.index, known) for task in self.tasks])
        per_class = scores.per_class(known, stage + 1)
        # where a class is gone before its first test images come, this is not the task that learned it
        self._after_learning = per_class | self._after_learning
        self.scores = scores
        if isinstance(scores, Recalls) and self.retrieval is not None:
            self.retrieval["after_stage"].append(scores.summary(stage + 1))
        return {
            "stage": stage,
            "accuracy_after_stage": self.matrix.accuracy_after_stage[-1],
            "row": row,
            "seconds": self._stage.seconds(),
            "memory": {
                "count": len(memory.images()),
                "bytes": memory.images().nbytes(),
                "per_class": memory.per_class(known),
                "state_bytes": state_bytes,
            },
        }

    def state_dict(self) -> dict[str, Any]:
        """Return plain numbers, lists and dicts."""
        return {
            "matrix": self.matrix.state_dict(),
            "skipped_steps": [self.skipped_steps, self.skipped_in_a_row],
            **{name: getattr(self, name) for name in _SAVED},
            "after_learning": {str(label): value for label, value in self._after_learning.items()},
            "seconds": self.clock.seconds(),
            "stage_seconds": self._stage.seconds(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a saved state."""
        self.matrix.load_state_dict(state["matrix"])
        self.skipped_steps, self.skipped_in_a_row = state["skipped_steps"]
        for name in _SAVED:
            setattr(self, name, (_UNSAVED | dict(state))[name])
        self._after_learning = {int(label): value for label, value in state["after_learning"].items()}
        self.clock = Clock(state["seconds"])
        self._stage = Clock(state["stage_seconds"])
        self._training = Clock(self.training_seconds)

    def results(
        self, plan: Plan, method: Method, memory: Memory, loader: Loader, device: torch.device
    ) -> dict[str, Any]:
        """Build results.json, schema 1. Accuracies are fractions in 0..1; null where there is nothing to measure."""
        config, matrix, names = plan.config, self.matrix, plan.prompts.names
        labels = seen(plan.tasks)
        images, state = memory.images().nbytes(), method.state_bytes()
        return {
            "schema": SCHEMA,
            "everclip": __version__,
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            "smoke": config.smoke,
            "method": config.method.name,
            "model": config.model,
            "image_size": loader.pixels.size,
            "data": config.data,
            "scenario": config.scenario.kind,
            "seed": config.seed,
            "memory_budget": config.memory.size(len(labels)),
            "memory_per_class": config.memory.per_class,
            "memory_bytes": images,
            "classes": [names[label] for label in labels],
            "class_labels": list(labels),
            "tasks": [task.name for task in plan.tasks],
            "test_counts": matrix.counts,
            "templates": list(plan.prompts.templates),
            "template_set": set_name(plan.prompts.templates),
            "train_captions": config.train.captions,
            "accuracy_after_stage": matrix.accuracy_after_stage,
            "task_mean_after_stage": matrix.task_mean_after_stage,
            "last": matrix.last,
            "average": matrix.average,
            "matrix": matrix.to_list(),
            "forgetting": matrix.forgetting,
            "backward_transfer": matrix.backward_transfer,
            "forward_transfer": matrix.forward_transfer(self.zero_shot["per_task"] or []),
            "zero_shot": (self.zero_shot["after_stage"] or [None])[-1],
            "zero_shot_after_stage": self.zero_shot["after_stage"],
            "zero_shot_per_task": self.zero_shot["per_task"],
            **self.frozen,
            "per_class": self._per_class(plan),
            **measures.of(self, plan),
            "images_per_second": self.images_per_second() if self.optimizer_steps else None,
            "peak_memory_bytes": peak_memory(device),
            "seconds": self.clock.seconds(),
            "trainable_parameters": self.trainable_parameters,
            "state_bytes": state,
            "kept_bytes": images + state,
            "cache_bytes": loader.cache_bytes,
            "optimizer_steps": self.optimizer_steps,
            "samples_seen": self.samples_seen,
            "skipped_steps": self.skipped_steps,
            "precision": self.precision or config.train.precision,
            "center": config.center,
            "tune": config.tune,
            "validation": config.scenario.validation,
            "tuned_on": config.tuned_on,
            "forked_from": self.forked_from,
            "duplicates": self.images.duplicates,
            "train_copies": self.images.copies,
            "data_changed": self.images.changed,
            "skipped_images": list(loader.pixels.skipped()),
        } | told(self.retrieval)

    def last_per_class(self) -> dict[int, float]:
        """Label -> accuracy after the last stage, of the classes that were tested."""
        assert self.scores is not None
        return self.scores.per_class(self._seen(len(self.tasks) - 1), len(self.tasks))

    def _per_class(self, plan: Plan) -> list[dict[str, Any]]:
        assert self.scores is not None
        last = self.last_per_class()
        # since a class was learned its test images may have gone, or come: it has both accuracies or none
        learned = last | self._after_learning
        first = {label: task.index for task in reversed(self.tasks) for label in task.classes}
        return [
            {
                "class": plan.prompts.names[label],
                "task": first[label],
                "n": int((self.scores.truth == label).sum()),
                "zero_shot": self.zero_shot["per_class"].get(str(label)),
                "after_learning": learned[label] if label in last else None,
                "last": last.get(label),
            }
            for label in seen(self.tasks)
        ]

    def write(self, run: Run, results: Mapping[str, Any]) -> None:
        """Write the result files of a finished run; results.json, which marks it as finished, last."""
        assert self.scores is not None
        if isinstance(self.scores, Scores):
            predictions = io.BytesIO()
            top = self.scores.top(self._seen(len(self.tasks) - 1), len(self.tasks))
            np.savez_compressed(predictions, **top)  # pyright: ignore[reportArgumentType]
            run.write("predictions.npz", predictions.getvalue())
        matrix = [[name, *row] for name, row in zip(results["tasks"], results["matrix"], strict=True)]
        run.write("matrix.csv", csv_text(["after", *results["tasks"]], matrix))
        columns = ["class", "task", "n", "zero_shot", "after_learning", "last"]
        run.write(
            "per_class.csv", csv_text(columns, [[row[c] for c in columns] for row in results["per_class"]])
        )
        run.write("results.json", json.dumps(results, ensure_ascii=False, indent=2, allow_nan=False) + "\n")
