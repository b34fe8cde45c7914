"""csrc/tail.cu: picks from survivors in one launch, against Triton's steps; on the CPU by threads."""

import hostcuda
import numpy as np
import pytest

import smartgpu

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from smartgpu.backends import cuda, cuda_tail, device, resident
from smartgpu.kernels import launch

CPU = torch.device("cpu")
interpreted = pytest.mark.skipif(not launch.INTERPRETED, reason="the kernels of this process run on a GPU")


@pytest.fixture
def kernels(monkeypatch):
    fake = hostcuda.install(monkeypatch)
    monkeypatch.setattr(cuda_tail, "LEAST", 7)  # several launches
    return fake


def pool(rng, n):
    x = (rng.standard_normal((n, 16)) + 0.3).astype(np.float32)
    x[n // 2 : n // 2 + 9] = x[:9]
    return x


@interpreted
@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("plain", {}),
        ("plain", {"tie_break": "high"}),
        ("weights", {"tie_break": "high"}),
        ("quality", {}),
        ("represented", {}),
        ("until", {"coverage": 0.9}),
        ("given", {"given": [3, 4], "exclude": [40, 41]}),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value) or "as-is",
)
def test_same_picks_as_by_steps(name, how, kernels, rng, monkeypatch):
    n = 48
    x = pool(rng, n)
    spec = {
        "weights": smartgpu.FacilityLocation(rng.random(n)),
        "quality": smartgpu.QualityDiversity(0.3, rng.standard_normal(n)),
        "represented": smartgpu.FacilityLocation(represented=pool(rng, 40)),
    }.get(name, smartgpu.FacilityLocation())
    kind = "cosine_shifted" if name == "until" else "cosine"
    k = None if name == "until" else 24
    got = smartgpu.select(x, k, spec, kind, backend="triton", **how)
    assert kernels.launched.count("sparse_tail") >= (1 if name == "until" else 2)
    with cuda.without(CPU):
        want = smartgpu.select(x, k, spec, kind, backend="triton", **how)
    np.testing.assert_array_equal(got.indices, want.indices)
    np.testing.assert_array_equal(got.gains, want.gains)
    assert got.value == want.value


@interpreted
@pytest.mark.parametrize(("ranks", "threads"), [(3, 128), (70, 32)])
def test_lanes_pick_the_same(ranks, threads, rng, monkeypatch):
    """Device code as it is, with a thread for every lane: shuffles, sums of warps, the barrier of the grid, and more
    blocks than a warp has lanes."""
    fake = hostcuda.install(monkeypatch, hostcuda.LaneKernels)
    monkeypatch.setattr(fake, "multiprocessors", ranks, raising=False)
    monkeypatch.setattr(cuda_tail, "LEAST", 7)
    monkeypatch.setattr(cuda_tail, "THREADS", threads)  # of 1,024, so that there are fewer that take turns
    n = 72
    x, spec = pool(rng, n), smartgpu.FacilityLocation(rng.integers(1, 9, n).astype(float))
    got = smartgpu.select(x, 24, spec, backend="triton")
    assert fake.launched.count("sparse_tail") >= 2
    with cuda.without(CPU):
        want = smartgpu.select(x, 24, spec, backend="triton")
    np.testing.assert_array_equal(got.indices, want.indices)
    np.testing.assert_array_equal(got.gains, want.gains)


@interpreted
def test_steps_go_on_where_a_launch_fails(kernels, rng, monkeypatch, caplog):
    """After some launches: what they picked stays, and the loop's own steps pick the rest."""
    x, launches, start = pool(rng, 48), [], kernels.launch

    def fails(name, *arguments, **how):
        launches.append(name)
        if launches.count("sparse_tail") == 2:
            raise RuntimeError("CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE")
        start(name, *arguments, **how)

    monkeypatch.setattr(kernels, "launch", fails)
    got = smartgpu.select(x, 24, backend="triton")
    assert launches.count("sparse_tail") == 2 and "TOO_LARGE" in caplog.text
    want = smartgpu.select(x, 24, backend="triton")
    assert launches.count("sparse_tail") == 2
    np.testing.assert_array_equal(got.indices, want.indices)
    np.testing.assert_array_equal(got.gains, want.gains)


@interpreted
def test_goals_that_it_does_not_know_go_by_steps(kernels, rng, monkeypatch):
    x = pool(rng, 64)
    smartgpu.select(x, 5, backend="triton", cost=np.full(64, 2.0), budget=8)
    smartgpu.select(x, 5, backend="triton", quotas=smartgpu.Quotas(np.arange(64) % 2, maximum=3))
    monkeypatch.setattr(cuda_tail, "MOST_WALKED", 10)  # too many pairs still
    smartgpu.select(x, 5, backend="triton")
    assert not kernels.launched


@pytest.mark.gpu
def test_tail_on_a_gpu(rng):
    if not cuda.find().usable:
        pytest.skip(f"no CUDA kernels: {cuda.find().missing}")
    at = device.open_device()
    assert cuda.kernels(at) is not None, "they cannot be used here: the log says why"
    n = 20_000
    x = rng.standard_normal((n, 64)).astype(np.float32) + 0.2
    x[1000:1500] = x[:500]
    for spec in (smartgpu.FacilityLocation(), smartgpu.FacilityLocation(rng.random(n))):
        before = resident.looks
        got = smartgpu.select(x, 4000, spec, backend="triton")
        waits = resident.looks - before
        with cuda.without(at):
            want = smartgpu.select(x, 4000, spec, backend="triton")
        np.testing.assert_array_equal(got.indices, want.indices)
        np.testing.assert_array_equal(got.gains, want.gains)
        assert waits < 40 and cuda.kernels(at) is not None
    kernels = cuda.kernels(
        at
    )  # a block on each multiprocessor: CuPy would start fewer where they did not fit
    ask = kernels.cupy.cuda.driver.occupancyMaxActiveBlocksPerMultiprocessor
    assert ask(kernels.functions["sparse_tail"].kernel.ptr, cuda_tail.THREADS, 0) == 1
