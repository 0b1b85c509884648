"""Keep the accuracy matrix, and compute the measures of continual learning from it.

R[t, i] is the accuracy on task i after stage t (0-based here), as a fraction; None where task i has no test images of
its own, since all its classes were there before. Definitions and their papers: iCaRL (arXiv 1611.07725) for the
average, Chaudhry et al. 2018 (arXiv 1801.10112) for forgetting, Lopez-Paz and Ranzato 2017 (arXiv 1706.08840) for the
transfers, with the zero-shot accuracy of the pretrained model in place of GEM's random initialisation.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from everclip.metrics.streams import mean


class Matrix:
    """R, one row per stage, and for each stage the accuracy on the task that comes next."""

    def __init__(self) -> None:
        self._rows: list[list[float | None]] = []
        self._ahead: list[float | None] = []
        self.counts: list[int] = []
        """Test images of each task seen."""

    @property
    def stages(self) -> int:
        """Finished stages."""
        return len(self._rows)

    def add_stage(
        self, row: Sequence[float | None], counts: Sequence[int], ahead: float | None = None
    ) -> None:
        """Add a finished stage.

        Args:
            row: accuracy on tasks 0..t, among all classes seen; None for those without test images.
            counts: test images of tasks 0..t, at least one of the first.
            ahead: accuracy on task t + 1, among the classes of tasks 0..t + 1; None after the last.
        """
        assert len(row) == len(counts) == self.stages + 1
        assert counts[0] > 0
        assert all((value is None) == (count == 0) for value, count in zip(row, counts, strict=True))
        self._rows.append(list(row))
        self._ahead.append(ahead)
        self.counts = list(counts)

    @property
    def accuracy_after_stage(self) -> list[float]:
        """A_t on the union of the test images of tasks 0..t, so weighted by images."""
        return [
            sum(r * n for r, n in zip(row, self.counts, strict=False) if r is not None)
            / sum(self.counts[: len(row)])
            for row in self._rows
        ]

    @property
    def task_mean_after_stage(self) -> list[float]:
        """The mean of R[t, i] over tasks 0..t: equals A_t where tasks have equally many test images."""
        return [sum(known) / len(known) for known in map(_known, self._rows)]

    @property
    def last(self) -> float:
        """A_T, after the last stage."""
        return self.accuracy_after_stage[-1]

    @property
    def average(self) -> float:
        """Average incremental accuracy: the mean of A_t over the stages."""
        return sum(self.accuracy_after_stage) / self.stages

    @property
    def forgetting(self) -> float | None:
        """Mean over old tasks of the best accuracy before the last stage minus the last; None with one task.

        Negative where the last stage is better than any before.
        """
        return mean(_known(forgotten(self._rows)[-1]))

    @property
    def backward_transfer(self) -> float | None:
        """Mean over old tasks of the last accuracy minus that right after learning; None with one task."""
        gains = [
            last - first
            for i, last in enumerate(self._rows[-1][:-1])
            if last is not None and (first := self._rows[i][i]) is not None
        ]
        return mean(gains)

    def forward_transfer(self, pretrained: Sequence[float | None]) -> float | None:
        """Return the mean over tasks i >= 1 of R[i - 1, i] - b_i; None with one task.

        Args:
            pretrained: b, zero-shot accuracy on each task i among the classes of tasks 0..i.
        """
        pairs = zip(self._ahead[: self.stages - 1], pretrained[1:], strict=False)
        return mean([value - base for value, base in pairs if value is not None and base is not None])

    def to_list(self) -> list[list[float | None]]:
        """Return T x T, row t = stage t; None above the diagonal and where nothing is tested; as in
        ``results.json``."""
        return [row + [None] * (self.stages - len(row)) for row in self._rows]

    def state_dict(self) -> dict[str, Any]:
        """Return plain lists."""
        return {"rows": self._rows, "ahead": self._ahead, "counts": self.counts}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Become the matrix that was saved."""
        self._rows = [list(row) for row in state["rows"]]
        self._ahead = list(state["ahead"])
        self.counts = list(state["counts"])


def forgotten(matrix: Sequence[Sequence[float | None]]) -> list[list[float | None]]:
    """Return F[t, i] = max over s < t of R[s, i], minus R[t, i]; None before task i is old."""
    rows: list[list[float | None]] = []
    best: dict[int, float] = {}
    for t, row in enumerate(matrix):
        rows.append([best[i] - now if i in best and now is not None else None for i, now in enumerate(row)])
        for i, now in enumerate(row[: t + 1]):
            if now is not None:
                best[i] = max(now, best.get(i, now))
    return rows


def _known(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]
