"""Open the encoder of a model, and identify it by a fingerprint of all that an embedding depends on."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch

from everclip.errors import UserError
from everclip.inference.model import is_learned, open_model
from everclip.models import zoo
from everclip.models.clip import Clip
from everclip.models.foreign import open_clip
from everclip.models.text import hugging_face
from everclip.system.atomic import recover
from everclip.training.restore import device

_LOGITS = ("logit_scale", "logit_bias")
"""Parameters that no embedding depends on."""
_IDLE = {
    *("hf_model_name", "hf_model_pretrained", "hf_tokenizer_name"),
    *("timm_model_pretrained", "timm_drop", "timm_drop_path", "patch_dropout"),
}
"""Keys of a tower's config that say where it came from, or how it is trained."""
_TRANSFORMER = (
    *("hidden_act", "feed_forward_proj", "num_attention_heads", "num_heads", "pad_token_id"),
    *("layer_norm_eps", "layer_norm_epsilon", "relative_attention_max_distance"),
    *("encoder_attention_heads", "activation_function", "scale_embedding"),
)
"""Keys of a Hugging Face text tower's config that its weights do not show."""


def open_encoder(spec: str, image_size: int | None = None) -> Clip:
    """Return the two towers of any model; for a run or a model folder those in use, whatever classifies on top of them.

    Args:
        image_size: side in pixels, of a model that has learned nothing; the others have their own.

    Raises:
        UserError: no such model, or one that takes features in place of pictures.
    """
    recover(Path(spec).expanduser())  # from an interrupted rollback
    if is_learned(spec):
        clip = open_model(spec, image_size=image_size, pairs=True).encoder.alone()
    else:
        clip = zoo.load(spec, image_size, device("auto"))
    if not clip.image_size:
        raise UserError(f"{spec} takes features, which are embeddings: give a model that takes pictures")
    return clip


def fingerprint(clip: Clip) -> str:
    """Return the SHA-256 of all that an embedding depends on, in hexadecimal: the weights of both towers, how they
    compute, and how pictures are prepared.

    Two models have the same one if they embed pictures and texts alike: what classifies on top of the towers, the logit
    scale and the place of the weights make no difference. A tokenizer goes with its text tower's weights.
    """
    return fingerprints(clip)[0]


@torch.no_grad()
def fingerprints(clip: Clip) -> tuple[str, str]:
    """Return the fingerprint, and the one that everclip 0.1.0 gave the same model, without how its towers compute.

    No new fingerprint is an earlier one, so what carries either of the two may be compared with the model's embeddings.
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
    earlier = digest.hexdigest()
    return hashlib.sha256(json.dumps([earlier, _towers(clip)], sort_keys=True).encode()).hexdigest(), earlier


def _towers(clip: Clip) -> list[dict[str, Any]]:
    """Return how the towers compute, ready for JSON: what their configs say other than open_clip's defaults."""
    kinds = {"vision_cfg": open_clip.model.CLIPVisionCfg(), "text_cfg": open_clip.model.CLIPTextCfg()}
    found = [
        {
            key: value
            for key, value in clip.config.get(name, {}).items()
            if key not in _IDLE and value != vars(usual).get(key)
        }
        for name, usual in kinds.items()
    ]
    text = hugging_face(clip.model)
    config = {} if text is None else vars(text.config)
    return [*found, {key: config[key] for key in _TRANSFORMER if key in config}]


def _hashed(state: dict[str, torch.Tensor]) -> list[str]:
    return sorted(key for key in state if key not in _LOGITS)
