"""select and rank on the numpy backend: every pick against the float64 reference."""

import numpy as np
import pytest
from oracle import OBJECTIVES, PER_ROW, SIMILARITIES, N, check, represented, synthetic, with_copies

import smartgpu
from smartgpu import FacilityLocation, GraphCut, LogDet, Modular, reference, select
from smartgpu.similarity import as_similarity
from smartgpu.workers import one_thread


@pytest.fixture(params=["alpaca", "synthetic"])
def pool(request, rng) -> np.ndarray:
    if request.param == "synthetic":
        return synthetic(rng)
    return request.getfixturevalue("alpaca")[np.sort(rng.choice(52_002, N, replace=False))]


@pytest.mark.parametrize("copies", [False, True], ids=["plain", "copies"])
@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("name", OBJECTIVES)
def test_picks_are_the_references(pool, rng, name, similarity, copies):
    x = with_copies(pool, rng) if copies else pool
    kind, objective = SIMILARITIES[similarity], OBJECTIVES[name](x, rng)
    if not kind.positive_semidefinite and name in ("logdet", "logdet-0.1", "mixture"):
        with pytest.raises(ValueError, match="positive semi-definite"):
            select(x, 5, objective, kind)
        return
    sel = select(x, 15, objective, kind, backend="numpy")
    assert sel.indices.dtype == np.int64 and sel.gains.dtype == np.float64 and sel.backend == "numpy"
    decided = check(sel, x, kind, objective, copies_tie=name not in PER_ROW)
    # Unit rows in 384 dimensions are nearly orthogonal to these kinds: many margins of log-determinants are rounding.
    few = copies or (name.startswith("logdet") and kind.affine is None)
    assert few or decided > 0.5, "the reference's margins hardly decide anything"


@pytest.mark.parametrize("copies", [False, True], ids=["plain", "copies"])
@pytest.mark.parametrize("name", ["facility_location", "graph_cut", "log_det"])
def test_alpaca_2000(alpaca, rng, name, copies):
    """The measurement of issue 2: 2,000 rows, k = 200."""
    x = alpaca[np.sort(rng.choice(len(alpaca), 2000, replace=False))]
    if copies:
        x = with_copies(x, rng, 0.3)
    sel = select(x, 200, name)
    objective, kind = smartgpu.objectives.OBJECTIVES[name](), SIMILARITIES["cosine"]
    assert sel.evaluations < 0.5 * 200 * 2000 and sel.sweeps < 20, "lazy evaluation did not work"
    if name == "graph_cut":
        check(sel, x, kind, objective)
        return
    s = reference.similarities(x, kind)  # the same definitions as the reference's, in one pass per pick
    tol = 2000 * 2.0**-25 if name == "facility_location" else 2e-6
    _, label = np.unique(x, axis=0, return_inverse=True)
    level, work = np.zeros(2000), np.empty_like(s)
    factor, residual = np.zeros((200, 2000)), np.diagonal(s) + 1.0
    decided = 0
    for t, j in enumerate(sel.indices):
        if name == "facility_location":
            gains = np.maximum(s, level[:, None], out=work).sum(axis=0) - level.sum()
            level = np.maximum(level, s[:, j])
        else:
            gains = np.log(residual)
            factor[t] = (s[j] + (np.arange(2000) == j) - factor[:t, j] @ factor[:t]) / np.sqrt(residual[j])
            residual = residual - np.square(factor[t])
        gains[sel.indices[:t]] = -np.inf
        residual[j] = 1  # picked: no longer of interest
        best = gains.max()
        decided += best - gains[label != label[j]].max() > tol
        assert gains[j] >= best - tol and sel.gains[t] == pytest.approx(gains[j], abs=tol)
        assert not np.isin(np.flatnonzero(label[:j] == label[j]), sel.indices[:t], invert=True).any()
    assert decided > 100
    assert sel.value == pytest.approx(reference.Problem(x, kind, objective).value(sel.indices), rel=1e-6)


@pytest.mark.parametrize("tie_break", ["low", "high"])
@pytest.mark.parametrize("similarity", ["cosine", "dot", "rbf", "cosine_squared", "max_minus_sqeuclidean"])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_lazy_is_naive_bit_for_bit(rng, name, similarity, tie_break):
    """On a pool that is nearly all copies, with a third of them scaled copies, which tie only for cosines."""
    distinct = synthetic(rng, 30, 7)
    x = with_copies(distinct[rng.integers(0, 30, 390)], rng, 0.1)
    x[rng.choice(390, 130, replace=False)] *= 2
    kind, objective = SIMILARITIES[similarity], OBJECTIVES[name](x, rng)
    if not kind.positive_semidefinite and name in ("logdet", "logdet-0.1", "mixture"):
        pytest.skip("log-determinants refuse this similarity")
    runs = [
        select(x, 60, objective, kind, maximizer=m, tie_break=tie_break, threads=t)
        for m, t in (("naive", 1), ("lazy", 2))
    ]
    np.testing.assert_array_equal(runs[0].indices, runs[1].indices)
    if (
        "log" in name or name == "mixture"
    ):  # two evaluations of one residual may round to neighbours of the grid 2^-40
        np.testing.assert_allclose(runs[0].gains, runs[1].gains, rtol=0, atol=2.0**-38)
    else:
        np.testing.assert_array_equal(runs[0].gains, runs[1].gains)
        assert runs[0].value == runs[1].value
    check(runs[1], x, kind, objective, tie_break=tie_break, copies_tie=name not in PER_ROW)


@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("objective", [FacilityLocation(), GraphCut(), LogDet()], ids=lambda o: o.name)
def test_degenerate_pools(rng, objective, similarity):
    kind = SIMILARITIES[similarity]
    if objective.name == "log_det" and not kind.positive_semidefinite:
        return
    one = rng.standard_normal((1, 5))
    sel = select(one, 1, objective, kind)
    assert sel.indices.tolist() == [0]
    check(sel, one, kind, objective)
    for x in (np.repeat(one, 50, axis=0), np.zeros((50, 5)), np.repeat(one, 400, axis=0).astype(np.float16)):
        n = len(x)
        low = select(x, n, objective, kind)
        high = smartgpu.rank(x, objective, kind, tie_break="high")
        np.testing.assert_array_equal(low.indices, np.arange(n))
        np.testing.assert_array_equal(high.indices, np.arange(n)[::-1])
        value = reference.Problem(x, kind, objective).value(range(n))
        assert low.value == pytest.approx(value, rel=1e-6, abs=1e-6)
    x = with_copies(synthetic(rng, 60, 4), rng)
    full = select(x, len(x), objective, kind)
    assert sorted(full.indices) == list(range(60))
    check(full, x, kind, objective)


def test_given_and_exclude(rng):
    x = with_copies(synthetic(rng), rng)
    for objective in (FacilityLocation(), GraphCut(), LogDet(), FacilityLocation() + LogDet()):
        plain = select(x, 30, objective)
        given, rest = plain.indices[:7], plain.indices[7:]
        mask = np.zeros(len(x), bool)
        mask[given] = True
        for form in (given, given.tolist(), mask, np.repeat(given, 2)):
            sel = select(x, 23, objective, given=form)
            np.testing.assert_array_equal(sel.indices, rest)
            np.testing.assert_allclose(sel.gains, plain.gains[7:], rtol=1e-9)
            assert sel.base_value == pytest.approx(plain.gains[:7].sum(), rel=1e-9)
            assert sel.value == pytest.approx(plain.value, rel=1e-9)
            assert sel.prefix(5).value == pytest.approx(plain.gains[:12].sum(), rel=1e-9)
        given, closed = [3, 400, 17], rng.choice(np.arange(20, 390), 200, replace=False)
        sel = select(x, 25, objective, given=given, exclude=closed)
        # Excluded copies may not be picked, so a copy is tied with the open ones only.
        check(sel, x, SIMILARITIES["cosine"], objective, given=given, closed=closed)
        every = smartgpu.rank(x, objective, given=given, exclude=closed)
        assert every.k == len(x) - 203 and not set(every.indices) & {*given, *closed.tolist()}


def test_coverage_is_the_smallest_prefix(rng):
    x = synthetic(rng, 200)
    cosine, shifted = SIMILARITIES["cosine"], SIMILARITIES["cosine_shifted"]
    cases = [
        (FacilityLocation(), cosine),
        (FacilityLocation(rng.random(99), represented(x, rng)), SIMILARITIES["dot"]),
        (GraphCut(0.3), shifted),
        (GraphCut(0.5), SIMILARITIES["rbf"]),
        (LogDet(1.0), cosine),
        (LogDet(2.0), SIMILARITIES["rbf"]),
        (LogDet(1.5), shifted),
        (0.5 * FacilityLocation() + Modular(rng.random(200)), cosine),
    ]
    for objective, kind in cases:
        with one_thread():
            total = reference.Problem(x, kind, objective).value(range(200))
            oracle = select(x, coverage=0.9, objective=objective, similarity=kind, backend="reference")
        every = smartgpu.rank(x, objective, kind)
        assert every.value == pytest.approx(total, rel=1e-6)
        reached = np.cumsum(every.gains)
        for share in (0.3, 0.9, 0.99, 1.0):
            sel = select(x, coverage=share, objective=objective, similarity=kind)
            np.testing.assert_array_equal(sel.indices, every.indices[: sel.k])
            assert sel.value >= share * total * (1 - 1e-6)
            assert sel.k == 1 or reached[sel.k - 2] < share * total * (1 + 1e-6)
        assert select(x, 3, objective, kind, coverage=0.999).k == 3
        assert select(x, coverage=0.9, objective=objective, similarity=kind).k == oracle.k
        # `given` counts towards the share.
        half = every.indices[: every.k // 2]
        assert select(x, coverage=0.01, objective=objective, similarity=kind, given=half).k == 0


def test_prefixes_and_shares(rng):
    x = with_copies(synthetic(rng), rng)
    for objective in ("facility_location", "graph_cut", "log_det"):
        every = smartgpu.rank(x, objective)
        assert sorted(every.indices) == list(range(N))
        for k in (1, 2, 63, 64, 65, 200, N):
            sel, cut = select(x, k, objective), every.prefix(k)
            np.testing.assert_array_equal(sel.indices, cut.indices)
            np.testing.assert_allclose(sel.gains, cut.gains, rtol=0, atol=2.0**-38)
            assert cut.k == len(cut) == k and cut.value == pytest.approx(sel.value, rel=1e-12)
    for share, count in ((0.1, 42), (1.0, N), (1e-9, 1), (np.float32(0.5), 210), (np.int16(7), 7)):
        assert select(x, share).k == count


def test_stochastic(rng):
    x = synthetic(rng)
    greedy = select(x, 40)
    runs = [select(x, 40, maximizer="stochastic", seed=seed) for seed in (1, 1, 2)]
    np.testing.assert_array_equal(runs[0].indices, runs[1].indices)
    assert not np.array_equal(runs[0].indices, runs[2].indices)
    for run in runs:
        assert len(set(run.indices)) == 40 and not run.exact and run.evaluations < 0.2 * 40 * N
        assert 0.9 * greedy.value < run.value <= greedy.value * (1 + 1e-9)
        assert run.gains.sum() == pytest.approx(run.value, rel=1e-12)
        assert run.value == pytest.approx(
            reference.Problem(x, SIMILARITIES["cosine"], FacilityLocation()).value(run.indices)
        )
    whole = select(x, 5, maximizer="stochastic", epsilon=1e-300)  # the sample is everything: greedy itself
    np.testing.assert_array_equal(whole.indices, greedy.indices[:5])
    with pytest.raises(ValueError, match="stochastic"):
        runs[0].prefix(3)


def test_weighted_sums(rng):
    x, q = synthetic(rng), rng.random(N)
    fl, gc = FacilityLocation(), GraphCut(0.2)
    for total in (
        0.5 * fl + 0.25 * gc + Modular(q),
        sum([0.5 * fl, Modular(q), gc * 0.25]),
        0.5 * (fl + 0.5 * gc + 2 * Modular(q)),
    ):
        assert sorted(c for c, _ in total.terms) == [0.25, 0.5, 1.0]
        sel = select(x, 30, total)
        check(sel, x, SIMILARITIES["cosine"], total, copies_tie=False)
    parts = [reference.Problem(x, SIMILARITIES["cosine"], o).value(sel.indices) for o in (fl, gc)]
    assert sel.value == pytest.approx(0.5 * parts[0] + 0.25 * parts[1] + q[sel.indices].sum(), rel=1e-6)
    np.testing.assert_array_equal(
        select(x, 30, 1.0 * fl + 0.0 * Modular(q)).indices, select(x, 30, fl).indices
    )


@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "csr"])
def test_precomputed_is_the_feature_path(rng, sparse):
    """Small integers: every dot product is exact on both paths, so that everything but log-determinants is equal."""
    scipy = pytest.importorskip("scipy.sparse")
    x = with_copies(rng.integers(-2, 3, (N, 6)).astype(np.float32), rng)
    y = rng.integers(-2, 3, (99, 6)).astype(np.float32)

    def given(s):
        return scipy.csr_matrix(s) if sparse else s

    for objective in (
        FacilityLocation(),
        GraphCut(0.375),
        GraphCut(9.0),
        LogDet(),
        FacilityLocation(rng.random(N)),
    ):
        one = select(x, 40, objective, "dot")
        for dtype in (np.float64, np.float32, np.float16 if not sparse else np.int64):
            two = select(given((x @ x.T).astype(dtype)), 40, objective, "precomputed")
            np.testing.assert_array_equal(one.indices, two.indices)
            np.testing.assert_allclose(
                one.gains, two.gains, rtol=1e-6 if objective.name == "log_det" else 1e-12
            )
    one = select(x, 40, FacilityLocation(represented=y), "dot")
    two = select(given((y @ x.T).astype(np.float64)), 40, similarity="precomputed")
    np.testing.assert_array_equal(one.indices, two.indices)
    np.testing.assert_allclose(one.gains, two.gains, rtol=1e-12)
    s = rng.standard_normal((50, 50)) * (
        rng.random((50, 50)) < 0.3
    )  # not symmetric, negative entries: graph cut is defined
    kind = as_similarity("precomputed")
    for objective in (FacilityLocation(), GraphCut(), GraphCut(3.0)):
        check(select(given(s), 50, objective, "precomputed"), s, kind, objective, copies_tie=False)


def test_threads_and_memory_change_nothing(rng):
    x = with_copies(synthetic(rng, 1000), rng)
    cases = [
        (FacilityLocation(), "cosine"),
        (FacilityLocation(rng.random(1000)), "rbf"),
        (FacilityLocation(), "max_minus_sqeuclidean"),
        (GraphCut(), "cosine_squared"),
        (GraphCut(), "cosine"),
        (LogDet(), "rbf"),
    ]
    for objective, kind in cases:
        one = select(x, 40, objective, kind, threads=1)
        least = smartgpu.plan(x, 40, objective, kind, threads=2).least
        for how in ({"threads": 3}, {"threads": 2, "memory": least}):
            two = select(x, 40, objective, kind, **how)
            np.testing.assert_array_equal(one.indices, two.indices)
            np.testing.assert_array_equal(one.gains, two.gains)


def test_lazy_graph_cut_of_similarities_below_a_quantum():
    """s = -0.6 quanta is rounded to -1: gains rise by 2 quanta a pick, more than min s says."""
    quantum, picks, others = 2.0**-22, 10, 150
    n = picks + others + 2
    slow, dummy = n - 2, n - 1
    s = np.zeros((n, n))
    s[dummy, :picks], s[dummy, dummy] = 0.5, 1
    s[dummy, picks:slow], s[dummy, slow] = 3016 * quantum, 3010 * quantum
    s[:picks, slow] = s[slow, :picks] = -0.6 * quantum
    lazy, naive = (
        select(s, 14, GraphCut(1.0), "precomputed", exclude=[dummy], maximizer=m) for m in ("lazy", "naive")
    )
    np.testing.assert_array_equal(lazy.indices, naive.indices)
    np.testing.assert_array_equal(lazy.gains, naive.gains)


@pytest.mark.parametrize("similarity", ["cosine", "cosine_shifted", "rbf"])
@pytest.mark.parametrize("lam", [1e-4, 1e-6])
def test_copies_tie_for_small_ridges(rng, similarity, lam):
    """Residuals near the ridge are nearly all rounding: copies tie all the same, in any batch."""
    distinct = synthetic(rng, 60, 9)
    x = distinct[rng.integers(0, 60, 400)]
    sel, naive = (select(x, 150, LogDet(lam), similarity, maximizer=m) for m in ("lazy", "naive"))
    np.testing.assert_array_equal(sel.indices, naive.indices)
    taken = np.zeros(400, bool)
    for j in sel.indices:
        assert not ((x[:j] == x[j]).all(axis=1) & ~taken[:j]).any(), f"row {j} was picked before an equal one"
        taken[j] = True
