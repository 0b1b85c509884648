"""Hold the version in use, and follow its folder: to the next version, and back when that is rolled back.

A version is opened completely beside the one in use: each file is compared with the manifest and a picture is
classified; then one reference is replaced. Whoever has taken the old one finishes with it. A version that cannot be
opened changes nothing.
"""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image

from everclip.data.gathered import Encoded
from everclip.errors import UserError
from everclip.index import folder as vectors_folder
from everclip.index.encoder import fingerprint
from everclip.index.folder import Vectors
from everclip.index.queries import Asker, asker, fitting
from everclip.inference.learned import RECORD, is_version
from everclip.inference.model import LOCAL, Deployed, open_model
from everclip.inference.predict import answers
from everclip.runs import card as cards
from everclip.serving.limits import without_folders
from everclip.system import checkpoint
from everclip.system.checkpoint import MANIFEST
from everclip.system.reading import read_json, readable
from everclip.system.text import printable

EVERY = 1.0
"""Seconds between two looks at the folder."""
AGAIN = 30.0
"""Seconds after which a version that could not be opened is tried again."""
ATTEMPTS = 5
"""Number of attempts to open a folder that changes meanwhile."""

Say = Callable[[str], object]


@dataclass(frozen=True, eq=False)
class Served:
    """A version that is open.

    Args:
        name: of the model, without its folder.
        identity: which model the folder held; empty for a run or a model that has no folder.
        version: number of updates that made it; None where there were none.
        own: the encoder in use, for embeddings of its own.
        mark: its fingerprint.
        vectors, asking: embeddings to search in, and an encoder that fits them; None without.
        unfit: why these embeddings cannot be searched with this version; empty if they can.
        paths: as in ``Source``.
    """

    name: str
    model: Deployed
    identity: str
    version: int | None
    own: Asker
    mark: str
    vectors: Vectors | None = None
    asking: Asker | None = None
    unfit: str = ""
    paths: tuple[str, ...] = ()

    def public(self, message: str) -> str:
        """Return a message about this version for clients: on one line, without folders."""
        return without_folders(message, *self.paths)

    @property
    def label(self) -> dict[str, Any]:
        """What each answer says of the version that gave it."""
        return {"version": self.version, "identity": self.identity}

    @property
    def words(self) -> str:
        """The version in words, for a log."""
        number = "" if self.version is None else f"version {self.version}, "
        mark = f", {self.identity[:12]}" if self.identity else ""
        return f"{self.name} ({number}{len(self.model.names)} classes{mark})"


@dataclass(frozen=True)
class Source:
    """What is served.

    Args:
        spec: a model folder, or a link to one; a run; or any model with ``classes``.
        classes: those to choose from, as for ``open_model``.
        vectors: a folder of embeddings to search in, if any.
    """

    spec: str
    classes: tuple[str, ...] | None = None
    vectors: str | None = None

    @property
    def place(self) -> Path:
        """The folder, with links resolved as they are now."""
        return Path(self.spec).expanduser().resolve()

    @property
    def paths(self) -> tuple[str, ...]:
        """Paths that messages may have for the model and the embeddings: as given, and in full."""
        given = [self.spec.removeprefix(LOCAL), self.vectors or ""]
        full = [Path(path).expanduser() for path in given]
        return (*given, *map(str, full), *(str(path.resolve()) for path in full))

    def identity(self) -> str:
        """Return the identity of the model in the folder now; empty if it is not a model folder. Raises UserError if
        damaged."""
        return cards.identity(self.place) if cards.is_model(self.place) else ""

    def open(self, strict: bool = False) -> Served:
        """Return the version that the folder holds now, checked.

        Args:
            strict: refuse embeddings that do not fit the version.

        Raises:
            UserError: it cannot be opened, keeps changing, or gives no probabilities.
        """
        for _ in range(ATTEMPTS):
            place, before = self.place, self.identity()
            try:
                model = self._model(place, before)
                number = _number(place) if before else None
            except (UserError, OSError):
                if self.identity() == before:
                    raise
                continue
            if self.identity() == before:  # else it is a mixture of two versions
                break
        else:
            raise UserError(f"{self.spec} changes while it is opened: wait until nothing writes it")
        own = model.encoder.alone()
        served = Served(
            place.name if place.exists() else Path(self.spec).name,
            model,
            before,
            number,
            Asker(own),
            fingerprint(own),
            paths=self.paths,
        )
        _try(served)
        return served if self.vectors is None else self._searching(served, place, strict)

    def _model(self, place: Path, identity: str) -> Deployed:
        if identity and (place / MANIFEST).is_file():
            with checkpoint.checked(place):
                checkpoint.verify(place)
        return open_model(str(place) if identity else self.spec, self.classes)

    def _searching(self, served: Served, place: Path, strict: bool) -> Served:
        """Return the version with the embeddings, if they fit it."""
        assert self.vectors is not None
        try:
            # Resolved once and mapped now: a link may move, or the folder be replaced, while it is in use.
            vectors = vectors_folder.read(Path(self.vectors).expanduser().resolve())
            if not vectors.blocks:
                raise UserError(f"{self.vectors} has no embeddings yet: make some with everclip embed")
            spec = str(place) if served.identity else self.spec
            clip, size = served.own.clip, vectors.table.image_size
            same = size in (None, clip.image_size)  # else another encoder, as for everclip search
            asking = fitting(vectors, clip, spec) if same else asker(vectors, spec)
            return replace(served, vectors=vectors, asking=asking)
        except UserError as error:
            if strict:
                raise
            return replace(served, unfit=str(error))


def _number(place: Path) -> int | None:
    """Return the number of a version. Raises UserError where its record cannot be read."""
    if not is_version(place):
        return None
    with readable(place / RECORD, "use another copy"):
        found = read_json(place / RECORD)
    number = found.get("version") if isinstance(found, dict) else None
    return number if isinstance(number, int) else None


def _try(served: Served) -> None:
    """Classify a picture. Raises UserError where that gives no probabilities."""
    if not served.model.clip.image_size:
        raise UserError(f"{served.name} takes features: serve a model that takes pictures")
    grey = io.BytesIO()
    Image.new("RGB", (32, 32), "grey").save(grey, "PNG")
    (answer,) = answers(served.model, [Encoded(["a grey picture"], [grey.getvalue()])])
    if answer.probabilities is None:
        raise UserError(f"{served.name} gives no probabilities for a grey picture: use another copy")


class Current:
    """The version in use. ``now`` is replaced as a whole: read it once for work that belongs together.

    Args:
        source: what is served; it is opened at once.
        say: takes one line whenever the version in use changes, or cannot.

    Attributes:
        error: why the folder's version is not the one in use, without paths; empty if it is.
        switches: how often the version in use was replaced.

    Raises:
        UserError: as ``Source.open`` with ``strict``.
    """

    def __init__(self, source: Source, say: Say) -> None:
        self.now = source.open(strict=True)
        self.error = ""
        self.switches = 0
        self._source, self._say = source, say
        self._asked = self._owed = False
        self._failed: tuple[str | None, float] = (None, 0.0)
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="everclip-current", daemon=True)

    def ask(self) -> None:
        """Have the folder opened again at the next look, whatever it holds. Signal handlers may call it."""
        self._asked = True

    def start(self) -> None:
        """Follow the folder from now on, in a thread."""
        self._thread.start()

    def stop(self) -> None:
        """Stop following it."""
        self._end.set()
        if self._thread.is_alive():
            self._thread.join()

    def _follow(self) -> None:
        while not self._end.wait(EVERY):
            with suppress(Exception):  # a line that cannot be written: nothing ends following the folder
                self.look()

    def look(self) -> None:
        """Switch to the version that the folder holds, if it is another one or ``ask`` was called."""
        asked = self._asked
        if asked:  # else a call of ``ask`` between these two lines would be lost
            self._asked = False
        self._owed |= asked  # until it is opened, however often that fails
        found: str | None = None
        try:
            found = self._source.identity()
            if not self._owed and found == self.now.identity:
                self.error, self._failed = "", (None, 0.0)
                return
            failed, until = self._failed
            if not asked and found == failed and time.monotonic() < until:
                return
            new = self._source.open()
        except BaseException as error:  # whatever a damaged folder raises, the version in use stays
            self._keep(found, error)
            return
        self.now, self.error, self._failed, self._owed = new, "", (None, 0.0), False
        self.switches += 1
        self._say(f"serving {new.words} now")
        if new.unfit:
            self._say(f"/search is off: {printable(new.unfit)}")

    def _keep(self, found: str | None, error: BaseException) -> None:
        """Note why the version in use stays."""
        reason = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        words = without_folders(reason, *self._source.paths)
        known, self.error, self._failed = self.error, words, (found, time.monotonic() + AGAIN)
        if words != known:
            self._say(f"{self.now.words} stays in use: {printable(' '.join(reason.split()))}")
