"""everclip evaluate: measure accuracy, calibration and retention of a learned model on any images."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from everclip.cli._options import Json
from everclip.cli._output import print_json
from everclip.errors import UserError
from everclip.system.text import printable

log = logging.getLogger("everclip")

MANY_TEXTS = 10_000
"""Number of prompts above which a message explains the wait."""

if TYPE_CHECKING:
    from everclip.inference.assess import Answers
    from everclip.inference.model import Deployed


def evaluate(
    run: str,
    *,
    data: str | None = None,
    retention: str | None = None,
    image_size: int | None = None,
    templates: str | None = None,
    json: Json = False,
) -> None:
    """Measure accuracy and calibration of a learned model, or of a model's zero-shot classifier, on test images.

    Args:
        run: A run directory or a model folder; or any model's name with --data.
        data: Images in CLASS folders (default: the run's own test images). A folder without train/ and test/ is used
        whole.
        retention: Images of other classes, to measure how much zero-shot accuracy is left compared with the
        pretrained model.
        image_size: Side in pixels (default: the run's, or the model's own).
        templates: Prompts for a model: a file, or cifar100 (18), imagenet (80) or simple (7) (default: the data's
        own; lite uses its own two instead of such a list).
    """
    if image_size is not None and not 16 <= image_size <= 4096:
        raise UserError(f"--image-size is {image_size}: use a whole number from 16 to 4096")
    result = measure(run, data, image_size, templates, retention)
    if json:
        print_json(result)
    else:
        _show(result)


def _show(result: dict[str, Any]) -> None:
    """Print the table of classes and the lines below it."""
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
    console = Console(soft_wrap=True)
    console.print(table)
    lines = [
        f"accuracy {result['accuracy']:.1%} on {result['images']} images, {result['label_set']} classes to"
        f" choose from",
        _calibration_line(result),
    ]
    if kept := result["retention"]:
        change = 100 * (kept["accuracy"] - kept["pretrained"])
        lines.append(
            f"retention: {kept['accuracy']:.1%} zero-shot on {kept['data']},"
            f" {change:+.1f} points from {kept['model']} ({kept['pretrained']:.1%})"
        )
    lines += [f"skipped {path}: {reason}" for path, reason in result["skipped_images"].items()]
    for line in lines:
        console.print(printable(line), markup=False, highlight=False)


def _calibration_line(result: dict[str, Any]) -> str:
    fitted = result["temperature"]
    how = "no temperature fitted" if fitted is None else f"temperature {fitted:.3g}"
    nll = "infinite" if result["nll"] is None else f"{result['nll']:.3f}"
    return f"calibration: error {result['ece']:.1%} (ECE, 15 bins), negative log-likelihood {nll}, {how}"


def measure(
    run: str,
    data: str | None,
    image_size: int | None = None,
    templates: str | None = None,
    retention: str | None = None,
) -> dict[str, Any]:
    """Measure what ``everclip evaluate`` shows, as a JSON-ready dict.

    If every class of ``data`` was learned, the choice is among all learned classes; otherwise, and for a model that
    has learned nothing, among the classes of ``data``.

    Raises:
        UserError: no such run or model, or nothing to test on.
    """
    from everclip.data.templates import set_name
    from everclip.metrics.calibration import expected_error, likelihood, probabilities

    found, name, duplicates = _answers(run, data, image_size, templates)
    model, scores, logits, truth = found.model, found.scores, found.logits(), found.truth()
    nll = likelihood(logits, truth)
    return {
        "model": run,
        "data": name,
        "accuracy": found.accuracy,
        "images": scores.count(0),
        "duplicates": duplicates,
        "label_set": len(model.labels),
        "ece": expected_error(probabilities(logits), truth),
        "nll": nll if math.isfinite(nll) else None,
        "temperature": model.calibration.temperature if model.calibration else None,
        "templates": list(model.templates),
        "template_set": set_name(model.templates),
        "per_class": [
            {"class": model.classes[label], "n": int((scores.truth == label).sum()), "accuracy": accuracy}
            for label, accuracy in scores.per_class(len(model.labels), 1).items()
        ],
        "retention": None if retention is None else retained(model, run, retention),
        "skipped_images": found.skipped,
    }


def _answers(
    run: str, data: str | None, image_size: int | None, templates: str | None
) -> tuple[Answers, str, int | None]:
    """Return the model's predictions, the data's name, and how many of its images were learned."""
    from everclip.inference import assess
    from everclip.inference.learned import repeated
    from everclip.inference.model import is_learned, of_run, open_model

    if not is_learned(run):
        model, found = _of_model(run, data, image_size, templates)
        return assess.examined(model, found), found.name, None
    for option, value in (("--image-size", image_size), ("--templates", templates)):
        if value is not None:
            raise UserError(
                f"{option} is for models that have learned nothing; {run} has its own: leave it out"
            )
    if data is not None:
        model = open_model(run)
        found = assess.load(data, model)
        return assess.examined(model, found), found.name, repeated(run, found.whole(), found.name)
    if not (Path(run) / "config.toml").is_file():
        raise UserError(f"{run} is a model folder, without images of its own: give --data")
    model = of_run(Path(run))
    assert model.plan is not None
    tests = [task.test for task in model.plan.tasks]
    images, name = sum(tests[1:], tests[0]), f"the test part of {model.plan.data.name}"
    return assess.answers(model, images), model.plan.data.name, repeated(run, images, name)


def _of_model(
    name: str, data: str | None, image_size: int | None, templates: str | None
) -> tuple[Deployed, Any]:
    """Build a model's zero-shot classifier for a data set's classes; return it with the data set."""
    from everclip import data as sources
    from everclip.inference.model import open_model

    if data is None:
        raise UserError(f'"{name}" is no run directory: give one, or a model\'s name with --data')
    found = sources.load(data, templates=templates, model=name)
    texts = len(found.class_names) * len(found.templates)
    if texts > MANY_TEXTS:
        log.warning(
            "encoding %d prompts first, which takes minutes on a CPU; --templates simple has seven", texts
        )
    return open_model(name, found.class_names, image_size, found.templates), found


def retained(model: Deployed, run: str, data: str) -> dict[str, Any]:
    """Measure zero-shot accuracy on images of other classes, with the learned towers and with the initial ones.

    Raises:
        UserError: the model was not trained from another one, or that one is not available.
    """
    from everclip.inference import assess
    from everclip.inference.model import pretrained

    if model.plan is None:
        raise UserError(
            f"--retention compares a learned model with its initial weights: {run} has learned nothing"
        )
    before, found = pretrained(model), assess.load(data, model)
    return {
        "data": found.name,
        "model": before.name,
        "accuracy": assess.text_alone(model.encoder, found).accuracy,
        "pretrained": assess.text_alone(before, found).accuracy,
    }
