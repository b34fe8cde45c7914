"""apricot's optimizers, by name and as objects: what each of them is here.

naive, lazy, approximate-lazy and two-stage are exact greedy, all of them by the fastest way there is (for functions of
one's own: naive asks for every gain, the others trust that the function is submodular). The others draw or approximate
as their names say, from numpy's RandomState as apricot does, so that the same seed draws the same rows.
"""

from __future__ import annotations

import numbers
from functools import partial
from typing import Any

import numpy as np

from smartgpu import heuristics
from smartgpu.heuristics import Pool, Search
from smartgpu.maximize import Run
from smartgpu.options import Options


def check_random_state(seed: Any) -> np.random.RandomState:
    """None (numpy's global state), an int, or a RandomState. ValueError for anything else."""
    if seed is None or seed is np.random:
        return np.random.mtrand._rand
    if isinstance(seed, numbers.Integral) and not isinstance(seed, bool):
        return np.random.RandomState(seed)
    if isinstance(seed, np.random.RandomState):
        return seed
    raise ValueError(f"random_state must be None, an integer or a numpy RandomState, got {seed!r}")


class BaseOptimizer:
    """What all optimizers have. function is the selector, which sets it; n_jobs is accepted, and all cores are used."""

    exact = False

    def __init__(self, function=None, random_state=None, n_jobs=None, verbose=False):
        self.function = function
        self.random_state = check_random_state(random_state)
        self.n_jobs = n_jobs
        self.verbose = verbose
        self.gains_ = None

    def search(self, n: int, k: float, custom: bool) -> Search:
        """The picks of one pool of n rows: k of them, or worth k. custom: the function may not be submodular."""
        raise ValueError(f"{type(self).__name__} cannot be part of another optimizer")

    def run(self, pool: Pool, k: int | None, options: Options, custom: bool = False, **limits: Any) -> Run:
        """One selection; limits are given, budget and cost."""
        search = self.search(pool.X.shape[0], limits.get("budget", k), custom)
        return heuristics.pick(pool.X, k, pool.objective, pool.similarity, search, options, **limits)


class NaiveGreedy(BaseOptimizer):
    """Exact greedy; of functions of one's own every gain is asked for at every pick."""

    exact = True

    def search(self, n, k, custom):
        return partial(heuristics.greedy, maximizer="naive" if custom else "lazy")


class LazyGreedy(BaseOptimizer):
    """Exact greedy."""

    exact = True

    def search(self, n, k, custom):
        return heuristics.greedy


class ApproximateLazyGreedy(BaseOptimizer):
    """Exact greedy: there is no need for beta."""

    exact = True

    def __init__(self, function=None, beta=0.9, random_state=None, n_jobs=None, verbose=False):
        self.beta = _share("beta", beta, closed=True)
        super().__init__(function, random_state, n_jobs, verbose)

    def search(self, n, k, custom):
        return heuristics.greedy


class TwoStageGreedy(BaseOptimizer):
    """n_first_selections picks by optimizer1, the others by optimizer2; where both are exact, exact greedy."""

    def __init__(
        self,
        function=None,
        n_first_selections=10,
        optimizer1="naive",
        optimizer2="lazy",
        random_state=None,
        n_jobs=None,
        verbose=False,
    ):
        self.n_first_selections = _count("n_first_selections", n_first_selections, 0)
        self.optimizer1, self.optimizer2 = optimizer1, optimizer2
        super().__init__(function, random_state, n_jobs, verbose)

    def search(self, n, k, custom):
        one = make_optimizer("optimizer1", self.optimizer1, self.random_state)
        two = make_optimizer("optimizer2", self.optimizer2, self.random_state)
        if one.exact and two.exact and not custom:
            return heuristics.greedy
        searches = [each.search(n, k, custom) for each in (one, two)]
        return lambda task: heuristics.two_stages(task, self.n_first_selections, *searches)


class StochasticGreedy(BaseOptimizer):
    """At each pick the best of a sample of max(int(-ln(epsilon) n / n_samples), 1) rows."""

    def __init__(self, function=None, epsilon=0.9, random_state=None, n_jobs=None, verbose=False):
        self.epsilon = _share("epsilon", epsilon)
        super().__init__(function, random_state, n_jobs, verbose)

    def search(self, n, k, custom):
        size = max(int(-np.log(self.epsilon) * n / k), 1)
        return lambda task: heuristics.stochastic(task, self.random_state, size)


class SampleGreedy(BaseOptimizer):
    """Another optimizer on a sample of max(int(n epsilon), 1) rows; all rows are represented."""

    def __init__(
        self, function=None, epsilon=0.9, optimizer="lazy", random_state=None, n_jobs=None, verbose=False
    ):
        self.epsilon, self.optimizer = _share("epsilon", epsilon, closed=True), optimizer
        super().__init__(function, random_state, n_jobs, verbose)

    def search(self, n, k, custom):
        keep = max(int(n * self.epsilon), 1)
        then = make_optimizer("optimizer", self.optimizer, self.random_state).search(n, k, custom)

        def search(task: heuristics.Task) -> None:
            left = int(task.constraint.open.sum()) - (n - keep)
            if left < (task.constraint.k if task.constraint.purse is None else 1):
                raise ValueError(
                    f"epsilon={self.epsilon} leaves {max(left, 0)} rows, fewer than the {task.constraint.k} to choose"
                )
            heuristics.thinned(task, self.random_state, n - keep, then)

        return search


class GreeDi(BaseOptimizer):
    """l rows of each of m random parts by optimizer1, then n_samples of these by optimizer2.

    Without m and l: m = 8, l = min(n_samples // 4, n // 8), and more where these would not be enough.
    """

    def __init__(
        self,
        function=None,
        m=None,
        l=None,  # noqa: E741 the peer's name
        optimizer1="lazy",
        optimizer2="lazy",
        random_state=None,
        n_jobs=None,
        verbose=False,
    ):
        self.m = None if m is None else _count("m", m, 1)
        self.l = None if l is None else _count("l", l, 1)
        self.optimizer1, self.optimizer2 = optimizer1, optimizer2
        super().__init__(function, random_state, n_jobs, verbose)

    def run(self, pool, k, options, custom=False, given=None, cost=None, budget=None):
        n = pool.X.shape[0]
        parts = min(self.m or 8, n)
        each = self.l
        if k is not None and each is None:
            each = max(min(k // 4, n // parts), -(-k // parts))
        if k is not None and k > parts * each:
            raise ValueError(f"m l must be at least n_samples, {k}, got {parts} x {each}")
        one = make_optimizer("optimizer1", self.optimizer1, self.random_state)
        two = make_optimizer("optimizer2", self.optimizer2, self.random_state)
        return heuristics.greedi(
            pool,
            k,
            self.random_state,
            parts=parts,
            each=each,
            one=one.search(-(-n // parts), each or budget, custom),
            two=two.search(n if each is None else parts * each, k or budget, custom),
            options=options,
            given=given,
            cost=cost,
            budget=budget,
        )


class RandomGreedy(BaseOptimizer):
    """Rows at random."""

    def search(self, n, k, custom):
        return lambda task: heuristics.at_random(task, self.random_state)


class ModularGreedy(BaseOptimizer):
    """The rows of the largest gains on their own."""

    def search(self, n, k, custom):
        return heuristics.modular


class BidirectionalGreedy(BaseOptimizer):
    """Randomised double greedy, up to n_samples rows."""

    def search(self, n, k, custom):
        return lambda task: heuristics.double_greedy(task, self.random_state)


class SieveGreedy(BaseOptimizer):
    """In fit(), where all rows are at hand, threshold greedy; what partial_fit() uses is sieve-streaming.

    epsilon  the step between thresholds: at least 1 - 1/e - epsilon of the best there, 1/2 - epsilon in a stream
    """

    def __init__(self, function=None, epsilon=0.01, random_state=None, n_jobs=None, verbose=False):
        self.epsilon = _share("epsilon", epsilon)
        super().__init__(function, random_state, n_jobs, verbose)

    def search(self, n, k, custom):
        return partial(heuristics.by_threshold, epsilon=self.epsilon)


OPTIMIZERS: dict[str, type[BaseOptimizer]] = {
    "random": RandomGreedy,
    "modular": ModularGreedy,
    "naive": NaiveGreedy,
    "lazy": LazyGreedy,
    "approximate-lazy": ApproximateLazyGreedy,
    "two-stage": TwoStageGreedy,
    "stochastic": StochasticGreedy,
    "sample": SampleGreedy,
    "greedi": GreeDi,
    "bidirectional": BidirectionalGreedy,
    "sieve": SieveGreedy,
}


def make_optimizer(
    name: str, value: Any, random_state: Any = None, options: dict | None = None
) -> BaseOptimizer:
    """An optimizer by name, with its options, or the object itself. ValueError, TypeError name the argument."""
    if isinstance(value, BaseOptimizer):
        return value
    if not isinstance(value, str) or value not in OPTIMIZERS:
        raise ValueError(
            f"{name} must be an optimizer object or one of {', '.join(OPTIMIZERS)}, got {value!r}"
        )
    return OPTIMIZERS[value](random_state=random_state, **(options or {}))


def _count(name: str, value: Any, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")
    return int(value)


def _share(name: str, value: Any, closed: bool = False) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise TypeError(f"{name} must be a number, got {value!r}")
    if not (0 < value < 1 or (closed and value == 1)):
        raise ValueError(f"{name} must lie in (0, 1{']' if closed else ')'}, got {value}")
    return float(value)
