"""Shape annotations are executed: a wrong shape in the first calls of any function of the package fails the test.

Each test checks a function's first ``CHECKED`` calls, so that one which goes wrong later in the same test is not found.
Checking every call took a third of a small run's time.
"""

from __future__ import annotations

import functools
import inspect
import os
from collections import Counter
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jaxtyping
from beartype import BeartypeConf, beartype
from jaxtyping import install_import_hook, jaxtyped

from tests import SHAPES

CHECKED = 5
"""Number of calls of a function that are checked, in a test or in a process that a test starts."""
calls: Counter[int] = Counter()
"""How often each function was called, by its code; a test begins with none."""


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, checking its types; an ``int`` is a ``float``, as PEP 484 has it."""
    return beartype(conf=BeartypeConf(is_pep484_tower=True))(function)


def first_calls(*, typechecker: Any) -> Callable[[Any], Any]:
    """What the import hook takes in place of ``jaxtyping.jaxtyped``."""
    return functools.partial(_first_calls, typechecker)


def _first_calls(typechecker: Any, function: Any) -> Any:
    if inspect.isclass(function):
        return jaxtyped(function, typechecker=typechecker)
    code, checking = id(function.__code__), None

    @functools.wraps(function)
    def call(*args: Any, **options: Any) -> Any:
        nonlocal checking
        if calls[code] >= CHECKED:
            return function(*args, **options)
        calls[code] += 1
        # made here, as most functions of a module are never called, and making it costs more than most calls
        checking = checking or jaxtyped(function, typechecker=typechecker)
        return checking(*args, **options)

    return call


@functools.cache
def install() -> None:
    """Check the functions of all modules that annotate shapes, from here on and in the processes that tests start.

    Other modules are left alone: with them, imports take three times as long, and pyright knows what they take.
    """
    package = find_spec("everclip")
    assert package is not None
    (folder,) = map(Path, package.submodule_search_locations or ())
    names = [
        ".".join(path.relative_to(folder.parent).with_suffix("").parts).removesuffix(".__init__")
        for path in folder.rglob("*.py")
        if "jaxtyping" in path.read_text(encoding="utf-8")
    ]
    jaxtyping.jaxtyped = first_calls  # which the hook looks up when a module is imported
    install_import_hook(names, f"{__name__}.{checked.__name__}")
    os.environ[SHAPES] = "1"
