"""Similarity kinds, by name, and what every backend computes them from: prepared features, or a matrix.

Each kind is a map of the dot product of two prepared feature rows (and their squared norms), so that one matrix product
serves them all. The peers use three different "cosines"; here each has its own name and none is the silent default of
another.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, ClassVar

import numpy as np

if TYPE_CHECKING:
    from smartgpu.features import Unheld


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
        some = getattr(self.rows, "part", self.rows.__getitem__)(rows)
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
