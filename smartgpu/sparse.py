"""Sparse rows of features, by row: what objectives over counts take, without scipy."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
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
    lists = []
    for j, members in enumerate(sets):
        try:
            row = np.array(sorted(set(members)))
        except TypeError:
            raise TypeError(
                f"{name} must be a list of sets of concept numbers, or a matrix of 0 and 1; entry {j} is {members!r}"
            ) from None
        if len(row) and row.dtype.kind not in "iu":
            raise TypeError(f"{name} must hold concept numbers (integers), entry {j} holds {row.dtype}")
        lists.append(row.astype(np.int64))
    indptr = np.concatenate([[0], np.cumsum([len(row) for row in lists])]).astype(np.int64)
    indices = np.concatenate(lists) if lists else np.empty(0, np.int64)
    u = int(indices.max(initial=0)) + 1 if u is None else u
    if len(indices) and not (indices.min() >= 0 and indices.max() < u):
        bad = int(np.flatnonzero((indices < 0) | (indices >= u))[0])
        row = int(np.searchsorted(indptr, bad, side="right")) - 1
        raise ValueError(f"{name} must hold concept numbers in [0, {u}), entry {row} holds {indices[bad]}")
    return SparseRows(indptr, indices, np.ones(len(indices), np.uint8), u)
