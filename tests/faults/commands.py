"""Commands that write something: what each needs, what it writes, and what of the user's lies beside that."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from everclip.cli.app import main
from everclip.data.formats.download import Remote
from everclip.data.sources import cifar100
from everclip.models import lite
from everclip.models.clip import Clip
from everclip.system import atomic
from tests.data import cifar
from tests.faults.bench import Bench, small_model
from tests.faults.forks import order
from tests.faults.strikes import Strike
from tests.learned import coloured
from tests.pictures import image_folder, picture
from tests.versions import COLD, ENDS, WARM

SITE = "SITE_OF_THE_TEST"
"""The variable with the address of the web server."""
MORE = {"purple": (150, 30, 160), "orange": (240, 150, 30)}
SMALL = ("data=imagefolder:photos", "model=local-dir:model", "scenario.tasks=2", "train.epochs=1")
SMALL += ("train.batch_size=8", "memory.budget=12", "device=cpu")
UPDATE = ("--max-drop", "100", "--exemplars", "4", "--method", "means")
CHECK, WARM_TEST = ("--test", "imagefolder:check"), ("--test", "imagefolder:warm-test")
ONNX = ("--format", "onnx")
RATES = "train.lr=0.001,0.01"
PREPARED, ARCHIVE = "sets/cifar-100-python", "cifar-100-python.tar.gz"
DOWNLOAD = ("train", "data=cifar100:sets", "model=local-dir:model", "scenario.tasks=2", "--dry-run")


@dataclass(frozen=True)
class Command:
    """A command, given in a folder that has all it needs.

    Args:
        words: what stands after ``everclip``.
        rival: the words of another process that writes the same target.
        target: what it writes; the user's folders and files lie beside it.
        needs: what there is before, of the folder that ``world`` fills.
        models: what predicts, before or after: a model that the command changes may answer in either way in between.
        finished: what the same words do once it is done: "refuses" a target that is there, "repeats" it, or has
            nothing "left" to do.
        retry: more words after a kill.
        call: MODULE:FUNCTION, which is called with the words in the place of ``everclip``.
        beside: more files of the user's.
        children: whether the processes that it starts are struck as well.
        warm: MODULE:FUNCTION, which is called once, before all forks.
        env: more variables of the environment.
    """

    words: tuple[str, ...]
    rival: tuple[str, ...]
    target: str
    needs: tuple[str, ...]
    models: tuple[str, ...] = ()
    finished: Literal["refuses", "repeats", "left"] = "refuses"
    retry: tuple[str, ...] = ()
    call: str | None = None
    beside: tuple[str, ...] = ()
    children: bool = False
    warm: str | None = None
    env: dict[str, str] = field(default_factory=dict)

    def order(
        self, cwd: Path, words: Sequence[str] | None = None, strike: Strike | None = None
    ) -> dict[str, Any]:
        """What a fork is told; ``words`` are others than the command's own."""
        return order(self.words if words is None else words, strike, self.call, cwd, self.env)


COMMANDS = {
    "update": Command(
        ("update", "v2", "--add", "imagefolder:ends", *CHECK, *UPDATE, "-o", "v3"),
        ("update", "v1", "--add", "imagefolder:more", *WARM_TEST, *UPDATE, "-o", "v3"),
        "v3",
        ("v1", "v2", "ends", "more", "check", "warm-test"),
        ("v1", "v2", "v3"),
    ),
    "update of a run": Command(
        ("update", "run", "--add", "imagefolder:more", *CHECK, *UPDATE, "-o", "first"),
        ("update", "run", "--add", "imagefolder:other", *CHECK, *UPDATE, "-o", "first"),
        "first",
        ("run", "model", "photos", "more", "other", "check"),
        ("run", "first"),
    ),
    "rollback": Command(("rollback", "v2"), ("rollback", "v2"), "v2", ("v2",), ("v2",), finished="left"),
    "rollback without exchange": Command(
        ("rollback", "v2"),
        ("rollback", "v2"),
        "v2",
        ("v2",),
        ("v2",),
        finished="left",
        call=f"{__name__}:without_exchange",
    ),
    "forget": Command(
        ("forget", "v2", "--class", "red", "-o", "v3"),
        ("forget", "v2", "--class", "blue", "-o", "v3"),
        "v3",
        ("v2",),
        ("v2", "v3"),
    ),
    "calibrate a version": Command(
        ("predict", "v2", "--calibrate", "imagefolder:check"),
        ("predict", "v2", "--calibrate", "imagefolder:held"),
        "v2",
        ("v2", "check", "held"),
        ("v2",),
        finished="repeats",
    ),
    "calibrate a model folder": Command(
        ("predict", "exported", "--calibrate", "imagefolder:check"),
        ("predict", "exported", "--calibrate", "imagefolder:held"),
        "exported",
        ("exported", "check", "held"),
        ("exported",),
        finished="repeats",
    ),
    "calibrate a run": Command(
        ("predict", "run", "--calibrate", "imagefolder:check"),
        ("predict", "run", "--calibrate", "imagefolder:held"),
        "run",
        ("run", "model", "photos", "check", "held"),
        ("run",),
        finished="repeats",
        beside=("run/calibration.json.tmp", "run/notes.txt"),
    ),
    "export": Command(
        ("export", "run", "-o", "out"),
        ("export", "v2", "-o", "out"),
        "out",
        ("run", "model", "photos", "v2"),
        ("run", "v2", "out"),
    ),
    "export to ONNX": Command(
        ("export", "run", *ONNX, "-o", "out"),
        ("export", "v2", *ONNX, "-o", "out"),
        "out",
        ("run", "model", "photos", "v2"),
        ("run", "v2"),
    ),
    "merge": Command(
        ("merge", "run", "--with", "zero-shot", "--alpha", "0.5", "-o", "out"),
        ("merge", "run", "--with", "zero-shot", "--alpha", "0.25", "-o", "out"),
        "out",
        ("run", "model", "photos"),
        ("run", "out"),
    ),
    "tune": Command(
        ("tune", *SMALL, RATES, "method=finetune", "out=tuned"),
        ("tune", *SMALL, RATES, "method=finetune", "out=tuned"),
        "tuned",
        ("model", "photos"),
        finished="repeats",
        beside=("tuned/tuned.toml.tmp",),
    ),
    "sweep": Command(
        ("sweep", *SMALL, "method=ncm", "seed=0,1", "out=swept", "--jobs", "2"),
        ("sweep", *SMALL, "method=ncm", "seed=0,1", "out=swept", "--jobs", "2"),
        "swept",
        ("model", "photos"),
        finished="repeats",
        retry=("--retry",),
        beside=("swept/sweep.json.tmp",),
        children=True,
    ),
    "report": Command(
        ("report", "run", "-o", "page.html", "--figures", "figures"),
        ("report", "run", "second", "-o", "page.html", "--figures", "other-figures"),
        "page.html",
        ("run", "second", "model", "photos"),
        ("run",),
        finished="repeats",
    ),
    "download": Command(
        DOWNLOAD,
        DOWNLOAD,
        PREPARED,
        (ARCHIVE, "model"),
        finished="repeats",
        call=f"{__name__}:download",
        env={"no_proxy": "127.0.0.1"},
    ),
    "lite": Command(
        ("predict", "lite", "probe", "--classes", "classes.txt"),
        ("predict", "lite", "probe", "--classes", "classes.txt"),
        f"cache/lite-{lite.RECIPE}",
        ("classes.txt",),
        finished="repeats",
        call=f"{__name__}:build",
        warm=f"{__name__}:compute",
        env={"EVERCLIP_CACHE": "cache"},
    ),
}
"""By the names that goals and pages have for them."""


def world(bench: Bench) -> Path:
    """The folder of everything that commands need, made when it is first asked for."""
    root = bench.folder / "world"
    if (root / "classes.txt").exists():
        return root
    root = bench.fresh("world")
    small_model(root / "model")
    image_folder(root / "photos", {"train": 4, "test": 2})
    sets = {"warm": WARM, "warm-test": WARM, "cold": COLD, "ends": ENDS, "more": MORE}
    sets |= {"other": {"pink": (250, 150, 170)}, "check": WARM | COLD, "held": WARM | COLD}
    for number, (name, classes) in enumerate(sets.items()):
        coloured(root / name, classes, 6, number)
    (root / "probe").mkdir()
    for number, colour in enumerate((WARM | COLD).values()):
        picture(colour, number).save(root / "probe" / f"{number}.png")
    first = ("--add", "imagefolder:warm", *WARM_TEST, *UPDATE, "-o", "v1")
    for words in (
        ("update", "local-dir:model", *first),
        ("update", "v1", "--add", "imagefolder:cold", *CHECK, *UPDATE, "-o", "v2"),
        ("train", *SMALL, "method=finetune", "train.lr=0.003", "out=run"),
        ("train", *SMALL, "method=finetune", "seed=1", "out=second"),
        ("export", "run", "-o", "exported"),
    ):
        ended = bench.forks.run(words, cwd=root)
        if ended.status:
            raise RuntimeError(f"{' '.join(words)}: exit {ended.status}: {ended.err[-600:]}")
    (root / ARCHIVE).write_bytes(cifar.archive(cifar_files()))
    (root / "classes.txt").write_text("red\nyellow\nblue\ngreen\n")
    return root


def fill(work: Path, command: Command, source: Path) -> None:
    """Put what a command needs into a new folder, and the user's things beside its target."""
    for name in ("probe", *command.needs):
        copy = shutil.copytree if (source / name).is_dir() else shutil.copyfile
        work.mkdir(parents=True, exist_ok=True)
        copy(source / name, work / name)
    plant(work / command.target)
    for name in command.beside:
        (work / name).parent.mkdir(exist_ok=True)
        (work / name).write_text("the user's own\n")


def foreign(target: Path) -> list[Path]:
    """Paths that a user may have beside a target, whatever a program would like to use them for."""
    name = target.name
    ends = (f"{name}.tmp", f"{name}.undone", f"{name}.restored", f"{name}.part", f"{name}.damaged")
    hidden = (f".{name}-abc", f".{name}.tmp", f".{name}.part", f".{name}.everclip")
    return [target.with_name(other) for other in (*ends, *hidden, "mine")]


def plant(target: Path) -> None:
    """Put the user's folders, each with a photograph, beside a target: files beside one that is a file."""
    for number, path in enumerate(foreign(target)):
        path.parent.mkdir(parents=True, exist_ok=True)
        if target.suffix:
            path.write_text(f"the user's {number}\n")
        else:
            path.mkdir()
            picture((number, 2 * number, 3 * number), number).save(path / "photo.png")


# What forks are called with ---------------------------------------------------------------------------------------


def answer(models: Sequence[str]) -> int:
    """Print what each model says of the pictures, as a JSON object."""
    said = {}
    for model in models:
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main(["predict", model, "probe", "--json", "--top", "9"])
        said[model] = (
            [json.loads(line)["top"] for line in out.getvalue().splitlines()] if code == 0 else err.getvalue()
        )
    print(json.dumps(said))
    return 0


def download(words: Sequence[str]) -> int:
    """Run a command for which a small archive is the original CIFAR-100, on the site of the environment."""
    packed = Path(ARCHIVE).read_bytes()
    cifar100.MD5 = {name: cifar.md5(content) for name, content in cifar_files().items()}
    cifar100.ARCHIVE = Remote(f"{os.environ[SITE]}/{ARCHIVE}", len(packed), f"md5:{cifar.md5(packed)}")
    Path(PREPARED).parent.mkdir(exist_ok=True)
    return main(words)


def cifar_files() -> dict[str, bytes]:
    """The three files of a small CIFAR-100."""
    return {name: cifar.python2_pickle(value) for name, value in cifar.contents().items()}


def without_exchange(words: Sequence[str]) -> int:
    """Run a command where the system cannot swap two names in one step."""
    atomic.exchange = lambda first, second: False
    return main(words)


_computed: list[Clip] = []


def compute() -> None:
    """Compute what ``lite`` is, for all forks: that takes seconds, and writes nothing."""
    if not _computed:
        _computed.append(lite.build(lite._sources()))


def build(words: Sequence[str]) -> int:
    """Run a command for which ``lite`` need not be computed; it is written as ever."""
    lite.build = lambda sources: _computed[0]
    return main(words)


def appear(words: Sequence[str]) -> int:
    """Put a folder or a file of the user's where a target will be, unless something is there; say what."""
    target, kind = Path(words[0]), words[1]
    if target.exists():
        kind = "nothing"
    elif kind == "folder":
        target.mkdir()
        picture((1, 2, 3), 4).save(target / "photo.png")
    else:
        target.write_text("the user's own\n")
    print(kind)
    return 0
