"""Find the licences of what a model was made from, as their sources state them; None where a source states none."""

from __future__ import annotations

import importlib.metadata
import os
import re
from contextlib import suppress
from pathlib import Path

from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError

from everclip.inference.model import LOCAL, Deployed
from everclip.models import lite
from everclip.models.catalogue import LITE
from everclip.system.reading import MIB, Unreadable, read_text

Stated = list[tuple[str, str | None]]
"""Pairs of a part and its licence."""
_HUB = "hf-hub:"
_LICENCE = re.compile(r"[\w .+-]{1,60}", re.ASCII)
_EMOJI = "Apache-2.0, CC BY 4.0 and MIT (NOTICE of everclip)"


def of(model: Deployed) -> Stated:
    """Return the licences of a model's initial weights, and of the pictures that it has learned."""
    spec = model.spec if model.plan is None else model.plan.config.model
    found = weights(spec)
    if model.plan is not None and (Path(model.spec).expanduser() / "config.toml").is_file():
        kind = model.plan.config.data.partition(":")[0]
        return [*found, (f"pictures that were learned ({kind})", _EMOJI if kind == "emoji" else None)]
    return [*found, ("pictures that were learned", None)] if model.plan is not None else found


def weights(spec: str) -> Stated:
    """Return the licences of the weights that a spec names; no hub is asked."""
    if spec == LITE:
        return [(f"weights: package {name}", _of_package(name)) for name in lite.PACKAGES]
    if spec.startswith(_HUB):
        card = None
        with suppress(HFValidationError):  # a stranger's name, which no repository can have
            card = try_to_load_from_cache(spec.removeprefix(_HUB), "README.md")
        return [(f"weights: {spec}", _of_card(Path(card)) if isinstance(card, str) else None)]
    folder = Path(os.path.expanduser(spec.removeprefix(LOCAL)))
    if spec.startswith(LOCAL) or os.path.isdir(folder):  # whatever a stranger's path is
        return [(f"weights: the folder {folder.name}", _of_card(folder / "README.md"))]
    return [(f"weights: open_clip's {spec}", None)]


def common(stated: Stated) -> str:
    """Return what the head of a card says: the one licence of all weights, else ``unknown``."""
    found = {licence for part, licence in stated if part.startswith("weights")}
    only = found.pop() if len(found) == 1 else None
    return only.lower() if only else "unknown"


def _of_package(name: str) -> str | None:
    """Return what an installed package's metadata says."""
    try:
        head = importlib.metadata.metadata(name)
    except importlib.metadata.PackageNotFoundError:  # its files were given otherwise
        return None
    found = next((head[key] for key in ("License-Expression", "License") if key in head), "")
    return found if found and found != "UNKNOWN" and "\n" not in found else None


def _of_card(path: Path) -> str | None:
    """Return the licence in the head of a model card."""
    try:
        first, *lines = read_text(path, MIB).split("\n")
    except Unreadable:
        return None
    end = next((number for number, line in enumerate(lines) if line.startswith("---")), None)
    if first.rstrip() != "---" or end is None:
        return None
    values = (line.removeprefix("license:").strip() for line in lines[:end] if line.startswith("license:"))
    named = (value.strip("\"'") for value in values)
    found = next((name for name in named if _LICENCE.fullmatch(name)), "unknown")
    return found if found != "unknown" else None
