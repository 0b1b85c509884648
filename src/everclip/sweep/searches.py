"""Run the searches of ``--tune`` before the grid, on held-out images of the first tasks.

Cells that differ only in the seed share a search, at the first seed. A search is ``everclip tune``, which never
reads the test set; its cells then train with its values and its ``tuned_on``.

A search is identified by its content, as runs are: ``tuned.toml`` must record what this search would try and choose. A
search that was begun under other rules, or whose file is damaged, is repeated in its folder, where the trials that it
can use are not trained again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from everclip import methods
from everclip.config import Config, load_config
from everclip.config.models import Train
from everclip.config.sources import is_override, read_toml
from everclip.config.values import flat
from everclip.errors import UserError
from everclip.runs.resolve import resolve
from everclip.runs.tuned import searched
from everclip.sweep import check, trials
from everclip.sweep.folder import named
from everclip.sweep.grid import Cell, Grid, Job, content, content_key, give, owned, parted, toml_text
from everclip.sweep.tune import SEARCHED
from everclip.sweep.tune import SHARE as USUAL
from everclip.system import trust
from everclip.training.plan import Plan

RATES = "rates"
"""The keyword for the rates of what trains (``trials.rates``)."""
ALL = "all"
"""The keyword for a search of everything tunable within a number of trials (``trials.space``)."""
SHARE = "scenario.validation="
"""Beginning of the word for the fraction of the training images on which trials are scored."""


@dataclass(eq=False)
class Search:
    """A search and the cells that it is for."""

    name: str
    key: str
    words: tuple[str, ...]
    grid: trials.Grid  # the keys that it chooses values of, and the values that it begins with
    path: Path
    cells: tuple[Cell, ...]
    most: int | None  # the bound of ``everclip tune --trials``; None: every value is tried, key after key
    share: float  # fraction of the training images on which trials are scored
    finished: bool = False  # whether ``tuned.toml`` is its outcome, as ``look`` has found

    @property
    def left(self) -> int:
        """About the number of runs that it may still need: those in its folder may be of other grids."""
        every = self.most or sum(map(len, self.grid.values()))
        return max(0, every - len([*self.path.glob("*/results.json")]))

    def look(self) -> None:
        """Read its folder, to know whether it has chosen."""
        found = _read(self.path / "tuned.toml")
        self.finished = found is not None and self.made(*found)

    def made(self, file: Path, config: Config) -> bool:
        """Return whether a config file is the outcome of this search: its start, values, share, trials and choice."""
        found = searched(config.tuned_on)
        if found is None or [*found.tried] != [*self.grid] or found.share != self.share:
            return False
        made, _, most = found.trials.partition(" of ")
        own = {} if self.most is None else trials.start(self.cells[0].config, self.grid)
        values = _values(file)
        return (
            most == ("" if self.most is None else str(self.most))
            and trials.outcome(found.tried, self.grid, own, ran_out=bool(most) and made == most)
            and all(found.chose(key, values.get(key)) for key in self.grid)
            and self.fits(file, config, "none")
        )

    def fits(self, file: Path, config: Config, share: str) -> bool:
        """Return whether a config differs from the cell's only in values of the search's keys, and has this share."""
        try:
            words = [*scored_on(self.cells[0].words, share), *_words(file, self.grid)]
            wanted = resolve(load_config(words))
            return content_key(_plain(config)) == content_key(_plain(wanted))
        except UserError:
            return False

    def command(self) -> list[str]:
        """Return the words of the ``everclip`` command that begins or continues it."""
        trials = [] if self.most is None else ["--trials", str(self.most)]
        words = scored_on(self.words, str(self.share))
        return ["tune", *words, f"out={self.path}", *trials, "--json", *trust.passed_on()]

    def chosen(self) -> list[str]:
        """Return the values found, as words of a config."""
        return _words(self.path / "tuned.toml", (*self.grid, "tuned_on"))


def scored_on(words: Sequence[str], share: str) -> list[str]:
    """Return words of a config with another fraction of held-out training images."""
    return [*(word for word in words if not word.startswith(SHARE)), f"{SHARE}{share}"]


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
        UserError: a word cannot be searched or is given twice, or a value is invalid for a method.
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
        give(given, key, values)
    trust.typed([*given.values()])
    own, shared = owned(given, list(dict.fromkeys(cell.config.method.name for cell in grid.cells)))
    groups: dict[str, list[Cell]] = {}
    for cell in grid.cells:
        axes = {k: v for k, v in cell.values.items() if k != "seed" and not k.startswith("memory.")}
        memory = content(cell.config).memory  # the same for all sizes if the method keeps none
        groups.setdefault(repr([axes, cell.config.method.name, memory]), []).append(cell)
    found: list[Search] = []
    there = _Kept(folder / "tune")
    for cells in groups.values():
        wanted = shared | own[cells[0].config.method.name]
        search = _search(cells, wanted, plans[check.setting(cells[0].config)], folder, most, share)
        if search is not None:
            there.place(search)
            found.append(search)
    _check(found, shared | {key: values for some in own.values() for key, values in some.items()}, plans)
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
    idle = {*trials.RATES} - {*trials.rate_keys(cell.config)}
    grid = {key: values for key, values in wanted.items() if key not in idle}
    if ALL in wanted:
        grid = trials.space(cell.config, {word.partition("=")[0] for word in cell.words})
    elif RATES in wanted:
        grid = trials.rates(cell.config, wide=most is None)
    if not grid:
        return None
    words = [] if ALL in wanted else [f"{key}={','.join(values)}" for key, values in grid.items()]
    share = share or USUAL
    code = hashlib.sha256(repr([content_key(cell.config), grid, share]).encode()).hexdigest()[:16]
    rest = {key: value for key, value in cell.values.items() if key != "seed"}
    path = folder / "tune" / named(replace(cell, values=rest).name, code)
    return Search(path.name, code, (*cell.words, *words), grid, path, tuple(cells), most, share)


class _Kept:
    """The existing searches, finished or not, each identified by its content, as its name may be outdated.

    Args:
        folder: the one that holds all searches.
    """

    def __init__(self, folder: Path) -> None:
        self._chosen = [found for file in sorted(folder.glob("*/tuned.toml")) if (found := _read(file))]
        self._begun: list[tuple[Path, Config]] = []
        for place in sorted(folder.glob("*/")):
            begun = sorted(place.glob("*/config.toml"), key=lambda file: file.stat().st_mtime)
            # the first trial has the config's own values, or the first of one key, whatever is searched
            self._begun += [found for file in begun[:1] if (found := _read(file))]

    def place(self, search: Search) -> None:
        """Give a search the folder where it has finished, or else has begun, if there is one.

        Its first trial identifies a search that has begun; of several such folders the one with the most trials is
        taken.
        """
        method = search.cells[0].config.method.name
        chosen = next((file for file, config in self._chosen if search.made(file, config)), None)
        if chosen is not None:
            search.path, search.finished = chosen.parent, True
        else:
            begun = [
                file.parents[1]
                for file, config in self._begun
                if config.method.name == method and search.fits(file, config, str(search.share))
            ]
            search.path = max(
                begun, key=lambda place: len([*place.glob("*/results.json")]), default=search.path
            )
        search.name = search.path.name


def _read(file: Path) -> tuple[Path, Config] | None:
    """Return a config file and its resolved config; None where it is missing, damaged or names code that the user has
    not allowed."""
    try:
        with trust.reading():
            return file, resolve(load_config([str(file.absolute())]))
    except UserError:
        return None


def _plain(config: Config) -> Config:
    return config.model_copy(update={"tuned_on": None})


def _values(file: Path) -> dict[str, Any]:
    """Return the values that a config file has, by dotted key."""
    return flat(read_toml(file))


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


def trial(config: Config, share: float | None) -> Config:
    """Return the config with another fraction of held-out training images."""
    scenario = config.scenario.model_copy(update={"validation": share})
    return config.model_copy(update={"scenario": scenario})


def _check(found: Sequence[Search], given: Mapping[str, list[str]], plans: Mapping[str, Plan]) -> None:
    """Raise UserError with every complaint about a value of a search, and about the images that trials hold out."""
    with check.complaints("--tune: ") as noted:
        for search in found:
            check.values(search.cells[0].words, {key: given.get(key, []) for key in search.grid}, noted)
        configs = [(search.cells[0].config, search.share) for search in found]
        for config, share in {
            repr([check.planned(one), share]): (one, share) for one, share in configs
        }.values():
            with noted():
                Plan.of(trial(config, share), plans[check.setting(config)].data)


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


def held(grid: Grid, searches: Iterable[Search]) -> list[tuple[Job, Search]]:
    """Return the runs that wait for one of these searches, with the settings before it, and the search."""
    return [(job, search) for search in searches for job in replace(grid, cells=[*search.cells]).jobs()]
