"""The plan of a selection: what it will allocate, known before any work, and about how long it will take."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from smartgpu.backends import find_backend, resolve
from smartgpu.constraints import Constraint
from smartgpu.job import Budget, Job
from smartgpu.maximize import Picker, maximize
from smartgpu.objectives import Clustered, Ground, Objective, WeightedSum
from smartgpu.objectives.cost import Shape
from smartgpu.options import Options, bytes_text
from smartgpu.similarity import KINDS, Matrix
from smartgpu.workers import one_thread

SAMPLE = 4000  # represented rows of a set of their own that the probe takes at most
PROBE = 0.3  # seconds that the probe should take
PICK_WORK = 2e6  # operations worth the Python of one pick
LONG = 2 * 3600.0  # seconds from which partition greedy is named
EAGER_PICKS = 6  # of the probe, where every pick costs the same


@dataclass(frozen=True)
class Plan:
    """What a selection holds and about how long it takes.

    parts    ((what, bytes), ...): arrays that stay, and last the most that comes and goes at one time
    least    bytes that must be there, the sum of the parts: the smallest `memory` that is accepted
    peak     bytes that it takes at most with this budget: where there is room, surviving pairs are stored
    memory   the budget in bytes
    place    where they are: "on the device" for backend "triton", else ""
    sweeps   expected similarity evaluations / (n x represented rows)
    seconds  expected, roughly: from a run on a few thousand rows of the pool on this machine just now, scaled by the
             work; within a factor of two where the pool is alike throughout and nothing else runs
    """

    n: int
    k: int
    objective: str
    similarity: str
    backend: str
    place: str
    parts: tuple[tuple[str, int], ...]
    least: int
    peak: int
    memory: int
    sweeps: float
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        out = dataclasses.asdict(self)
        out["parts"] = [{"part": name, "bytes": size} for name, size in self.parts]
        return out

    def __str__(self) -> str:
        lines = [
            f"{self.k} of {self.n} rows by {self.objective} on {self.similarity} (backend {self.backend})"
            + (f", bytes {self.place}" if self.place else "")
        ]
        table = [(name, bytes_text(size)) for name, size in self.parts]
        table.append(("must be there", bytes_text(self.least, up=True)))
        table.append((f"at most, with memory={bytes_text(self.memory)}", bytes_text(self.peak, up=True)))
        left, right = (max(len(row[i]) for row in table) for i in (0, 1))
        lines += [f"  {name:<{left}}  {size:>{right}}" for name, size in table]
        sweeps = f"{self.sweeps:.2g} sweeps over all pairs" if self.sweeps else "no sweep over all pairs"
        lines.append(f"  about {seconds_text(self.seconds)}, {sweeps}")
        approximable = self.objective == "facility_location" and KINDS[self.similarity].by_row
        if self.sweeps and self.seconds > LONG and approximable:
            lines.append("  select_partitioned(), or --partition, takes a share of that, and is not exact")
        return "\n".join(lines)


def seconds_text(seconds: float) -> str:
    if seconds < 0.95:
        return f"{seconds:.1g} s"
    if seconds < 99.5:
        return f"{seconds:.2g} s"
    if seconds < 99.5 * 60:
        return f"{seconds / 60:.2g} minutes"
    return f"{seconds / 3600:.2g} hours"


def make_plan(job: Job, k: int, given: np.ndarray, exclude: np.ndarray, coverage: float | None) -> Plan:
    """The plan of a checked call. Raises ValueError as the call would where the memory is too small."""
    if not job.planned:
        raise ValueError(f"plan is for backends 'numpy' and 'triton', got {resolve(job.options.backend)!r}")
    budget = job.budget(k + len(given), coverage is not None)
    with job.failures(budget):
        sweeps, seconds = _estimate(job, budget, k, given, exclude, coverage)
    cost = budget.cost
    parts = [(part.name, part.bytes) for part in cost.parts]
    parts.append(("scratch", cost.scratch))
    return Plan(
        n=job.n,
        k=k,
        objective=job.objective.describe()["name"],
        similarity=job.kind.name,
        backend=resolve(job.options.backend),
        place=budget.shape.footprint.place,
        parts=tuple(parts),
        least=cost.least,
        peak=min(budget.memory, cost.least + cost.extra),
        memory=budget.memory,
        sweeps=sweeps,
        seconds=seconds,
    )


def _estimate(job: Job, budget: Budget, k: int, given, exclude, coverage) -> tuple[float, float]:
    """(sweeps, seconds) expected: those of a sample of evenly spaced rows, scaled."""
    n, (least, most) = job.n, budget.shape.footprint.probe
    first = _Probe(job, budget, min(n, least), k, given, exclude, coverage)
    if first.rows == n:
        return first.scaled(job, budget.shape, k)
    fits = int(first.rows * np.sqrt(PROBE / max(first.seconds, 1e-3)))
    probe = _Probe(job, budget, min(n, most, max(fits, least)), k, given, exclude, coverage)
    return probe.scaled(job, budget.shape, k)


class _Probe:
    """The same call on `rows` evenly spaced rows: as large a share of them chosen, and room for as large a share of
    the pairs, so that it turns from dense to sparse work where the whole will."""

    def __init__(self, job: Job, budget: Budget, rows: int, k: int, given, exclude, coverage: float | None):
        n = job.n
        self.rows = rows
        at = _evenly(rows, n)
        x, objective = job.x, job.objective
        if rows < n:
            x, represented = _thin_pool(job.x, at)
            objective = _thin(job.objective, at, represented)
        taken, closed = (np.flatnonzero(np.isin(at, some)) for some in (given, exclude))
        room = rows - len(taken) - len(closed)
        self.k = max(1, min(room, round(k * rows / n)))
        if room < 1:
            taken, closed = np.empty(0, np.int64), np.empty(0, np.int64)
        self.r = _rows(objective, x.shape[0] if isinstance(x, Matrix) else rows)
        name = resolve(job.options.backend)
        sizes = find_backend(name).footprint(x, job.kind, **job.how())
        self.shape = Shape.of(x, job.kind, self.k + len(taken), sizes, coverage is not None)
        ground = Ground(
            x,
            job.kind,
            name,
            **{**job.how(), "progress": False},
            memory=None,
            picks=self.shape.k,
            like=(_rows(job.objective, budget.shape.r), n),
            spare=_spare(budget, self.shape, _rows(job.objective, budget.shape.r), self.r),
        )
        compiled, start = ground.engine.compiling(), time.perf_counter()
        state = objective.bind(ground)
        if len(taken):
            state.add(taken)
        base = state.value() if len(taken) else 0.0
        until = None if coverage is None else float(coverage) * state.total()
        barred = np.concatenate([taken, closed])
        with one_thread():
            picker = Picker(Constraint(rows, self.k, barred), base, until, None)
            if job.options.maximizer != "lazy":
                picker.report = _stop_after(EAGER_PICKS)
            self.stopped = _run(state, picker, job.options)
        self.seconds = time.perf_counter() - start - (ground.engine.compiling() - compiled)
        self.picks = max(len(picker.run.indices), 1)
        self.pairs = sum(b.pairs for b in ground.opened)
        self.sweeps = sum(b.pairs / (b.r * b.n) for b in ground.opened)
        self.rate = self._rate(ground) if rows < n and self.pairs else 0.0
        self.work = objective.cost(self.shape).work

    def _rate(self, ground: Ground) -> float:
        """Seconds for a pair in a sweep."""
        backend = ground.opened[0]
        before, start = backend.pairs, time.perf_counter()
        backend.excess(backend.new_level())
        return (time.perf_counter() - start) / (backend.pairs - before)

    def scaled(self, job: Job, shape: Shape, k: int) -> tuple[float, float]:
        """(sweeps, seconds) of the whole: dense work by the pairs, the rest by what every pick and every row costs."""
        share = shape.n / self.rows
        picks = k if self.picks >= self.k or self.stopped else max(1, round(self.picks * share))
        sweeps = self.sweeps
        if (
            job.options.maximizer == "naive"
        ):  # sweeps a pick; samples of "stochastic" are as large here as there
            sweeps *= picks / self.picks
        elif job.options.maximizer == "stochastic":
            sweeps *= picks / (self.picks * share)
        dense = min(self.pairs * self.rate, 0.95 * self.seconds)
        pairs = share * _rows(job.objective, shape.r) / self.r * sweeps / max(self.sweeps, 1e-9)
        work = job.objective.cost(dataclasses.replace(shape, k=picks)).work
        ratio = (picks * PICK_WORK + work) / (self.picks * PICK_WORK + self.work)
        return sweeps, dense * pairs + (self.seconds - dense) * ratio


class _Enough(Exception):
    """The probe has made picks enough."""


def _stop_after(picks: int) -> Callable[[int, float], None]:
    left = iter(range(picks - 1))

    def report(j: int, gain: float) -> None:
        if next(left, None) is None:
            raise _Enough

    return report


def _run(state: Any, picker: Picker, options: Options) -> bool:
    """Make the picks. True where they were stopped before their end."""
    with contextlib.suppress(_Enough):
        maximize(state, picker, **options.search)
        return False
    return True


def _rows(objective: Objective, r: int) -> int:
    """Represented rows: those of the first term that names some, else the pool's."""
    terms = [term for _, term in objective.terms] if isinstance(objective, WeightedSum) else [objective]
    named = [len(t.represented) for t in terms if getattr(t, "represented", None) is not None]
    return named[0] if named else r


def _spare(budget: Budget, shape: Shape, whole_r: int, r: int) -> int:
    """Room in which a sample of r represented rows stores the share of its pairs for which the whole has room."""
    n = budget.shape.n
    if budget.spare == 0:
        return 0
    share = min(1.0, budget.shape.footprint.storable(budget.spare, n, whole_r) / (n * whole_r))
    sizes = shape.footprint
    return int(sizes.columns(r, sizes.most_batch) + sizes.stored(share * shape.n * r, shape.n, r))


def _evenly(count: int, of: int) -> np.ndarray:
    return np.unique(np.linspace(0, of - 1, count).astype(np.int64))


def _thin_pool(x: np.ndarray | Matrix, at: np.ndarray) -> tuple[np.ndarray | Matrix, np.ndarray]:
    """The pool of these candidates, and its represented rows: of a matrix that is not square, as large a share."""
    if not isinstance(x, Matrix):
        return np.ascontiguousarray(x[at]) if isinstance(x, np.ndarray) else x[at], at
    r, n = x.shape
    rows = at if r == n else _evenly(max(1, r * len(at) // n), r)
    return x.cut(rows, at), rows


def _thin(objective: Objective, at: np.ndarray, rows: np.ndarray) -> Objective:
    """The objective for candidates `at` and represented rows `rows`; of a represented set of its own, evenly spaced."""
    if isinstance(objective, WeightedSum):
        return WeightedSum(tuple((weight, _thin(term, at, rows)) for weight, term in objective.terms))
    if not objective.similar or isinstance(objective, Clustered):
        return objective.take(at)
    changed: dict[str, Any] = {}
    represented, weights = (getattr(objective, name, None) for name in ("represented", "weights"))
    if represented is not None:
        rows = _evenly(min(len(represented), SAMPLE), len(represented))
        changed["represented"] = represented[rows]
    if weights is not None:
        changed["weights"] = weights[rows] if weights[rows].any() else np.ones(len(rows))
    return dataclasses.replace(objective, **changed)
