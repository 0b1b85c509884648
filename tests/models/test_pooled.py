"""Features before the projection: with the projection they are open_clip's own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from open_clip.modified_resnet import ModifiedResNet
from open_clip.timm_model import TimmModel
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn
from torch.testing import assert_close

from everclip.errors import UserError
from everclip.models.pooled import pooled


def images(side: int) -> Tensor:
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))


def transformer(**options: Any) -> VisionTransformer:
    return VisionTransformer(32, 16, width=24, layers=1, heads=2, mlp_ratio=2, output_dim=8, **options).eval()


@torch.no_grad()
@pytest.mark.parametrize(
    "options", [{}, {"pool_type": "avg"}, {"final_ln_after_pool": True}, {"output_tokens": True}]
)
def test_transformer(options: dict[str, Any]) -> None:
    visual: Any = transformer(**options)
    features, projected = pooled(visual, images(32)), visual(images(32))
    assert features.shape == (2, 24)
    expected = projected[0] if options.get("output_tokens") else projected
    assert_close(features @ visual.proj, expected)
    visual.proj = None
    assert torch.equal(features, pooled(visual, images(32))), "the identity is exact"


@torch.no_grad()
def test_attention_pool_of_many_queries_has_none() -> None:
    visual = transformer(attentional_pool=True, attn_pooler_queries=4, pool_type="none")
    with pytest.raises(
        UserError, match=r"VisionTransformer has no pooled output .* use method\.feature=projected"
    ):
        pooled(visual, images(32))


@torch.no_grad()
@pytest.mark.parametrize("proj", ["linear", "mlp", "none"])
def test_trunk_with_a_head(proj: str) -> None:
    visual: Any = TimmModel("resnet18", embed_dim=8, image_size=32, pool="avg", proj=proj).eval()
    features = pooled(visual, images(32))
    assert features.shape == (2, 512)
    assert_close(visual.head(features), visual(images(32)))


@torch.no_grad()
@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224"])
def test_trunk_whose_classifier_is_the_projection(name: str) -> None:
    visual: Any = TimmModel(name, embed_dim=8, image_size=224, pool="avg", proj="").eval()
    features = pooled(visual, images(224))
    classifier = visual.trunk.get_classifier()
    assert features.shape == (2, classifier.in_features)
    assert_close(classifier(features), visual(images(224)))


@torch.no_grad()
@pytest.mark.parametrize("kind", ["attention pool", "ResNet of CLIP", "another"])
def test_towers_without(kind: str) -> None:
    towers: dict[str, nn.Module] = {
        "attention pool": TimmModel("resnet18", embed_dim=8, image_size=224, pool="rot_attn", proj=""),
        "ResNet of CLIP": ModifiedResNet([1, 1, 1, 1], output_dim=8, heads=2, image_size=32, width=8),
        "another": nn.Flatten(),
    }
    side = 224 if kind == "attention pool" else 32
    with pytest.raises(UserError, match=r"no pooled output .* use method\.feature=projected"):
        pooled(towers[kind].eval(), images(side))
