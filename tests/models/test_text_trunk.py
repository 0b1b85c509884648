"""The kept lower blocks of a text tower: the same features and gradients, and no row that outlives its weights."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from open_clip import CLIP
from safetensors.torch import save_file
from torch import Tensor

from everclip.errors import UserError
from everclip.models import zoo
from everclip.models.clip import Clip
from everclip.models.text_trunk import TextTrunk
from everclip.models.tunings import tuning_of
from tests.toy import MODEL_CFG, toy_clip

PROMPTS = ["a photo of a cat.", "x", "a photo of a very large grey elephant in the zoo."]


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model with four blocks of text."""
    folder = tmp_path_factory.mktemp("text")
    text = {**MODEL_CFG["text_cfg"], "layers": 4}
    config: dict[str, Any] = {
        **MODEL_CFG,
        "vision_cfg": {**MODEL_CFG["vision_cfg"], "layers": 4},
        "text_cfg": text,
    }
    preprocess = {"mean": [0.5] * 3, "std": [0.3] * 3}
    (folder / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": config, "preprocess_cfg": preprocess})
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        save_file(CLIP(**config).state_dict(), folder / "open_clip_model.safetensors")
    return f"local-dir:{folder}"


def tuned(spec: str, kept: bool, count: int = 2) -> Clip:
    """A model whose last blocks train."""
    clip = zoo.load(spec).requires_grad_(False)
    tuning_of(f"top:{count}").begin(clip)
    for _, parameter in clip.text_parameters():
        parameter.requires_grad_(True)
    if kept:
        clip.keep_text(tuning_of(f"top:{count}").held(clip), count)
        assert clip.text_trunk is not None
    return clip


def gradients(clip: Clip, features: Tensor) -> Tensor:
    weights = torch.linspace(-1, 1, features.numel()).view_as(features)
    leaves = [parameter for _, parameter in clip.text_parameters()]
    return torch.cat([g.flatten() for g in torch.autograd.grad((features * weights).sum(), leaves)])


def counted(clip: Clip) -> list[int]:
    """Calls of the lowest block, from now on."""
    calls: list[int] = []
    lowest = clip.model.transformer.resblocks[0]
    forward = lowest.forward

    def counting(inputs: Tensor, *others: Any, **options: Any) -> Tensor:
        calls.append(len(inputs))
        return forward(inputs, *others, **options)

    lowest.forward = counting  # not a hook, by which a method would change the tower
    return calls


def test_features_and_gradients_are_those_of_the_whole_tower(spec: str) -> None:
    whole, kept = tuned(spec, False), tuned(spec, True)
    for _ in range(2):  # computed, then kept
        features = [clip.encode_text(PROMPTS) for clip in (whole, kept)]
        torch.testing.assert_close(*features, atol=1e-6, rtol=0)
        one, other = gradients(whole, features[0]), gradients(kept, features[1])
        assert (one - other).norm() / one.norm() < 1e-5


def test_a_prompt_goes_through_the_lower_blocks_once(spec: str) -> None:
    clip = tuned(spec, True)
    calls = counted(clip)
    clip.encode_text(PROMPTS)
    clip.encode_text([*PROMPTS, "a dog"])
    assert calls == [1, 1, 1, 1]
    with torch.no_grad():
        clip.encode_text(["not for training"])
    assert calls[4:] == [1]
    clip.encode_text(["not for training"])
    assert calls[5:] == [1], "an evaluation keeps nothing"


def test_a_row_does_not_depend_on_what_it_was_asked_for_with(spec: str) -> None:
    together, apart = tuned(spec, True), tuned(spec, True)
    together.encode_text(PROMPTS)
    for prompt in reversed(PROMPTS):
        apart.encode_text([prompt])
    assert torch.equal(together.encode_text(PROMPTS), apart.encode_text(PROMPTS))


def test_changed_weights_let_the_rows_go(spec: str) -> None:
    whole, kept = tuned(spec, False), tuned(spec, True)
    kept.encode_text(PROMPTS)
    copied = copy.deepcopy(kept)
    for clip in (whole, kept, copied):
        state = {name: value * 1.01 for name, value in clip.model.state_dict().items()}
        clip.model.load_state_dict(state)
    for clip in (kept, copied):
        torch.testing.assert_close(clip.encode_text(PROMPTS), whole.encode_text(PROMPTS), atol=1e-6, rtol=0)
    with torch.no_grad():
        copied.model.text_projection.zero_()
    assert kept.encode_text(PROMPTS).norm() > 1, "a copy is on its own"


def test_names_and_modules_are_as_before(spec: str) -> None:
    clip, names = tuned(spec, True), list(zoo.load(spec).model.state_dict())
    clip.encode_text(PROMPTS)
    assert list(clip.model.state_dict()) == names
    assert len(clip.model.transformer.resblocks) == 4


def test_little_memory_changes_nothing(spec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = tuned(spec, True).encode_text(PROMPTS)
    monkeypatch.setattr("everclip.models.text_trunk.MOST_BYTES", 1500)
    clip = tuned(spec, True)
    calls = counted(clip)
    for _ in range(2):
        assert torch.equal(clip.encode_text(PROMPTS), expected)
    assert len(calls) > len(PROMPTS)


def test_towers_that_are_left_whole(tmp_path: Path, spec: str) -> None:
    toy = f"local-dir:{toy_clip(tmp_path)}"
    clip = zoo.load(toy)
    clip.keep_text(tuning_of("top:1").held(clip), 1)
    assert clip.text_trunk is None, "there is one block of text, and it trains"
    with pytest.raises(UserError, match="a tower has 2 blocks"):
        tuning_of("top:3").held(clip)

    clip = tuned(spec, True)
    other = torch.nn.ModuleList(reversed(list(clip.model.transformer.resblocks)))
    called: list[int] = []

    def odd(prompts: list[str]) -> Tensor:
        """A tower that takes its blocks from elsewhere."""
        called.append(len(prompts))
        return other[0](torch.ones(len(prompts), 3, 32))[:, 0]

    assert TextTrunk.of(clip.model, tuning_of("top:2").held(clip), 2, odd) is None
    assert called


def frozen(spec: str, kept: bool) -> Clip:
    """A model whose text tower does not train."""
    clip = zoo.load(spec).requires_grad_(False)
    if kept:
        clip.keep_features()
    return clip


def test_a_frozen_tower_runs_once_for_each_prompt(spec: str) -> None:
    whole, kept = frozen(spec, False), frozen(spec, True)
    calls = counted(kept)
    for _ in range(3):
        features = kept.encode_text(PROMPTS + PROMPTS[:1])
        torch.testing.assert_close(features, whole.encode_text(PROMPTS + PROMPTS[:1]), atol=1e-6, rtol=0)
    assert calls == [1, 1, 1]
    with torch.no_grad():  # an evaluation keeps nothing, and is not slowed down by prompts one at a time
        kept.encode_text(PROMPTS)
    assert calls == [1, 1, 1, 3]


def test_a_tower_that_a_method_changes_by_hooks_is_not_kept(spec: str) -> None:
    clip, shift = frozen(spec, True), torch.nn.Parameter(torch.zeros(1))
    clip.model.transformer.resblocks[0].register_forward_hook(lambda _, __, found: found + shift)
    assert clip.encode_text(PROMPTS).requires_grad
    before = clip.encode_text(PROMPTS)
    with torch.no_grad():
        shift += torch.linspace(0, 1, 32)[:1] + 0.5
    assert not torch.allclose(before, clip.encode_text(PROMPTS))


def test_kept_features_go_with_the_weights(spec: str) -> None:
    clip = frozen(spec, True)
    before = clip.encode_text(PROMPTS)
    with torch.no_grad():
        clip.model.text_projection.mul_(torch.linspace(0.5, 1.5, clip.model.text_projection.shape[1]))
    after = clip.encode_text(PROMPTS)
    assert not torch.allclose(before, after)
    torch.testing.assert_close(after, copy.deepcopy(clip).encode_text(PROMPTS), atol=1e-6, rtol=0)


def test_a_tower_that_trains_is_not_kept(spec: str) -> None:
    clip = frozen(spec, True)
    clip.encode_text(PROMPTS)
    clip.model.ln_final.weight.requires_grad_(True)
    assert clip.encode_text(PROMPTS).requires_grad
