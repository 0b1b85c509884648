"""everclip data: look through a data set's pictures before anything is learned from them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from everclip.cli._options import ImageSize, Json
from everclip.cli._output import print_columns, print_json, print_lines
from everclip.errors import UserError, check_range, shown
from everclip.system.text import printable

if TYPE_CHECKING:
    from everclip.audit.check import Findings

_NAMED = 5
"""Pictures of each kind that are named on the terminal."""
_OF_A_GROUP = 3
"""Of the same picture so many are named."""


def data(
    action: str,
    spec: str,
    /,
    *,
    out: Annotated[Path | None, Parameter(name=["--out", "-o"])] = None,
    model: str = "lite",
    image_size: ImageSize = None,
    near: float = 0.95,
    tiny: int = 32,
    most: int = 40,
    exact: bool = False,
    json: Json = False,
) -> int:
    """Find duplicate pictures, suspect labels, and broken or tiny pictures; nothing is changed.

    Args:
        action: What to do: check.
        spec: A folder, SOURCE or SOURCE:ARGUMENT, as after data=.
        out: An HTML page to write, with small pictures of what was found.
        model: The encoder whose features are compared: any model, run directory or model folder.
        near: Smallest cosine between the features of near duplicates.
        tiny: A picture is tiny if its shorter side has fewer pixels.
        most: Largest number of pictures of each kind in the JSON and on the page.
        exact: Use no model: find only exact copies, byte for byte, and broken and tiny pictures.
    """
    _check(action, spec, image_size, near, most)
    from everclip.audit.check import Options, check
    from everclip.system import trust
    from everclip.system.outputs import check_file
    from everclip.system.progress import Progress

    trust.typed(spec)
    page = None if out is None else check_file(out)
    with Progress() as progress:
        found = check(spec, Options(model, image_size, near, not exact, tiny), progress)
    if page is not None:
        from everclip.report.data_page import write

        try:
            write(found, page, most)
        except OSError as error:
            raise UserError(f"{out} cannot be written ({error.strerror}): give another place") from error
    if json:
        print_json(found.as_json(most) | ({} if out is None else {"page": str(out)}))
    else:
        _show(found, most)
        if out is not None:
            print(f"\npage: {out}")
    return 1 if found.leaked or found.broken else 0


def _check(action: str, spec: str, image_size: int | None, near: float, most: int) -> None:
    """Refuse what cannot be meant. Raises UserError."""
    if action != "check":
        raise UserError(f'everclip data does not take {shown(action)}: use "everclip data check {spec}"')
    check_range("--image-size", image_size, 16, 4096)
    if not 0 < near <= 1:
        raise UserError(f"--near is {near:g}: use a number above 0, at most 1")
    check_range("--most", most, 1, 1000)


def _show(found: Findings, most: int) -> None:
    """Print the table, and the first pictures of each kind; ``most`` of them are on the page and in the JSON."""
    test = len(found.images) - found.train
    counted = f"{len(found.data.class_names)} classes, {found.train:,} training and {test:,} test pictures"
    print(printable(f"{found.data.name}: {counted}"))
    rows = [
        ("test pictures that are training pictures too", f"{len(found.leaked):,}", "byte for byte"),
        ("copies within the training pictures", f"{found.copies('train'):,}", "byte for byte"),
        ("copies within the test pictures", f"{found.copies('test'):,}", "byte for byte"),
        ("pictures under several labels", f"{len(found.two_labels):,}", "all labels but one are wrong"),
    ]
    if found.suspects is not None:
        near = f"pairs with a cosine of {found.options.near:g} or more; {found.near_leaked:,} between test and training"
        other = "another class is ahead when the picture is left out"
        rows.append(("near duplicates", f"{found.near:,}", near))
        rows.append(("suspect labels", f"{len(found.suspects):,}", other))
    rows += [
        ("broken pictures", f"{len(found.broken):,}", "cannot be decoded"),
        ("tiny pictures", f"{len(found.tiny):,}", f"a side below {found.options.tiny} pixels"),
    ]
    print_columns(rows)
    suspects = [
        f'{found.key(one.place)} is labelled "{found.name(one.place)}" and looks like'
        f' "{found.data.class_names[one.other]}" ({one.doubt:.2f})'
        for one in found.suspects or []
    ]
    for title, lines in (
        ("copies", [_same(found, group) for group in found.groups]),
        ("near duplicates", [f"{found.key(a)} ~ {found.key(b)} ({cos:.3f})" for a, b, cos in found.pairs]),
        ("suspect labels", suspects),
        ("broken", [f"{found.key(place)}: {why}" for place, why in found.broken.items()]),
        ("tiny", [f"{found.key(p)}: {found.sides[p][0]} x {found.sides[p][1]}" for p in found.tiny]),
    ):
        if lines:
            print(f"\n{title}:")
            print_lines(f"  {line}" for line in lines[:_NAMED])
            if len(lines) > _NAMED:
                more = f"{len(lines) - _NAMED:,} more"
                print(f"  and {more}: -o page.html shows and --json lists the first {most} (--most)")


def _same(found: Findings, group: list[int]) -> str:
    """Return the first pictures of a group, and how many there are."""
    more = f" ({len(group)} in all)" if len(group) > _OF_A_GROUP else ""
    return " = ".join(map(found.key, found.telling(group)[:_OF_A_GROUP])) + more
