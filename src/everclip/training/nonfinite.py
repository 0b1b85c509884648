"""Detect steps with nan or inf before anything learns from them, and undo them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager

from torch import Tensor, no_grad

from everclip.errors import NonFinite, RunError
from everclip.methods.base.method import Method

IN_A_ROW = 10
"""Number of skipped steps in a row that ends a run: an error at every step is no accident."""
_COPIED_BYTES = 1 << 20
"""Largest buffer of a method, in bytes, that is copied before each loss so that it can be restored."""


def check(features: Mapping[str, Tensor], where: str, advice: str) -> None:
    """Refuse features that are not finite, before a loss can put them into moving averages.

    Args:
        where: place of the step and its images, and ``advice`` what to do, for the message.

    Raises:
        NonFinite: one has a nan or an inf.
    """
    for name, values in features.items():
        if not values.isfinite().all():
            raise NonFinite(f'the features "{name}" are not finite {where}: {advice}')


def located(place: str, ids: Iterable[int]) -> str:
    """Describe the place of a step and its images, for a message."""
    return f"{place} (ids of its first images: {', '.join(map(str, [*ids][:3]))})"


@contextmanager
def undoable(method: Method) -> Iterator[Callable[[], None]]:
    """Yield a function that, while this is open, undoes what ``loss`` changes in the method's tables and buffers.

    The function raises RunError where a buffer that is too large to be copied each time was changed.
    """
    buffers = [
        (name, buffer, buffer._version, buffer.clone() if buffer.nbytes <= _COPIED_BYTES else None)
        for name, buffer in method.named_buffers()
    ]
    with ExitStack() as stack:
        tables = [stack.enter_context(table.undoable()) for table in method.tables().values()]

        def undo() -> None:
            for put_back in tables:
                put_back()
            for name, buffer, version, copied in buffers:
                if method.get_buffer(name) is buffer and buffer._version == version:
                    continue
                if copied is None or method.get_buffer(name) is not buffer:
                    raise RunError(
                        f'the loss has changed "{name}", which cannot be undone: use train.nonfinite=stop'
                    )
                with no_grad():
                    buffer.copy_(copied)

        yield undo
