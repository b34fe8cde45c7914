"""A pool on a device: prepared features as torch tensors. What features.prepare is for numpy arrays."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from smartgpu.backends import gpu
from smartgpu.features import power_of_two
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

    def columns(self, cols: np.ndarray) -> Pool:
        """The same with these candidates alone, their features copied."""
        at = torch.from_numpy(cols)
        x = self.x[at.to(self.device)] if isinstance(self.x, torch.Tensor) else self.x.some(at)
        return replace(self, x=x, owned=self.owned + x.nbytes, watched=[])

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
        centre = sum(b.sum(dim=0) for _, b in blocks(x, device)) / len(x)
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
        for part, block in blocks(s, self.device):
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


def blocks(s: np.ndarray | torch.Tensor, device: torch.device) -> Iterator[tuple[slice, torch.Tensor]]:
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
        for _, block in blocks(x, x.device)
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
    for _, block in blocks(s, device):
        if centre is not None:
            block -= centre
        top = block.abs().amax(dim=1)
        most = max(most, float((_normed(block)[1] * top).max()))
    return most
