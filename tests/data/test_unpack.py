"""Archives that are whole, damaged, or made to write where they should not."""

from __future__ import annotations

import io
import os
import stat
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from everclip.data.formats import download
from everclip.data.formats.unpack import Limits, unpack
from everclip.errors import UserError
from tests.complaints import complaint

LIMITS = Limits(files=4, size=100_000)
FILES = {"set/a/1.jpg": b"one" * 1000, "set/a/2.jpg": b"two", "set/b/1.jpg": b"", "other/x": b"left out"}


def zipped(path: Path, files: dict[str, bytes], *extra: zipfile.ZipInfo) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.mkdir("set")
        for name, content in files.items():
            packed.writestr(name, content)
        for info in extra:
            packed.writestr(info, "../../aim")
    return path


def tarred(path: Path, files: dict[str, bytes], *extra: tarfile.TarInfo) -> Path:
    with tarfile.open(path, "w:gz") as packed:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            packed.addfile(info, io.BytesIO(content))
        for info in extra:
            packed.addfile(info)
    return path


def refused(archive: Path, target: Path, limits: Limits = LIMITS) -> str:
    """The reason in the line that an archive ends with; nothing is left of it, in the folder or beside it."""
    top = target.parents[1]
    before = sorted(top.rglob("*"))
    said = complaint(unpack, archive, "set", target, limits)
    assert sorted(top.rglob("*")) == before
    prefix, suffix = f"{archive} cannot be unpacked (", "): remove it, and get the original"
    text = said
    assert text.startswith(prefix)
    assert text.endswith(suffix)
    assert text.isprintable()
    return text[len(prefix) : -len(suffix)]


@pytest.fixture
def target(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    return tmp_path / "data" / "set"


@pytest.mark.parametrize(("pack", "name"), [(zipped, "a.zip"), (tarred, "a.tar.gz")])
def test_one_folder_of_an_archive(pack: Callable[..., Path], name: str, target: Path, tmp_path: Path) -> None:
    part = target.with_name(".set.everclip-0123abcd")
    part.mkdir()
    (part / "left over").write_text("from a killed process")
    seen = []
    unpack(
        pack(tmp_path / name, FILES),
        "set",
        target,
        LIMITS,
        lambda folder: seen.append(sorted(folder.rglob("*"))),
    )
    found = {
        f"set/{p.relative_to(target).as_posix()}": p.read_bytes() for p in target.rglob("*") if p.is_file()
    }
    assert found == {key: content for key, content in FILES.items() if key.startswith("set/")}
    assert os.listdir(target.parent) == ["set"]
    assert len(seen) == 1
    assert seen[0][0].parents[0].name.startswith(".set.everclip-"), (
        "the check came before the folder had its name"
    )


def test_a_dot_in_front_of_the_names(target: Path, tmp_path: Path) -> None:
    unpack(tarred(tmp_path / "a.tar.gz", {"./set/a/1.jpg": b"one"}), "set", target, LIMITS)
    assert (target / "a" / "1.jpg").read_bytes() == b"one"


def test_what_the_check_refuses_does_not_take_its_place(target: Path, tmp_path: Path) -> None:
    def check(folder: Path) -> None:
        raise UserError("it lacks something")

    with pytest.raises(UserError, match=r"^it lacks something$"):
        unpack(zipped(tmp_path / "a.zip", FILES), "set", target, LIMITS, check)
    assert os.listdir(target.parent) == []


@pytest.mark.parametrize(
    "name", ["../out", "set/../../out", "/tmp/out", "set\\..\\out", "other/../../out", "set/a/.."]
)
@pytest.mark.parametrize(("pack", "archive"), [(zipped, "a.zip"), (tarred, "a.tar.gz")])
def test_paths_that_lead_out(
    pack: Callable[..., Path], archive: str, name: str, target: Path, tmp_path: Path
) -> None:
    files = {"set/a/1.jpg": b"one", name: b"x"}
    assert refused(pack(tmp_path / archive, files), target) == f"the path {name!a} leads out of it"


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE]
)
def test_links_and_devices_in_tars(kind: bytes, target: Path, tmp_path: Path) -> None:
    info = tarfile.TarInfo("set/link")
    info.type, info.linkname = kind, "../../aim"
    archive = tarred(tmp_path / "a.tar.gz", {"set/a/1.jpg": b"one"}, info)
    assert refused(archive, target) == "'set/link' is a link or no file"


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFBLK])
def test_links_and_devices_in_zips(kind: int, target: Path, tmp_path: Path) -> None:
    info = zipfile.ZipInfo("set/link")
    info.external_attr = (kind | 0o777) << 16
    archive = zipped(tmp_path / "a.zip", {"set/a/1.jpg": b"one"}, info)
    assert refused(archive, target) == "'set/link' is a link or no file"


def test_a_link_and_a_file_through_it(target: Path, tmp_path: Path) -> None:
    info = tarfile.TarInfo("set/out")
    info.type, info.linkname = tarfile.SYMTYPE, str(tmp_path)
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as packed:
        packed.addfile(info)
        packed.addfile(tarfile.TarInfo("set/out/written"))
    assert refused(tmp_path / "a.tar.gz", target) == "'set/out' is a link or no file"


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("names", [["set/a", "set/a"], ["set/a", "set/a/b"], ["set/a/b", "set/a"]])
def test_names_that_collide(names: list[str], target: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as packed:
        for name in names:
            packed.writestr(name, "x")
    said = f"'{names[1]}' is there twice, or is a folder and a file"
    assert refused(tmp_path / "a.zip", target) == said


@pytest.mark.parametrize(("pack", "name"), [(zipped, "a.zip"), (tarred, "a.tar.gz")])
@pytest.mark.parametrize("limits", [Limits(files=2, size=100_000), Limits(files=4, size=3002)])
def test_more_than_the_original(
    pack: Callable[..., Path], name: str, limits: Limits, target: Path, tmp_path: Path
) -> None:
    assert refused(pack(tmp_path / name, FILES), target, limits) == "it holds more than the original does"


def test_a_bomb_that_lies_about_its_size(target: Path, tmp_path: Path) -> None:
    archive = zipped(tmp_path / "a.zip", {"set/a/1.jpg": bytes(10_000_000)})
    content = archive.read_bytes()
    size = (10_000_000).to_bytes(4, "little")
    assert content.count(size) == 2
    archive.write_bytes(content.replace(size, (1000).to_bytes(4, "little")))
    assert refused(archive, target) in (
        "an entry is longer than it says",
        "Bad CRC-32 for file 'set/a/1.jpg'",
    )


def test_damaged_archives(target: Path, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).bytes(50_000)
    whole = zipped(tmp_path / "a.zip", {"set/a/1.jpg": noise}).read_bytes()
    damaged = bytearray(whole)
    damaged[20_000] ^= 1
    for content, why in (
        (bytes(damaged), "Bad CRC-32 for file 'set/a/1.jpg'"),
        (whole[:30_000], "File is not a zip file"),
        (b"", "File is not a zip file"),
        (b"<html>", "File is not a zip file"),
    ):
        (tmp_path / "a.zip").write_bytes(content)
        assert refused(tmp_path / "a.zip", target) == why
    packed = tarred(tmp_path / "a.tar.gz", {"set/a/1.jpg": noise}).read_bytes()
    changed = bytearray(packed)
    changed[20_000] ^= 1
    for content in (packed[:30_000], packed[:20], packed[:-4], b"", b"<html>", bytes(changed)):
        (tmp_path / "a.tar.gz").write_bytes(content)
        assert refused(tmp_path / "a.tar.gz", target)


def test_a_password(target: Path, tmp_path: Path) -> None:
    archive = zipped(tmp_path / "a.zip", {"set/a/1.jpg": b"one"})
    content = bytearray(archive.read_bytes())
    at = content.rindex(b"PK\x01\x02")
    content[at + 8] |= 1
    local = content.rindex(b"PK\x03\x04")
    content[local + 6] |= 1
    archive.write_bytes(bytes(content))
    assert "is encrypted" in refused(archive, target)


@pytest.mark.parametrize("files", [{}, {"other/a": b"x"}, {"settings": b"x"}])
def test_another_folder(files: dict[str, bytes], target: Path, tmp_path: Path) -> None:
    assert refused(zipped(tmp_path / "a.zip", files), target) == "it has no folder set"


def test_no_room_and_no_archive(target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="No such file or directory"):
        unpack(tmp_path / "a.zip", "set", target, LIMITS)
    archive = zipped(tmp_path / "a.zip", FILES)
    monkeypatch.setattr(download, "RESERVE", 1 << 60)
    with pytest.raises(UserError, match=r"of 0\.0 GB needed: make room"):
        unpack(archive, "set", target, LIMITS)
    assert os.listdir(target.parent) == []
