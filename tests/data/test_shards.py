"""Reading tar files of samples: what is taken, what is left alone, what a bad one is told."""

from __future__ import annotations

import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from everclip.data.formats import shards
from everclip.data.formats.shards import TarStore, read_shard
from everclip.errors import UserError
from tests.complaints import complaint
from tests.tars import Sample, encoded, samples, shard

JPG = encoded("red", 0)


def one(**members: bytes) -> list[Sample]:
    return [("7", members)]


def broken(path: Path) -> str:
    said = complaint(read_shard, path)
    assert said.isprintable()
    return said


@pytest.mark.parametrize("layout", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_image_is_found_by_its_place(tmp_path: Path, layout: int) -> None:
    content = samples(3)
    content.append((f"{'n' * 90}/{'x' * 90}", {"jpg": JPG, "cls": b"1"}))
    found = read_shard(shard(tmp_path / "a.tar", content, layout))
    assert found.keys == [key for key, _ in content]
    assert found.labels == [members["cls"].decode() for _, members in content]
    store = TarStore(tmp_path, [found])
    assert store.keys[0] == "a.tar/000000"
    for row, (_, members) in enumerate(content):
        assert store.read(row) == members["jpg"]
        assert store.nbytes(row) == len(members["jpg"])


def test_pickles_arrays_and_other_members_are_never_looked_at(tmp_path: Path) -> None:
    others = ["pyd", "pickle", "npy", "pth", "mp", "seg.png", "html"]
    found = read_shard(shard(tmp_path / "a.tar", samples(2), others=others))
    assert len(found.keys) == 8
    with tarfile.open(tmp_path / "a.tar", "a") as tar:  # files that macOS and people put beside
        for name in ("._000000.jpg", "README", ".hidden.cls"):
            tar.addfile(tarfile.TarInfo(name))
    assert len(read_shard(tmp_path / "a.tar").keys) == 8


@pytest.mark.parametrize(
    ("members", "label"),
    [
        ({"cls": b"007\n"}, "7"),
        ({"cls": b"0"}, "0"),
        ({"cls": b" ", "txt": b"hot dog\n"}, "hot dog"),
        ({"cls": b"3", "txt": b"a caption", "json": b'{"label": "cat"}'}, "3"),
        ({"json": b'{"label": 12}'}, "12"),
        ({"json": b'\xef\xbb\xbf{"label": " cat "}'}, "cat"),
        ({"json": b'{"label": null, "url": ""}', "txt": b"cat"}, "cat"),
        ({"json": b"[1, 2]", "txt": "Größe".encode()}, "Größe"),
        ({"txt": b"12"}, "12"),
    ],
)
def test_labels(tmp_path: Path, members: dict[str, bytes], label: str) -> None:
    assert read_shard(shard(tmp_path / "a.tar", one(JPG=JPG, **members))).labels == [label]


NUMBER = "use a number from 0, or a name in .txt or .json"

# fmt: off
BAD: list[tuple[str, list[Sample], str]] = [
    ("no image", one(cls=b"1"), 'sample "7" of {} has no image: add jpg/jpeg/png/webp'),
    ("two images", one(cls=b"1", jpg=JPG, png=JPG), 'sample "7" of {} has jpg and png: keep one of them'),
    ("no label", one(jpg=JPG), 'sample "7" of {} has no label: add a .cls, a .txt or a .json with "label"'),
    ("empty label", one(jpg=JPG, cls=b"\n", json=b"{}"),
     'sample "7" of {} has no label: add a .cls, a .txt or a .json with "label"'),
    ("a name in .cls", one(jpg=JPG, cls=b"cat"),
     'sample "7" of {} has the label "cat" in .cls: ' + NUMBER),
    ("a fraction in .cls", one(jpg=JPG, cls=b"1.5"),
     'sample "7" of {} has the label "1.5" in .cls: ' + NUMBER),
    ("a pickle in .cls", one(jpg=JPG, cls=b"\x80\x04K\x01."),
     'sample "7" of {} has a .cls that is not UTF-8 text: use a class\'s number or name'),
    ("below zero", one(jpg=JPG, cls=b"-1"),
     'sample "7" of {} has the label "-1" in .cls: ' + NUMBER),
    ("a fraction in .json", one(jpg=JPG, json=b'{"label": 1.5}'),
     'sample "7" of {} has the label 1.5 in .json: ' + NUMBER),
    ("a truth in .json", one(jpg=JPG, json=b'{"label": true}'),
     'sample "7" of {} has the label true in .json: ' + NUMBER),
    ("several in .json", one(jpg=JPG, json=b'{"label": [1, 2]}'),
     'sample "7" of {} has the label [1, 2] in .json: ' + NUMBER),
    ("no JSON", one(jpg=JPG, json=b"{"),
     'sample "7" of {} has a .json that is not JSON: use a class\'s number or name'),
    ("deep JSON", one(jpg=JPG, json=b"[" * 100_000),
     'sample "7" of {} has a .json that is not JSON: use a class\'s number or name'),
    ("a long text", one(jpg=JPG, txt=b"x" * 2_000_000),
     'sample "7" of {} has a .txt of 2,000,000 bytes: use the label alone'),
    ("a key twice", [*samples(1), *samples(1)],
     '{} holds the key "000000" twice: keep the files of a sample together'),
    ("files apart", [("1", {"jpg": JPG}), ("2", {"jpg": JPG, "cls": b"1"}), ("1", {"cls": b"0"})],
     'sample "1" of {} has no label: add a .cls, a .txt or a .json with "label"'),
    ("a file twice", [("1", {"jpg": JPG}), ("1", {"jpg": JPG})],
     '{} holds the file "1.jpg" twice: keep one'),
    ("a name that is not text", [("\udcff", {"jpg": JPG, "cls": b"1"})],
     '{} holds "\\udcff", which is not a UTF-8 name: rename it'),
]
# fmt: on


@pytest.mark.parametrize(("content", "message"), [case[1:] for case in BAD], ids=[case[0] for case in BAD])
def test_bad_samples(tmp_path: Path, content: list[Sample], message: str) -> None:
    path = shard(tmp_path / "a.tar", content, tarfile.GNU_FORMAT)
    assert broken(path) == message.format(f"shard {path}")


def test_images_that_are_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = shard(tmp_path / "a.tar", one(jpg=JPG, cls=b"1"))
    monkeypatch.setattr(shards, "MOST_BYTES", 10)
    assert broken(path) == f'sample "7" of shard {path} has an image of {len(JPG):,} bytes: use at most 10'


def entry(name: str, kind: bytes, target: str = "") -> Callable[[Path], object]:
    def add(path: Path) -> None:
        with tarfile.open(path, "a") as tar:
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, target
            tar.addfile(member)

    return add


@pytest.mark.parametrize(
    ("add", "what"),
    [
        (entry("x.jpg", tarfile.SYMTYPE, "/etc/passwd"), '"x.jpg", a link'),
        (entry("x.jpg", tarfile.LNKTYPE, "000000.jpg"), '"x.jpg", a link'),
        (entry("x.jpg", tarfile.FIFOTYPE), '"x.jpg", no plain file'),
    ],
)
def test_only_files_are_taken(tmp_path: Path, add: Callable[[Path], object], what: str) -> None:
    path = shard(tmp_path / "a.tar", samples(1))
    entry("folder/", tarfile.DIRTYPE)(path)
    assert len(read_shard(path).keys) == 4
    add(path)
    assert broken(path) == f"shard {path} holds {what}: use files alone"


def test_paths_that_go_up_are_names_alone(tmp_path: Path) -> None:
    path = shard(tmp_path / "in" / "a.tar", [("../../x", {"jpg": JPG, "cls": b"1"}), *samples(1)])
    assert read_shard(path).keys[0] == "../../x"
    assert sorted(file.name for file in tmp_path.rglob("*")) == ["a.tar", "in"]


def test_a_truncated_shard_is_noticed_wherever_it_ends(tmp_path: Path) -> None:
    path = shard(tmp_path / "a.tar", samples(2))
    content = path.read_bytes()
    end = len(content.rstrip(b"\0"))
    for length in [*range(512, end, 512), *range(1, end, 997)]:
        path.write_bytes(content[:length])
        said = broken(path)
        assert said.startswith(f"shard {path} is "), (length, said)
        assert said.endswith("copy it again"), (length, said)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not a plain tar file (empty file): unpack or copy it again"),
        (b"<html>404</html>" * 99, "is not a plain tar file (invalid header): unpack or copy it again"),
    ],
)
def test_files_that_are_no_tar_files(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a.tar").write_bytes(content)
    assert broken(tmp_path / "a.tar") == f"shard {tmp_path}/a.tar {message}"


def test_a_compressed_shard_of_another_name(tmp_path: Path) -> None:
    shard(tmp_path / "a.tar", samples(1))
    with tarfile.open(tmp_path / "b.tar", "w:gz") as tar:
        tar.add(tmp_path / "a.tar")
    assert "b.tar is not a plain tar file" in broken(tmp_path / "b.tar")


def test_flipped_bytes_end_in_a_message_or_in_an_image(tmp_path: Path) -> None:
    """Nothing but a UserError comes out of a damaged shard, and what is read lies inside of it."""
    path = shard(tmp_path / "a.tar", samples(2, kind="json"), others=["pyd"])
    content = np.frombuffer(path.read_bytes(), dtype=np.uint8)
    headers = [
        at for at in range(0, len(content), 512) if content[at : at + 6].tobytes().startswith(b"00000")
    ]
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(400):
        spoilt = content.copy()
        header = int(rng.choice(headers))
        for at in header + rng.integers(0, 512, size=3):
            spoilt[at] = rng.integers(256)
        path.write_bytes(spoilt.tobytes())
        try:
            found = read_shard(path)
        except UserError as error:
            refused += str(error).isprintable()
            continue
        store = TarStore(tmp_path, [found])
        assert all(len(store.read(row)) == store.nbytes(row) for row in range(len(store.keys)))
    assert refused > 300


def test_headers_that_nest_without_end(tmp_path: Path) -> None:
    member = tarfile.TarInfo("././@LongLink")
    member.type, member.size = tarfile.GNUTYPE_LONGNAME, 1
    block = member.tobuf(tarfile.GNU_FORMAT) + b"x" + b"\0" * 511
    (tmp_path / "a.tar").write_bytes(block * 20_000 + b"\0" * 1024)
    assert broken(tmp_path / "a.tar").startswith(f"shard {tmp_path}/a.tar is ")


@pytest.mark.parametrize("kind", [tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.REGTYPE])
@pytest.mark.parametrize("size", [2**62, 2**80])
@pytest.mark.parametrize("first", [True, False])
def test_sizes_that_no_file_has(tmp_path: Path, kind: bytes, size: int, first: bool) -> None:
    member = tarfile.TarInfo("x.jpg")
    member.type, member.size = kind, size
    path = shard(tmp_path / "a.tar", samples(1))
    content = b"" if first else path.read_bytes().rstrip(b"\0")
    content += bytes(-len(content) % tarfile.BLOCKSIZE)
    path.write_bytes(content + member.tobuf(tarfile.GNU_FORMAT) + bytes(1024))
    assert broken(path) == f"shard {path} is truncated or damaged: copy it again"


def test_a_shard_that_shrinks_afterwards(tmp_path: Path) -> None:
    found = read_shard(shard(tmp_path / "a.tar", samples(1)))
    store = TarStore(tmp_path, [found])
    (tmp_path / "a.tar").write_bytes((tmp_path / "a.tar").read_bytes()[:600])
    with pytest.raises(OSError, match="the shard is shorter than it was"):
        store.read(3)
