"""Max coverage."""

from smartgpu.compat.apricot.functions.base import KWDS, BaseSelection
from smartgpu.objectives import MaxCoverage


class MaxCoverageSelection(BaseSelection):
    """f(S) = sum_u min(sum_{j in S} x_ju, threshold) for features x >= 0, dense or sparse.

    threshold > 0; the other arguments as for BaseSelection.
    """

    def __init__(
        self,
        n_samples,
        threshold=1.0,
        initial_subset=None,
        optimizer="two-stage",
        optimizer_kwds=KWDS,
        n_jobs=1,
        random_state=None,
        verbose=False,
    ):
        MaxCoverage(threshold=threshold)
        self.threshold = threshold
        super().__init__(
            n_samples,
            initial_subset,
            optimizer,
            optimizer_kwds,
            n_jobs=n_jobs,
            random_state=random_state,
            verbose=verbose,
        )

    def _objective(self, table, before):
        return 1.0, MaxCoverage(table, self.threshold)
