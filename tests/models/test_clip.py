"""Clip against open_clip itself and against naive references, on a tiny model with random weights."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms.functional import pil_to_tensor

from everclip.errors import UserError
from everclip.models import zoo
from everclip.models.clip import Clip
from tests.toy import MODEL_CFG, toy_clip

PROMPTS = ["a cat", "a dog", "a cat", "a photo of a dog.", "a dog", "a cat"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def clip(folder: Path) -> Clip:
    return zoo.load(f"local-dir:{folder}")


def picture(height: int, width: int, mode: str = "RGB") -> Image.Image:
    pixels = np.random.default_rng(height * 1000 + width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def pixels(count: int = 4, side: int = 32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(count)
    return torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=generator)


def test_each_distinct_prompt_is_encoded_once_and_dedup_changes_nothing(clip: Clip, monkeypatch) -> None:
    batches: list[int] = []
    encode = clip.model.encode_text

    def counted(tokens: torch.Tensor) -> torch.Tensor:
        batches.append(len(tokens))
        return encode(tokens)

    monkeypatch.setattr(clip.model, "encode_text", counted)
    together = clip.encode_text(PROMPTS)
    assert batches == [3]
    apart = torch.cat([clip.encode_text([prompt]) for prompt in PROMPTS])
    torch.testing.assert_close(together, apart, atol=1e-6, rtol=0)
    assert torch.equal(together[0], together[2])


def test_text_is_encoded_in_chunks(clip: Clip, monkeypatch) -> None:
    monkeypatch.setattr("everclip.models.clip._TEXT_CHUNK", 2)
    chunked = clip.encode_text(PROMPTS)
    monkeypatch.undo()
    torch.testing.assert_close(chunked, clip.encode_text(PROMPTS), atol=1e-6, rtol=0)


def test_tokens_of_many_prompts_are_not_kept_for_ever(clip: Clip, monkeypatch) -> None:
    """A server is asked for new texts without end; a prompt that was let go has the same features again."""
    monkeypatch.setattr("everclip.models.text._KEPT", 4)
    first = clip.encode_text(PROMPTS)
    for number in range(50):
        clip.encode_text([f"number {number}", "a cat"])
    assert len(clip.text._tokens) <= 6
    assert len(clip.text._lengths) <= 6
    assert torch.equal(clip.encode_text(PROMPTS), first)


def test_encode_text_is_open_clips_own(clip: Clip, folder: Path) -> None:
    model: Any = open_clip.create_model(f"local-dir:{folder}")
    expected = model.encode_text(open_clip.get_tokenizer(f"local-dir:{folder}")(PROMPTS), normalize=True)
    torch.testing.assert_close(clip.encode_text(PROMPTS), expected, atol=1e-6, rtol=0)


def test_gradients_of_repeated_prompts_add_up(clip: Clip) -> None:
    weights = torch.arange(1.0, 7.0)
    parameter = clip.model.text_projection
    deduplicated = torch.autograd.grad((clip.encode_text(PROMPTS).sum(1) * weights).sum(), parameter)[0]
    apart = torch.cat([clip.encode_text([prompt]) for prompt in PROMPTS])
    expected = torch.autograd.grad((apart.sum(1) * weights).sum(), parameter)[0]
    torch.testing.assert_close(deduplicated, expected, atol=1e-4, rtol=1e-4)


@settings(max_examples=10, deadline=None)
@given(
    names=st.lists(st.sampled_from(["cat", "dog", "red fox", "tree {x}"]), min_size=1, max_size=4),
    templates=st.lists(st.sampled_from(["{}", "a {}.", "a photo of a {}."]), min_size=1, max_size=3),
)
def test_class_embeddings_equal_a_naive_loop(clip: Clip, names: list[str], templates: list[str]) -> None:
    with torch.no_grad():
        embeddings = clip.class_embeddings(names, templates)
        for row, name in zip(embeddings.unbind(), names, strict=True):
            each = [clip.encode_text([template.replace("{}", name)])[0] for template in templates]
            mean = torch.stack(each).mean(0)
            torch.testing.assert_close(row, mean / mean.norm(), atol=1e-5, rtol=0)
    torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(len(names)), atol=1e-5, rtol=0)


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA"])
@pytest.mark.parametrize("resize_mode", ["shortest", "longest", "squash"])
def test_preprocessing_is_open_clips_own(folder: Path, tmp_path: Path, resize_mode: str, mode: str) -> None:
    copied = toy_clip(tmp_path)
    config = json.loads((copied / "open_clip_config.json").read_text())
    config["preprocess_cfg"] |= {"resize_mode": resize_mode, "interpolation": "bilinear", "fill_color": 7}
    (copied / "open_clip_config.json").write_text(json.dumps(config))
    clip = zoo.load(f"local-dir:{copied}")
    loaded: Any = open_clip.create_model_from_pretrained(f"local-dir:{copied}")
    preprocess = loaded[1]
    for image in (picture(50, 40, mode), picture(20, 70, mode), picture(32, 32, mode)):
        ours = clip.eval_transform(image)
        assert ours.size == (32, 32)
        got = clip.normalise(pil_to_tensor(ours)[None])[0]
        torch.testing.assert_close(got, preprocess(image), atol=1e-6, rtol=0)


def test_normalise_leaves_its_input_alone_and_is_fp32(clip: Clip) -> None:
    images = pixels()
    before = images.clone()
    normalised = clip.normalise(images)
    assert normalised.dtype == torch.float32
    assert torch.equal(images, before)


def test_image_features_are_unit_length_and_fp32_under_autocast(clip: Clip) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        images, texts = clip.encode_image(pixels()), clip.encode_text(PROMPTS)
    for features in (images, texts):
        assert features.dtype == torch.float32
        torch.testing.assert_close(features.norm(dim=1), torch.ones(len(features)), atol=1e-5, rtol=0)


def test_every_parameter_belongs_to_one_tower_or_is_the_logit_scale(clip: Clip) -> None:
    image, text = dict(clip.image_parameters()), dict(clip.text_parameters())
    assert not image.keys() & text.keys()
    assert image.keys() | text.keys() | {"logit_scale"} == dict(clip.model.named_parameters()).keys()
    assert all(name.startswith("visual.") for name in image)
    assert clip.logit_scale is clip.model.logit_scale


def test_train_keeps_every_module_in_eval_mode(clip: Clip) -> None:
    assert clip.train() is clip
    assert not any(module.training for module in clip.modules())


def test_dropout_is_off_and_gradients_flow(clip: Clip) -> None:
    clip.train()
    images = clip.normalise(pixels())
    first, second = clip.encode_image(images), clip.encode_image(images)
    assert torch.equal(first, second)
    gradients = torch.autograd.grad(
        first.square().sum() + first.sum(), [p for _, p in clip.image_parameters()]
    )
    assert any(gradient.abs().sum() > 0 for gradient in gradients)


def test_a_training_step_leaves_batch_norm_statistics_alone() -> None:
    cfg = {
        **MODEL_CFG,
        "vision_cfg": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "head_width": 16},
    }
    model = open_clip.CLIP(**copy.deepcopy(cfg))
    mean, std = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
    open_clip.model.set_model_preprocess_cfg(model, {"size": 32, "mean": mean, "std": std})
    clip = Clip(model, cfg, open_clip.SimpleTokenizer(), "resnet").train()
    buffers = {name: value.clone() for name, value in clip.named_buffers()}
    assert any("running_mean" in name for name in buffers)
    optimizer = torch.optim.SGD([parameter for _, parameter in clip.image_parameters()], lr=0.1)
    before = clip.model.visual.conv1.weight.detach().clone()
    clip.encode_image(pixels())[:, 0].sum().backward()
    optimizer.step()
    assert all(torch.equal(value, buffers[name]) for name, value in clip.named_buffers())
    assert not torch.equal(clip.model.visual.conv1.weight, before)
    assert clip.normalise(pixels()).is_contiguous(memory_format=torch.channels_last)


def test_save_and_load_round_trip_is_bit_equal(clip: Clip, tmp_path: Path) -> None:
    clip.save(tmp_path / "saved")
    loaded = zoo.load(f"local-dir:{tmp_path / 'saved'}")
    state, expected = loaded.state_dict(), clip.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[key], expected[key]) for key in expected)
    images = clip.normalise(pixels())
    assert torch.equal(loaded.encode_image(images), clip.encode_image(images))
    assert (loaded.mean, loaded.std, loaded.image_size) == (clip.mean, clip.std, clip.image_size)
    open_clip.create_model(
        f"local-dir:{tmp_path / 'saved'}", require_pretrained=True
    )  # plain open_clip loads it too


def test_another_image_size_is_interpolated_saved_and_loaded(folder: Path, tmp_path: Path) -> None:
    clip = zoo.load(f"local-dir:{folder}", image_size=48)
    assert clip.image_size == 48
    assert clip.eval_transform(picture(60, 50)).size == (48, 48)
    features = clip.encode_image(pixels(2, 48))
    clip.save(tmp_path / "saved")
    loaded = zoo.load(f"local-dir:{tmp_path / 'saved'}")
    assert loaded.image_size == 48
    assert torch.equal(loaded.encode_image(pixels(2, 48)), features)
    plain: Any = open_clip.create_model(f"local-dir:{tmp_path / 'saved'}", require_pretrained=True)
    assert torch.equal(plain.visual.positional_embedding, clip.model.visual.positional_embedding)


def test_a_copy_is_independent_and_the_transform_travels_to_worker_processes(clip: Clip) -> None:
    twin = copy.deepcopy(clip)
    with torch.no_grad():
        twin.logit_scale.add_(1)
    assert twin.logit_scale != clip.logit_scale
    image = picture(40, 50)
    transform = pickle.loads(pickle.dumps(clip.eval_transform))
    assert transform(image).tobytes() == clip.eval_transform(image).tobytes()


def test_features_equal_open_clips_normalised_output(clip: Clip, folder: Path) -> None:
    model: Any = open_clip.create_model(f"local-dir:{folder}").eval()
    images = clip.normalise(pixels())
    expected = F.normalize(model.visual(images), dim=-1)
    torch.testing.assert_close(clip.encode_image(images), expected, atol=1e-6, rtol=0)


def test_a_centre_is_subtracted_saved_and_ignored_by_open_clip(
    clip: Clip, folder: Path, tmp_path: Path
) -> None:
    centred = copy.deepcopy(clip)
    images = clip.normalise(pixels())
    plain = clip.encode_image(images)
    mean = plain.detach().mean(0)
    centred.center_images(mean)
    assert (centred.centered, clip.centered) == (True, False)
    torch.testing.assert_close(centred.encode_image(images), F.normalize(plain - mean, dim=-1))
    centred.save(tmp_path / "saved")
    again = zoo.load(f"local-dir:{tmp_path / 'saved'}")
    assert torch.equal(again.encode_image(images), centred.encode_image(images))
    model: Any = open_clip.create_model(f"local-dir:{tmp_path / 'saved'}")
    torch.testing.assert_close(model.encode_image(images, normalize=True), plain, atol=1e-6, rtol=0)


@pytest.mark.parametrize("mean", [[1.0, float("nan")], "half", {"x": 1.0}, [None]])
def test_a_centre_that_is_none_is_refused(clip: Clip, tmp_path: Path, mean: Any) -> None:
    clip.save(tmp_path)
    file = tmp_path / "open_clip_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"image_center": mean}))
    with pytest.raises(UserError, match="image_center is not a list of numbers"):
        zoo.load(f"local-dir:{tmp_path}")


@pytest.mark.parametrize("mean", [[0.1], [0.1] * 17, [], [0.1] * 15 + [1e39]])
def test_a_centre_of_another_width_is_refused(clip: Clip, tmp_path: Path, mean: list[float]) -> None:
    """So is one that is infinite in float32."""
    clip.save(tmp_path)
    file = tmp_path / "open_clip_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"image_center": mean}))
    with pytest.raises(
        UserError, match="image_center is not 16 numbers that are finite in float32"
    ) as caught:
        zoo.load(f"local-dir:{tmp_path}")
    assert "\n" not in str(caught.value)


def test_a_copied_tower_stays_as_it_was(clip: Clip) -> None:
    student, images = copy.deepcopy(clip), clip.normalise(pixels())
    teacher, before = student.copy_tower(), clip.encode_image(images)
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    with torch.no_grad():
        for _, parameter in student.image_parameters():
            parameter.add_(0.1)
    torch.testing.assert_close(student.encode_image(images, teacher), before)
    assert (student.encode_image(images) - before).abs().max() > 1e-3
