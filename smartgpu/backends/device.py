"""A pool on a device: prepared features as torch tensors, and float64 arithmetic on them.

What similarity.prepare and backends/linear.py are for numpy arrays; the definitions are theirs.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch

from smartgpu.backends import gpu, resident
from smartgpu.backends.linear import in_order
from smartgpu.constraints import Goal
from smartgpu.kernels import linear
from smartgpu.kernels.similarity import Form, round_to_tf32, squared_norms
from smartgpu.similarity import (
    Cosine,
    CosineShifted,
    CosineSquared,
    Dot,
    ExpEuclidean,
    Geometry,
    MaxMinusSqeuclidean,
    Rbf,
    Similarity,
    power_of_two,
)
from smartgpu.workers import default_memory

SHARE = 0.5  # of the free device memory is taken, where nothing is said
NUMBERS = 1 << 22  # float64 numbers of a block, 32 MiB
# What torch, Triton and cuBLAS say where there is no memory left, and where a device cannot go on.
NO_ROOM = ("CUDA error: out of memory", "Triton Error [CUDA]: out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
BROKEN = ("CUDA error", "CUDA driver error", "Triton Error [CUDA]", "CUBLAS_STATUS", "cuBLAS")
LOST = (torch.AcceleratorError,) if hasattr(torch, "AcceleratorError") else ()
COSINES = (Cosine, CosineShifted, CosineSquared)
HALVES = {torch.float16: "fp16", torch.bfloat16: "bf16"}
# precision -> (dtype of the features, how float32 products are made)
ARITHMETIC = {
    "fp16": (torch.float16, "ieee"),
    "bf16": (torch.bfloat16, "ieee"),
    "tf32": (torch.float32, "tf32"),
    "tf32x3": (torch.float32, "tf32x3"),
    "ieee": (torch.float32, "ieee"),
}


@dataclass
class Pool(Geometry):
    """Prepared features on a device: `scale` times the tensors x (n, d) and rows (r, d), scale a power of two.

    Of a pool that streams x and rows are streaming.HostRows, whose blocks come to the device when they are asked for.

    products  how float32 ones are made: "ieee", "tf32" or "tf32x3"
    owned     bytes that were allocated for them; 0 where they are the caller's own tensors
    watched   those tensors, with the number of changes that torch had counted
    Rows may be longer than the input's, by zeros: see padded().
    """

    scale: float = 1.0
    products: str = "ieee"
    owned: int = 0
    watched: list[tuple[torch.Tensor, int]] = field(default_factory=list)

    def check_unchanged(self) -> None:
        """ValueError where tensors that were used in place are not what they were."""
        for tensor, before in self.watched:
            if tensor._version != before:
                raise ValueError(
                    f"X or represented, {tuple(tensor.shape)} on {tensor.device}, was changed in place "
                    f"{tensor._version - before} times while rows were chosen from it: these picks are of no one "
                    "pool. Wait for select() before changing it, or pass a copy"
                )

    @property
    def device(self) -> torch.device:
        return self.x.device

    @property
    def dtype(self) -> str:
        """What similarities are made of: "float16", "bfloat16", "float32", or of float32 ones "tf32", "tf32x3"."""
        return str(self.x.dtype).removeprefix("torch.") if self.products == "ieee" else self.products

    @property
    def form(self) -> Form:
        """How kernels make similarities of them; max_minus_sqeuclidean gives -D^2 until `top` is known."""
        name = self.kind.name
        scale = self.scale**2 if name == "dot" else 1.0
        gamma = self.gamma if name in ("rbf", "exp_euclidean") else 0.0
        return Form(name, scale=scale, gamma=gamma, top=self.top or 0.0, precision=self.products)


def open_device(*sets: np.ndarray | torch.Tensor | None) -> torch.device:
    """Where the pool lives: the device of its tensors, else the current GPU (the CPU in Triton's interpreter).

    Raises RuntimeError without a GPU that can be used, ValueError for tensors elsewhere or on several devices.
    """
    gpu.need_gpu()
    if gpu.interpreted():
        return torch.device("cpu")
    places = {s.device for s in sets if isinstance(s, torch.Tensor) and s.device.type != "cpu"}
    if len(places) > 1:
        raise ValueError(
            f"X and represented must be on one device, got {', '.join(sorted(map(str, places)))}"
        )
    device = places.pop() if places else torch.device("cuda", torch.cuda.current_device())
    if device.type != "cuda":
        raise ValueError(f"backend 'triton' takes tensors on a CUDA device or on the host, got {device}")
    return device


def real() -> bool:
    """Whether kernels run on a GPU, and not in Triton's interpreter."""
    return not gpu.interpreted()


def free(device: torch.device) -> int:
    """Bytes that may be allocated on the device now, those that torch holds in reserve included; in the interpreter
    what is free on the CPU."""
    if device.type != "cuda":
        return 8 * default_memory()
    reserve = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + reserve


def share(device: torch.device) -> int:
    """The default memory, bytes: half of what is free on the device; in the interpreter an eighth of the CPU's."""
    return int(SHARE * free(device)) if device.type == "cuda" else default_memory()


@contextmanager
def failures(device: torch.device) -> Iterator[None]:
    """Inside, what a device runs into is raised as DeviceMemoryError or DeviceLostError."""
    before = held(device)
    try:
        yield
    except RuntimeError as error:
        told = str(error)
        if isinstance(error, torch.OutOfMemoryError) or any(text in told for text in NO_ROOM):
            room = free(device) + held(device) - before  # once what was taken inside is given back
            raise gpu.DeviceMemoryError("the device ran out of memory", room) from error
        if isinstance(error, LOST) or any(text in told for text in BROKEN):
            raise gpu.DeviceLostError(f"the device failed: {told.strip().splitlines()[0]}") from error
        raise


def held(device: torch.device) -> int:
    """Bytes of torch's tensors on the device; in the interpreter 0."""
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0


def prepare(
    kind: Similarity,
    x: np.ndarray | torch.Tensor,
    rows: np.ndarray | torch.Tensor | None = None,
    *,
    precision: str = "auto",
    store: Callable | None = None,
) -> Pool:
    """Features of candidates x (n, d) and represented rows (r, d; None: x itself), on a device.

    precision  "fp16", "bf16": 16-bit features, whose products are exact; "tf32", "tf32x3", "ieee": float32 ones.
               "auto" is "fp16" for cosines, what they are for 16-bit dot products, and else "tf32x3"

    Dot products of tensors that are there already use them in place, where rows begin and end at multiples of 16
    numbers. store(n, d, dtype) gives the arrays that features are written to, where they shall not be on the device;
    arrays on the host whose rows are features as they are, a file's for example, are used in place then.
    O(n d) time, 32 MiB at a time besides the result.
    """
    device = open_device(x, rows)
    sets = [x] if rows is None else [x, rows]
    dtype, products, in_place = layout(kind, sets, precision)
    in_place = in_place and store is None
    convert = _Converter(device, dtype, products, store)
    unit, gamma, scale = 1.0, 0.0, 1.0
    if isinstance(kind, COSINES):
        out = [convert(s, normalise=True) for s in sets]
    elif isinstance(kind, Dot):
        top = power_of_two(max(_largest(s, device) for s in sets))
        unit = top * top
        if 2.0**-40 <= top <= 2.0**40 and products != "tf32" and all(_dtype(s) == dtype for s in sets):
            scale = 1 / top  # the rows are their own features
            if in_place:
                out = sets
            elif store is not None:
                out = [_view(s) if _as_it_is(s) else convert(s) for s in sets]
            else:
                out = [convert(s) for s in sets]
        else:
            out = [convert(s, divide=top) for s in sets]
    else:
        centre = sum(b.sum(dim=0) for _, b in _blocks(x, device)) / len(x)
        divide = 1.0
        if isinstance(kind, MaxMinusSqeuclidean):  # in half-scaled features every D^2 <= 1
            divide = 2.0 * power_of_two(max(_largest(s, device, centre) for s in sets))
            unit = divide * divide
        elif dtype != torch.float32:  # into the range of 16 bits
            divide = power_of_two(max(_largest(s, device, centre) for s in sets))
        out = [convert(s, divide=divide, centre=centre) for s in sets]
        if isinstance(kind, Rbf):
            gamma = (kind.gamma if kind.gamma is not None else 1.0 / x.shape[1]) * divide * divide
        elif isinstance(kind, ExpEuclidean):
            gamma = divide / x.shape[1]
    own = [t for t, s in zip(out, sets, strict=True) if t is not s]
    used = [t for t, s in zip(out, sets, strict=True) if t is s]
    watched = [(s, s._version) for s in used if not s.is_inference()]  # those count no changes
    how = {"scale": scale, "products": products, "owned": sum(t.nbytes for t in own), "watched": watched}
    return Pool(kind, out[0], out[-1], unit, gamma, **how)


def layout(kind: Similarity, sets: list, precision: str) -> tuple[torch.dtype, str, bool]:
    """(dtype of the features, how their products are made, whether these tensors are used as they are)."""
    dtype, products = ARITHMETIC[_automatic(kind, sets) if precision == "auto" else precision]
    in_place = isinstance(kind, Dot) and all(_in_place(s, dtype, products) for s in sets)
    return dtype, products, in_place


def _automatic(kind: Similarity, sets: list) -> str:
    if isinstance(kind, COSINES):
        return "fp16"
    dtypes = {s.dtype if isinstance(s, torch.Tensor) else np.dtype(s.dtype).name for s in sets}
    if isinstance(kind, Dot) and len(dtypes) == 1:
        (dtype,) = dtypes
        return HALVES.get(torch.float16 if dtype == "float16" else dtype, "tf32x3")
    return "tf32x3"


def _in_place(s: np.ndarray | torch.Tensor, dtype: torch.dtype, products: str) -> bool:
    """Whether kernels can read a tensor as it is, in wide pieces. For tf32 rows are rounded first."""
    if not isinstance(s, torch.Tensor) or s.dtype != dtype or products == "tf32":
        return False
    if s.device.type != "cuda" and real():
        return False
    aligned = s.shape[1] % 16 == 0 and s.stride(0) % 16 == 0 and s.data_ptr() % 16 == 0
    return aligned and s.stride(1) == 1


def _dtype(s: np.ndarray | torch.Tensor) -> torch.dtype | None:
    return s.dtype if isinstance(s, torch.Tensor) else getattr(torch, s.dtype.name, None)


def _as_it_is(s: np.ndarray | torch.Tensor) -> bool:
    """Whether an array on the host lies as stored features do."""
    if isinstance(s, torch.Tensor):
        lies = s.device.type == "cpu" and s.is_contiguous()
    else:
        lies = s.dtype.isnative and s.flags.c_contiguous
    return lies and padded(s.shape[1]) == s.shape[1]


def _view(s: np.ndarray | torch.Tensor) -> torch.Tensor:
    """The same memory as a tensor, which nobody will write to."""
    if isinstance(s, torch.Tensor):
        return s
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writ", UserWarning)
        return torch.as_tensor(s)


def padded(d: int) -> int:
    """Features that a row is stored with: zeros at its end change no product, and kernels copy whole steps of k."""
    step = 64 if d >= 64 else 16
    return -(-d // step) * step


class _Converter:
    """Rows in float64, block by block, rounded once to the dtype of the features, and padded."""

    def __init__(self, device: torch.device, dtype: torch.dtype, products: str, store: Callable | None):
        self.device, self.dtype, self.products = device, dtype, products
        self.direct, self.store = store is None, store or functools.partial(_new, device)

    def __call__(self, s, *, divide: float = 1.0, centre=None, normalise: bool = False) -> torch.Tensor:
        d = s.shape[1]
        out = self.store(len(s), padded(d), self.dtype)
        for part, block in _blocks(s, self.device):
            if normalise:
                block, norms = _normed(block)
                block /= torch.where(norms > 0, norms, 1.0)[:, None]
            if centre is not None:
                block -= centre
            if divide != 1.0:
                block /= divide
            there = out[part] if self.direct else _new(self.device, len(block), out.shape[1], self.dtype)
            there[:, :d] = block
            there[:, d:] = 0
            if self.products == "tf32":
                there.copy_(round_to_tf32(there))
            if not self.direct:
                out[part] = there
        return out


def _new(device: torch.device, n: int, d: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.empty((n, d), dtype=dtype, device=device)


def block_rows(d: int) -> int:
    """Rows of d features that are worked on together in float64: sums are made block by block, in order."""
    return max(1, NUMBERS // max(d, 1))


def _blocks(s: np.ndarray | torch.Tensor, device: torch.device) -> Iterator[tuple[slice, torch.Tensor]]:
    """(rows, their float64 values on the device), block by block; the values may be written to."""
    if not isinstance(s, (np.ndarray, torch.Tensor)):  # rows that stream, in these very blocks
        yield from ((part, widen(block, device)) for part, block in s.blocks())
        return
    step = block_rows(s.shape[1])
    for i in range(0, len(s), step):
        part = slice(i, min(i + step, len(s)))
        yield part, widen(s[part], device)


def take(x: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
    """Rows of features, by number, on the device."""
    return x[at] if isinstance(x, torch.Tensor) else x.take(at)


def over(x: torch.Tensor, at: torch.Tensor | None, work: Callable) -> torch.Tensor:
    """work(rows, index, part) over all rows, or those `at`, joined: at once, or piece by piece where they stream."""
    if isinstance(x, torch.Tensor):
        return work(x, at, slice(None))
    return torch.cat([work(rows, None, part) for part, rows in x.pieces(at)])


def widen(block: np.ndarray | torch.Tensor, device: torch.device) -> torch.Tensor:
    """Numbers as a new float64 tensor on the device."""
    if isinstance(block, np.ndarray):
        native = block.dtype.isnative and block.dtype.name in ("float16", "float32", "float64")
        block = torch.from_numpy(np.array(block, dtype=None if native else np.float64, order="C"))
    # There first, widened then: the other way round the host would convert, and eight bytes a number would travel.
    return block.to(device).to(torch.float64, copy=True, memory_format=torch.contiguous_format)


def largest_distance(rows: torch.Tensor, x: torch.Tensor) -> float:
    """The largest squared distance of few rows to any row of x, from differences in float64."""
    return max(
        float((block - row.to(torch.float64)).square_().sum(dim=1).max())
        for _, block in _blocks(x, x.device)
        for row in rows
    )


def quantise(s: torch.Tensor) -> torch.Tensor:
    """float32 similarities, clamped to [-1, 1], as int32 quanta: s + 3 lies in [2, 4], where the spacing is 2^-22."""
    return (s.clamp(-1, 1) + 3.0).view(torch.int32) - 0x40400000


def own_quanta(y: torch.Tensor, form: Form) -> torch.Tensor:
    """q_jj of rows, (m,) int64: from squared norms, which are made by the chain of the products, and the kind's map."""
    if form.distance:
        s = torch.zeros(len(y), device=y.device)
    else:
        s = squared_norms(y, Form("max_minus_sqeuclidean", precision=form.precision))
    if form.kind == "dot":
        s = s * form.factor
    elif form.kind == "cosine_shifted":
        s = s * 0.5 + 0.5
    elif form.kind == "cosine_squared":
        s = s * s
    elif form.kind == "max_minus_sqeuclidean":
        s = torch.full_like(s, form.top)
    elif form.distance:  # exp(0)
        s = torch.ones_like(s)
    return quantise(s).to(torch.int64)


def _normed(block: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows over their largest entry, and the norms of these: safe against overflow and underflow of the squares."""
    top = block.abs().amax(dim=1)
    block /= torch.where(top > 0, top, 1.0)[:, None]
    return block, linear.squares(block).sqrt_()


def _largest(s, device: torch.device, centre: torch.Tensor | None = None) -> float:
    """The largest norm of a row."""
    most = 0.0
    for _, block in _blocks(s, device):
        if centre is not None:
            block -= centre
        top = block.abs().amax(dim=1)
        most = max(most, float((_normed(block)[1] * top).max()))
    return most


class LinearFeatures:
    """Prepared features x (n, d) in float64 arithmetic on the device; vectors come from the host and go there.

    Products with one vector are made row by row in one fixed order, so that equal rows give equal bits.
    """

    def __init__(self, pool: Pool, x: torch.Tensor):
        self.x, self.scale, self.device = x, pool.scale, x.device
        if not isinstance(x, torch.Tensor):
            self.loop = None  # a step reads any of the rows

    def rows(self, index: np.ndarray | int) -> np.ndarray:
        """(m, d) float64, or (d,) for one index."""
        at = torch.as_tensor(index, device=self.device)
        if at.ndim == 0:
            return self.rows(at[None])[0]
        return take(self.x, at).to(torch.float64).mul_(self.scale).cpu().numpy()

    def times(self, v: np.ndarray, cols: np.ndarray | None = None) -> np.ndarray:
        """x_j . v for all rows or for `cols`: (m,) float64, or (m, q) with v (d, q)."""
        v = self._put(v)
        out = over(self.x, self._index(cols), lambda x, at, part: linear.times(x, v, at))
        return out.mul_(self.scale).cpu().numpy()

    def hold(self, cols: np.ndarray) -> Held:
        """Rows whose products will be asked for again and again."""
        return Held(self, cols)

    def loop(self, goal: Goal, **cut) -> resident.Cuts:
        """Graph cut's picks, many at a time."""
        return resident.Cuts(self, goal, **cut)

    def quadratic(self, g: np.ndarray) -> np.ndarray:
        """x_j' g x_j for all rows: (n,) float64, g (d, d). For bounds, where the last bit is free."""
        out, g = torch.empty(len(self.x), dtype=torch.float64, device=self.device), self._put(g)
        for part, block in self._blocks():
            out[part] = ((block @ g) * block).sum(dim=1)
        return out.cpu().numpy()

    def own(self) -> np.ndarray:
        """x_j . x_j, (n,) float64."""
        squares = over(self.x, None, lambda x, at, part: linear.squares(x))
        return squares.mul_(self.scale**2).cpu().numpy()

    def sum(self) -> np.ndarray:
        """sum_j x_j, (d,) float64."""
        return sum(block.sum(dim=0) for _, block in self._blocks()).cpu().numpy()

    def moments(self, weights: np.ndarray) -> np.ndarray:
        """sum_j x_j weights_j: (d, q) float64 for weights (n, q)."""
        weights = self._put(weights)
        return sum(block.T @ weights[part] for part, block in self._blocks()).cpu().numpy()

    def second_moment(self, weights: np.ndarray) -> np.ndarray:
        """sum_j w_j x_j x_j', (d, d) float64."""
        weights = self._put(weights)
        return sum(block.T @ (block * weights[part, None]) for part, block in self._blocks()).cpu().numpy()

    def distinct(self) -> tuple[np.ndarray, np.ndarray]:
        """(first (u,), inverse (n,)) over equal rows, first ascending. O(n d)."""
        keys = self.times(np.random.default_rng(0).standard_normal(self.x.shape[1]))
        _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
        copies = np.flatnonzero(first[inverse] != np.arange(len(self.x)))
        if not self._equal(copies, first[inverse[copies]]):  # different rows with one key
            parts = [(block.to(torch.float32) + 0).cpu().numpy() for _, block in self._blocks()]
            every = np.concatenate(parts)
            _, first, inverse = np.unique(every, axis=0, return_index=True, return_inverse=True)
        return in_order(first, inverse)

    def _equal(self, a: np.ndarray, b: np.ndarray) -> bool:
        step = max(1, NUMBERS // self.x.shape[1])
        parts = (slice(i, i + step) for i in range(0, len(a), step))
        both = ((take(self.x, self._index(rows[p])) for rows in (a, b)) for p in parts)
        return all(torch.equal(*rows) for rows in both)

    def _blocks(self) -> Iterator[tuple[slice, torch.Tensor]]:
        for part, block in _blocks(self.x, self.device):
            yield part, block.mul_(self.scale)

    def _put(self, v: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(v, np.float64)).to(self.device)

    def _index(self, cols: np.ndarray | None) -> torch.Tensor | None:
        return None if cols is None else torch.from_numpy(cols).to(self.device)


class Held:
    """Rows of LinearFeatures, by number: they are where they are needed."""

    def __init__(self, features: LinearFeatures, cols: np.ndarray):
        self.features, self.cols = features, cols

    def __len__(self) -> int:
        return len(self.cols)

    def times(self, v: np.ndarray) -> np.ndarray:
        """x_j . v, (m,) float64."""
        return self.features.times(v, self.cols)


class Wide:
    """Prepared features in float64: cosine rows normalised once more, so that s_jj is 1 to the last bit or so."""

    def __init__(self, pool: Pool):
        self.pool, self.x, self.device = pool, pool.x, pool.x.device
        self.factors = torch.full((len(self.x),), pool.scale, dtype=torch.float64, device=self.device)
        if isinstance(pool.kind, COSINES):
            squares = over(self.x, None, lambda x, at, part: linear.squares(x))
            self.factors = torch.where(squares > 0, squares.rsqrt(), 0.0)

    def _rows(self, index: np.ndarray) -> torch.Tensor:
        at = torch.from_numpy(index).to(self.device)
        return take(self.x, at).to(torch.float64) * self.factors[at][:, None]

    def rows(self, index: np.ndarray) -> np.ndarray:
        """(m, d) float64 on the host"""
        return self._rows(index).cpu().numpy()

    def pairs(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Similarities in float64, not quantised, in real units: (|a|, |b|), on the host."""
        return self.similarities(a, b).cpu().numpy()

    def similarities(self, a: np.ndarray, b: np.ndarray) -> torch.Tensor:
        """The same on the device."""
        kind, y, x = self.pool.kind, self._rows(a), self._rows(b)
        s = y @ x.T
        if isinstance(kind, CosineShifted):
            s.mul_(0.5).add_(0.5)
        elif isinstance(kind, CosineSquared):
            s.square_()
        elif kind.squared_norms:
            s.mul_(-2).add_(y.square().sum(dim=1)[:, None] + x.square().sum(dim=1)).clamp_(min=0)
            equal = torch.from_numpy(a)[:, None] == torch.from_numpy(
                b
            )  # |x - x| is 0, whatever rounding says
            s[equal.to(self.device)] = 0
            if isinstance(kind, MaxMinusSqeuclidean):
                s.neg_().add_(self.pool.top or 0)
            else:
                s = (s.sqrt_() if isinstance(kind, ExpEuclidean) else s).mul_(-self.pool.gamma).exp_()
        return s.mul_(self.pool.unit)

    def span(self, a: float, b: float, first: np.ndarray) -> Span:
        """Rows y = [sqrt(a) x, sqrt(b)] of the candidates `first`, whose products are s = a x.y + b."""
        return Span(self, a, b, torch.from_numpy(first).to(self.device))

    def factor(self, count: int) -> Factor:
        """Rows of a Cholesky factor of the similarity."""
        return Factor(self.similarities, count, self.x.shape[1], self.device)


class Span:
    """Rows y = [f x, g] in float64, of which only x is stored; rows are numbers into `first`, from the host."""

    def __init__(self, wide: Wide, a: float, b: float, first: torch.Tensor):
        self.x, self.first, self.device = wide.x, first, wide.device
        self.factors, self.last = wide.factors * a**0.5, b**0.5 if b else None
        self.kept: torch.Tensor | None = None  # (d, size) float64
        if not isinstance(self.x, torch.Tensor):
            self.loop = None  # a step reads any of the rows

    def _at(self, rows: np.ndarray) -> torch.Tensor:
        return self.first[torch.from_numpy(rows).to(self.device)]

    def _rows(self, at: torch.Tensor) -> torch.Tensor:
        y = take(self.x, at).to(torch.float64) * self.factors[at][:, None]
        return y if self.last is None else torch.nn.functional.pad(y, (0, 1), value=self.last)

    def own(self) -> np.ndarray:
        """y_j . y_j, (u,) float64."""
        out = over(self.x, self.first, lambda x, at, part: linear.squares(x, at))
        out *= self.factors[self.first].square()
        return (out if self.last is None else out + self.last**2).cpu().numpy()

    def loop(self, goal: Goal, row: np.ndarray, residual: np.ndarray, **volume) -> resident.Volumes:
        """Log-determinant's picks, many at a time. row (n,): the number in `first` of each candidate's row."""
        return resident.Volumes(self, goal, residuals=residual[row], **volume)

    def remember(self, v: np.ndarray, at: np.ndarray, size: int) -> None:
        """Keep vectors v (c, d) at places `at` (c,) of `size`, for falls(), in the stead of what was there."""
        if self.kept is None:
            self.kept = torch.empty((v.shape[1], size), dtype=torch.float64, device=self.device)
        self.kept[:, torch.from_numpy(at).to(self.device)] = torch.from_numpy(v).to(self.device).T

    def falls(self, rows: np.ndarray, behind: np.ndarray, at: np.ndarray) -> np.ndarray:
        """sum_{c < behind_j} (y_j . v_c)^2, (m,) float64, of the vectors kept at places `at`, the newest first."""
        order = np.argsort(behind, kind="stable")  # a block of rows works for the one that is most behind
        out = np.empty(len(rows))
        v = self.kept[:, torch.from_numpy(at).to(self.device)].contiguous()
        out[order] = self._falls(rows[order], v, torch.from_numpy(behind[order]).to(self.device))
        return out

    def fall(self, rows: np.ndarray, v: np.ndarray) -> np.ndarray:
        """(y_j . v)^2, (m,) float64, v (d,)."""
        one = torch.ones(len(rows), dtype=torch.int64, device=self.device)
        return self._falls(rows, torch.from_numpy(v).to(self.device)[:, None], one)

    def _falls(self, rows: np.ndarray, v: torch.Tensor, behind: torch.Tensor) -> np.ndarray:
        at, d = self._at(rows), self.x.shape[1]
        shift = None if self.last is None else v[d] * self.last
        scale = self.factors[at]

        def falls(x: torch.Tensor, rows: torch.Tensor | None, part: slice) -> torch.Tensor:
            missed, factors = behind[part], scale[part]
            if (
                rows is None
            ):  # begin where a tensor of their own would: for other places another kernel is compiled
                missed, factors = missed.clone(), factors.clone()
            return linear.falls(x, v[:d], missed, cols=rows, scale=factors, shift=shift)

        return over(self.x, at, falls).cpu().numpy()

    def quadratic(self, rows: np.ndarray, q: np.ndarray) -> np.ndarray:
        """y_j' q y_j, (m,) float64, q (d, d)."""
        q, out = torch.from_numpy(q).to(self.device), np.empty(len(rows))
        for part in self._parts(len(rows)):
            y = self._rows(self._at(rows[part]))
            out[part] = ((y @ q) * y).sum(dim=1).cpu().numpy()
        return out

    def gram(self, rows: np.ndarray) -> np.ndarray:
        """sum_j y_j y_j' over the rows, (d, d) float64."""
        total: torch.Tensor | float = 0.0
        for part in self._parts(len(rows)):
            y = self._rows(self._at(rows[part]))
            total = total + y.T @ y
        return total.cpu().numpy()

    def _parts(self, count: int) -> Iterator[slice]:
        step = max(1, NUMBERS // (self.x.shape[1] + 1))
        return (slice(i, i + step) for i in range(0, count, step))


def factor_step(d: int) -> int:
    """Rows of a Cholesky factor brought up to date together."""
    return min(block_rows(d), 16384)


class Factor:
    """Rows of a Cholesky factor, (count, width) float64: s of the picks is L L', row j is L^-1 s_Sj."""

    def __init__(self, similarities: Callable, count: int, d: int, device: torch.device):
        self.similarities, self.d, self.device = similarities, d, device
        self.values = torch.zeros((count, 64), dtype=torch.float64, device=device)

    @property
    def width(self) -> int:
        return self.values.shape[1]

    def grow(self, width: int) -> None:
        wider = torch.zeros((len(self.values), width), dtype=torch.float64, device=self.device)
        wider[:, : self.width] = self.values
        self.values = wider

    def bring(self, rows, first, done, picks, pivots, begin: int) -> np.ndarray:
        """Entries of the rows for all picks that each has missed, from pick `begin` on at the earliest.

        rows, done (m,), picks (t,) int64 numbers into first (u,), which says whose row each is; pivots (t,) float64.
        Returns the sum of the squares of the new entries, (m,) float64.
        """
        there, heights = (torch.from_numpy(a).to(self.device) for a in (picks, pivots))
        out, step = np.empty(len(rows)), factor_step(self.d)
        for i in range(0, len(rows), step):
            part = rows[i : i + step]
            s = self.similarities(first[picks[begin:]], first[part]).contiguous()
            mine, have = (torch.from_numpy(a).to(self.device) for a in (part, done[i : i + step]))
            out[i : i + step] = linear.cholesky(self.values, mine, have, s, there, heights).cpu().numpy()
        return out
