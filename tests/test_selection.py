"""What comes back: evaluate, Selection.assign, save and load, printing."""

import itertools
import json
import zipfile

import numpy as np
import pytest
from oracle import OBJECTIVES, SIMILARITIES, N, synthetic, with_copies

import smartgpu
from smartgpu import FacilityLocation, GraphCut, LogDet, Modular, Rbf, Selection, reference, select
from smartgpu.similarity import as_similarity


def test_bound_holds_for_the_optimum(rng):
    """evaluate()'s upper bound against every set of the same size, for sets that greedy did not choose."""
    for trial in range(6):
        x = rng.standard_normal((8, 3))
        q = rng.random(8)
        cases = [
            (FacilityLocation(), "cosine"),
            (FacilityLocation(q), "dot"),
            (LogDet(), "cosine"),
            (LogDet(3.0), "rbf"),
            (GraphCut(), "cosine_shifted"),
            (GraphCut(0.5), "rbf"),
            (GraphCut(), "cosine"),
            (Modular(q), "dot"),
            (FacilityLocation() + Modular(q), "rbf"),
        ]
        for (objective, kind), k in itertools.product(cases, (1, 2, 4)):
            problem = reference.Problem(x, as_similarity(kind), objective)
            best = max(problem.value(s) for s in itertools.combinations(range(8), k))
            report = smartgpu.evaluate(x, rng.choice(8, k, replace=False), objective, kind)
            # Graph cut of similarities below 0 is neither monotone nor submodular: no bound, or a true one.
            assert report.bound is None or report.bound >= best - 1e-5, (trial, objective, kind, k)


def test_evaluate(rng):
    x = with_copies(synthetic(rng), rng)
    rows = rng.choice(N, 37, replace=False)
    for name, build in OBJECTIVES.items():
        objective, kind = build(x, rng), SIMILARITIES["cosine_shifted"]
        problem = reference.Problem(x, kind, objective)
        report = smartgpu.evaluate(x, rows, objective, kind)
        assert (report.k, report.n) == (37, N)
        assert report.value == pytest.approx(problem.value(rows), rel=1e-6)
        monotone = name in ("fl", "fl-weights", "fl-represented", "gc", "logdet", "mixture")
        assert (
            (report.total is not None)
            == (report.bound is not None)
            == (report.coverage is not None)
            == monotone
        )
        if monotone:
            total = problem.value(range(N))
            assert report.total == pytest.approx(total, rel=1e-6)
            assert report.coverage == pytest.approx(problem.value(rows) / total, rel=1e-5)
            left = np.sort(np.delete(problem.gains(rows), rows))[-37:]
            assert report.bound == pytest.approx(min(report.value + left.sum(), total), rel=1e-5)
        if name.startswith("fl"):
            levels = np.maximum(problem.s[:, rows].max(axis=1), 0)
            np.testing.assert_allclose(
                list(report.percentiles.values()), np.percentile(levels, list(report.percentiles)), atol=1e-5
            )
    mask = np.zeros(N, bool)
    mask[rows] = True
    assert smartgpu.evaluate(x, mask).value == smartgpu.evaluate(x, rows).value
    assert (
        str(N) in str(smartgpu.evaluate(x, rows))
        and smartgpu.evaluate(x, rows).to_dict()["percentiles"]["5"] <= 1
    )
    for objective in ("facility_location", "graph_cut", "log_det"):
        ours, oracle = (smartgpu.evaluate(x, rows, objective, backend=b) for b in ("numpy", "reference"))
        assert ours.value == pytest.approx(oracle.value, rel=1e-6)


def nearest(s: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Brute force: for every row its nearest chosen row; itself where it ties, else the lowest."""
    out = []
    for i, row in enumerate(s[:, chosen]):
        ties = chosen[row == row.max()]
        out.append(i if i in ties else ties.min())
    return np.array(out)


def test_assign_against_brute_force(rng):
    """Small integers, so that similarities are exact and ties are many."""
    x = with_copies(rng.integers(-2, 3, (500, 5)).astype(np.float32), rng)
    s = (x @ x.T).astype(np.float64)
    for sel, pool in (
        (select(x, 90, similarity="dot", tie_break="high"), x),
        (select(x, 500, similarity="dot"), x),
        (select(x, 90, "log_det", "dot"), x),
        (select(x, 90, FacilityLocation(represented=x[:30]), "dot"), x),
        (select(s, 90, similarity="precomputed"), s),
        (select(s[:70], 90, similarity="precomputed"), s[:70]),
    ):
        rows = s[: len(pool)]
        if len(rows) == 500:
            expected = nearest(rows, sel.indices)
        else:  # represented rows are no candidates: the lowest wins
            expected = np.array([sel.indices[row == row.max()].min() for row in rows[:, sel.indices]])
        got = sel.assign(pool)
        np.testing.assert_array_equal(got.nearest, expected)
        np.testing.assert_array_equal(sel.indices[got.position], expected)
        np.testing.assert_array_equal(got.similarity, rows[np.arange(len(rows)), expected])
        np.testing.assert_array_equal(got.weight, [(expected == j).sum() for j in sel.indices])
        assert got.weight.sum() == len(rows)


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_assign_with_every_similarity(rng, similarity):
    x = with_copies(synthetic(rng), rng)
    kind = SIMILARITIES[similarity]
    sel = select(x, 30, similarity=kind)
    got, s = sel.assign(x), reference.similarities(x, kind)
    best = s[:, sel.indices].max(axis=1)
    np.testing.assert_allclose(got.similarity, best, rtol=0, atol=5e-6 * max(1, np.abs(s).max()))
    np.testing.assert_allclose(
        s[np.arange(N), got.nearest], best, rtol=0, atol=5e-6 * max(1, np.abs(s).max())
    )
    np.testing.assert_array_equal(got.nearest, sel.indices[got.position])
    np.testing.assert_array_equal(got.weight, np.bincount(got.position, minlength=30))
    if similarity != "dot":  # elsewhere no row is nearer to another than to itself
        np.testing.assert_array_equal(got.nearest[sel.indices], sel.indices)


def test_save_and_load(rng, tmp_path):
    x = synthetic(rng)
    cases = [
        select(x, 20, similarity=Rbf(gamma=0.25), given=[1, 2], memory="100MB"),
        select(x, 5, 0.5 * FacilityLocation(rng.random(N)) + Modular(rng.random(N)), maximizer="stochastic"),
        smartgpu.rank(x, LogDet(0.5), "cosine_shifted"),
        select(x @ x.T, 5, GraphCut(), "precomputed"),
        select(x, 5, backend="reference"),
    ]
    for number, sel in enumerate(cases):
        path = sel.save(tmp_path / "a folder" / f"{number}.npz")
        back = Selection.load(path)
        np.testing.assert_array_equal(back.indices, sel.indices)
        np.testing.assert_array_equal(back.gains, sel.gains)
        assert (back.indices.dtype, back.gains.dtype) == (np.int64, np.float64)
        assert back.to_dict() == json.loads(json.dumps(sel.to_dict()))
        assert repr(back) == repr(sel) and str(back) == str(sel)
        pool = x @ x.T if number == 3 else x
        np.testing.assert_array_equal(back.assign(pool).nearest, sel.assign(pool).nearest)
        with zipfile.ZipFile(path) as archive:
            assert not any(b"pickle" in archive.read(name) for name in archive.namelist())
    assert back.prefix(2).value == pytest.approx(sel.gains[:2].sum())
    assert [p.name for p in (tmp_path / "a folder").iterdir() if p.suffix != ".npz"] == []
    assert Selection.load(cases[0].save(tmp_path / "a folder" / "1.npz")).k == 20  # replaced


def test_load_refuses_other_files(rng, tmp_path):
    sel = select(synthetic(rng, 30), 5)
    whole = sel.save(tmp_path / "whole.npz").read_bytes()
    np.savez(tmp_path / "other.npz", x=np.arange(3))
    np.savez(
        tmp_path / "objects.npz",
        indices=np.array([{}], object),
        gains=np.arange(1),
        metadata=np.array([{}], object),
    )
    np.save(tmp_path / "array.npy", np.arange(3))
    with np.load(tmp_path / "whole.npz") as file:
        np.savez(tmp_path / "newer.npz", **{**file, "metadata": np.array('{"format": 99}')})
    for name, content in {
        "empty": b"",
        "text": b"hello",
        "cut": whole[:-200],
        "start": whole[:100],
        "zeros": bytes(500),
    }.items():
        (tmp_path / f"{name}.npz").write_bytes(content)
    for path in sorted(tmp_path.iterdir()):
        if path.name != "whole.npz":
            with pytest.raises(ValueError, match="is not a saved selection"):
                Selection.load(path)
    with pytest.raises(FileNotFoundError):
        Selection.load(tmp_path / "absent.npz")
    with pytest.raises(ValueError, match="path"):
        sel.save(tmp_path / "selection.json")


def test_prints_itself(rng):
    sel = select(synthetic(rng), 20, GraphCut(), "cosine_squared")
    text = str(sel)
    for part in (
        "20 of 420",
        "graph_cut",
        "cosine_squared",
        "exact",
        "lazy",
        "numpy float32",
        str(sel.indices[0]),
        "prepare",
    ):
        assert part in text
    assert repr(sel).startswith("Selection(20 of 420 rows, graph_cut, cosine_squared, value=")
    assert sel.options["maximizer"] == "lazy" and sel.versions["smartgpu"] == smartgpu.__version__
    assert sel.sweeps > 0 and sel.evaluations > 0 and set(sel.seconds) == {"prepare", "select"}
    assert sel.objective == {"name": "graph_cut", "lam": 0.4, "represented": None}
    seen = []
    again = select(synthetic(rng), 10, report=lambda j, gain: seen.append((j, gain)), progress=True)
    assert seen == list(zip(again.indices.tolist(), again.gains.tolist(), strict=True))
