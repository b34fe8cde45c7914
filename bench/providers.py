"""Providers of the benchmark: one table of who selects, and how. Imported by the worker processes.

A provider is a factory: it imports what it needs and returns select(x, case, k) -> Picks, x (n, d) float32, or a
float16 tensor for cases on the device. Whatever it computes from x, the similarity or kernel included, is inside select
and counted. f(S) is never taken from a provider.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from bench.cases import APART, FL, FLQ, GC, LD, Case, quality, task_budgets, task_labels, task_sizes

PRODUCT_ROWS = 256  # of one block of the yardstick: 256 x n float32 is 53 MB at n = 52,002
SYRK_ROWS = 40_000


class Picks(NamedTuple):
    """What a provider answers: indices (k,), in pick order where it is greedy; gains and notes where it knows them.

    Of a case with tasks: those of task 0, then those of task 1, ...
    """

    indices: np.ndarray
    gains: np.ndarray | None = None
    notes: dict[str, Any] = {}  # noqa: RUF012 (never written to)


@dataclass(frozen=True)
class Provider:
    """A row of the table.

    needs      bytes beyond the input, by which a case that cannot fit is not started
    work       what its time grows with, where that is known: a case predicted to take too long is not started
    ours       gated: without the reference's greedy value there is no figure
    named      only for cases that name it: it needs a GPU
    halves     it rounds unit rows to float16, and is gated on these
    picks      it is timed on so many picks at most and scaled, since all its picks take the same time; notes then have
               "setup_seconds", which are not scaled
    expect     seconds that a run is given, whatever the case says
    peer       another package (True) or the code that a user would write (False)
    """

    make: Callable[[], Callable[[np.ndarray, Case, int], Picks]]
    objectives: tuple[str, ...] = (FL, GC, LD)
    package: str | None = None  # distribution whose version is recorded
    needs: Callable[[Case], float] = field(default=lambda case: 0.0)
    work: Callable[[Case], float] | None = None
    ours: bool = False
    peer: bool = False
    all_rows: bool = True  # can select k = n
    named: bool = False
    halves: bool = False
    picks: int | None = None
    expect: float | None = None


def specification(case: Case, rows: int):
    """smartgpu's objective of a case, for the first rows of its pool."""
    from smartgpu import FacilityLocation, GraphCut, LogDet, Modular

    if case.objective == FLQ:
        scores = case.quality_weight * quality(case)[:rows]
        return (1 - case.parameters["alpha"]) * FacilityLocation() + Modular(scores)
    return {FL: FacilityLocation, GC: GraphCut, LD: LogDet}[case.objective](**case.parameters)


def _smartgpu(**options: Any):
    def make():
        import smartgpu

        def select(x: np.ndarray, case: Case, k: int) -> Picks:
            told = {"memory": case.memory} if case.memory else {}
            spec, before = specification(case, len(x)), _looks()
            how = {"objective": spec, "similarity": case.similarity, **options, **told}
            if case.tasks:
                sizes = task_sizes(case)
                budgets = dict(enumerate(task_budgets(sizes, k).tolist()))
                found = smartgpu.select_many(x, task_labels(case), budgets, **how)
                parts, pairs = [found[task] for task in budgets], np.square(sizes.astype(np.float64))
            else:
                parts, pairs = [smartgpu.select(x, k, **how)], np.ones(1)
            phases = {name: sum(part.seconds.get(name, 0.0) for part in parts) for name in _phases(parts)}
            notes = {
                "sweeps": round(float(np.average([part.sweeps for part in parts], weights=pairs)), 4),
                "evaluations": sum(int(part.evaluations) for part in parts),
                "phases_ms": {name: round(1e3 * seconds, 3) for name, seconds in phases.items()},
                "dtype": "/".join(sorted({part.dtype for part in parts})),
            }
            if _looks():
                notes["looks"] = _looks() - before
            indices = np.concatenate([part.indices for part in parts])
            return Picks(indices, np.concatenate([part.gains for part in parts]), notes)

        return select

    return make


def _apart():
    """Tasks one after the other, by Triton alone."""
    select = _smartgpu(backend="triton")()
    from smartgpu.backends import cuda, device

    def alone(x: Any, case: Case, k: int) -> Picks:
        with cuda.without(device.open_device(x)):
            return select(x, case, k)

    return alone


def _phases(parts: list) -> list[str]:
    return list(dict.fromkeys(name for part in parts for name in part.seconds))


def _looks() -> int:
    """How often a loop on the device has been looked at by the host, in this process."""
    return getattr(sys.modules.get("smartgpu.backends.resident"), "looks", 0)


def _blas():
    """The yardstick: one float32 n x n x d product by numpy's BLAS on all threads, 2 n^2 d FLOP, in blocks of bounded
    memory."""

    def select(x: np.ndarray, case: Case, k: int) -> Picks:
        out = np.empty((min(PRODUCT_ROWS, len(x)), len(x)), np.float32)
        for i in range(0, len(x), PRODUCT_ROWS):
            rows = x[i : i + PRODUCT_ROWS]
            np.matmul(rows, x.T, out=out[: len(rows)])
        return Picks(np.empty(0, np.int64))

    return select


def cosine(x: np.ndarray) -> np.ndarray:
    """(n, n) float32, raw cosine: what the packages are given. As fast as sklearn's; submodlib's own C++ kernel takes
    ten times as long."""
    norms = np.linalg.norm(x, axis=1, keepdims=True)
    unit = x / np.where(norms > 0, norms, 1)
    # Of a product with its own transpose numpy makes one half (syrk) and mirrors it: 1.5 times faster. On two threads
    # that crashed at n = 46,000 (numpy 2.4.6, OpenBLAS 0.3.31), though not at 40,000; a product with a copy did not.
    return unit @ (unit if len(x) <= SYRK_ROWS else unit.copy()).T


def _apricot(optimizer: str):
    """apricot refuses matrices of mixed signs. Facility location starts from level 0, so that clipping the kernel at 0
    changes nothing. Graph cut gets (1 + s) / 2: every gain of a step is then half of what it was plus one constant,
    (alpha n - 1) / 2 - |S|, so that greedy picks the same rows, and lazy greedy is exact since nothing is negative.
    f(S) is recomputed on the raw cosine all the same. alpha = 1 / lambda: f is scaled by it."""

    def make():
        from apricot import FacilityLocationSelection, GraphCutSelection

        def select(x: np.ndarray, case: Case, k: int) -> Picks:
            s = cosine(x)
            if case.objective == FL:
                np.maximum(s, 0, out=s)
                model = FacilityLocationSelection(k, metric="precomputed", optimizer=optimizer)
            else:
                s *= 0.5
                s += 0.5
                alpha = 1 / case.parameters["lam"]
                model = GraphCutSelection(k, metric="precomputed", alpha=alpha, optimizer=optimizer)
            return Picks(np.asarray(model.fit(s).ranking, np.int64))

        return select

    return make


def _submodlib():
    from submodlib import FacilityLocationFunction, GraphCutFunction, LogDeterminantFunction

    functions = {
        FL: lambda n, s, lam=None: FacilityLocationFunction(n=n, mode="dense", separate_rep=False, sijs=s),
        GC: lambda n, s, lam: GraphCutFunction(
            n=n, mode="dense", lambdaVal=lam, ggsijs=s, separate_rep=False
        ),
        LD: lambda n, s, lam: LogDeterminantFunction(n=n, mode="dense", lambdaVal=lam, sijs=s),
    }

    def select(x: np.ndarray, case: Case, k: int) -> Picks:
        # Graph cut with negative similarities is not submodular: its lazy greedy need not be greedy there.
        model = functions[case.objective](len(x), cosine(x), **case.parameters)
        picks = model.maximize(
            budget=k,
            optimizer="LazyGreedy",
            stopIfZeroGain=False,
            stopIfNegativeGain=False,
            verbose=False,
            show_progress=False,
        )
        return Picks(np.array([j for j, _ in picks], np.int64))

    return select


def _kmedoids():
    """FasterPAM: swaps from a random start, on the distance 1 - max(s, 0). The same objective, n - loss, no greedy."""
    import kmedoids

    def select(x: np.ndarray, case: Case, k: int) -> Picks:
        distance = cosine(x)
        np.maximum(distance, 0, out=distance)
        np.subtract(1, distance, out=distance)
        got = kmedoids.fasterpam(distance, k, init="random", random_state=case.seed)
        return Picks(np.asarray(got.medoids, np.int64), None, {"swaps": int(got.n_swap)})

    return select


def _obvious_numpy():
    """What a user writes in 30 lines: the dense kernel, every gain at every pick, float32."""

    def facility_location(s: np.ndarray, k: int) -> list[int]:
        level, chosen = np.zeros(len(s), np.float32), []
        for _ in range(k):
            gains = np.maximum(s - level[:, None], 0).sum(axis=0)
            gains[chosen] = -np.inf
            chosen.append(int(gains.argmax()))
            level = np.maximum(level, s[:, chosen[-1]])
        return chosen

    def graph_cut(s: np.ndarray, k: int, lam: float) -> list[int]:
        gains, chosen = s.sum(axis=0) - lam * s.diagonal(), []
        for _ in range(k):
            chosen.append(int(gains.argmax()))
            gains -= 2 * lam * s[:, chosen[-1]]
            gains[chosen] = -np.inf
        return chosen

    def log_det(s: np.ndarray, k: int, lam: float) -> list[int]:
        """Chen, Zhang, Zhou 2018: rows of the Cholesky factor, O(n k) for every pick."""
        factor, residual, chosen = np.zeros((k, len(s))), s.diagonal().astype(np.float64) + lam, []
        for t in range(k):
            j = int(residual.argmax())
            chosen.append(j)
            factor[t] = (s[j] - factor[:t, j] @ factor[:t]) / np.sqrt(residual[j])
            factor[t, j] = np.sqrt(residual[j])
            residual -= factor[t] ** 2
            residual[chosen] = -np.inf
        return chosen

    run = {FL: facility_location, GC: graph_cut, LD: log_det}
    return lambda x, case, k: Picks(np.array(run[case.objective](cosine(x), k, **case.parameters), np.int64))


def obvious_torch(device: str | None = "cpu"):
    """The same in torch, on any device; None is the one of bench/device.py."""

    def make():
        import torch

        where = device or _here()

        def facility_location(s, k: int) -> list[int]:
            level, chosen = torch.zeros(len(s), device=where), []
            for _ in range(k):
                gains = (s - level[:, None]).clamp_(min=0).sum(dim=0)
                gains[chosen] = -torch.inf
                chosen.append(int(gains.argmax()))
                level = torch.maximum(level, s[:, chosen[-1]])
            return chosen

        def graph_cut(s, k: int, lam: float) -> list[int]:
            gains, chosen = s.sum(dim=0) - lam * s.diagonal(), []
            for _ in range(k):
                chosen.append(int(gains.argmax()))
                gains -= 2 * lam * s[:, chosen[-1]]
                gains[chosen] = -torch.inf
            return chosen

        def log_det(s, k: int, lam: float) -> list[int]:
            factor = torch.zeros((k, len(s)), dtype=torch.float64, device=where)
            residual, chosen = s.diagonal().double() + lam, []
            for t in range(k):
                j = int(residual.argmax())
                chosen.append(j)
                factor[t] = (s[j] - factor[:t, j] @ factor[:t]) / residual[j].sqrt()
                factor[t, j] = residual[j].sqrt()
                residual -= factor[t] ** 2
                residual[chosen] = -torch.inf
            return chosen

        run = {FL: facility_location, GC: graph_cut, LD: log_det}

        def select(x: np.ndarray, case: Case, k: int) -> Picks:
            start = time.perf_counter()
            unit = _unit(x, where)
            s = unit @ unit.T
            float(s[-1, -1])  # it is there
            notes = {"setup_seconds": time.perf_counter() - start}
            return Picks(np.array(run[case.objective](s, k, **case.parameters), np.int64), None, notes)

        return select

    return make


def _here() -> str:
    from bench.device import HERE

    return HERE


def _unit(x, device: str):
    """Unit rows, float32, of an array or a tensor."""
    import torch

    x = torch.from_numpy(x) if isinstance(x, np.ndarray) else x
    return torch.nn.functional.normalize(x.to(device, torch.float32))


def _incremental_torch():
    """Facility location on the dense matrix, gains kept: a pick takes from them what its rows' levels rose by."""
    import torch

    def select(x, case: Case, k: int) -> Picks:
        unit = _unit(x, _here())
        s = unit @ unit.T
        gains = s.clamp(min=0).sum(dim=0, dtype=torch.float64)
        level, chosen = torch.zeros_like(s[0]), []
        for _ in range(k):
            chosen.append(int(gains.argmax()))
            column = s[chosen[-1]]
            for rows in (column > level).nonzero()[:, 0].split(8192):
                old, new = level[rows, None], column[rows, None]
                gains -= torch.clamp(s[rows], old, new).sub_(old).sum(dim=0, dtype=torch.float64)
            level = torch.maximum(level, column)
            gains[chosen[-1]] = -torch.inf
        return Picks(np.array(chosen, np.int64))

    return select


def _blocked_torch():
    """Facility location without n x n memory and without laziness: every similarity anew for every pick, in 16 bits."""
    import torch

    def select(x, case: Case, k: int) -> Picks:
        unit = _unit(x, _here())
        half = unit.half()
        level, chosen = torch.zeros_like(unit[:, 0]), []
        for _ in range(k):
            gains = torch.zeros_like(level)
            for i in range(0, len(half), 8192):
                s = (half[i : i + 8192] @ half.T).float()
                gains += s.sub_(level[i : i + 8192, None]).clamp_(min=0).sum(dim=0)
            gains[chosen] = -torch.inf
            chosen.append(int(gains.argmax()))
            level = torch.maximum(level, unit @ unit[chosen[-1]])
        return Picks(np.array(chosen, np.int64), None, {"setup_seconds": 0.0})

    return select


def _dense(bytes_per_pair: float) -> Callable[[Case], float]:
    return lambda case: bytes_per_pair * case.n**2 + 8 * case.n * case.d


def _submodlib_needs(case: Case) -> float:
    """The float32 kernel and a C++ copy; but for facility location also lists of Python floats and what converts them:
    56 bytes a pair were measured at n = 10,000."""
    factor = 8 * case.n * case.k if case.objective == LD else 0
    return _dense(8 if case.objective == FL else 58)(case) + factor


def _obvious_needs(case: Case) -> float:
    """The kernel; facility location makes an array of its size for each pick, log-determinant keeps k rows."""
    factor = 8 * case.n * case.k if case.objective == LD else 0
    return _dense(8 if case.objective == FL else 4)(case) + factor


def _eager(case: Case) -> float:
    """All pairs for each pick; graph cut looks at them once, log-determinant at k^2 / 2 rows of length n."""
    n, k = float(case.n), float(case.k)
    return {FL: k * n * n, GC: case.d * n * n, LD: case.d * n * n + 8 * n * k * k}[case.objective]


PROVIDERS: dict[str, Provider] = {
    "blas": Provider(_blas),
    "smartgpu-numpy": Provider(_smartgpu(backend="numpy"), package="smartgpu", ours=True),
    "smartgpu-numpy-1gb": Provider(
        _smartgpu(backend="numpy", memory="1GB"), (FL,), package="smartgpu", ours=True
    ),
    # bytes per pair: apricot keeps the float32 kernel and a float64 copy
    "apricot-lazy": Provider(_apricot("lazy"), (FL, GC), "apricot-select", _dense(12), peer=True),
    "apricot-naive": Provider(_apricot("naive"), (FL, GC), "apricot-select", _dense(12), _eager, peer=True),
    "submodlib": Provider(
        _submodlib, (FL, GC, LD), "submodlib-py", _submodlib_needs, peer=True, all_rows=False
    ),
    "kmedoids": Provider(_kmedoids, (FL,), "kmedoids", _dense(4), peer=True, all_rows=False),
    "numpy": Provider(_obvious_numpy, needs=_obvious_needs, work=_eager),
    "torch": Provider(obvious_torch(), package="torch", needs=_obvious_needs, work=_eager),
    "smartgpu-triton": Provider(
        _smartgpu(backend="triton"), (FL, GC, LD, FLQ), "smartgpu", ours=True, named=True, halves=True
    ),
    APART: Provider(_apart, (FL,), "smartgpu", ours=True, named=True, halves=True, expect=30.0),
    "torch-naive": Provider(obvious_torch(None), (FL,), "torch", named=True, picks=100),
    "torch-incremental": Provider(_incremental_torch, (FL,), "torch", named=True),
    "torch-blocked": Provider(_blocked_torch, (FL,), "torch", named=True, picks=20),
    "torch-cuda": Provider(obvious_torch(None), (GC, LD), "torch", named=True),
}


def threads() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
