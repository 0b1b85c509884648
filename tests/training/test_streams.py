"""Runs on streams: what they measure, what they refuse, and that they go on where they stopped."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure

from everclip.cli.app import main
from everclip.compare import comparable
from everclip.config import load_config
from everclip.data.scenario import seen
from everclip.errors import UserError
from everclip.methods import Classifier
from everclip.plots import per_class
from everclip.report.build import build
from everclip.report.measures import measures
from everclip.runs.finished import read as read_finished
from everclip.runs.read import read_run
from everclip.runs.resolve import resolve
from everclip.runs.schema import read
from everclip.training import testing
from everclip.training.plan import Plan
from tests.complaints import complaint
from tests.data.lists import listed
from tests.pictures import image_folder, picture
from tests.running import configured, run


@pytest.fixture(scope="module")
def joined(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Two data sets of three and two classes."""
    root = tmp_path_factory.mktemp("joined")
    image_folder(root / "a", {"train": 4, "test": 3}, 3)
    image_folder(root / "b", {"train": 4, "test": 3}, 2, seed=77)
    return f"joined:{root}/a+{root}/b"


@pytest.fixture
def tokens(toy: str, joined: str) -> list[str]:
    return [
        f"data={joined}",
        f"model={toy}",
        "scenario.kind=cross-domain",
        "memory.budget=0",
        "train.epochs=1",
    ]


@pytest.mark.parametrize("method", ["rapf", "moe_adapters", "cmoa"])
def test_what_classifies_by_names_answers_for_classes_to_come(
    tokens: list[str], method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With its own adapters: the pretrained tower, which is that of ``Handed``, has not forgotten anything."""

    def handed(*_: object) -> None:
        raise AssertionError("the text tower of the model answers")

    monkeypatch.setattr(testing, "Handed", handed)
    run(tmp_path / "run", *tokens, f"method={method}")
    with pytest.raises(AssertionError, match="the text tower"):
        run(tmp_path / "other", *tokens, "method=ridge")


@pytest.mark.parametrize("task_id", ["known", "unknown"])
@pytest.mark.parametrize("method", ["ridge", "zero_shot", "finetune"])
def test_cross_domain_tests_every_data_set_after_each(
    tokens: list[str], tmp_path: Path, method: str, task_id: str
) -> None:
    found = run(tmp_path / "run", *tokens, f"method={method}", f"scenario.task_id={task_id}")
    cross = found["cross_domain"]
    matrix = cross["matrix"]
    assert cross["task_id"] == task_id
    assert len(matrix) == len(matrix[0]) == 2
    assert matrix[1] == found["matrix"][1]
    assert cross["transfer"] == matrix[0][1]
    assert cross["last"] == pytest.approx(sum(matrix[1]) / 2)
    assert cross["average"] == pytest.approx(sum(matrix[0] + matrix[1]) / 4)
    assert cross["transfer_of_zero_shot"] == found["zero_shot_per_task"][1]
    if method == "zero_shot":
        assert matrix[0] == matrix[1] == found["zero_shot_per_task"]
    if (
        method == "ridge" and task_id == "known"
    ):  # the tower is frozen: what it has not learned it tells by text
        assert cross["transfer"] == cross["transfer_of_zero_shot"]
    assert found["frozen_features"] is None
    assert read(tmp_path / "run" / "results.json")["cross_domain"] == json.loads(json.dumps(cross))


def test_what_is_known_is_told_among_its_own_classes(tokens: list[str], tmp_path: Path) -> None:
    """The same run tested both ways: with the data set known no answer lies outside of it."""
    import numpy as np

    for task_id in ("known", "unknown"):
        run(tmp_path / task_id, *tokens, "method=ncm", f"scenario.task_id={task_id}")
    plan = Plan.of(configured(*tokens, "method=ncm"))
    own = {sample: set(task.classes) for task in plan.tasks for sample in task.test.ids.tolist()}
    answers = np.load(tmp_path / "known" / "predictions.npz")
    assert all(
        top[0] in own[s] for s, top in zip(answers["id"].tolist(), answers["top"].tolist(), strict=True)
    )


def test_images_are_handed_to_the_text_tower_by_what_it_says() -> None:
    class Fixed(Classifier):
        def __init__(self, scores: list[list[float]]) -> None:
            super().__init__()
            self.scores = torch.tensor(scores)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.scores

    own, text = Fixed([[3.0, 1.0], [0.0, 2.0]]), Fixed([[0.1, 0.2, 0.9], [0.5, 0.1, 0.4]])
    images = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    handed = testing.Handed(own, text, 2, known=False)(images)
    assert handed.argmax(1).tolist() == [2, 1]
    assert handed[0, :2].tolist() == [-torch.inf] * 2
    beside = testing.Handed(own, text, 2, known=True)(images)
    torch.testing.assert_close(beside, torch.tensor([[3.0, 1.0, 0.9], [0.0, 2.0, 0.4]]))


def test_an_online_run_has_an_area_and_passes_once(toy: str, photos: str, tmp_path: Path) -> None:
    words = [f"data={photos}", f"model={toy}", "scenario.kind=online", "scenario.tasks=2", "scenario.every=6"]
    config = resolve(load_config([*words, "method=finetune"]))
    assert (config.train.epochs, config.train.batch_size) == (1, 10)
    found = run(tmp_path / "run", *words, "method=finetune", "memory.budget=0")
    assert found["samples_seen"] == 24
    assert len(found["tasks"]) == 4
    assert found["any_time"] == pytest.approx(sum(found["accuracy_after_stage"]) / 4)
    told = {what: value for what, value, _ in measures(found)}
    assert told["area under any-time accuracy"] == f"{100 * found['any_time']:.1f} %"
    page = build([tmp_path / "run"], tmp_path / "page.html").read_text(encoding="utf-8")
    assert "area under any-time accuracy" in page
    assert "worst class" in page


def test_a_long_tail_has_its_groups(toy: str, photos: str, tmp_path: Path) -> None:
    found = run(
        tmp_path / "run", f"data={photos}", f"model={toy}", "method=ncm", "scenario.kind=long-tailed",
        "scenario.imbalance=4", "scenario.many=2", "scenario.few=2", "scenario.tasks=2",
    )  # fmt: skip
    groups = found["by_frequency"]
    assert [groups[name]["classes"] for name in ("many", "medium", "few")] == [2, 2, 2]
    rows = found["per_class"]
    assert found["macro"] == pytest.approx(sum(row["last"] for row in rows) / 6)
    assert found["worst_class"]["last"] == min(row["last"] for row in rows)
    assert sum(groups[name]["accuracy"] * 2 for name in ("many", "medium", "few")) / 6 == pytest.approx(
        found["macro"]
    )
    assert found["any_time"] is None
    assert found["cross_domain"] is None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["scenario.kind=online", "train.epochs=3"], "passes over its images once: leave train.epochs out"),
        (["scenario.kind=online", "train.steps=3"], "passes over its images once: leave train.steps out"),
        (
            ["scenario.kind=online", "method=der_expand", "method.retrain_epochs=3"],
            "method.retrain_epochs=3 does",
        ),
        (["scenario.kind=blurry", "scenario.every=5", "train.epochs=2"], "passes over its images once"),
        (["scenario.kind=blurry", "scenario.tasks=[3, 3]"], "draws the sizes of its tasks: use a number"),
        (
            ["scenario.kind=few-shot", "scenario.base=5", "scenario.tasks=4"],
            "leaves too few for 3 more tasks",
        ),
        (
            ["scenario.kind=few-shot", "scenario.shot=5"],
            'unknown key "scenario.shot"; did you mean "scenario.shots"',
        ),
        (["scenario.kind=time"], "has no times"),
    ],
)
def test_what_has_no_meaning_is_refused(toy: str, photos: str, words: list[str], message: str) -> None:
    tasks = [] if any(word.startswith("scenario.tasks") for word in words) else ["scenario.tasks=3"]
    tokens = [f"data={photos}", f"model={toy}", *words, *tasks]
    assert message in complaint(lambda: Plan.of(resolve(load_config(tokens))))


@pytest.mark.parametrize(
    ("kind", "header", "most"),
    [
        ("data-incremental", "path,label,split", 1800),
        ("cross-domain", "path,label,split,domain", 1000),
        ("data-incremental", "path,caption,split", 400),
    ],
)
def test_results_of_more_tasks_could_not_be_read(
    toy: str, tmp_path: Path, kind: str, header: str, most: int
) -> None:
    picture((90, 40, 40), 0).save(tmp_path / "0.png")
    for number in range(1, most + 2):
        os.link(tmp_path / "0.png", tmp_path / f"{number}.png")
    classes = most + 1 if kind == "cross-domain" else 2
    rows = [
        (f"{n}.png", f"word {n % classes}", "train" if n else "test", f"set {n % classes}")
        for n in range(most + 2)
    ]
    path = listed(tmp_path / "list.csv", header, [row[: header.count(",") + 1] for row in rows])
    words = [f"data=csv:{path}", f"model={toy}", f"scenario.kind={kind}", f"scenario.tasks={most + 1}"]
    with pytest.raises(UserError, match=f"than can be read again: use at most {most:,}, with a"):
        Plan.of(configured(*words, "method=gdro"))


def test_joint_training_has_no_tasks_to_come(tokens: list[str]) -> None:
    with pytest.raises(UserError, match="joint learns all tasks at once"):
        Plan.of(configured(*tokens, "method=joint"))


def test_protocols_are_not_mixed(
    toy: str, photos: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = [f"data={photos}", f"model={toy}", "method=ncm", "scenario.kind=few-shot", "scenario.tasks=2"]
    for shots in (1, 2):
        run(tmp_path / f"s{shots}", *common, f"scenario.shots={shots}")
    runs = [read_finished(tmp_path / f"s{shots}") for shots in (1, 2)]
    assert comparable.difference(runs).startswith("scenario.shots (1 in ")
    assert comparable.difference(runs, comparable.excused("scenario.shots")) == ""
    assert main(["compare", str(tmp_path / "s1"), str(tmp_path / "s2")]) == 2
    assert "scenario.shots" in capsys.readouterr().err


def test_a_stopped_run_keeps_what_it_measured_of_every_data_set(tokens: list[str], tmp_path: Path) -> None:
    from tests.running import run_for

    whole = run(tmp_path / "whole", *tokens, "method=finetune")
    run_for(tmp_path / "run", 3, *tokens, "method=finetune")
    assert run(tmp_path / "run", *tokens, "method=finetune")["cross_domain"] == whole["cross_domain"]


def test_tasks_of_a_stream_have_their_classes_in_order(tokens: list[str]) -> None:
    plan = Plan.of(configured(*tokens, "method=ncm"))
    assert seen(plan.tasks) == (0, 1, 2, 3, 4)
    assert testing.tested(plan, 0) == plan.tasks


@pytest.mark.parametrize("scenario", ["class-incremental", "data-incremental"])
def test_a_class_is_compared_with_itself_on_the_same_images(
    toy: str, photos: str, scenario: str, tmp_path: Path
) -> None:
    """After its task it is tested on that task's images, and in the end on all of its own."""
    words = [f"data={photos}", f"model={toy}", f"scenario.kind={scenario}", "scenario.tasks=2", "method=ncm"]
    run(tmp_path / "run", *words, "memory.budget=0")
    read_back = read_run(tmp_path / "run")
    assert read_back.same_images == (scenario == "class-incremental")
    page = build([tmp_path / "run"], tmp_path / "page.html").read_text(encoding="utf-8")
    assert ("last − after its task" in page) == read_back.same_images
    assert ("right after the class's task" in page) == read_back.same_images
    drawn = per_class(read_back, Figure().add_subplot())
    lines = {str(line.get_label()) for line in drawn.get_lines()}
    assert ("after its task" in lines) == bool(drawn.collections) == read_back.same_images


def test_a_class_that_is_gone_before_its_test_images_come(toy: str, tmp_path: Path) -> None:
    """It is learned in the first period and tested in the last: what it is right about then is the first measured."""
    image_folder(tmp_path / "a", {"train": 4, "test": 3}, 3)
    fading, *_ = names = sorted(folder.name for folder in (tmp_path / "a" / "train").iterdir())
    lines = ["path,label,split,time"]
    for part in ("train", "test"):
        for name in names:
            for number, file in enumerate(sorted((tmp_path / "a" / part / name).iterdir())):
                when = {"train": 0, "test": 9}[part] if name == fading else 3 * number
                lines.append(f"{file.relative_to(tmp_path / 'a')},{name},{part},{when}")
    (tmp_path / "a" / "list.csv").write_text("\n".join(lines))
    words = [
        f"data=csv:{tmp_path / 'a' / 'list.csv'}",
        f"model={toy}",
        "scenario.kind=time",
        "scenario.tasks=3",
    ]
    run(tmp_path / "run", *words, "method=ncm", "memory.budget=0", "references=none")
    (row,) = (row for row in read(tmp_path / "run" / "results.json")["per_class"] if row["class"] == fading)
    assert row["task"] == 0
    assert row["after_learning"] is not None
    assert row["after_learning"] == row["last"]
