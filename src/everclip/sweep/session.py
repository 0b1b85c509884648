"""Carry out one call of ``everclip sweep``: find finished runs, plan the missing ones, and run them."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from everclip.compare import verdict
from everclip.compare.comparable import excused
from everclip.config import Config, load_config
from everclip.errors import UserError
from everclip.runs import schema
from everclip.runs.finished import read as read_run
from everclip.sweep import check, pool, searches
from everclip.sweep import tune as tuning
from everclip.sweep.folder import Folder, drop_checkpoints, tidy
from everclip.sweep.grid import Grid, Job, content_key, read
from everclip.sweep.pool import Work
from everclip.sweep.searches import Search
from everclip.sweep.slots import Environment
from everclip.sweep.view import View
from everclip.system.signals import Stop, Stopped
from everclip.training import pace
from everclip.training.plan import Plan

Json = dict[str, Any]


@dataclass(eq=False)
class Session:
    """A grid in its folder.

    Args:
        command: the words of the sweep, for the record.
        asked: the grid as the words give it.
        plans: of the settings of data, where they have been looked at.
        tune: all searches of ``--tune``.

    Attributes:
        grid: the cells that can be run by now: those of a search, with its values, once it is finished.
        searches: those that are not finished.
        jobs: the runs of ``grid``.
        dropped: bytes of checkpoints that were removed.
    """

    command: list[str]
    asked: Grid
    folder: Folder
    plans: dict[str, Plan]
    tune: list[Search]

    def __post_init__(self) -> None:
        self.dropped = 0
        self.refresh()

    @classmethod
    def of(
        cls,
        words: Sequence[str],
        tune: Sequence[str] = (),
        extra: Sequence[str] = (),
        look: bool = True,
        trials: int | None = None,
    ) -> Session:
        """Return the session that words ask for; nothing is written.

        Args:
            words: of the grid. With ``tune``, ``scenario.validation`` is the share of the training images on which
                searches score; the runs then train on all of them.
            extra: words of every cell, such as ``smoke=true``.
            look: look at the data, so that what does not fit them is found now.
            trials: runs of each search, at most.

        Raises:
            UserError: a cell of the grid cannot be, or ``out`` is no folder of runs.
        """
        held = [word for word in words if tune and word.startswith(searches.SHARE)]
        share = load_config(held).scenario.validation
        grid = read([word for word in words if word not in held], extra)
        if tune and any(cell.config.fork for cell in grid.cells):
            raise UserError(
                "--tune trains from the first task, but a fork starts later: tune first, then fork with the"
                " values found"
            )
        asked = [
            sorted(job.key for job in grid.jobs()),
            list(tune),
            *([] if trials is None else [trials]),
            *held,
        ]
        # the same command finds its folder again
        out = grid.out or f"runs/sweep-{hashlib.sha256(repr(asked).encode()).hexdigest()[:8]}"
        folder = Folder(Path(out).expanduser())
        plans = check.plans([cell.config for cell in grid.cells]) if look or tune else {}
        if look:
            check.forks([cell.config for cell in grid.cells])
        found = searches.searches(grid, tune, plans, folder.path, trials, share) if tune else []
        return cls(list(words), grid, folder, plans, found)

    def refresh(self) -> None:
        """Take what finished searches have chosen, and look again at what is in the folder."""
        self.grid = searches.tuned(self.asked, self.tune)
        self.searches = [search for search in self.tune if not search.finished]
        self.jobs = self.grid.jobs()
        self.folder.scan(self.jobs)

    def waiting(self) -> list[Job]:
        """Return jobs that are neither finished nor failed."""
        return [job for job in self.jobs if self.folder.state(job) in ("waiting", "unfinished")]

    def seconds_left(self) -> float | None:
        """Estimate the seconds of what is missing, one run after another; None where a model's operations are unknown.

        Searches count with all their trials, and their cells with the settings before the search. Needs the plans of
        the data.
        """
        configs: list[tuple[Config, int]] = [(job.config, 1) for job in self.waiting()]
        for search in self.searches:
            first = search.cells[0].config
            scored = first.scenario.model_copy(update={"validation": search.share or tuning.SHARE})
            configs.append((first.model_copy(update={"scenario": scored}), search.trials))
            configs += [
                (config, 1) for config in {content_key(c.config): c.config for c in search.cells}.values()
            ]
        total = 0.0
        for config, runs in configs:
            whole = config.model_copy(
                update={"scenario": config.scenario.model_copy(update={"validation": None})}
            )
            found = pace.of_plan(Plan.of(config, self.plans[check.setting(whole)].data))
            if found is None:
                return None
            total += runs * found.seconds
        return total

    def retry(self) -> None:
        """Take failed runs and searches as not failed."""
        self.folder.failures = {}

    # Running ------------------------------------------------------------------------------------------------------

    def run(self, slots: Sequence[Environment], retry: bool = False, drop: bool = False) -> None:
        """Run what is missing, searches first; the folder is locked meanwhile.

        Args:
            drop: remove the checkpoints of each run, and of each search's trials, once it is finished.

        Raises:
            UserError: a method refuses the model, or the folder is in use.
            Stopped: a signal has come; all processes have ended.
        """
        stop = Stop()
        with self.folder, stop.listening():
            self.refresh()
            if retry:
                self.retry()
            check.models([job.config for job in self.waiting()], self.plans)
            self.folder.write(self.command, self.jobs)
            try:
                if self.searches:
                    self._run_searches(slots, drop)
                    kept = self.folder.failures
                    self.refresh()
                    self.folder.failures = kept
                    check.models([job.config for job in self.waiting()], self.plans)
                self._run_jobs(slots, drop)
            except Stopped as stopped:
                raise Stopped(
                    stopped.signal,
                    f"{stopped.cause}; the same command continues the sweep in {self.folder.path}",
                ) from None
            finally:
                self.folder.write(self.command, self.jobs)

    def _run_searches(self, slots: Sequence[Environment], drop: bool) -> None:
        waiting = [search for search in self.searches if search.key not in self.folder.failures]
        works = {
            Work(
                f"tune {search.name}", search.command(), search.path, self.folder.log(f"tune-{search.name}")
            ): search
            for search in waiting
        }

        def ended(work: Work, error: str | None) -> tuple[bool, str]:
            search = works[work]
            if error is not None:
                self.folder.failures[search.key] = error
                self.folder.write(self.command, self.jobs)
                return False, f"failed: {error}"
            if not search.finished:
                return False, "stopped"
            self.dropped += sum(map(drop_checkpoints, search.path.glob("*/"))) if drop else 0
            return True, " ".join(search.chosen()[:-1])

        with View(len(works), 0, {}, lambda work: "tune", ended) as view:
            pool.run(list(works), slots, view)

    def _run_jobs(self, slots: Sequence[Environment], drop: bool) -> None:
        waiting, seconds = self.waiting(), {}
        for job in self.jobs:
            if self.folder.state(job) == "finished":
                tidy(self.folder.place(job))  # it may have been killed when it had its results
                self.dropped += drop_checkpoints(self.folder.place(job)) if drop else 0
                taken = schema.read(self.folder.place(job) / "results.json").get("seconds")
                if taken is not None:
                    seconds.setdefault(job.config.method.name, []).append(float(taken))
        works: dict[Work, Job] = {}
        for job in waiting:
            place = self.folder.place(job)
            works[Work(place.name, self.folder.command(job), place, self.folder.log(place.name))] = job

        def ended(work: Work, error: str | None) -> tuple[bool, str]:
            if not (work.path / "results.json").is_file():
                if error is None:
                    return False, "stopped"
                self.folder.failures[works[work].key] = error
                self.folder.write(self.command, self.jobs)
                return False, f"failed: {error}"
            self.dropped += drop_checkpoints(work.path) if drop else 0
            return True, f"last {schema.read(work.path / 'results.json')['last']:.1%}"

        done = len(self.jobs) - len(waiting)
        with View(len(self.jobs), done, seconds, lambda work: works[work].config.method.name, ended) as view:
            pool.run(list(works), slots, view)

    # What is there ------------------------------------------------------------------------------------------------

    def shared(self) -> list[str]:
        """Return a line for each method of which one run serves several cells."""
        values: dict[str, dict[str, dict[str, None]]] = {}
        for job in self.jobs:
            for key in job.cells[0].values if len(job.cells) > 1 else ():
                different = dict.fromkeys(cell.values[key] for cell in job.cells)
                if len(different) > 1:
                    values.setdefault(job.config.method.name, {}).setdefault(key, {}).update(different)
        return [
            f"{method}: one run serves "
            + " and ".join(f"{key}={','.join(found)}" for key, found in keys.items())
            for method, keys in values.items()
        ]

    def failed(self) -> list[str]:
        """Return a line for each run or search that failed: its name and its error."""
        runs = [
            (self.folder.place(job).name, job.key) for job in self.jobs if self.folder.state(job) == "failed"
        ]
        tunes = [
            (f"tune {search.name}", search.key)
            for search in self.searches
            if search.key in self.folder.failures
        ]
        return [f"{name}: {self.folder.failures[key]}" for name, key in [*tunes, *runs]]

    @property
    def complete(self) -> bool:
        """Whether every cell has its results."""
        return not self.searches and all(self.folder.state(job) == "finished" for job in self.jobs)

    def cells(self) -> list[Json]:
        """Return each cell of the grid with its run, where that stands, and its main numbers."""
        found: list[Json] = []
        for job in self.jobs:
            place, state = self.folder.place(job), self.folder.state(job)
            known = schema.read(place / "results.json") if state == "finished" else {}
            numbers = {key: known.get(key) for key in verdict.METRICS}
            error = self.folder.failures.get(job.key) if state == "failed" else None
            found += [
                {"values": dict(cell.values), "run": str(place), "state": state, "error": error} | numbers
                for cell in job.cells
            ]
        return found

    def comparison(self) -> Json | None:
        """Return the finished runs compared, a section for each setting of data and memory; None before the first."""
        runs = [read_run(self.folder.place(job)) for job in self.jobs if self.folder.state(job) == "finished"]
        if not runs:
            return None
        by = [key for key in self.grid.axes if excused(key) or key.startswith("memory.")]
        try:
            return verdict.compare(runs, by=by)
        except UserError as error:
            print(f"no comparison: {error}", file=sys.stderr)
            return None
