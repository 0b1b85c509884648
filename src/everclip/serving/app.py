"""Speak HTTP: POST /predict, /embed, /search; GET /health, /model.

A picture is the body itself, one per request; a text for /embed and /search is JSON, ``{"text": "a red bicycle"}``.
Options go into the query: ``/predict?top=3``. Every answer is one JSON object; an error is ``{"error": LINE}`` with
status 400 (malformed), 404, 405, 408 (too slow), 413 (too large), 415 (another type), 422 (no picture), 500 (our fault)
or 503 (too busy, or nothing to search in), without a traceback and without a path of this machine.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from everclip.errors import shown, suggest
from everclip.runs.words import several
from everclip.serving.answering import Answering, Ask, Json, Kind
from everclip.serving.batches import Batches
from everclip.serving.current import Current, Say
from everclip.serving.limits import MOST_JSON, MOST_TEXT, MOST_TOP, SECONDS, Limits, Refused
from everclip.system.reading import Unreadable, parse_json
from everclip.system.text import json_text

PATHS = {"/predict": "POST", "/embed": "POST", "/search": "POST", "/health": "GET", "/model": "GET"}
"""All paths, and their methods."""
OPTIONS: dict[Kind, dict[str, float]] = {
    "predict": {"top": 5, "reject_below": 0.0, "unknown_at": 0.0},
    "embed": {},
    "search": {"k": 10},
}
"""Options of a query with their defaults: a whole number from 1, or a float from 0 to 1."""
_PICTURES = ("image/", "application/octet-stream", "application/x-www-form-urlencoded")
"""Content types that a picture may have; the last is what curl sends with any body. Only the content decides."""
_JSON = "application/json"


def answer(value: Json, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Return a response of one JSON object on one line."""
    return Response(json_text(value, None) + "\n", status, headers, media_type=_JSON)


class Service:
    """The endpoints.

    Args:
        current: the version in use.
        limits: of each request.
        say: takes one line about a request that fails on our side.
    """

    def __init__(self, current: Current, limits: Limits, say: Say) -> None:
        self._current, self._limits = current, limits
        self._batches = Batches(Answering(current, limits.pixels, say))
        self._begin = time.monotonic()
        self._inside = self._answered = 0

    def app(self) -> Starlette:
        """Return the application, which a server runs."""

        @asynccontextmanager
        async def working(app: Starlette) -> AsyncIterator[None]:
            task = asyncio.create_task(self._batches.work())
            yield
            task.cancel()

        ways = {"/health": self.health, "/model": self.model}
        routes = [Route(path, ways.get(path, self.ask), methods=[method]) for path, method in PATHS.items()]
        handlers = {Refused: _refused, HTTPException: _no_such, Exception: _internal}
        app = Starlette(routes=routes, lifespan=working, exception_handlers=handlers)
        app.router.redirect_slashes = False
        return app

    async def health(self, request: Request) -> Response:
        """Return the state for a monitor; ``error`` is why the folder's version is not the one in use."""
        served = self._current.now
        off = served.public(served.unfit) or ("no --vectors" if served.vectors is None else "")
        told = {
            "status": "ok",
            **served.label,
            "error": self._current.error or None,
            "search": f"off: {off}" if off else "on",
            "switches": self._current.switches,
            "waiting": self._inside,
            "answered": self._answered,
            "seconds": round(time.monotonic() - self._begin, 1),
        }
        return answer(told)

    async def model(self, request: Request) -> Response:
        """Describe the version in use."""
        served = self._current.now
        calibration = served.model.calibration
        told = {
            "model": served.name,
            **served.label,
            "classes": list(served.model.names),
            "image_size": served.model.clip.image_size,
            "temperature": None if calibration is None else calibration.temperature,
            "fingerprint": served.mark,
            "embeddings": None if served.vectors is None else len(served.vectors),
            "limits": vars(self._limits) | {"text": MOST_TEXT, "top": MOST_TOP},
        }
        return answer(told)

    async def ask(self, request: Request) -> Response:
        """Answer a picture or a text. Raises Refused."""
        if self._inside >= self._limits.waiting:
            waiting = several(self._inside, "request")
            raise Refused(503, f"too busy ({waiting} waiting): try again in a second", again=True)
        self._inside += 1
        try:
            result = await self._batches.ask(await self._asked(request))
        except ClientDisconnect:  # nobody reads it
            return answer({"error": "the client closed the connection"}, 400)
        finally:
            self._inside -= 1
        self._answered += 1
        return answer(result)

    async def _asked(self, request: Request) -> Ask:
        """Read a request. Raises Refused."""
        kind: Kind = request.scope["path"][1:]
        options = _options(kind, request.query_params)
        said = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if said == _JSON and kind != "predict":
            content: bytes | str = _text(await self._body(request, MOST_JSON))
        elif not said or said.startswith(_PICTURES):
            content = await self._body(request, self._limits.body)
        else:
            text = "" if kind == "predict" else f', or {_JSON} such as {{"text": "a red bicycle"}}'
            raise Refused(415, f"the body is {shown(said)}: send a picture, such as image/jpeg{text}")
        top = options.get("top", options.get("k", 1))
        rate = options.get("unknown_at") or None
        return Ask(kind, content, int(top), options.get("reject_below", 0.0), rate)

    async def _body(self, request: Request, most: int) -> bytes:
        """Return the body of a request. Raises Refused where it is empty, too large or too slow."""
        large = Refused(413, f"the body has more than {most:,} bytes: send a smaller one")
        length = request.headers.get("content-length", "0")
        if len(length) > 18 or (length.isascii() and length.isdigit() and int(length) > most):
            raise large
        content = bytearray()
        try:
            async with asyncio.timeout(SECONDS):
                async for chunk in request.stream():
                    content += chunk
                    if len(content) > most:
                        raise large
        except TimeoutError:
            raise Refused(408, f"the body took longer than {SECONDS:g} seconds: send it again") from None
        if not content:
            raise Refused(400, "the body is empty: send a picture as the body")
        return bytes(content)


def _options(kind: Kind, given: Mapping[str, str]) -> dict[str, float]:
    """Return the options of a request, with defaults. Raises Refused for one that is unknown or out of range."""
    known = OPTIONS[kind]
    for name, text in given.items():
        if name not in known:
            near = suggest(name, known) if known else "; it takes none"
            raise Refused(400, f"/{kind} has no option {shown(name)}{near}")
        share = isinstance(known[name], float)
        least, most = (0, 1) if share else (1, MOST_TOP)
        try:
            value = float(text) if share else int(text)
        except ValueError:
            value = math.nan
        if len(text) > 20 or not least <= value <= most:
            what = "a number" if share else "a whole number"
            raise Refused(400, f"{name} is {shown(text)}: use {what} from {least} to {most}")
        if name == "unknown_at" and value == 1:
            raise Refused(400, f"{name} is {shown(text)}: use a number below 1, such as 0.05; 0 is off")
        known = {**known, name: value}
    return known


def _text(body: bytes) -> str:
    """Return the text in a JSON body. Raises Refused."""
    try:
        found = parse_json(body)
    except Unreadable as error:
        raise Refused(400, f'the body cannot be read ({error}): send {{"text": "a red bicycle"}}') from error
    text = found.get("text") if isinstance(found, dict) and len(found) == 1 else None
    if not isinstance(text, str) or not text.strip():
        raise Refused(400, 'the body is not {"text": "..."} with one text: send that, or a picture')
    if len(text) > MOST_TEXT:
        raise Refused(413, f"the text has {len(text):,} characters: send at most {MOST_TEXT:,}")
    return text


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refused)
    again = {"Retry-After": "1"} if error.again else {}
    return answer({"error": error.message}, error.status, again)


async def _no_such(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    path = request.scope["path"]
    line = f"there is no {shown(path)}: use {', '.join(f'{m} {p}' for p, m in PATHS.items())}"
    if error.status_code == 405:
        line = f"{shown(path)} does not take {shown(request.method)}: use {PATHS.get(path, 'GET')}"
    return answer({"error": line}, error.status_code, error.headers)


async def _internal(request: Request, error: Exception) -> Response:
    return answer({"error": f"internal error ({type(error).__name__}): see the server's log"}, 500)
