"""everclip embed: write embeddings of pictures or texts as arrays that can be mapped into memory."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from everclip.cli._options import ImageSize, Json
from everclip.cli._output import print_json
from everclip.errors import UserError, check_range
from everclip.system.text import printable

if TYPE_CHECKING:
    from everclip.index.embed import Report


def embed(
    model: str,
    *data: str,
    text: tuple[str, ...] = (),
    out: Annotated[str, Parameter(name=["--out", "-o"], help="The folder to write, or to continue.")],
    fp16: bool = False,
    image_size: ImageSize = None,
    json: Json = False,
) -> int:
    """Write unit-length embeddings of pictures or texts as .npy shards, with a table of ids and a fingerprint.

    Args:
        model: A run directory, a model folder, or any model.
        data: Pictures, folders of them, or data sources such as imagefolder:photos. What the output folder
            already holds is not embedded again, so the same command continues a stopped one.
        text: A file with one text per line, instead of pictures.
        fp16: Store embeddings in half precision, at half the size.
    """
    if bool(data) == bool(text):
        raise UserError("everclip embed needs either pictures or --text FILE: see everclip embed --help")
    check_range("--image-size", image_size, 16, 4096)
    from everclip.index.embed import Work
    from everclip.index.embed import embed as write
    from everclip.index.encoder import open_encoder
    from everclip.index.folder import IMAGE, TEXT, writable
    from everclip.system.atomic import claimed
    from everclip.system.progress import Progress
    from everclip.system.signals import leaving

    path = writable(out)
    work = Work.of(TEXT if text else IMAGE, text or data)
    clip = open_encoder(model, image_size)
    with (
        claimed(path),
        leaving(f"{out} keeps what it has; the same command continues"),
        Progress() as progress,
    ):
        report = write(clip, model, image_size, work, path, fp16, progress)
    _show(path, report, json)
    return 0 if len(report.vectors) or not report.skipped else 1


def _show(path: Path, report: Report, json: bool) -> None:
    vectors, table = report.vectors, report.vectors.table
    pace = report.made / report.seconds
    if json:
        print_json(
            {
                "folder": str(path),
                "kind": table.kind,
                "vectors": len(vectors),
                "made": report.made,
                "width": table.width,
                "dtype": table.dtype,
                "fingerprint": table.fingerprint,
                "seconds": round(report.seconds, 2),
                "per_second": round(pace, 1),
                "skipped": report.skipped,
            }
        )
        return
    made = f"{report.made:,} made now, {pace:,.0f} per second" if report.made else "none was missing"
    made = made if len(vectors) or not report.skipped else f"not one {table.kind} can be read"
    what = f"{len(vectors):,} embeddings of {table.kind}s, [n, {table.width}] {table.dtype}"
    print(f"{path}: {what}; {made}; fingerprint {table.fingerprint[:12]}")
    for name, reason in report.skipped.items():
        print(printable(f"skipped {name}: {reason}"), file=sys.stderr)
