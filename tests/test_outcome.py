"""bench/outcome.py: nothing that is held out is chosen, and its figures are those of the definitions."""

import collections
import dataclasses
import itertools
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest

import smartgpu

ROOT = Path(__file__).resolve().parents[1]
if not (ROOT / "bench" / "outcome.py").is_file():
    pytest.skip("bench/ is not beside the tests", allow_module_level=True)
sys.path.insert(0, str(ROOT))

from bench import outcome, outcome_plot
from bench.outcome import FL, FULL, GC, LD, QUICK, Condition, Plan, Pool, Study
from bench.outcome_data import COPIES, LIKENESS, Table, damage, family, few, split
from bench.outcome_figures import METRICS, REPLICATES, Group, Scores, interval, nearest, seeds_interval

RESULTS = sorted((ROOT / "bench" / "results").glob("outcome*.jsonl"))
PAGE = ROOT / "docs" / "outcome.md"
WORDS = "red green blue seven old Paris no yes 12 a-b the very".split()
TINY = Plan(
    n=(20, 60),
    m=(4, None),
    grid=((4, 20),),
    budgets=(4, (30,)),
    tasks=((3,), (20,)),
    damaged=(4, 20),
    damages=(("responses", 0.2), ("garbage", 0.2), ("copies", 0.2)),
)


@pytest.fixture
def table(rng):
    """20 tasks of 8 to 27 rows, with some repeated prompts; two tasks of each family but the last two."""
    names = [f"sni/task{100 + i}_{'abcdefghijk'[i // 2 if i < 18 else i - 9]}set_part{i}" for i in range(20)]
    sizes = [8 + i for i in range(20)]
    centres = rng.standard_normal((20, 12))
    x = np.concatenate([c + rng.standard_normal((s, 12)) for c, s in zip(centres, sizes, strict=True)])
    prompts = [f"prompt {i}" for i in range(len(x))]
    for i in range(0, len(x) - 3, 9):  # a copy beside it
        prompts[i + 1], x[i + 1] = prompts[i], x[i]
    responses = [" ".join(rng.choice(WORDS, rng.integers(1, 5))) for _ in prompts]
    return Table.of(x.astype(np.float32), np.repeat(names, sizes).tolist(), prompts, responses)


@pytest.fixture(scope="module")
def open_scores():
    """scores(texts), closed at the end; needs the package rouge-score."""
    pytest.importorskip("rouge_score")
    opened = {}

    def get(texts):
        key = tuple(texts)
        if key not in opened:
            opened[key] = Scores(texts, processes=1)
        return opened[key]

    yield get
    for scores in opened.values():
        scores.close()


# -- what is held out --------------------------------------------------------------------------------------------------


def test_split_is_disjoint_and_seeded(table):
    for seed in range(5):
        s = split(table, seed)
        pool, seen, new = (set(rows.tolist()) for rows in (s.pool, s.seen, s.new))
        assert not pool & seen and not pool & new and not seen & new
        assert not set(table.prompt[s.pool]) & set(table.prompt[np.concatenate([s.seen, s.new])])
        families = [{family(t) for t in table.task[rows]} for rows in (s.pool, s.seen, s.new)]
        assert families[1] <= families[0] and not families[0] & families[2]
        assert 1 <= len(set(table.task[s.new])) <= 2  # a tenth of 20
        for name in set(table.task[s.pool]):
            size = int((table.task == name).sum())
            assert size - int((table.task[s.pool] == name).sum()) == max(1, round(0.2 * size))
        again = split(table, seed)
        assert all(np.array_equal(getattr(s, k), getattr(again, k)) for k in ("pool", "seen", "new"))
    assert not np.array_equal(split(table, 0).pool, split(table, 1).pool)


@pytest.mark.parametrize(
    ("task", "name"),
    [
        ("sni/task1581_eqasc-perturbed_answer_generation", "eqasc"),
        ("ni1/task036_qasc_topic_word", "qasc"),
        ("t0/qasc/is_correct_1", "qasc"),
        ("t0/qasc", "qasc"),
        ("cot/qasc", "qasc"),
        ("sni/task1637_doqa2.1_cooking", "doqa"),
        ("2048", "2048"),
    ],
)
def test_family_is_the_first_word(task, name):
    assert family(task) == name


def test_few_takes_whole_tasks_in_order(table):
    small = few(table, tasks=5, rows=6)
    assert len(small) == 30 and set(collections.Counter(small.task).values()) == {6}
    np.testing.assert_array_equal(small.origin, np.arange(30))
    assert small.fingerprint() != table.fingerprint() == dataclasses.replace(table).fingerprint()


# -- damage ------------------------------------------------------------------------------------------------------------


def test_responses_are_swapped_among_the_marked(table):
    got = damage(table, "responses", 0.2, 0)
    assert got.marked.sum() == round(0.2 * len(table)) and got.x is table.x
    np.testing.assert_array_equal(got.response[~got.marked], table.response[~got.marked])
    assert sorted(got.response[got.marked]) == sorted(table.response[got.marked])
    assert (got.response != table.response).sum() > 0.5 * got.marked.sum()


def test_garbage_is_half_alike(table):
    got = damage(table, "garbage", 0.2, 0)
    cosine = (got.x.astype(np.float64) * table.x).sum(axis=1)
    np.testing.assert_allclose(cosine[got.marked], LIKENESS, atol=1e-6)
    np.testing.assert_allclose(cosine[~got.marked], 1, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(got.x, axis=1), 1, atol=1e-6)
    assert (got.response != table.response).any() and not table.marked.any()


def test_copies_come_behind_their_rows(table):
    n, got = len(table), damage(table, "copies", 0.2, 0)
    count = round(0.2 * n)
    assert len(got) == n + count and got.marked.sum() == count and not got.marked[:n].any()
    for name in ("x", "task", "prompt", "response"):
        np.testing.assert_array_equal(getattr(got, name), getattr(table, name)[got.origin])
    times = collections.Counter(got.origin[n:].tolist())
    assert max(times.values()) == COPIES and len(times) == -(-count // COPIES)


# -- mixtures ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("plan", [FULL, QUICK, TINY], ids=["full", "quick", "tiny"])
def test_every_comparison_is_itself_measured(plan):
    conditions = plan.conditions(3)
    assert len(set(conditions)) == len(conditions)
    assert {c.reference for c in conditions} - {None} <= set(conditions)
    assert Condition(3, GC, "smart", FL, None, plan.n[0]).reference is None


def test_full_is_what_was_asked_for():
    conditions = FULL.conditions(0)
    for tasks, budgets in ((GC, "smart"), (GC, "proportional"), (GC, "equal"), ("random", "equal")):
        for n, m in itertools.product((500, 2000, 10_000), (16, 64, 256, None)):
            assert Condition(0, tasks, budgets, FL, m, n) in conditions
    shares = {(c.damage, c.share) for c in conditions}
    assert shares == {("none", 0.0), *itertools.product(("responses", "garbage", "copies"), (0.05, 0.2))}


def test_prefixes_are_the_mixtures_themselves(table):
    """What Pool keeps (order of tasks, orders of rows) changes no mixture."""
    pool = Pool(table, seed=5)
    labels = table.task.tolist()
    for c, how in (
        (Condition(5, GC, "smart", FL, 6, 40), {}),
        (Condition(5, FL, "smart", LD, 6, 40), {"task_objective": FL, "row_objective": LD}),
        (Condition(5, GC, "proportional", FL, 6, 40), {"method": "proportional"}),
        (Condition(5, GC, "equal", "random", None, 40), {"method": "equal", "row_objective": "random"}),
        (
            Condition(5, "random", "equal", GC, 6, 40),
            {"method": "random", "include": pool.drawn[:6], "row_objective": GC},
        ),
    ):
        want = smartgpu.mix(table.x, labels, c.m, 40, order="rank", seed=5, **how)
        np.testing.assert_array_equal(pool.choose(c, 60)[0], want.indices)
    whole = pool.choose(Condition(5, "none", "none", FL, None, 30), 60)[0]
    np.testing.assert_array_equal(whole, smartgpu.select(table.x, 30).indices)


def test_random_tasks_and_rows_are_nested_and_seeded(table):
    pool = Pool(table, seed=1)
    names = [set(table.task[pool.choose(Condition(1, "random", "equal", FL, m, 20), 60)[0]]) for m in (2, 5)]
    assert len(names[0]) == 2 and names[0] < names[1]
    small, large = (pool.choose(Condition(1, "none", "none", "random", None, n), 60)[0] for n in (10, 60))
    np.testing.assert_array_equal(small, large[:10])
    assert len(set(large.tolist())) == 60 and Pool(table, seed=2).drawn != pool.drawn


def test_few_tasks_give_all_that_they_have(table):
    pool = Pool(table, seed=0)
    rows = pool.choose(Condition(0, GC, "smart", FL, 2, 10_000), 60)[0]
    tasks = set(table.task[rows])
    assert len(tasks) == 2 and sorted(rows) == np.flatnonzero(np.isin(table.task, list(tasks))).tolist()


# -- figures -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prompts", [1, 1024, 1025])
def test_nearest_against_float64(rng, prompts):
    x, held = (rng.standard_normal((n, 24)).astype(np.float32) for n in (300, prompts))
    x, held = (a / np.linalg.norm(a, axis=1, keepdims=True) for a in (x, held))
    x[200:250] = x[100:150]  # ties: the lowest row
    rows = rng.permutation(300)[:180]
    where, similarity = nearest(x, rows, held)
    s = held.astype(np.float64) @ x[rows].astype(np.float64).T
    np.testing.assert_allclose(similarity, s.max(axis=1), atol=1e-6)
    assert np.isin(where, rows).all()
    np.testing.assert_allclose((held.astype(np.float64) * x[where]).sum(axis=1), s.max(axis=1), atol=1e-6)
    both = np.isin(np.arange(100, 150), rows) & np.isin(np.arange(200, 250), rows)
    assert not np.isin(where, np.arange(200, 250)[both]).any()


def test_coverage_is_that_of_facility_location(table, open_scores):
    """Of the held-out prompts as the represented set, by the package and in float64."""
    study = Study(table, 0, TINY, open_scores(table.texts))
    c = Condition(0, GC, "smart", FL, 4, 20)
    got, pool = study.measure(c), study.pools["none", 0.0]
    rows = pool.choose(c, 60)[0]
    for name, group in study.groups.items():
        represented = smartgpu.FacilityLocation(represented=group.held.x)
        value = smartgpu.evaluate(pool.table.x, rows, represented)
        assert got.samples[name].value[0] == pytest.approx(value.coverage, abs=1e-6)
        s = group.held.x.astype(np.float64) @ pool.table.x.astype(np.float64).T
        best = s[:, rows].max(axis=1)
        want = np.maximum(best, 0).sum() / np.maximum(s.max(axis=1), 0).sum()
        assert got.row[name]["coverage"]["value"] == pytest.approx(want, abs=2e-5)
        for p in (1, 5, 10):
            assert got.row[name]["similarity"][f"p{p}"] == pytest.approx(np.percentile(best, p), abs=2e-5)


@pytest.mark.parametrize("kind", ["none", "responses"])
def test_transfer_against_a_plain_loop(table, open_scores, kind):
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rouge1"])
    study = Study(table, 1, TINY, open_scores(table.texts))
    c = Condition(1, GC, "smart", FL, 4, 20, *(() if kind == "none" else (kind, 0.2)))
    got, pool = study.measure(c), study.pool(c)
    rows = sorted(pool.choose(c, 60)[0])
    for name, group in study.groups.items():
        rouge, exact, by_task = [], [], collections.defaultdict(list)
        for i, x in enumerate(group.held.x.astype(np.float64)):
            j = rows[int(np.argmax(np.round(pool.table.x[rows].astype(np.float64) @ x, 6)))]
            truth, answer = (t.texts[t.response[k]] for t, k in ((group.held, i), (pool.table, j)))
            rouge.append(scorer.score(truth, answer)["rouge1"].fmeasure)
            exact.append(truth.lower() == answer.lower())
            by_task[group.held.task[i]].append(rouge[-1])
        means = [np.mean(some) for some in by_task.values()]
        np.testing.assert_allclose(
            got.samples[name].value[1:], [np.mean(rouge), np.mean(exact), np.mean(means)], atol=1e-6
        )


def test_scores_of_pairs(open_scores):
    scores = open_scores(["", "A b", "a  B\n", "b c", "?!"])
    truth, answer = np.array([1, 1, 1, 1, 0, 4]), np.array([1, 2, 3, 0, 0, 4])
    np.testing.assert_allclose(
        scores.rouge1(truth, answer), [1, 1, 0.5, 0, 0, 0]
    )  # no words: 0, as rouge-score has it
    np.testing.assert_array_equal(scores.exact(truth, answer), [1, 1, 0, 0, 1, 1])
    known = len(scores.keys)
    scores.rouge1(truth[::-1], answer[::-1])
    assert len(scores.keys) == known == 6  # once each


# -- bootstrap ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def group(table):
    held = table.take(np.arange(60))
    return Group(held, np.linspace(0.4, 1, 60), seed=3)


def drawn(rng, n: int) -> tuple[np.ndarray, ...]:
    return rng.random(n), rng.random(n), (rng.random(n) < 0.3).astype(float)


def test_bootstrap_draws_prompts_and_tasks(table, group, rng):
    similarity, rouge1, exact = drawn(rng, 60)
    sample = group.sample(similarity, rouge1, exact)
    task = group.held.task
    for unit, weights in group.weights.items():
        assert weights.shape == (REPLICATES, 60)
        for b in (0, REPLICATES - 1):
            w = weights[b].astype(np.float64)
            if unit == "prompts":
                assert w.sum() == 60
            else:  # a task's prompts come together
                assert all(len(set(w[task == name])) == 1 for name in set(task))
                assert sum(w[task == name][0] for name in set(task)) == len(set(task))
            again = np.repeat(np.arange(60), w.astype(int))
            even = group.even.astype(np.float64)
            want = [
                similarity[again].sum() / np.linspace(0.4, 1, 60)[again].sum(),
                rouge1[again].mean(),
                exact[again].mean(),
                (rouge1 * even)[again].sum() / even[again].sum(),
            ]
            np.testing.assert_allclose(sample.replicates[unit][b], want, rtol=1e-5)


def test_bootstrap_is_deterministic_and_paired(table, group, rng):
    some = drawn(rng, 60)
    sample, other = group.sample(*some), group.sample(*(0.9 * a for a in some))
    same = Group(group.held, np.linspace(0.4, 1, 60), seed=3).sample(*some)
    assert same.figures() == sample.figures()
    assert Group(group.held, np.linspace(0.4, 1, 60), seed=4).sample(*some).figures() != sample.figures()
    for metric, found in sample.figures().items():
        at = METRICS.index(metric)
        assert found["value"] == pytest.approx(sample.value[at], abs=1e-5)
        for unit in ("prompts", "tasks"):
            low, high = found[unit]
            assert low < found["value"] < high
            np.testing.assert_allclose((low, high), interval(sample.replicates[unit][:, at]), atol=1e-4)
    assert all(
        v == {"value": 0, "prompts": [0, 0], "tasks": [0, 0]} for v in (sample - same).figures().values()
    )
    rises = (sample - other).figures()  # in every replicate, though the values' own intervals overlap
    assert all(found["prompts"][0] > 0 for found in rises.values())
    assert sample.figures()["rouge1"]["prompts"][0] < other.figures()["rouge1"]["prompts"][1]


def test_interval_covers_about_as_often_as_it_says(rng):
    """95 % of the intervals over prompts hold the mean that samples are drawn from."""
    table = Table.of(rng.standard_normal((80, 4)), ["a"] * 80, ["p"] * 80, ["r"] * 80)
    held = Group(table, np.ones(80), seed=0)
    hits = 0
    for _ in range(200):
        values = rng.random(80)
        low, high = held.sample(values, values, values).figures()["rouge1"]["prompts"]
        hits += low <= 0.5 <= high
    assert 0.88 <= hits / 200 <= 0.99


@pytest.mark.parametrize("values", [[1.0], [0.2, 0.5], [0.1, 0.4, 0.2, 0.9, 0.3]])
def test_seeds_interval_is_over_all_draws(values):
    means = [np.mean(some) for some in itertools.product(values, repeat=len(values))]
    np.testing.assert_allclose(seeds_interval(values), [np.mean(values), *np.percentile(means, [2.5, 97.5])])


# -- rows --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def measured(table, tmp_path):
    pytest.importorskip("rouge_score")
    out = tmp_path / "rows.jsonl"
    return out, outcome.measure(table, TINY, range(2), out)


def test_rows_are_complete_and_resumed(table, measured):
    out, rows = measured
    assert [json.loads(line) for line in out.read_text().splitlines()] == rows
    assert len(rows) == len(TINY.conditions(0)) + len(TINY.conditions(1))
    for row in rows:
        assert {
            "data",
            "seed",
            "options",
            "commit",
            "dirty",
            "versions",
            "time",
            "replicates",
            "seconds",
        } <= row.keys()
        assert (
            row["n_rows"] <= (row["n"] or row["pool_rows"])
            and row["seen"]["prompts"]
            and row["new"]["prompts"]
        )
        for group in ("seen", "new"):
            assert all(0 <= row[group][metric]["value"] <= 1 for metric in METRICS)
            smart = (row["tasks"], row["budgets"], row["rows"]) == (GC, "smart", FL)
            if row["damage"] != "none":
                assert "minus_clean" in row[group]
            else:
                assert ("minus_smart" in row[group]) == (not smart and row["n"] is not None)
    assert outcome.measure(table, TINY, range(2), out) == [] and len(out.read_text().splitlines()) == len(
        rows
    )
    lines = out.read_text().splitlines()
    out.write_text("\n".join(lines[:-3]) + "\n")
    last = outcome.measure(table, TINY, range(2), out)
    changing = {"seconds", "time", "commit", "dirty"}
    assert [{k: v for k, v in row.items() if k not in changing} for row in last] == [
        {k: v for k, v in row.items() if k not in changing} for row in rows[-3:]
    ]


def test_differences_are_those_of_the_rows(measured):
    _, rows = measured
    by = {Condition(*(row[f.name] for f in dataclasses.fields(Condition))): row for row in rows}
    seen = 0
    for c, row in by.items():
        if c.reference is None:
            continue
        part = "minus_smart" if c.damage == "none" else "minus_clean"
        for group, metric in itertools.product(("seen", "new"), METRICS):
            want = row[group][metric]["value"] - by[c.reference][group][metric]["value"]
            assert row[group][part][metric]["value"] == pytest.approx(want, abs=2e-5)
            seen += 1
    assert seen


def test_damage_is_counted_in_the_rows(table, measured):
    _, rows = measured
    for row in rows:
        if row["damage"] == "none":
            assert row["marked"] == row["repeated"] == row["marked_in_pool"] == 0
        else:
            assert 0.15 < row["marked_in_pool"] < 0.21 and 0 <= row["marked"] <= 1
        assert row["repeated"] == 0 or row["damage"] == "copies"


def test_arguments_are_checked_before_work(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SMARTGPU_DATA", str(tmp_path))
    for arguments, reason in ((["--seeds", "7"], r"\[1, 6\], got 7"), ([], "set SMARTGPU_DATA")):
        with pytest.raises(SystemExit) as stop:
            outcome.main(["--out", str(tmp_path / "rows.jsonl"), *arguments])
        assert stop.value.code == 2 and re.search(reason, capsys.readouterr().err)
    assert not (tmp_path / "rows.jsonl").exists()


@pytest.mark.slow
def test_quick_on_the_real_tasks(data_dir, tmp_path, monkeypatch):
    pytest.importorskip("rouge_score")
    if not (data_dir / "tasks" / "tasks.parquet").is_file():
        pytest.skip(f"no {data_dir / 'tasks'}")
    monkeypatch.setenv("SMARTGPU_DATA", str(data_dir))
    out = tmp_path / "rows.jsonl"
    assert outcome.main(["--quick", "--seeds", "1", "--out", str(out)]) == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(rows) == len(QUICK.conditions(0))
    (whole,) = (row for row in rows if row["n"] is None)
    assert whole["seen"]["coverage"]["value"] == whole["new"]["coverage"]["value"] == 1
    # A ceiling for coverage; and what is near answers better than a floor that any row would reach
    assert all(row["seen"]["coverage"]["value"] <= 1 for row in rows if row["damage"] == "none")
    assert whole["seen"]["rouge1"]["value"] > 2 * whole["new"]["rouge1"]["value"]


# -- the page ----------------------------------------------------------------------------------------------------------


def made_up(how, m, n, figures, **more):
    """Rows of two seeds; figures: the values of every metric, and how far they are from SMART's."""
    rows = []
    for seed, (value, behind) in enumerate(figures):
        found = {k: {"value": value, "tasks": [0, 0]} for k in METRICS}
        found["minus_smart"] = {
            k: {"value": behind, "tasks": [behind - 0.01, behind + 0.01]} for k in METRICS
        }
        found["similarity"] = dict.fromkeys(("mean", "p10", "p5", "p1"), 0.5)
        rows.append(
            {
                **dataclasses.asdict(Condition(seed, *how, m, n)),
                "seen": found,
                "new": found,
                "n_rows": n,
                "pool_rows": 9,
                "data": "x",
                **more,
            }
        )
    return rows


def test_tables_say_what_the_rows_say():
    rows = made_up((GC, "smart", FL), 256, 500, [(0.2, 0), (0.4, 0)])
    rows += made_up((GC, "equal", FL), 256, 500, [(0.3, 0.1), (0.7, 0.3)])
    rows += made_up((GC, "proportional", FL), 256, 500, [(0.1, -0.1), (0.4, 0.05)])
    found = outcome_plot.Rows(rows)
    (line,) = [s for s in outcome_plot.values(found, "seen", "rouge1").splitlines() if s.startswith("| 256")]
    assert line == "| 256, 500 | 0.300 | 0.250 | **0.500** | - | - | - | - |"
    text = outcome_plot.tally(found)
    (equal,) = [s for s in text.splitlines() if s.startswith("| equal |")]
    assert equal.split(" | ")[1] == "0 (0) : 1 (1) of 1"
    (proportional,) = [s for s in text.splitlines() if s.startswith("| proportional |")]
    assert proportional.split(" | ")[1] == "0 (0) : 0 (0) of 1"
    assert "−0.200 [−0.292, −0.108]" in outcome_plot.differences(found, "seen", "rouge1")


def test_a_seed_short_is_no_figure():
    rows = made_up((GC, "smart", FL), 256, 500, [(0.2, 0), (0.4, 0)])
    rows += made_up((GC, "equal", FL), 256, 500, [(0.3, 0.1), (0.7, 0.3)])[:1]
    (line,) = [
        s
        for s in outcome_plot.values(outcome_plot.Rows(rows), "seen", "exact").splitlines()
        if s.startswith("| 256")
    ]
    assert line == "| 256, 500 | 0.300 | - | - | - | - | - | - |"


def test_a_page_without_markers_is_refused():
    with pytest.raises(ValueError, match="measured:begin"):
        outcome_plot.write_page("no markers", outcome_plot.Rows([]))


@pytest.mark.skipif(not (RESULTS and PAGE.is_file()), reason="nothing is measured yet")
def test_the_page_is_what_the_rows_say():
    page = PAGE.read_text(encoding="utf-8")
    rows = outcome_plot.read(RESULTS)
    assert outcome_plot.write_page(page, rows) == page
    assert len(rows.seeds) == 5 and {c for s in rows.seeds for c in FULL.conditions(s)} == set(rows.by)
    for name in re.findall(r"\(img/(outcome_\w+\.png)\)", page):
        assert (PAGE.parent / "img" / name).is_file()
