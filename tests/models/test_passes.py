"""How towers run in training: in pieces, twice, with fewer patches, compiled; against the plain way."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from everclip.config.models import Train
from everclip.data.loader import Batch, Phase
from everclip.data.scenario import Task
from everclip.errors import UserError
from everclip.models import passes, pieces, zoo
from everclip.models.clip import Clip
from everclip.models.passes import Passes, blocks, compiled
from everclip.models.pieces import in_pieces
from tests.methods.stages import TIMM, Course, batch, clip_with
from tests.methods.test_common import TRAINED
from tests.running import run

LOOKS_INSIDE = {"cmoa", "memo", "mg_clip", "moe_adapters"}
"""Methods with hooks in the image tower."""
RESNET = {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "head_width": 16}
PROMPTS = ["a cat", "a photo of a dog.", "a small red fox"]


def gradient(course: Course, on: Batch, phase: Phase, **train: Any) -> tuple[dict[str, float], Tensor]:
    """Terms of the loss, and its gradient in everything that trains, as one vector."""
    method, clip, learner = course.method, course.clip, course.learner
    trained = [p for p in [*clip.parameters(), *method.parameters()] if p.requires_grad]
    with Passes(clip, Train(**train)).open(on) if train else nullcontext():
        terms = learner.loss(learner.encode(clip, on, phase), on, phase)
        total = torch.stack([*terms.values()]).sum()
        learns = total.requires_grad  # else images are only read
        found = torch.autograd.grad(total, trained, allow_unused=True) if learns else [None] * len(trained)
    flat = [(torch.zeros_like(p) if g is None else g).flatten() for p, g in zip(trained, found, strict=True)]
    return {name: term.item() for name, term in terms.items()}, torch.cat(flat)


def numbers(state: Any) -> list[Tensor]:
    """All tensors in a state, in order."""
    if isinstance(state, Tensor):
        return [state.float()]
    parts = state.values() if isinstance(state, dict) else state if isinstance(state, list | tuple) else ()
    return [tensor for part in parts for tensor in numbers(part)]


def close(one: Tensor, other: Tensor) -> bool:
    return bool((one - other).norm() <= 1e-5 * other.norm())


def sample(course: Course, task: Task, phase: Phase) -> Batch:
    """What the loader would give: of some phases new images alone, of some two views."""
    on = course.sample(task)
    if phase.data == "new" or not course.method.capabilities.uses_memory:
        columns = ("images", "labels", "domains", "ids", "current")
        on = replace(on, **{name: getattr(on, name)[on.current] for name in columns})
    return replace(on, second=on.images.flip(3))


VARIANTS = [
    "clip train.captions=random",
    "gcl train.captions=random method.temperature=learnable",
    "gdro tune=lora:2 method.dro=sagawa",
    "zscl method.reference_images=memory",
    "lwf method.reference=random",
    "cassle method.objective=sogclr",
    "finetune tune=top:1",
]


@pytest.mark.parametrize("name", [*TRAINED, *VARIANTS])
def test_pieces_give_the_loss_gradient_and_state_of_the_whole_batch(name: str, toy: str, photos: str) -> None:
    """In the second task, where teachers, exemplars and estimators are there; three pieces of unlike sizes."""
    name, *options = name.split()
    course = Course.of(f"data={photos}", f"model={toy}", f"method={name}", "scenario.tasks=2", *options)
    if len(course.plan.tasks) > 1:
        first = course.enter(0)
        for phase in course.learner.phases(first):
            course.step(course.update(phase), sample(course, first, phase), phase)
        course.leave(first)
    task = course.enter(len(course.plan.tasks) - 1)
    for phase in course.learner.phases(task):
        update, on, method = course.update(phase), sample(course, task, phase), course.method
        before = copy.deepcopy(method.state_dict())
        if name in LOOKS_INSIDE:
            with pytest.raises(UserError, match=r"accumulate=3 .* the method looks inside the tower"):
                gradient(course, on, phase, accumulate=3)
            continue
        terms, whole = gradient(course, on, phase)
        after = copy.deepcopy(method.state_dict())
        method.load_state_dict(before)
        again, pieces = gradient(course, on, phase, accumulate=3)
        assert again == pytest.approx(terms, rel=1e-5, abs=1e-7)
        assert close(pieces, whole)
        for one, other in zip(numbers(method.state_dict()), numbers(after), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
        assert course.clip._way.pieces == 1
        course.step(update, on, phase)


def test_a_backward_pass_holds_one_piece_at_a_time() -> None:
    rows: list[tuple[int, bool]] = []
    layer = nn.Linear(3, 2)

    def encode(images: Tensor) -> Tensor:
        rows.append((len(images), torch.is_grad_enabled()))
        return layer(images)

    inputs = torch.arange(21.0).view(7, 3)
    features = in_pieces(encode, inputs, 3)
    assert [count for count, _ in rows] == [3, 3, 1]
    assert torch.allclose(features, layer(inputs))
    features.square().sum().backward()
    assert [count for count, _ in rows[3:]] == [1, 3, 3]
    rows.clear()
    with torch.no_grad():
        in_pieces(encode, inputs, 3)
    in_pieces(encode, inputs[:1], 3)
    assert [count for count, _ in rows] == [7, 1]


def test_pieces_save_memory(toy: str) -> None:
    clip = zoo.load(toy)
    images = clip.normalise(batch([0] * 12).images)

    def kept(pieces: int) -> int:
        """Bytes that autograd keeps for the backward pass, weights aside."""
        sizes = {}
        weights = {p.data_ptr() for p in clip.parameters()}

        def note(tensor: Tensor) -> Tensor:
            if tensor.data_ptr() not in weights:
                storage = tensor.untyped_storage()
                sizes[storage.data_ptr()] = storage.nbytes()
            return tensor

        watched = torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor)
        with watched, clip.running(pieces=pieces):
            features = clip.encode_image(images)
        del features
        return sum(sizes.values())

    assert kept(4) < kept(1) / 5


VISION = {
    "vit": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
    "timm vit": TIMM | {"timm_model_name": "test_vit", "image_size": 160},
    "resnet": RESNET,
    "efficientnet": TIMM | {"timm_model_name": "test_efficientnet"},
}


def clip_of(folder: Path, name: str) -> Clip:
    return zoo.load(clip_with(folder / name, **VISION[name]))


def pictures(clip: Clip, count: int = 3, step: int = 0) -> Batch:
    """A batch of random pictures of the model's size."""
    side, on = clip.image_size, batch([0] * count)
    images = torch.randint(0, 255, (count, 3, side, side), dtype=torch.uint8)
    return replace(on, images=images, key=(0, 0, 0, step))


def pair(clip: Clip, train: Train | None = None) -> tuple[Tensor, Tensor]:
    """Features of three pictures and prompts, and their gradient in all weights."""
    torch.manual_seed(0)
    on = pictures(clip)
    trained = [p for p in clip.model.parameters() if p.requires_grad]
    with Passes(clip, train).open(on) if train else nullcontext():
        features = torch.cat([clip.encode_image(on.images), clip.encode_text(PROMPTS)])
        weights = torch.linspace(-1, 1, features.numel()).view_as(features)
        found = torch.autograd.grad((features * weights).sum(), trained, allow_unused=True)
    return features.detach(), torch.cat([g.flatten() for g in found if g is not None])


@pytest.mark.parametrize(("name", "count"), [("vit", 2), ("timm vit", 6), ("resnet", 4), ("efficientnet", 5)])
def test_checkpointed_blocks_run_twice_and_give_the_same(name: str, count: int, tmp_path: Path) -> None:
    clip = clip_of(tmp_path, name)
    found = blocks(clip.model)
    assert len(found) == count + 1, [type(block) for block in found]  # one of the text tower
    plain = pair(clip)
    calls = dict.fromkeys(map(id, found), 0)

    def counting(block: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **kwargs: Any) -> Any:
            calls[id(block)] += 1
            return forward(*args, **kwargs)

        return counted

    ours = Passes(clip, Train(checkpointing=True))
    for position, block in enumerate(found):
        plainly = counting(block, block.forward)
        ours._forwards[position] = (block, partial(pieces.again, plainly))
    with ours.open(pictures(clip)):
        twice = pair(clip)
    assert set(calls.values()) == {2}
    assert torch.equal(twice[0], plain[0])
    assert close(twice[1], plain[1])


@pytest.mark.parametrize("name", ["cmoa", "coda_prompt", "mg_clip", "moe_adapters"])
def test_hooks_inside_blocks_refuse_checkpoints(name: str, tmp_path: Path, toy: str, photos: str) -> None:
    """They are gone when the backward pass comes to run the blocks again."""
    with pytest.raises(
        UserError, match=r"^train\.checkpointing=true runs blocks twice, but the method looks"
    ):
        run(tmp_path / "run", f"data={photos}", f"model={toy}", f"method={name}", "train.checkpointing=true")


@pytest.mark.parametrize("name", ["memo", "vis"])
def test_hooks_on_whole_blocks_or_without_gradients_are_checkpointed(
    name: str, tmp_path: Path, toy: str, photos: str
) -> None:
    words = (f"data={photos}", f"model={toy}", f"method={name}", "memory.budget=12")
    assert run(tmp_path / "run", *words, "train.checkpointing=true")["optimizer_steps"] > 0


def test_a_hugging_face_text_tower_is_checkpointed() -> None:
    clip = zoo.load("lite")
    assert len(blocks(clip.model)) == 7 + 6
    weights = torch.linspace(-1, 1, 1280)
    trained, found = [p for _, p in clip.text_parameters() if p.ndim == 1], []
    for train in (Train(), Train(checkpointing=True, accumulate=2)):
        with Passes(clip, train).open(batch([0])):
            features = clip.encode_text(PROMPTS)
            gradients = torch.autograd.grad((features * weights).sum(), trained)
        found.append((features, torch.cat(gradients)))
    (plain, gradient_of), (twice, again) = found
    assert close(twice, plain)
    assert close(again, gradient_of)


def test_nothing_is_left_behind(toy: str) -> None:
    clip = zoo.load(toy)
    before = [sorted(vars(module)) for module in clip.modules()]
    on, train = batch([0, 1]), Train(checkpointing=True, accumulate=2, patch_dropout=0.5)
    state = torch.get_rng_state()

    def failing() -> None:
        with Passes(clip, train).open(on):
            clip.encode_image(on.images)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        failing()
    assert [sorted(vars(module)) for module in clip.modules()] == before
    assert clip._way.pieces == 1
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(("name", "patches"), [("vit", 16), ("timm vit", 100)])
def test_patches_are_left_out_in_training_alone(name: str, patches: int, tmp_path: Path) -> None:
    clip = clip_of(tmp_path, name)
    seen: list[int] = []
    first = blocks(clip.model.visual)[0]
    forward = first.forward
    ours = Passes(clip, Train(patch_dropout=0.5))
    ours._forwards.append(
        (first, lambda x, *rest, **named: seen.append(x.shape[1]) or forward(x, *rest, **named))
    )
    on = pictures(clip)
    images, teacher = clip.normalise(on.images), clip.copy_tower()
    with ours.open(on):
        once = clip.encode_image(images)
        taught = clip.encode_image(images, teacher)
    with ours.open(on):
        again = clip.encode_image(images)
    with ours.open(replace(on, key=(0, 0, 0, 1))):
        other = clip.encode_image(images)
    plain = clip.encode_image(images)
    assert seen == 3 * [1 + patches // 2]
    assert torch.equal(once, again)
    assert (other - again).norm() > 1e-3
    assert (plain - again).norm() > 1e-3
    torch.testing.assert_close(taught, plain, atol=1e-6, rtol=0)


def test_left_out_patches_are_the_same_when_computed_again(toy: str) -> None:
    clip = zoo.load(toy)
    on, images = batch([0] * 6), clip.normalise(batch([0] * 6).images)
    found = []
    for twice in (False, True):
        with Passes(clip, Train(patch_dropout=0.5, accumulate=3, checkpointing=twice)).open(on):
            features = clip.encode_image(images)
            torch.rand(7)  # what is drawn between the passes does not matter
            gradients = torch.autograd.grad(features[:, 0].sum(), [p for _, p in clip.image_parameters()])
        found.append(torch.cat([g.flatten() for g in gradients]))
    assert close(*found)


def test_what_cannot_be_is_refused(toy: str, tmp_path: Path, photos: str) -> None:
    clip = zoo.load(toy)
    with pytest.raises(UserError, match=r"train\.compile=true gains nothing on a CPU: leave it out"):
        Passes(clip, Train(compile=True))
    clip.cut(1)
    with pytest.raises(UserError, match=r"use cache\.trunk=off or train\.patch_dropout=0"):
        Passes(clip, Train(patch_dropout=0.5))
    with pytest.raises(UserError, match="is not a vision transformer"):
        Passes(clip_of(tmp_path, "resnet"), Train(patch_dropout=0.5))
    with pytest.raises(UserError, match=r"patch_dropout leaves patches out, but the method looks inside"):
        run(tmp_path / "run", f"data={photos}", f"model={toy}", "method=cmoa", "train.patch_dropout=0.5")


def test_a_compiled_block_is_the_same_function(toy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    clip = zoo.load(toy)
    on = pictures(clip)
    plain = clip.encode_image(on.images)
    graphs: list[int] = []

    def backend(graph: torch.fx.GraphModule, _: Any) -> Any:
        graphs.append(len(graph.graph.nodes))
        return graph.forward

    monkeypatch.setattr(passes, "compiled", lambda block: compiled(block, backend))
    monkeypatch.setattr(Clip, "device", torch.device("meta"))  # a CPU is refused
    ours = Passes(clip, Train(compile=True))
    monkeypatch.undo()
    with ours.open(on), torch.no_grad():
        found = clip.encode_image(on.images)
    assert graphs
    torch.testing.assert_close(found, plain, atol=1e-5, rtol=0)


def test_a_run_with_everything(tmp_path: Path, toy: str, photos: str) -> None:
    words = (
        "train.accumulate=2",
        "train.checkpointing=true",
        "train.patch_dropout=0.25",
        "train.precision=bf16",
    )
    results = run(tmp_path / "run", f"data={photos}", f"model={toy}", "method=gdro", *words)
    assert 0 <= results["last"] <= 1
    assert results["precision"] == "bf16"
