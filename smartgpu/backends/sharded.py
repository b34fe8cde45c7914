"""A backend over many processes: each represents its share of the rows by a backend of its own, over all candidates.

What backends give as sums over represented rows are integers, and sums of integers do not depend on how the rows are
dealt out: every number that a selection is decided by is the same for any number of ranks, bit for bit. The vectors of
represented rows (levels, kept columns, survivors) stay where their rows are. What is asked of candidates alone, which
all ranks hold, every rank computes for itself; and so it does with survivors, once they are so few that to read all of
them takes less time than a message about them: then each rank gets all, and goes on by itself. Where ranks hold no more
than their share, candidates travel (backends/travelling.py).
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Protocol

import numpy as np

from smartgpu.backends import Backend, Kept, Sparse, blas
from smartgpu.backends.travelling import Travelling
from smartgpu.constraints import Found, Goal
from smartgpu.similarity import Geometry, Matrix, MaxMinusSqeuclidean
from smartgpu.workers import Workers

GATHER = 512  # survivors a candidate, on average: with no more of them all ranks get all,
GATHERED = 1 << 27  # and with no more in all: they are put together on the host, in seconds
MEET = 256  # batches that a rank looks at by itself before it hears of the others
MERGED = 1 << 20  # survivors put into their places at once


class Group(Protocol):
    """What the backend asks of the other processes (smartgpu.ranks.Ranks): all of them ask in the same order."""

    rank: int
    size: int

    def share(self, r: int) -> slice: ...  # the rows of this rank
    def sum(self, values: np.ndarray, what: str) -> np.ndarray: ...
    def number(self, value: int, what: str) -> int: ...
    def each(self, value: int, what: str) -> np.ndarray: ...
    def join(self, values: np.ndarray, rows: slice, r: int, what: str) -> np.ndarray: ...
    def gather(self, values: np.ndarray, what: str) -> list[np.ndarray]: ...
    def send(self, values: np.ndarray, owner: int, what: str) -> Callable[[], None]: ...


@dataclass
class Level:
    """Levels of represented rows, as the inner backend has them; once there are those of all, `part` is a view."""

    part: Any  # of this rank's rows
    whole: Any = None  # of all


@dataclass
class Weights:
    part: Any  # as the inner backend has them, of this rank's rows
    whole: np.ndarray  # (r,) int64


def part_of(values: Level | Weights | None) -> Any:
    return None if values is None else values.part


def shard(start: Callable[[Any], Backend], pool: Geometry | Matrix, ranks: Group) -> Backend:
    """A backend that `start` opens over a pool, dealt out among the ranks; whole on each where rows are fewer."""
    if isinstance(pool, Geometry) and isinstance(pool.kind, MaxMinusSqeuclidean) and pool.top is None:
        start(pool)  # finds the largest distance, of any pair: a sweep that every rank makes
    r = pool.shape[0] if isinstance(pool, Matrix) else len(pool.rows)
    if r < ranks.size:
        return start(pool)
    return Sharded(start, pool, _part(pool, ranks.share(r)), r, ranks)


def travel(start: Callable[[Any], Backend], pool: Geometry, ranks: Group, workers: Workers) -> Backend:
    """The same over a pool of n rows that represent themselves, its features unheld: each rank holds those of its rows.

    Other ranks' candidates come by in blocks.
    """
    n, d = pool.x.shape
    rows = ranks.share(n)
    own = pool.x.part(rows).held(workers)
    x = Travelling(own, rows, n, blas.find_layout(d).block, ranks)
    return Sharded(start, pool, replace(pool, x=x, rows=own, first=rows.start), n, ranks)


class Sharded:
    """The protocol of smartgpu.backends.Backend over r rows in all; levels, caps and weights are those of its share."""

    def __init__(
        self,
        start: Callable[[Any], Backend],
        pool: Geometry | Matrix,
        part: Geometry | Matrix,
        r: int,
        ranks: Group,
    ):
        """part: the pool with this rank's represented rows alone, of r."""
        self.ranks, self.r, self.rows = ranks, r, ranks.share(r)
        self._start, self._pool, self._part = start, pool, part
        self.inner = inner = start(part)
        self.name, self.dtype, self.remote, self.rounded = (
            inner.name,
            inner.dtype,
            inner.remote,
            inner.rounded,
        )
        self.n, self.quantum, self.sizes = inner.n, inner.quantum, inner.sizes
        self.same = r == self.n if isinstance(pool, Matrix) else pool.same
        # decided alike: by what the rank with the least can do
        self.memory = int(self._each(inner.memory).min())
        self._batch = int(self._each(inner.max_batch()).min())
        self._held = int(self._each(inner.held()).max())
        pairs = self._each((inner.memory - inner.held()) / inner.pair_bytes).min()
        # each rank stores its own pairs, as many as the one with the least room
        self.pair_bytes = max(self.memory - self._held, 1) / max(int(pairs) * ranks.size, 1e-9)

    def _each(self, value: int) -> np.ndarray:
        return self.ranks.each(int(value), "what a rank can do")

    @property
    def pairs(self) -> int:
        """Computed by all ranks."""
        return self.ranks.number(
            self.inner.pairs + (self._whole.pairs if "_whole" in vars(self) else 0), "pairs"
        )

    @functools.cached_property
    def _whole(self) -> Backend:
        """What answers for candidates among themselves: features of all are there, of a given matrix rows are not."""
        return self._start(self._pool)

    @property
    def _candidates(self) -> Backend:
        return self._whole if isinstance(self._pool, Matrix) else self.inner

    def held(self) -> int:
        return self._held

    def max_batch(self) -> int:
        return self._batch

    # -- represented rows ------------------------------------------------------------------------------------------

    def new_level(self) -> Level:
        return Level(self.inner.new_level())

    def level_from(self, values: np.ndarray) -> Level:
        return Level(self.inner.level_from(values[self.rows]))

    def level_values(self, level: Level) -> np.ndarray:
        if level.whole is not None:
            return self.inner.level_values(level.whole)
        return self._join(self.inner.level_values(level.part), "levels")

    def of_all(self, level: Level) -> Any:
        """The levels of all rows, as the inner backend has them; from here on they are kept."""
        if level.whole is None:
            level.whole = self.inner.level_from(self.level_values(level))
            level.part = level.whole[self.rows]
        return level.whole

    def level_sum(self, level: Level, weights: Weights | None = None) -> int:
        return self.ranks.number(self.inner.level_sum(level.part, part_of(weights)), "levels")

    def raise_level(self, level: Level, cols: np.ndarray, cap: Level | None = None) -> None:
        self.inner.raise_level(level.part, cols, part_of(cap))
        if level.whole is not None:  # the rows of others are behind
            level.whole = None
            self.of_all(level)

    def row_max(self) -> Level:
        return Level(self.inner.row_max())

    def new_weights(self, weights: np.ndarray) -> Weights:
        return Weights(self.inner.new_weights(weights[self.rows]), weights)

    def excess(self, level: Level, weights: Weights | None = None) -> np.ndarray:
        return self.ranks.sum(self.inner.excess(level.part, part_of(weights)), "excesses")

    def totals(self) -> np.ndarray:
        return self.ranks.sum(self.inner.totals(), "totals")

    def keep(
        self, level: Level, cols: np.ndarray, weights: Weights | None = None, cap: Level | None = None
    ) -> ShardedKept:
        return ShardedKept(
            self.ranks, self.inner.keep(level.part, cols, part_of(weights), part_of(cap)), cols
        )

    def accept(self, kept: ShardedKept, b: int, level: Level) -> None:
        self.inner.accept(kept.inner, b, level.part)
        kept.renew()

    def column(self, kept: ShardedKept, b: int) -> np.ndarray:
        return self._join(self.inner.column(kept.inner, b), "a column")

    def excess_again(self, kept: ShardedKept, level: Level) -> np.ndarray:
        return self.ranks.sum(self.inner.excess_again(kept.inner, level.part), "excesses again")

    def estimate_survivors(self, level: Level) -> float:
        """As many on every rank as on the one with most: that one must have room for them."""
        found = int(np.ceil(self.inner.estimate_survivors(level.part)))
        return float(self._each(found).max()) * self.ranks.size

    def survivors(
        self, level: Level, weights: Weights | None = None, cap: Level | None = None
    ) -> ShardedSparse | None:
        """Those of each rank with its rows; None on all ranks where one has no room."""
        found = self.inner.survivors(level.part, part_of(weights), part_of(cap))
        if self.ranks.number(found is None, "ranks without room"):
            return None
        return ShardedSparse(self, found, weights)

    def loop(
        self, level: Level, weights: Weights | None, scale: float, goal: Goal, sparse: ShardedSparse | None
    ) -> GatheredLoop | None:
        """The loop of the inner backend, if it has one, where it needs nothing of other ranks."""
        start = getattr(self.inner, "loop", None)
        if start is None or sparse is None or not sparse.alone:
            return None
        loop = start(self.of_all(level), sparse.weights, scale, goal, sparse.inner)
        return loop and GatheredLoop(loop, sparse)

    def nearest(self, cols: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        where, value = self.inner.nearest(cols)
        return self._join(where, "nearest"), self._join(value, "similarities")

    def _join(self, values: np.ndarray, what: str) -> np.ndarray:
        return self.ranks.join(values, self.rows, self.r, what)

    # -- candidates among themselves -------------------------------------------------------------------------------

    def diagonal(self) -> np.ndarray:
        if isinstance(self._part, Geometry) and isinstance(self._part.x, Travelling):
            mine = self._start(replace(self._part, x=self._part.rows, first=None))
            return self._join(mine.diagonal(), "diagonals")
        return self._candidates.diagonal()

    def block(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return self._candidates.block(a, b)

    def block_sums(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return self._candidates.block_sums(a, b)

    def factor(self, count: int) -> Any:
        return self._candidates.factor(count)


class ShardedKept:
    """A batch of columns, each rank's rows of them. `excess` (m,) int64 is over all rows."""

    def __init__(self, ranks: Group, inner: Kept, cols: np.ndarray):
        self.ranks, self.inner, self.cols = ranks, inner, cols
        self.what = f"excesses of {int(cols.sum())}"  # of these candidates and no others
        self.renew()

    def renew(self) -> None:
        self.excess = self.ranks.sum(self.inner.excess, self.what)

    @property
    def rows(self) -> Any:
        return getattr(self.inner, "rows", None)


class ShardedSparse:
    """Survivors by column: on every rank those of its rows; once they are few, of all (`alone`). len() counts all."""

    def __init__(self, backend: Sharded, inner: Sparse, weights: Weights | None):
        self.backend, self.ranks, self.inner = backend, backend.ranks, inner
        self.weights = weights  # of the inner backend's form, of all rows, once gathered
        self.alone, self.batches = False, 0
        self._count()

    def _count(self) -> None:
        each = self.ranks.each(len(self.inner), "survivors")
        self.size = int(each.sum())
        backend = self.backend
        sizes, n, r = backend.inner.sizes, backend.n, backend.r
        takes = 2 * sizes.stored(self.size, n, r) + sizes.stored(int(each.max()), n, r)
        if self.size <= min(GATHER * n, GATHERED) and takes <= backend.memory - backend.held():
            self._gather()

    def _gather(self) -> None:
        """Each rank's lists, one after the other in the list of each candidate."""
        inner, ranks = self.backend.inner, self.ranks
        ptr, *lists = self.inner.lists()
        lists[0] = lists[0].astype(np.int32) + np.int32(self.backend.rows.start)  # as all ranks number rows
        counts = np.stack(ranks.gather(np.diff(ptr).astype(np.int32), "counts of survivors"))
        del ptr
        lists = [merge(counts, ranks.gather(part, "survivors")) for part in lists]
        ptr = np.concatenate([[0], np.cumsum(counts.sum(axis=0, dtype=np.int64))])
        if self.weights is not None:
            self.weights = inner.new_weights(self.weights.whole)
        self.inner = inner.from_lists(ptr, *lists, self.backend.r, self.weights)
        self.alone = True

    def meet(self, seen: np.ndarray) -> None:
        """Once in a while: whether the others are there still, and saw the same."""
        self.batches += 1
        if self.batches % MEET == 0:
            own = zlib.crc32(np.ascontiguousarray(seen).tobytes())
            each = self.ranks.each(own, "what all have seen")
            if (each != own).any():
                raise RuntimeError(
                    f"the ranks no longer agree: rank {int(np.flatnonzero(each != own)[0])} has found other gains "
                    f"than rank {self.ranks.rank}. Are they of one kind, with the same versions and libraries?"
                )

    def __len__(self) -> int:
        return self.size

    def excess(self, level: Level) -> np.ndarray:
        if self.alone:
            return self.inner.excess(self.backend.of_all(level))
        return self.ranks.sum(self.inner.excess(level.part), "excesses")

    def keep(self, level: Level, cols: np.ndarray) -> Kept:
        if not self.alone:
            return ShardedKept(self.ranks, self.inner.keep(level.part, cols), cols)
        kept = self.inner.keep(self.backend.of_all(level), cols)
        self.meet(kept.excess)
        return kept

    def narrow(self, kept: Kept, positions: np.ndarray) -> Kept:
        """Their sums are known."""
        if self.alone:
            return self.inner.narrow(kept, positions)
        out = ShardedKept.__new__(ShardedKept)
        out.ranks, out.cols = self.ranks, kept.cols[positions]
        out.inner = self.inner.narrow(kept.inner, positions)
        out.what, out.excess = f"excesses of {int(out.cols.sum())}", kept.excess[positions]
        return out

    def accept(self, kept: Kept, b: int, level: Level) -> None:
        if self.alone:
            self.inner.accept(kept, b, self.backend.of_all(level))
            return
        self.inner.accept(kept.inner, b, level.part)
        kept.renew()

    def compact(self, level: Level) -> None:
        if self.alone:
            self.inner.compact(self.backend.of_all(level))
            self.size = len(self.inner)
            return
        self.inner.compact(level.part)
        self._count()


class GatheredLoop:
    """A loop of the inner backend over gathered survivors; see smartgpu.backends.resident."""

    def __init__(self, loop: Any, sparse: ShardedSparse):
        self._loop, self._sparse = loop, sparse

    @property
    def done(self) -> bool:
        return self._loop.done

    def bound(self, bounds: np.ndarray, fresh: bool) -> None:
        self._loop.bound(bounds, fresh)

    def advance(self, survivors: ShardedSparse, sweeps: float) -> Found:
        found = self._loop.advance(survivors.inner, sweeps)
        self._sparse.meet(found.gains)
        return found


def merge(counts: np.ndarray, lists: list[np.ndarray]) -> np.ndarray:
    """The lists of W ranks, (W, n) counts of them, as one for each of n: those of rank 0 first."""
    ends = np.cumsum(counts, axis=1, dtype=np.int64)
    whole = np.cumsum(counts.sum(axis=0, dtype=np.int64))
    first = (
        np.cumsum(counts, axis=0, dtype=np.int64) - counts
    )  # of a rank's entries, in the list of a candidate
    first += whole - counts.sum(axis=0, dtype=np.int64)
    out = np.empty(int(whole[-1]), lists[0].dtype)
    cuts = np.unique(np.searchsorted(whole, np.arange(MERGED, int(whole[-1]), MERGED)))
    for a, b in pairwise([0, *cuts[cuts > 0].tolist(), counts.shape[1]]):
        for q, values in enumerate(lists):
            many = counts[q, a:b]
            begin, end = int(ends[q, a]) - int(many[:1].sum()), int(ends[q, b - 1])
            shift = first[q, a:b] - (ends[q, a:b] - many)
            out[np.repeat(shift, many) + np.arange(begin, end)] = values[begin:end]
    return out


def _part(pool: Geometry | Matrix, rows: slice) -> Geometry | Matrix:
    """The pool with these represented rows alone: features are not copied, nor is a dense matrix."""
    if isinstance(pool, Geometry):
        return pool.part(rows)
    if pool.dense is not None:
        shape = (rows.stop - rows.start, pool.shape[1])
        return replace(pool, shape=shape, dense=pool.dense[rows], asymmetry=np.inf)
    return replace(pool.cut(np.arange(rows.start, rows.stop), np.arange(pool.shape[1])), asymmetry=np.inf)
