"""Targets and rows from other files on the command line: the same picks as from Python, and what is refused."""

import json
import zlib

import numpy as np
import pytest

pytest.importorskip("pyarrow")

from smartgpu import FacilityLocationCMI, FacilityLocationMI, GraphCutCG, LogDetMI, Near, select
from smartgpu.selection import Selection

N, D, K = 80, 8, 6
DRAW = np.random.default_rng(8)
X, Q, P = (DRAW.normal(size=(m, D)).astype(np.float32) + 0.4 for m in (N, 5, 4))


def vectors(texts):
    return np.stack([np.random.default_rng(zlib.crc32(t.encode())).normal(size=D) for t in texts])


@pytest.fixture
def smart(smart, tmp_path):
    """With a pool, a query, a private set and a benchmark in the folder."""
    for name, value in {"x": X, "q": Q, "p": P, "bench": X[:3] + 0.01, "wide": np.ones((3, D + 1))}.items():
        np.save(f"{name}.npy", value)
    for name, count in {"pool": N, "query": 5}.items():
        rows = [json.dumps({"text": f"{name} {i}"}) for i in range(count)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(rows) + "\n")
    return smart


def chosen(folder="out"):
    return Selection.load(f"{folder}/selection.npz")


NEAR = Near(X[:3] + 0.01, 0.9)
CASES = {
    "--target q.npy": {"objective": FacilityLocationMI(Q)},
    "--target q.npy --private p.npy --eta 0.8 --nu 0.5": {"objective": FacilityLocationCMI(Q, P, 0.8, 0.5)},
    "--private p.npy --target-objective graph_cut_cg --lam 0.2": {"objective": GraphCutCG(P, 0.2)},
    "--target q.npy --target-objective log_det_mi --lam 2": {"objective": LogDetMI(Q, 2.0)},
    "--given-from p.npy": {"given": P},
    "--exclude-near bench.npy --exclude-above 0.9": {"exclude": NEAR},
    "--target q.npy --given-from p.npy --exclude-near bench.npy --exclude-above 0.9": {
        "objective": FacilityLocationMI(Q),
        "given": P,
        "exclude": NEAR,
    },
}


@pytest.mark.parametrize("flags", CASES)
def test_the_picks_are_those_of_select(smart, flags):
    call = ("select", "x.npy", "-k", K, "--out", "out", "--backend", "numpy", *flags.split())
    status, _, err = smart(*call)
    assert status == 0, err
    expected = select(X, K, **CASES[flags], backend="numpy")
    np.testing.assert_array_equal(chosen().indices, expected.indices)
    np.testing.assert_array_equal(chosen().gains, expected.gains)
    assert chosen().limits == expected.limits
    np.save(flags.split()[1], X[40:45])  # another query is another run
    status, _, err = smart(*call)
    assert (status == 2 and "already holds" in err) or "another" in err


def test_rank_and_plan_take_them_too(smart):
    flags = ("--target", "q.npy", "--given-from", "p.npy", "--backend", "numpy")
    assert smart("rank", "x.npy", "--out", "out", *flags)[0] == 0
    np.testing.assert_array_equal(
        chosen().indices[:K], select(X, K, FacilityLocationMI(Q), given=P, backend="numpy").indices
    )
    status, out, err = smart("plan", "x.npy", "-k", K, *flags)
    assert status == 0 and "facility_location_mi" in out + err


def test_texts_are_embedded_as_the_pool_is(smart, monkeypatch):
    from smartgpu import embed

    calls = []

    def fake(texts, model=None, **how):
        calls.append((len(texts), model, how["max_tokens"]))
        return vectors(texts)

    monkeypatch.setattr(embed, "embed", fake)
    monkeypatch.setattr(embed, "find_model", lambda model: embed._Source(model, None, f"id of {model}"))
    flags = ("--embedder", "m", "--max-tokens", 9, "--backend", "numpy")
    status, _, err = smart("select", "pool.jsonl", "-k", K, "--out", "out", "--target", "query.jsonl", *flags)
    assert status == 0, err
    assert calls == [(N, "m", 9), (5, "m", 9)]
    x, q = (vectors([f"{name} {i}" for i in range(m)]) for name, m in (("pool", N), ("query", 5)))
    np.testing.assert_array_equal(
        chosen().indices, select(x, K, FacilityLocationMI(q), backend="numpy").indices
    )
    status, _, err = smart("select", "pool.jsonl", "-k", K, "--out", "new", "--target", "wide.npy", *flags)
    assert status == 2 and "--target wide.npy has 9 features, pool.jsonl has 8" in err


BAD = {
    "--target wide.npy": ["--target wide.npy has 9 features, x.npy has 8", "one model"],
    "--given-from nosuch.npy": ["nosuch.npy"],
    "--target query.jsonl": ["query.jsonl", "embeddings"],
    "--eta 2": ["--eta needs --target, --private or both"],
    "--target-objective log_det_mi": ["--target-objective needs --target"],
    "--target q.npy --eta -1": ["eta must be >= 0"],
    "--target q.npy --nu 1": ["--nu is not an option of facility_location_mi; it has eta"],
    "--target q.npy --target-objective graph_cut_cg": ["graph_cut_cg takes --private, got --target"],
    "--target q.npy --objective graph_cut": ["name it with --target-objective"],
    "--target q.npy --target-objective log_det_mi --similarity rbf": [
        "log_det_mi is for similarities",
        "rbf",
    ],
    "--target q.npy --similarity max_minus_sqeuclidean": ["query cannot be given with max_minus_sqeuclidean"],
    "--given-from q.npy --similarity precomputed": ["cannot be combined with --similarity precomputed"],
    "--exclude-near bench.npy": ["--exclude-near goes with --exclude-above"],
    "--exclude-above 0.9": ["--exclude-near goes with --exclude-above"],
    "--exclude-near bench.npy --exclude-above nan": ["above must be a finite similarity"],
    "--exclude-near x.npy --exclude-above 0.99": ["nothing is left to choose"],
    "--target q.npy --alpha 0.5 --quality-field s": ["--alpha weighs quality"],
}


@pytest.mark.parametrize("flags", BAD)
def test_bad_input_is_refused(smart, tmp_path, flags):
    status, _, err = smart("select", "x.npy", "-k", K, "--out", "out", "--backend", "numpy", *flags.split())
    assert status == 2 and not (tmp_path / "out").exists()
    for part in BAD[flags]:
        assert part in err, err
