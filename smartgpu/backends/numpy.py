"""Backend "numpy": blocked float32 BLAS on threads. What runs where there is no GPU; no n x n array, ever.

A tile of similarities is computed, turned into integers in place and reduced while it lies in the cache. Adding 3.0 to
s in [-1, 1] leaves a float32 in [2, 4], where the spacing is 2^-22: its bits, read as an integer, are q + BASE. Levels
are kept in that raw form too, so that a tile costs one product, one addition, one maximum and one sum.
"""

from __future__ import annotations

import bisect
import functools
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np

from smartgpu.backends import QUANTUM, blas, neighbours, whole
from smartgpu.backends.footprint import HostFootprint
from smartgpu.backends.linear import LinearFeatures, Wide
from smartgpu.backends.pairs import Pairs
from smartgpu.backends.survivors import Survivors, row_type, survivors
from smartgpu.backends.tiles import BASE, ROWS, Entries, Features
from smartgpu.backends.travelling import Travelling
from smartgpu.constraints import Found, Goal
from smartgpu.features import prepare
from smartgpu.similarity import Geometry, Matrix, MaxMinusSqeuclidean, Similarity
from smartgpu.workers import Workers, cpu_count, default_memory

LIMB = (
    22  # bits of a weight multiplied at once: 2^22 weight x 2^22 excess x 384 rows < 2^53, exact in float64
)


SAMPLE = 192  # rows on which survivors are counted beforehand


@dataclass
class Kept:
    """Columns of a batch in raw form, (r', width) int32, of which [:r, pad:pad + m] are real."""

    raw: np.ndarray
    excess: np.ndarray
    weights: np.ndarray | None


class NumpyBackend:
    name = "numpy"
    remote = rounded = False
    keeps_survivors = True

    @staticmethod
    def compiling() -> float:
        return 0.0

    @staticmethod
    def default_memory() -> int:
        return 4 * default_memory()

    @staticmethod
    def failures(*sets: np.ndarray) -> AbstractContextManager[None]:
        return nullcontext()

    @staticmethod
    def check_inputs(geometry: Geometry) -> None:
        pass  # features are copies, or of rows that the caller was told not to change

    @staticmethod
    def room(*sets: np.ndarray) -> tuple[int, None]:
        return default_memory(), None

    @staticmethod
    def footprint(
        x: np.ndarray | Matrix,
        kind: Similarity,
        *,
        threads: int | None = None,
        stream: bool = False,
        shares: int = 0,
        **how,
    ):
        return HostFootprint.of(x, kind, threads or cpu_count(), stream, shares)

    @staticmethod
    def prepare(
        kind: Similarity,
        x: np.ndarray,
        rows: np.ndarray | None = None,
        *,
        workers: Workers,
        stream: bool = False,
        **how,
    ):
        return prepare(kind, x, rows, workers, hold=not stream)

    @staticmethod
    def features(geometry: Geometry, x: np.ndarray, *, workers: Workers, **how) -> LinearFeatures:
        return LinearFeatures(geometry, x, workers)

    @staticmethod
    def wide(geometry: Geometry, *, workers: Workers, **how) -> Wide:
        return Wide(geometry, workers)

    def __init__(
        self,
        pool: Geometry | Matrix,
        *,
        threads: int | None = None,
        memory: int | None = None,
        spare: int | None = None,  # bytes beyond what must be held; instead of memory, which counts both
        progress: bool = False,
        workers: Workers | None = None,  # those of another backend, which works in turn with this one
        stream: bool = False,  # features were prepared so, that each block of them is made when it is asked for
        shares: int = 0,  # processes of which each holds its share of the candidates' features
    ):
        self.pool = pool
        self.workers = workers or Workers(threads, progress)
        self.pairs = 0
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
        self.stripes = self.blocks(self.n)  # of candidates
        self._travelling = None if isinstance(pool, Matrix) or not isinstance(pool.x, Travelling) else pool.x
        if self._travelling is not None:
            self.stripes = self._travelling.stripes
        self.sizes = HostFootprint.of(
            pool if isinstance(pool, Matrix) else pool.x, pool.kind, self.workers.threads, stream, shares
        )
        self._least = self._held(self.sizes.least_batch)
        self.memory = (memory or default_memory()) if spare is None else self._least + spare
        room = max(self.memory - self.held(), 1)
        self.pair_bytes = room / max(self.sizes.storable(room, self.n, self.r), 1e-9)
        if isinstance(pool.kind, MaxMinusSqeuclidean) and pool.top is None:
            self._find_top()
        self.dtype = self.source.dtype
        self.quantum = pool.unit * QUANTUM

    def raw_tile(self, rows: slice, panel: object, m: int) -> np.ndarray:
        """Raw integers of represented rows against a prepared panel of m candidates, in this thread's scratch."""
        return self._quantised(self.source, rows, rows.stop - rows.start, panel, self.source.width(m), m)

    def _quantised(
        self, source, rows: slice | np.ndarray, count: int, panel, width: int, m: int
    ) -> np.ndarray:
        """Raw integers of `count` rows against a panel of m columns: (count, m) int32 in a scratch buffer."""
        out = self.workers.buffer("tile", (blas.round_up(count, 96), width), np.float32)
        tile = source.tile(rows, panel, out)
        tile += np.float32(3.0)
        return tile.view(np.int32)[:count, source.pad : source.pad + m]

    def blocks(self, n: int) -> list[slice]:
        return [slice(i, min(i + self.block_size, n)) for i in range(0, n, self.block_size)]

    def passes(self) -> Iterator[range]:
        """All stripes of candidates, by number, as many at a time as there are features of."""
        if self._travelling is None:
            yield range(len(self.stripes))
        else:
            yield from self._travelling.passes()

    @functools.cached_property
    def own(self) -> int | None:
        """The stripe of candidates that are the first block of rows, where blocks of rows are stripes; else None.

        A tile of two such blocks serves both its sides.
        """
        if self.source.symmetric:
            return 0
        first = self.source.run
        if first is None:
            return None
        at = bisect.bisect_left([stripe.start for stripe in self.stripes], first)
        rows = self.blocks(self.r)
        mine = [slice(first + i.start, first + i.stop) for i in rows]
        return at if self.stripes[at : at + len(rows)] == mine else None

    @property
    def sweep_pairs(self) -> int:
        """Pairs that a sweep computes."""
        return self.r * self.n - (0 if self.own is None else self.r * (self.r - 1) // 2)

    def _find_top(self) -> None:
        """M of max_minus_sqeuclidean, the largest squared distance of any pair of candidates or represented rows."""
        lowest = [0.0]
        for source in {id(s): s for s in (self.source, self.inner)}.values():

            def work(j: slice, source: Features = source) -> float:
                panel, m, least = source.panel(j), j.stop - j.start, 0.0
                for i in self.blocks(len(source.rows)):
                    out = self.workers.buffer(
                        "tile", (blas.round_up(i.stop - i.start, 96), source.width(m)), np.float32
                    )
                    tile = source.tile(i, panel, out)[: i.stop - i.start, source.pad : source.pad + m]
                    least = min(least, float(tile.min()))
                return least

            lowest += self.workers.run(work, self.blocks(self.n))
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

    @staticmethod
    def whole_weights(weights: np.ndarray | None) -> np.ndarray | None:
        """(r,) int64 from their limbs."""
        return (
            None if weights is None else weights[0].astype(np.int64) + (weights[1].astype(np.int64) << LIMB)
        )

    def level_sum(self, level: np.ndarray, weights: np.ndarray | None = None) -> int:
        values = (level - BASE).astype(np.int64)
        if weights is None:
            return int(values.sum())
        low, high = weights.astype(np.int64)
        return int((values * low).sum()) + (int((values * high).sum()) << LIMB)

    def raise_level(self, level: np.ndarray, cols: np.ndarray, cap: np.ndarray | None = None) -> None:
        for part in self.blocks(len(cols)):  # one panel at a time: cols may be many
            panel, m = self.source.panel(cols[part]), part.stop - part.start

            def work(i: slice, panel: object = panel, m: int = m) -> None:
                raw = self.raw_tile(i, panel, m)
                np.maximum(level[i], raw.max(axis=1), out=level[i])

            self.workers.run(work, self.blocks(self.r))
        if cap is not None:
            np.minimum(level, cap, out=level)
        self.pairs += self.r * len(cols)

    def row_max(self) -> np.ndarray:
        level, lock = self.new_level(), threading.Lock()

        def work(j: slice) -> None:
            panel, m = self.source.panel(j), j.stop - j.start
            for i in self.blocks(self.r):
                most = self.raw_tile(i, panel, m).max(axis=1)
                with lock:
                    np.maximum(level[i], most, out=level[i])

        for numbers in self.passes():
            self.workers.run(work, [self.stripes[at] for at in numbers], "sweep")
        self.pairs += self.r * self.n
        return level

    def excess(self, level: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
        return self._sweep(level, weights)

    def totals(self) -> np.ndarray:
        return self._sweep(None, None)

    def _sweep(self, level: np.ndarray | None, weights: np.ndarray | None) -> np.ndarray:
        """One pass over all pairs, reduced over i; a symmetric tile above the diagonal serves both its sides."""
        source, blocks = self.source, self.stripes
        rows, own = self.blocks(self.r), self.own
        out = np.zeros(self.n, np.int64)
        lock = threading.Lock()

        def work(number: int) -> None:
            j = blocks[number]
            m, panel = j.stop - j.start, source.panel(j)
            width = source.width(m)
            mine, across = np.zeros(m, np.int64), {}
            place = number - own if own is not None and own <= number < own + len(rows) else None
            for at, i in enumerate(rows if place is None else rows[: place + 1]):
                raw = self._quantised(source, i, i.stop - i.start, panel, width, m)
                if place is not None and at < place:
                    across[own + at] = self._reduce(raw.T, level, rows[place], weights)
                mine += self._reduce(raw, level, i, weights)
            with lock:
                out[j] += mine
                for stripe, sums in across.items():
                    out[blocks[stripe]] += sums

        for numbers in self.passes():
            self.workers.run(work, numbers[::-1] if source.symmetric else numbers, "sweep")
        self.pairs += self.sweep_pairs
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
        lifted = self.workers.buffer("lifted", shape, np.int32)
        lifted = lifted.T if transposed else lifted
        np.maximum(raw, floor[:, None], out=lifted)
        if weights is None:
            sums = np.add.reduce(lifted, axis=0, dtype=np.int32) - _wrap(int(floor.sum(dtype=np.int64)))
            return sums.astype(np.int64)
        lifted -= floor[:, None]
        return _weighted(lifted, weights[:, i])

    def held(self) -> int:
        """Bytes taken besides survivors: features, a batch of columns, a few vectors, scratch."""
        return self._held(self.max_batch())

    def _held(self, batch: int) -> int:
        return self.sizes.held(self.n, self.r, same=self.same, batch=batch)

    def max_batch(self) -> int:
        """As many columns as half of what is left beside the least can hold."""
        least, most = self.sizes.least_batch, self.sizes.most_batch
        more = (self.memory - self._least) // 2 // self.sizes.columns(self.r, 32) * 32
        return min(max(least + more, least), most)

    def keep(
        self,
        level: np.ndarray,
        cols: np.ndarray,
        weights: np.ndarray | None = None,
        cap: np.ndarray | None = None,
    ) -> Kept:
        """The columns of a batch, computed once into place, and their excess over the level."""
        source, m = self.source, len(cols)
        width, panel = source.width(m), source.panel(cols)
        last = self.blocks(self.r)[-1]
        store = np.empty((last.start + blas.round_up(last.stop - last.start, 96), width), np.float32)
        raw = store.view(np.int32)[:, source.pad : source.pad + m]

        def work(i: slice) -> np.ndarray:
            tile = source.tile(i, panel, store[i.start : i.start + blas.round_up(i.stop - i.start, 96)])
            tile += np.float32(3.0)
            if cap is not None:
                np.minimum(raw[i], cap[i, None], out=raw[i])
            return self._reduce(raw[i], level, i, weights)

        sums = self.workers.run(work, self.blocks(self.r))
        self.pairs += self.r * m
        return Kept(raw[: self.r], np.sum(sums, axis=0, dtype=np.int64), weights)

    def estimate_survivors(self, level: np.ndarray) -> float:
        """About how many pairs have q_ij > level_i: counted on evenly spaced rows."""
        rows = np.unique(np.linspace(0, self.r - 1, min(self.r, SAMPLE)).astype(np.int64))

        def work(j: slice) -> int:
            m = j.stop - j.start
            raw = self._quantised(self.source, rows, len(rows), self.source.panel(j), self.source.width(m), m)
            return int(np.count_nonzero(raw > level[rows, None]))

        self.pairs += len(rows) * self.n
        found = 0
        for numbers in self.passes():
            found += sum(self.workers.run(work, [self.stripes[at] for at in numbers]))
        return found * self.r / len(rows)

    def survivors(
        self, level: np.ndarray, weights: np.ndarray | None = None, cap: np.ndarray | None = None
    ) -> Survivors:
        """All pairs with q_ij > level_i, stored by column: one sweep, half of one where rows are candidates."""
        full = self.whole_weights(weights)
        self.pairs += self.sweep_pairs
        found = survivors(self, level, full)
        if cap is not None:
            found.clip(cap)
        return found

    def from_lists(
        self, ptr: np.ndarray, rows: np.ndarray, values: np.ndarray, r: int, weights: np.ndarray | None
    ) -> Survivors:
        """What lists() of several parts of r rows gave, put together."""
        return Survivors(ptr, rows.astype(row_type(r)), values, self.whole_weights(weights), self.workers)

    def pairs_for_swaps(self, weights: np.ndarray | None, cap: np.ndarray | None, room: float) -> Pairs:
        """The pairs that a swap can matter for, stored where there is room for so many."""
        return Pairs(self, weights, cap, room)

    def within(self, cols: np.ndarray) -> NumpyBackend:
        """A backend over these candidates alone: the same integers for every pair."""
        pool = self.pool.columns(cols)
        return NumpyBackend(pool, threads=self.workers.threads, memory=self.memory)

    def whole(self, level: np.ndarray, scale: float, goal: Goal) -> Found:
        """The picks of a goal where all pairs are few enough to be held at once; raises the level by them."""
        return whole.pick(self, level, scale, goal)

    def together(self, parts: list[tuple[int, int, int]], low: bool) -> list[Found]:
        """The first picks of facility location in parts of the pool, each (first row, rows, picks) by itself."""
        return whole.pick_together(self, parts, low)

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
        for loss in self.workers.run(work, starts) if len(changed) > 16 * ROWS else map(work, starts):
            kept.excess -= loss
        level[changed] = new

    def column(self, kept: Kept, b: int) -> np.ndarray:
        return kept.raw[:, b] - BASE

    def excess_again(self, kept: Kept, level: np.ndarray) -> np.ndarray:
        def work(i: slice) -> np.ndarray:
            return self._reduce(kept.raw[i], level, i, kept.weights)

        return np.sum(self.workers.run(work, self.blocks(self.r)), axis=0, dtype=np.int64)

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

        self.workers.run(work, self.blocks(len(b)))
        self.pairs += len(a) * len(b)
        return out

    def block_sums(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return self.block(a, b).sum(axis=0, dtype=np.int64)

    def diagonal(self) -> np.ndarray:
        out = np.empty(self.n, np.int64)
        for start in range(0, self.n, 96):
            index = np.arange(start, min(start + 96, self.n))
            out[index] = np.diagonal(self.block(index, index))
        self.pairs -= sum(min(96, self.n - s) ** 2 for s in range(0, self.n, 96)) - self.n
        return out

    def nearest(self, cols: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        panels = [(p.start, self.source.panel(cols[p]), p.stop - p.start) for p in self.blocks(len(cols))]
        where, value = np.zeros(self.r, np.int64), np.full(self.r, np.iinfo(np.int32).min, np.int32)

        def work(i: slice) -> None:
            for start, panel, m in panels:
                raw = self._quantised(self.source, i, i.stop - i.start, panel, self.source.width(m), m)
                at = raw.argmax(axis=1)
                best = raw[np.arange(len(raw)), at] - BASE
                better = best > value[i]
                where[i][better] = at[better] + start
                value[i][better] = best[better]

        self.workers.run(work, self.blocks(self.r))
        self.pairs += self.r * len(cols)
        return where, value

    def neighbours(self, rows: slice, k: int) -> tuple[np.ndarray, np.ndarray]:
        return neighbours.top_k(self, rows, k)


def _wrap(value: int) -> np.int32:
    """value modulo 2^32 as int32: sums of raw integers wrap, their differences do not need the lost bits."""
    return np.array(value & 0xFFFFFFFF, np.uint32).view(np.int32)[()]


def _weighted(excess: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(rows, m) int32 excesses, (2, rows) float64 limbs -> (m,) int64 sum of w e, exact."""
    low, high = weights @ excess.astype(np.float64)
    return low.astype(np.int64) + (high.astype(np.int64) << LIMB)
