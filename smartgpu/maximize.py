"""Maximizers: naive, lazy in batches, and stochastic greedy, over any objective state.

A pick is the candidate with the largest (gain, then index): the lowest index wins ties, or the highest where
tie_break="high". Comparing gains alone would go wrong on copies.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from smartgpu.checkpoint import Checkpoint
from smartgpu.constraints import Constraint
from smartgpu.objectives import State

CLOSED = -np.inf
LOWEST = np.finfo(
    np.float64
).min  # a gain of -inf that may still be picked (the objective then explains itself)
FIRST_BATCH = 64
NARROW = 32  # candidates of a batch that stay in the race after evaluation


class Order:
    """The order of candidates: by value, ties by index."""

    def __init__(self, tie_break: str = "low"):
        self.low = tie_break == "low"

    def best(self, values: np.ndarray) -> int:
        """Position of the best of `values`, which are sorted by index."""
        return int(values.argmax()) if self.low else len(values) - 1 - int(values[::-1].argmax())

    def beats(self, value: float, index: int, other: float, other_index: int) -> bool:
        return value > other or (value == other and (index < other_index) == self.low)

    def top(self, values: np.ndarray, m: int) -> np.ndarray:
        """Indices of the m best candidates, ascending; closed ones never."""
        n = len(values)
        if m < n:
            least = np.partition(values, n - m)[n - m]
            if least > CLOSED:
                above, level = np.flatnonzero(values > least), np.flatnonzero(values == least)
                room = m - len(above)
                return np.sort(np.concatenate([above, level[:room] if self.low else level[-room:]]))
        return np.flatnonzero(values > CLOSED)


@dataclass
class Run:
    """What a maximizer did: picks in order, their gains, and how many candidate gains were evaluated."""

    indices: list[int] = field(default_factory=list)
    gains: list[float] = field(default_factory=list)
    evaluations: int = 0


class Picker:
    """Takes the picks of one run: records them, reports progress, and knows when to stop.

    until: stop as soon as `start` plus the gains reaches this value. report(j, gain) is called after every pick.
    """

    def __init__(self, constraint: Constraint, start: float, until: float | None, report: Callable | None):
        self.constraint, self.until, self.report = constraint, until, report
        self.reached = start
        self.run = Run()
        self.checkpoint: Checkpoint | None = None

    @property
    def done(self) -> bool:
        enough = self.until is not None and self.reached >= self.until - 1e-12 * abs(self.until)
        return enough or self.constraint.done or not self.constraint.open.any()

    def take(self, j: int, gain: float) -> None:
        self.constraint.take(j)
        self.run.indices.append(j)
        self.run.gains.append(gain)
        self.reached += gain
        if self.report is not None:
            self.report(j, gain)
        if self.checkpoint is not None:
            self.checkpoint.save(self.run.indices, self.run.gains)


def naive(state: State, picker: Picker, order: Order) -> None:
    """Every gain, at every pick. O(k) sweeps: the plain definition on a backend."""
    while not picker.done:
        gains = np.maximum(state.gains(), LOWEST)
        picker.run.evaluations += int(picker.constraint.open.sum())
        gains[~picker.constraint.open] = CLOSED
        j = order.best(gains)
        state.add(np.array([j]))
        picker.take(j, float(gains[j]))


def lazy(state: State, picker: Picker, order: Order) -> None:
    """Lazy greedy in batches: the same picks as naive, from far fewer evaluations.

    Stale gains bound fresh ones. The candidates with the best bounds are evaluated together, and picks are taken from
    among them for as long as the best fresh gain beats every bound outside, ties by index included.
    """
    constraint, run = picker.constraint, picker.run
    known = Bounds(state, constraint)
    size = FIRST_BATCH
    while not picker.done:
        known.improve()
        outside = known.now()
        cols = order.top(outside, min(size, state.max_batch))
        batch = state.evaluate(cols)
        run.evaluations += len(cols)
        known.set(cols, batch.gains)
        if len(cols) > NARROW:  # most of a batch will not be picked: go on with its best
            best = order.top(np.maximum(batch.gains, LOWEST), NARROW)
            batch.narrow(best)
            cols = cols[best]
        outside = known.now()
        outside[cols] = CLOSED
        rest = order.best(outside)
        limit = float(outside[rest])
        picks = 0
        while not picker.done:
            gains = np.where(constraint.open[cols], np.maximum(batch.gains, LOWEST), CLOSED)
            b = order.best(gains)
            gain, j = float(gains[b]), int(cols[b])
            if gain == CLOSED or not order.beats(gain, j, limit + known.rise * picks, rest):
                break
            batch.accept(b)
            picker.take(j, gain)
            picks += 1
        known.set(cols, batch.gains, picks)
        size = max(FIRST_BATCH, 2 * picks) if picks else 2 * size


class Bounds:
    """Upper bounds on the gains of all candidates; closed ones are CLOSED."""

    def __init__(self, state: State, constraint: Constraint):
        self.state, self.constraint = state, constraint
        self.rise = state.slack + state.margin
        self.t = 0  # picks so far
        values, _ = state.bounds()
        self.values = np.maximum(values, LOWEST)
        self.values[~constraint.open] = CLOSED
        self.age = np.zeros(state.n, np.int64)  # picks made when the bound was fresh

    def improve(self) -> None:
        better = self.state.improve()
        if better is None:
            return
        values, fresh = better
        values = np.maximum(values, LOWEST)
        if fresh:
            self.values, self.age[:] = values, self.t
        else:
            self.values, self.age[:] = np.minimum(self.now(), values), self.t
        self.values[~self.constraint.open] = CLOSED

    def now(self) -> np.ndarray:
        """(n,) a copy of the bounds, with what a gain may have risen by since."""
        if not self.rise:
            return self.values.copy()
        since = self.t - self.age
        return self.values + np.where(since > 0, self.state.margin + self.state.slack * since, 0.0)

    def set(self, cols: np.ndarray, gains: np.ndarray, picks: int = 0) -> None:
        """Fresh gains of cols, `picks` picks later."""
        self.t += picks
        self.values[cols] = np.maximum(gains, LOWEST)
        self.age[cols] = self.t
        if picks:
            self.values[cols[~self.constraint.open[cols]]] = CLOSED


def stochastic(state: State, picker: Picker, order: Order, *, epsilon: float, seed: int) -> None:
    """Stochastic greedy: at each pick the best of a fresh sample of ceil(n / k ln(1 / epsilon)) open candidates.

    (1 - 1/e - epsilon) f(OPT) in expectation, O(n ln(1 / epsilon)) evaluations in all (Mirzasoleiman et al., AAAI 2015).
    """
    constraint, run = picker.constraint, picker.run
    rng = np.random.default_rng(seed)
    size = max(1, int(np.ceil(constraint.open.sum() / max(constraint.k, 1) * np.log(1 / epsilon))))
    while not picker.done:
        candidates = np.flatnonzero(constraint.open)
        cols = np.sort(rng.choice(candidates, min(size, len(candidates)), replace=False))
        gains = np.concatenate(
            [
                state.evaluate(cols[i : i + state.max_batch]).gains
                for i in range(0, len(cols), state.max_batch)
            ]
        )
        run.evaluations += len(cols)
        b = order.best(np.maximum(gains, LOWEST))
        state.add(cols[b : b + 1])
        picker.take(int(cols[b]), float(gains[b]))
