"""select, rank, evaluate: check the arguments, open a backend, run, return the result."""

from __future__ import annotations

import contextlib
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from smartgpu import reference
from smartgpu.arrays import as_count, as_matrix, as_rows, as_similarity_matrix
from smartgpu.backends import resolve
from smartgpu.checkpoint import Checkpoint, fingerprint
from smartgpu.constraints import Constraint
from smartgpu.maximize import Order, Picker, lazy, naive, stochastic
from smartgpu.objectives import FacilityLocation, Ground, Objective, as_objective
from smartgpu.options import Options, make_options
from smartgpu.selection import Assignment, Selection
from smartgpu.similarity import Matrix, Precomputed, Similarity, as_similarity
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
    backend     "auto", "numpy" or "reference"
    coverage    stop at the smallest prefix with f(S) >= coverage f(V), a share in (0, 1]; monotone objectives only
    given       rows (numbers or a mask) that are already chosen: they count, but are not returned
    exclude     rows that may not be chosen; they are represented all the same
    report      called with (row, gain) after every pick
    checkpoint  a file (.npz) to which the picks so far are written every few seconds: the same call goes on from it,
                with the same result; a call with other data or options is refused, with what differs
    options     fields of smartgpu.Options: maximizer, tie_break, epsilon, seed, threads, memory, progress

    Returns a Selection: indices (k,) int64 in pick order, gains (k,) float64, value f(S). Raises ValueError, TypeError
    naming the argument, before any work. Facility location costs O(n^2 d) per sweep and a handful of sweeps (lazy),
    O(n d) memory. (1 - 1/e) f(OPT) for monotone submodular objectives (Nemhauser, Wolsey, Fisher 1978).
    """
    if k is None and coverage is None:
        raise ValueError("k is missing: give the number of rows, a share of them, or coverage=")
    if coverage is not None:
        _check_share("coverage", coverage)
    how = make_options(backend, options)
    return _select(X, k, objective, similarity, how, coverage, given, exclude, report, checkpoint)


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
    **options: Any,
) -> Selection:
    """Order the whole pool greedily: every prefix of the result is the greedy selection of that size.

    Arguments, result and errors as for select(); rows that are given or excluded are not ranked.
    """
    how = make_options(backend, options)
    return _select(X, None, objective, similarity, how, None, given, exclude, report, checkpoint)


def _select(X, k, objective, similarity, options, coverage, given, exclude, report, checkpoint) -> Selection:
    clock = _Clock()
    with clock("prepare"):
        job = _Job.check(X, objective, similarity, options)
        if coverage is not None:
            job.objective.need_monotone(job.x, job.kind)
        taken, closed = as_rows(given, job.n, "given"), as_rows(exclude, job.n, "exclude")
        both = np.intersect1d(taken, closed)
        if len(both):
            raise ValueError(f"row {both[0]} is in given and in exclude")
        barred = np.concatenate([taken, closed])
        room = job.n - len(np.unique(barred))
        if room == 0:
            raise ValueError(f"nothing is left to choose: given and exclude hold all {job.n} rows")
        count = room if k is None else as_count(k, job.n)
        if count > room:
            raise ValueError(f"k must be at most {room}, the rows left by given and exclude, got {count}")
    if resolve(options.backend) == "reference":
        if checkpoint is not None:
            raise ValueError("checkpoint is not for backend 'reference'")
        return _by_reference(job, count, taken, closed, coverage, clock)
    with clock("prepare"):
        kept = None
        if checkpoint is not None:
            kept = _checkpoint(checkpoint, job, count, coverage, taken, closed)
        before, before_gains = kept.load() if kept else (np.empty(0, np.int64), np.empty(0))
        ground = job.ground()
        state = job.objective.bind(ground)
        if len(taken):
            state.add(taken)
        base = state.value() if len(taken) else 0.0
        until = None if coverage is None else float(coverage) * state.total()
        state.add(before)
    with clock("select"), one_thread(), _progress(options, count, report) as tell:
        picker = Picker(Constraint(job.n, count, barred), base, until, tell)
        for j, gain in zip(before, before_gains, strict=True):
            picker.take(int(j), float(gain))
        picker.checkpoint = kept
        order = Order(options.tie_break)
        try:
            if picker.done:
                pass
            elif options.maximizer == "lazy":
                lazy(state, picker, order)
            elif options.maximizer == "naive":
                naive(state, picker, order)
            else:
                stochastic(state, picker, order, epsilon=options.epsilon, seed=options.seed)
        finally:
            if kept is not None:
                kept.save(picker.run.indices, picker.run.gains, force=True)
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
        dtype="/".join(sorted({b.dtype for b in ground.opened})) or "float64",
        exact=options.maximizer != "stochastic",
        seconds=clock.seconds,
        **job.described(),
    )


@dataclass(frozen=True)
class Evaluation:
    """How good a set of rows is, wherever it came from.

    value       f(S)
    total       f(V), what choosing every row would give; None for objectives that are not monotone
    coverage    value / total
    percentiles {1: ..., 5: ..., 10: ..., 25: ..., 50: ...}: how similar the least covered points are to their pick
    bound       upper bound on the value of any set of as many rows: f(S) + the k largest gains left (monotone only)
    """

    k: int
    n: int
    value: float
    total: float | None
    coverage: float | None
    percentiles: dict[int, float] | None
    bound: float | None

    def to_dict(self) -> dict[str, Any]:
        out = dict(self.__dict__)
        if self.percentiles is not None:
            out["percentiles"] = {str(p): v for p, v in self.percentiles.items()}
        return out

    def __str__(self) -> str:
        lines = [f"{self.k} of {self.n} rows", f"  f(S)      {self.value:.6g}"]
        if self.coverage is not None:
            lines.append(f"  coverage  {self.coverage:.2%} of f(V) = {self.total:.6g}")
        if self.bound is not None:
            share = (
                f" (at least {self.value / self.bound:.2%} of the best possible)" if self.bound > 0 else ""
            )
            lines.append(f"  bound     no {self.k} rows reach more than {self.bound:.6g}{share}")
        if self.percentiles:
            worst = ", ".join(f"{p} %: {v:.3f}" for p, v in self.percentiles.items())
            lines.append(f"  least covered points, similarity to their nearest chosen row: {worst}")
        return "\n".join(lines)


def evaluate(
    X: Any,
    indices: Any,
    objective: str | Objective = "facility_location",
    similarity: str | Similarity = "cosine",
    backend: str = "auto",
    **options: Any,
) -> Evaluation:
    """Score any set of rows of the pool X, from any tool: value, coverage, worst-covered points, upper bound.

    indices (m,) row numbers or a mask (n,). Percentiles are those of facility location's levels (None for others).
    The bound is f(S) + sum of the |S| largest gains left (monotone submodular objectives): no set of |S| rows reaches
    more. One sweep. Raises as select() does.
    """
    job = _Job.check(X, objective, similarity, make_options(backend, options))
    rows = as_rows(indices, job.n, "indices")
    if not len(rows):
        raise ValueError("indices is empty: there is nothing to evaluate")
    if resolve(job.options.backend) == "reference":
        return _evaluate_by_reference(job, rows)
    ground = job.ground()
    state = job.objective.bind(ground)
    state.add(rows)
    value = state.value()
    try:
        job.objective.need_monotone(job.x, job.kind)
        total = state.total()
    except ValueError:
        total = None
    bound = None
    if total is not None:
        gains = np.sort(np.maximum(np.delete(state.gains(), rows), 0))[::-1]
        bound = min(value + float(gains[: len(rows)].sum()), max(total, value))
    percentiles = None
    if isinstance(job.objective, FacilityLocation):
        levels = np.percentile(state.levels(), PERCENTILES)
        percentiles = {p: float(v) for p, v in zip(PERCENTILES, levels, strict=True)}
    share = value / total if total else None
    return Evaluation(len(rows), job.n, value, total, share, percentiles, bound)


def _evaluate_by_reference(job: _Job, rows: np.ndarray) -> Evaluation:
    problem = reference.Problem(job.dense(), job.kind, job.objective)
    value, total, bound, percentiles = problem.value(rows), None, None, None
    with contextlib.suppress(ValueError):
        job.objective.need_monotone(job.x, job.kind)
        total = problem.value(range(job.n))
        gains = np.sort(np.maximum(np.delete(problem.gains(rows), rows), 0))[::-1]
        bound = min(value + float(gains[: len(rows)].sum()), max(total, value))
    if isinstance(job.objective, FacilityLocation):
        levels = np.percentile(np.maximum(problem.s[:, rows].max(axis=1), 0), PERCENTILES)
        percentiles = {p: float(v) for p, v in zip(PERCENTILES, levels, strict=True)}
    return Evaluation(len(rows), job.n, value, total, value / total if total else None, percentiles, bound)


PERCENTILES = (1, 5, 10, 25, 50)


def assign(X: Any, selection: Selection) -> Assignment:
    """What Selection.assign does."""
    job = _Job.check(X, "facility_location", selection._spec, Options())
    if job.n != selection.n:
        raise ValueError(f"X must be the pool that was selected from, {selection.n} rows, got {job.n}")
    backend = job.ground().backend()
    order = np.argsort(selection.indices)  # ascending: ties go to the lowest row
    where, q = backend.nearest(selection.indices[order])
    position = order[where]
    if backend.r == job.n:  # a chosen row that ties with another stands for itself
        own = backend.diagonal()[selection.indices]
        stay = own >= q[selection.indices]
        position[selection.indices[stay]] = np.flatnonzero(stay)
    weight = np.bincount(position, minlength=selection.k)
    return Assignment(selection.indices[position], position, q * backend.quantum, weight)


@dataclass
class _Job:
    """Checked arguments of one call."""

    x: np.ndarray | Matrix
    kind: Similarity
    objective: Objective
    options: Options

    @classmethod
    def check(cls, X: Any, objective: Any, similarity: Any, options: Options) -> _Job:
        kind, spec = as_similarity(similarity), as_objective(objective)
        x = as_similarity_matrix(X) if isinstance(kind, Precomputed) else as_matrix(X)
        spec.check(x, kind)
        return cls(x, kind, spec, options)

    @property
    def n(self) -> int:
        return self.x.shape[1] if isinstance(self.x, Matrix) else len(self.x)

    def dense(self) -> np.ndarray:
        """The pool for the reference; ValueError where its n x n matrices would be too large."""
        if self.n > 20_000:
            raise ValueError(f"backend 'reference' holds n x n matrices in float64: n <= 20000, got {self.n}")
        return self.x.to_dense() if isinstance(self.x, Matrix) else self.x

    def ground(self) -> Ground:
        how = {name: getattr(self.options, name) for name in ("threads", "memory", "progress")}
        return Ground(self.x, self.kind, resolve(self.options.backend), **how)

    def described(self) -> dict[str, Any]:
        return {
            "n": self.n,
            "objective": self.objective.describe(),
            "similarity": self.kind.describe(),
            "options": self.options.to_dict(),
            "versions": versions(),
            "_spec": self.kind,
        }


def _checkpoint(path, job: _Job, k: int, coverage, given: np.ndarray, exclude: np.ndarray) -> Checkpoint:
    """The checkpoint of a call: its record names everything that the picks depend on."""
    if job.options.maximizer == "stochastic":
        raise ValueError("checkpoint is for exact maximizers: the samples of 'stochastic' are not kept")
    if Path(path).suffix != ".npz":
        raise ValueError(f"checkpoint must be a file name that ends in .npz, got {str(path)!r}")
    x = job.x
    parts = [x] if isinstance(x, np.ndarray) else [x.dense] if x.dense is not None else list(x.csc)
    record = {
        "version": __version__,
        "data": [fingerprint(part) for part in parts],
        "k": k,
        "coverage": coverage,
        "given": fingerprint(given),
        "exclude": fingerprint(np.sort(exclude)),
        "objective": job.objective.describe(),
        "similarity": job.kind.describe(),
        "options": {name: getattr(job.options, name) for name in ("backend", "maximizer", "tie_break")},
    }
    return Checkpoint(path, record)


def versions() -> dict[str, str]:
    return {"smartgpu": __version__, "python": platform.python_version(), "numpy": np.__version__}


def _by_reference(job: _Job, k: int, given, exclude, coverage: float | None, clock: _Clock) -> Selection:
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
