"""Sieve-streaming and threshold greedy against their definitions, row by row; memory, cuts, samples, bad input."""

import itertools
import math
import pickle
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from oracle import N, synthetic, with_copies

import smartgpu
from smartgpu import (
    Cosine,
    FacilityLocation,
    FeatureBased,
    GraphCut,
    LogDet,
    MaxCoverage,
    Modular,
    Quotas,
    SieveStreaming,
    cli,
    evaluate,
    reference,
    select,
    select_stream,
)
from smartgpu.sieve.sample import Sample
from smartgpu.sieve.sieves import counts, exponent
from smartgpu.sieve.stream import BLOCK
from smartgpu.similarity import as_similarity

K = 9
CPU = {"backend": "numpy", "threads": 1}


def pieces(x, rng, most=90):
    """x cut into batches of up to so many rows."""
    at = 0
    while at < len(x):
        size = int(rng.integers(1, most))
        yield x[at : at + size]
        at += size


def fed(sieve, x, rng=None, most=90):
    for batch in [x] if rng is None else pieces(x, rng, most):
        sieve.update(batch)
    return sieve


def by_definition(x, k, epsilon, kind, spec):
    """Sieve-streaming++ one row at a time, every f from the definition: the rows of the best set found."""
    problem = reference.Problem(x, as_similarity(kind), spec)
    sets, top, best, found = {}, 0.0, [], 0.0
    for j in range(len(x)):
        top = max(top, problem.value([j]))
        least = max(found, top) / (2 * k * (1 + epsilon))
        if not least:
            continue
        low, high = (math.log(v) / math.log1p(epsilon) for v in (least, top))
        sets = {i: sets.get(i, []) for i in range(math.ceil(low - 1e-12), math.floor(high + 1e-12) + 1)}
        grown = []
        for i, chosen in sets.items():
            before = problem.value(chosen) if chosen else 0.0
            if len(chosen) < k and problem.value([*chosen, j]) - before >= (1 + epsilon) ** i:
                chosen.append(j)
                grown.append((problem.value(chosen), i))
        for value, i in sorted(grown, key=lambda pair: pair[1]):
            if value > found:
                found, best = value, list(sets[i])
    return best, found


STREAMS = {
    "fl": (lambda rows: FacilityLocation(represented=rows), "cosine"),
    "fl-weights": (lambda rows: FacilityLocation(np.linspace(0.1, 3, len(rows)), rows), "cosine_shifted"),
    "fl-rbf": (lambda rows: FacilityLocation(represented=rows), "rbf"),
    "fl-dot": (lambda rows: FacilityLocation(represented=rows), "dot"),
    "gc": (lambda rows: GraphCut(0.3, rows), "cosine_shifted"),
    "logdet": (lambda rows: LogDet(1.0), "cosine"),
    "logdet-rbf": (lambda rows: LogDet(2.0), "rbf"),
    "features": (lambda rows: FeatureBased(weights=np.arange(rows.shape[1])), "cosine"),
    "max coverage": (lambda rows: MaxCoverage(threshold=6.0), "cosine"),
}


def stream(name, rng, n=N):
    x, (make, kind) = synthetic(rng, n), STREAMS[name]
    x = np.abs(x) if name in ("features", "max coverage") else x
    return x, make(x[:: n // 70]), kind


# -- sieves ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("epsilon", [0.05, 0.3])
@pytest.mark.parametrize("name", STREAMS)
def test_sets_are_those_of_the_definition(rng, name, epsilon):
    x, spec, kind = stream(name, rng, 160)
    rows, value = by_definition(x, K, epsilon, kind, spec)
    sieve = fed(SieveStreaming(K, spec, kind, epsilon=epsilon, **CPU), x, rng, 40)
    found = sieve.result(refine=False)
    assert found.indices.tolist() == rows
    assert found.value == pytest.approx(value, rel=1e-5)


@pytest.mark.parametrize("name", [*STREAMS, "sample"])
def test_the_cuts_of_the_stream_change_nothing_and_gains_add_up(rng, name):
    if name == "sample":
        x, spec, kind, n = synthetic(rng, 3000), FacilityLocation(), "cosine", 3000
    else:
        x, spec, kind = stream(name, rng)
        n = N
    how = {"reservoir": 150, "seed": 3, **CPU}
    ways = [
        fed(SieveStreaming(K, spec, kind, **how), x, cut, 700 if n > N else 90) for cut in (None, rng, rng)
    ]
    if name == "sample":
        spec = replace(spec, represented=ways[0].represented)
    problem = reference.Problem(x, as_similarity(kind), spec)
    for refine in (False, True):
        first, *others = [way.result(refine) for way in ways]
        assert all(other.indices.tolist() == first.indices.tolist() for other in others)
        assert first.value == first.gains.sum() and first.n == n and not first.exact
        assert first.value == pytest.approx(problem.value(first.indices), rel=2e-5)
        assert first.objective == spec.describe() and first.options["maximizer"] == "sieve"
    assert ways[0].result().value >= ways[0].result(refine=False).value
    assert ways[0].result().k == K


@pytest.mark.parametrize("order", ["as it is", "by similarity", "backwards"])
@pytest.mark.parametrize("k", [1, 2, 4])
def test_half_of_the_best_possible(rng, k, order):
    """Against the true optimum, whatever the order of the rows."""
    x = synthetic(rng, 15, 6)
    along = np.argsort(x @ x[0])
    x = x[{"as it is": np.arange(15), "by similarity": along, "backwards": along[::-1]}[order]]
    for spec in (FacilityLocation(represented=x), LogDet(1.0), FeatureBased()):
        pool = np.abs(x) if spec.name == "feature_based" else x
        problem = reference.Problem(pool, Cosine(), spec)
        best = max(problem.value(list(rows)) for rows in itertools.combinations(range(15), k))
        for epsilon in (0.01, 0.2):
            found = fed(SieveStreaming(k, spec, epsilon=epsilon, **CPU), pool).result(refine=False)
            assert found.value >= (0.5 - epsilon) * best


def test_on_a_large_pool_it_comes_near_greedy(rng):
    x = with_copies(synthetic(rng, 4000), rng)
    sieve = fed(SieveStreaming(40, reservoir=400, **CPU), x, rng, 900)
    offline = select(x, 40, FacilityLocation(represented=sieve.represented), **CPU)
    pure, refined = sieve.result(refine=False), sieve.result()
    assert 0.8 * offline.value < pure.value < refined.value
    assert refined.value > 0.97 * offline.value
    assert len(np.unique(refined.indices)) == 40
    # on the whole pool too, though only a tenth of it was represented
    whole = select(x, 40, **CPU).value
    assert evaluate(x, refined.indices, **CPU).value > 0.95 * whole


def test_what_is_worth_nothing_is_chosen_only_by_greedy():
    zeros = np.zeros((30, 4), np.float32)
    sieve = fed(SieveStreaming(3, reservoir=10, **CPU), zeros)
    assert sieve.result(refine=False).k == 0 and sieve.result(refine=False).value == 0
    assert sieve.result().k == 3 and sieve.result().value == 0
    one = np.concatenate([zeros, np.eye(4, dtype=np.float32)[:1], zeros])
    found = SieveStreaming(2, FacilityLocation(represented=np.eye(4)), **CPU).update(one).result(refine=False)
    assert found.indices.tolist() == [30] and found.value == 1


def test_a_stream_that_the_sample_holds_is_chosen_from_by_greedy_itself(rng):
    x = synthetic(rng, 300)
    sieve = fed(SieveStreaming(K, reservoir=300, **CPU), x[:200], rng)
    for n in (200, 299, 300):
        if sieve.seen < n:
            sieve.update(x[sieve.seen : n])
        greedy = select(x[:n], K, **CPU)
        found = sieve.result()
        assert found.indices.tolist() == greedy.indices.tolist()
        assert found.gains.tolist() == greedy.gains.tolist()
        sets = by_definition(x[:n], K, 0.1, "cosine", FacilityLocation())[0]
        assert sieve.result(refine=False).indices.tolist() == sets


def test_what_the_sets_are_worth_follows_the_sample(rng):
    """After every change of the sample, f of each set is that on the rows which are represented now."""
    x, sieve, changes = synthetic(rng, 4 * BLOCK), SieveStreaming(K, reservoir=100, **CPU), 0
    before = None
    for batch in pieces(x, rng, BLOCK // 2):
        sieve.update(batch)
        rows = sieve.represented
        if before is not None and len(before) == len(rows) == 100:
            changes += not np.array_equal(before, rows)
        before = rows
        if len(rows) < 100:
            continue
        problem = reference.Problem(x, Cosine(), FacilityLocation(represented=rows))
        sets = [*sieve._sieves.alive.values(), sieve._sieves.best]
        assert all(s.value == pytest.approx(problem.value(s.keys), rel=1e-5) for s in sets)
    assert changes == 3
    assert sieve.result(refine=False).value == pytest.approx(
        problem.value(sieve.result(refine=False).indices)
    )


def test_the_sample_is_uniform_and_does_not_depend_on_cuts():
    n, size, seeds = 60, 12, 400
    x, hits = np.arange(n, dtype=np.float32)[:, None], np.zeros(n)
    for seed in range(seeds):
        ways = []
        for step in (n, 7):
            sample, at = Sample(size, np.random.default_rng(seed)), 0
            for start in range(0, n, step):
                batch = x[start : start + step]
                at = 0 if sample.full else sample.add(batch, np.arange(len(batch)), start)
                sample.draw(batch[at:], np.arange(len(batch))[at:], start + at)
            sample.settle()
            ways.append(sample.rows[:, 0])
            assert sample.keys == ways[-1].tolist()
        assert np.array_equal(*ways) and len(np.unique(ways[0])) == size
        hits[ways[0].astype(int)] += 1
    expected = seeds * size / n
    assert (
        np.square(hits - expected).sum() / (expected * (1 - size / n)) < 110
    )  # chi-squared, 59 degrees: 1e-4


def test_ids_name_the_rows(rng):
    x, ids = synthetic(rng), rng.permutation(10**12 + np.arange(N))
    for how in ({"reservoir": 80}, {"represented": x[:50]}):
        plain, named = (SieveStreaming(K, **how, **CPU) for _ in range(2))
        for i in range(0, N, 100):
            plain.update(x[i : i + 100])
            named.update(x[i : i + 100], ids[i : i + 100])
        for refine in (True, False):
            found = plain.result(refine)
            assert named.result(refine).indices.tolist() == ids[found.indices].tolist()
            assert np.array_equal(named.rows(named.result(refine)), x[found.indices])
    with pytest.raises(ValueError, match="is not held any more"):
        named.rows(replace(found, indices=np.array([-1])))
    few = SieveStreaming(3, **CPU).update(x[:20], ids[:20])
    assert np.array_equal(
        few.rows(few.result()), x[:20][[ids.tolist().index(j) for j in few.result().indices]]
    )
    batches = [(ids[i : i + 64], x[i : i + 64]) for i in range(0, N, 64)]
    by_function = select_stream(iter(batches), K, represented=x[:50], **CPU)
    assert by_function.indices.tolist() == named.result().indices.tolist()
    assert select_stream(pieces(x, rng), K, "log_det", **CPU).k == K


def test_a_pickled_stream_goes_on(rng, tmp_path):
    x = synthetic(rng, 1200)
    whole = fed(SieveStreaming(K, reservoir=100, **CPU), x)
    first = fed(SieveStreaming(K, reservoir=100, **CPU), x[:700])
    second = fed(pickle.loads(pickle.dumps(first)), x[700:])
    assert second.result().indices.tolist() == whole.result().indices.tolist()
    assert second.seen == 1200 and first.seen == 700
    saved = second.result()
    path = saved.save(tmp_path / "stream.npz")
    assert smartgpu.Selection.load(path).indices.tolist() == saved.indices.tolist()
    with pytest.raises(ValueError, match="a prefix of a sieve selection"):
        saved.prefix(2)


@pytest.mark.parametrize("k,epsilon", [(1, 0.4), (5, 0.1), (100, 0.03), (7, 0.25)])
def test_thresholds_and_what_their_sets_hold(k, epsilon):
    """At most one count for each threshold from f / (2 k (1 + epsilon)) to f, |S| threshold <= f, whatever f is."""
    sizes = counts(k, epsilon)
    for found in np.exp(np.linspace(0, np.log1p(epsilon), 7)):
        low = exponent(found / (2 * k * (1 + epsilon)), epsilon, up=True)
        high = exponent(found, epsilon, up=False)
        ours = [min(k, int(found / (1 + epsilon) ** i)) for i in range(low, high + 1)]
        assert len(ours) <= len(sizes) and all(a <= b for a, b in zip(ours, sizes, strict=False))
    for value in (1e-9, 0.3, 1.0, (1 + epsilon) ** 5, 1e12):
        up, down = exponent(value, epsilon, up=True), exponent(value, epsilon, up=False)
        assert (1 + epsilon) ** (up - 1) < value <= (1 + epsilon) ** up
        assert (1 + epsilon) ** down <= value < (1 + epsilon) ** (down + 1)


@pytest.mark.parametrize("name", ["sample", "fl", "logdet", "features"])
def test_memory_is_planned_and_does_not_grow_with_the_stream(name):
    """Batches made on the way; tracemalloc sees every array. The peak of 16 times the rows is that of the first."""
    rng, d, k, peaks = np.random.default_rng(5), 24, 12, []
    centres = rng.standard_normal((30, d)).astype(np.float32)

    def batch():
        out = centres[rng.integers(0, 30, 256)] + 0.5 * rng.standard_normal((256, d), np.float32)
        return np.abs(out) if name == "features" else out

    spec = {"sample": FacilityLocation(), "logdet": LogDet(), "features": FeatureBased()}
    spec = spec.get(name) or FacilityLocation(represented=batch())
    sieve = SieveStreaming(k, spec, reservoir=200, **CPU)
    sieve.update(batch())
    sieve.result()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    try:
        for batches in (8, 24, 96):  # up to 2,048, 8,192 and 32,768 rows
            tracemalloc.reset_peak()
            for _ in range(batches):
                sieve.update(batch())
                assert sieve.held_bytes < sieve.planned_bytes(d)
            peaks.append(tracemalloc.get_traced_memory()[1] - before)
    finally:
        tracemalloc.stop()
    assert max(peaks) < sieve.planned_bytes(d)
    assert peaks[2] < 1.25 * max(peaks[:2])
    sizes = [k] * len(counts(k, 0.1)) if name == "sample" else counts(k, 0.1)
    assert len(sieve._held) <= sum(sizes) + k and len(sieve._sieves.alive) <= len(sizes)


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("name", ["fl", "gc", "logdet", "sample"])
def test_on_the_device_the_sets_are_those_of_the_cpu(rng, name):
    pytest.importorskip("torch")
    x = synthetic(rng, 60, 9)
    spec, kind = {
        "fl": (FacilityLocation(represented=x[:25]), "cosine"),
        "gc": (GraphCut(0.3, x[:25]), "rbf"),
        "logdet": (LogDet(), "cosine"),
        "sample": (FacilityLocation(), "cosine"),
    }[name]
    runs = []
    for how in ({"backend": "numpy"}, {"backend": "triton", "precision": "ieee"}):
        sieve = SieveStreaming(5, spec, kind, reservoir=25, epsilon=0.3, **how)
        for i in range(0, 60, 30):
            sieve.update(x[i : i + 30])
        runs.append([sieve.result(refine=refine) for refine in (True, False)])
        assert runs[-1][0].backend == how["backend"]
    for ours, theirs in zip(*runs, strict=True):
        assert ours.indices.tolist() == theirs.indices.tolist()
        np.testing.assert_allclose(ours.gains, theirs.gains, rtol=2e-5)


X = np.random.default_rng(1).standard_normal((40, 6)).astype(np.float32)
BAD = {
    "k": (ValueError, lambda: SieveStreaming(0), "k must be at least 1"),
    "k type": (TypeError, lambda: SieveStreaming(2.5), "k must be an integer"),
    "epsilon": (ValueError, lambda: SieveStreaming(2, epsilon=0.5), r"epsilon must lie in \(0, 0.5\)"),
    "epsilon type": (TypeError, lambda: SieveStreaming(2, epsilon="x"), "epsilon must be a number"),
    "reservoir": (ValueError, lambda: SieveStreaming(2, reservoir=0), "reservoir must be at least 1"),
    "seed": (ValueError, lambda: SieveStreaming(2, seed=-1), "seed must lie in"),
    "backend": (ValueError, lambda: SieveStreaming(2, backend="cuda"), "unknown backend"),
    "reference": (ValueError, lambda: SieveStreaming(2, backend="reference"), "streams are not for it"),
    "precision": (ValueError, lambda: SieveStreaming(2, backend="numpy", precision="fp16"), "precision is for"),
    "precomputed": (ValueError, lambda: SieveStreaming(2, similarity="precomputed"), "depends on all rows"),
    "max minus": (ValueError, lambda: SieveStreaming(2, similarity="max_minus_sqeuclidean"), "depends on all"),
    "graph cut": (ValueError, lambda: SieveStreaming(2, "graph_cut"), "needs represented"),
    "modular": (ValueError, lambda: SieveStreaming(2, Modular([1.0])), "no form for streams"),
    "features": (ValueError, lambda: SieveStreaming(2, FeatureBased(np.ones((3, 2)))), "leave features out"),
    "lam": (ValueError, lambda: SieveStreaming(2, LogDet(0.0)), "needs lam > 0"),
    "twice": (ValueError, lambda: SieveStreaming(2, GraphCut(0.4, X), represented=X), "given twice"),
    "represented": (ValueError, lambda: SieveStreaming(2, "log_det", represented=X), "represented is for"),
    "weights": (ValueError, lambda: SieveStreaming(2, FacilityLocation(np.ones(3))), "give represented too"),
    "weights length": (
        ValueError, lambda: SieveStreaming(2, FacilityLocation(np.ones(3)), represented=X), "weights must have shape"
    ),
    "width of represented": (
        ValueError, lambda: SieveStreaming(2, represented=X[:, :4]).update(X), "as many features as represented, 4"
    ),
    "negative features": (ValueError, lambda: SieveStreaming(2, FeatureBased()).update(X), "X must be >= 0"),
    "batch": (ValueError, lambda: select_stream([X[0]], 2), "two-dimensional"),
    "few": (ValueError, lambda: select_stream([X[:1]], 2), "k is 2, but the stream had 1 rows"),
    "nothing": (ValueError, lambda: select_stream([], 2), "k is 2, but the stream had 0 rows"),
    "refine": (TypeError, lambda: SieveStreaming(2).update(X).result(refine=3), "refine must be True or False"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments(name):
    error, call, match = BAD[name]
    with pytest.raises(error, match=match):
        call()


@pytest.mark.parametrize("how", [{"reservoir": 10}, {"represented": X[:9]}, {"reservoir": 100}])
def test_a_bad_batch_changes_nothing(how):
    sieve = SieveStreaming(3, **how, **CPU).update(X)
    before = pickle.dumps(sieve)
    nan = X.copy()
    nan[3, 2] = np.nan
    bad = [
        (ValueError, (X[:, :5],), "as many features as the batches before, 6, got 5"),
        (ValueError, (X.astype(np.float64),), "the dtype of the batches before, float32, got float64"),
        (ValueError, (X.astype(np.int32),), "the dtype of the batches before, float32, got int32"),
        (ValueError, (nan,), "the first in row 3"),
        (ValueError, (X[:0],), "empty"),
        (ValueError, (X, np.arange(3)), r"ids must have shape \(40,\)"),
        (ValueError, (X, np.zeros(40, int)), "ids must not repeat"),
        (TypeError, (X, np.ones(40)), "ids must be integers"),
        (TypeError, (X, ["a"] * 40), "ids must be integers"),
    ]
    for error, arguments, match in bad:
        with pytest.raises(error, match=match):
            sieve.update(*arguments)
        assert pickle.dumps(sieve) == before


# -- threshold greedy -----------------------------------------------------------------------------------------------


def threshold_by_definition(x, k, kind, spec, epsilon, low=True):
    """Each threshold one pass over all rows, every gain from the definition."""
    problem = reference.Problem(x, as_similarity(kind), spec)
    order = range(len(x)) if low else range(len(x) - 1, -1, -1)
    chosen, value, first = [], 0.0, max(problem.value([j]) for j in order)
    grid = itertools.takewhile(
        lambda w: w >= epsilon * first / len(x), (first * (1 - epsilon) ** i for i in itertools.count())
    )
    for w in [*grid, 0.0]:
        for j in order:
            if len(chosen) < k and j not in chosen:
                grown = problem.value([*chosen, j])
                if grown - value >= w - 1e-12 * first:
                    chosen, value = [*chosen, j], grown
    return chosen


THRESHOLD = {
    "fl": (lambda x, rng: FacilityLocation(), "cosine"),
    "fl-rbf": (lambda x, rng: FacilityLocation(rng.random(len(x))), "rbf"),
    "gc": (lambda x, rng: GraphCut(0.4), "cosine_shifted"),
    "logdet": (lambda x, rng: LogDet(1.0), "cosine"),
    "qdit": (lambda x, rng: 0.7 * FacilityLocation() + 5 * Modular(rng.random(len(x))), "cosine"),
    "features": (lambda x, rng: FeatureBased(), "cosine"),
}


@pytest.mark.parametrize("tie_break", ["low", "high"])
@pytest.mark.parametrize("name", THRESHOLD)
def test_threshold_is_the_definition(rng, name, tie_break):
    x, (make, kind) = np.abs(synthetic(rng, 70, 8)), THRESHOLD[name]
    spec = make(x, rng)
    rows = threshold_by_definition(x, 8, kind, spec, 0.15, tie_break == "low")
    how = {"maximizer": "threshold", "epsilon": 0.15, "tie_break": tie_break, "backend": "numpy"}
    found = select(x, 8, spec, kind, **how)
    assert found.indices.tolist() == rows and not found.exact
    assert select(x, 3, spec, kind, **how).indices.tolist() == rows[:3]  # thresholds do not know k
    assert found.prefix(3).indices.tolist() == rows[:3]


@pytest.mark.parametrize("epsilon", [0.5, 0.1, 0.001])
def test_threshold_stays_within_epsilon_of_greedy(rng, epsilon):
    """Every pick has at least 1 - epsilon of the largest gain there is, on copies too; memory changes nothing."""
    x = with_copies(synthetic(rng, 700), rng)
    found = select(x, 60, maximizer="threshold", epsilon=epsilon, backend="numpy")
    problem, chosen = reference.Problem(x, Cosine(), FacilityLocation()), []
    for j, gain in zip(found.indices[:25].tolist(), found.gains, strict=False):
        most = problem.gains(chosen).max()
        assert gain >= (1 - epsilon) * most * (1 - 1e-6)
        chosen.append(j)
    exact = select(x, 60, backend="numpy")
    assert found.value >= (1 - math.exp(-1) - epsilon) * exact.value / (1 - math.exp(-1))
    assert (
        found.value > (0.99 if epsilon < 0.5 else 0.97) * exact.value
        and len(set(found.indices.tolist())) == 60
    )
    least = smartgpu.plan(x, 60, backend="numpy").least
    tight = select(x, 60, maximizer="threshold", epsilon=epsilon, backend="numpy", memory=least)
    assert tight.indices.tolist() == found.indices.tolist() and tight.gains.tolist() == found.gains.tolist()


def test_threshold_keeps_to_limits(rng):
    x, groups, cost = synthetic(rng), rng.integers(0, 4, N), rng.integers(1, 9, N)
    how = {"maximizer": "threshold", "epsilon": 0.05, "backend": "numpy"}
    found = select(x, 20, quotas=Quotas(groups, maximum=5), **how)
    assert np.bincount(groups[found.indices]).tolist() == [5] * 4
    paid, exact = (select(x, budget=60, cost=cost, **h) for h in (how, {"backend": "numpy"}))
    assert cost[paid.indices].sum() <= 60 and paid.value > 0.98 * exact.value
    given = select(x, 10, given=[3, 5], exclude=np.arange(100, 300), include=[7], **how)
    assert given.indices[0] == 7 and not set(given.indices.tolist()) & {3, 5, *range(100, 300)}
    problem = reference.Problem(x, Cosine(), FacilityLocation())
    assert given.value == pytest.approx(problem.value([3, 5, *given.indices.tolist()]), rel=1e-6)
    everything = select(x, N, maximizer="threshold", backend="numpy")
    assert sorted(everything.indices.tolist()) == list(range(N))


def test_threshold_evaluates_less_than_naive(rng):
    x = synthetic(rng, 2000)
    found = select(x, 100, maximizer="threshold", epsilon=0.1, backend="numpy")
    assert (
        found.evaluations < 10 * 2000
    )  # naive: 100 * 2000; the bound: n / epsilon log(n / epsilon) = 200,000


def test_threshold_refuses_what_it_cannot_keep(rng, tmp_path):
    x = synthetic(rng, 50)
    with pytest.raises(ValueError, match="the thresholds of 'threshold'"):
        select(x, 3, maximizer="threshold", backend="numpy", checkpoint=tmp_path / "c.npz")
    with pytest.raises(ValueError, match="maximizer 'threshold' is not for it"):
        select(x, 3, maximizer="threshold", backend="reference")
    with pytest.raises(ValueError, match=r"epsilon must lie in \(0, 1\)"):
        select(x, 3, maximizer="threshold", epsilon=1.0)


def test_threshold_on_the_command_line(rng, tmp_path):
    x = synthetic(rng, 80)
    np.save(tmp_path / "x.npy", x)
    words = f"select {tmp_path / 'x.npy'} -k 7 --maximizer threshold --epsilon 0.2 --out {tmp_path / 'out'}"
    assert cli.main(words.split()) == 0
    found = smartgpu.Selection.load(tmp_path / "out" / "selection.npz")
    assert found.indices.tolist() == select(x, 7, maximizer="threshold", epsilon=0.2).indices.tolist()
    assert found.options["maximizer"] == "threshold" and not found.exact
