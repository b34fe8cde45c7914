"""evaluate and assign: what a set of rows is worth, and what each of its rows stands for."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any

import numpy as np

from smartgpu import reference
from smartgpu.arrays import as_rows
from smartgpu.backends import resolve
from smartgpu.job import Job
from smartgpu.objectives import FacilityLocation, Objective
from smartgpu.options import Options, make_options
from smartgpu.selection import Assignment, Selection
from smartgpu.similarity import Similarity


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
    job = Job.check(X, objective, similarity, make_options({"backend": backend, **options}))
    rows = as_rows(indices, job.n, "indices")
    if not len(rows):
        raise ValueError("indices is empty: there is nothing to evaluate")
    job = job.sized(len(rows))
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


def _evaluate_by_reference(job: Job, rows: np.ndarray) -> Evaluation:
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
    job = Job.check(X, "facility_location", selection._spec, Options())
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
