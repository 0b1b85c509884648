"""Define a way of tuning: which parameters train in a task, and what other modules need to know about it."""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import TYPE_CHECKING, Any, ClassVar

from everclip.config.sections import Section
from everclip.config.values import written

if TYPE_CHECKING:
    from everclip.models.catalogue import Costs
    from everclip.models.clip import Clip


class Tuning:
    """Which part of a model trains, with any method. This base class: everything that the method trains.

    A new instance is made wherever one is needed, so it keeps nothing from task to task.

    Args:
        name: as ``tune`` has it.
        config: its options.
    """

    class Config(Section):
        """No options. The first field of a subclass is what stands after the colon in ``tune=NAME:VALUE``: a number,
        a truth value, a text or a list. Further ones stand in the section ``tuning``."""

    config: Any

    passes: ClassVar[float] = 3.0
    """Number of forward passes that training a step counts as; 2 if weight gradients are negligible."""
    shards: ClassVar[bool] = True
    """Whether several processes can shard the towers' weights (``distributed.shard``)."""

    def __init__(self, name: str, config: Any) -> None:
        self.name = name
        self.config = config

    # Which parameters train -----------------------------------------------------------------------------------------

    def held(self, clip: Clip) -> Collection[str]:
        """Return names of ``clip.model``'s parameters that do not train.

        Raises:
            UserError: this model cannot be tuned so.
        """
        return ()

    def begin(self, clip: Clip) -> None:
        """Set up what trains of ``clip`` in a task; may draw from torch's random state. Raises like ``held``."""
        clip.hold(self.held(clip))

    def check(self, clip: Clip) -> None:
        """Refuse, before a run, what ``begin`` would refuse at its first task; change nothing. Raises UserError."""
        self.held(clip)

    def end(self, clip: Clip) -> None:
        """Undo, at a task's end, what ``begin`` added to the model, so that a checkpoint is an ordinary model."""

    # What follows from it -------------------------------------------------------------------------------------------

    @property
    def blocks(self) -> tuple[int | None, int | None]:
        """How many last blocks of the image tower, and of the text tower, train: None is all of it, 0 none.

        What lies below never changes, so it is computed once and kept.
        """
        return None, None

    @property
    def rates(self) -> Collection[str]:
        """Which of the rates ``lr`` and ``lr_text`` of ``[train]`` matter, so that a search tries values of them."""
        image, text = self.blocks
        return [name for name, count in (("lr", image), ("lr_text", text)) if count != 0]

    def fractions(self, costs: Costs) -> tuple[float, float]:
        """Return the fraction of the image and of the text tower that trains, for estimates; blocks count alike."""
        image, text = (
            1.0 if count is None else min(1.0, count / whole)
            for count, whole in zip(self.blocks, costs.blocks, strict=True)
        )
        return image, text

    # How a config has it --------------------------------------------------------------------------------------------

    @property
    def text(self) -> str:
        """What ``tune`` says: the name, and the value of the first option after a colon."""
        first = self._first()
        value = getattr(self.config, first) if first else ""
        word = value if isinstance(value, str) else "none" if value is None else json.dumps(value)
        return f"{self.name}:{word}" if word else self.name

    @property
    def options(self) -> dict[str, Any]:
        """The further options, as the section ``tuning`` has them."""
        return {name: value for name, value in written(self.config).items() if name != self._first()}

    def _first(self) -> str | None:
        return next(iter(type(self.config).model_fields), None)
