"""Tune without touching the test set: choose settings on held-out training images of the first tasks."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from everclip.config import Config, config_hash, load_config
from everclip.config.values import dump
from everclip.errors import NonFinite, RunError, UserError
from everclip.runs.resolve import resolve
from everclip.runs.run import Run
from everclip.sweep import trials
from everclip.sweep.trials import has_head, own_rates
from everclip.system.atomic import write_atomic

SHARE = 0.2
"""Default fraction of held-out training images."""
RATES = (0.1, 0.3, 1.0, 3.0)
"""The default grid of a tower's rate: the config's times these factors; the text tower's has 0, too."""
HEAD_RATES = (0.3, 1.0, 3.0, 10.0)
"""The same for a head, which hardly learns at too small a rate."""
LONGER = 4
"""A grid of epochs or steps grows to so many times the config's own: what takes longer is no fair comparison."""

SEARCHED = ("train.", "method.", "center")
"""Prefixes of keys that can be searched: they decide how a run learns."""

_LIST = re.compile(r"[^\[\]{}\"',]+(,[^\[\]{}\"',]+)+")

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

    Only keys of ``SEARCHED`` are: a comma in ``data`` or ``out`` belongs to a path.
    """
    fixed: list[str] = []
    search: dict[str, list[str]] = {}
    for token in tokens:
        key, _, text = token.partition("=")
        if key.startswith(SEARCHED) and _LIST.fullmatch(text):
            search[key] = [value.strip() for value in text.split(",")]
        else:
            fixed.append(token)
    return fixed, search


def default_search(config: Config) -> dict[str, list[str]]:
    """Return the rates of both towers, and of a head if there is one, around those of the config."""
    rates, own = config.train, own_rates(config)
    assert rates.lr is not None
    assert rates.lr_text is not None
    search = {"lr": _times(rates.lr, RATES), "lr_text": ["0", *_times(rates.lr_text, RATES)]}
    search = {key: values for key, values in search.items() if own is None or key in own}
    if rates.lr_head is not None and has_head(config):
        search["lr_head"] = _times(rates.lr_head, HEAD_RATES)
    return {f"train.{key}": values for key, values in search.items()}


def _times(rate: float, factors: Sequence[float]) -> list[str]:
    return [f"{rate * factor:.3g}" for factor in factors]


def tune(
    tokens: Sequence[str], out: Path, train: Trainer, say: Callable[[str], None], most: int | None = None
) -> Choice:
    """Choose settings on the first tasks, and write ``out/tuned.toml``, the config to train with.

    Every run is a directory in ``out``, so a stopped search continues, and a finished one is only read.

    Args:
        tokens: of a config; keys with several values are searched. Without any: the rates of ``default_search``, or
            with ``most`` all of ``trials.space`` that the tokens do not set.
        train: trains an open run and returns its results.
        most: trials to search within (``trials.search``); None: key after key in the order given, each with the best
            values of the keys before it; at a tie the first value.

    Raises:
        UserError: the config is wrong.
        RunError: every value of a key ends in a loss that is not finite.
    """
    fixed, search = split(tokens)
    start = resolve(load_config(fixed))
    share = start.scenario.validation or SHARE
    fixed = [token for token in fixed if not token.startswith("scenario.validation=")]
    trial = _Trials([*fixed, f"scenario.validation={share}"], out, train, say, hashed=most is not None)
    if most is None:
        values, tried = _in_turn(search or default_search(start), trial)
        counted = ""
    else:
        set_here = {token.partition("=")[0] for token in fixed}
        found = _within(search or trials.space(start, set_here), start, trial, most)
        values, tried = found.values, found.tried
        edges = f" (still at the edge of its grid: {', '.join(found.edges)})" if found.edges else ""
        counted = f", {found.trials} of {most} trials{edges}"
    config = resolve(load_config([*fixed, "scenario.validation=none", *_words(values)]))
    record = _record(start, share, tried, counted)
    choice = Choice(config.model_copy(update={"tuned_on": record}), values, tried)
    write_atomic(out / "tuned.toml", dump(choice.config))
    return choice


@dataclass
class _Trials:
    """Train each setting once."""

    tokens: Sequence[str]  # of the config that the settings are added to
    out: Path
    train: Trainer
    say: Callable[[str], None]
    hashed: bool  # name directories by a hash: many values would make too long a name
    known: dict[str, float | None] = field(default_factory=dict)

    def score(self, values: Mapping[str, str]) -> float | None:
        """Return the accuracy on the tasks' held-out images in the end; None where the loss was not finite."""
        words = _words(values)
        config = resolve(load_config([*self.tokens, *words]))
        same = config_hash(config)
        if same not in self.known:
            name = f"trial-{same}" if self.hashed else ",".join(words)
            self.known[same] = _score(config, self.out / name, self.train)
        score = self.known[same]
        self.say(f"{' '.join(words)}: {'not finite' if score is None else f'{score:.1%}'}")
        return score


def _in_turn(
    search: Mapping[str, Sequence[str]], trial: _Trials
) -> tuple[dict[str, str], dict[str, dict[str, float | None]]]:
    """Return the best value of each key, chosen key after key, and the scores of all values."""
    values: dict[str, str] = {}
    tried: dict[str, dict[str, float | None]] = {}
    for key, candidates in search.items():
        scores = tried[key] = {value: trial.score(values | {key: value}) for value in candidates}
        finite = {value: score for value, score in scores.items() if score is not None}
        if not finite:
            raise RunError(f"no value of {key} trains ({', '.join(candidates)}): try smaller ones")
        values[key] = max(finite, key=lambda value, finite=finite: finite[value])
    return values, tried


def _within(grid: trials.Grid, start: Config, trial: _Trials, most: int) -> trials.Outcome:
    """Search within ``most`` trials. Raises RunError where none of them trains."""
    lengths = {"train.epochs": start.train.epochs, "train.steps": start.train.steps}

    def valid(key: str, value: str) -> bool:
        own = lengths.get(key)
        if own is not None and float(value) > LONGER * own:
            return False
        try:
            resolve(load_config([*trial.tokens, f"{key}={value}"]))
        except UserError:
            return False
        return True

    if not grid:
        raise UserError(
            f"{start.method.name} has no options to tune: give a key several values, or leave --trials out"
        )
    found = trials.search(grid, trials.start(start, grid), trial.score, most, valid)
    if all(score is None for scores in found.tried.values() for score in scores.values()):
        raise RunError(f"none of {found.trials} trials trains: start from smaller rates")
    return found


def _words(values: Mapping[str, str]) -> list[str]:
    return [f"{key}={value}" for key, value in values.items()]


def _score(config: Config, out: Path, train: Trainer) -> float | None:
    """Return the last accuracy of the run in ``out``, trained unless it is finished; None where it diverges.

    Raises:
        RunError: the disk is full or the like, which says nothing about the settings; the trial can be continued.
    """
    with Run.open(config.model_copy(update={"out": str(out)})) as run:
        if run.finished:
            return run.results()["last"]
        try:
            return train(run)["last"]
        except NonFinite:
            return None


def _record(
    config: Config, share: float, tried: Mapping[str, Mapping[str, float | None]], counted: str
) -> str:
    """Return the text of ``tuned_on``: the data, the memory, the number of trials and every score."""
    searched = "; ".join(
        f"{key} " + ", ".join(f"{v}: {'-' if s is None else f'{s:.4f}'}" for v, s in scores.items())
        for key, scores in tried.items()
    )
    tasks = config.scenario.validation_tasks
    return (
        f"{config.data}, tasks 1-{tasks}, {share} of their training images, memory {config.memory.words},"
        f" seed {config.seed}{counted}; {searched}"
    )
