"""Other ways to pick rows than exact greedy, over any objective: modular, random, sampled, two stages, double, GreeDi.

They are here for code that asks for them by name, and to compare with. pick() is one run of any of them, or of greedy
itself. What it draws comes from the caller's generator, numpy's Generator or RandomState, and every run ends.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from smartgpu.constraints import Constraint
from smartgpu.maximize import Order, Picker, Run, maximize, sampled, threshold
from smartgpu.objectives import Objective, State
from smartgpu.options import Options
from smartgpu.selecting import Call, Wanted, attempt
from smartgpu.similarity import Similarity
from smartgpu.workers import one_thread

Generator = np.random.Generator | np.random.RandomState


@dataclass
class Task:
    """A run whose picks are still to be made: the state of no picks yet, and what takes them.

    bind() gives a state of no picks anew; monotone says that no gain of the objective can be below 0.
    """

    state: State
    picker: Picker
    order: Order
    bind: Callable[[], State]
    monotone: bool

    @property
    def constraint(self) -> Constraint:
        return self.picker.constraint

    def take(self, j: int) -> None:
        """Pick row j, at its gain by now."""
        gain = float(self.state.evaluate(np.array([j])).gains[0])
        self.state.add(np.array([j]))
        self.picker.run.evaluations += 1
        self.picker.take(int(j), gain)


Search = Callable[[Task], None]


def pick(
    X: Any,
    k: int | None,
    objective: str | Objective,
    similarity: str | Similarity,
    search: Search,
    options: Options | None = None,
    *,
    by_cost: bool = True,
    **wanted: Any,
) -> Run:
    """One run of `search` over a pool: indices and gains, in pick order.

    Arguments as for select(), with given, exclude, budget and cost in `wanted`; of the options those that say where to
    run, and ties. With a budget there is one run, by gain / cost or by gain: rows that can be paid no more are passed
    over, and gains below 0 do not end it (select() makes two such runs, ends them there, and returns the better).
    Raises as select() does.
    """
    options = options or Options()

    def check(how: Options) -> _Once:
        return _Once(Call.check(X, objective, similarity, how, Wanted(k, **wanted)), search, by_cost)

    return attempt(check, options)


@dataclass
class _Once:
    call: Call
    search: Search
    by_cost: bool

    def run(self, instead: Options | None = None) -> Run:
        call, job = self.call, self.call.job
        ground = job.ground(call.memory)

        def bind() -> State:
            state = job.objective.bind(ground)
            if len(call.given):
                state.add(call.given)
            return state

        constraint = call.constraint(self.by_cost)
        constraint.stops = False
        picker = Picker(constraint, 0.0, None, job.options.report)
        try:
            job.objective.need_monotone(job.x, job.kind)
            monotone = True
        except ValueError:
            monotone = False
        with job.failures(call.memory, fresh=True):
            state = bind()
        with one_thread(), job.failures(call.memory):
            self.search(Task(state, picker, Order(job.options.tie_break), bind, monotone))
        ground.check_inputs()
        return picker.run


# -- searches: each makes the picks of a task -------------------------------------------------------------------------


def greedy(task: Task, maximizer: str = "lazy") -> None:
    """Exact greedy, "lazy" or "naive"; the naive one for functions that may not be submodular."""
    tie_break = "low" if task.order.low else "high"
    task.picker.known = None  # of another search
    maximize(task.state, task.picker, maximizer, tie_break=tie_break, epsilon=0.5, seed=0)


def by_threshold(task: Task, epsilon: float) -> None:
    """Rows in turn whose gain is 1 - epsilon of the largest there is (Badanidiyuru and Vondrak, SODA 2014)."""
    threshold(task.state, task.picker, task.order, epsilon=epsilon)


def modular(task: Task) -> None:
    """The rows of the largest gain (per cost) on their own, as if no row took anything from another."""
    alone = task.state.gains()
    task.picker.run.evaluations += len(alone)
    while not task.picker.done:
        task.take(task.order.best(task.constraint.rate(np.where(task.constraint.open, alone, -np.inf))))


def at_random(task: Task, rng: Generator) -> None:
    """Rows drawn one by one, each as likely as any other that may still be picked."""
    while not task.picker.done:
        task.take(int(rng.choice(np.flatnonzero(task.constraint.open))))


def stochastic(task: Task, rng: Generator, size: int) -> None:
    """At each pick the best of a fresh sample of `size` rows (Mirzasoleiman et al., AAAI 2015)."""
    sampled(task.state, task.picker, task.order, rng, size)


def thinned(task: Task, rng: Generator, leave_out: int, then: Search = greedy) -> None:
    """`then`, on what is left when so many rows, drawn at random, may not be picked (Feldman et al., 2017)."""
    open_ = task.constraint.open
    open_[rng.choice(np.flatnonzero(open_), leave_out, replace=False)] = False
    then(task)


def two_stages(task: Task, first: int, one: Search, two: Search) -> None:
    """`first` picks by one search, the others by another."""
    constraint = task.constraint
    k = constraint.k
    constraint.k = min(k, constraint.taken + first)
    one(task)
    constraint.k = k
    two(task)


def double_greedy(task: Task, rng: Generator) -> None:
    """Randomised double greedy, for functions that are not monotone (Buchbinder et al., FOCS 2012), up to k rows.

    Rows come in a random order. A is what was kept, B that and all rows still to come. With a = max(f(A + j) - f(A), 0)
    and b = max(f(B - j) - f(B), 0), row j is kept with probability a / (a + b), and where both are 0. Without a limit
    on rows E f(A) >= f(OPT) / 2. Where fewer than k were kept, greedy picks the rest. Monotone functions have b = 0;
    for others f(B - j) is computed anew for every row: about n sweeps, for pools of a few thousand rows.
    """
    rows = rng.permutation(np.flatnonzero(task.constraint.open))
    for t, j in enumerate(rows.tolist()):
        if task.picker.done:
            return
        if not task.constraint.open[j]:  # too dear by now
            continue
        gain = max(float(task.state.evaluate(np.array([j])).gains[0]), 0.0)
        loss = 0.0
        if not task.monotone:
            without = task.bind()
            without.add(np.array([*task.picker.run.indices, *rows[t + 1 :].tolist()], np.int64))
            loss = max(-float(without.evaluate(np.array([j])).gains[0]), 0.0)
        task.picker.run.evaluations += 2 - task.monotone
        if gain == loss == 0.0 or rng.uniform() * (gain + loss) < gain:
            task.take(j)
    greedy(task)


# -- in parts ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pool:
    """A pool and what is maximised over it; take(rows) is the same over some of its rows alone."""

    X: Any
    objective: Objective
    similarity: Similarity

    def take(self, rows: np.ndarray) -> Pool:
        inside = self.X[rows]
        if self.similarity.name == "precomputed":
            inside = inside[:, rows]
        return replace(self, X=inside, objective=self.objective.take(rows))


def greedi(
    pool: Pool,
    k: int | None,
    rng: Generator,
    *,
    parts: int,
    each: int | None,
    one: Search = greedy,
    two: Search = greedy,
    options: Options | None = None,
    given: np.ndarray | None = None,
    cost: np.ndarray | None = None,
    budget: float | None = None,
) -> Run:
    """GreeDi: `each` rows of every part of a random partition, then k rows of these (Mirzasoleiman et al., NIPS 2013).

    Within a part, and then within the union, f is that of those rows alone: a part of n / parts rows costs 1 / parts^2
    of a sweep. Rows given count in all of them. With a budget every part may spend all of it. The gains returned are
    those of the picks in the whole pool, in their order. The pool is dense, or sliced by rows and columns as scipy's
    CSR matrices are.
    """
    n = pool.X.shape[0]
    given = np.empty(0, np.int64) if given is None else given
    numbers = np.arange(n) % parts
    rng.shuffle(numbers)
    numbers[given] = -1

    def within(rows: np.ndarray, count: int | None, search: Search) -> np.ndarray:
        rows = np.concatenate([rows, given])
        limits = {} if cost is None else {"budget": budget, "cost": cost[rows]}
        if cost is not None and cost[rows[: len(rows) - len(given)]].min() > budget:
            return rows[:0]
        sub, held = pool.take(rows), np.arange(len(rows) - len(given), len(rows))
        run = pick(sub.X, count, sub.objective, sub.similarity, search, options, given=held, **limits)
        return rows[run.indices]

    found = []
    for part in range(parts):
        rows = np.flatnonzero(numbers == part)
        if len(rows):
            found.append(within(rows, None if each is None else min(each, len(rows)), one))
    union = np.sort(np.concatenate(found))
    chosen = within(union, None if k is None else min(k, len(union)), two)

    def again(task: Task) -> None:
        for j in chosen.tolist():
            task.take(j)

    limits = {} if cost is None else {"budget": budget, "cost": cost}
    return pick(pool.X, len(chosen), pool.objective, pool.similarity, again, options, given=given, **limits)
