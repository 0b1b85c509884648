"""Read the blocks of code of README.md and the guides in docs/, and write the folder that their commands speak of."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.pictures import COLOURS, domain_folder, image_folder, picture
from tests.printed import printed
from tests.report.synthetic import write_run

ROOT = Path(__file__).parents[1]
GUIDES = ["README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]
KNOWN = {name: COLOURS[name] for name in ("red", "green", "blue", "yellow", "black")} | {
    "sports car": (120, 90, 60)
}
"""Classes of ``photos``."""
NEW = {"orange": (240, 140, 20), "purple": (130, 30, 160)}
"""Classes of ``new``."""
EACH = 3
"""Pictures of a class: an update trains no tower on fewer than 20."""
_BLOCK = re.compile(r"(?:^<!-- not run: (.+?) -->\n)?^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_ASKED = r"""exec 3>&1
command_not_found_handle() { local IFS=$'\037'; printf '%s\037\036' "$*" >&3; }
PATH=/nowhere
"""
"""Makes a shell say the words of each command, which it cannot find; at once, as pipes run side by side."""


@dataclass(frozen=True)
class Block:
    """A block of code; ``why`` says why it is not run, where it is not."""

    page: str
    line: int
    language: str
    text: str
    why: str | None

    @property
    def name(self) -> str:
        """Where it stands."""
        return f"{self.page}:{self.line}"


def blocks(page: str) -> list[Block]:
    """The fenced blocks of a page."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return [
        Block(page, text.count("\n", 0, found.start(2)) + 1, found[2], found[3], found[1])
        for found in _BLOCK.finditer(text)
    ]


def asked(block: str, folder: Path) -> list[list[str]]:
    """The words of each command of a block, as a shell in ``folder`` reads it; nothing is run."""
    done = subprocess.run(
        ["bash", "-c", _ASKED + block], cwd=folder, capture_output=True, text=True, check=False, timeout=20
    )
    assert not done.stderr, done.stderr
    return [line.split("\x1f")[:-1] for line in done.stdout.split("\x1e")[:-1]]


def write_folder(root: Path) -> Path:
    """What the guides take for granted: pictures old and new, a list, a config, a source of one's own."""
    for place, classes, first in (
        ("photos/train", KNOWN, 1000),
        ("photos/test", KNOWN, 2000),
        ("new", NEW, 3000),
        ("holdout", KNOWN | NEW, 4000),
    ):
        for number, (image, name) in enumerate(zip(*_some(classes, first), strict=True)):
            (root / place / name).mkdir(parents=True, exist_ok=True)
            image.save(root / place / name / f"{number % EACH}.png")
    (root / "photos" / "7.jpg").write_bytes((root / "photos" / "train" / "red" / "0.png").read_bytes())
    image_folder(root / "other", {"": 3}, classes=3, seed=700)
    domain_folder(root / "pacs")
    picture(COLOURS["red"], 12).save(root / "photo.jpg")
    (root / "my.toml").write_text('[method]\nname = "gcl"\n', encoding="utf-8")
    (root / "captions.txt").write_text("a red square\na dog\n", encoding="utf-8")
    (root / "my_source.py").write_text(printed("MySource"), encoding="utf-8")
    (root / "FOLDER").mkdir()
    rows = ["path,label,split,domain"]
    for number in range(40):
        name = "abcdefghij"[number % 10]
        picture((25 * (number % 10), 100, 200 - 20 * (number % 10)), number).save(
            root / "FOLDER" / f"{name}-{number}.png"
        )
        rows.append(f"FOLDER/{name}-{number}.png,{name},{'train' if number < 30 else 'test'},photo")
    (root / "list.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    head, *lines = rows
    dated = [f"{head},time", *(f"{line},2024-05-{n % 30 + 1:02d}" for n, line in enumerate(lines))]
    (root / "dated.csv").write_text("\n".join(dated) + "\n", encoding="utf-8")
    said = ["path,caption,split,task,time"]
    for number, row in enumerate(rows[1:]):
        path, name, part, _ = row.split(",")
        said.append(f"{path},number {number} of {name},{part},{number % 2},{number % 10}")
    (root / "pairs.csv").write_text("\n".join(said) + "\n", encoding="utf-8")
    return root


def write_runs(folder: Path) -> None:
    """Finished runs, as of a sweep."""
    for method in ("gcl", "gdro"):
        for seed in range(2):
            write_run(folder / f"{method}_{seed}", method=method, memory=200, seed=seed, tasks=3)


def write_saved(root: Path) -> None:
    """A data set of Hugging Face's package, with domains."""
    from tests.data.hf_sets import saved, table

    saved(
        root / "saved",
        train=table(domain=["photo", "sketch"]),
        test=table(2, domain=["photo", "sketch"], start=90),
    )


def given() -> dict[str, Any]:
    """What the Python blocks take for granted: pictures, names and features."""
    images, labels = _some(NEW, 20_000)
    more, names = _some(KNOWN, 21_000)
    held_out, truth = _some(KNOWN | NEW, 22_000)
    rng = np.random.default_rng(0)
    centres = {name: rng.normal(size=768) for name in KNOWN}
    x = np.stack([centres[name] + rng.normal(size=768) for name in names])
    return {
        "np": np,
        "images": images,
        "labels": labels,
        "more": more,
        "more_images": more,
        "names": names,
        "more_labels": names,
        "batch": _some(KNOWN, 23_000)[0],
        "photos": held_out,
        "held_out": held_out,
        "truth": truth,
        "x": x,
        "y": np.array(names),
        "d": np.arange(len(names)) % 2,
    }


def _some(colours: Mapping[str, tuple[int, int, int]], first: int) -> tuple[list[Image.Image], list[str]]:
    """A few pictures of each class, none like another, and their names."""
    names = [name for name in colours for _ in range(EACH)]
    return [picture(colours[name], first + number) for number, name in enumerate(names)], names
