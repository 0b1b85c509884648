"""Log to MLflow: a store in ``mlflow.db`` beside the run directories, or at ``MLFLOW_TRACKING_URI``."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from filelock import FileLock
from pydantic import Field

from everclip.config.sections import Text
from everclip.trackers._base import Numbers, Tracker, settings

if TYPE_CHECKING:
    from everclip.config import Config

_NO_NAME = re.compile(r"[^\w\-./ ]")
_KEPT = "mlflow-run-id"
"""The file in a run directory with the run's id in the store, so that a resumed run stays one run there."""


class MLflow(Numbers):
    """Metrics by global step, the config as parameters."""

    class Config(Tracker.Config):
        """Where the run is filed."""

        experiment: Text = Field(default="everclip", description="experiment of the run")

    package: ClassVar[str] = "mlflow"

    def __init__(self, config: Any, run: Config, path: Path) -> None:
        super().__init__(config, run, path)
        from mlflow import MlflowClient  # pyright: ignore[reportMissingImports]
        from mlflow.entities import Param  # pyright: ignore[reportMissingImports]

        store = path.resolve().parent
        with FileLock(store / ".mlflow.lock"):  # the first one makes the tables
            address = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{store}/mlflow.db"
            self._client = MlflowClient(address)
            known = self._client.get_experiment_by_name(config.experiment)
            home = known.experiment_id if known else self._client.create_experiment(config.experiment)
        kept = path / _KEPT
        if not kept.exists():  # it is written last, so that a killed process leaves no run without parameters
            made = self._client.create_run(home, run_name=path.name).info.run_id
            params = [Param(key, str(value)[:500]) for key, value in settings(run).items()]
            for first in range(0, len(params), 100):  # the most that one call takes
                self._client.log_batch(made, params=params[first : first + 100])
            kept.write_text(made, encoding="utf-8")
        self._run = kept.read_text(encoding="utf-8")

    def add(self, numbers: Mapping[str, float], step: int) -> None:
        """Log numbers of a step."""
        from mlflow.entities import Metric  # pyright: ignore[reportMissingImports]

        now = int(1000 * time.time())
        found = [Metric(_NO_NAME.sub("_", name), value, now, step) for name, value in numbers.items()]
        for first in range(0, len(found), 1000):  # the most that one call takes
            self._client.log_batch(self._run, found[first : first + 1000])

    def close(self) -> None:
        """Mark the run as done."""
        self._client.set_terminated(self._run)
