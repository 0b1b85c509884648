"""Zero-shot accuracy of a model on small sets of real pictures.

    EVERCLIP_DATA=FOLDER python -m benchmarks.zero_shot [--model lite] [--threads 2]

FOLDER holds caltech50/, imagenet1k-sample/ and pacs128/, or the .tar files of those names. Prints a table;
the last line is one JSON object. Three columns: the prompt ``a photo of a {}.`` alone, the mean over ``{}`` and
``a photo of a {}.``, and that over CLIP's 80 prompts.
"""

import argparse
import json
import os
import platform
import tarfile
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from open_clip import IMAGENET_CLASSNAMES, OPENAI_IMAGENET_TEMPLATES
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor

from everclip.data.pixels import FORMATS
from everclip.models import zoo
from everclip.models.clip import Clip

TEMPLATES = {
    "photo": ("a photo of a {}.",),
    "both": ("{}", "a photo of a {}."),
    "80": tuple(template("{}") for template in OPENAI_IMAGENET_TEMPLATES),
}
CALTECH, IMAGENET, PACS = "caltech50", "imagenet1k-sample", "pacs128"
SIZES = ((IMAGENET, 224), (PACS, 128), (CALTECH, 224), (CALTECH, 128), (CALTECH, 96))


@contextmanager
def unpacked(name: str) -> Iterator[Path]:
    """The folder ``$EVERCLIP_DATA/name``, or ``name.tar`` beside it unpacked for as long as the context
    lasts.
    """
    root = Path(os.environ["EVERCLIP_DATA"])
    if (root / name).is_dir():
        yield root / name
        return
    with tempfile.TemporaryDirectory() as temporary, tarfile.open(root / f"{name}.tar") as archive:
        archive.extractall(temporary, filter="data")
        yield Path(temporary) / name


def image_net(root: Path) -> tuple[list[Path], list[int], Sequence[str]]:
    """Files, labels and class names; the sorted file names are in the order of the classes."""
    return sorted(root.glob("*.JPEG")), list(range(1000)), IMAGENET_CLASSNAMES


def class_folders(root: Path) -> tuple[list[Path], list[int], Sequence[str]]:
    """Files, labels and class names of ``root/CLASS/*.jpg``; underscores in a class name are spaces."""
    folders = sorted(path for path in root.iterdir() if path.is_dir())
    pairs = [(file, label) for label, folder in enumerate(folders) for file in sorted(folder.iterdir())]
    return (
        [file for file, _ in pairs],
        [label for _, label in pairs],
        [f.name.replace("_", " ") for f in folders],
    )


@torch.inference_mode()
def features(clip: Clip, files: Sequence[Path], batch: int = 64) -> Float[Tensor, "n d"]:
    """Image features of the files, in order."""
    rows = []
    for start in range(0, len(files), batch):
        images = [
            clip.eval_transform(Image.open(file, formats=FORMATS)) for file in files[start : start + batch]
        ]
        rows.append(
            clip.encode_image(clip.normalise(torch.stack([pil_to_tensor(image) for image in images])))
        )
    return torch.cat(rows)


@torch.inference_mode()
def accuracies(
    clip: Clip, files: Sequence[Path], labels: Sequence[int], names: Sequence[str]
) -> dict[str, float]:
    """Top-1 accuracy in 0..1 for each entry of ``TEMPLATES``."""
    images, truth = features(clip, files), torch.tensor(labels)
    result = {}
    for key, templates in TEMPLATES.items():
        scores = images @ clip.class_embeddings(names, templates).T
        result[key] = (scores.argmax(dim=1).cpu() == truth).float().mean().item()
    return result


def parts(name: str, root: Path) -> dict[str, tuple[list[Path], list[int], Sequence[str]]]:
    """The parts of a set that are measured apart."""
    if name == IMAGENET:
        return {name: image_net(root)}
    if name == CALTECH:
        return {name: class_folders(root / "test")}
    return {domain.name: class_folders(domain) for domain in sorted(root.iterdir())}


def rows(spec: str) -> Iterator[dict[str, Any]]:
    """One measurement after another: set, image size, classes, pictures and the accuracies."""
    for name, size in SIZES:
        clip = zoo.load(spec, image_size=size)
        with unpacked(name) as root:
            for part, (files, labels, names) in parts(name, root).items():
                measured = accuracies(clip, files, labels, names)
                yield {"set": part, "size": size, "ways": len(names), "images": len(files), **measured}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="zero-shot accuracy on small sets of real pictures")
    parser.add_argument("--model", default="lite")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    start, results = time.perf_counter(), []
    print(f"{'set':18s} {'size':>4s} {'ways':>5s} {'images':>6s}  photo   both     80", flush=True)
    for row in rows(arguments.model):
        results.append(row)
        head = f"{row['set']:18s} {row['size']:4d} {row['ways']:5d} {row['images']:6d}"
        print(
            f"{head} {100 * row['photo']:5.1f}% {100 * row['both']:5.1f}% {100 * row['80']:5.1f}%", flush=True
        )
    summary = {
        "model": arguments.model,
        "torch": torch.__version__,
        "machine": platform.machine(),
        "threads": arguments.threads,
        "seconds": round(time.perf_counter() - start, 1),
        "rows": results,
    }
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
