"""csrc/batched_greedy.cu: whole selections of the CUDA algorithm, on the CPU by threads, and on a GPU if there is one.

The definitions below are numpy's: exact products of 16-bit features, integers from the similarity on.
"""

import subprocess

import hostcuda
import numpy as np
import pytest

import smartgpu
from smartgpu.similarity import as_similarity

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from smartgpu.backends import cuda, cuda_batch, device
from smartgpu.kernels import launch
from smartgpu.objectives.facility_location_state import whole_weights

CPU = torch.device("cpu")
ONE = 2**22
interpreted = pytest.mark.skipif(not launch.INTERPRETED, reason="the kernels of this process run on a GPU")


@pytest.fixture
def kernels(monkeypatch):
    return hostcuda.install(monkeypatch)


def pool_of(rng, n, d, kind, precision="auto"):
    """(features on the device, those features in float64), with copies and a zero row."""
    x = (rng.standard_normal((n, d)) + 0.3).astype(np.float32)
    x[n // 2 : n // 2 + n // 8] = x[: n // 8]
    x[-1] = 0
    pool = device.prepare(as_similarity(kind), x, precision=precision)
    return pool, pool.x.to(torch.float64).numpy()


def quanta(x, kind):
    """(n, n) int64: rounded to float32 once, mapped, rounded to 2^-22."""
    s = (x @ x.T).astype(np.float32)
    s = {"cosine": s, "cosine_shifted": s * np.float32(0.5) + np.float32(0.5), "cosine_squared": s * s}[kind]
    return np.rint(np.clip(s, -1, 1).astype(np.float64) * ONE).astype(np.int64)


def greedy(k, low, start, gains, add):
    """(indices, gains) by definition: every gain at every pick."""
    out, state = [], start
    for _ in range(k):
        values = gains(state)
        values[[j for j, _ in out]] = -np.inf
        j = int(values.argmax()) if low else len(values) - 1 - int(values[::-1].argmax())
        out.append((j, values[j]))
        state = add(state, j)
    return np.array([j for j, _ in out]), np.array([g for _, g in out])


def facility_location(x, kind, k, low=True, weights=None, mix=(1.0, None, None)):
    q, (weight, before, after) = quanta(x, kind), mix
    whole, worth = (np.ones(len(x), np.int64), 1.0) if weights is None else whole_weights(weights)

    def gains(level):
        out = weight * ((whole @ np.maximum(q - level[:, None], 0)) * (worth / ONE))
        out = out if before is None else before + out
        return out if after is None else out + after

    return greedy(k, low, np.zeros(len(x), np.int64), gains, lambda level, j: np.maximum(level, q[:, j]))


def similarity(x, kind):
    s = x @ x.T
    return {"cosine": s, "cosine_shifted": (1 + s) / 2, "cosine_squared": s * s}[kind]


def graph_cut(x, kind, k, lam):
    s = quanta(x, kind) / ONE if kind == "cosine_squared" else similarity(x, kind)
    own = np.diag(s)
    return greedy(
        k, True, [], lambda S: s.sum(axis=0) - 2 * lam * s[S].sum(axis=0) - lam * own, lambda S, j: [*S, j]
    )


def log_det(x, kind, k, lam):
    norms = np.linalg.norm(x, axis=1, keepdims=True)
    s = similarity(x / np.where(norms > 0, norms, 1), kind)

    def gains(S):
        inverse = np.linalg.inv(s[np.ix_(S, S)] + lam * np.eye(len(S))) if S else np.zeros((0, 0))
        residual = np.diag(s) + lam - np.einsum("ij,ik,kj->j", s[S], inverse, s[S])
        return (
            np.rint(np.log(np.maximum(residual, lam)) * 2.0**36) / 2.0**36
        )  # copies tie, whatever inv rounds

    return greedy(k, True, [], gains, lambda S, j: [*S, j])


def problems_of(rng, n, objective, **how):
    """Ragged ones: more than a tile, less than one, one row; more threads than rows and fewer."""
    rows = [np.sort(rng.permutation(n)[:m]) for m in (min(n, 150), 33, 8, 1)]
    return cuda_batch.Problems(rows, [20, 33, 3, 1], objective, **how)


def run(pool, problems, kernels, clusters):
    """Picks of all problems by blocks, or by clusters; all of them in one launch."""
    how = cuda_batch.arithmetic(pool.x.dtype, pool.products)
    kind, d = pool.kind.name, pool.x.shape[1]
    needed = int(cuda_batch.needs(problems, kind, d).max())
    every = list(range(len(problems.rows)))
    plan = cuda_batch.Plan([], every, (0, 1), (0, needed))
    if clusters:
        plan = cuda_batch.Plan(every, [], (1, 0), (needed, 0))
    kernels.launched.clear()
    found = cuda_batch.run(pool, problems, plan, kernels)
    assert kernels.launched == [f"batched_greedy_{how}{'_cluster' if clusters else ''}"]
    return found


@interpreted
def test_layout_is_that_of_the_source(kernels):
    size = kernels.lib.host_size
    assert size(0) == 8 * len(cuda_batch.FIELDS)
    assert size(2) == cuda.EXCHANGE
    assert [size(3), size(4)] == [cuda_batch.THREADS, cuda_batch.CLUSTER]
    assert [size(6 + u) for u in range(4)] == [cuda_batch.TILES[how][0] for how in cuda.ARITHMETIC]
    for u, objective in enumerate(cuda_batch.OBJECTIVES):
        for kind in cuda_batch.KINDS:
            for n, k, d in ((1, 1, 16), (150, 20, 48), (31, 31, 1024)):
                want = kernels.lib.host_layout(u, int(kind == "cosine_squared"), n, k, d)
                assert cuda_batch.workspace(objective, kind, n, k, d) == want


@interpreted
@pytest.mark.parametrize("clusters", [False, True], ids=["block", "cluster"])
@pytest.mark.parametrize(
    ("kind", "precision"), [("cosine", "fp16"), ("cosine_shifted", "bf16"), ("cosine_squared", "tf32")]
)
def test_facility_location_is_exact(kind, precision, clusters, kernels, rng):
    """Indices and gains to the bit, with weights, quality on both sides, and either order of ties."""
    pool, x = pool_of(rng, 170, 40, kind, precision)
    for low, parts in ((True, False), (False, True)):
        problems = problems_of(rng, 170, "facility_location", low=low)
        total = int(problems.sizes.sum())
        weights, scores = rng.random(total), rng.standard_normal((2, total))
        cuts = np.cumsum(problems.sizes)[:-1]
        split = [np.split(a, cuts) for a in (weights, *scores)]
        if parts:
            whole = [whole_weights(w) for w in split[0]]
            problems = cuda_batch.Problems(
                problems.rows, problems.counts, "facility_location", low=low, weight=0.7, before=scores[0],
                after=scores[1], weights=np.concatenate([w for w, _ in whole]),
                scale=np.array([worth / ONE for _, worth in whole]),
            )  # fmt: skip
        found = run(pool, problems, kernels, clusters)
        for p, (indices, gains) in enumerate(found):
            how = {"weights": split[0][p], "mix": (0.7, split[1][p], split[2][p])} if parts else {}
            want = facility_location(x[problems.rows[p]], kind, problems.counts[p], low, **how)
            np.testing.assert_array_equal(indices, want[0])
            np.testing.assert_array_equal(gains, want[1])


@interpreted
def test_tf32x3_is_within_a_quantum(kernels, rng):
    """Three chains leave the product of the low parts out: 2^-22 of a similarity, where the definition is float32."""
    pool, x = pool_of(rng, 170, 40, "cosine", "tf32x3")
    problems = problems_of(rng, 170, "facility_location")
    for p, (indices, gains) in enumerate(run(pool, problems, kernels, False)):
        q, level = quanta(x[problems.rows[p]], "cosine"), np.zeros(len(problems.rows[p]), np.int64)
        for j, gain in zip(indices.tolist(), gains.tolist(), strict=True):
            every = np.maximum(q - level[:, None], 0).sum(axis=0) / ONE
            slack = 4 * len(q) / ONE
            assert gain >= every.max() - slack or j in indices
            assert abs(gain - every[j]) <= slack
            level = np.maximum(level, q[:, j])


@interpreted
@pytest.mark.parametrize("clusters", [False, True], ids=["block", "cluster"])
@pytest.mark.parametrize("kind", list(cuda_batch.KINDS))
@pytest.mark.parametrize("objective", ["graph_cut", "log_det"])
def test_graph_cut_and_log_det(objective, kind, clusters, kernels, rng):
    pool, x = pool_of(rng, 170, 40, kind)
    problems = problems_of(rng, 170, objective, lam=0.4)
    define = {"graph_cut": graph_cut, "log_det": log_det}[objective]
    for p, (indices, gains) in enumerate(run(pool, problems, kernels, clusters)):
        want = define(x[problems.rows[p]], kind, problems.counts[p], 0.4)
        np.testing.assert_allclose(gains, want[1], rtol=0, atol=1e-9)
        if kind == "cosine_squared" and objective == "graph_cut":
            np.testing.assert_array_equal(indices, want[0])  # integers
        distinct = x[problems.rows[p]]
        np.testing.assert_allclose(
            distinct[indices], distinct[want[0]], atol=0
        )  # the same rows, or their copies


@interpreted
@pytest.mark.parametrize("precision", ["fp16", "bf16", "tf32", "tf32x3"])
def test_fragments_lie_as_the_instruction_wants_them(precision, kernels):
    """Quanta of csrc/'s tiles, by mma.sync's documented layout, against Triton's kernels."""
    q, triton = cuda_batch._both(201, 208, "cosine", precision, kernels)
    assert int((q - triton).abs().max()) <= (1 if precision == "tf32x3" else 0)
    assert len(torch.unique(q)) > 1000


# ---- device code as it is, with a thread for every lane (tests/host/simt.h)


@pytest.fixture
def lanes(monkeypatch):
    return hostcuda.install(monkeypatch, hostcuda.LaneKernels)


def few_bits(rng, n, d):
    """Features, (n, d) float64, of so few bits that every sum of products is exact in float32, in any order. Copies,
    ties without copies, a zero row."""
    x = rng.integers(-2, 7, (n, d)) / 32
    x[n // 2 : n // 2 + n // 8] = x[: n // 8]
    x[-1] = 0
    return x


def stored(x, kind, dtype=torch.float16, products="ieee"):
    return device.Pool(as_similarity(kind), *[torch.from_numpy(x).to(dtype)] * 2, 1.0, 0.0, products=products)


@interpreted
@pytest.mark.parametrize("precision", ["fp16", "bf16", "tf32", "tf32x3"])
def test_fragments_of_lanes_make_the_product(precision, lanes, rng):
    """Bits of every pair, in tiles on the diagonal and off it, whole and ragged, with one step of k and with many."""
    dtype, products = device.ARITHMETIC[precision]
    for n, d in ((130, 48), (1, 16), (33, 208)):
        x = few_bits(rng, n, d) / 4
        pool = stored(x, "cosine", dtype, products)
        assert np.array_equal(pool.x.double().numpy(), x)
        q = torch.full((n, n + 3), 7, dtype=torch.int32)
        values = dict.fromkeys(cuda_batch.FIELDS) | {
            "x": pool.x, "stride": pool.x.stride(0) * pool.x.element_size(), "d": d, "rows": torch.arange(n),
            "start": torch.tensor([0, n]), "kind": cuda_batch.KINDS["cosine"],
        }  # fmt: skip
        given = cuda.pack(cuda_batch.FIELDS, values)
        shared = cuda_batch.TILES[precision][0]
        lanes.launch(f"quanta_{precision}", 1, cuda_batch.THREADS, given, q.data_ptr(), n + 3, shared=shared)
        np.testing.assert_array_equal(q[:, :n].numpy(), quanta(x, "cosine"))
        assert (q[:, n:] == 7).all()


@interpreted
@pytest.mark.parametrize("clusters", [False, True], ids=["blocks", "clusters"])
@pytest.mark.parametrize("objective", cuda_batch.OBJECTIVES)
def test_lanes_select(objective, clusters, lanes, rng):
    """Ragged problems from one queue, by several blocks of two a multiprocessor, or by a cluster of 8, as they are
    dealt on a GPU; in shared memory and in workspaces."""
    x, kind, low = few_bits(rng, 170, 48), "cosine_squared" if clusters else "cosine", not clusters
    if clusters:  # one beyond a tile, one below, a row alone; all of them in clusters
        rows, counts = [np.arange(3, 160), np.arange(20), np.array([7])], [8, 20, 1]
    else:
        rows = [np.sort(rng.permutation(170)[:m]) for m in (150, 33, 129, 8, 1)]
        counts = [10, 33, 4, 3, 1]
    total = sum(map(len, rows))
    how = {"lam": 0.4, "low": True}
    if objective == "facility_location":
        whole, after = rng.integers(0, 9, total), rng.integers(0, 5, total) / 64  # ties here as well
        how = {"weights": whole, "scale": np.full(len(rows), 1 / ONE), "after": after, "low": low}
    problems = cuda_batch.Problems(rows, counts, objective, **how)
    plan, left = cuda_batch.make_plan(problems, kind, "fp16", 48, lanes, 1 << 26)
    assert not left and plan.teams[1] >= (0 if clusters else 2)
    every = [*plan.clusters, *plan.blocks]
    plan = cuda_batch.Plan(every, [], (1, 0), (max(plan.slots),) * 2) if clusters else plan
    define = {"graph_cut": graph_cut, "log_det": log_det}.get(objective)
    for p, (indices, gains) in enumerate(cuda_batch.run(stored(x, kind), problems, plan, lanes)):
        own = x[rows[p]]
        if define is None:
            part = slice(sum(map(len, rows[:p])), sum(map(len, rows[: p + 1])))
            want = by_weight(own, kind, counts[p], low, whole[part], after[part])
            np.testing.assert_array_equal(gains, want[1])
        else:
            want = define(own, kind, counts[p], 0.4)
            np.testing.assert_allclose(gains, want[1], rtol=0, atol=1e-10)
        np.testing.assert_array_equal(indices, want[0])


def by_weight(x, kind, k, low, weights, after):
    """facility_location of whole weights, which are not rounded here."""
    q = quanta(x, kind)
    return greedy(
        k, low, np.zeros(len(x), np.int64), lambda level: (weights @ np.maximum(q - level[:, None], 0)) / ONE + after,
        lambda level, j: np.maximum(level, q[:, j]),
    )  # fmt: skip


# ---- threads


@pytest.mark.slow
@pytest.mark.parametrize("sanitizer", ["thread", "address,undefined"])
def test_no_access_is_unordered_or_outside(sanitizer, tmp_path):
    """Blocks and clusters, each objective, and the tail, in arrays that are no longer than they must be."""
    flags = ("-O1", "-g", f"-fsanitize={sanitizer}", "-fno-sanitize-recover=all")
    program = hostcuda.build(tmp_path / "races", *flags, file="races.cpp")
    done = subprocess.run([str(program)], capture_output=True, text=True, timeout=300)
    if "unexpected memory mapping" in done.stderr:
        pytest.skip("ThreadSanitizer does not run on this kernel")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "done" in done.stdout


# ---- on a GPU


@pytest.fixture
def real(monkeypatch):
    """The kernels of the GPU, which keep the names of those that were started in `launched`."""
    found = cuda.find()
    if not found.usable:
        pytest.skip(f"no CUDA kernels: {found.missing}")
    kernels = cuda.kernels(device.open_device())
    assert kernels is not None, "they cannot be used here: the log says why"
    kernels.launched, start = [], kernels.launch
    monkeypatch.setattr(
        kernels,
        "launch",
        lambda name, *more, **how: kernels.launched.append(name) or start(name, *more, **how),
    )
    return kernels


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp16", "bf16", "tf32", "tf32x3"])
def test_a_pair_has_tritons_bits(precision, real):
    """By the same chain of k; where Triton's instructions round otherwise inside a step, no further than rounding."""
    exact = cuda_batch.apart(precision, real) == 0
    for n, d in ((201, 1024), (300, 384), (40, 4096), (129, 16)):
        q, triton = cuda_batch._both(n, d, "cosine", precision, real)
        assert int((q - triton).abs().max()) <= (0 if exact else cuda_batch.near(d))


@pytest.mark.gpu
@pytest.mark.parametrize("kind", list(cuda_batch.KINDS))
@pytest.mark.parametrize("name", ["facility_location", "weights", "quality", "graph_cut", "log_det"])
def test_groups_are_those_of_one_by_one(name, kind, real, rng):
    sizes = [3000, 900, 130, 128, 127, 20, 1, *rng.integers(20, 600, 300)]
    n = sum(sizes)
    x = (rng.standard_normal((n, 96)) + 0.3).astype(np.float32)
    x[100:200] = x[:100]
    labels = np.repeat(np.arange(len(sizes)), sizes)
    spec = {
        "facility_location": smartgpu.FacilityLocation(),
        "weights": smartgpu.FacilityLocation(rng.random(n)),
        "quality": smartgpu.QualityDiversity(0.3, rng.standard_normal(n)),
        "graph_cut": smartgpu.GraphCut(),
        "log_det": smartgpu.LogDet(),
    }[name]
    got = smartgpu.select_many(x, labels, 0.05, spec, kind, backend="triton")
    assert "batched_greedy_fp16" in real.launched
    some = labels < 12
    with cuda.without(real.device):
        taken = spec.take(np.flatnonzero(some))
        want = smartgpu.select_many(x[some], labels[some], 0.05, taken, kind, backend="triton")
    exact = cuda_batch.apart("fp16", real) == 0
    for label, sel in want.items():
        if "graph" in name or "log" in name:
            np.testing.assert_allclose(got[label].gains, sel.gains, rtol=0, atol=1e-9)
        elif exact:
            np.testing.assert_array_equal(got[label].indices, sel.indices)
            np.testing.assert_array_equal(got[label].gains, sel.gains)
        else:  # candidates as close as the rounding may change places: the value does not fall by more
            np.testing.assert_allclose(got[label].value, sel.value, rtol=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("objective", cuda_batch.OBJECTIVES)
def test_clusters_pick_what_blocks_pick(objective, real, rng):
    """To the bit: sums have one order in both."""
    if not real.clusters:
        pytest.skip("this GPU has no clusters")
    pool, _ = pool_of(rng, 3000, 96, "cosine")
    rows = [np.sort(rng.permutation(3000)[:m]) for m in (3000, 2049, 700, 129, 128, 8, 1)]
    problems = cuda_batch.Problems(rows, [min(len(r), 60) for r in rows], objective, lam=0.4)
    alone, together = run(pool, problems, real, False), run(pool, problems, real, True)
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one[0], other[0])
        np.testing.assert_array_equal(one[1], other[1])


@pytest.mark.gpu
@pytest.mark.parametrize("precision", list(cuda_batch.TILES))
def test_as_many_blocks_fit_as_plans_count_on(precision, real, rng):
    """On a multiprocessor, with all the shared memory that a launch asks for."""
    pool, _ = pool_of(rng, 170, 40, "cosine", precision)
    run(pool, problems_of(rng, 170, "facility_location"), real, False)
    found, fits = real.functions[f"batched_greedy_{precision}"], cuda_batch.resident(precision, real)
    shared = min(real.shared[1], real.shared[0] // fits) - cuda_batch.OWN
    assert found.max_dynamic_shared_size_bytes == shared
    ask = real.cupy.cuda.driver.occupancyMaxActiveBlocksPerMultiprocessor
    assert ask(found.kernel.ptr, cuda_batch.THREADS, shared) == fits
