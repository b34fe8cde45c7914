"""What a search for swaps asks of backend "triton": backends/pairs.py on a device, the same integers.

The pairs stay on the device, and so does every pass over all candidates; the few pairs of a row that comes or goes
travel to the host, which keeps the nearest chosen rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch

from smartgpu.backends import device
from smartgpu.backends.pairs import SomePairs, Standing
from smartgpu.backends.survivors import Survivors
from smartgpu.backends.tiles import BASE
from smartgpu.kernels import swaps, walk
from smartgpu.workers import Workers

if TYPE_CHECKING:
    from smartgpu.backends.triton import TritonBackend

Lists = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # ptr (m + 1,), rows, q: pairs by candidate
STRIPE = 32  # columns at a time where pairs are not stored
WIDE = 128  # columns of a block of similarities


class DevicePairs:
    """As pairs.Pairs, whose methods say what these give; levels are quanta here."""

    def __init__(
        self, backend: TritonBackend, weights: torch.Tensor | None, cap: torch.Tensor | None, room: float
    ):
        self.backend, self.weights, self.cap, self.workers = backend, weights, cap, Workers()
        self.device, self.most = (
            backend.device,
            int(max(room, 0) // 2),
        )  # half: while others are put in between
        self.stored: Lists | None = None

    def build(self, level: np.ndarray) -> None:
        backend = self.backend
        self.level = self._put(level)
        if backend.estimate_survivors(self.level) > self.most:
            return
        self.stored = backend.source.survivors(self.level, self.most)
        backend.pairs += backend.source.sweep_pairs * (1 if self.stored is None else 2)
        if self.stored is not None and self.cap is not None:
            self._clip(*self.stored[1:])

    def _put(self, values: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(values)).to(self.device)

    def _clip(self, rows: torch.Tensor, q: torch.Tensor) -> None:
        for i in range(0, len(q), device.NUMBERS // 4):
            part = slice(i, i + device.NUMBERS // 4)
            torch.minimum(q[part], self.cap[rows[part]], out=q[part])

    def lowest(self) -> np.ndarray:
        return self.level.cpu().numpy()

    def gather(self, cols: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        if self.stored is None:
            parts = [self._stripe(cols[i : i + STRIPE]) for i in range(0, len(cols), STRIPE)]
            counts = torch.cat([ptr.diff() for ptr, _, _ in parts])
            rows, q = (torch.cat([part[field] for part in parts]) for field in (1, 2))
        else:
            ptr, every_row, every_q = self.stored
            at = self._put(cols)
            counts = ptr[at + 1] - ptr[at]
            ends = counts.cumsum(0)
            place = torch.repeat_interleave(ptr[at] - ends + counts, counts)
            place += torch.arange(len(place), device=self.device)
            rows, q = every_row[place], every_q[place]
        return rows.cpu().numpy(), q.cpu().numpy(), counts.cumsum(0).cpu().numpy()

    def _stripe(self, cols: np.ndarray) -> Lists:
        """The pairs of some candidates, computed."""
        columns = self.backend.source.columns(self._put(cols))  # (m, r)
        if self.cap is not None:
            torch.minimum(columns, self.cap, out=columns)
        self.backend.pairs += columns.numel()
        above = columns > self.level
        ptr = torch.zeros(len(cols) + 1, dtype=torch.int64, device=self.device)
        torch.cumsum(above.sum(dim=1), 0, out=ptr[1:])
        at = above.nonzero()
        return ptr, at[:, 1].to(torch.int32), columns[at[:, 0], at[:, 1]]

    def _lists(self, step: int) -> Iterator[tuple[int, Lists]]:
        """(first candidate, pairs) of all candidates, no more than `step` of them at a time."""
        n = self.backend.n
        step = step if self.stored is not None else min(step, STRIPE)
        for a in range(0, n, step):
            b = min(a + step, n)
            if self.stored is None:
                yield a, self._stripe(np.arange(a, b))
            else:
                ptr, rows, q = self.stored
                yield a, (ptr[a : b + 1], rows, q)

    def excess(self, level: np.ndarray) -> np.ndarray:
        at = self._put(level.astype(np.int32))
        if self.stored is not None:
            return walk.sparse_excess(*self.stored, at, weights=self.weights).cpu().numpy()
        out = self.backend.excess(at, self.weights)
        if self.cap is not None:  # what lies beyond the cap counts for nothing
            out -= self.backend.excess(torch.maximum(at, self.cap), self.weights)
        return out

    def best(self, standing: Standing) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        first, second, owner = (self._put(a) for a in (standing.first, standing.second, standing.owner))
        base, k = self._put(standing.base), len(standing.base)
        group, table, cost, room = standing.limits.table()
        group, table = self._put(group), self._put(table)
        cost, room = (None if a is None else self._put(a) for a in (cost, room))
        slots = torch.arange(k, device=self.device)
        out = []
        for a, lists in self._lists(max(1, device.NUMBERS // k)):
            gain, short = swaps.swap_gains(*lists, first, second, owner, k, weights=self.weights)
            some = slice(a, a + len(gain))
            value = short.to(torch.float64).mul_(standing.unit).add_(base)
            del short
            value.masked_fill_(~table[group[some]], -torch.inf)
            if cost is not None:
                value.masked_fill_(cost[some, None] > room, -torch.inf)
            most = value.amax(dim=1)
            lowest = torch.where(value == most[:, None], slots, k).amin(dim=1)
            out.append((gain, most, torch.where(torch.isinf(most), -1, lowest)))
        return tuple(torch.cat(part).cpu().numpy() for part in zip(*out, strict=True))

    def of(self, cols: np.ndarray) -> SomePairs:
        rows, q, ends = self.gather(cols)
        weights = None if self.weights is None else self.weights.cpu().numpy()
        held = Survivors(np.concatenate([[0], ends]), rows, q + BASE, weights, self.workers)
        return SomePairs(cols, held, self.backend.r)

    def _between(self, rows: torch.Tensor, cols: torch.Tensor) -> torch.Tensor:
        """(rows, cols) int32 quanta, clipped."""
        q = self.backend.source.between(rows, cols)
        self.backend.pairs += q.numel()
        return q if self.cap is None else torch.minimum(q, self.cap[rows][:, None])

    def top(self, chosen: np.ndarray, depth: int, rows: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        every = self._put(np.arange(self.backend.r) if rows is None else rows)
        cols, q, slot = self._put(chosen), [], []
        for i in range(0, len(every), device.NUMBERS // WIDE):
            some = every[i : i + device.NUMBERS // WIDE]
            best = torch.full((len(some), depth), -1 << 62, dtype=torch.int64, device=self.device)
            for start in range(0, len(cols), WIDE):
                part = cols[start : start + WIDE]
                order = (1 << 31) - 1 - torch.arange(start, start + len(part), device=self.device)
                keys = (self._between(some, part).to(torch.int64) << 32) | order
                best = torch.cat([best, keys], dim=1).topk(depth, dim=1).values
                del keys  # before the next ones are there
            there = best != -1 << 62
            q.append(torch.where(there, best >> 32, -1).to(torch.int32).cpu())
            slot.append(torch.where(there, (1 << 31) - 1 - (best & 0xFFFFFFFF), -1).to(torch.int32).cpu())
        return torch.cat(q).numpy(), torch.cat(slot).numpy()

    def extend(self, rows: np.ndarray, level: np.ndarray) -> None:
        at = self._put(rows)
        old = self.level[at]
        new = torch.minimum(old, self._put(level))
        self.level[at] = new
        if self.stored is None:
            return
        n, step = self.backend.n, max(1, device.NUMBERS // WIDE)
        cols, into, q = [], [], []
        for i in range(0, len(at), step):
            some, low, high = at[i : i + step], new[i : i + step, None], old[i : i + step, None]
            for j in range(0, n, WIDE):
                block = self._between(some, torch.arange(j, min(j + WIDE, n), device=self.device))
                found = ((block > low) & (block <= high)).nonzero()
                cols.append(found[:, 1] + j)
                into.append(some[found[:, 0]].to(torch.int32))
                q.append(block[found[:, 0], found[:, 1]])
        cols, into, q = torch.cat(cols), torch.cat(into), torch.cat(q)
        order = torch.sort(cols, stable=True).indices
        self.stored = _joined(self.stored, cols[order], into[order], q[order])


def _joined(lists: Lists, cols: torch.Tensor, rows: torch.Tensor, q: torch.Tensor) -> Lists:
    """The pairs with others put in, which are sorted by candidate."""
    ptr = lists[0]
    more = torch.zeros_like(ptr)
    torch.cumsum(torch.bincount(cols, minlength=len(ptr) - 1), 0, out=more[1:])
    put = ptr[cols + 1] + torch.arange(len(cols), device=ptr.device)
    held = torch.ones(len(lists[1]) + len(cols), dtype=torch.bool, device=ptr.device)
    held[put] = False
    out = []
    for old, new in ((lists[1], rows), (lists[2], q)):
        both = torch.empty(len(held), dtype=old.dtype, device=old.device)
        both[held], both[put] = old, new
        out.append(both)
    return ptr + more, *out
