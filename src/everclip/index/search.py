"""Find the nearest of many embeddings, exactly: a matrix product and a partial sort for each block of a folder."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec

import numpy as np
from jaxtyping import Float, Float32, Int64

from everclip.errors import UserError
from everclip.index.folder import Vectors

QUERIES = 256
"""Number of queries compared with a block at a time."""

Nearest = tuple[Float32[np.ndarray, "q k"], Int64[np.ndarray, "q k"]]
"""Cosines, largest first, and their rows."""


def nearest(vectors: Vectors, queries: Float32[np.ndarray, "q d"], k: int) -> Nearest:
    """Find the ``k`` rows with the largest cosine to each query; ties go to the first row; all rows if there are fewer.

    With faiss-cpu installed (extra ``faiss``) its exact search replaces product and sort; among equal cosines it may
    choose other rows.

    Args:
        queries: unit length.

    Raises:
        UserError: a shard is broken, or the queries have another width.
    """
    if queries.shape[1] != vectors.table.width:
        widths = f"{queries.shape[1]} numbers and {vectors.path} {vectors.table.width}"
        raise UserError(f"the query has {widths}: give the folder's own model")
    there = find_spec("faiss")
    best = of_block if there is None or there.origin is None else _with_faiss  # a mere folder has no origin
    starts = range(0, len(queries), QUERIES)
    parts = [_found(vectors, queries[start : start + QUERIES], k, best) for start in starts]
    if not parts:
        none = np.zeros((0, min(k, len(vectors))))
        return none.astype(np.float32), none.astype(np.int64)
    return np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])


def _found(
    vectors: Vectors, queries: Float32[np.ndarray, "q d"], k: int, best: Callable[..., Nearest]
) -> Nearest:
    cosines = np.zeros((len(queries), 0), dtype=np.float32)
    rows = np.zeros((len(queries), 0), dtype=np.int64)
    for first, block in vectors.blocks:
        least = cosines[:, k - 1] if cosines.shape[1] == k else np.full(len(queries), -np.inf)
        more, places = best(queries, block.astype(np.float32, copy=False), min(k, len(block)), least)
        if not np.isfinite(more).all():
            what = f"an embedding from row {first:,} on is not finite"
            raise UserError(f"{vectors.path} is broken ({what}): embed into a new folder")
        if not more.shape[1]:
            continue
        cosines, rows = np.concatenate([cosines, more], 1), np.concatenate([rows, places + first], 1)
        order = np.lexsort((rows, -cosines), axis=1)[:, :k]
        cosines, rows = np.take_along_axis(cosines, order, 1), np.take_along_axis(rows, order, 1)
    return cosines, rows


def of_block(
    queries: Float32[np.ndarray, "q d"],
    block: Float[np.ndarray, "n d"],
    k: int,
    least: Float[np.ndarray, " q"],
) -> Nearest:
    """Return the ``k`` best of one block for each query, in any order; of equal ones the first.

    Args:
        least: cosines that must be exceeded; a block that exceeds none of them gives no rows.
    """
    cosines = queries @ block.T
    if (cosines.max(1) <= least).all():
        return cosines[:, :0], np.zeros((len(queries), 0), dtype=np.int64)
    if not np.isfinite(cosines).all():
        return cosines[:, :k] + np.nan, np.zeros((len(queries), k), dtype=np.int64)
    bounds = np.partition(cosines, -k, axis=1)[:, -k]
    rows = np.stack([_largest(line, bound, k) for line, bound in zip(cosines, bounds, strict=True)])
    return np.take_along_axis(cosines, rows, 1), rows


def _largest(cosines: Float32[np.ndarray, " n"], least: np.float32, k: int) -> Int64[np.ndarray, " k"]:
    """Return where the ``k`` largest are; ``least`` is the smallest of them, which others may equal."""
    above, equal = np.flatnonzero(cosines > least), np.flatnonzero(cosines == least)
    return np.concatenate([above, equal[: k - len(above)]])


def _with_faiss(
    queries: Float32[np.ndarray, "q d"],
    block: Float[np.ndarray, "n d"],
    k: int,
    least: Float[np.ndarray, " q"],
) -> Nearest:
    import faiss  # pyright: ignore[reportMissingImports]

    whole = np.ascontiguousarray(queries), np.ascontiguousarray(block)
    cosines, rows = faiss.knn(*whole, k, metric=faiss.METRIC_INNER_PRODUCT)
    # It skips what is not finite, and gives row -1 where too few are left.
    finite = all(np.isfinite(part).all() for part in whole)
    return (cosines if finite else cosines + np.nan), rows
