"""everclip sweep: train a grid of runs on all that this machine has."""

from __future__ import annotations

import shlex
import sys
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from everclip.cli._options import Json, Repeated
from everclip.errors import UserError

if TYPE_CHECKING:
    from everclip.sweep.session import Session


def sweep(
    *tokens: str,
    tune: Repeated = None,
    trials: int | None = None,
    from_: Annotated[str | None, Parameter(name="--from")] = None,
    from_stage: int | None = None,
    jobs: int | None = None,
    threads: int | None = None,
    retry: bool = False,
    smoke: bool = False,
    dry_run: bool = False,
    print_: Annotated[bool, Parameter(name="--print")] = False,
    slurm: bool = False,
    slurm_set: Repeated = None,
    drop_checkpoints: bool = False,
    json: Json = False,
) -> int:
    """Train a grid of settings: what is finished is skipped, what was stopped goes on.

    Args:
        tokens: A shipped config's name or a TOML file, then KEY=A,B or KEY=0..4. method.NAME.OPTION is for one method;
            out is the folder that holds the run directories.
        tune: KEY=A,B: choose it for each method and memory size first, without the test set (see everclip tune). all:
            rates, epochs and the method's own constants, but for what KEY=VALUE sets, within the same number of trials
            for each.
        trials: That number (default: 24). With --tune KEY=A,B too, grids then grow while their winner lies at an edge.
        from_: Finished runs to go on from: each run begins as the one that has its data, method and seed stood after
            some tasks.
        from_stage: The number of these tasks.
        jobs: Runs side by side (default: one a GPU; without any, one a core).
        threads: Threads of each run.
        retry: Run failed ones again.
        smoke: A trial of each run: two tasks, few images, two steps each.
        dry_run: Check the grid, and show what would be run and how long it takes.
        print_: Print a command for each run that is missing, for any scheduler.
        slurm: Submit the missing runs as SLURM jobs.
        slurm_set: A setting of these jobs, such as timeout_min=240 or slurm_partition=gpu.
        drop_checkpoints: Remove the checkpoints of each run and each search's trials once it is finished, to save disk.
            Results, compare and report stay; predict, evaluate, update, merge, export and --from need a run's
            checkpoints.
    """
    from everclip.sweep.session import Session
    from everclip.sweep.slots import cores, gpus, slots

    if slurm_set and not slurm:
        raise UserError("--slurm-set is a setting of SLURM jobs: write --slurm too, or leave it out")
    if print_ and slurm:
        raise UserError("--print prints the commands and --slurm submits them: write one of the two")
    if drop_checkpoints and (print_ or slurm or dry_run):
        other = "--print" if print_ else "--slurm" if slurm else "--dry-run"
        raise UserError(
            f"--drop-checkpoints with {other} would find no finished run: leave it out, and give it to the same command"
            " once the runs are there"
        )
    if trials is not None and (trials < 1 or not tune):
        raise UserError(
            f"--trials {trials} counts the runs of each search: write a number from 1, and --tune"
        )
    places = slots(cores(), (), jobs, threads)  # refuses numbers below 1
    extra = [*(["smoke=true"] if smoke else []), *_fork(from_, from_stage)]
    session = Session.of(tokens, tune or (), extra, look=not print_, trials=trials)
    for line in (*session.asked.skipped, *session.shared()):
        print(line, file=sys.stderr)
    if print_ or slurm:
        return _hand_over(session, retry, slurm, slurm_set or [])
    if not dry_run:
        devices = gpus([job.config.device for job in session.jobs])
        session.run(slots(cores(), devices, jobs, threads) if devices else places, retry, drop_checkpoints)
    if session.dropped:
        print(
            f"{session.dropped / 1e6:,.1f} MB of checkpoints of finished runs were removed: compare and report read"
            " the runs as before; to predict with, update, merge, export or fork one, train it again",
            file=sys.stderr,
        )
    _show(session, json, dry_run)
    for line in session.failed() if not dry_run else ():
        print(f"failed: {line}", file=sys.stderr)
    if session.failed() and not dry_run:
        print("the same command with --retry runs what failed again", file=sys.stderr)
    return 0 if dry_run or session.complete else 1


def _fork(runs: str | None, stage: int | None) -> list[str]:
    """The word of every cell that makes it a fork. Raises UserError where one of the two is missing or impossible."""
    if runs is None and stage is None:
        return []
    if runs is None or stage is None or stage < 1:
        raise UserError("--from RUNS and --from-stage K go together, with K from 1: write both")
    return [f"fork={runs}@{stage}"]


def _hand_over(session: Session, retry: bool, slurm: bool, settings: list[str]) -> int:
    """Print or submit what is missing: searches first, since the runs wait for what they choose."""
    if retry:
        session.retry()
    folder = session.folder
    if session.searches:
        commands = [search.command() for search in session.searches if search.key not in folder.failures]
        print("searches first: give the same command again when these have ended", file=sys.stderr)
    else:
        commands = [folder.command(job) for job in session.waiting()]
        print(f"{len(session.jobs) - len(commands)} of {len(session.jobs)} runs are there", file=sys.stderr)
    if not slurm:
        for words in commands:
            print(shlex.join(["everclip", *words]))
        return 0
    from everclip.sweep.slurm import submit

    if commands:
        with folder:
            folder.write(session.command, session.jobs)
            numbers = submit(commands, folder.path / "slurm", settings)
        print(f"submitted {len(numbers)} jobs: {', '.join(numbers)}")
    return 0


def _show(session: Session, json: bool, dry_run: bool) -> None:
    """The table of what was found, or of what would be run."""
    from rich.console import Console

    from everclip.cli._output import print_columns, print_json
    from everclip.compare.show import show
    from everclip.training.estimate import duration

    comparison = None if dry_run else session.comparison()
    left = session.seconds_left() if dry_run else None
    if json:
        print_json(
            {
                "out": str(session.folder.path),
                "cells": session.cells(),
                "skipped": list(session.asked.skipped),
                "comparison": comparison,
            }
            | ({"minutes": None if left is None else round(left / 60, 1)} if dry_run else {})
        )
    elif dry_run:
        rows = [
            (session.folder.place(job).name, session.folder.state(job), str(len(job.cells)))
            for job in session.jobs
        ]
        print_columns(
            [(f"tune {search.name}", "waiting", "") for search in session.searches] + rows,
            ("run", "state", "cells"),
        )
        print(f"{len(session.waiting())} of {len(session.jobs)} runs are missing in {session.folder.path}")
        if left:
            trials = ", with every trial that the searches may make" if session.searches else ""
            print(f"{duration(left)} for what is missing, one run after another{trials} (estimated)")
    elif comparison is not None:
        show(comparison, Console())
        print(f"everclip compare {session.folder.path}")
