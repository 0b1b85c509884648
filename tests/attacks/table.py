"""Every way in, with every attack: what came out, and whether the payload ran.

    python -m tests.attacks.table FOLDER 1    # in an empty folder, as JSON; 3: a third of it

``table`` runs that in a process of its own: what it does there to caches, paths and the standard input stays there.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tests.attacks import plant
from tests.attacks.ways import WAYS, Case, Home, Way, copied

ROOT = Path(__file__).parents[2]
HUB = "hf-hub:stranger/model"
NOTHING = "nothing"
"""The attack that is none."""


class Row(NamedTuple):
    """One try.

    Args:
        met: what the stranger had: a model, a run, ...
        way, attack: how it was met, and what was in it.
        code: the exit code; None where Python was used and raised.
        ran: whether the payload ran.
        said: the last line on stderr, or the exception.
    """

    met: str
    way: str
    attack: str
    code: int | None
    ran: bool
    said: str


def table(folder: Path, share: int = 1, source: Path = ROOT / "src") -> list[Row]:
    """The rows; ``folder`` is where it is done, new or empty.

    Args:
        share: of the pairs of a way and an attack, one in so many; each way and each attack comes once at least.
        source: where the package is, another version of it too.
    """
    home = folder / "hf"
    environment = {
        "PYTHONPATH": os.pathsep.join([str(source), str(ROOT)]),
        "HF_HOME": str(home),
        "HF_HUB_OFFLINE": "1",
        "HF_MODULES_CACHE": str(home / "modules"),
        "OMP_NUM_THREADS": "1",
    }
    words = [
        sys.executable,
        "-W",
        "ignore",
        "-m",
        "tests.attacks.table",
        str(folder),
        str(share),
    ]
    done = subprocess.run(
        words,
        cwd=ROOT,
        env=os.environ | environment,
        input="yes\n" * 10_000,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(done.stderr[-4000:])
    return [Row(*values) for values in json.loads(done.stdout.splitlines()[-1])]


def rows(folder: Path, share: int) -> Iterator[Row]:
    """The same, in this process."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        home = Home.made(folder / "home")
    for number, (met, attack, way, done) in enumerate(_tries(share)):
        yield _row(home, folder / f"t{number}", met, attack, way, done)
    for met in ATTACKS:
        # the same without an attack is done, so it is the attack that is refused
        way = "resume" if met == "half" else "predict"
        yield _row(home, folder / f"n{met}", met, NOTHING, way, lambda target, marker: None)
    yield from _controls(folder / "controls", home)


def _tries(share: int) -> Iterator[tuple[str, str, str, plant.Plant]]:
    for met, attacks in ATTACKS.items():
        names, tried = [*attacks], [*WAYS["model" if met == "hub" else met]]
        for index, way in enumerate(tried):
            for place, name in enumerate(names):
                # both in turn, however many there are of each
                once = (place - index) % len(names) == 0 or (index - place) % len(tried) == 0
                if once or (place + index) % share == 0:
                    yield met, name, way, attacks[name]


def _pictures(folder: Path, marker: Path) -> None:
    """Pictures that are programs for Ghostscript, whose place a program on PATH has that writes a file."""
    for file in [*folder.rglob("*.png")]:
        file.with_suffix(".jpg").write_text(plant.EPS)
    program = marker.with_name("gs")
    program.write_text(f"#!/bin/sh\ntouch {marker}\n")
    program.chmod(0o755)
    os.environ["PATH"] = f"{marker.parent}{os.pathsep}{os.environ['PATH']}"


IN_CHECKPOINTS = ("tokenizer, unasked", "text tower", "pickle", "class of tokenizer")


def _inside(attack: plant.Plant) -> plant.Plant:
    """An attack on models, done to the model folders inside a run, an export or a version."""

    def done(folder: Path, marker: Path) -> None:
        for config in [*folder.rglob(plant.CONFIG)]:
            attack(config.parent, marker)
            plant.seal(config.parent)

    return done


_MODELS = {name: _inside(plant.MODELS[name]) for name in IN_CHECKPOINTS}
_IN_CARDS = ("method", "method's method", "data", "joined data", "source.of", "tracker")
ATTACKS: dict[str, dict[str, plant.Plant]] = {
    "model": plant.MODELS,
    "hub": plant.MODELS,
    "run": _MODELS | plant.NAMES,
    "half": _MODELS | plant.NAMES,
    "exported": _MODELS | {name: plant.NAMES[name] for name in _IN_CARDS},
    "version": _MODELS | {name: plant.NAMES[name] for name in _IN_CARDS},
    "pictures": {"EPS as .jpg": _pictures},
}


def _row(home: Home, place: Path, met: str, attack: str, way: str, done: plant.Plant) -> Row:
    if met == "hub":
        target, spec = _repository(home.model, place), f"{HUB}-{place.name}"
    else:
        source = home.folder / "photos" if met == "pictures" else getattr(home, met)
        target = copied(source, place)
        spec = str(target)
    marker = place / f"ran_{place.name}"
    done(target, marker)
    sys.path.insert(0, str(place))
    code, said = _said(WAYS["model" if met == "hub" else met][way], Case(home, place, target, spec))
    sys.path.remove(str(place))
    return Row(met, way, attack, code, marker.exists(), said)


def _repository(model: Path, place: Path) -> Path:
    """A copy of a model as the hub's client keeps a repository; the folder of its files."""
    from huggingface_hub import constants

    name = f"models--stranger--model-{place.name}"
    commit = "0" * 40
    target = Path(constants.HF_HUB_CACHE) / name / "snapshots" / commit
    target.parent.mkdir(parents=True)
    place.mkdir(parents=True)
    copied(model, place / "copy").rename(target)
    config = json.loads((target / plant.CONFIG).read_text())
    config["model_cfg"]["text_cfg"] |= dict.fromkeys(
        ("hf_model_name", "hf_tokenizer_name"), f"stranger/model-{place.name}"
    )
    (target / plant.CONFIG).write_text(json.dumps(config))
    (target.parents[1] / "refs").mkdir()
    (target.parents[1] / "refs/main").write_text(commit)
    return target


def _said(way: Way, case: Case) -> tuple[int | None, str]:
    """The exit code of a way, and the last line that it said."""
    err, code = io.StringIO(), None
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(err):
        try:
            code = way(case)
        except Exception as error:
            err.write(f"{type(error).__name__}: {error}\n")
    return code, (err.getvalue().strip().splitlines() or [""])[-1]


# Controls -----------------------------------------------------------------------------------------------------------


def _controls(folder: Path, home: Home) -> Iterator[Row]:
    """Each payload where nothing stands in its way: it runs, so that "it did not run" says something."""
    for name, attack in [*plant.MODELS.items(), *plant.NAMES.items(), ("EPS as .jpg", _pictures)]:
        met = "model" if name in plant.MODELS else "run" if name in plant.NAMES else "pictures"
        place = folder / f"c{len([*folder.glob('*')])}"
        target = copied(home.folder / ("photos" if met == "pictures" else met), place)
        marker = place / f"ran_{place.name}"
        attack(target, marker)
        sys.path.insert(0, str(place))
        _, said = _said(lambda case, name=name: _let(name, case), Case(home, place, target, str(target)))
        yield Row(met, "control", name, None, marker.exists(), said)


def _let(name: str, case: Case) -> int:
    """Run a payload as its maker means it."""
    from PIL import Image
    from transformers import AutoConfig, AutoFeatureExtractor, AutoTokenizer

    folder = str(case.target)
    if name in plant.NAMES:
        importlib.import_module(f"stranger_ran_{case.place.name}.payload")
    elif name == "EPS as .jpg":
        Image.open(next(case.target.rglob("*.jpg"))).load()
    elif name == "pickle":
        import torch

        torch.load(case.target / "open_clip_pytorch_model.bin", weights_only=False)
    else:
        opened: dict[str, Callable[..., Any]] = {
            "text tower": AutoConfig.from_pretrained,
            "second config": AutoConfig.from_pretrained,
            "image tower": AutoConfig.from_pretrained,
            "class of tokenizer": AutoFeatureExtractor.from_pretrained,
        }
        opened.get(name, AutoTokenizer.from_pretrained)(folder, trust_remote_code=True)
    return 0


def main(words: Sequence[str]) -> int:
    """Print the rows as JSON."""
    folder = Path(words[0])
    folder.mkdir(parents=True, exist_ok=True)
    found = [*rows(folder, int(words[1]))]
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
