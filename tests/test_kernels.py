"""Dense kernels: columns against float64, and everything else against the very integers of columns."""

import os

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from smartgpu.kernels import launch, neighbours, similarity, survivors, sweeps
from smartgpu.kernels.similarity import ONE, Form

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
FORMS = {
    "dot": Form("dot", scale=0.25),
    "cosine": Form("cosine"),
    "cosine_shifted": Form("cosine_shifted"),
    "cosine_squared": Form("cosine_squared"),
    "rbf": Form("rbf", gamma=0.7),
    "exp_euclidean": Form("exp_euclidean", gamma=0.3),
    "max_minus_sqeuclidean": Form("max_minus_sqeuclidean", top=0.9),
}
NORMED = ("cosine", "cosine_shifted", "cosine_squared")
EVERY = slice(None)


def rows(rng, n, d, kind, dtype, device):
    """Random rows as the kind expects them: of unit length, or with distances (and 4 times dots) of at most 1."""
    a = rng.standard_normal((n, d))
    a /= np.linalg.norm(a, axis=1, keepdims=True)
    if kind not in NORMED:
        a *= rng.uniform(0.2, 0.5, size=(n, 1)) * (4 if kind == "dot" else 1)
    return torch.as_tensor(a).to(DTYPES[dtype]).to(device)


def definition(x, y, form):
    """s_ij in float64 from the page, for the rows as the kernel receives them, (r, n)."""
    x, y = x.double().cpu().numpy(), y.double().cpu().numpy()
    dot = x @ y.T
    square = ((x[:, None, :] - y[None, :, :]) ** 2).sum(axis=2)
    s = {
        "dot": dot * form.scale,
        "cosine": dot,
        "cosine_shifted": (1 + dot) / 2,
        "cosine_squared": dot**2,
        "rbf": np.exp(-form.gamma * square),
        "exp_euclidean": np.exp(-form.gamma * np.sqrt(square)),
        "max_minus_sqeuclidean": form.top - square,
    }[form.kind]
    return np.clip(s, -1, 1) * 2.0**22


def tolerance(x, y, form):
    """Quanta by which a kernel may differ from the definition: half of one, and float32's rounding of the map's input.

    d products and sums of numbers of at most |x||y| are off by (d + 2) 2^-23 of it (2^-23 and not 2^-24: tensor cores
    truncate), and the map stretches that: 2 for a square or a distance's -2 x.y, whose norms are off as well. A root
    turns an error e of D^2 into sqrt(e) near 0. Exponentials are good to 2^-21.
    """
    d = x.shape[1]
    most = max(float((a.double() ** 2).sum(dim=1).max()) for a in (x, y))
    error = 1.1 * most * (d + 2) * 2.0**-23
    if form.kind == "dot":
        error *= form.scale
    elif form.kind == "cosine_squared":
        error *= 2
    elif form.distance:
        error = 4 * error + 2.0**-23
        if form.kind == "exp_euclidean":
            error = np.sqrt(error)
        if form.gamma:
            error = form.gamma * error + 2.0**-21
    return 0.5 + error * 2.0**22


@pytest.fixture
def small(device, monkeypatch):
    """In the interpreter, tiles so small that a few dozen rows make many of them; on a GPU its own ones."""
    if device == "cpu":
        config = launch.LaunchConfig(16, 32, 16, num_warps=4, num_stages=2)
        square = launch.LaunchConfig(16, 16, 16, num_warps=4, num_stages=2)
        monkeypatch.setattr(launch, "config", lambda kernel, *_: square if kernel == "norms" else config)
        monkeypatch.setattr(launch, "tiles_of_a_program", lambda a, b, device, most: min(2, b))
    return device


def q_of(x, y, form, **options):
    """All pairs from `columns`, (r, n) int64 on the host."""
    cols = torch.arange(y.shape[0], device=y.device)
    out = torch.full((y.shape[0], x.shape[0]), -(2**31), dtype=torch.int32, device=x.device)  # poisoned
    assert sweeps.columns(x, y, cols, form, out=out, **options) is out
    return out.T.cpu().numpy().astype(np.int64)


def levels(rng, q):
    """Levels among the similarities of each row, so that about half of its pairs lie above."""
    return np.maximum(0, q[np.arange(len(q)), rng.integers(0, q.shape[1], size=len(q))]).astype(np.int32)


def lists(ptr, stored, q):
    """Survivors as sets of (row, q), one for each candidate."""
    pairs = list(zip(stored.tolist(), q.tolist(), strict=True))
    return [sorted(pairs[s:e]) for s, e in zip(ptr[:-1].tolist(), ptr[1:].tolist(), strict=True)]


def check_everything(x, y, form, rng, weighted=True):
    """Every dense kernel gives what the integers of `columns` give."""
    device, same = x.device, x is y
    q = q_of(x, y, form)
    r, n = q.shape
    level, w = levels(rng, q), rng.integers(0, 2**33, size=r)
    held = torch.as_tensor(level).to(device)
    weights = torch.as_tensor(w).to(device) if weighted else None
    w = w if weighted else np.ones(r, dtype=np.int64)
    rise = np.maximum(q - level[:, None], 0)
    cols = torch.as_tensor(rng.integers(0, n, size=7)).to(device)
    picked = torch.as_tensor(rng.integers(0, r, size=5)).to(device)
    c, p = cols.cpu().numpy(), picked.cpu().numpy()
    if same:
        np.testing.assert_array_equal(q, q.T)
    np.testing.assert_array_equal(q_of(y, x, form), q.T)

    for some, at in ((None, EVERY), (cols, c)):
        got = sweeps.totals(x, y, form, weights=weights, cols=some).cpu().numpy()
        np.testing.assert_array_equal(got, (w[:, None] * q).sum(axis=0)[at])
        got = sweeps.excess(x, y, held, form, weights=weights, cols=some).cpu().numpy()
        np.testing.assert_array_equal(got, (w[:, None] * rise).sum(axis=0)[at])
    np.testing.assert_array_equal(sweeps.block(x, picked, y, cols, form).cpu().numpy(), q[np.ix_(p, c)])
    np.testing.assert_array_equal(sweeps.row_max(x, y, form).cpu().numpy(), np.maximum(q.max(axis=1), 0))
    np.testing.assert_array_equal(sweeps.row_min(x, y, form).cpu().numpy(), q.min(axis=1))

    count = survivors.count(x, y, held, form)
    np.testing.assert_array_equal(count.cpu().numpy(), (q > level[:, None]).sum(axis=0))
    ptr = torch.nn.functional.pad(count.cumsum(0), (1, 0))
    stored, values = survivors.fill(x, y, held, ptr, form)
    want = [[(i, q[i, j]) for i in range(r) if q[i, j] > level[i]] for j in range(n)]
    assert lists(ptr, stored, values) == want

    k = min(n, 5)
    order = np.lexsort((np.broadcast_to(np.arange(n), q.shape), -q), axis=1)[:, :k]
    values, indices = neighbours.top_k(x, y, k, form)
    np.testing.assert_array_equal(indices.cpu().numpy(), order)
    np.testing.assert_array_equal(values.cpu().numpy(), np.take_along_axis(q, order, axis=1))
    position, best = neighbours.nearest(x, y, cols, form)
    np.testing.assert_array_equal(position.cpu().numpy(), q[:, c].argmax(axis=1))
    np.testing.assert_array_equal(best.cpu().numpy(), q[:, c].max(axis=1))


# The small tiles of the interpreter are 16 x 32 x 16: 1, below, at and above; d around one and two steps.
SHAPES = [(1, 1, 1), (15, 33, 15), (16, 32, 16), (33, 17, 31), (70, 40, 33)]


@pytest.mark.parametrize("kind", FORMS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "m", "d"), SHAPES, ids=lambda v: str(v))
def test_columns_against_float64(n, m, d, dtype, kind, small, rng):
    x, y = (rows(rng, count, d, kind, dtype, small) for count in (n, m))
    form = FORMS[kind]
    off = np.abs(q_of(x, y, form) - definition(x, y, form)).max()
    assert off <= tolerance(x, y, form)


@pytest.mark.parametrize("same", [True, False], ids=["one-set", "two-sets"])
@pytest.mark.parametrize("kind", FORMS)
def test_every_kernel_sees_the_same_bits(kind, same, small, rng):
    dtype = {"dot": "bf16", "rbf": "fp32", "exp_euclidean": "bf16", "cosine_squared": "fp32"}.get(
        kind, "fp16"
    )
    x = rows(rng, 70, 37, kind, dtype, small)
    x[40], x[69] = x[3], x[3]  # copies, in other tiles
    y = x if same else rows(rng, 45, 37, kind, dtype, small)
    check_everything(x, y, FORMS[kind], rng, weighted=kind != "cosine")


@pytest.mark.parametrize("dtype", ["fp16", "fp32"])
def test_real_configurations(dtype, device, rng):
    """The configurations of the table, their blocks included, with shapes around their edges."""
    x = rows(rng, 259, 65, "cosine", dtype, device)
    check_everything(x, x, FORMS["cosine"], rng)
    check_everything(x[:130], x[100:], FORMS["cosine"], rng, weighted=False)


@pytest.mark.parametrize("precision", ["tf32", "tf32x3"])
def test_precisions_of_float32(precision, small, rng):
    x = rows(rng, 60, 50, "rbf", "fp32", small)
    form = Form("rbf", gamma=0.7, precision=precision)
    check_everything(x, x, form, rng, weighted=False)
    # tf32 cuts 13 bits off each factor (relative 2^-10), tf32x3 leaves out the product of the low parts (2^-20)
    off = np.abs(q_of(x, x, form) - definition(x, x, form)).max()
    assert off <= tolerance(x, x, form) + 2.0**22 * 0.7 * 4 * 0.25 * (
        2.0**-9 if precision == "tf32" else 2.0**-19
    )


def test_rounding_to_tf32():
    x = torch.tensor([[1.0, 1 + 2.0**-10, 1 + 2.0**-11, 1 + 2.0**-12, -1 - 2.0**-11, 0.0]])
    want = [1.0, 1 + 2.0**-10, 1 + 2.0**-10, 1.0, -1 - 2.0**-10, 0.0]
    np.testing.assert_array_equal(similarity.round_to_tf32(x).numpy()[0], np.float32(want))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", similarity.DISTANCES)
def test_equal_rows_have_distance_zero(kind, dtype, small, rng):
    x = rows(rng, 50, 21, kind, dtype, small)
    x = torch.cat([x, x])[torch.as_tensor(rng.permutation(100)).to(small)]
    form = FORMS[kind]
    norms = similarity.squared_norms(x, form)
    np.testing.assert_allclose(norms.cpu(), (x.double() ** 2).sum(dim=1).cpu(), rtol=23 * 2.0**-23)
    q = q_of(x, x, form, x_squares=norms, y_squares=norms)
    equal = (x[:, None] == x[None, :]).all(dim=2).cpu().numpy()
    at_zero = {"max_minus_sqeuclidean": round(0.9 * ONE)}.get(kind, ONE)
    assert equal.sum() == 200 and set(q[equal].tolist()) == {at_zero}


@pytest.mark.parametrize("dtype", DTYPES)
def test_copies_tie_exactly(dtype, small, rng):
    x = rows(rng, 23, 19, "cosine", dtype, small)
    x = torch.cat([x, x, x])
    form, third = FORMS["cosine"], slice(0, 23)
    level = torch.as_tensor(levels(rng, q_of(x, x, form)[third])).repeat(3).to(small)
    for got in (
        sweeps.totals(x, x, form),
        sweeps.excess(x, x, level, form),
        survivors.count(x, x, level, form),
        sweeps.row_max(x, x, form),
    ):
        a, b, c = got.cpu().numpy().reshape(3, 23)
        np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(a, c)
    _, indices = neighbours.top_k(x, x, 3, form)
    own = np.arange(69) % 23
    np.testing.assert_array_equal(indices.cpu().numpy(), np.stack([own, own + 23, own + 46], axis=1))


def test_one_pair_at_a_time(small, rng):
    """A weight on one row shows the bits of single pairs in sums, in either order."""
    x = rows(rng, 40, 29, "cosine", "fp32", small)
    q = q_of(x, x, FORMS["cosine"])
    zero = torch.zeros(40, dtype=torch.int32, device=small)
    for i in (0, 17, 39):
        w = torch.zeros(40, dtype=torch.int64, device=small)
        w[i] = 1
        for y in (x, x.clone()):  # symmetric tiles, and not
            total = sweeps.totals(x, y, FORMS["cosine"], weights=w).cpu().numpy()
            np.testing.assert_array_equal(total, q[i])
            np.testing.assert_array_equal(total, q[:, i])
            gain = sweeps.excess(x, y, zero, FORMS["cosine"], weights=w).cpu().numpy()
            np.testing.assert_array_equal(gain, np.maximum(q[i], 0))


def test_results_do_not_depend_on_the_launch(device, rng, monkeypatch):
    if device == "cuda":
        pytest.skip("its tiles are the table's: test_gpu_configurations_agree")
    x = rows(rng, 130, 40, "rbf", "fp32", device)
    level = torch.as_tensor(levels(rng, q_of(x, x, FORMS["rbf"]))).to(device)
    seen = set()
    for a, b, k, tiles in ((16, 16, 16, 1), (32, 64, 64, 3), (64, 64, 32, 2)):
        config = launch.LaunchConfig(a, b, k, num_warps=4, num_stages=2)
        square = launch.LaunchConfig(a, a, k, num_warps=4, num_stages=2)
        monkeypatch.setattr(
            launch, "config", lambda kernel, *_, c=config, s=square: s if kernel == "norms" else c
        )
        monkeypatch.setattr(launch, "tiles_of_a_program", lambda a, b, device, most, t=tiles: min(t, b))
        seen.add(tuple(sweeps.excess(x, x, level, FORMS["rbf"]).tolist()))
    assert len(seen) == 1


@pytest.mark.parametrize("dtype", DTYPES)
def test_strided_rows(dtype, small, rng):
    wide = rows(rng, 60, 90, "cosine", dtype, small)
    x, y = wide[::2, 3:40], wide[1::3, 50:87]
    assert x.stride(0) == 180 and not x.is_contiguous()
    form = FORMS["rbf"]
    np.testing.assert_array_equal(q_of(x, y, form), q_of(x.contiguous(), y.contiguous(), form))
    flat = wide[:1, :37].expand(20, 37)  # row stride 0
    np.testing.assert_array_equal(q_of(flat, y, form), np.repeat(q_of(flat[:1], y, form), 20, axis=0))
    out = torch.full((20, 64), 7, dtype=torch.int32, device=small)
    cols = torch.arange(20, device=small)
    sweeps.columns(x, y, cols, form, out=out[:, :30])
    np.testing.assert_array_equal(out[:, :30].T.cpu().numpy(), q_of(x, y, form))
    assert (out[:, 30:] == 7).all()


def test_offsets_beyond_32_bits(device, rng):
    """Rows 2^26 elements apart, the last of them at 2^31: 4 GiB of addresses, of which a few pages are touched."""
    x = rows(rng, 33, 24, "cosine", "fp16", device)
    far = torch.empty(2**31 + 24, dtype=torch.float16, device=device).as_strided((33, 24), (2**26, 1))
    far.copy_(x)
    form = FORMS["cosine"]
    np.testing.assert_array_equal(q_of(far, far, form), q_of(x, x, form))
    level = torch.zeros(33, dtype=torch.int32, device=device)
    near = sweeps.excess(x, x, level, form).tolist()
    assert sweeps.excess(far, far, level, form).tolist() == near
    _, indices = neighbours.top_k(far, far, 1, form)
    assert indices[:, 0].tolist() == list(range(33))


def test_the_largest_sums(small):
    one = torch.zeros(300, 5, device=small)
    one[:, 0] = 1
    form = FORMS["cosine"]
    zero = torch.zeros(300, dtype=torch.int32, device=small)
    for y in (one, one[:2]):
        assert set(sweeps.totals(one, y, form).tolist()) == {300 * ONE}
        assert set(sweeps.excess(one, y, zero, form).tolist()) == {300 * ONE}
        assert set(sweeps.totals(3 * one, 3 * y, form).tolist()) == {300 * ONE}  # clamped
    assert set(sweeps.totals(-one, one[:2], form).tolist()) == {-300 * ONE}
    w = torch.zeros(300, dtype=torch.int64, device=small)
    w[7] = similarity.MAX_WEIGHT
    for y in (one, one[:2]):
        assert set(sweeps.totals(one, y, form, weights=w).tolist()) == {2**62}
        assert set(sweeps.excess(one, y, zero, form, weights=w).tolist()) == {2**62}
    assert survivors.count(one, one, zero + ONE, form).sum() == 0


def test_pointers_that_do_not_fit_overwrite_nothing(small, rng):
    x, form = rows(rng, 40, 9, "cosine", "fp32", small), FORMS["cosine"]
    level = torch.zeros(40, dtype=torch.int32, device=small)
    ptr = torch.nn.functional.pad(survivors.count(x, x, level, form).cumsum(0), (1, 0))
    for wrong in (
        ptr // 2,
        torch.clamp(ptr + 3, max=int(ptr[-1])),
    ):  # too little room, and too much for the first
        for y in (x, x.clone()):
            with pytest.raises(ValueError, match="ptr must be 0 and the running sums of count"):
                survivors.fill(x, y, level, wrong, form)


def test_zero_rows(small):
    zero, some = torch.zeros(40, 16, device=small), torch.full((40, 16), 0.25, device=small)
    for kind, s in (("cosine", 0), ("cosine_shifted", 2**21), ("cosine_squared", 0)):
        assert set(sweeps.totals(zero, some, FORMS[kind]).tolist()) == {40 * s}


def test_nothing_to_do(small):
    x, form = torch.zeros(4, 3, device=small), FORMS["rbf"]
    level = torch.zeros(4, dtype=torch.int32, device=small)
    none = torch.zeros(0, dtype=torch.int64, device=small)
    assert sweeps.totals(x[:0], x, form).tolist() == [0] * 4
    assert sweeps.totals(x, x[:0], form).shape == (0,)
    assert sweeps.excess(x, x, level, form, cols=none).shape == (0,)
    assert sweeps.columns(x, x, none, form).shape == (0, 4)
    assert sweeps.columns(x[:0], x, none + 1, form).shape == (0, 0)
    assert sweeps.block(x, none, x, none, form).shape == (0, 0)
    assert sweeps.row_max(x, x[:0], form).tolist() == [0] * 4
    assert sweeps.row_min(x, x[:0], form).tolist() == [ONE] * 4
    assert survivors.count(x, x[:0], level, form).shape == (0,)
    ptr = torch.zeros(5, dtype=torch.int64, device=small)
    assert [a.shape for a in survivors.fill(x, x, level, ptr, form)] == [(0,), (0,)]
    values, indices = neighbours.top_k(x[:0], x, 2, form)
    assert values.shape == indices.shape == (0, 2)
    # no features: every dot product is 0
    assert set(q_of(x[:, :0], x[:, :0], form).ravel().tolist()) == {ONE}


def test_more_neighbours_than_one_pass_holds(small, rng, monkeypatch):
    monkeypatch.setattr(neighbours, "MOST", 8)
    x = rows(rng, 20, 9, "cosine", "fp32", small)
    y = rows(rng, 50, 9, "cosine", "fp32", small)
    y[10:20] = y[30:40]  # ties, some of them across the passes
    q = q_of(x, y, FORMS["cosine"])
    order = np.lexsort((np.broadcast_to(np.arange(50), q.shape), -q), axis=1)
    values, indices = neighbours.top_k(x, y, 50, FORMS["cosine"])
    np.testing.assert_array_equal(indices.cpu().numpy(), order)
    np.testing.assert_array_equal(values.cpu().numpy(), np.take_along_axis(q, order, axis=1))


def test_real_embeddings(alpaca, device):
    x = torch.as_tensor(np.array(alpaca[:300])).to(device)
    got = sweeps.totals(x, x[:40], FORMS["cosine"]).cpu().numpy() * similarity.QUANTUM
    exact = (x.cpu().double() @ x[:40].cpu().double().T).sum(dim=0).numpy()
    # The design's bound: half a quantum a pair, and (d/16 + 2) 2^-23 of a similarity of at most 1
    assert np.abs(got - exact).max() <= 300 * (2.0**-23 + (384 / 16 + 2) * 2.0**-23)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", similarity.PRECISIONS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["cosine", "rbf"])
def test_gpu_configurations_agree(kind, dtype, precision, rng):
    """On this GPU: all kernels, with their different tiles and instructions, and many tiles of each."""
    if os.environ.get("TRITON_INTERPRET") == "1":
        pytest.skip("TRITON_INTERPRET=1: kernels run in the interpreter here")
    if dtype != "fp32" and precision != "ieee":
        pytest.skip("precisions are float32's")
    form = Form(kind, gamma=0.7 if kind == "rbf" else 0.0, precision=precision)
    x = rows(rng, 1100, 384, kind, dtype, "cuda")
    check_everything(x, x, form, rng)
    check_everything(x[:600], x[500:], form, rng, weighted=False)


def bad(message, **change):
    return pytest.param(change, message, id=message[:40])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        bad("x must be a torch.Tensor, got ndarray", x=np.zeros((4, 3), np.float32)),
        bad("x must have 2 dimensions, got shape (4,)", x=torch.zeros(4)),
        bad("y must be (n, 3) like x, got (5, 2)", y=torch.zeros(5, 2)),
        bad("got torch.float64", x=torch.zeros(4, 3, dtype=torch.float64)),
        bad("y must have x's dtype torch.float32, got torch.float16", y=torch.zeros(5, 3).half()),
        bad("last dimension (stride 1), got stride 4", x=torch.zeros(3, 4).T),
        bad("weights must have shape (4,), got (3,)", weights=torch.ones(3, dtype=torch.int64)),
        bad("weights must have dtype torch.int64, got torch.float32", weights=torch.ones(4)),
        bad("weights must be contiguous, got strides (2,)", weights=torch.ones(8, dtype=torch.int64)[::2]),
        bad("level must have shape (4,), got (5,)", level=torch.zeros(5, dtype=torch.int32)),
        bad("level must have dtype torch.int32, got torch.float32", level=torch.zeros(4)),
        bad("cols must have dtype torch.int64, got torch.int32", cols=torch.zeros(2, dtype=torch.int32)),
        bad("squares must have shape (5,), got (4,)", form=FORMS["rbf"], y_squares=torch.zeros(4)),
        bad(
            'precision must be "ieee" for torch.float16',
            x=torch.zeros(4, 3).half(),
            y=torch.zeros(5, 3).half(),
            form=Form("cosine", precision="tf32"),
        ),
    ],
)
def test_launchers_refuse(change, message, device):
    def put(v):
        if not isinstance(v, torch.Tensor):
            return v
        moved = v.to(device)  # keeps no strides of its own on the way to a GPU
        return torch.empty_strided(v.shape, v.stride(), dtype=v.dtype, device=device).copy_(moved)

    arguments = {
        "x": torch.zeros(4, 3),
        "y": torch.zeros(5, 3),
        "level": torch.zeros(4, dtype=torch.int32),
        "form": FORMS["cosine"],
        **change,
    }
    with pytest.raises(ValueError) as refusal:
        sweeps.excess(**{name: put(v) for name, v in arguments.items()})
    assert message in str(refusal.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "cos"}, "kind must be one of dot, cosine, cosine_shifted, cosine_squared, rbf"),
        ({"kind": "cosine", "precision": "fast"}, "precision must be one of ieee, tf32, tf32x3, got 'fast'"),
        ({"kind": "cosine", "scale": 0.5}, "scale must be 1 for kind 'cosine', got 0.5"),
        (
            {"kind": "dot", "scale": 3.0},
            "scale must be a positive power of two within float32's range, got 3.0",
        ),
        (
            {"kind": "dot", "scale": -2.0},
            "scale must be a positive power of two within float32's range, got -2.0",
        ),
        ({"kind": "rbf"}, "gamma must be positive and finite in float32, got 0.0"),
        ({"kind": "rbf", "gamma": float("inf")}, "gamma must be positive and finite in float32, got inf"),
        ({"kind": "dot", "gamma": 1.0}, "gamma must be 0 for kind 'dot', got 1.0"),
        ({"kind": "max_minus_sqeuclidean", "top": 1.5}, "top must be 0, or in [0, 1]"),
        ({"kind": "cosine", "top": 0.5}, "top must be 0, or in [0, 1]"),
    ],
)
def test_forms_refuse(options, message):
    with pytest.raises(ValueError) as refusal:
        Form(**options)
    assert message in str(refusal.value)


def test_other_refusals(device):
    x, form = torch.zeros(4, 3, device=device), FORMS["cosine"]
    cols = torch.zeros(2, dtype=torch.int64, device=device)
    for out in (torch.zeros(4, 2, dtype=torch.int32), torch.zeros(2, 4), None.__class__):
        out = out.to(device) if isinstance(out, torch.Tensor) else out
        with pytest.raises(ValueError, match=r"out must be \(2, 4\) torch.int32, got"):
            sweeps.columns(x, x, cols, form, out=out)
    with pytest.raises(ValueError, match=r"contiguous rows \(stride 1\), got stride 2"):
        sweeps.columns(x, x, cols, form, out=torch.zeros(4, 2, dtype=torch.int32, device=device).T)
    for k in (0, 5, 2.0):
        with pytest.raises(ValueError, match="k must be an integer from 1 to the 4 candidates, got"):
            neighbours.top_k(x, x, k, form)
    with pytest.raises(ValueError, match="cols must name at least one candidate"):
        neighbours.nearest(x, x, cols[:0], form)
    level = torch.zeros(4, dtype=torch.int32, device=device)
    with pytest.raises(ValueError, match=r"ptr must have shape \(5,\), got \(2,\)"):
        survivors.fill(x, x, level, cols, form)
    for weights, message in (
        (torch.tensor([1, -1]), "weights must be >= 0, got -1"),
        (torch.full((4,), 2**62), r"weights must sum to at most 2\^40, got 1.84467e\+19"),
    ):
        with pytest.raises(ValueError, match=message):
            similarity.check_weights(weights.to(device))
    with pytest.raises(ValueError, match=r"compute capability 8\.0 or more, got 7\.5"):
        launch.table(75)


@pytest.mark.gpu
def test_tensors_on_the_host_are_refused():
    if os.environ.get("TRITON_INTERPRET") == "1":
        pytest.skip("the interpreter takes tensors on the host")
    with pytest.raises(ValueError, match="x must be on a CUDA device, got cpu"):
        sweeps.totals(torch.zeros(4, 3), torch.zeros(5, 3), FORMS["cosine"])
