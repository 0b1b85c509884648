"""Do in Python what ``everclip train`` does on the command line: ``everclip.train``.

run = everclip.train(method="gdro", memory={"budget": 200}, out="runs/mine")
run.results["last"], run.path
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from os import PathLike, fspath
from pathlib import Path
from typing import Any

import numpy as np

from everclip.config import load_config
from everclip.errors import UserError, shown
from everclip.runs.finished import Finished, read
from everclip.runs.resolve import resolve
from everclip.runs.run import Run
from everclip.seeding import unchanged
from everclip.system import trust as trusting
from everclip.system.progress import Progress
from everclip.system.signals import Stop, Stopped, leaving
from everclip.training.disk import writing
from everclip.training.loop import train as train_run

Settings = Mapping[str, Any]


def train(
    base: str | PathLike[str] | Settings | None = None,
    /,
    *,
    progress: bool = True,
    trust: str | Path | None = None,
    **settings: Any,
) -> Finished:
    """Learn tasks one after another in a run directory, as ``everclip train`` does, and return the finished run.

    An unfinished run at ``out`` with the same settings is continued, and a finished one is returned. An interrupt
    stops after the current step, with a checkpoint. torch's random state is not changed.

    Args:
        base: the name of a shipped config ("cifar100/gdro-m500"), a .toml file, or a mapping of settings; settings go
            over it key by key.
        progress: whether to show a bar, in a notebook too.
        trust: a folder whose files may name code that is then imported (``--trust``).
        settings: keys of docs/config.md, nested (``memory={"budget": 200}``) or dotted (``**{"memory.budget": 200}``).
            Texts are read as on the command line; None is ``none``.

    Returns: the run's directory (``path``), results.json (``results``) and flat config (``config``).

    Raises:
        UserError: a setting, the data or the model is wrong, with the message of the command line.
        RunError: training fails, or the disk does.
        KeyboardInterrupt: Ctrl-C, with how to continue; ``system.signals.Stopped`` after SIGTERM, SIGUSR1 or SIGHUP.
    """
    below = base if isinstance(base, Mapping) else {}
    first = [] if base is None or isinstance(base, Mapping) else [fspath(base)]
    with trusting.session([] if trust is None else [trust], strict=False), unchanged():
        with Run.open(resolve(load_config([*first, *_words(settings)], [*_words(below)]))) as run:
            try:
                complete(run, quiet=not progress)
            except Stopped as stopped:
                if stopped.cause != "interrupted":
                    raise
                raise KeyboardInterrupt(str(stopped)) from None
        return read(run.path)


def complete(run: Run, quiet: bool = False) -> dict[str, Any]:
    """Train an open run to its end unless it is finished, write its page if missing, and return its results.

    Raises:
        Stopped: a signal asked to stop, and the run is saved.
    """
    results = run.results() if run.finished else trained(run, quiet)
    page = run.path / "report.html"
    if run.writes and not page.exists():
        from everclip.report.build import build

        with writing(run.path):
            build([run.path], page)
    return results


def trained(run: Run, quiet: bool = False) -> dict[str, Any]:
    """Train an open run to its end with progress on stderr, or until a signal asks to stop; returns its results."""
    stop, continues = Stop(), f"everclip resume {run.path} continues from its last checkpoint"
    with leaving(continues), stop.listening(), Progress(quiet or not run.writes) as progress:
        return train_run(run, progress, stop)


def _words(settings: Settings, prefix: str = "") -> Iterator[str]:
    """Yield settings as KEY=VALUE words, so that they are read and refused as on the command line."""
    for name, value in settings.items():
        key = f"{prefix}{name}"
        if not key.replace(".", "").replace("-", "").isidentifier():
            raise UserError(
                f"{shown(key)} is not a key: use for example train.lr, or a section such as train"
            )
        if isinstance(value, Mapping):
            yield from _words(value, f"{key}.")
        else:
            yield f"{'method' if key == 'method.name' else key}={_text(key, value)}"


def _text(key: str, value: Any) -> str:
    if isinstance(value, np.generic | np.ndarray):
        value = value.tolist()
    if value is None:
        return "none"
    if isinstance(value, str | PathLike):
        return fspath(value)
    try:
        return json.dumps(value, ensure_ascii=False, default=_plain)
    except (TypeError, ValueError) as error:
        raise UserError(
            f"{shown(key)} cannot be written as text ({error}): give a number, a text, a path or a list of these"
        ) from error


def _plain(value: Any) -> Any:
    """Return the JSON form of a value that the json module cannot write. Raises TypeError where there is none."""
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    if isinstance(value, PathLike):
        return fspath(value)
    raise TypeError(f"a {type(value).__name__}")
