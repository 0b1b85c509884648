"""Decide how many runs to train in parallel, and which part of the machine each one gets."""

from __future__ import annotations

import os
from collections.abc import Sequence

from everclip.errors import UserError

MOST = 16
"""Largest default number of parallel runs on a CPU; with more cores each run gets more threads."""

Environment = dict[str, str]


def cores() -> int:
    """Return the processor cores that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not Linux
        return os.cpu_count() or 1


def gpus(devices: Sequence[str]) -> list[str]:
    """Return the names of the CUDA devices for runs with these values of ``device``; none unless all fit any GPU."""
    import torch

    if not set(devices) <= {"auto", "cuda"} or not torch.cuda.is_available():
        return []
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",") if visible else map(str, range(torch.cuda.device_count()))
    return [name.strip() for name in names][: torch.cuda.device_count()]


def accelerators(devices: Sequence[str]) -> set[str]:
    """Return those of the values of ``device`` that name one accelerator, such as cuda:1 or mps."""
    return set(devices) - {"auto", "cpu", "cuda"}


def slots(count: int, gpus: Sequence[str], jobs: int | None, threads: int | None) -> list[Environment]:
    """Return the environment variables of each parallel run.

    With GPUs, each run has one of them and a share of the cores. Without, each run has one thread, which gives the
    most runs per hour; there are as many runs as cores, up to ``MOST``.

    Args:
        count: cores.
        gpus: names of the CUDA devices.
        jobs, threads: as asked for; None: as above.

    Raises:
        UserError: ``jobs`` or ``threads`` is below 1.
    """
    for name, value in (("--jobs", jobs), ("--threads", threads)):
        if value is not None and value < 1:
            raise UserError(f"{name} is {value}: use a whole number from 1")
    if gpus:
        jobs = jobs or len(gpus)
        threads = threads or max(1, count // jobs)
    elif jobs is None:
        threads = threads or -(-count // MOST)
        jobs = max(1, count // threads)
    else:
        threads = threads or 1
    each = str(threads)
    found: list[Environment] = [{"OMP_NUM_THREADS": each, "MKL_NUM_THREADS": each} for _ in range(jobs)]
    for index, slot in enumerate(found if gpus else []):
        slot["CUDA_VISIBLE_DEVICES"] = gpus[index % len(gpus)]
    return found
