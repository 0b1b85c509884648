"""One set of checks on every file in methods/."""

from __future__ import annotations

import copy
import hashlib
import weakref
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from everclip import methods, plugins
from everclip.cli.app import main
from everclip.data.images import ImageSet
from everclip.data.loader import Batch, Phase
from everclip.data.scenario import Task
from everclip.errors import UserError
from everclip.methods.base.method import Method
from everclip.methods.base.registry import method_class, options_of
from everclip.models import zoo
from everclip.models.clip import Clip
from everclip.runs.run import Run
from everclip.training.optim import Update
from everclip.training.plan import Plan
from everclip.training.restore import grow, open_run
from tests import mixed
from tests.marks import slow_after
from tests.methods.stages import Course, batch
from tests.printed import printed
from tests.running import WIDE, configured, logged, run, run_for, timeless

EVERY = plugins.names("methods")
UNTRAINED = {"fecam", "layup", "multilayer_lda", "ncm", "rail", "ranpac", "ridge", "slda", "zero_shot"}
"""Methods that take no optimizer step with their default options."""
TRAINED = [name for name in EVERY if name not in UNTRAINED]
LOOKS = {"prototypes", "score"}
"""Phases that look at the images of a task and change no weight."""
NEED_EXEMPLARS = ["der_expand", "foster", "icarl", "memo"]
VARIANTS = [
    "finetune method.head=linear",
    "finetune method.head=linear method.head_init=zero_shot",
    "finetune method.classes=seen",
    "finetune train.captions=random",
    "gcl method.negatives=other_class method.temperature=learnable",
    "gcl method.negatives=multi_positive method.temperature=per_sample",
    "gcl method.surrogate=squared_hinge method.gamma_decay=2 method.sampling=class_balanced train.epochs=2",
    "gcl method.carry_over=false",
    "gdro method.dro=none method.surrogate=identity",
    "gdro method.dro=sagawa method.step_size=0.1",
    "gdro method.groups=class_origin method.sampling=class_balanced",
    "gdro method.groups=class_domain method.weight_clip=2 method.negatives=multi_positive",
    "gdro method.carry_over=false method.temperature=per_sample",
    "joint method.loss=gdro method.options.margin=0.1",
    "joint method.loss=finetune method.options.head=linear",
    "icarl method.loss=ce method.classifier=head",
    "icarl method.flip=true",
    "der_expand method.retrain_penalty=none method.head_init=zero_shot",
    "memo method.shared=trained tune=lora:2",
    "foster method.head_init=zero_shot tune=lora:2",
    "multilayer_lda method.adapt=clip method.feature=pooled",
    "ncm method.adapt=clip",
    "ewc method.fisher=true method.fisher_images=3 method.merge=online method.head=linear",
    "ewc method.fisher=empirical method.fisher_max=none tune=lora:2",
    "lwf method.reference=random",
    "lwf method.reference=current method.classes=seen memory.budget=0",
    "dark_er method.target=feature method.beta=0",
    "dark_er method.head=linear",
    "zscl method.reference_images=current method.reference_texts=old method.ensemble_every=2",
    "zscl method.reference_images=memory method.reference_texts=random tune=lora:2",
    "wise_ft method.anchor=previous method.loss=dark_er tune=lora:2",
    "wise_ft method.anchor=mean method.loss=ewc",
    "co2l method.objective=simclr method.probe_start=kept",
    "cassle method.objective=sogclr method.probe=mixed method.predictor=fresh",
    "cclis method.prototypes=text",
    "rapf method.shrink=true method.theta=2",
    "bofa method.visual=current method.scale=exp method.moments=sum",
    "clap4clip method.test=batch method.draws=2",
    "engine method.image_weight=0 method.running=true method.scale=exp",
    "proof method.text=code method.third=classes method.test=batch",
    "spu method.score=paper method.decay=all",
    "coda_prompt method.penalty=0.1 method.components=3",
    "mg_clip method.test=once method.rank=2",
    "moe_adapters method.experts=3 method.classes=seen",
    "cmoa method.head=linear method.separate=0.2 method.contrast=1 method.contrast_from=2",
]
"""Options that change what a method does; they pass the same checks as the defaults where that makes sense."""
STILL = [
    "multilayer_lda method.stages=[1] method.token=mean method.root=false method.mirror=false method.log_priors=true",
    "fecam method.covariance=common method.feature=pooled",
    "layup method.blocks=1",
    "ncm method.feature=pooled method.normalize=true",
    "rail method.kernel=dual method.names=all",
    "ranpac method.width=40 method.lam_choice=seen method.class_weights=true",
    "ridge method.expand=24 method.lam_unit=absolute",
    "ridge method.prior=text method.unseen=text",
    "slda method.eps=gcv",
    "vis method.hidden=0 method.width=64",
    "slda method.streaming=true method.log_priors=true",
]
"""Variants that train nothing: they are run, stopped and resumed."""
SLOW = [pytest.param(variant, marks=pytest.mark.slow) for variant in [*VARIANTS, *STILL]]


@pytest.fixture
def clip(toy: str) -> Clip:
    return zoo.load(toy)


def start(name: str, clip: Clip, toy: str, photos: str, *tokens: str) -> tuple[Method, Task, Batch]:
    """A method in its first task, with a batch of it."""
    name, *options = name.split()
    words = (f"data={photos}", f"model={toy}", f"method={name}", "scenario.tasks=2")
    plan = Plan.of(configured(*words, *options, *tokens))
    task = plan.tasks[0]
    grow(plan, clip, task)
    plan.method.begin_task(clip, task, task.train)
    images = torch.randint(
        0, 255, (8, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    part: ImageSet = task.train.select(np.arange(8))
    labels, domains, ids = (torch.from_numpy(column) for column in (part.labels, part.domains, part.ids))
    current = torch.ones(8, dtype=torch.bool)
    return plan.method, task, Batch(images, labels, domains, ids, current, second=images.flip(3))


def first_phase(method: Method, clip: Clip, task: Task, batch: Batch) -> Phase:
    """The first phase of a task that changes weights, begun, with what it trains taking gradients."""
    learner = method.learner(task)
    for phase in learner.phases(task):
        learner.begin_phase(clip, phase)
        for parameter in learner.trainable(clip, phase):
            parameter.requires_grad_(True)
        if phase.name not in LOOKS:
            return phase
        total(method, clip, batch, task, phase)
    raise AssertionError("no phase changes a weight")


def total(method: Method, clip: Clip, batch: Batch, task: Task, phase: Phase) -> torch.Tensor:
    method = method.learner(task)
    return torch.stack(list(method.loss(method.encode(clip, batch, phase), batch, phase).values())).sum()


def digest(module: torch.nn.Module) -> str:
    tensors = [
        value.numpy().tobytes() for value in module.state_dict().values() if isinstance(value, torch.Tensor)
    ]
    return hashlib.sha256(b"".join(tensors)).hexdigest()


@pytest.mark.parametrize("name", EVERY)
def test_catalogue_entry(name: str) -> None:
    text = plugins.docstring("methods", name)
    assert "https://" in text, "the docstring has the paper's link"
    assert len(text.splitlines()[0]) <= 120
    for part in ("Parameters  ", "State  ", "Passes  ", "Exemplars  "):
        assert f"\n{part}" in text or f"\n    {part}" in text, "what it costs is said"
    config = method_class(name).Config
    for key, field in config.model_fields.items():
        assert field.description, f"{key} has no help"
    assert config() == config.model_validate({})


@pytest.mark.parametrize("name", slow_after(len(TRAINED), [*TRAINED, *VARIANTS]))
def test_steps_lower_the_loss(name: str, clip: Clip, toy: str, photos: str) -> None:
    method, task, batch = start(name, clip, toy, photos)
    train = configured("train.lr=1e-3", "train.lr_text=1e-3", "train.warmup=0").train
    method = method.learner(task)
    for phase in method.phases(task):
        method.begin_phase(clip, phase)
        update = Update(clip, method, phase, train, 20)
        losses = []
        for _ in range(8):
            terms = method.loss(method.encode(clip, batch, phase), batch, phase)
            losses.append(sum(term.item() for term in terms.values()))
            update.step(terms, "here", [])
            method.after_step(clip)
        if phase.name not in LOOKS:
            assert losses[-1] < losses[0], phase.name


@pytest.mark.parametrize("name", slow_after(len(TRAINED), [*TRAINED, *VARIANTS]))
def test_state_round_trip_gives_a_bit_equal_next_step(name: str, clip: Clip, toy: str, photos: str) -> None:
    method, task, batch = start(name, clip, toy, photos)
    phase = first_phase(method, clip, task, batch)
    for _ in range(2):
        total(method, clip, batch, task, phase)
    again, _, _ = start(name, clip, toy, photos)
    first_phase(again, clip, task, batch)
    again.load_state_dict(copy.deepcopy(method.state_dict()))
    first, second = (total(one, clip, batch, task, phase) for one in (method, again))
    assert torch.equal(first, second)
    gradients = []
    for one, loss in ((method, first), (again, second)):
        weights = [*one.learner(task).trainable(clip, phase)]
        gradients.append(torch.autograd.grad(loss, weights, allow_unused=True))
    assert any(gradient is not None and gradient.any() for gradient in gradients[0])
    for one, other in zip(*gradients, strict=True):
        assert one is other is None or torch.equal(one, other)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("name", TRAINED)
def test_inputs_are_not_changed(name: str, clip: Clip, toy: str, photos: str) -> None:
    method, task, batch = start(name, clip, toy, photos)
    phase = first_phase(method, clip, task, batch)
    before = copy.deepcopy(batch)
    method = method.learner(task)
    features = method.encode(clip, batch, phase)
    values = {key: value.detach().clone() for key, value in features.items()}
    method.loss(features, batch, phase)
    for column in ("images", "labels", "domains", "ids", "current"):
        assert torch.equal(getattr(batch, column), getattr(before, column))
    for key, value in features.items():
        assert torch.equal(value, values[key])


@pytest.mark.parametrize("name", TRAINED)
@pytest.mark.parametrize("size", [1, 8])
def test_any_batch_gives_a_finite_loss_and_gradient(
    name: str, size: int, clip: Clip, toy: str, photos: str
) -> None:
    """In each phase, of what trains in it: a part of the model, or of the method beside it."""
    method, task, batch = start(name, clip, toy, photos)
    names = ("images", "labels", "domains", "ids", "current", "second")
    part = replace(batch, **{name: getattr(batch, name)[:size] for name in names})
    learner, reached = method.learner(task), False
    for phase in learner.phases(task):
        learner.begin_phase(clip, phase)
        trained = [parameter.requires_grad_() for parameter in learner.trainable(clip, phase)]
        loss = total(method, clip, part, task, phase)
        assert loss.isfinite()
        if loss.requires_grad:
            loss.backward()
        gradients = [parameter.grad for parameter in trained if parameter.grad is not None]
        assert all(gradient.isfinite().all() for gradient in gradients)
        reached = reached or bool(gradients)
        for parameter in trained:
            parameter.grad = None
    assert reached or size == 1, "a single image may have nothing to learn from"


@pytest.mark.parametrize("name", TRAINED)
def test_a_loss_takes_fp32_whatever_the_towers_compute_in(
    name: str, clip: Clip, toy: str, photos: str
) -> None:
    method, task, batch = start(name, clip, toy, photos)
    phase = first_phase(method, clip, task, batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features = method.learner(task).encode(clip, batch, phase)
    assert {value.dtype for value in features.values() if value.is_floating_point()} == {torch.float32}


@pytest.mark.parametrize("name", EVERY)
def test_no_picture_of_a_task_is_kept(name: str, toy: str, photos: str) -> None:
    """When it ends it is read once more, and may have more pictures than the memory takes."""
    words = (f"data={photos}", f"model={toy}", f"method={name}", "scenario.tasks=2")
    course = TwoViews.of(*words).learn(0)
    task = course.plan.tasks[0]
    batch = course.sample(task)
    alive: list[weakref.ref[torch.Tensor]] = []

    def batches() -> Iterator[Batch]:
        for _ in range(6):
            images = batch.images.clone()
            alive.append(weakref.ref(images))
            yield replace(batch, images=images)
            del images
            assert sum(each() is not None for each in alive) <= 2

    course.method.end_task(course.clip, task, batches(), ())


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAINED)
def test_bf16_stays_finite(name: str, tmp_path: Path, toy: str, photos: str) -> None:
    results = run(
        tmp_path / "run", f"data={photos}", f"model={toy}", f"method={name}", "train.precision=bf16"
    )
    assert 0 <= results["last"] <= 1
    assert all(value.isfinite().all() for value in zoo.load(str(tmp_path / "run")).state_dict().values())


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("budget", ["0", "12", pytest.param("all", marks=pytest.mark.slow)])
def test_class_incremental_run(name: str, budget: str, tmp_path: Path, toy: str, photos: str) -> None:
    tokens = (f"data={photos}", f"model={toy}", f"method={name}", f"memory.budget={budget}")
    if name in NEED_EXEMPLARS and budget == "0":
        with pytest.raises(UserError, match=f"^{name} needs exemplars: set memory.budget to 1 or more$"):
            run(tmp_path / "run", *tokens, "scenario.tasks=[3,2,1]")
        return
    results = run(tmp_path / "run", *tokens, "scenario.tasks=[3,2,1]")
    stages = 1 if name == "joint" else 3
    assert len(results["accuracy_after_stage"]) == len(results["zero_shot_after_stage"]) == stages
    assert (results["forgetting"] is None) == (stages == 1)
    assert (results["optimizer_steps"] == 0) == (name in UNTRAINED)
    if budget == "0":
        assert results["memory_bytes"] == 0
        plan, _, _ = open_run(tmp_path / "run")
        # Without exemplars nothing per sample may be left: what stays in tables is per class at most.
        assert sum(len(table) for table in plan.method.tables().values()) <= 2 * len(results["classes"])
    if name == "zero_shot":
        assert results["accuracy_after_stage"] == results["zero_shot_after_stage"]


class TwoViews(Course):
    """A course whose pictures come with a second view."""

    def sample(self, task: Task) -> Batch:
        found = super().sample(task)
        return replace(found, second=found.images.flip(3))


@pytest.mark.parametrize("name", [*EVERY, *SLOW])
@torch.no_grad()
def test_classes_to_come_change_no_score_of_those_learned(name: str, toy: str, photos: str) -> None:
    """After a task the next one is tested as well, by the same classifier."""
    name, *options = name.split()
    if name == "joint":
        pytest.skip("it learns all classes at once")
    with torch.enable_grad():
        words = (f"data={photos}", f"model={toy}", f"method={name}", "scenario.tasks=2")
        course = TwoViews.of(*words, *options).learn(0)
    (first, second), images = (task.classes for task in course.plan.tasks), batch([0] * 16).images
    few, more = (
        course.method.classifier(course.clip, labels).eval()(course.clip.normalise(images))
        for labels in (tuple(first), (*first, *second))
    )
    assert_close(more[:, : len(first)], few)


@pytest.mark.parametrize("name", EVERY)
@torch.no_grad()
def test_other_images_of_a_batch_change_no_score(name: str, toy: str, photos: str) -> None:
    """By default: two methods have an option that reads a test batch as their authors do."""
    with torch.enable_grad():
        words = (f"data={photos}", f"model={toy}", f"method={name}", "scenario.tasks=2")
        course = TwoViews.of(*words).learn(0)
    labels, images = tuple(course.seen), course.images()
    classifier = course.method.classifier(course.clip, labels).eval()
    alone = torch.cat([classifier(image[None]) for image in images])
    assert_close(classifier(images), alone, rtol=1e-4, atol=1e-5)
    assert not torch.isclose(alone[0], alone[1:]).all(), "which differ"


@pytest.mark.parametrize("name", EVERY)
@torch.no_grad()
def test_a_mean_is_subtracted_or_refused(name: str, tmp_path: Path, toy: str, photos: str) -> None:
    words = (f"data={photos}", f"model={toy}", f"method={name}", "scenario.tasks=2")
    with torch.enable_grad():
        course = TwoViews.of(*words).learn(0)
    labels, images = tuple(course.seen), course.images()
    before = course.method.classifier(course.clip, labels).eval()(images)
    course.clip.center_images(course.clip.encode_image(images).mean(0))
    after = course.method.classifier(course.clip, labels).eval()(images)
    assert torch.equal(before, after) != course.method.capabilities.centers
    if not course.method.capabilities.centers:
        with pytest.raises(UserError, match=f"method={name} .* mean from: use center=false"):
            run(tmp_path / "run", *words, "center=true")


def seeded(*tokens: str) -> bool:
    return Plan.of(configured(*tokens)).method.seeded


@pytest.mark.parametrize("name", EVERY)
def test_a_method_without_randomness_has_one_result(name: str, tmp_path: Path, toy: str, photos: str) -> None:
    tokens = (f"data={photos}", f"model={toy}", f"method={name}")
    random = {"rail", "ranpac"}  # whose projection is
    assert seeded(*tokens) == (name not in UNTRAINED or name in random)
    if not seeded(*tokens):
        first, second = (run(tmp_path / seed, *tokens, f"seed={seed}") for seed in "01")
        assert {**timeless(first), "seed": 0} == {**timeless(second), "seed": 0}
        adapts = "adapt" in method_class(name).Config.model_fields
        assert seeded(*tokens, "method.adapt=clip") if adapts else name == "zero_shot"


@pytest.mark.parametrize(
    ("variant", "expected"),
    [
        ("ridge method.expand=32", True),
        ("ridge method.lam_choice=task", True),
        ("ridge method.lam_choice=seen", True),
        ("ridge method.lam_choice=fixed", False),
        ("ranpac method.width=0", True),
        ("ranpac method.width=0 method.lam_choice=gcv", False),
        ("layup method.lam_choice=task", True),
        ("rail method.width=0", False),
        ("vis method.hidden=0 method.width=0", True),
        ("wise_ft method.loss=ranpac", True),
        ("wise_ft method.loss=ridge", False),
        ("wise_ft method.loss=ridge method.options.lam_choice=task", True),
        ("joint method.loss=ridge method.options.lam_choice=task", True),
    ],
)
def test_a_random_layer_and_images_held_out_are_random(
    variant: str, expected: bool, toy: str, photos: str
) -> None:
    assert seeded(f"data={photos}", f"model={toy}", *f"method={variant}".split()) == expected


@pytest.mark.parametrize("variant", [*slow_after(12, EVERY), *SLOW])
def test_domain_incremental_run(variant: str, tmp_path: Path, toy: str, domains: str) -> None:
    name, *options = variant.split()
    tokens = (f"data={domains}", f"model={toy}", f"method={name}", "scenario.kind=domain-incremental")
    results = run(tmp_path / "run", *tokens, *options)
    assert len(results["accuracy_after_stage"]) == (1 if name == "joint" else 3)
    assert results["classes"] == ["blue", "green", "red"]


@pytest.mark.slow
@pytest.mark.parametrize("name", EVERY)
def test_a_stream_whose_tasks_share_classes(name: str, tmp_path: Path, toy: str, photos: str) -> None:
    """The contract assumes no task borders: classes come again beside new ones, and a task may bring none."""
    tokens = (f"data={photos}", f"model={toy}", f"method={name}", "memory.budget=12")
    results = run(tmp_path / "run", *tokens, f"scenario.kind={mixed.KIND}")
    assert len(results["classes"]) == 6
    if name == "joint":
        return
    assert [len(row) for row in results["matrix"]] == [3, 3, 3]
    assert [row[1] for row in results["matrix"]] == [None, None, None]
    assert results["test_counts"] == [8, 0, 4]
    first, _, last = results["matrix"][2]
    assert results["last"] == pytest.approx((8 * first + 4 * last) / 12)


class Killed(Exception):
    """What a test ends a run with."""


@pytest.mark.slow
@pytest.mark.parametrize("variant", [*sorted(UNTRAINED), *SLOW])
def test_stopped_and_resumed_equals_not_stopped(
    variant: str, tmp_path: Path, toy: str, photos: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within a task where it takes steps, else between two.

    tests/training/test_checkpointer.py stops the methods that train, with their defaults, at every step.
    """
    name, *options = variant.split()
    tokens = (f"data={photos}", f"model={toy}", f"method={name}", *options)
    whole = run(tmp_path / "whole", *tokens)
    log = Run.log

    def ending(self: Run, event: str, **fields: object) -> None:
        log(self, event, **fields)
        if event == "stage" and fields["stage"] == 1:
            raise Killed

    if whole["optimizer_steps"] > 4:
        assert run_for(tmp_path / "parts", 4, *tokens) is None
    elif name != "joint":  # it has one stage only, so there is nothing to continue from
        with monkeypatch.context() as patch:
            patch.setattr(Run, "log", ending)
            with pytest.raises(Killed):
                run(tmp_path / "parts", *tokens)
    parts = run(tmp_path / "parts", *tokens)
    assert timeless(parts) == timeless(whole)
    assert digest(zoo.load(str(tmp_path / "parts"))) == digest(zoo.load(str(tmp_path / "whole")))
    assert logged(tmp_path / "parts") == logged(tmp_path / "whole")


@pytest.mark.parametrize("name", slow_after(6, TRAINED))
@pytest.mark.parametrize("frozen", [pytest.param("train.lr_text=0", marks=pytest.mark.slow), ""])
def test_what_is_frozen_stays_frozen(name: str, frozen: str, tmp_path: Path, toy: str, photos: str) -> None:
    tokens = [
        f"data={photos}",
        f"model={toy}",
        f"method={name}",
        "train.lr=1e-3",
        *([frozen] if frozen else []),
    ]
    run(tmp_path / "run", *tokens)
    before, after = zoo.load(toy), zoo.load(str(tmp_path / "run"))

    def moved(part: str) -> bool:
        pairs = zip(getattr(before, part)(), getattr(after, part)(), strict=True)
        return any(not torch.equal(one, other) for (_, one), (_, other) in pairs)

    method, task, _ = start(name, before, toy, photos)
    learner = method.learner(task)
    wanted = {id(p) for phase in learner.phases(task) for p in learner.trainable(before, phase)}

    def meant(part: str) -> bool:
        return any(id(parameter) in wanted for _, parameter in getattr(before, part)())

    assert moved("image_parameters") == meant("image_parameters")
    assert moved("text_parameters") == (meant("text_parameters") and not frozen)
    for (key, one), (_, other) in zip(before.named_buffers(), after.named_buffers(), strict=True):
        assert torch.equal(one, other), key


@pytest.mark.parametrize("name", EVERY)
def test_without_exemplars_a_method_runs_or_says_that_it_needs_them(
    name: str, toy: str, photos: str, domains: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", f"model={toy}", f"method={name}", "memory.budget=0", "--dry-run"]
    new_classes = [*words, f"data={photos}", "scenario.tasks=3"]
    refused = name in NEED_EXEMPLARS
    assert main(new_classes) == (2 if refused else 0)
    if refused:
        message = f"{name} needs exemplars: set memory.budget to 1 or more"
        assert capsys.readouterr().err.removeprefix("error: ").strip() == message
    fine = ["memory.budget=1", "memory.policy=all", "scenario.tasks=1", "defaults=1"]
    for other in fine if refused else ():
        same = [word for word in new_classes if word.split("=")[0] != other.split("=")[0]]
        assert main([*same, other]) == 0
    assert main([*words, f"data={domains}", "scenario.kind=domain-incremental"]) == 0


def test_a_wrapped_method_needs_exemplars_as_well(toy: str, photos: str) -> None:
    tokens = [f"data={photos}", f"model={toy}", "memory.budget=0"]
    with pytest.raises(UserError, match=r"^wise_ft needs exemplars: set memory.budget to 1 or more$"):
        Plan.of(configured(*tokens, "method=wise_ft", "method.anchor=mean", "method.loss=icarl"))
    assert Plan.of(configured(*tokens, "method=joint", "method.loss=icarl")).budget() == 0


ANCHORS = ("zero_shot", "previous", "mean")
FITTED = ["icarl", "co2l", "cassle", "cclis", "der_expand", "memo"]
"""Methods that fit their classifier to towers that have trained."""
AVERAGED = [name for name in TRAINED if name not in ("joint", "wise_ft", "zscl", *FITTED)]
"""Methods whose predictions can come from another average: all but these, and one that itself averages."""


@pytest.mark.parametrize(
    ("loss", "allowed"),
    [
        *((name, ANCHORS[1:]) for name in FITTED),
        *((f"{name} method.options.probe_epochs=2", ()) for name in ("co2l", "cassle", "cclis")),
        ("der_expand method.options.retrain_penalty=none", ()),
        ("ncm method.options.adapt=clip", ANCHORS[1:]),
        ("multilayer_lda method.options.adapt=gcl", ANCHORS[1:]),
        ("icarl method.options.classifier=head", ANCHORS),
        ("cclis method.options.prototypes=text", ANCHORS),
        ("memo method.options.balance=align", ANCHORS),
        ("ncm", ANCHORS),
    ],
)
def test_an_average_is_refused_to_what_was_fitted_to_other_weights(
    loss: str, allowed: tuple[str, ...]
) -> None:
    said = r'^method\.loss="\w+" with these options fits what it predicts with .*: use .*method\.'
    for anchor in ANCHORS:
        tokens = ["method=wise_ft", f"method.anchor={anchor}", *f"method.loss={loss}".split()]
        with nullcontext() if anchor in allowed else pytest.raises(UserError, match=said):
            methods.method_of(configured(*tokens))


@pytest.mark.parametrize("name", slow_after(6, AVERAGED))
def test_predictions_from_an_average_ask_for_nothing_fitted(name: str, toy: str, photos: str) -> None:
    """The classifier is the same, whether a task has ended with the average or with the learned weights."""
    narrow = ["method.options.width=64"] if f"method={name}" in WIDE else []
    course = Course.of(f"data={photos}", f"model={toy}", "method=wise_ft", f"method.loss={name}", *narrow)
    task, method = course.enter(0), course.method
    for phase in course.learner.phases(task):
        course.phase(task, phase)
    on, average, inner, found = course.sample(task), method._mixed(course.clip), method.inner, []
    for weights in (course.clip, average):
        method.inner = copy.deepcopy(inner)
        method.inner.end_task(weights, task, [on], [on])
        with torch.no_grad():
            found.append(method.inner.classifier(average, tuple(task.classes))(course.images()))
    assert_close(*found)


@pytest.mark.parametrize("name", EVERY)
def test_what_a_method_has_to_tune_are_options_of_its_own(name: str) -> None:
    config = method_class(name).Config
    for option, values in config.search.items():
        assert config.model_fields[option].default in values, f"{option}: the default is tried too"
        assert len(set(values)) == len(values) > 1
        for value in values:
            options_of(name, {option: "none" if value is None else value})


def test_constants_that_findings_ask_for_are_searched() -> None:
    def searched(name: str) -> set[str]:
        return set(method_class(name).Config.search)

    assert searched("gdro") >= {"margin", "omega", "weight_clip", "sampling", "tau", "strength"}
    assert method_class("ewc").Config.search["strength"] == (1e3, 1e5, 1e7)
    assert searched("foster") == {"beta_boost"}, "of both weights"
    assert searched("joint") == {"loss"}
    assert searched("ridge") == searched("zero_shot") == set()


def test_der_is_two_methods() -> None:
    with pytest.raises(ValueError, match=r"use der_expand .* or dark_er"):
        method_class("DER")


def test_a_method_from_outside_the_package(
    tmp_path: Path, toy: str, photos: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = (Path(methods.__file__).parent / "clip.py").read_text().replace("class ClipLoss", "class Mine")
    (tmp_path / "my_package").mkdir()
    (tmp_path / "my_package" / "__init__.py").write_text("")
    (tmp_path / "my_package" / "my_method.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    mine = run(tmp_path / "mine", f"data={photos}", f"model={toy}", "method=my_package.my_method")
    ours = run(tmp_path / "ours", f"data={photos}", f"model={toy}", "method=clip")
    assert mine["matrix"] == ours["matrix"]


def test_the_example_of_contributing_is_a_method(
    tmp_path: Path, clip: Clip, toy: str, photos: str, domains: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The printed file, as it stands, in a package outside of everclip; with the checks that every method passes."""
    (tmp_path / "example_package").mkdir()
    (tmp_path / "example_package" / "my_method.py").write_text(printed("MyMethod"))
    monkeypatch.syspath_prepend(tmp_path)
    name = "example_package.my_method"
    test_steps_lower_the_loss(name, copy.deepcopy(clip), toy, photos)
    test_state_round_trip_gives_a_bit_equal_next_step(name, copy.deepcopy(clip), toy, photos)
    test_inputs_are_not_changed(name, copy.deepcopy(clip), toy, photos)
    for budget in ("0", "12"):
        test_class_incremental_run(name, budget, tmp_path / budget, toy, photos)
    test_domain_incremental_run(name, tmp_path / "domains", toy, domains)
    test_stopped_and_resumed_equals_not_stopped(name, tmp_path / "stopped", toy, photos, monkeypatch)
    test_what_is_frozen_stays_frozen(name, "", tmp_path / "frozen", toy, photos)
