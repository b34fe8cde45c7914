"""select, rank, plan: check the arguments, open a backend, run, return the result."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from smartgpu import reference
from smartgpu.arrays import as_count, as_rows
from smartgpu.backends import resolve
from smartgpu.checkpoint import Checkpoint, fingerprint
from smartgpu.constraints import Constraint
from smartgpu.job import Budget, Job
from smartgpu.maximize import Picker, maximize
from smartgpu.objectives import Objective
from smartgpu.options import Options, make_options
from smartgpu.planning import Plan, make_plan
from smartgpu.selection import Selection
from smartgpu.similarity import Matrix, Similarity
from smartgpu.version import __version__
from smartgpu.workers import one_thread


def select(
    X: Any,
    k: int | float | None = None,
    objective: str | Objective = "facility_location",
    similarity: str | Similarity = "cosine",
    backend: str = "auto",
    *,
    coverage: float | None = None,
    given: Any = None,
    exclude: Any = None,
    report: Callable[[int, float], None] | None = None,
    checkpoint: str | Path | None = None,
    plan: bool = False,
    **options: Any,
) -> Selection:
    """Choose k rows of a pool greedily: at each pick the row of the largest gain, the lowest index among equals.

    X           (n, d) embeddings of any float dtype and layout: ndarray, memmap, torch or CuPy tensor, pyarrow list
                column, HF dataset with an embedding column; with similarity="precomputed" the matrix itself
                (represented x candidates), dense or scipy CSR
    k           rows to choose: an int is a count, a float in (0, 1] a share; may be left out where coverage is given
    objective   "facility_location", "graph_cut", "log_det", or an objective such as
                0.3 * FacilityLocation() + 0.7 * Modular(scores)
    similarity  "cosine", "cosine_shifted", "cosine_squared", "dot", "rbf", "exp_euclidean", "max_minus_sqeuclidean",
                "precomputed", or an object such as Rbf(gamma=0.5)
    backend     "auto", "numpy", "triton" or "reference"
    coverage    stop at the smallest prefix with f(S) >= coverage f(V), a share in (0, 1]; monotone objectives only
    given       rows (numbers or a mask) that are already chosen: they count, but are not returned
    exclude     rows that may not be chosen; they are represented all the same
    report      called with (row, gain) after every pick
    checkpoint  a file (.npz) to which the picks so far are written every few seconds: the same call goes on from it,
                with the same result; a call with other data or options is refused, with what differs
    plan        print the plan of the call to stderr first: what it will allocate, and about how long it will take
    options     fields of smartgpu.Options: maximizer, tie_break, epsilon, seed, threads, memory, progress, precision

    Returns a Selection: indices (k,) int64 in pick order, gains (k,) float64, value f(S). Raises ValueError, TypeError
    naming the argument, before any work: also for a `memory` that cannot be met, with the least that can. Facility
    location costs O(n^2 d) per sweep and a handful of sweeps (lazy), O(n d) memory. (1 - 1/e) f(OPT) for monotone
    submodular objectives (Nemhauser, Wolsey, Fisher 1978).
    """
    if k is None and coverage is None:
        raise ValueError("k is missing: give the number of rows, a share of them, or coverage=")
    if coverage is not None:
        _check_share("coverage", coverage)
    how = make_options(backend, options)
    call = _check(X, k, objective, similarity, how, coverage, given, exclude)
    return _select(call, coverage, report, checkpoint, plan)


def rank(
    X: Any,
    objective: str | Objective = "facility_location",
    similarity: str | Similarity = "cosine",
    backend: str = "auto",
    *,
    given: Any = None,
    exclude: Any = None,
    report: Callable[[int, float], None] | None = None,
    checkpoint: str | Path | None = None,
    plan: bool = False,
    **options: Any,
) -> Selection:
    """Order the whole pool greedily: every prefix of the result is the greedy selection of that size.

    Arguments, result and errors as for select(); rows that are given or excluded are not ranked.
    """
    how = make_options(backend, options)
    call = _check(X, None, objective, similarity, how, None, given, exclude)
    return _select(call, None, report, checkpoint, plan)


def plan(
    X: Any,
    k: int | float | None = None,
    objective: str | Objective = "facility_location",
    similarity: str | Similarity = "cosine",
    backend: str = "auto",
    *,
    coverage: float | None = None,
    given: Any = None,
    exclude: Any = None,
    **options: Any,
) -> Plan:
    """What select() with these arguments will allocate, and about how long it will take; without k, of rank().

    The bytes follow from shapes, and are bounds that the selection keeps to. The time comes from a run on a few
    thousand evenly spaced rows, about half a second, scaled by the work: it is rough, within a factor of two or so.
    Raises as select() does, and ValueError where the backend is not "numpy". See smartgpu.Plan.
    """
    if coverage is not None:
        _check_share("coverage", coverage)
    how = make_options(backend, options)
    call = _check(X, k, objective, similarity, how, coverage, given, exclude)
    return make_plan(call.job, call.count, call.given, call.exclude, coverage)


@dataclass
class _Call:
    """The checked arguments of one selection."""

    job: Job
    count: int  # rows to choose, at most
    given: np.ndarray
    exclude: np.ndarray
    budget: Budget | None  # where what it allocates is known beforehand
    clock: _Clock


def _check(X, k, objective, similarity, options, coverage, given, exclude) -> _Call:
    clock = _Clock()
    with clock("prepare"):
        job = Job.check(X, objective, similarity, options)
        if coverage is not None:
            job.objective.need_monotone(job.x, job.kind)
        taken, closed = as_rows(given, job.n, "given"), as_rows(exclude, job.n, "exclude")
        both = np.intersect1d(taken, closed)
        if len(both):
            raise ValueError(f"row {both[0]} is in given and in exclude")
        room = job.n - len(taken) - len(closed)
        if room == 0:
            raise ValueError(f"nothing is left to choose: given and exclude hold all {job.n} rows")
        count = room if k is None else as_count(k, job.n)
        if count > room:
            raise ValueError(f"k must be at most {room}, the rows left by given and exclude, got {count}")
        budget = job.budget(count + len(taken), coverage is not None) if job.planned else None
    return _Call(job, count, taken, closed, budget, clock)


def _select(call: _Call, coverage, report, checkpoint, plan: bool) -> Selection:
    job, count, taken, closed, clock = call.job, call.count, call.given, call.exclude, call.clock
    options = job.options
    if plan:
        print(make_plan(job, count, taken, closed, coverage), file=sys.stderr, flush=True)
    if resolve(options.backend) == "reference":
        if checkpoint is not None:
            raise ValueError("checkpoint is not for backend 'reference'")
        return _by_reference(job, count, taken, closed, coverage, clock)
    with clock("prepare"):
        kept = None
        if checkpoint is not None:
            kept = _checkpoint(checkpoint, job, count, coverage, taken, closed)
        before, before_gains = kept.load() if kept else (np.empty(0, np.int64), np.empty(0))
        ground = job.ground(call.budget)
        compiled = ground.engine.compiling()
        state = job.objective.bind(ground)
        if len(taken):
            state.add(taken)
        base = state.value() if len(taken) else 0.0
        until = None if coverage is None else float(coverage) * state.total()
        state.add(before)
    with clock("select"), one_thread(), _progress(options, count, report) as tell:
        picker = Picker(Constraint(job.n, count, np.concatenate([taken, closed])), base, until, tell)
        for j, gain in zip(before, before_gains, strict=True):
            picker.take(int(j), float(gain))
        picker.checkpoint = kept
        try:
            maximize(state, picker, **options.search)
        finally:
            if kept is not None:
                kept.save(picker.run.indices, picker.run.gains, force=True)
    compiled = ground.engine.compiling() - compiled
    if compiled:
        clock.seconds["compile"] = compiled
    run = picker.run
    gains = np.array(run.gains, np.float64)
    return Selection(
        indices=np.array(run.indices, np.int64),
        gains=gains,
        value=base + float(gains.sum()),
        base_value=base,
        evaluations=run.evaluations,
        sweeps=sum(b.pairs / (b.r * b.n) for b in ground.opened),
        backend=resolve(options.backend),
        dtype="/".join(ground.dtypes) or "float64",
        exact=options.maximizer != "stochastic",
        seconds=clock.seconds,
        **job.described(),
    )


def _checkpoint(path, job: Job, k: int, coverage, given: np.ndarray, exclude: np.ndarray) -> Checkpoint:
    """The checkpoint of a call: its record names everything that the picks depend on."""
    if job.options.maximizer == "stochastic":
        raise ValueError("checkpoint is for exact maximizers: the samples of 'stochastic' are not kept")
    if Path(path).suffix != ".npz":
        raise ValueError(f"checkpoint must be a file name that ends in .npz, got {str(path)!r}")
    x = job.x
    parts = [x] if not isinstance(x, Matrix) else [x.dense] if x.dense is not None else list(x.csc)
    record = {
        "version": __version__,
        "data": [fingerprint(part) for part in parts],
        "k": k,
        "coverage": coverage,
        "given": fingerprint(given),
        "exclude": fingerprint(np.sort(exclude)),
        "objective": job.objective.describe(),
        "similarity": job.kind.describe(),
        "options": {
            "backend": resolve(job.options.backend),
            **{name: getattr(job.options, name) for name in ("maximizer", "tie_break", "precision")},
        },
    }
    return Checkpoint(path, record)


def _by_reference(job: Job, k: int, given, exclude, coverage: float | None, clock: _Clock) -> Selection:
    """The same call on the float64 oracle; the dense matrices of a large pool are refused."""
    if job.options.maximizer == "stochastic":
        raise ValueError("backend 'reference' is naive greedy: maximizer 'stochastic' is not for it")
    x = job.dense()
    with clock("select"):
        until = None
        if coverage is not None:
            until = coverage * reference.Problem(x, job.kind, job.objective).value(range(job.n))
        run = reference.greedy(
            x,
            k,
            job.objective,
            job.kind,
            given=given,
            closed=exclude,
            tie_break=job.options.tie_break,
            until=until,
        )
    return Selection(
        indices=run.indices,
        gains=run.gains,
        value=run.value,
        base_value=run.base_value,
        evaluations=job.n * len(run.indices),
        sweeps=1.0,
        backend="reference",
        dtype="float64",
        seconds=clock.seconds,
        **job.described(),
    )


def _check_share(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise TypeError(f"{name} must be a share in (0, 1], got {value!r}")
    if not 0 < value <= 1:
        raise ValueError(f"{name} must be a share in (0, 1], got {value}")


class _Clock:
    """Seconds by phase, added up."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[phase] = self.seconds.get(phase, 0.0) + time.perf_counter() - start


@contextmanager
def _progress(options: Options, k: int, report: Callable | None) -> Iterator[Callable | None]:
    """What is told of every pick: the caller's report, and a bar on stderr where asked for."""
    if not options.progress:
        yield report
        return
    from tqdm.auto import tqdm

    with tqdm(total=k, desc="picks", unit="row", mininterval=0.5) as bar:

        def tell(j: int, gain: float) -> None:
            bar.update()
            if bar.n % 64 == 1:
                bar.set_postfix(gain=f"{gain:.4g}", refresh=False)
            if report is not None:
                report(j, gain)

        yield tell
