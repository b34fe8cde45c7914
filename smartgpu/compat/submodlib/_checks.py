"""What constructors and methods refuse, as the peer does, but by a ValueError that says what was expected."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

import numpy as np

from smartgpu.similarity import Cosine, Dot, ExpEuclidean, Similarity, choose

log = logging.getLogger("smartgpu")

METRICS: dict[str, type[Similarity]] = {"cosine": Cosine, "euclidean": ExpEuclidean, "dot": Dot}


def positive(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value <= 0:
        raise ValueError(f"{name} must be a positive integer, got {value!r}")
    return int(value)


def count(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 0:
        raise ValueError(f"{name} must be an integer >= 0, got {value!r}")
    return int(value)


def metric(value: Any) -> Similarity:
    return METRICS[choose(value, METRICS, "metric")]()


def rows(name: str, data: Any, n: int) -> Any:
    """Features of n rows, shaped (n, num_features)."""
    shape = np.shape(data)
    if len(shape) != 2 or shape[0] != n:
        raise ValueError(f"{name} must have shape ({n}, num_features), got {shape}")
    return data


def dense(name: str, kernel: Any, r: int, n: int) -> np.ndarray:
    if not isinstance(kernel, np.ndarray):
        raise ValueError(f"{name} must be a numpy.ndarray of shape ({r}, {n}), got {type(kernel).__name__}")
    if kernel.shape != (r, n):
        raise ValueError(f"{name} must have shape ({r}, {n}), got {kernel.shape}")
    return kernel


def sparse(name: str, kernel: Any, n: int) -> Any:
    if getattr(kernel, "format", None) != "csr":
        raise ValueError(f"{name} must be a scipy CSR matrix in sparse mode, got {type(kernel).__name__}")
    if kernel.shape != (n, n):
        raise ValueError(f"{name} must have shape ({n}, {n}), got {kernel.shape}")
    return kernel


def neighbors(mode: str, value: Any, n: int) -> int | None:
    """num_neighbors: there in sparse mode, and in no other."""
    if mode != "sparse":
        if value is not None:
            raise ValueError(f"num_neighbors is for sparse mode, got {value!r} with mode {mode!r}")
        return None
    if value is None:
        raise ValueError("num_neighbors is missing: sparse mode needs it")
    return min(positive("num_neighbors", value), n)


def numbers(name: str, values: Any, length: int) -> np.ndarray:
    """(length,) finite float64; ones where None."""
    if values is None:
        return np.ones(length)
    try:
        out = np.asarray(values, np.float64)
    except (TypeError, ValueError):
        raise ValueError(f"{name} must be {length} numbers, got {type(values).__name__}") from None
    if out.shape != (length,) or not np.isfinite(out).all():
        raise ValueError(f"{name} must be {length} finite numbers, got shape {out.shape}")
    return out


def labels(name: str, values: Any, n: int, clusters: Any) -> np.ndarray:
    """(n,) int64 cluster numbers in [0, clusters)."""
    clusters = positive("num_clusters", 0 if clusters is None else clusters)
    out = np.asarray(values)
    if out.shape != (n,) or out.dtype.kind not in "iu":
        raise ValueError(f"{name} must be {n} cluster numbers, got shape {out.shape}, dtype {out.dtype}")
    if out.min() < 0 or out.max() >= clusters:
        bad = out[(out < 0) | (out >= clusters)][0]
        raise ValueError(f"{name} must lie in [0, {clusters}), the clusters there are, got {bad}")
    return out.astype(np.int64)


def subset(X: Any, ground: set) -> list[int]:
    if type(X) is not set:
        raise ValueError(f"X must be a set, got {type(X).__name__}")
    for j in X - ground:
        raise ValueError(f"X must be a subset of the ground set of {len(ground)} elements, got {j!r}")
    return sorted(int(j) for j in X)


def element(value: Any, ground: set) -> int:
    if type(value) is not int:
        raise ValueError(f"element must be an int, got {type(value).__name__}: use int(element)")
    if value not in ground:
        raise ValueError(f"element must be one of the {len(ground)} elements of the ground set, got {value}")
    return value


def unused(kernels: Iterable[str], data: dict[str, Any]) -> None:
    """A word about data that are not looked at."""
    names = [name for name, value in data.items() if value is not None]
    if names:
        log.warning("%s given: %s not used", " and ".join(kernels), " and ".join(names))
