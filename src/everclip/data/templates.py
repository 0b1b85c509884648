"""Find the lists of prompts that come with the package, one file each in assets/templates."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from everclip.data.images import Dataset
from everclip.data.prompts import read_templates

TEMPLATES = ("{}", "a photo of a {}.")
"""Those that the model ``lite`` was fitted to."""
FOLDER = Path(__file__).parents[1] / "assets" / "templates"


def names() -> list[str]:
    """List what ``templates=`` takes besides a path: "cifar100" (18 prompts), "imagenet" (80), "simple" (7)."""
    return sorted(path.stem for path in FOLDER.glob("*.txt"))


def shipped(name: str) -> tuple[str, ...]:
    """Return the prompts of one list, each with ``{}``."""
    return read_templates(FOLDER / f"{name}.txt")


def set_name(templates: tuple[str, ...]) -> str | None:
    """Return the name of the shipped list that ``templates`` equal, or "lite" for that model's; None for any other."""
    found = {shipped(name): name for name in names()}
    if templates in found:
        return found[templates]
    return "lite" if templates == TEMPLATES else None


def file_of(text: str) -> Path:
    """Return the file that ``templates=TEXT`` means: a path, else a list of the package by its name."""
    path = Path(os.path.expanduser(text))
    return FOLDER / f"{text}.txt" if text in names() and not path.is_file() else path


def suited(found: Dataset, model: str) -> Dataset:
    """Return the data set with prompts that suit the model, for when the user names none.

    The shipped lists were chosen for CLIP's text tower. ``lite`` was fitted to two prompts: with these it is right more
    often than with the 80 of ImageNet, and has a fortieth of the texts to encode. Prompts of the user's own stay.
    """
    if model != "lite" or found.templates not in map(shipped, names()):
        return found
    return replace(found, templates=TEMPLATES)
