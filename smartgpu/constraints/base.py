"""Which rows may still be picked, what they are compared by, and when to stop."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from smartgpu.constraints.knapsack import Purse
from smartgpu.constraints.quotas import Tree


@dataclass(frozen=True)
class Goal:
    """What is still to be picked, as data that a device can hold: at most k of the open rows, best gain first.

    The lowest index wins ties where `low`, else the highest. Picks end when `reached` plus their gains is `until`.
    The gain of j is before_j + weight g_j + after_j, with g_j that of the objective which is asked.
    """

    open: np.ndarray  # (n,) bool
    k: int
    low: bool = True
    reached: float = 0.0
    until: float = float("inf")
    weight: float = 1.0
    before: np.ndarray | None = None  # (n,) float64
    after: np.ndarray | None = None  # (n,) float64
    cost: np.ndarray | None = (
        None  # (n,) float64, whole numbers: picks cost no more than `left` together, and the first
    )
    left: float = 0.0  # whose gain is below 0 ends them
    rate: np.ndarray | None = None  # (n,) float64 >= 1: candidates are compared by gain / rate
    quotas: tuple[np.ndarray, np.ndarray, np.ndarray, int] | None = None  # see Tree.flat()

    @property
    def counts(self) -> bool:
        """Whether it is k of the open rows, and no more than that."""
        return self.cost is None and self.quotas is None


@dataclass(frozen=True)
class Found:
    """Some of a goal's picks, in order."""

    indices: np.ndarray  # (m,) int64
    gains: np.ndarray  # (m,) float64, each of them before_j + weight g_j + after_j
    evaluations: int  # gains evaluated on the way
    steps: int = 0  # of a device, a pick or none in each


class Constraint:
    """At most k picks from the rows that are open, within a purse, and within the quotas of a tree of groups.

    open      (n,) bool: rows that may be picked now. take(j) closes j and whatever else it makes impossible
    by_cost   candidates are compared by gain / cost instead of by gain
    reach     k rows must be possible within the quotas
    stops     within a budget, picks end before a gain below 0; may be turned off before the first of them
    """

    stops = True

    def __init__(
        self,
        n: int,
        k: int,
        closed: np.ndarray | None = None,
        *,
        purse: Purse | None = None,
        tree: Tree | None = None,
        by_cost: bool = True,
        reach: bool = True,
    ):
        self.open = np.ones(n, bool)
        if closed is not None:
            self.open[closed] = False
        self.purse, self.tree = purse, tree
        self.k = min(k, int(self.open.sum()))
        self.taken = 0
        self.cheapest_at = n - 1  # in purse.order: what stands behind it is closed
        self.divisor = purse.relative if purse is not None and by_cost else None
        if tree is not None:
            tree.start(self.open, self.k, reach)
            if purse is not None:
                tree.check_budget(purse, self.open)
        self._close()

    @property
    def done(self) -> bool:
        """Whether no row can be picked any more."""
        if self.taken >= self.k:
            return True
        if self.plain:
            return False  # k is no more than there are
        return not self.open[self._cheapest()] if self.purse is not None else not self.open.any()

    @property
    def plain(self) -> bool:
        """Nothing but k and open rows: what no pick closes."""
        return self.purse is None and self.tree is None

    def goal(self) -> Goal | None:
        """What is left to pick, as data; None for what a device cannot keep to: fractions of a budget, nested quotas,
        minima that have to be paid.
        """
        goal = Goal(self.open, self.k - self.taken)
        if self.purse is not None:
            if not self.purse.whole or self.unmet or not self.stops:
                return None
            goal = replace(goal, cost=self.purse.cost, left=self.purse.left, rate=self.divisor)
        if self.tree is not None:
            quotas = self.tree.flat()
            if quotas is None:
                return None
            goal = replace(goal, quotas=quotas)
        return goal

    @property
    def unmet(self) -> bool:
        """Whether a minimum is unmet."""
        return self.tree is not None and self.tree.needs

    def only_needs(self) -> None:
        """Close all rows but those that unmet minima need."""
        if self.tree is not None:
            self.tree.only_needs()
            self._close()

    @property
    def may_stop(self) -> bool:
        """Whether gains below 0 may be left out: within a budget, where no minimum is unmet."""
        return self.stops and self.purse is not None and not self.unmet

    def rate(self, gains: np.ndarray, cols: np.ndarray | None = None) -> np.ndarray:
        """What candidates (all, or cols) with these gains are compared by; -inf for those that are closed.

        Gain / cost, over costs of 1 at least: where a gain may be higher by r, its rate may be so by no more.
        """
        if self.plain:
            return gains
        open_, divisor = self.open, self.divisor
        if cols is not None:
            open_, divisor = open_.take(cols), None if divisor is None else divisor.take(cols)
        out = np.array(gains, np.float64) if divisor is None else gains / divisor
        np.putmask(out, ~open_, -np.inf)  # a tenth of the time of np.where
        return out

    def least_divisor(self) -> float:
        """The least that rate() divides by: gains that are higher by r have rates that are so by r over it at most."""
        if self.divisor is None:
            return 1.0
        return float(self.divisor[self._cheapest()])

    def _cheapest(self) -> int:
        """The open row that costs least; any row where none is open."""
        order = self.purse.order  # the dearest first
        while self.cheapest_at > 0 and not self.open[order[self.cheapest_at]]:  # what is closed stays so
            self.cheapest_at -= 1
        return int(order[self.cheapest_at])

    def take(self, j: int) -> None:
        self.open[j] = False
        self.taken += 1
        if self.purse is not None:
            self.purse.pay(j)
        if self.tree is not None:
            self.tree.take(j)
        self._close()

    def _close(self) -> None:
        """Close what can be picked no more."""
        if self.tree is not None:
            for rows in self.tree.closed():
                self.open[rows] = False
        if self.purse is None:
            return
        if self.tree is not None and self.tree.needs:
            # of what is left, the cheapest rows that the minima still need are put aside
            self.open &= self.purse.cost <= self.tree.affordable(self.purse, self.open)
        else:
            rows = self.purse.beyond()
            if len(rows):
                self.open[rows] = False
