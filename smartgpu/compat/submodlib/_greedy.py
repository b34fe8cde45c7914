"""maximize(): what is asked for, checked, and the picks."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from smartgpu import compat
from smartgpu.api import select
from smartgpu.constraints import Constraint, Purse, as_costs
from smartgpu.job import Job
from smartgpu.maximize import Picker, take_turns
from smartgpu.objectives import Ground, Objective, State
from smartgpu.options import Options, make_options
from smartgpu.similarity import Similarity, choose
from smartgpu.workers import one_thread

OPTIMIZERS = ("NaiveGreedy", "LazyGreedy", "StochasticGreedy", "LazierThanLazyGreedy")
ZERO = 1e-5  # a gain nearer to 0 than this is 0, for stopIfZeroGain
AHEAD = 64  # candidates whose gains are asked for together where a heap is followed


@dataclass
class Problem:
    """A function in this package's words: a pool, a similarity of it, and an objective.

    submodular  whether a stale gain bounds a fresh one; where it does not, LazyGreedy follows the peer's heap
    wrap        what becomes of a state before it is used
    """

    x: Any
    kind: str | Similarity
    objective: Objective
    submodular: bool = True
    wrap: Callable[[State], State] | None = None
    _ground: Ground | None = field(default=None, repr=False)

    def job(self, **options: Any) -> Job:
        known = {"seed", "epsilon", "maximizer", "tie_break"}
        here = {name: value for name, value in compat.options.items() if name not in known}
        return Job.check(self.x, self.objective, self.kind, make_options({**here, **options}))

    def state(self) -> State:
        """Nothing chosen yet. Features are prepared once."""
        if self._ground is None:
            job = self.job().sized(1)
            self._ground, self.objective = job.ground(), job.objective
        return self.bound(self._ground)

    def bound(self, ground: Ground, objective: Objective | None = None) -> State:
        state = (objective or self.objective).bind(ground)
        return state if self.wrap is None else self.wrap(state)


@dataclass(frozen=True)
class Wanted:
    """The arguments of maximize(), checked."""

    k: int
    optimizer: str
    zero: bool
    negative: bool
    sample: int  # candidates looked at for each pick, of the random optimizers
    money: float | None
    cost: np.ndarray | None
    by_cost: bool
    seed: int

    @classmethod
    def check(cls, n: int, budget: Any, optimizer: Any, epsilon: Any, costs: Any, by_cost: Any, **rest: Any):
        choose(optimizer, OPTIMIZERS, "optimizer")
        amount = _number("budget", budget)
        if amount < 0:
            raise ValueError(f"budget must be >= 0, got {budget!r}")
        if by_cost and costs is None:
            raise ValueError("costSensitiveGreedy needs costs: one number > 0 for each element")
        k, cost = min(int(np.ceil(amount)), n), None
        if costs is not None:
            cost = as_costs(costs, n)
            k = int(np.searchsorted(np.cumsum(np.sort(cost)), amount * (1 + 1e-9), side="right"))
        epsilon = _number("epsilon", epsilon)
        if epsilon <= 0:
            raise ValueError(
                f"epsilon must be > 0: below 1 it says how large the random sets are, from 1 on it is their size, "
                f"got {epsilon}"
            )
        sample = int(epsilon) if epsilon >= 1 else int(n / max(k, 1) * np.log(1 / epsilon))
        money = None if cost is None else amount
        return cls(
            k, optimizer, sample=min(max(sample, 1), n), money=money, cost=cost, by_cost=bool(by_cost), **rest
        )

    @property
    def random(self) -> bool:
        return self.optimizer in OPTIMIZERS[2:]

    def constraint(self, n: int) -> Constraint:
        purse = None if self.cost is None else Purse(self.cost, self.money)
        return Constraint(n, self.k, purse=purse, by_cost=self.by_cost)

    def ends(self, gain: float) -> bool:
        return (self.negative and gain < 0) or (self.zero and abs(gain) < ZERO)


def _number(name: str, value: Any) -> float:
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise ValueError(f"{name} must be a number, got {value!r}")
    if not np.isfinite(value):
        raise ValueError(f"{name} must be finite, got {value}")
    return float(value)


def picks(problem: Problem, wanted: Wanted, show: bool, verbose: bool) -> list[tuple[int, float]]:
    """Greedy's picks, each with its gain, or gain / cost where that is what was compared."""
    if wanted.k == 0:
        return []
    with _told(wanted.k, show, verbose) as tell:
        follow = wanted.optimizer == "LazyGreedy" and not problem.submodular
        if wanted.random or wanted.cost is not None or problem.wrap is not None or follow:
            found = _by_steps(problem, wanted, tell, follow)
        else:
            how = {**compat.options, "maximizer": "lazy", "tie_break": "high", "report": tell}
            done = select(problem.x, wanted.k, problem.objective, problem.kind, **how)
            found = list(zip(done.indices.tolist(), done.gains.tolist(), strict=True))
    if wanted.by_cost:
        found = [(j, gain / float(wanted.cost[j])) for j, gain in found]
    last = next((t for t, (_, gain) in enumerate(found) if wanted.ends(gain)), len(found))
    return found[:last]


def _by_steps(problem: Problem, wanted: Wanted, tell: Callable, follow: bool) -> list[tuple[int, float]]:
    """One greedy run over the package's states: costs as given, samples of a given size, the peer's heap."""
    job = problem.job().sized(wanted.k)
    memory = job.budget(wanted.k) if job.planned else None
    with job.failures(memory), one_thread():
        state = problem.bound(job.ground(memory), job.objective)
        picker = Steps(wanted.constraint(state.n), 0.0, None, tell)
        if follow:
            by_heap(state, picker)
        else:
            search = {"maximizer": "naive" if problem.wrap is not None else "lazy", "tie_break": "high"}
            if wanted.random:
                search["maximizer"] = "stochastic"
            search |= {"epsilon": float(wanted.sample), "seed": wanted.seed}
            take_turns([(state, picker)], None, search)
    return list(zip(picker.run.indices, picker.run.gains, strict=True))


class Steps(Picker):
    """Goes on to the last row that can be paid, whatever it gains: where to stop is for the caller."""

    def may_end(self, gain: float) -> bool:
        return False

    def goal(self, order: Any) -> None:
        return None


def by_heap(state: State, picker: Picker) -> None:
    """LazyGreedy where gains may rise, as the peer has it: no longer greedy, but the same picks.

    A heap of (gain when last asked, index), the largest first. Its first element is asked again, and picked if its gain
    is no less than the next one's.
    """
    rate, open_ = picker.constraint.rate, picker.constraint.open
    heap = [(-float(r), -j) for j, r in enumerate(rate(state.gains()))]
    heapq.heapify(heap)
    fresh: dict[int, float] = {}
    while heap and not picker.done:
        _, j = heapq.heappop(heap)
        if not open_[-j]:  # too dear by now
            continue
        if -j not in fresh:  # those that stand at the front of the heap are likely to be asked next
            near = {-j, *(-i for _, i in heap[: AHEAD - 1])}
            cols = np.array(sorted(i for i in near if open_[i] and i not in fresh))[: state.max_batch]
            fresh |= dict(zip(cols.tolist(), state.evaluate(cols).gains.tolist(), strict=True))
        gain = fresh[-j]
        now = float(rate(np.array([gain]), np.array([-j]))[0])
        if heap and now < -heap[0][0]:
            heapq.heappush(heap, (-now, j))
            continue
        state.add(np.array([-j]))
        picker.take(-j, gain)
        fresh.clear()


@contextmanager
def _told(k: int, show: bool, verbose: bool) -> Iterator[Callable]:
    from tqdm.auto import tqdm

    with tqdm(total=k, desc="picks", unit="row", mininterval=0.5, disable=not show, leave=False) as bar:

        def tell(j: int, gain: float) -> None:
            bar.update()
            if verbose:
                print(f"element {j}, gain {gain:.9g}", flush=True)

        yield tell


def checked_seed(value: Any) -> int:
    return Options(seed=compat.options.get("seed", 0) if value is None else value).seed
