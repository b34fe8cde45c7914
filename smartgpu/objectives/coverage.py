"""Coverage of features: concave functions of sums over the chosen rows.

f(S) = sum_u w_u phi_u(sum_{j in S} x_ju) for features x >= 0, and its named forms: feature based, max coverage, set
cover; probabilistic set cover is the same with products in the place of sums. Feature values are what counts here: the
similarity plays no part, and everything is computed on the host, whatever the backend.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import numpy as np

from smartgpu.arrays import as_matrix, on_host
from smartgpu.objectives.base import Ground, Objective, per_row
from smartgpu.objectives.cost import Cost, Part, Shape
from smartgpu.objectives.coverage_state import (
    CONCAVE,
    Capped,
    CoverageState,
    Curve,
    Products,
    Smooth,
    in_work,
)
from smartgpu.similarity import Matrix, Similarity, choose
from smartgpu.sparse import SparseRows, as_sparse_rows, is_sparse, rows_of_sets


class Coverage(Objective):
    """What concave functions of sums share; see FeatureBased."""

    similar: ClassVar[bool] = False
    features: Any
    weights: Any

    def __post_init__(self) -> None:
        if self.features is not None:
            object.__setattr__(self, "features", self._checked(self.features, "features"))
        if self.weights is not None:
            u = None if self.features is None else self.features.shape[1]
            object.__setattr__(self, "weights", _weights("weights", self.weights, u))

    @property
    def curve(self) -> Curve:
        """phi, and how rows add up."""
        raise NotImplementedError

    @property
    def masked(self) -> np.ndarray | None:
        """Weights (u,) as they count; None is 1 for all."""
        return self.weights

    def _checked(self, features: Any, name: str) -> Any:
        out = _table(features, name)
        _need(out, name, 0.0, np.inf, "must be >= 0")
        return out

    def _table(self, x: Any) -> Any:
        """The features: given ones, or the pool itself."""
        return on_host_rows(x) if self.features is None else self.features

    def check(self, x: np.ndarray | Matrix, kind: Similarity) -> None:
        n = x.shape[1] if isinstance(x, Matrix) else len(x)
        if self.features is not None:
            if len(self.features) != n:
                raise ValueError(
                    f"features must have one row for each row of X, {n}, got {len(self.features)}"
                )
            return
        if isinstance(x, Matrix):
            raise ValueError(
                f"{self.name} needs features with a precomputed similarity: X says how rows compare, not what they hold"
            )
        self._checked(x, "X")
        self.curve.check(x.shape[1])
        if self.masked is not None and len(self.masked) != x.shape[1]:
            raise ValueError(
                f"weights must have one number per feature of X, {x.shape[1]}, got {len(self.masked)}"
            )

    def take(self, rows: np.ndarray) -> Coverage:
        if self.features is None:
            return self
        out = copy.copy(self)
        object.__setattr__(out, "features", self.features[rows])
        return out

    def cost(self, shape: Shape) -> Cost:
        table = self.features
        stored = table is None and isinstance(shape.x, SparseRows)
        u = (shape.x if table is None else table).shape[1]
        host = shape.footprint.host
        parts = [Part("sums of features", host(64 * u)), Part("gains of candidates", host(32 * shape.n))]
        if table is None and not stored and not isinstance(shape.x, np.ndarray):
            parts.append(Part("features on the host", host(shape.n * u * 4), "host"))
        rows = shape.x if table is None else table
        entries = len(rows.data) if isinstance(rows, SparseRows) else shape.n * u
        if isinstance(rows, SparseRows) and isinstance(self.curve, Capped):
            parts.append(Part("rows of each feature", host(32 * entries)))
        elif isinstance(self.curve, Products) and getattr(rows, "dtype", None) != np.float32:
            parts.append(Part("features in float32", host(4 * entries)))
        scratch = in_work(entries, u, getattr(shape.footprint, "threads", 1))
        return Cost(tuple(parts), host(scratch), work=20.0 * entries)

    def bind(self, ground: Ground) -> CoverageState:
        if ground.outside is not None and self.features is not None:
            raise ValueError(
                f"given rows that are not in the pool have no features: {self.name} cannot count them"
            )
        outside = None if ground.outside is None else on_host(ground.outside)
        if outside is not None:
            self._checked(outside, "given")
        return CoverageState(self._table(ground.x), self.curve, self.masked, ground.workers, outside)

    def describe(self) -> dict:
        out = super().describe()
        for f in fields(self):
            value = getattr(self, f.name)
            if callable(value):
                out[f.name] = f"{value.__module__}.{getattr(value, '__qualname__', type(value).__qualname__)}"
        return out


@dataclass(frozen=True, eq=False)
class FeatureBased(Coverage):
    """f(S) = sum_u w_u phi(sum_{j in S} x_ju): every feature should be there, with diminishing returns.

    features   (n, u) numbers >= 0, dense or scipy sparse; None: the pool X itself, which may then be sparse
    concave    phi: "sqrt"; "log", log(1 + c); "inverse", 1 - 1 / (1 + c); "sigmoid", c / (1 + c), which is the same;
               "saturated", min(c, threshold); or a function of float64 arrays, entry by entry: concave, increasing,
               0 at 0 (a probe of some sums refuses others)
    weights    (u,) numbers >= 0, None is 1 for all
    threshold  of "saturated": a number > 0, or (u,)

    Monotone and submodular. A gain costs the features that its row has. phi w is rounded to 2^-52 of f(V), so that
    sums are exact: sparse and dense features give the same bits, and copies tie. Raises ValueError for negative
    features or weights, and wrong shapes.
    """

    features: Any = None
    concave: str | Callable[[np.ndarray], np.ndarray] = "sqrt"
    weights: Any = None
    threshold: Any = None
    name: ClassVar[str] = "feature_based"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not callable(self.concave):
            choose(self.concave, CONCAVE, "concave")
        if (self.concave == "saturated") != (self.threshold is not None):
            raise ValueError(
                f"threshold goes with concave='saturated', got {self.threshold!r} with {self.concave!r}"
            )
        if self.threshold is not None:
            object.__setattr__(self, "threshold", _threshold(self.threshold))
        if self.features is not None:
            self.curve.check(self.features.shape[1])

    @property
    def curve(self) -> Curve:
        return Capped(self.threshold) if self.concave == "saturated" else Smooth(self.concave)


@dataclass(frozen=True, eq=False)
class MaxCoverage(Coverage):
    """f(S) = sum_u w_u min(sum_{j in S} x_ju, threshold_u): every feature up to a point (apricot's max coverage).

    features (n, u) numbers >= 0, dense or scipy sparse, or None for X itself; threshold > 0, a number or (u,); weights
    (u,) >= 0. FeatureBased with concave="saturated".
    """

    features: Any = None
    threshold: Any = 1.0
    weights: Any = None
    name: ClassVar[str] = "max_coverage"

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "threshold", _threshold(self.threshold))
        if self.features is not None:
            self.curve.check(self.features.shape[1])

    @property
    def curve(self) -> Curve:
        return Capped(self.threshold)


class _Concepts(Coverage):
    """What set cover and its probabilistic form share: query and private concepts."""

    query: Any
    private: Any

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("query", "private"):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, _concepts(name, value, self.features.shape[1]))

    @property
    def masked(self) -> np.ndarray | None:
        if self.query is None and self.private is None:
            return self.weights
        out = np.ones(self.features.shape[1]) if self.weights is None else self.weights.copy()
        if self.query is not None:
            kept = np.zeros_like(out)
            kept[self.query] = out[self.query]
            out = kept
        if self.private is not None:
            out[self.private] = 0.0
        return out


@dataclass(frozen=True, eq=False)
class SetCover(_Concepts):
    """f(S) = the weight of all concepts that some row of S has.

    features  the concepts of each row: a list of sets of numbers, or an (n, u) matrix of 0 and 1, dense or scipy sparse
    weights   (u,) numbers >= 0, None is 1 for all
    query     concept numbers; then only these count: the mutual information with a query
    private   concept numbers; then these do not count: the gain beyond a private set, and with query both

    Monotone, submodular. submodlib's SetCover functions, MutualInformation, ConditionalGain and
    ConditionalMutualInformation with query, private and both.
    """

    features: Any
    weights: Any = None
    query: Any = None
    private: Any = None
    name: ClassVar[str] = "set_cover"

    def _checked(self, features: Any, name: str) -> Any:
        if isinstance(features, (list, tuple)) and any(isinstance(row, (set, frozenset)) for row in features):
            return rows_of_sets(features, None if self.weights is None else len(self.weights), name)
        out = _table(features, name)
        data = out.data if isinstance(out, SparseRows) else out
        if data.dtype != bool and not np.isin(np.unique(data), (0, 1)).all():
            raise ValueError(f"{name} of set_cover must be 0 or 1, or sets of concept numbers")
        return out

    @property
    def curve(self) -> Curve:
        return Capped(1.0)


@dataclass(frozen=True, eq=False)
class ProbabilisticSetCover(_Concepts):
    """f(S) = sum_u w_u (1 - prod_{j in S} (1 - p_ju)): the weight of concepts that S is expected to cover.

    features  (n, u) probabilities p in [0, 1], dense or scipy sparse
    weights, query, private as for SetCover

    Monotone, submodular. submodlib's ProbabilisticSetCover functions.
    """

    features: Any
    weights: Any = None
    query: Any = None
    private: Any = None
    name: ClassVar[str] = "probabilistic_set_cover"

    def _checked(self, features: Any, name: str) -> Any:
        out = _table(features, name)
        _need(out, name, 0.0, 1.0, "of probabilistic_set_cover must be probabilities in [0, 1]")
        return out

    @property
    def curve(self) -> Curve:
        return Products()


# -- checks ---------------------------------------------------------------------------------------------------------


def _table(value: Any, name: str) -> Any:
    """(n, u) features: an array, or SparseRows."""
    return as_sparse_rows(value, name) if is_sparse(value) else as_matrix(value, name)


def on_host_rows(x: Any) -> Any:
    return x if isinstance(x, (np.ndarray, SparseRows)) else on_host(x)


def _need(table: Any, name: str, low: float, high: float, what: str) -> None:
    """ValueError, naming the first row, where a feature lies outside [low, high]."""
    step = max(1, (1 << 20) // max(table.shape[1], 1))
    for i in range(0, len(table), step):
        block = table[i : i + step]
        part = block.data if isinstance(block, SparseRows) else on_host(block)
        least, most = float(part.min(initial=0)), float(part.max(initial=0))
        if least < low or most > high:
            values = block.to_dense() if isinstance(block, SparseRows) else part
            bad = ((values < low) | (values > high)).any(axis=1)
            row = int(np.flatnonzero(bad)[0])
            raise ValueError(f"{name} {what}, got {least if least < low else most}, row {i + row}")


def _weights(name: str, value: Any, u: int | None) -> np.ndarray:
    try:
        out = per_row(name, value)
    except ValueError as error:
        raise ValueError(str(error).replace("per row", "per feature")) from None
    if u is not None and len(out) != u:
        raise ValueError(f"{name} must have one number per feature, {u}, got {len(out)}")
    if (out < 0).any():
        raise ValueError(f"{name} must be >= 0, got {out.min()} at feature {int(out.argmin())}")
    if not out.any():
        raise ValueError(f"{name} must not all be 0: nothing would be covered")
    return out


def _threshold(value: Any) -> Any:
    """A float > 0, or (u,) float64 of them."""
    out = per_row(
        "threshold", np.atleast_1d(np.asarray(value, np.float64) if not hasattr(value, "cpu") else value)
    )
    if (out <= 0).any():
        raise ValueError(f"threshold must be > 0, got {out.min()}")
    return float(out[0]) if np.ndim(value) == 0 else out


def _concepts(name: str, value: Any, u: int) -> np.ndarray:
    out = np.unique(np.array(sorted(value) if isinstance(value, (set, frozenset)) else value))
    if out.size and (out.dtype.kind not in "iu" or out.ndim != 1):
        raise TypeError(f"{name} must be concept numbers (integers), got {value!r}")
    if out.size and (out.min() < 0 or out.max() >= u):
        raise ValueError(
            f"{name} must be concept numbers in [0, {u}), got {out.max() if out.max() >= u else out.min()}"
        )
    return out.astype(np.int64)
