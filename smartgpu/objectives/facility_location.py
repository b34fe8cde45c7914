"""Facility location: every point is represented by its most similar chosen row."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from smartgpu.backends import QUANTUM, STORE_ALL, footprint
from smartgpu.constraints import Found, Goal
from smartgpu.objectives.base import Ground, Objective, per_row
from smartgpu.objectives.cost import Cost, Part, Shape
from smartgpu.similarity import Dot, Matrix, Precomputed, Similarity

WEIGHT_BITS = 39  # sum of integer weights < 2^39, times 2^22 quanta, stays below 2^62
START_AFTER = 0.04  # sweeps of dense work after which survivors are thought of
MOST_SHARE = 0.6  # of all pairs: with more survivors than that, dense work is cheaper
SPARSE_BATCH = 1 << 22  # pairs read for one batch


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

    def take(self, rows: np.ndarray) -> FacilityLocation:
        if self.weights is None or self.represented is not None:
            return self
        return FacilityLocation(self.weights[rows])

    def cost(self, shape: Shape) -> Cost:
        n, r = shape.n, shape.r if self.represented is None else len(self.represented)
        weighted = self.weights is not None
        vectors = footprint.per_row(r) + 24 * r * weighted
        least, most = (footprint.columns(r, m) for m in (footprint.MIN_BATCH, footprint.MAX_BATCH))
        parts = (
            *shape.represented(self.represented),
            Part("levels, weights and excesses", vectors),
            Part(f"{footprint.MIN_BATCH} columns of similarity", least),
        )
        every = r * n
        pairs = every if every <= STORE_ALL else MOST_SHARE * every
        extra = most - least + int(footprint.stored(pairs, n, r, shape.threads))
        if CheapBounds.pay(r, n, shape.d) and shape.kind.affine is not None:
            extra = max(extra, CheapBounds.bytes(r, n, shape.d, shape.threads))
        work = 2.0 * shape.d * (n + r) * (shape.d if shape.kind.affine is not None else 8)
        return Cost(parts, shape.dense(weighted), extra, terms=1, work=work)

    def bind(self, ground: Ground) -> FacilityLocationState:
        return FacilityLocationState(self, ground)


class FacilityLocationState:
    """Levels and exact integer excesses; `scale` turns them into gains.

    Work goes from dense to sparse. At first columns are computed as they are asked for, the search for them led by
    bounds. As soon as that has cost a share of a sweep, and the pairs that can still matter fit the memory, these
    survivors are stored, and there is no dense work after that.
    """

    slack = 0.0
    margin = 0.0
    reach, active = 64, 32

    def __init__(self, spec: FacilityLocation, ground: Ground):
        self.backend = ground.backend(spec.represented)
        self.n = ground.n
        self.scale = self.backend.quantum
        self.weights = self.whole = None
        if spec.weights is not None:
            power = WEIGHT_BITS - int(np.ceil(np.log2(spec.weights.sum()))) - 1
            self.whole = np.rint(np.ldexp(spec.weights, power)).astype(np.int64)
            self.weights = self.backend.new_weights(self.whole)
            self.scale *= float(np.ldexp(1.0, -power))
        self.level = self.backend.new_level()
        self.like = ground.like or (self.backend.r, self.n)
        self.sparse: Any = None  # the survivors, once stored
        self.cheap = None
        if ground.kind.affine is not None:
            d, room = ground.x.shape[1], self.backend.memory - self.backend.held()
            size = CheapBounds.bytes(self.backend.r, self.n, d, ground.workers.threads)
            if CheapBounds.pay(*self.like, d) and size <= room:
                self.cheap = CheapBounds(ground, spec.represented, self.whole)
        self.picks = self.compacted = 0
        self.spent = 0.0  # dense work since bounds were last fresh, in sweeps
        self.next_check = START_AFTER
        self.bounded = -1  # picks at the last cheap bounds
        # s_ii is the largest similarity of row i, but for a dot product or a matrix of the user's
        exact = not isinstance(ground.kind, (Dot, Precomputed)) and not self.backend.rounded
        self._own_is_best = self.backend.same and exact

    @property
    def max_batch(self) -> int:
        if self.sparse is None:
            return self.backend.max_batch()
        return int(np.clip(SPARSE_BATCH // max(len(self.sparse) // self.n, 1), 256, 8192))

    def gains(self) -> np.ndarray:
        if self.sparse is not None:
            return self.sparse.excess(self.level) * self.scale
        return self.backend.excess(self.level, self.weights) * self.scale

    def screen(self, cols: np.ndarray) -> None:
        return None

    def bounds(self) -> tuple[np.ndarray, bool]:
        if self.cheap is None and self.sparse is None and self._fits():
            self._build()
        if self.cheap is None or self.sparse is not None:
            return self.gains(), True
        self.bounded = self.picks
        return self.cheap(self.backend.level_values(self.level)) * self.scale, False

    def improve(self) -> tuple[np.ndarray, bool] | None:
        if self.sparse is not None:
            if self.picks >= 2 * max(self.compacted, 1):
                self.sparse.compact(self.level)
                self.compacted = self.picks
            return None
        if self.spent >= self.next_check:
            if self._fits():
                self._build()
                return self.gains(), True
            self.next_check = 2 * self.spent
            if (
                self.cheap is not None
            ):  # many picks to come before survivors fit: exact bounds are worth a sweep
                self.cheap = None
                return self.gains(), True
        if self.cheap is not None and self.picks > self.bounded:
            return self.bounds()
        return None

    def resident(self, goal: Goal) -> Iterator[Found] | None:
        start = getattr(self.backend, "loop", None)
        loop = start and start(self.level, self.weights, self.scale, goal, self.sparse)
        return loop and self._resident(loop)

    def _resident(self, loop: Any) -> Iterator[Found]:
        loop.bound(*self.bounds())
        while not loop.done:
            better = self.improve()
            if better is not None:
                loop.bound(*better)
            # until survivors are thought of again, and a little before cheap bounds may be better than what is known
            share = START_AFTER / 2 if self.cheap is not None else self.next_check - self.spent
            found = loop.advance(self.sparse, max(share, START_AFTER / 2))
            self.picks += len(found.indices)
            if self.sparse is None:
                self.spent += found.evaluations / self.n
            yield found

    def _build(self) -> None:
        self.sparse = self.backend.survivors(self.level, self.weights)
        self.compacted = self.picks

    def _fits(self) -> bool:
        room = (self.backend.memory - self.backend.held()) / self.backend.pair_bytes
        every = self.backend.r * self.n
        if every <= room and self.like[0] * self.like[1] <= STORE_ALL:
            return True
        return self.backend.estimate_survivors(self.level) <= min(MOST_SHARE * every, room)

    def evaluate(self, cols: np.ndarray) -> FacilityLocationBatch:
        if self.sparse is None:
            self.spent += len(cols) / self.n
        return FacilityLocationBatch(self, cols)

    def add(self, cols: np.ndarray) -> None:
        if len(cols):
            self.backend.raise_level(self.level, cols)
            self.picks += len(cols)

    def value(self) -> float:
        return self.backend.level_sum(self.level, self.weights) * self.scale

    def levels(self) -> np.ndarray:
        """(r,) float64 similarity of each represented row to its nearest chosen row, 0 at least."""
        return self.backend.level_values(self.level) * self.backend.quantum

    def total(self) -> float:
        if self._own_is_best:
            own = self.backend.level_from(np.maximum(self.backend.diagonal(), 0))
            return self.backend.level_sum(own, self.weights) * self.scale
        return self.backend.level_sum(self.backend.row_max(), self.weights) * self.scale


class FacilityLocationBatch:
    def __init__(self, state: FacilityLocationState, cols: np.ndarray):
        self.state, self.positions = state, np.arange(len(cols))
        self.sparse = state.sparse is not None
        if self.sparse:
            self.kept = state.sparse.keep(state.level, cols)
        else:
            self.kept = state.backend.keep(state.level, cols, state.weights)
        self.gains = self.kept.excess * state.scale

    def narrow(self, positions: np.ndarray) -> None:
        if self.sparse:
            self.kept = self.state.sparse.narrow(self.kept, positions)
        else:
            self.positions = self.positions[positions]
        self.gains = self.gains[positions]

    def accept(self, b: int) -> None:
        state = self.state
        if self.sparse and self.kept.rows is None:  # a small batch that nobody narrowed
            self.kept = state.sparse.narrow(self.kept, np.arange(len(self.gains)))
        owner = state.sparse if self.sparse else state.backend
        owner.accept(self.kept, int(b if self.sparse else self.positions[b]), state.level)
        state.picks += 1
        excess = self.kept.excess if self.sparse else self.kept.excess[self.positions]
        self.gains = excess * state.scale


class CheapBounds:
    """Upper bounds on all excesses from second moments, without a sweep, for s = a x.y + b.

    With u_ij = s_ij - level_i and W = sum w:  sum_i w_i max(u_ij, 0) <= (sum_i w_i u_ij + sqrt(W sum_i w_i u_ij^2)) / 2
    by Cauchy-Schwarz, and both sums come from X'WX, X'w and X'(w level). O(n d^2) once, O(n d) per level.
    The similarities of the engine differ from the real ones by rounding: `error` per pair, proven, is added.
    """

    def __init__(self, ground: Ground, represented: np.ndarray | None, weights: np.ndarray | None):
        self.a, self.b = ground.kind.affine
        self.x, self.rows = ground.features(represented)
        r, d = self.rows.x.shape
        self.w = np.ones(r) if weights is None else weights.astype(np.float64)
        self.total = self.w.sum()
        self.error = 2.0**-23 + (d + 16) * 2.0**-23  # quantisation, and a float32 chain of d products
        self.quadratic = self.a**2 * self.x.quadratic(self.rows.second_moment(self.w))

    @staticmethod
    def pay(r: int, n: int, d: int) -> bool:
        """Two products with d x d matrices, in float64, should cost less than the sweep that they save."""
        return r * n > 4 * d * (r + n)

    @staticmethod
    def bytes(r: int, n: int, d: int, threads: int) -> int:
        """What they take, scratch included."""
        return footprint.second_moment(d, threads) + footprint.per_row(r + n)

    def __call__(self, level: np.ndarray) -> np.ndarray:
        """(n,) float64 bounds on the excesses in quanta, at this level (r,) in quanta."""
        shift = self.b - level * QUANTUM
        moments = self.rows.moments(np.stack([self.w, self.w * shift], axis=1))
        along = self.x.times(moments * np.array([self.a, 2 * self.a]))
        linear = along[:, 0] + (self.w * shift).sum()
        squares = self.quadratic + along[:, 1] + (self.w * shift**2).sum()
        bound = (linear + np.sqrt(self.total * np.maximum(squares, 0))) / 2
        return (bound + self.total * self.error) / QUANTUM * (1 + 1e-9)
