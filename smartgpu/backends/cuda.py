"""The kernels of csrc/ on a GPU: built at run time by CuPy's NVRTC, started on torch's stream.

`kernels(device)` gives them, or None after one message that says why Triton does their work: CuPy is not installed,
does not work or is for another CUDA than torch, a build or a launch fails, a similarity is further from Triton's than
rounding takes it.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import logging
import struct
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from smartgpu.backends import gpu
from smartgpu.backends.cuda_cache import Cache, source
from smartgpu.files import default_cache
from smartgpu.kernels import compiling

log = logging.getLogger("smartgpu")
INSTALL = {12: "pip install 'smartgpu[cuda12]'", 13: "pip install 'smartgpu[cuda13]'"}
ARITHMETIC = ("fp16", "bf16", "tf32", "tf32x3")  # in the order of SMARTGPU_ONLY in csrc/batched_greedy.cu
TAIL = ("sparse_tail", "count_by_row", "fill_by_row")  # in csrc/tail.cu, started cooperatively
OPTIONS = ("-std=c++17",)
EXCHANGE = 2 * 1024 * 16 + 16  # bytes of csrc/team.cuh's Exchange


@dataclass(frozen=True)
class Found:
    """usable: kernels can be built and started; missing: what stands in the way, else "", and how loud to say it."""

    usable: bool
    missing: str = ""
    level: int = logging.WARNING


@functools.cache
def find() -> Found:
    """CuPy, of torch's CUDA. Nothing is built; the answer is kept."""
    if gpu.interpreted():
        return Found(False, "Triton's kernels are interpreted", logging.DEBUG)
    if not gpu.find_gpu().usable:
        return Found(False, gpu.find_gpu().missing, logging.DEBUG)
    major = int(torch.version.cuda.split(".")[0])
    install = INSTALL.get(major, f"install CuPy for CUDA {major}")
    if importlib.util.find_spec("cupy") is None:
        return Found(False, f"CuPy is not installed ({install})", logging.INFO)  # nobody asked for it
    try:
        theirs = cupy_cuda()
    except (ImportError, OSError, RuntimeError) as error:
        return Found(False, f"CuPy does not work: {first_line(error)} ({install})")
    if theirs != major:
        return Found(False, f"CuPy is for CUDA {theirs}, torch for CUDA {major} ({install})")
    return Found(True)


def cupy_cuda() -> int:
    """The CUDA that CuPy is made for, 12 or 13. Raises ImportError, OSError, RuntimeError where it does not work."""
    import cupy
    from cupy_backends.cuda.libs import nvrtc

    nvrtc.getVersion()
    return cupy.cuda.runtime.runtimeGetVersion() // 1000


class Nvrtc:
    """The compiler that CuPy brings, for one architecture."""

    def __init__(self, arch: int):
        import cupy
        from cupy_backends.cuda.libs import nvrtc

        self.nvrtc, self.arch = nvrtc, arch
        self.version = f"nvrtc {nvrtc.getVersion()}, cupy {cupy.__version__}, sm_{arch}"

    def compile(self, code: str, name: str, options: tuple[str, ...]) -> bytes:
        """Machine code. Raises RuntimeError with the first error of the compiler."""
        program = self.nvrtc.createProgram(code, name, [], [])
        try:
            self.nvrtc.compileProgram(program, (*options, f"--gpu-architecture=sm_{self.arch}"))
            return whole(self.nvrtc.getCUBIN(program))
        except self.nvrtc.NVRTCError as error:
            told = [line for line in self.nvrtc.getProgramLog(program).splitlines() if "error" in line]
            raise RuntimeError(told[0] if told else f"{name}: {first_line(error)}") from error
        finally:
            self.nvrtc.destroyProgram(program)


def whole(elf: bytes) -> bytes:
    """Machine code with its last byte. CuPy takes one off what NVRTC gives, as if it were text: that of the last table,
    which is zero. CuPy's own loader reads past the end and finds a zero there; a file of it ends too early.

    Raises RuntimeError where more is missing than that.
    """
    end = None
    if elf.startswith(b"\x7fELF\x02") and len(elf) >= 64:  # of 64 bits: tables of segments and of sections
        tables, sizes = struct.unpack_from("<QQ", elf, 32), struct.unpack_from("<HHHH", elf, 54)
        end = max(tables[0] + sizes[0] * sizes[1], tables[1] + sizes[2] * sizes[3])
    if end is None or end > len(elf) + 1:
        raise RuntimeError(f"NVRTC gives {len(elf)} bytes, which are no machine code")
    return elf.ljust(end, b"\0")


class Kernels(Protocol):
    """The kernels of one device. Tests have the same on the CPU (tests/host).

    multiprocessors  of the device; a cooperative launch of so many blocks, one on each, is always resident
    shared           bytes of shared memory: of a multiprocessor, and the most of a block
    clusters         whether blocks can form clusters
    launch           starts a kernel; arguments are integers of 8 bytes, addresses, and structures by value: see pack()
    beside           what two functions launch, at the same time, blocks of the first before those of the second; what
                     is launched later waits for both
    """

    device: torch.device
    multiprocessors: int
    shared: tuple[int, int]
    clusters: bool

    def launch(
        self, name: str, blocks: int, threads: int, *arguments: int | np.ndarray, shared: int = 0
    ) -> None: ...

    def beside(self, first: Callable[[], None], second: Callable[[], None]) -> None: ...


class DeviceKernels:
    """Built when they are first needed, each source for itself; see Kernels."""

    def __init__(self, device: torch.device):
        import cupy

        self.cupy, self.device = cupy, device
        about = torch.cuda.get_device_properties(device)
        self.multiprocessors, self.clusters = about.multi_processor_count, about.major >= 9
        limits = cupy.cuda.Device(device.index).attributes
        self.shared = limits["MaxSharedMemoryPerMultiprocessor"], limits["MaxSharedMemoryPerBlockOptin"]
        self.cache = Cache(default_cache() / "cuda", Nvrtc(10 * about.major + about.minor))
        self.modules: dict[tuple[str, ...], Any] = {}
        self.functions: dict[str, Any] = {}

    def launch(
        self, name: str, blocks: int, threads: int, *arguments: int | np.ndarray, shared: int = 0
    ) -> None:
        """On torch's current stream. Raises RuntimeError or OSError where a kernel cannot be built or started."""
        given = tuple(a if isinstance(a, np.ndarray) else np.int64(a) for a in arguments)
        with self.cupy.cuda.Device(self.device.index), self._stream():
            if name not in self.functions:
                self.functions[name] = self._module(name).get_function(name)
            function = self.functions[name]
            if shared > function.max_dynamic_shared_size_bytes:
                function.max_dynamic_shared_size_bytes = shared
            function((blocks,), (threads,), given, shared_mem=shared)

    def beside(self, first: Callable[[], None], second: Callable[[], None]) -> None:
        # Both may become ready at one time: without a priority the second could take every multiprocessor first.
        here, there = torch.cuda.current_stream(self.device), torch.cuda.Stream(self.device, priority=-1)
        there.wait_stream(here)
        try:
            with torch.cuda.stream(there):
                first()
            second()
        finally:
            here.wait_stream(there)

    def _module(self, name: str) -> Any:
        cooperative = name in TAIL
        key = ("tail",) if cooperative else ("batched_greedy", name.removesuffix("_cluster").split("_")[-1])
        if key not in self.modules:
            start = time.perf_counter()
            only = () if cooperative else (f"-DSMARTGPU_ONLY={ARITHMETIC.index(key[1])}",)
            path = self.cache.get("-".join(key), source(key[0]), (*OPTIONS, *only))
            self.modules[key] = self.cupy.RawModule(path=str(path), enable_cooperative_groups=cooperative)
            self.modules[key].compile()
            compiling.add(time.perf_counter() - start)
        return self.modules[key]

    def _stream(self) -> Any:
        address = torch.cuda.current_stream(self.device).cuda_stream
        if hasattr(self.cupy.cuda.Stream, "from_external"):
            return self.cupy.cuda.Stream.from_external(_Stream(address))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            return self.cupy.cuda.ExternalStream(address)


@dataclass(frozen=True)
class _Stream:
    """A stream of torch, by the protocol that CuPy 14 asks for."""

    address: int

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self.address


# ---- what everybody calls

_known: dict[torch.device, Kernels | None] = {}
_told: set[str] = set()


def kernels(device: torch.device) -> Kernels | None:
    """The kernels of a device; None where Triton does their work, after one message that says why."""
    if device not in _known:
        _known[device] = _open(device)
    return _known[device]


def _open(device: torch.device) -> Kernels | None:
    found = find()
    if not found.usable:
        tell(found.missing, found.level)
        return None
    try:
        return DeviceKernels(device)
    except (ImportError, OSError, RuntimeError) as error:
        tell(first_line(error))
        return None


def started(device: torch.device, start: Callable[[], Any]) -> bool:
    """Whether `start`, which launches kernels, could; where not, none is tried on this device any more."""
    try:
        start()
        return True
    except torch.OutOfMemoryError:
        raise
    except (OSError, RuntimeError) as error:
        if "CUDA error" in str(error):  # of the device, not of a build or a launch: nothing can go on there
            raise
        give_up(device, first_line(error))
        return False


def give_up(device: torch.device, why: str) -> None:
    """From here on Triton does the work on this device."""
    _known[device] = None
    tell(why)


@contextlib.contextmanager
def without(device: torch.device) -> Iterator[None]:
    """Inside, Triton does the work on this device: what there is to compare with."""
    before = _known.get(device, _known)
    _known[device] = None
    try:
        yield
    finally:
        if before is _known:
            del _known[device]
        else:
            _known[device] = before


def tell(why: str, level: int = logging.WARNING) -> None:
    """Say once why Triton does the work."""
    if why not in _told:
        _told.add(why)
        log.log(level, "CUDA kernels are not used, Triton does their work: %s", why)


def first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def pack(fields: tuple[str, ...], values: dict[str, Any]) -> np.ndarray:
    """A structure of csrc/ that a kernel is given by value: 8 bytes a field, in the order of `fields`, as one number of
    an array. Tensors by address: they must live until what reads them is on the stream. None is a null pointer."""
    out = np.zeros(len(fields), np.int64)
    for at, name in enumerate(fields):
        value = values[name]
        if isinstance(value, torch.Tensor):
            out[at] = value.data_ptr()
        elif isinstance(value, float):
            out[at] = np.float64(value).view(np.int64)
        elif value is not None:
            out[at] = int(value)
    return out.view(f"V{out.nbytes}")
