"""Harmless models, runs and pictures, and what an attacker makes of copies of them.

Every payload does the same: it writes a file, whose name it carries. A folder to attack is given to each ``plant``
function with the path of that file; what is harmless in itself stays as it was, so that it is the payload alone that
decides whether the file is written.
"""

from __future__ import annotations

import json
import shutil
import tomllib
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import tomli_w
import torch
from open_clip import CustomTextCLIP
from open_clip.tokenizer import HFTokenizer
from transformers import BertConfig, BertTokenizer

from everclip.models.clip import Clip
from everclip.system.checkpoint import MANIFEST, commit
from tests.toy import MODEL_CFG, toy_clip

CONFIG, TOKENIZER, TEXT = "open_clip_config.json", "tokenizer_config.json", "config.json"
PAYLOAD = """
from pathlib import Path
Path({marker!r}).write_text("the payload ran")
"""
PERSONAL = "stranger"
"""Beginning of the names of packages that an attacker has in reach of Python's path."""

Plant = Callable[[Path, Path], None]


def payload(file: Path, marker: Path, more: str = "") -> None:
    """Write a module that writes ``marker`` when it is imported."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(PAYLOAD.format(marker=str(marker)) + more)


def hugging(folder: Path) -> Path:
    """A tiny model with a Hugging Face text tower and tokenizer, as ``Clip.save`` writes it. Returns the folder."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "photo", "of", "red", "green", "."]
    parts = folder / "parts"
    parts.mkdir(parents=True)
    BertTokenizer(vocab={word: place for place, word in enumerate(words)}).save_pretrained(parts)
    sizes: dict[str, Any] = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
    }
    BertConfig(vocab_size=len(words), pad_token_id=0, **sizes).save_pretrained(parts)
    text = {
        "context_length": 16,
        "hf_model_name": "org/text",
        "hf_tokenizer_name": "org/text",
        "hf_model_pretrained": False,
        "hf_pooler_type": "mean_pooler",
        "hf_proj_type": "linear",
    }
    config = {"embed_dim": 16, "vision_cfg": dict(MODEL_CFG["vision_cfg"]), "text_cfg": text}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: Any = CustomTextCLIP(**{**config, "text_cfg": {**text, "hf_model_name": str(parts)}})
    model.visual.preprocess_cfg = {"size": 32, "mean": (0.5, 0.5, 0.5), "std": (0.3, 0.3, 0.3)}
    Clip(model, config, HFTokenizer(str(parts), context_length=16), "tiny").save(folder)
    shutil.rmtree(parts)
    return folder


def change(file: Path, **values: Any) -> None:
    """Set keys of a JSON file."""
    there = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(there | values))


def _text(folder: Path, **values: Any) -> None:
    config = json.loads((folder / CONFIG).read_text())
    config["model_cfg"]["text_cfg"] |= values
    (folder / CONFIG).write_text(json.dumps(config))


def seal(folder: Path) -> None:
    """Write the manifest of a checkpoint anew, where it has one: whoever can write a folder can do that too."""
    if not (folder / MANIFEST).exists():
        return
    with TemporaryDirectory() as scratch:
        copy = shutil.copytree(folder, Path(scratch, "copy"), ignore=shutil.ignore_patterns(MANIFEST))
        shutil.rmtree(folder)
        commit(folder, lambda new: shutil.copytree(copy, new, dirs_exist_ok=True))


# Models -------------------------------------------------------------------------------------------------------------

_CLASSES = """
from transformers import BertConfig, BertTokenizer

class Strange(BertConfig):
    model_type = "strange"

class StrangeTokenizer(BertTokenizer):
    pass
"""
_OWN = {"AutoTokenizer": ["strange.StrangeTokenizer", "strange.StrangeTokenizer"]}


def unasked(folder: Path, marker: Path) -> None:
    """A tokenizer of the folder's own, and a config of open_clip that says itself that it may run."""
    payload(folder / "strange.py", marker, _CLASSES)
    change(folder / TOKENIZER, auto_map=_OWN, tokenizer_class="StrangeTokenizer")
    _text(folder, tokenizer_kwargs={"trust_remote_code": True})


def tokenizer(folder: Path, marker: Path) -> None:
    """The same without the second: transformers asks the user, and whoever sits there says yes."""
    name = json.loads((folder / CONFIG).read_text())["model_cfg"]["text_cfg"]["hf_tokenizer_name"]
    with TemporaryDirectory() as scratch:
        shutil.copytree(toy_clip(Path(scratch)), folder, dirs_exist_ok=True)
    _text(folder, hf_tokenizer_name=name)
    payload(folder / "strange.py", marker, _CLASSES)
    change(folder / TOKENIZER, auto_map=_OWN, tokenizer_class="StrangeTokenizer")
    (folder / TEXT).write_text("{}")


def text_tower(folder: Path, marker: Path) -> None:
    """A text tower of the folder's own."""
    payload(folder / "strange.py", marker, _CLASSES)
    change(folder / TEXT, auto_map={"AutoConfig": "strange.Strange"}, model_type="strange")


def versioned(folder: Path, marker: Path) -> None:
    """The same, in a second config that the first leads to."""
    harmless = (folder / TEXT).read_text()
    text_tower(folder, marker)
    (folder / TEXT).rename(folder / "config.4.0.0.json")
    (folder / TEXT).write_text(harmless)
    change(folder / TEXT, configuration_files=["config.4.0.0.json"])


def tokenizer_class(folder: Path, marker: Path) -> None:
    """A class of transformers that is not a tokenizer, and reads an ``auto_map`` of another file."""
    payload(folder / "strange.py", marker, _CLASSES)
    change(folder / TOKENIZER, tokenizer_class="AutoFeatureExtractor")
    change(folder / "preprocessor_config.json", auto_map={"AutoFeatureExtractor": "strange.StrangeTokenizer"})


def elsewhere(folder: Path, marker: Path) -> None:
    """A text tower and a tokenizer in another folder, which has the code."""
    other = folder / "other"
    other.mkdir()
    for name in (TOKENIZER, TEXT, "tokenizer.json"):
        shutil.copyfile(folder / name, other / name)
    unasked(folder, marker)
    text_tower(other, marker)
    _text(folder, hf_model_name=str(other), hf_tokenizer_name=str(other))


def image_tower(folder: Path, marker: Path) -> None:
    """An image tower that timm is to find in another folder, with a text tower of the folder's own."""
    text_tower(folder, marker)
    config = json.loads((folder / CONFIG).read_text())
    config["model_cfg"]["vision_cfg"] = {"image_size": 32, "timm_model_name": f"local-dir:{folder}"}
    (folder / CONFIG).write_text(json.dumps(config))


class _Runs:
    """What a pickle writes a file with when it is read."""

    def __init__(self, marker: Path) -> None:
        self._marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.write_text, (self._marker, "the payload ran")


def pickled(folder: Path, marker: Path) -> None:
    """Weights that are a pickle with code."""
    for file in folder.glob("*.safetensors"):
        file.unlink()
    torch.save({"state_dict": _Runs(marker)}, folder / "open_clip_pytorch_model.bin")


MODELS: dict[str, Plant] = {
    "tokenizer, unasked": unasked,
    "tokenizer": tokenizer,
    "text tower": text_tower,
    "second config": versioned,
    "class of tokenizer": tokenizer_class,
    "another folder": elsewhere,
    "image tower": image_tower,
    "pickle": pickled,
}


# Names of modules ---------------------------------------------------------------------------------------------------


def _module(marker: Path, more: str = "") -> str:
    """A module beside the marker, which is on Python's path; its name."""
    name = f"{PERSONAL}_{marker.stem}"
    payload(marker.parent / name / "payload.py", marker, more)
    return f"{name}.payload"


def _configure(folder: Path, **values: Any) -> None:
    """Set keys of a run's config.toml, or of the card of a model folder."""
    file = folder / "config.toml"
    if file.exists():
        file.write_text(tomli_w.dumps(tomllib.loads(file.read_text()) | values))
    for card in [*folder.glob("checkpoints/*/everclip.json"), folder / "everclip.json"]:
        if card.exists():
            there = json.loads(card.read_text())
            change(card, settings=there["settings"] | values)
            seal(card.parent)


def method(folder: Path, marker: Path) -> None:
    """A method that is a module."""
    _configure(folder, method={"name": _module(marker)})


def inner_method(folder: Path, marker: Path) -> None:
    """A method within another one's options."""
    _configure(folder, method={"name": "wise_ft", "loss": _module(marker)})


def data(folder: Path, marker: Path) -> None:
    """A data source that is a module."""
    _configure(folder, data=f"{_module(marker)}:photos")


def joined_data(folder: Path, marker: Path) -> None:
    """A data source that is a module, one of two that are joined."""
    _configure(folder, data=f"joined:{_module(marker)}:photos+emoji")


def joined_options(folder: Path, marker: Path) -> None:
    """The same, in the options of the source."""
    _configure(folder, data="joined", source={"of": [f"{_module(marker)}:photos", "emoji"]})


def tracker(folder: Path, marker: Path) -> None:
    """A tracker that is a module."""
    _configure(folder, trackers=[_module(marker)])


def extended(folder: Path, marker: Path) -> None:
    """A config that another file extends."""
    file = folder / "config.toml"
    if not file.exists():
        method(folder, marker)
        return
    file.rename(folder / "base.toml")
    base = tomllib.loads((folder / "base.toml").read_text())
    (folder / "base.toml").write_text(tomli_w.dumps(base | {"method": {"name": _module(marker)}}))
    file.write_text('extends = "base.toml"\n')


NAMES: dict[str, Plant] = {
    "method": method,
    "method's method": inner_method,
    "data": data,
    "joined data": joined_data,
    "source.of": joined_options,
    "tracker": tracker,
    "extends": extended,
}

# Pictures -----------------------------------------------------------------------------------------------------------

EPS = """%!PS-Adobe-3.0 EPSF-3.0
%%BoundingBox: 0 0 40 40
%%EndComments
0 0 40 40 rectfill
showpage
%%EOF
"""
