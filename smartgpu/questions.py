"""What smartgpu doctor asks in processes of their own: each function below, by its name, with text for arguments.

A function returns what it found, {"missing": why} for what is not there, or raises what is wrong.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import logging
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from smartgpu.backends import gpu, resolve

EXACT = 2e-6  # what float32 features and quanta move a similarity by
HALF = 2.0**-10  # what features of 11 bits move it by
ARCH = 90  # compiled for where there is no GPU


def answer(question: str, *arguments: str) -> None:
    print(json.dumps(QUESTIONS[question](*arguments)))


def importing(module: str) -> dict[str, Any]:
    return {"version": str(getattr(importlib.import_module(module), "__version__", ""))}


def resolving(name: str) -> dict[str, Any]:
    return {"name": resolve(name)}


def finding_model() -> dict[str, Any]:
    from smartgpu import embed

    try:
        return {"name": embed.find_model(None).name}
    except (ImportError, ValueError) as error:
        return {"missing": str(error)}


def compiling() -> dict[str, Any]:
    """Compile one kernel, as for a launch."""
    import torch
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from smartgpu.kernels import greedy

    arch = ARCH
    if gpu.find_gpu().usable:
        major, minor = torch.cuda.get_device_capability()
        arch = 10 * major + minor
    kernel, config = greedy._column_excess_kernel, greedy.CONFIG
    known = {"W": None, "BLOCK_C": greedy.BLOCK_C, "BLOCK_I": greedy.BLOCK_I, "TILES": greedy.TILES}
    kinds = {"KEPT": "*i32", "LEVEL": "*i32", "OUT": "*i64"}
    signature = {name: "constexpr" if name in known else kinds.get(name, "i32") for name in kernel.arg_names}
    constexprs = {(kernel.arg_names.index(name),): value for name, value in known.items()}
    start = time.perf_counter()
    options = {"num_warps": config.num_warps, "num_stages": config.num_stages, "enable_fp_fusion": False}
    source = ASTSource(kernel, signature, constexprs=constexprs)
    compiled = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
    seconds = time.perf_counter() - start
    return {"arch": arch, "bytes": len(compiled.asm["cubin"]), "seconds": seconds}


def launching() -> dict[str, Any]:
    """Selections in groups by one launch, and by Triton group after group."""
    for module in ("torch", "triton"):
        if importlib.util.find_spec(module) is None:
            return {"missing": f"{module} is not installed"}
    import smartgpu
    from smartgpu.backends import cuda, device

    found = cuda.find()
    if not found.usable:
        return {"error" if found.level == logging.WARNING else "missing": found.missing}
    at, start = device.open_device(), time.perf_counter()
    said = _Said()
    logging.getLogger("smartgpu").addHandler(said)
    x = np.random.default_rng(0).standard_normal((600, 64)).astype(np.float32) + 0.3
    labels = np.arange(600) % 5
    got = smartgpu.select_many(x, labels, 20, backend="triton")
    if cuda.kernels(at) is None or said.lines:
        return {"error": said.lines[0] if said.lines else "no kernels"}
    with cuda.without(at):
        want = smartgpu.select_many(x, labels, 20, backend="triton")
    for label, sel in want.items():
        if not (
            np.array_equal(got[label].indices, sel.indices) and np.array_equal(got[label].gains, sel.gains)
        ):
            raise AssertionError(
                f"group {label}: rows {got[label].indices[:5]}..., by Triton {sel.indices[:5]}..."
            )
    return {"groups": len(want), "seconds": time.perf_counter() - start}


class _Said(logging.Handler):
    """Warnings, kept."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def checking(name: str) -> dict[str, Any]:
    """Selections by a backend, every pick and gain against the float64 reference."""
    if name == "triton":
        if not gpu.interpreted() and not gpu.find_gpu().usable:
            return {"missing": gpu.find_gpu().missing}
        for module in ("torch", "triton"):
            if importlib.util.find_spec(module) is None:
                return {"missing": f"{module} is not installed"}
    import smartgpu
    from smartgpu import FacilityLocation, GraphCut, LogDet, reference
    from smartgpu.similarity import as_similarity

    start, rng = time.perf_counter(), np.random.default_rng(0)
    n, d, k = (60, 16, 5) if name == "triton" and gpu.interpreted() else (430, 40, 12)
    x = (rng.standard_normal((n, d)) + 0.5).astype(np.float32)
    x[n // 2 : n // 2 + n // 10] = x[: n // 10]  # copies: ties
    cases = [
        (FacilityLocation(), "cosine"),
        (FacilityLocation(rng.random(n)), "rbf"),
        (GraphCut(), "cosine"),
        (GraphCut(), "cosine_squared"),
        (LogDet(), "cosine"),
        (LogDet(), "rbf"),
    ]
    ways = [({}, EXACT)]
    if name == "triton":  # as by default, and as exactly as it can
        ways = [({}, HALF), ({"precision": "ieee"}, EXACT)]
    picks = 0
    for objective, kind in cases:
        problem = reference.Problem(x, as_similarity(kind), objective)
        for how, unit in ways:
            sel = smartgpu.select(x, k, objective, kind, backend=name, **how)
            compare(sel.indices, sel.gains, sel.value, problem, unit, f"{objective.name} on {kind}")
            picks += sel.k
    seconds = time.perf_counter() - start
    return {"picks": picks, "selections": len(cases) * len(ways), "seconds": seconds}


def compare(indices, gains, value: float, problem: Any, unit: float, what: str) -> None:
    """Raises AssertionError where a pick is not the reference's, up to `unit` of rounding in a similarity."""
    n, chosen = problem.n, []
    pairs = 20 if problem.objective.name == "log_det" else n
    tolerance = unit * (1 + float(np.abs(problem.s).max())) * pairs
    for j, gain in zip(indices, gains, strict=True):
        every = problem.gains(chosen)
        every[chosen] = -np.inf
        behind, off = float(every.max() - every[j]), float(abs(every[j] - gain))
        if j in chosen or not behind <= tolerance or not off <= tolerance:
            raise AssertionError(
                f"{what}: pick {len(chosen)} is row {j} with gain {gain:.7g}; the reference's is row {every.argmax()} "
                f"with {every.max():.7g}, and row {j} has {every[j]:.7g}"
            )
        chosen.append(int(j))
    exact = problem.value(chosen)
    if not abs(value - exact) <= tolerance * max(1, len(chosen)):
        raise AssertionError(f"{what}: f(S) is {value:.9g}, the reference's {exact:.9g}")


QUESTIONS: dict[str, Callable[..., dict[str, Any]]] = {
    f.__name__: f for f in (importing, resolving, finding_model, compiling, launching, checking)
}
