"""everclip classes: show, rename, merge and remove the classes of a version."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from everclip.cli._options import Json
from everclip.cli._output import print_columns, print_json, print_lines
from everclip.cli.update import pairs, settled
from everclip.errors import UserError, check_range

if TYPE_CHECKING:
    from everclip.updating.editing import Edit
    from everclip.updating.state import State


def classes(
    version: str,
    what: Literal["rename", "merge", "remove"] | None = None,
    *names: str,
    into: str | None = None,
    out: Annotated[str | None, Parameter(name=["--out", "-o"])] = None,
    test: str | None = None,
    max_drop: float = 1.0,
    json: Json = False,
) -> int:
    """Change a version's classes without training; write the next version, which contains the previous one.

    Args:
        version: A folder that everclip update wrote. Alone: list its classes.
        what: rename OLD=NEW ..., merge NAME NAME ... --into NAME, or remove NAME ...
        names: Class names, or pairs OLD=NEW.
        into: The name of the merged class.
        out: The model folder to write, new or empty; required for a change.
        test: Held-out images under the new names or the old ones (default: the version's own check images).
        max_drop: Points of accuracy that the remaining classes may lose; a larger loss means exit code 3 and no model.
    """
    from everclip.inference.learned import check_version
    from everclip.system.atomic import claimed
    from everclip.system.outputs import check_new
    from everclip.training.disk import on_disk
    from everclip.updating.editing import edit
    from everclip.updating.start import begin, load
    from everclip.updating.verdict import edit_lines

    check_version(version)
    if what is None:
        if given := [
            name for name, value in (("-o", out), ("--test", test), ("--into", into)) if value is not None
        ]:
            raise UserError(f"{given[0]} is for a change: give rename, merge or remove after {version}")
        _list(begin(version), json)
        return 0
    if out is None:
        raise UserError(f"everclip classes {version} {what} needs --out: use -o FOLDER, new or empty")
    if (into is None) == (what == "merge"):
        raise UserError("--into NAME is the name of the class that merge makes: use both or neither")
    check_range("--max-drop", max_drop, 0, 100, "percentage points")
    path = check_new(out)
    with on_disk(path), claimed(path):
        state = begin(version)
        change = _edit(what, state.known.names, names, into)
        outcome = edit(state, change, None if test is None else load(test, state), max_drop)
        code = settled(outcome, state, path)
    if json:
        print_json(outcome.verdict)
    else:
        print_lines(edit_lines(outcome.verdict))
    return code


def _edit(what: str, known: Sequence[str], names: Sequence[str], into: str | None) -> Edit:
    from everclip.updating import editing

    if what == "merge":
        return editing.merge(known, names, into or "")
    if what == "remove":
        return editing.remove(known, names)
    return editing.rename(known, pairs(names or [""], "rename", "OLD=NEW", known))


def _list(state: State, json: bool) -> None:
    """Print each class with its number of images in the sums, of exemplars and of check images."""
    rows = [
        {
            "class": name,
            "images": int(state.sums.counts[label]),
            "exemplars": int((state.exemplars.labels == label).sum()),
            "checks": int((state.checks.labels == label).sum()),
        }
        for label, name in enumerate(state.known.names)
    ]
    if json:
        print_json(rows)
    else:
        cells = [[str(row[key]) for key in ("images", "exemplars", "checks", "class")] for row in rows]
        print_columns(cells, ("images learned", "exemplars", "check images", "class"))
