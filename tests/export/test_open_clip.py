"""The open_clip export: a folder that open_clip loads unchanged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch

from everclip.cli.export import drawn
from everclip.errors import RunError, UserError
from everclip.export import export, formats, new_folder
from everclip.export import open_clip as ours
from everclip.inference.model import open_model, zero_shot
from everclip.models import zoo
from everclip.system.checkpoint import verify
from tests.learned import learned


@pytest.mark.parametrize(
    "tokens", [("method=gdro",), ("method=wise_ft", "method.alpha=0.4"), ("method=foster",)]
)
def test_open_clip_loads_it(toy: str, photos: str, tmp_path: Path, tokens: tuple[str, ...]) -> None:
    model = open_model(str(learned(tmp_path / "run", toy, photos, *tokens)))
    export(model, "open-clip", str(tmp_path / "m"), drawn(32))
    made: Any = open_clip.create_model_from_pretrained(f"local-dir:{tmp_path / 'm'}")
    loaded, preprocess = made
    tokenizer = open_clip.get_tokenizer(f"local-dir:{tmp_path / 'm'}")
    names = [template.format(name) for name in model.names for template in model.templates]
    mean, std = preprocess.transforms[-1].mean, preprocess.transforms[-1].std
    assert (tuple(mean), tuple(std)) == (model.encoder.mean, model.encoder.std)
    with torch.no_grad():
        images = (drawn(32) / 255 - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
        image = loaded.encode_image(images, normalize=True)
        text = loaded.encode_text(tokenizer(names), normalize=True).view(len(model.names), -1, image.shape[1])
        text = torch.nn.functional.normalize(text.mean(1), dim=1)
        cosines = image @ text.T * loaded.logit_scale.exp()
    assert model.reads_text == (tokens[0] != "method=foster")
    if model.reads_text:  # the two towers are the whole model
        torch.testing.assert_close(
            cosines.double(), torch.from_numpy(model.logits(drawn(32))), atol=1e-4, rtol=0
        )
    assert {path.name for path in (tmp_path / "m").iterdir()} == {
        "open_clip_config.json", "open_clip_model.safetensors", "everclip.json", "README.md", "manifest.json",
        *(() if model.reads_text else ("method.pt",)),
    }  # fmt: skip
    verify(tmp_path / "m")
    (tmp_path / "m" / "README.md").write_text("completed by a person\n")
    assert open_model(str(tmp_path / "m")).names == model.names


def test_a_folder_that_open_clip_reads_otherwise_is_refused(
    toy: str, photos: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = open_model(str(learned(tmp_path / "run", toy, photos, "method=zero_shot")))
    original = ours.save

    def spoiled(model: Any, folder: Path) -> None:
        original(model, folder)
        config = json.loads((folder / "open_clip_config.json").read_text())
        config["model_cfg"]["vision_cfg"]["norm_kwargs"] = {"eps": 0.5}
        (folder / "open_clip_config.json").write_text(json.dumps(config))

    monkeypatch.setattr(ours, "save", spoiled)
    with pytest.raises(RunError, match="everclip gives other probabilities than torch"):
        export(model, "open-clip", str(tmp_path / "m"), drawn(32))
    assert not (tmp_path / "m").exists()


def test_features_that_are_no_numbers_are_no_small_difference(toy: str, tmp_path: Path) -> None:
    clip = zoo.load(toy)
    with torch.no_grad():
        clip.model.get_parameter("text_projection").fill_(torch.nan)
    with pytest.raises(RunError, match=r"everclip gives other probabilities .* \(by nan\)"):
        export(zero_shot(toy, clip, ["red", "blue"], ["{}"]), "open-clip", str(tmp_path / "m"), drawn(32))
    clip.save(tmp_path / "n")
    with pytest.raises(RunError, match=r"open_clip gives other features .* \(by nan\)"):
        ours._compare(clip, tmp_path / "n", drawn(32))


def test_a_hugging_face_text_tower_needs_the_hub(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    written = export(open_model("lite", ["a cat", "a dog"], 64), "open-clip", str(tmp_path / "m"), drawn(64))
    assert list(written.checked) == ["everclip"]
    (note,) = written.notes
    assert note.startswith("open_clip asks the Hugging Face hub for sentence-tr")
    again = open_model(str(tmp_path / "m"))
    assert again.names == ("a cat", "a dog")


def test_formats() -> None:
    assert formats() == ["hf", "onnx", "open-clip"]


def test_a_new_folder_is_complete_or_not_there(tmp_path: Path) -> None:
    with new_folder(str(tmp_path / "a" / "b")) as folder:
        (folder / "x").write_text("1")
        assert not (tmp_path / "a" / "b").exists()
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b"]
    assert (tmp_path / "a" / "b").stat().st_mode == (tmp_path / "a").stat().st_mode
    with pytest.raises(RuntimeError), new_folder(str(tmp_path / "c")) as folder:
        raise RuntimeError
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    (tmp_path / "empty").mkdir()
    with new_folder(str(tmp_path / "empty")) as folder:
        (folder / "x").write_text("1")
    assert (tmp_path / "empty" / "x").exists()
    with pytest.raises(UserError, match="exists: give a new or an empty folder"), new_folder(str(tmp_path)):
        pass
