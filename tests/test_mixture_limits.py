"""mix() under a budget of tokens, quotas, rows that are there, must be or may not be: against plain definitions."""

import itertools
import json

import numpy as np
import pytest
from oracle import synthetic
from test_mixture import published_budgets

import smartgpu
from smartgpu import FacilityLocation, Near, QualityDiversity, Quotas, reference
from smartgpu.mixture import Mixture, mix, sweep
from smartgpu.mixture.balance import Balance
from smartgpu.similarity import as_similarity

TASKS = np.repeat([f"t{i}" for i in range(8)], [60, 50, 40, 30, 20, 10, 6, 4])
N = len(TASKS)


@pytest.fixture
def pool(rng):
    """220 rows of 8 tasks: features, tasks, wordings, tokens and languages, rows mixed up."""
    order = rng.permutation(N)
    return (
        synthetic(rng, N, 12),
        TASKS[order],
        np.array(["q", "a", None], object)[rng.integers(0, 3, N)],
        rng.integers(3, 60, N),
        rng.choice(["en", "de", "fr"], N, p=[0.7, 0.2, 0.1]),
    )


def whole(m):
    """The rows of a mixture, each once, and those of its tasks."""
    rows = m.indices.tolist()
    assert len(set(rows)) == len(rows) == len(m)
    assert sorted(rows) == sorted(np.concatenate([t.indices for t in m.tasks]).tolist())
    assert all(t.budget == len(t.indices) == sum(s.k for s in t.selections.values()) for t in m.tasks)
    return m


# -- a budget of tokens -----------------------------------------------------------------------------------------------


def test_a_budget_by_hand(pool):
    """Shares are the published rounding in tokens; each is a budget of select(); the rest goes out in plain rounds."""
    x, tasks, _, cost, _ = pool
    for budget in (400, 1500, 4000):
        m = whole(mix(x, tasks, 6, budget=budget, cost=cost))
        plain = mix(x, tasks, 6, 20)
        assert [(t.task, t.gain) for t in m.tasks] == [(t.task, t.gain) for t in plain.tasks]
        costs = [int(cost[tasks == t.task].sum()) for t in m.tasks]
        shares = published_budgets([t.gain for t in m.tasks], costs, min(budget, sum(costs)))
        assert [t.allowance for t in m.tasks] == shares
        rows = [np.flatnonzero(tasks == t.task) for t in m.tasks]
        problems = [reference.Problem(x[r], as_similarity("cosine"), FacilityLocation()) for r in rows]
        chosen = []
        for r, share in zip(rows, shares, strict=True):
            able = cost[r].min() <= share
            chosen.append(smartgpu.select(x[r], budget=share, cost=cost[r]).indices.tolist() if able else [])
        left = budget - sum(cost[r[c]].sum() for r, c in zip(rows, chosen, strict=True))
        more = True
        while more:
            more = False
            for r, c, problem in zip(rows, chosen, problems, strict=True):
                gains = problem.gains(c)
                gains[c] = -1
                gains[cost[r] > left] = -1
                if gains.max() >= 0:
                    c.append(int(gains.argmax()))
                    left, more = left - cost[r[c[-1]]], True
        for t, r, c in zip(m.tasks, rows, chosen, strict=True):
            assert t.indices.tolist() == r[c].tolist() and t.cost == cost[r[c]].sum()
        assert m.cost == sum(t.cost for t in m.tasks) == budget - left


def test_a_budget_is_never_exceeded_and_spent_to_the_last_row():
    hypothesis = pytest.importorskip("hypothesis")
    st = hypothesis.strategies
    refused = []

    @hypothesis.given(
        seed=st.integers(0, 2**32 - 1),
        share=st.floats(0.001, 1.3),
        count=st.integers(1, 8),
        fractions=st.booleans(),
        wordings=st.sampled_from([None, "own", "flan"]),
        sets=st.booleans(),
        method=st.sampled_from(["smart", "equal", "proportional", "random"]),
    )
    @hypothesis.settings(max_examples=60)
    def run(seed, share, count, fractions, wordings, sets, method):
        rng = np.random.default_rng(seed)
        x, tasks = synthetic(rng, N, 5), rng.permutation(TASKS)
        cost = np.exp(rng.normal(3, 1, N)) if fractions else rng.integers(1, 90, N).astype(float)
        names = ["zs_opt", "fs_opt", "fs_noopt"] if wordings == "flan" else ["q", "a", None]
        templates = None if wordings is None else [names[i] for i in rng.integers(0, 3, N)]
        closed, must, how = [], [], {}
        if sets:
            given, must, closed = np.split(rng.choice(N, 40, replace=False), [10, 13])
            how = {"given": given, "include_rows": must, "exclude": closed}
            closed = [*given.tolist(), *closed.tolist()]
        budget = float(share * cost.sum())
        call = {"templates": templates, "method": method, "budget": budget, "cost": cost, **how}
        try:
            m = whole(mix(x, tasks, count, **call))
        except ValueError as error:
            refused.append(str(error))
            assert "cheapest row" in str(error) or "include_rows" in str(error)
            return
        assert m.cost == pytest.approx(cost[m.indices].sum()) and m.cost <= budget
        assert not set(m.indices.tolist()) & set(closed) and set(must) <= set(m.indices.tolist())
        there = np.isin(tasks, [t.task for t in m.tasks])
        there[[*closed, *m.indices]] = False
        if there.any():
            assert cost[there].min() > budget - m.cost - 1e-9 * budget

    run()
    assert 3 < len(refused) < 30


def test_a_budget_for_more_than_there_is_takes_everything(pool):
    x, tasks, templates, cost, _ = pool
    m = whole(mix(x, tasks, 5, budget=10**9, cost=cost, templates=templates))
    assert len(m) == sum(t.size for t in m.tasks) and m.cost == cost[m.indices].sum()
    assert all(t.allowance == t.cost for t in m.tasks) and any(t.capped for t in m.tasks)


def test_wordings_share_tokens(pool):
    """A task's tokens are split by the tokens of its templates, as rows are by rows."""
    x, tasks, templates, cost, _ = pool
    m = whole(mix(x, tasks, 4, budget=1200, cost=cost, templates=templates))
    for t in m.tasks:
        own = [(name, int(cost[(tasks == t.task) & (templates == name)].sum())) for name in (None, "q", "a")]
        parts = smartgpu.mixture.split_templates(int(t.allowance), {name: c for name, c in own if c})
        for name, got in t.selections.items():
            first = smartgpu.select(
                x[(tasks == t.task) & (templates == name)],
                budget=parts[name],
                cost=cost[(tasks == t.task) & (templates == name)],
            )
            rows = np.flatnonzero((tasks == t.task) & (templates == name))
            assert got.indices[: first.k].tolist() == rows[first.indices].tolist()
            assert got.limits["cost"] <= got.limits["budget"]
        assert t.templates == {name: t.selections[name].k if name in t.selections else 0 for name in parts}


def test_rows_that_lower_f_are_not_bought(pool):
    """Quality below 0 without coverage: the budget is no duty to spend, in shares and in the fill."""
    x, tasks, _, cost, _ = pool
    quality = np.where(np.arange(N) % 3 == 0, 1.0, -1.0)
    m = whole(mix(x, tasks, budget=3000, cost=cost, row_objective=QualityDiversity(1.0, quality)))
    assert (quality[m.indices] > 0).all() and m.cost < 3000


def test_the_reference_makes_the_same_mixture(pool, rng):
    _, tasks, _, cost, lang = pool
    x = rng.standard_normal((N, 12)).astype(np.float32)  # no copies, which tie
    for how in (
        {"budget": 700, "cost": cost, "row_objective": QualityDiversity(0.5, cost / 60)},
        {"n_rows": 60, "quotas": Quotas(lang, minimum={"fr": 9}, maximum={"en": 30}), "include_rows": [7, 3]},
    ):
        ours, theirs = (mix(x, tasks, 5, **how, backend=backend) for backend in ("numpy", "reference"))
        assert ours.indices.tolist() == theirs.indices.tolist()


# -- quotas -----------------------------------------------------------------------------------------------------------


def counts(lang, rows):
    return {name: int((lang[rows] == name).sum()) for name in ("en", "de", "fr")}


def test_quotas_hold_over_the_mixture(pool):
    x, tasks, templates, _, lang = pool
    free = mix(x, tasks, 6, 80, templates)
    before = counts(lang, free.indices)
    same = mix(x, tasks, 6, 80, templates, quotas=Quotas(lang, minimum=before, maximum=before))
    assert same.indices.tolist() == free.indices.tolist()  # kept to already: nothing changes
    for limits in (
        {"maximum": {"en": 0.6}},
        {"minimum": {"fr": 12}},
        {"minimum": {"de": 20}, "maximum": {"en": 50}},
        {"exact": {"en": 0.6, "de": 0.3, "fr": 0.1}},
        {"minimum": 10, "maximum": 48},
    ):
        m = whole(mix(x, tasks, 6, 80, templates, quotas=Quotas(lang, **limits, name="lang")))
        assert m.budgets == free.budgets and [t.templates for t in m.tasks] == [
            t.templates for t in free.tasks
        ]
        got = counts(lang, m.indices)
        for name in got:
            least, most = 0, 80
            for side, value in limits.items():
                number = value if not isinstance(value, dict) else value.get(name)
                if number is None:
                    continue
                rows = number * 80 if isinstance(number, float) else number
                least = rows if side in ("minimum", "exact") else least
                most = rows if side in ("maximum", "exact") else most
            assert least <= got[name] <= most, (limits, got)
        moved = 0
        for t, plain in zip(m.tasks, free.tasks, strict=True):
            for name, got in t.selections.items():
                if got.limits is None:  # as without quotas
                    assert got.indices.tolist() == plain.selections[name].indices.tolist()
                    continue
                rows = np.flatnonzero((tasks == t.task) & (templates == name))
                exact = got.limits["quotas"][0]["exact"]
                alone = smartgpu.select(x[rows], got.k, quotas=Quotas(lang[rows], exact=exact))
                assert got.indices.tolist() == rows[alone.indices].tolist()
                moved += 1
        assert 0 < moved < sum(len(t.selections) for t in m.tasks)


def test_quotas_are_met_or_refused_as_all_tables_say():
    """Small tables, against all others: a table is found where there is one, and what is refused is not."""
    hypothesis = pytest.importorskip("hypothesis")
    st = hypothesis.strategies
    found = []

    @hypothesis.given(seed=st.integers(0, 2**32 - 1))
    @hypothesis.settings(max_examples=150)
    def run(seed):
        rng = np.random.default_rng(seed)
        groups = [f"g{i}" for i in range(rng.integers(2, 4))]
        cells = [rng.choice(groups, rng.integers(1, 6)).tolist() for _ in range(rng.integers(1, 4))]
        labels = [name for cell in cells for name in cell]
        ends = np.cumsum([len(cell) for cell in cells])
        rows = [np.arange(end - len(cell), end) for end, cell in zip(ends, cells, strict=True)]
        amounts = [int(rng.integers(0, len(cell) + 1)) for cell in cells]
        hypothesis.assume(sum(amounts))
        there = sorted(set(labels))
        low = {name: int(rng.integers(0, 4)) for name in there if rng.random() < 0.6}
        high = {name: int(rng.integers(low.get(name, 0), 6)) for name in there if rng.random() < 0.6}
        hypothesis.assume(low or high)
        total = sum(amounts)
        balance = Balance(Quotas(labels, minimum=low or None, maximum=high or None), len(labels), total)
        must = [some[: int(rng.integers(0, b + 1))] for some, b in zip(rows, amounts, strict=True)]
        least, most = balance.count(must), balance.count(rows)

        def tables(at=0):
            if at == len(amounts):
                yield ()
                return
            ranges = [range(a, b + 1) for a, b in zip(least[at], most[at], strict=True)]
            for row in itertools.product(*ranges):
                if sum(row) == amounts[at]:
                    yield from ((row, *rest) for rest in tables(at + 1))

        able = any(
            (np.sum(t, axis=0) >= balance.low).all() and (np.sum(t, axis=0) <= balance.high).all()
            for t in tables()
        )
        start = balance.start(amounts, least, most)
        assert start.sum(axis=1).tolist() == amounts
        try:
            table = balance.balanced(start, least, most)
        except ValueError as error:
            assert not able and "these limits contradict each other" in str(error)
        else:
            assert able and table.sum(axis=1).tolist() == amounts
            assert (table >= least).all() and (table <= most).all()
            assert (table.sum(axis=0) >= balance.low).all() and (table.sum(axis=0) <= balance.high).all()
        found.append(able)

    run()
    assert 20 < sum(found) < len(found) - 20


def test_quotas_within_a_budget():
    """Random budgets, counts and row sets: kept to, spent to the last row that may be bought, or refused."""
    hypothesis = pytest.importorskip("hypothesis")
    st = hypothesis.strategies
    seen = {"free": 0, "moved": 0, "refused": []}

    @hypothesis.given(
        seed=st.integers(0, 2**32 - 1), share=st.floats(0.03, 0.8), wordings=st.booleans(), sets=st.booleans()
    )
    @hypothesis.settings(max_examples=60)
    def run(seed, share, wordings, sets):
        rng = np.random.default_rng(seed)
        x, tasks = synthetic(rng, N, 5), rng.permutation(TASKS)
        cost = rng.integers(1, 60, N) / rng.choice([1, 7])
        lang = rng.choice(["en", "de", "fr"], N, p=[0.7, 0.2, 0.1])
        templates = rng.choice(["q", "a"], N).tolist() if wordings else None
        low = {name: int(rng.integers(0, 12)) for name in ("de", "fr") if rng.random() < 0.7}
        high = {name: int(rng.integers(12, 60)) for name in ("en", "de", "fr") if rng.random() < 0.6}
        hypothesis.assume(low or high)
        must, closed = np.split(rng.choice(N, 20, replace=False), [4]) if sets else ([], [])
        how = {"include_rows": must, "exclude": closed} if sets else {}
        how |= {"templates": templates, "budget": float(share * cost.sum()), "cost": cost}
        quotas = Quotas(lang, minimum=low or None, maximum=high or None, name="lang")
        try:
            m = whole(mix(x, tasks, 6, **how, quotas=quotas))
        except ValueError as error:
            seen["refused"].append(str(error))
            assert "contradict each other" in str(error)
            return
        got = counts(lang, m.indices)
        assert all(got[name] >= b for name, b in low.items()) and all(
            got[name] <= b for name, b in high.items()
        )
        assert m.cost == pytest.approx(cost[m.indices].sum()) and m.cost <= how["budget"]
        assert set(must) <= set(m.indices.tolist()) and not set(closed) & set(m.indices.tolist())
        there = np.isin(tasks, [t.task for t in m.tasks])
        there[[*closed, *m.indices]] = False
        there &= np.array([got[name] < high.get(name, N) for name in lang])
        assert not there.any() or cost[there].min() > how["budget"] - m.cost - 1e-9 * how["budget"]
        moved = any("quotas" in s.limits for t in m.tasks for s in t.selections.values())
        seen["moved" if moved else "free"] += 1
        if not moved and not any(got[name] == b for name, b in high.items()):
            assert m.indices.tolist() == mix(x, tasks, 6, **how).indices.tolist()

    run()
    assert seen["free"] > 3 and seen["moved"] > 20 and len(seen["refused"]) < 25, seen


def test_quotas_that_the_chosen_tasks_cannot_meet(pool):
    x, tasks, _, _, lang = pool
    lang = np.where(tasks == "t7", "fr", np.where(lang == "fr", "en", lang))
    chosen = [t.task for t in mix(x, tasks, 4, 40, drop=["t7"]).tasks]
    with pytest.raises(ValueError) as error:
        mix(x, tasks, 4, 40, include=chosen, quotas=Quotas(lang, minimum={"fr": 1, "en": 2}, name="lang"))
    assert str(error.value) == (
        "these limits contradict each other: lang minimum['fr'] = 1; "
        "the chosen tasks, of whose shares at most 0 rows are of 'fr'"
    )
    with pytest.raises(ValueError) as error:
        mix(x, tasks, 8, 200, quotas=Quotas(lang, maximum={"en": 20, "de": 100}, name="lang"))
    assert "lang maximum['en'] = 20" in str(error.value) and "k = 200" in str(error.value)
    fr = np.flatnonzero(lang == "fr")[:2]
    with pytest.raises(
        ValueError, match=f"row {fr[1]} cannot be included: quotas or the rows included before it"
    ):
        mix(x, tasks, 8, 100, quotas=Quotas(lang, maximum={"fr": 1}), include_rows=fr)


# -- rows that are there, must be, may not be -------------------------------------------------------------------------


def test_row_sets(pool):
    x, tasks, templates, _, _ = pool
    near = Near(x[:2] + 1e-3, 0.99)
    must = [*np.flatnonzero(tasks == "t6")[:2].tolist(), int(np.flatnonzero(tasks == "t0")[9])]
    how = {"given": np.arange(20, 40), "include_rows": must, "exclude": [np.arange(50, 90), near]}
    must_not = [0, 1, *range(20, 40), *range(50, 90)]
    how["given"] = np.setdiff1d(how["given"], must)
    how["exclude"][0] = np.setdiff1d(how["exclude"][0], must)
    m = whole(mix(x, tasks, 3, 60, templates, **how))
    assert set(must) <= set(m.indices.tolist()) and not set(m.indices.tolist()) & (set(must_not) - set(must))
    assert [t.task for t in m.tasks][:2] in (
        ["t0", "t6"],
        ["t6", "t0"],
    )  # chosen for their rows, in greedy order
    for t in m.tasks:
        for name, got in t.selections.items():
            rows = np.flatnonzero((tasks == t.task) & (templates == name))
            place = {row: i for i, row in enumerate(rows.tolist())}
            local = {
                key: [place[j] for j in np.asarray(some).tolist() if j in place]
                for key, some in (("given", how["given"]), ("include", must), ("exclude", how["exclude"][0]))
            }
            alone = smartgpu.select(x[rows], got.k, **{**local, "exclude": [local["exclude"], near]})
            assert got.indices.tolist() == rows[alone.indices].tolist()
            assert np.array_equal(got.gains, alone.gains)
    full = mix(x, tasks, 3, 60, templates, **how, full_order=True)
    assert full.indices.tolist() == m.indices.tolist()
    assert m.options["include_rows"] and m.options["near"][0]["above"] == 0.99 and m.options["include"] == []


def test_tasks_give_what_is_left(pool):
    """Caps count the rows that may be chosen, and a task of which none is left gives none."""
    x, tasks, _, cost, _ = pool
    closed = np.concatenate([np.flatnonzero(tasks == "t0"), np.flatnonzero(tasks == "t1")[:45]])
    m = mix(x, tasks, 8, N - len(closed), exclude=closed)
    assert m.budgets["t0"] == 0 and m.budgets["t1"] == 5 and len(m) == N - len(closed)
    with pytest.raises(ValueError, match=f"n_rows must be at most {N - len(closed)}, the rows of all tasks"):
        mix(x, tasks, 8, N - len(closed) + 1, exclude=closed)
    paid = mix(x, tasks, 8, budget=10**6, cost=cost, exclude=closed)
    assert paid.budgets == m.budgets


# -- what is refused, what is kept ------------------------------------------------------------------------------------


BUDGET = {"n_rows": None, "budget": 500, "cost": np.full(N, 10)}
LANG = Quotas(["a", "b"] * (N // 2), maximum={"a": 5})


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"budget": 5}, "budget and cost go together"),
        ({"cost": np.ones(N)}, "budget and cost go together"),
        ({**BUDGET, "n_rows": 5}, "n_rows and budget cannot be combined"),
        ({**BUDGET, "budget": 0}, "budget must be > 0 and finite"),
        ({**BUDGET, "budget": 5}, "budget must be at least 10.0, the cost of the cheapest row, got 5.0"),
        ({**BUDGET, "cost": np.zeros(N)}, "cost must be > 0 and finite, got 0.0 at row 0"),
        ({**BUDGET, "min_rows": 3}, "min_rows cannot be combined with budget: how many rows"),
        ({**BUDGET, "max_rows": {"t0": 3}}, "max_rows cannot be combined with budget: how many rows"),
        (
            {**BUDGET, "quotas": Quotas(LANG.groups, maximum=0.5)},
            r"maximum\['a'\] = 0.5 is a share of k, and no k is given",
        ),
        ({**BUDGET, "quotas": Quotas(LANG.groups, minimum=30)}, "minimum.* = 30; .*; budget = 500.0: their cheapest"),
        ({**BUDGET, "full_order": True}, "full_order cannot be combined with budget"),
        ({"polish": True, "full_order": True}, "full_order cannot be combined with polish"),
        ({**BUDGET, "exclude": np.ones(N, bool)}, "nothing is left to choose"),
        (
            {**BUDGET, "budget": 25, "include_rows": [1, 2, 3]},
            "contradict each other: include_rows, whose rows cost 30; budget = 25",
        ),
        ({"quotas": [LANG, LANG]}, "quotas of a mixture must be of one field"),
        ({"quotas": LANG, "full_order": True}, "full_order cannot be combined with quotas"),
        ({"quotas": Quotas(["a"] * N, maximum=9)}, r"groups maximum\['a'\] = 9; k = 40: these allow 9 rows"),
        ({"quotas": Quotas(["a"] * N, maximum={"c": 9})}, "maximum: group 'c' is not in the data"),
        ({"quotas": LANG, "n_rows": 120}, r"groups maximum\['a'\] = 5; k = 120: these allow 115 rows at most"),
        ({"include_rows": [3], "exclude": [3]}, "row 3 is in include_rows and in exclude"),
        ({"include_rows": [3], "drop": [TASKS[3]]}, "contradict each other: include_rows, row 3; drop 't0', its task"),
        (
            {"include_rows": np.arange(0, N, 20), "n_tasks": 2},
            r"contradict each other: include_rows, in \d tasks; n_tasks = 2",
        ),
        ({"include_rows": range(50), "max_rows": {"t0": 3}}, r"include_rows, 50 rows of 't0'; max_rows\['t0'\] = 3"),
        ({"include_rows": np.arange(50)}, "contradict each other: include_rows, which names 50 rows; n_rows = 40"),
        ({"given": [N]}, r"given must be rows in \[0, 220\)"),
        ({"exclude": Near(np.ones((1, 3)), 0.5)}, "Near.rows must have as many features as X: 12, got 3"),
    ],
)  # fmt: skip
def test_bad_limits(change, text, rng, monkeypatch):
    monkeypatch.setattr("smartgpu.parts.select_checked", lambda *a, **k: pytest.fail("rows were selected"))
    monkeypatch.setattr("smartgpu.mixture.ranking.select", lambda *a, **k: pytest.fail("tasks were selected"))
    with pytest.raises(ValueError, match=text):
        mix(synthetic(rng, N, 12), TASKS, **({"n_tasks": 6, "n_rows": 40} | change))


@pytest.mark.parametrize("kind", ["budget", "quotas"])
def test_what_is_done_is_not_done_again(pool, kind, tmp_path):
    x, tasks, templates, cost, lang = pool
    numbers = np.unique(lang, return_inverse=True)[1]  # as ints, which JSON has no keys of
    how = (
        {"budget": 900, "cost": cost}
        if kind == "budget"
        else {"n_rows": 60, "quotas": Quotas(numbers, minimum={2: 12})}
    )
    told = {}
    first = mix(x, tasks, 5, templates=templates, **how, report=lambda key, got: told.update({key: got}))
    assert (kind == "quotas") == any(len(key) == 3 and key[2] == "quotas" for key in told)
    for i, (key, got) in enumerate(told.items()):  # by way of files
        told[key] = smartgpu.Selection.load(got.save(tmp_path / f"{i}.npz"))
    for part in (told, dict(list(told.items())[::2])):
        later = []
        again = mix(
            x,
            tasks,
            5,
            templates=templates,
            **how,
            done=part,
            report=lambda key, got, keys=later: keys.append(key),
        )
        assert again.indices.tolist() == first.indices.tolist() and set(later) == set(told) - set(part)
    if kind == "budget":
        with pytest.raises(ValueError, match="must be a selection of what"):
            mix(x, tasks, 5, templates=templates, **{**how, "budget": 901}, done=told)
    back = Mixture.load(first.save(tmp_path / "m.npz"))
    assert back.to_dict() == json.loads(json.dumps(first.to_dict())) and back.cost == first.cost
    assert [(t.allowance, t.cost, t.capped) for t in back.tasks] == [
        (t.allowance, t.cost, t.capped) for t in first.tasks
    ]


def test_sweeps_are_of_the_mixtures_themselves(pool):
    x, tasks, templates, cost, lang = pool
    limits = {"budget": 900, "cost": cost}, {"n_rows": 60, "quotas": Quotas(lang, minimum={"fr": 5})}
    for how in (*limits, {"n_rows": 60, "polish": 3}):
        for row in sweep(x, tasks, [3, 6], templates=templates, **how):
            m = mix(x, tasks, row.n_tasks, templates=templates, **how)
            assert row.n_rows == len(m) and row.cost == m.cost
            p = np.array([t.budget for t in m.tasks if t.budget]) / len(m)
            assert row.largest_share == p.max()
            level = np.maximum(
                reference.similarities(x, as_similarity("cosine"))[:, m.indices].max(axis=1), 0
            )
            assert row.coverage == pytest.approx(level.mean(), abs=1e-6)
