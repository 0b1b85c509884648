"""A web server on this machine that misbehaves as tests want."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest


@dataclass
class Site:
    """What the server has and does.

    Args:
        files: path -> content.
        ranges: answers requests for a part of a file with that part, else with the whole.
        breaks: one number of bytes a request, after which the connection is closed, for the first requests.
        status: code of every answer, where it is none of success.
        claimed: length in the header, where it is not the true one; -1 leaves the header out.
        stall: set by the test, to let connections that sent ``stall_after`` bytes go on.
        asked: the header Range of each request, empty where there was none.
        sent: bytes of contents.
    """

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    ranges: bool = True
    breaks: list[int] = field(default_factory=list)
    status: int = 200
    claimed: int | None = None
    stall_after: int | None = None
    stall: threading.Event = field(default_factory=threading.Event)
    asked: list[str] = field(default_factory=list)
    sent: int = 0


class _Handler(BaseHTTPRequestHandler):
    site: Site

    def do_HEAD(self) -> None:
        self.site.asked.append("")
        self.send_error(404)

    def do_GET(self) -> None:
        site = self.site
        wanted = self.headers["Range"] or ""
        site.asked.append(wanted)
        content = site.files.get(self.path)
        if content is None or site.status != 200:
            self.send_error(404 if content is None else site.status)
            return
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted and site.ranges else 0
        if start >= len(content) > 0:
            self.send_error(416)
            return
        self.send_response(206 if wanted and site.ranges else 200)
        if wanted and site.ranges:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        rest = content[start:]
        claimed = len(rest) if site.claimed is None else site.claimed
        if claimed >= 0:
            self.send_header("Content-Length", str(claimed))
        self.end_headers()
        with suppress(ConnectionError):  # the client is gone
            self._send(rest[: site.breaks.pop(0)] if site.breaks else rest)

    def _send(self, rest: bytes) -> None:
        at = len(rest) if self.site.stall_after is None else self.site.stall_after
        for number, piece in enumerate((rest[:at], rest[at:])):
            if number and piece:
                self.site.stall.wait(30)
            # Counted before it is sent: a client that has it all may look before this thread runs again.
            self.site.sent += len(piece)
            self.wfile.write(piece)
            self.wfile.flush()

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: stderr is the program's."""


@contextmanager
def serving(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """The server, running; connections go to it directly and tries come without a pause."""
    from everclip.data.formats import download

    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(download, "PAUSE", 0.0)
    site = Site()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"site": site}))
    site.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield site
    finally:
        site.stall.set()
        server.shutdown()
        server.server_close()
        thread.join()
