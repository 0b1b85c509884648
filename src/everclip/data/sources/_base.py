"""Define a data source: a class that finds the images of a data set, and the facts that its makers publish."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from everclip.config.sections import Section

if TYPE_CHECKING:
    from everclip.data.formats.download import Remote
    from everclip.data.images import Dataset


TASKS = "data-incremental"
"""Kind of a scenario that takes named tasks, or times, where a source has them."""


@dataclass(frozen=True)
class Official:
    """The facts of a data set as its makers publish them.

    Args:
        train, test, classes: images of each part, and classes.
        domains: (training, test) images of each domain, where there are domains.
        per_class: images of every class in a part, for the parts where classes are of one size.
        home: address of the page that offers it.
    """

    train: int
    test: int
    classes: int
    domains: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    per_class: Mapping[str, int] = field(default_factory=dict)
    home: str = ""


class SourceConfig(Section):
    """Base of a source's ``Config``: options in ``[source]``, every field with a default and a description.

    Fields are of the kinds that a ``MethodConfig`` may have.
    """


class Source(ABC):
    """A way to find images, selected by data=NAME:ARGUMENT.

    A concrete source lives in a file of its own, whose name is the source's, and is final. A nested ``Config`` has its
    options, if there are any.

    Args:
        config: its options, checked.
    """

    Config: ClassVar[type[SourceConfig]] = SourceConfig
    official: ClassVar[Official | None] = None
    """The published facts of the one data set that it reads; None where it reads any."""

    def __init__(self, config: SourceConfig) -> None:
        self.config = config

    @abstractmethod
    def load(self, argument: str | None, kind: str) -> Dataset:
        """Find the images and their labels, domains and parts; their content is read when it is needed.

        Args:
            argument: what follows the colon, with a leading ``~`` expanded; None where there is nothing.
            kind: "domain-incremental" for the images of tasks that are domains; "time" for images with times; ``TASKS``
                for images with named tasks as domains, or with times, where there are any; else "class-incremental".

        Raises:
            UserError: what it needs is missing or wrong.
        """

    def missing(self, argument: str | None) -> list[str]:
        """Return a line for each thing that is not there, before ``load``. Nothing is downloaded.

        Raises:
            UserError: ``argument`` names nothing that could hold it.
        """
        return []

    def remotes(self) -> list[Remote]:
        """Return the files that ``load`` downloads where they are missing."""
        return []

    def hub(self) -> str:
        """Return the address that ``load`` downloads from if its files are not known beforehand; else an empty text."""
        return ""
