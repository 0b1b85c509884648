"""Export a transformers CLIPModel, for towers that transformers has: open_clip's ViTs with CLIP's own text tower.

    config.json, model.safetensors                            the towers, and the classes as id2label
    vocab.json, merges.txt, tokenizer_config.json             the tokenizer
    preprocessor_config.json                                  how CLIPImageProcessor turns a picture into the input
    classes.json, class_embeddings.safetensors, example.py    the classes, and a program that predicts them

For the same input, features are those of torch. CLIPImageProcessor itself resizes with torchvision, or rounds the crop
differently, so its input may be shifted by a pixel.

Source: the names of weights in transformers' modeling_clip.py and in open_clip's model.py and transformer.py
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg
from safetensors.torch import save_file
from torch import Tensor

from everclip.errors import RunError, UserError, needing
from everclip.export import Written, quiet, write_json
from everclip.export.shared import vocabulary
from everclip.inference.model import Deployed
from everclip.methods.base.method import TextClassifier
from everclip.models.clip import Clip
from everclip.models.savable import savable

TOLERANCE = 1e-4
"""Largest difference of unit-length features."""
EXAMPLE = Path(__file__).parents[1] / "assets" / "export" / "hf_example.py"
MOST = 256
"""Largest number of prompts that are compared with torch."""
_RESAMPLE = {"bicubic": 3, "bilinear": 2, "random": 3}
"""Pillow's numbers for open_clip's interpolations; "random" is random only in training."""
_EPS = 1e-5
_EMBEDDINGS = "class_embeddings.safetensors"
_BOTH = {"layers", "width", "mlp_ratio", "norm_kwargs"}
_VISION = _BOTH | {"head_width", "patch_size", "image_size", "patch_dropout"}
_TEXT = _BOTH | {"context_length", "heads", "eos_id", "pad_id"}
"""Settings of open_clip's towers that transformers has, or that only training reads; others must be the defaults."""
_BLOCK = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
_NAMES = {
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",  # transformers spells it so
    "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "visual.ln_post.weight": "vision_model.post_layernorm.weight",
    "visual.ln_post.bias": "vision_model.post_layernorm.bias",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
    "logit_scale": "logit_scale",
}
_PROJECTIONS = {"visual.proj": "visual_projection.weight", "text_projection": "text_projection.weight"}


def write(model: Deployed, folder: Path, pictures: UInt8[Tensor, "b 3 s s"]) -> Written:
    """Write the folder, and compare what transformers makes of it with torch.

    Raises:
        UserError: transformers is missing or has no such tower, or the classifier is more than the text tower.
        RunError: transformers gives other features.
    """
    with needing("--format hf", "lite"):
        import transformers
    encoder = model.encoder
    config = config_of(model)
    write_json(folder / "config.json", config)
    weights = savable(renamed(encoder.whole_state()))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    vocabulary.write(folder, encoder.config["text_cfg"].get("context_length", CLIPTextCfg.context_length))
    write_json(folder / "preprocessor_config.json", preprocessing(encoder))
    classifier = model.classifier
    assert isinstance(classifier, TextClassifier)
    about = {"classes": list(model.names), "templates": list(model.templates), "scale": model.to_logits}
    write_json(folder / "classes.json", about)
    save_file({"class_embeddings": classifier.get_buffer("weights").cpu().contiguous()}, folder / _EMBEDDINGS)
    for file in folder.glob("*.safetensors"):  # safetensors writes files that their owner alone may read
        file.chmod((folder / "config.json").stat().st_mode)
    shutil.copyfile(EXAMPLE, folder / "example.py")
    with quiet():
        loaded = transformers.CLIPModel.from_pretrained(folder, local_files_only=True).eval()
        tokenizer = transformers.CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    worst, other = _compare(model, loaded, tokenizer, pictures)
    note = (
        f"{other} of the prompts have other token ids in transformers, which does not repair texts as open_clip does"
        " (curly quotes, HTML entities); class_embeddings.safetensors has open_clip's"
    )
    return Written({"transformers": worst}, (note,) if other else ())


def config_of(model: Deployed) -> dict[str, Any]:
    """Return a model's config.json. Raises UserError where transformers' CLIPModel has another architecture."""
    encoder = model.encoder
    if not model.reads_text:
        raise UserError(f"{model.spec} classifies by more than its text tower: use --format onnx")
    whole = encoder.config
    vision, text = _supported(model.spec, encoder)
    gelu = "quick_gelu" if whole.get("quick_gelu") else "gelu"
    width = vision.get("width", CLIPVisionCfg.width)
    text_width = text.get("width", CLIPTextCfg.width)
    shared = {"projection_dim": whole["embed_dim"], "hidden_act": gelu, "attention_dropout": 0.0}
    return {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "dtype": "float32",
        "projection_dim": whole["embed_dim"],
        "logit_scale_init_value": encoder.logit_scale.item(),
        "id2label": {str(place): name for place, name in enumerate(model.names)},
        "label2id": {name: place for place, name in enumerate(model.names)},
        "vision_config": shared
        | {
            "model_type": "clip_vision_model",
            "hidden_size": width,
            "intermediate_size": int(width * vision.get("mlp_ratio", CLIPVisionCfg.mlp_ratio)),
            "num_hidden_layers": vision.get("layers", CLIPVisionCfg.layers),
            "num_attention_heads": width // vision.get("head_width", CLIPVisionCfg.head_width),
            "image_size": encoder.image_size,
            "patch_size": vision.get("patch_size", CLIPVisionCfg.patch_size),
            "layer_norm_eps": (vision.get("norm_kwargs") or {}).get("eps", _EPS),
        },
        "text_config": shared
        | {
            "model_type": "clip_text_model",
            "hidden_size": text_width,
            "intermediate_size": int(text_width * text.get("mlp_ratio", CLIPTextCfg.mlp_ratio)),
            "num_hidden_layers": text.get("layers", CLIPTextCfg.layers),
            "num_attention_heads": text.get("heads", CLIPTextCfg.heads),
            "max_position_embeddings": text.get("context_length", CLIPTextCfg.context_length),
            "vocab_size": vocabulary.SIZE,
            "layer_norm_eps": (text.get("norm_kwargs") or {}).get("eps", _EPS),
            "bos_token_id": vocabulary.START_ID,
            "eos_token_id": vocabulary.END_ID,
            "pad_token_id": vocabulary.END_ID,
        },
    }


def _supported(spec: str, encoder: Clip) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Return the settings of both towers. Raises UserError for a setting that transformers lacks."""
    vision, text = encoder.config["vision_cfg"], encoder.config["text_cfg"]
    odd: list[str] = []
    for name, given, kind, known in (
        ("vision_cfg", vision, CLIPVisionCfg, _VISION),
        ("text_cfg", text, CLIPTextCfg, _TEXT),
    ):
        usual = {field.name: field.default for field in fields(kind) if field.default is not MISSING}
        odd += [f"{name}.{key}" for key, v in given.items() if key not in known and v != usual.get(key)]
    if isinstance(vision.get("layers"), list):
        odd.append("vision_cfg.layers")
    if not isinstance(encoder.model, CLIP) or encoder.model.logit_bias is not None:
        odd.append(type(encoder.model).__name__)
    if encoder.centered:
        odd.append("center=true")
    if encoder.preprocessing()["resize_mode"] not in ("shortest", "squash"):
        odd.append("preprocess_cfg.resize_mode")
    if odd:
        raise UserError(f"{spec} is not a CLIPModel of transformers, which lacks {odd[0]}: use --format onnx")
    return vision, text


def renamed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return open_clip's weights under transformers' names, with queries, keys and values split."""
    found: dict[str, Tensor] = {}
    for name, value in state.items():
        if name in _NAMES:
            found[_NAMES[name]] = value
        elif name in _PROJECTIONS:
            found[_PROJECTIONS[name]] = value.T
        else:
            tower, blocks, rest = name.partition("transformer.resblocks.")
            number, _, part = rest.partition(".")
            assert blocks, f"a weight of no known place: {name}"
            prefix = f"{'vision' if tower else 'text'}_model.encoder.layers.{number}."
            if part.startswith("attn.in_proj_"):
                kind = part.removeprefix("attn.in_proj_")
                for letter, third in zip("qkv", value.chunk(3), strict=True):
                    found[f"{prefix}self_attn.{letter}_proj.{kind}"] = third
            else:
                module, _, kind = part.rpartition(".")
                found[f"{prefix}{_BLOCK[module]}.{kind}"] = value
    return found


def preprocessing(encoder: Clip) -> dict[str, Any]:
    """Return preprocessor_config.json."""
    side, known = encoder.image_size, encoder.preprocessing()
    square = {"height": side, "width": side}
    squash = known["resize_mode"] == "squash"
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": square if squash else {"shortest_edge": side},
        "resample": _RESAMPLE[known["interpolation"]],
        "do_center_crop": not squash,
        "crop_size": square,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(encoder.mean),
        "image_std": list(encoder.std),
    }


@torch.inference_mode()
def _compare(
    model: Deployed, loaded: Any, tokenizer: Any, pictures: UInt8[Tensor, "b 3 s s"]
) -> tuple[float, int]:
    """Return the largest difference of features, and how many prompts have other token ids."""
    encoder = model.encoder
    prompts = [template.replace("{}", name) for name in model.names for template in model.templates][:MOST]
    found = tokenizer(prompts, padding="max_length", truncation=True, return_tensors="pt")["input_ids"]
    ours = encoder.tokenize(prompts)
    same = (found == torch.where(ours == 0, vocabulary.END_ID, ours)).all(1)
    images = loaded.vision_model(pixel_values=encoder.normalise(pictures).cpu()).pooler_output
    pairs = [(loaded.visual_projection(images), encoder.encode_image(pictures).cpu())]
    if same.any():
        kept = [prompt for prompt, alike in zip(prompts, same.tolist(), strict=True) if alike]
        texts = loaded.text_model(input_ids=found[same]).pooler_output
        pairs.append((loaded.text_projection(texts), encoder.encode_text(kept).cpu()))
    unit = torch.nn.functional.normalize
    worst = np.max([(unit(one, dim=-1) - two).abs().max().item() for one, two in pairs]).item()
    if not worst <= TOLERANCE:
        raise RunError(f"transformers gives other features than torch from the same folder (by {worst:.2g})")
    return worst, int((~same).sum())
