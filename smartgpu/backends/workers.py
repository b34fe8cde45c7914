"""Threads of the numpy backend: work over blocks, each thread with scratch arrays of its own."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from smartgpu.backends import blas

SLOW = 200  # items from which a pass over all pairs shows a bar


class Workers:
    """A fixed number of threads. progress: passes over all pairs show a bar on stderr."""

    def __init__(self, threads: int | None = None, progress: bool = False):
        self.threads = threads or blas.cpu_count()
        self.progress = progress
        self._local = threading.local()
        self._executor = ThreadPoolExecutor(self.threads, "smartgpu") if self.threads > 1 else None

    def run(self, work: Callable, items: Sequence, label: str | None = None) -> list:
        """work(item) for every item, results in order. BLAS uses one thread inside each."""
        with blas.one_thread():
            results = map(work, items) if self._executor is None else self._executor.map(work, items)
            if label and self.progress and len(items) >= SLOW:
                from tqdm.auto import tqdm

                results = tqdm(results, total=len(items), desc=label, unit="block", mininterval=0.5, leave=False)
            return list(results)

    def buffer(self, name: str, shape: tuple[int, int], dtype: type) -> np.ndarray:
        """A scratch array of this thread: fresh pages for every tile would cost more than the tile."""
        size = shape[0] * shape[1]
        held = getattr(self._local, name, None)
        if held is None or held.size < size:
            held = np.empty(size, dtype)
            setattr(self._local, name, held)
        return held[:size].reshape(shape)
