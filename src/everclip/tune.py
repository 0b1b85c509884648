"""Tuning without peeking: settings are chosen on a validation share of the first two tasks' training images."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from everclip.config import Config, config_hash, dump, load_config, method_class, resolve
from everclip.durable import write_atomic
from everclip.errors import RunError
from everclip.estimate import inner
from everclip.run import Run

SHARE = 0.2
"""Share of the training images that is held out, where the config does not say."""
RATES = (0.1, 0.3, 1.0, 3.0)
"""The search where none is given: each tower's rate times these, and 0 for the text tower."""
HEAD_RATES = (0.3, 1.0, 3.0, 10.0)
"""The same for a head: too small a rate leaves it as it began."""

SEARCHED = ("train.", "method.", "center")
"""Beginnings of the keys that can be searched."""

_LIST = re.compile(r"[^\[\]{}\"',]+(,[^\[\]{}\"',]+)+")

Trainer = Callable[[Run], dict[str, Any]]


@dataclass(frozen=True)
class Choice:
    """What a search found.

    Args:
        config: the resolved config to train with, ``tuned_on`` filled in.
        values: the best value of each key, as written.
        tried: for each key, value -> accuracy in 0..1 of both tasks' held-out images after the second task; None for
            a run whose loss was not finite.
    """

    config: Config
    values: dict[str, str]
    tried: dict[str, dict[str, float | None]]


def split(tokens: Sequence[str]) -> tuple[list[str], dict[str, list[str]]]:
    """Config tokens, and the values to try of each key that has several: ``train.lr=1e-5,1e-4``.

    Only what decides how a run learns is searched; a comma in ``data`` or ``out`` belongs to a path.
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
    """The rates of both towers, and of a head where there is one, around those of the config (``RATES``)."""
    assert config.train.lr is not None
    assert config.train.lr_text is not None
    search = {
        "train.lr": [f"{config.train.lr * factor:.3g}" for factor in RATES],
        "train.lr_text": ["0", *(f"{config.train.lr_text * factor:.3g}" for factor in RATES)],
    }
    if config.train.lr_head is not None and has_head(config):
        search["train.lr_head"] = [f"{config.train.lr_head * factor:.3g}" for factor in HEAD_RATES]
    return search


def has_head(config: Config) -> bool:
    """Whether the config's method trains a new head on the features."""
    name, options = inner(config)
    fields = method_class(name).Config.model_fields
    head = fields["head"].default if "head" in fields else "linear"
    return "head_init" in fields and options.get("head", head) == "linear"


def tune(tokens: Sequence[str], out: Path, train: Trainer, say: Callable[[str], None]) -> Choice:
    """Choose settings key after key, each with the best values of the keys before it; at a tie the first.

    Every run is a directory in ``out``, so a search that was stopped continues and a finished one is only read.
    Writes ``out/tuned.toml``, the config to train with.

    Args:
        tokens: of a config; a key with several values after commas is searched, in the order given. Without one the
            learning rates of both towers and of a head are (``default_search``).
        train: trains an open run and returns its results.

    Raises:
        UserError: the config is wrong.
        RunError: every value of a key ends in a loss that is not finite.
    """
    fixed, search = split(tokens)
    start = resolve(load_config(fixed))
    share = start.scenario.validation or SHARE
    fixed = [token for token in fixed if not token.startswith("scenario.validation=")]
    tuning, values, tried = [*fixed, f"scenario.validation={share}"], {}, {}
    known: dict[str, float | None] = {}
    for key, candidates in (search or default_search(start)).items():
        scores = tried[key] = {}
        for value in candidates:
            words = _words(values | {key: value})
            config = resolve(load_config([*tuning, *words]))
            same = config_hash(config)
            if same not in known:
                known[same] = _score(config, out / ",".join(words), train)
            scores[value] = known[same]
            say(f"{' '.join(words)}: {'not finite' if (score := known[same]) is None else f'{score:.1%}'}")
        finite = {value: score for value, score in scores.items() if score is not None}
        if not finite:
            raise RunError(f"no value of {key} trains ({', '.join(candidates)}): try smaller ones")
        values[key] = max(finite, key=lambda value, finite=finite: finite[value])
    config = resolve(load_config([*fixed, "scenario.validation=none", *_words(values)]))
    choice = Choice(config.model_copy(update={"tuned_on": _record(start, share, tried)}), values, tried)
    write_atomic(out / "tuned.toml", dump(choice.config))
    return choice


def _words(values: Mapping[str, str]) -> list[str]:
    return [f"{key}={value}" for key, value in values.items()]


def _score(config: Config, out: Path, train: Trainer) -> float | None:
    """Accuracy after the second task of the run in ``out``, which is trained unless it is finished."""
    with Run.open(config.model_copy(update={"out": str(out)})) as run:
        if run.finished:
            return run.results()["last"]
        try:
            return train(run)["last"]
        except RunError:
            return None


def _record(config: Config, share: float, tried: Mapping[str, Mapping[str, float | None]]) -> str:
    """What ``tuned_on`` says: the data, the budget and every score."""
    searched = "; ".join(
        f"{key} " + ", ".join(f"{v}: {'-' if s is None else f'{s:.4f}'}" for v, s in scores.items())
        for key, scores in tried.items()
    )
    return (
        f"{config.data}, tasks 1-2, {share} of their training images, memory {config.memory.words},"
        f" seed {config.seed}; {searched}"
    )
