"""What the benchmark asks of torch.cuda, in one place: pools, the gate's float64 sums, memory, synchronisations.

With TRITON_INTERPRET=1, which is how bench/gpu.py is rehearsed, everything is on the CPU, and what only a GPU can tell
is None or left out.
"""

from __future__ import annotations

import gc
import os
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import numpy as np
import torch

from bench import gate
from bench.cases import ALPACA_ROWS, CLUSTERS, Case, alpaca_path, centres, gaussian
from bench.machine import smi

REHEARSAL = os.environ.get("TRITON_INTERPRET", "0") == "1"
HERE = "cpu" if REHEARSAL else "cuda"
DRAWN = 1 << 16  # rows drawn from one seed: the first rows of a pool are the same for every n
PAIRS = 1 << 26  # float64 similarities at a time, 512 MiB
NUMBERS = 1 << 24  # float64 numbers of rows at a time


# -- pools -------------------------------------------------------------------------------------------------------------


def make_pool(case: Case) -> tuple[torch.Tensor, str]:
    """The (n, d) float16 pool of a case on the device, and in words what it is. Real where the data is there.

    Drawn on the device from the case's seed: the same on one kind of device and version of torch.
    """
    out = torch.empty((case.n, case.d), dtype=torch.float16, device=HERE)
    if case.pool == "alpaca" and case.d == 384 and case.n <= ALPACA_ROWS and alpaca_path().is_file():
        out.copy_(torch.from_numpy(np.array(np.load(alpaca_path(), mmap_mode="r")[: case.n])))
        return out, "alpaca/minilm.npy"
    draw, source = _drawer(case)
    for number, start in enumerate(range(0, case.n, DRAWN)):
        generator = torch.Generator(HERE).manual_seed(case.seed * 2**20 + number)
        out[start : start + DRAWN] = draw(generator)[: case.n - start]
    return out, source


def _drawer(case: Case):
    """(draws DRAWN rows with a generator, source)"""
    count = min(DRAWN, case.n) if REHEARSAL else DRAWN

    def normal(generator: torch.Generator) -> torch.Tensor:
        return torch.randn((count, case.d), generator=generator, device=HERE)

    if case.pool == "isotropic":
        return normal, "isotropic Gaussian"
    if case.pool == "clusters":
        middle = torch.from_numpy(centres(case.d, case.seed)).to(HERE)

        def clustered(generator: torch.Generator) -> torch.Tensor:
            which = torch.randint(0, CLUSTERS, (count,), generator=generator, device=HERE)
            return middle[which] + normal(generator) * case.d**-0.5

        return clustered, f"{CLUSTERS} clusters"
    root, mean, source = gaussian(case.d, case.seed)
    root, mean = torch.from_numpy(root).to(HERE), torch.from_numpy(mean).to(HERE)
    if case.pool == "alpaca":
        source = f"alpaca/minilm.npy is not there: {source}"
    return lambda generator: normal(generator) @ root + mean, source


# -- the gate's sums ---------------------------------------------------------------------------------------------------


class Pool(gate.Pool):
    """gate.Pool with its products made by torch in float64 on the device that holds the rows."""

    def _unit(self, rows: np.ndarray) -> torch.Tensor:
        y = _normed(self.x[torch.from_numpy(np.asarray(rows)).to(self.x.device)].to(torch.float64))
        if self.halves:
            y = y.float().half().double()
        return _normed(y) if self.halves and self.again else y

    def unit(self, rows: np.ndarray) -> np.ndarray:
        return self._unit(rows).cpu().numpy()

    def _blocks(self, rows: np.ndarray, width: int = 0) -> Iterator[tuple[slice, torch.Tensor]]:
        """Rows in blocks of which a product with `width` others is not too large."""
        step = max(1, min(NUMBERS // self.d, PAIRS // max(width, 1)))
        for i in range(0, len(rows), step):
            yield slice(i, min(i + step, len(rows))), self._unit(rows[i : i + step])

    def total(self, rows: np.ndarray) -> np.ndarray:
        parts = [y.sum(dim=0).cpu().numpy() for _, y in self._blocks(rows)]
        return np.sum(parts, axis=0) if parts else np.zeros(self.d)

    def gram(self, rows: np.ndarray) -> np.ndarray:
        parts = [(y.T @ y).cpu().numpy() for _, y in self._blocks(rows)]
        return np.sum(parts, axis=0) if parts else np.zeros((self.d, self.d))

    def own(self, rows: np.ndarray) -> np.ndarray:
        parts = [y.square().sum(dim=1).clamp_(max=1).cpu().numpy() for _, y in self._blocks(rows)]
        return np.concatenate(parts)

    def nearest(self, rows: np.ndarray, picks: np.ndarray) -> np.ndarray:
        best = torch.full((len(rows),), -1.0, dtype=torch.float64, device=self.x.device)
        for start in range(0, len(picks), gate.BLOCK):
            chosen = self._unit(picks[start : start + gate.BLOCK]).T
            for part, y in self._blocks(rows, chosen.shape[1]):
                best[part] = torch.maximum(best[part], (y @ chosen).amax(dim=1))
        return best.clamp_(max=1).cpu().numpy()

    def excess(self, rows: np.ndarray, level: np.ndarray, cols: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        chosen, level = self._unit(cols).T, torch.from_numpy(level).to(self.x.device)
        gains = torch.zeros(len(cols), dtype=torch.float64, device=self.x.device)
        pairs = torch.zeros_like(gains)
        for part, y in self._blocks(rows, len(cols)):
            over = (y @ chosen).clamp_(max=1).sub_(level[part, None]).clamp_(min=0)
            pairs += (over > 0).sum(dim=0)
            gains += over.sum(dim=0)
        return gains.cpu().numpy(), pairs.cpu().numpy()


def _normed(y: torch.Tensor) -> torch.Tensor:
    norms = torch.linalg.vector_norm(y, dim=1, keepdim=True)
    return y / torch.where(norms > 0, norms, 1.0)


# -- the device itself -------------------------------------------------------------------------------------------------


def describe() -> dict[str, Any]:
    """Device, driver, clocks and versions, for a row."""
    import triton

    versions = {"torch": torch.__version__, "triton": triton.__version__, "cuda": torch.version.cuda}
    if REHEARSAL:
        return {"rehearsal": True, "gpu": "Triton's interpreter", "versions": versions}
    about = torch.cuda.get_device_properties(0)
    out = {"gpu": f"{about.name} (sm_{about.major}{about.minor})", "versions": versions}
    out["gpu_memory_gb"] = round(about.total_memory / 1e9, 1)
    out["multiprocessors"] = about.multi_processor_count
    return {**out, **clocks()}


def clocks() -> dict[str, Any]:
    """What nvidia-smi reads now of this process's device; its own numbering ignores CUDA_VISIBLE_DEVICES."""
    if REHEARSAL:
        return {}
    which = getattr(torch.cuda.get_device_properties(0), "uuid", None)
    return smi(None if which is None else f"GPU-{str(which).removeprefix('GPU-')}")


def synchronize() -> None:
    if not REHEARSAL:
        torch.cuda.synchronize()


def release() -> None:
    """Give back what the allocator keeps: the next provider finds the whole device."""
    gc.collect()
    if not REHEARSAL:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()


def start_memory() -> int:
    """The peak starts again from here; returns the bytes that are allocated, the input among them."""
    if REHEARSAL:
        return 0
    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.memory_allocated()


def memory(before: int) -> dict[str, float]:
    """Peaks since start_memory(), 10^6 bytes: beyond what was there, what was there, and what the allocator took."""
    if REHEARSAL:
        return {}
    return {
        "device_peak_mb": round((torch.cuda.max_memory_allocated() - before) / 1e6, 1),
        "device_input_mb": round(before / 1e6, 1),
        "device_reserved_mb": round(torch.cuda.max_memory_reserved() / 1e6, 1),
    }


class Syncs:
    """How often the host waited for the device."""

    def __init__(self) -> None:
        self.waited = 0  # by an explicit synchronize()
        self.told: list[warnings.WarningMessage] = []

    @property
    def count(self) -> int:
        return self.waited + sum("synchroniz" in str(w.message) for w in self.told)


@contextmanager
def count_syncs() -> Iterator[Syncs]:
    """Counts what torch warns of (copies to the host, item(), nonzero(), ...) and calls of synchronize(), of which it
    does not warn. Slow: not for a run that is timed. On the CPU nothing waits, and the count is 0."""
    syncs = Syncs()

    def counting(call):
        def counted(*args, **kwargs):
            syncs.waited += 1
            return call(*args, **kwargs)

        return counted

    with ExitStack() as stack:
        syncs.told = stack.enter_context(warnings.catch_warnings(record=True))
        warnings.simplefilter("always")
        if not REHEARSAL:
            for owner in (torch.cuda, torch.cuda.Event, torch.cuda.Stream):
                stack.enter_context(mock.patch.object(owner, "synchronize", counting(owner.synchronize)))
            torch.cuda.set_sync_debug_mode("warn")
            stack.callback(torch.cuda.set_sync_debug_mode, "default")
        yield syncs
