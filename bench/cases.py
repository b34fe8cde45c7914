"""Cases of the benchmark: what is selected from which pool. Later benchmarks (GPU, many processes) select from here."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
SHORT = {"facility_location": "fl", "graph_cut": "gc", "log_det": "ld"}
PARAMETERS: dict[str, dict[str, float]] = {
    "facility_location": {},
    "graph_cut": {"lam": 0.4},  # SMART's task stage
    "log_det": {"lam": 1.0},
}
ALPACA_ROWS = 52_002
BLOCK = 8192  # rows drawn from one seed: the first rows of a pool are the same for every n
CLUSTERS = 200


@dataclass(frozen=True)
class Case:
    """k rows of an (n, d) float32 pool, cosine. providers: who runs it, None is everyone who knows the objective."""

    objective: str
    pool: str
    n: int
    k: int
    d: int = 384
    similarity: str = "cosine"
    seed: int = 0
    providers: tuple[str, ...] | None = None

    @property
    def name(self) -> str:
        return f"{SHORT[self.objective]}_{self.pool}_n{self.n}_d{self.d}_k{self.k}"

    @property
    def parameters(self) -> dict[str, float]:
        return PARAMETERS[self.objective]

    def describe(self) -> dict[str, Any]:
        names = ("objective", "pool", "n", "d", "k", "similarity", "seed")
        return {"case": self.name, **{name: getattr(self, name) for name in names}, **self.parameters}


OURS = ("smartgpu-numpy",)
GREEDY = ("blas", *OURS, "apricot-lazy", "submodlib")
FL, GC, LD = SHORT

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


ON_DEVICE = ("smartgpu-triton", "torch-cuda")
DEVICE_CASES: tuple[Case, ...] = (  # of bench/gpu.py
    Case(FL, "alpaca", 10_000, 1_000, providers=ON_DEVICE),
    Case(GC, "alpaca", 10_000, 1_000, providers=ON_DEVICE),
    Case(LD, "alpaca", 10_000, 1_000, providers=ON_DEVICE),
    Case(FL, "alpaca", ALPACA_ROWS, 5_000, providers=ON_DEVICE),
    Case(GC, "alpaca", ALPACA_ROWS, 5_000, providers=ON_DEVICE),
    Case(LD, "alpaca", ALPACA_ROWS, 5_000, providers=ON_DEVICE),
    Case(FL, "gaussian", 100_000, 1_000, d=1024, providers=("smartgpu-triton",)),
    Case(FL, "gaussian", 1_000_000, 10_000, providers=("smartgpu-triton",)),
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


def _gaussian(case: Case):
    """Mean and covariance of the Alpaca embeddings (d = 384, data there). Otherwise a stand-in with what was measured
    on them: |mean|^2 = 0.093, the i-th largest variance proportional to i^-0.93, all variances together 0.907."""
    d = case.d
    if d == 384 and alpaca_path().is_file():
        x = np.load(alpaca_path()).astype(np.float64)
        mean, (variances, axes) = x.mean(axis=0), np.linalg.eigh(np.cov(x.T, bias=True))
        root = (axes * np.sqrt(np.maximum(variances, 0))).T
    else:
        rng = np.random.default_rng([case.seed, d, 1])
        mean = rng.standard_normal(d)
        mean *= np.sqrt(0.093) / np.linalg.norm(mean)
        variances = np.arange(1, d + 1) ** -0.93
        root = np.sqrt(variances * 0.907 / variances.sum())[:, None] * _axes(rng, d)
    root32, mean32 = root.astype(np.float32), mean.astype(np.float32)
    return lambda rng, m: rng.standard_normal((m, d), np.float32) @ root32 + mean32


def _axes(rng: np.random.Generator, d: int) -> np.ndarray:
    return np.linalg.qr(rng.standard_normal((d, d)))[0]


def _clusters(case: Case):
    """CLUSTERS centres of norm 1, noise of norm about 1 around them: cosines of about 0.5 inside a cluster."""
    d = case.d
    centres = np.random.default_rng([case.seed, d, 2]).standard_normal((CLUSTERS, d)).astype(np.float32)
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    noise = np.float32(d**-0.5)
    return lambda rng, m: (
        centres[rng.integers(0, CLUSTERS, m)] + noise * rng.standard_normal((m, d), np.float32)
    )


def _isotropic(case: Case):
    return lambda rng, m: rng.standard_normal((m, case.d), np.float32)
