"""Carry out one call of ``everclip sweep``: find finished runs, plan the missing ones, and run them."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from everclip.compare import verdict
from everclip.compare.comparable import excused
from everclip.config import load_config
from everclip.config.sources import is_override
from everclip.errors import UserError
from everclip.runs import schema
from everclip.runs.finished import read as read_run
from everclip.sweep import check, pool, searches, view
from everclip.sweep.folder import Folder, State, drop_checkpoints, tidy
from everclip.sweep.grid import Grid, Job, content_key, read
from everclip.sweep.pool import Work
from everclip.sweep.searches import Search
from everclip.sweep.slots import Environment
from everclip.sweep.tune import CONTINUES
from everclip.system.signals import Stop, leaving
from everclip.training import pace
from everclip.training.activation_cache import blocks_above
from everclip.training.disk import on_disk
from everclip.training.plan import Plan

Json = dict[str, Any]


@dataclass(eq=False)
class Session:
    """A grid in its folder.

    Attributes:
        grid: the cells that can run now; those of a search have its values, once it is finished.
        searches: those that are not finished.
        jobs: the runs of ``grid``.
        held: the runs that wait for their search, with the settings before it, and the search.
        dropped: bytes of removed checkpoints.
    """

    command: list[str]  # the words of the sweep, for the record
    asked: Grid  # the grid as the words give it
    folder: Folder
    plans: dict[str, Plan]  # by ``check.setting``; empty where the data were not read
    tune: list[Search]  # all searches of ``--tune``
    said: set[str]  # warnings about the data and the cells
    again: bool = False  # run what failed, too

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
        again: bool = False,
    ) -> Session:
        """Return the session of a command; write nothing.

        Args:
            words: of the grid. With ``tune``, ``scenario.validation`` (of a word, else of the config's file) is the
                fraction of the training images that searches score on; the runs then train on all of them.
            extra: words of every cell, such as ``smoke=true``.
            look: read the data now, to find what does not fit them.
            trials: most runs per search.
            again: treat what failed as waiting.

        Raises:
            UserError: a cell of the grid is invalid, or ``out`` is not a folder of runs.
        """
        held = [word for word in words if tune and word.startswith(searches.SHARE)]
        base = [word for word in words[:1] if tune and not is_override(word)]
        share = load_config([*base, *held]).scenario.validation
        if base and load_config(base).scenario.validation is not None:
            extra = searches.scored_on(extra, "none")
        grid = read([word for word in words if word not in held], extra)
        if tune and any(cell.config.fork for cell in grid.cells):
            raise UserError(
                "--tune trains from the first task, but a fork starts later: tune first, then fork with the"
                " values found"
            )
        bound = [] if trials is None else [trials]
        asked = [sorted(job.key for job in grid.jobs()), list(tune), *bound, *held]
        # the same command finds its folder again
        out = grid.out or f"runs/sweep-{hashlib.sha256(repr(asked).encode()).hexdigest()[:8]}"
        folder = Folder(Path(out).expanduser())
        said: set[str] = set()
        with check.once(said):
            plans = check.plans([cell.config for cell in grid.cells]) if look or tune else {}
            if look:
                check.forks([cell.config for cell in grid.cells])
            found = searches.searches(grid, tune, plans, folder.path, trials, share) if tune else []
        return cls(list(words), grid, folder, plans, found, said, again)

    def refresh(self) -> None:
        """Take the values of finished searches, and scan the folder again."""
        for search in self.tune:
            if not search.finished:
                search.look()
        self._take_chosen()
        self.folder.scan(self.jobs)
        if self.again:
            self.folder.failures = {}
        self.folder.failures |= self.folder.damaged

    def _take_chosen(self) -> None:
        self.grid = searches.tuned(self.asked, self.tune)
        self.searches = [search for search in self.tune if not search.finished]
        self.jobs = self.grid.jobs()
        self.held = searches.held(self.asked, self.searches)

    def waiting(self) -> list[Job]:
        """Return jobs that are neither finished nor failed."""
        return self.having("waiting", "unfinished")

    def having(self, *states: State) -> list[Job]:
        """Return jobs in these states."""
        return [job for job in self.jobs if self.folder.state(job) in states]

    def seconds_left(self) -> float | None:
        """Estimate the seconds of all missing runs in sequence; None where a model's operations are unknown.

        Searches count with all trials that they may still make, their cells with the settings before the search.
        Needs ``plans``.
        """
        own = [job.cells[0].config for job in self.waiting()]
        for search in self.searches:
            own += {content_key(cell.config): cell.config for cell in search.cells}.values()
        planned = [(config, config.scenario.validation, 1) for config in own]
        planned += [(search.cells[0].config, search.share, search.left) for search in self.searches]
        total = 0.0
        shared: dict[str, float] = {}  # paid once by all runs that keep the same activations
        for cell, share, runs in planned:
            config = searches.trial(cell, share)
            with check.once(self.said):
                plan = Plan.of(config, self.plans[check.setting(cell)].data)
            found = pace.of_plan(plan)
            if found is None:
                return None
            total += runs * (found.seconds - found.shared)
            same = repr([check.source(config), config.image_size, blocks_above(config, plan.method)])
            shared[same] = max(found.shared, shared.get(same, 0.0))
        return total + sum(shared.values())

    def run(self, slots: Sequence[Environment], drop: bool = False) -> None:
        """Run what is missing, with the folder locked: searches first, and the runs of each once it has chosen.

        Args:
            drop: remove the checkpoints of each finished run, and those that an earlier version left in trials.

        Raises:
            UserError: a method refuses the model, or the folder is in use.
            RunError: the disk is full or fails; all processes have ended.
            Stopped: a signal has come; all processes have ended.
        """
        stop = Stop()
        with self.folder, stop.listening():
            self.refresh()
            held = [job.config for job, search in self.held if search.key not in self.folder.failures]
            check.models([*(job.config for job in self.waiting()), *held], self.plans)
            continues = f"the same command continues the sweep in {self.folder.path}"
            with on_disk(self.folder.path, CONTINUES), leaving(continues):
                self.write()
                try:
                    self._run(slots, drop)
                finally:
                    self.write()

    def write(self) -> None:
        """Write sweep.json, with the cells that wait for a search."""
        held = [(self.folder.free(job), search.name, job.cells) for job, search in self.held]
        self.folder.write(self.command, self.jobs, held)

    def _run(self, slots: Sequence[Environment], drop: bool) -> None:
        places = [place for search in self.tune if search.finished for place in search.path.glob("*/")]
        self.dropped += sum(map(drop_checkpoints, places)) if drop else 0
        seconds, waiting = self._seconds(drop), self.waiting()
        done, failed = len(self.having("finished")), len(self.having("failed"))
        works: dict[Work, Search | Job] = {}
        coming: dict[Search, int] = {}  # runs of each search that has not ended
        for search in self.searches:
            if search.key not in self.folder.failures:
                log = self.folder.log(f"tune-{search.name}")
                works[Work(f"tune {search.name}", search.command(), search.path, log)] = search
                coming[search] = len({content_key(cell.config) for cell in search.cells})
        works |= map(self._work, waiting)
        queue = list(works)

        def ended(work: Work, error: str | None) -> tuple[bool, str]:
            what = works[work]
            if isinstance(what, Job):
                return self._run_ended(work, what, error, drop)
            del coming[what]
            what.look()
            if error is not None or not what.finished:
                return self._unfinished(what.key, error)
            self._take_chosen()
            self.folder.name(self.jobs)
            begun = {known.key for known in works.values()}
            more = dict(self._work(job) for job in self.waiting() if job.key not in begun)
            works.update(more)
            queue.extend(more)
            return True, " ".join(what.chosen()[:-1])

        def kind(work: Work) -> str:
            what = works[work]
            return what.config.method.name if isinstance(what, Job) else view.SEARCH

        def total() -> int:
            return done + failed + len(works) + sum(coming.values())

        with view.View(total, done, seconds, kind, ended, failed) as shown:
            pool.run(queue, slots, shown)

    def _work(self, job: Job) -> tuple[Work, Job]:
        place = self.folder.place(job)
        return Work(place.name, self.folder.command(job), place, self.folder.log(place.name)), job

    def _run_ended(self, work: Work, job: Job, error: str | None, drop: bool) -> tuple[bool, str]:
        if not (work.path / "results.json").is_file():
            return self._unfinished(job.key, error)
        self.dropped += drop_checkpoints(work.path) if drop else 0
        return True, f"last {schema.read(work.path / 'results.json')['last']:.1%}"

    def _unfinished(self, key: str, error: str | None) -> tuple[bool, str]:
        """Note that a run or search has failed with ``error``, or was stopped, and say so."""
        if error is None:
            return False, "stopped"
        self.folder.failures[key] = error
        try:
            self.write()
        except OSError as full:  # the other runs go on; it is written again when they have ended
            return False, f"failed: {error}; sweep.json cannot be written ({full.strerror or full})"
        return False, f"failed: {error}"

    def _seconds(self, drop: bool) -> dict[str, list[float]]:
        """Return the seconds of finished runs, by method, and tidy their directories."""
        seconds: dict[str, list[float]] = {}
        for job in self.having("finished"):
            place = self.folder.place(job)
            tidy(place)  # it may have been killed after writing its results
            self.dropped += drop_checkpoints(place) if drop else 0
            taken = schema.read(place / "results.json").get("seconds")
            if taken is not None:
                seconds.setdefault(job.config.method.name, []).append(float(taken))
        return seconds

    def shared(self) -> list[str]:
        """Return a line per method with a run that serves several cells."""
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
        """Return the name and the error of each run or search that failed."""
        named = [(f"tune {search.name}", search.key) for search in self.searches]
        named += [(self.folder.place(job).name, job.key) for job in self.having("failed")]
        failures = self.folder.failures
        return [f"{name}: {failures[key]}" for name, key in named if key in failures]

    @property
    def complete(self) -> bool:
        """Whether every cell has its results."""
        return not self.searches and len(self.having("finished")) == len(self.jobs)

    def every(self) -> Iterator[tuple[Job, Path, State, str | None]]:
        """Yield each run with its directory, its state and the error of one that failed, or whose search did."""
        failures = self.folder.failures
        for job in self.jobs:
            state = self.folder.state(job)
            yield job, self.folder.place(job), state, failures[job.key] if state == "failed" else None
        for job, search in self.held:
            error = failures.get(search.key)
            yield job, self.folder.free(job), "waiting" if error is None else "failed", error

    def cells(self) -> list[Json]:
        """Return each cell of the grid with its run, the run's state, and its main numbers."""
        rows: list[Json] = []
        for job, place, state, error in self.every():
            known = schema.read(place / "results.json") if state == "finished" else {}
            row = {"run": str(place), "state": state, "error": error} | {
                key: known.get(key) for key in verdict.METRICS
            }
            rows += [{"values": dict(cell.values)} | row for cell in job.cells]
        return rows

    def comparison(self) -> Json | None:
        """Return the comparison of finished runs, a section per setting of data and memory; None without any."""
        runs = [read_run(self.folder.place(job)) for job in self.having("finished")]
        if not runs:
            return None
        by = [key for key in self.grid.axes if excused(key) or key.startswith("memory.")]
        try:
            return verdict.compare(runs, by=by)
        except UserError as error:
            print(f"no comparison: {error}", file=sys.stderr)
            return None
