"""Make the table of retrieval, captions by images and images by captions."""

from __future__ import annotations

from typing import Any

from everclip.metrics.retrieval import AT, WAYS
from everclip.report.tables import Cell, Table, amount, table, words
from everclip.runs.read import Json, RunData

_WORDS: dict[str, str] = dict(zip(WAYS, ("captions by an image", "images by a caption"), strict=True))
_RECALLS = (f"recall@{k}, %" for k in AT)
COLUMNS = ("searched among", "by", "search", *_RECALLS, "median rank", "images", "captions")


def retrieval_table(run: RunData, prefix: str) -> Table | None:
    """Return the recalls of the last stage and the pretrained model per task and in total; None without captions."""
    found = run.results.get("retrieval")
    if not found:
        return None
    rows = []
    for which, summary in (("this run", found["after_stage"][-1]), ("zero-shot", found["zero_shot"])):
        parts = [*zip(run.tasks, summary["tasks"], strict=False)]
        if len(parts) > 1:
            parts.append(("all tasks", summary["together"]))
        rows += [_row(name, which, way, part) for name, part in parts if part is not None for way in WAYS]
    return table(f"{prefix}-retrieval", COLUMNS, rows)


def _row(name: str, which: str, way: str, part: Json) -> list[Cell]:
    numbers: dict[str, Any] = part[way]
    recalls = [amount(numbers[f"recall_at_{k}"], "share") for k in AT]
    rank = numbers["median_rank"]
    counts = [amount(part[key], "count") for key in ("images", "captions")]
    return [words(name), words(which), words(_WORDS[way]), *recalls, Cell(f"{rank:g}", rank), *counts]
