"""QDIT: the objective by its definition, its ends, its way through select, mix and the command line; the baselines."""

import itertools
import json

import numpy as np
import pytest
from conftest import ROOT
from oracle import N, check, synthetic, with_copies

import smartgpu
from smartgpu import (
    FacilityLocation,
    Modular,
    QualityDiversity,
    alpha_path,
    baselines,
    cli,
    evaluate,
    reference,
    select,
)
from smartgpu.alpha import suggest
from smartgpu.objectives.quality import SCALES
from smartgpu.similarity import as_similarity

COSINE = as_similarity("cosine")


def transformed(q, scale):
    """t(q) as on the page, row by row."""
    n = len(q)
    if scale in ("paper", "mean"):
        return np.array(q, float)
    if scale == "minmax":
        return np.array([(v - min(q)) / (max(q) - min(q)) for v in q])
    if scale == "zscore":
        mean = sum(q) / n
        std = (sum((v - mean) ** 2 for v in q) / n) ** 0.5
        return np.array([(v - mean) / std for v in q])
    below = [sum(w < v for w in q) for v in q]
    equal = [sum(w == v for w in q) for v in q]
    return np.array([(b + (e - 1) / 2) / (n - 1) for b, e in zip(below, equal, strict=True)])


def ratings(rng, n, levels=6):
    return rng.integers(0, levels, n).astype(float)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("represented", ["pool", "weights", "others"])
def test_the_sum_is_that_of_the_definition(scale, represented, rng):
    x, k, alpha = synthetic(rng, 90), 12, 0.3
    q = np.concatenate([ratings(rng, 45) - 2, rng.standard_normal(45)])
    cover = {}
    if represented == "weights":
        cover = {"weights": rng.random(90)}
    elif represented == "others":
        cover = {"represented": synthetic(rng, 31), "weights": None}
    w = {"pool": 90, "others": 31}.get(represented) or cover["weights"].sum()
    spec = QualityDiversity(alpha, q, scale, **cover)
    S = rng.choice(90, k, replace=False)
    fl = reference.Problem(x, COSINE, FacilityLocation(**cover)).value(S)
    t = transformed(q.tolist(), scale)[S]
    if scale == "paper":
        expected = (1 - alpha) * fl + alpha * t.sum()
    else:  # W times: mean coverage against mean quality
        expected = w * ((1 - alpha) * fl / w + alpha * t.mean())
    assert reference.Problem(x, COSINE, spec.sized(90, k)).value(S) == pytest.approx(expected, rel=1e-12)
    assert evaluate(x, S, spec).value == pytest.approx(expected, rel=1e-6)
    assert evaluate(x, S, spec, backend="reference").value == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("alpha", [0.02, 0.5, 0.9])
@pytest.mark.parametrize("copies", [False, True])
def test_picks_are_the_references(scale, alpha, copies, rng):
    x = synthetic(rng)
    if copies:
        x = with_copies(x, rng)
    q = ratings(rng, N) - 1.5  # of both signs, with ties
    spec = QualityDiversity(alpha, q, scale)
    sel = select(x, 60, spec)
    share = check(sel, x, COSINE, spec.sized(N, 60), copies_tie=False)
    assert share > (0.3 if copies else 0.6)
    assert sel.objective["c"] == (1.0 if scale == "paper" else N / 60)
    by_reference = select(x, 60, spec, backend="reference")
    assert by_reference.value == pytest.approx(sel.value, rel=1e-5, abs=1e-3)


@pytest.mark.parametrize("scale", SCALES)
def test_alpaca_against_the_reference(scale, alpaca, rng):
    pq = pytest.importorskip("pyarrow.parquet")
    path = ROOT.parent / "shared" / "data" / "alpaca" / "quality.parquet"
    if not path.is_file():
        pytest.skip(f"no {path}")
    rows = np.sort(rng.choice(len(alpaca), 2000, replace=False))
    x = np.asarray(alpaca[rows], np.float32)
    q = pq.read_table(path).column("ds2_llama31_8b").to_numpy()[rows]
    spec = QualityDiversity(0.7 if scale == "paper" else 0.1, q, scale)
    sel = select(x, 80, spec)
    assert check(sel, x, COSINE, spec.sized(2000, 80), copies_tie=False) > 0.8


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("tie_break", ["low", "high"])
def test_alpha_0_is_facility_location_bit_for_bit(scale, tie_break, rng):
    x, q, how = with_copies(synthetic(rng, 1500), rng), ratings(rng, 1500), {"tie_break": tie_break}
    weights, given = rng.random(1500), [5, 9]
    for cover, more in (({}, {}), ({"weights": weights}, {"given": given, "exclude": [0, 1]})):
        ours = select(x, 200, QualityDiversity(0, q, scale, **cover), **more, **how)
        plain = select(x, 200, FacilityLocation(**cover), **more, **how)
        assert np.array_equal(ours.indices, plain.indices)
        assert np.array_equal(ours.gains, plain.gains)
        assert (ours.value, ours.base_value) == (plain.value, plain.base_value)


@pytest.mark.parametrize("scale", SCALES)
def test_alpha_1_is_top_k_by_quality(scale, rng):
    x, q = synthetic(rng), ratings(rng, N) - 3
    sel = select(x, 150, QualityDiversity(1, q, scale))
    assert np.array_equal(sel.indices, np.argsort(-q, kind="stable")[:150])
    high = select(x, 150, QualityDiversity(1, q, scale), tie_break="high")
    assert np.array_equal(high.indices, np.lexsort((-np.arange(N), -q))[:150])


def test_any_combination_is_the_references():
    hypothesis = pytest.importorskip("hypothesis")
    st = hypothesis.strategies

    @hypothesis.settings(max_examples=60)
    @hypothesis.given(
        seed=st.integers(0, 10**6),
        n=st.integers(2, 60),
        alpha=st.sampled_from([0.0, 1e-3, 0.1, 0.5, 0.99, 1.0]),
        scale=st.sampled_from(SCALES),
        cover=st.sampled_from(["pool", "weights", "others"]),
        kind=st.sampled_from(["cosine", "rbf", "dot", "exp_euclidean"]),
        tie_break=st.sampled_from(["low", "high"]),
        data=st.data(),
    )
    def holds(seed, n, alpha, scale, cover, kind, tie_break, data):
        rng = np.random.default_rng(seed)
        x = with_copies(synthetic(rng, n, 5), rng)
        q = np.concatenate([[-1.0, 2.0], ratings(rng, n - 2, 4)])
        more = {
            "pool": {},
            "weights": {"weights": rng.random(n) + 0.01},
            "others": {"represented": synthetic(rng, 17, 5)},
        }
        spec = QualityDiversity(alpha, q, scale, **more[cover])
        order = rng.permutation(n).tolist()
        given = order[: data.draw(st.integers(0, n // 3))]
        closed = order[len(given) : len(given) + data.draw(st.integers(0, n // 3))]
        k = data.draw(st.integers(1, n - len(given) - len(closed)))
        sel = select(x, k, spec, kind, given=given, exclude=closed, tie_break=tie_break)
        how = {"given": given, "closed": closed, "tie_break": tie_break, "copies_tie": False}
        r = 17 if cover == "others" else n
        check(sel, x, as_similarity(kind), spec.sized(r, k), **how)
        if alpha == 1:
            left = [j for j in range(n) if j not in given and j not in closed]
            sign = 1 if tie_break == "low" else -1
            assert sel.indices.tolist() == sorted(left, key=lambda j: (-q[j], sign * j))[:k]

    holds()


def test_copies_of_one_quality_tie_to_the_lowest(rng):
    x = synthetic(rng, 60)
    x = np.concatenate([x, x])
    q = np.tile(ratings(rng, 60), 2)
    sel = select(x, 40, QualityDiversity(0.2, q))
    for at, j in enumerate(sel.indices):
        assert j < 60 or j - 60 in sel.indices[:at]


def test_k_is_what_is_asked_for(rng):
    x, q = synthetic(rng), rng.random(N)
    spec = QualityDiversity(0.4, q)
    assert select(x, 0.1, spec).objective["k"] == 42
    assert smartgpu.rank(x[:80], QualityDiversity(0.4, q[:80]), exclude=[0, 1]).objective["k"] == 78
    cost = rng.integers(1, 9, N).astype(float)
    most = int(np.searchsorted(np.cumsum(np.sort(cost)), 50, side="right"))
    paid = select(x, objective=spec, budget=50, cost=cost)
    assert paid.objective["k"] == most and cost[paid.indices].sum() <= 50
    check_by_hand = reference.Problem(x, COSINE, spec.sized(N, most)).value(paid.indices)
    assert paid.value == pytest.approx(check_by_hand, rel=1e-6)
    reached = select(x, objective=spec, coverage=0.2)
    assert reached.objective["k"] == N and reached.objective["c"] == 1.0
    s = np.abs(rng.random((30, N)))  # represented x candidates: n is the represented rows
    assert select(s, 15, spec, "precomputed").objective["c"] == 2.0


def test_within_the_factor_of_the_best_possible():
    for seed in range(25):
        rng = np.random.default_rng(seed)
        x, q = synthetic(rng, 12), rng.random(12) * 4
        spec = QualityDiversity(float(rng.random()), q, SCALES[seed % 5 if seed % 5 != 3 else 0])
        problem = reference.Problem(x, COSINE, spec.sized(12, 3))
        best = max(problem.value(S) for S in itertools.combinations(range(12), 3))
        assert select(x, 3, spec).value >= (1 - np.exp(-1)) * best - 1e-6


def test_monotone_where_quality_is_not_negative(rng):
    x, q = synthetic(rng, 100), rng.standard_normal(100)
    with pytest.raises(ValueError, match="coverage needs a monotone objective: quality >= 0"):
        select(x, objective=QualityDiversity(0.5, q), coverage=0.5)
    with pytest.raises(ValueError, match="by scale 'zscore'"):
        select(x, objective=QualityDiversity(0.5, np.abs(q), "zscore"), coverage=0.5)
    for scale in ("minmax", "rank"):
        select(x, objective=QualityDiversity(0.5, q, scale), coverage=0.5)
    select(x, objective=QualityDiversity(0, q), coverage=0.5)
    assert evaluate(x, [1, 2], QualityDiversity(0.5, q)).total is None


# ---- missing quality, bad input


def test_missing_is_filled_by_a_named_rule(rng):
    q = [3.0, None, 1.0, float("nan"), 8.0]
    with pytest.raises(
        ValueError, match=r"missing \(NaN or None\) in 2 rows, the first is row 1.*mean, median, min"
    ):
        QualityDiversity(0.5, q)
    for rule, value in (("mean", 4.0), ("median", 3.0), ("min", 1.0)):
        spec = QualityDiversity(0.5, q, missing=rule)
        assert spec.quality.tolist() == [3.0, value, 1.0, value, 8.0]
        assert spec.describe()["missing"] == rule
    whole = QualityDiversity(0.5, [3.0, 1.0], missing="mean")
    assert whole.quality.tolist() == [3.0, 1.0]


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"alpha": 1.5}, ValueError, r"alpha must lie in \[0, 1\].*got 1.5"),
        ({"alpha": float("nan")}, ValueError, r"alpha must lie in \[0, 1\].*got nan"),
        ({"alpha": "0.5"}, TypeError, "alpha must be a number"),
        ({"alpha": True}, TypeError, "alpha must be a number"),
        ({"scale": "means"}, ValueError, "did you mean 'mean'"),
        ({"missing": "max"}, ValueError, "missing"),
        (
            {"quality": [1.0, np.inf, 2.0]},
            ValueError,
            "quality must be finite, got 1 infinite values, the first at row 1",
        ),
        ({"quality": [[1.0, 2.0]]}, ValueError, r"quality must have shape \(n,\)"),
        ({"quality": ["a", "b"]}, ValueError, "quality must be numbers"),
        ({"quality": [np.nan, np.nan], "missing": "mean"}, ValueError, "quality is missing in every row"),
        (
            {"quality": [2.0, 2.0], "scale": "minmax"},
            ValueError,
            "quality is 2.0 in every row: scale 'minmax'",
        ),
        (
            {"quality": [2.0, 2.0], "scale": "zscore"},
            ValueError,
            "quality is 2.0 in every row: scale 'zscore'",
        ),
        ({"quality": [-1.7e308, 1.7e308], "scale": "minmax"}, ValueError, "too far for scale 'minmax'"),
        ({"weights": [-1.0, 1.0]}, ValueError, "weights must be >= 0"),
    ],
)
def test_bad_specs(arguments, error, text):
    with pytest.raises(error, match=text):
        QualityDiversity(**{"alpha": 0.5, "quality": [1.0, 2.0], **arguments})


def test_bad_calls(rng):
    x = synthetic(rng, 30)
    with pytest.raises(ValueError, match=r"quality must have shape \(30,\).*got \(29,\)"):
        select(x, 5, QualityDiversity(0.5, rng.random(29)))
    with pytest.raises(ValueError, match=r"use smartgpu.QualityDiversity"):
        select(x, 5, "quality_diversity")
    constant = QualityDiversity(0.5, np.full(30, 2.0), "rank")
    assert np.array_equal(select(x, 5, constant).indices, select(x, 5).indices)


# ---- what it says of itself; groups, sums, checkpoints


def test_describe_and_files(rng, tmp_path):
    x, q = synthetic(rng, 100), rng.random(100)
    spec = QualityDiversity(0.25, q, "rank")
    said = select(x, 8, spec).objective
    assert said["name"] == "quality_diversity"
    assert (said["alpha"], said["scale"], said["missing"], said["k"], said["c"]) == (
        0.25,
        "rank",
        None,
        8,
        12.5,
    )
    assert said["quality"]["sha256"] == Modular(q).describe()["scores"]["sha256"]
    sel = select(x, 8, spec)
    sel.save(tmp_path / "s.npz")
    assert smartgpu.Selection.load(tmp_path / "s.npz").objective == json.loads(json.dumps(said))
    assert smartgpu.plan(x, 8, spec).objective == "quality_diversity"
    file = tmp_path / "picks.npz"
    kept = select(x, 8, spec, checkpoint=file)
    assert np.array_equal(kept.indices, sel.indices)
    again = select(x, 8, spec, checkpoint=file)
    assert np.array_equal(again.indices, sel.indices)
    with pytest.raises(ValueError, match="objective"):
        select(x, 8, QualityDiversity(0.26, q, "rank"), checkpoint=file)


def test_sums_with_other_objectives(rng):
    x, q = synthetic(rng, 200), rng.random(200)
    both = 0.5 * QualityDiversity(0.3, q) + 0.2 * smartgpu.GraphCut(0.1)
    sel = select(x, 20, both)
    plain = 0.5 * (0.7 * FacilityLocation() + 0.3 * 10 * Modular(q)) + 0.2 * smartgpu.GraphCut(0.1)
    assert np.array_equal(sel.indices, select(x, 20, plain).indices)
    assert [t["name"] for t in sel.objective["terms"]] == ["quality_diversity", "graph_cut"]
    assert sel.objective["terms"][0]["c"] == 10.0


@pytest.mark.parametrize("scale", SCALES)
def test_groups_keep_the_values_of_the_whole_pool(scale, rng):
    x, q = synthetic(rng, 300), rng.random(300)
    groups = rng.integers(0, 4, 300)
    q[groups == 2] += 5  # a group of its own level: transformed alone, its values would be others
    found = smartgpu.select_many(x, groups, {0: 9, 1: 5, 2: 20, 3: 1}, QualityDiversity(0.3, q, scale))
    t = transformed(q.tolist(), scale)
    for g, sel in found.items():
        rows = np.flatnonzero(groups == g)
        c = 1.0 if scale == "paper" else len(rows) / sel.k
        plain = select(x[rows], sel.k, 0.7 * FacilityLocation() + 0.3 * c * Modular(t[rows]))
        assert np.array_equal(sel.indices, rows[plain.indices])
        assert sel.gains == pytest.approx(plain.gains, rel=1e-12)


def test_a_selection_of_more_rows_is_not_taken_for_one_of_fewer(rng):
    x, groups = synthetic(rng, 60), np.repeat([0, 1], 30)
    for scale, fits in (("paper", True), ("mean", False)):
        spec = QualityDiversity(0.3, rng.random(60), scale)
        done = smartgpu.select_many(x, groups, 9, spec)
        assert list(smartgpu.select_many(x, groups, 9, spec, done=done)) == [0, 1]
        if fits:
            fewer = smartgpu.select_many(x, groups, 5, spec, done=done)
            assert np.array_equal(fewer[1].indices, smartgpu.select_many(x, groups, 5, spec)[1].indices)
        else:
            with pytest.raises(ValueError, match=r"done\[0\] must be a selection of 5"):
                smartgpu.select_many(x, groups, 5, spec, done=done)


def test_mixtures(rng):
    x, q, tasks = synthetic(rng, 300), rng.random(300), rng.integers(0, 5, 300)
    spec = QualityDiversity(0.4, q, "minmax")
    m = smartgpu.mix(x, tasks, 3, 60, row_objective=spec)
    assert len(m) == 60 and m.options["row_objective"]["name"] == "quality_diversity"
    for task in m.tasks:
        rows = np.flatnonzero(tasks == task.task)
        alone = select(x[rows], task.budget, spec.take(rows))
        assert np.array_equal(task.indices, rows[alone.indices])
    only = smartgpu.mix(x, tasks, 3, 60, row_objective=spec.at(1.0), order="rank")
    for task in only.tasks:
        rows = np.flatnonzero(tasks == task.task)
        assert np.array_equal(task.indices, rows[np.argsort(-q[rows], kind="stable")[: task.budget]])
    with pytest.raises(ValueError, match="full_order cannot be combined"):
        smartgpu.mix(x, tasks, 3, 60, row_objective=spec, full_order=True)
    literal = spec = QualityDiversity(0.4, q, "paper")
    whole = smartgpu.mix(x, tasks, 3, 60, row_objective=literal, full_order=True)
    assert np.array_equal(whole.indices, smartgpu.mix(x, tasks, 3, 60, row_objective=spec).indices)


# ---- alpha_path


@pytest.mark.parametrize("similarity", ["cosine", "rbf"])
def test_path_is_that_of_its_selections(similarity, rng):
    x, q = synthetic(rng, 900), ratings(rng, 900) - 1
    given, exclude = [3, 4], [7]
    alphas = (1, 0, 0.05, 0.3)
    path = alpha_path(x, 30, q, alphas, "mean", similarity, given=given, exclude=exclude)
    assert [p.alpha for p in path.points] == sorted(alphas)
    before = None
    for point, sel in zip(path.points, path.selections, strict=True):
        spec = QualityDiversity(point.alpha, q)
        one = select(x, 30, spec, similarity, given=given, exclude=exclude)
        assert np.array_equal(sel.indices, one.indices) and np.array_equal(sel.gains, one.gains)
        assert sel.sweeps == pytest.approx(one.sweeps) and sel.objective == one.objective
        s = reference.similarities(x, as_similarity(similarity))
        level = np.maximum(s[:, [*given, *one.indices]].max(axis=1), 0)
        assert point.coverage == pytest.approx(level.sum() / np.maximum(s.max(axis=1), 0).sum(), rel=1e-5)
        assert point.worst == pytest.approx({p: np.percentile(level, p) for p in (1, 5)}, abs=1e-5)
        chosen = sorted(q[one.indices])
        assert point.quality_mean == pytest.approx(sum(chosen) / 30)
        assert point.quality_tail == pytest.approx(np.percentile(chosen, 5))
        assert point.quality_min == chosen[0]
        if before is None:
            assert point.overlap is None
        else:
            a, b = set(before.tolist()), set(one.indices.tolist())
            assert point.overlap == pytest.approx(len(a & b) / len(a | b))
        before = one.indices
    assert path.suggested in alphas
    numbers = json.loads(json.dumps(path.to_dict()))
    assert numbers["points"][0]["coverage"] == path.points[0].coverage
    assert numbers["suggested"] == path.suggested and f"{path.suggested:g}*" in str(path)


def test_suggestion():
    # ends (0.9, 1) and (0.5, 5); above the chord by 0.25, 0.5 and 0.125 of the scaled figures
    assert suggest([0.9, 0.8, 0.7, 0.55, 0.5], [1, 3, 5, 5, 5]) == 2
    assert suggest([0.9, 0.8, 0.5], [1, 4, 5]) == 1
    assert suggest([0.9, 0.65, 0.5], [1, 2, 5]) == 0  # all below: an end, the first
    assert suggest([0.9, 0.7, 0.5], [2, 2, 2]) == 0  # no quality to win
    assert suggest([0.9, 0.9, 0.9], [1, 2, 3]) == 2  # nothing to lose
    assert suggest([0.9], [1]) == 0


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"alphas": ()}, "alphas is empty"),
        ({"alphas": (0, 0.5, 0.5)}, "alphas must be distinct"),
        ({"alphas": (0, 2)}, "alpha must lie in"),
        ({"checkpoint": "a.npz"}, "checkpoint is for one selection"),
        ({"backend": "reference"}, "alpha_path is for backends"),
        ({"quality": np.ones(3)}, r"quality must have shape \(50,\)"),
        ({"k": 60}, "k must be at most"),
    ],
)
def test_bad_paths(arguments, text, rng):
    call = {"X": synthetic(rng, 50), "k": 5, "quality": rng.random(50), **arguments}
    with pytest.raises(ValueError, match=text):
        alpha_path(**call)


# ---- baselines


def test_quality_only_and_random(rng):
    x, q = synthetic(rng), ratings(rng, N)
    top = baselines.quality_only(x, 70, q)
    assert np.array_equal(top.indices, np.argsort(-q, kind="stable")[:70])
    assert top.objective["name"] == "quality_only" and top.value == q[top.indices].sum()
    drawn = [baselines.random(x, 70, seed).indices for seed in range(60)]
    assert np.array_equal(drawn[3], baselines.random(x, 70, 3).indices)
    counts = np.bincount(np.concatenate(drawn), minlength=N)  # each row 10 times, give or take
    assert all(len(np.unique(rows)) == 70 for rows in drawn)
    assert abs(counts.mean() - 10) < 1e-9 and 6 < counts.var() < 11  # binomial: 60 / 6 * 5 / 6 = 8.3


@pytest.mark.parametrize("similarity", ["cosine", "rbf", "cosine_shifted"])
@pytest.mark.parametrize("tau", [0.2, 0.6, 0.9, 0.999])
def test_threshold_by_its_definition(similarity, tau, rng):
    x, q = with_copies(synthetic(rng, 700), rng), ratings(rng, 700)
    s = reference.similarities(x, as_similarity(similarity))
    near = np.unique([tau, *s[(np.abs(s - tau) < 0.01) & (s < 0.9999)]])
    gap = np.argmax(np.diff(near, append=1))  # where rounding decides no pair
    high = near[gap + 1] if gap + 1 < len(near) else 1
    assert high - near[gap] > 5e-6
    tau = float(near[gap] + high) / 2
    expected = []
    for j in np.argsort(-q, kind="stable"):
        if len(expected) < 300 and not (s[expected, j] >= tau).any():
            expected.append(int(j))
    sel = baselines.threshold(x, 300, q, tau, similarity)
    assert sel.indices.tolist() == expected
    assert np.array_equal(sel.gains, q[sel.indices]) and sel.objective["tau"] == tau
    assert 0 < evaluate(x, sel.indices, similarity=similarity).coverage <= 1


def test_threshold_refuses(rng):
    x, q = synthetic(rng, 40), rng.random(40)
    with pytest.raises(ValueError, match="tau must be > 0"):
        baselines.threshold(x, 5, q, 0.0)
    with pytest.raises(TypeError, match="tau must be a number"):
        baselines.threshold(x, 5, q, "0.5")
    with pytest.raises(ValueError, match="quality must be finite"):
        baselines.threshold(x, 5, np.where(q > 0.5, np.nan, q))
    with pytest.raises(ValueError, match="n x n"):
        baselines.threshold(rng.random((10, 40)), 5, q, similarity="precomputed")


def test_cluster_takes_the_best_of_each_in_turns(rng):
    x, q, label = synthetic(rng, 80), ratings(rng, 80), rng.integers(-3, 9, 80)
    left = {g: sorted(np.flatnonzero(label == g), key=lambda j: (-q[j], j)) for g in set(label.tolist())}
    expected = []
    while any(left.values()):
        turn = [rows.pop(0) for rows in left.values() if rows]
        expected += sorted(turn, key=lambda j: (-q[j], j))
    for k in (1, 12, 80):
        assert baselines.cluster(x, k, q, label).indices.tolist() == expected[:k]
    with pytest.raises(ValueError, match=r"clusters must be a number or \(80,\) integers"):
        baselines.cluster(x, 5, q, label[:9])
    with pytest.raises(ValueError, match="no centres"):
        baselines.cluster(np.eye(80), 5, q, 5, "precomputed")


def test_cluster_by_kmeans(rng):
    pytest.importorskip("sklearn", reason="cluster needs scikit-learn")
    centres = np.eye(6, 21) * 10
    label = rng.integers(0, 6, 300)
    x = (centres[label] + 0.01 * rng.standard_normal((300, 21))).astype(np.float32)
    q = rng.random(300)
    # k-means from random rows may split one blob and join two others: some seed finds the six
    found = [baselines.cluster(x, 6, q, seed=seed) for seed in range(20)]
    best = sorted(int(np.flatnonzero(label == g)[np.argmax(q[label == g])]) for g in range(6))
    assert any(sorted(sel.indices.tolist()) == best for sel in found)
    sel = baselines.cluster(x, 20, q, clusters=1)
    assert np.array_equal(sel.indices, np.argsort(-q, kind="stable")[:20])
    assert np.array_equal(sel.gains, q[sel.indices])
    again = baselines.cluster(x, 50, q, seed=1)
    assert len(np.unique(again.indices)) == 50
    assert np.array_equal(again.indices, baselines.cluster(x, 50, q, seed=1).indices)


def between(s, tau):
    """A number near tau that no similarity is near to: rounding decides no pair."""
    near = np.unique([tau - 0.01, *s[np.abs(s - tau) < 0.01], tau + 0.01])
    at = np.diff(near).argmax()
    assert near[at + 1] - near[at] > 5e-6
    return float(near[at : at + 2].mean())


def in_turn(order, k, fits, first=()):
    """Rows of `order` that fit beside those taken before them, by the definition of a limit."""
    taken = list(first)
    for j in order:
        if len(taken) < k and j not in taken and fits([*taken, j]):
            taken.append(int(j))
    return taken


@pytest.mark.parametrize("limit", ["rows", "budget", "quotas", "all"])
@pytest.mark.parametrize("name", ["random", "threshold", "cluster"])
def test_baselines_keep_to_limits(name, limit, rng):
    x, q = synthetic(rng, 90), ratings(rng, 90)
    s = reference.similarities(x, COSINE)
    given, barred, first = [3, 50], [7, 8, 9, 60], [11, 20]
    cost, group, k = rng.integers(1, 9, 90).astype(float), np.array(["ab"[i % 2] for i in range(90)]), 12
    limits = {"given": given, "exclude": barred, "include": first}
    if limit in ("budget", "all"):
        limits |= {"budget": 40, "cost": cost}
    if limit in ("quotas", "all"):
        limits["quotas"] = smartgpu.Quotas(group, maximum={"a": 5}, minimum={"b": 4})
    tau, label = between(s, 0.7), rng.integers(0, 7, 90)

    def fits(rows):
        if set(rows) & {*given, *barred} or ("budget" in limits and cost[rows].sum() > 40):
            return False
        if name == "threshold" and rows[-1] not in first:
            near = s[[*given, *rows[:-1]], rows[-1]]
            if near.max() >= tau:
                return False
        return "quotas" not in limits or (group[rows] == "a").sum() <= 5

    if name == "random":
        order = np.argsort(-np.random.default_rng(4).random(90), kind="stable")
        found = baselines.random(x, k, 4, **limits)
    elif name == "threshold":
        order = np.argsort(-q, kind="stable")
        found = baselines.threshold(x, k, q, tau, **limits)
    else:
        left = {g: [j for j in np.flatnonzero(label == g) if j not in [*given, *barred]] for g in range(7)}
        left = {g: sorted(rows, key=lambda j: (-q[j], j)) for g, rows in left.items()}
        turns = itertools.zip_longest(*left.values())
        order = [
            j for turn in turns for j in sorted((j for j in turn if j is not None), key=lambda j: (-q[j], j))
        ]
        found = baselines.cluster(x, k, q, label, **limits)
    rows = found.indices
    assert rows[:2].tolist() == first and len(set(rows.tolist())) == len(rows) > 4
    if limit != "all":  # with a budget what the minimum needs is put aside
        assert rows.tolist() == in_turn(order, k, fits, first)
    assert not set(rows.tolist()) & {*given, *barred}
    if "budget" in limits:
        assert cost[rows].sum() == found.limits["cost"] <= 40
    if "quotas" in limits:
        assert (group[rows] == "a").sum() <= 5 and (group[rows] == "b").sum() >= 4
    if name != "random":
        assert found.value == pytest.approx(q[given].sum() + q[rows].sum())
    assert str(found).splitlines()[0].endswith(f"by {name} on cosine (a baseline)")


def test_baselines_with_a_budget_alone(rng):
    x, q, cost = synthetic(rng, 60), ratings(rng, 60), rng.integers(2, 9, 60).astype(float)
    for found in (
        baselines.quality_only(x, None, q, budget=30, cost=cost),
        baselines.random(x, None, budget=30, cost=cost),
        baselines.threshold(x, None, q, 0.9, budget=30, cost=cost),
        baselines.cluster(x, None, q, 5 + (np.arange(60) % 4), budget=30, cost=cost),
    ):
        left = np.setdiff1d(np.arange(60), found.indices)
        assert 30 - cost[left].min() < cost[found.indices].sum() <= 30, found.objective["name"]
    with pytest.raises(ValueError, match="k is missing"):
        baselines.random(x, None)
    with pytest.raises(ValueError, match="clusters is missing"):
        baselines.cluster(x, None, q, budget=30, cost=cost)
    quotas = smartgpu.Quotas(["a" if i < 2 else "b" for i in range(60)], minimum={"a": 2})
    x[1] = x[0]
    with pytest.raises(ValueError, match=r"less similar than tau = 0\.9 are left for a minimum"):
        baselines.threshold(x, 10, q, 0.9, quotas=quotas)
    with pytest.raises(ValueError, match="checkpoint is for greedy"):
        baselines.random(x, 5, checkpoint="a.npz")


def test_threshold_beside_rows_from_elsewhere(rng):
    x, q = synthetic(rng, 80), ratings(rng, 80)
    other, bench = x[:5] + 0.01, x[30:32] + 0.01
    s = np.array(
        [[reference.similarities(np.stack([a, b]), COSINE)[0, 1] for b in [*other, *bench]] for a in x]
    )
    inner = reference.similarities(x, COSINE)
    tau = between(np.concatenate([s, inner], axis=1), 0.6)
    found = baselines.threshold(x, 20, q, tau, given=other, exclude=smartgpu.Near(bench, tau))
    expected = []
    for j in np.argsort(-q, kind="stable"):
        if len(expected) < 20 and s[j].max() < tau and not (inner[expected, j] >= tau).any():
            expected.append(int(j))
    assert found.indices.tolist() == expected and len(expected) > 3


# ---- the command line


@pytest.fixture
def pool(tmp_path, rng):
    x, q = synthetic(rng, 120), ratings(rng, 120)
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "q.npy", q)
    rows = [{"text": f"row {i}", "task": "ab"[i % 2], "score": v} for i, v in enumerate(q.tolist())]
    (tmp_path / "pool.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "q.jsonl").write_text("".join(json.dumps({"rating": row["score"]}) + "\n" for row in rows))
    rows[7]["score"] = None
    (tmp_path / "holes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path, x, q


def run(tmp_path, *arguments, pool="pool.jsonl", command="select", out="out"):
    paths = [str(tmp_path / a) if a in ("q.npy", "q.jsonl") else a for a in arguments]
    line = [command, str(tmp_path / pool), "--embeddings", str(tmp_path / "x.npy"), "--quiet"]
    return cli.main([*line, *(["--out", str(tmp_path / out)] if out else []), *paths])


@pytest.mark.parametrize(
    "source", [["--quality-field", "score"], ["--quality", "q.npy"], ["--quality", "q.jsonl"]]
)
def test_command_line(source, pool, capsys):
    tmp_path, x, q = pool
    assert run(tmp_path, "-k", "20", "--alpha", "0.3", "--quality-scale", "rank", *source) == 0
    held = json.loads((tmp_path / "out" / "selection.json").read_text())
    sel = select(x, 20, QualityDiversity(0.3, q, "rank"))
    rows = [json.loads(line) for line in (tmp_path / "out" / "selected.jsonl").read_text().splitlines()]
    assert [
        row["source_row"] if "source_row" in row else row["smartgpu_source_row"] for row in rows
    ] == sel.indices.tolist()
    assert held["objective"] == json.loads(json.dumps(sel.objective))
    assert held["run"]["alpha"] == 0.3 and held["run"]["quality"] == sel.objective["quality"]["sha256"]
    capsys.readouterr()
    assert run(tmp_path, "-k", "20", "--alpha", "0.4", "--quality-scale", "rank", *source) == 2
    assert "--overwrite" in capsys.readouterr().err


def test_command_line_missing(pool, capsys):
    tmp_path, _, q = pool
    arguments = ("-k", "20", "--alpha", "0.3", "--quality-field", "score")
    assert run(tmp_path, *arguments, pool="holes.jsonl") == 2
    assert "quality is missing (NaN or None) in 1 rows, the first is row 7" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert run(tmp_path, *arguments, "--quality-missing", "min", pool="holes.jsonl") == 0
    held = json.loads((tmp_path / "out" / "selection.json").read_text())
    q[7] = 0
    assert held["objective"]["quality"]["sha256"] == Modular(q).describe()["scores"]["sha256"]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--alpha", "0.5"], "--alpha needs the quality of the rows"),
        (["--quality-field", "score"], "--alpha is missing: --quality-field is the quality"),
        (["--quality-missing", "mean"], "--alpha is missing: --quality-missing"),
        (["--alpha", "1.5", "--quality-field", "score"], "alpha must lie in [0, 1]"),
        (["--alpha", "0.5", "--quality-field", "scores"], "no field 'scores'"),
        (["--alpha", "0.5", "--quality-field", "text"], "row 0 is 'row 0', expected a number"),
        (["--alpha", "0.5", "--quality", "q.npy", "--quality-field", "score"], "an npy has no fields"),
        (
            ["--alpha", "0.5", "--quality-field", "score", "--objective", "log_det"],
            "not against --objective log_det",
        ),
        (["--alpha", "0.5", "--quality-field", "score", "--quality-scale", "men"], "did you mean 'mean'"),
        (
            ["--alpha", "0.5", "--alpha-path", "0,1", "--quality-field", "score"],
            "--alpha cannot be combined with",
        ),
        (["--alpha-path", "0,x", "--quality-field", "score"], "must be a number, got 'x'"),
        (
            ["--alpha-path", "0,1", "--quality-field", "score", "--format", "csv"],
            "cannot be combined with --format",
        ),
    ],
)
def test_bad_options(arguments, text, pool, capsys):
    tmp_path, _, _ = pool
    assert run(tmp_path, "-k", "20", *arguments) == 2
    assert text in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["quality_only"], lambda x, q, **how: baselines.quality_only(x, 20, q, **how)),
        (["random", "--seed", "3"], lambda x, q, **how: baselines.random(x, 20, 3, **how)),
        (["threshold", "--tau", "0.9"], lambda x, q, **how: baselines.threshold(x, 20, q, 0.9, **how)),
        (["cluster", "--clusters", "4"], lambda x, q, **how: baselines.cluster(x, 20, q, 4, **how)),
    ],
    ids=["quality_only", "random", "threshold", "cluster"],
)
def test_command_line_baselines(arguments, expected, pool, capsys):
    tmp_path, x, q = pool
    name = arguments[0]
    if name == "cluster":
        pytest.importorskip("sklearn", reason="cluster needs scikit-learn")
    np.save(tmp_path / "given.npy", [4, 5])
    given = ("--given", str(tmp_path / "given.npy"), "--quota-field", "task", "--quota-max", "a=8")
    rated = () if name == "random" else ("--quality-field", "score")
    call = ("-k", "20", "--baseline", *arguments, *rated, *given)
    assert run(tmp_path, *call) == 0
    assert f"20 of 120 rows by {name} on cosine" in capsys.readouterr().out
    quotas = smartgpu.Quotas(["ab"[i % 2] for i in range(120)], maximum={"a": 8}, name="task")
    sel = expected(x, q, given=[4, 5], quotas=quotas)
    held = json.loads((tmp_path / "out" / "selection.json").read_text())
    lines = (tmp_path / "out" / "selected.jsonl").read_text().splitlines()
    rows = [json.loads(line)["source_row"] for line in lines]
    assert rows == sel.indices.tolist() and held["objective"] == json.loads(json.dumps(sel.objective))
    assert held["limits"] == sel.limits and held["run"]["baseline"] == name
    assert run(tmp_path, *call) == 0 and "holds this selection already" in capsys.readouterr().out
    assert run(tmp_path, "-k", "20", *given) == 2, "another run"


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--baseline", "quality"], "did you mean 'quality_only'"),
        (["--baseline", "threshold"], "--baseline threshold needs --quality-field, or a file with --quality"),
        (
            ["--baseline", "random", "--quality", "q.npy"],
            "--quality cannot be combined with --baseline random",
        ),
        (["--baseline", "random", "--quality-missing", "min"], "--quality-missing cannot be combined with"),
        (["--tau", "0.5"], "--tau is an option of --baseline threshold"),
        (["--baseline", "random", "--clusters", "5"], "of --baseline cluster, not of random"),
        (["--baseline", "random", "--alpha", "0.5"], "--alpha cannot be combined with --baseline random"),
        (["--baseline", "random", "--objective", "log_det"], "--objective cannot be combined with"),
        (["--baseline", "random", "--coverage", "0.5"], "--coverage cannot be combined with"),
        (["--baseline", "threshold", "--quality", "q.npy", "--tau", "0"], "tau must be > 0"),
        (
            ["--baseline", "cluster", "--quality", "q.npy", "--sizes", "5", "9"],
            "makes other clusters for each",
        ),
        (["--baseline", "threshold", "--quality", "q.npy", "--sizes", "5"], "which may find fewer rows"),
    ],
)
def test_bad_baselines(arguments, text, pool, capsys):
    tmp_path, _, _ = pool
    assert run(tmp_path, *([] if "--sizes" in arguments else ["-k", "20"]), *arguments) == 2
    assert text in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_command_line_path(pool, capsys):
    tmp_path, x, q = pool
    arguments = ("-k", "20", "--alpha-path", "0,0.1,1", "--quality-field", "score")
    assert run(tmp_path, *arguments) == 0
    held = json.loads((tmp_path / "out" / "alpha_path.json").read_text())
    path = alpha_path(x, 20, q, (0, 0.1, 1))
    for ours, theirs in zip(held["points"], path.to_dict()["points"], strict=True):
        assert {**ours, "seconds": 0} == {**theirs, "seconds": 0}
    assert held["suggested"] == path.suggested
    assert f"{path.suggested:g}*" in capsys.readouterr().out
    assert run(tmp_path, *arguments) == 0  # its own is replaced
    (tmp_path / "out" / "alpha_path.json").write_text("{}")
    assert run(tmp_path, *arguments) == 2
    assert "is not of smartgpu" in capsys.readouterr().err
    assert run(tmp_path, *arguments, out=None) == 0


def test_command_line_mix_and_plan(pool, capsys):
    tmp_path, x, q = pool
    quality = ("--alpha", "0.3", "--quality", "q.npy", "--quality-scale", "minmax")
    assert run(tmp_path, "--n-rows", "30", "--order", "rank", *quality, command="mix") == 0
    held = json.loads((tmp_path / "out" / "mixture.json").read_text())
    assert held["run"]["alpha"] == 0.3 and held["options"]["row_objective"]["name"] == "quality_diversity"
    m = smartgpu.mix(
        x,
        ["ab"[i % 2] for i in range(120)],
        None,
        30,
        row_objective=QualityDiversity(0.3, q, "minmax"),
        order="rank",
    )
    with np.load(tmp_path / "out" / "mixture.npz") as arrays:
        assert np.array_equal(arrays["indices"], m.indices)
    capsys.readouterr()
    assert (
        run(tmp_path, "--n-rows", "30", *quality, "--row-objective", "log_det", command="mix", out="b") == 2
    )
    assert "not against --row-objective log_det" in capsys.readouterr().err
    assert run(tmp_path, "--n-rows", "30", *quality, "--sweep", "1,2", command="mix", out="b") == 2
    assert "depends on the budget of a task" in capsys.readouterr().err
    assert run(tmp_path, "-k", "30", *quality, command="plan", out=None) == 0
    assert "30 of 120 rows by quality_diversity" in capsys.readouterr().out


@pytest.mark.usefixtures("device")
def test_backend_triton(rng):
    pytest.importorskip("torch")
    x, q = synthetic(rng, 90, 9), ratings(rng, 90)
    how = {"backend": "triton", "precision": "ieee"}
    path = alpha_path(x, 5, q, (0, 0.1, 1), "minmax", **how)  # one opening of the backend for all
    for point, sel in zip(path.points, path.selections, strict=True):
        assert sel.backend == "triton"
        spec = QualityDiversity(point.alpha, q, "minmax")
        check(sel, x, COSINE, spec.sized(90, 5), copies_tie=False)
        assert point.coverage == pytest.approx(evaluate(x, sel.indices).coverage, rel=1e-5)
    found = baselines.threshold(x, 12, q, 0.7, **how)
    assert np.array_equal(found.indices, baselines.threshold(x, 12, q, 0.7).indices)
    limits = {"given": ([3], x[5:7] + 0.01), "exclude": [8], "budget": 20, "cost": 1.0 + np.arange(90) % 4}
    found = baselines.threshold(x, 12, q, 0.7, **limits, **how)
    assert np.array_equal(found.indices, baselines.threshold(x, 12, q, 0.7, **limits).indices)
    assert 0 < found.limits["cost"] <= 20
