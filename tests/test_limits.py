"""select() under budgets, quotas and rows to include: against the float64 reference, and the best of all subsets."""

import itertools
import json

import numpy as np
import pytest
from oracle import OBJECTIVES, SIMILARITIES, check, synthetic, with_copies

import smartgpu
from smartgpu import FacilityLocation, GraphCut, LogDet, Modular, Quotas, reference, select
from smartgpu.objectives.facility_location_state import FacilityLocationState, Shared
from smartgpu.similarity import as_similarity

MONOTONE = ("fl", "fl-weights", "logdet")


def call(x, objective, kind, **how):
    """The checked call, whose constraint the oracle walks along."""
    from smartgpu.options import make_options
    from smartgpu.selecting import Call, Wanted

    options = {name: how.pop(name) for name in ("backend", "maximizer", "precision") if name in how}
    return Call.check(x, objective, kind, make_options(options), Wanted(**how))


def check_limited(x, objective, kind, *, copies_tie=False, **how):
    """What select() gives, held against the reference's greedy under the same limits."""
    sel = select(x, objective=objective, similarity=kind, **how)
    asked = call(x, objective, kind, **how)
    by_cost = sel.limits is None or sel.limits.get("greedy_by") != "gain"
    limits = {"given": asked.given, "closed": asked.exclude, "first": asked.include.tolist()}
    check(sel, x, kind, objective, constraint=asked.constraint(by_cost), copies_tie=copies_tie, **limits)
    return sel


def limits_of(rng, n):
    """Every limit, and all of them together on one field."""
    cost = rng.integers(1, 30, n).astype(float)
    source = rng.choice(["web", "books", "code"], n)
    quotas = Quotas(source, minimum={"code": 4}, maximum={"web": 7}, name="source")
    return {
        "budget": {"budget": 250.0, "cost": cost},
        "budget and k": {"budget": 250.0, "cost": cost, "k": 12},
        "quotas": {"quotas": quotas, "k": 20},
        "nested": {
            "quotas": [quotas, Quotas([f"{s}{i % 2}" for i, s in enumerate(source)], maximum=6)],
            "k": 20,
        },
        "all": {
            "budget": 250.0,
            "cost": cost,
            "quotas": quotas,
            "k": 25,
            "given": [5, 9],
            "include": [40, 3],
            "exclude": np.arange(50, 80),
        },
    }


@pytest.mark.parametrize("limit", ["budget", "budget and k", "quotas", "nested", "all"])
@pytest.mark.parametrize("similarity", ["cosine", "dot", "rbf"])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_picks_are_the_references(rng, name, similarity, limit):
    x, kind = with_copies(synthetic(rng, 150, 9), rng, 0.2), SIMILARITIES[similarity]
    objective, how = OBJECTIVES[name](x, rng), limits_of(rng, 150)[limit]
    sel = check_limited(x, objective, kind, **how)
    if "cost" in how:
        assert how["cost"][sel.indices].sum() <= how["budget"]
        assert sel.limits["cost"] == how["cost"][sel.indices].sum()
    for maximizer in ("naive",):
        other = select(x, objective=objective, similarity=kind, maximizer=maximizer, **how)
        np.testing.assert_array_equal(sel.indices, other.indices)


@pytest.mark.parametrize("name", ["fl", "gc", "logdet", "qdit"])
def test_alpaca_2000(alpaca, rng, name):
    x = alpaca[np.sort(rng.choice(len(alpaca), 2000, replace=False))]
    objective = OBJECTIVES[name](x, rng)
    cost = np.round(rng.lognormal(5, 1, 2000)) + 1
    group = rng.integers(0, 20, 2000)
    quotas = Quotas(group, maximum=9, minimum={0: 5, 1: 5}, name="group")
    for how in ({"budget": 6000, "cost": cost}, {"k": 100, "quotas": quotas},
                {"budget": 9000, "cost": cost, "quotas": quotas}):  # fmt: skip
        sel = check_limited(x, objective, as_similarity("cosine"), **how)
        assert "cost" not in how or cost[sel.indices].sum() <= how["budget"]
        if "quotas" in how:
            counts = np.bincount(group[sel.indices], minlength=20)
            assert counts.max() <= 9 and counts[0] >= 5 and counts[1] >= 5


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("name", MONOTONE)
def test_the_proved_factors_hold_on_tiny_pools(name, seed):
    """(1 - 1/e) / 2 of the best within a budget, 1/2 within quotas; here of the best of all subsets."""
    rng = np.random.default_rng(seed)
    x, kind = synthetic(rng, 11, 5), as_similarity("cosine_shifted")
    objective = OBJECTIVES[name](x, rng)
    problem = reference.Problem(x, kind, objective)
    cost = rng.integers(1, 15, 11).astype(float)
    group = rng.integers(0, 3, 11).tolist()
    high = dict.fromkeys(group, 2)
    every = [s for m in range(1, 12) for s in itertools.combinations(range(11), m)]
    paid = max(problem.value(s) for s in every if cost[list(s)].sum() <= 20)
    assert select(x, objective=objective, similarity=kind, budget=20, cost=cost).value >= 0.316 * paid
    k = min(4, sum(min(2, group.count(g)) for g in high))
    fair = max(
        problem.value(s)
        for s in every
        if len(s) == k and all(sum(group[i] == g for i in s) <= 2 for g in high)
    )
    sel = select(x, k, objective, kind, quotas=Quotas(group, maximum=high))
    assert sel.value >= fair / 2


def test_a_cheap_row_does_not_bar_a_good_one():
    """By gain / cost the cheap row comes first, and nothing else can be paid: greedy by gain saves the day."""
    s = np.array([[1.0, 0.0], [0.0, 100.0]])
    sel = select(s, objective="facility_location", similarity="precomputed", budget=100, cost=[0.5, 100])
    assert (
        sel.indices.tolist() == [1] and sel.limits["greedy_by"] == "gain" and sel.value == pytest.approx(100)
    )
    plain = select(np.eye(4), budget=2.5, cost=[1, 1, 1, 1])
    assert plain.limits == {"budget": 2.5, "cost": 2.0, "greedy_by": "gain / cost"} and len(plain) == 2


def test_equal_costs_are_no_limit_but_a_count(rng):
    x = synthetic(rng, 200, 8)
    plain, paid = select(x, 30), select(x, budget=30 * 0.1, cost=np.full(200, 0.1))
    assert paid.indices.tolist() == plain.indices.tolist()[: len(paid)] and len(paid) in (29, 30)


def test_budgets_larger_than_the_pool_and_smaller_than_a_row(rng):
    x = synthetic(rng, 40, 6)
    cost = rng.integers(5, 9, 40)
    assert len(select(x, budget=10_000, cost=cost)) == 40
    with pytest.raises(ValueError, match="the cost of the cheapest row, got"):
        select(x, budget=2, cost=cost)


def test_rows_below_zero_are_left_out_within_a_budget(rng):
    """A budget is no duty to spend: with k instead, exactly k rows come."""
    x, scores = synthetic(rng, 30, 5), np.r_[np.ones(5), -np.ones(25)]
    assert select(x, objective=Modular(scores), budget=20, cost=np.ones(30)).indices.tolist() == [
        0,
        1,
        2,
        3,
        4,
    ]
    assert len(select(x, 20, Modular(scores))) == 20


def test_coverage_with_minima_goes_on_with_what_is_missing(rng):
    x = synthetic(rng, 120, 6)
    group = np.r_[np.zeros(100, int), np.ones(20, int)]
    plain = select(x, coverage=0.6)
    sel = select(x, coverage=0.6, quotas=Quotas(group, minimum={1: 9}))
    assert (group[sel.indices] == 1).sum() == 9
    short = 9 - int((group[plain.indices] == 1).sum())
    assert short > 0 and len(sel) == len(plain) + short
    np.testing.assert_array_equal(sel.indices[: len(plain)], plain.indices)


def test_included_rows_come_first_and_count(rng):
    x = synthetic(rng, 60, 6)
    sel = select(x, 10, include=[7, 3])
    assert sel.indices[:2].tolist() == [7, 3] and len(sel) == 10 and sel.limits == {"include": [7, 3]}
    rest = select(x, 8, given=[7, 3])
    np.testing.assert_array_equal(sel.indices[2:], rest.indices)
    assert sel.value == pytest.approx(rest.value)


@pytest.mark.parametrize(
    "how",
    [{"budget": 100.0}, {"quotas": True, "k": 20}, {"budget": 100.0, "quotas": True}],
    ids=["budget", "quotas", "both"],
)
def test_a_killed_run_goes_on(rng, tmp_path, how):
    x, cost = synthetic(rng, 150, 7), rng.integers(1, 12, 150)
    how = dict(how, cost=cost) if "budget" in how else dict(how)
    if how.pop("quotas", False):
        how["quotas"] = Quotas(rng.integers(0, 4, 150), maximum=6)
    whole, path = select(x, **how), tmp_path / "c.npz"
    seen = []

    def stop(j, gain):
        seen.append(j)
        if len(seen) == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        select(x, **how, checkpoint=path, report=stop)
    resumed = select(x, **how, checkpoint=path)
    np.testing.assert_array_equal(whole.indices, resumed.indices)
    np.testing.assert_array_equal(whole.gains, resumed.gains)
    with pytest.raises(ValueError, match="checkpoint"):
        select(x, 5, checkpoint=path)


def test_results_are_kept_whole(rng, tmp_path):
    x = synthetic(rng, 50, 5)
    quotas = Quotas(["a", "b"] * 25, minimum={"a": 3}, maximum=0.6, name="source")
    sel = select(x, 10, quotas=quotas, include=[4])
    assert sel.limits == {
        "quotas": [{"field": "source", "minimum": {"a": 3}, "maximum": 0.6}],
        "include": [4],
    }
    json.dumps(sel.to_dict())
    again = smartgpu.Selection.load(sel.save(tmp_path / "s.npz"))
    assert again.limits == sel.limits
    with pytest.raises(ValueError, match="quotas need not meet them"):
        sel.prefix(5)


def test_the_reference_backend_keeps_limits_too(rng):
    x, cost = synthetic(rng, 60, 6), rng.integers(1, 9, 60)
    how = {"budget": 60, "cost": cost, "quotas": Quotas(rng.integers(0, 3, 60), maximum=7), "include": [2]}
    one, two = (select(x, backend=backend, **how) for backend in ("numpy", "reference"))
    np.testing.assert_array_equal(one.indices, two.indices)
    assert one.limits == two.limits


def test_the_device_keeps_limits_too(rng, device):
    x, cost = synthetic(rng, 60, 6), rng.integers(1, 9, 60)
    for objective in (FacilityLocation(), GraphCut(), LogDet()):
        how = {
            "budget": 60,
            "cost": cost,
            "quotas": Quotas(rng.integers(0, 3, 60), maximum=5),
            "include": [2],
        }
        one = select(x, objective=objective, backend="numpy", **how)
        two = select(x, objective=objective, backend="triton", precision="ieee", **how)
        np.testing.assert_array_equal(one.indices, two.indices)


@pytest.mark.parametrize(
    ("how", "error", "message"),
    [
        ({"budget": 5}, ValueError, "go together"),
        ({"cost": [1] * 6}, ValueError, "go together|k is missing"),
        ({"budget": 0, "cost": [1] * 6}, ValueError, "budget must be > 0"),
        ({"budget": "6k", "cost": [1] * 6}, TypeError, "budget must be a number"),
        ({"budget": 5, "cost": [1] * 5}, ValueError, "shape \\(6,\\)"),
        ({"budget": 5, "cost": [1, 1, 0, 1, 1, 1]}, ValueError, "got 0.0 at row 2"),
        ({"k": 2, "quotas": {"a": 1}}, TypeError, "smartgpu.Quotas"),
        ({"k": 2, "quotas": []}, ValueError, "empty"),
        ({"k": 2, "include": [1], "exclude": [1]}, ValueError, "row 1 is in include and in exclude"),
        ({"k": 2, "include": [1], "given": [1]}, ValueError, "row 1 is in given and in include"),
        ({"k": 2, "include": [0, 1, 2]}, ValueError, "include names 3 rows, but k is 2"),
        ({"budget": 3, "cost": [1, 9, 1, 1, 1, 1], "include": [1]}, ValueError, "row 1 cannot be included"),
        ({"k": 3, "quotas": Quotas([0, 0, 0, 1, 1, 1], maximum=1)}, ValueError, "these allow 2 rows at most"),
        (
            {"budget": 2, "cost": [1, 1, 1, 5, 5, 5], "quotas": Quotas([0, 0, 0, 1, 1, 1], minimum={1: 1})},
            ValueError,
            "minimum\\[1\\] = 1; budget = 2.0: their cheapest rows cost 5.0",
        ),
        (
            {
                "budget": 9,
                "cost": [1] * 6,
                "quotas": [Quotas([0, 0, 0, 1, 1, 1], maximum=2), Quotas([0, 0, 1, 2, 2, 3], maximum=1)],
            },
            ValueError,
            "quotas of several fields cannot be combined",
        ),
    ],
)
def test_bad_limits(rng, how, error, message):
    with pytest.raises(error, match=message):
        select(np.eye(6), **how)


@pytest.mark.parametrize("name", ["fl", "fl-weights", "qdit"])
def test_two_runs_share_their_work_and_nothing_else(rng, monkeypatch, name):
    """Survivors stored for both, compacted for both: the same picks as of two runs apart, for less work."""
    monkeypatch.setattr("smartgpu.objectives.facility_location.STORE_ALL", 0)
    x, cost = synthetic(rng, 600, 12), rng.integers(1, 30, 600).astype(float)
    objective = OBJECTIVES[name](x, rng)
    meetings = []
    meet = Shared.meet
    monkeypatch.setattr(Shared, "meet", lambda self: meetings.append(self.states[0].sparse) or meet(self))
    how = {"objective": objective, "budget": 900.0, "cost": cost}
    together = select(x, **how)
    assert len(meetings) > 2 and meetings[0] is None and meetings[-1] is not None
    check_limited(x, objective, as_similarity("cosine"), **{k: how[k] for k in ("budget", "cost")})
    monkeypatch.setattr(FacilityLocationState, "twin", lambda self: None)
    apart = select(x, **how)
    np.testing.assert_array_equal(together.indices, apart.indices)
    np.testing.assert_array_equal(together.gains, apart.gains)
    assert together.sweeps < apart.sweeps


@pytest.fixture
def pool(tmp_path, rng):
    """120 rows with text, source, and tokens; their embeddings beside them."""
    rows = [
        {"instruction": "word " * int(rng.integers(1, 9)), "output": "x" * int(rng.integers(0, 30)),
         "source": ("web", "code", "books")[i % 3], "tokens": int(rng.integers(3, 40))}
        for i in range(120)
    ]  # fmt: skip
    (tmp_path / "pool.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    np.save(tmp_path / "e.npy", synthetic(rng, 120, 8))
    return tmp_path, rows


def cli(folder, *arguments):
    from smartgpu.cli import main

    return main(
        [
            "select",
            str(folder / "pool.jsonl"),
            "--embeddings",
            str(folder / "e.npy"),
            "-q",
            *map(str, arguments),
        ]
    )


def test_the_command_line_gives_what_the_call_gives(pool, capsys):
    folder, rows = pool
    x, source = np.load(folder / "e.npy"), [row["source"] for row in rows]
    tokens = np.array([row["tokens"] for row in rows], float)
    (folder / "must.txt").write_text("7\n")
    limits = ("--quota-field", "source", "--quota-max", "web=4", "code=0.5", "--quota-min", "books=3")
    arguments = (
        "-k",
        15,
        "--budget",
        200,
        "--cost-field",
        "tokens",
        "--include-rows",
        folder / "must.txt",
        *limits,
    )
    assert cli(folder, *arguments, "--out", folder / "out") == 0
    assert "cost " in capsys.readouterr().out
    quotas = Quotas(source, minimum={"books": 3}, maximum={"web": 4, "code": 0.5}, name="source")
    sel = select(x, 15, budget=200, cost=tokens, quotas=quotas, include=[7])
    kept = json.loads((folder / "out" / "selection.json").read_text())
    held = smartgpu.Selection.load(folder / "out" / "selection.npz")
    np.testing.assert_array_equal(held.indices, sel.indices)
    assert kept["limits"] == sel.limits
    assert (
        cli(folder, "--budget", 60, "--cost", "chars", "--cost-text", "instruction", "--out", folder / "b")
        == 0
    )
    chars = np.array([max(1, -(-len(row["instruction"]) // 4)) for row in rows], float)
    paid = smartgpu.Selection.load(folder / "b" / "selection.npz")
    np.testing.assert_array_equal(paid.indices, select(x, budget=60, cost=chars).indices)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--budget", "9"], "--budget goes with --cost-field or --cost"),
        (["-k", "3", "--cost-field", "tokens"], "--budget goes with"),
        (["--budget", "9", "--cost-field", "tokens", "--cost", "chars"], "which is it"),
        (["--budget", "9", "--cost-field", "source"], "row 0 is 'web', expected a number"),
        (["--budget", "9", "--cost-field", "nowhere"], "the fields are instruction, output, source, tokens"),
        (["--budget", "1", "--cost-field", "tokens"], "the cost of the cheapest row"),
        (["-k", "3", "--quota-max", "1"], "--quota-max needs --quota-field"),
        (["-k", "3", "--quota-field", "source"], "needs --quota-min, --quota-max or --quota-exact"),
        (["-k", "3", "--quota-field", "source", "--quota-max", "few"], "must be a number"),
        (["-k", "3", "--quota-field", "source", "--quota-max", "wen=1"], "did you mean 'web'"),
        (["--sizes", "3", "5", "--quota-field", "source", "--quota-max", "9"], "a prefix need not meet them"),
    ],
)
def test_bad_limits_on_the_command_line(pool, capsys, arguments, message):
    folder, _ = pool
    assert cli(folder, *arguments, "--out", folder / "out") == 2
    assert message in capsys.readouterr().err
    assert not (folder / "out").exists()
