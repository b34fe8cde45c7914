"""Targets where only similarities are given, not the rows: a floor and a cap, and one volume less another.

What facility location's and log-determinant's targets are when the pool is a precomputed similarity; targets.py and
targets_log_det.py are the same from features.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from smartgpu.arrays import as_similarity_matrix
from smartgpu.objectives.base import Ground, Objective, State, per_row
from smartgpu.objectives.cost import Cost, Part, Shape
from smartgpu.objectives.log_det import LogDet
from smartgpu.objectives.targets import _Facility
from smartgpu.objectives.targets_log_det import Difference
from smartgpu.similarity import Matrix, Similarity


@dataclass(frozen=True, eq=False)
class FacilityLocationBetween(_Facility):
    """f(S) = sum_i w_i max(0, min(max_{j in S} s_ij, cap_i) - max(0, floor_i)).

    floor, cap   (r,) numbers, one for each represented row, or None: no floor, no cap
    weights, represented  as for FacilityLocation

    FacilityLocationMI is the cap eta max_q s_iq, FacilityLocationCG the floor nu max_p s_ip. Monotone and submodular.
    """

    SETS: ClassVar = ()
    FACTORS: ClassVar = ()
    floor: Any = None
    cap: Any = None
    name: ClassVar[str] = "facility_location_between"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("floor", "cap"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, per_row(name, getattr(self, name)))

    def check(self, x: np.ndarray | Matrix, kind: Similarity) -> None:
        super().check(x, kind)
        rows = x.shape[0] if self.represented is None else len(self.represented)
        for name in ("floor", "cap"):
            if getattr(self, name) is not None:
                per_row(name, getattr(self, name), rows)

    def take(self, rows: np.ndarray) -> Objective:
        if self.represented is not None:
            return self
        names = [name for name in ("weights", "floor", "cap") if getattr(self, name) is not None]
        return replace(self, **{name: getattr(self, name)[rows] for name in names})

    def _floor(self, ground: Ground) -> np.ndarray | None:
        return self.floor

    def _cap(self, ground: Ground) -> np.ndarray | None:
        return self.cap


@dataclass(frozen=True, eq=False)
class LogDetLess(Objective):
    """f(S) = log det(A_SS + lam I) - log det(B_SS + lam I), A the precomputed similarity of the pool, B one below it.

    below  (n, n) symmetric, with A - B positive semi-definite: the similarity that other rows do not explain
    lam    > 0

    With B = A - A_Q (A_QQ + lam I)^-1 A_Q' it is LogDetMI's f. Monotone, not submodular. Work and memory of two LogDet.
    """

    below: Any
    lam: float = 1.0
    name: ClassVar[str] = "log_det_less"

    def __post_init__(self) -> None:
        object.__setattr__(self, "below", as_similarity_matrix(self.below, "below").to_dense())
        object.__setattr__(self, "lam", LogDet(self.lam).lam)

    def check(self, x: np.ndarray | Matrix, kind: Similarity) -> None:
        if not isinstance(x, Matrix):
            raise ValueError(f"{self.name} is for similarity='precomputed', got {kind.name}")
        LogDet(self.lam).check(x, kind)
        if self.below.shape != tuple(x.shape):
            raise ValueError(f"below must have shape {tuple(x.shape)}, got {self.below.shape}")

    def need_monotone(self, x: np.ndarray | Matrix, kind: Similarity) -> None:
        raise ValueError(f"coverage needs a monotone submodular objective: {self.name} is not submodular")

    def take(self, rows: np.ndarray) -> Objective:
        return LogDetLess(self.below[np.ix_(rows, rows)], self.lam)

    def cost(self, shape: Shape) -> Cost:
        one = LogDet(self.lam).cost(shape)
        return one + one + Cost((Part("the similarity below", shape.footprint.host(8 * shape.n * shape.n)),))

    def bind(self, ground: Ground) -> State:
        other = Ground(as_similarity_matrix(self.below), ground.kind, ground._name, **ground._how)
        return Difference(LogDet(self.lam).bind(ground), LogDet(self.lam).bind(other))
