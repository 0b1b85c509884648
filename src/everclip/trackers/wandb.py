"""Log to Weights & Biases: offline in the run directory unless ``WANDB_MODE`` says otherwise; see ``wandb sync``."""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from everclip.config.sections import Text
from everclip.trackers._base import Numbers, Tracker, settings

if TYPE_CHECKING:
    from everclip.config import Config

_KEPT = "wandb-run-id"
"""The file in a run directory with the run's id, so that a resumed run stays one run, wherever its directory is."""


class WeightsAndBiases(Numbers):
    """Curves by ``global_step``; a resumed run keeps its id."""

    class Config(Tracker.Config):
        """Where the run is filed."""

        project: Text | None = Field(
            default=None, description="project of the run; none: that of WANDB_PROJECT, else everclip"
        )

    package: ClassVar[str] = "wandb"

    def __init__(self, config: Any, run: Config, path: Path) -> None:
        super().__init__(config, run, path)
        import wandb  # pyright: ignore[reportMissingImports]

        mode: Any = os.environ.get("WANDB_MODE", "offline")
        self._run = wandb.init(
            project=config.project or os.environ.get("WANDB_PROJECT", "everclip"),
            name=path.name,
            id=run_id(path),
            resume="allow",
            dir=str(path),
            mode=mode,
            config=settings(run),
            settings=wandb.Settings(console="off", silent=True),
        )
        self._run.define_metric("*", step_metric="global_step")

    def add(self, numbers: Mapping[str, float], step: int) -> None:
        """Log numbers of a step."""
        self._run.log({**numbers, "global_step": step})

    def close(self) -> None:
        """Write what is left."""
        self._run.finish()


def run_id(path: Path) -> str:
    """Return a run's id: random, or the hash of its path where an earlier everclip began it."""
    kept = path / _KEPT
    if not kept.exists():
        earlier = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:16]
        kept.write_text(earlier if (path / "wandb").exists() else secrets.token_hex(8), encoding="utf-8")
    return kept.read_text(encoding="utf-8")
