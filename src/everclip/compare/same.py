"""Check that runs may stand in one table: the same model, pictures, prompts, classes, tasks and memory."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

from everclip import plugins
from everclip.compare.cells import ANY, REFERENCES, Section, shown, without_memory
from everclip.data.policies import policy_class
from everclip.errors import UserError
from everclip.runs.finished import Finished

_CUT = {"class order", "task order", "test counts"}
EXCUSES: dict[str, set[str]] = {
    "model": {"model", "image_size", "templates"},
    "image_size": {"image_size"},
    "templates": {"templates"},
    "classnames": {"class order"},
    "data": {"data", "templates", *_CUT},
    "scenario.kind": {"scenario", *_CUT},
    "scenario.tasks": {"task order", "test counts"},
    "scenario.order": _CUT,
    "scenario.validation": {"validation", *_CUT},
    "smoke": {"smoke", *_CUT},
    "memory.policy": {"memory accounting"},
}
"""What may differ between runs that are shown by a key, or are repetitions over it."""


def facts(run: Finished) -> dict[str, Any]:
    """Return what must be alike. ``joint`` has one task: its counts are compared as a sum. So are those of runs whose
    order goes with the seed; they need the same classes and tasks, in any order."""
    results = run.results
    one = results["method"] == REFERENCES[1]
    counts = results.get("test_counts")
    whole = _keeps_all(str(run.config.get("memory.policy")))
    kept = ANY if without_memory(run) else "all kept" if whole else "counted in exemplars"
    classes, tasks = results.get("classes"), results.get("tasks")
    if run.config.get("scenario.order") == "seed":
        classes, tasks = (["by the seed", *sorted(names or ())] for names in (classes, tasks))
        counts = [sum(counts or ())]
    return {
        "model": results.get("model"),
        "image_size": results.get("image_size"),
        "templates": results.get("templates"),
        "data": results.get("data"),
        "scenario": results.get("scenario"),
        "class order": classes,
        "task order": ANY if one else tasks,
        "test counts": counts,
        "memory accounting": kept,
        "smoke": results.get("smoke"),
        "validation": results.get("validation"),
        "schema": results.get("schema"),
    }


@lru_cache(maxsize=256)
def _keeps_all(policy: str) -> bool:
    """Ask a policy of the package; another, whose code is not run to compare, is taken to keep a part."""
    return policy in plugins.names("data/policies") and policy_class(policy).keeps == "all"


def _same(key: str, first: Any, second: Any) -> bool:
    if ANY in (first, second) or first == second:
        return True
    if key == "test counts" and first and second and 1 in (len(first), len(second)):
        return sum(first) == sum(second)
    return False


def difference(runs: Sequence[Finished], excused: Iterable[str] = ()) -> str:
    """Name the facts in which runs differ from the first, with two runs and their values; empty where they do not."""
    known = [facts(run) for run in runs]
    excused, words = set(excused), []
    for key in known[0] if known else ():
        if key in excused:
            continue
        first = next((n for n, fact in enumerate(known) if fact[key] is not ANY), 0)
        other = next(
            (n for n, fact in enumerate(known) if not _same(key, known[first][key], fact[key])), None
        )
        if other is not None:
            words.append(
                f"{key} ({_short(known[first][key])} in {runs[first].path},"
                f" {_short(known[other][key])} in {runs[other].path})"
            )
    return " and ".join(words)


def _short(value: Any) -> str:
    text = shown(value) if not isinstance(value, list) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else f"{text[:37]}..."


def check(sections: Sequence[Section], by: Sequence[str], over: Sequence[str]) -> None:
    """Refuse runs that are not comparable: within a section, and across sections but for what ``by`` changes.

    Raises:
        UserError: naming what differs, in which runs.
    """
    repeated = set().union(*(EXCUSES.get(key, set()) for key in over))
    shown_by = set().union(*(EXCUSES.get(key, set()) for key in by))
    groups = [
        (list(dict.fromkeys(run for row in section.rows for run in row.runs.values())), repeated)
        for section in sections
    ]
    everything = list(dict.fromkeys(run for group, _ in groups for run in group))
    for some, excused in [*groups, (everything, repeated | shown_by)]:
        words = difference(some, excused)
        if words:
            raise UserError(
                f"these runs differ in {words}: compare them apart, {_hint(words, some)}or --anyway"
            )


def _hint(words: str, runs: Sequence[Finished]) -> str:
    """The key that explains the first difference, where the runs' configs differ in it."""
    first = words.partition(" (")[0]
    for key, excused in EXCUSES.items():
        if first in excused and len({shown(run.value(key)) for run in runs}) > 1:
            return f"--by {key}, "
    return ""
