"""The methods: one file each, found by its file name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from everclip.methods.base.registry import method_class, method_config

if TYPE_CHECKING:
    from everclip.config import Config
    from everclip.data.prompts import Prompts
    from everclip.methods.base.method import Method


def build(config: Config, prompts: Prompts) -> Method:
    """The config's method, ready for its first task. Raises UserError for an unknown method or option."""
    return method_class(config.method.name).create(method_config(config), prompts)


def lacking(config: Config, method: Method) -> str:
    """What a resolved config lacks for its method to have a defined form, as a message; else empty."""
    scenario, memory = config.scenario, config.memory
    tasks = scenario.tasks if isinstance(scenario.tasks, int) else len(scenario.tasks)
    without = memory.budget == 0 and memory.policy != "all"
    alone = method.one_task or tasks == 1 or scenario.kind != "class-incremental"
    # Runs of earlier versions go on as they began.
    if config.defaults == 1 or alone or not method.needs_exemplars:
        return ""
    if memory.policy == "none":
        return f"{config.method.name} needs exemplars: set memory.policy to another than none"
    return f"{config.method.name} needs exemplars: set memory.budget to 1 or more" if without else ""
