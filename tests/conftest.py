from __future__ import annotations

import ctypes
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests import shapes

os.environ["HF_HUB_OFFLINE"] = "1"  # read when the hub's library is imported, which the lines below do
# For the processes that tests start: threads of several would wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from tests import vocabulary
from tests.pictures import domain_folder, image_folder
from tests.toy import toy_clip

shapes.install()  # no module above imports the package
vocabulary.read_once()

# A shell that starts tests in the background ignores these for its children, and so would the runs that tests stop.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
for name in ("COLUMNS", "LINES"):  # which a worker of pytest-xdist has, as if it had a terminal
    os.environ.pop(name, None)
torch.set_num_threads(1)  # tests run side by side on few cores; the models are tiny
# Every run commits its checkpoints to the disk, which took a third of the time; TMPDIR=/tmp uses the disk.
IN_MEMORY, ROOM = Path("/dev/shm"), 8 << 30
if "TMPDIR" not in os.environ and IN_MEMORY.is_dir() and shutil.disk_usage(IN_MEMORY).free > ROOM:
    os.environ["TMPDIR"] = str(IN_MEMORY)
    tempfile.tempdir = None  # asked for already, by what captures the output

LONGEST = (
    "tests/test_notebooks.py",
    "tests/distributed/test_every_method.py",
    "tests/faults/test_commits.py",
    "tests/test_pages.py",
    "tests/attacks/",
    "tests/test_examples.py",
    "tests/distributed/",
    "tests/sweep/",
    "tests/report/",
    "tests/faults/",
    "tests/index/test_embed.py",
    "tests/export/",
    "tests/models/test_lite.py",
)
"""Files and folders of tests that take long, the longest first."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what takes longest: of several processes none is left with a long test at the end."""

    def place(item: pytest.Item) -> int:
        return next((n for n, name in enumerate(LONGEST) if item.nodeid.startswith(name)), len(LONGEST))

    items.sort(key=place)


@pytest.fixture(autouse=True)
def _shapes_are_checked_again() -> None:
    shapes.calls.clear()


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Spec of a tiny open_clip model with random weights."""
    return f"local-dir:{toy_clip(tmp_path_factory.mktemp('model'))}"


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Spec of six classes with four training and two test pictures each."""
    return f"imagefolder:{image_folder(tmp_path_factory.mktemp('photos'), {'train': 4, 'test': 2})}"


@pytest.fixture(scope="session")
def domains(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Spec of three domains of three classes."""
    return f"domainfolder:{domain_folder(tmp_path_factory.mktemp('domains'))}"


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder of real pictures, where there is one."""
    root = os.environ.get("EVERCLIP_DATA")
    if not root:
        pytest.skip("EVERCLIP_DATA names no folder of real pictures")
    return Path(root)


@pytest.fixture
def unprivileged() -> Iterator[None]:
    """Permissions hold, also where tests run as root; skips where root cannot do without its rights."""
    if os.geteuid() != 0:
        yield
        return
    libc, bits = ctypes.CDLL(None), 0b110  # CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH
    head, rights = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    libc.capget(head, rights)
    fewer = (ctypes.c_uint32 * 6)(rights[0] & ~bits, *rights[1:])
    secure = libc.prctl(27)  # with the bit 4, SECBIT_NO_SETUID_FIXUP, access(2) does not restore them
    if libc.prctl(28, secure | 4) or libc.capset(head, fewer):
        pytest.skip("root cannot do without its rights here")
    yield
    libc.capset(head, rights)
    libc.prctl(28, secure)
