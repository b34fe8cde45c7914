"""The definition of correct: float64, dense, naive, each formula as on the page. Tests compare everything with this.

It shares no code with the backends, objectives or maximizers; it only reads the parameters of the specs.
Memory O(n^2), time O(k n^2): for pools of a few thousand rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


def similarities(x: np.ndarray, kind, rows: np.ndarray | None = None) -> np.ndarray:
    """s (r, n) float64: s[i, j] between represented row i and candidate j; rows None is x itself."""
    y = np.asarray(x if rows is None else rows, np.float64)
    x = np.asarray(x, np.float64)
    if kind.name == "precomputed":
        return x
    if kind.name == "dot":
        return y @ x.T
    if kind.name.startswith("cosine"):
        c = _unit(y) @ _unit(x).T
        return {"cosine": c, "cosine_shifted": (1 + c) / 2, "cosine_squared": c**2}[kind.name]
    d2 = _squared_distances(y, x)
    if kind.name == "max_minus_sqeuclidean":
        return max(d2.max(), 0.0 if rows is None else _squared_distances(x, x).max()) - d2
    if kind.name == "exp_euclidean":
        return np.exp(-np.sqrt(d2) / x.shape[1])
    if kind.name == "rbf":
        return np.exp(-(kind.gamma or 1 / x.shape[1]) * d2)
    raise ValueError(f"the reference does not know similarity {kind.name!r}")


def _squared_distances(y: np.ndarray, x: np.ndarray) -> np.ndarray:
    return np.stack([np.square(x - row).sum(axis=1) for row in y])


def _unit(x: np.ndarray) -> np.ndarray:
    norm = np.sqrt(np.square(x).sum(axis=1, keepdims=True))
    return np.divide(x, norm, out=np.zeros_like(x), where=norm > 0)


FEATURES = ("feature_based", "max_coverage", "set_cover", "probabilistic_set_cover")  # of rows, not of pairs


def _phi(concave, held: np.ndarray) -> np.ndarray:
    if callable(concave):
        return concave(held)
    if concave == "sqrt":
        return np.sqrt(held)
    if concave == "log":
        return np.log(1 + held)
    return {"inverse": 1 - 1 / (1 + held), "sigmoid": held / (1 + held)}[concave]


def _dense(rows) -> np.ndarray:
    return np.asarray(rows.to_dense() if hasattr(rows, "to_dense") else rows, np.float64)


def _cut(x, kind, rows: np.ndarray) -> np.ndarray:
    return x[np.ix_(rows, rows)] if kind.name == "precomputed" else x[rows]


class Problem:
    """One objective over one pool: f(S) and the gains of every candidate, from the definition.

    outside (m, d) are rows that are not in the pool and count as chosen: f(S) is that of S and them together, but for
    modular terms, which know the rows of the pool alone.
    """

    def __init__(self, x: np.ndarray, kind, objective, outside=None):
        self.objective = o = objective
        self.terms = [(c, Problem(x, kind, t, outside)) for c, t in getattr(o, "terms", ())]
        self.n = np.shape(x)[1] if kind.name == "precomputed" else len(x)
        self.outside = np.arange(self.n, self.n + (0 if outside is None else len(outside)))
        if o.name in ("weighted_sum", "modular"):
            return
        if o.name == "clustered":
            parts = [np.flatnonzero(o.labels == c) for c in np.unique(o.labels)]
            self.parts = [
                (rows, Problem(_cut(x, kind, rows), kind, o.objective.take(rows))) for rows in parts
            ]
            return
        if o.name in FEATURES:
            self.counts = _dense(x if o.features is None else o.features)
            if outside is not None:
                self.counts = np.concatenate([self.counts, np.asarray(outside, np.float64)])
            self.weights = np.ones(self.counts.shape[1]) if o.weights is None else np.array(o.weights)
            if getattr(o, "query", None) is not None:
                self.weights = self.weights * np.isin(np.arange(len(self.weights)), o.query)
            if getattr(o, "private", None) is not None:
                self.weights = self.weights * ~np.isin(np.arange(len(self.weights)), o.private)
            return
        every = x if outside is None else np.concatenate([x, outside])
        represented = getattr(o, "represented", None)
        if o.name == "facility_location_query_mi":
            represented = o.query
        if kind.name == "precomputed" or (represented is None and outside is None):
            self.s = self.inner = similarities(x, kind)
        else:
            self.s = similarities(every, kind, x if represented is None else represented)
            if not o.name.startswith("facility_location"):
                # one M for both matrices: that of all rows together
                both = every if represented is None else np.concatenate([every, represented])
                self.inner = similarities(every, kind, both)[: len(every)]
        if hasattr(o, "query"):
            self.to_query = similarities(o.query, kind, every)
        if hasattr(o, "private"):
            self.to_private = similarities(o.private, kind, every)
        self.low, self.high = np.zeros(len(self.s)), np.full(len(self.s), np.inf)
        if o.name in ("facility_location_mi", "facility_location_cmi"):
            self.high = np.maximum(o.eta * similarities(o.query, kind, self._rows(x)).max(axis=1), 0)
        if o.name in ("facility_location_cg", "facility_location_cmi"):
            self.low = np.maximum(o.nu * similarities(o.private, kind, self._rows(x)).max(axis=1), 0)
        if o.name == "facility_location_between":
            self.high = self.high if o.cap is None else np.maximum(o.cap, 0)
            self.low = self.low if o.floor is None else np.maximum(o.floor, 0)
        if o.name == "log_det_less":
            self.below = np.asarray(o.below, np.float64)
        if o.name.startswith("log_det"):
            self.kernel = self.inner
            sets = [
                (f, getattr(o, name)) for name, f in (("query", "eta"), ("private", "nu")) if hasattr(o, name)
            ]
            if sets:  # query and private rows behind all others, their similarity to these times eta or nu
                others = np.concatenate([rows for _, rows in sets])
                factor = np.concatenate([np.full(len(rows), getattr(o, f)) for f, rows in sets])
                across = similarities(others, kind, every) * factor
                self.kernel = np.block([[self.inner, across], [across.T, similarities(others, kind)]])

    def _rows(self, x):
        return x if self.objective.represented is None else self.objective.represented

    def value(self, chosen) -> float:
        """f(S)"""
        pool, o = np.asarray(list(chosen), np.int64), self.objective
        S = np.concatenate([pool, self.outside])
        if o.name == "weighted_sum":
            return float(sum(c * p.value(pool) for c, p in self.terms))
        if o.name == "modular":
            return float(np.asarray(o.scores)[pool].sum())
        if o.name == "graph_cut_mi":
            return float(2 * o.lam * self.to_query[pool].sum())
        if o.name == "clustered":
            return sum(p.value(np.flatnonzero(np.isin(rows, pool))) for rows, p in self.parts)
        if len(S) == 0:
            return 0.0
        if o.name in FEATURES:
            return float(self.weights @ self._covered(self.counts[S], 0))
        if o.name == "saturated_coverage":
            caps = o.alpha * self.s[:, : self.n].sum(axis=1)
            return float(np.minimum(self.s[:, S].sum(axis=1), caps).sum())
        if o.name == "concave_over_modular":
            own = _phi(o.concave, self.to_query[pool].sum(axis=1)).sum()
            return float(_phi(o.concave, self.to_query[S].sum(axis=0)).sum() + o.eta * own)
        if o.name in ("disparity_sum", "disparity_min", "sum_redundancy"):
            inside = self.inner[np.ix_(S, S)]
            if o.name == "sum_redundancy":
                return float(-inside.sum())
            apart = (1 - inside)[~np.eye(len(S), dtype=bool)]
            if o.name == "disparity_sum":
                return float(apart.sum() / 2)
            return float(apart.min(initial=np.inf)) if len(S) > 1 else 0.0
        if o.name.startswith("facility_location"):
            best = np.maximum(self.s[:, S].max(axis=1), 0)
            best = np.maximum(np.minimum(best, self.high) - self.low, 0)
            if o.name == "facility_location_query_mi":
                return float(best.sum() + o.eta * np.maximum(self.to_query[pool].max(axis=1), 0).sum())
            return float(best.sum() if o.weights is None else (o.weights * best).sum())
        if o.name.startswith("graph_cut"):
            value = self.s[:, S].sum() - o.lam * self.inner[np.ix_(S, S)].sum()
            if o.name == "graph_cut_cg":
                value -= 2 * o.lam * o.nu * self.to_private[pool].sum()
            return float(value)
        if o.name == "log_det":
            return self._log_det(S)
        if o.name == "log_det_less":
            return self._log_det(S) - self._log_det(S, self.below)
        first, end = len(self.inner), len(self.kernel)  # query rows first, where there are some
        query = np.arange(first, first + len(getattr(o, "query", ())))
        private = np.arange(first + len(query), end)
        everywhere = np.concatenate([query, private])
        if o.name == "log_det_mi":
            return self._log_det(S) + self._log_det(query) - self._log_det([*S, *query])
        if o.name == "log_det_cg":
            return self._log_det([*S, *private]) - self._log_det(private)
        beside = self._log_det(everywhere) - self._log_det(private)
        return self._log_det([*S, *private]) + beside - self._log_det([*S, *everywhere])

    def _covered(self, rows, axis) -> np.ndarray:
        """How much of each feature rows cover together: phi of what they hold, over an axis."""
        o = self.objective
        if o.name == "set_cover":
            return (rows.max(axis=axis) > 0).astype(np.float64)
        if o.name == "probabilistic_set_cover":
            return 1 - np.prod(1 - rows, axis=axis)
        held = rows.sum(axis=axis)
        if o.name == "max_coverage" or o.concave == "saturated":
            return np.minimum(held, o.threshold)
        return _phi(o.concave, held)

    def _log_det(self, rows, kernel=None) -> float:
        if not len(rows):
            return 0.0
        kernel = self.kernel if kernel is None else kernel
        sign, log = np.linalg.slogdet(kernel[np.ix_(rows, rows)] + self.objective.lam * np.eye(len(rows)))
        return float(log) if sign > 0 else -np.inf

    def gains(self, chosen) -> np.ndarray:
        """f(S + j) - f(S) for every candidate j, (n,) float64."""
        pool, o = np.asarray(list(chosen), np.int64), self.objective
        S = np.concatenate([pool, self.outside])
        if o.name == "weighted_sum":
            return sum((c * p.gains(pool) for c, p in self.terms), np.zeros(self.n))
        if o.name == "modular":
            return np.asarray(o.scores, np.float64)
        if o.name == "graph_cut_mi":
            return 2 * o.lam * self.to_query.sum(axis=1)[: self.n]
        if o.name == "clustered":
            out = np.empty(self.n)
            for rows, problem in self.parts:
                out[rows] = problem.gains(np.flatnonzero(np.isin(rows, pool)))
            return out
        if o.name in FEATURES:
            both = np.stack(
                [self._covered(np.concatenate([self.counts[S], [row]]), 0) for row in self.counts]
            )
            return ((both - (self._covered(self.counts[S], 0) if len(S) else 0)) @ self.weights)[: self.n]
        if o.name.startswith("facility_location"):
            level = np.maximum(self.s[:, S].max(axis=1), 0) if len(S) else np.zeros(len(self.s))
            level = np.maximum(level, self.low)
            capped = np.minimum(self.s[:, : self.n], self.high[:, None])
            excess = np.maximum(capped - level[:, None], 0)
            if o.name == "facility_location_query_mi":
                return excess.sum(axis=0) + o.eta * np.maximum(self.to_query[: self.n].max(axis=1), 0)
            return excess.sum(axis=0) if o.weights is None else o.weights @ excess
        if o.name.startswith("graph_cut"):
            inside = self.inner[S].sum(axis=0) + self.inner[:, S].sum(axis=1)
            every = self.s.sum(axis=0) - o.lam * (inside + np.diagonal(self.inner))
            if o.name == "graph_cut_cg":
                every = every - 2 * o.lam * o.nu * self.to_private.sum(axis=1)
            return every[: self.n]
        if o.name != "log_det":
            now = self.value(pool)
            return np.array([self.value([*pool, j]) - now for j in range(self.n)])
        own = np.diagonal(self.inner)[: self.n] + o.lam
        if len(S):
            k = self.inner[S]
            inside = self.inner[np.ix_(S, S)] + o.lam * np.eye(len(S))
            own = own - (k * np.linalg.solve(inside, k)).sum(axis=0)[: self.n]
        none = (
            1e-10 * np.abs(np.diagonal(self.inner)).max() if o.lam == 0 else 0.0
        )  # a residual that is rounding alone
        return np.log(own, out=np.full(len(own), -np.inf), where=own > none)


@dataclass
class Greedy:
    """The greedy run. margins[t] is how far pick t led the next best: picks are certain above rounding only."""

    indices: np.ndarray
    gains: np.ndarray
    margins: np.ndarray
    value: float
    base_value: float


def greedy(
    x,
    k,
    objective,
    kind,
    *,
    given=(),
    closed=(),
    first=(),
    constraint=None,
    tie_break: str = "low",
    until: float | None = None,
    outside=None,
) -> Greedy:
    """Naive greedy: k times, the candidate of the largest gain, the lowest (or "high": highest) index among equals.

    first: rows that are picked before all others. constraint: says which rows are open, by what candidates are
    compared, and whether gains below 0 may be left out; see smartgpu.constraints, whose rules have tests of their own.
    """
    problem = Problem(x, kind, objective, outside)
    chosen = [int(j) for j in given]
    start = value = problem.value(chosen)
    open_ = np.ones(problem.n, bool)
    open_[list(closed) + chosen] = False
    first = [int(j) for j in first]
    indices, gains, margins = [], [], []
    while len(indices) < k:
        if constraint is not None:
            if until is not None and value >= until and not first:
                constraint.only_needs()
            open_ &= constraint.open
        if not open_.any() or (
            until is not None and value >= until and not (constraint and constraint.unmet)
        ):
            break
        plain = problem.gains(chosen)
        every = np.where(open_, plain if constraint is None else constraint.rate(plain), -np.inf)
        ties = np.flatnonzero(every == every.max())
        forced = bool(first)
        j = first.pop(0) if forced else int(ties[0] if tie_break == "low" else ties[-1])
        if not np.isfinite(plain[j]):
            raise ValueError(f"{objective.name} is -infinity for every further pick after {len(chosen)}")
        if constraint is not None and constraint.may_stop and plain[j] < 0 and not forced:
            break
        others = np.delete(every, j)
        indices.append(j)
        gains.append(float(plain[j]))
        margins.append(float(every[j] - others.max()) if len(others) else np.inf)
        chosen.append(j)
        open_[j] = False
        if constraint is not None:
            constraint.take(j)
        value += gains[-1]
    return Greedy(
        np.array(indices, np.int64), np.array(gains), np.array(margins), start + float(np.sum(gains)), start
    )
