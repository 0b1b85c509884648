"""docs/notebooks: every cell runs, and what they show is small and from no one's machine."""

from __future__ import annotations

import json
import re
from pathlib import Path

import nbformat
import pytest
from nbformat import NotebookNode
from tools import notebooks

from tests.smaller import smaller

NAMES = sorted(path.name for path in notebooks.FOLDER.glob("*.ipynb"))
CHANGES = {
    "add_five_classes.ipynb": {
        'write("photos", range(10))': 'write("photos", range(2))',  # too few to train on, as the new are not
        "image_size=96": "image_size=32",
        "max_drop=2.0": "max_drop=100.0",  # of so few test pictures, one is more
    },
    "compare_three_methods.ipynb": {
        "range(25)": "range(6)",
        '"scenario.tasks": 5,': '"scenario.tasks": 3, "model": "TOY",',
        '"train.epochs": 4': '"train.epochs": 1',
    },
}
"""What makes a notebook run in less than a minute: fewer and smaller pictures, a model of random weights."""


def shown(notebook: NotebookNode) -> list[list[str]]:
    """What each cell of code shows: for each output its kinds, in no order."""
    return [
        [kind for output in cell.outputs for kind in sorted(output.get("data", {"text/plain": ""}))]
        for cell in notebook.cells
        if cell.cell_type == "code"
    ]


def test_there_are_two() -> None:
    assert NAMES == ["add_five_classes.ipynb", "compare_three_methods.ipynb"]


@pytest.mark.parametrize("name", NAMES)
def test_outputs_are_kept_small_and_name_no_machine(name: str) -> None:
    path = notebooks.FOLDER / name
    assert path.stat().st_size < 300_000
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert {"image/png", "text/html"} <= {kind for kinds in shown(notebook) for kind in kinds}
    for cell in cells:
        for output in cell.outputs:
            data = output.get("data", {})
            texts = [output.get("text", ""), data.get("text/plain", ""), data.get("text/html", "")]
            assert output.get("name") != "stderr"
            assert not re.search(r"(^|[\s'\"(=])(/\w|[A-Z]:\\)", "\n".join(texts)), texts
    for cell in notebook.cells:
        for link in re.findall(r"\]\(([^)#:]+)\)", cell.source if cell.cell_type == "markdown" else ""):
            assert (path.parent / link).exists(), link


@pytest.mark.parametrize("name", NAMES)
def test_the_cell_that_ones_own_pictures_replace_is_named_and_holds_nothing_else(name: str) -> None:
    text, *cells = nbformat.read(notebooks.FOLDER / name, as_version=4).cells
    (written,) = [cell.source for cell in cells if "def write(" in cell.source]
    assert "import " not in written
    assert not [cell for cell in cells if cell.source != written and re.search(r"write\(|emoji", cell.source)]
    assert "leave out the cell with `def write`" in text.source.replace("\n", " ")
    for folder in re.findall(r'^write\("(\w+)"', written, re.MULTILINE):
        assert {f"`{folder}/{part}/CLASS`" in text.source for part in ("train", "test")} == {True}


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_each_cell_runs(name: str, toy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On less than what stands there, with outputs of the same kinds."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # or its threads wait for those of the tests beside it
    kept = (notebooks.FOLDER / name).read_text(encoding="utf-8")
    changes = {json.dumps(asked)[1:-1]: json.dumps(quick)[1:-1] for asked, quick in CHANGES[name].items()}
    (tmp_path / name).write_text(smaller(kept, changes).replace("TOY", toy), encoding="utf-8")
    found = notebooks.run(tmp_path / name, tmp_path)
    assert shown(found) == shown(nbformat.read(notebooks.FOLDER / name, as_version=4))
