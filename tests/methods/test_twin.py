"""The pretrained tower that multilayer_lda keeps beside one that the first task has trained."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from everclip.config import load_config
from everclip.data.scenario import Task
from everclip.methods.base.registry import method_class
from everclip.methods.multilayer_lda import FIRST, WEIGHTS, WON
from everclip.methods.shared.mahalanobis import usable
from everclip.models import zoo
from everclip.models.clip import Clip
from everclip.runs.resolve import resolve
from everclip.sweep.grid import content_key
from tests.methods.closed import EVERYTHING, by_class, learn, make, part, pictures, scores
from tests.methods.plain import images, saved
from tests.methods.test_multilayer_lda import NAME, at_once
from tests.running import run, run_for, timeless

TASKS = by_class([0, 1], [2, 3], [4, 5])


@pytest.fixture(scope="module")
def clip(toy: str) -> Clip:
    return zoo.load(toy).requires_grad_(False)


def trained(clip: Clip, noise: float) -> Clip:
    """A copy whose image tower has other weights."""
    other, random = copy.deepcopy(clip), torch.Generator().manual_seed(2)
    for weight in other.model.visual.parameters():
        weight += noise * weight.std(unbiased=False) * torch.randn(weight.shape, generator=random)
    return other


def led(clip: Clip, after: Clip, tasks: Sequence[Tensor] = TASKS, **options: Any) -> Any:
    """A method whose first task has made ``after`` of the model, whichever method's loss did that."""
    method, on = make(NAME, shrinkage=0.5, adapt="clip", **options), pictures()
    for index, which in enumerate(tasks):
        labels = on.labels[which].tolist()
        task = Task(index, f"task {index + 1}", tuple(sorted(set(labels))), images(labels), images(labels))
        method.grow(after if index else clip, task)
        method.end_task(after, task, [part(on, chunk) for chunk in which.split(7)], [])
    return method


def equal(result: Tensor, expected: Tensor) -> None:
    assert_close(result, expected, atol=1e-6 * expected.abs().max().item(), rtol=0)


def test_scores_are_the_sum_of_those_of_both_towers(clip: Clip) -> None:
    after = trained(clip, 0.1)
    method = led(clip, after, fusion_weight=1.0)
    before, adapted = at_once(clip, method, 0.5), at_once(after, method, 0.5)
    assert (before - adapted).abs().max() > 0.1 * before.abs().max(), "the towers are not the same"
    expected = before + adapted
    equal(scores(method, after), expected)
    lengths = [side.head([*range(6)]).to_logits for side in method.sides]
    assert method.classifier(after, (0, 1)).to_logits != pytest.approx(0)
    assert method.classifier(after, tuple(range(6))).to_logits == pytest.approx(sum(lengths) / 4)


def test_one_in_five_later_images_is_asked_before_it_is_added(clip: Clip) -> None:
    after = trained(clip, 3.0)
    method = led(clip, after)
    won, on = torch.zeros(len(WEIGHTS), len(WEIGHTS), dtype=torch.int64), pictures()
    for index in (1, 2):
        asked = TASKS[index][on.ids[TASKS[index]] % 5 == 0]
        there = torch.cat([*TASKS[:index], TASKS[index][on.ids[TASKS[index]] % 5 != 0]])
        known = on.labels[there].unique()
        twin, ours = (learn(make(NAME, shrinkage=0.5), tower, [there]) for tower in (clip, after))
        alone, more = scores(twin, clip, known.tolist())[asked], scores(ours, after, known.tolist())[asked]
        right = [known[(alone + w * more).argmax(1)] == on.labels[asked] for w in WEIGHTS]
        won += torch.tensor([[int((one & ~other).sum()) for other in right] for one in right])
    assert method.kept[WON].tolist() == won.tolist()
    assert won.any()
    assert method.counts.tolist() == method.twin.counts.tolist() == [8] * 6, "and is added then"


def test_the_weight_is_1_unless_another_is_right_more_often(clip: Clip) -> None:
    after = trained(clip, 0.1)
    method = led(clip, after)
    before, adapted = at_once(clip, method, 0.5), at_once(after, method, 0.5)
    won = torch.ones(len(WEIGHTS), len(WEIGHTS), dtype=torch.int64)
    for index, weight in enumerate(WEIGHTS):
        method.kept[WON] = won.clone()
        equal(scores(method, after), before + weight * adapted)
        # 0 is right about so many that this weight is wrong about, which is right about one that 0 is wrong about
        won[-1, index] = 6
        method.kept[WON] = won.clone()
        assert method.weight == weight, "5 < 2 sqrt(7)"
        won[-1, index] = 7
    assert [*method.deciding] == [method.twin], "0 is the pretrained tower alone"
    assert led(clip, after, fusion_weight=3.0).weight == 3
    alone = learn(make(NAME, shrinkage=0.5), clip, TASKS)
    equal(scores(led(clip, after, fusion_weight=0.0), after), scores(alone, clip))


@pytest.mark.parametrize("options", [{"fusion_weight": 0.0}, {}, {"twin": False}], ids=str)
def test_distances_come_from_the_tower_that_classifies_alone(options: dict[str, Any], clip: Clip) -> None:
    """At weight 0 the classifier reads the twin, and the sums are still those of the trained tower."""
    method = led(clip, trained(clip, 0.1), **options)
    assert usable(method, range(6)) == ("twin" in options)


def test_one_task_asks_nothing_and_without_a_twin_the_trained_tower_is_all(clip: Clip) -> None:
    after = trained(clip, 0.1)
    assert WON not in led(clip, after, [EVERYTHING]).kept
    assert len(led(clip, after, [EVERYTHING]).deciding) == 2
    alone = led(clip, after, twin=False)
    equal(scores(alone, after), at_once(after, alone, 0.5))
    assert make(NAME).twin is None, "nothing is trained"


def test_state_has_the_tower_and_what_was_asked(clip: Clip) -> None:
    after = trained(clip, 0.1)
    method, again = led(clip, after), led(after, clip)
    again.load_state_dict(saved(method.state_dict()))
    assert torch.equal(scores(again, after), scores(method, after))
    assert again.kept[WON].tolist() == method.kept[WON].tolist()
    tower = sum(tensor.nbytes for tensor in method.twin.tower.state_dict().values())
    width = len(method.gram)
    half = width * (width + 1) // 2
    assert method.state_dict()["gram"].shape == method.state_dict()["twin.gram"].shape == (half,)
    assert method.state_bytes() == 2 * 8 * (half + 6 * width + 6) + 8 * len(WEIGHTS) ** 2 + tower


def test_a_state_that_kept_all_of_g_is_read(clip: Clip) -> None:
    after = trained(clip, 0.1)
    method, again = led(clip, after), led(after, clip)
    state = saved(method.state_dict()) | {"gram": method.gram, "twin.gram": method.twin.gram}
    again.load_state_dict(state)
    assert torch.equal(scores(again, after), scores(method, after))


def test_a_run_stopped_and_resumed(tmp_path: Path, toy: str, photos: str) -> None:
    tokens = (f"data={photos}", f"model={toy}", f"method={NAME}", "method.adapt=finetune")
    tokens += ("train.lr=1e-3", "train.batch_size=2", "train.epochs=2")
    whole = run(tmp_path / "whole", *tokens)
    assert whole["optimizer_steps"] > 2
    assert run_for(tmp_path / "parts", 2, *tokens) is None
    assert timeless(run(tmp_path / "parts", *tokens)) == timeless(whole)
    other = run(tmp_path / "other", *tokens, "method.twin=false")
    assert other["state_bytes"] < whole["state_bytes"]


def stepwise(clip: Clip, after: Sequence[Clip], each: int, **options: Any) -> Any:
    """A method whose tower is another after each task, with so many exemplars of every class of the tasks before."""
    method, on = make(NAME, shrinkage=0.5, adapt="clip", **options), pictures()
    past = torch.zeros(0, dtype=torch.int64)
    for index, (which, tower) in enumerate(zip(TASKS, after, strict=False)):
        new, old = (images(on.labels.tolist()).select(rows.numpy()) for rows in (which, past))
        task = Task(index, f"task {index + 1}", tuple(sorted(set(new.labels.tolist()))), new, new)
        method.grow(after[index - 1] if index else clip, task)
        assert (method.learner(task) is not method) == (index == 0), (
            "as a dry run asks, before the task begins"
        )
        method.begin_task(after[index - 1] if index else clip, task, new + old)
        assert (method.learner(task) is not method) == (index == 0 or each >= 5), "who trains"
        classes = (which[on.labels[which] == label][:each] for label in task.classes)
        past = torch.cat([past, *classes])
        memory = [part(on, past)] if len(past) else []
        method.end_task(tower, task, (part(on, chunk) for chunk in which.split(7)), iter(memory))
    return method


def test_with_exemplars_the_trained_towers_sums_are_carried_from_the_twins(clip: Clip) -> None:
    after = [trained(clip, noise) for noise in (0.05, 0.1, 0.2)]
    method = stepwise(clip, after, each=6, fusion_weight=0.5)
    exact = learn(make(NAME, shrinkage=0.5), clip, TASKS)
    equal(method.twin.sums, exact.sums)
    equal(method.twin.gram, exact.gram)
    there = learn(make(NAME, shrinkage=0.5), after[-1], TASKS)
    means, true, before = (found.sums / 8 for found in (method, there, exact))
    assert (means - true)[:4].norm() < 0.7 * (before - true)[:4].norm(), "nearer than the pretrained tower's"
    expected = scores(exact, clip) + 0.5 * part_scores(method, after[-1])
    equal(scores(method, after[-1]), expected)
    again = stepwise(clip, after, each=6, fusion_weight=0.5)
    again.load_state_dict(saved(method.state_dict()))
    assert torch.equal(scores(again, after[-1]), scores(method, after[-1]))


def test_a_fixed_weight_holds_no_image_out(clip: Clip) -> None:
    after, on = [trained(clip, noise) for noise in (0.05, 0.1, 0.2)], pictures()
    fixed, chosen = (stepwise(clip, after, each=6, fusion_weight=weight) for weight in (0.5, "auto"))
    held = images(on.labels.tolist())
    assert fixed.trains_on(held).all()
    assert not chosen.trains_on(held).all()
    assert WON in chosen.kept
    assert WON not in fixed.kept
    assert WON not in led(clip, after[0], fusion_weight=0.5).kept


def test_only_the_tower_as_it_is_now_is_weighed(clip: Clip) -> None:
    """Exemplars are asked after every task that trains: their answers about an earlier tower do not add up."""
    after, on = [trained(clip, noise) for noise in (0.05, 0.1, 0.2)], pictures()
    method = stepwise(clip, after, each=6)
    method.kept[WON] += 1000
    method.follow(after[-1], [part(on, TASKS[2])], [part(on, torch.cat(TASKS[:2]))])
    assert method.kept[WON].max() <= 48


@pytest.mark.parametrize("weight", ["auto", 0.5])
def test_where_no_exemplar_is_left_new_images_alone_tell_of_the_move(weight: Any, clip: Clip) -> None:
    """As where the classes seen outgrow the budget in one task, which began with exemplars."""
    after, on = [trained(clip, noise) for noise in (0.05, 0.1)], pictures()
    method = stepwise(clip, [after[0]], each=6, fusion_weight=weight)
    method.follow(after[1], [part(on, TASKS[1])], [])
    equal(method.twin.sums, learn(make(NAME), clip, TASKS[:2]).sums)
    assert method.counts.tolist() == [8] * 4 + [0] * 2
    assert scores(method, after[1], range(4)).isfinite().all()


def test_the_learner_is_told_of_the_images_that_train_alone(
    clip: Clip, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[list[int]] = []
    monkeypatch.setattr(
        method_class("clip"), "begin_task", lambda self, clip, task, train: told.append(train.ids.tolist())
    )
    stepwise(clip, [trained(clip, noise) for noise in (0.05, 0.1, 0.2)], each=6)
    assert told[0] == TASKS[0].tolist(), "the first task holds none out"
    assert len(told) == 3
    assert all(image % 5 for ids in told[1:] for image in ids)


def test_a_method_around_it_trains_on_no_more_images(clip: Clip) -> None:
    held, around = images([0] * 20), make("wise_ft", loss=NAME, anchor="mean", options={"adapt": "clip"})
    around.inner.kept[FIRST] = torch.zeros(0, dtype=torch.int64)
    assert around.trains_on(held).sum() == 16


def part_scores(method: Any, clip: Clip) -> Tensor:
    """Scores of the trained tower alone."""
    with torch.no_grad():
        return method.nearest(clip, [*range(6)])(clip.normalise(pictures().images))


def test_weight_0_is_the_method_without_a_memory(clip: Clip) -> None:
    after = [trained(clip, noise) for noise in (0.05, 0.1, 0.2)]
    method = stepwise(clip, after, each=6, fusion_weight=0.0)
    assert torch.equal(
        scores(method, after[-1]), scores(learn(make(NAME, shrinkage=0.5), clip, TASKS, 7), clip)
    )


def test_fewer_exemplars_train_nothing_later(clip: Clip) -> None:
    after = trained(clip, 0.1)
    few, none = (stepwise(clip, [after] * 3, each) for each in (4, 0))
    assert torch.equal(scores(few, after), scores(none, after))
    assert few.kept[WON].tolist() == none.kept[WON].tolist()


def test_exemplars_are_counted_for_each_class_learned(clip: Clip) -> None:
    """Also for those that have none: here one of four."""
    after, on = [trained(clip, noise) for noise in (0.05, 0.1)], pictures()
    method, every = stepwise(clip, after, each=6), images(on.labels.tolist())
    new, past = every.select(TASKS[2].numpy()), by_class([0, 1, 2])[0]
    task = Task(2, "task 3", (4, 5), new, new)
    for count, enough in ((19, False), (20, True)):
        method.begin_task(after[1], task, new + every.select(past[:count].numpy()))
        assert method.following == enough


def test_carried_sums_have_a_shrinkage_of_their_own(clip: Clip) -> None:
    after = [trained(clip, noise) for noise in (0.05, 0.1, 0.2)]
    method, same = (stepwise(clip, after, each=6, follow_shrinkage=s) for s in (3.0, "gcv"))
    assert [side.shrinkage(side.cells()) for side in method.sides] == [0.5, 3.0]
    assert [side.shrinkage(side.cells()) for side in same.sides] == [0.5, 0.5], "that of the twin"
    first = led(clip, after[0], follow_shrinkage=3.0)
    assert first.shrinkage(first.cells()) == 0.5, "its sums are its own"


@pytest.mark.slow
def test_a_run_with_exemplars_stopped_and_resumed(tmp_path: Path, toy: str, photos: str) -> None:
    tokens = (f"data={photos}", f"model={toy}", f"method={NAME}", "method.adapt=gdro")
    tokens += ("train.lr=1e-3", "train.batch_size=2", "memory.per_class=1")
    once = run(tmp_path / "once", *tokens, "method.follow_from=none")
    tokens += ("method.follow_from=1",)
    whole = run(tmp_path / "whole", *tokens)
    assert run_for(tmp_path / "parts", whole["optimizer_steps"] - 1, *tokens) is None
    assert timeless(run(tmp_path / "parts", *tokens)) == timeless(whole)
    assert once["optimizer_steps"] < whole["optimizer_steps"], "later tasks train"


def test_exemplars_too_few_to_train_on_are_not_kept(tmp_path: Path, toy: str, photos: str) -> None:
    tokens = (f"data={photos}", f"model={toy}", f"method={NAME}", "method.adapt=gdro", "train.batch_size=2")
    none, few = (run(tmp_path / f"{each}", *tokens, f"memory.per_class={each}") for each in (0, 4))
    total = run(tmp_path / "total", *tokens, "memory.budget=9")
    assert few["memory_bytes"] == total["memory_bytes"] == 0
    assert total["matrix"] == none["matrix"]
    assert few["matrix"] == none["matrix"]
    assert run(tmp_path / "two", *tokens, "memory.per_class=2", "method.follow_from=2")["memory_bytes"] > 0
    cells = [resolve(load_config([*tokens, f"memory.per_class={each}"])) for each in (0, 4, 5)]
    assert len({content_key(cell) for cell in cells}) == 2, "a sweep runs the first two once"
