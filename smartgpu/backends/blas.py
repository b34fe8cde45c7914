"""One value per pair out of BLAS.

Greedy is only exact if the similarity of a pair has the same bits whenever it is computed: in a full sweep, in a
gathered batch, in either order. BLAS does not promise that. Most kernels add up one dot product in one chain whatever
its place in the matrix, but some (OpenBLAS for AVX2) treat the first and last columns of a product, and a last
incomplete group of rows, differently. So every product here has whole groups of rows and of columns, with zero columns
left and right that absorb the odd ones, and a probe on this machine chooses the least padding under which a pair has
one value. Where none does, products run in float64, whose differences vanish under the quantisation that follows.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np

from smartgpu.workers import one_thread


@dataclass(frozen=True)
class Layout:
    """How a product is padded: `pad` zero columns on each side, columns in multiples of `width`, rows of `rows`."""

    pad: int
    width: int
    rows: int
    block: int  # rows and columns of one tile: a multiple of both, small enough for one tile to stay in L2
    dtype: type = np.float32


# OpenBLAS AVX512 and generic kernels; AVX2 (8 odd columns at each end of at most 320, rows in twelves); a wider guess.
LAYOUTS = (Layout(0, 32, 32, 384), Layout(8, 24, 12, 288), Layout(16, 48, 48, 240))
FALLBACK = Layout(0, 32, 32, 256, np.float64)


def round_up(n: int, unit: int) -> int:
    return -(-n // unit) * unit


def pad_rows(x: np.ndarray, layout: Layout) -> np.ndarray:
    """x (n, d) -> (n', d) in the layout's dtype, C order, zero rows at the end until n' is whole groups of rows."""
    n = max(round_up(len(x), layout.rows), round_up(48, layout.rows))
    if n == len(x) and x.dtype == layout.dtype and x.flags.c_contiguous:
        return x
    out = np.zeros((n, x.shape[1]), layout.dtype)
    out[: len(x)] = x
    return out


def make_panel(y: np.ndarray, layout: Layout) -> np.ndarray:
    """y (m, d), m <= block -> the padded right-hand side of a product, a fresh array (never y itself: no syrk)."""
    width = max(round_up(len(y), layout.width), round_up(48, layout.width))
    out = np.zeros((width + 2 * layout.pad, y.shape[1]), layout.dtype)
    out[layout.pad : layout.pad + len(y)] = y
    return out


def multiply(a: np.ndarray, panel: np.ndarray, layout: Layout, m: int, out: np.ndarray) -> np.ndarray:
    """a (r, d), r whole groups of rows, times the panel: (r, m), a view into `out` (r * panel rows entries or more)."""
    tile = out[: len(a) * len(panel)].reshape(len(a), len(panel))
    np.matmul(a, panel.T, out=tile)
    return tile[:, layout.pad : layout.pad + m]


def products(x: np.ndarray, y: np.ndarray, layout: Layout) -> np.ndarray:
    a = pad_rows(x, layout)
    out = np.empty((len(x), len(y)), layout.dtype)
    buffer = np.empty(layout.block * (layout.block + 2 * layout.pad), layout.dtype)
    for i in range(0, len(a), layout.block):
        for j in range(0, len(y), layout.block):
            part = y[j : j + layout.block]
            tile = multiply(a[i : i + layout.block], make_panel(part, layout), layout, len(part), buffer)
            out[i : i + layout.block, j : j + layout.block] = tile[: len(x) - i]
    return out


def repeatable(layout: Layout, d: int) -> bool:
    """True if, on this machine, a pair has the same bits at every place, in every shape used here, in either order."""
    rng = np.random.default_rng(d)
    x = rng.standard_normal((layout.block + 131, d)).astype(layout.dtype)
    whole = products(x, x, layout)
    if not np.array_equal(whole, whole.T):
        return False
    for rows, cols in ((1, 1), (layout.block, 33), (50, layout.block), (200, 77), (len(x), 7)):
        i, j = rng.permutation(len(x))[:rows], rng.permutation(len(x))[:cols]
        if not np.array_equal(products(x[i], x[j], layout), whole[np.ix_(i, j)]):
            return False
    return True


@functools.cache
def find_layout(d: int) -> Layout:
    """The layout for products over d features: the first of LAYOUTS that is repeatable here, else float64."""
    with one_thread():
        return next((layout for layout in LAYOUTS if repeatable(layout, d)), FALLBACK)
