"""The image tower only, with the logit scale if the method trains it; the text tower is frozen."""

from __future__ import annotations

from typing import TYPE_CHECKING

from everclip.models.tunings._base import Tuning

if TYPE_CHECKING:
    from everclip.models.clip import Clip


class Image(Tuning):
    """One tower."""

    def held(self, clip: Clip) -> set[str]:
        """Return all but the image tower and the logit scale."""
        names = {name for name, _ in clip.model.named_parameters()}
        return {name for name in names if name != "logit_scale" and not name.startswith("visual.")}

    @property
    def blocks(self) -> tuple[int | None, int | None]:
        """All blocks of the image tower, none of the text tower."""
        return None, 0
