"""Pools larger than the device: prepared features stay on the host, and blocks of their rows come when they are needed.

Two buffers on the device take turns: while one is worked on, the next block is copied into the other by a stream of its
own. Every sum over pairs is one of integers and every other number is a row's own, or is added up block by block as
where all features are on the device, so that no bit of a result depends on it.
"""

from __future__ import annotations

import contextlib
import logging
import weakref
from collections.abc import Iterator

import numpy as np
import torch

from smartgpu.backends import device
from smartgpu.kernels import neighbours, similarity, survivors, sweeps

MOST_TOP = 64  # rows that are measured in float64 where many are equally far from others


def new_rows(n: int, d: int, dtype: torch.dtype) -> torch.Tensor:
    """An array on the host for features, pinned: a GPU copies from it by itself.

    Registered, because torch's own pinned arrays take the next power of two bytes. Where that is refused, copies go by
    way of a pinned block.
    """
    if not device.real():
        return torch.frombuffer(np.empty(n * d * dtype.itemsize, np.uint8), dtype=dtype).view(n, d)
    out, driver = torch.empty((n, d), dtype=dtype), torch.cuda.cudart()
    if driver.cudaHostRegister(out.data_ptr(), out.nbytes, 0) == 0:
        weakref.finalize(out, driver.cudaHostUnregister, out.data_ptr()).atexit = False
    else:
        logging.getLogger("smartgpu").info("%d bytes of features cannot be pinned", out.nbytes)
        with contextlib.suppress(RuntimeError):  # the next launch is told of that error: let it be this one
            torch.zeros(1, device="cuda")
    return out


def streamed(pool: device.Pool, at: torch.device) -> device.Pool:
    """The pool, its features on the host, as one whose blocks stream to the device."""
    rows = HostRows(pool.rows, at)
    pool.x, pool.rows = (rows if pool.same else HostRows(pool.x, at)), rows
    pool.owned = rows.nbytes + (0 if pool.same else pool.x.nbytes)
    return pool


class HostRows:
    """Features (n, d) on the host, and blocks of their rows on a device."""

    def __init__(self, host: torch.Tensor, at: torch.device):
        self.host, self.device = host, at
        self.shape, self.dtype = host.shape, host.dtype
        self.step = min(device.block_rows(host.shape[1]), len(host))
        self._buffers: list[_Buffer] = []

    def __len__(self) -> int:
        return len(self.host)

    def __getitem__(self, rows: slice) -> HostRows:
        """These rows as a set of their own, not a copy."""
        return HostRows(self.host[rows], self.device)

    @property
    def row_bytes(self) -> int:
        return self.shape[1] * self.dtype.itemsize

    @property
    def nbytes(self) -> int:
        """Of the two buffers on the device."""
        return 2 * self.step * self.row_bytes

    def blocks(self) -> Iterator[tuple[slice, torch.Tensor]]:
        """(rows, their features on the device) of all rows in order. A block is there until the next one is asked for.

        One pass at a time: two would share the buffers.
        """
        if not self._buffers:
            side = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None
            self._buffers = [_Buffer(self.step, self, side) for _ in range(2)]
        parts = [slice(i, min(i + self.step, len(self))) for i in range(0, len(self), self.step)]
        self._buffers[0].send(self.host[parts[0]])
        for i, part in enumerate(parts):
            now, other = self._buffers[i % 2], self._buffers[1 - i % 2]
            if i + 1 < len(parts):
                other.send(self.host[parts[i + 1]])
            try:
                yield part, now.there()
            finally:
                now.leave()

    def take(self, index: torch.Tensor) -> torch.Tensor:
        """Some rows on the device, by number."""
        index = index.cpu()
        picked = torch.empty(
            (len(index), self.shape[1]), dtype=self.dtype, pin_memory=self.device.type == "cuda"
        )
        torch.index_select(self.host, 0, index, out=picked)
        return picked.to(self.device, non_blocking=True)

    def pieces(self, index: torch.Tensor | None) -> Iterator[tuple[slice, torch.Tensor]]:
        """(where in the index, their features) of these rows, no more at a time than in a block; of all without one."""
        if index is None:
            yield from self.blocks()
            return
        for i in range(0, len(index), self.step):
            part = slice(i, min(i + self.step, len(index)))
            yield part, self.take(index[part])

    def some(self, index: torch.Tensor) -> HostRows:
        """These rows as a set of their own."""
        return HostRows(self.host[index], self.device)

    def load(self, part: slice, out: torch.Tensor) -> torch.Tensor:
        """These rows, copied into `out`."""
        there = out[: part.stop - part.start]
        return there.copy_(self.host[part], non_blocking=True)


class _Buffer:
    """One of two places on the device. A copy begins when work on the place has ended, and work when the copy has."""

    def __init__(self, rows: int, of: HostRows, side: torch.cuda.Stream | None):
        self.place = torch.empty((rows, of.shape[1]), dtype=of.dtype, device=of.device)
        self.side, self.held = side, 0
        self.staged: torch.Tensor | None = (
            None  # what a GPU copies from, where it cannot from the features themselves
        )
        if side is not None:
            self.ready, self.left = torch.cuda.Event(), torch.cuda.Event()
            self.place.record_stream(side)
            self.leave()
            if not of.host.is_pinned():
                self.staged = torch.empty((rows, of.shape[1]), dtype=of.dtype, pin_memory=True)

    def send(self, rows: torch.Tensor) -> None:
        self.held = len(rows)
        if self.side is None:
            self.place[: self.held].copy_(rows)
            return
        if self.staged is not None:
            self.ready.synchronize()  # the copy before has left it
            rows = self.staged[: self.held].copy_(rows)
        with torch.cuda.stream(self.side):
            self.side.wait_event(self.left)
            self.place[: self.held].copy_(rows, non_blocking=True)
            self.ready.record(self.side)

    def there(self) -> torch.Tensor:
        if self.side is not None:
            torch.cuda.current_stream(self.place.device).wait_event(self.ready)
        return self.place[: self.held]

    def leave(self) -> None:
        if self.side is not None:
            self.left.record(torch.cuda.current_stream(self.place.device))


class StreamedTiles:
    """s from features on the host: what Tiles is for those on the device.

    A sweep holds a block of candidates, as many as keep() said, and lets all rows pass by. It computes every pair twice
    where rows are candidates: once for each of its sides.
    """

    def __init__(self, pool: device.Pool):
        self.pool, self.x, self.y, self.form = pool, pool.rows, pool.x, pool.form
        self.r, self.n, self.same = len(self.x), len(self.y), pool.same
        self.device, self.dtype = self.y.device, pool.dtype
        self.y_squares = self._norms(self.y)
        self.x_squares = self.y_squares if self.same else self._norms(self.x)
        self.block_size = self.y.step
        self._held: torch.Tensor | None = None  # the block of candidates
        self._part = slice(0, 0)  # and which they are

    def _norms(self, x: HostRows) -> torch.Tensor | None:
        if not self.form.distance:
            return None
        return torch.cat([similarity.squared_norms(rows, self.form) for _, rows in x.blocks()])

    def keep(self, room: int) -> None:
        """Take so many bytes more for candidates, of which fewer passes over the rows come."""
        self.block_size = min(self.n, self.y.step + max(room, 0) // self.y.row_bytes)

    @property
    def nbytes(self) -> int:
        """Buffers, norms, and candidates beyond those that the footprint counts as scratch."""
        norms = (
            0 if self.y_squares is None else self.y_squares.nbytes + (not self.same) * self.x_squares.nbytes
        )
        return self.pool.owned + norms + (self.block_size - self.y.step) * self.y.row_bytes

    @property
    def sweep_pairs(self) -> int:
        return self.r * self.n

    def _candidates(self) -> Iterator[tuple[slice, torch.Tensor]]:
        """(candidates, their features), block by block."""
        if self._held is None or len(self._held) != self.block_size:
            self._held, self._part = None, slice(0, 0)
            self._held = torch.empty(
                (self.block_size, self.y.shape[1]), dtype=self.y.dtype, device=self.device
            )
        for j in range(0, self.n, self.block_size):
            part = slice(j, min(j + self.block_size, self.n))
            if part != self._part:
                self.y.load(part, self._held)
                self._part = part
            yield part, self._held[: part.stop - part.start]

    def _pairs(self) -> Iterator[tuple[slice, slice, torch.Tensor, torch.Tensor, dict]]:
        """(rows i, candidates j, their features, their norms) of all pairs of blocks."""
        for j, y in self._candidates():
            for i, x in self.x.blocks():
                yield i, j, x, y, self._squares(i, j)

    def _squares(self, i, j) -> dict[str, torch.Tensor | None]:
        if self.y_squares is None:
            return {"x_squares": None, "y_squares": None}
        return {"x_squares": self.x_squares[i], "y_squares": self.y_squares[j]}

    def _few(self, cols: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Features of some candidates, and their numbers among these."""
        return self.y.take(cols), torch.arange(len(cols), device=self.device)

    def find_top(self) -> int:
        """As Tiles.find_top."""
        top = 0.0
        for x, squares in {
            id(s): (s, q) for s, q in ((self.y, self.y_squares), (self.x, self.x_squares))
        }.values():
            least = torch.full((len(x),), similarity.ONE, dtype=torch.int32, device=self.device)
            for j, y in self._candidates():
                for i, rows in x.blocks():
                    norms = {"x_squares": squares[i], "y_squares": self.y_squares[j]}
                    torch.minimum(least[i], sweeps.row_min(rows, y, self.form, **norms), out=least[i])
            at = torch.nonzero(least == least.min())[:MOST_TOP, 0]
            top = max(top, device.largest_distance(x.take(at), self.y))
        self.pool.top = min(top, 1.0)
        self.form = self.pool.form
        return (self.n + (not self.same) * self.r) * self.n

    def excess(self, level: torch.Tensor, weights: torch.Tensor | None) -> torch.Tensor:
        out = torch.zeros(self.n, dtype=torch.int64, device=self.device)
        for i, j, x, y, squares in self._pairs():
            w = None if weights is None else weights[i]
            out[j] += sweeps.excess(x, y, level[i], self.form, weights=w, **squares)
        return out

    def totals(self) -> torch.Tensor:
        out = torch.zeros(self.n, dtype=torch.int64, device=self.device)
        for _, j, x, y, squares in self._pairs():
            out[j] += sweeps.totals(x, y, self.form, **squares)
        return out

    def row_max(self) -> torch.Tensor:
        out = torch.zeros(self.r, dtype=torch.int32, device=self.device)
        for i, _, x, y, squares in self._pairs():
            torch.maximum(out[i], sweeps.row_max(x, y, self.form, **squares), out=out[i])
        return out

    def columns(self, cols: torch.Tensor) -> torch.Tensor:
        out = torch.empty((len(cols), self.r), dtype=torch.int32, device=self.device)
        y, at = self._few(cols)
        for i, x in self.x.blocks():
            sweeps.columns(x, y, at, self.form, out=out[:, i], **self._squares(i, cols))
        return out

    def nearest(self, cols: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Of later candidates only those that are nearer replace what was found: the lowest position wins ties."""
        where = torch.zeros(self.r, dtype=torch.int64, device=self.device)
        value = torch.full((self.r,), torch.iinfo(torch.int32).min, dtype=torch.int32, device=self.device)
        for start in range(0, len(cols), self.y.step):
            some = cols[start : start + self.y.step]
            y, at = self._few(some)
            for i, x in self.x.blocks():
                best, q = neighbours.nearest(x, y, at, self.form, **self._squares(i, some))
                nearer = q > value[i]
                where[i] = torch.where(nearer, best + start, where[i])
                value[i] = torch.where(nearer, q, value[i])
        return where, value

    def neighbours(self, rows: slice, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The best of each block of candidates, then of these: compared as one number, the lower candidate first."""
        at = torch.arange(rows.start, rows.stop, device=self.device)
        x, keys = self.x.take(at), None
        for j, y in self._candidates():
            q, where = neighbours.top_k(x, y, min(k, len(y)), self.form, **self._squares(at, j))
            found = (q.to(torch.int64) << 32) + (2**32 - 1 - (where + j.start))
            keys = found if keys is None else torch.cat([keys, found], dim=1)
            keys = keys.sort(dim=1, descending=True).values[:, :k]
        return (keys >> 32).to(torch.int32), 2**32 - 1 - (keys & (2**32 - 1))

    def sampled(self, level: torch.Tensor, rows: torch.Tensor) -> int:
        x, there, found = self.x.take(rows), level[rows], 0
        for j, y in self.y.blocks():
            found += int(survivors.count(x, y, there, self.form, **self._squares(rows, j)).sum())
        return found

    def survivors(
        self, level: torch.Tensor, most: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None:
        ptr = torch.zeros(self.n + 1, dtype=torch.int64, device=self.device)
        for i, j, x, y, squares in self._pairs():
            ptr[1:][j] += survivors.count(x, y, level[i], self.form, **squares)
        ptr.cumsum_(0)
        total = int(ptr[-1])
        if total > most:
            return None
        rows, q = (torch.empty(total, dtype=torch.int32, device=self.device) for _ in range(2))
        cursor, end = ptr[:-1].clone(), ptr[1:]
        for i, j, x, y, squares in self._pairs():
            places = (cursor[j], end[j], rows, q)
            survivors.append(x, y, level[i], *places, self.form, first=i.start, **squares)
        survivors.check_full(cursor, ptr)
        return ptr, rows, q

    def between(self, rows: torch.Tensor, cols: torch.Tensor) -> torch.Tensor:
        """(rows, cols) int32, represented rows and candidates by number."""
        y, at = self._few(cols)
        x = self.x.take(rows)
        here = torch.arange(len(rows), device=self.device)
        return sweeps.block(x, here, y, at, self.form, **self._squares(rows, cols))

    def block(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        out = torch.empty((len(a), len(b)), dtype=torch.int32, device=self.device)
        for i, j, x, y, squares in self._gathered(a, b):
            rows, cols = (torch.arange(len(some), device=self.device) for some in (x, y))
            out[i, j] = sweeps.block(x, rows, y, cols, self.form, **squares)
        return out

    def block_sums(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        out = torch.zeros(len(b), dtype=torch.int64, device=self.device)
        for _, j, x, y, squares in self._gathered(a, b):
            out[j] += sweeps.totals(x, y, self.form, **squares)
        return out

    def _gathered(self, a: torch.Tensor, b: torch.Tensor) -> Iterator[tuple]:
        """As _pairs, of some candidates: places in a and in b."""
        norms = self.y_squares
        for j, y in self.y.pieces(b):
            for i, x in self.y.pieces(a):
                squares = {} if norms is None else {"x_squares": norms[a[i]], "y_squares": norms[b[j]]}
                yield i, j, x, y, squares

    def diagonal(self) -> torch.Tensor:
        return torch.cat([device.own_quanta(y, self.form) for _, y in self.y.blocks()])
