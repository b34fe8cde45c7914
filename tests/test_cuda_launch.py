"""How kernels of csrc/ are built and started: what CuPy and torch are asked for, with both made up."""

import contextlib
import sys
from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from smartgpu.backends import cuda

AT = torch.device("cuda", 1)
CODE = b"\x7fELF\x02".ljust(64, b"\0")  # machine code without tables


class Function:
    def __init__(self, told, name, cooperative):
        self.told, self.name, self.cooperative = told, name, cooperative
        self.max_dynamic_shared_size_bytes = 48 * 1024

    def __call__(self, grid, block, arguments, *, shared_mem):
        assert shared_mem <= self.max_dynamic_shared_size_bytes
        self.told.append((self.name, grid, block, arguments, self.cooperative, self.told.stream))


class Told(list):
    """Launches and waits, in order; the current stream, and sources that were compiled."""

    stream = "here"

    def __init__(self):
        self.compiled = []


class Stream:
    def __init__(self, told, name):
        self.told, self.name, self.cuda_stream = told, name, {"here": 0, "there": 77}[name]

    def wait_stream(self, other):
        self.told.append(f"{self.name} waits for {other.name}")


@pytest.fixture
def told(monkeypatch, tmp_path):
    """What DeviceKernels does on an H200 with CuPy 14."""
    told = Told()

    class Module:
        def __init__(self, *, path, enable_cooperative_groups):
            with open(path, "rb") as file:
                assert file.read() == CODE
            self.cooperative = enable_cooperative_groups

        def compile(self):
            pass

        def get_function(self, name):
            return Function(told, name, self.cooperative)

    def from_external(stream):
        assert stream.__cuda_stream__() == (0, torch.cuda.current_stream(AT).cuda_stream)
        return contextlib.nullcontext()

    class Device(contextlib.nullcontext):
        def __init__(self, index):
            assert index == AT.index
            super().__init__()
            self.attributes = {
                "MaxSharedMemoryPerMultiprocessor": 233_472,
                "MaxSharedMemoryPerBlockOptin": 232_448,
            }

    nvrtc = SimpleNamespace(
        NVRTCError=type("NVRTCError", (RuntimeError,), {}),
        getVersion=lambda: (13, 0),
        createProgram=lambda code, name, *_: (code, name),
        compileProgram=lambda program, options: told.compiled.append((program[1], *options)),
        getCUBIN=lambda program: CODE,
        getProgramLog=lambda program: "some text\ntail.cu(7): error: no\n",
        destroyProgram=lambda program: None,
    )
    parts = SimpleNamespace(Device=Device, Stream=SimpleNamespace(from_external=from_external))
    cupy = SimpleNamespace(__version__="14.2.0", cuda=parts, RawModule=Module)
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    for name in ("cupy_backends", "cupy_backends.cuda", "cupy_backends.cuda.libs"):
        monkeypatch.setitem(sys.modules, name, SimpleNamespace(nvrtc=nvrtc))
    told.nvrtc = nvrtc

    @contextlib.contextmanager
    def stream(where):
        told.stream, before = where.name, told.stream
        yield
        told.stream = before

    def beside(device, priority):
        assert priority < 0  # its blocks go before those of the stream it was made beside
        return Stream(told, "there")

    about = SimpleNamespace(multi_processor_count=132, major=9, minor=0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: about)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream(told, told.stream))
    monkeypatch.setattr(torch.cuda, "Stream", beside)
    monkeypatch.setattr(torch.cuda, "stream", stream)
    monkeypatch.setenv("SMARTGPU_CACHE", str(tmp_path))
    return told


def test_a_kernel_is_built_once_and_started_on_torchs_stream(told):
    kernels = cuda.DeviceKernels(AT)
    assert (kernels.multiprocessors, kernels.shared, kernels.clusters) == (132, (233_472, 232_448), True)
    x = torch.arange(3)
    given = cuda.pack(("x", "none", "number", "real"), {"x": x, "none": None, "number": 7, "real": 0.5})
    assert given.shape == (1,) and given.nbytes == 32  # one structure by value
    assert given.view(np.int64).tolist()[:3] == [x.data_ptr(), 0, 7] and given.view(np.float64)[3] == 0.5
    kernels.launch("quanta_bf16", 2, 256, given, 9, shared=61_440)
    kernels.launch("batched_greedy_bf16_cluster", 16, 256, given)
    kernels.launch("sparse_tail", 132, 1024, given)
    kernels.launch("sparse_tail", 132, 1024, given)
    arch = "--gpu-architecture=sm_90"
    assert told.compiled == [
        ("batched_greedy-bf16.cu", "-std=c++17", "-DSMARTGPU_ONLY=1", arch),
        ("tail.cu", "-std=c++17", arch),
    ]
    first, cluster, tail, again = told
    assert first[:3] == ("quanta_bf16", (2,), (256,)) and first[4:] == (False, "here")
    assert first[3][0] is given and type(first[3][1]) is np.int64 and first[3][1] == 9
    assert cluster[0] == "batched_greedy_bf16_cluster" and not cluster[4] and tail[4] and again == tail
    cuda.DeviceKernels(AT).launch("sparse_tail", 132, 1024, given)
    assert len(told.compiled) == 2  # it lies on disk


def test_two_launches_at_the_same_time(told):
    kernels = cuda.DeviceKernels(AT)
    kernels.beside(
        lambda: kernels.launch("batched_greedy_fp16_cluster", 8, 256),
        lambda: kernels.launch("batched_greedy_fp16", 8, 256),
    )
    waits, first, second, end = told
    assert (waits, end) == ("there waits for here", "here waits for there")
    assert (first[0], first[-1]) == ("batched_greedy_fp16_cluster", "there")
    assert (second[0], second[-1]) == ("batched_greedy_fp16", "here")


def test_a_failed_build_says_the_compilers_error(told):
    def fails(program, options):
        raise told.nvrtc.NVRTCError("NVRTC_ERROR_COMPILATION (6)")

    told.nvrtc.compileProgram = fails
    with pytest.raises(RuntimeError, match=r"^tail.cu\(7\): error: no$"):
        cuda.DeviceKernels(AT).launch("sparse_tail", 132, 1024)
