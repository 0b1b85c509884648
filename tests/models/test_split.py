"""Towers cut in two: the copied upper part says what the tower says, and holds nothing from below the cut."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from everclip.errors import UserError
from everclip.models import zoo
from everclip.models.clip import Clip
from everclip.models.split import Split
from tests.methods.stages import SIDE, TIMM, batch, clip_with, count

TOWERS: dict[str, dict[str, Any]] = {
    "ViT": {"image_size": SIDE, "layers": 3, "width": 32, "head_width": 16, "patch_size": 8},
    "ViT, average": {
        "image_size": SIDE,
        "layers": 2,
        "width": 32,
        "head_width": 16,
        "patch_size": 8,
        "pool_type": "avg",
        "final_ln_after_pool": True,
        "no_ln_pre": True,
    },
    "ViT, CoCa": {
        "image_size": SIDE,
        "layers": 2,
        "width": 32,
        "head_width": 16,
        "patch_size": 8,
        "attentional_pool": True,
        "attn_pooler_heads": 2,
    },
    "ResNet": {"image_size": SIDE, "layers": [1, 1, 1, 1], "width": 16, "head_width": 32},
    "EfficientNet": TIMM | {"timm_model_name": "test_efficientnet"},
    "ConvNeXt": TIMM | {"timm_model_name": "test_convnext"},
    "timm ResNet": TIMM | {"timm_model_name": "test_resnet"},
    "timm ViT": TIMM | {"timm_model_name": "test_vit", "image_size": 160},
    "lite's": TIMM | {"timm_model_name": "tf_efficientnet_lite0", "timm_proj": "none"},
}


@pytest.fixture(scope="module", params=TOWERS)
def clip(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Clip:
    vision = TOWERS[request.param]
    return zoo.load(clip_with(tmp_path_factory.mktemp("split") / "model", **vision))


def pictures(clip: Clip) -> torch.Tensor:
    images = batch([0, 1]).images.repeat(1, 1, clip.image_size // SIDE, clip.image_size // SIDE)
    return clip.normalise(images)


def test_a_copy_of_the_upper_part_says_what_the_tower_says(clip: Clip) -> None:
    split, images = Split(clip.model.visual, 1), pictures(clip)
    upper = split.upper(clip).requires_grad_(
        True
    )  # torch adds in another order where a weight takes no gradient
    with torch.no_grad():
        older, newest = split.encode(clip, images, [upper])
        whole = clip.encode_image(images)
    assert torch.equal(newest, whole)
    assert torch.equal(older, whole)


def test_upper_holds_what_is_above_the_cut_and_nothing_else(clip: Clip) -> None:
    split, tower = Split(clip.model.visual, 1), clip.model.visual
    upper = split.upper(clip)
    above = {name: value for name, value in tower.named_parameters() if split.above(name)}
    assert count(upper) == sum(value.numel() for value in above.values()) < count(tower)
    assert set(above) == {name.removeprefix("tower.") for name, _ in upper.named_parameters()}
    assert not any(value.requires_grad for value in upper.parameters())
    storages = {value.untyped_storage().data_ptr() for value in tower.state_dict().values()}
    assert not storages & {value.untyped_storage().data_ptr() for value in upper.state_dict().values()}


def test_what_is_below_the_cut_comes_before_it(clip: Clip) -> None:
    """Above the cut a change is the tower's alone; below it, the copies see it too."""
    split, images = Split(clip.model.visual, 1), pictures(clip)
    upper = split.upper(clip)
    with torch.no_grad():
        before = split.encode(clip, images, [upper])[0]
    for above in (True, False):
        with torch.no_grad():
            for name, value in clip.model.visual.named_parameters():
                if split.above(name) == above:
                    value.mul_(1.1).add_(0.01)
            older, newest = split.encode(clip, images, [upper])
        assert not torch.equal(newest, before)
        assert torch.equal(older, before) == above


def test_gradients_reach_the_shared_part_through_a_frozen_copy(clip: Clip) -> None:
    split = Split(clip.model.visual, 1)
    upper = split.upper(clip)
    split.encode(clip, pictures(clip), [upper])[0][:, 0].sum().backward()
    named = list(clip.model.visual.named_parameters())
    assert all(value.grad is None for name, value in named if split.above(name))
    assert any(value.grad is not None for name, value in named if not split.above(name))
    assert all(value.grad is None for value in upper.parameters())
    clip.zero_grad()


def test_more_blocks_and_too_many(tmp_path: Path) -> None:
    clip = zoo.load(clip_with(tmp_path / "model", **TOWERS["ViT"]))
    split, images = Split(clip.model.visual, 2), pictures(clip)
    assert split.cut == "transformer.resblocks.1"
    upper = split.upper(clip)
    with torch.no_grad():
        assert torch.equal(*split.encode(clip, images, [upper]))
    block = count(clip.model.visual.transformer.resblocks[0])
    assert count(upper) == count(Split(clip.model.visual, 1).upper(clip)) + block
    with pytest.raises(UserError, match=r"3 blocks of the image tower's 3 .* use at most 2"):
        Split(clip.model.visual, 3)


def test_centred_features(tmp_path: Path) -> None:
    clip = zoo.load(clip_with(tmp_path / "model", **TOWERS["ViT"]))
    clip.center_images(torch.linspace(-0.1, 0.1, 16))
    split, images = Split(clip.model.visual, 1), pictures(clip)
    upper = split.upper(clip).requires_grad_(
        True
    )  # torch adds in another order where a weight takes no gradient
    with torch.no_grad():
        older, newest = split.encode(clip, images, [upper])
        assert torch.equal(newest, clip.encode_image(images))
    assert torch.equal(older, newest)


def test_an_unknown_tower_is_refused(tmp_path: Path) -> None:
    clip = zoo.load(clip_with(tmp_path / "model", **TIMM, timm_model_name="test_nfnet"))
    with pytest.raises(UserError, match=r"NormFreeNet cannot be cut .* use method=der_expand"):
        Split(clip.model.visual, 1)
