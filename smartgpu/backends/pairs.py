"""What a search for swaps asks of the numpy backend: nearest chosen rows, and the pairs that a swap can matter for.

A swap takes chosen row m out and brings candidate j in. It changes row i by
max(q_ij, second_i if m is i's nearest chosen row else first_i) - first_i: only pairs with q_ij > second_i add anything.
They are stored by column where they fit, at levels that no swap goes below before it is told, and are computed anew,
stripe by stripe, where they do not. Both are the same integers, so no swap depends on the memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from smartgpu.backends.survivors import TASK, Chunk, Survivors, _by_candidate, _Store, row_type, survivors
from smartgpu.backends.tiles import BASE
from smartgpu.constraints.exchange import Exchange

if TYPE_CHECKING:
    from smartgpu.backends.numpy import NumpyBackend

NONE = -(1 << 62)  # below every key of a similarity and a slot
ALL = 0.6  # of some candidates: from there on all are looked at, where they lie
FEW = 1 << 16  # pairs of candidates that one thread weighs at a time, where these are few
MOST_AGAIN = 0.3  # of the rows: with more to compute anew, all are stored anew, by half a sweep


@dataclass
class Standing:
    """What a pass over all candidates goes by. Quanta; slots number the chosen rows.

    first, second  (r,) int32 similarity to the nearest and the second nearest chosen row
    owner          (r,) int32 the slot of the nearest, -1 where its loss would change nothing
    base           (k,) float64 what taking each chosen row out changes, in the objective's units
    unit           what a quantum is worth there
    limits         which row may make way for which
    """

    first: np.ndarray
    second: np.ndarray
    owner: np.ndarray
    base: np.ndarray
    unit: float
    limits: Exchange


class Pairs:
    """The pairs with q_ij > level_i of a pool, level (r,) int32 quanta, q no more than the cap."""

    def __init__(
        self, backend: NumpyBackend, weights: np.ndarray | None, cap: np.ndarray | None, room: float
    ):
        """weights and cap as the backend has them; room: pairs for which there is memory."""
        self.backend, self.limbs, self.weights = backend, weights, backend.whole_weights(weights)
        self.cap, self.room = cap, room
        self.level = backend.new_level()
        self.stored: Survivors | None = None
        self.step = backend.block_size

    def build(self, level: np.ndarray, found: Survivors | None = None, at: np.ndarray | None = None) -> None:
        """Store the pairs above the level (r,), in quanta, where there is room; once.

        found: the pairs above the level `at` (r,), quanta, clipped at the cap. They are taken over, and what they lack
        is computed: of greedy's survivors, stored after a few picks, that is little.
        """
        backend = self.backend
        self.level = (level + int(BASE)).astype(np.int32)
        expected = backend.estimate_survivors(self.level)
        share = max(expected / max(backend.n, 1), 1.0)
        self.step = int(np.clip((TASK >> 3) // share, 8, backend.block_size))
        if 2 * expected > self.room:  # twice: while others are put in between
            return
        if found is not None:
            self.stored = found
            wanted, self.level = self.level, np.maximum(self.level, at + int(BASE)).astype(np.int32)
            lower = np.flatnonzero(wanted < self.level)
            if len(lower) <= MOST_AGAIN * backend.r:
                self.stored.compact(self.level)
                self.extend(lower, wanted[lower] - BASE)
                return
            self.stored, self.level = None, wanted
        del found
        self.stored = survivors(backend, self.level, self.weights)
        backend.pairs += (
            backend.n * (backend.n + 1) // 2 if backend.source.symmetric else backend.r * backend.n
        )
        if self.cap is not None:
            self.stored.clip(self.cap)

    def lowest(self) -> np.ndarray:
        """(r,) the levels, quanta."""
        return self.level - BASE

    def gather(self, cols: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Rows and quanta of some candidates, one after the other, and where each of them ends."""
        if self.stored is not None:
            rows, raw, ends = self.stored._gather(cols)
            return rows, raw - BASE, ends
        parts = [self._stripe(cols[i : i + self.step]) for i in range(0, len(cols), self.step)]
        counts = np.concatenate([np.diff(part.ptr) for part in parts])
        rows, raw = (np.concatenate([getattr(part, name) for part in parts]) for name in ("rows", "raw"))
        return rows, raw - BASE, np.cumsum(counts)

    def _stripes(self) -> Iterator[tuple[int, Survivors]]:
        """(first candidate, pairs) of all, together as stored or stripe by stripe."""
        if self.stored is not None:
            yield 0, self.stored
            return
        for start in range(0, self.backend.n, self.step):
            yield start, self._stripe(np.arange(start, min(start + self.step, self.backend.n)))

    def _stripe(self, cols: np.ndarray) -> Survivors:
        backend, dtype = self.backend, row_type(self.backend.r)
        panel, m = backend.source.panel(cols), len(cols)

        def work(i: slice) -> Chunk:
            raw = backend.raw_tile(i, panel, m)
            if self.cap is not None:
                raw = np.minimum(raw, self.cap[i, None])
            return _by_candidate(np.ascontiguousarray(raw), self.level[i], i.start, dtype)

        chunks = backend.workers.run(work, backend.blocks(backend.r))
        store = _Store(m, sum(len(chunk.rows) for chunk in chunks), dtype)
        store.append(slice(0, m), chunks)
        backend.pairs += backend.r * m
        return Survivors(*store.finish(), self.weights, backend.workers)

    def excess(self, level: np.ndarray) -> np.ndarray:
        """(n,) int64 sum_i w_i max(q_ij - level_i, 0), for levels (r,) that are no lower than the pairs'."""
        raw = (level + int(BASE)).astype(np.int32)
        if self.stored is not None:
            return self.stored.excess(raw)
        out = self.backend.excess(raw, self.limbs)
        if self.cap is not None:  # what lies beyond the cap counts for nothing
            out -= self.backend.excess(np.maximum(raw, self.cap), self.limbs)
        return out

    def best(self, standing: Standing) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """For every candidate: what it adds with nobody going, and the chosen row that had best make way for it.

        Returns (gain (n,) int64 quanta, value (n,) float64, slot (n,) int64). value is the largest unit C + base_m over
        the chosen rows m that may go, C = sum of w_i (min(q_ij, first_i) - second_i) over the rows i nearest to m with
        q_ij > second_i, and slot the lowest for which it is reached; -inf and -1 where none may go.
        """
        value, slot = standing.limits.floor(standing.base)
        gain = np.zeros(self.backend.n, np.int64)
        for start, pairs in self._stripes():

            def work(part: tuple[int, int], start: int = start, pairs: Survivors = pairs) -> None:
                cols = np.arange(start + part[0], start + part[1])
                _weigh(pairs, part, cols, standing, gain, value, slot)

            self.backend.workers.run(work, pairs._parts())
        return gain, value, slot

    def of(self, cols: np.ndarray) -> SomePairs:
        """The pairs of some candidates, ascending, in memory: to look at these alone many times."""
        rows, q, ends = self.gather(cols)
        ptr = np.concatenate([[0], ends])
        held = Survivors(ptr, rows, q + BASE, self.weights, self.backend.workers)
        return SomePairs(cols, held, self.backend.r)

    def top(self, chosen: np.ndarray, depth: int, rows: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        """The chosen rows most similar to each represented row (or to `rows`), the lowest slot of equals first.

        Returns (q (m, depth) int32, slot (m, depth) int32), the most similar first; slot -1 where there are no more.
        """
        backend, source = self.backend, self.backend.source
        m = backend.r if rows is None else len(rows)
        out = np.full((m, depth), NONE)
        blocks = backend.blocks(m)
        parts = backend.blocks(len(chosen))
        panels = [(part.start, source.panel(chosen[part]), part.stop - part.start) for part in parts]

        def work(i: slice) -> None:
            at = i if rows is None else rows[i]
            cap = None if self.cap is None else self.cap[at][:, None]
            for start, panel, width in panels:
                raw = backend._quantised(source, at, i.stop - i.start, panel, source.width(width), width)
                raw = raw if cap is None else np.minimum(raw, cap)
                _merge(out[i], raw, start)

        backend.workers.run(work, blocks)
        backend.pairs += m * len(chosen)
        there = out != NONE
        slot = np.where(there, (1 << 31) - 1 - (out & 0xFFFFFFFF), -1).astype(np.int32)
        return np.where(there, (out >> 32) - int(BASE), -1).astype(np.int32), slot

    def extend(self, rows: np.ndarray, level: np.ndarray) -> None:
        """Lower the level of some rows, ascending, to `level` (m,), where that is lower: what lies between joins."""
        backend = self.backend
        old = self.level[rows]
        new = np.minimum(old, (level + int(BASE)).astype(np.int32))
        self.level[rows] = new
        if self.stored is None or not len(rows):
            return
        source = backend.source

        def work(j: slice) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
            panel, m, got = source.panel(j), j.stop - j.start, []
            for i in backend.blocks(len(rows)):
                raw = backend._quantised(source, rows[i], i.stop - i.start, panel, source.width(m), m)
                raw = raw if self.cap is None else np.minimum(raw, self.cap[rows[i]][:, None])
                at, col = np.nonzero((raw > new[i, None]) & (raw <= old[i, None]))
                got.append((col + j.start, rows[i][at], raw[at, col]))
            return tuple(np.concatenate(part) for part in zip(*got, strict=True))

        found = backend.workers.run(work, backend.blocks(backend.n))
        backend.pairs += len(rows) * backend.n
        cols, at, raw = (np.concatenate(part) for part in zip(*found, strict=True))
        order = np.argsort(cols, kind="stable")
        self.stored = _joined(self.stored, cols[order], at[order], raw[order])


class SomePairs:
    """Pairs of some candidates cols (m,), ascending."""

    def __init__(self, cols: np.ndarray, pairs: Survivors, r: int):
        self.cols, self.pairs = cols, pairs
        order = np.argsort(pairs.rows, kind="stable")
        self.beside = np.repeat(np.arange(len(cols)), np.diff(pairs.ptr))[
            order
        ]  # positions of candidates, by row
        self.ends = np.concatenate([[0], np.cumsum(np.bincount(pairs.rows, minlength=r))])

    def place(self, row: int) -> int:
        """The position of one of the candidates."""
        return int(np.searchsorted(self.cols, row))

    def pair(self, at: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows and quanta of the candidate at a position."""
        held = slice(int(self.pairs.ptr[at]), int(self.pairs.ptr[at + 1]))
        return self.pairs.rows[held], self.pairs.raw[held] - BASE

    def touching(self, rows: np.ndarray) -> np.ndarray:
        """(m,) bool: the candidates that have a pair with a represented row of the mask (r,)."""
        rows = rows.nonzero()[0]
        starts, counts = self.ends[rows], self.ends[rows + 1] - self.ends[rows]
        done = np.cumsum(counts)
        at = np.repeat(starts - done + counts, counts)
        at += np.arange(len(at))
        out = np.zeros(len(self.cols), bool)
        out[self.beside[at]] = True
        return out

    def best(self, standing: Standing, at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(gain, value) as of Pairs.best(), of the candidates at these positions, ascending."""
        value, slot = standing.limits.floor(standing.base)
        gain = np.zeros(len(value), np.int64)
        held, cols = self.pairs, self.cols
        if len(at) < ALL * len(cols):
            rows, raw, ends = held._gather(at)
            held = Survivors(np.concatenate([[0], ends]), rows, raw, held.weights, held.workers)
            cols = cols[at]

        def work(part: tuple[int, int]) -> None:
            _weigh(held, part, cols[slice(*part)], standing, gain, value, slot)

        parts = held._parts(FEW)
        held.workers.run(work, parts) if len(parts) > 1 else [work(part) for part in parts]
        cols = self.cols[at]
        return gain[cols], value[cols]


def _merge(best: np.ndarray, raw: np.ndarray, start: int) -> None:
    """Bring the depth best (m, depth) keys, descending, up to date with more slots from `start` on."""
    depth = best.shape[1]
    if best[0, 0] == NONE and raw.shape[1] > depth:
        keys = _keys(raw, np.arange(start, start + raw.shape[1]))
        best[:] = -np.sort(-np.partition(keys, keys.shape[1] - depth, axis=1)[:, -depth:], axis=1)
        return
    least = (best[:, -1] >> 32)[:, None]
    row, col = np.nonzero(raw > least)  # of equals the slots before stay
    if not len(row):
        return
    some, at = np.unique(row, return_inverse=True)
    keys = np.concatenate([best[some].ravel(), _keys(raw[row, col], col + start)])
    owner = np.concatenate([np.repeat(np.arange(len(some)), depth), at.ravel()])
    order = np.lexsort((-keys, owner))
    counts = np.bincount(owner, minlength=len(some))
    first = np.cumsum(counts) - counts
    best[some] = keys[order][first[:, None] + np.arange(depth)]


def _keys(raw: np.ndarray, slot: np.ndarray) -> np.ndarray:
    """Similarities and slots as numbers that are compared by the one, then the lower other."""
    return (raw.astype(np.int64) << 32) | ((1 << 31) - 1 - slot)


def _weigh(
    pairs: Survivors,
    part: tuple[int, int],
    cols: np.ndarray,
    standing: Standing,
    gain: np.ndarray,
    value: np.ndarray,
    slot: np.ndarray,
) -> None:
    """best() of some stored columns, which are those of candidates cols (m,)."""
    first, last = part
    held = slice(int(pairs.ptr[first]), int(pairs.ptr[last]))
    rows, q = pairs.rows[held], pairs.raw[held] - BASE
    second = standing.second.take(rows)
    alive = np.flatnonzero(q > second)
    if not len(alive):
        return
    rows, q, second = rows.take(alive), q.take(alive), second.take(alive)
    ends = np.searchsorted(alive, pairs.ptr[first + 1 : last + 1] - pairs.ptr[first])
    top, owner = standing.first.take(rows), standing.owner.take(rows)
    over = np.maximum(q - top, 0)
    short = np.minimum(q, top) - second
    if pairs.weights is not None:
        weight = pairs.weights.take(rows)
        over, short = over * weight, short * weight
    running = np.cumsum(over, dtype=np.int64)
    sums = np.where(ends > 0, running[np.maximum(ends - 1, 0)], 0)
    gain[cols] = np.diff(sums, prepend=0)
    owned = np.flatnonzero((owner >= 0) & (short > 0))
    if not len(owned):
        return
    k = len(standing.base)
    col = np.repeat(np.arange(last - first), np.diff(ends, prepend=0))
    key = col.take(owned) * np.int64(k) + owner.take(owned)
    key, total = _totals(key, short.take(owned).astype(np.int64, copy=False), (last - first) * k)
    col, m = np.divmod(key, k)
    worth = total * standing.unit
    worth += standing.base[m]
    allowed = standing.limits.allowed(cols[col], m)
    if allowed is not None:
        col, m, worth = col[allowed], m[allowed], worth[allowed]
        if not len(col):
            return
    begins = np.flatnonzero(np.diff(col, prepend=-1))
    most = np.maximum.reduceat(worth, begins)
    reached = np.flatnonzero(worth == np.repeat(most, np.diff(begins, append=len(col))))
    lowest = reached[np.searchsorted(reached, begins)]  # slots ascend within a candidate
    at, m = cols[col[begins]], m[lowest]
    better = (most > value[at]) | ((most == value[at]) & (m < slot[at]))
    value[at[better]], slot[at[better]] = most[better], m[better]


def _totals(key: np.ndarray, values: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """The distinct keys, ascending, and the sums of their values > 0; exact integers either way."""
    if size <= 4 * len(key):  # as a table, where that is no larger
        table = np.zeros(size, np.int64)
        np.add.at(table, key, values)
        found = np.flatnonzero(table)
        return found, table[found]
    order = np.argsort(key)
    key = key[order]
    runs = np.flatnonzero(np.diff(key, prepend=-1))
    return key[runs], np.add.reduceat(values[order], runs)


def _joined(pairs: Survivors, cols: np.ndarray, rows: np.ndarray, raw: np.ndarray) -> Survivors:
    """The pairs with others put in, which are sorted by candidate."""
    n = len(pairs.ptr) - 1
    more = np.concatenate([[0], np.cumsum(np.bincount(cols, minlength=n))])
    ptr = pairs.ptr + more
    put = ptr[cols] + (pairs.ptr[cols + 1] - pairs.ptr[cols]) + np.arange(len(cols)) - more[cols]
    held = np.ones(len(pairs) + len(cols), bool)
    held[put] = False
    out = []
    for old, new in ((pairs.rows, rows), (pairs.raw, raw)):
        both = np.empty(len(held), old.dtype)
        both[held], both[put] = old, new
        out.append(both)
    return Survivors(ptr, *out, pairs.weights, pairs.workers)
