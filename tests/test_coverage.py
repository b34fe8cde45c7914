"""Coverage of features and of similarities: gains, lazy against naive, sparse against dense, the reference, limits."""

import numpy as np
import pytest

import smartgpu
from smartgpu import (
    Clustered,
    ConcaveOverModular,
    FacilityLocation,
    FeatureBased,
    MaxCoverage,
    Modular,
    ProbabilisticSetCover,
    Quotas,
    SaturatedCoverage,
    SetCover,
    evaluate,
    reference,
    select,
    select_many,
)
from smartgpu.objectives import Ground, saturated
from smartgpu.objectives.coverage_state import CoverageState
from smartgpu.similarity import as_similarity

N, U = 150, 24
SETS = [set(np.random.default_rng(j).integers(0, 40, 1 + j % 5).tolist()) for j in range(N)]


def slow_root(c):
    return np.minimum(np.sqrt(c), 1 + c / 4)


def counts(rng) -> np.ndarray:
    """Counts, a fifth of them above 0, with rows that are copies and rows of zeros."""
    x = rng.integers(1, 9, (N, U)) * (rng.random((N, U)) < 0.2)
    x[100:130] = x[:30]
    x[[3, 60]] = 0
    return x.astype(np.float32)


def chances(x: np.ndarray) -> np.ndarray:
    return np.minimum(x / 8, 1)


# name -> (counts x (N, U), rng) -> objective; all of them take x as the pool too
OBJECTIVES = {
    "sqrt": lambda x, rng: FeatureBased(),
    "log-weights": lambda x, rng: FeatureBased(x, "log", rng.random(U)),
    "inverse": lambda x, rng: FeatureBased(x * 0.37, "inverse"),
    "sigmoid": lambda x, rng: FeatureBased(x * 0.37, "sigmoid"),
    "saturated": lambda x, rng: FeatureBased(x * 0.37, "saturated", threshold=rng.random(U) * 9 + 0.1),
    "callable": lambda x, rng: FeatureBased(x, slow_root),
    "max": lambda x, rng: MaxCoverage(x, 20, rng.random(U)),
    "sets": lambda x, rng: SetCover(SETS),
    "sets-weights": lambda x, rng: SetCover(SETS, rng.random(40)),
    "sets-cmi": lambda x, rng: SetCover(SETS, rng.random(40), query=range(20), private=[3, 4, 19, 30]),
    "binary": lambda x, rng: SetCover(x > 3),
    "chances": lambda x, rng: ProbabilisticSetCover(chances(x), rng.random(U)),
    "chances-mi": lambda x, rng: ProbabilisticSetCover(chances(x), query={1, 2, 9}),
    "chances-cg": lambda x, rng: ProbabilisticSetCover(chances(x), private=[0, 5, 7]),
    "certain": lambda x, rng: ProbabilisticSetCover((x > 3).astype(np.float32), rng.random(U)),
    "similar": lambda x, rng: SaturatedCoverage(0.1),
    "similar-soon": lambda x, rng: SaturatedCoverage(0.02),
    "query": lambda x, rng: ConcaveOverModular(x[7:12] + 1, "sqrt", 0.3),
    "sum": lambda x, rng: 0.3 * FeatureBased(x) + FacilityLocation() + 0.2 * Modular(rng.standard_normal(N)),
    "clustered": lambda x, rng: Clustered(FeatureBased(x, "log"), rng.integers(0, 4, N)),
    "clustered-similar": lambda x, rng: Clustered(SaturatedCoverage(0.3), rng.integers(0, 4, N)),
}
EXACT = [
    name
    for name in OBJECTIVES
    if name not in ("similar", "similar-soon", "query", "sum", "clustered-similar")
]


def state(x, objective, kind="cosine"):
    return objective.bind(Ground(x, as_similarity(kind), "numpy", threads=1))


def check(sel, x, objective, kind="cosine", given=(), outside=None, tol=1e-9):
    """Every pick is the reference's best, or one behind it by rounding alone; every gain and f(S) are its own."""
    problem = reference.Problem(x, as_similarity(kind), objective, outside)
    chosen, open_ = list(given), np.ones(len(x), bool)
    open_[list(given)] = False
    for j, gain in zip(sel.indices, sel.gains, strict=True):
        plain = np.where(open_, problem.gains(chosen), -np.inf)
        assert gain == pytest.approx(plain[j], rel=1e-6, abs=tol)
        assert plain[j] >= plain.max() - tol
        chosen.append(int(j))
        open_[j] = False
    assert sel.value == pytest.approx(problem.value(chosen), rel=1e-6, abs=tol)
    assert sel.base_value == pytest.approx(problem.value(given), rel=1e-6, abs=tol)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_gains_are_differences_of_the_value(name, rng):
    x = counts(rng)
    objective = OBJECTIVES[name](x, rng)
    problem, held = reference.Problem(x, as_similarity("cosine"), objective), state(x, objective)
    tol = 1e-9 if name in EXACT else 1e-4
    chosen = []
    for j in (5, 77, 101, 2):
        every, before = held.gains(), problem.value(chosen)
        cols = np.array([0, 9, 40, 100, 149])
        some = held.evaluate(cols).gains
        for at, i in enumerate(cols):
            assert some[at] == every[i] == pytest.approx(problem.value([*chosen, i]) - before, abs=tol)
        before = held.value()
        held.add(np.array([j]))
        chosen.append(j)
        assert held.value() - before == pytest.approx(every[j], rel=1e-9, abs=1e-12)
    assert held.total() == pytest.approx(problem.value(range(N)), rel=1e-6)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_lazy_is_naive_and_the_reference(name, rng):
    x = counts(rng)
    objective = OBJECTIVES[name](x, rng)
    lazy = select(x, 60, objective, backend="numpy", threads=2)
    naive = select(x, 60, objective, backend="numpy", maximizer="naive", threads=1)
    np.testing.assert_array_equal(lazy.indices, naive.indices)
    np.testing.assert_array_equal(lazy.gains, naive.gains)
    assert lazy.gains.sum() == pytest.approx(lazy.value, rel=1e-12)
    check(lazy, x, objective, tol=1e-9 if name in EXACT else 2e-4)
    if name in ("sets", "binary"):  # whole numbers: every tie is one, and the lowest row wins it
        oracle = select(x, 60, objective, backend="reference")
        np.testing.assert_array_equal(lazy.indices, oracle.indices)
        np.testing.assert_array_equal(lazy.gains, oracle.gains)


@pytest.mark.parametrize("tie_break", ["low", "high"])
def test_copies_tie(rng, tie_break):
    x = counts(rng)
    x[75:] = x[:75]
    for name in ("sqrt", "callable", "max", "chances", "similar"):
        sel = select(x, 100, OBJECTIVES[name](x, rng), tie_break=tie_break, backend="numpy")
        other = (sel.indices + 75) % N
        order = np.full(N, 1000)
        order[sel.indices] = np.arange(100)
        first = sel.indices < other if tie_break == "low" else sel.indices > other
        assert (order[sel.indices][first] < order[other][first]).all()


@pytest.mark.parametrize(
    "name", ["sqrt", "log-weights", "callable", "max", "binary", "chances", "chances-cg"]
)
def test_sparse_is_dense(name, rng):
    scipy = pytest.importorskip("scipy.sparse")
    x = counts(rng)
    seed = rng.integers(1 << 30)
    dense = OBJECTIVES[name](x, np.random.default_rng(seed))
    wanted = select(x, 70, dense, backend="numpy")
    for kind in (scipy.csr_matrix, scipy.csc_matrix, scipy.coo_array):
        if name == "sqrt":
            sel = select(kind(x), 70, dense, backend="numpy")
        else:
            stored = kind(dense.features.astype(np.float32))
            parts = {name: getattr(dense, name) for name in ("weights", "private") if hasattr(dense, name)}
            if name in ("log-weights", "callable"):
                parts["concave"] = dense.concave
            elif name == "max":
                parts["threshold"] = dense.threshold
            sel = select(x, 70, type(dense)(stored, **parts), backend="numpy")
        np.testing.assert_array_equal(sel.indices, wanted.indices)
        np.testing.assert_array_equal(sel.gains, wanted.gains)
    stored = scipy.csr_matrix(x)
    stored.data[:5] = 0  # zeros that are stored are none
    y = x.copy()
    y[np.nonzero(x)[0][:5], np.nonzero(x)[1][:5]] = 0
    np.testing.assert_array_equal(
        select(stored, 30, FeatureBased(), backend="numpy").gains,
        select(y, 30, FeatureBased(), backend="numpy").gains,
    )


def test_sparse_pools_are_for_features_alone(rng, tmp_path):
    scipy = pytest.importorskip("scipy.sparse")
    x = counts(rng)
    rows = scipy.csr_matrix(x)
    spec = FeatureBased() + Modular(rng.random(N))
    wanted = select(x, 20, spec, backend="numpy")
    for backend in ("numpy", "reference"):
        np.testing.assert_array_equal(select(rows, 20, spec, backend=backend).indices, wanted.indices)
    assert evaluate(rows, wanted.indices, spec, backend="numpy").value == pytest.approx(wanted.value)
    kept = tmp_path / "kept.npz"
    select(rows, 12, spec, checkpoint=kept, backend="numpy")
    np.testing.assert_array_equal(
        select(rows, 12, spec, checkpoint=kept, backend="numpy").gains, wanted.gains[:12]
    )
    assert smartgpu.plan(rows, 20, spec, backend="numpy").k == 20
    with pytest.raises(TypeError, match="X is a sparse matrix"):
        select(rows, 20, FeatureBased() + FacilityLocation())


@pytest.mark.parametrize("name", ["sqrt", "sets", "chances", "similar", "query", "clustered"])
def test_limits_and_rows_that_are_there(name, rng):
    x = counts(rng)
    objective, cost = OBJECTIVES[name](x, rng), rng.integers(1, 9, N).astype(float)
    tol = 1e-9 if name in EXACT else 2e-4
    groups = rng.integers(0, 3, N)
    for how in (
        {"k": 20, "given": [1, 2, 50], "exclude": [0, 4], "include": [9, 8]},
        {"k": 20, "quotas": Quotas(groups, maximum=7)},
        {"budget": 40.0, "cost": cost},
    ):
        a, b = (
            select(x, objective=objective, backend="numpy", maximizer=m, **how) for m in ("lazy", "naive")
        )
        np.testing.assert_array_equal(a.indices, b.indices)
        np.testing.assert_array_equal(a.gains, b.gains)
        c = select(x, objective=objective, backend="reference", **how)
        assert a.value == pytest.approx(c.value, rel=2e-3)  # ties of rounding may go another way
    sel = select(x, 15, objective, given=[1, 2, 50], backend="numpy")
    check(sel, x, objective, given=[1, 2, 50], tol=tol)
    if name in ("sqrt", "similar", "query"):
        others = np.abs(rng.standard_normal((4, U)))
        sel = select(x, 15, objective, given=others, backend="numpy")
        check(sel, x, objective, outside=others, tol=tol)
    else:
        with pytest.raises(ValueError, match="given rows that are not in the pool have no"):
            select(x, 15, objective, given=x[:3] + 1, backend="numpy")
    part = select(x, objective=objective, coverage=0.7, backend="numpy")
    every = evaluate(x, range(N), objective, backend="numpy").value
    assert part.value >= 0.7 * every > part.value - part.gains[-1]
    found = evaluate(x, sel.indices, objective, backend="numpy")
    said = evaluate(x, sel.indices, objective, backend="reference")
    assert (found.value, found.total, found.bound) == pytest.approx(
        (said.value, said.total, said.bound), rel=1e-5
    )


def test_groups_cut_per_row_arrays(rng):
    x, labels = counts(rng), np.arange(N) % 3
    for objective in (
        FeatureBased(x, "log"),
        SetCover(SETS),
        MaxCoverage(x, 9),
        FeatureBased(),
        SaturatedCoverage(),
    ):
        found = select_many(x, labels, 8, objective, backend="numpy")
        for g in range(3):
            rows = np.flatnonzero(labels == g)
            alone = select(x[rows], 8, objective.take(rows), backend="numpy")
            np.testing.assert_array_equal(found[g].indices, rows[alone.indices])
            np.testing.assert_array_equal(found[g].gains, alone.gains)


@pytest.mark.parametrize("tie_break", ["low", "high"])
@pytest.mark.parametrize("name", ["sets", "sets-weights", "sets-cmi"])
def test_all_picks_at_once_are_those_of_steps(name, tie_break, rng, monkeypatch):
    x = counts(rng)
    objective = OBJECTIVES[name](x, np.random.default_rng(5))
    asked = [
        {"k": N},
        {"k": 30, "given": [4, 9], "exclude": [1, 70, 3]},
        {"k": None, "coverage": 0.8},
        {"k": 40, "maximizer": "threshold"},
        {"k": None, "cost": 1 + np.arange(N) % 5, "budget": 60},
    ]
    asked = [dict(one, objective=objective, tie_break=tie_break, backend="numpy") for one in asked]
    found = [select(x, **one) for one in asked]
    assert found[0].evaluations < 12 * N
    monkeypatch.setattr(CoverageState, "resident", lambda self, goal: None)
    for one, sel in zip(asked, found, strict=True):
        wanted = select(x, **one)
        np.testing.assert_array_equal(sel.indices, wanted.indices)
        np.testing.assert_array_equal(sel.gains, wanted.gains)
        assert sel.value == wanted.value


def test_zero_gains_do_not_make_it_slow(rng):
    """Everything is covered long before the last pick: no pick looks at all rows again."""
    x = counts(rng)
    for objective in (SetCover(SETS), MaxCoverage(x, 0.5), OBJECTIVES["certain"](x, rng)):
        sel = select(x, N, objective, backend="numpy")
        assert (sel.gains[-40:] == 0).all() and sel.evaluations < 12 * N


@pytest.mark.parametrize("name", ["sqrt", "chances", "similar", "similar-soon", "query"])
def test_triton(name, rng, device):
    x = counts(rng)
    objective = OBJECTIVES[name](x, rng)
    sel = select(x, 25, objective, backend="triton")
    check(sel, x, objective, tol=1e-9 if name in EXACT else 0.2)
    if name in EXACT:
        np.testing.assert_array_equal(sel.indices, select(x, 25, objective, backend="numpy").indices)


def test_saturated_coverage_in_any_memory(rng, monkeypatch):
    """Columns that stay, some of them, and none: one selection."""
    x = np.abs(rng.standard_normal((700, 20))).astype(np.float32)
    objective = SaturatedCoverage(0.02)
    wanted = select(x, 60, objective, "rbf", backend="numpy")
    np.testing.assert_array_equal(
        wanted.indices, select(x, 60, objective, "rbf", backend="numpy", maximizer="naive").indices
    )
    made = []
    start = saturated.Columns.__init__
    monkeypatch.setattr(
        saturated.Columns, "__init__", lambda self, s, slots: made.append(slots) or start(self, s, slots)
    )
    least = smartgpu.plan(x, 60, objective, "rbf", backend="numpy").least
    few = least + 900_000 + 4 * 768 * 512
    for memory in (least, few, None):
        sel = select(x, 60, objective, "rbf", backend="numpy", memory=memory)
        np.testing.assert_array_equal(sel.indices, wanted.indices)
        np.testing.assert_array_equal(sel.gains, wanted.gains)
    made = sorted(set(made))
    assert made[-1] == 700


def test_saturated_coverage_of_matrices(rng):
    scipy = pytest.importorskip("scipy.sparse")
    x = np.abs(rng.standard_normal((90, 12)))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    s = (x @ x.T).astype(np.float32)
    skewed = s * rng.random(s.shape).astype(np.float32)
    for matrix in (s, skewed, skewed[:40], np.where(skewed > 0.4, skewed, 0)):
        wanted = select(matrix, 20, SaturatedCoverage(0.05), "precomputed", backend="reference")
        sel = select(matrix, 20, SaturatedCoverage(0.05), "precomputed", backend="numpy")
        np.testing.assert_array_equal(sel.indices, wanted.indices)
        np.testing.assert_allclose(sel.gains, wanted.gains, atol=1e-4)
        stored = select(scipy.csr_matrix(matrix), 20, SaturatedCoverage(0.05), "precomputed", backend="numpy")
        np.testing.assert_array_equal(stored.indices, sel.indices)


def test_described(rng):
    x = counts(rng)
    said = select(x, 3, FeatureBased(x, slow_root), backend="numpy").objective
    assert said["name"] == "feature_based" and said["concave"].endswith("slow_root")
    assert said["features"]["shape"] == [N, U] and len(said["features"]["sha256"]) == 64
    a, b = (SetCover(sets).describe()["features"]["sha256"] for sets in (SETS, [*SETS[:-1], {1}]))
    assert a != b


BAD = {
    "negative": (lambda x: FeatureBased(-x), "features must be >= 0, got -"),
    "negative-pool": (lambda x: (FeatureBased(), -x), "X must be >= 0"),
    "rows": (lambda x: FeatureBased(x[:9]), "features must have one row for each row of X, 150, got 9"),
    "shape": (lambda x: FeatureBased(x[0]), "features must be two-dimensional"),
    "nan": (lambda x: FeatureBased(np.where(x > 7, np.nan, x)), "features must be finite"),
    "weights": (
        lambda x: FeatureBased(x, weights=np.ones(3)),
        "weights must have one number per feature, 24, got 3",
    ),
    "pool-weights": (
        lambda x: FeatureBased(weights=np.ones(3)),
        "weights must have one number per feature of X, 24",
    ),
    "below": (lambda x: MaxCoverage(x, 1, -np.ones(U)), "weights must be >= 0, got -1.0 at feature 0"),
    "none": (lambda x: MaxCoverage(x, 1, np.zeros(U)), "weights must not all be 0"),
    "concave": (lambda x: FeatureBased(x, "sqr"), "unknown concave 'sqr'.*did you mean 'sqrt'"),
    "convex": (lambda x: FeatureBased(x, np.square), "concave must be a concave and increasing function"),
    "offset": (lambda x: FeatureBased(x, lambda c: np.sqrt(c) + 1), "that is 0 at 0"),
    "scalar": (lambda x: FeatureBased(x, lambda c: 1.0), "concave must map an array of sums"),
    "no-threshold": (lambda x: FeatureBased(x, "saturated"), "threshold goes with concave='saturated'"),
    "threshold": (lambda x: MaxCoverage(x, 0), "threshold must be > 0, got 0"),
    "thresholds": (lambda x: MaxCoverage(x, np.ones(5)), "one per feature, 24, got 5"),
    "set": (lambda x: SetCover([{1, -2}] * N), r"concept numbers in \[0, 2\), entry 0 holds -2"),
    "named": (lambda x: SetCover([{"a"}] * N), "must hold concept numbers"),
    "counts": (lambda x: SetCover(x), "features of set_cover must be 0 or 1"),
    "beyond": (lambda x: SetCover(SETS, np.ones(9)), r"concept numbers in \[0, 9\)"),
    "query": (lambda x: SetCover(SETS, query=[77]), r"query must be concept numbers in \[0, 40\), got 77"),
    "chance": (lambda x: ProbabilisticSetCover(x), r"must be probabilities in \[0, 1\], got"),
    "alpha": (lambda x: SaturatedCoverage(0), r"alpha must lie in \(0, 1\], got 0"),
    "alpha-above": (lambda x: SaturatedCoverage(1.5), r"alpha must lie in \(0, 1\], got 1.5"),
    "signed": (lambda x: (SaturatedCoverage(), x - 1), "needs similarities >= 0.*use cosine_shifted"),
    "unlike": (lambda x: ConcaveOverModular(-x[:2]), "needs similarities to the query that are >= 0"),
    "labels": (
        lambda x: Clustered("facility_location", [1, 2]),
        "labels must have one label for each row of X, 150",
    ),
    "huge": (
        lambda x: FeatureBased(x.astype(np.float64) * 1e307, "sqrt"),
        "add up to more than float64 holds",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name, rng):
    make, message = BAD[name]
    x = counts(rng)
    with pytest.raises((ValueError, TypeError), match=message):
        made = make(x)
        objective, pool = made if isinstance(made, tuple) else (made, x)
        select(pool, 5, objective, backend="numpy")


def test_types_are_refused(rng):
    x = counts(rng)
    with pytest.raises(TypeError, match="entry 1 is 7"):
        SetCover([{1}, 7])
    with pytest.raises(TypeError, match="alpha must be a number"):
        SaturatedCoverage("0.1")
    with pytest.raises(ValueError, match="feature_based needs features with a precomputed similarity"):
        select(x @ x.T, 5, FeatureBased(), "precomputed", backend="numpy")
    with pytest.raises(
        ValueError, match="saturated_coverage needs similarities >= 0, but the matrix holds -1"
    ):
        select(-np.eye(5, dtype=np.float32), 2, SaturatedCoverage(), "precomputed", backend="numpy")
