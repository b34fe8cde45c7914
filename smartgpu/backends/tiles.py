"""Tiles of similarity for the numpy backend: from prepared features by one padded product, or from a given matrix."""

from __future__ import annotations

import numpy as np

from smartgpu.backends import blas
from smartgpu.backends.travelling import Travelling
from smartgpu.features import Unheld
from smartgpu.similarity import Geometry, Matrix, map_dots

BASE = np.int32(0x40400000)  # the bits of 3.0: a raw integer is q + BASE
ROWS = 384  # rows of a tile at most: sums of 384 integers below 2^22 fit int32


class Features:
    """Tiles of s from prepared features (r, d) and (n, d), by one padded product and one map."""

    def __init__(self, pool: Geometry, rows: np.ndarray, cols: np.ndarray, norms: dict[int, np.ndarray]):
        self.pool, self.rows, self.cols = pool, rows, cols
        self.symmetric = rows is cols
        self.run = pool.first if rows is pool.rows else None  # which candidates the rows are
        self.layout = blas.find_layout(cols.shape[1])
        self.block, self.dtype = self.layout.block, np.dtype(self.layout.dtype).name
        self.norms = [
            norms.setdefault(id(s), self._squared_norms(s)) if pool.kind.squared_norms else None
            for s in (rows, cols)
        ]

    def _squared_norms(self, x: np.ndarray) -> np.ndarray:
        """|x_i|^2 by the very chain of the products: the squared distance of two equal rows is exactly 0."""
        if isinstance(x, Travelling):
            return x.join(self._squared_norms(x.own))
        out = np.empty(len(x), self.layout.dtype)
        step = blas.round_up(48, self.layout.rows)
        with blas.one_thread():
            for i in range(0, len(x), step):
                part = x[i : i + step]
                out[i : i + step] = np.diagonal(blas.products(part, part, self.layout))
        return out

    def width(self, m: int) -> int:
        return (
            max(blas.round_up(m, self.layout.width), blas.round_up(48, self.layout.width))
            + 2 * self.layout.pad
        )

    @property
    def pad(self) -> int:
        return self.layout.pad

    def panel(self, cols: np.ndarray | slice) -> tuple[np.ndarray, np.ndarray | None]:
        squares = self.norms[1]
        panel = blas.make_panel(self.cols[cols], self.layout)
        if squares is not None:
            chosen = squares[cols]
            squares = np.zeros(len(panel), chosen.dtype)
            squares[self.pad : self.pad + len(chosen)] = chosen
        return panel, squares

    def _padded(self, rows: np.ndarray | slice, length: int) -> np.ndarray:
        part = self.norms[0][rows]
        return np.concatenate([part, np.zeros(length - len(part), part.dtype)])

    def tile(self, rows: np.ndarray | slice, panel: tuple, out: np.ndarray) -> np.ndarray:
        """s of the given rows against a panel, into out[:, :]; returns out cut to whole groups of rows, (r', width)."""
        y, squares = panel
        part = self.rows.lent(rows) if isinstance(self.rows, Unheld) else self.rows[rows]
        a = blas.pad_rows(part, self.layout)
        out = out[: len(a)]
        product = out if self.layout.dtype is np.float32 else np.empty(out.shape, self.layout.dtype)
        np.matmul(a, y.T, out=product)
        map_dots(
            self.pool, product, None if squares is None else np.add.outer(self._padded(rows, len(a)), squares)
        )
        if product is not out:
            out[...] = product
        return out


class Entries:
    """Tiles of s from a precomputed matrix, dense or sparse by column."""

    symmetric = False
    run = None
    pad = 0
    block = ROWS
    dtype = "float32"

    def __init__(self, pool: Matrix):
        self.pool = pool
        self.symmetric = pool.symmetric

    def width(self, m: int) -> int:
        return m

    def panel(self, cols: np.ndarray | slice):
        if self.pool.dense is not None:
            return cols
        indptr, indices, data = self.pool.csc
        cols = np.arange(self.pool.shape[1])[cols] if isinstance(cols, slice) else cols
        starts, counts = indptr[cols], indptr[cols + 1] - indptr[cols]
        where = np.repeat(starts - np.concatenate(([0], np.cumsum(counts)[:-1])), counts) + np.arange(
            counts.sum()
        )
        rows, local = indices[where], np.repeat(np.arange(len(cols)), counts)
        order = np.argsort(rows, kind="stable")
        return rows[order], local[order], (data[where][order] / self.pool.unit).astype(np.float32)

    def tile(self, rows: np.ndarray | slice, panel, out: np.ndarray) -> np.ndarray:
        if self.pool.dense is not None:
            both = isinstance(rows, np.ndarray) and isinstance(panel, np.ndarray)
            part = self.pool.dense[np.ix_(rows, panel) if both else (rows, panel)]
            out = out[: len(part)]
            np.divide(part, self.pool.unit, out=out, casting="unsafe")
            return out
        at, local, values = panel
        if isinstance(rows, slice):
            start, stop, _ = rows.indices(self.pool.shape[0])
            first, last = np.searchsorted(at, (start, stop))
            out = out[: stop - start]
            out[...] = 0
            out[at[first:last] - start, local[first:last]] = values[first:last]
            return out
        out = out[: len(rows)]
        for i, row in enumerate(rows):
            first, last = np.searchsorted(at, (row, row + 1))
            out[i] = 0
            out[i, local[first:last]] = values[first:last]
        return out
