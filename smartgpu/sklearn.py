"""Estimators in the manner of scikit-learn: fit chooses rows, fit_resample returns them (docs/sklearn.md).

Imports scikit-learn (1.5 or later): pip install 'smartgpu[sklearn]'. The estimators have no transform: scikit-learn's
keep every row, and a step that drops some belongs in a pipeline of imbalanced-learn, which calls fit_resample.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import sklearn.utils.validation
from sklearn.base import BaseEstimator
from sklearn.utils import (
    _safe_indexing,
    check_array,
    check_consistent_length,
    check_random_state,
    column_or_1d,
)
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, check_non_negative

import smartgpu
from smartgpu.arrays import as_count
from smartgpu.objectives import FacilityLocation, FeatureBased, GraphCut, LogDet, Objective, QualityDiversity
from smartgpu.objectives.quality import SCALE
from smartgpu.similarity import Precomputed, Similarity, as_similarity

__all__ = [
    "FacilityLocationSelector",
    "FeatureBasedSelector",
    "GraphCutSelector",
    "LogDetSelector",
    "QualityDiversitySelector",
    "SubsetSelector",
]


class _Selector(BaseEstimator):
    """What all selectors share: parameters, fit, and what is left of it.

    n_select      rows to choose: an int is a count, a float in (0, 1] a share
    similarity    a name or an object; "precomputed": X is the matrix of similarities itself
    stratify      True: every class of y has the share of the chosen rows that it has of all (largest remainder)
    maximizer     "lazy" and "naive" are exact; "threshold" and "stochastic" approximate
    epsilon       of these two
    backend       "auto", "numpy" or "triton"
    random_state  None, an int or a RandomState: of "stochastic"
    n_jobs        threads of the CPU backend; None and -1 are all processors

    Fitted: ranking_ (k,) int64 row numbers in the order of the picks, gains_ (k,) float64 what each added, value_
    f of all, selection_ the smartgpu.Selection, sample_indices_ (what imbalanced-learn calls ranking_),
    n_features_in_, feature_names_in_. Errors are those of smartgpu.select(), before any work; so is the cost.
    """

    _sampling_type = "under-sampling"  # as imbalanced-learn's samplers say it
    _takes_sparse = _needs_y = _positive = False

    def __init__(
        self,
        n_select: int | float = 0.1,
        *,
        similarity: str | Similarity = "cosine",
        stratify: bool = False,
        maximizer: str = "lazy",
        epsilon: float = 0.01,
        backend: str = "auto",
        random_state: Any = None,
        n_jobs: int | None = None,
    ):
        self.n_select = n_select
        self.similarity = similarity
        self.stratify = stratify
        self.maximizer = maximizer
        self.epsilon = epsilon
        self.backend = backend
        self.random_state = random_state
        self.n_jobs = n_jobs

    def _objective(self, y: Any, sample_weight: np.ndarray | None) -> str | Objective:
        raise NotImplementedError

    def fit(self, X: Any, y: Any = None) -> _Selector:
        """Choose rows of X (n, d). y (n,) is used where stratify is True, and else only its length is looked at."""
        return self._fit(X, y)

    def fit_resample(self, X: Any, y: Any = None, **fit_params: Any) -> tuple[Any, Any]:
        """(rows, their y): X and y cut to the chosen rows, in the order of the picks, of the types that came.

        y None gives None. fit_params go to fit().
        """
        if isinstance(as_similarity(self.similarity), Precomputed):
            raise ValueError(
                "fit_resample needs rows of features, X is a matrix of similarities: use fit and ranking_"
            )
        self.fit(X, y, **fit_params)
        return _safe_indexing(X, self.ranking_), None if y is None else _safe_indexing(y, self.ranking_)

    def get_support(self, indices: bool = False) -> np.ndarray:
        """Which rows were chosen: a mask (n,) of the rows of fit(), or with indices their numbers, ascending."""
        check_is_fitted(self)
        rows = np.sort(self.ranking_)
        if indices:
            return rows
        mask = np.zeros(self.selection_.n, bool)
        mask[rows] = True
        return mask

    def _fit(self, X: Any, y: Any, sample_weight: Any = None) -> _Selector:
        x = _validated(self, X, self._takes_sparse)
        if self._positive:
            check_non_negative(x, type(self).__name__)
        if y is not None:
            check_consistent_length(x, y)
        if not isinstance(self.stratify, (bool, np.bool_)):
            raise TypeError(f"stratify must be True or False, got {self.stratify!r}")
        n = x.shape[0]
        k = as_count(self.n_select, n, "n_select")
        if sample_weight is not None:
            sample_weight = _check_sample_weight(sample_weight, x, dtype=np.float64)
        selection = smartgpu.select(
            x,
            k,
            self._objective(y, sample_weight),
            self.similarity,
            quotas=self._quotas(y, n) if self.stratify else None,
            maximizer=self.maximizer,
            epsilon=self.epsilon,
            seed=self._seed(),
            backend=self.backend,
            threads=self._threads(),
        )
        self.selection_ = selection
        self.ranking_ = self.sample_indices_ = selection.indices
        self.gains_, self.value_ = selection.gains, selection.value
        return self

    def _quotas(self, y: Any, n: int) -> smartgpu.Quotas:
        if y is None:
            raise ValueError("stratify=True requires y to be passed, but the target y is None")
        classes, codes = np.unique(column_or_1d(y), return_inverse=True)
        shares = np.bincount(codes, minlength=len(classes)) / n
        return smartgpu.Quotas(codes, exact=dict(enumerate(shares.tolist())), name="y")

    def _seed(self) -> int:
        if isinstance(self.random_state, (int, np.integer)):
            return self.random_state
        if self.maximizer != "stochastic":
            return 0
        return int(check_random_state(self.random_state).randint(2**31))

    def _threads(self) -> int | None:
        return None if self.n_jobs is None or self.n_jobs == -1 else self.n_jobs

    def _pairwise(self) -> bool:
        return getattr(self.similarity, "name", self.similarity) == Precomputed.name

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.pairwise, tags.input_tags.positive_only = self._pairwise(), self._positive
        tags.input_tags.sparse, tags.target_tags.required = self._takes_sparse, self._needs_y
        return tags

    def _more_tags(self) -> dict[str, bool]:  # scikit-learn 1.5
        return {
            "pairwise": self._pairwise(),
            "requires_y": self._needs_y,
            "requires_positive_X": self._positive,
        }


class SubsetSelector(_Selector):
    """Choose rows greedily by any objective, as smartgpu.select() does.

    n_select      rows to choose: an int is a count, a float in (0, 1] a share
    objective     "facility_location", "graph_cut", "log_det", or an object such as smartgpu.GraphCut(0.2)
    similarity    a name or an object; "precomputed": X is the matrix of similarities itself
    stratify      True: every class of y has the share of the chosen rows that it has of all (largest remainder)
    maximizer     "lazy" and "naive" are exact; "threshold" and "stochastic" approximate
    epsilon       of these two
    backend       "auto", "numpy" or "triton"
    random_state  None, an int or a RandomState: of "stochastic"
    n_jobs        threads of the CPU backend; None and -1 are all processors

    Fitted: ranking_ (k,) int64 row numbers in the order of the picks, gains_ (k,) float64 what each added, value_
    f of all, selection_ the smartgpu.Selection, sample_indices_ (what imbalanced-learn calls ranking_),
    n_features_in_, feature_names_in_. Errors are those of smartgpu.select(), before any work; so is the cost.
    """

    def __init__(
        self,
        n_select: int | float = 0.1,
        *,
        objective: str | Objective = "facility_location",
        similarity: str | Similarity = "cosine",
        stratify: bool = False,
        maximizer: str = "lazy",
        epsilon: float = 0.01,
        backend: str = "auto",
        random_state: Any = None,
        n_jobs: int | None = None,
    ):
        super().__init__(
            n_select,
            similarity=similarity,
            stratify=stratify,
            maximizer=maximizer,
            epsilon=epsilon,
            backend=backend,
            random_state=random_state,
            n_jobs=n_jobs,
        )
        self.objective = objective

    def _objective(self, y: Any, sample_weight: np.ndarray | None) -> str | Objective:
        return self.objective


class FacilityLocationSelector(_Selector):
    """Rows that represent all rows: smartgpu.FacilityLocation, sample_weight in fit() their weights.

    Parameters, what is fitted and errors as for SubsetSelector, but for objective.
    """

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> FacilityLocationSelector:
        """Choose rows of X (n, d); sample_weight (n,) numbers >= 0: how much it counts that a row is represented."""
        return self._fit(X, y, sample_weight)

    def _objective(self, y: Any, sample_weight: np.ndarray | None) -> Objective:
        return FacilityLocation(sample_weight)


class GraphCutSelector(_Selector):
    """Rows that are like many and unlike each other: smartgpu.GraphCut(lam).

    Parameters, what is fitted and errors as for SubsetSelector, but for objective.
    """

    def __init__(
        self,
        n_select: int | float = 0.1,
        *,
        lam: float = 0.4,
        similarity: str | Similarity = "cosine",
        stratify: bool = False,
        maximizer: str = "lazy",
        epsilon: float = 0.01,
        backend: str = "auto",
        random_state: Any = None,
        n_jobs: int | None = None,
    ):
        super().__init__(
            n_select,
            similarity=similarity,
            stratify=stratify,
            maximizer=maximizer,
            epsilon=epsilon,
            backend=backend,
            random_state=random_state,
            n_jobs=n_jobs,
        )
        self.lam = lam

    def _objective(self, y: Any, sample_weight: np.ndarray | None) -> Objective:
        return GraphCut(self.lam)


class LogDetSelector(_Selector):
    """Rows that span the largest volume (greedy MAP of a determinantal point process): smartgpu.LogDet(lam).

    Parameters, what is fitted and errors as for SubsetSelector, but for objective.
    """

    def __init__(
        self,
        n_select: int | float = 0.1,
        *,
        lam: float = 1.0,
        similarity: str | Similarity = "cosine",
        stratify: bool = False,
        maximizer: str = "lazy",
        epsilon: float = 0.01,
        backend: str = "auto",
        random_state: Any = None,
        n_jobs: int | None = None,
    ):
        super().__init__(
            n_select,
            similarity=similarity,
            stratify=stratify,
            maximizer=maximizer,
            epsilon=epsilon,
            backend=backend,
            random_state=random_state,
            n_jobs=n_jobs,
        )
        self.lam = lam

    def _objective(self, y: Any, sample_weight: np.ndarray | None) -> Objective:
        return LogDet(self.lam)


class QualityDiversitySelector(_Selector):
    """Rows of high quality that represent all: smartgpu.QualityDiversity, y the quality of each row.

    alpha         in [0, 1]: 0 is diversity alone, 1 quality alone
    scale         "paper", "mean", "minmax", "zscore" or "rank": in what units quality is added
    Parameters, what is fitted and errors as for SubsetSelector, but for objective and stratify.
    """

    _needs_y = True
    stratify = False

    def __init__(
        self,
        n_select: int | float = 0.1,
        *,
        alpha: float = 0.5,
        scale: str = SCALE,
        similarity: str | Similarity = "cosine",
        maximizer: str = "lazy",
        epsilon: float = 0.01,
        backend: str = "auto",
        random_state: Any = None,
        n_jobs: int | None = None,
    ):
        self.n_select = n_select
        self.alpha = alpha
        self.scale = scale
        self.similarity = similarity
        self.maximizer = maximizer
        self.epsilon = epsilon
        self.backend = backend
        self.random_state = random_state
        self.n_jobs = n_jobs

    def fit(self, X: Any, y: Any = None) -> QualityDiversitySelector:
        """Choose rows of X (n, d); y (n,) numbers, one quality per row."""
        if y is None:
            raise ValueError(f"{type(self).__name__} requires y to be passed, but the target y is None")
        return self._fit(X, y)

    def _objective(self, y: Any, sample_weight: np.ndarray | None) -> Objective:
        quality = check_array(column_or_1d(y, warn=True), ensure_2d=False, dtype=np.float64, input_name="y")
        return QualityDiversity(self.alpha, quality, self.scale)


class FeatureBasedSelector(_Selector):
    """Rows that hold every feature, with diminishing returns: smartgpu.FeatureBased. X >= 0, dense or scipy sparse.

    concave       "sqrt", "log", "inverse" or a function: see smartgpu.FeatureBased
    Parameters, what is fitted and errors as for SubsetSelector, but for objective and similarity.
    """

    _takes_sparse = _positive = True
    similarity = "cosine"  # plays no part

    def __init__(
        self,
        n_select: int | float = 0.1,
        *,
        concave: Any = "sqrt",
        stratify: bool = False,
        maximizer: str = "lazy",
        epsilon: float = 0.01,
        backend: str = "auto",
        random_state: Any = None,
        n_jobs: int | None = None,
    ):
        self.n_select = n_select
        self.concave = concave
        self.stratify = stratify
        self.maximizer = maximizer
        self.epsilon = epsilon
        self.backend = backend
        self.random_state = random_state
        self.n_jobs = n_jobs

    def _objective(self, y: Any, sample_weight: np.ndarray | None) -> Objective:
        return FeatureBased(concave=self.concave)


def _validated(estimator: BaseEstimator, X: Any, sparse: bool) -> Any:
    """X checked by scikit-learn, which also sets n_features_in_ and feature_names_in_."""
    how = {"accept_sparse": "csr" if sparse else False, "dtype": "numeric"}
    found = getattr(sklearn.utils.validation, "validate_data", None)
    return estimator._validate_data(X, **how) if found is None else found(estimator, X, **how)
