"""Read data sets from folders: find image files, split them, name classes. All folder sources share this."""

from __future__ import annotations

import logging
import os
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from everclip.data.images import Dataset, FileStore, build
from everclip.data.prompts import PHOTO, check_templates, clean, read_class_names, read_templates
from everclip.errors import UserError
from everclip.seeding import hash64
from everclip.system.text import printable

log = logging.getLogger("everclip")

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm"}
TEST_NAMES = ("test", "val")
ADDITION = "addition"
"""Kind of a scenario in which a model that already knows classes learns more, so that one class is enough."""
PART_NAMES = {"train", "training", "test", "testing", "val", "valid", "validation"}
"""What people call the parts of a data set, in any case; only "train", "test" and "val" are taken as such."""


def checked_root(argument: str | None, source: str, layout: str) -> Path:
    """Return the folder that a spec names. Raises UserError where it is missing, no folder or unreadable."""
    if not argument:
        raise UserError(f'data "{source}" needs a folder: use data={source}:/path ({layout})')
    root = Path(os.path.expanduser(argument))
    try:
        wrong = "" if root.is_dir() else "is a file" if root.exists() else "does not exist"
    except OSError as error:
        unreadable(error)
    if wrong:
        raise UserError(f"data folder {root} {wrong}: give a folder with {layout}")
    return root


def subfolders(folder: Path) -> list[str]:
    """Return sorted names of the visible folders in a folder. Raises UserError where it cannot be read."""
    try:
        with os.scandir(folder) as entries:  # says what is a folder without asking for each file
            names = sorted(entry.name for entry in entries if _is_folder(entry) and not _hidden(entry.name))
        check_text(names, str(folder))
        return names
    except OSError as error:
        unreadable(error)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a loop of links
        return False


def unreadable(error: OSError) -> NoReturn:
    """Raise UserError for a folder that cannot be listed."""
    raise UserError(
        f"folder {error.filename} cannot be read ({error.strerror}): check its permissions"
    ) from error


def check_text(names: Sequence[str], where: str) -> None:
    """Refuse names that are not UTF-8: they could be neither hashed nor logged. Raises UserError for the first.

    Args:
        where: what holds them, for the message.
    """
    for name in names:
        if not name.isascii() and any("\ud800" <= c <= "\udfff" for c in name):
            shown = name.encode("utf-8", "backslashreplace").decode()
            if sys.getfilesystemencoding() != "utf-8":
                raise UserError(f'"{shown}" in {where} is not text in this locale: set LC_ALL=C.UTF-8')
            raise UserError(f'"{shown}" in {where} is not a UTF-8 name: rename it')


def _hidden(name: str) -> bool:
    """Return whether a folder is hidden, or is what macOS adds to an archive or Python to a folder."""
    return name.startswith(".") or name in ("__MACOSX", "__pycache__")


def image_files(root: Path, folder: str, deep: bool = True) -> list[str]:
    """Return image files anywhere (directly, if not ``deep``) under ``root/folder``, as sorted paths relative to
    ``root``.

    Links to folders are not followed, so a loop of links ends; entries that are not files are listed all the same
    and found broken when they are read.
    """
    found: list[str] = []
    for path, folders, files in os.walk(root / folder, onerror=unreadable):
        check_text([*folders, *files], path)
        names = files + [name for name in folders if Path(name).suffix.lower() in SUFFIXES]
        folders[:] = sorted(
            name for name in folders if not _hidden(name) and Path(name).suffix.lower() not in SUFFIXES
        )
        relative = Path(path).relative_to(root)
        found += [
            (relative / name).as_posix()
            for name in names
            if Path(name).suffix.lower() in SUFFIXES and not name.startswith(".")
        ]
        if not deep:
            break
    return sorted(found)


def absent(root: Path, keys: Iterable[str]) -> list[str]:
    """Return the files, given by their paths relative to ``root``, that are absent; each folder is read once."""
    files: dict[str, set[str]] = {}
    for key in keys:
        folder, _, name = key.rpartition("/")
        files.setdefault(folder, set()).add(name)
    lost = []
    for folder, names in files.items():
        with suppress(OSError):
            names -= set(os.listdir(root / folder))
        lost += [f"{folder}/{name}" if folder else name for name in sorted(names)]
    return lost


def split_of(keys: Iterable[str]) -> dict[str, bool]:
    """Path -> whether it is a test image, for the images of one class without a test part.

    A fifth is the test part, by a hash of the file's name, so that adding files hardly ever moves an old one. Where
    several files share a name, such as 1/rgb.png and 2/rgb.png, the whole path is hashed, unless there are only two
    files. A class of two images or more has at least one on each side.
    """
    names = {key: Path(key).name for key in keys}
    counts = Counter(names.values())  # files of one name would all be on one side
    alone = {key: len(names) <= 2 or counts[name] == 1 for key, name in names.items()}
    hashes = {key: hash64("split", name if alone[key] else key) for key, name in names.items()}
    test = {key: value % 5 == 0 for key, value in hashes.items()}
    if len(test) == 1:
        return dict.fromkeys(test, False)
    if len(set(test.values())) == 1:
        by_hash = sorted(hashes, key=hashes.__getitem__)
        changed = by_hash[0] if not test[by_hash[0]] else by_hash[-1]
        test[changed] = not test[changed]
    return test


def parts(root: Path) -> tuple[str, str | None]:
    """Return the prefixes of the training and the test part under ``root``. Raises UserError for parts of other names.

    ``("train/", "test/")`` (or ``"val/"``); ``("train/", None)`` and ``("", None)`` where there is no test part.
    """
    there = subfolders(root)
    tests = [name for name in TEST_NAMES if name in there]
    if "train" not in there:
        if there and all(name.lower() in PART_NAMES and _holds_folders(root, name) for name in there):
            raise UserError(
                f'{root} has {_quoted(there)} but no "train": name its parts "train" and "test", or give one'
            )
        return "", None
    if not tests and len(there) > 1:
        # A "train" that holds pictures is a class of that name: trains are photographed too.
        if not _holds_folders(root, "train"):
            return "", None
        others = _quoted([name for name in there if name != "train"])
        raise UserError(f'{root} has "train" beside {others}: name the test part "test" or "val"')
    return "train/", f"{tests[0]}/" if tests else None


def _holds_folders(root: Path, folder: str) -> bool:
    """Return whether a folder holds folders and no pictures of its own."""
    return bool(subfolders(root / folder)) and not image_files(root, folder, deep=False)


def _quoted(names: Sequence[str]) -> str:
    """Return the first names, for a message."""
    shown = " and ".join(f'"{name}"' for name in names[:3])
    return f"{shown} and {len(names) - 3} more" if len(names) > 3 else shown


def dataset(
    name: str,
    root: Path,
    found: Sequence[tuple[str, str, str, bool]],
    domains: Sequence[str],
    places: Sequence[str],
    held_out: bool,
    least: int = 2,
) -> Dataset:
    """Return a Dataset of files under ``root``. Raises UserError for missing images, names that collide, or a link that
    leads outside, to files that the folder's maker may not be allowed to see.

    Args:
        found: (relative path, domain folder, class folder, is test) per image.
        domains: domain folders in the order learned.
        places: the folders, relative to ``root``, that hold the class folders.
        held_out: the test images were chosen by ``split_of``.
        least: smallest number of classes; 1 where a model learns them in addition.
    """
    folders = sorted({row[2] for row in found})
    keys = (key for place in places for key in image_files(root, place, deep=False))
    loose = [key for key in keys if not (root / key).is_dir()]  # in no class folder
    if not found and loose:
        raise UserError(f"{root} holds images but no class folders, such as {loose[0]}: use CLASS folders")
    if not found:
        raise UserError(f"no images under {root}: put files such as .jpg or .png into CLASS folders there")
    if len(folders) < least:
        raise UserError(f'{root} has one class, "{folders[0]}": a classifier needs two: add a CLASS folder')
    trained = {row[2] for row in found if not row[3]}
    untrained = [folder for folder in folders if folder not in trained]
    if untrained:
        remedy = f"add some, or remove it (an update takes --add {root}/train and --test {root}/test)"
        raise UserError(f'class "{untrained[0]}" in {root} has no training images: {remedy}')
    if loose:
        log.warning(
            "%d images lie outside of the class folders of %s and are left out, such as %s: move them into CLASS"
            " folders",
            *(len(loose), root, loose[0]),
        )
    fence = Fence(root)
    for key, *_ in found:
        if not fence.holds(f"{root}/{key}"):
            raise UserError(f"{root / key} links out of {root}: copy the image there (cp -rL)")
    listed, templates = beside(root, "classnames.txt"), beside(root, "templates.txt")
    names = read_class_names(listed, folders) if listed else [*map(clean, folders)]
    label = {folder: index for index, folder in enumerate(folders)}
    domain = {folder: index for index, folder in enumerate(domains)}
    return build(
        name,
        FileStore(root, [row[0] for row in found]),
        [label[row[2]] for row in found],
        [domain[row[1]] for row in found],
        [row[3] for row in found],
        check_names(names, str(root), folders),
        check_names([clean(folder) for folder in domains], str(root), domains, domains=True)
        if len(domains) > 1
        else domains,
        read_templates(templates) if templates else (PHOTO,),
        held_out,
    )


def check_names(
    names: Sequence[str],
    where: str,
    folders: Sequence[str] | None = None,
    domains: bool = False,
    listed: bool = True,
) -> Sequence[str]:
    """Return the names. Raises UserError unless all are printable and differ, as a text tower cannot tell two classes
    of one name apart.

    Args:
        where: what has them, for the message; ``folders``: where each comes from (None: they are numbered).
        listed: whether a classnames.txt beside the folders may name them otherwise.
    """
    one, more = ("domain", "domains") if domains else ("class", "classes")
    named = folders and listed and not domains
    hint = ", or name it in classnames.txt (folder<TAB>name)" if named else ""
    first: dict[str, int] = {}
    for index, name in enumerate(names):
        this, before = (f'"{folders[i]}"' if folders else i + 1 for i in (index, first.get(name, index)))
        if not name:
            raise UserError(f"{one} {this} of {where} has an empty name: rename it{hint}")
        if printable(name) != name:
            raise UserError(
                f'{one} {index + 1} of {where} is named "{printable(name)}", with characters that cannot be printed:'
                f" rename it{hint}"
            )
        if name in first:
            raise UserError(
                f'{more} {before} and {this} of {where} are both named "{name}": rename one{hint}'
            )
        first[name] = index
    return names


def check_texts(data: Dataset, where: str) -> None:
    """Refuse a data set whose names or templates a model folder could not hold. Raises UserError."""
    check_names(data.class_names, where)
    if len(data.domain_names) > 1:
        check_names(data.domain_names, where, domains=True)
    check_templates(data.templates, where)


def beside(folder: Path, name: str, links: Iterable[str] = ()) -> Path | None:
    """Return a text file of a data set, or None where it has none. Raises UserError for a link that leads outside, as
    others see the file's content in reports and model cards.

    Args:
        name: of the file, such as ``classnames.txt``.
        links: other folders that it may link to.
    """
    path = folder / name
    if not Fence(folder, *links).holds(str(path)):
        raise UserError(f"{path} links out of {folder}: copy the file there (cp -L)")
    return path if path.exists() else None


class Fence:
    """Tell whether files lie in one of several folders, after following links."""

    def __init__(self, *folders: str | Path) -> None:
        self._folders = [os.path.realpath(folder) for folder in folders]
        self._known: dict[str, bool] = {}

    def holds(self, path: str) -> bool:
        """Return whether the file at ``path``, which need not exist, lies inside. Each folder is followed once."""
        if os.path.basename(path) in ("", ".", "..") or os.path.islink(path):
            return self._inside(os.path.realpath(path))
        parent = os.path.dirname(path)
        if parent not in self._known:
            self._known[parent] = self._inside(os.path.realpath(parent))
        return self._known[parent]

    def _inside(self, real: str) -> bool:
        return any(
            real == folder or real.startswith(folder.rstrip(os.sep) + os.sep) for folder in self._folders
        )
