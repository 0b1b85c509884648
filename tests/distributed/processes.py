"""Starting several processes of one run, as torchrun would."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from torch._C._distributed_c10d import TCPStore

ROOT = Path(__file__).parents[2]
_STORES: WeakKeyDictionary[subprocess.Popen[str], TCPStore] = WeakKeyDictionary()
"""The store of each run, kept as long as its first process is known."""


def environment(**more: str) -> dict[str, str]:
    """The environment of a process: one thread, the package and its tests at hand."""
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path, "HF_HUB_OFFLINE": "1"} | more


def start(count: int, command: list[str], **options: Any) -> list[subprocess.Popen[str]]:
    """``python COMMAND`` in ``count`` processes that find each other through a store that outlives them."""
    store = TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    shared = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(store.port), "WORLD_SIZE": str(count)}
    shared |= {"TORCHELASTIC_RUN_ID": "test", "TORCHELASTIC_USE_AGENT_STORE": "True"}
    started = [
        subprocess.Popen(
            [sys.executable, *command],
            env=environment(RANK=str(rank), LOCAL_RANK=str(rank), **shared),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **options,
        )
        for rank in range(count)
    ]
    _STORES[started[0]] = store
    return started


def finish(processes: list[subprocess.Popen[str]], seconds: float = 400) -> list[tuple[int, str, str]]:
    """Exit code, stdout and stderr of each process. None is left behind."""
    try:
        found = [process.communicate(timeout=seconds) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, *texts) for process, texts in zip(processes, found, strict=True)]


def work(count: int, *jobs: list[str]) -> list[Any]:
    """What the first process prints of each job of ``tests.distributed.jobs``, JSON; all must end well."""
    ended = finish(start(count, ["-m", "tests.distributed.jobs", json.dumps(jobs)]))
    assert [code for code, _, _ in ended] == [0] * count, "\n".join(
        said + errors for _, said, errors in ended
    )
    return [json.loads(line) for line in ended[0][1].splitlines()]
