"""data=hf:NAME: folders as the package `datasets` writes them, split and trained on; their columns and splits."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from everclip.cli import app
from everclip.data.formats.hub import caches
from everclip.errors import UserError
from tests.complaints import complaint
from tests.data.hf_sets import NAMES, cast, counts, datasets, load, parquet, saved, table
from tests.learned import coloured
from tests.pictures import image_folder
from tests.running import run
from tests.tars import encoded

pytestmark = pytest.mark.usefixtures("hf_cache")


@pytest.mark.parametrize("written", ["saved", "parquet"])
def test_a_folder_is_trained_on(tmp_path: Path, toy: str, written: str) -> None:
    splits = {"train": table(6), "test": table(2, start=100)}
    root = saved(tmp_path / "set", **splits) if written == "saved" else parquet(tmp_path / "set", 2, **splits)
    found = load(root)
    assert found.class_names == tuple(NAMES)
    assert counts(found) == ([6] * 4, [2] * 4)
    assert not found.held_out
    assert found.train.store.keys[0] == "train/0"
    assert found.train.store.read(int(found.train.rows[5])) == encoded("red", 5, "png")
    assert found.train.store.read(int(found.test.rows[2])) == encoded("green", 102, "png")
    results = run(tmp_path / "run", f"data=hf:{root}", f"model={toy}", "scenario.tasks=2")
    assert len(results["accuracy_after_stage"]) == 2
    assert set(results["classes"]) == set(NAMES)
    assert results["skipped_images"] == []


def test_domains_are_trained_on(tmp_path: Path, toy: str) -> None:
    root = saved(tmp_path / "set", train=table(8, NAMES[:2], domain=["ink", "ink", "in_oil", "in_oil"]))
    found = load(root, "domain-incremental")
    assert found.domain_names == ("in oil", "ink")
    assert found.held_out
    for domain in range(2):
        assert set(found.test.of_domain(domain).labels) == {0, 1}
    tokens = [f"data=hf:{root}", f"model={toy}", "scenario.kind=domain-incremental"]
    results = run(tmp_path / "run", *tokens, 'scenario.order=["ink", "in_oil"]')
    assert results["tasks"] == ["ink", "in oil"]


def test_times_are_read_where_they_order_the_stream(tmp_path: Path) -> None:
    days = ["2024-05-31", "2023-01-01", "2025-12-24"]
    root = saved(tmp_path / "set", train=table(3, date=days), test=table(1, start=100, date=days))
    found = load(root, "time")
    assert found.times is not None
    assert found.times[found.train.rows].argsort(kind="stable").tolist()[:4] == [1, 4, 7, 10]
    assert len(found.times) == 16
    assert load(root).times is None
    again = load(root, "data-incremental").times
    assert again is not None
    assert np.array_equal(again, found.times)
    named = saved(tmp_path / "named", train=table(3, task=["b", "a"]))
    assert load(named, "data-incremental").domain_names == ("a", "b")
    assert load(f"{named}#task=task", "data-incremental").domain_names == ("a", "b")
    assert load(named).domain_names == ("",)
    with pytest.raises(UserError, match="holds no times: choose another time"):
        load(f"{root}#time=label", "time")
    plain = saved(tmp_path / "plain", train=table(3))
    with pytest.raises(UserError, match=r"has no time column but .*: use hf:.*#time=COLUMN"):
        load(plain, "time")


def test_one_split_alone_is_split(tmp_path: Path) -> None:
    table(10).save_to_disk(tmp_path / "one")
    found = load(tmp_path / "one")
    assert found.held_out
    assert len(found.whole()) == 40
    assert (found.test.counts(4) > 0).all()


def test_images_in_class_folders(tmp_path: Path) -> None:
    image_folder(tmp_path / "set", {"train": 3, "test": 2}, 3)
    found = load(tmp_path / "set")
    assert found.class_names == ("blue", "green", "red")
    assert counts(found) == ([3] * 3, [2] * 3)
    for row in (*found.train.rows, *found.test.rows):
        key = found.train.store.keys[int(row)]
        assert found.train.store.read(int(row)) == (tmp_path / "set" / key).read_bytes()


def test_changed_files_are_read_anew(tmp_path: Path, hf_cache: Path) -> None:
    assert str(hf_cache) in caches()
    root = parquet(tmp_path / "set", train=table(2), test=table(1))
    assert len(load(root).train) == 8
    table(3).to_parquet(root / "data" / "train-00000-of-00001.parquet")
    assert len(load(root).train) == 12


def test_class_names_and_templates_files(tmp_path: Path) -> None:
    root = saved(tmp_path / "set", train=table(3))
    (root / "classnames.txt").write_text("red\trose\n")
    (root / "templates.txt").write_text("a {} thing\n")
    found = load(root)
    assert found.class_names == ("white", "rose", "green", "blue")
    assert found.templates == ("a {} thing",)


def test_class_folders_that_are_numbers_name_lines_of_classnames(tmp_path: Path) -> None:
    """10 comes before 2 among folders."""
    for number in range(11):
        coloured(tmp_path / "train", {str(number): (20 * number, 90, 90)}, 2)
    (tmp_path / "classnames.txt").write_text("".join(f"name {line}\n" for line in range(10)))
    with pytest.raises(UserError, match=r"has class 10, and .*classnames\.txt 10 lines: name all from 0"):
        load(tmp_path)
    (tmp_path / "classnames.txt").write_text("".join(f"name {line}\n" for line in range(12)))
    assert load(tmp_path).class_names[:3] == ("name 0", "name 1", "name 10")


def test_labels_that_are_names_or_numbers(tmp_path: Path) -> None:
    root = saved(tmp_path / "names", train=cast(table(3), "category", "string", str.title))
    assert load(root).class_names == ("Blue", "Green", "Red", "White")
    number = {"white": 10, "red": 9, "green": 2, "blue": 0}
    root = saved(tmp_path / "numbers", train=cast(table(3), "target", "int32", number.__getitem__))
    assert load(root).class_names == ("0", "2", "9", "10")
    root = saved(tmp_path / "other", train=cast(table(3), "what", "string", str))
    assert load(f"{root}#label=what").class_names == ("blue", "green", "red", "white")


def test_columns_are_chosen(tmp_path: Path) -> None:
    fine = table(3).rename_columns({"image": "img", "label": "fine_label"})
    coarse = [label % 2 for label in fine["fine_label"]]
    both = fine.add_column("coarse_label", coarse, feature=datasets.ClassLabel(names=["x", "y"]))
    root = saved(tmp_path / "set", train=both)
    assert load(f"{root}#label=coarse_label").class_names == ("x", "y")
    assert load(f"{root}#image=img,label=fine_label").class_names == tuple(NAMES)
    assert load(f"{root}#label=fine_label,domain=coarse_label").domain_names == ("x", "y")
    assert complaint(load, root) == (
        f'hf:{root} has several label columns, "fine_label, coarse_label": use hf:{root}#label=COLUMN'
    )


@pytest.mark.parametrize("kind", ["binary", "large_binary"])
def test_images_as_bytes_alone(tmp_path: Path, kind: str) -> None:
    pictures = table(3).cast_column("image", datasets.Image(decode=False))
    contents = [row["bytes"] for row in pictures["image"]]
    plain = pictures.remove_columns("image").add_column("content", contents, feature=datasets.Value(kind))
    found = load(saved(tmp_path / "set", train=plain, test=plain))
    assert [found.train.store.read(int(row)) for row in found.train.rows] == contents


@pytest.mark.parametrize("kind", ["string", "large_string"])
def test_images_as_paths_in_the_folder(tmp_path: Path, kind: str) -> None:
    files = [f"{name}/{number}.png" for name in NAMES[:2] for number in range(3)]
    for file in files:
        (tmp_path / "set" / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "set" / file).write_bytes(encoded("red", len(file), "png"))
    kinds = datasets.Features({"file": datasets.Value(kind), "label": datasets.Value("string")})
    rows = {"file": files, "label": [file.partition("/")[0] for file in files]}
    datasets.Dataset.from_dict(rows, features=kinds).save_to_disk(tmp_path / "saved")
    shutil.copytree(tmp_path / "saved", tmp_path / "set", dirs_exist_ok=True)
    found = load(f"{tmp_path / 'set'}#image=file")
    assert sorted(found.train.store.keys) == sorted(files)
    assert found.train.store.read(0) == (tmp_path / "set" / files[0]).read_bytes()
    (tmp_path / "set" / files[4]).rename(tmp_path / "away.png")
    with pytest.raises(
        UserError, match=rf'row 4 of the split "train" of .*{files[4]}", which is missing: copy it'
    ):
        load(f"{tmp_path / 'set'}#image=file")
    (tmp_path / "away.png").rename(tmp_path / "set" / files[4])
    (tmp_path / "out.png").write_bytes(b"")
    rows["file"][1] = "../out.png"
    datasets.Dataset.from_dict(rows, features=kinds).save_to_disk(tmp_path / "other")
    with pytest.raises(UserError, match="lies outside of the data set"):
        load(f"{tmp_path / 'other'}#image=file")


def test_splits_are_chosen(tmp_path: Path) -> None:
    root = saved(tmp_path / "set", train=table(3), validation=table(2), extra=table(1))
    assert counts(load(root)) == ([3] * 4, [2] * 4)
    assert counts(load(f"{root}#train=validation,test=extra")) == ([2] * 4, [1] * 4)
    assert counts(load(f"{root}#train=extra")) == ([1] * 4, [2] * 4)


def test_splits_that_number_classes_differently(tmp_path: Path) -> None:
    root = saved(tmp_path / "set", train=table(3), test=table(2, NAMES[::-1]))
    found = load(root)
    assert found.class_names == tuple(NAMES)
    row = int(found.test.rows[0])
    assert found.test.store.read(row) == encoded("blue", 0, "png")
    assert found.class_names[found.test.labels[0]] == "blue"


def test_a_broken_image_is_skipped(tmp_path: Path, toy: str) -> None:
    pictures = table(6, NAMES[:2])
    rows = pictures.cast_column("image", datasets.Image(decode=False)).to_dict()
    rows["image"][3] = {"bytes": b"no picture", "path": None}
    split = datasets.Dataset.from_dict(rows, features=pictures.features)
    root = saved(tmp_path / "set", train=split, test=table(2, NAMES[:2]))
    results = run(tmp_path / "run", f"data=hf:{root}", f"model={toy}", "scenario.tasks=2")
    assert results["skipped_images"] == ["train/3"]


def test_datasets_check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = saved(tmp_path / "set", train=table(6), test=table(2))
    capsys.readouterr()
    assert app.main(["datasets", "check", f"hf:{root}"]) == 0
    captured = capsys.readouterr()
    assert re.search(r"all\s+24\s+8\n32 of a sample of 32 images can be decoded", captured.out)
    assert captured.err == ""
    arrow = next((root / "test").glob("*.arrow"))
    arrow.write_bytes(arrow.read_bytes()[:2000])
    assert app.main(["datasets", "check", f"hf:{root}"]) == 1
    assert f'data "hf:{root}" cannot be loaded (Expected to' in capsys.readouterr().out


def test_json_of_the_list_is_short(capsys: pytest.CaptureFixture[str]) -> None:
    assert app.main(["datasets", "--json"]) == 0
    listed = {row["name"]: row["summary"] for row in json.loads(capsys.readouterr().out)}
    assert all(listed[name].startswith(f"{name}:") for name in ("csv", "hf", "webdataset"))
