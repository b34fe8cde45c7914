"""Prepared features of a pool: rows as a kind of similarity compares them, held or made again block by block."""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np

from smartgpu.similarity import (
    Cosine,
    CosineShifted,
    CosineSquared,
    Dot,
    ExpEuclidean,
    Geometry,
    MaxMinusSqeuclidean,
    Rbf,
    Similarity,
)
from smartgpu.workers import Workers

BLOCK = 1 << 17  # numbers converted at a time by one thread: no float64 copy of a whole pool
STEP = 1 << 15  # where blocks are converted again and again: what is made on the way stays in the cache


def power_of_two(value: float) -> float:
    """The smallest power of two >= value (1 for 0)."""
    if value <= 0:
        return 1.0
    mantissa, exponent = np.frexp(value)
    return float(np.ldexp(1.0, int(exponent) - (mantissa == 0.5)))


def block_rows(d: int) -> int:
    """Rows of d features that are converted together."""
    return min(max(BLOCK // max(d, 1), 16), 2048)


def row_norms(x: np.ndarray, workers: Workers | None = None, centre: np.ndarray | None = None) -> np.ndarray:
    """|x_i - centre| in float64, (n,), safe against overflow and underflow of the squares."""
    out = np.empty(len(x))

    def work(part: slice) -> None:
        block = _widen(x[part])
        if centre is not None:
            block -= centre
        out[part] = _norms(block)

    _run(workers, work, x)
    return out


def _widen(x: np.ndarray) -> np.ndarray:
    """float64, a copy; finite numbers."""
    return (_from_half(x, np.empty(x.shape, np.float32)) if x.dtype == np.float16 else x).astype(np.float64)


def _from_half(x: np.ndarray, out: np.ndarray) -> np.ndarray:
    """float16 -> float32 by its bits, many times as fast as numpy: 2^112 brings the exponent's bias to float32's."""
    bits = out.view(np.int32)
    bits[...] = x.view(np.int16)
    bits <<= 13
    bits &= np.int32(-0x70002000)  # the sign and fifteen bits more
    out *= np.float32(2.0**112)
    return out


def _norms(block: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore", under="ignore"):
        squares = np.einsum("ij,ij->i", block, block)
    out = np.sqrt(squares)
    unsafe = ~((squares > 1e-280) & (squares < 1e280))
    if unsafe.any():
        part = block[unsafe]
        top = np.abs(part).max(axis=1)
        scale = np.where(top > 0, top, 1.0)
        out[unsafe] = np.sqrt(np.square(part / scale[:, None]).sum(axis=1)) * scale
    return out


def _normalise(x: np.ndarray, workers: Workers | None) -> np.ndarray:
    """x_i / |x_i| in float64, rounded once to float32; a zero row stays zero."""
    out = np.empty(x.shape, np.float32)

    def work(part: slice) -> None:
        block = _widen(x[part])
        np.divide(block, _divisors(_norms(block))[:, None], out=out[part], casting="same_kind")

    _run(workers, work, x)
    return out


def _divisors(norms: np.ndarray) -> np.ndarray:
    return np.where(norms > 0, norms, 1.0)


def _run(workers: Workers | None, work: Callable[[slice], None], x: np.ndarray) -> None:
    step = block_rows(x.shape[1])
    (workers or Workers(1)).run(work, [slice(i, i + step) for i in range(0, len(x), step)])


class Unheld:
    """Prepared features (n, d) of rows that stay as they were given, made anew each time some are asked for.

    x[rows] is (m, d) float32, for a slice, an index array or one number: (given - centre) / divide in float64, rounded
    once to float32, the very bits of features prepared at once. divide is a number, or (n,) one for each row.
    """

    dtype = np.dtype(np.float32)

    def __init__(
        self,
        given: np.ndarray,
        divide: np.ndarray | float,
        centre: np.ndarray | None,
        scratch: threading.local,  # arrays of each thread, for all sets of a pool
    ):
        self.given = np.asarray(given)  # slices of a memmap take long
        self.divide, self.centre, self._held = divide, centre, scratch
        self.shape = given.shape

    def __len__(self) -> int:
        return len(self.given)

    def __getitem__(self, rows: slice | np.ndarray | int) -> np.ndarray:
        if isinstance(rows, (int, np.integer)):
            return self[np.array([rows])][0]
        given = self.given[rows]
        return self._fill(given, self._by_row(rows), np.empty(given.shape, np.float32))

    def lent(self, rows: slice | np.ndarray) -> np.ndarray:
        """x[rows] in memory of this thread, good until it asks again: fresh pages would cost as much as the numbers."""
        given = self.given[rows]
        return self._fill(given, self._by_row(rows), self._scratch("lent", len(given), np.float32))

    def _scratch(self, name: str, rows: int, dtype: type) -> np.ndarray:
        held = getattr(self._held, name, None)
        if held is None or len(held) < rows:
            held = np.empty((rows, self.shape[1]), dtype)
            setattr(self._held, name, held)
        return held[:rows]

    def _by_row(self, rows: slice | np.ndarray) -> np.ndarray | float:
        return self.divide[rows] if isinstance(self.divide, np.ndarray) else self.divide

    def _fill(self, given: np.ndarray, divide: np.ndarray | float, out: np.ndarray) -> np.ndarray:
        step = max(STEP // max(self.shape[1], 1), 16)
        for i in range(0, len(given), step):
            some, block = given[i : i + step], out[i : i + step]
            wide = self._scratch("wide", len(some), np.float64)
            if given.dtype == np.float16:
                some = _from_half(some, block)
            wide[...] = some
            if self.centre is not None:
                wide -= self.centre
            by = divide if np.ndim(divide) == 0 else divide[i : i + step, None]
            np.divide(wide, by, out=block, casting="same_kind")
        return out

    def part(self, rows: slice) -> Unheld:
        """These rows as a set of their own, unheld too."""
        return Unheld(self.given[rows], self._by_row(rows), self.centre, self._held)

    def held(self, workers: Workers | None) -> np.ndarray:
        """All of them, once and for all."""
        out = np.empty(self.shape, np.float32)

        def work(part: slice) -> None:
            self._fill(self.given[part], self._by_row(part), out[part])

        _run(workers, work, self.given)
        return out


def prepare(
    kind: Similarity,
    x: np.ndarray,
    rows: np.ndarray | None = None,
    workers: Workers | None = None,
    hold: bool = True,
) -> Geometry:
    """Features of candidates x (n, d) and represented rows (r, d; None: x itself) for a kind other than precomputed.

    Cosines are normalised in float64 and rounded once; distance kinds are centred on the candidates' mean (distances do
    not change, cancellation does); dot is scaled by a power of two so that every |s| <= 1. O(n d) time.
    hold: False leaves rows as they were given (Unheld), and takes 8 bytes a row for cosines' norms, else none.
    """
    sets, scratch = [x] if rows is None else [x, rows], threading.local()
    unit, gamma = 1.0, 0.0
    if isinstance(kind, (Cosine, CosineShifted, CosineSquared)):
        if hold:
            out = [_normalise(s, workers) for s in sets]
        else:
            out = [Unheld(s, _divisors(row_norms(s, workers)), None, scratch) for s in sets]
        return Geometry(kind, out[0], out[-1])
    centre, scale = None, 1.0
    if isinstance(kind, Dot):
        scale = power_of_two(max(row_norms(s, workers).max(initial=0.0) for s in sets))
        unit = scale * scale
    else:
        centre = np.zeros(x.shape[1])
        step = block_rows(x.shape[1])
        for i in range(0, len(x), step):
            centre += np.asarray(x[i : i + step], np.float64).sum(axis=0) / len(x)
        if isinstance(
            kind, MaxMinusSqeuclidean
        ):  # D^2 <= 4 max |x|^2: in half-scaled features every D^2 <= 1
            scale = 2.0 * power_of_two(max(row_norms(s, workers, centre).max(initial=0.0) for s in sets))
            unit = scale * scale
        if isinstance(kind, Rbf):
            gamma = kind.gamma if kind.gamma is not None else 1.0 / x.shape[1]
        elif isinstance(kind, ExpEuclidean):
            gamma = 1.0 / x.shape[1]
    unheld = [Unheld(s, scale, centre, scratch) for s in sets]
    out = [s.held(workers) for s in unheld] if hold else unheld
    return Geometry(kind, out[0], out[-1], unit, gamma)
