"""The largest resident size of a training run on a processor.

    python -m benchmarks.memory [--model ViT-B-32 | --model lite] [--batch 32]

``everclip train`` in a process of its own, one thread, fp32, method gdro: 80 pictures of 10 classes, two steps, the
test and both checkpoints, so that all that a run does is included. Random weights (`lite` has its own), 224 px.
Measured are full fine-tuning, the same with gradient checkpointing, ``tune=top:2`` above a kept trunk, and the import
of torch alone. Goals for ViT-B-32: 3.0 GB in full, 1.3 GB cached. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from benchmarks.children import python
from benchmarks.jobs import machine

RUNS = {
    "full": ["tune=full"],
    "full_checkpointing": ["tune=full", "train.checkpointing=true"],
    "cached_top2": ["tune=top:2", "train.augment=none", "cache.trunk=on"],
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="ViT-B-32", help="an open_clip name, or lite")
    parser.add_argument("--batch", type=int, default=32)
    wanted = parser.parse_args()
    peaks = {"import_torch": python(["-c", "import torch"]).peak}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        python(["-m", "benchmarks.start", "--save", str(folder), "--model", wanted.model])
        model = "lite" if wanted.model == "lite" else f"local-dir:{folder / 'model'}"
        fixed = [f"data=imagefolder:{folder / 'data'}", f"model={model}", "scenario.tasks=1", "device=cpu"]
        fixed += [f"train.batch_size={wanted.batch}", "train.steps=2", "image_size=224", "method=gdro"]
        for name, words in RUNS.items():
            out = f"out={folder / name}"
            peaks[name] = python(["-m", "everclip", "train", *fixed, *words, out]).peak
    found = {name: round(peak / 1e9, 2) for name, peak in peaks.items()}
    for name, gigabytes in found.items():
        print(f"{name}: {gigabytes:.2f} GB")
    print(json.dumps(found | vars(wanted) | {"machine": machine()}))


if __name__ == "__main__":
    main()
