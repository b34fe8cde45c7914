"""Backends: a similarity over a pool that is never materialised, as a handful of primitives on integers.

A similarity is an integer number of quanta, q_ij = rint(s_ij / (unit 2^-22)), the same for a pair wherever and whenever
it is computed, so that levels, excesses and sums are exact: lazy equals naive, copies tie, gains add up to f(S), and no
result depends on blocks or threads.
"""

from __future__ import annotations

import importlib
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from smartgpu.backends import gpu
from smartgpu.similarity import Geometry, Matrix, Similarity, choose

if TYPE_CHECKING:
    from smartgpu.backends.footprint import Footprint

QUANTUM = 2.0**-22  # of the prepared similarity, |s| <= 1
MOST = 1 << 22  # quanta: no similarity is larger
STORE_ALL = 1 << 22  # pairs of a pool so small that survivors are stored at once, however many they are


class Kept(Protocol):
    """A batch whose columns stay with the backend until it is dropped."""

    excess: np.ndarray  # (m,) int64, up to date with every accept()


class Sparse(Protocol):
    """The pairs with q_ij > level_i, stored: from here on no dense work is needed. len() counts them."""

    alone: bool  # no part of them lies with another process

    def __len__(self) -> int: ...
    def excess(self, level: Any) -> np.ndarray: ...  # (n,) int64
    def keep(self, level: Any, cols: np.ndarray) -> Kept: ...  # fresh excesses of m columns
    def narrow(self, kept: Kept, positions: np.ndarray) -> Kept: ...  # with their pairs at hand
    def accept(self, kept: Kept, b: int, level: Any) -> None: ...
    def compact(self, level: Any) -> None: ...  # drop pairs that no longer matter
    def lists(
        self,
    ) -> tuple[np.ndarray, ...]: ...  # on the host: ptr (n + 1,) int64, rows, values of any kind


class Backend(Protocol):
    """s_ij, i over `r` represented rows, j over `n` candidates; integers are quanta, `quantum` is their real value.

    `how` holds what a Ground was given: threads, memory, precision, ...; a backend takes from it what it knows.
    """

    name: str
    dtype: str  # of the products
    r: int
    n: int
    quantum: float
    same: bool  # represented rows and candidates are one set
    pairs: int  # similarities computed so far
    rounded: bool  # features are coarser than float32: a row may resemble another more than itself
    memory: int  # bytes it may take
    pair_bytes: float  # a stored survivor takes, while they are built
    remote: (
        bool  # features are not on the host: log-determinants ask for products with them (Wide.span, factor)
    )

    keeps_survivors: bool  # a search for swaps starts from those of greedy

    @staticmethod
    def compiling() -> float: ...  # seconds that this process has spent on compiling, so far

    sizes: Footprint  # what it and the objectives on it allocate, from shapes

    @staticmethod
    def default_memory() -> int: ...  # bytes that an objective's own arrays may take, where nothing is said

    # What a selection takes, before anything is prepared: of the checked pool x, and of rows beside it.
    @staticmethod
    def footprint(x: Any, kind: Similarity, **how: Any) -> Footprint: ...
    @staticmethod
    def room(
        *sets: Any,
    ) -> tuple[int, int | None]: ...  # (memory where nothing is said, bytes there are at most)

    # DeviceMemoryError and DeviceLostError (see backends/gpu.py) are raised inside, in the stead of a library's errors.
    @staticmethod
    def failures(*sets: Any) -> AbstractContextManager[None]: ...
    @staticmethod
    def check_inputs(
        geometry: Geometry,
    ) -> None: ...  # ValueError where tensors used in place were changed since

    # Features, before a backend is open: prepared rows, and float64 arithmetic on them (see backends/linear.py).
    @staticmethod
    def prepare(kind: Similarity, x: Any, rows: Any = None, **how: Any) -> Geometry: ...
    @staticmethod
    def features(
        geometry: Geometry, x: Any, **how: Any
    ) -> Any: ...  # as LinearFeatures, x one of its two sets
    @staticmethod
    def wide(geometry: Geometry, **how: Any) -> Any: ...  # as Wide

    def new_level(self) -> Any: ...  # (r,) zeros: level[i] = max(0, max_{j in S} q_ij)
    def raise_level(
        self, level: Any, cols: np.ndarray, cap: Any = None
    ) -> None: ...  # level[i] = max(level[i], max_c q_ic), in place, and no more than the cap, a level itself
    def row_max(self) -> Any: ...  # (r,) max over all candidates, floored at 0
    def level_sum(self, level: Any, weights: Any = None) -> int: ...  # sum_i w_i level[i]
    def level_from(self, values: np.ndarray) -> Any: ...  # (r,) integers >= 0 on the host -> a level
    def level_values(self, level: Any) -> np.ndarray: ...  # (r,) int32 on the host
    def new_weights(self, weights: np.ndarray) -> Any: ...  # (r,) int64 >= 0 -> the backend's form
    def excess(
        self, level: Any, weights: Any = None
    ) -> np.ndarray: ...  # (n,) int64 sum_i w_i max(q_ij - level_i, 0)
    def keep(
        self, level: Any, cols: np.ndarray, weights: Any = None, cap: Any = None
    ) -> Kept: ...  # the same for m columns, kept; with min(q_ij, cap_i) in the place of q_ij
    def accept(
        self, kept: Kept, b: int, level: Any
    ) -> None: ...  # raise the level by kept column b, in place
    def column(self, kept: Kept, b: int) -> np.ndarray: ...  # (r,) int32, the kept column b on the host
    def excess_again(
        self, kept: Kept, level: Any
    ) -> np.ndarray: ...  # (m,) int64 excesses of the kept columns over another level
    def max_batch(self) -> int: ...  # columns that may be kept at once
    def held(self) -> int: ...  # bytes of `memory` that are taken besides survivors
    def estimate_survivors(self, level: Any) -> float: ...  # about how many pairs have q_ij > level_i
    def survivors(
        self, level: Any, weights: Any = None, cap: Any = None
    ) -> (
        Sparse | None
    ): ...  # those pairs, stored, no q larger than the cap; None if they do not fit after all

    def from_lists(
        self, ptr: np.ndarray, rows: np.ndarray, values: np.ndarray, r: int, weights: Any
    ) -> Sparse: ...  # what lists() gave, of r rows; weights of all of these, from new_weights()

    def totals(self) -> np.ndarray: ...  # (n,) int64 sum_i q_ij
    def diagonal(self) -> np.ndarray: ...  # (n,) int64 q_jj; candidates x candidates
    def block(
        self, a: np.ndarray, b: np.ndarray
    ) -> np.ndarray: ...  # (|a|, |b|) int32, candidates x candidates
    def block_sums(
        self, a: np.ndarray, b: np.ndarray
    ) -> np.ndarray: ...  # (|b|,) int64 sum of a block over a
    def nearest(
        self, cols: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]: ...  # (r,) best position in cols, (r,) int32
    def neighbours(
        self, rows: slice, k: int
    ) -> tuple[
        np.ndarray, np.ndarray
    ]: ...  # (m, k) int32, (m, k) int64: the best candidates, lower first of equals


@dataclass(frozen=True)
class Row:
    """One row of the table of backends: where it is, and what to install for it."""

    module: str
    factory: str
    install: str  # the pip line


BACKENDS: dict[str, Row] = {
    "numpy": Row("smartgpu.backends.numpy", "NumpyBackend", "pip install numpy"),
    "triton": Row("smartgpu.backends.triton", "TritonBackend", gpu.INSTALL),
}
NAMES = ("auto", *BACKENDS, "reference")  # what select(backend=...) takes; "reference" is the float64 oracle


def resolve(name: str) -> str:
    """The backend that `name` stands for ("auto" -> the fastest that is there). ValueError for an unknown name."""
    choose(name, NAMES, "backend")
    return gpu.automatic() if name == "auto" else name


def find_backend(name: str) -> type[Backend]:
    """The named backend's class. Raises as open_backend() does."""
    row = BACKENDS[resolve(name)]
    try:
        return getattr(importlib.import_module(row.module), row.factory)
    except ImportError as error:
        raise ImportError(
            f"backend {name!r} is not installed ({error}); install it with: {row.install}"
        ) from error


def open_backend(name: str, pool: Geometry | Matrix, **how: Any) -> Backend:
    """The named backend over a prepared pool; how: threads, memory (bytes), progress.

    Raises ValueError for an unknown name, ImportError with the pip line where a package it needs is not installed.
    """
    return find_backend(name)(pool, **how)
