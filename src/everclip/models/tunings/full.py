"""Everything that the method trains: both towers, or the image tower.

A rate of 0 freezes a tower in any case: ``train.lr_text=0`` the text tower.
"""

from __future__ import annotations

from everclip.models.tunings._base import Tuning


class Full(Tuning):
    """Both towers."""
