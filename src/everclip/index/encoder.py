"""Open the encoder of a model, and identify it by a fingerprint of all that an embedding depends on."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch

from everclip.errors import UserError
from everclip.inference.model import is_learned, open_model
from everclip.models import zoo
from everclip.models.clip import Clip
from everclip.system.atomic import recover
from everclip.training.restore import device

_LOGITS = ("logit_scale", "logit_bias")
"""Parameters that no embedding depends on."""


def open_encoder(spec: str, image_size: int | None = None) -> Clip:
    """Return the two towers of any model; for a run or a model folder those in use, whatever classifies on top of them.

    Args:
        image_size: side in pixels, of a model that has learned nothing; the others have their own.

    Raises:
        UserError: no such model, or one that takes features in place of pictures.
    """
    recover(Path(spec).expanduser())  # from an interrupted rollback
    if is_learned(spec):
        clip = open_model(spec, image_size=image_size, pairs=True).encoder
    else:
        clip = zoo.load(spec, image_size, device("auto"))
    if not clip.image_size:
        raise UserError(f"{spec} takes features, which are embeddings: give a model that takes pictures")
    return clip


@torch.no_grad()
def fingerprint(clip: Clip) -> str:
    """Return the SHA-256 of the weights of both towers and of how pictures are prepared, in hexadecimal.

    Two models have the same one if they embed pictures and texts alike: what classifies on top of the towers, the logit
    scale and the place of the weights make no difference. A tokenizer goes with its text tower's weights.
    """
    state = clip.whole_state()
    about = {
        "preprocessing": clip.preprocessing(),
        "image_size": clip.image_size,
        "center": None if clip.center is None else clip.center.tolist(),
        "quick_gelu": bool(clip.config.get("quick_gelu")),
        "weights": {key: [str(state[key].dtype), list(state[key].shape)] for key in _hashed(state)},
    }
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    for key in _hashed(state):
        digest.update(state[key].detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _hashed(state: dict[str, torch.Tensor]) -> list[str]:
    return sorted(key for key in state if key not in _LOGITS)
