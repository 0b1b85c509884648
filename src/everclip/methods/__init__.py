"""Find methods by file name, and export what a method of your own needs.

Import the contract from here: ``from everclip.methods import Method, MethodConfig, Batch``. Names are loaded when
they are first used, since torch comes with them.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from everclip import plugins
from everclip.data import policies
from everclip.data.scenarios import scenario_class
from everclip.errors import UserError
from everclip.methods.base.registry import method_class, method_config
from everclip.system import trust

if TYPE_CHECKING:
    from everclip.config import Config, MethodConfig
    from everclip.data.loader import Batch, Phase
    from everclip.data.policies import Policy
    from everclip.methods.base.cost import Passes
    from everclip.methods.base.method import (
        Capabilities,
        Classifier,
        Method,
        Prompts,
        Task,
        TextClassifier,
        Untrained,
    )
    from everclip.methods.base.sample_table import SampleTable
    from everclip.models.clip import Clip, Images

__all__ = [
    "Batch",
    "Capabilities",
    "Classifier",
    "Clip",
    "Images",
    "Method",
    "MethodConfig",
    "Passes",
    "Phase",
    "Prompts",
    "SampleTable",
    "Task",
    "TextClassifier",
    "Untrained",
    "build",
    "lacking",
    "memory_policy",
    "method_of",
    "unpaired",
]

_ELSEWHERE = {"Passes": "cost", "SampleTable": "sample_table"}


def __getattr__(name: str) -> Any:
    """Return a name of the contract, imported when it is first used."""
    if name not in __all__:
        raise AttributeError(f"module everclip.methods has no attribute {name}")
    return getattr(importlib.import_module(f"everclip.methods.base.{_ELSEWHERE.get(name, 'method')}"), name)


def build(config: Config, prompts: Prompts) -> Method:
    """Return the config's method, ready for its first task.

    Raises UserError: an unknown method or option, or one that needs class embeddings where there is no text tower.
    """
    method = method_class(config.method.name).create(method_config(config), prompts)
    if method.capabilities.needs_text and not prompts.templates:
        raise UserError(
            f"method={config.method.name} with these options reads class embeddings: add text_features to"
            f" {config.data}, or use another method"
        )
    if 0 < (config.memory.per_class or 0) < method.capabilities.fewest:
        method.can(uses_memory=False)
    return method


def method_of(config: Config) -> Method:
    """Build a config's method without its data, to ask what it does. Imports torch. Raises UserError."""
    from everclip.data.prompts import PHOTO, Prompts

    return build(config, Prompts(("a", "b"), (PHOTO,)))


def memory_policy(config: Config, method: Method) -> Policy:
    """Return the config's memory policy, or the method's own if it is ``method``.

    Raises UserError: an unknown policy or option, or a value that is not allowed.
    """
    name = config.memory.policy
    if name == "method":
        name = method.capabilities.memory_policy
        trust.typed(name)  # the method's code runs already
    return policies.build(name, config.memory.options)


def unpaired(config: Config, method: Method) -> str:
    """Return why a method cannot learn from images with captions, as a message; empty where it can."""
    if method.capabilities.pairs:
        return ""
    known = [name for name in plugins.names("methods") if method_class(name).capabilities.pairs]
    wraps = method_class(config.method.name).Config.wraps
    key = "method" if wraps is None else f"method.{wraps[0]}"
    return (
        f"method={config.method.name} with these options learns classes, and {config.data} has captions: use"
        f" {key}={' or '.join(known)}"
    )


def lacking(config: Config, method: Method) -> str:
    """Return what a resolved config lacks for its method to be defined, as a message; empty if nothing."""
    settings, memory = config.scenario, config.memory
    tasks = settings.tasks if isinstance(settings.tasks, int) else len(settings.tasks)
    alone = method.capabilities.one_task or tasks == 1 or scenario_class(settings.kind).every_class
    # Runs of earlier versions go on as they began.
    if config.defaults == 1 or alone or not method.capabilities.needs_exemplars:
        return ""
    keeps = memory_policy(config, method).keeps
    if keeps == "none":
        return f"{config.method.name} needs exemplars: set memory.policy to another than {memory.policy}"
    without = memory.size(1) == 0 and keeps != "all"
    key = "memory.budget" if memory.per_class is None else "memory.per_class"
    return f"{config.method.name} needs exemplars: set {key} to 1 or more" if without else ""
