"""Candidates whose features no process holds all of: each has its share, and blocks of them travel.

A pass over all candidates takes them in ascending order, block by block. A block is broadcast by the process that holds
it while all work on the one before, in two buffers that take turns. A ring, in which every process starts with its own
block and hands it on, moves as many bytes: each process gets what it does not hold, once. But there each sees another
order, and survivors, which are stored candidate by candidate as they come, would have to be sorted afterwards.

Some candidates by number, a batch of columns, come by one message: a sum of their bits, which only those who hold them
give. Features arrive as they were made, so that no similarity depends on who computes it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

import numpy as np

from smartgpu.shares import largest

STRIPES = 32  # of a block: as many as there may be threads


class Carrier(Protocol):
    """What is asked of the other processes (smartgpu.ranks.Ranks): all of them ask in the same order."""

    rank: int
    size: int

    def sum(self, values: np.ndarray, what: str) -> np.ndarray: ...
    def each(self, value: int, what: str) -> np.ndarray: ...
    def join(self, values: np.ndarray, rows: slice, r: int, what: str) -> np.ndarray: ...
    def send(self, values: np.ndarray, owner: int, what: str) -> Callable[[], None]: ...


def travelling_bytes(n: int, d: int, size: int, stripe: int) -> int:
    """What a process holds: its share, and two blocks."""
    share = largest(n, size)
    return 4 * d * (share + 2 * min(share, STRIPES * stripe)) + 8


class Travelling:
    """Prepared features (n, d) float32, of which this process holds those of a run of rows.

    x[rows] is (m, d) for a slice within the block that is there now, or for numbers of any rows: then all processes ask
    for the same, at the same time.
    """

    dtype = np.dtype(np.float32)

    def __init__(self, own: np.ndarray, rows: slice, n: int, stripe: int, carrier: Carrier):
        """own: the features of `rows`, this process's share of n; stripe: rows of a stripe of candidates.

        Raises ValueError where the processes' stripes differ: their BLAS adds up in other ways.
        """
        self.own, self.rows, self.carrier = own, rows, carrier
        self.shape = (n, own.shape[1])
        starts = carrier.each(rows.start, "shares")
        if (carrier.each(stripe, "stripes") != stripe).any():
            raise ValueError("candidates travel among processes of one kind of machine and one numpy alone")
        stops = np.append(starts[1:], n)
        step = min(int((stops - starts).max()), STRIPES * stripe)
        self._parts, self._stripes = [], []  # (owner, rows) of each block; its stripes
        for owner, (start, stop) in enumerate(zip(starts.tolist(), stops.tolist(), strict=True)):
            for first in range(start, stop, step):
                part = slice(first, min(first + step, stop))
                self._parts.append((owner, part))
                edges = range(part.start, part.stop, stripe)
                self._stripes.append([slice(i, min(i + stripe, part.stop)) for i in edges])
        self._buffers = [np.empty(step * own.shape[1] + 1, np.int32) for _ in range(2)]
        self._first, self._here = 0, own[:0]  # the block that is there

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def stripes(self) -> list[slice]:
        """All candidates: each stripe within a block, and those of a share as its rows are cut."""
        return [stripe for some in self._stripes for stripe in some]

    def passes(self) -> Iterator[range]:
        """The numbers of the stripes of each block, while it is there: until the next is asked for."""
        coming, done = self._send(0), 0
        for at, (owner, part) in enumerate(self._parts):
            coming()
            held = self._buffers[at % 2][: (part.stop - part.start) * self.shape[1]]
            mine = owner == self.carrier.rank
            self._here = self._mine(part) if mine else held.view(np.float32).reshape(-1, self.shape[1])
            self._first = part.start
            if at + 1 < len(self._parts):
                coming = self._send(at + 1)
            yield range(done, done + len(self._stripes[at]))
            done += len(self._stripes[at])
        self._first, self._here = 0, self.own[:0]

    def _mine(self, part: slice) -> np.ndarray:
        return self.own[part.start - self.rows.start : part.stop - self.rows.start]

    def _send(self, at: int) -> Callable[[], None]:
        """Start the block on its way to all; what is returned waits until it is here."""
        owner, part = self._parts[at]
        size = (part.stop - part.start) * self.shape[1]
        buffer = self._buffers[at % 2][: size + 1]
        if owner == self.carrier.rank:
            buffer[:size] = self._mine(part).reshape(-1).view(np.int32)
        return self.carrier.send(buffer, owner, f"candidates from {part.start}")

    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
        if isinstance(rows, slice):
            first, last = rows.start - self._first, rows.stop - self._first
            if not 0 <= first <= last <= len(self._here):
                raise IndexError(f"candidates {rows.start} to {rows.stop} are not here now")
            return self._here[first:last]
        out = np.zeros((len(rows), self.shape[1]), np.float32)
        mine = np.flatnonzero((rows >= self.rows.start) & (rows < self.rows.stop))
        out[mine] = self.own[rows[mine] - self.rows.start]
        bits = self.carrier.sum(out.reshape(-1).view(np.int32), f"features of {int(rows.sum())}")
        return bits.view(np.float32).reshape(out.shape)

    def join(self, values: np.ndarray) -> np.ndarray:
        """(n,) of all candidates, where each process has those of its share."""
        bits = values.view(f"i{values.itemsize}")
        return self.carrier.join(bits, self.rows, len(self), "numbers of candidates").view(values.dtype)
