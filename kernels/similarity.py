"""Similarity tiles: from rows of features to integers, the part that every dense kernel shares.

Letters: r represented rows x_i, n candidates y_j, m of them asked for, d features, i over rows, j over candidates.
A tile has a side a and a side b; what they are is each kernel's choice, because a pair has the same value either way.

One value per pair. Every kernel that needs s_ij makes it by `dots`, then `quanta`:

1. the dot product in one float32 accumulator: k ascending, the last step padded with zeros (which add nothing), never
   split over k. Under "tf32x3" there are three such chains, hi.hi, hi.lo and lo.hi; the last two are added to each
   other first, so that exchanging the rows changes nothing;
2. the map of the similarity kind, clamped to [-1, 1];
3. s as an integer number of quanta of 2^-22.

The products of a chain commute and no step looks at the tile's shape, its place or its neighbours, so the bits depend
on the two rows alone (on one kind of GPU: how a tensor core rounds inside a step of k is its own affair). The maps have
no product that meets an addition unless one of its factors is a power of two, so contraction into an FMA would change
nothing; the launches forbid it all the same.

Sums of quanta are integer sums: exact, and independent of tiles, launch order and atomics.
"""

import math
from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from . import checks, launch

QUANTUM = 2.0**-22  # of a similarity: the spacing of float32 in [2, 4), where s + 3 lies
ONE = 2**22  # a similarity of 1, in quanta
MAX_WEIGHT = 2**40  # of sum_i w_i: times 2^22 quanta it stays below 2^63
DISTANCES = ("rbf", "exp_euclidean", "max_minus_sqeuclidean")
KINDS = ("dot", "cosine", "cosine_shifted", "cosine_squared", *DISTANCES)
DTYPES = (torch.float16, torch.bfloat16, torch.float32)
PRECISIONS = ("ieee", "tf32", "tf32x3")


@dataclass(frozen=True)
class Form:
    """How s_ij comes from the dot product of two rows and, for distances, D^2 = |x_i|^2 + |y_j|^2 - 2 x_i . y_j.

    kind       "dot"                    scale x.y; scale is a power of two that brings it into [-1, 1]
               "cosine"                 x.y, of rows with unit length (or zero: cosine 0 with everything)
               "cosine_shifted"         (1 + x.y) / 2, of such rows
               "cosine_squared"         (x.y)^2, of such rows
               "rbf"                    exp(-gamma D^2)
               "exp_euclidean"          exp(-gamma D)
               "max_minus_sqeuclidean"  top - D^2, of rows scaled so that every D^2 <= 1; with top = 0, -D^2
               Whatever leaves [-1, 1] is clamped.
    precision  of float32 products: "ieee", "tf32" (10 bits behind the point; a GPU may cut the others off, so rounding
               the rows once, `round_to_tf32`, halves the error and removes its bias) or "tf32x3" (about 21 bits);
               products of float16 and bfloat16 are exact, and it must be "ieee" for them
    raises ValueError for an unknown kind or precision, and for a parameter that is out of range or not the kind's
    """

    kind: str
    scale: float = 1.0
    gamma: float = 0.0
    top: float = 0.0
    precision: str = "ieee"

    def __post_init__(self):
        _check_option("kind", self.kind, KINDS)
        _check_option("precision", self.precision, PRECISIONS)
        if self.kind != "dot" and self.scale != 1.0:
            raise ValueError(f"scale must be 1 for kind {self.kind!r}, got {self.scale!r}")
        if not _is_power_of_two(self.scale):
            raise ValueError(
                f"scale must be a positive power of two within float32's range, got {self.scale!r}"
            )
        if self.kind in ("rbf", "exp_euclidean"):
            # the ends keep gamma log2(e) a normal float32: an infinite one would make NaN of the distance 0
            if not 2.0**-120 <= self.gamma <= 2.0**120:
                raise ValueError(f"gamma must be positive and finite in float32, got {self.gamma!r}")
        elif self.gamma != 0.0:
            raise ValueError(f"gamma must be 0 for kind {self.kind!r}, got {self.gamma!r}")
        if not 0.0 <= self.top <= (1.0 if self.kind == "max_minus_sqeuclidean" else 0.0):
            raise ValueError(f"top must be 0, or in [0, 1] for max_minus_sqeuclidean, got {self.top!r}")

    @property
    def distance(self):
        """Whether the kind needs squared norms."""
        return self.kind in DISTANCES

    @property
    def factor(self):
        """The one number that the kind's map takes."""
        if self.kind == "dot":
            return float(self.scale)
        if self.kind in ("rbf", "exp_euclidean"):
            return -self.gamma * math.log2(math.e)
        return float(self.top)


# ---- on the device


@triton.jit
def place(
    pid,  # int64
    tiles_a,
    chunks,
    GROUP: tl.constexpr,
):
    """(tile of side a, chunk of side b) of a program. Programs that run together share GROUP tiles of a and a few
    chunks of b, which then come from L2."""
    first = pid // (GROUP * chunks) * GROUP
    width = tl.minimum(tiles_a - first, GROUP)
    inside = pid % (GROUP * chunks)
    return first + inside % width, inside // width


@triton.jit
def gather(
    INDEX,  # (size,) int64, or None: the rows themselves
    r,  # (BLOCK,) int64
    size,
):
    """Row numbers to load. Those beyond the end repeat the last row: loads need no mask, results do."""
    r = tl.minimum(r, size - 1)
    if INDEX is not None:
        r = tl.load(INDEX + r)
    return r


@triton.jit
def dots(
    A,  # (*, d) fp16 | bf16 | fp32, last dimension contiguous
    B,  # (*, d) as A
    a,  # (BLOCK_A,) int64, rows of A
    b,  # (BLOCK_B,) int64, rows of B
    d,
    stride_a,
    stride_b,
    PRECISION: tl.constexpr,
    EVEN_K: tl.constexpr,  # d is a multiple of BLOCK_K
    EMULATE: tl.constexpr,  # the interpreter runs this
    BLOCK_A: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Dot products of rows, (BLOCK_A, BLOCK_B) fp32."""
    k = tl.arange(0, BLOCK_K)
    at_a = A + a[:, None] * stride_a + k[None, :]  # (BLOCK_A, BLOCK_K)
    at_b = B + b[None, :] * stride_b + k[:, None]  # (BLOCK_K, BLOCK_B)
    acc = tl.zeros((BLOCK_A, BLOCK_B), dtype=tl.float64 if EMULATE else tl.float32)
    if PRECISION == "tf32x3" and not EMULATE:
        high_low = tl.zeros((BLOCK_A, BLOCK_B), dtype=tl.float32)
        low_high = tl.zeros((BLOCK_A, BLOCK_B), dtype=tl.float32)
    for k0 in range(0, d, BLOCK_K):
        if EVEN_K:
            u = tl.load(at_a + k0)
            v = tl.load(at_b + k0)
        else:  # 0: adds nothing to a dot product
            u = tl.load(at_a + k0, mask=k[None, :] < d - k0, other=0.0)
            v = tl.load(at_b + k0, mask=k[:, None] < d - k0, other=0.0)
        if EMULATE:
            # The interpreter's float32 products depend on their place in the tile, its bf16 ones are wrong. In float64,
            # rounded once at the end, those of float16 are exact and the others as good as.
            u = u.to(tl.float32).to(tl.float64)
            v = v.to(tl.float32).to(tl.float64)
            acc = tl.dot(u, v, acc, input_precision="ieee", out_dtype=tl.float64)
        elif PRECISION == "tf32x3":
            # -8192 = ~0x1fff clears the 13 bits that tf32 lacks; what is left is exact
            u_high = (u.to(tl.int32, bitcast=True) & -8192).to(tl.float32, bitcast=True)
            v_high = (v.to(tl.int32, bitcast=True) & -8192).to(tl.float32, bitcast=True)
            high_low = tl.dot(u_high, v - v_high, high_low, input_precision="tf32")
            low_high = tl.dot(u - u_high, v_high, low_high, input_precision="tf32")
            acc = tl.dot(u_high, v_high, acc, input_precision="tf32")
        else:
            acc = tl.dot(u, v, acc, input_precision=PRECISION)
    if PRECISION == "tf32x3" and not EMULATE:
        acc += high_low + low_high
    return acc.to(tl.float32)


@triton.jit
def squares_of(
    SQUARES,  # (*,) fp32, or None
    r,  # (BLOCK,) int64, rows
):
    """Squared norms of rows, (BLOCK,) fp32; None for kinds that need none."""
    out = None
    if SQUARES is not None:
        out = tl.load(SQUARES + r)
    return out


@triton.jit
def quanta(
    acc,  # (BLOCK_A, BLOCK_B) fp32, dot products
    a_squares,  # (BLOCK_A,) fp32, or None
    b_squares,  # (BLOCK_B,) fp32, or None
    factor,  # fp32, Form.factor
    KIND: tl.constexpr,
):
    """Similarities in quanta, (BLOCK_A, BLOCK_B) int32 in [-2^22, 2^22]."""
    if KIND == "dot":
        s = acc * factor
    elif KIND == "cosine_shifted":
        s = acc * 0.5 + 0.5
    elif KIND == "cosine_squared":
        s = acc * acc
    elif KIND == "cosine":
        s = acc
    else:
        # of equal rows both squares are this very dot product, so that the distance is 0
        s = tl.maximum((a_squares[:, None] + b_squares[None, :]) - 2.0 * acc, 0.0)
        if KIND == "max_minus_sqeuclidean":
            s = factor - s
        else:
            if KIND == "exp_euclidean":
                s = tl.sqrt(s)
            s = tl.exp2(s * factor)
    s = tl.minimum(tl.maximum(s, -1.0), 1.0)
    # s + 3 lies in [2, 4], where float32 is spaced by 2^-22 (and 4 follows the last of them): the addition rounds to
    # nearest even, and the bits count quanta upwards from those of 3.0.
    return (s + 3.0).to(tl.int32, bitcast=True) - 0x40400000


@triton.jit
def _squared_norms_kernel(
    X,  # (n, d) fp16 | bf16 | fp32, last dimension contiguous
    OUT,  # (n,) fp32
    n,
    d,
    stride_x,
    PRECISION: tl.constexpr,
    EVEN_K: tl.constexpr,
    EMULATE: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)  # (BLOCK,)
    rows = gather(None, i, n)
    acc = dots(X, X, rows, rows, d, stride_x, stride_x, PRECISION, EVEN_K, EMULATE, BLOCK, BLOCK, BLOCK_K)
    at = tl.arange(0, BLOCK)
    # 0: the sum has one other term, the diagonal
    out = tl.sum(tl.where(at[:, None] == at[None, :], acc, 0.0), axis=1)
    tl.store(OUT + i, out, mask=i < n)


# ---- on the host


def squared_norms(x, form):
    """|x_i|^2 by the very chain of the dot products, so that the distance of equal rows is exactly 0.

    x       (n, d) float16 | bfloat16 | float32, any row stride, last dimension contiguous
    returns (n,) float32; None for kinds that need no norms
    64 n d multiplications, 2 or 4 bytes read for each feature.
    raises ValueError on a wrong shape, dtype or device
    """
    checks.rows("x", x, DTYPES)
    if not form.distance:
        return None
    n, d = x.shape
    out = torch.empty(n, dtype=torch.float32, device=x.device)
    if n == 0:
        return out
    config = launch_config("norms", x, x, form)
    launch.run(
        _squared_norms_kernel,
        triton.cdiv(n, config.block_a),
        config,
        x,
        X=x,
        OUT=out,
        n=n,
        d=d,
        stride_x=x.stride(0),
        PRECISION=form.precision,
        EVEN_K=d % config.block_k == 0,
        EMULATE=launch.INTERPRETED,
        BLOCK=config.block_a,
        BLOCK_K=config.block_k,
    )
    return out


def round_to_tf32(x):
    """float32 rows rounded to the nearest tf32 (10 bits behind the point, ties away from zero), as float32.

    Tensor cores cut the other 13 bits off. x (n, d) float32, finite; a new tensor, O(n d).
    """
    bits = x.contiguous().view(torch.int32)
    return ((bits + 0x1000) & ~0x1FFF).view(torch.float32)


def arithmetic(x, form):
    """The arithmetic of a launch, as launch.TABLE calls it: "half", or the precision of float32."""
    if x.dtype == torch.float32:
        return form.precision
    if form.precision != "ieee":
        raise ValueError(
            f'precision must be "ieee" for {x.dtype}, whose products are exact, got {form.precision!r}'
        )
    return "half"


def launch_config(kernel, a, b, form):
    """The launch of a kernel for these matrices."""
    name = kernel if _aligned(a) and _aligned(b) else "unaligned"
    return launch.config(name, launch.arch(a.device), arithmetic(a, form))


def _aligned(x):
    """Whether triton knows that rows begin at multiples of 16 elements, and can copy them in wide pieces."""
    return x.stride(0) % 16 == 0 and x.shape[1] % 16 == 0 and x.data_ptr() % 16 == 0


def same(x, y):
    """Whether two arguments are one matrix, whose similarity is symmetric."""
    return x is y or (x.data_ptr() == y.data_ptr() and x.shape == y.shape and x.stride() == y.stride())


def pair_arguments(a, b, form, config, a_squares=None, b_squares=None):
    """What every kernel over pairs of rows takes: matrices, squared norms, sizes, strides and constants."""
    d = a.shape[1]
    a_squares = squares(a, form, a_squares)
    b_squares = a_squares if b_squares is None and same(a, b) else squares(b, form, b_squares)
    return {
        "A": a,
        "B": b,
        "A_SQUARES": a_squares,
        "B_SQUARES": b_squares,
        "d": d,
        "factor": form.factor,
        "stride_a": a.stride(0),
        "stride_b": b.stride(0),
        "KIND": form.kind,
        "PRECISION": form.precision,
        "EVEN_K": d % config.block_k == 0,
        "EMULATE": launch.INTERPRETED,
        "BLOCK_A": config.block_a,
        "BLOCK_B": config.block_b,
        "BLOCK_K": config.block_k,
    }


def squares(x, form, given):
    """Squared norms for a launch: those given, checked, or computed here; None for kinds that need none."""
    if not form.distance:
        return None
    if given is None:
        return squared_norms(x, form)
    checks.tensor("squares", given, (x.shape[0],), (torch.float32,), ("x", x))
    return given


def check_pair(x, y):
    """Refuse two matrices whose rows no kernel here can compare; returns (r, n)."""
    checks.rows("x", x, DTYPES)
    checks.rows("y", y, DTYPES)
    if y.shape[1] != x.shape[1]:
        raise ValueError(f"y must be (n, {x.shape[1]}) like x, got {tuple(y.shape)}")
    if y.dtype != x.dtype:
        raise ValueError(f"y must have x's dtype {x.dtype}, got {y.dtype}")
    if y.device != x.device:
        raise ValueError(f"y must be on x's device {x.device}, got {y.device}")
    return x.shape[0], y.shape[0]


def check_weights(weights):
    """Refuse weights with which a sum could leave int64: (r,) int64, >= 0, sum at most 2^40.

    It waits for the device, so launchers do not call it: whoever makes the weights does, once.
    """
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
    return math.frexp(scale)[0] == 0.5


def _names(values):
    return ", ".join(str(v) for v in values)
