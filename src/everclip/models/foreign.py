"""Use open_clip and timm without importing them before they are needed: importing takes two seconds of processor time
(benchmarks/start.md), and a run with ``lite`` needs neither.

The packages named here are imported when one of their attributes is first used. The classes serve ``isinstance`` alone:
an object can only be an instance of a class whose module is imported already, so the test needs no import. The towers
of ``lite`` (models/lite_towers) count as instances of the classes that they replace.
"""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import open_clip as open_clip
    import timm as timm
    from open_clip.hf_model import HFTextEncoder as HFTextEncoder
    from open_clip.model import CLIP as CLIP
    from open_clip.model import CustomTextCLIP as CustomTextCLIP
    from open_clip.modified_resnet import ModifiedResNet as ModifiedResNet
    from open_clip.timm_model import TimmModel as TimmModel
    from open_clip.tokenizer import HFTokenizer as HFTokenizer
    from open_clip.transformer import Attention as Attention
    from open_clip.transformer import CustomResidualAttentionBlock as CustomResidualAttentionBlock
    from open_clip.transformer import ResidualAttentionBlock as ResidualAttentionBlock
    from open_clip.transformer import TextTransformer as TextTransformer
    from open_clip.transformer import VisionTransformer as VisionTransformer
    from timm.layers.conv2d_same import Conv2dSame as Conv2dSame
    from timm.models.convnext import ConvNeXt as ConvNeXt
    from timm.models.efficientnet import EfficientNet as EfficientNet
    from timm.models.resnet import ResNet as ResNet
    from timm.models.vision_transformer import Block as Block
    from timm.models.vision_transformer import VisionTransformer as TimmTransformer
else:

    class _Package:
        """A package, imported when it is first used."""

        def __init__(self, name: str) -> None:
            self._name = name

        def __getattr__(self, name: str) -> Any:
            return getattr(importlib.import_module(self._name), name)

    open_clip, timm = _Package("open_clip"), _Package("timm")

    class _Known(type):
        """The metaclass of a class that stands for others, given by their names."""

        names: tuple[str, ...]

        def __instancecheck__(cls, value: object) -> bool:
            for name in cls.names:
                module, _, kind = name.rpartition(".")
                if module in sys.modules and isinstance(value, getattr(sys.modules[module], kind)):
                    return True
            return False

    def _known(*names: str) -> type:
        return _Known(names[0].rpartition(".")[2], (), {"names": names})

    _OWN = "everclip.models.lite_towers"
    HFTextEncoder = _known("open_clip.hf_model.HFTextEncoder", f"{_OWN}.text.TextTower")
    CLIP = _known("open_clip.model.CLIP")
    CustomTextCLIP = _known("open_clip.model.CustomTextCLIP", f"{_OWN}.model.Lite")
    ModifiedResNet = _known("open_clip.modified_resnet.ModifiedResNet")
    TimmModel = _known("open_clip.timm_model.TimmModel", f"{_OWN}.image.ImageTower")
    HFTokenizer = _known("open_clip.tokenizer.HFTokenizer", f"{_OWN}.tokens.Tokenizer")
    Attention = _known("open_clip.transformer.Attention")
    CustomResidualAttentionBlock = _known("open_clip.transformer.CustomResidualAttentionBlock")
    ResidualAttentionBlock = _known("open_clip.transformer.ResidualAttentionBlock")
    TextTransformer = _known("open_clip.transformer.TextTransformer")
    VisionTransformer = _known("open_clip.transformer.VisionTransformer")
    Conv2dSame = _known("timm.layers.conv2d_same.Conv2dSame", "everclip.models.same.Conv2dSame")
    ConvNeXt = _known("timm.models.convnext.ConvNeXt")
    EfficientNet = _known("timm.models.efficientnet.EfficientNet", f"{_OWN}.image.EfficientNetLite0")
    ResNet = _known("timm.models.resnet.ResNet")
    Block = _known("timm.models.vision_transformer.Block")
    TimmTransformer = _known("timm.models.vision_transformer.VisionTransformer")


def name_of(kind: type) -> str:
    """Return a class's full name."""
    return f"{kind.__module__}.{kind.__qualname__}"
