"""Functions of the user's own."""

import numpy as np

from smartgpu.compat.apricot import _pools
from smartgpu.compat.apricot.functions.base import KWDS, BaseGraphSelection, BaseSelection
from smartgpu.objectives.set_function import SetFunction
from smartgpu.similarity import Cosine


class _Custom:
    """A function of the user's, of what chosen rows hold."""

    custom = True

    def _keep(self, function, function_kwds):
        if not callable(function):
            raise ValueError(f"function must be callable, got {type(function).__name__}")
        self.function, self.function_kwds = function, dict(function_kwds)

    def _objective(self, table, before):
        return 1.0, SetFunction(self.function, _pools.dense(table), before, self.function_kwds)


class CustomSelection(_Custom, BaseSelection):
    """f(S) = function(rows of S): a function of an (m, d) matrix, in pick order, that returns a number.

    function_kwds  further arguments of every call
    The other arguments as for BaseSelection. Optimizers other than "naive" trust that the function is submodular.
    """

    def __init__(
        self,
        n_samples,
        function,
        initial_subset=None,
        optimizer="two-stage",
        optimizer_kwds=KWDS,
        function_kwds=KWDS,
        n_jobs=1,
        random_state=None,
        verbose=False,
    ):
        self._keep(function, function_kwds)
        super().__init__(
            n_samples,
            initial_subset,
            optimizer,
            optimizer_kwds,
            n_jobs=n_jobs,
            random_state=random_state,
            verbose=verbose,
        )

    def _data(self, X):
        rows = _pools.dense(X)
        return rows, Cosine(), rows


class CustomGraphSelection(_Custom, BaseGraphSelection):
    """f(S) = function(rows of the similarity matrix of S): (m, n), each row a chosen row's similarity to the pool.

    Arguments as for CustomSelection, and metric as for BaseGraphSelection. It takes the n x n matrix.
    """

    graph, tabular = False, True

    def __init__(
        self,
        n_samples,
        function,
        metric="euclidean",
        initial_subset=None,
        optimizer="two-stage",
        optimizer_kwds=KWDS,
        function_kwds=KWDS,
        n_jobs=1,
        random_state=None,
        verbose=False,
    ):
        self._keep(function, function_kwds)
        super().__init__(
            n_samples,
            metric,
            initial_subset,
            optimizer,
            optimizer_kwds,
            n_jobs=n_jobs,
            random_state=random_state,
            verbose=verbose,
        )

    def _data(self, X):
        rows = _pools.dense(_pools.whole(X, self.metric))
        return np.zeros((len(rows), 1)), Cosine(), rows
