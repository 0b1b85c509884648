"""Towers cut in two: trunk and upper part say what the tower says, and together they are saved as the tower."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from open_clip.transformer import QuickGELU
from torch import Tensor, nn

from everclip.errors import UserError
from everclip.models import zoo
from everclip.models.clip import Clip
from everclip.models.pooled import both, pooled
from everclip.models.split import Split
from everclip.models.trunk import Parts
from tests.methods.stages import SIDE, TIMM, batch, clip_with, state
from tests.models.test_split import TOWERS


@pytest.fixture(scope="module", params=TOWERS)
def spec(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    return clip_with(tmp_path_factory.mktemp("trunk") / "model", **TOWERS[request.param])


@pytest.fixture
def vit(tmp_path: Path) -> str:
    return clip_with(tmp_path / "vit", **TOWERS["ViT"])


def load(spec: str, blocks: int | None = None, **options: Any) -> Clip:
    """A model whose weights take no gradient: torch adds in another order where they do."""
    clip = zoo.load(spec).requires_grad_(False)
    if blocks is not None:
        clip.cut(blocks, **options)
    return clip


def pictures(clip: Clip) -> Tensor:
    return batch([0, 1, 2]).images.repeat(1, 1, clip.image_size // SIDE, clip.image_size // SIDE)


def blocks_of(clip: Clip) -> int:
    return len(Parts.of(clip.model.visual, "another").blocks)


@torch.no_grad()
def features(clip: Clip, tower: nn.Module | None = None) -> Tensor:
    return clip.encode_image(pictures(clip), tower)


def test_a_cut_tower_says_what_the_whole_one_says(spec: str) -> None:
    whole = load(spec)
    for blocks in range(blocks_of(whole)):
        clip = load(spec, blocks)
        assert torch.equal(features(clip), features(whole))
        assert torch.equal(features(clip, clip.copy_tower()), features(whole))
        assert type(clip.model.visual) is type(whole.model.visual) or blocks == 0


def test_every_weight_is_on_one_side_and_keeps_its_name(spec: str) -> None:
    every = state(load(spec).model.visual)
    for blocks in range(blocks_of(load(spec))):
        clip = load(spec, blocks)
        assert clip.trunk is not None
        upper, lower = state(clip.model.visual), state(clip.trunk.lower)
        assert not upper.keys() & lower.keys()
        assert upper.keys() | lower.keys() == every.keys()
        assert all(torch.equal(value, every[name]) for name, value in (upper | lower).items())
        names = {name.removeprefix("visual.") for name, _ in clip.image_parameters()}
        assert names <= upper.keys()
        assert all(not parameter.requires_grad for parameter in clip.trunk.parameters())


def test_a_saved_model_is_whole_and_open_clips_own(spec: str, tmp_path: Path) -> None:
    clip, before = load(spec, 1), state(load(spec).model)
    with torch.no_grad():
        for parameter in clip.model.visual.parameters():
            parameter.add_(0.01)
    moved = {f"visual.{name}" for name, _ in clip.model.visual.named_parameters()}
    clip.save(tmp_path / "saved")
    read = open_clip.create_model(f"local-dir:{tmp_path / 'saved'}").state_dict()
    assert list(read) == list(before)
    for name, value in read.items():
        assert torch.equal(value, before[name]) == (name not in moved), name
    assert torch.equal(features(load(str(tmp_path / "saved"), 1)), features(clip))


def test_a_copy_shares_the_trunk_and_has_the_upper_part(vit: str) -> None:
    clip = load(vit, 1)
    assert clip.trunk is not None
    again, tower = copy.deepcopy(clip), clip.copy_tower()
    assert again.trunk is clip.trunk
    assert {name for name, _ in tower.named_parameters()} == dict(clip.model.visual.named_parameters()).keys()
    held = {value.data_ptr() for value in clip.model.visual.parameters()}
    for parameter in [*tower.parameters(), *again.model.visual.parameters()]:
        assert parameter.data_ptr() not in held
    with torch.no_grad():
        for parameter in clip.model.visual.parameters():
            parameter.zero_()
    assert torch.equal(features(again), features(load(vit)))
    assert torch.equal(features(clip, tower), features(load(vit)))


def test_kept_activations_go_in_where_pictures_did(vit: str) -> None:
    clip = load(vit, 1)
    hidden = clip.normalise(pictures(clip))
    assert hidden.shape == (3, 17, 32)
    assert torch.equal(clip.normalise(hidden), hidden)
    half = clip.normalise(hidden.half())
    assert half.dtype == torch.float32
    assert (half - hidden).norm() / hidden.norm() < 3e-4
    with pytest.raises(AssertionError, match="cut"):
        load(vit).normalise(hidden)


@pytest.mark.parametrize("tower", [name for name in TOWERS if name != "lite's"])
def test_gradients_are_those_of_the_whole_tower_to_the_error_of_fp16(tower: str, tmp_path: Path) -> None:
    """Without lite's tower, whose random weights give all pictures nearly the same features."""
    spec = clip_with(tmp_path / "model", **TOWERS[tower])
    whole, clip = load(spec), load(spec, 1)
    names = [name for name, _ in clip.model.visual.named_parameters()]
    found = []
    for model, rows in ((whole, pictures(whole)), (clip, clip.normalise(pictures(clip)).half())):
        chosen = dict(model.model.visual.named_parameters())
        leaves = [chosen[name].requires_grad_() for name in names]
        output = model.encode_image(rows)
        weights = torch.linspace(-1, 1, output.numel()).view_as(output)
        found.append(torch.cat([g.flatten() for g in torch.autograd.grad((output * weights).sum(), leaves)]))
    assert (found[0] - found[1]).norm() / found[0].norm() < 5e-3


def test_a_split_of_a_cut_tower_is_as_of_the_whole(tmp_path: Path) -> None:
    spec = clip_with(tmp_path / "model", **TOWERS["ViT"])
    clip, expected = load(spec, 1), features(load(spec))
    for blocks in (1, 2):  # at the cut, and below it
        split = Split(clip.model.visual, blocks)
        with torch.no_grad():
            older, newest = split.encode(clip, clip.normalise(pictures(clip)), [split.upper(clip)])
        assert torch.equal(older, expected)
        assert torch.equal(newest, expected)


@pytest.mark.parametrize("tower", ["ViT", "ViT, average", "EfficientNet", "timm ViT", "lite's"])
def test_pooled_features_of_a_tower_cut_anywhere(tower: str, tmp_path: Path) -> None:
    spec = clip_with(tmp_path / "model", **TOWERS[tower])
    whole = load(spec)
    expected = pooled(whole.model.visual, whole.normalise(pictures(whole)))
    for blocks in (0, 1):
        clip = load(spec, blocks, beside=both)
        assert torch.equal(pooled(clip.model.visual, clip.normalise(pictures(clip))), expected)
        assert torch.equal(features(clip), features(whole))


def test_features_alone_have_no_pooled_ones(vit: str) -> None:
    clip = load(vit, 0)
    with pytest.raises(UserError, match="no pooled output"):
        pooled(clip.model.visual, clip.normalise(pictures(clip)))


def test_what_cannot_be_cut(tmp_path: Path, vit: str) -> None:
    with pytest.raises(UserError, match=r"top:3 leaves no block .* use at most 2, or cache\.trunk=off"):
        load(vit).cut(3)
    other = clip_with(tmp_path / "model", **TIMM, timm_model_name="test_nfnet")
    with pytest.raises(UserError, match=r"NormFreeNet cannot be cut .* use cache\.trunk=off"):
        load(other).cut(1)
    assert torch.equal(features(load(other, 0)), features(load(other)))


@pytest.mark.slow
def test_a_digest_tells_what_a_trunk_computes(vit: str, tmp_path: Path) -> None:
    def digest(clip: Clip) -> str:
        assert clip.trunk is not None
        return clip.trunk.digest()

    known = digest(load(vit, 1))
    assert digest(load(vit, 1)) == known
    code = f"from everclip.models import zoo; c = zoo.load({vit!r}); c.cut(1); print(c.trunk.digest())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == known, "the same in another process"
    assert digest(load(vit, 2)) != known
    moved = zoo.load(vit)
    with torch.no_grad():
        moved.model.visual.class_embedding[0] += 1e-6
    moved.cut(1)
    assert digest(moved) != known
    upper = zoo.load(vit)
    with torch.no_grad():
        upper.model.visual.proj.add_(1)
    upper.cut(1)
    assert digest(upper) == known, "what stands above does not count"
    quick = zoo.load(vit)
    for block in quick.model.visual.transformer.resblocks:
        block.mlp.gelu = QuickGELU()
    quick.cut(1)
    assert digest(quick) != known
