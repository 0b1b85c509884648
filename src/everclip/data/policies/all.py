"""Everything, whatever the budget.

Each task is trained on the images of all tasks so far, the upper end of what a memory can give. The same as
memory.budget=all.

Source: replay of all data, the "cumulative" strategy of https://arxiv.org/abs/1705.03550
"""

from __future__ import annotations

from everclip.data.policies import Policy


class All(Policy):
    """All images."""

    keeps = "all"
