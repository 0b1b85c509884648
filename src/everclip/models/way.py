"""Define how the towers run in a step."""

from __future__ import annotations

from typing import NamedTuple

from everclip.distributed import collectives


class Way(NamedTuple):
    """How the towers run in a step.

    Args:
        pieces: number of pieces in which they take their inputs where a gradient is kept.
        text_bf16: whether the text tower, and it alone, computes in bf16.
        share: how several processes share the batch. Images are then this process's part of it, and features those of
            the whole batch; each process encodes a part of the prompts.
    """

    pieces: int = 1
    text_bf16: bool = False
    share: collectives.Share | None = None
