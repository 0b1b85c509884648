"""Derive independent random streams from one seed.

Class order, memory, data order and initialisation each have their own stream, so that changing one never shifts the
others, and so that a step's randomness depends on nothing but (seed, stage, phase, epoch, step).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from threading import Lock

import numpy as np

_lock, _inside, _kept = Lock(), 0, ExitStack()


def hash64(*parts: object) -> int:
    """Return a stable 63-bit hash of the parts' text: the same on every machine, Python and run."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def generator(seed: int, stream: str, *key: int) -> np.random.Generator:
    """Return the generator of one stream ("order", "augment", "init", ...) at one place (stage, epoch, step, ...)."""
    return np.random.default_rng(np.random.SeedSequence([seed, hash64(stream), *key]))


@contextmanager
def unchanged() -> Iterator[None]:
    """Restore torch's random state after the block: it is the caller's, and all threads share it. Where several threads
    are in such blocks at once, the last to leave restores the state from before the first."""
    import torch

    global _inside
    with _lock:
        if not _inside:
            devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []
            _kept.enter_context(torch.random.fork_rng(devices))
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if not _inside:
                _kept.close()
