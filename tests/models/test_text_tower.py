"""The text tower on fewer tokens, against the same tower on all of them."""

from __future__ import annotations

import copy
import logging
from typing import Any

import open_clip
import pytest
import torch
from open_clip import CLIP, CustomTextCLIP
from open_clip.transformer import TextTransformer
from torch import Tensor

from everclip.models.clip import Clip
from everclip.models.text import TextTower
from tests.toy import MODEL_CFG

PROMPTS = ["a photo of a cat.", "a photo of a very old and rather tired sea lion, asleep.", "dog"]
LONG = ["word " * 100]
TEXT = {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 4, "layers": 3}
END = 49407


def model_of(kind: type[Any], **text: Any) -> Any:
    torch.manual_seed(0)
    return kind(**{**copy.deepcopy(MODEL_CFG), "text_cfg": {**TEXT, **text}}).eval()


def clip_of(model: Any) -> Clip:
    open_clip.model.set_model_preprocess_cfg(model, {"size": 32, "mean": (0.5,) * 3, "std": (0.5,) * 3})
    return Clip(model, MODEL_CFG, open_clip.SimpleTokenizer(), "small")


def gradients(model: Any, features: Tensor) -> dict[str, Tensor]:
    """Of a loss that weighs every entry of the features differently."""
    weights = torch.linspace(-1, 1, features.numel()).view_as(features)
    names, parameters = zip(*((n, p) for n, p in model.named_parameters() if "visual" not in n), strict=True)
    found = torch.autograd.grad((features * weights).sum(), parameters, allow_unused=True)
    return {name: part for name, part in zip(names, found, strict=True) if part is not None}


def close(one: Tensor, other: Tensor) -> bool:
    """Whether they differ by less than a hundred thousandth of the length; some gradients are 0 but for rounding."""
    return bool((one - other).norm() <= 1e-5 * other.norm() + 1e-6)


TOWERS = {
    "clip": (CLIP, {}),
    "clip, end by id": (CLIP, {"pool_type": "eos", "eos_id": END}),
    "own tower": (CustomTextCLIP, {}),
    "own tower, end by id": (CustomTextCLIP, {"pool_type": "eos", "eos_id": END}),
    "own tower, other blocks": (CustomTextCLIP, {"qk_norm": True, "scale_heads": True}),
    "own tower, linear projection": (CustomTextCLIP, {"proj_bias": True}),
}


@pytest.mark.parametrize("prompts", [PROMPTS, LONG + PROMPTS, ["", ""]], ids=["short", "too long", "empty"])
@pytest.mark.parametrize("name", TOWERS)
def test_fewer_tokens_give_the_same_features_and_gradients(name: str, prompts: list[str]) -> None:
    kind, text = TOWERS[name]
    model = model_of(kind, **text)
    tokens = open_clip.SimpleTokenizer()(prompts)
    tower = TextTower(model, open_clip.SimpleTokenizer())
    fitted = tower.fitted(tokens)
    assert fitted.shape[1] == int((tokens == END).int().argmax(1).max()) + 1
    assert (fitted.shape[1] < 77) == (prompts[:1] != LONG)
    short, whole = tower(fitted), model.encode_text(tokens)
    assert close(short, whole)
    ours, plain = gradients(model, short), gradients(model, whole)
    assert ours.keys() == plain.keys()
    assert len(ours) >= 30
    for key in plain:
        assert close(ours[key], plain[key]), key


@pytest.mark.parametrize(
    "text",
    [
        {"no_causal_mask": True},
        {"embed_cls": True},
        {"pool_type": "last"},
        {"pool_type": "first"},
        {"no_causal_mask": True, "pool_type": "last"},
    ],
    ids=lambda text: " ".join(text),
)
def test_other_towers_run_on_all_tokens(text: dict[str, Any]) -> None:
    model, tokens = model_of(CustomTextCLIP, **text), open_clip.SimpleTokenizer()(PROMPTS)
    tower = TextTower(model, open_clip.SimpleTokenizer())
    assert torch.equal(tower.fitted(tokens), tokens)
    assert torch.equal(tower(tokens), model.encode_text(tokens))


def test_a_tower_that_looks_both_ways_does_need_its_padding() -> None:
    model, tokens = model_of(CustomTextCLIP, no_causal_mask=True), open_clip.SimpleTokenizer()(PROMPTS)
    seen: list[int] = []
    model.text.transformer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[1]))
    clip_of(model).encode_text(PROMPTS)
    assert seen == [77]
    text: TextTransformer = model.text
    with torch.no_grad():
        before = text(tokens)
        text.positional_embedding[20:] *= -10
        assert not close(text(tokens), before)


def test_a_changed_mask_is_not_taken_for_a_causal_one() -> None:
    model = model_of(CLIP)
    model.attn_mask[0, 5] = 0
    tokens = open_clip.SimpleTokenizer()(PROMPTS)
    assert TextTower(model, open_clip.SimpleTokenizer()).fitted(tokens).shape[1] == 77


def test_clip_runs_its_tower_on_the_tokens_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    clip = clip_of(model_of(CLIP))
    seen: list[int] = []
    clip.model.transformer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[1]))
    short = clip.encode_text(PROMPTS)
    assert seen == [16]
    assert clip.tokenize(PROMPTS).shape[1] == 77
    alone = torch.cat([clip.encode_text([prompt]) for prompt in PROMPTS])
    torch.testing.assert_close(short, alone, atol=1e-6, rtol=0)
    monkeypatch.setattr("everclip.models.clip._TEXT_CHUNK", 1)
    torch.testing.assert_close(clip.encode_text(PROMPTS), short, atol=1e-6, rtol=0)


def test_without_a_gradient_prompts_are_encoded_by_length(monkeypatch: pytest.MonkeyPatch) -> None:
    clip = clip_of(model_of(CLIP))
    prompts = [
        "a photo of a very old and rather tired sea lion, asleep.",
        "cat",
        "a photo of a dog.",
        "dog",
        "cat",
    ]
    expected = clip.encode_text(prompts)
    seen: list[tuple[int, ...]] = []
    clip.model.transformer.register_forward_pre_hook(
        lambda _, inputs: seen.append(tuple(inputs[0].shape[:2]))
    )
    monkeypatch.setattr("everclip.models.clip._SORTED_CHUNK", 2)
    with torch.no_grad():
        found = clip.encode_text(prompts)
    assert seen == [(2, 3), (2, 16)]
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
    assert torch.equal(found[1], found[4])


def test_a_copy_of_clip_encodes_with_its_own_tower() -> None:
    clip = clip_of(model_of(CLIP))
    twin = copy.deepcopy(clip)
    before = clip.encode_text(PROMPTS)
    with torch.no_grad():
        twin.model.positional_embedding.neg_()
    assert torch.equal(clip.encode_text(PROMPTS), before)
    assert not close(twin.encode_text(PROMPTS), before)
    assert not [key for key in clip.state_dict() if not key.startswith("model.")]


@pytest.mark.slow
def test_the_text_tower_of_vit_b_32() -> None:
    logging.disable(logging.ERROR)  # open_clip warns that nothing is pretrained
    try:
        torch.manual_seed(0)
        model: Any = open_clip.create_model("ViT-B-32").eval()
    finally:
        logging.disable(logging.NOTSET)
    tower, tokens = TextTower(model, open_clip.SimpleTokenizer()), open_clip.SimpleTokenizer()(PROMPTS)
    short, whole = tower(tower.fitted(tokens)), model.encode_text(tokens)
    assert close(short, whole)
    ours, plain = gradients(model, short), gradients(model, whole)
    assert all(close(ours[key], plain[key]) for key in plain)
