"""Sum redundancy."""

from smartgpu.compat.apricot.functions.base import KWDS, BaseGraphSelection
from smartgpu.objectives import SumRedundancy


class SumRedundancySelection(BaseGraphSelection):
    """f(S) = -sum_{i,j in S} s_ij, over ordered pairs, the diagonal included. Arguments as for BaseGraphSelection."""

    def __init__(
        self,
        n_samples=10,
        metric="euclidean",
        initial_subset=None,
        optimizer="two-stage",
        n_neighbors=None,
        reservoir=None,
        max_reservoir_size=1000,
        n_jobs=1,
        random_state=None,
        optimizer_kwds=KWDS,
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
        return 1.0, SumRedundancy()
