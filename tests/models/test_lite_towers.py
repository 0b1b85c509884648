"""The towers of ``lite``: the same bits as those of open_clip, timm and transformers, and started without these."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from everclip.models import zoo
from everclip.models.clip import Clip
from everclip.models.lite_towers import folder as own
from everclip.models.lite_towers.model import Lite
from everclip.models.savable import CONFIG_FILE, WEIGHTS_FILE
from tests.models.test_lite import needs_files

pytestmark = needs_files

SIDE = 64
PROMPTS = [
    *(
        "cat",
        "a photo of a cat.",
        "a photo of a dog.",
        "a photo of a very old and rather large dog on a chair.",
    ),
    *(
        "naïve café, “quotes” &amp; <b>",
        "word " * 200,
        "[SEP] a [MASK]",
        "日本語 テスト",
        "a\tb\n c\x07 d",
        "",
    ),
]
HEAVY = (
    "open_clip",
    "timm",
    "torchvision",
    "transformers",
    "torch._dynamo",
    "sympy",
    "torch.distributed.fsdp",
)
STARTED = """
import os, sys
from everclip import __main__ as everclip
from everclip.system.progress import Progress

def step(self, note="", count=1):
    if note.startswith("loss"):
        print("imported:", *(name for name in {heavy} if name in sys.modules), flush=True)
        os._exit(0)

Progress.step = step
sys.argv = ["everclip", "train", *{words}]
everclip.main()
"""


@pytest.fixture(scope="module")
def pair() -> tuple[Clip, Clip]:
    """Our towers, and those of open_clip with the same weights."""
    ours = zoo.load("lite", SIDE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(own, "read", lambda folder: None)
        theirs = zoo.load("lite", SIDE)
    assert isinstance(ours.model, Lite)
    assert type(theirs.model).__name__ == "CustomTextCLIP"
    return ours, theirs


@pytest.fixture
def saved(pair: tuple[Clip, Clip], tmp_path: Path) -> Path:
    pair[0].save(tmp_path / "saved")
    return tmp_path / "saved"


def test_the_first_step_of_training_imports_no_other_towers(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for kind in ("train", "test"):
        for label in ("a", "b"):
            (tmp_path / "data" / kind / label).mkdir(parents=True)
            for number in range(4):
                pixels = random.integers(0, 256, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / "data" / kind / label / f"{number}.png")
    words = [f"data=imagefolder:{tmp_path / 'data'}", "model=lite", "image_size=32", "scenario.tasks=1"]
    words += ["references=none", "train.batch_size=4", "device=cpu", f"out={tmp_path / 'run'}"]
    code = STARTED.format(heavy=HEAVY, words=words)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "imported:" in done.stdout, done.stderr
    assert done.stdout.strip().splitlines()[-1] == "imported:"


def test_tokens_features_and_gradients_are_the_same_to_the_bit(pair: tuple[Clip, Clip]) -> None:
    pictures = torch.randint(0, 256, (3, 3, SIDE, SIDE), dtype=torch.uint8)
    found = []
    for clip in pair:
        clip = copy.deepcopy(clip).requires_grad_(True)
        for precision in (torch.float32, torch.bfloat16):
            with torch.autocast("cpu", torch.bfloat16, enabled=precision is torch.bfloat16):
                images, texts = clip.encode_image(pictures), clip.encode_text(PROMPTS)
            ((images @ texts.T).exp().mean() * clip.logit_scale).backward()
            with torch.no_grad():
                alone = clip.encode_text(["a photo of a cat."])
            found.append([images, texts, alone, clip._tokenizer(PROMPTS), clip._tokenizer(PROMPTS, 10)])
            found[-1] += [parameter.grad for parameter in clip.model.parameters()]
    half = len(found) // 2
    for ours, theirs in zip(found[:half], found[half:], strict=True):
        assert len(ours) == len(theirs)
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_names_layouts_and_preprocessing_are_the_same(pair: tuple[Clip, Clip]) -> None:
    ours, theirs = pair
    assert [name for name, _ in ours.named_modules()] == [name for name, _ in theirs.named_modules()]
    assert [name for name, _ in ours.named_parameters()] == [name for name, _ in theirs.named_parameters()]
    for (name, a), (other, b) in zip(ours.state_dict().items(), theirs.state_dict().items(), strict=True):
        assert (name, a.dtype, a.stride()) == (other, b.dtype, b.stride())
        assert torch.equal(a, b)
    assert ours.config == theirs.config
    assert ours.preprocessing() == theirs.preprocessing()


def test_a_saved_folder_is_read_by_either(pair: tuple[Clip, Clip], saved: Path, tmp_path: Path) -> None:
    ours, theirs = pair
    theirs.save(tmp_path / "theirs")
    texts, tokens = ours.encode_text(PROMPTS), ours._tokenizer(PROMPTS)
    for folder in (saved, tmp_path / "theirs"):
        for read in (own.read, lambda folder: None):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(own, "read", read)
                clip = zoo.load(str(folder))
            assert isinstance(clip.model, Lite) == (read is own.read)
            assert torch.equal(clip._tokenizer(PROMPTS), tokens)
            assert torch.equal(clip.encode_text(PROMPTS), texts)
    again = zoo.load(str(saved))
    again.save(tmp_path / "again")
    for file in saved.iterdir():
        assert (tmp_path / "again" / file.name).read_bytes() == file.read_bytes()


def _json(name: str, change: Callable[[Any], object]) -> Callable[[Path], object]:
    def write(folder: Path) -> None:
        content = json.loads((folder / name).read_text(encoding="utf-8"))
        change(content)
        (folder / name).write_text(json.dumps(content), encoding="utf-8")

    return write


def _weights(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], object]:
    def write(folder: Path) -> None:
        state = load_file(folder / WEIGHTS_FILE)
        change(state)
        save_file(state, folder / WEIGHTS_FILE)

    return write


@pytest.mark.parametrize(
    "change",
    [
        _json(CONFIG_FILE, lambda c: c["model_cfg"]["text_cfg"].update(hf_pooler_type="cls_pooler")),
        _json(CONFIG_FILE, lambda c: c["model_cfg"]["vision_cfg"].update(image_size=[SIDE, SIDE])),
        _json(CONFIG_FILE, lambda c: c["model_cfg"].update(quick_gelu=True)),
        _json(CONFIG_FILE, lambda c: c.update(model_cfg=[])),
        _json(CONFIG_FILE, lambda c: c["preprocess_cfg"].update(resize_mode="squash")),
        _json(CONFIG_FILE, lambda c: c["preprocess_cfg"].update(mean=None)),
        _json("config.json", lambda c: c.update(hidden_act="relu")),
        _json("config.json", lambda c: c.update(num_attention_heads=6)),
        _json("config.json", lambda c: c.update(auto_map={})),
        _json("config.json", lambda c: c.update(position_embedding_type="relative_key")),
        _json("tokenizer_config.json", lambda c: c.update(do_lower_case=False)),
        _json("tokenizer_config.json", lambda c: c.update(tokenizer_class="T5Tokenizer")),
        _json("tokenizer_config.json", lambda c: c.update(extra_special_tokens=["[NEW]"])),
        _json("tokenizer.json", lambda c: c["normalizer"].update(lowercase=False)),
        _json("tokenizer.json", lambda c: c["model"]["vocab"].update(cat=7)),
        lambda folder: (folder / "vocab.txt").write_text("[PAD]"),
        lambda folder: (folder / "tokenizer.json").unlink(),
        lambda folder: (folder / WEIGHTS_FILE).unlink(),
        _weights(lambda state: state.pop("logit_scale")),
        _weights(lambda state: state.update({"text.proj.0.weight": torch.zeros(832, 383)})),
    ],
)
def test_a_folder_that_says_anything_else_is_left_to_open_clip(
    saved: Path, change: Callable[[Path], object]
) -> None:
    assert own.read(saved) is not None
    change(saved)
    assert own.read(saved) is None
