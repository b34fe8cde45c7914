"""smartgpu.compat.submodlib: the same answers as submodlib-py 0.0.3, by running it; what is right or refused here."""

import inspect
import json
import logging
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT

import smartgpu
from smartgpu import compat
from smartgpu.compat import submodlib as ours

QUIET = {"show_progress": False}
GREEDY = ("NaiveGreedy", "LazyGreedy")


@pytest.fixture(scope="module")
def peer():
    return pytest.importorskip("submodlib", reason="needs submodlib-py (pip install 'smartgpu[bench]')")


# -- cases: a class, and its arguments but for the metric ----------------------------------------------------------


def pools(x, query, private, rng):
    """The features that cases take: of any sign, and >= 0, where similarities lie in [0, 1]."""
    n = len(x)
    return {
        "n": n,
        "x": x,
        "plus": np.abs(x),
        "query": query,
        "private": private,
        "labels": rng.integers(0, 4, n).tolist(),
        "q": len(query),
        "p": len(private),
    }


def cases(d):
    n, x, plus = d["n"], d["x"], d["plus"]
    query = {"num_queries": d["q"], "queryData": d["query"]}
    private = {"num_privates": d["p"], "privateData": d["private"]}
    beside = {"separate_rep": True, "n_rep": d["q"], "data_rep": d["query"]}
    groups = {"cluster_labels": d["labels"], "num_clusters": 4}
    out = {
        "fl": ("FacilityLocationFunction", {"mode": "dense"}),
        "fl-kernel-in-c": (
            "FacilityLocationFunction",
            {"mode": "dense", "separate_rep": False, "create_dense_cpp_kernel_in_python": False},
        ),
        "fl-represented": ("FacilityLocationFunction", {"mode": "dense", **beside}),
        "fl-sparse": ("FacilityLocationFunction", {"mode": "sparse", "num_neighbors": 7}),
        "fl-clustered": ("FacilityLocationFunction", {"mode": "clustered", **groups}),
        "fl-birch": ("FacilityLocationFunction", {"mode": "clustered", "num_clusters": 3}),
        "gc": ("GraphCutFunction", {"mode": "dense", "lambdaVal": 0.4}),
        "gc-0.9": ("GraphCutFunction", {"mode": "dense", "lambdaVal": 0.9}),
        "gc-sparse": ("GraphCutFunction", {"mode": "sparse", "lambdaVal": 0.4, "num_neighbors": 7}),
        "gc-represented": ("GraphCutFunction", {"mode": "dense", "lambdaVal": 0.4, **beside}),
        "ld": ("LogDeterminantFunction", {"mode": "dense", "lambdaVal": 1}),
        "ld-0.1": ("LogDeterminantFunction", {"mode": "dense", "lambdaVal": 0.1}),
        "ld-sparse": ("LogDeterminantFunction", {"mode": "sparse", "lambdaVal": 1, "num_neighbors": 7}),
        "ds": ("DisparitySumFunction", {"mode": "dense", "data": plus}),
        "ds-sparse": ("DisparitySumFunction", {"mode": "sparse", "data": plus, "num_neighbors": 7}),
        "dm": ("DisparityMinFunction", {"mode": "dense", "data": plus}),
        "dm-sparse": ("DisparityMinFunction", {"mode": "sparse", "data": plus, "num_neighbors": 7}),
        "fl1mi": ("FacilityLocationMutualInformationFunction", {**query, "magnificationEta": 0.8}),
        "fl2mi": ("FacilityLocationVariantMutualInformationFunction", {**query, "queryDiversityEta": 0.8}),
        "gcmi": ("GraphCutMutualInformationFunction", query),
        "ldmi": (
            "LogDeterminantMutualInformationFunction",
            {**query, "lambdaVal": 1, "magnificationEta": 0.8},
        ),
        "com": (
            "ConcaveOverModularFunction",
            {**query, "data": plus, "queryData": np.abs(d["query"]), "queryDiversityEta": 0.8},
        ),
        "flcg": ("FacilityLocationConditionalGainFunction", {**private, "privacyHardness": 0.8}),
        "gccg": ("GraphCutConditionalGainFunction", {**private, "lambdaVal": 0.4, "privacyHardness": 0.8}),
        "ldcg": (
            "LogDeterminantConditionalGainFunction",
            {**private, "lambdaVal": 1, "privacyHardness": 0.8},
        ),
        "flcmi": (
            "FacilityLocationConditionalMutualInformationFunction",
            {**query, **private, "magnificationEta": 0.8, "privacyHardness": 0.6},
        ),
        "ldcmi": (
            "LogDeterminantConditionalMutualInformationFunction",
            {**query, **private, "lambdaVal": 1, "magnificationEta": 0.8, "privacyHardness": 0.8},
        ),
    }
    for f_name in ("FacilityLocation", "GraphCut", "LogDeterminant", "DisparitySum", "DisparityMin"):
        for mode in ("single", "multi"):
            spec = {
                "f_name": f_name,
                "mode": mode,
                "cluster_lab": d["labels"],
                "num_clusters": 4,
                "lambdaVal": 0.7,
            }
            out[f"clustered-{f_name}-{mode}"] = (
                "ClusteredFunction",
                spec | ({"data": plus} if f_name.startswith("Disparity") else {}),
            )
    return {name: (cls, {"n": n, "data": x} | arguments) for name, (cls, arguments) in out.items()}


def small(seed=0, n=60, d=6):
    rng = np.random.default_rng(seed)
    return pools(rng.standard_normal((n, d)), rng.standard_normal((5, d)), rng.standard_normal((4, d)), rng)


def concepts():
    rng = np.random.default_rng(1)
    n, u = 60, 30
    sets = [set(rng.choice(u, 5, replace=False).tolist()) for _ in range(n)]
    chances = rng.random((n, u)).tolist()
    query, private, weights = set(range(1, 11)), {2, 5, 11}, (rng.random(u) + 0.1).tolist()
    out = {}
    tables = (("sc", "SetCover", {"cover_set": sets}), ("psc", "ProbabilisticSetCover", {"probs": chances}))
    for short, name, table in tables:
        for kind, only in (
            ("", {}),
            ("MutualInformation", {"query_concepts": query}),
            ("ConditionalGain", {"private_concepts": private}),
            ("ConditionalMutualInformation", {"query_concepts": query, "private_concepts": private}),
        ):
            arguments = {"n": n, "num_concepts": u, "concept_weights": weights, **table, **only}
            out[f"{short}{kind}"] = (f"{name}{kind}Function", arguments)
    out["sc-no-weights"] = ("SetCoverFunction", {"n": n, "num_concepts": u, "cover_set": sets})
    features = rng.standard_normal((n, 12)).tolist()
    for mode in ("logarithmic", "squareRoot", "inverse"):
        spec = {"n": n, "features": features, "numFeatures": 12, "sparse": False, "mode": mode}
        out[f"fb-{mode}"] = ("FeatureBasedFunction", spec)
    out["fb-weights"] = (
        "FeatureBasedFunction",
        {"n": n, "features": features, "numFeatures": 12, "sparse": False, "featureWeights": weights[:12]},
    )
    spread = np.abs(rng.standard_normal((n, 12))).astype(np.float32)
    spread[:, 3] = 1e-7 * spread[:, 3]  # constant, to float32's rounding
    out["fb-float32"] = (
        "FeatureBasedFunction",
        {"n": n, "features": spread, "numFeatures": 12, "sparse": False},
    )
    return out


CASES, CONCEPTS = cases(small()), concepts()


def pair(peer, name, arguments):
    """Their function and ours."""
    there = dict(arguments)
    if name == "FeatureBasedFunction" and "mode" in there:
        there["mode"] = getattr(sys.modules["submodlib_cpp"].FeatureBased, there["mode"])
    return getattr(peer, name)(**there), getattr(ours, name)(**arguments)


# -- comparisons ---------------------------------------------------------------------------------------------------


def same_picks(theirs, want, got, tol=None):
    """The same elements with the same gains; another element only where theirs says that it is as good.

    Each of our picks is held against their own gains at that prefix: it is their best, to rounding, and gains what they
    say. So it is their pick wherever its margin is larger than rounding.
    """
    want_at, got_at = [i for i, _ in want], [i for i, _ in got]
    want_gains, got_gains = np.array([g for _, g in want]), np.array([g for _, g in got])
    tol = tol or 1e-6 * max(1.0, np.abs(want_gains).max(initial=0) * 2)
    assert all(type(i) is int and type(g) is float for i, g in got)
    assert len(set(got_at)) == len(got_at) == len(want_at)
    if want_at == got_at:
        np.testing.assert_allclose(got_gains, want_gains, rtol=0, atol=tol)
        return
    theirs.clearMemoization()
    chosen: set = set()
    for i, gain in got:
        rest = theirs.getEffectiveGroundSet() - chosen
        gains = {j: theirs.marginalGainWithMemoization(chosen, j) for j in rest}
        assert abs(gains[i] - gain) <= tol, f"pick {len(chosen)}: {i} gains {gains[i]} there, {gain} here"
        assert gains[i] >= max(gains.values()) - tol, f"pick {len(chosen)}: {i} is not the best there"
        theirs.updateMemoization(chosen, i)
        chosen.add(i)


def same_answers(theirs, mine, chosen, element, exact_gain=True):
    """Every method, at one set."""
    scale = 1e-6 * max(1.0, abs(theirs.evaluate(chosen)))
    close = lambda a, b: abs(a - b) <= scale  # noqa: E731
    assert mine.getEffectiveGroundSet() == theirs.getEffectiveGroundSet() == mine.effective_ground
    assert mine.evaluate(set()) == theirs.evaluate(set()) == 0
    assert close(mine.evaluate(chosen), theirs.evaluate(chosen))
    assert mine.marginalGain(chosen, next(iter(chosen))) == 0
    for f in (theirs, mine):
        f.setMemoization(chosen)
    assert close(mine.evaluateWithMemoization(chosen), theirs.evaluateWithMemoization(chosen))
    assert close(
        mine.marginalGainWithMemoization(chosen, element), theirs.marginalGainWithMemoization(chosen, element)
    )
    if exact_gain:
        assert close(mine.marginalGain(chosen, element), theirs.marginalGain(chosen, element))
    for f in (theirs, mine):
        f.updateMemoization(chosen, element)
    more = chosen | {element}
    assert close(mine.evaluateWithMemoization(more), theirs.evaluateWithMemoization(more))
    assert close(mine.evaluateWithMemoization(more), mine.evaluate(more))
    mine.clearMemoization()
    theirs.clearMemoization()
    assert close(
        mine.marginalGainWithMemoization(set(), element), theirs.marginalGainWithMemoization(set(), element)
    )


def compare(peer, name, arguments, budget=15):
    theirs, mine = pair(peer, name, arguments)
    for optimizer in GREEDY:
        want = theirs.maximize(budget, optimizer, **QUIET)
        same_picks(theirs, want, mine.maximize(budget, optimizer, **QUIET))
    at = [i for i, _ in want]
    # their marginalGain of disparity min looks at what is memoized, not at its set
    same_answers(theirs, mine, set(at[:6]), at[8], "DisparityMin" not in f"{name} {arguments.get('f_name')}")


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("case", CASES)
def test_similarity_functions(peer, case, metric):
    name, arguments = CASES[case]
    compare(peer, name, {**arguments, "metric": metric})


@pytest.mark.parametrize("case", CONCEPTS)
def test_coverage_functions(peer, case):
    compare(peer, *CONCEPTS[case])


def given_kernels(f):
    """The kernels that their target was computed with, as arguments."""
    return {
        name: np.array(kernel)
        for name, kernel in vars(f).items()
        if name.endswith("sijs") and "cpp" not in name
    }


@pytest.mark.parametrize(
    "case", ["fl1mi", "fl2mi", "gcmi", "ldmi", "com", "flcg", "gccg", "ldcg", "flcmi", "ldcmi"]
)
def test_targets_from_kernels(peer, case):
    name, arguments = CASES[case]
    kernels = given_kernels(getattr(peer, name)(**arguments))
    rest = {k: v for k, v in arguments.items() if k != "data" and not k.endswith("Data")}
    compare(peer, name, {**rest, **kernels})


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_given_kernels(peer, dtype):
    """Dense ones that are not symmetric, more represented rows than elements, CSR, and both kernels of graph cut."""
    rng = np.random.default_rng(3)
    n, r = 50, 70
    x = rng.standard_normal((n, 5))
    square, wide = rng.standard_normal((n, n)).astype(dtype), rng.standard_normal((r, n)).astype(dtype)
    psd = x @ x.T
    psd = (psd / psd.max()).astype(dtype)
    fl = "FacilityLocationFunction"
    compare(peer, fl, {"n": n, "mode": "dense", "sijs": square, "separate_rep": False})
    compare(peer, fl, {"n": n, "mode": "dense", "sijs": wide, "separate_rep": True, "n_rep": r})
    compare(peer, "GraphCutFunction", {"n": n, "mode": "dense", "lambdaVal": 0.3, "mgsijs": psd})
    both = {"separate_rep": True, "n_rep": r, "mgsijs": wide, "ggsijs": psd}
    compare(peer, "GraphCutFunction", {"n": n, "mode": "dense", "lambdaVal": 0.3, **both})
    compare(peer, "LogDeterminantFunction", {"n": n, "mode": "dense", "lambdaVal": 0.5, "sijs": psd})
    unit = np.clip((1 + psd) / 2, 0, 1)
    np.fill_diagonal(unit, 1)
    for name in ("DisparitySumFunction", "DisparityMinFunction"):
        compare(peer, name, {"n": n, "mode": "dense", "sijs": unit})


def test_given_sparse_kernels(peer):
    sparse = pytest.importorskip("scipy.sparse")
    rng = np.random.default_rng(4)
    n = 50
    values = rng.random((n, n))
    dense = (
        np.where(rng.random((n, n)) < 0.2, values + values.T, 0) / 2
    )  # s_ij may be stored where s_ji is not
    np.fill_diagonal(dense, 1)
    kernel = sparse.csr_matrix(dense)
    for name, more in (
        ("FacilityLocationFunction", {}),
        ("GraphCutFunction", {"lambdaVal": 0.4}),
        ("DisparitySumFunction", {}),
    ):
        key = "ggsijs" if name.startswith("Graph") else "sijs"
        compare(peer, name, {"n": n, "mode": "sparse", "num_neighbors": 9, key: kernel, **more})


# -- real pools ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", [c for c in CASES if c not in ("com", "fl-birch") and "multi" not in c])
def test_on_alpaca(peer, alpaca, case):
    """120 rows: their constructors take seconds for more. Disparity of >= 0 features, as it asks."""
    x = np.array(alpaca[:120], np.float32)
    query, private = np.array(alpaca[3000:3008], np.float32), np.array(alpaca[6000:6005], np.float32)
    d = pools(x, query, private, np.random.default_rng(0))
    name, arguments = cases(d)[case]
    compare(peer, name, arguments, budget=30)


@pytest.mark.slow
def test_on_more_of_alpaca(peer, alpaca):
    """n = 2,000, ours from the features, theirs from the kernel."""
    x = np.array(alpaca[:2000], np.float32)
    kernel = ours.helper.create_kernel(x, "cosine")
    assert kernel.dtype == np.float32
    n = {"n": len(x), "mode": "dense"}
    for name, key, more, budget in (
        ("FacilityLocationFunction", "sijs", {"separate_rep": False}, 200),
        ("GraphCutFunction", "ggsijs", {"lambdaVal": 0.4}, 200),
    ):
        theirs = getattr(peer, name)(**n, **more, **{key: kernel})
        mine = getattr(ours, name)(**n, **more, data=x)
        same_picks(
            theirs,
            theirs.maximize(budget, "LazyGreedy", **QUIET),
            mine.maximize(budget, "LazyGreedy", **QUIET),
        )


def read_tasks(data_dir):
    pq = pytest.importorskip("pyarrow.parquet")
    folder = data_dir / "tasks"
    if not (folder / "minilm.npy").is_file():
        pytest.skip(f"no {folder}")
    tasks = pq.read_table(folder / "tasks.parquet", columns=["task"])["task"].to_pylist()
    return np.load(folder / "minilm.npy").astype(np.float32), np.array(tasks)


def test_on_task_embeddings(peer, data_dir):
    """SMART's first stage on 431 tasks: graph cut of their mean embeddings, and the two others it offers."""
    x, tasks = read_tasks(data_dir)
    names, first = np.unique(tasks, return_index=True)
    means = np.stack([part.mean(axis=0) for part in np.split(x, np.sort(first)[1:])])
    kernel = ours.helper.create_kernel(means, "cosine")
    for name, key, more in (
        ("GraphCutFunction", "ggsijs", {"lambdaVal": 0.4, "separate_rep": False}),
        ("FacilityLocationFunction", "sijs", {"separate_rep": False}),
        ("LogDeterminantFunction", "sijs", {"lambdaVal": 1}),
    ):
        arguments = {"n": len(names), "mode": "dense", key: kernel, **more}
        theirs, mine = pair(peer, name, arguments)
        want = theirs.maximize(64, "LazyGreedy", **QUIET)
        same_picks(theirs, want, mine.maximize(64, "LazyGreedy", **QUIET))


# -- code as it is written -----------------------------------------------------------------------------------------

# The two stages of SMART's published procedure, in submodlib's words. Given: x, tasks (rows of a task are contiguous).
SMART = """
import numpy as np
from sklearn.metrics.pairwise import cosine_similarity
from submodlib.functions.facilityLocation import FacilityLocationFunction
from submodlib.functions.graphCut import GraphCutFunction

names = list(dict.fromkeys(tasks.tolist()))
rows = {name: np.flatnonzero(tasks == name) for name in names}
means = np.stack([np.mean(x[rows[name]], axis=0) for name in names])
sim = cosine_similarity(means)
f1 = GraphCutFunction(n=len(names), mode="dense", ggsijs=sim, lambdaVal=0.4, separate_rep=False)
chosen = f1.maximize(budget=6, optimizer="LazyGreedy", stopIfZeroGain=False, stopIfNegativeGain=False,
                     verbose=False, show_progress=False)
gains = np.array([gain for _, gain in chosen])
powers = 1 + gains + gains**2 / 2
share = powers / powers.sum()
budgets = [int(60 * p) for p in share]
for i in range(60 - sum(budgets)):
    budgets[i] += 1
mixture = []
for (task, _), budget in zip(chosen, budgets):
    mine = rows[names[task]][:70]
    f2 = FacilityLocationFunction(n=len(mine), separate_rep=False, mode="dense", data=x[mine],
                                  create_dense_cpp_kernel_in_python=False)
    order = f2.maximize(budget=len(mine) - 1, optimizer="LazyGreedy", show_progress=False)
    mixture.append([names[task], [int(mine[i]) for i, _ in order[:budget]], sum(g for _, g in order[:budget])])
"""

# What the README of submodlib shows, on data of our own.
README = """
import numpy as np
from submodlib import FacilityLocationFunction, FacilityLocationMutualInformationFunction
from submodlib.helper import create_kernel

rng = np.random.default_rng(7)
ground, queries = rng.standard_normal((43, 4)), rng.standard_normal((6, 4))
facility = FacilityLocationFunction(n=43, data=ground, mode="dense", metric="euclidean")
mixture = [facility.maximize(budget=10, optimizer="NaiveGreedy", stopIfZeroGain=False, stopIfNegativeGain=False,
                             verbose=False, show_progress=False)]
kernel = create_kernel(ground, mode="dense", metric="euclidean")
again = FacilityLocationFunction(n=43, mode="dense", sijs=kernel, separate_rep=False)
mixture.append(again.maximize(budget=10, optimizer="LazyGreedy", show_progress=False))
near = create_kernel(ground, mode="sparse", metric="cosine", num_neigh=10)
few = FacilityLocationFunction(n=43, mode="sparse", sijs=near, num_neighbors=10)
mixture.append(few.maximize(budget=10, show_progress=False))
towards = FacilityLocationMutualInformationFunction(n=43, num_queries=6, data=ground, queryData=queries)
mixture.append(towards.maximize(budget=5, optimizer="NaiveGreedy", show_progress=False))
mixture.append([(0, facility.evaluate({1, 2})), (1, facility.marginalGain({1, 2}, 3))])
"""


def run(code, **names):
    exec(compile(code, "code", "exec"), names)
    return names["mixture"]


@pytest.fixture
def installed():
    """install() inside, and every module as it was afterwards."""
    before = dict(sys.modules)
    compat.install("submodlib", replace=True)
    yield
    for name in set(sys.modules) - set(before):
        if name.split(".")[0] in ("submodlib", "submodlib_cpp"):
            del sys.modules[name]
    sys.modules.update(before)


def test_readme_examples(peer, request):
    want = run(README)
    request.getfixturevalue("installed")
    got = run(README)
    for a, b in zip(want, got, strict=True):
        assert [i for i, _ in a] == [i for i, _ in b]
        np.testing.assert_allclose([g for _, g in b], [g for _, g in a], rtol=0, atol=1e-5)


def test_smart_as_published(peer, data_dir, request):
    pytest.importorskip("sklearn")
    x, tasks = read_tasks(data_dir)
    some = tasks < "ni1/z"
    want = run(SMART, x=x[some], tasks=tasks[some])
    request.getfixturevalue("installed")
    got = run(SMART, x=x[some], tasks=tasks[some])
    assert [task for task, _, _ in got] == [task for task, _, _ in want]
    assert [rows for _, rows, _ in got] == [rows for _, rows, _ in want]
    np.testing.assert_allclose([v for _, _, v in got], [v for _, _, v in want], rtol=1e-6)
    module = sys.modules["submodlib.functions.graphCut"]
    assert module.GraphCutFunction is ours.GraphCutFunction


def test_same_signatures(peer):
    """The same arguments in the same order with the same defaults; methods of ours may have more, by keyword."""
    plain = lambda value: str(getattr(value, "name", value))  # noqa: E731  their enum members have names
    for name in (n for n in dir(peer) if n.endswith("Function")):
        theirs, mine = getattr(peer, name), getattr(ours, name)
        want, got = (inspect.signature(c.__init__).parameters for c in (theirs, mine))
        assert list(got) == list(want), name
        assert [plain(p.default) for p in got.values()] == [plain(p.default) for p in want.values()], name
        for method in (m for m in dir(theirs) if not m.startswith("_")):
            want, got = (inspect.signature(getattr(c, method)).parameters for c in (theirs, mine))
            first = list(got.values())[: len(want)]
            assert [(p.name, p.default) for p in first] == [(p.name, p.default) for p in want.values()], (
                method
            )
            assert all(p.kind is p.KEYWORD_ONLY for p in list(got.values())[len(want) :])
        module = theirs.__module__.rpartition(".")[2]
        assert getattr(sys.modules[f"smartgpu.compat.submodlib.functions.{module}"], name) is mine
    for name in ("create_kernel", "create_sparse_kernel", "create_cluster_kernels"):
        theirs, mine = getattr(peer.helper, name), getattr(ours.helper, name)
        assert inspect.signature(mine) == inspect.signature(theirs)


# -- helper, ties, budgets -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", ["cosine", "euclidean", "dot"])
def test_create_kernel(peer, metric, rng):
    x, y = rng.standard_normal((40, 6)), rng.standard_normal((9, 6))
    for rows in (None, y):
        for method in ("sklearn", "scipy", "np", "other", "rowwise"):
            if (metric == "dot" and method in ("scipy", "other")) or (method == "other" and rows is not None):
                continue
            want = peer.helper.create_kernel(x, metric, X_rep=rows, method=method)
            got = ours.helper.create_kernel(x, metric, X_rep=rows, method=method)
            np.testing.assert_allclose(got, want, rtol=0, atol=1e-7)
    if metric != "dot":
        want = peer.helper.create_kernel(x, metric, mode="sparse", num_neigh=5)
        got = ours.helper.create_kernel(x, metric, mode="sparse", num_neigh=5)
        np.testing.assert_allclose(got.toarray(), want.toarray(), rtol=0, atol=1e-6)
        lab = rng.integers(0, 3, 40).tolist()
        for args in ((lab, 3), (None, 4)):
            want = peer.helper.create_cluster_kernels(x, metric, *args)
            got = ours.helper.create_cluster_kernels(x, metric, *args)
            assert got[0] == want[0] and got[2] == want[2]
            for a, b in zip(got[1], want[1], strict=True):
                np.testing.assert_allclose(a, b, rtol=0, atol=1e-7)


@pytest.mark.parametrize("name", ["FacilityLocationFunction", "GraphCutFunction"])
def test_ties(peer, name, rng):
    """On kernels of few values, prefixes are worth the same as theirs, whichever of the tied are in them."""
    more = {"lambdaVal": 0.25} if name.startswith("Graph") else {"separate_rep": False}
    for _ in range(20):
        kernel = rng.integers(0, 3, (30, 30)) / 4
        kernel = np.maximum(kernel, kernel.T).astype(np.float32)
        key = "ggsijs" if name.startswith("Graph") else "sijs"
        theirs, mine = pair(peer, name, {"n": 30, "mode": "dense", key: kernel, **more})
        want, got = (f.maximize(20, "NaiveGreedy", **QUIET) for f in (theirs, mine))
        assert [i for i, _ in got] == [i for i, _ in want]  # the largest index, in both
        want, got = (f.maximize(20, "LazyGreedy", **QUIET) for f in (theirs, mine))
        same_picks(theirs, want, got)


@pytest.mark.parametrize("optimizer", GREEDY)
@pytest.mark.parametrize("by_cost", [False, True])
@pytest.mark.parametrize("case", ["fl", "gc-0.9", "ld-0.1", "ds", "ldmi"])
def test_costs(peer, case, by_cost, optimizer):
    name, arguments = CASES[case]
    theirs, mine = pair(peer, name, {**arguments, "metric": "euclidean"})
    costs = np.random.default_rng(5).integers(1, 9, 60).astype(float).tolist()
    how = {"costs": costs, "costSensitiveGreedy": by_cost, **QUIET}
    want, got = (f.maximize(31, optimizer, **how) for f in (theirs, mine))
    assert [i for i, _ in got] == [i for i, _ in want]
    np.testing.assert_allclose([g for _, g in got], [g for _, g in want], rtol=0, atol=2e-5)
    assert sum(costs[i] for i, _ in mine.maximize(100, optimizer, **how)) <= 100  # above n: tokens


@pytest.mark.parametrize("optimizer", GREEDY)
def test_where_to_stop(peer, optimizer):
    name, arguments = CASES["gc-0.9"]
    theirs, mine = pair(peer, name, {**arguments, "metric": "euclidean"})
    want = theirs.maximize(50, optimizer, stopIfNegativeGain=True, **QUIET)
    got = mine.maximize(50, optimizer, stopIfNegativeGain=True, **QUIET)
    assert [i for i, _ in got] == [i for i, _ in want] and 5 < len(got) < 50
    sets = [{i % 7} for i in range(30)]
    theirs, mine = pair(peer, "SetCoverFunction", {"n": 30, "cover_set": sets, "num_concepts": 7})
    want = theirs.maximize(20, optimizer, stopIfZeroGain=True, **QUIET)
    assert len(want) == len(mine.maximize(20, optimizer, stopIfZeroGain=True, **QUIET)) == 7
    assert len(mine.maximize(2.5, optimizer, **QUIET)) == len(theirs.maximize(2.5, optimizer, **QUIET)) == 3
    assert mine.maximize(0, optimizer, **QUIET) == theirs.maximize(0, optimizer, **QUIET) == []


# -- on its own ----------------------------------------------------------------------------------------------------


def facility(n=40, **more):
    x = np.random.default_rng(6).standard_normal((n, 5)).astype(np.float32)
    return ours.FacilityLocationFunction(n=n, mode="dense", data=x, **more), x


def test_it_is_select():
    f, x = facility()
    want = smartgpu.select(x, 12, tie_break="high")
    assert f.maximize(12, **QUIET) == list(zip(want.indices.tolist(), want.gains.tolist(), strict=True))
    assert f.maximize(12, "LazyGreedy", **QUIET) == f.maximize(12, "NaiveGreedy", **QUIET)
    assert abs(f.evaluateWithMemoization({0}) - want.value) < 1e-9  # of what was chosen
    assert abs(f.evaluate(set(want.indices.tolist())) - want.value) < 1e-9


def test_no_kernel_is_made(monkeypatch):
    f, x = facility()
    monkeypatch.setattr(ours.helper, "kernel", lambda *a, **k: pytest.fail("a kernel was made"))
    f.maximize(5, **QUIET)
    f.evaluate({1, 2})
    ours.FacilityLocationMutualInformationFunction(n=40, num_queries=3, data=x, queryData=x[:3]).maximize(
        5, **QUIET
    )
    monkeypatch.undo()
    np.testing.assert_allclose(f.sijs, ours.helper.create_kernel(x, "cosine"), atol=1e-6)


@pytest.mark.parametrize("optimizer", ["StochasticGreedy", "LazierThanLazyGreedy"])
def test_random_optimizers(optimizer):
    f, _ = facility()
    picks = {seed: f.maximize(15, optimizer, seed=seed, **QUIET) for seed in range(8)}
    assert picks[3] == f.maximize(15, optimizer, seed=3, **QUIET)
    assert len({tuple(i for i, _ in p) for p in picks.values()}) > 4
    for p in picks.values():
        assert abs(sum(g for _, g in p) - f.evaluate({i for i, _ in p})) < 1e-6
    # a set of all elements is greedy; a set of none has one; more elements than there are, and every budget, end
    assert f.maximize(15, optimizer, epsilon=40, **QUIET) == f.maximize(15, **QUIET)
    for epsilon, budget in ((0.999999, 30), (160, 40), (1000.0, 39), (3, 40)):
        assert len(f.maximize(budget, optimizer, epsilon=epsilon, **QUIET)) == budget
    one = [f.maximize(1, optimizer, epsilon=1, seed=s, **QUIET)[0][0] for s in range(60)]
    assert len(set(one)) > 20  # sets of one element: any of them
    costs = [2.0] * 40
    assert len(f.maximize(20, optimizer, costs=costs, **QUIET)) == 10


def test_default_seed(monkeypatch):
    f, _ = facility()
    monkeypatch.setitem(compat.options, "seed", 5)
    assert f.maximize(9, "StochasticGreedy", **QUIET) == f.maximize(9, "StochasticGreedy", seed=5, **QUIET)
    monkeypatch.setitem(compat.options, "bakend", "numpy")
    with pytest.raises(TypeError, match="backend"):
        f.maximize(3, **QUIET)


def test_layouts_and_zero_rows(rng):
    kernel = rng.standard_normal((30, 30)).astype(np.float32)
    padded = np.zeros((60, 60), np.float32)
    padded[::2, ::2] = kernel
    make = lambda k: ours.FacilityLocationFunction(n=30, mode="dense", sijs=k, separate_rep=False)  # noqa: E731
    want = make(kernel).maximize(9, **QUIET)
    for same in (np.asfortranarray(kernel), padded[::2, ::2], kernel.astype(np.float64)):
        assert make(same).maximize(9, **QUIET) == want
    x = rng.standard_normal((30, 4))
    x[7] = 0
    f = ours.LogDeterminantFunction(n=30, mode="dense", lambdaVal=1, data=x)
    assert f.evaluate({7}) == 0 and len(f.maximize(30, **QUIET)) == 30


def test_empty_sets_beside():
    """No queries: nothing to gain. No privates: the plain function."""
    _, x = facility()
    none = np.empty((0, 5))
    f = ours.FacilityLocationConditionalGainFunction(n=40, num_privates=0, data=x, privateData=none)
    plain = ours.FacilityLocationFunction(n=40, mode="dense", data=x)
    assert [i for i, _ in f.maximize(6, **QUIET)] == [i for i, _ in plain.maximize(6, **QUIET)]
    f = ours.FacilityLocationMutualInformationFunction(n=40, num_queries=0, data=x, queryData=none)
    assert f.evaluate({1, 2}) == 0


def test_what_it_prints(capsys, caplog):
    f, x = facility()
    f.maximize(3, verbose=True, **QUIET)
    said = capsys.readouterr()
    assert said.out.count("element") == 3 and said.err == ""
    f.maximize(3)
    assert "picks" in capsys.readouterr().err
    with caplog.at_level(logging.WARNING, "smartgpu"):
        ours.FacilityLocationFunction(n=40, mode="dense", sijs=x @ x.T, data=x, separate_rep=False)
    assert "not used" in caplog.text


X = np.random.default_rng(0).standard_normal((10, 3))
FL = {"n": 10, "mode": "dense", "data": X}
BAD = {
    "n": ("FacilityLocationFunction", {**FL, "n": 0}, "n must be a positive integer"),
    "mode": ("FacilityLocationFunction", {**FL, "mode": "dence"}, "did you mean 'dense'"),
    "metric": ("FacilityLocationFunction", {**FL, "metric": "cosin"}, "unknown metric 'cosin'"),
    "nothing": ("FacilityLocationFunction", {"n": 10, "mode": "dense"}, "data is missing"),
    "rows": ("FacilityLocationFunction", {**FL, "n": 11}, r"data must have shape \(11, num_features\)"),
    "nan": ("FacilityLocationFunction", {**FL, "data": X * np.nan}, "must be finite"),
    "neighbors": ("FacilityLocationFunction", {**FL, "num_neighbors": 3}, "num_neighbors is for sparse mode"),
    "no neighbors": (
        "GraphCutFunction",
        {**FL, "mode": "sparse", "lambdaVal": 1},
        "num_neighbors is missing",
    ),
    "kernel": (
        "LogDeterminantFunction",
        {"n": 10, "mode": "dense", "lambdaVal": 1, "sijs": X},
        r"\(10, 10\)",
    ),
    "list": (
        "DisparitySumFunction",
        {"n": 10, "mode": "dense", "sijs": X.tolist()},
        "must be a numpy.ndarray",
    ),
    "rep": ("FacilityLocationFunction", {**FL, "separate_rep": True}, "n_rep must be a positive integer"),
    "rep data": ("FacilityLocationFunction", {**FL, "separate_rep": True, "n_rep": 4}, "data_rep"),
    "rep mode": (
        "GraphCutFunction",
        {**FL, "mode": "sparse", "lambdaVal": 1, "separate_rep": True, "n_rep": 4},
        "is for mode 'dense'",
    ),
    "labels": (
        "FacilityLocationFunction",
        {**FL, "mode": "clustered", "cluster_labels": [0] * 9, "num_clusters": 2},
        "10 cluster numbers",
    ),
    "label": (
        "FacilityLocationFunction",
        {**FL, "mode": "clustered", "cluster_labels": [2] * 10, "num_clusters": 2},
        r"\[0, 2\)",
    ),
    "lambda": ("GraphCutFunction", {**FL, "lambdaVal": -1}, "lam must be >= 0"),
    "clustered log-determinant": (
        "LogDeterminantFunction",
        {**FL, "mode": "clustered", "lambdaVal": 1},
        "mode",
    ),
    "two kernels": (
        "GraphCutFunction",
        {"n": 10, "mode": "dense", "lambdaVal": 1, "mgsijs": X @ X.T, "ggsijs": X @ X.T},
        "not both",
    ),
    "f_name": (
        "ClusteredFunction",
        {"n": 10, "f_name": "FacilityLocaton", "data": X, "mode": "multi"},
        "mean 'Facility",
    ),
    "query": (
        "GraphCutMutualInformationFunction",
        {"n": 10, "num_queries": 2, "data": X},
        "queryData missing",
    ),
    "queries": (
        "GraphCutMutualInformationFunction",
        {"n": 10, "num_queries": 2, "data": X, "queryData": X},
        r"queryData must have shape \(2, num_features\)",
    ),
    "signed": ("ConcaveOverModularFunction", {"n": 10, "num_queries": 3, "query_sijs": X}, "must be >= 0"),
    "features": (
        "FeatureBasedFunction",
        {"n": 10, "features": X, "numFeatures": 4, "sparse": False},
        r"\(10, 4\)",
    ),
    "concave": (
        "FeatureBasedFunction",
        {"n": 10, "features": X, "numFeatures": 3, "sparse": False, "mode": "log"},
        "logarithmic",
    ),
    "sets": ("SetCoverFunction", {"n": 10, "cover_set": [{1}], "num_concepts": 3}, "10 sets"),
    "concept": (
        "SetCoverFunction",
        {"n": 2, "cover_set": [{1}, {3}], "num_concepts": 3},
        r"\[0, 3\), entry 1 holds 3",
    ),
    "weights": (
        "SetCoverFunction",
        {"n": 1, "cover_set": [{1}], "num_concepts": 3, "concept_weights": [1]},
        "3",
    ),
    "probs": (
        "ProbabilisticSetCoverFunction",
        {"n": 2, "probs": [[0.5], [2.0]], "num_concepts": 1},
        "probabilities",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_arguments(case):
    name, arguments, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        f = getattr(ours, name)(**arguments)
        f.maximize(2, **QUIET)  # what only the data tell


def test_bad_calls():
    f, x = facility()
    for call, message in (
        (lambda: f.maximize(-1), "budget must be >= 0"),
        (lambda: f.maximize("5"), "budget must be a number"),
        (lambda: f.maximize(3, "Lazy"), "unknown optimizer 'Lazy'"),
        (lambda: f.maximize(3, epsilon=0), "epsilon must be > 0"),
        (lambda: f.maximize(3, costs=[1.0]), r"\(40,\)"),
        (lambda: f.maximize(3, costs=[0.0] * 40), "> 0"),
        (lambda: f.maximize(3, costSensitiveGreedy=True), "costs"),
        (lambda: f.evaluate([1]), "X must be a set, got list"),
        (lambda: f.evaluate({40}), "subset of the ground set of 40"),
        (lambda: f.marginalGain({1}, np.int64(2)), "element must be an int"),
        (lambda: f.marginalGain({1}, 40), "element must be one of the 40"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    twice = np.concatenate([x[:5], x[:5]])
    f = ours.LogDeterminantFunction(n=10, mode="dense", lambdaVal=0, data=twice)
    assert len(f.maximize(5, **QUIET)) == 5
    with pytest.raises(ValueError, match="k <= 5"):
        f.maximize(6, **QUIET)


# -- install -------------------------------------------------------------------------------------------------------


def test_install(caplog):
    before = dict(sys.modules)
    try:
        for name in [n for n in sys.modules if n.split(".")[0] in ("submodlib", "submodlib_cpp")]:
            del sys.modules[name]
        with caplog.at_level(logging.WARNING, "smartgpu"):
            assert compat.install("submodlib") == ["submodlib"]
        assert "submodlib is smartgpu.compat.submodlib" in caplog.text
        import submodlib
        import submodlib.functions.setCover
        from submodlib.helper import create_kernel
        from submodlib_cpp import FeatureBased

        assert submodlib is ours and create_kernel is ours.helper.create_kernel
        assert submodlib.functions.setCover.SetCoverFunction is ours.SetCoverFunction
        f = submodlib.FeatureBasedFunction(10, abs(X), 3, False, mode=FeatureBased.squareRoot)
        assert len(f.maximize(3, **QUIET)) == 3
        assert compat.install("submodlib") == ["submodlib"]  # ours already
        sys.modules["submodlib"] = sys.modules["json"]
        with pytest.raises(RuntimeError, match="submodlib is imported already"):
            compat.install("submodlib")
        assert sys.modules["submodlib"] is sys.modules["json"]
        with pytest.raises(ValueError, match="unknown peer 'cords'"):
            compat.install("cords")
    finally:
        for name in [n for n in sys.modules if n.split(".")[0] in ("submodlib", "submodlib_cpp")]:
            del sys.modules[name]
        sys.modules.update(before)


def test_a_script_unchanged(tmp_path):
    """python -m smartgpu.compat script.py: its own arguments, its own folder; and no peer is imported."""
    (tmp_path / "beside.py").write_text("k = 4\n")
    (tmp_path / "script.py").write_text(
        "import json, sys\nimport numpy as np\nimport submodlib\nfrom beside import k\n"
        "x = np.random.default_rng(0).standard_normal((20, 3))\n"
        "f = submodlib.FacilityLocationFunction(n=20, mode='dense', data=x)\n"
        "picks = f.maximize(k, show_progress=False)\n"
        "print(json.dumps([submodlib.__name__, sys.argv[1:], len(picks), 'numba' in sys.modules]))\n"
    )
    command = [sys.executable, "-m", "smartgpu.compat"]
    done = subprocess.run(
        [*command, str(tmp_path / "script.py"), "--flag", "7"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == ["smartgpu.compat.submodlib", ["--flag", "7"], 4, False]
    assert "submodlib" in done.stderr and "smartgpu" in done.stderr
    done = subprocess.run([*command, "nowhere.py"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and "no file nowhere.py" in done.stderr
