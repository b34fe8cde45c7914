"""Similarity tiles, reduced on the spot: the n x m matrix s is never stored.

Letters: n points x_i, m candidates y_j, d features, i over points, j over candidates.

One value per pair. Every kernel of this folder that needs s_ij makes it in the same three steps, so that the same
pair has the same bits wherever it turns up:

1. the dot product x_i . y_j in one float32 accumulator, k ascending in fixed steps of BLOCK_K, the last step padded
   with zeros (which add nothing), never split over k;
2. `_similarity`, the map of the similarity kind, clamped to [-1, 1];
3. `_quantise`, s as an integer number of quanta of 2^-22.

Sums of quanta are integer sums: exact, and independent of tiles, launch order and atomics. The order of a pair does
not matter either (products commute), except under precision "tf32x3": there the two cross terms hi.lo and lo.hi swap
places, so x and y must keep their sides.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

QUANTUM = 2.0**-22  # of a similarity: the spacing of float32 in [2, 4), where s + 3 lies
KINDS = ("dot", "cosine", "cosine_shifted", "cosine_squared")
DTYPES = (torch.float16, torch.bfloat16, torch.float32)
PRECISIONS = ("ieee", "tf32", "tf32x3")
MAX_WEIGHT = 2**40  # of sum_i w_i: times 2^22 quanta it stays below 2^62

# Decorators read this switch when a kernel is defined, so it is read once, here, with them.
_INTERPRETED = bool(triton.knobs.runtime.interpret)


@dataclass(frozen=True)
class LaunchConfig:
    """How a kernel is launched. BLOCK_K is part of the arithmetic of tf32x3; the rest changes no bit of the result."""

    block_i: int
    block_j: int
    block_k: int
    num_warps: int
    num_stages: int


# (arithmetic, weighted) -> launch. Chosen so that sm_80, sm_90 and sm_100 compile without spills, as
# tests/test_kernels.py checks; not yet timed on a device. int64 weights double the registers of a tile's epilogue,
# hence their smaller tiles.
TOTALS_CONFIG = {
    ("half", False): LaunchConfig(128, 128, 64, num_warps=8, num_stages=3),  # 96 KiB of tiles in flight
    ("half", True): LaunchConfig(64, 128, 64, num_warps=8, num_stages=3),
    ("tf32", False): LaunchConfig(128, 128, 32, num_warps=8, num_stages=3),  # the same bytes
    ("tf32", True): LaunchConfig(64, 128, 32, num_warps=8, num_stages=3),
    # High and low parts double the operands in registers: sm_80 spills at a BLOCK_K of 32.
    ("tf32x3", False): LaunchConfig(64, 128, 16, num_warps=8, num_stages=3),
    ("tf32x3", True): LaunchConfig(64, 128, 16, num_warps=8, num_stages=3),
    # No tensor core: operands and products live in registers.
    ("ieee", False): LaunchConfig(64, 64, 16, num_warps=8, num_stages=3),
    ("ieee", True): LaunchConfig(64, 64, 16, num_warps=8, num_stages=3),
}
ROW_TILES = 8  # row tiles reduced by one program before its one atomic per candidate


@triton.jit
def _similarity(
    acc,  # (BLOCK_I, BLOCK_J) fp32, dot products
    scale,  # fp32, a power of two; 1 unless KIND is "dot"
    KIND: tl.constexpr,
):
    """The similarity of a kind, from the dot product. Rows of the cosine kinds come with unit (or zero) length.

    No product below meets an addition that a compiler could contract with it into one FMA, which would round once
    instead of twice and give a pair other bits here than elsewhere: products by powers of two are exact (scale,
    1/2), and the square is clamped before `_quantise` adds to it. The launcher also passes enable_fp_fusion=False.
    """
    # 2^-24-sized excesses over 1 are rounding; NaN, which callers refuse, would become a bound.
    s = tl.minimum(tl.maximum(acc * scale, -1.0), 1.0)
    if KIND == "cosine_shifted":
        s = (s + 1.0) * 0.5
    elif KIND == "cosine_squared":
        s = tl.minimum(s * s, 1.0)
    return s


@triton.jit
def _quantise(
    s,  # any shape, fp32 in [-1, 1]
):
    """s in quanta, int32 in [-2^22, 2^22], rounded to nearest even.

    s + 3 lies in [2, 4], where float32 is spaced by 2^-22 (and 4 follows the last of them), so the addition rounds
    and the bits count quanta upwards from those of 3.0 = 0x40400000.
    """
    return (s + 3.0).to(tl.int32, bitcast=True) - 0x40400000


@triton.jit
def _totals_kernel(
    X,  # (n, d) fp16 | bf16 | fp32, last dimension contiguous
    Y,  # (m, d) as X
    W,  # (n,) int64 contiguous, or None: all ones
    OUT,  # (m,) int64 contiguous, zeroed by the launcher
    n,
    m,
    d,
    row_tiles,  # row tiles of one program
    scale,  # fp32
    stride_x,
    stride_y,
    KIND: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
    BLOCK_I: tl.constexpr,
    BLOCK_J: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    # |q| <= 2^22, so 256 rows of a tile sum to at most 2^30: int32 holds them.
    tl.static_assert(BLOCK_I <= 256)
    pid = tl.program_id(0).to(tl.int64)
    # Neighbouring programs share row tiles and differ in candidates: x is then read from L2, not from memory.
    tiles_j = (m + BLOCK_J - 1) // BLOCK_J
    tile_j = pid % tiles_j
    first = (pid // tiles_j) * row_tiles
    last = tl.minimum(first + row_tiles, (n + BLOCK_I - 1) // BLOCK_I)

    j = tile_j * BLOCK_J + tl.arange(0, BLOCK_J)  # (BLOCK_J,)
    k = tl.arange(0, BLOCK_K)  # (BLOCK_K,)
    y = Y + j[None, :] * stride_y + k[:, None]  # (BLOCK_K, BLOCK_J)
    total = tl.zeros((BLOCK_J,), dtype=tl.int64)

    for tile_i in range(first, last):
        i = tile_i * BLOCK_I + tl.arange(0, BLOCK_I)  # (BLOCK_I,)
        x = X + i[:, None] * stride_x + k[None, :]  # (BLOCK_I, BLOCK_K)
        acc = tl.zeros((BLOCK_I, BLOCK_J), dtype=tl.float32)
        for k0 in range(0, d, BLOCK_K):
            in_x = (i[:, None] < n) & (k[None, :] < d - k0)
            in_y = (j[None, :] < m) & (k[:, None] < d - k0)
            # 0: adds nothing to a dot product; rows beyond n or m are dropped below
            a = tl.load(x + k0, mask=in_x, other=0.0)  # (BLOCK_I, BLOCK_K)
            b = tl.load(y + k0, mask=in_y, other=0.0)  # (BLOCK_K, BLOCK_J)
            if UPCAST:  # the interpreter's bf16 dot is silently wrong; its products are exact in fp32
                a = a.to(tl.float32)
                b = b.to(tl.float32)
            acc = tl.dot(a, b, acc, input_precision=PRECISION)
        q = _quantise(_similarity(acc, scale, KIND))  # (BLOCK_I, BLOCK_J) int32
        # A row beyond n has s = 1/2 under "cosine_shifted", so it is dropped after the map, not before.
        if W is None:
            q = tl.where(i[:, None] < n, q, 0)
            total += tl.sum(q, axis=0).to(tl.int64)
        else:
            w = tl.load(W + i, mask=i < n, other=0)  # 0: such a row weighs nothing
            total += tl.sum(q.to(tl.int64) * w[:, None], axis=0)
    # Integer atomics: the order of arrival changes nothing.
    tl.atomic_add(OUT + j, total, mask=j < m, sem="relaxed")


def totals(x, y, weights=None, *, kind="cosine", scale=1.0, precision="ieee", out=None):
    """Weighted column sums of similarities: out[j] = sum_i w_i q_ij, with s_ij in quanta q_ij of 2^-22. Exact sums.

    x          (n, d) float16 | bfloat16 | float32, finite, any row stride, last dimension contiguous
    y          (m, d) like x; the candidates
    weights    (n,) int64, >= 0, sum at most 2^40; None: all ones
    kind       "dot", "cosine", "cosine_shifted" ((1 + s) / 2) or "cosine_squared"; rows of the cosine kinds are
               expected with unit length (or zero: cosine 0 with everything)
    scale      power of two by which "dot" multiplies x_i . y_j to bring it into [-1, 1]; beyond that it is clamped
    precision  of float32 products: "ieee", "tf32" or "tf32x3"; float16 and bfloat16 products are exact
    out        (m,) int64 contiguous, overwritten; None: a new one
    returns    (m,) int64, in quanta: multiply by QUANTUM (and divide by scale) for units of similarity

    O(n m d) time, O(m) memory. Any sum stays below 2^62 for n <= 2^40.
    raises ValueError on a wrong shape, dtype, device or option
    source: design brief, 2 (graph cut's total_j) and 3.0 (one value per pair)
    """
    n, m, d = _check_pair(x, y)
    _check_option("kind", kind, KINDS)
    _check_option("precision", precision, PRECISIONS)
    if kind != "dot" and scale != 1.0:
        raise ValueError(f"scale must be 1 for kind {kind!r}, got {scale!r}")
    if not _is_power_of_two(scale):
        raise ValueError(f"scale must be a positive power of two within float32's range, got {scale!r}")
    if weights is not None:
        _check_vector("weights", weights, n, x.device)
        _check_weights(weights)
    if out is None:
        out = torch.zeros(m, dtype=torch.int64, device=x.device)
    else:
        _check_vector("out", out, m, x.device)
        out.zero_()
    if n == 0 or m == 0:
        return out

    config = TOTALS_CONFIG[precision if x.dtype == torch.float32 else "half", weights is not None]
    tiles_i, tiles_j = triton.cdiv(n, config.block_i), triton.cdiv(m, config.block_j)
    # One grid axis holds 2^31 - 1 programs; bigger problems give each more row tiles.
    row_tiles = max(ROW_TILES, triton.cdiv(tiles_i * tiles_j, 2**31 - 1 - tiles_j))
    grid = (tiles_j * triton.cdiv(tiles_i, row_tiles),)
    with torch.cuda.device_of(x):
        _totals_kernel[grid](
            x,
            y,
            weights,
            out,
            n,
            m,
            d,
            row_tiles,
            float(scale),
            x.stride(0),
            y.stride(0),
            KIND=kind,
            PRECISION=precision,
            UPCAST=_INTERPRETED and x.dtype == torch.bfloat16,
            BLOCK_I=config.block_i,
            BLOCK_J=config.block_j,
            BLOCK_K=config.block_k,
            num_warps=config.num_warps,
            num_stages=config.num_stages,
            enable_fp_fusion=False,
        )
    return out


def _check_pair(x, y):
    """Refuse rows that no kernel here can read; returns (n, m, d)."""
    for name, a in (("x", x), ("y", y)):
        if not isinstance(a, torch.Tensor):
            raise ValueError(f"{name} must be a torch.Tensor, got {type(a).__name__}")
        if a.ndim != 2:
            raise ValueError(f"{name} must have 2 dimensions, got shape {tuple(a.shape)}")
        if a.dtype not in DTYPES:
            raise ValueError(f"{name} must have one of the dtypes {_names(DTYPES)}, got {a.dtype}")
        if a.shape[1] > 1 and a.stride(1) != 1:
            raise ValueError(
                f"{name} must have a contiguous last dimension (stride 1), got stride {a.stride(1)}"
            )
        if not _INTERPRETED and a.device.type != "cuda":
            raise ValueError(
                f"{name} must be on a CUDA device, got {a.device} (without a GPU, TRITON_INTERPRET=1 in the "
                "environment before triton is imported runs the kernels on the CPU, slowly)"
            )
    if y.shape[1] != x.shape[1]:
        raise ValueError(f"y must be (m, {x.shape[1]}) like x, got {tuple(y.shape)}")
    if y.dtype != x.dtype:
        raise ValueError(f"y must have x's dtype {x.dtype}, got {y.dtype}")
    if y.device != x.device:
        raise ValueError(f"y must be on x's device {x.device}, got {y.device}")
    return x.shape[0], y.shape[0], x.shape[1]


def _check_vector(name, v, length, device):
    """Refuse all but a contiguous int64 vector of the given length and device."""
    if not isinstance(v, torch.Tensor):
        raise ValueError(f"{name} must be a torch.Tensor, got {type(v).__name__}")
    if tuple(v.shape) != (length,):
        raise ValueError(f"{name} must have shape ({length},), got {tuple(v.shape)}")
    if v.dtype != torch.int64:
        raise ValueError(f"{name} must have dtype torch.int64, got {v.dtype}")
    if length > 1 and v.stride(0) != 1:
        raise ValueError(f"{name} must be contiguous, got stride {v.stride(0)}")
    if v.device != device:
        raise ValueError(f"{name} must be on x's device {device}, got {v.device}")


def _check_weights(weights):
    """Refuse weights with which a sum could leave int64."""
    if weights.numel() == 0:
        return
    smallest = int(weights.min())
    if smallest < 0:
        raise ValueError(f"weights must be >= 0, got {smallest}")
    # Summed in float64, which cannot wrap around; its rounding is far inside the factor 2 that MAX_WEIGHT leaves.
    total = float(weights.sum(dtype=torch.float64))
    if total > MAX_WEIGHT:
        raise ValueError(f"weights must sum to at most 2^40, got {total:.6g}")


def _check_option(name, value, known):
    if value not in known:
        raise ValueError(f"{name} must be one of {_names(known)}, got {value!r}")


def _is_power_of_two(scale):
    if not isinstance(scale, (int, float)) or not 2.0**-126 <= scale <= 2.0**127:
        return False
    mantissa = float(scale).hex().split("p")[0]
    return mantissa == "0x1.0000000000000"


def _names(values):
    return ", ".join(str(v) for v in values)
