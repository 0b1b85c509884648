"""A model is as large as its weights are, whatever its config claims."""

from __future__ import annotations

import copy
import json
import os
import pickle
import struct
import time
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from safetensors.torch import load_file, save_file

from everclip.errors import UserError
from everclip.models import zoo
from everclip.models.bounded import shapes_of, within
from everclip.models.savable import write_folder
from everclip.models.states import read_state
from everclip.system.reading import Unreadable
from tests.attacks.plant import hugging
from tests.toy import toy_clip

WEIGHTS = "open_clip_model.safetensors"


def claims(folder: Path, section: str, **values: Any) -> None:
    file = folder / "open_clip_config.json"
    config = json.loads(file.read_text())
    (config["model_cfg"][section] if section else config["model_cfg"]).update(values)
    file.write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("section", "values"),
    [
        ("", {"embed_dim": 2**31}),
        ("vision_cfg", {"width": 2**31}),
        ("vision_cfg", {"layers": 10**9}),
        ("vision_cfg", {"layers": [10**9, 1, 1, 1]}),
        ("vision_cfg", {"mlp_ratio": 1e9}),
        ("vision_cfg", {"image_size": 10**6}),
        ("vision_cfg", {"image_size": 4096, "patch_size": 1}),
        ("vision_cfg", {"image_size": 64}),
        ("vision_cfg", {"patch_size": 0}),
        ("vision_cfg", {"patch_size": "16"}),
        ("vision_cfg", {"attentional_pool": True, "attn_pooler_queries": 10**9}),
        ("vision_cfg", {"timm_model_name": "vit_giant_patch14_224"}),
        ("text_cfg", {"vocab_size": 10**12}),
        ("text_cfg", {"context_length": 10**6}),
        ("text_cfg", {"context_length": 78}),
        ("text_cfg", {"layers": 10**9}),
        ("text_cfg", {"layers": 2}),
    ],
    ids=str,
)
def test_a_config_that_claims_more_than_its_weights(
    tmp_path: Path, section: str, values: dict[str, Any]
) -> None:
    folder = toy_clip(tmp_path)
    claims(folder, section, **values)
    start = time.perf_counter()
    tracemalloc.start()
    with pytest.raises(UserError, match=f"cannot be loaded from {folder}: ") as error:
        zoo.load(str(folder))
    assert tracemalloc.get_traced_memory()[1] < 2**27
    tracemalloc.stop()
    assert time.perf_counter() - start < 20
    assert "memory" not in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "values", [{"hidden_size": 2**20}, {"num_hidden_layers": 10**9}, {"vocab_size": 10**12}], ids=str
)
def test_a_text_tower_that_claims_more_than_its_weights(tmp_path: Path, values: dict[str, int]) -> None:
    folder = hugging(tmp_path / "model")
    zoo.load(str(folder))
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))
    start = time.perf_counter()
    with pytest.raises(UserError, match="cannot be loaded from") as error:
        zoo.load(str(folder))
    assert time.perf_counter() - start < 20
    assert "memory" not in str(error.value)


def header(content: bytes, size: int | None = None) -> Callable[[Path], object]:
    return lambda file: file.write_bytes(struct.pack("<Q", len(content) if size is None else size) + content)


@pytest.mark.parametrize(
    "spoil",
    [
        header(b"{}", 2**63),
        header(b"{}", 0),
        header(b"[" * 20_000),
        header(b'{"a": {"shape": 5}}'),
        header(b'{"a": {"shape": [1e400]}}'),
        header(b"[]"),
        lambda file: [os.truncate(file, size) for size in (0, 50 << 30)],
        lambda file: file.write_bytes(file.read_bytes()[:100]),
        lambda file: file.write_bytes(b""),
    ],
)
def test_headers_of_weights(tmp_path: Path, spoil: Callable[[Path], object]) -> None:
    file = toy_clip(tmp_path) / WEIGHTS
    assert shapes_of(file)["visual.conv1.weight"] == (32, 3, 8, 8)
    spoil(file)
    with pytest.raises(Unreadable, match="is not a safetensors file"):
        shapes_of(file)
    with pytest.raises(UserError, match="is not a safetensors file"):
        zoo.load(str(file.parent))


def test_a_folder_of_ours_is_read_from_its_own_weights_alone(tmp_path: Path) -> None:
    """A version has other weights too, which open_clip would take where these are missing."""
    folder = toy_clip(tmp_path)
    (folder / WEIGHTS).rename(folder / "frozen.safetensors")
    zoo.load(str(folder))
    (folder / "everclip.json").write_text("{}")
    with pytest.raises(UserError, match=f"it has no {WEIGHTS}"):
        zoo.load(str(folder))


def test_weights_that_are_no_safetensors_are_bounded_too(tmp_path: Path) -> None:
    folder = toy_clip(tmp_path)
    torch.save(load_file(folder / WEIGHTS), folder / "open_clip_pytorch_model.bin")
    (folder / WEIGHTS).unlink()
    zoo.load(str(folder))
    claims(folder, "vision_cfg", layers=10**6)
    with pytest.raises(UserError, match="larger than its weights are"):
        zoo.load(str(folder))


def packed(file: Path) -> str:
    """Weights that are deflated; why they are refused."""
    with zipfile.ZipFile(file) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    return "it is packed"


def overlapping(file: Path) -> str:
    """Weights that have the same bytes under many names."""
    with zipfile.ZipFile(file, "a") as archive:
        largest = max(archive.filelist, key=lambda member: member.file_size)
        for number in range(100):
            again = copy.copy(largest)
            again.filename = f"{largest.filename}{number}"
            archive.filelist.append(again)
        archive._didModify = True  # pyright: ignore[reportAttributeAccessIssue]
    return "its parts are larger than the file"


@pytest.mark.parametrize("spoil", [packed, overlapping])
def test_weights_that_unpack_to_more_than_their_size(tmp_path: Path, spoil: Callable[[Path], str]) -> None:
    folder = toy_clip(tmp_path)
    file = folder / "open_clip_pytorch_model.bin"
    torch.save(load_file(folder / WEIGHTS), file)
    (folder / WEIGHTS).unlink()
    why = spoil(file)
    with pytest.raises(UserError, match=f"cannot be loaded from {folder}: {why}"):
        zoo.load(str(folder))
    with pytest.raises(Unreadable, match=why):
        read_state(file)


COUNT = b"\x8a\x05" + (10**9).to_bytes(5, "little") + b"\x85R."


@pytest.mark.parametrize(
    "named",
    [
        b"\x80\x02cbuiltins\nbytearray\n",
        b"\x80\x02c__builtin__\nbytearray\n",
        b"\x80\x02(ibuiltins\nbytearray\n",
        b"\x80\x02}X\xe9\xff\x0f\x00" + b"x" * 0xFFFE9 + b"Ncbuiltins\nbytearray\n",
        b"\x80\x04\x8c\x08builtins\x8c\x09bytearray\x93",
        b"\x80\x04\x8c\x08builtins\x94\x8c\x09bytearray\x94h\x00h\x01\x93",
    ],
)
@pytest.mark.parametrize("archived", [True, False])
def test_a_pickle_that_asks_for_empty_bytes(tmp_path: Path, named: bytes, archived: bool) -> None:
    """However it names what makes them: a few bytes of it would take any memory."""
    folder = toy_clip(tmp_path)
    (folder / WEIGHTS).unlink()
    file = folder / "open_clip_pytorch_model.bin"
    if archived:
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("archive/data.pkl", named + COUNT)
            archive.writestr("archive/version", b"3\n")
            archive.writestr("archive/byteorder", b"little")
    else:
        torch.save({}, file, _use_new_zipfile_serialization=False)
        old = file.read_bytes()
        empty = pickle.dumps({}, 2)
        assert old.count(empty) == 1
        file.write_bytes(old.replace(empty, named + COUNT))
    tracemalloc.start()
    with pytest.raises(Unreadable):
        read_state(file)
    with pytest.raises(UserError, match=f"cannot be loaded from {folder}: "):
        zoo.load(str(folder))
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 2**27


def test_a_state_that_begins_as_an_old_file_and_ends_as_an_archive(tmp_path: Path) -> None:
    """torch goes by its beginning."""
    file = tmp_path / "state.pt"
    torch.save({}, file)
    file.write_bytes(b"\x80\x02}." + file.read_bytes())
    with pytest.raises(Unreadable, match="does not begin as an archive"):
        read_state(file)


def test_weights_of_old_versions_are_read(tmp_path: Path) -> None:
    folder = toy_clip(tmp_path)
    state = load_file(folder / WEIGHTS)
    torch.save(state, folder / "open_clip_pytorch_model.bin", _use_new_zipfile_serialization=False)
    (folder / WEIGHTS).unlink()
    assert torch.equal(zoo.load(str(folder)).model.state_dict()["ln_final.weight"], state["ln_final.weight"])


@pytest.mark.parametrize("name", ["open_clip_config.json", "config.json", "vocab.txt"])
def test_config_files_of_any_size(tmp_path: Path, name: str) -> None:
    folder = toy_clip(tmp_path)
    os.truncate(folder / "open_clip_config.json", 0) if name == "open_clip_config.json" else (
        folder / name
    ).touch()
    os.truncate(folder / name, 50 << 30)
    with pytest.raises(UserError, match=r"the folder .+ cannot be used \(.*larger than 64 MiB\)"):
        zoo.load(str(folder))


def test_an_image_size_that_the_user_wants_is_no_claim(tmp_path: Path) -> None:
    assert zoo.load(str(toy_clip(tmp_path)), 64).image_size == 64


def test_nor_may_it_ask_for_more_patches_than_any_model_has(tmp_path: Path) -> None:
    """A stranger's everclip.json may give it."""
    with pytest.raises(UserError, match=r'no model has sizes like .*"image_size": 4096'):
        zoo.load(str(toy_clip(tmp_path)), 4096)


def test_a_resnet_that_was_saved_is_opened_again(tmp_path: Path) -> None:
    """open_clip gives it a patch size of null."""
    config: Any = open_clip.get_model_config("RN50")
    config["vision_cfg"].update(layers=[1, 1, 1, 1], width=16, image_size=64)
    config["text_cfg"].update(width=64, heads=1, layers=1)
    config["embed_dim"] = 64
    model = open_clip.model.CLIP(**config)
    write_folder(tmp_path, model.state_dict(), {"model_cfg": config, "preprocess_cfg": {}})
    assert config["vision_cfg"]["patch_size"] is None
    assert zoo.load(str(tmp_path)).image_size == 64


def test_other_modules_are_not_counted(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="larger than its weights"), within(10, 10):
        torch.nn.Linear(4, 4)
    torch.nn.Linear(4, 4)
    with pytest.raises(ValueError, match="larger than its weights"), within(10**9, 2):
        torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4))


def test_a_scale_may_be_a_number_or_a_list_of_one(tmp_path: Path) -> None:
    folder = toy_clip(tmp_path)
    state = load_file(folder / WEIGHTS)
    save_file(state | {"logit_scale": state["logit_scale"].reshape(1)}, folder / WEIGHTS)
    zoo.load(str(folder))
