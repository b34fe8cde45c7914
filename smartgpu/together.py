"""Many groups at once on a GPU: what csrc/batched_greedy.cu can select from, and what it selects."""

from __future__ import annotations

import dataclasses
import itertools
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from smartgpu.backends import QUANTUM, resolve
from smartgpu.job import Job
from smartgpu.objectives import FacilityLocation, GraphCut, LogDet, Modular, Objective
from smartgpu.objectives.facility_location import whole_weights
from smartgpu.objectives.weighted_sum import WeightedSum
from smartgpu.options import bytes_text
from smartgpu.parts import Part
from smartgpu.selection import Selection
from smartgpu.similarity import Cosine, CosineShifted, CosineSquared, Matrix

log = logging.getLogger("smartgpu")
LEAST = 2  # groups: one has the whole GPU for itself
LEAST_LAM = 1e-8  # of log-determinant: with less, rows may be dependent, which its own state explains


@dataclass(frozen=True)
class Form:
    """An objective of one group as a kernel knows it: a gain is before_j + weight g_j + after_j, g that of `core`."""

    core: FacilityLocation | GraphCut | LogDet
    weight: float = 1.0
    before: np.ndarray | None = None
    after: np.ndarray | None = None

    @classmethod
    def of(cls, spec: Objective) -> Form | None:
        """None where it is none of these, or its terms would be added in another order than WeightedSumState does."""
        terms = [(c, t) for c, t in spec.terms if c > 0] if isinstance(spec, WeightedSum) else [(1.0, spec)]
        at = [u for u, (_, term) in enumerate(terms) if type(term) is not Modular]
        if len(at) != 1 or len(terms) - at[0] > 2:
            return None
        weight, core = terms[at[0]]
        known = (
            type(core) in (FacilityLocation, GraphCut, LogDet) and getattr(core, "represented", None) is None
        )
        if not known or (type(core) is LogDet and core.lam < LEAST_LAM):
            return None
        before, after = (_sum(some) for some in (terms[: at[0]], terms[at[0] + 1 :]))
        return cls(core, weight, before, after)


def _sum(terms: list[tuple[float, Modular]]) -> np.ndarray | None:
    if not terms:
        return None
    out = np.zeros(len(terms[0][1].scores))
    for weight, term in terms:
        out += weight * term.scores
    return out


def together(job: Job, todo: Mapping[Any, Part]) -> dict[Any, Selection]:
    """Selections in groups, by places in them, of those that one launch can take; the others are for select().

    Facility location is that of select() on the group bit for bit. Gains of graph cut and log-determinant are float64
    sums in another order: they differ by about 1e-13 of what is summed, and picks where two candidates are as close.
    """
    options = job.options
    plain = resolve(options.backend) == "triton" and options.maximizer == "lazy" and options.polish is None
    plain = plain and job.outside is None
    by_rows = isinstance(
        job.kind, (Cosine, CosineShifted, CosineSquared)
    )  # no scale and no mean of the group's own
    if not (plain and by_rows) or isinstance(job.x, Matrix):
        return {}
    parts = {g: part for g, part in todo.items() if part.plain}
    specs = {g: job.objective.take(p.rows).sized(len(p.rows), p.size or p.count) for g, p in parts.items()}
    forms = {g: Form.of(spec) for g, spec in specs.items()}
    forms = {g: form for g, form in forms.items() if form is not None}
    if len(forms) < LEAST:
        return {}
    from smartgpu.backends import cuda, device

    kernels = cuda.kernels(device.open_device(*job.sets))
    if kernels is None:
        return {}
    import torch

    try:
        return _select(job, {g: (todo[g], specs[g], forms[g]) for g in forms}, kernels)
    except torch.OutOfMemoryError:
        log.warning(
            "the GPU has no memory for a launch of %d groups: they are selected from one by one", len(forms)
        )
        return {}


def _select(job: Job, groups: dict[Any, tuple[Part, Objective, Form]], kernels: Any) -> dict[Any, Selection]:
    from smartgpu.backends import cuda, cuda_batch, device

    start = time.perf_counter()
    at, keys = kernels.device, list(groups)
    memory = job.options.memory or device.share(at)
    rows = [groups[g][0].rows for g in keys]
    x, d = job.x, device.padded(job.x.shape[1])
    total = sum(len(each) for each in rows)
    if 2 * total < len(x):  # the rest of the pool need not be there
        x, ends = x[np.concatenate(rows)], np.cumsum([0, *map(len, rows)])
        rows = [np.arange(i, j) for i, j in itertools.pairwise(ends)]
    room = memory - 4 * len(x) * d - 32 * total
    if room <= 0:
        _too_large(job, len(keys), memory, 2 * (memory - room))
        return {}
    with job.failures(None):
        pool = device.prepare(job.kind, x, precision=job.options.precision)
        how = cuda_batch.arithmetic(pool)
        if how is None:
            return {}
        problems = _problems(job, rows, [groups[g] for g in keys])
        plan, left = cuda_batch.make_plan(problems, job.kind.name, how, d, kernels, room)
        most = cuda_batch.MOST[kernels.clusters][1]
        short = [p for p in left if len(rows[p]) <= most]
        if short:
            needs = max(cuda_batch.needs(problems, job.kind.name, d)[short])
            _too_large(job, len(short), memory, memory - room + 2 * int(needs) + cuda.EXCHANGE * 2)
        if not (plan.blocks or plan.clusters):
            return {}
        made: list[Any] = []

        def launch() -> None:
            if cuda_batch.agrees(pool, kernels):
                made.extend(cuda_batch.run(pool, problems, plan, kernels))

        ready = time.perf_counter()
        if not cuda.started(at, launch) or not made:
            return {}
    done = [*plan.clusters, *plan.blocks]
    phases = {"prepare": ready - start, "select": time.perf_counter() - ready}
    seconds = {name: spent / len(done) for name, spent in phases.items()}
    out = {}
    for p in done:
        _, spec, form = groups[keys[p]]
        n, (indices, gains) = len(rows[p]), made[p]
        dense = type(form.core) is FacilityLocation or isinstance(job.kind, CosineSquared)
        out[keys[p]] = Selection(
            indices=indices,
            gains=gains,
            value=float(gains.sum()),
            base_value=0.0,
            evaluations=n,
            sweeps=(n + 1) / (2 * n) if dense else 0.0,
            backend="triton",
            dtype=pool.dtype,
            seconds=seconds,
            **dataclasses.replace(job, objective=spec).described(),
        )
    return out


def _problems(job: Job, rows: list[np.ndarray], groups: list[tuple[Part, Objective, Form]]) -> Any:
    from smartgpu.backends.cuda_batch import Problems

    forms = [form for _, _, form in groups]
    first = forms[0]
    weights = scale = None
    if getattr(first.core, "weights", None) is not None:
        whole = [whole_weights(form.core.weights) for form in forms]
        weights = np.concatenate([each for each, _ in whole])
        scale = np.array([QUANTUM * worth for _, worth in whole])

    def joined(values: list[np.ndarray | None]) -> np.ndarray | None:
        return None if values[0] is None else np.concatenate(values)

    return Problems(
        rows,
        [part.count for part, _, _ in groups],
        first.core.name,
        lam=getattr(first.core, "lam", 0.0),
        weights=weights,
        scale=scale,
        weight=first.weight,
        before=joined([form.before for form in forms]),
        after=joined([form.after for form in forms]),
        low=job.options.tie_break == "low",
    )


def _too_large(job: Job, count: int, memory: int, would: int) -> None:
    """Groups are selected from one by one for want of memory: what would do."""
    level = logging.WARNING if job.options.memory is not None else logging.INFO
    log.log(
        level,
        "%d groups are selected from one by one: one launch needs %s of the GPU, memory is %s; memory=%r would do",
        count,
        bytes_text(would, up=True),
        bytes_text(memory),
        bytes_text(would, up=True),
    )
