"""Quotas: how many rows each group may or must give."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from smartgpu.constraints.knapsack import Purse
from smartgpu.labels import Label, Labels, as_labels, listed, unknown

UNLIMITED = np.iinfo(np.int64).max // 4


@dataclass(frozen=True, eq=False)
class Quotas:
    """How many of the chosen rows come from each group of a field (source, language, task, label).

    groups   a label per row, all ints or all strings
    minimum, maximum, exact
             a number for every group, or a mapping from labels to numbers: an int is a count, a float in [0, 1] a share
             of k. Minimal shares are rounded up, maximal ones down; exact shares that add up to 1 are rounded so that
             the counts add up to k (largest remainder, the first group among equals)
    name     of the field, for messages

    Several quotas hold together where one field's groups lie inside another's (language inside source).
    """

    groups: Any
    minimum: Any = None
    maximum: Any = None
    exact: Any = None
    name: str = "groups"

    def __post_init__(self) -> None:
        if self.minimum is None and self.maximum is None and self.exact is None:
            raise ValueError(f"quotas of {self.name!r} need a minimum, a maximum or an exact number")

    def labels(self, n: int) -> Labels:
        if isinstance(self.groups, Labels):
            return self.groups
        return as_labels(self.groups, n, f"quotas: {self.name}")

    def describe(self) -> dict[str, Any]:
        limits = {name: getattr(self, name) for name in ("minimum", "maximum", "exact")}
        plain = {k: dict(v) if isinstance(v, Mapping) else v for k, v in limits.items() if v is not None}
        return {"field": self.name, **plain}


@dataclass
class _Level:
    """One field's quotas, as counts."""

    name: str
    names: tuple[Label, ...]
    codes: np.ndarray  # (n,)
    low: np.ndarray  # (groups,)
    high: np.ndarray
    said: dict[tuple[str, int], str]  # (low or high, group) -> the limit as it was given


class Tree:
    """Groups, and the groups inside them, of several fields that nest; the root is everything.

    A node must still get `need` rows: so many as its minimum lacks, or as the nodes inside it need together. `slack` is
    what it may take beyond the needs inside. A row may be picked if its leaf has room, and every node above has slack
    or needs this very row. What is feasible so is a matroid, so greedy reaches half of the best (Fisher, Nemhauser,
    Wolsey 1978).
    """

    def __init__(self, quotas: Sequence[Quotas], n: int, k: int | None):
        levels = sorted((_level(q, n, k) for q in quotas), key=lambda level: len(level.names))
        self.levels = levels
        if not levels:
            raise ValueError("quotas must not be empty")
        starts = np.cumsum([1] + [len(level.names) for level in levels])
        self.size = int(starts[-1])
        self.parent = np.full(self.size, -1)
        self.low, self.high = np.zeros(self.size, np.int64), np.full(self.size, UNLIMITED)
        self.depths = [np.arange(1)]
        above, outer = np.zeros(n, np.int64), None
        for level, start in zip(levels, starts, strict=False):
            nodes = start + np.arange(len(level.names))
            node = start + level.codes
            self.parent[node] = above
            split = np.flatnonzero(self.parent[node] != above)
            if len(split):
                raise ValueError(_no_nesting(level, outer, int(split[0])))
            self.low[nodes], self.high[nodes] = level.low, level.high
            self.depths.append(nodes)
            above, outer = node, level
        self.leaf = above  # (n,)
        self.leaves = self.depths[-1]
        self.paths = [self.leaves]
        while self.paths[-1][0] != 0:
            self.paths.append(self.parent[self.paths[-1]])
        order = np.argsort(self.leaf, kind="stable")
        self.rows = np.split(
            order, np.cumsum(np.bincount(self.leaf - self.leaves[0], minlength=len(self.leaves)))[:-1]
        )

    def start(self, open_: np.ndarray, k: int, reach: bool = True) -> None:
        """Begin with these rows open. Raises ValueError, naming the fewest limits, where minima cannot be met, or where
        k rows cannot be had and shall be reached.
        """
        self.count = np.zeros(self.size, np.int64)
        self.limit = self.high.copy()
        self.limit[0] = k
        have = np.zeros(self.size, np.int64)
        have[self.leaves] = np.bincount(self.leaf[open_] - self.leaves[0], minlength=len(self.leaves))
        for nodes in self.depths[:0:-1]:
            np.add.at(have, self.parent[nodes], have[nodes])
        self.have = have
        capacity, self.need = have.copy(), np.zeros(self.size, np.int64)
        for depth in range(len(self.depths) - 1, -1, -1):
            nodes = self.depths[depth]
            if depth + 1 < len(self.depths):
                inside = self.depths[depth + 1]
                capacity[nodes] = 0
                np.add.at(capacity, self.parent[inside], capacity[inside])
                np.add.at(self.need, self.parent[inside], self.need[inside])
            self._refuse(depth, nodes, capacity, k)
            self.need[nodes] = np.maximum(self.need[nodes], self.low[nodes])
            capacity[nodes] = np.minimum(capacity[nodes], self.limit[nodes])
        if capacity[0] < k and reach:
            raise ValueError(self._too_few(k, int(capacity[0])))
        inside = np.zeros(self.size, np.int64)
        np.add.at(inside, self.parent[1:], self.need[1:])
        self.slack = np.minimum(self.limit, UNLIMITED) - inside
        self.slack[self.leaves] = np.minimum(self.limit, have)[self.leaves]
        self.shut = np.zeros(len(self.leaves), bool)
        self.pending = self._shut()

    @property
    def needs(self) -> bool:
        """Whether a minimum is unmet."""
        return bool(self.need[0])

    def take(self, j: int) -> None:
        """Count row j, whose leaf was open."""
        node = int(self.leaf[j])
        lowered = bool(self.need[node] > 0)  # whether the node below needs one row less now
        self.count[node] += 1
        self.need[node] -= lowered
        self.slack[node] -= 1
        tight = self.slack[node] == 0 or (lowered and self.need[node] == 0)
        while node != 0:
            node = int(self.parent[node])
            self.count[node] += 1
            self.slack[node] -= not lowered
            inside = self.limit[node] - self.count[node] - self.slack[node]  # what the nodes inside need
            before, self.need[node] = self.need[node], max(self.low[node] - self.count[node], inside, 0)
            lowered = bool(self.need[node] < before)
            tight |= self.slack[node] == 0 or (lowered and self.need[node] == 0)
        if tight:  # otherwise nothing has closed
            self.pending = np.concatenate([self.pending, self._shut()])

    def flat(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, int] | None:
        """(group (n,), rows that each group may give yet, rows that it must give yet, picks that no group needs).

        A row may be picked if its group may give more, and needs one or there are picks that no group needs. None
        where groups lie inside each other.
        """
        if len(self.levels) > 1:
            return None
        more, need = (a[self.leaves].astype(np.int32) for a in (np.minimum(self.slack, 2**31 - 1), self.need))
        return (self.leaf - self.leaves[0]).astype(np.int32), more, need, int(self.slack[0])

    def only_needs(self) -> None:
        """From here on, take what is needed and nothing else."""
        if self.slack[0]:
            self.limit[0] -= self.slack[0]
            self.slack[0] = 0
            self.pending = np.concatenate([self.pending, self._shut()])

    def closed(self) -> list[np.ndarray]:
        """Rows of the leaves that have closed since this was last asked."""
        found, self.pending = self.pending, self.pending[:0]
        return [self.rows[i] for i in found]

    def _shut(self) -> np.ndarray:
        """Leaves that close now."""
        fits, lowered = self.slack[self.leaves] > 0, self.need[self.leaves] > 0
        for node in self.paths[1:]:
            fits &= lowered | (self.slack[node] > 0)
            within = self.limit[node] - self.count[node] - self.slack[node]
            after = np.maximum(np.maximum(self.low[node] - self.count[node] - 1, within - lowered), 0)
            lowered = after < self.need[node]
        new = np.flatnonzero(~fits & ~self.shut)
        self.shut |= ~fits
        return new

    def affordable(self, purse: Purse, open_: np.ndarray) -> np.ndarray:
        """(n,) the most that each row may cost so that the cheapest rows that are still needed can be paid."""
        cheapest = self._cheapest(purse, open_)
        dearest = np.zeros(len(self.leaves))
        for i, costs in cheapest.items():
            dearest[i] = costs.max()  # which a row of that leaf would stand for
        room = purse.left - math.fsum(c for costs in cheapest.values() for c in costs)
        return np.minimum(room + dearest, purse.left)[self.leaf - self.leaves[0]]

    def check_budget(self, purse: Purse, open_: np.ndarray) -> None:
        """Raises ValueError where the budget does not pay for the minima."""
        cheapest = self._cheapest(purse, open_)
        least = math.fsum(c for costs in cheapest.values() for c in costs)
        if least > purse.left:
            order = sorted(cheapest, key=lambda i: -float(cheapest[i].sum()))
            enough, total = [], 0.0
            for i in order:
                enough.append(self._stated("low", int(self.leaves[i])))
                total += float(cheapest[i].sum())
                if total > purse.left:
                    break
            raise ValueError(
                contradiction(*enough, f"budget = {purse.budget}: their cheapest rows cost {total}")
            )

    def _cheapest(self, purse: Purse, open_: np.ndarray) -> dict[int, np.ndarray]:
        """leaf -> costs of the cheapest open rows that it needs."""
        found = {}
        for i in np.flatnonzero(self.need[self.leaves] > 0).tolist():
            need, rows = int(self.need[self.leaves[i]]), self.rows[i][open_[self.rows[i]]]
            found[i] = np.partition(purse.cost[rows], need - 1)[:need]
        return found

    def _refuse(self, depth: int, nodes: np.ndarray, capacity: np.ndarray, k: int) -> None:
        """ValueError where the minima of these nodes, or of those inside them, cannot be met."""
        if depth == 0:
            if self.need[0] > k:
                raise ValueError(contradiction(*self._largest(self.depths[1], 0, k), f"k = {k}"))
            return
        level = self.levels[depth - 1]
        for node in nodes[self.low[nodes] > np.minimum(capacity[nodes], self.limit[nodes])]:
            i = int(node - nodes[0])
            if self.low[node] > self.limit[node]:
                raise ValueError(contradiction(level.said["low", i], level.said["high", i]))
            if capacity[node] == self.have[node]:
                raise ValueError(
                    contradiction(
                        level.said["low", i],
                        f"the {self.have[node]} rows of {level.names[i]!r} that are open",
                    )
                )
            within = [
                self._stated("high", m) for m in self._children(depth, node) if self.limit[m] < self.have[m]
            ]
            raise ValueError(contradiction(level.said["low", i], *within))
        for node in nodes[self.need[nodes] > self.limit[nodes]]:
            most = int(self.limit[node])
            raise ValueError(
                contradiction(
                    *self._largest(self.depths[depth + 1], node, most),
                    level.said["high", int(node - nodes[0])],
                )
            )

    def _children(self, depth: int, node: int) -> np.ndarray:
        inside = self.depths[depth + 1]
        return inside[self.parent[inside] == node]

    def _largest(self, nodes: np.ndarray, parent: int, most: int) -> list[str]:
        """The fewest minima inside a node that are more than it may take."""
        inside = nodes[self.parent[nodes] == parent]
        order = inside[np.argsort(-self.need[inside], kind="stable")]
        enough = int(np.searchsorted(np.cumsum(self.need[order]), most, side="right")) + 1
        return [self._stated("low", m) for m in order[:enough]]

    def _too_few(self, k: int, most: int) -> str:
        """The maxima that keep everything below k."""
        held, stack = [], [0]
        while stack:
            node = stack.pop()
            depth = next(d for d, nodes in enumerate(self.depths) if nodes[0] <= node <= nodes[-1])
            if depth and self.limit[node] < self.have[node]:
                held.append(self._stated("high", node))
            elif depth + 1 < len(self.depths):
                stack += self._children(depth, node)[::-1].tolist()
        shown = held[:8] + [f"{len(held) - 8} more such limits"] * (len(held) > 8)
        return contradiction(*shown, f"k = {k}: these allow {most} rows at most")

    def _stated(self, side: str, node: int) -> str:
        for level, nodes in zip(self.levels, self.depths[1:], strict=True):
            if nodes[0] <= node <= nodes[-1]:
                i = int(node - nodes[0])
                return level.said.get((side, i), f"{level.name}: {level.names[i]!r}")
        return "everything"


def as_quotas(value: Any) -> tuple[Quotas, ...]:
    """Quotas, a list of them, or None, as a tuple. Raises TypeError, ValueError for anything else."""
    if value is None:
        return ()
    quotas = tuple(value) if isinstance(value, (list, tuple)) else (value,)
    for each in quotas:
        if not isinstance(each, Quotas):
            raise TypeError(f"quotas must be a smartgpu.Quotas or a list of them, got {type(each).__name__}")
    if not quotas:
        raise ValueError("quotas must not be an empty list")
    return quotas


def contradiction(*limits: str) -> str:
    """The message for limits that no rows can meet together."""
    return f"these limits contradict each other: {'; '.join(limits)}"


def _no_nesting(level: _Level, outer: _Level, row: int) -> str:
    name = level.names[level.codes[row]]
    inside = np.unique(outer.codes[level.codes == level.codes[row]])
    return (
        "quotas of several fields must nest, each group of one inside a group of the other: "
        f"{name!r} of {level.name!r} has rows in {listed([outer.names[i] for i in inside], 2)} of {outer.name!r}; "
        "label rows by both fields together, or keep the quotas of one"
    )


def _level(quotas: Quotas, n: int, k: int | None) -> _Level:
    labels = quotas.labels(n)
    names, count = labels.names, len(labels.names)
    low, high = np.zeros(count, np.int64), np.full(count, UNLIMITED)
    said: dict[tuple[str, int], str] = {}
    exact = _numbers(quotas, "exact", names, k)
    if exact:
        exact = _rounded(exact, k)
    for side, option, chosen in (
        ("low", "minimum", _numbers(quotas, "minimum", names, k)),
        ("high", "maximum", _numbers(quotas, "maximum", names, k)),
        ("low", "exact", exact),
        ("high", "exact", exact),
    ):
        for i, (value, text) in chosen.items():
            whole = int(np.ceil(value - 1e-9)) if side == "low" else int(np.floor(value + 1e-9))
            array = low if side == "low" else high
            if (side == "low" and whole > array[i]) or (side == "high" and whole < array[i]):
                array[i] = whole
                said[side, i] = f"{quotas.name} {option}[{names[i]!r}] = {text}"
    return _Level(quotas.name, names, labels.codes, low, high, said)


def _numbers(quotas: Quotas, option: str, names: tuple, k: int | None) -> dict[int, tuple[float, str]]:
    """group -> (rows, as it was given); shares are of k."""
    value = getattr(quotas, option)
    if value is None:
        return {}
    what = f"quotas of {quotas.name!r}: {option}"
    place = {name: i for i, name in enumerate(names)}
    if not isinstance(value, Mapping):
        value = dict.fromkeys(names, value)
    out = {}
    for label, number in value.items():
        if label not in place:
            raise ValueError(unknown(label, names, f"{what}: group"))
        share = isinstance(number, (float, np.floating))
        if isinstance(number, bool) or not (share or isinstance(number, (int, np.integer))):
            raise TypeError(f"{what}[{label!r}] must be a count or a share, got {number!r}")
        if not number >= 0 or (share and number > 1):
            raise ValueError(f"{what}[{label!r}] must be a count >= 0 or a share in [0, 1], got {number}")
        if share and k is None:
            raise ValueError(f"{what}[{label!r}] = {number} is a share of k, and no k is given: give a count")
        out[place[label]] = (float(number) * k if share else float(number), str(number))
    return out


def _rounded(exact: dict[int, tuple[float, str]], k: int | None) -> dict[int, tuple[float, str]]:
    """Whole numbers: where they add up to k, so do the rounded ones; otherwise the nearest."""
    groups, values = list(exact), np.array([value for value, _ in exact.values()])
    if k is not None and abs(values.sum() - k) < 1e-6:
        whole = np.floor(values + 1e-9)
        order = np.argsort(-(values - whole), kind="stable")
        whole[order[: round(k - whole.sum())]] += 1
    else:
        whole = np.rint(values)
    return {i: (float(w), exact[i][1]) for i, w in zip(groups, whole, strict=True)}
