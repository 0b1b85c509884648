"""Requests that are wrong in one way or another, as bytes for a socket."""

from __future__ import annotations

import io
import json
import struct
import tempfile
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from tests.pictures import COLOURS, picture

Rng = np.random.Generator
TELLING = ("Traceback", "/tmp", tempfile.gettempdir(), "everclip/")
"""What no answer may have: traces, and paths of the server."""
UNANSWERED = ("no HTTP", "half a request", "odd chunks", "an odd header")
"""Kinds of mistakes that may end a connection without an answer."""
GOOD = ("a changed picture", "a picture cut short", "an odd request line", "an odd type")
"""Kinds of mistakes that may be none: a picture may still be one, and a request line one of the server's own."""


def requests(seed: int, count: int) -> Iterator[tuple[str, bytes]]:
    """Yield kinds of mistakes in turn, each with the bytes of a request that makes one."""
    rng = np.random.default_rng(seed)
    kinds = list(_KINDS.items())
    for number in range(count):
        name, make = kinds[number % len(kinds)]
        yield name, make(rng)


def alike(one: tuple[int, Any], other: tuple[int, Any]) -> bool:
    """Whether two answers are the same, but for what other pictures in a batch change in the last digits."""
    parts = [dict(answer) for _, answer in (one, other)]
    shares = [[top["probability"] for top in part.pop("top")] for part in parts]
    del parts[0]["probability"], parts[1]["probability"]
    return one[0] == other[0] and parts[0] == parts[1] and np.allclose(*shares, atol=1e-4)


def wrong(answer: bytes, raw: bytes = b"", kind: str | None = None) -> str:
    """Say what is wrong with an answer to a mistake of a kind, or of any; empty if nothing is."""
    if not answer:
        return "" if kind in (None, *UNANSWERED) else "no answer"
    head, _, body = answer.partition(b"\r\n\r\n")
    telling = [part for part in TELLING if part.encode() in body]
    if telling:
        return f"it tells too much: {telling[0]} in {body[:200]!r}"
    status = (head.split(b" ")[1:2] or [b""])[0]
    if status in (b"100", b"200"):
        return (
            "" if kind in (None, *GOOD) or (status, kind) == (b"100", "an odd header") else "taken for right"
        )
    if status not in (b"400", b"404", b"405", b"408", b"413", b"415", b"422", b"503"):
        return f"status {status}"
    if raw.startswith(b"HEAD ") and not body:
        return ""
    try:
        error = json.loads(body)["error"]
    except (ValueError, LookupError, TypeError):
        return f"no JSON with an error: {answer[:200]!r}"
    return f"several lines: {error}" if "\n" in error else ""


def _post(path: str, body: bytes, kind: str = "image/png", length: object = None) -> bytes:
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: {kind}\r\nConnection: close\r\n"
    return f"{head}Content-Length: {len(body) if length is None else length}\r\n\r\n".encode("latin-1") + body


def _noise(rng: Rng, most: int = 2000) -> bytes:
    return rng.bytes(int(rng.integers(1, most)))


def _file(rng: Rng) -> bytes:
    file = io.BytesIO()
    kinds = ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM")
    picture(COLOURS["red"], int(rng.integers(99))).save(file, kinds[rng.integers(len(kinds))])
    return file.getvalue()


def _path(rng: Rng) -> str:
    return ("/predict", "/embed", "/search")[rng.integers(3)]


def _flipped(rng: Rng) -> bytes:
    content = bytearray(_file(rng))
    for place in rng.integers(0, len(content), int(rng.integers(1, 40))).tolist():
        content[place] = int(rng.integers(256))
    return _post(_path(rng), bytes(content))


def _cut(rng: Rng) -> bytes:
    content = _file(rng)
    return _post(_path(rng), content[: int(rng.integers(1, len(content)))])


def _huge(rng: Rng) -> bytes:
    """A PNG whose header claims up to 2^31 pixels a side."""
    sides = struct.pack(">II", *(int(side) for side in rng.integers(10**4, 2**31 - 1, 2)))
    chunk = b"IHDR" + sides + b"\x08\x02\x00\x00\x00"
    head = struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
    return _post(_path(rng), b"\x89PNG\r\n\x1a\n" + head + _noise(rng, 100))


def _json(rng: Rng) -> bytes:
    odd = (
        b"{",
        b"[" * 5000,
        b'{"text": ' * 500,
        b"null",
        b"[]",
        b'{"text": 5}',
        b'{"text": ""}',
        b'{"text": null, "k": 1}',
        b'{"text": "\xff\xfe"}',
        b'{"text": "' + b"a" * 2000 + b'"}',
        b'{"text": NaN}',
        b'{"texts": ["a"]}',
        b"9" * 5000,
        _noise(rng),
    )
    return _post(
        ("/embed", "/search", "/predict")[rng.integers(3)], odd[rng.integers(len(odd))], "application/json"
    )


def _option(rng: Rng) -> bytes:
    odd = ("top=0", "top=-1", "top=1e9", "top=", "top=5.5", "reject_below=nan", "reject_below=2", "k=x")
    odd += ("%00=1", "top=%ff", "top=" + "9" * 3000, "unknown=1", "top=1&top=-1", "=", "a[]=1")
    odd += ("reject_below=inf", "k=99999999999999999999", "top=१०१०१०")
    path = f"{_path(rng)}?{odd[rng.integers(len(odd))]}"
    return _post(path.encode().decode("latin-1"), _file(rng))


def _length(rng: Rng) -> bytes:
    odd = ("-1", "99999999999", "9" * 300, "x", "1, 2", "0x10", " ", "5")
    return _post("/predict", _file(rng), length=odd[rng.integers(len(odd))])


def _kind(rng: Rng) -> bytes:
    odd = (
        "text/html",
        "multipart/form-data; boundary=x",
        "application/json; charset=utf-7",
        "\xff",
        "a" * 500,
    )
    return _post(_path(rng), _file(rng), odd[rng.integers(len(odd))])


def _line(rng: Rng) -> bytes:
    """A request line that is none, another method, another path."""
    methods = (
        b"GET",
        b"PUT",
        b"DELETE",
        b"HEAD",
        b"OPTIONS",
        b"TRACE",
        b"CONNECT",
        b"PATCH",
        b"get",
        b"\x00",
    )
    paths = (b"/predict", b"/", b"/../../etc/passwd", b"/predict/", b"//", b"*", b"http://x/model", b"/%00")
    paths += (b"/" + b"a" * 5000, b"/\xff", b"/health?x=<script>", b"/model\r\nX: y")
    ends = (b"HTTP/1.1", b"HTTP/1.1", b"HTTP/1.0", b"HTTP/9", b"")
    parts = (
        methods[rng.integers(len(methods))],
        paths[rng.integers(len(paths))],
        ends[rng.integers(len(ends))],
    )
    return b" ".join(parts) + b"\r\nHost: x\r\nConnection: close\r\n\r\n"


def _head(rng: Rng) -> bytes:
    odd = (
        b"X: " + b"a" * 70_000,
        b"".join(b"X-%d: y\r\n" % number for number in range(3000)) + b"Y: z",
        b"Content-Length: 3\r\nContent-Length: 4",
        b"Content-Length: 3\r\nTransfer-Encoding: chunked",
        b"Transfer-Encoding: gzip",
        b"Upgrade: websocket\r\nConnection: Upgrade",
        b"Expect: 100-continue\r\nContent-Length: 99999999999",
        b"no colon",
        b": no name",
        b"\x00: y",
        b"Host: y",
    )
    return (
        b"POST /predict HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
        + odd[rng.integers(len(odd))]
        + b"\r\n\r\nabc"
    )


def _chunked(rng: Rng) -> bytes:
    odd = (
        b"zz\r\nabc\r\n",
        b"-1\r\n",
        b"5\r\nab",
        b"ffffffffffffffff\r\nab",
        b"1\r\nabcdef\r\n0\r\n\r\n",
        _noise(rng),
    )
    head = b"POST /predict HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
    return head + odd[rng.integers(len(odd))]


_KINDS: dict[str, Callable[[Rng], bytes]] = {
    "no HTTP": _noise,
    "no picture": lambda rng: _post(_path(rng), _noise(rng)),
    "a changed picture": _flipped,
    "a picture cut short": _cut,
    "a huge picture": _huge,
    "no such JSON": _json,
    "an odd option": _option,
    "an odd length": _length,
    "an odd type": _kind,
    "an odd request line": _line,
    "an odd header": _head,
    "odd chunks": _chunked,
    "an empty body": lambda rng: _post(_path(rng), b""),
    "half a request": lambda rng: _post("/predict", _file(rng))[: int(rng.integers(1, 150))],
}
