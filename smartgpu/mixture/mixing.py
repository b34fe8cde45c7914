"""mix: stage 1 chooses tasks and their budgets, stage 2 rows inside every task."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from smartgpu.arrays import as_count, as_similarity_matrix
from smartgpu.backends import resolve
from smartgpu.checkpoint import fingerprint
from smartgpu.job import Job, versions
from smartgpu.labels import Label, as_labels
from smartgpu.many import check_done, check_groups, select_groups
from smartgpu.mixture.limits import Limits, check_choice, named_tasks
from smartgpu.mixture.ranking import rank, task_means, task_pool
from smartgpu.mixture.result import Mixture, Task
from smartgpu.mixture.rounding import check_temperature, fit, split, split_templates, taylor_softmax
from smartgpu.objectives import Modular, Objective, as_objective
from smartgpu.options import make_options
from smartgpu.selection import Selection
from smartgpu.similarity import Matrix, Similarity, choose

METHODS = ("smart", "proportional", "equal", "random", "temperature")
ORDERS = ("shuffled", "rank")
SEED = 23  # of the published shuffle
RANKING = "ranking"  # the key of stage 1 for report and done

Cell = tuple[int, Label | None]  # (task number, template)


def mix(
    X: Any,
    tasks: Any,
    n_tasks: int | None = None,
    n_rows: int | float | None = None,
    templates: Any = None,
    *,
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
    order: str = "shuffled",
    full_order: bool = False,
    seed: int = SEED,
    backend: str = "auto",
    report: Callable[[Any, Selection], None] | None = None,
    done: Mapping[Any, Selection] | None = None,
    **options: Any,
) -> Mixture:
    """A mixture of tasks by SMART: n_tasks tasks, and n_rows rows shared among them.

    X           (n, d) embeddings of the prompts, as for select()
    tasks       n labels, one per row: all ints or all strings, in any order; tasks are numbered by first appearance
    n_tasks     tasks to choose; None is all of them
    n_rows      rows to choose: an int is a count, a float in (0, 1] a share of n
    templates   n labels or None, one per row: how a row is worded. A task's budget is split over them (see
                split_templates), and rows are chosen inside each
    method      how tasks and budgets are chosen:
                "smart": tasks by greedy selection, budgets by a Taylor softmax of their gains (see budgets)
                "random": tasks drawn at random, equal budgets
                "equal", "proportional", "temperature": tasks as in "smart" where n_tasks leaves some out, budgets
                equal, proportional to the tasks' sizes, or to size^(1 / temperature)
    task_embeddings   one row per task, in the order of first appearance, or {task: vector}; None is the mean of the
                task's rows of X, not normalised again
    task_similarity   between tasks: a kind such as "cosine", or the matrix itself, tasks x tasks
    task_objective    "graph_cut" (lambda 0.4), "facility_location", "log_det" (lambda 1), or an objective over tasks
    row_objective     "facility_location", "graph_cut", "log_det", "random", or an objective over the rows of X, of
                which every task gets its part
    similarity  between rows
    include, drop     tasks that are chosen whatever they add, and come first; tasks that are left out, as if not there
    min_rows, max_rows  rows that a chosen task gives: a number for all, or {task: number}. A task without that many
                rows gives those it has, unless min_rows names it
    order       "shuffled": by `seed`, the permutation of HF datasets' shuffle(); "rank": tasks as they were selected,
                each with its best rows first
    full_order  order all rows of the chosen tasks, not only those that are taken: see Task.selections. The rows taken
                are the same
    seed        of the shuffle, of random tasks and random rows
    report      called with ("ranking", Selection) when tasks are selected, and ((task, template), Selection) when the
                rows of one are (template is None without templates), from one thread at a time
    done        what report was called with, as a mapping: that work is not done again
    options     fields of smartgpu.Options, as for select(), but for checkpoint and plan. Stage 1 runs on the CPU: there
                are few tasks

    Returns a Mixture: .tasks, one record per chosen task, and .indices (n_rows,) int64 pool rows. Raises ValueError,
    TypeError naming the argument before any work, for limits that contradict each other with the smallest set of them.
    Source: arXiv 2403.08370, the steps and rounding of its published code (docs/smart.md).
    """
    mixer = Mixer(
        X,
        tasks,
        templates,
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
        order=order,
        full_order=full_order,
        seed=seed,
        backend=backend,
        **options,
    )
    count, total = mixer.check_size(n_tasks, n_rows)
    done = done or {}
    shares = mixer.share(mixer.rank(count, done, report), total)
    found = mixer.choose({cell: b for share in shares for cell, b in share.cells.items()}, done, report)
    return mixer.assemble(shares, found)


@dataclass(frozen=True)
class Share:
    """What one chosen task gives: `templates` is {None: budget} where there are none."""

    number: int
    gain: float
    weight: float
    budget: int
    before: int
    templates: dict[Label | None, int]

    @property
    def cells(self) -> dict[Cell, int]:
        """Rows to choose for each (task number, template) that gives some."""
        return {(self.number, name): b for name, b in self.templates.items() if b}


class Mixer:
    """The checked arguments of a mixture, and its steps. Tasks are numbered without those that are dropped."""

    def __init__(
        self,
        X: Any,
        tasks: Any,
        templates: Any = None,
        *,
        method: str = "smart",
        task_embeddings: Any = None,
        task_similarity: Any = "cosine",
        task_objective: str | Objective = "graph_cut",
        row_objective: str | Objective = "facility_location",
        similarity: str | Similarity = "cosine",
        temperature: float = 1.0,
        include: Any = None,
        drop: Any = None,
        min_rows: Any = None,
        max_rows: Any = None,
        order: str = "shuffled",
        full_order: bool = False,
        seed: int = SEED,
        backend: str = "auto",
        **options: Any,
    ):
        how = make_options({"backend": backend, **options, "seed": seed})
        self.method, self.order = choose(method, METHODS, "method"), choose(order, ORDERS, "order")
        self.temperature = check_temperature(temperature)
        self.full_order, self.seed, self.X = bool(full_order), how.seed, X
        at_random = isinstance(row_objective, str) and row_objective == "random"
        self.job = Job.check(X, "facility_location" if at_random else row_objective, similarity, how)
        check_groups(self.job)
        if at_random:  # a number for each row: a task's best are a sample of it, in random order
            self.job.objective = Modular(np.random.default_rng(seed).random(self.job.n))
        labels = as_labels(tasks, self.job.n, "tasks")
        self.templates = (
            None if templates is None else as_labels(templates, self.job.n, "templates", missing=True)
        )
        dropped = named_tasks("drop", drop, labels.names)
        wanted = named_tasks("include", include, labels.names)
        check_choice(wanted, dropped, None, labels.names)
        self.kept = np.setdiff1d(np.arange(len(labels.names)), dropped)
        self.dropped = len(dropped)
        self.names = tuple(labels.names[i] for i in self.kept)
        self.include = np.searchsorted(self.kept, wanted)
        rows = labels.rows()
        self.rows = [rows[i] for i in self.kept]
        self.sizes = np.array([len(some) for some in self.rows])
        self.limits = Limits.of(self.names, self.sizes, min_rows, max_rows)
        self.objective = as_objective(task_objective)
        self.pool, self.kind = task_pool(task_embeddings, task_similarity, labels.names)
        if self.pool is None and self.kind.name == "precomputed":
            raise ValueError("task_similarity='precomputed' needs the matrix itself as task_similarity")
        self._check_objective(len(labels.names))
        if self.full_order and how.maximizer == "stochastic":
            raise ValueError(
                "full_order needs an exact maximizer: the first rows of a stochastic order are no selection"
            )
        if self.full_order and self.job.objective.counted:
            raise ValueError(
                "full_order cannot be combined with this row_objective, which depends on the budget of a task: the "
                "first rows of a full order would be others; QualityDiversity(scale='paper') does not depend on it"
            )
        self.described = {
            "method": method,
            "templates": templates is not None,
            "task_embeddings": None if self.pool is None else _described(self.pool),
            "task_similarity": self.kind.describe(),
            "task_objective": self.objective.describe(),
            "row_objective": {"name": "random"} if at_random else self.job.objective.describe(),
            "similarity": self.job.kind.describe(),
            "temperature": self.temperature,
            "include": [self.names[i] for i in self.include],
            "drop": [labels.names[i] for i in dropped],
            "min_rows": _plain(min_rows),
            "max_rows": _plain(max_rows),
            "order": order,
            "full_order": self.full_order,
            **how.to_dict(),
        }
        self.objective = self.objective.take(self.kept)
        if self.pool is not None and self.dropped:
            precomputed = self.kind.name == "precomputed"
            self.pool = self.pool[np.ix_(self.kept, self.kept)] if precomputed else self.pool[self.kept]
        self.seconds: dict[str, float] = {}

    def _check_objective(self, count: int) -> None:
        """ValueError where the objective over tasks does not fit them."""
        if self.kind.name == "precomputed":
            tasks = as_similarity_matrix(self.pool, "task_similarity")
        elif self.pool is not None:
            tasks = self.pool
        else:  # of means that are still to be made, their shape
            tasks = np.broadcast_to(np.float32(0), (count, self.job.x.shape[1]))
        self.objective.check(tasks, self.kind)

    def check_size(self, n_tasks: Any, n_rows: Any) -> tuple[int, int]:
        """(tasks, rows) to choose. ValueError where no choice of tasks can give that many rows."""
        count, total = self.check_tasks(n_tasks), self.check_rows(n_rows)
        self.limits.check(total, count, self.include)
        self.described |= {"n_tasks": count, "n_rows": total}
        return count, total

    def check_tasks(self, n_tasks: Any) -> int:
        count = check_choice(self.include.tolist(), [], n_tasks, self.names, self.dropped)
        if self.selects(count) and self.pool is None and isinstance(self.job.x, Matrix):
            raise ValueError(
                "task_embeddings or a matrix as task_similarity is missing: X holds similarities, no rows to embed by"
            )
        return count

    def selects(self, count: int) -> bool:
        """Whether tasks are selected, rather than drawn or all taken."""
        return self.method == "smart" or (self.method != "random" and count < len(self.names))

    def check_rows(self, n_rows: Any) -> int:
        if n_rows is None:
            raise ValueError("n_rows is missing: give the rows of the mixture, or a share of the pool's")
        return as_count(n_rows, self.job.n, "n_rows")

    def rank(self, count: int, done: Mapping, report: Callable | None) -> Selection | np.ndarray:
        """The chosen tasks in order: greedy, with their gains; or numbers alone where nothing is selected."""
        every = np.arange(len(self.names))
        if self.method == "random":
            others = np.setdiff1d(every, self.include)
            drawn = np.random.default_rng(self.seed).permutation(others)
            return np.concatenate([self.include, drawn])[:count]
        if not self.selects(count):
            return every
        if RANKING in done:
            return self._ranked_before(done[RANKING], count)
        options = self.job.options
        how = {
            name: getattr(options, name)
            for name in ("threads", "memory", "maximizer", "tie_break", "epsilon")
        }
        how |= {
            "seed": self.seed,
            "backend": "reference" if resolve(options.backend) == "reference" else "numpy",
        }
        with self._timed("tasks"):
            pool = task_means(self.job.x, self.rows, options.threads) if self.pool is None else self.pool
        with self._timed("ranking"):
            ranking = rank(pool, count, self.objective, self.kind, self.include, how)
        if report is not None:
            report(RANKING, ranking)
        return ranking

    def _ranked_before(self, ranking: Selection, count: int) -> Selection:
        if (
            ranking.n != len(self.names)
            or ranking.k < count
            or ranking.objective != self.objective.describe()
        ):
            raise ValueError(
                f"done[{RANKING!r}] is not a ranking of {count} of these {len(self.names)} tasks: {ranking!r}"
            )
        return ranking.prefix(count) if count < ranking.k else ranking

    def share(self, ranking: Selection | np.ndarray, total: int) -> list[Share]:
        """Weights, and rows of each task and template. ValueError where the limits of these tasks do not allow any."""
        ranked = isinstance(ranking, Selection)
        tasks = ranking.indices if ranked else ranking
        gains = ranking.gains if ranked else np.ones(len(tasks))
        self.limits.check(total, len(tasks), tasks)
        sizes = self.sizes[tasks]
        if self.method in ("smart", "random"):
            weights = taylor_softmax(gains, self.temperature)
        else:
            power = {"equal": 0.0, "proportional": 1.0, "temperature": 1 / self.temperature}[self.method]
            weights = sizes**power
        before = split(total, weights)
        after = fit(before, self.limits.low[tasks], self.limits.high[tasks])
        shares = []
        for at, task in enumerate(tasks.tolist()):
            budget = int(after[at])
            templates = (
                {None: budget} if self.templates is None else split_templates(budget, self._counts(task))
            )
            weight = float(weights[at] / weights.sum())
            shares.append(Share(task, float(gains[at]), weight, budget, int(before[at]), templates))
        return shares

    def share_most(self, ranking: Selection | np.ndarray, total: int) -> list[Share]:
        """The same of as many rows as these tasks can give, where that is less than the total."""
        tasks = ranking.indices if isinstance(ranking, Selection) else ranking
        return self.share(ranking, min(total, int(self.limits.high[tasks].sum())))

    def _counts(self, task: int) -> dict[Label | None, int]:
        """Rows of each template of a task, templates in the order of their first appearance in the pool."""
        counts = np.bincount(self.templates.codes[self.rows[task]], minlength=len(self.templates.names))
        return {self.templates.names[t]: int(counts[t]) for t in np.flatnonzero(counts)}

    def cell_rows(self, cell: Cell) -> np.ndarray:
        """The rows of one task and template, ascending."""
        rows = self.rows[cell[0]]
        if self.templates is None:
            return rows
        return rows[self.templates.codes[rows] == self.templates.names.index(cell[1])]

    def choose(
        self, budgets: Mapping[Cell, int], done: Mapping, report: Callable | None
    ) -> dict[Cell, Selection]:
        """The selection of each cell: as many rows as it gives, or all of them in order."""
        todo, found = {}, {}
        for cell, budget in budgets.items():
            rows, key = self.cell_rows(cell), (self.names[cell[0]], cell[1])
            count = len(rows) if self.full_order else budget
            if key in done:
                found[cell] = check_done(done[key], key, rows, count, self.job)
            else:
                todo[cell] = rows, count

        def finish(cell: Cell, selection: Selection) -> None:
            found[cell] = selection
            if report is not None:
                report((self.names[cell[0]], cell[1]), selection)

        with self._timed("rows"):
            select_groups(self.job, self.X, todo, finish)
        return found

    def assemble(self, shares: list[Share], found: Mapping[Cell, Selection]) -> Mixture:
        tasks = [self._task(share, found) for share in shares]
        if self.order == "rank":
            indices = np.concatenate([task.indices for task in tasks])
        else:
            indices = self._in_file_order(shares, found)
            indices = indices[np.random.default_rng(self.seed).permutation(len(indices))]
        return Mixture(
            tasks=tasks,
            indices=indices,
            n=self.job.n,
            n_tasks_in_pool=len(self.names),
            method=self.method,
            options=self.described,
            seconds=self.seconds,
            versions=versions(resolve(self.job.options.backend)),
        )

    def _task(self, share: Share, found: Mapping[Cell, Selection]) -> Task:
        cells = share.cells
        picks = [found[cell].indices[:b] for cell, b in cells.items()]
        gains = [found[cell].gains[:b] for cell, b in cells.items()]
        # Templates in turn, each as often as its share: every prefix holds them in about these shares.
        depth = [(np.arange(b) + 0.5) / b for b in cells.values()]
        order = np.argsort(np.concatenate([np.empty(0), *depth]), kind="stable")
        return Task(
            task=self.names[share.number],
            number=share.number,
            size=int(self.sizes[share.number]),
            gain=share.gain,
            weight=share.weight,
            budget=share.budget,
            budget_before_caps=share.before,
            templates={} if self.templates is None else share.templates,
            indices=np.concatenate([np.empty(0, np.int64), *picks])[order],
            gains=np.concatenate([np.empty(0), *gains])[order],
            selections={cell[1]: found[cell] for cell in cells},
        )

    def _in_file_order(self, shares: list[Share], found: Mapping[Cell, Selection]) -> np.ndarray:
        """What the published code shuffles: tasks and templates by first appearance, best rows first, but the rows of
        a template that gives all of them as they lie in the pool."""
        parts = []
        for share in sorted(shares, key=lambda s: s.number):
            for cell, b in share.cells.items():
                rows = self.cell_rows(cell)
                parts.append(rows if b == len(rows) else found[cell].indices[:b])
        return np.concatenate(parts)

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - start


def _described(x: np.ndarray) -> dict[str, Any]:
    return {"shape": list(x.shape), "dtype": str(x.dtype), "sha256": fingerprint(x)}


def _plain(limit: Any) -> Any:
    """A limit as a JSON value: pairs for a mapping, since tasks may be ints."""
    if isinstance(limit, Mapping):
        return [[task, int(rows)] for task, rows in limit.items()]
    return None if limit is None else int(limit)
