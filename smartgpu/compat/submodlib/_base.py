"""SetFunction: the methods that every function has."""

from __future__ import annotations

from typing import Any

import numpy as np

from smartgpu.compat.submodlib import _checks as check
from smartgpu.compat.submodlib._greedy import Problem, Wanted, checked_seed, picks
from smartgpu.objectives import State


class SetFunction:
    """A set function f over elements 0 to n - 1. A subclass says what f is: its _problem()."""

    def __init__(self, n, f, clusters):
        self.n = check.positive("n", n)

    def _start(self, arguments: dict[str, Any], problem: Problem | None = None) -> None:
        """Keep the constructor's arguments under their names, and what they say."""
        for name, value in arguments.items():
            if name not in ("self", "__class__"):
                setattr(self, name, value)
        self.n = check.positive("n", self.n)
        self.effective_ground = set(range(self.n))
        self._remembered: list[int] = []  # the set that memoization is of
        self._state: State | None = None  # it, once asked for
        self._function = self._problem() if problem is None else problem

    def _problem(self) -> Problem:
        raise NotImplementedError

    def _of(self, rows: list[int]) -> State:
        state = self._function.state()
        state.add(np.array(rows, np.int64))
        return state

    def _memo(self) -> State:
        if self._state is None:
            self._state = self._of(self._remembered)
        return self._state

    def _remember(self, rows: list[int]) -> None:
        self._remembered, self._state = rows, None

    def evaluate(self, X):
        """f(X), X a set of ints."""
        rows = check.subset(X, self.effective_ground)
        return float(self._of(rows).value()) if rows else 0.0

    def evaluateWithMemoization(self, X):
        """f of the set that memoization is of; 0 for no elements."""
        return float(self._memo().value()) if check.subset(X, self.effective_ground) else 0.0

    def marginalGain(self, X, element):
        """f(X + element) - f(X); 0 for an element of X."""
        rows, j = check.subset(X, self.effective_ground), check.element(element, self.effective_ground)
        return 0.0 if j in X else float(self._of(rows).evaluate(np.array([j])).gains[0])

    def marginalGainWithMemoization(self, X, element):
        """What the element would add to the set that memoization is of; 0 for an element of X."""
        check.subset(X, self.effective_ground)
        j = check.element(element, self.effective_ground)
        return 0.0 if j in X else float(self._memo().evaluate(np.array([j])).gains[0])

    def updateMemoization(self, X, element):
        """Memoization is of one element more, unless X holds it. X is left as it is."""
        check.subset(X, self.effective_ground)
        j = check.element(element, self.effective_ground)
        if j not in X and j not in self._remembered:
            self._remembered.append(j)
            if self._state is not None:
                self._state.add(np.array([j], np.int64))

    def setMemoization(self, X):
        """Memoization is of X."""
        self._remember(check.subset(X, self.effective_ground))

    def clearMemoization(self):
        """Memoization is of no elements."""
        self._remember([])

    def getEffectiveGroundSet(self):
        return set(self.effective_ground)

    def maximize(
        self,
        budget,
        optimizer="NaiveGreedy",
        stopIfZeroGain=False,
        stopIfNegativeGain=False,
        epsilon=0.1,
        verbose=False,
        show_progress=True,
        costs=None,
        costSensitiveGreedy=False,
        *,
        seed=None,
    ):
        """A set of large f within the budget, greedily: a list of (element, gain) in the order of the picks.

        budget      how many elements, or with costs what they may cost together
        optimizer   "NaiveGreedy", "LazyGreedy", or with a random set of candidates for each pick "StochasticGreedy",
                    "LazierThanLazyGreedy". The last two draw from the same distribution
        stopIfZeroGain, stopIfNegativeGain  end where the best gain is within 1e-5 of 0, below 0
        epsilon     random optimizers: sets of n / budget ln(1 / epsilon) elements; from 1 on, of epsilon elements
        verbose     print every pick; show_progress draws a bar on stderr
        costs       one number > 0 for each element; elements that are too dear are passed over
        costSensitiveGreedy  compare gain / cost, which is then what is returned
        seed        random optimizers; None is smartgpu.compat.options["seed"], or 0

        The highest index wins ties. Memoization is of what was chosen afterwards. Raises ValueError.
        """
        wanted = Wanted.check(
            self.n,
            budget,
            optimizer,
            epsilon,
            costs,
            costSensitiveGreedy,
            zero=bool(stopIfZeroGain),
            negative=bool(stopIfNegativeGain),
            seed=checked_seed(seed),
        )
        found = picks(self._function, wanted, bool(show_progress), bool(verbose))
        self._remember([j for j, _ in found])
        return found
