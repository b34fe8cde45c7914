"""The benchmark: its gate stops wrong selections, its rows are complete, its table says what the rows say."""

import importlib.util
import json
import math
import os
import subprocess
import sys
import time
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import smartgpu
from smartgpu import reference
from smartgpu.similarity import as_similarity

ROOT = Path(__file__).resolve().parents[1]
if not (ROOT / "bench" / "run.py").is_file():
    pytest.skip("bench/ is not beside the tests", allow_module_level=True)
sys.path.insert(0, str(ROOT))

from bench import gate, gpu, musts, plot, run
from bench.cases import (
    APART,
    CASES,
    DEVICE_CASES,
    FEWER,
    FL,
    FL50,
    FLQ,
    GC,
    LAUNCH,
    LD,
    MORE,
    QUICK,
    REHEARSAL,
    STAGE2,
    TRITON,
    Case,
    task_budgets,
    task_labels,
    task_sizes,
    write_pool,
)
from bench.process import Process, Stopped
from bench.providers import PROVIDERS, specification

needs_proc = pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="peak memory is read from Linux's /proc"
)
PARAMETERS = [FL, GC, LD, FLQ]
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
    objective = specification(case, case.n)
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
    for cases in (CASES, QUICK, DEVICE_CASES, REHEARSAL):
        assert len({case.name for case in cases}) == len(cases)
        for case in cases:
            assert set(case.providers or ()) <= PROVIDERS.keys() and 0 < case.k <= case.n
    names = {case.name for case in CASES}
    wanted = "FL10 FL10_ALL FL20 FL52 FL52_ALL GC10 LD10 GC52 LD52".split()
    assert {getattr(musts, name) for name in wanted} <= names
    on_gpu = {(case.name, provider) for case in DEVICE_CASES for provider in case.providers}
    assert {must.at for must in musts.DEVICE_MUSTS} <= on_gpu


@pytest.mark.parametrize("case", [case for case in (*DEVICE_CASES, *REHEARSAL) if case.tasks], ids=str)
def test_tasks_of_a_case(case):
    """As many rows and choices as the case says, none above its task, no task without."""
    sizes, labels = task_sizes(case), task_labels(case)
    budgets = task_budgets(sizes, case.k)
    assert (sizes.sum(), sizes.max(), budgets.sum()) == (case.n, case.largest, case.k)
    assert (budgets >= 1).all() and (budgets <= sizes).all() and (sizes[:-1] >= sizes[1:]).all()
    assert np.array_equal(np.bincount(labels), sizes) and (np.diff(labels) < 0).any()
    assert case.describe()["tasks"] == case.tasks == len(sizes)


# -- the gate ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", PARAMETERS)
def test_value_is_the_definition(objective, pool, rng):
    case = tiny(objective)
    x = pool(case)
    x[7] = 0  # a zero row has cosine 0 with everything, itself included
    chosen = np.append(rng.permutation(case.n)[: case.k], 7)
    spec = specification(case, case.n)
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


@pytest.fixture(scope="module")
def of_tasks():
    """(case, pool, picks, gains) of a case with tasks, of which the gate looks at a few"""
    case = tiny(FL, n=900, k=90, tasks=20, largest=200)
    x = np.random.default_rng(0).standard_normal((900, 32)).astype(np.float32)
    got = PROVIDERS["smartgpu-numpy"].make()(x, case, case.k)
    return case, x, got.indices, got.gains


def test_gate_passes_greedy_in_every_task(of_tasks):
    case, x, picks, gains = of_tasks
    verdict, details = gate.check(case, x, picks, gains)
    labels, alone = task_labels(case), 0.0
    for task in range(case.tasks):
        rows, mine = np.flatnonzero(labels == task), picks[labels[picks] == task]
        alone += gate.value(tiny(FL), x[rows], np.searchsorted(rows, mine))
    assert verdict == "pass" and details["value"] == pytest.approx(alone, rel=1e-9)
    assert details["tasks"] == gate.looked_at(case) and len(details["tasks"]) in (3, 4)
    assert details["steps"] > 10


@pytest.mark.parametrize("looked", [True, False])
@pytest.mark.parametrize(
    "kind", ["a gain made up", "one of another task", "two tasks swapped", "one pick replaced"]
)
def test_gate_fails_tasks_that_are_not_greedy(kind, looked, of_tasks):
    """In a task that the gate looks at; in others as far as budgets, rows and sums tell."""
    case, x, picks, gains = of_tasks
    picks, gains, labels = picks.copy(), gains.copy(), task_labels(case)
    of = labels[picks]
    seen = np.isin(of, gate.looked_at(case)) == looked
    at = int(np.flatnonzero(seen & (np.bincount(of)[of] > 2))[1])
    if kind == "a gain made up":
        gains[at] += 0.1
    elif kind == "one of another task":
        picks[at] = np.setdiff1d(np.flatnonzero(labels == (of[at] + 1) % case.tasks), picks)[0]
    elif kind == "two tasks swapped":  # a pick of each
        other = int(np.flatnonzero(of != of[at])[0])
        picks[[at, other]], gains[[at, other]] = picks[[other, at]], gains[[other, at]]
    else:
        picks[at] = np.setdiff1d(np.flatnonzero(labels == of[at]), picks)[0]
    assert gate.check(case, x, picks, gains)[0].startswith("fail: ")


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


def test_table_of_peers(tmp_path):
    base = {"case": "compat-a", "function": "graph_cut", "n": 10_000, "d": 384, "k": 1_000, "device": "a CPU"}
    base |= {"cores": 2, "commit": "1a2b3c4", "time": "2026-01-02T03:04Z", "versions": {"numpy": "2.0"}}
    ours = {**base, "provider": "smartgpu.compat.submodlib", "ms_p50": 500.0, "peak_mb": 20.0}
    rows = [
        {**base, "provider": "submodlib", "ms_p50": 4000.0, "peak_mb": 2000.0},
        {**ours, "times_faster": 8.0},
        {**base, "case": "compat-b", "provider": "submodlib", "stopped": "memory: 16 GB"},
        {**ours, "case": "compat-b"},
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    lines = plot.compat_table(plot.read([path])).splitlines()
    assert lines[2:4] == [
        "| submodlib graph cut | 4 s | 500 ms | 8.0 | 2 GB | 20 MB |",
        "| submodlib graph cut | memory | 500 ms | - | - | 20 MB |",
    ]
    assert (
        "1 functions: between 8.0 and 8.0 times as fast, median 8.0" in lines[-1] and "numpy 2.0" in lines[-1]
    )
    readme = tmp_path / "README.md"
    readme.write_text(f"# head\n{plot.BEGIN_COMPAT}\n{plot.END_COMPAT}\n")
    assert plot.main([str(path), "--readme", str(readme), "--images", str(tmp_path)]) == 0
    assert lines[2] in readme.read_text()


def test_musts(rows):
    said = [must.judge(rows) for must in musts.MUSTS]
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


# -- on a GPU ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def device():
    pytest.importorskip("torch", reason="torch is not installed (pip install 'smartgpu[gpu]')")
    from bench import device

    return device


@pytest.mark.slow
@needs_proc
@pytest.mark.timeout(300)
def test_rehearsal(tmp_path):
    """The whole command in Triton's interpreter: what it would do on a GPU, but for the figures."""
    for package in ("torch", "triton"):
        pytest.importorskip(package, reason=f"{package} is not installed (pip install 'smartgpu[gpu]')")
    command = [sys.executable, str(ROOT / "bench" / "gpu.py"), "--rehearse", "--out", str(tmp_path)]
    got = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert got.returncode == 0, got.stdout[-2000:] + got.stderr[-2000:]
    rows = {
        name: [json.loads(line) for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()]
        for name in gpu.STAGES
    }
    assert all(row["rehearsal"] is True and "musts" not in row for name in rows for row in rows[name])
    assert rows["tests"][0]["tests"] == gpu.REHEARSED_TESTS[1] and not rows["tests"][0]["missing"]
    kernels = {row["kernel"] for row in rows["kernels"] if "ms_p50" in row}
    assert kernels >= {"sweep", "symmetric", "fill", "sparse_excess", "compact", "update", "best", "falls_16"}
    assert {row["ceiling"] for row in rows["kernels"] if "ceiling" in row} >= {"bytes", "half"}
    assert [(row["part"], row["gate"]) for row in rows["launches"]] == [
        (p, "pass") for p in gpu.REHEARSED_PARTS
    ]
    assert all(row.keys() & {"us_pick", "tflop_s"} for row in rows["launches"])
    ran = {(row["case"], row["provider"]): row for row in rows["selections"]}
    assert set(ran) == {(case.name, provider) for case in REHEARSAL for provider in case.providers}
    for (_, provider), row in ran.items():
        assert row.keys() >= set(KEYS) - {"environment"} and row["data"] and row["input"] and row["value"] > 0
        if PROVIDERS[provider].ours:
            assert row["gate"] == "pass" and row["dtype"] == "float16"
            assert provider != TRITON or row["syncs"] == 0
        elif row["objective"] == FL:  # log-determinant starts with a tie, which float32 breaks in its own way
            assert row["value_ratio"] == pytest.approx(1, rel=1e-5)
    assert plot.read([tmp_path / f"{name}.jsonl" for name in gpu.STAGES]) == {}


def test_a_launch_that_breaks_costs_its_own_row(tmp_path, monkeypatch):
    """Whatever a process does, the next part has its turn, and no figure stands beside a gate that failed."""
    from bench import launches

    said = {"blocks": 'import os; os.kill(os.getpid(), 9)', "clusters": 'print("sticky"); raise SystemExit(1)',
            "tail": 'print(\'{"part": "tail", "gate": "pass", "us_pick": 5.0}\')',
            "pairs_fp16": 'print(\'{"part": "pairs_fp16", "gate": "fail: 3 pairs"}\')',
            "pairs_tf32x3": "import time; time.sleep(60)"}  # fmt: skip
    start = SimpleNamespace(
        run=lambda c, **how: subprocess.run([sys.executable, "-c", said[c[-1]]], **how),
        TimeoutExpired=subprocess.TimeoutExpired,
    )
    monkeypatch.setattr(launches, "subprocess", start)
    rows = {part: launches.ask(part, 2.0) for part in said}
    assert "failed" in rows["blocks"] and rows["clusters"]["failed"] == "sticky"
    assert rows["pairs_tf32x3"]["failed"] == "no answer for 2 s"
    assert rows["tail"] == {"part": "tail", "gate": "pass", "us_pick": 5.0}
    monkeypatch.setattr(launches, "PARTS", tuple(said))
    for parts, status in ((["tail"], 0), (["blocks", "tail"], 1), (["pairs_fp16"], 1)):
        path = tmp_path / f"{len(parts)}{status}.jsonl"
        assert launches.main(["--out", str(path), "--parts", *parts]) == status
        assert [json.loads(line)["part"] for line in path.read_text().splitlines()] == parts


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("halves", [False, True])
def test_sums_on_the_device_are_those_of_numpy(halves, again, device, rng, monkeypatch):
    import torch

    monkeypatch.setattr(device, "NUMBERS", 300)  # several blocks
    monkeypatch.setattr(gate, "BLOCK", 7)
    x = rng.standard_normal((60, 24)).astype(np.float16)
    x[5], x[9] = 0, x[8]
    ours, theirs = (
        make(y, halves, again) for make, y in ((gate.Pool, x), (device.Pool, torch.from_numpy(x)))
    )
    rows, cols, level = rng.permutation(60)[:40], np.arange(0, 60, 3), rng.random(40) * 0.3
    for name, arguments in {
        "unit": (rows,),
        "total": (rows,),
        "gram": (rows,),
        "own": (rows,),
        "nearest": (rows, cols),
        "excess": (rows, level, cols),
    }.items():
        a, b = (getattr(pool, name)(*arguments) for pool in (ours, theirs))
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12, err_msg=name)
    assert (ours.own(rows) <= 1).all() and ours.nearest(np.array([5]), cols)[0] == 0
    assert theirs.total(rows[:0]).tolist() == [0] * 24 and theirs.gram(rows[:0]).shape == (24, 24)


@pytest.mark.parametrize("objective", PARAMETERS)
def test_gate_on_the_device_has_the_same_verdict(objective, device, pool):
    import torch

    case = tiny(objective)
    x = pool(case)
    picks, gains = select(case, x)
    there = torch.from_numpy(x)
    verdict, details = gate.check(case, there, picks, gains, make=device.Pool)
    assert verdict == "pass"
    assert details["value"] == pytest.approx(gate.check(case, x, picks, gains)[1]["value"], rel=1e-12)
    assert gate.value(case, there, picks, device.Pool) == pytest.approx(details["value"], rel=1e-12)
    corrupt("one pick replaced", picks, gains, case.n)
    assert gate.check(case, there, picks, gains, make=device.Pool)[0].startswith("fail: ")


@pytest.mark.parametrize("name", ["alpaca", "gaussian", "clusters", "isotropic"])
def test_pools_of_the_device(name, device, tmp_path, monkeypatch):
    """Seeded, float16, and what they are is said: a stand-in where the data is not there."""
    case = Case(FL, name, 1500, 10, where="device")
    (x, source), (again, _) = device.make_pool(case), device.make_pool(case)
    assert x.shape == (1500, 384) and str(x.dtype) == "torch.float16" and (x == again).all()
    monkeypatch.setenv("SMARTGPU_DATA", str(tmp_path))
    x, elsewhere = device.make_pool(case)
    if name == "alpaca":
        assert elsewhere.startswith("alpaca/minilm.npy is not there: Gaussian")
    if name in ("alpaca", "gaussian"):
        y = x.double().cpu().numpy()
        assert np.square(y.mean(axis=0)).sum() == pytest.approx(0.093, rel=0.1)
        assert y.var(axis=0).sum() == pytest.approx(0.907, rel=0.05)
    else:
        assert source == elsewhere


def test_what_only_a_gpu_can_tell(device, monkeypatch):
    """The calls of torch.cuda that a rehearsal leaves out: they exist, and their answers are read as meant."""
    from torch import cuda

    about = SimpleNamespace(
        name="a GPU", major=9, minor=0, total_memory=10**11, multi_processor_count=132, uuid="1-2"
    )
    asked = []
    answers = {
        "get_device_properties": lambda which: about,
        "memory_allocated": lambda: 10**8,
        "max_memory_allocated": lambda: 3 * 10**8,
        "max_memory_reserved": lambda: 4 * 10**8,
        **{name: lambda: None for name in ("reset_peak_memory_stats", "empty_cache", "synchronize")},
        "set_sync_debug_mode": asked.append,
    }
    for name, answer in answers.items():
        assert hasattr(cuda, name)
        monkeypatch.setattr(cuda, name, answer)
    monkeypatch.setattr(device, "REHEARSAL", False)
    monkeypatch.setattr(device, "smi", lambda which: {"smi_driver_version": which})
    assert device.describe()["gpu"] == "a GPU (sm_90)"
    assert device.describe()["smi_driver_version"] == "GPU-1-2"
    device.release()
    taken = device.memory(device.start_memory())
    assert taken == {"device_peak_mb": 200.0, "device_input_mb": 100.0, "device_reserved_mb": 400.0}
    event = cuda.Event.synchronize
    with device.count_syncs() as syncs:
        warnings.warn("called a synchronizing CUDA operation", stacklevel=1)
        warnings.warn("called a synchronizing CUDA operation", stacklevel=1)
        warnings.warn("something else", stacklevel=1)
        cuda.synchronize()
    assert syncs.count == 3 and asked == ["warn", "default"] and cuda.Event.synchronize is event


class Worker:
    """In the stead of a process: answers as worker.py does, out of `script`, {(case, provider): what}."""

    script: dict = {}  # noqa: RUF012
    begun = 0

    def __init__(self, provider, case, pool, limit, folder):
        self.child, self.number = SimpleNamespace(poll=lambda: None), 0
        Worker.begun += 1
        self.begin(provider, case, pool, limit, folder)

    def begin(self, provider, case, pool, limit, folder):
        self.case, self.now, self.folder = case, self.script[case.name, provider], folder

    def ready(self, seconds):
        return {"rows": 10, "data": "made up", "warm_rows": 10, "warm_seconds": 0.1}

    def run(self, number, seconds):
        if isinstance(self.now.get("seconds"), str):
            raise Stopped(self.now["seconds"])
        picks = np.arange(self.now.get("picks", self.case.k))
        notes = {"phases_ms": {"compile": 500.0}, "sweeps": 1.0, **self.now.get("notes", {})}
        took = {"device_peak_mb": 90_000.0}
        last = {"picks": f"{self.folder}/picks.npz", "device": took, "notes": notes, "indices": picks}
        return {"seconds": self.now["seconds"], "peak": 10**6, **last}

    def ask(self, seconds, **message):
        if "describe" in message:
            return {"about": {"gpu": "NVIDIA H200 (sm_90)", "versions": {"torch": "2.11.0"}}}
        if "count" in message:
            return {"syncs": 100, "picked": self.case.k}
        return self.now.get("check", {"gate": "pass", "value": 1.0, "against": message["against"]})

    def close(self):
        pass


@pytest.fixture
def device_bench(tmp_path, monkeypatch):
    """measure(script, seconds) -> rows of DEVICE_CASES that the script names, by a Worker"""
    monkeypatch.setattr(gpu, "Process", Worker)
    monkeypatch.setattr(Worker, "begun", 0)

    def measure(script: dict, seconds: float = 1000.0) -> list[dict]:
        monkeypatch.setattr(Worker, "script", script)
        bench = gpu.DeviceBench(tmp_path / "rows.jsonl", time.monotonic() + seconds, tmp_path)
        bench.say = lambda text: None
        cases = [case for case in DEVICE_CASES if any(case.name == name for name, _ in script)]
        bench.measure(cases)
        bench.count_rest(cases)
        written = [json.loads(line) for line in bench.out.read_text().splitlines()]
        assert bench.rows == written[-len(bench.rows) :]
        return bench.rows

    return measure


def large(must: float) -> Case:
    return next(case for case in DEVICE_CASES if case.must == must)


def test_rows_of_the_device(device_bench):
    """Compilation apart, fewer picks scaled, bars with whether they were reached, one worker for all."""
    naive = {"seconds": 3.0, "picks": 100, "notes": {"setup_seconds": 1.0}}
    script = {
        (FL50.name, TRITON): {"seconds": 1.0},
        (FL50.name, "torch-naive"): {**naive, "check": {"value": 1.0, "value_ratio": 1.0}},
        (FL50.name, "torch-incremental"): {"seconds": 1.1, "check": {"value": 0.9, "value_ratio": 0.9}},
        (FL50.name, "torch-blocked"): {"seconds": "memory: too much (CUDA out of memory)"},
        (large(8.0).name, TRITON): {"seconds": 8.5},
    }
    ours, other, wrong, none, million, again = device_bench(script)
    assert (
        Worker.begun == 1 and ours["ms_p50"] == 500.0 and ours["compile_ms"] == 500.0 and ours["repeats"] == 2
    )
    assert ours["versions"]["torch"] == "2.11.0" and ours["device"] == "NVIDIA H200 (sm_90)"
    assert [entry["what"].split(": ")[1] for entry in ours["musts"]] == ["host synchronisations a pick"]
    assert ours["musts"][0] | {"what": ""} == {"what": "", "value": 0.02, "must": "< 0.1", "reached": True}
    assert other["ms_p50"] == 101_000.0 and other["timed_picks"] == 100 and other["measured_ms"] == 3000.0
    assert other["musts"][0]["value"] == 202.0 and other["musts"][0]["reached"] is True
    assert wrong["musts"][0]["value"] is None and wrong["musts"][0]["reached"] is False  # another f(S)
    assert none["stopped"].startswith("memory") and not gpu.failed(none) and none["musts"] == []
    assert "syncs" not in million and again["syncs_per_pick"] == 0.01 and million["ms_p50"] == again["ms_p50"]
    assert [entry["reached"] for entry in again["musts"]] == [True, False, True]  # 8 s, 90 of 80 GB, waits


def test_a_pick_of_the_tail_and_tasks_one_by_one():
    """Bars that compare rows."""
    rows = {
        (FEWER.name, TRITON): {"ms_p50": 4000.0},
        (MORE.name, TRITON): {"ms_p50": 4350.0},
        (LAUNCH.name, TRITON): {"ms_p50": 150.0},
    }
    assert musts.tail_pick(rows) == pytest.approx(7.0)
    tail, apart = (next(m for m in musts.DEVICE_MUSTS if text in m.text) for text in ("tail", "one by one"))
    assert "reached" in tail.judge(rows) and "not measured" in apart.judge(rows)
    rows[LAUNCH.name, APART] = {"ms_p50": 1400.0}
    assert "MISSED" in apart.judge(rows) and apart.figure(rows) == pytest.approx(9.33, abs=0.01)


def test_a_case_that_the_time_would_not_do_is_skipped(device_bench):
    first, second = large(8.0), large(10.0)
    script = {(first.name, TRITON): {"seconds": 24.5}, (second.name, TRITON): {"seconds": 10.0}}
    slow, skipped = device_bench(script, seconds=34.0)
    assert slow["slow"] == 3.0 and skipped["stopped"].startswith("time: about 35 s are needed, 3")
    assert not gpu.failed(slow) and not gpu.failed(skipped)


def test_a_worker_that_dies_costs_one_case(device_bench):
    first, second = large(8.0), large(10.0)
    dead = {"seconds": "error: exit status 1, CUDA error: an illegal memory access"}
    rows = device_bench({(first.name, TRITON): dead, (second.name, TRITON): {"seconds": 9.0}})
    assert (
        Worker.begun == 2 and gpu.failed(rows[0]) and rows[1]["ms_p50"] == 8500.0 and not gpu.failed(rows[1])
    )
    bad = {"seconds": 9.0, "check": {"gate": "fail: pick 3", "value": None}}
    (row,) = device_bench({(first.name, TRITON): bad})
    assert gpu.failed(row) and "ms_p50" not in row and row["gate"] == "fail: pick 3"


def test_final_table_and_readme_of_the_device(device_bench, tmp_path, capsys):
    script = {(large(0.7).name, TRITON): {"seconds": 1.0}, (large(8.0).name, TRITON): {"seconds": 10.5}}
    text = gpu.final_table(device_bench(script))
    name = "FL gaussian 100,000 x 768 / 10,000"
    assert f"reached       {name}: s: 0.5 (<= 0.7), by 29%" in text
    assert f"MISSED        {musts.title(large(8.0))}: s: 10 (<= 8), by 25%" in text
    assert f"not measured  {musts.title(large(1.0))}: s: <= 1" in text
    readme = tmp_path / "README.md"
    begin, end = plot.BEGIN_GPU, plot.END_GPU
    readme.write_text(f"{plot.BEGIN}\nthe CPU's\n{plot.END}\n{begin}\n{end}\n")
    assert plot.main([str(tmp_path / "rows.jsonl"), "--readme", str(readme), "--images", str(tmp_path)]) == 0
    lines = readme.read_text().splitlines()
    assert lines[1] == "the CPU's" and not list(tmp_path.glob("*.png"))  # no row is of the CPU
    assert f"| {name} | 0.7 s | 500 ms | 1.00 | 90.0 | 0.010 | 1.0 |" in lines
    assert f"| {musts.title(large(20.0))} | 20 s | not measured | - | - | - | - |" in lines
    stage2 = "FL gaussian 6,266,471 x 1024 / 50,000 in 309 tasks"
    assert musts.title(STAGE2) == stage2 and f"| {stage2} | 25 s | not measured | - | - | - | - |" in lines
    assert f"not measured  {stage2}: s: <= 25" in text
    assert "torch 2.11.0" in lines[-2] and f"reached       {name}: s: 0.5" in capsys.readouterr().out


def test_other_devices_are_not_judged():
    row = {"case": large(8.0).name, "provider": TRITON, "ms_p50": 1.0, "gate": "pass"}
    assert not musts.is_judged({**row, "gpu": "NVIDIA A100 (sm_80)"}) and not musts.is_judged(row)
    assert not musts.is_judged({**row, "gpu": "NVIDIA H200 (sm_90)", "rehearsal": True})
    assert musts.is_judged({**row, "gpu": "NVIDIA H200 (sm_90)"})
    other = {("a", "torch-naive"): {"ms_p50": 9.0, "value_ratio": 1.01}, ("a", TRITON): {"ms_p50": 1.0}}
    assert math.isnan(musts.times_faster("a", "torch-naive")(other))


def test_gpu_tests_are_bounded(tmp_path, monkeypatch):
    """Outcomes of a run of tests, and of one that the time ends."""
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_some.py").write_text(
        "import pytest, time\n"
        "def test_good(): pass\n"
        "def test_bad(): assert 0\n"
        "@pytest.mark.skip(reason='x')\ndef test_left_out(): pass\n"
        "def test_long(): time.sleep(60)\n"
    )
    monkeypatch.setattr(gpu, "ROOT", tmp_path)
    names = [f"tests/test_some.py::test_{name}" for name in ("good", "bad", "left_out")]
    row = gpu.run_tests(names, 60, tmp_path / "log")
    assert (row["passed"], row["skipped"], row["failed"], row["missing"]) == (1, 1, [names[1]], 0)
    row = gpu.run_tests([*names, "tests/test_some.py::test_long"], 5, tmp_path / "log")
    assert (row["passed"], row["missing"]) == (1, 1) and row["seconds"] < 30
    with pytest.raises(OSError, match="pytest collects nothing"):
        gpu.collect(60, False)  # none has the mark


def test_no_gpu_is_said(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(os.environ, "TRITON_INTERPRET", "1")
    assert gpu.main(["--out", str(tmp_path / "rows")]) == 2
    assert "no GPU to measure" in capsys.readouterr().err and not (tmp_path / "rows").exists()


def test_a_task_of_the_device(device, tmp_path, monkeypatch):
    """What the worker does on a GPU, step by step, with torch on the CPU in its stead: a second, larger warm-up, memory
    and clocks of each run, the next task on the same pool."""
    from torch import cuda

    from bench import worker

    for name in ("reset_peak_memory_stats", "empty_cache", "synchronize", "set_sync_debug_mode"):
        monkeypatch.setattr(cuda, name, lambda *args: None)
    for name in ("memory_allocated", "max_memory_allocated", "max_memory_reserved"):
        monkeypatch.setattr(cuda, name, lambda: 5_000_000)
    monkeypatch.setattr(device, "HERE", "cpu")
    monkeypatch.setattr(device, "REHEARSAL", False)
    monkeypatch.setattr(device, "clocks", lambda: {"smi_clocks_sm": "1980"})
    monkeypatch.setattr(worker, "SHAPE_ROWS", 112)
    monkeypatch.setattr(worker.DeviceTask, "pool", ())
    case = Case(FL, "isotropic", 700, 30, d=16, where="device")
    message = {"case": vars(case), "dir": str(tmp_path), "pool": None, "limit": None}
    task, ready = worker.answer_to({**message, "provider": "torch-naive"}, None)
    assert (
        ready["warm_rows"] == 112 + 700 % 16
        and ready["rows"] == 500
        and ready["data"] == "isotropic Gaussian"
    )
    task, first = worker.answer_to({"run": 0}, task)
    assert first["device"] == {
        "device_peak_mb": 0.0,
        "device_input_mb": 5.0,
        "device_reserved_mb": 5.0,
        "smi_clocks_sm": "1980",
    }
    pool = worker.DeviceTask.pool[1]
    task, _ = worker.answer_to({**message, "provider": "torch-incremental"}, task)
    assert worker.DeviceTask.pool[1] is pool  # not drawn again
    task, _ = worker.answer_to({"run": 1}, task)
    assert worker.answer_to({"count": True}, task)[1] == {"syncs": 0, "picked": 30}
    _, checked = worker.answer_to({"check": 1, "against": first["picks"]}, task)
    assert checked["value_ratio"] == pytest.approx(1, rel=1e-6) and checked["value"] > 0

    def too_large(*arguments):
        raise RuntimeError("CUDA out of memory. Tried to allocate 20.00 GiB")

    monkeypatch.setattr(task, "select", too_large)
    with pytest.raises(worker.OutOfMemory, match="memory: too much"):
        task.run(2)
