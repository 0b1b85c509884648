"""Read the grid of ``everclip sweep``: KEY=VALUE,VALUE words become cells; equal cells share a run.

    method=gcl,ewc memory.budget=0,500 method.ewc.strength=10,100 seed=0..4

Commas separate values except in brackets or quotes; ``0..4`` is 0, 1, 2, 3, 4. ``method.NAME.OPTION`` sets an
option of one method only. One run of a method without exemplars serves every budget.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any

import tomli_w

from everclip import plugins
from everclip.config import Config, config_hash, load_config
from everclip.config.sections import Memory
from everclip.config.sources import is_override
from everclip.errors import UserError, shown
from everclip.methods import lacking, memory_policy, method_of
from everclip.runs.resolve import resolve
from everclip.system import trust
from everclip.training import estimate

WHOLE = ("out", "tuned_on", "classnames")
"""Keys whose values are never split at commas."""
MOST_VALUES = 10_000

_RANGE = re.compile(r"(-?\d{1,18})\.\.(-?\d{1,18})")
_PAIRS = {"[": "]", "{": "}", '"': '"', "'": "'"}
_SAFE = re.compile(r"[^A-Za-z0-9_.+=-]+")


@dataclass(frozen=True, eq=False)
class Cell:
    """One combination of the values, as written, with its resolved config and the command's words for it."""

    values: Mapping[str, str]
    words: tuple[str, ...]
    config: Config

    @property
    def name(self) -> str:
        """The name of its folder: the method, then keys and values."""
        short = {"memory.budget": "m", "memory.per_class": "k", "seed": "s"}
        values = {
            short.get(key, key.rsplit(".", 1)[-1]): v for key, v in self.values.items() if key != "method"
        }
        parts = [self.config.method.name, *(key + value for key, value in values.items())]
        return "_".join(_SAFE.sub("-", part).strip("-") for part in parts)


@dataclass(eq=False)
class Job:
    """A run that serves one cell or several."""

    key: str
    cells: list[Cell] = field(default_factory=list)

    @property
    def config(self) -> Config:
        """The config of its first cell, with the exemplars that are kept."""
        return content(self.cells[0].config)

    @property
    def name(self) -> str:
        """The name of its folder, with the exemplars that are kept, whatever the budget."""
        cell = self.cells[0]
        memory = self.config.memory
        kept = {"memory.budget": str(memory.budget)} if "memory.budget" in cell.values else {}
        if "memory.per_class" in cell.values:  # 0 where the method keeps none
            kept = {"memory.per_class": str(memory.budget if memory.per_class is None else memory.per_class)}
        return replace(cell, values={**cell.values, **kept}).name

    @property
    def words(self) -> list[str]:
        """The words of ``everclip train`` for the run."""
        config = self.config
        if config.memory == self.cells[0].config.memory:
            return list(self.cells[0].words)
        kept = [word for word in self.cells[0].words if not word.startswith("memory.")]
        memory = config.memory
        return [*kept, f"memory.budget={memory.budget}", f"memory.policy={memory.policy}"]


@dataclass(frozen=True)
class Grid:
    """The keys with several values, and the cells in their order."""

    axes: dict[str, list[str]]
    cells: list[Cell]
    out: str | None  # the folder asked for
    skipped: tuple[str, ...] = ()  # a line per cell that its method cannot run

    def jobs(self) -> list[Job]:
        """Return the distinct runs, those of the first seed first: they fill a whole table early."""
        jobs: dict[str, Job] = {}
        for cell in self.cells:
            key = content_key(cell.config)
            jobs.setdefault(key, Job(key)).cells.append(cell)
        seeds = self.axes.get("seed", [])
        order = {value: index for index, value in enumerate(seeds)}
        return sorted(jobs.values(), key=lambda job: order.get(job.cells[0].values.get("seed", ""), 0))


def content(config: Config) -> Config:
    """Return a resolved config in which a method that keeps no exemplars has a memory as if none was asked for.

    Raises:
        UserError: the method refuses its options.
    """
    kept, _ = estimate.exemplars(config)
    keeps = memory_policy(config, method_of(config)).keeps
    memory = config.memory if kept != 0 and keeps == "part" else Memory(budget=kept)
    return config.model_copy(update={"memory": memory})


def content_key(config: Config) -> str:
    """Return 16 digits that resolved configs share if they ask for the same run."""
    return config_hash(content(config))


def read(words: Sequence[str], extra: Sequence[str] = ()) -> Grid:
    """Return the grid of command-line words: the name or file of a config, if any, then KEY=VALUES.

    Args:
        extra: words of every cell, such as ``smoke=true``.

    Raises:
        UserError: a word cannot be read, cells are invalid (with every complaint), or no cell is left.
    """
    base = [words[0]] if words and not is_override(words[0]) else []
    given: dict[str, list[str]] = {}
    for word in words[len(base) :]:
        key, equals, text = word.partition("=")
        if not equals:
            raise UserError(
                f"{shown(word)} is not KEY=VALUE: use KEY=A,B; a config's name or file comes first"
            )
        give(given, key, [text] if key in WHOLE else parted(text, key))
    out = given.pop("out", [None])[0]
    methods = given.get("method") or [_method_of(base)]
    own, shared = owned(given, methods)
    cells: list[Cell] = []
    refused: list[str] = []
    skipped: dict[str, None] = {}
    for method in methods:
        settings = {k: v for k, v in shared.items() if k not in own[method]} | own[method]
        settings["method"] = [method]
        shared_keys = [key for key in given if key != "method" and key not in own[method]]
        keys = [key for key in ("method", *own[method], *shared_keys) if key in settings]
        several = [key for key in keys if len(methods if key == "method" else settings[key]) > 1]
        for values in product(*(settings[key] for key in keys)):
            chosen = dict(zip(keys, values, strict=True))
            cell = [*base, *(f"{key}={value}" for key, value in chosen.items()), *extra]
            try:
                config = resolve(load_config(cell))
                content(config)
                missing = lacking(config, method_of(config))
            except UserError as error:
                refused.append(str(error))
                continue
            if missing:
                memory = config.memory
                size = "budget" if memory.per_class is None else "per_class"
                skipped[f"{method} at memory.{size}={getattr(memory, size)} is skipped: {missing}"] = None
            else:
                cells.append(Cell({key: chosen[key] for key in several}, tuple(cell), config))
    _all_valid(refused)
    if not cells:
        raise UserError("; ".join(skipped))
    axes = {key: values for key, values in given.items() if len(values) > 1}
    return Grid(axes, cells, out, tuple(skipped))


def _method_of(base: Sequence[str]) -> str:
    """Return the method of a config, to be a word of each cell. Raises UserError for code that only a file names."""
    name = load_config(base).method.name
    for module in trust.names(name):
        trust.check(module)  # a word counts as written by the user
    return name


def _all_valid(refused: Sequence[str]) -> None:
    """Raise UserError with every distinct complaint."""
    different = list(dict.fromkeys(refused))
    if different:
        many = "1 cell of the grid is" if len(refused) == 1 else f"{len(refused)} cells of the grid are"
        raise UserError(f"{many} invalid: " + "; ".join(different))


def owned(
    given: Mapping[str, list[str]], methods: Sequence[str]
) -> tuple[dict[str, dict[str, list[str]]], dict[str, list[str]]]:
    """Return values of ``method.NAME.OPTION`` per method, as ``method.OPTION``, and the values that all methods share.

    Raises:
        UserError: NAME is a method that is not in the grid.
    """
    own: dict[str, dict[str, list[str]]] = {method: {} for method in methods}
    shared: dict[str, list[str]] = {}
    for key, values in given.items():
        owner = next((method for method in methods if key.startswith(f"method.{method}.")), None)
        match key.split("."):
            case _ if owner is not None:
                own[owner]["method." + key.removeprefix(f"method.{owner}.")] = values
            case ["method", name, _, *_] if name in plugins.names("methods"):
                raise UserError(f"{key} is an option of {name}, which is not in the grid: add it to method=")
            case _:
                shared[key] = values
    return own, shared


def give(given: dict[str, list[str]], key: str, values: list[str]) -> None:
    """Add the values of a key to those given. Raises UserError where the key has some already."""
    if key in given:
        raise UserError(f"{shown(key)} is given twice: use it once, with all its values after commas")
    given[key] = values


def parted(text: str, key: str) -> list[str]:
    """Return the distinct values of a text, split at commas outside of brackets and quotes, ranges ``A..B`` expanded.

    Raises:
        UserError: a value is empty, or a range runs backwards or is far too long.
    """
    words, closing = [""], [""]
    for char in text:
        if char == "," and len(closing) == 1:
            words.append("")
            continue
        if char == closing[-1]:
            closing.pop()
        elif char in _PAIRS and closing[-1] not in ('"', "'"):
            closing.append(_PAIRS[char])
        words[-1] += char
    values = [word.strip() for word in words]
    if "" in values:
        raise UserError(f'"{key}={text}" has an empty value: use {key}=A,B')
    found: list[str] = []
    for value in values:
        span = _RANGE.fullmatch(value)
        if span is None:
            found.append(value)
            continue
        first, last = int(span[1]), int(span[2])
        if last - first >= MOST_VALUES:
            raise UserError(f'"{key}={value}" has {last - first + 1:,} values: use at most {MOST_VALUES:,}')
        if first > last:
            raise UserError(
                f'"{key}={value}" is not a range: put the smaller number first, such as {key}=0..4'
            )
        found += map(str, range(first, last + 1))
    return list(dict.fromkeys(found))


def toml_text(value: Any) -> str:
    """Return a config value as on the command line."""
    return tomli_w.dumps({"v": value}).removeprefix("v = ").strip()
