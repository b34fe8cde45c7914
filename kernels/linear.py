"""Features times vectors in float64: what graph cut and log-determinant need of a linear similarity, instead of sweeps.

Letters: n rows x_j of d features, c vectors v, m rows asked for. And, for other similarities, the rows of a Cholesky
factor. These numbers are gains, rounded: what matters is that a row always gets the same bits. So every kernel adds
up one row's products in an order that depends on d and the kernel alone: a row stands in one program, k ascends, and
which other rows are asked for changes nothing. That holds for one compiled kernel; Triton compiles another where a
size is 1 or a multiple of 16, so sizes that differ from call to call are not specialised on, and rows always come
through an index.
"""

import torch
import triton
import triton.language as tl

from . import checks, launch

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
# Vectors -> blocks of rows (a), vectors (b), features (k): 2048 or 4096 float64 sums in 128 threads. The first two are
# bound by memory, 2 or 4 KiB of 16-bit features in flight a program; the last reads features again for every 16
# vectors, from L1.
SHAPES = {1: (16, 1, 128), 2: (16, 2, 64), 16: (16, 16, 16)}
BLOCK_R = 256  # entries of a factor's row read at a time
CONFIGS = {c: launch.LaunchConfig(*shape, num_warps=4, num_stages=1) for c, shape in SHAPES.items()}


@triton.jit
def _products(
    X,
    V,
    row,  # (BLOCK_M,) int64
    real,  # (BLOCK_M,) bool
    c,  # (BLOCK_C,)
    count,  # of vectors
    d,
    stride_x,
    stride_v,
    BLOCK_K: tl.constexpr,
):
    """(BLOCK_M, BLOCK_C) float64 x_row . v_c: BLOCK_K chains with k ascending, added up by one tree."""
    lane = tl.arange(0, BLOCK_K)
    acc = tl.zeros((row.shape[0], BLOCK_K, c.shape[0]), dtype=tl.float64)
    for k0 in range(0, d, BLOCK_K):
        k = k0 + lane
        # 0: adds nothing
        x = tl.load(
            X + row[:, None] * stride_x + k[None, :], mask=real[:, None] & (k[None, :] < d), other=0.0
        )
        v = tl.load(
            V + k[:, None] * stride_v + c[None, :], mask=(k[:, None] < d) & (c[None, :] < count), other=0.0
        )
        acc += x.to(tl.float32).to(tl.float64)[:, :, None] * v[None, :, :]
    return tl.sum(acc, axis=1)


@triton.jit(do_not_specialize=["m", "count"])
def _times_kernel(
    X,  # (n, d) fp16 | bf16 | fp32, last dimension contiguous
    V,  # (d, count) fp64, contiguous
    ROWS,  # (m,) int64
    OUT,  # (m, count) fp64
    m,
    count,
    d,
    tiles_c,
    stride_x,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    pid = tl.program_id(0).to(tl.int64)
    at = (pid // tiles_c) * BLOCK_M + tl.arange(0, BLOCK_M)
    c = (pid % tiles_c) * BLOCK_C + tl.arange(0, BLOCK_C)
    row = tl.load(ROWS + at, mask=at < m, other=0)
    out = _products(X, V, row, at < m, c, count, d, stride_x, count, BLOCK_K)
    tl.store(OUT + at[:, None] * count + c[None, :], out, mask=(at[:, None] < m) & (c[None, :] < count))


@triton.jit(do_not_specialize=["m"])
def _squares_kernel(
    X,  # (n, d) fp16 | bf16 | fp32 | fp64, last dimension contiguous
    ROWS,  # (m,) int64
    OUT,  # (m,) fp64
    m,
    d,
    stride_x,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    at = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    row = tl.load(ROWS + at, mask=at < m, other=0)
    lane = tl.arange(0, BLOCK_K)
    acc = tl.zeros((BLOCK_M, BLOCK_K), dtype=tl.float64)
    for k0 in range(0, d, BLOCK_K):
        k = k0 + lane
        inside = (at[:, None] < m) & (k[None, :] < d)
        x = tl.load(X + row[:, None] * stride_x + k[None, :], mask=inside, other=0.0)  # 0: adds nothing
        if X.dtype.element_ty != tl.float64:  # by way of float32: the interpreter widens bf16 no further
            x = x.to(tl.float32).to(tl.float64)
        acc += x * x
    tl.store(OUT + at, tl.sum(acc, axis=1), mask=at < m)


@triton.jit(do_not_specialize=["m", "count"])
def _falls_kernel(
    X,  # (n, d) fp16 | bf16 | fp32, last dimension contiguous
    V,  # (d, count) fp64, contiguous, the newest first
    SHIFT,  # (count,) fp64
    ROWS,  # (m,) int64
    SCALE,  # (m,) fp64
    BEHIND,  # (m,) int64
    OUT,  # (m,) fp64
    m,
    count,
    d,
    stride_x,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    at = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    real = at < m
    row = tl.load(ROWS + at, mask=real, other=0)
    scale = tl.load(SCALE + at, mask=real, other=0.0)
    behind = tl.load(BEHIND + at, mask=real, other=0)  # 0: such a row misses nothing
    lane = tl.arange(0, BLOCK_C)
    total = tl.zeros((BLOCK_M,), dtype=tl.float64)
    # Counted from the newest, vectors that a row does not miss come last and add zeros: they change no bit of its sum.
    for c0 in range(0, tl.max(behind, axis=0), BLOCK_C):
        c = c0 + lane
        along = _products(X, V, row, real, c, count, d, stride_x, count, BLOCK_K)  # (BLOCK_M, BLOCK_C)
        along = along * scale[:, None] + tl.load(SHIFT + c, mask=c < count, other=0.0)[None, :]
        total += tl.sum(tl.where(c[None, :] < behind[:, None], along * along, 0.0), axis=1)
    tl.store(OUT + at, total, mask=real)


@triton.jit(do_not_specialize=["m", "base", "t"])
def _cholesky_kernel(
    FACTOR,  # (u, capacity) fp64, row-major
    ROWS,  # (m,) int64
    DONE,  # (m,) int64
    S,  # (t - base, m) fp64
    PICKS,  # (t,) int64
    PIVOTS,  # (t,) fp64
    OUT,  # (m,) fp64
    m,
    base,
    t,
    stride,
    BLOCK: tl.constexpr,
):
    place = tl.program_id(0).to(tl.int64)
    row = tl.load(ROWS + place)
    mine = FACTOR + row * stride
    lane = tl.arange(0, BLOCK)
    total = tl.zeros((1,), dtype=tl.float64)
    for at in range(tl.load(DONE + place), t):
        other = FACTOR + tl.load(PICKS + at) * stride
        acc = tl.zeros((BLOCK,), dtype=tl.float64)
        for r0 in range(0, at, BLOCK):
            r = r0 + lane
            # 0: adds nothing
            acc += tl.load(mine + r, mask=r < at, other=0.0) * tl.load(other + r, mask=r < at, other=0.0)
        entry = (tl.load(S + (at - base) * m + place) - tl.sum(acc, axis=0)) / tl.load(PIVOTS + at)
        tl.store(mine + at, entry)
        total += entry * entry
        tl.debug_barrier()  # the next entry's threads read this one
    tl.store(OUT + place + tl.arange(0, 1), total)


def times(x, v, cols=None, *, out=None):
    """x_j . v for rows of x, in float64 and one fixed order for each row.

    x        (n, d) float16 | bfloat16 | float32, any row stride, last dimension contiguous
    v        (d,) or (d, c) float64, contiguous
    cols     (m,) int64 in [0, n); None: all rows
    out      (m,) or (m, c) float64, overwritten; None: a new one
    returns  out, (m,) or (m, c) float64: a row's bits depend on its values, on v and on c, not on cols

    O(m d c) time; up to two vectors are bound by reading x once. raises ValueError on a wrong shape, dtype or device
    """
    checks.rows("x", x, DTYPES)
    d = x.shape[1]
    checks.tensor("v", v, (d,) if v.ndim == 1 else (d, None), (torch.float64,), ("x", x))
    rows = _rows(x, cols)
    m, count = len(rows), 1 if v.ndim == 1 else v.shape[1]
    if out is None:
        out = torch.zeros((m, *v.shape[1:]), dtype=torch.float64, device=x.device)
    else:
        checks.tensor("out", out, (m, *v.shape[1:]), (torch.float64,), ("x", x))
    if m and count and d:
        config = CONFIGS[count if count < 3 else 16]
        tiles_c = triton.cdiv(count, config.block_b)
        sizes = {"m": m, "count": count, "d": d, "tiles_c": tiles_c, "stride_x": x.stride(0)}
        programs = triton.cdiv(m, config.block_a) * tiles_c
        launch.run(
            _times_kernel, programs, config, x, X=x, V=v, ROWS=rows, OUT=out, **sizes,
            BLOCK_M=config.block_a, BLOCK_K=config.block_k, BLOCK_C=config.block_b,
        )  # fmt: skip
    return out


def squares(x, cols=None):
    """x_j . x_j for rows of x, (m,) float64, in one fixed order for each row. As for times(), x may be float64 too."""
    checks.rows("x", x, (*DTYPES, torch.float64))
    rows = _rows(x, cols)
    out = torch.zeros(len(rows), dtype=torch.float64, device=x.device)
    if len(rows) and x.shape[1]:
        config = CONFIGS[1]
        sizes = {"m": len(rows), "d": x.shape[1], "stride_x": x.stride(0)}
        launch.run(
            _squares_kernel, triton.cdiv(len(rows), config.block_a), config, x, X=x, ROWS=rows, OUT=out, **sizes,
            BLOCK_M=config.block_a, BLOCK_K=config.block_k,
        )  # fmt: skip
    return out


def falls(x, v, behind, *, cols=None, scale=None, shift=None):
    """How far residuals fell by the picks that each row has missed.

        out[j] = sum_{c < behind_j} (scale_j x_j . v_c + shift_c)^2

    x        (n, d) float16 | bfloat16 | float32, any row stride, last dimension contiguous
    v        (d, c) float64, contiguous, one vector for each pick, the newest first
    behind   (m,) int64 in [0, c]: the picks that a row has missed
    cols     (m,) int64 in [0, n), the rows; None: all
    scale    (m,) float64, and shift (c,) float64; None: ones, zeros
    returns  (m,) float64: a row's bits depend on its values and on what it has missed alone

    O(m d max(behind)) time. source: the residual y_j' Q y_j loses (y_j . v)^2 at each pick (Woodbury)
    raises ValueError on a wrong shape, dtype or device
    """
    checks.rows("x", x, DTYPES)
    like = ("x", x)
    checks.tensor("v", v, (x.shape[1], None), (torch.float64,), like)
    rows, count = _rows(x, cols), v.shape[1]
    m = len(rows)
    checks.tensor("behind", behind, (m,), (torch.int64,), like)
    if scale is None:
        scale = torch.ones(m, dtype=torch.float64, device=x.device)
    if shift is None:
        shift = torch.zeros(count, dtype=torch.float64, device=x.device)
    checks.tensor("scale", scale, (m,), (torch.float64,), like)
    checks.tensor("shift", shift, (count,), (torch.float64,), like)
    out = torch.zeros(m, dtype=torch.float64, device=x.device)
    if m and count:
        config = CONFIGS[16]
        of_rows = {"ROWS": rows, "SCALE": scale, "BEHIND": behind}
        sizes = {"m": m, "count": count, "d": x.shape[1], "stride_x": x.stride(0)}
        launch.run(
            _falls_kernel, triton.cdiv(m, config.block_a), config, x, X=x, V=v, SHIFT=shift, **of_rows, OUT=out,
            **sizes, BLOCK_M=config.block_a, BLOCK_K=config.block_k, BLOCK_C=config.block_b,
        )  # fmt: skip
    return out


def cholesky(factor, rows, done, s, picks, pivots):
    """Bring rows of a Cholesky factor up to date, in place: their entries for the picks that each has missed.

        c_jt = (s_{p_t j} - sum_{u < t} c_{p_t u} c_ju) / pivot_t,  t from done_j on

    factor   (u, capacity) float64, row j of it is c_j; rows of picks are up to date
    rows     (m,) int64 in [0, u), distinct; done (m,) int64, entries that each has
    s        (t - base, m) float64, similarities to the picks from number base = t - len(s) on, base <= min(done)
    picks    (t,) int64 rows of the picks in order, t <= capacity; pivots (t,) float64
    returns  (m,) float64, sum of the squares of the new entries: what the residual falls by

    One program a row, in one fixed order. O(m (t - done) t) time.
    raises ValueError on a wrong shape, dtype or device
    """
    like = ("factor", factor)
    checks.tensor("factor", factor, (None, None), (torch.float64,))
    checks.tensor("rows", rows, (None,), (torch.int64,), like)
    m = len(rows)
    checks.tensor("done", done, (m,), (torch.int64,), like)
    checks.tensor("picks", picks, (None,), (torch.int64,), like)
    t = len(picks)
    checks.tensor("pivots", pivots, (t,), (torch.float64,), like)
    checks.tensor("s", s, (None, m), (torch.float64,), like)
    if len(s) > t or t > factor.shape[1]:
        raise ValueError(
            f"s must have at most {t} rows and factor at least {t} columns, got {len(s)}, {factor.shape[1]}"
        )
    out = torch.zeros(m, dtype=torch.float64, device=factor.device)
    if m and len(s):
        tensors = {"FACTOR": factor, "ROWS": rows, "DONE": done, "S": s, "PICKS": picks, "PIVOTS": pivots}
        sizes = {"m": m, "base": t - len(s), "t": t, "stride": factor.stride(0)}
        launch.run(_cholesky_kernel, m, CONFIGS[1], factor, **tensors, OUT=out, **sizes, BLOCK=BLOCK_R)
    return out


def _rows(x, cols):
    checks.columns(cols, x.shape[0], ("x", x))
    return torch.arange(x.shape[0], device=x.device) if cols is None else cols
