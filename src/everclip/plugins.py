"""Find plug-ins by file name: adding one costs one file, no registry.

A plug-in of kind ``methods`` named ``gdro`` is the module ``everclip.methods.gdro``. Plug-ins outside the package
work the same: a dotted name such as ``my_package.my_method`` is imported from Python's path or the working folder, a
file such as ``./my_method.py`` directly, if ``trust`` allows it. Its module defines one class of the kind.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.util
import inspect
import os
import sys
import traceback
from functools import cache
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType
from typing import TypeVar

from everclip.errors import UserError, suggest
from everclip.system import trust

Base = TypeVar("Base")

_ROOT = Path(__file__).parent
_HYPHENS = ("data/scenarios",)
"""Kinds whose names have hyphens where their files have underscores."""
_outside: set[str] = set()
"""Packages and files of outside plug-ins, whether or not they could be loaded."""


def names(kind: str) -> list[str]:
    """List the plug-ins shipped in the folder ``kind`` (``methods``, ``data/sources``), sorted, without importing
    them."""
    return list(_shipped(kind))


@cache
def _shipped(kind: str) -> tuple[str, ...]:
    stems = sorted(path.stem for path in (_ROOT / kind).glob("*.py") if not path.stem.startswith("_"))
    return tuple(stem.replace("_", "-") if kind in _HYPHENS else stem for stem in stems)


def _stem(kind: str, name: str) -> str:
    return name.replace("-", "_") if kind in _HYPHENS else name


def docstring(kind: str, name: str) -> str:
    """Return the module docstring of a shipped plug-in, read without importing it (so without torch)."""
    source = (_ROOT / kind / f"{_stem(kind, name)}.py").read_text(encoding="utf-8")
    return ast.get_docstring(ast.parse(source)) or ""


def load(kind: str, name: str) -> ModuleType:
    """Import the plug-in ``name`` of ``kind``.

    Raises:
        UserError: no such plug-in; the message suggests the nearest name. Or only an untrusted file asks for it
            (``trust.Refused``).
    """
    what = _one(kind)
    if trust.is_code(name):
        trust.check(name)
        if trust.is_file(name):
            return _file(what, name)
        _outside.add(name.partition(".")[0])
        try:
            return _import(name)
        except ModuleNotFoundError as error:
            raise UserError(
                f'{what} "{name}" cannot be imported: {error}; give a module in the working folder or on'
                f" PYTHONPATH"
            ) from error
    if name not in names(kind):
        raise UserError(f'unknown {what} "{name}"{suggest(name, names(kind))}')
    return importlib.import_module(f"everclip.{kind.replace('/', '.')}.{_stem(kind, name)}")


def find(kind: str, name: str, base: type[Base]) -> type[Base]:
    """Return the one class of the kind that the plug-in ``name`` defines.

    Args:
        base: what all classes of the kind inherit from.

    Raises:
        UserError: as ``load`` does, or a module that does not define exactly one.
    """
    module = load(kind, name)
    own = (
        item
        for item in vars(module).values()
        if isinstance(item, type) and issubclass(item, base) and item.__module__ == module.__name__
    )
    found = [*dict.fromkeys(own)]  # one class may have two names
    if len(found) != 1:
        names = " and ".join(item.__name__ for item in found) or f"no {_one(kind)}"
        raise UserError(
            f"module {name} defines {names}: it must define one subclass of"
            f" everclip.{kind.replace('/', '.')}.{base.__name__}"
        )
    return found[0]


def _one(kind: str) -> str:
    """Return what one plug-in of a kind is called: ``method``, ``policy``."""
    word = kind.rsplit("/", 1)[-1]
    return f"{word[:-3]}y" if word.endswith("ies") else word.removesuffix("s")


def _file(what: str, name: str) -> ModuleType:
    """Import a Python file, once in a process."""
    path = Path(name).expanduser().resolve()
    if not path.is_file():
        raise UserError(f'{what} "{name}" does not exist: give the path of a Python file')
    known = f"everclip_file_{hashlib.sha256(str(path).encode()).hexdigest()[:16]}"
    if known not in sys.modules:
        spec = importlib.util.spec_from_file_location(known, path)
        assert spec is not None
        assert spec.loader is not None
        sys.modules[known] = module = importlib.util.module_from_spec(spec)
        _outside.add(str(path))
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[known]
            raise
    return sys.modules[known]


def _import(name: str) -> ModuleType:
    """Import a module; its package may lie in the working folder, from which nothing else is imported."""
    package = name.partition(".")[0]
    if package not in sys.modules and importlib.util.find_spec(package) is None:
        spec = PathFinder.find_spec(package, [os.getcwd()])
        if spec is not None:
            sys.modules[package] = module = importlib.util.module_from_spec(spec)
            if spec.loader is None:  # no __init__.py: Python would search its own path again
                module.__path__ = [os.path.join(os.getcwd(), package)]
                return importlib.import_module(name)
            try:
                spec.loader.exec_module(module)
            except BaseException:
                del sys.modules[package]
                raise
    return importlib.import_module(name)


def returned(plug_in: object, hook: str) -> str:
    """Return the start of a message about what a plug-in's hook has returned: its class and its file."""
    cls = type(plug_in)
    return f"{cls.__name__}.{hook} ({inspect.getfile(cls)}) has returned"


def fault(error: BaseException) -> str:
    """Return where an outside plug-in raised an error, as ``FILE, line N, in FUNCTION``; empty if none did."""
    if isinstance(error, SyntaxError) and error.filename and _of_plugin(error.filename):
        return f"{error.filename}, line {error.lineno}"
    found = ""
    for frame in traceback.extract_tb(error.__traceback__):
        if _of_plugin(frame.filename):
            found = f"{frame.filename}, line {frame.lineno}, in {frame.name}"
    return found


def _of_plugin(file: str) -> bool:
    for code in _outside:
        module = sys.modules.get(code)  # None for a file, and for a package that failed to import
        folders = list(getattr(module, "__path__", []))
        if file in (getattr(module, "__file__", None), trust.place(code)):
            return True
        if any(Path(file).is_relative_to(folder) for folder in folders):
            return True
    return False
