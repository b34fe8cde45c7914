"""Cases of the benchmark, on the CPU and on a GPU: what is selected from which pool, and in what time it must be."""

from __future__ import annotations

import functools
import os
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
SHORT = {"facility_location": "fl", "graph_cut": "gc", "log_det": "ld", "facility_location_quality": "flq"}
FL, GC, LD, FLQ = SHORT
PARAMETERS: dict[str, dict[str, float]] = {
    FL: {},
    GC: {"lam": 0.4},  # SMART's task stage
    LD: {"lam": 1.0},
    # f / n = (1 - alpha) mean coverage of the pool + alpha mean quality of the chosen; QDIT's published alpha
    FLQ: {"alpha": 0.7},
}
ALPACA_ROWS = 52_002
BLOCK = 8192  # rows drawn from one seed: the first rows of a pool are the same for every n
CLUSTERS = 200


@dataclass(frozen=True)
class Case:
    """k rows of an (n, d) pool, cosine.

    tasks      k rows in all, inside so many groups of rows (see task_labels, task_budgets); None: of the whole pool
    largest    rows of the largest of them
    providers  who runs it; None is everyone who knows the objective
    where      "host": the input is a float32 array; "device": a float16 tensor on the GPU, so that no transfer is timed
    memory     what a selection on the GPU is told that it may take there; None is its default
    must       seconds that it may take on one H200; None: it is only reported
    expect     seconds that it is given when the time left is planned and nothing like it was measured yet
    """

    objective: str
    pool: str
    n: int
    k: int
    d: int = 384
    similarity: str = "cosine"
    seed: int = 0
    providers: tuple[str, ...] | None = None
    where: str = "host"
    memory: str | None = None
    must: float | None = None
    expect: float = 3.0
    tasks: int | None = None
    largest: int | None = None

    @property
    def name(self) -> str:
        parts = [SHORT[self.objective], self.pool, f"n{self.n}", f"d{self.d}", f"k{self.k}"]
        parts += [f"t{self.tasks}"] if self.tasks else []
        parts += ["device"] if self.where == "device" else []
        return "_".join(parts + ([self.memory.lower()] if self.memory else []))

    @property
    def parameters(self) -> dict[str, float]:
        return PARAMETERS[self.objective]

    @property
    def quality_weight(self) -> float:
        """Of each row's quality: alpha n / k, so that both sums are means times n."""
        return self.parameters["alpha"] * self.n / self.k

    def describe(self) -> dict[str, Any]:
        names = ("objective", "pool", "n", "d", "k", "similarity", "seed", "where", "memory")
        names += ("tasks", "largest") if self.tasks else ()
        return {"case": self.name, **{name: getattr(self, name) for name in names}, **self.parameters}


OURS = ("smartgpu-numpy",)
GREEDY = ("blas", *OURS, "apricot-lazy", "submodlib")

# Small first: a provider whose cost is known to grow as k n^2 is stopped by what it took on an earlier case.
CASES: tuple[Case, ...] = (
    # every provider: k/n of 1, 10 and (nearly: submodlib wants k < n) 100 %
    Case(FL, "alpaca", 1_000, 10),
    Case(FL, "alpaca", 1_000, 100),
    Case(FL, "alpaca", 1_000, 999),
    Case(GC, "alpaca", 1_000, 100),
    Case(LD, "alpaca", 1_000, 100),
    Case(FL, "alpaca", 5_000, 500),
    Case(FL, "alpaca", 10_000, 100, providers=GREEDY),
    Case(FL, "alpaca", 10_000, 1_000),
    Case(FL, "alpaca", 10_000, 9_999, providers=GREEDY),
    Case(GC, "alpaca", 10_000, 1_000),
    Case(LD, "alpaca", 10_000, 1_000),
    # other pools and another d
    Case(FL, "gaussian", 10_000, 1_000, providers=GREEDY),
    Case(FL, "clusters", 10_000, 1_000, providers=GREEDY),
    Case(FL, "isotropic", 10_000, 1_000, providers=GREEDY),
    Case(FL, "gaussian", 10_000, 1_000, d=1024, providers=GREEDY),
    Case(GC, "gaussian", 10_000, 1_000, d=1024, providers=("blas", *OURS, "apricot-lazy")),
    Case(LD, "gaussian", 10_000, 1_000, d=1024, providers=("blas", *OURS)),
    # where the n x n kernels of the peers stop
    Case(FL, "alpaca", 20_000, 2_000),
    Case(FL, "alpaca", ALPACA_ROWS, 520, providers=("blas", *OURS)),
    Case(FL, "alpaca", ALPACA_ROWS, 5_000),
    Case(FL, "alpaca", ALPACA_ROWS, ALPACA_ROWS, providers=("blas", *OURS)),
    Case(GC, "alpaca", ALPACA_ROWS, 5_000),
    Case(LD, "alpaca", ALPACA_ROWS, 5_000),
    # large ones, alone
    Case(FL, "gaussian", 100_000, 1_000, providers=OURS),
    Case(LD, "gaussian", 200_000, 2_000, providers=OURS),
    Case(GC, "gaussian", 1_000_000, 10_000, providers=OURS),
)

QUICK: tuple[Case, ...] = (
    Case(FL, "alpaca", 1_000, 100),
    Case(GC, "alpaca", 1_000, 100, providers=(*GREEDY, "numpy")),
    Case(LD, "alpaca", 1_000, 100, providers=(*GREEDY, "numpy")),
    Case(FL, "gaussian", 2_000, 200, d=1024, providers=("blas", *OURS, "submodlib")),
    Case(FL, "alpaca", 5_000, 500, providers=(*GREEDY, "smartgpu-numpy-1gb", "kmedoids")),
)


TRITON = "smartgpu-triton"
APART = "smartgpu-triton-apart"  # tasks one after the other, and no kernel of csrc/
DENSE = ("torch-naive", "torch-incremental", "torch-blocked")  # what a user would write in torch


def _large(objective: str, n: int, k: int, pool: str = "gaussian", **more: Any) -> Case:
    return Case(objective, pool, n, k, **{"providers": (TRITON,), "where": "device", **more})


FL50 = Case(FL, "alpaca", 50_000, 5_000, providers=(TRITON, *DENSE), where="device")
MILLION = 1_000_000
# Stage 2 of SMART, of the shape of a published replication: rows chosen inside each of 309 tasks.
STAGE2 = _large(FL, 6_266_471, 50_000, d=1024, tasks=309, largest=363_846, must=25.0)
# As many tasks as a launch is made for, of 20 to 5,000 rows.
LAUNCH = _large(FL, 800_000, 25_000, d=1024, tasks=1840, largest=5_000, must=0.2, providers=(TRITON, APART))
# What the survivors' tail takes is the difference between these.
FEWER = _large(FL, MILLION, 10_000, memory="80GB", must=8.0)
MORE = _large(FL, MILLION, 60_000, memory="80GB", expect=9.0)

# Of bench/gpu.py, the shortest first, and what has no bar last: what is measured before the time is over counts. The
# bars are for one H200.
DEVICE_CASES: tuple[Case, ...] = (
    Case(FL, "alpaca", 10_000, 1_000, providers=(TRITON, "torch-naive", "torch-incremental")),
    Case(GC, "alpaca", 10_000, 1_000, providers=(TRITON, "torch-cuda")),
    Case(LD, "alpaca", 10_000, 1_000, providers=(TRITON, "torch-cuda")),
    _large(GC, MILLION, 10_000, must=0.3),
    _large(LD, MILLION, 10_000, must=1.0),
    _large(FL, 100_000, 10_000, d=768, must=0.7),
    FL50,
    Case(FL, "alpaca", ALPACA_ROWS, 5_000, providers=(TRITON,)),
    Case(GC, "alpaca", ALPACA_ROWS, 5_000, providers=(TRITON, "torch-cuda")),
    Case(LD, "alpaca", ALPACA_ROWS, 5_000, providers=(TRITON, "torch-cuda")),
    FEWER,
    MORE,
    _large(FL, MILLION, 100_000, memory="80GB", must=10.0),
    _large(FL, MILLION, 10_000, memory="40GB", must=11.0),
    _large(FL, MILLION, 100_000, memory="40GB", must=13.0),
    _large(FLQ, 939_000, 50_000, d=768, memory="120GB", must=20.0),
    LAUNCH,
    STAGE2,
    _large(FL, MILLION, 10_000, "isotropic", memory="80GB", expect=40.0),
)

# Of its rehearsal in Triton's interpreter: every path of the above, on pools that take a second or so.
TINY: dict[str, Any] = {"d": 32, "where": "device", "memory": "1GB"}
REHEARSAL: tuple[Case, ...] = (
    Case(GC, "alpaca", 64, 4, providers=(TRITON, "torch-cuda")),
    Case(LD, "gaussian", 64, 4, providers=(TRITON, "torch-cuda"), **TINY),
    Case(FL, "gaussian", 96, 6, providers=(TRITON, *DENSE), **TINY),
    Case(FLQ, "isotropic", 96, 6, providers=(TRITON,), **TINY),
    Case(FL, "gaussian", 120, 12, providers=(TRITON, APART), tasks=4, largest=60, **TINY),
)


def alpaca_path() -> Path:
    return Path(os.environ.get("SMARTGPU_DATA") or ROOT.parent / "shared" / "data") / "alpaca" / "minilm.npy"


def write_pool(case: Case, path: Path) -> None:
    """The case's input, (n, d) float32, as .npy. Raises FileNotFoundError where a real pool is not there."""
    out = np.lib.format.open_memmap(path, "w+", np.float32, (case.n, case.d))
    if case.pool == "alpaca":
        if case.d != 384 or case.n > ALPACA_ROWS:
            raise ValueError(f"pool alpaca is {ALPACA_ROWS} x 384, got n={case.n}, d={case.d}")
        out[:] = np.load(alpaca_path(), mmap_mode="r")[: case.n]
    else:
        draw = {"gaussian": _gaussian, "clusters": _clusters, "isotropic": _isotropic}[case.pool](case)
        for number, start in enumerate(range(0, case.n, BLOCK)):
            rng = np.random.default_rng([case.seed, number])
            out[start : start + BLOCK] = draw(rng, BLOCK)[: case.n - start]
    out.flush()


def quality(case: Case) -> np.ndarray:
    """(n,) float64 in [0, 1), seeded: the made-up quality of each row."""
    return np.random.default_rng([case.seed, 3]).random(case.n)


def log_normal_sizes(count: int, total: int, largest: int) -> np.ndarray:
    """(count,) int64, descending: quantiles, evenly spaced, of a log-normal distribution; largest and sum as given."""
    z = np.array([statistics.NormalDist().inv_cdf((i + 0.5) / count) for i in range(count)])
    low, high = 0.1, 5.0
    for _ in range(60):
        sigma = (low + high) / 2
        shares = np.exp(sigma * (z - z[-1]))
        low, high = (sigma, high) if largest * shares.sum() > total else (low, sigma)
    sizes = np.maximum(2, np.round(largest * shares)).astype(np.int64)[::-1].copy()
    sizes[1] += total - sizes.sum()  # what rounding took or gave
    return sizes


def task_sizes(case: Case) -> np.ndarray:
    """(tasks,) int64: rows of each task."""
    return log_normal_sizes(case.tasks, case.n, case.largest)


def task_budgets(sizes: np.ndarray, chosen: int) -> np.ndarray:
    """(tasks,) int64: rows to choose in each, in proportion to its own, at least one, `chosen` in all."""
    from smartgpu.mixture.rounding import fit, split

    return fit(split(chosen, sizes), np.ones_like(sizes), sizes)


def task_labels(case: Case) -> np.ndarray:
    """(n,) int64, seeded: the task of each row, in no order."""
    return _labels(case.tasks, case.n, case.largest, case.seed)


@functools.cache
def _labels(tasks: int, n: int, largest: int, seed: int) -> np.ndarray:
    in_order = np.repeat(np.arange(tasks), log_normal_sizes(tasks, n, largest))
    return np.random.default_rng([seed, 4]).permutation(in_order)


def gaussian(d: int, seed: int) -> tuple[np.ndarray, np.ndarray, str]:
    """(root (d, d), mean (d,), source) of the pool gaussian: its rows are z root + mean, z standard normal.

    Mean and covariance of the Alpaca embeddings (d = 384, data there). Otherwise a stand-in with what was measured
    on them: |mean|^2 = 0.093, the i-th largest variance proportional to i^-0.93, all variances together 0.907."""
    if d == 384 and alpaca_path().is_file():
        x = np.load(alpaca_path()).astype(np.float64)
        mean, (variances, axes) = x.mean(axis=0), np.linalg.eigh(np.cov(x.T, bias=True))
        root = (axes * np.sqrt(np.maximum(variances, 0))).T
        source = "Gaussian, mean and covariance of alpaca/minilm.npy"
    else:
        rng = np.random.default_rng([seed, d, 1])
        mean = rng.standard_normal(d)
        mean *= np.sqrt(0.093) / np.linalg.norm(mean)
        variances = np.arange(1, d + 1) ** -0.93
        root = np.sqrt(variances * 0.907 / variances.sum())[:, None] * _axes(rng, d)
        source = "Gaussian, |mean|^2 0.093, variances as i^-0.93"
    return root.astype(np.float32), mean.astype(np.float32), source


def _gaussian(case: Case):
    root, mean, _ = gaussian(case.d, case.seed)
    return lambda rng, m: rng.standard_normal((m, case.d), np.float32) @ root + mean


def _axes(rng: np.random.Generator, d: int) -> np.ndarray:
    return np.linalg.qr(rng.standard_normal((d, d)))[0]


def centres(d: int, seed: int) -> np.ndarray:
    """(CLUSTERS, d) float32 of norm 1"""
    out = np.random.default_rng([seed, d, 2]).standard_normal((CLUSTERS, d)).astype(np.float32)
    return out / np.linalg.norm(out, axis=1, keepdims=True)


def _clusters(case: Case):
    """CLUSTERS centres of norm 1, noise of norm about 1 around them: cosines of about 0.5 inside a cluster."""
    d, middle = case.d, centres(case.d, case.seed)
    noise = np.float32(d**-0.5)
    return lambda rng, m: (
        middle[rng.integers(0, CLUSTERS, m)] + noise * rng.standard_normal((m, d), np.float32)
    )


def _isotropic(case: Case):
    return lambda rng, m: rng.standard_normal((m, case.d), np.float32)
