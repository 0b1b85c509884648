"""CMoA: the mixture against loops, beside towers of several kinds, and its two experimental losses."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize
from torch.testing import assert_close

from everclip.data.loader import Phase
from everclip.data.policies import herding_order
from everclip.errors import UserError
from everclip.losses.prototypes import mean_contrast
from everclip.methods.shared.mixture import Mixture, branches, mix, overlap
from everclip.models import zoo
from tests.methods.stages import TIMM, Course, batch, clip_with, same, state
from tests.running import run

VIT: dict[str, Any] = {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8}
TOWERS: dict[str, dict[str, Any]] = {
    "ViT": VIT,
    "ViT, averaged": VIT | {"pool_type": "avg", "final_ln_after_pool": True},
    "ViT, attention pool": VIT | {"attentional_pool": True, "attn_pooler_heads": 2},
    "ViT, scaled branches": VIT | {"ls_init_value": 0.1},
    "timm ViT": TIMM | {"timm_model_name": "test_vit", "image_size": 160},
}


def course(model: str, data: str, *options: str) -> Course:
    return Course.of(f"data={data}", f"model={model}", "method=cmoa", *options)


def awake(method: Any) -> None:
    """Mixtures that change something."""
    random = torch.Generator().manual_seed(0)
    for layer in method.mixtures.layers:
        layer.up.weight.data = torch.randn(layer.up.weight.shape, generator=random)


def test_golden_routing() -> None:
    """methods-more.md 11.2."""
    maps = torch.tensor([[[1.0, 2], [3, 0]]], dtype=torch.float64)
    logits = torch.tensor([[0.2, 0.7]], dtype=torch.float64)
    assert logits.softmax(1)[0].tolist() == pytest.approx([0.3775406688, 0.6224593312], abs=1e-10)
    assert mix(maps, logits)[0].tolist() == pytest.approx([2.2449186624, 0.7550813376], abs=1e-10)


def test_golden_overlap() -> None:
    maps = torch.tensor([[[1.0, 0], [0.6, 0.8], [0, 1]]], dtype=torch.float64)
    assert overlap(maps).item() == pytest.approx(0.4666666667, abs=1e-10)


def naive(mixture: Mixture, tokens: Tensor, side: int) -> Tensor:
    """A mixture's change, one token, expert and pixel at a time."""

    def act(x: Tensor) -> Tensor:
        return x / (1 + (-1.702 * x).exp())

    weight, bias, a = mixture.convolve.weight, mixture.convolve.bias, mixture.experts
    assert bias is not None
    c = weight.shape[1]
    out = torch.zeros_like(tokens)
    for n, image in enumerate(tokens):
        low = act(mixture.down(image))
        ahead, grid = low[: len(low) - side**2], low[len(low) - side**2 :].view(side, side, c)

        def expert(e: int, grid: Tensor, row: int, column: int) -> Tensor:
            total = bias[e * c : (e + 1) * c]
            for dr in (-1, 0, 1):
                for dc in (-1, 0, 1):
                    r, k = row + dr, column + dc
                    if 0 <= r < len(grid) and 0 <= k < len(grid):
                        total = total + weight[e * c : (e + 1) * c, :, dr + 1, dc + 1] @ grid[r, k]
            return total

        hidden = act(mixture.router[0](grid.mean((0, 1))))
        share = mixture.router[2](hidden).softmax(0)
        assert share.sum().item() == pytest.approx(1)
        mixed = [sum(expert(e, token.view(1, 1, c), 0, 0) for e in range(a)) / a for token in ahead]
        for row in range(side):
            mixed += [
                sum(share[e] * expert(e, grid, row, column) for e in range(a)) for column in range(side)
            ]
        out[n] = mixture.up(act(torch.stack([torch.as_tensor(row) for row in mixed])))
    return out


@pytest.mark.parametrize("ahead", [0, 1, 2])
def test_a_mixture_is_the_definition(ahead: int) -> None:
    torch.manual_seed(0)
    mixture = Mixture(6, 4, 3, 0.5).double()
    tokens = torch.randn(2, ahead + 9, 6, dtype=torch.float64)
    assert not mixture(tokens)[0].any(), "the layer up starts at zero"
    torch.nn.init.normal_(mixture.up.weight)
    torch.nn.init.normal_(mixture.up.bias)
    change, maps = mixture(tokens)
    assert maps.shape == (2, 3, 4, 3, 3)
    assert_close(change, naive(mixture, tokens, 3))


def test_dropout_is_drawn_from_the_step_alone(toy: str, photos: str) -> None:
    lesson = course(toy, photos, "method.dropout=0.5")
    task = lesson.enter(0)
    awake(lesson.method)
    on = lesson.sample(task)
    with torch.no_grad():
        one, again = (lesson.method.encode(lesson.clip, on, Phase())["image"] for _ in range(2))
        later = lesson.method.encode(
            lesson.clip, type(on)(*(getattr(on, f) for f in FIELDS), key=(0, 0, 0, 1)), Phase()
        )
        plain = lesson.method.features(lesson.clip, lesson.clip.normalise(on.images))
    assert torch.equal(one, again)
    assert not torch.equal(one, later["image"])
    assert not torch.equal(one, plain)


FIELDS = ("images", "labels", "domains", "ids", "current")


@pytest.mark.parametrize("tower", TOWERS)
def test_towers(tower: str, photos: str, tmp_path: Path) -> None:
    """At step 0 the features are the model's own, bit for bit; then they are not, and the model is as it was."""
    lesson = course(clip_with(tmp_path / "model", **TOWERS[tower]), photos, "method.dropout=0")
    task, clip, method = lesson.enter(0), lesson.clip, lesson.method
    times = clip.image_size // 32
    images = clip.normalise(batch([0, 1]).images.repeat(1, 1, times, times))
    assert len(method.mixtures.layers) == len(branches(clip.model.visual)) >= 4
    with torch.no_grad():
        own = clip.encode_image(images)
        assert torch.equal(method.features(clip, images), own)
        before = state(clip)
        awake(method)
        assert not torch.allclose(method.features(clip, images), own, atol=1e-3)
        assert torch.equal(clip.encode_image(images), own), "no hook stays"
        assert same(state(clip), before)
        scores = method.classifier(clip, task.classes)(images)
        names = [lesson.plan.prompts.names[label] for label in task.classes]
        texts = clip.class_embeddings(names, lesson.plan.prompts.templates)
        assert_close(scores, clip.logit_scale.exp() * method.features(clip, images) @ texts.T)


def test_parameters_of_the_literature() -> None:
    """About 15 thousand an adapter at width 768."""
    assert sum(p.numel() for p in Mixture(768, 8, 3, 0.1).parameters()) == 15_587


@pytest.mark.parametrize("backbone", ["frozen", "trained"])
def test_what_trains(backbone: str, toy: str, photos: str) -> None:
    lesson = course(toy, photos, f"method.backbone={backbone}", "method.head=linear")
    task = lesson.enter(0)
    before = state(lesson.clip.model.visual), state(lesson.method.mixtures)
    (phase,) = lesson.method.phases(task)
    lesson.phase(task, phase, steps=3)
    assert same(before[0], state(lesson.clip.model.visual)) == (backbone == "frozen")
    after = state(lesson.method.mixtures)
    # the layers below the last one start to move once it has left zero; in the last block, patches lead nowhere
    still = [name for name, value in after.items() if torch.equal(value, before[1][name])]
    assert all(name.startswith(("layers.2.router", "layers.3.router")) for name in still)
    mixtures = state(lesson.method.mixtures)
    lesson.leave(task)
    lesson.enter(1)
    assert same(mixtures, state(lesson.method.mixtures)), "they go on from task to task"


def test_losses_are_off_and_start_when_told(toy: str, photos: str) -> None:
    for options, expected in (
        ([], [set(), set(), set()]),
        (["method.separate=0.2"], [set(), {"separate"}, {"separate"}]),
        (["method.separate=0.2", "method.experts=1"], [set(), set(), set()]),
        (["method.contrast=1"], [set(), set(), {"contrast"}]),
    ):
        lesson = course(toy, photos, *options)
        for index in range(3):
            task = lesson.enter(index)
            (phase,) = lesson.method.phases(task)
            terms = lesson.step(lesson.update(phase), lesson.sample(task), phase)
            assert set(terms) == {"cross_entropy"} | expected[index]
            lesson.leave(task)
        assert (len(lesson.method.means) > 0) == ("method.contrast=1" in options)


def test_separation_is_the_mean_over_adapters(toy: str, photos: str) -> None:
    lesson = course(toy, photos, "method.separate=0.5", "method.separate_from=1", "method.dropout=0")
    task = lesson.enter(0)
    on = lesson.sample(task)
    features = lesson.method.encode(lesson.clip, on, Phase())
    with torch.no_grad(), lesson.method.mixtures.beside(lesson.clip.model.visual, 1.0) as maps:
        lesson.clip.encode_image(lesson.clip.normalise(on.images))
    cosines = [
        float(normalize(part[n, a].flatten(), dim=0) @ normalize(part[n, c].flatten(), dim=0))
        for part in maps
        for n in range(len(on))
        for a, c in ((0, 1), (0, 2), (1, 2))
    ]
    assert len(maps) == 4
    terms = lesson.method.loss(features, on, Phase())
    assert terms["separate"].item() == pytest.approx(0.5 * np.mean(cosines), rel=1e-4)


def test_contrast_with_class_means_is_the_definition() -> None:
    random = torch.Generator().manual_seed(1)
    z, means = (
        normalize(torch.randn(count, 4, dtype=torch.float64, generator=random), dim=1) for count in (4, 3)
    )
    target, total = [2, -1, 0, 2], 0.0
    for i, k in enumerate(target):
        if k >= 0:
            row = [float(z[i] @ mean) / 0.2 for mean in means]
            total += math.log(sum(math.exp(value) for value in row)) - row[k]
    assert mean_contrast(z, means, torch.tensor(target), 0.2).item() == pytest.approx(total / 3)
    assert mean_contrast(z, means, torch.tensor([-1] * 4), 0.2).item() == 0


def test_class_means_are_of_herded_images(toy: str, photos: str) -> None:
    lesson = course(toy, photos, "method.contrast=1", "method.herded=2")
    task = lesson.enter(0)
    lesson.seen = []
    on = batch([*task.classes] * 5, seed=3)
    lesson.method.end_task(lesson.clip, task, [on], [])
    with torch.no_grad():
        features = lesson.clip.encode_image(lesson.clip.normalise(on.images))
    for label in task.classes:
        own = features[on.labels == label].double().numpy()
        expected = normalize(torch.from_numpy(own[herding_order(own)[:2]].mean(0)), dim=0)
        held, _ = lesson.method.means.get([label])
        assert_close(held[0].double(), expected, rtol=1e-5, atol=1e-6)


def test_convolutional_towers_are_refused_in_one_line(photos: str, tmp_path: Path) -> None:
    model = clip_with(tmp_path / "model", **TIMM, timm_model_name="test_resnet")
    with pytest.raises(UserError, match=r"blocks of a vision transformer.*use model=ViT"):
        run(tmp_path / "run", f"data={photos}", f"model={model}", "method=cmoa")


def test_a_resumed_model_has_its_adapters(tmp_path: Path, toy: str, photos: str) -> None:
    """The run directory holds a plain model; its adapters are the method's state."""
    run(tmp_path / "run", f"data={photos}", f"model={toy}", "method=cmoa")
    assert same(state(zoo.load(toy)), state(zoo.load(str(tmp_path / "run"))))
