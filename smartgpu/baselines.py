"""What QDIT is compared with: quality only, random, threshold, cluster. Each gives a Selection, as select() does.

>>> from smartgpu import baselines, evaluate
>>> evaluate(X, baselines.threshold(X, 1000, quality).indices)

The value of these selections is the sum of the quality of their rows, and a gain the quality of one; those of random
are the numbers that were drawn.
"""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import numpy as np

from smartgpu.api import select
from smartgpu.arrays import as_count, on_host
from smartgpu.backends import resolve
from smartgpu.job import Job
from smartgpu.objectives import Modular
from smartgpu.objectives.base import per_row
from smartgpu.options import make_options
from smartgpu.selection import Selection
from smartgpu.similarity import Cosine, CosineShifted, CosineSquared, Matrix, Similarity, as_similarity

BLOCK = 256  # candidates of threshold that are compared with each other


def quality_only(
    X: Any, k: int | float, quality: Any, similarity: str | Similarity = "cosine", **options: Any
) -> Selection:
    """The k rows of highest quality (n,), the lowest index among equals: QDIT with alpha = 1. O(n log n)."""
    found = select(X, k, Modular(per_row("quality", quality)), similarity, **options)
    return _named(found, "quality_only")


def random(
    X: Any, k: int | float, seed: int = 0, similarity: str | Similarity = "cosine", **options: Any
) -> Selection:
    """k rows drawn uniformly without replacement: those of the largest of n random numbers."""
    options = {**options, "seed": seed}
    how = make_options(options)
    n = Job.check(X, "facility_location", similarity, how).n
    scores = np.random.default_rng(how.seed).random(n)
    return _named(select(X, k, Modular(scores), similarity, **options), "random")


def threshold(
    X: Any,
    k: int | float,
    quality: Any,
    tau: float = 0.8,
    similarity: str | Similarity = "cosine",
    **options: Any,
) -> Selection:
    """Rows in order of quality, without those that are too similar to one that is taken already.

    tau      similarity > 0 from which a row is skipped
    quality  (n,) numbers, the lowest index first among equals
    options  fields of smartgpu.Options that say where it runs: backend, threads, memory, precision

    Returns a Selection of at most k rows: of fewer where no other row is less similar than tau. O(n k d), and no
    n x n matrix. Raises ValueError for tau <= 0, and as select() does.
    """
    if isinstance(tau, bool) or not isinstance(tau, (int, float, np.integer, np.floating)):
        raise TypeError(f"tau must be a number, got {tau!r}")
    if not tau > 0:
        raise ValueError(f"tau must be > 0, a similarity from which rows are skipped, got {tau}")
    start = time.perf_counter()
    job, k, quality = _check(X, k, quality, similarity, options)
    ground = job.ground()
    backend = ground.backend()
    if not backend.same:
        raise ValueError(
            f"threshold needs similarities of candidates with each other, n x n, got {job.x.shape}"
        )
    limit = tau / backend.quantum
    order = np.argsort(-quality, kind="stable")
    level = backend.new_level()  # of every row, how similar the most similar chosen one is
    chosen: list[int] = []
    at = 0
    while len(chosen) < k:
        apart = np.flatnonzero(backend.level_values(level)[order[at:]] < limit)[:BLOCK]
        if not len(apart):
            break
        some, at = order[at + apart], at + int(apart[-1]) + 1
        near = backend.block(some, some) >= limit
        taken: list[int] = []
        for b in range(len(some)):
            if not near[taken, b].any():
                taken.append(b)
        rows = some[taken][: k - len(chosen)]
        backend.raise_level(level, rows)
        chosen += rows.tolist()
    how = {"dtype": backend.dtype, "sweeps": ground.sweeps}
    return _selection(job, chosen, quality, {"name": "threshold", "tau": float(tau)}, start, **how)


def cluster(
    X: Any,
    k: int | float,
    quality: Any,
    clusters: Any = None,
    similarity: str | Similarity = "cosine",
    *,
    seed: int = 0,
    iterations: int = 25,
    **options: Any,
) -> Selection:
    """The best row of each cluster, then the second of each, ...

    clusters    how many, by kmeans(); None is k: one row of each. Or (n,) integers, the cluster of each row
    seed, iterations  of kmeans()
    options     fields of smartgpu.Options: threads

    Rows of one cluster come in order of quality (n,), the lowest index first among equals; those of one turn too.
    Raises ImportError without scikit-learn, and as select() does. Cost: see kmeans().
    """
    start = time.perf_counter()
    job, k, quality = _check(X, k, quality, similarity, {**options, "seed": seed})
    if clusters is None or isinstance(clusters, (bool, int, float, np.integer, np.floating)):
        count = k if clusters is None else as_count(clusters, job.n, "clusters")
        label = _kmeans(job, count, iterations)
        spec = {"name": "cluster", "clusters": count, "iterations": iterations}
    else:
        label = np.asarray(clusters)
        if label.shape != (job.n,) or label.dtype.kind not in "iu":
            raise ValueError(
                f"clusters must be a number or ({job.n},) integers, got {label.dtype} of shape {label.shape}"
            )
        spec = {"name": "cluster", "clusters": len(np.unique(label))}
    order = np.lexsort((np.arange(job.n), -quality, label))
    starts = np.flatnonzero(np.diff(label[order], prepend=label[order[0]] - 1))
    turn = np.arange(job.n) - np.repeat(starts, np.diff(starts, append=job.n))
    picked = order[np.lexsort((order, -quality[order], turn))][:k]
    return _selection(job, picked, quality, spec, start)


def kmeans(
    X: Any,
    clusters: int,
    similarity: str | Similarity = "cosine",
    *,
    seed: int = 0,
    iterations: int = 25,
    **options: Any,
) -> np.ndarray:
    """(n,) int64, the cluster of each row, by scikit-learn's k-means on rows, of length 1 for cosines.

    iterations  at most, from random rows. O(n clusters d) each

    Raises ImportError without scikit-learn, ValueError for a precomputed similarity, which has no centres.
    """
    job = Job.check(X, "facility_location", similarity, make_options({**options, "seed": seed}))
    return _kmeans(job, as_count(clusters, job.n, "clusters"), iterations)


def _kmeans(job: Job, clusters: int, iterations: int) -> np.ndarray:
    if isinstance(job.x, Matrix):
        raise ValueError("k-means needs embeddings: it has no centres in a precomputed similarity")
    try:
        from sklearn.cluster import KMeans
    except ImportError as error:
        raise ImportError(f"k-means needs scikit-learn ({error}): pip install 'smartgpu[sklearn]'") from error
    x = np.asarray(on_host(job.x), np.float32)
    if isinstance(job.kind, (Cosine, CosineShifted, CosineSquared)):
        norms = np.linalg.norm(x, axis=1, keepdims=True)
        x = np.divide(x, norms, out=np.zeros_like(x), where=norms > 0)
    how = {"max_iter": iterations, "random_state": job.options.seed % 2**32}
    return KMeans(clusters, init="random", n_init=1, **how).fit_predict(x).astype(np.int64)


def _check(
    X: Any, k: Any, quality: Any, similarity: Any, options: dict[str, Any]
) -> tuple[Job, int, np.ndarray]:
    how = make_options(options)
    if resolve(how.backend) == "reference":
        raise ValueError("baselines are for backends 'numpy' and 'triton', got 'reference'")
    job = Job.check(X, "facility_location", as_similarity(similarity), how)
    return job, as_count(k, job.n), per_row("quality", quality, job.n)


def _named(found: Selection, name: str) -> Selection:
    return dataclasses.replace(found, objective={**found.objective, "name": name})


def _selection(
    job: Job, rows: Any, quality: np.ndarray, spec: dict[str, Any], start: float, **how: Any
) -> Selection:
    rows = np.asarray(rows, np.int64)
    described = {**job.described(), "objective": {**spec, "quality": Modular(quality).describe()["scores"]}}
    return Selection(
        indices=rows,
        gains=quality[rows],
        value=float(quality[rows].sum()),
        base_value=0.0,
        evaluations=0,
        backend=resolve(job.options.backend),
        exact=False,
        seconds={"select": time.perf_counter() - start},
        **{"dtype": "float32", "sweeps": 0.0, **how},
        **described,
    )
