"""``multilayer_lda`` that trains on and leaves old sums as they were: the ablation of its drift correction."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from everclip.methods import multilayer_lda
from everclip.methods.base.method import Batch, Clip


class Undrifted(multilayer_lda.MultilayerLda):
    """Add each task's images as the tower reads them at its end, and never map what was added before."""

    def follow(self, clip: Clip, new: Iterable[Batch], memory: Iterable[Batch]) -> None:
        for batch in new:
            self.include_both(*self.both(clip, batch))
        self.kept[multilayer_lda.FOLLOWED] = torch.ones(1, device=self.counts.device)
