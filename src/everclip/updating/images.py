"""Collect the images of an update in one store, match them to the known classes, and split them into learning and
check images."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from unicodedata import normalize

import numpy as np

from everclip.data.gathered import alone, gather
from everclip.data.images import Dataset, ImageSet
from everclip.data.inventory import Step, silent
from everclip.data.memory import Memory
from everclip.data.pixels import Pixels
from everclip.data.policies.random import Random
from everclip.errors import UserError, suggest
from everclip.inference.assess import decoded
from everclip.models.clip import Clip
from everclip.runs.card import CardTask
from everclip.updating.classifiers import Known, labels_of
from everclip.updating.start import everything, nothing
from everclip.updating.state import State

log = logging.getLogger("everclip")

SHARE, MOST_CHECKS = 0.2, 50
"""Fraction and largest number of a class's new images that are held out to compare candidates."""
KEPT_BYTES = 4 << 30
"""Largest size of decoded pixels kept, in bytes; beyond it images are decoded each time."""
DECODED = 64
"""Number of images decoded in parallel."""


Watch = Callable[[str, int], Step]
"""Called with a piece of work and its steps; returns a function to call with the number of steps done."""


def unwatched(name: str, total: int) -> Step:
    """Ignore the work and its steps."""
    return silent


class Filled(Random):
    """Like ``Random``, but a domain's unused share goes to others: each update is a domain, and one with a single
    picture must not displace many of another."""

    fill = True


def plain(name: str) -> str:
    """Return a name without what its spellings may differ in: case, spaces, hyphens, underscores, composed letters."""
    return "".join(normalize("NFC", name).casefold().replace("-", " ").replace("_", " ").split())


def united(
    known: Known, names: Sequence[str], same: Mapping[str, str], where: str, elsewhere: Sequence[str] = ()
) -> tuple[Known, list[int]]:
    """Return the classes known with those of new data, and the label of each of the data's classes.

    Args:
        names: the data's class names.
        same: new name -> old name, where they are one class.
        elsewhere: names in other data of the update, which ``same`` may be about too.

    Raises:
        UserError: a name is a variant of an old one, or ``same`` names an unknown class.
    """
    given = {*names, *elsewhere}
    for new, old in same.items():
        if new not in given:
            raise UserError(f'--same "{new}={old}": no data has a class "{new}"{suggest(new, given)}')
        if old not in known.names:
            raise UserError(f'--same "{new}={old}": the model has no "{old}"{suggest(old, known.names)}')
    spelt = {plain(name): name for name in known.names}
    table, every = [], list(known.names)
    for name in names:
        wanted = same.get(name, name)
        near = spelt.get(plain(wanted))
        if wanted not in every and near is not None:
            raise UserError(
                f'class "{name}" of {where} looks like "{near}" spelled differently: rename the folder, or'
                f' use --same "{name}={near}" (in Python: call it "{near}")'
            )
        if wanted not in every:
            every.append(wanted)
        table.append(every.index(wanted))
    return replace(known, names=tuple(every)), table


@dataclass(frozen=True, eq=False)
class Pictures:
    """All images of an update, on one store.

    Args:
        known: all classes; the last task's are those of the new images, if there are any.
        new, older: images to learn: new ones, and old ones that are not in the sums yet.
        exemplars: old images to train on again.
        checks: old and new images that are never trained on; ``fresh`` are the new ones among them.
        domains: names.
        skipped: path -> why it was left out.
    """

    known: Known
    new: ImageSet
    older: ImageSet
    exemplars: ImageSet
    checks: ImageSet
    fresh: ImageSet
    domains: tuple[str, ...]
    pixels: Pixels
    skipped: dict[str, str]

    @property
    def labels(self) -> list[int]:
        """The classes of the new images, in order."""
        return np.union1d(self.new.labels, self.fresh.labels).tolist()

    def kept(self, exemplars: int, seed: int) -> tuple[ImageSet, ImageSet]:
        """Return the exemplars and the check images to keep, together at most ``exemplars`` per class, on stores of
        their own, so that the other images can be freed."""
        apart = checks_of(exemplars)
        replay = Memory((exemplars - apart) * len(self.known.names), seed, self.exemplars, Filled())
        replay.update(self.new, len(self.known.names))
        checked = Memory(apart * len(self.known.names), seed, self.checks, Filled())
        checked.update(self.checks.of_classes([]), len(self.known.names))
        return alone(replay.images()), alone(checked.images())


def checks_of(exemplars: int) -> int:
    """Return how many of a class's exemplars are never trained on: a quarter, but at least one of two or more."""
    return max(1, exemplars // 4) if exemplars > 1 else 0


def collect(
    state: State,
    found: Dataset,
    exemplars: int,
    same: Mapping[str, str],
    watch: Watch = unwatched,
    tested: Sequence[str] = (),
) -> Pictures:
    """Match, read and split the images of an update; ``watch`` follows the reading, ``tested`` are names in --test.

    Raises:
        UserError: conflicting class names, a class without readable images, or one picture under two names.
    """
    new = everything(found)
    present = np.unique(new.labels).tolist()
    names = [found.class_names[label] for label in present]
    known, table = united(state.known, names, same, found.name, [*tested, *state.called])
    label_of = dict(zip(present, table, strict=True))
    new = new.relabel([label_of.get(label, -1) for label in range(len(found.class_names))])
    name = f"update {state.version + 1}"
    domains = found.domain_names if len(found.domain_names) > 1 else (name,)
    new = replace(new, domains=new.domains + len(state.domains))
    sets = [new, state.older or nothing(), state.exemplars, state.checks]
    (new, older, kept, checks), skipped = gather(sets, conflicts=True)
    pixels = decoded(new, state.encoder, KEPT_BYTES)
    _look(pixels, [new, older, kept, checks], watch)
    new, older, kept, checks = (pixels.readable(part) for part in (new, older, kept, checks))
    for label in sorted(set(table)):
        if not (new.labels == label).any():
            raise UserError(
                f'no image of "{known.names[label]}" in {found.name} can be read: replace or drop them'
            )
    learned = dict(zip(state.sums.ids.tolist(), state.sums.labels.tolist(), strict=True))
    for part in (kept, checks):
        learned |= dict(zip(part.ids.tolist(), part.labels.tolist(), strict=True))
    _one_name(known, new, older, learned, state.spec if state.place is not None else None)
    new = new.select(~np.isin(new.ids, [*older.ids.tolist(), *learned]))
    if len(new):  # a class whose images were all known is not learned again
        task = CardTask(name=name, labels=np.unique(new.labels).tolist())
        known = replace(known, tasks=(*known.tasks, task))
    else:
        log.warning("all images of %s are known already: nothing new is learned", found.name)
    new, fresh = new.apart(SHARE, "check", MOST_CHECKS)
    older = older.select(~np.isin(older.ids, np.concatenate([kept.ids, checks.ids])))
    again = np.isin(older.ids, [*learned])  # towers may have been trained on these: not check images
    rest, past = older.select(~again).apart(SHARE, "check", checks_of(exemplars))
    older = older.select(again) + rest
    if len(older):
        memory = Memory((exemplars - checks_of(exemplars)) * len(known.names), 0, older.of_classes([]))
        memory.update(older, len(known.names))
        kept = kept + memory.images()
    skipped |= {pixels.store.keys[row]: reason for row, reason in pixels.broken.items()}
    if skipped:
        log.warning("%d images cannot be read and are skipped, such as %s", len(skipped), next(iter(skipped)))
    checks = checks + past + fresh
    return Pictures(known, new, older, kept, checks, fresh, (*state.domains, *domains), pixels, skipped)


def _look(pixels: Pixels, parts: Sequence[ImageSet], watch: Watch) -> None:
    """Decode all images once, kept or not, to find those that cannot be read."""
    step = watch("reading images", sum(map(len, parts)))
    for part in parts:
        for rows in np.array_split(part.rows, -(-len(part) // DECODED) or 1):
            pixels.load(rows)
            step(len(rows))


def _one_name(
    known: Known, new: ImageSet, older: ImageSet, learned: Mapping[int, int], spec: str | None
) -> None:
    """Refuse a picture that has two names. Raises UserError.

    Args:
        learned: labels of earlier updates.
        spec: what the model was opened by; None where it is in memory alone, as updated.
    """
    label_of = dict(learned)
    forget = f"take it out first: everclip forget {spec} --images FILE -o FOLDER"
    if spec is None:
        forget = "save the model, and load what everclip forget SAVED --images FILE -o FOLDER makes"
    for part in (older, new):
        columns = (part.ids.tolist(), part.labels.tolist(), part.rows.tolist())
        for sample, label, row in zip(*columns, strict=True):
            before = label_of.setdefault(sample, label)
            if before == label:
                continue
            one, two, key = known.names[label], known.names[before], part.store.keys[row]
            if part is older:
                raise UserError(
                    f'{key} is a picture of "{one}" in --memory, but was learned as "{two}": remove it there,'
                    f" or {forget}"
                )
            also, remedy = "also appears", "remove it from one of them"
            if sample in learned:
                also, remedy = "was learned", forget
            raise UserError(
                f'{key} is a picture of "{one}", but {also} as "{two}": if they are one class use'
                f' --same "{one}={two}" (in Python: call both "{two}"), else {remedy}'
            )


def holdout(
    known: Known,
    found: Dataset,
    clip: Clip,
    watch: Watch = unwatched,
    same: Mapping[str, str] | None = None,
) -> tuple[ImageSet, Pixels]:
    """Return the images to test on, with labels of the known classes; ``watch`` follows the reading.

    Args:
        same: name in ``found`` -> known name, where they are one class.

    Raises:
        UserError: a class that the model does not know, or no image can be read.
    """
    images = found.whole()
    table = labels_of(found.class_names, known.names, same)
    unknown = [found.class_names[label] for label in np.unique(images.labels).tolist() if table[label] < 0]
    if unknown:
        near = {plain(name): name for name in known.names}.get(plain(unknown[0]))
        hint = (
            f': did you mean "{near}"?' if near else ": leave that class out, or give images of it to learn"
        )
        what = "which is neither an old nor a new class"
        raise UserError(f'test images ({found.name}) show "{unknown[0]}", {what}{hint}')
    (images,), _ = gather([images.relabel(table)])
    pixels = decoded(images, clip, KEPT_BYTES)
    _look(pixels, [images], watch)
    images = pixels.readable(images)
    if not len(images):
        raise UserError(f"no test image ({found.name}) can be read: give others")
    return images, pixels
