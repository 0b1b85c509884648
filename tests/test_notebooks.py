"""docs/notebooks: they run as they stand, and what they show is small and from no one's machine."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
import pytest
from nbformat import NotebookNode
from tools import notebooks

NAMES = sorted(path.name for path in notebooks.FOLDER.glob("*.ipynb"))


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


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_runs_as_it_stands(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # or its threads wait for those of the tests beside it
    path = notebooks.FOLDER / name
    assert shown(notebooks.run(path, tmp_path)) == shown(nbformat.read(path, as_version=4))
