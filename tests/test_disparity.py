"""Disparity, redundancy and clusters: true greedy against the definition, both ways of a matrix, submodlib."""

import itertools

import numpy as np
import pytest
from test_coverage import check, state

from smartgpu import (
    Clustered,
    DisparityMin,
    DisparitySum,
    FacilityLocation,
    GraphCut,
    LogDet,
    Modular,
    Quotas,
    SumRedundancy,
    evaluate,
    reference,
    select,
    select_many,
)
from smartgpu.similarity import as_similarity

N, D = 130, 9
KINDS = ("cosine", "cosine_shifted", "rbf", "dot")
OBJECTIVES = {
    "sum": lambda rng: DisparitySum(),
    "min": lambda rng: DisparityMin(),
    "redundancy": lambda rng: SumRedundancy(),
    "both": lambda rng: DisparitySum() + 3 * Modular(rng.random(N)) + 0.5 * DisparityMin(),
    "clustered": lambda rng: Clustered(DisparitySum(), rng.integers(0, 4, N)),
}


def pool(rng) -> np.ndarray:
    x = rng.standard_normal((N, D)).astype(np.float32) + 0.4
    x[100:120] = x[:20]
    return x


def matrix(rng, skewed: bool = False) -> np.ndarray:
    s = rng.random((N, N)).astype(np.float32)
    s = s if skewed else (s + s.T) / 2
    np.fill_diagonal(s, 1)
    return s


def tolerance(x, kind: str) -> float:
    return 1e-5 * max(1.0, float(np.abs(reference.similarities(x, as_similarity(kind))).max()))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", OBJECTIVES)
def test_greedy_is_true_greedy(name, kind, rng):
    x, objective = pool(rng), OBJECTIVES[name](rng)
    lazy = select(x, 50, objective, kind, backend="numpy")
    naive = select(x, 50, objective, kind, backend="numpy", maximizer="naive")
    np.testing.assert_array_equal(lazy.indices, naive.indices)
    np.testing.assert_array_equal(lazy.gains, naive.gains)
    check(lazy, x, objective, kind, tol=40 * tolerance(x, kind))


@pytest.mark.parametrize("name", ["sum", "min", "redundancy"])
def test_values_by_hand(name, rng):
    x, objective = pool(rng), OBJECTIVES[name](rng)
    s = reference.similarities(x, as_similarity("cosine"))
    rows = [4, 9, 77, 30]
    pairs = [1 - s[i, j] for i, j in itertools.combinations(rows, 2)]
    wanted = {"sum": sum(pairs), "min": min(pairs), "redundancy": -s[np.ix_(rows, rows)].sum()}[name]
    held = state(x, objective)
    for j in rows:
        held.add(np.array([j]))
    assert held.value() == pytest.approx(wanted, abs=1e-5)
    together = state(x, objective)
    together.add(np.array(rows))
    assert together.value() == held.value()
    np.testing.assert_array_equal(together.gains(), held.gains())
    assert held.total() == pytest.approx(
        reference.Problem(x, as_similarity("cosine"), objective).value(range(N)), abs=1e-2
    )
    assert evaluate(x, rows, objective, backend="numpy").value == held.value()


@pytest.mark.parametrize("skewed", [False, True], ids=["symmetric", "skewed"])
@pytest.mark.parametrize("name", ["sum", "min", "redundancy", "clustered"])
def test_matrices(name, skewed, rng):
    scipy = pytest.importorskip("scipy.sparse")
    s, objective = matrix(rng, skewed), OBJECTIVES[name](rng)
    wanted = select(s, 40, objective, "precomputed", backend="reference")
    for given in (s, scipy.csr_matrix(s)):
        sel = select(given, 40, objective, "precomputed", backend="numpy")
        np.testing.assert_allclose(sel.gains, wanted.gains, atol=2e-5)
        if name != "redundancy":  # its first picks tie: all s_jj are 1
            np.testing.assert_array_equal(sel.indices, wanted.indices)


@pytest.mark.parametrize("name", ["sum", "min", "redundancy"])
def test_limits_and_rows_that_are_there(name, rng):
    x, objective = pool(rng), OBJECTIVES[name](rng)
    cost, groups = rng.integers(1, 9, N).astype(float), rng.integers(0, 3, N)
    for how in (
        {"k": 12, "given": [3, 5], "exclude": [0, 1], "include": [9]},
        {"k": 12, "quotas": Quotas(groups, maximum=5)},
        {"budget": 30.0, "cost": cost},
    ):
        a, b = (
            select(x, objective=objective, backend="numpy", maximizer=m, **how) for m in ("lazy", "naive")
        )
        np.testing.assert_array_equal(a.indices, b.indices)
        np.testing.assert_array_equal(a.gains, b.gains)
        c = select(x, objective=objective, backend="reference", **how)
        assert a.value == pytest.approx(c.value, rel=1e-3, abs=1e-4)
    others = rng.standard_normal((4, D)) + 0.4
    check(select(x, 15, objective, given=others, backend="numpy"), x, objective, outside=others, tol=1e-4)
    check(select(x, 15, objective, given=[8, 2], backend="numpy"), x, objective, given=[8, 2], tol=1e-4)
    labels = np.arange(N) % 3
    found = select_many(x, labels, 6, objective, backend="numpy")
    rows = np.flatnonzero(labels == 1)
    np.testing.assert_array_equal(
        found[1].indices, rows[select(x[rows], 6, objective, backend="numpy").indices]
    )


def test_copies_are_taken_last(rng):
    x = pool(rng)
    sel = select(x, 110, DisparityMin(), backend="numpy")
    assert sel.indices[0] == 0 and sorted(sel.indices.tolist()) == list(range(100)) + list(range(120, 130))
    high = select(x, 110, DisparityMin(), backend="numpy", tie_break="high")
    assert high.indices[0] == N - 1 and not set(range(20)) & set(high.indices.tolist())


def test_coverage_means_nothing(rng):
    for objective in (
        DisparitySum(),
        DisparityMin(),
        SumRedundancy(),
        Clustered(DisparityMin(), np.zeros(N, int)),
    ):
        with pytest.raises(ValueError, match="coverage needs a monotone"):
            select(pool(rng), objective=objective, coverage=0.5, backend="numpy")
        assert evaluate(pool(rng), [1, 2], objective, backend="numpy").bound is None
    with pytest.raises(ValueError, match="disparity_sum needs candidate x candidate similarities"):
        select(matrix(rng)[:50], 5, DisparitySum(), "precomputed", backend="numpy")


CLUSTERED = {
    "fl": lambda: FacilityLocation(np.random.default_rng(1).random(N)),
    "gc": lambda: GraphCut(0.4),
    "logdet": lambda: LogDet(1.0),
    "sum": lambda: 0.3 * FacilityLocation() + GraphCut(0.1),
}


@pytest.mark.parametrize("kind", ["cosine", "rbf"])
@pytest.mark.parametrize("name", CLUSTERED)
def test_clusters_are_pools_of_their_own(name, kind, rng):
    x, labels = pool(rng), rng.integers(0, 5, N)
    objective = Clustered(CLUSTERED[name](), labels)
    lazy = select(x, 60, objective, kind, backend="numpy", threads=2)
    naive = select(x, 60, objective, kind, backend="numpy", maximizer="naive")
    np.testing.assert_array_equal(lazy.indices, naive.indices)
    np.testing.assert_array_equal(lazy.gains, naive.gains)
    check(lazy, x, objective, kind, tol=1e-4)
    total = 0.0
    for c in range(5):
        rows = np.flatnonzero(labels == c)
        mine = np.flatnonzero(np.isin(rows, lazy.indices))
        if len(mine):
            total += evaluate(x[rows], mine, objective.objective.take(rows), kind, backend="numpy").value
    assert lazy.value == pytest.approx(total)
    named = Clustered(CLUSTERED[name](), [f"c{c}" for c in labels])
    np.testing.assert_array_equal(select(x, 60, named, kind, backend="numpy").indices, lazy.indices)


def test_clusters_of_a_matrix(rng):
    """As if the similarity between clusters were 0, where f(S) is that of facility location or graph cut."""
    scipy = pytest.importorskip("scipy.sparse")
    s, labels = matrix(rng), rng.integers(0, 5, N)
    apart = np.where(labels[:, None] == labels, s, 0)
    for objective in (FacilityLocation(), GraphCut(0.3)):
        wanted = select(apart, 60, objective, "precomputed", backend="numpy")
        for given in (s, scipy.csr_matrix(s)):
            sel = select(given, 60, Clustered(objective, labels), "precomputed", backend="numpy")
            np.testing.assert_array_equal(sel.indices, wanted.indices)
            np.testing.assert_allclose(sel.gains, wanted.gains, rtol=1e-12)


@pytest.mark.parametrize("name", ["sum", "min", "redundancy", "clustered"])
def test_triton(name, rng, device):
    x, objective = pool(rng)[:60], OBJECTIVES[name](rng)
    objective = objective.take(np.arange(60))
    sel = select(x, 12, objective, backend="triton", precision="ieee")
    check(sel, x, objective, tol=1e-4)


def test_submodlib(rng):
    submodlib = pytest.importorskip("submodlib")
    s, x, labels = matrix(rng), pool(rng)[:100], np.sort(rng.integers(0, 4, 100))
    how = {"optimizer": "NaiveGreedy", "show_progress": False}
    for ours, theirs in (
        (DisparitySum(), submodlib.DisparitySumFunction),
        (DisparityMin(), submodlib.DisparityMinFunction),
    ):
        peer = theirs(n=N, mode="dense", sijs=s)
        order = peer.maximize(budget=30, **how)
        sel = select(s, 30, ours, "precomputed", backend="numpy", tie_break="high")
        assert [j for j, _ in order] == sel.indices.tolist()
        np.testing.assert_allclose([g for _, g in order], sel.gains, atol=1e-4)
        assert peer.evaluate({3, 9, 70}) == pytest.approx(
            evaluate(s, [3, 9, 70], ours, "precomputed", backend="numpy").value, abs=1e-5
        )
    for name, ours in (
        ("FacilityLocation", FacilityLocation()),
        ("GraphCut", GraphCut(1.0)),
        ("DisparitySum", DisparitySum()),
        ("DisparityMin", DisparityMin()),
    ):
        parts = {"mode": "multi", "data": x, "cluster_lab": labels.tolist(), "num_clusters": 4}
        peer = submodlib.ClusteredFunction(n=100, f_name=name, metric="euclidean", **parts)
        for rows in ({1, 2, 50}, {7}, {0, 30, 31, 99, 98}):
            found = evaluate(x, sorted(rows), Clustered(ours, labels), "exp_euclidean", backend="numpy")
            assert found.value == pytest.approx(peer.evaluate(rows), rel=1e-4, abs=1e-4)


def test_submodlib_coverage(rng):
    submodlib = pytest.importorskip("submodlib")
    from smartgpu import ConcaveOverModular, FeatureBased, ProbabilisticSetCover, SetCover

    sets = [set(rng.choice(30, 4, replace=False).tolist()) for _ in range(N)]
    weights, chances = rng.random(30), rng.random((N, 30)) * 0.3
    query, private = {1, 2, 5, 9}, {2, 20}
    shared = {"n": N, "num_concepts": 30, "concept_weights": weights.tolist()}
    cases = []
    for ours, prefix, what in (
        (SetCover, "SetCover", {"cover_set": sets}),
        (ProbabilisticSetCover, "ProbabilisticSetCover", {"probs": chances.tolist()}),
    ):
        features = sets if ours is SetCover else chances
        for more, suffix in (
            ({}, ""),
            ({"query": query}, "MutualInformation"),
            ({"private": private}, "ConditionalGain"),
            ({"query": query, "private": private}, "ConditionalMutualInformation"),
        ):
            named = {f"{name}_concepts": value for name, value in more.items()}
            peer = getattr(submodlib, f"{prefix}{suffix}Function")(**shared, **what, **named)
            cases.append((peer, ours(features, weights, **more)))
    features = rng.random((N, 6))
    features[0], features[1] = 0, 1  # it scales features to [0, 1]
    peer = submodlib.FeatureBasedFunction(n=N, features=features.tolist(), numFeatures=6, sparse=False)
    cases.append((peer, FeatureBased(features, "log")))
    x = pool(rng)
    for peer, ours in cases:
        for rows in ({3}, {1, 44, 90, 7}):
            found = evaluate(x, sorted(rows), ours, backend="numpy").value
            assert found == pytest.approx(peer.evaluate(rows), rel=1e-5, abs=1e-6)
    near = reference.similarities(np.abs(x[:3]), as_similarity("cosine"), np.abs(x)).astype(np.float32)
    peer = submodlib.ConcaveOverModularFunction(n=N, num_queries=3, query_sijs=near, queryDiversityEta=0.7)
    ours = ConcaveOverModular(np.abs(x[:3]), "log", 0.7)
    found = evaluate(np.abs(x), [5, 9, 80], ours, backend="numpy").value
    assert found == pytest.approx(peer.evaluate({5, 9, 80}), rel=1e-5)
