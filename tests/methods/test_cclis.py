"""CCLIS: golden numbers through the method, scores and the memory that draws by them, prototypes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from everclip.data.loader import Batch
from everclip.data.memory import Memory
from everclip.data.policies import build
from everclip.methods.cclis import Cclis
from everclip.training.restore import open_run
from tests.data.test_memory import EMPTY, images
from tests.losses.test_supcon import at, random
from tests.methods.plain import PROMPTS, batch, saved
from tests.methods.stages import Course
from tests.running import run

Z, Y = at(10, 70, 100, 130), [0, 1, 2, 2]


def cclis(prototypes: Tensor, known: int, **options: Any) -> Cclis:
    """The method in a task with so many old classes, 0, 1, ..., acting on features without a projector."""
    method = Cclis(Cclis.Config.model_validate(options), PROMPTS)
    method.head.grow(range(len(prototypes)), torch.zeros(len(prototypes), prototypes.shape[1]))
    method.prototypes, method._known = nn.Parameter(prototypes), known
    return method


def golden() -> tuple[Cclis, Batch]:
    method = cclis(at(0, 60, 120), 2)
    on = replace(batch(Y), current=torch.tensor([False, False, True, True]))
    return method, on


def test_golden_contrast() -> None:
    """methods-more.md 11.1; probabilities are kept in fp32."""
    method, on = golden()
    assert method.contrast({"image": Z}, on)["contrast"].item() == pytest.approx(0.7866106818, abs=1e-10)
    method.drawn.set([0, 1], torch.tensor([[0.25], [0.1]]))
    assert method.contrast({"image": Z}, on)["contrast"].item() == pytest.approx(1.1616338324, abs=1e-8)


def test_golden_relations() -> None:
    method, on = golden()
    method.config = Cclis.Config(tau_teacher=0.1, distill=1.0)
    method._teacher, method._before = (nn.Identity(), nn.Identity()), at(5, 55)
    terms = method.contrast({"image": Z, "teacher": at(15, 65, 95, 125)}, on)
    assert terms["relations"].item() == pytest.approx(0.1056890924, abs=1e-10)


def test_golden_scores(toy: str, photos: str) -> None:
    """Of features in place of pictures."""
    method, on = golden()

    class Stub:
        encode_image = staticmethod(lambda pictures: Z)

    scores = method.scores(Stub(), [on])  # pyright: ignore[reportArgumentType]
    assert scores == pytest.approx(
        {0: 0.1181058406, 1: 0.1991675224, 2: 0.1678932700, 3: 0.0706119753}, abs=1e-10
    )
    assert_close(method.drawn.get(range(4))[0][:, 0], torch.tensor([1, 1, 0.7039395289, 0.2960604711]))


def test_domains_are_groups_of_their_own() -> None:
    method = cclis(at(0, 60), 2)
    method.drawn.set(range(4), torch.tensor([[0.5], [0.25], [0.125], [1.0]]))
    on = replace(
        batch([0, 0, 0, 1]),
        domains=torch.tensor([0, 0, 1, 0]),
        current=torch.zeros(4, dtype=torch.bool),
    )
    z = random(4, 0)[:, :2]
    z = z / z.norm(dim=1, keepdim=True)
    logits = z @ at(0, 60).T / 0.5
    # two exemplars of class 0 are from one domain; the lone one of class 1 was drawn for certain
    v = torch.tensor([[1, 1, 1, 1 * 1.0], [2 * 0.5, 2 * 0.25, 1 * 0.125, 1]], dtype=torch.float64)
    inner = [(logits[:, k].exp() / v[k]).sum().log() for k in (0, 1)]
    expected = (3 * inner[0] + inner[1] - logits[:3, 0].sum() - logits[3, 1]) / 4
    assert_close(method.contrast({"image": z}, on)["contrast"], expected)


def test_memory_draws_by_score() -> None:
    """Nested, a function of seed and id, equal scores as the policy random, and larger scores more often."""
    new = images([0] * 40)
    flat, order = (lambda pool: np.ones(len(pool))), []
    for policy in ("random", "score"):
        memory = Memory(10, 3, EMPTY, build(policy, {}))
        memory.update(new, 1, None, flat)
        order.append(memory.images().ids.tolist())
    assert order[0] == order[1]
    by_id = {int(sample): 1.0 + sample % 7 for sample in new.ids}
    held = []
    for budget, part in ((20, new), (10, new), (10, new.select(np.arange(40)[::-1].copy()))):
        memory = Memory(budget, 3, EMPTY, build("score", {}))
        memory.update(part, 1, None, lambda pool: np.array([by_id[int(s)] for s in pool.ids]))
        held.append(set(memory.images().ids.tolist()))
    assert held[1] == held[2] < held[0]
    asked: list[int] = []

    def nothing(pool: Any) -> Any:
        asked.append(len(pool))
        return np.zeros(len(pool))

    for budget in (0, "all"):
        Memory(budget, 0, EMPTY, build("score", {})).update(new, 1, None, nothing)
    assert not asked
    memory = Memory(4, 0, EMPTY, build("score", {}))
    memory.update(new, 1, None, nothing)
    memory.update(images([1] * 5, start=100), 2, None, nothing)
    assert asked == [40, 9], "exemplars are scored again beside the new images"
    assert len(memory.images()) == 4


def test_draws_are_in_proportion_to_the_scores() -> None:
    new, counts = images([0] * 4), np.zeros(4)
    for seed in range(3000):
        memory = Memory(1, seed, EMPTY, build("score", {}))
        memory.update(new, 1, None, lambda pool: np.array([1.0, 2.0, 3.0, 4.0]))
        counts[np.isin(new.ids, memory.images().ids)] += 1
    assert counts / 3000 == pytest.approx([0.1, 0.2, 0.3, 0.4], abs=0.03)


def test_prototypes_are_kept_and_stay_at_unit_length(toy: str, photos: str) -> None:
    lesson = Course.of(
        f"data={photos}", f"model={toy}", "method=cclis", "method.start=random", "method.probe_epochs=2"
    )
    method = lesson.method
    first = torch.zeros(0, 128)
    for index in range(2):
        task = lesson.enter(index)
        assert method.prototypes.shape == (2 * index + 2, 128)
        assert torch.equal(method.prototypes.detach()[: 2 * index], first), "old ones stand in front"
        assert torch.equal(method._before, first)
        represent, probe = method.phases(task)
        before = method.prototypes.detach().clone()
        lesson.step(lesson.update(represent), lesson.sample(task), represent)
        assert not torch.equal(method.prototypes, before), "they learn"
        method.after_step(lesson.clip)
        first = method.prototypes.detach().clone()
        assert_close(first.norm(dim=1), torch.ones(2 * index + 2))
        lesson.step(lesson.update(probe), lesson.sample(task), probe)
        method.after_step(lesson.clip)
        assert torch.equal(method.prototypes, first), "but not in the probe"
        lesson.leave(task)


def test_learned_prototypes_start_at_projected_class_embeddings(toy: str, photos: str) -> None:
    lesson = Course.of(f"data={photos}", f"model={toy}", "method=cclis")
    task = lesson.enter(0)
    names = [lesson.plan.prompts.names[label] for label in task.classes]
    with torch.no_grad():
        expected = lesson.method.projector(lesson.clip.class_embeddings(names, lesson.plan.prompts.templates))
    assert_close(lesson.method.prototypes, expected / expected.norm(dim=1, keepdim=True))


def test_text_prototypes(toy: str, photos: str) -> None:
    lesson = Course.of(f"data={photos}", f"model={toy}", "method=cclis", "method.prototypes=text")
    task = lesson.enter(0)
    method, clip, prompts = lesson.method, lesson.clip, lesson.plan.prompts
    with torch.no_grad():
        texts = clip.class_embeddings([prompts.names[label] for label in task.classes], prompts.templates)
    (phase,) = method.phases(task)
    wanted = list(method.trainable(clip, phase))
    assert len(wanted) == len(list(clip.image_parameters()))
    lesson.phase(task, phase)
    assert_close(method.prototypes.detach(), texts)
    with torch.no_grad():
        scores = clip.encode_image(lesson.images()) @ texts.T
    assert_close(lesson.scores(*task.classes), scores)


def test_probabilities_are_saved_and_bounded_by_the_memory(tmp_path: Path, toy: str, photos: str) -> None:
    run(tmp_path / "run", f"data={photos}", f"model={toy}", "method=cclis", "memory.budget=12")
    plan, _, _ = open_run(tmp_path / "run")
    method = plan.method
    assert isinstance(method, Cclis)
    held, seen = method.drawn.get(method.drawn.ids())
    assert len(seen) == 12
    assert ((held > 0) & (held < 1)).all()
    again = Cclis(method.config, plan.prompts)
    again.set_extra_state(saved(method.get_extra_state()))
    assert torch.equal(again.drawn.get(method.drawn.ids())[0], held)


def test_another_policy_leaves_exemplars_as_they_are(tmp_path: Path, toy: str, photos: str) -> None:
    run(tmp_path / "run", f"data={photos}", f"model={toy}", "method=cclis", "memory.policy=random")
    plan, _, _ = open_run(tmp_path / "run")
    assert len(plan.method.tables()["drawn"]) == 0
