"""Many groups at once on a GPU: what csrc/batched_greedy.cu can select from, and what it selects."""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from smartgpu.backends import QUANTUM, find_backend, resolve
from smartgpu.backends.gpu import DeviceMemoryError
from smartgpu.job import Job
from smartgpu.objectives import FacilityLocation, GraphCut, LogDet, Modular, Objective
from smartgpu.objectives.facility_location_state import whole_weights
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
        if not all(a is None or np.isfinite(a).all() for a in (before, after)):
            return None  # gains could be no numbers, which nothing is better than: a kernel would pick nobody
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
    groups = _groups(job, todo)
    if len(groups) < LEAST:
        return {}
    from smartgpu.backends import cuda, cuda_batch, device

    kernels = cuda.kernels(device.open_device(*job.sets))
    if kernels is None:
        return {}
    most = cuda_batch.MOST[kernels.clusters][1]
    groups = {g: group for g, group in groups.items() if len(group.rows) <= most}
    if len(groups) < LEAST:
        return {}
    try:
        return _select(job, groups, kernels)
    except DeviceMemoryError:
        text = "the GPU has no memory for a launch of %d groups: they are selected from one by one"
        log.warning(text, len(groups))
        return {}


@dataclass(frozen=True)
class Group:
    """Rows of the pool, how many to choose, and the objective as it is bound and as a kernel knows it."""

    rows: np.ndarray
    count: int
    spec: Objective
    form: Form


def _groups(job: Job, todo: Mapping[Any, Part]) -> dict[Any, Group]:
    """Those that ask for nothing that a kernel does not know."""
    options = job.options
    plain = resolve(options.backend) == "triton" and options.maximizer == "lazy" and options.polish is None
    # no scale and no mean of the group's own
    by_rows = isinstance(job.kind, (Cosine, CosineShifted, CosineSquared)) and not isinstance(job.x, Matrix)
    out: dict[Any, Group] = {}
    for g, part in todo.items() if plain and by_rows and job.outside is None else ():
        if part.plain:
            spec = job.objective.take(part.rows).sized(len(part.rows), part.size or part.count)
            form = Form.of(spec)
            if form is not None:
                out[g] = Group(part.rows, part.count, spec, form)
    return out


def _select(job: Job, groups: dict[Any, Group], kernels: Any) -> dict[Any, Selection]:
    from smartgpu.backends import cuda, cuda_batch, device

    start, at, d = time.perf_counter(), kernels.device, device.padded(job.x.shape[1])
    compiling = find_backend("triton").compiling
    compiled = compiling()
    dtype, products, _ = device.layout(job.kind, [job.x], job.options.precision)
    how = cuda_batch.arithmetic(dtype, products)
    memory = job.options.memory or device.share(at)
    rows, x = [group.rows for group in groups.values()], job.x
    total = sum(len(each) for each in rows)
    held = dtype.itemsize * d * len(x) + 32 * total
    if 2 * total < len(x):  # the rest of the pool need not be there
        held = (dtype.itemsize * d + 32 + (0 if isinstance(x, np.ndarray) else x[:1].nbytes)) * total
    if how is None or not _agree(job, how, kernels):
        return {}
    if held >= memory:
        _too_large(job, len(groups), memory, 2 * held)
        return {}
    with job.failures(None):
        if 2 * total < len(x):
            x, ends = x[np.concatenate(rows)], np.cumsum([0, *map(len, rows)])
            rows = [np.arange(i, j) for i, j in itertools.pairwise(ends)]
        pool = device.prepare(job.kind, x, precision=job.options.precision)
        problems = _problems(job, rows, list(groups.values()))
        plan, left = cuda_batch.make_plan(problems, job.kind.name, how, d, kernels, memory - held)
        if left:
            needs = int(max(cuda_batch.needs(problems, job.kind.name, d)[left]))
            _too_large(job, len(left), memory, held + 2 * (needs + cuda.EXCHANGE))
        if not (plan.blocks or plan.clusters):
            return {}
        made: list[Any] = []
        ready = time.perf_counter()
        if not cuda.started(at, lambda: made.extend(cuda_batch.run(pool, problems, plan, kernels))):
            return {}
    done = [*plan.clusters, *plan.blocks]
    phases = {
        "prepare": ready - start,
        "select": time.perf_counter() - ready,
        "compile": compiling() - compiled,
    }
    seconds = {name: spent / len(done) for name, spent in phases.items() if spent}
    keys, said = list(groups), {**job.described(), "dtype": pool.dtype, "seconds": seconds}
    return {keys[p]: _selection(groups[keys[p]], *made[p], said) for p in done}


def _agree(job: Job, how: str, kernels: Any) -> bool:
    """Whether similarities are Triton's but for rounding, and kernels can be started at all."""
    from smartgpu.backends import cuda, cuda_batch

    found: list[int | None] = []
    with job.failures(None):
        there = cuda.started(kernels.device, lambda: found.append(cuda_batch.apart(how, kernels)))
    return there and found[0] is not None


def _selection(group: Group, indices: np.ndarray, gains: np.ndarray, said: dict[str, Any]) -> Selection:
    """said: what all groups say alike."""
    n, core = len(group.rows), group.form.core
    dense = type(core) is FacilityLocation or said["similarity"]["name"] == CosineSquared.name
    own = {
        "objective": group.spec.describe(),
        "value": float(gains.sum()),
        "base_value": 0.0,
        "evaluations": n,
        "sweeps": (n + 1) / (2 * n) if dense and type(core) is not LogDet else 0.0,
    }
    return Selection(indices, gains, **{**said, **own, "backend": "triton"})


def _problems(job: Job, rows: list[np.ndarray], groups: list[Group]) -> Any:
    from smartgpu.backends.cuda_batch import Problems

    forms = [group.form for group in groups]
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
        [group.count for group in groups],
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
