"""everclip evaluate: accuracy of a run or a model on any images."""

from __future__ import annotations

import json as json_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from everclip.data.images import Dataset, ImageSet
    from everclip.plan import Plan


def evaluate(run: str, *, data: str | None = None, image_size: int | None = None, json: bool = False) -> None:
    """Accuracy of a run, or of a model's zero-shot classifier, on test images.

    Examples
    --------
    everclip evaluate runs/X
    everclip evaluate runs/X --data imagefolder:holdout --json
    everclip evaluate lite --data imagefolder:holdout

    Parameters
    ----------
    run
        A run directory, or a model's name with --data.
    data
        Images in CLASS folders; without it, the run's own test images. A folder of bare classes is used whole.
    image_size
        Side in pixels; without it, the run's, or the model's own.
    json
        Print one JSON object.
    """
    result = measure(run, data, image_size)
    if json:
        print(json_module.dumps(result, ensure_ascii=False, indent=2))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{result['model']} on {result['data']}, worst first", title_justify="left")
    table.add_column("class")
    table.add_column("images", justify="right")
    table.add_column("accuracy", justify="right")
    for row in sorted(result["per_class"], key=lambda row: row["accuracy"]):
        table.add_row(row["class"], str(row["n"]), f"{row['accuracy']:.1%}")
    console = Console()
    console.print(table)
    console.print(
        f"accuracy {result['accuracy']:.1%} on {result['images']} images, {result['label_set']} classes to choose from",
        highlight=False,
    )


def measure(run: str, data: str | None, image_size: int | None = None) -> dict[str, Any]:
    """Accuracy of a run or a model on ``data``, as a JSON-ready dict.

    Where every class of ``data`` was learned by the run, an image may be taken for any learned class; else, and
    for a model, for any class of ``data``.

    Raises:
        UserError: no such run or model, or nothing to test on.
    """
    import torch

    from everclip import data as sources
    from everclip.data.loader import Loader
    from everclip.data.pixels import Pixels
    from everclip.data.scenario import Task, seen
    from everclip.errors import UserError
    from everclip.evaluate import evaluate as score
    from everclip.methods._base import TextClassifier
    from everclip.models import zoo
    from everclip.restore import open_run

    plan: Plan | None = None
    found: Dataset
    learned, stage = (), 0
    if (Path(run) / "config.toml").is_file():
        plan, clip, stage = open_run(Path(run))
        found = sources.load(data, plan.config.scenario.kind) if data else plan.data
        learned = seen(plan.tasks[: stage + 1])
    elif data is None:
        raise UserError(f'"{run}" is no run directory: give one, or a model\'s name with --data')
    else:
        clip = zoo.load(run, image_size)
        found = sources.load(data)
    images = _total([task.test for task in plan.tasks[: stage + 1]]) if plan and not data else found.whole()
    if not len(images):
        raise UserError(f"{found.name} has no test images: give --data a folder with images")

    names = found.class_names
    if plan and {names[int(label)] for label in set(images.labels.tolist())} <= {
        plan.prompts.names[label] for label in learned
    }:
        to_run = {name: label for label, name in enumerate(plan.prompts.names)}
        images = images.relabel([to_run.get(name, -1) for name in names])
        names, labels, method = plan.prompts.names, learned, plan.method
        chooser = lambda classes: method.classifier(clip, classes)  # noqa: E731
    else:
        labels = tuple(range(len(names)))
        with torch.inference_mode():
            weights = clip.class_embeddings(names, found.templates)
        chooser = lambda classes: TextClassifier(clip, weights)  # noqa: E731
    pixels = Pixels(images.store, clip.eval_transform, clip.image_size, cache_bytes=0)
    scores = score(clip, chooser, [Task(0, "", labels, images, images)], Loader(pixels, 128))
    per_class = scores.per_class(len(labels), 1)
    return {
        "model": run,
        "data": found.name,
        "accuracy": scores.accuracy(0, len(labels)),
        "images": scores.count(0),
        "label_set": len(labels),
        "per_class": [
            {"class": names[label], "n": int((scores.truth == label).sum()), "accuracy": accuracy}
            for label, accuracy in per_class.items()
        ],
        "skipped_images": pixels.skipped(),
    }


def _total(parts: list[ImageSet]) -> ImageSet:
    return sum(parts[1:], parts[0])
