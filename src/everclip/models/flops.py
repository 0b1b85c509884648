"""Count floating-point operations, parameters and activations of open_clip's transformers from a model's config.

A multiplication and an addition are two operations. Matrix products and the patch convolution are counted, as by
torch's flop counter; softmax, norms and activations would add a few per cent. Imports no torch.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_OTHER_POOLS = ("attentional_pool", "timm_model_name")


@dataclass(frozen=True)
class Tower:
    """The size and the costs of one tower, for one image or one prompt.

    Attributes:
        flops: of a forward pass; a backward pass takes twice as many.
        parameters: in all.
        tokens, width, layers: of the transformer.
    """

    flops: float
    parameters: int
    tokens: int
    width: int
    layers: int


def towers(config: Mapping[str, Any], image_size: int | None = None) -> tuple[Tower, Tower] | None:
    """Return the image tower and the text tower of an open_clip model config.

    None where one is not a plain transformer.

    Args:
        config: as in open_clip's model_configs: ``embed_dim``, ``vision_cfg``, ``text_cfg``.
        image_size: pixels per side; default: the config's. Rounded down to whole patches, as open_clip does.
    """
    vision, text = config.get("vision_cfg", {}), config.get("text_cfg", {})
    layers = vision.get("layers", 12)
    if not isinstance(layers, int) or any(vision.get(key) for key in _OTHER_POOLS) or "hf_model_name" in text:
        return None
    return _image(vision, config["embed_dim"], image_size), _text(text, config["embed_dim"])


def named(name: str) -> dict[str, Any] | None:
    """Return open_clip's config of a model it knows by name (``ViT-B-16``), from its files, without importing it."""
    found = importlib.util.find_spec("open_clip")
    if found is None or not found.submodule_search_locations:
        return None
    file = Path(found.submodule_search_locations[0]) / "model_configs" / f"{name.replace('/', '-')}.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None


def _image(vision: Mapping[str, Any], out: int, image_size: int | None) -> Tower:
    size = image_size or vision.get("image_size", 224)
    side = size if isinstance(size, int) else size[0]
    width, layers, patch = vision.get("width", 768), vision.get("layers", 12), vision.get("patch_size", 16)
    hidden = int(width * vision.get("mlp_ratio", 4.0))
    patches = (side // patch) ** 2
    tokens = patches + 1
    flops = 6 * patches * patch**2 * width + _blocks_flops(tokens, width, hidden, layers) + 2 * width * out
    # patches, class token, positions, norms before and after, projection
    parameters = 3 * patch**2 * width + width + tokens * width + 4 * width + width * out
    return Tower(flops, parameters + _blocks_parameters(width, hidden, layers), tokens, width, layers)


def _text(text: Mapping[str, Any], out: int) -> Tower:
    width, layers, tokens = text.get("width", 512), text.get("layers", 12), text.get("context_length", 77)
    hidden = int(width * text.get("mlp_ratio", 4.0))
    flops = _blocks_flops(tokens, width, hidden, layers) + 2 * width * out
    parameters = text.get("vocab_size", 49408) * width + tokens * width + 2 * width + width * out
    return Tower(flops, parameters + _blocks_parameters(width, hidden, layers), tokens, width, layers)


def _blocks_flops(tokens: int, width: int, hidden: int, layers: int) -> float:
    """Return queries, keys, values and output; scores and their weighted sum; the two layers of the perceptron."""
    products = 4 * tokens * width**2 + 2 * tokens**2 * width + 2 * tokens * width * hidden
    return 2.0 * products * layers


def _blocks_parameters(width: int, hidden: int, layers: int) -> int:
    attention = 4 * width**2 + 4 * width
    perceptron = 2 * width * hidden + hidden + width
    return layers * (attention + perceptron + 4 * width)
