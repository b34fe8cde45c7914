"""sweep: how many tasks? One ranking, and for each number of tasks what its mixture covers."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from smartgpu.arrays import on_host
from smartgpu.job import Job
from smartgpu.mixture.assembling import taken
from smartgpu.mixture.cells import Cell, Share
from smartgpu.mixture.mixer import Mixer
from smartgpu.objectives import FacilityLocation
from smartgpu.options import Options
from smartgpu.selection import Selection
from smartgpu.similarity import Matrix

SAMPLE = 20_000  # prompts on which coverage is measured, by default


@dataclass(frozen=True)
class SweepRow:
    """What a mixture of n_tasks tasks is like.

    n_rows             rows that it gives: fewer than asked for where its tasks have no more
    coverage           facility location's f(S) / f(V) on raw cosine: of all prompts, or of a sample
    coverage_left_out  the same of the prompts of tasks that give no rows; None where there are none
    effective_tasks    exp(entropy) of the tasks' shares of the rows: n_tasks where all are equal
    largest_share      of the rows, the share of the task that gives most
    duplicates         chosen rows whose embedding another chosen row has as well, all but one of each
    cost               what the rows cost together, None without a budget
    """

    n_tasks: int
    n_rows: int
    coverage: float
    coverage_left_out: float | None
    effective_tasks: float
    largest_share: float
    duplicates: int
    cost: float | None = None

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def sweep(
    X: Any,
    tasks: Any,
    sizes: Sequence[int],
    n_rows: int | float | None = None,
    templates: Any = None,
    *,
    budget: float | None = None,
    sample: int | None = SAMPLE,
    **options: Any,
) -> list[SweepRow]:
    """Mixtures of sizes[0], sizes[1], ... tasks, of n_rows rows each, and what they cover, to choose a number from.

    Tasks are ranked once, for the largest size; each smaller mixture is made of the first of them. Rows are selected
    once in every task, as many as it gives at most; with a budget, quotas or polish, where the first rows are not those
    of a smaller share, once for every size.

    sample   prompts on which coverage is measured, evenly spaced; None is all of them
    options  as for mix(), but for report and done

    Returns one SweepRow for each size, in order. Raises as mix() does, before any work. Coverage costs
    O(sample n_rows d) for each size.
    """
    mixer = Mixer(X, tasks, templates, **options)
    if isinstance(mixer.job.x, Matrix):
        raise ValueError("sweep measures coverage by cosine: X must be embeddings, got similarities")
    if mixer.job.options.maximizer == "stochastic":
        raise ValueError(
            "sweep needs an exact maximizer: the first of a stochastic selection are no selection"
        )
    check_counted(mixer.job.objective)
    if not len(sizes):
        raise ValueError("sizes is empty: give the numbers of tasks to compare")
    counts = [mixer.check_tasks(size) for size in sizes]
    if budget is None and mixer.quotas is None:
        total = mixer.check_amount(n_rows, budget)
    else:
        total = max(mixer.check_size(count, n_rows, budget)[1] for count in counts)
    ranking = mixer.rank(max(counts), {}, None)
    prompts = _Prompts(mixer, sample)
    if not mixer.nested(budget):
        out = []
        for count in counts:
            mixture = mixer.share_most(_first(ranking, count), total)
            out.append(_row(mixer, mixture, mixer.chooser.choose_all(mixture, {}, None), prompts))
        return out
    shares = [mixer.share_most(_first(ranking, count), total) for count in counts]
    most: dict[Cell, int] = {}
    for share in (share for mixture in shares for share in mixture):
        for cell, b in share.cells.items():
            most[cell] = max(most.get(cell, 0), b)
    found = mixer.chooser.choose(most, {}, None)
    return [_row(mixer, mixture, found, prompts) for mixture in shares]


def check_counted(objective: Any) -> None:
    """ValueError where rows selected once do not serve several sizes."""
    if getattr(objective, "counted", False):
        raise ValueError(
            "sweep selects rows once for all sizes, and this row_objective depends on the budget of a task: "
            "QualityDiversity(scale='paper') does not"
        )


def _first(ranking: Selection | np.ndarray, count: int) -> Selection | np.ndarray:
    if isinstance(ranking, Selection):
        return ranking.prefix(count) if count < ranking.k else ranking
    return ranking[:count]


class _Prompts:
    """The prompts whose coverage is measured, and the pool from which they are covered."""

    def __init__(self, mixer: Mixer, sample: int | None):
        n = mixer.job.n
        self.x, self.options = mixer.job.x, Options(threads=mixer.job.options.threads)
        self.rows = (
            np.arange(n)
            if sample is None
            else np.unique(np.linspace(0, n - 1, min(sample, n)).astype(np.int64))
        )
        self.points = on_host(self.x[self.rows])
        task = np.full(n, -1)
        for number, rows in enumerate(mixer.rows):
            task[rows] = number
        self.task = task[self.rows]
        own = Job.check(self.points, "facility_location", "cosine", self.options).ground().backend()
        self.own = np.maximum(own.diagonal(), 0) * own.quantum

    def levels(self, chosen: np.ndarray) -> np.ndarray:
        """(prompts,) float64: the similarity of each to its nearest chosen row, 0 at least."""
        spec = FacilityLocation(represented=self.points)
        ground = Job.check(on_host(self.x[chosen]), spec, "cosine", self.options).ground()
        state = spec.bind(ground)
        state.add(np.arange(len(chosen)))
        return state.levels()


def _row(mixer: Mixer, mixture: list[Share], found: dict[Cell, Selection], prompts: _Prompts) -> SweepRow:
    cells_of = [(share.number, taken(mixer, share, found)) for share in mixture]
    rows = {number: sum(cells.values()) for number, cells in cells_of if cells}
    chosen = np.concatenate([found[cell].indices[:b] for _, cells in cells_of for cell, b in cells.items()])
    levels = prompts.levels(chosen)
    out = ~np.isin(prompts.task, list(rows))
    shares = np.array(list(rows.values())) / len(chosen)
    copies = len(chosen) - len(np.unique(on_host(prompts.x[chosen]), axis=0))
    return SweepRow(
        n_tasks=len(mixture),
        n_rows=len(chosen),
        coverage=float(levels.sum() / prompts.own.sum()),
        coverage_left_out=float(levels[out].sum() / prompts.own[out].sum())
        if prompts.own[out].any()
        else None,
        effective_tasks=float(np.exp(-(shares * np.log(shares)).sum())),
        largest_share=float(shares.max()),
        duplicates=copies,
        cost=None if mixer.money is None else math.fsum(mixer.cost[chosen]),
    )
