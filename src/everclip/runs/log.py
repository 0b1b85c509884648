"""Read the usable lines of metrics.jsonl, within bounds. The file may still grow; any line may be incomplete."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from everclip.runs.schema import MOST_CLASSES, MOST_TASKS
from everclip.runs.words import several
from everclip.system.kinds import (
    AMOUNT,
    COUNT,
    SHARE,
    Kind,
    listed,
    mapped,
    number,
    or_null,
    table,
    text,
    whole,
)
from everclip.system.reading import MIB, Unreadable, open_regular, parse_json

Json = dict[str, Any]

MOST_BYTES = 256 * MIB
"""Most bytes read: about 900,000 steps."""
MOST_LINE = 16 * MIB
KEPT_BYTES = 16 * MIB
"""Most bytes of lines kept per kind; beyond it every other line is dropped."""

_FINITE = number(-1e300, 1e300)
_ANY = or_null(lambda value: True)
_AT = {"stage": whole(MOST_TASKS - 1), "global_step": whole(10**12)}
_TASK = table({"name": text, "classes": listed(text, MOST_CLASSES), "train": COUNT, "test": COUNT})
_START = table(
    {
        "classes": listed(text, MOST_CLASSES),
        "tasks": listed(_TASK, MOST_TASKS),
        "zero_shot": listed(SHARE, MOST_TASKS),
    },
    {"frozen_features": listed(SHARE, MOST_TASKS)},
)
KINDS: dict[str, Kind] = {
    "start": lambda event: (
        _START(event)
        and {len(event["tasks"])}
        == {len(event["zero_shot"] or event["tasks"]), len(event.get("frozen_features", event["tasks"]))}
    ),
    "stage": table(
        {
            "stage": _AT["stage"],
            "accuracy_after_stage": SHARE,
            "row": listed(or_null(SHARE), MOST_TASKS),
            "seconds": AMOUNT,
            "memory": table(
                {"count": COUNT, "bytes": AMOUNT}, {"per_class": or_null(AMOUNT), "state_bytes": AMOUNT}
            ),
        }
    ),
    "step": table(
        _AT | {"loss": mapped(_ANY, 100)},
        {"images_per_second": _FINITE, "diagnostics": or_null(mapped(_ANY, 1000))},
    ),
    "class_weights": table(_AT | {"weights": mapped(_ANY, MOST_CLASSES)}),
    "class_losses": table(_AT | {"losses": mapped(_ANY, MOST_CLASSES)}),
}
"""What a line of each kind must be to be usable; lines of other kinds are ignored."""


@dataclass
class _Kept:
    """Lines of one kind by stage and step; a later one replaces an earlier one, since a resumed run repeats lines."""

    thinned: bool
    lines: dict[tuple[int, int], Json] = field(default_factory=dict)
    sizes: dict[tuple[int, int], int] = field(default_factory=dict)
    held: int = 0
    every: int = 1
    met: int = 0

    def _place(self, event: Json) -> tuple[int, int]:
        if not self.thinned:
            return (event["stage"] if event["event"] == "stage" else -1), -1
        return event["stage"], event["global_step"]

    def add(self, event: Json, size: int) -> bool:
        """Keep a line, or thin out the lines if there is no room. Returns whether the line is usable."""
        place = self._place(event)
        if not self.thinned and self.held - self.sizes.get(place, 0) + size > KEPT_BYTES:
            return False
        self.met += 1
        if self.met % self.every == 0 or place in self.lines:
            self.held += size - self.sizes.get(place, 0)
            self.lines[place], self.sizes[place] = event, size
        while self.held > KEPT_BYTES and len(self.lines) > 1:
            self.every *= 2
            for place in sorted(self.lines)[1::2]:
                del self.lines[place]
                self.held -= self.sizes.pop(place)
        return True


class Log:
    """The lines of a log that can be used.

    Attributes:
        notes: what could not be read, one sentence each.
    """

    def __init__(self, path: Path) -> None:
        self.notes: list[str] = []
        self._kept = {kind: _Kept(kind not in ("start", "stage")) for kind in KINDS}
        try:
            with open_regular(path) as file:
                self._read(file)
        except (OSError, Unreadable) as error:
            missing = not path.exists() and not path.is_symlink()
            reason = "is missing" if missing else f"cannot be read ({error})"
            self.notes.append(f"metrics.jsonl {reason}: nothing over time can be shown.")

    def of(self, kind: str) -> list[Json]:
        """Return the lines of a kind, by stage and step."""
        lines = self._kept[kind].lines
        return [lines[place] for place in sorted(lines)]

    def _read(self, file: BinaryIO) -> None:
        counts = {"torn": 0, "unusable": 0}
        for line in _lines(file):
            try:
                event = None if line is None else parse_json(line)
            except Unreadable:
                counts["torn"] += bool((line or b"").strip())
                continue
            if not isinstance(event, dict) or not self._take(event, len(line or b"")):
                counts["unusable"] += 1
        for word, count in counts.items():
            if count:
                self.notes.append(f"{several(count, f'{word} line')} of metrics.jsonl skipped.")
        if file.tell() >= MOST_BYTES:
            self.notes.append(f"metrics.jsonl is long: only its first {MOST_BYTES >> 20} MiB are shown.")
        if any(kept.every > 1 for kept in self._kept.values()):
            self.notes.append("metrics.jsonl is long: curves are drawn from a part of its lines.")

    def _take(self, event: Json, size: int) -> bool:
        """Keep a line of a known kind. Returns whether it is usable."""
        kind = event.get("event")
        if not isinstance(kind, str) or kind not in KINDS:
            return isinstance(kind, str)
        return KINDS[kind](event) and self._kept[kind].add(event, size)


def _lines(file: BinaryIO) -> Iterator[bytes | None]:
    """Yield the lines; None for one that is too long."""
    while file.tell() < MOST_BYTES and (line := file.readline(MOST_LINE)):
        whole = line.endswith(b"\n") or len(line) < MOST_LINE
        yield line if whole else None
        while not whole and file.tell() < MOST_BYTES:
            line = file.readline(MOST_LINE)
            whole = line.endswith(b"\n") or not line
