"""Ask a server over its socket, with the standard library alone."""

from __future__ import annotations

import http.client
import json
import select
import socket
from dataclasses import dataclass, field
from typing import Any

from everclip.serving.current import Current

Json = dict[str, Any]


@dataclass
class Client:
    """Asks a server on this machine; a new connection for each request."""

    port: int
    lines: list[str] = field(default_factory=list)
    current: Current | None = None

    def ask(
        self, path: str, body: bytes | None = None, kind: str = "image/png", method: str | None = None
    ) -> tuple[int, Json]:
        """Return status and answer; POST where there is a body."""
        status, answer, _ = self.whole(path, body, kind, method)
        return status, answer

    def whole(
        self, path: str, body: bytes | None = None, kind: str = "image/png", method: str | None = None
    ) -> tuple[int, Json, dict[str, str]]:
        """The same with the headers, in lower case."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            headers = {} if body is None or not kind else {"Content-Type": kind}
            connection.request(method or ("GET" if body is None else "POST"), path, body, headers)
            found = connection.getresponse()
            text = found.read()
            assert found.headers["content-type"] == "application/json"
            named = {name.lower(): value for name, value in found.headers.items()}
            return found.status, json.loads(text) if text else {}, named
        finally:
            connection.close()

    def say(self, path: str, value: Any) -> tuple[int, Json]:
        """POST a value as JSON."""
        return self.ask(path, json.dumps(value).encode(), "application/json")

    def send(self, raw: bytes, patience: float = 0.15) -> bytes:
        """Send bytes, and return all that comes back; after a while without an answer say that no more will follow."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=60) as connection:
            parts = []
            try:
                connection.sendall(raw)
                if not select.select([connection], [], [], patience)[0]:
                    connection.shutdown(socket.SHUT_WR)
                while part := connection.recv(1 << 16):
                    parts.append(part)
            except (ConnectionResetError, BrokenPipeError):  # it refuses before all has been sent
                pass
            return b"".join(parts)
