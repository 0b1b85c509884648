"""data=cifar100 on a small archive of the original's layout: read, downloaded, trained on, and found damaged."""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import CIFAR100

from everclip import data
from everclip.cli.app import main
from everclip.data.check import check
from everclip.data.formats.download import Remote
from everclip.data.scenario import ICARL
from everclip.data.sources import Official
from everclip.data.sources import cifar100 as source
from everclip.errors import UserError
from tests.complaints import complaint
from tests.data import cifar
from tests.data.cifar import FILES, archive, contents, md5, picture_of, python2_pickle, write
from tests.data.refusals import refusal
from tests.data.web import Site, serving
from tests.running import run

Files = dict[str, bytes]


@pytest.fixture(autouse=True)
def no_folders_of_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVERCLIP_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("EVERCLIP_DATA", raising=False)


def original(
    monkeypatch: pytest.MonkeyPatch, values: dict[str, dict[bytes, Any]], url: str = "http://x"
) -> Files:
    """Take these values for the original CIFAR-100; its files are returned, and the archive among them."""
    files = {name: python2_pickle(value) for name, value in values.items()}
    packed = archive(files)
    monkeypatch.setattr(source, "MD5", {name: md5(content) for name, content in files.items()})
    remote = Remote(f"{url}/cifar-100-python.tar.gz", len(packed), f"md5:{md5(packed)}")
    monkeypatch.setattr(source, "ARCHIVE", remote)
    classes = len(values["meta"][b"fine_label_names"])
    rows = {part: len(values[part][b"fine_labels"]) for part in ("train", "test")}
    per_class = {part: count // classes for part, count in rows.items()}
    monkeypatch.setattr(
        source.Cifar100,
        "official",
        Official(rows["train"], rows["test"], classes, per_class=per_class, home="http://x/page"),
    )
    return {**files, remote.name: packed}


@pytest.fixture
def files(monkeypatch: pytest.MonkeyPatch) -> Files:
    return original(monkeypatch, contents())


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    with serving(monkeypatch) as running:
        yield running


def unpacked(folder: Path, files: Files) -> Path:
    return write(folder, {name: files[name] for name in FILES})


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """CIFAR-100 in folders: all its classes, two training pictures and one test picture of each."""
    official = Official(200, 100, 100, per_class={"train": 2, "test": 1}, home="http://x/page")
    monkeypatch.setattr(source.Cifar100, "official", official)
    return cifar.folders(tmp_path / "pictures", 2, 1)


def pixels(found: data.Dataset, part: str, row: int) -> np.ndarray:
    images = getattr(found, part)
    return np.asarray(Image.open(io.BytesIO(images.store.read(int(images.rows[row])))))


def test_the_originals_numbers() -> None:
    """torchvision knows the same checksums."""
    parts = {row[0]: row[1] for row in (*CIFAR100.train_list, *CIFAR100.test_list)}
    assert parts | {CIFAR100.meta["filename"]: CIFAR100.meta["md5"]} == source.MD5
    assert f"md5:{CIFAR100.tgz_md5}" == source.ARCHIVE.digest
    assert source.ARCHIVE.url == CIFAR100.url
    official = source.Cifar100.official
    assert (official.train, official.test, official.classes) == (50_000, 10_000, 100)


def test_the_archive_is_unpacked_and_trained_on(tmp_path: Path, files: Files, toy: str) -> None:
    root = write(tmp_path / "set", {source.ARCHIVE.name: files[source.ARCHIVE.name]})
    found = data.load(f"cifar100:{root}")
    assert found.class_names == tuple(name.decode().replace("_", " ") for name in cifar.names(6))
    assert found.train.counts(6).tolist() == [6] * 6
    assert found.test.counts(6).tolist() == [3] * 6
    assert not found.held_out
    assert len(found.templates) == 18
    values = contents()
    for part in ("train", "test"):
        assert getattr(found, part).labels.tolist() == values[part][b"fine_labels"]
        for row in range(3):
            assert np.array_equal(pixels(found, part, row), picture_of(values[part], row))
    results = run(tmp_path / "run", f"data=cifar100:{root}", f"model={toy}", "scenario.tasks=2")
    assert len(results["accuracy_after_stage"]) == 2
    assert results["templates"] == list(found.templates)
    assert results["memory_bytes"] == 12 * 3072
    assert sorted(os.listdir(root)) == [".everclip.lock", "cifar-100-python", source.ARCHIVE.name]


def test_torchvision_reads_the_same(tmp_path: Path, files: Files) -> None:
    folder = unpacked(tmp_path / "cifar-100-python", files)

    class Small(CIFAR100):
        train_list = [["train", source.MD5["train"]]]  # noqa: RUF012
        test_list = [["test", source.MD5["test"]]]  # noqa: RUF012
        meta = {"filename": "meta", "key": "fine_label_names", "md5": source.MD5["meta"]}  # noqa: RUF012

    found = data.load(f"cifar100:{tmp_path}")
    for part in ("train", "test"):
        theirs = Small(str(tmp_path), train=part == "train")
        assert [name.replace("_", " ") for name in theirs.classes] == list(found.class_names)
        assert theirs.targets == getattr(found, part).labels.tolist()
        for row in range(len(theirs)):
            assert np.array_equal(theirs.data[row], pixels(found, part, row))
    ids = data.load(f"cifar100:{folder}").train.ids
    assert np.array_equal(ids, found.train.ids), "an image is the same wherever it lies"


def test_icarls_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, toy: str) -> None:
    files = original(monkeypatch, contents(classes=100, train=1, test=1))
    root = unpacked(tmp_path / "set", files)
    tokens = [f"data=cifar100:{root}", f"model={toy}", "scenario.order=icarl", "train.batch_size=50"]
    results = run(tmp_path / "run", *tokens, "scenario.tasks=2", "memory.budget=0")
    assert results["classes"] == [cifar.names(100)[label].decode().replace("_", " ") for label in ICARL]


def test_it_is_downloaded_into_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    files = original(monkeypatch, contents(), site.url)
    folder = tmp_path / "cache" / "data" / "cifar100"
    assert check("cifar100").problems == (
        f"{folder}/cifar-100-python.tar.gz is missing: put {site.url}/cifar-100-python.tar.gz there, or let everclip"
        " train download it",
    )
    assert not site.asked, "a check downloads nothing"
    site.files["/cifar-100-python.tar.gz"] = files[source.ARCHIVE.name]
    site.breaks = [5000, 5000]
    found = data.load("cifar100")
    assert found.name == "cifar100"
    assert len(site.asked) == 3
    assert site.sent == len(files[source.ARCHIVE.name])
    assert data.load("cifar100").train.labels.tolist() == found.train.labels.tolist()
    assert len(site.asked) == 3
    assert check("cifar100").problems == ()
    capsys.readouterr()


def test_a_download_that_is_not_the_original(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, site: Site
) -> None:
    files = original(monkeypatch, contents(), site.url)
    site.files["/cifar-100-python.tar.gz"] = files[source.ARCHIVE.name][:-1] + b"x"
    monkeypatch.setenv("EVERCLIP_DATA", str(tmp_path))
    with pytest.raises(UserError, match=r"has another checksum than the original"):
        data.load("cifar100")
    assert os.listdir(tmp_path / "cifar100") == [".everclip.lock"]


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def relabelled(path: Path) -> None:
    """The first two labels change places: as long as before, and a good pickle."""
    content = path.read_bytes()
    at = content.index(b"fine_labels](K") + len(b"fine_labels](")
    labels = content[at : at + 12]
    swapped = next(n for n in range(0, 12, 2) if labels[n + 1] != labels[1])
    changed = bytearray(content)
    changed[at + 1], changed[at + swapped + 1] = changed[at + swapped + 1], changed[at + 1]
    path.write_bytes(bytes(changed))


AGAIN = "remove the folder {0}/cifar-100-python, to have it unpacked or downloaded again"
BAD: list[tuple[str, Callable[[Path], object], str]] = [
    ("a file is missing", lambda root: (root / "cifar-100-python" / "test").unlink(),
     f"{{0}}/cifar-100-python/test is missing: {AGAIN}"),
    ("a file is cut off", lambda root: cut(root / "cifar-100-python" / "train"),
     f"{{0}}/cifar-100-python/train is not the original (its MD5 differs): {AGAIN}"),
    ("labels are changed", lambda root: relabelled(root / "cifar-100-python" / "train"),
     f"{{0}}/cifar-100-python/train is not the original (its MD5 differs): {AGAIN}"),
    ("the names are gone", lambda root: (root / "cifar-100-python" / "meta").write_bytes(b""),
     f"{{0}}/cifar-100-python/meta is not the original (its MD5 differs): {AGAIN}"),
    ("a folder in place of a file", lambda root: (
        (root / "cifar-100-python" / "meta").unlink(), (root / "cifar-100-python" / "meta").mkdir()),
     f"{{0}}/cifar-100-python/meta is missing: {AGAIN}"),
    ("the archive is cut off", lambda root: (shutil.rmtree(root / "cifar-100-python"), cut(root / source.ARCHIVE.name)),
     "{0}/cifar-100-python.tar.gz is not the original (its MD5 differs): remove it, to have it downloaded"),
    ("a folder without a name", lambda root: [
        (root / "cifar-100-python" / name).rename(root / name) for name in FILES] and cut(root / "test"),
     "{0}/test is not the original (its MD5 differs): get the original from http://x/cifar-100-python.tar.gz"),
]  # fmt: skip


@pytest.mark.parametrize(("spoil", "message"), [case[1:] for case in BAD], ids=[case[0] for case in BAD])
def test_bad_data(
    tmp_path: Path,
    files: Files,
    spoil: Callable[[Path], object],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    root = write(tmp_path / "set", {source.ARCHIVE.name: files[source.ARCHIVE.name]})
    data.load(f"cifar100:{root}")
    spoil(root)
    assert refusal(f"cifar100:{root}", source.Cifar100.official.home, capsys) == message.format(root)


def test_what_it_says_to_do_helps(tmp_path: Path, files: Files) -> None:
    root = write(tmp_path / "set", {source.ARCHIVE.name: files[source.ARCHIVE.name]})
    data.load(f"cifar100:{root}")
    cut(root / "cifar-100-python" / "train")
    shutil.rmtree(root / "cifar-100-python")
    assert len(data.load(f"cifar100:{root}").train) == 36


def test_names_that_are_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = contents()
    values["meta"] |= {b"fine_label_names": [b"red_thing", b"red thing", b"a", b"b", b"c", b"d"]}
    files = {part: python2_pickle(value) for part, value in values.items()}
    monkeypatch.setattr(source, "MD5", {part: md5(content) for part, content in files.items()})
    root = write(tmp_path / "set", files)
    said = complaint(data.load, f"cifar100:{root}")
    assert said == f'classes 1 and 2 of {root / "meta"} are both named "red thing": rename one'


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no does not exist: give that of cifar100, or use data="):
        data.load(f"cifar100:{tmp_path / 'no'}")


def test_pictures_in_folders(folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = data.load(f"cifar100:{folders}")
    assert found.name == f"cifar100:{folders}"
    assert found.class_names[:2] == ("apple", "aquarium fish")
    assert (len(found.class_names), len(found.train), len(found.test)) == (100, 200, 100)
    assert len(found.templates) == 18
    assert not found.held_out
    assert found.test.store.keys[found.test.rows[1]] == "test/aquarium_fish/000.png"
    assert main(["datasets", "check", f"cifar100:{folders}"]) == 0
    assert capsys.readouterr().out.endswith("complete\n")


def test_pictures_in_folders_are_found_without_a_download(
    folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "all").mkdir()
    folders.rename(tmp_path / "all" / "cifar100")
    monkeypatch.setenv("EVERCLIP_DATA", str(tmp_path / "all"))
    assert data.source("cifar100", {})[0].missing(None) == []
    assert len(data.load("cifar100").train) == 200


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda root: shutil.rmtree(root / "test"),
         "{0}/test is missing: put the pictures there as test/CLASS/*.png"),
        (lambda root: (root / "train" / "maple_tree").rename(root / "train" / "maple"),
         '{0}/train has the extra class "maple": remove it, or use data=imagefolder:{0}'),
        (lambda root: shutil.rmtree(root / "train" / "worm"),
         "{0}/train/worm has 0 images where CIFAR-100 has 2: put the originals there, or use data=imagefolder:{0} for"
         " another selection"),
        (lambda root: shutil.copy(root / "test/bear/000.png", root / "test/bear/001.png"),
         "{0}/test/bear has 2 images where CIFAR-100 has 1: put the originals there, or use data=imagefolder:{0} for"
         " another selection"),
    ],
)  # fmt: skip
def test_folders_that_are_not_all_of_it(
    folders: Path, spoil: Callable[[Path], object], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil(folders)
    assert refusal(f"cifar100:{folders}", "http://x/page", capsys) == message.format(folders)
