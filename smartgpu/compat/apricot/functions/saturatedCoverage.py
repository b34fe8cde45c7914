"""Saturated coverage."""

from smartgpu.compat.apricot.functions.base import KWDS, BaseGraphSelection
from smartgpu.objectives import SaturatedCoverage


class SaturatedCoverageSelection(BaseGraphSelection):
    """f(S) = sum_i min(sum_{j in S} s_ij, alpha sum_{j in V} s_ij), for similarities >= 0.

    alpha in (0, 1]; the other arguments as for BaseGraphSelection (max_reservoir_size None is 1000).
    """

    def __init__(
        self,
        n_samples=10,
        metric="euclidean",
        alpha=0.1,
        initial_subset=None,
        optimizer="two-stage",
        n_neighbors=None,
        n_jobs=1,
        random_state=None,
        reservoir=None,
        max_reservoir_size=None,
        optimizer_kwds=KWDS,
        verbose=False,
    ):
        self.alpha = SaturatedCoverage(alpha).alpha
        super().__init__(
            n_samples,
            metric,
            initial_subset,
            optimizer,
            optimizer_kwds,
            n_neighbors,
            reservoir,
            1000 if max_reservoir_size is None else max_reservoir_size,
            n_jobs,
            random_state,
            verbose,
        )

    def _objective(self, table, before):
        return 1.0, SaturatedCoverage(self.alpha)
