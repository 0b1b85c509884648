"""results.json, which others may have written or damaged: what is read of it is of the right kind, or it is refused.

docs/results.md says what its keys mean. Imports no torch.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from everclip.errors import UserError
from everclip.texts import cleaned

Kind = Callable[[Any], bool]


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _or_null(kind: Kind) -> Kind:
    return lambda value: value is None or kind(value)


def _list(kind: Kind) -> Kind:
    return lambda value: isinstance(value, list) and all(map(kind, value))


def _class(value: Any) -> bool:
    """A row of ``per_class``."""
    shares = ("zero_shot", "after_learning", "last")
    return (
        isinstance(value, dict)
        and _text(value.get("class"))
        and all(type(value.get(key)) is int for key in ("task", "n"))
        and all(value.get(key) is None or _number(value[key]) for key in shares)
    )


_WHOLE: dict[str, Kind] = {
    **dict.fromkeys(("method", "data", "model"), _text),
    **dict.fromkeys(("last", "average", "zero_shot", "seconds", "memory_bytes"), _number),
    "memory_budget": lambda value: _number(value) or _text(value),
    "forgetting": _or_null(_number),
    **dict.fromkeys(("tasks", "skipped_images"), _list(_text)),
    **dict.fromkeys(("accuracy_after_stage", "zero_shot_after_stage"), _list(_number)),
    "matrix": _list(_list(_or_null(_number))),
    "per_class": _list(_class),
}
"""What a run's table and page cannot do without."""
_MORE: dict[str, Kind] = {
    **dict.fromkeys(("classes", "templates"), _list(_text)),
    **dict.fromkeys(("test_counts", "class_labels"), _list(lambda value: type(value) is int)),
    "zero_shot_per_task": _list(_or_null(_number)),
    **dict.fromkeys(("backward_transfer", "forward_transfer", "images_per_second"), _or_null(_number)),
    **dict.fromkeys(("optimizer_steps", "samples_seen", "skipped_steps", "state_bytes"), _number),
    **dict.fromkeys(("trainable_parameters", "peak_memory_bytes", "cache_bytes"), _number),
    **dict.fromkeys(("finished", "everclip", "scenario"), _text),
}
"""What they show where it is there."""
_A_STAGE = ("accuracy_after_stage", "zero_shot_after_stage", "matrix")


def read(path: Path) -> dict[str, Any]:
    """The JSON object in a file, its texts printable. Raises UserError where it cannot be read or is none."""
    try:
        found = cleaned(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())[:150]
        raise UserError(f"{path} cannot be read ({reason}): restore it, or leave the run out") from error
    if not isinstance(found, dict):
        raise UserError(f"{path} holds no JSON object: restore it, or leave the run out")
    return found


def problem(results: dict[str, Any]) -> str:
    """What is wrong with the results of a run in a few words; empty where they can be shown."""
    for key, kind in (_WHOLE | _MORE).items():
        if key not in results:
            if key in _WHOLE:
                return f'it has no "{key}"'
        elif not kind(results[key]):
            return f'its "{key}" is of another kind'
    for key in _A_STAGE:
        if len(results[key]) != len(results["tasks"]):
            return f'its "{key}" is not as long as its tasks'
    return ""
