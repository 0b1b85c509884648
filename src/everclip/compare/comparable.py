"""Decide which runs are comparable, for ``compare`` and for the page of many runs.

Two runs are comparable if all *facts* that both state agree: the same pictures, prompts, classes, tasks and model.
Any other difference in their configs, except how they were carried out, puts them into separate rows and groups.
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
from everclip.system.text import shortened

REFERENCES = ("zero_shot", "joint")
"""Methods that are references, not competitors: the pretrained model, and training on all tasks at once."""
ANY = object()
"""The value of a fact that does not matter to a run or is unknown: it agrees with any other."""

_SAME = {"data": "data", "scenario": "scenario.kind", "model": "model", "image_size": "image_size"}
"""Facts of results.json, and the config's keys that say the same."""
_OWN = ("scenario.kind", "scenario.tasks", "scenario.order", "scenario.validation")
"""Keys of a scenario that have facts of their own; all others are options, of which each is one."""
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
    "scenario.validation": {"validation", *_CUT},
    "smoke": {"smoke", *_CUT},
}
_POLICY = "memory.policy"
_HOW = (*CARRIED_OUT, "device", "tuned_on", "loader.")
"""Prefixes of the keys that say how a run is carried out, not what it computes."""
_PLAIN = ("tune", "center", "train_captions")
"""Settings that results.json has too, for a run without a config."""


def excused(key: str) -> set[str]:
    """Return the facts that a config key changes: they may differ between runs shown by it, or repeated over it."""
    if _is_fact(key):
        return {key, *_CUT}
    return {"memory accounting"} if key == _POLICY else _EXCUSES.get(key, set())


def _is_fact(key: str) -> bool:
    """Return whether a config key decides by itself what is learned and tested: an option of the source or the
    scenario."""
    return key.startswith("source.") or (key.startswith("scenario.") and key not in _OWN)


def facts(run: Finished) -> dict[str, Any]:
    """Return what must agree for two runs' numbers to be comparable, the most telling first; ``ANY`` where the run does
    not say, or it makes no difference to it.

    ``joint`` has one task, whatever the others have. An order of classes that goes with the seed is one order: classes
    and tasks are compared as sets then, and test counts as a sum. The options of the data's source (``source.*``) and
    of the scenario, such as the number of shots, are compared one by one: another protocol is another question.
    """
    results, config = run.told, run.config
    smoke = results.get("smoke", config.get("smoke"))
    validation = results.get("validation", config.get("scenario.validation"))
    orders: list[Any] = [results.get(key) or ANY for key in ("classes", "tasks", "test_counts")]
    if config.get("scenario.order") == "seed":
        as_sets = ({"by the seed": sorted(names)} if names is not ANY else ANY for names in orders[:2])
        orders = [*as_sets, ANY if orders[2] is ANY else [sum(orders[2])]]
    classes, tasks, counts = orders
    counted = "all kept" if _keeps_all(str(config.get(_POLICY))) else "counted in exemplars"
    return {
        **{key: results.get(key, config.get(name)) or ANY for key, name in _SAME.items()},
        **{key: value for key, value in config.items() if _is_fact(key)},
        "templates": results.get("templates") or ANY,
        "class order": classes,
        "task order": ANY if run.method == REFERENCES[1] else tasks,
        "test counts": counts,
        "validation": "none" if validation is None else validation,
        "smoke": bool(smoke),
        "memory accounting": ANY if without_memory(run) else counted,
        "schema": results.get("schema", ANY),
    }


@lru_cache(maxsize=256)
def _keeps_all(policy: str) -> bool:
    """Ask a policy of the package; another, whose code is not run to compare, is taken to keep a part."""
    return policy in plugins.names("data/policies") and policy_class(policy).keeps == "all"


def _agree(key: str, first: Any, second: Any) -> bool:
    """Return whether two values of a fact fit each other; counts of one task are those of all tasks of others,
    summed."""
    if first is ANY or second is ANY or first == second:
        return True
    return key == "test counts" and 1 in (len(first), len(second)) and sum(first) == sum(second)


def _vague(key: str, value: Any) -> bool:
    """Return whether other values of a fact say more: it is not known, or a sum over tasks."""
    return value is ANY or (key == "test counts" and len(value) == 1)


def _apart(key: str, known: Sequence[Mapping[str, Any]]) -> tuple[int, int] | None:
    """Return the places of the first two whose fact does not agree; None where all do."""
    values = [facts.get(key, ANY) for facts in known]
    first = min(range(len(values)), key=lambda n: (values[n] is ANY, _vague(key, values[n])))
    other = next((n for n, value in enumerate(values) if not _agree(key, values[first], value)), None)
    return None if other is None else (first, other)


def difference(runs: Sequence[Finished], excuses: Iterable[str] = ()) -> str:
    """Name the facts in which runs differ, with two runs and their values; empty where they do not."""
    known, excuses, words = [facts(run) for run in runs], set(excuses), []
    for key in dict.fromkeys(key for fact in known for key in fact if key not in excuses):
        if (pair := _apart(key, known)) is not None:
            shown = (f"{_short(known[n][key])} in {runs[n].path}" for n in pair)
            words.append(f"{key} ({', '.join(shown)})")
    return " and ".join(words)


def hint(fact: str, runs: Sequence[Finished]) -> str:
    """Return the config key that explains why a fact differs, where the runs' configs differ in it; empty where none
    does."""
    known = [*_EXCUSES, _POLICY, *([fact] if _is_fact(fact) else [])]
    return next(
        (k for k in known if fact in excused(k) and len({shown(run.value(k)) for run in runs}) > 1), ""
    )


def sorted_out(
    runs: Sequence[Finished], excuses: Iterable[str] = ()
) -> list[tuple[dict[str, Any], list[int]]]:
    """Sort runs, given by their places, into sets that may stand side by side, each with the facts known of it.

    What is not known of a run fits anything, so the runs that know most should come first.
    """
    found: list[tuple[dict[str, Any], list[int]]] = []
    for place, run in enumerate(runs):
        mine = {key: value for key, value in facts(run).items() if key not in set(excuses)}
        for known, members in found:
            if all(_agree(key, known.get(key, ANY), value) for key, value in mine.items()):
                known |= {
                    key: value
                    for key, value in mine.items()
                    if value is not ANY and _vague(key, known.get(key, ANY))
                }
                members.append(place)
                break
        else:
            found.append((mine, [place]))
    return found


def varying(runs: Sequence[Finished], known: Iterable[str]) -> list[str]:
    """Return the config keys, but for ``known`` ones, that tell runs of a method apart, so that none repeats another.

    A key that does nothing but change a fact is none of them while the fact is the same.
    """
    configs = [run.config or {key: run.results.get(key) for key in _PLAIN} for run in runs]
    told = [facts(run) for run in runs]
    fixed = {key for key, changed in _EXCUSES.items() if not any(_apart(fact, told) for fact in changed)}
    free = all(without_memory(run) for run in runs)
    return [
        key
        for key in dict.fromkeys(key for config in configs for key in config)
        if len({shown(config.get(key)) for config in configs}) > 1
        and key not in fixed | set(known)
        and not key.startswith(_HOW)
        and not (free and key.startswith("memory."))
    ]


def without_memory(run: Finished) -> bool:
    """Return whether the run's method keeps no exemplars, whatever the budget."""
    if run.method in REFERENCES:
        return True
    if run.value("memory.budget") not in (0, None):
        return run.results.get("memory_bytes") == 0
    return _keeps_none(run.method, json.dumps(_options(run)))


def _options(run: Finished) -> dict[str, Any]:
    return {key.partition(".")[2]: value for key, value in run.config.items() if key.startswith("method.")}


@lru_cache(maxsize=256)
def _keeps_none(method: str, options: str) -> bool:
    """Ask the method, with a budget of one; a method that is not to be had here is taken to use memory."""
    from everclip.config import Config
    from everclip.training.estimate import exemplars

    try:
        return (
            exemplars(Config.model_validate({"method": _named(method, options), "memory": {"budget": 1}}))[0]
            == 0
        )
    except ValueError:  # UserError, and pydantic's of what is no method's name
        return False


def seeded(run: Finished) -> bool:
    """Return whether another seed could have given the run other results."""
    if run.config.get("scenario.order") == "seed":
        return True
    return _seeded(run.method, json.dumps(_options(run)))


@lru_cache(maxsize=256)
def _seeded(method: str, options: str) -> bool:
    """Ask the method; one that is not to be had here is taken to be random."""
    from everclip import methods
    from everclip.config import Config

    try:
        return methods.method_of(Config.model_validate({"method": _named(method, options)})).seeded
    except ValueError:
        return True


def _named(method: str, options: str) -> Mapping[str, Any]:
    return {"name": method} | {key: value for key, value in json.loads(options).items() if "." not in key}


def shown(value: Any) -> str:
    """Return a config value as it is written."""
    return "none" if value is None else value if isinstance(value, str) else json.dumps(value)


def _short(value: Any) -> str:
    text = shown(value) if not isinstance(value, list) else json.dumps(value, ensure_ascii=False)
    return shortened(text, 40)
