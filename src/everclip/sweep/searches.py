"""Run the searches of ``--tune`` before the grid, on held-out images of the first tasks.

Cells that differ only in the seed share a search, at the first seed. A search is ``everclip tune``, which never
reads the test set; its cells then train with its values and its ``tuned_on``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from everclip import methods
from everclip.config import load_config
from everclip.config.models import Train
from everclip.config.sources import is_override, read_toml
from everclip.config.values import flat
from everclip.errors import UserError
from everclip.runs.resolve import resolve
from everclip.runs.tuned import searched
from everclip.sweep import check, trials
from everclip.sweep.grid import Cell, Grid, content, content_key, owned, parted, toml_text
from everclip.sweep.trials import space
from everclip.sweep.tune import SEARCHED, default_search
from everclip.system import trust
from everclip.training.plan import Plan

RATES = "rates"
"""The keyword for the default search of ``everclip tune`` (``tune.default_search``)."""
ALL = "all"
"""The keyword for a search of everything tunable within a number of trials (``trials.space``)."""
SHARE = "scenario.validation="
"""Beginning of the word for the fraction of the training images on which trials are scored."""


@dataclass(frozen=True, eq=False)
class Search:
    """A search and the cells that it is for."""

    name: str
    key: str
    words: tuple[str, ...]
    keys: tuple[str, ...]  # the keys that it chooses values of
    path: Path
    cells: tuple[Cell, ...]
    trials: int  # the number of its runs
    # the bound of ``everclip tune --trials``; None: every value is tried, key after key
    most: int | None = None
    # fraction of the training images on which trials are scored; None: ``tune.SHARE``
    share: float | None = None

    @property
    def finished(self) -> bool:
        """Whether it has chosen."""
        return (self.path / "tuned.toml").is_file()

    def command(self) -> list[str]:
        """Return the words of the ``everclip`` command that begins or continues it."""
        trials = [] if self.most is None else ["--trials", str(self.most)]
        held = [] if self.share is None else [f"{SHARE}{self.share}"]
        return ["tune", *self.words, *held, f"out={self.path}", *trials, "--json", *trust.passed_on()]

    def chosen(self) -> list[str]:
        """Return the values found, as words of a config."""
        return _words(self.path / "tuned.toml", (*self.keys, "tuned_on"))


def searches(
    grid: Grid,
    words: Sequence[str],
    plans: Mapping[str, Plan],
    folder: Path,
    most: int | None = None,
    share: float | None = None,
) -> list[Search]:
    """Return the searches of ``--tune WORDS`` for a grid; none for cells whose method trains none of the keys.

    Args:
        most: trials per search; None: one per value of the words, or ``trials.MOST`` for ``ALL``.
        share: fraction of the training images on which trials are scored; None: ``tune.SHARE``.

    Raises:
        UserError: a word cannot be searched, or a value is invalid for a method.
    """
    given: dict[str, list[str]] = {}
    if ALL in words and most is None:
        most = trials.MOST
    for word in words:
        key, _, text = word.partition("=")
        key = f"train.{key}" if key in Train.model_fields else key
        values = parted(text, key) if text else []
        named = word in (RATES, ALL)
        if not named and (not is_override(word) or len(values) < 2):
            raise UserError(f'--tune "{word}" has no values to choose from: use KEY=A,B, {RATES} or {ALL}')
        if named and len(words) > 1:
            raise UserError(f"--tune {word} cannot be combined: list the values to search other keys too")
        if not named and not key.startswith(SEARCHED):
            raise UserError(
                f"--tune {key} is not a setting that can be tuned: train.KEY, method.OPTION, center"
            )
        given[key] = values
    trust.typed([*given.values()])
    own, shared = owned(given, list(dict.fromkeys(cell.config.method.name for cell in grid.cells)))
    groups: dict[str, list[Cell]] = {}
    for cell in grid.cells:
        axes = {k: v for k, v in cell.values.items() if k != "seed" and not k.startswith("memory.")}
        memory = content(cell.config).memory  # of a method that keeps none, one for all sizes
        groups.setdefault(repr([axes, cell.config.method.name, memory]), []).append(cell)
    found: list[Search] = []
    for cells in groups.values():
        wanted = shared | own[cells[0].config.method.name]
        search = _search(cells, wanted, plans[check.setting(cells[0].config)], folder, most, share)
        if search is not None:
            found.append(search)
    _check(found, shared | {key: values for some in own.values() for key, values in some.items()})
    return found


def _search(
    cells: Sequence[Cell],
    wanted: Mapping[str, list[str]],
    plan: Plan,
    folder: Path,
    most: int | None,
    share: float | None,
) -> Search | None:
    """Return the search that these cells share; None where no key makes a difference to their method."""
    cell, first = cells[0], plan.tasks[0]
    if not methods.build(cell.config, plan.prompts).learner(first).phases(first):  # nothing trains
        wanted = {key: values for key, values in wanted.items() if key == ALL or key.startswith("method.")}
    asked = dict(wanted)
    if ALL in wanted:
        asked = space(cell.config, {word.partition("=")[0] for word in cell.words})
    elif RATES in wanted:
        asked = default_search(cell.config)
    if not asked:
        return None
    words = [f"{key}={','.join(values)}" for key, values in wanted.items() if key not in (RATES, ALL)]
    if RATES in wanted and most is not None:
        words = [f"{key}={','.join(values)}" for key, values in asked.items()]
    told = [content_key(cell.config), words, *(number for number in (most, share) if number is not None)]
    code = hashlib.sha256(repr(told).encode()).hexdigest()[:16]
    rest = {key: value for key, value in cell.values.items() if key != "seed"}
    name = f"{replace(cell, values=rest).name}_{code[:6]}"
    path = _made(cell, asked, folder / "tune", most, share) or folder / "tune" / name
    trials = most or sum(map(len, asked.values()))
    return Search(
        path.name, code, (*cell.words, *words), tuple(asked), path, tuple(cells), trials, most, share
    )


def _made(
    cell: Cell, asked: Mapping[str, list[str]], folder: Path, most: int | None, share: float | None
) -> Path | None:
    """Return the folder of a finished search of the same values (with ``most``, keys and start) for the same cell.

    It is known by its content, as runs are: the code in a name changes with each new config key.
    """
    held = "" if share is None else f", {share} of their training images"
    for file in sorted(folder.glob("*/tuned.toml")):
        try:
            with trust.reading():
                config = resolve(load_config([str(file.absolute())]))
                wanted = resolve(load_config([*cell.words, *_words(file, asked)]))
                same = content_key(config.model_copy(update={"tuned_on": None})) == content_key(wanted)
        except UserError:
            continue
        found = searched(config.tuned_on)
        if found is None:
            continue
        tried = {key: [*scores] for key, scores in found.tried.items()}
        same = same and [*tried] == [*asked]
        if most is None:
            same = same and tried == asked and not found.trials
        else:
            begun = trials.start(cell.config, asked)
            same = same and found.trials.endswith(f" of {most}") and all(begun[k] in tried[k] for k in asked)
        if same and held in (config.tuned_on or ""):
            return file.parent
    return None


def _words(file: Path, keys: Iterable[str]) -> list[str]:
    """Return keys of a config file as words, which then count as written by the user.

    Raises:
        UserError: the file cannot be read, or names code that the user has not allowed.
    """
    tables = read_toml(file)
    found, code = flat(tables), trust.in_config(tables)
    for key in keys:
        for name in code.intersection(trust.names(found.get(key))):
            trust.check(name)
    return [f"{key}={toml_text(found[key]) if key in found else 'none'}" for key in keys]


def _check(found: Sequence[Search], given: Mapping[str, list[str]]) -> None:
    """Raise UserError with every complaint about a value of a search."""
    with check.complaints("--tune: ") as noted:
        for search in found:
            words = (f"{key}={value}" for key in search.keys for value in given.get(key, []))
            for word in words:
                with noted():
                    resolve(load_config([*search.cells[0].words, word]))


def tuned(grid: Grid, searches: Sequence[Search]) -> Grid:
    """Return the grid with the values of finished searches, and without the cells of unfinished ones."""
    cells: list[Cell] = []
    for cell in grid.cells:
        search = next((search for search in searches if cell in search.cells), None)
        if search is None:
            cells.append(cell)
        elif search.finished:
            words = (*cell.words, *search.chosen())
            cells.append(Cell(cell.values, words, resolve(load_config(words))))
    return replace(grid, cells=cells)
