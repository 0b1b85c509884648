"""Co2L and CaSSLe: golden numbers through the methods, the frozen model, and the probe."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from everclip.data.loader import Batch
from everclip.data.scenario import Task
from everclip.losses import supcon
from everclip.methods.cassle import Cassle
from everclip.methods.co2l import Co2l
from everclip.methods.shared.probe import converged
from everclip.methods.shared.represent import TwoViews
from everclip.training.restore import open_run
from tests.losses.test_supcon import at, random
from tests.methods.plain import PROMPTS, batch
from tests.methods.stages import TIMM, Course, clip_with, rows, same, state
from tests.methods.stages import batch as pictures
from tests.running import run


class Views(Course):
    """A course whose batches have a second view, and no exemplars."""

    def sample(self, task: Task) -> Batch:
        on = pictures(list(task.classes) * 2)
        return replace(on, second=on.images.flip(3))


def course(name: str, model: str, data: str, *options: str) -> Views:
    lesson = Views.of(f"data={data}", f"model={model}", f"method={name}", *options)
    assert isinstance(lesson, Views)
    return lesson


def plain(method: TwoViews, features: dict[str, Tensor], on: Batch) -> dict[str, Tensor]:
    """The method's terms at these projections."""
    method.projector, method._teacher = nn.Identity(), (nn.Identity(), nn.Identity())
    return method.contrast(features, on)


def co2l(**options: Any) -> Co2l:
    return Co2l(Co2l.Config.model_validate(options), PROMPTS)


def cassle(**options: Any) -> Cassle:
    method = Cassle(Cassle.Config.model_validate(options), PROMPTS)
    method.predictor = nn.Identity()
    return method


@pytest.mark.parametrize(
    ("asymmetric", "golden"), [(True, 0.1494260457), (False, 0.2828275608)], ids=["new", "all"]
)
def test_golden_co2l(asymmetric: bool, golden: float) -> None:
    """methods.md 4.4, the four vectors as two views of two images."""
    on = replace(batch([0, 1]), current=torch.tensor([False, True]))
    terms = plain(co2l(asymmetric=asymmetric), {"image": at(0, 90, 20, 120)}, on)
    assert terms["contrast"].item() == pytest.approx(0.5 / 0.07 * golden, rel=1e-9)
    assert list(terms) == ["contrast"], "nothing to distil from"


def test_without_new_images_nothing_is_contrasted() -> None:
    on = replace(batch([0, 1]), current=torch.zeros(2, dtype=torch.bool))
    leaf = random(4, 0).requires_grad_()
    loss = plain(co2l(), {"image": leaf}, on)["contrast"]
    assert loss.item() == 0
    assert not torch.autograd.grad(loss, leaf)[0].any()


def test_co2l_distils_relations() -> None:
    z, past = random(6, 1), random(6, 2)
    for weight in (1.0, 0.25):
        terms = plain(co2l(distill=weight), {"image": z, "teacher": past}, batch([0, 1, 2]))
        assert_close(terms["relations"], weight * supcon.relation_distillation(past, z, 0.01, 0.2))
    assert list(plain(co2l(distill=0.0), {"image": z, "teacher": past}, batch([0, 1, 2]))) == ["contrast"]


def test_cassle_distils_by_contrast() -> None:
    """methods.md 4.6: at the teacher, and against loops."""
    z, past, on = torch.eye(6, dtype=torch.float64), random(6, 3), batch([0, 1, 2])
    closed = -math.log(math.exp(5) / (math.exp(5) + 5))
    terms = plain(cassle(distill=0.5), {"image": z, "teacher": z}, on)
    assert terms["distill"].item() == pytest.approx(0.5 * closed)
    found = random(6, 4)
    s, total = (found @ past.T / 0.2).tolist(), 0.0
    for i in range(6):
        total -= s[i][i] - math.log(sum(math.exp(s[i][j]) for j in range(6)))
        total -= s[i][i] - math.log(sum(math.exp(s[j][i]) for j in range(6)))
    terms = plain(cassle(), {"image": 3 * found, "teacher": past}, on)
    assert terms["distill"].item() == pytest.approx(total / 12)


@pytest.mark.parametrize("make", [co2l, cassle])
def test_objectives(make: Any) -> None:
    """A task loss is the same in either method; Co2L's factor is SupCon's alone."""
    z, on = random(6, 5), batch([0, 1, 0], ids=[7, 8, 9])
    labels = on.labels.repeat(2)
    loss = plain(make(objective="supcon", tau=0.2), {"image": z}, on)["contrast"]
    assert_close(loss, supcon.supervised(z, labels, 0.2) * (0.2 / 0.07 if make is co2l else 1))
    loss = plain(make(objective="simclr", tau=0.2), {"image": z}, on)["contrast"]
    assert_close(loss, supcon.simclr(z[:3], z[3:], 0.2))
    method = make(objective="sogclr", tau=0.2, gamma=0.6)
    log_u, seen = torch.zeros(3, dtype=torch.float64), torch.zeros(3, dtype=torch.bool)
    for _ in range(2):
        loss = plain(method, {"image": z}, on)["contrast"]
        _, value, log_u = supcon.sogclr(z[:3], z[3:], log_u, seen, 0.2, 0.6)
        assert_close(loss, value, rtol=1e-6, atol=1e-6)  # the average is kept in fp32
        held, seen = method.estimators.get([7, 8, 9])
        assert seen.all()
        assert_close(held[:, 0], log_u.float())
    method.drop(torch.tensor([8]).numpy())
    assert method.estimators.ids().tolist() == [7, 9]


def test_golden_sogclr_through_a_method() -> None:
    """methods-more.md 11.3."""
    method = cassle(objective="sogclr", tau=0.5)
    terms = plain(method, {"image": at(0, 90, 20, 80)}, batch([0, 1]))
    assert terms["contrast"].item() == pytest.approx(-1.3823798790, abs=1e-10)
    assert method.estimators.get([0, 1])[0].exp().flatten().tolist() == pytest.approx([1.7788467002] * 2)


@pytest.mark.parametrize("name", ["co2l", "cassle", "cclis"])
def test_the_frozen_model_is_that_of_the_task_before(name: str, toy: str, photos: str) -> None:
    lesson = course(name, toy, photos)
    method, clip = lesson.method, lesson.clip
    task = lesson.enter(0)
    phase = method.phases(task)[0]
    first = lesson.step(lesson.update(phase), lesson.sample(task), phase)
    assert list(first) == ["contrast"], "the first task has nothing to distil"
    lesson.leave(task)
    task = lesson.enter(1)
    tower, projector = method._teacher
    before = state(tower), state(projector)
    assert same(before[0], state(clip.model.visual))
    assert same(before[1], state(method.projector))
    update = lesson.update(phase)
    assert all(len(lesson.step(update, lesson.sample(task), phase)) == 2 for _ in range(3))
    assert same(before[0], state(tower))
    assert same(before[1], state(projector)), "the frozen model stays"
    assert not same(before[0], state(clip.model.visual))
    assert not same(before[1], state(method.projector)), "while the model learns"
    assert not [key for key in method.state_dict() if "teacher" in key]
    lesson.leave(task)
    assert method._teacher == ()


def test_the_probe_trains_the_head_alone(toy: str, photos: str) -> None:
    lesson = course("co2l", toy, photos, "method.probe_lr=0.01", "method.probe_epochs=7")
    task = lesson.enter(0)
    represent, probe = lesson.method.phases(task)
    assert (represent.name, represent.views, represent.data, represent.epochs) == (
        "represent",
        2,
        "mixed",
        None,
    )
    assert (probe.name, probe.views, probe.sampler, probe.epochs) == ("probe", 1, "class_repeated", 7)
    lesson.phase(task, represent)
    update, on = lesson.update(probe), lesson.sample(task)
    rates = [(group["base"], group["weight_decay"]) for group in update.optimizer.param_groups]
    assert rates == [(0.01, 0.0)] * 2
    assert not lesson.method.encode(lesson.clip, on, probe)["image"].requires_grad
    before, head = (state(lesson.clip), state(lesson.method.projector)), state(lesson.method.head)
    losses = [lesson.step(update, on, probe)["probe"] for _ in range(4)]
    assert losses[-1] < losses[0]
    assert same(before[0], state(lesson.clip))
    assert same(before[1], state(lesson.method.projector))
    assert not same(head, state(lesson.method.head))


def balanced_loss(scores: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy whose mean is over classes, of the means over their images."""
    each = torch.nn.functional.cross_entropy(scores, target, reduction="none")
    return torch.stack([each[target == label].mean() for label in target.unique()]).mean()


def test_the_probe_converges_with_classes_counting_alike() -> None:
    """Classes of 60, 30 and 20 images that overlap: the gradient of the balanced loss is gone, from any start."""
    random = torch.Generator().manual_seed(0)
    target = torch.arange(3).repeat_interleave(torch.tensor([60, 30, 20]))
    features = 0.5 * torch.randn(3, 4, generator=random)[target] + torch.randn(110, 4, generator=random)
    found = []
    for seed in (1, 2):
        start = torch.randn(3, 4, generator=torch.Generator().manual_seed(seed))
        weight, bias = (
            part.requires_grad_() for part in converged(features, target, start, torch.zeros(3), 0.0)
        )
        loss = balanced_loss(features @ weight.T + bias, target)
        loss.backward()
        assert weight.grad is not None
        assert weight.grad.abs().max() < 0.01
        found.append(loss.item())
    assert found[0] == pytest.approx(found[1], rel=0.02)
    separable = torch.eye(3)[target]
    weight, bias = converged(separable, target, torch.zeros(3, 3), torch.zeros(3), 0.0)
    assert balanced_loss(separable @ weight.T + bias, target) < 0.01


@pytest.mark.parametrize("penalty", [0.1, 3.0])
def test_the_probes_penalty_is_that_of_a_logistic_regression(penalty: float) -> None:
    """At the solution of n images the gradient of the balanced loss is -penalty / n times the weights; so classes that
    can be told apart have a solution too, and a larger penalty has smaller weights."""
    random = torch.Generator().manual_seed(0)
    target = torch.arange(3).repeat_interleave(10)
    features = torch.nn.functional.normalize(
        torch.eye(3, 5)[target] + 0.2 * torch.randn(30, 5, generator=random)
    )
    found = converged(features, target, torch.zeros(3, 5), torch.zeros(3), penalty)
    weight, bias = (part.requires_grad_() for part in found)
    balanced_loss(features @ weight.T + bias, target).backward()
    assert weight.grad is not None
    assert torch.allclose(weight.grad, -penalty / 30 * weight, atol=2e-3)
    stronger, _ = converged(features, target, torch.zeros(3, 5), torch.zeros(3), 10 * penalty)
    assert stronger.norm() < 0.8 * weight.norm()


@pytest.mark.parametrize("name", ["co2l", "cassle", "cclis"])
def test_the_probe_is_learned_on_kept_features_of_one_pass(name: str, toy: str, photos: str) -> None:
    lesson = course(name, toy, photos, "method.probe_penalty=0")
    task = lesson.enter(0)
    (represent,) = lesson.method.phases(task)
    lesson.phase(task, represent)
    before = state(lesson.clip)
    on = lesson.sample(task)
    lesson.leave(task)
    assert same(before, state(lesson.clip))
    with torch.no_grad():
        scores = lesson.method.classifier(lesson.clip, task.classes)(lesson.clip.normalise(on.images))
    target = torch.tensor([task.classes.index(label) for label in on.labels.tolist()])
    assert balanced_loss(scores, target) < 0.05, "in five epochs on so few images it hardly moves"


@pytest.mark.parametrize("start", ["fresh", "kept"])
def test_where_rows_begin(start: str, toy: str, photos: str) -> None:
    """Rows without images are never touched, those with images begin anew or as they were."""
    tokens = (f"method.probe_start={start}", "method.head_init=zero_shot", "method.probe_epochs=1")
    lesson = course("cassle", toy, photos, *tokens)
    method = lesson.learn(0).method
    old = list(lesson.plan.tasks[0].classes)
    learned = rows(method.head, old)
    lesson.learn(1)
    assert torch.equal(rows(method.head, old), learned), "no image of theirs came"
    again = replace(lesson.plan.tasks[0], index=2)
    method.begin_task(lesson.clip, again, again.train)
    with torch.no_grad():
        names = [lesson.plan.prompts.names[label] for label in old]
        text = lesson.clip.class_embeddings(names, lesson.plan.prompts.templates)
    assert_close(rows(method.head, old), text if start == "fresh" else learned)


@pytest.mark.parametrize("name", ["co2l", "cclis", "cassle method.probe=mixed"])
def test_rows_stay_where_the_memory_has_just_lost_their_classes(name: str, toy: str, photos: str) -> None:
    name, *options = name.split()
    lesson = course(name, toy, photos, *options).learn(0)
    method, old = lesson.method, list(lesson.plan.tasks[0].classes)
    learned = rows(method.head, old)
    assert learned.any()
    task = lesson.enter(1)
    lesson.phase(task, *lesson.learner.phases(task))
    method.end_task(lesson.clip, task, [lesson.sample(task)], [])
    assert torch.equal(rows(method.head, old), learned)
    assert rows(method.head, list(task.classes)).any(1).all()


def test_cassle_keeps_exemplars_for_the_probe_alone_if_at_all(toy: str, photos: str) -> None:
    for options, used, data in (([], False, "new"), (["method.probe=mixed"], True, "mixed")):
        lesson = course("cassle", toy, photos, *options)
        assert lesson.method.capabilities.uses_memory is used
        assert lesson.plan.budget() == (12 if used else 0)
        assert [phase.data for phase in lesson.method.phases(lesson.plan.tasks[1])] == ["new"]
        assert lesson.method.probe_data == data
        lesson = course("cassle", toy, photos, *options, "method.probe_epochs=2")
        assert [phase.data for phase in lesson.method.phases(lesson.plan.tasks[1])] == ["new", data]


@pytest.mark.parametrize("start", ["kept", "fresh"])
def test_the_predictor_goes_on_or_starts_anew(start: str, toy: str, photos: str) -> None:
    lesson = course("cassle", toy, photos, f"method.predictor={start}", "method.hidden=8").learn(0, 1)
    before, projector = state(lesson.method.predictor), state(lesson.method.projector)
    lesson.enter(2)
    assert same(before, state(lesson.method.predictor)) == (start == "kept")
    assert same(projector, state(lesson.method.projector))


def test_the_predictor_has_no_running_values(toy: str, photos: str) -> None:
    """Its batch norm is a function of the batch, whatever mode it is in: a resumed run has nothing to restore."""
    method = course("cassle", toy, photos, "method.hidden=8").learn(0).method
    assert not [key for key in state(method.predictor) if "running" in key]
    rows_ = torch.randn(6, 128)
    assert torch.equal(method.predictor.eval()(rows_), method.predictor.train()(rows_))


@pytest.mark.parametrize("name", ["co2l", "cassle", "cclis"])
@pytest.mark.parametrize("tower", ["ResNet", "timm ResNet"])
def test_convolutional_towers(
    name: str, tower: str, photos: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("run")
    vision = {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "head_width": 32}
    if tower == "timm ResNet":
        vision = TIMM | {"timm_model_name": "test_resnet"}
    model = clip_with(folder / "model", **vision)
    results = run(folder / "out", f"data={photos}", f"model={model}", f"method={name}")
    assert 0 <= results["last"] <= 1
    _, _, stage = open_run(folder / "out")
    assert stage == 2


def test_cassle_without_a_predictor_compares_projections_themselves(toy: str, photos: str) -> None:
    lesson = course("cassle", toy, photos, "method.predictor=none").learn(0)
    assert isinstance(lesson.method.predictor, nn.Identity)
    lesson.enter(1)
    learners = {id(parameter) for parameter in lesson.method.learners(lesson.clip)}
    assert {id(parameter) for parameter in lesson.method.projector.parameters()} <= learners
    assert not list(lesson.method.predictor.parameters())
