"""Nearest neighbours: the k best candidates of every row, exact, without the r x n matrix.

Letters as in similarity.py; side a of a tile is rows, side b candidates. A pair's key is q 2^32 + (2^32 - 1 - j), so
that one int64 comparison prefers the larger similarity and, among equals, the lower candidate; keys of one row differ.
A program keeps the best keys of its rows in registers. A tile whose best is not above a row's worst key costs it one
maximum; otherwise the best pairs move over one by one, about k ln(n / k) of them for a row in all.
"""

import torch
import triton
import triton.language as tl

from . import checks, launch
from .similarity import (
    check_pair,
    dots,
    gather,
    launch_config,
    pair_arguments,
    quanta,
    squares_of,
)

MOST = 32  # keys of a row in registers; more neighbours take further passes


@triton.jit
def _leader(
    q,  # (BLOCK_A, BLOCK_B) int32
    best,  # (BLOCK_A, K) int64
    base,  # int64, the candidate of the tile's first column
    BLOCK_B: tl.constexpr,
):
    """The best pair of every row of a tile: (its key, its column in the tile, whether it belongs to the best)."""
    column = tl.arange(0, BLOCK_B)  # (BLOCK_B,)
    top = tl.max(q, axis=1)  # (BLOCK_A,)
    # the lowest column of those that are best
    at = tl.min(tl.where(q == top[:, None], column[None, :], BLOCK_B), axis=1)
    key = top.to(tl.int64) * 4294967296 + (4294967295 - (at.to(tl.int64) + base))
    return key, at, key > tl.min(best, axis=1)


@triton.jit
def _top_k_kernel(
    A,  # (size_a, d) fp16 | bf16 | fp32, last dimension contiguous; rows
    B,  # (*, d) as A; candidates
    B_INDEX,  # (size_b,) int64, rows of B, or None: all of them
    A_SQUARES,  # (size_a,) fp32, or None
    B_SQUARES,  # (*,) fp32, or None
    BELOW,  # (size_a,) int64, or None: only keys below it count
    KEYS,  # (chunks, size_a, K) int64 contiguous
    size_a,
    size_b,
    d,
    tiles,  # tiles of side b of one program
    factor,  # fp32
    stride_a,
    stride_b,
    KIND: tl.constexpr,
    PRECISION: tl.constexpr,
    EVEN_K: tl.constexpr,
    EMULATE: tl.constexpr,
    BLOCK_A: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_K: tl.constexpr,
    K: tl.constexpr,
):
    tiles_a = (size_a + BLOCK_A - 1) // BLOCK_A
    tiles_b = (size_b + BLOCK_B - 1) // BLOCK_B
    pid = tl.program_id(0).to(tl.int64)
    tile_a = pid % tiles_a
    chunk = pid // tiles_a
    first = chunk * tiles
    last = tl.minimum(first + tiles, tiles_b)
    a = tile_a * BLOCK_A + tl.arange(0, BLOCK_A)  # (BLOCK_A,)
    rows_a = gather(None, a, size_a)
    a_squares = squares_of(A_SQUARES, rows_a)
    column = tl.arange(0, BLOCK_B)  # (BLOCK_B,)
    slot = tl.arange(0, K)  # (K,)
    # Below every key, and no two alike: an insertion replaces one slot.
    best = tl.zeros((BLOCK_A, K), dtype=tl.int64) + (slot.to(tl.int64) - (1 << 60))[None, :]

    for tile_b in range(first, last):
        b = tile_b * BLOCK_B + column.to(tl.int64)  # (BLOCK_B,)
        rows_b = gather(B_INDEX, b, size_b)
        acc = dots(
            A, B, rows_a, rows_b, d, stride_a, stride_b, PRECISION, EVEN_K, EMULATE, BLOCK_A, BLOCK_B, BLOCK_K
        )
        q = quanta(acc, a_squares, squares_of(B_SQUARES, rows_b), factor, KIND)
        # -2^30: its key is below every slot, so such a pair is never taken
        q = tl.where(b[None, :] < size_b, q, -(1 << 30))
        if BELOW is not None:
            # 0 for rows beyond the end: they are not stored
            below = tl.load(BELOW + a, mask=a < size_a, other=0)  # (BLOCK_A,)
            key = q.to(tl.int64) * 4294967296 + (4294967295 - b)[None, :]
            q = tl.where(key < below[:, None], q, -(1 << 30))
        base = tile_b * BLOCK_B
        key, at, better = _leader(q, best, base, BLOCK_B)
        while tl.max(better.to(tl.int32), axis=0) > 0:
            worst = tl.min(best, axis=1)  # (BLOCK_A,)
            best = tl.where(better[:, None] & (best == worst[:, None]), key[:, None], best)
            q = tl.where(better[:, None] & (column[None, :] == at[:, None]), -(1 << 30), q)
            key, at, better = _leader(q, best, base, BLOCK_B)
    out = KEYS + (chunk * size_a + a[:, None]) * K + slot[None, :]
    tl.store(out, best, mask=a[:, None] < size_a)


def top_k(x, y, k, form, *, x_squares=None, y_squares=None):
    """The k most similar candidates of every row, best first, ties to the lower index: (values, indices).

    x          (r, d) float16 | bfloat16 | float32, finite, any row stride, last dimension contiguous
    y          (n, d) like x; candidates, n < 2^32. A row that is among them is its own neighbour
    k          1 <= k <= n
    form       how s comes from a dot product
    x_squares  (r,) float32 from `squared_norms`, and y_squares (n,): computed here where they are needed and not given
    returns    values (r, k) int32 quanta, indices (r, k) int64; exact

    ceil(k / 32) sweeps of 2 r n d FLOP; O(r k) memory beside the inputs, several times that for few rows.
    raises ValueError on a wrong shape, dtype, device or option
    """
    n = check_pair(x, y)[1]
    if not isinstance(k, int) or not 1 <= k <= n:
        raise ValueError(f"k must be an integer from 1 to the {n} candidates, got {k!r}")
    return _best(x, y, None, k, form, x_squares, y_squares)


def nearest(x, y, cols, form, *, x_squares=None, y_squares=None):
    """The most similar of some candidates, for every row: (position in cols, q). Ties go to the lower position.

    cols     (m,) int64 in [0, n), m >= 1 (its range is not checked)
    returns  position (r,) int64 and q (r,) int32 quanta
    The other arguments and errors as in `top_k`; 2 r m d FLOP.
    """
    check_pair(x, y)
    checks.tensor("cols", cols, (None,), (torch.int64,), ("x", x))
    if cols.shape[0] == 0:
        raise ValueError("cols must name at least one candidate")
    values, indices = _best(x, y, cols, 1, form, x_squares, y_squares)
    return indices[:, 0].contiguous(), values[:, 0].contiguous()


def _best(x, y, cols, k, form, x_squares, y_squares):
    r, size_b = x.shape[0], y.shape[0] if cols is None else cols.shape[0]
    if size_b >= 2**32:
        raise ValueError(
            f"y must have fewer than 2^32 rows (a key holds 32 bits of their number), got {size_b}"
        )
    config = launch_config("top_k", x, y, form)
    pair = pair_arguments(x, y, form, config, x_squares, y_squares)
    values = torch.empty((r, k), dtype=torch.int32, device=x.device)
    indices = torch.empty((r, k), dtype=torch.int64, device=x.device)
    if r == 0:
        return values, indices
    tiles_a, tiles_b = triton.cdiv(r, config.block_a), triton.cdiv(size_b, config.block_b)
    # Every program inserts its own best keys, so candidates are shared out only where rows do not fill the device.
    tiles = launch.tiles_of_a_program(tiles_a, tiles_b, x.device, tiles_b)
    chunks = triton.cdiv(tiles_b, tiles)
    below = None
    for done in range(0, k, MOST):
        now = min(MOST, k - done)
        slots = triton.next_power_of_2(now)
        keys = torch.empty((chunks, r, slots), dtype=torch.int64, device=x.device)
        launch.run(
            _top_k_kernel,
            tiles_a * chunks,
            config,
            x,
            **pair,
            B_INDEX=cols,
            BELOW=below,
            KEYS=keys,
            size_a=r,
            size_b=size_b,
            tiles=tiles,
            K=slots,
        )
        keys = keys[0] if chunks == 1 else keys.transpose(0, 1).reshape(r, chunks * slots)
        keys = keys.sort(dim=1, descending=True).values[:, :now]
        values[:, done : done + now] = keys >> 32
        indices[:, done : done + now] = 0xFFFFFFFF - (keys & 0xFFFFFFFF)
        below = keys[:, -1].contiguous()
    return values, indices
