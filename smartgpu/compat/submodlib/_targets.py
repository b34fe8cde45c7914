"""Functions of a query and of a private set: mutual information, conditional gain, and both."""

from __future__ import annotations

from typing import Any

import numpy as np

from smartgpu.compat.submodlib import _checks as check
from smartgpu.compat.submodlib import helper
from smartgpu.compat.submodlib._base import SetFunction
from smartgpu.compat.submodlib._greedy import Problem
from smartgpu.compat.submodlib._similarity import _signed
from smartgpu.objectives import (
    FacilityLocation,
    FacilityLocationCG,
    FacilityLocationCMI,
    FacilityLocationMI,
    FacilityLocationQueryMI,
    GraphCut,
    GraphCutCG,
    GraphCutMI,
    LogDet,
    LogDetCG,
    LogDetCMI,
    LogDetMI,
    Modular,
)
from smartgpu.objectives.given import FacilityLocationBetween, LogDetLess

SIDES = {"data": "n", "query": "num_queries", "private": "num_privates"}  # whose similarity a kernel holds


class _Target(SetFunction):
    """What they share: all of KERNELS are given, or data of each of them.

    With data nothing n x n is made, but for log-determinant where the metric is not a product of features.
    """

    KERNELS: tuple[str, ...] = ()

    def _problem(self) -> Problem:
        for name in ("num_queries", "num_privates"):
            if hasattr(self, name):
                check.count(name, getattr(self, name))
        kind = check.metric(self.metric)
        data = {
            name: getattr(self, name) for name in ("data", "queryData", "privateData") if hasattr(self, name)
        }
        kernels = {name: getattr(self, name) for name in self.KERNELS}
        if all(kernel is not None for kernel in kernels.values()):
            check.unused(self.KERNELS, data)
            for name, kernel in kernels.items():
                check.dense(name, kernel, *(getattr(self, SIDES[side]) for side in _sides(name)))
            return self._from_kernels(**{n: np.asarray(kernel, np.float64) for n, kernel in kernels.items()})
        missing = [name for name, value in data.items() if value is None]
        if missing:
            raise ValueError(
                f"{' and '.join(missing)} missing: give {', '.join(data)}, or all of {', '.join(self.KERNELS)}"
            )
        for name, value in data.items():
            check.rows(name, value, getattr(self, SIDES[name.removesuffix("Data")]))
        if all(len(value) for value in data.values()) and self._has_features(kind):
            return self._from_data(kind)
        return self._from_kernels(**{name: self._computed(name) for name in self.KERNELS})

    def _computed(self, kernel: str) -> np.ndarray:
        rows, columns = (
            self.data if side == "data" else getattr(self, f"{side}Data") for side in _sides(kernel)
        )
        return helper.kernel(columns, self.metric, rows)

    def _has_features(self, kind: Any) -> bool:
        return True

    def _from_data(self, kind: Any) -> Problem:
        raise NotImplementedError

    def _from_kernels(self, **kernels: np.ndarray) -> Problem:
        raise NotImplementedError

    @property
    def _eta(self) -> float:
        return float(np.float32(self.magnificationEta))

    @property
    def _nu(self) -> float:
        return float(np.float32(self.privacyHardness))


def _sides(kernel: str) -> tuple[str, str]:
    """query_private_sijs is of queries (rows) and privates; query_sijs of data and queries."""
    names = kernel.removesuffix("_sijs").split("_")
    return (names[0], names[1]) if len(names) == 2 else ("data", names[0])


def _nearest(kernel: np.ndarray) -> np.ndarray:
    """The largest of each row, 0 at least."""
    return kernel.max(axis=1, initial=0.0)


class FacilityLocationMutualInformationFunction(_Target):
    """f(X) = sum_i min(max_{j in X} s_ij, eta max_{q in Q} s_iq), over all elements i. smartgpu.FacilityLocationMI."""

    KERNELS = ("data_sijs", "query_sijs")

    def __init__(
        self,
        n,
        num_queries,
        data_sijs=None,
        query_sijs=None,
        data=None,
        queryData=None,
        metric="cosine",
        magnificationEta=1,
    ):
        self._start(locals())

    def _from_data(self, kind):
        return Problem(self.data, kind, FacilityLocationMI(self.queryData, self._eta))

    def _from_kernels(self, data_sijs, query_sijs):
        return Problem(
            data_sijs, "precomputed", FacilityLocationBetween(cap=self._eta * _nearest(query_sijs))
        )


class FacilityLocationVariantMutualInformationFunction(_Target):
    """f(X) = sum_{q in Q} max_{j in X} s_qj + eta sum_{j in X} max_{q in Q} s_jq. smartgpu.FacilityLocationQueryMI."""

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
    ):
        self._start(locals())

    def _from_data(self, kind):
        return Problem(
            self.data, kind, FacilityLocationQueryMI(self.queryData, float(self.queryDiversityEta))
        )

    def _from_kernels(self, query_sijs):
        like = Modular(float(self.queryDiversityEta) * _nearest(query_sijs))
        if not query_sijs.shape[1]:
            return Problem(np.zeros((1, self.n)), "precomputed", like)
        return Problem(np.ascontiguousarray(query_sijs.T), "precomputed", FacilityLocation() + like)


class GraphCutMutualInformationFunction(_Target):
    """f(X) = sum_{j in X, q in Q} s_jq, without the factor 2 lambda of its formula, as the peer has it.

    smartgpu.GraphCutMI(lam=1/2).
    """

    KERNELS = ("query_sijs",)

    def __init__(self, n, num_queries, query_sijs=None, data=None, queryData=None, metric="cosine"):
        self._start(locals())

    def _from_data(self, kind):
        return Problem(self.data, kind, GraphCutMI(self.queryData, 0.5))

    def _from_kernels(self, query_sijs):
        return Problem(np.zeros((1, self.n)), "precomputed", Modular(query_sijs.sum(axis=1)))


class FacilityLocationConditionalGainFunction(_Target):
    """f(X) = sum_i max(max_{j in X} s_ij - nu max_{p in P} s_ip, 0). smartgpu.FacilityLocationCG."""

    KERNELS = ("data_sijs", "private_sijs")

    def __init__(
        self,
        n,
        num_privates,
        data_sijs=None,
        private_sijs=None,
        data=None,
        privateData=None,
        metric="cosine",
        privacyHardness=1,
    ):
        self._start(locals())

    def _from_data(self, kind):
        return Problem(self.data, kind, FacilityLocationCG(self.privateData, self._nu))

    def _from_kernels(self, data_sijs, private_sijs):
        return Problem(
            data_sijs, "precomputed", FacilityLocationBetween(floor=self._nu * _nearest(private_sijs))
        )


class GraphCutConditionalGainFunction(_Target):
    """f(X) = graph cut of X - 2 lambda nu sum_{j in X, p in P} s_jp. smartgpu.GraphCutCG."""

    KERNELS = ("data_sijs", "private_sijs")

    def __init__(
        self,
        n,
        num_privates,
        lambdaVal,
        data_sijs=None,
        private_sijs=None,
        data=None,
        privateData=None,
        metric="cosine",
        privacyHardness=1,
    ):
        self._start(locals())

    @property
    def _lam(self) -> float:
        return float(np.float32(self.lambdaVal))

    def _from_data(self, kind):
        spec = GraphCutCG(self.privateData, self._lam, self._nu)
        return Problem(self.data, kind, spec, submodular=not kind.signed)

    def _from_kernels(self, data_sijs, private_sijs):
        unlike = Modular(-2 * self._lam * self._nu * private_sijs.sum(axis=1))
        spec = unlike + GraphCut(self._lam)
        return Problem(data_sijs, "precomputed", spec, submodular=not _signed(data_sijs, "precomputed"))


class FacilityLocationConditionalMutualInformationFunction(_Target):
    """f(X) = sum_i max(min(max_{j in X} s_ij, eta max_{q in Q} s_iq) - nu max_{p in P} s_ip, 0).

    smartgpu.FacilityLocationCMI.
    """

    KERNELS = ("data_sijs", "query_sijs", "private_sijs")

    def __init__(
        self,
        n,
        num_queries,
        num_privates,
        data_sijs=None,
        query_sijs=None,
        private_sijs=None,
        data=None,
        queryData=None,
        privateData=None,
        metric="cosine",
        magnificationEta=1,
        privacyHardness=1,
    ):
        self._start(locals())

    def _from_data(self, kind):
        spec = FacilityLocationCMI(self.queryData, self.privateData, self._eta, self._nu)
        return Problem(self.data, kind, spec)

    def _from_kernels(self, data_sijs, query_sijs, private_sijs):
        spec = FacilityLocationBetween(
            floor=self._nu * _nearest(private_sijs), cap=self._eta * _nearest(query_sijs)
        )
        return Problem(data_sijs, "precomputed", spec)


class _Volume(_Target):
    """Targets of log-determinant: what other rows explain is taken off the kernel, a Schur complement."""

    def _has_features(self, kind: Any) -> bool:
        return kind.affine is not None

    def _rest(self, own: np.ndarray, across: np.ndarray, among: np.ndarray) -> np.ndarray:
        """own - across (among + lambda I)^-1 across'."""
        if not across.shape[1]:
            return own
        inside = among + float(self.lambdaVal) * np.eye(len(among))
        out = own - across @ np.linalg.solve(inside, across.T)
        return (out + out.T) / 2


class LogDeterminantMutualInformationFunction(_Volume):
    """f(X) = log det K_X + log det K_Q - log det K_{X + Q}, K the similarity + lambdaVal I. smartgpu.LogDetMI."""

    KERNELS = ("data_sijs", "query_sijs", "query_query_sijs")

    def __init__(
        self,
        n,
        num_queries,
        lambdaVal,
        data_sijs=None,
        query_sijs=None,
        query_query_sijs=None,
        data=None,
        queryData=None,
        metric="cosine",
        magnificationEta=1,
    ):
        self._start(locals())

    def _from_data(self, kind):
        spec = LogDetMI(self.queryData, float(self.lambdaVal), self._eta)
        return Problem(self.data, kind, spec, submodular=False)

    def _from_kernels(self, data_sijs, query_sijs, query_query_sijs):
        below = self._rest(data_sijs, self._eta * query_sijs, query_query_sijs)
        return Problem(data_sijs, "precomputed", LogDetLess(below, float(self.lambdaVal)), submodular=False)


class LogDeterminantConditionalGainFunction(_Volume):
    """f(X) = log det K_{X + P} - log det K_P, K the similarity + lambdaVal I. smartgpu.LogDetCG."""

    KERNELS = ("data_sijs", "private_sijs", "private_private_sijs")

    def __init__(
        self,
        n,
        num_privates,
        lambdaVal,
        data_sijs=None,
        private_sijs=None,
        private_private_sijs=None,
        data=None,
        privateData=None,
        metric="cosine",
        privacyHardness=1,
    ):
        self._start(locals())

    def _from_data(self, kind):
        return Problem(self.data, kind, LogDetCG(self.privateData, float(self.lambdaVal), self._nu))

    def _from_kernels(self, data_sijs, private_sijs, private_private_sijs):
        rest = self._rest(data_sijs, self._nu * private_sijs, private_private_sijs)
        return Problem(rest, "precomputed", LogDet(float(self.lambdaVal)))


class LogDeterminantConditionalMutualInformationFunction(_Volume):
    """f(X) = log det K_{X + P} + log det K_{Q + P} - log det K_{X + Q + P} - log det K_P. smartgpu.LogDetCMI."""

    KERNELS = (
        "data_sijs",
        "query_sijs",
        "query_query_sijs",
        "private_sijs",
        "private_private_sijs",
        "query_private_sijs",
    )

    def __init__(
        self,
        n,
        num_queries,
        num_privates,
        lambdaVal,
        data_sijs=None,
        query_sijs=None,
        query_query_sijs=None,
        private_sijs=None,
        private_private_sijs=None,
        query_private_sijs=None,
        data=None,
        queryData=None,
        privateData=None,
        metric="cosine",
        magnificationEta=1,
        privacyHardness=1,
    ):
        self._start(locals())

    def _from_data(self, kind):
        spec = LogDetCMI(self.queryData, self.privateData, float(self.lambdaVal), self._eta, self._nu)
        return Problem(self.data, kind, spec, submodular=False)

    def _from_kernels(
        self,
        data_sijs,
        query_sijs,
        query_query_sijs,
        private_sijs,
        private_private_sijs,
        query_private_sijs,
    ):
        private, query = self._nu * private_sijs, self._eta * query_sijs
        both = np.block(
            [[query_query_sijs, query_private_sijs], [query_private_sijs.T, private_private_sijs]]
        )
        beyond = self._rest(data_sijs, private, private_private_sijs)
        below = self._rest(data_sijs, np.concatenate([query, private], axis=1), both)
        return Problem(beyond, "precomputed", LogDetLess(below, float(self.lambdaVal)), submodular=False)
