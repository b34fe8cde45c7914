"""Polishing: swaps against their definition, by brute force; limits, the bound, and what does not change a result."""

import itertools
import json

import numpy as np
import pytest
from oracle import synthetic, with_copies

import smartgpu
from smartgpu import (
    FacilityLocation,
    FacilityLocationCG,
    FacilityLocationCMI,
    FacilityLocationMI,
    FacilityLocationQueryMI,
    Modular,
    Quotas,
    polish,
    reference,
    select,
)
from smartgpu.backends import pairs
from smartgpu.cli import main
from smartgpu.constraints import Constraint, Purse, Tree
from smartgpu.constraints.exchange import Exchange
from smartgpu.job import Job
from smartgpu.objectives import Ground
from smartgpu.objectives.facility_location_state import FacilityLocationState
from smartgpu.objectives.swaps import Nearest
from smartgpu.options import make_options
from smartgpu.polish import most_of
from smartgpu.similarity import as_similarity

N, K = 60, 7
DENSE = "least"  # memory: pairs are never stored


@pytest.fixture(autouse=True)
def _few_shakes(monkeypatch):
    """Tiny pools need few, and every one costs time."""
    monkeypatch.setattr(polish, "SHAKES", 12)


OBJECTIVES = {
    "fl": lambda x, rng: FacilityLocation(),
    "fl-weights": lambda x, rng: FacilityLocation(rng.random(len(x)) * (rng.random(len(x)) > 0.2)),
    "fl-represented": lambda x, rng: FacilityLocation(rng.random(31), synthetic(rng, 31, x.shape[1])),
    "qdit": lambda x, rng: 0.7 * FacilityLocation() + 0.5 * Modular(rng.standard_normal(len(x))),
    "quality": lambda x, rng: smartgpu.QualityDiversity(0.4, rng.random(len(x)), "zscore"),
    "modular": lambda x, rng: Modular(rng.standard_normal(len(x))),
    "cg": lambda x, rng: FacilityLocationCG(synthetic(rng, 5, x.shape[1])),
    "mi": lambda x, rng: FacilityLocationMI(synthetic(rng, 5, x.shape[1]), 0.8),
    "cmi": lambda x, rng: FacilityLocationCMI(
        synthetic(rng, 4, x.shape[1]), synthetic(rng, 3, x.shape[1]), 1.1, 0.4
    ),
    "query-mi": lambda x, rng: FacilityLocationQueryMI(synthetic(rng, 9, x.shape[1]), 0.3),
}


def pool(rng, n=N, d=6):
    return with_copies(synthetic(rng, n, d), rng, 0.15)


def run(x, k, objective="facility_location", kind="cosine", **how):
    how = {"backend": "numpy", "polish": True, **how}
    if how.get("memory") == DENSE:
        told = {name: how[name] for name in ("backend", "polish", "precision") if name in how}
        options = make_options(told)
        how["memory"] = Job.check(x, objective, kind, options).sized(k).budget(k).cost.least
    return select(x, k, objective, kind, **how)


def oracle(x, kind, objective, k, outside=None):
    kind = as_similarity(kind)
    spec = smartgpu.objectives.as_objective(objective)
    return reference.Problem(x, kind, spec.sized(len(x), k), outside)


def tolerance(problem):
    return 1e-6 * max(1.0, abs(problem.value(range(problem.n))))


def best_swap(problem, chosen, given=(), allowed=lambda j, m: True):
    """The largest rise of f by one allowed swap, by recomputing f for each."""
    now, best = problem.value([*given, *chosen]), -np.inf
    for m in chosen:
        rest = [c for c in chosen if c != m]
        for j in range(problem.n):
            if j not in chosen and j not in given and allowed(j, m):
                best = max(best, problem.value([*given, *rest, j]) - now)
    return best


@pytest.mark.parametrize("memory", [None, DENSE], ids=["stored", "dense"])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_no_swap_improves_and_gains_add_up(rng, name, memory):
    x = pool(rng)
    objective = OBJECTIVES[name](x, rng)
    greedy = run(x, K, objective, polish=None)
    sel = run(x, K, objective, memory=memory)
    problem = oracle(x, "cosine", objective, K)
    tol = tolerance(problem)
    assert sel.polished["optimum"] and len(set(sel.indices.tolist())) == K
    assert sel.polished["before"] == pytest.approx(greedy.value, abs=1e-12) and sel.value >= greedy.value
    assert sel.value == sel.polished["after"] == pytest.approx(problem.value(sel.indices), abs=tol)
    assert best_swap(problem, sel.indices.tolist()) <= tol
    for t, gain in enumerate(sel.gains):  # ranked greedily among themselves
        gains = problem.gains(sel.indices[:t])
        assert gain == pytest.approx(gains[sel.indices[t]], abs=tol)
        assert gain >= gains[sel.indices[t:]].max() - tol
    assert sel.prefix(3).value == pytest.approx(problem.value(sel.indices[:3]), abs=tol)
    assert sel.prefix(3).polished is None and sel.prefix(3).bound is None
    assert sel.bound >= sel.value


@pytest.mark.parametrize(
    "similarity", ["dot", "rbf", "max_minus_sqeuclidean", "exp_euclidean", "cosine_shifted"]
)
def test_similarities(rng, similarity):
    x = pool(rng)
    sel = run(x, K, kind=similarity)
    problem = oracle(x, similarity, "facility_location", K)
    assert sel.value == pytest.approx(problem.value(sel.indices), rel=1e-5)
    assert best_swap(problem, sel.indices.tolist()) <= tolerance(problem)


@pytest.mark.parametrize("form", ["dense", "csr", "rectangle"])
def test_given_matrices(rng, form):
    s = reference.similarities(pool(rng), as_similarity("cosine"))
    s = s[:25] if form == "rectangle" else s
    matrix = s
    if form == "csr":
        s = np.where(s > 0.3, s, 0)
        matrix = pytest.importorskip("scipy.sparse").csr_matrix(s)
    sel = run(matrix, K, kind="precomputed")
    problem = oracle(s, "precomputed", "facility_location", K)
    assert sel.value == pytest.approx(problem.value(sel.indices), rel=1e-6)
    assert best_swap(problem, sel.indices.tolist()) <= tolerance(problem)


def state_of(x, objective, memory=None, backend="numpy"):
    ground = Ground(x, as_similarity("cosine"), backend, **({} if memory is None else {"spare": memory}))
    return smartgpu.objectives.as_objective(objective).bind(ground)


def dense(state, given=()):
    """Quanta of all pairs within cap and floor, (r, n) int64."""
    backend = state.backend
    cols = np.arange(state.n)
    out = np.empty((backend.r, state.n), np.int64)
    for j in cols:
        level = backend.level_from(np.zeros(backend.r, np.int64))
        backend.raise_level(level, cols[j : j + 1], state.cap)
        out[:, j] = backend.level_values(level)
    return out


@pytest.mark.parametrize("k", [1, 2, 5, 9])
@pytest.mark.parametrize("stored", [True, False], ids=["stored", "dense"])
@pytest.mark.parametrize("name", ["fl", "fl-weights", "cmi"])
def test_every_delta_after_many_swaps(rng, name, stored, k):
    """Forced swaps use up what rows know; with repairs, first, second, losses and all deltas are the definition's."""
    x = pool(rng, 50)
    state = state_of(x, OBJECTIVES[name](x, rng), None if stored else 0)
    q = dense(state)
    low = np.zeros(50, np.int32) if state.low is None else state.low.astype(np.int32)
    q = np.maximum(q, low[:, None])
    weights = np.ones(50, np.int64) if state.whole is None else state.whole
    chosen = np.sort(rng.choice(50, k, replace=False))
    near = Nearest(state, low, chosen)
    assert (near.pairs.stored is not None) == stored
    repaired = 0
    for step in range(60):
        held = q[:, chosen]
        order = np.sort(held, axis=1)[:, ::-1]
        first, second = order[:, 0], order[:, 1] if k > 1 else low
        known = (near.count > 1) | (near.unknown <= near.low)
        np.testing.assert_array_equal(near.first, first)
        np.testing.assert_array_equal(near.second[known], second[known])
        assert (near.second >= second).all()
        assert near.locked[near.slot[~known, 0]].all()
        for slot in np.flatnonzero(~near.locked):
            without = np.maximum(np.delete(held, slot, axis=1).max(axis=1, initial=0), low)
            assert near.loss[slot] == (weights * (first - without)).sum()
        free = np.flatnonzero(~near.locked)
        for j in rng.choice(np.setdiff1d(np.arange(50), chosen), 4, replace=False):
            rows, quanta, _ = near.pairs.gather(np.array([j]))
            gain, short = near.weigh(rows, quanta)
            for slot in free:
                after = np.delete(held, slot, axis=1).max(axis=1, initial=0)
                after = np.maximum(np.maximum(after, q[:, j]), low)
                assert gain + short[slot] - near.loss[slot] == (weights * (after - first)).sum()
        if not len(free) or step % 7 == 6:
            repaired += near.repair(chosen)
            assert not near.locked.any()
            continue
        slot = int(rng.choice(free))
        gone, come = near.pairs.gather(chosen[slot : slot + 1]), near.pairs.gather(np.array([j]))
        near.swap(slot, gone[:2], come[:2])
        chosen[slot] = j
    assert repaired or k < 3


@pytest.mark.parametrize("again", [0.0, 1.0], ids=["anew", "extended"])
@pytest.mark.parametrize("name", ["fl-weights", "fl-represented", "qdit", "cmi", "mi"])
def test_a_search_starts_from_what_greedy_stored(rng, name, again, monkeypatch):
    """The very pairs that a sweep at the search's own level gives, also where a removal undercuts greedy's level."""
    monkeypatch.setattr(pairs, "MOST_AGAIN", again)
    monkeypatch.setattr(FacilityLocationState, "_all_fit", lambda state: False)  # of a large pool
    build, seen = pairs.Pairs.build, []

    def checked(self, level, found=None, at=None):
        build(self, level, found, at)
        fresh = pairs.Pairs(self.backend, self.limbs, self.cap, self.room)
        build(fresh, level)
        np.testing.assert_array_equal(self.level, fresh.level)
        for each in (self, fresh):
            each.stored.compact(each.level)  # what the cap brought down to the level adds nothing
        np.testing.assert_array_equal(self.stored.ptr, fresh.stored.ptr)
        for j in range(self.backend.n):
            a, b = (held.stored.rows[held.stored.ptr[j] : held.stored.ptr[j + 1]] for held in (self, fresh))
            c, d = (held.stored.raw[held.stored.ptr[j] : held.stored.ptr[j + 1]] for held in (self, fresh))
            np.testing.assert_array_equal(a[np.argsort(a)], b[np.argsort(b)])
            np.testing.assert_array_equal(c[np.argsort(a)], d[np.argsort(b)])
        below = None if at is None else int((level < at).sum())
        seen.append(below)

    monkeypatch.setattr(pairs.Pairs, "build", checked)
    x = pool(rng, 160, 10)
    limits = {"budget": 60.0, "cost": rng.integers(1, 9, 160)} if name == "qdit" else {}
    sel = run(x, 16, OBJECTIVES[name](x, rng), **limits)
    assert sel.polished["optimum"] and len(seen) == 1 and seen[0] is not None
    if name != "qdit":
        assert seen[0] > 0, "no row fell below what greedy had stored"


def test_survivors_above_a_level(rng):
    """A copy holds what compacting in place leaves; none where it does not fit."""
    x = pool(rng, 90)
    state = state_of(x, FacilityLocation(rng.random(90)))
    backend, weights = state.backend, state.weights
    low, high = (backend.level_from(np.full(90, level)) for level in (1 << 20, 3 << 20))
    held = backend.survivors(low, weights)
    before = held.ptr.copy(), held.rows.copy(), held.raw.copy()
    copy = held.above(high, 1e9)
    for name, value in zip(("ptr", "rows", "raw"), before, strict=True):
        np.testing.assert_array_equal(getattr(held, name), value)
    assert held.above(high, copy.nbytes - 1) is None and held.above(high, copy.nbytes) is not None
    held.compact(high)
    assert 0 < len(held) < len(before[1])
    for name in ("ptr", "rows", "raw"):
        np.testing.assert_array_equal(getattr(held, name), getattr(copy, name))


def exhaustive(problem, k, given=(), allowed=lambda rows: True, rows=None):
    rows = range(problem.n) if rows is None else rows
    found = (problem.value([*given, *some]) for some in itertools.combinations(rows, k) if allowed(some))
    return max(found, default=-np.inf)


@pytest.mark.parametrize("name", ["fl", "fl-weights", "qdit", "modular", "mi", "cg"])
def test_nothing_is_above_the_bound(rng, name):
    x = synthetic(rng, 13, 4)
    objective = OBJECTIVES[name](x, rng)
    sel = run(x, 4, objective)
    problem = oracle(x, "cosine", objective, 4)
    best = exhaustive(problem, 4)
    assert sel.value - 1e-5 <= best <= sel.bound * (1 + 1e-6) + 1e-5
    assert sel.gap == 1 - sel.value / sel.bound
    cost = rng.integers(1, 9, 13).astype(float)
    paid = run(x, 5, objective, budget=12, cost=cost)
    best = max(
        exhaustive(problem, size, allowed=lambda some: cost[list(some)].sum() <= 12) for size in range(1, 6)
    )
    assert best <= paid.bound * (1 + 1e-6) + 1e-5
    groups = np.arange(13) % 3
    quotas = Quotas(groups, minimum=1, maximum=2)
    kept = run(x, 4, objective, quotas=quotas, given=[5], exclude=[2])
    best = exhaustive(
        problem,
        4,
        [5],
        lambda some: (
            np.bincount(groups[list(some)], minlength=3).max() <= 2 and len(set(groups[list(some)])) == 3
        ),
        np.setdiff1d(np.arange(13), [5, 2]),
    )
    assert kept.value - 1e-5 <= best <= kept.bound * (1 + 1e-6) + 1e-5


def test_the_bound_is_close(rng):
    """Not only above: on clustered rows a local optimum is proven to be within a few per cent."""
    sel = run(synthetic(rng, 400, 12), 20)
    assert 0 <= sel.gap < 0.03


@pytest.mark.parametrize("seed", range(12))
def test_limits_are_kept(seed):
    rng = np.random.default_rng(seed)
    x = pool(rng, 48)
    objective = OBJECTIVES[["fl", "qdit", "fl-weights"][seed % 3]](x, rng)
    groups, outer = rng.integers(0, 6, 48), None
    outer = groups // 3
    given, include = np.array([3, 11]), np.array([20])
    closed = np.array([30, 31])
    how = {"given": given, "include": include, "exclude": closed}
    quotas, cost, budget = [], None, None
    if seed % 4 != 1:
        quotas = [Quotas(groups, minimum=1, maximum=4, name="a")]
    if seed % 4 == 2:
        quotas.append(Quotas(outer, maximum={0: 6, 1: 8}, name="b"))
    if seed % 4 in (1, 3):
        cost = rng.random(48) + 0.2 if seed % 2 else rng.integers(1, 9, 48).astype(float)
        budget = float(np.sort(cost)[:20].sum())
    how |= {"quotas": quotas or None, "budget": budget, "cost": cost}
    greedy, sel = run(x, 9, objective, polish=None, **how), run(x, 9, objective, **how)
    chosen = sel.indices.tolist()
    problem = oracle(x, "cosine", objective, 9)

    def kept(rows):
        counts = np.bincount(groups[rows], minlength=6)
        ok = not quotas or (counts.min() >= 1 and counts.max() <= 4)
        if len(quotas) > 1:
            ok &= bool((np.bincount(outer[rows], minlength=2) <= [6, 8]).all())
        return ok and (cost is None or cost[rows].sum() <= budget * (1 + 1e-12))

    assert kept(chosen) and len(set(chosen)) == len(greedy.indices)
    assert 20 in chosen and sel.indices[0] == 20 and not {3, 11, 30, 31} & set(chosen)
    assert sel.value >= greedy.value - 1e-9 and sel.base_value == greedy.base_value
    assert sel.value == pytest.approx(problem.value([*given, *chosen]), abs=tolerance(problem))
    if cost is not None:
        assert sel.limits["cost"] == cost[sel.indices].sum()

    def allowed(j, m):
        return m != 20 and j not in closed and kept([*[c for c in chosen if c != m], j])

    assert sel.polished["optimum"] and best_swap(problem, chosen, given, allowed) <= tolerance(problem)


def test_exchange_by_definition(rng):
    """floor() and allowed() against a recount, before and after swaps."""
    n, k = 40, 9
    groups = rng.integers(0, 5, n)
    cost = rng.random(n)
    quotas = Quotas(groups, minimum=1, maximum=3)
    rows = np.sort(np.concatenate([rng.permutation(np.flatnonzero(groups == g))[:2] for g in range(5)])[:k])
    for with_tree, with_purse in itertools.product((True, False), repeat=2):
        tree = Tree((quotas,), n, k) if with_tree else None
        budget = float(cost[rows].sum() + 0.1)
        purse = Purse(cost, budget) if with_purse else None
        limits = Exchange(np.ones(n, bool), rows, np.arange(k) == 2, purse, tree)
        for _ in range(6):
            base = -rng.integers(0, 5, k).astype(float)
            value, slot = limits.floor(base)
            may = np.zeros((n, k), bool)
            for j, s in itertools.product(range(n), range(k)):
                some = np.append(np.delete(limits.rows, s), j)
                counts = np.bincount(groups[some], minlength=5)
                may[j, s] = s != 2 and (
                    not with_tree or (counts[groups[j]] <= 3 and counts[groups[limits.rows[s]]] >= 1)
                )
                may[j, s] &= not with_purse or cost[some].sum() <= budget
            group, table, price, room = limits.table()
            told = table[group] & (True if price is None else price[:, None] <= room)
            free = np.flatnonzero(limits.open)
            np.testing.assert_array_equal(told[free], may[free])
            col, at = np.divmod(np.arange(n * k), k)
            told = limits.allowed(col, at)
            np.testing.assert_array_equal(told.reshape(n, k)[free], may[free])
            for j in free:
                open_ = np.flatnonzero(may[j])
                assert value[j] == (base[open_].max() if len(open_) else -np.inf)
                assert slot[j] == (open_[base[open_].argmax()] if len(open_) else -1)
            j, s = (int(a) for a in rng.permutation(np.argwhere(may[free]))[0])
            saved = limits.save()
            limits.swap(int(free[j]), s)
            limits.restore(saved)
            limits.swap(int(free[j]), s)
            assert not limits.open[free[j]] and limits.rows[s] == free[j]


def test_the_most_of_values_within_quotas(rng):
    """Of fields that nest, with minima: exactly the best of all choices."""
    groups, values = np.arange(12) % 4, rng.standard_normal(12)
    quotas = (
        Quotas(groups, minimum={0: 1, 1: 1}, maximum=2, name="a"),
        Quotas(groups // 2, maximum=3, name="b"),
    )
    call = lambda: Constraint(12, 5, tree=Tree(quotas, 12, 5))  # noqa: E731
    total, rows = most_of(5, np.ones(12, bool), None, None, call)(values)

    def kept(some):
        counts = np.bincount(groups[list(some)], minlength=4)
        return counts.max() <= 2 and counts[:2].min() >= 1 and max(counts[:2].sum(), counts[2:].sum()) <= 3

    best = max(values[list(some)].sum() for some in itertools.combinations(range(12), 5) if kept(some))
    assert total == pytest.approx(best, rel=1e-9) and kept(rows) and values[rows].sum() == pytest.approx(best)


def test_the_most_of_values_is_a_bound(rng):
    values, cost = rng.standard_normal(11), rng.random(11) + 0.1
    open_ = np.arange(11) != 4
    total, rows = most_of(4, open_, None, None, None)(values)
    assert total == pytest.approx(np.sort(values[open_])[-4:].sum()) and len(rows) == 4 and 4 not in rows
    total, _ = most_of(4, open_, 1.2, cost, None)(values)
    for size in range(5):
        for some in itertools.combinations(np.flatnonzero(open_), size):
            if cost[list(some)].sum() <= 1.2:
                assert values[list(some)].sum() <= total + 1e-12


@pytest.mark.parametrize("name", ["fl", "fl-weights", "qdit"])
def test_nothing_but_the_pool_decides(rng, name):
    x = pool(rng, 500, 12)
    objective = OBJECTIVES[name](x, rng)
    one = run(x, 31, objective)
    for how in ({"threads": 1}, {"threads": 3}, {"memory": DENSE}, {"maximizer": "naive"}):
        other = run(x, 31, objective, **how)
        np.testing.assert_array_equal(one.indices, other.indices)
        np.testing.assert_array_equal(one.gains, other.gains)
        assert one.bound == other.bound and one.polished["swaps"] == other.polished["swaps"]


@pytest.mark.parametrize("name", ["fl", "fl-weights", "quality"])
def test_what_is_kept_up_to_date_is_right(rng, name, monkeypatch):
    """After many shakes and repairs the search still knows the value, the nearest chosen rows and their losses."""
    monkeypatch.setattr(polish, "SHAKES", 60)
    searches, repairs = [], []
    before, repair = polish.Search.shake, Nearest.repair
    monkeypatch.setattr(polish.Search, "shake", lambda s, *a: searches.append(s) or before(s, *a))
    monkeypatch.setattr(Nearest, "repair", lambda n, rows: repairs.append(repair(n, rows)) or repairs[-1])
    x = pool(rng, 300, 8)
    sel = run(x, 40, OBJECTIVES[name](x, rng))
    (search,) = searches
    assert (sum(repairs) > 0 or name == "quality") and sel.evaluations > 20_000
    assert search.value() == pytest.approx(sel.value, rel=1e-13)
    fresh = Nearest(search.near.state, search.near.low, search.limits.rows)
    for table in ("first", "second", "loss"):
        np.testing.assert_array_equal(getattr(fresh, table), getattr(search.near, table))


def test_outside_rows_near_and_ties(rng):
    x = pool(rng)
    outside = synthetic(rng, 4, 6)
    how = {"given": (np.array([2]), outside), "exclude": smartgpu.Near(x[40:42], 0.95)}
    sel = run(x, 6, tie_break="high", **how)
    problem = oracle(x, "cosine", "facility_location", 6, outside)
    assert sel.value == pytest.approx(problem.value([2, *sel.indices]), abs=tolerance(problem))
    barred = reference.similarities(x, as_similarity("cosine"))[:, 40:42].max(axis=1) >= 0.95
    assert not barred[sel.indices].any()
    rise = best_swap(problem, sel.indices.tolist(), [2], lambda j, m: not barred[j])
    assert rise <= tolerance(problem)


def test_a_number_of_swaps_or_seconds(rng):
    x = pool(rng, 300, 12)
    full = run(x, 25)
    assert full.polished["swaps"] > 3
    some = run(x, 25, polish=2)
    assert some.polished["swaps"] == 2 and not some.polished["optimum"]
    assert some.polished["before"] < some.value < full.value and some.bound >= some.value
    short = run(x, 25, polish=1e-9)
    assert short.polished["swaps"] == 0 and short.value == pytest.approx(short.polished["before"], rel=1e-12)
    long = run(x, 25, polish=0.3)
    assert long.polished["optimum"] and long.polished["seconds"] < 5


def test_until_swaps_gain_little(rng):
    x = pool(rng, 300, 12)
    full, some, most = (run(x, 25, polish=polish) for polish in (True, "99%", "1e-7%"))
    assert some.polished["passes"] == 1 and not some.polished["optimum"] and some.options["polish"] == "99%"
    assert some.polished["before"] < some.value <= most.value <= full.value
    assert most.polished["optimum"]  # no pass gained as little, until one found nothing


@pytest.mark.parametrize(
    "objective", [0.3 * FacilityLocation(), 1.0 * FacilityLocation() + 1e5 * Modular(np.ones(80))]
)
def test_swaps_of_equals_do_not_go_round_in_circles(rng, objective):
    """Copies of copies, whose exchange changes nothing but what floating-point sums round by."""
    x = np.repeat(synthetic(rng, 10, 5), 8, axis=0) + np.repeat(
        1e-7 * rng.standard_normal((40, 5)), 2, axis=0
    )
    sel = run(x, 9, objective, polish=100_000)
    assert sel.polished["optimum"] and sel.polished["swaps"] < 50


def test_all_rows_leave_nothing_to_swap(rng):
    x = pool(rng, 20)
    for sel in (run(x, 20), smartgpu.rank(x, backend="numpy", polish=True)):
        assert (
            sel.polished["swaps"] == 0 and sel.polished["optimum"] and sorted(sel.indices) == list(range(20))
        )
        assert sel.bound == pytest.approx(sel.value)


def test_results_are_kept_and_told(rng, tmp_path):
    x = pool(rng)
    sel = run(x, K, maximizer="stochastic")
    assert not sel.exact and sel.prefix(2).k == 2 and "of the best possible" in str(sel)
    assert sel.value >= sel.polished["before"]
    back = smartgpu.Selection.load(sel.save(tmp_path / "s.npz"))
    assert back.polished == sel.polished and back.bound == sel.bound and back.options["polish"] is True
    assert json.loads(json.dumps(sel.to_dict()))["bound"] == sel.bound
    plain = run(x, K, polish=False)
    assert plain.polished is None and plain.bound is None and plain.gap is None


def test_a_checkpoint_is_of_greedy(rng, tmp_path):
    x = pool(rng)
    one = run(x, K)
    picks = run(x, K, polish=None, checkpoint=tmp_path / "c.npz")
    again = run(x, K, checkpoint=tmp_path / "c.npz")
    np.testing.assert_array_equal(one.indices, again.indices)
    assert again.polished["before"] == picks.value


def test_groups_are_polished_each(rng):
    x = pool(rng, 120, 8)
    groups = np.arange(120) % 3
    found = smartgpu.select_many(x, groups, 6, backend="numpy", polish=True)
    for g, sel in found.items():
        alone = run(x[groups == g], 6)
        np.testing.assert_array_equal(sel.indices, np.flatnonzero(groups == g)[alone.indices])
        assert sel.polished["swaps"] == alone.polished["swaps"] and sel.bound == alone.bound


@pytest.mark.parametrize(
    ("how", "error", "told"),
    [
        ({"polish": 0}, ValueError, "polish must be more than 0"),
        ({"polish": -1.5}, ValueError, "polish must be more than 0"),
        ({"polish": float("inf")}, ValueError, "polish must be more than 0 seconds or swaps, and finite"),
        ({"polish": [1]}, TypeError, "polish must be True, a number of seconds"),
        (
            {"polish": "fast"},
            ValueError,
            "polish must be a share between 0% and 100%, such as '0.01%', got 'fast'",
        ),
        ({"polish": "0%"}, ValueError, "polish must be a share between 0% and 100%"),
        ({"polish": "1.2.3%"}, ValueError, "polish must be a share between 0% and 100%"),
        ({"objective": "graph_cut"}, ValueError, "swaps for graph_cut are not there yet"),
        ({"objective": "log_det"}, ValueError, "swaps for log_det are not there yet"),
        ({"objective": FacilityLocation() + FacilityLocation()}, ValueError, "follows one facility location"),
        ({"coverage": 0.5, "k": None}, ValueError, "polish keeps the number of rows"),
        ({"backend": "reference"}, ValueError, "not for backend 'reference'"),
    ],
)
def test_bad_input(rng, how, error, told):
    with pytest.raises(error, match=told):
        run(pool(rng), **{"k": 5, **how})


def test_the_command_line_and_the_report(rng, tmp_path):
    pytest.importorskip("jinja2")
    pytest.importorskip("plotly")
    np.save(tmp_path / "e.npy", synthetic(rng, 60, 6))
    rows = [{"text": f"row {i}", "task": f"t{i % 3}"} for i in range(60)]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    how = ["--embeddings", str(tmp_path / "e.npy"), "--backend", "numpy", "--quiet"]
    args = ["select", str(tmp_path / "p.jsonl"), "-k", "7", *how]
    for polished, name in (
        (["--polish", "--report"], "a"),
        (["--polish", "1"], "b"),
        (["--polish", "0.5"], "c"),
        (["--polish", "50%"], "e"),
        ([], "d"),
    ):
        assert main([*args, "--out", str(tmp_path / name), *polished]) == 0
    found = {name: smartgpu.Selection.load(tmp_path / name / "selection.npz") for name in "abcde"}
    same = run(np.load(tmp_path / "e.npy"), 7)
    np.testing.assert_array_equal(found["a"].indices, same.indices)
    assert (
        found["b"].options["polish"] == 1
        and found["c"].options["polish"] == 0.5
        and found["e"].options["polish"] == "50%"
        and found["d"].polished is None
    )
    assert json.loads((tmp_path / "a" / "selection.json").read_text())["polished"]["optimum"]
    assert "That is proved to be within" in (tmp_path / "a" / "report.html").read_text()


@pytest.mark.parametrize(
    ("args", "told"),
    [
        ("select -k 3 --polish 0", "polish must be more than 0"),
        ("select -k 3 --polish 0%", "polish must be a share between 0% and 100%"),
        ("select -k 3 --polish fast", "expected a number for --polish, or none, got 'fast'"),
        ("select --sizes 3 5 --polish", "--sizes cannot be combined with --polish"),
        ("select -k 3 --objective graph_cut --polish", "swaps for graph_cut are not there yet"),
        ("mix --n-rows 3 --row-objective log_det --polish", "swaps for log_det are not there yet"),
    ],
)
def test_bad_flags(tmp_path, capsys, args, told):
    command, *rest = args.split()
    (tmp_path / "p.jsonl").write_text('{"text": "a", "task": "b"}\n' * 9)
    try:
        status = main(
            [command, str(tmp_path / "p.jsonl"), *rest, "--out", str(tmp_path / "o"), "--backend", "numpy"]
        )
    except SystemExit as stop:
        status = stop.code
    assert status == 2 and told in capsys.readouterr().err


def test_a_mixture_is_polished_task_by_task(rng):
    x, tasks = pool(rng, 90, 6), [f"t{i % 3}" for i in range(90)]
    how = {"backend": "numpy", "order": "rank", "row_objective": "facility_location"}
    plain, better = (
        smartgpu.mix(x, tasks, n_rows=21, **how),
        smartgpu.mix(x, tasks, n_rows=21, polish=True, **how),
    )
    before, after = ({t.task: t for t in each.tasks} for each in (plain, better))
    rose = 0
    for name, task in after.items():
        rows = np.flatnonzero(np.array(tasks) == name)
        alone = run(x[rows], task.budget)
        assert task.budget == before[name].budget
        np.testing.assert_array_equal(task.indices, rows[alone.indices])
        rose += alone.value > alone.polished["before"]
    assert rose


class TestOnADevice:
    """Backend "triton": in the interpreter on tiny pools, or on a GPU."""

    pytestmark = pytest.mark.usefixtures("device")

    @pytest.fixture(autouse=True)
    def _needs(self, device, monkeypatch):
        pytest.importorskip("torch")
        monkeypatch.setattr(polish, "SHAKES", 3)

    @pytest.mark.parametrize(("form", "limited"), [("dense", False), ("csr", True)])
    def test_the_same_integers_give_the_same_result(self, rng, form, limited):
        """Of a given matrix both backends hold the very same quanta: bits are equal, whatever is stored."""
        s = np.rint(reference.similarities(pool(rng, 40), as_similarity("cosine")) * 2**12) / 2**12
        if form == "csr":
            s = pytest.importorskip("scipy.sparse").csr_matrix(np.where(s > 0.2, s, 0))
        objective = 0.5 * FacilityLocation(rng.random(40)) + 0.25 * Modular(rng.random(40))
        limits = {"quotas": Quotas(np.arange(40) % 3, maximum=3), "cost": rng.random(40) + 0.1, "budget": 3.0}
        how = (limits if limited else {}) | {"objective": objective, "kind": "precomputed"}
        one = run(s, 6, **how)
        for memory in (None, DENSE):
            other = run(s, 6, backend="triton", memory=memory, **how)
            np.testing.assert_array_equal(one.indices, other.indices)
            np.testing.assert_array_equal(one.gains, other.gains)
            assert other.bound == one.bound and other.polished["swaps"] == one.polished["swaps"]

    @pytest.mark.parametrize("stream", [False, True], ids=["resident", "streamed"])
    @pytest.mark.parametrize("name", ["fl", "fl-represented", "cmi"])
    def test_no_swap_improves(self, rng, name, stream, monkeypatch):
        if stream:
            monkeypatch.setattr(Job, "_fitting", lambda job, k, some, most: job._cost(k, some, stream=True))
        x = pool(rng, 30)
        objective = OBJECTIVES[name](x, rng)
        for memory in (None, DENSE):
            sel = run(x, 5, objective, backend="triton", precision="ieee", memory=memory)
            problem = oracle(x, "cosine", objective, 5)
            assert sel.value == pytest.approx(problem.value(sel.indices), abs=tolerance(problem))
            assert sel.polished["optimum"] and best_swap(problem, sel.indices.tolist()) <= tolerance(problem)

    @pytest.mark.parametrize("weighted", [False, True])
    def test_kernel(self, rng, device, weighted):
        """Sums of a pass, against their definition; columns beyond a block, empty ones, and rows nobody owns."""
        torch = pytest.importorskip("torch")
        from smartgpu.kernels import swaps

        m, r, k = 19, 150, 7
        there = rng.random((m, r)) < rng.random(m)[:, None] * (np.arange(m) != 4)[:, None]
        q = rng.integers(0, 2**22 + 1, (m, r))
        second = rng.integers(0, 2**22, r)
        first = np.minimum(second + rng.integers(0, 2**20, r), 2**22)
        owner = rng.integers(-1, k, r)
        w = rng.integers(0, 2**30, r) if weighted else np.ones(r, np.int64)
        over, short = (
            np.maximum(q - first, 0) * there * w,
            np.maximum(np.minimum(q, first) - second, 0) * there * w,
        )
        table = np.stack([short[:, owner == slot].sum(axis=1) for slot in range(k)], axis=1)
        col, row = np.nonzero(there)
        put = lambda a, dtype=torch.int32: torch.from_numpy(np.ascontiguousarray(a)).to(device, dtype)  # noqa: E731
        ptr = put(np.concatenate([[0], np.cumsum(there.sum(axis=1))]), torch.int64)
        held = (ptr, put(row), put(q[col, row]), put(first), put(second), put(owner))
        weights = put(w, torch.int64) if weighted else None
        gain, got = swaps.swap_gains(*held, k, weights=weights)
        np.testing.assert_array_equal(gain.cpu().numpy(), over.sum(axis=1))
        np.testing.assert_array_equal(got.cpu().numpy(), table)
        gain, got = swaps.swap_gains(ptr[3:9], *held[1:], k, weights=weights)  # some of the columns
        np.testing.assert_array_equal(got.cpu().numpy(), table[3:8])
        for wrong, told in (
            (lambda: swaps.swap_gains(ptr.to(torch.int32), *held[1:], k), "ptr must have dtype torch.int64"),
            (lambda: swaps.swap_gains(*held[:5], held[5][1:].clone(), k), "owner must have shape"),
            (lambda: swaps.swap_gains(*held, 0), "k must be at least 1, got 0"),
            (lambda: swaps.swap_gains(ptr[:0], *held[1:], k), "ptr must have m . 1 entries"),
        ):
            with pytest.raises(ValueError, match=told):
                wrong()
