"""What of a model's files is taken: everything that honest models have, and nothing else."""

from __future__ import annotations

import json
import os
import shutil
import threading
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
import transformers
from transformers.models.auto import tokenization_auto

from everclip.errors import UserError
from everclip.models import vetted, zoo
from everclip.models.catalogue import costs
from everclip.models.savable import CONFIG_FILE
from tests.attacks.plant import CONFIG, TEXT, TOKENIZER, change, hugging
from tests.complaints import complaint
from tests.toy import toy_clip

SPECIAL = "special_tokens_map.json"
PROMPTS = ["a photo of red.", "green"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder with a Hugging Face text tower."""
    return hugging(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture
def copy(tiny: Path, tmp_path: Path) -> Path:
    """A copy to change."""
    return Path(shutil.copytree(tiny, tmp_path / "model"))


@pytest.mark.parametrize("name", open_clip.list_models())
def test_open_clips_own_models_pass(name: str) -> None:
    vetted.check(open_clip.get_model_config(name) or {}, name)


def test_a_saved_model_is_loaded_as_it_was_saved(tiny: Path, tmp_path: Path) -> None:
    """Its text tower's config and its tokenizer too, over two generations; open_clip alone reads the same."""
    first = zoo.load(str(tiny))
    first.save(tmp_path / "second")
    second = zoo.load(str(tmp_path / "second"))
    assert {file.name for file in tiny.iterdir()} == {file.name for file in (tmp_path / "second").iterdir()}
    assert (tiny / TEXT).read_text() == (tmp_path / "second" / TEXT).read_text()
    assert torch.equal(first.encode_text(PROMPTS), second.encode_text(PROMPTS))
    tokens = first.tokenize(PROMPTS)
    assert torch.equal(tokens, open_clip.get_tokenizer(f"local-dir:{tiny}")(PROMPTS)[:, : tokens.shape[1]])
    assert str(tiny.parent) not in (tmp_path / "second" / TEXT).read_text()


@pytest.mark.parametrize("kind", ["PreTrainedTokenizerFast", "TokenizersBackend", "BertTokenizerFast", None])
def test_plain_tokenizers_are_opened(copy: Path, tiny: Path, kind: str | None) -> None:
    change(copy / TOKENIZER, tokenizer_class=kind, chat_template="{{ 1 }}")
    assert torch.equal(zoo.load(str(copy)).tokenize(PROMPTS), zoo.load(str(tiny)).tokenize(PROMPTS))


WORDS = {
    word: place for place, word in enumerate(("<s>", "<pad>", "</s>", "<unk>", "<mask>", "[UNK]", "[PAD]"))
}
PAIRS, SCORES = {"vocab": WORDS, "merges": []}, {"vocab": [(word, -1.0) for word in WORDS]}


@pytest.mark.parametrize(
    ("kind", "given"),
    [
        ("BertTokenizer", {"vocab": WORDS}),
        ("CLIPTokenizer", PAIRS),
        ("RobertaTokenizer", PAIRS),
        ("GPT2Tokenizer", PAIRS),
        ("GemmaTokenizer", PAIRS),
        ("NllbTokenizer", PAIRS),
        ("XLMRobertaTokenizer", SCORES),
        ("T5Tokenizer", SCORES),
    ],
)
def test_what_transformers_writes_is_accepted(tmp_path: Path, kind: str, given: dict[str, Any]) -> None:
    made = getattr(transformers, kind)(**given, chat_template="{{ 1 }}", image_token="<image>")
    made.save_pretrained(tmp_path)
    assert vetted.tokenizer({"hf_tokenizer_name": "org/text"}, str(tmp_path), "here")


def test_what_earlier_versions_of_transformers_wrote_is_accepted(tmp_path: Path) -> None:
    token = {"content": "</s>", "lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
    change(
        tmp_path / TOKENIZER,
        eos_token={"__type": "AddedToken", **token},
        unk_token="<unk>",
        tokenizer_class="T5Tokenizer",
        name_or_path="org/text",
        special_tokens_map_file="/root/.cache/x",
        tokenizer_file=None,
        sp_model_kwargs={},
        extra_ids=100,
        model_max_length=512,
        never_split=["a"],
        errors="replace",
        added_tokens_decoder={"1": {**token, "special": True}},
        additional_special_tokens=["<extra_id_0>"],
    )
    change(
        tmp_path / SPECIAL,
        eos_token=token,
        unk_token="<unk>",
        additional_special_tokens=["<extra_id_0>", token],
    )
    assert vetted.tokenizer({"hf_tokenizer_name": "org/text"}, str(tmp_path), "here")


def test_what_transformers_adds_to_settings_of_the_hub_is_accepted(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Version 4 notes the commit that it has read them from."""
    asked = tokenization_auto.get_tokenizer_config

    def noted(*words: Any, **more: Any) -> dict[str, Any]:
        return {**asked(*words, **more), "_commit_hash": "0" * 40}

    monkeypatch.setattr(tokenization_auto, "get_tokenizer_config", noted)
    zoo.load(str(copy))


def test_what_a_text_tower_does_not_know_is_left_out(copy: Path, tiny: Path) -> None:
    """A kernel to be fetched from a hub among it."""
    change(copy / TEXT, attn_implementation="stranger/kernel", _attn_implementation="stranger/kernel", odd=1)
    found = zoo.load(str(copy))
    assert torch.equal(found.encode_text(PROMPTS), zoo.load(str(tiny)).encode_text(PROMPTS))
    assert found.model.text.config._attn_implementation in ("sdpa", "eager")


def _set(file: Path, path: str, value: Any) -> None:
    config = json.loads(file.read_text()) if file.exists() else {}
    *tables, key = path.split(".")
    inner = config
    for table in tables:
        inner = inner[table]
    inner[key] = value
    file.write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("file", "path", "value", "why"),
    [
        (CONFIG, "model_cfg.text_cfg.tokenizer_kwargs", {"use_fast": False}, '"text_cfg.tokenizer_kwargs.use_fast" is'),
        (CONFIG, "model_cfg.text_cfg.tokenizer_kwargs", {"auto_map": {}}, '"text_cfg.tokenizer_kwargs.auto_map" runs'),
        (CONFIG, "model_cfg.text_cfg.tokenizer_kwargs", [1], "text_cfg.tokenizer_kwargs is [1], no table"),
        (CONFIG, "model_cfg.text_cfg.trust_remote_code", True, '"text_cfg.trust_remote_code" runs code'),
        (CONFIG, "model_cfg.cast_dtype", "fp16", '"cast_dtype" is not a setting of a known model'),
        (CONFIG, "model_cfg.vision_cfg.act_kwargs", {"f": 1}, '"vision_cfg.act_kwargs.f" is not a setting'),
        (CONFIG, "model_cfg.vision_cfg", "x", 'vision_cfg is "x", no table'),
        (CONFIG, "model_cfg.vision_cfg.timm_model_name", "hf-hub:a/b", 'timm_model_name "hf-hub:a/b" is not a model'),
        (CONFIG, "model_cfg.vision_cfg.timm_model_name", ["resnet18"], "timm_model_name [\"resnet18\"] is not a model"),
        (TOKENIZER, "auto_map", None, "auto_map asks to run code"),
        (TOKENIZER, "tokenizer_class", "RagTokenizer", '"RagTokenizer" is not a tokenizer known to be plain'),
        (TOKENIZER, "tokenizer_class", ["AutoModel"], '["AutoModel"] is not a tokenizer'),
        (TOKENIZER, "fast_tokenizer_files", ["tokenizer.4.0.json"], '"fast_tokenizer_files" leads to other files'),
        (TOKENIZER, "vocab", "/etc/hostname", 'tokenizer_config.json has "vocab", which may lead to other files'),
        (TOKENIZER, "merges", "/etc/hostname", '"merges", which may lead'),
        (TOKENIZER, "vocab_file", 0, '"vocab_file", which may lead'),
        (TOKENIZER, "spm_file", "~/private", '"spm_file", which may lead'),
        (TOKENIZER, "sp_model_kwargs", {"model_file": "private"}, '"sp_model_kwargs", which may lead'),
        (TOKENIZER, "odd", ["private"], '"odd", which may lead'),
        (SPECIAL, "vocab", "private", f'{SPECIAL} has "vocab", which may lead'),
        (SPECIAL, "name_or_path", "other/repository", '"name_or_path", which may lead'),
        (SPECIAL, "is_local", False, '"is_local", which may lead'),
        (TEXT, "auto_map", {"AutoModel": "other/repository--x.Y"}, "auto_map asks to run code"),
        (TEXT, "tokenizer_class", "AutoProcessor", '"AutoProcessor" is not a tokenizer'),
        (TEXT, "model_type", "rag", 'the text tower is of the type "rag"; open_clip has roberta'),
        (TEXT, "model_type", ["bert"], 'the text tower is of the type ["bert"]'),
    ],
)  # fmt: skip
def test_anything_else_is_refused_in_one_line(copy: Path, file: str, path: str, value: Any, why: str) -> None:
    _set(copy / file, path, value)
    said = complaint(zoo.load, str(copy))
    assert why in said
    assert str(copy) in said


@pytest.mark.parametrize("name", ["/etc", "../x", "a/../b", "./model", "a/b/c", 1, ["a/b"]])
def test_a_repository_leads_to_others_by_their_name_alone(name: Any) -> None:
    """A saved folder leads nowhere: it has its own."""
    tower = vetted.text_tower({"hf_model_name": name}, None, "here")
    with (
        pytest.raises(UserError, match=r"^here: text_cfg leads to .*, which is not a name on the hub"),
        tower,
    ):
        pass
    with pytest.raises(UserError, match=r"^here: text_cfg leads to .*, which is not a name on the hub"):
        vetted.tokenizer({"hf_tokenizer_name": name}, None, "here")


@pytest.mark.parametrize(
    ("file", "text"),
    [
        (CONFIG, '{"model_cfg": []}'),
        (CONFIG, '{"model_cfg": {"text_cfg": {}}}'),
        (CONFIG, '{"model_cfg": null}'),
        (CONFIG, '{"model_cfg": {"embed_dim": 8, "text_cfg": {}, "vision_cfg": {"patch_size": 0}}}'),
        (CONFIG, '{"model_cfg": {"embed_dim": "8", "text_cfg": {}, "vision_cfg": {}}}'),
        (CONFIG, '{"model_cfg": {"embed_dim": 8, "text_cfg": {}, "vision_cfg": []}}'),
        (CONFIG, "[]"),
        (CONFIG, "[" * 100_000),
        (TOKENIZER, "[]"),
        (SPECIAL, "[]"),
        (TEXT, "null"),
        (TEXT, '{"model_type": "bert", "hidden_size": "wide"}'),
        (TEXT, '{"model_type": "bert", "hidden_act": "import os"}'),
        ("tokenizer.json", "{}"),
    ],
)
def test_what_is_no_config_is_refused_in_one_line(copy: Path, file: str, text: str) -> None:
    (copy / file).write_text(text)
    complaint(zoo.load, str(copy))
    costs(str(copy))  # doctor asks for them first


def test_a_pipe_among_a_models_files_is_not_opened(tmp_path: Path) -> None:
    folder = toy_clip(tmp_path)
    weights = folder / "open_clip_model.safetensors"
    weights.unlink()
    os.mkfifo(weights)
    caught: list[str] = []

    def load() -> None:
        caught.append(complaint(zoo.load, str(folder)))

    thread = threading.Thread(target=load, daemon=True)
    thread.start()
    thread.join(30)
    wrong = f"the folder {folder} cannot be used ({weights.name} is a pipe)"
    assert caught == [f"model: {wrong}: use another copy"]
    assert CONFIG == CONFIG_FILE
