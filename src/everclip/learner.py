"""Do in Python what ``everclip update`` does on the command line: Learner.

    learner = everclip.Learner("lite", image_size=96)
    learner.learn(images, ["cat", "dog", ...])
    learner.update(more, ["bird", ...])
    learner.predict(images)               # ["cat", ...]
    learner.save("pets")                  # a folder that every command accepts

    learner = everclip.Learner("features:768")               # for features computed elsewhere
    learner.partial_fit(features=x, labels=["cat", ...])     # x: floats [n, 768]
    learner.predict(features=x)

Images are paths, PIL images, arrays ``[h, w, 3]`` of uint8 (an array ``[n, h, w, 3]`` too), encoded bytes, or a
Dataset, which has its own labels: ``learn`` and ``update`` take its training part, the others its test part, and all of
them both parts where the data came undivided.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from threading import RLock
from typing import Any, NoReturn, overload

import numpy as np
from jaxtyping import Bool, Float, Float32
from torch import Tensor

from everclip.data.gathered import Replaced
from everclip.data.given import dataset, either, lines, named, pairs, several, to_learn, to_test, whole
from everclip.data.images import Dataset
from everclip.errors import RunError, UserError
from everclip.index import embed as embedding
from everclip.inference.predict import everyone
from everclip.seeding import unchanged
from everclip.system import trust as trusting
from everclip.system.atomic import check_new, claimed
from everclip.system.progress import Progress
from everclip.training.disk import on_disk
from everclip.updating.core import Options, Outcome, update
from everclip.updating.start import begin
from everclip.updating.state import State
from everclip.updating.versions import write_next

Images = Sequence[Any] | np.ndarray | Tensor | Dataset
Labels = Sequence[Any] | np.ndarray | Tensor
"""Class names, or numbers, one per image; 1.0 and 1 are one class."""
Features = Sequence[Any] | np.ndarray | Tensor
"""Floats ``[n, d]``."""
ENOUGH = 256
"""Largest number of images that ``partial_fit`` collects before learning."""


class Learner:
    """A classifier that learns new classes. Calls from several threads wait for each other.

    Args:
        model: ``lite``, an open_clip ``NAME:TAG``, ``local-dir:FOLDER``, a run, or a folder that was saved;
            ``features:WIDTH`` takes features ``[n, WIDTH]`` of any model instead of images, and trains no tower.
        classes: class names, or numbers, for a model that has learned nothing.
        image_size: side in pixels, for such a model.
        method, exemplars, seed: as in ``everclip update``.
        progress: whether to show a bar, in a notebook too.
        trust: a folder whose files may name code that is then imported, as ``--trust`` does on the command line; it
            stays trusted in this process.

    Raises:
        UserError: no such model, or it names code and is not trusted; or ``classes`` are not valid names.
    """

    def __init__(
        self,
        model: str = "lite",
        *,
        classes: Labels | None = None,
        image_size: int | None = None,
        method: str = "auto",
        exemplars: int = 10,
        seed: int = 0,
        progress: bool = True,
        trust: str | Path | None = None,
    ) -> None:
        if trust is not None:
            trusting.folder(trust)
        self._options = Options(method=method, exemplars=exemplars, seed=seed)
        self._options.check()
        self._progress = progress
        names = None if classes is None else named(classes, ("class", "classes"), "one name per class")
        with unchanged():
            self._state = begin(model, names, None, image_size)
        clip = self._state.frozen
        self._width = None if clip.image_size else clip.blank().shape[1]
        self._on_disk = self._state
        self._saved: tuple[State, Outcome] | None = None
        self._waiting: list[tuple[bytes, str]] = []
        self._lock = RLock()  # answers take it too: they and learning hook the layers of the same towers

    def __reduce__(self) -> NoReturn:
        raise UserError(
            "a learner cannot be pickled: use save(folder), and Learner.load(folder) where it is needed"
        )

    def __copy__(self, memo: object = None) -> Learner:
        made = object.__new__(type(self))
        vars(made).update(vars(self))  # the lock too, as both share the same towers
        return made

    __deepcopy__ = __copy__  # a state never changes in place, and closures would share the towers anyway

    @property
    def classes(self) -> list[str]:
        """The class names, in the order of the columns of ``predict_proba``."""
        self._catch_up()
        return list(self._state.known.names)

    def learn(
        self,
        images: Images | None = None,
        labels: Labels | None = None,
        *,
        features: Features | None = None,
    ) -> Learner:
        """Learn images, like ``update`` without a limit on the loss of old classes. Returns the learner.

        Args:
            features: instead of images, here and below, for a model that takes features.

        Raises:
            UserError: images and labels do not match, or a class has no readable image.
        """
        self.update(images, labels, features=features)
        return self

    def update(
        self,
        images: Images | None = None,
        labels: Labels | None = None,
        test: tuple[Images, Labels] | Dataset | None = None,
        max_drop: float | None = None,
        *,
        features: Features | None = None,
    ) -> dict[str, Any]:
        """Learn new classes, or new images of old ones.

        Args:
            labels: one class name per image; None for a Dataset.
            test: held-out images with their labels, or a Dataset.
            max_drop: percentage points that old classes may lose on ``test``, which then needs images of them; if
                they lose more, the learner is unchanged and ``verdict["gate"]["passed"]`` is false. None: no limit.

        Returns:
            the verdict, as in verdict.json.

        Raises:
            UserError: as ``learn``; or ``max_drop`` is given, and ``test`` has no image of an old class.
        """
        with self._lock:
            self._catch_up()
            known = self._state.known.names
            new = to_learn(self._given(images, features), labels, self._width, known)
            held = None if test is None else to_test(test, self._width, (*known, *new.class_names))
            return self._learn(new, held, replace(self._options, **_limit(max_drop)))

    def partial_fit(
        self,
        images: Images | None = None,
        labels: Labels | None = None,
        *,
        features: Features | None = None,
    ) -> Learner:
        """Take a batch of a stream, learned at the next call of another method, or at 256 images. Returns the learner.

        Raises:
            UserError: as ``learn``, here or at that later call; then none of the waiting images is learned.
        """
        given = self._given(images, features)
        if isinstance(given, Dataset):
            raise UserError("partial_fit takes images and their labels: a Dataset goes to learn or update")
        with self._lock:
            known = (*self._state.known.names, *(name for _, name in self._waiting))
            self._waiting = [*self._waiting, *pairs(given, labels, self._width, known)]
            if len(self._waiting) >= ENOUGH:
                self._catch_up()
        return self

    @overload
    def predict(self, images: Images | None = None, *, features: Features | None = None) -> list[str]: ...

    @overload
    def predict(
        self, images: Images | None = None, *, features: Features | None = None, unknown_at: float | str
    ) -> list[str | None]: ...

    def predict(
        self,
        images: Images | None = None,
        *,
        features: Features | None = None,
        unknown_at: float | str | None = None,
    ) -> Sequence[str | None]:
        """Return the most probable class of each image.

        Args:
            unknown_at: rate, such as 0.05 or "5%", at which images of known classes may be called unknown; an unknown
                image gets None instead of a class.

        Raises:
            UserError: as ``predict_proba``; or the learner has too few check images for this rate.
        """
        found, unknown = self._answers(images, features, unknown_at)
        names = self._state.known.names
        return [
            None if new else names[column]
            for column, new in zip(found.argmax(1).tolist(), unknown.tolist(), strict=True)
        ]

    def predict_proba(
        self, images: Images | None = None, *, features: Features | None = None
    ) -> Float[np.ndarray, "n c"]:
        """Return probabilities of the classes.

        Raises:
            UserError: an image cannot be read, or the learner knows no class yet.
        """
        return self._answers(images, features)[0]

    def embed(
        self, images: Images | None = None, *, texts: Sequence[str] | None = None
    ) -> Float32[np.ndarray, "n d"]:
        """Return unit-length embeddings of images or of texts from the two towers, whatever the classifier.

        Raises:
            UserError: an image cannot be read, or the model takes features.
        """
        if (images is None) == (texts is None):
            raise UserError("give either images or texts")
        if self._width is not None:
            raise UserError(f"{self._state.spec} takes features, which are embeddings already")
        with self._lock:
            self._catch_up()
            clip = self._state.encoder
            if images is None:
                return embedding.texts(clip, lines(texts)).numpy()
            several(images)
            return embedding.every(clip, whole(images, self._width)).numpy()

    def save(self, folder: str | Path) -> Path:
        """Write a model folder (new or empty) that all commands and ``load`` accept, and return its path. Its previous
        version is the one loaded or saved before the last images were learned (none, with a warning, if that folder
        has gone). Its verdict covers these images alone.

        Raises:
            UserError: the folder is not empty or in use, or nothing was learned since loading.
            RunError: the disk is full or fails.
        """
        with self._lock:
            self._catch_up()
            path = check_new(str(folder))
            if self._saved is None:
                raise UserError("nothing was learned yet: call learn(images, labels) before save")
            before, outcome = self._saved
            with on_disk(path), claimed(path):
                written = write_next(outcome, before, path)
            # images are read from the new folder from now on: the previous version may be deleted
            self._state = replace(self._state, exemplars=written.exemplars, checks=written.checks)
            self._saved = before, replace(outcome, state=self._state)
            self._on_disk = written
        return path

    @classmethod
    def load(cls, folder: str | Path, **options: Any) -> Learner:
        """Return a learner that continues a saved one, a run or a version; ``options`` are those of the class."""
        return cls(str(folder), **options)

    # ----------------------------------------------------------------------------------------------------------------

    def _answers(
        self, images: Images | None, features: Features | None, unknown_at: float | str | None = None
    ) -> tuple[Float[np.ndarray, "n c"], Bool[np.ndarray, " n"]]:
        """Return probabilities, and which images are unknown."""
        given = self._given(images, features)
        with self._lock:
            self._catch_up()
            model = self._state.model
            if model is None:
                raise UserError("the learner knows no class yet: call learn(images, labels) first")
            return everyone(model, whole(given, self._width), unknown_at, self._state.place is None)

    def _given(self, images: Images | None, features: Features | None) -> Images:
        return either(images, features, self._state.spec, self._width)

    def _learn(self, new: Dataset, held: Dataset | None, options: Options) -> dict[str, Any]:
        with unchanged(), Progress(quiet=not self._progress) as progress:
            outcome = update(self._state, new, held, options, progress)
        if outcome.passed:
            self._saved, self._state = (self._on_disk, outcome), outcome.state
        return outcome.verdict

    def _catch_up(self) -> None:
        """Learn what ``partial_fit`` has taken."""
        with self._lock:
            if not self._waiting:
                return
            new = dataset(self._waiting, self._width)
            try:
                self._learn(new, None, replace(self._options, **_limit(None)))
            except Replaced as error:  # not because of these images
                waiting = f"the last {len(self._waiting)} images of partial_fit wait until it is back"
                raise UserError(f"{error}; {waiting}, and a model loaded anew needs them again") from error
            except (RunError, UserError) as error:  # it would be raised each time: drop these images
                what = f"none of the last {len(self._waiting)} images of partial_fit was learned"
                self._waiting = []
                raise UserError(f"{error}; {what}: give them again without it") from error
            self._waiting = []  # only now: an interrupt loses none


def _limit(max_drop: float | None) -> dict[str, Any]:
    """Return the options that say how much old classes may lose; None: they need not even be measured."""
    return {"max_drop": 100.0 if max_drop is None else max_drop, "unmeasured": max_drop is None}
