"""A given similarity matrix on a device: its entries in quanta, dense or by column. What Tiles is for features."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from smartgpu.backends import device as blocks
from smartgpu.backends.device import quantise, widen
from smartgpu.kernels import greedy, walk
from smartgpu.similarity import Matrix


class Entries:
    """What both forms share: whatever can be said of columns, (m, r) int32, in blocks of candidates."""

    dtype = "float32"  # in which a given value is rounded to quanta, as on the CPU

    def __init__(self, pool: Matrix, device: torch.device):
        self.pool, self.device = pool, device
        self.r, self.n = pool.shape
        self.same = self.r == self.n
        self.sweep_pairs = self.r * self.n

    def columns(self, cols: torch.Tensor) -> torch.Tensor: ...

    def between(self, rows: torch.Tensor, cols: torch.Tensor) -> torch.Tensor:
        """(rows, cols) int32, represented rows and candidates by number."""
        return self.columns(cols)[:, rows].T

    def _blocks(self, n: int) -> Iterator[slice]:
        step = max(1, blocks.NUMBERS // max(self.r, 1))
        return (slice(i, min(i + step, n)) for i in range(0, n, step))

    def _every(self) -> Iterator[torch.Tensor]:
        for part in self._blocks(self.n):
            yield self.columns(torch.arange(part.start, part.stop, device=self.device))

    def totals(self) -> torch.Tensor:
        return torch.cat([columns.sum(dim=1, dtype=torch.int64) for columns in self._every()])

    def row_max(self) -> torch.Tensor:
        out = torch.zeros(self.r, dtype=torch.int32, device=self.device)
        for columns in self._every():
            torch.maximum(out, columns.amax(dim=0), out=out)
        return out

    def nearest(self, cols: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Values and positions compared as one number, so that the lowest position wins ties."""
        best = torch.full((self.r,), torch.iinfo(torch.int64).min, dtype=torch.int64, device=self.device)
        for part in self._blocks(len(cols)):
            keys = self.columns(cols[part]).to(torch.int64) << 32
            keys += 2**32 - 1 - torch.arange(part.start, part.stop, device=self.device)[:, None]
            torch.maximum(best, keys.amax(dim=0), out=best)
        return 2**32 - 1 - (best & 0xFFFFFFFF), (best >> 32).to(torch.int32)

    def block(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        out = torch.empty((len(a), len(b)), dtype=torch.int32, device=self.device)
        for part in self._blocks(len(b)):
            out[:, part] = self.columns(b[part])[:, a].T
        return out

    def block_sums(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        sums = [self.columns(b[part])[:, a].sum(dim=1, dtype=torch.int64) for part in self._blocks(len(b))]
        return torch.cat(sums) if sums else torch.zeros(0, dtype=torch.int64, device=self.device)


class Dense(Entries):
    """All entries, candidate-major: q (n, r) int32, 4 bytes each."""

    def __init__(self, pool: Matrix, device: torch.device):
        super().__init__(pool, device)
        self.q = torch.empty((self.n, self.r), dtype=torch.int32, device=device)
        step = max(1, blocks.NUMBERS // max(self.n, 1))
        for i in range(0, self.r, step):
            values = widen(pool.dense[i : i + step], device).div_(pool.unit).to(torch.float32)
            self.q[:, i : i + step] = quantise(values).T
            del values  # before the next ones are there

    @property
    def nbytes(self) -> int:
        return self.q.nbytes

    def columns(self, cols: torch.Tensor) -> torch.Tensor:
        return self.q[cols]

    def _every(self) -> Iterator[torch.Tensor]:
        return (self.q[part] for part in self._blocks(self.n))

    def excess(self, level: torch.Tensor, weights: torch.Tensor | None) -> torch.Tensor:
        return greedy.column_excess(self.q, level, weights=weights)

    def sampled(self, level: torch.Tensor, rows: torch.Tensor) -> int:
        return sum(int((columns[:, rows] > level[rows]).sum()) for columns in self._every())

    def survivors(
        self, level: torch.Tensor, most: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None:
        ptr = torch.zeros(self.n + 1, dtype=torch.int64, device=self.device)
        for part, columns in zip(self._blocks(self.n), self._every(), strict=True):
            torch.sum(columns > level, dim=1, out=ptr[part.start + 1 : part.stop + 1])
        ptr.cumsum_(0)
        total = int(ptr[-1])
        if total > most:
            return None
        rows, q = (torch.empty(total, dtype=torch.int32, device=self.device) for _ in range(2))
        end = 0
        for columns in self._every():
            at = (columns > level).nonzero()
            start, end = end, end + len(at)
            rows[start:end] = at[:, 1]
            q[start:end] = columns[at[:, 0], at[:, 1]]
            del at  # before the next ones are there
        return ptr, rows, q

    def diagonal(self) -> torch.Tensor:
        return self.q.diagonal().to(torch.int64)


class Stored(Entries):
    """The stored entries of a sparse matrix by column, 8 bytes each; all others are 0, and never rise above a level."""

    def __init__(self, pool: Matrix, device: torch.device):
        super().__init__(pool, device)
        indptr, indices, data = pool.csc
        self.ptr = torch.from_numpy(indptr.astype(np.int64)).to(device)
        self.rows = torch.from_numpy(indices.astype(np.int32)).to(device)
        self.q = torch.empty(len(data), dtype=torch.int32, device=device)
        for i in range(0, len(data), blocks.NUMBERS):
            part = slice(i, i + blocks.NUMBERS)
            self.q[part] = quantise(widen(data[part], device).div_(pool.unit).to(torch.float32))

    @property
    def nbytes(self) -> int:
        return self.ptr.nbytes + self.rows.nbytes + self.q.nbytes

    def columns(self, cols: torch.Tensor) -> torch.Tensor:
        out = torch.zeros((len(cols), self.r), dtype=torch.int32, device=self.device)
        starts = self.ptr[cols]
        lengths = self.ptr[cols + 1] - starts
        ends = lengths.cumsum(0)
        running = ends.cpu().numpy()
        first = 0
        while first < len(cols):  # as many columns at a time as hold so many entries; one, if it holds more
            held = running[first - 1] if first else 0
            last = max(first + 1, int(np.searchsorted(running, held + blocks.NUMBERS // 4, "right")))
            part = slice(first, last)
            owner = torch.repeat_interleave(torch.arange(first, last, device=self.device), lengths[part])
            at = torch.arange(int(held), int(running[last - 1]), device=self.device)
            at += (starts - (ends - lengths))[owner]
            out[owner, self.rows[at].to(torch.int64)] = self.q[at]
            first = last
        return out

    def excess(self, level: torch.Tensor, weights: torch.Tensor | None) -> torch.Tensor:
        return walk.sparse_excess(self.ptr, self.rows, self.q, level, weights=weights)

    def sampled(self, level: torch.Tensor, rows: torch.Tensor) -> int:
        """All pairs are at hand: counted, and cut to the share of these rows."""
        every = int(walk.alive(self.ptr, self.rows, self.q, level).sum())
        return round(every * len(rows) / self.r)

    def survivors(
        self, level: torch.Tensor, most: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None:
        counts = walk.alive(self.ptr, self.rows, self.q, level)
        if int(counts.sum()) > most:
            return None
        return walk.compact(self.ptr, self.rows, self.q, level, counts)

    def diagonal(self) -> torch.Tensor:
        indptr, indices, _ = self.pool.csc  # on the host: looking for places takes many times what is found
        owner = np.repeat(np.arange(self.n), np.diff(indptr))
        at = np.flatnonzero(indices == owner)
        out = torch.zeros(self.n, dtype=torch.int64, device=self.device)
        places, owners = (torch.from_numpy(a).to(self.device) for a in (at, owner[at]))
        out[owners] = self.q[places].to(torch.int64)
        return out
