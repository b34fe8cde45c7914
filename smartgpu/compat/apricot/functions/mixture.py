"""Sums of functions."""

import numpy as np

from smartgpu.compat.apricot import _pools
from smartgpu.compat.apricot.functions.base import KWDS, BaseSelection
from smartgpu.objectives import WeightedSum
from smartgpu.objectives.base import per_row
from smartgpu.similarity import Cosine


class MixtureSelection(BaseSelection):
    """f(S) = sum_t weights_t f_t(S) over selectors that stand for their functions: two at least.

    functions  selectors; of these only the function counts, not n_samples, metric, optimizer or initial_subset
    weights    numbers >= 0, None is 1 for all
    metric     "ignore": all functions see X as it is, functions of similarities as a precomputed matrix; any other: all
               see the similarity matrix that this metric makes of X, functions of features too
    The other arguments as for BaseGraphSelection.
    """

    def __init__(
        self,
        n_samples,
        functions,
        weights=None,
        metric="ignore",
        initial_subset=None,
        optimizer="two-stage",
        optimizer_kwds=KWDS,
        n_neighbors=None,
        reservoir=None,
        max_reservoir_size=1000,
        n_jobs=1,
        random_state=None,
        verbose=False,
    ):
        functions = list(functions)
        if len(functions) < 2:
            raise ValueError(f"functions must be at least two selectors, got {len(functions)}")
        for function in functions:
            if not isinstance(function, BaseSelection):
                raise TypeError(f"functions must be selectors, got {type(function).__name__}")
        self.functions, self.m = functions, len(functions)
        self.weights = np.ones(self.m) if weights is None else per_row("weights", weights)
        if len(self.weights) != self.m or (self.weights < 0).any():
            raise ValueError(f"weights must be {self.m} numbers >= 0, one for each function, got {weights!r}")
        self.custom = any(function.custom for function in functions)
        self.graph = any(function.graph for function in functions)
        self.tabular = any(function.tabular for function in functions)
        super().__init__(
            n_samples,
            initial_subset,
            optimizer,
            optimizer_kwds,
            reservoir,
            max_reservoir_size,
            n_jobs,
            random_state,
            verbose,
        )
        self.metric = _pools.as_metric(metric)
        self.n_neighbors = n_neighbors

    def _data(self, X):
        given = self.metric in _pools.GIVEN
        if not self.graph:
            return (X if given else _pools.whole(X, self.metric, self.n_neighbors)), Cosine(), None
        if self.tabular and not given:
            X = _pools.whole(X, self.metric, self.n_neighbors)
        data, kind = _pools.similarity(X, "ignore" if self.tabular else self.metric, self.n_neighbors)
        return data, kind, X if self.tabular else None

    def _objective(self, table, before):
        terms = [function._objective(table, before) for function in self.functions]
        return 1.0, WeightedSum(
            tuple((w * c, f) for w, (c, f) in zip(self.weights.tolist(), terms, strict=True))
        )
