"""Log-determinant: the volume that the chosen rows span (greedy MAP of a determinantal point process)."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from smartgpu.backends.linear import factor_rows
from smartgpu.objectives import outside
from smartgpu.objectives.base import Eager, Ground, Objective
from smartgpu.objectives.cost import Cost, Part, Shape
from smartgpu.objectives.graph_cut import need_square, nonnegative
from smartgpu.similarity import Matrix, Similarity

EPS = np.finfo(np.float64).eps
DENSE = 20_000  # rows up to which an n x n matrix in float64 is made
DELAY = 64  # picks that wait before Q takes them together
GRID = 2.0**40  # gains are multiples of 2^-40, coarser than their rounding: what ties in theory ties here
ROWS = 1024  # rows brought up to date together
FIRST = 64  # columns of the Cholesky factor at first
SCREENED = 0.2  # operations a candidate, feature and pick, on average: what time estimates assume
PICKS = 128  # picks that they are brought up to date with together
NUMBERS = 1 << 20  # entries of the Cholesky factor that are read together


@dataclass(frozen=True, eq=False)
class LogDet(Objective):
    """f(S) = log det(s_SS + lam I); the gain of j is the log of its residual, the Schur complement of s_SS + lam I.

    lam >= 0, added to the diagonal; the similarity must be positive semi-definite. Submodular, monotone for lam >= 1.
    With lam = 0 no more rows can be chosen than are linearly independent: a ValueError says when that is reached.
    """

    lam: float = 1.0
    name: ClassVar[str] = "log_det"

    def __post_init__(self) -> None:
        object.__setattr__(self, "lam", nonnegative("lam", self.lam))

    def check(self, x: np.ndarray | Matrix, kind: Similarity) -> None:
        if not kind.positive_semidefinite:
            raise ValueError(f"log_det needs a positive semi-definite similarity: {kind.name!r} is not")
        if isinstance(x, Matrix):
            need_square(x, "log_det")
            if x.asymmetry > 1e-6 * x.unit:
                raise ValueError(
                    f"log_det needs a symmetric similarity: X differs from its transpose by {x.asymmetry:.3g}"
                )

    def need_monotone(self, x: np.ndarray | Matrix, kind: Similarity) -> None:
        if self.lam < 1:
            raise ValueError(
                f"coverage needs a monotone objective: log_det is one for lam >= 1, got {self.lam}"
            )
        n = x.shape[1] if isinstance(x, Matrix) else len(x)
        if kind.affine is None and n > DENSE:
            raise ValueError(
                f"coverage of log_det on {kind.name} takes an n x n matrix: n <= {DENSE}, got {n}"
            )

    def cost(self, shape: Shape) -> Cost:
        """For general kinds as if every row were looked at: a factor of n rows and k columns."""
        n, k, d = shape.n, min(shape.k, shape.n), shape.d
        sizes = shape.footprint
        parts = [*shape.features, Part("residuals, stamps, copies", sizes.residuals(n))]
        linear = shape.kind.affine is not None
        if linear and self.lam > 0:
            ring = max(d + 1, 2 * DELAY)
            parts.append(Part("inverse and latest falls", sizes.inverse(ring)))
            work = k * (2.0 * d * (ROWS + d) + SCREENED * n * d)
            return Cost(tuple(parts), sizes.falls(n, ring, DELAY), work=work)
        last = before = FIRST
        while last < k:
            last, before = min(2 * last, k), last
        held = sizes.factor(n, last + before * (last > FIRST))
        parts.append(Part("factor of the similarity, as it grows", held))
        scratch = sizes.factoring(n, k, PICKS, shape.entries)
        if shape.coverage:
            scratch = max(scratch, sizes.square(n))
        return Cost(
            tuple(parts), scratch, work=1.0 * k * k * ROWS + k * ROWS * d + SCREENED * n * k * (d + k)
        )

    def bind(self, ground: Ground, start: np.ndarray | None = None) -> LogDetState:
        """start: the matrix that residuals come from before any pick, of linear kinds; see targets_log_det.py."""
        linear = ground.kind.affine is not None and self.lam >= 1e-8 * _mean_square(ground)
        if ground.engine.remote:
            from smartgpu.objectives.log_det_remote import RemoteCholeskyLogDet, RemoteWoodburyLogDet

            woodbury, cholesky = RemoteWoodburyLogDet, RemoteCholeskyLogDet
        else:
            woodbury, cholesky = WoodburyLogDet, CholeskyLogDet
        if linear:
            return woodbury(self, ground, start)
        if start is not None or ground.outside is not None:
            outside.need_linear("log_det with rows from elsewhere", ground.kind)
            raise ValueError(f"log_det with rows from elsewhere needs a larger lam, got {self.lam}")
        return cholesky(self, ground)


def _mean_square(ground: Ground) -> float:
    a, b = ground.kind.affine
    return ground.geometry().unit * (a * float(ground.features()[0].own().mean()) + b)


class LogDetState(Eager):
    """What both forms share: residuals are kept per distinct row, so that equal rows tie exactly.

    residual[u] is that of distinct row u after stamp[u] picks; it only falls, so a stale one is a bound.
    """

    slack = 0.0
    reach, active = 8192, 384
    longest = 0.0  # residuals without any row, at most; 0 where the first ones are these
    noise = 1e-12  # relative error of a similarity: with lam = 0 a residual below it is no residual

    def __init__(self, spec: LogDet, ground: Ground):
        self.lam, self.n, self.workers = spec.lam, ground.n, ground.workers
        self.first, self.inverse = ground.distinct()
        self.stamp = np.zeros(len(self.first), np.int64)
        self.picks: list[int] = []  # numbers of distinct rows
        self.log_value = 0.0
        self.residual = self._first_residuals()
        self.top = float(self.residual.max(initial=self.longest))
        self.margin = 1e-9 if self.lam == 0 else 2 / GRID + 64 * EPS * (1 + self.top / self.lam)
        self.max_batch = min(self.n, 16384)

    def _first_residuals(self) -> np.ndarray: ...
    def _fresh(self, rows: np.ndarray) -> np.ndarray: ...  # residuals of stale distinct rows
    def _commit(
        self, row: int, near: np.ndarray
    ) -> None: ...  # add a pick; bring the fresh rows `near` up to date

    def refresh(self, cols: np.ndarray) -> np.ndarray:
        """Gains of cols, evaluated now; a distinct row is evaluated once per pick, whichever copies ask."""
        rows = self.inverse[cols]
        stale = self._distinct(rows[self.stamp[rows] < len(self.picks)])
        if len(stale):
            self.residual[stale] = self._fresh(stale)
            self.stamp[stale] = len(self.picks)
        return self._log(rows)

    def _distinct(self, rows: np.ndarray) -> np.ndarray:
        """rows without repeats: only where there are copies can there be any."""
        return rows if len(self.first) == self.n else np.unique(rows)

    def _log(self, rows: np.ndarray) -> np.ndarray:
        residual = self.residual[rows]
        gains = np.log(residual, out=np.full(len(rows), -np.inf), where=residual > self._least())
        return np.rint(gains * GRID) / GRID

    def _least(self) -> float:
        return self.noise * self.top if self.lam == 0 else 0.0

    def gains(self) -> np.ndarray:
        return np.concatenate(
            [self.refresh(np.arange(i, min(i + 2048, self.n))) for i in range(0, self.n, 2048)]
            or [np.empty(0)]
        )

    def evaluate(self, cols: np.ndarray) -> LogDetBatch:
        return LogDetBatch(self, cols)

    def add(self, cols: np.ndarray) -> None:
        for j in cols:
            self.accept(int(j), np.empty(0, np.int64))

    def accept(self, j: int, near: np.ndarray) -> None:
        """Commit candidate j, and bring the fresh distinct rows `near` up to date."""
        gain = self.refresh(np.array([j]))[0]
        row = int(self.inverse[j])
        if gain == -np.inf:
            equal = f" (row {j} equals row {self.first[row]}, already chosen)" if row in self.picks else ""
            raise ValueError(
                f"log_det with lam = 0 is -infinity beyond {len(self.picks)} picks: every remaining row is a "
                f"copy or a combination of the chosen ones{equal}; use lam > 0, or k <= {len(self.picks)}"
            )
        self._commit(row, near)
        self.picks.append(row)
        self.stamp[near] = len(self.picks)
        self.log_value += float(gain)

    def value(self) -> float:
        return self.log_value

    def total(self) -> float: ...


class WoodburyLogDet(LogDetState):
    """s = y_i . y_j, y = sqrt(unit) [sqrt(a) x, sqrt(b)]: residual_j = lam + y_j' Q y_j, Q = lam (lam I + Y_S' Y_S)^-1.

    After a pick p: v = Q y_p, c = residual_p, Q -= v v' / c, every y_j' Q y_j falls by (y_j . v)^2 / c. O(d^2) memory.
    """

    def __init__(self, spec: LogDet, ground: Ground, start: np.ndarray | None = None):
        geometry = ground.geometry()
        self.a, self.b = ground.kind.affine
        self.unit, self.wide = geometry.unit, ground.wide()
        self.d = geometry.x.shape[1] + (self.b > 0)
        self.q, base = np.eye(self.d) if start is None else start, 0.0
        if ground.outside is not None:  # as if these rows had been picked
            among = np.eye(self.d) + outside.gram(ground, ground.outside) @ self.q / spec.lam
            self.q = self.q @ np.linalg.inv(among)
            self.q = (self.q + self.q.T) / 2
            base = float(len(ground.outside) * np.log(spec.lam) + np.linalg.slogdet(among)[1])
        self.start = None if start is None and ground.outside is None else self.q.copy()
        self.falls = np.empty((max(self.d, 2 * DELAY), self.d))  # v / sqrt(c) of the latest picks, a ring
        self.in_q = 0  # picks that Q holds already
        self.upper: np.ndarray | None = None  # bounds on the residuals, in float32, with stamps of their own
        self._held: tuple[np.ndarray, np.ndarray] | None = None  # the last batch's rows and features
        super().__init__(spec, ground)
        self.base = self.log_value = base  # of the rows from elsewhere

    def _features(self, rows: np.ndarray) -> np.ndarray:
        x = self.wide.rows(self.first[rows])
        x *= np.sqrt(self.unit * self.a)
        return (
            x
            if self.b == 0
            else np.concatenate([x, np.full((len(x), 1), np.sqrt(self.unit * self.b))], axis=1)
        )

    def _near(self, rows: np.ndarray) -> np.ndarray:
        if self._held is None or not np.array_equal(self._held[0], rows):
            self._held = rows, self._features(rows)
        return self._held[1]

    def _first_residuals(self) -> np.ndarray:
        out = np.empty(len(self.first))
        for i in range(0, len(out), 512):
            y = self._features(np.arange(i, min(i + 512, len(out))))
            if self.start is not None:
                self.longest = max(self.longest, self.lam + float(np.square(y).sum(axis=1).max()))
                out[i : i + 512] = np.maximum(self.lam + np.einsum("ij,ij->i", y @ self.start, y), self.lam)
            else:
                out[i : i + 512] = self.lam + np.square(y, out=y).sum(axis=1)
        return out

    def _fresh(self, rows: np.ndarray) -> np.ndarray:
        """From the falls since each row was fresh, 2 d operations each; from Q where those would cost more."""
        t = len(self.picks)
        out, behind = np.empty(len(rows)), t - self.stamp[rows]
        y = self._near(rows) if len(rows) <= ROWS else None  # a batch that picks are taken from, but no sweep
        if (behind > len(self.falls) // 2).any():
            self._settle(t)
        order = np.argsort(behind, kind="stable")  # rows that are behind alike, together

        def work(part: np.ndarray) -> None:
            most = int(behind[part].max())
            mine = self._features(rows[part]) if y is None else y[part]
            if most > len(self.falls) // 2:
                out[part] = self.lam + np.einsum("ij,ij->i", mine @ self.q, mine)
                return
            drops = np.square(mine @ self.falls[np.arange(t - most, t) % len(self.falls)].T)
            drops[np.arange(most) < (most - behind[part])[:, None]] = 0.0
            out[part] = self.residual[rows[part]] - drops.sum(axis=1)

        self.workers.run(work, [order[i : i + 128] for i in range(0, len(rows), 128)])
        return np.maximum(out, self.lam)

    def _commit(self, row: int, near: np.ndarray) -> None:
        y, t = self._features(np.array([row]))[0], len(self.picks)
        late = self.falls[np.arange(self.in_q, t) % len(self.falls)]
        fall = (self.q @ y - (late @ y) @ late) / np.sqrt(self.residual[row])
        if len(near):
            self.residual[near] = np.maximum(self.residual[near] - self._fall(near, fall), self.lam)
        self.falls[t % len(self.falls)] = fall
        if t + 1 - self.in_q >= DELAY:
            self._settle(t + 1)

    def _fall(self, near: np.ndarray, fall: np.ndarray) -> np.ndarray:
        """How far the residuals of a batch fall by one pick."""
        return np.square(self._near(near) @ fall)

    def _settle(self, t: int) -> None:
        """Bring Q up to date: many picks by one product."""
        late = self.falls[np.arange(self.in_q, t) % len(self.falls)]
        self.q -= late.T @ late
        self.in_q = t

    def screen(self, cols: np.ndarray) -> np.ndarray:
        """Bounds on gains in float32: every fall that a row has missed, less the rounding that its product may hold."""
        t = len(self.picks)
        if self.upper is None:
            self.upper, self.upper_stamp = self.residual.copy(), self.stamp.copy()
            self.narrow_falls = np.zeros(self.falls.shape, np.float32)
            self.narrow_t = 0
        for at in range(max(self.narrow_t, t - len(self.falls)), t):
            self.narrow_falls[at % len(self.falls)] = self.falls[at % len(self.falls)]
        self.narrow_t = t
        rows = self._distinct(self.inverse[cols])
        newer = self.stamp[rows] > self.upper_stamp[rows]
        self.upper[rows[newer]], self.upper_stamp[rows[newer]] = (
            self.residual[rows[newer]],
            self.stamp[rows[newer]],
        )
        behind = t - self.upper_stamp[rows]
        rows, behind = rows[behind > 0], behind[behind > 0]
        order = np.argsort(behind, kind="stable")
        parts = [rows[order[i : i + 512]] for i in range(0, len(rows), 512)]
        self.workers.run(functools.partial(self._screen, t), parts)
        gains = np.log(np.maximum(self.upper[self.inverse[cols]], self.lam))
        return gains + self.margin

    def _narrow_features(self, rows: np.ndarray) -> np.ndarray:
        """(m, d) float32"""
        y, scale = self.wide.x[self.first[rows]], np.float32(np.sqrt(self.unit * self.a))
        if scale != 1:
            y = y * scale
        if self.b > 0:
            y = np.concatenate([y, np.full((len(y), 1), np.sqrt(self.unit * self.b), np.float32)], axis=1)
        return y

    def _screen(self, t: int, rows: np.ndarray) -> None:
        behind = np.minimum(t - self.upper_stamp[rows], len(self.falls))
        most = int(behind.max())
        falls = self.narrow_falls[np.arange(t - most, t) % len(self.falls)]
        along = self._narrow_features(rows) @ falls.T
        np.abs(along, out=along)
        sizes = np.sqrt(np.einsum("ij,ij->i", falls, falls) * np.float32(self.top))  # |fall| |y| at most
        along -= sizes * np.float32((self.d + 8) * 2.0**-22)
        np.maximum(along, 0, out=along)
        if behind.min() < most:
            along[np.arange(most) < (most - behind)[:, None]] = 0
        drop = np.einsum("ij,ij->i", along, along) * (1.0 - (most + 8) * 2.0**-22)
        self.upper[rows] = np.maximum(self.upper[rows] - drop, self.lam)
        self.upper_stamp[rows] = t

    def total(self) -> float:
        gram = np.zeros((self.d, self.d))
        for i in range(0, self.n, 512):
            y = self._features(self.inverse[i : i + 512])
            gram += y.T @ y
        return self._whole(gram)

    def _whole(self, gram: np.ndarray) -> float:
        """f(V) of Y'Y over all rows."""
        inside = self.lam * np.eye(self.d) + (gram if self.start is None else self.start @ gram)
        return self.base + float(np.linalg.slogdet(inside)[1] + (self.n - self.d) * np.log(self.lam))


class CholeskyLogDet(LogDetState):
    """Any positive semi-definite kind: rows of the Cholesky factor, brought up to date only for rows evaluated.

    c_jt = (s_{p_t j} - sum_{r<t} c_{p_t r} c_jr) / c_{p_t t}; residual_j = s_jj + lam - sum_t c_jt^2. O(k) per row.
    """

    def __init__(self, spec: LogDet, ground: Ground):
        self.kind, self.memory = ground.kind.name, ground.memory
        self.exact = None if isinstance(ground.x, Matrix) else ground.wide()
        self.backend = ground.backend() if self.exact is None else None
        if self.exact is None:
            self.noise = 2e-6  # a matrix is quantised to multiples of 2^-22
        super().__init__(spec, ground)
        self.picks_at_most = ground.picks or self.n
        self.factor = np.zeros((len(self.first), FIRST))
        self.step = factor_rows(0 if isinstance(ground.x, Matrix) else ground.x.shape[1])
        self.done = np.zeros(len(self.first), np.int64)  # entries of each row of the factor so far
        self.pivots: list[float] = []

    def _similarity(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        a, b = self.first[a], self.first[b]
        if self.exact is not None:
            return self.exact.pairs(a, b)
        return self.backend.block(a, b) * self.backend.quantum

    def _first_residuals(self) -> np.ndarray:
        out = np.empty(len(self.first))
        for i in range(0, len(out), 96):
            rows = np.arange(i, min(i + 96, len(out)))
            out[rows] = np.diagonal(self._similarity(rows, rows)) + self.lam
        if len(out) and out.min() < self.lam - self.noise * max(out.max(), 1e-300):
            worst = int(self.first[out.argmin()])
            raise ValueError(
                f"log_det needs a positive semi-definite similarity: s_jj = {out.min() - self.lam:.3g} at row {worst}"
            )
        return out

    def _grow(self, t: int) -> None:
        if t > self.factor.shape[1]:
            held, touched = self.factor.shape[1], np.flatnonzero(self.done)
            columns = max(t, min(2 * held, self.picks_at_most))
            self._check_room(8 * columns * len(touched), t)  # pages are taken when written
            wider = np.zeros((len(self.first), columns))
            for part in np.array_split(touched, len(touched) * held // NUMBERS + 1):
                wider[part, :held] = self.factor[part]
            self.factor = wider

    def _check_room(self, need: int, t: int) -> None:
        if need > self.memory:
            raise MemoryError(
                f"log_det on {self.kind} needs {need / 1e6:.0f} MB for pick {t}, 8 bytes a pick and row that "
                f"it looked at; memory allows {self.memory / 1e6:.0f} MB: give more, or choose fewer rows"
            )

    def _fresh(self, rows: np.ndarray) -> np.ndarray:
        parts = [rows[i : i + self.step] for i in range(0, len(rows), self.step)]
        return np.concatenate([self._brought(part) for part in parts])

    def _brought(self, rows: np.ndarray) -> np.ndarray:
        """Residuals of stale rows, their rows of the factor brought up to date."""
        t = len(self.picks)
        residual = self.residual[rows]
        start = int(self.done[rows].min())
        picks = np.array(self.picks, np.int64)
        for begin in range(start, t, PICKS):
            end = min(begin + PICKS, t)
            s = self._similarity(picks[begin:end], rows)
            for at in range(begin, end):
                behind = self.done[rows] == at
                mine, pick = rows[behind], picks[at]
                entry = (s[at - begin, behind] - self._known(mine, pick, at)) / self.pivots[at]
                self.factor[mine, at] = entry
                residual[behind] -= np.square(entry)
                self.done[mine] = at + 1
        return self._checked(residual)

    def _known(self, rows: np.ndarray, pick: int, t: int) -> np.ndarray:
        """sum_{r<t} c_pr c_jr for all rows j: what the earlier picks explain of s_pj."""
        out, step = np.empty(len(rows)), max(1, NUMBERS // max(t, 1))
        for i in range(0, len(rows), step):
            block = self.factor[rows[i : i + step], :t]
            block *= self.factor[pick, :t]
            block.sum(axis=1, out=out[i : i + step])
        return out

    def _checked(self, residual: np.ndarray) -> np.ndarray:
        lowest = float(residual.min(initial=np.inf)) - self.lam
        if lowest < -max(1e-4, 10 * self.noise) * self.top:
            raise ValueError(
                f"log_det needs a positive semi-definite similarity: a squared distance came out as {lowest:.3g}"
            )
        return np.maximum(residual, self.lam)

    def _commit(self, row: int, near: np.ndarray) -> None:
        self._grow(len(self.picks) + 1)
        pivot = float(np.sqrt(self.residual[row]))
        at = len(self.picks)
        self.pivots.append(pivot)
        if len(near):
            s = self._similarity(np.array([row]), near)[0]
            entry = (s - self._known(near, row, at)) / pivot
            self.factor[near, at] = entry
            self.residual[near] = self._checked(self.residual[near] - np.square(entry))
            self.done[near] = at + 1

    def total(self) -> float:
        every = np.arange(len(self.first))
        s = self._similarity(every, every)
        if len(self.first) < self.n:
            s = s[np.ix_(self.inverse, self.inverse)]
        s[np.diag_indices(self.n)] += self.lam
        return float(np.linalg.slogdet(s)[1])


class LogDetBatch:
    def __init__(self, state: LogDetState, cols: np.ndarray):
        self.state, self.cols = state, cols
        self.gains = state.refresh(cols)
        self.near = state._distinct(state.inverse[cols])

    def narrow(self, positions: np.ndarray) -> None:
        self.cols, self.gains = self.cols[positions], self.gains[positions]
        self.near = self.state._distinct(self.state.inverse[self.cols])

    def accept(self, b: int) -> None:
        self.state.accept(int(self.cols[b]), self.near)
        self.gains = self.state._log(self.state.inverse[self.cols])
