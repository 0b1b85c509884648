"""Load a Clip from a model spec: ``lite``, ``NAME:TAG``, ``hf-hub:org/repo``, ``local-dir:/path``, or a run folder."""

import http.client
import json
import logging
import math
import socket
import urllib.error
import urllib.request
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from everclip.errors import UserError, suggest
from everclip.models import bounded, lite, names, sizes, vectors, vetted
from everclip.models.catalogue import FEATURES, LITE
from everclip.models.clip import CENTER, Clip
from everclip.models.foreign import open_clip
from everclip.models.lite_towers import folder as lites
from everclip.models.savable import CONFIG_FILE, WEIGHTS_FILE
from everclip.models.towers import input_side
from everclip.models.unset import Unset
from everclip.system.checkpoint import MANIFEST, Damaged, Store, verify
from everclip.system.machine import collect_as_usual

_HUB, _LOCAL = "hf-hub:", "local-dir:"
CARD_FILE = "everclip.json"
"""File of folders that everclip wrote (runs/card.py)."""
_PROBE_SECONDS = 3.0
_REMEDY = (
    "use local-dir:FOLDER with a downloaded copy, set HF_HOME to a cache that holds it "
    "(with HF_HUB_OFFLINE=1), or model=lite"
)
_log = logging.getLogger("everclip")


def load(spec: str, image_size: int | None = None, device: str | torch.device = "cpu") -> Clip:
    """Return the model named ``spec``, in fp32 on ``device``; the global random state is left as it was.

    Args:
        spec: ``lite``; ``NAME:TAG`` (open_clip's names); ``hf-hub:org/repo``; ``local-dir:/path`` or the path alone; a
            run directory, whose newest checkpoint is loaded; or ``features:FILE.npz`` and ``features:WIDTH``.
        image_size: side of the input in pixels; default: the model's own. Position embeddings of ViTs and the
            attention pool of ResNets are interpolated, other convolutional towers take any size.
        device: where the parameters go.

    Raises:
        UserError: unknown name or tag, no such folder, or weights that cannot be had.
    """
    if spec.startswith(FEATURES):
        return vectors.load(spec, image_size).to(device)
    with torch.random.fork_rng(devices=[]):
        source, options = _resolve(spec)
        clip = _create(spec, source, options, image_size).to(device)
    collect_as_usual()  # what is needed of other packages is imported now
    return clip


def check(spec: str) -> None:
    """Raise UserError where ``spec`` names no model; nothing is built, loaded or looked for on a hub."""
    if spec != LITE and not spec.startswith(FEATURES):
        _resolve(spec)


def _resolve(spec: str) -> tuple[str, dict[str, Any]]:
    """Return what open_clip calls the model (a name or a schema with a path), and the options of ``create_model``."""
    if spec == LITE:
        return f"{_LOCAL}{lite.folder()}", {}
    if spec.startswith(_HUB):
        return spec, {}
    path = Path(spec.removeprefix(_LOCAL)).expanduser()
    if spec.startswith(_LOCAL) or path.is_dir():
        return f"{_LOCAL}{_model_folder(path)}", {}
    return _named(spec)


def _model_folder(path: Path) -> Path:
    """Return ``path`` itself if it holds a model, else the newest checkpoint of a finished task of the run directory
    ``path``.

    A folder with a manifest must be exactly what was written. One without, as everclip and open_clip save models, holds
    nothing that loading could run.
    """
    if (path / CONFIG_FILE).is_file():
        bounded.check_files(path, CONFIG_FILE)
        if (path / MANIFEST).is_file():
            try:
                verify(path)
            except Damaged as error:
                raise UserError(f"model: the folder {path} is damaged ({error}): use another copy") from None
        return path
    store = Store(path / "checkpoints", 1)
    newest = store.newest_task()
    if newest is not None:
        bounded.check_files(store.folder(newest), CONFIG_FILE)
        return store.folder(newest)
    what = f"holds no {CONFIG_FILE} and no checkpoint" if path.is_dir() else "does not exist"
    raise UserError(f"model: the folder {path} {what}; give the folder of a saved model or of a run")


def _named(spec: str) -> tuple[str, dict[str, Any]]:
    """Check ``NAME:TAG`` against open_clip's lists, and take the activation that the weights were trained with."""
    name, _, tag = spec.partition(":")
    name = name.replace("/", "-")  # open_clip accepts OpenAI's ViT-B/16 as well
    if name not in open_clip.list_models():
        folder = "" if ":" in spec or "/" in spec else f"; there is no folder {spec} either"
        raise UserError(f"{names.unknown(spec)}{folder}")
    tags = open_clip.list_pretrained_tags_by_model(name)
    if not tag:
        known = "one of " + ", ".join(tags) if tags else "(open_clip has none for it; choose another model)"
        raise UserError(f'model "{name}" needs a tag of weights: use {name}:TAG with TAG {known}')
    if tag not in tags:
        raise UserError(f'model "{name}" has no weights "{tag}"{suggest(tag, tags)}')
    config = open_clip.get_model_config(name) or {}
    quick_gelu = bool(config.get("quick_gelu") or open_clip.get_pretrained_cfg(name, tag).get("quick_gelu"))
    if quick_gelu != bool(config.get("quick_gelu")):
        _log.warning('model "%s": these weights were trained with QuickGELU, so QuickGELU is used', spec)
    return name, {"pretrained": tag, "quick_gelu": quick_gelu}


def _create(spec: str, source: str, options: dict[str, Any], image_size: int | None) -> Clip:
    local = source.startswith(_LOCAL)
    no_network = "" if local else _no_network()
    try:
        if local and (found := _lites(spec, source.removeprefix(_LOCAL), image_size)) is not None:
            return found
        _ = open_clip.create_model  # imported before warnings are silenced, so that its filters stay

        with _quiet(), _offline(local or bool(no_network)):
            return _assemble(spec, source, options, image_size)
    except UserError:
        raise
    except ImportError as error:
        raise UserError(f'model "{spec}" needs more ({_line(error)}): pip install transformers') from error
    except Exception as error:  # files that others wrote make the libraries raise anything
        if local:
            raise UserError(
                f'model "{spec}" cannot be loaded from {source.removeprefix(_LOCAL)}: {_line(error)};'
                " give the folder of another copy"
            ) from error
        reason = no_network if no_network and not _is_pickle(error) else _line(error)
        raise UserError(f'model "{spec}": {reason} (tried {_tried(source, options)}); {_REMEDY}') from error


def _lites(spec: str, folder: str, image_size: int | None) -> Clip | None:
    """Return the model of a folder of ``lite``'s architecture; None for any other."""
    found = lites.read(Path(folder))
    if found is None:
        return None
    model, model_cfg, tokenizer = found
    if image_size is not None:
        model.visual.image_size = (image_size, image_size)
        model_cfg["vision_cfg"]["image_size"] = image_size
    return _centered(Clip(model, model_cfg, tokenizer, spec), folder)


def _assemble(spec: str, source: str, options: dict[str, Any], image_size: int | None) -> Clip:
    model_cfg: Any = open_clip.get_model_config(source)
    where, folder = f'model "{spec}"', source.removeprefix(_LOCAL) if source.startswith(_LOCAL) else None
    if folder is not None and vectors.KEY in model_cfg:
        return _centered(vectors.of_folder(Path(folder), model_cfg, spec), folder)
    vetted.check(model_cfg, where)
    if "quick_gelu" in options:
        model_cfg["quick_gelu"] = options["quick_gelu"]
    vision, text = model_cfg["vision_cfg"], model_cfg["text_cfg"]
    plain = "timm_model_name" not in vision and isinstance(vision.get("layers", 12), int)
    if image_size is not None and plain:
        options = {**options, "force_image_size": image_size}
    weights = _weights(source, folder)
    with vetted.text_tower(text, folder, where) as tower, Unset():
        if weights is not None:
            given = {key: value for key, value in options.items() if key != "force_image_size"}
            bounded.check(source, model_cfg, weights, {**given, **tower}, image_size)
        model: Any = open_clip.create_model(source, require_pretrained=True, **options, **tower)
    if image_size is not None and image_size != input_side(model.visual):
        sizes.allow(spec, model.visual, image_size)
        model.visual.image_size = (image_size, image_size)
    side = vision["image_size"] = input_side(model.visual)
    if model.visual.image_size not in (side, (side, side), [side, side]):
        sides = " x ".join(map(str, model.visual.image_size))
        raise UserError(f"{where} takes pictures of {sides} pixels: use a model of square ones")
    tokenizer = open_clip.get_tokenizer(source, **vetted.tokenizer(text, folder, where))
    return _centered(Clip(model, model_cfg, tokenizer, spec), folder)


def _weights(source: str, folder: str | None) -> Path | None:
    """Return the weights file of a model that is not open_clip's own; None for one that is. Raises ValueError."""
    if folder is None:
        hub = source.removeprefix(_HUB)
        return (
            Path(open_clip.pretrained.download_pretrained_from_hf(hub)) if source.startswith(_HUB) else None
        )
    own = Path(folder, WEIGHTS_FILE)
    if own.is_file() or Path(folder, CARD_FILE).exists():  # one of ours, which has other weight files too
        found: str | Path | None = own if own.is_file() else None
    else:
        found = open_clip.factory._find_checkpoint_in_dir(Path(folder))
    if found is None:
        raise ValueError(f"it has no {WEIGHTS_FILE}")
    return Path(found)


def _centered(clip: Clip, folder: str | None) -> Clip:
    """Take the mean of image features from a folder that has one. Raises ValueError where it is not a valid one."""
    mean = json.loads(Path(folder, CONFIG_FILE).read_text(encoding="utf-8")).get(CENTER) if folder else None
    if mean is None:
        return clip
    if not isinstance(mean, list) or not all(isinstance(x, float) and math.isfinite(x) for x in mean):
        raise ValueError(f"{CENTER} is not a list of numbers")
    with torch.inference_mode():  # the mean itself is an ordinary tensor, as training reads it
        width = clip.encode_image(clip.blank()).shape[1]
    if len(mean) != width or not torch.tensor(mean).isfinite().all():
        raise ValueError(f"{CENTER} is not {width} numbers that are finite in float32")
    clip.center_images(mean)
    return clip


def _tried(source: str, options: dict[str, Any]) -> str:
    """Name where the weights would have come from."""
    if source.startswith(_HUB):
        return source
    weights = open_clip.get_pretrained_cfg(source, options["pretrained"])
    return f"{_HUB}{weights['hf_hub']}".rstrip("/") if weights.get("hf_hub") else weights["url"]


def _no_network() -> str:
    """Return an empty text if the hub (or a proxy) answers once, else why it cannot be reached, within seconds."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        cache = constants.HF_HUB_CACHE
        return f"HF_HUB_OFFLINE is set and the cache {cache} does not hold it"
    hub = constants.ENDPOINT
    try:
        urllib.request.urlopen(urllib.request.Request(hub, method="HEAD"), timeout=_PROBE_SECONDS).close()
    except urllib.error.HTTPError:
        return ""  # an answer, if an unfriendly one
    except (
        OSError,
        ValueError,
        http.client.HTTPException,
    ) as error:  # URLError, time-outs; no address, no HTTP
        return f"its weights are not in the cache and {hub} cannot be reached ({_line(error)})"
    return ""


@contextmanager
def _offline(offline: bool) -> Iterator[None]:
    """Make the hub's client use only its cache: without a network it would retry for most of a minute."""
    from huggingface_hub import constants

    before, timeout = constants.HF_HUB_OFFLINE, socket.getdefaulttimeout()
    constants.HF_HUB_OFFLINE = before or offline
    if offline:
        socket.setdefaulttimeout(_PROBE_SECONDS)  # weights that open_clip fetches from a plain address
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before
        socket.setdefaulttimeout(timeout)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the libraries' logs and warnings while loading: a failure is reported in one error line of our own."""
    level, handler = logging.root.manager.disable, logging.NullHandler()
    logging.root.addHandler(handler)  # open_clip logs on the root logger, which would install a handler on it
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
        logging.root.removeHandler(handler)


def _is_pickle(error: Exception) -> bool:
    """Return whether torch refused weights that hold more than tensors; its message says how to run them anyway."""
    return type(error).__name__ == "UnpicklingError"


def _line(error: Exception) -> str:
    """Return an error's message as one short line."""
    if _is_pickle(error):
        return "its weights are a pickle that holds more than tensors: use a copy in safetensors"
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else text[:197] + "..."
