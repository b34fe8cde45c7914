"""Graphs of nearest neighbours: of every row the most similar rows, exactly, without an n x n array."""

from __future__ import annotations

from typing import Any

import numpy as np

from smartgpu.backends import find_backend, resolve
from smartgpu.backends.neighbours import FACTOR
from smartgpu.backends.tiles import ROWS
from smartgpu.job import Job
from smartgpu.options import bytes_text, make_options
from smartgpu.similarity import Precomputed, Similarity
from smartgpu.workers import one_thread

BLOCK = 1 << 20  # neighbours that are found together


def graph(
    X: Any,
    neighbors: int,
    similarity: str | Similarity = "cosine",
    *,
    own: bool = True,
    symmetric: bool = False,
    backend: str = "auto",
    **options: Any,
) -> Any:
    """The similarity of every row to its `neighbors` most similar rows, as a scipy CSR matrix: a sparse similarity.

    X          (n, d) embeddings, as select() takes them
    neighbors  entries of each row, 1 to n (n - 1 without the row itself); ties go to the lower row
    similarity any kind but "precomputed"
    own        whether a row may be its own neighbour, as it is where nothing resembles it more
    symmetric  store (i, j) wherever j is among i's neighbours or i among j's: more entries, a symmetric matrix
    options    fields of smartgpu.Options that say how to run: threads, memory, precision, progress

    returns    csr_matrix (n, n) float32, columns ascending in each row; select(..., similarity="precomputed") takes it
    raises     ImportError without scipy; ValueError, TypeError naming the argument: also where `memory` is too small

    One sweep, 2 n^2 d FLOP; O(n d + n neighbors) memory. On the CPU a tile of similarities is looked through while it
    is in the cache; on a GPU rows keep their best neighbours in registers (backend "triton", ceil(neighbors / 32)
    sweeps). Exact: what is stored is what every other part of smartgpu computes for the pair, in either order.
    """
    job = Job.check(X, "facility_location", similarity, make_options({"backend": backend, **options}))
    n, k = job.n, _count(neighbors, job.n - (not own))
    name = resolve(job.options.backend)
    if isinstance(job.kind, Precomputed):
        raise ValueError(
            "similarity must be one of features: a precomputed matrix has its neighbours already"
        )
    if name == "reference":
        raise ValueError("graph is for backends 'numpy' and 'triton', got 'reference'")
    try:
        from scipy import sparse
    except ImportError as error:
        raise ImportError(f"graph needs scipy ({error}); install it with: pip install scipy") from error
    _check_memory(job, k + (not own), symmetric)
    with job.failures(None):
        found = job.ground().backend()
        indices, values = np.empty((n, k), np.int32), np.empty((n, k), np.float32)
        step = max(1, BLOCK // k)
        with one_thread():
            for i in range(0, n, step):
                rows = slice(i, min(i + step, n))
                q, at = found.neighbours(rows, k + (not own))
                if not own:
                    q, at = _without_self(q, at, rows)
                order = np.argsort(at, axis=1)
                indices[rows] = np.take_along_axis(at, order, axis=1)
                values[rows] = np.take_along_axis(q, order, axis=1) * found.quantum
    pointers = np.arange(0, n * k + 1, k)
    out = sparse.csr_matrix((values.reshape(-1), indices.reshape(-1), pointers), shape=(n, n))
    return _both_ways(out, sparse) if symmetric else out


def _count(value: Any, most: int) -> int:
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"neighbors must be a number of rows (int), got {value!r}")
    if not 1 <= value <= most:
        raise ValueError(f"neighbors must lie between 1 and {most}, got {value}")
    return int(value)


def _check_memory(job: Job, k: int, symmetric: bool) -> None:
    """ValueError where features, scratch and the graph take more than `memory`."""
    sizes = find_backend(job.options.backend).footprint(job.x, job.kind, **job.how())
    n = job.n
    least = sizes.features(job.x) + sizes.dense(n, n, False, None) + sizes.fixed()
    least += sizes.host((8 + 56 * symmetric) * n * k + 64 * min(BLOCK, n * k))
    threads = getattr(sizes, "threads", 0)
    least += threads * 64 * ROWS * (k + max(k, FACTOR) + ROWS)  # what is looked through
    if job.options.memory is not None and job.options.memory < least:
        raise ValueError(
            f"memory must be at least {bytes_text(least, up=True)} for this graph, got {bytes_text(job.options.memory)}"
        )


def _without_self(q: np.ndarray, at: np.ndarray, rows: slice) -> tuple[np.ndarray, np.ndarray]:
    """One neighbour less in each row: the row itself, or the last where it is not among them."""
    k = at.shape[1] - 1
    mine = at == np.arange(rows.start, rows.stop)[:, None]
    mine[:, -1] |= ~mine.any(axis=1)
    keep = ~mine
    return q[keep].reshape(-1, k), at[keep].reshape(-1, k)


def _both_ways(graph: Any, sparse: Any) -> Any:
    """Entries of the graph and of its transpose; a place that is in both is one, of one value."""
    n, back = graph.shape[0], graph.T.tocsr()
    rows = [np.repeat(np.arange(n), np.diff(part.indptr)) for part in (graph, back)]
    keys = np.concatenate([r * n + part.indices for r, part in zip(rows, (graph, back), strict=True)])
    keys, first = np.unique(keys, return_index=True)
    data = np.concatenate([graph.data, back.data])[first]
    pointers = np.concatenate([[0], np.cumsum(np.bincount(keys // n, minlength=n))])
    return sparse.csr_matrix((data, keys % n, pointers), shape=(n, n))
