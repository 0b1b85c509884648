"""What is in a folder, held against what is to be in it."""

from __future__ import annotations

import hashlib
import json
import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from everclip.system.checkpoint import MANIFEST, Damaged, verify

TIMED = {
    "manifest.json",
    "update.json",
    "verdict.json",
    "verdict.html",
    "results.json",
    "metrics.jsonl",
}
"""Files whose numbers tell of times, also where two of them happen to be the same."""
LOGS = "logs"
"""The folder for what the processes of a sweep say."""
RUN_LOG = "run.log"
"""What a run says, which is more where it was stopped and went on."""
_TEXTS = {".csv", ".html", ".json", ".jsonl", ".log", ".svg", ".toml"}
_RANDOM = re.compile(r"everclip-[0-9a-f]{8}(?![^/])")
_NUMBERS = re.compile(rb"[0-9a-fA-F]+([.:+T-][0-9a-fA-F]+)*")


class Look(NamedTuple):
    """A file: the hash of its bytes, and that of its text without numbers, if it is one; empty of a folder."""

    exact: str
    text: str


def look(folder: Path) -> dict[str, Look]:
    """What is in a folder, by paths relative to it."""
    found: dict[str, Look] = {}
    for root, folders, files in os.walk(folder):
        place = Path(root)
        for name in folders:
            found[str((place / name).relative_to(folder))] = Look("", "")
        for name in files:
            content = (place / name).read_bytes()
            text = _NUMBERS.sub(b"#", content) if Path(name).suffix in _TEXTS else content
            prints = (hashlib.sha256(each).hexdigest() for each in (content, text))
            found[str((place / name).relative_to(folder))] = Look(*prints)
    return found


def state(found: Mapping[str, Look]) -> str:
    """A hash of what is there, the same whatever random names and times have become."""
    lines = []
    for path, entry in sorted(found.items()):
        name = Path(path).name
        if name != RUN_LOG:
            lines.append(f"{_RANDOM.sub('everclip-', path)} {entry.text if name in TIMED else entry.exact}")
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()


class Expected(NamedTuple):
    """What a folder is to hold: files that are the same each time, texts that are but for numbers, other names.

    Args:
        exact, text: path -> hash.
        names: of all.
    """

    exact: dict[str, str]
    text: dict[str, str]
    names: frozenset[str]

    @classmethod
    def of(cls, one: Mapping[str, Look], other: Mapping[str, Look]) -> Expected:
        """What two undisturbed commands agree on. Raises RuntimeError where they wrote other names."""
        if one.keys() != other.keys():
            raise RuntimeError(
                f"two undisturbed commands write other files: {sorted(one.keys() ^ other.keys())}"
            )
        # also of what was killed and went on
        told = [path for path in one if Path(path).parent.name == LOGS or Path(path).name == RUN_LOG]
        fixed = [path for path in one if Path(path).name not in TIMED and path not in told]
        exact = {path: one[path].exact for path in fixed if one[path].exact == other[path].exact}
        alike = [path for path in one if path not in told and one[path].text == other[path].text]
        same = {path: one[path].text for path in alike}
        return cls(exact, same, frozenset(one))

    def under(self, path: str) -> Expected:
        """The part that is at a path: that itself, and what is in it."""

        def mine(name: str) -> bool:
            return name == path or name.startswith(f"{path}/")

        exact, text = ({n: h for n, h in part.items() if mine(n)} for part in (self.exact, self.text))
        return Expected(exact, text, frozenset(filter(mine, self.names)))

    def differences(self, found: Mapping[str, Look]) -> list[str]:
        """Where something else is found, each in words."""
        lines = [f"{path} is missing" for path in sorted(self.names - found.keys())]
        lines += [f"{path} is left" for path in sorted(found.keys() - self.names)]
        for path, entry in sorted(found.items()):
            want = self.exact.get(path), self.text.get(path)
            if path in self.names and (want[0] or entry.exact) != entry.exact:
                lines.append(f"{path} is another file")
            elif path in self.names and (want[1] or entry.text) != entry.text:
                lines.append(f"{path} is another text")
        return lines


def touched(before: Mapping[str, Look], after: Mapping[str, Look], whose: Iterable[str]) -> list[str]:
    """What of these paths, and of what is in them, is not as it was, each in words."""
    own = [*whose]
    paths = [path for path in before if any(path == name or path.startswith(f"{name}/") for name in own)]
    return [
        f"{path}, the user's, is {'another' if path in after else 'gone'}"
        for path in paths
        if before[path] != after.get(path)
    ]


def torn(folder: Path) -> list[str]:
    """Files that are cut off, and folders that are not what their manifest says, apart from hidden ones."""
    lines = []
    for root, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".") and not name.endswith(".tmp")]
        for name in files:
            if name.startswith("."):
                continue
            path = Path(root, name)
            try:
                if path.suffix == ".json":
                    json.loads(path.read_bytes())
                elif path.suffix == ".toml":
                    tomllib.loads(path.read_text("utf-8"))
                elif path.suffix == ".html" and not path.read_bytes().rstrip().endswith(b"</html>"):
                    raise ValueError("it does not end")
                if name == MANIFEST:
                    verify(path.parent)
            except (ValueError, Damaged) as error:
                lines.append(f"{path.relative_to(folder)} is torn ({error})")
    return lines
