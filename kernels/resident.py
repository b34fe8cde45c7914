"""Greedy's loop on the device: a step is a fixed sequence of launches, which a CUDA graph replays without the host.

    scan      the candidates with the best bounds: TAKE of each group of candidates, and the best that each group leaves
    evaluate  their gains now: from stored pairs, from tiles (sweeps.excess), or from features (linear.times, quadratic)
    decide    their new bounds; the best of them is picked if it beats every bound that was left, ties by index included
    commit    the pick, if there is one, changes the levels, sums or inverse that gains are made of

A step without a pick has evaluated bounds that stood in the way, and the next one goes on. Every pick is that of naive
greedy: whose best bounds are looked at decides how many steps it takes, and nothing else.

What a launch reads and changes:
    HEAD  (6,) int64: picks so far t, 1 when finished, the pick to commit or -1, gains evaluated, picks wanted, and
          picks that no group needs
    REAL  (13,) float64: what was reached, where to stop, weight of the gain, margin, slack a pick; then what the gain
          is made of (GAIN says how), and last what is left to pay with. Here, because Triton would pass a Python float
          in 32 bits
    KEY   (n,) float64 bounds, -inf for candidates that may not be picked
    COST, RATE  (n,) float64: what a pick takes of what is left, and what bounds are divided by to be compared; or None
    CLASS (n,) int32 group of each candidate, MORE, NEED (groups,) int32 rows it may give yet, and must; or None
    STAMP (n,) int32, picks when a bound was a gain; None where a gain bounds all later ones as it is
Groups hold every GROUPS-th run of RUN candidates, so that alike neighbours spread and loads stay whole sectors.
"""

import torch
import triton
import triton.language as tl

from . import checks, launch
from .linear import DTYPES, SHAPES
from .walk import BLOCK_RAISE

TAKE = 4  # candidates of a group that a step evaluates
RUN = 4  # neighbours in one group: 32 bytes of KEY, a sector
MOST_GROUPS = 128  # one for about every multiprocessor of an H200
LEAST_OF_GROUP = 64  # candidates
BLOCK_SCAN = 1024
# Programs that share one column's pairs, and that raise the levels by the last pick beside those that scan. In the
# interpreter they run one after the other.
SPLITS, RAISERS = (1, 1) if launch.INTERPRETED else (4, 32)
BLOCK_PAIRS = 256
SCAN = launch.LaunchConfig(RUN, BLOCK_SCAN, 1, num_warps=8, num_stages=1)
PAIRS = launch.LaunchConfig(1, BLOCK_PAIRS, 1, num_warps=4, num_stages=1)
DECIDE = launch.LaunchConfig(TAKE, MOST_GROUPS, 1, num_warps=8, num_stages=1)
ROUND = 6755399441055744.0  # 1.5 2^52: adding and subtracting it rounds to an integer


def groups(n):
    """How many groups n candidates are searched in, a power of two."""
    return 1 << max(2, min(MOST_GROUPS, n // LEAST_OF_GROUP).bit_length() - 1)


@triton.jit
def _later(v, k, LOW: tl.constexpr):
    """Whether a value beats one that an earlier index holds."""
    if LOW:
        out = v > k
    else:
        out = v >= k
    return out


@triton.jit
def _best(k, a, LOW: tl.constexpr):
    """(largest value, its index; the lowest among equals, or the highest)."""
    top = tl.max(k, axis=0)
    if LOW:
        at = tl.min(tl.where(k == top, a, 2**62), axis=0)
    else:
        at = tl.max(tl.where(k == top, a, -1), axis=0)
    return top, at


@triton.jit(do_not_specialize=["n"])
def _scan_kernel(
    KEY,  # (n,) fp64
    STAMP,  # (n,) int32, or None
    HEAD,
    REAL,
    TOP,  # (GROUPS * TAKE,) fp64, the bounds to evaluate, -inf where a group has no more
    AT,  # (GROUPS * TAKE,) int64, whose they are
    LIMIT,  # (GROUPS,) fp64, the best bound that a group leaves
    LIMIT_AT,  # (GROUPS,) int64
    FRESH,  # (GROUPS * TAKE,) int64, cleared for sums; None where no sum is added to
    COST,
    RATE,
    CLASS,
    MORE,
    NEED,
    PTR,  # (n + 1,) int64, pairs by column; None: the level is raised elsewhere
    ROWS,  # (nnz,) int32
    Q,  # (nnz,) int32
    LEVEL,  # (r,) int32
    n,
    GROUPS: tl.constexpr,
    TAKE: tl.constexpr,
    RUN: tl.constexpr,
    LOW: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_RAISE: tl.constexpr,
):
    g = tl.program_id(0).to(tl.int64)
    if g < GROUPS:
        lane = tl.arange(0, BLOCK)
        k1 = tl.full((BLOCK,), float("-inf"), dtype=tl.float64)
        k2, k3, k4, k5 = k1, k1, k1, k1
        a1 = tl.zeros((BLOCK,), dtype=tl.int64)
        a2, a3, a4, a5 = a1, a1, a1, a1
        t = tl.load(HEAD)
        runs = (n.to(tl.int64) + RUN * GROUPS - 1) // (RUN * GROUPS)
        for start in range(0, runs * RUN, BLOCK):
            u = start + lane
            j = (u // RUN) * (RUN * GROUPS) + g * RUN + u % RUN
            inside = (u < runs * RUN) & (j < n)
            v = tl.load(KEY + j, mask=inside, other=float("-inf"))  # never picked
            if STAMP is not None:
                age = t - tl.load(STAMP + j, mask=inside, other=0).to(tl.int64)
                risen = v + tl.load(REAL + 3) + tl.load(REAL + 4) * age.to(tl.float64)
                v = tl.where(age == 0, v, risen)
            if COST is not None:
                cost = tl.load(COST + j, mask=inside, other=0.0)
                v = tl.where(cost <= tl.load(REAL + 12), v, float("-inf"))
            if RATE is not None:
                v = v / tl.load(RATE + j, mask=inside, other=1.0)
            if CLASS is not None:
                of = tl.load(CLASS + j, mask=inside, other=0)
                spare = (tl.load(NEED + of) > 0) | (tl.load(HEAD + 5) > 0)
                v = tl.where((tl.load(MORE + of) > 0) & spare, v, float("-inf"))
            # A lane meets its candidates in the order of their indices.
            b1, b2, b3, b4, b5 = (
                _later(v, k1, LOW),
                _later(v, k2, LOW),
                _later(v, k3, LOW),
                _later(v, k4, LOW),
                _later(v, k5, LOW),
            )
            k5 = tl.where(b4, k4, tl.where(b5, v, k5))
            a5 = tl.where(b4, a4, tl.where(b5, j, a5))
            k4 = tl.where(b3, k3, tl.where(b4, v, k4))
            a4 = tl.where(b3, a3, tl.where(b4, j, a4))
            k3 = tl.where(b2, k2, tl.where(b3, v, k3))
            a3 = tl.where(b2, a2, tl.where(b3, j, a3))
            k2 = tl.where(b1, k1, tl.where(b2, v, k2))
            a2 = tl.where(b1, a1, tl.where(b2, j, a2))
            k1 = tl.where(b1, v, k1)
            a1 = tl.where(b1, j, a1)
        for s in tl.static_range(TAKE + 1):
            top, at = _best(k1, a1, LOW)
            at = tl.where(top == float("-inf"), 0, at)
            if s < TAKE:
                tl.store(TOP + g * TAKE + s, top)
                tl.store(AT + g * TAKE + s, at)
                if FRESH is not None:
                    tl.store(FRESH + g * TAKE + s, tl.zeros((), dtype=tl.int64))
            else:
                tl.store(LIMIT + g, top)
                tl.store(LIMIT_AT + g, at)
            mine = (k1 == top) & (a1 == at)
            k1, a1 = tl.where(mine, k2, k1), tl.where(mine, a2, a1)
            k2, a2 = tl.where(mine, k3, k2), tl.where(mine, a3, a2)
            k3, a3 = tl.where(mine, k4, k3), tl.where(mine, a4, a3)
            k4, a4 = tl.where(mine, k5, k4), tl.where(mine, a5, a4)
            k5 = tl.where(mine, float("-inf"), k5)
    elif PTR is not None:
        # Nobody reads levels in this launch. A pick that was raised already changes nothing.
        pick = tl.load(HEAD + 2)
        if pick >= 0:
            first, last = tl.load(PTR + pick), tl.load(PTR + pick + 1)
            place = tl.arange(0, BLOCK_RAISE)
            step = (tl.num_programs(0).to(tl.int64) - GROUPS) * BLOCK_RAISE
            for start in range(first + (g - GROUPS) * BLOCK_RAISE, last, step):
                inside = start + place < last
                i = tl.load(ROWS + start + place, mask=inside, other=0)
                q = tl.load(Q + start + place, mask=inside, other=0)
                level = tl.load(LEVEL + i, mask=inside, other=0)
                # a column holds a row once: nobody else writes this entry
                tl.store(LEVEL + i, tl.maximum(level, q), mask=inside)


@triton.jit
def _fresh_excess_kernel(
    PTR,  # (n + 1,) int64
    ROWS,  # (nnz,) int32
    Q,  # (nnz,) int32
    LEVEL,  # (r,) int32
    W,  # (r,) int64, or None: all ones
    HEAD,
    TOP,  # (slots,) fp64
    AT,  # (slots,) int64
    FRESH,  # (slots,) int64, cleared
    SPLITS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    pid = tl.program_id(0).to(tl.int64)
    slot = pid // SPLITS
    if (tl.load(TOP + slot) > float("-inf")) & (tl.load(HEAD + 1) == 0):
        j = tl.load(AT + slot)
        first, last = tl.load(PTR + j), tl.load(PTR + j + 1)
        lane = tl.arange(0, BLOCK)
        total = tl.zeros((BLOCK,), dtype=tl.int64)
        for start in range(first + (pid % SPLITS) * BLOCK, last, SPLITS * BLOCK):
            inside = start + lane < last
            i = tl.load(ROWS + start + lane, mask=inside, other=0)  # row 0: any that exists
            q = tl.load(Q + start + lane, mask=inside, other=0)  # 0: no excess over a level >= 0
            over = tl.maximum(q - tl.load(LEVEL + i), 0).to(tl.int64)
            if W is not None:
                over *= tl.load(W + i)
            total += over
        tl.atomic_add(FRESH + slot, tl.sum(total, axis=0), sem="relaxed")


@triton.jit
def _decide_kernel(
    KEY,  # (n,) fp64
    STAMP,  # (n,) int32, or None
    HEAD,
    REAL,
    TOP,  # (SLOTS,) fp64
    AT,  # (SLOTS,) int64
    LIMIT,  # (GROUPS,) fp64
    LIMIT_AT,  # (GROUPS,) int64
    FRESH,  # (SLOTS,) int64 | fp64, or (PARTS, SLOTS) fp64
    OWN,  # (n,) fp64, s_jj where the gain needs it, or None
    BEFORE,  # (n,) fp64, added before the gain, or None
    AFTER,  # (n,) fp64, added after it, or None
    LOG,  # (k, 2) fp64: picks and their gains
    COST,
    RATE,
    CLASS,
    MORE,
    NEED,
    PARTS,
    GAIN: tl.constexpr,  # excess, cut, log: how the gain is made of FRESH
    GROUPS: tl.constexpr,
    SLOTS: tl.constexpr,
    LOW: tl.constexpr,
):
    # All that is written below is read up here, before the barriers of the reductions.
    t, finished, evaluated, wanted = tl.load(HEAD), tl.load(HEAD + 1), tl.load(HEAD + 3), tl.load(HEAD + 4)
    reached, until, left, free = tl.load(REAL), tl.load(REAL + 1), tl.load(REAL + 12), tl.load(HEAD + 5)
    slot = tl.arange(0, SLOTS)
    at = tl.load(AT + slot)
    there = tl.load(TOP + slot) > float("-inf")
    if GAIN == "excess":
        gain = tl.load(FRESH + slot).to(tl.float64) * tl.load(REAL + 5)
    elif GAIN == "cut":  # unit (scale x.v + b (r - 2 lam |S|) - lam s_jj)
        picks = t.to(tl.float64) + tl.load(REAL + 11)
        constant = tl.load(REAL + 7) * (tl.load(REAL + 8) - tl.load(REAL + 9) * picks)
        along = tl.load(FRESH + slot) * tl.load(REAL + 6)
        own = tl.load(OWN + at) * tl.load(REAL + 10)
        gain = tl.load(REAL + 5) * (along + constant - own)
    else:  # log of the residual lam + y' Q y, to multiples of 2^-40
        total = tl.zeros((SLOTS,), dtype=tl.float64)
        for part in range(PARTS):  # in one order
            total += tl.load(FRESH + part * SLOTS + slot)
        lam = tl.load(REAL + 5)
        residual = tl.maximum(lam + total, lam)
        grid = tl.load(REAL + 6)
        gain = (tl.log(residual) * grid + tl.load(REAL + 7) - tl.load(REAL + 7)) / grid
    gain = gain * tl.load(REAL + 2)
    if BEFORE is not None:
        gain = tl.load(BEFORE + at) + gain
    if AFTER is not None:
        gain = gain + tl.load(AFTER + at)
    gain = tl.where(there, gain, float("-inf"))
    rate = gain
    if RATE is not None:
        rate = gain / tl.load(RATE + at)
    top, index = _best(rate, at, LOW)
    group = tl.arange(0, GROUPS)
    limit, other = _best(tl.load(LIMIT + group), tl.load(LIMIT_AT + group), LOW)
    if LOW:
        first = index < other
    else:
        first = index > other
    picks = (top > limit) | ((top == limit) & first)
    picks = picks & (top > float("-inf")) & (finished == 0)
    ends = False
    if COST is not None:  # what costs, and would lower the value, is left where it is
        ends = picks & (top < 0.0)
        picks = picks & (top >= 0.0)
    chosen = there & (at == tl.where(picks, index, -1))
    fresh = there & (finished == 0)
    tl.store(KEY + at, tl.where(chosen, float("-inf"), gain), mask=fresh)
    if STAMP is not None:
        # t: a gain now, and where a pick follows already one of before
        tl.store(STAMP + at, tl.zeros((SLOTS,), dtype=tl.int32) + t.to(tl.int32), mask=fresh)
    tl.store(LOG + 2 * t, index.to(tl.float64), mask=picks)
    # a gain, which is what was compared only where there are no rates
    best = tl.max(tl.where(there & (at == index), gain, float("-inf")), axis=0)
    tl.store(LOG + 2 * t + 1, best, mask=picks)
    reached += tl.where(picks, best, 0.0)
    tl.store(REAL, reached)
    if GAIN == "log":
        tl.store(REAL + 8, tl.sum(tl.where(chosen, residual, 0.0), axis=0))
    nothing = (top == float("-inf")) & (limit == float("-inf"))
    done = (t + picks.to(tl.int64) >= wanted) | (reached >= until) | nothing | ends
    tl.store(HEAD, t + picks.to(tl.int64))
    tl.store(HEAD + 1, tl.where(done | (finished != 0), 1, 0).to(tl.int64))
    tl.store(HEAD + 2, tl.where(picks, index, -1))
    tl.store(HEAD + 3, evaluated + tl.sum(fresh.to(tl.int64), axis=0))
    if COST is not None:
        tl.store(REAL + 12, left - tl.load(COST + index, mask=picks, other=0.0))
    if CLASS is not None:
        of = tl.load(CLASS + index, mask=picks, other=0)
        more, need = tl.load(MORE + of), tl.load(NEED + of)
        tl.debug_barrier()  # all threads have read what one writes
        tl.store(MORE + of, more - 1, mask=picks)
        tl.store(NEED + of, tl.maximum(need - 1, 0), mask=picks)
        tl.store(HEAD + 5, free - tl.where(picks & (need == 0), 1, 0))


@triton.jit
def _cut_kernel(
    X,  # (n, d) fp16 | bf16 | fp32, last dimension contiguous
    HEAD,
    REAL,
    WHOLE,  # (d,) fp64, sum of the represented rows
    PICKED,  # (d,) fp64, sum of the picks, changed in place
    V,  # (d,) fp64, a (whole - 2 lam picked)
    SLOPE,  # (2,) fp64: a, 2 lam
    d,
    stride_x,
    BLOCK: tl.constexpr,
):
    pick = tl.load(HEAD + 2)
    if pick >= 0:
        k = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        inside = k < d
        x = tl.load(X + pick * stride_x + k, mask=inside, other=0.0)
        x = x.to(tl.float32).to(tl.float64) * tl.load(REAL + 6)
        picked = tl.load(PICKED + k, mask=inside, other=0.0) + x
        v = tl.load(SLOPE) * (tl.load(WHOLE + k, mask=inside, other=0.0) - tl.load(SLOPE + 1) * picked)
        tl.store(PICKED + k, picked, mask=inside)
        tl.store(V + k, v, mask=inside)


class Search:
    """The bounds of n candidates on a device, and what a step finds among them.

    n        candidates; `wanted` picks at most
    low      the lowest index wins ties, else the highest
    stale    whether a gain bounds later ones only with a margin and slack: then stamps are kept
    before, after  (n,) float64 that every gain has added to `weight` times it, or None
    cost, left     (n,) float64 whole numbers, and what picks may cost together; gains below 0 are left out then
    rate           (n,) float64 >= 1, by which gains are divided before they are compared, or None
    quotas         (class (n,) int32, more (groups,) int32, need (groups,) int32, free): see the top; or None
    until    stop as soon as `reached` plus the gains of the picks is that much
    """

    def __init__(
        self,
        n,
        wanted,
        device,
        *,
        low=True,
        weight=1.0,
        before=None,
        after=None,
        cost=None,
        left=0.0,
        rate=None,
        quotas=None,
        reached=0.0,
        until=float("inf"),
        stale=False,
        margin=0.0,
        slack=0.0,
        gain=(),
    ):
        self.n, self.device, self.low, self.before, self.after = n, device, low, before, after
        self.groups = groups(n)
        self.slots = slots = self.groups * TAKE

        def full(shape, value, dtype):
            return torch.full(shape, value, dtype=dtype, device=device)

        self.key = full((n,), float("-inf"), torch.float64)
        self.stamp = full((n,), 0, torch.int32) if stale else None
        *self.classes, free = quotas or (None, None, None, 0)
        self.limits = dict(zip(("CLASS", "MORE", "NEED"), self.classes, strict=True), COST=cost, RATE=rate)
        self.head = torch.tensor([0, int(wanted == 0), -1, 0, wanted, free], dtype=torch.int64, device=device)
        numbers = [reached, until, weight, margin, slack, *gain]
        numbers += [0.0] * (12 - len(numbers)) + [left]
        self.real = torch.tensor(numbers, dtype=torch.float64, device=device)
        self.top, self.limit = (full((m,), float("-inf"), torch.float64) for m in (slots, self.groups))
        self.at, self.limit_at = (full((m,), 0, torch.int64) for m in (slots, self.groups))
        self.log = full((max(wanted, 1), 2), 0.0, torch.float64)

    def bytes(self):
        """Of all that is held, besides what evaluates."""
        held = (self.key, self.stamp, self.log, self.before, self.after)
        return sum(t.numel() * t.element_size() for t in held if t is not None)

    def scan(self, fresh=None, *, pairs=None, level=None):
        """Find whom to evaluate. fresh (slots,) int64 is cleared.

        pairs, level  (ptr, rows, q) stored by column: the last pick raises the level, beside the search
        """
        ptr, rows, q = pairs or (None, None, None)
        launch.run(
            _scan_kernel, self.groups + (RAISERS if pairs else 0), SCAN, self.key,
            KEY=self.key, STAMP=self.stamp, HEAD=self.head, REAL=self.real, TOP=self.top, AT=self.at,
            LIMIT=self.limit, LIMIT_AT=self.limit_at, FRESH=fresh, PTR=ptr, ROWS=rows, Q=q, LEVEL=level, n=self.n,
            GROUPS=self.groups, TAKE=TAKE, RUN=RUN, LOW=self.low, BLOCK=BLOCK_SCAN, BLOCK_RAISE=BLOCK_RAISE,
            **self.limits,
        )  # fmt: skip

    def decide(self, fresh, gain, *, own=None):
        """Take what was evaluated, (slots,), or (parts, slots) to be added up; commit the best if it beats the rest.

        gain  how a gain is made: "excess", "cut" (own: (n,) float64 s_jj), "log"
        """
        launch.run(
            _decide_kernel, 1, DECIDE, self.key,
            KEY=self.key, STAMP=self.stamp, HEAD=self.head, REAL=self.real, TOP=self.top, AT=self.at,
            LIMIT=self.limit, LIMIT_AT=self.limit_at, FRESH=fresh, OWN=own, BEFORE=self.before, AFTER=self.after,
            LOG=self.log, PARTS=fresh.numel() // self.slots, GAIN=gain, GROUPS=self.groups, SLOTS=self.slots,
            LOW=self.low, **self.limits,
        )  # fmt: skip

    @property
    def pick(self):
        """(1,) int64, the row to commit, -1 where there is none."""
        return self.head[2:3]


def fresh_excess(search, pairs, level, fresh, *, weights=None):
    """Excesses of the candidates that scan() found, from stored pairs (ptr, rows, q): added to fresh (slots,) int64."""
    ptr, rows, q = pairs
    launch.run(
        _fresh_excess_kernel, search.slots * SPLITS, PAIRS, ptr,
        PTR=ptr, ROWS=rows, Q=q, LEVEL=level, W=weights, HEAD=search.head, TOP=search.top, AT=search.at, FRESH=fresh,
        SPLITS=SPLITS, BLOCK=BLOCK_PAIRS,
    )  # fmt: skip


def commit_cut(search, x, whole, picked, v, slope):
    """Add the pick to `picked`, and renew v = slope[0] (whole - slope[1] picked): (d,) float64 each, slope (2,)."""
    checks.rows("x", x, DTYPES)
    size = SHAPES[1][2]
    launch.run(
        _cut_kernel, triton.cdiv(x.shape[1], size), DECIDE, x,
        X=x, HEAD=search.head, REAL=search.real, WHOLE=whole, PICKED=picked, V=v, SLOPE=slope,
        d=x.shape[1], stride_x=x.stride(0), BLOCK=size,
    )  # fmt: skip
