"""everclip serve: answer requests with pictures and texts over HTTP."""

from __future__ import annotations

import sys

from everclip.cli._options import Classes, Model
from everclip.errors import check_range, needing
from everclip.system.text import printable

MOST_MEGAPIXELS = 89
"""Pictures of more are not decoded anywhere: Pillow takes them for attacks (``Image.MAX_IMAGE_PIXELS``)."""


def serve(
    model: Model,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    vectors: str | None = None,
    classes: Classes = None,
    max_body_mib: int = 16,
    max_megapixels: int = 50,
    max_waiting: int = 256,
) -> None:
    """Serve a model over HTTP.

    Args:
        host: Address to listen on; 0.0.0.0 for other machines too.
        port: Port to listen on; 0 for any free one.
        vectors: A folder that everclip embed wrote with MODEL, for /search.
        max_body_mib: Largest size of an encoded picture, in MiB.
        max_megapixels: Largest size of a picture, in millions of pixels; 89 at most.
        max_waiting: Most requests read, waiting or computed at a time; others get status 503.
    """
    check_range("--port", port, 0, 65535)
    check_range("--max-body-mib", max_body_mib, 1, 1_000_000)
    check_range("--max-megapixels", max_megapixels, 1, MOST_MEGAPIXELS)
    check_range("--max-waiting", max_waiting, 1, 1_000_000)
    with needing("everclip serve", "serve"):
        from everclip.serving.server import serve as run
    from everclip.inference.predict import read_classes
    from everclip.serving.current import Source
    from everclip.serving.limits import MEGA, MIB, Limits

    given = None if classes is None else tuple(read_classes(classes))
    limits = Limits(max_body_mib * MIB, max_megapixels * MEGA, max_waiting)
    run(Source(model, given, vectors), host, port, limits, _say)


def _say(line: str) -> None:
    print(printable(line), file=sys.stderr, flush=True)
