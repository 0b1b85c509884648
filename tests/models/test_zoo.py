"""Model specs: what resolves, and the one line that says what to write instead."""

from __future__ import annotations

import copy
import json
import logging
import os
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import huggingface_hub.constants
import open_clip
import pytest
import torch
from safetensors.torch import load_file, save_file

from everclip.errors import UserError
from everclip.models import weights, zoo
from everclip.models.catalogue import catalogue, recommended
from everclip.models.savable import WEIGHTS_FILE
from everclip.system.checkpoint import commit
from everclip.system.reading import JSON_BYTES
from tests.complaints import complaint
from tests.toy import MODEL_CFG, toy_clip


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A hub address where nothing listens, and an empty cache."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setattr(
            huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{free.getsockname()[1]}"
        )
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (
            "ViT-B-61:openai",
            ['unknown model "ViT-B-61:openai"; the nearest are ViT-B-16:openai, ', "everclip models"],
        ),
        ("lit", ['unknown model "lit"; the nearest are lite, ', "; there is no folder lit either"]),
        ("ViT-B-16:opena", ['no weights "opena"', 'did you mean "openai"']),
        ("ViT-B-16", ["use ViT-B-16:TAG", "openai", "laion400m_e32"]),
        ("local-dir:/no/such/folder", ["/no/such/folder does not exist"]),
        ("no/such/folder", ["neither a folder nor a known name", "NAME:TAG"]),
    ],
)
def test_a_wrong_spec_says_what_to_write(spec: str, words: list[str]) -> None:
    said = complaint(zoo.load, spec)
    for word in words:
        assert word in said


@pytest.mark.parametrize("spec", ["ViT-B-16:laion400m_e32", "hf-hub:nobody/nothing"])
def test_weights_that_cannot_be_had_give_one_line_within_seconds(spec: str, no_network: None) -> None:
    start = time.monotonic()
    said = complaint(zoo.load, spec)
    assert time.monotonic() - start < 5
    message = said
    assert "\n" not in message
    for word in (
        spec,
        "cannot be reached",
        "tried hf-hub:",
        "local-dir:",
        "HF_HOME",
        "HF_HUB_OFFLINE=1",
        "model=lite",
    ):
        assert word in message
    assert not huggingface_hub.constants.HF_HUB_OFFLINE


@pytest.mark.parametrize("hub", ["hf-mirror.com", "http://127.0.0.1:{port}"])
def test_a_hub_that_is_no_address_or_speaks_no_http(
    hub: str, monkeypatch: pytest.MonkeyPatch, no_network: None
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            with suppress(OSError), server.accept()[0] as client:
                client.sendall(b"SSH-2.0-x\r\n")
                client.recv(1000)

        threading.Thread(target=answer, daemon=True).start()
        address = hub.format(port=server.getsockname()[1])
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", address)
        assert f"{address} cannot be reached" in complaint(zoo.load, "ViT-B-16:laion400m_e32")


def test_offline_by_choice_asks_nobody(monkeypatch: pytest.MonkeyPatch, no_network: None) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="HF_HUB_OFFLINE is set and the cache"):
        zoo.load("ViT-B-16:laion400m_e32")


def test_quick_gelu_follows_the_weights(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "everclip"):
        _, options = zoo._resolve("ViT-B-16:openai")
    assert options["quick_gelu"] is True
    assert len(caplog.records) == 1
    assert "QuickGELU" in caplog.text
    caplog.clear()
    _, options = zoo._resolve("ViT-B/16:laion400m_e32")
    assert options["quick_gelu"] is False
    assert not caplog.records


def test_the_newest_checkpoint_of_a_run_is_loaded(tmp_path: Path) -> None:
    run = tmp_path / "run"
    for stage in (2, 9, 10):
        clip = zoo.load(f"local-dir:{toy_clip(_new(tmp_path / f's{stage}'), seed=stage)}")
        commit(run / "checkpoints" / f"stage-{stage:03d}", clip.save)
    (run / "checkpoints" / "stage-011").mkdir()  # damaged: holds no model
    newest = zoo.load(f"local-dir:{run / 'checkpoints' / 'stage-010'}")
    loaded = zoo.load(str(run))
    assert loaded.name == str(run)
    assert torch.equal(loaded.model.visual.conv1.weight, newest.model.visual.conv1.weight)


def test_a_checkpoint_is_looked_through_as_a_model_folder_is(tmp_path: Path) -> None:
    clip, run = zoo.load(str(toy_clip(tmp_path))), tmp_path / "run"

    def save(folder: Path) -> None:
        clip.save(folder)
        (folder / "vocab.txt").touch()
        os.truncate(folder / "vocab.txt", JSON_BYTES + 1)

    commit(run / "checkpoints" / "stage-001", save)
    with pytest.raises(UserError, match=r"stage-001 cannot be used \(vocab\.txt is larger than 64 MiB\)"):
        zoo.load(str(run))


@pytest.mark.parametrize("name", ["model.safetensors", "model.pth", "pytorch_model.bin"])
def test_weights_are_found_where_they_are_loaded_from(tmp_path: Path, name: str) -> None:
    folder = toy_clip(tmp_path)
    state = load_file(folder / WEIGHTS_FILE)
    (folder / WEIGHTS_FILE).unlink()
    with pytest.raises(UserError, match=f"has no {WEIGHTS_FILE}"):
        weights.find(str(folder))
    save_file(state, folder / name) if name.endswith(".safetensors") else torch.save(state, folder / name)
    zoo.load(str(folder))
    assert weights.find(str(folder)) == weights.Place("here", str(folder))


def _new(path: Path) -> Path:
    path.mkdir()
    return path


def test_a_folder_without_a_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no open_clip_config\.json"):
        zoo.load(str(tmp_path))


def test_weights_of_another_shape_are_one_line(tmp_path: Path) -> None:
    folder = toy_clip(tmp_path)
    config = json.loads((folder / "open_clip_config.json").read_text())
    config["model_cfg"]["embed_dim"] = 8
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="cannot be loaded from") as caught:
        zoo.load(str(folder))
    assert "\n" not in str(caught.value)


def test_loading_leaves_the_random_state_and_the_loggers_alone(tmp_path: Path) -> None:
    folder = toy_clip(tmp_path)
    state, handlers = torch.get_rng_state(), list(logging.root.handlers)
    zoo.load(str(folder))
    assert torch.equal(torch.get_rng_state(), state)
    assert logging.root.handlers == handlers
    assert logging.root.manager.disable == 0


def _saved(tmp_path: Path, vision_cfg: dict) -> Path:
    """A random model with another image tower, saved."""
    cfg = {**MODEL_CFG, "vision_cfg": vision_cfg, "custom_text": "timm_model_name" in vision_cfg}
    kind = open_clip.CustomTextCLIP if cfg["custom_text"] else open_clip.CLIP
    built = {key: value for key, value in copy.deepcopy(cfg).items() if key != "custom_text"}
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": cfg, "preprocess_cfg": {}}))
    save_file(kind(**built).state_dict(), tmp_path / "open_clip_model.safetensors")
    return tmp_path


def test_a_model_of_pictures_that_are_not_square_is_refused(tmp_path: Path) -> None:
    vision = {**MODEL_CFG["vision_cfg"], "image_size": [32, 64]}
    with pytest.raises(UserError, match="takes pictures of 32 x 64 pixels: use a model of square ones"):
        zoo.load(str(_saved(_new(tmp_path / "wide"), vision)))
    assert (
        zoo.load(str(_saved(_new(tmp_path / "square"), vision | {"image_size": [32, 32]}))).image_size == 32
    )


def test_a_resnet_takes_another_size_and_keeps_it(tmp_path: Path) -> None:
    vision = {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "head_width": 16}
    folder = _saved(_new(tmp_path / "resnet"), vision)
    own = zoo.load(str(folder))
    same = zoo.load(str(folder), image_size=64)
    key = "model.visual.attnpool.positional_embedding"
    assert torch.equal(same.state_dict()[key], own.state_dict()[key])
    clip = zoo.load(str(folder), image_size=96)
    images = clip.normalise(torch.full((2, 3, 96, 96), 100, dtype=torch.uint8))
    clip.save(tmp_path / "saved")
    again = zoo.load(str(tmp_path / "saved"))
    assert again.image_size == 96
    assert torch.equal(again.encode_image(images), clip.encode_image(images))
    open_clip.create_model(f"local-dir:{tmp_path / 'saved'}", require_pretrained=True)
    with pytest.raises(UserError, match="multiples of 32"):
        zoo.load(str(folder), image_size=100)


def test_a_timm_transformer_keeps_its_own_size(tmp_path: Path) -> None:
    vision = {"image_size": 160, "timm_model_name": "test_vit", "timm_pool": "avg", "timm_proj": "linear"}
    folder = _saved(tmp_path, vision)
    assert zoo.load(str(folder), image_size=160).image_size == 160
    with pytest.raises(UserError, match=r"image_size: .* only takes its own size, not 96"):
        zoo.load(str(folder), image_size=96)


def test_catalogue_names_exist_in_open_clip() -> None:
    assert catalogue()[0].name == "lite"
    for info in catalogue()[1:]:
        name, tag = info.name.split(":")
        assert tag in open_clip.list_pretrained_tags_by_model(name), info.name
        config = open_clip.get_model_config(name)
        assert config is not None
        assert config["vision_cfg"]["image_size"] == info.image_size
        weights = open_clip.get_pretrained_cfg(name, tag)
        assert info.quick_gelu == bool(weights.get("quick_gelu") or config.get("quick_gelu")), info.name


def test_recommended_values() -> None:
    assert recommended("lite") == {"lr": 3e-5, "lr_text": 2e-5, "weight_decay": 0.05}
    assert recommended("lite", before=True)["lr"] == 3e-4
    assert recommended("ViT-B-16:openai") == {"lr": 1e-5, "lr_text": 1e-5, "weight_decay": 0.1}


def test_the_catalogue_imports_no_torch() -> None:
    code = "import sys, everclip.models.catalogue; sys.exit(bool({'torch', 'open_clip'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
