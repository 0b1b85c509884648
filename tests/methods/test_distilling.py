"""LwF and ZSCL: golden numbers, a naive reference of the loss, and teachers that stay as they are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from everclip.data.gathered import Archive
from everclip.data.loader import Phase
from everclip.data.sources import SourceConfig, emoji
from everclip.losses.distill import distillation
from everclip.methods.base.method import Method
from everclip.methods.lwf import Lwf
from everclip.methods.shared import distilling as _reference
from everclip.methods.shared.distilling import Distilling
from everclip.methods.shared.weights import Average
from everclip.methods.zscl import Zscl
from everclip.models import zoo
from everclip.models.clip import Clip
from everclip.models.tunings import tuning_of
from tests.methods.learning import batch_of, begin, joined, steps, task_of
from tests.methods.plain import PROMPTS, batch, saved
from tests.methods.stages import state

FIRST, SECOND = task_of([0, 1, 2, 0]), task_of([3, 3, 4, 4], 1, 10)
E = torch.tensor([[1.0, 0], [0, 1], [0.6, 0.8]], dtype=torch.float64)
TEACHER = torch.tensor([[0.8, 0.6], [0, 1]], dtype=torch.float64)
STUDENT = torch.tensor([[0.6, 0.8], [0.28, 0.96]], dtype=torch.float64)


@pytest.fixture
def clip(toy: str) -> Clip:
    return zoo.load(toy)


@pytest.fixture(autouse=True)
def few_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twelve reference texts in place of a thousand."""
    monkeypatch.setattr(_reference, "SENTENCES", 12)
    monkeypatch.setattr("open_clip.IMAGENET_CLASSNAMES", [f"thing {number}" for number in range(12)])


def lwf(**options: Any) -> Lwf:
    return Lwf(Lwf.Config.model_validate(options), PROMPTS)


def zscl(**options: Any) -> Zscl:
    return Zscl(Zscl.Config.model_validate({"emoji_count": 10} | options), PROMPTS)


def terms(method: Distilling, teacher: Tensor, student: Tensor, scale: float = 10.0) -> dict[str, Tensor]:
    """The loss of given features, the texts being E, of two images of the only class."""
    method.seen = method._labels = [0]
    method._texts = E
    features = {"image": student, "classes": E[:1], "scale": torch.tensor(scale, dtype=torch.float64)}
    return method.loss(features | {"teacher": teacher, "reference": student}, batch([0, 0]), Phase())


def test_golden_temperature() -> None:
    """Reference values of the softened cross-entropy: times T^2, and as a divergence."""
    teacher, student = torch.tensor([[[2.0, 1, 0]], [[1.0, 1, 0]]], dtype=torch.float64)
    value, floor = distillation(teacher, student, 2.0), distillation(teacher, teacher, 2.0)
    assert 4 * value.item() == pytest.approx(4.2047277982, abs=1e-9)
    assert 4 * (value - floor).item() == pytest.approx(0.1239624513, abs=1e-9)


def test_golden_label_smoothing() -> None:
    method = lwf()
    method.seen = method._labels = [0, 1, 2]
    features = {
        "image": torch.tensor([[2.0, 1, 0]], dtype=torch.float64),
        "classes": torch.eye(3, dtype=torch.float64),
        "scale": torch.tensor(1.0, dtype=torch.float64),
    }
    loss = method.loss(features, batch([0]), Phase())
    assert {name: term.item() for name, term in loss.items()} == {
        "cross_entropy": pytest.approx(0.6076059645, abs=1e-9)
    }


def test_golden_distillation() -> None:
    found, floor = terms(zscl(), TEACHER, STUDENT), terms(zscl(), TEACHER, TEACHER)
    assert found["distill_image"].item() == pytest.approx(3.5356265310, abs=1e-9)
    assert floor["distill_image"].item() == pytest.approx(2.9926343218, abs=1e-9)
    assert found["distill_text"].item() == pytest.approx(1.7656570448, abs=1e-9)
    assert floor["distill_text"].item() == pytest.approx(1.4327329385, abs=1e-9)


def test_at_the_teacher_there_is_nothing_to_learn() -> None:
    leaf = TEACHER.clone().requires_grad_()
    found = terms(zscl(), TEACHER, leaf)
    (gradient,) = torch.autograd.grad(found["distill_image"] + found["distill_text"], leaf)
    assert gradient.abs().max() < 1e-14


@pytest.mark.parametrize("method", [lwf(image_weight=2.0, temperature=3.0), zscl(text_weight=0.5)])
def test_loss_is_that_of_the_definition(method: Distilling) -> None:
    options = method.distill
    similar = [[[10 * float(z @ e) for e in E] for z in who] for who in (TEACHER, STUDENT)]

    def divergence(teacher: list[list[float]], student: list[list[float]]) -> float:
        total = 0.0
        for p, q in zip(teacher, student, strict=True):
            top = [math.exp(value / options.temperature) for value in p]
            norm = sum(math.exp(value / options.temperature) for value in q)
            for t, value in zip(top, q, strict=True):
                total -= t / sum(top) * (value / options.temperature - math.log(norm))
        return total / len(teacher)

    columns = [[list(column) for column in zip(*rows, strict=True)] for rows in similar]
    square, found = options.temperature**2, terms(method, TEACHER, STUDENT)
    expected = options.image_weight * square * divergence(*similar)
    assert found["distill_image"].item() == pytest.approx(expected, abs=1e-9)
    expected = options.text_weight * square * divergence(*columns)
    assert found["distill_text"].item() == pytest.approx(expected, abs=1e-9)


def test_a_direction_of_weight_zero_is_left_out() -> None:
    assert set(terms(lwf(text_weight=0.0), TEACHER, STUDENT)) == {"cross_entropy", "distill_image"}


def led(method: Method, clip: Clip, seed: int = 0) -> None:
    """Through the first task, and into the second."""
    begin(method, clip, FIRST)
    steps(method, clip, FIRST, batch_of(FIRST, seed), 2)
    method.end_task(clip, FIRST, [batch_of(FIRST, seed)], [])
    begin(method, clip, SECOND)


def test_lwf_keeps_nothing_in_the_first_task_and_starts_at_its_teacher_in_the_next(clip: Clip) -> None:
    method = lwf()
    begin(method, clip, FIRST)
    assert set(steps(method, clip, FIRST, batch_of(FIRST), 1)[0]) == {"cross_entropy"}
    method.end_task(clip, FIRST, [], [])
    begin(method, clip, SECOND)
    features = method.encode(clip, batch_of(SECOND), Phase())
    assert_close(features["teacher"], features["reference"])
    loss = method.loss(features, batch_of(SECOND), Phase())
    distilled = loss["distill_image"] + loss["distill_text"]
    gradients = torch.autograd.grad(distilled, [p for _, p in clip.image_parameters()])
    assert max(float(g.abs().max()) for g in gradients) < 1e-4
    assert distilled > 1e-2, "a zero gradient because it is at its smallest, not because it is nothing"


def test_lwf_teacher_stays_as_it_was_while_the_model_moves(clip: Clip) -> None:
    method, on = lwf(), batch_of(SECOND)
    led(method, clip)
    (teacher,) = method._teacher
    before, texts = state(teacher), method._texts.clone()
    storages = {p.data_ptr() for p in clip.model.parameters()}
    assert not storages & {p.data_ptr() for p in teacher.parameters()}
    first = method.encode(clip, on, Phase())
    log = steps(method, clip, SECOND, on, 4)
    last = method.encode(clip, on, Phase())
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    assert torch.equal(method._texts, texts)
    assert torch.equal(first["teacher"], last["teacher"])
    assert not torch.equal(first["image"], last["image"])
    assert max(term["distill_image"] for term in log) > log[0]["distill_image"]
    assert not any("teacher" in name for name in method.state_dict())
    method.end_task(clip, SECOND, [], [])
    assert method._teacher == ()


@pytest.mark.parametrize(
    ("reference", "texts"),
    [
        ("old", ["a photo of a a.", "a photo of a b.", "a photo of a c."]),
        ("current", ["a photo of a d.", "a photo of a e."]),
        ("random", None),
    ],
)
def test_lwf_reference_texts(clip: Clip, reference: str, texts: list[str] | None) -> None:
    method = lwf(reference=reference)
    led(method, clip)
    with torch.no_grad():
        assert_close(method._texts, clip.encode_text(texts or _reference.sentences()))


def test_lwf_meets_old_classes_again(clip: Clip) -> None:
    """In a new domain the classes of the task are old ones too."""
    method = lwf()
    begin(method, clip, FIRST)
    method.end_task(clip, FIRST, [], [])
    begin(method, clip, task_of([0, 1, 2], 1))
    assert len(method._texts) == 3


@pytest.mark.parametrize("make", [lwf, zscl])
def test_the_logit_scale_is_not_trained(clip: Clip, make: Any) -> None:
    before = clip.logit_scale.item()
    led(method := make(), clip)
    steps(method, clip, SECOND, batch_of(SECOND), 2)
    assert clip.logit_scale.item() == before


def test_random_sentences_are_ten_words_and_always_the_same() -> None:
    first = _reference.sentences()
    assert first == _reference.sentences()
    assert len(set(first)) == 12
    assert all(len(sentence.split()) == 10 for sentence in first)


def test_the_average_is_that_of_the_start_and_all_that_was_taken(clip: Clip) -> None:
    """Start 4, then 1, 2 and 5: 3."""
    weight = clip.model.visual.proj

    def set_to(number: float) -> None:
        with torch.no_grad():
            weight.fill_(number)

    set_to(4)
    average = Average({"visual.proj": weight.detach()})
    for number in (1, 2, 5):
        set_to(number)
        average.take(clip)
    assert_close(weight.detach(), torch.full_like(weight, 5))
    average.put(clip)
    assert_close(weight.detach(), torch.full_like(weight, 3))


@pytest.mark.parametrize(
    ("steps_", "taken"), [(18, range(2, 19, 2)), (1000, range(100, 1001, 100)), (3, (1, 2, 3))]
)
def test_zscl_averages_a_tenth_of_the_task_apart(clip: Clip, steps_: int, taken: Sequence[int]) -> None:
    """A task of 18 steps has nine weights besides its start, where every hundredth step would be none."""
    method = zscl()
    method.grow(clip, FIRST)
    method.begin_task(clip, FIRST, FIRST.train)
    method.begin_phase(clip, Phase(steps=steps_))
    found = []
    for step in range(1, steps_ + 1):
        before = method._average.count
        method.after_step(clip)
        if method._average.count > before:
            found.append(step)
    assert found == list(taken)


@pytest.mark.parametrize(("every", "taken"), [(1, [1, 2, 3, 4, 5]), (2, [2, 4, 5]), (100, [5]), (None, [])])
@pytest.mark.parametrize("tune", ["full", "lora:2"])
def test_zscl_leaves_the_average_of_its_task(
    clip: Clip, every: int | None, taken: list[int], tune: str
) -> None:
    """Of its start and every so many steps; the last step counts in any case."""
    method, on = zscl(ensemble_every=every), batch_of(FIRST)
    method.grow(clip, FIRST)
    tuning_of(tune).begin(clip)
    method.begin_task(clip, FIRST, FIRST.train)
    method.begin_phase(clip, Phase())
    name = "visual.transformer.resblocks.0.mlp.c_fc.weight"
    seen = [clip.model.get_submodule(name.removesuffix(".weight")).weight.detach().clone()]
    after_step = method.after_step

    def noting(clip: Clip) -> None:
        after_step(clip)
        seen.append(clip.model.get_submodule(name.removesuffix(".weight")).weight.detach().clone())

    method.after_step = noting
    steps(method, clip, FIRST, on, 5)
    tuning_of(tune).end(clip)
    method.end_task(clip, FIRST, [on], [])
    left = clip.model.get_parameter(name).detach()
    expected = seen[-1] if every is None else torch.stack([seen[number] for number in [0, *taken]]).mean(0)
    assert_close(left, expected, rtol=1e-5, atol=1e-7)
    assert not torch.equal(seen[0], seen[1])


def test_zscl_anchor_is_the_squared_distance_to_the_start_of_the_task(clip: Clip) -> None:
    method = zscl(l2=0.5)
    led(method, clip)
    assert method.penalty(clip)["anchor"] == 0
    expected = 0.0
    with torch.no_grad():
        for number, (_, parameter) in enumerate([*clip.image_parameters(), *clip.text_parameters()]):
            parameter += 0.01 * (number % 3)
            expected += 0.5 * parameter.numel() * (0.01 * (number % 3)) ** 2
    assert method.penalty(clip)["anchor"].item() == pytest.approx(expected, rel=1e-4)
    assert zscl(l2=0.0).penalty(clip) == {}


def test_zscl_asks_the_pretrained_model_in_every_task(clip: Clip, toy: str) -> None:
    method, pretrained = zscl(), zoo.load(toy)
    led(method, clip)
    assert method._pictures is not None
    with torch.no_grad():
        assert_close(method.kept["texts"], pretrained.encode_text(_reference.imagenet()))
        pictures = pretrained.encode_image(method._pictures)
        assert (clip.encode_image(method._pictures) - pictures).abs().max() > 1e-4
    assert_close(method.kept["images"], pictures)
    before = {name: tensor.clone() for name, tensor in method.kept.items()}
    steps(method, clip, SECOND, batch_of(SECOND), 3)
    assert all(torch.equal(tensor, before[name]) for name, tensor in method.kept.items())
    features = method.encode(clip, batch_of(SECOND), Phase())
    rows = [int((pictures - teacher).abs().sum(1).argmin()) for teacher in features["teacher"]]
    assert len(set(rows)) == len(batch_of(SECOND)), "as many reference images as images, each once"
    with torch.no_grad():
        again = clip.encode_image(method._pictures[rows])
    assert_close(features["reference"].detach(), again)


@pytest.mark.parametrize("images", ["current", "memory"])
def test_zscl_keeps_the_pretrained_tower_for_images_that_come_later(
    clip: Clip, toy: str, images: str
) -> None:
    method, pretrained = zscl(reference_images=images), zoo.load(toy)
    begin(method, clip, FIRST)
    distilled = "distill_image" in steps(method, clip, FIRST, batch_of(FIRST), 2)[0]
    assert distilled == (images == "current"), "no exemplars in the first task"
    method.end_task(clip, FIRST, [], [])
    again = zscl(reference_images=images)
    for task in (FIRST, SECOND):
        again.grow(clip, task)  # as a resume does, with the model of now
    method.grow(clip, SECOND)
    again.load_state_dict(saved(method.state_dict()))
    for one in (method, again):
        one.begin_task(clip, SECOND, SECOND.train)
    on = joined(batch_of(SECOND), batch_of(FIRST, 1, current=False))
    rows = slice(0, 8) if images == "current" else slice(4, 8)
    with torch.no_grad():
        expected = pretrained.encode_image(on.images[rows])
    for one in (method, again):
        features = one.encode(clip, on, Phase())
        assert torch.equal(features["reference"], features["image"][rows])
        assert_close(features["teacher"], expected)
        assert not features["teacher"].requires_grad


def test_zscl_old_prompts_are_those_of_classes_already_learned(clip: Clip, toy: str) -> None:
    method, pretrained = zscl(reference_texts="old"), zoo.load(toy)
    begin(method, clip, FIRST)
    assert set(steps(method, clip, FIRST, batch_of(FIRST), 1)[0]) == {"cross_entropy", "anchor"}
    method.end_task(clip, FIRST, [], [])
    begin(method, clip, SECOND)
    with torch.no_grad():
        assert_close(method._texts, pretrained.encode_text(_reference.captions("abc")))


def test_emoji_are_decoded_once_and_come_back_after_a_resume(
    clip: Clip, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    original = Archive.read

    def counting(self: Archive, row: int) -> bytes:
        read.append(row)
        return original(self, row)

    monkeypatch.setattr(Archive, "read", counting)
    method = zscl()
    led(method, clip)
    steps(method, clip, SECOND, batch_of(SECOND), 3)
    assert len(read) == 10
    again = zscl()
    for task in (FIRST, SECOND):
        again.grow(clip, task)
    again.load_state_dict(saved(method.state_dict()))
    again.begin_task(clip, SECOND, SECOND.train)
    assert len(read) == 20
    assert method._pictures is not None
    assert again._pictures is not None
    assert torch.equal(method._pictures, again._pictures)
    assert all(torch.equal(again.kept[name], tensor) for name, tensor in method.kept.items())


def test_emoji_of_the_run_itself_are_no_reference(clip: Clip, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither what a later task learns nor what is tested."""
    own = emoji.Emoji(SourceConfig()).load(None, "class-incremental").train.store.keys
    opened: list[list[str]] = []
    original = Archive.__init__

    def noting(self: Archive, path: Any, keys: Any) -> None:
        opened.append(list(keys))
        original(self, path, keys)

    monkeypatch.setattr(Archive, "__init__", noting)
    assert len(_reference.pictures(clip, own, 50)) == 50
    assert len(opened[-1]) == 50
    assert not set(opened[-1]) & set(own)
    everything = _reference.pictures(clip, [], 50)
    assert set(opened[-1]) & set(own)
    assert everything.shape == (50, 3, 32, 32)
    assert len(np.unique(everything.flatten(1).numpy(), axis=0)) > 45
