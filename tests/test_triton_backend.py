"""Backend "triton": whole selections against the float64 reference, on a GPU or in the interpreter, on tiny pools."""

import logging

import numpy as np
import pytest
from oracle import OBJECTIVES, PER_ROW, SIMILARITIES, check, synthetic, with_copies

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

import smartgpu
from smartgpu import FacilityLocation, GraphCut, LogDet, Modular, backends, reference, select
from smartgpu.backends import gpu
from smartgpu.job import Job
from smartgpu.objectives import Ground
from smartgpu.options import make_options
from smartgpu.similarity import Precomputed, as_similarity

pytestmark = pytest.mark.usefixtures("device")
DENSE = "least"  # memory: survivors are never stored
ONE = 2**22


@pytest.fixture(autouse=True)
def _kernels_ran(request):
    """Every selection of this file goes through kernels, on the device of the test."""
    if "device" in request.fixturenames:
        from smartgpu.kernels import launch

        assert (request.getfixturevalue("device") == "cpu") == launch.INTERPRETED


def run(x, k, objective, kind, **how):
    how = {"precision": "ieee", **how}
    if how.get("memory") == DENSE:
        options = make_options({"backend": "triton", "precision": how["precision"]})
        how["memory"] = Job.check(x, objective, kind, options).budget(k).cost.least
    sel = select(x, k, objective, kind, **{"backend": "triton", **how})
    assert sel.backend == "triton" and sel.indices.dtype == np.int64 and sel.gains.dtype == np.float64
    return sel


@pytest.mark.parametrize("memory", [None, DENSE], ids=["survivors", "dense"])
@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("name", OBJECTIVES)
def test_picks_are_the_references(rng, name, similarity, memory):
    x = with_copies(synthetic(rng, 40, 9), rng, 0.3)
    kind, objective = SIMILARITIES[similarity], OBJECTIVES[name](x, rng)
    with_fl = name.startswith(("fl", "qdit", "mixture"))
    if memory is not None and not with_fl:
        pytest.skip("no survivors here in any case")
    if not kind.positive_semidefinite and name in ("logdet", "logdet-0.1", "mixture"):
        with pytest.raises(ValueError, match="positive semi-definite"):
            run(x, 5, objective, kind)
        return
    sel = run(x, 6, objective, kind, memory=memory)
    check(sel, x, kind, objective, copies_tie=name not in PER_ROW)


@pytest.mark.parametrize("tie_break", ["low", "high"])
@pytest.mark.parametrize("similarity", ["cosine", "rbf"])
@pytest.mark.parametrize("name", ["fl-weights", "fl-dense", "gc", "logdet", "qdit", "mixture"])
def test_lazy_is_naive_bit_for_bit(rng, name, similarity, tie_break):
    distinct = synthetic(rng, 12, 7)
    x = with_copies(distinct[rng.integers(0, 12, 48)], rng, 0.1)
    x[rng.choice(48, 16, replace=False)] *= 2  # scaled copies, which tie only for cosines
    kind = SIMILARITIES[similarity]
    objective = OBJECTIVES[name.removesuffix("-dense")](x, rng)
    how = {"tie_break": tie_break, "precision": "auto"}
    if name == "fl-dense":
        how["memory"] = DENSE
    lazy, naive = (run(x, 14, objective, kind, maximizer=m, **how) for m in ("lazy", "naive"))
    np.testing.assert_array_equal(lazy.indices, naive.indices)
    atol = 2.0**-38 if name in ("logdet", "mixture") else 0  # log-determinants are rounded to 2^-40
    np.testing.assert_allclose(lazy.gains, naive.gains, rtol=0, atol=atol)


def test_log_determinants_of_many_picks(rng):
    """More picks than there are vectors kept, rows that are evaluated after long, and a factor that grows."""
    x = synthetic(rng, 150, 5)
    for kind in ("cosine_shifted", "dot"):
        one, two = (
            select(x, 140, LogDet(0.1), kind, backend=b, **how)
            for b, how in (("numpy", {}), ("triton", {"precision": "ieee"}))
        )
        np.testing.assert_array_equal(one.indices, two.indices)
        np.testing.assert_allclose(one.gains, two.gains, rtol=0, atol=1e-6)
    state = LogDet().bind(Ground(x[:40], as_similarity("rbf"), "triton", precision="ieee"))
    oracle = reference.Problem(x[:40], as_similarity("rbf"), LogDet())
    late = np.arange(30, 40)
    for j in range(6):
        state.add(np.array([j]))
    np.testing.assert_allclose(state.evaluate(late).gains, oracle.gains(range(6))[late], atol=1e-6)
    before = state.store.values.clone()
    state._grow(100)
    assert state.store.width >= 100 and torch.equal(state.store.values[:, :64], before)
    state.add(np.array([20]))
    np.testing.assert_allclose(state.gains(), oracle.gains([*range(6), 20]), atol=1e-6)


def rounded_similarities(x, kind, precision):
    """s from the features as the backend rounded them, in float64: what its picks are exact for."""
    pool = Ground(x, kind, "triton", precision=precision).geometry()
    y = pool.x.double().cpu().numpy() * pool.scale
    dots = y @ y.T
    if kind.name.startswith("cosine"):
        s = {"cosine": dots, "cosine_shifted": (1 + dots) / 2, "cosine_squared": dots**2}[kind.name]
        return np.clip(s, -1, 1), pool
    if kind.name == "dot":
        return dots * pool.unit, pool
    d2 = np.stack([np.square(y - row).sum(axis=1) for row in y])
    if kind.name == "max_minus_sqeuclidean":
        return (d2.max() - d2) * pool.unit, pool
    return np.exp(-pool.gamma * (np.sqrt(d2) if kind.name == "exp_euclidean" else d2)), pool


DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}


@pytest.mark.parametrize("precision", ["fp16", "bf16", "tf32", "tf32x3"])
@pytest.mark.parametrize(
    "similarity", ["cosine", "cosine_squared", "dot", "rbf", "exp_euclidean", "max_minus_sqeuclidean"]
)
def test_picks_are_the_references_on_the_rounded_features(rng, similarity, precision):
    x, kind = synthetic(rng, 40, 20), as_similarity(similarity)
    s, pool = rounded_similarities(x, kind, precision)
    assert pool.x.dtype == DTYPES.get(precision, torch.float32)
    exact = reference.similarities(x, kind)
    assert (
        np.abs(s - exact).max()
        < {"bf16": 2.0**-6, "tf32x3": 2.0**-20}.get(precision, 2.0**-8) * np.abs(exact).max() * 2
    )
    for objective in (FacilityLocation(rng.random(40)), GraphCut(0.6)):
        if objective.name == "graph_cut" and kind.affine is not None:
            continue  # float64 products: no similarity is clamped or rounded
        sel = run(x, 8, objective, kind, precision=precision)
        check(sel, s, Precomputed(), objective, copies_tie=False)
        assert sel.dtype == {"fp16": "float16", "bf16": "bfloat16"}.get(precision, precision)


def test_automatic_precision(rng):
    x = rng.standard_normal((30, 8)).astype(np.float32)
    half, brain = torch.tensor(x).half(), torch.tensor(x).bfloat16()
    for value, kind, expected in (
        (x, "cosine", "float16"), (brain, "cosine_squared", "float16"), (x, "dot", "tf32x3"), (x, "rbf", "tf32x3"),
        (x.astype(np.float16), "dot", "float16"), (half, "dot", "float16"), (brain, "dot", "bfloat16"),
    ):  # fmt: skip
        assert select(value, 2, FacilityLocation(), kind, backend="triton").dtype == expected
    assert (
        select(x, 2, GraphCut(), "cosine", backend="triton").dtype == "float16"
    )  # float64 sums of rounded features


def quantised(s, unit):
    return np.rint(s / unit * ONE).astype(np.int64)


@pytest.mark.parametrize("similarity", [*SIMILARITIES, "dense", "csr"])
@pytest.mark.parametrize("separate", [False, True], ids=["same", "represented"])
def test_primitives(rng, similarity, separate):
    """Every method of the protocol against the matrix of quanta, which a block of all pairs gives."""
    x, y = synthetic(rng, 41, 9), synthetic(rng, 33, 9) if separate else None
    y0 = x if y is None else y
    if similarity in ("dense", "csr"):
        s = y0.astype(np.float64) @ x.T
        if similarity == "csr":
            s = pytest.importorskip("scipy.sparse").csr_matrix(s * (s > 1))
        from smartgpu.arrays import as_similarity_matrix

        b = Ground(as_similarity_matrix(s), Precomputed(), "triton").backend()
        s = s.toarray() if similarity == "csr" else s
    else:
        kind = SIMILARITIES[similarity]
        b = Ground(x, kind, "triton", precision="ieee").backend(y)
        s = reference.similarities(x, kind, y)
    every = np.arange(b.n)
    columns = b.keep(b.new_level(), every).columns.cpu().numpy()
    q = columns.T.astype(np.int64)
    assert np.abs(q - quantised(s, b.quantum * ONE)).max() <= 2 + 9
    if not separate and similarity != "csr":
        np.testing.assert_array_equal(q, q.T)

    values = np.where(rng.random(b.r) < 0.4, 0, rng.integers(0, ONE, b.r))
    level = b.level_from(values)
    weights = rng.integers(0, 2**30, b.r)
    w = b.new_weights(weights)
    over = np.maximum(q - values[:, None], 0)
    np.testing.assert_array_equal(b.level_values(level), values)
    np.testing.assert_array_equal(b.excess(level), over.sum(axis=0))
    np.testing.assert_array_equal(b.excess(level, w), weights @ over)
    np.testing.assert_array_equal(b.totals(), q.sum(axis=0))
    np.testing.assert_array_equal(b.level_values(b.row_max()), np.maximum(q.max(axis=1), 0))
    assert b.level_sum(level) == values.sum() and b.level_sum(level, w) == weights @ values
    cols = rng.permutation(b.n)[:19]
    where, best = b.nearest(cols)
    np.testing.assert_array_equal(where, q[:, cols].argmax(axis=1))
    np.testing.assert_array_equal(best, q[:, cols].max(axis=1))
    raised = b.level_from(values)
    b.raise_level(raised, cols)
    np.testing.assert_array_equal(b.level_values(raised), np.maximum(values, q[:, cols].max(axis=1)))
    assert b.estimate_survivors(level) == (q > values[:, None]).sum()  # all rows are in the sample

    for scale in (None, w):
        weighted = over.T if scale is None else over.T * weights
        sparse = b.survivors(level, scale)
        assert len(sparse) == (over > 0).sum()
        np.testing.assert_array_equal(sparse.excess(level), weighted.sum(axis=1))
        kept = b.keep(level, cols, scale)
        walked = sparse.narrow(sparse.keep(level, np.concatenate([cols, cols])), np.arange(len(cols)))
        now, there = values.copy(), b.level_from(values)
        for at in (3, 0, 11):
            now = np.maximum(now, q[:, cols[at]])
            after = np.maximum(q[:, cols] - now[:, None], 0) * (1 if scale is None else weights[:, None])
            b.accept(kept, at, there)
            np.testing.assert_array_equal(b.level_values(there), now)
            np.testing.assert_array_equal(kept.excess, after.sum(axis=0))
        there = b.level_from(values)
        for at in (3, 0, 11):
            sparse.accept(walked, at, there)
        np.testing.assert_array_equal(b.level_values(there), now)
        np.testing.assert_array_equal(walked.excess, after.sum(axis=0))
        full = b.level_from(np.maximum(now, (0.9 * q.max(axis=1)).astype(np.int64)))
        sparse.compact(full)
        left = np.maximum(q - b.level_values(full)[:, None], 0)
        np.testing.assert_array_equal(
            sparse.excess(full), left.sum(axis=0) if scale is None else weights @ left
        )
        assert len(sparse) < (over > 0).sum()

    if similarity not in ("dense", "csr") or not separate:
        inner = b.block(every, every)
        if not separate:
            np.testing.assert_array_equal(inner, q)
        np.testing.assert_array_equal(b.diagonal(), np.diagonal(inner))
        np.testing.assert_array_equal(b.block(cols, every[3:7]), inner[np.ix_(cols, every[3:7])])
        np.testing.assert_array_equal(b.block_sums(cols, every), inner[cols].sum(axis=0))
    assert b.held() > 0 and b.pairs > 0


@pytest.mark.parametrize("form", ["dense", "csr", "tensor"])
def test_precomputed(rng, form, device):
    x = with_copies(rng.integers(-2, 3, (40, 6)).astype(np.float32), rng)
    s = (x @ x.T).astype(np.float64)
    value = {
        "dense": lambda: s,
        "csr": lambda: pytest.importorskip("scipy.sparse").csr_matrix(s),
        "tensor": lambda: torch.tensor(s).to(device),
    }[form]()
    for objective in (FacilityLocation(rng.random(40)), GraphCut(0.375), LogDet()):
        one = run(x, 10, objective, "dot")
        two = run(value, 10, objective, "precomputed", precision="auto")
        three = select(s, 10, objective, "precomputed", backend="numpy")
        for other in (two, three):
            np.testing.assert_array_equal(one.indices, other.indices)
            tol = 1e-6 if objective.name == "log_det" else 1e-12
            np.testing.assert_allclose(one.gains, other.gains, rtol=tol)
    lopsided = rng.standard_normal((30, 30)) * (rng.random((30, 30)) < 0.4)
    given = lopsided if form != "csr" else pytest.importorskip("scipy.sparse").csr_matrix(lopsided)
    for objective in (FacilityLocation(), GraphCut(3.0)):
        sel = run(given, 12, objective, "precomputed")
        check(sel, lopsided, Precomputed(), objective, copies_tie=False)


def test_given_exclude_coverage_and_stochastic(rng):
    x = with_copies(synthetic(rng, 40, 9), rng)
    kind = SIMILARITIES["cosine"]
    for objective in (FacilityLocation(), GraphCut(), LogDet()):
        plain = run(x, 8, objective, kind)
        sel = run(x, 5, objective, kind, given=plain.indices[:3])
        np.testing.assert_array_equal(sel.indices, plain.indices[3:])
        np.testing.assert_allclose(sel.gains, plain.gains[3:], rtol=1e-9)
        given, closed = [3, 39, 17], rng.choice(np.arange(18, 38), 12, replace=False)
        sel = run(x, 6, objective, kind, given=given, exclude=closed)
        check(sel, x, kind, objective, given=given, closed=closed)
    every = smartgpu.rank(x, "facility_location", backend="triton", precision="ieee")
    total = reference.Problem(x, kind, FacilityLocation()).value(range(40))
    assert sorted(every.indices) == list(range(40)) and every.value == pytest.approx(total, rel=1e-6)
    sel = run(x, None, FacilityLocation(), kind, coverage=0.9)
    np.testing.assert_array_equal(sel.indices, every.indices[: sel.k])
    assert np.cumsum(every.gains)[sel.k - 2] < 0.9 * total * (1 + 1e-6) and sel.value >= 0.9 * total * (
        1 - 1e-6
    )
    one, two = (run(x, 6, FacilityLocation(), kind, maximizer="stochastic", seed=1) for _ in range(2))
    np.testing.assert_array_equal(one.indices, two.indices)


def test_evaluate_and_assign_agree_with_numpy(rng):
    x = with_copies(synthetic(rng, 70, 9), rng)
    rows = rng.permutation(70)[:9]
    cases = [(FacilityLocation(), "cosine"), (FacilityLocation(), "dot")]
    for objective, kind in [*cases, (GraphCut(0.3), "rbf"), (LogDet(2.0), "cosine")]:
        one, two = (smartgpu.evaluate(x, rows, objective, kind, backend=b) for b in ("numpy", "triton"))
        for name in ("value", "total", "coverage", "bound"):
            mine, theirs = getattr(two, name), getattr(one, name)
            assert (mine is None) == (theirs is None)
            assert mine is None or mine == pytest.approx(theirs, rel=2e-3 if kind == "cosine" else 1e-5)
    ground = Ground(x, as_similarity("rbf"), "triton", precision="ieee")
    where, q = ground.backend().nearest(rows)
    s = reference.similarities(x, as_similarity("rbf"))[:, rows]
    assert np.abs(s[np.arange(70), where] - s.max(axis=1)).max() < 1e-6
    np.testing.assert_allclose(q * ground.backend().quantum, s.max(axis=1), atol=1e-6)


def test_coverage_of_rounded_rows_is_at_most_one(rng):
    """Rounded to 16 bits, rows have no unit length: another may be nearer to a row than it is to itself."""
    x = synthetic(rng, 1, 20) + 1e-3 * rng.standard_normal((40, 20))
    for kind in ("cosine", "cosine_squared"):
        every = smartgpu.evaluate(x, range(40), "facility_location", kind, backend="triton", precision="bf16")
        assert every.value == every.total


def test_a_checkpoint_goes_on(rng, tmp_path):
    x = torch.tensor(synthetic(rng, 40, 9)).bfloat16()
    whole = select(x, 9, backend="triton")

    def stop(j, gain, seen=[]):  # noqa: B006 - counts over calls
        seen.append(j)
        if len(seen) == 4:
            raise KeyboardInterrupt

    path = tmp_path / "picks.npz"
    with pytest.raises(KeyboardInterrupt):
        select(x, 9, backend="triton", report=stop, checkpoint=path)
    sel = select(x, 9, backend="triton", checkpoint=path)
    np.testing.assert_array_equal(sel.indices, whole.indices)
    np.testing.assert_array_equal(sel.gains, whole.gains)
    with pytest.raises(ValueError, match="precision"):
        select(x, 9, backend="triton", checkpoint=path, precision="bf16")


def test_memory_changes_no_pick(rng, monkeypatch):
    from smartgpu.backends.resident import Excesses
    from smartgpu.backends.triton import Survivors

    used = set()
    for owner, name in ((Excesses, "_dense"), (Excesses, "_sparse"), (Survivors, "compact")):
        method = getattr(owner, name)
        spy = lambda self, *a, key=(owner, name), method=method: used.add(key) or method(self, *a)  # noqa: E731
        monkeypatch.setattr(owner, name, spy)
    x = with_copies(synthetic(rng, 70, 9), rng)
    for weights in (None, rng.random(70)):
        runs = []
        for memory, expected in (
            (None, {(Excesses, "_sparse"), (Survivors, "compact")}),
            (DENSE, {(Excesses, "_dense")}),
        ):
            used.clear()
            runs.append(run(x, 12, FacilityLocation(weights), "rbf", memory=memory))
            assert used == expected
        np.testing.assert_array_equal(runs[0].indices, runs[1].indices)
        np.testing.assert_array_equal(runs[0].gains, runs[1].gains)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64", "int8"])
def test_tensors(rng, dtype, device):
    """Tensors give what arrays give, wherever they lie and whatever their strides."""
    x = rng.integers(-120, 121, (40, 12)).astype(np.float32)
    x[30:] = x[:10]
    tensor = torch.tensor(x).to(getattr(torch, dtype))
    window = torch.zeros(90, 30, dtype=tensor.dtype)
    window[5:85:2, 3:15] = tensor
    for objective, kind in ((FacilityLocation(), "dot"), (LogDet(), "cosine"), (GraphCut(), "dot")):
        plain = run(x, 6, objective, kind)
        for value in (tensor, window.to(device)[5:85:2, 3:15], tensor.to(device).T.contiguous().T):
            sel = run(value, 6, objective, kind)
            np.testing.assert_array_equal(sel.indices, plain.indices)
            np.testing.assert_allclose(sel.gains, plain.gains, rtol=1e-12)
    scores = torch.tensor(x[:, 0]).to(device)
    sel = run(x, 5, FacilityLocation() + Modular(scores), "cosine")
    np.testing.assert_array_equal(
        sel.indices, run(x, 5, FacilityLocation() + Modular(x[:, 0]), "cosine").indices
    )


def test_dot_products_use_tensors_in_place(rng, device):
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        whole = torch.tensor(rng.standard_normal((40, 64))).to(dtype).to(device)
        x = whole[::2, 16:48]
        ground = Ground(x, as_similarity("dot"), "triton")
        assert ground.geometry().x is x and ground.geometry().owned == 0
        shifted = Ground(
            whole[::2, 3:20], as_similarity("dot"), "triton"
        ).geometry()  # read in pieces: copied
        assert (
            shifted.x.shape == (20, 32) and shifted.owned == shifted.x.nbytes and not shifted.x[:, 17:].any()
        )
        assert ground.backend().held() < Ground(x, as_similarity("cosine"), "triton").backend().held()


@pytest.mark.gpu
def test_represented_rows_on_the_device(rng, device):
    x, y = synthetic(rng, 60, 9), synthetic(rng, 30, 9)
    for objective in (FacilityLocation, lambda represented: GraphCut(0.4, represented)):
        there = objective(represented=torch.tensor(y).to(device))
        plain = run(torch.tensor(x).to(device), 9, objective(represented=y), "rbf")
        np.testing.assert_array_equal(run(torch.tensor(x).to(device), 9, there, "rbf").indices, plain.indices)
        host = select(x, 9, there, "rbf", backend="numpy")
        np.testing.assert_array_equal(
            host.indices, select(x, 9, objective(represented=y), "rbf", backend="numpy").indices
        )


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.parametrize("similarity", ["cosine", "cosine_shifted", "dot", "rbf", "max_minus_sqeuclidean"])
@pytest.mark.parametrize("memory", [None, "80MB", DENSE], ids=["survivors", "little memory", "dense"])
def test_larger_pools(rng, device, similarity, memory):
    """Many tiles and waves of programs, survivors compacted several times."""
    x, kind = synthetic(rng, 3001, 77), as_similarity(similarity)
    s, _ = rounded_similarities(x, kind, "auto")
    for weights in (None, rng.random(3001)):
        objective = FacilityLocation(weights)
        sel = run(x, 150, objective, kind, precision="auto", memory=memory)
        check(sel, s, Precomputed(), objective, copies_tie=False)
    for objective in (GraphCut(0.4), LogDet(0.5)):
        if kind.positive_semidefinite:
            sel = run(x, 100, objective, kind)
            check(sel, x, kind, objective)


@pytest.mark.gpu
def test_the_callers_stream(rng, device):
    """Work queued on the current stream before the call is seen by it."""
    x = torch.zeros(2000, 64, device=device)
    values = torch.tensor(rng.standard_normal((2000, 64)), dtype=torch.float32, device=device)
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        torch.cuda._sleep(20_000_000)
        x.copy_(values)
        sel = select(x, 20, "facility_location", "dot", backend="triton")
    np.testing.assert_array_equal(
        sel.indices, select(values, 20, "facility_location", "dot", backend="triton").indices
    )


def broken(device, at=7):
    x = torch.zeros(20, 3, device=device)
    x[at, 1] = float("nan")
    x[at + 3, 0] = float("inf")
    return x


class Foreign:
    """An array on a device, as CuPy has them, whose rows begin between elements."""

    __cuda_array_interface__ = {"shape": (4, 3), "typestr": "<f4", "data": (0, False), "version": 3}  # noqa: RUF012
    dtype, strides = np.dtype(np.float32), (13, 4)


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (broken, ValueError, "X must be finite, got 2 NaN or infinite values, the first in row 7"),
        (
            lambda device: torch.zeros(4, 3, dtype=torch.complex64, device=device),
            TypeError,
            "float16, bfloat16, float32",
        ),
        (lambda device: torch.zeros(4, 3, device=device).to_sparse(), ValueError, "dense tensor"),
        (
            lambda device: torch.zeros(4, 3, device="meta"),
            ValueError,
            "on a CUDA device or on the host, got .* meta",
        ),
        (lambda device: torch.zeros(4, device=device), ValueError, r"two-dimensional.* got shape \(4,\)"),
        (lambda device: torch.zeros(0, 3, device=device), ValueError, "X is empty"),
        (
            lambda device: Foreign(),
            ValueError,
            r"multiples of its element size, 4 bytes, got strides \(13, 4\)",
        ),
    ],
)
def test_bad_tensors(device, value, error, message):
    with pytest.raises(error, match=message):
        select(value(device), 2, backend="triton")


class Elsewhere(torch.Tensor):
    """A tensor that says it is on another GPU."""

    place = "cuda:0"

    @property
    def device(self):
        return torch.device(self.place)


def test_tensors_on_several_devices(machine):
    from smartgpu.backends.device import open_device

    machine(gpu.Found(True, True))
    x, y = (torch.zeros(4, 3).as_subclass(Elsewhere) for _ in range(2))
    assert open_device(x, y, np.zeros((4, 3)), torch.zeros(4, 3)) == torch.device("cuda:0")
    y.place = "cuda:1"
    with pytest.raises(ValueError, match="X and represented must be on one device, got cuda:0, cuda:1"):
        open_device(x, y)
    y.place = "xpu:0"
    with pytest.raises(ValueError, match="takes tensors on a CUDA device or on the host, got xpu:0"):
        open_device(y)


def test_options_of_other_backends(rng):
    x = rng.standard_normal((10, 3))
    with pytest.raises(ValueError, match="precision is for backend 'triton', got 'fp16' with 'numpy'"):
        select(x, 2, backend="numpy", precision="fp16")
    with pytest.raises(ValueError, match=r"unknown precision 'fp8'.* tf32x3"):
        select(x, 2, backend="triton", precision="fp8")


# ---- which backend


@pytest.fixture
def machine(monkeypatch):
    """machine(found) -> as if that were what this machine has, without the interpreter."""

    def make(found: gpu.Found) -> None:
        monkeypatch.setattr(gpu, "interpreted", lambda: False)
        monkeypatch.setattr(gpu, "find_gpu", lambda: found)
        gpu.automatic.cache_clear()

    yield make
    gpu.automatic.cache_clear()


def test_auto(machine, caplog):
    machine(gpu.Found(True, True))
    assert backends.resolve("auto") == "triton"
    for found, level in (
        (gpu.Found(False, True, "it has compute capability 7.5, and 8.0 or more is needed"), logging.WARNING),
        (gpu.Found(False, False, "no NVIDIA driver was found"), logging.INFO),
    ):
        caplog.clear()
        caplog.set_level(logging.INFO, "smartgpu")
        machine(found)
        assert [backends.resolve("auto") for _ in range(3)] == ["numpy"] * 3
        assert [(r.levelno, r.getMessage()) for r in caplog.records] == [
            (level, f"backend 'auto' is numpy: {found.missing}")
        ]


def test_no_gpu(machine, rng):
    machine(gpu.Found(False, True, "it has compute capability 7.5, and 8.0 or more is needed"))
    with pytest.raises(
        RuntimeError, match=r"needs an NVIDIA GPU of compute capability 8.0 or more: it has .* 7.5"
    ):
        select(rng.standard_normal((10, 3)), 2, backend="triton")


def test_compile_time_is_reported(rng, monkeypatch):
    """What the compiler's listener is told counts, and whoever listened before is still told."""
    from types import SimpleNamespace

    import triton

    from smartgpu.kernels import compiling

    told = []
    monkeypatch.setattr(compiling, "_before", lambda **what: told.append(what))
    before, x = compiling.seconds(), rng.standard_normal((30, 4))

    def report(j, gain):
        triton.knobs.compilation.listener(
            src=None, metadata={}, metadata_group={}, times=SimpleNamespace(total=250_000), cache_hit=False
        )

    sel = select(x, 2, backend="triton", report=report)
    assert len(told) >= 2 and compiling.seconds() - before >= 0.5
    assert 0.5 <= sel.seconds["compile"] == pytest.approx(compiling.seconds() - before)
