"""Read the blocks of code of README.md and the guides in docs/, and write the folder that their commands speak of."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tests.pictures import COLOURS, domain_folder, image_folder, picture
from tests.printed import printed
from tests.report.synthetic import write_run

ROOT = Path(__file__).parents[1]
GUIDES = ["README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]
NEW = {"orange": (240, 140, 20), "purple": (130, 30, 160)}
"""Classes that the pictures of ``photos`` do not have."""
_BLOCK = re.compile(r"(?:^<!-- not run: (.+?) -->\n)?^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_ASKED = "exec 3>&1\ncommand_not_found_handle() { printf '%s\\037' \"$@\" >&3; printf '\\036' >&3; }\nPATH=/nowhere\n"
"""Makes a shell say the words of each command, which it cannot find."""


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
    """What the guides take for granted: pictures old and new, a list, a config, a source of one's own, runs to draw."""
    image_folder(root / "photos", {"train": 6, "test": 3})
    image_folder(root / "holdout", {"": 4}, seed=300)
    image_folder(root / "other", {"": 3}, classes=3, seed=700)
    for number, (name, colour) in enumerate(NEW.items()):
        for folder, first in (("new", 9000), ("holdout", 9500)):
            (root / folder / name).mkdir(parents=True)
            for index in range(6):
                picture(colour, first + 10 * number + index).save(root / folder / name / f"{index}.png")
    domain_folder(root / "pacs")
    picture(COLOURS["red"], 12).save(root / "photo.jpg")
    (root / "my.toml").write_text('[method]\nname = "gcl"\n', encoding="utf-8")
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
    for method in ("gcl", "gdro"):
        for seed in range(2):
            write_run(root / "runs" / "S" / f"{method}_{seed}", method=method, memory=200, seed=seed, tasks=3)
    return root


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

    def some(colours: dict[str, tuple[int, int, int]], first: int) -> tuple[list[Any], list[str]]:
        names = [name for name in colours for _ in range(6)]
        return [picture(colours[name], first + number) for number, name in enumerate(names)], names

    images, labels = some(NEW, 20_000)
    more, names = some(COLOURS, 21_000)
    held_out, truth = some(COLOURS | NEW, 22_000)
    rng = np.random.default_rng(0)
    centres = {name: rng.normal(size=768) for name in COLOURS}
    x = np.stack([centres[name] + rng.normal(size=768) for name in names])
    return {
        "np": np,
        "images": images,
        "labels": labels,
        "more": more,
        "more_images": more,
        "names": names,
        "more_labels": names,
        "batch": some(COLOURS, 23_000)[0],
        "photos": held_out,
        "held_out": held_out,
        "truth": truth,
        "x": x,
        "y": np.array(names),
        "d": np.arange(len(names)) % 2,
    }
