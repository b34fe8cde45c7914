"""Upper bounds on facility location's gains without a sweep."""

from __future__ import annotations

import numpy as np

from smartgpu.backends import QUANTUM
from smartgpu.objectives.base import Ground


class CheapBounds:
    """Upper bounds on all excesses from second moments, without a sweep, for s = a x.y + b.

    With u_ij = s_ij - level_i and W = sum w:  sum_i w_i max(u_ij, 0) <= (sum_i w_i u_ij + sqrt(W sum_i w_i u_ij^2)) / 2
    by Cauchy-Schwarz, and both sums come from X'WX, X'w and X'(w level). O(n d^2) once, O(n d) per level.
    The similarities of the engine differ from the real ones by rounding: `error` per pair, proven, is added.
    """

    def __init__(self, ground: Ground, represented: np.ndarray | None, weights: np.ndarray | None):
        self.a, self.b = ground.kind.affine
        self.x, self.rows = ground.features(represented)
        r, d = self.rows.x.shape
        self.w = np.ones(r) if weights is None else weights.astype(np.float64)
        self.total = self.w.sum()
        self.error = 2.0**-23 + (d + 16) * 2.0**-23  # quantisation, and a float32 chain of d products
        self.quadratic = self.a**2 * self.x.quadratic(self.rows.second_moment(self.w))

    @staticmethod
    def pay(r: int, n: int, d: int) -> bool:
        """Two products with d x d matrices, in float64, should cost less than the sweep that they save."""
        return r * n > 4 * d * (r + n)

    def __call__(self, level: np.ndarray) -> np.ndarray:
        """(n,) float64 bounds on the excesses in quanta, at this level (r,) in quanta."""
        shift = self.b - level * QUANTUM
        moments = self.rows.moments(np.stack([self.w, self.w * shift], axis=1))
        along = self.x.times(moments * np.array([self.a, 2 * self.a]))
        linear = along[:, 0] + (self.w * shift).sum()
        squares = self.quadratic + along[:, 1] + (self.w * shift**2).sum()
        bound = (linear + np.sqrt(self.total * np.maximum(squares, 0))) / 2
        return (bound + self.total * self.error) / QUANTUM * (1 + 1e-9)
