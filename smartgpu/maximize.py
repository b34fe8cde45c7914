"""Maximizers: naive, lazy in batches, stochastic and threshold greedy, over any objective state.

A pick is the candidate with the largest (gain, then index): the lowest index wins ties, or the highest where
tie_break="high". Comparing gains alone would go wrong on copies.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from smartgpu.checkpoint import Checkpoint
from smartgpu.constraints import Constraint, Goal
from smartgpu.objectives.base import Pair, Pause, State

CLOSED = -np.inf
LOWEST = np.finfo(
    np.float64
).min  # a gain of -inf that may still be picked (the objective then explains itself)


def maximize(
    state: State, picker: Picker, maximizer: str, *, tie_break: str, epsilon: float, seed: int
) -> None:
    """Make the picks that are still to be made: "lazy", "naive", "stochastic" or "threshold"."""
    order = Order(tie_break)
    if picker.done:
        return
    if maximizer == "lazy":
        lazy(state, picker, order)
    elif maximizer == "naive":
        naive(state, picker, order)
    elif maximizer == "threshold":
        threshold(state, picker, order, epsilon=epsilon)
    else:
        stochastic(state, picker, order, epsilon=epsilon, seed=seed)


def take_turns(runs: list[tuple[State, Picker]], pair: Pair | None, search: dict[str, Any]) -> None:
    """Make the picks of several runs; two whose states share work go on in turns, from one common need to the next."""
    going = list(runs)
    while going:
        for run in list(going):
            state, picker = run
            try:
                maximize(state, picker, **search)
            except Pause:
                continue
            going.remove(run)
            if pair is not None:
                pair.end(state)
                pair = None
        if going and pair is not None:
            pair.meet()


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
        self.constraint, self.start, self.until, self.report = constraint, start, until, report
        self.reached = start
        self.known: Bounds | None = None  # of a lazy search: it goes on from there after a Pause
        self.run = Run()
        self.checkpoint: Checkpoint | None = None

    @property
    def done(self) -> bool:
        if self.until is not None and self.reached >= self.until - 1e-12 * abs(self.until):
            if not self.constraint.unmet:
                return True
            self.constraint.only_needs()
        return self.constraint.done

    def may_end(self, gain: float) -> bool:
        """Whether to stop before a best gain of so much."""
        return gain < 0 and self.constraint.may_stop

    def goal(self, order: Order) -> Goal | None:
        """What is left to pick, where that can be said as data."""
        goal = self.constraint.goal()
        if goal is None:
            return None
        until = np.inf if self.until is None else self.until - 1e-12 * abs(self.until)
        if self.reached >= until:  # minima are still unmet
            until = np.inf
        return replace(goal, low=order.low, reached=self.reached, until=until)

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
        j = order.best(picker.constraint.rate(gains))
        if picker.may_end(float(gains[j])):
            break
        state.add(np.array([j]))
        picker.take(j, float(gains[j]))


def lazy(state: State, picker: Picker, order: Order) -> None:
    """Lazy greedy in batches: the same picks as naive, from far fewer evaluations.

    Stale gains bound fresh ones. The candidates with the best bounds are evaluated together, and picks are taken from
    among them for as long as the best fresh gain beats every bound outside, ties by index included.
    """
    constraint = picker.constraint
    if picker.known is None:
        if resident(state, picker, order):
            return
        picker.known = Bounds(state, constraint)
        if resident(state, picker, order):  # bounds may have stored what a loop walks
            return
    _lazy(state, picker, order, picker.known)


def _lazy(state: State, picker: Picker, order: Order, known: Bounds) -> None:
    constraint, run = picker.constraint, picker.run
    size = first = state.reach
    batch, known.rated = None, None
    while not picker.done:
        del batch  # its columns, before others are kept
        if known.improve() and resident(state, picker, order):
            return
        cols = order.top(known.rates(), min(size, state.max_batch))
        better = state.screen(cols) if len(cols) > state.active else None
        if better is not None:
            known.lower(cols, better)
            cols = order.top(known.rates(), state.active)
        batch = state.evaluate(cols)
        run.evaluations += len(cols)
        known.set(cols, batch.gains)
        if len(cols) > state.active:  # most of a batch will not be picked: go on with its best
            best = order.top(constraint.rate(np.maximum(batch.gains, LOWEST), cols), state.active)
            batch.narrow(best)
            cols = cols[best]
        rest, limit = known.best_outside(cols, order)
        divisor = None if constraint.divisor is None else constraint.divisor[cols]
        picks = 0
        while not picker.done:
            gains = np.where(constraint.open[cols], np.maximum(batch.gains, LOWEST), CLOSED)
            rates = gains if divisor is None else gains / divisor
            b = order.best(rates)
            gain, j = float(gains[b]), int(cols[b])
            if gain == CLOSED or not order.beats(float(rates[b]), j, limit + known.rise(picks), rest):
                break
            if picker.may_end(gain):
                return
            batch.accept(b)
            picker.take(j, gain)
            picks += 1
        if picks:
            known.advance(picks)
            known.set(cols, batch.gains)
        size = max(first, 2 * picks) if picks else 2 * size


def resident(state: State, picker: Picker, order: Order) -> bool:
    """Leave the picks to the backend's own loop, where there is one for this state: the same picks as lazy()."""
    goal = picker.goal(order)
    looks = None if goal is None else state.resident(goal)
    if looks is None:
        return False
    for found in looks:
        picker.run.evaluations += found.evaluations
        for j, gain in zip(found.indices.tolist(), found.gains.tolist(), strict=True):
            picker.take(j, gain)
    if picker.constraint.unmet and not picker.done:  # enough is reached, and minima are left
        return resident(state, picker, order)
    return True


class Bounds:
    """Upper bounds on the gains of all candidates; CLOSED for closed ones.

    A fresh gain is its own bound. Once stale it gets the margin, and slack for every pick since: as a key, to which
    slack t is added after t picks, it never has to change.
    """

    def __init__(self, state: State, constraint: Constraint):
        self.state, self.constraint = state, constraint
        self.t = 0
        self.least = 1.0  # of what the bounds outside a batch are divided by
        self.keys = np.full(state.n, CLOSED)
        self.fresh: list[tuple[np.ndarray, np.ndarray]] = []  # (candidates, gains) without a margin yet
        self.rated: np.ndarray | None = None  # what rates() gave, for as long as it holds
        self._reset(*state.bounds())

    def _reset(self, bounds: np.ndarray, fresh: bool) -> None:
        self.fresh, self.rated = [], None
        every = np.arange(len(bounds))
        self.set(every, bounds)
        if not fresh:
            self._age()

    def now(self) -> np.ndarray:
        """(n,) the bounds; not to be kept."""
        if not self.state.slack:
            return self.keys
        out = self.keys + self.state.slack * self.t
        for cols, gains in self.fresh:  # exactly, not by way of a key
            out[cols] = gains
        return out

    def rates(self) -> np.ndarray:
        """(n,) what candidates are compared by, of the bounds; not to be kept."""
        if self.rated is None:
            self.rated = self.constraint.rate(self.now())
        return self.rated

    def improve(self) -> bool:
        """Take the state's better bounds, where it has some."""
        better = self.state.improve()
        if better is not None:
            bounds, fresh = better
            self._reset(bounds if fresh else np.minimum(bounds, self.now()), fresh)
        return better is not None

    def lower(self, cols: np.ndarray, bounds: np.ndarray) -> None:
        """Better upper bounds of cols, now. For states without slack."""
        self.keys[cols] = np.minimum(self.keys[cols], np.maximum(bounds, LOWEST))
        self._rate(cols, self.keys[cols])

    def best_outside(self, cols: np.ndarray, order: Order) -> tuple[int, float]:
        """The best candidate not among cols, and its bound."""
        bounds = self.rates()
        held = bounds[cols]
        bounds[cols] = CLOSED
        rest = order.best(bounds)
        limit = float(bounds[rest])
        bounds[cols] = held
        self.least = self.constraint.least_divisor()
        return rest, limit

    def rise(self, picks: int) -> float:
        """How much more than now a rate outside may be `picks` picks later."""
        return (self.state.margin + self.state.slack * picks) / self.least if picks else 0.0

    def advance(self, picks: int) -> None:
        """That many picks were made: what was fresh is stale."""
        if picks:
            self._age()
            self.t += picks
            self.rated = None

    def _age(self) -> None:
        if self.state.margin:
            for cols, _ in self.fresh:
                self.keys[cols] += self.state.margin
        self.fresh = []

    def set(self, cols: np.ndarray, gains: np.ndarray) -> None:
        """Fresh gains of cols, now."""
        gains = np.where(self.constraint.open[cols], np.maximum(gains, LOWEST), CLOSED)
        self.keys[cols] = gains - self.state.slack * self.t
        self._rate(cols, gains)
        if self.state.slack or self.state.margin:
            self.fresh.append((cols, gains))

    def _rate(self, cols: np.ndarray, bounds: np.ndarray) -> None:
        if self.rated is not None and self.rated is not self.keys:
            self.rated[cols] = self.constraint.rate(bounds, cols)


def stochastic(state: State, picker: Picker, order: Order, *, epsilon: float, seed: int) -> None:
    """Stochastic greedy: at each pick the best of a fresh sample of ceil(n / k ln(1 / epsilon)) open candidates.

    An epsilon of 1 or more is the size of the sample itself (submodlib's meaning; Options takes none of these).
    (1 - 1/e - epsilon) f(OPT) in expectation, O(n ln(1 / epsilon)) evaluations (Mirzasoleiman et al., AAAI 2015).
    """
    constraint = picker.constraint
    size = int(epsilon)
    if epsilon < 1:
        size = max(1, int(np.ceil(constraint.open.sum() / max(constraint.k, 1) * np.log(1 / epsilon))))
    sampled(state, picker, order, np.random.default_rng(seed), size)


def sampled(
    state: State, picker: Picker, order: Order, rng: np.random.Generator | np.random.RandomState, size: int
) -> None:
    """At each pick the best of a fresh sample of `size` open candidates."""
    constraint, run = picker.constraint, picker.run
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
        b = order.best(constraint.rate(np.maximum(gains, LOWEST), cols))
        if picker.may_end(float(gains[b])):
            break
        state.add(cols[b : b + 1])
        picker.take(int(cols[b]), float(gains[b]))


def threshold(state: State, picker: Picker, order: Order, *, epsilon: float) -> None:
    """Threshold greedy: for w = d, (1 - epsilon) d, (1 - epsilon)^2 d, ..., each row in turn whose gain is w or more.

    d is the largest gain at first. Every pick has at least 1 - epsilon of the largest gain there is, down to
    w = epsilon d / n; what is still to be picked then comes in turn too, rows of gain 0 included. (1 - 1/e - epsilon)
    f(OPT), O(n / epsilon log(n / epsilon)) evaluations (Badanidiyuru and Vondrak, SODA 2014), of which bounds save
    most: a row is looked at again only where its last gain was w or more. The thresholds do not depend on k, so that
    the first picks of more rows are those of fewer. With costs, thresholds are of gain / cost.
    """
    known = Bounds(state, picker.constraint)
    first = _largest(state, picker, order, known)
    i, w = 0, first
    while first > 0 and w >= epsilon * first / state.n and not picker.done:
        _band(state, picker, order, known, w)
        most = float(picker.constraint.rate(known.now()).max())
        i, w = i + 1, first * (1 - epsilon) ** (i + 1)
        while w > max(most, epsilon * first / state.n):  # nobody reaches these
            i, w = i + 1, first * (1 - epsilon) ** (i + 1)
    if not picker.done:
        _band(state, picker, order, known, 0.0)
    if not picker.done:  # only gains below 0 are left
        lazy(state, picker, order)


def _largest(state: State, picker: Picker, order: Order, known: Bounds) -> float:
    """The largest rate there is, by evaluating candidates until none outside can have a larger one."""
    size = state.reach
    while True:
        known.improve()
        cols = order.top(picker.constraint.rate(known.now()), min(size, state.max_batch))
        gains = state.evaluate(cols).gains
        picker.run.evaluations += len(cols)
        known.set(cols, gains)
        best = float(picker.constraint.rate(np.maximum(gains, LOWEST), cols).max())
        if best >= known.best_outside(cols, order)[1]:
            return best
        size *= 2


def _band(state: State, picker: Picker, order: Order, known: Bounds, w: float) -> None:
    """Each row in turn whose rate is w or more when it is looked at: one pass, evaluated in batches."""
    constraint, run = picker.constraint, picker.run
    first, last = 0, state.n  # rows not looked at yet
    batch = None
    while not picker.done:
        del batch  # its columns, before others are kept
        known.improve()
        cols = first + np.flatnonzero(constraint.rate(known.now())[first:last] >= w)
        if not len(cols):
            return
        size = min(2 * state.active, state.max_batch)
        cols = cols[:size] if order.low else cols[-size:]
        first, last = (int(cols[-1]) + 1, last) if order.low else (first, int(cols[0]))
        batch = state.evaluate(cols)
        run.evaluations += len(cols)
        known.set(cols, batch.gains)
        turn = np.arange(len(cols)) if order.low else np.arange(len(cols))[::-1]
        picks = 0
        while not picker.done:
            gains = np.where(constraint.open[cols], np.maximum(batch.gains, LOWEST), CLOSED)
            enough = np.flatnonzero(constraint.rate(gains, cols)[turn] >= w)
            if not len(enough):
                break
            b, turn = int(turn[enough[0]]), turn[enough[0] + 1 :]
            gain = float(gains[b])
            batch.accept(b)
            picker.take(int(cols[b]), gain)
            picks += 1
        if picks:
            known.advance(picks)
            known.set(cols, batch.gains)
