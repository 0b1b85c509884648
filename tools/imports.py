"""Print who imports whom: the packages of everclip by floors, arrows, circles, and what breaks the order.

    python tools/imports.py

A package may import what lies on a lower floor. Imports within functions, under ``TYPE_CHECKING`` and by ``importlib``
count like any other. ``tests/test_architecture.py`` holds the order.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1] / "src" / "everclip"
FLOORS = (
    ("__init__", "__main__"),
    ("cli",),
    ("learner", "notebook"),
    ("report", "sweep", "updating", "export", "serving"),
    ("plots",),
    ("compare", "audit"),
    ("index",),
    ("inference",),
    ("training",),
    ("runs",),
    ("methods",),
    ("models",),
    ("data",),
    ("trackers", "distributed"),
    ("config",),
    ("plugins",),
    ("system",),
    ("losses", "metrics", "seeding", "errors", "_version"),
)
"""From the top to the ground; what stands side by side does not know each other."""


class Arrow(NamedTuple):
    """One import: the file and line that has it, and the module that it asks for, relative to the package."""

    file: str
    line: int
    module: str

    @property
    def ends(self) -> tuple[str, str]:
        """The rooms that it goes from and to: packages, or modules of the root."""
        return room(self.file.removesuffix(".py")), room(self.module)

    def __str__(self) -> str:
        return f"{self.file}:{self.line} imports {self.module}"


def room(module: str) -> str:
    """The package, or the module of the root, that a module is in."""
    return module.partition("/")[0] or "__init__"


def arrows(root: Path = ROOT) -> Iterator[Arrow]:
    """Every import of everclip within everclip."""
    modules = {_name(path.relative_to(root)) for path in root.rglob("*.py")}
    for path in sorted(root.rglob("*.py")):
        file = path.relative_to(root).as_posix()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            for name in _asked(node):
                yield Arrow(file, node.lineno, _nearest(name, modules))  # pyright: ignore[reportAttributeAccessIssue]


def _name(path: Path) -> str:
    """``data/loader`` of ``data/loader.py``, ``data`` of ``data/__init__.py``."""
    return (path.parent if path.name == "__init__.py" else path.with_suffix("")).as_posix().removeprefix(".")


def _asked(node: ast.AST) -> Iterator[str]:
    """Dotted names of everclip that an import statement, or a call of ``importlib``, asks for."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names if alias.name.split(".")[0] == "everclip")
    elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "everclip":
        yield from (f"{node.module}.{alias.name}" for alias in node.names)
    elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module") and node.args:
        given = node.args[0]
        if isinstance(given, ast.Constant) and str(given.value).split(".")[0] == "everclip":
            yield str(given.value)


def _nearest(name: str, modules: set[str]) -> str:
    """The module that a dotted name is, or is in."""
    parts = name.split(".")[1:]
    while parts and "/".join(parts) not in modules:
        parts.pop()
    return "/".join(parts)


def upward(found: list[Arrow]) -> list[Arrow]:
    """Imports of what does not lie on a lower floor."""
    floor = {name: level for level, names in enumerate(reversed(FLOORS)) for name in names}
    return [
        arrow for arrow in found if len({*arrow.ends}) == 2 and floor[arrow.ends[0]] <= floor[arrow.ends[1]]
    ]


def circles(found: list[Arrow]) -> list[list[str]]:
    """Rooms that import each other, directly or by way of others."""
    after: dict[str, set[str]] = {}
    for arrow in found:
        first, second = arrow.ends
        after.setdefault(first, set()).update({second} - {first})

    def reached(start: str) -> set[str]:
        known, ahead = set[str](), [start]
        while ahead:
            fresh = after.get(ahead.pop(), set()) - known
            known |= fresh
            ahead += fresh
        return known

    reach = {name: reached(name) for name in after}
    within = {
        tuple(sorted(other for other in reach if name in reach[other] and other in reach[name]))
        for name in reach
    }
    return [list(circle) for circle in sorted(within) if circle]


def private(found: list[Arrow]) -> list[Arrow]:
    """Imports of a ``_private`` module from outside its package."""
    wrong = []
    for arrow in found:
        *package, name = arrow.module.split("/")
        inside = arrow.file.split("/")[: len(package)] == package
        if name.startswith("_") and not name.startswith("__") and not inside:
            wrong.append(arrow)
    return wrong


def main() -> int:
    """Print the graph; 1 where something breaks the order."""
    found = list(arrows())
    between = sorted({arrow.ends for arrow in found if arrow.ends[0] != arrow.ends[1]})
    for names in FLOORS:
        for name in names:
            below = [second for first, second in between if first == name]
            print(f"{name:12} {' '.join(below)}")
    root = sorted(path.stem for path in ROOT.glob("*.py"))
    wrong = upward(found), circles(found), private(found)
    print(f"\nmodules in the root: {len(root)} ({', '.join(root)})")
    print(f"rooms: {sum(map(len, FLOORS))}, floors: {len(FLOORS)}, arrows: {len(between)}")
    for title, lines in zip(
        ("upward imports", "circles", "private modules from outside"), wrong, strict=True
    ):
        print(f"{title}: {len(lines)}", *(f"  {line}" for line in lines), sep="\n")
    return int(any(wrong))


if __name__ == "__main__":
    sys.exit(main())
