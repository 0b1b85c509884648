"""Gradients of towers of many makes whose weights processes share out, beside those of whole ones."""

from __future__ import annotations

import tempfile
from typing import Any

import open_clip
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers import BertConfig, MT5Config

from everclip.distributed import collectives
from everclip.models.clip import Clip
from everclip.models.fsdp import Shards, whole_of
from tests.toy import MODEL_CFG

SIDE = 64
VISION: dict[str, dict[str, Any]] = {
    "vit": {"width": 32, "head_width": 16, "patch_size": 16, "layers": 2},
    "resnet": {"layers": [1, 1, 1, 1], "width": 16, "patch_size": None},
    **{
        f"timm {name}": {"timm_model_name": name, "timm_pool": pool, "timm_proj": "linear"}
        for name, pool in (
            ("test_vit", ""),
            ("test_resnet", "avg"),
            ("test_convnext", "avg"),
            ("test_efficientnet", "avg"),
        )
    },
}
TEXT = {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
HUGGING_FACE: dict[str, Any] = {
    "bert": BertConfig(
        vocab_size=200, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64
    ),
    "mt5": MT5Config(vocab_size=200, d_model=32, d_kv=16, d_ff=64, num_layers=2, num_heads=2),
}


def words(texts: list[str]) -> Tensor:
    """Ids for the small Hugging Face towers: one a letter."""
    rows = [[5 + ord(letter) % 90 for letter in text[:15]] for text in texts]
    return torch.tensor([row + [0] * (16 - len(row)) for row in rows])


def made(vision: dict[str, Any], text: dict[str, Any], tokenizer: Any) -> Clip:
    torch.manual_seed(0)
    kind: Any = open_clip.CustomTextCLIP
    model = kind(embed_dim=16, vision_cfg=vision | {"image_size": SIDE}, text_cfg=text).eval()
    open_clip.model.set_model_preprocess_cfg(model, {"size": SIDE, "mean": (0.5,) * 3, "std": (0.5,) * 3})
    return Clip(model, MODEL_CFG, tokenizer, "small").requires_grad_()


def clips() -> dict[str, Clip]:
    """Small models by their make."""
    plain = open_clip.SimpleTokenizer(context_length=16)
    found = {name: made(vision, TEXT, plain) for name, vision in VISION.items()}
    for name, config in HUGGING_FACE.items():
        with tempfile.TemporaryDirectory() as folder:
            config.save_pretrained(folder)
            text = {"hf_model_name": folder, "hf_tokenizer_name": folder, "hf_model_pretrained": False}
            text |= {"hf_proj_type": "mlp", "hf_pooler_type": "mean_pooler"}
            found[name] = made(VISION["vit"], TEXT | text, words)
    return found


def loss(clip: Clip) -> Tensor:
    """Of two images and two prompts, every feature with a weight of its own."""
    images = torch.randint(0, 255, (2, 3, SIDE, SIDE), generator=torch.Generator().manual_seed(0))
    features = clip.encode_image(images.to(torch.uint8))
    texts = clip.encode_text(["a dog", "a photo of a cat"])
    return sum((part * torch.linspace(-1, 2, part.numel()).view_as(part)).sum() for part in (features, texts))  # pyright: ignore[reportReturnType]


def close(one: Tensor | None, other: Tensor | None) -> bool:
    """Whether both are missing, or they are the same but for rounding."""
    if one is None or other is None:
        return one is other
    return bool((one - other).norm() <= 1e-4 * other.norm() + 1e-5)


def differences() -> dict[str, list[str]]:
    """Of each make the parameters whose gradients are others, and none where less than half is shared out."""
    found: dict[str, list[str]] = {}
    for make, clip in clips().items():
        names, weights = zip(*clip.image_parameters(), *clip.text_parameters(), strict=True)
        whole = torch.autograd.grad(loss(clip), weights, allow_unused=True)
        shards = Shards(clip, weights)
        loss(clip).backward()
        shards.exchange()
        wrong, shared = [], 0
        for name, weight, gradient, plain in zip(
            names, shards.parameters, (p.grad for p in shards.parameters), whole, strict=True
        ):
            shared += weight.numel() * isinstance(weight, DTensor)
            if not close(None if gradient is None else whole_of(gradient), plain):
                wrong.append(name)
        if 2 * shared < sum(weight.numel() for weight in weights):
            wrong.append("too little is shared out")
        found[make] = sorted({name for names in collectives.told(wrong) for name in names})
        shards.close()
    return found
