"""A budget: rows cost something, and what is chosen may not cost more than there is."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np

NONE = np.empty(0, np.int64)


def as_costs(value: Any, n: int, name: str = "cost") -> np.ndarray:
    """(n,) float64 costs > 0. ValueError names the first row that has none."""
    cost = np.asarray(
        value.tolist() if hasattr(value, "tolist") and not isinstance(value, np.ndarray) else value
    )
    if cost.dtype == object:
        missing = [i for i, c in enumerate(cost.tolist()) if c is None]
        if missing:
            raise ValueError(
                f"{name} must be > 0 for every row, got none for {len(missing)}, the first is row {missing[0]}"
            )
    try:
        cost = cost.astype(np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} must be numbers, one per row: {error}") from None
    if cost.shape != (n,):
        raise ValueError(f"{name} must have shape ({n},), one number per row, got {cost.shape}")
    wrong = np.flatnonzero(~(np.isfinite(cost) & (cost > 0)))
    if len(wrong):
        i = int(wrong[0])
        raise ValueError(f"{name} must be > 0 and finite, got {cost[i]} at row {i} ({len(wrong)} such rows)")
    return cost


def as_budget(value: Any, name: str = "budget") -> float:
    """A budget > 0, in the units of the costs."""
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise TypeError(f"{name} must be a number in the units of cost, got {value!r}")
    if not (np.isfinite(value) and value > 0):
        raise ValueError(f"{name} must be > 0 and finite, got {value}")
    return float(value)


class Purse:
    """What is left of a budget. Sums are exact: what is chosen never costs more, whatever the costs are."""

    def __init__(self, cost: np.ndarray, budget: float):
        self.cost, self.budget = cost, budget
        self.relative = cost / cost.min()  # >= 1
        # Whole numbers add up as they are; others as fractions, ten times slower.
        self.number = int if self.whole else Fraction
        self.rest = self.number(budget)
        self.order = np.argsort(-cost, kind="stable")
        self.sorted = -cost[self.order]  # ascending, so that it can be searched
        self.at = 0  # so many of the dearest are too dear by now
        self.dearest = float("inf")  # of the others; not known yet

    @property
    def whole(self) -> bool:
        """Whether costs are whole numbers, whose sums are exact in float64."""
        return bool((self.cost == np.rint(self.cost)).all()) and self.budget < 2.0**52

    @property
    def left(self) -> float:
        """The largest float that is no more than what is left; of whole costs the largest whole one."""
        near = float(self.rest)
        return near if self.number(near) <= self.rest else float(np.nextafter(near, -np.inf))

    def pay(self, j: int) -> None:
        self.rest -= self.number(float(self.cost[j]))

    def beyond(self) -> np.ndarray:
        """Rows that cost more than is left, those not said before."""
        left = self.left
        if left >= self.dearest:
            return NONE
        at = int(np.searchsorted(self.sorted, -left, side="left"))
        rows, self.at = self.order[self.at : at], at
        self.dearest = float(-self.sorted[at]) if at < len(self.sorted) else 0.0
        return rows
