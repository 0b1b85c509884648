"""Only what the method adds, such as a linear head; nothing of the model, not even the logit scale."""

from __future__ import annotations

from typing import TYPE_CHECKING

from everclip.models.tunings._base import Tuning

if TYPE_CHECKING:
    from everclip.models.clip import Clip


class Head(Tuning):
    """Neither tower."""

    def held(self, clip: Clip) -> set[str]:
        """Return every parameter of the model."""
        return {name for name, _ in clip.model.named_parameters()}

    @property
    def blocks(self) -> tuple[int | None, int | None]:
        """No blocks of either tower."""
        return 0, 0
