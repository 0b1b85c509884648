"""Two versions, and a server of this process."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, chdir, contextmanager
from pathlib import Path

import pytest

from everclip.cli.app import main
from everclip.serving.app import Service
from everclip.serving.current import Current, Source
from everclip.serving.limits import Limits
from everclip.serving.server import listening, server_of
from tests import versions
from tests.cli.conftest import say
from tests.pictures import COLOURS, picture
from tests.serving.client import Client

__all__ = ["say"]

Serving = Callable[..., AbstractContextManager[Client]]


@pytest.fixture(scope="session")
def made(toy: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with v1 (red, yellow), v2 (blue and green too), ``vectors`` of v1, and ``red.png``."""
    root = tmp_path_factory.mktemp("serving")
    outcome = versions.first(toy, root)
    state = versions.written(outcome, versions.begin(toy), root / "v1")
    more = versions.updated(state, versions.colours(root / "cold", versions.COLD), method="means")
    versions.written(more, state, root / "v2")
    for name, colour in COLOURS.items():
        picture(colour, 7).save(root / f"{name}.png")
    with chdir(root):  # the ids are the names as given: none shows a path of this machine
        assert main(["embed", "v1", "warm", "-o", "vectors"]) == 0
    return root


@pytest.fixture
def here(made: Path, tmp_path: Path) -> Path:
    """A copy of it, to change."""
    return Path(shutil.copytree(made, tmp_path / "here"))


@pytest.fixture
def serving() -> Serving:
    """Serves a model while it is open; arguments as of ``serving_of``."""
    return serving_of


@contextmanager
def serving_of(
    model: Path, vectors: Path | None = None, limits: Limits | None = None, follow: bool = False
) -> Iterator[Client]:
    """Serve a model on a free port; the client has the lines that the server says, and the version in use."""
    lines: list[str] = []
    with listening("127.0.0.1", 0) as listener:
        current = Current(Source(str(model), None, None if vectors is None else str(vectors)), lines.append)
        server = server_of(Service(current, limits or Limits(), lines.append))
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            if follow:
                current.start()
            yield Client(listener.getsockname()[1], lines, current)
        finally:
            current.stop()
            server.should_exit = True
            thread.join(20)
            assert not thread.is_alive()
