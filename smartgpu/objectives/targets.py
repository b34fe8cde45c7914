"""Targets: rows like those of a query, unlike those of a private set, or both.

Submodular information measures of facility location and graph cut (Iyer et al., ALT 2021; Kothawade et al., AAAI 2022:
PRISM). For facility location they are a cap and a floor on its levels, for graph cut a modular term. Query and private
rows are not in the pool; how similar the pool is to them is computed block by block, once.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np

from smartgpu.objectives import outside
from smartgpu.objectives.base import Ground, Objective, State
from smartgpu.objectives.cost import Cost, Part, Shape
from smartgpu.objectives.facility_location import FacilityLocation
from smartgpu.objectives.facility_location_state import FacilityLocationState
from smartgpu.objectives.graph_cut import GraphCut, nonnegative
from smartgpu.objectives.modular import ModularState
from smartgpu.objectives.weighted_sum import WeightedSumState
from smartgpu.similarity import Matrix, Similarity


class Target(Objective):
    """What targets share. SETS are the fields that hold rows, FACTORS those that hold numbers >= 0."""

    SETS: ClassVar[tuple[str, ...]] = ("query",)
    FACTORS: ClassVar[tuple[str, ...]] = ("eta",)

    def __post_init__(self) -> None:
        for name in self.SETS:
            object.__setattr__(self, name, outside.as_outside(name, getattr(self, name)))
        for name in self.FACTORS:
            object.__setattr__(self, name, nonnegative(name, getattr(self, name)))

    @property
    def sets(self) -> list[Any]:
        return [getattr(self, name) for name in self.SETS]

    def check(self, x: np.ndarray | Matrix, kind: Similarity) -> None:
        for name in self.SETS:
            outside.check_outside(name, getattr(self, name), x, kind)

    def on_host(self) -> Objective:
        from smartgpu.arrays import on_host

        names = (*self.SETS, *(name for name in ("represented",) if getattr(self, name, None) is not None))
        there = {name: getattr(self, name) for name in names}
        if all(isinstance(value, np.ndarray) for value in there.values()):
            return self
        return replace(self, **{name: on_host(value) for name, value in there.items()})

    def _vectors(self, shape: Shape, rows: int, beside: Cost) -> Cost:
        """What is held besides another objective's cost: numbers per row, and the similarity to the sets on the way."""
        held = Part("similarity to other rows", shape.footprint.host(32 * rows))
        return beside + Cost((held,), outside.scratch(shape, *self.sets))


@dataclass(frozen=True, eq=False)
class _Facility(Target):
    """A facility location with a floor, a cap, or both."""

    weights: Any = field(default=None, kw_only=True)
    represented: Any = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("weights", "represented"):
            object.__setattr__(self, name, getattr(self._plain, name))

    @functools.cached_property
    def _plain(self) -> FacilityLocation:
        return FacilityLocation(self.weights, self.represented)

    def check(self, x: np.ndarray | Matrix, kind: Similarity) -> None:
        super().check(x, kind)
        self._plain.check(x, kind)

    def take(self, rows: np.ndarray) -> Objective:
        if self.weights is None or self.represented is not None:
            return self
        return replace(self, weights=self.weights[rows])

    def cost(self, shape: Shape) -> Cost:
        r = shape.r if self.represented is None else len(self.represented)
        return self._vectors(shape, r, self._plain.cost(shape))

    def need_swaps(self) -> int:
        return 1

    @property
    def travels(self) -> bool:
        return self._plain.travels

    def bind(self, ground: Ground) -> FacilityLocationState:
        return FacilityLocationState(self._plain, ground, self._floor(ground), self._cap(ground))

    def _floor(self, ground: Ground) -> np.ndarray | None:
        return self._nearest(ground, "private", "nu") if "private" in self.SETS else None

    def _cap(self, ground: Ground) -> np.ndarray | None:
        return self._nearest(ground, "query", "eta") if "query" in self.SETS else None

    def _nearest(self, ground: Ground, which: str, factor: str) -> np.ndarray:
        """(r,) float64: factor times the similarity of each represented row to the nearest row of a set."""
        rows = ground.x if self.represented is None else self.represented
        return getattr(self, factor) * outside.nearest(ground, rows, getattr(self, which))[1]


@dataclass(frozen=True, eq=False)
class FacilityLocationMI(_Facility):
    """f(S) = sum_i w_i max(0, min(max_{j in S} s_ij, eta max_{q in query} s_iq)): cover what the query covers.

    query        (q, d) rows, embedded as the pool is
    eta          >= 0: how much of a row may count for every bit of its similarity to the query; the larger, the
                 closer to plain facility location
    weights, represented  as for FacilityLocation

    Facility location mutual information (FLVMI, submodlib's FacilityLocationMutualInformationFunction with
    magnificationEta). Monotone and submodular. Similarities below 0 count as 0, as in FacilityLocation. One pass of
    O(r q d) beside facility location's own work.
    """

    query: Any
    eta: float = 1.0
    name: ClassVar[str] = "facility_location_mi"


@dataclass(frozen=True, eq=False)
class FacilityLocationCG(_Facility):
    """f(S) = sum_i w_i max(0, max_{j in S} s_ij - nu max_{p in private} s_ip): cover what the private set does not.

    private      (p, d) rows, embedded as the pool is
    nu           >= 0: how strictly; with 1 it is f(S + private) - f(private) of facility location
    weights, represented  as for FacilityLocation

    Facility location conditional gain (FLCG, submodlib's FacilityLocationConditionalGainFunction with
    privacyHardness). Monotone and submodular. O(r p d) beside facility location's own work.
    """

    SETS: ClassVar = ("private",)
    FACTORS: ClassVar = ("nu",)
    private: Any
    nu: float = 1.0
    name: ClassVar[str] = "facility_location_cg"


@dataclass(frozen=True, eq=False)
class FacilityLocationCMI(_Facility):
    """f(S) = sum_i w_i max(0, min(max_{j in S} s_ij, eta max_{q in query} s_iq) - nu max_{p in private} s_ip).

    Cover what the query covers and the private set does not: FLCMI, submodlib's
    FacilityLocationConditionalMutualInformationFunction. Parameters as for FacilityLocationMI and FacilityLocationCG.
    Monotone and submodular. O(r (q + p) d) beside facility location's own work.
    """

    SETS: ClassVar = ("query", "private")
    FACTORS: ClassVar = ("eta", "nu")
    query: Any
    private: Any
    eta: float = 1.0
    nu: float = 1.0
    name: ClassVar[str] = "facility_location_cmi"


@dataclass(frozen=True, eq=False)
class FacilityLocationQueryMI(Target):
    """f(S) = sum_{q in query} max(0, max_{j in S} s_qj) + eta sum_{j in S} max(0, max_{q in query} s_jq).

    Rows that together cover every query, and are each like some query. Nothing of the pool is represented, so it is by
    far the cheapest target: O(n q d) in all. FLQMI, submodlib's FacilityLocationVariantMutualInformationFunction with
    queryDiversityEta. Monotone and submodular.
    """

    query: Any
    eta: float = 1.0
    name: ClassVar[str] = "facility_location_query_mi"

    @functools.cached_property
    def _plain(self) -> FacilityLocation:
        return FacilityLocation(None, self.query)

    def cost(self, shape: Shape) -> Cost:
        return self._vectors(shape, shape.n, self._plain.cost(shape))

    def need_swaps(self) -> int:
        return 1

    def bind(self, ground: Ground) -> State:
        cover = self._plain.bind(ground)
        like = ModularState(self.eta * np.maximum(outside.nearest(ground, ground.x, self.query)[1], 0))
        return WeightedSumState([(1.0, cover), (1.0, like)], ground.n)


@dataclass(frozen=True, eq=False)
class GraphCutMI(Target):
    """f(S) = 2 lam sum_{j in S} sum_{q in query} s_jq: the rows most like all of the query, whatever else is chosen.

    GCMI, submodlib's GraphCutMutualInformationFunction, which leaves the factor 2 lam out. Modular: no diversity, the
    same as ranking by mean similarity to the query. O((n + q) d) for dot products and cosines, else O(n q d).
    """

    FACTORS: ClassVar = ("lam",)
    query: Any
    lam: float = 0.5
    name: ClassVar[str] = "graph_cut_mi"

    def need_monotone(self, x: np.ndarray | Matrix, kind: Similarity) -> None:
        if kind.signed:
            raise ValueError(
                f"coverage needs a monotone objective: {self.name} is one for similarities that cannot be negative, "
                f"such as cosine_shifted; got {kind.name}"
            )

    def cost(self, shape: Shape) -> Cost:
        return self._vectors(shape, shape.n, Cost(()))

    def bind(self, ground: Ground) -> State:
        return ModularState(2 * self.lam * outside.sums(ground, ground.x, self.query))


@dataclass(frozen=True, eq=False)
class GraphCutCG(Target):
    """f(S) = graph cut of S - 2 lam nu sum_{j in S} sum_{p in private} s_jp: stand for the pool, unlike private rows.

    private (p, d), lam as for GraphCut, nu >= 0 (submodlib's privacyHardness); represented as for GraphCut. GCCG,
    submodlib's GraphCutConditionalGainFunction. Submodular where similarities are >= 0, not monotone. Beside graph
    cut's own work O((n + p) d) for dot products and cosines, else O(n p d).
    """

    SETS: ClassVar = ("private",)
    FACTORS: ClassVar = ("lam", "nu")
    private: Any
    lam: float = 0.4
    nu: float = 1.0
    represented: Any = field(default=None, kw_only=True)
    name: ClassVar[str] = "graph_cut_cg"

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "represented", self._plain.represented)

    @functools.cached_property
    def _plain(self) -> GraphCut:
        return GraphCut(self.lam, self.represented)

    def check(self, x: np.ndarray | Matrix, kind: Similarity) -> None:
        super().check(x, kind)
        self._plain.check(x, kind)

    def need_monotone(self, x: np.ndarray | Matrix, kind: Similarity) -> None:
        raise ValueError(f"coverage needs a monotone objective: {self.name} is none")

    def cost(self, shape: Shape) -> Cost:
        return self._vectors(shape, shape.n, self._plain.cost(shape))

    def bind(self, ground: Ground) -> State:
        cut = self._plain.bind(ground)
        unlike = ModularState(-2 * self.lam * self.nu * outside.sums(ground, ground.x, self.private))
        inner = cut.terms if isinstance(cut, WeightedSumState) else [(1.0, cut)]
        return WeightedSumState([(1.0, unlike), *inner], ground.n)


TARGETS: dict[str, type[Target]] = {
    kind.name: kind
    for kind in (
        *(FacilityLocationMI, FacilityLocationQueryMI, FacilityLocationCG, FacilityLocationCMI),
        *(GraphCutMI, GraphCutCG),
    )
}
