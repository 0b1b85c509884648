"""Find plug-ins by file name: adding one costs one file, no registry.

A plug-in of kind ``methods`` named ``gdro`` is the module ``everclip.methods.gdro``; a dotted name such as
``my_package.my_method`` is imported as it stands, so plug-ins outside the package work the same; ``trust`` says which.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
from pathlib import Path
from types import ModuleType

from everclip.errors import UserError, suggest
from everclip.system import trust

_ROOT = Path(__file__).parent


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
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            raise UserError(
                f'{what} "{name}" cannot be imported: {error}; give a module on PYTHONPATH'
            ) from error
    if name not in names(kind):
        raise UserError(f'unknown {what} "{name}"{suggest(name, names(kind))}')
    return importlib.import_module(f"everclip.{kind.replace('/', '.')}.{name}")
