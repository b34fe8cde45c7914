"""Float64 products with features on a device: what backends/linear.py is for numpy arrays, by its definitions."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch

from smartgpu.backends import resident
from smartgpu.backends.device import COSINES, NUMBERS, Pool, block_rows, blocks, over, take
from smartgpu.backends.linear import in_order
from smartgpu.constraints import Goal
from smartgpu.kernels import linear
from smartgpu.similarity import CosineShifted, CosineSquared, ExpEuclidean, MaxMinusSqeuclidean


class LinearFeatures:
    """Prepared features x (n, d) in float64 arithmetic on the device; vectors come from the host and go there.

    Products with one vector are made row by row in one fixed order, so that equal rows give equal bits.
    """

    def __init__(self, pool: Pool, x: torch.Tensor):
        self.x, self.scale, self.device = x, pool.scale, x.device
        if not isinstance(x, torch.Tensor):
            self.loop = None  # a step reads any of the rows

    def rows(self, index: np.ndarray | int) -> np.ndarray:
        """(m, d) float64, or (d,) for one index."""
        at = torch.as_tensor(index, device=self.device)
        if at.ndim == 0:
            return self.rows(at[None])[0]
        return take(self.x, at).to(torch.float64).mul_(self.scale).cpu().numpy()

    def times(self, v: np.ndarray, cols: np.ndarray | None = None) -> np.ndarray:
        """x_j . v for all rows or for `cols`: (m,) float64, or (m, q) with v (d, q)."""
        v = self._put(v)
        out = over(self.x, self._index(cols), lambda x, at, part: linear.times(x, v, at))
        return out.mul_(self.scale).cpu().numpy()

    def hold(self, cols: np.ndarray) -> Held:
        """Rows whose products will be asked for again and again."""
        return Held(self, cols)

    def loop(self, goal: Goal, **cut) -> resident.Cuts:
        """Graph cut's picks, many at a time."""
        return resident.Cuts(self, goal, **cut)

    def quadratic(self, g: np.ndarray) -> np.ndarray:
        """x_j' g x_j for all rows: (n,) float64, g (d, d). For bounds, where the last bit is free."""
        out, g = torch.empty(len(self.x), dtype=torch.float64, device=self.device), self._put(g)
        for part, block in self._blocks():
            out[part] = ((block @ g) * block).sum(dim=1)
        return out.cpu().numpy()

    def own(self) -> np.ndarray:
        """x_j . x_j, (n,) float64."""
        squares = over(self.x, None, lambda x, at, part: linear.squares(x))
        return squares.mul_(self.scale**2).cpu().numpy()

    def sum(self) -> np.ndarray:
        """sum_j x_j, (d,) float64."""
        return sum(block.sum(dim=0) for _, block in self._blocks()).cpu().numpy()

    def moments(self, weights: np.ndarray) -> np.ndarray:
        """sum_j x_j weights_j: (d, q) float64 for weights (n, q)."""
        weights = self._put(weights)
        return sum(block.T @ weights[part] for part, block in self._blocks()).cpu().numpy()

    def second_moment(self, weights: np.ndarray) -> np.ndarray:
        """sum_j w_j x_j x_j', (d, d) float64."""
        weights = self._put(weights)
        return sum(block.T @ (block * weights[part, None]) for part, block in self._blocks()).cpu().numpy()

    def distinct(self) -> tuple[np.ndarray, np.ndarray]:
        """(first (u,), inverse (n,)) over equal rows, first ascending. O(n d)."""
        keys = self.times(np.random.default_rng(0).standard_normal(self.x.shape[1]))
        _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
        copies = np.flatnonzero(first[inverse] != np.arange(len(self.x)))
        if not self._equal(copies, first[inverse[copies]]):  # different rows with one key
            parts = [(block.to(torch.float32) + 0).cpu().numpy() for _, block in self._blocks()]
            every = np.concatenate(parts)
            _, first, inverse = np.unique(every, axis=0, return_index=True, return_inverse=True)
        return in_order(first, inverse)

    def _equal(self, a: np.ndarray, b: np.ndarray) -> bool:
        step = max(1, NUMBERS // self.x.shape[1])
        parts = (slice(i, i + step) for i in range(0, len(a), step))
        both = ((take(self.x, self._index(rows[p])) for rows in (a, b)) for p in parts)
        return all(torch.equal(*rows) for rows in both)

    def _blocks(self) -> Iterator[tuple[slice, torch.Tensor]]:
        for part, block in blocks(self.x, self.device):
            yield part, block.mul_(self.scale)

    def _put(self, v: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(v, np.float64)).to(self.device)

    def _index(self, cols: np.ndarray | None) -> torch.Tensor | None:
        return None if cols is None else torch.from_numpy(cols).to(self.device)


class Held:
    """Rows of LinearFeatures, by number: they are where they are needed."""

    def __init__(self, features: LinearFeatures, cols: np.ndarray):
        self.features, self.cols = features, cols

    def __len__(self) -> int:
        return len(self.cols)

    def times(self, v: np.ndarray) -> np.ndarray:
        """x_j . v, (m,) float64."""
        return self.features.times(v, self.cols)


class Wide:
    """Prepared features in float64: cosine rows normalised once more, so that s_jj is 1 to the last bit or so."""

    def __init__(self, pool: Pool):
        self.pool, self.x, self.device = pool, pool.x, pool.x.device
        self.factors = torch.full((len(self.x),), pool.scale, dtype=torch.float64, device=self.device)
        if isinstance(pool.kind, COSINES):
            squares = over(self.x, None, lambda x, at, part: linear.squares(x))
            self.factors = torch.where(squares > 0, squares.rsqrt(), 0.0)

    def _rows(self, index: np.ndarray) -> torch.Tensor:
        at = torch.from_numpy(index).to(self.device)
        return take(self.x, at).to(torch.float64) * self.factors[at][:, None]

    def rows(self, index: np.ndarray) -> np.ndarray:
        """(m, d) float64 on the host"""
        return self._rows(index).cpu().numpy()

    def pairs(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Similarities in float64, not quantised, in real units: (|a|, |b|), on the host."""
        return self.similarities(a, b).cpu().numpy()

    def similarities(self, a: np.ndarray, b: np.ndarray) -> torch.Tensor:
        """The same on the device."""
        kind, y, x = self.pool.kind, self._rows(a), self._rows(b)
        s = y @ x.T
        if isinstance(kind, CosineShifted):
            s.mul_(0.5).add_(0.5)
        elif isinstance(kind, CosineSquared):
            s.square_()
        elif kind.squared_norms:
            s.mul_(-2).add_(y.square().sum(dim=1)[:, None] + x.square().sum(dim=1)).clamp_(min=0)
            equal = torch.from_numpy(a)[:, None] == torch.from_numpy(
                b
            )  # |x - x| is 0, whatever rounding says
            s[equal.to(self.device)] = 0
            if isinstance(kind, MaxMinusSqeuclidean):
                s.neg_().add_(self.pool.top or 0)
            else:
                s = (s.sqrt_() if isinstance(kind, ExpEuclidean) else s).mul_(-self.pool.gamma).exp_()
        return s.mul_(self.pool.unit)

    def span(self, a: float, b: float, first: np.ndarray) -> Span:
        """Rows y = [sqrt(a) x, sqrt(b)] of the candidates `first`, whose products are s = a x.y + b."""
        return Span(self, a, b, torch.from_numpy(first).to(self.device))

    def factor(self, count: int) -> Factor:
        """Rows of a Cholesky factor of the similarity."""
        return Factor(self.similarities, count, self.x.shape[1], self.device)


class Span:
    """Rows y = [f x, g] in float64, of which only x is stored; rows are numbers into `first`, from the host."""

    def __init__(self, wide: Wide, a: float, b: float, first: torch.Tensor):
        self.x, self.first, self.device = wide.x, first, wide.device
        self.factors, self.last = wide.factors * a**0.5, b**0.5 if b else None
        self.kept: torch.Tensor | None = None  # (d, size) float64
        if not isinstance(self.x, torch.Tensor):
            self.loop = None  # a step reads any of the rows

    def _at(self, rows: np.ndarray) -> torch.Tensor:
        return self.first[torch.from_numpy(rows).to(self.device)]

    def _rows(self, at: torch.Tensor) -> torch.Tensor:
        y = take(self.x, at).to(torch.float64) * self.factors[at][:, None]
        return y if self.last is None else torch.nn.functional.pad(y, (0, 1), value=self.last)

    def own(self) -> np.ndarray:
        """y_j . y_j, (u,) float64."""
        out = over(self.x, self.first, lambda x, at, part: linear.squares(x, at))
        out *= self.factors[self.first].square()
        return (out if self.last is None else out + self.last**2).cpu().numpy()

    def loop(self, goal: Goal, row: np.ndarray, residual: np.ndarray, **volume) -> resident.Volumes:
        """Log-determinant's picks, many at a time. row (n,): the number in `first` of each candidate's row."""
        return resident.Volumes(self, goal, residuals=residual[row], **volume)

    def remember(self, v: np.ndarray, at: np.ndarray, size: int) -> None:
        """Keep vectors v (c, d) at places `at` (c,) of `size`, for falls(), in the stead of what was there."""
        if self.kept is None:
            self.kept = torch.empty((v.shape[1], size), dtype=torch.float64, device=self.device)
        self.kept[:, torch.from_numpy(at).to(self.device)] = torch.from_numpy(v).to(self.device).T

    def falls(self, rows: np.ndarray, behind: np.ndarray, at: np.ndarray) -> np.ndarray:
        """sum_{c < behind_j} (y_j . v_c)^2, (m,) float64, of the vectors kept at places `at`, the newest first."""
        order = np.argsort(behind, kind="stable")  # a block of rows works for the one that is most behind
        out = np.empty(len(rows))
        v = self.kept[:, torch.from_numpy(at).to(self.device)].contiguous()
        out[order] = self._falls(rows[order], v, torch.from_numpy(behind[order]).to(self.device))
        return out

    def fall(self, rows: np.ndarray, v: np.ndarray) -> np.ndarray:
        """(y_j . v)^2, (m,) float64, v (d,)."""
        one = torch.ones(len(rows), dtype=torch.int64, device=self.device)
        return self._falls(rows, torch.from_numpy(v).to(self.device)[:, None], one)

    def _falls(self, rows: np.ndarray, v: torch.Tensor, behind: torch.Tensor) -> np.ndarray:
        at, d = self._at(rows), self.x.shape[1]
        shift = None if self.last is None else v[d] * self.last
        scale = self.factors[at]

        def falls(x: torch.Tensor, rows: torch.Tensor | None, part: slice) -> torch.Tensor:
            missed, factors = behind[part], scale[part]
            if (
                rows is None
            ):  # begin where a tensor of their own would: for other places another kernel is compiled
                missed, factors = missed.clone(), factors.clone()
            return linear.falls(x, v[:d], missed, cols=rows, scale=factors, shift=shift)

        return over(self.x, at, falls).cpu().numpy()

    def quadratic(self, rows: np.ndarray, q: np.ndarray) -> np.ndarray:
        """y_j' q y_j, (m,) float64, q (d, d)."""
        q, out = torch.from_numpy(q).to(self.device), np.empty(len(rows))
        for part in self._parts(len(rows)):
            y = self._rows(self._at(rows[part]))
            out[part] = ((y @ q) * y).sum(dim=1).cpu().numpy()
        return out

    def gram(self, rows: np.ndarray) -> np.ndarray:
        """sum_j y_j y_j' over the rows, (d, d) float64."""
        total: torch.Tensor | float = 0.0
        for part in self._parts(len(rows)):
            y = self._rows(self._at(rows[part]))
            total = total + y.T @ y
        return total.cpu().numpy()

    def _parts(self, count: int) -> Iterator[slice]:
        step = max(1, NUMBERS // (self.x.shape[1] + 1))
        return (slice(i, i + step) for i in range(0, count, step))


def factor_step(d: int) -> int:
    """Rows of a Cholesky factor brought up to date together."""
    return min(block_rows(d), 16384)


class Factor:
    """Rows of a Cholesky factor, (count, width) float64: s of the picks is L L', row j is L^-1 s_Sj."""

    def __init__(self, similarities: Callable, count: int, d: int, device: torch.device):
        self.similarities, self.d, self.device = similarities, d, device
        self.values = torch.zeros((count, 64), dtype=torch.float64, device=device)

    @property
    def width(self) -> int:
        return self.values.shape[1]

    def grow(self, width: int) -> None:
        wider = torch.zeros((len(self.values), width), dtype=torch.float64, device=self.device)
        wider[:, : self.width] = self.values
        self.values = wider

    def bring(self, rows, first, done, picks, pivots, begin: int) -> np.ndarray:
        """Entries of the rows for all picks that each has missed, from pick `begin` on at the earliest.

        rows, done (m,), picks (t,) int64 numbers into first (u,), which says whose row each is; pivots (t,) float64.
        Returns the sum of the squares of the new entries, (m,) float64.
        """
        there, heights = (torch.from_numpy(a).to(self.device) for a in (picks, pivots))
        out, step = np.empty(len(rows)), factor_step(self.d)
        for i in range(0, len(rows), step):
            part = rows[i : i + step]
            s = self.similarities(first[picks[begin:]], first[part]).contiguous()
            mine, have = (torch.from_numpy(a).to(self.device) for a in (part, done[i : i + step]))
            out[i : i + step] = linear.cholesky(self.values, mine, have, s, there, heights).cpu().numpy()
        return out
