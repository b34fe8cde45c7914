"""What QDIT is compared with: quality only, random, threshold, cluster. Each gives a Selection, as select() does.

>>> from smartgpu import baselines, evaluate
>>> evaluate(X, baselines.threshold(X, 1000, quality).indices)

The value of these selections is the sum of the quality of their rows, given ones included, and a gain the quality of
one; those of random are the numbers that were drawn. All take, besides how to run, the limits of select(): given,
include, exclude, budget with cost, quotas; k may be left out where a budget says how many. Rows are taken in the order
that each function says, one after the other, where the limits still allow them; quality_only with a budget is what
select() makes of it: by quality / cost and by quality, whichever is worth more.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from smartgpu.api import select
from smartgpu.arrays import as_count, on_host
from smartgpu.backends import resolve
from smartgpu.constraints import Constraint
from smartgpu.job import Job
from smartgpu.objectives import FacilityLocation, Modular, Objective, outside
from smartgpu.objectives.base import per_row
from smartgpu.options import make_options
from smartgpu.selecting import Call, Wanted
from smartgpu.selection import Selection
from smartgpu.similarity import Cosine, CosineShifted, CosineSquared, Matrix, Similarity

BLOCK = 256  # candidates of threshold that are compared with each other
TAU = 0.8
LIMITS = ("budget", "cost", "quotas", "given", "include", "exclude")  # arguments of select()


def quality_only(
    X: Any, k: int | float | None, quality: Any, similarity: str | Similarity = "cosine", **options: Any
) -> Selection:
    """The k rows of highest quality (n,), the lowest index among equals: QDIT with alpha = 1. O(n log n)."""
    found = select(X, k, Modular(per_row("quality", quality)), similarity, **options)
    return dataclasses.replace(
        found, objective={"name": "quality_only", "quality": found.objective["scores"]}
    )


def random(
    X: Any, k: int | float | None, seed: int = 0, similarity: str | Similarity = "cosine", **options: Any
) -> Selection:
    """k rows drawn uniformly without replacement: those of the largest of n random numbers."""
    start = time.perf_counter()
    call, scores = _check(
        X, k, similarity, {**options, "seed": seed}, lambda n: np.random.default_rng(seed).random(n)
    )
    picked = _in_order(np.argsort(-scores, kind="stable"), call)
    return _selection(call, picked, scores, {"name": "random"}, start)


def threshold(
    X: Any,
    k: int | float | None,
    quality: Any,
    tau: float = TAU,
    similarity: str | Similarity = "cosine",
    **options: Any,
) -> Selection:
    """Rows in order of quality, without those that are too similar to one that is taken already, or given.

    tau      similarity > 0 from which a row is skipped
    quality  (n,) numbers, the lowest index first among equals
    options  fields of smartgpu.Options that say where it runs: backend, threads, memory, precision; and limits

    Returns a Selection of at most k rows: of fewer where no other row is less similar than tau. Rows to include are
    taken whatever they are similar to. O(n k d), and no n x n matrix. Raises ValueError for tau <= 0, and as select()
    does.
    """
    if isinstance(tau, bool) or not isinstance(tau, (int, float, np.integer, np.floating)):
        raise TypeError(f"tau must be a number, got {tau!r}")
    if not tau > 0:
        raise ValueError(f"tau must be > 0, a similarity from which rows are skipped, got {tau}")
    start = time.perf_counter()
    call, quality = _check(
        X, k, similarity, options, lambda n: per_row("quality", quality, n), FacilityLocation()
    )
    ground = call.job.ground(call.memory)
    backend = ground.backend()
    if not backend.same:
        raise ValueError(
            f"threshold needs similarities of candidates with each other, n x n, got {call.job.x.shape}"
        )
    limit = tau / backend.quantum
    order = np.argsort(-quality, kind="stable")
    constraint, chosen = _begun(call)
    if call.job.outside is not None:  # rows from elsewhere that count as taken
        constraint.open &= outside.nearest(ground, ground.x, call.job.outside)[1] < tau
    level = backend.new_level()  # of every row, how similar the most similar taken one is
    backend.raise_level(level, np.concatenate([call.given, call.include]))
    at = 0
    while not constraint.done:
        apart = constraint.open[order[at:]] & (backend.level_values(level)[order[at:]] < limit)
        apart = np.flatnonzero(apart)[:BLOCK]
        if not len(apart):
            break
        some, at = order[at + apart], at + int(apart[-1]) + 1
        near = backend.block(some, some) >= limit
        taken: list[int] = []
        for b, j in enumerate(some.tolist()):
            if constraint.open[j] and not constraint.done and not near[taken, b].any():
                constraint.take(j)
                taken.append(b)
        backend.raise_level(level, some[taken])
        chosen += some[taken].tolist()
    if constraint.unmet:
        raise ValueError(f"quotas: no rows less similar than tau = {tau} are left for a minimum")
    spec = {"name": "threshold", "tau": float(tau)}
    return _selection(
        call, chosen, quality, spec, start, rated=True, dtype=backend.dtype, sweeps=ground.sweeps
    )


def cluster(
    X: Any,
    k: int | float | None,
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
    options     fields of smartgpu.Options: threads; and limits. Clusters are of the whole pool, excluded rows as well

    Rows of one cluster come in order of quality (n,), the lowest index first among equals; those of one turn too.
    Raises ImportError without scikit-learn, and as select() does. Cost: see kmeans().
    """
    start = time.perf_counter()
    call, quality = _check(
        X, k, similarity, {**options, "seed": seed}, lambda n: per_row("quality", quality, n)
    )
    job = call.job
    if clusters is None or isinstance(clusters, (bool, int, float, np.integer, np.floating)):
        if clusters is None and k is None:
            raise ValueError("clusters is missing: give a number where k, its default, is left out")
        count = as_count(k if clusters is None else clusters, job.n, "clusters")
        label = _kmeans(job, count, iterations)
        spec = {"name": "cluster", "clusters": count, "iterations": iterations}
    else:
        label = np.asarray(clusters)
        if label.shape != (job.n,) or label.dtype.kind not in "iu":
            raise ValueError(
                f"clusters must be a number or ({job.n},) integers, got {label.dtype} of shape {label.shape}"
            )
        spec = {"name": "cluster", "clusters": len(np.unique(label))}
    # a turn is of the rows that may be chosen
    rows = np.flatnonzero(call.constraint().open)
    order = rows[np.lexsort((rows, -quality[rows], label[rows]))]
    starts = np.flatnonzero(np.diff(label[order], prepend=label[order[0]] - 1))
    turn = np.arange(len(order)) - np.repeat(starts, np.diff(starts, append=len(order)))
    picked = _in_order(order[np.lexsort((order, -quality[order], turn))], call)
    return _selection(call, picked, quality, spec, start, rated=True)


BASELINES = {kind.__name__: kind for kind in (quality_only, random, threshold, cluster)}


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
    X: Any,
    k: Any,
    similarity: Any,
    options: dict[str, Any],
    scores: Callable[[int], np.ndarray],
    objective: Objective | None = None,
) -> tuple[Call, np.ndarray]:
    """The checked arguments, and the scores of n rows. objective: what decides which memory it takes."""
    if k is None and options.get("budget") is None:
        raise ValueError("k is missing: give the number of rows, a share of them, or budget=")
    limits = {name: options[name] for name in LIMITS if name in options}
    how = make_options({name: value for name, value in options.items() if name not in LIMITS})
    if resolve(how.backend) == "reference":
        raise ValueError("baselines are for backends 'numpy' and 'triton', got 'reference'")
    if how.checkpoint is not None:
        raise ValueError("checkpoint is for greedy selections: a baseline is made anew")
    rated = scores(Job.check(X, FacilityLocation(), similarity, how).n)
    return Call.check(X, objective or Modular(rated), similarity, how, Wanted(k, **limits)), rated


def _begun(call: Call) -> tuple[Constraint, list[int]]:
    """The limits with the rows to include taken, and these rows."""
    constraint, rows = call.constraint(by_cost=False), call.include.tolist()
    for j in rows:
        constraint.take(j)
    return constraint, rows


def _in_order(order: np.ndarray, call: Call) -> list[int]:
    """Rows to include, then of `order` (m,) one after the other all that the limits allow."""
    constraint, chosen = _begun(call)
    for j in order.tolist():
        if constraint.done:
            break
        if constraint.open[j]:
            constraint.take(j)
            chosen.append(j)
    return chosen


def _selection(
    call: Call,
    rows: Any,
    scores: np.ndarray,
    spec: dict[str, Any],
    start: float,
    rated: bool = False,
    **how: Any,
) -> Selection:
    """rated: scores are the quality of rows, of which the selection keeps the fingerprint."""
    rows = np.asarray(rows, np.int64)
    quality = {"quality": Modular(scores).describe()["scores"]} if rated else {}
    described = {**call.job.described(), "objective": {**spec, **quality}}
    described["options"] = {**described["options"], "maximizer": None}  # none found these rows
    base = float(scores[call.given].sum())
    return Selection(
        indices=rows,
        gains=scores[rows],
        value=base + float(scores[rows].sum()),
        base_value=base,
        evaluations=0,
        backend=resolve(call.job.options.backend),
        exact=False,
        limits=call.limits(rows, None),
        seconds={"select": time.perf_counter() - start},
        **{"dtype": "float32", "sweeps": 0.0, **how},
        **described,
    )
