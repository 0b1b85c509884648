"""domainnet[:DIR] - DomainNet, cleaned: 586,575 images of 345 classes in six domains, from photographs to sketches.

DIR, or `$EVERCLIP_DATA/domainnet`, else a folder in everclip's cache, holds the folders `real`, `quickdraw`,
`painting`, `sketch`, `infograph` and `clipart` (or `real.zip`, ..., which are unpacked) and the official lists
`real_train.txt`, `real_test.txt`, ..., there or in `splits/`. What is missing is downloaded from http://csr.bu.edu,
where http://ai.bu.edu/M3SDA/ offers it (18 GB in all; an archive is removed once it is unpacked). An interrupted
download continues where it stopped.

    everclip train data=domainnet scenario.kind=domain-incremental

The domains come in the order of CaSSLe (https://arxiv.org/abs/2112.04215): real, quickdraw, painting, sketch,
infograph, clipart. Class-incremental scenarios mix them.
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import ClassVar

from everclip.data.formats.domain_lists import Row, read
from everclip.data.formats.download import Remote, fetch, home, locked, matches
from everclip.data.formats.folders import absent, check_names
from everclip.data.formats.unpack import Limits, unpack
from everclip.data.images import Dataset, FileStore, build
from everclip.data.prompts import PHOTO, clean
from everclip.data.sources import Official, Source
from everclip.errors import UserError

DOMAINS = ("real", "quickdraw", "painting", "sketch", "infograph", "clipart")
PARTS = ("train", "test")
SITE = "http://csr.bu.edu/ftp/visda/2019/multi-source"


def _remotes() -> dict[str, Remote]:
    with (Path(__file__).parents[2] / "assets" / "domainnet.csv").open(encoding="utf-8", newline="") as file:
        return {
            row["name"]: Remote(f"{SITE}/{row['path']}", int(row["size"]), f"sha256:{row['sha256']}")
            for row in csv.DictReader(file)
        }


REMOTES = _remotes()
"""Domain -> its archive, name of a list -> the list. Sizes and checksums are those of TensorFlow Datasets
(tensorflow_datasets/image_classification/domainnet/checksums.tsv)."""
LIMITS = Limits(files=400_000, size=30 << 30)


class DomainNet(Source):
    """DomainNet, downloaded if it is missing."""

    official: ClassVar[Official] = Official(  # pyright: ignore[reportIncompatibleVariableOverride]
        train=409_832,
        test=176_743,
        classes=345,
        domains={
            "real": (120_906, 52_041),
            "quickdraw": (120_750, 51_750),
            "painting": (50_416, 21_850),
            "sketch": (48_212, 20_916),
            "infograph": (36_023, 15_582),
            "clipart": (33_525, 14_604),
        },
        home="http://ai.bu.edu/M3SDA/",
    )

    def load(self, argument: str | None, kind: str) -> Dataset:
        root = home("domainnet", argument)
        if _missing(root) or any((root / f".{domain}.zip").exists() for domain in DOMAINS):
            with locked(root):
                _prepare(root)
        rows = read([(domain, part, _list_of(root, domain, part)) for domain in DOMAINS for part in PARTS])
        _check_rows(root, rows)
        folder_of = dict(sorted({row.label: row.folder for row in rows}.items()))
        place = {label: index for index, label in enumerate(folder_of)}
        folders = list(folder_of.values())
        return build(
            f"domainnet:{argument}" if argument else "domainnet",
            FileStore(root, [row.key for row in rows]),
            [place[row.label] for row in rows],
            [DOMAINS.index(row.domain) for row in rows],
            [row.part == "test" for row in rows],
            check_names([clean(folder) for folder in folders], str(root), folders),
            DOMAINS,
            (PHOTO,),
        )

    def missing(self, argument: str | None) -> list[str]:
        root = home("domainnet", argument)
        lines = []
        for name, remote in _missing(root).items():
            todo = f"unzip {name}.zip there" if (root / f"{name}.zip").is_file() else f"get {remote.url}"
            lines.append(f"{root / name} is missing: {todo}, or let everclip train do it")
        return lines

    def remotes(self) -> list[Remote]:
        return list(REMOTES.values())


def _list_of(root: Path, domain: str, part: str) -> Path:
    name = f"{domain}_{part}.txt"
    return root / "splits" / name if (root / "splits" / name).is_file() else root / name


def _missing(root: Path) -> dict[str, Remote]:
    """List what is not there under ``root``, lists first: name -> where it comes from."""
    there = {f"{d}_{part}.txt": _list_of(root, d, part).is_file() for d in DOMAINS for part in PARTS}
    there |= {domain: (root / domain).is_dir() for domain in DOMAINS}
    return {name: REMOTES[name] for name in there if not there[name]}


def _prepare(root: Path) -> None:
    """Download and unpack what is missing. An archive of the user's own is checked and left where it is; one that we
    downloaded goes once it is unpacked, also where an earlier process was killed in between."""
    for domain in DOMAINS:
        if (root / domain).is_dir():
            (root / f".{domain}.zip").unlink(missing_ok=True)
    for name, remote in _missing(root).items():
        if name not in DOMAINS:
            fetch(remote, root / name)
            continue
        own = root / f"{name}.zip"
        if own.is_file():
            if not matches(own, remote.digest):
                raise UserError(
                    f"{own} is not the cleaned version (its SHA-256 differs): remove it to download it"
                )
            unpack(own, name, root / name, LIMITS)
            continue
        archive = root / f".{name}.zip"
        fetch(remote, archive)
        unpack(archive, name, root / name, LIMITS)
        archive.unlink()


def _check_rows(root: Path, rows: list[Row]) -> None:
    """Refuse lists of images that are not there, and of classes that are tested and not trained."""
    lost = absent(root, [row.key for row in rows])
    if lost:
        domain = lost[0].split("/")[0]
        more = f", and {len(lost) - 1:,} more of its lists" if len(lost) > 1 else ""
        raise UserError(f"{root / lost[0]} is missing{more}: unzip {domain}.zip again, or remove {domain}/")
    trained = {row.folder for row in rows if row.part == "train"}
    if untrained := {row.folder for row in rows} - trained:
        raise UserError(f'no list in {root} trains the class "{min(untrained)}": get the official lists')
