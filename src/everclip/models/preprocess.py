"""Reproduce a model's own preprocessing of pictures, as specified by open_clip."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
"""Values of OpenAI's models, used for models without their own."""


@dataclass
class Preprocessing:
    """How pictures become a model's input: open_clip's ``PreprocessCfg``.

    Args:
        size: side in pixels, or height and width.
        mode: of a PIL image; open_clip knows only RGB.
        mean, std: for each channel, for images in 0..1.
        interpolation: bicubic, bilinear or random.
        resize_mode: what of a picture fits into the square: its shortest side, its longest, or both (squash).
        fill_color: of the borders beside a picture whose longest side fits.
    """

    size: int | tuple[int, int] = 224
    mode: str = "RGB"
    mean: tuple[float, ...] = MEAN
    std: tuple[float, ...] = STD
    interpolation: str = "bicubic"
    resize_mode: str = "shortest"
    fill_color: int = 0

    def __post_init__(self) -> None:
        assert self.mode == "RGB"


def triple(values: Sequence[float] | float) -> tuple[float, float, float]:
    """Return one value for each channel."""
    red, green, blue = values if isinstance(values, Sequence) else (values,) * 3
    return float(red), float(green), float(blue)


@dataclass(frozen=True)
class Shortest:
    """Resize a picture's shortest side to ``side`` (bicubic) and take the square in the middle, as torchvision does.

    Args:
        side: of the square in pixels.
    """

    side: int

    def __call__(self, image: Image.Image) -> Image.Image:
        """Return the square in RGB."""
        shortest = min(image.size)
        width, height = (
            self.side if side == shortest else int(self.side * side / shortest) for side in image.size
        )
        if image.size != (width, height):
            image = image.resize((width, height), Image.Resampling.BICUBIC)
        left, top = round((width - self.side) / 2), round((height - self.side) / 2)
        return image.crop((left, top, left + self.side, top + self.side)).convert("RGB")


def pil_part(cfg: Preprocessing) -> Callable[[Image.Image], Image.Image]:
    """Return open_clip's evaluation transform without its last two steps, which ``Clip.normalise`` does in batches."""
    if cfg.resize_mode == "shortest" and isinstance(cfg.size, int) and cfg.interpolation == "bicubic":
        return Shortest(cfg.size)  # all that most models do, without torchvision
    from open_clip.transform import MaybeToTensor, PreprocessCfg, image_transform_v2
    from torchvision.transforms import Compose, Normalize

    whole: Any = image_transform_v2(PreprocessCfg(**vars(cfg)), is_train=False)
    *steps, to_tensor, normalise = whole.transforms
    assert isinstance(to_tensor, MaybeToTensor), to_tensor
    assert isinstance(normalise, Normalize), normalise
    return Compose(steps)
