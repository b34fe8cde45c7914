"""Disparity and redundancy: how unlike, or how alike, the chosen rows are among themselves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from smartgpu.objectives import outside
from smartgpu.objectives.base import Eager, Ground, Objective, State
from smartgpu.objectives.cost import Cost, Part, Shape
from smartgpu.objectives.graph_cut import need_square
from smartgpu.similarity import Matrix, Similarity

COLUMNS = 32  # of similarity, made at a time: a product of fewer costs as much
NONE = np.iinfo(np.int64).min // 4  # similarity to no row at all


class _Pairs(Objective):
    """What objectives over the pairs of chosen rows share."""

    def check(self, x: np.ndarray | Matrix, kind: Similarity) -> None:
        if isinstance(x, Matrix):
            need_square(x, self.name)

    def cost(self, shape: Shape) -> Cost:
        sizes, n = shape.footprint, shape.n
        parts = (
            *shape.features,
            Part("similarity to what is chosen", sizes.levels(n, n, False) + sizes.host(64 * n)),
            Part(f"{COLUMNS} columns of similarity", sizes.columns(n, COLUMNS)),
        )
        return Cost(parts, shape.dense(n) + sizes.host(8 * n * COLUMNS), work=2.0 * n * shape.d)


@dataclass(frozen=True, eq=False)
class DisparitySum(_Pairs):
    """f(S) = sum over pairs i < j in S of 1 - s_ij (of a matrix that is not symmetric, of the mean of both).

    The gain of j is sum_{i in S} (1 - s_ij): the first pick gains nothing, so it is the lowest row. Not submodular:
    every gain is made anew after each pick, and the selection is true greedy, at least f(OPT) / 4 for a metric
    1 - s. O(n d) a pick, O(n d) memory. submodlib's DisparitySumFunction.
    """

    name: ClassVar[str] = "disparity_sum"

    def need_monotone(self, x: np.ndarray | Matrix, kind: Similarity) -> None:
        raise ValueError("coverage needs a monotone submodular objective: disparity_sum is not submodular")

    def bind(self, ground: Ground) -> State:
        return DisparitySumState(ground)


@dataclass(frozen=True, eq=False)
class DisparityMin(_Pairs):
    """f(S) = min over pairs i != j in S of 1 - s_ij, 0 for fewer than two rows.

    Greedy takes the lowest row, then the row that is least like any chosen one, again and again (farthest point); the
    gains after the second are 0 or less. Not submodular: every gain is made anew after each pick. At least half of the
    best where 1 - s is a metric (Gonzalez 1985). O(n d) a pick, O(n d) memory. submodlib's DisparityMinFunction.
    """

    name: ClassVar[str] = "disparity_min"

    def need_monotone(self, x: np.ndarray | Matrix, kind: Similarity) -> None:
        raise ValueError("coverage needs a monotone submodular objective: disparity_min is neither")

    def bind(self, ground: Ground) -> State:
        return DisparityMinState(ground)


@dataclass(frozen=True, eq=False)
class SumRedundancy(_Pairs):
    """f(S) = -sum_{i, j in S} s_ij over ordered pairs, the diagonal included: graph cut without what is represented.

    The gain of j is -(sum_{i in S} (s_ij + s_ji) + s_jj). Not monotone; submodular where similarities are >= 0, and
    exact greedy all the same where they are not. O(n d) a pick. apricot's sum redundancy, less its constant
    sum_{i, j in V} s_ij.
    """

    name: ClassVar[str] = "sum_redundancy"

    def need_monotone(self, x: np.ndarray | Matrix, kind: Similarity) -> None:
        raise ValueError("coverage needs a monotone objective: sum_redundancy falls with every row")

    def bind(self, ground: Ground) -> State:
        return SumRedundancyState(ground)


class PairsState(Eager):
    """All gains are fresh: after each pick one column of similarities updates what every candidate has to S.

    Integers: a pick's column comes with those of the next best candidates, which are likely to be picked soon.
    """

    margin = 0.0
    reach = active = 1

    def __init__(self, ground: Ground):
        self.backend = ground.backend()
        self.n, self.scale = ground.n, self.backend.quantum
        self.symmetric = not isinstance(ground.x, Matrix) or ground.x.symmetric
        self.slack = 4.0 * max(1.0, self.scale * 2.0**22)  # what a pick may add to any gain at most
        self.max_batch = self.n
        self.picks: list[int] = []
        self.known = -1  # picks when all gains were last asked for
        self.kept: dict[int, np.ndarray] = {}
        self.start(ground)

    def start(self, ground: Ground) -> None:
        """What is there before the first pick."""
        raise NotImplementedError

    def update(self, p: int, there: np.ndarray, back: np.ndarray) -> None:
        """p is picked: (n,) quanta of similarity to it, q_jp, and from it, q_pj."""
        raise NotImplementedError

    def gains(self) -> np.ndarray:
        raise NotImplementedError

    def bounds(self) -> tuple[np.ndarray, bool]:
        self.known = len(self.picks)
        return self.gains(), True

    def improve(self) -> tuple[np.ndarray, bool] | None:
        return self.bounds() if len(self.picks) > self.known else None

    def evaluate(self, cols: np.ndarray) -> PairsBatch:
        return PairsBatch(self, cols)

    def add(self, cols: np.ndarray) -> None:
        for at, j in enumerate(cols):
            if int(j) not in self.kept:
                self._make(cols[at : at + COLUMNS] if len(cols) > 1 else self._likely(int(j)))
            column = self.kept[int(j)]
            self.update(int(j), column, column if self.symmetric else self._row(int(j)))
            self.picks.append(int(j))

    def _likely(self, j: int) -> np.ndarray:
        """j, and the candidates that gain most now."""
        gains = self.gains()
        gains[self.picks] = -np.inf
        gains[j] = np.inf
        count = min(COLUMNS, self.n - len(self.picks))
        return np.sort(np.argpartition(-gains, count - 1)[:count]) if count > 1 else np.array([j])

    def _make(self, cols: np.ndarray) -> None:
        self.kept = {}  # before others are there
        kept = self.backend.keep(self.backend.new_level(), cols)
        self.kept = {int(j): self.backend.column(kept, b) for b, j in enumerate(cols)}

    def _row(self, j: int) -> np.ndarray:
        return self.backend.block(np.array([j]), np.arange(self.n))[0]


class PairsBatch:
    """Candidates whose gains are read from all gains."""

    def __init__(self, state: PairsState, cols: np.ndarray):
        self.state, self.cols, self.gains = state, cols, state.gains()[cols]

    def narrow(self, positions: np.ndarray) -> None:
        self.cols, self.gains = self.cols[positions], self.gains[positions]

    def accept(self, b: int) -> None:
        self.state.add(self.cols[b : b + 1])
        self.gains = self.state.gains()[self.cols]


class _Summed(PairsState):
    """Sums of similarity to what is chosen, both ways; `inside` is the sum over ordered pairs without the diagonal."""

    def start(self, ground: Ground) -> None:
        self.both = np.zeros(self.n, np.int64)  # sum_{i in S} (q_ij + q_ji)
        self.own = self.backend.diagonal().astype(np.int64)
        if ground.kind.name.startswith(
            "cosine"
        ):  # s_jj = 1 but for rounding: first gains tie, as they should
            one = round(1 / self.scale)
            self.own[np.abs(self.own - one) <= 8] = one
        self.inside = 0  # in quanta
        self.base = 0.0  # sum over ordered pairs of rows from elsewhere, without the diagonal
        self.outer = 0  # how many these are
        self.base_own = 0.0
        if ground.outside is not None:
            rows = ground.outside
            self.outer = len(rows)
            across = outside.sums(ground, ground.x, rows)
            self.both += np.rint(2 * across / self.scale).astype(np.int64)
            s = outside.similarities(ground, rows, rows).astype(np.float64)
            self.base_own = float(np.trace(s))
            self.base = float(s.sum()) - self.base_own

    def update(self, p: int, there: np.ndarray, back: np.ndarray) -> None:
        self.inside += int(self.both[p])
        self.both += there
        self.both += back


class DisparitySumState(_Summed):
    def gains(self) -> np.ndarray:
        return (len(self.picks) + self.outer) - self.both * (self.scale / 2)

    def value(self) -> float:
        m = len(self.picks) + self.outer
        return m * (m - 1) / 2 - (self.inside * self.scale + self.base) / 2

    def total(self) -> float:
        m = self.n + self.outer
        inside = int(self.backend.totals().sum()) - int(self.own.sum())
        return m * (m - 1) / 2 - (inside * self.scale + self.base) / 2


class SumRedundancyState(_Summed):
    def gains(self) -> np.ndarray:
        return -(self.both + self.own) * self.scale

    def value(self) -> float:
        own = int(self.own[self.picks].sum())
        return -(self.inside + own) * self.scale - self.base - self.base_own

    def total(self) -> float:
        return -int(self.backend.totals().sum()) * self.scale - self.base - self.base_own


class DisparityMinState(PairsState):
    """The largest similarity that a pair in S has, and that every candidate has to S."""

    def start(self, ground: Ground) -> None:
        self.nearest = np.full(self.n, NONE, np.int64)
        self.most = NONE
        if ground.outside is not None:
            rows = ground.outside
            s = outside.similarities(ground, ground.x, rows).max(axis=1)
            self.nearest = np.rint(s / self.scale).astype(np.int64)
            if len(rows) > 1:
                s = outside.similarities(ground, rows, rows).astype(np.float64)
                np.fill_diagonal(s, -np.inf)
                self.most = int(np.rint(s.max() / self.scale))

    def update(self, p: int, there: np.ndarray, back: np.ndarray) -> None:
        self.most = max(self.most, int(self.nearest[p]))
        np.maximum(self.nearest, there, out=self.nearest)
        np.maximum(self.nearest, back, out=self.nearest)

    def _worth(self, most: np.ndarray) -> np.ndarray:
        """f where the most similar pair has so many quanta."""
        return np.where(most == NONE, 0.0, 1.0 - most * self.scale)

    def gains(self) -> np.ndarray:
        return self._worth(np.maximum(self.nearest, self.most)) - self.value()

    def value(self) -> float:
        return float(self._worth(np.array(self.most)))

    def total(self) -> float:
        most = NONE
        for i in range(0, self.n, 384):
            rows = np.arange(i, min(i + 384, self.n))
            block = self.backend.block(rows, np.arange(self.n)).astype(np.int64)
            block[np.arange(len(rows)), rows] = NONE
            most = max(most, int(block.max()))
        return float(self._worth(np.array(most)))
