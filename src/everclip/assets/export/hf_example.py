"""Predict classes of pictures with transformers: python example.py photo.jpg ..."""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import CLIPImageProcessor, CLIPModel

HERE = Path(__file__).parent
KNOWN = json.loads((HERE / "classes.json").read_text(encoding="utf-8"))
EMBEDDINGS = load_file(HERE / "class_embeddings.safetensors")["class_embeddings"]
FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "GIF", "TIFF", "PPM")  # for others Pillow starts programs


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


@torch.inference_mode()
def probabilities(model, pixel_values):
    """Probabilities of the classes, one row for each picture."""
    features = model.visual_projection(model.vision_model(pixel_values=pixel_values).pooler_output)
    cosines = torch.nn.functional.normalize(features, dim=-1) @ EMBEDDINGS.T
    return (cosines * KNOWN["scale"]).softmax(-1)


if __name__ == "__main__":
    model = CLIPModel.from_pretrained(HERE, local_files_only=True).eval()
    processor = CLIPImageProcessor.from_pretrained(HERE, local_files_only=True)
    for name in sys.argv[1:]:
        image = rgb(Image.open(name, formats=FORMATS))
        p = probabilities(model, processor(images=image, return_tensors="pt")["pixel_values"])[0]
        for column in p.argsort(descending=True)[:3].tolist():
            print(f"{name}\t{KNOWN['classes'][column]}\t{p[column]:.3f}")
