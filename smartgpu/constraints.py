"""Limits: which rows may still be picked, and when to stop."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


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


@dataclass(frozen=True)
class Found:
    """Some of a goal's picks, in order."""

    indices: np.ndarray  # (m,) int64
    gains: np.ndarray  # (m,) float64, each of them before_j + weight g_j + after_j
    evaluations: int  # gains evaluated on the way
    steps: int = 0  # of a device, a pick or none in each


class Constraint:
    """At most k picks from the rows that are open.

    open  (n,) bool: rows that may be picked now. take(j) closes j and whatever else it makes infeasible.
    """

    def __init__(self, n: int, k: int, closed: np.ndarray | None = None):
        self.open = np.ones(n, bool)
        if closed is not None:
            self.open[closed] = False
        self.k = min(k, int(self.open.sum()))
        self.taken = 0

    @property
    def done(self) -> bool:
        return self.taken >= self.k

    @property
    def goal(self) -> Goal:
        return Goal(self.open, self.k - self.taken)

    def take(self, j: int) -> None:
        self.open[j] = False
        self.taken += 1
