"""Locate the weights of a model: on this machine, on a reachable hub, or nowhere. Nothing is downloaded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from everclip.errors import UserError
from everclip.models import lite, zoo
from everclip.models.catalogue import FEATURES, LITE
from everclip.models.foreign import open_clip
from everclip.models.savable import WEIGHTS_FILE


@dataclass(frozen=True)
class Place:
    """The place where a model's weights are.

    Args:
        state: ``here``; ``hub``, to be downloaded on first use; ``none``, with what to do about it in ``remedy``.
        text: the file or folder, or why there is none.
    """

    state: Literal["here", "hub", "none"]
    text: str
    remedy: str = ""


def find(spec: str) -> Place:
    """Find the weights of ``spec``; asks the hub only if the cache lacks them, for three seconds at most. Raises
    UserError for an unknown model, tag or folder."""
    place = find_here(spec)
    if place is not None:
        return place
    with zoo._quiet():  # ``find_here`` has warned already
        where = zoo._tried(*zoo._resolve(spec))
    reason = zoo._no_network()
    if reason:
        return Place("none", f"{reason} (needed: {where})", zoo._REMEDY)
    return Place("hub", f"not in the cache; downloaded from {where} on first use")


def find_here(spec: str) -> Place | None:
    """Find the weights of ``spec`` on this machine; None where they are not. Raises as ``find`` does."""
    if spec == LITE:
        lite._sources()
        return Place("here", "in the packages of everclip[lite]")
    if spec.startswith(FEATURES):
        return Place("here", "none: features come ready-made")
    source, options = zoo._resolve(spec)
    if source.startswith(zoo._LOCAL):
        folder = source.removeprefix(zoo._LOCAL)
        try:
            with zoo._quiet():
                zoo._weights(source, folder)  # as training finds them
        except ValueError as error:
            raise UserError(
                f"model: the folder {folder} has no {WEIGHTS_FILE}; give the folder of a saved model"
            ) from error
        return Place("here", folder)
    file = _cached(source, options)
    if file is not None:
        return Place("here", f"{file} ({file.stat().st_size / 1e6:.0f} MB)")
    return None


def are_here(spec: str) -> bool:
    """Return whether the weights of ``spec`` are on this machine; False where it names no model."""
    try:
        with zoo._quiet():
            return find_here(spec) is not None
    except UserError:
        return False


def _cached(source: str, options: dict[str, str]) -> Path | None:
    """Return the file of the weights in the hub's cache."""
    from huggingface_hub.errors import HFValidationError

    try:
        with zoo._quiet(), zoo._offline(True):
            if source.startswith(zoo._HUB):
                name = source.removeprefix(zoo._HUB)
                return Path(open_clip.pretrained.download_pretrained_from_hf(name))
            config = open_clip.get_pretrained_cfg(source, options["pretrained"])
            return Path(open_clip.download_pretrained(config))
    except (OSError, HFValidationError):
        return None
