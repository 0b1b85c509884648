"""Run the notebooks of docs/notebooks in an empty folder and keep what they show.

python tools/notebooks.py          # all of them, a few minutes each on two cores
"""

from __future__ import annotations

import os
import sys
import sysconfig
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

FOLDER = Path(__file__).parents[1] / "docs" / "notebooks"
SECONDS = 1800
"""What a cell may take; a tenth of it where nothing else runs."""


def run(path: Path, folder: Path) -> NotebookNode:
    """The notebook with its outputs, run with ``folder`` as the working folder.

    Raises:
        CellExecutionError: a cell raises, or takes too long.
    """
    notebook = nbformat.read(path, as_version=4)
    environment = {
        **os.environ,
        "PATH": f"{sysconfig.get_path('scripts')}{os.pathsep}{os.environ['PATH']}",  # where !everclip is found
        "MPLCONFIGDIR": str(folder / ".matplotlib"),  # charts look as they do where nothing is configured
        "PYTHONWARNINGS": "ignore:IProgress not found",  # tqdm's, which names its own place on this machine
    }
    NotebookClient(
        notebook,
        timeout=SECONDS,
        kernel_name="python3",
        record_timing=False,
        resources={"metadata": {"path": str(folder)}},
    ).execute(env=environment)
    return notebook


def main(names: list[str]) -> None:
    """Run the notebooks of these names, or all, and write them with their outputs."""
    for path in sorted(FOLDER.glob("*.ipynb")):
        if not names or path.stem in names:
            with tempfile.TemporaryDirectory() as folder:
                nbformat.write(run(path, Path(folder)), path)
            print(path.name)


if __name__ == "__main__":
    main(sys.argv[1:])
