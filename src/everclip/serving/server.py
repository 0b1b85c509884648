"""Listen on a port until SIGTERM or Ctrl-C, and answer what has arrived by then."""

from __future__ import annotations

import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import h11
from uvicorn import Config, Server
from uvicorn.protocols.http.h11_impl import H11Protocol

from everclip.errors import UserError
from everclip.serving.app import Service
from everclip.serving.current import Current, Say, Source
from everclip.serving.limits import SECONDS, Limits
from everclip.system.signals import handling
from everclip.system.text import json_text


class _Protocol(H11Protocol):
    """HTTP/1.1 that answers malformed requests in JSON too."""

    def send_400_response(self, msg: str) -> None:
        """Answer and close the connection; a result that is still being computed for it is dropped."""
        if self.cycle is not None:
            self.cycle.disconnected = True  # else its answer would follow this one, which h11 refuses
            self.cycle.message_event.set()
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            body = json_text({"error": f"the request is no valid HTTP: {msg}"}, None).encode() + b"\n"
            about = {
                "content-type": "application/json",
                "content-length": str(len(body)),
                "connection": "close",
            }
            head = h11.Response(status_code=400, headers=[*about.items()], reason=b"Bad Request")
            for part in (head, h11.Data(data=body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(part) or b"")
        self.transport.close()


def listening(host: str, port: int) -> socket.socket:
    """Return a listening socket; clients that connect before the model is open wait.

    Args:
        port: 0 for any that is free.

    Raises:
        UserError: there is no such address, or the port is taken.
    """
    try:
        family, kind, number, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        found = socket.socket(family, kind, number)
    except (OSError, UnicodeError) as error:  # a name that is too long is no name of a host at all
        reason = error.strerror if isinstance(error, OSError) else "no name of a host"
        raise UserError(f"--host {host} is not an address ({reason}): use one of this machine") from error
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # at once after a killed server
        found.bind(address)
        found.listen(2048)
    except OSError as error:
        found.close()
        raise UserError(f"port {port} of {host} cannot be used ({error.strerror}): use --port") from error
    return found


def server_of(service: Service) -> Server:
    """Return the server of a service: ``run([listening(...)])`` ends once ``should_exit`` is set, or at a signal."""
    config = Config(
        service.app(),
        http=_Protocol,
        ws="none",
        loop="asyncio",
        lifespan="on",
        log_config=None,
        log_level="error",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=int(SECONDS),
    )
    return Server(config)


def serve(source: Source, host: str, port: int, limits: Limits, say: Say) -> None:
    """Serve a model until SIGTERM or Ctrl-C; SIGHUP opens its folder again.

    Requests that have arrived are answered before it returns, for up to ``SECONDS``.

    Args:
        say: takes one line whenever something happens that an operator wants to know.

    Raises:
        UserError: the port cannot be had, or the model cannot be opened.
    """
    with suppress(_Ended), listening(host, port) as listener, handling(_OPENING):
        current = Current(source, say)
        server = server_of(Service(current, limits, say))
        shown = f"[{host}]" if ":" in host else host
        say(f"serving {current.now.words} on http://{shown}:{listener.getsockname()[1]}")
        with _signals(current):
            current.start()
            try:
                server.run([listener])
            finally:
                current.stop()


class _Ended(BaseException):
    """SIGTERM or Ctrl-C before the model is open; no handler of errors may take it for one."""


def _end(*_: object) -> None:
    raise _Ended


_OPENING = {signal.SIGTERM: _end, signal.SIGINT: _end, signal.SIGHUP: lambda *_: None}
"""What signals do until the model is open."""


@contextmanager
def _signals(current: Current) -> Iterator[None]:
    """Have SIGHUP call ``Current.ask``, and ignore the SIGTERM or SIGINT that uvicorn raises again once it is done."""
    quiet = dict.fromkeys((signal.SIGTERM, signal.SIGINT), lambda *_: None)
    with handling({signal.SIGHUP: lambda *_: current.ask()} | quiet):
        yield
