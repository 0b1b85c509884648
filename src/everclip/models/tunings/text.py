"""The text tower only, with the logit scale if the method trains it; the image tower is frozen."""

from __future__ import annotations

from typing import TYPE_CHECKING

from everclip.models.tunings._base import Tuning

if TYPE_CHECKING:
    from everclip.models.clip import Clip


class Text(Tuning):
    """One tower."""

    def held(self, clip: Clip) -> set[str]:
        """Return all of the image tower."""
        return {name for name, _ in clip.model.named_parameters() if name.startswith("visual.")}

    @property
    def blocks(self) -> tuple[int | None, int | None]:
        """None of the image tower, all blocks of the text tower."""
        return 0, None
