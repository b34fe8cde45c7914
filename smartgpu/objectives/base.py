"""What an objective and its state are.

An objective is a frozen spec: parameters and per-row arrays. Bound to a `Ground` it becomes a state, which answers
gains and takes picks. Maximizers know states only.
"""

from __future__ import annotations

import functools
from dataclasses import fields, is_dataclass
from typing import Any, ClassVar, Protocol

import numpy as np

from smartgpu.backends import Backend, open_backend
from smartgpu.backends.linear import LinearFeatures, Wide
from smartgpu.checkpoint import fingerprint
from smartgpu.similarity import Geometry, Matrix, Similarity, prepare
from smartgpu.workers import Workers, default_memory


class Batch(Protocol):
    """Candidates evaluated together; their gains stay fresh while picks are accepted from among them."""

    gains: np.ndarray  # (m,) float64

    def narrow(self, positions: np.ndarray) -> None: ...  # go on with these candidates alone, in this order
    def accept(self, b: int) -> None: ...  # commit the candidate at position b and refresh `gains`


class State(Protocol):
    """An objective bound to a pool, and the set chosen so far.

    A gain computed t picks ago bounds today's gain from above once margin + slack t is added to it: `slack` is 0 for
    submodular objectives, `margin` is 0 where gains are exact and else bounds the rounding of two evaluations.
    """

    n: int
    slack: float
    margin: float
    max_batch: int  # candidates that evaluate() can take at once
    reach: int  # candidates to look at first for the next picks
    active: int  # of them, those worth keeping up to date together: few where that is dear

    def gains(self) -> np.ndarray: ...  # (n,) float64, fresh gains of all candidates
    def screen(
        self, cols: np.ndarray
    ) -> np.ndarray | None: ...  # (m,) better upper bounds, where cheaper than gains
    def bounds(
        self,
    ) -> tuple[np.ndarray, bool]: ...  # (n,) upper bounds on the gains now; True if they are the gains
    def improve(
        self,
    ) -> tuple[np.ndarray, bool] | None: ...  # better bounds, where work since has made them cheap
    def evaluate(self, cols: np.ndarray) -> Batch: ...  # cols (m,) int64, distinct
    def add(self, cols: np.ndarray) -> None: ...  # commit rows in this order
    def value(self) -> float: ...  # f(S)
    def total(self) -> float: ...  # f(V), what choosing everything would give


class Eager:
    """What states have whose gains are cheap: bounds are gains, and there is nothing to improve."""

    reach, active = 256, 128

    def screen(self, cols: np.ndarray) -> None:
        return None

    def bounds(self) -> tuple[np.ndarray, bool]:
        return self.gains(), True

    def improve(self) -> None:
        return None


class Ground:
    """The ground set: n candidates, their similarity, and the backends opened over them.

    x is the checked (n, d) matrix, or a `Matrix` for precomputed similarities.
    """

    def __init__(self, x: np.ndarray | Matrix, kind: Similarity, backend: str = "numpy", **how: Any):
        self.x, self.kind, self._name, self._how = x, kind, backend, how
        self.n = x.shape[1] if isinstance(x, Matrix) else len(x)
        self._geometry: dict[int, Geometry] = {}
        self._backends: dict[int, Backend] = {}

    def geometry(self, represented: np.ndarray | None = None) -> Geometry:
        """Prepared features of the candidates and of the represented rows (None: the candidates)."""
        key = id(represented)
        if key not in self._geometry:
            self._geometry[key] = prepare(self.kind, self.x, represented, self.workers)
        return self._geometry[key]

    def backend(self, represented: np.ndarray | None = None) -> Backend:
        key = id(represented)
        if key not in self._backends:
            pool = self.x if isinstance(self.x, Matrix) else self.geometry(represented)
            self._backends[key] = open_backend(self._name, pool, **self._how)
        return self._backends[key]

    def features(self, represented: np.ndarray | None = None) -> tuple[LinearFeatures, LinearFeatures]:
        """Candidates' and represented rows' features, of one geometry, in float64 arithmetic."""
        geometry = self.geometry(represented)
        return LinearFeatures(geometry, geometry.x, self.workers), LinearFeatures(
            geometry, geometry.rows, self.workers
        )

    def wide(self) -> Wide:
        return Wide(self.geometry(), self.workers)

    @property
    def memory(self) -> int:
        """Bytes that states may take in all."""
        return self._how.get("memory") or 4 * default_memory()

    @functools.cached_property
    def workers(self) -> Workers:
        return Workers(self._how.get("threads"))

    def distinct(self) -> tuple[np.ndarray, np.ndarray]:
        """(first (u,), inverse (n,)): the first row of each set of equal rows, and for each row its number there."""
        if isinstance(self.x, Matrix):
            return np.arange(self.n), np.arange(self.n)
        return distinct_rows(self.features()[0])

    @property
    def opened(self) -> list[Backend]:
        return list(self._backends.values())


def distinct_rows(features: LinearFeatures) -> tuple[np.ndarray, np.ndarray]:
    """(first, inverse) over equal rows, first ascending: by the product with a random vector, then compared. O(n d)."""
    x = features.x
    keys = features.times(np.random.default_rng(0).standard_normal(x.shape[1]))
    _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
    copies = np.flatnonzero(first[inverse] != np.arange(len(x)))
    same = (np.array_equal(x[j], x[first[inverse[j]]]) for j in copies)
    if not all(same):  # different rows with one key
        _, first, inverse = np.unique(x + np.float32(0), axis=0, return_index=True, return_inverse=True)
    order = np.argsort(first)
    rank = np.empty(len(first), np.int64)
    rank[order] = np.arange(len(first))
    return first[order], rank[inverse.reshape(-1)]


class Objective:
    """A set function to maximise. Objectives add, and multiply by weights >= 0: 0.3 * GraphCut() + Modular(scores)."""

    name: ClassVar[str]

    def check(self, x: np.ndarray | Matrix, kind: Similarity) -> None:
        """Raises ValueError where the spec does not fit the pool, before any work."""

    def need_monotone(self, x: np.ndarray | Matrix, kind: Similarity) -> None:
        """Raises ValueError, saying why, where f may fall as rows are added: coverage means nothing then."""

    def bind(self, ground: Ground) -> State:
        raise NotImplementedError

    def take(self, rows: np.ndarray) -> Objective:
        """The spec for the sub-pool of these rows: per-row arrays cut, all else as it is."""
        return self

    def describe(self) -> dict:
        """Name and parameters as JSON values; arrays by shape, dtype and fingerprint."""
        out: dict[str, Any] = {"name": self.name}
        for f in fields(self) if is_dataclass(self) else ():
            value = getattr(self, f.name)
            if isinstance(value, np.ndarray):
                value = {"shape": list(value.shape), "dtype": str(value.dtype), "sha256": fingerprint(value)}
            out[f.name] = value
        return out

    def __mul__(self, weight: float) -> Objective:
        from smartgpu.objectives.weighted_sum import WeightedSum

        return WeightedSum(((weight, self),))

    __rmul__ = __mul__

    def __add__(self, other: Objective) -> Objective:
        from smartgpu.objectives.weighted_sum import WeightedSum

        if other == 0:  # sum([...]) starts from 0
            return self
        if not isinstance(other, Objective):
            return NotImplemented
        return WeightedSum(((1.0, self), (1.0, other)))

    __radd__ = __add__


def per_row(name: str, value: Any, n: int | None = None) -> np.ndarray:
    """A finite float64 vector, of length n where n is given. ValueError names the argument, expected and got."""
    try:
        out = np.asarray(value, np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{name} must be numbers, one per row, got {type(value).__name__}: {error}"
        ) from None
    if out.ndim != 1 or (n is not None and len(out) != n):
        expected = "(n,)" if n is None else f"({n},)"
        raise ValueError(f"{name} must have shape {expected}, one number per row, got {out.shape}")
    bad = np.flatnonzero(~np.isfinite(out))
    if len(bad):
        raise ValueError(
            f"{name} must be finite, got {len(bad)} NaN or infinite values, the first at row {bad[0]}"
        )
    return out
