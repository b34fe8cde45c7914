"""smartgpu.compat.apricot: the same answers as apricot-select 0.6.1, by running it; what is right or refused here."""

import functools
import importlib
import inspect
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT

import smartgpu
from smartgpu import compat
from smartgpu.compat import apricot as ours

GRAPH = (
    "FacilityLocationSelection",
    "GraphCutSelection",
    "SaturatedCoverageSelection",
    "SumRedundancySelection",
)
FEATURES = ("FeatureBasedSelection", "MaxCoverageSelection")
SELECTORS = (*GRAPH, *FEATURES, "MixtureSelection", "CustomSelection", "CustomGraphSelection")
MODULES = "facilityLocation graphCut saturatedCoverage sumRedundancy featureBased maxCoverage".split()
EXACT = ("naive", "lazy", "two-stage")
OPTIMIZERS = tuple(ours.optimizers.OPTIMIZERS)
COMPILED = tuple(
    f"calculate_gains{form}" for form in ("", "_sparse", "_sieve", "_sieve_sparse")
)  # what it compiles anew for every fit


@pytest.fixture(scope="module")
def peer():
    """apricot, which compiles its kernels once, and for one thread: the same code and numbers, in less time."""
    found = pytest.importorskip(
        "apricot", reason="needs apricot-select, to compare with (pip install 'smartgpu[bench]')"
    )
    patch = pytest.MonkeyPatch()
    for name in MODULES:
        module = importlib.import_module(f"apricot.functions.{name}")
        for maker in COMPILED:
            if hasattr(module, maker):
                patch.setattr(module, maker, _once(getattr(module, maker)))
    yield found
    patch.undo()


def _once(make):
    if "sieve" in make.__name__:  # compiled there for every fit, and used by none of these
        return lambda *arguments: None

    @functools.cache
    def made(*arguments):
        return make(*arguments[:-3], False, *arguments[-2:])  # ..., parallel, fastmath, cache

    return made


@functools.cache
def data():
    """(x of any sign, features >= 0, symmetric kernel >= 0, costs), without ties."""
    rng = np.random.default_rng(0)
    x, plus = rng.standard_normal((120, 8)), rng.gamma(1, 1, (120, 8))
    kernel = np.abs(rng.standard_normal((120, 120)))
    return x, plus, kernel + kernel.T, rng.uniform(0.5, 3, 120)


def pool_of(name):
    return data()[1] if name in FEATURES else data()[0]


def make(library, name, k=12, **arguments):
    """A selector, for both libraries alike: max coverage with a threshold that is not reached at once."""
    if name == "MaxCoverageSelection":
        arguments.setdefault("threshold", 60.0)
    return getattr(library, name)(k, **arguments)


def kernel_of(peer, X, metric):
    return importlib.import_module("apricot.utils")._calculate_pairwise_distances(X, metric=metric)


def follows(theirs, matrix, got, cost=None, total=np.inf, tol=2e-6):
    """Each of our picks is the best there is by their own gains at that prefix, to rounding, and gains what they say.

    Their selector is fitted, so that all of its parts are there, and begun anew; matrix is what it computes with.
    """
    theirs._initialize(matrix)
    cost = np.ones(matrix.shape[0]) if cost is None else cost
    assert len(set(got.ranking.tolist())) == len(got.ranking)
    left, scale = total, 1e-3
    for t, (j, gain) in enumerate(zip(got.ranking.tolist(), got.gains.tolist(), strict=True)):
        gains = theirs._calculate_gains(matrix)
        scale = max(scale, np.abs(gains).max())
        at = int(np.flatnonzero(theirs.idxs == j)[0])
        assert abs(gains[at] - gain) <= tol * scale, f"pick {t}: {j} gains {gains[at]} there, {gain} here"
        rates = np.where(cost[theirs.idxs] <= left + 1e-9, gains / cost[theirs.idxs], -np.inf)
        assert rates[at] >= rates.max() - tol * scale / cost.min(), f"pick {t}: {j} is not the best there"
        theirs._select_next(matrix[j], gains[at], j)
        left -= cost[j]
    assert left < total or total == np.inf


def same(want, got, tol=2e-6):
    assert got.ranking.tolist() == want.ranking.tolist()
    np.testing.assert_allclose(got.gains, want.gains, rtol=0, atol=tol * np.abs(want.gains).max())


# -- against apricot ----------------------------------------------------------------------------------------------


def test_signatures(peer):
    """Every constructor and method: names, order, defaults."""
    pairs = [
        (getattr(peer, name), getattr(ours, name))
        for name in (*SELECTORS, "BaseSelection", "BaseGraphSelection")
    ]
    there = importlib.import_module("apricot.optimizers")
    assert list(there.OPTIMIZERS) == list(OPTIMIZERS)
    pairs += [(there.OPTIMIZERS[name], cls) for name, cls in ours.optimizers.OPTIMIZERS.items()]
    for theirs, mine in pairs:
        assert theirs.__name__ == mine.__name__
        methods = ["__init__"] + (
            "fit fit_transform transform partial_fit".split() if hasattr(theirs, "fit") else []
        )
        for method in methods:
            want, got = (inspect.signature(getattr(cls, method)).parameters for cls in (theirs, mine))
            assert list(want) == list(got), f"{theirs.__name__}.{method}"
            for each in want:
                assert want[each].default == got[each].default, f"{theirs.__name__}.{method}({each})"


@pytest.mark.parametrize(
    "metric", ["euclidean", "cosine", "corr", "manhattan", "sqeuclidean", "chebyshev", "precomputed"]
)
@pytest.mark.parametrize("name", GRAPH)
def test_metrics(peer, name, metric):
    X = data()[2] if metric == "precomputed" else data()[0]
    theirs = make(peer, name, metric=metric, optimizer="naive").fit(X)
    got = make(ours, name, metric=metric, optimizer="naive").fit(X)
    same(theirs, got)
    follows(theirs, kernel_of(peer, X, theirs.metric), got)
    np.testing.assert_array_equal(got.subset, theirs.subset)
    np.testing.assert_array_equal(got.mask, theirs.mask)
    np.testing.assert_array_equal(got.idxs, theirs.idxs)
    np.testing.assert_array_equal(got.transform(X), theirs.transform(X))


@pytest.mark.parametrize("optimizer", [*EXACT, "modular", "stochastic", "sample"])
@pytest.mark.parametrize("name", [*GRAPH, *FEATURES])
def test_optimizers(peer, name, optimizer):
    """The same picks, also where they draw: from the same random_state. Features and alphas keep gains above 0."""
    if (name, optimizer) == ("SumRedundancySelection", "modular"):
        pytest.skip("all rows are equal there, and it takes the last ones")
    X, more = pool_of(name), {"alpha": 0.5} if name.startswith("Saturated") else {}
    want = make(peer, name, optimizer=optimizer, random_state=3, **more).fit(X)
    same(want, make(ours, name, optimizer=optimizer, random_state=3, **more).fit(X))


@pytest.mark.parametrize("name", ["GraphCutSelection", *FEATURES])
def test_greedi(peer, name):
    X = pool_of(name)
    for kwds in ({}, {"m": 4, "l": 6}):
        if kwds and name == "GraphCutSelection":  # which drops optimizer_kwds there
            continue
        want = make(peer, name, optimizer="greedi", random_state=3, optimizer_kwds=kwds).fit(X)
        same(want, make(ours, name, optimizer="greedi", random_state=3, optimizer_kwds=kwds).fit(X))


@pytest.mark.parametrize("name", [*GRAPH, *FEATURES])
def test_sample_cost(peer, name):
    """By gain / cost, within the budget; gains are not divided. SumRedundancy's are below 0, and it goes on."""
    X, cost = pool_of(name), data()[3]
    more = {"alpha": 0.5} if name.startswith("Saturated") else {}
    want = make(peer, name, optimizer="naive", **more).fit(X, sample_cost=cost)
    for optimizer in EXACT:
        got = make(ours, name, optimizer=optimizer, **more).fit(X, sample_cost=cost)
        same(want, got)
        assert cost[got.ranking].sum() <= 12


@pytest.mark.parametrize("name", [*GRAPH, *FEATURES])
def test_initial_subset(peer, name):
    X = pool_of(name)
    subsets = [[3, 9, 50], np.arange(len(X)) % 17 == 0, *([X[:3] * 1.1] if name in FEATURES else [])]
    for initial in subsets:
        want = make(peer, name, optimizer="naive", initial_subset=initial).fit(X)
        got = make(ours, name, optimizer="naive", initial_subset=initial).fit(X)
        same(want, got)
        np.testing.assert_array_equal(got.mask, want.mask)


@pytest.mark.parametrize("name", [*GRAPH, *FEATURES])
def test_sparse(peer, name):
    sparse = pytest.importorskip("scipy.sparse")
    _, plus, kernel, _ = data()
    X = sparse.csr_matrix(
        np.where(plus > 1, plus, 0) if name in FEATURES else np.where(kernel > 2, kernel, 0)
    )
    more = {} if name in FEATURES else {"metric": "precomputed"}
    want = make(peer, name, optimizer="naive", **more).fit(X)
    got = make(ours, name, optimizer="naive", **more).fit(X)
    same(want, got)
    assert abs(got.transform(X) - want.transform(X)).max() == 0


@pytest.mark.parametrize("metric", ["euclidean", "cosine", "corr", "manhattan"])
def test_neighbors(peer, metric):
    """Its graph is given back to it as a precomputed one, which it takes with any scikit-learn."""
    sparse = pytest.importorskip("scipy.sparse")
    X = data()[0]
    utils = importlib.import_module("apricot.utils")
    there = "correlation" if metric == "corr" else metric
    graph = sparse.csr_matrix(utils._calculate_pairwise_distances(X, metric=there, n_neighbors=7))
    graph.indices, graph.indptr = graph.indices.astype(np.int32), graph.indptr.astype(np.int32)
    want = peer.FacilityLocationSelection(12, metric="precomputed", optimizer="naive").fit(graph)
    transformer = pytest.importorskip("sklearn.neighbors").KNeighborsTransformer
    for neighbors in (
        7,
        *([] if metric in ("cosine", "corr") else [transformer(n_neighbors=7, metric=metric)]),
    ):
        same(want, ours.FacilityLocationSelection(12, metric=metric, n_neighbors=neighbors).fit(X))


MIXTURES = {
    "matrix": (lambda lib: [lib.FacilityLocationSelection(1), lib.FeatureBasedSelection(1)], {}, 2),
    "features": (lambda lib: [lib.FeatureBasedSelection(1), lib.MaxCoverageSelection(1, 9.0)], {}, 1),
    "euclidean": (
        lambda lib: [lib.FacilityLocationSelection(1), lib.GraphCutSelection(1)],
        {"metric": "euclidean"},
        0,
    ),
    "cosine": (lambda lib: [lib.GraphCutSelection(1), lib.FeatureBasedSelection(1)], {"metric": "cosine"}, 0),
}


@pytest.mark.parametrize("case", MIXTURES)
def test_mixtures(peer, case):
    functions, more, at = MIXTURES[case]
    X, weights = data()[at], np.array([1.0, 0.4])
    for optimizer in (*EXACT, "modular", "stochastic", "sample"):
        more = {**more, "optimizer": optimizer, "random_state": 3}
        want = peer.MixtureSelection(12, functions(peer), weights=weights, **more).fit(X)
        same(want, ours.MixtureSelection(12, functions(ours), weights=[1.0, 0.4], **more).fit(X))


def roots(rows):
    return np.sqrt(rows.sum(axis=0)).sum()


def nearest(rows, power=1):
    return (rows.max(axis=0) ** power).sum()


@pytest.mark.parametrize("optimizer", [*EXACT, "modular", "stochastic", "sample"])
def test_custom(peer, optimizer):
    _, plus, kernel, _ = data()
    more = {"optimizer": optimizer, "random_state": 3}
    # modular takes positions among the rows that are left for rows there
    for initial in (None, *([] if optimizer == "modular" else [[1, 2, 3], plus[:2] * 1.1])):
        want = peer.CustomSelection(12, roots, initial_subset=initial, **more).fit(plus)
        same(want, ours.CustomSelection(12, roots, initial_subset=initial, **more).fit(plus))
    graph = {
        "metric": "ignore",
        "function_kwds": {"power": 0.5},
    }  # it forgets what it chose of a precomputed one
    want = peer.CustomGraphSelection(12, nearest, **graph, **more).fit(kernel)
    same(want, ours.CustomGraphSelection(12, nearest, **graph, **more).fit(kernel))


@pytest.mark.parametrize("metric", ["euclidean", "cosine", "correlation"])
@pytest.mark.parametrize("name", GRAPH)
def test_on_alpaca(peer, alpaca, name, metric):
    """Real embeddings, 600 of them, every pick held against its gains."""
    x = np.array(alpaca[:600], np.float32)
    theirs = make(peer, name, 2, metric="corr" if metric == "correlation" else metric, optimizer="naive").fit(
        x
    )
    matrix = kernel_of(peer, x, metric).astype(np.float64)
    follows(theirs, matrix, make(ours, name, 60, metric=metric).fit(x))


def test_on_more_of_alpaca(peer, alpaca):
    """n = 2,000, ours from the features."""
    x = np.array(alpaca[:2000], np.float32)
    for name in ("FacilityLocationSelection", "GraphCutSelection"):
        theirs = make(peer, name, 2, metric="cosine", optimizer="naive").fit(x[:50])
        matrix = kernel_of(peer, x, "cosine").astype(np.float64)
        theirs._X = x
        follows(theirs, matrix, make(ours, name, 60, metric="cosine").fit(x))


CRASHES = {  # with numpy 2 and scikit-learn 1.5 or later
    "random": (TypeError, lambda lib, x: lib.FacilityLocationSelection(5, optimizer="random").fit(x)),
    "bidirectional": (ValueError, lambda lib, x: lib.GraphCutSelection(5, optimizer="bidirectional").fit(x)),
    "metric='correlation'": (
        ValueError,
        lambda lib, x: lib.FacilityLocationSelection(5, "correlation").fit(x),
    ),
    "X a list": (AttributeError, lambda lib, x: lib.FeatureBasedSelection(5).fit(abs(x).tolist())),
    "sample_cost a list": (
        TypeError,
        lambda lib, x: lib.FacilityLocationSelection(5).fit(x, sample_cost=[1.0] * len(x)),
    ),
    "n_samples above n": (
        ValueError,
        lambda lib, x: lib.FacilityLocationSelection(500).fit(x, sample_cost=np.full(len(x), 9.0)),
    ),
    "mixed signs": (ValueError, lambda lib, x: lib.FacilityLocationSelection(5, "precomputed").fit(x @ x.T)),
}


@pytest.mark.parametrize("case", CRASHES)
def test_what_crashes_there(peer, case):
    """docs/differences.md lists these."""
    error, call = CRASHES[case]
    with pytest.raises(error):
        call(peer, data()[0])
    assert len(call(ours, data()[0]).ranking) > 4


# -- against the definitions --------------------------------------------------------------------------------------

VALUES = {
    "FacilityLocationSelection": lambda s, S, p: np.maximum(s[S].max(axis=0), 0).sum(),
    "GraphCutSelection": lambda s, S, p: p["alpha"] * s[S].sum() - s[np.ix_(S, S)].sum(),
    "SaturatedCoverageSelection": lambda s, S, p: np.minimum(
        s[S].sum(axis=0), p["alpha"] * s.sum(axis=0)
    ).sum(),
    "SumRedundancySelection": lambda s, S, p: -s[np.ix_(S, S)].sum(),
    "FeatureBasedSelection": lambda s, S, p: p["concave_func"](s[S].sum(axis=0)).sum(),
    "MaxCoverageSelection": lambda s, S, p: np.minimum(s[S].sum(axis=0), p["threshold"]).sum(),
}


def similarity(x, metric):
    if metric == "precomputed":
        return x
    if metric in ("cosine", "correlation"):
        x = x - x.mean(axis=1, keepdims=True) if metric == "correlation" else x
        u = x / np.linalg.norm(x, axis=1, keepdims=True)
        return (u @ u.T) ** 2
    d = np.square(x[:, None] - x[None]).sum(axis=2)
    return d.max() - d


def check(selector, s, parameters=None, given=()):
    """Greedy by the definition: every pick is the best, to rounding, and its gain what f gains."""
    value = functools.partial(VALUES[type(selector).__name__], s, p=parameters or vars(selector))
    chosen = list(given)
    now = value(S=np.array(chosen, int)) if chosen else 0.0
    scale = max(1.0, np.abs(selector.gains).max())
    for j, gain in zip(selector.ranking.tolist(), selector.gains.tolist(), strict=True):
        gains = {i: value(S=np.array([*chosen, i])) - now for i in range(len(s)) if i not in chosen}
        assert abs(gains[j] - gain) <= 2e-6 * scale
        assert gains[j] >= max(gains.values()) - 2e-6 * scale
        chosen.append(j)
        now += gains[j]


@pytest.mark.parametrize("optimizer", ["naive", "lazy", "approximate-lazy", "two-stage"])
@pytest.mark.parametrize("name", [*GRAPH, *FEATURES])
def test_exact_optimizers(name, optimizer):
    X = pool_of(name)[:60]
    for metric in ("euclidean", "cosine", "correlation") if name in GRAPH else (None,):
        selector = make(ours, name, 8, optimizer=optimizer, **({"metric": metric} if metric else {})).fit(X)
        check(selector, similarity(X, metric) if metric else X)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("name", [*GRAPH, *FEATURES])
def test_every_optimizer_ends_well(name, optimizer):
    """n_samples distinct rows, gains that add up to f, the same again from the same seed; no worse than most draws."""
    X = pool_of(name)[:80]
    runs = [make(ours, name, 10, optimizer=optimizer, random_state=seed).fit(X) for seed in (1, 1, 2)]
    s = X if name in FEATURES else similarity(X, "euclidean")
    value = functools.partial(VALUES[name], s, p=vars(runs[0]))
    for run in runs:
        assert len(set(run.ranking.tolist())) == 10
        assert run.gains.sum() == pytest.approx(value(S=run.ranking), rel=2e-6)
    assert runs[0].ranking.tolist() == runs[1].ranking.tolist()
    if optimizer in ("random", "stochastic", "sample", "bidirectional") and not name.startswith("Sum"):
        assert runs[0].ranking.tolist() != runs[2].ranking.tolist() or optimizer == "sample"
    if optimizer in ("sample", "greedi", "sieve"):
        rng = np.random.default_rng(0)
        draws = [value(S=rng.choice(80, 10, replace=False)) for _ in range(20)]
        assert value(S=runs[0].ranking) >= np.median(draws)
    make(ours, name, 10, optimizer=optimizer, random_state=1).fit(X, sample_cost=np.linspace(1, 3, 80))


def test_bidirectional_on_a_function_that_is_not_monotone():
    """By hand on three rows: the order is drawn, a and b are as defined, a row is kept where the draw says."""
    s = np.array([[4.0, 3.0, 1.0], [3.0, 4.0, 0.5], [1.0, 0.5, 4.0]])
    alpha = 1.2
    f = lambda S: VALUES["GraphCutSelection"](s, np.array(sorted(S), int), {"alpha": alpha}) if S else 0.0  # noqa: E731
    for seed in range(20):
        rng = np.random.RandomState(seed)
        kept, rest = [], list(range(3))
        for j in rng.permutation(np.arange(3)).tolist():
            rest.remove(j)
            a = max(f({*kept, j}) - f(set(kept)), 0.0)
            b = max(f({*kept, *rest}) - f({*kept, *rest, j}), 0.0)
            if len(kept) < 2 and (a == b == 0 or rng.uniform() * (a + b) < a):
                kept.append(j)
        got = ours.GraphCutSelection(
            2, "precomputed", alpha=alpha, optimizer="bidirectional", random_state=seed
        ).fit(s)
        assert got.ranking[: len(kept)].tolist() == kept
        assert len(got.ranking) == 2


def test_two_stages():
    """Partial enumeration: random rows first, then exact greedy given these."""
    X = data()[0]
    kwds = {"n_first_selections": 4, "optimizer1": "random"}
    got = ours.FacilityLocationSelection(
        10, "cosine", optimizer="two-stage", optimizer_kwds=kwds, random_state=5
    ).fit(X)
    rest = ours.FacilityLocationSelection(6, "cosine", initial_subset=got.ranking[:4]).fit(X)
    assert got.ranking[4:].tolist() == rest.ranking.tolist()
    drawn = ours.FacilityLocationSelection(4, "cosine", optimizer="random", random_state=5).fit(X)
    assert got.ranking[:4].tolist() == drawn.ranking.tolist()
    o = ours.optimizers
    objects = o.TwoStageGreedy(
        n_first_selections=4, optimizer1=o.RandomGreedy(random_state=5), optimizer2=o.LazyGreedy()
    )
    again = ours.FacilityLocationSelection(10, "cosine", optimizer=objects).fit(X)
    assert again.ranking.tolist() == got.ranking.tolist()


def test_greedi_in_parts():
    """Its two stages, by hand."""
    X = data()[1]
    got = ours.FeatureBasedSelection(
        8, optimizer="greedi", optimizer_kwds={"m": 3, "l": 5}, random_state=4
    ).fit(X)
    part = np.arange(len(X)) % 3
    np.random.RandomState(4).shuffle(part)
    union = []
    for p in range(3):
        rows = np.flatnonzero(part == p)
        union += rows[ours.FeatureBasedSelection(5).fit(X[rows]).ranking].tolist()
    union = np.sort(union)
    assert got.ranking.tolist() == union[ours.FeatureBasedSelection(8).fit(X[union]).ranking].tolist()
    held = ours.FeatureBasedSelection(8, optimizer="greedi", initial_subset=[1, 2], random_state=4).fit(X)
    assert not {1, 2} & set(held.ranking.tolist())


def test_naive_asks_for_every_gain_of_a_custom_function():
    """On one that is not submodular: pairs are worth more than their rows."""
    x = np.eye(4)
    pairs = lambda rows: rows.sum() + 10 * (rows[:, 0].any() and rows[:, 3].any())  # noqa: E731
    got = ours.CustomSelection(2, pairs, optimizer="naive").fit(x)
    assert got.ranking.tolist() == [0, 3]
    assert got.gains.tolist() == [1, 11]


def test_one_kernel_many_names():
    """A metric, the matrix that it makes, and select(): the same picks."""
    x = data()[0]
    for metric, kind in (("cosine", "cosine_squared"), ("euclidean", "max_minus_sqeuclidean")):
        got = ours.FacilityLocationSelection(10, metric=metric).fit(x)
        assert got.ranking.tolist() == smartgpu.select(x, 10, similarity=kind).indices.tolist()
        given = ours.FacilityLocationSelection(10, metric="precomputed").fit(similarity(x, metric))
        same(given, got)
        assert given.subset.shape == (0, len(x))


def test_the_candidate_is_the_row():
    rng = np.random.default_rng(1)
    s = rng.random((30, 30))  # not symmetric
    check(ours.FacilityLocationSelection(8, metric="precomputed").fit(s), s)
    check(ours.FacilityLocationSelection(8, metric="ignore").fit(s[:, :20]), s[:, :20])
    for name in ("GraphCutSelection", "SaturatedCoverageSelection", "SumRedundancySelection"):
        check(make(ours, name, 8, metric="precomputed").fit(s), s)


# -- streams ------------------------------------------------------------------------------------------------------


def clusters(n=3000, seed=0):
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((25, 12))
    return centres[rng.integers(0, 25, n)] + 0.4 * rng.standard_normal((n, 12))


def streamed(selector, X, cuts):
    for batch in np.split(X, cuts):
        assert selector.partial_fit(batch) is selector
    return selector


def on_reservoir(metric, X, R, S):
    """The formula of docs/from_apricot.md."""
    if metric == "euclidean":
        fall = np.square(R - R.mean(axis=0)).sum(axis=1)
        return np.maximum(fall - np.square(R[:, None] - X[S][None]).sum(axis=2).min(axis=1), 0).sum()
    return (similarity(np.concatenate([R, X[S]]), metric)[: len(R), len(R) :]).max(axis=1).sum()


@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize("metric", ["euclidean", "cosine", "correlation"])
def test_streams_of_similarities(metric, given):
    """However they are cut: one choice, worth what the formula says, near what greedy finds among all rows."""
    X = clusters()
    ask = lambda: ours.FacilityLocationSelection(  # noqa: E731
        25, metric=metric, reservoir=X[::10] if given else None, max_reservoir_size=300, random_state=0
    )
    one, other = streamed(ask(), X, [100, 101, 900, 2500]), streamed(ask(), X, [1500])
    assert one.ranking.tolist() == other.ranking.tolist() and one.n_seen_ == len(X)
    assert len(set(one.ranking.tolist())) == 25
    np.testing.assert_array_equal(one.subset, X[one.ranking])
    R = X[::10] if given else X[:300] if metric == "euclidean" else one._stream.sieve.represented
    value = on_reservoir(metric, X, R, one.ranking)
    assert one.gains.sum() == pytest.approx(value, rel=1e-5)
    chosen: list[int] = []
    for _ in range(25):
        chosen.append(max(range(0, len(X), 10), key=lambda j: on_reservoir(metric, X, R, [*chosen, j])))
    assert value >= 0.8 * on_reservoir(metric, X, R, chosen)
    early = ask().partial_fit(X[:60])  # fewer rows than the reservoir takes
    assert 15 < len(early.ranking) <= 25 and early.ranking.max() < 60


@pytest.mark.parametrize("name", FEATURES)
def test_streams_of_features(name):
    X = np.abs(clusters())
    selector = streamed(make(ours, name, 20), X, [7, 900, 901])
    value = VALUES[name](X, selector.ranking, vars(selector))
    assert selector.gains.sum() == pytest.approx(value, rel=1e-9)
    assert value >= 0.8 * make(ours, name, 20).fit(X).gains.sum()
    sparse = pytest.importorskip("scipy.sparse")
    again = make(ours, name, 20).partial_fit(sparse.csr_matrix(X))
    assert again.ranking.tolist() == selector.ranking.tolist()


def test_streams_hold_no_more_as_they_go_on():
    rng = np.random.default_rng(0)
    selector = ours.FacilityLocationSelection(10, metric="cosine", max_reservoir_size=100, random_state=0)
    held = [len(selector.partial_fit(rng.standard_normal((500, 6)))._stream.rows) for _ in range(12)]
    assert max(held[4:]) <= 1.5 * max(held[:4])
    assert max(held) < 1000


def test_streams_of_graph_cut():
    X = clusters(600)
    R = X[:50]
    selector = ours.GraphCutSelection(8, metric="cosine", alpha=3, reservoir=R, optimizer="sieve")
    selector.optimizer_kwds = {"epsilon": 0.05}
    streamed(selector, X, [100, 350])
    S = selector.ranking
    both = similarity(np.concatenate([R, X[S]]), "cosine")
    assert selector.gains.sum() == pytest.approx(3 * both[:50, 50:].sum() - both[50:, 50:].sum(), rel=1e-5)


def test_streams_refuse():
    X = clusters(200)
    selector = ours.FacilityLocationSelection(5, metric="cosine").partial_fit(X)
    before = selector.ranking.tolist()
    with pytest.raises(ValueError, match="X must have as many features as the batches before, 12, got 5"):
        selector.partial_fit(X[:, :5])
    with pytest.raises(ValueError, match="X must be finite"):
        selector.partial_fit(X * np.nan)
    assert selector.partial_fit(X[:1]).ranking.max() <= 200 and len(before) == 5
    with pytest.raises(ValueError, match="features as reservoir, 3, got 12"):
        ours.FacilityLocationSelection(5, reservoir=X[:9, :3]).partial_fit(X)
    with pytest.raises(TypeError, match="reservoir must"):
        ours.FacilityLocationSelection(5, reservoir=np.array([["a", "b"]]))
    other = ours.FacilityLocationSelection(5, metric="cosine", reservoir=(100 * X[:50]).astype(np.int16))
    assert len(other.partial_fit(X.astype(np.float32)).ranking) == 5  # any numbers will do
    with pytest.raises(ValueError, match="n_samples is 5, but the stream had 3 rows so far"):
        print(ours.FacilityLocationSelection(5).partial_fit(X[:3]).ranking)
    with pytest.raises(ValueError, match="max_reservoir_size must be an integer of 1 at least, got 0"):
        ours.FacilityLocationSelection(5, max_reservoir_size=0)
    with pytest.raises(ValueError, match="sample_cost is not for partial_fit"):
        ours.FacilityLocationSelection(5).partial_fit(X, sample_cost=np.ones(200))
    with pytest.raises(ValueError, match="initial_subset is not for partial_fit"):
        ours.FacilityLocationSelection(5, initial_subset=[1]).partial_fit(X)
    with pytest.raises(ValueError, match="needs reservoir"):
        ours.GraphCutSelection(5, metric="cosine").partial_fit(X)
    with pytest.raises(ValueError, match="metrics cosine and correlation, got 'euclidean'"):
        ours.GraphCutSelection(5, reservoir=X).partial_fit(X)
    for metric in ("manhattan", "precomputed"):
        with pytest.raises(ValueError, match=f"for partial_fit, got '{metric}'"):
            ours.FacilityLocationSelection(5, metric=metric).partial_fit(similarity(X, "cosine"))
    custom = ours.CustomSelection(5, len)
    mixture = ours.MixtureSelection(5, [make(ours, name) for name in FEATURES])
    for selector in (custom, mixture, ours.SumRedundancySelection(5), ours.SaturatedCoverageSelection(5)):
        with pytest.raises(NotImplementedError, match="has no partial_fit"):
            selector.partial_fit(X)


# -- code as it is written ----------------------------------------------------------------------------------------

SCRIPT = """
import sys
import numpy
import apricot
from apricot import (CustomGraphSelection, CustomSelection, FacilityLocationSelection, FeatureBasedSelection,
                     GraphCutSelection, MaxCoverageSelection, MixtureSelection, SaturatedCoverageSelection,
                     SumRedundancySelection)
from apricot.functions.base import BaseSelection
from apricot.functions.facilityLocation import FacilityLocationSelection as again
from apricot.optimizers import ApproximateLazyGreedy, StochasticGreedy

assert again is FacilityLocationSelection and issubclass(again, BaseSelection)
assert "numba" not in sys.modules and apricot.__name__ == "smartgpu.compat.apricot"
numpy.random.seed(0)
X = numpy.random.normal(100, 1, size=(500, 25))
y = numpy.random.randint(2, size=500)

X_subset = FacilityLocationSelection(20, metric="euclidean", optimizer="lazy").fit_transform(X)
assert X_subset.shape == (20, 25)
X_subset, y_subset = FeatureBasedSelection(20, concave_func="sqrt", optimizer="two-stage").fit_transform(X, y)
assert y_subset.shape == (20,)

model = FacilityLocationSelection(20, metric="cosine", optimizer=StochasticGreedy(0.1, random_state=1)).fit(X)
model = FacilityLocationSelection(20, "corr", optimizer="approximate-lazy", optimizer_kwds={"beta": 0.8}).fit(X)
curve = numpy.cumsum(model.gains)
assert (numpy.diff(curve) >= 0).all() and numpy.array_equal(X[model.ranking], model.subset)

first = FacilityLocationSelection(5, metric="cosine").fit(X)
more = FacilityLocationSelection(5, metric="cosine", initial_subset=first.ranking).fit(X)
both = FacilityLocationSelection(10, metric="cosine").fit(X)
assert numpy.concatenate([first.ranking, more.ranking]).tolist() == both.ranking.tolist()

similarity = numpy.corrcoef(X) ** 2
GraphCutSelection(10, metric="precomputed", alpha=5).fit(similarity)
SaturatedCoverageSelection(10, metric="precomputed").fit(similarity)
SumRedundancySelection(10, metric="precomputed", optimizer="naive").fit(similarity)
MaxCoverageSelection(10, threshold=5).fit((X > 100).astype(int))
counts = FeatureBasedSelection(10, "log", optimizer="lazy").fit(X, sample_cost=X[:, 0] / 100)
mixed = MixtureSelection(10, [FeatureBasedSelection(10), MaxCoverageSelection(10, 500)], weights=[1.0, 0.3]).fit(X)

CustomSelection(3, lambda rows: numpy.log(rows.sum(axis=0)).sum()).fit(X)
CustomGraphSelection(3, lambda rows: rows.max(axis=0).sum(), metric="precomputed").fit(similarity)

model = FeatureBasedSelection(10, "sqrt")
for i in range(5):
    model.partial_fit(X[i * 100 : (i + 1) * 100])
assert model.ranking.shape == (10,)
print("done", numpy.sort(model.ranking)[-1] < 500)
"""


def test_a_script_runs_unchanged(tmp_path):
    """Usage as its README and tutorials have it, in our words; with no apricot, numba or scikit-learn in sight."""
    path = tmp_path / "script.py"
    path.write_text(SCRIPT)
    command = [sys.executable, "-m", "smartgpu.compat", str(path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "done True\n"


# -- where it is wrong, and what it does not take ---------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", ["naive", "lazy", "approximate-lazy", "two-stage"])
def test_copies(optimizer):
    """Blocks of equal rows: no row twice, and one of each block first (lazy there takes row 6 twice, and half of f)."""
    s = np.kron(np.eye(20), np.ones((4, 4)))
    got = ours.FacilityLocationSelection(25, metric="precomputed", optimizer=optimizer).fit(s)
    assert got.ranking.tolist() == [*range(0, 80, 4), 1, 2, 3, 5, 6]
    assert got.gains.tolist() == [4.0] * 20 + [0.0] * 5
    x = np.repeat(data()[0][:40], 3, axis=0)
    got = ours.FacilityLocationSelection(119, metric="cosine", optimizer=optimizer).fit(x)
    assert len(set(got.ranking.tolist())) == 119
    assert set((got.ranking[:40] // 3).tolist()) == set(range(40))


def test_options_of_graph_cut_count():
    """apricot drops them: every epsilon is 0.9 there."""
    X = data()[0]
    runs = [
        ours.GraphCutSelection(8, optimizer="stochastic", optimizer_kwds={"epsilon": e}, random_state=0).fit(
            X
        )
        for e in (0.9, 1e-9)
    ]
    exact = ours.GraphCutSelection(8).fit(X)
    assert runs[1].ranking.tolist() == exact.ranking.tolist() != runs[0].ranking.tolist()


def test_budgets_of_tokens():
    X, tokens = data()[0], np.arange(20, 140).tolist()
    for name in ("FacilityLocationSelection", "GraphCutSelection", "SumRedundancySelection"):
        for optimizer in (
            "lazy",
            "stochastic",
            "modular",
            "random",
            "sample",
            "greedi",
            "bidirectional",
            "sieve",
        ):
            got = make(ours, name, 2000, optimizer=optimizer, random_state=0).fit(X, sample_cost=tokens)
            spent = np.array(tokens)[got.ranking].sum()
            assert 0 < spent <= 2000
            if optimizer in ("lazy", "stochastic", "modular", "random", "bidirectional"):
                assert 2000 - spent < np.delete(tokens, got.ranking).min()  # nothing more can be paid


def test_signs_and_lists():
    rng = np.random.default_rng(0)
    K = (lambda x: x @ x.T)(rng.standard_normal((30, 4)))
    check(ours.FacilityLocationSelection(8, metric="precomputed").fit(K), K)
    check(ours.GraphCutSelection(8, metric="precomputed", optimizer="lazy").fit(K), K)
    got = ours.FacilityLocationSelection(5, metric="precomputed", initial_subset=[1, 2]).fit(K.tolist())
    check(got, K, given=[1, 2])
    rows = np.abs(rng.standard_normal((30, 4))).tolist()
    chosen = ours.FeatureBasedSelection(5).fit_transform(rows, sample_cost=[1] * 30)
    assert chosen.shape == (5, 4)


def test_sample_weight_passes_through():
    x = data()[0]
    labels, weights = np.arange(120), np.linspace(1, 2, 120)
    selector = ours.FacilityLocationSelection(5, metric="cosine")
    with pytest.warns(UserWarning, match="sample_weight does not change what is chosen"):
        rows, y, w = selector.fit_transform(x, labels, sample_weight=weights)
    np.testing.assert_array_equal(rows, x[selector.ranking])
    np.testing.assert_array_equal(y, selector.ranking)
    np.testing.assert_array_equal(w, weights[selector.ranking])
    assert selector.transform(x, sample_weight=weights)[1] is None
    assert (
        selector.ranking.tolist()
        == ours.FacilityLocationSelection(5, metric="cosine").fit(x).ranking.tolist()
    )


def test_progress(capsys):
    pytest.importorskip("tqdm")
    ours.FacilityLocationSelection(5, verbose=True).fit(data()[0])
    assert "5.00/5.00" in capsys.readouterr().err


def test_options_for_all_modules(monkeypatch):
    monkeypatch.setattr(compat, "options", {"backend": "nowhere"})
    with pytest.raises(ValueError, match="unknown backend 'nowhere'"):
        ours.FacilityLocationSelection(5).fit(data()[0])


x, plus, kernel, cost = data()
WRONG = {
    "k=0": (lambda: ours.FacilityLocationSelection(0), ValueError, "n_samples must be positive, got 0"),
    "k text": (lambda: ours.FacilityLocationSelection("5"), TypeError, "n_samples must be a number, got '5'"),
    "k > n": (
        lambda: ours.FacilityLocationSelection(121).fit(x),
        ValueError,
        "at most .* 120, got 121",
    ),
    "k > rest": (
        lambda: ours.FacilityLocationSelection(119, initial_subset=[1, 2]).fit(x),
        ValueError,
        "120 less the 2 of initial_subset, got 119",
    ),
    "k=2.5": (lambda: ours.FacilityLocationSelection(2.5).fit(x), ValueError, "n_samples must be an integer"),
    "optimizer": (
        lambda: ours.FacilityLocationSelection(5, optimizer="fast"),
        ValueError,
        "optimizer must be .* 'fast'",
    ),
    "kwds": (
        lambda: ours.FacilityLocationSelection(5, optimizer="lazy", optimizer_kwds={"epsilon": 1}),
        TypeError,
        "epsilon",
    ),
    "epsilon": (
        lambda: ours.optimizers.StochasticGreedy(epsilon=2),
        ValueError,
        r"epsilon must .* \(0, 1\), got 2",
    ),
    "two-stage": (
        lambda: ours.FacilityLocationSelection(
            5, optimizer="two-stage", optimizer_kwds={"optimizer2": "greedi"}
        ).fit(x),
        ValueError,
        "GreeDi cannot be part of another optimizer",
    ),
    "greedi": (
        lambda: ours.FacilityLocationSelection(9, optimizer="greedi", optimizer_kwds={"m": 2, "l": 3}).fit(x),
        ValueError,
        "m l must be at least n_samples, 9, got 2 x 3",
    ),
    "sample": (
        lambda: ours.FacilityLocationSelection(9, optimizer="sample", optimizer_kwds={"epsilon": 0.05}).fit(
            x
        ),
        ValueError,
        "epsilon=0.05 leaves 6 rows, fewer than the 9",
    ),
    "verbose": (
        lambda: ours.FacilityLocationSelection(5, verbose=2),
        ValueError,
        "verbose must be True or False",
    ),
    "seed": (lambda: ours.FacilityLocationSelection(5, random_state="x"), ValueError, "random_state must be"),
    "initial type": (
        lambda: ours.FacilityLocationSelection(5, initial_subset=3),
        ValueError,
        "initial_subset must",
    ),
    "initial rows": (
        lambda: ours.FacilityLocationSelection(5, initial_subset=x[:2]).fit(x),
        ValueError,
        r"initial_subset must be indices or a mask, got shape \(2, 8\)",
    ),
    "initial range": (
        lambda: ours.FacilityLocationSelection(5, initial_subset=[120]).fit(x),
        ValueError,
        r"initial_subset must be rows in \[0, 120\), got 120",
    ),
    "initial width": (
        lambda: ours.FeatureBasedSelection(5, initial_subset=x[:2, :3]).fit(plus),
        ValueError,
        "8",
    ),
    "metric type": (
        lambda: ours.FacilityLocationSelection(5, metric=len),
        TypeError,
        "metric must be a name",
    ),
    "metric": (lambda: ours.FacilityLocationSelection(5, metric="cosin").fit(x), ValueError, "cosin"),
    "not square": (
        lambda: ours.GraphCutSelection(5, metric="precomputed").fit(x),
        ValueError,
        "must be square",
    ),
    "neighbors": (
        lambda: ours.FacilityLocationSelection(5, n_neighbors=120).fit(x),
        ValueError,
        r"n_neighbors must lie in \[1, 119\], got 120",
    ),
    "neighbors type": (
        lambda: ours.FacilityLocationSelection(5, n_neighbors="a").fit(x),
        TypeError,
        "n_neighbors must be",
    ),
    "nan": (lambda: ours.FacilityLocationSelection(5).fit(x * np.nan), ValueError, "X must be finite"),
    "text": (
        lambda: ours.FeatureBasedSelection(1).fit([["a"], ["b"]]),
        TypeError,
        "X must be an array of numbers",
    ),
    "one axis": (lambda: ours.FeatureBasedSelection(1).fit(x[0]), ValueError, "two-dimensional"),
    "negative": (lambda: ours.FeatureBasedSelection(5).fit(x), ValueError, "X must be >= 0"),
    "negative similarity": (
        lambda: ours.SaturatedCoverageSelection(5, metric="precomputed").fit(-kernel),
        ValueError,
        "needs similarities >= 0",
    ),
    "concave": (lambda: ours.FeatureBasedSelection(5, "cube"), KeyError, "concave_func must be one of"),
    "threshold": (lambda: ours.MaxCoverageSelection(5, 0), ValueError, "threshold must be > 0"),
    "alpha": (lambda: ours.GraphCutSelection(5, alpha=-1), ValueError, "alpha must be >= 0"),
    "saturation": (
        lambda: ours.SaturatedCoverageSelection(5, alpha=2),
        ValueError,
        r"alpha must lie in \(0, 1\]",
    ),
    "cost shape": (
        lambda: ours.FacilityLocationSelection(5).fit(x, sample_cost=cost[:9]),
        ValueError,
        r"sample_cost must have shape \(120,\)",
    ),
    "cost sign": (
        lambda: ours.FacilityLocationSelection(5).fit(x, sample_cost=cost - cost),
        ValueError,
        "sample_cost must be > 0",
    ),
    "mixture of one": (
        lambda: ours.MixtureSelection(5, [make(ours, "GraphCutSelection")]),
        ValueError,
        "at least two",
    ),
    "mixture of names": (
        lambda: ours.MixtureSelection(5, ["a", "b"]),
        TypeError,
        "must be selectors, got str",
    ),
    "mixture weights": (
        lambda: ours.MixtureSelection(5, [make(ours, n) for n in FEATURES], weights=[1, -1]),
        ValueError,
        "weights must be 2 numbers >= 0",
    ),
    "custom": (lambda: ours.CustomSelection(5, 3), ValueError, "function must be callable, got int"),
    "custom value": (
        lambda: ours.CustomSelection(5, lambda rows: np.nan).fit(x),
        ValueError,
        "return a finite",
    ),
    "custom type": (
        lambda: ours.CustomSelection(5, lambda rows: "a").fit(x),
        TypeError,
        "return a number, got str",
    ),
    "not fitted": (lambda: ours.FacilityLocationSelection(5).transform(x), ValueError, "call fit"),
}


@pytest.mark.parametrize("case", WRONG)
def test_bad_input(case):
    call, error, message = WRONG[case]
    with pytest.raises(error, match=message):
        call()


def test_sparse_features_have_no_metric():
    sparse = pytest.importorskip("scipy.sparse")
    with pytest.raises(ValueError, match="X must be dense for metric 'cosine'"):
        ours.FacilityLocationSelection(5, metric="cosine").fit(sparse.csr_matrix(data()[1]))
