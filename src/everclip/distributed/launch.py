"""Connect the processes of a run under torchrun, and end them together."""

from __future__ import annotations

import logging
import os
import signal
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from everclip.distributed import collectives
from everclip.errors import RunError, UserError
from everclip.system.signals import PREEMPTED, Stopped


def started() -> bool:
    """Return whether torchrun has started several processes."""
    return "TORCHELASTIC_RUN_ID" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1


def restarts() -> bool:
    """Return whether torchrun starts the processes again where one ends."""
    return int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")) > 0


@contextmanager
def joined(device: str) -> Iterator[None]:
    """While open, join the processes that torchrun has started into one run.

    Of the errors that end them only one is raised, in its process; the others exit with their error's code, silently.

    Args:
        device: the config's.

    Raises:
        UserError: there are fewer GPUs than processes on this machine.
    """
    if not started():
        yield
        return
    with collectives.answered():
        store, number, count = next(rendezvous("env://", timeout=collectives.PATIENCE))
        store = _fresh(store, number, count)
    if number > 0:
        logging.getLogger("everclip").setLevel(logging.ERROR)
    with _alone(store):
        with collectives.answered():
            dist.init_process_group(
                _backend(device), store=store, rank=number, world_size=count, timeout=collectives.TIMEOUT
            )
            collectives.patient.append(dist.new_group(backend="gloo", timeout=collectives.PATIENCE))
        yield
    collectives.patient.clear()
    dist.destroy_process_group()


def _backend(device: str) -> str:
    """Return the backends: gloo, and NCCL for what is on the GPUs, of which each process takes its own."""
    if device.startswith("cuda:"):
        raise UserError(f"device={device}, but each process takes a GPU of its own: use device=cuda")
    if device not in ("auto", "cuda") or not torch.cuda.is_available():
        return "gloo"
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if local >= torch.cuda.device_count():
        raise UserError(
            f"there are {torch.cuda.device_count()} GPUs and more processes:"
            f" use torchrun --nproc-per-node={torch.cuda.device_count()}, or device=cpu"
        )
    torch.cuda.set_device(local)
    return "cpu:gloo,cuda:nccl"


def _fresh(store: Any, number: int, count: int) -> Any:
    """Return the part of torchrun's store that only these processes know.

    The store may outlive a restart, with the addresses of processes that are gone. So each process says a word that
    nobody has said before, and the first one answers every word it finds until all have heard it.
    """
    word = uuid.uuid4().hex
    if number > 0:
        store.set(f"word of {number}", word)
        name = store.get(f"answer to {word}").decode()  # waits for it
        store.set(f"{name} has {number}", "")
        return PrefixStore(name, store)
    end = time.monotonic() + collectives.PATIENCE.total_seconds()
    missing = set(range(1, count))
    while missing:
        for other in [*missing]:
            if store.check([f"word of {other}"]):
                store.set(f"answer to {store.get(f'word of {other}').decode()}", word)
            if store.check([f"{word} has {other}"]):
                missing.remove(other)
        if time.monotonic() > end:
            raise RuntimeError("not all processes have started")
        time.sleep(0.02)
    return PrefixStore(word, store)


@contextmanager
def ending() -> Iterator[None]:
    """Ignore SIGTERM for the rest of the process once something ends this block early, so that its run is closed.

    torchrun sends it as soon as another process of the run has ended, and kills what is still there after 30 s.
    """
    try:
        yield
    except BaseException:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise


@contextmanager
def _alone(store: Any) -> Iterator[None]:
    """Let one process report what ends them all: the first that has something to report.

    ``store`` is torchrun's: it outlives the processes.
    """
    try:
        yield
    except (UserError, RunError, Stopped) as error:
        if _spoken(store):
            codes = {UserError: 2, RunError: 1, Stopped: PREEMPTED}
            raise SystemExit(next(code for kind, code in codes.items() if isinstance(error, kind))) from None
        raise
    except Exception:
        _spoken(store)  # a fault is always shown; the others need not say that this process has ended
        raise


def _spoken(store: Any) -> bool:
    """Return whether another process has already said why the run ends."""
    with suppress(RuntimeError):  # the store is gone with the machine that had it
        return store.add("why the run ends", 1) > 1
    return False
