"""Selections in many groups: together where they are small, on threads, and dealt out to processes."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np

from smartgpu.arrays import as_similarity_matrix
from smartgpu.backends import find_backend, open_backend, resolve
from smartgpu.backends.whole import MOST
from smartgpu.job import Job
from smartgpu.objectives import FacilityLocation
from smartgpu.options import Options
from smartgpu.parts import Part
from smartgpu.selection import Selection
from smartgpu.similarity import Cosine, CosineShifted, CosineSquared, Matrix
from smartgpu.together import together
from smartgpu.workers import Workers, cpu_count, default_memory, one_thread

EXCHANGES = 8  # of what processes have selected, about
ALONE = 1 << 14  # rows from which a group has all threads: there is work enough in its blocks
PAIRS, ROWS = 1 << 21, 1 << 12  # of all groups in a batch of small ones


def select_groups(
    job: Job, X: Any, todo: Mapping[Any, Part], finish: Callable[[Any, Selection], None]
) -> None:
    """Select in every group of todo; finish(key, selection) is called for one at a time, in rows of the pool.

    X is the pool as the user gave it. The groups' order, the threads and the processes change no result.
    """
    if job.ranks is not None and job.ranks.size > 1:
        _deal(job, X, todo, finish)
        return
    if job.options.process_group is not None:  # from here on each process is by itself
        job = dataclasses.replace(job, options=dataclasses.replace(job.options, process_group=None))
    threads = job.options.threads or cpu_count()
    order = sorted(todo, key=lambda g: -len(todo[g].rows))  # largest first
    quiet, described = dataclasses.replace(job.options, progress=False), job.options.to_dict()
    share = (job.options.memory or default_memory()) // threads
    lock = threading.Lock()

    def work(some: list, options: Options, share: int | None) -> None:
        if len(some) > 1 or _alike(job, todo[some[0]]):
            results = _select_alike(job, [todo[g] for g in some])
        else:
            part = todo[some[0]]
            results = [part.select(lambda how: job_of(job, X, part.rows, how), options, share)]
        with lock:
            for g, got in zip(some, results, strict=True):
                deliver(g, got)

    def deliver(g: Any, got: Selection) -> None:
        finish(g, todo[g].in_pool(got, job.n, options=described))
        tick()

    beside = {g for g in order if _fits(job, todo[g], share)}
    if resolve(job.options.backend) != "numpy":
        beside = set()
    with _bar(job.options, len(order)) as tick:
        at_once = together(job, {g: todo[g] for g in order})
        for g, got in at_once.items():
            deliver(g, got)
        for g in order:
            if g not in beside and g not in at_once:
                work([g], quiet, None)
        batches = _batches(job, todo, [g for g in order if g in beside])
        single = dataclasses.replace(quiet, threads=1)
        if threads == 1:
            for some in batches:
                work(some, single, share)
            return
        pool = ThreadPoolExecutor(threads, "smartgpu")
        try:
            with one_thread():
                for result in [pool.submit(work, some, single, share) for some in batches]:
                    result.result()
        finally:
            pool.shutdown(cancel_futures=True)  # after an error or an interruption


def _deal(job: Job, X: Any, todo: Mapping[Any, Part], finish: Callable[[Any, Selection], None]) -> None:
    """Groups dealt out to the processes by their cost, the dearest first, each to the one with the least so far.

    They exchange what they have found a few times, so that what report() keeps is never far behind.
    """
    ranks = job.ranks
    options = dataclasses.replace(
        job.options, threads=job.options.threads or max(1, cpu_count() // ranks.beside)
    )
    alone = dataclasses.replace(job, ranks=None, options=options)
    for hands in deal(
        {g: len(part.rows) * (len(part.rows) + part.count) for g, part in todo.items()}, ranks.size
    ):
        mine: dict[Any, Selection] = {}
        select_groups(alone, X, {g: todo[g] for g in hands[ranks.rank]}, mine.__setitem__)
        for found in ranks.share_all(mine):
            for g, got in found.items():
                finish(g, got)


def deal(costs: Mapping[Any, float], size: int, rounds: int = EXCHANGES) -> list[list[list[Any]]]:
    """For each of a few rounds what each of `size` processes does in it: keys, of about equal cost."""
    order = sorted(costs, key=lambda g: -costs[g])  # stable: the same on all processes
    total, out, spent = sum(costs.values()), [], np.inf
    for g in order:
        if len(out) < rounds and spent >= total / rounds:
            out.append([[] for _ in range(size)])
            loads, spent = np.zeros(size), 0.0
        rank = int(loads.argmin())
        out[-1][rank].append(g)
        loads[rank] += costs[g]
        spent += costs[g]
    return out


def _alike(job: Job, part: Part) -> bool:
    """Whether a group is small, and its similarities are those of the pool: it can be selected from with others."""
    spec, options = job.objective, job.options
    plain = isinstance(spec, FacilityLocation) and spec.weights is None and spec.represented is None
    by_rows = isinstance(
        job.kind, (Cosine, CosineShifted, CosineSquared)
    )  # no scale and no mean of the group's own
    usual = resolve(options.backend) == "numpy" and options.maximizer == "lazy" and options.memory is None
    alone = part.plain and job.outside is None and options.polish is None
    return len(part.rows) <= MOST and plain and by_rows and usual and alone


def _batches(job: Job, todo: Mapping[Any, Part], order: list) -> list[list]:
    """Groups one by one, largest first; small ones together, as many as fit the caches."""
    out: list[list] = []
    room = rows = 0
    for g in order:
        n = len(todo[g].rows)
        if not _alike(job, todo[g]):
            out.append([g])
        elif room >= 1 and rows >= n:
            out[-1].append(g)
            room, rows = room - 1, rows - n
        else:
            out.append([g])
            room, rows = PAIRS // (n * n) - 1, ROWS - n
    return out


def _select_alike(job: Job, groups: list[Part]) -> list[Selection]:
    """Selections in small groups, with indices of the groups: the features of all are prepared at once."""
    start = time.perf_counter()
    workers = Workers(1)
    x = job.x[np.concatenate([part.rows for part in groups])]
    geometry = find_backend("numpy").prepare(job.kind, x, workers=workers)
    backend = open_backend("numpy", geometry, threads=1, spare=0)
    sizes = [len(part.rows) for part in groups]
    parts = [
        (end - n, n, part.count)
        for end, n, part in zip(np.cumsum(sizes).tolist(), sizes, groups, strict=True)
    ]
    ready = time.perf_counter()
    with one_thread():
        found = backend.together(parts, job.options.tie_break == "low")
    phases = {"prepare": ready - start, "select": time.perf_counter() - ready}
    described = job.described()
    return [
        Selection(
            indices=got.indices,
            gains=got.gains,
            value=float(got.gains.sum()),
            base_value=0.0,
            evaluations=got.evaluations,
            sweeps=(n + 1) / (2 * n),
            backend="numpy",
            dtype=backend.dtype,
            seconds={name: seconds / len(groups) for name, seconds in phases.items()},
            **described,
        )
        for got, (_, n, _) in zip(found, parts, strict=True)
    ]


def _fits(job: Job, part: Part, share: int) -> bool:
    """Whether a group is selected from beside others: it is not large, and needs no more than its share of `memory`.

    ValueError where a group cannot do with the `memory` that is given.
    """
    rows, picks = part.rows, part.count + len(part.sets.given)
    if job.options.memory is None or isinstance(job.x, Matrix) or not job.planned:
        return len(rows) <= ALONE and job.options.memory is None
    like = dataclasses.replace(
        job, x=job.x[: len(rows)], objective=job.objective.take(rows)
    )  # as large as the group
    like = like.sized(part.count)
    like.budget(picks)
    like.options = dataclasses.replace(job.options, threads=1)
    return len(rows) <= ALONE and like.budget(picks).cost.least <= share


def job_of(job: Job, X: Any, rows: np.ndarray, options: Options) -> Job:
    """The checked arguments of one group."""
    spec = job.objective.take(rows)
    if not isinstance(job.x, Matrix):
        if options.backend != job.options.backend:  # the fallback, which may want the rows elsewhere
            return Job.check(job.x[rows], spec, job.kind, options).beside(job.outside, [])
        return dataclasses.replace(job, x=job.x[rows], objective=spec, options=options)
    if job.x.dense is not None:
        block = job.x.dense[rows][:, rows]
    else:
        block = X.tocsr()[rows][:, rows]
    return Job(as_similarity_matrix(block), job.kind, spec, options)


@contextmanager
def _bar(options: Options, total: int) -> Iterator[Callable[[], Any]]:
    if not options.progress:
        yield lambda: None
        return
    from tqdm.auto import tqdm

    with tqdm(total=total, desc="groups", unit="group", mininterval=0.5) as bar:
        yield bar.update
