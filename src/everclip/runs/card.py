"""Read and write everclip.json, the description of a model folder, beside the weights that open_clip reads.

format          1
everclip        the version that wrote it
classes         every class name; its index is its label
tasks           [{"name", "labels"}]: the labels learned, in the order learned
templates       prompts of the class embeddings; none where no text tower reads any
classifier      "text": cosines to the class embeddings of the text tower, and the folder is the whole model;
                "method": the method in ``settings`` classifies, with its state in method.pt (state.pt in a
                run's checkpoint)
pairs           true for images with captions, whose "classes" are groups that are not classified
settings        the config that it was trained with, without the keys that describe the machine
calibration     a temperature and what it was fitted on (calibration.py), or null
unknown         scores of held-out images of the classes (unknown.py), which set thresholds; absent without any

calibration.json, which ``predict --calibrate`` writes beside it, replaces the last two.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from everclip._version import __version__
from everclip.config import Config
from everclip.config.values import written
from everclip.data.formats.folders import check_names
from everclip.data.prompts import check_templates
from everclip.data.scenarios import lists
from everclip.errors import UserError
from everclip.metrics.calibration import Calibration
from everclip.metrics.unknown import HeldOut
from everclip.runs.resolve import resolve
from everclip.system import checkpoint, trust
from everclip.system.atomic import write_atomic
from everclip.system.checkpoint import MANIFEST
from everclip.system.reading import read_json, readable
from everclip.system.text import check, printable

FILE = "everclip.json"
METHOD_FILE = "method.pt"
CALIBRATION_FILE = "calibration.json"
"""A temperature and scores of held-out images, with the model that they belong to."""
FORMAT = 1
_LOCAL = {
    *("out", "device", "smoke", "tuned_on", "fork", "classnames", "templates"),
    *("loader", "checkpoint", "references", "trackers", "tracker"),
}
"""Keys of a config that describe the machine, not the model."""


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class CardTask(_Model):
    """A task that was learned."""

    name: str
    labels: list[int] = Field(min_length=1)


class Card(_Model):
    """The content of everclip.json; see the module."""

    format: Literal[1] = FORMAT
    everclip: str = __version__
    classes: list[str] = Field(min_length=1)
    tasks: list[CardTask] = Field(min_length=1)
    templates: list[str]
    classifier: Literal["text", "method"]
    settings: dict[str, Any]
    calibration: Calibration | None = None
    unknown: HeldOut | None = None
    pairs: bool = False

    @model_validator(mode="after")
    def _consistent(self) -> Card:
        if any(not 0 <= label < len(self.classes) for task in self.tasks for label in task.labels):
            raise ValueError("a label is not an index of a class")
        if not self.templates and self.classifier == "text":
            raise ValueError("it has no templates for its text tower")
        return self

    def config(self) -> Config:
        """Return the settings as a config, with defaults for other keys. Raises UserError for unknown options."""
        return resolve(Config.model_validate({"defaults": 1} | self.settings))


def settings(config: Config) -> dict[str, Any]:
    """Return the part of a config that a card keeps."""
    kept = {key: value for key, value in written(config).items() if key not in _LOCAL}
    # Users of the model need no code but that of its method.
    if trust.is_code(config.memory.policy):
        del kept["memory"]
    if [*trust.names(config.tune)]:
        kept = {key: value for key, value in kept.items() if key not in ("tune", "tuning")}
    return kept | {"scenario": {"kind": lists(config.scenario)}}


def read(folder: Path) -> Card:
    """Return the card of a model folder.

    Raises:
        UserError: it is missing, or not as everclip writes it; a name in it is not allowed in data, or its method is
            code that the user has not allowed.
    """
    path = folder / FILE
    with readable(path, "give a model folder of everclip"):
        content = read_json(path)
    try:
        card = Card.model_validate(content)
        trust.asked(card.settings, path)
        card.config()
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = printable(".".join(map(str, first["loc"])))
        reason = f"{where}: {first['msg']}" if where else first["msg"]
        raise UserError(
            f"{path} is damaged or from another version ({reason}): export the model again"
        ) from error
    check_names(card.classes, str(path))
    check_templates(tuple(card.templates), path)
    check(card.model_dump(), path)
    return card


def text_of(card: Card) -> str:
    """Return the content of everclip.json: one line per key, as a list may have a thousand classes."""
    content = card.model_dump(exclude={key for key in ("pairs", "unknown") if not getattr(card, key)})
    lines = (f'  "{key}": {json.dumps(value, ensure_ascii=False)}' for key, value in content.items())
    return "{\n" + ",\n".join(lines) + "\n}\n"


def write(folder: Path, card: Card) -> None:
    """Write the card of a model folder, atomically."""
    write_atomic(folder / FILE, text_of(card))


def is_model(folder: Path) -> bool:
    """Return whether a folder holds a version or an exported model, and is not a run."""
    return (folder / FILE).is_file() and not (folder / "config.toml").is_file()


def identity(folder: Path) -> str:
    """Return a text that folders share if they hold the same model. Raises UserError where one is damaged."""
    if (folder / MANIFEST).is_file():
        with checkpoint.checked(folder):
            return checkpoint.identity(folder)
    return hashlib.sha256(text_of(read(folder)).encode()).hexdigest()


def own_files(folder: Path) -> dict[str, Path]:
    """Return the files that a folder's manifest names, and those unsigned ones that lie beside it, by name. Raises as
    ``checkpoint.verify`` does."""
    # unsigned files may be links to anything: keep those beside the manifest itself, as in a hub's cache
    home = os.path.dirname(os.path.realpath(folder / MANIFEST))
    loose = {n for n in checkpoint.UNSIGNED if os.path.dirname(os.path.realpath(folder / n)) == home}
    return {name: folder / name for name in checkpoint.names(folder) | loose}


class Fitted(NamedTuple):
    """What was fitted on held-out images of a model's classes; None for what was not."""

    calibration: Calibration | None = None
    unknown: HeldOut | None = None


def read_calibration(folder: Path, of: Mapping[str, Any]) -> Fitted:
    """Return what ``predict --calibrate`` has saved in a run directory or model folder. Raises UserError if damaged.

    Args:
        of: the model: ``{"stage": 3}`` of a run, ``{"model": identity(folder)}`` of a model folder.
    """
    file = folder / CALIBRATION_FILE
    if not file.exists():
        return Fitted()
    try:
        content = read_json(file)
        found = Fitted(
            Calibration.model_validate(content["calibration"]),
            HeldOut.model_validate(content["unknown"]) if "unknown" in content else None,
        )
        if content.get("sha256", _hash(content)) != _hash(content):  # earlier versions wrote none
            raise ValueError("changed")
        return found if of.items() <= content.items() else Fitted()
    # Unreadable and pydantic's error are ValueErrors
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise UserError(f"{file} is damaged: remove it, or calibrate again") from error


def write_calibration(
    folder: Path, of: Mapping[str, Any], calibration: Calibration, unknown: HeldOut | None
) -> Path:
    """Write calibration.json, whole or not at all, beside the files of a manifest. Raises OSError."""
    content = {**of, "calibration": calibration.model_dump()}
    if unknown is not None:
        content["unknown"] = unknown.model_dump()
    content["sha256"] = _hash(content)
    write_atomic(folder / CALIBRATION_FILE, json.dumps(content, indent=2) + "\n")
    return folder / CALIBRATION_FILE


def carry_calibration(folder: Path, copy: Path) -> None:
    """Have the calibration.json of a copied model folder name the copy, whose manifest gives it another identity.

    Raises UserError where it is damaged, and OSError.
    """
    if (copy / CALIBRATION_FILE).is_file():
        kept = read_calibration(folder, {"model": identity(folder)})
        if kept.calibration is not None:
            write_calibration(copy, {"model": identity(copy)}, kept.calibration, kept.unknown)


def _hash(content: Mapping[str, Any]) -> str:
    rest = {key: value for key, value in content.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()
