"""The report: its numbers against definitions in float64, its files, what it refuses, and its page in a browser."""

import itertools
import json
import os
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("jinja2")
pytest.importorskip("plotly")
pytest.importorskip("pyarrow")

from browser import Browser, find_browser

import smartgpu
from smartgpu import reporting
from smartgpu.reporting import measuring
from smartgpu.reporting.page import percent
from smartgpu.reporting.projection import project
from smartgpu.reporting.words import shown
from smartgpu.similarity import Cosine, Dot

QUANTA = 1e-6  # similarities are multiples of 2^-22: one of each row may be that far off
HOSTILE = (
    "<script>window.hit = 1</script>",
    "</script><script>window.hit = 2</script>",
    "<!--<script>window.hit = 3",
    '"><img src=x onerror="window.hit = 4">',
    '<a href="javascript:window.hit = 5">click</a> &lt;b&gt;',
    "{{ 7 * 7 }} {% raw %} ${window.hit = 6}",
    "line\u2028separator\u2029paragraph",
)


@pytest.fixture
def pool(rng):
    """(X, text, tasks): clusters with copies, near copies and a far row; hostile text and task names."""
    centres = rng.normal(size=(12, 6))
    x = (centres[rng.integers(0, 12, 200)] + 0.5 * rng.normal(size=(200, 6))).astype(np.float32)
    x[50:60] = x[40:50]
    x[60:66] = x[40] + 0.02 * rng.normal(size=(6, 6))
    x[199] = -40 * centres[0]
    text = [f"row {i}" for i in range(200)]
    text[40], text[199] = HOSTILE[0], HOSTILE[1]
    for i, hostile in enumerate(HOSTILE):
        text[61 + i % 5 if i > 1 else i] = hostile
    tasks = [("<b>bold</b>", "مهمة", "t0")[i % 3] for i in range(200)]
    return x, text, tasks


def cosines(x):
    x = np.asarray(x, np.float64)
    norms = np.linalg.norm(x, axis=1, keepdims=True)
    x = np.divide(x, norms, out=np.zeros_like(x), where=norms > 0)
    return x @ x.T


def covered(s, chosen):
    """F(S) from its definition."""
    return np.maximum(s[:, list(chosen)].max(axis=1), 0).sum() if len(chosen) else 0.0


def numbers(out):
    return json.loads((out / "report.json").read_text(encoding="utf-8"))


def make(tmp_path, x, k=15, name="out", result=None, **options):
    """(selection, report.json) of a report on k rows."""
    result = result or smartgpu.select(x, k)
    path = smartgpu.report(result, x, tmp_path / name, **options)
    assert path == tmp_path / name / "report.html"
    return result, numbers(tmp_path / name)


# ---- numbers ----


def test_headline_follows_its_definitions(pool, tmp_path):
    x, text, tasks = pool
    selection, r = make(tmp_path, x, 15, text=text, tasks=tasks)
    s, head = cosines(x), r["headline"]
    total = np.maximum(np.diag(s), 0).sum()
    value = covered(s, selection.indices)
    assert head["k"] == 15 and head["n"] == 200
    assert head["value"] == pytest.approx(value, rel=QUANTA)
    assert head["value"] == pytest.approx(selection.value, rel=1e-12)
    assert head["total"] == pytest.approx(total, rel=QUANTA)
    assert head["coverage"] == pytest.approx(value / total, rel=QUANTA)
    gains = [covered(s, [*selection.indices, j]) - value for j in range(200) if j not in selection.indices]
    bound = min(value + sum(sorted(gains)[-15:]), total)
    assert head["bound"]["value"] == pytest.approx(bound, rel=QUANTA)
    assert head["bound"]["share"] == pytest.approx(value / bound, rel=QUANTA)
    random = head["random"]
    assert len(random["values"]) == measuring.DRAWS
    assert (random["low"], random["high"]) == (min(random["values"]), max(random["values"]))
    assert random["high"] < head["coverage"], "greedy beats every draw on clusters"
    prefixes = [covered(s, selection.indices[:t]) / total for t in range(16)]
    assert head["matched"] == next(t for t, c in enumerate(prefixes) if c >= random["high"])


def test_bound_holds_for_every_set(rng, tmp_path):
    """All 4-sets of 11 rows, with a given row and one that may not be chosen."""
    x = rng.normal(size=(11, 3)).astype(np.float32)
    s = cosines(x)
    selection = smartgpu.select(x, 4, given=[2], exclude=[7])
    _, r = make(tmp_path, x, result=selection, given=[2], exclude=[7])
    free = [j for j in range(11) if j not in (2, 7)]
    best = max(covered(s, [2, *rows]) for rows in itertools.combinations(free, 4))
    assert best <= r["headline"]["bound"]["value"] * (1 + QUANTA)
    assert r["headline"]["bound"]["value"] < r["headline"]["total"], "this one says something"
    assert r["headline"]["value"] == pytest.approx(selection.value, rel=1e-12)


def test_random_draws_are_random_sets_of_free_rows(pool, tmp_path, monkeypatch):
    x, *_ = pool
    drawn = []
    kept = measuring._draw
    monkeypatch.setattr(measuring, "_draw", lambda *a: drawn.append(kept(*a)) or drawn[-1])
    selection = smartgpu.select(x, 9, given=[3, 4], exclude=range(100, 200))
    _, r = make(tmp_path, x, result=selection, given=[3, 4], exclude=np.arange(100, 200), draws=5)
    s = cosines(x)
    assert len(drawn) == 5 and len({tuple(rows) for rows in drawn}) == 5
    for rows, share in zip(drawn, r["headline"]["random"]["values"], strict=True):
        assert len(set(rows.tolist())) == 9 and not set(rows.tolist()) & {3, 4, *range(100, 200)}
        assert share == pytest.approx(covered(s, [3, 4, *rows]) / len(x), rel=QUANTA)
    at = r["curve"]["k"].index(4)
    shares = [covered(s, [3, 4, *rows[:4]]) / len(x) for rows in drawn]
    for name, value in (("low", min(shares)), ("mean", np.mean(shares)), ("high", max(shares))):
        assert r["curve"]["random"][name][at] == pytest.approx(value, rel=QUANTA)


@pytest.mark.parametrize("k", [1, 2, 40, 200])
def test_curve_is_coverage_of_prefixes_and_adds_up_gains(pool, tmp_path, k):
    x, *_ = pool
    selection, r = make(tmp_path, x, k)
    s, curve = cosines(x), r["curve"]
    assert curve["k"][0] == 0 and curve["k"][-1] == k and curve["gain"][0] is None
    for size, share, gain in zip(curve["k"], curve["coverage"], curve["gain"], strict=True):
        assert share == pytest.approx(covered(s, selection.indices[:size]) / len(x), rel=QUANTA, abs=1e-12)
        assert share == pytest.approx(selection.gains[:size].sum() / r["headline"]["total"], rel=1e-12, abs=0)
        assert gain is None or gain == selection.gains[size - 1]


def test_curve_of_another_objective_is_coverage_too(pool, tmp_path):
    x, *_ = pool
    selection = smartgpu.select(x, 12, "log_det")
    _, r = make(tmp_path, x, result=selection)
    s = cosines(x)
    assert r["objective"]["name"] == "log_det" and r["curve"]["gain"][1:] == selection.gains.tolist()
    assert r["curve"]["coverage"][7] == pytest.approx(covered(s, selection.indices[:7]) / len(x), rel=QUANTA)


def test_sizes_of_a_long_curve():
    sizes = measuring.curve_sizes(50_000, [777])
    assert sizes[0] == 0 and sizes[-1] == 50_000 and 777 in sizes
    assert len(sizes) <= measuring.POINTS + 1 and (np.diff(sizes) > 0).all()
    assert {1, 2, 3} <= set(sizes.tolist()), "early picks matter most"


def test_suggested_budgets():
    k = np.arange(0, 101)
    curve = np.minimum(0.2 + k * 0.06, 0.8) * (1 + 1e-3 * k / 100)  # bends at 10
    found = {b["name"]: b for b in measuring.suggestions(k, curve)}
    assert found["knee"]["k"] == 10
    for name, share in (("90%", 0.9), ("95%", 0.95), ("99%", 0.99)):
        assert found[name]["k"] == next(t for t in k if curve[t] >= share * curve[-1])
        assert found[name]["coverage"] == curve[found[name]["k"]]
    assert [b["k"] for b in measuring.suggestions(np.array([0, 1]), np.array([0.0, 1.0]))] == [1, 1, 1]
    flat = measuring.suggestions(np.arange(4), np.full(4, 0.5))
    assert [b["name"] for b in flat] == ["90%", "95%", "99%"] and {b["k"] for b in flat} == {1}


def test_suggested_budget_is_what_select_takes_for_that_coverage(pool, tmp_path):
    x, *_ = pool
    _, r = make(tmp_path, x, 200)  # of all rows: the curve is thinned, the budgets are not
    for budget in r["budgets"][1:]:
        same = smartgpu.select(x, coverage=float(budget["name"].rstrip("%")) / 100)
        assert budget["k"] == same.k


def test_budgets_are_measured_where_the_gains_tell_another_curve(pool, tmp_path):
    x, *_ = pool
    selection = smartgpu.select(x, 150, given=[3, 90])
    _, known = make(tmp_path, x, result=selection, given=[3, 90], name="known")
    _, r = make(tmp_path, x, result=selection, name="unknown")  # given rows are not named: they do not count
    assert known["curve"]["coverage"][0] > 0 == r["curve"]["coverage"][0]
    for budget in r["budgets"]:
        at = r["curve"]["k"].index(budget["k"])
        assert budget["coverage"] == r["curve"]["coverage"][at]


def test_distances_worst_and_absorbed(pool, tmp_path):
    x, text, _ = pool
    selection, r = make(tmp_path, x, 15, text=text)
    s = cosines(x)
    chosen = selection.indices
    distance = 1 - s[:, chosen].max(axis=1)
    assert sum(r["distance"]["counts"]) == 200
    edges = np.array(r["distance"]["edges"])
    counts, _ = np.histogram(distance.clip(edges[0], edges[-1]), edges)
    assert np.abs(counts - r["distance"]["counts"]).sum() <= 2, "but for rounding at an edge"
    assert r["distance"]["percentiles"]["90"] == pytest.approx(np.percentile(distance, 90), abs=QUANTA)
    worst = np.argsort(-distance, kind="stable")[: measuring.WORST]
    assert {row["row"] for row in r["worst"]} == set(worst.tolist())
    for row in r["worst"]:
        assert row["distance"] == pytest.approx(distance[row["row"]], abs=QUANTA)
        assert s[row["row"], row["nearest"]] == pytest.approx(s[row["row"], chosen].max(), abs=QUANTA)
        assert r["rows"][str(row["row"])]["text"] == shown(text[row["row"]], 280)["text"]
    left = np.setdiff1d(np.arange(200), chosen)
    close = [i for i in left if distance[i] <= measuring.NEAR]
    assert r["absorbed"]["copies"] + r["absorbed"]["near"] == len(close) > 10
    assert r["absorbed"]["copies"] == sum(distance[i] < QUANTA for i in left) > 0
    owner = {i: int(chosen[s[i, chosen].argmax()]) for i in close}
    first = r["absorbed"]["groups"][0]
    assert first["count"] == max(sum(o == j for o in owner.values()) for j in owner.values())
    for group in r["absorbed"]["groups"]:
        assert group["row"] in chosen and group["count"] >= len(group["rows"]) > 0
        for row in group["rows"]:
            assert s[row["row"], group["row"]] >= 1 - measuring.NEAR - QUANTA


def test_a_copy_that_was_chosen_stands_for_itself(rng, tmp_path):
    x = np.repeat(rng.normal(size=(3, 4)), 4, axis=0).astype(np.float32)
    selection = smartgpu.select(x, 5)
    _, r = make(tmp_path, x, result=selection)
    assert r["worst"] == [] and r["distance"]["percentiles"]["100"] == 0
    assert r["absorbed"]["copies"] == 12 - 5 and r["absorbed"]["near"] == 0


def test_dot_products_and_given_matrices(pool, tmp_path):
    x, *_ = pool
    s = np.asarray(x, np.float64) @ np.asarray(x, np.float64).T
    selection = smartgpu.select(x, 6, similarity="dot")
    _, r = make(tmp_path, x, result=selection, name="dot")
    total = np.maximum(s.max(axis=1), 0).sum()  # a longer row may resemble a row more than itself does
    assert r["headline"]["total"] == pytest.approx(total, rel=1e-5)
    assert r["headline"]["coverage"] == pytest.approx(covered(s, selection.indices) / total, rel=1e-5)
    matrix = cosines(x)
    selection = smartgpu.select(matrix, 6, similarity="precomputed")
    _, r = make(tmp_path, matrix, result=selection, name="matrix", sample=10)
    assert r["map"] is None and not r["measured"]["sampled"]
    assert r["headline"]["coverage"] == pytest.approx(covered(matrix, selection.indices) / 200, rel=QUANTA)


def test_a_sample_is_measured_and_said(pool, tmp_path):
    x, text, _ = pool
    selection, r = make(tmp_path, x, 15, text=text, sample=80)
    assert r["measured"] == {"rows": 80, "of": 200, "sampled": True, "seed": 0, "draws": 8}
    job = measuring.Job.check(x, smartgpu.FacilityLocation(), Cosine(), smartgpu.Options())
    rows = measuring.Ruler(job, 80, 0).rows
    assert len(set(rows.tolist())) == 80 and rows.max() > 150 and (np.diff(rows) > 0).all()
    s = cosines(x)
    level = s[np.ix_(rows, selection.indices)].max(axis=1)
    assert r["headline"]["coverage"] == pytest.approx(np.maximum(level, 0).sum() / 80, rel=QUANTA)
    gains = [
        np.maximum(s[rows, j] - np.maximum(level, 0), 0).sum()
        for j in range(200)
        if j not in selection.indices
    ]
    bound = np.maximum(level, 0).sum() + sum(sorted(gains)[-15:])
    assert r["headline"]["bound"]["value"] == pytest.approx(min(bound, 80), rel=QUANTA)
    assert {row["row"] for row in r["worst"]} <= set(rows.tolist())
    assert sum(r["distance"]["counts"]) == 80
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "Measured on a sample: 80 of the 200 rows" in page
    everything = make(tmp_path, x, 15, name="all", sample=200)[1]
    assert not everything["measured"]["sampled"]


def test_map_is_sampled_too_and_says_so(rng, tmp_path, monkeypatch):
    monkeypatch.setattr(measuring, "MAP_POOL", 50)
    monkeypatch.setattr(measuring, "MAP_CHOSEN", 7)
    x = rng.normal(size=(300, 5)).astype(np.float32)
    selection, r = make(tmp_path, x, 20)
    points = r["map"]["points"]
    assert (r["map"]["pool"], r["map"]["chosen"]) == ({"shown": 50, "of": 280}, {"shown": 7, "of": 20})
    assert len(set(points["row"])) == 57 == len(points["x"])
    for row, rank in zip(points["row"], points["rank"], strict=True):
        assert (rank is None) == (row not in selection.indices)
        assert rank is None or selection.indices[rank] == row
    assert "50 of 280 rows" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")


def test_pca_is_the_plane_of_most_variance_with_fixed_signs(rng):
    x = rng.normal(size=(400, 7)) * [1, 5, 1, 0.5, 3, 1, 1]
    plane = project(x, x, Dot(), "pca", 0)
    _, sv, vt = np.linalg.svd(x - x.mean(axis=0), full_matrices=False)
    for at, axis, coordinate in ((0, vt[0], plane.x), (1, vt[1], plane.y)):
        axis = axis * np.sign(axis[np.abs(axis).argmax()])
        assert coordinate == pytest.approx((x - x.mean(axis=0)) @ axis, abs=2e-3 * np.abs(coordinate).max())
        assert plane.about["explained"][at] == pytest.approx(sv[at] ** 2 / (sv**2).sum(), abs=1e-6)
    again = project(x[::-1].copy(), x, Dot(), "pca", 0)
    assert (again.x == plane.x).all() and (again.y == plane.y).all(), "whatever the order of the rows"
    scaled = project(x, x * 7, Cosine(), "pca", 0)
    assert (scaled.x == project(x, x, Cosine(), "pca", 0).x).all(), "cosines see directions only"


@pytest.mark.parametrize("x", [np.ones((1, 3)), np.zeros((4, 2)), np.arange(5.0)[:, None], 1e-30 * np.eye(3)])
def test_pca_of_little(x):
    plane = project(x, x, Dot(), "pca", 0)
    assert np.isfinite(plane.x).all() and np.isfinite(plane.y).all() and len(plane.x) == len(x)


def test_umap_where_it_is_installed(rng):
    if not reporting.projection.importlib.util.find_spec("umap"):
        with pytest.raises(ImportError, match=r"pip install 'smartgpu\[umap\]'"):
            project(np.ones((9, 2)), np.ones((9, 2)), Dot(), "umap", 0)
        pytest.skip("umap-learn is not installed")
    x = rng.normal(size=(60, 5))
    first, second = (project(x, x, Cosine(), "auto", 3) for _ in range(2))
    assert first.about["projection"] == "umap" and (first.x == second.x).all() and first.x.std() > 0


def test_bound_of_a_better_draw_is_taken(rng, tmp_path, monkeypatch):
    """Poor rows bound poorly; a draw that covers more bounds any set of as many rows just as well."""
    x = np.concatenate([rng.normal(size=(60, 4)), 0.01 * rng.normal(size=(20, 4)) + 9]).astype(np.float32)
    poor = smartgpu.select(x, 6, exclude=range(60))  # of the heap alone
    _, r = make(tmp_path, x, result=poor)
    s, head = cosines(x), r["headline"]

    def bound(rows):
        value = covered(s, rows)
        gains = [covered(s, [*rows, j]) - value for j in range(80) if j not in rows]
        return min(value + sum(sorted(gains)[-6:]), 80)

    draws = [measuring._draw(0, number, np.arange(80), 6) for number in range(measuring.DRAWS)]
    best = max(draws, key=lambda rows: covered(s, rows))
    assert head["random"]["high"] > head["coverage"] and head["matched"] is None
    assert head["bound"]["value"] == pytest.approx(min(bound(poor.indices), bound(best)), rel=QUANTA)
    assert bound(best) < bound(poor.indices)


@pytest.mark.parametrize("sample", [None, 20], ids=["all", "sample"])
def test_a_device_measures_the_same(rng, tmp_path, device, sample):
    x = rng.normal(size=(48, 7)).astype(np.float32)
    selection, how = smartgpu.select(x, 5), {"sample": sample, "draws": 2, "projection": "pca"}
    _, host = make(tmp_path, x, result=selection, name="host", backend="numpy", **how)
    how |= {"backend": "triton", "precision": "ieee"}
    _, there = make(tmp_path, x, result=selection, name="device", **how)
    assert (host["backend"], there["backend"]) == ("numpy", "triton")
    for name in ("coverage", "total", "value"):
        assert there["headline"][name] == pytest.approx(host["headline"][name], rel=1e-5)
    assert there["headline"]["bound"]["value"] == pytest.approx(host["headline"]["bound"]["value"], rel=1e-5)
    assert there["curve"]["coverage"] == pytest.approx(host["curve"]["coverage"], rel=1e-5)
    assert [row["row"] for row in there["worst"]] == [row["row"] for row in host["worst"]]


@pytest.mark.parametrize(
    ("how", "part"),
    [
        ({"k": 6}, "A prefix of the chosen rows is the choice of that many."),
        ({"k": 6, "maximizer": "stochastic"}, "a choice of that many, made anew, may be another"),
        ({"budget": 9.0, "cost": np.linspace(1, 2, 200)}, "chosen within limits (see the run card)"),
        ({"k": 6, "objective": "graph_cut"}, "The rows were chosen for another objective, graph_cut."),
        ({"k": 6, "given": [1]}, "Rows that were given (1) count as well"),
    ],
)
def test_page_says_what_the_numbers_mean(pool, tmp_path, how, part):
    x, *_ = pool
    given = {"given": how["given"]} if "given" in how else {}
    make(tmp_path, x, result=smartgpu.select(x, **how), **given)
    page = Reader((tmp_path / "out" / "report.html").read_text(encoding="utf-8")).text
    assert part in " ".join(page.split())


# ---- mixtures ----


def test_mixture(pool, tmp_path):
    x, text, tasks = pool
    mixture = smartgpu.mix(x, tasks, 2, 45, max_rows=25)
    _, r = make(tmp_path, x, result=mixture, text=text, tasks=tasks)
    s = cosines(x)
    assert (r["what"], r["headline"]["k"], r["n_tasks"], r["n_tasks_in_pool"]) == (
        "mixture",
        len(mixture),
        2,
        3,
    )
    assert r["headline"]["coverage"] == pytest.approx(covered(s, mixture.indices) / 200, rel=QUANTA)
    for row, task in zip(r["tasks"]["tasks"], mixture.tasks, strict=True):
        assert row["task"] == task.task and row["size"] == tasks.count(task.task)
        assert (row["budget"], row["chosen"]) == (task.budget_before_caps, len(task.indices))
        assert row["capped"] == (task.budget < task.budget_before_caps)
        assert row["pool_share"] == row["size"] / 200 and row["share"] == row["chosen"] / len(mixture)
    assert any(row["capped"] for row in r["tasks"]["tasks"])
    out = {"tasks": 1, "size": 200 - sum(t.size for t in mixture.tasks), "chosen": 0}
    assert r["tasks"]["others"] == out
    # a prefix is a smaller mixture of the same shares: relative rank first
    order = sorted(
        ((rank + 0.5) / t.budget, number, row)
        for number, t in enumerate(mixture.tasks)
        for rank, row in enumerate(t.indices.tolist())
    )
    assert r["curve"]["coverage"][10] == pytest.approx(
        covered(s, [row for *_, row in order[:10]]) / 200, rel=QUANTA
    )
    assert r["curve"]["gain"] is None and r["headline"]["random_of_same_budgets"]["low"] > 0


def test_draws_of_the_same_budgets(rng):
    group = rng.integers(0, 4, 90)
    rows = rng.choice(90, 20, replace=False)
    free = np.setdiff1d(np.arange(90), [5, 6])
    drawn = [
        measuring._draw_groups(0, number, free, np.setdiff1d(rows, [5, 6]), group) for number in range(3)
    ]
    for one in drawn:
        assert (np.bincount(group[one]) == np.bincount(group[np.setdiff1d(rows, [5, 6])])).all()
        assert len(set(one.tolist())) == len(one) and not {5, 6} & set(one.tolist())
    assert len({tuple(sorted(one.tolist())) for one in drawn}) == 3


# ---- quality and limits ----


def ratings(rng, n=200):
    """Whole numbers from 0 to 5, three of them missing."""
    q = rng.integers(0, 6, n).astype(float)
    q[[3, 4, 150]] = np.nan
    return q


def test_quality_follows_its_definitions(pool, tmp_path, rng, monkeypatch):
    x, _, tasks = pool
    q, drawn = ratings(rng), []
    kept = measuring._draw
    monkeypatch.setattr(measuring, "_draw", lambda *a: drawn.append(kept(*a)) or drawn[-1])
    selection = smartgpu.select(x, 15, given=[1, 2], exclude=range(180, 200))
    limits = {"given": [1, 2], "exclude": np.arange(180, 200)}
    _, r = make(tmp_path, x, result=selection, quality=q, tasks=tasks, draws=3, **limits)
    found, s = r["quality"], cosines(x)
    assert not found["used"] and found["path"] is None and found["rated"] == 197
    rows = selection.indices
    free = [j for j in np.argsort(-np.nan_to_num(q, nan=-9), kind="stable") if j not in (1, 2) and j < 180]
    for name, those in (("chosen", rows), ("best", free[:15]), ("pool", np.arange(200))):
        there = np.sort(q[those][~np.isnan(q[those])])
        part = found[name]
        assert part["rated"] == len(there) and part["mean"] == pytest.approx(there.sum() / len(there))
        assert (part["least"], part["most"]) == (there[0], there[-1])
        assert part["median"] == pytest.approx(np.median(there))
        assert part["tail"] == pytest.approx(np.percentile(there, 5))
        if name != "pool":
            assert part["coverage"] == pytest.approx(covered(s, [1, 2, *those]) / 200, rel=QUANTA)
    assert found["random"]["coverage"] == r["headline"]["random"]["values"]
    assert found["random"]["mean"] == pytest.approx([np.nanmean(q[each]) for each in drawn])
    bars = found["histogram"]
    assert bars["at"] == [0, 1, 2, 3, 4, 5] and bars["width"] == 1
    assert bars["pool"] == pytest.approx([(q == v).sum() / 197 for v in range(6)])
    assert bars["chosen"] == pytest.approx(
        [(q[rows] == v).sum() / (~np.isnan(q[rows])).sum() for v in range(6)]
    )
    for row in r["tasks"]["tasks"]:
        of = np.array(tasks) == row["task"]
        assert row["quality"]["pool"] == pytest.approx(np.nanmean(q[of]))
        assert row["quality"]["chosen"] == pytest.approx(np.nanmean(q[[j for j in rows if of[j]]]))


def test_quality_of_many_values_is_binned(rng, tmp_path):
    x, q = rng.normal(size=(300, 4)).astype(np.float32), rng.standard_normal(300)
    selection, r = make(tmp_path, x, 30, quality=q)
    bars = r["quality"]["histogram"]
    edges = np.linspace(q.min(), q.max(), 41)
    assert bars["at"] == pytest.approx((edges[1:] + edges[:-1]) / 2)
    for name, values in (("pool", q), ("chosen", q[selection.indices])):
        assert bars[name] == pytest.approx(np.histogram(values, edges)[0] / len(values))
    flat = make(tmp_path, x, 30, quality=np.ones(300), name="flat")[1]["quality"]
    assert flat["histogram"] == {"at": [1.0], "width": 1.0, "pool": [1.0], "chosen": [1.0]}


def test_rows_chosen_by_a_quality_beside_its_path(pool, tmp_path, rng):
    x, *_ = pool
    q = ratings(rng)
    selection = smartgpu.select(x, 15, smartgpu.QualityDiversity(0.2, q, missing="min"))
    path = smartgpu.alpha_path(x, 15, q, (0, 0.2, 1), missing="min")
    _, r = make(tmp_path, x, result=selection, quality=q, alpha_path=path)
    found = r["quality"]
    assert found["used"] and found["rated"] == 200, "missing ones are what they were taken for"
    assert found["chosen"]["mean"] == path.points[1].quality_mean
    assert found["chosen"]["coverage"] == pytest.approx(path.points[1].coverage, rel=1e-9)
    assert [p["alpha"] for p in found["path"]["points"]] == [0, 0.2, 1]
    assert found["path"]["suggested"] == path.suggested and found["path"]["k"] == 15
    page = Reader((tmp_path / "out" / "report.html").read_text(encoding="utf-8")).text
    assert "The rows were chosen by this quality: alpha 0.2" in page and "of highest quality" in page
    other = make(tmp_path, x, result=selection, quality=np.nan_to_num(q) + 1, name="other")[1]
    assert not other["quality"]["used"]
    rated = smartgpu.baselines.threshold(x, 15, np.nan_to_num(q), 0.9)
    assert make(tmp_path, x, result=rated, quality=np.nan_to_num(q), name="rated")[1]["quality"]["used"]


def test_quality_of_the_tasks_of_a_mixture(pool, tmp_path, rng):
    x, _, tasks = pool
    q = rng.integers(0, 6, 200).astype(float)
    mixture = smartgpu.mix(x, tasks, 2, 30, row_objective=smartgpu.QualityDiversity(0.3, q, "minmax"))
    _, r = make(tmp_path, x, result=mixture, quality=q, tasks=tasks)
    assert r["quality"]["used"] and r["quality"]["chosen"]["mean"] == q[mixture.indices].mean()
    for row, task in zip(r["tasks"]["tasks"], mixture.tasks, strict=True):
        assert row["quality"]["chosen"] == pytest.approx(q[task.indices].mean())
        assert row["quality"]["pool"] == pytest.approx(q[np.array(tasks) == task.task].mean())
    plain = make(tmp_path, x, result=mixture, tasks=tasks, name="plain")[1]
    assert plain["quality"] is None and "quality" not in plain["tasks"]["tasks"][0]


def test_budget_and_quotas(pool, tmp_path, rng):
    x, _, tasks = pool
    cost = rng.integers(1, 9, 200).astype(float)
    inner = [f"{task}{i % 2}" for i, task in enumerate(tasks)]
    quotas = [
        smartgpu.Quotas(tasks, minimum={"t0": 0.5}, maximum={"<b>bold</b>": 3}, name="<i>task</i>"),
        smartgpu.Quotas(inner, maximum=4, name="inner"),
    ]
    selection = smartgpu.select(x, 12, quotas=quotas)
    _, r = make(tmp_path, x, result=selection, quotas=quotas)
    outer, inside = r["quotas"]
    assert r["budget"] is None and (outer["field"], inside["field"]) == ("<i>task</i>", "inner")
    chosen = [tasks[j] for j in selection.indices]
    for group in outer["groups"]:
        name = group["group"]
        assert group["size"] == tasks.count(name) and group["chosen"] == chosen.count(name)
        assert (group["least"], group["most"]) == {"t0": (6, None), "<b>bold</b>": (0, 3)}.get(
            name, (0, None)
        )
    assert [group["most"] for group in inside["groups"]] == [4] * 6
    assert sum(group["chosen"] for group in inside["groups"]) == 12
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "Quotas of <i>task</i>" in " ".join(Reader(page).text.split()) and "<i>" not in page
    paid = smartgpu.select(x, budget=40, cost=cost)
    _, r = make(tmp_path, x, result=paid, name="paid")
    assert r["budget"] == {"budget": 40.0, "cost": cost[paid.indices].sum()} and r["quotas"] is None
    page = Reader((tmp_path / "paid" / "report.html").read_text(encoding="utf-8")).text
    assert f"{r['budget']['cost']:g} of a budget of 40 were spent" in page


def test_budget_and_quotas_of_a_mixture(pool, tmp_path, rng):
    x, _, tasks = pool
    cost, source = rng.integers(1, 9, 200).astype(float), ["ab"[i % 2] for i in range(200)]
    quotas = smartgpu.Quotas(source, maximum={"a": 0.25}, name="source")
    mixture = smartgpu.mix(x, tasks, 2, 24, quotas=quotas)
    _, r = make(tmp_path, x, result=mixture, tasks=tasks, quotas=quotas)
    a, b = r["quotas"][0]["groups"]
    chosen = [source[j] for j in mixture.indices]
    assert (a["group"], a["most"], a["chosen"]) == ("a", 6, chosen.count("a")) and a["chosen"] <= 6
    assert (b["group"], b["most"], b["chosen"]) == ("b", None, chosen.count("b"))
    paid = smartgpu.mix(x, tasks, 2, budget=70, cost=cost)
    _, r = make(tmp_path, x, result=paid, tasks=tasks, name="paid")
    assert r["budget"] == {"budget": 70.0, "cost": cost[paid.indices].sum()}
    for row, task in zip(r["tasks"]["tasks"], paid.tasks, strict=True):
        assert row["cost"] == cost[task.indices].sum() and row["allowance"] == task.allowance
    page = Reader((tmp_path / "paid" / "report.html").read_text(encoding="utf-8")).text
    assert "of a budget of 70 were spent" in page and "may cost" in page


# ---- text ----


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("plain", "plain"),
        ("a\nb\r\nc\td", "a ↵ b ↵ c d"),
        ("bell\x07 null\x00 del\x7f c1\x80", r"bell\x07 null\x00 del\x7f c1\x80"),
        ("back\u202ewards \u200b", r"back\u202ewards \u200b"),
        ("lone \ud800 surrogate", "lone \ufffd surrogate"),
        ("مرحبا بالعالم 👩‍👩‍👧 می‌خواهم", "مرحبا بالعالم 👩‍👩‍👧 می‌خواهم"),
        ("x\u2028y", "x ↵ y"),
        (None, ""),
        (12, "12"),
        ({"a": [1, "é"]}, '{"a": [1, "é"]}'),
        (b"abc", "3 bytes"),
    ],
)
def test_text_as_shown(value, text):
    assert shown(value, 100)["text"] == text


def test_long_text_is_cut_without_reading_all_of_it():
    found = shown("ab👩‍" * 250_000, 280)
    assert found["length"] == 1_000_000 and len(found["text"]) <= 281 and found["text"].endswith("…")
    assert "\u200d…" not in found["text"]
    assert shown("x" * 280, 280) == {"text": "x" * 280, "length": 280}


@pytest.mark.parametrize(
    ("share", "text"),
    [(0.5, "50.0%"), (1, "100.0%"), (0.99999, "99.9%"), (0, "0.0%"), (1e-5, "< 0.1%"), (0.12345, "12.3%")],
)
def test_percent_does_not_round_to_all_or_nothing(share, text):
    assert percent(share) == text


# ---- the page as text ----


class Reader(HTMLParser):
    """Tags with attributes, and the text of scripts and of everything else."""

    def __init__(self, page):
        super().__init__(convert_charrefs=True)
        self.tags, self.scripts, self.text, self.inside = [], [], "", None
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag in ("script", "style"):
            self.inside = tag
            self.scripts += [(dict(attributes), "")] if tag == "script" else []

    def handle_endtag(self, tag):
        self.inside = None if tag == self.inside else self.inside

    def handle_data(self, data):
        if self.inside == "script":
            self.scripts[-1] = (self.scripts[-1][0], self.scripts[-1][1] + data)
        elif self.inside is None:
            self.text += data


def page_of(pool, tmp_path, **options):
    x, text, tasks = pool
    make(tmp_path, x, 15, text=text, tasks=tasks, **options)
    return (tmp_path / "out" / "report.html").read_text(encoding="utf-8")


def test_page_is_self_contained_and_escapes(pool, tmp_path):
    page = page_of(pool, tmp_path)
    reader = Reader(page)
    names = [tag for tag, _ in reader.tags]
    assert names.count("script") == 3 and not {"img", "a", "b", "link", "iframe", "base"} & set(names)
    assert not any(
        key in ("src", "href", "srcset") or key.startswith("on") for _, a in reader.tags for key in a
    )
    policy = next(a["content"] for tag, a in reader.tags if a.get("http-equiv") == "Content-Security-Policy")
    nonce = re.search(r"script-src 'nonce-([0-9a-f]{64})'", policy)[1]
    assert "default-src 'none'" in policy
    (data, figures), *code = reader.scripts
    assert data["type"] == "application/json" and [a for a, _ in code] == [{"nonce": nonce}] * 2
    assert not set("<>&\u2028\u2029") & set(figures), "nothing that ends or opens a script"
    drawn = json.loads(figures)
    tips = [tip for trace in drawn["map"]["tips"] for tip in trace]
    assert len(tips) == 200 and HOSTILE[0] in [tip["text"] for tip in tips]
    assert "<b>bold</b>" in drawn["tasks"]["labels"]["text"]
    assert HOSTILE[1] in reader.text, "the far row is worst covered, and shown as it is"
    assert 'dir="auto"' in page and 'name="viewport"' in page


def test_two_reports_differ_in_their_time_alone(pool, tmp_path, monkeypatch):
    selection, pages, said = smartgpu.select(pool[0], 15), [], []
    for day in (1, 2):
        when = f"2026-01-0{day}T00:00:00+00:00"

        class Clock:
            @staticmethod
            def now(_zone, when=when):
                return Moment(when)

        monkeypatch.setattr(reporting, "datetime", Clock)
        pages.append(page_of(pool, tmp_path, result=selection))
        said.append(numbers(tmp_path / "out"))
        assert said[-1]["report"].pop("created") == when
        nonce = re.search("nonce-([0-9a-f]{64})", pages[-1])[1]
        pages[-1] = pages[-1].replace(when, "WHEN").replace(nonce, "NONCE")
    assert said[0] == said[1] and pages[0] == pages[1]


class Moment(str):
    def isoformat(self, timespec):
        return str(self)


def test_json_twin_holds_what_the_page_says(pool, tmp_path):
    page = Reader(page_of(pool, tmp_path)).text
    r = numbers(tmp_path / "out")
    head = r["headline"]
    for said in (head["coverage"], head["random"]["low"], head["random"]["high"], head["bound"]["coverage"]):
        assert percent(said) in page
    for budget in r["budgets"]:
        assert f"{budget['k']:,}" in page and percent(budget["coverage"]) in page
    for name, value in r["run"]["versions"].items():
        assert name in page and value in page


def test_figures_have_no_colours_of_their_own(pool, tmp_path):
    """Every colour is a property of the style sheet, in both themes."""
    page = page_of(pool, tmp_path)
    style = page[page.index("<style>") : page.index("</style>")]
    light, dark = style.split("prefers-color-scheme: dark")
    named = set(re.findall(r"var\((--[a-z-]+)\)", page[page.index('id="figures"') :]))
    assert len(named) > 6 and all(f"{name}:" in light and f"{name}:" in dark for name in named)


# ---- the command line ----

N = 90


@pytest.fixture
def smart(smart, rng):
    """With a pool in the folder."""
    np.save("x.npy", rng.normal(size=(N, 5)).astype(np.float32))
    rows = [{"id": i, "task": f"t{i % 4}", "text": f"text {i} {HOSTILE[i % 7]}"} for i in range(N)]
    write_lines("pool.jsonl", rows)
    return smart


def write_lines(path, rows):
    with open(path, "w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def read(out="out"):
    return json.loads(Path(f"{out}/report.json").read_text(encoding="utf-8"))


SELECT = ("select", "pool.jsonl", "--embeddings", "x.npy", "--out", "out")


def same(a, b):
    return {**a, "report": None} == {**b, "report": None}


def test_report_of_a_folder_and_while_selecting_are_one(smart, tmp_path):
    assert smart(*SELECT, "-k", 9, "--report")[0] == 0
    first = read()
    page = Reader((tmp_path / "out" / "report.html").read_text(encoding="utf-8")).text
    worst = first["worst"][0]["row"]
    assert first["headline"]["k"] == 9 and shown(f"text {worst} {HOSTILE[worst % 7]}", 280)["text"] in page
    assert first["run"]["pool"]["source"] == "pool.jsonl" and len(first["tasks"]["tasks"]) == 4
    os.remove("out/report.html")
    status, out, _ = smart("report", "out")
    assert status == 0 and "wrote out/report.html" in out
    assert same(read(), first) and os.path.exists("out/report.html")
    status, out, _ = smart(*SELECT, "-k", 9, "--report")  # held already: the report is made all the same
    assert status == 0 and "already" in out and same(read(), first)
    selection = smartgpu.Selection.load("out/selection.npz")
    smartgpu.report(selection, np.load("x.npy"), "python")
    assert read("python")["headline"] == first["headline"]
    smartgpu.report("out", out="again")
    assert same(read("again"), first)


def test_report_options(smart):
    assert smart(*SELECT, "-k", 9)[0] == 0
    assert (
        smart("report", "out", "-k", 4, "--draws", 3, "--sample", 30, "--projection", "pca", "--text", "id")[
            0
        ]
        == 0
    )
    r = read()
    assert r["headline"]["k"] == 4 and r["measured"]["draws"] == 3 and r["measured"]["rows"] == 30
    assert r["map"]["projection"] == "pca"
    assert all(row["text"] == number for number, row in r["rows"].items())
    assert smart("report", "out", "--sample", 0, "--task-field", "id")[0] == 0
    assert not read()["measured"]["sampled"] and len(read()["tasks"]["tasks"]) == N


def test_report_of_a_ranking_and_of_several_sizes(smart):
    assert smart("rank", "pool.jsonl", "--embeddings", "x.npy", "--out", "out", "--report")[0] == 0
    assert read()["what"] == "ranking" and read()["headline"]["k"] == N // 10
    assert smart("report", "out", "-k", 30)[0] == 0
    assert read()["headline"]["k"] == 30
    assert smart(*SELECT[:-1], "sizes", "--sizes", 3, 8, "--report")[0] == 0
    assert read("sizes")["headline"]["k"] == 8


def test_k_of_a_selection_is_of_its_pool(smart):
    assert smart(*SELECT, "-k", "0.5", "--report")[0] == 0
    assert read()["headline"]["k"] == N // 2
    assert smart("report", "out", "-k", "0.2")[0] == 0
    assert read()["headline"]["k"] == N // 10, "of what was chosen"


def test_given_and_excluded_rows_are_found_again(smart):
    np.save("given.npy", np.arange(5))
    np.save("out.npy", np.arange(50, 90))
    assert smart(*SELECT, "-k", 6, "--given", "given.npy", "--exclude", "out.npy", "--report")[0] == 0
    first = read()
    assert (first["headline"]["given"], first["headline"]["excluded"]) == (5, 40)
    assert first["headline"]["value"] == pytest.approx(smartgpu.Selection.load("out/selection.npz").value)
    assert smart("report", "out")[0] == 0 and same(read(), first)
    np.save("given.npy", np.arange(6))
    status, _, err = smart("report", "out")
    assert status == 2 and "--given given.npy holds other rows" in err
    status, _, err = smart("report", "out", "--given", "none.npy")
    assert status == 2 and "none.npy" in err


def test_mixture_and_sweep(smart):
    mix = ("mix", "pool.jsonl", "--embeddings", "x.npy", "--n-rows", 20, "--out", "out")
    assert smart(*mix, "--n-tasks", 3, "--report")[0] == 0
    assert read()["what"] == "mixture" and read()["sweep"] is None
    assert read()["headline"]["random_of_same_budgets"] is not None
    assert smart(*mix, "--sweep", "2,4")[0] == 0
    assert smart("report", "out")[0] == 0
    assert [row["n_tasks"] for row in read()["sweep"]] == [2, 4]
    page = Path("out/report.html").read_text(encoding="utf-8")
    assert 'id="plot-sweep"' in page
    other = json.loads(Path("out/sweep.json").read_text())
    other["pool"]["fingerprint"] = "0" * 64
    Path("out/sweep.json").write_text(json.dumps(other))
    status, _, err = smart("report", "out")
    assert status == 0 and "another pool" in err and read()["sweep"] is None
    status, _, err = smart("report", "out", "-k", 3)
    assert status == 2 and "mixture" in err
    status, _, err = smart(*mix, "--sweep", "2,4", "--report")
    assert status == 2 and "--report" in err


def rate(rng):
    """A field of the pool, and a file with other values."""
    rows = [json.loads(line) for line in Path("pool.jsonl").read_text(encoding="utf-8").splitlines()]
    score = rng.integers(0, 6, N)
    write_lines("pool.jsonl", [{**row, "score": int(v)} for row, v in zip(rows, score, strict=True)])
    np.save("q.npy", (score + rng.integers(0, 2, N)).astype(float))


def test_quality_and_quotas_are_read_again(smart, rng):
    rate(rng)
    limits = ("--quota-field", "task", "--quota-max", "0.4", "--quota-min", "t1=2")
    assert smart(*SELECT, "-k", 9, "--quality-field", "score", "--alpha", 0.2, *limits, "--report")[0] == 0
    first = read()
    assert first["quality"]["used"] and first["quality"]["path"] is None
    assert [
        (g["least"], g["most"]) for g in sorted(first["quotas"][0]["groups"], key=lambda g: g["group"])
    ] == [
        (0, 3),
        (2, 3),
        (0, 3),
        (0, 3),
    ]
    assert smart("report", "out")[0] == 0 and same(read(), first)
    assert smart(*SELECT, "-k", 9, "--quality-field", "score", "--alpha-path", "0,0.2,1")[0] == 0
    status, _, err = smart("report", "out", "-q")
    assert (status, err) == (0, "") and [p["alpha"] for p in read()["quality"]["path"]["points"]] == [
        0,
        0.2,
        1,
    ]
    status, _, err = smart("report", "out", "--quality", "q.npy")
    assert status == 0 and "alpha_path.json is of another pool, or another quality" in err
    assert not read()["quality"]["used"] and read()["quality"]["path"] is None


def test_a_file_of_quality(smart, rng):
    rate(rng)
    assert smart(*SELECT, "-k", 9, "--quality", "q.npy", "--alpha", 0.2)[0] == 0
    assert smart("report", "out")[0] == 0 and read()["quality"]["used"]
    os.rename("q.npy", "p.npy")
    status, _, err = smart("report", "out")
    assert status == 2 and "q.npy" in err and "name it with --quality" in err
    assert smart("report", "out", "--quality", "p.npy")[0] == 0 and read()["quality"]["used"]
    np.save("q.npy", np.load("p.npy") + 1)
    status, _, err = smart("report", "out")
    assert status == 2 and "q.npy holds other quality than out was made with" in err
    mix = ("mix", "pool.jsonl", "--embeddings", "x.npy", "--n-rows", 20, "--out", "m", "--quality", "q.npy")
    assert smart(*mix, "--alpha", 0.3)[0] == 0 and smart("report", "m")[0] == 0
    assert read("m")["quality"]["used"] and "quality" in read("m")["tasks"]["tasks"][0]
    assert smart(*SELECT[:-1], "r", "-k", 9, "--baseline", "random")[0] == 0
    assert smart("report", "r", "--quality-field", "score")[0] == 0
    assert not read("r")["quality"]["used"] and "by random on cosine (a baseline)" in page_text("r")


def page_text(out):
    return " ".join(Reader(Path(f"{out}/report.html").read_text(encoding="utf-8")).text.split())


def test_a_budget_is_told_of_whole_selections(smart):
    assert smart(*SELECT, "--budget", 60, "--cost", "chars", "--report")[0] == 0
    limits = smartgpu.Selection.load("out/selection.npz").limits
    assert read()["budget"] == {"budget": 60.0, "cost": limits["cost"]}
    assert smart("report", "out", "-k", 2)[0] == 0
    assert read()["budget"] == {"budget": 60.0, "cost": None} and "keep to a budget of 60" in page_text("out")


def test_rows_from_elsewhere_are_told_of(smart, rng):
    for name in ("bench.npy", "old.npy"):
        np.save(name, rng.normal(size=(4, 5)).astype(np.float32))
    beside = ("--given-from", "old.npy", "--exclude-near", "bench.npy", "--exclude-above", 0.9)
    assert smart(*SELECT, "-k", 9, *beside, "--report")[0] == 0
    first = read()
    assert smart("report", "out")[0] == 0 and same(read(), first)
    page = Reader(Path("out/report.html").read_text(encoding="utf-8")).text
    assert "Rows from elsewhere (--given-from)" in page and "--exclude-near barred" in page


def test_a_new_selection_removes_the_report_of_the_old(smart):
    assert smart(*SELECT, "-k", 9, "--report")[0] == 0
    assert smart(*SELECT, "-k", 8, "--overwrite")[0] == 0
    assert not {"report.html", "report.json"} & set(os.listdir("out"))
    Path("out/report.html").write_text("mine")
    assert smart(*SELECT, "-k", 7, "--overwrite")[0] == 0
    assert Path("out/report.html").read_text() == "mine", "nobody else's file is removed"


def test_embedded_text_is_embedded_again_by_the_same_model(smart, monkeypatch):
    from smartgpu import embed

    def fake(texts, model=None, **how):
        calls.append(model)
        return np.array([[len(t), sum(map(ord, t)) % 97, 1.0] for t in texts], np.float32)

    calls, identity = [], ["one"]
    monkeypatch.setattr(embed, "embed", fake)
    monkeypatch.setattr(
        embed, "find_model", lambda model: embed._Source(model or "stand-in", None, identity[0])
    )
    assert smart("select", "pool.jsonl", "-k", 5, "--out", "out", "--report")[0] == 0
    assert calls == [None], "the report has them at hand"
    first = read()
    assert smart("report", "out")[0] == 0 and calls[1:] == ["stand-in"]
    assert same(read(), first)
    identity[0] = "two"
    status, _, err = smart("report", "out")
    assert status == 2 and "the model makes other embeddings" in err


@pytest.mark.parametrize(
    ("spoil", "parts"),
    [
        (lambda: shutil.rmtree("out"), ["no folder 'out'"]),
        (lambda: os.remove("out/selection.json"), ["out holds no selection.json or mixture.json"]),
        (lambda: Path("out/selection.json").write_text("[]"), ["out/selection.json", "not of smartgpu"]),
        (lambda: Path("out/selection.json").write_text('{"a": '), ["out/selection.json", "not of smartgpu"]),
        (
            lambda: Path("out/selection.json").write_text('{"pool": {}}'),
            ["out/selection.json", "not of smartgpu"],
        ),
        (lambda: os.remove("out/selection.npz"), ["out lacks selection.npz"]),
        (lambda: Path("out/selection.npz").write_text("x"), ["selection.npz", "not a saved selection"]),
        (lambda: other_arrays(), ["out/selection.json and selection.npz are not of one run"]),
        (lambda: [os.mkdir("out/.partial"), Path("out/.partial/run.json").write_text("{}")], ["unfinished"]),
        (lambda: shutil.copy("out/selection.json", "out/mixture.json"), ["selection.json and mixture.json"]),
        (
            lambda: os.remove("pool.jsonl"),
            ["pool.jsonl", "made from the pool pool.jsonl", "--pool and --embeddings"],
        ),
        (lambda: os.remove("x.npy"), ["x.npy", "--embeddings"]),
        (
            lambda: Path("pool.jsonl").write_text(Path("pool.jsonl").read_text() + "{}\n"),
            ["one row per pool row: 91"],
        ),
        (
            lambda: write_lines("pool.jsonl", [{"id": i} for i in range(N)]),
            ["has changed since", "fingerprint"],
        ),
        (lambda: np.save("x.npy", np.ones((N, 5))), ["x.npy holds other embeddings"]),
        (lambda: Path("out/report.html").write_text("mine"), ["report.html exists and is not of smartgpu"]),
        (
            lambda: Path("out/report.json").write_text('{"a": 1}'),
            ["report.json exists and is not of smartgpu"],
        ),
    ],
)
def test_a_folder_that_cannot_be_reported_on(smart, spoil, parts):
    assert smart(*SELECT, "-k", 9)[0] == 0
    spoil()
    before = sorted(os.listdir("out")) if os.path.isdir("out") else None
    status, _, err = smart("report", "out")
    assert status == 2 and err.count("\n") == 1, err
    for part in parts:
        assert part in err, err
    assert before is None or sorted(os.listdir("out")) == before


def other_arrays():
    selection = smartgpu.Selection.load("out/selection.npz")
    selection.prefix(3).save("out/selection.npz")


def test_a_pool_that_was_moved_is_named(smart):
    assert smart(*SELECT, "-k", 9, "--report")[0] == 0
    first = read()
    os.rename("pool.jsonl", "moved.jsonl")
    os.rename("x.npy", "y.npy")
    assert smart("report", "out")[0] == 2
    assert smart("report", "out", "--pool", "moved.jsonl", "--embeddings", "y.npy")[0] == 0
    assert same(read(), first)


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["out", "--draws", "0"], "draws must be at least 1, got 0"),
        (["out", "--sample", "-1"], "sample must be at least 1, got -1"),
        (["out", "--projection", "tsne"], "--projection must be one of auto, pca, umap"),
        (["out", "--backend", "reference"], "reference"),
        (["out", "-k", "10"], "-k must"),
        (["out", "--text", "nothing"], "no field 'nothing'"),
        (["out", "--task-field", "nothing"], "no field 'nothing'"),
        (["out", "--given", "x.npy"], "out was made without"),
        (["pool.jsonl"], "OUT must be a folder"),
        ([], "OUT is missing"),
    ],
)
def test_options_that_cannot_be(smart, arguments, part):
    assert smart(*SELECT, "-k", 9)[0] == 0
    status, _, err = smart("report", *arguments)
    assert status == 2 and part in err, err


def test_what_a_report_cannot_do_is_told_before_any_work(smart):
    status, _, err = smart(*SELECT, "-k", 9, "--report", "--backend", "reference")
    assert status == 2 and "reference" in err and not os.path.exists("out")
    os.mkdir("out")
    Path("out/report.html").write_text("mine")
    status, _, err = smart(*SELECT, "-k", 9, "--report")
    assert status == 2 and "not of smartgpu" in err and os.listdir("out") == ["report.html"]


def test_missing_libraries_are_told_before_any_work(smart, monkeypatch):
    kept = reporting.importlib.util.find_spec
    monkeypatch.setattr(
        reporting.importlib.util, "find_spec", lambda name: None if name == "jinja2" else kept(name)
    )
    status, _, err = smart(*SELECT, "-k", 9, "--report")
    assert status == 2 and "pip install 'smartgpu[report]'" in err and not os.path.exists("out")


@pytest.mark.parametrize(
    ("call", "error", "part"),
    [
        (lambda s, x, out: smartgpu.report(s, out=out), ValueError, "X is missing"),
        (lambda s, x, out: smartgpu.report(s, x), ValueError, "out is missing"),
        (
            lambda s, x, out: smartgpu.report(x, x, out),
            TypeError,
            "result must be a Selection, a Mixture or a folder",
        ),
        (
            lambda s, x, out: smartgpu.report(s, x[:5], out),
            ValueError,
            "X must be the pool .* 20 rows, got 5",
        ),
        (
            lambda s, x, out: smartgpu.report(s, x, out, text=["a"]),
            ValueError,
            "text must hold one value for each",
        ),
        (lambda s, x, out: smartgpu.report(s, x, out, text="abc"), ValueError, "text must hold one value"),
        (lambda s, x, out: smartgpu.report(s, x, out, tasks=["a"]), ValueError, "tasks must hold one label"),
        (lambda s, x, out: smartgpu.report(s, x, out, draws=1.5), TypeError, "draws must be an integer"),
        (lambda s, x, out: smartgpu.report(s, x, out, maximizer="x"), ValueError, "maximizer"),
        (lambda s, x, out: smartgpu.report(s, x, out, colour=1), TypeError, "colour"),
        (lambda s, x, out: smartgpu.report(s, x, out, given=[20]), ValueError, "given"),
        (lambda s, x, out: smartgpu.report(s, x, out, quality=[1]), ValueError, "quality must have shape"),
        (
            lambda s, x, out: smartgpu.report(s, x, out, quality=[None] * 20),
            ValueError,
            "missing in every row",
        ),
        (
            lambda s, x, out: smartgpu.report(s, x, out, alpha_path=1),
            ValueError,
            "alpha_path goes with quality",
        ),
        (
            lambda s, x, out: smartgpu.report(s, x, out, quotas=3),
            TypeError,
            "quotas must be a smartgpu.Quotas",
        ),
        (lambda s, x, out: smartgpu.report("f", x, out), ValueError, "X cannot be given with a folder"),
    ],
)
def test_arguments_that_cannot_be(rng, tmp_path, call, error, part):
    x = rng.normal(size=(20, 3))
    with pytest.raises(error, match=part):
        call(smartgpu.select(x, 3), x, tmp_path / "out")
    assert not (tmp_path / "out").exists()


# ---- odd pools ----


def test_one_row(tmp_path):
    _, r = make(tmp_path, np.ones((1, 3), np.float32), 1)
    assert r["headline"]["coverage"] == 1 == r["headline"]["bound"]["share"]
    assert r["worst"] == [] and r["absorbed"]["groups"] == [] and r["map"]["points"]["x"] == [0]


def test_zero_rows_are_covered_by_nothing_and_owe_nothing(tmp_path):
    _, r = make(tmp_path, np.zeros((6, 3), np.float32), 2)
    assert r["headline"]["coverage"] == 1 and r["headline"]["total"] == 0


def test_a_pool_without_text(smart):
    assert smart("select", "x.npy", "-k", 5, "--out", "out", "--report")[0] == 0
    assert read()["map"]["points"]["text"] is None and read()["tasks"] is None
    assert all(row["text"] is None for row in read()["rows"].values())


def test_rows_that_lack_fields_or_hold_other_things(smart):
    odd = [
        {},
        {"text": None},
        {"text": 5, "task": 7},
        {"text": ["a", {"role": "user", "content": "b"}], "task": None},
    ]
    odd += [
        {"text": {"x": 1}, "task": ["list"]},
        {"text": "x" * 1_000_000, "task": "t\u202e"},
        {"text": [{"no": 1}]},
    ]
    write_lines("pool.jsonl", [odd[i % 7] | {"id": i} for i in range(N)])
    assert smart(*SELECT, "-k", 9, "--report")[0] == 0
    assert {row["task"] for row in read()["tasks"]["tasks"]} == {"", "7", '["list"]', r"t\u202e"}
    assert os.path.getsize("out/report.html") < 8e6
    assert max(row["length"] for row in read()["rows"].values()) == 1_000_000


# ---- in a browser ----


@pytest.fixture(scope="module")
def browser():
    if find_browser() is None:
        pytest.skip("no headless Chromium on the path")
    browser = Browser()
    yield browser
    browser.close()


@pytest.fixture
def shown_page(pool, tmp_path):
    q = np.arange(200) % 5
    page_of(pool, tmp_path, quality=q, alpha_path=smartgpu.alpha_path(pool[0], 15, q, (0, 0.5, 1)))
    return tmp_path / "out" / "report.html"


@pytest.mark.browser
def test_page_draws_without_network_and_runs_nothing_from_the_data(browser, shown_page):
    browser.open(shown_page)
    assert browser.asked == [shown_page.as_uri()]
    assert browser.errors == []
    assert browser.value("typeof window.hit") == "undefined"
    drawn = browser.value(
        "[...document.querySelectorAll('.plot')].map((p) => [p.id, p.querySelectorAll('svg path').length])"
    )
    assert [name for name, _ in drawn] == [
        f"plot-{n}" for n in ("standing", "curve", "quality", "ratings", "map", "tasks", "distance")
    ]
    assert all(count > 10 for _, count in drawn)
    labels = browser.value(
        "[...document.querySelectorAll('#plot-tasks .ytick text')].map((t) => t.textContent)"
    )
    assert sorted(labels) == sorted(["<b>bold</b>", "مهمة", "t0"]), "shown as they are, not as markup"
    assert HOSTILE[1] in browser.value("document.getElementById('worst').innerText")
    assert browser.value("document.querySelectorAll('#worst script, #worst img').length") == 0


@pytest.mark.browser
@pytest.mark.parametrize("touch", [False, True])
def test_pointing_at_a_row_shows_its_text(browser, shown_page, touch):
    browser.open(shown_page, 390 if touch else 1280, touch=touch)
    browser.value("document.getElementById('plot-map').scrollIntoView({block: 'center'})")
    find = """(() => {
      const data = JSON.parse(document.getElementById('figures').textContent).map.tips;
      const at = data[0].findIndex((tip) => tip.row === 199);
      const box = document.querySelectorAll('#plot-map .scatterlayer .trace')[0].querySelectorAll('.point')[at]
        .getBoundingClientRect();
      return [box.x + box.width / 2, box.y + box.height / 2];
    })()"""
    x, y = browser.value(find)
    if touch:
        browser.tap(x, y)
    else:
        browser.move(x - 40, y)
        browser.move(x, y)
    browser.wait("document.getElementById('tip').style.display === 'block'", 10)
    told = browser.value("document.getElementById('tip').innerText")
    assert "row 199" in told and HOSTILE[1] in told, told
    assert browser.value("document.getElementById('tip').querySelectorAll('script, img, a').length") == 0
    assert browser.value("typeof window.hit") == "undefined" and browser.errors == []
    if touch:  # a finger that moves there scrolls the page: nothing prevents it
        free = """(() => {
          const target = document.querySelector('#plot-map .nsewdrag');
          const how = {bubbles: true, cancelable: true, touches: [new Touch({identifier: 1, target})]};
          return target.dispatchEvent(new TouchEvent('touchstart', how));
        })()"""
        assert browser.value(free)
        return
    box = browser.value(
        "(({left, right}) => [left, right])(document.getElementById('tip').getBoundingClientRect())"
    )
    assert box[0] >= 0 and box[1] <= 1280


def contrast(a, b):
    """WCAG 2: (lighter + 0.05) / (darker + 0.05), of two rgb() colours."""

    def light(colour):
        parts = [int(v) / 255 for v in re.findall(r"\d+", colour)[:3]]
        r, g, b = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
        return 0.2126 * r + 0.7152 * g + 0.0722 * b

    low, high = sorted((light(a), light(b)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.browser
@pytest.mark.parametrize("dark", [False, True])
def test_themes_are_readable_and_figures_follow(browser, shown_page, dark):
    browser.open(shown_page, dark=not dark)
    browser.theme(dark)  # changed while the page is open
    paper = "getComputedStyle(document.querySelector('section')).backgroundColor"
    browser.wait(f"{paper} === '{'rgb(24, 28, 34)' if dark else 'rgb(255, 255, 255)'}'", 10)
    background = browser.value(paper)
    for place in (".note", "h1", "h1 strong", ".meta", ".text", ".card th"):
        colour = browser.value(f"getComputedStyle(document.querySelector('{place}')).color")
        assert contrast(colour, background) >= 4.5, (place, colour, background)
    line = "getComputedStyle(document.querySelector('#plot-curve .xtick text')).fill"
    ink = browser.value("getComputedStyle(document.body).color")
    browser.wait(f"{line} === '{ink}'", 10)
    for path in ("#plot-curve .scatterlayer .trace:nth-child(4) .js-line", "#plot-standing .point"):
        colour = browser.value(f"getComputedStyle(document.querySelector('{path}')).stroke")
        assert contrast(colour, background) >= 3 or "standing" in path, (path, colour)


@pytest.mark.browser
@pytest.mark.parametrize("width", [360, 390, 1280])
def test_page_fits_its_width(browser, shown_page, width):
    browser.open(shown_page, width, touch=width < 500)
    assert browser.value("document.documentElement.scrollWidth") == width
    wide = """[...document.querySelectorAll('main *, .plot svg')]
      .filter((e) => e.getBoundingClientRect().right > innerWidth + 1 && !e.closest('.scroll, svg *'))
      .map((e) => e.className)"""
    assert browser.value(wide) == []
    sizes = """[...document.querySelectorAll('main p, main td, main span, .plot text')]
      .filter((e) => e.textContent.trim()).map((e) => parseFloat(getComputedStyle(e).fontSize))"""
    assert min(browser.value(sizes)) >= 10


@pytest.mark.browser
def test_page_works_for_one_row_and_for_a_matrix(browser, tmp_path):
    make(tmp_path, np.ones((1, 3), np.float32), 1, name="one")
    browser.open(tmp_path / "one" / "report.html")
    assert browser.errors == []
    matrix = np.eye(5)
    make(tmp_path, matrix, result=smartgpu.select(matrix, 2, similarity="precomputed"), name="matrix")
    browser.open(tmp_path / "matrix" / "report.html")
    assert browser.errors == [] and browser.value("document.getElementById('plot-map')") is None
