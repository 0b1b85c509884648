"""What a run will compute: counted by hand for small cases, and against a run's own counts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from everclip import plugins
from everclip.config import Config, load_config
from everclip.models.catalogue import costs
from everclip.runs.resolve import resolve
from everclip.training import estimate
from everclip.training.estimate import Sizes, Work
from tests.pictures import image_folder
from tests.running import run
from tests.toy import toy_clip

THREE = Sizes((40, 40, 40), (10, 10, 10), (2, 4, 6), 3)


def config(*tokens: str) -> Config:
    return resolve(load_config(["train.epochs=2", "train.batch_size=8", *tokens]))


def test_gcl_by_hand() -> None:
    found = estimate.work(config("method=gcl", "memory.budget=12"), THREE)
    # two epochs of 40, 40 + 12, 40 + 12 images; the memory holds 6 of each of 2 classes, then 3 of each of 4
    assert found.trained == 2 * (40 + 52 + 52)
    assert found.steps == 2 * (5 + 7 + 7)
    assert found.memory == 12
    # the pretrained model on all; then two, three, three tasks
    assert found.forward == 30 + 20 + 30 + 30
    assert found.prompts == 3 * (6 + 4 + 6 + 6)
    # captions: the classes at hand, fewer than the batch
    assert found.trained_prompts == 2 * (5 * 2 + 7 * 4 + 7 * 6)


def test_without_memory_a_batch_holds_the_tasks_own_classes() -> None:
    assert estimate.work(config("method=gdro", "memory.budget=0"), THREE).trained_prompts == 2 * 5 * 2 * 3


@pytest.mark.parametrize(
    ("method", "trained", "forward"),
    [
        # the pretrained model, and the tests after each task: 110 images
        ("zero_shot", 0, 110),
        ("ncm", 0, 110 + 120),
        ("icarl", 240, 110 + 2 * 80 + 120),
        ("foster", 80 + 2 * 160, 110 + 3 * 160 + 120),
        # 1, 2, 3 extractors, tests of 20, 30, 30 images; of the second and third task a head learned anew
        ("der_expand", 240, 30 + 20 * 1 + 30 * 2 + 30 * 3 + 80 * (0 + 1 + 2) + 120 + 40 * (2 + 3)),
    ],
)
def test_what_other_methods_take(method: str, trained: float, forward: float) -> None:
    found = estimate.work(config(f"method={method}", "memory.budget=0"), THREE)
    assert (found.trained, found.forward) == (trained, forward)


def test_a_head_that_is_learned_anew_reads_all_extractors() -> None:
    words = ("method=der_expand", "memory.budget=0")
    anew, not_ = (
        estimate.work(config(*words, f"method.balance={word}"), THREE) for word in ("retrain", "none")
    )
    assert anew.forward - not_.forward == 40 * (2 + 3), "two and three extractors"


def test_joint_learns_all_at_once() -> None:
    found = estimate.work(config("method=joint", "method.loss=gcl"), THREE)
    assert (found.trained, found.forward, found.memory) == (240, 60, 0)
    assert estimate.inner(config("method=joint", "method.loss=gcl")) == ("gcl", {})


def test_steps_in_place_of_epochs() -> None:
    found = estimate.work(resolve(load_config(["method=gcl", "train.steps=7", "train.batch_size=8"])), THREE)
    assert (found.steps, found.trained) == (21, 168)


@pytest.mark.parametrize("method", plugins.names("methods"))
def test_every_method_of_the_package_says_what_it_asks_of_the_towers(method: str) -> None:
    assert estimate.counted(config(f"method={method}"))


def test_steps_are_those_of_a_run(tmp_path: Path) -> None:
    root = image_folder(tmp_path / "pictures", {"train": 9, "test": 3}, classes=6)
    words = [f"data=imagefolder:{root}", f"model=local-dir:{toy_clip(tmp_path)}", "image_size=auto"]
    words += ["scenario.tasks=3", "method=gdro", "memory.budget=6", "train.epochs=2", "train.batch_size=4"]
    results = run(tmp_path / "run", *words)
    found = estimate.work(resolve(load_config(words)), Sizes((18,) * 3, (6,) * 3, (2, 4, 6), 1))
    assert (results["optimizer_steps"], results["samples_seen"]) == (found.steps, found.trained)


def test_published_sizes() -> None:
    found = estimate.published(resolve(load_config(["domainnet"])))
    assert found is not None
    assert found.train == (120_906, 120_750, 50_416, 48_212, 36_023, 33_525)
    assert (sum(found.test), found.seen, found.templates) == (176_743, (345,) * 6, 1)
    found = estimate.published(resolve(load_config(["cifar100"])))
    assert found == Sizes((5000,) * 10, (1000,) * 10, tuple(range(10, 101, 10)), 18)
    found = estimate.published(resolve(load_config(["imagenet", "templates=simple"])))
    assert found is not None
    assert (found.templates, found.seen[-1]) == (7, 1000)
    assert estimate.published(resolve(load_config([]))) is None


def test_a_pass_of_cifar_takes_what_the_literature_says() -> None:
    """50,000 images of ViT-B/16 forward and backward at 400 TFLOP/s: about 13 seconds."""
    model = costs("ViT-B-16:openai")
    assert model is not None
    assert Work(trained=50_000).operations(model) / 400e12 == pytest.approx(13, abs=0.5)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (10, "less than a minute"),
        (60, "about a minute"),
        (600, "10 minutes"),
        (9000, "2.5 hours"),
        (90000, "25 hours"),
    ],
)
def test_durations(seconds: float, words: str) -> None:
    assert estimate.duration(seconds) == words


def test_memory_grows_with_the_batch_and_with_frozen_copies() -> None:
    model = costs("ViT-B-16:openai")
    assert model is not None
    gcl = resolve(load_config(["cifar100", "method=gcl"]))
    sizes = estimate.published(gcl)
    assert sizes is not None
    small, large = (estimate.device_bytes(gcl, model, sizes, batch) for batch in (32, 256))
    assert small > 4 * 4 * model.parameters
    assert large > small
    fp32 = resolve(load_config(["cifar100", "method=gcl", "train.precision=fp32"]))
    assert estimate.device_bytes(fp32, model, sizes) > large
    der, icarl = (resolve(load_config(["cifar100", f"method={name}"])) for name in ("der_expand", "icarl"))
    towers = estimate.device_bytes(der, model, sizes) - estimate.device_bytes(icarl, model, sizes)
    assert towers == pytest.approx(8 * 4 * model.image_parameters)
    zero_shot = resolve(load_config(["cifar100/zero_shot"]))
    assert estimate.device_bytes(zero_shot, model, sizes) < small
    assert estimate.disk_bytes(der, model, 10) > 3 * estimate.disk_bytes(gcl, model, 10)
    ranpac, ridge = (config(f"method={name}") for name in ("ranpac", "ridge"))
    sums = estimate.disk_bytes(ranpac, model, 10) - estimate.disk_bytes(ridge, model, 10)
    assert sums == (ranpac.checkpoint.keep + 1) * 8 * 10_000**2


def test_what_is_frozen_and_kept_is_not_counted() -> None:
    model = costs("ViT-B-32:openai")
    assert model is not None
    work = Work(trained=100, forward=40, trained_prompts=30, once=20)
    image, text = 100 * model.image_flops, 30 * model.text_flops
    tested, once = 40 * model.image_flops, 20 * model.image_flops
    counts = {
        "": 3 * image + tested + 3 * text,
        "tune=lora:4": 2 * image + tested + 2 * text,
        "tune=image": 3 * image + tested,
        "tune=text": image + tested + 3 * text,
        "tune=text train.augment=none": once + 3 * text,
        "tune=top:3": (1 / 4 * 3 + 3 / 4) * image + tested + 1 / 4 * 3 * text,
        "tune=top:3 cache.views=4": 1 / 4 * 3 * image + 1 / 4 * tested + 3 / 4 * once + 1 / 4 * 3 * text,
        "tune=top:3 cache.views=4 cache.trunk=off": (1 / 4 * 3 + 3 / 4) * image + tested + 1 / 4 * 3 * text,
    }
    for words, operations in counts.items():
        found = work.operations(model, resolve(load_config(["model=ViT-B-32:openai", *words.split()])))
        assert found == pytest.approx(operations), words


@pytest.mark.parametrize(
    ("words", "pictures"),
    [
        # 30 test images and 120 to learn; both mirror images; two views, as there are two epochs
        ("method=slda", 30 + 120),
        ("method=multilayer_lda", 2 * 30 + 2 * 120),
        ("method=finetune tune=top:1 cache.views=4", 30 + 2 * 120),
        ("method=icarl tune=top:1 cache.views=4", 30 + 2 * 120 + 120),
        ("method=icarl tune=top:1 train.augment=none", 30 + 120),
    ],
)
def test_a_frozen_part_that_is_kept_sees_each_picture_once(words: str, pictures: float) -> None:
    assert estimate.work(config("memory.budget=12", *words.split()), THREE).once == pictures


@pytest.mark.parametrize(
    ("budget", "trained"),
    [
        (0, 2 * 40),
        (12, 2 * (40 + 52)),  # six of each of two classes, then three of each of four, where it needs five
        (20, 2 * (40 + 60 + 60)),
    ],
)
def test_adapt_trains_the_first_task_and_goes_on_with_enough_exemplars(budget: int, trained: float) -> None:
    found = estimate.work(
        config("method=multilayer_lda", "method.adapt=finetune", f"memory.budget={budget}"), THREE
    )
    assert (found.trained, found.memory) == (trained, budget)
    assert found.forward == 30 + 4 * 120 + 4 * (20 + 30 + 30), "two towers, both mirror images"
    assert found.trained_prompts > 0
    assert estimate.work(config("method=ridge", "method.adapt=clip"), THREE).trained == 2 * 40


def test_a_plan_says_how_many_exemplars_tuning_keeps() -> None:
    found = estimate.work(config("method=gcl", "memory.budget=12"), replace(THREE, budget=8))
    assert (found.trained, found.memory) == (2 * (40 + 48 + 48), 8)


def test_memory_of_a_part_that_trains() -> None:
    model = costs("ViT-B-32:openai")
    assert model is not None
    sizes = Sizes((900,) * 2, (100,) * 2, (10, 20))
    full, top = (
        estimate.device_bytes(resolve(load_config(["model=ViT-B-32:openai", *words])), model, sizes)
        for words in ([], ["tune=top:2", "cache.views=4"])
    )
    assert 4 * model.parameters < top < 0.5 * full


def test_shares_are_the_work_task_by_task() -> None:
    found = config("method=gcl", "memory.budget=12", "model=lite")
    whole = costs("lite", found.image_size)
    assert whole is not None
    shares = estimate.shares(found, THREE)
    pretrained = Work(forward=30, prompts=18).operations(whole)
    assert len(shares) == 3
    assert sum(map(sum, shares)) + pretrained == pytest.approx(
        estimate.work(found, THREE).operations(whole, found)
    )
    assert shares[0][0] < shares[1][0], "the memory is learned too"
    assert len(estimate.shares(config("method=joint", "method.loss=gcl"), THREE)) == 1
