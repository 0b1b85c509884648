"""captionfolder:PATH - your images with a text file beside each: 1.jpg and 1.txt, or 1.json.

    photos/1.jpg  photos/1.txt       each line of a .txt is a caption
    photos/2.jpg  photos/2.json      {"caption": "..."} or {"caption": ["...", "..."]}; a .txt goes before it

Images lie anywhere under PATH, or under train/ and test/ (or val/) in it. Where all of them lie in folders of PATH (or
of train/ and test/), two at least, these name their tasks (everclip scenarios data-incremental). Without a test part, a
fifth is held out, by a hash of the file's name.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from everclip.data.captions import checked
from everclip.data.formats.folders import PART_NAMES, Fence, checked_root, image_files, subfolders
from everclip.data.formats.pairs import Pairs, dataset, of_json
from everclip.data.images import Dataset, FileStore
from everclip.data.sources import Source
from everclip.errors import UserError
from everclip.system.reading import parse_json, read_text, readable
from everclip.system.text import lines

LAYOUT = "1.jpg and 1.txt"
MOST_TEXT = 1 << 20
"""Bytes of a text file."""


class CaptionFolder(Source):
    """Pictures with a text beside each."""

    def load(self, argument: str | None, kind: str) -> Dataset:
        root = checked_root(argument, "captionfolder", LAYOUT)
        there = subfolders(root)
        test = next((name for name in ("test", "val") if name in there), None) if "train" in there else None
        odd = [name for name in there if name.lower() in PART_NAMES]
        if test is None and len(there) > 1 and odd:
            raise UserError(
                f'{root} has "{odd[0]}" and no parts "train" and "test" (or "val"): give its parts these names'
            )
        alone = there == ["train"] and not image_files(root, "", deep=False)  # tests are held out of it
        places = ["train"] if alone else [""] if test is None else ["train", test]
        found = {place: image_files(root, place) for place in places}
        keys = [key for place in places for key in found[place]]
        if not keys:
            raise UserError(f"no images under {root}: put images there, each with a text file ({LAYOUT})")
        fence = Fence(root)
        captions = [_captions(root, key, fence) for key in keys]
        tests = None if test is None else [place == test for place in places for _ in found[place]]
        rows = Pairs(captions, tests, None, _tasks(keys, "" not in places))
        return dataset(f"captionfolder:{argument}", str(root), FileStore(root, keys), rows)


def _tasks(keys: Sequence[str], parted: bool) -> list[str] | None:
    """Return the folder of each image, below its part; None where an image lies in none, or all lie in the same."""
    inside = [key.split("/")[parted:] for key in keys]
    tasks = [path[0] for path in inside if len(path) > 1]
    return tasks if len(tasks) == len(keys) and len({*tasks}) > 1 else None


def _captions(root: Path, key: str, fence: Fence) -> list[str]:
    """Return the captions of an image. Raises UserError where there are none, or the image or its text is elsewhere."""
    image = root / key
    texts = [image.with_suffix(suffix) for suffix in (".txt", ".json")]
    text = next((path for path in texts if path.exists()), None)
    if text is None:
        raise UserError(f"{image} has no caption: write {texts[0].name} beside it, or remove it")
    for path in (image, text):
        if not fence.holds(str(path)):
            raise UserError(f"{path} links out of {root}: copy the file there (cp -rL)")
    with readable(text, "save it as UTF-8", "cannot be read as a caption"):
        content = read_text(text, MOST_TEXT)
        if text.suffix == ".txt":
            return checked(str(text), [line for line in lines(content) if line.strip()])
        return of_json(str(text), parse_json(content))
