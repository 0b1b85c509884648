"""The methods: one file each, found by its file name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from everclip.config import method_class, method_config

if TYPE_CHECKING:
    from everclip.config import Config
    from everclip.data.prompts import Prompts
    from everclip.methods._base import Method


def build(config: Config, prompts: Prompts) -> Method:
    """The config's method, ready for its first task. Raises UserError for an unknown method or option."""
    return method_class(config.method.name).create(method_config(config), prompts)
