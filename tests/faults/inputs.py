"""Damaged pictures and mistaken settings, made at random, and what must become of them."""

from __future__ import annotations

import io
import json
import struct
import time
import tomllib
import zlib
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from everclip.cli.app import main
from everclip.config import Config, known_keys
from everclip.config.values import flat
from everclip.data.images import Store
from everclip.data.pixels import Pixels

Row = dict[str, Any]

FORMATS = [
    *(("JPEG", mode) for mode in ("RGB", "L", "CMYK")),
    *(("PNG", mode) for mode in ("RGB", "L", "RGBA", "P", "I;16", "1", "LA")),
    *(
        ("GIF", "P"),
        ("WEBP", "RGB"),
        ("WEBP", "RGBA"),
        ("BMP", "RGB"),
        ("TIFF", "RGB"),
        ("TIFF", "F"),
        ("PPM", "RGB"),
    ),
]
SLOWEST = 5.0
"""Seconds that one picture may take; it has at most a few thousand bytes."""
LONGEST = 1000
"""Characters of an error."""


class Held(Store):
    """Pictures in memory."""

    def __init__(self, files: Sequence[bytes]) -> None:
        self.keys = [f"{number}.png" for number in range(len(files))]
        self._files = files

    def read(self, row: int) -> bytes:
        return self._files[row]

    def nbytes(self, row: int) -> int:
        return len(self._files[row])


def encoded(rng: np.random.Generator) -> bytes:
    """A small picture of a random format, mode and size."""
    form, mode = FORMATS[int(rng.integers(len(FORMATS)))]
    height, width = rng.integers(1, 40, size=2).tolist()
    grey = rng.integers(0, 256, size=(height, width), dtype=np.uint8)
    if mode == "I;16":
        picture = Image.fromarray(grey.astype(np.uint16) * 257)
    elif mode == "F":
        picture = Image.fromarray(grey.astype(np.float32) / 255)
    else:
        picture = Image.fromarray(grey).convert(mode)
    file = io.BytesIO()
    picture.save(file, form)
    return file.getvalue()


def spoiled(good: bytes, rng: np.random.Generator) -> bytes:
    """The file with something wrong."""
    kind = int(rng.integers(7))
    place = int(rng.integers(len(good)))
    if kind == 0:
        return good[:place]
    if kind == 1:  # larger than Pillow may decode, with a right checksum
        size = struct.pack(">II", *(int(side) for side in rng.integers(20_000, 2**31 - 1, size=2)))
        header = b"IHDR" + size + b"\x08\x02\x00\x00\x00"
        start = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
        return start + struct.pack(">I", 8) + b"IDAT" + rng.bytes(12)
    if kind == 2:
        return rng.bytes(int(rng.integers(0, 400)))
    if kind == 3:
        return good[:place] + rng.bytes(int(rng.integers(1, 60))) + good[place:]
    if kind == 4:
        return good[:place] + good[place + int(rng.integers(1, 60)) :]
    changed = bytearray(good)
    for _ in range(int(rng.integers(1, 20)) if kind == 5 else 1):
        changed[int(rng.integers(len(changed)))] ^= 1 << int(rng.integers(8))
    return bytes(changed)


def images(rng: np.random.Generator, count: int) -> Row:
    """Spoiled pictures through the decoder: each is a picture of the right size, or is left out and its reason kept."""
    files = [spoiled(encoded(rng), rng) for _ in range(count)]
    pixels = Pixels(Held(files), lambda picture: picture.resize((16, 16)), 16, 0, 0)
    decoded, slowest = 0, 0.0
    for row in range(count):
        start = time.perf_counter()
        pictures, good = pixels.load(np.array([row]))
        slowest = max(slowest, time.perf_counter() - start)
        if good.all() != (len(pictures) == 1) or good.all() == (row in pixels.broken):
            return {"ok": False, "why": f"picture {row} is neither decoded nor left out"}
        decoded += len(pictures)
    reasons = pixels.skipped().values()
    lines = all(reason and "\n" not in reason and len(reason) <= LONGEST for reason in reasons)
    row = {
        "images": count,
        "decoded": decoded,
        "left_out": len(reasons),
        "slowest_seconds": round(slowest, 3),
    }
    return row | {"ok": lines and len(reasons) + decoded == count and slowest < SLOWEST, "why": ""}


VALUES = [
    "0",
    "-1",
    "1e999",
    "nan",
    "true",
    "none",
    "auto",
    "[]",
    "[1, 2]",
    "{}",
    '"',
    "'x",
    "ß",
    "1e-4",
    "99999999999999",
]
VALUES += [
    "task",
    "full",
    "lora:0",
    "steps:0",
    "minutes:3",
    "../..",
    "%s",
    "\x00",
    "=",
    "a=b",
    " ",
    "1" * 5000,
    "[[[[",
]
LEFT_OPEN = {key for key, value in flat(Config().model_dump()).items() if value is None}
"""Keys that are filled in where nobody says what they are."""
METHODS = ["gdro", "gcl", "finetune", "foster", "joint", "wise_ft"]


RIGHT = [
    "seed=3",
    "train.lr=1e-4",
    "train.lr_text=0",
    "memory.budget=all",
    "train.warmup=0.5",
    "train.steps=2",
]
RIGHT += [
    "tune=lora:2",
    "checkpoint.every=steps:10",
    "train.clip_norm=none",
    "scenario.order=[1, 2]",
    "smoke=true",
]


def settings(rng: np.random.Generator, base: Sequence[str]) -> list[str]:
    """The settings ``base`` and a few more, right ones, mistaken ones, and right ones with a slip."""
    keys = known_keys()
    tokens = [*base, f"method={METHODS[int(rng.integers(len(METHODS)))]}"]
    for _ in range(int(rng.integers(1, 4))):
        key, value = keys[int(rng.integers(len(keys)))], VALUES[int(rng.integers(len(VALUES)))]
        token, kind = RIGHT[int(rng.integers(len(RIGHT)))], int(rng.integers(6))
        place = int(rng.integers(len(token)))
        if kind == 0:
            token = f"{key}={value}"
        elif kind == 1:
            token = token[:place] + token[place + 1 :]
        elif kind == 2:
            token = token[:place] + chr(int(rng.integers(32, 127))) + token[place:]
        elif kind == 3:
            token = f"method.{token}" if rng.random() < 0.3 else f"{token.partition('=')[0]}={value}"
        tokens.append(token)
    return tokens


def configs(rng: np.random.Generator, count: int, base: Sequence[str], folder: Path) -> Row:
    """Mistaken settings through ``everclip train --dry-run``: one line that says so, or a config that holds them."""
    refused = 0
    for number in range(count):
        tokens = settings(rng, base)
        if number % 3 == 0:  # the same as a file
            tokens = [_file(tokens, folder / "mistaken.toml", rng), *base]
        out, err = io.StringIO(), io.StringIO()
        with redirect_stdout(out), redirect_stderr(err):
            code = main(["train", *tokens, "--dry-run", "--json"])
        bad = wrong(tokens, code, out.getvalue(), err.getvalue())
        if bad:
            return {"ok": False, "why": f"{bad}: {tokens}"[:1500]}
        refused += code == 2
    return {"configs": count, "refused": refused, "ok": True, "why": ""}


def _file(tokens: Sequence[str], path: Path, rng: np.random.Generator) -> str:
    """Write the settings as TOML of dotted keys, with a byte changed now and then."""
    lines = [(key, _toml(value)) for key, _, value in (token.partition("=") for token in tokens)]
    content = "\n".join(f"{key} = {value}" for key, value in dict(lines).items()).encode("utf-8")
    if content and rng.random() < 0.5:
        place = int(rng.integers(len(content)))
        content = content[:place] + rng.bytes(1) + content[place + 1 :]
    path.write_bytes(content)
    return str(path)


def _toml(value: str) -> str:
    """The value as it stands where it is TOML, else quoted."""
    try:
        tomllib.loads(f"x = {value}")
        return value
    except (tomllib.TOMLDecodeError, ValueError, RecursionError):
        return json.dumps(value)


def wrong(tokens: Sequence[str], code: int, out: str, err: str) -> str:
    """What is wrong with an answer to settings; empty where nothing is."""
    last = (err.splitlines() or [""])[-1]
    if "Traceback" in err or code not in (0, 2):
        return f"exit {code}: {err[-800:]}"
    if code == 2:
        lines = [line for line in err.splitlines() if not line.startswith("warning: ")]
        if len(lines) != 1 or not last.startswith("error: ") or len(last) > LONGEST:
            return f"no short line: {err[-800:]}"
        return ""
    held = flat(json.loads(out)["config"])
    for key, (text, value) in _given(tokens).items():
        if key not in held or not _holds(held[key], key, text, value):
            return f"{key}={text} has become {held.get(key, 'nothing')}"
    return ""


def _given(tokens: Sequence[str]) -> dict[str, tuple[str, Any]]:
    """Keys of settings, those of a file and those after it, each with its value as text and as TOML reads it."""
    given: dict[str, tuple[str, Any]] = {}
    for token in tokens:
        if token.endswith(".toml"):
            read = tomllib.loads(Path(token).read_text(encoding="utf-8"))
            given |= {key: (str(value), value) for key, value in flat(read).items()}
        else:
            key, _, text = token.partition("=")
            given[key] = (text.strip(), tomllib.loads(f"x = {_toml(text)}")["x"])
    return given


def _holds(held: Any, key: str, text: str, value: Any) -> bool:
    """Whether a complete config holds a value as it was given."""
    if value in ("none", "auto"):
        return held in (None, value) or key in LEFT_OPEN
    with suppress(ValueError):
        if isinstance(held, float):
            return held == float(text)  # ".5" is not a TOML, but may stand after "="
    return held in (value, text)
