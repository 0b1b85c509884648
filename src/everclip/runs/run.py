"""Manage a run directory, the single source of truth about a run: config, log, checkpoints and results."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import time
from datetime import datetime
from itertools import chain, count
from pathlib import Path
from typing import Any, ClassVar

from filelock import FileLock, Timeout

from everclip import config as configs
from everclip import trackers
from everclip.config import Config
from everclip.config.values import dotted, dump
from everclip.errors import UserError
from everclip.runs import schema
from everclip.runs.resolve import resolve
from everclip.system import trust
from everclip.system.atomic import holder, note_holder, sync, write_atomic
from everclip.system.checkpoint import Store
from everclip.system.reading import diverted, readable
from everclip.system.text import printable

log = logging.getLogger("everclip")
log.setLevel(logging.INFO)  # run.log has it all; the command line shows warnings


HOLDER = ".holder"
"""The file that names the process with the lock."""
IMAGES = "images.npz"
"""The file that records the images (noted.py)."""
_FIRST = re.compile(r"\.lock|\.holder|config\.toml\.tmp|\.config\.toml\.everclip-[0-9a-f]{8}")
"""Files of a run that exist before its config."""
_IN_PLACE = (
    ".lock",
    HOLDER,
    "run.log",
    "metrics.jsonl",
    "checkpoints",
    "tensorboard",
    "wandb",
    "wandb-run-id",
    "mlflow-run-id",
)
"""Files and folders written in place, by trackers too; others are replaced as a whole."""


class _RunLog(logging.FileHandler):
    """run.log, printable. A run does not fail where a line cannot be written, as on a full disk."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one printable line."""
        return printable(super().format(record))

    def handleError(self, record: logging.LogRecord) -> None:
        """Drop the line."""

    def close(self) -> None:
        """Close the file, without the lines that cannot be written."""
        with contextlib.suppress(OSError):
            super().close()


def _difference(before: Config, now: Config) -> str:
    """Return the first key in which two configs ask for different runs, with both values; empty without any."""
    old, new = (dotted(configs.essence(config).model_dump()) for config in (before, now))
    different = (key for key in old | new if old.get(key) != new.get(key))
    return next((f"{key}: {old.get(key)} there, {new.get(key)} here" for key in different), "")


def default_path(config: Config, what: str = "") -> Path:
    """Return ``runs/DATE_data_method_mM_sS`` for a config without ``out``; ``what`` comes after the date."""
    lasts = (word.rstrip("/").rsplit("/", 1)[-1] for word in (config.data, config.method.name))
    data, method = (re.sub(r"[^\w.-]", "-", word) for word in lasts)
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    name = f"{stamp}{what and '_' + what}_{data}_{method}_{config.memory.tag}_s{config.seed}"
    names = chain([name], (f"{name}_{number}" for number in count(2)))
    return next(path for name in names if not (path := Path("runs") / name).exists())


class Run:
    """A run's directory. A context manager that locks it; make or continue one with ``Run.open(config)``.

    Args:
        changed_data: continue although the images have changed since the run began.
    """

    writes: ClassVar[bool] = True
    """Whether this process writes the run; of several only the first does."""

    def __init__(self, path: Path, config: Config, changed_data: bool = False) -> None:
        self.path = path
        self.config = config
        self.changed_data = changed_data
        self.store = Store(path / "checkpoints", config.checkpoint.keep)
        self._metrics = path / "metrics.jsonl"
        self._lock = FileLock(path / ".lock", timeout=0)
        self._handler: logging.Handler | None = None
        self._fresh = self._made = False
        self._trackers: list[trackers.Careful] = []

    @classmethod
    def open(cls, config: Config) -> Run:
        """Return the run at ``config.out``, new or of the same config.

        Raises:
            UserError: ``out`` is a file, a folder that is not a run, or a run of another config.
        """
        path = default_path(config) if config.out is None else Path(config.out).expanduser()
        run = cls(path, config.model_copy(update={"out": str(path)}))
        try:
            run._check()
        except OSError as error:
            raise UserError(f"out={path} cannot be used ({error.strerror}): give another out") from error
        return run

    def _check(self) -> Config | None:
        """Return the config that the run has begun with, if it has. Raises UserError for a folder that holds something
        else, or cannot be written."""
        path, begun = self.path, None
        above = next(place for place in (path, *path.absolute().parents) if place.exists())
        if above != path and not above.is_dir():
            raise UserError(f"out={path} cannot be used ({above} is not a folder): give another out")
        if not os.access(above, os.W_OK):
            raise UserError(f"out={path} cannot be used ({above} is not writable): give another out")
        wrong = diverted(path, _IN_PLACE)
        if wrong:
            raise UserError(f"{path} cannot be written, as {wrong}: a run writes only into its own folder")
        if (path / "config.toml").exists():
            try:
                with trust.reading():
                    begun = self.read_config(path)
                difference = _difference(begun, self.config)
            except trust.Refused as error:
                difference = str(error)
            if difference:
                other = f"{path} holds a run of another config ({difference})"
                raise UserError(f"{other}: give another out, or remove that folder")
        elif path.exists() and (
            not path.is_dir() or not all(_FIRST.fullmatch(p.name) for p in path.iterdir())
        ):
            raise UserError(f"out={path} exists and is not a run directory: give a new or an empty folder")
        return begun

    @classmethod
    def read_config(cls, path: Path) -> Config:
        """Return the config of the run at ``path``. Raises UserError where there is none."""
        if not (path / "config.toml").is_file():
            raise UserError(
                f"{path} is not a run directory (it has no config.toml): give the folder that train wrote"
            )
        config = configs.load_config([str((path / "config.toml").absolute())])
        if "defaults" not in config.model_fields_set:  # written before there were other generations
            config = config.model_copy(update={"defaults": 1})
        return resolve(config)

    def __enter__(self) -> Run:
        self._check()
        self._trackers = trackers.start(self.config, self.path)
        try:
            self._made = not self.path.exists()
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock.acquire()
        except Timeout:
            raise UserError(
                f"{self.path} is in use by another run{holder(self.path / HOLDER)}: wait, or give another out"
            ) from None
        except OSError as error:
            raise self._unwritable(error) from error
        try:
            begun = self._check()  # another process may have begun here since the run was opened
        except UserError:
            self._lock.release()
            raise
        self._fresh = begun is None
        try:
            note_holder(self.path / HOLDER)
            if begun is None:
                write_atomic(self.path / "config.toml", dump(self.config))
            else:
                self._keep_measures(begun)
            self._handler = _RunLog(self.path / "run.log", encoding="utf-8")
        except OSError as error:
            self._lock.release()
            raise self._unwritable(error) from error
        self._handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        log.addHandler(self._handler)
        return self

    def _keep_measures(self, begun: Config) -> None:
        """Measure what the run has measured since it began; a config of equal essence may ask for something else."""
        for key in ("evaluate", "references"):
            if getattr(begun, key) != getattr(self.config, key):
                log.warning(
                    "%s stays as %s has it: the run has begun with it", key, self.path / "config.toml"
                )
                self.config = self.config.model_copy(update={key: getattr(begun, key)})

    def __exit__(self, *failure: object) -> None:
        if failure[1] is not None:
            log.info("ended: %s", str(failure[1]) or type(failure[1]).__name__)
        for tracker in self._trackers:
            tracker.close()
        if self._handler is not None:
            log.removeHandler(self._handler)
            self._handler.close()
        (self.path / HOLDER).unlink(missing_ok=True)
        if self._fresh and isinstance(failure[1], UserError) and not (self.path / "metrics.jsonl").exists():
            self._vanish()
        self._lock.release()

    def _unwritable(self, error: OSError) -> UserError:
        return UserError(
            f"the run directory {self.path} cannot be written ({error.strerror}): give another out"
        )

    def _vanish(self) -> None:
        """Remove a run that bad input, such as an unknown model, ended before it began. Call it with the lock held."""
        for name in ("config.toml", "run.log", "environment.json", IMAGES, ".lock"):
            (self.path / name).unlink(missing_ok=True)
        if self._made:
            with contextlib.suppress(OSError):  # the folder stays if someone else's file is in it
                self.path.rmdir()

    @property
    def finished(self) -> bool:
        """Whether the run has its results."""
        return (self.path / "results.json").exists()

    def results(self) -> dict[str, Any]:
        """Return the results of a finished run. Raises UserError where the file is damaged."""
        path = self.path / "results.json"
        remedy = f"remove it, and everclip resume {self.path} writes it again"
        with readable(path, remedy, "is damaged"):
            return schema.load(path)

    def log(self, event: str, **fields: Any) -> None:
        """Append a line to ``metrics.jsonl``, and pass it to the trackers."""
        with self._metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"event": event, **fields}, ensure_ascii=False, allow_nan=False) + "\n")
        for tracker in self._trackers:
            tracker.log(event, fields)

    def log_bytes(self) -> int:
        """Return the size of ``metrics.jsonl``, after writing it to the disk: a checkpoint relies on that."""
        sync(self._metrics)
        return self._metrics.stat().st_size

    def cut_log(self, size: int) -> None:
        """Cut ``metrics.jsonl`` to ``size`` bytes; remove it if that is 0. Raises UserError where it is not a file."""
        if self._metrics.exists() and not self._metrics.is_file():
            raise UserError(f"{self._metrics} is not a file: remove it, or put the log back")
        if size == 0:
            self._metrics.unlink(missing_ok=True)
            return
        self._metrics.touch()
        there = self._metrics.stat().st_size
        if there < size:
            log.warning("%s is shorter than at the last checkpoint: some lines are lost", self._metrics)
            size = self._metrics.read_bytes().rfind(b"\n") + 1
        os.truncate(self._metrics, size)

    def write(self, name: str, content: str | bytes) -> None:
        """Write a file of the run, atomically."""
        write_atomic(self.path / name, content)


class Clock:
    """A run's time, without interruptions."""

    def __init__(self, before: float = 0.0) -> None:
        self._start = time.perf_counter() - before

    def seconds(self) -> float:
        """Return the seconds that the run has taken so far."""
        return time.perf_counter() - self._start
