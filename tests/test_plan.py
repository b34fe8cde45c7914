"""The plan: what it says is allocated is what is allocated, and a budget that cannot be met is refused."""

import gc
import json
import re
import tracemalloc

import numpy as np
import pytest

import smartgpu
from smartgpu import (
    Clustered,
    ConcaveOverModular,
    DisparityMin,
    DisparitySum,
    FacilityLocation,
    FeatureBased,
    GraphCut,
    LogDet,
    MaxCoverage,
    Modular,
    ProbabilisticSetCover,
    SaturatedCoverage,
    SumRedundancy,
    evaluate,
    plan,
    rank,
    select,
)
from smartgpu.features import _from_half, prepare
from smartgpu.options import bytes_text, parse_bytes
from smartgpu.similarity import KINDS
from smartgpu.workers import Workers

N, D, K = 4000, 256, 60


@pytest.fixture(scope="module")
def pool() -> np.ndarray:
    """Clusters around a common mean: selections become sparse after some picks."""
    rng = np.random.default_rng(5)
    centres = rng.standard_normal((40, D)) + 0.7
    return (centres[rng.integers(0, 40, N)] + 0.6 * rng.standard_normal((N, D))).astype(np.float32)


def peak(call) -> tuple[object, int]:
    """What a call returns, and the most that it held at one time, in bytes."""
    gc.collect()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        out = call()
        return out, tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()


def matrix(pool: np.ndarray, n: int = 1500) -> np.ndarray:
    x = pool[:n] / np.linalg.norm(pool[:n], axis=1, keepdims=True)
    return x @ x.T


def skewed(pool: np.ndarray) -> np.ndarray:
    s = matrix(pool)
    return s * np.random.default_rng(1).random(s.shape).astype(np.float32)


def sparse(pool: np.ndarray):
    scipy = pytest.importorskip("scipy.sparse")
    s = matrix(pool, 2500)
    return scipy.csr_matrix(np.where(s > np.quantile(s, 0.9), s, 0))


def counted(pool: np.ndarray):
    scipy = pytest.importorskip("scipy.sparse")
    return scipy.csr_matrix(np.maximum(pool - 1.5, 0))


def symmetric(pool: np.ndarray) -> np.ndarray:
    s = matrix(pool)
    return ((s + s.T) / 2).astype(np.float32)


W = np.random.default_rng(2).random(N)
# name -> (pool -> X, pool -> objective, similarity, more arguments)
CASES = {
    "fl": (None, lambda x: FacilityLocation(), "cosine", {}),
    "fl-float16": (lambda x: x.astype(np.float16), lambda x: FacilityLocation(), "cosine", {}),
    "fl-dot-weights": (None, lambda x: FacilityLocation(W), "dot", {}),
    "fl-rbf": (None, lambda x: FacilityLocation(), "rbf", {}),
    "fl-weights-exp": (None, lambda x: FacilityLocation(W), "exp_euclidean", {}),
    "fl-max-minus": (None, lambda x: FacilityLocation(), "max_minus_sqeuclidean", {}),
    "fl-represented": (None, lambda x: FacilityLocation(W, x + 1), "cosine_shifted", {}),
    "fl-represented-squared": (None, lambda x: FacilityLocation(None, x[:900]), "cosine_squared", {}),
    "fl-more-represented": (
        lambda x: x[:900],
        lambda x: FacilityLocation(None, np.concatenate([x, x + 0.5, x - 0.5])),
        "cosine",
        {"k": 30},
    ),
    "fl-three-threads": (None, lambda x: FacilityLocation(), "cosine", {"threads": 3}),
    "fl-given": (None, lambda x: FacilityLocation(), "cosine", {"given": np.arange(1000, 1500)}),
    "fl-coverage": (None, lambda x: FacilityLocation(W), "rbf", {"k": None, "coverage": 0.3}),
    "fl-naive": (None, lambda x: FacilityLocation(), "cosine", {"k": 4, "maximizer": "naive"}),
    "fl-stochastic": (None, lambda x: FacilityLocation(), "cosine", {"maximizer": "stochastic"}),
    "fl-polish-far": (None, lambda x: FacilityLocation(W), "dot", {"polish": 20, "k": 300}),
    "fl-polish-represented": (None, lambda x: FacilityLocation(None, x[:900]), "rbf", {"polish": 20}),
    "gc": (None, lambda x: GraphCut(), "cosine", {}),
    "gc-shifted-represented": (None, lambda x: GraphCut(0.8, x[:900] + 1), "cosine_shifted", {}),
    "gc-rbf": (None, lambda x: GraphCut(), "rbf", {}),
    "gc-squared-far": (None, lambda x: GraphCut(0.9), "cosine_squared", {"k": 600}),
    "gc-given": (None, lambda x: GraphCut(0.2), "rbf", {"given": np.arange(900)}),
    "logdet": (None, lambda x: LogDet(), "cosine", {"k": 500}),
    "logdet-shifted": (None, lambda x: LogDet(0.1), "cosine_shifted", {"k": 300}),
    "logdet-coverage": (None, lambda x: LogDet(), "dot", {"k": None, "coverage": 0.2}),
    "logdet-rbf": (None, lambda x: LogDet(), "rbf", {"k": 150}),
    "logdet-ridgeless": (None, lambda x: LogDet(0.0), "cosine", {"k": 150}),
    "logdet-stochastic": (None, lambda x: LogDet(), "cosine", {"maximizer": "stochastic"}),
    "modular": (None, lambda x: Modular(W), "cosine", {}),
    "qdit": (None, lambda x: 0.7 * FacilityLocation() + 20 * Modular(W), "cosine", {}),
    "mixture": (
        None,
        lambda x: (
            0.5 * FacilityLocation(W) + 0.3 * FacilityLocation(None, x[:900]) + 0.1 * GraphCut() + LogDet()
        ),
        "cosine",
        {},
    ),
    "mixture-rbf": (None, lambda x: FacilityLocation() + GraphCut(0.1) + LogDet(), "rbf", {}),
    "matrix-fl": (matrix, lambda x: FacilityLocation(), "precomputed", {}),
    "csr-fl-polish": (
        lambda x: sparse(x)[:, :1500][:1500],
        lambda x: FacilityLocation(),
        "precomputed",
        {"polish": True},
    ),
    "matrix-gc": (skewed, lambda x: GraphCut(), "precomputed", {"k": 500}),
    "matrix-logdet": (symmetric, lambda x: LogDet(), "precomputed", {}),
    "csr-fl": (sparse, lambda x: FacilityLocation(), "precomputed", {}),
    "csr-oblong": (lambda x: sparse(x)[:700], lambda x: FacilityLocation(W[:700]), "precomputed", {}),
    "csr-gc": (sparse, lambda x: GraphCut(), "precomputed", {}),
    "features": (None, lambda x: FeatureBased(np.abs(x)), "cosine", {}),
    "features-sparse": (counted, lambda x: FeatureBased(None, "log"), "cosine", {}),
    "sets": (counted, lambda x: MaxCoverage(None, 1e-3), "cosine", {}),
    "chances": (None, lambda x: ProbabilisticSetCover(np.abs(x) / 20), "cosine", {}),
    "saturated": (None, lambda x: SaturatedCoverage(), "rbf", {}),
    "csr-saturated": (sparse, lambda x: SaturatedCoverage(0.01), "precomputed", {}),
    "query": (None, lambda x: ConcaveOverModular(x[:20]), "rbf", {}),
    "disparity-sum": (None, lambda x: DisparitySum(), "cosine", {}),
    "disparity-min": (None, lambda x: DisparityMin(), "rbf", {}),
    "matrix-redundancy": (skewed, lambda x: SumRedundancy(), "precomputed", {}),
    "clustered": (None, lambda x: Clustered("facility_location", np.arange(N) % 7), "cosine", {}),
    "matrix-clustered": (matrix, lambda x: Clustered(GraphCut(), np.arange(1500) % 7), "precomputed", {}),
}


@pytest.mark.parametrize("name", CASES)
def test_what_is_held_is_what_was_planned(pool, name):
    make, objective, similarity, more = CASES[name]
    x, objective = pool if make is None else make(pool), objective(pool)
    call = {"k": K, "objective": objective, "similarity": similarity, "threads": 2, **more}
    planned = plan(x, **call)  # also finds the layout of products, which is kept
    assert planned.least <= planned.peak <= planned.memory and planned.least == sum(
        b for _, b in planned.parts
    )
    least, held = peak(lambda: select(x, **call, memory=planned.least))
    assert held <= 1.01 * planned.least, f"held {held:,}, planned {planned.least:,}"
    fixed = dict(planned.parts)["threads, lists"]
    assert held > 0.25 * (planned.least - fixed), (
        f"held {held:,} of {planned.least:,}: the plan says too much"
    )
    roomy, held = peak(lambda: select(x, **call))
    assert held <= 1.01 * planned.peak, f"held {held:,}, planned {planned.peak:,}"
    np.testing.assert_array_equal(least.indices, roomy.indices)
    np.testing.assert_array_equal(least.gains, roomy.gains)
    middle = (planned.least + planned.peak) // 2
    between, held = peak(lambda: select(x, **call, memory=middle))
    assert held <= 1.01 * middle, f"held {held:,}, allowed {middle:,}"
    np.testing.assert_array_equal(between.indices, roomy.indices)


UNHELD = (
    "fl-float16",
    "fl-dot-weights",
    "fl-max-minus",
    "fl-represented",
    "gc",
    "gc-rbf",
    "logdet",
    "logdet-rbf",
)
UNHELD += ("mixture", "saturated", "disparity-min", "clustered")


@pytest.mark.parametrize("name", UNHELD)
def test_features_that_do_not_fit_are_made_when_they_are_asked_for(pool, name):
    make, objective, similarity, more = CASES[name]
    x, objective = pool if make is None else make(pool), objective(pool)
    call = {"objective": objective, "similarity": similarity, "threads": 2, **more, "k": 12}
    every = plan(x, **call)
    planned = plan(x, **call, memory=every.least - 1)
    name = "features of the candidates, a few blocks at a time"
    assert dict(planned.parts)[name] <= 8 * len(x) < dict(every.parts)["features of the candidates"]
    assert planned.least < every.least  # even of so few rows
    few, held = peak(lambda: select(x, **call, memory=planned.least))
    assert held <= 1.01 * planned.least, f"held {held:,}, planned {planned.least:,}"
    whole = select(x, **call)
    np.testing.assert_array_equal(few.indices, whole.indices)
    np.testing.assert_array_equal(few.gains, whole.gains)
    assert few.value == whole.value


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int8])
@pytest.mark.parametrize("kind", [name for name in KINDS if name != "precomputed"])
def test_features_made_again_are_those_made_at_once(rng, kind, dtype):
    x = (9 * rng.standard_normal((700, 400))).astype(dtype)
    x[13] = 0
    rows = x[:90]
    once, again = (prepare(KINDS[kind](), x, rows, Workers(2), hold=hold) for hold in (True, False))
    assert (once.unit, once.gamma) == (again.unit, again.gamma)
    some = rng.permutation(len(x))[:300]
    for part in (slice(None), slice(5, 300), some, 13, 699):
        np.testing.assert_array_equal(again.x[part], once.x[part])
    np.testing.assert_array_equal(again.x.lent(some), once.x[some])
    np.testing.assert_array_equal(again.x.part(slice(100, 600))[3:9], once.x[103:109])
    np.testing.assert_array_equal(again.rows[:], once.rows)


def test_half_precision_is_widened_exactly():
    every = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    every = every[np.isfinite(every)]  # subnormal numbers and both zeros among them
    found = _from_half(every, np.empty(len(every), np.float32))
    np.testing.assert_array_equal(found.view(np.int32), every.astype(np.float32).view(np.int32))


def test_what_is_measured_afterwards_needs_no_features_either(pool):
    x, chosen = pool.astype(np.float16), np.arange(0, N, 80)
    expected, usual = peak(lambda: evaluate(x, chosen, threads=2))
    found, held = peak(lambda: evaluate(x, chosen, threads=2, memory="5MB"))
    assert found == expected and held < usual - x.size


def test_a_budget_that_cannot_be_met_is_refused_first(pool):
    told = []
    for objective in ("facility_location", "graph_cut", "log_det"):
        every = plan(pool, K, objective).least
        least = plan(pool, K, objective, memory=every - 1).least  # with features that are not held
        for call, k in ((select, {"k": K}), (rank, {})):
            with pytest.raises(
                ValueError, match=r"memory must be at least .*B for this selection, got 1.00MB"
            ):
                call(pool, objective=objective, memory="1MB", report=lambda *pick: told.append(pick), **k)
        with pytest.raises(ValueError, match="memory must be at least") as refused:
            select(pool, K, objective, memory=least - 1)
        said = re.search(r"at least (\S+) for", str(refused.value))[1]
        assert parse_bytes(said) >= least
        assert select(pool, K, objective, memory=said).k == K
        with pytest.raises(ValueError, match="memory must be at least"):
            plan(pool, K, objective, memory=least - 1)
    assert not told


def test_bytes_are_read_as_they_are_written(rng):
    for size in [1, 999, 1000, 1001, 999_499, 999_500, 99_950_000, *rng.integers(1, 1 << 50, 300).tolist()]:
        least = parse_bytes(bytes_text(size, up=True).removesuffix(" bytes"))
        assert size <= least <= size * 1.012 + 1
        assert parse_bytes(bytes_text(size).removesuffix(" bytes")) == pytest.approx(size, rel=6e-3)


def test_expected_sweeps_and_time(pool):
    for objective in ("facility_location", "graph_cut", "log_det"):
        planned, sel = plan(pool, 200, objective), select(pool, 200, objective)
        assert planned.sweeps == pytest.approx(sel.sweeps, rel=0.6, abs=0.1)
        took = sum(sel.seconds.values())
        assert took / 8 < planned.seconds < 8 * took + 0.1
    small = pool[:300]
    assert plan(small, 30).sweeps == select(small, 30).sweeps  # the probe is the pool
    every = plan(small)
    assert every.k == 300 and plan(small, coverage=0.5).k == 300
    assert plan(small, 20, given=[1, 2], exclude=np.arange(10, 200)).k == 20
    more = plan(pool, 20, GraphCut(0.3, pool[:50]) + Modular(W), "rbf", exclude=np.arange(3970))
    assert more.sweeps > 0 and more.seconds > 0


def test_longer_selections_take_longer(pool):
    for objective, kind in (("facility_location", "cosine"), ("graph_cut", "cosine"), ("log_det", "rbf")):
        short, long = (plan(np.tile(pool, (reps, 1)), 0.05, objective, kind) for reps in (1, 4))
        assert long.seconds > 1.5 * short.seconds and long.least > 1.5 * short.least


def test_printed(pool, capsys):
    planned = plan(pool, K, memory="300MB")
    lines = str(planned).splitlines()
    assert lines[0] == f"{K} of {N} rows by facility_location on cosine (backend numpy)"
    assert any(line.split() == ["features", "of", "the", "candidates", "4.10MB"] for line in lines)
    assert len({len(line) for line in lines[1:-1]}) == 1  # a table
    assert "memory=300MB" in lines[-2] and re.fullmatch(
        r"  about \S+ s, \S+ sweeps over all pairs", lines[-1]
    )
    assert str(plan(pool, K, "graph_cut")).endswith("no sweep over all pairs")
    capsys.readouterr()
    for call in (lambda **how: select(pool[:500], 5, **how), lambda **how: rank(pool[:500], **how)):
        picks = call()
        assert capsys.readouterr() == ("", "")
        again = call(plan=True)
        out, err = capsys.readouterr()
        assert out == "" and err.startswith(f"{picks.k} of 500 rows by") and "must be there" in err
        np.testing.assert_array_equal(picks.indices, again.indices)
    with pytest.raises(ValueError, match="plan is for backends 'numpy' and 'triton'"):
        select(pool[:50], 5, backend="reference", plan=True)
    with pytest.raises(ValueError, match="plan is for backends 'numpy' and 'triton'"):
        plan(pool[:50], 5, backend="reference")


def test_command_line(pool, tmp_path, monkeypatch, capsys):
    pytest.importorskip("pyarrow")
    from smartgpu import cli

    monkeypatch.chdir(tmp_path)
    np.save("pool.npy", pool[:700])

    def run(*arguments):
        capsys.readouterr()
        return cli.main([str(a) for a in arguments]), *capsys.readouterr()

    status, out, err = run("plan", "pool.npy", "-k", 20, "--objective", "graph_cut", "--out", "anywhere")
    assert (status, err) == (0, "") and out.startswith("20 of 700 rows by graph_cut") and "no sweep" in out
    assert not (tmp_path / "anywhere").exists()
    status, out, _ = run("plan", "pool.npy", "--sizes", "0.1", "50", "--json")
    planned = json.loads(out)
    assert (
        status == 0 and planned["k"] == 70 and planned["least"] == sum(p["bytes"] for p in planned["parts"])
    )
    assert json.loads(run("plan", "pool.npy", "--json")[1])["k"] == 700  # of rank
    status, out, err = run("select", "pool.npy", "-k", 20, "--out", "out", "--plan", "-q")
    assert status == 0 and "must be there" in err and "must be there" not in out
    for command in (("plan",), ("select", "--out", "small")):
        status, _, err = run(*command, "pool.npy", "-k", 20, "--memory", "1MB")
        assert status == 2 and "memory must be at least" in err and "got 1.00MB" in err
    assert not (tmp_path / "small").exists() or not any((tmp_path / "small").iterdir())
    assert smartgpu.plan is plan
