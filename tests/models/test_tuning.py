"""What of a model trains, and that low-rank updates change nothing until they do."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from open_clip import CLIP
from torch import nn

from everclip.cli.app import main
from everclip.errors import UserError
from everclip.models import zoo
from everclip.models.attention import CpuAttention
from everclip.models.clip import Clip
from everclip.models.low_rank import LowRank, low_rank
from everclip.models.tunings import tuning_of
from everclip.models.tunings.top import below
from tests.marks import slow_after
from tests.running import run, timeless
from tests.toy import toy_clip


@pytest.fixture
def clip(tmp_path: Path) -> Clip:
    return zoo.load(f"local-dir:{toy_clip(tmp_path)}")


def trained(clip: Clip) -> set[str]:
    return {name for part in (clip.image_parameters(), clip.text_parameters()) for name, _ in part}


def images(clip: Clip) -> torch.Tensor:
    random = torch.Generator().manual_seed(0)
    return clip.normalise(torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8, generator=random))


def test_towers(clip: Clip) -> None:
    every = trained(clip)
    tuning_of("image").begin(clip)
    assert trained(clip) == {name for name in every if name.startswith("visual.")}
    tuning_of("text").begin(clip)
    assert trained(clip) == {name for name in every if not name.startswith("visual.")}
    assert id(clip.logit_scale) not in clip.held()
    tuning_of("head").begin(clip)
    assert not trained(clip)
    assert id(clip.logit_scale) in clip.held()
    tuning_of("full").begin(clip)
    assert trained(clip) == every


def test_top_blocks_of_a_transformer(clip: Clip) -> None:
    every = trained(clip)
    # the toy's text tower has one block, so only its embeddings are below
    tuning_of("top:1").begin(clip)
    assert every - trained(clip) == {
        *(f"visual.{name}" for name in ("class_embedding", "positional_embedding", "conv1.weight")),
        *("visual.ln_pre.weight", "visual.ln_pre.bias", "positional_embedding", "token_embedding.weight"),
        *(name for name in every if name.startswith("visual.transformer.resblocks.0.")),
    }
    assert {"visual.proj", "visual.ln_post.weight", "text_projection", "ln_final.weight"} <= trained(clip)
    with pytest.raises(UserError, match="tune=top:3 but a tower has 2 blocks: use fewer"):
        tuning_of("top:3").begin(clip)


def test_top_stages_of_convolutional_towers() -> None:
    vision = {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "patch_size": None, "head_width": 8}
    text = {"context_length": 77, "vocab_size": 64, "width": 16, "heads": 2, "layers": 2}
    names = [name for name, _ in CLIP(16, vision, text).named_parameters()]  # pyright: ignore[reportArgumentType]
    held = below(names, 1)
    tops = {name for name in names if name.startswith("visual.")} - held
    assert {name.split(".")[1] for name in tops} == {"layer4", "attnpool"}
    lite = [
        *(
            "visual.trunk.conv_stem.weight",
            "visual.trunk.bn1.weight",
            "visual.trunk.blocks.5.0.conv_dw.weight",
        ),
        *("visual.trunk.blocks.6.0.bn1.weight", "visual.trunk.conv_head.weight", "visual.trunk.bn2.weight"),
        *("text.transformer.embeddings.LayerNorm.bias", "text.transformer.encoder.layer.5.output.dense.bias"),
        *("text.transformer.encoder.layer.4.output.dense.bias", "text.proj.0.weight", "logit_scale"),
    ]
    assert below(lite, 1) == {*lite[:3], lite[6], lite[8]}
    with pytest.raises(UserError, match="the blocks of the image tower are not known"):
        below(["visual.conv.weight"], 1)


def test_low_rank_golden() -> None:
    """methods-more.md 10.5."""
    update = LowRank(torch.zeros(2, 2), 1)
    with torch.no_grad():
        update.b.copy_(torch.tensor([[1.0], [2.0]]))
        update.a.copy_(torch.tensor([[0.5, -1.0]]))
    assert update(torch.zeros(2, 2)).tolist() == [[1, -2], [2, -4]]


def test_low_rank_starts_at_the_model_and_folds_into_it(clip: Clip) -> None:
    plain, before = copy.deepcopy(clip), clip.encode_image(images(clip))
    text = clip.encode_text(["a cat"])
    tuning_of("lora:2").begin(clip)
    assert torch.equal(clip.encode_image(images(clip)), before)
    assert torch.equal(clip.encode_text(["a cat"]), text)
    assert all(name.endswith((".0.a", ".0.b")) for name in trained(clip))
    kinds = {name.split(".parametrizations")[0].rsplit(".", 1)[-1] for name in trained(clip)}
    assert kinds == {"attn", "out_proj", "c_fc", "c_proj"}
    with torch.no_grad():
        for _, parameter in [*clip.image_parameters(), *clip.text_parameters()]:
            parameter.add_(0.05)
    open_, teacher = clip.encode_image(images(clip)), clip.copy_tower()
    assert not torch.equal(open_, before)
    tuning_of("lora:2").end(clip)
    torch.testing.assert_close(clip.encode_image(images(clip)), open_, atol=1e-6, rtol=0)
    torch.testing.assert_close(clip.encode_image(images(clip), teacher), open_, atol=1e-6, rtol=0)
    assert clip.model.state_dict().keys() == plain.model.state_dict().keys()


def test_pointwise_convolutions_have_low_rank_updates() -> None:
    layer = nn.Conv2d(4, 6, 1)
    update = LowRank(layer.weight, 2)
    assert update(layer.weight).shape == layer.weight.shape
    assert torch.equal(update(layer.weight), layer.weight)


@pytest.mark.parametrize("tune", slow_after(2, ["image", "text", "top:1", "lora:2"]))
@pytest.mark.parametrize("method", ["clip", "gdro", "finetune"])
def test_a_run_moves_what_trains_and_nothing_else(
    tmp_path: Path, toy: str, photos: str, tune: str, method: str
) -> None:
    words = [f"data={photos}", f"model={toy}", f"method={method}", f"tune={tune}", "train.lr=1e-3"]
    words += ["train.lr_text=1e-3", "memory.budget=0"]
    whole = run(tmp_path / "run", *words)
    before, after = zoo.load(toy), zoo.load(str(tmp_path / "run"))
    tuning_of(tune).begin(before)
    expected = trained(before) if tune != "lora:2" else {n.split(".param")[0] for n in trained(before)}
    old, new = zoo.load(toy).model.state_dict(), after.model.state_dict()
    moved = {name for name in old if not torch.equal(old[name], new[name])} - {"logit_scale"}
    if tune == "lora:2":
        assert {name.rsplit(".", 1)[0] for name in moved} <= expected
        assert moved
        assert torch.equal(old["logit_scale"], new["logit_scale"])
    else:
        assert moved <= expected
        assert len(moved) > len(expected) / 2
    (tmp_path / "run" / "results.json").unlink()
    for name in ("stage-002",):
        for file in (tmp_path / "run" / "checkpoints" / name).iterdir():
            file.unlink()
        (tmp_path / "run" / "checkpoints" / name).rmdir()
    assert timeless(run(tmp_path / "run", *words)) == timeless(whole)


def test_only_a_head(tmp_path: Path, toy: str, photos: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = [f"data={photos}", f"model={toy}", "tune=head", "memory.budget=0"]
    run(tmp_path / "head", *words, "method=finetune", "method.head=linear")
    old, new = (zoo.load(spec).model.state_dict() for spec in (toy, str(tmp_path / "head")))
    assert all(torch.equal(old[name], new[name]) for name in old)
    assert main(["train", *words, "scenario.tasks=2", "method=clip", f"out={tmp_path / 'none'}"]) == 2
    assert "nothing to train: tune" in capsys.readouterr().err


class _Layers(nn.Module):
    """Every kind of layer that gets an update."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 1, stride=2)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.linear = nn.Linear(8, 5)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        tokens = self.conv(images).flatten(2).transpose(1, 2)
        return self.linear(self.attention(tokens, tokens, tokens, need_weights=False)[0])


@pytest.mark.parametrize("mode", [nullcontext, CpuAttention])
def test_parts_give_what_the_sum_gives(mode: Callable[[], AbstractContextManager[Any]]) -> None:
    torch.manual_seed(0)
    layers, images = _Layers(), torch.randn(4, 3, 6, 6)
    plain = copy.deepcopy(layers)
    weights = {
        "conv": "weight",
        "attention": "in_proj_weight",
        "attention.out_proj": "weight",
        "linear": "weight",
    }
    for name, weight in weights.items():
        low_rank(layers.get_submodule(name), weight, 2)
    parts = [parameter for name, parameter in layers.named_parameters() if name.endswith((".0.a", ".0.b"))]
    for part in parts:
        nn.init.normal_(part)
    whole: dict[str, torch.Tensor] = {}
    for name, weight in weights.items():
        parametrized: Any = layers.get_submodule(name)
        base, update = (
            parametrized.parametrizations[weight].original,
            parametrized.parametrizations[weight][0],
        )
        assert getattr(parametrized, weight).shape == base.shape
        whole[f"{name}.{weight}"] = base.detach() + 2 * (update.b @ update.a).view_as(base)
    with mode():
        one, other = layers(images), torch.func.functional_call(plain, whole, (images,))
    torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)
    expected = torch.autograd.grad(other.square().sum(), parts)
    for found, wanted in zip(torch.autograd.grad(one.square().sum(), parts), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3 * wanted.abs().max().item())


def test_a_scale_that_does_not_train_keeps_its_value(tmp_path: Path, toy: str, photos: str) -> None:
    """SigLIP's is above the 100 that training holds it to."""
    clip = zoo.load(toy)
    with torch.no_grad():
        clip.logit_scale.fill_(4.8)
    clip.save(tmp_path / "model")
    words = [f"data={photos}", f"model=local-dir:{tmp_path / 'model'}", "method=gcl", "memory.budget=0"]
    for tune, expected in (("lora:2", 4.8), ("full", math.log(100))):
        run(tmp_path / tune, *words, f"tune={tune}")
        assert zoo.load(str(tmp_path / tune)).logit_scale.item() == pytest.approx(expected, abs=1e-3)
