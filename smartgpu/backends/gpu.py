"""Whether this machine has a GPU that backend "triton" can use; torch is imported only where there is a driver."""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import logging
import os
from dataclasses import dataclass

LEAST = (8, 0)  # compute capability: tensor cores for bfloat16 and tf32
INSTALL = "pip install 'smartgpu[gpu]'"


class DeviceMemoryError(MemoryError):
    """The device has not the memory that a selection needs. free: bytes that it has once the selection is gone."""

    def __init__(self, message: str, free: int):
        super().__init__(message)
        self.free = free


class DeviceLostError(RuntimeError):
    """The device failed in the middle of a selection: nothing more can be computed on it in this process."""


FAILURES = (DeviceMemoryError, DeviceLostError)


@dataclass(frozen=True)
class Found:
    """usable: backend "triton" runs on it; present: there is a GPU at all; missing: what stands in the way, else ""."""

    usable: bool
    present: bool
    missing: str = ""


def interpreted() -> bool:
    """Whether Triton's kernels run in its interpreter, on the CPU."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "yes", "on", "y")


@functools.cache
def find_gpu() -> Found:
    """The current GPU. Asks the driver, then for the packages, then torch; the answer is kept."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return Found(False, False, "no NVIDIA driver was found")
    count = ctypes.c_int(0)
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0 or count.value == 0:
        return Found(False, False, "the NVIDIA driver sees no GPU")
    for name in ("torch", "triton"):
        if importlib.util.find_spec(name) is None:
            return Found(False, True, f"{name} is not installed ({INSTALL})")
    import torch

    if not torch.cuda.is_available():
        return Found(False, True, f"torch {torch.__version__} cannot use it (a build for CUDA is needed)")
    capability = torch.cuda.get_device_capability()
    if capability < LEAST:
        name = torch.cuda.get_device_name()
        have, need = ".".join(map(str, capability)), ".".join(map(str, LEAST))
        return Found(False, True, f"{name} has compute capability {have}, and {need} or more is needed")
    return Found(True, True)


@functools.cache
def automatic() -> str:
    """What backend "auto" is here: "triton" on a GPU that it can use, else "numpy", with one message saying why."""
    if interpreted():
        return "numpy"
    gpu = find_gpu()
    if gpu.usable:
        return "triton"
    # Without a GPU nobody expected one; with one, its owner wants to know.
    level = logging.WARNING if gpu.present else logging.INFO
    logging.getLogger("smartgpu").log(level, "backend 'auto' is numpy: %s", gpu.missing)
    return "numpy"


def need_gpu() -> None:
    """Raises RuntimeError, saying what is missing, where backend "triton" cannot run."""
    if interpreted() or find_gpu().usable:
        return
    raise RuntimeError(
        f"backend 'triton' needs an NVIDIA GPU of compute capability {'.'.join(map(str, LEAST))} or more: "
        f"{find_gpu().missing}. TRITON_INTERPRET=1 in the environment runs its kernels on the CPU, slowly, for tests"
    )
