"""Choose exemplars: one file per policy, found by its name, and what a policy of your own needs.

The contract is imported from here: ``from everclip.data.policies import Policy, Pool``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from everclip import plugins
from everclip.config.fields import own_options
from everclip.config.sections import Memory
from everclip.data.policies._base import Policy, Pool
from everclip.data.policies._order import herding_order, race
from everclip.data.policies._shares import per_class, per_task, shares, spread
from everclip.errors import UserError, shown, suggest
from everclip.system import trust

__all__ = [
    "Policy",
    "Pool",
    "build",
    "herding_order",
    "per_class",
    "per_task",
    "policy_class",
    "race",
    "shares",
    "spread",
]

_KIND = "data/policies"


def policy_class(name: str) -> type[Policy]:
    """Return the one Policy that the plug-in ``name`` defines. Raises UserError where there is none."""
    return plugins.find(_KIND, name, Policy)


def build(name: str, options: Mapping[str, Any]) -> Policy:
    """Return the policy that ``memory.policy`` asks for. Raises UserError for an unknown policy, option or value.

    Args:
        options: what is in the section ``memory`` besides its own keys.
    """
    known = plugins.names(_KIND)
    if name not in known and not trust.is_code(name):
        raise UserError(f"unknown policy {shown(name)}{suggest(name, ['method', *known])}")
    cls = policy_class(name)
    if cls.keeps == "part" and cls.choose is Policy.choose:
        raise UserError(f"policy {name} has no choose: write what it keeps as def choose(self, pool)")
    return cls(own_options(cls.Config, options, Memory, "memory."))
