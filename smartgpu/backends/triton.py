"""Backend "triton": the kernels of smartgpu.kernels over torch tensors on one GPU; no n x n array, ever.

Everything stays on the device but what the protocol gives to the host: sums of n or of a batch, and picks. Work goes to
the caller's current stream. In Triton's interpreter (TRITON_INTERPRET=1) the tensors are on the CPU.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from smartgpu.backends import QUANTUM, device, device_linear, resident, streaming
from smartgpu.backends.device_footprint import SAMPLE, DeviceFootprint
from smartgpu.backends.device_pairs import DevicePairs
from smartgpu.backends.entries import Dense, Stored
from smartgpu.backends.footprint import Entries
from smartgpu.constraints import Goal
from smartgpu.kernels import compiling, greedy, neighbours, similarity, survivors, sweeps, walk
from smartgpu.similarity import Matrix, MaxMinusSqeuclidean, Similarity

MOST_TOP = 64  # rows that are measured in float64 where many are equally far from others


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
        return self.pool.owned + norms

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

    def neighbours(self, rows: slice, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        squares = None if self.x_squares is None else self.x_squares[rows]
        return neighbours.top_k(
            self.x[rows], self.y, k, self.form, x_squares=squares, y_squares=self.y_squares
        )

    def sampled(self, level: torch.Tensor, rows: torch.Tensor) -> int:
        """How many pairs of these rows rise above the level."""
        squares = None if self.x_squares is None else self.x_squares[rows]
        found = survivors.count(
            self.x[rows], self.y, level[rows], self.form, x_squares=squares, y_squares=self.y_squares
        )
        return int(found.sum())

    def survivors(
        self, level: torch.Tensor, most: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None:
        """Where each candidate's begin, their rows and quanta; None where there are more than `most`."""
        counts = survivors.count(self.x, self.y, level, self.form, **self.squares)
        ptr = torch.zeros(self.n + 1, dtype=torch.int64, device=self.device)
        torch.cumsum(counts, 0, out=ptr[1:])
        if int(ptr[-1]) > most:
            return None
        return ptr, *survivors.fill(self.x, self.y, level, ptr, self.form, **self.squares)

    def between(self, rows: torch.Tensor, cols: torch.Tensor) -> torch.Tensor:
        """(rows, cols) int32, represented rows and candidates by number."""
        return sweeps.block(self.x, rows, self.y, cols, self.form, **self.squares)

    def block(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        y = self.y_squares
        return sweeps.block(self.y, a, self.y, b, self.form, x_squares=y, y_squares=y)

    def block_sums(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        y = self.y_squares
        gathered = None if y is None else y[a]
        return sweeps.totals(self.y[a], self.y, self.form, cols=b, x_squares=gathered, y_squares=y)

    def diagonal(self) -> torch.Tensor:
        return device.own_quanta(self.y, self.form)


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

    alone = True

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

    def clip(self, cap: torch.Tensor) -> None:
        """No stored value is larger than its row's cap from here on."""
        for i in range(0, len(self.q), device.NUMBERS // 4):
            part = slice(i, i + device.NUMBERS // 4)
            torch.minimum(self.q[part], cap[self.rows[part]], out=self.q[part])

    def lists(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return self.ptr.cpu().numpy(), self.rows.cpu().numpy(), self.q.cpu().numpy()

    def compact(self, level: torch.Tensor) -> None:
        """Drop the pairs that no longer rise above the level, if that is half of them: memory allows no larger copy."""
        counts = walk.alive(self.ptr, self.rows, self.q, level)
        if 2 * int(counts.sum()) <= len(self):
            self.ptr, self.rows, self.q = walk.compact(self.ptr, self.rows, self.q, level, counts)


class TritonBackend:
    name = "triton"
    remote = True
    keeps_survivors = False

    @staticmethod
    def compiling() -> float:
        return compiling.seconds()

    @staticmethod
    def default_memory() -> int:
        return device.share(device.open_device())

    @staticmethod
    def room(*sets) -> tuple[int, int]:
        at = device.open_device(*sets)
        return device.share(at), device.free(at)

    @staticmethod
    def failures(*sets) -> AbstractContextManager[None]:
        return device.failures(device.open_device(*sets))

    @staticmethod
    def check_inputs(pool: device.Pool) -> None:
        pool.check_unchanged()

    @staticmethod
    def footprint(
        x, kind: Similarity, *, precision: str = "auto", stream: bool = False, **how
    ) -> DeviceFootprint:
        return DeviceFootprint.of(x, kind, precision, stream)

    @staticmethod
    def prepare(
        kind: Similarity, x, rows=None, *, precision: str = "auto", stream: bool = False, **how
    ) -> device.Pool:
        if not stream:
            return device.prepare(kind, x, rows, precision=precision)
        pool = device.prepare(kind, x, rows, precision=precision, store=streaming.new_rows)
        return streaming.streamed(pool, device.open_device(x, rows))

    @staticmethod
    def features(pool: device.Pool, x: torch.Tensor, **how) -> device_linear.LinearFeatures:
        return device_linear.LinearFeatures(pool, x)

    @staticmethod
    def wide(pool: device.Pool, **how) -> device_linear.Wide:
        return device_linear.Wide(pool)

    def __init__(
        self,
        pool: device.Pool | Matrix,
        *,
        memory: int | None = None,
        spare: int | None = None,  # bytes beyond what must be held; instead of memory, which counts both
        **how,  # precision is in the pool; threads and progress are for the CPU
    ):
        self.pool, self.pairs = pool, 0
        d, self.entries, stream = 0, None, False
        if isinstance(pool, Matrix):
            at, self.entries = device.open_device(pool.dense), Entries.of(pool)
            self.source = Dense(pool, at) if pool.dense is not None else Stored(pool, at)
        else:
            d, stream = pool.x.shape[1], isinstance(pool.x, streaming.HostRows)
            self.source = streaming.StreamedTiles(pool) if stream else Tiles(pool)
            if isinstance(pool.kind, MaxMinusSqeuclidean) and pool.top is None:
                self.pairs += self.source.find_top()
        self.device, self.dtype = self.source.device, self.source.dtype
        self.r, self.n, self.same = self.source.r, self.source.n, self.source.same
        self.rounded = self.dtype in ("float16", "bfloat16", "tf32")
        width = pool.x.dtype.itemsize if d else 4
        self.sizes = DeviceFootprint(pool.kind, "auto", d, False, device.real(), stream, width)
        self._least = self._held(self.sizes.least_batch)
        self.memory = (memory or device.share(self.device)) if spare is None else self._least + spare
        if stream:
            self.source.keep((self.memory - self._least) // 4)
        room = max(self.memory - self.held(), 1)
        self.pair_bytes = room / max(self.sizes.storable(room, self.n, self.r), 1e-9)
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

    def raise_level(self, level: torch.Tensor, cols: np.ndarray, cap: torch.Tensor | None = None) -> None:
        step = self.max_batch()
        for i in range(0, len(cols), step):
            columns = self.source.columns(self._index(cols[i : i + step]))
            torch.maximum(level, columns.amax(dim=0), out=level)
            del columns  # before the next ones are there
        if cap is not None:
            torch.minimum(level, cap, out=level)
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
        """Bytes taken on the device besides survivors: features, a batch of columns, vectors, scratch."""
        return self._held(self.max_batch())

    def _held(self, batch: int) -> int:
        how = {"batch": batch, "weighted": True, "entries": self.entries}
        return self.sizes.held(self.n, self.r, self.source.nbytes, **how)

    def max_batch(self) -> int:
        """As many columns as half of what is left beside the least can hold."""
        least, most = self.sizes.least_batch, self.sizes.most_batch
        more = (self.memory - self._least) // 2 // self.sizes.columns(self.r, 32) * 32
        return int(np.clip(least + more, least, most))

    def keep(
        self,
        level: torch.Tensor,
        cols: np.ndarray,
        weights: torch.Tensor | None = None,
        cap: torch.Tensor | None = None,
    ) -> Kept:
        """The columns of a batch, computed once into place, and their excess over the level."""
        columns = self.source.columns(self._index(cols))
        if cap is not None:
            torch.minimum(columns, cap, out=columns)
        self.pairs += self.r * len(cols)
        return Kept(columns, greedy.column_excess(columns, level, weights=weights), weights)

    def accept(self, kept: Kept, b: int, level: torch.Tensor) -> None:
        greedy.update(kept.columns, b, level, kept.sums, weights=kept.weights)

    def column(self, kept: Kept, b: int) -> np.ndarray:
        return kept.columns[b].cpu().numpy()

    def excess_again(self, kept: Kept, level: torch.Tensor) -> np.ndarray:
        return greedy.column_excess(kept.columns, level, weights=kept.weights).cpu().numpy()

    def loop(
        self, level: torch.Tensor, weights: torch.Tensor | None, scale: float, goal: Goal, sparse: Any
    ) -> resident.Excesses | None:
        """The backend's own loop of picks; None while it would need tiles that a given matrix does not have."""
        if sparse is None and not isinstance(self.source, Tiles):
            return None
        return resident.Excesses(self, level, weights, scale, goal)

    def pairs_for_swaps(
        self, weights: torch.Tensor | None, cap: torch.Tensor | None, room: float
    ) -> DevicePairs:
        """The pairs that a swap can matter for, stored where there is room for so many."""
        return DevicePairs(self, weights, cap, room)

    def within(self, cols: np.ndarray) -> TritonBackend:
        """A backend over these candidates alone: the same integers for every pair."""
        return TritonBackend(self.pool.columns(cols), memory=self.memory)

    def estimate_survivors(self, level: torch.Tensor) -> float:
        """About how many pairs have q_ij > level_i: counted on evenly spaced rows."""
        rows = np.unique(np.linspace(0, self.r - 1, min(self.r, SAMPLE)).astype(np.int64))
        self.pairs += len(rows) * self.n
        return self.source.sampled(level, self._index(rows)) * self.r / len(rows)

    def survivors(
        self, level: torch.Tensor, weights: torch.Tensor | None = None, cap: torch.Tensor | None = None
    ) -> Survivors | None:
        """All pairs with q_ij > level_i, stored by column: a sweep that counts them, and one that writes them.

        None where they turn out not to fit the memory.
        """
        most = int(self.sizes.storable(self.memory - self.held(), self.n, self.r))
        found = self.source.survivors(level, most)
        self.pairs += self.source.sweep_pairs * (1 if found is None else 2)
        if found is None:
            return None
        stored = Survivors(*found, weights)
        if cap is not None:
            stored.clip(cap)
        return stored

    def from_lists(
        self, ptr: np.ndarray, rows: np.ndarray, values: np.ndarray, r: int, weights: torch.Tensor | None
    ) -> Survivors:
        """What lists() of several parts of r rows gave, put together."""
        return Survivors(*(torch.from_numpy(part).to(self.device) for part in (ptr, rows, values)), weights)

    # -- candidates x candidates, nearest --------------------------------------------------------------------------

    def block(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        self.pairs += len(a) * len(b)
        return self.source.block(self._index(a), self._index(b)).cpu().numpy()

    def block_sums(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """(|b|,) int64 sum of q_ij over i in a, candidates x candidates: the block is not stored."""
        self.pairs += len(a) * len(b)
        return self.source.block_sums(self._index(a), self._index(b)).cpu().numpy()

    def factor(self, count: int) -> device_linear.Factor:
        """Rows of a Cholesky factor of this matrix, which is given."""
        return device_linear.Factor(self._similarities, count, 0, self.device)

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

    def neighbours(self, rows: slice, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Of features, not of a given matrix."""
        self.pairs += (rows.stop - rows.start) * self.n
        value, where = self.source.neighbours(rows, k)
        return value.cpu().numpy(), where.cpu().numpy()
