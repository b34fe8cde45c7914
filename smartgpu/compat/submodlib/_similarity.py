"""Functions of a similarity between elements: facility location, graph cut, log-determinant, disparity, clustered."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from smartgpu.compat.submodlib import _checks as check
from smartgpu.compat.submodlib import helper
from smartgpu.compat.submodlib._base import SetFunction
from smartgpu.compat.submodlib._greedy import Problem
from smartgpu.objectives import FacilityLocation, GraphCut, LogDet, Modular, State
from smartgpu.objectives.base import Eager
from smartgpu.objectives.clustered import Clustered
from smartgpu.objectives.disparity import DisparityMin, DisparitySum
from smartgpu.similarity import choose

MODES = ("dense", "sparse")
BINDINGS = ("list", "numpyarray", "array", "array32", "array64")


class _OfKernel(SetFunction):
    """What functions of one square kernel share: sijs, or data from which it is computed."""

    MODES = MODES

    @property
    def sijs(self):
        """The kernel that was given; else it is computed when it is first asked for, which nothing else does."""
        if self._sijs is None and self.mode in MODES:
            rows = self.data if not getattr(self, "separate_rep", None) else self.data_rep
            self._sijs = helper.kernel(self.data, self.metric, rows)
            if self.mode == "sparse":
                self._sijs = helper.symmetrised_neighbors(self.data, self.metric, self._neighbors)
        return self._sijs

    @sijs.setter
    def sijs(self, value):
        self._sijs = value

    def _pool(self) -> tuple[Any, Any]:
        """What the package selects from, and by which similarity."""
        choose(self.mode, self.MODES, "mode")
        given = self._sijs is not None and self.mode != "sparse"
        self._neighbors = check.neighbors(self.mode, None if given else self.num_neighbors, self.n)
        if self._sijs is not None:
            check.unused(["sijs"], {"data": self.data})
            if self.mode == "sparse":
                return helper.symmetrised(check.sparse("sijs", self._sijs, self.n)), "precomputed"
            if self.mode == "dense":
                return check.dense("sijs", self._sijs, self.n, self.n), "precomputed"
            raise ValueError(f"sijs is for modes dense and sparse, got mode {self.mode!r}")
        if self.data is None:
            raise ValueError("data is missing: give the features of the elements, or sijs, their similarity")
        kind = check.metric(self.metric)
        check.rows("data", self.data, self.n)
        if self.mode == "sparse":
            self._sijs = helper.symmetrised_neighbors(self.data, self.metric, self._neighbors)
            return self._sijs, "precomputed"
        return self.data, kind


class FacilityLocationFunction(_OfKernel):
    """f(X) = sum_{i in U} max(0, max_{j in X} s_ij), U the elements, or with separate_rep another set.

    mode "clustered" compares elements of one cluster alone: cluster_labels, or else Birch's clusters.
    smartgpu.FacilityLocation. pybind_mode and create_dense_cpp_kernel_in_python are checked and change nothing.
    """

    MODES = ("dense", "sparse", "clustered")

    def __init__(
        self,
        n,
        mode,
        separate_rep=None,
        n_rep=None,
        sijs=None,
        data=None,
        data_rep=None,
        num_clusters=None,
        cluster_labels=None,
        metric="cosine",
        num_neighbors=None,
        create_dense_cpp_kernel_in_python=True,
        pybind_mode="array",
    ):
        self._start(locals())

    def _problem(self) -> Problem:
        choose(self.pybind_mode, BINDINGS, "pybind_mode")
        if self._sijs is not None and not self.create_dense_cpp_kernel_in_python:
            raise ValueError("create_dense_cpp_kernel_in_python=False goes with data, got sijs")
        if self.separate_rep:
            return self._between_sets()
        if isinstance(self._sijs, np.ndarray) and self.separate_rep is None:
            raise ValueError("separate_rep must be True or False with a dense sijs, got None")
        self.separate_rep = False
        x, kind = self._pool()
        check.unused(["separate_rep=False"], {"data_rep": self.data_rep})
        if self.mode == "clustered":
            return self._clustered(x, kind)
        return Problem(x, kind, FacilityLocation())

    def _between_sets(self) -> Problem:
        r = check.positive("n_rep", 0 if self.n_rep is None else self.n_rep)
        if self.mode != "dense":
            raise ValueError(f"separate_rep=True is for mode 'dense', got {self.mode!r}")
        if self._sijs is not None:
            check.unused(["sijs"], {"data": self.data, "data_rep": self.data_rep})
            return Problem(check.dense("sijs", self._sijs, r, self.n), "precomputed", FacilityLocation())
        if self.data is None or self.data_rep is None:
            raise ValueError("data and data_rep are needed with separate_rep=True where there is no sijs")
        spec = FacilityLocation(represented=check.rows("data_rep", self.data_rep, r))
        return Problem(check.rows("data", self.data, self.n), check.metric(self.metric), spec)

    def _clustered(self, x: Any, kind: Any) -> Problem:
        lab, self.num_clusters = helper.clusters(np.asarray(x), self.cluster_labels, self.num_clusters)
        self.clusters = [set(np.flatnonzero(lab == c).tolist()) for c in range(self.num_clusters)]
        spec, negative = Clustered(FacilityLocation(), lab), _negative(x, kind, lab)
        if not negative.any():
            return Problem(x, kind, spec)
        return Problem(
            x, kind, spec, submodular=False, wrap=lambda state: FirstOfCluster(state, lab, negative)
        )


def _negative(x: Any, kind: Any, lab: np.ndarray) -> np.ndarray:
    """(n,) what similarities below 0 in its own cluster add up to for each element."""
    out = np.zeros(len(lab))
    if kind.signed:
        for c in np.unique(lab):
            rows = np.flatnonzero(lab == c)
            for i in range(0, len(rows), 1024):
                s = helper.kernel(x[rows[i : i + 1024]], kind.name, x[rows])
                out[rows[i : i + 1024]] = np.minimum(s, 0).sum(axis=0)
    return out


class FirstOfCluster(Eager):
    """Facility location in clusters, whose gain for the first element of a cluster counts similarities below 0.

    That is how the peer picks; value() is f, to which they do not count.
    """

    slack = margin = 0.0

    def __init__(self, state: State, lab: np.ndarray, negative: np.ndarray):
        self.state, self.lab, self.n, self.max_batch = state, lab, state.n, state.max_batch
        self.less = negative.copy()

    def gains(self) -> np.ndarray:
        return self.state.gains() + self.less

    def evaluate(self, cols: np.ndarray) -> Told:
        return Told(self.state.evaluate(cols).gains + self.less[cols])

    def add(self, cols: np.ndarray) -> None:
        self.state.add(cols)
        self.less[np.isin(self.lab, self.lab[cols])] = 0.0

    def value(self) -> float:
        return self.state.value()


@dataclass
class Told:
    """Gains of candidates, of which none will be accepted."""

    gains: np.ndarray


class GraphCutFunction(_OfKernel):
    """f(X) = sum_{i in U, j in X} s_ij - lambda sum_{i, j in X} s_ij over ordered pairs, the diagonal included.

    mgsijs (n_rep, n) and ggsijs (n, n) are U's and the elements' kernels; without separate_rep one of them. lambdaVal
    is rounded to float32, as the peer rounds it. smartgpu.GraphCut.
    """

    def __init__(
        self,
        n,
        mode,
        lambdaVal,
        separate_rep=None,
        n_rep=None,
        mgsijs=None,
        ggsijs=None,
        data=None,
        data_rep=None,
        metric="cosine",
        num_neighbors=None,
    ):
        self._start(locals())

    @property
    def sijs(self):
        return self.ggsijs if self.ggsijs is not None or self.separate_rep else self.mgsijs

    def _problem(self) -> Problem:
        self._lam = float(np.float32(self.lambdaVal))
        if self.separate_rep:
            return self._between_sets()
        if self.mgsijs is not None and self.ggsijs is not None:
            raise ValueError("give mgsijs or ggsijs, not both, where separate_rep is not True")
        self._sijs = self.mgsijs if self.ggsijs is None else self.ggsijs
        x, kind = self._pool()
        self.separate_rep = False
        return Problem(x, kind, GraphCut(self._lam), submodular=not _signed(x, kind))

    def _between_sets(self) -> Problem:
        r = check.positive("n_rep", 0 if self.n_rep is None else self.n_rep)
        if self.mode != "dense":
            raise ValueError(f"separate_rep=True is for mode 'dense', got {self.mode!r}")
        check.neighbors(self.mode, None if self.ggsijs is not None else self.num_neighbors, self.n)
        if (self.mgsijs is None or self.ggsijs is None) and self.data is None:
            raise ValueError("data is missing: it is needed where mgsijs or ggsijs is not given")
        if self.mgsijs is None and self.data_rep is None:
            raise ValueError("data_rep is missing: it is needed where mgsijs is not given")
        if self.data is not None:
            check.rows("data", self.data, self.n)
        if self.data_rep is not None:
            check.rows("data_rep", self.data_rep, r)
        kind = check.metric(self.metric)
        if self.mgsijs is None and self.ggsijs is None:
            spec = GraphCut(self._lam, self.data_rep)
            return Problem(self.data, kind, spec, submodular=not _signed(self.data, kind))
        across, inside = self.mgsijs, self.ggsijs
        if across is None:
            across = helper.kernel(self.data, self.metric, self.data_rep)
        if inside is None:
            inside = helper.kernel(self.data, self.metric)
        check.dense("mgsijs", across, r, self.n)
        check.dense("ggsijs", inside, self.n, self.n)
        # graph cut of the elements alone, and by how much more U resembles each of them than they do themselves
        more = across.sum(axis=0, dtype=np.float64) - inside.sum(axis=0, dtype=np.float64)
        spec = Modular(more) + GraphCut(self._lam)
        return Problem(inside, "precomputed", spec, submodular=not _signed(inside, "precomputed"))


class LogDeterminantFunction(_OfKernel):
    """f(X) = log det(s_XX + lambdaVal I). smartgpu.LogDet."""

    def __init__(self, n, mode, lambdaVal, sijs=None, data=None, metric="cosine", num_neighbors=None):
        self._start(locals())

    def _problem(self) -> Problem:
        x, kind = self._pool()
        lam = LogDet(float(self.lambdaVal)).lam
        if (
            kind == "precomputed" and lam >= 1e-3 * abs(x.diagonal()).max()
        ):  # not lost where a matrix is rounded
            # s + lambda I must be positive definite, s itself need not be: kernels of nearest neighbours seldom are
            return Problem(helper.ridged(x, lam), kind, LogDet(0.0))
        return Problem(x, kind, LogDet(lam))


class DisparitySumFunction(_OfKernel):
    """f(X) = sum over pairs in X of 1 - s_ij, for similarities in [0, 1]. Not submodular. smartgpu.DisparitySum."""

    def __init__(self, n, mode, sijs=None, data=None, metric="cosine", num_neighbors=None):
        self._start(locals())

    def _problem(self) -> Problem:
        return Problem(*self._pool(), DisparitySum(), submodular=False)


class DisparityMinFunction(_OfKernel):
    """f(X) = min over pairs in X of 1 - s_ij, for similarities in [0, 1]. Not submodular. smartgpu.DisparityMin."""

    def __init__(self, n, mode, sijs=None, data=None, metric="cosine", num_neighbors=None):
        self._start(locals())

    def _problem(self) -> Problem:
        return Problem(*self._pool(), DisparityMin(), submodular=False)


class ClusteredFunction(SetFunction):
    """f(X) = sum over clusters C of f_C(X in C), f_C the function f_name of C's elements alone. smartgpu.Clustered.

    f_name   "FacilityLocation", "GraphCut", "LogDeterminant", "DisparitySum", "DisparityMin"; lambdaVal is theirs
    mode     "single" or "multi": one and the same here, no kernel is made
    cluster_lab  a number in [0, num_clusters) for each element; without it Birch makes clusters
    """

    def __init__(
        self, n, f_name, data, mode, cluster_lab=None, num_clusters=None, metric="cosine", lambdaVal=1
    ):
        self._start(locals())

    def _problem(self) -> Problem:
        choose(self.mode, ("single", "multi"), "mode")
        kind = check.metric(self.metric)
        x = np.asarray(check.rows("data", self.data, self.n))
        lam = float(np.float32(self.lambdaVal))
        inner = {
            "FacilityLocation": FacilityLocation,
            "GraphCut": lambda: GraphCut(lam),
            "LogDeterminant": lambda: LogDet(lam),
            "DisparitySum": DisparitySum,
            "DisparityMin": DisparityMin,
        }
        spec = inner[choose(self.f_name, inner, "f_name")]()
        lab, self.num_clusters = helper.clusters(x, self.cluster_lab, self.num_clusters)
        self.clusters = [set(np.flatnonzero(lab == c).tolist()) for c in range(self.num_clusters)]
        falls = self.f_name.startswith("Disparity") or (self.f_name == "GraphCut" and kind.signed)
        return Problem(x, kind, Clustered(spec, lab), submodular=not falls)


def _signed(x: Any, kind: Any) -> bool:
    """Whether similarities may be below 0, where graph cut is not submodular."""
    if kind == "precomputed":
        return bool((x.data if hasattr(x, "tocsr") else x).min() < 0)
    return kind.signed
