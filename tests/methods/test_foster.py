"""FOSTER: boosting and compression against naive forms, and what is left of them after a task."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from everclip.data.loader import Batch, Phase
from everclip.training.restore import open_run
from tests.methods.plain import images as image_set
from tests.methods.stages import Course, batch, count, same, state
from tests.running import run

BOOST, COMPRESS = Phase("boost"), Phase("compress")


def course(model: str, data: str, *options: str) -> Course:
    return Course.of(f"data={data}", f"model={model}", "method=foster", *options)


def double(features: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().double() for name, value in features.items()}


def scores(weight: Tensor, bias: Tensor, row: list[float], scale: float) -> list[float]:
    return [
        scale * sum(a * b for a, b in zip(row, w, strict=True)) + c
        for w, c in zip(weight.tolist(), bias.tolist(), strict=True)
    ]


def log_softmax(row: list[float]) -> list[float]:
    total = math.log(sum(math.exp(value) for value in row))
    return [value - total for value in row]


def weights(counts: list[int], beta: float) -> list[float]:
    raw = [(1 - beta) / (1 - beta**n) for n in counts]
    return [value * len(raw) / sum(raw) for value in raw]


def second(model: str, data: str, *options: str) -> tuple[Course, Batch, list[int]]:
    """In the second task, whose classes have 30 and 12 images and the known ones 2 each; a batch of all four."""
    lesson = course(model, data, *options).learn(0)
    known, new = list(lesson.seen), lesson.enter(1).classes
    labels = [new[0]] * 30 + [new[1]] * 12 + [known[0]] * 2 + [known[1]] * 2
    lesson.method.begin_task(lesson.clip, lesson.plan.tasks[1], image_set(labels))
    lesson.seen += new
    return lesson, batch([new[1], known[0], new[0], known[1]]), [2, 2, 30, 12]


def test_two_phases_from_the_second_task_on(toy: str, photos: str) -> None:
    lesson = course(toy, photos, "method.compress_epochs=4")
    task = lesson.enter(0)
    assert [phase.name for phase in lesson.method.phases(task)] == ["train"]
    update = lesson.update(Phase())
    assert set(lesson.step(update, lesson.sample(task), Phase())) == {"cross_entropy"}
    lesson.leave(task)
    boost, compress = lesson.method.phases(lesson.enter(1))
    assert (boost.name, compress.name) == ("boost", "compress")
    assert (boost.epochs, compress.epochs) == (None, 4)
    assert compress.train == {"weight_decay": 0.0}


def test_boosting_is_the_naive_loss(toy: str, photos: str) -> None:
    lesson, on, counts = second(
        toy, photos, "method.okd_weight=0.6", "method.temperature=3", "method.beta_boost=0.9"
    )
    method = lesson.method
    features = double(method.encode(lesson.clip, on, BOOST))
    terms = method.double().loss(features, on, BOOST)
    w, scale = weights(counts, 0.9), features["scale"].item()
    targets = [3, 0, 2, 1]
    entropy = newest = kept = 0.0
    for old, image, target in zip(features["old"].tolist(), features["image"].tolist(), targets, strict=True):
        o = scores(method.boosted.weight, method.boosted.bias, old + image, scale)
        fe = scores(method.newest.weight, method.newest.bias, image, scale)
        past = scores(method.head.weight[:2], method.head.bias[:2], old, scale)
        entropy -= log_softmax([value / weight for value, weight in zip(o, w, strict=True)])[target] / 4
        newest -= log_softmax(fe)[target] / 4
        p = [math.exp(value) for value in log_softmax([value / 3 for value in past])]
        q = log_softmax([value / 3 for value in o[:2]])
        kept -= sum(a * b for a, b in zip(p, q, strict=True)) / 4
    assert terms["cross_entropy"].item() == pytest.approx(entropy, rel=1e-6)
    assert terms["newest"].item() == pytest.approx(newest, rel=1e-10)
    assert terms["distill"].item() == pytest.approx(0.6 * kept, rel=1e-10)


def test_compression_is_the_naive_loss_and_knows_no_label(toy: str, photos: str) -> None:
    lesson, on, counts = second(toy, photos, "method.temperature=3", "method.beta_compress=0.9")
    lesson.phase(lesson.plan.tasks[1], BOOST)
    lesson.update(COMPRESS)
    method = lesson.method
    features = double(method.encode(lesson.clip, on, COMPRESS))
    (loss,) = method.double().loss(features, on, COMPRESS).values()
    w, scale, total = weights(counts, 0.9), features["scale"].item(), 0.0
    for old, boosted, image in zip(*(features[k].tolist() for k in ("old", "boosted", "image")), strict=True):
        teacher = scores(method.boosted.weight, method.boosted.bias, old + boosted, scale)
        student = log_softmax([v / 3 for v in scores(method.head.weight, method.head.bias, image, scale)])
        p = [math.exp(value / 3) * weight for value, weight in zip(teacher, w, strict=True)]
        total -= sum(a / sum(p) * b for a, b in zip(p, student, strict=True)) / 4
    assert loss.item() == pytest.approx(total, rel=1e-6)
    other = batch(list(reversed(on.labels.tolist())))
    assert torch.equal(method.loss(features, other, COMPRESS)["distill"], loss)


def test_equal_counts_leave_plain_losses(toy: str, photos: str) -> None:
    lesson, on, _ = second(toy, photos)
    method = lesson.method
    method.begin_task(lesson.clip, lesson.plan.tasks[1], image_set(lesson.seen * 5))
    features = method.encode(lesson.clip, on, BOOST)
    logits = method.boosted(torch.cat([features["old"], features["image"]], 1), features["scale"])
    expected = torch.nn.functional.cross_entropy(logits, method.head.columns(on.labels))
    found = method.loss(features, on, BOOST)["cross_entropy"]
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)


def test_a_class_without_images_takes_all_weights_to_one(toy: str, photos: str) -> None:
    lesson, _, _ = second(toy, photos)
    for images in (
        list(lesson.plan.tasks[1].classes) * 30,
        [*lesson.seen, *list(lesson.plan.tasks[1].classes) * 30],
    ):
        lesson.method.begin_task(lesson.clip, lesson.plan.tasks[1], image_set(images))
        plain = set(lesson.method.head.labels) > set(images)
        for weights in lesson.method._weights:
            assert bool((weights == 1).all()) == plain


def test_or_such_a_class_counts_as_one(toy: str, photos: str) -> None:
    """As with no memory, and as before: finite weights, the largest there are."""
    lesson, _, _ = second(toy, photos, "method.absent=rare")
    new = lesson.plan.tasks[1].classes
    lesson.method.begin_task(lesson.clip, lesson.plan.tasks[1], image_set([*new] * 5))
    expected = weights([1, 1, 5, 5], 0.96)
    assert lesson.method._weights[0].tolist() == pytest.approx(expected, rel=1e-6)


def test_boosting_starts_from_the_old_model_and_leaves_it_alone(model: str, photos: str) -> None:
    lesson = course(model, photos).learn(0)
    method, clip, images = lesson.method, lesson.clip, lesson.images()
    before, head = state(clip.model.visual), state(method.head)
    with torch.no_grad():
        said = clip.encode_image(images)
    task = lesson.enter(1)
    (tower,) = method._towers
    assert torch.equal(method.boosted.weight[:2, :16], head["weight"])
    assert method.boosted.weight.shape == (4, 32)
    assert method.newest.weight.shape == method.head.weight.shape == (4, 16)
    assert torch.equal(method.head.weight[:2], head["weight"])
    grown = state(method.head)
    lesson.phase(task, BOOST, steps=3)
    assert same(state(tower), before)
    assert same(state(method.head), grown), "boosting trains its own heads"
    assert all(value.grad is None for value in tower.parameters())
    with torch.no_grad():
        assert torch.equal(clip.encode_image(images, tower), said)
    assert not same(state(clip.model.visual), before)


def test_the_student_starts_as_the_old_model_and_its_teachers_stand_still(model: str, photos: str) -> None:
    lesson = course(model, photos).learn(0)
    method, clip = lesson.method, lesson.clip
    before, size = state(clip.model.visual), count(clip.model.visual)
    old_head = state(method.head)
    task = lesson.enter(1)
    lesson.phase(task, BOOST)
    boosted = state(clip.model.visual)
    update = lesson.update(COMPRESS)
    assert same(state(clip.model.visual), before)
    assert torch.equal(method.head.weight[:2], old_head["weight"])
    teachers = [*method._towers, method.boosted, method.newest]
    assert same(state(teachers[1]), boosted)
    kept = [state(part) for part in teachers]
    for _ in range(3):
        lesson.step(update, lesson.sample(task), COMPRESS)
    assert all(same(state(part), then) for part, then in zip(teachers, kept, strict=True))
    assert not any(value.requires_grad for part in teachers for value in part.parameters())
    assert not same(state(clip.model.visual), before)
    assert not torch.equal(method.head.weight[:2], old_head["weight"])
    lesson.leave(task)
    # after compression: the first model's parameters and a head row for each new class
    assert count(clip.model.visual) == size
    assert count(method.head) == sum(value.numel() for value in old_head.values()) + 2 * (16 + 1)
    assert method._towers == ()
    assert not method._start
    assert not any("tower" in key for key in method.state_dict())


def test_the_student_is_what_classifies(toy: str, photos: str) -> None:
    lesson = course(toy, photos).learn(0, 1)
    method = lesson.method
    with torch.no_grad():
        expected = method.head(lesson.clip.encode_image(lesson.images()), lesson.clip.logit_scale.exp())
    assert torch.equal(lesson.scores(*method.head.labels), expected)
    unknown = lesson.plan.tasks[2].classes[0]
    assert torch.equal(lesson.scores(unknown), torch.full((4, 1), -torch.inf))


def test_compression_brings_the_student_to_the_boosted_pair(toy: str, photos: str) -> None:
    lesson = course(toy, photos).learn(0)
    task = lesson.enter(1)
    on = lesson.sample(task)
    update = lesson.update(BOOST, 20)
    boosts = [sum(lesson.step(update, on, BOOST).values()) for _ in range(12)]
    assert boosts[-1] < boosts[0]
    update = lesson.update(COMPRESS, 60)
    losses = [lesson.step(update, on, COMPRESS)["distill"] for _ in range(40)]
    assert losses[-1] < losses[0]


def test_a_domain_is_boosted_and_compressed_alike(toy: str, domains: str) -> None:
    lesson = course(toy, domains, "scenario.kind=domain-incremental").learn(0)
    task = lesson.enter(1)
    assert [phase.name for phase in lesson.method.phases(task)] == ["boost", "compress"]
    assert lesson.method.boosted.weight.shape == (3, 32)
    assert lesson.method.head.weight.shape == (3, 16)
    terms = lesson.step(lesson.update(BOOST), lesson.sample(task), BOOST)
    assert set(terms) == {"cross_entropy", "newest", "distill"}


@pytest.mark.parametrize("tune", ["lora:2", "top:1", "head"])
def test_partial_tuning(tune: str, tmp_path: Path, model: str, photos: str) -> None:
    """A low-rank update is made twice in a task: for the boosted tower, and anew for the student."""
    tokens = (f"data={photos}", f"model={model}", "method=foster", f"tune={tune}", "scenario.tasks=2")
    results = run(tmp_path / "run", *tokens)
    assert 0 <= results["last"] <= 1
    assert open_run(tmp_path / "run")[2] == 1


def test_low_rank_updates_start_again_for_the_student(toy: str, photos: str) -> None:
    from everclip.models.tunings import tuning_of

    lesson = course(toy, photos).learn(0)
    clip, method, images = lesson.clip, lesson.method, lesson.images()
    with torch.no_grad():
        said = clip.encode_image(images)
    torch.manual_seed(0)
    tuning_of("lora:2").begin(clip)
    task = lesson.enter(1)
    lesson.phase(task, BOOST)
    with torch.no_grad():
        boosted = clip.encode_image(images)
    assert not torch.equal(boosted, said)
    lesson.update(COMPRESS)
    with torch.no_grad():
        assert clip.encode_image(images).numpy() == pytest.approx(said.numpy(), abs=1e-6)
        teacher = clip.encode_image(images, method._towers[1])
    assert teacher.numpy() == pytest.approx(boosted.numpy(), abs=1e-6)


def test_without_boosting_the_second_tower_stays_as_it_is(toy: str, photos: str) -> None:
    lesson = course(toy, photos, "method.boost=false").learn(0)
    task = lesson.enter(1)
    before = state(lesson.clip.model.visual)
    heads = state(lesson.method.boosted)
    lesson.step(lesson.update(BOOST), lesson.sample(task), BOOST)
    assert same(before, state(lesson.clip.model.visual))
    assert not same(heads, state(lesson.method.boosted))
    first = next(lesson.clip.model.visual.parameters())
    assert any(first is parameter for parameter in lesson.method.trainable(lesson.clip, COMPRESS))
