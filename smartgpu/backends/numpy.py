"""Backend "numpy": blocked float32 BLAS on threads. What runs where there is no GPU; no n x n array, ever.

A tile of similarities is computed, turned into integers in place and reduced while it lies in the cache. Adding 3.0 to
s in [-1, 1] leaves a float32 in [2, 4], where the spacing is 2^-22: its bits, read as an integer, are q + BASE. Levels
are kept in that raw form too, so that a tile costs one product, one addition, one maximum and one sum.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from smartgpu.backends import QUANTUM, blas
from smartgpu.similarity import Geometry, Matrix, MaxMinusSqeuclidean, map_dots

BASE = np.int32(0x40400000)  # the bits of 3.0: q = raw - BASE
ROWS = 384  # at most, summed in int32: 384 (2^22 + a few) < 2^31
LIMB = (
    22  # bits of a weight multiplied at once: 2^22 weight x 2^22 excess x 384 rows < 2^53, exact in float64
)


class Features:
    """Tiles of s from prepared features (r, d) and (n, d), by one padded product and one map."""

    def __init__(self, pool: Geometry, rows: np.ndarray, cols: np.ndarray, norms: dict[int, np.ndarray]):
        self.pool, self.rows, self.cols = pool, rows, cols
        self.symmetric = rows is cols
        self.layout = blas.find_layout(cols.shape[1])
        self.block, self.dtype = self.layout.block, np.dtype(self.layout.dtype).name
        self.norms = [
            norms.setdefault(id(s), self._squared_norms(s)) if pool.kind.squared_norms else None
            for s in (rows, cols)
        ]

    def _squared_norms(self, x: np.ndarray) -> np.ndarray:
        """|x_i|^2 by the very chain of the products: the squared distance of two equal rows is exactly 0."""
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
        a = blas.pad_rows(self.rows[rows], self.layout)
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
            part = self.pool.dense[rows]
            out = out[: len(part)]
            np.divide(part[:, panel], self.pool.unit, out=out, casting="unsafe")
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


@dataclass
class Kept:
    """Columns of a batch in raw form, (r', width) int32, of which [:r, pad:pad + m] are real."""

    raw: np.ndarray
    excess: np.ndarray
    weights: np.ndarray | None


class NumpyBackend:
    name = "numpy"

    def __init__(self, pool: Geometry | Matrix, *, threads: int | None = None, memory: int | None = None):
        self.pool = pool
        self.threads = threads or blas.cpu_count()
        self.memory = memory or 1 << 30
        self.pairs = 0
        self._local = threading.local()
        self._executor = ThreadPoolExecutor(self.threads, "smartgpu") if self.threads > 1 else None
        if isinstance(pool, Matrix):
            self.source = self.inner = Entries(pool)
            self.r, self.n = pool.shape
            self.same = self.r == self.n
        else:
            norms: dict[int, np.ndarray] = {}
            self.source = Features(pool, pool.rows, pool.x, norms)
            self.inner = self.source if pool.same else Features(pool, pool.x, pool.x, norms)
            self.r, self.n, self.same = len(pool.rows), len(pool.x), pool.same
        self.block_size = self.source.block
        if isinstance(pool.kind, MaxMinusSqeuclidean) and pool.top is None:
            self._find_top()
        self.dtype = self.source.dtype
        self.quantum = pool.unit * QUANTUM

    # -- work on threads -------------------------------------------------------------------------------------------

    def _run(self, work: Callable, items: Iterable) -> list:
        with blas.one_thread():
            return list(map(work, items) if self._executor is None else self._executor.map(work, items))

    def _buffer(self, name: str, shape: tuple[int, int], dtype: type) -> np.ndarray:
        """A scratch array of this thread: fresh pages for every tile would cost more than the tile."""
        size = shape[0] * shape[1]
        held = getattr(self._local, name, None)
        if held is None or held.size < size:
            held = np.empty(size, dtype)
            setattr(self._local, name, held)
        return held[:size].reshape(shape)

    def _quantised(
        self, source, rows: slice | np.ndarray, count: int, panel, width: int, m: int
    ) -> np.ndarray:
        """Raw integers of `count` rows against a panel of m columns: (count, m) int32 in a scratch buffer."""
        out = self._buffer("tile", (blas.round_up(count, 96), width), np.float32)
        tile = source.tile(rows, panel, out)
        tile += np.float32(3.0)
        return tile.view(np.int32)[:count, source.pad : source.pad + m]

    def _blocks(self, n: int) -> list[slice]:
        return [slice(i, min(i + self.block_size, n)) for i in range(0, n, self.block_size)]

    def _find_top(self) -> None:
        """M of max_minus_sqeuclidean, the largest squared distance of any pair of candidates or represented rows."""
        lowest = [0.0]
        for source in {id(s): s for s in (self.source, self.inner)}.values():

            def work(j: slice, source: Features = source) -> float:
                panel, m, least = source.panel(j), j.stop - j.start, 0.0
                for i in self._blocks(len(source.rows)):
                    out = self._buffer(
                        "tile", (blas.round_up(i.stop - i.start, 96), source.width(m)), np.float32
                    )
                    tile = source.tile(i, panel, out)[: i.stop - i.start, source.pad : source.pad + m]
                    least = min(least, float(tile.min()))
                return least

            lowest += self._run(work, self._blocks(self.n))
            self.pairs += len(source.rows) * self.n
        self.pool.top = -min(lowest)

    # -- facility location -----------------------------------------------------------------------------------------

    def new_level(self) -> np.ndarray:
        return np.full(self.r, BASE, np.int32)

    def level_from(self, values: np.ndarray) -> np.ndarray:
        return (values + int(BASE)).astype(np.int32)

    def level_values(self, level: np.ndarray) -> np.ndarray:
        return level - BASE

    def new_weights(self, weights: np.ndarray) -> np.ndarray:
        """(r,) int64 -> (2, r) float64: low and high limbs, so that products with excesses are exact."""
        return np.stack([weights & ((1 << LIMB) - 1), weights >> LIMB]).astype(np.float64)

    def level_sum(self, level: np.ndarray, weights: np.ndarray | None = None) -> int:
        values = (level - BASE).astype(np.int64)
        if weights is None:
            return int(values.sum())
        low, high = weights.astype(np.int64)
        return int((values * low).sum()) + (int((values * high).sum()) << LIMB)

    def raise_level(self, level: np.ndarray, cols: np.ndarray) -> None:
        panels = [cols[p] for p in self._blocks(len(cols))]
        prepared = [(self.source.panel(c), len(c)) for c in panels]

        def work(i: slice) -> None:
            for panel, m in prepared:
                raw = self._quantised(self.source, i, i.stop - i.start, panel, self.source.width(m), m)
                np.maximum(level[i], raw.max(axis=1), out=level[i])

        self._run(work, self._blocks(self.r))
        self.pairs += self.r * len(cols)

    def row_max(self) -> np.ndarray:
        level = self.new_level()

        def work(j: slice) -> np.ndarray:
            mine, panel, m = self.new_level(), self.source.panel(j), j.stop - j.start
            for i in self._blocks(self.r):
                raw = self._quantised(self.source, i, i.stop - i.start, panel, self.source.width(m), m)
                np.maximum(mine[i], raw.max(axis=1), out=mine[i])
            return mine

        for mine in self._run(work, self._blocks(self.n)):
            np.maximum(level, mine, out=level)
        self.pairs += self.r * self.n
        return level

    def excess(self, level: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
        return self._sweep(level, weights)

    def totals(self) -> np.ndarray:
        return self._sweep(None, None)

    def _sweep(self, level: np.ndarray | None, weights: np.ndarray | None) -> np.ndarray:
        """One pass over all pairs, reduced over i; a symmetric tile above the diagonal serves both its sides."""
        source, blocks = self.source, self._blocks(self.n)
        rows = self._blocks(self.r)
        out = np.zeros(self.n, np.int64)
        lock = threading.Lock()

        def work(number: int) -> None:
            j = blocks[number]
            m, panel = j.stop - j.start, source.panel(j)
            width = source.width(m)
            mine, across = np.zeros(m, np.int64), {}
            for at, i in enumerate(rows[: number + 1] if source.symmetric else rows):
                raw = self._quantised(source, i, i.stop - i.start, panel, width, m)
                if source.symmetric and at < number:
                    across[at] = self._reduce(raw.T, level, j, weights)
                mine += self._reduce(raw, level, i, weights)
            with lock:
                out[j] += mine
                for at, sums in across.items():
                    out[rows[at]] += sums

        order = range(len(blocks) - 1, -1, -1) if source.symmetric else range(len(blocks))
        self._run(work, order)
        self.pairs += self.n * (self.n + 1) // 2 if source.symmetric else self.r * self.n
        return out

    def _reduce(
        self, raw: np.ndarray, level: np.ndarray | None, i: slice, weights: np.ndarray | None
    ) -> np.ndarray:
        """Sums over the rows of a raw tile (at most ROWS of them): q without a level, else w max(q - level, 0)."""
        if level is None:
            return (np.add.reduce(raw, axis=0, dtype=np.int32) - _wrap(len(raw) * int(BASE))).astype(np.int64)
        floor = level[i]
        transposed = not raw.flags.c_contiguous and raw.strides[0] < raw.strides[1]
        shape = raw.shape[::-1] if transposed else raw.shape
        lifted = self._buffer("lifted", shape, np.int32)
        lifted = lifted.T if transposed else lifted
        np.maximum(raw, floor[:, None], out=lifted)
        if weights is None:
            sums = np.add.reduce(lifted, axis=0, dtype=np.int32) - _wrap(int(floor.sum(dtype=np.int64)))
            return sums.astype(np.int64)
        lifted -= floor[:, None]
        return _weighted(lifted, weights[:, i])

    def max_batch(self) -> int:
        return int(np.clip(self.memory // (8 * max(self.r, 1)) // 32 * 32, 32, 256))

    def keep(self, level: np.ndarray, cols: np.ndarray, weights: np.ndarray | None = None) -> Kept:
        """The columns of a batch, computed once into place, and their excess over the level."""
        source, m = self.source, len(cols)
        width, panel = source.width(m), source.panel(cols)
        store = np.empty((blas.round_up(self.r, 96), width), np.float32)
        raw = store.view(np.int32)[:, source.pad : source.pad + m]

        def work(i: slice) -> np.ndarray:
            tile = source.tile(i, panel, store[i.start : i.start + blas.round_up(i.stop - i.start, 96)])
            tile += np.float32(3.0)
            return self._reduce(raw[i], level, i, weights)

        sums = self._run(work, self._blocks(self.r))
        self.pairs += self.r * m
        return Kept(raw[: self.r], np.sum(sums, axis=0, dtype=np.int64), weights)

    def accept(self, kept: Kept, b: int, level: np.ndarray) -> None:
        """Raise the level by kept column b; every kept excess loses what lay between the old level and the new."""
        column = kept.raw[:, b]
        changed = np.flatnonzero(column > level)
        old, new = level[changed], column[changed]

        def work(start: int) -> np.ndarray:
            part = slice(start, start + ROWS)
            low, high = old[part, None], new[part, None]
            rows = kept.raw[changed[part]]
            np.clip(rows, low, high, out=rows)
            if kept.weights is None:
                sums = np.add.reduce(rows, axis=0, dtype=np.int32) - _wrap(int(low.sum(dtype=np.int64)))
                return sums.astype(np.int64)
            rows -= low
            return _weighted(rows, kept.weights[:, changed[part]])

        starts = range(0, len(changed), ROWS)
        for loss in self._run(work, starts) if len(changed) > 16 * ROWS else map(work, starts):
            kept.excess -= loss
        level[changed] = new

    # -- candidates x candidates, nearest --------------------------------------------------------------------------

    def block(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        out = np.empty((len(a), len(b)), np.int32)
        source = self.inner

        def work(j: slice) -> None:
            panel, m = source.panel(b[j]), j.stop - j.start
            for start in range(0, len(a), self.block_size):
                rows = a[start : start + self.block_size]
                raw = self._quantised(source, rows, len(rows), panel, source.width(m), m)
                np.subtract(raw, BASE, out=out[start : start + len(rows), j])

        self._run(work, self._blocks(len(b)))
        self.pairs += len(a) * len(b)
        return out

    def diagonal(self) -> np.ndarray:
        out = np.empty(self.n, np.int64)
        for start in range(0, self.n, 96):
            index = np.arange(start, min(start + 96, self.n))
            out[index] = np.diagonal(self.block(index, index))
        self.pairs -= sum(min(96, self.n - s) ** 2 for s in range(0, self.n, 96)) - self.n
        return out

    def nearest(self, cols: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        panels = [(p.start, self.source.panel(cols[p]), p.stop - p.start) for p in self._blocks(len(cols))]
        where, value = np.zeros(self.r, np.int64), np.full(self.r, np.iinfo(np.int32).min, np.int32)

        def work(i: slice) -> None:
            for start, panel, m in panels:
                raw = self._quantised(self.source, i, i.stop - i.start, panel, self.source.width(m), m)
                at = raw.argmax(axis=1)
                best = raw[np.arange(len(raw)), at] - BASE
                better = best > value[i]
                where[i][better] = at[better] + start
                value[i][better] = best[better]

        self._run(work, self._blocks(self.r))
        self.pairs += self.r * len(cols)
        return where, value


def _wrap(value: int) -> np.int32:
    """value modulo 2^32 as int32: sums of raw integers wrap, their differences do not need the lost bits."""
    return np.array(value & 0xFFFFFFFF, np.uint32).view(np.int32)[()]


def _weighted(excess: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(rows, m) int32 excesses, (2, rows) float64 limbs -> (m,) int64 sum of w e, exact."""
    low, high = weights @ excess.astype(np.float64)
    return low.astype(np.int64) + (high.astype(np.int64) << LIMB)
