"""data=csv:FILE where the list is wrong: one line that says where, and what to write instead."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from everclip import data
from everclip.data.sources import csv as source
from everclip.errors import UserError
from tests.complaints import complaint
from tests.data.lists import listed, load, photos


def line(text: str, header: str = "path,label") -> Callable[[Path], object]:
    """A list whose third line is ``text``."""
    return lambda root: (root / "list.csv").write_text(f"{header}\nphotos/red/0.png,red\n{text}\n", "utf-8")


def raw(content: bytes) -> Callable[[Path], object]:
    return lambda root: (root / "list.csv").write_bytes(content)


def linked(name: str, target: str) -> Callable[[Path], object]:
    """A link in the list's folder, which the third line names."""

    def spoil(root: Path) -> None:
        (root.parent / "out.png").write_bytes(b"")
        (root / "photos" / name).symlink_to(target)
        line(f"photos/{name}{'/out.png' if target.endswith('..') else ''},red")(root)

    return spoil


def rows(*cells: str, header: str = "path,label,split") -> Callable[[Path], object]:
    text = "\n".join((header, *cells))
    return lambda root: (root / "list.csv").write_text(text, "utf-8")


R, G = "photos/red/0.png,red", "photos/green/0.png,green"
DOMAINS = "path,label,split,domain"
RELATIVE = source.RELATIVE
QUOTES = "quote the cell, and double the quotes inside"

# fmt: off
BAD: list[tuple[str, Callable[[Path], object], str]] = [
    ("empty file", raw(b""),
     '{0} has no column "path" but nothing: use a header such as path,label or path,label,split,domain'),
    ("no header", raw(b"photos/red/0.png,red\n"),
     '{0} has no column "path" but "photos/red/0.png, red": use a header such as path,label or'
     " path,label,split,domain"),
    ("no label", rows("a", header="path,clas"),
     '{0} has no column "label" but "path, clas": use a header such as path,label or path,label,split,domain'),
    ("two columns for one", rows("a,b,c", header="path,label,image"),
     'the header of {list} has "path" and "image" for the column path: keep one'),
    ("header alone", rows(), "{list} lists no images: add some"),
    ("UTF-16", raw("path,label\n".encode("utf-16")), "{0} is not UTF-8 text: save it as UTF-8"),
    ("Latin-1", raw(b"path,label\nphotos/red/0.png,red\nphotos/red/1.png,Gr\xf6\xdfe\n"),
     "{2} is not UTF-8 text: save it as UTF-8"),
    ("endless line", raw(b"path,label\n" + b"x" * 1_100_000),
     "{1} is longer than 1,048,576 bytes: shorten it"),
    ("huge cell", line(f'"{("x" * 200_000 + chr(10)) * 6}",red'),
     f"{{2}} is malformed (field larger than field limit (1048576)): {QUOTES}"),
    ("open quote", line('"photos/red/1.png,red'), f"{{2}} is malformed (unexpected end of data): {QUOTES}"),
    ("stray quote", line('"photos"/red,red'), f"{{2}} is malformed (',' expected after '\"'): {QUOTES}"),
    ("too many cells", line("photos/red/1.png,hot dog, with mustard"),
     "{2} has 3 columns, not 2: quote cells with separators"),
    ("too few cells", line("photos/red/1.png"),
     "{2} has 1 columns, not 2: quote cells with separators"),
    ("empty path", line(" ,red"), "{2} has an empty path: write one, or leave the line out"),
    ("empty label", line("photos/red/1.png, "), "{2} has an empty label: write one, or leave the line out"),
    ("empty split", rows(f"{R},"), "{1} has an empty split: write one, or leave the line out"),
    ("empty domain", rows(f"{R},train,", header=DOMAINS), "{1} has an empty domain: write one, or leave the line out"),
    ("unknown split", rows(f"{R},dev"), '{1} has the split "dev": use train, test or val'),
    ("absolute path", line("/etc/passwd,red"),
     f'{{2}} has the path "/etc/passwd": {RELATIVE}'),
    ("path of a drive", line(r"C:\photos\1.png,red"),
     rf'{{2}} has the path "C:\photos\1.png": {RELATIVE}'),
    ("path that goes up", line("photos/../../x.png,red"),
     f'{{2}} has the path "photos/../../x.png": {RELATIVE}'),
    ("link that leaves", linked("x.png", "/etc/hostname"),
     '{2}: "photos/x.png" is not a file in the list\'s folder: put the image itself there'),
    ("folder that leaves", linked("up", "../.."),
     '{2}: "photos/up/out.png" is not a file in the list\'s folder: put the image itself there'),
    ("link to nowhere", linked("x.png", "nowhere"),
     f'{{2}}: "photos/x.png" cannot be read (No such file or directory): {RELATIVE}'),
    ("missing image", line("photos/red/99.png,red"),
     f'{{2}}: "photos/red/99.png" cannot be read (No such file or directory): {RELATIVE}'),
    ("backslashes", line(r"photos\red\1.png,red"),
     rf'{{2}}: "photos\red\1.png" cannot be read (No such file or directory): {RELATIVE}'),
    ("endless name", line(f"{'x' * 5000},red"),
     f'{{2}}: "{"x" * 56}... cannot be read (File name too long): {RELATIVE}'),
    ("zero byte", line("photos/\0.png,red"),
     f'{{2}}: "photos/\\u0000.png" cannot be read (embedded null byte): {RELATIVE}'),
    ("folder as image", line("photos/red,red"),
     '{2}: "photos/red" is not a file in the list\'s folder: put the image itself there'),
    ("pipe as image", lambda root: (os.mkfifo(root / "pipe.png"), line("pipe.png,red")(root)),
     '{2}: "pipe.png" is not a file in the list\'s folder: put the image itself there'),
    ("image twice", line("photos/./red/0.png,green"),
     'line 3 of {list} lists "photos/red/0.png" as line 2 does: keep one'),
    ("one class", line("photos/red/1.png,red"),
     '{list} has one class, "red": a classifier needs two: add another'),
    ("a caption", line(f"photos/red/1.png,{'long ' * 60}"),
     'a label of {list} has 299 characters ("long long long long long long ..."): use the class\'s name'),
    ("names that collide", rows("photos/red/0.png,hot dog", "photos/red/1.png,hot_dog", header="path,label"),
     'classes "hot dog" and "hot_dog" of {list} are both named "hot dog": rename one, or name it in classnames.txt'
     " (folder<TAB>name)"),
    ("tests alone", rows(f"{R},test", f"{G},test"), "{list} lists only test images: add training images"),
    ("class that is only tested", rows(f"{R},test", f"{G},train"),
     'class "red" of {list} has no training images: add some, or leave it out'),
    ("number beyond the names", lambda root: (
        rows("photos/red/0.png,0", "photos/red/1.png,5", header="path,label")(root),
        (root / "classnames.txt").write_text("a\nb\nc\n")),
     "{list} has class 5, and {root}/classnames.txt 3 lines: name all from 0"),
    ("blank name", lambda root: (
        rows("photos/red/0.png,0", "photos/red/1.png,2", header="path,label")(root),
        (root / "classnames.txt").write_text("a\nb\n \nd\n")),
     "line 3 of {root}/classnames.txt is blank: write the name of class 2"),
    ("blank name of few", lambda root: (
        rows("photos/red/0.png,3", "photos/red/1.png,7", header="path,label")(root),
        (root / "classnames.txt").write_text("\nb\n\n")),
     "line 1 of {root}/classnames.txt is blank: write the name of class 3"),
]
# fmt: on


@pytest.mark.parametrize(("spoil", "message"), [case[1:] for case in BAD], ids=[case[0] for case in BAD])
def test_bad_lists(tmp_path: Path, spoil: Callable[[Path], object], message: str) -> None:
    root = tmp_path / "set"
    photos(root, 2, 2)
    spoil(root)
    said = complaint(load, root / "list.csv")
    lines = [f"line {number} of {root}/list.csv" for number in range(1, 4)]
    assert said == message.format(*lines, list=root / "list.csv", root=root)
    assert said.isprintable()


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("", 'data "csv" needs a file: use data=csv:FILE, with a header such as path,label'),
        ("{0}/no.csv", "list {0}/no.csv cannot be read (No such file or directory): give a csv file"),
        ("{0}", "list {0} is a folder: give a csv file, or use data=imagefolder:{0}"),
        ("/dev/zero", "list /dev/zero cannot be read (it is a device): give a csv file"),
    ],
)
def test_no_list(tmp_path: Path, spec: str, message: str) -> None:
    assert complaint(data.load, f"csv:{spec.format(tmp_path)}") == message.format(tmp_path)


@pytest.mark.parametrize(
    ("header", "cells", "message"),
    [
        ("path,label,split", ["train", "test"],
         'has fewer than 2 domains: write each image\'s domain into a column "domain", or use'
         " scenario.kind=class-incremental"),
        (DOMAINS, ["train,ink", "test,ink"],
         'has fewer than 2 domains: write each image\'s domain into a column "domain", or use'
         " scenario.kind=class-incremental"),
        (DOMAINS, ["train,ink", "test,ink", "train,oil", "train,ink"],
         'domain "oil" of {list} has no test images: add some, or leave it out'),
        (DOMAINS, ["train,ink", "test,ink", "test,oil", "train,ink"],
         'domain "oil" of {list} has no training images: add some, or leave it out'),
        (DOMAINS, ["train,in_oil", "test,in oil", "train,ink", "train,ink"],
         'domain "in oil" of {list} has no training images: add some, or leave it out'),
    ],
)  # fmt: skip
def test_bad_domains(tmp_path: Path, header: str, cells: list[str], message: str) -> None:
    images = [row[0] for row in photos(tmp_path, 4, 2)]
    names = ["red", "red", "red", "green"] if len(cells) == 4 else ["red", "red"]
    listing = [f"{image},{name},{cell}" for image, name, cell in zip(images, names, cells, strict=False)]
    if len(cells) == 2:
        listing += [f"{image},green,{cell}" for image, cell in zip(images[2:], cells, strict=False)]
    rows(*listing, header=header)(tmp_path)
    file = tmp_path / "list.csv"
    wanted = message.format(list=file)
    wanted = wanted if wanted.startswith("domain") else f"{file} {wanted}"
    assert complaint(load, file, "domain-incremental") == wanted


@pytest.mark.usefixtures("unprivileged")
def test_an_unreadable_list(tmp_path: Path) -> None:
    file = listed(tmp_path / "list.csv", "path,label", photos(tmp_path, 2, 2))
    file.chmod(0)
    with pytest.raises(UserError, match=r"cannot be read \(Permission denied\): give a csv file"):
        load(file)


def test_images_that_are_too_large_or_too_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = listed(tmp_path / "list.csv", "path,label", photos(tmp_path, 2, 2))
    monkeypatch.setattr(source, "MOST_IMAGES", 3)
    with pytest.raises(UserError, match="lists more than 3 images: split it into several lists"):
        load(file)
    monkeypatch.setattr(source, "MOST_BYTES", 10)
    with pytest.raises(UserError, match=r'line 2 of .*: "photos/red/0.png" has [\d,]+ bytes: use at most 10'):
        load(file)
