"""webdataset:SHARDS - your images in tar files here: a folder, or 'train-{0000..0003}.tar?train=4000,test=1000'.

    everclip train 'data=webdataset:shards?train=4000,test=1000'
    everclip train 'data=webdataset:shards/{train-{000..146},val-{00..06}}.tar'      with shards/sizes.json

A folder holds `train-*.tar` and `test-*.tar` (or `val-*.tar`), or `train/*.tar` and `test/*.tar`; a name may have
braces and the wildcards * and ?, and `::` joins several. Test shards have the word "test" or "val" in their name, else
in their folder's (val is left out beside test); those beside the training shards are found without being named. Without
any, a fifth of each class is held out. Quote the spec: shells know braces and wildcards too.

The number of samples has to be given, so that a missing one is noticed: after "?" for each part, or as `sizes.json`
beside the shards, {"train-0000.tar": 1000, ...}.

The members of a sample share their name up to the first dot: one .jpg, .jpeg, .png or .webp, and the label, which is a
number in .cls, a number or a name in .json as "label", or in .txt. Nothing else is decoded, least of all pickles. Where
labels are numbers, line N + 1 of `classnames.txt` beside the shards names class N. `templates.txt` overrides the
prompt.

    everclip train 'data=webdataset:shards?train=4000,captions=txt' scenario.kind=data-incremental method=gcl

With captions=txt or captions=json the samples are image-text pairs: the caption is the whole .txt, or the "caption" in
the .json, a text or a list of texts.
"""

from __future__ import annotations

import glob
import logging
import os
import re
from collections.abc import Mapping, Sequence
from itertools import chain, pairwise
from pathlib import Path

from everclip.data.formats import pairs
from everclip.data.formats.folders import beside
from everclip.data.formats.shards import Shard, TarStore, read_shard, same_images
from everclip.data.formats.tables import MOST_IMAGES, Origin, Rows, dataset
from everclip.data.images import Dataset
from everclip.data.prompts import PHOTO, read_lines
from everclip.data.sources import Source
from everclip.errors import UserError, shown, suggest
from everclip.system.reading import read_json, readable

log = logging.getLogger("everclip")

MOST_SHARDS = 100_000
BENCHMARK_TEMPLATES = "zeroshot_classification_templates.txt"
"""What CLIP_benchmark's exports call their prompts, with {c} for the class name."""
_PART = re.compile(r"(?<![a-z])(train|test|val|validation)(?![a-z])")
_EXAMPLE = "'data=webdataset:train-{0000..0003}.tar?train=4000,test=1000'"


class WebDataset(Source):
    """Pictures in tar files."""

    def load(self, argument: str | None, kind: str) -> Dataset:
        from huggingface_hub import constants

        if not argument:
            raise UserError(f'data "webdataset" needs tar files: use {_EXAMPLE}')
        spec, counts, captions = _parse(argument)
        train, test = _parts(spec, _find(spec))
        if not train:  # shards of one part alone are used as they are
            train, test = test, []
            counts = dict(zip(["train"], counts.values(), strict=False))
        parts = {"train": _read(train, captions)} | ({"test": _read(test, captions)} if test else {})
        _check_counts(spec, parts, counts, captions)
        shards = [*chain.from_iterable(parts.values())]
        root = Path(os.path.commonpath([shard.path.parent for shard in shards]))
        folder = _names_folder(train[0].parent)
        is_test = [part == "test" for part, group in parts.items() for shard in group for _ in shard.keys]
        if captions is not None:
            said = [texts for shard in shards for texts in shard.captions]
            columns = pairs.Pairs(said, is_test if test else None)
            return pairs.dataset(f"webdataset:{argument}", spec, TarStore(root, shards), columns)
        rows = Rows([label for shard in shards for label in shard.labels], is_test if test else None)
        hint = "shards have none; use csv, hf or domainfolder"
        links = (constants.HF_HUB_CACHE,)  # what the hub's client keeps are links into its cache
        templates = _templates(folder, links)
        origin = Origin(f"webdataset:{argument}", spec, kind, hint, folder, links, templates)
        return dataset(origin, TarStore(root, shards), rows)


def _parse(argument: str) -> tuple[str, dict[str, int], str | None]:
    """Return the shards' pattern and the number of samples per part. Raises UserError for a remote or bad one."""
    if "://" in argument or argument.startswith("pipe:"):
        raise UserError(f'data "webdataset" reads local files, not {shown(argument)}: download them first')
    has_options = re.search(r"\?\w+=[^/?]*$", argument)
    spec, _, options = argument.rpartition("?") if has_options else (argument, "", "")
    counts: dict[str, int] = {}
    captions: str | None = None
    for option in re.split(r"[,&]", options) if options else []:
        name, _, number = option.partition("=")
        name = "test" if name == "val" else name
        if name == "captions":
            if captions is not None or number not in ("txt", "json"):
                raise UserError('data "webdataset": use captions=txt or captions=json, once')
            captions = number
            continue
        if name not in ("train", "test"):
            known = ["train", "test", "captions"]
            raise UserError(f'data "webdataset" has no option {shown(name)}{suggest(name, known)}')
        if name in counts or not re.fullmatch(r"[1-9][0-9]{0,11}", number):
            raise UserError(f'data "webdataset": {shown(option)} is not a number of samples: use {name}=1000')
        counts[name] = int(number)
    return os.path.expanduser(spec), counts, captions


def _find(spec: str) -> list[Path]:
    """Return the shards' paths, sorted. Raises UserError where one is missing or no file."""
    if os.path.isdir(spec):
        found = _in_folder(Path(spec))
    else:
        names = (expanded for name in spec.split("::") for expanded in _braces(name))
        found = [path for name in names for path in _matches(name)]
    paths = sorted({Path(os.path.abspath(path)) for path in found})
    if len(paths) > MOST_SHARDS:
        raise UserError(f"{spec} names more than {MOST_SHARDS:,} shards: use larger ones")
    for path in paths:
        if not path.is_file():
            raise UserError(f"shard {path} is missing, or is not a file: copy it there")
    return paths


def _in_folder(root: Path) -> list[Path]:
    """Return the shards of a folder, or of its parts' folders. Raises UserError where there are none or too few."""
    parts = [root / name for name in ("train", "test", "val") if any((root / name).glob("*.tar"))]
    folders = parts if root / "train" in parts else [root]
    paths = []
    for folder in folders:
        found = sorted(folder.glob("*.tar"))
        if not found:
            raise UserError(f"{folder} holds no .tar files: give a folder of shards, or use {_EXAMPLE}")
        path = folder / "nshards.txt"  # CLIP_benchmark's exports say how many there are
        said = read_lines(path, "shard count")[0].strip() if path.exists() else str(len(found))
        if said != str(len(found)):
            raise UserError(f"{folder} has {len(found)} shards, and nshards.txt says {said[:20]}: copy all")
        paths += found
    return paths


def _braces(name: str) -> list[str]:
    """``a-{00..02}.tar`` -> three names, ``{a,b}`` -> two, nested too. Raises UserError for others, or too many."""
    start = name.find("{")
    if start < 0:
        return [name]
    cuts, depth = [start], 0
    for place in range(start, len(name)):
        depth += (name[place] == "{") - (name[place] == "}")
        if depth == 0 or (depth == 1 and name[place] == ","):
            cuts.append(place)
        if depth == 0:
            break
    inside = [name[cut + 1 : end] for cut, end in pairwise(cuts)]
    numbers = re.fullmatch(r"([0-9]{1,9})\.\.([0-9]{1,9})", inside[0]) if len(inside) == 1 else None
    if depth or name.count("{") > 20 or (len(inside) == 1 and not numbers):
        raise UserError(f"the braces of {shown(name)} are not a range: use {{0000..0003}} or {{train,test}}")
    if numbers:
        first, last = sorted(int(number) for number in numbers.groups())
        width = max(len(number) if number.startswith("0") else 0 for number in numbers.groups())
        found = [f"{number:0{width}}" for number in range(first, min(last, first + MOST_SHARDS) + 1)]
    else:
        found = [expanded for part in inside for expanded in _braces(part)]
    tails = _braces(name[cuts[-1] + 1 :])
    if len(found) * len(tails) > MOST_SHARDS:
        raise UserError(f"{shown(name)} names more than {MOST_SHARDS:,} shards: use a smaller range")
    return [f"{name[:start]}{middle}{tail}" for middle in found for tail in tails]


def _matches(name: str) -> list[Path]:
    """Return the file of a name, or those that match its wildcards. Raises UserError where none does."""
    if not re.search(r"[*?\[]", name) or os.path.exists(name):
        return [Path(name)]
    found = [Path(path) for path in glob.glob(name)]
    if not found:
        raise UserError(f"no file matches {shown(name, 1000)}: give a folder of shards, or use {_EXAMPLE}")
    return found


def _part(path: Path) -> str:
    """Return "train", "test", "val" or "", by the last such word in a shard's name, else in its folder's."""
    for name in (path.stem, path.parent.name):
        words = _PART.findall(name.lower())
        if words:
            return "val" if words[-1] == "validation" else words[-1]
    return ""


def _parts(spec: str, paths: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """Return training shards and test shards, which may be val shards, or be found beside the training shards."""
    named = {part: [path for path in paths if _part(path) == part] for part in ("train", "test", "val", "")}
    train = named["train"] + named[""]
    if named["test"] and named["val"]:
        log.warning("%s has test shards: its %d val shards are left out", spec, len(named["val"]))
    test = named["test"] or named["val"]
    return train, test if test or not named["train"] else _beside(named["train"])


def _beside(train: Sequence[Path]) -> list[Path]:
    """Return test shards in the folders of the training shards, in folders "test" or "val" of these, or beside them."""
    folders = {path.parent for path in train}
    above = folders | {folder.parent for folder in folders if folder.name == "train"}
    folders |= {folder / name for folder in above for name in ("test", "val")}
    found = [path for folder in sorted(folders) for path in sorted(folder.glob("*.tar"))]
    tests = [path for path in found if _part(path) == "test"]
    return tests or [path for path in found if _part(path) == "val"]


def _read(paths: Sequence[Path], captions: str | None) -> list[Shard]:
    """Return the shards' indices. Raises UserError for a bad one, one that is there twice, and too many images."""
    shards: list[Shard] = []
    before: dict[int, list[Shard]] = {}
    images = 0
    for path in paths:
        shard = read_shard(path, captions)
        if not shard.keys:
            raise UserError(f"shard {path} holds no samples: copy it again, or leave it out")
        alike = before.setdefault(hash((*shard.keys, *shard.sizes)), [])
        for other in alike:
            if same_images(other, shard):
                raise UserError(f"shards {other.path} and {path} hold the same samples: leave one out")
        alike.append(shard)
        images += len(shard.keys)
        if images > MOST_IMAGES:
            raise UserError(f"the shards up to {path} have over {MOST_IMAGES:,} images: give fewer shards")
        shards.append(shard)
    return shards


def _check_counts(
    spec: str, parts: Mapping[str, Sequence[Shard]], counts: Mapping[str, int], captions: str | None
) -> None:
    """Compare the number of samples with what ``counts`` or ``sizes.json`` say. Raises UserError where they differ."""
    if "test" in counts and "test" not in parts:
        raise UserError(f"{spec} names no test shards for test={counts['test']}: name them, or leave it out")
    found = {part: sum(len(shard.keys) for shard in shards) for part, shards in parts.items()}
    for part, shards in parts.items():
        if counts.get(part, found[part]) != found[part]:
            raise UserError(
                f"{spec} has {found[part]} {part} samples, not {counts[part]}: copy all, or give that number"
            )
        if part not in counts and not all(_size_is_known(shard) for shard in shards):
            options = ",".join(f"{part}={count}" for part, count in found.items())
            options += f",captions={captions}" if captions else ""
            raise UserError(
                f"{spec} needs the number of samples: use '{spec}?{options}' if these are all, or sizes.json"
            )


def _size_is_known(shard: Shard) -> bool:
    """Return whether ``sizes.json`` beside a shard, {name: samples}, agrees with it; False where it is not there.
    Raises UserError where it differs."""
    path = shard.path.parent / "sizes.json"
    if not path.exists():
        return False
    entry = f'"{shard.path.name}": {len(shard.keys)}'
    with readable(path, f"use {{{entry}, ...}}"):
        sizes = read_json(path)
    if not isinstance(sizes, dict) or sizes.get(shard.path.name) != len(shard.keys):
        raise UserError(f"{path} does not say {entry}: copy the shard again, or write that")
    return True


def _names_folder(folder: Path) -> Path:
    """Find the folder of ``classnames.txt``: beside the shards, or above their part's folder."""
    names = ("classnames.txt", "templates.txt", BENCHMARK_TEMPLATES)
    above = folder.name == "train" and not any((folder / name).exists() for name in names)
    return folder.parent if above else folder


def _templates(folder: Path, links: tuple[str, ...]) -> tuple[str, ...]:
    """Return CLIP_benchmark's prompts, if they are there."""
    path = beside(folder, BENCHMARK_TEMPLATES, links)
    lines = read_lines(path, "templates") if path else []
    return tuple(line.replace("{c}", "{}") for line in lines if line.count("{c}") == 1) if lines else (PHOTO,)
