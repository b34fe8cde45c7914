"""smartgpu doctor: what is there, what it enables, and whether every backend computes what the reference does here.

What may be missing (a GPU, CuPy, nvcc, an extra) is "not available". What is installed and fails is "wrong". Whatever
may break is asked in a process of its own: a package that fails, hangs or crashes is named, and the rest goes on.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from smartgpu.backends import BACKENDS, blas, gpu
from smartgpu.options import bytes_text
from smartgpu.version import __version__
from smartgpu.workers import cpu_count, default_memory

OK, MISSING, WRONG = "ok", "not available", "wrong"
TIMEOUT = 50.0  # seconds for one question
CHECK_TIMEOUT = 300.0  # for a backend: on a GPU the first call compiles dozens of kernels


@dataclass(frozen=True)
class Finding:
    """group and name say what was looked for; status is "ok", "not available" or "wrong"."""

    group: str
    name: str
    status: str
    detail: str  # a version, what was measured, or what is wrong
    enables: str = ""


@dataclass(frozen=True)
class Report:
    """What the doctor found. str() is a table."""

    findings: tuple[Finding, ...]
    seconds: float

    @property
    def wrong(self) -> list[Finding]:
        return [f for f in self.findings if f.status == WRONG]

    def to_dict(self) -> dict[str, Any]:
        return {
            "smartgpu": __version__,
            "healthy": not self.wrong,
            "seconds": round(self.seconds, 1),
            "findings": [asdict(f) for f in self.findings],
        }

    def __str__(self) -> str:
        width = {name: max(len(getattr(f, name)) for f in self.findings) for name in ("name", "status")}
        lines, group = [f"smartgpu {__version__}"], None
        for f in self.findings:
            if f.group != group:
                lines += ["", f.group]
                group = f.group
            told = "; ".join(filter(None, (f.detail, f.enables)))
            lines.append(f"  {f.name:<{width['name']}}  {f.status:<{width['status']}}  {told}".rstrip())
        names = ", ".join(f.name for f in self.wrong)
        verdict = f"wrong: {names}" if names else "nothing is wrong"
        return "\n".join([*lines, "", f"{verdict} ({self.seconds:.0f} s)"])


# ---- packages

# (what to import, what to install, what it enables); the first group is needed, the others are extras
NEEDED = (
    ("numpy", "pip install numpy", "everything"),
    ("pyarrow", "pip install pyarrow", "pools in files, chosen rows out"),
    ("tqdm", "pip install tqdm", "progress bars"),
    ("yaml", "pip install pyyaml", "--config"),
)
EXTRAS = (
    ("torch", "pip install 'smartgpu[gpu]'", "backend triton, tensors as input, embedding"),
    ("triton", "pip install 'smartgpu[gpu]'", "backend triton"),
    ("cupy", "pip install 'smartgpu[cuda12]' or [cuda13]", "CuPy arrays as input, CUDA kernels"),
    ("sentence_transformers", "pip install 'smartgpu[text]'", "embedding of text"),
    ("datasets", "pip install 'smartgpu[hf]'", "HF dataset folders, --format hf"),
    ("safetensors", "pip install 'smartgpu[io]'", "embeddings in .safetensors"),
    ("scipy", "pip install scipy", "sparse precomputed similarities"),
    ("jinja2", "pip install 'smartgpu[report]'", "smartgpu report, --report"),
    ("plotly", "pip install 'smartgpu[report]'", "smartgpu report, --report"),
)
DISTRIBUTIONS = {"yaml": ("pyyaml",), "cupy": ("cupy-cuda13x", "cupy-cuda12x", "cupy")}


def _version(module: str) -> str:
    for name in DISTRIBUTIONS.get(module, (module,)):
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return ""


def _package(group: str, module: str, install: str, enables: str) -> Finding:
    """Whether a package is installed, and imports."""
    try:
        there = importlib.util.find_spec(module) is not None
    except (ImportError, ValueError) as error:  # a parent package or a module object that is broken
        return Finding(group, module, WRONG, str(error))
    if not there:
        status = WRONG if group == "needed" else MISSING
        return Finding(group, module, status, install, enables)
    found = _ask("importing", module)
    if "error" in found:
        return Finding(group, module, WRONG, f"is installed, but import {module} fails: {found['error']}")
    return Finding(group, module, OK, _version(module) or found["version"], enables)


# ---- the machine


def _machine() -> list[Finding]:
    group, memory = "machine", bytes_text(8 * default_memory())
    python = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    out = [
        Finding(group, "python", OK, python),
        Finding(group, "cpu", OK, f"{_cpu()}, {cpu_count()} threads, {memory} free"),
    ]
    layout = blas.find_layout(384)
    tiles = f"tiles of {layout.block}, {layout.pad} columns of padding, {np.dtype(layout.dtype).name}"
    slow = " (float32 products are not repeatable here: twice the time)" if layout is blas.FALLBACK else ""
    out.append(Finding(group, "blas", OK, f"{_blas()}, {tiles}{slow}"))
    return out


def _cpu() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    found = re.search(r"^model name\s*: (.+)$", text, re.MULTILINE)
    return found[1].strip() if found else platform.processor() or "unknown"


def _blas() -> str:
    try:
        built = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
        return f"{built['name']} {built['version']}"
    except (KeyError, TypeError):
        return "unknown BLAS"


def _gpus() -> list[Finding]:
    """Driver and GPUs, from the driver's own library: torch is not needed for that."""
    group = "gpu"
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        driver = None
    count, version = ctypes.c_int(0), ctypes.c_int(0)
    if driver is None:
        return [
            Finding(group, "driver", MISSING, "no NVIDIA driver", "backend triton"),
            Finding(group, "gpu", MISSING, "", "backend triton"),
            _nvcc(),
        ]
    status = driver.cuInit(0)
    driver.cuDriverGetVersion(ctypes.byref(version))
    told = f"CUDA {version.value // 1000}.{version.value % 1000 // 10}"
    none = status in (34, 100)  # a stub library, no device: there is just no GPU
    if status and not none:
        return [Finding(group, "driver", WRONG, f"{told}, cuInit fails with error {status}"), _nvcc()]
    out = [Finding(group, "driver", OK, told)]
    if none or driver.cuDeviceGetCount(ctypes.byref(count)) or not count.value:
        out.append(Finding(group, "gpu", MISSING, "", "backend triton"))
    for number in range(count.value):
        out.append(_device(group, driver, number))
    return [*out, _nvcc()]


def _device(group: str, driver: ctypes.CDLL, number: int) -> Finding:
    device, name = ctypes.c_int(0), ctypes.create_string_buffer(128)
    major, minor, total = ctypes.c_int(0), ctypes.c_int(0), ctypes.c_size_t(0)
    driver.cuDeviceGet(ctypes.byref(device), number)
    driver.cuDeviceGetName(name, len(name), device)
    driver.cuDeviceGetAttribute(ctypes.byref(major), 75, device)
    driver.cuDeviceGetAttribute(ctypes.byref(minor), 76, device)
    driver.cuDeviceTotalMem_v2(ctypes.byref(total), device)
    capability = major.value, minor.value
    told = f"{name.value.decode()}, capability {major.value}.{minor.value}, {bytes_text(total.value)}"
    if capability < gpu.LEAST:
        told += f" (backend triton needs {'.'.join(map(str, gpu.LEAST))}: numpy is used)"
    return Finding(group, f"gpu {number}", OK, told)


def _nvcc() -> Finding:
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    path = shutil.which("nvcc") or (shutil.which("nvcc", path=str(Path(home) / "bin")) if home else None)
    enables = "compiling csrc/ ahead of time, for tests"
    if path is None:
        return Finding("gpu", "nvcc", MISSING, "", enables)
    try:
        done = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=TIMEOUT)
    except (OSError, subprocess.TimeoutExpired) as error:
        return Finding("gpu", "nvcc", WRONG, f"{path}: {error}")
    found = re.search(r"release ([0-9.]+)", done.stdout)
    if done.returncode or not found:
        return Finding(
            "gpu", "nvcc", WRONG, f"{path} --version fails: {_last_line(done.stderr or done.stdout)}"
        )
    return Finding("gpu", "nvcc", OK, found[1], enables)


def _model() -> Finding:
    """The embedding model that is used where none is named."""
    found = _ask("finding_model")
    if "error" in found:
        return Finding("extras", "default model", WRONG, found["error"])
    if "missing" in found:
        return Finding(
            "extras", "default model", MISSING, "pip install 'smartgpu[text]'", "embedding of text"
        )
    return Finding("extras", "default model", OK, found["name"], "embedding of text without --embedder")


# ---- backends


def _compiler() -> Finding:
    """Whether Triton's compiler works: one kernel, for the GPU that is here or for one that is not."""
    name, group = "triton compiler", "self-check"
    for module in ("torch", "triton"):
        if importlib.util.find_spec(module) is None:
            return Finding(group, name, MISSING, f"{module} is not installed", "backend triton")
    found = _ask("compiling", drop=("TRITON_INTERPRET",))
    if "error" in found:
        return Finding(group, name, WRONG, found["error"])
    told = (
        f"a kernel for sm_{found['arch']}: {found['bytes']} bytes of machine code, {found['seconds']:.1f} s"
    )
    return Finding(group, name, OK, told)


def _cuda() -> Finding:
    """Whether the kernels of csrc/ can be built and started here, and compute what Triton's do."""
    name, enables = "cuda kernels", "many groups, and a selection's sparse tail, in one launch"
    found = _ask("launching", timeout=CHECK_TIMEOUT)
    if "error" in found:
        return Finding("self-check", name, WRONG, f"{found['error']}: Triton does their work", enables)
    if "missing" in found:
        return Finding("self-check", name, MISSING, found["missing"], enables)
    told = f"{found['groups']} groups in one launch are those of one by one, {found['seconds']:.1f} s"
    return Finding("self-check", name, OK, told, enables)


def _backend(name: str) -> Finding:
    found = _ask("checking", name, timeout=CHECK_TIMEOUT)
    label = f"backend {name}"
    if "error" in found:
        return Finding("self-check", label, WRONG, found["error"])
    if "missing" in found:
        return Finding("self-check", label, MISSING, found["missing"])
    told = f"{found['picks']} picks of {found['selections']} selections are the reference's, {found['seconds']:.1f} s"
    return Finding("self-check", label, OK, told)


def examine() -> Report:
    """Look at everything, two questions at a time. Takes well under a minute, most of it for importing packages."""
    start = time.perf_counter()
    asked: list[Callable[[], Finding]] = [
        *(lambda p=p: _package("needed", *p) for p in NEEDED),
        *(lambda p=p: _package("extras", *p) for p in EXTRAS),
        _model,
        *(lambda name=name: _backend(name) for name in BACKENDS),
        _compiler,
        _cuda,
        _auto,
    ]
    with ThreadPoolExecutor(2) as pool:
        answers = [pool.submit(ask) for ask in asked]
        findings = [*_machine(), *_gpus(), *(answer.result() for answer in answers)]
    return Report(tuple(findings), time.perf_counter() - start)


def _auto() -> Finding:
    found = _ask("resolving", "auto")
    if "error" in found:
        return Finding("self-check", "backend auto", WRONG, found["error"])
    return Finding("self-check", "backend auto", OK, f"is {found['name']} here")


# ---- what is asked in a process of its own


def _ask(
    question: str, *arguments: str, drop: Iterable[str] = (), timeout: float | None = None
) -> dict[str, Any]:
    """What the function of that name in questions.py says in a fresh process; {"error": ...} where it fails."""
    env = {name: value for name, value in os.environ.items() if name not in drop}
    env["PYTHONPATH"] = os.pathsep.join(p or os.getcwd() for p in sys.path)
    code = "import sys; from smartgpu.questions import answer; answer(*sys.argv[1:])"
    command = [sys.executable, "-c", code, question, *arguments]
    timeout = timeout or TIMEOUT
    try:
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=timeout)
    except subprocess.TimeoutExpired:
        return {"error": f"no answer after {timeout:.0f} s"}
    if done.returncode:
        told = _last_line(done.stderr) or "no message"
        return {"error": told if done.returncode > 0 else f"died of signal {-done.returncode}: {told}"}
    return json.loads(done.stdout.splitlines()[-1])


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else ""
