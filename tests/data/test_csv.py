"""data=csv:FILE: lists as people write them, split and trained on."""

from __future__ import annotations

import csv
import json
import re
import shutil
from pathlib import Path

import pytest

from everclip import data
from everclip.cli import app
from everclip.data.formats.folders import Fence
from tests.data.lists import listed, load, photos, split
from tests.running import run


def test_a_list_with_a_split_is_trained_on(tmp_path: Path, toy: str) -> None:
    file = listed(tmp_path / "list.csv", "path,label,split", split(photos(tmp_path)))
    found = load(file)
    assert found.class_names == ("blue", "green", "red", "yellow")
    assert (found.train.counts(4).tolist(), found.test.counts(4).tolist()) == ([4] * 4, [2] * 4)
    assert not found.held_out
    row = int(found.train.rows[0])
    assert found.train.store.read(row) == (tmp_path / found.train.store.keys[row]).read_bytes()
    results = run(tmp_path / "run", f"data=csv:{file}", f"model={toy}", "scenario.tasks=2")
    assert len(results["accuracy_after_stage"]) == 2
    assert set(results["classes"]) == set(found.class_names)
    assert results["skipped_images"] == []


def test_a_list_of_domains_is_trained_on(tmp_path: Path, toy: str) -> None:
    rows = photos(tmp_path, 8, 2)
    rows = [(*row, "in_oil" if int(Path(row[0]).stem) % 2 else "ink") for row in rows]
    file = listed(tmp_path / "list.csv", "path,label,domain", rows)
    found = load(file, "domain-incremental")
    assert found.domain_names == ("in oil", "ink")
    assert found.held_out
    for domain in range(2):  # a fifth of each class in each domain is held out
        assert set(found.test.of_domain(domain).labels) == {0, 1}
        assert set(found.train.of_domain(domain).labels) == {0, 1}
    tokens = [f"data=csv:{file}", f"model={toy}", "scenario.kind=domain-incremental"]
    results = run(tmp_path / "run", *tokens, 'scenario.order=["ink", "in_oil"]')
    assert results["tasks"] == ["ink", "in oil"]


def test_the_held_out_part_depends_on_the_files_names_alone(tmp_path: Path) -> None:
    rows = photos(tmp_path, 20, 2)
    found = load(listed(tmp_path / "a.csv", "path,label", rows))
    assert found.held_out
    assert len(found.whole()) == 40
    again = load(
        listed(tmp_path / "b.csv", "path,label", [row for row in reversed(rows) if "/1" not in row[0]])
    )
    assert set(again.test.ids) <= set(found.test.ids)


@pytest.mark.parametrize(
    ("header", "separator", "encoding"),
    [
        ("path,label,split", ",", "utf-8-sig"),
        ("image,class,split", "\t", "utf-8"),
        ("File,Label,SPLIT", ";", "utf-8-sig"),
        ("filepath,class,split", ",", "utf-8"),
    ],
)
def test_headers_separators_and_byte_order_marks(
    tmp_path: Path, header: str, separator: str, encoding: str
) -> None:
    rows = [
        (path, f'{name}, the "Größe"', part.upper()) for path, name, part in split(photos(tmp_path, 3, 2))
    ]
    found = load(listed(tmp_path / "list.tsv", header, rows, separator, encoding))
    assert found.class_names == ('green, the "Größe"', 'red, the "Größe"')
    assert len(found.test) == 4


def test_other_columns_blank_lines_and_odd_cells(tmp_path: Path) -> None:
    photos(tmp_path, 2, 2)
    (tmp_path / "photos" / "red" / "ünï,\n1.png").write_bytes((tmp_path / "photos/red/0.png").read_bytes())
    (tmp_path / "list.csv").write_text(
        'id,label,path\n\n7, hot_dog , ./photos//red/0.png \n,"hot_dog","photos/red/ünï,\n1.png"\n,,\n'
        "1,cat,photos/green/0.png\n2,cat,photos/green/1.png",
        encoding="utf-8",
    )
    found = load(tmp_path / "list.csv")
    assert found.class_names == ("cat", "hot dog")
    assert sorted(found.train.store.keys)[2:] == ["photos/red/0.png", "photos/red/ünï,\n1.png"]


def test_val_stands_for_test_and_is_left_out_beside_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [(*row[:2], row[2].replace("test", "val")) for row in split(photos(tmp_path, 4, 2))]
    assert len(load(listed(tmp_path / "list.csv", "path,label,split", rows)).test) == 4
    rows[0] = (*rows[0][:2], "test")
    found = load(listed(tmp_path / "list.csv", "path,label,split", rows))
    assert (len(found.train), len(found.test)) == (4, 1)
    assert caplog.messages == [f"{tmp_path}/list.csv has test images: its 3 val images are left out"]
    rows = [(*row[:2], "train") for row in rows]
    assert load(listed(tmp_path / "list.csv", "path,label,split", rows)).held_out


def test_numbers_and_files_of_names(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    number = {"red": "10", "green": "2", "blue": "0"}
    rows = [(path, number[name]) for path, name in photos(tmp_path, 3, 3)]
    file = listed(tmp_path / "list.csv", "path,label", rows)
    assert load(file).class_names == ("0", "2", "10")
    assert caplog.messages[0].startswith(
        f'the classes of {file} are numbers, so that prompts read "a photo of a 10."'
    )
    (tmp_path / "classnames.txt").write_text("sky\ngrass\nrose\n")
    (tmp_path / "templates.txt").write_text("a {} thing\n")
    assert load(file).class_names == ("sky", "grass", "rose")
    assert load(file).templates == ("a {} thing",)
    (tmp_path / "classnames.txt").write_text("".join(f"name {line}\n" for line in range(12)))
    assert load(file).class_names == ("name 0", "name 2", "name 10")
    names = [f"name {line}\n" if line in (0, 2, 10) else "\n" for line in range(12)]
    (tmp_path / "classnames.txt").write_text("".join(names))
    assert load(file).class_names == ("name 0", "name 2", "name 10")
    (tmp_path / "classnames.txt").write_text("10\tten\n\n")
    assert load(file).class_names == ("0", "2", "ten")


def test_links_inside_of_the_folder(tmp_path: Path) -> None:
    rows = split(photos(tmp_path / "real", 3, 2), 1)
    (tmp_path / "real" / "linked").symlink_to("photos", target_is_directory=True)
    (tmp_path / "here").symlink_to("real", target_is_directory=True)
    rows = [(path.replace("photos", "linked"), *rest) for path, *rest in rows]
    listed(tmp_path / "real" / "list.csv", "path,label,split", rows)
    assert len(load(tmp_path / "here" / "list.csv").train) == 4


def test_broken_images_are_skipped(tmp_path: Path, toy: str) -> None:
    file = listed(tmp_path / "list.csv", "path,label,split", split(photos(tmp_path, 4, 2)))
    (tmp_path / "photos/red/3.png").write_bytes(b"no picture")
    results = run(tmp_path / "run", f"data=csv:{file}", f"model={toy}", "scenario.tasks=2")
    assert results["skipped_images"] == ["photos/red/3.png"]


def test_datasets_check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = listed(tmp_path / "list.csv", "path,label,split", split(photos(tmp_path)))
    assert app.main(["datasets", "check", f"csv:{file}"]) == 0
    said = capsys.readouterr().out
    assert re.search(r"all\s+16\s+8\n24 of a sample of 24 images can be decoded", said)
    (tmp_path / "photos/red/3.png").write_bytes(b"no picture")
    assert app.main(["datasets", "check", f"csv:{file}"]) == 1
    assert "photos/red/3.png cannot be decoded" in capsys.readouterr().out
    (tmp_path / "photos/red/3.png").unlink()
    assert app.main(["datasets", "check", f"csv:{file}"]) == 1
    assert f'of {file}: "photos/red/3.png" cannot be read (No such file' in capsys.readouterr().out


def test_a_cell_may_be_as_long_as_a_line(tmp_path: Path) -> None:
    """As a list of captions is, which has its own limit. The csv module's is that of the process, and stays."""
    said = json.dumps([f"{number} {'wall ' * 50}".strip() for number in range(800)])
    file = listed(tmp_path / "list.csv", "path,caption", [(path, said) for path, _ in photos(tmp_path, 3, 1)])
    assert len(said) > csv.field_size_limit() == 131_072
    found = data.load(f"csv:{file}", pairs=True)
    assert found.train.captions is not None
    assert len(found.train.captions.texts) == 800
    assert csv.field_size_limit() == 131_072


def test_the_fence(tmp_path: Path) -> None:
    inside, outside = tmp_path / "in", tmp_path / "in-not"
    for folder in (inside, outside):
        folder.mkdir()
        (folder / "a").write_bytes(b"")
    (inside / "link").symlink_to(outside, target_is_directory=True)
    (inside / "loop").symlink_to("loop")
    fence = Fence(inside)
    assert fence.holds(f"{inside}/a")
    assert fence.holds(f"{inside}/no/such")
    for path in (f"{outside}/a", f"{inside}/link/a", f"{inside}/..", f"{inside}/../in-not/a", "/etc/passwd"):
        assert not fence.holds(path)
    shutil.rmtree(outside)
    assert not fence.holds(f"{inside}/link")
