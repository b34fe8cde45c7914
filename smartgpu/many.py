"""select_many: one selection in each group of rows, all independent of each other."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np

from smartgpu.arrays import as_count, as_similarity_matrix
from smartgpu.backends import find_backend, open_backend, resolve
from smartgpu.backends.whole import MOST
from smartgpu.job import Job
from smartgpu.labels import Label, Labels, as_labels, listed
from smartgpu.objectives import FacilityLocation, Objective
from smartgpu.options import Options, make_options
from smartgpu.selecting import select_checked
from smartgpu.selection import Selection
from smartgpu.similarity import Cosine, CosineShifted, CosineSquared, Matrix, Similarity
from smartgpu.workers import Workers, cpu_count, default_memory, one_thread

ALONE = 1 << 14  # rows from which a group has all threads: there is work enough in its blocks
PAIRS, ROWS = 1 << 21, 1 << 12  # of all groups in a batch of small ones


def select_many(
    X: Any,
    groups: Any,
    budgets: Mapping[Label, int | float] | int | float,
    objective: str | Objective = "facility_location",
    similarity: str | Similarity = "cosine",
    backend: str = "auto",
    *,
    threads: int | None = None,
    report: Callable[[Label, Selection], None] | None = None,
    done: Mapping[Label, Selection] | None = None,
    **options: Any,
) -> dict[Label, Selection]:
    """Choose rows inside every group, each group a pool of its own.

    X           (n, d) embeddings, as for select(); with similarity="precomputed" the (n, n) matrix
    groups      n labels, one per row: all ints or all strings, in any order
    budgets     {label: rows}, for every label that occurs and no other; or one number for all. As k of select(), a
                float in (0, 1] is a share of the group
    objective   as for select(); per-row arrays (weights, scores) have n entries, and each group gets its own
    threads     of the CPU: many small groups at once with one thread each, the largest one after the other with all
    report      called with (label, selection) when a group is done, from one thread at a time
    done        selections that are there already, as report() got them: their groups are not selected again
    options     fields of smartgpu.Options, as for select(), but for checkpoint and plan

    Returns {label: Selection} in the order in which labels first occur. The indices are rows of X; they, the gains and
    f(S) are, bit for bit, those of select(X[rows], budget) with the group's rows ascending, whatever the order, the
    threads and what is done already. Raises, before any work, ValueError for budgets that do not fit the groups
    (naming all that do not), and as select() does.
    """
    how = make_options({"backend": backend, **options, "threads": threads})
    job = Job.check(X, objective, similarity, how)
    check_groups(job)
    labels = as_labels(groups, job.n, "groups")
    counts = as_budgets(budgets, labels)
    rows = labels.rows()
    place = {name: g for g, name in enumerate(labels.names)}
    beyond = [name for name in done or () if name not in place]
    if beyond:
        raise ValueError(f"done has selections for {listed(beyond)}, which no row has")
    kept = {
        name: check_done(selection, name, rows[place[name]], counts[place[name]], job)
        for name, selection in (done or {}).items()
    }
    todo = [g for g in range(len(rows)) if labels.names[g] not in kept]
    found: dict[Label, Selection] = {}

    def finish(g: int, selection: Selection) -> None:
        found[labels.names[g]] = selection
        if report is not None:
            report(labels.names[g], selection)

    select_groups(job, X, {g: (rows[g], counts[g]) for g in todo}, finish)
    return {name: kept[name] if name in kept else found[name] for name in labels.names}


def as_budgets(budgets: Any, labels: Labels) -> list[int]:
    """Rows to choose for each label, in the order of labels.names. ValueError names all budgets that do not fit."""
    sizes = labels.sizes()
    if not isinstance(budgets, Mapping):
        budgets = dict.fromkeys(labels.names, budgets)
    wrong = []
    lacking = [name for name in labels.names if name not in budgets]
    if lacking:
        wrong.append(f"no budget for {listed(lacking)}")
    beyond = [name for name in budgets if name not in set(labels.names)]
    if beyond:
        wrong.append(f"budgets for {listed(beyond)}, which no row has")
    counts = []
    for name, size in zip(labels.names, sizes, strict=True):
        if name in budgets:
            try:
                counts.append(as_count(budgets[name], int(size), f"the budget of {name!r}"))
            except ValueError as error:
                wrong.append(str(error))
    if wrong:
        more = f"; and {len(wrong) - 8} more" if len(wrong) > 8 else ""
        raise ValueError(f"budgets do not fit the groups: {'; '.join(wrong[:8])}{more}")
    return counts


def check_groups(job: Job) -> None:
    """ValueError for given similarities that cannot be cut into groups, and for options of a single selection."""
    if job.options.checkpoint is not None:
        raise ValueError(
            "checkpoint is for one selection: keep what report= is given, and hand it back as done="
        )
    if job.options.plan:
        raise ValueError("plan is for one selection: see smartgpu.plan for a group")
    if isinstance(job.x, Matrix) and job.x.shape[0] != job.x.shape[1]:
        raise ValueError(f"a precomputed similarity of groups must be square, rows x rows, got {job.x.shape}")


def check_done(selection: Selection, label: Any, rows: np.ndarray, count: int, job: Job) -> Selection:
    """A finished selection of `count` of these rows, cut to that many. ValueError where it is of something else."""
    same = selection.n == job.n and selection.similarity == job.kind.describe() and selection.k >= count
    if job.objective.counted:  # the first rows of more are others
        same = same and selection.k == count
    if not (same and np.isin(selection.indices, rows, assume_unique=True).all()):
        raise ValueError(
            f"done[{label!r}] must be a selection of {count} of the {len(rows)} rows of that group, got {selection!r}"
        )
    return selection.prefix(count) if count < selection.k else selection


def select_groups(
    job: Job, X: Any, todo: Mapping[Any, tuple[np.ndarray, int]], finish: Callable[[Any, Selection], None]
) -> None:
    """Select in every group of todo {key: (rows, budget)}; finish(key, selection) is called for one at a time.

    X is the pool as the user gave it. The groups' order and the threads change no result.
    """
    threads = job.options.threads or cpu_count()
    order = sorted(todo, key=lambda g: -len(todo[g][0]))  # largest first
    quiet, described = dataclasses.replace(job.options, progress=False), job.options.to_dict()
    share = (job.options.memory or default_memory()) // threads
    lock = threading.Lock()

    def work(some: list, options: Options, share: int | None) -> None:
        if len(some) > 1 or _alike(job, *todo[some[0]]):
            results = _select_alike(job, [todo[g] for g in some])
        else:
            rows, count = todo[some[0]]
            results = [select_checked(lambda how: _part(job, X, rows, how), count, options, share)]
        with lock:
            for g, got in zip(some, results, strict=True):
                rows = todo[g][0]
                got = dataclasses.replace(got, indices=rows[got.indices], n=job.n, options=described)
                finish(g, got)
                tick()

    beside = {g for g in order if _fits(job, *todo[g], share)}
    if resolve(job.options.backend) != "numpy":
        beside = set()
    with _bar(job.options, len(order)) as tick:
        for g in order:
            if g not in beside:
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


def _alike(job: Job, rows: np.ndarray, count: int) -> bool:
    """Whether a group is small, and its similarities are those of the pool: it can be selected from with others."""
    spec, options = job.objective, job.options
    plain = isinstance(spec, FacilityLocation) and spec.weights is None and spec.represented is None
    by_rows = isinstance(
        job.kind, (Cosine, CosineShifted, CosineSquared)
    )  # no scale and no mean of the group's own
    usual = resolve(options.backend) == "numpy" and options.maximizer == "lazy" and options.memory is None
    return len(rows) <= MOST and plain and by_rows and usual


def _batches(job: Job, todo: Mapping[Any, tuple[np.ndarray, int]], order: list) -> list[list]:
    """Groups one by one, largest first; small ones together, as many as fit the caches."""
    out: list[list] = []
    room = rows = 0
    for g in order:
        n = len(todo[g][0])
        if not _alike(job, *todo[g]):
            out.append([g])
        elif room >= 1 and rows >= n:
            out[-1].append(g)
            room, rows = room - 1, rows - n
        else:
            out.append([g])
            room, rows = PAIRS // (n * n) - 1, ROWS - n
    return out


def _select_alike(job: Job, groups: list[tuple[np.ndarray, int]]) -> list[Selection]:
    """Selections in small groups, with indices of the groups: the features of all are prepared at once."""
    start = time.perf_counter()
    workers = Workers(1)
    x = job.x[np.concatenate([rows for rows, _ in groups])]
    geometry = find_backend("numpy").prepare(job.kind, x, workers=workers)
    backend = open_backend("numpy", geometry, threads=1, spare=0)
    ends = np.cumsum([len(rows) for rows, _ in groups]).tolist()
    parts = [(end - len(rows), len(rows), count) for end, (rows, count) in zip(ends, groups, strict=True)]
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


def _fits(job: Job, rows: np.ndarray, count: int, share: int) -> bool:
    """Whether a group is selected from beside others: it is not large, and needs no more than its share of `memory`.

    ValueError where a group cannot do with the `memory` that is given.
    """
    if job.options.memory is None or isinstance(job.x, Matrix) or not job.planned:
        return len(rows) <= ALONE and job.options.memory is None
    like = Job(job.x[: len(rows)], job.kind, job.objective.take(rows), job.options)  # as large as the group
    like = like.sized(count)
    like.budget(count)
    like.options = dataclasses.replace(job.options, threads=1)
    return len(rows) <= ALONE and like.budget(count).cost.least <= share


def _part(job: Job, X: Any, rows: np.ndarray, options: Options) -> Job:
    """The checked arguments of one group."""
    spec = job.objective.take(rows)
    if not isinstance(job.x, Matrix):
        if options.backend != job.options.backend:  # the fallback, which may want the rows elsewhere
            return Job.check(job.x[rows], spec, job.kind, options)
        return Job(job.x[rows], job.kind, spec, options)
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
