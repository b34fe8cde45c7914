"""Triton kernels against float64, in the interpreter or on a GPU, and compiled ahead of time for GPUs not here."""

import os

import aot
import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from smartgpu.kernels import similarity  # conftest.py has set the interpreter switch by now

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
POISON = -(2**62) + 1  # what every output holds before a launch


def rows(rng, n, d, unit=True):
    """Random rows, of unit length where the kind wants it."""
    a = rng.standard_normal((n, d))
    return a / np.linalg.norm(a, axis=1, keepdims=True) if unit else a


def exact_rows(rng, n, d):
    """Rows of few non-zero multiples of 1/64: every product and partial sum is exact in float32, |x.y| <= 1."""
    a = np.zeros((n, d))
    for i in range(n):
        at = rng.choice(d, size=min(d, 4), replace=False)
        a[i, at] = rng.integers(-32, 33, size=len(at)) / 64
    return a


def mapped(s, kind):
    return {"dot": s, "cosine": s, "cosine_shifted": (1 + s) / 2, "cosine_squared": s * s}[kind]


def quanta(s):
    """The definition: s clamped to [-1, 1], to the nearest multiple of 2^-22 (ties to even), as an integer."""
    return np.rint(np.clip(s, -1.0, 1.0) * 2.0**22).astype(np.int64)


def expected(x, y, kind, weights=None):
    """Totals in float64 from the definition, for inputs as the kernel received them."""
    x, y = x.double().cpu().numpy(), y.double().cpu().numpy()
    q = quanta(mapped(x @ y.T, kind))
    return (q * (1 if weights is None else weights.cpu().numpy()[:, None])).sum(axis=0)


def run(x, y, device, weights=None, **options):
    out = torch.full((y.shape[0],), POISON, dtype=torch.int64, device=device)
    result = similarity.totals(x, y, weights, out=out, **options)
    assert result is out
    return result.cpu().numpy()


def tensor(a, dtype, device):
    return torch.as_tensor(a).to(DTYPES[dtype]).to(device)


# Block edges of the "half" tile (128 x 128 x 64) and of "ieee" (64 x 64 x 16): 1, below, at and above; d around
# 16 and 64 and not a power of two; more row tiles than one program takes (8) at n = 1100, 64 rows a tile.
SHAPES = [(1, 1, 1), (63, 65, 15), (64, 64, 16), (65, 127, 17), (128, 128, 64), (129, 129, 65), (1100, 3, 33)]
IDS = [f"n{n}-m{m}-d{d}" for n, m, d in SHAPES]


@pytest.mark.parametrize("kind", similarity.KINDS)
@pytest.mark.parametrize(("n", "m", "d"), SHAPES, ids=IDS)
def test_totals_equals_integer_sums_where_products_are_exact(n, m, d, kind, device, rng):
    x, y = (tensor(exact_rows(rng, rows, d), "fp32", device) for rows in (n, m))
    if kind == "cosine_squared":  # the square of a multiple of 2^-12 is rounded to float32 first
        s = x.cpu().numpy() @ y.cpu().numpy().T
        want = quanta(np.float64(s * s)).sum(axis=0)
    else:
        want = expected(x, y, kind)
    np.testing.assert_array_equal(run(x, y, device, kind=kind), want)


@pytest.mark.parametrize("kind", similarity.KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "m", "d"), SHAPES, ids=IDS)
def test_totals_against_float64(n, m, d, dtype, kind, device, rng):
    x, y = (tensor(rows(rng, r, d), dtype, device) for r in (n, m))
    got = run(x, y, device, kind=kind)
    # Per pair: half a quantum, and float32's rounding of d products and sums, doubled for the square's slope; tensor
    # cores truncate, hence 2^-23 and not 2^-24. Unit rows: |x|.|y| <= 1 (+ input rounding, the factor 1.1).
    slope = 2 if kind == "cosine_squared" else 1
    per_pair = 1 + slope * 1.1 * (d + 2) * 2.0**-23 * 2**22
    assert np.abs(got - expected(x, y, kind)).max() <= n * per_pair


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["tf32", "tf32x3"])
def test_totals_in_tensor_core_float32(precision, rng):
    if os.environ.get("TRITON_INTERPRET") == "1":
        pytest.skip("the interpreter has one float32 product")
    x, y = (tensor(rows(rng, r, 100), "fp32", "cuda") for r in (700, 130))
    got = run(x, y, "cuda", precision=precision)
    # tf32 keeps 11 significant bits of each factor, tf32x3 about 22 in all but the products of low parts
    per_product = 2.0**-9 if precision == "tf32" else 2.0**-19
    assert np.abs(got - expected(x, y, "cosine")).max() <= 700 * (1 + 1.1 * per_product * 2**22)


@pytest.mark.parametrize("dtype", DTYPES)
def test_totals_with_weights(dtype, device, rng):
    x, y = (tensor(exact_rows(rng, r, 40), "fp32", device).to(DTYPES[dtype]) for r in (200, 70))
    w = rng.integers(0, 2**32, size=200)
    w[:3] = 0, 1, 2**33  # products far beyond int32
    w = torch.as_tensor(w).to(device)
    np.testing.assert_array_equal(run(x, y, device, w, kind="dot"), expected(x, y, "dot", w))
    ones = torch.ones(200, dtype=torch.int64, device=device)
    np.testing.assert_array_equal(run(x, y, device, ones), run(x, y, device))
    np.testing.assert_array_equal(run(x, y, device, ones * 0), np.zeros(70))


def test_totals_at_the_largest_sums(device):
    one = torch.zeros(300, 5, device=device)
    one[:, 0] = 1
    np.testing.assert_array_equal(run(one, one[:2], device), [300 * 2**22] * 2)
    np.testing.assert_array_equal(run(-one, one[:2], device), [-300 * 2**22] * 2)
    w = torch.zeros(300, dtype=torch.int64, device=device)
    w[7] = similarity.MAX_WEIGHT
    np.testing.assert_array_equal(run(one, one[:2], device, w), [2**62] * 2)
    np.testing.assert_array_equal(run(3 * one, 3 * one[:2], device), [300 * 2**22] * 2)  # clamped


def test_totals_of_equal_and_zero_rows(device):
    same = torch.full((130, 16), 0.25, device=device)
    for kind, one in (("cosine", 2**22), ("cosine_shifted", 2**22), ("cosine_squared", 2**22)):
        assert set(run(same, same, device, kind=kind)) == {130 * one}
    zero = torch.zeros(130, 16, device=device)
    for kind, s in (("cosine", 0), ("cosine_shifted", 2**21), ("cosine_squared", 0)):
        assert set(run(zero, same, device, kind=kind)) == {130 * s}


@pytest.mark.parametrize("dtype", DTYPES)
def test_totals_of_strided_rows(dtype, device, rng):
    wide = tensor(rows(rng, 150, 90), dtype, device)
    x, y = wide[::2, 3:40], wide[1::3, 50:87]
    assert x.stride(0) == 180 and not x.is_contiguous()
    np.testing.assert_array_equal(run(x, y, device), run(x.contiguous(), y.contiguous(), device))
    broadcast = wide[:1, :37].expand(20, 37)  # row stride 0
    np.testing.assert_array_equal(run(broadcast, y, device), 20 * run(broadcast[:1], y, device))


def test_totals_give_a_pair_the_same_bits_in_either_order_and_anywhere(device, rng):
    x, y = (tensor(rows(rng, r, 70), "fp16", device) for r in (3, 140))
    table = np.stack([run(x[i : i + 1], y, device) for i in range(3)])  # one row: totals are single pairs
    # OpenBLAS, behind the interpreter's dot, does not promise this; tensor cores do.
    tolerance = 0 if device == "cuda" else 1
    for j in (0, 1, 100, 139):
        swapped = run(y[j : j + 1], x, device)
        assert np.abs(swapped - table[:, j]).max() <= tolerance
    assert np.abs(run(x, y, device) - table.sum(axis=0)).max() <= 3 * tolerance


def test_totals_do_not_depend_on_the_launch(device, rng, monkeypatch):
    x, y = (tensor(exact_rows(rng, r, 24), "fp32", device) for r in (500, 90))
    once = run(x, y, device)
    monkeypatch.setattr(similarity, "ROW_TILES", 1)
    np.testing.assert_array_equal(run(x, y, device), once)
    monkeypatch.setitem(
        similarity.TOTALS_CONFIG,
        ("ieee", False),
        similarity.LaunchConfig(32, 16, 16, num_warps=4, num_stages=2),
    )
    np.testing.assert_array_equal(run(x, y, device), once)


def test_totals_scale_brings_dot_into_range(device, rng):
    x, y = (tensor(16 * exact_rows(rng, r, 24), "fp32", device) for r in (50, 20))
    want = quanta(x.cpu().double().numpy() @ y.cpu().double().numpy().T / 256).sum(axis=0)
    np.testing.assert_array_equal(run(x, y, device, kind="dot", scale=2.0**-8), want)


def test_totals_of_nothing(device):
    x = torch.zeros(4, 3, device=device)
    np.testing.assert_array_equal(run(x[:0], x, device), np.zeros(4))
    assert run(x, x[:0], device).shape == (0,)


def test_totals_on_real_embeddings(alpaca, device):
    x = torch.as_tensor(np.array(alpaca[:300])).to(device)
    got = run(x, x[:40], device) * similarity.QUANTUM
    exact = (x.cpu().double() @ x[:40].cpu().double().T).sum(dim=0).numpy()
    # The design's bound: half a quantum a pair, and (d/16 + 2) 2^-23 of a similarity of at most 1
    assert np.abs(got - exact).max() <= 300 * (2.0**-23 + (384 / 16 + 2) * 2.0**-23)


def bad(message, **change):
    return pytest.param(change, message, id=message[:40])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        bad("x must be a torch.Tensor, got ndarray", x=np.zeros((4, 3), np.float32)),
        bad("x must have 2 dimensions, got shape (4,)", x=torch.zeros(4)),
        bad("y must be (m, 3) like x, got (5, 2)", y=torch.zeros(5, 2)),
        bad("got torch.float64", x=torch.zeros(4, 3, dtype=torch.float64)),
        bad(
            "y must have x's dtype torch.float32, got torch.float16", y=torch.zeros(5, 3, dtype=torch.float16)
        ),
        bad("last dimension (stride 1), got stride 4", x=torch.zeros(3, 4).T),
        bad("weights must have shape (4,), got (3,)", weights=torch.ones(3, dtype=torch.int64)),
        bad("weights must have dtype torch.int64, got torch.float32", weights=torch.ones(4)),
        bad("weights must be >= 0, got -1", weights=torch.tensor([1, 1, -1, 1])),
        bad("weights must sum to at most 2^40, got 1.84467e+19", weights=torch.full((4,), 2**62)),
        bad("weights must be contiguous, got stride 2", weights=torch.ones(8, dtype=torch.int64)[::2]),
        bad("out must have shape (5,), got (4,)", out=torch.zeros(4, dtype=torch.int64)),
        bad("kind must be one of dot, cosine, cosine_shifted, cosine_squared, got 'cos'", kind="cos"),
        bad("precision must be one of ieee, tf32, tf32x3, got 'fast'", precision="fast"),
        bad("scale must be 1 for kind 'cosine', got 0.5", scale=0.5),
        bad("scale must be a positive power of two within float32's range, got 3.0", kind="dot", scale=3.0),
        bad("scale must be a positive power of two within float32's range, got -2.0", kind="dot", scale=-2.0),
    ],
)
def test_totals_refuses(change, message, device):
    arguments = {"x": torch.zeros(4, 3), "y": torch.zeros(5, 3), **change}
    arguments = {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in arguments.items()}
    if isinstance(change.get("x"), torch.Tensor) and change["x"].stride()[-1] != 1:
        arguments["x"] = torch.zeros(3, 4, device=device).T
    if "weights" in change and change["weights"].stride() == (2,):
        arguments["weights"] = torch.ones(8, dtype=torch.int64, device=device)[::2]
    with pytest.raises(ValueError) as refusal:
        similarity.totals(**arguments)
    assert message in str(refusal.value)


@pytest.mark.gpu
def test_totals_refuses_tensors_on_the_host():
    if os.environ.get("TRITON_INTERPRET") == "1":
        pytest.skip("the interpreter takes tensors on the host")
    with pytest.raises(ValueError, match="x must be on a CUDA device, got cpu"):
        similarity.totals(torch.zeros(4, 3), torch.zeros(5, 3))


# ---- compiled ahead of time

# arithmetic -> (dtype, precision, instruction by target). UTC*MMA is sm_100's tcgen05.mma.
ARITHMETIC = {
    "fp16": ("fp16", "ieee", {80: r"HMMA\.16816\.F32", 90: r"HGMMA", 100: r"UTCHMMA"}),
    "bf16": ("bf16", "ieee", {80: r"HMMA\.16816\.F32\.BF16", 90: r"HGMMA", 100: r"UTCHMMA"}),
    "tf32": ("fp32", "tf32", {80: r"HMMA\.1688\.F32\.TF32", 90: r"HGMMA", 100: r"UTCHMMA"}),
    "tf32x3": ("fp32", "tf32x3", {80: r"HMMA\.1688\.F32\.TF32", 90: r"HGMMA", 100: r"UTCHMMA"}),
    "ieee": ("fp32", "ieee", {80: r"FFMA", 90: r"FFMA", 100: r"FFMA"}),
}


def totals_job(target, arithmetic, weighted, kind):
    dtype, precision, _ = ARITHMETIC[arithmetic]
    config = similarity.TOTALS_CONFIG[precision if dtype == "fp32" else "half", weighted]
    sizes = dict.fromkeys(("n", "m", "d", "row_tiles"), "i32")
    signature = {"X": f"*{dtype}", "Y": f"*{dtype}", "W": "*i64" if weighted else "constexpr", "OUT": "*i64"}
    signature |= sizes | {"scale": "fp32", "stride_x": "i32", "stride_y": "i32"}
    constexprs = {"KIND": kind, "PRECISION": precision, "UPCAST": False}
    constexprs |= {"BLOCK_I": config.block_i, "BLOCK_J": config.block_j, "BLOCK_K": config.block_k}
    signature |= dict.fromkeys(constexprs, "constexpr")
    return aot.Job(
        module="smartgpu.kernels.similarity",
        kernel="_totals_kernel",
        target=target,
        signature=signature,
        constexprs=constexprs if weighted else {"W": None, **constexprs},
        divisible=("X", "Y", *(("W",) if weighted else ()), "OUT", "d", "stride_x", "stride_y"),
        options={
            "num_warps": config.num_warps,
            "num_stages": config.num_stages,
            "enable_fp_fusion": False,
        },
    )


@pytest.mark.parametrize("target", [80, 90, 100], ids=lambda t: f"sm_{t}")
def test_totals_compiles_well(target):
    # Kinds differ in a few instructions of the epilogue: all of them once, the dearest with weights as well.
    cases = [(a, weighted, "cosine_squared") for a in ARITHMETIC for weighted in (False, True)]
    cases += [("fp16", False, kind) for kind in similarity.KINDS if kind != "cosine_squared"]
    reports = aot.build([totals_job(target, *case) for case in cases])
    assert len(reports) == len(cases)
    for case, report in zip(cases, reports, strict=True):
        report.check(target)
        instruction = ARITHMETIC[case[0]][2][target]
        assert report.count(instruction) > 0, f"{case}: no {instruction} in {sorted(report.instructions)}"
        if case[0] != "ieee":  # FFMA would be a dot product, or a contracted epilogue, off the tensor cores
            assert report.count("FFMA") == 0, f"{case}: {report.count('FFMA')} FFMA"
