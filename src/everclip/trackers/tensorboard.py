"""Log to TensorBoard: event files in the run directory; ``tensorboard --logdir runs`` shows all runs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from everclip.trackers._base import Numbers

if TYPE_CHECKING:
    from everclip.config import Config


class TensorBoard(Numbers):
    """Curves by global step."""

    package: ClassVar[str] = "tensorboard"

    def __init__(self, config: Any, run: Config, path: Path) -> None:
        super().__init__(config, run, path)
        self._writer = None

    def add(self, numbers: Mapping[str, float], step: int) -> None:
        """Write scalars. A resumed run removes what was written after its checkpoint: it writes that again."""
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self.path / "tensorboard"), purge_step=self.again)
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Write what is left."""
        if self._writer is not None:
            self._writer.close()
