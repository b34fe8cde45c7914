"""What chosen rows cover of features: sums or products, feature by feature, and their worth in whole quanta."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from smartgpu.constraints import Found, Goal
from smartgpu.objectives.base import Eager
from smartgpu.sparse import SparseRows
from smartgpu.workers import Workers

CONCAVE: dict[str, Callable[[np.ndarray], np.ndarray] | None] = {
    "sqrt": np.sqrt,
    "log": np.log1p,
    "inverse": lambda c: 1 - 1 / (1 + c),
    "sigmoid": lambda c: c / (1 + c),
    "saturated": None,  # min(c, threshold)
}
BITS = 52  # of f(V) in quanta: sums of them are exact in float64
NUMBERS = 1 << 17  # features in work in one thread
BATCH = 1 << 18  # features of a batch


def in_work(entries: int, u: int, threads: int) -> int:
    """Bytes that come and go: of a batch, or of a pass over all features in threads."""
    return 40 * min(entries, max(BATCH, threads * NUMBERS, u))


class Curve:
    """How what rows hold adds up, feature by feature, and what that is worth in whole quanta."""

    start = 0.0  # what no rows add up to
    exact = False  # worth is free of rounding: gains never rise
    linear = False  # a gain is the product of a row and a vector of numbers that only fall

    def check(self, u: int) -> None:
        """ValueError where parameters are not for u features."""

    def whole(self, table: Any) -> np.ndarray:
        """(u,) what all rows add up to."""
        out = np.zeros(table.shape[1])
        for block in _blocks(table):
            if isinstance(block, SparseRows):
                out += np.bincount(block.indices, weights=block.data, minlength=len(out))
            else:
                out += block.sum(axis=0, dtype=np.float64)
        return out

    def both(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Of two sets of rows together."""
        return a + b

    def phi(self, c: np.ndarray) -> np.ndarray:
        """phi of sums (..., u), before weights."""
        raise NotImplementedError

    def scale(self, weights: np.ndarray, table: Any) -> None:
        """Weights (u,) in quanta, before any of what follows."""
        self.weights = weights

    def fills(self, table: SparseRows) -> bool:
        """Whether any row that has a feature leaves nothing of it to others."""
        return False

    def join(self, c: np.ndarray, x: np.ndarray, cols: np.ndarray | None = None) -> np.ndarray:
        """What rows of float64 features x (..., u) make of sums c, or features cols of both."""
        return c + x

    def worth(self, c: np.ndarray, cols: np.ndarray | None = None) -> np.ndarray:
        """Whole quanta of sums (..., u), or of those of features cols alone."""
        out = self.phi(c) * (self.weights if cols is None else self.weights[cols])
        return np.rint(out, out=out)


class Smooth(Curve):
    """A function of sums."""

    def __init__(self, concave: str | Callable):
        self.concave = concave
        self.phi = concave if callable(concave) else CONCAVE[concave]

    def whole(self, table: Any) -> np.ndarray:
        out = super().whole(table)
        if callable(self.concave):
            self._probe(float(out.max(initial=0.0)) or 1.0)
        return out

    def _probe(self, top: float) -> None:
        """ValueError where a function of the user's is not concave and increasing from 0 on [0, top]."""
        at = np.linspace(0.0, top, 65)
        values = np.asarray(self.phi(at), np.float64)
        if values.shape != at.shape or not np.isfinite(values).all():
            raise ValueError("concave must map an array of sums to finite numbers, one each")
        slack, steps = 1e-9 * float(np.abs(values).max()), np.diff(values)
        if abs(values[0]) > slack or (steps < -slack).any() or (np.diff(steps) > slack).any():
            raise ValueError("concave must be a concave and increasing function that is 0 at 0")


class Capped(Curve):
    """min(c, threshold): sums are of whole quanta themselves, no more than the cap."""

    exact = True

    def __init__(self, threshold: Any):
        self.threshold = threshold

    def check(self, u: int) -> None:
        if isinstance(self.threshold, np.ndarray) and len(self.threshold) != u:
            raise ValueError(
                f"threshold must be one number, or one per feature, {u}, got {len(self.threshold)}"
            )

    def phi(self, c: np.ndarray) -> np.ndarray:
        return np.minimum(c, self.threshold)

    def scale(self, weights: np.ndarray, table: Any) -> None:
        self.weights, self.cap = weights, np.rint(weights * self.threshold)

    def join(self, c: np.ndarray, x: np.ndarray, cols: np.ndarray | None = None) -> np.ndarray:
        weights, cap = (self.weights, self.cap) if cols is None else (self.weights[cols], self.cap[cols])
        out = np.multiply(x, weights)
        np.rint(out, out=out)
        out += c
        return np.minimum(out, cap, out=out)

    def fills(self, table: SparseRows) -> bool:
        """Whether every number of the table reaches its cap alone."""
        at = table.indices
        return bool((np.rint(table.data * self.weights[at]) >= self.cap[at]).all())

    def worth(self, c: np.ndarray, cols: np.ndarray | None = None) -> np.ndarray:
        return c.copy() if cols is None and c.ndim == 1 else c


class Products(Curve):
    """1 - c, c the product of 1 - p."""

    start = 1.0

    def whole(self, table: Any) -> np.ndarray:
        out = np.ones(table.shape[1])
        for block in _blocks(table):
            if isinstance(block, SparseRows):
                np.multiply.at(out, block.indices, 1.0 - block.data.astype(np.float64))
            else:
                out *= np.multiply.reduce(1.0 - block.astype(np.float64), axis=0)
        return out

    def both(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return a * b

    def scale(self, weights: np.ndarray, table: Any) -> None:
        self.exact = all(_binary(block) for block in _blocks(table))
        self.linear = not self.exact
        self.weights = np.rint(weights) if self.exact else weights

    def join(self, c: np.ndarray, x: np.ndarray, cols: np.ndarray | None = None) -> np.ndarray:
        return c * (1.0 - x)

    def phi(self, c: np.ndarray) -> np.ndarray:
        return 1.0 - c


def _blocks(table: Any) -> Iterator[Any]:
    step = max(1, NUMBERS // table.shape[1])
    if isinstance(table, SparseRows):
        step = max(1, NUMBERS * len(table) // max(len(table.data), 1))
    return (table[i : i + step] for i in range(0, len(table), step))


def _binary(rows: Any) -> bool:
    """Whether they hold 0 and 1 alone."""
    data = rows.data if isinstance(rows, SparseRows) else rows
    return bool(((data == 0) | (data == 1)).all())


class CoverageState(Eager):
    """What the chosen rows add up to, feature by feature, and its worth in quanta; `quantum` is their real value.

    Worths are whole numbers of quanta, f(V) about 2^52 of them: every sum is exact.
    """

    slack = 0.0
    reach, active = 256, 64

    def __init__(
        self, table: Any, curve: Curve, weights: np.ndarray | None, workers: Workers, outside: Any = None
    ):
        self.table, self.curve, self.workers = table, curve, workers
        self.n, self.u = table.shape
        self.sparse = isinstance(table, SparseRows)
        weights = np.ones(self.u) if weights is None else weights
        with np.errstate(over="ignore", invalid="ignore"):
            every = curve.whole(table)
            if outside is not None:
                every = curve.both(every, curve.whole(outside))
            self.whole = top = float((weights * curve.phi(every)).sum())
        if not np.isfinite(top):
            raise ValueError("features add up to more than float64 holds: scale them down")
        self.quantum = float(np.ldexp(1.0, int(np.frexp(top)[1]) - BITS)) if top > 0 else 1.0
        curve.scale(weights / self.quantum, table)
        # Two evaluations of a gain: half a quantum for every worth, and phi itself to a few parts in 2^52
        # of f. Products with what falls, added up in one order, fall too: every operation rounds monotonically.
        self.margin = 0.0 if curve.exact or curve.linear else self.quantum * (2 * self._most() + 64)
        self.sums = np.full(self.u, curve.start)
        self.now = curve.worth(self.sums)  # (u,) quanta
        self.held = 0.0  # their sum
        if outside is not None:
            self._join(outside)
        entries = max(len(table.data), 1) if self.sparse else self.n * self.u
        self.max_batch = min(self.n, max(1, BATCH * self.n // entries))
        self.narrow = None  # (n, u) float32: products of them bound gains
        if curve.linear and not self.sparse:
            self.narrow = table.astype(np.float32, copy=False)
            self.reach, self.max_batch = 4 * self.reach, min(self.n, 16 * self.max_batch)

    def _most(self) -> int:
        """Features that a row has at most."""
        return int(np.diff(self.table.indptr).max(initial=0)) if self.sparse else self.u

    def _join(self, rows: Any) -> None:
        """Add rows, one by one in their order."""
        for i in range(len(rows)):
            row = rows[i : i + 1]
            if isinstance(row, SparseRows):  # what it does not hold stays as it is
                at = row.indices
                self.sums[at] = after = self.curve.join(self.sums[at], row.data.astype(np.float64), at)
                worth = self.curve.worth(after, at)
                self.held += (worth - self.now[at]).sum()
                self.now[at] = worth
            else:
                self.sums = self.curve.join(self.sums, row[0].astype(np.float64))
        if not isinstance(rows, SparseRows):
            self.now = self.curve.worth(self.sums)
            self.held = self.now.sum()

    def _fresh(self, rows: Any) -> np.ndarray:
        """(m,) quanta that each of these rows would add."""
        if not isinstance(rows, SparseRows):
            rows = rows.astype(np.float64, copy=False)
            if self.curve.linear:  # one chain with u ascending, as bincount's
                terms = rows * (self.curve.weights * self.sums)
                return np.cumsum(terms, axis=1, out=terms)[:, -1]
            return self.curve.worth(self.curve.join(self.sums, rows)).sum(axis=1) - self.held
        at, data = rows.indices, rows.data.astype(np.float64, copy=False)
        if self.curve.linear:
            terms = data * (self.curve.weights[at] * self.sums[at])
        else:
            terms = self.curve.worth(self.curve.join(self.sums[at], data, at), at) - self.now[at]
        return np.bincount(rows.owners(), weights=terms, minlength=len(rows))

    def gains(self) -> np.ndarray:
        return np.concatenate(self.workers.run(self._fresh, _blocks(self.table))) * self.quantum

    def screen(self, cols: np.ndarray) -> np.ndarray | None:
        """Bounds from products in float32: of terms >= 0, so a rounding adds 2^-24 of the sum at most."""
        if self.narrow is None:
            return None
        left = self.curve.weights * self.sums
        top = float(left.max())
        if top == 0:
            return np.zeros(len(cols))
        fall = self.narrow.take(cols, axis=0) @ (left / top).astype(np.float32)
        return (fall * (1 + (self.u + 8) * 2.0**-23) + self.u * 2.0**-120) * top * self.quantum

    def evaluate(self, cols: np.ndarray) -> CoverageBatch:
        return CoverageBatch(self, self.table[cols])

    def add(self, cols: np.ndarray) -> None:
        for i in range(0, len(cols), self.max_batch):
            self._join(self.table[cols[i : i + self.max_batch]])

    def resident(self, goal: Goal) -> Iterator[Found] | None:
        """The picks at once, where any row that has a feature covers it whole: set cover."""
        alone = goal.counts and goal.weight == 1.0 and goal.before is None and goal.after is None
        return iter((self._cover(goal),)) if alone and self.sparse and self.curve.fills(self.table) else None

    def _cover(self, goal: Goal) -> Found:
        """All gains kept up to date: a feature leaves those of the rows that have it once, when it is covered."""
        table, cap = self.table, self.curve.cap
        owners = table.indices.astype(np.int64) * self.n + table.owners()
        owners.sort()  # the rows of one feature after those of the other
        owners %= self.n
        starts = [0, *np.cumsum(np.bincount(table.indices, minlength=self.u)).tolist()]
        left = cap - self.sums
        gains = self.gains() / self.quantum
        gains[~goal.open] = -1.0  # and they fall no higher
        indices, found, reached, evaluations = [], [], goal.reached, self.n
        for j in _best_first(gains, goal.low):
            if len(indices) == goal.k or reached >= goal.until:
                break
            indices.append(j)
            found.append(float(gains[j]) * self.quantum)
            reached += found[-1]
            self.held += gains[j]
            gains[j] = -1.0
            at = table.indices[table.indptr[j] : table.indptr[j + 1]]
            new = at[left[at] > 0]
            if len(new):
                rows = [owners[starts[u] : starts[u + 1]] for u in new.tolist()]
                falls = np.repeat(left[new], [len(part) for part in rows])
                np.subtract.at(gains, np.concatenate(rows), falls)
                left[new] = 0.0
                evaluations += len(falls)
        self.sums = cap - left
        self.now = self.curve.worth(self.sums)
        return Found(np.array(indices, np.int64), np.array(found), evaluations)

    def value(self) -> float:
        return float(self.held * self.quantum)

    def total(self) -> float:
        return self.whole


def _best_first(gains: np.ndarray, low: bool) -> Iterator[int]:
    """The best of gains that fall meanwhile, ties by index: those of one gain in one walk. Taken ones are < 0."""
    while (top := gains.max()) >= 0:
        for j in np.flatnonzero(gains == top)[:: 1 if low else -1].tolist():
            if gains[j] == top:
                yield j


class CoverageBatch:
    def __init__(self, state: CoverageState, rows: Any):
        self.state = state
        self.rows = rows if isinstance(rows, SparseRows) else rows.astype(np.float64, copy=False)
        self.gains = state._fresh(self.rows) * state.quantum

    def narrow(self, positions: np.ndarray) -> None:
        self.rows, self.gains = self.rows[positions], self.gains[positions]

    def accept(self, b: int) -> None:
        self.state._join(self.rows[b : b + 1])
        self.gains = self.state._fresh(self.rows) * self.state.quantum
