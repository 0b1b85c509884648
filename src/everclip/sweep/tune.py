"""Tune without touching the test set: choose settings on held-out training images of the first tasks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock

from everclip.config import Config, config_hash, load_config
from everclip.config.values import dump
from everclip.errors import NonFinite, RunError, UserError
from everclip.runs.resolve import resolve
from everclip.runs.run import Run
from everclip.sweep import check, trials
from everclip.sweep.folder import drop_checkpoints, hold
from everclip.sweep.grid import give, parted
from everclip.system import trust
from everclip.system.atomic import write_atomic
from everclip.training.disk import on_disk

SHARE = 0.2
"""Default fraction of held-out training images."""
LONGER = 4
"""A grid of epochs or steps grows up to this multiple of the config's own: longer training is no fair comparison."""

DIVERGED = "diverged"
"""File in a trial whose loss was not finite, so that a search that continues does not train it again."""
SEARCHED = ("train.", "method.", "center")
"""Prefixes of keys that can be searched: they decide how a run learns."""
CONTINUES = "make room; the same command continues"
"""The remedy for a full disk."""

Trainer = Callable[[Run], dict[str, Any]]


@dataclass(frozen=True)
class Choice:
    """The outcome of a search."""

    config: Config  # the resolved config to train with, ``tuned_on`` filled in
    values: dict[str, str]  # the best value of each key, as written
    # for each key, value -> accuracy in 0..1 on the tasks' held-out images after the last of them; None where
    # the loss was not finite
    tried: dict[str, dict[str, float | None]]


def split(tokens: Sequence[str]) -> tuple[list[str], dict[str, list[str]]]:
    """Return the config tokens, and the values of each key with several: ``train.lr=1e-5,1e-4``.

    Only keys of ``SEARCHED`` can have several, written as in a grid: a comma in ``data`` or ``out`` belongs to a path.

    Raises:
        UserError: a value is empty, or a key is given two lists.
    """
    fixed: list[str] = []
    search: dict[str, list[str]] = {}
    for token in tokens:
        key, _, text = token.partition("=")
        values = parted(text, key) if key.startswith(SEARCHED) and text.strip() else [text]
        if len(values) > 1:
            give(search, key, values)
        else:
            fixed.append(f"{key}={values[0]}" if text else token)
    return fixed, search


def tune(
    tokens: Sequence[str], out: Path, train: Trainer, say: Callable[[str], None], most: int | None = None
) -> Choice:
    """Choose settings on the first tasks, and write ``out/tuned.toml``, the config to train with.

    Every run is a directory in ``out``, identified by its content: a stopped search continues, as does one that is
    given more trials, and finished runs are only read.

    Args:
        tokens: of a config; keys with several values are searched. Without any: the rates of what trains, or with
            ``most`` all of ``trials.space`` that the tokens do not set.
        train: trains an open run and returns its results.
        most: trials to search within (``trials.search``); None: every value of one key after another, in the order
            given, each with the best values of the keys before it; at a tie the first value.

    Raises:
        UserError: the config or a value of a key is wrong, or another process searches in ``out``.
        RunError: every value of a key ends in a loss that is not finite; or the disk is full or fails.
    """
    fixed, grid = split(tokens)
    start = resolve(load_config(fixed))
    with check.complaints() as noted:  # now, not after the trials before it have been trained
        check.values(fixed, grid, noted)
    share = start.scenario.validation or SHARE
    fixed = [token for token in fixed if not token.startswith("scenario.validation=")]
    if not grid and most is None:
        grid = trials.rates(start, wide=True)
    elif not grid:
        grid = trials.space(start, {token.partition("=")[0] for token in fixed})
    if not grid:
        raise UserError(f"{start.method.name} has nothing to tune here: give a key several values")
    with on_disk(out, CONTINUES), _locked(out):
        trial = _Trials([*fixed, f"scenario.validation={share}"], out, train, say)
        if most is None:
            every = sum(map(len, grid.values()))
            found = trials.search(grid, {}, trial.score, every, lambda key, value: False)
        else:
            own = trials.start(start, grid)
            found = trials.search(
                grid,
                own,
                trial.score,
                most,
                lambda key, value: trial.valid(start, key, value),
                lambda values: trials.read(start, values),
            )
        for key, scores in found.tried.items():
            if scores and all(score is None for score in scores.values()):
                raise RunError(f"no value of {key} trains ({', '.join(scores)}): try smaller rates")
        edges = f" (still at the edge of its grid: {', '.join(found.edges)})" if found.edges else ""
        counted = "" if most is None else f", {found.trials} of {most} trials{edges}"
        config = resolve(load_config([*fixed, "scenario.validation=none", *_words(found.values)]))
        record = _record(start, share, found.tried, counted)
        # out is where the trials are: a run there would be refused
        chosen = config.model_copy(update={"tuned_on": record, "out": None})
        choice = Choice(chosen, found.values, found.tried)
        write_atomic(out / "tuned.toml", dump(choice.config))
    return choice


@contextmanager
def _locked(out: Path) -> Iterator[None]:
    """Hold the lock of a search's folder, by which a sweep sees that a process works there."""
    lock, made = FileLock(out / ".lock", timeout=0), not out.exists()
    hold(lock, out, "search", [".lock"])
    try:
        yield
    finally:
        if [file.name for file in out.iterdir()] == [".lock"]:  # bad input ended it before it began
            (out / ".lock").unlink()
            if made:
                out.rmdir()
        lock.release()


@dataclass
class _Trials:
    """Train each setting once."""

    tokens: Sequence[str]  # of the config that the settings are added to
    out: Path
    train: Trainer
    say: Callable[[str], None]
    known: dict[str, float | None] = field(default_factory=dict)
    # directories of earlier trials, whatever their names
    begun: dict[str, Path] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for file in sorted(self.out.glob("*/config.toml")):
            with suppress(UserError), trust.reading():  # what cannot be read is left out
                self.begun[config_hash(Run.read_config(file.parent))] = file.parent

    def score(self, values: Mapping[str, str]) -> float | None:
        """Return the accuracy on the tasks' held-out images in the end; None where the loss was not finite."""
        words = _words(values)
        config = resolve(load_config([*self.tokens, *words]))
        same = config_hash(config)
        if same not in self.known:
            place = self.begun.get(same, self.out / f"trial-{same}")
            self.known[same] = _score(config, place, self.train)
        score = self.known[same]
        self.say(f"{' '.join(words)}: {'not finite' if score is None else f'{score:.1%}'}")
        return score

    def valid(self, start: Config, key: str, value: str) -> bool:
        """Return whether a grid may grow by a value: the config takes it, and training stays within ``LONGER``."""
        own = {"train.epochs": start.train.epochs, "train.steps": start.train.steps}.get(key)
        if key.startswith("method.") and key.endswith("epochs"):
            own = start.method.options.get(key.removeprefix("method."))
        if own is not None and float(value) > LONGER * own:
            return False
        try:
            resolve(load_config([*self.tokens, f"{key}={value}"]))
        except UserError:
            return False
        return True


def _words(values: Mapping[str, str]) -> list[str]:
    return [f"{key}={value}" for key, value in values.items()]


def _score(config: Config, out: Path, train: Trainer) -> float | None:
    """Return the last accuracy of the run in ``out``, trained unless it has ended; None where it diverges.

    A trial that has ended keeps no checkpoints: nothing reads them, and searches would fill the disk with them.

    Raises:
        RunError: the disk is full or the like, which says nothing about the settings; the trial can be continued.
    """
    diverged = out / DIVERGED
    if diverged.exists():
        return None
    with Run.open(config.model_copy(update={"out": str(out)})) as run:
        try:
            last = run.results()["last"] if run.finished else train(run)["last"]
        except NonFinite:
            last = None
            write_atomic(diverged, "")
    drop_checkpoints(out, ended=True)
    return last


def _record(
    config: Config, share: float, tried: Mapping[str, Mapping[str, float | None]], counted: str
) -> str:
    """Return the text of ``tuned_on``: the data, the memory, the number of trials and every score."""
    searched = "; ".join(
        f"{key} " + ", ".join(f"{v}: {'-' if s is None else f'{s:.4f}'}" for v, s in scores.items())
        for key, scores in tried.items()
    )
    tasks, data = (
        config.scenario.validation_tasks,
        config.data.replace(";", ","),
    )  # which ends a part of a record
    return (
        f"{data}, tasks 1-{tasks}, {share} of their training images, memory {config.memory.words},"
        f" seed {config.seed}{counted}; {searched}"
    )
