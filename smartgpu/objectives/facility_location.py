"""Facility location: every point is represented by its most similar chosen row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from smartgpu.objectives.base import Ground, Objective, per_row
from smartgpu.similarity import Dot, Matrix, Precomputed, Similarity

WEIGHT_BITS = 39  # sum of integer weights < 2^39, times 2^22 quanta, stays below 2^62


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
            from smartgpu.arrays import as_matrix

            object.__setattr__(self, "represented", as_matrix(self.represented, "represented"))

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

    def take(self, rows: np.ndarray) -> FacilityLocation:
        if self.weights is None or self.represented is not None:
            return self
        return FacilityLocation(self.weights[rows])

    def bind(self, ground: Ground) -> FacilityLocationState:
        return FacilityLocationState(self, ground)


class FacilityLocationState:
    """Levels and exact integer excesses; scale turns them into gains."""

    slack = 0.0
    margin = 0.0

    def __init__(self, spec: FacilityLocation, ground: Ground):
        self.backend = ground.backend(spec.represented)
        self.n = ground.n
        self.scale = self.backend.quantum
        self.weights = None
        if spec.weights is not None:
            power = WEIGHT_BITS - int(np.ceil(np.log2(spec.weights.sum()))) - 1
            whole = np.rint(np.ldexp(spec.weights, power)).astype(np.int64)
            self.weights = self.backend.new_weights(whole)
            self.scale *= float(np.ldexp(1.0, -power))
        self.level = self.backend.new_level()
        self.max_batch = self.backend.max_batch()
        # s_ii is the largest similarity of row i, but for a dot product or a matrix of the user's
        self._own_is_best = self.backend.same and not isinstance(ground.kind, (Dot, Precomputed))

    def gains(self) -> np.ndarray:
        return self.backend.excess(self.level, self.weights) * self.scale

    def evaluate(self, cols: np.ndarray) -> FacilityLocationBatch:
        return FacilityLocationBatch(self, cols)

    def add(self, cols: np.ndarray) -> None:
        self.backend.raise_level(self.level, cols)

    def value(self) -> float:
        return self.backend.level_sum(self.level, self.weights) * self.scale

    def levels(self) -> np.ndarray:
        """(r,) float64 similarity of each represented row to its nearest chosen row, 0 at least."""
        return self.backend.level_values(self.level) * self.backend.quantum

    def total(self) -> float:
        if self._own_is_best:
            own = np.maximum(self.backend.diagonal(), 0)
            weights = self.weights
            return self.backend.level_sum(self.backend.level_from(own), weights) * self.scale
        return self.backend.level_sum(self.backend.row_max(), self.weights) * self.scale


class FacilityLocationBatch:
    def __init__(self, state: FacilityLocationState, cols: np.ndarray):
        self.state = state
        self.kept = state.backend.keep(state.level, cols, state.weights)
        self.gains = self.kept.excess * state.scale

    def accept(self, b: int) -> None:
        self.state.backend.accept(self.kept, b, self.state.level)
        np.multiply(self.kept.excess, self.state.scale, out=self.gains)
