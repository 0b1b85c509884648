"""The shape of the house: who may know whom, and how large a thing may grow."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tools import imports

from everclip import plugins

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "everclip"
FILES = sorted(SOURCE.rglob("*.py"))
MOST_LINES, MOST_FUNCTION = 320, 65


def methods_named(tree: ast.AST) -> set[str]:
    """Methods whose modules are imported, or with whose names something is compared."""
    found: set[str] = set()
    for node in ast.walk(tree):
        paths: list[str] = []
        if isinstance(node, ast.Import):
            paths = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            paths = [f"{node.module or ''}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Compare | ast.MatchValue):
            found |= {str(part.value) for part in ast.walk(node) if isinstance(part, ast.Constant)}
        for path in paths:
            found.update(path.rpartition("methods.")[2].split(".") if "methods." in path else ())
    return found & set(plugins.names("methods"))


@pytest.mark.parametrize(
    "name",
    ["training/loop.py", "runs/run.py", "data/loader.py", "training/evaluate.py", "training/recorder.py"],
)
def test_no_method_is_named(name: str) -> None:
    """No import of a method's module, and no comparison with a method's name."""
    assert methods_named(ast.parse((SOURCE / name).read_text(encoding="utf-8"))) == set()


@pytest.mark.parametrize(
    "line",
    [
        "import everclip.methods.gdro",
        "import everclip.methods.gdro as it",
        "from everclip.methods.gdro import Gdro",
        "from everclip.methods import Method, gdro as it",
        "from ..methods import gdro",
        "x = name == 'gdro'",
        "x = 'gdro' != name",
        "x = name in ('ncm', 'gdro')",
        "match name:\n    case 'gdro':\n        pass",
    ],
)
def test_a_method_that_is_named_is_found(line: str) -> None:
    assert "gdro" in methods_named(ast.parse(line))


def test_packages_lie_on_floors() -> None:
    """Nothing imports upwards or sideways, in a circle, or a private module of another package."""
    found = list(imports.arrows())
    assert len(found) > 1000
    assert [str(arrow) for arrow in imports.upward(found)] == []
    assert imports.circles(found) == []
    assert [str(arrow) for arrow in imports.private(found)] == []
    assert len([*SOURCE.glob("*.py")]) == 8


WRONG = {
    "data/images.py": ("from everclip.models.clip import Clip", "upward"),
    "data/loader.py": ("def f():\n    from everclip.training import loop", "upward"),
    "data/pixels.py": ("import importlib\nimportlib.import_module('everclip.cli.app')", "upward"),
    "report/one.py": ("from everclip.sweep import grid", "upward"),  # of the same floor
    "sweep/grid.py": ("from everclip.cli._needs import needs", "private"),
    "config/fields.py": ("if TYPE_CHECKING:\n    from everclip.data.images import Store", "circle"),
}


def test_what_breaks_the_order_is_found(tmp_path: Path) -> None:
    root = tmp_path / "everclip"
    shutil.copytree(SOURCE, root, ignore=shutil.ignore_patterns("assets", "configs", "__pycache__"))
    for file, (line, _) in WRONG.items():
        with (root / file).open("a", encoding="utf-8") as added:
            added.write(f"\n{line}\n")
    found = list(imports.arrows(root))
    upward, private = ({arrow.file for arrow in kind(found)} for kind in (imports.upward, imports.private))
    assert upward == {file for file, (_, what) in WRONG.items() if what != "private"} | {"sweep/grid.py"}
    assert private == {file for file, (_, what) in WRONG.items() if what == "private"}
    assert any({"config", "data"} <= set(circle) for circle in imports.circles(found))


def test_every_promise_of_security_names_tests_that_exist() -> None:
    text = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if line.startswith("| ") and line != "| promise | test |"]
    assert len(rows) > 15
    for row in rows:
        cell = row.rpartition(" | ")[2]
        named = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", cell)
        assert named, row
        found = [named_tests(file, name) for file, name in named]
        assert all(found), row
        fast = any(not slow for tests in found for slow in tests)
        assert cell.startswith("`tests/" if fast else "slow: `tests/"), row


def named_tests(file: str, name: str) -> list[bool]:
    """Whether each test of a file, or the one of a name, is slow."""
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    every = any("pytestmark = pytest.mark.slow" in ast.unparse(node) for node in tree.body)
    tests = [
        node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    ]
    return [
        every or "pytest.mark.slow" in map(ast.unparse, test.decorator_list)
        for test in tests
        if name in ("", test.name)
    ]


def _code(function: ast.FunctionDef) -> list[int]:
    """The lines of a function less its docstring's: the help of a command with many options is long."""
    lines = set(range(function.lineno, (function.end_lineno or function.lineno) + 1))
    if ast.get_docstring(function):
        lines -= set(range(function.body[0].lineno, (function.body[0].end_lineno or 0) + 1))
    return sorted(lines)


def _is_overload(node: ast.stmt) -> bool:
    return isinstance(node, ast.FunctionDef) and "overload" in map(ast.unparse, node.decorator_list)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(SOURCE).as_posix())
def test_files_and_functions_stay_small(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= MOST_LINES
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            assert len(_code(node)) < MOST_FUNCTION, node.name
            given = [a.arg for a in node.args.args if a.arg not in ("self", "cls")]
            assert len(given) - len(node.args.defaults) <= 8, (
                f"{node.name} takes {len(given)} positional arguments"
            )


def unpickling(tree: ast.AST) -> list[str]:
    """Lines that read a pickle, or leave open whether they do."""
    found: list[str] = []
    for node in ast.walk(tree):
        bad = False
        if isinstance(node, ast.Import):  # under another name torch.load would not be seen
            bad = any(
                _pickler(alias.name) or (alias.name == "torch" and alias.asname) for alias in node.names
            )
        elif isinstance(node, ast.ImportFrom):
            module, names = node.module or "", {alias.name for alias in node.names}
            bad = _pickler(module) or (module.partition(".")[0] == "torch" and "load" in names)
        elif isinstance(node, ast.Call):
            given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            bad = given.get("allow_pickle", "False") != "False" or (
                ast.unparse(node.func) == "torch.load" and given.get("weights_only") != "True"
            )
        if bad:
            found.append(ast.unparse(node))
    return found


def _pickler(module: str) -> bool:
    return module.partition(".")[0] in {"pickle", "_pickle", "cloudpickle", "dill", "joblib", "shelve"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(SOURCE).as_posix())
def test_no_duck_typing_and_no_pickle(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id != "hasattr" or path.name == "fields.py", "each class is abstract or final"
    assert unpickling(tree) == []


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "import torch as t",
        "from pickle import loads",
        "from _pickle import loads",
        "from cloudpickle import loads as f",
        "from joblib.numpy_pickle import load",
        "import shelve",
        "from torch import load as t",
        "from torch.serialization import load",
        "torch.load(f)",
        "torch.load(f, weights_only=False)",
        "torch.load(f, weights_only=asked)",
        "np.load(f, allow_pickle=True)",
        "np.load(f, allow_pickle=asked)",
    ],
)
def test_a_line_that_reads_a_pickle_is_found(line: str) -> None:
    assert unpickling(ast.parse(line)) == [line]


def test_every_public_thing_has_a_docstring() -> None:
    bare = []
    for path in FILES:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in tree.body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not (
                ast.get_docstring(node) or _is_overload(node)
            ):
                bare.append(f"{path.name}:{node.name}")
    assert not [name for name in bare if ":_" not in name]


def test_loading_the_package_loads_no_torch() -> None:
    code = "import sys, everclip, everclip.config, everclip.plugins, everclip.cli.app; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_nothing_names_a_machine() -> None:
    shown = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if shown.returncode:
        pytest.skip("no git checkout")
    pattern = re.compile(r"(?<![\w.])/(home|Users|work)/[a-z]|py" + r"pi\.org/simple|files\.pythonhosted")
    for name in shown.stdout.splitlines():
        path = ROOT / name
        if path.suffix in {".py", ".md", ".toml", ".txt", ".csv", ".yaml", ".j2", ""} and path.is_file():
            assert not pattern.search(path.read_text(encoding="utf-8")), name


def test_links_between_pages_lead_somewhere() -> None:
    for page in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("benchmarks/*.md")]:
        for link in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / link).exists(), f"{page.name}: {link}"


def test_the_readme_is_one_page() -> None:
    """At most 900 words outside of code and tables."""
    text = re.sub(r"```.*?```", "", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.DOTALL)
    lines = [line for line in text.splitlines() if not line.startswith(("    ", "|"))]
    assert len(" ".join(lines).split()) <= 900
