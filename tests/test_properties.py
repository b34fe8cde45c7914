"""Properties that hold for any pool (hypothesis), against definitions written out here: pair by pair, set by set."""

import itertools
import math

import numpy as np
import pytest

pytest.importorskip("hypothesis")
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import smartgpu
from smartgpu import FacilityLocation, GraphCut, LogDet, Modular, select
from smartgpu.objectives import Ground
from smartgpu.similarity import as_similarity

some = settings(max_examples=60, deadline=None, derandomize=True)
few = settings(max_examples=40, deadline=None, derandomize=True)

SIMILARITIES = (
    "cosine",
    "cosine_shifted",
    "cosine_squared",
    "dot",
    "rbf",
    "exp_euclidean",
    "max_minus_sqeuclidean",
)
NONNEGATIVE = ("cosine_shifted", "cosine_squared", "rbf", "exp_euclidean")


def pair(name: str, x, y, top: float) -> float:
    """s(x, y), from the page."""
    dot = math.fsum(a * b for a, b in zip(x, y, strict=True))
    norms = math.sqrt(math.fsum(a * a for a in x)) * math.sqrt(math.fsum(b * b for b in y))
    cosine = dot / norms if norms else 0.0
    square = math.fsum((a - b) ** 2 for a, b in zip(x, y, strict=True))
    return {
        "cosine": cosine,
        "cosine_shifted": (1 + cosine) / 2,
        "cosine_squared": cosine * cosine,
        "dot": dot,
        "rbf": math.exp(-square / len(x)),
        "exp_euclidean": math.exp(-math.sqrt(square) / len(x)),
        "max_minus_sqeuclidean": top - square,
    }[name]


def matrix(x: np.ndarray, name: str) -> np.ndarray:
    rows = x.astype(float).tolist()
    top = max(math.fsum((a - b) ** 2 for a, b in zip(u, v, strict=True)) for u in rows for v in rows)
    return np.array([[pair(name, u, v, top) for v in rows] for u in rows])


def value(objective, s: np.ndarray, chosen) -> float:
    """f(S) from its definition, on a matrix of similarities."""
    chosen, n = list(chosen), len(s)
    if objective.name == "weighted_sum":
        return sum(c * value(term, s, chosen) for c, term in objective.terms)
    if not chosen:
        return 0.0
    if objective.name == "modular":
        return math.fsum(objective.scores[j] for j in chosen)
    if objective.name == "facility_location":
        w = np.ones(n) if objective.weights is None else objective.weights
        return math.fsum(w[i] * max(0.0, max(s[i, j] for j in chosen)) for i in range(n))
    if objective.name == "graph_cut":
        outer = math.fsum(s[i, j] for i in range(n) for j in chosen)
        return outer - objective.lam * math.fsum(s[i, j] for i in chosen for j in chosen)
    det = np.linalg.det(np.array([[s[i, j] + objective.lam * (i == j) for j in chosen] for i in chosen]))
    return math.log(det)


@st.composite
def pools(draw, most: int = 24) -> np.ndarray:
    """Rows of any scale and cluster structure, some of them copies and zero rows; entries are random, so that rows
    that differ do not tie."""
    n, d = draw(st.integers(1, most)), draw(st.integers(1, 7))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    x = rng.standard_normal((n, d)) + draw(st.sampled_from([0.0, 1.0])) * rng.standard_normal(d)
    x *= draw(st.sampled_from([1.0, 0.5, 3.0]))
    for _ in range(draw(st.integers(0, n // 2))):
        x[rng.integers(n)] = x[rng.integers(n)]
    if draw(st.booleans()):
        x[rng.integers(n)] = 0
    return x.astype(draw(st.sampled_from([np.float16, np.float32, np.float64])))


@st.composite
def problems(draw, most: int = 24, monotone: bool = False):
    """(x, objective, similarity): every objective with every similarity that it takes."""
    x = draw(pools(most))
    rng = np.random.default_rng(len(x))
    q = rng.random(len(x)) - (0 if monotone else 0.5)
    name = draw(st.sampled_from(["fl", "weights", "gc", "logdet", "modular", "qdit", "mixture"]))
    lam = draw(st.sampled_from([0.0, 0.4, 0.5] if monotone else [0.4, 0.5, 2.0, 0.0]))
    ridge = draw(st.sampled_from([1.0, 2.5] if monotone else [1.0, 0.05]))
    objective = {
        "fl": FacilityLocation(),
        "weights": FacilityLocation(rng.random(len(x)) + 0.01),
        "gc": GraphCut(lam),
        "logdet": LogDet(ridge),
        "modular": Modular(q),
        "qdit": 0.6 * FacilityLocation() + 0.4 * Modular(q),
        "mixture": 0.5 * FacilityLocation() + 0.2 * GraphCut(lam) + LogDet(ridge),
    }[name]
    kinds = NONNEGATIVE if name in ("gc", "mixture") and monotone else SIMILARITIES
    if name in ("logdet", "mixture"):
        kinds = [k for k in kinds if k != "max_minus_sqeuclidean"]
    return x, objective, draw(st.sampled_from(kinds))


def slack(x: np.ndarray, s: np.ndarray, objective) -> float:
    """What float32 inputs and one quantum per pair may do to a gain."""
    lam = min(
        [t.lam for _, t in getattr(objective, "terms", ((1, objective),)) if t.name == "log_det"], default=1.0
    )
    return (
        3e-7
        * len(x)
        * (1 + 1 / lam)
        * max(1.0, float(np.abs(s).max()), float(np.square(x.astype(float)).sum(axis=1).max()))
    )


@some
@given(problems(), st.data())
def test_unique_picks_whose_gains_add_up(problem, data):
    x, objective, kind = problem
    k = data.draw(st.integers(1, len(x)))
    sel, s = select(x, k, objective, kind), matrix(x, kind)
    assert len(set(sel.indices.tolist())) == k and sel.indices.min() >= 0 and sel.indices.max() < len(x)
    tol = slack(x, s, objective)
    for t in range(k):
        before, after = (value(objective, s, sel.indices[: t + e]) for e in (0, 1))
        assert abs(sel.gains[t] - (after - before)) <= 4 * tol
        best = max(
            value(objective, s, [*sel.indices[:t], j]) - before
            for j in set(range(len(x))) - set(sel.indices[:t])
        )
        assert sel.gains[t] >= best - 4 * tol, f"pick {t} was not the best"
    assert sel.gains.sum() == pytest.approx(sel.value, rel=1e-12, abs=1e-12)
    assert abs(sel.value - smartgpu.evaluate(x, sel.indices, objective, kind).value) <= 1e-9 * max(
        1, np.abs(sel.gains).sum()
    )


@some
@given(problems(), st.data())
def test_gains_are_differences_of_the_definition(problem, data):
    """For sets that greedy would not choose, every candidate's gain is f(S + j) - f(S)."""
    x, objective, kind = problem
    chosen = data.draw(st.lists(st.integers(0, len(x) - 1), unique=True, max_size=len(x) - 1))
    s, state = matrix(x, kind), objective.bind(Ground(x, as_similarity(kind)))
    if chosen:
        state.add(np.array(chosen))
    base, gains, tol = value(objective, s, chosen), state.gains(), 4 * slack(x, s, objective)
    assert state.value() == pytest.approx(base, rel=1e-6, abs=len(x) * tol)
    left = np.array([j for j in range(len(x)) if j not in chosen])
    for j in left:
        assert abs(gains[j] - (value(objective, s, [*chosen, j]) - base)) <= tol
    np.testing.assert_allclose(state.evaluate(left).gains, gains[left], rtol=0, atol=1e-11)


@some
@given(problems(), st.data())
def test_gains_never_rise(problem, data):
    """Submodularity: gain(j | A) >= gain(j | A + more). Graph cut of negative similarities rises, by its slack."""
    x, objective, kind = problem
    order = data.draw(st.permutations(range(len(x))))
    state = objective.bind(Ground(x, as_similarity(kind)))
    before = state.gains()
    negative = kind in ("cosine", "dot") and any(
        t.name == "graph_cut" and t.lam for _, t in getattr(objective, "terms", ((1, objective),))
    )
    assert negative or state.slack == 0
    for j in order[: min(len(x), 10)]:
        state.add(np.array([j]))
        after = state.gains()
        # A row that was just picked has no meaning to log-determinants beyond its own residual: it falls, too.
        assert (after <= before + state.slack + state.margin + (1e-12 if state.margin else 0)).all()
        assert (state.bounds()[0] >= after).all(), "a bound fell below its gain"
        before = after


@some
@given(problems(monotone=True), st.data())
def test_gains_of_monotone_objectives_fall_and_stay_positive(problem, data):
    x, objective, kind = problem
    assume(kind not in ("cosine", "dot") or "graph_cut" not in str(objective.describe()))
    sel = smartgpu.rank(x, objective, kind)
    tol = 1e-9 if "log_det" in str(objective.describe()) else 0.0
    assert (np.diff(sel.gains) <= tol).all()
    assert (sel.gains >= -1e-5 if tol or objective.name == "graph_cut" else sel.gains >= 0).all()


@some
@given(problems(), st.data())
def test_prefix_and_lazy_is_naive(problem, data):
    x, objective, kind = problem
    tie_break = data.draw(st.sampled_from(["low", "high"]))
    every = smartgpu.rank(x, objective, kind, tie_break=tie_break)
    k = data.draw(st.integers(1, len(x)))
    atol = 2.0**-38 if "log_det" in str(objective.describe()) else 0  # its grid is 2^-40
    for maximizer in ("lazy", "naive"):
        sel = select(x, k, objective, kind, tie_break=tie_break, maximizer=maximizer)
        np.testing.assert_array_equal(sel.indices, every.indices[:k])
        np.testing.assert_allclose(sel.gains, every.gains[:k], rtol=0, atol=atol)
    np.testing.assert_array_equal(every.prefix(k).indices, every.indices[:k])


@some
@given(pools(most=16), st.sampled_from(SIMILARITIES), st.integers(0, 2**32 - 1))
def test_permuting_the_pool_permutes_the_picks(x, kind, seed):
    """Up to ties: the picks of the permuted pool are the same rows for as long as no other row comes near."""
    order = np.random.default_rng(seed).permutation(len(x))
    weights = np.random.default_rng(seed).random(len(x)) + 0.1
    cases = [
        (FacilityLocation(), FacilityLocation()),
        (FacilityLocation(weights), FacilityLocation(weights[order])),
    ]
    cases += [(GraphCut(), GraphCut())] + [(LogDet(), LogDet())] * (kind != "max_minus_sqeuclidean")
    s = matrix(x, kind)
    for one, two in cases:
        here, there = smartgpu.rank(x, one, kind), smartgpu.rank(x[order], two, kind)
        back, tol = order[there.indices], 4 * slack(x, s, one)
        same, base = True, 0.0
        for t in range(len(x)):
            left = [j for j in range(len(x)) if j not in back[:t]]
            gains = np.array([value(one, s, [*back[:t], j]) for j in left]) - base
            mine = gains[left.index(back[t])]
            assert mine >= gains.max() - tol and abs(there.gains[t] - mine) <= tol
            rivals = [j for j, gain in zip(left, gains, strict=True) if gain >= gains.max() - 2 * tol]
            same &= all(
                np.array_equal(x[j], x[rivals[0]]) for j in rivals
            )  # nothing but copies has tied so far
            if same:
                np.testing.assert_array_equal(x[back[t]], x[here.indices[t]])
                assert abs(here.gains[t] - there.gains[t]) <= tol
            base = value(one, s, back[: t + 1])
        if same:
            assert here.value == pytest.approx(there.value, rel=1e-6, abs=tol)


@few
@given(problems(most=8, monotone=True), st.data())
def test_greedy_against_the_optimum(problem, data):
    """f(greedy) >= (1 - 1/e) f(OPT) for monotone submodular f (Nemhauser, Wolsey, Fisher 1978), by exhaustion."""
    x, objective, kind = problem
    assume(
        kind not in ("cosine", "dot", "max_minus_sqeuclidean") or "graph_cut" not in str(objective.describe())
    )
    k = data.draw(st.integers(1, len(x)))
    s = matrix(x, kind)
    best = max(value(objective, s, chosen) for chosen in itertools.combinations(range(len(x)), k))
    sel = select(x, k, objective, kind)
    reached = value(objective, s, sel.indices)
    tol = slack(x, s, objective)
    assert reached >= (1 - 1 / math.e) * best - tol
    assert reached <= best + tol
    bound = smartgpu.evaluate(x, sel.indices, objective, kind).bound
    assert bound >= best - 4 * k * tol


@pytest.mark.parametrize("kind", ["cosine", "cosine_shifted", "dot"])
@pytest.mark.parametrize("d", [3, 384, 800])
def test_bounds_where_they_are_tight(rng, kind, d):
    """Of equal rows every bound is the gain itself, up to the rounding that it must allow for."""
    for _ in range(8):
        x = np.repeat(rng.standard_normal((1, d)) + rng.random(), 40, axis=0).astype(np.float32)
        for objective in (FacilityLocation(), FacilityLocation(rng.random(40))):
            state = objective.bind(Ground(x, as_similarity(kind)))
            bounds, gains = state.bounds()[0], state.gains()
            assert (bounds >= gains).all() and (bounds <= gains * (1 + 1e-2)).all()


@few
@given(st.integers(0, 2**32 - 1), st.sampled_from(["facility_location", "graph_cut"]))
def test_many_ties(seed, name):
    """Features in {-1, 0, 1}: gains of different rows tie exactly, and the lowest index wins every time."""
    rng = np.random.default_rng(seed)
    x = rng.integers(-1, 2, (40, 4)).astype(np.float32)
    objective = {"facility_location": FacilityLocation(), "graph_cut": GraphCut(0.5)}[name]
    s = (x @ x.T).astype(np.float64)  # integers: every sum below is exact
    for tie_break in ("low", "high"):
        for maximizer in ("lazy", "naive"):
            sel = select(x, 40, objective, "dot", tie_break=tie_break, maximizer=maximizer)
            chosen: list[int] = []
            for j, gain in zip(sel.indices, sel.gains, strict=True):
                if name == "facility_location":
                    level = s[:, chosen].max(axis=1, initial=0)
                    gains = np.maximum(s - level[:, None], 0).sum(axis=0)
                else:
                    gains = s.sum(axis=0) - 0.5 * (2 * s[:, chosen].sum(axis=1) + np.diagonal(s))
                gains[chosen] = -np.inf
                ties = np.flatnonzero(gains == gains.max())
                assert (j, gain) == ((ties[0] if tie_break == "low" else ties[-1]), gains.max())
                chosen.append(int(j))
