"""Reproduce a model's own preprocessing of pictures, as specified by open_clip."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from open_clip.transform import MaybeToTensor, PreprocessCfg, image_transform_v2
from torchvision.transforms import Compose, Normalize


def triple(values: Sequence[float] | float) -> tuple[float, float, float]:
    """Return one value for each channel."""
    red, green, blue = values if isinstance(values, Sequence) else (values,) * 3
    return float(red), float(green), float(blue)


def pil_part(cfg: PreprocessCfg) -> Compose:
    """Return open_clip's evaluation transform without its last two steps, which ``Clip.normalise`` does in batches."""
    whole: Any = image_transform_v2(cfg, is_train=False)
    *steps, to_tensor, normalise = whole.transforms
    assert isinstance(to_tensor, MaybeToTensor), to_tensor
    assert isinstance(normalise, Normalize), normalise
    return Compose(steps)
