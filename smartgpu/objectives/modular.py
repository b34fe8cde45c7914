"""Modular objectives: quality, one number per row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from smartgpu.objectives.base import Eager, Ground, Objective, per_row
from smartgpu.objectives.cost import Cost, Part, Shape
from smartgpu.similarity import Matrix, Similarity


@dataclass(frozen=True, eq=False)
class Modular(Objective):
    """f(S) = sum_{j in S} q_j; the gain of j is q_j, whatever was chosen. scores (n,) finite floats of any sign."""

    scores: Any
    name: ClassVar[str] = "modular"
    similar: ClassVar[bool] = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "scores", per_row("scores", self.scores))

    def check(self, x: np.ndarray | Matrix, kind: Similarity) -> None:
        per_row("scores", self.scores, x.shape[1] if isinstance(x, Matrix) else len(x))

    def need_monotone(self, x: np.ndarray | Matrix, kind: Similarity) -> None:
        if (self.scores < 0).any():
            raise ValueError(f"coverage needs a monotone objective: scores >= 0, got {self.scores.min()}")

    def cost(self, shape: Shape) -> Cost:
        return Cost((Part("scores", shape.footprint.host(16 * shape.n)),))

    def need_swaps(self) -> int:
        return 0

    def take(self, rows: np.ndarray) -> Modular:
        return Modular(self.scores[rows])

    def bind(self, ground: Ground) -> ModularState:
        return ModularState(self.scores)


class ModularState(Eager):
    slack = 0.0
    margin = 0.0

    def __init__(self, scores: np.ndarray, base: float = 0.0):
        self.scores, self.base = scores, base  # base: f of no rows
        self.n = self.max_batch = len(scores)
        self.chosen: list[int] = []

    def gains(self) -> np.ndarray:
        return self.scores.copy()

    def evaluate(self, cols: np.ndarray) -> ModularBatch:
        return ModularBatch(self, cols)

    def add(self, cols: np.ndarray) -> None:
        self.chosen += [int(j) for j in cols]

    def within(self, cols: np.ndarray, low: np.ndarray | None = None) -> ModularState:
        return ModularState(self.scores[cols], self.base)

    def value(self) -> float:
        return self.base + float(self.scores[self.chosen].sum())

    def total(self) -> float:
        return self.base + float(self.scores.sum())


class ModularBatch:
    def __init__(self, state: ModularState, cols: np.ndarray):
        self.state, self.cols, self.gains = state, cols, state.scores[cols]

    def narrow(self, positions: np.ndarray) -> None:
        self.cols, self.gains = self.cols[positions], self.gains[positions]

    def accept(self, b: int) -> None:
        self.state.chosen.append(int(self.cols[b]))
