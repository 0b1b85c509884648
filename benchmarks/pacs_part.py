"""The fixed part of PACS that the benchmarks use: 60 training and 20 test images a class and domain.

    EVERCLIP_DATA=/folder/with/pacs128 python -m benchmarks.pacs_part OUT

makes OUT/{train,test}/DOMAIN/CLASS/ with copies of the images whose names have the smallest hashes, the same on every
machine; ``data=domainfolder:OUT`` reads it.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from everclip.seeding import hash64

TRAIN, TEST = 60, 20


def build(source: Path, out: Path) -> int:
    """Copy the part of ``source`` (DOMAIN/CLASS/*.jpg) into ``out``; returns the number of images."""
    count = 0
    for folder in sorted(path for path in source.glob("*/*") if path.is_dir()):
        name = folder.relative_to(source)
        files = sorted(
            folder.glob("*.jpg"), key=lambda file: hash64("pacs-part", (name / file.name).as_posix())
        )
        for index, file in enumerate(files[: TRAIN + TEST]):
            target = out / ("test" if index < TEST else "train") / name / file.name
            target.parent.mkdir(parents=True, exist_ok=True)
            if not target.exists():
                shutil.copyfile(file, target)
            count += 1
    return count


if __name__ == "__main__":
    print(build(Path(os.environ["EVERCLIP_DATA"]) / "pacs128", Path(sys.argv[1])), "images")
