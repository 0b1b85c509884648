"""What a stranger, or a bad disk, may have made of a file: changes drawn by random numbers, and told in words."""

from __future__ import annotations

import copy
import io
import json
import os
import socket
import struct
import tomllib
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w
import torch

Rng = np.random.Generator
Change = Callable[[Path, Rng], str]
"""Changes a file in place; returns what it did."""

DEEP = 20_000
NASTY: list[Any] = [
    *(None, True, False, -1, 0, 1, 1.5, 1e308, -1e308, float("nan"), 2**31, 10**9, 10**12, 10**18, 10**400),
    *(
        "",
        "x",
        "../../x",
        "/etc/passwd",
        "/dev/zero",
        "a/b",
        "\x1b[31mred",
        "=cmd|' /C calc'!A0",
        "\u202egnp.exe",
    ),
    *("payload.method", "os.path", "payload:x", "hf-hub:nobody/nothing", "local-dir:.", "\ud800", "é" * 300),
    *([], {}, [[]], [None], [[[1]]], {"a": {"b": {}}}, [1, "a", None], {"": 0}, ["a"] * 1000, [0.5] * 3),
]
MARKER = "EXECUTED"
"""The file that code writes which must not run."""


def drawn(rng: Rng, choices: Any) -> Any:
    """One of the choices, as it is."""
    return choices[int(rng.integers(len(choices)))]


def _nasty(rng: Rng) -> Any:
    """A value that may surprise; a copy, as it may be changed further."""
    return copy.deepcopy(drawn(rng, NASTY))


# What may stand in place of any file ------------------------------------------------------------------------------


def impostor(path: Path, rng: Rng) -> str:
    """Something else than a file, or a file of another kind."""
    kind = drawn(
        rng,
        ("pipe", "folder", "link to a device", "link away", "loose link", "loop", "socket", "gone", "sparse"),
    )
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "socket":
        here = os.getcwd()
        os.chdir(path.parent)  # a socket's path may be short alone
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path.name)
        os.chdir(here)
    elif kind == "sparse":
        with path.open("wb") as file:
            file.truncate(50 << 30)
    elif kind != "gone":
        targets = {
            "link to a device": "/dev/zero",
            "link away": "../../canary/theirs.json",
            "loop": path.name,
        }
        path.symlink_to(targets.get(kind, "nowhere"))
    return kind


def torn(path: Path, rng: Rng) -> str:
    """Bytes that are cut off, changed, put in or something else altogether."""
    good = path.read_bytes()
    place, kind = int(rng.integers(len(good) + 1)), int(rng.integers(7))
    more = rng.bytes(int(rng.integers(1, 60)))
    path.write_bytes(
        (
            good[:place],
            good[:place] + more + good[place:],
            good[:place] + more + good[place + len(more) :],
            more,
            b"",
            good + good,
            b"\x00" * len(good),
        )[kind]
    )
    return ("cut", "put in", "changed", "noise", "empty", "twice", "zeros")[kind]


# JSON, TOML -----------------------------------------------------------------------------------------------------


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """(container, key) of all values."""
    waiting = [value]
    while waiting:
        outer = waiting.pop()
        for key in list(outer) if isinstance(outer, dict) else range(len(outer)):
            yield outer, key
            if isinstance(outer[key], dict | list):
                waiting.append(outer[key])


def _altered(value: Any, rng: Rng) -> str:
    """Change one or two values within a value."""
    words = []
    for _ in range(int(rng.integers(1, 3))):
        places = list(_places(value))
        if not places:
            break
        outer, key = drawn(rng, places)
        kind = int(rng.integers(8))
        if kind == 0:
            del outer[key]
            words.append(f"{key} gone")
        elif kind == 1 and isinstance(outer, dict):
            outer[drawn(rng, ("auto_map", "trust_remote_code", "layers", "extends", "x" * 300))] = _nasty(rng)
            words.append("another key")
        elif kind == 2 and isinstance(outer[key], list):
            outer[key] *= int(drawn(rng, (2, 1000)))
            words.append(f"{key} repeated")
        elif kind == 3 and isinstance(outer[key], int | float) and not isinstance(outer[key], bool):
            outer[key] = outer[key] * drawn(rng, (-1, 2, 1000, 10**6)) + drawn(rng, (0, 1, 0.5))
            words.append(f"{key} another number")
        else:
            outer[key] = _nasty(rng)
            words.append(f"{key} is {outer[key]!r:.40}")
    return ", ".join(words)


def json_file(path: Path, rng: Rng) -> str:
    """A JSON file with other values, or none any more."""
    if rng.random() < 0.12:
        text = drawn(
            rng, ("[" * DEEP, '{"a":' * DEEP, "[" * DEEP + "]" * DEEP, "[]", "5", "null", '"x"', "NaN")
        )
        path.write_text(text)
        return f"{text[:10]}..."
    value = json.loads(path.read_text())
    what = _altered(value, rng)
    path.write_text(json.dumps(value))
    return what


def json_lines(path: Path, rng: Rng) -> str:
    """One line of several with other values."""
    lines = path.read_text().splitlines()
    place = int(rng.integers(len(lines)))
    value = json.loads(lines[place])
    what = _altered(value, rng)
    lines[place] = drawn(rng, (json.dumps(value),) * 4 + ("[" * DEEP, "x" * 10**6))
    path.write_text("\n".join(lines * int(drawn(rng, (1, 1, 1, 50)))) + "\n")
    return f"line {place}: {what}"


def toml_file(path: Path, rng: Rng) -> str:
    """A config with other values, or none any more."""
    if rng.random() < 0.15:
        text = drawn(
            rng,
            (
                "a = " + "[" * DEEP,
                ".".join("a" * DEEP) + " = 1",
                f"[{'.'.join('a' * DEEP)}]",
                "seed = 2026-01-31",
                'extends = "config.toml"',
                'extends = "/dev/zero"',
                "x = {" + ".".join("a" * DEEP) + "=1}",
            ),
        )
        path.write_text(text + "\n" + path.read_text())
        return text[:30]
    value = tomllib.loads(path.read_text())
    what = _altered(value, rng)
    try:
        path.write_text(tomli_w.dumps(value))
    except (TypeError, ValueError, UnicodeEncodeError):  # null, and numbers and texts that TOML has not
        path.write_text(f"seed = {json.dumps(drawn(rng, NASTY[1:5]))}\n")
        what = "seed alone"
    return what


# Arrays and weights -----------------------------------------------------------------------------------------------


def safetensors(path: Path, rng: Rng) -> str:
    """Weights whose header claims something else, or that hold something else."""
    good = path.read_bytes()
    size = struct.unpack("<Q", good[:8])[0]
    header, data = json.loads(good[8 : 8 + size]), good[8 + size :]
    name = drawn(rng, sorted(key for key in header if key != "__metadata__"))
    kind = int(rng.integers(8))
    if kind == 0:
        path.write_bytes(struct.pack("<Q", drawn(rng, (0, 1, 2**32, 2**63, 2**64 - 1))) + good[8:])
        return "length of the header"
    if kind == 1:
        del header[name]
    elif kind == 2:
        header[name]["shape"] = drawn(rng, ([10**6, 10**6], [0], [], [-1], [2**62, 4], [1]))
    elif kind == 3:
        header[name]["dtype"] = drawn(rng, ("F64", "I64", "BOOL", "F8_E4M3", "X", 5))
    elif kind == 4:
        header[name]["data_offsets"] = drawn(rng, ([0, 2**62], [5, 1], [0, 0], "x", [-4, 4]))
    elif kind == 5:
        header[drawn(rng, ("more", "x" * 1000, "logit_bias"))] = {
            "dtype": "F32",
            "shape": [0],
            "data_offsets": [0, 0],
        }
    elif kind == 6:
        data = drawn(rng, (b"\xff", b"\x00", b"\x7f")) * len(data)
    else:
        header["__metadata__"] = drawn(rng, ({"a": "b" * 10**6}, 5, {"a": {}}))
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return f"{name}: kind {kind}"


class _Code:
    """An object that runs code where it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (exec, (f"open({MARKER!r}, 'w').write('x')",))


def torch_file(path: Path, rng: Rng) -> str:
    """A state of something else."""
    kind = int(rng.integers(8))
    nested: Any = 0
    for _ in range(100):
        nested = [nested]
    spread = torch.zeros(1).expand(10**6, 10**6)
    good = torch.load(path, weights_only=True)
    if kind == 0:
        torch.save(_Code(), path)
    elif kind == 1:
        torch.save(drawn(rng, ({}, [], 5, None, "x", {"method": 5}, {"method": nested}, {"a": spread})), path)
    elif kind == 2:
        content = path.read_bytes()
        with (
            zipfile.ZipFile(io.BytesIO(content)) as old,
            zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new,
        ):
            for member in old.namelist():
                new.writestr(member, bytes(2**26) if "/data/" in member else old.read(member))
    elif kind == 3:
        path.write_bytes(b"\x80\x02c" + b"builtins\neval\n(X\x01\x00\x00\x001tR.")
    else:
        value = good
        for outer, key in [drawn(rng, list(_places(value)) or [(good, None)])]:
            if key is not None:
                outer[key] = drawn(
                    rng, [*NASTY[:12], spread, nested, torch.zeros(0), torch.full((3,), torch.nan)]
                )
        torch.save(value, path)
    return f"kind {kind}"


def archive(path: Path, rng: Rng) -> str:
    """A zip archive (images.zip, .npz) of something else."""
    content, kind = path.read_bytes(), int(rng.integers(7))
    with zipfile.ZipFile(io.BytesIO(content)) as old:
        members = {name: old.read(name) for name in old.namelist()}
    name = drawn(rng, sorted(members)) if members else "x"
    way = zipfile.ZIP_DEFLATED if kind == 3 or path.suffix == ".npz" else zipfile.ZIP_STORED
    if kind == 0:
        members.pop(name, None)
    elif kind == 1:
        members[name] = drawn(rng, (b"", b"x", rng.bytes(100)))
    elif kind == 2:
        members[drawn(rng, ("../../x", "/x", "a" * 300, ""))] = b"x"
    elif kind == 3:
        members[name] = bytes(2**28)
    with zipfile.ZipFile(path, "w", way) as new:
        for key, data in members.items():
            if kind == 4 and key == name and path.suffix == ".npz":
                file = io.BytesIO()
                np.lib.format.write_array_header_1_0(
                    file,
                    {
                        "descr": drawn(rng, ("<i8", "|O", "<U100000", "<f8", "|S1", "<c16")),
                        "fortran_order": bool(rng.integers(2)),
                        "shape": drawn(rng, ((10**9,), (10**18,), (0,), (), (3, 10**9), (-5,), (4, 4, 4))),
                    },
                )
                data = file.getvalue() + b"\x00" * 64
            new.writestr(key, data)
    if kind == 5:
        whole = bytearray(path.read_bytes())
        for _ in range(20):  # names, sizes and offsets of the directory at the end
            whole[-int(rng.integers(1, min(len(whole), 600)))] = int(rng.integers(256))
        path.write_bytes(bytes(whole))
    return f"{name}: kind {kind}"


BY_SUFFIX: dict[str, Change] = {
    ".json": json_file,
    ".jsonl": json_lines,
    ".toml": toml_file,
    ".safetensors": safetensors,
    ".pt": torch_file,
    ".zip": archive,
    ".npz": archive,
}


def change(path: Path, rng: Rng) -> str:
    """Change a file in any of these ways; returns what was done."""
    fitting = BY_SUFFIX.get(path.suffix)
    choice = rng.random()
    if choice < 0.15 or (fitting is None and choice < 0.6):
        return f"replaced: {impostor(path, rng)}"
    if choice < 0.25 or fitting is None:
        return f"torn: {torn(path, rng)}"
    try:
        return fitting(path, rng)
    except Exception:  # it was changed before, and is none of its kind any more
        return f"torn: {torn(path, rng)}"
