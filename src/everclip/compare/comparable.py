"""Decide which runs are comparable, for ``compare`` and for the page of many runs.

Two runs are comparable if all *facts* that both state agree: pictures, prompts, classes, tasks and model.
Other differences in their configs, except in how they were carried out, separate them into rows and groups.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from everclip import plugins
from everclip.config import CARRIED_OUT
from everclip.data.policies import policy_class
from everclip.runs.finished import Finished
from everclip.runs.tuned import searched
from everclip.system import trust
from everclip.system.text import shortened

REFERENCES = ("zero_shot", "joint")
"""Methods that are references: the pretrained model, and training on all tasks at once."""
ANY = object()
"""The value of a fact that is unknown or makes no difference to a run: it agrees with any other."""

_SAME = {"data": "data", "scenario": "scenario.kind", "model": "model", "image_size": "image_size"}
"""Facts of results.json, and the config keys that say the same."""
_OWN = (
    *("scenario.kind", "scenario.tasks", "scenario.order", "scenario.validation"),
    "scenario.validation_tasks",
)
"""Scenario keys with facts of their own; every other scenario key is an option, and itself a fact."""
_CUT = {"class order", "task order", "test counts"}
_EXCUSES: dict[str, set[str]] = {
    "model": {"model", "image_size", "templates"},
    "image_size": {"image_size"},
    "templates": {"templates"},
    "classnames": {"class order"},
    "data": {"data", "templates", *_CUT},
    "scenario.kind": {"scenario", *_CUT},
    "scenario.tasks": {"task order", "test counts"},
    "scenario.order": _CUT,
    "scenario.validation": {"validation", "validation tasks", *_CUT},
    "scenario.validation_tasks": {"validation tasks", *_CUT},
    "smoke": {"smoke", *_CUT},
}
_POLICY = "memory.policy"
_HOW = (*CARRIED_OUT, "tuned_on")
"""Prefixes of keys that say how a run is carried out, not what it computes."""
_PLAIN = ("tune", "center", "train_captions")
"""Settings that results.json records too, for runs without a config."""


def excused(key: str) -> set[str]:
    """Return the facts that a config key changes; they may differ between runs split by it or repeated over it."""
    if _is_fact(key):
        return {key, *_CUT}
    return {"memory accounting"} if key == _POLICY else _EXCUSES.get(key, set())


def _is_fact(key: str) -> bool:
    """Return whether a config key is a fact by itself: an option of the data source or the scenario."""
    return key.startswith("source.") or (key.startswith("scenario.") and key not in _OWN)


def facts(run: Finished) -> dict[str, Any]:
    """Return what must agree for two runs to be comparable, the most telling first.

    A fact is ``ANY`` where the run does not state it, or it makes no difference, such as the tasks of ``joint``.
    Where the seed decides the order of classes, classes and tasks are sets, and test counts are a sum. Each
    option of the data source and the scenario, such as the number of shots, is a fact: it changes the protocol.
    """
    results, config = run.told, run.config
    validation = results.get("validation", config.get("scenario.validation"))
    found: list[Any] = [results.get(key) or ANY for key in ("classes", "tasks", "test_counts")]
    classes, tasks, counts = found
    if config.get("scenario.order") == "seed":
        classes, tasks = (
            ANY if order is ANY else {"by the seed": sorted(order)} for order in (classes, tasks)
        )
        counts = ANY if counts is ANY else [sum(counts)]
    every = config.get("memory.budget") == "all" or _keeps_all(str(config.get(_POLICY)))
    counted = "all kept" if every else "counted in exemplars"
    return {
        **{key: results.get(key, config.get(name)) or ANY for key, name in _SAME.items()},
        **{key: value for key, value in config.items() if _is_fact(key)},
        "templates": results.get("templates") or ANY,
        "class order": classes,
        "task order": ANY if run.method == REFERENCES[1] else tasks,
        "test counts": counts,
        "validation": "none" if validation is None else validation,
        "validation tasks": ANY if validation is None else config.get("scenario.validation_tasks", ANY),
        "smoke": bool(results.get("smoke", config.get("smoke"))),
        "memory accounting": ANY if without_memory(run) else counted,
        "schema": results.get("schema", ANY),
    }


@lru_cache(maxsize=256)
def _keeps_all(policy: str) -> bool:
    """Return whether a policy keeps all images; one from outside the package is not loaded, and assumed not to."""
    return policy in plugins.names("data/policies") and policy_class(policy).keeps == "all"


def _agree(key: str, first: Any, second: Any) -> bool:
    """Return whether two values of a fact fit each other; the count of one task fits the sum over several."""
    if first is ANY or second is ANY or first == second:
        return True
    return key == "test counts" and 1 in (len(first), len(second)) and sum(first) == sum(second)


def _vague(key: str, value: Any) -> bool:
    """Return whether other values of a fact say more: this one is unknown, or a sum over tasks."""
    return value is ANY or (key == "test counts" and len(value) == 1)


def _apart(key: str, known: Sequence[Mapping[str, Any]]) -> tuple[int, int] | None:
    """Return the places of the first two runs that disagree on a fact; None if all agree."""
    values = [facts.get(key, ANY) for facts in known]
    first = min(range(len(values)), key=lambda n: (values[n] is ANY, _vague(key, values[n])))
    other = next((n for n, value in enumerate(values) if not _agree(key, values[first], value)), None)
    return None if other is None else (first, other)


def difference(runs: Sequence[Finished], excuses: Iterable[str] = ()) -> str:
    """Name the facts in which runs differ, each with two runs and their values; empty if there are none."""
    known, excuses, words = [facts(run) for run in runs], set(excuses), []
    for key in dict.fromkeys(key for fact in known for key in fact if key not in excuses):
        if (pair := _apart(key, known)) is not None:
            shown = (f"{_short(known[n][key])} in {runs[n].path}" for n in pair)
            words.append(f"{key} ({', '.join(shown)})")
    return " and ".join(words)


def hint(fact: str, runs: Sequence[Finished]) -> str:
    """Return the config key whose values explain why a fact differs between the runs; empty without any."""
    known = [*_EXCUSES, _POLICY, *([fact] if _is_fact(fact) else [])]
    return next(
        (k for k in known if fact in excused(k) and len({shown(run.value(k)) for run in runs}) > 1), ""
    )


def sorted_out(
    runs: Sequence[Finished], excuses: Iterable[str] = ()
) -> list[tuple[dict[str, Any], list[int]]]:
    """Return sets of comparable runs, each as its known facts and the places of its runs.

    An unknown fact fits anything, so pass the runs with the most known facts first.
    """
    found: list[tuple[dict[str, Any], list[int]]] = []
    for place, run in enumerate(runs):
        mine = {key: value for key, value in facts(run).items() if key not in set(excuses)}
        for known, members in found:
            if all(_agree(key, known.get(key, ANY), value) for key, value in mine.items()):
                for key, value in mine.items():
                    if value is not ANY and _vague(key, known.get(key, ANY)):
                        known[key] = value
                members.append(place)
                break
        else:
            found.append((mine, [place]))
    return found


def varying(runs: Sequence[Finished], known: Iterable[str]) -> list[str]:
    """Return the config keys other than ``known`` that tell runs of a method apart.

    A key that only changes facts does not count while those facts agree; nor do memory keys of runs without a memory.
    """
    configs = [run.config or {key: run.results.get(key) for key in _PLAIN} for run in runs]
    told = [facts(run) for run in runs]
    fixed = {key for key, changed in _EXCUSES.items() if not any(_apart(fact, told) for fact in changed)}
    keeping = [config for run, config in zip(runs, configs, strict=True) if not without_memory(run)]
    return [
        key
        for key in dict.fromkeys(key for config in configs for key in config)
        if len({shown(config.get(key)) for config in (keeping if key.startswith("memory.") else configs)}) > 1
        and key not in fixed | set(known)
        and not key.startswith(_HOW)
    ]


def distinguishing(parts: Iterable[Sequence[Finished]], known: Iterable[str]) -> list[str]:
    """Return the config keys other than ``known`` in which runs of a method differ within a part.

    A part is, for example, a memory size. Tuned keys do not count where the others tell as many runs apart.
    """
    parts, known = [part for part in parts if part], set(known)
    keys = list(dict.fromkeys(key for part in parts for key in varying(part, known)))
    found = [searched(str(run.value("tuned_on") or "")) for part in parts for run in part]
    tuned = {key for search in found if search is not None for key in search.tried}
    fixed = [key for key in keys if key not in tuned]
    told, all_told = (
        len({repr([place, *map(run.value, some)]) for place, part in enumerate(parts) for run in part})
        for some in (fixed, keys)
    )
    return fixed if told == all_told else keys


def without_memory(run: Finished) -> bool:
    """Return whether the run's method keeps no exemplars, whatever the budget."""
    if run.method in REFERENCES:
        return True
    budget = run.value("memory.budget")
    # a memory of fewer images than classes may end empty: that says nothing about the method
    if budget is None or (isinstance(budget, int) and budget < len(run.results.get("classes") or "0")):
        return _ask(run)[0]
    kept = run.results.get("memory_bytes")
    return _ask(run)[0] if kept is None else kept == 0


def seeded(run: Finished, recorded: bool = False) -> bool:
    """Return whether another seed could have given the run other results.

    Args:
        recorded: ask about the results of the pretrained model that the run has recorded.
    """
    # a scenario from outside the package is not loaded, and may draw by the run's seed, which it is given
    drawn = run.config.get("scenario.order") == "seed" or trust.is_code(str(run.value("scenario.kind")))
    return drawn or (not recorded and _ask(run)[1])


def _ask(run: Finished) -> tuple[bool, bool]:
    """Return whether the method keeps no exemplar with a budget of one, and whether it depends on the seed."""
    tables: dict[str, dict[str, Any]] = {"": {"name": run.method}}
    for key, value in run.config.items():
        if key.startswith("method."):
            # a nested table holds options of a wrapped method
            table, _, name = key.removeprefix("method.").rpartition(".")
            tables.setdefault(table, {})[name] = value
    own = tables.pop("")
    return _ask_method(json.dumps(tables | own))


@lru_cache(maxsize=256)
def _ask_method(choice: str) -> tuple[bool, bool]:
    from everclip.config import Config
    from everclip.methods import method_of
    from everclip.training.estimate import exemplars

    try:
        with trust.reading():
            config = Config.model_validate({"method": json.loads(choice), "memory": {"budget": 1}})
            return exemplars(config)[0] == 0, method_of(config).seeded
    except ValueError:  # UserError, or pydantic's where the name is not a method
        return False, True  # an unknown method is assumed to use memory and the seed


def shown(value: Any) -> str:
    """Return a config value as the user writes it."""
    return "none" if value is None else value if isinstance(value, str) else json.dumps(value)


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False) if isinstance(value, list) else shown(value)
    return shortened(text, 40)
