"""Sweeps: tiles of similarity, reduced on the spot or stored for a few candidates; the r x n matrix never is.

Letters as in similarity.py. Side a of a tile is what is reduced into (candidates, but rows in `row_max`), side b what
is reduced over: a thread of a tensor core's tile holds long runs of b, so this direction costs few exchanges.

No integer sum can overflow. A quantum count q has |q| <= 2^22 and so has an excess, with levels in [0, 2^22]; a tile
adds at most 256 of them in int32, 2^30. Across tiles and with weights sums are int64: weights sum to at most 2^40,
rows number at most 2^31, so no partial sum passes 2^62.
"""

import torch
import triton
import triton.language as tl

from . import checks, launch
from .similarity import (
    ONE,
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

MOST_TILES = 32  # of side b for one program, before its one atomic a candidate


@triton.jit
def _part(
    q,  # (BLOCK_A, BLOCK_B) int32
    level,  # broadcastable to q, int32, or None
    REDUCE: tl.constexpr,
):
    """What a pair gives to a reduction, int32."""
    if REDUCE == "excess":
        q = tl.maximum(q - level, 0)
    elif REDUCE == "count":
        q = (q > level).to(tl.int32)
    return q


@triton.jit
def _reduce(
    part,  # (BLOCK_A, BLOCK_B) int32
    weights,  # broadcastable to part, int64, or None
    REDUCE: tl.constexpr,
    AXIS: tl.constexpr,
):
    if REDUCE == "max":
        out = tl.max(part, axis=AXIS)
    elif REDUCE == "min":
        out = tl.min(part, axis=AXIS)
    elif weights is None:
        out = tl.sum(part, axis=AXIS).to(tl.int64)
    else:
        out = tl.sum(part.to(tl.int64) * weights, axis=AXIS)
    return out


@triton.jit
def _send(
    out,  # (BLOCK,) pointers
    part,  # (BLOCK,)
    mask,  # (BLOCK,)
    REDUCE: tl.constexpr,
):
    """Integer atomics: the order of arrival changes nothing."""
    if REDUCE == "max":
        tl.atomic_max(out, part, mask=mask, sem="relaxed")
    elif REDUCE == "min":
        tl.atomic_min(out, part, mask=mask, sem="relaxed")
    else:
        tl.atomic_add(out, part, mask=mask, sem="relaxed")


@triton.jit
def _sweep_kernel(
    A,  # (*, d) fp16 | bf16 | fp32, last dimension contiguous; reduced into
    B,  # (size_b, d) as A; reduced over
    A_INDEX,  # (size_a,) int64, rows of A, or None: all of them
    A_SQUARES,  # (*,) fp32, or None
    B_SQUARES,  # (size_b,) fp32, or None
    LEVEL,  # (size_b,) int32 in [0, 2^22], or None
    WEIGHTS,  # (size_b,) int64, or None: all ones
    OUT,  # (size_a,) int64 (sums) or int32 (max, min), initialised by the launcher
    size_a,
    size_b,
    d,
    tiles,  # tiles of side b of one program
    factor,  # fp32
    stride_a,
    stride_b,
    KIND: tl.constexpr,
    PRECISION: tl.constexpr,
    REDUCE: tl.constexpr,  # total, excess, count, max, min
    SYMMETRIC: tl.constexpr,  # A is B: the tiles on and below the block diagonal serve both their sides
    EVEN_K: tl.constexpr,
    EMULATE: tl.constexpr,
    BLOCK_A: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    # int32 sums of a tile, see the top; a block of side b on the diagonal holds whole blocks of side a
    tl.static_assert(BLOCK_A <= 256 and BLOCK_B <= 256 and (not SYMMETRIC or BLOCK_B % BLOCK_A == 0))
    tiles_a = (size_a + BLOCK_A - 1) // BLOCK_A
    tiles_b = (size_b + BLOCK_B - 1) // BLOCK_B
    tile_a, chunk = place(tl.program_id(0).to(tl.int64), tiles_a, (tiles_b + tiles - 1) // tiles, 16)
    first = chunk * tiles
    last = tl.minimum(first + tiles, tiles_b)
    diagonal = tile_a * BLOCK_A // BLOCK_B  # the tile of side b that holds this one's rows
    if SYMMETRIC:
        last = tl.minimum(last, diagonal + 1)

    if first < last:
        a = tile_a * BLOCK_A + tl.arange(0, BLOCK_A)  # (BLOCK_A,)
        rows_a = gather(A_INDEX, a, size_a)
        a_squares = squares_of(A_SQUARES, rows_a)
        if REDUCE == "max":
            out = tl.full((BLOCK_A,), -(2**22), dtype=tl.int32)
        elif REDUCE == "min":
            out = tl.full((BLOCK_A,), 2**22, dtype=tl.int32)
        else:
            out = tl.zeros((BLOCK_A,), dtype=tl.int64)

        for tile_b in range(first, last):
            b = tile_b * BLOCK_B + tl.arange(0, BLOCK_B).to(tl.int64)  # (BLOCK_B,)
            rows_b = gather(None, b, size_b)
            acc = dots(
                A,
                B,
                rows_a,
                rows_b,
                d,
                stride_a,
                stride_b,
                PRECISION,
                EVEN_K,
                EMULATE,
                BLOCK_A,
                BLOCK_B,
                BLOCK_K,
            )
            q = quanta(acc, a_squares, squares_of(B_SQUARES, rows_b), factor, KIND)
            # Rows beyond the end repeat the last one. Maxima do not mind; a level of 2^22 (excess, count) or a weight
            # of 0 drops them from sums; a total without weights needs them cleared.
            level = None
            weights = None
            if REDUCE == "excess" or REDUCE == "count":
                level = tl.load(LEVEL + b, mask=b < size_b, other=2**22)[None, :]
            if WEIGHTS is not None:
                weights = tl.load(WEIGHTS + b, mask=b < size_b, other=0)[None, :]
            part = _part(q, level, REDUCE)
            if REDUCE == "total" and WEIGHTS is None:
                part = tl.where(b[None, :] < size_b, part, 0)
            reduced = _reduce(part, weights, REDUCE, 1)  # (BLOCK_A,)
            if REDUCE == "max":
                out = tl.maximum(out, reduced)
            elif REDUCE == "min":
                out = tl.minimum(out, reduced)
            else:
                out += reduced

            if SYMMETRIC:  # noqa: SIM102 (a constant, then a value of the run)
                # Below the diagonal block every pair counts for its other side too. The diagonal block itself is
                # computed whole, by the programs of all its rows.
                if tile_b < diagonal:
                    level_a = None
                    weights_a = None
                    if REDUCE == "excess" or REDUCE == "count":
                        level_a = tl.load(LEVEL + a, mask=a < size_a, other=2**22)[:, None]
                    if WEIGHTS is not None:
                        weights_a = tl.load(WEIGHTS + a, mask=a < size_a, other=0)[:, None]
                    part_a = _part(q, level_a, REDUCE)
                    if REDUCE == "total" and WEIGHTS is None:
                        part_a = tl.where(a[:, None] < size_a, part_a, 0)
                    _send(OUT + b, _reduce(part_a, weights_a, REDUCE, 0), b < size_b, REDUCE)
        _send(OUT + a, out, a < size_a, REDUCE)


@triton.jit
def _columns_kernel(
    A,  # (*, d) fp16 | bf16 | fp32, last dimension contiguous; the rows of the result
    B,  # (*, d) as A; its columns
    A_INDEX,  # (size_a,) int64, rows of A, or None: all of them
    B_INDEX,  # (size_b,) int64, rows of B, or None
    A_SQUARES,  # (*,) fp32, or None
    B_SQUARES,  # (*,) fp32, or None
    OUT,  # (size_a, size_b) int32, last dimension contiguous
    size_a,
    size_b,
    d,
    factor,  # fp32
    stride_a,
    stride_b,
    stride_out,
    KIND: tl.constexpr,
    PRECISION: tl.constexpr,
    EVEN_K: tl.constexpr,
    EMULATE: tl.constexpr,
    BLOCK_A: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    tiles_a = (size_a + BLOCK_A - 1) // BLOCK_A
    tiles_b = (size_b + BLOCK_B - 1) // BLOCK_B
    tile_a, tile_b = place(tl.program_id(0).to(tl.int64), tiles_a, tiles_b, 16)
    a = tile_a * BLOCK_A + tl.arange(0, BLOCK_A)  # (BLOCK_A,)
    b = tile_b * BLOCK_B + tl.arange(0, BLOCK_B).to(tl.int64)  # (BLOCK_B,)
    rows_a = gather(A_INDEX, a, size_a)
    rows_b = gather(B_INDEX, b, size_b)
    acc = dots(
        A, B, rows_a, rows_b, d, stride_a, stride_b, PRECISION, EVEN_K, EMULATE, BLOCK_A, BLOCK_B, BLOCK_K
    )
    q = quanta(acc, squares_of(A_SQUARES, rows_a), squares_of(B_SQUARES, rows_b), factor, KIND)
    inside = (a[:, None] < size_a) & (b[None, :] < size_b)
    tl.store(OUT + a[:, None] * stride_out + b[None, :], q, mask=inside)


@triton.jit
def _raise_kernel(
    A,  # (n, d) fp16 | bf16 | fp32, last dimension contiguous; candidates
    B,  # (size_b, d) as A; represented rows
    PICK,  # (1,) int64: a candidate; below 0 nothing is done
    A_SQUARES,  # (n,) fp32, or None
    B_SQUARES,  # (size_b,) fp32, or None
    LEVEL,  # (size_b,) int32, raised in place
    size_b,
    d,
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
):
    pick = tl.load(PICK)
    if pick >= 0:
        # A tile of which one column is wanted: products of a pair have the same bits in tiles alone.
        rows_a = tl.zeros((BLOCK_A,), dtype=tl.int64) + pick
        b = tl.program_id(0).to(tl.int64) * BLOCK_B + tl.arange(0, BLOCK_B)  # (BLOCK_B,)
        rows_b = gather(None, b, size_b)
        acc = dots(
            A, B, rows_a, rows_b, d, stride_a, stride_b, PRECISION, EVEN_K, EMULATE, BLOCK_A, BLOCK_B, BLOCK_K
        )
        q = quanta(acc, squares_of(A_SQUARES, rows_a), squares_of(B_SQUARES, rows_b), factor, KIND)
        level = tl.load(LEVEL + b, mask=b < size_b, other=0)
        tl.store(LEVEL + b, tl.maximum(level, tl.max(q, axis=0)), mask=b < size_b)  # all rows of q are one


def totals(x, y, form, *, weights=None, cols=None, x_squares=None, y_squares=None):
    """Weighted column sums of similarities: out[j] = sum_i w_i q_ij, s_ij in quanta q_ij of 2^-22. Exact sums.

    x          (r, d) float16 | bfloat16 | float32, finite, any row stride, last dimension contiguous; represented rows
    y          (n, d) like x; candidates. With y = x and all of them, every pair is computed once
    form       how s comes from a dot product
    weights    (r,) int64, >= 0, sum at most 2^40 (see check_weights); None: all ones
    cols       (m,) int64 in [0, n), any order, repeats allowed; None: all. Their range is not checked
    x_squares  (r,) float32 from `squared_norms`, and y_squares (n,): computed here where they are needed and not given
    returns    (m,) int64, in quanta: multiply by QUANTUM for similarities

    2 r m d FLOP (r n d where symmetric) and O(m) memory beside the inputs.
    raises ValueError on a wrong shape, dtype, device or option
    source: design brief, 2 (graph cut's total_j), 3.0 and 3.3
    """
    check_pair(x, y)
    return sweep("total", y, x, form, None, weights, cols, y_squares, x_squares)


def excess(x, y, level, form, *, weights=None, cols=None, x_squares=None, y_squares=None, out=None):
    """Gains of facility location: out[j] = sum_i w_i max(q_ij - level_i, 0), in quanta. Exact sums.

    level      (r,) int32 in [0, 2^22] (not checked), quanta: the best similarity of row i so far
    out        (m,) int64 to which the sums are added; None: a new one
    The other arguments, cost and errors are those of `totals`.
    source: design brief, 2 (facility location), 3.0 and 3.3
    """
    check_pair(x, y)
    return sweep("excess", y, x, form, level, weights, cols, y_squares, x_squares, out)


def raise_level(x, y, pick, level, form, *, x_squares=None, y_squares=None):
    """Raise the level by one candidate, in place: level[i] = max(level[i], q of row i and candidate `pick`).

    pick   (1,) int64 on the device, in [0, n) (not checked), or below 0: then nothing is done
    level  (r,) int32 quanta, changed
    x, y, form, x_squares, y_squares and errors as in `totals`; reads x once. The host waits for nothing.
    """
    r, _ = check_pair(x, y)
    checks.tensor("pick", pick, (1,), (torch.int64,), ("x", x))
    checks.tensor("level", level, (r,), (torch.int32,), ("x", x))
    config = launch_config("columns", y, x, form)
    pair = pair_arguments(y, x, form, config, y_squares, x_squares)
    if r:
        programs = triton.cdiv(r, config.block_b)
        launch.run(_raise_kernel, programs, config, x, **pair, PICK=pick, LEVEL=level, size_b=r)


def columns(x, y, cols, form, *, x_squares=None, y_squares=None, out=None):
    """Whole columns of similarity: out[c, i] = q of row i and candidate cols[c], int32 quanta.

    cols       (m,) int64 in [0, n) (not checked)
    out        (m, r) int32 with contiguous rows, overwritten; None: a new one
    returns    out: candidate-major, so that a column is contiguous
    x, y, form, x_squares, y_squares and errors as in `totals`; 2 m r d FLOP, 4 m r bytes written.
    """
    check_pair(x, y)
    checks.tensor("cols", cols, (None,), (torch.int64,), ("x", x))
    return _pairs(y, x, cols, None, form, y_squares, x_squares, out)


def block(x, rows, y, cols, form, *, x_squares=None, y_squares=None):
    """Similarities of gathered pairs: out[a, c] = q of rows[a] of x and cols[c] of y, int32 quanta.

    rows, cols  (|rows|,) and (|cols|,) int64 row numbers of x and of y (not checked)
    returns     (|rows|, |cols|) int32
    x, y, form, x_squares, y_squares and errors as in `totals`; 2 |rows| |cols| d FLOP.
    """
    check_pair(x, y)
    checks.tensor("rows", rows, (None,), (torch.int64,), ("x", x))
    checks.tensor("cols", cols, (None,), (torch.int64,), ("x", x))
    return _pairs(x, y, rows, cols, form, x_squares, y_squares, None)


def row_max(x, y, form, *, x_squares=None, y_squares=None):
    """The best similarity of each row, if positive: out[i] = max(0, max_j q_ij), (r,) int32 quanta.

    Arguments, cost and errors as in `totals`. It is facility location's level with every candidate chosen.
    """
    check_pair(x, y)
    return sweep("max", x, y, form, None, None, None, x_squares, y_squares)


def row_min(x, y, form, *, x_squares=None, y_squares=None):
    """The smallest similarity of each row: out[i] = min_j q_ij, (r,) int32 quanta; 2^22 without candidates.

    With form.top = 0 the smallest of all is -M of "max_minus_sqeuclidean". Arguments, cost and errors as in `totals`.
    """
    check_pair(x, y)
    return sweep("min", x, y, form, None, None, None, x_squares, y_squares)


def sweep(reduce, a, b, form, level, weights, index, a_squares, b_squares, out=None):
    """Reduce ("total", "excess", "count", "max", "min") over the rows of b, into those of a (or its rows `index`)."""
    size_a, size_b = checks.columns(index, a.shape[0], ("x", b)), b.shape[0]
    if level is not None:
        checks.tensor("level", level, (size_b,), (torch.int32,), ("x", b))
    if weights is not None:
        checks.tensor("weights", weights, (size_b,), (torch.int64,), ("x", b))
    if out is not None:
        checks.tensor("out", out, (size_a,), (torch.int64,), ("x", b))
    elif reduce in ("max", "min"):
        start = 0 if reduce == "max" else ONE
        out = torch.full((size_a,), start, dtype=torch.int32, device=a.device)
    else:
        out = torch.zeros(size_a, dtype=torch.int64, device=a.device)

    symmetric = index is None and same(a, b)
    name = ("symmetric" if symmetric else "sweep") + ("_weighted" if weights is not None else "")
    config = launch_config(name, a, b, form)
    pair = pair_arguments(a, b, form, config, a_squares, b_squares)
    if size_a == 0 or size_b == 0:
        return out
    tiles_a, tiles_b = triton.cdiv(size_a, config.block_a), triton.cdiv(size_b, config.block_b)
    tiles = launch.tiles_of_a_program(tiles_a, tiles_b, a.device, MOST_TILES)
    launch.run(
        _sweep_kernel,
        tiles_a * triton.cdiv(tiles_b, tiles),
        config,
        a,
        **pair,
        A_INDEX=index,
        LEVEL=level,
        WEIGHTS=weights,
        OUT=out,
        size_a=size_a,
        size_b=size_b,
        tiles=tiles,
        REDUCE=reduce,
        SYMMETRIC=symmetric,
    )
    return out


def _pairs(a, b, a_index, b_index, form, a_squares, b_squares, out):
    """Similarities of rows of a (or a_index of them) with rows of b, (size_a, size_b) int32."""
    size_a = a.shape[0] if a_index is None else a_index.shape[0]
    size_b = b.shape[0] if b_index is None else b_index.shape[0]
    if out is None:
        out = torch.empty((size_a, size_b), dtype=torch.int32, device=a.device)
    elif (
        not isinstance(out, torch.Tensor) or tuple(out.shape) != (size_a, size_b) or out.dtype != torch.int32
    ):
        got = f"{tuple(out.shape)} {out.dtype}" if isinstance(out, torch.Tensor) else type(out).__name__
        raise ValueError(f"out must be ({size_a}, {size_b}) torch.int32, got {got}")
    elif out.device != a.device:
        raise ValueError(f"out must be on x's device {a.device}, got {out.device}")
    elif size_b > 1 and out.stride(1) != 1:
        raise ValueError(f"out must have contiguous rows (stride 1), got stride {out.stride(1)}")
    config = launch_config("columns", a, b, form)
    pair = pair_arguments(a, b, form, config, a_squares, b_squares)
    if size_a == 0 or size_b == 0:
        return out
    launch.run(
        _columns_kernel,
        triton.cdiv(size_a, config.block_a) * triton.cdiv(size_b, config.block_b),
        config,
        a,
        **pair,
        A_INDEX=a_index,
        B_INDEX=b_index,
        OUT=out,
        size_a=size_a,
        size_b=size_b,
        stride_out=out.stride(0),
    )
    return out
