"""Sparse rows of features, by row: what objectives over counts take, without scipy."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain
from operator import index
from typing import Any

import numpy as np


class SparseRows:
    """(n, u) numbers of which most are 0: those of row j are data[indptr[j]:indptr[j + 1]], their columns indices[...].

    Columns ascend within a row, no place is stored twice. Sliced and indexed by rows as an array is.
    """

    ndim = 2

    def __init__(self, indptr: np.ndarray, indices: np.ndarray, data: np.ndarray, u: int):
        self.indptr, self.indices, self.data = indptr, indices, data
        self.shape = (len(indptr) - 1, u)

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def dtype(self) -> np.dtype:
        return self.data.dtype

    @property
    def nbytes(self) -> int:
        return self.indptr.nbytes + self.indices.nbytes + self.data.nbytes

    def __getitem__(self, rows: slice | np.ndarray) -> SparseRows:
        if isinstance(rows, slice):
            start, stop, step = rows.indices(len(self))
            if step == 1:
                first, last = self.indptr[start], self.indptr[max(stop, start)]
                indptr = self.indptr[start : max(stop, start) + 1] - first
                return SparseRows(indptr, self.indices[first:last], self.data[first:last], self.shape[1])
            rows = np.arange(start, stop, step)
        rows = np.asarray(rows)
        starts, counts = self.indptr[rows], self.indptr[rows + 1] - self.indptr[rows]
        indptr = np.concatenate([[0], np.cumsum(counts)])
        at = np.repeat(starts - indptr[:-1], counts) + np.arange(indptr[-1])
        return SparseRows(indptr, self.indices[at], self.data[at], self.shape[1])

    def owners(self) -> np.ndarray:
        """(entries,) the row of each number."""
        return np.repeat(np.arange(len(self)), np.diff(self.indptr))

    def to_dense(self) -> np.ndarray:
        """(n, u) of the same dtype."""
        out = np.zeros(self.shape, self.dtype)
        out[self.owners(), self.indices] = self.data
        return out


def is_sparse(value: Any) -> bool:
    """Whether it is a sparse matrix or array of scipy, or of something that looks like one."""
    return isinstance(value, SparseRows) or (hasattr(value, "tocsr") and hasattr(value, "nnz"))


def as_sparse_rows(value: Any, name: str = "X") -> SparseRows:
    """Checked rows from a scipy sparse matrix: finite real numbers, zeros that are stored dropped, repeats added up.

    Raises TypeError, ValueError naming the argument.
    """
    if isinstance(value, SparseRows):
        return value
    if getattr(value, "ndim", 2) != 2 or 0 in value.shape:
        raise ValueError(f"{name} must be two-dimensional and not empty, got shape {tuple(value.shape)}")
    if value.dtype.kind not in "fiub":
        raise TypeError(f"{name} must hold real numbers, got dtype {value.dtype}")
    rows = value.tocsr()
    if not rows.has_canonical_format or not rows.data.all():
        rows = rows.copy()
        rows.sum_duplicates()
        rows.eliminate_zeros()
    indptr, data = rows.indptr.astype(np.int64), rows.data
    bad = np.flatnonzero(~np.isfinite(data)) if data.dtype.kind == "f" else ()
    if len(bad):
        row = int(np.searchsorted(indptr, bad[0], side="right")) - 1
        raise ValueError(
            f"{name} must be finite, got {len(bad)} NaN or infinite values, the first in row {row}"
        )
    return SparseRows(indptr, rows.indices, data, int(rows.shape[1]))


def rows_of_sets(sets: Sequence[Iterable[int]], u: int | None, name: str) -> SparseRows:
    """One row for each set of numbers in [0, u), 1 where they are; u None: up to the largest there is."""
    sets = [row if isinstance(row, (set, frozenset)) else _as_set(row, j, name) for j, row in enumerate(sets)]
    indptr = np.concatenate([[0], np.cumsum([len(row) for row in sets])]).astype(np.int64)
    try:
        indices = np.fromiter(map(index, chain.from_iterable(sets)), np.int64, int(indptr[-1]))
    except TypeError:
        j, c = next((j, c) for j, row in enumerate(sets) for c in row if not hasattr(c, "__index__"))
        raise TypeError(f"{name} must hold concept numbers (integers), entry {j} holds {c!r}") from None
    except OverflowError:
        raise ValueError(
            f"{name} must hold concept numbers, got {max(chain.from_iterable(sets), key=abs)}"
        ) from None
    least, most = int(indices.min(initial=0)), int(indices.max(initial=0))
    u = most + 1 if u is None else u
    if least < 0 or most >= u:
        bad = int(np.flatnonzero((indices < 0) | (indices >= u))[0])
        row = int(np.searchsorted(indptr, bad, side="right")) - 1
        raise ValueError(f"{name} must hold concept numbers in [0, {u}), entry {row} holds {indices[bad]}")
    owners = np.repeat(np.arange(len(sets)), np.diff(indptr))
    indices += owners * u
    indices.sort()  # ascending within a row
    indices -= owners * u
    return SparseRows(indptr, indices, np.ones(len(indices), np.uint8), u)


def _as_set(row: Iterable[int], j: int, name: str) -> set[int]:
    try:
        return set(row)
    except TypeError:
        raise TypeError(
            f"{name} must be a list of sets of concept numbers, or a matrix of 0 and 1; entry {j} is {row!r}"
        ) from None
