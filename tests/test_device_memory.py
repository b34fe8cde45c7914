"""Memory on a device: what the plan says is allocated is what is allocated, on a GPU or in the interpreter."""

import dataclasses
import gc
import json
import re

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from torch.profiler import ProfilerActivity, profile

import smartgpu
from smartgpu import FacilityLocation, GraphCut, LogDet, Modular, plan, select
from smartgpu.backends import device as on_device
from smartgpu.backends.device_footprint import SMALL
from smartgpu.backends.gpu import DeviceLostError, DeviceMemoryError
from smartgpu.job import Job
from smartgpu.objectives import Ground
from smartgpu.objectives.log_det_remote import RemoteWoodburyLogDet
from smartgpu.options import make_options, parse_bytes
from smartgpu.similarity import as_similarity

pytestmark = pytest.mark.usefixtures("device")


@pytest.fixture
def size(device, monkeypatch) -> tuple[int, int]:
    """(n, d) of a pool; in the interpreter few rows, and blocks so small that they are still many."""
    if device == "cuda":
        return 6000, 256
    monkeypatch.setattr(on_device, "NUMBERS", 2048)
    return 130, 64


@pytest.fixture
def pool(size) -> np.ndarray:
    """Clusters around a common mean: selections become sparse after some picks."""
    rng = np.random.default_rng(5)
    n, d = size
    centres = rng.standard_normal((12, d)) + 0.7
    return (centres[rng.integers(0, 12, n)] + 0.6 * rng.standard_normal((n, d))).astype(np.float32)


@pytest.fixture
def peak(device, monkeypatch):
    """peak(call) -> (what the call returns, the most bytes of tensors that it held at one time on the device).

    In the interpreter by the allocator's own log. There a tensor that goes to the device is the host's, so that what is
    made of an array is copied, to be counted.
    """

    def on_gpu(call):
        gc.collect()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        out = call()
        return out, torch.cuda.max_memory_allocated() - before

    def interpreted(call):
        gc.collect()
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
            out = call()
        events = [e for e in seen.profiler.kineto_results.events() if e.name() == "[memory]"]
        sizes = [e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())]
        return out, max(np.cumsum(sizes), default=0)

    if device == "cuda":
        return on_gpu
    taken = torch.from_numpy
    monkeypatch.setattr(torch, "from_numpy", lambda array: taken(array).clone())
    return interpreted


def test_the_meter_counts(device, peak):
    def work():
        held = torch.zeros(1 << 18, device=device)
        more = held + held + held
        del held
        return torch.from_numpy(np.zeros(1 << 10)).to(device), more

    assert peak(work)[1] == 3 << 20


def matrix(x):
    y = x[: max(110, len(x) // 8)].astype(np.float64)
    y /= np.linalg.norm(y, axis=1, keepdims=True)
    s = y @ y.T
    return (s + s.T) / 2


def skewed(x):
    s = matrix(x)
    return s * np.random.default_rng(1).random(s.shape)


def sparse(x):
    s = matrix(x)
    return pytest.importorskip("scipy.sparse").csr_matrix(np.where(s > np.quantile(s, 0.9), s, 0))


def weights(x):
    return np.random.default_rng(2).random(len(x))


# name -> (pool -> X, pool -> objective, similarity, more arguments)
CASES = {
    "fl": (None, lambda x: FacilityLocation(), "cosine", {}),
    "fl-float16": (lambda x: x.astype(np.float16), lambda x: FacilityLocation(), "dot", {}),
    "fl-weights-rbf": (None, lambda x: FacilityLocation(weights(x)), "rbf", {}),
    "fl-max-minus": (None, lambda x: FacilityLocation(), "max_minus_sqeuclidean", {}),
    "fl-tf32": (None, lambda x: FacilityLocation(), "cosine", {"precision": "tf32"}),
    "fl-represented": (None, lambda x: FacilityLocation(None, x[: len(x) // 3] + 1), "cosine_shifted", {}),
    "fl-given": (None, lambda x: FacilityLocation(), "cosine", {"given": np.arange(40, 90)}),
    "fl-coverage": (None, lambda x: FacilityLocation(weights(x)), "rbf", {"k": None, "coverage": 0.3}),
    "fl-naive": (None, lambda x: FacilityLocation(), "cosine", {"k": 3, "maximizer": "naive"}),
    "fl-stochastic": (None, lambda x: FacilityLocation(), "cosine", {"maximizer": "stochastic"}),
    "matrix-fl-polish": (
        matrix,
        lambda x: FacilityLocation(weights(x)[: len(matrix(x))]),
        "precomputed",
        {"polish": 1, "k": 3},
    ),
    "gc": (None, lambda x: GraphCut(), "cosine", {}),
    "gc-represented": (None, lambda x: GraphCut(0.8, x[: len(x) // 3] + 1), "dot", {}),
    "gc-rbf": (None, lambda x: GraphCut(0.9), "rbf", {}),
    "gc-given": (None, lambda x: GraphCut(0.2), "cosine_squared", {"given": np.arange(60)}),
    "logdet": (None, lambda x: LogDet(), "cosine", {}),
    "logdet-shifted": (None, lambda x: LogDet(0.1), "cosine_shifted", {"k": 12}),
    "logdet-coverage": (None, lambda x: LogDet(), "rbf", {"k": None, "coverage": 0.1}),
    "logdet-ridgeless": (None, lambda x: LogDet(0.0), "cosine", {"k": 10}),
    "modular": (None, lambda x: Modular(weights(x)), "cosine", {}),
    "qdit": (None, lambda x: 0.7 * FacilityLocation() + 20 * Modular(weights(x)), "cosine", {}),
    "mixture": (
        None,
        lambda x: (
            0.5 * FacilityLocation(weights(x))
            + 0.3 * FacilityLocation(None, x[:70])
            + 0.1 * GraphCut()
            + LogDet()
        ),
        "cosine",
        {},
    ),
    "matrix-fl": (matrix, lambda x: FacilityLocation(), "precomputed", {}),
    "matrix-gc": (skewed, lambda x: GraphCut(), "precomputed", {}),
    "matrix-logdet": (matrix, lambda x: LogDet(), "precomputed", {}),
    "csr-fl": (sparse, lambda x: FacilityLocation(), "precomputed", {}),
    "csr-gc": (sparse, lambda x: GraphCut(), "precomputed", {}),
}
OPTIONS = ("maximizer", "precision", "memory")


def budget(x, k=None, objective="facility_location", similarity="cosine", coverage=None, given=(), **how):
    """What the call must hold and may use, without the plan's estimate of time."""
    job = Job.check(x, objective, similarity, make_options({"backend": "triton", **how}))
    return job.budget((k or job.n) + len(given), coverage is not None)


def least_of_all(x, k, objective="facility_location", similarity="cosine", **how):
    """The least memory that does, with features that stream if they must."""
    job = Job.check(x, objective, similarity, make_options({"backend": "triton", **how}))
    return min(job._cost(k, False, stream=stream)[1].least for stream in (False, True))


@pytest.mark.parametrize("name", CASES)
def test_what_is_held_is_what_was_planned(pool, peak, device, name):
    make, objective, similarity, more = CASES[name]
    x, objective = pool if make is None else make(pool), objective(pool)
    call = {"k": 6, "objective": objective, "similarity": similarity, **more}
    planned = budget(x, **call)
    least, most = planned.cost.least, planned.cost.least + planned.cost.extra
    call["backend"] = "triton"
    runs = []
    between = (least + most) // 2
    budgets = ((least, least), (between, between), (None, most))
    if device == "cpu" and not name.startswith(
        ("fl", "qdit")
    ):  # all others do the same whatever is beyond the least
        budgets = (budgets[0], budgets[2])
    for memory, allowed in budgets:
        sel, held = peak(lambda memory=memory: select(x, **call, memory=memory))
        assert held <= allowed, f"held {held:,}, allowed {allowed:,}"
        runs.append(sel)
        if memory == least and device == "cpu" and name != "modular":
            assert held > 0.2 * (least - SMALL), f"held {held:,} of {least:,}: the plan says too much"
    for sel in runs[:-1]:
        np.testing.assert_array_equal(sel.indices, runs[-1].indices)
        np.testing.assert_array_equal(sel.gains, runs[-1].gains)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_tensors_in_place_do_not_count(pool, peak, device, dtype):
    x = torch.tensor(pool).to(getattr(torch, dtype)).to(device)
    call = {"k": 6, "objective": "facility_location", "similarity": "dot"}
    there = budget(x, **call)
    host = budget(pool.astype(np.float16) if dtype != "float32" else pool, **call)
    assert {p.name: p.bytes for p in there.cost.parts}["features of the candidates"] == 0
    assert there.cost.least < host.cost.least
    sel, held = peak(lambda: select(x, **call, backend="triton", memory=there.cost.least))
    assert held <= there.cost.least
    np.testing.assert_array_equal(sel.indices, select(x, **call, backend="triton").indices)


def test_a_budget_that_cannot_be_met_is_refused_first(pool):
    told = []
    for objective in ("facility_location", "graph_cut", "log_det"):
        least = least_of_all(pool, 5, objective)
        with pytest.raises(
            ValueError, match=r"memory must be at least .*B for this selection.*got"
        ) as refused:
            select(
                pool, 5, objective, backend="triton", memory=least - 1, report=lambda *pick: told.append(pick)
            )
        said = re.search(r"at least (\S+) for", str(refused.value))[1]
        assert parse_bytes(said) >= least
        assert select(pool, 5, objective, backend="triton", memory=said).k == 5
    assert not told


def test_survivors_that_turn_out_too_many_are_not_stored(pool, peak, monkeypatch):
    from smartgpu.backends.triton import Survivors, TritonBackend

    monkeypatch.setattr(TritonBackend, "estimate_survivors", lambda self, level: 0.0)
    stored = []
    method = Survivors.__init__
    monkeypatch.setattr(Survivors, "__init__", lambda self, *a: stored.append(1) or method(self, *a))
    memory = budget(pool, 8).cost.least + 14 * len(pool)
    sel, held = peak(lambda: select(pool, 8, backend="triton", memory=memory))
    assert not stored and held <= memory
    roomy = select(pool, 8, backend="triton")
    assert stored
    np.testing.assert_array_equal(sel.indices, roomy.indices)


def test_planned_and_printed(pool, capsys):
    planned = plan(pool, 6, "facility_location", backend="triton")
    assert planned.backend == "triton" and planned.place == "on the device"
    assert planned.least == sum(size for _, size in planned.parts) == budget(pool, 6).cost.least
    assert planned.seconds > 0 and planned.sweeps > 0 and planned.least <= planned.peak <= planned.memory
    lines = str(planned).splitlines()
    assert lines[0].endswith("by facility_location on cosine (backend triton), bytes on the device")
    assert dataclasses.replace(planned, place="").to_dict()["place"] == ""
    x = torch.tensor(pool)
    for objective in (GraphCut(), LogDet(), 0.5 * FacilityLocation() + Modular(weights(pool))):
        assert plan(x, 4, objective, backend="triton", given=[1]).seconds > 0
    assert plan(matrix(pool), 4, similarity="precomputed", backend="triton").seconds > 0
    capsys.readouterr()
    select(pool[:50], 3, backend="triton", plan=True)
    assert "on the device" in capsys.readouterr().err


def test_command_line(pool, tmp_path, monkeypatch, capsys):
    pytest.importorskip("pyarrow")
    from smartgpu import cli

    monkeypatch.chdir(tmp_path)
    np.save("pool.npy", pool[:60])

    def run(*arguments):
        capsys.readouterr()
        return cli.main([str(a) for a in arguments]), *capsys.readouterr()

    there = ("pool.npy", "-k", 4, "--backend", "triton", "-q")
    status, out, err = run("plan", *there)
    assert (status, err) == (0, "") and "(backend triton), bytes on the device" in out
    status, _, err = run("select", *there, "--out", "out", "--memory", "1kB")
    assert status == 2 and "memory must be at least" in err and "for this selection on the device" in err
    monkeypatch.setattr(on_device, "free", lambda device: 1000)
    status, _, err = run("select", *there, "--out", "out")
    assert status == 1 and "does not fit the device" in err and "fallback='numpy'" in err
    status, _, err = run("select", *there, "--out", "out", "--fallback", "numpy")
    assert status == 0 and json.loads((tmp_path / "out" / "selection.json").read_text())["backend"] == "numpy"


# ---- failures


@pytest.fixture
def failing(device, monkeypatch):
    """failing(error, after): kernels work that many times, and then raise the error."""
    from smartgpu.kernels import launch

    if device == "cuda":
        pytest.skip(
            "a launch that is recorded must not fail: what follows a failure is tested in the interpreter"
        )

    start = launch.run

    def make(error: Exception, after: int) -> list[int]:
        launches = []

        def run(*arguments, **how):
            launches.append(1)
            if len(launches) > after:
                raise error
            return start(*arguments, **how)

        monkeypatch.setattr(launch, "run", run)
        return launches

    return make


OUT = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")


@pytest.mark.parametrize(
    "error", [OUT, RuntimeError("Triton Error [CUDA]: out of memory")], ids=["torch", "triton"]
)
def test_out_of_memory_in_mid_run(pool, failing, error):
    failing(error, 20)
    with pytest.raises(DeviceMemoryError, match="the device ran out of memory") as raised:
        select(pool, 6, backend="triton")
    assert raised.value.__cause__ is error
    told = str(raised.value)
    least = parse_bytes(re.search(r": (\S+) at least are needed there", told)[1])
    assert budget(pool, 6).cost.least <= least <= 1.02 * budget(pool, 6).cost.least
    fits = parse_bytes(re.search(r"memory='(\S+)' would fit", told)[1])
    assert least <= fits <= raised.value.free


def test_a_device_that_is_full(pool, monkeypatch):
    """What is free when the call begins is the most that is taken; too little is refused before any work."""
    least, told = budget(pool, 6).cost.least, []
    monkeypatch.setattr(on_device, "free", lambda device: least + 1000)
    monkeypatch.setattr(on_device, "share", lambda device: (least + 1000) // 2)
    assert budget(pool, 6).memory == least and budget(pool, 6, memory="80GB").memory == least + 1000
    least = least_of_all(pool, 6)
    monkeypatch.setattr(on_device, "free", lambda device: least - 1)
    for memory in (None, "80GB"):
        with pytest.raises(
            DeviceMemoryError, match=r"does not fit the device: .* at least are needed there"
        ) as error:
            select(pool, 6, backend="triton", memory=memory, report=lambda *pick: told.append(pick))
        assert "no memory= makes it fit" in str(error.value) and error.value.free == least - 1
    answers = iter([least, least - 1])  # taken by another process between plan and allocation
    monkeypatch.setattr(on_device, "free", lambda device: next(answers))
    with pytest.raises(DeviceMemoryError, match="the device is taken"):
        select(pool, 6, backend="triton", report=lambda *pick: told.append(pick))
    assert not told


def test_fallback(pool, failing, monkeypatch, caplog, tmp_path):
    plain = select(pool, 6, backend="numpy")
    cold = select(pool, 6, backend="triton", fallback="numpy")
    assert cold.backend == "triton" and not caplog.records
    for memory in (None, budget(pool, 6).cost.least):
        caplog.clear()
        failing(OUT, 12)
        sel = select(pool, 6, backend="triton", fallback="numpy", precision="bf16", memory=memory)
        assert sel.backend == "numpy" and sel.dtype == plain.dtype
        np.testing.assert_array_equal(sel.indices, plain.indices)
        np.testing.assert_array_equal(sel.gains, plain.gains)
        (record,) = caplog.records
        assert record.levelname == "WARNING" and "Backend 'numpy' takes over" in record.getMessage()
    # its own half-done picks do not stand in the way; another selection's do
    failing(OUT, 1 << 60)
    path, order = tmp_path / "picks.npz", []

    def report(j, gain):
        order.append(j)
        if len(order) == 3:
            raise OUT

    sel = select(pool, 6, backend="triton", fallback="numpy", checkpoint=path, report=report)
    np.testing.assert_array_equal(sel.indices, plain.indices)
    np.testing.assert_array_equal(order[3:], plain.indices)
    with pytest.raises(ValueError, match=r"of another selection.*k: 6 there, 5 now"):
        select(pool, 5, backend="triton", fallback="numpy", checkpoint=path)
    with pytest.raises(ValueError, match="unknown fallback 'cpu'"):
        select(pool, 5, backend="triton", fallback="cpu")


LOST = getattr(torch, "AcceleratorError", RuntimeError)


@pytest.mark.parametrize(
    "error",
    [
        LOST("CUDA error: an illegal memory access was encountered\nCUDA kernel errors might be ..."),
        RuntimeError("CUDA error: unspecified launch failure"),
        RuntimeError("Triton Error [CUDA]: device-side assert triggered"),
    ],
    ids=["accelerator", "torch", "triton"],
)
@pytest.mark.parametrize("objective", ["facility_location", "graph_cut"])
def test_a_lost_gpu_keeps_the_checkpoint(pool, failing, monkeypatch, tmp_path, objective, error):
    monkeypatch.setattr("smartgpu.backends.resident.STEPS", 4)
    path, call = tmp_path / "picks.npz", {"objective": objective, "backend": "triton"}
    launches = failing(error, 1 << 60)
    whole = select(pool, 9, **call)
    failing(error, len(launches) - 6)
    seen = []
    with pytest.raises(
        DeviceLostError, match=r"the device failed: .*in a new process the same call goes on"
    ) as lost:
        select(pool, 9, **call, checkpoint=path, report=lambda j, gain: seen.append(j))
    assert lost.value.__cause__ is error and f"{len(seen)} picks are kept in {path}" in str(lost.value)
    assert "\n" not in str(lost.value) and 0 < len(seen) < 9
    failing(error, len(launches) - 6)
    with pytest.raises(DeviceLostError, match="with checkpoint="):
        select(pool, 9, **call)
    monkeypatch.undo()
    again = []
    sel = select(pool, 9, **call, checkpoint=path, report=lambda j, gain: again.append(j))
    np.testing.assert_array_equal(sel.indices, whole.indices)
    np.testing.assert_array_equal(sel.gains, whole.gains)
    assert again == whole.indices.tolist() and again[: len(seen)] == seen


def test_other_errors_are_left_alone(pool, failing):
    error = RuntimeError("something else")
    failing(error, 5)
    with pytest.raises(RuntimeError, match="something else") as raised:
        select(pool, 6, backend="triton", fallback="numpy")
    assert raised.value is error


def test_inputs_changed_during_the_run(pool, device, tmp_path):
    path = tmp_path / "picks.npz"

    def change(tensor):
        return lambda j, gain: tensor.add_(1)

    x = torch.tensor(pool).half().to(device)
    call = {"similarity": "dot", "backend": "triton"}
    whole = select(x, 6, **call)
    with pytest.raises(
        ValueError, match=r"X or represented, \(\d+, 64\) on .*, was changed in place 6 times"
    ) as told:
        select(x, 6, **call, checkpoint=path, report=change(x))
    assert "while rows were chosen from it" in str(told.value) and not path.exists()
    if device == "cuda":  # represented rows on the host are read as an array
        y = torch.tensor(pool[:40]).half().to(device)
        with pytest.raises(ValueError, match="was changed in place"):
            select(x, 6, FacilityLocation(represented=y), **call, report=change(y))
    x = torch.tensor(pool).half().to(device)
    view = x[:, :]  # counts with the tensor that it is a view of
    with pytest.raises(ValueError, match="was changed in place"):
        select(view, 6, **call, report=change(x))
    x = torch.tensor(pool).half().to(device)
    sel = select(x[:, :63], 6, **call, report=change(x))  # prepared by copying
    assert sel.k == 6
    x = torch.tensor(pool).half().to(device)
    np.testing.assert_array_equal(select(x, 6, **call, report=lambda j, gain: x.sum()).indices, whole.indices)
    with torch.inference_mode():
        uncounted = torch.tensor(pool).half().to(device)
        np.testing.assert_array_equal(select(uncounted, 6, **call).indices, whole.indices)


# ---- pools larger than the device


@pytest.fixture
def blocks(device, monkeypatch) -> np.ndarray:
    """A pool of many blocks, the last of them shorter, with copies in other blocks."""
    rng = np.random.default_rng(7)
    n, numbers = (3001, 1 << 15) if device == "cuda" else (91, 2048)
    monkeypatch.setattr(on_device, "NUMBERS", numbers)
    centres = rng.standard_normal((12, 128)) + 0.5
    x = (centres[rng.integers(0, 12, n)] + 0.6 * rng.standard_normal((n, 128))).astype(np.float32)
    x[n // 2 : n // 2 + 9] = x[:9]
    assert n % on_device.block_rows(128) != 0
    return x


@pytest.fixture
def passes(monkeypatch) -> list[tuple[int, int]]:
    """(rows, candidates of a block) of every sweep over a pool that streams."""
    from smartgpu.backends.streaming import HostRows, StreamedTiles

    seen = []
    for owner, of in (
        (StreamedTiles, lambda self: (self.r, self.block_size)),
        (HostRows, lambda self: (len(self), 0)),
    ):
        name = "_pairs" if owner is StreamedTiles else "blocks"
        method = getattr(owner, name)
        spy = lambda self, *a, of=of, method=method: seen.append(of(self)) or method(self, *a)  # noqa: E731
        monkeypatch.setattr(owner, name, spy)
    return seen


def streamed(x, k, objective, similarity, **how) -> tuple[int, int]:
    """The least memory and the most with which the call streams."""
    job = Job.check(x, objective, similarity, make_options({"backend": "triton", **how}))
    resident, there = (job._cost(k, False, **way)[1].least for way in ({}, {"stream": True}))
    assert there < resident
    return there, resident - 1


KINDS = "cosine cosine_shifted cosine_squared dot rbf exp_euclidean max_minus_sqeuclidean".split()
TERMS = {
    "fl": lambda x: FacilityLocation(weights(x)),
    "fl-represented": lambda x: FacilityLocation(represented=x[: len(x) * 4 // 5] + 0.25),
    "gc": lambda x: GraphCut(0.6),
    "logdet": lambda x: LogDet(0.5),
    "qdit": lambda x: 0.7 * FacilityLocation() + 9 * Modular(weights(x)),
}


# every kind with one objective, every objective with two kinds, of which one is linear
TOGETHER = [("fl", kind) for kind in KINDS] + [
    (name, kind) for name in TERMS if name != "fl" for kind in ("cosine_shifted", "rbf")
]


@pytest.mark.parametrize(("name", "similarity"), TOGETHER)
def test_streams_as_if_all_were_there(blocks, peak, passes, monkeypatch, name, similarity):
    """Equal bits, whatever the blocks, and no more memory than is allowed: for candidates of two block sizes."""
    objective, how = TERMS[name](blocks), {"precision": "ieee"}
    # the loop of log-determinants takes their gains from another formula, equal to about 2^-40
    monkeypatch.setattr(RemoteWoodburyLogDet, "resident", lambda self, goal: None)
    call = {"k": 7, "objective": objective, "similarity": similarity, "backend": "triton", **how}
    there = select(blocks, **call)
    assert not passes
    sizes = set()
    for memory in streamed(blocks, 7, objective, similarity, **how):
        passes.clear()
        sel, held = peak(lambda memory=memory: select(blocks, **call, memory=memory))
        assert passes and held <= memory, f"held {held:,}, allowed {memory:,}"
        sizes |= {size for _, size in passes if size}
        np.testing.assert_array_equal(sel.indices, there.indices)
        np.testing.assert_array_equal(sel.gains, there.gains)
        assert sel.value == there.value
    assert name not in ("fl", "fl-represented", "qdit") or len(sizes) == 2


@pytest.mark.parametrize(
    ("similarity", "represented"), [*((kind, False) for kind in KINDS), ("cosine", True), ("rbf", True)]
)
def test_streamed_primitives(blocks, rng, similarity, represented):
    x, y = blocks, blocks[20:] + 0.25 if represented else None
    kind, eq = as_similarity(similarity), np.testing.assert_array_equal
    a, b = (Ground(x, kind, "triton", stream=stream).backend(y) for stream in (False, True))
    values, weighted = rng.integers(0, 2**21, a.r), rng.integers(0, 2**30, a.r)
    for room in (0, 128 * 2 * 9):
        b.source.keep(room)
        (level, w), (other, v) = ((c.level_from(values), c.new_weights(weighted)) for c in (a, b))
        eq(a.excess(level), b.excess(other))
        eq(a.excess(level, w), b.excess(other, v))
        eq(a.totals(), b.totals())
        eq(a.level_values(a.row_max()), b.level_values(b.row_max()))
        assert a.estimate_survivors(level) == b.estimate_survivors(other)
        one, two = a.survivors(level, w), b.survivors(other, v)
        eq(one.ptr.cpu(), two.ptr.cpu())
        for j in range(0, a.n, 7):
            part = slice(int(one.ptr[j]), int(one.ptr[j + 1]))
            pairs = (sorted(zip(s.rows[part].tolist(), s.q[part].tolist(), strict=True)) for s in (one, two))
            assert next(pairs) == next(pairs)
    cols, few = rng.permutation(a.n)[:23], rng.permutation(a.n)[:7]
    eq(a.diagonal(), b.diagonal())
    eq(a.keep(level, cols).columns.cpu(), b.keep(other, cols).columns.cpu())
    for mine, theirs in zip(a.nearest(cols), b.nearest(cols), strict=True):
        eq(mine, theirs)
    eq(a.block(cols, few), b.block(cols, few))
    eq(a.block_sums(cols, few), b.block_sums(cols, few))
    assert a.pool.top == b.pool.top


def test_a_file_that_streams_is_read_in_blocks(blocks, passes, monkeypatch, tmp_path):
    np.save(tmp_path / "pool.npy", blocks.astype(np.float16))
    x = np.load(tmp_path / "pool.npy", mmap_mode="r")
    whole, read = select(blocks.astype(np.float16), 6, backend="triton"), []
    widen = on_device.widen
    monkeypatch.setattr(
        on_device, "widen", lambda block, device: read.append(len(block)) or widen(block, device)
    )
    sel = select(x, 6, backend="triton", memory=streamed(x, 6, "facility_location", "cosine")[0])
    assert passes and max(read) <= on_device.block_rows(128)
    np.testing.assert_array_equal(sel.indices, whole.indices)
    np.testing.assert_array_equal(sel.gains, whole.gains)


def test_a_file_of_features_is_not_copied(blocks, passes, monkeypatch, tmp_path):
    """Dot products of 16-bit rows are those of the file's own: what streams is the file."""
    from smartgpu.backends import streaming

    copies, new_rows = [], streaming.new_rows
    monkeypatch.setattr(streaming, "new_rows", lambda *a: copies.append(a) or new_rows(*a))
    np.save(tmp_path / "pool.npy", blocks.astype(np.float16))
    for copied in (0, 1):
        x = np.load(tmp_path / "pool.npy", mmap_mode="r")[
            :, copied:
        ]  # rows with a gap between them are gathered
        for objective in (FacilityLocation(), GraphCut()):
            how = {"precision": "fp16"}
            call = {"k": 6, "objective": objective, "similarity": "dot", "backend": "triton", **how}
            whole = select(np.array(x), **call)
            passes.clear()
            copies.clear()
            with monkeypatch.context() as patch:
                least = streamed(x, 6, objective, "dot", **how)[0]
                patch.setattr(on_device, "free", lambda device, least=least: least)
                sel = select(x, **call)
            assert passes and len(copies) == copied
            np.testing.assert_array_equal(sel.indices, whole.indices)
            np.testing.assert_array_equal(sel.gains, whole.gains)


def test_a_pool_streams_where_the_device_is_too_small(blocks, passes, monkeypatch):
    """Without a word about memory: what is free is less than the features take."""
    call = {"k": 6, "backend": "triton", "precision": "ieee"}
    least, _ = streamed(blocks, 6, "facility_location", "cosine", precision="ieee")
    whole = select(blocks, **call)
    assert not passes
    monkeypatch.setattr(on_device, "free", lambda device: least + 10)
    np.testing.assert_array_equal(select(blocks, **call).indices, whole.indices)
    assert passes
    printed = str(plan(blocks, **call))
    assert "features of the candidates, a few blocks at a time" in printed
    monkeypatch.setattr(on_device, "free", lambda device: least - 1)
    with pytest.raises(DeviceMemoryError, match="does not fit the device"):
        select(blocks, **call)


def test_evaluate_and_assign_stream(blocks, passes, monkeypatch):
    options = {"backend": "triton", "precision": "ieee"}
    sel = select(blocks, 6, **options)
    whole = smartgpu.evaluate(blocks, sel.indices, **options)
    assert not passes
    monkeypatch.setattr(on_device, "free", lambda device: 0)
    assert smartgpu.evaluate(blocks, sel.indices, **options) == whole
    assert passes
