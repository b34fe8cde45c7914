"""Float64 arithmetic on float32 features."""

from __future__ import annotations

import numpy as np

from smartgpu.similarity import Cosine, CosineShifted, CosineSquared, Geometry, map_dots

BLOCK = 2048  # rows widened to float64 at a time


class LinearFeatures:
    """x (n, d) float32, read as float64 in blocks (no copy of the pool), row by row in one fixed order: equal rows give
    equal bits."""

    def __init__(self, x: np.ndarray):
        self.x = x

    def rows(self, index: np.ndarray | int) -> np.ndarray:
        return self.x[index].astype(np.float64)

    def _blocks(self, cols: np.ndarray | None):
        for i in range(0, len(self.x) if cols is None else len(cols), BLOCK):
            part = slice(i, i + BLOCK) if cols is None else cols[i : i + BLOCK]
            yield slice(i, i + BLOCK), self.x[part].astype(np.float64)

    def times(self, v: np.ndarray, cols: np.ndarray | None = None) -> np.ndarray:
        """x_j . v for all rows or for `cols`: (m,) float64. Never a gemv, whose bits depend on a row's place.

        With v (d, q) all q products at once, (m, q), by a matrix product: for bounds, where the last bit is free.
        """
        out = np.empty((len(self.x) if cols is None else len(cols), *v.shape[1:]))
        for where, block in self._blocks(cols):
            if v.ndim == 2:
                out[where] = block @ v
                continue
            block *= v
            out[where] = block.sum(axis=1)
        return out

    def quadratic(self, g: np.ndarray) -> np.ndarray:
        """x_j' g x_j for all rows: (n,) float64, g (d, d)."""
        out = np.empty(len(self.x))
        for where, block in self._blocks(None):
            out[where] = np.einsum("ij,ij->i", block @ g, block)
        return out

    def squares(self) -> np.ndarray:
        """|x_j|^2, (n,) float64."""
        out = np.empty(len(self.x))
        for where, block in self._blocks(None):
            np.multiply(block, block, out=block)
            out[where] = block.sum(axis=1)
        return out

    def sum(self) -> np.ndarray:
        """sum_j x_j, (d,) float64."""
        out = np.zeros(self.x.shape[1])
        for _, block in self._blocks(None):
            out += block.sum(axis=0)
        return out


class Wide:
    """Prepared features in float64: cosine rows normalised once more, so that s_jj is 1 to the last bit or so."""

    def __init__(self, geometry: Geometry):
        self.geometry, self.x = geometry, geometry.x
        self.inverse_norms: np.ndarray | None = None
        if isinstance(geometry.kind, (Cosine, CosineShifted, CosineSquared)):
            norms = np.sqrt(LinearFeatures(self.x).squares())
            self.inverse_norms = np.divide(1.0, norms, out=np.zeros_like(norms), where=norms > 0)

    def rows(self, index: np.ndarray) -> np.ndarray:
        """(m, d) float64"""
        out = self.x[index].astype(np.float64)
        if self.inverse_norms is not None:
            out *= self.inverse_norms[index, None]
        return out

    def pairs(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Similarities in float64, not quantised, in real units: (|a|, |b|)."""
        y, x = self.rows(a), self.rows(b)
        s = y @ x.T
        squares = None
        if self.geometry.kind.squared_norms:
            squares = np.add.outer(np.square(y).sum(axis=1), np.square(x).sum(axis=1))
        map_dots(self.geometry, s, squares)
        if self.geometry.kind.squared_norms:
            s[np.equal.outer(a, b)] = map_own(self.geometry)
        s *= self.geometry.unit
        return s


def map_own(geometry: Geometry) -> float:
    """The similarity of a row to itself, for a distance kind."""
    own = np.zeros((1, 1))
    map_dots(geometry, own, np.zeros((1, 1)))
    return float(own[0, 0])
