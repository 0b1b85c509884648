"""Export an open_clip folder, which open_clip loads unchanged, with everclip.json beside it.

open_clip_config.json, open_clip_model.safetensors     the towers
everclip.json                                          classes, prompts, temperature
method.pt                                              only if something other than the text tower classifies
config.json, tokenizer.json, ...                       of a Hugging Face text tower
manifest.json                                          SHA-256 of each of these, by which a server recognises a model
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from jaxtyping import UInt8
from torch import Tensor

from everclip.data.scenario import seen
from everclip.errors import RunError, UserError
from everclip.export import Written, quiet
from everclip.export.shared.session import as_input
from everclip.inference.model import Deployed, open_model, save
from everclip.metrics.calibration import probabilities
from everclip.models.clip import Clip
from everclip.models.savable import CONFIG_FILE
from everclip.system import checkpoint

PROMPTS = ("a photo of a cat.", "b")
TOLERANCE = 1e-4
"""Largest difference of unit-length features; the same weights agree up to the order of additions."""


def write(model: Deployed, folder: Path, pictures: UInt8[Tensor, "b 3 s s"]) -> Written:
    """Write the folder, and load it with open_clip alone where that needs no hub.

    Raises:
        UserError: some of the learned classes were left out.
        RunError: what is read from the folder gives other scores or features.
    """
    if model.plan is not None and model.labels != seen(model.plan.tasks):
        raise UserError("--classes is for --format onnx, or a model that has learned nothing: leave it out")
    checkpoint.fill(folder, lambda where: save(model, where))
    checked = {"everclip": _compare_reopened(model, folder, pictures)}
    encoder, notes = model.encoder, []
    if not model.reads_text:
        notes.append("open_clip loads only the towers, everclip the classifier too; --format onnx has both")
    if encoder.centered:
        notes.append("this model subtracts a mean from image features (center=true); open_clip does not")
    text = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))["model_cfg"]["text_cfg"]
    if hub := text.get("hf_model_name"):
        notes.append(f"open_clip asks the Hugging Face hub for {hub}; everclip reads only the folder")
    else:
        checked["open_clip"] = _compare(encoder, folder, pictures)
    return Written(checked, tuple(notes))


def _compare_reopened(model: Deployed, folder: Path, pictures: UInt8[Tensor, "b 3 s s"]) -> float:
    """Return the largest difference of probabilities between the model and what everclip reads from the folder."""
    again = open_model(str(folder), pairs=True)
    assert again.names == model.names
    worst = float(np.abs(probabilities(again.logits(pictures)) - probabilities(model.logits(pictures))).max())
    if not worst <= TOLERANCE:  # nan is no small difference either
        raise RunError(f"everclip gives other probabilities than torch from the same folder (by {worst:.2g})")
    return worst


@torch.inference_mode()
def _compare(encoder: Clip, folder: Path, pictures: UInt8[Tensor, "b 3 s s"]) -> float:
    """Return the largest difference of image and text features between our model and the one that open_clip loads."""
    with quiet():
        made: Any = open_clip.create_model_from_pretrained(f"local-dir:{folder}")
        tokens = open_clip.get_tokenizer(f"local-dir:{folder}")(list(PROMPTS))
    loaded = made[0].to(encoder.device).eval()
    images = torch.from_numpy(as_input(encoder, pictures)).to(encoder.device)
    # without the mean that open_clip does not know
    ours = encoder.model.encode_image(encoder.normalise(pictures))
    pairs = [
        (loaded.encode_image(images), ours),
        (loaded.encode_text(tokens.to(encoder.device)), encoder.encode_text(PROMPTS)),
    ]
    unit = torch.nn.functional.normalize
    worst = np.max([(unit(one, dim=-1) - unit(two, dim=-1)).abs().max().item() for one, two in pairs]).item()
    if not worst <= TOLERANCE:
        raise RunError(f"open_clip gives other features than torch from the same folder (by {worst:.2g})")
    return worst
