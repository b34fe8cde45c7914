"""Facility location of a small pool: all similarities at once, and every gain kept up to date after every pick."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from smartgpu.backends.tiles import BASE, ROWS
from smartgpu.constraints import Found, Goal

if TYPE_CHECKING:
    from smartgpu.backends.numpy import NumpyBackend

MOST = 511  # rows of pools that are picked from together: sums over all of them fit 32 bits
FEW = 24  # rows a pool, from where on one sum a pool is faster than numpy's sums of segments
CLOSED = -(1 << 62)  # below every excess, and still when the losses of all picks are taken from it


def quanta(backend: NumpyBackend) -> np.ndarray:
    """q (r, n) int32."""
    out = np.empty((backend.r, backend.n), np.int32)
    _fill(out, backend, 0, backend.r, backend.n)
    return out


def _fill(out: np.ndarray, backend: NumpyBackend, start: int, r: int, n: int) -> None:
    """q of r represented rows and n candidates, both from row `start` on.

    Where rows are candidates a tile above the diagonal serves both its sides, as in a sweep.
    """
    source, rows = backend.source, backend.blocks(r)
    for at, stripe in enumerate(backend.blocks(n)):
        m = stripe.stop - stripe.start
        panel = source.panel(slice(start + stripe.start, start + stripe.stop))
        for i in rows[at:] if source.symmetric else rows:
            raw = backend.raw_tile(slice(start + i.start, start + i.stop), panel, m)
            np.subtract(raw, BASE, out=out[i, stripe])
            if source.symmetric and i != stripe:
                out[stripe, i] = out[i, stripe].T
    backend.pairs += n * (n + 1) // 2 if source.symmetric else r * n


def pick(backend: NumpyBackend, level: np.ndarray, scale: float, goal: Goal) -> Found:
    """The picks of a goal; raises the level by them. Integers as everywhere, so what lazy() picks, in fewer steps."""
    q = quanta(backend)
    floor = backend.level_values(level)
    excess = _sums(np.maximum(q, floor[:, None])).astype(np.int64) - int(floor.sum(dtype=np.int64))
    excess[~goal.open] = CLOSED
    columns = q if backend.source.symmetric else np.ascontiguousarray(q.T)
    indices, gains, reached = [], [], goal.reached
    plain = goal.weight == 1.0 and goal.before is None and goal.after is None
    while len(indices) < goal.k and reached < goal.until:
        values = excess if plain else _gains(excess, scale, goal)
        j = int(values.argmax()) if goal.low else backend.n - 1 - int(values[::-1].argmax())
        if excess[j] < 0:
            break  # no row is open
        indices.append(j)
        gains.append(float(excess[j] * scale) if plain else float(values[j]))
        reached += gains[-1]
        excess[j] = CLOSED
        changed = (columns[j] > floor).nonzero()[0]
        if not len(changed):  # a copy of what was picked
            continue
        old, new = floor.take(changed), columns[j].take(changed)
        lost = q.take(changed, axis=0)
        np.minimum(lost, new[:, None], out=lost)
        np.maximum(lost, old[:, None], out=lost)
        excess -= _sums(lost)
        excess += int(old.sum(dtype=np.int64))
        floor[changed] = new
    level[:] = backend.level_from(floor)
    return Found(np.array(indices, np.int64), np.array(gains, np.float64), backend.n)


def pick_together(backend: NumpyBackend, parts: list[tuple[int, int, int]], low: bool) -> list[Found]:
    """The first picks in each of some pools, (first row, rows, picks) of the backend: step by step in all at once.

    At most MOST rows each. What pick() gives for each alone; a step costs little more than one of its steps.
    """
    order = sorted(range(len(parts)), key=lambda p: -parts[p][2])  # pools still to be picked from come first
    sizes, counts = ([parts[p][field] for p in order] for field in (1, 2))
    width, active = max(sizes), len(parts)
    q = np.zeros((active, width, width), np.int32)
    excess = np.full((active, width), CLOSED)
    for a, (p, n) in enumerate(zip(order, sizes, strict=True)):
        _fill(q[a, :n, :n], backend, parts[p][0], n, n)
        np.maximum(q[a], 0, out=q[a])  # no level is below 0
        excess[a, :n] = np.add.reduce(q[a, :n, :n], axis=0, dtype=np.int32)
    rows, flat = q.reshape(-1, width), excess.reshape(-1)
    floor = np.zeros(len(rows), np.int32)
    indices, gains = (np.zeros((active, counts[0]), np.int64) for _ in range(2))
    for t in range(counts[0]):
        while counts[active - 1] <= t:
            active -= 1
        now = excess[:active]
        j = now.argmax(axis=1) if low else width - 1 - now[:, ::-1].argmax(axis=1)
        at = np.arange(active) * width + j
        indices[:active, t], gains[:active, t] = j, flat.take(at)
        flat[at] = CLOSED
        columns = rows.take(at, axis=0).reshape(-1)
        changed = (columns > floor[: active * width]).nonzero()[0]
        if not len(changed):
            continue
        old, new = floor.take(changed), columns.take(changed)
        floor[changed] = new
        lost = rows.take(changed, axis=0)
        np.minimum(lost, new[:, None], out=lost)
        np.maximum(lost, old[:, None], out=lost)
        lost -= old[:, None]
        _subtract(now, lost, changed // width)
    found: list[Any] = [None] * len(parts)
    for a, (p, k) in enumerate(zip(order, counts, strict=True)):
        found[p] = Found(indices[a, :k].copy(), gains[a, :k] * backend.quantum, sizes[a])
    return found


def _subtract(excess: np.ndarray, lost: np.ndarray, pool: np.ndarray) -> None:
    """excess[p] -= the sum of the rows of `lost` that are of pool p; pool (m,) ascends."""
    starts = np.flatnonzero(np.diff(pool, prepend=-1))
    if len(pool) < FEW * len(starts):
        excess[pool[starts]] -= np.add.reduceat(lost, starts, axis=0)
        return
    for start, stop in zip(starts.tolist(), [*starts[1:].tolist(), len(pool)], strict=True):
        excess[pool[start]] -= np.add.reduce(lost[start:stop], axis=0)


def _gains(excess: np.ndarray, scale: float, goal: Goal) -> np.ndarray:
    """before_j + weight g_j + after_j, in this order; -inf for closed candidates."""
    out = goal.weight * (excess * scale)
    if goal.before is not None:
        out = goal.before + out
    if goal.after is not None:
        out += goal.after
    out[excess < 0] = -np.inf
    return out


def _sums(values: np.ndarray) -> np.ndarray:
    """Sums over the rows, (n,) int32 or int64; those of ROWS integers up to 2^22 fit 32 bits."""
    if len(values) <= ROWS:
        return np.add.reduce(values, axis=0, dtype=np.int32)
    blocks = range(0, len(values), ROWS)
    parts = [np.add.reduce(values[i : i + ROWS], axis=0, dtype=np.int32) for i in blocks]
    return np.add.reduce(parts, axis=0, dtype=np.int64)
