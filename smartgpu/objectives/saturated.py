"""Coverage whose features are similarities: saturated coverage of the pool, and concave over modular for a query."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from smartgpu.arrays import on_host
from smartgpu.backends import MOST
from smartgpu.objectives import outside
from smartgpu.objectives.base import Eager, Ground, Objective, State
from smartgpu.objectives.cost import Cost, Part, Shape
from smartgpu.objectives.coverage_state import CONCAVE, CoverageState, Smooth, in_work
from smartgpu.objectives.graph_cut import nonnegative
from smartgpu.objectives.modular import ModularState
from smartgpu.objectives.targets import Target
from smartgpu.objectives.weighted_sum import WeightedSumState
from smartgpu.similarity import Matrix, Similarity, choose

GROUP = 256  # rows that are added up side by side
MOST_GROUPS = 500  # similarities below 2^22, added up in 32 bits
SLICE = 1 << 16  # similarities in work in a thread
TOGETHER = 64  # columns of one thread
REFRESH = 0.5  # sweeps of columns after which all gains are made anew by one sweep


@dataclass(frozen=True, eq=False)
class SaturatedCoverage(Objective):
    """f(S) = sum_i min(sum_{j in S} s_ij, alpha sum_{j in V} s_ij): every row is similar enough to what is chosen.

    alpha  the share, in (0, 1], of a row's similarity to the whole pool beyond which more is worth nothing

    Monotone and submodular, for similarities >= 0: a kind that cannot be negative, or cosine and dot of features >= 0,
    or a matrix without negative entries. Exact integers, as facility location: with r_i = what row i still lacks, a
    gain is sum_i min(s_ij, r_i) = sum_i s_ij - sum_i max(s_ij - r_i, 0), a total less an excess over the level r.
    One sweep, and O(n d) for every column of a batch. On the CPU columns stay while `memory` has room for them, cut to
    the rows that still lack something.
    Raises ValueError for an alpha outside (0, 1] and negative similarities.
    """

    alpha: float = 0.1
    name: ClassVar[str] = "saturated_coverage"

    def __post_init__(self) -> None:
        alpha = nonnegative("alpha", self.alpha)
        if not 0 < alpha <= 1:
            raise ValueError(f"alpha must lie in (0, 1], got {alpha}")
        object.__setattr__(self, "alpha", alpha)

    def check(self, x: np.ndarray | Matrix, kind: Similarity) -> None:
        need_positive(self.name, x, kind)

    def cost(self, shape: Shape) -> Cost:
        n, r, sizes = shape.n, shape.r, shape.footprint
        least, most = (sizes.columns(r, m) for m in (sizes.least_batch, sizes.most_batch))
        parts = (
            *shape.features,
            Part("sums, caps and levels", sizes.levels(n, r, False) + sizes.host(64 * r)),
            Part("totals", sizes.totals(n)),
            Part(f"{sizes.least_batch} columns of similarity", least),
        )
        extra = most - least + sizes.host(Columns.bytes(n, r))
        return Cost(
            parts, shape.dense(r) + sizes.host(8 * SLICE), extra, terms=1, work=16.0 * shape.d * (n + r)
        )

    def bind(self, ground: Ground) -> State:
        return SaturatedState(self, ground)


def need_positive(what: str, x: Any, kind: Similarity) -> None:
    """ValueError where similarities within the pool may be negative."""
    if isinstance(x, Matrix):
        lowest = x.lowest
    elif kind.signed:
        lowest = min(float(x[i : i + 4096].min()) for i in range(0, len(x), 4096))
    else:
        return
    if lowest < 0:
        where = (
            "the matrix holds"
            if isinstance(x, Matrix)
            else f"features hold, on which {kind.name} is >= 0 no more,"
        )
        raise ValueError(
            f"{what} needs similarities >= 0, but {where} {lowest}: use cosine_shifted, cosine_squared, rbf, ..."
        )


class SaturatedState(Eager):
    """Sums and caps in quanta; rows lack `caps - sums`, which as a level gives all gains."""

    slack = margin = 0.0
    reach, active = 64, 32

    def __init__(self, spec: SaturatedCoverage, ground: Ground):
        self.backend = ground.backend()
        self.n, self.r, self.scale = ground.n, self.backend.r, self.backend.quantum
        self.totals = self.backend.totals()
        self.caps = np.rint(spec.alpha * self._whole(ground)).astype(np.int64)
        self.sums = np.zeros(self.r, np.int64)
        if ground.outside is not None:
            self.sums += np.rint(outside.sums(ground, ground.x, ground.outside) / self.scale).astype(np.int64)
        self.spent = 0.0  # dense work since all gains were made, in sweeps
        room = 0 if self.backend.remote else self.backend.memory - self.backend.held()
        self.workers = ground.workers
        self.columns = Columns.fitting(self, room)

    def _whole(self, ground: Ground) -> np.ndarray:
        """(r,) quanta: the similarity of each row to all candidates."""
        x = ground.x
        if not isinstance(x, Matrix) or x.symmetric:
            return self.totals
        if x.csc is not None:
            return np.bincount(x.csc[1], weights=x.csc[2], minlength=x.shape[0]) / self.scale
        step = max(1, (1 << 18) // x.shape[1])
        parts = [
            on_host(x.dense[i : i + step]).sum(axis=1, dtype=np.float64) for i in range(0, x.shape[0], step)
        ]
        return np.concatenate(parts) / self.scale

    @property
    def max_batch(self) -> int:
        return self.backend.max_batch()

    def lack(self) -> np.ndarray:
        """(r,) quanta that rows still want, no more than any similarity gives."""
        return np.clip(self.caps - self.sums, 0, MOST)

    def level(self) -> Any:
        return self.backend.level_from(self.lack())

    def gains(self) -> np.ndarray:
        return (self.totals - self.backend.excess(self.level())) * self.scale

    def bounds(self) -> tuple[np.ndarray, bool]:
        return self.totals * self.scale, False

    def improve(self) -> tuple[np.ndarray, bool] | None:
        if self.spent < REFRESH or self.columns is not None:
            return None
        self.spent = 0.0
        return self.gains(), True

    def evaluate(self, cols: np.ndarray) -> SaturatedBatch | ColumnsBatch:
        if self.columns is not None:
            return ColumnsBatch(self.columns, cols)
        return SaturatedBatch(self, cols)

    def add(self, cols: np.ndarray) -> None:
        for i in range(0, len(cols), self.max_batch):
            kept = self.backend.keep(self.level(), cols[i : i + self.max_batch])
            for b in range(len(cols[i : i + self.max_batch])):
                self.sums += self.backend.column(kept, b)
            del kept
        if self.columns is not None:
            self.columns.renew()

    def value(self) -> float:
        return float(int(np.minimum(self.sums, self.caps).sum()) * self.scale)

    def total(self) -> float:
        return float(int(self.caps.sum()) * self.scale)


class SaturatedBatch:
    """Kept columns, whose excesses are taken again over the new level after each accept."""

    def __init__(self, state: SaturatedState, cols: np.ndarray):
        self.state, self.cols = state, cols
        self.positions = np.arange(len(cols))
        self.kept = state.backend.keep(state.level(), cols)
        state.spent += len(cols) / state.n
        self._set(self.kept.excess)

    def _set(self, excess: np.ndarray) -> None:
        at = self.positions
        self.gains = (self.state.totals[self.cols[at]] - excess[at]) * self.state.scale

    def narrow(self, positions: np.ndarray) -> None:
        self.positions, self.gains = self.positions[positions], self.gains[positions]

    def accept(self, b: int) -> None:
        state = self.state
        state.sums += state.backend.column(self.kept, int(self.positions[b]))
        self._set(state.backend.excess_again(self.kept, state.level()))


class Columns:
    """Columns of similarity that stay, (slots, width) int32 quanta, of the rows that lack something when they were cut.

    The slots go round: the oldest column makes way where there is no room for all.
    """

    def __init__(self, state: SaturatedState, slots: int):
        self.state = state
        self.rows = np.arange(state.r)
        self.store = np.zeros((slots, _width(state.r)), np.int32)
        self.slot = np.full(state.n, -1, np.int64)  # of each candidate
        self.owner = np.full(slots, -1, np.int64)
        self.next = 0
        self.known = state.totals.copy()  # gains when last seen
        self.renew()

    @staticmethod
    def bytes(n: int, r: int, slots: int | None = None) -> int:
        return 4 * (n if slots is None else slots) * _width(r) + 32 * n + 16 * r

    @classmethod
    def fitting(cls, state: SaturatedState, room: int) -> Columns | None:
        """As many as there is room for; None where these are too few to be of use."""
        slots = min(state.n, (room - cls.bytes(state.n, state.r, 0)) // (4 * _width(state.r)))
        return cls(state, slots) if slots >= min(state.n, 4 * state.max_batch) else None

    def renew(self) -> None:
        """Sums have changed. Rows that lack nothing go once they are half of all."""
        self.lack = np.zeros(self.store.shape[1], np.int32)
        self.lack[: len(self.rows)] = self.state.lack()[self.rows]
        left = np.flatnonzero(self.lack[: len(self.rows)])
        if 2 * _width(len(left)) <= self.store.shape[1]:
            width = _width(len(left))
            for i in range(0, len(self.store), 256):  # to the front of each slot
                part = self.store[i : i + 256]
                part[:, : len(left)] = part[:, left]
                part[:, len(left) : width] = 0
            self.store = self.store[:, :width]
            self.rows = self.rows[left]
            self.renew()

    def find(self, cols: np.ndarray) -> np.ndarray:
        """Slots of candidates; those that are not there are computed."""
        missing = self._with_next(cols[self.slot[cols] < 0])
        state = self.state
        for i in range(0, len(missing), state.max_batch):
            some = missing[i : i + state.max_batch]
            kept = state.backend.keep(state.backend.new_level(), some)
            for b, j in enumerate(some):
                at = self._free(cols)
                self.store[at, : len(self.rows)] = state.backend.column(kept, b)[self.rows]
                self.slot[j], self.owner[at] = at, j
            del kept
        return self.slot[cols]

    def _with_next(self, missing: np.ndarray) -> np.ndarray:
        """With those that gained most when last seen: a product for a few columns takes as long as for TOGETHER."""
        room = min(TOGETHER, self.state.max_batch, len(self.store) // 4) - len(missing)
        if not len(missing) or room <= 0:
            return missing
        known = np.where(self.slot < 0, self.known, -1)
        known[missing] = -1
        best = (
            np.argpartition(known, len(known) - room)[len(known) - room :]
            if room < len(known)
            else self.rows[:0]
        )
        return np.concatenate([missing, best[known[best] >= 0]])

    def _free(self, needed: np.ndarray) -> int:
        """The next slot that none of the candidates needed is in."""
        while True:
            at, self.next = self.next, (self.next + 1) % len(self.store)
            owner = self.owner[at]
            if owner < 0:
                return at
            if owner not in needed:
                self.slot[owner] = -1
                return at

    def gains(self, slots: np.ndarray) -> np.ndarray:
        """(m,) int64: sum_i min(q_ij, what row i lacks)."""
        parts = [slots[i : i + TOGETHER] for i in range(0, len(slots), TOGETHER)]
        run = self.state.workers.run if len(parts) > 1 else map
        return np.concatenate(list(run(self._sums, parts)))

    def _sums(self, slots: np.ndarray) -> np.ndarray:
        out, width = np.zeros(len(slots), np.int64), self.store.shape[1]
        step = max(1, SLICE // width)
        for i in range(0, len(slots), step):
            part = slots[i : i + step]
            least = self.state.workers.buffer("least", (len(part), width), np.int32)
            for into, slot in zip(least, part, strict=True):  # not all at once: that would copy them first
                np.minimum(self.store[slot], self.lack, out=into)
            groups = least.reshape(len(part), -1, GROUP)
            for g in range(0, groups.shape[1], MOST_GROUPS):
                sums = groups[:, g : g + MOST_GROUPS].sum(axis=1, dtype=np.int32)
                out[i : i + step] += sums.sum(axis=1, dtype=np.int64)
        return out


class ColumnsBatch:
    def __init__(self, columns: Columns, cols: np.ndarray):
        self.columns, self.cols = columns, cols
        self._set(columns.find(cols))

    def _set(self, slots: np.ndarray) -> None:
        self.slots = slots
        gains = self.columns.gains(slots)
        self.columns.known[self.cols] = gains
        self.gains = gains * self.columns.state.scale

    def narrow(self, positions: np.ndarray) -> None:
        self.cols, self.slots, self.gains = self.cols[positions], self.slots[positions], self.gains[positions]

    def accept(self, b: int) -> None:
        columns = self.columns
        columns.state.sums[columns.rows] += columns.store[self.slots[b], : len(columns.rows)]
        columns.renew()
        self._set(self.slots)


def _width(rows: int) -> int:
    return max(-(-rows // GROUP), 1) * GROUP


@dataclass(frozen=True, eq=False)
class ConcaveOverModular(Target):
    """f(S) = sum_{q in query} phi(sum_{j in S} s_qj) + eta sum_{j in S} phi(sum_{q in query} s_qj).

    query    (q, d) rows, embedded as the pool is; similarities to them must be >= 0
    concave  phi: "log", "sqrt", "inverse" or a function, as for FeatureBased
    eta      >= 0: how much it counts that each chosen row is like the query

    Monotone and submodular: FeatureBased over the similarities to the query, and a modular term. (n, q) float32 are
    held on the host, O(n q d) once. submodlib's ConcaveOverModularFunction with queryDiversityEta (its default is
    "log"). Raises ValueError for negative similarities. Source: Kothawade et al., AAAI 2022 (PRISM).
    """

    query: Any
    concave: str | Callable[[np.ndarray], np.ndarray] = "log"
    eta: float = 1.0
    name: ClassVar[str] = "concave_over_modular"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not callable(self.concave):
            choose(self.concave, [name for name in CONCAVE if name != "saturated"], "concave")

    def cost(self, shape: Shape) -> Cost:
        q, host = len(self.query), shape.footprint.host
        parts = (
            Part("similarity to the query", host(4 * shape.n * q)),
            Part("sums and gains", host(64 * (shape.n + q))),
        )
        threads = getattr(shape.footprint, "threads", 1)
        scratch = outside.scratch(shape, self.query) + host(in_work(shape.n * q, q, threads))
        return Cost(parts, scratch, work=2.0 * shape.n * q * (shape.d + 10))

    def bind(self, ground: Ground) -> State:
        s = outside.similarities(ground, ground.x, self.query)
        if s.min() < 0:
            at = int(s.min(axis=1).argmin())
            raise ValueError(
                f"{self.name} needs similarities to the query that are >= 0, got {s.min()} at row {at} of X: "
                "use cosine_shifted, cosine_squared, rbf, ..."
            )
        start = None if ground.outside is None else outside.similarities(ground, ground.outside, self.query)
        curve = Smooth(self.concave)
        covered = CoverageState(s, curve, None, ground.workers, start)
        own = ModularState(curve.phi(s.sum(axis=1, dtype=np.float64)))
        return WeightedSumState([(1.0, covered), (self.eta, own)], ground.n)

    def describe(self) -> dict:
        out = super().describe()
        if callable(self.concave):
            out["concave"] = (
                f"{self.concave.__module__}.{getattr(self.concave, '__qualname__', self.concave)}"
            )
        return out
