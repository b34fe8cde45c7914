"""Float64 arithmetic on float32 features, in blocks on threads: what linear similarities need instead of sweeps."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from smartgpu.similarity import Cosine, CosineShifted, CosineSquared, Geometry, map_dots
from smartgpu.workers import Workers

BLOCK = 1024 * 384  # numbers widened to float64 at a time by one thread


def block_rows(d: int) -> int:
    """Rows of d features that are widened together: of d alone, so that sums do not depend on the memory there is."""
    return int(np.clip(BLOCK // max(d, 1), 16, 1024))


def factor_rows(d: int) -> int:
    """Rows of a Cholesky factor brought up to date together: few where their features are long."""
    return int(np.clip((1 << 19) // max(d, 1), 256, 2048))


class LinearFeatures:
    """x (n, d) float32, read as float64 in blocks: no copy of the pool.

    Sums over rows are added up block by block in order, and products with a vector row by row in one fixed order, so
    that nothing depends on threads and equal rows give equal bits.
    """

    def __init__(self, geometry: Geometry, x: np.ndarray, workers: Workers):
        self.geometry, self.x, self.workers = geometry, x, workers
        self.block = block_rows(x.shape[1])

    def _each(self, work, cols: np.ndarray | None = None) -> list:
        """work(slice of the output, (b, d) float64 block) for all rows or for `cols`, in order."""
        n = len(self.x) if cols is None else len(cols)

        def widened(i: int):
            part = slice(i, i + self.block) if cols is None else cols[i : i + self.block]
            return work(slice(i, min(i + self.block, n)), self.x[part].astype(np.float64))

        starts = range(0, n, self.block)
        return self.workers.run(widened, starts) if len(starts) > 1 else [widened(i) for i in starts]

    def _total(self, work: Callable[[slice], np.ndarray], step: int) -> np.ndarray:
        """Sum of work(rows) over all blocks of `step` rows, in order; no more results at once than threads."""
        parts = [slice(i, i + step) for i in range(0, len(self.x), step)]
        total: np.ndarray | None = None
        for first in range(0, len(parts), self.workers.threads):
            for part in self.workers.run(work, parts[first : first + self.workers.threads]):
                if total is None:
                    total = part
                else:
                    total += part
        return total

    def rows(self, index: np.ndarray | int) -> np.ndarray:
        return self.x[index].astype(np.float64)

    def times(self, v: np.ndarray, cols: np.ndarray | None = None) -> np.ndarray:
        """x_j . v for all rows or for `cols`: (m,) float64. Never a gemv, whose bits depend on a row's place.

        With v (d, q) all q products at once, (m, q), by a matrix product: for bounds, where the last bit is free.
        """
        out = np.empty((len(self.x) if cols is None else len(cols), *v.shape[1:]))

        def work(where: slice, block: np.ndarray) -> None:
            if v.ndim == 2:
                out[where] = block @ v
            else:
                block *= v
                block.sum(axis=1, out=out[where])

        self._each(work, cols)
        return out

    def hold(self, cols: np.ndarray) -> Held:
        """Rows whose products will be asked for again and again, widened once."""
        return Held(self.rows(cols))

    def quadratic(self, g: np.ndarray) -> np.ndarray:
        """x_j' g x_j for all rows: (n,) float64, g (d, d)."""
        out = np.empty(len(self.x))

        def work(where: slice, block: np.ndarray) -> None:
            out[where] = np.einsum("ij,ij->i", block @ g, block)

        self._each(work)
        return out

    def own(self) -> np.ndarray:
        """x_j . x_j, (n,) float64."""
        out = np.empty(len(self.x))

        def work(where: slice, block: np.ndarray) -> None:
            np.multiply(block, block, out=block)
            block.sum(axis=1, out=out[where])

        self._each(work)
        return out

    def sum(self) -> np.ndarray:
        """sum_j x_j, (d,) float64."""
        return self._total(lambda part: self.x[part].astype(np.float64).sum(axis=0), self.block)

    def moments(self, weights: np.ndarray) -> np.ndarray:
        """sum_j x_j weights_j: (d, q) float64 for weights (n, q)."""
        return self._total(lambda part: self.x[part].astype(np.float64).T @ weights[part], self.block)

    def second_moment(self, weights: np.ndarray) -> np.ndarray:
        """sum_j w_j x_j x_j', (d, d) float64. Holds threads + 1 such matrices."""

        def work(part: slice) -> np.ndarray:
            block = self.x[part].astype(np.float64)
            return block.T @ (block * weights[part, None])

        return self._total(work, max(self.block, 512))

    def distinct(self) -> tuple[np.ndarray, np.ndarray]:
        """(first (u,), inverse (n,)) over equal rows, first ascending: by a random product, then compared. O(n d)."""
        x = self.x
        keys = self.times(np.random.default_rng(0).standard_normal(x.shape[1]))
        _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
        copies = np.flatnonzero(first[inverse] != np.arange(len(x)))
        same = (np.array_equal(x[j], x[first[inverse[j]]]) for j in copies)
        if not all(same):  # different rows with one key
            _, first, inverse = np.unique(x + np.float32(0), axis=0, return_index=True, return_inverse=True)
        return in_order(first, inverse)


def in_order(first: np.ndarray, inverse: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What np.unique returns, with the distinct rows numbered in the order of their first appearance."""
    order = np.argsort(first)
    rank = np.empty(len(first), np.int64)
    rank[order] = np.arange(len(first))
    return first[order], rank[inverse.reshape(-1)]


class Held:
    """Rows in float64, (m, d)."""

    def __init__(self, block: np.ndarray):
        self.block = block

    def __len__(self) -> int:
        return len(self.block)

    def times(self, v: np.ndarray) -> np.ndarray:
        """x_j . v, (m,) float64: the bits of LinearFeatures.times."""
        return (self.block * v).sum(axis=1)


class Wide:
    """Prepared features in float64: cosine rows normalised once more, so that s_jj is 1 to the last bit or so."""

    def __init__(self, geometry: Geometry, workers: Workers):
        self.geometry, self.x = geometry, geometry.x
        self.inverse_norms: np.ndarray | None = None
        if isinstance(geometry.kind, (Cosine, CosineShifted, CosineSquared)):
            norms = np.empty(len(self.x))

            def work(where: slice, block: np.ndarray) -> None:
                norms[where] = np.sqrt(np.einsum("ij,ij->i", block, block))

            LinearFeatures(geometry, self.x, workers)._each(work)
            self.inverse_norms = np.divide(1.0, norms, out=np.zeros_like(norms), where=norms > 0)

    def rows(self, index: np.ndarray) -> np.ndarray:
        """(m, d) float64"""
        out = self.x[index].astype(np.float64)
        if self.inverse_norms is not None:
            out *= self.inverse_norms[index, None]
        return out

    def pairs(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Similarities in float64, not quantised, in real units: (|a|, |b|)."""
        y, x = self.rows(a), self.rows(b)
        s = y @ x.T
        squares = None
        if self.geometry.kind.squared_norms:
            squares = np.add.outer(np.square(y).sum(axis=1), np.square(x).sum(axis=1))
        map_dots(self.geometry, s, squares)
        if self.geometry.kind.squared_norms:  # a distance kind: |x - x| is 0, whatever rounding says
            own = np.zeros((1, 1))
            map_dots(self.geometry, own, np.zeros((1, 1)))
            s[np.equal.outer(a, b)] = own[0, 0]
        s *= self.geometry.unit
        return s
