"""Constraints against their definitions, by exhaustion on small trees and purses."""

import itertools
from fractions import Fraction

import numpy as np
import pytest

from smartgpu.constraints import Constraint, Purse, Quotas, Tree, as_costs


def feasible(counts, leaves, groups, k):
    """Whether rows that give these counts per leaf can be part of k rows within all quotas, by trying all counts."""
    sizes = [len(rows) for rows in leaves]
    for full in itertools.product(*(range(c, s + 1) for c, s in zip(counts, sizes, strict=True))):
        if sum(full) == k and all(
            low <= sum(full[i] for i in inside) <= high for inside, low, high in groups
        ):
            return True
    return False


@pytest.mark.parametrize("seed", range(60))
def test_a_tree_closes_exactly_what_no_k_rows_can_hold(seed):
    rng = np.random.default_rng(seed)
    n, inner = int(rng.integers(4, 11)), int(rng.integers(2, 5))
    leaf = rng.integers(0, inner, n)
    outer = rng.integers(0, 2, inner)[leaf]
    k = int(rng.integers(1, n + 1))
    fields, groups = [], []
    present = np.unique(leaf)
    leaves = [np.flatnonzero(leaf == code) for code in present]
    for name, codes in (("inner", leaf), ("outer", outer)):
        low, high = {}, {}
        for code in np.unique(codes):
            size = int((codes == code).sum())
            low[int(code)] = int(rng.integers(0, max(size // 2, 1) + 1)) if rng.random() < 0.6 else 0
            high[int(code)] = int(rng.integers(low[int(code)], size + 1)) if rng.random() < 0.6 else n
            inside = [i for i, rows in enumerate(leaves) if codes[rows[0]] == code]
            groups.append((inside, low[int(code)], high[int(code)]))
        fields.append(Quotas(codes.tolist(), minimum=low, maximum=high, name=name))
    possible = feasible([0] * len(leaves), leaves, groups, k)
    if not possible:
        with pytest.raises(ValueError, match=r"contradict"):
            Constraint(n, k, tree=Tree(fields, n, k))
        return
    for _ in range(4):
        constraint = Constraint(n, k, tree=Tree(fields, n, k))
        taken: list[int] = []
        while not constraint.done:
            for j in range(n):
                counts = [sum(t in rows for t in (*taken, j)) for rows in map(set, leaves)]
                expected = j not in taken and feasible(counts, leaves, groups, k)
                assert constraint.open[j] == expected, (taken, j)
            j = int(rng.choice(np.flatnonzero(constraint.open)))
            constraint.take(j)
            taken.append(j)
        assert len(taken) == k


def test_a_purse_is_exact(rng):
    """Tenths add up to more than their sum in floats: what is chosen still never costs more."""
    cost = rng.integers(1, 40, 200) / 10
    budget = 37.3
    constraint = Constraint(200, 200, purse=Purse(cost, budget))
    spent = Fraction(0)
    while constraint.open.any():
        exact = np.array([spent + Fraction(c) <= Fraction(budget) for c in cost])
        left = np.ones(200, bool)
        left[np.flatnonzero(~constraint.open & exact)] = False
        assert not (constraint.open & ~exact).any()
        j = int(rng.choice(np.flatnonzero(constraint.open)))
        constraint.take(j)
        spent += Fraction(float(cost[j]))
        taken = Fraction(budget) - spent
        assert Fraction(constraint.purse.left) <= taken
    assert spent <= Fraction(budget)


@pytest.mark.parametrize("seed", range(30))
def test_minima_within_a_budget_are_put_aside(seed):
    """Whatever is picked in between, every minimum can be paid in the end; nothing closes that would allow that."""
    rng = np.random.default_rng(seed)
    n = 9
    groups, cost = rng.integers(0, 3, n), rng.integers(1, 9, n).astype(float)
    low = {int(g): int(rng.integers(0, (groups == g).sum() + 1)) for g in np.unique(groups)}
    least = sum(np.sort(cost[groups == g])[:m].sum() for g, m in low.items())
    budget = float(least + rng.integers(-1, 8))
    quotas = [Quotas(groups.tolist(), minimum=low)]
    if budget < least or budget <= 0:
        if budget > 0:
            with pytest.raises(ValueError, match=r"budget"):
                Constraint(n, n, purse=Purse(cost, budget), tree=Tree(quotas, n, None))
        return
    constraint = Constraint(n, n, purse=Purse(cost, budget), tree=Tree(quotas, n, None))
    taken: list[int] = []
    while constraint.open.any():
        for j in range(n):
            chosen = [*taken, j]
            rest = sum(
                np.sort([cost[i] for i in np.flatnonzero(groups == g) if i not in chosen])[
                    : max(0, m - sum(groups[i] == g for i in chosen))
                ].sum()
                for g, m in low.items()
            )
            expected = j not in taken and cost[chosen].sum() + rest <= budget
            assert constraint.open[j] == expected, (taken, j)
        j = int(rng.choice(np.flatnonzero(constraint.open)))
        constraint.take(j)
        taken.append(j)
    assert cost[taken].sum() <= budget and not constraint.tree.needs


def test_shares_are_of_k_and_exact_ones_add_up():
    groups = ["a"] * 10 + ["b"] * 10 + ["c"] * 10
    tree = Tree([Quotas(groups, exact={"a": 1 / 3, "b": 1 / 3, "c": 1 / 3})], 30, 10)
    assert tree.levels[0].low.tolist() == tree.levels[0].high.tolist() == [4, 3, 3]
    tree = Tree([Quotas(groups, minimum={"a": 0.25}, maximum=0.45)], 30, 10)
    assert tree.levels[0].low.tolist() == [3, 0, 0] and tree.levels[0].high.tolist() == [4, 4, 4]


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ([{"minimum": {"a": 5, "b": 4, "c": 1}}], "minimum\\['a'\\] = 5; source minimum\\['b'\\] = 4; k = 8"),
        ([{"minimum": {"a": 11}}], "minimum\\['a'\\] = 11; the 10 rows of 'a'"),
        ([{"minimum": {"a": 5}, "maximum": {"a": 4}}], "minimum\\['a'\\] = 5; source maximum\\['a'\\] = 4"),
        ([{"maximum": 2}], "maximum\\['a'\\] = 2; .*'b'.*'c'.*; k = 8: these allow 6 rows at most"),
    ],
)
def test_what_contradicts_is_named(limits, message):
    groups = ["a"] * 10 + ["b"] * 10 + ["c"] * 10
    with pytest.raises(ValueError, match=message):
        Constraint(30, 8, tree=Tree([Quotas(groups, **how, name="source") for how in limits], 30, 8))


def test_bad_quotas_and_costs():
    groups = ["a", "a", "b"]
    for how, error, message in (
        ({}, ValueError, "need a minimum"),
        ({"minimum": {"z": 1}}, ValueError, "'z' is not in the data"),
        ({"minimum": {"a": True}}, TypeError, "count or a share"),
        ({"maximum": {"a": -1}}, ValueError, "got -1"),
        ({"maximum": {"a": 1.5}}, ValueError, "share in \\[0, 1\\]"),
        ({"maximum": {"a": 0.5}}, ValueError, "no k is given"),
    ):
        with pytest.raises(error, match=message):
            Tree([Quotas(groups, **how)], 3, None)
    with pytest.raises(ValueError, match=r"must nest.*'x' of 'language'"):
        Tree(
            [
                Quotas([1, 1, 2], maximum=1, name="source"),
                Quotas(["x", "y", "x"], maximum=1, name="language"),
            ],
            3,
            2,
        )
    for cost, message in (
        ([1, 0, 2], "got 0.0 at row 1"),
        ([1, np.nan, 2], "row 1"),
        ([1, None, 2], "none for 1, the first is row 1"),
        ([1, 2], "shape \\(3,\\)"),
        (["x", 1, 2], "numbers"),
    ):
        with pytest.raises(ValueError, match=message):
            as_costs(cost, 3)
