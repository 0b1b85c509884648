"""Operations and parameters counted from a config, against torch's counters."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import open_clip
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from everclip.models import flops
from everclip.models.catalogue import catalogue, costs
from tests.toy import MODEL_CFG

ODD: dict[str, Any] = {
    "embed_dim": 24,
    "vision_cfg": {
        "image_size": 40,
        "layers": 3,
        "width": 48,
        "head_width": 12,
        "patch_size": 9,
        "mlp_ratio": 3.2,
    },
    "text_cfg": {
        "context_length": 11,
        "vocab_size": 500,
        "width": 32,
        "heads": 4,
        "layers": 2,
        "mlp_ratio": 2.0,
    },
}


def counted(model: Any, size: int, length: int) -> list[int]:
    """torch's count of a forward pass of each tower, for one input."""
    found = []
    for encode, inputs in (
        (model.encode_image, torch.zeros(1, 3, size, size, device="meta")),
        (model.encode_text, torch.zeros(1, length, dtype=torch.long, device="meta")),
    ):
        with FlopCounterMode(display=False) as counter:
            encode(inputs)
        found.append(counter.get_total_flops())
    return found


def on_meta(config: dict[str, Any]) -> Any:
    with torch.device("meta"):
        return open_clip.CLIP(**config)


@pytest.mark.parametrize("config", [MODEL_CFG, ODD])
def test_operations_and_parameters_are_those_of_torch(config: dict[str, Any]) -> None:
    found = flops.towers(config)
    assert found is not None
    model = on_meta(config)
    size, length = config["vision_cfg"]["image_size"], config["text_cfg"]["context_length"]
    assert [tower.flops for tower in found] == counted(model, size, length)
    visual = sum(p.numel() for p in model.visual.parameters())
    text = sum(p.numel() for p in model.parameters()) - visual - model.logit_scale.numel()
    assert [tower.parameters for tower in found] == [visual, text]


def test_another_image_size() -> None:
    found = flops.towers(MODEL_CFG, 64)
    assert found is not None
    config = MODEL_CFG | {"vision_cfg": {**MODEL_CFG["vision_cfg"], "image_size": 64}}
    assert found[0].flops == counted(on_meta(config), 64, 77)[0]
    assert found == flops.towers(config)


def test_vit_b_16_as_published() -> None:
    """open_clip's docs/model_profile.csv: 35.13 and 5.96 billion operations, 86.19 and 63.43 million parameters."""
    config = flops.named("ViT-B/16")
    assert config is not None
    assert config == open_clip.get_model_config("ViT-B-16")
    found = flops.towers(config)
    assert found is not None
    assert [round(tower.flops / 1e9, 2) for tower in found] == [35.13, 5.96]
    assert [round(tower.parameters / 1e6, 2) for tower in found] == [86.19, 63.43]


def test_what_is_no_plain_transformer_is_not_counted() -> None:
    for name in ("RN50", "EVA02-B-16", "coca_ViT-B-32", "roberta-ViT-B-32"):
        config = flops.named(name)
        assert config is not None
        assert flops.towers(config) is None, name
    assert flops.named("no-such-model") is None


def test_the_catalogue_states_what_each_listed_model_costs() -> None:
    for info in catalogue():
        found = costs(info.name)
        assert found is not None, info.name
        assert found.parameters / 1e6 == pytest.approx(info.parameters, abs=0.1), info.name
        assert found.image_flops > 0
        assert found.text_flops > 0
    assert costs("hf-hub:nobody/nothing") is None
    assert costs("ViT-B-16:not-listed") == costs("ViT-B-16:openai")


def test_convolutional_towers_in_the_catalogue_cost_what_torch_counts() -> None:
    config = open_clip.get_model_config("RN50")
    assert config is not None
    found = costs("RN50:openai")
    assert found is not None
    image, text = counted(on_meta(config), 224, 77)
    assert found.image_flops == pytest.approx(image, rel=1e-3)
    assert found.text_flops == pytest.approx(text, rel=1e-3)
    smaller = costs("RN50:openai", 112)
    assert smaller is not None
    assert smaller.image_flops == pytest.approx(image / 4, rel=1e-3)


def test_counting_imports_no_torch() -> None:
    code = (
        "import sys; from everclip.models.catalogue import costs; costs('ViT-B-16:openai')\n"
        "sys.exit(bool({'torch', 'open_clip'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
