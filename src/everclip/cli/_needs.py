"""Compare what a config needs with what this machine has: data, weights, memory of the device, disk, hours."""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from everclip.cli._finding import GIB, Finding, room
from everclip.config import Config
from everclip.data.formats.download import home
from everclip.data.formats.hub import offline
from everclip.data.sources import Source
from everclip.errors import UserError
from everclip.models.catalogue import Costs, costs
from everclip.system.machine import free_memory
from everclip.training import estimate
from everclip.training.disk import nearest
from everclip.training.estimate import Sizes

SECONDS = 3.0


def needs(config: Config) -> Iterator[Finding]:
    """Yield the findings about a resolved config, in the order printed."""
    from everclip.training import restore  # imports torch

    sizes, found = data_there(config)
    yield found
    yield weights_there(config)
    if config.trackers:
        yield trackers_there(config)
    model = costs(config.model, config.image_size)
    try:
        device = restore.device(config.device)
    except UserError as error:
        yield Finding("device", "fail", str(error))
        return
    if sizes is None or model is None:
        why = "the sizes of the data" if sizes is None else f"what {config.model} computes"
        yield Finding("estimate", "warn", f"memory, disk and hours are not known, nor {why}")
        return
    yield device_memory(config, model, sizes, _memory_of(device))
    yield from cache_memory(config, sizes)
    yield from disk(config, model, sizes)
    yield hours(config, model, sizes, device)


# Data ---------------------------------------------------------------------------------------------------------------


def data_there(config: Config) -> tuple[Sizes | None, Finding]:
    """Return the tasks' sizes (read or as published), and whether the data are present."""
    from everclip import data

    try:
        source, argument = data.source(config.data, config.source.options)
        missing = source.missing(argument)
        if not missing:
            with offline():
                return _planned(config)
    except UserError as error:
        return _published(config), Finding("data", "fail", str(error))
    more = f", and {len(missing) - 1} more" if len(missing) > 1 else ""
    return _published(config), _downloadable(source, missing[0] + more)


def _published(config: Config) -> Sizes | None:
    try:
        return estimate.published(config)
    except UserError:  # said already
        return None


def _planned(config: Config) -> tuple[Sizes, Finding]:
    """Plan the tasks of data that are present. Raises UserError where the config does not fit them."""
    from everclip.training.plan import Plan

    plan = Plan.of(config)
    sizes = plan.sizes()
    tasks = f"{len(plan.tasks)} task{'s' * (len(plan.tasks) > 1)} of {sizes.seen[-1]} classes"
    text = f"{config.data}: {sum(sizes.train):,} training and {sum(sizes.test):,} test images, {tasks}"
    return sizes, Finding("data", "ok", text)


def _downloadable(source: Source, line: str) -> Finding:
    files = source.remotes()
    address = files[0].url if files else source.hub()
    if not address:
        return Finding("data", "fail", line)
    if _answers(address):
        size = sum(file.size for file in files)
        return Finding("data", "warn", line, f"up to {size / 1e9:.1f} GB will be downloaded" if files else "")
    return Finding("data", "fail", line, f"{address} does not answer from here")


def _answers(url: str) -> bool:
    try:
        urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=SECONDS).close()
    except urllib.error.HTTPError as error:
        error.close()
        return error.code < 400
    except OSError:
        return False
    return True


# Weights and memory -------------------------------------------------------------------------------------------------


def weights_there(config: Config) -> Finding:
    """Check whether the model's weights are on this machine or can be downloaded."""
    from everclip.models import weights

    try:
        place = weights.find(config.model)
    except UserError as error:
        return Finding("weights", "fail", str(error))
    state = {"here": "ok", "hub": "warn", "none": "fail"}[place.state]
    return Finding("weights", state, f"{config.model}: {place.text}", place.remedy)  # pyright: ignore[reportArgumentType]


def trackers_there(config: Config) -> Finding:
    """Return whether the trackers that a config names are installed and may be imported."""
    from everclip import trackers

    try:
        trackers.start(config, Path(config.out or "runs"))
    except UserError as error:
        return Finding("trackers", "fail", str(error))
    return Finding("trackers", "ok", ", ".join(config.trackers))


def _memory_of(device: str) -> tuple[str, int | None]:
    """Return a device's name in words, and its memory in bytes where known."""
    import torch

    if device.startswith("cuda"):
        card = torch.cuda.get_device_properties(torch.device(device))
        return card.name, card.total_memory
    return ("the processor", free_memory()) if device == "cpu" else (device, None)


def device_memory(config: Config, model: Costs, sizes: Sizes, device: tuple[str, int | None]) -> Finding:
    """Compare the memory that training needs with the device's."""
    name, there = device
    wanted = estimate.device_bytes(config, model, sizes)
    batch = config.train.batch_size
    text = f"about {wanted / GIB:.1f} GiB for batches of {batch}"
    if there is None:
        return Finding("device", "warn", f"{text}; the memory of {name} is not known")
    text += f", {there / GIB:.1f} GiB on {name}"
    if wanted <= 0.9 * there:
        return Finding("device", "ok", text)
    while batch > 1 and estimate.device_bytes(config, model, sizes, batch) > 0.9 * there:
        batch //= 2
    fits = estimate.device_bytes(config, model, sizes, batch) <= 0.9 * there
    remedy = f"use train.batch_size={batch}" if fits else "use a smaller model, or a GPU with more memory"
    return Finding("device", "warn" if wanted <= there else "fail", text, remedy)


def cache_memory(config: Config, sizes: Sizes) -> Iterator[Finding]:
    """Check whether decoded pictures that are kept fit into main memory."""
    from everclip.models.catalogue import catalogue

    sides = {info.name: info.image_size for info in catalogue()}
    side = config.image_size or sides.get(config.model, 224)
    wanted = (sum(sizes.train) + sum(sizes.test)) * 3 * side**2
    there = free_memory()
    if wanted > config.loader.cache_mb << 20 or there is None:
        return
    text = f"decoded pictures take {wanted / GIB:.1f} GiB of {there / GIB:.1f} GiB free"
    if wanted < 0.8 * there:
        yield Finding("pictures", "ok", text)
    else:
        yield Finding("pictures", "warn", text, "use loader.cache_mb=0 to decode them each time")


# Disk and time ------------------------------------------------------------------------------------------------------


def disk(config: Config, model: Costs, sizes: Sizes) -> Iterator[Finding]:
    """Check the free disk space for the run and for data and weights still to be downloaded."""
    from everclip import data

    wanted = [("the run", Path(config.out or "runs"), estimate.disk_bytes(config, model, len(sizes.train)))]
    source, argument = data.source(config.data, config.source.options)
    files = source.remotes()
    if files and source.missing(argument):
        # unpacking takes about an archive's size, and the archive is removed before the next one comes
        size = sum(file.size for file in files) + max(file.size for file in files)
        wanted.append(("the data", home(config.data.partition(":")[0], argument), size))
    by_disk: dict[int, list[tuple[str, Path, float]]] = {}
    for what, place, size in wanted:
        folder = nearest(place.expanduser().absolute())
        by_disk.setdefault(folder.stat().st_dev, []).append((what, folder, size))
    for parts in by_disk.values():
        yield room(parts[0][1], sum(part[2] for part in parts), " and ".join(part[0] for part in parts))


def hours(config: Config, model: Costs, sizes: Sizes, device: str) -> Finding:
    """Estimate how long the run may take, from the rate of matrix products measured here."""
    from everclip.training import pace  # imports torch

    if config.smoke:
        return Finding("time", "ok", "a trial run")
    try:
        rate = pace.products(device, config.train.precision)
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        return Finding("time", "fail", f"{device} cannot compute ({reason})", "use device=cpu")
    share = pace.share(model, device)
    try:
        operations = pace.work(config, sizes).operations(model, config)
    except UserError as error:  # such as nothing to keep where cache.trunk=on
        return Finding("time", "fail", str(error))
    seconds = pace.seconds(config, sizes, model, pace.assumed(model, rate * share))
    text = (
        f"{estimate.duration(seconds)}: {estimate.amount(operations)} at {share:.0%} of the"
        f" {rate / 1e12:.2g} TFLOP/s that matrix products reach here, if pictures are decoded as fast"
    )
    if not estimate.counted(config):
        text += f"; {config.method.name} is counted as one pass per image"
    long = seconds > 7 * 24 * 3600
    return Finding("time", "warn" if long else "ok", text, "use a faster device" if long else "")
