"""What exchanging chosen rows would change, from stored pairs: facility location's local search.

Letters: r represented rows i, n candidates j, k chosen rows m in slots. first_i and second_i are the similarities of
row i to its two nearest chosen rows, owner_i is the slot of the nearest. With j in the place of m the objective changes
by gain_j + table_jm - loss_m:

    gain_j    = sum_i w_i max(q_ij - first_i, 0)
    table_jm  = sum over the rows i with owner_i = m of w_i max(min(q_ij, first_i) - second_i, 0)

Pairs with q_ij <= second_i add nothing, so that lists of those above hold all that matters. A pair is 8 bytes, read
once, and costs three gathered reads of 4 bytes (and 8 of a weight); one of a few dozen that lie above becomes an atomic
addition to the table, which is made small enough for L2. Sums are integers and exact, as in walk.py: neither the order
of the pairs nor that of the atomics changes a bit.
"""

import torch
import triton
import triton.language as tl

from . import checks, launch
from .walk import BLOCK, COLUMNS, CONFIG, PROGRAMS


@triton.jit(do_not_specialize=["m", "k", "splits"])
def _swap_gains_kernel(
    PTR,  # (m + 1,) int64
    ROWS,  # (nnz,) int32
    Q,  # (nnz,) int32
    FIRST,  # (r,) int32, >= SECOND
    SECOND,  # (r,) int32, >= 0
    OWNER,  # (r,) int32, below 0: nobody
    W,  # (r,) int64, or None: all ones
    GAIN,  # (m,) int64, zeroed by the launcher
    TABLE,  # (m, k) int64, zeroed by the launcher
    m,
    k,
    splits,  # programs that share a group of columns
    COLUMNS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    pid = tl.program_id(0).to(tl.int64)
    at = (pid // splits) * COLUMNS + tl.arange(0, COLUMNS)  # (COLUMNS,)
    first = tl.load(PTR + at, mask=at < m, other=0)  # 0 and 0: no pairs
    last = tl.load(PTR + at + 1, mask=at < m, other=0)
    lane = tl.arange(0, BLOCK)
    total = tl.zeros((COLUMNS, BLOCK), dtype=tl.int64)
    for start in range((pid % splits) * BLOCK, tl.max(last - first, axis=0), splits * BLOCK):
        pair = first[:, None] + start + lane[None, :]  # (COLUMNS, BLOCK)
        inside = pair < last[:, None]
        i = tl.load(ROWS + pair, mask=inside, other=0)  # row 0: any that exists
        q = tl.load(Q + pair, mask=inside, other=0)  # 0: above no level
        nearest = tl.load(FIRST + i)
        over = tl.maximum(q - nearest, 0).to(tl.int64)
        short = tl.maximum(tl.minimum(q, nearest) - tl.load(SECOND + i), 0).to(tl.int64)
        owner = tl.load(OWNER + i)
        counts = (owner >= 0) & (short > 0)
        if W is not None:
            weight = tl.load(W + i)
            over *= weight
            short *= weight
        total += over
        tl.atomic_add(TABLE + at[:, None] * k + owner, short, mask=counts, sem="relaxed")
    tl.atomic_add(GAIN + at, tl.sum(total, axis=1), mask=at < m, sem="relaxed")


def swap_gains(ptr, rows, q, first, second, owner, k, *, weights=None):
    """What candidates add by themselves, and in the place of each chosen row: (gain (m,), table (m, k)), int64 quanta.

    ptr      (m + 1,) int64, where the pairs of each of m candidates begin in rows and q, and end
    rows, q  (nnz,) int32, rows in [0, r), each at most once in a column, and similarities in quanta, at most 2^22
    first    (r,) int32, quanta; second (r,) int32 in [0, first_i]
    owner    (r,) int32 in [-1, k): whose loss the row is
    weights  (r,) int64 >= 0, sum below 2^39; None: all ones

    Sums as the head of this file says. Reads each pair once, writes 8 m (k + 1) bytes. raises ValueError on a wrong
    shape, dtype or device
    source: the sums shared by all candidates are those of FastPAM (Schubert and Rousseeuw 2021), for similarities
    """
    checks.tensor("ptr", ptr, (None,), (torch.int64,))
    if not len(ptr):
        raise ValueError("ptr must have m + 1 entries, got none")
    like, r = ("ptr", ptr), first.shape[0]
    checks.tensor("rows", rows, (None,), (torch.int32,), like)
    checks.tensor("q", q, tuple(rows.shape), (torch.int32,), like)
    for name, value in (("first", first), ("second", second), ("owner", owner)):
        checks.tensor(name, value, (r,), (torch.int32,), like)
    if weights is not None:
        checks.tensor("weights", weights, (r,), (torch.int64,), like)
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    m = len(ptr) - 1
    gain = torch.zeros(m, dtype=torch.int64, device=ptr.device)
    table = torch.zeros((m, k), dtype=torch.int64, device=ptr.device)
    if m and len(rows):
        groups = triton.cdiv(m, COLUMNS)
        splits = max(1, min(PROGRAMS // groups, triton.cdiv(r, BLOCK)))
        standing = {"FIRST": first, "SECOND": second, "OWNER": owner, "W": weights}
        how = {"m": m, "k": int(k), "splits": splits, "COLUMNS": COLUMNS, "BLOCK": BLOCK}
        pairs = {"PTR": ptr, "ROWS": rows, "Q": q}
        launch.run(
            _swap_gains_kernel,
            groups * splits,
            CONFIG,
            ptr,
            **pairs,
            **standing,
            GAIN=gain,
            TABLE=table,
            **how,
        )
    return gain, table
