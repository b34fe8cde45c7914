"""Survivors: the pairs with q_ij above row i's level, counted by candidate, then stored by candidate.

Letters as in similarity.py. A sweep counts, the prefix sums of the counts are the pointers, a second sweep fills. Both
make the same bits of a pair, so the counts fit exactly. Where rows and candidates are the same set each computes every
pair once.
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
    place,
    quanta,
    same,
    squares_of,
)
from .sweeps import sweep

MOST_TILES = 32  # of rows for one program


@triton.jit
def _store(
    q,  # (BLOCK_A, BLOCK_B) int32
    keep,  # (BLOCK_A, BLOCK_B) bool
    inner,  # int32, row numbers to store beside q, broadcastable to it
    CURSOR,  # (BLOCK,) pointers to int64: the next free place of each list
    END,  # (BLOCK,) pointers to int64: the first place of the next list
    ROWS,  # (nnz,) int32
    Q,  # (nnz,) int32
    AXIS: tl.constexpr,  # along which a list lies
):
    """Append the pairs to keep to their lists: one atomic for each list reserves its places."""
    one = keep.to(tl.int32)
    count = tl.sum(one, axis=AXIS)
    # the order of arrival decides the order inside a list, which is left open
    start = tl.atomic_add(CURSOR, count.to(tl.int64), mask=count > 0, sem="relaxed")
    # Pointers of another level would let a list run into the next: the launcher tells, nothing is overwritten.
    end = tl.load(END, mask=count > 0, other=0)  # 0: no room, and nothing to store
    room = tl.minimum(end - start, 256).to(tl.int32)
    at = tl.cumsum(one, axis=AXIS) - 1  # (BLOCK_A, BLOCK_B)
    keep = keep & (at < tl.expand_dims(room, AXIS))
    tl.store(tl.expand_dims(ROWS + start, AXIS) + at, tl.broadcast_to(inner, q.shape), mask=keep)
    tl.store(tl.expand_dims(Q + start, AXIS) + at, q, mask=keep)


@triton.jit(do_not_specialize=["first_b"])
def _fill_kernel(
    A,  # (size_a, d) fp16 | bf16 | fp32, last dimension contiguous; candidates
    B,  # (size_b, d) as A; represented rows
    A_SQUARES,  # (size_a,) fp32, or None
    B_SQUARES,  # (size_b,) fp32, or None
    LEVEL,  # (size_b,) int32 in [0, 2^22]
    CURSOR,  # (size_a,) int64, the next free place of each candidate's list
    END,  # (size_a,) int64, the first place of the next one
    ROWS,  # (nnz,) int32
    Q,  # (nnz,) int32
    size_a,
    size_b,
    first_b,  # the number of B's first row
    d,
    tiles,  # tiles of side b of one program
    factor,  # fp32
    stride_a,
    stride_b,
    KIND: tl.constexpr,
    PRECISION: tl.constexpr,
    SYMMETRIC: tl.constexpr,  # A is B, see _sweep_kernel
    EVEN_K: tl.constexpr,
    EMULATE: tl.constexpr,
    BLOCK_A: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    tl.static_assert(not SYMMETRIC or BLOCK_B % BLOCK_A == 0)
    tiles_a = (size_a + BLOCK_A - 1) // BLOCK_A
    tiles_b = (size_b + BLOCK_B - 1) // BLOCK_B
    tile_a, chunk = place(tl.program_id(0).to(tl.int64), tiles_a, (tiles_b + tiles - 1) // tiles, 16)
    first = chunk * tiles
    last = tl.minimum(first + tiles, tiles_b)
    diagonal = tile_a * BLOCK_A // BLOCK_B
    if SYMMETRIC:
        last = tl.minimum(last, diagonal + 1)

    a = tile_a * BLOCK_A + tl.arange(0, BLOCK_A)  # (BLOCK_A,)
    rows_a = gather(None, a, size_a)
    a_squares = squares_of(A_SQUARES, rows_a)
    for tile_b in range(first, last):
        b = tile_b * BLOCK_B + tl.arange(0, BLOCK_B).to(tl.int64)  # (BLOCK_B,)
        rows_b = gather(None, b, size_b)
        acc = dots(
            A, B, rows_a, rows_b, d, stride_a, stride_b, PRECISION, EVEN_K, EMULATE, BLOCK_A, BLOCK_B, BLOCK_K
        )
        q = quanta(acc, a_squares, squares_of(B_SQUARES, rows_b), factor, KIND)
        # 2^22: nothing is above it, which drops the rows beyond the end on one side, the mask those on the other
        level = tl.load(LEVEL + b, mask=b < size_b, other=2**22)
        keep = (q > level[None, :]) & (a[:, None] < size_a)
        _store(q, keep, (b + first_b).to(tl.int32)[None, :], CURSOR + rows_a, END + rows_a, ROWS, Q, 1)
        if SYMMETRIC:  # noqa: SIM102 (a constant, then a value of the run)
            if tile_b < diagonal:
                level_a = tl.load(LEVEL + a, mask=a < size_a, other=2**22)
                keep_a = (q > level_a[:, None]) & (b[None, :] < size_b)
                _store(q, keep_a, a.to(tl.int32)[:, None], CURSOR + rows_b, END + rows_b, ROWS, Q, 0)


def count(x, y, level, form, *, x_squares=None, y_squares=None):
    """How many rows each candidate may still improve: out[j] = |{i : q_ij > level_i}|, (n,) int64.

    x          (r, d) float16 | bfloat16 | float32, finite, any row stride, last dimension contiguous; represented rows
    y          (n, d) like x; candidates. With y = x every pair is computed once
    level      (r,) int32 in [0, 2^22] (not checked), quanta
    form       how s comes from a dot product
    x_squares  (r,) float32 from `squared_norms`, and y_squares (n,): computed here where they are needed and not given

    2 r n d FLOP, half of it where symmetric; O(n) memory beside the inputs.
    raises ValueError on a wrong shape, dtype, device or option
    source: design brief, 3.2
    """
    check_pair(x, y)
    return sweep("count", y, x, form, level, None, None, y_squares, x_squares)


def fill(x, y, level, ptr, form, *, x_squares=None, y_squares=None):
    """The pairs that `count` counted, by candidate: (rows, q).

    ptr      (n + 1,) int64: 0 and the running sums of `count` for these very arguments
    returns  rows (nnz,) int32 and q (nnz,) int32, nnz = ptr[n]: places ptr[j] to ptr[j + 1] hold the rows i with
             q_ij > level_i, and q_ij, in an order that is left open
    The other arguments, cost and errors as in `count`, and 8 nnz bytes; ValueError also where ptr does not fit what was
    found (nothing is written outside the lists). Waits for the device: to read nnz, and for that check.
    """
    r, n = check_pair(x, y)
    checks.tensor("level", level, (r,), (torch.int32,), ("x", x))
    checks.tensor("ptr", ptr, (n + 1,), (torch.int64,), ("x", x))
    if r > 2**31 - 1:
        raise ValueError(f"x must have at most 2^31 - 1 rows (their numbers are stored as int32), got {r}")
    nnz = int(ptr[-1])
    rows = torch.empty(nnz, dtype=torch.int32, device=x.device)
    q = torch.empty(nnz, dtype=torch.int32, device=x.device)
    cursor = ptr[:-1].clone()
    append(x, y, level, cursor, ptr[1:], rows, q, form, x_squares=x_squares, y_squares=y_squares)
    check_full(cursor, ptr)
    return rows, q


def append(x, y, level, cursor, end, rows, q, form, *, first=0, x_squares=None, y_squares=None):
    """Write the pairs of these rows and candidates to where each candidate's go next, for pools that come in blocks.

    cursor  (n,) int64, the next free place of each candidate; moved on
    end     (n,) int64, the first place beyond its own: nothing is written there
    rows, q  (nnz,) int32, written to
    first   the number of x's first row
    The other arguments, cost and errors as in `count`.
    """
    r, n = check_pair(x, y)
    like = ("x", x)
    checks.tensor("level", level, (r,), (torch.int32,), like)
    for name, value in (("cursor", cursor), ("end", end)):
        checks.tensor(name, value, (n,), (torch.int64,), like)
    checks.tensor("rows", rows, (None,), (torch.int32,), like)
    checks.tensor("q", q, tuple(rows.shape), (torch.int32,), like)
    symmetric = first == 0 and same(x, y)
    config = launch_config("fill_symmetric" if symmetric else "fill", y, x, form)
    pair = pair_arguments(y, x, form, config, y_squares, x_squares)
    if len(rows) == 0:
        return
    tiles_a, tiles_b = triton.cdiv(n, config.block_a), triton.cdiv(r, config.block_b)
    tiles = launch.tiles_of_a_program(tiles_a, tiles_b, x.device, MOST_TILES)
    launch.run(
        _fill_kernel,
        tiles_a * triton.cdiv(tiles_b, tiles),
        config,
        x,
        **pair,
        LEVEL=level,
        CURSOR=cursor,
        END=end,
        ROWS=rows,
        Q=q,
        size_a=n,
        size_b=r,
        first_b=first,
        tiles=tiles,
        SYMMETRIC=symmetric,
    )


def check_full(cursor, ptr):
    """ValueError where `append` did not fill the lists that begin at ptr (n + 1,): they were counted otherwise."""
    if not torch.equal(cursor, ptr[1:]):
        raise ValueError(
            "ptr must be 0 and the running sums of count(...) for these very arguments; it is not"
        )
