"""Graph cut."""

from smartgpu.compat.apricot.functions.base import KWDS, BaseGraphSelection
from smartgpu.objectives import GraphCut, SumRedundancy
from smartgpu.objectives.graph_cut import nonnegative


class GraphCutSelection(BaseGraphSelection):
    """f(S) = alpha sum_{i in V, j in S} s_ij - sum_{i,j in S} s_ij, over ordered pairs, the diagonal included.

    alpha >= 0; the other arguments as for BaseGraphSelection. It is alpha times smartgpu.GraphCut(lam=1 / alpha).
    """

    def __init__(
        self,
        n_samples=10,
        metric="euclidean",
        alpha=1,
        initial_subset=None,
        optimizer="naive",
        optimizer_kwds=KWDS,
        n_neighbors=None,
        reservoir=None,
        max_reservoir_size=1000,
        n_jobs=1,
        random_state=None,
        verbose=False,
    ):
        self.alpha = nonnegative("alpha", alpha)
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
        return (self.alpha, GraphCut(1 / self.alpha)) if self.alpha else (1.0, SumRedundancy())
