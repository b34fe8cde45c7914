"""Better than greedy: chosen rows are exchanged for others while f rises, and how much better any choice could be.

Local search on the k-medoids objective, eager as in FasterPAM (Schubert and Rousseeuw 2021): a pass finds for every
candidate the chosen row that had best make way for it; those that would improve f are looked at again, the best first,
and swapped in at once where they still do. A pass that finds none proves a local optimum. What a swap changes is
objectives/swaps.py's matter; here are the order of things, limits, and the bound on the best possible.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from smartgpu.backends.pairs import Standing
from smartgpu.constraints import Constraint, Tree
from smartgpu.constraints.exchange import Exchange
from smartgpu.maximize import Picker, maximize
from smartgpu.objectives.swaps import Nearest, looked_at, terms
from smartgpu.options import parse_share

TOGETHER = 64  # candidates whose pairs are fetched at a time
STEPS = 40  # towards a better bound
SHAKES = 100  # at most where no time is said: 50, and one for every ten chosen rows
TRIED = 8  # candidates of one look at those near what has moved: what they lead to is looked at next
KICK = 6  # rows that a shake swaps in
UNLIMITED = 1 << 62
CLOSE = 1e-4  # of the value: a bound as near as that needs no further steps


@dataclass
class Polished:
    """What a search found: the swaps that led there, passes over all candidates, whether no swap of one row for
    another improves f, and a bound on f of any choice within the limits."""

    rows: np.ndarray  # (k,) int64, ascending
    swaps: int
    passes: int
    evaluations: int
    optimum: bool
    bound: float


class Limit:
    """When to stop: polish=True never before a local optimum, a float after so many seconds, an int of swaps, a text
    such as "0.01%" when a pass over all candidates has raised f by less than that share of it."""

    def __init__(self, polish: bool | int | float | str):
        self.swaps = polish if isinstance(polish, int) and not isinstance(polish, bool) else None
        self.end = time.perf_counter() + polish if isinstance(polish, float) else None
        self.share = parse_share(polish) if isinstance(polish, str) else None

    def reached(self, swaps: int) -> bool:
        return self.late() if self.swaps is None else swaps >= self.swaps

    def late(self) -> bool:
        return self.end is not None and time.perf_counter() >= self.end

    def little(self, rise: float, value: float) -> bool:
        return self.share is not None and rise < self.share * abs(value)

    @property
    def beyond(self) -> bool:
        """Whether the search goes on from a local optimum."""
        return self.swaps is None and self.share is None


class Search:
    """A chosen set, and swaps of its rows.

    state     of the objective; which rows it has chosen does not matter
    low       (r,) int32 quanta below which no represented row falls, or None without facility location
    limits    the chosen rows, and which may make way for which
    """

    def __init__(self, state: Any, low: np.ndarray | None, limits: Exchange, value: float):
        cover, factor, scores = terms(state)
        self.limits, self.scores = limits, scores
        self.near = None if cover is None else Nearest(cover, low, limits.rows)
        self.unit = 0.0 if cover is None else factor * cover.scale
        self.base = 0 if cover is None else cover.base
        self.least = self._rounding(value)
        self.swaps = self.passes = self.evaluations = 0

    def _rounding(self, value: float) -> float:
        """What a rise must exceed, or swaps that change nothing would go round in circles.

        Nothing where all that is added up is integers below 2^53 times a power of two; else 2^-40 of the largest sum
        of what is added up, which rounds by 2^-50 of it at most. Scores may cancel in the value, but not in that.
        """
        near, scores = self.near, self.scores
        plain = near is not None and scores is None and near.weights is None
        if plain and math.frexp(self.unit)[0] == 0.5:
            return 0.0
        covered = 0.0 if near is None else near.value() * self.unit
        most = 0.0 if scores is None else 2 * float(abs(scores).max())
        return 2.0**-40 * (abs(value) + covered + most)

    def _base(self) -> np.ndarray:
        """(k,) what taking each chosen row out changes."""
        base = np.zeros(len(self.limits.rows)) if self.near is None else -(self.near.loss * self.unit)
        return base if self.scores is None else base - self.scores[self.limits.rows]

    def _candidates(self) -> np.ndarray:
        """Candidates that improve f now, the best first, the lowest of equals."""
        limits, base = self.limits, self._base()
        if self.near is None:
            worth, _ = limits.floor(base)
        else:
            gain, worth, _ = self.near.pairs.best(self._standing(base))
            worth = worth + gain * self.unit
        if self.scores is not None:
            worth = worth + self.scores
        self.passes += 1
        self.evaluations += int(limits.open.sum())
        better = np.flatnonzero(limits.open & (worth > self.least))
        return better[np.argsort(-worth[better], kind="stable")]

    def _try(self, j: int, base: np.ndarray, pair: tuple, barred: Any = None) -> tuple[int, float]:
        """(the slot that j had best take now, the lowest of equals; what that adds). pair: j's rows and quanta."""
        self.evaluations += 1
        worth, gain = base, 0.0
        if self.near is not None:
            come, short = self.near.weigh(*pair)
            worth, gain = short * self.unit + base, come * self.unit
        allowed = self.limits.allowed(np.array([j]), np.arange(len(base)))
        if barred is not None:
            allowed = ~barred if allowed is None else allowed & ~barred
        if allowed is not None:
            worth = np.where(allowed, worth, -np.inf)
        slot = int(worth.argmax())
        total = worth[slot] + gain
        return slot, total if self.scores is None else total + self.scores[j]

    def _swap(self, j: int, slot: int, pair: tuple, some: Any = None) -> None:
        if self.near is not None:
            row = self.limits.rows[slot : slot + 1]
            gone = self.near.pairs.gather(row)[:2] if some is None else some.pair(some.place(row[0]))
            self.near.swap(slot, gone, pair)
            self.limits.locked[:] = self.near.locked
        self.limits.swap(j, slot)
        self.swaps += 1

    def run(self, limit: Limit) -> bool:
        """Swap until no swap improves f (True), or the limit is reached."""
        while True:
            candidates, before = self._candidates(), self.value()
            if not len(candidates):
                return True
            if limit.reached(self.swaps):
                return False
            self._swap_in(candidates, limit)
            self._repair()
            if limit.little(self.value() - before, before):
                return False

    def _repair(self) -> int:
        """Look up what swaps have used up; returns for how many rows."""
        self.limits.locked[:] = False
        return 0 if self.near is None else self.near.repair(self.limits.rows)

    def _swap_in(self, candidates: np.ndarray, limit: Limit) -> None:
        """Look at these candidates again in turn, and swap those in that improve f."""
        base, none = self._base(), np.empty(0, np.int64)
        for start in range(0, len(candidates), TOGETHER):
            some = candidates[start : start + TOGETHER]
            held = (
                (none, none, np.zeros(len(some), int)) if self.near is None else self.near.pairs.gather(some)
            )
            begin = 0
            for j, end in zip(some.tolist(), held[2].tolist(), strict=True):
                pair, begin = (held[0][begin:end], held[1][begin:end]), end
                if limit.reached(self.swaps):
                    return
                slot, rise = self._try(j, base, pair)
                if rise > self.least:
                    self._swap(j, slot, pair)
                    base = self._base()

    def shake(self, limit: Limit, excess: np.ndarray) -> None:
        """From a local optimum to better ones: a few neighbouring rows are swapped in whatever that costs, swaps near
        them follow while f rises, and what is not better in the end is undone (iterated local search).

        Only candidates of the largest `excess` (n,), by the prices of the bound, take part: those that a best choice
        is made of are nearly always among them. The generator is always the same one.
        """
        near, limits = self.near, self.limits
        few, _ = looked_at(len(limits.open), len(near.low), len(limits.rows))
        possible = np.flatnonzero(limits.open)
        best = possible[np.argsort(-excess[possible], kind="stable")[:few]]
        some = near.pairs.of(np.sort(np.concatenate([best, limits.rows])))
        rng = np.random.default_rng(0)
        reached, saved = self.value(), (near.save(), limits.save(), self.swaps)
        shakes = UNLIMITED if limit.end is not None else min(SHAKES, 50 + len(limits.rows) // 10)
        for _ in range(shakes):
            near.moved[:] = False
            if not self._kick(some, rng):
                return
            done = self._settle(some, limit)
            now = self.value()
            if now > reached + self.least:
                if self._repair():  # these rows have more pairs now
                    some = near.pairs.of(some.cols)
                reached, saved = now, (near.save(), limits.save(), self.swaps)
            else:
                near.restore(saved[0])
                limits.restore(saved[1])
                self.swaps = saved[2]
            if not done:
                return

    def _kick(self, some: Any, rng: np.random.Generator) -> bool:
        """Swap in some neighbours, in the places that cost least. False where nothing can be swapped."""
        limits, near, barred = self.limits, self.near, np.zeros(len(self.limits.rows), bool)
        fresh, made = limits.open[some.cols], 0
        for _ in range(KICK):
            there = np.flatnonzero(fresh & (some.touching(near.moved) if made else True))
            if not len(there):
                break
            at = int(there[rng.integers(len(there))])
            fresh[at] = False
            j, pair = int(some.cols[at]), some.pair(at)
            slot, rise = self._try(j, self._base(), pair, barred)
            if rise == -np.inf:
                continue
            barred[slot] = True
            self._swap(j, slot, pair, some)
            made += 1
        return made > 0

    def _settle(self, some: Any, limit: Limit) -> bool:
        """Swaps that improve f, among candidates near what has moved. False where time is up."""
        limits, near = self.limits, self.near
        pending = np.zeros(len(some.cols), bool)
        while True:
            pending |= some.touching(near.moved)
            near.moved[:] = False
            at = np.flatnonzero(pending & limits.open[some.cols])
            base = self._base()
            gain, worth = some.best(self._standing(base), at)
            worth = worth + gain * self.unit
            if self.scores is not None:
                worth = worth + self.scores[some.cols[at]]
            self.evaluations += len(at)
            better = np.flatnonzero(worth > self.least)
            if not len(better):
                return True
            pending[:] = False
            pending[at[better]] = True
            first = better[np.argsort(-worth[better], kind="stable")[:TRIED]]
            for a in at[first].tolist():
                if limit.late():
                    return False
                j, pair = int(some.cols[a]), some.pair(a)
                slot, rise = self._try(j, base, pair)
                if rise > self.least:
                    self._swap(j, slot, pair, some)
                    base = self._base()

    def _standing(self, base: np.ndarray) -> Standing:
        near = self.near
        return Standing(near.first, near.second, near.owner, base, self.unit, self.limits)

    def value(self) -> float:
        """f of the chosen rows."""
        out = 0.0 if self.near is None else (self.near.value() - self.base) * self.unit
        return out if self.scores is None else out + float(self.scores[self.limits.rows].sum())

    def bound(
        self, most: Callable[[np.ndarray], tuple[float, np.ndarray]], limit: Limit
    ) -> tuple[float, np.ndarray]:
        """An upper bound on f of any choice within the limits: of all that `most` lets be chosen; and what each row
        adds to it by itself, (n,) float64.

        For prices v_i no lower than the floor of row i, max_{j in S} q_ij <= v_i + sum_{j in S} max(q_ij - v_i, 0), so
        that f(S) <= sum_i w_i v_i + sum_{j in S} (e_j(v) + score_j), e_j(v) = sum_i w_i max(q_ij - v_i, 0), and most()
        gives the largest such sum. With v_i = first_i it is the known f(S) + sum of the k largest gains; lower prices
        of rows that several of the best candidates cover make it smaller, which subgradient steps (Polyak's) find.
        """
        scores, value = 0.0 if self.scores is None else self.scores, self.value()
        if self.near is None:
            values = np.zeros(len(self.limits.open)) + scores
            return most(values)[0], values
        near = self.near
        weights = np.ones(len(near.low), np.int64) if near.weights is None else near.weights
        lowest = np.maximum(near.pairs.lowest(), near.low)
        prices, best, share, kept = near.first.astype(np.int64), np.inf, 1.0, None
        for _ in range(STEPS):
            values = near.pairs.excess(prices) * self.unit + scores
            total, chosen = most(values)
            found = ((prices * weights).sum() - self.base) * self.unit + total
            if found < best:
                best, kept = float(found), values
            else:
                share /= 2
            if best - value <= CLOSE * abs(value) or limit.late():
                break
            rows, q, _ = near.pairs.gather(chosen)
            above = rows[q > prices[rows]]
            slope = weights * (1 - np.bincount(above, minlength=len(prices)))
            length = float((slope.astype(np.float64) ** 2).sum())
            if length == 0:
                break
            step = share * (found - value) / (length * self.unit)
            prices = np.maximum(np.rint(prices - step * slope).astype(np.int64), lowest)
        return best, kept


def most_of(
    k: int,
    open_: np.ndarray,
    money: float | None,
    cost: np.ndarray | None,
    constraint: Callable[[], Constraint] | None,
) -> Callable[[np.ndarray], tuple[float, np.ndarray]]:
    """What bounds the sum of values over any choice: values (n,) -> (a sum that no choice exceeds, rows of about it).

    k rows of the open ones. With money at most k, of which costs are paid by fractions (the knapsack's relaxation);
    with quotas, which constraint() keeps to, the best choice exactly, since they are a matroid.
    """
    rows = np.flatnonzero(open_)

    def most(values: np.ndarray) -> tuple[float, np.ndarray]:
        held = values[rows] if money is None else np.maximum(values[rows], 0)
        few = min(k, len(rows))
        if constraint is not None:
            limits, taken = constraint(), []
            for at in _first_of_each(np.argsort(-held, kind="stable"), rows, limits.tree, k).tolist():
                if limits.open[rows[at]]:
                    limits.take(int(rows[at]))
                    taken.append(at)
                    if limits.done:
                        break
            top = np.array(taken, np.int64)
        else:
            top = np.argpartition(-held, few - 1)[:few]
        total = float(held[top].sum())
        if money is not None:
            order = np.argsort(-held / cost[rows], kind="stable")
            spent = np.cumsum(cost[rows][order])
            fits = int(np.searchsorted(spent, money, side="right"))
            paid = float(held[order[:fits]].sum())
            if fits < len(order):
                left = money - (spent[fits - 1] if fits else 0.0)
                paid += held[order[fits]] * left / cost[rows][order[fits]]
            if paid < total:
                total, top = paid, order[: fits + 1]
        return total * (1 + 1e-12) if total > 0 else total, rows[np.sort(top)]

    return most


def _first_of_each(order: np.ndarray, rows: np.ndarray, tree: Tree, k: int) -> np.ndarray:
    """What is left of `order`, positions in rows, without what quotas bar in any case: of each group the first few."""
    leaf = tree.leaf[rows[order]] - tree.leaves[0]
    most = np.minimum(tree.high[tree.leaves], k)
    by_leaf = np.argsort(leaf, kind="stable")
    counts = np.bincount(leaf, minlength=len(most))
    place = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)
    return order[np.sort(by_leaf[place < np.repeat(most, counts)])]


def improve(
    state: Any,
    low: np.ndarray | None,
    limits: Exchange,
    value: float,
    polish: bool | int | float | str,
    most: Callable,
) -> Polished:
    """Exchange rows of `limits` until the limit that `polish` sets. value: f of those rows."""
    limit = Limit(polish)
    search = Search(state, low, limits, value)
    optimum = search.run(limit)
    bound, excess = search.bound(most, limit)
    if search.near is not None and limit.beyond and optimum and len(limits.rows):
        search.shake(limit, excess)
        optimum = search.run(limit)
    return Polished(np.sort(limits.rows), search.swaps, search.passes, search.evaluations, optimum, bound)


def rank(
    state: Any, low: np.ndarray | None, rows: np.ndarray, first: np.ndarray, start: float, tie_break: str
) -> Picker:
    """All of these rows, ascending, in greedy order; those of `first` before all others."""
    inner = state.within(rows, low)
    picker = Picker(Constraint(len(rows), len(rows)), start, None, None)
    for at in np.searchsorted(rows, first).tolist():
        gain = float(inner.evaluate(np.array([at])).gains[0])
        inner.add(np.array([at]))
        picker.take(at, gain)
    maximize(inner, picker, "lazy", tie_break=tie_break, epsilon=0.5, seed=0)
    cover, inside = terms(state)[0], terms(inner)[0]
    if cover is not None:
        cover.backend.pairs += inside.backend.pairs
    picker.run.indices = rows[picker.run.indices].tolist()
    return picker


def release(state: Any) -> None:
    """Give the memory back that greedy's survivors take, but for those that a search starts from."""
    cover = terms(state)[0]
    if cover is not None:
        cover.sparse = None


def floor(state: Any, given: np.ndarray) -> np.ndarray | None:
    """(r,) int32 quanta: how similar each represented row is to what counts as chosen; None without any such rows."""
    cover = terms(state)[0]
    if cover is None:
        return None
    backend = cover.backend
    level = backend.new_level() if cover.low is None else backend.level_from(cover.low)
    backend.raise_level(level, given, cover.cap)
    return backend.level_values(level).astype(np.int32)
