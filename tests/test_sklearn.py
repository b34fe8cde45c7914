"""Estimators: scikit-learn's own checks, the same rows as select(), pipelines of imbalanced-learn."""

import pickle

import numpy as np
import pytest
from oracle import synthetic

sklearn = pytest.importorskip(
    "sklearn", reason="scikit-learn is not installed (pip install 'smartgpu[sklearn]')"
)
from sklearn.base import clone
from sklearn.utils.estimator_checks import parametrize_with_checks

from smartgpu import FacilityLocation, FeatureBased, GraphCut, LogDet, QualityDiversity, Rbf, select
from smartgpu import sklearn as ours
from smartgpu.sklearn import (
    FacilityLocationSelector,
    FeatureBasedSelector,
    GraphCutSelector,
    LogDetSelector,
    QualityDiversitySelector,
    SubsetSelector,
)

N, K = 120, 14


@parametrize_with_checks([getattr(ours, name)() for name in ours.__all__])
def test_scikit_learns_own_checks(estimator, check):
    check(estimator)


@pytest.fixture
def pool(rng):
    """Rows, classes of 3 : 2 : 1, qualities."""
    y = np.repeat(["a", "b", "c"], [N // 2, N // 3, N // 6])
    return np.abs(synthetic(rng, N, 9)), rng.permutation(y), rng.random(N)


CASES = {
    "any": (
        lambda q: SubsetSelector(K, objective=LogDet(2.0), similarity=Rbf(0.1)),
        lambda q: LogDet(2.0),
        Rbf(0.1),
    ),
    "named": (lambda q: SubsetSelector(K, objective="graph_cut"), lambda q: GraphCut(), "cosine"),
    "fl": (lambda q: FacilityLocationSelector(K), lambda q: FacilityLocation(), "cosine"),
    "gc": (lambda q: GraphCutSelector(K, lam=0.2, similarity="dot"), lambda q: GraphCut(0.2), "dot"),
    "logdet": (lambda q: LogDetSelector(K, lam=0.5), lambda q: LogDet(0.5), "cosine"),
    "qdit": (
        lambda q: QualityDiversitySelector(K, alpha=0.7, scale="rank"),
        lambda q: QualityDiversity(0.7, q, "rank"),
        "cosine",
    ),
    "features": (
        lambda q: FeatureBasedSelector(K, concave="log"),
        lambda q: FeatureBased(concave="log"),
        "cosine",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_rows_are_those_of_select(pool, name):
    x, _, quality = pool
    make, spec, kind = CASES[name]
    estimator = make(quality).fit(x, quality)
    expected = select(x, K, spec(quality), kind)
    assert estimator.ranking_.tolist() == expected.indices.tolist()
    assert estimator.gains_.tolist() == expected.gains.tolist() and estimator.value_ == expected.value
    assert estimator.get_support(indices=True).tolist() == sorted(expected.indices.tolist())
    assert np.flatnonzero(estimator.get_support()).tolist() == sorted(expected.indices.tolist())
    assert estimator.selection_.objective == expected.objective and estimator.n_features_in_ == 9
    assert not hasattr(estimator, "transform") and not hasattr(estimator, "set_output")
    for other in (clone(estimator).fit(x, quality), pickle.loads(pickle.dumps(estimator))):
        assert other.ranking_.tolist() == expected.indices.tolist()
    share = clone(estimator).set_params(n_select=0.05).fit(x, quality)
    assert share.ranking_.tolist() == (
        expected.indices[:6].tolist() if name != "qdit" else share.ranking_.tolist()
    )
    assert len(share.ranking_) == 6


def test_options_reach_select(pool):
    x = pool[0]
    how = {"maximizer": "stochastic", "epsilon": 0.2}
    drawn = FacilityLocationSelector(K, **how, random_state=5, n_jobs=1).fit(x)
    assert drawn.ranking_.tolist() == select(x, K, **how, seed=5).indices.tolist()
    assert drawn.selection_.options["threads"] == 1 and drawn.selection_.options["epsilon"] == 0.2
    a, b = (FacilityLocationSelector(K, **how, random_state=np.random.RandomState(s)).fit(x) for s in (1, 1))
    assert a.ranking_.tolist() == b.ranking_.tolist()
    assert FacilityLocationSelector(K, **how).fit(x).ranking_.shape == (K,)
    threshold = LogDetSelector(K, maximizer="threshold", epsilon=0.3).fit(x)
    assert (
        threshold.ranking_.tolist()
        == select(x, K, "log_det", maximizer="threshold", epsilon=0.3).indices.tolist()
    )
    s = np.corrcoef(x) ** 2
    given = GraphCutSelector(K, similarity="precomputed").fit(s)
    assert given.ranking_.tolist() == select(s, K, "graph_cut", "precomputed").indices.tolist()


def test_sample_weight_is_how_much_a_row_counts(pool):
    x, _, weight = pool
    found = FacilityLocationSelector(K).fit(x, sample_weight=weight)
    assert found.ranking_.tolist() == select(x, K, FacilityLocation(weight)).indices.tolist()
    once = FacilityLocationSelector(K).fit(x, sample_weight=np.ones(N)).value_
    assert FacilityLocationSelector(K).fit(x, sample_weight=2.0 * np.ones(N)).value_ == pytest.approx(
        2 * once
    )
    for bad, match in (
        (weight[:5], "sample_weight"),
        (-weight, "weights must be >= 0"),
        (0 * weight, "must not all|at least one non-zero"),
    ):
        with pytest.raises(ValueError, match=match):
            FacilityLocationSelector(K).fit(x, sample_weight=bad)


@pytest.mark.parametrize("k,counts", [(12, [6, 4, 2]), (14, [7, 5, 2]), (1, [1, 0, 0]), (N, [60, 40, 20])])
def test_stratified_choice_keeps_the_shares_of_the_classes(pool, k, counts):
    x, y, _ = pool
    found = FacilityLocationSelector(k, stratify=True).fit(x, y)
    assert [int((y[found.ranking_] == c).sum()) for c in "abc"] == counts
    whole = FacilityLocationSelector(k).fit(x, y)
    assert found.value_ <= whole.value_ + 1e-9


def test_frames_stay_frames(pool):
    pd = pytest.importorskip("pandas")
    x, y, _ = pool
    frame = pd.DataFrame(x, columns=list("abcdefghi"), index=np.arange(N) + 1000)
    labels = pd.Series(y, index=frame.index, name="label")
    estimator = FacilityLocationSelector(K)
    rows, classes = estimator.fit_resample(frame, labels)
    assert estimator.feature_names_in_.tolist() == list("abcdefghi")
    pd.testing.assert_frame_equal(rows, frame.iloc[estimator.ranking_])
    pd.testing.assert_series_equal(classes, labels.iloc[estimator.ranking_])
    assert estimator.sample_indices_.tolist() == select(x, K).indices.tolist()
    rows, classes = estimator.fit_resample(x)
    assert np.array_equal(rows, x[estimator.ranking_]) and classes is None
    rows, classes = estimator.fit_resample(x.tolist(), y.tolist())
    assert rows == x[estimator.ranking_].tolist() and classes == y[estimator.ranking_].tolist()


def test_sparse_rows_where_the_objective_takes_them(pool):
    sparse = pytest.importorskip("scipy.sparse")
    x = np.where(pool[0] > 1, pool[0], 0)
    expected = select(x, K, FeatureBased()).indices.tolist()
    for form in (sparse.csr_matrix(x), sparse.csc_array(x), sparse.coo_matrix(x)):
        estimator = FeatureBasedSelector(K)
        rows, _ = estimator.fit_resample(sparse.csr_matrix(form))
        assert clone(estimator).fit(form).ranking_.tolist() == expected == estimator.ranking_.tolist()
        assert sparse.issparse(rows) and np.array_equal(rows.toarray(), x[expected])
    with pytest.raises(TypeError, match=r"[Ss]parse"):
        FacilityLocationSelector(K).fit(sparse.csr_matrix(x))


def test_in_a_pipeline_of_imbalanced_learn(pool):
    imblearn = pytest.importorskip("imblearn", reason="imbalanced-learn is not installed")
    from imblearn.pipeline import make_pipeline
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV
    from sklearn.preprocessing import StandardScaler

    x, y, _ = pool
    pipeline = make_pipeline(
        StandardScaler(), FacilityLocationSelector(30, stratify=True), LogisticRegression(max_iter=200)
    )
    pipeline.fit(x, y)
    scaled = StandardScaler().fit_transform(x)
    rows = FacilityLocationSelector(30, stratify=True).fit(scaled, y).ranking_
    assert pipeline[1].ranking_.tolist() == rows.tolist()
    alone = LogisticRegression(max_iter=200).fit(scaled[rows], y[rows])
    assert np.array_equal(pipeline.predict(x), alone.predict(scaled)) and len(pipeline.predict(x)) == N
    search = GridSearchCV(pipeline, {"facilitylocationselector__n_select": [10, 0.5]}, cv=2).fit(x, y)
    assert search.best_params_["facilitylocationselector__n_select"] in (10, 0.5), imblearn.__version__


BAD = {
    "n_select": (lambda x, y: SubsetSelector(0).fit(x), ValueError, "n_select must be at least 1"),
    "share": (lambda x, y: SubsetSelector(1.5).fit(x), ValueError, "n_select as a share"),
    "too many": (lambda x, y: SubsetSelector(N + 1).fit(x), ValueError, "n_select must be at most"),
    "objective": (lambda x, y: SubsetSelector(objective="x").fit(x), ValueError, "unknown objective"),
    "similarity": (lambda x, y: LogDetSelector(similarity="cosin").fit(x), ValueError, "did you mean 'cosine'"),
    "maximizer": (lambda x, y: LogDetSelector(maximizer="x").fit(x), ValueError, "unknown maximizer"),
    "lam": (lambda x, y: GraphCutSelector(lam=-1).fit(x), ValueError, "lam must be >= 0"),
    "alpha": (lambda x, y: QualityDiversitySelector(alpha=2).fit(x, x[:, 0]), ValueError, "alpha"),
    "no quality": (lambda x, y: QualityDiversitySelector().fit(x), ValueError, "requires y to be passed"),
    "quality words": (lambda x, y: QualityDiversitySelector().fit(x, y), ValueError, "could not convert"),
    "stratify": (lambda x, y: SubsetSelector(stratify="y").fit(x, y), TypeError, "stratify must be True or False"),
    "no classes": (lambda x, y: SubsetSelector(stratify=True).fit(x), ValueError, "requires y to be passed"),
    "lengths": (lambda x, y: SubsetSelector().fit(x, y[:-1]), ValueError, "inconsistent numbers of samples"),
    "jobs": (lambda x, y: SubsetSelector(n_jobs=0).fit(x), ValueError, "threads must lie in"),
    "negative": (lambda x, y: FeatureBasedSelector().fit(-x), ValueError, "Negative values in data"),
    "resample": (
        lambda x, y: SubsetSelector(similarity="precomputed").fit_resample(x @ x.T), ValueError, "use fit and ranking_"
    ),
    "not fitted": (lambda x, y: SubsetSelector().get_support(), sklearn.exceptions.NotFittedError, "not fitted"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input(pool, name):
    call, error, match = BAD[name]
    with pytest.raises(error, match=match):
        call(*pool[:2])
