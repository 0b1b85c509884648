"""der_expand and memo: what grows, what stays as it was, and what the auxiliary head is asked."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.testing import assert_close

from everclip.data.loader import Phase
from everclip.methods.shared.expand import auxiliary_target
from everclip.methods.shared.head import Head, first_rows
from everclip.methods.shared.probe import converged
from everclip.models import zoo
from tests.methods.stages import Course, batch, count, rows, same, state

BOTH = pytest.mark.parametrize("name", ["der_expand", "memo"])
EVERY = pytest.mark.parametrize("name", ["der_expand", "memo", "memo method.shared=trained"])


def course(name: str, model: str, data: str, *tokens: str) -> Course:
    name, *options = name.split()
    return Course.of(f"data={data}", f"model={model}", f"method={name}", *options, *tokens)


def own_size(method: Any, clip: Any) -> int:
    """Parameters that one task has of its own, counted on the model's tower."""
    named = clip.model.visual.named_parameters()
    if "Memo" in type(method).__name__:
        return sum(value.numel() for name, value in named if method._split.above(name))
    return sum(value.numel() for _, value in named)


def test_auxiliary_target_golden() -> None:
    """Known classes 0 to 9: labels 3, 10, 12 are "old", the first new one and the third."""
    known, new = list(range(10)), [10, 11, 12]
    assert auxiliary_target(torch.tensor([3, 10, 12]), known, new).tolist() == [0, 1, 3]
    assert auxiliary_target(torch.tensor([12, 0, 11]), known, [12, 10, 11]).tolist() == [1, 0, 3]


def test_auxiliary_target_where_no_class_is_new() -> None:
    assert auxiliary_target(torch.tensor([7, 2, 7]), [2, 5, 7], []).tolist() == [2, 0, 2]


@EVERY
def test_head_reads_all_extractors_and_parameters_grow_by_one_part(
    name: str, model: str, photos: str
) -> None:
    lesson = course(name, model, photos)
    method, clip = lesson.method, lesson.clip
    dim, tower = 16, count(clip.model.visual)
    for index in range(3):
        task = lesson.enter(index)
        assert len(method.older) == index
        assert count(method.older) == index * own_size(method, clip)
        assert method.head.weight.shape == (2 * (index + 1), dim * (index + 1))
        assert count(clip.model.visual) == tower
        assert method.aux.weight.shape == ((1 + len(task.classes), dim) if index else (0, 0))
        on = lesson.sample(task)
        features = method.encode(clip, on, Phase())
        assert features["all"].shape == (len(on), dim * (index + 1))
        assert torch.equal(features["all"][:, -dim:], features["newest"])
        lengths = features["all"].view(len(on), index + 1, dim).norm(dim=2)
        assert lengths.detach().numpy() == pytest.approx(1, abs=1e-5)
        lesson.phase(task, Phase())
        lesson.leave(task)


def test_a_part_of_memo_is_one_block_of_many(toy: str, convolutional: str, photos: str) -> None:
    for model in (toy, convolutional):
        lesson = course("memo", model, photos)
        lesson.learn(0, 1)
        assert 0 < count(lesson.method.older) < 0.75 * count(lesson.clip.model.visual)
    visual = zoo.load(toy).model.visual
    block = [visual.transformer.resblocks[-1], visual.ln_post]
    lesson = course("memo", toy, photos).learn(0, 1)
    assert count(lesson.method.older) == count(*block) + visual.proj.numel()


@EVERY
def test_older_extractors_have_no_gradient_and_do_not_change(name: str, model: str, photos: str) -> None:
    lesson = course(name, model, photos).learn(0)
    method, clip = lesson.method, lesson.clip
    finished = state(clip.model.visual)
    task = lesson.enter(1)
    copied = state(method.older)
    kept = {key.removeprefix("0.").removeprefix("tower."): value for key, value in copied.items()}
    assert kept
    assert all(torch.equal(value, finished[key]) for key, value in kept.items())
    update = lesson.update(Phase())
    for _ in range(3):
        lesson.step(update, lesson.sample(task), Phase())
        assert all(value.grad is None and not value.requires_grad for value in method.older.parameters())
    assert same(state(method.older), copied)
    assert not same(state(clip.model.visual), finished)
    lesson.leave(task)
    lesson.learn(2)
    assert same({k: v for k, v in state(method.older).items() if k.startswith("0.")}, copied)


@BOTH
def test_what_older_extractors_say_is_bit_identical_after_training(
    name: str, model: str, photos: str
) -> None:
    """With frozen shared blocks that is so for memo too."""
    lesson = course(name, model, photos).learn(0)
    method, clip, images = lesson.method, lesson.clip, lesson.images()
    with torch.no_grad():
        first = clip.encode_image(images)
    task = lesson.enter(1)
    with torch.no_grad():
        old, new = method.extract(clip, images)
    assert torch.equal(old, first)
    assert torch.equal(new, first), "the new one starts as the last"
    lesson.phase(task, Phase())
    with torch.no_grad():
        after, moved = method.extract(clip, images)
    assert torch.equal(after, first)
    assert not torch.equal(moved, first)


def test_shared_blocks_are_frozen_after_the_first_task_or_trained(model: str, photos: str) -> None:
    for shared, moves in (("frozen", False), ("trained", True)):
        lesson = course(f"memo method.shared={shared}", model, photos)
        start = state(lesson.clip.model.visual)
        lesson.learn(0)
        first = state(lesson.clip.model.visual)
        lesson.learn(1)
        second = state(lesson.clip.model.visual)
        trained = {name for name, _ in lesson.clip.model.visual.named_parameters()}
        below = {name for name in trained if not lesson.method._split.above(name)}
        assert any(not torch.equal(start[name], first[name]) for name in below)
        assert any(not torch.equal(first[name], second[name]) for name in below) == moves
        assert any(not torch.equal(first[name], second[name]) for name in trained - below)


@EVERY
def test_loss_is_the_naive_one(name: str, toy: str, photos: str) -> None:
    lesson = course(f"{name} method.aux_weight=0.3", toy, photos).learn(0)
    task = lesson.enter(1)
    method, known = lesson.method, list(lesson.seen)
    on = batch([task.classes[1], known[0], task.classes[0], known[1]])
    features = {k: v.detach().double() for k, v in method.encode(lesson.clip, on, Phase()).items()}
    terms = method.double().loss(features, on, Phase())
    scale, order = features["scale"], known + list(task.classes)

    def entropy(head: Head, x: Tensor, targets: list[int]) -> float:
        total = 0.0
        for row, target in zip(x, targets, strict=True):
            logits = [
                scale * sum(a * b for a, b in zip(row, w, strict=True)) + c
                for w, c in zip(head.weight, head.bias, strict=True)
            ]
            total += float(torch.stack(logits).logsumexp(0) - logits[target])
        return total / len(targets)

    with torch.no_grad():
        whole = entropy(method.head, features["all"], [order.index(label) for label in on.labels.tolist()])
        aux = entropy(method.aux, features["newest"], [2, 0, 1, 0])
    assert terms["cross_entropy"].item() == pytest.approx(whole, rel=1e-10)
    assert terms["auxiliary"].item() == pytest.approx(0.3 * aux, rel=1e-10)


@BOTH
def test_first_task_has_no_auxiliary_loss(name: str, toy: str, photos: str) -> None:
    lesson = course(name, toy, photos)
    task = lesson.enter(0)
    assert set(lesson.step(lesson.update(Phase()), lesson.sample(task), Phase())) == {"cross_entropy"}
    lesson.leave(task)
    task = lesson.enter(1)
    assert set(lesson.step(lesson.update(Phase()), lesson.sample(task), Phase())) == {
        "cross_entropy",
        "auxiliary",
    }


@BOTH
def test_rows_are_aligned_after_a_task(name: str, toy: str, photos: str) -> None:
    for balance in ("align", "none"):
        lesson = course(f"{name} method.balance={balance}", toy, photos).learn(0)
        old = list(lesson.seen)
        lesson.learn(1)
        new = [label for label in lesson.seen if label not in old]
        lengths = [rows(lesson.method.head, part).norm(dim=1).mean().item() for part in (old, new)]
        assert (lengths[0] == pytest.approx(lengths[1], rel=1e-5)) == (balance == "align")


def test_retraining_starts_the_head_anew_and_trains_it_alone(toy: str, photos: str) -> None:
    lesson = course("der_expand method.retrain_penalty=none method.retrain_epochs=2", toy, photos)
    method, clip = lesson.method, lesson.clip
    assert [phase.name for phase in method.phases(lesson.enter(0))] == ["train"]
    lesson.phase(lesson.plan.tasks[0], Phase())
    lesson.leave(lesson.plan.tasks[0])
    task = lesson.enter(1)
    first, second = method.phases(task)
    assert (second.sampler, second.epochs) == ("class_repeated", 2)
    lesson.phase(task, first)
    tower, head, aux = state(clip.model.visual), state(method.head), state(method.aux)
    update = lesson.update(second)
    assert not torch.equal(method.head.weight, head["weight"])
    assert not method.head.bias.any()
    on = lesson.sample(task)
    features = method.encode(clip, on, second)
    logits = method.head(features["all"], features["scale"]) / 5
    (loss,) = method.loss(features, on, second).values()
    expected = cross_entropy(logits, method.head.columns(on.labels))
    assert loss.item() == pytest.approx(expected.item())
    fresh = state(method.head)
    lesson.step(update, on, second)
    assert same(state(clip.model.visual), tower)
    assert same(state(method.aux), aux)
    assert not same(state(method.head), fresh)


@BOTH
def test_a_head_is_learned_anew_on_the_features_of_each_image(name: str, toy: str, photos: str) -> None:
    """Few steps from 0 would leave it there; nothing else of the model is touched."""
    lesson = course(name, toy, photos).learn(0)
    method, clip, task = lesson.method, lesson.clip, lesson.enter(1)
    (only,) = method.phases(task)
    lesson.phase(task, only)
    on, tower, aux = lesson.sample(task), state(clip.model.visual), state(method.aux)
    with torch.no_grad():
        features = torch.cat(method.extract(clip, on.images), 1)
    kept = ~torch.isin(
        on.ids, torch.from_numpy(task.train.ids)
    )  # exemplars among the task's own images count once
    features, labels = torch.cat([features, features[kept]]), torch.cat([on.labels, on.labels[kept]])
    lesson.leave(task)
    assert same(state(clip.model.visual), tower)
    assert same(state(method.aux), aux)
    weight, bias = converged(features, method.head.columns(labels), torch.zeros(4, 32), torch.zeros(4), 10.0)
    scale = clip.logit_scale.exp()
    assert_close(method.head.weight * scale, weight, rtol=1e-4, atol=1e-4)
    assert_close(method.head.bias, bias, rtol=1e-4, atol=1e-4)
    lesson.enter(2, memory=False)  # a class seen has no image now
    lesson.phase(lesson.plan.tasks[2], only)
    head = state(method.head)
    lesson.leave(lesson.plan.tasks[2], memory=False)
    assert same(state(method.head), head)


@BOTH
def test_a_head_stays_where_the_memory_has_just_lost_a_class(name: str, toy: str, photos: str) -> None:
    lesson = course(name, toy, photos).learn(0)
    task, method = lesson.enter(1), lesson.method
    lesson.phase(task, *method.phases(task))
    head = state(method.head)
    method.end_task(lesson.clip, task, [batch(list(task.classes) * 2)], [])
    assert same(state(method.head), head)


@BOTH
def test_no_head_is_trained_anew_without_exemplars(name: str, toy: str, photos: str) -> None:
    lesson = course(f"{name} method.retrain_penalty=none", toy, photos).learn(0)
    assert len(lesson.method.phases(lesson.enter(1, memory=False))) == 1
    lesson.leave(lesson.plan.tasks[1])
    assert len(lesson.method.phases(lesson.enter(2))) == 2


@BOTH
def test_zero_shot_rows_start_as_the_zero_shot_classifier(name: str, toy: str, photos: str) -> None:
    """Before any step, and also where a second extractor has just come."""
    lesson = course(f"{name} method.head_init=zero_shot", toy, photos)
    for index in (0, 1):
        lesson.enter(index)
        lesson.seen += lesson.plan.tasks[index].classes
        labels = tuple(lesson.seen)
        names = [lesson.plan.prompts.names[label] for label in labels]
        with torch.no_grad():
            embeddings = lesson.clip.class_embeddings(names, lesson.plan.prompts.templates)
            cosines = lesson.clip.encode_image(lesson.images()) @ embeddings.T
        expected = lesson.clip.logit_scale.exp().item() * cosines
        assert lesson.scores(*labels).numpy() == pytest.approx(expected.numpy(), abs=1e-4)


def test_zero_shot_auxiliary_rows(toy: str, photos: str) -> None:
    lesson = course("der_expand method.head_init=zero_shot", toy, photos).learn(0)
    task = lesson.enter(1)
    weight = lesson.method.aux.weight
    new = first_rows(task.classes, lesson.clip, lesson.plan.prompts, "zero_shot")
    assert torch.equal(weight[1:], new)
    assert weight.norm(dim=1).detach().numpy() == pytest.approx(1, abs=1e-5)


@BOTH
def test_a_domain_brings_an_extractor_and_no_row(name: str, toy: str, domains: str) -> None:
    lesson = course(name, toy, domains, "scenario.kind=domain-incremental").learn(0)
    method = lesson.method
    before = list(method.head.labels)
    task = lesson.enter(1)
    assert method.head.labels == before
    assert len(method.older) == 1
    assert method.head.weight.shape == (3, 32)
    assert method.aux.weight.shape == (3, 16), "the auxiliary head tells the classes apart, not old from new"
    on = lesson.sample(task)
    features = method.encode(lesson.clip, on, Phase())
    terms = method.loss(features, on, Phase())
    logits = method.aux(features["newest"], features["scale"])
    expected = cross_entropy(logits, torch.tensor([before.index(label) for label in on.labels.tolist()]))
    assert terms["auxiliary"].item() == pytest.approx(expected.item())
    lesson.phase(task, Phase())
    weight = method.head.weight.detach().clone()
    lesson.leave(task)
    assert torch.equal(method.head.weight, weight), "without new classes there is no bias towards them"


@BOTH
def test_scores_stand_in_the_order_asked_and_unknown_classes_have_none(
    name: str, toy: str, photos: str
) -> None:
    lesson = course(name, toy, photos).learn(0, 1)
    known = lesson.seen
    unknown = lesson.plan.tasks[2].classes[0]
    scores = lesson.scores(*known)
    asked = (known[2], unknown, known[0])
    assert torch.equal(lesson.scores(*asked)[:, [0, 2]], scores[:, [2, 0]])
    assert torch.equal(lesson.scores(*asked)[:, 1], torch.full((4,), -torch.inf))
    features = lesson.method.features(lesson.clip, lesson.images())
    assert features.shape == (4, 32)
    assert features.norm(dim=1).detach().numpy() == pytest.approx(1, abs=1e-5)
