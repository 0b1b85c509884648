"""everclip doctor: is everything there that a run needs?"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from everclip import __version__
from everclip.cli._output import print_columns, print_json
from everclip.errors import UserError

GIB = 2**30


@dataclass(frozen=True)
class Finding:
    """One line of the doctor; ``fail`` is what the offline default cannot run without."""

    name: str
    state: Literal["ok", "warn", "fail"]
    text: str
    remedy: str = ""


def doctor(*, json: bool = False) -> int:
    """Check the installation, the machine and the offline default; 1 if the default cannot run, else 0.

    Parameters
    ----------
    json
        Print JSON.
    """
    findings = examine()
    failed = any(finding.state == "fail" for finding in findings)
    if json:
        print_json([asdict(finding) for finding in findings])
    else:
        print_columns([(f.state, f.name, f.text + (f" - {f.remedy}" if f.remedy else "")) for f in findings])
        what = "cannot run: see the lines that fail" if failed else 'can run: write "everclip train"'
        print(f"\nThe offline default {what}.")
    return 1 if failed else 0


def examine() -> list[Finding]:
    """All findings, in the order printed."""
    checks: list[Callable[[], list[Finding]]] = [
        _python, _packages, _processor, _memory, _disk, _cache, _lite, _emoji, _data, _hub,
    ]  # fmt: skip
    return [finding for check in checks for finding in check()]


def _python() -> list[Finding]:
    text = f"{platform.python_version()}, everclip {__version__}, {platform.platform(terse=True)}"
    return [Finding("python", "ok", text)]


def _packages() -> list[Finding]:
    found = []
    for name in ("torch", "torchvision", "open_clip_torch"):
        try:
            found.append(Finding(name, "ok", importlib.metadata.version(name)))
        except importlib.metadata.PackageNotFoundError:
            found.append(Finding(name, "fail", "not installed", f"pip install {name}"))
    return found


def _processor() -> list[Finding]:
    try:
        import torch
    except ImportError:  # said by _packages, with its remedy
        return []
    # Only Linux says which cores a process may use.
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count()
    found = [Finding("processor", "ok", f"{cores} cores, {torch.get_num_threads()} threads")]
    if torch.cuda.is_available():
        card = torch.cuda.get_device_properties(0)
        text = f"{torch.cuda.device_count()} x {card.name}, {card.total_memory / GIB:.0f} GiB each"
        return [*found, Finding("gpu", "ok", text)]
    if torch.backends.mps.is_available():
        return [*found, Finding("gpu", "ok", "Apple: write device=mps to use it")]
    return [*found, Finding("gpu", "ok", "none, so device=auto computes on the processor")]


def _memory() -> list[Finding]:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        kib = next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return [Finding("memory", "ok", "free memory unknown on this system; the default needs about 2 GiB")]
    text = f"{kib * 1024 / GIB:.1f} GiB free"
    if kib * 1024 < 2 * GIB:
        return [Finding("memory", "warn", text, "close other programs, or write loader.cache_mb=256")]
    return [Finding("memory", "ok", text)]


def _disk() -> list[Finding]:
    # A run writes to runs/, which may not exist yet.
    folder = Path("runs").resolve()
    folder = folder if folder.is_dir() else folder.parent
    if not os.access(folder, os.W_OK):
        return [Finding("disk", "fail", f"{folder} is not writable", "change folder, or write out=PATH")]
    free = shutil.disk_usage(folder).free
    text = f"{free / GIB:.1f} GiB free in {folder}"
    if free < GIB:
        return [
            Finding("disk", "fail", text, "free 1 GiB for checkpoints, or write out=PATH on another disk")
        ]
    return [Finding("disk", "ok", text)]


def _cache() -> list[Finding]:
    from everclip.models import _cache

    try:
        return [Finding("cache", "ok", str(_cache.folder()))]
    except UserError as error:
        return [Finding("cache", "fail", str(error))]


def _lite() -> list[Finding]:
    try:
        from everclip.models import _cache, lite

        lite._sources()
        built = (_cache.folder() / f"{lite.LITE}-{lite.RECIPE}").is_dir()
    except ImportError as error:
        return [Finding("lite", "fail", f"cannot be imported ({error})", 'pip install "everclip[lite]"')]
    except UserError as error:
        return [Finding("lite", "fail", str(error))]
    return [Finding("lite", "ok", f"files as expected, {'built' if built else 'built on first use'}")]


def _emoji() -> list[Finding]:
    from everclip.data.sources import emoji

    try:
        for name in ("class-incremental.csv", "domain-incremental.csv", "pictures.zip"):
            emoji.verified(name)
    except (OSError, UserError) as error:
        return [Finding("emoji", "fail", str(error), "reinstall everclip")]
    return [Finding("emoji", "ok", "pictures as expected")]


def _data() -> list[Finding]:
    root = os.environ.get("EVERCLIP_DATA")
    if not root:
        return [Finding("data", "ok", "EVERCLIP_DATA is not set: data sets are given by path")]
    try:
        names = sorted(entry.name for entry in Path(root).expanduser().iterdir() if entry.is_dir())
    except OSError as error:
        remedy = "set EVERCLIP_DATA to the folder of your data sets"
        return [Finding("data", "warn", f"EVERCLIP_DATA={root} cannot be read ({error.strerror})", remedy)]
    return [Finding("data", "ok", f"EVERCLIP_DATA={root} holds {', '.join(names) or 'no folders'}")]


def _hub() -> list[Finding]:
    flags = [f"{name}={os.environ[name]}" for name in ("HF_HOME", "HF_HUB_OFFLINE") if name in os.environ]
    return [Finding("hub", "ok", ", ".join(flags) or "HF_HOME and HF_HUB_OFFLINE are not set")]
