"""Store a deployed model in a folder with everything that the next update starts from.

open_clip_*, everclip.json, method.pt    the model, as ``everclip export`` writes it
images.zip, images.json                  exemplars and check images, the original files
sums.safetensors                         sums over the frozen features of all images learned
frozen.safetensors                       the weights behind those features, if they differ from the model's
tuned.safetensors                        trained weights that training continues from, if they differ from the model's
update.json                              version, parent, history, what was forgotten
index.safetensors                        the map from new queries to old embeddings (index/maps.py), if any
verdict.json, verdict.html               the outcome of the update
before/                                  the complete previous version (hard links where possible)
manifest.json                            bytes and SHA-256 of each of these files (checkpoint.py)

The manifest is written last, and only then does the folder get its name: it exists completely or not at all.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import load_file, save_file

from everclip.data.images import ImageSet
from everclip.errors import UserError
from everclip.index import maps
from everclip.inference.learned import LIST, RECORD, SUMS
from everclip.inference.merge import whole
from everclip.inference.model import Deployed, open_model, save
from everclip.methods.shared.sums import Sums
from everclip.models.clip import Clip
from everclip.models.depths import Depths
from everclip.models.savable import savable
from everclip.runs import card as cards
from everclip.runs.schema import MOST_CLASSES
from everclip.system import checkpoint, kinds
from everclip.system.atomic import link
from everclip.system.checkpoint import BEFORE, EARLIER, MANIFEST
from everclip.system.reading import check_json, read_json, readable
from everclip.system.text import check
from everclip.updating import kept
from everclip.updating.classifiers import Known, layered, weights_of

FORMAT = 1
FROZEN, TUNED = "frozen.safetensors", "tuned.safetensors"
FROZEN_TRAINED = "frozen_trained"
"""A key of update.json: whether a run has trained the frozen model on images of the first classes."""
MOST_NAMES, MOST_LINES = 500_000, 10**5
"""Class names and lines in a history: with more names, update.json would soon be larger than what is read."""

_REMEDY = "use another copy, or the version it was made from"
_NAMES = kinds.listed(kinds.text, MOST_CLASSES)
_LINE = kinds.table(
    {"version": kinds.COUNT, "images": kinds.COUNT, "classes": _NAMES}
    | dict.fromkeys(("made", "chosen"), kinds.text)
)
_RECORD = kinds.table(
    {"format": lambda value: value == FORMAT, "domains": _NAMES, "base": kinds.table({})},
    {
        "version": kinds.COUNT,
        "history": kinds.listed(_LINE, MOST_LINES),
        "forgotten": kinds.listed(kinds.table({}), 10**5),
        FROZEN_TRAINED: kinds.truth,
    },
)


def now() -> str:
    """Return the present minute, in UTC."""
    return datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")


@dataclass(frozen=True, eq=False)
class State:
    """A version.

    Args:
        spec: what it was opened by.
        model: None where it knows no class yet.
        known: class names, index = label in everything below; tasks; prompts; base settings.
        frozen: the model whose features are summed; no update changes it.
        tuned: the model that training continues from; None before the first training.
        exemplars: images of old classes that training sees again.
        checks: images of old classes that are never trained on: candidates are compared on them.
        domains: names of the domains of exemplars and checks.
        older: images of old classes that are not in the sums yet (of a run, or given with --memory).
        record: the content of update.json, without ``format``.
        map: from embeddings of ``encoder`` to those of an earlier encoder, whose index is still searched.
        called: class names of ``older`` as --memory spells them.
        place: absolute path of ``spec`` when it was opened; None before it is written.
    """

    spec: str
    model: Deployed | None
    known: Known
    frozen: Clip
    tuned: Clip | None
    sums: Sums
    exemplars: ImageSet
    checks: ImageSet
    domains: tuple[str, ...]
    older: ImageSet | None = None
    record: Mapping[str, Any] = field(default_factory=dict)
    map: maps.Map | None = None
    called: tuple[str, ...] = ()
    place: Path | None = None

    @property
    def version(self) -> int:
        """Number of updates that made it."""
        return int(self.record.get("version", 0))

    def next_record(self, chosen: str, images: int, classes: Sequence[str]) -> dict[str, Any]:
        """Return the next version's record without its parent, which is known only when it is written.

        Args:
            chosen: the candidate or the edit that makes it.
            images, classes: number of images added, and their classes.
        """
        made = {"version": self.version + 1, "made": now()}
        line = made | {"chosen": chosen, "images": images, "classes": list(classes)}
        return {
            **made,
            FROZEN_TRAINED: self.frozen_trained,
            "history": _recent([*self.record.get("history", []), line]),
            "forgotten": list(self.record.get("forgotten", [])),
        }

    @property
    def frozen_trained(self) -> bool:
        """Whether the frozen model was trained, as a run's is. Where an earlier release did not note it: whether the
        first classes come from something other than an update or --classes."""
        first = self.known.tasks[0].name if self.known.tasks else "update 1"
        return bool(self.record.get(FROZEN_TRAINED, not first.startswith(("update ", "asked for"))))

    @property
    def memory(self) -> dict[str, int]:
        """Number and bytes of the images that are kept, for the verdict."""
        size = self.exemplars.nbytes() + self.checks.nbytes()
        return {"exemplars": len(self.exemplars), "checks": len(self.checks), "bytes": size}

    @cached_property
    def layers(self) -> Depths | None:
        """What its sums hold besides the embedding; None for those of older versions, which have it alone."""
        return layered(self.known, self.frozen, self.sums)

    @property
    def encoder(self) -> Clip:
        """The model in use."""
        return self.frozen if self.model is None else self.model.encoder


def _recent(history: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the newest lines of a history, the oldest of them without class names where all have too many."""
    history = history[-MOST_LINES:]
    names = np.cumsum([len(line["classes"]) for line in reversed(history)])[::-1]
    return [
        line if total <= MOST_NAMES else dict(line) | {"classes": []}
        for line, total in zip(history, names, strict=True)
    ]


def read(folder: Path) -> State:
    """Return the version in a folder.

    Raises:
        UserError: a file of it is missing, or is not what was written; or it became another version meanwhile.
    """
    with checkpoint.checked(folder, _REMEDY):
        opened = checkpoint.identity(folder)
    try:
        return _read(folder)
    finally:  # whatever went wrong in a mixture of two is not the cause
        if cards.identity(folder) != opened:
            raise UserError(f"{folder} has changed while it was opened: repeat the command")


def _read(folder: Path) -> State:
    record, names = _checked(folder)
    model = open_model(str(folder))
    clip = whole(model.encoder)
    try:
        frozen, tuned = (
            weights_of(clip, load_file(folder / name)) if name in names else None for name in (FROZEN, TUNED)
        )
        exemplars, checks = kept.read(folder, clip)
        sums = Sums.load(folder / SUMS)
        tasks = tuple(cards.CardTask.model_validate(task) for task in record["tasks"])
        known = Known(model.names, tasks, model.templates, record["base"])
        domains = tuple(record["domains"])
        _check(known, sums, (exemplars, checks), domains)
        layered(known, frozen or clip, sums)
        mapped = maps.load(folder / maps.FILE) if maps.FILE in names else None
    except UserError:
        raise
    except Exception as error:  # a damaged or a stranger's file makes its reader raise anything
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:160]
        raise UserError(f"{folder} is whole but not readable ({reason}): update an older version") from error
    if frozen is None:
        frozen = clip
    elif tuned is None:
        tuned = clip  # the model in use has other weights than the frozen ones, so it was trained
    own = (str(folder), model, known, frozen, tuned, sums)
    return State(*own, exemplars, checks, domains, None, record, mapped)


def _check(known: Known, sums: Sums, images: Sequence[ImageSet], domains: Sequence[str]) -> None:
    """Check that the files fit together. Raises ValueError, or UserError for invalid settings."""
    known.card("method", {"name": "zero_shot"}).config()
    classes = len(known.names)
    if len(sums.counts) != classes or any(part.labels.max(initial=-1) >= classes for part in images):
        raise ValueError("its parts know other classes")
    if any(part.domains.max(initial=-1) >= len(domains) for part in images):
        raise ValueError("its images have domains without a name")


def _checked(folder: Path) -> tuple[dict[str, Any], frozenset[str]]:
    """Compare every file with the manifest; return the content of update.json and the names of all files that the
    manifest vouches for, as others may be of another version. Raises UserError."""
    with checkpoint.checked(folder, _REMEDY):
        checkpoint.verify(folder)
        names = checkpoint.names(folder)
        if missing := {RECORD, LIST, kept.IMAGES, SUMS} - names:
            raise checkpoint.Damaged(f"{min(missing)} is not in its {MANIFEST}")
        record = read_json(folder / RECORD)
    check(record, folder / RECORD)
    if not _RECORD(record):
        raise UserError(f"{folder / RECORD} has another format than {FORMAT}: use the everclip that wrote it")
    return record, names


def write(
    state: State, folder: Path, files: Mapping[str, str], before: Path | None, identity: str = ""
) -> None:
    """Commit a version.

    Args:
        folder: a new or empty folder.
        files: more files by name, such as the verdict.
        before: the previous version's folder, whose files are kept.
        identity: that of the model that ``before`` must hold, if it has a manifest.

    Raises:
        UserError: something has appeared at ``folder``, which is left alone, the file of a kept image has gone,
            ``before`` holds another model, or there are more images or classes than can be read again.
        OSError: the disk is full or fails; nothing is left of the new folder then.
    """
    model = state.model
    assert model is not None

    def put(where: Path) -> None:
        save(model, where)
        for name, clip in ((FROZEN, state.frozen), (TUNED, state.tuned)):
            if clip is not None and clip is not model.encoder and not _same(clip, model.encoder):
                save_file(savable(clip.model.state_dict()), where / name)
        images = kept.write(state.exemplars, state.checks, where)
        state.sums.save(where / SUMS)
        if state.map is not None:
            state.map.save(where / maps.FILE)
        record = dict(state.record) | {
            "format": FORMAT,
            "base": dict(state.known.base),
            "tasks": [task.model_dump() for task in state.known.tasks],
            "domains": list(state.domains),
        }
        if not _RECORD(record):  # no later update could read it
            raise UserError(
                f"{RECORD} would have more than {MOST_CLASSES:,} names in a list: know fewer classes"
            )
        content = {RECORD: json.dumps(record, ensure_ascii=False, indent=1) + "\n", LIST: images, **files}
        for name, text in content.items():
            if name in (RECORD, LIST):  # no later update could read it
                with readable(name, "keep fewer exemplars, or know fewer classes", "would be too large"):
                    check_json(text)
            (where / name).write_text(text, encoding="utf-8")
        for file in where.glob("*.safetensors"):  # safetensors writes files that their owner alone may read
            file.chmod((where / RECORD).stat().st_mode)
        if before is not None:
            _keep(before, where / BEFORE, identity)

    checkpoint.commit(folder, put)


def _same(one: Clip, other: Clip) -> bool:
    """Return whether two models have the same weights."""
    mine, theirs = one.whole_state(), other.whole_state()
    return mine.keys() == theirs.keys() and all(mine[key].equal(theirs[key]) for key in mine)


def _keep(before: Path, where: Path, identity: str) -> None:
    """Keep a version's files in a folder, without the version before it or anything else that lies there."""
    signed = (before / MANIFEST).is_file()
    own = cards.own_files(before) if signed else {file.name: file for file in before.iterdir()}
    where.mkdir()
    own = {name: file for name, file in own.items() if not name.startswith((EARLIER, "."))}
    checkpoint.fill(where, partial(link, own))
    if not signed:
        cards.carry_calibration(before, where)
    elif identity and checkpoint.identity(where) != identity:
        raise UserError(f"{before} has changed since it was opened: repeat the command")
