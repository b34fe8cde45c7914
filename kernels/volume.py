"""Log-determinant's part of a step of greedy's loop (resident.py): residuals from an inverse kept in d dimensions.

    residual_j = lam + y_j' Q y_j,   y = [factor x, last]

Q (size, size) falls by f f' with every pick, f = Q y / sqrt(residual).

HEAD, REAL, KEY, STAMP, AT are those of resident.py.
"""

import torch
import triton
import triton.language as tl

from . import checks, launch
from .linear import DTYPES, SHAPES

TILE = 16  # rows and columns of a tile of float64 products
BLOCK_Q = 32  # entries of Q, squared, that one program updates
SQUARE = launch.LaunchConfig(TILE, TILE, TILE, num_warps=4, num_stages=1)


@triton.jit
def _features(
    X,
    FACTORS,
    LAST,
    row,  # (M,) int64
    k,  # (K,)
    d,
    stride_x,
):
    """(M, K) fp64 entries k of y = [factor x, last]; 0 beyond the end, which adds nothing."""
    x = tl.load(X + row[:, None] * stride_x + k[None, :], mask=k[None, :] < d, other=0.0)
    y = x.to(tl.float32).to(tl.float64) * tl.load(FACTORS + row)[:, None]
    if LAST is not None:
        y = tl.where(k[None, :] == d, tl.load(LAST), y)
    return y


@triton.jit
def _quadratic_kernel(
    X,  # (n, d) fp16 | bf16 | fp32, last dimension contiguous
    FACTORS,  # (n,) fp64
    LAST,  # (1,) fp64, or None
    QUAD,  # (size, size) fp64, symmetric
    HEAD,
    AT,  # (slots,) int64
    OUT,  # (parts, slots) fp64
    size,  # d, and 1 where there is a last entry
    d,
    stride_x,
    slots,
    TILE: tl.constexpr,
):
    """y' Q y of each slot in parts: one for every TILE columns of Q."""
    if tl.load(HEAD + 1) == 0:
        tiles = slots // TILE
        tile, part = tl.program_id(0) % tiles, tl.program_id(0) // tiles
        slot = tile * TILE + tl.arange(0, TILE)
        row = tl.load(AT + slot)
        c = part * TILE + tl.arange(0, TILE)
        lane = tl.arange(0, TILE)
        acc = tl.zeros((TILE, TILE, TILE), dtype=tl.float64)  # slot, k, c: chains with k ascending
        for k0 in range(0, size, TILE):
            k = k0 + lane
            y = _features(X, FACTORS, LAST, row, k, d, stride_x)
            both = (k[:, None] < size) & (c[None, :] < size)
            q = tl.load(QUAD + k[:, None] * size + c[None, :], mask=both, other=0.0)  # adds nothing
            acc += y[:, :, None] * q[None, :, :]
        along = tl.sum(acc, axis=1)
        total = tl.sum(along * _features(X, FACTORS, LAST, row, c, d, stride_x), axis=1)
        tl.store(OUT + part.to(tl.int64) * slots + slot, total)


@triton.jit
def _fall_kernel(
    X,  # (n, d) fp16 | bf16 | fp32, last dimension contiguous
    FACTORS,  # (n,) fp64
    LAST,  # (1,) fp64, or None
    QUAD,  # (size, size) fp64
    HEAD,
    REAL,
    FALL,  # (size,) fp64
    size,
    d,
    stride_x,
    TILE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """What the pick takes from the others: FALL = Q y / sqrt(residual)."""
    pick = tl.load(HEAD + 2)
    if pick >= 0:
        i = tl.program_id(0) * TILE + tl.arange(0, TILE)
        row = tl.full((1,), 0, dtype=tl.int64) + pick
        lane = tl.arange(0, BLOCK)
        acc = tl.zeros((TILE, BLOCK), dtype=tl.float64)
        for k0 in range(0, size, BLOCK):
            k = k0 + lane
            both = (i[:, None] < size) & (k[None, :] < size)
            q = tl.load(QUAD + i[:, None] * size + k[None, :], mask=both, other=0.0)  # adds nothing
            acc += q * _features(X, FACTORS, LAST, row, k, d, stride_x)
        fall = tl.sum(acc, axis=1) / tl.sqrt(tl.load(REAL + 8))
        tl.store(FALL + i, fall, mask=i < size)


@triton.jit
def _lower_kernel(
    QUAD,  # (size, size) fp64, changed in place: Q -= FALL FALL'
    HEAD,
    FALL,  # (size,) fp64
    size,
    BLOCK: tl.constexpr,
):
    if tl.load(HEAD + 2) >= 0:
        tiles = (size + BLOCK - 1) // BLOCK
        a = (tl.program_id(0) // tiles) * BLOCK + tl.arange(0, BLOCK)
        b = (tl.program_id(0) % tiles) * BLOCK + tl.arange(0, BLOCK)
        both = (a[:, None] < size) & (b[None, :] < size)
        at = QUAD + a[:, None] * size + b[None, :]
        fall = tl.load(FALL + a, mask=a < size, other=0.0)[:, None]
        fall *= tl.load(FALL + b, mask=b < size, other=0.0)[None, :]
        tl.store(at, tl.load(at, mask=both, other=0.0) - fall, mask=both)


@triton.jit(do_not_specialize=["n"])
def _all_fall_kernel(
    X,  # (n, d) fp16 | bf16 | fp32, last dimension contiguous
    FACTORS,  # (n,) fp64
    LAST,  # (1,) fp64, or None
    HEAD,
    REAL,
    FALL,  # (size,) fp64
    UPPER,  # (n,) fp64, bounds on the residuals, lowered in place
    KEY,  # (n,) fp64
    STAMP,  # (n,) int32
    BEFORE,  # (n,) fp64, or None
    AFTER,  # (n,) fp64, or None
    n,
    size,
    d,
    stride_x,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """After a pick every residual falls by (y . FALL)^2, less what rounding may have added."""
    if tl.load(HEAD + 2) >= 0:
        row = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
        real = row < n
        row = tl.minimum(row, n - 1)
        lane = tl.arange(0, BLOCK_K)
        acc = tl.zeros((BLOCK_M, BLOCK_K), dtype=tl.float64)
        for k0 in range(0, size, BLOCK_K):
            k = k0 + lane
            fall = tl.load(FALL + k, mask=k < size, other=0.0)  # adds nothing
            acc += _features(X, FACTORS, LAST, row, k, d, stride_x) * fall[None, :]
        along = tl.sum(acc, axis=1)
        fall = tl.maximum(along * along - tl.load(REAL + 9), 0.0)
        lam = tl.load(REAL + 5)
        upper = tl.maximum(tl.load(UPPER + row) - fall, lam)
        tl.store(UPPER + row, upper, mask=real)
        key = tl.log(upper) * tl.load(REAL + 2)
        if BEFORE is not None:
            key = tl.load(BEFORE + row) + key
        if AFTER is not None:
            key = key + tl.load(AFTER + row)
        known = tl.load(KEY + row)
        better = real & (known > float("-inf"))
        # A bound is no gain, however late it was made: -1 is the stamp of neither.
        tl.store(KEY + row, key, mask=better)
        tl.store(STAMP + row, tl.zeros((BLOCK_M,), dtype=tl.int32) - 1, mask=better)


class Volume:
    """What log-determinant needs: rows y = [factors x, last] of (n, d) features, and quad (size, size) with

    residual_j = lam + y_j' quad y_j
    """

    def __init__(self, x, factors, last, quad):
        checks.rows("x", x, DTYPES)
        self.x, self.factors, self.last, self.quad = x, factors, last, quad
        self.size, device = len(quad), x.device
        self.fall = torch.zeros(self.size, dtype=torch.float64, device=device)
        self.rows = {"X": x, "FACTORS": factors, "LAST": last}
        self.sizes = {"size": self.size, "d": x.shape[1], "stride_x": x.stride(0)}

    def parts(self, slots):
        """An array for evaluate()."""
        return torch.zeros((triton.cdiv(self.size, TILE), slots), dtype=torch.float64, device=self.x.device)

    def evaluate(self, search, parts):
        """y' quad y of the candidates that scan() found, in parts."""
        launch.run(
            _quadratic_kernel, parts.shape[0] * (search.slots // TILE), SQUARE, self.x,
            **self.rows, QUAD=self.quad, HEAD=search.head, AT=search.at, OUT=parts, **self.sizes, slots=search.slots,
            TILE=TILE,
        )  # fmt: skip

    def commit(self, search):
        """quad -= f f', f = quad y / sqrt(residual) of the pick: the residual of j falls by (y_j . f)^2."""
        launch.run(
            _fall_kernel, triton.cdiv(self.size, TILE), SQUARE, self.x,
            **self.rows, QUAD=self.quad, HEAD=search.head, REAL=search.real, FALL=self.fall, **self.sizes,
            TILE=TILE, BLOCK=64,
        )  # fmt: skip
        launch.run(
            _lower_kernel, triton.cdiv(self.size, BLOCK_Q) ** 2, SQUARE, self.x,
            QUAD=self.quad, HEAD=search.head, FALL=self.fall, size=self.size, BLOCK=BLOCK_Q,
        )  # fmt: skip

    def lower_all(self, search, upper):
        """Bounds on all residuals, upper (n,) float64, and on all gains, after a pick."""
        block = SHAPES[1]
        launch.run(
            _all_fall_kernel, triton.cdiv(search.n, block[0]), SQUARE, self.x,
            **self.rows, HEAD=search.head, REAL=search.real, FALL=self.fall, UPPER=upper, KEY=search.key,
            STAMP=search.stamp, BEFORE=search.before, AFTER=search.after, n=search.n, **self.sizes,
            BLOCK_M=block[0], BLOCK_K=block[2],
        )  # fmt: skip
