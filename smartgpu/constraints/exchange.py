"""Which chosen row may make way for which candidate: limits as a search for swaps sees them."""

from __future__ import annotations

from fractions import Fraction

import numpy as np

from smartgpu.constraints.knapsack import Purse
from smartgpu.constraints.quotas import Tree


class Exchange:
    """Swaps that keep to the limits of a selection: as many rows, within its budget, and within its quotas.

    rows    (k,) int64, the chosen row in each slot; swap() replaces one
    open    (n,) bool, candidates: rows that are neither chosen nor closed
    fixed   (k,) bool, slots that keep their row
    locked  (k,) bool, slots that keep it for now: the search says which
    """

    def __init__(
        self,
        open_: np.ndarray,
        rows: np.ndarray,
        fixed: np.ndarray,
        purse: Purse | None = None,
        tree: Tree | None = None,
    ):
        self.rows, self.fixed, self.purse, self.tree = rows.copy(), fixed, purse, tree
        self.open = open_.copy()
        self.open[rows] = False
        self.locked = np.zeros(len(rows), bool)
        if tree is not None:
            self.leaf = tree.leaf - tree.leaves[0]
            self.count = np.zeros(tree.size, np.int64)
            for nodes in tree.paths:
                np.add.at(self.count, nodes[self.leaf[rows]], 1)
        if purse is not None:
            self.spent = sum((Fraction(float(c)) for c in purse.cost[rows]), Fraction(0))
            self._pay()

    def _pay(self) -> None:
        """(k,) float64 the most that a candidate may cost in the place of each chosen row, rounded down."""
        left = Fraction(self.purse.budget) - self.spent
        cost = self.purse.cost[self.rows]
        near = float(left)
        rest = near if Fraction(near) <= left else float(np.nextafter(near, -np.inf))
        room = rest + cost
        part = room - rest
        error = (rest - (room - part)) + (cost - part)  # what the sum lost, exactly (Knuth)
        self.room = np.where(error < 0, np.nextafter(room, -np.inf), room)

    @property
    def plain(self) -> bool:
        """Whether any chosen row that is not fixed may make way for any candidate."""
        return self.purse is None and self.tree is None

    def _kept(self, at: np.ndarray, slots: np.ndarray) -> np.ndarray:
        """Whether quotas let rows of these leaves take the places of these slots."""
        tree, theirs = self.tree, self.leaf[self.rows[slots]]
        ok = np.ones(np.broadcast_shapes(at.shape, theirs.shape), bool)
        for nodes in tree.paths[:-1]:  # at the root nothing changes
            into, out = nodes[at], nodes[theirs]
            gives, takes = self.count[out] > tree.low[out], self.count[into] < tree.high[into]
            ok &= (into == out) | (gives & takes)
        return ok

    def allowed(self, cols: np.ndarray, slots: np.ndarray) -> np.ndarray | None:
        """Whether each candidate may take the place of the slot beside it; None where all may."""
        kept = self.fixed | self.locked
        if self.plain and not kept.any():
            return None
        ok = ~kept[slots]
        if self.tree is not None:
            ok &= self._kept(self.leaf[cols], slots)
        if self.purse is not None:
            ok &= self.purse.cost[cols] <= self.room[slots]
        return ok

    def floor(self, base: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """For every row the best of base (k,) among the slots whose place it may take, and the lowest such slot.

        Returns (value (n,) float64, slot (n,) int64); -inf and -1 where there is none.
        """
        n = len(self.open)
        value, slot = np.full(n, -np.inf), np.full(n, -1)
        groups = [np.arange(n)] if self.tree is None else self.tree.rows
        free, every = ~(self.fixed | self.locked), np.arange(len(base))
        for leaf, cols in enumerate(groups):
            ok = free if self.tree is None else free & self._kept(np.array([leaf]), every)
            slots = np.flatnonzero(ok)
            if not len(slots) or not len(cols):
                continue
            ranked = slots[np.lexsort((slots, -base[slots]))]
            if self.purse is None:
                value[cols], slot[cols] = base[ranked[0]], ranked[0]
                continue
            rank = np.empty(len(base), np.int64)
            rank[ranked] = np.arange(len(ranked))
            by_room = slots[np.argsort(-self.room[slots], kind="stable")]
            best = ranked[np.minimum.accumulate(rank[by_room])]
            fitting = np.searchsorted(-self.room[by_room], -self.purse.cost[cols], side="right")
            there = cols[fitting > 0]
            slot[there] = best[fitting[fitting > 0] - 1]
            value[there] = base[slot[there]]
        return value, slot

    def table(self) -> tuple[np.ndarray, np.ndarray, np.ndarray | None, np.ndarray | None]:
        """The same as arrays, for a device: (group (n,), may go (groups, k) bool, cost (n,), room (k,))."""
        free, k = ~(self.fixed | self.locked), len(self.rows)
        cost, room = (None, None) if self.purse is None else (self.purse.cost, self.room)
        if self.tree is None:
            return np.zeros(len(self.open), np.int64), free[None], cost, room
        leaves = np.arange(len(self.tree.leaves))[:, None]
        return self.leaf, free & self._kept(leaves, np.arange(k)[None]), cost, room

    def swap(self, j: int, slot: int) -> None:
        """Row j comes, that of the slot goes."""
        gone = int(self.rows[slot])
        self.rows[slot] = j
        self.open[j], self.open[gone] = False, True
        if self.tree is not None:
            for nodes in self.tree.paths:
                self.count[nodes[self.leaf[j]]] += 1
                self.count[nodes[self.leaf[gone]]] -= 1
        if self.purse is not None:
            self.spent += Fraction(float(self.purse.cost[j])) - Fraction(float(self.purse.cost[gone]))
            self._pay()

    def save(self) -> tuple:
        """What restore() goes back to."""
        rest = (None if self.tree is None else self.count.copy(), None if self.purse is None else self.spent)
        return self.rows.copy(), self.open.copy(), *rest

    def restore(self, saved: tuple) -> None:
        rows, open_, count, spent = saved
        self.rows[:], self.open[:], self.locked[:] = rows, open_, False
        if self.tree is not None:
            self.count[:] = count
        if self.purse is not None:
            self.spent = spent
            self._pay()
