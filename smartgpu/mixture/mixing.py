"""mix: stage 1 chooses tasks and their budgets, stage 2 rows inside every task."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from smartgpu.checkpoint import differences
from smartgpu.labels import Label
from smartgpu.mixture.assembling import assemble
from smartgpu.mixture.mixer import SEED, Mixer
from smartgpu.mixture.result import Mixture
from smartgpu.objectives import Objective
from smartgpu.options import make_options
from smartgpu.ranks import join
from smartgpu.selection import Selection
from smartgpu.similarity import Similarity


def mix(
    X: Any,
    tasks: Any,
    n_tasks: int | None = None,
    n_rows: int | float | None = None,
    templates: Any = None,
    *,
    budget: float | None = None,
    cost: Any = None,
    method: str = "smart",
    task_embeddings: Any = None,
    task_similarity: Any = "cosine",
    task_objective: str | Objective = "graph_cut",
    row_objective: str | Objective = "facility_location",
    similarity: str | Similarity = "cosine",
    temperature: float = 1.0,
    include: Any = None,
    drop: Any = None,
    min_rows: int | Mapping[Label, int] | None = None,
    max_rows: int | Mapping[Label, int] | None = None,
    quotas: Any = None,
    given: Any = None,
    include_rows: Any = None,
    exclude: Any = None,
    order: str = "shuffled",
    full_order: bool = False,
    seed: int = SEED,
    backend: str = "auto",
    report: Callable[[Any, Selection], None] | None = None,
    done: Mapping[Any, Selection] | None = None,
    **options: Any,
) -> Mixture:
    """A mixture of tasks by SMART: n_tasks tasks, and n_rows rows (or a budget of tokens) shared among them.

    X           (n, d) embeddings of the prompts, as for select()
    tasks       n labels, one per row: all ints or all strings, in any order; tasks are numbered by first appearance
    n_tasks     tasks to choose; None is all of them
    n_rows      rows to choose: an int is a count, a float in (0, 1] a share of n
    templates   n labels or None, one per row: how a row is worded. A task's budget is split over them (see
                split_templates), and rows are chosen inside each
    budget      instead of n_rows: what all rows may cost together, in the units of `cost`; never exceeded. It is shared
                among tasks and templates as rows are, each up to what its rows cost, and each share is a budget of
                select(). What whole rows leave over is offered again, one row a task in the order of selection, round
                after round, until it pays for none
    cost        (n,) numbers > 0, what each row takes of the budget: tokens, for example
    method      how tasks and budgets are chosen:
                "smart": tasks by greedy selection, budgets by a Taylor softmax of their gains (see budgets)
                "random": tasks drawn at random, equal budgets
                "equal", "proportional", "temperature": tasks as in "smart" where n_tasks leaves some out, budgets
                equal, proportional to the tasks' sizes, or to size^(1 / temperature); of a budget what their rows cost
    task_embeddings   one row per task, in the order of first appearance, or {task: vector}; None is the mean of the
                task's rows of X, not normalised again
    task_similarity   between tasks: a kind such as "cosine", or the matrix itself, tasks x tasks
    task_objective    "graph_cut" (lambda 0.4), "facility_location", "log_det" (lambda 1), or an objective over tasks
    row_objective     "facility_location", "graph_cut", "log_det", "random", or an objective over the rows of X, of
                which every task gets its part
    similarity  between rows
    include, drop     tasks that are chosen whatever they add, and come first; tasks that are left out, as if not there
    min_rows, max_rows  rows that a chosen task gives: a number for all, or {task: number}. A task without that many
                rows gives those it has, unless min_rows names it. Not with a budget, whose shares are no rows
    quotas      a smartgpu.Quotas of one field over the rows of X: how many rows of each of its groups the mixture
                holds. Shares are of n_rows. Tasks give as many rows as without: where a group has too many or too few,
                some cells are selected from again, with other numbers of its groups (docs/mixtures.md). Within a
                budget, whose shares tasks keep, too: in counts, as there is no n_rows
    given, include_rows, exclude   given, include and exclude of select(): rows that are there already, that must be
                chosen, that may not be. The tasks of include_rows are chosen whatever they add, after those of
                `include`; what a task can give are the rows that are left
    order       "shuffled": by `seed`, the permutation of HF datasets' shuffle(); "rank": tasks as they were selected,
                each with its best rows first
    full_order  order all rows of the chosen tasks, not only those that are taken: see Task.selections. The rows taken
                are the same
    seed        of the shuffle, of random tasks and random rows
    report      called with ("ranking", Selection) when tasks are selected, and ((task, template), Selection) when the
                rows of one are (template is None without templates), from one thread at a time; where quotas made it
                select again, also with ((task, template, "quotas"), Selection)
    done        what report was called with, as a mapping: that work is not done again
    options     fields of smartgpu.Options, as for select(), but for checkpoint and plan. Stage 1 runs on the CPU: there
                are few tasks

    Returns a Mixture: .tasks, one record per chosen task, and .indices (n_rows,) int64 pool rows. Raises ValueError,
    TypeError naming the argument before any work, for limits that contradict each other with the smallest set of them;
    after tasks are selected where these, with their shares, cannot keep to the quotas.
    Source: arXiv 2403.08370, the steps and rounding of its published code (docs/smart.md).
    """
    ranks = join(make_options({**options, "seed": seed, "backend": backend}))

    def check() -> tuple[Mixer, int, int]:
        mixer = Mixer(
            X,
            tasks,
            templates,
            cost=cost,
            method=method,
            task_embeddings=task_embeddings,
            task_similarity=task_similarity,
            task_objective=task_objective,
            row_objective=row_objective,
            similarity=similarity,
            temperature=temperature,
            include=include,
            drop=drop,
            min_rows=min_rows,
            max_rows=max_rows,
            quotas=quotas,
            given=given,
            include_rows=include_rows,
            exclude=exclude,
            order=order,
            full_order=full_order,
            seed=seed,
            backend=backend,
            **options,
        )
        mixer.job.ranks = ranks
        return mixer, *mixer.check_size(n_tasks, n_rows, budget)

    mixer, count, total = ranks.all_of(check)
    ranks.agree(lambda: mixer.record(done or {}), differences)
    with ranks.running():
        done = done or {}
        shares = mixer.share(mixer.rank(count, done, report), total)
        return assemble(mixer, shares, mixer.chooser.choose_all(shares, done, report))
