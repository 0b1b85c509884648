"""everclip serve: a process that is stopped, killed, told to look again, or started wrongly."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import pytest
from PIL import Image

from everclip.cli.serve import MOST_MEGAPIXELS
from everclip.serving import server
from everclip.serving.current import Source
from everclip.serving.limits import MEGA, Limits
from everclip.serving.server import listening
from tests.cli.conftest import Say
from tests.serving import malformed
from tests.serving.client import Client
from tests.serving.conftest import made

__all__ = ["made"]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--port", 70_000], "--port is 70000: use a whole number from 0 to 65535"),
        (["--max-waiting", 0], "--max-waiting is 0: use a whole number from 1 to 1000000"),
        (["--max-megapixels", 90], "--max-megapixels is 90: use a whole number from 1 to 89"),
        (["--host", "no such host"], "--host no such host is not an address"),
        (["--host", "a" * 70], f"--host {'a' * 70} is not an address (no name of a host): use one"),
        (["--host", "192.0.2.1", "--port", 0], "port 0 of 192.0.2.1 cannot be used (Cannot assign requested"),
        (["--port", 0], "lite comes without classes: give --classes FILE, one name per line"),
    ],
)
def test_a_wrong_start_is_one_line(say: Say, words: list[object], line: str) -> None:
    code, out, err = say("serve", "lite", *words)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"error: {line}")


def test_pictures_of_the_largest_size_that_may_be_asked_for_are_decoded() -> None:
    most = Image.MAX_IMAGE_PIXELS
    assert most is not None
    assert MOST_MEGAPIXELS * MEGA <= most < (MOST_MEGAPIXELS + 1) * MEGA


def test_a_port_in_use_is_one_line(say: Say) -> None:
    with listening("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        code, out, err = say("serve", "lite", "--port", port)
    line = f"error: port {port} of 127.0.0.1 cannot be used (Address already in use): use --port\n"
    assert (code, out, err) == (2, "", line)


def test_a_machine_without_a_kind_of_addresses_is_one_line(say: Say, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*given: object) -> None:
        raise OSError(97, "Address family not supported by protocol")

    monkeypatch.setattr("socket.socket", refused)
    code, out, err = say("serve", "lite", "--host", "::1")
    line = "error: --host ::1 is not an address (Address family not supported by protocol): use one of this machine\n"
    assert (code, out, err) == (2, "", line)


def test_a_missing_extra_is_one_line(say: Say, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "everclip.serving.server", raising=False)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    code, _, err = say("serve", "lite")
    assert (code, err) == (
        2,
        'error: everclip serve needs the package uvicorn: pip install "everclip[serve]"\n',
    )


@contextmanager
def process(model: Path, log: Path, port: int = 0) -> Iterator[tuple[subprocess.Popen[bytes], Client]]:
    """``everclip serve`` once it answers; killed at the end."""
    words = [sys.executable, "-m", "everclip", "serve", str(model), "--port", str(port)]
    with log.open("wb") as file, subprocess.Popen(words, stderr=file) as started:
        try:
            limit = time.monotonic() + 120
            while not (found := re.search(r"on http://127\.0\.0\.1:(\d+)\n", log.read_text())):
                assert started.poll() is None, log.read_text()
                assert time.monotonic() < limit
                time.sleep(0.1)
            yield started, Client(int(found[1]))
        finally:
            started.kill()


def _until(client: Client, key: str, value: object) -> None:
    limit = time.monotonic() + 30
    while client.ask("/health")[1][key] != value:
        assert time.monotonic() < limit
        time.sleep(0.1)


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT], ids=lambda stop: stop.name)
def test_signals_while_the_model_is_opened(stop: signal.Signals, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGHUP has nothing to open again yet; the others end the server as they do later."""
    seen: list[str] = []

    def opening(source: object, say: object) -> NoReturn:
        os.kill(os.getpid(), signal.SIGHUP)
        seen.append("still opening")
        os.kill(os.getpid(), stop)
        pytest.fail("it goes on")

    monkeypatch.setattr(server, "Current", opening)
    server.serve(Source("v1"), "127.0.0.1", 0, Limits(), seen.append)
    assert seen == ["still opening"]


@pytest.mark.slow
@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT], ids=lambda stop: stop.name)
def test_killed_stopped_and_told_to_look_again(made: Path, tmp_path: Path, stop: signal.Signals) -> None:
    """The same version after kill -9; SIGHUP opens it again; SIGTERM and Ctrl-C answer what has arrived, and end it
    with 0.
    """
    body = (made / "red.png").read_bytes()
    (tmp_path / "current").symlink_to(made / "v2")
    with process(tmp_path / "current", tmp_path / "log") as (started, client):
        first = client.ask("/predict", body)
        assert first[1]["version"] == 2
        started.kill()
        assert started.wait() == -signal.SIGKILL
    with process(tmp_path / "current", tmp_path / "log", client.port) as (started, client):
        assert malformed.alike(client.ask("/predict", body), first)
        os.kill(started.pid, signal.SIGHUP)
        _until(client, "switches", 1)
        half = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: %d\r\n\r\n"
        with socket.create_connection(("127.0.0.1", client.port), timeout=30) as connection:
            connection.sendall(half % len(body) + body[:10])
            _until(client, "waiting", 1)
            os.kill(started.pid, stop)
            time.sleep(0.5)
            connection.sendall(body[10:])
            assert connection.recv(1000).startswith(b"HTTP/1.1 200 ")
        assert started.wait(30) == 0
    lines = (tmp_path / "log").read_text().splitlines()
    assert [line.split(" (")[0] for line in lines] == ["serving v2", "serving v2"]
