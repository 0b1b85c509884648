"""Shape annotations are executed: a wrong shape in any function of the package fails the test that called it."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from beartype import BeartypeConf, beartype
from jaxtyping import install_import_hook

from tests import SHAPES


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, checking its types; an ``int`` is a ``float``, as PEP 484 has it."""
    return beartype(conf=BeartypeConf(is_pep484_tower=True))(function)


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
    install_import_hook(names, f"{__name__}.{checked.__name__}")
    os.environ[SHAPES] = "1"
    from everclip.models.attention import CpuAttention

    # has no shapes, and is called for each of torch's functions: a quarter of a small run's time
    CpuAttention.__torch_function__.__no_type_check__ = True  # pyright: ignore[reportFunctionMemberAccess]
