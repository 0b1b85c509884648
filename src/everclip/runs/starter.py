"""Write a first config for a data set, ready to train, with comments on useful changes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import tomli_w

from everclip.data.images import Dataset
from everclip.data.scenario import task_sizes
from everclip.models.catalogue import LITE
from everclip.runs.words import listed

MOST_TASKS, MOST_KEPT = 10, 10
"""Suggested number of tasks, and of exemplars per class."""
NAMED = 12
"""Most classes to list with their counts; of more, the smallest and the largest are listed."""
LITE_SIDE = 96
"""Pixels per side for ``lite``, as in the offline default."""


class Starter(NamedTuple):
    """A suggested config: the TOML file, and lines that say how the data were read."""

    text: str
    lines: tuple[str, ...]


def starter(found: Dataset, spec: str, model: str, file: str) -> Starter:
    """Suggest a config for a data set and a model.

    Args:
        spec: what names the data set.
        file: what names the config in a command, quoted for the shell, for the comments.
    """
    several = len(found.domain_names) > 1
    lines = (f"data {found.words()}", _images(found), _tasks(found), _model(model))
    header = [
        "A config for everclip train, suggested by everclip init. Change it as you like.",
        "",
        *lines,
        "",
        f"  everclip train {file} --dry-run   # tasks, memory, minutes and disk; trains nothing",
        f"  everclip train {file} --smoke     # a trial run within a minute",
        f"  everclip train {file}             # the run; KEY=VALUE after it overrides a line of this file",
        f"  everclip sweep {file} method=gcl,multilayer_lda seed=0..2 out=runs/compared",
        "",
        "Keys that are not here have their defaults: docs/config.md lists all.",
    ]
    scenario: dict[str, object] = {"kind": "domain-incremental"}
    if not several:
        scenario = {"kind": "class-incremental", "tasks": _number(found)}
    side = {"image_size": LITE_SIDE} if model == LITE else {}
    top = {"data": spec, "model": model, **side, "tune": "top:4", "seed": 0}
    parts = [
        "\n".join(f"# {line}".rstrip() for line in header),
        _section("", top, _TOP),
        _section("method", {"name": "gcl"}, _NAME),
        _section("scenario", scenario, {"kind": _SCENARIO["kind"]} if several else _SCENARIO),
        _section("memory", {"per_class": _kept(found)}, _MEMORY),
        _section("train", {}, _TRAIN),
        _section("cache", {"views": 4}, _CACHE),
    ]
    return Starter("\n\n".join(parts) + "\n", lines)


_TOP = {
    "model": "everclip models lists others",
    "image_size": "pixels per side; without this line the model's own size, slower and more accurate",
    "tune": 'what trains: the last four blocks of each tower; "full" is all (everclip tunings)',
    "seed": "seed of memory, order of images and initialisation",
    "classnames": '= "names.txt"   # names to show the text tower: one per line, or folder<TAB>name',
    "out": '= "runs/mine"      # default: runs/DATE_...',
}
_NAME = {"name": "everclip methods lists them; multilayer_lda trains nothing and takes minutes"}
_SCENARIO = {
    "kind": "each task brings new classes, or the same classes in a new domain",
    "tasks": "number of tasks, or the number of classes in each, such as [4, 2, 2]",
    "order": '= "given"        # order of the classes: by name; default: shuffled',
}
_MEMORY = {"per_class": "exemplars per class seen; 0 keeps none"}
_TRAIN = {
    "epochs": "= 5             # passes over a task's images; default: the method's",
    "batch_size": "= 32",
    "lr": "= 3e-5              # default: the model's",
}
_CACHE = {
    "views": "augmented views per image, computed once for the frozen part; 1 keeps the unchanged image"
}


def _section(name: str, values: Mapping[str, object], comments: Mapping[str, str]) -> str:
    """Return a section in TOML: its values with comments, then other keys, commented out."""
    lines = [f"[{name}]"] if name else []
    for key, value in values.items():
        line = tomli_w.dumps({key: value}).strip()
        lines.append(f"{line:<28}# {comments[key]}" if key in comments else line)
    lines += [f"# {key} {rest}" for key, rest in comments.items() if key not in values and rest[0] == "="]
    return "\n".join(lines)


def _number(found: Dataset) -> int:
    """Return the number of tasks: at most ``MOST_TASKS``, of two or more classes if possible."""
    return max(2, min(MOST_TASKS, len(found.class_names) // 2))


def _kept(found: Dataset) -> int:
    """Return the exemplars per class: a fifth of the median class, and at most ``MOST_KEPT``."""
    counts = found.train.counts(len(found.class_names))
    return max(1, min(MOST_KEPT, int(np.median(counts)) // 5))


def _images(found: Dataset) -> str:
    """Say how many images the classes have."""
    names = found.class_names
    train, test = (part.counts(len(names)) for part in (found.train, found.test))
    each = [f"{a}+{b}" for a, b in zip(train, test, strict=True)]
    told = ", ".join(f"{name} {count}" for name, count in zip(names, each, strict=True))
    if len(names) > NAMED:
        least, *_, most = np.argsort(train, kind="stable")
        median = f"{int(np.median(train))}+{int(np.median(test))}"
        told = f"from {each[least]} ({names[least]}) to {each[most]} ({names[most]}), median {median}"
    return f"images per class (training+test): {told}"


def _tasks(found: Dataset) -> str:
    if len(found.domain_names) > 1:
        return f"tasks: {len(found.domain_names)}, one per domain: {listed(found.domain_names, NAMED)}"
    sizes = task_sizes(len(found.class_names), _number(found))
    least, most = min(sizes), max(sizes)
    return f"tasks: {len(sizes)}, of {least if least == most else f'{least} to {most}'} classes"


def _model(model: str) -> str:
    if model == LITE:
        return f"model: {LITE} at {LITE_SIDE} px, which needs no download"
    return f"model: {model}, downloaded on first use; everclip[lite] has one that needs no download"
