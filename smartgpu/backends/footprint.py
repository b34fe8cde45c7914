"""What a selection on the CPU allocates, in bytes, from shapes alone: the numpy backend and float64 algebra.

These are upper bounds: a budget is checked against them before any work, so nothing may take more than they say. What
stays is counted apart from what comes and goes (`scratch`), of which only the largest counts.
"""

from __future__ import annotations

from smartgpu.backends import blas, linear, survivors
from smartgpu.backends.tiles import ROWS
from smartgpu.similarity import block_rows

TILE = ROWS * (ROWS + 32)  # entries of a tile in the widest padding
MIN_BATCH, MAX_BATCH = 32, 256  # columns kept at once
SMALL = 1 << 20  # lists, threads, modules imported on the way
WALK = 108  # bytes a pair in work: a tile taken apart, or a task of pairs summed
TASKS = 44 * survivors.TASK + 64 * TILE  # of one thread at most


def features(n: int, d: int) -> int:
    """Prepared features, float32."""
    return 4 * n * d


def columns(r: int, m: int) -> int:
    """A batch of m kept columns and the partial sums of its excesses."""
    return 4 * (r + 96) * (blas.round_up(max(m, 48), 48) + 32) + 16 * m * (r // 256 + 1)


def per_row(count: int) -> int:
    """Levels, weights, gains, bounds, and what is made of them on the way: eight 8-byte numbers a row."""
    return 64 * count


def tiles(d: int, threads: int, *, squared: bool = False, weighted: bool = False) -> int:
    """Scratch of all threads for tiles of similarity: rows and panel, the product, what is reduced."""
    product = (2 + squared) * 4 * TILE + weighted * 16 * ROWS * ROWS
    return threads * (product + 5632 * d)


def layout_probe(d: int) -> int:
    """What finding the layout of products takes, once for each d."""
    return 10_500 * d + (3 << 20)


def preparing(d: int, threads: int) -> int:
    """Float64 blocks of rows while features are made."""
    return 14 * threads * block_rows(d) * d


def widened(d: int, threads: int, copies: int = 2) -> int:
    """Float64 blocks of rows, as LinearFeatures works on them."""
    return threads * linear.block_rows(d) * d * (4 + 8 * copies)


def second_moment(d: int, threads: int) -> int:
    """Matrices (d, d) in float64, and the blocks that they are made of."""
    rows = max(linear.block_rows(d), 512)
    return 8 * d * d * (threads + 2) + 16 * threads * rows * d


def sweep(n: int, threads: int) -> int:
    """Sums over all candidates, one set for each thread."""
    return 8 * n * (threads + 1)


def backend(n: int, r: int, d: int, threads: int, *, same: bool, squared: bool, batch: int) -> int:
    """All that the numpy backend holds besides survivors, scratch included; d is 0 for a precomputed matrix."""
    sets = n + (not same) * r
    return (
        features(sets, d)
        + 4 * sets * squared
        + columns(r, batch)
        + per_row(r)
        + scratch(n, d, threads, squared=squared)
    )


def scratch(n: int, d: int, threads: int, *, squared: bool = False, weighted: bool = True) -> int:
    """The most that comes and goes at one time in the numpy backend."""
    dense = tiles(d, threads, squared=squared, weighted=weighted) + sweep(n, threads)
    return max(dense, preparing(d, threads), layout_probe(d) if d else 0)


def stored(pairs: float, n: int, r: int, threads: int) -> float:
    """Survivors, while they are built and when they are walked."""
    base, pair = _survivors(n, r)
    return base + pair * pairs + min(threads * TASKS, WALK * pairs)


def storable(room: float, n: int, r: int, threads: int) -> float:
    """How many survivors can be stored in so many bytes: the inverse of stored()."""
    base, pair = _survivors(n, r)
    return max((room - base - threads * TASKS) / pair, (room - base) / (pair + WALK), 0.0)


def _survivors(n: int, r: int) -> tuple[int, float]:
    """(bytes whatever their number, bytes a pair) of survivors."""
    stripes, rows = n // ROWS + 1, r // ROWS + 1
    chunks = stripes * (stripes // 4 + 1) if n == r else 2 * rows  # where each column of a tile ends
    stripe = 28 * min(1.0, 1.5 * ROWS / n)  # one stripe of candidates while it goes to its place
    return 2400 * chunks + 16 * n, survivors.pair_bytes(r) + stripe
