"""Facility location while rows are chosen: levels, dense work, then survivors."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from smartgpu.backends import MOST, STORE_ALL
from smartgpu.constraints import Found, Goal
from smartgpu.objectives import outside
from smartgpu.objectives.base import Ground, Pause
from smartgpu.objectives.cheap_bounds import CheapBounds
from smartgpu.similarity import Dot, Precomputed

if TYPE_CHECKING:
    from smartgpu.objectives.facility_location import FacilityLocation

WEIGHT_BITS = 39  # sum of integer weights < 2^39, times 2^22 quanta, stays below 2^62
START_AFTER = 0.04  # sweeps of dense work after which survivors are thought of
MOST_SHARE = 0.6  # of all pairs: with more survivors than that, dense work is cheaper
SPARSE_BATCH = 1 << 22  # pairs read for one batch


def whole_weights(weights: np.ndarray) -> tuple[np.ndarray, float]:
    """Weights as integers of one scale, (r,) int64 that add up to less than 2^39, and what a unit of them is worth."""
    power = WEIGHT_BITS - int(np.ceil(np.log2(weights.sum()))) - 1
    return np.rint(np.ldexp(weights, power)).astype(np.int64), float(np.ldexp(1.0, -power))


class FacilityLocationState:
    """Levels and exact integer excesses; `scale` turns them into gains.

    Work goes from dense to sparse. At first columns are computed as they are asked for, the search for them led by
    bounds. As soon as that has cost a share of a sweep, and the pairs that can still matter fit the memory, these
    survivors are stored, and there is no dense work after that.

    Targets (objectives/targets.py) bind it with a floor, where levels start, and a cap, beyond which rows gain nothing:
    f(S) = sum_i w_i max(0, min(max_{j in S} s_ij, cap_i) - floor_i), both (r,) float64, rounded to quanta. Columns and
    survivors are clipped at the cap. So is the level, and then a sweep needs no cap of its own:
    sum_i w_i max(min(s_ij, cap_i) - level_i, 0) is the excess over the level less that over the cap.
    """

    slack = 0.0
    margin = 0.0
    reach, active = 64, 32

    def __init__(
        self,
        spec: FacilityLocation,
        ground: Ground,
        floor: np.ndarray | None = None,
        cap: np.ndarray | None = None,
    ):
        self.backend = ground.backend(spec.represented)
        self.n = ground.n
        self.scale = self.backend.quantum
        self.weights = self.whole = None
        if spec.weights is not None:
            self.whole, worth = whole_weights(spec.weights)
            self.weights = self.backend.new_weights(self.whole)
            self.scale *= worth
        self.level = self.backend.new_level()
        self.low = self.high = None  # (r,) on the host: levels at the start, and at most
        self.cap = self.over = None  # the cap as a level, and the excesses over it
        self.base = 0  # what the floor alone would be worth
        self._limit(spec, ground, floor, cap)
        self.like = ground.like or (self.backend.r, self.n)
        self.sparse: Any = None  # the survivors, once stored
        self.keeps = (
            False  # they are kept as they were stored, with their level (r,) in quanta: swaps start from them
        )
        self.stored: tuple[Any, np.ndarray] | None = None
        self.cheap = None
        if ground.kind.affine is not None and not ground.apart(spec.represented):
            d, room = ground.x.shape[1], self.backend.memory - self.backend.held()
            size = self.backend.sizes.cheap_bounds(self.n, self.backend.r)
            if CheapBounds.pay(*self.like, d) and size <= room:
                self.cheap = CheapBounds(ground, spec.represented, self.whole)
        self.picks = self.compacted = 0
        self.spent = 0.0  # dense work since bounds were last fresh, in sweeps
        self.next_check = START_AFTER
        self.bounded = -1  # picks at the last cheap bounds
        self.renewed = False  # survivors were stored since gains were last asked for
        self.pair: Shared | None = None
        # s_ii is the largest similarity of row i, but for a dot product or a matrix of the user's
        exact = not isinstance(ground.kind, (Dot, Precomputed)) and not self.backend.rounded
        self._own_is_best = self.backend.same and exact

    def _limit(
        self, spec: FacilityLocation, ground: Ground, floor: np.ndarray | None, cap: np.ndarray | None
    ) -> None:
        """Start from the floor, raised by what counts as chosen; and nowhere beyond the cap."""
        backend = self.backend
        if floor is not None:
            self.low = self._quanta(floor)
            self.base = backend.level_sum(backend.level_from(self.low), self.weights)
        if cap is not None:
            self.high = self._quanta(cap)
            if self.low is not None:
                np.maximum(self.high, self.low, out=self.high)
            self.cap = backend.level_from(self.high)
        if ground.outside is not None:
            rows = ground.x if spec.represented is None else spec.represented
            chosen = self._quanta(outside.nearest(ground, rows, ground.outside)[1])
            chosen = chosen if self.high is None else np.minimum(chosen, self.high)
            self.low = chosen if self.low is None else np.maximum(chosen, self.low)
        if self.low is not None:
            self.level = backend.level_from(self.low)

    def _quanta(self, similarity: np.ndarray) -> np.ndarray:
        """No further than any similarity reaches: what lies beyond changes nothing."""
        return np.rint(np.clip(similarity / self.backend.quantum, 0, MOST)).astype(np.int64)

    def _unfinished(self) -> Any:
        """The level, beyond reach where it has come to the cap: no pair of such a row matters."""
        if self.cap is None:
            return self.level
        level = self.backend.level_values(self.level).astype(np.int64)
        return self.backend.level_from(np.where(level >= self.high, MOST, level))

    @property
    def max_batch(self) -> int:
        if self.sparse is None:
            return self.backend.max_batch()
        return int(np.clip(SPARSE_BATCH // max(len(self.sparse) // self.n, 1), 256, 8192))

    def gains(self) -> np.ndarray:
        if self.sparse is not None:
            return self.sparse.excess(self.level) * self.scale
        excess = self.backend.excess(self.level, self.weights)
        if self.cap is not None:
            if self.over is None:
                self.over = self.backend.excess(self.cap, self.weights)
            excess -= self.over
        return excess * self.scale

    def screen(self, cols: np.ndarray) -> None:
        return None

    def bounds(self) -> tuple[np.ndarray, bool]:
        if self.cheap is None and self.sparse is None and self._fits():
            self._build()
        if self.cheap is None or self.sparse is not None:
            self.renewed = False
            return self.gains(), True
        self.bounded = self.picks
        return self.cheap(self.backend.level_values(self.level)) * self.scale, False

    def improve(self) -> tuple[np.ndarray, bool] | None:
        if self.renewed:
            self.renewed = False
            return self.gains(), True
        if self.sparse is not None:
            if self.picks >= 2 * max(self.compacted, 1):
                self._wait()
                alone = self.sparse.alone
                self._compact(self.level)
                if not alone and self.sparse.alone:  # the backend may have a loop for what follows
                    return self.gains(), True
            return None
        if self.spent >= self.next_check:
            if self._fits():
                self._wait()
                if self._build():
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
        plain = goal.counts and self.weights is None and self.cap is None
        if self.sparse is None and plain and hasattr(self.backend, "whole") and self._all_fit():
            found = self.backend.whole(self.level, self.scale, goal)
            self.picks += len(found.indices)
            return iter((found,))
        start = getattr(self.backend, "loop", None)
        if start and self.cap is not None and self.sparse is None and not (self._fits() and self._build()):
            return None  # the loop's own tiles know no cap
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

    def twin(self) -> tuple[FacilityLocationState, Shared]:
        other = copy.copy(self)
        other.level = self.backend.level_from(self.backend.level_values(self.level))
        pair = Shared([self, other])
        return other, pair

    def within(self, cols: np.ndarray, low: np.ndarray) -> FacilityLocationState:
        """This objective over these candidates alone, with nothing chosen but what makes levels (r,) `low` quanta."""
        other, backend = copy.copy(self), self.backend.within(cols)
        other.backend, other.n, other.like = backend, len(cols), (backend.r, len(cols))
        other.level = backend.level_from(low)
        other.sparse = other.over = other.pair = other.stored = None
        other.keeps = False
        other.picks = other.compacted = 0
        other.spent, other.next_check, other.bounded, other.renewed = 0.0, START_AFTER, -1, False
        other._own_is_best = False
        if self.cheap is not None:
            other.cheap = lambda level: self.cheap(level)[cols]
        return other

    def _wait(self) -> None:
        if self.pair is not None:
            raise Pause

    def _build(self) -> bool:
        """Store the survivors, for a selection that shares them as well. False where they turn out not to fit."""
        level = self._unfinished() if self.pair is None else self.pair.level()
        found = self.backend.survivors(level, self.weights, self.cap)
        for state in [self] if self.pair is None else self.pair.states:
            state.sparse, state.compacted = found, state.picks
            if state.keeps and found is not None:
                state.stored = found, self.backend.level_values(level)
            state.renewed = state is not self and found is not None
        return found is not None

    def _compact(self, level: Any) -> None:
        """Drop survivors that are not above the level: of a copy, where swaps are to start from what was stored."""
        states, found = [self] if self.pair is None else self.pair.states, self.sparse
        if self.stored is None or found is not self.stored[0]:
            found.compact(level)
        else:
            room = self.backend.memory - self.backend.held() - found.nbytes
            found = found.above(level, room) or found
        for state in states:
            state.sparse, state.compacted = found, state.picks

    def _fits(self, level: Any = None) -> bool:
        if self._all_fit():
            return True
        every, level = self.backend.r * self.n, self._unfinished() if level is None else level
        return self.backend.estimate_survivors(level) <= min(MOST_SHARE * every, self._room())

    def _all_fit(self) -> bool:
        """Whether the pool is so small that all its pairs may be stored, and they fit."""
        every = self.backend.r * self.n
        return self.like[0] * self.like[1] <= STORE_ALL and every <= self._room()

    def _room(self) -> float:
        """Pairs for which the memory has room."""
        return (self.backend.memory - self.backend.held()) / self.backend.pair_bytes

    def evaluate(self, cols: np.ndarray) -> FacilityLocationBatch:
        if self.sparse is None:
            self.spent += len(cols) / self.n
        return FacilityLocationBatch(self, cols)

    def add(self, cols: np.ndarray) -> None:
        if len(cols):
            self.backend.raise_level(self.level, cols, self.cap)
            self.picks += len(cols)

    def value(self) -> float:
        return (self.backend.level_sum(self.level, self.weights) - self.base) * self.scale

    def levels(self) -> np.ndarray:
        """(r,) float64 similarity of each represented row to its nearest chosen row, 0 at least."""
        return self.backend.level_values(self.level) * self.backend.quantum

    def total(self) -> float:
        if self._own_is_best:
            best = self.backend.level_from(np.maximum(self.backend.diagonal(), 0))
        else:
            best = self.backend.row_max()
        if self.low is not None or self.high is not None:
            values = np.clip(self.backend.level_values(best), self.low, self.high)
            best = self.backend.level_from(values)
        return (self.backend.level_sum(best, self.weights) - self.base) * self.scale


class Shared:
    """Two selections from one pool that share survivors: pairs above the lower of their levels serve both."""

    def __init__(self, states: list[FacilityLocationState]):
        self.states = states
        for state in states:
            state.pair = self

    def level(self) -> Any:
        """The lower of both levels."""
        backend = self.states[0].backend
        return backend.level_from(
            np.minimum(*(backend.level_values(state._unfinished()) for state in self.states))
        )

    def meet(self) -> None:
        """Store the survivors, or drop those that neither needs."""
        one, level = self.states[0], self.level()
        if one.sparse is not None:
            one._compact(level)
        elif one._fits(level):
            one.renewed = one._build()
        for state in self.states:
            state.next_check = max(state.next_check, 2 * state.spent)

    def end(self, state: FacilityLocationState) -> None:
        for each in self.states:
            each.pair = None


class FacilityLocationBatch:
    def __init__(self, state: FacilityLocationState, cols: np.ndarray):
        self.state, self.positions = state, np.arange(len(cols))
        self.sparse = state.sparse is not None
        if self.sparse:
            self.kept = state.sparse.keep(state.level, cols)
        else:
            self.kept = state.backend.keep(state.level, cols, state.weights, state.cap)
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
