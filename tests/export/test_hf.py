"""The transformers export: the features of torch, in a process that cannot import open_clip."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from everclip.cli.export import drawn
from everclip.errors import UserError
from everclip.export import export
from everclip.export.hf import preprocessing
from everclip.inference.model import Deployed, open_model, zero_shot
from everclip.models import zoo
from tests.learned import learned
from tests.pictures import COLOURS, picture
from tests.toy import MODEL_CFG, toy_clip

pytest.importorskip("transformers")

NAMES = ["a cat", "two dogs", "Straße & co", "naïve café"]
TEXTS = [
    *(
        f"{number} {word}s, it's {word}-like! <{number}>"
        for number in range(24)
        for word in ("cat", "Café", "Über")
    ),
    *("long " * count for count in (70, 74, 75, 76, 77, 200)),
    *(
        "",
        "!",
        "  many   spaces\t",
        "日本語のテキスト",
        "emoji 😀👩‍👩‍👧",
        "don't we'll I'm they've he'd you're 's",
    ),
    *(f"{'x' * count} {count}" for count in range(1, 17)),
]
ALONE = """
import sys
sys.modules["open_clip"] = sys.modules["everclip"] = None
from pathlib import Path
import numpy as np, torch
from PIL import Image
from safetensors.torch import save_file
import transformers
folder, scratch = map(Path, sys.argv[1:])
model = transformers.CLIPModel.from_pretrained(folder).eval()
tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
texts = (scratch / "texts.txt").read_text(encoding="utf-8").split("\\0")
tokens = tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt")
fast = transformers.CLIPTokenizerFast.from_pretrained(folder)
assert fast(texts, padding="max_length", truncation=True, return_tensors="pt")["input_ids"].equal(tokens["input_ids"])
pixels = torch.from_numpy(np.load(scratch / "inputs.npy"))
processor = transformers.AutoImageProcessor.from_pretrained(folder)
files = sorted((scratch / "pictures").glob("*.png"))
own = processor(images=[Image.open(file).convert("RGB") for file in files], return_tensors="pt")["pixel_values"]
with torch.inference_mode():
    both = model(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"], pixel_values=pixels)
    bare = model.text_projection(model.text_model(input_ids=tokens["input_ids"]).pooler_output)
save_file({
    "image": both.image_embeds, "text": both.text_embeds, "tokens": tokens["input_ids"], "own": own.contiguous(),
    "logits": both.logits_per_image.contiguous(), "bare": torch.nn.functional.normalize(bare, dim=-1),
}, scratch / "found.safetensors")
"""


def varied(tmp_path: Path, **changes: object) -> str:
    """A tiny model whose biases and norms are random too, so that none may be left out or swapped."""
    folder = toy_clip(tmp_path)
    config = json.loads((folder / "open_clip_config.json").read_text())
    config["model_cfg"] |= changes
    config["preprocess_cfg"] |= {"interpolation": "bicubic"}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    random = torch.Generator().manual_seed(1)
    state = load_file(folder / "open_clip_model.safetensors")
    for name, value in state.items():
        if name.endswith(
            ("bias", "ln_1.weight", "ln_2.weight", "ln_pre.weight", "ln_post.weight", "ln_final.weight")
        ):
            state[name] = value + 0.1 * torch.randn(value.shape, generator=random)
    save_file(state, folder / "open_clip_model.safetensors")
    return f"local-dir:{folder}"


def asked(spec: str) -> Deployed:
    return zero_shot(spec, zoo.load(spec), NAMES, ["{}", "a photo of {}."])


@pytest.mark.slow
@pytest.mark.parametrize("quick_gelu", [False, True])
def test_a_hundred_images_and_texts_without_open_clip(tmp_path: Path, quick_gelu: bool) -> None:
    model = asked(varied(tmp_path, quick_gelu=quick_gelu))
    clip, folder = model.clip, tmp_path / "hf"
    checked = export(model, "hf", str(folder), drawn(32)).checked
    assert checked["transformers"] < 1e-5
    random = torch.Generator().manual_seed(2)
    images = torch.randint(0, 256, (100, 3, 32, 32), generator=random, dtype=torch.uint8)
    np.save(tmp_path / "inputs.npy", clip.normalise(images).numpy())
    assert len(TEXTS) == 100
    (tmp_path / "texts.txt").write_text("\0".join(TEXTS), encoding="utf-8")
    (tmp_path / "pictures").mkdir()
    sizes = [
        (32, 32),
        (64, 64),
        (80, 61),
        (40, 47),
        (50, 33),
        (33, 50),
        (90, 35),
        (64, 66),
        (64, 70),
        (35, 36),
    ]
    for number, size in enumerate(sizes):
        one = picture(list(COLOURS.values())[number % 6], number).resize(size)
        one.save(tmp_path / "pictures" / f"{number}.png")
    subprocess.run([sys.executable, "-c", ALONE, str(folder), str(tmp_path)], check=True)
    found = load_file(tmp_path / "found.safetensors")
    with torch.inference_mode():
        text = clip.encode_text(TEXTS)
        torch.testing.assert_close(found["image"], clip.encode_image(images), atol=1e-4, rtol=0)
        torch.testing.assert_close(found["text"], text, atol=1e-4, rtol=0)
        torch.testing.assert_close(found["bare"], text, atol=1e-4, rtol=0)
        ours = clip.encode_image(images) @ text.T * clip.logit_scale.exp()
        torch.testing.assert_close(found["logits"], ours, atol=1e-3, rtol=0)
    tokens = open_clip.get_tokenizer("ViT-B-32")(TEXTS)
    assert found["tokens"].equal(
        torch.where((tokens == 0), 49407, tokens)
    )  # 0 is padding, and no text has a "!" of id 0
    pixels = [clip.eval_transform(Image.open(file)) for file in sorted((tmp_path / "pictures").glob("*.png"))]
    prepared = clip.normalise(
        torch.stack([torch.from_numpy(np.array(one)).permute(2, 0, 1) for one in pixels])
    )
    steps = (found["own"] - prepared).abs() * torch.tensor(clip.std)[:, None, None] * 255
    for (width, height), off in zip(
        sizes, steps, strict=True
    ):  # torchvision resizes, and rounds a crop otherwise
        odd = (32 * max(width, height) // min(width, height) - 32) % 4 == 3
        assert odd or (off.max() < 1.01 and off.mean() < 0.01)


@pytest.mark.slow
def test_the_example_says_what_predict_says(tmp_path: Path) -> None:
    model = asked(varied(tmp_path))
    export(model, "hf", str(tmp_path / "hf"), drawn(32))
    for number in range(3):
        picture((200, 90, 20), number, 32).save(tmp_path / f"{number}.png")
    files = sorted(tmp_path.glob("*.png"))
    code = (
        f"import runpy, sys; sys.modules['open_clip'] = sys.modules['everclip'] = None;"
        f" runpy.run_path({str(tmp_path / 'hf' / 'example.py')!r}, run_name='__main__')"
    )
    found = subprocess.run(
        [sys.executable, "-c", code, *map(str, files)], capture_output=True, text=True, check=True
    )
    best = [line.split("\t") for line in found.stdout.splitlines()][::3]
    pixels = torch.stack([torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1) for file in files])
    logits = model.logits(pixels)
    p = torch.from_numpy(logits).softmax(-1)
    assert [name for _, name, _ in best] == [model.names[column] for column in logits.argmax(1)]
    assert [float(value) for *_, value in best] == pytest.approx(p.max(1).values.tolist(), abs=1e-3)
    config = json.loads((tmp_path / "hf" / "config.json").read_text(encoding="utf-8"))
    assert list(config["id2label"].values()) == NAMES


def test_texts_that_open_clip_repairs_are_counted(tmp_path: Path) -> None:
    spec = varied(tmp_path)
    model = zero_shot(spec, zoo.load(spec), ["a “curly” cat", "dog &amp; cat", "plain"], ["{}"])
    (note,) = export(model, "hf", str(tmp_path / "hf"), drawn(32)).notes
    assert note.startswith("2 of the prompts have other token ids in transformers")


@pytest.mark.parametrize(("interpolation", "number"), [("bilinear", 2), ("bicubic", 3), ("random", 3)])
def test_pictures_are_resized_as_open_clip_does(tmp_path: Path, interpolation: str, number: int) -> None:
    folder = toy_clip(tmp_path)
    config = json.loads((folder / "open_clip_config.json").read_text())
    config["preprocess_cfg"] |= {"interpolation": interpolation}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    assert preprocessing(zoo.load(f"local-dir:{folder}"))["resample"] == number


VISION, TEXT = MODEL_CFG["vision_cfg"], MODEL_CFG["text_cfg"]


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"vision_cfg": VISION | {"pool_type": "avg"}}, "vision_cfg.pool_type"),
        ({"vision_cfg": VISION | {"ls_init_value": 0.1}}, "vision_cfg.ls_init_value"),
        ({"text_cfg": TEXT | {"no_causal_mask": True}}, "text_cfg.no_causal_mask"),
        ({"vision_cfg": VISION | {"layers": [1, 1, 1, 1]}}, "vision_cfg.layers"),
        ({"custom_text": True}, "CustomTextCLIP"),
    ],
)
def test_a_tower_that_transformers_has_not(tmp_path: Path, changes: dict[str, object], what: str) -> None:
    from everclip.export.hf import config_of

    model = asked(f"local-dir:{toy_clip(tmp_path)}")
    assert model.reads_text  # the classifier is made of the first model
    if "custom_text" in changes:
        model.clip.put(open_clip.CustomTextCLIP(**MODEL_CFG))
    else:
        model.clip.config = model.clip.config | changes
    with pytest.raises(
        UserError, match=rf"not a CLIPModel of transformers, which lacks {what}: use --format onnx"
    ):
        config_of(model)


def test_a_classifier_that_is_not_the_text_tower(toy: str, photos: str, tmp_path: Path) -> None:
    model = open_model(str(learned(tmp_path / "run", toy, photos, "method=ncm")))
    with pytest.raises(UserError, match=r"classifies by more than its text tower: use --format onnx"):
        export(model, "hf", str(tmp_path / "hf"), drawn(32))
    assert not (tmp_path / "hf").exists()
