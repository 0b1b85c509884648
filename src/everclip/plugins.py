"""Find plug-ins by file name: adding one costs one file, no registry.

A plug-in of kind ``methods`` named ``gdro`` is the module ``everclip.methods.gdro``; a dotted name such as
``my_package.my_method`` is imported as it stands, from where Python finds modules or from the working folder, so
plug-ins outside the package work the same; ``trust`` says which.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import os
import sys
import traceback
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType

from everclip.errors import UserError, suggest
from everclip.system import trust

_ROOT = Path(__file__).parent
_outside: set[str] = set()
"""Packages from outside that plug-ins were loaded from."""


def names(kind: str) -> list[str]:
    """Sorted names of the plug-ins shipped in the folder ``kind`` (``methods``, ``data/sources``); imports nothing."""
    return sorted(path.stem for path in (_ROOT / kind).glob("*.py") if not path.stem.startswith("_"))


def docstring(kind: str, name: str) -> str:
    """The module docstring of a shipped plug-in, read without importing it (so without torch)."""
    source = (_ROOT / kind / f"{name}.py").read_text(encoding="utf-8")
    return ast.get_docstring(ast.parse(source)) or ""


def load(kind: str, name: str) -> ModuleType:
    """Import the plug-in ``name`` of ``kind``.

    Raises:
        UserError: no such plug-in; the message suggests the nearest name. Or it is a module that only a file asks for
            (``trust.Refused``).
    """
    what = kind.rsplit("/", 1)[-1].rstrip("s")
    if trust.is_module(name):
        trust.check(name)
        _outside.add(name.partition(".")[0])
        try:
            return _import(name)
        except ModuleNotFoundError as error:
            raise UserError(
                f'{what} "{name}" cannot be imported: {error}; give a module in the working folder or on PYTHONPATH'
            ) from error
    if name not in names(kind):
        raise UserError(f'unknown {what} "{name}"{suggest(name, names(kind))}')
    return importlib.import_module(f"everclip.{kind.replace('/', '.')}.{name}")


def _import(name: str) -> ModuleType:
    """Import a module; its package may lie in the working folder, from which nothing else is imported."""
    package = name.partition(".")[0]
    if package not in sys.modules and importlib.util.find_spec(package) is None:
        spec = PathFinder.find_spec(package, [os.getcwd()])
        if spec is not None:
            sys.modules[package] = module = importlib.util.module_from_spec(spec)
            if (
                spec.loader is None
            ):  # a folder without __init__.py, which Python would look for on its own path again
                module.__path__ = [os.path.join(os.getcwd(), package)]
                return importlib.import_module(name)
            try:
                spec.loader.exec_module(module)
            except BaseException:
                del sys.modules[package]
                raise
    return importlib.import_module(name)


def fault(error: BaseException) -> str:
    """Where in a plug-in from outside an error was raised, as ``FILE, line N, in FUNCTION``; empty where in none."""
    if isinstance(error, SyntaxError) and error.filename and _of_plugin(error.filename):
        return f"{error.filename}, line {error.lineno}"
    found = ""
    for frame in traceback.extract_tb(error.__traceback__):
        if _of_plugin(frame.filename):
            found = f"{frame.filename}, line {frame.lineno}, in {frame.name}"
    return found


def _of_plugin(file: str) -> bool:
    for package in _outside & sys.modules.keys():
        module = sys.modules[package]
        folders = list(getattr(module, "__path__", []))
        if file == module.__file__ or any(Path(file).is_relative_to(folder) for folder in folders):
            return True
    return False
