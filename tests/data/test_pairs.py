"""Images with captions as data: lists, text files beside images, shards; and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from everclip import data
from everclip.cli.app import main
from everclip.data import scenarios
from everclip.data.captions import PAIR
from everclip.errors import UserError
from tests.complaints import complaint
from tests.data.captioned import load, pairs, rows, said
from tests.data.lists import listed
from tests.tars import encoded, shard


def test_a_list_with_a_line_for_each_caption(tmp_path: Path) -> None:
    lines = rows(tmp_path)
    lines += [(lines[0][0], "noch eine", "red"), (lines[1][0], '["drei", "vier", "drei"]', "red")]
    found = load(f"csv:{listed(tmp_path / 'list.csv', 'image,caption,task', lines)}")
    assert found.captioned
    assert (found.class_names, found.domain_names) == ((PAIR,), ("blue", "green", "red", "yellow"))
    texts = said(found)
    assert len(texts) == 24
    assert texts[lines[0][0]] == [lines[0][1], "noch eine"]
    assert texts[lines[1][0]] == [lines[1][1], "drei", "vier"]
    assert all(part.of_domain(d).ids.size for part in (found.train, found.test) for d in range(4))
    assert found.words().startswith(f"csv:{tmp_path}/list.csv: {len(found.train)} training images with ")


def test_a_text_in_brackets_that_is_no_list_is_a_caption(tmp_path: Path) -> None:
    path = rows(tmp_path, 2, 2)[0][0]
    lines = [(path, "[a red wall]"), (path, "[3, 4]"), *((p, t) for p, t, _ in rows(tmp_path, 2, 2)[1:])]
    texts = said(load(f"csv:{listed(tmp_path / 'list.csv', 'path,caption', lines)}"))
    assert texts[path] == ["[a red wall]", "[3, 4]"]


def test_a_list_with_labels_stays_one_of_classes(tmp_path: Path) -> None:
    lines = [(path, task, text) for path, text, task in rows(tmp_path)]
    found = load(f"csv:{listed(tmp_path / 'list.csv', 'path,label,caption', lines)}")
    assert not found.captioned
    assert found.class_names == ("blue", "green", "red", "yellow")


def test_groups_are_classes_of_captions(tmp_path: Path) -> None:
    found = load(f"csv:{listed(tmp_path / 'list.csv', 'path,caption,group', rows(tmp_path))}")
    assert found.class_names == ("blue", "green", "red", "yellow")
    assert len(found.domain_names) == 1


# fmt: off
BAD: list[tuple[str, list[tuple[str, ...]], str]] = [
    ("path,caption", [("photos/red/0.png", "")],
     "line 2 of {list} has an empty caption: write one, or leave the line out"),
    ("path,caption", [("photos/red/0.png", '["a", ""]')],
     "line 2 of {list} has an empty caption: write one, or leave the image out"),
    ("path,caption", [("photos/red/0.png", "[]")],
     "line 2 of {list} has no caption: write one, or leave the image out"),
    ("path,caption,task", [("photos/red/0.png", "a", "x"), ("photos/red/0.png", "b", "y")],
     'line 3 of {list} and line 2 give "photos/red/0.png" another split, task, time or group: use one'),
    ("path,caption,time", [("photos/red/0.png", "a", "soon"), ("photos/red/1.png", "b", "1")],
     'has the time "soon": '),
    ("path,caption,time", [("photos/red/0.png", "a", "nan"), ("photos/red/1.png", "b", "1")],
     'has the time "nan": '),
    ("path,caption,split", [("photos/red/0.png", "a", "test")],
     "{list} lists only test images: add training images"),
    ("path,caption,split,task", [("photos/red/0.png", "a", "train", "x"), ("photos/red/1.png", "a", "test", "y")],
     'task "y" of {list} has no training images: add some, or leave it out'),
    ("path,caption,captions", [("photos/red/0.png", "a", "b")],
     'the header of {list} has "caption" and "captions" for the column caption: keep one'),
    ("caption,task", [("a", "b")], 'line 1 of {list} has no column "path" but "caption, task"'),
]
# fmt: on


@pytest.mark.parametrize(("header", "lines", "words"), BAD, ids=[words[-40:] for *_, words in BAD])
def test_a_bad_list_is_one_line(
    tmp_path: Path, header: str, lines: list[tuple[str, ...]], words: str
) -> None:
    rows(tmp_path, 2, 4)
    file = listed(tmp_path / "list.csv", header, lines)
    assert words.format(list=file) in complaint(load, f"csv:{file}")


def folder(root: Path) -> Path:
    """``TASK/N.png`` with ``N.txt`` beside, or ``N.json`` where N is even."""
    for path, text, task in rows(root / "made", 4, 2):
        place = root / "data" / task / Path(path).name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes((root / "made" / path).read_bytes())
        if int(place.stem) % 2:
            place.with_suffix(".txt").write_text(f"{text}\n\nzweite Zeile\n", "utf-8")
        else:
            place.with_suffix(".json").write_text(json.dumps({"caption": [text, "mur"], "width": 3}))
    return root / "data"


def test_text_files_beside_images(tmp_path: Path) -> None:
    found = load(f"captionfolder:{folder(tmp_path)}")
    assert found.domain_names == ("green", "red")
    texts = said(found)
    assert texts["red/1.png"] == ["a red wall, number 1", "zweite Zeile"]
    assert texts["red/2.png"] == ["a red wall, number 2", "mur"]
    (tmp_path / "split").mkdir()
    (tmp_path / "data").rename(tmp_path / "split" / "train")
    alone = load(f"captionfolder:{tmp_path / 'split'}")
    assert (alone.domain_names, alone.held_out) == (("green", "red"), True)
    folder(tmp_path)
    (tmp_path / "data").rename(tmp_path / "split" / "test")
    parts = load(f"captionfolder:{tmp_path / 'split'}")
    assert (len(parts.train), len(parts.test), parts.held_out) == (8, 8, False)
    assert parts.domain_names == ("green", "red")


FOLDERS: list[tuple[Callable[[Path], object], str]] = [
    (lambda root: (root / "red/1.txt").unlink(), "red/1.png has no caption: write 1.txt beside it, or remove it"),
    (lambda root: (root / "red/1.txt").write_text(" \n"), "red/1.txt has no caption: write one"),
    (lambda root: (root / "red/1.txt").write_bytes(b"\xff\xfe"), "line 1 is not UTF-8 text"),
    (lambda root: (root / "red/0.json").write_text("{"), "red/0.json cannot be read as a caption (no valid JSON"),
    (lambda root: (root / "red/0.json").write_text("[]"), 'red/0.json has no "caption"'),
    (lambda root: (root / "red/0.json").write_text('{"caption": 3}'), 'red/0.json has no "caption"'),
    (lambda root: (root / "red/1.txt").write_bytes(b"x" * (1 << 20) + b"x"), "larger than 1 MiB"),
    (lambda root: (root / "red").rename(root / "validation"), 'has "validation" and no parts "train" and "test"'),
]  # fmt: skip


@pytest.mark.parametrize(("spoil", "words"), FOLDERS, ids=[words[-20:] for _, words in FOLDERS])
def test_a_bad_folder_is_one_line(tmp_path: Path, spoil: Callable[[Path], object], words: str) -> None:
    root = folder(tmp_path)
    spoil(root)
    assert words in complaint(load, f"captionfolder:{root}")


def test_a_text_elsewhere_is_not_read(tmp_path: Path) -> None:
    root = folder(tmp_path)
    (tmp_path / "secret.txt").write_text("a secret")
    (root / "red/1.txt").unlink()
    (root / "red/1.txt").symlink_to(tmp_path / "secret.txt")
    with pytest.raises(UserError, match=r"red/1\.txt links out of"):
        load(f"captionfolder:{root}")


def test_captions_in_shards(tmp_path: Path) -> None:
    """As img2dataset writes them: .jpg, .json and .txt."""
    samples = [
        (
            f"{n:05}",
            {
                "jpg": encoded("red", n),
                "txt": f"wall {n}, 壁".encode(),
                "json": json.dumps({"caption": f"wall {n} of json", "key": n}).encode(),
            },
        )
        for n in range(6)
    ]
    shard(tmp_path / "train-0.tar", samples)
    found = load(f"webdataset:{tmp_path}?train=6,captions=txt")
    assert sorted(text for texts in said(found).values() for text in texts) == [
        f"wall {n}, 壁" for n in range(6)
    ]
    found = load(f"webdataset:{tmp_path}?captions=json,train=6")
    assert sorted(text for texts in said(found).values() for text in texts) == [
        f"wall {n} of json" for n in range(6)
    ]
    with pytest.raises(UserError, match=r"train=6,captions=txt' if these are all"):
        load(f"webdataset:{tmp_path}?captions=txt")
    with pytest.raises(UserError, match="use captions=txt or captions=json, once"):
        load(f"webdataset:{tmp_path}?captions=cls")
    del samples[3][1]["txt"]
    shard(tmp_path / "train-0.tar", samples)
    with pytest.raises(UserError, match=r'sample "00003" of shard .* has no \.txt with its caption: add one'):
        load(f"webdataset:{tmp_path}?train=6,captions=txt")


def test_tasks_by_name_by_time_and_in_parts(tmp_path: Path) -> None:
    lines = [(*row, f"2024-01-{25 - n:02}") for n, row in enumerate(rows(tmp_path))]
    found = load(f"csv:{listed(tmp_path / 'list.csv', 'path,caption,task,time', lines)}")

    def cut(**options: Any) -> list[scenarios.Task]:
        from everclip.config.sections import Scenario

        return scenarios.cut(scenarios.build(Scenario(kind="data-incremental", **options)), found, 0)

    assert [task.name for task in cut()] == ["blue", "green", "red", "yellow"]
    parts = cut(by="parts", tasks=3)
    assert (
        sorted(len(task.train) for task in parts)
        == [len(found.train) // 3 + (n < len(found.train) % 3) for n in range(3)][::-1]
    )
    assert sorted(i for task in parts for i in task.train.ids.tolist()) == sorted(found.train.ids.tolist())
    assert sorted(i for task in parts for i in task.test.ids.tolist()) == sorted(found.test.ids.tolist())
    assert [t.train.ids.tolist() for t in parts] == [t.train.ids.tolist() for t in cut(by="parts", tasks=3)]
    assert [t.train.ids.tolist() for t in parts] != [
        t.train.ids.tolist() for t in cut(by="parts", tasks=3, order=7)
    ]
    times = found.times
    assert times is not None
    by_time = cut(by="time", tasks=3)
    latest = -np.inf
    for task in by_time:  # each part is later than the one before, and its test images are of its time
        assert latest <= times[task.train.rows].min()
        assert latest <= times[task.test.rows].min(initial=np.inf)
        latest = times[task.train.rows].max()
    for options, words in (
        ({"by": "parts", "tasks": 99}, "scenario.tasks=99 but there are"),
        (
            {"by": "parts", "tasks": [3, 4]},
            "are sizes, which count classes: use a number of parts",
        ),
    ):
        with pytest.raises(UserError, match=words):
            cut(**options)
    bare = load(f"csv:{listed(tmp_path / 'bare.csv', 'path,caption', [row[:2] for row in lines])}")
    found = bare
    with pytest.raises(UserError, match="names fewer than two tasks: fill its column task"):
        cut(by="task")
    with pytest.raises(UserError, match="has no times: fill a column time"):
        cut(by="time")
    assert [task.name for task in cut(tasks=2)] == ["part 1", "part 2"]


def test_check_counts_captions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["datasets", "check", f"csv:{pairs(tmp_path)}"]) == 0
    assert "pairs.csv: 24 different captions\n" in capsys.readouterr().out


def test_captions_are_no_classes(tmp_path: Path) -> None:
    spec = f"csv:{pairs(tmp_path)}"
    with pytest.raises(UserError, match="has captions and no classes: give images with classes"):
        data.load(spec)
    with pytest.raises(UserError, match="templates= is for data with classes"):
        data.load(spec, templates="simple", pairs=True)
