"""Facility location: every point is represented by its most similar chosen row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from smartgpu.backends import STORE_ALL
from smartgpu.objectives import swaps
from smartgpu.objectives.base import Ground, Objective, per_row
from smartgpu.objectives.cheap_bounds import CheapBounds
from smartgpu.objectives.cost import Cost, Part, Shape
from smartgpu.objectives.facility_location_state import MOST_SHARE, FacilityLocationState
from smartgpu.similarity import Matrix, Similarity


@dataclass(frozen=True, eq=False)
class FacilityLocation(Objective):
    """f(S) = sum_i w_i max(0, max_{j in S} s_ij); gain of j: sum_i w_i max(s_ij - level_i, 0).

    weights      (r,) floats >= 0, one per represented row; None is 1 for all
    represented  (r, d) rows to represent where they are not the candidates themselves; None is the candidates

    Monotone and submodular. Weights are rounded to integers of one scale that add up to less than 2^39.
    """

    weights: Any = None
    represented: Any = None
    name: ClassVar[str] = "facility_location"

    def __post_init__(self) -> None:
        if self.weights is not None:
            weights = per_row("weights", self.weights)
            if (weights < 0).any():
                raise ValueError(f"weights must be >= 0, got {weights.min()} at row {int(weights.argmin())}")
            if not weights.any():
                raise ValueError("weights must not all be 0: nothing would be represented")
            object.__setattr__(self, "weights", weights)
        if self.represented is not None:
            from smartgpu.arrays import as_matrix, on_gpu

            tensors = on_gpu(self.represented)
            object.__setattr__(
                self, "represented", as_matrix(self.represented, "represented", tensors=tensors)
            )

    def check(self, x: np.ndarray | Matrix, kind: Similarity) -> None:
        if self.represented is not None:
            if isinstance(x, Matrix):
                raise ValueError(
                    "represented cannot be given with a precomputed similarity: its rows are the represented set"
                )
            if self.represented.shape[1] != x.shape[1]:
                raise ValueError(
                    f"represented must have as many features as X: {x.shape[1]}, got {self.represented.shape[1]}"
                )
        r = x.shape[0] if self.represented is None else len(self.represented)
        if self.weights is not None:
            per_row("weights", self.weights, r)

    def on_host(self) -> FacilityLocation:
        if self.represented is None or isinstance(self.represented, np.ndarray):
            return self
        from smartgpu.arrays import on_host

        return FacilityLocation(self.weights, on_host(self.represented))

    def need_swaps(self) -> int:
        return 1

    @property
    def travels(self) -> bool:
        return self.represented is None

    def take(self, rows: np.ndarray) -> FacilityLocation:
        if self.weights is None or self.represented is not None:
            return self
        return FacilityLocation(self.weights[rows])

    def cost(self, shape: Shape) -> Cost:
        n, r = shape.n, shape.r if self.represented is None else len(shape.own(self.represented))
        weighted, sizes = self.weights is not None, shape.footprint
        least, most = (sizes.columns(r, m) for m in (sizes.least_batch, sizes.most_batch))
        parts = (
            *shape.represented(self.represented),
            Part("levels, weights and excesses", sizes.levels(n, r, weighted)),
            Part(f"{sizes.least_batch} columns of similarity", least),
        )
        if shape.swaps:
            looked_at = swaps.looked_at(n, r, shape.k)[1]
            parts += (Part("nearest chosen rows and their swaps", sizes.swaps(n, r, shape.k, looked_at)),)
        every = r * n
        pairs = every if every <= STORE_ALL else MOST_SHARE * every
        extra = most - least + int(sizes.stored(pairs, n, r))
        if CheapBounds.pay(r, n, shape.d) and shape.kind.affine is not None:
            extra = max(extra, sizes.cheap_bounds(n, r))
        work = 2.0 * shape.d * (n + r) * (shape.d if shape.kind.affine is not None else 8)
        return Cost(parts, shape.dense(r, weighted), extra, terms=1, work=work)

    def bind(self, ground: Ground) -> FacilityLocationState:
        return FacilityLocationState(self, ground)
