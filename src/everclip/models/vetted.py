"""Vet the files of an untrusted model: nothing is accepted that runs code, or asks to.

open_clip_config.json      keys that open_clip's own configs have; no options of tokenizers that load anything else
                           (open_clip itself takes what it knows from preprocess_cfg, and ignores the rest)
config.json                of a Hugging Face text tower: keys of an architecture that open_clip knows, written anew for
                           transformers, which so sees nothing else
tokenizer_config.json      looked at before transformers reads them: a class of transformers that is known to be plain,
special_tokens_map.json    and no setting with a text that transformers might open as a file, but for tokens

Code that comes with a model (``auto_map``, ``trust_remote_code``) is never run, whatever is trusted.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

from everclip.errors import UserError, shown
from everclip.models.foreign import open_clip, timm
from everclip.system.reading import read_json

_SECTIONS = ("vision_cfg", "text_cfg", "multimodal_cfg")
_LOGITS = {"init_logit_scale", "init_logit_bias", "nonscalar_logit_scale"}
_MODEL = {*_SECTIONS, *_LOGITS, "embed_dim", "quick_gelu", "custom_text"}
_TOKENIZER = {"clean", "strip_sep_token", "language"}
_KWARGS = {"act_kwargs": {"approximate"}, "norm_kwargs": {"eps"}, "tokenizer_kwargs": _TOKENIZER}
"""Tables of a section, and the keys that open_clip's own configs have in them."""
_REPOSITORY = re.compile(r"[A-Za-z0-9_][\w.-]*(/[\w.-]+)?", re.ASCII)
_CODE = ("auto_map", "trust_remote_code")
_ELSEWHERE = ("configuration_files", "fast_tokenizer_files", "gguf_file", "init_inputs", "tokenizer_object")
"""Keys that make transformers read other files or pass objects."""
_COMMIT = "_commit_hash"
"""What transformers 4 adds to the settings that it has read."""
_SPECIAL = "special_tokens_map.json"
_PERHAPS: Any = {
    f"_raise_exceptions_for_{what}": False for what in ("gated_repo", "missing_entries", "connection_errors")
}
"""Options with which transformers finds no file in place of an error, as it does itself for this one."""
_FILES = re.compile(r"vocab|merges|.*_file")
"""Matches what a tokenizer opens, whatever it is: the number 0 is the standard input."""
_TOKENS = {
    "added_tokens_decoder",
    "additional_special_tokens",
    "extra_special_tokens",
    "model_specific_special_tokens",
}
"""Keys of tokens; so are all that end in "_token"."""
_TEXTS = (
    "backend chat_control_tokens chat_template errors language language_codes model_input_names model_type name_or_path"
    " never_split padding padding_side processor_class response_template special_tokens_map_file src_lang tgt_lang"
    " tokenizer_class tokenizer_type transformers_version truncation_side truncation_strategy vocab_type"
    " wordpieces_prefix"
)
"""Keys of tokenizers that have texts of which transformers opens none."""
_FAMILIES = (
    "Albert Bart Bert CLIP Camembert Deberta DebertaV2 DistilBert Electra GPT2 Gemma Llama M2M100 MPNet MT5"
    " Nllb PreTrained Qwen2 Roberta Siglip Siglip2 T5 XLMRoberta"
)
_TOKENIZERS = {f"{family}Tokenizer" for family in _FAMILIES.split()} | {"TokenizersBackend"}
"""Tokenizer classes that only read a vocabulary; also with the suffix "Fast"."""


def check(config: Any, where: str) -> None:
    """Refuse a model's config that asks for anything but an architecture of open_clip. Raises UserError.

    Args:
        config: ``model_cfg`` of open_clip_config.json.
        where: what the message calls the config.
    """
    _known(config, _MODEL, where, "")
    kinds = open_clip.model.CLIPVisionCfg, open_clip.model.CLIPTextCfg, open_clip.coca_model.MultimodalCfg
    for name, kind in zip(_SECTIONS, kinds, strict=True):
        section = config.get(name, {} if name == "multimodal_cfg" else None)
        if not isinstance(section, Mapping):
            raise UserError(f"{where}: {name} is {shown(section)}, no table: use another copy of the model")
        _known(section, {field.name for field in fields(kind)}, where, f"{name}.")
        for table, keys in _KWARGS.items():
            _known(section.get(table) or {}, keys, where, f"{name}.{table}.")
    name = config["vision_cfg"].get("timm_model_name")
    if name is not None and not (isinstance(name, str) and ":" not in name and timm.is_model(name)):
        raise UserError(f"{where}: vision_cfg.timm_model_name {shown(name)} is not a model of timm's own")


def _home(name: Any, folder: str | None, where: str) -> str:
    """Return where transformers finds what a config calls ``name``: in a saved model's folder, else on the hub."""
    if folder is not None:
        return folder
    if isinstance(name, str) and _REPOSITORY.fullmatch(name) and ".." not in name:
        return name
    raise UserError(f"{where}: text_cfg leads to {shown(name)}, which is not a name on the hub: use ORG/NAME")


def _known(values: Any, keys: Iterable[str], where: str, prefix: str) -> None:
    if not isinstance(values, Mapping):
        raise UserError(
            f"{where}: {prefix.rstrip('.') or 'model_cfg'} is {shown(values)}, no table: use another copy"
        )
    for key in values:
        if key not in keys:
            what = (
                "runs code that comes with a model" if key in _CODE else "is not a setting of a known model"
            )
            raise UserError(f"{where}: {shown(prefix + key)} {what}; it is not loaded: use another model")


@contextmanager
def text_tower(text: Mapping[str, Any], folder: str | None, where: str) -> Iterator[dict[str, Any]]:
    """Yield the options of ``create_model`` that build a Hugging Face text tower; none for any other. Raises UserError
    for code or an unknown architecture, OSError where its config is not available, ValueError for invalid JSON.

    Its config is rewritten with only the keys that its architecture knows. Its weights come with the rest of the model.

    Args:
        text: ``text_cfg`` of the model.
        folder: that of a saved model, which has the config, whatever ``text`` calls it.
        where: what a message calls the model.
    """
    name = text.get("hf_model_name")
    if not name:
        yield {}
        return
    from open_clip.hf_configs import arch_dict
    from transformers import CONFIG_MAPPING, PretrainedConfig

    found, _ = PretrainedConfig.get_config_dict(_home(name, folder, where))
    _check_code(found, where)
    kind = found.get("model_type")
    if not isinstance(kind, str) or kind not in arch_dict:
        known = ", ".join(arch_dict)
        raise UserError(
            f"{where}: the text tower is of the type {shown(kind)}; open_clip has {known}: use one of them"
        )
    keys = {key for key in CONFIG_MAPPING[kind]().to_dict() if not key.startswith("_")} | {"model_type"}
    with tempfile.TemporaryDirectory() as scratch:
        kept = {key: value for key, value in found.items() if key in keys}
        Path(scratch, "config.json").write_text(json.dumps(kept), encoding="utf-8")
        yield {"text_cfg": {**text, "hf_model_name": scratch, "hf_model_pretrained": False}}


def tokenizer(text: Mapping[str, Any], folder: str | None, where: str) -> dict[str, Any]:
    """Return the options of ``get_tokenizer``, after checking that a Hugging Face tokenizer is of a plain class of
    transformers. Raises like ``text_tower``.

    Args:
        text, folder, where: as in ``text_tower``.
    """
    name = text.get("hf_tokenizer_name")
    if not name:
        return {}
    from transformers import PretrainedConfig
    from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING_NAMES, get_tokenizer_config
    from transformers.utils.hub import cached_file

    home = _home(name, folder, where)
    own = {key: value for key, value in get_tokenizer_config(home).items() if key != _COMMIT}
    try:
        model, _ = PretrainedConfig.get_config_dict(home)
    except OSError:  # a tokenizer alone
        model = {}
    for found in (own, model):
        _check_code(found, where)
    _check_settings(own, f"{where}: tokenizer_config.json")
    special = cached_file(home, _SPECIAL, **_PERHAPS)
    if special is not None:
        _check_settings(read_json(Path(special)), f"{where}: {_SPECIAL}", tokens_alone=True)
    usual: Any = TOKENIZER_MAPPING_NAMES.get(str(model.get("model_type")))
    usual = usual if isinstance(usual, tuple) else (usual,)  # before transformers 5: slow and fast
    for kind in (own.get("tokenizer_class"), model.get("tokenizer_class"), *usual):
        if kind is not None and str(kind).removesuffix("Fast") not in _TOKENIZERS:
            raise UserError(f"{where}: {shown(kind)} is not a tokenizer known to be plain: use another model")
    return {"trust_remote_code": False}


def _check_settings(found: Any, where: str, tokens_alone: bool = False) -> None:
    """Refuse settings of a tokenizer, which are arguments of its class, that it might open as a file."""
    if not isinstance(found, Mapping):
        raise ValueError(f"{where} is not a table")
    for key, value in found.items():
        if value is None or key in _TOKENS or key.endswith("_token"):
            continue
        fits = key in _TEXTS.split() or (_textless(value) and not _FILES.fullmatch(key))
        if tokens_alone or not fits:
            raise UserError(f"{where} has {shown(key)}, which may lead to other files: use another model")


def _textless(value: Any) -> bool:
    if isinstance(value, Mapping | list):
        return all(map(_textless, value.values() if isinstance(value, Mapping) else value))
    return not isinstance(value, str)


def _check_code(found: Any, where: str) -> None:
    if not isinstance(found, Mapping):
        raise ValueError(f"{where}: a config of transformers that is not a table")
    for key in found:
        if key in _CODE:
            raise UserError(f"{where}: {key} asks to run code, which is never loaded: use another model")
        if key in _ELSEWHERE:
            raise UserError(f"{where}: {shown(key)} leads to other files: use another model")
