"""Runs on images with captions: trained, searched after each task, resumed, and equal to classes of one pair each."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from everclip.cli.app import main
from everclip.data.captions import Gallery
from everclip.errors import UserError
from everclip.metrics.retrieval import ranked
from everclip.models import zoo
from everclip.models.states import read_state
from everclip.runs import schema
from everclip.runs.run import Run
from everclip.training.retrieve import Recalls, Searched
from tests.complaints import complaint
from tests.data.captioned import pairs, rows
from tests.data.lists import listed
from tests.marks import slow_after
from tests.running import configured, logged, run, run_for, timeless

DATA = "scenario.kind=data-incremental"


@pytest.fixture(scope="module")
def walls(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Spec of 24 pictures of four colours, a task each, half of them test images; every second has a caption more."""
    root = tmp_path_factory.mktemp("walls")
    lines = [(*row, "train" if int(row[0][-5]) < 3 else "test") for row in rows(root)]
    lines += [(path, f"{text} no. 2", task, part) for path, text, task, part in lines[::2]]
    return f"csv:{listed(root / 'list.csv', 'path,caption,task,split', lines)}"


def newest(out: Path) -> dict[str, torch.Tensor]:
    """The weights of a run's newest checkpoint, and the method's state."""
    opened = Run(out, Run.read_config(out))
    place = opened.store.newest_task()
    assert place is not None
    folder = opened.store.folder(place)
    method = read_state(folder / "state.pt")["method"]
    found = load_file(folder / "open_clip_model.safetensors")
    for name, value in method.items():
        found |= {f"method.{name}.{key}": tensor for key, tensor in _flat(value)}
    return found


def _flat(value: object) -> list[tuple[str, torch.Tensor]]:
    if isinstance(value, torch.Tensor):
        return [("", value)]
    pairs = value.items() if isinstance(value, dict) else []
    return [(f"{key}.{rest}", tensor) for key, inner in pairs for rest, tensor in _flat(inner)]


@pytest.mark.parametrize(
    "words",
    slow_after(1, ["gcl", "gcl method.temperature=per_sample method.negatives=other_class", "clip"]),
)
def test_pairs_equal_classes_of_one_pair_each(tmp_path: Path, toy: str, words: str) -> None:
    """The same weights and estimators, to the bit."""
    lines = sorted((path, task, path[-5]) for path, _, task in rows(tmp_path, 2, 6))
    parts = {"0": "train", "1": "test"}
    classes = [(path, name, parts[n]) for path, name, n in lines]
    task = {name: str(number // 2) for number, name in enumerate(sorted({name for _, name, _ in lines}))}
    said = [(path, f"a photo of a {name}.", parts[n], task[name]) for path, name, n in lines]
    listed(tmp_path / "classes.csv", "path,label,split", classes)
    listed(tmp_path / "pairs.csv", "path,caption,split,task", said)
    common = [
        f"model={toy}",
        "memory.budget=all",
        "train.epochs=2",
        "train.lr_text=1e-4",
        *f"method={words}".split(),
    ]
    run(tmp_path / "c", f"data=csv:{tmp_path}/classes.csv", *common, "scenario.order=given")
    run(tmp_path / "p", f"data=csv:{tmp_path}/pairs.csv", *common, DATA)
    one, other = newest(tmp_path / "c"), newest(tmp_path / "p")
    aside = {name for name in one if "class_sums" in name}  # a log of losses by class, or by group
    assert words.startswith("gcl") == any("estimators" in name for name in one)
    for name in one.keys() - aside:
        assert torch.equal(one[name], other[name]), name
    moved = load_file(Path(toy.removeprefix("local-dir:")) / "open_clip_model.safetensors")
    assert any(not torch.equal(moved[name], one[name]) for name in moved)


@pytest.mark.parametrize(
    "words",
    slow_after(
        2,
        ["gcl", "clip method.objective=sigmoid", "gdro", "lwf", "zscl method.emoji_count=8",
         "wise_ft method.loss=clip", "joint method.loss=gcl", "zero_shot"],
    ),
)  # fmt: skip
def test_methods_learn_from_pairs(
    tmp_path: Path, toy: str, walls: str, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    results = run(tmp_path / "r", f"data={walls}", f"model={toy}", DATA, *f"method={words}".split())
    retrieval = results["retrieval"]
    stages = 1 if words.startswith("joint") else 4
    assert len(results["matrix"]) == len(retrieval["after_stage"]) == stages
    for stage, found in enumerate(retrieval["after_stage"]):
        for task, one in enumerate(found["tasks"]):
            mean = (one["image_to_text"]["recall_at_1"] + one["text_to_image"]["recall_at_1"]) / 2
            assert results["matrix"][stage][task] == mean
        assert found["together"]["images"] == sum(results["test_counts"][: stage + 1])
    assert retrieval["zero_shot"]["together"]["captions"] >= retrieval["zero_shot"]["together"]["images"]
    assert len(results["zero_shot_per_task"]) == stages
    assert caplog.text.count("add a column group to images with captions") == (words == "gdro")
    assert (results["forgetting"] is None) == (stages == 1)
    assert schema.load(tmp_path / "r" / "results.json")["retrieval"] == retrieval
    assert not (tmp_path / "r" / "predictions.npz").exists()
    if words == "zero_shot":
        assert retrieval["after_stage"][-1]["together"] == retrieval["zero_shot"]["together"]
        assert results["accuracy_after_stage"] == results["zero_shot_after_stage"]


@pytest.mark.slow
def test_a_run_on_pairs_goes_on_to_the_bit(tmp_path: Path, toy: str, walls: str) -> None:
    words = (f"data={walls}", f"model={toy}", DATA, "method=gcl", "train.epochs=2", "train.batch_size=4")
    whole = run(tmp_path / "a", *words)
    assert run_for(tmp_path / "b", 9, *words) is None
    stopped = run(tmp_path / "b", *words)
    assert timeless(stopped) == timeless(whole)
    assert [line for line in logged(tmp_path / "b") if line["event"] == "stage"] == [
        line for line in logged(tmp_path / "a") if line["event"] == "stage"
    ]
    one, other = newest(tmp_path / "a"), newest(tmp_path / "b")
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.slow
def test_a_run_does_not_go_on_with_other_captions(tmp_path: Path, toy: str) -> None:
    file = pairs(tmp_path)
    words = (f"data=csv:{file}", f"model={toy}", DATA, "method=clip", "train.batch_size=4")
    assert run_for(tmp_path / "r", 4, *words) is None
    file.write_text(file.read_text("utf-8").replace("a red wall", "the red wall"), "utf-8")
    with pytest.raises(UserError, match="has other captions than when this run began"):
        run(tmp_path / "r", *words)


def test_estimators_are_kept_for_pairs_of_the_memory_alone(tmp_path: Path, toy: str, walls: str) -> None:
    words = (f"data={walls}", f"model={toy}", DATA, "method=gcl", "train.epochs=2", "memory.budget=5")
    run(tmp_path / "a", *words)
    state = newest(tmp_path / "a")
    ids = next(value for name, value in state.items() if "estimators" in name and name.endswith("ids."))
    memory = read_state(_folder(tmp_path / "a") / "state.pt")["memory"]["ids"]
    assert len(memory) == 5
    assert {*memory} & {*ids.tolist()}
    assert len(memory) <= len(ids) <= 2 * len(memory)  # a second caption has an estimator of its own


def _folder(out: Path) -> Path:
    opened = Run(out, Run.read_config(out))
    place = opened.store.newest_task()
    assert place is not None
    return opened.store.folder(place)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("method=icarl", "method=icarl with these options learns classes, and {data} has captions: use method=clip"),
        ("method=joint", "joint with these options learns classes, and {data} has captions: use method.loss=clip"),
        ("method=zscl method.reference_texts=old", "method=zscl with these options learns classes"),
        ("method=gcl scenario.kind=class-incremental",
         "{data} has captions and no classes: use scenario.kind=data-incremental"),
        ("method=gcl templates=simple", "templates= is for data with classes, and {data} has captions"),
    ],
)  # fmt: skip
def test_what_needs_classes_refuses_in_a_line(
    tmp_path: Path, toy: str, walls: str, words: str, message: str
) -> None:
    tokens = words.split()
    kind = [] if any(token.startswith("scenario.kind") for token in tokens) else [DATA]
    said = complaint(run, tmp_path / "r", f"data={walls}", f"model={toy}", *kind, *tokens)
    assert message.format(data=walls) in said


def test_long_captions_are_cut_and_counted(
    tmp_path: Path, toy: str, caplog: pytest.LogCaptureFixture
) -> None:
    """10,000 characters, other scripts, and texts of just the length that is read."""
    lines = [(path, text) for path, text, _ in rows(tmp_path, 6, 2)]
    texts = ["word " * 2000, "猫" * 10_000, "кот на стене", "a " * 75, "a " * 76, "🐱" * 40]
    lines = [(path, texts[n] if n < len(texts) else text) for n, (path, text) in enumerate(lines)]
    file = listed(tmp_path / "list.csv", "path,caption", lines)
    with caplog.at_level(logging.WARNING, "everclip"):
        results = run(
            tmp_path / "r", f"data=csv:{file}", f"model={toy}", DATA, "method=gcl", "scenario.tasks=1"
        )
    told = [record.getMessage() for record in caplog.records if "longer than" in record.getMessage()]
    found = zoo.load(toy, None, torch.device("cpu")).text.truncated([text for _, text in lines])
    assert found == (int(told[0].split()[0]), 77)
    assert told == [
        f"{found[0]} of 12 captions are longer than the 77 tokens that the text tower reads: their ends are left out"
    ]
    assert zoo.load(toy, None, torch.device("cpu")).text.truncated(["a " * 75, "a cat"]) == (0, 77)
    assert zoo.load(toy, None, torch.device("cpu")).text.truncated(["a " * 76]) == (1, 77)
    assert results["samples_seen"] > 0


@pytest.mark.slow
def test_evaluate_measures_retrieval(
    tmp_path: Path, toy: str, walls: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "r"
    results = run(out, f"data={walls}", f"model={toy}", DATA, "method=wise_ft", "method.loss=clip")
    assert main(["evaluate", str(out), "--retrieval", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    last = results["retrieval"]["after_stage"][-1]["together"]
    assert {key: found[key] for key in last} == last
    assert main(["evaluate", str(out)]) == 0
    assert "captions by an image" in capsys.readouterr().out
    assert main(["evaluate", toy, "--data", walls, "--retrieval", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["images"] == 12
    assert main(["evaluate", toy, "--data", f"csv:{pairs(tmp_path)}"]) == 0
    capsys.readouterr()
    assert main(["predict", str(out), str(tmp_path / "photos/red/0.png")]) == 2
    assert "has learned no classes: use local-dir:" in capsys.readouterr().err
    assert main(["export", str(out), "-o", str(tmp_path / "folder")]) == 0
    capsys.readouterr()
    assert main(["evaluate", str(tmp_path / "folder"), "--data", walls, "--json"]) == 0
    capsys.readouterr()
    words = ["--add", str(tmp_path / "photos"), "--test", str(tmp_path / "photos"), "-o", str(tmp_path / "v")]
    assert main(["update", str(tmp_path / "folder"), *words]) == 2
    assert "no classes" in capsys.readouterr().err


@pytest.mark.slow
def test_the_page_and_compare_show_recalls(
    tmp_path: Path, toy: str, walls: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for method in ("clip", "gcl"):
        results = run(tmp_path / "S" / method, f"data={walls}", f"model={toy}", DATA, f"method={method}")
    assert main(["report", str(tmp_path / "S" / "gcl"), "-o", str(tmp_path / "one.html")]) == 0
    page = (tmp_path / "one.html").read_text(encoding="utf-8")
    assert "<h2>Retrieval</h2>" in page
    assert "in the mean of captions found by an image and images found by a caption" in page
    assert page.count("captions by an image") == 2 * 5  # four tasks and all, by this run and zero-shot
    capsys.readouterr()
    assert main(["compare", str(tmp_path / "S"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["metrics"] == [
        *("last", "average", "forgetting", "image_to_text_recall_at_1", "text_to_image_recall_at_1")
    ]
    rows = {row["method"]: row["metrics"] for row in found["sections"][0]["rows"]}
    last = results["retrieval"]["after_stage"][-1]["together"]
    assert rows["gcl"]["image_to_text_recall_at_1"]["mean"] == last["image_to_text"]["recall_at_1"]
    assert main(["report", str(tmp_path / "S"), "-o", str(tmp_path / "all.html")]) == 0
    capsys.readouterr()
    assert main(["compare", str(tmp_path / "S")]) == 0
    head = capsys.readouterr().out
    assert "i2t@1 %" in head
    assert "t2i@1 %" in head


def _searched(angles: list[float], said: list[str], texts: dict[str, float], labels: list[int]) -> Searched:
    """Images at some angles with a text each, which stands at an angle of its own."""
    distinct = list(dict.fromkeys(said))
    images, rows = (
        np.stack([np.cos(np.radians(a)), np.sin(np.radians(a))], 1).astype(np.float32)
        for a in (angles, [texts[text] for text in distinct])
    )
    pairs = np.array([[image, distinct.index(text)] for image, text in enumerate(said)])
    return Searched(images, rows, Gallery(distinct, pairs), np.array(labels), ranked(images, rows, pairs))


def test_tasks_apart_and_together() -> None:
    texts = {"a": 1.0, "b": 40.0, "c": 21.0}
    first = _searched([0, 30], ["a", "b"], texts, [0, 1])
    second = _searched([50, 20], ["b", "c"], texts, [1, 1])
    both = Recalls((0, 1), np.array([0, 1, 1, 1]), {0: first, 1: second})
    assert [both.accuracy(task, 1) for task in (0, 1, 2)] == [1.0, 1.0, None]
    found = both.summary(2)
    assert [part["captions"] for part in found["tasks"]] == [2, 2]
    # together the text b is one, of an image of each task, and the image at 30 is nearer to c than to it
    assert (found["together"]["images"], found["together"]["captions"]) == (4, 3)
    assert found["together"]["image_to_text"]["recall_at_1"] == 0.75
    assert found["together"]["text_to_image"]["recall_at_1"] == 1.0
    assert both.summary(1)["together"] == found["tasks"][0]


def test_groups_have_their_own_recall() -> None:
    texts = {"a": 0.5, "b": 8.0, "c": 50.0}
    one = _searched([0, 2, 48], ["a", "b", "c"], texts, [0, 0, 1])  # the second image is nearer to a
    found = Recalls((0, 1), one.labels, {0: one})
    assert found.per_class(2, 1) == {0: (0.5 + 1.0) / 2, 1: 1.0}
    assert found.accuracy(0, 2) == pytest.approx((2 / 3 + 1.0) / 2)
    assert found.accuracy_up_to(0, 2) == pytest.approx(found.accuracy(0, 2))
    assert found.count(0) == 3


def test_classes_are_not_searched(toy: str, photos: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", toy, "--data", photos, "--retrieval"]) == 2
    assert "--retrieval needs images with captions" in capsys.readouterr().err


def test_an_estimate_counts_captions(tmp_path: Path, toy: str, walls: str) -> None:
    from everclip.training import estimate
    from everclip.training.plan import Plan

    config = configured(f"data={walls}", f"model={toy}", DATA, "method=gcl", f"out={tmp_path / 'r'}")
    plan = Plan.of(config)
    sizes = plan.sizes()
    assert sum(sizes.captions) >= sum(sizes.test)
    work = estimate.work(config, sizes)
    assert work.trained_prompts == work.steps * config.train.batch_size
    assert work.prompts >= sum(sizes.captions) * 2
