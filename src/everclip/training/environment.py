"""Describe what a run is carried out with: versions, the machine, its memory."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from typing import Any

import torch

from everclip.distributed import collectives
from everclip.system.machine import peak_resident

_PACKAGES = ("torch", "torchvision", "open_clip_torch", "timm", "transformers", "numpy", "pillow", "everclip")


def environment(device: torch.device | str) -> dict[str, Any]:
    """Return versions and machine, as far as they can change a result: bits differ between thread counts."""
    versions: dict[str, str] = {}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "absent"
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "processes": collectives.size(),
        "gpu": torch.cuda.get_device_name(device) if torch.device(device).type == "cuda" else None,
        "packages": versions,
    }


def peak_memory(device: torch.device) -> int:
    """Return the peak memory in bytes: of a GPU's allocator, else the process's resident size."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else peak_resident()
