"""Groups that one launch selects from, by select_many: which, that they are Triton's, and what stands in the way."""

import logging
import re

import hostcuda
import numpy as np
import pytest

import smartgpu

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from smartgpu.backends import cuda, cuda_batch, device
from smartgpu.kernels import launch

CPU = torch.device("cpu")
interpreted = pytest.mark.skipif(not launch.INTERPRETED, reason="the kernels of this process run on a GPU")


@pytest.fixture
def kernels(monkeypatch):
    return hostcuda.install(monkeypatch)


@interpreted
@pytest.mark.parametrize(
    ("objective", "kind"),
    [
        (lambda rng, n: smartgpu.FacilityLocation(rng.random(n)), "cosine"),
        (lambda rng, n: smartgpu.QualityDiversity(0.3, rng.standard_normal(n)), "cosine_squared"),
        (lambda rng, n: 0.5 * smartgpu.GraphCut(), "cosine_shifted"),
        (lambda rng, n: smartgpu.LogDet(), "cosine"),
    ],
    ids=["weights", "quality", "graph_cut", "log_det"],
)
def test_select_many_uses_it(objective, kind, kernels, rng):
    """The same selections as one by one, and from one launch."""
    n = 90
    x = (rng.standard_normal((n, 16)) + 0.3).astype(np.float32)
    x[50:60] = x[:10]
    spec, labels = objective(rng, n), rng.integers(0, 3, n)
    got = smartgpu.select_many(x, labels, 0.2, spec, kind, backend="triton")
    assert kernels.launched[-1] == "batched_greedy_fp16"
    assert sum(name.startswith("batched") for name in kernels.launched) == 1
    with cuda.without(CPU):
        want = smartgpu.select_many(x, labels, 0.2, spec, kind, backend="triton")
    for label, sel in want.items():
        np.testing.assert_array_equal(got[label].indices, sel.indices)
        np.testing.assert_allclose(got[label].gains, sel.gains, rtol=0, atol=1e-11)
        same = ("n", "objective", "similarity", "options", "dtype", "backend", "versions")
        assert {name: getattr(got[label], name) for name in same} == {
            name: getattr(sel, name) for name in same
        }


@pytest.fixture
def grouped(rng):
    """40 rows in two groups, and what Triton alone selects from them."""
    x, labels = rng.standard_normal((40, 16)).astype(np.float32), np.arange(40) % 2

    def select(**how):
        return smartgpu.select_many(x, labels, 3, backend="triton", **how)

    with cuda.without(CPU):
        want = select()

    def same(got):
        return all(
            np.array_equal(got[g].indices, sel.indices) and np.array_equal(got[g].gains, sel.gains)
            for g, sel in want.items()
        )

    return select, same


@interpreted
def test_sums_beyond_all_numbers_are_for_triton(kernels, rng):
    """Infinite terms of both signs add up to no number, and a kernel that finds no best has no row to go on with."""
    x, labels = rng.standard_normal((40, 16)).astype(np.float32), np.arange(40) % 2
    large = 1e10 * smartgpu.Modular(np.full(40, 1e308))
    with np.errstate(over="ignore"):
        smartgpu.select_many(x, labels, 2, smartgpu.FacilityLocation() + large, backend="triton")
    assert not batched(kernels)


def batched(kernels):
    return [name for name in kernels.launched if name.startswith("batched")]


@interpreted
def test_triton_does_what_is_further_off_than_rounding(kernels, grouped, monkeypatch, caplog):
    select, same = grouped
    monkeypatch.setattr(cuda_batch, "_both", lambda *_: (torch.zeros(1), torch.full((1,), 40)))
    with caplog.at_level(logging.WARNING, "smartgpu"):
        assert same(select()) and same(select())
    assert not batched(kernels) and caplog.text.count("is 40 quanta from that of Triton's kernels") == 1


@interpreted
def test_kernels_that_round_otherwise_are_used_and_say_so(kernels, grouped, monkeypatch, caplog):
    """As far as tensor cores may: Triton's could use other instructions than csrc/."""
    select, same = grouped
    monkeypatch.setattr(cuda_batch, "_both", lambda *_: (torch.zeros(1), torch.full((1,), 2)))
    with caplog.at_level(logging.INFO, "smartgpu"):
        assert same(select()) and same(select())
    assert batched(kernels) and caplog.text.count("up to 2 quanta of 2^-22 from those in Triton's") == 1


@pytest.mark.parametrize("d", [16, 48, 384, 1024, 4096])
def test_what_counts_as_rounding(d):
    """(d / 16 + 2) 2^-23, in quanta of 2^-22: far below what a wrong fragment of a product would make of it."""
    assert (d / 16 + 2) * 2.0**-23 <= cuda_batch.near(d) * 2.0**-22 < 4e-5


@interpreted
def test_triton_does_what_cannot_start(kernels, grouped, monkeypatch, caplog):
    def broken(*_, **__):
        raise RuntimeError("CUDA_ERROR_INVALID_IMAGE: device kernel image is invalid\nmore")

    select, same = grouped
    monkeypatch.setattr(cuda_batch, "_apart", {(CPU, "fp16"): 0})
    monkeypatch.setattr(kernels, "launch", broken)
    with caplog.at_level(logging.WARNING, "smartgpu"):
        assert same(select()) and same(select())
    assert caplog.text.count("CUDA_ERROR_INVALID_IMAGE") == 1  # one message, and no second attempt


@interpreted
def test_no_memory_for_a_launch_is_no_error(kernels, grouped, monkeypatch, caplog):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    select, same = grouped
    monkeypatch.setattr(cuda_batch, "run", full)
    with caplog.at_level(logging.WARNING, "smartgpu"):
        assert same(select())
    assert "no memory for a launch of 2 groups" in caplog.text
    assert cuda.kernels(CPU) is kernels  # the next one may fit


@interpreted
def test_large_groups_are_for_triton(kernels, rng, monkeypatch):
    """Groups beyond the largest that a cluster takes are left out, and the rest of the pool is not prepared."""
    x, sizes = rng.standard_normal((50, 16)).astype(np.float32), [30, 12, 8]
    labels = rng.permutation(np.repeat(np.arange(3), sizes))
    prepared, prepare = [], device.prepare
    monkeypatch.setattr(cuda_batch, "MOST", {True: (10, 20)})
    monkeypatch.setattr(
        device,
        "prepare",
        lambda kind, x, *more, **how: prepared.append(len(x)) or prepare(kind, x, *more, **how),
    )
    got = smartgpu.select_many(x, labels, 4, backend="triton")
    assert batched(kernels) == ["batched_greedy_fp16_cluster", "batched_greedy_fp16"] and prepared == [20, 30]
    with cuda.without(CPU):
        want = smartgpu.select_many(x, labels, 4, backend="triton")
    for label, sel in want.items():
        np.testing.assert_array_equal(got[label].indices, sel.indices)
        np.testing.assert_array_equal(got[label].gains, sel.gains)


@interpreted
def test_memory_that_does_not_fit_says_what_would(kernels, rng, caplog):
    """What the message says is enough: with it, and no less, every group is in the launch."""
    x, labels = rng.standard_normal((700, 16)).astype(np.float32), np.repeat([0, 1, 2, 2], 175)
    rows = [np.flatnonzero(labels == g) for g in range(3)]
    problems = cuda_batch.Problems(rows, [2, 2, 2], "facility_location")
    plan, left = cuda_batch.make_plan(problems, "cosine", "fp16", 16, kernels, 1_000_000)
    assert sorted(plan.blocks) == [0, 1] and left == [2] and plan.bytes <= 1_000_000

    def launched(memory):
        caplog.clear()
        kernels.launched.clear()
        with caplog.at_level(logging.WARNING, "smartgpu"):
            smartgpu.select_many(x[:200], np.arange(200) % 2, 2, backend="triton", memory=memory)
        return batched(kernels)

    assert not launched("160KB")
    would = re.search(r"2 groups are selected from one by one: .* memory='(\S+)' would do", caplog.text)[1]
    assert launched(would) and not caplog.text
