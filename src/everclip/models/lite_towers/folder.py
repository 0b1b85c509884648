"""Read a saved model of ``lite``'s architecture without open_clip, timm and transformers.

A folder qualifies where all of its files say what ``lite``'s do: sizes, activations, tokens, preprocessing, and the
names and shapes of the weights. Any other is left to open_clip, with all its checks
(docs/decisions/0032-lites-own-towers.md).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from everclip.models.bounded import MOST_PIXELS, shapes_of
from everclip.models.lite_towers import text
from everclip.models.lite_towers.image import WIDTH, ImageTower
from everclip.models.lite_towers.model import Lite
from everclip.models.lite_towers.text import TextConfig, TextTower
from everclip.models.lite_towers.tokens import FILE, LENGTH, Tokenizer
from everclip.models.savable import CONFIG_FILE, WEIGHTS_FILE
from everclip.models.unset import Unset
from everclip.system.reading import Unreadable, read_json

HUB_NAME = "sentence-transformers/all-MiniLM-L6-v2"
"""The name that plain open_clip looks up on the hub when it loads a saved folder; everclip reads the folder alone."""

_TRANSFORMER = {
    "model_type": "bert",
    "hidden_size": text.WIDTH,
    "intermediate_size": text.HIDDEN,
    "num_attention_heads": text.HEADS,
    "num_hidden_layers": text.LAYERS,
    "vocab_size": text.TOKENS,
    "max_position_embeddings": text.POSITIONS,
    "type_vocab_size": text.SEGMENTS,
    "pad_token_id": text.PADDING,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "is_decoder": False,
}
_TRANSFORMER_IDLE = {
    *(
        "add_cross_attention",
        "architectures",
        "attention_probs_dropout_prob",
        "bos_token_id",
        "classifier_dropout",
    ),
    *("dtype", "eos_token_id", "gradient_checkpointing", "hidden_dropout_prob", "initializer_range"),
    *("tie_word_embeddings", "transformers_version", "use_cache"),
}
"""Keys of config.json that change nothing here: towers never run in training mode."""
_PLACES = "position_embedding_type"  # no longer known to transformers 5
_TOKENS = {
    "do_basic_tokenize": True,
    "do_lower_case": True,
    "never_split": None,
    "padding_side": "right",
    "strip_accents": None,
    "tokenize_chinese_chars": True,
    "truncation_side": "right",
    **{f"{name}_token": f"[{name.upper()}]" for name in ("cls", "mask", "pad", "sep", "unk")},
}
_TOKENS_IDLE = {
    *("backend", "is_local", "local_files_only", "max_length", "model_max_length", "pad_to_multiple_of"),
    *("pad_token_type_id", "stride", "truncation_strategy", "tokenizer_class"),
}
_TOKENIZERS = ("BertTokenizer", "BertTokenizerFast")
_TOKEN_FILES = (FILE, "tokenizer_config.json")
_PARTS = ("added_tokens", "normalizer", "pre_tokenizer", "post_processor", "decoder", "model")
_DIGEST = "c5c198efc160fcd8603f17caeee02145db877ad954ae77651ed8ca3e47003a0d"
"""SHA-256 of these parts of tokenizer.json, with sorted keys; truncation and padding, set anew, are not among them."""
_OTHERS = ("added_tokens.json", "chat_template.jinja", "special_tokens_map.json", "vocab.txt")
"""Files that older versions of transformers read beside these."""
_PREPROCESSING = {"mode": "RGB", "interpolation": "bicubic", "resize_mode": "shortest", "fill_color": 0}


def model_cfg(side: int = 224) -> dict[str, Any]:
    """Return open_clip's config of the architecture, with ``side`` x ``side`` pixels."""
    names = {"hf_model_name": HUB_NAME, "hf_tokenizer_name": HUB_NAME}
    kinds = {"hf_model_pretrained": False, "hf_pooler_type": "mean_pooler", "hf_proj_type": "mlp"}
    vision = {"timm_model_name": "tf_efficientnet_lite0", "timm_pool": "avg", "timm_proj": "none"}
    return {
        "embed_dim": WIDTH,
        "vision_cfg": {"image_size": side, **vision},
        "text_cfg": {"context_length": LENGTH, **names, **kinds},
    }


def read(folder: Path) -> tuple[Lite, dict[str, Any], Tokenizer] | None:
    """Return the model of a folder with its config and tokenizer; None where any part of it is of another architecture.

    Raises:
        OSError: a file cannot be read.
    """
    try:
        found = _fitting(folder)
        shapes = shapes_of(folder / WEIGHTS_FILE) if found is not None else {}
    except Unreadable:
        return None
    if found is None:
        return None
    config, preprocessing = found
    side = config["vision_cfg"]["image_size"]
    with torch.device("meta"), Unset():
        tower = TextTower(WIDTH, TextConfig((folder / "config.json").read_bytes()))
        model = Lite(ImageTower(side, preprocessing), tower)
    empty = model.state_dict()
    if {name: tuple(value.shape) for name, value in empty.items()} != shapes:
        return None
    given = load_file(folder / WEIGHTS_FILE)
    # copied, as ``load_file`` maps the file into memory
    model.load_state_dict({n: given[n].to(v.dtype, copy=True) for n, v in empty.items()}, assign=True)
    return model, config, Tokenizer({name: (folder / name).read_bytes() for name in _TOKEN_FILES})


def _fitting(folder: Path) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """Return the config of a folder's model and its preprocessing, where all files say what ``lite``'s do.

    Raises:
        Unreadable: one of them cannot be read.
    """
    if any((folder / name).exists() for name in _OTHERS):
        return None
    whole = _table(read_json(folder / CONFIG_FILE))
    config, given = _table(whole.get("model_cfg")), _table(whole.get("preprocess_cfg"))
    side = _table(config.get("vision_cfg")).get("image_size")
    if type(side) is not int or not 0 < side <= MOST_PIXELS or config != model_cfg(side):
        return None
    transformer = _table(read_json(folder / "config.json"))
    tokenizer = _table(read_json(folder / "tokenizer_config.json"))
    fits = (
        _says(given, _PREPROCESSING, {"size", "mean", "std"})
        and None not in given.values()
        and _says(transformer, _TRANSFORMER, {*_TRANSFORMER_IDLE, _PLACES})
        and transformer.get(_PLACES, "absolute") == "absolute"
        and _says(tokenizer, _TOKENS, _TOKENS_IDLE)
        and tokenizer.get("tokenizer_class") in _TOKENIZERS
        and _digest(_table(read_json(folder / FILE))) == _DIGEST
    )
    return (config, {**given, "size": (side, side)}) if fits else None


def _table(found: Any) -> dict[str, Any]:
    return found if isinstance(found, dict) else {}


def _says(found: Mapping[str, Any], wanted: Mapping[str, Any], idle: Collection[str]) -> bool:
    """Return whether a table has all that is ``wanted`` and nothing else but ``idle`` keys."""
    known = found.keys() <= {*wanted, *idle}
    return known and all(key in found and found[key] == value for key, value in wanted.items())


def _digest(tokenizer: Mapping[str, Any]) -> str:
    parts = [tokenizer.get(part) for part in _PARTS]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
