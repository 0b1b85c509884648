"""The ways in which a stranger's folder, run, config or picture can be met: each command, and Python."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import everclip
from everclip.cli.app import main
from tests.attacks.plant import hugging
from tests.pictures import image_folder
from tests.running import run, run_for

SMALL = (
    "scenario.tasks=2",
    "train.epochs=1",
    "train.batch_size=8",
    "memory.budget=6",
    "device=cpu",
    "method=gdro",
)


@dataclass(frozen=True)
class Home:
    """What is harmless, in a folder.

    Args:
        model: a model folder with a Hugging Face text tower.
        run, half: a finished run of it, and one that was stopped.
        exported, version: what ``export`` and ``update`` made of the run.
    """

    folder: Path
    model: Path
    run: Path
    half: Path
    exported: Path
    version: Path

    @classmethod
    def made(cls, folder: Path) -> Home:
        """Make all of it."""
        home = cls(folder, *(folder / name for name in ("model", "run", "half", "exported", "version")))
        image_folder(folder / "photos", {"train": 2, "test": 2}, classes=4)
        (folder / "classes.txt").write_text("red\ngreen\n")
        hugging(home.model)
        words = home.words(home.model)
        run(home.run, *words)
        assert run_for(home.half, 2, *words, "checkpoint.every=steps:1") is None
        assert main(["export", str(home.run), "-o", str(home.exported)]) == 0
        update = ["update", str(home.exported), *home.update, "--method", "means", "-o", str(home.version)]
        assert main([*update, "--max-drop", "100"]) == 0
        return home

    @property
    def data(self) -> str:
        """Spec of the pictures."""
        return f"imagefolder:{self.folder / 'photos'}"

    @property
    def picture(self) -> str:
        """One of them."""
        return str(self.folder / "photos/test/red/0.png")

    @property
    def update(self) -> list[str]:
        """Options of ``update``."""
        return ["--add", self.data, "--test", self.data]

    def words(self, model: Path | str) -> list[str]:
        """Settings of a small run."""
        return [f"data={self.data}", f"model={model}", *SMALL]


@dataclass(frozen=True)
class Case:
    """One try: a copy of something, attacked.

    Args:
        place: a folder of its own.
        target: the copy in it; ``spec`` is how a command calls it.
    """

    home: Home
    place: Path
    target: Path
    spec: str

    @property
    def new(self) -> str:
        """A path to write to."""
        return str(self.place / "new")


Way = Callable[[Case], int]


def _says(*words: str) -> Way:
    """A command line; names in braces stand for what a case has."""

    def way(case: Case) -> int:
        home = case.home
        known = {
            "it": case.spec,
            "new": case.new,
            "place": case.place,
            "data": home.data,
            "picture": home.picture,
            "classes": home.folder / "classes.txt",
            "run": home.run,
            "model": home.model,
        }
        return main([word.format(**known) for word in words])

    return way


def _learner(case: Case) -> int:
    everclip.Learner(case.spec, classes=["red", "green"], progress=False).predict([case.home.picture])
    return 0


def _loaded(case: Case) -> int:
    everclip.Learner.load(case.spec, progress=False).predict([case.home.picture])
    return 0


def _pictures(case: Case) -> int:
    learner = everclip.Learner(str(case.home.run), progress=False)
    learner.predict(sorted(case.target.rglob("*.jpg")))
    return 0


def _loads(case: Case) -> int:
    assert everclip.load_runs(case.spec)
    return 0


TRAIN = ("data={data}", "model={it}", *SMALL)
CLEAN = ("data={data}", "model={model}", *SMALL)
OTHERS: dict[str, Way] = {
    "evaluate": _says("evaluate", "{it}", "--data", "{data}"),
    "predict": _says("predict", "{it}", "{picture}"),
    "export": _says("export", "{it}", "-o", "{new}"),
    "merge": _says("merge", "{it}", "--with", "zero-shot", "--alpha", "0.5", "-o", "{new}"),
    "update": _says("update", "{it}", "--add", "{data}", "--test", "{data}", "-o", "{new}"),
    "update --dry-run": _says("update", "{it}", "--add", "{data}", "--dry-run"),
    "Learner.load": _loaded,
}
"""For whatever has classes of its own."""
WAYS: dict[str, dict[str, Way]] = {
    "model": {
        "predict": _says("predict", "{it}", "{picture}", "--classes", "{classes}"),
        "evaluate": _says("evaluate", "{it}", "--data", "{data}"),
        "export": _says("export", "{it}", "--classes", "{classes}", "-o", "{new}"),
        "merge --with": _says("merge", "{run}", "--with", "{it}", "--alpha", "0.5", "-o", "{new}"),
        "update": _says("update", "{it}", "--add", "{data}", "--test", "{data}", "-o", "{new}"),
        "update --dry-run": _says("update", "{it}", "--add", "{data}", "--dry-run"),
        "train": _says("train", *TRAIN, "out={new}"),
        "train --dry-run": _says("train", *TRAIN, "--dry-run"),
        "tune": _says("tune", *TRAIN, "train.lr=1e-4,1e-3", "out={new}"),
        "sweep": _says("sweep", *TRAIN, "seed=0,1", "out={new}"),
        "doctor": _says("doctor", *TRAIN),
        "Learner": _learner,
    },
    "run": OTHERS
    | {
        "evaluate, own data": _says("evaluate", "{it}"),
        "report": _says("report", "{it}", "-o", "{new}"),
        "compare": _says("compare", "{it}", "{run}", "--anyway"),
        "load_runs": _loads,
        "train out=": _says("train", *CLEAN, "out={it}"),
        "train fork=": _says("train", *CLEAN, "fork={it}@1", "out={new}"),
        "train model=": _says("train", *TRAIN, "out={new}"),
        "train TOML": _says("train", "{it}/config.toml", "out={new}"),
        "train TOML --dry-run": _says("train", "{it}/config.toml", "--dry-run"),
        "tune TOML": _says("tune", "{it}/config.toml", "train.lr=1e-4,1e-3", "out={new}"),
        "sweep TOML": _says("sweep", "{it}/config.toml", "seed=0,1", "out={new}"),
        "sweep TOML --dry-run": _says("sweep", "{it}/config.toml", "seed=0,1", "--dry-run", "out={new}"),
        "sweep out=": _says("sweep", *CLEAN, "seed=0,1", "--dry-run", "out={place}"),
        "sweep --print": _says("sweep", *CLEAN, "seed=0,1", "--print", "out={place}"),
        "doctor --config": _says("doctor", "--config", "{it}/config.toml"),
        "forget": _says("forget", "{it}", "--class", "red", "-o", "{new}"),
    },
    "half": {
        "resume": _says("resume", "{it}"),
        "predict": OTHERS["predict"],
        "report": _says("report", "{it}", "-o", "{new}"),
        "sweep out=": _says("sweep", *CLEAN, "seed=0,1", "--print", "out={place}"),
    },
    "exported": OTHERS,
    "version": OTHERS | {"forget": _says("forget", "{it}", "--class", "red", "-o", "{new}")},
    "pictures": {
        "predict": _says("predict", "{model}", "{it}", "--classes", "{classes}"),
        "predict a run": _says("predict", "{run}", "{it}"),
        "evaluate": _says("evaluate", "{run}", "--data", "imagefolder:{it}"),
        "export --check": _says("export", "{run}", "--check", "imagefolder:{it}", "-o", "{new}"),
        "update": _says("update", "{run}", "--add", "imagefolder:{it}", "--test", "{data}", "-o", "{new}"),
        "train": _says("train", "data=imagefolder:{it}", "model={model}", *SMALL, "out={new}"),
        "Learner": _pictures,
    },
}
"""What is met, and how."""


def copied(source: Path, place: Path) -> Path:
    """A copy of a folder, in a folder of its own."""
    place.mkdir(parents=True)
    return Path(shutil.copytree(source, place / source.name))
