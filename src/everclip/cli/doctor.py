"""everclip doctor: check whether this machine has everything that a run needs."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from everclip._version import __version__
from everclip.cli._finding import GIB, Finding, room
from everclip.cli._options import Json
from everclip.cli._output import print_columns, print_json
from everclip.errors import UserError
from everclip.sweep.slots import cores
from everclip.system.machine import free_memory
from everclip.training.disk import nearest

if TYPE_CHECKING:
    from everclip.config import Config


def doctor(*tokens: str, config: str | None = None, json: Json = False) -> int:
    """Check the installation and the machine for the offline default or a config (exit code 1 if it cannot run).

    Args:
        tokens: KEY=VALUE overrides of the config.
        config: A shipped config's name or a TOML file; its data, weights, memory, disk and hours are checked.
    """
    wanted = _config(config, tokens)
    findings = examine(wanted)
    failed = any(finding.state == "fail" for finding in findings)
    if json:
        print_json([asdict(finding) for finding in findings])
        return 1 if failed else 0
    print_columns([(f.state, f.name, f.text + (f" - {f.remedy}" if f.remedy else "")) for f in findings])
    what = "The offline default" if wanted is None else f"The config {config or 'given'}"
    command = " ".join(filter(None, ("everclip train", config, *tokens)))
    print(f"\n{what} " + ("cannot run: see the lines that fail." if failed else f'can run: use "{command}".'))
    return 1 if failed else 0


def _config(name: str | None, tokens: tuple[str, ...]) -> Config | None:
    """Return the resolved config asked about, if any. Raises UserError where it is wrong."""
    if name is None and not tokens:
        return None
    from everclip.config import load_config
    from everclip.runs.resolve import resolve

    return resolve(load_config([*([name] if name else []), *tokens]))


def examine(config: Config | None = None) -> list[Finding]:
    """Return all findings in the order printed, about a resolved config or the offline default."""
    checks: list[Callable[[], list[Finding]]] = [_python, _packages, _processor]
    if config is None:
        checks += [_memory, _disk, _cache, _lite, _emoji, _data, _hub]
        return [finding for check in checks for finding in check()]
    from everclip.cli._needs import needs

    checks += [_cache]
    checks += [_lite] if config.model == "lite" else [_hub]
    checks += [_emoji] if config.data == "emoji" else []
    return [*(finding for check in checks for finding in check()), *needs(config)]


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
    found = [Finding("processor", "ok", f"{cores()} cores, {torch.get_num_threads()} threads")]
    if torch.cuda.is_available():
        card = torch.cuda.get_device_properties(0)
        text = f"{torch.cuda.device_count()} x {card.name}, {card.total_memory / GIB:.0f} GiB each"
        return [*found, Finding("gpu", "ok", text)]
    if torch.backends.mps.is_available():
        return [*found, Finding("gpu", "ok", "Apple: device=mps uses it")]
    return [*found, Finding("gpu", "ok", "none, so device=auto computes on the processor")]


def _memory() -> list[Finding]:
    free = free_memory()
    if free is None:
        return [Finding("memory", "ok", "not known on this system; the default needs about 2 GiB")]
    text = f"{free / GIB:.1f} GiB free"
    if free < 2 * GIB:
        return [Finding("memory", "warn", text, "close other programs, or use loader.cache_mb=256")]
    return [Finding("memory", "ok", text)]


def _disk() -> list[Finding]:
    return [room(nearest(Path("runs").resolve()), GIB)]  # a run writes to runs/, which may not exist yet


def _cache() -> list[Finding]:
    from everclip.system import cache_folder

    try:
        return [Finding("cache", "ok", str(cache_folder.folder()))]
    except UserError as error:
        return [Finding("cache", "fail", str(error))]


def _lite() -> list[Finding]:
    try:
        from everclip.models import lite
        from everclip.system import cache_folder
        from everclip.system.checkpoint import MANIFEST

        lite._sources()
        problem = cache_folder.problem(lite.CACHED)
    except ImportError as error:
        return [Finding("lite", "fail", f"cannot be imported ({error})", 'pip install "everclip[lite]"')]
    except UserError as error:
        return [Finding("lite", "fail", str(error))]
    place = cache_folder.folder() / lite.CACHED
    if problem and not (place / MANIFEST).is_file():
        return [Finding("lite", "ok", "built by an earlier version; the next use builds it again")]
    if problem:
        return [Finding("lite", "warn", f"{place} is damaged ({problem})", "the next use builds it again")]
    state = "built on first use" if problem is None else "built and intact"
    return [Finding("lite", "ok", f"files as expected, {state}")]


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
        return [Finding("data", "ok", "EVERCLIP_DATA is not set: give data sets by path")]
    try:
        names = sorted(entry.name for entry in Path(root).expanduser().iterdir() if entry.is_dir())
    except OSError as error:
        remedy = "set EVERCLIP_DATA to the folder of your data sets"
        return [Finding("data", "warn", f"EVERCLIP_DATA={root} cannot be read ({error.strerror})", remedy)]
    return [Finding("data", "ok", f"EVERCLIP_DATA={root} holds {', '.join(names) or 'no folders'}")]


def _hub() -> list[Finding]:
    flags = [f"{name}={os.environ[name]}" for name in ("HF_HOME", "HF_HUB_OFFLINE") if name in os.environ]
    return [Finding("hub", "ok", ", ".join(flags) or "HF_HOME and HF_HUB_OFFLINE are not set")]
