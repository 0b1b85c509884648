"""Build wheel and sdist into dist/, check both, and run the demo from the wheel in a bare virtual environment.

    python tools/release.py            # "make release"; --trial makes the demo a trial run of a minute

Nothing is uploaded and no tag is set: the last lines are the commands that would do so. A working tree with changes, a
CHANGELOG without a dated section for the version, a CITATION.cff that says something else, and a tag of that version
on other content are refused in one line, before anything is built.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterable
from datetime import date
from email.parser import HeaderParser
from pathlib import Path
from typing import Any

import yaml

from everclip.errors import UserError

ROOT = Path(__file__).parents[1]
PAPER = "https://arxiv.org/abs/2605.03866"
AUTHORS = [{"name": "The everclip contributors"}]
NEEDED = {
    "py.typed",
    "configs/demo.toml",
    "assets/emoji/pictures.zip",
    "assets/emoji/NOTICE.md",
    "report/page.html.j2",
}
"""Files that a wheel cannot do without, should git ever lose track of them."""


def version(root: Path) -> str:
    """The version that the source states, which pyproject.toml reads as well."""
    text = (root / "src" / "everclip" / "_version.py").read_text(encoding="utf-8")
    found = re.search(r'^__version__ = "(\d+\.\d+\.\d+[.\w]*)"$', text, re.MULTILINE)
    if found is None:
        raise UserError('src/everclip/_version.py has no line __version__ = "X.Y.Z": write one')
    return found[1]


def check_pages(root: Path) -> str:
    """Compare CHANGELOG.md and CITATION.cff with the version, and return the version.

    Raises:
        UserError: the first thing that does not agree, with what to write instead.
    """
    wanted = version(root)
    if ".dev" in wanted:
        release = wanted.partition(".dev")[0]
        raise UserError(f"src/everclip/_version.py has {wanted}, a version in development: write {release}")
    changes = (root / "CHANGELOG.md").read_text(encoding="utf-8")
    section = re.search(rf"^## {re.escape(wanted)}(.*)$\n([\s\S]*?)(?=^## |\Z)", changes, re.MULTILINE)
    if section is None:
        raise UserError(f"CHANGELOG.md has no section {wanted}: name it '## {wanted} - {date.today()}'")
    dated = section[1].removeprefix(" - ")
    if not re.fullmatch(r"\d{4}-\d{2}-\d{2}", dated):
        raise UserError(f"CHANGELOG.md has no date at {wanted}: write '## {wanted} - {date.today()}'")
    if not re.search(r"^- ", section[2], re.MULTILINE):
        raise UserError(f"CHANGELOG.md says nothing of {wanted}: list what is new, as '- ...'")
    cited: dict[str, Any] = yaml.safe_load((root / "CITATION.cff").read_text(encoding="utf-8"))
    for key, value in {"version": wanted, "date-released": dated, "authors": AUTHORS}.items():
        said = cited.get(key)
        if (said if key == "authors" else str(said)) != value:
            raise UserError(f"CITATION.cff has {key} {said}: write {value}")
    if PAPER not in [one.get("url") for one in cited.get("references", [])]:
        raise UserError(f"CITATION.cff does not cite the paper: add {PAPER} under references")
    return wanted


def git(root: Path, *words: str) -> str:
    """What git prints for these words, or "" where it fails."""
    return subprocess.run(
        ["git", *words], cwd=root, capture_output=True, text=True, check=False
    ).stdout.strip()


def check_tree(root: Path, wanted: str) -> None:
    """Refuse a folder whose files are not those of a commit, and a version that was tagged with other files.

    Raises:
        UserError: with the first file that differs, or the commit of the tag.
    """
    if not git(root, "rev-parse", "HEAD"):
        raise UserError(f"{root} is not a git checkout: release from a clone")
    if changed := git(root, "status", "--porcelain").splitlines():
        raise UserError(
            f"the working tree has {len(changed)} changes, such as {changed[0]!r}: commit or remove them"
        )
    tagged = git(root, "rev-parse", "--quiet", "--verify", f"refs/tags/v{wanted}^{{tree}}")
    if tagged and tagged != git(root, "rev-parse", "HEAD^{tree}"):
        raise UserError(f"the tag v{wanted} has other content: raise the version in src/everclip/_version.py")


def build(root: Path, out: Path) -> tuple[Path, Path]:
    """Build the sdist, and from it the wheel, in the empty folder ``out``; return wheel and sdist."""
    words = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(root)]
    found = subprocess.run(words, capture_output=True, text=True, check=False)
    if found.returncode:
        raise UserError(f"python -m build failed: {(found.stdout + found.stderr).strip().splitlines()[-1]}")
    return next(out.glob("*.whl")), next(out.glob("*.tar.gz"))


def tracked(root: Path) -> set[str]:
    """Names of the files that git knows, or would not ignore, relative to ``root``."""
    listed = git(root, "ls-files", "-z", "--cached", "--others", "--exclude-standard").split("\0")
    return {name for name in listed if (root / name).is_file()}


def check_content(root: Path, wheel: Path, sdist: Path) -> None:
    """Compare what is packed with what git knows: the package and its licences, or everything.

    Raises:
        UserError: a file is missing or does not belong there, or the metadata lack a licence.
    """
    files = tracked(root)
    licences = {name for name in files if name in ("LICENSE", "NOTICE") or name.startswith("LICENSES/")}
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        info = next(name for name in names if name.endswith(".dist-info/METADATA")).removesuffix("METADATA")
        metadata = HeaderParser().parsestr(archive.read(f"{info}METADATA").decode())
    own = {name.removeprefix("src/") for name in files if name.startswith("src/everclip/")}
    own |= {f"everclip/{name}" for name in NEEDED}
    own |= {f"{info}licenses/{name}" for name in licences}
    _same(
        wheel.name,
        names,
        own | {f"{info}{name}" for name in ("METADATA", "RECORD", "WHEEL", "entry_points.txt")},
    )
    if set(metadata.get_all("License-File", [])) != licences or not metadata["License-Expression"]:
        raise UserError(
            f"{wheel.name} does not name the licences {sorted(licences)}: see license-files in pyproject"
        )
    with tarfile.open(sdist) as packed:
        inside = {one.name.partition("/")[2] for one in packed.getmembers() if one.isfile()}
    _same(sdist.name, inside, files | {"PKG-INFO"})


def _same(what: str, found: Iterable[str], wanted: Iterable[str]) -> None:
    if missing := sorted({*wanted} - {*found}):
        raise UserError(f"{what} lacks {len(missing)} files, such as {missing[0]}")
    if foreign := sorted({*found} - {*wanted}):
        raise UserError(f"{what} has {len(foreign)} files that do not belong there, such as {foreign[0]}")


def run_wheel(wheel: Path, wanted: str, folder: Path, trial: bool) -> str:
    """Install the wheel into a new virtual environment in ``folder``, run the demo there, and say how it ended.

    Raises:
        UserError: ``everclip --version`` says another version.
        CalledProcessError: a command failed; it has said why.
    """
    own = {key: value for key, value in os.environ.items() if not key.startswith(("EVERCLIP_", "PYTHON"))}
    environment = own | {"EVERCLIP_CACHE": str(folder / "cache")}
    scripts = folder / "venv" / ("Scripts" if os.name == "nt" else "bin")
    work = folder / "work"
    work.mkdir()

    def call(*words: str | Path) -> None:
        subprocess.run(words, cwd=work, env=environment, check=True)

    call(sys.executable, "-m", "venv", folder / "venv")
    pip = (scripts / "python", "-m", "pip", "--quiet", "--disable-pip-version-check")
    call(*pip, "install", "-c", ROOT / "constraints.txt", f"{wheel}[lite]")
    call(*pip, "check")
    said = subprocess.check_output([scripts / "everclip", "--version"], cwd=work, env=environment, text=True)
    if said.strip() != wanted:
        raise UserError(f"everclip --version says {said.strip()!r}: it should be {wanted}")
    call(scripts / "everclip", "train", "demo", "out=run", *(["smoke=true"] if trial else []))
    return ended(work / "run")


def ended(run: Path) -> str:
    """Return how a finished run ended: its last accuracy and the size of its page."""
    results = json.loads((run / "results.json").read_text(encoding="utf-8"))
    return f"last {results['last']:.1%}, page of {(run / 'report.html').stat().st_size / 1e6:.1f} MB"


def main(trial: bool) -> None:
    """Check, build, check what was built, and say how to publish it."""
    wanted = check_pages(ROOT)
    check_tree(ROOT, wanted)
    print(f"everclip {wanted}: CHANGELOG.md and CITATION.cff agree, the working tree is clean", flush=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        wheel, sdist = build(ROOT, folder / "dist")
        for path in (wheel, sdist):
            print(f"built {path.name}, {path.stat().st_size / 1e6:.1f} MB", flush=True)
        check_content(ROOT, wheel, sdist)
        print(
            "the wheel has the package and its licences, the sdist all files of the commit, no others",
            flush=True,
        )
        subprocess.run([sys.executable, "-m", "twine", "check", "--strict", wheel, sdist], check=True)
        print(f"the demo from the wheel: {run_wheel(wheel, wanted, folder, trial)}", flush=True)
        shutil.rmtree(
            ROOT / "dist", ignore_errors=True
        )  # of an earlier release; only what passed comes there
        shutil.copytree(folder / "dist", ROOT / "dist")
    print(
        f"dist/ is ready. To publish:\n    git tag -a v{wanted} -m 'everclip {wanted}' && git push origin v{wanted}"
    )
    print(f"    twine upload dist/{wheel.name} dist/{sdist.name}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--trial", action="store_true", help="make the demo a trial run (smoke=true)")
    try:
        main(parser.parse_args().trial)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except subprocess.CalledProcessError as error:
        print(f"error: {' '.join(map(str, error.cmd))} ended with code {error.returncode}", file=sys.stderr)
        sys.exit(1)
