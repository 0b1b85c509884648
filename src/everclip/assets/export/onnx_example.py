"""Predict classes of pictures with numpy, Pillow and onnxruntime: python example.py photo.jpg ...

python example.py --unknown-at 0.05 photo.jpg ... says "unknown" of pictures of no class, if preprocess.json has a
threshold for this rate.
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image

HERE = Path(__file__).parent
HOW = json.loads((HERE / "preprocess.json").read_text(encoding="utf-8"))
LABELS = json.loads((HERE / "labels.json").read_text(encoding="utf-8"))


def rgb(image):
    """A picture as 8-bit RGB: transparency on white, 16-bit grey and floats of 0..1 scaled, infinite values white."""
    if image.mode.startswith("I") or image.mode == "F":
        grey = np.nan_to_num(np.asarray(image, dtype=np.float64), posinf=np.inf)
        highest = grey.max(initial=0, where=grey < np.inf)
        tops = (1.0, 255.0, 65535.0) if image.mode == "F" else (255.0, 65535.0)
        top = next((top for top in tops if highest <= top), tops[-1])
        image = Image.fromarray((grey.clip(0, top) * (255 / top)).astype(np.uint8))
    elif image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def load(path):
    """A picture as float32 [3, size, size]."""
    formats = ("JPEG", "PNG", "BMP", "WEBP", "GIF", "TIFF", "PPM")  # for others Pillow starts programs
    image, size = rgb(Image.open(path, formats=formats)), HOW["size"]
    width, height = image.size
    if HOW["resize_mode"] == "squash":
        width = height = size
    elif HOW["resize_mode"] == "longest":
        ratio = max(width, height) / size
        width, height = round(width / ratio), round(height / ratio)
    else:
        width, height = size * width // min(width, height), size * height // min(width, height)
    image = image.resize((width, height), Image.Resampling[HOW["interpolation"].upper()])
    canvas = Image.new("RGB", (max(size, width), max(size, height)), (HOW["fill_color"],) * 3)
    canvas.paste(image, ((canvas.width - width) // 2, (canvas.height - height) // 2))
    left, top = round((canvas.width - size) / 2), round((canvas.height - size) / 2)
    pixels = np.asarray(canvas.crop((left, top, left + size, top + size)), dtype=np.float32)
    return ((pixels / 255 - np.float32(HOW["mean"])) / np.float32(HOW["std"])).transpose(2, 0, 1)


if __name__ == "__main__":
    small = HERE / "model.int8.onnx"
    session = onnxruntime.InferenceSession(small if small.is_file() else HERE / "model.onnx")
    names, limit = sys.argv[1:], None
    if names[:1] == ["--unknown-at"]:
        rate, names = "".join(names[1:2]), names[2:]
        known = HOW.get("unknown", {}).get("thresholds", {})
        if rate not in known:
            sys.exit(
                f"--unknown-at {rate}: preprocess.json has a threshold for {', '.join(known) or 'no rate'}"
            )
        limit = known[rate]
    for name in names:
        found = session.run(None, {"images": load(name)[None]})
        if limit is not None and np.asarray(found[1])[0] > limit:
            print(f"{name}\tunknown\t")
            continue
        logits = np.asarray(found[0], dtype=np.float64)[0]
        p = np.exp(logits - logits.max())
        p /= p.sum()
        for column in p.argsort()[::-1][:3]:
            print(f"{name}\t{LABELS[column]}\t{p[column]:.3f}")
