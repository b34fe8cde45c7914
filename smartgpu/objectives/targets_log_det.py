"""Targets of log-determinant: the volume that rows span besides a private set, or share with a query.

Query and private rows enter as more rows of the kernel, their similarity to the pool times eta or nu. The volume that S
adds to such rows B is log det(lam I + Y_S Q0 Y_S'), s = y_i . y_j, with Q0 = I - (D Y_B)' (Y_B Y_B' + lam I)^-1 D Y_B:
log-determinant's own state, started from another matrix. Source: Kothawade et al., AAAI 2022 (PRISM).
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from smartgpu.objectives import outside
from smartgpu.objectives.base import Batch, Eager, Ground, State
from smartgpu.objectives.cost import Cost, Shape
from smartgpu.objectives.log_det import LogDet, LogDetState
from smartgpu.objectives.targets import TARGETS, Target
from smartgpu.similarity import Matrix, Similarity


@dataclass(frozen=True, eq=False)
class _Volume(Target):
    @functools.cached_property
    def _plain(self) -> LogDet:
        return LogDet(self.lam)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.lam == 0:
            raise ValueError(f"lam must be > 0 for {self.name}, got 0")

    def check(self, x: np.ndarray | Matrix, kind: Similarity) -> None:
        super().check(x, kind)
        outside.need_linear(self.name, kind)

    def cost(self, shape: Shape) -> Cost:
        cost = self._plain.cost(shape)
        if "query" in self.SETS:
            cost += self._plain.cost(shape)
        matrices = Cost((), cost.scratch + shape.footprint.host(96 * (shape.d + 1) ** 2))
        return self._vectors(shape, shape.n, cost + matrices)

    def _beside(self, ground: Ground, *names: str) -> LogDetState:
        """The volume that S adds to these sets."""
        factors = {"query": "eta", "private": "nu"}
        pairs = [(getattr(self, name), getattr(self, factors[name])) for name in names]
        return self._plain.bind(ground, outside.started(ground, pairs, self.lam) if pairs else None)


@dataclass(frozen=True, eq=False)
class LogDetMI(_Volume):
    """f(S) = log det K_S + log det K_Q - log det K_{S + Q}, K the similarity + lam I: what S and the query share.

    query   (q, d) rows, embedded as the pool is
    lam     > 0, added to the diagonal
    eta     >= 0, by which the similarity of pool and query is multiplied; at most 1 where that keeps K positive

    LogDetMI, submodlib's LogDeterminantMutualInformationFunction with magnificationEta. For dot, cosine and
    cosine_shifted. Monotone but not submodular: every gain is made anew after each pick, and greedy's guarantee does
    not hold. O(n d) a pick, O(d^2) memory, O(q d^2) once.
    """

    FACTORS: ClassVar = ("lam", "eta")
    query: Any
    lam: float = 1.0
    eta: float = 1.0
    name: ClassVar[str] = "log_det_mi"

    def need_monotone(self, x: np.ndarray | Matrix, kind: Similarity) -> None:
        raise ValueError(f"coverage needs a monotone submodular objective: {self.name} is not submodular")

    def bind(self, ground: Ground) -> State:
        return Difference(self._beside(ground), self._beside(ground, "query"))


@dataclass(frozen=True, eq=False)
class LogDetCG(_Volume):
    """f(S) = log det K_{S + P} - log det K_P, K the similarity + lam I: the volume that S adds to the private set.

    private (p, d), lam > 0; nu >= 0 multiplies the similarity of pool and private set, at most 1 where that keeps K
    positive. LogDetCG, submodlib's LogDeterminantConditionalGainFunction with privacyHardness. For dot, cosine and
    cosine_shifted. Submodular, monotone for lam >= 1. Costs what LogDet does, and O(p d^2) once.
    """

    SETS: ClassVar = ("private",)
    FACTORS: ClassVar = ("lam", "nu")
    private: Any
    lam: float = 1.0
    nu: float = 1.0
    name: ClassVar[str] = "log_det_cg"

    def need_monotone(self, x: np.ndarray | Matrix, kind: Similarity) -> None:
        self._plain.need_monotone(x, kind)

    def bind(self, ground: Ground) -> State:
        return self._beside(ground, "private")


@dataclass(frozen=True, eq=False)
class LogDetCMI(_Volume):
    """f(S) = log det K_{S + P} + log det K_{Q + P} - log det K_{S + Q + P} - log det K_P: shared with the query beyond
    what the private set explains.

    LogDetCMI, submodlib's LogDeterminantConditionalMutualInformationFunction. Parameters, kinds and cost as for
    LogDetMI and LogDetCG. Monotone, not submodular.
    """

    SETS: ClassVar = ("query", "private")
    FACTORS: ClassVar = ("lam", "eta", "nu")
    query: Any
    private: Any
    lam: float = 1.0
    eta: float = 1.0
    nu: float = 1.0
    name: ClassVar[str] = "log_det_cmi"

    def need_monotone(self, x: np.ndarray | Matrix, kind: Similarity) -> None:
        raise ValueError(f"coverage needs a monotone submodular objective: {self.name} is not submodular")

    def bind(self, ground: Ground) -> State:
        return Difference(self._beside(ground, "private"), self._beside(ground, "query", "private"))


TARGETS |= {kind.name: kind for kind in (LogDetMI, LogDetCG, LogDetCMI)}


class Difference(Eager):
    """One volume less a smaller one. A pick may raise gains, but none beyond that of a row alone: the slack."""

    reach = active = 1

    def __init__(self, more: LogDetState, less: LogDetState):
        self.more, self.less, self.n = more, less, more.n
        self.margin = more.margin + less.margin
        self.slack = float(np.log(max(more.top, less.top) / more.lam))
        self.max_batch = min(more.max_batch, less.max_batch)
        self.picks = self.known = 0  # picks, and those when all gains were made

    def gains(self) -> np.ndarray:
        return self.more.gains() - self.less.gains()

    def bounds(self) -> tuple[np.ndarray, bool]:
        self.known = self.picks
        return self.gains(), True

    def improve(self) -> tuple[np.ndarray, bool] | None:
        return self.bounds() if self.picks > self.known else None

    def evaluate(self, cols: np.ndarray) -> DifferenceBatch:
        return DifferenceBatch(self, self.more.evaluate(cols), self.less.evaluate(cols))

    def add(self, cols: np.ndarray) -> None:
        self.more.add(cols)
        self.less.add(cols)
        self.picks += len(cols)

    def value(self) -> float:
        return self.more.value() - self.less.value()

    def total(self) -> float:
        return self.more.total() - self.less.total()


class DifferenceBatch:
    def __init__(self, state: Difference, more: Batch, less: Batch):
        self.state, self.more, self.less = state, more, less
        self.gains = more.gains - less.gains

    def narrow(self, positions: np.ndarray) -> None:
        self.more.narrow(positions)
        self.less.narrow(positions)
        self.gains = self.gains[positions]

    def accept(self, b: int) -> None:
        self.more.accept(b)
        self.less.accept(b)
        self.state.picks += 1
        self.gains = self.more.gains - self.less.gains
