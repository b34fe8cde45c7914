"""pytest-benchmark cases for the primitives of the backends, on 10,000 rows of the Gaussian pool (d = 384, cosine).

    python -m pytest bench/test_primitives.py            # not part of the suite: testpaths is tests/

A full product is 2 n^2 d = 77 GFLOP; `gflop_s` in extra_info is each primitive's rate over the pairs it computes.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import pytest

pytest.importorskip("pytest_benchmark", reason="pip install 'smartgpu[bench]'")

from bench.cases import FL, Case, write_pool
from smartgpu import FacilityLocation, GraphCut, LogDet
from smartgpu.backends import BACKENDS, gpu
from smartgpu.objectives import Ground
from smartgpu.similarity import as_similarity

CASE = Case(FL, "gaussian", 10_000, 1_000)
PICKS = 64  # in the level at which sweeps and survivors are measured
ROUNDS = {"rounds": 5, "iterations": 1, "warmup_rounds": 1}


@pytest.fixture(scope="module")
def pool(tmp_path_factory) -> np.ndarray:
    path = tmp_path_factory.mktemp("pool") / "pool.npy"
    write_pool(CASE, path)
    return np.load(path)


@pytest.fixture(scope="module", params=list(BACKENDS))
def ground(request, pool) -> Ground:
    if request.param == "triton" and not gpu.find_gpu().usable:
        pytest.skip(f"backend triton: {gpu.find_gpu().missing}")
    return Ground(pool, as_similarity("cosine"), request.param)


@pytest.fixture(scope="module")
def backend(ground):
    return ground.backend()


@pytest.fixture(scope="module")
def level(backend):
    """The level after PICKS evenly spaced rows."""
    level = backend.new_level()
    backend.raise_level(level, np.arange(0, backend.n, backend.n // PICKS))
    return level


@pytest.fixture
def timed(benchmark, ground):
    """timed(f): rounds of f(); counts the pairs that the backends compute meanwhile."""

    def run(f, setup=None):
        opened = list(ground.opened)
        before = sum(b.pairs for b in opened)
        benchmark.pedantic(f, setup=setup, **ROUNDS)
        pairs = (sum(b.pairs for b in opened) - before) / (ROUNDS["rounds"] + ROUNDS["warmup_rounds"])
        benchmark.extra_info["pairs"] = pairs
        benchmark.extra_info["gflop_s"] = 2e-9 * pairs * CASE.d / benchmark.stats.stats.median

    return run


def test_excess_sweep(timed, backend, level):
    timed(lambda: backend.excess(level))


def test_keep(timed, backend, level):
    cols = np.arange(5, backend.n, backend.n // backend.max_batch())[: backend.max_batch()]
    timed(lambda: backend.keep(level, cols))


def test_survivors_build(timed, backend, level):
    timed(lambda: backend.survivors(level))


def test_survivors_excess(timed, backend, level):
    sparse = backend.survivors(level)
    timed(lambda: sparse.excess(level))


def test_totals(timed, backend):
    timed(backend.totals)


def test_cheap_bounds(timed, ground):
    state = FacilityLocation().bind(ground)
    state.add(np.arange(4))
    if state.bounds()[1]:
        pytest.skip("these bounds are the gains themselves: there are no cheap ones")
    timed(state.bounds)


def test_graph_cut_refresh(timed, ground):
    state = GraphCut(lam=0.4).bind(ground)
    state.add(np.arange(PICKS))
    timed(state.gains)


def test_log_det_refresh(timed, ground):
    """All gains, stale by PICKS picks."""

    def stale():
        state = LogDet(lam=1.0).bind(ground)
        state.add(np.arange(PICKS))
        return (state,), {}

    timed(lambda state: state.gains(), setup=stale)
