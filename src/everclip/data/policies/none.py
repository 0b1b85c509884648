"""Nothing, whatever the budget.

Each task is learned from its own images alone. The same as memory.budget=0.

Source: learning without exemplars, as in LwF, https://arxiv.org/abs/1606.09282
"""

from __future__ import annotations

from everclip.data.policies import Policy


class Nothing(Policy):
    """No images."""

    keeps = "none"
