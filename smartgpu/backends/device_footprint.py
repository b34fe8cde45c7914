"""What a selection allocates on a device, in bytes, from shapes alone: the numbers of backend "triton".

What HostFootprint is for numpy. Blocks in float64 hold device.NUMBERS numbers at most, and scratch is a few of them;
arrays that stay on the host do not count, nor do tensors of the caller that are used in place.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from smartgpu.backends import device, device_linear
from smartgpu.backends.footprint import Entries
from smartgpu.similarity import Dot, Matrix, Similarity

# cuBLAS takes 32 MiB of the allocator at its first float64 product, on Hopper; and the allocator leaves up to 1 MiB of
# a block unsplit, which counts, of the dozen large tensors that are there at one time.
WORKSPACE = 48 << 20
PAIR = 12  # bytes of a survivor: 8, and half as much again while those that stay are copied
SAMPLE = 192  # rows on which survivors are counted beforehand
DIAGONAL = 96  # rows of which a log-determinant first takes the similarities to themselves
WALKED = 8192  # columns of survivors that are walked together
REFRESHED = 16384  # candidates of a log-determinant that are brought up to date together
SMALL = 64 << 10  # every tensor begins at a multiple of 512 bytes


@dataclass(frozen=True)
class DeviceFootprint:
    """Of backend "triton". d features as they are stored, 0 for a given matrix."""

    kind: Similarity
    precision: str
    d: int
    tensors: bool  # the input is checked where the work is done
    real: bool  # a GPU, not the interpreter
    stream: bool = False  # features stay on the host, and blocks of them pass by
    width: int = 4  # bytes of a feature at most
    place, fixed_name, shares = "on the device", "workspace of products", 0
    least_batch, most_batch = 32, 1024

    @property
    def probe(self) -> tuple[int, int]:
        """Large enough for sweeps to fill a GPU; the interpreter takes minutes for what that does in milliseconds."""
        return (4000, 32_000) if self.real else (64, 128)

    @classmethod
    def of(cls, x: Any, kind: Similarity, precision: str, stream: bool = False) -> DeviceFootprint:
        d = 0 if isinstance(x, Matrix) else device.padded(x.shape[1])
        tensors = not isinstance(x, (Matrix, np.ndarray))
        width = 4  # dot products' "auto" depends on represented rows as well
        if not isinstance(x, Matrix) and not (isinstance(kind, Dot) and precision == "auto"):
            dtype, _, _ = device.layout(kind, [x], precision)
            width = dtype.itemsize
        return cls(kind, precision, d, tensors, device.real(), stream, width)

    def _block(self, rows: int, width: int | None = None) -> int:
        """So many rows in float64, or as many as one block holds."""
        return 8 * min(device.NUMBERS, rows * (self.d if width is None else width))

    def input(self, n: int, entries: Entries | None) -> int:
        return 12 * min(device.NUMBERS, n * self.d) if self.tensors else 0

    def features(self, rows: Any, beside: Any = None) -> int:
        """Prepared rows in the dtype of the precision, padded, and their squared norms."""
        sets = [rows] if beside is None else [rows, beside]
        dtype, _, in_place = device.layout(self.kind, sets, self.precision)
        held = 0 if in_place and not self.stream else len(rows)
        if self.stream:  # two blocks
            held = 2 * min(held, device.block_rows(self.d))
        return held * self.d * dtype.itemsize + 4 * len(rows) * self.kind.squared_norms

    def matrix(self, entries: Entries) -> int:
        """Quanta, 4 bytes each; with row numbers, where they are sparse."""
        return 8 * entries.stored + 8 * entries.n if entries.stored else 4 * entries.n * entries.r

    def host(self, size: int) -> int:
        return 0

    def search(self, n: int) -> int:
        return 64 * n

    def picks(self, k: int) -> int:
        return 16 * k

    def fixed(self) -> int:
        return SMALL + WORKSPACE * self.real

    def levels(self, n: int, r: int, weighted: bool) -> int:
        """The level, what sums of it take, and the excesses of all candidates."""
        return 20 * r + 8 * r * weighted + 8 * n

    def columns(self, r: int, m: int) -> int:
        return 4 * r * m + 24 * m + self.width * self.d * m * self.stream

    def dense(self, n: int, r: int, weighted: bool, entries: Entries | None = None) -> int:
        """Features in float64 on the way, or rows of them where survivors are counted; s_jj of all candidates."""
        vectors = 32 * n + 24 * r
        if entries is not None:
            tiles = 40 * min(device.NUMBERS, n * r)
            return vectors + tiles + 56 * min(entries.stored, device.NUMBERS // 4 + r)
        if self.stream:  # a block of candidates
            vectors += self._block(n) * self.width // 8 + 8 * n
        return max(self._prepared(max(n, r)), vectors + min(r, SAMPLE) * (self.width * self.d + 8))

    def _prepared(self, rows: int) -> int:
        """One block in its own dtype, it and the block before it in float64, and vectors of its rows."""
        blocks = 3 * self._block(rows) + self._block(rows) * self.width // 8 * self.stream
        return blocks + 64 * min(rows, device.block_rows(self.d) + 1)

    def held(self, n: int, r: int, owned: int, *, batch: int, weighted: bool, entries: Entries | None) -> int:
        """All that the backend holds besides survivors, scratch included; `owned` is what its source does."""
        fixed = owned + self.levels(n, r, weighted)
        return fixed + self.columns(r, batch) + self.dense(n, r, weighted, entries)

    def stored(self, pairs: float, n: int, r: int) -> float:
        return self._lists(n) + PAIR * pairs

    def storable(self, room: float, n: int, r: int) -> float:
        return max((room - self._lists(n)) / PAIR, 0.0)

    def _lists(self, n: int) -> int:
        """Where each candidate's survivors begin, their numbers, and the columns that are walked."""
        return 32 * n + 64 * min(n, WALKED)

    def cheap_bounds(self, n: int, r: int) -> int:
        """Matrices (d, d), blocks of rows, and weights and products of two vectors."""
        return 4 * self._block(max(n, r)) + 24 * self.d * self.d + 24 * r + 40 * n

    def totals(self, n: int) -> int:
        return 24 * n

    def products(self, n: int, r: int) -> int:
        return self._prepared(max(n, r)) + (24 + 8 * self.stream) * max(n, r)

    def pairs(self, n: int, k: int, numbers: int) -> int:
        """Features of the picks, gathered, and sums or similarities."""
        if k <= 1:
            return 0
        together = min(n, 4096)
        gathered = min(k, numbers)
        if self.stream:  # a block of picks, and one of candidates
            gathered = min(gathered, device.block_rows(self.d)) + min(together, device.block_rows(self.d))
        return gathered * self.width * self.d + 16 * k + 24 * together + 4 * min(numbers, k * together)

    def residuals(self, n: int) -> int:
        """Factors of the rows, twice, and which rows are distinct."""
        return 24 * n

    def inverse(self, ring: int) -> int:
        return 8 * (self.d + 1) * (self.d + 1 + ring)

    def falls(self, n: int, ring: int, delay: int) -> int:
        width, rows = self.d + 1, min(n, REFRESHED)
        products = 3 * self._block(n, width) + 8 * width * (width + 2 * ring)
        return max(self._prepared(n), products + 40 * n) + 72 * rows

    def factor(self, n: int, columns: int) -> int:
        return 8 * n * columns

    def factoring(self, n: int, k: int, picks: int, entries: Entries | None) -> int:
        """Features of some rows and of the picks in float64, and their similarities on the way."""
        rows, first = min(n, REFRESHED), min(n, DIAGONAL)
        most, together = min(k, picks), min(n, device_linear.factor_step(self.d))
        pairs = max(most * together, first * first)
        work = (40 if self.d else 20) * pairs + 24 * (max(together, first) + max(most, first)) * self.d
        work += 72 * rows + 40 * n
        return max(work, self._prepared(n)) if self.d else work + self.dense(n, n, False, entries)

    def swaps(self, n: int, r: int, k: int, pairs: int) -> int:
        """Standings of the rows, tables of candidates and chosen rows, and the features of these."""
        tables = 8 * max(min(device.NUMBERS, n * k), k)
        chosen = self.width * self.d if self.d else 8 * r
        return 32 * r + 64 * n + 5 * tables + k * (160 + chosen)

    def square(self, n: int) -> int:
        return 8 * 5 * n * n
