"""A backend over many processes: each represents its share of the rows by a backend of its own, over all candidates.

What backends give as sums over represented rows are integers, and sums of integers do not depend on how the rows are
dealt out: every number that a selection is decided by is the same for any number of ranks, bit for bit. The vectors of
represented rows (levels, kept columns, survivors) stay where their rows are. What is asked of candidates alone, which
all ranks hold, every rank computes for itself.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Protocol

import numpy as np

from smartgpu.backends import Backend, Kept, Sparse
from smartgpu.similarity import Geometry, Matrix, MaxMinusSqeuclidean


class Group(Protocol):
    """What the backend asks of the other processes (smartgpu.ranks.Ranks): all of them ask in the same order."""

    rank: int
    size: int

    def share(self, r: int) -> slice: ...  # the rows of this rank
    def sum(self, values: np.ndarray, what: str) -> np.ndarray: ...
    def number(self, value: int, what: str) -> int: ...
    def each(self, value: int, what: str) -> np.ndarray: ...
    def join(self, values: np.ndarray, rows: slice, r: int, what: str) -> np.ndarray: ...


def shard(start: Callable[[Any], Backend], pool: Geometry | Matrix, ranks: Group) -> Backend:
    """A backend that `start` opens over a pool, dealt out among the ranks; whole on each where rows are fewer."""
    if isinstance(pool, Geometry) and isinstance(pool.kind, MaxMinusSqeuclidean) and pool.top is None:
        start(pool)  # finds the largest distance, of any pair: a sweep that every rank makes
    r = pool.shape[0] if isinstance(pool, Matrix) else len(pool.rows)
    if r < ranks.size:
        return start(pool)
    return Sharded(start, pool, _part(pool, ranks.share(r)), r, ranks)


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
        self._start, self._pool = start, pool
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

    def new_level(self) -> Any:
        return self.inner.new_level()

    def level_from(self, values: np.ndarray) -> Any:
        return self.inner.level_from(values[self.rows])

    def level_values(self, level: Any) -> np.ndarray:
        return self._join(self.inner.level_values(level), "levels")

    def level_sum(self, level: Any, weights: Any = None) -> int:
        return self.ranks.number(self.inner.level_sum(level, weights), "levels")

    def raise_level(self, level: Any, cols: np.ndarray, cap: Any = None) -> None:
        self.inner.raise_level(level, cols, cap)

    def row_max(self) -> Any:
        return self.inner.row_max()

    def new_weights(self, weights: np.ndarray) -> Any:
        return self.inner.new_weights(weights[self.rows])

    def excess(self, level: Any, weights: Any = None) -> np.ndarray:
        return self.ranks.sum(self.inner.excess(level, weights), "excesses")

    def totals(self) -> np.ndarray:
        return self.ranks.sum(self.inner.totals(), "totals")

    def keep(self, level: Any, cols: np.ndarray, weights: Any = None, cap: Any = None) -> ShardedKept:
        return ShardedKept(self.ranks, self.inner.keep(level, cols, weights, cap), cols)

    def accept(self, kept: ShardedKept, b: int, level: Any) -> None:
        self.inner.accept(kept.inner, b, level)
        kept.renew()

    def column(self, kept: ShardedKept, b: int) -> np.ndarray:
        return self._join(self.inner.column(kept.inner, b), "a column")

    def excess_again(self, kept: ShardedKept, level: Any) -> np.ndarray:
        return self.ranks.sum(self.inner.excess_again(kept.inner, level), "excesses again")

    def estimate_survivors(self, level: Any) -> float:
        """As many on every rank as on the one with most: that one must have room for them."""
        return float(self._each(int(np.ceil(self.inner.estimate_survivors(level)))).max()) * self.ranks.size

    def survivors(self, level: Any, weights: Any = None, cap: Any = None) -> ShardedSparse | None:
        """Those of each rank with its rows; None on all ranks where one has no room."""
        found = self.inner.survivors(level, weights, cap)
        if self.ranks.number(found is None, "ranks without room"):
            return None
        return ShardedSparse(self.ranks, found)

    def nearest(self, cols: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        where, value = self.inner.nearest(cols)
        return self._join(where, "nearest"), self._join(value, "similarities")

    def _join(self, values: np.ndarray, what: str) -> np.ndarray:
        return self.ranks.join(values, self.rows, self.r, what)

    # -- candidates among themselves -------------------------------------------------------------------------------

    def diagonal(self) -> np.ndarray:
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
    """Survivors, by column on every rank: those of its rows."""

    def __init__(self, ranks: Group, inner: Sparse):
        self.ranks, self.inner = ranks, inner
        self._count()

    def _count(self) -> None:
        self.size = self.ranks.number(len(self.inner), "survivors")

    def __len__(self) -> int:
        return self.size

    def excess(self, level: Any) -> np.ndarray:
        return self.ranks.sum(self.inner.excess(level), "excesses")

    def keep(self, level: Any, cols: np.ndarray) -> ShardedKept:
        return ShardedKept(self.ranks, self.inner.keep(level, cols), cols)

    def narrow(self, kept: ShardedKept, positions: np.ndarray) -> ShardedKept:
        """Their sums are known."""
        out = ShardedKept.__new__(ShardedKept)
        out.ranks, out.cols = self.ranks, kept.cols[positions]
        out.inner = self.inner.narrow(kept.inner, positions)
        out.what, out.excess = f"excesses of {int(out.cols.sum())}", kept.excess[positions]
        return out

    def accept(self, kept: ShardedKept, b: int, level: Any) -> None:
        self.inner.accept(kept.inner, b, level)
        kept.renew()

    def compact(self, level: Any) -> None:
        self.inner.compact(level)
        self._count()


def _part(pool: Geometry | Matrix, rows: slice) -> Geometry | Matrix:
    """The pool with these represented rows alone: features are not copied, nor is a dense matrix."""
    if isinstance(pool, Geometry):
        return pool.part(rows)
    if pool.dense is not None:
        shape = (rows.stop - rows.start, pool.shape[1])
        return replace(pool, shape=shape, dense=pool.dense[rows], asymmetry=np.inf)
    return replace(pool.cut(np.arange(rows.start, rows.stop), np.arange(pool.shape[1])), asymmetry=np.inf)
