"""The benchmark: its gate stops wrong selections, its rows are complete, its table says what the rows say."""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest

import smartgpu
from smartgpu import reference
from smartgpu.objectives import as_objective
from smartgpu.similarity import as_similarity

ROOT = Path(__file__).resolve().parents[1]
if not (ROOT / "bench" / "run.py").is_file():
    pytest.skip("bench/ is not beside the tests", allow_module_level=True)
sys.path.insert(0, str(ROOT))

from bench import gate, plot, run
from bench.cases import CASES, FL, GC, LD, QUICK, Case, write_pool
from bench.process import Process, Stopped
from bench.providers import PROVIDERS

needs_proc = pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="peak memory is read from Linux's /proc"
)
PARAMETERS = [FL, GC, LD]
KEYS = """case provider objective pool n d k similarity seed ms_p50 ms_p20 ms_p80 repeats peak_mb device cores threads
    memory_gb blas environment versions commit dirty time""".split()


def tiny(objective: str, n: int = 300, k: int = 40, **more) -> Case:
    return Case(objective, "gaussian", n, k, d=32, **more)


@pytest.fixture
def pool(tmp_path):
    """pool(case) -> (n, d) float32"""

    def make(case: Case) -> np.ndarray:
        write_pool(case, tmp_path / "pool.npy")
        return np.load(tmp_path / "pool.npy")

    return make


def select(case: Case, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    objective = type(as_objective(case.objective))(**case.parameters)
    got = smartgpu.select(x, case.k, objective, case.similarity, backend="numpy")
    return got.indices.copy(), got.gains.copy()


# -- pools and cases ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gaussian", "clusters", "isotropic"])
def test_pools_are_seeded_and_nested(name, pool):
    small, large = (pool(Case(FL, name, n, 10, d=16)) for n in (100, 8200))
    np.testing.assert_array_equal(small, large[:100])
    assert small.dtype == np.float32 and not np.array_equal(large[:8], large[8192:])
    assert not np.array_equal(small, pool(Case(FL, name, 100, 10, d=16, seed=1)))


def test_stand_in_covariance(pool):
    """d other than 384: |mean|^2 = 0.093 and total variance 0.907, as measured on Alpaca."""
    x = pool(Case(FL, "gaussian", 20_000, 10, d=64)).astype(np.float64)
    assert np.square(x.mean(axis=0)).sum() == pytest.approx(0.093, rel=0.05)
    assert x.var(axis=0).sum() == pytest.approx(0.907, rel=0.02)


def test_cases_name_known_providers_once():
    for cases in (CASES, QUICK):
        assert len({case.name for case in cases}) == len(cases)
        for case in cases:
            assert set(case.providers or ()) <= PROVIDERS.keys() and 0 < case.k <= case.n
    names = {case.name for case in CASES}
    wanted = (
        plot.FL10,
        plot.FL10_ALL,
        plot.FL20,
        plot.FL52,
        plot.FL52_ALL,
        plot.GC10,
        plot.LD10,
        plot.GC52,
        plot.LD52,
    )
    assert set(wanted) <= names


# -- the gate ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", PARAMETERS)
def test_value_is_the_definition(objective, pool, rng):
    case = tiny(objective)
    x = pool(case)
    x[7] = 0  # a zero row has cosine 0 with everything, itself included
    chosen = np.append(rng.permutation(case.n)[: case.k], 7)
    spec = type(as_objective(objective))(**case.parameters)
    expected = reference.Problem(x, as_similarity("cosine"), spec).value(np.unique(chosen))
    assert gate.value(case, x, np.append(chosen, chosen[:3])) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("k", [1, 2, 40, 300])
@pytest.mark.parametrize("objective", PARAMETERS)
def test_gate_passes_greedy(objective, k, pool):
    case = tiny(objective, k=k)
    x = pool(case)
    picks, gains = select(case, x)
    verdict, details = gate.check(case, x, picks, gains)
    assert verdict == "pass" and details["value"] == pytest.approx(gains.sum(), rel=1e-6)
    assert gate.check_reference(case, x, picks) == "pass"


def corrupt(kind: str, picks: np.ndarray, gains: np.ndarray, n: int) -> None:
    if kind == "first pick last":
        picks[:] = np.roll(picks, -1)
    elif kind == "one pick replaced":
        picks[1] = np.setdiff1d(np.arange(n), picks)[0]
    elif kind == "random":
        picks[:] = np.random.default_rng(0).permutation(n)[: len(picks)]
    elif kind == "a row twice":
        picks[-1] = picks[0]
    elif kind == "a row outside":
        picks[-1] = n
    elif kind == "a gain made up":
        gains[1] += 0.01
    elif kind == "last gain made up":
        gains[-1] += 0.01


@pytest.mark.parametrize(
    "kind",
    [
        "first pick last",
        "one pick replaced",
        "random",
        "a row twice",
        "a row outside",
        "a gain made up",
        "last gain made up",
    ],
)
@pytest.mark.parametrize("objective", PARAMETERS)
def test_gate_fails_what_is_not_greedy(objective, kind, pool):
    case = tiny(objective)
    x = pool(case)
    picks, gains = select(case, x)
    corrupt(kind, picks, gains, case.n)
    assert gate.check(case, x, picks, gains)[0].startswith("fail: ")


@pytest.mark.parametrize("objective", PARAMETERS)
def test_reference_gate_fails_one_wrong_pick(objective, pool):
    case = tiny(objective)
    x = pool(case)
    picks, gains = select(case, x)
    corrupt("one pick replaced", picks, gains, case.n)
    assert gate.check_reference(case, x, picks).startswith("fail: pick 1 ")


def test_no_figure_without_the_gate(pool):
    """The row of a provider of ours with a wrong selection has the verdict and neither time nor memory."""
    case, name = tiny(FL), "smartgpu-numpy"
    x = pool(case)
    picks, gains = select(case, x)
    warm = {"indices": picks, "rows": case.n}
    for spoiled in (False, True):
        if spoiled:
            corrupt("one pick replaced", picks := picks.copy(), gains, case.n)
        last = {"indices": picks, "gains": gains, "notes": {}}
        runs = run.Runs([1.0, 3.0, 2.0], [10**6, 2 * 10**6, 10**6], last, warm)
        row = run.Bench(None, run.Limits(), lambda text: None)._row(case, name, runs, x, {})
        assert row["gate"].startswith("fail: ") if spoiled else row["gate"] == "pass"
        assert ("ms_p50" in row, "peak_mb" in row) == (not spoiled, not spoiled)
        if not spoiled:
            assert (row["ms_p50"], row["repeats"], row["peak_mb"]) == (2000.0, 3, 2.0)


# -- end to end --------------------------------------------------------------------------------------------------------


@needs_proc
def test_end_to_end(tmp_path):
    out = tmp_path / "deep" / "rows.jsonl"
    bench = run.Bench(out, run.Limits(), lambda text: None)
    case = tiny(FL)
    bench.measure([case], ["blas", "smartgpu-numpy", "numpy"])
    bench.measure([tiny(GC)], ["smartgpu-numpy"])  # appended; the product of this n and d is known already
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["provider"] for row in rows] == ["blas", "smartgpu-numpy", "numpy", "smartgpu-numpy"]
    for row in rows:
        assert row.keys() >= set(KEYS)
        assert row["repeats"] == 3 and row["ms_p20"] <= row["ms_p50"] <= row["ms_p80"]
        assert row["peak_mb"] >= 0
    blas, ours, naive, cut = rows
    assert ours["gate"] == cut["gate"] == "pass" and ours["sweeps"] > 0 and "gate" not in naive
    assert ours["value"] == pytest.approx(naive["value"], rel=1e-6)
    assert ours["ratio_to_blas"] == pytest.approx(ours["ms_p50"] / blas["ms_p50"], abs=1e-3)
    assert cut["blas_ms"] == blas["ms_p50"] and cut["lam"] == 0.4
    text = plot.table(plot.read([out]))
    assert (
        "facility location, Gaussian, d = 32 | 300 | 40 |" in text
        and f"numpy {naive['ms_p50']:.0f} ms" in text
    )


@needs_proc
@pytest.mark.parametrize(
    ("provider", "package", "objective"),
    [
        ("apricot-lazy", "apricot", GC),
        ("submodlib", "submodlib", LD),
        ("kmedoids", "kmedoids", FL),
        ("torch", "torch", LD),
    ],
)
def test_other_packages(provider, package, objective, tmp_path, pool):
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed (pip install 'smartgpu[bench]')")
    case = tiny(objective, k=20)
    out = tmp_path / "rows.jsonl"
    run.Bench(out, run.Limits(), lambda text: None).measure([case], [provider])
    (row,) = (json.loads(line) for line in out.read_text().splitlines())
    assert row.keys() >= set(KEYS) and row["versions"][PROVIDERS[provider].package]
    x = pool(case)
    mine = gate.value(case, x, select(case, x)[0])
    # a local search finds other rows; log-determinant starts with a tie that each breaks in its own way
    assert row["value"] == pytest.approx(mine, rel={GC: 1e-6}.get(objective, 0.05))


# -- what stops a provider ---------------------------------------------------------------------------------------------


def stopped(case: Case, provider: str, tmp_path, bench=None) -> str:
    bench = bench or run.Bench(None, run.Limits(), lambda text: None)
    (row,) = bench.measure([case], [provider])[-1:]
    assert "ms_p50" not in row and "value" not in row
    return row["stopped"]


def test_stopped_by_memory_before_it_starts(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "available_memory", lambda: 10**9)
    text = stopped(Case(FL, "isotropic", 50_000, 10), "apricot-lazy", tmp_path)
    assert text.startswith("memory: needs 30.2 GB")


def test_stopped_by_prediction(tmp_path):
    bench = run.Bench(None, run.Limits(), lambda text: None)
    before = {**tiny(FL).describe(), "provider": "numpy", "ms_p50": 1e3}
    bench.rows.append(before)
    text = stopped(tiny(FL, n=3000, k=400), "numpy", tmp_path, bench)
    assert text.startswith("time: about 1000 s, from fl_gaussian_n300_d32_k40")


def test_stopped_where_all_rows_are_too_many(tmp_path):
    assert stopped(tiny(FL, k=300), "submodlib", tmp_path) == "cannot select k = n"


@needs_proc
def test_stopped_by_time_and_memory(tmp_path, pool):
    case = Case(FL, "isotropic", 20_000, 10, d=8)
    pool(case)
    process = Process(
        "numpy", case, tmp_path / "pool.npy", 0, tmp_path / "memory"
    )  # no byte beyond the spare GiB
    try:
        process.ready(60)
        with pytest.raises(Stopped, match=r"memory: more than the 0\.0 GB"):
            process.run(0, 60)
    finally:
        process.close()
    process = Process("numpy", case, tmp_path / "pool.npy", 1e9, tmp_path / "time")
    try:
        with pytest.raises(Stopped, match="time: more than 0 s for its warm-up"):
            process.ready(0.001)
    finally:
        process.close()
    assert process.child.returncode is not None


@needs_proc
def test_a_dying_worker_says_why(tmp_path):
    process = Process("numpy", tiny(FL), tmp_path / "no-such-pool.npy", 1e9, tmp_path / "worker")
    try:
        with pytest.raises(Stopped, match=r"error: exit status 1, FileNotFoundError.*no-such-pool"):
            process.ready(60)
    finally:
        process.close()


# -- table, musts, pictures --------------------------------------------------------------------------------------------


def sample(case: Case, provider: str, ms: float, **more) -> dict:
    row = {**case.describe(), "provider": provider, "ms_p50": ms, "peak_mb": 100.0, "value": 6323.2}
    row |= {"device": "a CPU", "cores": 2, "memory_gb": 24.0, "blas": "OpenBLAS", "time": "2026-01-02T03:04Z"}
    row |= {"commit": "1a2b3c4", "dirty": False, "versions": {"numpy": "2.0"}}
    if PROVIDERS[provider].ours:
        row |= {"gate": "pass", "sweeps": 1.0, "ratio_to_blas": 2.0}
    return {**row, **more}


@pytest.fixture
def rows() -> plot.Rows:
    ten, large = Case(FL, "alpaca", 10_000, 1_000), Case(FL, "alpaca", 52_002, 5_000)
    made = [
        sample(ten, "smartgpu-numpy", 1000.0),
        sample(ten, "apricot-lazy", 5000.0, value=6000.0),
        sample(ten, "submodlib", 10_000.0),
        sample(ten, "kmedoids", 4500.0, value=6343.6),
        sample(large, "smartgpu-numpy", 30_000.0, peak_mb=4000.0),
        sample(large, "smartgpu-numpy-1gb", 40_000.0, gate="fail: pick 3"),
        {**large.describe(), "provider": "apricot-lazy", "stopped": "memory: needs 32 GB", "versions": {}},
    ]
    return {(row["case"], row["provider"]): row for row in made}


def test_table(rows):
    text = plot.table(rows)
    first = "| facility location, Alpaca | 10,000 | 1,000 | 1 s | 100 MB | 6,323.2 "
    first += "| apricot-lazy 5 s, f -5.11% | 5.0 | 2 |"
    second = "| facility location, Alpaca | 52,002 | 5,000 | 30 s | 4 GB | 6,323.2 | all stopped by memory | - | 2 |"
    assert text.splitlines()[2:4] == [first, second]  # and no line for what failed its gate
    assert "4.5 s, f(S) +0.32%" in text and "a CPU" in text and "1a2b3c4" in text and "numpy 2.0" in text


def test_musts(rows):
    said = [must.judge(rows) for must in plot.MUSTS]
    assert (
        said[0]
        == "reached       FL 10,000 / 1,000: times faster than apricot (lazy) and submodlib: 5 (>= 4), by 25%"
    )
    assert "MISSED        FL 52,002 / 5,000: peak, MB: 4e+03 (<= 3000), by 33%" in said
    assert any(line.startswith("not measured  FL 52,002 / 5,000, memory=1GB: peak") for line in said)


def test_later_rows_win(tmp_path):
    case = tiny(FL)
    paths = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    for path, ms in zip(paths, (1.0, 2.0), strict=True):
        path.write_text(json.dumps(sample(case, "numpy", ms)) + "\n\n")
    assert plot.read(paths)[case.name, "numpy"]["ms_p50"] == 2.0


def test_readme_between_markers(tmp_path, rows):
    path = tmp_path / "README.md"
    path.write_text(f"# head\n{plot.BEGIN}\nold\n{plot.END}\ntail\n")
    assert plot.write_readme(path, plot.table(rows))
    assert path.read_text() == f"# head\n{plot.BEGIN}\n{plot.table(rows)}{plot.END}\ntail\n"
    path.write_text("# no markers\n")
    assert not plot.write_readme(path, "table") and path.read_text() == "# no markers\n"


def test_pictures(tmp_path, rows):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed (pip install 'smartgpu[bench]')")
    for given in (rows, {}):
        made = plot.draw(given, tmp_path / "img")
        assert [path.name for path in made] == [p.file for p in plot.PICTURES]
        assert all(path.read_bytes().startswith(b"\x89PNG") for path in made)


def test_command_line(capsys):
    assert run.main(["--list", "--cases", "gc_*n10000*"]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert listed and all(line.startswith("gc_") and "smartgpu-numpy" in line for line in listed)
    assert run.main(["--cases", "no-such-case"]) == 2
    assert "no-such-case" in capsys.readouterr().err
