"""Targets, rows from elsewhere that count as chosen, and rows that nothing chosen may be close to."""

import gc
import tracemalloc

import numpy as np
import pytest
from oracle import SIMILARITIES, check, synthetic, with_copies

import smartgpu
from smartgpu import (
    FacilityLocation,
    FacilityLocationCG,
    FacilityLocationCMI,
    FacilityLocationMI,
    FacilityLocationQueryMI,
    GraphCut,
    GraphCutCG,
    GraphCutMI,
    LogDet,
    LogDetCG,
    LogDetCMI,
    LogDetMI,
    Modular,
    Near,
    Quotas,
    reference,
    select,
)
from smartgpu.objectives.given import FacilityLocationBetween, LogDetLess
from smartgpu.similarity import as_similarity

KINDS = {name: kind for name, kind in SIMILARITIES.items() if name != "max_minus_sqeuclidean"}
LINEAR = ("cosine", "cosine_shifted", "dot")
# name -> (x, query, private, rng) -> objective
TARGETS = {
    "fl-mi": lambda x, q, p, rng: FacilityLocationMI(q),
    "fl-mi-loose": lambda x, q, p, rng: FacilityLocationMI(q, 1.4, weights=rng.random(len(x))),
    "fl-mi-tight": lambda x, q, p, rng: FacilityLocationMI(q, 0.5, represented=x[:150] + 0.1),
    "fl-query-mi": lambda x, q, p, rng: FacilityLocationQueryMI(q, 0.3),
    "fl-cg": lambda x, q, p, rng: FacilityLocationCG(p),
    "fl-cg-half": lambda x, q, p, rng: FacilityLocationCG(p, 0.5, weights=rng.random(len(x))),
    "fl-cmi": lambda x, q, p, rng: FacilityLocationCMI(q, p, 1.2, 0.8),
    "gc-mi": lambda x, q, p, rng: GraphCutMI(q, 0.4),
    "gc-cg": lambda x, q, p, rng: GraphCutCG(p, 0.3, 0.7),
    "gc-cg-represented": lambda x, q, p, rng: GraphCutCG(p, 0.3, 5.0, represented=x[:150] + 0.1),
    "sum": lambda x, q, p, rng: (
        0.5 * FacilityLocationMI(q) + 0.3 * GraphCutCG(p, 0.2) + 3 * Modular(rng.standard_normal(len(x)))
    ),
    "sum-query": lambda x, q, p, rng: 2 * Modular(rng.random(len(x))) + 0.5 * FacilityLocationQueryMI(q),
}
VOLUMES = {
    "ld-mi": lambda x, q, p, rng: LogDetMI(q),
    "ld-mi-half": lambda x, q, p, rng: LogDetMI(q, 0.3, 0.5),
    "ld-cg": lambda x, q, p, rng: LogDetCG(p, 0.5),
    "ld-cg-half": lambda x, q, p, rng: LogDetCG(p, 1.0, 0.5),
    "ld-cmi": lambda x, q, p, rng: LogDetCMI(q, p, 0.7),
    "ld-cmi-mixed": lambda x, q, p, rng: LogDetCMI(q, p, 1.5, 0.6, 0.7),
    "ld-sum": lambda x, q, p, rng: LogDetMI(q) + 0.001 * FacilityLocation() + 0.2 * LogDetCG(p),
}
PER_ROW = ("sum", "sum-query")


def sets(x, rng):
    """A query of one part of the pool, and private rows of another; some are rows of the pool."""
    q = x[rng.choice(len(x), 24, replace=False)].astype(np.float64)
    q[8:] += 0.3 * rng.standard_normal((16, x.shape[1]))
    p = x[rng.choice(len(x), 15, replace=False)] + 0.3 * rng.standard_normal((15, x.shape[1]))
    return q, p.astype(np.float32)


@pytest.mark.parametrize("similarity", KINDS)
@pytest.mark.parametrize("name", TARGETS)
def test_targets_are_the_reference(name, similarity, rng):
    x, kind = synthetic(rng), KINDS[similarity]
    objective = TARGETS[name](x, *sets(x, rng), rng)
    lazy = select(x, 40, objective, kind, backend="numpy")
    naive = select(x, 40, objective, kind, backend="numpy", maximizer="naive")
    np.testing.assert_array_equal(lazy.indices, naive.indices)
    np.testing.assert_array_equal(lazy.gains, naive.gains)
    check(lazy, x, kind, objective)
    by_reference = select(x, 5, objective, kind, backend="reference")
    assert by_reference.value == pytest.approx(float(lazy.gains[:5].sum()), rel=1e-5)


@pytest.mark.parametrize("similarity", LINEAR)
@pytest.mark.parametrize("name", VOLUMES)
def test_volumes_are_the_reference(name, similarity, rng):
    """Small: the reference takes a determinant for every candidate and pick."""
    x, kind = with_copies(synthetic(rng, 90), rng, 0.2), KINDS[similarity]
    objective = VOLUMES[name](x, *sets(x, rng), rng)
    for given in ((), [3, 8], x[:7] + 0.3):
        elsewhere = given if isinstance(given, np.ndarray) else None
        lazy = select(x, 14, objective, kind, backend="numpy", given=given)
        naive = select(x, 14, objective, kind, backend="numpy", maximizer="naive", given=given)
        np.testing.assert_array_equal(lazy.indices, naive.indices)
        np.testing.assert_array_equal(lazy.gains, naive.gains)
        check(lazy, x, kind, objective, given=() if elsewhere is not None else given, outside=elsewhere)


def test_targets_of_given_similarities_are_the_reference(rng):
    """A floor, a cap, and one volume less another: what targets are where rows are not at hand."""
    x = with_copies(synthetic(rng, 90), rng, 0.2)
    q, p = sets(x, rng)
    kind = KINDS["cosine"]
    s, to_q, to_p = (reference.similarities(x, kind, rows) for rows in (None, q, p))
    cap, floor = to_q.max(axis=0), to_p.max(axis=0)
    between = {
        FacilityLocationBetween(cap=cap): FacilityLocationMI(q),
        FacilityLocationBetween(floor=floor): FacilityLocationCG(p),
        FacilityLocationBetween(floor, cap, weights=rng.random(len(x))): None,
    }
    below = s - to_q.T @ np.linalg.solve(reference.similarities(q, kind) + np.eye(len(q)), to_q)
    for objective, same in {**between, LogDetLess(below, 1.0): LogDetMI(q)}.items():
        found = select(s, 14, objective, "precomputed", backend="numpy")
        check(found, s, as_similarity("precomputed"), objective)
        if same is not None:
            wanted = reference.Problem(x, kind, same)
            assert found.value == pytest.approx(wanted.value(found.indices), rel=1e-5)


@pytest.mark.parametrize("similarity", ["cosine", "dot"])
def test_a_volume_is_what_the_states_say_of_the_whole(similarity, rng):
    """LogDetCG is plain log-determinant with the private rows given; its picks go by the same fast state."""
    x = synthetic(rng)
    p = sets(x, rng)[1]
    private = select(x, 150, LogDetCG(p), similarity, backend="numpy")
    given = select(x, 150, LogDet(), similarity, given=p, backend="numpy")
    np.testing.assert_array_equal(private.indices, given.indices)
    assert private.value == pytest.approx(given.value - given.base_value, rel=1e-9)
    check(given, x, KINDS[similarity], LogDet(), outside=p)
    score = smartgpu.evaluate(x, private.indices, LogDetCG(p), similarity, backend="numpy")
    problem = reference.Problem(x, KINDS[similarity], LogDetCG(p))
    assert score.total == pytest.approx(problem.value(range(len(x))), rel=1e-6)
    assert score.value == pytest.approx(private.value, rel=1e-9)


@pytest.mark.parametrize("name", [n for n in TARGETS if n not in PER_ROW])
def test_copies_tie(name, rng):
    x = with_copies(synthetic(rng), rng)
    objective = TARGETS[name](x, *sets(x, rng), rng)
    for similarity in ("cosine", "dot", "rbf"):
        picks = select(x, 60, objective, similarity, backend="numpy")
        check(picks, x, KINDS[similarity], objective)


@pytest.mark.parametrize("name", TARGETS)
def test_nothing_depends_on_memory_or_threads(name, rng):
    x = np.concatenate([synthetic(rng, 2600), synthetic(rng, 100)])  # too many pairs to be stored at once
    objective = TARGETS[name](x, *sets(x, rng), rng)
    least = smartgpu.plan(x, 30, objective, threads=2, backend="numpy").least
    roomy = select(x, 30, objective, threads=1, backend="numpy")
    tight = select(x, 30, objective, threads=2, memory=least, backend="numpy")
    np.testing.assert_array_equal(roomy.indices, tight.indices)
    np.testing.assert_array_equal(roomy.gains, tight.gains)


ON_TRITON = {name: "rbf" if "gc" in name else "dot" if "query" in name else "cosine" for name in TARGETS}


@pytest.mark.parametrize("name", [*TARGETS, *VOLUMES])
def test_targets_on_triton(name, device, rng):
    """`device` alone says whether kernels run on a GPU or in the interpreter."""
    x = synthetic(rng, 90 if name in VOLUMES else 140)
    objective = {**TARGETS, **VOLUMES}[name](x, *sets(x, rng), rng)
    similarity, how = ON_TRITON.get(name, "cosine_shifted"), {"backend": "triton", "precision": "ieee"}
    elsewhere = x[:7] + 0.3
    picks = select(x, 7, objective, similarity, given=elsewhere, **how)
    check(picks, x, KINDS[similarity], objective, outside=elsewhere)
    naive = select(x, 2, objective, similarity, maximizer="naive", given=elsewhere, **how)
    np.testing.assert_array_equal(picks.indices[:2], naive.indices)
    np.testing.assert_array_equal(picks.gains[:2], naive.gains)


@pytest.mark.parametrize("name", ["fl-mi-tight", "fl-cmi"])
def test_caps_on_triton_without_survivors(name, device, rng):
    """With no more memory than it must have, everything comes from tiles."""
    x = synthetic(rng, 140)
    objective, how = TARGETS[name](x, *sets(x, rng), rng), {"backend": "triton", "precision": "ieee"}
    least = smartgpu.plan(x, 6, objective, **how).least
    stored, dense = (select(x, 6, objective, memory=memory, **how) for memory in (None, least))
    np.testing.assert_array_equal(stored.indices, dense.indices)
    np.testing.assert_array_equal(stored.gains, dense.gains)
    check(dense, x, KINDS["cosine"], objective)
    naive = select(x, 3, objective, memory=least, maximizer="naive", **how)
    np.testing.assert_array_equal(dense.gains[:3], naive.gains)


@pytest.mark.parametrize("similarity", ["cosine", "dot", "rbf"])
@pytest.mark.parametrize("name", [*TARGETS, *VOLUMES])
def test_what_is_held_is_within_the_plan(name, similarity, rng):
    if name in VOLUMES and similarity == "rbf":
        pytest.skip("log-determinant's targets are for products of features")
    x = np.concatenate([synthetic(rng, 1200, 150) for _ in range(2)])
    objective = {**TARGETS, **VOLUMES}[name](x, *sets(x, rng), rng)
    call = {"objective": objective, "similarity": similarity, "threads": 2, "backend": "numpy"}
    call |= {"given": x[:300] + 0.1, "exclude": Near(x[300:500] + 0.3, 2.0**40)}
    planned = smartgpu.plan(x, 20, **call)
    for memory in (planned.least, None):
        gc.collect()
        tracemalloc.start()
        try:
            before = tracemalloc.get_traced_memory()[0]
            select(x, 20, memory=memory, **call)
            held = tracemalloc.get_traced_memory()[1] - before
        finally:
            tracemalloc.stop()
        allowed = planned.least if memory else planned.peak
        assert held <= 1.01 * allowed, f"held {held:,}, planned {allowed:,}"


def test_values_are_those_of_submodlib(rng):
    submodlib = pytest.importorskip("submodlib")
    kind, chosen = KINDS["cosine"], [3, 17, 5, 30]
    x, q, p = (rng.standard_normal((m, 6)) + 0.6 for m in (40, 5, 4))

    def s(a, b):
        return reference.similarities(b, kind, a).astype(np.float32)

    eta, nu, lam = 0.8, 0.7, 0.4
    data, query, private = {"data_sijs": s(x, x)}, {"query_sijs": s(x, q)}, {"private_sijs": s(x, p)}
    asked, hidden = {"num_queries": 5, "magnificationEta": eta}, {"num_privates": 4, "privacyHardness": nu}
    inner, secret = {"query_query_sijs": s(q, q)}, {"private_private_sijs": s(p, p)}
    both = {**asked, **hidden, **data, **query, **private}
    pairs = {
        "FacilityLocationMutualInformation": ({**asked, **data, **query}, FacilityLocationMI(q, eta)),
        "FacilityLocationVariantMutualInformation": (
            {"num_queries": 5, "queryDiversityEta": eta, **query},
            FacilityLocationQueryMI(q, eta),
        ),
        "FacilityLocationConditionalGain": ({**hidden, **data, **private}, FacilityLocationCG(p, nu)),
        "FacilityLocationConditionalMutualInformation": (both, FacilityLocationCMI(q, p, eta, nu)),
        "GraphCutMutualInformation": ({"num_queries": 5, **query}, GraphCutMI(q, 0.5)),  # it leaves 2 lam out
        "GraphCutConditionalGain": ({**hidden, "lambdaVal": lam, **data, **private}, GraphCutCG(p, lam, nu)),
        "LogDeterminantMutualInformation": (
            {**asked, "lambdaVal": lam, **data, **query, **inner},
            LogDetMI(q, lam, eta),
        ),
        "LogDeterminantConditionalGain": (
            {**hidden, "lambdaVal": lam, **data, **private, **secret},
            LogDetCG(p, lam, nu),
        ),
        "LogDeterminantConditionalMutualInformation": (
            {**both, "lambdaVal": lam, **inner, **secret, "query_private_sijs": s(q, p)},
            LogDetCMI(q, p, lam, eta, nu),
        ),
    }
    for name, (given, objective) in pairs.items():
        theirs = getattr(submodlib, f"{name}Function")(n=40, **given)
        ours = reference.Problem(x, kind, objective)
        assert ours.value(chosen) == pytest.approx(theirs.evaluate(set(chosen)), rel=1e-5), name
        gains = [theirs.marginalGain(set(chosen), j) for j in range(40) if j not in chosen]
        assert np.delete(ours.gains(chosen), chosen) == pytest.approx(gains, rel=1e-4, abs=1e-5), name
        score = smartgpu.evaluate(x, chosen, objective, backend="numpy").value
        assert score == pytest.approx(theirs.evaluate(set(chosen)), rel=1e-5), name


def test_a_cap_that_never_binds_and_a_floor_at_zero_are_facility_location(rng):
    x = synthetic(rng)
    p = sets(x, rng)[1]
    plain = select(x, 50, backend="numpy")
    for objective in (
        FacilityLocationMI(x, 2.0),
        FacilityLocationCG(p, 0.0),
        FacilityLocationCMI(x, p, 3.0, 0.0),
    ):
        same = select(x, 50, objective, backend="numpy")
        np.testing.assert_array_equal(plain.indices, same.indices)
        np.testing.assert_array_equal(plain.gains, same.gains)
        assert same.value == plain.value


def test_a_private_set_of_the_pool_is_what_was_given(rng):
    """f(S + P) - f(P): the same floor as that of chosen rows, to a quantum a row."""
    x = synthetic(rng)
    rows = rng.choice(len(x), 30, replace=False)
    private = select(x, 40, FacilityLocationCG(x[rows]), exclude=rows, backend="numpy")
    given = select(x, 40, given=rows, backend="numpy")
    np.testing.assert_array_equal(private.indices, given.indices)
    np.testing.assert_array_equal(private.gains, given.gains)
    assert private.base_value == 0 and private.value == pytest.approx(
        given.value - given.base_value, rel=1e-12
    )


def test_coverage_and_evaluation(rng):
    x = synthetic(rng)
    q, p = sets(x, rng)
    for objective in (
        FacilityLocationMI(q, 0.8),
        FacilityLocationCG(p),
        FacilityLocationCMI(q, p),
        FacilityLocationQueryMI(q),
    ):
        problem = reference.Problem(x, KINDS["cosine"], objective)
        total = problem.value(range(len(x)))
        picks = select(x, objective=objective, coverage=0.9, backend="numpy")
        assert 0.9 * total * (1 - 1e-6) <= picks.value and picks.value - picks.gains[-1] < 0.9 * total * (
            1 + 1e-6
        )
        score = smartgpu.evaluate(x, picks.indices, objective, backend="numpy")
        assert score.value == pytest.approx(picks.value) and score.total == pytest.approx(total, rel=1e-6)
    with pytest.raises(ValueError, match="monotone"):
        select(x, objective=GraphCutCG(p), coverage=0.5)
    with pytest.raises(ValueError, match="cosine_shifted"):
        select(x, objective=GraphCutMI(q), coverage=0.5)
    with pytest.raises(ValueError, match="not submodular"):
        select(x, objective=LogDetMI(q), coverage=0.5)


def test_limits_and_targets_together(rng):
    x = synthetic(rng)
    q = sets(x, rng)[0]
    source, cost = rng.integers(0, 3, len(x)), rng.integers(1, 30, len(x)).astype(float)
    objective = 0.7 * FacilityLocationMI(q, 0.9) + 5 * Modular(rng.random(len(x)))
    how = {"given": [3, 4], "exclude": np.arange(50, 90), "similarity": "cosine_shifted"}
    quotas = Quotas(source.tolist(), minimum={0: 6, 1: 6}, maximum={2: 4})
    picks = select(x, 20, objective, quotas=quotas, budget=180.0, cost=cost, **how, backend="numpy")
    again = select(x, 20, objective, quotas=quotas, budget=180.0, cost=cost, **how, backend="reference")
    assert cost[picks.indices].sum() <= 180 and not set(picks.indices) & {3, 4, *range(50, 90)}
    assert (source[picks.indices] == 2).sum() <= 4
    assert picks.value == pytest.approx(again.value, rel=1e-6)


@pytest.mark.parametrize("name", [*TARGETS, *VOLUMES])
def test_a_budget_and_quotas_with_every_target(name, rng):
    x = synthetic(rng, 120)
    objective = {**TARGETS, **VOLUMES}[name](x, *sets(x, rng), rng)
    source, cost = rng.integers(0, 3, len(x)), rng.integers(1, 30, len(x)).astype(float)
    limits = {"quotas": Quotas(source.tolist(), minimum={0: 2}, maximum={2: 3}), "budget": 90.0, "cost": cost}
    lazy, naive, plain = (
        select(x, 9, objective, "cosine_shifted", **limits, **how)
        for how in (
            {"backend": "numpy"},
            {"backend": "numpy", "maximizer": "naive"},
            {"backend": "reference"},
        )
    )
    np.testing.assert_array_equal(lazy.indices, naive.indices)
    np.testing.assert_array_equal(lazy.gains, naive.gains)
    assert lazy.value == pytest.approx(plain.value, rel=1e-5)
    picked = np.bincount(source[lazy.indices], minlength=3)
    assert cost[lazy.indices].sum() <= 90 and picked[0] >= 2 and picked[2] <= 3


@pytest.mark.parametrize("name", ["fl-mi-loose", "fl-cmi", "sum"])
def test_two_runs_of_a_budget_share_capped_survivors(name, rng):
    x = synthetic(rng, 2700)
    objective = TARGETS[name](x, *sets(x, rng), rng)
    call = {"objective": objective, "budget": 200.0, "cost": rng.integers(1, 30, len(x)).astype(float)}
    least = smartgpu.plan(x, 200, objective, backend="numpy").least
    roomy, tight = (select(x, **call, memory=memory, backend="numpy") for memory in ("2GB", least))
    np.testing.assert_array_equal(roomy.indices, tight.indices)
    np.testing.assert_array_equal(roomy.gains, tight.gains)


def test_groups_of_a_pool(rng):
    """Weights are cut with the pool, the query stays."""
    x, weights, group = synthetic(rng), rng.random(420), np.repeat([0, 1], 210)
    q = sets(x, rng)[0]
    both = smartgpu.select_many(x, group, 12, FacilityLocationMI(q, weights=weights), backend="numpy")
    for g, picks in both.items():
        rows = np.flatnonzero(group == g)
        alone = select(x[rows], 12, FacilityLocationMI(q, weights=weights[rows]), backend="numpy")
        np.testing.assert_array_equal(picks.indices, rows[alone.indices])
        np.testing.assert_array_equal(picks.gains, alone.gains)


# -- rows from elsewhere that count as chosen -----------------------------------------------------------------------


GIVEN = {
    "fl": lambda x, q, p, rng: FacilityLocation(rng.random(len(x))),
    "gc": lambda x, q, p, rng: GraphCut(0.3),
    "gc-represented": lambda x, q, p, rng: GraphCut(0.3, x[:99] - 0.1),
    "modular": lambda x, q, p, rng: Modular(rng.random(len(x))),
    **TARGETS,
}


@pytest.mark.parametrize("similarity", ["cosine", "dot", "rbf", "exp_euclidean"])
@pytest.mark.parametrize("name", GIVEN)
def test_given_rows_from_elsewhere(name, similarity, rng):
    x, kind = synthetic(rng), KINDS[similarity]
    elsewhere = synthetic(rng, 19)
    objective = GIVEN[name](x, *sets(x, rng), rng)
    for given, rows in ((elsewhere, ()), ((elsewhere, [5, 7]), (5, 7))):
        picks = select(x, 25, objective, kind, given=given, backend="numpy")
        check(picks, x, kind, objective, given=rows, outside=elsewhere)
        assert picks.limits["given"]["rows"] == 19


def test_given_rows_from_elsewhere_are_as_rows_of_the_pool(rng):
    x = synthetic(rng)
    there, x = x[:40], x[40:]
    for objective in (FacilityLocation(represented=x), GraphCut(0.3, x)):
        whole = select(np.concatenate([there, x]), 30, objective, given=np.arange(40), backend="numpy")
        apart = select(x, 30, objective, given=there, backend="numpy")
        np.testing.assert_array_equal(whole.indices - 40, apart.indices)
        assert apart.base_value == pytest.approx(whole.base_value, rel=1e-9)
        assert apart.value == pytest.approx(whole.value, rel=1e-9)


def test_coverage_counts_given_rows(rng):
    x, elsewhere = synthetic(rng), synthetic(rng, 30)
    picks = select(x, coverage=0.8, given=elsewhere, backend="numpy")
    problem = reference.Problem(x, KINDS["cosine"], FacilityLocation(), elsewhere)
    total = problem.value(range(len(x)))
    assert (
        picks.value == pytest.approx(problem.value(picks.indices), rel=1e-6)
        and picks.value >= 0.8 * total - 1e-4
    )
    same = select(x, coverage=0.8, given=elsewhere, backend="reference")
    np.testing.assert_array_equal(same.indices, picks.indices)


def test_checkpoints_know_what_was_given(rng, tmp_path):
    x, elsewhere = synthetic(rng), synthetic(rng, 30)
    path = tmp_path / "picks.npz"
    whole = select(x, 30, given=elsewhere, backend="numpy")
    select(x, 30, given=elsewhere, backend="numpy", checkpoint=path)
    again = select(x, 30, given=elsewhere, backend="numpy", checkpoint=path)
    np.testing.assert_array_equal(whole.indices, again.indices)
    with pytest.raises(ValueError, match="outside"):
        select(x, 30, given=elsewhere + 1, backend="numpy", checkpoint=path)


# -- nothing close to these -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("similarity", KINDS)
def test_near_bars_what_the_definition_bars(similarity, rng):
    x, kind = synthetic(rng), KINDS[similarity]
    bench = x[rng.choice(len(x), 12, replace=False)] + 0.2 * rng.standard_normal((12, x.shape[1]))
    s = reference.similarities(bench, kind, x)
    above = float(np.quantile(s.max(axis=1), 0.7))
    closed = np.flatnonzero(s.max(axis=1) >= above)
    picks = select(x, 30, similarity=kind, exclude=Near(bench, above), backend="numpy")
    told = picks.limits["near"][0]
    assert told["barred"] == len(closed) and told["above"] == above and told["rows"] == 12
    check(picks, x, kind, FacilityLocation(), closed=closed)
    first = told["closest"][0]
    assert first["row"] == s.max(axis=1).argmax() and first["to"] == s[first["row"]].argmax()
    assert first["similarity"] == pytest.approx(s.max(), rel=1e-5)
    same = select(x, 30, similarity=kind, exclude=Near(bench, above), backend="reference")
    assert same.limits["near"][0]["barred"] == len(closed)
    every = smartgpu.rank(x, similarity=kind, exclude=[Near(bench, above), [0, 1]], backend="numpy")
    np.testing.assert_array_equal(np.sort(every.indices), np.setdiff1d(np.arange(len(x)), [*closed, 0, 1]))


def test_exact_copies_are_barred(rng):
    """A copy in another precision, at the largest similarity there is."""
    x = synthetic(rng)
    for similarity in ("cosine", "cosine_shifted", "cosine_squared", "rbf", "exp_euclidean"):
        picks = select(
            x, 10, similarity=similarity, exclude=Near(3.0 * x[:9].astype(np.float64), 1.0), backend="numpy"
        )
        expected = 9 if similarity.startswith("cosine") else 0
        assert picks.limits["near"][0]["barred"] == expected, similarity
        picks = select(x, 10, similarity=similarity, exclude=Near(x[:9], 1.0), backend="numpy")
        assert picks.limits["near"][0]["barred"] == 9


def test_near_on_triton(device, rng):
    x = synthetic(rng, 200)
    bench = x[:5] + 0.1
    here, there = (
        select(x, 8, exclude=Near(bench, 0.9), backend=b, given=x[100:103] - 0.1) for b in ("numpy", "triton")
    )
    assert here.limits["near"][0]["barred"] == there.limits["near"][0]["barred"] > 0
    assert not set(there.indices.tolist()) & set(
        np.flatnonzero(reference.similarities(bench, KINDS["cosine"], x).max(axis=1) >= 0.9).tolist()
    )
    assert there.value == pytest.approx(here.value, rel=2e-3)  # 16-bit features


# -- bad input ------------------------------------------------------------------------------------------------------


def test_what_is_refused(rng):
    x = synthetic(rng, 60)
    q = x[:5]
    cases = [
        (lambda: FacilityLocationMI(q[0]), ValueError, "query must be two-dimensional"),
        (lambda: FacilityLocationMI(np.full((2, 21), np.nan)), ValueError, "query must be finite"),
        (lambda: FacilityLocationMI(q, -1), ValueError, "eta must be >= 0"),
        (lambda: FacilityLocationCG(q, "1"), TypeError, "nu must be a number"),
        (lambda: GraphCutMI(q, np.inf), ValueError, "lam must be >= 0 and finite"),
        (lambda: FacilityLocationCMI(q, np.empty((0, 21))), ValueError, "private is empty"),
        (
            lambda: select(x, 5, FacilityLocationMI(q[:, :9])),
            ValueError,
            "as many features as X: 21, got 9",
        ),
        (lambda: select(x, 5, GraphCutCG(q[:, :9])), ValueError, "private must have as many features"),
        (
            lambda: select(x, 5, FacilityLocationMI(q), "max_minus_sqeuclidean"),
            ValueError,
            "query cannot be given with",
        ),
        (
            lambda: select(x @ x.T, 5, FacilityLocationMI(q), "precomputed"),
            ValueError,
            "query cannot be given with",
        ),
        (
            lambda: select(x, 5, FacilityLocationMI(q, weights=np.ones(7))),
            ValueError,
            "weights must have shape",
        ),
        (
            lambda: select(x, 5, given=q[:, :9]),
            ValueError,
            "given must have as many features as X: 21, got 9",
        ),
        (lambda: select(x, 5, given=(q, q)), ValueError, "given must be rows of the pool"),
        (
            lambda: select(x @ x.T, 5, similarity="precomputed", given=q),
            ValueError,
            "given cannot be given with a pre",
        ),
        (lambda: Near(q, "0.9"), TypeError, "above must be a similarity"),
        (lambda: Near(q, np.nan), ValueError, "above must be a finite similarity"),
        (lambda: Near(q[0], 0.9), ValueError, "Near.rows must be two-dimensional"),
        (
            lambda: select(x, 5, exclude=Near(q[:, :9], 0.9)),
            ValueError,
            "Near.rows must have as many features as X",
        ),
        (lambda: select(x, 5, exclude=Near(q, -2.0)), ValueError, "nothing is left to choose"),
        (
            lambda: select(x, 5, include=[2], exclude=Near(q, 0.999)),
            ValueError,
            "row 2 is in include, but as close",
        ),
        (lambda: select(x, 5, given=q, memory="10KB"), ValueError, "memory must be at least"),
    ]
    for call, error, message in cases:
        with pytest.raises(error, match=message):
            call()


def test_a_given_row_may_be_close_to_what_bars(rng):
    x = synthetic(rng, 60)
    picks = select(x, 5, given=[2], exclude=Near(x[:5], 0.999), backend="numpy")
    assert picks.base_value > 0 and 2 not in picks.indices


def test_described(rng):
    x = synthetic(rng, 60)
    picks = select(x, 5, FacilityLocationMI(x[:3], 0.5), backend="numpy")
    told = picks.objective
    assert told["name"] == "facility_location_mi" and told["eta"] == 0.5 and told["query"]["shape"] == [3, 21]
