"""csrc/ compiled for the CPU: what backends/cuda.py's Kernels is on a GPU, here with threads for warps and blocks."""

import ctypes
import functools
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT

HOST = ROOT / "tests" / "host"
# Words and numbers of csrc/ are the same memory: nvcc makes nothing of their types, g++ would.
FLAGS = (
    "-std=c++17",
    "-fno-strict-aliasing",
    "-Wall",
    "-Wextra",
    "-Werror",
    "-Wno-unknown-pragmas",
    "-pthread",
)


def build(target, *flags, file="emulate.cpp"):
    """Compile a file of tests/host with the sources of csrc/ that it includes."""
    if shutil.which("g++") is None:
        pytest.skip("g++ is not installed")
    command = ["g++", *FLAGS, *flags, f"-I{ROOT / 'csrc'}", f"-I{HOST}", "-o", str(target), str(HOST / file)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return target


@functools.cache
def library():
    """The emulated kernels, built once for a process."""
    folder = tempfile.TemporaryDirectory(prefix="smartgpu-host-")
    lib = ctypes.CDLL(str(build(Path(folder.name) / "emulate.so", "-O2", "-shared", "-fPIC")))
    lib.host_layout.restype = lib.host_size.restype = ctypes.c_longlong
    lib.folder = folder  # lives as long as the library
    return lib


class HostKernels:
    """Kernels of tensors on the CPU. Clusters are of 2 blocks and the grid of 3, of 8 and of 4 threads."""

    multiprocessors, shared, clusters = 4, (100 * 1024, 99 * 1024), True

    def __init__(self, device):
        self.device, self.lib, self.launched = device, library(), []

    def launch(self, name, blocks, threads, *arguments, shared=0):
        self.launched.append(name)
        pointers = [ctypes.c_void_p(a.ctypes.data if isinstance(a, np.ndarray) else a) for a in arguments]
        if name in ("count_by_row", "fill_by_row", "sparse_tail"):
            what = ("count_by_row", "fill_by_row", "sparse_tail").index(name)
            self.lib.host_tail(pointers[0], what, 3, 4)
            return
        how = name.removesuffix("_cluster").split("_")[-1].encode()
        if name.startswith("quanta_"):
            self.lib.host_quanta(how, *pointers)
        else:
            self.lib.host_batched_greedy(how, pointers[0], 2 if name.endswith("_cluster") else 1)

    def beside(self, first, second):
        first()
        second()


@functools.cache
def lanes():
    """The kernels with a thread for every lane (tests/host/simt.h), built once for a process."""
    folder = tempfile.TemporaryDirectory(prefix="smartgpu-simt-")
    flags = (
        "-O1",
        "-ffp-contract=off",
        "-fsanitize=undefined",
        "-fno-sanitize-recover=undefined",
        "-Wno-clobbered",
    )
    lib = ctypes.CDLL(
        str(
            build(
                Path(folder.name) / "simt.so",
                *flags,
                "-include",
                "simt.h",
                "-shared",
                "-fPIC",
                file="simt.cpp",
            )
        )
    )
    lib.folder = folder
    return lib


class LaneKernels:
    """What HostKernels is, by device code as nvcc sees it. Blocks are started as on a GPU, 8 of them to a cluster:
    one like an H200, but for its two multiprocessors."""

    multiprocessors, shared, clusters = 2, (233_472, 232_448), True

    def __init__(self, device, seed=0):
        self.device, self.lib, self.seed, self.launched = device, lanes(), seed, []

    def launch(self, name, blocks, threads, *arguments, shared=0):
        self.launched.append(name)
        held = [a if isinstance(a, np.ndarray) else np.array(a, np.int64) for a in arguments]
        pointers = (ctypes.c_void_p * len(held))(*(a.ctypes.data for a in held))
        self.seed += 1
        assert self.lib.simt_launch(name.encode(), blocks, threads, pointers, shared, self.seed) == 0, name

    def beside(self, first, second):
        first()
        second()


def install(monkeypatch, kernels=HostKernels):
    """Emulated kernels, in the place of a GPU's."""
    import torch

    from smartgpu.backends import cuda, cuda_batch

    cpu = torch.device("cpu")
    fake = kernels(cpu)
    monkeypatch.setattr(cuda, "_known", {cpu: fake})
    monkeypatch.setattr(cuda, "_told", set())
    monkeypatch.setattr(cuda_batch, "_apart", {})
    return fake
