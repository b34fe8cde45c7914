"""Threads: ours, over blocks, each with scratch arrays of its own; and those of BLAS, which must not split products."""

from __future__ import annotations

import ctypes
import functools
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np

SLOW = 64  # blocks from which a pass over all pairs shows a bar


def cpu_count() -> int:
    """Processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def default_memory() -> int:
    """An eighth of the memory that is free now, in bytes."""
    try:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        with open("/proc/meminfo", encoding="ascii") as file:  # counts what the page cache would give back
            free = next(
                (int(line.split()[1]) * 1024 for line in file if line.startswith("MemAvailable:")), free
            )
    except (OSError, ValueError, AttributeError):
        free = 8 << 30
    return max(free // 8, 256 << 20)


@functools.cache
def _thread_calls():
    """(set, get) of the BLAS that numpy is linked with, looked up through numpy's own module; or None."""
    try:
        from numpy._core import _multiarray_umath as umath

        library = ctypes.CDLL(umath.__file__)
    except (ImportError, OSError):
        return None
    for prefix in ("scipy_openblas_", "openblas_"):
        for suffix in ("64_", "_64", ""):
            put, get = (
                getattr(library, f"{prefix}{verb}_num_threads{suffix}", None) for verb in ("set", "get")
            )
            if put and get:
                return put, get
    put, get = getattr(library, "MKL_Set_Num_Threads", None), getattr(library, "MKL_Get_Max_Threads", None)
    return (put, get) if put and get else None


_lock = threading.Lock()
_depth = 0
_before = 0


@contextmanager
def one_thread() -> Iterator[None]:
    """Inside, every BLAS call uses one thread: a split product would move places in tiles. Re-entrant, thread-safe."""
    global _depth, _before
    calls = _thread_calls()
    if calls is None:
        yield
        return
    put, get = calls
    with _lock:
        if _depth == 0:
            _before = get()
            put(1)
        _depth += 1
    try:
        yield
    finally:
        with _lock:
            _depth -= 1
            if _depth == 0:
                put(_before)


class Workers:
    """A fixed number of threads. progress: passes over all pairs show a bar on stderr."""

    def __init__(self, threads: int | None = None, progress: bool = False):
        self.threads = threads or cpu_count()
        self.progress = progress
        self._local = threading.local()
        self._executor = ThreadPoolExecutor(self.threads, "smartgpu") if self.threads > 1 else None

    def run(self, work: Callable, items: Sequence, label: str | None = None) -> list:
        """work(item) for every item, results in order. BLAS uses one thread inside each."""
        with one_thread():
            results = map(work, items) if self._executor is None else self._executor.map(work, items)
            return list(self.bar(results, len(items), label) if label else results)

    def bar(self, items: Iterable, total: int, label: str) -> Iterable:
        """items, with a bar on stderr where progress is asked for and there are many."""
        if not self.progress or total < SLOW:
            return items
        from tqdm.auto import tqdm

        return tqdm(items, total=total, desc=label, unit="block", mininterval=0.5, leave=False)

    def buffer(self, name: str, shape: tuple[int, int], dtype: type) -> np.ndarray:
        """A scratch array of this thread: fresh pages for every tile would cost more than the tile."""
        size = shape[0] * shape[1]
        held = getattr(self._local, name, None)
        if held is None or held.size < size:
            held = np.empty(size, dtype)
            setattr(self._local, name, held)
        return held[:size].reshape(shape)
