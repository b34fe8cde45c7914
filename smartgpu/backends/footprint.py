"""What a selection allocates, in bytes, from shapes alone: what any backend says, and the numpy backend's numbers.

These are upper bounds: a budget is checked against them before any work, so nothing may take more than they say. What
stays is counted apart from what comes and goes (scratch), of which only the largest counts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np

from smartgpu.backends import blas, linear, survivors
from smartgpu.backends.tiles import ROWS
from smartgpu.backends.travelling import travelling_bytes
from smartgpu.features import STEP, block_rows
from smartgpu.similarity import Cosine, CosineShifted, CosineSquared, Matrix, Similarity

TILE = ROWS * (ROWS + 32)  # entries of a tile in the widest padding
SMALL = 1 << 20  # lists, threads, modules imported on the way
WALK = 108  # bytes a pair in work: a tile taken apart, or a task of pairs summed
STRIPE = (
    survivors.TASK >> 3
)  # pairs, about, of candidates whose pairs are computed together where they are not stored
TASKS = 44 * survivors.TASK + 64 * TILE  # of one thread at most
FACTOR = 1 << 20  # entries of a Cholesky factor that are read together
BATCH = 1024  # rows of which a log-determinant keeps the features at hand


class Entries(NamedTuple):
    """A given matrix, (r, n): stored entries of a sparse one (0: it is dense), and those of its fullest tile."""

    r: int
    n: int
    stored: int = 0
    panel: int = 0

    @classmethod
    def of(cls, x: Matrix) -> Entries:
        if x.csc is None:
            return cls(*x.shape)
        lengths = np.sort(np.diff(x.csc[0]))
        return cls(*x.shape, int(lengths.sum()), int(lengths[-ROWS:].sum()))


class Footprint(Protocol):
    """Bytes where a backend computes: what an objective's cost is made of, once for all backends.

    n candidates, r represented rows, k picks, m columns kept at once. `dense` says whether work on tiles is part of it.
    """

    stream: bool  # features stay elsewhere, or are not made, and blocks of them pass by
    shares: int  # processes of which each holds its share of the features, others' passing by; 0 where all are alike
    place: str  # "" on the CPU, else where: "on the device"
    probe: tuple[int, int]  # rows of the runs from which times are estimated: of the first, and at most
    least_batch: int  # columns that must be kept at once
    most_batch: int  # and that may be

    def input(self, n: int, entries: Entries | None) -> int: ...  # to check the input
    def features(
        self, rows: Any, beside: Any = None
    ) -> int: ...  # prepared rows; `beside` has the same geometry
    def matrix(self, entries: Entries) -> int: ...  # a given matrix in the backend's form
    def host(self, size: int) -> int: ...  # arrays that are on the host in any case
    def search(self, n: int) -> int: ...  # the maximizer's bounds and order of candidates
    def picks(self, k: int) -> int: ...

    fixed_name: str

    def fixed(self) -> int: ...  # whatever the shape
    def levels(self, n: int, r: int, weighted: bool) -> int: ...  # facility location's vectors
    def columns(self, r: int, m: int) -> int: ...  # a batch of kept columns
    def dense(self, n: int, r: int, weighted: bool, entries: Entries | None) -> int: ...  # scratch of tiles
    def stored(self, pairs: float, n: int, r: int) -> float: ...  # survivors, as they are built and walked
    def storable(self, room: float, n: int, r: int) -> float: ...  # how many survivors fit: the inverse
    def cheap_bounds(self, n: int, r: int) -> int: ...
    def totals(self, n: int) -> int: ...  # graph cut's vectors
    def products(self, n: int, r: int) -> int: ...  # scratch of float64 products with the features
    def pairs(self, n: int, k: int, numbers: int) -> int: ...  # scratch: picks against candidates
    def residuals(self, n: int) -> int: ...  # log-determinant's vectors
    def inverse(self, ring: int) -> int: ...  # the matrix that residuals come from, and the latest falls
    def falls(self, n: int, ring: int, delay: int) -> int: ...  # scratch of bringing residuals up to date
    def factor(self, n: int, columns: int) -> int: ...  # rows of a Cholesky factor
    def factoring(
        self, n: int, k: int, picks: int, entries: Entries | None
    ) -> int: ...  # scratch: rows of it
    def square(self, n: int) -> int: ...  # scratch of a determinant of all candidates
    def swaps(
        self, n: int, r: int, k: int, pairs: int
    ) -> int: ...  # a search for swaps of k chosen rows; pairs looked at again and again


@dataclass(frozen=True)
class HostFootprint:
    """Of the numpy backend and float64 algebra on the CPU. d features, 0 for a given matrix."""

    d: int
    threads: int
    squared: bool  # the similarity needs squared norms
    half: bool = False  # the input is float16: its check takes a byte for each number that it looks at
    stream: bool = (
        False  # rows stay as they were given, and blocks of features are made when they are asked for
    )
    norms: bool = False  # of each row, where features are not held
    shares: int = (
        0  # processes of which each holds the features of its share of the rows, and others' pass by
    )
    place, fixed_name = "", "threads, lists"
    least_batch, most_batch = 32, 256
    probe = 1000, 4000

    @classmethod
    def of(
        cls, x: Any, kind: Similarity, threads: int, stream: bool = False, shares: int = 0
    ) -> HostFootprint:
        if isinstance(x, Matrix):
            return cls(0, threads, kind.squared_norms)
        norms = isinstance(kind, (Cosine, CosineShifted, CosineSquared))
        half = x.dtype == np.float16
        return cls(x.shape[1], threads, kind.squared_norms, half, stream, norms, shares)

    def input(self, n: int, entries: Entries | None) -> int:
        if entries is None:
            return min(n * self.d, 1 << 20) * self.half + 256 * 1024
        return 24 * entries.stored if entries.stored else 5 << 20

    def features(self, rows: Any, beside: Any = None) -> int:
        """float32, or norms of rows that stay as they are; and what is there of features that travel"""
        return self._features(len(rows))

    def _features(self, count: int) -> int:
        if not self.stream:
            return 4 * count * self.d
        norms = 8 * count * self.norms
        return norms + (travelling_bytes(count, self.d, self.shares, ROWS) if self.shares else 0)

    def matrix(self, entries: Entries) -> int:
        """A sparse one by column; a dense one is read where it is."""
        return 16 * entries.stored + 8 * entries.n if entries.stored else 0

    def host(self, size: int) -> int:
        return size

    def search(self, n: int) -> int:
        """Bounds, what is fresh, the candidates in order."""
        return 64 * n

    def picks(self, k: int) -> int:
        """Row and gain as Python numbers, then as arrays, and those of a checkpoint."""
        return 160 * k

    def fixed(self) -> int:
        return SMALL

    def levels(self, n: int, r: int, weighted: bool) -> int:
        return self.vectors(r) + 24 * r * weighted

    def vectors(self, count: int) -> int:
        """Levels, weights, gains, bounds, and what is made of them on the way: eight 8-byte numbers a row."""
        return 64 * count

    def columns(self, r: int, m: int) -> int:
        """A batch of m kept columns and the partial sums of its excesses."""
        return 4 * (r + 96) * (blas.round_up(max(m, 48), 48) + 32) + 16 * m * (r // 256 + 1)

    def dense(self, n: int, r: int, weighted: bool, entries: Entries | None = None) -> int:
        """The most that comes and goes at one time in the numpy backend."""
        tiles = self._tiles(weighted) + 8 * n * (
            self.threads + 1
        )  # sums over candidates, one set for each thread
        most = max(
            tiles, self._preparing(), 10_500 * self.d + (3 << 20) if self.d else 0
        )  # or the layout's probe
        if entries is not None and entries.panel:
            most += 84 * self.threads * entries.panel + 8 * n
        return most

    def _tiles(self, weighted: bool) -> int:
        """Scratch of all threads for tiles of similarity: rows and panel, the product, what is reduced."""
        product = (2 + self.squared) * 4 * TILE + weighted * 16 * ROWS * ROWS
        making = 0 if self.shares else self._making(2 * ROWS)  # rows of those that travel are held
        return self.threads * (product + 5632 * self.d + making)

    def _making(self, rows: int) -> int:
        """Features made by one thread for a while, and what they are made of on the way."""
        return (4 * rows * self.d + 12 * max(STEP, 16 * self.d)) * self.stream

    def _preparing(self) -> int:
        """Float64 blocks of rows while features are made."""
        return 14 * self.threads * block_rows(self.d) * self.d

    def held(self, n: int, r: int, *, same: bool, batch: int) -> int:
        """All that the numpy backend holds besides survivors, scratch included."""
        sets = n + (not same) * r
        fixed = self._features(n if self.shares else sets) + 4 * sets * self.squared + self.vectors(r)
        return fixed + self.columns(r, batch) + self.dense(n, r, True)

    def stored(self, pairs: float, n: int, r: int) -> float:
        base, pair = self._survivors(n, r)
        return base + pair * pairs + min(self.threads * TASKS, WALK * pairs)

    def storable(self, room: float, n: int, r: int) -> float:
        base, pair = self._survivors(n, r)
        return max((room - base - self.threads * TASKS) / pair, (room - base) / (pair + WALK), 0.0)

    def _survivors(self, n: int, r: int) -> tuple[int, float]:
        """(bytes whatever their number, bytes a pair) of survivors."""
        stripes, rows = n // ROWS + 1, r // ROWS + 1
        if n == r:  # where each column of a tile ends
            chunks = stripes * (stripes // 4 + 1)
        else:  # more rows than candidates are none of these: no tile waits longer than two stripes
            chunks = 3 * rows if r > n else rows * (rows // 4 + 2)
        stripe = 28 * min(1.0, 1.5 * ROWS / n)  # one stripe of candidates while it goes to its place
        return 2400 * chunks + 16 * n, survivors.pair_bytes(r, n) + stripe

    def cheap_bounds(self, n: int, r: int) -> int:
        """Matrices (d, d) in float64, and the blocks that they are made of."""
        rows = max(linear.block_rows(self.d), 512)
        moments = 8 * self.d * self.d * (self.threads + 2)
        moments += self.threads * (16 * rows * self.d + self._making(rows))
        return moments + self.vectors(r + n)

    def totals(self, n: int) -> int:
        return self.vectors(n) + 64 * self.d

    def products(self, n: int, r: int) -> int:
        """Float64 blocks of rows, as LinearFeatures works on them."""
        rows = linear.block_rows(self.d)
        return self.threads * (rows * self.d * 20 + self._making(rows)) + 12 * 256 * self.d

    def pairs(self, n: int, k: int, numbers: int) -> int:
        return 4 * numbers if k > 1 else 0

    def residuals(self, n: int) -> int:
        return 2 * self.vectors(n)

    def inverse(self, ring: int) -> int:
        return 8 * (self.d + 1) ** 2 + 12 * ring * (self.d + 1)

    def falls(self, n: int, ring: int, delay: int) -> int:
        """A batch, and what is screened."""
        width = self.d + 1
        rows = 24 * BATCH + self.threads * (12 * 512 + 24 * 128)
        falls = self.threads * 8 * (512 * ring + self.d * ring) + 16 * width * max(width, delay)
        return max(rows * width + falls, self._preparing())

    def factor(self, n: int, columns: int) -> int:
        return 8 * n * columns

    def factoring(self, n: int, k: int, picks: int, entries: Entries | None) -> int:
        rows = min(n, linear.factor_rows(self.d))
        pairs = (18 + 9 * self.squared) * max(min(k, picks) * rows, 96 * 96)
        most = pairs + 12 * (rows + picks) * self.d + 8 * min(FACTOR, n * k)
        return max(most, self._preparing()) if self.d else most + self.dense(n, n, False, entries)

    def swaps(self, n: int, r: int, k: int, pairs: int) -> int:
        """Nearest chosen rows, twice, and what is worked out on the way; what each candidate is worth; the chosen rows'
        columns or features; pairs while they are weighed."""
        chosen = 4 * self.d if self.d else 8 * r
        return 320 * r + 96 * n + k * (160 + chosen) + 24 * pairs + WALK * min(STRIPE, n * r)

    def square(self, n: int) -> int:
        return 8 * 4 * n * n
