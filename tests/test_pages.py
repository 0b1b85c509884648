"""README.md and the guides in docs/: each command and each Python block on them works.

A block runs unless the line above its fence is ``<!-- not run: WHY -->``, which readers do not see. What trains does so
as a trial run (``smoke=true``) of a tiny model, and a sweep with one seed; the demo trains ``lite``. Others have
``lite`` on the pages of ``WITH_LITE``, and the tiny model in its place elsewhere. The commands of blocks that are not
run are read as the program reads them.
"""

from __future__ import annotations

import re
import tomllib
from collections import Counter
from pathlib import Path

import matplotlib
import pytest

from everclip.cli.app import build, main
from everclip.config import load_config
from everclip.sweep import grid, tune
from everclip.system import trust
from tests.pages import GUIDES, ROOT, Block, asked, blocks, given, write_folder, write_runs, write_saved
from tests.running import run

BLOCKS = [block for page in GUIDES for block in blocks(page)]
SHELL = [block for block in BLOCKS if block.language == "sh"]
NOT_RUN = {
    "README.md": 1,
    "docs/commands.md": 3,
    "docs/data.md": 5,
    "docs/distributed.md": 2,
    "docs/methods.md": 1,
    "docs/models.md": 1,
    "docs/nightly.md": 1,
    "docs/plots.md": 1,
    "docs/reproduce.md": 8,
    "docs/retrieval.md": 1,
    "docs/serve.md": 2,
    "docs/start-compare.md": 2,
    "docs/start-update.md": 2,
    "docs/sweep.md": 2,
}
"""How many blocks of each page need hours, a GPU, a hub or what a reader alone has."""
ELSEWHERE = ("docs/notebook.md", "docs/plots.md")
"""Pages whose Python blocks tests/test_notebook.py and tests/plots/test_gallery.py run."""
RUN = [b for b in SHELL if not b.why] + [
    b for b in BLOCKS if b.language == "python" and not b.why and b.page not in ELSEWHERE
]
TRAINS = ("train", "tune", "sweep")
WITH_LITE = ("README.md",)
"""Pages that update ``lite``."""
OWN_MODEL = ("demo", "photos.toml")
"""Configs that say how ``lite`` is trained, as no other model can be."""
SHOWN = {"README.md": {"sweep", "compare", "update"}, "docs/commands.md": {"train", "resume", "doctor"}}
"""Commands that a page has to show."""


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the guides speak of, which tests only read."""
    return write_folder(tmp_path_factory.mktemp("guides"))


def test_what_is_not_run_is_counted() -> None:
    assert Counter(block.page for block in BLOCKS if block.why) == NOT_RUN
    assert sum(not block.why for block in SHELL) > 20
    assert {block.language for block in BLOCKS} == {"sh", "python", "toml", "text", "yaml", ""}
    for block in BLOCKS:
        if block.language not in ("sh", "python"):
            assert not re.search(r"^(everclip|pip|make|import) ", block.text, re.MULTILINE), block.name
    for page in GUIDES:  # commands stand in fences, so that all of them are found
        assert not re.search(r"^ +everclip ", (ROOT / page).read_text(encoding="utf-8"), re.MULTILINE), page


@pytest.mark.parametrize("page", sorted({block.page for block in SHELL}))
def test_commands_are_read(page: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All commands of a page, run or not: options exist, settings are allowed, files and targets are there."""
    monkeypatch.chdir(folder)
    tuned = folder / "runs" / "tune" / "tuned.toml"  # which commands above write
    tuned.parent.mkdir(parents=True, exist_ok=True)
    tuned.write_text("", encoding="utf-8")
    (folder / "photos.toml").write_text("", encoding="utf-8")
    found = [(words, block) for block in SHELL if block.page == page for words in asked(block.text, folder)]
    assert SHOWN.get(page, set()) <= {words[1] for words, _ in found if words[0] == "everclip"}
    for words, block in found:
        _check(words, block)


def _check(words: list[str], block: Block) -> None:
    if "everclip" in words and words[0] in ("everclip", "torchrun", "srun"):
        _read(words[words.index("everclip") + 1 :])
    elif words[0] == "make":
        assert f"\n{words[1]}:" in (ROOT / "Makefile").read_text(encoding="utf-8"), block.name
    elif words[0] == "pip":
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"][
            "optional-dependencies"
        ]
        assert set(re.findall(r"\[(\w+)\]", words[-1])) <= set(extras), block.name
    elif words[0] == "python":
        assert (ROOT / words[1]).is_file(), block.name
    else:
        assert words[0] in ("scontrol", "head"), block.name


def _read(words: list[str]) -> None:
    """Read a command line as far as it goes without data and models. Raises what everclip would say."""
    words, folders = trust.taken(words)
    with trust.session(folders):
        _, bound, rest = build().parse_args(words, exit_on_error=False, print_error=False)
        assert not rest
        tokens = list(bound.arguments.get("tokens", ()))
        if words[0] == "train":
            load_config(tokens)
        elif words[0] == "tune":
            load_config(tune.split(tokens)[0])
        elif words[0] == "sweep":
            assert grid.read(tokens).cells


def test_a_config_on_a_page_is_allowed(tmp_path: Path) -> None:
    (block,) = [block for block in BLOCKS if block.language == "toml"]
    (tmp_path / "my.toml").write_text(block.text, encoding="utf-8")
    assert load_config([str(tmp_path / "my.toml")]).method.name == "gdro"


@pytest.mark.slow
@pytest.mark.parametrize("page", sorted({block.page for block in RUN}))
def test_a_page_runs(page: str, tmp_path: Path, toy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its blocks, one after another in one folder, as a reader would."""
    matplotlib.use("agg")
    monkeypatch.chdir(write_folder(tmp_path))
    run(Path("runs/X"), f"model={toy}", "data=imagefolder:photos", "method=gdro")
    if page == "docs/data.md":
        write_saved(tmp_path)
    if page == "docs/report.md":
        write_runs(Path("runs/S"))
    if page == "docs/search.md":
        assert main(["update", toy, "--add", "photos", "--test", "photos", "-o", "v1"]) == 0
    names = given()
    for block in sorted((block for block in RUN if block.page == page), key=lambda block: block.line):
        if block.language == "python":
            exec(compile(block.text, block.name, "exec"), names)
            continue
        for words in asked(block.text, tmp_path):
            assert main(_trial(words[1:], page, toy)) == 0, (block.name, words)


def _trial(words: list[str], page: str, model: str) -> list[str]:
    """A command line that does little: what trains has two tasks, few images, one seed, and a tiny model."""
    if page not in WITH_LITE:
        words = [model if word == "lite" else word for word in words]
    if words[0] not in TRAINS:
        return words
    words = [re.sub(r"^seed=(\d)\.\.(\d)$", r"seed=\1", word) for word in words]
    if not any(word in OWN_MODEL or word.startswith("data=features:") for word in words):
        words.append(f"model={model}")
    return words if "--smoke" in words else [*words, "smoke=true"]
