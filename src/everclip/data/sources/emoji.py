"""emoji - the offline default: everyday things drawn by many hands, shipped in the package.

Class-incremental: 100 concepts; training and test pictures are different vendors' drawings of the same concept.
Domain-incremental: six style families; the label is a category (mammal, fruit, vehicle, ...), and the concepts tested
never occur in training. Pictures and licences: `everclip/assets/emoji/NOTICE.md`.

    everclip train data=emoji:captions method=gcl scenario.kind=data-incremental

emoji:captions is image-text pairs: 323 things, each with its Unicode name ("hot dog") and its keywords ("hot dog, food,
frankfurter, ...") as two captions. The five tasks are Unicode's groups; those who drew the test pictures drew none of
the training pictures.
"""

from __future__ import annotations

import csv
import hashlib
import zipfile
from pathlib import Path

from everclip.data.formats.pairs import Pairs, dataset
from everclip.data.gathered import Archive
from everclip.data.images import Dataset, build
from everclip.data.sources import Source
from everclip.errors import UserError

ASSETS = Path(__file__).parents[2] / "assets" / "emoji"
TEMPLATES = ("a photo of a {}.", "an emoji of a {}.", "a drawing of a {}.")


CAPTIONS = "captions"
TRAINED = ("noto", "noto-v1", "emojione", "fluent-emoji", "fluent-emoji-flat")
TESTED = ("twemoji", "fxemoji", "streamline-emojis")
"""Sets of pictures with captions, by other makers; the sets in black and white are left out."""


def verified(name: str) -> Path:
    """Return the shipped file, after its SHA-256 was compared with SHA256SUMS. Raises UserError where it differs."""
    path = ASSETS / name
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if f"{found}  {name}" not in (ASSETS / "SHA256SUMS").read_text().splitlines():
        raise UserError(f"{path} is damaged (its SHA-256 differs): reinstall everclip")
    return path


class Emoji(Source):
    """The pictures shipped with the package."""

    def load(self, argument: str | None, kind: str) -> Dataset:
        if argument == CAPTIONS:
            return _captioned()
        if argument:
            raise UserError(f'data "emoji" takes no folder: use emoji:{CAPTIONS}, or imagefolder:{argument}')
        lists = kind if kind == "domain-incremental" else "class-incremental"
        with verified(f"{lists}.csv").open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        classes = list(dict.fromkeys(row["class"] for row in rows))
        domains = list(dict.fromkeys(row.get("domain", "") for row in rows))
        return build(
            "emoji",
            Archive(verified("pictures.zip"), [row["path"] for row in rows]),
            [classes.index(row["class"]) for row in rows],
            [domains.index(row.get("domain", "")) for row in rows],
            [row["split"] == "test" for row in rows],
            classes,
            domains,
            TEMPLATES,
        )


def _captioned() -> Dataset:
    """Return the pictures with names and keywords as captions."""
    about: dict[str, tuple[str, list[str]]] = {}
    with verified("captions.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            about[row["code"]] = row["group"], [row["name"], row["keywords"].replace(";", ", ")]
    archive = verified("pictures.zip")
    with zipfile.ZipFile(archive) as pictures:
        keys = [name for name in pictures.namelist() if name.partition("/")[0] in TRAINED + TESTED]
    said = [about[Path(key).stem] for key in keys]
    rows = Pairs(
        [captions for _, captions in said],
        [key.partition("/")[0] in TESTED for key in keys],
        None,
        [group for group, _ in said],
    )
    return dataset(f"emoji:{CAPTIONS}", f"emoji:{CAPTIONS}", Archive(archive, keys), rows)
