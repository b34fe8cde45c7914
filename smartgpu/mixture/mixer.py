"""The checked arguments of a mixture, and its steps up to the shares of tasks."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from smartgpu.arrays import as_count, as_similarity_matrix
from smartgpu.backends import resolve
from smartgpu.checkpoint import fingerprint
from smartgpu.constraints import Purse, Quotas, as_budget, as_costs, as_quotas, contradiction
from smartgpu.job import Job
from smartgpu.labels import Labels, as_labels
from smartgpu.many import bar_groups, check_groups, record
from smartgpu.mixture.balance import Balance
from smartgpu.mixture.cells import Cells, Rooms, Share, Units
from smartgpu.mixture.choosing import Chooser
from smartgpu.mixture.limits import Limits, check_choice, named_tasks
from smartgpu.mixture.ranking import rank, task_means, task_pool
from smartgpu.mixture.rounding import check_temperature, fit, split, taylor_softmax
from smartgpu.near import RowSets
from smartgpu.objectives import Modular, Objective, as_objective
from smartgpu.options import make_options
from smartgpu.parts import check_quotas
from smartgpu.seconds import Seconds
from smartgpu.selection import Selection
from smartgpu.similarity import Matrix, Similarity, choose

METHODS = ("smart", "proportional", "equal", "random", "temperature")
ORDERS = ("shuffled", "rank")
SEED = 23  # of the published shuffle
RANKING = "ranking"  # the key of stage 1 for report and done


class Mixer:
    """The checked arguments of a mixture, and its steps. Tasks are numbered without those that are dropped.

    Amounts are rows, or units of cost once check_amount() was told of a budget.
    """

    def __init__(
        self,
        X: Any,
        tasks: Any,
        templates: Any = None,
        *,
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
        min_rows: Any = None,
        max_rows: Any = None,
        quotas: Any = None,
        given: Any = None,
        include_rows: Any = None,
        exclude: Any = None,
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
        rows = labels.rows()
        self.rows = [rows[i] for i in self.kept]
        self.sizes = np.array([len(some) for some in self.rows])
        self.cost = None if cost is None else as_costs(cost, self.job.n)
        self.quotas = _one_field(quotas, self.job.n)
        self.cells = Cells(self.rows, self.templates)
        self.sets, elsewhere, near = RowSets.of(self.job.n, given, include_rows, exclude, "include_rows")
        self._include(wanted, labels)
        self.min_rows, self.max_rows = min_rows, max_rows
        self.job = self.job.beside(elsewhere, [each.rows for each in near])
        self.cut = bar_groups(self.job, X, self.cells.rows, self.sets, near, self.cost)
        self.money: float | None = None
        self.objective = as_objective(task_objective)
        self.pool, self.kind = task_pool(task_embeddings, task_similarity, labels.names)
        if self.pool is None and self.kind.name == "precomputed":
            raise ValueError("task_similarity='precomputed' needs the matrix itself as task_similarity")
        self._check_objective(len(labels.names))
        if self.full_order and how.maximizer == "stochastic":
            raise ValueError(
                "full_order needs an exact maximizer: the first rows of a stochastic order are no selection"
            )
        if self.full_order and how.polish is not None:
            raise ValueError(
                "full_order cannot be combined with polish: the first rows of an order are not polished"
            )
        if self.full_order and self.quotas is not None:
            raise ValueError(
                "full_order cannot be combined with quotas: the first rows of an order need not meet them"
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
            "include": [labels.names[i] for i in wanted],
            "drop": [labels.names[i] for i in dropped],
            "min_rows": _plain(min_rows),
            "max_rows": _plain(max_rows),
            "cost": None if self.cost is None else fingerprint(self.cost),
            "quotas": None if self.quotas is None else self.quotas.describe(),
            **{
                name: fingerprint(some) if len(some) else None
                for name, some in (
                    ("given", self.sets.given),
                    ("include_rows", self.sets.include),
                    ("exclude", self.sets.exclude),
                )
            },
            "given_from": None if elsewhere is None else fingerprint(elsewhere),
            "near": [{"above": each.above, "sha256": fingerprint(each.rows)} for each in near],
            "order": order,
            "full_order": self.full_order,
            **how.to_dict(),
        }
        self.objective = self.objective.take(self.kept)
        if self.pool is not None and self.dropped:
            precomputed = self.kind.name == "precomputed"
            self.pool = self.pool[np.ix_(self.kept, self.kept)] if precomputed else self.pool[self.kept]
        self.seconds = Seconds()

    def record(self, done: Mapping) -> dict[str, Any]:
        """What processes must have in common."""
        said = {name: value for name, value in self.described.items() if name not in ("threads", "progress")}
        rows = [*self.rows, *self.cells.rows]
        return {
            **record(self.job),
            **said,
            "tasks": [str(name) for name in self.names],
            "rows": fingerprint(np.concatenate([[len(some) for some in rows], *rows])),
            "done": [str(key) for key in done],
        }

    def _include(self, wanted: list[int], labels: Labels) -> None:
        """The tasks that are chosen in any case: those that are named, then those of included rows."""
        inside = np.unique(labels.codes[self.sets.include])
        gone = np.setdiff1d(inside, self.kept)
        if len(gone):
            row = int(self.sets.include[labels.codes[self.sets.include] == gone[0]][0])
            raise ValueError(
                contradiction(f"include_rows, row {row}", f"drop {labels.names[gone[0]]!r}, its task")
            )
        every = [*wanted, *np.setdiff1d(inside, wanted).tolist()]
        self.include = np.searchsorted(self.kept, np.array(every, np.int64))
        self.included_by = "include, which names" if len(every) == len(wanted) else "include_rows, in"
        if wanted and len(every) > len(wanted):
            self.included_by = "include and include_rows, in"

    def _count_in(self, units: Units) -> None:
        """Measure what each cell, and each task, can give and must."""
        parts = [self.cut.part(g) for g in range(len(self.cells.rows))]
        there = [part.rows[part.open] for part in parts]
        must = [part.rows[part.sets.include] for part in parts]
        self.units = units
        self.chooser = Chooser(
            **{name: getattr(self, name) for name in ("job", "X", "names", "cells", "cut", "units", "money")},
            full_order=self.full_order,
            timed=self.seconds,
        )
        self.rooms = rooms = Rooms(
            self.cells,
            np.array([units.size(rows) for rows in there]),
            np.array([units.amount(rows) for rows in must], np.int64),
            np.array([units.amount(rows) for rows in there], np.int64),
        )
        high, low = rooms.by_task(rooms.high), rooms.by_task(rooms.low)
        self.limits = Limits.of(self.names, high, low, self.min_rows, self.max_rows)

    def _check_objective(self, count: int) -> None:
        """ValueError where the objective over tasks does not fit them."""
        if self.kind.name == "precomputed":
            tasks = as_similarity_matrix(self.pool, "task_similarity")
        elif self.pool is not None:
            tasks = self.pool
        else:  # of means that are still to be made, their shape
            tasks = np.broadcast_to(np.float32(0), (count, self.job.x.shape[1]))
        self.objective.check(tasks, self.kind)

    def check_size(self, n_tasks: Any, n_rows: Any, budget: Any = None) -> tuple[int, int]:
        """(tasks, amount) to choose. ValueError where no choice of tasks can give that much."""
        count, total = self.check_tasks(n_tasks), self.check_amount(n_rows, budget)
        if self.money is None:
            self.limits.check(total, count, self.include)
        if self.quotas is not None:
            balance = self.chooser.balance = Balance(self.quotas, self.job.n, None if self.money else total)
            sets = dataclasses.replace(self.sets, exclude=self._closed())
            purse = Purse(self.cost, self.money) if self.money else None
            balance.check(self.job.n, np.concatenate(self.rows), sets, purse)
        self.described |= {"n_tasks": count, "n_rows": None if self.money else total, "budget": self.money}
        return count, total

    def check_tasks(self, n_tasks: Any) -> int:
        count = check_choice(self.include.tolist(), [], n_tasks, self.names, self.dropped, self.included_by)
        if self.selects(count) and self.pool is None and isinstance(self.job.x, Matrix):
            raise ValueError(
                "task_embeddings or a matrix as task_similarity is missing: X holds similarities, no rows to embed by"
            )
        return count

    def selects(self, count: int) -> bool:
        """Whether tasks are selected, rather than drawn or all taken."""
        return self.method == "smart" or (self.method != "random" and count < len(self.names))

    def check_amount(self, n_rows: Any, budget: Any) -> int:
        """The rows to choose; of a budget its units, which the tasks are counted in from here on."""
        if (budget is None) != (self.cost is None):
            raise ValueError("budget and cost go together: a budget, and what each row takes of it")
        if budget is None:
            if n_rows is None:
                raise ValueError(
                    "n_rows is missing: give the rows of the mixture, a share of the pool's, or budget= and cost="
                )
            self._count_in(Units())
            return as_count(n_rows, self.job.n, "n_rows")
        if n_rows is not None:
            raise ValueError("n_rows and budget cannot be combined: tasks share rows, or what rows cost")
        later = "how many rows a task's share of it pays for is known only in the end"
        for name, value, why in (
            ("min_rows", self.min_rows, later),
            ("max_rows", self.max_rows, later),
            ("full_order", self.full_order or None, "what it pays for is no prefix of an order"),
        ):
            if value is not None:
                raise ValueError(f"{name} cannot be combined with budget: {why}")
        self.money = as_budget(budget)
        self._count_in(Units.of(self.cost, self.money, len(self.rows)))
        total = int(self.money // self.units.unit)
        left = np.setdiff1d(np.concatenate(self.rows), np.concatenate([self.sets.given, self._closed()]))
        if not len(left):
            raise ValueError("nothing is left to choose: given and exclude hold all rows")
        if self.cost[left].min() > self.money:
            raise ValueError(
                f"budget must be at least {self.cost[left].min()}, the cost of the cheapest row, got {self.money}"
            )
        if int(self.rooms.low.sum()) > total:
            must = math.fsum(self.cost[self.sets.include])
            raise ValueError(
                contradiction(f"include_rows, whose rows cost {must:g}", f"budget = {self.money:g}")
            )
        return total

    def _closed(self) -> np.ndarray:
        """Rows of the pool that may not be chosen."""
        return np.concatenate(
            [
                np.empty(0, np.int64),
                *(rows[s.exclude] for rows, s in zip(self.cut.groups, self.cut.sets, strict=True)),
            ]
        )

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
        with self.seconds("tasks"):
            pool = task_means(self.job.x, self.rows, options.threads) if self.pool is None else self.pool
        with self.seconds("ranking"):
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
        """Weights, and amounts of each task and template. ValueError where these tasks' limits do not allow any."""
        ranked = isinstance(ranking, Selection)
        tasks = ranking.indices if ranked else ranking
        gains = ranking.gains if ranked else np.ones(len(tasks))
        if self.money is None:
            self.limits.check(total, len(tasks), tasks)
        else:
            total = min(total, int(self.limits.high[tasks].sum()))
            if total == 0:
                raise ValueError(
                    "nothing is left to choose in the chosen tasks: given and exclude hold all their rows"
                )
        sizes = self.rooms.by_task(self.rooms.size)[tasks]
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
            weight = float(weights[at] / weights.sum())
            templates = self.rooms.templates(task, budget)
            shares.append(Share(task, float(gains[at]), weight, budget, int(before[at]), templates))
        self.chooser.check(shares)
        return shares

    def share_most(self, ranking: Selection | np.ndarray, total: int) -> list[Share]:
        """The same of as many rows as these tasks can give, where that is less than the total."""
        tasks = ranking.indices if isinstance(ranking, Selection) else ranking
        return self.share(ranking, min(total, int(self.limits.high[tasks].sum())))

    def nested(self, budget: Any) -> bool:
        """Whether the rows of a smaller share are the first of a larger one."""
        return budget is None and self.quotas is None and self.job.options.polish is None


def _one_field(quotas: Any, n: int) -> Quotas | None:
    """The quotas of a mixture, checked. ValueError for more than one field."""
    every = as_quotas(quotas)
    if len(every) > 1:
        raise ValueError("quotas of a mixture must be of one field: label rows by all fields together")
    for each in every:
        check_quotas(each, n)
    return every[0] if every else None


def _described(x: np.ndarray) -> dict[str, Any]:
    return {"shape": list(x.shape), "dtype": str(x.dtype), "sha256": fingerprint(x)}


def _plain(limit: Any) -> Any:
    """A limit as a JSON value: pairs for a mapping, since tasks may be ints."""
    if isinstance(limit, Mapping):
        return [[task, int(rows)] for task, rows in limit.items()]
    return None if limit is None else int(limit)
