"""Survivors: the exact sparse tail of facility location.

The level never falls, so after some picks only pairs with q_ij > level_i can ever add to a later gain. They are few and
get fewer. Stored by column (8 bytes a pair, 6 below 65,536 rows), they give every later gain without any dense work.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from smartgpu.backends import STORE_ALL
from smartgpu.workers import Workers

if TYPE_CHECKING:
    from smartgpu.backends.numpy import NumpyBackend

TASK = 1 << 19  # pairs worked on at a time by one thread
SHORT = 1 << 16  # rows whose numbers fit 16 bits


@dataclass
class SparseKept:
    """Fresh excesses of some columns; after narrow() the pairs of those that remain, one column after the other."""

    cols: np.ndarray
    excess: np.ndarray
    rows: np.ndarray | None = None
    raw: np.ndarray | None = None
    ends: np.ndarray | None = None


class Survivors:
    """Pairs by column: those of candidate j are rows[ptr[j]:ptr[j + 1]], raw[...]. ptr (n + 1,) int64."""

    alone = True

    def __init__(
        self, ptr: np.ndarray, rows: np.ndarray, raw: np.ndarray, weights: np.ndarray | None, workers: Workers
    ):
        self.ptr, self.rows, self.raw, self.weights, self.workers = ptr, rows, raw, weights, workers

    def __len__(self) -> int:
        return int(self.ptr[-1])

    def excess(self, level: np.ndarray) -> np.ndarray:
        """(n,) int64: exact excesses of all candidates."""
        out = np.empty(len(self.ptr) - 1, np.int64)

        def work(part: tuple[int, int]) -> None:
            first, last = part
            pairs = slice(int(self.ptr[first]), int(self.ptr[last]))
            over = self._over(self.rows[pairs], self.raw[pairs], level)
            out[first:last] = _sums(over, self.ptr[first + 1 : last + 1] - self.ptr[first])

        self.workers.run(work, self._parts())
        return out

    def keep(self, level: np.ndarray, cols: np.ndarray) -> SparseKept:
        """Fresh excesses of m columns."""
        lengths = self.ptr[cols + 1] - self.ptr[cols]
        bounds = _split(np.cumsum(lengths))
        out = np.empty(len(cols), np.int64)

        def work(part: tuple[int, int]) -> None:
            first, last = part
            rows, raw, ends = self._gather(cols[first:last])
            out[first:last] = _sums(self._over(rows, raw, level), ends)

        self.workers.run(work, bounds) if len(bounds) > 1 else [work(part) for part in bounds]
        return SparseKept(cols, out)

    def narrow(self, kept: SparseKept, positions: np.ndarray) -> SparseKept:
        """The kept columns at these positions, with their pairs at hand: what accept() needs."""
        cols = kept.cols[positions]
        return SparseKept(cols, kept.excess[positions], *self._gather(cols))

    def accept(self, kept: SparseKept, b: int, level: np.ndarray) -> None:
        """Raise the level by kept column b, and bring the kept excesses up to date."""
        pairs = slice(int(kept.ends[b - 1]) if b else 0, int(kept.ends[b]))
        rows, raw = kept.rows[pairs], kept.raw[pairs]
        level[rows] = np.maximum(level[rows], raw)
        kept.excess = _sums(self._over(kept.rows, kept.raw, level), kept.ends)

    def clip(self, cap: np.ndarray) -> None:
        """No stored value is larger than its row's cap from here on."""

        def work(part: tuple[int, int]) -> None:
            pairs = slice(int(self.ptr[part[0]]), int(self.ptr[part[1]]))
            np.minimum(self.raw[pairs], cap.take(self.rows[pairs]), out=self.raw[pairs])

        self.workers.run(work, self._parts())

    def compact(self, level: np.ndarray) -> None:
        """Drop the pairs that no longer rise above the level, in place: never more memory than before."""
        parts = self._parts()
        ptr = np.zeros_like(self.ptr)

        def work(part: tuple[int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
            first, last = part
            pairs = slice(int(self.ptr[first]), int(self.ptr[last]))
            rows, raw = self.rows[pairs], self.raw[pairs]
            alive = np.flatnonzero(raw > level.take(rows))
            ends = np.searchsorted(alive, self.ptr[first + 1 : last + 1] - self.ptr[first])
            return rows.take(alive), raw.take(alive), ends

        end = 0
        step = self.workers.threads
        for start in range(0, len(parts), step):  # results lie at or before what they were read from
            group = parts[start : start + step]
            for (first, last), (rows, raw, ends) in zip(group, self.workers.run(work, group), strict=True):
                self.rows[end : end + len(rows)] = rows
                self.raw[end : end + len(raw)] = raw
                ptr[first + 1 : last + 1] = end + ends
                end += len(rows)
        self.ptr = ptr
        self.rows.resize(end, refcheck=False)
        self.raw.resize(end, refcheck=False)

    def above(self, level: np.ndarray, room: float) -> Survivors | None:
        """A copy of the pairs that rise above the level; None where it would take more than `room` bytes."""
        parts, ptr = self._parts(), np.zeros_like(self.ptr)

        def count(part: tuple[int, int]) -> None:
            first, last = part
            pairs = slice(int(self.ptr[first]), int(self.ptr[last]))
            running = np.cumsum(self.raw[pairs] > level.take(self.rows[pairs]), dtype=np.int64)
            ends = _at(running, self.ptr[first + 1 : last + 1] - self.ptr[first])
            ptr[first + 1 : last + 1] = np.diff(ends, prepend=0)

        self.workers.run(count, parts)
        np.cumsum(ptr, out=ptr)
        if ptr.nbytes + int(ptr[-1]) * (self.rows.itemsize + self.raw.itemsize) > room:
            return None
        rows, raw = (np.empty(int(ptr[-1]), held.dtype) for held in (self.rows, self.raw))

        def fill(part: tuple[int, int]) -> None:
            pairs, into = (slice(int(at[part[0]]), int(at[part[1]])) for at in (self.ptr, ptr))
            alive = self.raw[pairs] > level.take(self.rows[pairs])
            rows[into], raw[into] = self.rows[pairs][alive], self.raw[pairs][alive]

        self.workers.run(fill, parts)
        return Survivors(ptr, rows, raw, self.weights, self.workers)

    def lists(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return self.ptr, self.rows, self.raw

    @property
    def nbytes(self) -> int:
        return self.ptr.nbytes + self.rows.nbytes + self.raw.nbytes

    def _parts(self, size: int = TASK) -> list[tuple[int, int]]:
        return _split(self.ptr[1:], size)

    def _gather(self, cols: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Rows and raw values of the columns, one after the other, and where each ends."""
        starts, ends = self.ptr[cols], np.cumsum(self.ptr[cols + 1] - self.ptr[cols])
        lengths = np.diff(ends, prepend=0)
        at = np.repeat(starts - ends + lengths, lengths)
        at += np.arange(len(at))
        return self.rows.take(at), self.raw.take(at), ends

    def _over(self, rows: np.ndarray, raw: np.ndarray, level: np.ndarray) -> np.ndarray:
        over = raw - level.take(rows)
        np.maximum(over, 0, out=over)
        return over if self.weights is None else over * self.weights.take(rows)


def row_type(r: int) -> type:
    """What a row number is stored in: 2 bytes while they suffice."""
    return np.uint16 if r <= SHORT else np.int32


def pair_bytes(r: int, n: int) -> float:
    """While survivors of r rows and n candidates are built: a quarter of them is held twice, and what gathers a stripe.

    Beyond 65,536 rows the pieces lie in more and smaller tiles, and the allocator's holes between them count: 3.6 GB
    were resident at n = 100,000 where 1.3 times the pairs promised 2.9 GB. More rows than candidates are none of these:
    then only the stripe at hand is held twice, and there are no holes to speak of.
    """
    return (1.3 if r <= SHORT or r > n else 1.7) * (np.dtype(row_type(r)).itemsize + 4)


def _split(ends: np.ndarray, size: int = TASK) -> list[tuple[int, int]]:
    """Cut columns, given the running count of pairs, into runs of about `size` pairs: [(first, last), ...]."""
    if not len(ends):
        return []
    cuts = np.searchsorted(ends, np.arange(size, int(ends[-1]), size)) + 1
    edges = np.unique(np.concatenate([[0], cuts, [len(ends)]]))
    return [(int(a), int(b)) for a, b in pairwise(edges)]


def _sums(values: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Sums of runs that end at `ends`, exact: int64 wraps in the running sum, not in the differences."""
    return np.diff(_at(np.cumsum(values, dtype=np.int64), ends), prepend=0)


def _at(running: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """The running sum after each end; 0 at the start."""
    if not len(running):
        return np.zeros(len(ends), np.int64)
    return np.where(ends > 0, running[np.maximum(ends - 1, 0)], 0)


def survivors(backend: NumpyBackend, level: np.ndarray, weights: np.ndarray | None) -> Survivors:
    """Build from tiles: one stripe of candidates after the other, its pairs appended when its last tile is done.

    Where rows are candidates (all, or a run of them), tile (I, J), I <= J, gives the pairs of candidates I with rows J
    and of J with rows I.
    """
    source, n, own = backend.source, backend.n, backend.own
    stripes, rows = backend.stripes, backend.blocks(backend.r)
    pending: dict[int, list] = defaultdict(list)
    dtype = row_type(backend.r)
    every = n * backend.r
    expected = every if every <= STORE_ALL else min(every, int(1.03 * backend.estimate_survivors(level)))
    store = _Store(n, max(1 << 16, expected), dtype)
    ready: tuple[slice, list] | None = None

    def stripe_work(s: int, stripe: slice, panel: object) -> None:
        m = stripe.stop - stripe.start
        place = s - own if own is not None and own <= s < own + len(rows) else None

        def work(at: int) -> None:
            if at < 0:  # the stripe before goes to its place meanwhile
                store.append(*ready)
                return
            i = rows[at]
            raw = np.ascontiguousarray(backend.raw_tile(i, panel, m))
            pending[s].append(_by_candidate(raw, level[i], i.start, dtype))
            if (
                place is not None and at > place
            ):  # s_ij = s_ji: the same tile, candidates I, rows of the stripe
                here = rows[place]
                pending[own + at].append(_by_row(raw, level[here], here.start, dtype))

        tiles = range(place or 0, len(rows))
        for stripe_at in (s, *(own + at for at in tiles if place is not None)):
            pending[stripe_at]  # the lists exist before threads append to them
        backend.workers.run(work, tiles if ready is None else [-1, *tiles])

    numbers = (s for some in backend.passes() for s in some)
    for s in backend.workers.bar(numbers, len(stripes), "survivors"):
        stripe_work(s, stripes[s], source.panel(stripes[s]))
        ready = stripes[s], sorted(pending.pop(s), key=lambda chunk: chunk.start)
    store.append(*ready)
    return Survivors(*store.finish(), weights, backend.workers)


def _by_candidate(raw: np.ndarray, level: np.ndarray, start: int, dtype: type) -> Chunk:
    """Survivors of a tile (rows, candidates), candidate by candidate."""
    alive = np.ascontiguousarray((raw > level[:, None]).T)
    _, ends, row = _positions(alive)
    candidate = np.repeat(np.arange(len(alive)), np.diff(ends, prepend=0))
    taken = raw.take(row * raw.shape[1] + candidate)
    return Chunk(start, ends.astype(np.int32), (row + start).astype(dtype), taken)


def _by_row(raw: np.ndarray, level: np.ndarray, start: int, dtype: type) -> Chunk:
    """The same of a tile (candidates, rows)."""
    at, ends, row = _positions(raw > level)
    return Chunk(start, ends.astype(np.int32), (row + start).astype(dtype), raw.take(at))


def _positions(alive: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where a matrix is true: flat positions, how many up to the end of each row, and the column of each."""
    count, width = alive.shape
    at = np.flatnonzero(alive)
    starts = np.arange(count) * width
    ends = np.searchsorted(at, starts + width)
    return at, ends, at - np.repeat(starts, np.diff(ends, prepend=0))


class Chunk(NamedTuple):
    """Pairs of one tile: those of its c-th candidate are rows[ends[c - 1]:ends[c]], raw[...]."""

    start: int  # of its rows
    ends: np.ndarray
    rows: np.ndarray
    raw: np.ndarray


class _Store:
    """Pairs in candidate order, appended stripe by stripe; grows where the estimate was short."""

    def __init__(self, n: int, capacity: int, dtype: type):
        self.ptr = np.zeros(n + 1, np.int64)
        self.rows, self.raw = (
            np.empty(capacity, dtype),
            np.empty(capacity, np.int32),
        )  # pages come when written
        self.end = 0

    def append(self, stripe: slice, chunks: list[Chunk]) -> None:
        """The pairs of all candidates of a stripe, from the chunks of its tiles."""
        ends = np.stack([chunk.ends for chunk in chunks], axis=1).astype(np.int64)  # (candidates, chunks)
        counts = np.diff(ends, axis=0, prepend=0)
        sizes = ends[-1]
        first = (ends - counts + np.cumsum(sizes) - sizes).ravel()  # of each run, with all chunks in a row
        counts = counts.ravel()
        done = np.cumsum(counts)
        end = self.end + int(done[-1])
        if end > len(self.rows):
            for held in (self.rows, self.raw):
                held.resize(int(1.08 * end) + 1024, refcheck=False)
        at = np.repeat(first - done + counts, counts)
        at += np.arange(len(at))
        for held, parts in ((self.rows, [c.rows for c in chunks]), (self.raw, [c.raw for c in chunks])):
            np.take(np.concatenate(parts), at, out=held[self.end : end], mode="clip")
        self.ptr[stripe.start + 1 : stripe.stop + 1] = self.end + done[len(chunks) - 1 :: len(chunks)]
        self.end = end

    def finish(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        self.rows.resize(self.end, refcheck=False)
        self.raw.resize(self.end, refcheck=False)
        return self.ptr, self.rows, self.raw
