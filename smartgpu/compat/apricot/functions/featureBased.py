"""Feature based functions."""

import numpy as np

from smartgpu.compat.apricot.functions.base import KWDS, BaseSelection
from smartgpu.objectives import FeatureBased

CONCAVE = {"log": np.log1p, "sqrt": np.sqrt, "sigmoid": lambda x: x / (1.0 + x)}


class FeatureBasedSelection(BaseSelection):
    """f(S) = sum_u phi(sum_{j in S} x_ju) for features x >= 0, dense or sparse.

    concave_func  phi: "sqrt", "log" (log(1 + c)), "sigmoid" (c / (1 + c)), or a function of arrays
    The other arguments as for BaseSelection.
    """

    def __init__(
        self,
        n_samples,
        concave_func="sqrt",
        initial_subset=None,
        optimizer="two-stage",
        optimizer_kwds=KWDS,
        reservoir=None,
        max_reservoir_size=1000,
        n_jobs=1,
        random_state=None,
        verbose=False,
    ):
        if not callable(concave_func) and concave_func not in CONCAVE:
            raise KeyError(
                f"concave_func must be one of {', '.join(CONCAVE)}, or a function, got {concave_func!r}"
            )
        self.concave_func_name = concave_func
        self.concave_func = concave_func if callable(concave_func) else CONCAVE[concave_func]
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

    def _objective(self, table, before):
        return 1.0, FeatureBased(table, self.concave_func_name)
