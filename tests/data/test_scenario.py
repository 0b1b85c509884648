from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from everclip import data
from everclip.config.sections import Scenario
from everclip.data import scenarios
from everclip.data.images import Dataset
from everclip.data.scenario import Task, class_order, merge, seen, task_sizes
from everclip.errors import UserError
from tests.complaints import complaint
from tests.pictures import domain_folder, image_folder


def cut(source: Dataset, kind: str, seed: int = 0, **settings: Any) -> list[Task]:
    return scenarios.build(Scenario(kind=kind, **settings)).cut(source, seed)


def test_the_fields_class_order() -> None:
    """RandomState(1993).permutation, first and last entries, as PyCIL and UCIR have it."""
    cifar = class_order([str(n) for n in range(100)], 1993)
    assert cifar[:10] == [68, 56, 78, 8, 23, 84, 90, 65, 74, 76]
    assert cifar[-10:] == [51, 48, 73, 93, 39, 67, 29, 49, 57, 33]
    imagenet = class_order([str(n) for n in range(1000)], 1993)
    assert imagenet[:10] == [54, 7, 894, 512, 126, 337, 988, 11, 284, 493]
    assert imagenet[-5:] == [285, 225, 945, 697, 417]


def test_icarls_class_order() -> None:
    """The list in the code of iCaRL, PODNet, DyTox and Continual-CLIP."""
    names = [f"class {n}" for n in range(100)]
    order = class_order(names, "icarl")
    assert order[:10] == [87, 0, 52, 58, 44, 91, 68, 97, 51, 15]
    assert order[-10:] == [98, 13, 99, 7, 34, 55, 54, 26, 35, 39]
    assert sorted(order) == list(range(100))
    assert order != class_order(names, 1993)
    assert complaint(class_order, names[:99], "icarl") == (
        'scenario.order=icarl is for 100 classes, not 99: use a seed, "given" or the names'
    )


def test_other_orders() -> None:
    names = ["a", "b", "c"]
    assert class_order(names, "given") == [0, 1, 2]
    assert class_order(names, ["c", "a", "b"]) == [2, 0, 1]
    assert class_order(names, 1) != class_order(names, 3)


@pytest.mark.parametrize(
    ("order", "message"),
    [
        (["a", "b"], 'scenario.order leaves out the class "c": name each class once'),
        (["a", "b", "c", "c"], 'scenario.order names the class "c" twice: name each class once'),
        (["a", "b", "d"], 'scenario.order names the unknown class "d"; known: a, b, c'),
    ],
)
def test_bad_orders(order: list[str], message: str) -> None:
    assert complaint(class_order, ["a", "b", "c"], order) == message


def test_task_sizes() -> None:
    assert task_sizes(100, 10) == [10] * 10
    assert task_sizes(10, 4) == [3, 3, 2, 2]
    assert task_sizes(10, [6, 2, 2]) == [6, 2, 2]
    with pytest.raises(UserError, match=r"scenario.tasks=11 but there are 10 classes: use at most 10"):
        task_sizes(10, 11)
    with pytest.raises(UserError, match=r"adds up to 9 classes: make it 10"):
        task_sizes(10, [6, 3])


def test_class_incremental_partitions_classes_and_images(tmp_path: Path) -> None:
    source = data.load(f"imagefolder:{image_folder(tmp_path, {'train': 3, 'test': 2})}")
    tasks = cut(source, "class-incremental", tasks=[3, 2, 1])
    assert [len(task.classes) for task in tasks] == [3, 2, 1]
    assert sorted(seen(tasks)) == list(range(6))
    for task in tasks:
        assert set(task.train.labels) == set(task.test.labels) == set(task.classes)
    assert sorted(np.concatenate([task.train.ids for task in tasks])) == sorted(source.train.ids)


def test_domain_incremental(tmp_path: Path) -> None:
    source = data.load(f"domainfolder:{domain_folder(tmp_path)}", "domain-incremental")
    tasks = cut(source, "domain-incremental")
    assert [task.name for task in tasks] == ["domain0", "domain1", "domain2"]
    assert all(set(task.train.domains) == {task.index} for task in tasks)
    assert seen(tasks) == (0, 1, 2)
    turned = cut(source, "domain-incremental", order=["domain2", "domain0", "domain1"])
    assert [task.name for task in turned] == ["domain2", "domain0", "domain1"]
    shuffled = cut(source, "domain-incremental", order="seed", seed=3)
    assert [task.name for task in shuffled] == ["domain1", "domain0", "domain2"]
    with pytest.raises(UserError, match=r'unknown domain "dom"'):
        cut(source, "domain-incremental", order=["dom"])


def test_one_domain_is_refused(tmp_path: Path) -> None:
    source = data.load(f"imagefolder:{image_folder(tmp_path, {'': 3})}")
    with pytest.raises(
        UserError, match=r"has one domain: use scenario\.kind=class-incremental, or domainfolder"
    ):
        cut(source, "domain-incremental")


def test_merged_tasks_hold_everything_once(tmp_path: Path) -> None:
    source = data.load(f"imagefolder:{image_folder(tmp_path, {'train': 3, 'test': 2})}")
    (joint,) = merge(cut(source, "class-incremental", tasks=3))
    assert sorted(joint.train.ids) == sorted(source.train.ids)
    assert sorted(joint.test.ids) == sorted(source.test.ids)
    assert sorted(joint.classes) == list(range(6))
