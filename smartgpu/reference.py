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


class Problem:
    """One objective over one pool: f(S) and the gains of every candidate, from the definition."""

    def __init__(self, x: np.ndarray, kind, objective):
        self.objective = objective
        self.terms = [(c, Problem(x, kind, t)) for c, t in getattr(objective, "terms", ())]
        self.n = np.shape(x)[1] if kind.name == "precomputed" else len(x)
        if objective.name in ("facility_location", "graph_cut", "log_det"):
            self.s = similarities(x, kind, getattr(objective, "represented", None))
            separate = getattr(objective, "represented", None) is not None
            self.inner = self.s
            if (
                separate and objective.name == "graph_cut"
            ):  # one M for both matrices: that of all rows together
                self.inner = similarities(x, kind, np.concatenate([x, objective.represented]))[: len(x)]

    def value(self, chosen) -> float:
        """f(S)"""
        S, o = np.asarray(list(chosen), np.int64), self.objective
        if o.name == "weighted_sum":
            return float(sum(c * p.value(S) for c, p in self.terms))
        if o.name == "modular":
            return float(np.asarray(o.scores)[S].sum())
        if len(S) == 0:
            return 0.0
        if o.name == "facility_location":
            best = np.maximum(self.s[:, S].max(axis=1), 0)
            return float(best.sum() if o.weights is None else (o.weights * best).sum())
        if o.name == "graph_cut":
            return float(self.s[:, S].sum() - o.lam * self.inner[np.ix_(S, S)].sum())
        sign, log = np.linalg.slogdet(self.s[np.ix_(S, S)] + o.lam * np.eye(len(S)))
        return float(log) if sign > 0 else -np.inf

    def gains(self, chosen) -> np.ndarray:
        """f(S + j) - f(S) for every candidate j, (n,) float64."""
        S, o = np.asarray(list(chosen), np.int64), self.objective
        if o.name == "weighted_sum":
            return sum((c * p.gains(S) for c, p in self.terms), np.zeros(self.n))
        if o.name == "modular":
            return np.asarray(o.scores, np.float64)
        if o.name == "facility_location":
            level = np.maximum(self.s[:, S].max(axis=1), 0) if len(S) else np.zeros(len(self.s))
            excess = np.maximum(self.s - level[:, None], 0)
            return excess.sum(axis=0) if o.weights is None else o.weights @ excess
        if o.name == "graph_cut":
            inside = self.inner[S].sum(axis=0) + self.inner[:, S].sum(axis=1)
            return self.s.sum(axis=0) - o.lam * (inside + np.diagonal(self.inner))
        own = np.diagonal(self.s) + o.lam
        if len(S):
            k = self.s[S]
            own = own - (k * np.linalg.solve(self.s[np.ix_(S, S)] + o.lam * np.eye(len(S)), k)).sum(axis=0)
        none = (
            1e-10 * np.abs(np.diagonal(self.s)).max() if o.lam == 0 else 0.0
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
    x, k, objective, kind, *, given=(), closed=(), tie_break: str = "low", until: float | None = None
) -> Greedy:
    """Naive greedy: k times, the candidate of the largest gain, the lowest (or "high": highest) index among equals."""
    problem = Problem(x, kind, objective)
    chosen = [int(j) for j in given]
    start = value = problem.value(chosen)
    open_ = np.ones(problem.n, bool)
    open_[list(closed) + chosen] = False
    indices, gains, margins = [], [], []
    while len(indices) < k and open_.any() and not (until is not None and value >= until):
        every = np.where(open_, problem.gains(chosen), -np.inf)
        ties = np.flatnonzero(every == every.max())
        j = int(ties[0] if tie_break == "low" else ties[-1])
        if not np.isfinite(every[j]):
            raise ValueError(f"{objective.name} is -infinity for every further pick after {len(chosen)}")
        others = np.delete(every, j)
        indices.append(j)
        gains.append(float(every[j]))
        margins.append(float(every[j] - others.max()) if len(others) else np.inf)
        chosen.append(j)
        open_[j] = False
        value += gains[-1]
    return Greedy(
        np.array(indices, np.int64), np.array(gains), np.array(margins), start + float(np.sum(gains)), start
    )
