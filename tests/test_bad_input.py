"""What users do wrong with pictures and settings, and what is merely odd, each with the lines that they read."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from itertools import count, product
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from filelock import FileLock
from PIL import Image

from everclip.cli.app import main
from everclip.runs.words import several
from tests.pictures import image_folder, picture

Spoil = Callable[[Path], object]
"""Changes a good folder: blue, green and red with three training pictures and a test picture each. A list that it
returns is settings."""
Train = Callable[[Spoil], tuple[int, str, str]]

SMALL = ["scenario.tasks=2", "train.steps=1", "train.batch_size=8", "memory.budget=6", "device=cpu"]
DOMAINS = ["data=domainfolder:{root}", "scenario.kind=domain-incremental"]
LAYOUT = "CLASS/*.jpg, or train/CLASS and test/CLASS"
NAME_IT = "rename one, or name it in classnames.txt (folder<TAB>name)"
NO_TEXT = "cannot be read (No such file or directory): give a text file"
DENIED = "cannot be read (Permission denied): check its permissions"
UNKNOWN = "no JPEG, PNG, BMP, WEBP, GIF, TIFF or PPM"
GREY = picture((90, 60, 9), 0)
LONGEST = 160  # characters of a line besides the folder's path


class Case(NamedTuple):
    """An input, the lines it gives, the exit code; images left out (path -> a part of the reason), names of classes
    or tasks of a run that ends well, and whether root sees it too."""

    id: str
    spoil: Spoil
    lines: str
    code: int = 2
    skipped: Mapping[str, str] = {}
    named: Sequence[str] = ()
    as_root: bool = True


def settings(*tokens: str) -> Spoil:
    return lambda root: [*tokens]


def write(name: str, text: str, *tokens: str, encoding: str = "utf-8") -> Spoil:
    return lambda root: [(root / name).write_text(text, encoding), *tokens][1:]


def save(images: Mapping[str, Image.Image]) -> Spoil:
    return lambda root: [image.save(root / name) for name, image in images.items()] and None


def every(pattern: str, change: Callable[..., object], *arguments: object) -> Spoil:
    """Changes every file or folder of a pattern."""
    return lambda root: [change(path, *arguments) for path in sorted(root.glob(pattern))] and None


def tree(*layout: str, tokens: Sequence[str] = ()) -> Spoil:
    """Three pictures in each folder of, for example, ``train/a,b/x,y`` in place of the good folder."""

    def spoil(root: Path) -> list[str]:
        shutil.rmtree(root)
        root.mkdir()
        seeds = count()  # no two are the same
        for line in layout:
            for parts in product(*(names.split(",") for names in line.split("/"))):
                root.joinpath(*parts).mkdir(parents=True)
                for number in range(3):
                    picture((90, 60, 9), next(seeds)).save(root.joinpath(*parts, f"{number}.png"))
        return [*tokens]

    return spoil


def impostors(root: Path) -> None:
    red = root / "train" / "red"
    (red / "folder.jpg").mkdir()
    (red / "loop.jpg").symlink_to("loop.jpg")
    (red / "gone.jpg").symlink_to("nowhere")
    (red / "up").symlink_to(root / "train", target_is_directory=True)


def kinds_of_images() -> dict[str, Image.Image]:
    """Pictures in red that are not 8-bit RGB."""
    found = {f"{mode}.png": GREY.convert(mode) for mode in ("1", "L", "LA", "P", "RGBA")}
    found["16.png"] = Image.fromarray(np.asarray(GREY.convert("L")).astype(np.uint16) * 257)
    found["nan.tif"] = Image.fromarray(np.full((40, 40), np.nan, dtype=np.float32))
    found |= {"CMYK.JPG": GREY.convert("CMYK"), "x.gif": GREY, "x.webp": GREY, "x.bmp": GREY}
    return {f"train/red/{name}": image for name, image in found.items()}


# fmt: off
CASES = [
    # The folder.
    Case("no folder given", settings("data=imagefolder:"),
         f'error: data "imagefolder" needs a folder: use data=imagefolder:/path ({LAYOUT})'),
    Case("missing folder", settings("data=imagefolder:{root}/no"),
         f"error: data folder {{root}}/no does not exist: give a folder with {LAYOUT}"),
    Case("folder that links to itself", lambda root: (root / "a").symlink_to("a") or ["data=imagefolder:{root}/a"],
         f"error: data folder {{root}}/a does not exist: give a folder with {LAYOUT}"),
    Case("file for a folder", write("a.zip", "", "data=imagefolder:{root}/a.zip"),
         f"error: data folder {{root}}/a.zip is a file: give a folder with {LAYOUT}"),
    Case("folder alone that is missing", settings("data={root}/no"),
         'error: data "{root}/no" is not there: give a folder of CLASS folders, or a source (everclip datasets)'),
    Case("word alone", settings("data=imagefoldr"),
         'error: data "imagefoldr" is neither a source nor a folder that exists; did you mean "imagefolder" or'
         ' "domainfolder"?'),
    Case("unknown source", settings("data=imagefoldr:{root}"),
         'error: unknown source "imagefoldr"; did you mean "imagefolder" or "domainfolder"?'),
    Case("emoji of a folder", settings("data=emoji:{root}"),
         'error: data "emoji" takes no folder: use emoji:captions, or imagefolder:{root}'),
    Case("empty folder", tree(),
         "error: no images under {root}: put files such as .jpg or .png into CLASS folders there"),
    Case("unreadable folder", lambda root: root.chmod(0),
         f"error: folder {{root}} {DENIED}", as_root=False),
    # Its layout.
    Case("images in no class folder", settings("data=imagefolder:{root}/test/red"),
         "error: {root}/test/red holds images but no class folders, such as 0.png: use CLASS folders"),
    Case("images beside class folders", save({"train/a.png": GREY}),
         "warning: 1 images lie outside of the class folders of {root} and are left out, such as train/a.png: move"
         " them into CLASS folders", 0),
    Case("test part alone", every("train", shutil.rmtree),
         'error: {root} has "test" but no "train": name its parts "train" and "test", or give one'),
    Case("parts in capitals", tree("Train,TEST/x,y"),
         'error: {root} has "TEST" and "Train" but no "train": name its parts "train" and "test", or give one'),
    Case("another test part", tree("train,validation/x,y"),
         'error: {root} has "train" beside "validation": name the test part "test" or "val"'),
    Case("domains as classes", tree("train,test/oil,ink/x,y"),
         "warning: the folders of {root} are taken as classes though each holds folders of the same names: for"
         " DOMAIN/CLASS/*.jpg use data=domainfolder:{root}", 0),
    Case("classes as domains", tree("red,tan", tokens=DOMAINS),
         "error: {root}/red has no CLASS folders of images: use them, or imagefolder:{root}"),
    Case("tasks of domains without domains", settings("scenario.kind=domain-incremental"),
         "error: imagefolder:{root} has one domain: use scenario.kind=class-incremental, or domainfolder:PATH"),
    Case("domain without tests", tree("train/oil,ink/x,y", "test/ink/x,y", tokens=DOMAINS),
         'error: domain "oil" of {root} is in train/ but not in test/: add or remove it'),
    Case("domain without training", tree("train/ink/x,y", "test/oil,ink/x,y", tokens=DOMAINS),
         'error: domain "oil" of {root} is in test/ but not in train/: add or remove it'),
    # Its classes.
    Case("one class", tree("red"),
         'error: {root} has one class, "red": a classifier needs two: add a CLASS folder'),
    Case("class without images", every("train/red/*", os.unlink),
         "error: class folder {root}/train/red has no images: add some, or remove it"),
    Case("class without a training folder", every("train/red", shutil.rmtree),
         'error: class "red" in {root} has no training images: add some, or remove it (an update takes --add'
         ' {root}/train and --test {root}/test)'),
    Case("class without test images", every("test/red/*", os.unlink),
         'warning: 1 of 3 classes have no test images, such as "red": their accuracy is not measured', 0),
    Case("task without test images", every("test/[rg]*", shutil.rmtree),
         "error: task 2 (green, ...) has no test images: add some to its classes, or use fewer tasks"),
    Case("unreadable class folder", every("train/red", os.chmod, 0),
         f"error: folder {{root}}/train/red {DENIED}", as_root=False),
    Case("names that collide", tree("hot_dog,hot dog"),
         f'error: classes "hot dog" and "hot_dog" of {{root}} are both named "hot dog": {NAME_IT}'),
    Case("names that differ in spaces", tree("hot dog,hot dog "),
         f'error: classes "hot dog" and "hot dog " of {{root}} are both named "hot dog": {NAME_IT}'),
    Case("names that differ in case", write("classnames.txt", "Apple\nblue\napple\n"),
         f'warning: text towers ignore case and read the classes "Apple" and "apple" alike: {NAME_IT}', 0),
    Case("name that is nothing", tree("_,a"),
         'error: class "_" of {root} has an empty name: rename it, or name it in classnames.txt (folder<TAB>name)'),
    Case("domains that collide", tree("a_b,a b/x,y", tokens=DOMAINS),
         'error: domains "a b" and "a_b" of {root} are both named "a b": rename one'),
    # Lists of names and templates.
    Case("too few names", write("classnames.txt", "one\n"),
         "error: {root}/classnames.txt has 1 lines for 3 classes: use as many, or folder<TAB>name"),
    Case("equal names", write("classnames.txt", "a\nb\na\n"),
         f'error: classes "blue" and "red" of {{root}} are both named "a": {NAME_IT}'),
    Case("equal names in a list given", write("x.txt", "a\nb\na\n", "classnames={root}/x.txt"),
         'error: classes 1 and 3 of {root}/x.txt are both named "a": rename one'),
    Case("name of an unknown folder", write("classnames.txt", "redd\trose\n"),
         'error: line 1 of {root}/classnames.txt is "redd<TAB>rose": use "folder<TAB>name" of a class'),
    Case("folder named twice", write("classnames.txt", "red\trose\nblue\tsky\nred\truby\n"),
         'error: lines 1 and 3 of {root}/classnames.txt both name "red": keep one'),
    Case("names in another encoding", write("classnames.txt", "red\trosé\n", encoding="latin-1"),
         "error: class names file {root}/classnames.txt cannot be read (line 1 is not UTF-8 text): give a text file"),
    Case("missing names", settings("classnames={root}/x"), f"error: class names file {{root}}/x {NO_TEXT}"),
    Case("missing templates", settings("templates={root}/x"), f"error: templates file {{root}}/x {NO_TEXT}"),
    Case("template without a place", write("templates.txt", "a photo of a thing, " * 9),
         'error: template 1 of {root}/templates.txt is "a photo of a thing, a photo of a thin...": use "{}" once,'
         " for a class"),
    Case("no templates", write("templates.txt", "\n\n"),
         "error: templates file {root}/templates.txt is empty: use one entry per line"),
    # Its images.
    Case("broken image", every("train/red/0.png", os.truncate, 0),
         "warning: skipping 1 broken image: see run.log", 0, {"train/red/0.png": UNKNOWN}),
    Case("truncated images", every("t*/red/0.png", os.truncate, 300),
         "warning: skipping 2 broken images: see run.log", 0,
         {f"{part}/red/0.png": "image file is truncated" for part in ("train", "test")}),
    Case("a folder, a loop and a dead link", impostors,
         "warning: skipping 3 broken images: see run.log", 0,
         {"train/red/folder.jpg": "Is a directory", "train/red/gone.jpg": "No such file or directory",
          "train/red/loop.jpg": "Too many levels of symbolic links"}),
    Case("unreadable image", every("train/red/0.png", os.chmod, 0),
         "warning: skipping 1 broken image: see run.log", 0, {"train/red/0.png": "Permission denied"}, as_root=False),
    Case("image of one column", save({"train/red/thin.png": Image.new("L", (1, 200_000))}),
         "warning: skipping 1 broken image: see run.log", 0, {"train/red/thin.png": "too thin: 1 x 200000"}),
    Case("no readable training image", every("train/*/*", os.truncate, 0),
         "warning: skipping 9 broken images: see run.log\n"
         "error: not one training image of task 1 can be read: see the skipped images in run.log", 1),
    Case("no readable test image", every("test/*/*", os.truncate, 0),
         "warning: skipping 3 broken images: see run.log\n"
         "error: not one test image of task 1 can be read: see the skipped images in run.log", 1),
    # Settings.
    Case("budget below the classes", settings("memory.budget=2"),
         "warning: memory.budget=2 is below the 3 classes: once more than 2 classes are seen, no class keeps an"
         " exemplar; use at least 3, or 0", 0),
    Case("negative budget", settings("memory.budget=-1"),
         'error: memory.budget is -1: use a whole number from 0 or "all"'),
    Case("more tasks than classes", settings("scenario.tasks=4"),
         "error: scenario.tasks=4 but there are 3 classes: use at most 3"),
    Case("order with an unknown class of many", tree(*map(str, range(40)), tokens=['scenario.order=["x"]']),
         'error: scenario.order names the unknown class "x"; use names such as "0"'),
    Case("loss that is NaN", settings("train.lr=1e30", "train.steps=3"),
         'error: the features "image" are not finite at step 2 of task 1 (ids of its first images: N, N, N): lower'
         " train.lr", 1),
    Case("file for a run", write("../run", "mine"),
         "error: out={tmp}/run exists and is not a run directory: give a new or an empty folder"),
    # Odd, and fine.
    Case("quotes, markup and braces in names", tree('it\'s "it"', "[red]x", "<b>&amp; {}%s\\"),
         "", 0, named=['it\'s "it"', "[red]x", "<b>&amp; {}%s\\"]),
    Case("spaces and letters of all kinds", tree(" hot_dog ", "Größe ☂", "猫_قطة"),
         "", 0, named=["hot dog", "Größe ☂", "猫 قطة"]),
    Case("slashes in names", write("classnames.txt", "red\tAC/DC\\x\n"), "", 0, named=["blue", "green", "AC/DC\\x"]),
    Case("odd file names", save({'train/red/ünï "cödé"\n\'猫\' 100%.PNG': GREY}), "", 0),
    Case("grey, 16-bit, palette, CMYK and transparent images", save(kinds_of_images()), "", 0),
    Case("images deep in class folders", tree("cat/tabby,manx", "dog/pug,poodle/old"), "", 0, named=["cat", "dog"]),
    Case("order by the folders of domains",
         tree("in_oil,ink/x,y", tokens=[*DOMAINS, 'scenario.order=["ink", "in_oil"]']), "", 0, named=["in oil", "ink"]),
]
# fmt: on


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return image_folder(tmp_path_factory.mktemp("good"), {"train": 3, "test": 1}, 3)


@pytest.fixture
def train(good: Path, toy: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Train:
    """Runs ``everclip train`` on a spoilt copy of the good folder: exit code, stdout, stderr."""

    def run(spoil: Spoil) -> tuple[int, str, str]:
        root = tmp_path / "photos"
        shutil.copytree(good, root)
        changes = spoil(root)
        tokens = [t.replace("{root}", str(root)) for t in (changes if isinstance(changes, list) else [])]
        given = {token.partition("=")[0] for token in tokens}
        usual = [f"data=imagefolder:{root}", f"model={toy}", *SMALL, f"out={tmp_path / 'run'}"]
        code = main(["train", *(token for token in usual if token.partition("=")[0] not in given), *tokens])
        for path in (root, root / "train" / "red"):
            if path.is_dir():
                path.chmod(0o755)
        out, err = capsys.readouterr()
        return code, out, err.replace(str(root), "{root}").replace(str(tmp_path), "{tmp}")

    return run


def said(stderr: str) -> str:
    """The errors and warnings, with ids as N."""
    lines = [line for line in stderr.splitlines() if line.startswith(("error: ", "warning: "))]
    return re.sub(r"\b\d{12,}\b", "N", "\n".join(lines))


@pytest.mark.parametrize("case", CASES, ids=[case.id for case in CASES])
def test_what_the_user_reads(
    case: Case, tmp_path: Path, train: Train, request: pytest.FixtureRequest
) -> None:
    if not case.as_root:
        request.getfixturevalue("unprivileged")
    code, stdout, stderr = train(case.spoil)
    run = tmp_path / "run"
    assert (said(stderr), code) == (case.lines, case.code)
    assert all(len(line.replace("{root}", "")) <= LONGEST for line in case.lines.splitlines())
    if code == 2:
        assert stderr == f"{case.lines}\n"
        assert not stdout
        assert not (run / "config.toml").exists()
        assert run.exists() == case.lines.startswith("error: out=")
    if code == 0:
        results = json.loads((run / "results.json").read_text(encoding="utf-8"))
        assert {*case.named} <= {*results["classes"], *results["tasks"]}
        assert {*results["skipped_images"]} == {*case.skipped}
        assert (run / "report.html").exists()
    for path, reason in case.skipped.items():
        assert re.search(f"skipped {re.escape(path)}: .*{re.escape(reason)}", (run / "run.log").read_text())
        assert f"skipped {several(len(case.skipped), 'broken image')}: see run.log" in stdout


def test_two_runs_in_one_folder(tmp_path: Path, train: Train) -> None:
    assert train(settings())[0] == 0
    shutil.rmtree(tmp_path / "photos")
    results = (tmp_path / "run" / "results.json").read_bytes()
    code, _, stderr = train(settings("seed=5"))
    assert code == 2
    assert stderr == (
        "error: {tmp}/run holds a run of another config (seed: 0 there, 5 here): give another out, or remove that"
        " folder\n"
    )
    shutil.rmtree(tmp_path / "photos")
    with FileLock(tmp_path / "run" / ".lock"):
        code, _, stderr = train(settings())
    assert code == 2
    assert stderr == "error: {tmp}/run is in use by another run: wait, or give another out\n"
    assert (tmp_path / "run" / "results.json").read_bytes() == results
