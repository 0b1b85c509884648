"""Streams have the statistics that their scenarios state."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from everclip import data
from everclip.config.sections import Scenario
from everclip.data import scenarios
from everclip.data.images import Dataset, FileStore, ImageSet
from everclip.data.scenario import Task, in_pieces, seen
from everclip.errors import UserError
from tests.complaints import complaint
from tests.pictures import domain_folder, image_folder, picture

EACH = 20


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Six classes with twenty training and two test pictures each."""
    return data.load(
        f"imagefolder:{image_folder(tmp_path_factory.mktemp('photos'), {'train': EACH, 'test': 2})}"
    )


def built(kind: str, **settings: Any) -> scenarios.Scenario:
    return scenarios.build(Scenario(kind=kind, **settings))


def cut(source: Dataset, kind: str, seed: int = 0, **settings: Any) -> list[Task]:
    return scenarios.cut(built(kind, **settings), source, seed)


def counts(tasks: list[Task]) -> np.ndarray:
    """Training images of each class over all tasks."""
    return np.sum([task.train.counts(6) for task in tasks], axis=0)


def all_tested(tasks: list[Task], source: Dataset) -> bool:
    ids = np.concatenate([task.test.ids for task in tasks])
    return sorted(ids) == sorted(source.test.ids)


def test_few_shot_has_all_of_the_base_and_the_shots_of_others(source: Dataset) -> None:
    tasks = cut(source, "few-shot", tasks=3, base=2, shots=5)
    assert [len(task.classes) for task in tasks] == [2, 2, 2]
    assert [task.train.counts(6)[list(task.classes)].tolist() for task in tasks] == [
        [EACH] * 2,
        [5, 5],
        [5, 5],
    ]
    assert all_tested(tasks, source)
    again = cut(source, "few-shot", seed=7, tasks=3, base=2, shots=5)
    assert [t.train.ids.tolist() for t in again] == [t.train.ids.tolist() for t in tasks]
    with pytest.raises(UserError, match=r"scenario\.tasks=7 but there are 6 classes: use at most 6"):
        cut(source, "few-shot", tasks=7)
    with pytest.raises(
        UserError, match=r"scenario\.base=3, but scenario\.tasks=1 is one task of all 6 classes"
    ):
        cut(source, "few-shot", tasks=1, base=3)
    for base in (None, 6):
        assert [len(task.classes) for task in cut(source, "few-shot", tasks=1, base=base)] == [6]
    fewer = cut(source, "few-shot", tasks=[2, 4], shots=1)
    assert set(fewer[1].train.ids) <= {*tasks[1].train.ids, *tasks[2].train.ids}
    assert [len(task.classes) for task in cut(source, "few-shot", tasks=3)] == [4, 1, 1]
    sizes = built("few-shot", tasks=3, base=2, shots=5).sizes(6 * EACH, 6, [])
    assert sizes == ([len(task.train) for task in tasks], [2, 4, 6])


@pytest.mark.parametrize("tail", ["shuffled", "ordered"])
def test_long_tails_fall_exponentially(source: Dataset, tail: str) -> None:
    tasks = cut(source, "long-tailed", tasks=3, imbalance=10, tail=tail)
    found = counts(tasks)
    expected = [round(EACH * 10 ** (-k / 5)) for k in range(6)]
    assert sorted(found, reverse=True) == expected
    assert found.max() / found.min() == 10
    in_order = [int(found[label]) for label in seen(tasks)]
    assert (in_order == expected) == (tail == "ordered")
    assert all_tested(tasks, source)


def test_a_long_tail_needs_an_image_of_each_class(source: Dataset) -> None:
    with pytest.raises(UserError, match=r"scenario\.imbalance=100 leaves none of the"):
        cut(source, "long-tailed")
    with pytest.raises(UserError, match=r"few=30 is above many=3: use a smaller one"):
        cut(source, "long-tailed", imbalance=2, many=3, few=30)


@pytest.mark.parametrize("stochastic", [False, True])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5])
def test_blurry_streams_mix_the_share_asked_for(source: Dataset, stochastic: bool, share: float) -> None:
    settings: dict[str, Any] = {"tasks": 3, "disjoint": 0.5, "stochastic": stochastic}
    pure = cut(source, "blurry", blurry=0.0, **settings)
    tasks = cut(source, "blurry", blurry=share, **settings)
    ids = np.concatenate([task.train.ids for task in tasks])
    assert sorted(ids) == sorted(source.train.ids)
    assert all_tested(tasks, source)
    home = {sample: task.index for task in pure for sample in task.train.ids.tolist()}
    label = dict(zip(source.train.ids.tolist(), source.train.labels.tolist(), strict=True))
    left: dict[int, int] = {}
    for task in tasks:
        for sample in task.train.ids.tolist():
            left[label[sample]] = left.get(label[sample], 0) + (home[sample] != task.index)
    in_several = {k for k in range(6) if sum(k in task.train.labels for task in tasks) > 1}
    assert sum(count > 0 for count in left.values()) <= 3  # disjoint classes stay
    assert len(in_several) == (0 if share == 0 else len(in_several)) <= 3
    moved = sum(left.values())
    assert moved <= share * 3 * EACH  # some are dealt to where they were
    assert share == 0 or moved > 0.3 * share * 3 * EACH


def test_a_blurry_stream_has_images_in_each_task(source: Dataset) -> None:
    few = dataclasses.replace(source, train=source.train.spread(12))
    message = "scenario.blurry=1 leaves task [1-6] no images: lower it, or use fewer tasks"
    with pytest.raises(UserError, match=message):
        cut(few, "blurry", tasks=6, disjoint=0.0, blurry=1.0)


def test_blurry_tasks_are_no_more_than_classes(source: Dataset) -> None:
    for disjoint in (0.0, 0.5):
        with pytest.raises(UserError, match="tasks=7 but there are 6 classes: use at most 6"):
            cut(source, "blurry", tasks=7, disjoint=disjoint)
    with pytest.raises(UserError, match="disjoint leaves 3 mixed classes for 6 tasks: lower it"):
        cut(source, "blurry", tasks=6, disjoint=0.5)


def test_a_blurry_stream_is_equal_in_size_unless_it_is_stochastic(source: Dataset) -> None:
    even = cut(source, "blurry", tasks=3, stochastic=False)
    assert [len(task.train) for task in even] == [2 * EACH] * 3
    sizes = {tuple(len(t.train) for t in cut(source, "blurry", tasks=3, order=order)) for order in range(6)}
    assert len(sizes) > 3
    assert all(sum(one) == 6 * EACH for one in sizes)


def test_a_stream_is_one_for_all_seeds_unless_asked_for(source: Dataset) -> None:
    def ids(kind: str, **settings: Any) -> list[list[int]]:
        return [task.train.ids.tolist() for task in cut(source, kind, tasks=3, **settings)]

    for kind, options in (("blurry", {}), ("online", {"every": 10}), ("long-tailed", {"imbalance": 4})):
        assert ids(kind, seed=1, **options) == ids(kind, seed=2, **options)
        assert ids(kind, seed=1, order="seed", **options) != ids(kind, seed=2, order="seed", **options)


def test_online_passes_once_in_pieces(source: Dataset) -> None:
    tasks = cut(source, "online", tasks=3, every=15)
    assert [len(task.train) for task in tasks] == [15, 15, 10] * 3
    assert sorted(np.concatenate([task.train.ids for task in tasks])) == sorted(source.train.ids)
    assert all_tested(tasks, source)
    assert tasks[0].name == "task 1, piece 1"
    scenario = built("online", tasks=3, every=15)
    assert scenario.once
    assert scenario.any_time
    assert scenario.sizes(6 * EACH, 6, [])[1] == [2] * 3 + [4] * 3 + [6] * 3


@pytest.mark.parametrize(
    ("count", "sizes"), [(10, [10]), (30, [20, 10]), (50, [20, 30]), (70, [20, 20, 20, 10])]
)
def test_of_half_a_piece_the_even_number_of_pieces_is_made(count: int, sizes: list[int]) -> None:
    rows = np.arange(count, dtype=np.int64)
    images = ImageSet(FileStore(Path(), [""] * count), rows, np.zeros_like(rows), np.zeros_like(rows), rows)
    pieces = in_pieces([Task(0, "all", (0,), images, images.select(rows[:0]))], 20, 0)
    assert [len(piece.train) for piece in pieces] == sizes


def test_a_short_rest_goes_with_the_piece_before(source: Dataset) -> None:
    whole = cut(source, "class-incremental", tasks=1)
    assert [len(task.train) for task in in_pieces(whole, 50, 0)] == [50, 70]
    assert [len(task.train) for task in in_pieces(whole, 500, 0)] == [120]


def test_joined_folders_have_names_that_can_be_written(tmp_path: Path) -> None:
    for name in ("a", "b\udcff"):
        image_folder(tmp_path / name, {"train": 3, "test": 2}, 2)
    said = complaint(data.load, f"joined:{tmp_path}/a+{tmp_path}/b\udcff")
    assert said.endswith('b\\udcff" in data joined is not a UTF-8 name: rename it')


def test_cross_domain_has_a_task_for_each_data_set(tmp_path: Path) -> None:
    for name, classes in (("a", 3), ("b", 2)):
        image_folder(tmp_path / name, {"train": 3, "test": 2}, classes, seed=5 * len(name))
    joined = data.load(f"joined:{tmp_path}/a+{tmp_path}/b")
    assert joined.domain_names == ("a", "b")
    assert joined.class_names == ("blue", "green", "red", "green (b)", "red (b)")
    tasks = cut(joined, "cross-domain")
    assert [task.name for task in tasks] == ["a", "b"]
    assert [task.classes for task in tasks] == [(0, 1, 2), (3, 4)]
    assert [len(task.test) for task in tasks] == [6, 4]
    store, first = joined.train.store, int(tasks[1].train.rows[0])
    assert store.keys[first].startswith("b/")
    assert store.read(first) == (tmp_path / store.keys[first]).read_bytes()
    assert cut(joined, "cross-domain", order=["b", "a"])[0].name == "b"
    assert len(set(np.concatenate([joined.train.ids, joined.test.ids]))) == 25


def test_joined_data_keep_a_test_part_that_one_of_them_came_with(tmp_path: Path) -> None:
    image_folder(tmp_path / "a", {"train": 3, "test": 2}, 2)
    image_folder(tmp_path / "b", {"": 5}, 2)
    joined = data.load(f"joined:{tmp_path}/a+{tmp_path}/b")
    keys = [str(joined.test.store.keys[row]) for row in joined.whole().rows.tolist()]
    assert not [key for key in keys if key.startswith("a/train")]
    assert data.load(f"joined:{tmp_path}/b+{tmp_path}/b").held_out


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("joined:{a}", r"needs two data sets or more: use data=joined:A\+B"),
        ("joined:{a}+joined:{a}", "name its data sets one by one"),
        ("joined:{a}+nowhere", "is neither a source nor a folder that exists"),
    ],
)
def test_what_cannot_be_joined(tmp_path: Path, spec: str, message: str) -> None:
    image_folder(tmp_path / "a", {"train": 1, "test": 1}, 2)
    with pytest.raises(UserError, match=message):
        data.load(spec.format(a=tmp_path / "a"))


def test_cross_domain_refuses_shared_classes_and_one_data_set(tmp_path: Path, source: Dataset) -> None:
    with pytest.raises(UserError, match=r"is one data set, and scenario\.kind=cross-domain learns several"):
        cut(source, "cross-domain")
    domains = data.load(f"domainfolder:{domain_folder(tmp_path)}")
    with pytest.raises(UserError, match="domain0 and domain1 both have blue"):
        cut(domains, "cross-domain")


@pytest.fixture
def dated(tmp_path: Path) -> Path:
    """Twelve training and six test pictures of two classes, by day; the second class begins on the seventh day."""
    rows = ["path,label,split,date"]
    for day in range(1, 19):
        name, part = ("old" if day % 3 == 0 or day < 10 else "new"), ("test" if day % 3 == 0 else "train")
        picture((5 * day, 90, 90), day).save(tmp_path / f"{day}.png")
        rows.append(f"{day}.png,{name},{part},2024-05-{day:02d}")
    (tmp_path / "list.csv").write_text("\n".join([rows[0], *reversed(rows[1:])]) + "\n", encoding="utf-8")
    return tmp_path / "list.csv"


def days_of(images: ImageSet) -> list[int]:
    return [int(str(images.store.keys[row]).split(".")[0]) for row in images.rows.tolist()]


def test_time_orders_the_stream(dated: Path) -> None:
    source = data.load(f"csv:{dated}", "time")
    tasks = cut(source, "time", tasks=3)
    days = [days_of(task.train) for task in tasks]
    assert days == [[1, 2, 4, 5], [7, 8, 10, 11], [13, 14, 16, 17]]
    tested = [days_of(task.test) for task in tasks]
    assert [sorted(one) for one in tested] == [[3], [6, 9], [12, 15, 18]]
    assert data.load(f"csv:{dated}").times is None


def test_labelled_lists_are_learned_by_time_or_task_where_they_have_them(dated: Path) -> None:
    def tasks(**settings: Any) -> list[Task]:
        scenario = built("data-incremental", tasks=3, **settings)
        return scenarios.cut(scenario, data.load(f"csv:{dated}", scenario.asks), 0)

    by_time = [[1, 2, 4, 5], [7, 8, 10, 11], [13, 14, 16, 17]]
    for settings in ({}, {"by": "time"}):
        assert [sorted(days_of(task.train)) for task in tasks(**settings)] == by_time
    text = dated.read_text()
    dated.write_text(text.replace("2024-05-07", "soon"))
    assert [len(task.train) for task in tasks(by="parts")] == [4, 4, 4]  # which needs no times
    dated.write_text(text.replace("date", "task").replace("2024-05-0", "first").replace("2024-05-1", "then"))
    dated.write_text(re.sub(r"(first|then).$", r"\1", dated.read_text(), flags=re.MULTILINE))
    assert [(task.name, len(task.train)) for task in tasks()] == [("first", 6), ("then", 6)]


@pytest.mark.parametrize("kind", ["time", "data-incremental"])
def test_test_images_of_a_time_that_two_parts_have_go_to_the_first(dated: Path, kind: str) -> None:
    """Times may be as coarse as years: here that of the first seven days, which ends in the second part."""
    text = re.sub(r"2024-05-0[1-7]$", "2024-05-04", dated.read_text(), flags=re.MULTILINE)
    dated.write_text(text)
    tasks = cut(data.load(f"csv:{dated}", "time"), kind, tasks=3)
    assert [len(task.train) for task in tasks] == [4, 4, 4]
    assert [sorted(days_of(task.test)) for task in tasks] == [[3, 6], [9], [12, 15, 18]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda text: text.replace("2024-05-07", "soon"),
            'has the time "soon": use a number, or a date such as',
        ),
        (lambda text: text.replace("2024-05-07", "7"), "use numbers alone, or dates alone"),
        (lambda text: text.replace("date", "when"), 'has no column "time"'),
    ],
)
def test_times_that_cannot_be_read(dated: Path, change: Any, message: str) -> None:
    dated.write_text(change(dated.read_text()))
    with pytest.raises(UserError, match=message):
        data.load(f"csv:{dated}", "time")


def test_data_without_times_is_refused(source: Dataset) -> None:
    with pytest.raises(UserError, match="has no times: write them into a column time"):
        cut(source, "time")
