"""The shipped emoji pictures and lists keep what `tools/build_emoji.py` promises."""

import csv
import hashlib
import io
import zipfile
from collections import Counter, defaultdict
from importlib.resources import files

import pytest
from PIL import Image

ASSETS = files("everclip") / "assets" / "emoji"
MAKERS = {
    "noto": "Google",
    "noto-v1": "Google",
    "twemoji": "Twitter",
    "emojione": "Emoji One",
    "emojione-monotone": "Emoji One",
    "fluent-emoji": "Microsoft",
    "fluent-emoji-flat": "Microsoft",
    "fluent-emoji-high-contrast": "Microsoft",
    "fxemoji": "Mozilla",
    "streamline-emojis": "Streamline",
}


def read_list(name: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO((ASSETS / name).read_text(encoding="utf-8"))))


@pytest.fixture(scope="module")
def cil() -> list[dict[str, str]]:
    return read_list("class-incremental.csv")


@pytest.fixture(scope="module")
def dil() -> list[dict[str, str]]:
    return read_list("domain-incremental.csv")


@pytest.fixture(scope="module")
def pictures() -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO((ASSETS / "pictures.zip").read_bytes())) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def maker(path: str) -> str:
    return MAKERS[path.split("/")[0]]


def test_checksums_cover_every_file() -> None:
    lines = (ASSETS / "SHA256SUMS").read_text(encoding="utf-8").splitlines()
    sums = {name: digest for digest, name in (line.split("  ") for line in lines)}
    shipped = {entry.name for entry in ASSETS.iterdir() if entry.is_file()}
    assert set(sums) == shipped - {"SHA256SUMS"}
    for name, digest in sums.items():
        assert hashlib.sha256((ASSETS / name).read_bytes()).hexdigest() == digest, name


def test_size() -> None:
    assert sum(len(entry.read_bytes()) for entry in ASSETS.iterdir() if entry.is_file()) < 12e6


def test_archive_is_stored_with_fixed_stamps() -> None:
    with zipfile.ZipFile(io.BytesIO((ASSETS / "pictures.zip").read_bytes())) as archive:
        entries = archive.infolist()
    assert [e.filename for e in entries] == sorted({e.filename for e in entries})
    assert {e.compress_type for e in entries} == {zipfile.ZIP_STORED}
    assert {e.date_time for e in entries} == {(1980, 1, 1, 0, 0, 0)}


def test_every_listed_picture_is_there_and_no_other(
    cil: list[dict[str, str]], dil: list[dict[str, str]], pictures: dict[str, bytes]
) -> None:
    assert {row["path"] for row in [*cil, *dil]} == set(pictures)
    assert len({row["path"] for row in cil}) == len(cil)
    assert len({row["path"] for row in dil}) == len(dil)


def test_pictures_decode_and_differ(pictures: dict[str, bytes]) -> None:
    for name, data in pictures.items():
        picture = Image.open(io.BytesIO(data))
        picture.load()
        assert (picture.size, picture.mode) == ((128, 128), "RGB"), name
        low, high = picture.convert("L").getextrema()
        assert isinstance(low, int)
        assert isinstance(high, int)
        assert high - low > 30, f"{name} is (almost) empty"
    assert len(set(pictures.values())) == len(pictures)


def test_class_incremental_counts(cil: list[dict[str, str]]) -> None:
    counts = Counter((row["class"], row["split"]) for row in cil)
    classes = {row["class"] for row in cil}
    assert len(classes) == 100
    assert {counts[c, "train"] for c in classes} == {6}
    assert {counts[c, "test"] for c in classes} == {3}
    assert sum(counts.values()) == 900


def test_class_incremental_makers_do_not_straddle_the_split(cil: list[dict[str, str]]) -> None:
    makers: defaultdict[str, set[str]] = defaultdict(set)
    for row in cil:
        makers[row["split"]].add(maker(row["path"]))
    assert set(makers) == {"train", "test"}
    assert not makers["train"] & makers["test"]
    per_class = Counter((row["class"], maker(row["path"])) for row in cil if row["split"] == "test")
    assert set(per_class.values()) == {1}  # each test picture of a class is by another hand


def test_class_incremental_names_one_thing_a_class(cil: list[dict[str, str]]) -> None:
    codes: defaultdict[str, set[str]] = defaultdict(set)
    for row in cil:
        codes[row["class"]].add(row["path"].split("/")[1])
    assert {len(c) for c in codes.values()} == {1}
    assert len(set.union(*codes.values())) == 100


def test_domains_and_categories(dil: list[dict[str, str]]) -> None:
    domains = list(dict.fromkeys(row["domain"] for row in dil))
    assert domains == ["noto", "twemoji", "emojione", "fluent", "fxemoji-streamline", "line-art"]
    classes = {row["class"] for row in dil}
    assert 12 <= len(classes) <= 20
    counts = Counter((row["domain"], row["class"], row["split"]) for row in dil)
    for domain in domains:
        for name in classes:
            assert counts[domain, name, "train"] >= 3, (domain, name)
            assert counts[domain, name, "test"] >= 2, (domain, name)
    sets: defaultdict[str, set[str]] = defaultdict(set)
    for row in dil:
        sets[row["path"].split("/")[0]].add(row["domain"])
    assert {len(d) for d in sets.values()} == {1}


def test_domain_incremental_concepts_do_not_straddle_the_split(dil: list[dict[str, str]]) -> None:
    sides: defaultdict[str, set[tuple[str, str]]] = defaultdict(set)
    codes: defaultdict[str, set[str]] = defaultdict(set)
    per_class: defaultdict[tuple[str, str], set[str]] = defaultdict(set)
    for row in dil:
        sides[row["concept"]].add((row["class"], row["split"]))
        codes[row["split"]].add(row["path"].split("/")[1])
        per_class[row["class"], row["split"]].add(row["concept"])
    assert {len(side) for side in sides.values()} == {1}
    assert not codes["train"] & codes["test"]
    for name in {row["class"] for row in dil}:
        train, test = len(per_class[name, "train"]), len(per_class[name, "test"])
        assert train + test >= 8, name
        assert 0.2 < test / (train + test) < 0.45, name


def test_notice_names_every_set(pictures: dict[str, bytes]) -> None:
    rows = [
        line
        for line in (ASSETS / "NOTICE.md").read_text(encoding="utf-8").splitlines()
        if line.startswith("| `")
    ]
    named = {row.split("`")[1]: row for row in rows}
    assert set(named) == {name.split("/")[0] for name in pictures}
    for name, row in named.items():
        assert MAKERS[name] in row
        assert any(f"[{licence}](https://" in row for licence in ("Apache-2.0", "CC-BY-4.0", "MIT")), name
        assert "](https://github.com/" in row, name
