"""Similarity kinds, by name, and the features from which every backend computes them.

Each kind is a map of the dot product of two prepared feature rows (and their squared norms), so that one matrix product
serves them all. The peers use three different "cosines"; here each has its own name and none is the silent default of
another.
"""

from __future__ import annotations

import difflib
import threading
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import ClassVar

import numpy as np

from smartgpu.workers import Workers

BLOCK = 1 << 17  # numbers converted at a time by one thread: no float64 copy of a whole pool
STEP = (
    1 << 15
)  # where blocks are converted again and again: what is made of them on the way stays in the cache


@dataclass(frozen=True)
class Similarity:
    """A similarity kind. `affine` = (a, b) where s = a x.y + b on the prepared features, else None."""

    name: ClassVar[str]
    affine: ClassVar[tuple[float, float] | None] = None
    positive_semidefinite: ClassVar[bool] = True
    squared_norms: ClassVar[bool] = False  # the map needs |x|^2 and |y|^2 too
    signed: ClassVar[bool] = False  # s may be negative
    by_row: ClassVar[bool] = True  # prepared features of a row do not depend on other represented rows

    def describe(self) -> dict:
        return {"name": self.name, **{f.name: getattr(self, f.name) for f in fields(self)}}


@dataclass(frozen=True)
class Cosine(Similarity):
    """s = x.y / (|x| |y|), in [-1, 1]; 0 where a row is zero."""

    name: ClassVar[str] = "cosine"
    signed: ClassVar[bool] = True
    affine: ClassVar = (1.0, 0.0)


@dataclass(frozen=True)
class CosineShifted(Similarity):
    """s = (1 + cosine) / 2, in [0, 1]; 1/2 where a row is zero (InstructLab, CORDS, DeepCore)."""

    name: ClassVar[str] = "cosine_shifted"
    affine: ClassVar = (0.5, 0.5)


@dataclass(frozen=True)
class CosineSquared(Similarity):
    """s = cosine^2, in [0, 1] (apricot's "cosine")."""

    name: ClassVar[str] = "cosine_squared"


@dataclass(frozen=True)
class Dot(Similarity):
    """s = x.y"""

    name: ClassVar[str] = "dot"
    by_row: ClassVar[bool] = False
    signed: ClassVar[bool] = True
    affine: ClassVar = (1.0, 0.0)


@dataclass(frozen=True)
class Rbf(Similarity):
    """s = exp(-gamma |x - y|^2), gamma > 0 (default 1 / d)."""

    gamma: float | None = None
    name: ClassVar[str] = "rbf"
    squared_norms: ClassVar[bool] = True

    def __post_init__(self) -> None:
        gamma = self.gamma
        if gamma is None:
            return
        if isinstance(gamma, bool) or not isinstance(gamma, (int, float, np.integer, np.floating)):
            raise TypeError(f"gamma must be a number, got {gamma!r}")
        if not (np.isfinite(gamma) and gamma > 0):
            raise ValueError(f"gamma must be positive and finite, got {gamma!r}")
        object.__setattr__(self, "gamma", float(gamma))


@dataclass(frozen=True)
class ExpEuclidean(Similarity):
    """s = exp(-|x - y| / d) (submodlib's "euclidean")."""

    name: ClassVar[str] = "exp_euclidean"
    squared_norms: ClassVar[bool] = True


@dataclass(frozen=True)
class MaxMinusSqeuclidean(Similarity):
    """s = M - |x - y|^2, M the largest squared distance of any pair (apricot's default); one more pass over all."""

    name: ClassVar[str] = "max_minus_sqeuclidean"
    by_row: ClassVar[bool] = False
    positive_semidefinite: ClassVar[bool] = False
    squared_norms: ClassVar[bool] = True


@dataclass(frozen=True)
class Precomputed(Similarity):
    """s_ij = X[i, j]: X is the matrix itself, dense or CSR, n x n or represented x candidates."""

    name: ClassVar[str] = "precomputed"
    by_row: ClassVar[bool] = False


KINDS: dict[str, type[Similarity]] = {
    kind.name: kind
    for kind in (
        Cosine,
        CosineShifted,
        CosineSquared,
        Dot,
        Rbf,
        ExpEuclidean,
        MaxMinusSqeuclidean,
        Precomputed,
    )
}


def choose(value: str, known, what: str) -> str:
    """value if it is one of `known`, else a ValueError that lists them and guesses what was meant."""
    if isinstance(value, str) and value in known:
        return value
    near = difflib.get_close_matches(str(value), list(known), 1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"unknown {what} {value!r}: expected one of {', '.join(known)}{hint}")


def as_similarity(value: str | Similarity) -> Similarity:
    """A kind by name ("cosine") or as an object (Rbf(gamma=0.5)). Raises ValueError for an unknown name."""
    if isinstance(value, Similarity):
        return value
    return KINDS[choose(value, KINDS, "similarity")]()


@dataclass
class Geometry:
    """A pool prepared for one kind: s_ij = unit * map(rows_i . x_j), |map| <= 1.

    x     (n, d) float32, candidates: an array, or Unheld
    rows  (r, d) float32, represented rows; the same object as x where both are the same set
    unit  a power of two (1 unless the kind is unbounded)
    gamma the resolved factor of the distance kinds: s = exp(-gamma D^2) or exp(-gamma D)
    top   M of max_minus_sqeuclidean in prepared units, found by the backend; None before that
    first the number of the candidate that the first represented row is, where these are a run of them; else None
    """

    kind: Similarity
    x: np.ndarray | Unheld
    rows: np.ndarray | Unheld
    unit: float = 1.0
    gamma: float = 0.0
    top: float | None = None
    first: int | None = None

    @property
    def same(self) -> bool:
        return self.rows is self.x

    def swapped(self) -> Geometry:
        """Candidates as represented rows, and these as candidates."""
        return replace(self, x=self.rows, rows=self.x, first=None)

    def columns(self, cols: np.ndarray) -> Geometry:
        """The same with these candidates alone."""
        return replace(self, x=self.x[cols], first=None)

    def part(self, rows: slice) -> Geometry:
        """The same with these represented rows alone: not a copy."""
        some = self.rows.part(rows) if isinstance(self.rows, Unheld) else self.rows[rows]
        return replace(self, rows=some, first=rows.start if self.same else None)


@dataclass
class Matrix:
    """A precomputed similarity, (r, n): dense array, or the CSC arrays (indptr, indices, data) of a sparse one.

    s_ij = unit * value, |value| <= 1; unit is a power of two. asymmetry is max |s_ij - s_ji| (infinite unless r = n),
    lowest is min s_ij, the zeros of a sparse matrix included.
    """

    kind: Similarity
    shape: tuple[int, int]
    dense: np.ndarray | None = None
    csc: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None
    unit: float = 1.0
    asymmetry: float = np.inf
    lowest: float = 0.0

    @property
    def symmetric(self) -> bool:
        return self.asymmetry == 0

    def cut(self, rows: np.ndarray, cols: np.ndarray) -> Matrix:
        """The matrix of these rows and candidates; lowest and asymmetry are those of the whole, as bounds."""
        shape = (len(rows), len(cols))
        if self.dense is not None:
            return replace(self, shape=shape, dense=self.dense[rows][:, cols])
        indptr, indices, data = self.csc
        place = np.full(self.shape[0], -1, np.int64)
        place[rows] = np.arange(len(rows))
        parts = [slice(int(indptr[j]), int(indptr[j + 1])) for j in cols]
        here = [place[indices[part]] for part in parts]
        values = [data[part][found >= 0] for part, found in zip(parts, here, strict=True)]
        here = [found[found >= 0] for found in here]
        ends = np.concatenate([[0], np.cumsum([len(found) for found in here])]).astype(np.int64)
        return replace(self, shape=shape, csc=(ends, np.concatenate(here), np.concatenate(values)))

    def columns(self, cols: np.ndarray) -> Matrix:
        """The same with these candidates alone."""
        shape = (self.shape[0], len(cols))
        if self.dense is not None:
            return replace(self, shape=shape, dense=self.dense[:, cols], asymmetry=np.inf)
        indptr, indices, data = self.csc
        counts = indptr[cols + 1] - indptr[cols]
        ends = np.cumsum(counts)
        at = np.repeat(indptr[cols] - ends + counts, counts) + np.arange(counts.sum())
        held = (np.concatenate([[0], ends]).astype(indptr.dtype), indices[at], data[at])
        return replace(self, shape=shape, csc=held, asymmetry=np.inf)

    def to_dense(self) -> np.ndarray:
        """(r, n) float64."""
        if self.dense is not None:
            return np.asarray(self.dense, np.float64)
        indptr, indices, data = self.csc
        out = np.zeros(self.shape)
        out[indices, np.repeat(np.arange(self.shape[1]), np.diff(indptr))] = data
        return out


def map_dots(pool: Geometry, s: np.ndarray, squares: np.ndarray | None) -> None:
    """Turn dot products into similarities, in place, in the dtype of s. squares: |x|^2 + |y|^2 where the kind needs it.

    With top unknown max_minus_sqeuclidean gives -D^2, whose smallest value is -M.
    """
    kind, number = pool.kind, s.dtype.type
    if isinstance(kind, CosineShifted):
        s *= number(0.5)
        s += number(0.5)
    elif isinstance(kind, CosineSquared):
        np.multiply(s, s, out=s)
    elif kind.squared_norms:
        s *= number(-2)
        s += squares
        np.maximum(s, 0, out=s)
        if isinstance(kind, MaxMinusSqeuclidean):
            np.subtract(number(pool.top or 0), s, out=s)
            return
        if isinstance(kind, ExpEuclidean):
            np.sqrt(s, out=s)
        s *= number(-pool.gamma)
        np.exp(s, out=s)


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
