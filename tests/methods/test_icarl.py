"""iCaRL: its targets and losses against naive forms, its means, and when the head classifies instead."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from everclip.data.loader import Batch, Phase
from everclip.data.memory import Memory
from everclip.data.policies import build, herding_order
from everclip.methods.icarl import Icarl
from tests.methods.plain import images as image_set
from tests.methods.stages import Course, batch, same, state


def course(model: str, data: str, *options: str) -> Course:
    return Course.of(f"data={data}", f"model={model}", "method=icarl", *options)


def second(model: str, data: str, *options: str) -> tuple[Course, Batch]:
    """In the second task, with a batch of images of its classes and of two exemplars."""
    lesson = course(model, data, *options).learn(0)
    known = list(lesson.seen)
    new = lesson.enter(1).classes
    # so that old network and new one differ
    with torch.no_grad():
        for _, value in lesson.clip.image_parameters():
            value.mul_(1.05)
    return lesson, batch([new[0], new[1], known[1], known[0]], [True, True, False, False])


def encoded(lesson: Course, on: Batch) -> dict[str, Tensor]:
    features = lesson.method.encode(lesson.clip, on, Phase())
    for head in lesson.method._old[1:]:
        head.double()
    return {name: value.detach().double() for name, value in features.items()}


def logits_of(lesson: Course, features: dict[str, Tensor]) -> list[list[float]]:
    """Scores of the present head, one product at a time."""
    return products(lesson.method.head.double(), features["image"], features["scale"].item())


def old_logits_of(lesson: Course, features: dict[str, Tensor]) -> list[list[float]]:
    """Scores of the old network's head for the classes that it knew."""
    rows = products(lesson.method._old[1], features["old"], features["scale"].item())
    return [row[: lesson.method._known] for row in rows]


def products(head: Any, features: Tensor, scale: float) -> list[list[float]]:
    return [
        [
            scale * sum(a * b for a, b in zip(row, weight, strict=True)) + bias
            for weight, bias in zip(head.weight.tolist(), head.bias.tolist(), strict=True)
        ]
        for row in features.tolist()
    ]


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def one_vs_all(logits: list[list[float]], targets: list[list[float]]) -> float:
    terms = [
        -(r * math.log(sigmoid(q)) + (1 - r) * math.log(1 - sigmoid(q)))
        for row, wanted in zip(logits, targets, strict=True)
        for q, r in zip(row, wanted, strict=True)
    ]
    return sum(terms) / len(terms)


def test_herding_golden() -> None:
    features = torch.tensor([[1, 0], [0, 1], [0.9, 0.1], [0.5, 0.45]], dtype=torch.float64).numpy()
    assert herding_order(features).tolist() == [3, 2, 1, 0]
    assert Icarl.capabilities.memory_policy == "herding"


def test_exemplars_a_class_golden() -> None:
    memory = Memory(2000, 0, image_set([]), build("herding", {}))
    expected = [200, 100, 66, 50, 40, 33, 28, 25, 22, 20]
    assert [memory.per_class(10 * stage) for stage in range(1, 11)] == expected


def test_first_task_is_one_vs_all(toy: str, photos: str) -> None:
    lesson = course(toy, photos)
    first = lesson.enter(0).classes
    on = batch([first[1], first[0], first[1]])
    features = encoded(lesson, on)
    assert "old" not in features
    logits = logits_of(lesson, features)
    (loss,) = lesson.method.loss(features, on, Phase()).values()
    assert loss.item() == pytest.approx(one_vs_all(logits, [[0, 1], [1, 0], [0, 1]]), rel=1e-10)


def test_old_classes_keep_the_old_networks_answers(toy: str, photos: str) -> None:
    """For every image, an exemplar's too; new classes take the label."""
    lesson, on = second(toy, photos)
    features = encoded(lesson, on)
    logits = logits_of(lesson, features)
    answers = [[sigmoid(value) for value in row] for row in old_logits_of(lesson, features)]
    labels = [[1.0, 0.0], [0.0, 1.0], [0.0, 0.0], [0.0, 0.0]]
    targets = [old + new for old, new in zip(answers, labels, strict=True)]
    (loss,) = lesson.method.loss(features, on, Phase()).values()
    assert loss.item() == pytest.approx(one_vs_all(logits, targets), rel=1e-10)


def test_cross_entropy_form(toy: str, photos: str) -> None:
    lesson, on = second(toy, photos, "method.loss=ce", "method.distill_weight=0.7", "method.temperature=3")
    features = encoded(lesson, on)
    logits, old = logits_of(lesson, features), old_logits_of(lesson, features)

    def log_softmax(row: list[float]) -> list[float]:
        total = math.log(sum(math.exp(value) for value in row))
        return [value - total for value in row]

    entropy = -sum(log_softmax(row)[k] for row, k in zip(logits, [2, 3, 1, 0], strict=True)) / 4
    kept = 0.0
    for row, past in zip(logits, old, strict=True):
        p = [math.exp(value) for value in log_softmax([value / 3 for value in past])]
        q = log_softmax([value / 3 for value in row[:2]])
        kept -= sum(a * b for a, b in zip(p, q, strict=True)) / 4
    terms = lesson.method.loss(features, on, Phase())
    assert terms["cross_entropy"].item() == pytest.approx(entropy, rel=1e-10)
    assert terms["distill"].item() == pytest.approx(0.7 * kept, rel=1e-10)


@pytest.mark.parametrize("form", ["bce", "ce"])
def test_at_the_old_network_old_classes_have_no_gradient(form: str, toy: str, photos: str) -> None:
    """For "ce" that is so of the distillation alone: its value is the entropy there."""
    lesson, on = second(toy, photos, f"method.loss={form}")
    lesson.method.double()
    features = encoded(lesson, on)
    lesson.method.head.requires_grad_()
    features["old"] = features["image"]
    lesson.method._old[1].load_state_dict(lesson.method.head.state_dict())
    terms = lesson.method.loss(features, on, Phase())
    head = lesson.method.head
    (gradient,) = torch.autograd.grad(terms["bce" if form == "bce" else "distill"], head.weight)
    assert gradient[:2].abs().max() < 1e-14
    if form == "bce":
        assert gradient[2:].abs().max() > 1e-6
    else:
        p = (torch.tensor(old_logits_of(lesson, features), dtype=torch.float64) / 2).softmax(1)
        assert terms["distill"].item() == pytest.approx(-(p * p.log()).sum(1).mean().item())


def test_the_old_network_stays_as_it_was_and_is_let_go(toy: str, photos: str) -> None:
    lesson = course(toy, photos).learn(0)
    clip, method = lesson.clip, lesson.method
    images = lesson.images()
    with torch.no_grad():
        said = clip.encode_image(images)
    rows = method.head.weight.detach().clone()
    task = lesson.enter(1)
    tower, head = method._old
    before = [state(tower), state(head)]
    lesson.phase(task, Phase(), steps=3)
    assert same(state(tower), before[0])
    assert same(state(head), before[1])
    assert all(value.grad is None for value in [*tower.parameters(), *head.parameters()])
    with torch.no_grad():
        assert torch.equal(clip.encode_image(images, tower), said)
        assert not torch.equal(clip.encode_image(images), said)
    assert torch.equal(head.weight[:2], rows)
    assert not any(key.startswith("_old") for key in method.state_dict())
    lesson.leave(task)
    assert method._old == ()


def test_a_class_that_comes_again_is_learned_from_its_label(toy: str, domains: str) -> None:
    """Current images of a new domain take the label, exemplars the old network's answers."""
    lesson = course(toy, domains, "scenario.kind=domain-incremental").learn(0)
    order = list(lesson.method.head.labels)
    lesson.enter(1)
    on = batch([order[2], order[0], order[1]], [True, False, True])
    features = encoded(lesson, on)
    logits = logits_of(lesson, features)
    answers = [sigmoid(value) for value in old_logits_of(lesson, features)[1]]
    (loss,) = lesson.method.loss(features, on, Phase()).values()
    assert loss.item() == pytest.approx(one_vs_all(logits, [[0, 0, 1], answers, [0, 1, 0]]), rel=1e-10)


def naive_means(lesson: Course, on: Batch, flip: bool) -> dict[int, Tensor]:
    """Label -> renormalised mean of unit-length features under the present model."""
    found: dict[int, list[Tensor]] = {}
    with torch.no_grad():
        for picture, label in zip(on.images, on.labels.tolist(), strict=True):
            views = [picture, picture.flip(2)] if flip else [picture]
            found.setdefault(label, []).extend(
                lesson.clip.encode_image(lesson.clip.normalise(view[None]))[0] for view in views
            )
    means = {label: torch.stack(rows).mean(0) for label, rows in found.items()}
    return {label: mean / mean.norm() for label, mean in means.items()}


@pytest.mark.parametrize("flip", [False, True])
def test_nearest_mean_of_exemplars_under_the_present_model(flip: bool, toy: str, photos: str) -> None:
    lesson = course(toy, photos, f"method.flip={str(flip).lower()}").learn(0)
    task = lesson.enter(1)
    lesson.phase(task, Phase())
    labels = [*task.classes, *lesson.seen]
    memory = [batch(labels * 2, seed=3), batch(labels, seed=4)]
    lesson.method.end_task(lesson.clip, task, [batch(list(task.classes))], memory)
    together = Batch(
        *(
            torch.cat([getattr(part, name) for part in memory])
            for name in ("images", "labels", "domains", "ids")
        ),
        current=torch.cat([part.current for part in memory]),
    )
    means = naive_means(lesson, together, flip)
    unknown = lesson.plan.tasks[2].classes[0]
    asked = (labels[2], unknown, labels[0])
    scores = lesson.scores(*asked)
    with torch.no_grad():
        z = lesson.clip.encode_image(lesson.images())
    for column in (0, 2):
        assert scores[:, column].numpy() == pytest.approx((z @ means[asked[column]]).numpy(), abs=1e-5)
    assert torch.equal(scores[:, 1], torch.full((4,), -torch.inf))
    distances = torch.stack([(z - means[label]).norm(dim=1) for label in (asked[0], asked[2])], 1)
    assert torch.equal(scores[:, [0, 2]].argmax(1), distances.argmin(1))


def classifier(lesson: Course) -> Any:
    return type(lesson.method.classifier(lesson.clip, tuple(lesson.seen))).__name__


def test_without_exemplars_the_head_classifies(toy: str, photos: str) -> None:
    lesson = course(toy, photos).learn(0)
    assert classifier(lesson) == "Columns"
    task = lesson.enter(1)
    lesson.phase(task, Phase())
    old = batch(list(lesson.seen))
    lesson.leave(task, memory=False)
    assert not lesson.method.means.any()
    assert classifier(lesson) == "HeadClassifier"
    # one seen class lacks exemplars: scores of a head and cosines cannot be compared
    lesson.method.end_task(lesson.clip, task, [], [old])
    assert lesson.method.means.any()
    assert classifier(lesson) == "HeadClassifier"
    with torch.no_grad():
        z = lesson.clip.encode_image(lesson.images())
        expected = lesson.method.head(z, lesson.clip.logit_scale.exp())
    assert torch.equal(lesson.scores(*lesson.method.head.labels), expected)


def test_the_head_classifies_where_it_is_asked_to(toy: str, photos: str) -> None:
    lesson = course(toy, photos, "method.classifier=head").learn(0, 1)
    assert lesson.method.means.any(1).all()
    assert classifier(lesson) == "HeadClassifier"


def test_means_are_part_of_the_state(toy: str, photos: str) -> None:
    lesson, again = course(toy, photos).learn(0, 1), course(toy, photos)
    for index in (0, 1):
        again.enter(index)
    again.method.load_state_dict(lesson.method.state_dict())
    assert torch.equal(again.method.means, lesson.method.means)
    assert again.method.means.any(1).all()
    assert lesson.method.state_bytes() == 4 * (4 * 16 + 4 + 4 * 16)
