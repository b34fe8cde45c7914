"""Log-determinant where the features are not on the host: residuals here, products with features and factors there.

The formulas, what is kept and when it is refreshed are those of log_det.py.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from smartgpu.constraints import Found, Goal
from smartgpu.objectives.base import Ground
from smartgpu.objectives.log_det import PICKS, CholeskyLogDet, LogDet, WoodburyLogDet


class RemoteWoodburyLogDet(WoodburyLogDet):
    """Falls come from one product with all features that are behind: nothing has to be screened beforehand."""

    def _first_residuals(self) -> np.ndarray:
        self.span = self.wide.span(self.unit * self.a, self.unit * self.b, self.first)
        self.known = 0  # falls that the span has as well
        self.since = 0  # the first pick whose fall was kept here
        own = self.lam + self.span.own()
        if self.start is None:
            return own
        self.longest = float(own.max(initial=0.0))
        return np.maximum(self.lam + self.span.quadratic(np.arange(len(own)), self.start), self.lam)

    def _fresh(self, rows: np.ndarray) -> np.ndarray:
        t, limit = len(self.picks), len(self.falls) // 2
        behind = t - self.stamp[rows]
        far = (behind > limit) | (self.stamp[rows] < self.since)
        out = np.empty(len(rows))
        if far.any():
            self._settle(t)
            out[far] = self.lam + self.span.quadratic(rows[far], self.q)
        near = ~far
        if near.any():
            ring = len(self.falls)
            new = np.arange(max(self.known, t - ring), t) % ring
            self.span.remember(self.falls[new], new, ring)
            self.known = t
            newest = np.arange(t - 1, t - 1 - int(behind[near].max()), -1) % ring
            out[near] = self.residual[rows[near]] - self.span.falls(rows[near], behind[near], newest)
        return np.maximum(out, self.lam)

    def resident(self, goal: Goal) -> Iterator[Found] | None:
        return None if self.span.loop is None else self._resident(goal)

    def _resident(self, goal: Goal) -> Iterator[Found]:
        t = len(self.picks)
        self._settle(t)
        names = ("lam", "q", "top", "margin")
        loop = self.span.loop(
            goal, self.inverse, self.residual, **{name: getattr(self, name) for name in names}
        )
        loop.bound(*self.bounds())
        while not loop.done:
            found = loop.advance()
            self.picks += self.inverse[found.indices].tolist()
            if loop.done:
                self.q, self.in_q, self.since = loop.inverse(), len(self.picks), len(self.picks)
                # log det(s_SS + lam I) = log det(lam I + Y_S' Y_S) + (|S| - d) log lam, and Q = lam (...)^-1
                self.log_value = len(self.picks) * np.log(self.lam) - float(np.linalg.slogdet(self.q)[1])
                if self.start is not None:
                    self.log_value += self.base + float(np.linalg.slogdet(self.start)[1])
            yield found

    def _fall(self, near: np.ndarray, fall: np.ndarray) -> np.ndarray:
        return self.span.fall(near, fall)

    def screen(self, cols: np.ndarray) -> None:
        return None

    def total(self) -> float:
        return self._whole(self.span.gram(self.inverse))


class RemoteCholeskyLogDet(CholeskyLogDet):
    """The factor stays with the features; `done` and the pivots are here."""

    def __init__(self, spec: LogDet, ground: Ground):
        super().__init__(spec, ground)
        self.store = (self.exact or self.backend).factor(len(self.first))

    def _grow(self, t: int) -> None:
        if t > self.store.width:
            columns = max(t, min(2 * self.store.width, self.picks_at_most))
            self._check_room(8 * (columns + self.store.width) * len(self.first), t)
            self.store.grow(columns)

    def _brought(self, rows: np.ndarray) -> np.ndarray:
        t, residual = len(self.picks), self.residual[rows]
        picks, pivots = np.array(self.picks, np.int64), np.array(self.pivots)
        for begin in range(int(self.done[rows].min()), t, PICKS):
            end = min(begin + PICKS, t)
            done = self.done[rows]
            residual -= self.store.bring(rows, self.first, done, picks[:end], pivots[:end], begin)
            self.done[rows] = np.maximum(done, end)
        return self._checked(residual)

    def _commit(self, row: int, near: np.ndarray) -> None:
        at = len(self.picks)
        self._grow(at + 1)
        self.pivots.append(float(np.sqrt(self.residual[row])))
        if len(near):
            picks = np.array([*self.picks, row], np.int64)
            falls = self.store.bring(near, self.first, self.done[near], picks, np.array(self.pivots), at)
            self.residual[near] = self._checked(self.residual[near] - falls)
            self.done[near] = at + 1
