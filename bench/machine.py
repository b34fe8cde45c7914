"""What a row says about where it was measured."""

from __future__ import annotations

import ctypes
import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import numpy as np

from bench.cases import ROOT

SMI = ("name", "driver_version", "clocks.sm", "clocks.mem", "clocks.max.sm", "clocks.max.mem", "power.draw")
LIBRARIES = ("OPENBLAS_", "OMP_", "MKL_", "NUMBA_", "GOTO_")  # variables that change what is measured


def describe() -> dict[str, Any]:
    from smartgpu.version import __version__

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "device": cpu_model(),
        "cores": cores,
        "memory_gb": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9, 1),
        "blas": blas(),
        "versions": {
            "smartgpu": __version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
        "environment": {k: v for k, v in sorted(os.environ.items()) if k.startswith(LIBRARIES)},
        **commit(),
    }


def cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    fields = dict(reversed([[part.strip() for part in line.split(":", 1)] for line in lines if ":" in line]))
    name = fields.get("model name") or platform.processor() or platform.machine()
    family = f" (family {fields['cpu family']}, model {fields['model']})" if "cpu family" in fields else ""
    return name + family  # virtual machines say "AMD EPYC": the family tells which


def blas() -> str:
    """Library, version and, for OpenBLAS, its kernels: those for this processor, or what OPENBLAS_CORETYPE asks for.

    The variable is left as it is and written down: all providers that use this BLAS run under the same one.
    """
    found = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
    text = f"{found.get('name', '?')} {found.get('version', '?')}"
    try:
        from numpy._core import _multiarray_umath as umath

        library = ctypes.CDLL(umath.__file__)
    except (ImportError, OSError):
        return text
    for prefix in ("scipy_openblas_", "openblas_"):
        for suffix in ("64_", "_64", ""):
            name = getattr(library, f"{prefix}get_corename{suffix}", None)
            if name is not None:
                name.restype = ctypes.c_char_p
                asked = os.environ.get("OPENBLAS_CORETYPE")
                return f"{text} {name().decode()}" + (f" (OPENBLAS_CORETYPE={asked})" if asked else "")
    return text


def smi(device: str | None = None) -> dict[str, str]:
    """What nvidia-smi reads now, of a device (the first): driver, clocks in MHz, watts. Empty where it is not there."""
    command = ["nvidia-smi", f"--query-gpu={','.join(SMI)}", "--format=csv,noheader,nounits"]
    command += ["-i", device] if device else []
    try:
        got = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return {}
    values = [value.strip() for value in got.split("\n")[0].split(",")]
    return {f"smi_{name.replace('.', '_')}": value for name, value in zip(SMI, values, strict=False) if value}


def available_memory() -> int:
    """Bytes that can be taken without swapping."""
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def commit() -> dict[str, Any]:
    """The commit, and whether code (anything but the rows and pictures that a run makes) differs from it."""
    git = ("git", "--no-optional-locks", "-C", str(ROOT))
    try:
        head = subprocess.run(
            [*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True
        )
        paths = ("--", ".", ":!bench/results", ":!docs/img", ":!README.md")
        changed = subprocess.run(
            [*git, "status", "--porcelain", *paths], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return {"commit": None, "dirty": None}
    return {"commit": head.stdout.strip(), "dirty": bool(changed.stdout.strip())}


def package_version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None
