"""Keep state per sample (or per group), keyed by id, from task to task: SampleTable."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor

Ids = Tensor | NDArray[Any] | Sequence[int]


class SampleTable:
    """A growing table: int64 id -> a row of ``columns`` fp32 values on the CPU.

    Ids are any int64, even as sparse as hashes. Ids that were never set are *unseen*; as this is told by id, every
    value is legal. Results do not depend on the order in which ids came.

    Not an nn.Module's buffer on purpose: data-parallel training would overwrite the rows of one process with
    those of another.
    """

    def __init__(self, columns: int) -> None:
        self.columns = columns
        self._row: dict[int, int] = {}
        self._values = torch.empty(0, columns)
        self._before: list[tuple[list[int], Tensor, Tensor]] | None = None

    def __len__(self) -> int:
        return len(self._row)

    @property
    def nbytes(self) -> int:
        """Bytes of the values and their ids."""
        return len(self) * (4 * self.columns + 8)

    def ids(self) -> NDArray[np.int64]:
        """Return the ids that have a row, int64 ``[n]``, ascending."""
        return np.sort(np.fromiter(self._row, dtype=np.int64, count=len(self._row)))

    def get(self, ids: Ids) -> tuple[Float[Tensor, "b c"], Bool[Tensor, " b"]]:
        """Return rows of ``ids`` (zeros where unseen), and which of them were ever set."""
        rows = torch.tensor([self._row.get(sample, -1) for sample in _list(ids)], dtype=torch.int64)
        seen = rows >= 0
        values = torch.zeros(len(rows), self.columns)
        values[seen] = self._values[rows[seen]]
        return values, seen

    def set(self, ids: Ids, values: Float[Tensor, "b c"]) -> None:
        """Set the rows of ``ids``, which have to be distinct."""
        known = _list(ids)
        if self._before is not None:
            self._before.append((known, *self.get(known)))
        for sample in known:
            if sample not in self._row:
                self._row[sample] = len(self._row)
        if len(self._row) > len(self._values):
            grown = torch.empty(max(2 * len(self._values), len(self._row), 64), self.columns)
            grown[: len(self._values)] = self._values
            self._values = grown
        rows = torch.tensor([self._row[sample] for sample in known], dtype=torch.int64)
        self._values[rows] = values.detach().to("cpu", torch.float32)

    @contextmanager
    def undoable(self) -> Iterator[Callable[[], None]]:
        """Note the rows that ``set`` replaces meanwhile; yield a function that puts them back."""
        before = self._before = []
        try:
            yield lambda: self._put_back(before)
        finally:
            self._before = None

    def _put_back(self, before: list[tuple[list[int], Tensor, Tensor]]) -> None:
        self._before = None
        for known, values, seen in reversed(before):
            self.set([sample for sample, old in zip(known, seen.tolist(), strict=True) if old], values[seen])
            self.drop([sample for sample, old in zip(known, seen.tolist(), strict=True) if not old])

    def drop(self, ids: Ids) -> None:
        """Make ``ids`` unseen again; ids without a row are ignored."""
        gone = set(_list(ids))
        kept = [sample for sample in self._row if sample not in gone]
        if len(kept) < len(self._row):
            self._values = self._values[torch.tensor([self._row[k] for k in kept], dtype=torch.int64)]
            self._row = {sample: row for row, sample in enumerate(kept)}

    def state_dict(self) -> dict[str, Tensor]:
        """Return ``ids`` int64 ``[n]``, ascending, ``values`` fp32 ``[n, columns]``: equal tables, equal states."""
        ids = self.ids()
        return {"ids": torch.from_numpy(ids), "values": self.get(ids)[0]}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Become the table that was saved."""
        self._row, self._values = {}, torch.empty(0, self.columns)
        self.set(state["ids"], state["values"])


def _list(ids: Ids) -> list[int]:
    return ids.tolist() if isinstance(ids, Tensor | np.ndarray) else list(ids)
