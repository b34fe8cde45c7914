"""Nearest neighbours on the CPU: the k best candidates of every row, exact, tile by tile."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from smartgpu.backends.tiles import BASE

if TYPE_CHECKING:
    from smartgpu.backends.numpy import NumpyBackend

FACTOR = 32  # pairs of a row that wait at least until they are cut to the best k


def top_k(backend: NumpyBackend, rows: slice, k: int) -> tuple[np.ndarray, np.ndarray]:
    """(values (m, k) int32 quanta, indices (m, k) int64) of these rows: best first, ties to the lower index.

    A row remembers the worst of its k best so far, and of a tile only what is above that: about k ln(n / k) of n.
    """
    cols = backend.blocks(backend.n)

    def work(i: slice) -> tuple[np.ndarray, np.ndarray]:
        best = _Best(i.stop - i.start, k)
        for j in cols:
            raw = backend.raw_tile(i, backend.source.panel(j), j.stop - j.start)
            best.see(raw, j.start)
        return best.done()

    step = backend.block_size
    parts = [slice(i, min(i + step, rows.stop)) for i in range(rows.start, rows.stop, step)]
    found = backend.workers.run(work, parts, "neighbours")
    backend.pairs += (rows.stop - rows.start) * backend.n
    return tuple(np.concatenate(arrays) for arrays in zip(*found, strict=True))


class _Best:
    """The best k of each of m rows among the candidates seen so far, these in ascending order."""

    def __init__(self, m: int, k: int):
        self.m, self.k = m, k
        self.worst = np.full(m, np.iinfo(np.int32).min, np.int32)  # raw; what is not above it cannot matter
        self.found: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []  # (rows, candidates, raw values)
        self.count = self.kept = 0

    def see(self, raw: np.ndarray, start: int) -> None:
        """A tile (m, width) of raw integers, its first column candidate `start`."""
        row, col = np.nonzero(raw > self.worst[:, None])
        if not len(row):
            return
        self.found.append((row, col + start, raw[row, col]))
        self.count += len(row)
        if self.count - self.kept > self.m * max(self.k, FACTOR):
            self._cut()

    def _cut(self) -> None:
        """Drop what is not among the best k of its row."""
        row, col, raw = (np.concatenate(arrays) for arrays in zip(*self.found, strict=True))
        order = np.lexsort((col, -raw.astype(np.int64), row))
        row, col, raw = row[order], col[order], raw[order]
        counts = np.bincount(row, minlength=self.m)
        starts = np.cumsum(counts) - counts
        stay = np.arange(len(row)) - starts[row] < self.k
        self.found = [(row[stay], col[stay], raw[stay])]
        self.count = self.kept = int(stay.sum())
        full = counts >= self.k
        self.worst[full] = raw[starts[full] + self.k - 1]

    def done(self) -> tuple[np.ndarray, np.ndarray]:
        self._cut()
        _, col, raw = self.found[0]
        return (raw - BASE).reshape(self.m, self.k), col.astype(np.int64).reshape(self.m, self.k)
