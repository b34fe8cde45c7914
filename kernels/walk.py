"""Survivors, walked: the pairs with q_ij > level_i, stored by column, give every later gain without dense work.

Letters: r represented rows i, n candidates j. The pairs of candidate j are rows[ptr[j]:ptr[j + 1]] (its rows i, each
once, in any order) and q[...] (its similarities in quanta of 2^-22).

All kernels are bound by memory: a pair is 8 bytes, read once, and costs one gathered read of the level (4 bytes, and
8 of a weight), which lies in L2 for r up to millions. Offsets into pairs are int64: there may be more than 2^31.

No sum overflows. level_i >= 0 and q_ij <= 2^22, so an excess lies in [0, 2^22]; a column holds a row once, so that an
unweighted sum is below 2^22 r < 2^53, and a weighted one below 2^22 sum_i w_i < 2^61 where sum_i w_i < 2^39.
Integer sums are exact: neither the order of the pairs nor that of the atomics changes a bit.
"""

import torch
import triton
import triton.language as tl

from . import checks, launch

COLUMNS = 8  # of one program: late in a selection they hold a few dozen pairs each
BLOCK = 64  # pairs of a column read at a time, 256 bytes of each array
CONFIG = launch.LaunchConfig(block_a=COLUMNS, block_b=BLOCK, block_k=1, num_warps=4, num_stages=1)
PROGRAMS = 4096  # about 30 for each of an H200's 132 multiprocessors: few long columns are split to reach it
BLOCK_RAISE = 512  # pairs read at a time of the one column that raises the level


@triton.jit
def _columns(
    PTR,  # (n + 1,) int64
    COLS,  # (m,) int64, or None: all n
    at,  # (COLUMNS,) int64
    m,
):
    """Where the pairs of some columns begin and end, (COLUMNS,) int64 each; none beyond the last."""
    j = at
    if COLS is not None:
        j = tl.load(COLS + at, mask=at < m, other=0)
    first = tl.load(PTR + j, mask=at < m, other=0)
    return first, tl.load(PTR + j + 1, mask=at < m, other=0)


@triton.jit(do_not_specialize=["m", "splits"])
def _sparse_excess_kernel(
    PTR,  # (n + 1,) int64
    ROWS,  # (nnz,) int32
    Q,  # (nnz,) int32
    LEVEL,  # (r,) int32, >= 0
    W,  # (r,) int64, or None: all ones
    COLS,  # (m,) int64, or None: all n
    OUT,  # (m,) int64, zeroed by the launcher
    m,
    splits,  # programs that share a group of columns
    COLUMNS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    pid = tl.program_id(0).to(tl.int64)
    at = (pid // splits) * COLUMNS + tl.arange(0, COLUMNS)
    first, last = _columns(PTR, COLS, at, m)
    lane = tl.arange(0, BLOCK)
    total = tl.zeros((COLUMNS, BLOCK), dtype=tl.int64)
    for start in range((pid % splits) * BLOCK, tl.max(last - first, axis=0), splits * BLOCK):
        pair = first[:, None] + start + lane[None, :]
        inside = pair < last[:, None]
        i = tl.load(ROWS + pair, mask=inside, other=0)  # row 0: any that exists
        q = tl.load(Q + pair, mask=inside, other=0)  # 0: no excess over a level >= 0
        over = tl.maximum(q - tl.load(LEVEL + i), 0).to(tl.int64)
        if W is not None:
            over *= tl.load(W + i)
        total += over
    tl.atomic_add(OUT + at, tl.sum(total, axis=1), mask=at < m, sem="relaxed")


@triton.jit(do_not_specialize=["j"])  # another pick, the same kernel
def _sparse_raise_kernel(
    PTR,  # (n + 1,) int64
    ROWS,  # (nnz,) int32
    Q,  # (nnz,) int32
    LEVEL,  # (r,) int32, raised in place
    j,
    BLOCK: tl.constexpr,
):
    first, last = tl.load(PTR + j), tl.load(PTR + j + 1)
    lane = tl.arange(0, BLOCK)
    step = tl.num_programs(0).to(tl.int64) * BLOCK
    for start in range(first + tl.program_id(0).to(tl.int64) * BLOCK, last, step):
        pair = start + lane
        inside = pair < last
        i = tl.load(ROWS + pair, mask=inside, other=0)
        q = tl.load(Q + pair, mask=inside, other=0)
        # A column holds a row once: nobody else writes this entry.
        level = tl.load(LEVEL + i, mask=inside, other=0)
        tl.store(LEVEL + i, tl.maximum(level, q), mask=inside)


@triton.jit(do_not_specialize=["n"])
def _alive_kernel(
    PTR,  # (n + 1,) int64
    ROWS,  # (nnz,) int32
    Q,  # (nnz,) int32
    LEVEL,  # (r,) int32
    OUT,  # (n,) int64
    n,
    COLUMNS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    at = tl.program_id(0).to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)
    first, last = _columns(PTR, None, at, n)
    lane = tl.arange(0, BLOCK)
    count = tl.zeros((COLUMNS, BLOCK), dtype=tl.int32)  # of one lane: at most r / BLOCK
    for start in range(0, tl.max(last - first, axis=0), BLOCK):
        pair = first[:, None] + start + lane[None, :]
        inside = pair < last[:, None]
        i = tl.load(ROWS + pair, mask=inside, other=0)
        q = tl.load(Q + pair, mask=inside, other=0)  # 0: not above a level >= 0
        count += (q > tl.load(LEVEL + i)).to(tl.int32)
    tl.store(OUT + at, tl.sum(count.to(tl.int64), axis=1), mask=at < n)


@triton.jit(do_not_specialize=["n"])
def _compact_kernel(
    PTR,  # (n + 1,) int64, of the pairs there are
    ROWS,  # (nnz,) int32
    Q,  # (nnz,) int32
    LEVEL,  # (r,) int32
    TO_PTR,  # (n + 1,) int64, of those that stay
    TO_ROWS,  # int32
    TO_Q,  # int32
    n,
    COLUMNS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    at = tl.program_id(0).to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)
    first, last = _columns(PTR, None, at, n)
    to = tl.load(TO_PTR + at, mask=at < n, other=0)
    lane = tl.arange(0, BLOCK)
    for start in range(0, tl.max(last - first, axis=0), BLOCK):
        pair = first[:, None] + start + lane[None, :]
        inside = pair < last[:, None]
        i = tl.load(ROWS + pair, mask=inside, other=0)
        q = tl.load(Q + pair, mask=inside, other=0)
        stays = (q > tl.load(LEVEL + i)).to(tl.int32)  # 0 outside: not above a level >= 0
        place = to[:, None] + tl.cumsum(stays, axis=1) - 1
        tl.store(TO_ROWS + place, i, mask=stays > 0)
        tl.store(TO_Q + place, q, mask=stays > 0)
        to += tl.sum(stays, axis=1)


def sparse_excess(ptr, rows, q, level, *, weights=None, cols=None):
    """Exact gains from stored pairs: out[c] = sum_i w_i max(q_ij - level_i, 0) over the pairs (i, q_ij) of j = cols[c].

    ptr      (n + 1,) int64, where each column's pairs begin; ptr[n] is their number
    rows, q  (nnz,) int32, rows in [0, r), each at most once in a column, and similarities in quanta, at most 2^22
    level    (r,) int32, quanta >= 0
    weights  (r,) int64 >= 0, sum below 2^39; None: all ones
    cols     (m,) int64 in [0, n); None: all columns
    returns  (m,) int64, quanta

    Reads the pairs of the columns once, 8 bytes each. raises ValueError on a wrong shape, dtype or device
    """
    n = _check(ptr, rows, q, level)
    if weights is not None:
        checks.tensor("weights", weights, (level.shape[0],), (torch.int64,), ("ptr", ptr))
    m = checks.columns(cols, n, ("ptr", ptr))
    groups = triton.cdiv(m, COLUMNS)
    splits = min(max(1, PROGRAMS // max(groups, 1)), _blocks(n, rows, BLOCK))
    out = torch.zeros(m, dtype=torch.int64, device=ptr.device)
    if m:
        pairs = {"PTR": ptr, "ROWS": rows, "Q": q, "LEVEL": level, "W": weights, "COLS": cols}
        how = {"m": m, "splits": splits, "COLUMNS": COLUMNS, "BLOCK": BLOCK}
        launch.run(_sparse_excess_kernel, groups * splits, CONFIG, ptr, **pairs, OUT=out, **how)
    return out


def sparse_raise(ptr, rows, q, level, j):
    """Raise the level by stored column j, in place: level[i] = max(level[i], q_ij) over its pairs.

    Arguments as for sparse_excess; j an int in [0, n). Reads one column and writes the levels of its rows.
    """
    n = _check(ptr, rows, q, level)
    if not 0 <= j < n:
        raise ValueError(f"j must lie in [0, {n}), got {j}")
    pairs = {"PTR": ptr, "ROWS": rows, "Q": q, "LEVEL": level}
    programs = _blocks(n, rows, BLOCK_RAISE)
    launch.run(_sparse_raise_kernel, programs, CONFIG, ptr, **pairs, j=int(j), BLOCK=BLOCK_RAISE)


def alive(ptr, rows, q, level):
    """How many pairs of each column have q_ij > level_i, (n,) int64. Arguments and errors as for sparse_excess."""
    n = _check(ptr, rows, q, level)
    out = torch.zeros(n, dtype=torch.int64, device=ptr.device)
    if n:
        pairs = {"PTR": ptr, "ROWS": rows, "Q": q, "LEVEL": level}
        how = {"n": n, "COLUMNS": COLUMNS, "BLOCK": BLOCK}
        launch.run(_alive_kernel, triton.cdiv(n, COLUMNS), CONFIG, ptr, **pairs, OUT=out, **how)
    return out


def compact(ptr, rows, q, level, counts=None):
    """The pairs that still matter, those with q_ij > level_i, in their order: new (ptr, rows, q).

    counts  (n,) int64 as from alive(), where that is known already. Other arguments as for sparse_excess.

    Reads all pairs twice (once where counts is given) and writes those that stay; needs room for these besides.
    """
    n = _check(ptr, rows, q, level)
    if counts is None:
        counts = alive(ptr, rows, q, level)
    else:
        checks.tensor("counts", counts, (n,), (torch.int64,), ("ptr", ptr))
    to_ptr = torch.zeros(n + 1, dtype=torch.int64, device=ptr.device)
    torch.cumsum(counts, 0, out=to_ptr[1:])
    left = int(to_ptr[-1])
    to_rows, to_q = (torch.empty(left, dtype=torch.int32, device=ptr.device) for _ in range(2))
    if left:
        pairs = {"PTR": ptr, "ROWS": rows, "Q": q, "LEVEL": level}
        to = {"TO_PTR": to_ptr, "TO_ROWS": to_rows, "TO_Q": to_q}
        how = {"n": n, "COLUMNS": COLUMNS, "BLOCK": BLOCK}
        launch.run(_compact_kernel, triton.cdiv(n, COLUMNS), CONFIG, ptr, **pairs, **to, **how)
    return to_ptr, to_rows, to_q


def _blocks(n, rows, block):
    """Programs that may share a column: each has a block of pairs in one of four times the mean length."""
    return max(1, triton.cdiv(4 * triton.cdiv(rows.shape[0], max(n, 1)), block))


def _check(ptr, rows, q, level):
    """Refuse what the kernels cannot walk; returns n."""
    checks.tensor("ptr", ptr, (None,), (torch.int64,))
    if not len(ptr):
        raise ValueError("ptr must have n + 1 entries, got none")
    checks.tensor("rows", rows, (None,), (torch.int32,), ("ptr", ptr))
    checks.tensor("q", q, tuple(rows.shape), (torch.int32,), ("ptr", ptr))
    checks.tensor("level", level, (None,), (torch.int32,), ("ptr", ptr))
    return ptr.shape[0] - 1
