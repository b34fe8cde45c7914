"""Limits: which rows may still be picked, and when to stop."""

from __future__ import annotations

import numpy as np


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

    def take(self, j: int) -> None:
        self.open[j] = False
        self.taken += 1
