"""Bad input: an error at once that names the argument, what was expected and what came."""

import re
import time

import numpy as np
import pytest

import smartgpu
from smartgpu import FacilityLocation, GraphCut, LogDet, Modular, Rbf, select
from smartgpu import backends as backend_table
from smartgpu import options as option_table

X = np.random.default_rng(0).standard_normal((40, 5)).astype(np.float32)
S = (X @ X.T).astype(np.float64)
LOPSIDED = np.triu(np.abs(S))
NAN = float("nan")


def broken(row: int, *values: float) -> np.ndarray:
    out = X.copy()
    out[row, : len(values)] = values
    return out


def csr(dense):
    return pytest.importorskip("scipy.sparse").csr_matrix(dense)


def refuses(kind, call, *parts: str) -> None:
    """The call raises this kind of error, and its message holds every part."""
    with pytest.raises(kind) as caught:
        call()
    assert type(caught.value) is kind, f"{type(caught.value).__name__} for {kind.__name__}: {caught.value}"
    for part in parts:
        assert re.search(part, str(caught.value)), f"no {part!r} in {str(caught.value)!r}"


# id -> (error, call, parts of the message: the argument, expected, got)
CASES = {
    # embeddings
    "nan": (ValueError, lambda: select(broken(7, NAN), 3), ["X", "finite", "1 NaN", "row 7"]),
    "inf": (ValueError, lambda: select(broken(33, np.inf, -np.inf, NAN), 3), ["X", "finite", "3 ", "row 33"]),
    "nan float16": (ValueError, lambda: select(broken(0, NAN).astype("f2"), 3), ["X", "row 0"]),
    "nan big-endian": (ValueError, lambda: select(broken(9, NAN).astype(">f8"), 3), ["X", "row 9"]),
    "nan precomputed": (ValueError, lambda: select(np.where(S[9, 8] == S, NAN, S), 3, similarity="precomputed"),
        ["X", "row 8"]),
    "nan in csr": (
        ValueError,
        lambda: select(csr(S + np.diag(np.where(np.arange(40) == 9, NAN, 0))), 3, similarity="precomputed"),
        ["X", "1 NaN", r"row 9$"],
    ),
    "no rows": (ValueError, lambda: select(X[:0], 1), ["X", "empty", r"\(0, 5\)"]),
    "no features": (ValueError, lambda: select(X[:, :0], 1), ["X", "empty", r"\(40, 0\)"]),
    "empty list": (ValueError, lambda: select([], 1), ["X"]),
    "empty csr": (ValueError, lambda: select(csr((0, 4)), 1, similarity="precomputed"),
        ["X", "empty", r"\(0, 4\)"]),
    "one-dimensional": (ValueError, lambda: select(X[0], 1), ["X", "two-dimensional", r"\(5,\)"]),
    "three-dimensional": (ValueError, lambda: select(X[None], 1), ["X", "two-dimensional", r"\(1, 40, 5\)"]),
    "objects": (TypeError, lambda: select(X.astype(object), 1), ["X", "number", "object"]),
    "strings": (TypeError, lambda: select(X.astype(str), 1), ["X", "number", "U"]),
    "a list of strings": (TypeError, lambda: select(["some text", "more"], 1), ["X", "number"]),
    "complex": (TypeError, lambda: select(X.astype(complex), 1), ["X", "real", "complex"]),
    "complex csr": (TypeError, lambda: select(csr(S.astype(complex)), 1, similarity="precomputed"),
        ["X", "real", "complex"]),
    "dates": (TypeError, lambda: select(X.astype("M8[s]"), 1), ["X", "number", "datetime"]),
    "ragged": (ValueError, lambda: select([[1.0, 2.0], [3.0]], 1), ["X", "one length"]),
    "none": (TypeError, lambda: select(None, 1), ["X", "NoneType"]),
    "a path": (TypeError, lambda: select("pool.npy", 1), ["X", "str"]),
    "sparse features": (TypeError, lambda: select(csr(X), 1), ["X", "sparse", "precomputed"]),
    # k and coverage
    "k missing": (ValueError, lambda: select(X), ["k", "coverage"]),
    "k = 0": (ValueError, lambda: select(X, 0), [r"\bk\b", "at least 1", "got 0"]),
    "k < 0": (ValueError, lambda: select(X, -3), [r"\bk\b", "at least 1", "got -3"]),
    "k > n": (ValueError, lambda: select(X, 41), [r"\bk\b", "40", "got 41"]),
    "k > rows left": (ValueError, lambda: select(X, 36, given=[1, 2], exclude=[3, 4, 5]),
        [r"\bk\b", "35", "got 36"]),
    "k True": (TypeError, lambda: select(X, True), [r"\bk\b", "number", "True"]),
    "k numpy bool": (TypeError, lambda: select(X, np.True_), [r"\bk\b", "number", "True"]),
    "k a string": (TypeError, lambda: select(X, "10"), [r"\bk\b", "number", "'10'"]),
    "k a list": (TypeError, lambda: select(X, [10]), [r"\bk\b", "number"]),
    "k complex": (TypeError, lambda: select(X, 1j), [r"\bk\b", "number"]),
    "k nan": (ValueError, lambda: select(X, NAN), [r"\bk\b", r"\(0, 1\]", "nan"]),
    "share 0": (ValueError, lambda: select(X, 0.0), [r"\bk\b", r"\(0, 1\]", "0.0"]),
    "share > 1": (ValueError, lambda: select(X, 1.5), [r"\bk\b", r"\(0, 1\]", "1.5"]),
    "share < 0": (ValueError, lambda: select(X, -0.5), [r"\bk\b", r"\(0, 1\]", "-0.5"]),
    "coverage 0": (ValueError, lambda: select(X, coverage=0), ["coverage", r"\(0, 1\]", "0"]),
    "coverage > 1": (ValueError, lambda: select(X, coverage=90), ["coverage", r"\(0, 1\]", "90"]),
    "coverage nan": (ValueError, lambda: select(X, coverage=NAN), ["coverage", "nan"]),
    "coverage a string": (TypeError, lambda: select(X, coverage="0.9"), ["coverage", "'0.9'"]),
    "coverage True": (TypeError, lambda: select(X, coverage=True), ["coverage", "True"]),
    # coverage of objectives that are not monotone
    "coverage graph cut": (ValueError, lambda: select(X, None, GraphCut(0.6), coverage=0.5),
        ["coverage", "monotone", "0.6"]),
    "coverage graph cut rbf": (ValueError, lambda: select(X, None, GraphCut(2), "rbf", coverage=0.5),
        ["coverage", "monotone", "2"]),
    "coverage log_det": (ValueError, lambda: select(X, None, LogDet(0.5), coverage=0.5),
        ["coverage", "monotone", "0.5"]),
    "coverage scores": (ValueError, lambda: select(X, None, Modular(X[:, 0]), coverage=0.5),
        ["coverage", "scores"]),
    "coverage sum": (
        ValueError,
        lambda: select(X, None, FacilityLocation() + Modular(-np.ones(40)), coverage=0.5),
        ["coverage", "scores"],
    ),
    # names, with a guess
    "objective": (ValueError, lambda: select(X, 3, "facility_locaton"),
        ["objective", "did you mean 'facility_location'", "graph_cut"]),
    "objective far": (ValueError, lambda: select(X, 3, "zzz"),
        ["objective", "'zzz'", "facility_location, graph_cut, log_det"]),
    "objective a class": (ValueError, lambda: select(X, 3, FacilityLocation),
        ["objective", "FacilityLocation"]),
    "objective none": (ValueError, lambda: select(X, 3, None), ["objective", "None", "facility_location"]),
    "objective modular": (ValueError, lambda: select(X, 3, "modular"), ["modular", "score", "Modular"]),
    "similarity": (ValueError, lambda: select(X, 3, similarity="cosin"),
        ["similarity", "did you mean 'cosine'", "rbf", "precomputed"]),
    "similarity a number": (ValueError, lambda: select(X, 3, similarity=5), ["similarity", "5", "cosine"]),
    "backend": (ValueError, lambda: select(X, 3, backend="numppy"),
        ["backend", "did you mean 'numpy'", "reference"]),
    "option": (TypeError, lambda: select(X, 3, maximiser="lazy"), ["maximiser", "did you mean 'maximizer'"]),
    "option far": (TypeError, lambda: select(X, 3, zzz=1), ["zzz", "maximizer", "tie_break", "threads"]),
    "option of rank": (TypeError, lambda: smartgpu.rank(X, sead=1), ["sead", "did you mean 'seed'"]),
    "option of evaluate": (TypeError, lambda: smartgpu.evaluate(X, [1], thread=1),
        ["thread", "did you mean 'threads'"]),
    "maximizer": (ValueError, lambda: select(X, 3, maximizer="lasy"),
        ["maximizer", "did you mean 'lazy'", "naive", "stochastic"]),
    "tie_break": (ValueError, lambda: select(X, 3, tie_break="lowest"), ["tie_break", "low, high"]),
    "epsilon": (ValueError, lambda: select(X, 3, epsilon=1.0), ["epsilon", r"\(0, 1\)", "1.0"]),
    "epsilon a string": (TypeError, lambda: select(X, 3, epsilon="a"), ["epsilon", "'a'"]),
    "seed": (ValueError, lambda: select(X, 3, seed=-1), ["seed", "-1"]),
    "seed a float": (TypeError, lambda: select(X, 3, seed=1.0), ["seed", "integer", "1.0"]),
    "threads": (ValueError, lambda: select(X, 3, threads=0), ["threads", "0"]),
    "threads True": (TypeError, lambda: select(X, 3, threads=True), ["threads", "True"]),
    "memory": (ValueError, lambda: select(X, 3, memory="much"), ["memory", "4GB", "'much'"]),
    "memory 0": (ValueError, lambda: select(X, 3, memory=0), ["memory", "positive", "0"]),
    "memory 0GB": (ValueError, lambda: select(X, 3, memory="0GB"), ["memory", "positive", "0GB"]),
    # parameters of objectives and similarities
    "lam < 0": (ValueError, lambda: GraphCut(lam=-0.1), ["lam", ">= 0", "-0.1"]),
    "lam nan": (ValueError, lambda: LogDet(lam=NAN), ["lam", "finite", "nan"]),
    "lam inf": (ValueError, lambda: LogDet(lam=np.inf), ["lam", "finite", "inf"]),
    "lam a string": (TypeError, lambda: GraphCut(lam="0.4"), ["lam", "number", "str"]),
    "lam True": (TypeError, lambda: LogDet(lam=True), ["lam", "number", "bool"]),
    "lam none": (TypeError, lambda: LogDet(lam=None), ["lam", "number", "NoneType"]),
    "gamma 0": (ValueError, lambda: Rbf(gamma=0), ["gamma", "positive", "0"]),
    "gamma nan": (ValueError, lambda: Rbf(gamma=NAN), ["gamma", "positive", "nan"]),
    "gamma a string": (TypeError, lambda: Rbf(gamma="1"), ["gamma", "number", "str|'1'"]),
    "gamma True": (TypeError, lambda: Rbf(gamma=True), ["gamma", "number", "bool|True"]),
    "weight < 0": (ValueError, lambda: -0.5 * FacilityLocation(), ["weight", ">= 0", "-0.5"]),
    "weight nan": (ValueError, lambda: NAN * FacilityLocation(), ["weight", "finite", "nan"]),
    "weight a string": (TypeError, lambda: "a" * FacilityLocation(), ["weight", "number", "str"]),
    "sum with a number": (TypeError, lambda: FacilityLocation() + 1, []),
    # per-row arrays
    "weights length": (ValueError, lambda: select(X, 3, FacilityLocation(np.ones(39))),
        ["weights", r"\(40,\)", r"\(39,\)"]),
    "weights shape": (ValueError, lambda: FacilityLocation(np.ones((40, 1))),
        ["weights", r"\(n,\)", r"\(40, 1\)"]),
    "weights < 0": (ValueError, lambda: FacilityLocation([1.0, 0.5, -2.0]), ["weights", ">= 0", "-2", "row 2"]),
    "weights nan": (ValueError, lambda: FacilityLocation([1.0, NAN]), ["weights", "finite", "row 1"]),
    "weights 0": (ValueError, lambda: FacilityLocation(np.zeros(40)), ["weights", "0"]),
    "weights strings": (ValueError, lambda: FacilityLocation(["a", "b"]), ["weights", "number"]),
    "weights of represented": (
        ValueError,
        lambda: select(X, 3, FacilityLocation(np.ones(40), represented=X[:7])),
        ["weights", r"\(7,\)", r"\(40,\)"],
    ),
    "scores length": (ValueError, lambda: select(X, 3, Modular(np.ones(41))),
        ["scores", r"\(40,\)", r"\(41,\)"]),
    "scores inf": (ValueError, lambda: Modular([0.0, np.inf]), ["scores", "finite", "row 1"]),
    "scores in a sum": (ValueError, lambda: select(X, 3, FacilityLocation() + Modular([1.0])),
        ["scores", r"\(40,\)", r"\(1,\)"]),
    "represented dims": (ValueError, lambda: select(X, 3, FacilityLocation(represented=X[:, :4])),
        ["represented", "5", "4"]),
    "represented dims, cut": (ValueError, lambda: select(X, 3, GraphCut(represented=X[:, :4])),
        ["represented", "5", "4"]),
    "represented nan": (ValueError, lambda: FacilityLocation(represented=broken(2, NAN)),
        ["represented", "finite", "row 2"]),
    "represented empty": (ValueError, lambda: GraphCut(represented=X[:0]), ["represented", "empty"]),
    "represented precomputed": (
        ValueError,
        lambda: select(S, 3, FacilityLocation(represented=X), "precomputed"),
        ["represented", "precomputed"],
    ),
    # precomputed matrices and positive definiteness
    "log_det kind": (ValueError, lambda: select(X, 3, "log_det", "max_minus_sqeuclidean"),
        ["log_det", "semi-definite", "max_minus"]),
    "log_det lopsided": (ValueError, lambda: select(LOPSIDED, 3, "log_det", "precomputed"),
        ["log_det", "symmetric", "X"]),
    "log_det lopsided csr": (ValueError, lambda: select(csr(LOPSIDED), 3, "log_det", "precomputed"),
        ["log_det", "symmetric", "X"]),
    "log_det not square": (ValueError, lambda: select(S[:30], 3, "log_det", "precomputed"),
        ["log_det", "square", r"\(30, 40\)"]),
    "log_det in a sum": (ValueError, lambda: select(S[:30], 3, LogDet() + GraphCut(), "precomputed"),
        ["square", r"\(30, 40\)"]),
    "log_det indefinite": (
        ValueError,
        lambda: select(np.array([[1.0, 2.0], [2.0, 1.0]]), 2, LogDet(0.5), "precomputed"),
        ["log_det", "semi-definite"],
    ),
    "log_det negative diagonal": (
        ValueError,
        lambda: select(-5 * np.eye(4), 2, LogDet(1.0), "precomputed"),
        ["log_det", "semi-definite"],
    ),
    "graph cut not square": (ValueError, lambda: select(S[:30], 3, "graph_cut", "precomputed"),
        ["graph", "square", r"\(30, 40\)"]),
    "graph cut csr": (ValueError, lambda: select(csr(S[:30]), 3, "graph_cut", "precomputed"),
        ["graph", "square", r"\(30, 40\)"]),
    # rows
    "given too high": (ValueError, lambda: select(X, 3, given=[1, 40]), ["given", r"\[0, 40\)", "got 40"]),
    "given negative": (ValueError, lambda: select(X, 3, given=[-1]), ["given", r"\[0, 40\)", "got -1"]),
    "exclude too high": (ValueError, lambda: select(X, 3, exclude=[99]), ["exclude", r"\[0, 40\)", "got 99"]),
    "given mask": (ValueError, lambda: select(X, 3, given=np.ones(39, bool)),
        ["given", r"\(40,\)", r"\(39,\)"]),
    "given floats": (TypeError, lambda: select(X, 3, given=[1.0]), ["given", "integers", "float"]),
    "given strings": (TypeError, lambda: select(X, 3, given=["a"]), ["given", "integers"]),
    "given 2-d": (ValueError, lambda: select(X, 3, given=[[1], [2]]),
        ["given", "one-dimensional", r"\(2, 1\)"]),
    "given ragged": (ValueError, lambda: select(X, 3, given=[[1], [2, 3]]), ["given"]),
    "overlap": (ValueError, lambda: select(X, 3, given=[4, 9], exclude=[5, 9]), ["given", "exclude", "row 9"]),
    "nothing left": (ValueError, lambda: select(X, 1, given=range(20), exclude=range(20, 40)),
        ["given", "exclude", "40"]),
    "nothing left to rank": (ValueError, lambda: smartgpu.rank(X, exclude=range(40)), ["exclude", "40"]),
    "indices empty": (ValueError, lambda: smartgpu.evaluate(X, []), ["indices", "empty"]),
    "indices too high": (ValueError, lambda: smartgpu.evaluate(X, [40]), ["indices", r"\[0, 40\)", "got 40"]),
    # the oracle and results
    "reference too large": (ValueError, lambda: select(np.ones((20_001, 1)), 1, backend="reference"),
        ["reference", "20000", "20001"]),
    "reference stochastic": (ValueError, lambda: select(X, 3, backend="reference", maximizer="stochastic"),
        ["reference", "stochastic"]),
    "prefix too long": (ValueError, lambda: select(X, 3).prefix(4), [r"\bk\b", "3", "4"]),
    "prefix share": (ValueError, lambda: select(X, 3).prefix(0.5), [r"\bk\b", "integer", "0.5"]),
    "assign another pool": (ValueError, lambda: select(X, 3).assign(X[:30]), ["X", "40", "30"]),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_refused(case):
    kind, call, parts = CASES[case]
    refuses(kind, call, *parts)


@pytest.mark.parametrize("backend", ["numpy", "reference"])
@pytest.mark.parametrize(
    "similarity", ["cosine", "dot", "rbf", "cosine_squared", "exp_euclidean", "precomputed"]
)
def test_log_det_without_ridge_on_duplicates(similarity, backend):
    """Never -inf, never index -1: as many rows as are independent, and a ValueError that says so beyond them."""
    x = np.concatenate([X[:5], X[:5], np.zeros((2, 5), np.float32)])
    x = x @ x.T if similarity == "precomputed" else x
    sel = select(x, 5, LogDet(0.0), similarity, backend=backend)
    assert np.isfinite(sel.gains).all() and sel.indices.min() >= 0 and set(sel.indices) == set(range(5))
    rows = 6 if similarity in ("rbf", "exp_euclidean") else 5  # there the zero row is one more
    calls = [lambda k=k: select(x, k, LogDet(0.0), similarity, backend=backend) for k in (rows + 1, len(x))]
    calls.append(lambda: select(x, 2, LogDet(0.0), similarity, given=[0, 5], backend=backend))
    for call in calls:
        if backend == "reference":  # the oracle need not explain itself
            with pytest.raises(ValueError):
                call()
        else:
            refuses(ValueError, call, "log_det", "lam = 0", "copy")


def test_graph_cut_takes_lopsided_matrices():
    """Where symmetry is not needed it is not asked for."""
    for objective in ("graph_cut", "facility_location"):
        assert select(LOPSIDED, 3, objective, "precomputed").k == 3


def test_backend_that_is_not_installed(monkeypatch):
    row = backend_table.Row("smartgpu_backend_that_is_not_there", "Backend", "pip install 'smartgpu[warp]'")
    monkeypatch.setitem(backend_table.BACKENDS, "warp", row)
    for module in (backend_table, option_table):
        monkeypatch.setattr(module, "NAMES", (*backend_table.NAMES, "warp"))
    refuses(
        ImportError, lambda: select(X, 3, backend="warp"), "'warp'", "not installed", re.escape(row.install)
    )
    refuses(ValueError, lambda: select(X, 3, backend="wrap"), "did you mean 'warp'")


def test_datasets():
    datasets, pa = pytest.importorskip("datasets"), pytest.importorskip("pyarrow")
    table = {"text": ["a"] * 40, "embedding": X.tolist()}
    whole = datasets.Dataset.from_dict(table)
    refuses(ValueError, lambda: select(whole.remove_columns("embedding"), 1), "X", "embedding", "text")
    refuses(TypeError, lambda: select(datasets.DatasetDict(train=whole), 1), "X", "split", "DatasetDict")
    refuses(TypeError, lambda: select(whole.to_iterable_dataset(), 1), "X", "IterableDataset")
    refuses(ValueError, lambda: select(pa.table({"text": ["a"]}), 1), "X", "embedding", "text")
    refuses(TypeError, lambda: select(pa.array([1.0, 2.0]), 1), "X", "lists", "double")
    refuses(ValueError, lambda: select(pa.array([[1.0], None]), 1), "X", "1 ", "null")
    refuses(ValueError, lambda: select(pa.array([[1.0, None], [2.0, 3.0]]), 1), "X", "1 ", "null")
    refuses(ValueError, lambda: select(pa.array([[1.0, 2.0], [3.0]]), 1), "X", "one length", "1 to 2")
    refuses(TypeError, lambda: select(pa.array([["a"], ["b"]]), 1), "X", "number")


def test_errors_come_before_long_work():
    """What would run for minutes is refused in well under a second."""
    x = np.zeros((60_000, 64), np.float32)
    x[:, 0] = 1
    calls = [
        lambda: select(x, 60_001),
        lambda: select(x, 100, given=[60_000]),
        lambda: select(x, 100, FacilityLocation(np.ones(3))),
        lambda: select(x, 100, LogDet(), "max_minus_sqeuclidean"),
        lambda: select(x, 100, "graph_cut", coverage=2),
        lambda: select(x, None, GraphCut(0.6), "rbf", coverage=0.5),
        lambda: select(x, None, LogDet(0.5), "rbf", coverage=0.5),
        lambda: select(x, None, FacilityLocation() + GraphCut(0.6), coverage=0.5),
        lambda: select(x, 100, backend="reference"),
    ]
    for call in calls:
        start = time.perf_counter()
        with pytest.raises(ValueError):
            call()
        assert time.perf_counter() - start < 2


def test_log_det_keeps_to_its_memory(monkeypatch):
    x = np.random.default_rng(0).standard_normal((2000, 16))
    with pytest.raises(ValueError, match=r"memory must be at least .* got 4.00MB"):
        select(x, 600, "log_det", "rbf", memory=4_000_000)
    monkeypatch.setattr("smartgpu.backends.numpy.default_memory", lambda: 1_000_000)
    with pytest.raises(MemoryError, match=r"log_det on rbf needs .* MB for pick .* memory allows 4 MB"):
        select(x, 600, "log_det", "rbf")
