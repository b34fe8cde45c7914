"""Pools and objectives for the tests of the domain, and the comparison of a selection with the float64 reference."""

import numpy as np
import pytest

from smartgpu import FacilityLocation, GraphCut, LogDet, Modular, Rbf, reference
from smartgpu.similarity import KINDS, as_similarity
from smartgpu.workers import one_thread

SIMILARITIES = {name: as_similarity(name) for name in KINDS if name != "precomputed"} | {
    "rbf-0.1": Rbf(gamma=0.1)
}
N = 420  # more than one tile of 384 rows

# name -> (x, rng) -> objective. Scores differ between copies of a row, so copies tie only where there are none.
OBJECTIVES = {
    "fl": lambda x, rng: FacilityLocation(),
    "fl-weights": lambda x, rng: FacilityLocation(rng.random(len(x)) * (rng.random(len(x)) > 0.2)),
    "fl-represented": lambda x, rng: FacilityLocation(rng.random(99), represented(x, rng)),
    "gc": lambda x, rng: GraphCut(),
    "gc-negative-gains": lambda x, rng: GraphCut(9.0),
    "gc-represented": lambda x, rng: GraphCut(0.8, represented(x, rng)),
    "logdet": lambda x, rng: LogDet(),
    "logdet-0.1": lambda x, rng: LogDet(0.1),
    "modular": lambda x, rng: Modular(rng.standard_normal(len(x))),
    "qdit": lambda x, rng: 0.7 * FacilityLocation() + 20 * Modular(rng.standard_normal(len(x))),
    "mixture": lambda x, rng: 0.5 * FacilityLocation(rng.random(len(x))) + 0.1 * GraphCut(0.3) + LogDet(2.0),
}
PER_ROW = ("modular", "qdit")


def represented(x: np.ndarray, rng) -> np.ndarray:
    """99 rows, a third of them of the pool itself and one of them zero."""
    mean, spread = x.mean(axis=0, dtype=np.float64), x.std(dtype=np.float64)
    out = mean + spread * rng.standard_normal((99, x.shape[1]))
    out[:33] = x[rng.choice(len(x), 33, replace=False)]
    out[50] = 0
    return out


def synthetic(rng, n: int = N, d: int = 21) -> np.ndarray:
    """Clusters around a common mean, float32 that no float16 holds, d not a multiple of anything."""
    centres = rng.standard_normal((12, d)) + 0.5
    x = (centres[rng.integers(0, 12, n)] + 0.4 * rng.standard_normal((n, d))).astype(np.float32)
    assert not np.array_equal(x, x.astype(np.float16))
    return x


def with_copies(x: np.ndarray, rng, share: float = 0.4) -> np.ndarray:
    """A share of the rows replaced by copies of others, and a few by zeros, the first and the last among them."""
    x, n = np.array(x), len(x)
    x[rng.choice(n, int(share * n), replace=False)] = x[rng.choice(n, int(share * n))]
    x[[1, n // 2, n - 1]] = 0
    return x


def tolerance(problem: reference.Problem) -> float:
    """Design 4: one quantum per pair, and for log-determinants the rounding of inputs to float32 over the ridge."""
    if problem.objective.name == "weighted_sum":
        return sum(c * tolerance(p) for c, p in problem.terms)
    if problem.objective.name == "modular":
        return 0.0
    top = max(1.0, float(np.abs(problem.s).max()))
    if problem.objective.name == "log_det":
        return 2e-6 * (1 + top / problem.objective.lam)
    return 2.0**-22 * top * len(problem.s) * (1 + 2 * getattr(problem.objective, "lam", 0) / 10)


def size(problem: reference.Problem, chosen) -> float:
    """What f(S) is rounded relative to: |f|, but for graph cut, a difference, the sizes of what is subtracted."""
    if problem.objective.name == "weighted_sum":
        return sum(c * size(p, chosen) for c, p in problem.terms)
    if problem.objective.name != "graph_cut" or not len(chosen):
        return max(1.0, abs(problem.value(chosen)))
    inside = problem.inner[np.ix_(chosen, chosen)]
    return float(np.abs(problem.s[:, chosen]).sum() + problem.objective.lam * np.abs(inside).sum())


@one_thread()  # many small solves: threads would wait for each other
def check(
    sel,
    x,
    kind,
    objective,
    *,
    given=(),
    closed=(),
    tie_break="low",
    copies_tie=True,
    constraint=None,
    first=(),
    outside=None,
) -> float:
    """Every pick, given the picks before it, is the reference's. Returns the share of picks that its margins decide.

    constraint: as what was selected with, at its beginning; rows `first` are picked whatever they gain.
    """
    problem = reference.Problem(x, kind, objective, outside)
    tol, decided, chosen = tolerance(problem), 0, list(given)
    open_ = np.ones(problem.n, bool)
    open_[list(closed) + chosen] = False
    _, label = np.unique(np.asarray(x, np.float64), axis=0, return_inverse=True)
    label = label.reshape(-1)
    for j, gain in zip(sel.indices, sel.gains, strict=True):
        assert open_[j], f"row {j} may not be picked"
        plain = problem.gains(chosen)
        if constraint is not None:
            open_ &= constraint.open
            assert open_[j], f"row {j} breaks a limit"
        every = np.where(open_, plain if constraint is None else constraint.rate(plain), -np.inf)
        assert gain == pytest.approx(plain[j], rel=1e-7, abs=tol)
        chosen.append(int(j))
        open_[j] = False
        if constraint is not None:
            constraint.take(int(j))
        if len(chosen) - len(given) <= len(first):
            assert j == first[len(chosen) - len(given) - 1]
            continue
        best = every.max()
        assert every[j] >= best - tol, f"pick {len(chosen)} is {j}, {best - every[j]} behind {every.argmax()}"
        decided += best - every[label != label[j]].max(initial=-np.inf) > tol  # copies apart
        if copies_tie:
            equals = np.flatnonzero((every > -np.inf) & (label == label[j]))
            assert j == (equals[0] if tie_break == "low" else equals[-1]), f"{j} was picked before its copy"
    value = problem.value(chosen)
    assert sel.value == pytest.approx(value, rel=0, abs=1e-6 * size(problem, chosen))
    assert sel.base_value == pytest.approx(
        problem.value(list(given)), rel=0, abs=1e-6 * size(problem, list(given))
    )
    assert sel.base_value + sel.gains.sum() == pytest.approx(sel.value, rel=1e-12)
    return decided / len(sel.indices)
