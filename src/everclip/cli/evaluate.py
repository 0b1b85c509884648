"""everclip evaluate: accuracy of a run or a model on any images."""

from __future__ import annotations

import json as json_module
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from everclip.errors import UserError

log = logging.getLogger("everclip")

MANY_TEXTS = 10_000
"""Prompts from which on a user is told why nothing seems to happen."""

if TYPE_CHECKING:
    from torch import nn

    from everclip.data.images import Dataset, ImageSet
    from everclip.models.clip import Clip


def evaluate(
    run: str,
    *,
    data: str | None = None,
    image_size: int | None = None,
    templates: str | None = None,
    json: bool = False,
) -> None:
    """Accuracy of a run, or of a model's zero-shot classifier, on test images.

    Examples
    --------
    everclip evaluate runs/X
    everclip evaluate runs/X --data imagefolder:holdout --json
    everclip evaluate lite --data imagefolder:holdout
    everclip evaluate lite --data imagenet:ilsvrc --templates simple

    Parameters
    ----------
    run
        A run directory, or a model's name with --data.
    data
        Images in CLASS folders; without it, the run's own test images. A folder of bare classes is used whole.
    image_size
        Side in pixels; without it, the run's, or the model's own.
    templates
        A model's prompts: a file, or cifar100 (18), imagenet (80) or simple (7); without it, those of the data (lite
        has its own two in place of such a list).
    json
        Print one JSON object.
    """
    if image_size is not None and not 16 <= image_size <= 4096:
        raise UserError(f"--image-size is {image_size}: write a whole number from 16 to 4096")
    result = measure(run, data, image_size, templates)
    if json:
        print(json_module.dumps(result, ensure_ascii=False, indent=2))
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    title = escape(f"{result['model']} on {result['data']}, worst first")
    table = Table(title=title, title_justify="left")
    table.add_column("class")
    table.add_column("images", justify="right")
    table.add_column("accuracy", justify="right")
    for row in sorted(result["per_class"], key=lambda row: row["accuracy"]):
        table.add_row(escape(row["class"]), str(row["n"]), f"{row['accuracy']:.1%}")
    console = Console()
    console.print(table)
    console.print(
        f"accuracy {result['accuracy']:.1%} on {result['images']} images, {result['label_set']} classes to choose from",
        highlight=False,
    )
    for path, reason in result["skipped_images"].items():
        console.print(f"skipped {path}: {reason}", markup=False, highlight=False)


def measure(
    run: str, data: str | None, image_size: int | None = None, templates: str | None = None
) -> dict[str, Any]:
    """Accuracy of a run or a model on ``data``, as a JSON-ready dict.

    Where every class of ``data`` was learned by the run, an image may be taken for any learned class; else, and
    for a model, for any class of ``data``.

    Raises:
        UserError: no such run or model, or nothing to test on.
    """
    from everclip.data.loader import Loader
    from everclip.data.pixels import Pixels
    from everclip.data.scenario import Task
    from everclip.data.templates import set_name
    from everclip.evaluate import evaluate as score

    if (Path(run) / "config.toml").is_file():
        if image_size is not None:
            raise UserError(
                "--image-size is for models: a run is tested at the size it was trained at; leave it out"
            )
        if templates is not None:
            raise UserError("--templates is for models: a run is tested with its own; leave it out")
        subject = _of_run(Path(run), data)
    else:
        subject = _of_model(run, data, image_size, templates)
    images, clip, labels = subject.images, subject.clip, subject.labels
    pixels = Pixels(images.store, clip.eval_transform, clip.image_size, cache_bytes=0)
    scores = score(
        clip, subject.classifier, [Task(0, "the data", labels, images, images)], Loader(pixels, 128)
    )
    return {
        "model": run,
        "data": subject.data,
        "accuracy": scores.accuracy(0, len(labels)),
        "images": scores.count(0),
        "label_set": len(labels),
        "templates": list(subject.templates),
        "template_set": set_name(tuple(subject.templates)),
        "per_class": [
            {"class": subject.names[label], "n": int((scores.truth == label).sum()), "accuracy": accuracy}
            for label, accuracy in scores.per_class(len(labels), 1).items()
        ],
        "skipped_images": pixels.skipped(),
    }


@dataclass(frozen=True, eq=False)
class _Subject:
    """What is tested: a model with a classifier over ``labels``, on ``images`` labelled with the same."""

    clip: Clip
    classifier: Callable[[tuple[int, ...]], nn.Module]
    data: str
    images: ImageSet
    labels: tuple[int, ...]
    names: Sequence[str]
    templates: Sequence[str]


def _of_run(path: Path, data: str | None) -> _Subject:
    """A run on its own test images, or on other ones."""
    from everclip import data as sources
    from everclip.data.scenario import seen
    from everclip.restore import open_run

    plan, clip, stage = open_run(path)
    prompts, learned = plan.prompts, seen(plan.tasks[: stage + 1])
    names = prompts.names

    def classifier(labels: tuple[int, ...]) -> nn.Module:
        return plan.method.classifier(clip, labels)

    if data is None:
        tests = [task.test for task in plan.tasks[: stage + 1]]
        return _Subject(
            clip, classifier, plan.data.name, sum(tests[1:], tests[0]), learned, names, prompts.templates
        )
    found = sources.load(data, plan.config.scenario.kind)
    images = found.whole()
    label_of = {names[label]: label for label in learned}
    unknown = sorted({found.class_names[int(label)] for label in images.labels} - set(label_of))
    if unknown:
        log.warning(
            'class "%s" was not learned by the run: tested among the classes of %s alone', unknown[0], data
        )
        return _zero_shot(clip, found)
    images = images.relabel([label_of.get(name, -1) for name in found.class_names])
    return _Subject(clip, classifier, found.name, images, learned, names, prompts.templates)


def _of_model(name: str, data: str | None, image_size: int | None, templates: str | None) -> _Subject:
    """A model's zero-shot classifier."""
    from everclip import data as sources
    from everclip.models import zoo

    if data is None:
        raise UserError(f'"{name}" is no run directory: give one, or a model\'s name with --data')
    found = sources.load(data, templates=templates, model=name)
    texts = len(found.class_names) * len(found.templates)
    if texts > MANY_TEXTS:
        log.warning(
            "%d prompts are encoded first, which takes minutes on a CPU; --templates simple has seven", texts
        )
    return _zero_shot(zoo.load(name, image_size), found)


def _zero_shot(clip: Clip, found: Dataset) -> _Subject:
    import torch

    from everclip.methods._base import TextClassifier

    def classifier(labels: tuple[int, ...]) -> nn.Module:
        with torch.inference_mode():
            return TextClassifier(clip, clip.class_embeddings(found.class_names, found.templates))

    images, labels = found.whole(), tuple(range(len(found.class_names)))
    if not len(images):
        raise UserError(f"{found.name} has no test images: give --data a folder with images")
    return _Subject(clip, classifier, found.name, images, labels, found.class_names, found.templates)
