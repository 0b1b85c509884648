"""Read lists of the classes of ImageNet's validation images, in their common forms.

    ImageId,PredictionString                      Kaggle's LOC_val_solution.csv: class and boxes
    ILSVRC2012_val_00048981,n03995372 85 1 499 272

    ILSVRC2012_val_00000001.JPEG n01751748        val_labels.txt of many scripts
    ILSVRC2012_val_00000001.JPEG 65               Caffe's val.txt: place among the sorted ids, from 0
    n01751748                                     TensorFlow's synset labels: one per line, in the images' order

The official devkit numbers its classes in an order of its own. Such a list would pass for the third form and label
nearly every image wrongly, so the first five images, whose classes are known, are compared.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from everclip.data.prompts import read_lines
from everclip.errors import UserError

FIRST = (65, 970, 230, 809, 516)
"""Places of the first five validation images among the sorted ids (Caffe's val.txt; TensorFlow's list agrees)."""
_FORMS = 'use lines such as "ILSVRC2012_val_00000001.JPEG n01751748"'


def image_name(number: int) -> str:
    """Return the name, without its ending, of the validation image with this number, from 1."""
    return f"ILSVRC2012_val_{number:08d}"


def read(path: Path, known: Sequence[str]) -> dict[str, str]:
    """Return image's name without its ending -> WordNet id. Raises UserError for another form or the devkit's numbers.

    Args:
        known: the WordNet ids, sorted.
    """
    lines = read_lines(path, "label list", blank=True)
    if "" in lines:
        raise UserError(f"line {lines.index('') + 1} of {path} is blank, and lines may be counted: remove it")
    if lines[0].lower().startswith("imageid,"):
        lines = lines[1:]
    ids = set(known)
    found: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        name, label = _entry(line, number, path, len(known))
        wnid = known[int(label)] if label.isdecimal() else label
        if wnid not in ids:
            raise UserError(f'{path} gives {name} the id "{wnid}", no class of ImageNet-1k: {_FORMS}')
        if found.setdefault(name, wnid) != wnid:
            raise UserError(f"{path} lists {name} as {found[name]} and as {wnid}: keep one of them")
    for number, place in enumerate(FIRST, 1):
        wnid = found.get(image_name(number), known[place])
        if wnid != known[place]:
            raise UserError(
                f"{path} has another order ({image_name(number)} is {known[place]}, not {wnid}): {_FORMS}"
            )
    return found


def _entry(line: str, number: int, path: Path, classes: int) -> tuple[str, str]:
    """Return an image's name and its label: an id, or a number below ``classes``."""
    words = re.split(r"[,\s]+", line.strip())
    if len(words) == 1 and re.fullmatch(r"n\d{8}", words[0]):
        return image_name(number), words[0]
    if len(words) == 1 and words[0].isdecimal():
        raise UserError(f"line {number} of {path} is a number alone, of the devkit's own order: {_FORMS}")
    is_number = len(words) == 2 and words[1].isdecimal() and len(words[1]) < 10 and int(words[1]) < classes
    if len(words) < 2 or not (is_number or re.fullmatch(r"n\d{8}", words[1])):
        raise UserError(f"line {number} of {path} is {line[:40]!a}: {_FORMS}")
    return Path(words[0]).stem, words[1]
