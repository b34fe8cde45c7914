"""Graph cut: represent the pool, penalise similarity inside the chosen set."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from smartgpu.constraints import Found, Goal
from smartgpu.objectives import outside
from smartgpu.objectives.base import Eager, Ground, Objective, State
from smartgpu.objectives.cost import Cost, Part, Shape
from smartgpu.objectives.modular import ModularState
from smartgpu.objectives.weighted_sum import WeightedSumState
from smartgpu.similarity import Matrix, Similarity

EPS = np.finfo(np.float64).eps
PAIRS = 1 << 21  # similarities of picks to candidates that are held at once
LEAST = 384  # picks in a block at least


@dataclass(frozen=True, eq=False)
class GraphCut(Objective):
    """f(S) = sum_{i in V, j in S} s_ij - lam sum_{i,j in S} s_ij, over ordered pairs, the diagonal included.

    The gain of j is total_j - lam (sum_{i in S} (s_ij + s_ji) + s_jj), with total_j = sum_{i in V} s_ij.
    lam >= 0; represented (r, d) is V where that is not the candidates themselves.

    Submodular where similarities are >= 0 (negative ones are handled exactly all the same), monotone for lam <= 1/2.
    """

    lam: float = 0.4
    represented: Any = None
    name: ClassVar[str] = "graph_cut"

    def __post_init__(self) -> None:
        object.__setattr__(self, "lam", nonnegative("lam", self.lam))
        if self.represented is not None:
            from smartgpu.arrays import as_matrix, on_gpu

            tensors = on_gpu(self.represented)
            object.__setattr__(
                self, "represented", as_matrix(self.represented, "represented", tensors=tensors)
            )

    def check(self, x: np.ndarray | Matrix, kind: Similarity) -> None:
        if isinstance(x, Matrix):
            if self.represented is not None:
                raise ValueError("represented cannot be given with a precomputed similarity for graph cut")
            need_square(x, "graph cut")
        elif self.represented is not None and self.represented.shape[1] != x.shape[1]:
            raise ValueError(
                f"represented must have as many features as X: {x.shape[1]}, got {self.represented.shape[1]}"
            )

    def need_monotone(self, x: np.ndarray | Matrix, kind: Similarity) -> None:
        signed = x.lowest < 0 if isinstance(x, Matrix) else kind.signed
        if self.lam > 0.5 or signed or self.represented is not None:
            raise ValueError(
                "coverage needs a monotone objective: graph cut is one for lam <= 0.5 and similarities that cannot "
                "be negative, such as cosine_shifted, without a separate represented set; got "
                f"lam = {self.lam}, {kind.name}"
            )

    def cost(self, shape: Shape) -> Cost:
        n, r = shape.n, shape.r if self.represented is None else len(self.represented)
        parts = shape.represented(self.represented)
        sizes = shape.footprint
        parts.append(Part("totals and penalties", sizes.totals(n)))
        if shape.kind.affine is not None:
            return Cost(tuple(parts), sizes.products(n, r), work=20.0 * (n + r) * shape.d)
        scratch = shape.dense(r) + sizes.pairs(n, shape.k, max(PAIRS, LEAST * min(n, 4096)))
        return Cost(tuple(parts), scratch, work=2.0 * (n + r) * shape.d)

    def on_host(self) -> GraphCut:
        if self.represented is None or isinstance(self.represented, np.ndarray):
            return self
        from smartgpu.arrays import on_host

        return GraphCut(self.lam, on_host(self.represented))

    def bind(self, ground: Ground) -> State:
        state = (LinearGraphCut if ground.kind.affine is not None else GeneralGraphCut)(self, ground)
        if ground.outside is None:
            return state
        # f(S + G) = f(S) - 2 lam sum_{j in S, g in G} s_jg + f(G), G the rows from elsewhere
        rows, others = ground.x if self.represented is None else self.represented, ground.outside
        base = (
            outside.sums(ground, rows, others).sum() - self.lam * outside.sums(ground, others, others).sum()
        )
        unlike = ModularState(-2 * self.lam * outside.sums(ground, ground.x, others), float(base))
        return WeightedSumState([(1.0, unlike), (1.0, state)], ground.n)


def nonnegative(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    if not (np.isfinite(value) and value >= 0):
        raise ValueError(f"{name} must be >= 0 and finite, got {value}")
    return float(value)


def need_square(x: Matrix, what: str) -> None:
    if x.shape[0] != x.shape[1]:
        raise ValueError(f"{what} needs candidate x candidate similarities: a square matrix, got {x.shape}")


class LinearGraphCut(Eager):
    """s = unit (a x.y + b): the gains are one product of the features with a vector, in float64; nothing n x n.

    v = a (sum_i rows_i - 2 lam sum_{i in S} x_i); gain_j = unit (x_j.v + b (r - 2 lam |S|) - lam (a |x_j|^2 + b)).
    """

    reach, active = 512, 64

    def __init__(self, spec: GraphCut, ground: Ground):
        geometry = ground.geometry(spec.represented)
        self.lam, self.n, self.r = spec.lam, ground.n, len(geometry.rows)
        self.a, self.b = ground.kind.affine
        self.unit = geometry.unit
        self.features, rows = ground.features(spec.represented)
        self.whole = rows.sum()
        self.picked = np.zeros_like(self.whole)
        self.count = 0
        self.own = self.a * self.features.own() + self.b  # s_jj
        self.slack = 2 * self.lam * self.unit * max(0.0, self.a - self.b)  # s >= b - a
        d = geometry.x.shape[1]
        self.margin = 4 * (d + 8) * EPS * self.unit * (self.r + 2 * self.lam * self.n + self.lam)
        self.max_batch = self.n

    def _gains(self, cols: np.ndarray | None, held: Any = None) -> np.ndarray:
        v = self.a * (self.whole - 2 * self.lam * self.picked)
        own = self.own if cols is None else self.own[cols]
        constant = self.b * (self.r - 2 * self.lam * self.count)
        along = self.features.times(v, cols) if held is None else held.times(v)
        return self.unit * (along + constant - self.lam * own)

    def gains(self) -> np.ndarray:
        return self._gains(None)

    def evaluate(self, cols: np.ndarray) -> _Refreshed:
        return _Refreshed(self, cols)

    def add(self, cols: np.ndarray) -> None:
        for j in cols:
            self.picked += self.features.rows(j)
        self.count += len(cols)

    def resident(self, goal: Goal) -> Iterator[Found] | None:
        loop = getattr(self.features, "loop", None)
        return None if loop is None else self._resident(loop, goal)

    def _resident(self, start: Callable, goal: Goal) -> Iterator[Found]:
        names = ("whole", "picked", "own", "a", "b", "r", "lam", "unit", "count", "slack", "margin")
        loop = start(goal, **{name: getattr(self, name) for name in names})
        loop.bound(*self.bounds())
        while not loop.done:
            found = loop.advance()
            self.picked, self.count = loop.sum(), self.count + len(found.indices)
            yield found

    def value(self) -> float:
        joint = self.a * (self.whole @ self.picked) + self.b * self.r * self.count
        inside = self.a * (self.picked @ self.picked) + self.b * self.count**2
        return float(self.unit * (joint - self.lam * inside))

    def total(self) -> float:
        everything = self.features.sum()
        joint = self.a * (self.whole @ everything) + self.b * self.r * self.n
        inside = self.a * (everything @ everything) + self.b * self.n**2
        return float(self.unit * (joint - self.lam * inside))


class GeneralGraphCut(Eager):
    """Any kind: integer totals from one sweep, and per candidate the similarity to the picks it has seen."""

    margin = 0.0

    def __init__(self, spec: GraphCut, ground: Ground):
        self.lam, self.n = spec.lam, ground.n
        self.backend = ground.backend(spec.represented)
        self.scale = self.backend.quantum
        self.totals = self.backend.totals()
        self.own = self.backend.diagonal()
        self.inside = np.zeros(self.n, np.int64)  # sum over the picks seen of q_pj + q_jp
        self.seen = np.zeros(self.n, np.int64)
        self.picks: list[int] = []
        self.symmetric = not isinstance(ground.x, Matrix) or ground.x.symmetric
        lowest = ground.x.lowest if isinstance(ground.x, Matrix) else 0.0
        self.slack = 2 * self.lam * max(0.0, -lowest)
        if self.slack:
            self.margin = 16 * EPS * self.scale * float(np.abs(self.totals).max(initial=1))
        self.max_batch = min(self.n, 4096)

    def _refresh(self, cols: np.ndarray) -> np.ndarray:
        behind = cols[self.seen[cols] < len(self.picks)]
        while len(behind):  # candidates that have seen as many picks are brought up to date together
            start = int(self.seen[behind].min())
            group = behind[self.seen[behind] == start]
            picks, step = np.array(self.picks[start:], np.int64), max(LEAST, PAIRS // len(group))
            for at in range(0, len(picks), step):
                self.inside[group] += self._pairs(picks[at : at + step], group)
            self.seen[group] = len(self.picks)
            behind = behind[self.seen[behind] < len(self.picks)]
        return self.scale * (self.totals[cols] - self.lam * (self.inside[cols] + self.own[cols]))

    def _pairs(self, picks: np.ndarray, cols: np.ndarray) -> np.ndarray:
        there = self.backend.block_sums(picks, cols)
        back = there if self.symmetric else self.backend.block(cols, picks).sum(axis=1, dtype=np.int64)
        return there + back

    def _gains(self, cols: np.ndarray | None) -> np.ndarray:
        if cols is not None:
            return self._refresh(cols)
        return np.concatenate(
            [self._refresh(np.arange(i, min(i + 4096, self.n))) for i in range(0, self.n, 4096)]
        )

    def gains(self) -> np.ndarray:
        return self._gains(None)

    def evaluate(self, cols: np.ndarray) -> _Refreshed:
        return _Refreshed(self, cols)

    def add(self, cols: np.ndarray) -> None:
        self.picks += [int(j) for j in cols]

    def value(self) -> float:
        picks = np.array(self.picks, np.int64)
        inside = sum(
            int(self.backend.block(picks[i : i + LEAST], picks[j : j + 4096]).sum(dtype=np.int64))
            for i in range(0, len(picks), LEAST)
            for j in range(0, len(picks), 4096)
        )
        return float(self.scale * (int(self.totals[picks].sum()) - self.lam * inside))

    def total(self) -> float:
        return float(self.scale * (1 - self.lam) * int(self.totals.sum()))


class _Refreshed:
    """A batch whose gains are evaluated anew after each accept, by the same formula as everywhere."""

    def __init__(self, state: LinearGraphCut | GeneralGraphCut, cols: np.ndarray):
        self.state, self.cols = state, cols
        self.held: Any = None  # features of the batch, for a linear similarity
        self.gains = state._gains(cols)

    def narrow(self, positions: np.ndarray) -> None:
        self.cols, self.gains = self.cols[positions], self.gains[positions]

    def accept(self, b: int) -> None:
        self.state.add(self.cols[b : b + 1])
        if isinstance(self.state, LinearGraphCut):
            if self.held is None or len(self.held) != len(self.cols):
                self.held = self.state.features.hold(self.cols)
            self.gains = self.state._gains(self.cols, self.held)
        else:
            self.gains = self.state._gains(self.cols)
