"""data=domainnet on a small tree: six domains, official lists, zips, downloads, and what is wrong with them."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from everclip import data
from everclip.cli.app import main
from everclip.data.check import check
from everclip.data.formats.download import Remote
from everclip.data.sources import Official
from everclip.data.sources import domainnet as source
from everclip.data.sources.domainnet import DOMAINS, PARTS, DomainNet
from everclip.errors import UserError
from tests.complaints import complaint
from tests.data.refusals import refusal
from tests.data.web import Site, serving
from tests.pictures import COLOURS, picture
from tests.running import run

FOLDERS = {"The_Eiffel_Tower": 3, "aircraft_carrier": 0, "t-shirt": 7}
"""Class folder -> official label; the real ones, too, are in no alphabetical order."""
NAMES = ("aircraft carrier", "The Eiffel Tower", "t-shirt")
TRAIN, TEST = 4, 2
HOME = "http://ai.bu.edu/M3SDA/"


def images(domain: str) -> dict[str, bytes]:
    """Path -> picture of one domain, numbered through as in the original; one of them is in no list."""
    found = {}
    for index, folder in enumerate(sorted(FOLDERS)):
        for number in range(TRAIN + TEST + 1):
            file = io.BytesIO()
            picture(list(COLOURS.values())[index], 100 * DOMAINS.index(domain) + number).save(file, "JPEG")
            found[f"{domain}/{folder}/{domain}_{index:03d}_{number:06d}.jpg"] = file.getvalue()
    return found


def lists(domain: str) -> dict[str, bytes]:
    """Name -> official list of one domain."""
    lines: dict[str, list[str]] = {part: [] for part in PARTS}
    for key in images(domain):
        number = int(key[-10:-4])
        part = "train" if number < TRAIN else "test"
        if number < TRAIN + TEST:
            lines[part].append(f"{key} {FOLDERS[key.split('/')[1]]}\n")
    return {f"{domain}_{part}.txt": "".join(lines[part]).encode() for part in PARTS}


def zipped(domain: str) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as file:
        file.mkdir(domain)
        for key, content in images(domain).items():
            file.writestr(key, content)
    return packed.getvalue()


LISTS = {name: content for domain in DOMAINS for name, content in lists(domain).items()}
ZIPS = {domain: zipped(domain) for domain in DOMAINS}


def tree(root: Path, splits: str = "", domains: tuple[str, ...] = DOMAINS) -> Path:
    """The unpacked data set with its lists."""
    (root / splits).mkdir(parents=True, exist_ok=True)
    for domain in domains:
        for key, content in images(domain).items():
            (root / key).parent.mkdir(parents=True, exist_ok=True)
            (root / key).write_bytes(content)
    for name, content in LISTS.items():
        (root / splits / name).write_bytes(content)
    return root


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """A server with the small data set, which is the original for the test."""
    with serving(monkeypatch) as running:
        monkeypatch.delenv("EVERCLIP_DATA", raising=False)
        running.files = {f"/{name}": content for name, content in LISTS.items()}
        running.files |= {f"/{domain}.zip": content for domain, content in ZIPS.items()}
        remotes = {
            path.removeprefix("/").removesuffix(".zip"): Remote(
                f"{running.url}{path}", len(content), f"sha256:{hashlib.sha256(content).hexdigest()}"
            )
            for path, content in running.files.items()
        }
        monkeypatch.setattr(source, "REMOTES", remotes)
        yield running


def test_the_originals_numbers() -> None:
    assert DOMAINS == ("real", "quickdraw", "painting", "sketch", "infograph", "clipart"), "CaSSLe's order"
    official = DomainNet.official
    assert (official.train, official.test, official.classes) == (409_832, 176_743, 345)
    counts = official.domains
    assert tuple(counts) == DOMAINS
    assert [sum(pair[part] for pair in counts.values()) for part in (0, 1)] == [409_832, 176_743]
    assert list(source.REMOTES) == [
        *DOMAINS,
        *(f"{domain}_{part}.txt" for domain in DOMAINS for part in PARTS),
    ]
    for name, remote in source.REMOTES.items():
        assert remote.name == (name if name.endswith(".txt") else f"{name}.zip")
        assert remote.digest.removeprefix("sha256:").isalnum()
        assert len(remote.digest) == len("sha256:") + 64
        # The shortest line, "real/ant/real_007_000001.jpg 6" and a line's end, has 31 bytes.
        if name.endswith(".txt"):
            domain, part = name.removesuffix(".txt").split("_")
            assert 31 < remote.size / counts[domain][PARTS.index(part)] < 70
    cleaned = {name for name, remote in source.REMOTES.items() if "/groundtruth/" in remote.url}
    assert cleaned == {"painting", "clipart"}, "the two archives that were cleaned"


@pytest.mark.parametrize("splits", ["", "splits"])
def test_domains_are_trained_on_in_their_order(tmp_path: Path, toy: str, splits: str) -> None:
    root = tree(tmp_path / "set", splits)
    found = data.load(f"domainnet:{root}", "domain-incremental")
    assert found.class_names == NAMES, "in the order of the official labels"
    assert found.domain_names == DOMAINS
    for index, domain in enumerate(DOMAINS):
        for part, images, count in (("train", found.train, TRAIN), ("test", found.test, TEST)):
            here = images.of_domain(index)
            assert here.counts(3).tolist() == [count] * 3
            keys = [here.store.keys[int(row)] for row in here.rows]
            assert keys == [line.split()[0] for line in LISTS[f"{domain}_{part}.txt"].decode().splitlines()]
            assert [NAMES[label] for label in here.labels] == [
                key.split("/")[1].replace("_", " ") for key in keys
            ]
    tokens = [f"data=domainnet:{root}", f"model={toy}", "scenario.kind=domain-incremental"]
    results = run(tmp_path / "run", *tokens, "method=finetune")
    assert results["tasks"] == list(DOMAINS)
    assert results["test_counts"] == [6] * 6
    assert len(results["accuracy_after_stage"]) == 6
    results = run(tmp_path / "classes", *tokens[:2], "scenario.tasks=2", "method=finetune")
    assert len(results["accuracy_after_stage"]) == 2
    assert sorted(results["classes"]) == sorted(NAMES)


def test_another_order_of_domains(tmp_path: Path, toy: str) -> None:
    order = 'scenario.order=["clipart", "infograph", "painting", "quickdraw", "real", "sketch"]'
    tokens = [f"data=domainnet:{tree(tmp_path / 'set')}", f"model={toy}", "scenario.kind=domain-incremental"]
    results = run(tmp_path / "run", *tokens, order, "method=zero_shot")
    assert results["tasks"] == sorted(DOMAINS)


def test_everything_is_downloaded_and_unpacked(
    tmp_path: Path, site: Site, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("EVERCLIP_DATA", str(tmp_path))
    root = tmp_path / "domainnet"
    report = check("domainnet")
    assert len(report.problems) == 18
    assert report.problems[0] == (
        f"{root}/real_train.txt is missing: get {site.url}/real_train.txt, or let everclip train do it"
    )
    assert (
        report.problems[12] == f"{root}/real is missing: get {site.url}/real.zip, or let everclip train do it"
    )
    assert not site.asked
    site.breaks = [20, *[10**9] * 15, len(ZIPS["painting"]) // 2]
    found = data.load("domainnet")
    assert len(found.train) == 6 * 3 * TRAIN
    assert site.sent == sum(len(content) for content in site.files.values()), "nothing came twice"
    assert len([wanted for wanted in site.asked if wanted]) == 2
    expected = [".everclip.lock", *DOMAINS, *LISTS]
    assert sorted(os.listdir(root)) == sorted(expected), "archives that were unpacked are gone"
    asked = len(site.asked)
    data.load("domainnet")
    assert len(site.asked) == asked
    (root / ".real.zip").write_bytes(ZIPS["real"])  # as where the process that unpacked it was killed
    data.load("domainnet")
    assert sorted(os.listdir(root)) == sorted(expected)
    assert capsys.readouterr().err.count("downloading ") == 18


def test_the_users_own_archives(tmp_path: Path, site: Site) -> None:
    root = tree(tmp_path, domains=DOMAINS[1:])
    (root / "real.zip").write_bytes(ZIPS["real"])
    assert check(f"domainnet:{root}").problems == (
        f"{root}/real is missing: unzip real.zip there, or let everclip train do it",
    )
    assert len(data.load(f"domainnet:{root}").train) == 6 * 3 * TRAIN
    assert (root / "real.zip").exists()
    assert not site.asked
    shutil.rmtree(root / "real")
    (root / "real.zip").write_bytes(ZIPS["real"][:-1])
    assert complaint(data.load, f"domainnet:{root}") == (
        f"{root}/real.zip is not the cleaned version (its SHA-256 differs): remove it to download it"
    )
    assert not (root / "real").exists()


def test_a_download_that_breaks_off(tmp_path: Path, site: Site) -> None:
    root = tree(tmp_path, domains=DOMAINS[1:])
    half = len(ZIPS["real"]) // 2
    site.breaks = [half, 0, 0, 0]
    with pytest.raises(
        UserError, match=r"/real\.zip cannot be downloaded \(the connection was closed\): try again"
    ):
        data.load(f"domainnet:{root}")
    assert not (root / "real").exists()
    assert (root / "..real.zip.everclip-part").stat().st_size == half
    site.asked = []
    assert len(data.load(f"domainnet:{root}").train) == 6 * 3 * TRAIN
    assert site.asked == [f"bytes={half}-"]


def line(number: int, text: str, name: str = "sketch_test.txt") -> Callable[[Path], object]:
    """A list whose line ``number``, from 1, is ``text``."""

    def change(root: Path) -> None:
        lines = (root / name).read_text().splitlines()
        lines[number - 1 : number] = [text]
        (root / name).write_text("\n".join(lines))

    return change


FIRST = "sketch/The_Eiffel_Tower/sketch_000_000004.jpg"
FORM = '"sketch/CLASS/FILE LABEL", or the official list'
BAD: list[tuple[str, Callable[[Path], object], str]] = [
    ("an image is missing", lambda root: (root / FIRST).unlink(),
     f"{{0}}/{FIRST} is missing: unzip sketch.zip again, or remove sketch/"),
    ("a class is missing", lambda root: shutil.rmtree(root / "real" / "t-shirt"),
     "{0}/real/t-shirt/real_002_000000.jpg is missing, and 5 more of its lists: unzip real.zip again, or remove real/"),
    ("a domain is empty", lambda root: (shutil.rmtree(root / "real"), (root / "real").mkdir()),
     "{0}/real/The_Eiffel_Tower/real_000_000000.jpg is missing, and 17 more of its lists: unzip"
     " real.zip again, or remove real/"),
    ("a class with two labels", line(1, f"{FIRST} 4"),
     'line 1 of {0}/sketch_test.txt gives the class "The_Eiffel_Tower" the label 4, but line 1 of {0}/real_train.txt'
     " 3: get the official list"),
    ("two classes with a label", line(1, "sketch/new/x.jpg 3"),
     'line 1 of {0}/sketch_test.txt gives the class "new" the label 3, that of "The_Eiffel_Tower": get the'
     " official list"),
    ("a label after an empty line", line(1, f"\n{FIRST} 4"),
     'line 2 of {0}/sketch_test.txt gives the class "The_Eiffel_Tower" the label 4, but line 1 of {0}/real_train.txt'
     " 3: get the official list"),
    ("an endless label", line(2, f"{FIRST} {'7' * 5000}"),
     f"line 2 of {{0}}/sketch_test.txt is '{(FIRST + ' ' + '7' * 60)[:60]}': use {FORM}"),
    ("no label", line(2, FIRST), f"line 2 of {{0}}/sketch_test.txt is '{FIRST}': use {FORM}"),
    ("another domain", line(2, f"real/{FIRST} 3"),
     f"line 2 of {{0}}/sketch_test.txt is 'real/{FIRST} 3': use {FORM}"),
    ("a path that leads out", line(2, "sketch/../passwd 3"),
     f"line 2 of {{0}}/sketch_test.txt is 'sketch/../passwd 3': use {FORM}"),
    ("an absolute path", line(2, "/etc/passwd 3"),
     f"line 2 of {{0}}/sketch_test.txt is '/etc/passwd 3': use {FORM}"),
    ("a list of something else", line(1, "<html>"), f"line 1 of {{0}}/sketch_test.txt is '<html>': use {FORM}"),
    ("an empty list", lambda root: (root / "real_train.txt").write_text(""),
     "list file {0}/real_train.txt is empty: use one entry per line"),
    ("an image twice", line(2, f"{FIRST} 3"),
     f'two images have the id of "{FIRST}": list each image once, or rename one file'),
    ("a class that is only tested", lambda root: [
        (root / f"{domain}_train.txt").write_text("".join(
            line for line in (root / f"{domain}_train.txt").read_text().splitlines(True) if "t-shirt" not in line))
        for domain in DOMAINS],
     'no list in {0} trains the class "t-shirt": get the official lists'),
]  # fmt: skip


@pytest.mark.parametrize(("spoil", "message"), [case[1:] for case in BAD], ids=[case[0] for case in BAD])
def test_bad_data(
    tmp_path: Path, spoil: Callable[[Path], object], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tree(tmp_path / "set")
    spoil(root)
    assert refusal(f"domainnet:{root}", HOME, capsys) == message.format(root)


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no does not exist: give that of domainnet, or use data="):
        data.load(f"domainnet:{tmp_path / 'no'}")


def test_a_check_counts_domains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tree(tmp_path)
    (root / "clipart_test.txt").write_bytes(LISTS["clipart_test.txt"].split(b"\n", 1)[1])
    sizes = dict.fromkeys(DomainNet.official.domains, (3 * TRAIN, 3 * TEST))
    monkeypatch.setattr(DomainNet, "official", Official(72, 36, 3, sizes, home=HOME))
    assert main(["datasets", "check", f"domainnet:{root}"]) == 1
    out = capsys.readouterr().out.splitlines()
    assert out[0] == f"domainnet:{root}: 3 classes"
    assert [row.split() for row in out[1:9]] == [
        ["training", "test"],
        ["all", "72", "35"],
        *([domain, "12", "5" if domain == "clipart" else "6"] for domain in DOMAINS),
    ]
    assert out[9:] == [
        "107 of a sample of 107 images can be decoded",
        "",
        "35 test images of 36",
        'domain "clipart" has 5 test images of 6',
        f"not complete: domainnet:{root} (available from {HOME})",
    ]
    (root / "clipart_test.txt").write_bytes(LISTS["clipart_test.txt"])
    assert main(["datasets", "check", f"domainnet:{root}"]) == 0
    assert capsys.readouterr().out.endswith("\ncomplete\n")
