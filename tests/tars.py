"""Shards as WebDataset's TarWriter lays them out: a sample's files side by side, in the order of their extensions."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from tests.pictures import COLOURS, picture

Sample = tuple[str, dict[str, bytes]]


def encoded(colour: str, seed: int, suffix: str = "jpg") -> bytes:
    """A picture as a file's content."""
    file = io.BytesIO()
    picture(COLOURS[colour], seed).save(file, {"jpg": "jpeg"}.get(suffix, suffix))
    return file.getvalue()


def labelled(label: int, name: str, kind: str) -> dict[str, bytes]:
    """The members that give a sample its class: a number in .cls, or a name."""
    if kind == "json":
        return {"json": json.dumps({"label": name, "caption": f"something {name}"}).encode()}
    return {"txt": f"{name}\n".encode()} if kind == "txt" else {"cls": str(label).encode()}


def samples(
    count: int, classes: int = 4, start: int = 0, kind: str = "cls", suffix: str = "jpg"
) -> list[Sample]:
    """``count`` pictures of each class, by turns, with keys such as ``000012``."""
    found: list[Sample] = []
    for number in range(start, start + count * classes):
        label = number % classes
        name = list(COLOURS)[label]
        members = {suffix: encoded(name, number, suffix), **labelled(label, name, kind)}
        found.append((f"{number:06d}", members))
    return found


def shard(
    path: Path, content: Iterable[Sample], layout: int = tarfile.PAX_FORMAT, others: Sequence[str] = ()
) -> Path:
    """A tar file of these samples, each with the ``others``, which nobody may decode."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file, tarfile.open(fileobj=file, mode="w|", format=layout) as tar:
        for key, members in content:
            for extension, data in sorted({**members, **dict.fromkeys(others, b"\x80\x04no.")}.items()):
                entry = tarfile.TarInfo(f"{key}.{extension}")
                entry.size, entry.mode, entry.uname, entry.gname = len(data), 0o444, "bigdata", "bigdata"
                tar.addfile(entry, io.BytesIO(data))
    return path
