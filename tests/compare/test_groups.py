"""Which runs are averaged, and which only stand side by side."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from everclip.compare import verdict
from everclip.compare.groups import Setting, differing, settings
from everclip.errors import UserError
from everclip.metrics.stats import interval
from everclip.runs.find import find_runs
from everclip.runs.read import read_run
from tests.report.synthetic import write_run

SMALL: dict[str, Any] = {"tasks": 2, "per_task": 3, "steps": 4}


def sorted_out(folder: Path) -> list[Setting]:
    """The settings of all runs in a folder."""
    return settings(read_run(path) for path in sorted(folder.iterdir()))


def change(run: Path, **results: Any) -> None:
    """Change keys of a run's results.json."""
    known = json.loads((run / "results.json").read_text())
    (run / "results.json").write_text(json.dumps(known | results))


def test_seeds_of_one_config_are_averaged(tmp_path: Path) -> None:
    last = [write_run(tmp_path / f"s{seed}", seed=seed, **SMALL)["last"] for seed in range(3)]
    (setting,) = sorted_out(tmp_path)
    (group,) = setting.groups
    assert (group.method, group.memory, group.variant) == ("gdro", 200, "")
    assert [run.value("seed") for run in group.runs] == [0, 1, 2]
    assert group.interval("last") == interval(last)
    assert group.curve[-1].mean == pytest.approx(sum(last) / 3)
    assert group.interval("tuned_on") is None


def test_memory_sizes_of_a_method_share_a_line_although_each_has_its_own_rate(tmp_path: Path) -> None:
    for memory, rate in ((0, 1e-4), (200, 3e-4), (1000, 3e-4)):
        write_run(tmp_path / f"m{memory}", memory=memory, options=f"tau = {rate}\n", **SMALL)
    write_run(tmp_path / "other", memory=0, method="gcl", options="", **SMALL)
    (setting,) = sorted_out(tmp_path)
    assert [(g.series, g.memory) for g in setting.groups] == [
        ("gcl", 0), ("gdro", 0), ("gdro", 200), ("gdro", 1000)
    ]  # fmt: skip
    assert setting.memories == [0, 200, 1000]
    assert [g.look for g in setting.groups] == [0, 1, 1, 1]


def test_options_that_differ_at_one_memory_size_make_groups(tmp_path: Path) -> None:
    for margin in (0.1, 0.3):
        for seed in (0, 1):
            write_run(tmp_path / f"{margin}_{seed}", seed=seed, options=f"margin = {margin}\n", **SMALL)
    (setting,) = sorted_out(tmp_path)
    assert [(g.label, len(g.runs)) for g in setting.groups] == [
        ("gdro, margin 0.1, memory 200", 2), ("gdro, margin 0.3, memory 200", 2)
    ]  # fmt: skip


def test_what_each_variant_was_tuned_in_does_not_tell_them_apart(tmp_path: Path) -> None:
    for memory, margin, tau in ((0, 0.1, 0.02), (0, 0.3, 0.05), (200, 0.3, 0.1)):
        options = f"margin = {margin}\ntau = {tau}\n"
        write_run(tmp_path / f"{memory}_{margin}", memory=memory, options=options, **SMALL)
        change(tmp_path / f"{memory}_{margin}", tuned_on=f"photos, tasks 1-2; method.tau {tau}: 0.5")
    (setting,) = sorted_out(tmp_path)
    assert [(g.series, g.memory) for g in setting.groups] == [
        ("gdro, margin 0.1", 0), ("gdro, margin 0.3", 0), ("gdro, margin 0.3", 200)
    ]  # fmt: skip
    # two searches of one variant stay apart
    write_run(tmp_path / "again", memory=200, options="margin = 0.3\ntau = 0.2\n", **SMALL)
    change(tmp_path / "again", tuned_on="photos, tasks 1-2; method.tau 0.2: 0.5")
    (setting,) = sorted_out(tmp_path)
    assert len({g.label for g in setting.groups}) == len(setting.groups) == 4


def test_how_many_tasks_a_search_would_see_does_not_tell_runs_apart(tmp_path: Path) -> None:
    for seed, tasks in enumerate((2, 10)):
        run = tmp_path / str(seed)
        write_run(run, seed=seed, **SMALL)
        text = (run / "config.toml").read_text()
        (run / "config.toml").write_text(
            text.replace("[scenario]\n", f"[scenario]\nvalidation_tasks = {tasks}\n")
        )
    (setting,) = sorted_out(tmp_path)
    assert [len(group.runs) for group in setting.groups] == [2]
    for seed in (0, 1):
        change(tmp_path / str(seed), validation=0.5)
    assert differing(sorted_out(tmp_path)) == ["validation tasks"]


@pytest.mark.parametrize(
    ("changed", "word"),
    [
        ({"model": "ViT-B-32:openai"}, "model"),
        ({"image_size": 224}, "image size"),
        ({"templates": ["a drawing of a {}."]}, "templates"),
        ({"test_counts": [90, 89]}, "test counts"),
        ({"validation": 0.4}, "validation"),
        ({"smoke": True}, "smoke"),
        ({"scenario": "domain-incremental"}, "scenario"),
    ],
)
def test_what_cannot_be_compared_is_a_setting_of_its_own(
    tmp_path: Path, changed: dict[str, Any], word: str
) -> None:
    for name in ("a", "b"):
        write_run(tmp_path / name, seed=0 if name == "a" else 1, **SMALL)
    change(tmp_path / "b", **changed)
    first, second = sorted_out(tmp_path)
    assert [len(first.runs), len(second.runs)] == [1, 1]
    assert differing([first, second]) == [word]
    assert first.name != second.name


@pytest.mark.parametrize(
    ("results", "config"),
    [
        ({"model": "ViT-B-32:openai"}, {}),
        ({"templates": ["a drawing of a {}."]}, {}),
        ({"classes": ["b", "a"]}, {}),
        ({"tasks": ["second", "first"]}, {}),
        ({"test_counts": [90, 89]}, {}),
        ({"validation": 0.4}, {}),
        ({"smoke": True}, {}),
        ({}, {"every": 4}),
        ({"seed": 3}, {}),
        ({"seconds": 1.0}, {}),
        ({}, {}),
    ],
)
def test_the_page_and_compare_keep_the_same_runs_apart(
    tmp_path: Path, results: dict[str, Any], config: dict[str, Any]
) -> None:
    """Their definition of comparable is one."""
    for name, options in (("a", {"every": 2}), ("b", {"every": 2} | config)):
        write_run(tmp_path / name, seed=ord(name), **SMALL)
        with (tmp_path / name / "config.toml").open("a") as file:
            file.write(f"\n[source]\nevery = {options['every']}\n")
    known = json.loads((tmp_path / "b" / "results.json").read_text())
    if "classes" in results:
        results = {"classes": known["classes"][::-1]}
    change(tmp_path / "b", **results)
    alike = len(sorted_out(tmp_path)) == 1
    assert alike == (results.keys() <= {"seed", "seconds"} and not config)
    refused = nullcontext() if alike else pytest.raises(UserError, match="these runs differ in")
    with refused:
        verdict.compare(find_runs([tmp_path]))


def test_joint_training_does_not_hide_other_counts(tmp_path: Path) -> None:
    """Its one count is a sum, which fits both; whatever comes first."""
    write_run(tmp_path / "0", method="joint", tasks=1, per_task=6, steps=4)
    for name, counts in (("a", [90, 90]), ("b", [80, 100])):
        write_run(tmp_path / name, seed=ord(name), **SMALL)
        change(tmp_path / name, test_counts=counts)
    first, second = sorted_out(tmp_path)
    assert [len(setting.runs) for setting in (first, second)] == [2, 1]
    assert [setting.test_images for setting in (first, second)] == [180, 180]


def test_options_of_the_source_make_settings(tmp_path: Path) -> None:
    for every in (2, 4):
        for seed in (0, 1):
            folder = tmp_path / f"{every}-{seed}"
            write_run(folder, seed=seed, **SMALL)
            with (folder / "config.toml").open("a") as file:
                file.write(f"\n[source]\nevery = {every}\n")
    first, second = sorted_out(tmp_path)
    assert [setting.name for setting in (first, second)] == [
        "imagefolder:photos, source.every 2",
        "imagefolder:photos, source.every 4",
    ]
    assert [[len(group.runs) for group in setting.groups] for setting in (first, second)] == [[2], [2]]


def test_other_orders_of_the_classes_are_settings_unless_the_seed_decides(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_run(tmp_path / name, seed=ord(name), **SMALL)
    known = json.loads((tmp_path / "b" / "results.json").read_text())
    change(tmp_path / "b", classes=known["classes"][::-1])
    first, second = sorted_out(tmp_path)
    assert first.name != second.name
    for name in ("a", "b"):
        config = tmp_path / name / "config.toml"
        config.write_text(config.read_text().replace("tasks = 10", 'tasks = 10\norder = "seed"'))
    (setting,) = sorted_out(tmp_path)
    assert [len(group.runs) for group in setting.groups] == [2]
    assert "order" not in setting.groups[0].variant


def test_other_data_names_the_setting(tmp_path: Path) -> None:
    for name in ("photos", "drawings"):
        write_run(tmp_path / name, data=f"imagefolder:{name}", **SMALL)
    assert [setting.name for setting in sorted_out(tmp_path)] == [
        "imagefolder:drawings",
        "imagefolder:photos",
    ]


def test_a_seed_that_was_run_twice_counts_once(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 1), ("c", 1)):
        write_run(tmp_path / name, seed=seed, **SMALL)
    (setting,) = sorted_out(tmp_path)
    (group,) = setting.groups
    assert [run.name for run in group.finished] == ["a", "b"]
    assert [run.name for run in group.repeated] == ["c"]


def test_methods_without_memory_belong_to_no_size(tmp_path: Path) -> None:
    for memory in (0, 200):
        for method in ("zero_shot", "joint", "ridge", "gdro"):
            write_run(tmp_path / f"{method}{memory}", method=method, memory=memory, options="", **SMALL)
    for memory in (0, 200):
        change(tmp_path / f"ridge{memory}", memory_bytes=0)
    (setting,) = sorted_out(tmp_path)
    assert [(g.method, g.memory) for g in setting.groups] == [("gdro", 0), ("gdro", 200)]
    assert [g.label for g in setting.level] == ["ridge", "joint", "zero_shot"]
    assert [g.reference for g in setting.level] == [False, True, True]
    assert all(len(g.finished) == 1 for g in setting.level)
    assert [g.method for g in setting.joint] == ["joint"]


def test_a_sweep_runs_a_method_without_memory_once_at_none(tmp_path: Path) -> None:
    """It then stands for all sizes; the method is asked, since the run itself kept nothing either way."""
    for memory in (0, 200):
        write_run(tmp_path / f"gdro{memory}", memory=memory, options="", **SMALL)
    for method in ("ncm", "gcl"):
        write_run(tmp_path / method, method=method, memory=0, options="", **SMALL)
    (setting,) = sorted_out(tmp_path)
    assert [g.label for g in setting.level] == ["ncm"]
    assert ("gcl", 0) in [(g.method, g.memory) for g in setting.groups]
    (tmp_path / "ncm" / "results.json").unlink()
    (setting,) = sorted_out(tmp_path)
    assert [g.label for g in setting.level] == ["ncm"]


def test_a_variant_without_memory_belongs_to_no_size(tmp_path: Path) -> None:
    """Although another variant of the method keeps exemplars; its shrinkage was tuned."""
    for memory, adapt, shrinkage in ((0, "none", 0.1), (0, "finetune", 0.3), (200, "finetune", 0.1)):
        run = tmp_path / f"{adapt}{memory}"
        options = f'adapt = "{adapt}"\nshrinkage = {shrinkage}\n'
        write_run(run, method="multilayer_lda", memory=memory, options=options, **SMALL)
        change(run, tuned_on=f"photos, tasks 1-2; method.shrinkage {shrinkage}: 0.5")
    (setting,) = sorted_out(tmp_path)
    assert [(g.series, g.memory) for g in setting.every] == [
        ("multilayer_lda, adapt finetune", 0),
        ("multilayer_lda, adapt finetune", 200),
        ("multilayer_lda, adapt none", None),
    ]


def test_unfinished_runs_join_the_setting_that_they_do_not_contradict(tmp_path: Path) -> None:
    for seed in (0, 1, 2):
        write_run(tmp_path / f"s{seed}", seed=seed, **SMALL)
    for seed in (1, 2):
        (tmp_path / f"s{seed}" / "results.json").unlink()
    (tmp_path / "s2" / "metrics.jsonl").unlink()
    (setting,) = sorted_out(tmp_path)
    (group,) = setting.groups
    assert len(group.runs) == 3
    assert [run.name for run in group.finished] == [run.name for run in group.shown] == ["s0"]
    (tmp_path / "s0" / "results.json").unlink()
    (setting,) = sorted_out(tmp_path)
    (group,) = setting.groups
    assert group.interval("last") is None
    assert [run.name for run in group.shown] == ["s0", "s1"]  # the other has not learned a task
    assert len(group.curve) == 2
    for seed in (0, 1):
        (tmp_path / f"s{seed}" / "metrics.jsonl").unlink()
    (setting,) = sorted_out(tmp_path)
    assert len(setting.groups[0].shown) == 3
    assert setting.groups[0].curve == []


def test_an_unreadable_test_image_keeps_no_unfinished_run_apart(tmp_path: Path) -> None:
    """Their plan counts it, the results of finished ones do not."""
    for seed in (0, 1):
        write_run(tmp_path / f"s{seed}", seed=seed, **SMALL)
    change(tmp_path / "s0", test_counts=[90, 89])
    (tmp_path / "s1" / "results.json").unlink()
    (setting,) = sorted_out(tmp_path)
    assert [len(group.runs) for group in setting.groups] == [2]
    assert setting.test_images == 179
    write_run(tmp_path / "s2", data="imagefolder:drawings", **SMALL)
    (tmp_path / "s2" / "results.json").unlink()
    found = sorted_out(tmp_path)
    assert [setting.name for setting in found] == ["imagefolder:photos", "imagefolder:drawings"]
    assert differing(found) == ["data"]  # what the unfinished one does not say yet is no difference


def test_results_without_a_config(tmp_path: Path) -> None:
    for name, tune in (("a", "full"), ("b", "full"), ("c", "lora")):
        write_run(tmp_path / name, seed=ord(name), **SMALL)
        (tmp_path / name / "config.toml").unlink()
        change(tmp_path / name, tune=tune, center=False)
    (setting,) = sorted_out(tmp_path)
    assert [(g.variant, len(g.runs)) for g in setting.groups] == [("tune full", 2), ("tune lora", 1)]
