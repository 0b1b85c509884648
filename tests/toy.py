"""A tiny open_clip model with random weights, saved as a ``local-dir`` folder."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from open_clip import CLIP
from safetensors.torch import load_file, save_file

MODEL_CFG = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}


def toy_clip(tmp_path: Path, seed: int = 0) -> Path:
    """Write the model into ``tmp_path / "toy"`` and return that folder; ``local-dir:FOLDER`` loads it."""
    folder = tmp_path / "toy"
    folder.mkdir()
    config = {"model_cfg": MODEL_CFG, "preprocess_cfg": {"mean": [0.5, 0.4, 0.3], "std": [0.3, 0.25, 0.2]}}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = CLIP(**MODEL_CFG)
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    return folder


def damaged_clip(tmp_path: Path) -> Path:
    """Write the model with a weight that is not a number, and return its folder."""
    folder = toy_clip(tmp_path)
    file = folder / "open_clip_model.safetensors"
    weights = load_file(file)
    weights["visual.proj"][0, 0] = torch.nan
    save_file(weights, file)
    return folder
