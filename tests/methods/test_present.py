"""The softmax compares the classes that have images now: no class is pushed down with nothing to hold it up."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from everclip.data.loader import Phase
from tests.methods.stages import Course, batch

NAMES = ["finetune", "ewc", "dark_er", "wise_ft", "wise_ft method.loss=ewc"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("classes", ["present", "seen"])
def test_rows_of_absent_classes_are_not_pushed_down(name: str, classes: str, toy: str, photos: str) -> None:
    words, prefix = name.split(), "method.options." if name.startswith("wise_ft") else "method."
    tokens = [f"method={words[0]}", *words[1:], f"{prefix}head=linear"]
    if classes == "seen":  # the default is the other
        tokens.append(f"{prefix}classes=seen")
    course = Course.of(f"data={photos}", f"model={toy}", "scenario.tasks=2", *tokens)
    course.leave(course.enter(0), memory=False)
    task, phase = course.enter(1, memory=False), Phase()
    head = next(part for path, part in course.method.named_modules() if path.endswith("head"))
    old = [row for row, label in enumerate(head.labels) if label not in task.classes]
    on = batch(list(task.classes) * 4)
    terms = course.learner.loss(course.learner.encode(course.clip, on, phase), on, phase)
    torch.stack([*terms.values()]).sum().backward()
    assert old
    assert head.weight.grad is not None
    assert (head.weight.grad[old] == 0).all() == (classes == "present")


def test_dark_replay_compares_stored_outputs_of_all_classes(toy: str, photos: str) -> None:
    course = Course.of(f"data={photos}", f"model={toy}", "scenario.tasks=3", "method=dark_er").learn(0, 1)
    task, method = course.enter(2), course.method
    first = course.plan.tasks[1]
    # exemplars of the second task alone are left: the first task's classes are absent
    method.begin_task(course.clip, task, first.train + task.train)
    absent = [label for label in course.plan.tasks[0].classes if label not in first.classes + task.classes]
    assert absent
    assert not set(absent) & set(method._compared)
    on = batch([*task.classes, *first.classes], [True] * len(task.classes) + [False] * len(first.classes))
    held = method.stored[1].get(method.stored[1].ids())[0]
    for table in method.stored:
        table.drop(table.ids())
    method.stored[1].set(on.ids, held[:1].expand(len(on), -1))
    with torch.no_grad():
        features = method.encode(course.clip, on, Phase())
        terms = method.loss(features, on, Phase())
        outputs = method.logits(features) / features["scale"]
    rows = [method.seen.index(label) for label in method._compared]
    compared = (features["scale"] * outputs)[:, rows].log_softmax(1)
    target = [method._compared.index(label) for label in task.classes]
    expected = -compared[range(len(target)), target].mean()
    assert_close(terms["cross_entropy"], expected)
    known = len(course.plan.tasks[0].classes + first.classes)
    distance = (10 * (outputs[:, :known] - held[:1])).square().mean()
    assert_close(terms["dark"], 0.3 * distance)


@pytest.mark.parametrize("captions", ["fixed", "random"])
def test_dark_replay_asks_nothing_of_an_unchanged_model(captions: str, toy: str, photos: str) -> None:
    """Whichever templates the captions of a step are drawn from; the cross-entropy does draw them."""
    words = ("scenario.tasks=2", "method=dark_er", f"train.captions={captions}", "templates=imagenet")
    course = Course.of(f"data={photos}", f"model={toy}", *words)
    course.leave(course.enter(0))
    task, method = course.enter(1), course.method
    old = course.sample(course.plan.tasks[0])
    terms = []
    for step in range(2):
        on = replace(old, current=torch.zeros(len(old), dtype=torch.bool), key=(task.index, 0, 0, step))
        with torch.no_grad():
            terms.append(method.loss(method.encode(course.clip, on, Phase()), on, Phase()))
        assert_close(terms[step]["dark"], torch.zeros(()), atol=1e-9, rtol=0)
    assert torch.equal(terms[0]["replay"], terms[1]["replay"]) == (captions == "fixed")


def test_dark_replay_asks_nothing_of_the_logit_scale(toy: str, photos: str) -> None:
    """Stored outputs are cosines."""
    course = Course.of(f"data={photos}", f"model={toy}", "scenario.tasks=2", "method=dark_er").learn(0)
    task, method = course.enter(1), course.method
    old = course.plan.tasks[0].classes
    on = batch([*task.classes, *old], [True] * len(task.classes) + [False] * len(old))
    method.stored[0].set(on.ids, torch.zeros(len(on), len(old)))
    features = {name: value.detach() for name, value in method.encode(course.clip, on, Phase()).items()}
    features["scale"].requires_grad_()
    method.loss(features, on, Phase())["dark"].backward()
    assert_close(features["scale"].grad, torch.zeros(()), atol=1e-6, rtol=0)
