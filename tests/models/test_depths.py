"""A tower read at several depths: against each block's output taken by hand, cut and whole, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor
from torch.nn.functional import interpolate, normalize
from torch.testing import assert_close

from everclip.errors import UserError
from everclip.models import zoo
from everclip.models.clip import Clip
from everclip.models.depths import Depths
from everclip.models.trunk import Parts
from tests.methods.stages import TIMM, batch, clip_with
from tests.models.test_split import TOWERS

WEIGHTS = (0.5, 0.25)


@pytest.fixture(params=[name for name in TOWERS if name != "lite's"])
def clip(request: pytest.FixtureRequest, tmp_path: Path) -> Clip:
    return zoo.load(clip_with(tmp_path / "model", **TOWERS[request.param])).requires_grad_(False)


def pixels(clip: Clip) -> Tensor:
    side = clip.image_size
    return clip.normalise(interpolate(batch([0, 1, 2]).images.float(), (side, side)).to(torch.uint8))


def by_hand(clip: Clip, images: Tensor, token: str, root: bool) -> Tensor:
    """One view: the tower's output and its last two blocks."""
    visual, heard = clip.model.visual, {}
    paths = Parts.of(visual, "").blocks[-2:]
    for path in paths:
        visual.get_submodule(path).register_forward_hook(
            lambda _, __, out, path=path: heard.update({path: out})
        )
    parts = [visual(images)]
    for path in reversed(paths):
        hidden = heard[path]
        if hidden.ndim == 4:
            parts.append(hidden.flatten(2).mean(2))
        else:
            parts.append(hidden[:, 0] if token == "class" else hidden[:, 1:].mean(1))
    rooted = [part.sgn() * part.abs() ** 0.5 if root else part for part in parts]
    return torch.cat(
        [w * p / p.norm(dim=1, keepdim=True) for w, p in zip((1, *WEIGHTS), rooted, strict=True)], 1
    )


@pytest.mark.parametrize("root", [True, False])
@pytest.mark.parametrize("token", ["class", "mean"])
def test_blocks_side_by_side_and_the_mean_of_both_images(clip: Clip, token: Any, root: bool) -> None:
    depths, images = Depths(WEIGHTS, root=root, token=token), pixels(clip)
    rows = depths.read(clip.model.visual, images)
    assert not any(module._forward_hooks for module in clip.model.visual.modules()), "hooks are taken off"
    plain, mirrored = (by_hand(clip, view, token, root) for view in (images, images.flip(3)))
    assert_close(rows, normalize(plain + mirrored, dim=1))
    assert_close(rows.norm(dim=1), torch.ones(3))
    alone = Depths(WEIGHTS, root=root, token=token, mirror=False).read(clip.model.visual, images)
    assert_close(alone, normalize(plain, dim=1))


def test_weights_are_shares(clip: Clip) -> None:
    rows = Depths(WEIGHTS, mirror=False).read(clip.model.visual, pixels(clip))
    output = clip.encode_image(pixels(clip)).shape[1]
    assert_close(rows[:, :output].square().sum(1), torch.full((3,), 1 / (1 + 0.5**2 + 0.25**2)))


def test_a_cut_tower_gives_the_same_rows_and_features(clip: Clip) -> None:
    depths, images = Depths(WEIGHTS), pixels(clip)
    rows, features = depths.read(clip.model.visual, images), clip.encode_image(images)
    pictures = interpolate(batch([0, 1, 2]).images.float(), (clip.image_size,) * 2).to(torch.uint8)
    clip.cut(0, beside=depths.beside)
    kept = clip.normalise(pictures)
    assert torch.equal(depths.read(clip.model.visual, kept), rows)
    assert torch.equal(clip.encode_image(kept), features)


def test_scales_are_views_of_other_sides(tmp_path: Path) -> None:
    clip = zoo.load(clip_with(tmp_path / "model", **TOWERS["EfficientNet"])).requires_grad_(False)
    images, one = pixels(clip), Depths(WEIGHTS, mirror=False)
    larger = interpolate(images, (48, 48), mode="bicubic", align_corners=False)
    expected = one.read(clip.model.visual, images) * 1.0 + one.read(clip.model.visual, larger)
    several = Depths(WEIGHTS, mirror=False, scales=(1.0, 1.5))
    output, rows = several.beside(clip.model.visual, images)
    assert_close(rows, normalize(expected, dim=1))
    assert torch.equal(output, clip.model.visual(images))
    only = Depths(WEIGHTS, mirror=False, scales=(1.5,)).beside(clip.model.visual, images)
    assert_close(only[1], one.read(clip.model.visual, larger))
    assert torch.equal(only[0], clip.model.visual(images)), "features stay those of the picture"


def test_the_output_before_the_projection(toy: str) -> None:
    clip = zoo.load(toy).requires_grad_(False)
    rows = Depths((), mirror=False, root=False, pooled=True).read(clip.model.visual, pixels(clip))
    assert_close(normalize(rows @ clip.model.visual.proj, dim=1), clip.encode_image(pixels(clip)))


def test_what_cannot_be_read(toy: str, tmp_path: Path) -> None:
    visual = zoo.load(toy).model.visual
    with pytest.raises(UserError, match=r"method\.stages has 3 weights for 2 blocks: leave some out$"):
        Depths((1, 1, 1)).check(visual)
    with pytest.raises(UserError, match=r"takes no other sizes: use method\.scales=\[1\.0\]$"):
        Depths(scales=(1.0, 2.0)).check(visual)
    other = zoo.load(clip_with(tmp_path / "model", **TIMM, timm_model_name="test_nfnet")).model.visual
    with pytest.raises(UserError, match=r"NormFreeNet cannot be cut .* use method\.stages=\[\]"):
        Depths(WEIGHTS).check(other)
    Depths(()).check(other)


def test_usual_weights_as_far_as_a_tower_has_blocks(toy: str, tmp_path: Path) -> None:
    clip = zoo.load(toy).requires_grad_(False)  # of two blocks
    both: list[tuple[Literal["equal"] | None, float]] = [("equal", 1.0), (None, 0.5)]
    for usual, weight in both:
        rows = Depths(usual).read(clip.model.visual, pixels(clip))
        assert torch.equal(rows, Depths((weight,) * 2).read(clip.model.visual, pixels(clip)))
    other = zoo.load(clip_with(tmp_path / "model", **TIMM, timm_model_name="test_nfnet")).requires_grad_(
        False
    )
    alone = Depths().read(other.model.visual, pixels(other))
    assert torch.equal(alone, Depths(()).read(other.model.visual, pixels(other)))


@pytest.mark.parametrize(
    ("vision", "weights"), [(TOWERS["lite's"], (1.0,) * 6), (TOWERS["ViT"] | {"layers": 4}, (1.0,) * 3)]
)
def test_a_transformer_has_fewer_usual_blocks(
    vision: dict[str, Any], weights: tuple[float, ...], tmp_path: Path
) -> None:
    """They are as wide as the tower, where early stages of a convolutional tower are narrow."""
    clip = zoo.load(clip_with(tmp_path / "model", **vision)).requires_grad_(False)
    usual, wanted = (
        Depths(found, mirror=False).read(clip.model.visual, pixels(clip))
        for found in (Depths().weights, weights)
    )
    assert torch.equal(usual, wanted)
