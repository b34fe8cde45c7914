"""Facility location."""

from smartgpu.compat.apricot.functions.base import KWDS, BaseGraphSelection
from smartgpu.objectives import FacilityLocation


class FacilityLocationSelection(BaseGraphSelection):
    """f(S) = sum_i max(0, max_{j in S} s_ij). Arguments as for BaseGraphSelection."""

    def __init__(
        self,
        n_samples,
        metric="euclidean",
        initial_subset=None,
        optimizer="lazy",
        optimizer_kwds=KWDS,
        n_neighbors=None,
        reservoir=None,
        max_reservoir_size=1000,
        n_jobs=1,
        random_state=None,
        verbose=False,
    ):
        super().__init__(
            n_samples,
            metric,
            initial_subset,
            optimizer,
            optimizer_kwds,
            n_neighbors,
            reservoir,
            max_reservoir_size,
            n_jobs,
            random_state,
            verbose,
        )

    def _objective(self, table, before):
        return 1.0, FacilityLocation()
