from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import torch

from tests import shapes

os.environ["HF_HUB_OFFLINE"] = "1"  # read when the hub's library is imported, which the lines below do

from tests.pictures import domain_folder, image_folder
from tests.toy import toy_clip

shapes.install()  # no module above imports the package

# A shell that starts tests in the background ignores these for its children, and so would the runs that tests stop.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
for name in ("COLUMNS", "LINES"):  # which a worker of pytest-xdist has, as if it had a terminal
    os.environ.pop(name, None)
torch.set_num_threads(1)  # tests run side by side on few cores; the models are tiny


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
