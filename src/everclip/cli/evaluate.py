"""everclip evaluate: measure accuracy, calibration and retention of a learned model on any images."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from everclip.cli._options import Json
from everclip.cli._output import print_json, print_lines, print_table
from everclip.errors import UserError, check_range

log = logging.getLogger("everclip")

MANY_TEXTS = 10_000
"""Number of prompts above which a message explains the wait."""

if TYPE_CHECKING:
    from everclip.data.images import Dataset, ImageSet
    from everclip.inference.model import Deployed


def evaluate(
    run: str,
    *,
    data: str | None = None,
    retention: str | None = None,
    unknown: str | None = None,
    retrieval: bool = False,
    image_size: int | None = None,
    templates: str | None = None,
    json: Json = False,
) -> None:
    """Measure accuracy and calibration of a learned model, or of a model's zero-shot classifier, on test images.

    Args:
        run: A run directory or a model folder; or any model's name with --data.
        data: Images in CLASS folders (default: the run's own test images). A folder without train/ and test/ is used
            whole.
        retention: Images of other classes, to measure how much zero-shot accuracy is left compared with the pretrained
            model.
        unknown: Images of classes that the model does not know, to measure how well it tells them from those of --data.
        retrieval: Refuse data without captions; a csv:FILE with the columns path and caption has them.
        image_size: Side in pixels (default: the run's, or the model's own).
        templates: Prompts for a model: a file, or cifar100 (18), imagenet (80) or simple (7) (default: the data's own;
            lite uses its own two instead of such a list).
    """
    check_range("--image-size", image_size, 16, 4096)
    result = measure(run, data, image_size, templates, retention, retrieval, unknown)
    if json:
        print_json(result)
    elif "captions" in result:
        from everclip.cli import _retrieval

        _retrieval.show(result, _retention_lines(result))
    else:
        _show(result)


def _show(result: dict[str, Any]) -> None:
    """Print the table of classes and the lines below it."""
    rows = sorted(result["per_class"], key=lambda row: row["accuracy"])
    print_table(
        f"{result['model']} on {result['data']}, worst first",
        ("class", "images", "accuracy"),
        [(row["class"], str(row["n"]), f"{row['accuracy']:.1%}") for row in rows],
    )
    print_lines(
        [
            f"accuracy {result['accuracy']:.1%} on {result['images']} images"
            f", {result['label_set']} classes to choose from",
            _calibration_line(result),
            *_retention_lines(result),
            *_unknown_lines(result),
            *(f"skipped {path}: {reason}" for path, reason in result["skipped_images"].items()),
        ]
    )


def _retention_lines(result: dict[str, Any]) -> list[str]:
    """Return a line on other classes, where they were measured."""
    kept = result["retention"]
    if not kept:
        return []
    change = 100 * (kept["accuracy"] - kept["pretrained"])
    return [
        f"retention: {kept['accuracy']:.1%} zero-shot on {kept['data']},"
        f" {change:+.1f} points from {kept['model']} ({kept['pretrained']:.1%})"
    ]


def _unknown_lines(result: dict[str, Any]) -> list[str]:
    """Return a line per unknown score, where they were measured."""
    found = result.get("unknown")
    if not found:
        return []
    head = f"unknown: {found['images']} images of {found['data']} against the {result['images']} above"
    rows = [
        f"  {name:<21} AUROC {row['auroc']:6.1%}   FPR95 {row['fpr95']:6.1%}{'   used' * (name == found['own'])}"
        for name, row in found["scores"].items()
    ]
    return [head, *rows]


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
    retrieval: bool = False,
    unknown: str | None = None,
) -> dict[str, Any]:
    """Measure what ``everclip evaluate`` shows, as a JSON-ready dict.

    If every class of ``data`` was learned, the choice is among all learned classes; otherwise, and for a model that
    has learned nothing, among the classes of ``data``. For images with captions recalls are measured.

    Raises:
        UserError: no such run or model, or nothing to test on; with ``retrieval``, images without captions.
    """
    from everclip.data.templates import set_name
    from everclip.inference import assess
    from everclip.inference.learned import repeated
    from everclip.inference.model import is_learned
    from everclip.metrics.calibration import expected_error, likelihood, probabilities

    model, given, images = _opened(run, data, image_size, templates)
    if given is not None:
        name = about = given.name
    else:
        assert model.plan is not None
        name, about = model.plan.data.name, f"the test part of {model.plan.data.name}"
    again = None if retention is None else retained(model, run, retention)
    if images.captions is not None:
        from everclip.cli._retrieval import measured

        if unknown is not None:
            raise UserError(f"--unknown needs classes, and {name} has captions: leave it out")
        return {"model": run, "data": name, **measured(model.encoder, images), "retention": again}
    if retrieval:
        raise UserError(f"--retrieval needs images with captions, and {name} has classes: leave it out")
    model.check_classes()
    apart = {} if unknown is None else {"unknown": assess.tell_apart(model, images, given, unknown)}
    found = assess.answers(model, images) if given is None else assess.examined(model, given)
    model, scores, logits, truth = found.model, found.scores, found.logits(), found.truth()
    nll = likelihood(logits, truth)
    return {
        "model": run,
        "data": name,
        "accuracy": found.accuracy,
        "images": scores.count(0),
        "duplicates": repeated(run, images, about) if is_learned(run) else None,
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
        "retention": again,
        **apart,
        "skipped_images": found.skipped,
    }


def _opened(
    run: str, data: str | None, image_size: int | None, templates: str | None
) -> tuple[Deployed, Dataset | None, ImageSet]:
    """Return a model, the data given, and the images to test on: the data's, or the run's own."""
    from everclip.data.images import joined
    from everclip.inference import assess
    from everclip.inference.model import check_own, is_learned, of_run, open_model

    if not is_learned(run):
        model, found = _of_model(run, data, image_size, templates)
        return model, found, found.whole()
    check_own(run, {"--image-size": image_size, "--templates": templates})
    if data is not None:
        model = open_model(run, pairs=True)
        found = assess.load(data, model, pairs=True)
        return model, found, found.whole()
    folder = Path(run).expanduser()
    if not (folder / "config.toml").is_file():
        raise UserError(f"{run} is a model folder, without images of its own: give --data")
    model = of_run(folder)
    assert model.plan is not None
    return model, None, joined(task.test for task in model.plan.tasks)


def _of_model(
    name: str, data: str | None, image_size: int | None, templates: str | None
) -> tuple[Deployed, Dataset]:
    """Build a model's zero-shot classifier for a data set's classes; return it with the data set."""
    from everclip import data as sources
    from everclip.inference.model import open_model

    if data is None:
        raise UserError(f'"{name}" is not a run directory: give one, or a model\'s name with --data')
    found = sources.load(data, templates=templates, model=name, pairs=True)
    texts = len(found.class_names) * len(found.templates)
    if texts > MANY_TEXTS:
        log.warning("encoding %d prompts takes minutes on a CPU: --templates simple has only seven", texts)
    return open_model(name, found.class_names, image_size, found.templates), found


def retained(model: Deployed, run: str, data: str) -> dict[str, Any]:
    """Measure zero-shot accuracy on images of other classes, with the learned towers and with the initial ones.

    Raises:
        UserError: the model was not trained from another one, or that one is not available.
    """
    from everclip.inference import assess

    if model.plan is None:
        raise UserError(f"--retention needs a trained model, and {run} has learned nothing: leave it out")
    before, found = assess.pretrained(model), assess.load(data, model)
    return {
        "data": found.name,
        "model": before.name,
        "accuracy": assess.text_alone(model.encoder, found).accuracy,
        "pretrained": assess.text_alone(before, found).accuracy,
    }
