"""everclip sweep: train a grid of runs in parallel on this machine."""

from __future__ import annotations

import shlex
import sys
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from everclip.cli._options import Json, Repeated
from everclip.cli._output import print_columns, print_json, print_lines
from everclip.errors import UserError
from everclip.runs.words import listed, several
from everclip.system.text import printable

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
    """Train a grid of settings; skip finished runs and continue stopped ones.

    Args:
        tokens: A shipped config's name or a TOML file, then KEY=A,B or KEY=0..4. method.NAME.OPTION applies to one
            method only; out is the folder for the run directories.
        tune: KEY=A,B: first choose its value per method and memory size, without the test set (see everclip tune). all:
            choose rates, epochs and the method's own constants, except those set by KEY=VALUE, with the same number of
            trials for each method. rates: choose the learning rates of what trains.
        trials: Most trials per search (default for all: 24). Given with KEY=A,B or rates, it lets a grid grow while its
            best value lies at an edge.
        from_: Finished runs to fork: each new run starts from the state after --from-stage tasks of the run with the
            same data, method and seed.
        from_stage: Number of tasks that the forked runs have learned.
        jobs: Number of parallel runs (default: one per GPU; without a GPU, one per core, at most 16).
        threads: Threads per run (default: 1; with GPUs, the cores divided by the runs). Use one number per table.
        retry: Run failed runs again.
        smoke: Make each run a trial run: two tasks, few images, two steps each.
        dry_run: Check the grid; show the planned runs and how long they take, without training.
        print_: Print one command per missing run, for any scheduler.
        slurm: Submit the missing runs as SLURM jobs.
        slurm_set: A setting for these jobs, such as timeout_min=240 or slurm_partition=gpu.
        drop_checkpoints: Remove the checkpoints of each run once it is finished, to save disk. Results, compare and
            report still work; predict, evaluate, update, merge, export and --from need the checkpoints.
    """
    from everclip.sweep.session import Session
    from everclip.sweep.slots import accelerators, cores, gpus, slots

    if slurm_set and not slurm:
        raise UserError("--slurm-set is a setting of SLURM jobs: use --slurm too, or leave it out")
    if print_ + slurm + dry_run > 1:
        raise UserError(
            "--print prints commands, --slurm submits them, --dry-run does neither: use one of them"
        )
    if drop_checkpoints and (print_ or slurm or dry_run):
        other = "--print" if print_ else "--slurm" if slurm else "--dry-run"
        raise UserError(f"--drop-checkpoints with {other} drops none: add it once the runs are finished")
    unused = [name for name, given in (("--json", json), ("--jobs", jobs), ("--threads", threads)) if given]
    if unused and (print_ or slurm):
        raise UserError(
            f"{unused[0]} with {'--slurm' if slurm else '--print'} changes nothing, as nothing runs here: leave it out"
        )
    if trials is not None and (trials < 1 or not tune):
        raise UserError(f"--trials {trials} counts the runs of each search: use a number from 1, and --tune")
    slots(cores(), (), jobs, threads)  # refuses numbers below 1
    extra = [*(["smoke=true"] if smoke else []), *_fork(from_, from_stage)]
    session = Session.of(tokens, tune or (), extra, look=not print_, trials=trials, again=retry)
    for line in (*session.asked.skipped, *session.shared()):
        print(printable(line), file=sys.stderr)
    if print_ or slurm:
        return _hand_over(session, slurm, slurm_set or [])
    if not dry_run:
        named = [cell.config.device for cell in session.asked.cells]
        devices = gpus(named)
        if not devices and jobs is None and accelerators(named):
            jobs, threads = 1, threads or cores()  # as many as cores would share the one that they name
        session.run(slots(cores(), devices, jobs, threads), drop_checkpoints)
    if session.dropped:
        print(
            f"{session.dropped / 1e6:,.1f} MB of checkpoints removed: only compare and report can read these runs now",
            file=sys.stderr,
        )
    _show(session, json, dry_run)
    failed = [] if dry_run else session.failed()
    for line in failed:
        print(f"failed: {printable(line)}", file=sys.stderr)
    if failed:
        print("the same command with --retry repeats the failed runs", file=sys.stderr)
    return 0 if dry_run or session.complete else 1


def _fork(runs: str | None, stage: int | None) -> list[str]:
    """Return the setting that makes every cell a fork. Raises UserError if one of the two is missing or impossible."""
    if runs is None and stage is None:
        return []
    if runs is None or stage is None or stage < 1:
        raise UserError("--from RUNS and --from-stage K go together, with K from 1: use both")
    return [f"fork={runs}@{stage}"]


def _hand_over(session: Session, slurm: bool, settings: list[str]) -> int:
    """Print or submit what is missing: searches first, since runs depend on their choices."""
    folder, left_out = session.folder, _left_out(session)
    commands = [search.command() for search in session.searches if search.key not in folder.failures]
    if commands:
        print(
            f"searches first: repeat the same command when all of these have ended{left_out}", file=sys.stderr
        )
    else:
        done, count = len(session.having("finished")), len(session.jobs) + len(session.held)
        print(f"{done} of {count} runs are finished{left_out}", file=sys.stderr)
    commands += [folder.command(job) for job in session.waiting()]
    if not slurm:
        print_lines(shlex.join(["everclip", *words]) for words in commands)
        return 0
    from everclip.sweep.slurm import submit

    if commands:
        with folder:
            session.write()
            numbers = submit(commands, folder.path / "slurm", settings)
        print(f"submitted {several(len(numbers), 'job')}: {', '.join(numbers)}")
    return 0


def _left_out(session: Session) -> str:
    """Return what to add about runs and searches that failed, as they are not repeated."""
    failed = len(session.failed())
    return f"; {failed} failed: --retry repeats {'it' if failed == 1 else 'them'}" if failed else ""


def _show(session: Session, json: bool, dry_run: bool) -> None:
    """Print the table of results, or of the planned runs."""
    from rich.console import Console

    from everclip.compare.show import show
    from everclip.training.estimate import duration

    comparison = None if dry_run else session.comparison()
    left = session.seconds_left() if dry_run else None
    if json:
        shown = {
            "out": str(session.folder.path),
            "cells": session.cells(),
            "skipped": list(session.asked.skipped),
            "comparison": comparison,
        }
        print_json(shown | ({"minutes": left and round(left / 60, 1)} if dry_run else {}))
    elif dry_run:
        folder = session.folder
        failures = folder.failures
        rows = [
            (f"tune {search.name}", "failed" if search.key in failures else "waiting", "")
            for search in session.searches
        ]
        rows += [(place.name, state, str(len(job.cells))) for job, place, state, _ in session.every()]
        print_columns(rows, ("run", "state", "cells"))
        left_out, held = _left_out(session), len(session.held)
        missing = (
            f"{len(session.waiting()) + held} of {len(session.jobs) + held} runs are missing in {folder.path}"
        )
        print_lines([missing + left_out])
        if left:
            trials = ", with every trial that the searches may make" if session.searches else ""
            print(f"{duration(left)} for what is missing, one run after another{trials} (estimated)")
    elif comparison is not None:
        show(comparison, Console())
        print_lines([f"everclip compare {session.folder.path}"])
        if old := session.folder.superseded(session.jobs):
            counted = (
                "1 run of an earlier search is"
                if len(old) == 1
                else f"{len(old)} runs of earlier searches are"
            )
            print_lines([f"{counted} in this folder, too, and would be in that table: {listed(old)}"])
