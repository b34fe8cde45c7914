"""Backend "triton": the kernels of smartgpu.kernels over torch tensors on one GPU; no n x n array, ever.

Everything stays on the device but what the protocol gives to the host: sums of n or of a batch, and picks. Work goes to
the caller's current stream. In Triton's interpreter (TRITON_INTERPRET=1) the tensors are on the CPU.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from smartgpu.backends import QUANTUM, device, resident
from smartgpu.backends.entries import Dense, Stored
from smartgpu.constraints import Goal
from smartgpu.kernels import compiling, greedy, neighbours, similarity, survivors, sweeps, walk
from smartgpu.similarity import Matrix, MaxMinusSqeuclidean, Similarity

SAMPLE = 192  # rows on which survivors are counted beforehand
MOST_TOP = 64  # rows that are measured in float64 where many are equally far from others
MIN_BATCH, MAX_BATCH = 32, 1024  # columns kept at once
PAIR_BYTES = 12.0  # of a survivor: 8, and half as much again while those that stay are copied


class Tiles:
    """s from prepared features, made anew wherever it is needed."""

    def __init__(self, pool: device.Pool):
        self.pool, self.x, self.y, self.form = pool, pool.rows, pool.x, pool.form
        self.r, self.n, self.same = len(self.x), len(self.y), pool.same
        self.device = pool.device
        self.x_squares = self.y_squares = similarity.squared_norms(self.y, self.form)
        if not self.same:
            self.x_squares = similarity.squared_norms(self.x, self.form)
        self.squares = {"x_squares": self.x_squares, "y_squares": self.y_squares}
        self.dtype = pool.dtype

    @property
    def nbytes(self) -> int:
        norms = (
            0 if self.y_squares is None else self.y_squares.nbytes + (not self.same) * self.x_squares.nbytes
        )
        widened = 24 * min(device.NUMBERS, max(self.n, self.r) * self.y.shape[1])  # float64 blocks on the way
        return self.pool.owned + norms + widened

    @property
    def sweep_pairs(self) -> int:
        """Pairs that a sweep computes."""
        return self.n * (self.n + 1) // 2 if self.same else self.r * self.n

    def find_top(self) -> int:
        """M of max_minus_sqeuclidean, the largest squared distance of any pair; returns how many were computed.

        A sweep finds the rows that it may belong to, to a quantum; float64 distances of a few of these, M.
        """
        top = 0.0
        for x, squares in {
            id(s): (s, q) for s, q in ((self.y, self.y_squares), (self.x, self.x_squares))
        }.values():
            least = sweeps.row_min(x, self.y, self.form, x_squares=squares, y_squares=self.y_squares)
            rows = torch.nonzero(least == least.min())[:MOST_TOP, 0]
            top = max(top, device.largest_distance(x[rows], self.y))
        self.pool.top = min(top, 1.0)
        self.form = self.pool.form
        return self.n * (self.n + 1) // 2 + (not self.same) * self.r * self.n

    def excess(self, level: torch.Tensor, weights: torch.Tensor | None) -> torch.Tensor:
        return sweeps.excess(self.x, self.y, level, self.form, weights=weights, **self.squares)

    def totals(self) -> torch.Tensor:
        return sweeps.totals(self.x, self.y, self.form, **self.squares)

    def row_max(self) -> torch.Tensor:
        return sweeps.row_max(self.x, self.y, self.form, **self.squares)

    def columns(self, cols: torch.Tensor) -> torch.Tensor:
        return sweeps.columns(self.x, self.y, cols, self.form, **self.squares)

    def nearest(self, cols: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return neighbours.nearest(self.x, self.y, cols, self.form, **self.squares)

    def sampled(self, level: torch.Tensor, rows: torch.Tensor) -> int:
        """How many pairs of these rows rise above the level."""
        squares = None if self.x_squares is None else self.x_squares[rows]
        found = survivors.count(
            self.x[rows], self.y, level[rows], self.form, x_squares=squares, y_squares=self.y_squares
        )
        return int(found.sum())

    def survivors(self, level: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        counts = survivors.count(self.x, self.y, level, self.form, **self.squares)
        ptr = torch.zeros(self.n + 1, dtype=torch.int64, device=self.device)
        torch.cumsum(counts, 0, out=ptr[1:])
        return ptr, *survivors.fill(self.x, self.y, level, ptr, self.form, **self.squares)

    def block(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        y = self.y_squares
        return sweeps.block(self.y, a, self.y, b, self.form, x_squares=y, y_squares=y)

    def block_sums(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        y = self.y_squares
        gathered = None if y is None else y[a]
        return sweeps.totals(self.y[a], self.y, self.form, cols=b, x_squares=gathered, y_squares=y)

    def diagonal(self) -> torch.Tensor:
        """From squared norms, which are made by the chain of the products, and the kind's map of one number."""
        form, y = self.form, self.y
        if form.distance:
            s = torch.zeros(self.n, device=self.device)
        else:
            s = similarity.squared_norms(
                y, similarity.Form("max_minus_sqeuclidean", precision=form.precision)
            )
        if form.kind == "dot":
            s = s * form.factor
        elif form.kind == "cosine_shifted":
            s = s * 0.5 + 0.5
        elif form.kind == "cosine_squared":
            s = s * s
        elif form.kind == "max_minus_sqeuclidean":
            s = torch.full_like(s, form.top)
        elif form.distance:  # exp(0)
            s = torch.ones_like(s)
        return device.quantise(s).to(torch.int64)


@dataclass
class Kept:
    """Columns of a batch, (m, r) int32, and their excesses, up to date with every accept()."""

    columns: torch.Tensor
    sums: torch.Tensor
    weights: torch.Tensor | None

    @property
    def excess(self) -> np.ndarray:
        return self.sums.cpu().numpy()


@dataclass
class SparseKept:
    """Fresh excesses of some stored columns. Their pairs are at hand already: nothing has to be gathered."""

    rows: torch.Tensor  # (m,) int64, the columns' numbers
    sums: torch.Tensor

    @property
    def excess(self) -> np.ndarray:
        return self.sums.cpu().numpy()


class Survivors:
    """The pairs with q_ij > level_i by column: those of candidate j are rows[ptr[j]:ptr[j + 1]], q[...]."""

    def __init__(self, ptr: torch.Tensor, rows: torch.Tensor, q: torch.Tensor, weights: torch.Tensor | None):
        self.ptr, self.rows, self.q, self.weights = ptr, rows, q, weights

    def __len__(self) -> int:
        return len(self.rows)

    def _excess(self, level: torch.Tensor, cols: torch.Tensor | None) -> torch.Tensor:
        return walk.sparse_excess(self.ptr, self.rows, self.q, level, weights=self.weights, cols=cols)

    def excess(self, level: torch.Tensor) -> np.ndarray:
        return self._excess(level, None).cpu().numpy()

    def keep(self, level: torch.Tensor, cols: np.ndarray) -> SparseKept:
        at = torch.from_numpy(cols).to(level.device)
        return SparseKept(at, self._excess(level, at))

    def narrow(self, kept: SparseKept, positions: np.ndarray) -> SparseKept:
        at = torch.from_numpy(positions).to(kept.rows.device)
        return SparseKept(kept.rows[at], kept.sums[at])

    def accept(self, kept: SparseKept, b: int, level: torch.Tensor) -> None:
        walk.sparse_raise(self.ptr, self.rows, self.q, level, int(kept.rows[b]))
        kept.sums = self._excess(level, kept.rows)

    def compact(self, level: torch.Tensor) -> None:
        """Drop the pairs that no longer rise above the level, if that is half of them: memory allows no larger copy."""
        counts = walk.alive(self.ptr, self.rows, self.q, level)
        if 2 * int(counts.sum()) <= len(self):
            self.ptr, self.rows, self.q = walk.compact(self.ptr, self.rows, self.q, level, counts)


class TritonBackend:
    name = "triton"
    remote = True
    pair_bytes = PAIR_BYTES

    @staticmethod
    def compiling() -> float:
        return compiling.seconds()

    @staticmethod
    def default_memory() -> int:
        return device.share(device.open_device())

    @staticmethod
    def prepare(kind: Similarity, x, rows=None, *, precision: str = "auto", **how) -> device.Pool:
        return device.prepare(kind, x, rows, precision=precision)

    @staticmethod
    def features(pool: device.Pool, x: torch.Tensor, **how) -> device.LinearFeatures:
        return device.LinearFeatures(pool, x)

    @staticmethod
    def wide(pool: device.Pool, **how) -> device.Wide:
        return device.Wide(pool)

    def __init__(
        self,
        pool: device.Pool | Matrix,
        *,
        memory: int | None = None,
        **how,  # precision is in the pool; threads and progress are for the CPU
    ):
        self.pool, self.pairs = pool, 0
        if isinstance(pool, Matrix):
            at = device.open_device(pool.dense)
            self.source = Dense(pool, at) if pool.dense is not None else Stored(pool, at)
        else:
            self.source = Tiles(pool)
            if isinstance(pool.kind, MaxMinusSqeuclidean) and pool.top is None:
                self.pairs += self.source.find_top()
        self.device, self.dtype = self.source.device, self.source.dtype
        self.r, self.n, self.same = self.source.r, self.source.n, self.source.same
        self.rounded = self.dtype in ("float16", "bfloat16", "tf32")
        self.memory = memory or device.share(self.device)
        self.quantum = pool.unit * QUANTUM

    def _index(self, cols: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(cols, np.int64)).to(self.device)

    # -- facility location -----------------------------------------------------------------------------------------

    def new_level(self) -> torch.Tensor:
        return torch.zeros(self.r, dtype=torch.int32, device=self.device)

    def level_from(self, values: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(values.astype(np.int32)).to(self.device)

    def level_values(self, level: torch.Tensor) -> np.ndarray:
        return level.cpu().numpy()

    def new_weights(self, weights: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(weights).to(self.device)

    def level_sum(self, level: torch.Tensor, weights: torch.Tensor | None = None) -> int:
        values = level.to(torch.int64)
        return int((values if weights is None else values * weights).sum())

    def raise_level(self, level: torch.Tensor, cols: np.ndarray) -> None:
        step = self.max_batch()
        for i in range(0, len(cols), step):
            columns = self.source.columns(self._index(cols[i : i + step]))
            torch.maximum(level, columns.amax(dim=0), out=level)
        self.pairs += self.r * len(cols)

    def row_max(self) -> torch.Tensor:
        self.pairs += self.r * self.n
        return self.source.row_max()

    def excess(self, level: torch.Tensor, weights: torch.Tensor | None = None) -> np.ndarray:
        self.pairs += self.source.sweep_pairs
        return self.source.excess(level, weights).cpu().numpy()

    def totals(self) -> np.ndarray:
        self.pairs += self.source.sweep_pairs
        return self.source.totals().cpu().numpy()

    def held(self) -> int:
        """Bytes taken on the device besides survivors: features, a batch of columns, a few vectors."""
        return self.source.nbytes + 4 * self.r * self.max_batch() + 64 * (self.r + self.n)

    def max_batch(self) -> int:
        return int(np.clip(self.memory // (8 * max(self.r, 1)) // 32 * 32, MIN_BATCH, MAX_BATCH))

    def keep(self, level: torch.Tensor, cols: np.ndarray, weights: torch.Tensor | None = None) -> Kept:
        """The columns of a batch, computed once into place, and their excess over the level."""
        columns = self.source.columns(self._index(cols))
        self.pairs += self.r * len(cols)
        return Kept(columns, greedy.column_excess(columns, level, weights=weights), weights)

    def accept(self, kept: Kept, b: int, level: torch.Tensor) -> None:
        greedy.update(kept.columns, b, level, kept.sums, weights=kept.weights)

    def loop(
        self, level: torch.Tensor, weights: torch.Tensor | None, scale: float, goal: Goal, sparse: Any
    ) -> resident.Excesses | None:
        """The backend's own loop of picks; None while it would need tiles that a given matrix does not have."""
        if sparse is None and not isinstance(self.source, Tiles):
            return None
        return resident.Excesses(self, level, weights, scale, goal)

    def estimate_survivors(self, level: torch.Tensor) -> float:
        """About how many pairs have q_ij > level_i: counted on evenly spaced rows."""
        rows = np.unique(np.linspace(0, self.r - 1, min(self.r, SAMPLE)).astype(np.int64))
        self.pairs += len(rows) * self.n
        return self.source.sampled(level, self._index(rows)) * self.r / len(rows)

    def survivors(self, level: torch.Tensor, weights: torch.Tensor | None = None) -> Survivors:
        """All pairs with q_ij > level_i, stored by column: a sweep that counts them, and one that writes them."""
        self.pairs += 2 * self.source.sweep_pairs
        return Survivors(*self.source.survivors(level), weights)

    # -- candidates x candidates, nearest --------------------------------------------------------------------------

    def block(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        self.pairs += len(a) * len(b)
        return self.source.block(self._index(a), self._index(b)).cpu().numpy()

    def block_sums(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """(|b|,) int64 sum of q_ij over i in a, candidates x candidates: the block is not stored."""
        self.pairs += len(a) * len(b)
        return self.source.block_sums(self._index(a), self._index(b)).cpu().numpy()

    def factor(self, count: int) -> device.Factor:
        """Rows of a Cholesky factor of this matrix, which is given."""
        return device.Factor(self._similarities, count, self.device)

    def _similarities(self, a: np.ndarray, b: np.ndarray) -> torch.Tensor:
        self.pairs += len(a) * len(b)
        return self.source.block(self._index(a), self._index(b)).to(torch.float64).mul_(self.quantum)

    def diagonal(self) -> np.ndarray:
        self.pairs += self.n
        return self.source.diagonal().cpu().numpy()

    def nearest(self, cols: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        self.pairs += self.r * len(cols)
        where, value = self.source.nearest(self._index(cols))
        return where.cpu().numpy(), value.cpu().numpy()
