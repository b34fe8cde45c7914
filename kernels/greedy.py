"""Greedy's step over a batch whose columns are kept: gains, their update after a pick, and the best of them.

Letters: r represented rows i, m candidates c of the batch, kept (m, r) int32 quanta, candidate-major: a column of s
is a row here, contiguous.

All kernels are bound by memory. No sum overflows: |q| <= 2^22 and 0 <= level <= 2^22, so a term of an excess, or of
what it loses, lies in [0, 2^22]. Sums are int64: a whole column's is at most 2^22 r < 2^53, or 2^22 sum_i w_i < 2^61
where sum_i w_i < 2^39. Integer atomics: the order changes no bit.
"""

import torch
import triton
import triton.language as tl

from . import checks, launch

BLOCK_I = 512  # rows of a tile: 2 KiB of a column
BLOCK_C = 8  # candidates of a tile: 4096 entries, 32 a thread
TILES = 4  # row tiles of one program before its atomic
CONFIG = launch.LaunchConfig(block_a=BLOCK_C, block_b=BLOCK_I, block_k=1, num_warps=4, num_stages=1)
BLOCK_BEST = 1024  # values compared at a time
BEST_PROGRAMS = 256  # each leaves one value and index, which one more program compares


@triton.jit
def _sum_over(
    over,  # (BLOCK_C, BLOCK_I) int32 >= 0, at most 2^22
    W,
    i,
    r,
):
    """(BLOCK_C,) int64 sums over the rows of a tile, weighted where W is given."""
    # int64 even without weights: 512 rows of at most 2^22 add up to 2^31, one too many for int32
    over = over.to(tl.int64)
    if W is not None:
        over *= tl.load(W + i, mask=i < r, other=0)[None, :]  # 0: such a row weighs nothing
    return tl.sum(over, axis=1)


@triton.jit
def _column_excess_kernel(
    KEPT,  # (m, r) int32
    LEVEL,  # (r,) int32
    W,  # (r,) int64, or None
    OUT,  # (m,) int64, zeroed by the launcher
    m,
    r,
    tiles_c,
    stride_kept,
    BLOCK_C: tl.constexpr,
    BLOCK_I: tl.constexpr,
    TILES: tl.constexpr,
):
    pid = tl.program_id(0).to(tl.int64)
    c = (pid % tiles_c) * BLOCK_C + tl.arange(0, BLOCK_C)  # neighbours share the levels
    total = tl.zeros((BLOCK_C,), dtype=tl.int64)
    for tile in range(TILES):
        i = ((pid // tiles_c) * TILES + tile) * BLOCK_I + tl.arange(0, BLOCK_I)
        inside = (c[:, None] < m) & (i[None, :] < r)
        level = tl.load(LEVEL + i, mask=i < r, other=0)
        # 0: no excess over a level >= 0
        q = tl.load(KEPT + c[:, None] * stride_kept + i[None, :], mask=inside, other=0)
        total += _sum_over(tl.maximum(q - level[None, :], 0), W, i, r)
    tl.atomic_add(OUT + c, total, mask=c < m, sem="relaxed")


@triton.jit(do_not_specialize=["b"])  # another pick, the same kernel
def _update_kernel(
    KEPT,  # (m, r) int32
    LEVEL,  # (r,) int32, the old one
    W,  # (r,) int64, or None
    EXCESS,  # (m,) int64, lowered in place
    b,
    m,
    r,
    tiles_c,
    stride_kept,
    BLOCK_C: tl.constexpr,
    BLOCK_I: tl.constexpr,
    TILES: tl.constexpr,
):
    pid = tl.program_id(0).to(tl.int64)
    c = (pid % tiles_c) * BLOCK_C + tl.arange(0, BLOCK_C)
    loss = tl.zeros((BLOCK_C,), dtype=tl.int64)
    for tile in range(TILES):
        i = ((pid // tiles_c) * TILES + tile) * BLOCK_I + tl.arange(0, BLOCK_I)
        old = tl.load(LEVEL + i, mask=i < r, other=0)
        new = tl.maximum(old, tl.load(KEPT + b.to(tl.int64) * stride_kept + i, mask=i < r, other=0))
        # Most picks raise few levels: a tile in which nothing changes is not read.
        if tl.max(new - old, axis=0) > 0:
            inside = (c[:, None] < m) & (i[None, :] < r)
            q = tl.load(KEPT + c[:, None] * stride_kept + i[None, :], mask=inside, other=0)
            # max(q - old, 0) - max(q - new, 0); 0 where old = new, which is so beyond r
            lost = tl.minimum(tl.maximum(q, old[None, :]), new[None, :]) - old[None, :]
            loss += _sum_over(lost, W, i, r)
    tl.atomic_add(EXCESS + c, -loss, mask=c < m, sem="relaxed")


@triton.jit(do_not_specialize=["b"])
def _raise_kernel(
    KEPT,  # (m, r) int32
    LEVEL,  # (r,) int32, raised in place
    b,
    r,
    stride_kept,
    BLOCK: tl.constexpr,
):
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    level = tl.load(LEVEL + i, mask=i < r, other=0)
    column = tl.load(KEPT + b.to(tl.int64) * stride_kept + i, mask=i < r, other=0)
    tl.store(LEVEL + i, tl.maximum(level, column), mask=i < r)


@triton.jit
def _best_kernel(
    VALUES,  # (n,) int64 | float64
    AT,  # (n,) int64, the index of each value; None: its place
    OPEN,  # (n,) bool; None: all
    BEST,  # (programs,) as VALUES
    WHERE,  # (programs,) int64, -1 where nothing is open
    n,
    LOW: tl.constexpr,
    BLOCK: tl.constexpr,
):
    lane = tl.arange(0, BLOCK)
    best = tl.zeros((BLOCK,), dtype=VALUES.dtype.element_ty)
    where = tl.full((BLOCK,), -1, dtype=tl.int64)
    step = tl.num_programs(0).to(tl.int64) * BLOCK
    for start in range(tl.program_id(0).to(tl.int64) * BLOCK, n, step):
        place = start + lane
        taken = place < n
        if OPEN is not None:
            taken = taken & (tl.load(OPEN + place, mask=taken, other=0) != 0)
        value = tl.load(VALUES + place, mask=taken, other=0)
        at = place
        if AT is not None:
            at = tl.load(AT + place, mask=taken, other=-1)
            taken = taken & (at >= 0)
        if LOW:
            wins = (value > best) | ((value == best) & (at < where))
        else:
            wins = (value > best) | ((value == best) & (at > where))
        wins = taken & (wins | (where < 0))
        best = tl.where(wins, value, best)
        where = tl.where(wins, at, where)
    # Lanes without a value stand back: their best is made that of no other, then their index.
    some = where >= 0
    lowest = tl.min(tl.where(some, best, tl.max(best, axis=0)), axis=0)
    top = tl.max(tl.where(some, best, lowest), axis=0)
    ties = some & (best == top)
    if LOW:
        index = tl.min(tl.where(ties, where, 2**62), axis=0)
        index = tl.where(index == 2**62, -1, index)
    else:
        index = tl.max(tl.where(ties, where, -1), axis=0)
    tl.store(BEST + tl.program_id(0), top)
    tl.store(WHERE + tl.program_id(0), index)


def column_excess(kept, level, *, weights=None):
    """Gains of a batch from its kept columns: out[c] = sum_i w_i max(kept[c, i] - level_i, 0).

    kept     (m, r) int32 quanta in [-2^22, 2^22], a column of s contiguous
    level    (r,) int32, quanta in [0, 2^22]
    weights  (r,) int64 >= 0, sum below 2^39; None: all ones
    returns  (m,) int64. Reads 4 m r bytes once. raises ValueError on a wrong shape, dtype or device
    """
    m, r = _check(kept, level, weights)
    out = torch.zeros(m, dtype=torch.int64, device=kept.device)
    if m and r:
        launch.run(
            _column_excess_kernel, _programs(m, r), CONFIG, kept, **_batch(kept, level, weights), OUT=out
        )
    return out


def update(kept, b, level, excess, *, weights=None):
    """Pick column b of a batch: every excess loses what lay between the old level and the new, then the level rises.

        new = max(level, kept[b]);  excess[c] -= sum_i w_i (clip(kept[c, i], level_i, new_i) - level_i);  level = new

    kept     (m, r) int32 quanta in [-2^22, 2^22], a column of s contiguous
    b        int in [0, m)
    level    (r,) int32, quanta in [0, 2^22]; changed in place
    excess   (m,) int64; changed in place
    weights  (r,) int64 >= 0, sum below 2^39; None: all ones

    Reads the columns once, 4 m r bytes, and of those only tiles of rows whose level changes.
    raises ValueError on a wrong shape, dtype or device
    """
    m, r = _check(kept, level, weights)
    checks.tensor("excess", excess, (m,), (torch.int64,), ("kept", kept))
    if not 0 <= b < m:
        raise ValueError(f"b must lie in [0, {m}), got {b}")
    if not r:
        return
    batch = _batch(kept, level, weights)
    launch.run(_update_kernel, _programs(m, r), CONFIG, kept, **batch, EXCESS=excess, b=int(b))
    # In a launch of its own: every program above needs the old level.
    launch.run(
        _raise_kernel, triton.cdiv(r, BLOCK_BEST), CONFIG, kept,
        KEPT=kept, LEVEL=level, b=int(b), r=r, stride_kept=kept.stride(0), BLOCK=BLOCK_BEST,
    )  # fmt: skip


def best(values, *, open=None, low=True):
    """Where the largest value is, ties to the lowest index (to the highest where low is False).

    values   (n,) int64 | float64, no NaN; -inf is a value like any other
    open     (n,) bool, the entries that count; None: all
    returns  () int64 on the device, -1 where nothing is open. Reads n values once.
    raises ValueError on a wrong shape, dtype or device
    """
    checks.tensor("values", values, (None,), (torch.int64, torch.float64))
    n = values.shape[0]
    if open is not None:
        checks.tensor("open", open, (n,), (torch.bool,), ("values", values))
        open = open.view(torch.uint8)
    programs = max(1, min(BEST_PROGRAMS, triton.cdiv(n, BLOCK_BEST)))
    tops = torch.empty(programs + 1, dtype=values.dtype, device=values.device)
    where = torch.full((programs + 1,), -1, dtype=torch.int64, device=values.device)
    if n:
        how = {"LOW": bool(low), "BLOCK": BLOCK_BEST}
        first = {"VALUES": values, "AT": None, "OPEN": open, "BEST": tops, "WHERE": where, "n": n}
        launch.run(_best_kernel, programs, CONFIG, values, **first, **how)
        if programs > 1:
            then = {
                "VALUES": tops,
                "AT": where,
                "OPEN": None,
                "BEST": tops[programs:],
                "WHERE": where[programs:],
            }
            launch.run(_best_kernel, 1, CONFIG, values, **then, n=programs, **how)
    return where[programs if programs > 1 else 0]


def _programs(m, r):
    return triton.cdiv(m, BLOCK_C) * triton.cdiv(r, BLOCK_I * TILES)


def _batch(kept, level, weights):
    """What both kernels over a batch take."""
    m, r = kept.shape
    sizes = {"m": m, "r": r, "tiles_c": triton.cdiv(m, BLOCK_C), "stride_kept": kept.stride(0)}
    blocks = {"BLOCK_C": BLOCK_C, "BLOCK_I": BLOCK_I, "TILES": TILES}
    return {"KEPT": kept, "LEVEL": level, "W": weights, **sizes, **blocks}


def _check(kept, level, weights):
    checks.tensor("kept", kept, (None, None), (torch.int32,))
    m, r = kept.shape
    checks.tensor("level", level, (r,), (torch.int32,), ("kept", kept))
    if weights is not None:
        checks.tensor("weights", weights, (r,), (torch.int64,), ("kept", kept))
    return m, r
