"""How similar a pool is to rows from elsewhere: a query, what must not be resembled, what is there already.

Never (rows x others) numbers: the pool goes by in blocks, whose features are prepared for this and dropped.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from smartgpu.arrays import as_matrix, on_gpu, on_host
from smartgpu.features import row_norms
from smartgpu.similarity import Dot, Matrix, MaxMinusSqeuclidean, Similarity

if TYPE_CHECKING:
    from smartgpu.objectives.base import Ground
    from smartgpu.objectives.cost import Shape

NUMBERS = 1 << 21  # of a block of the pool


def as_outside(name: str, value: Any) -> Any:
    """Checked rows (m, d) from elsewhere, on the host, or a tensor where it is on a GPU."""
    return as_matrix(value, name, tensors=on_gpu(value))


def check_outside(name: str, rows: Any, x: Any, kind: Similarity) -> None:
    """ValueError where the similarity of these rows to those of the pool is not defined."""
    if isinstance(x, Matrix):
        raise ValueError(
            f"{name} cannot be given with a precomputed similarity: the matrix does not say how similar its rows are"
        )
    if isinstance(kind, MaxMinusSqeuclidean):
        raise ValueError(
            f"{name} cannot be given with max_minus_sqeuclidean, which depends on all rows of the pool: "
            "use rbf, exp_euclidean or a cosine"
        )
    if rows.shape[1] != x.shape[1]:
        raise ValueError(f"{name} must have as many features as X: {x.shape[1]}, got {rows.shape[1]}")


def nearest(ground: Ground, rows: Any, others: Any) -> tuple[np.ndarray, np.ndarray]:
    """For each of rows (r, d) the most similar of others (m, d), the first among equals: its number and similarity.

    (r,) int64, (r,) float64, the similarity rounded to a quantum. O(r m d).
    """
    every, where, value = np.arange(len(others)), np.empty(len(rows), np.int64), np.empty(len(rows))
    bounded = isinstance(ground.kind, Dot)
    top = 1.0
    if (
        bounded
    ):  # both sides to norms in (1/2, 1]: quanta are then fine enough for each row, whatever its block
        top = float(_powers(others).max())
        others = _divided(others, np.full(len(others), top))
    for part in blocks(rows):
        block, factor = rows[part], top
        if bounded:
            powers = _powers(block)
            block, factor = _divided(block, powers), powers * top
        backend = ground.open(ground.beside(others, block))
        where[part], q = backend.nearest(every)
        value[part] = q * (backend.quantum * factor)
    return where, value


def sums(ground: Ground, rows: Any, others: Any) -> np.ndarray:
    """For each of rows (r, d) the sum of its similarities to others (m, d): (r,) float64.

    O((r + m) d) for dot products and cosines, whose sum is a product with one vector, else O(r m d).
    """
    out, m = np.empty(len(rows)), len(others)
    for part in blocks(rows):
        geometry = ground.beside(others, rows[part])
        if ground.kind.affine is None:
            backend = ground.open(geometry.swapped())
            out[part] = backend.totals() * backend.quantum
            continue
        a, b = ground.kind.affine
        along = ground.linear(geometry, geometry.rows).times(ground.linear(geometry, geometry.x).sum())
        out[part] = geometry.unit * (a * along + b * m)
    return out


def similarities(ground: Ground, rows: Any, others: Any) -> np.ndarray:
    """(r, m) float32 on the host: the similarity of each of rows (r, d) to each of others (m, d). O(r m d)."""
    out, every = np.empty((len(rows), len(others)), np.float32), np.arange(len(others))
    for part in blocks(rows):
        backend = ground.open(ground.beside(others, rows[part]))
        level, step = backend.new_level(), backend.sizes.least_batch
        for i in range(0, len(others), step):
            kept = backend.keep(level, every[i : i + step])
            for b in range(len(every[i : i + step])):
                out[part, i + b] = backend.column(kept, b) * backend.quantum
            del kept
    return out


def scratch(shape: Shape, *sets: Any) -> int:
    """Bytes that come and go for the similarity to these rows from elsewhere."""
    sizes, most = shape.footprint, 0
    block = shape.x[next(iter(blocks(shape.x)))] if shape.entries is None else shape.x
    for others in sets:
        features = 2 * sizes.features(others, block) + sizes.features(block, others)
        bounded = (
            sizes.host(16 * (block.shape[0] + others.shape[0]) * shape.d)
            if isinstance(shape.kind, Dot)
            else 0
        )
        tiles = sizes.dense(max(len(others), len(block)), len(block), False, None)
        most = max(most, features + bounded + tiles + sizes.host(32 * len(block)))
    return most


def blocks(rows: Any) -> Iterator[slice]:
    step = max(256, NUMBERS // rows.shape[1])
    return (slice(i, min(i + step, len(rows))) for i in range(0, len(rows), step))


def _powers(rows: Any) -> np.ndarray:
    """(r,) the smallest power of two that each row's norm does not exceed, 1 for zeros."""
    mantissa, exponent = np.frexp(row_norms(on_host(rows)))
    return np.where(mantissa > 0, np.ldexp(1.0, exponent - (mantissa == 0.5)), 1.0)


def _divided(rows: Any, by: np.ndarray) -> Any:
    """Rows in float64, each over a power of two."""
    if isinstance(rows, np.ndarray):
        return rows.astype(np.float64) / by[:, None]
    wide = rows.double()
    return wide / wide.new_tensor(by)[:, None]


# -- log-determinant ----------------------------------------------------------------------------------------------


def need_linear(what: str, kind: Similarity) -> None:
    if kind.affine is None:
        raise ValueError(
            f"{what} is for similarities that are products of features: dot, cosine, cosine_shifted; got {kind.name}"
        )


def gram(ground: Ground, others: Any) -> np.ndarray:
    """Y'Y of rows (m, d) from elsewhere, s = y_i . y_j as in log_det.py: float64, in the geometry of the pool."""
    geometry = ground.beside(others, None)
    a, b = (geometry.unit * number for number in ground.kind.affine)
    wide, total = ground.engine.wide(geometry, workers=ground.workers), 0.0
    for i in range(0, len(others), 512):
        y = wide.rows(np.arange(i, min(i + 512, len(others)))) * np.sqrt(a)
        if b > 0:
            y = np.concatenate([y, np.full((len(y), 1), np.sqrt(b))], axis=1)
        total = total + y.T @ y
    return total


def started(ground: Ground, pairs: list[tuple[Any, float]], lam: float) -> np.ndarray:
    """Q0 of log-determinant besides sets of rows B, each (rows, factor of its similarity to the pool).

    With G_B = Y_B'Y_B, G their sum and H = sum f_B G_B:  Q0 = I - (sum f_B^2 G_B - H (lam I + G)^-1 H) / lam, and with
    one factor f that is (1 - f^2) I + f^2 lam (lam I + G)^-1. ValueError where the kernel is not positive.
    """
    grams = [(gram(ground, rows), factor) for rows, factor in pairs]
    whole = sum(g for g, _ in grams)
    one = np.eye(len(whole))
    inverse = np.linalg.inv(lam * one + whole)
    factors = {factor for _, factor in grams}
    if len(factors) == 1:
        (f,) = factors
        q = (1 - f**2) * one + f**2 * lam * inverse
    else:
        across = sum(f * g for g, f in grams)
        q = one - (sum(f**2 * g for g, f in grams) - across @ inverse @ across) / lam
    q = (q + q.T) / 2
    lowest = float(np.linalg.eigvalsh(q)[0])
    if lowest < -1e-9:
        raise ValueError(
            "eta and nu must keep the kernel of pool, query and private rows positive, as they do where they are equal "
            f"and at most 1: its smallest residual direction is {lowest:.3g}"
        )
    return q
