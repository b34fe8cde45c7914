"""Functions of what elements cover: features and concepts."""

from __future__ import annotations

from typing import Any

import numpy as np

from smartgpu.compat.submodlib import _checks as check
from smartgpu.compat.submodlib._base import SetFunction
from smartgpu.compat.submodlib._greedy import Problem
from smartgpu.compat.submodlib._targets import _Target
from smartgpu.objectives import Modular
from smartgpu.objectives.coverage import FeatureBased as CoverFeatures
from smartgpu.objectives.coverage import ProbabilisticSetCover, SetCover
from smartgpu.objectives.saturated import ConcaveOverModular as CoverQuery
from smartgpu.similarity import choose
from smartgpu.sparse import rows_of_sets


class _Concave(str):
    """A name of a concave function: "logarithmic", "squareRoot", "inverse"."""

    __slots__ = ()
    name = property(lambda self: str(self))

    def __repr__(self) -> str:
        return f"<Type.{self}>"


CONCAVE = {"logarithmic": "log", "squareRoot": "sqrt", "inverse": "inverse"}


class FeatureBased:
    """Concave functions, as FeatureBased.logarithmic: log(1 + x), squareRoot, inverse: 1 - 1 / (1 + x)."""

    Type = _Concave
    logarithmic, squareRoot, inverse = (_Concave(name) for name in CONCAVE)


class ConcaveOverModular:
    """Concave functions, as ConcaveOverModular.logarithmic; see FeatureBased."""

    Type = _Concave
    logarithmic, squareRoot, inverse = (_Concave(name) for name in CONCAVE)


def _concave(mode: Any) -> str:
    """Ours, or what the peer calls it: its own enum members have a name."""
    return CONCAVE[choose(str(getattr(mode, "name", mode)), CONCAVE, "mode")]


class FeatureBasedFunction(SetFunction):
    """f(X) = sum_u w_u g(sum_{j in X} x_ju), the features scaled to [0, 1], each by its least and largest value.

    sparse  features are lists of (feature, value) pairs; what is not named is 0
    smartgpu.FeatureBased.
    """

    def __init__(self, n, features, numFeatures, sparse, featureWeights=None, mode=FeatureBased.logarithmic):
        self._start(locals())

    def _problem(self) -> Problem:
        u = check.positive("numFeatures", self.numFeatures)
        concave = _concave(self.mode)
        if len(self.features) != self.n:
            raise ValueError(f"features must have {self.n} rows, got {len(self.features)}")
        weights = check.numbers("featureWeights", self.featureWeights, u)
        if self.featureWeights is None:
            self.featureWeights = [1] * u
        table = _scaled(self._listed(u) if self.sparse else self._dense(u))
        return Problem(np.zeros((self.n, 1), np.float32), "dot", CoverFeatures(table, concave, weights))

    def _dense(self, u: int) -> np.ndarray:
        out = np.asarray(self.features)
        out = out.astype(np.result_type(out, np.float32), copy=False)
        if out.shape != (self.n, u):
            raise ValueError(f"features must have shape ({self.n}, {u}), got {out.shape}")
        if not np.isfinite(out).all():
            raise ValueError("features must be finite, got NaN or infinite values")
        return out

    def _listed(self, u: int) -> Any:
        """CSR of (feature, value) pairs."""
        from scipy import sparse

        owner = [i for i, row in enumerate(self.features) for _ in row]
        try:
            pairs = [(int(j), float(value)) for row in self.features for j, value in row]
        except (TypeError, ValueError):
            raise ValueError(
                "features must be lists of (feature, value) pairs where sparse is True"
            ) from None
        wrong = next((j for j, value in pairs if not 0 <= j < u or not np.isfinite(value)), None)
        if wrong is not None:
            raise ValueError(
                f"features must be pairs of a number in [0, {u}) and a finite value, got feature {wrong}"
            )
        columns, values = zip(*pairs, strict=True) if pairs else ((), ())
        return sparse.csr_matrix((np.array(values, float), (owner, columns)), shape=(self.n, u))


def _scaled(table: Any) -> Any:
    """Each column from its least value, 0, to its largest, 1; one that is constant, to rounding, is only shifted."""
    if isinstance(table, np.ndarray):
        low, high = table.min(axis=0), table.max(axis=0)
        wide = high - low >= 10 * np.finfo(table.dtype).eps  # as scikit-learn's MinMaxScaler has it
        return ((table.astype(np.float64) - low) / np.where(wide, high - low, 1.0)).astype(np.float32)
    low, high = (np.asarray(m.todense()).ravel() for m in (table.min(axis=0), table.max(axis=0)))
    if low.any():  # zeros do not stay zeros
        return _scaled(table.toarray())
    return table.multiply(1 / np.where(high > 0, high, 1.0)).tocsr().astype(np.float32)


class ConcaveOverModularFunction(_Target):
    """f(X) = eta sum_{j in X} g(sum_{q in Q} s_jq) + sum_{q in Q} g(sum_{j in X} s_jq).

    For similarities >= 0: elsewhere it is not submodular, or not defined. smartgpu.ConcaveOverModular.
    """

    KERNELS = ("query_sijs",)

    def __init__(
        self,
        n,
        num_queries,
        query_sijs=None,
        data=None,
        queryData=None,
        metric="cosine",
        queryDiversityEta=1,
        mode=ConcaveOverModular.logarithmic,
    ):
        self._start(locals())

    def _from_data(self, kind):
        spec = CoverQuery(self.queryData, _concave(self.mode), float(np.float32(self.queryDiversityEta)))
        return Problem(self.data, kind, spec)

    def _from_kernels(self, query_sijs):
        concave, eta = _concave(self.mode), float(np.float32(self.queryDiversityEta))
        if query_sijs.min(initial=0) < 0:
            raise ValueError(f"query_sijs must be >= 0, got {query_sijs.min()}")
        sums = query_sijs.sum(axis=1, keepdims=True)
        own = eta * _curve(concave)(sums[:, 0])
        spec = Modular(own) if not query_sijs.shape[1] else CoverFeatures(query_sijs, concave) + Modular(own)
        return Problem(np.zeros((self.n, 1), np.float32), "dot", spec)


def _curve(concave: str) -> Any:
    return {"log": np.log1p, "sqrt": np.sqrt, "inverse": lambda c: 1 - 1 / (1 + c)}[concave]


class _Concepts(SetFunction):
    """Functions of the concepts that elements cover; with query_concepts and private_concepts what they leave."""

    def _problem(self) -> Problem:
        u = check.positive("num_concepts", self.num_concepts)
        weights = check.numbers("concept_weights", self.concept_weights, u)
        if self.concept_weights is None:
            self.concept_weights = [1] * u
        only = {
            short: _concepts(name, getattr(self, name), u)
            for short, name in (("query", "query_concepts"), ("private", "private_concepts"))
            if hasattr(self, name)
        }
        return Problem(np.zeros((self.n, 1), np.float32), "dot", self._cover(u, weights, only))

    def _cover(self, u: int, weights: np.ndarray, only: dict[str, Any]) -> Any:
        raise NotImplementedError


def _concepts(name: str, value: Any, u: int) -> set[int]:
    try:
        found = {int(c) for c in value}
    except (TypeError, ValueError):
        raise ValueError(f"{name} must be a set of concept numbers, got {value!r}") from None
    for c in found:
        if not 0 <= c < u:
            raise ValueError(f"{name} must be concept numbers in [0, {u}), got {c}")
    return found


class _Sets(_Concepts):
    def _cover(self, u, weights, only):
        if len(self.cover_set) != self.n:
            raise ValueError(
                f"cover_set must have {self.n} sets, one for each element, got {len(self.cover_set)}"
            )
        try:
            sets = rows_of_sets(self.cover_set, u, "cover_set")
        except TypeError as problem:
            raise ValueError(str(problem)) from None
        return SetCover(sets, weights, **only)


class _Chances(_Concepts):
    def _cover(self, u, weights, only):
        table = np.asarray(self.probs, np.float64)
        if table.shape != (self.n, u):
            raise ValueError(f"probs must have shape ({self.n}, {u}), got {table.shape}")
        return ProbabilisticSetCover(table, weights, **only)


class SetCoverFunction(_Sets):
    """f(X) = the weight of all concepts that X covers. smartgpu.SetCover."""

    def __init__(self, n, cover_set, num_concepts, concept_weights=None):
        self._start(locals())


class SetCoverMutualInformationFunction(_Sets):
    """SetCoverFunction where only the query's concepts count."""

    def __init__(self, n, cover_set, num_concepts, query_concepts, concept_weights=None):
        self._start(locals())


class SetCoverConditionalGainFunction(_Sets):
    """SetCoverFunction where private concepts do not count."""

    def __init__(self, n, cover_set, num_concepts, private_concepts, concept_weights=None):
        self._start(locals())


class SetCoverConditionalMutualInformationFunction(_Sets):
    """SetCoverFunction where the query's concepts count, but for private ones."""

    def __init__(self, n, cover_set, num_concepts, query_concepts, private_concepts, concept_weights=None):
        self._start(locals())


class ProbabilisticSetCoverFunction(_Chances):
    """f(X) = sum_u w_u (1 - prod_{j in X} (1 - p_ju)). smartgpu.ProbabilisticSetCover."""

    def __init__(self, n, probs, num_concepts, concept_weights=None):
        self._start(locals())


class ProbabilisticSetCoverMutualInformationFunction(_Chances):
    """ProbabilisticSetCoverFunction where only the query's concepts count."""

    def __init__(self, n, num_concepts, probs, query_concepts, concept_weights=None):
        self._start(locals())


class ProbabilisticSetCoverConditionalGainFunction(_Chances):
    """ProbabilisticSetCoverFunction where private concepts do not count."""

    def __init__(self, n, num_concepts, probs, private_concepts, concept_weights=None):
        self._start(locals())


class ProbabilisticSetCoverConditionalMutualInformationFunction(_Chances):
    """ProbabilisticSetCoverFunction where the query's concepts count, but for private ones."""

    def __init__(self, n, num_concepts, probs, query_concepts, private_concepts, concept_weights=None):
        self._start(locals())
