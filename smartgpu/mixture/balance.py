"""Quotas over a whole mixture: how many rows of which group each cell gives."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Sequence

import numpy as np

from smartgpu.constraints import Constraint, Purse, Quotas, Tree, contradiction
from smartgpu.mixture.rounding import fit, split
from smartgpu.near import RowSets


class Balance:
    """The groups of a field, those without a limit as one, and the rows of each that cells have and must give.

    total  rows of the mixture; None where it has a budget instead
    """

    def __init__(self, quotas: Quotas, n: int, total: int | None):
        self.quotas, self.labels, self.total = quotas, quotas.labels(n), total
        self.tree = Tree([quotas], n, total)
        (self.level,) = self.tree.levels
        room = n if total is None else total
        most = np.minimum(self.level.high, room)
        self.limited = np.flatnonzero((self.level.low > 0) | (most < np.minimum(self.labels.sizes(), room)))
        groups = len(self.limited)
        self.low = np.append(self.level.low[self.limited], 0)
        self.high = np.append(most[self.limited], room)
        code = np.full(len(self.labels.names), groups)
        code[self.limited] = np.arange(groups)
        self.code = code[self.labels.codes]  # (n,), `groups` where there is no limit

    def check(self, n: int, rows: np.ndarray, sets: RowSets, purse: Purse | None) -> None:
        """Raises ValueError where no choice of these rows keeps to the quotas, whatever the tasks are."""
        closed = np.concatenate([np.setdiff1d(np.arange(n), rows), sets.given, sets.exclude])
        count, reach = (n, False) if self.total is None else (self.total, True)
        constraint = Constraint(n, count, closed, tree=self.tree, purse=purse, reach=reach)
        for j in sets.include.tolist():
            if not constraint.open[j]:
                raise ValueError(f"row {j} cannot be included: quotas or the rows included before it bar it")
            constraint.take(j)

    def count(self, parts: Sequence[np.ndarray]) -> np.ndarray:
        """(parts, groups + 1) int64: rows of each group in each of these sets of rows."""
        width = len(self.low)
        counts = [np.bincount(self.code[rows], minlength=width) for rows in parts]
        return np.array(counts, np.int64).reshape(len(parts), width)

    def start(self, amounts: Sequence[int], least: np.ndarray, most: np.ndarray) -> np.ndarray:
        """A table of groups in proportion to the rows that each cell has."""
        out = [
            fit(split(b, have), low, have) if b else np.zeros_like(have)
            for b, low, have in zip(amounts, least, most, strict=True)
        ]
        return np.array(out, np.int64).reshape(most.shape)

    def balanced(self, table: np.ndarray, least: np.ndarray, most: np.ndarray) -> np.ndarray:
        """The table with rows moved from one group to another inside cells until all totals keep to the quotas.

        Each entry stays between its least and its most, and each cell's sum what it is. A row is moved from a group
        with too many, or to one with too few; each move is shared among the cells that allow it, in proportion to how
        many rows each could move. O(cells groups^2) a move of many rows. Raises ValueError where no table does, with
        limits of which none can be left out.
        """
        table = table.copy()
        while True:
            totals = table.sum(axis=0)
            over, under = totals > self.high, totals < self.low
            if not over.any() and not under.any():
                return table
            room = _room(table, least, most)
            if over.any():
                g = int((totals - self.high).argmax())
                path = _path(room, g, under) or _path(room, g, totals < self.high)
                if path is None:
                    raise ValueError(self._too_many(table, least, most, _reached(room, g)))
            else:
                h = int((self.low - totals).argmax())
                path = _path(room.T, h, totals > self.low)
                if path is None:
                    raise ValueError(self._too_few(table, least, most, _reached(room.T, h)))
                path = path[::-1]
            first, last = path[0], path[-1]
            more = totals[first] - (self.high if over.any() else self.low)[first]
            fewer = (self.low if under[last] else self.high)[last] - totals[last]
            edges = list(itertools.pairwise(path))
            moved = int(min(more, fewer, *(room[edge] for edge in edges)))
            for g, h in reversed(edges):  # the last first: it makes room for the one before
                _move(table, least, most, g, h, moved)

    def allotted(
        self,
        table: np.ndarray,
        least: np.ndarray,
        most: np.ndarray,
        prices: list[list[np.ndarray]],
        money: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray]:
        """(cells, groups + 1) twice: the least and the most rows of each group that each cell shall give of a budget.

        The least add up to the minima, and each cell can pay for its own; the most add up to the maxima. Both are in
        proportion to the table where that allows them, and a minimum that it is short of to what each cell can pay for.
        prices[c][g][r] is what r more rows of group g cost in cell c at the least, beyond those that it must give, and
        money (cells,) what is left for such rows. Raises ValueError where minima cannot be paid.
        """
        low, spare = least.copy(), money.copy()
        short = table.sum(axis=0) < self.low
        for g in np.argsort(short, kind="stable").tolist():  # what is met already keeps its rows
            need = int(self.low[g])
            if not need:
                continue
            able = [
                int(np.searchsorted(p[g], m, side="right")) - 1 for p, m in zip(prices, spare, strict=True)
            ]
            cap = np.minimum(least[:, g] + np.array(able), most[:, g])
            need = max(need, int(least[:, g].sum()))
            if cap.sum() < need:
                beside = " beside the other minima" if (self.low > 0).sum() > 1 else ""
                raise ValueError(
                    contradiction(
                        *self._said("low", [g]),
                        f"the chosen tasks, whose shares of the budget pay for {cap.sum()} rows of {self._which([g])} "
                        f"at most{beside}",
                    )
                )
            kept = np.clip(table[:, g], least[:, g], cap)
            if short[g]:
                low[:, g] = fit(split(need, cap), kept, cap)
            else:
                low[:, g] = fit(split(need, kept), least[:, g], kept) if kept.sum() >= need else cap
            spare -= [p[g][r] for p, r in zip(prices, low[:, g] - least[:, g], strict=True)]
        high = most.copy()
        for g in range(len(self.limited)):
            base = low[:, g] if short[g] else np.maximum(table[:, g], low[:, g])
            rest = int(self.high[g] - base.sum())
            if rest < 0:
                high[:, g] = fit(split(int(self.high[g]), base), low[:, g], base)
                continue
            room = most[:, g] - base
            high[:, g] = base + (
                fit(split(rest, room), 0 * room, room) if 0 < rest < room.sum() else room * (rest > 0)
            )
        return low, high

    def quotas_of(self, cell: np.ndarray, low: np.ndarray, high: np.ndarray) -> Quotas:
        """The quotas of a cell that shall give so many rows of each group; groups without a limit are free."""
        there = self.labels.take(cell)
        names = [
            (i, self.labels.names[g])
            for i, g in enumerate(self.limited)
            if self.labels.names[g] in there.names
        ]
        least, most = ({name: int(side[i]) for i, name in names} for side in (low, high))
        limits = {"exact": least} if least == most else {"minimum": least, "maximum": most}
        return Quotas(there, name=self.quotas.name, **limits)

    def _too_few(self, table: np.ndarray, least: np.ndarray, most: np.ndarray, groups: list[int]) -> str:
        """What keeps the totals of groups below their minima, as few groups as show it."""
        sums = table.sum(axis=1)

        def possible(some: list[int]) -> int:
            others = np.setdiff1d(np.arange(len(self.low)), some)
            return int(np.minimum(sums - least[:, others].sum(axis=1), most[:, some].sum(axis=1)).sum())

        groups = _fewest(groups, lambda some: possible(some) < self.low[some].sum())
        return contradiction(
            *self._said("low", groups),
            f"the chosen tasks, of whose shares at most {possible(groups)} rows are of {self._which(groups)}",
        )

    def _too_many(self, table: np.ndarray, least: np.ndarray, most: np.ndarray, groups: list[int]) -> str:
        """What keeps the totals of groups above their maxima."""
        sums = table.sum(axis=1)

        def forced(some: list[int]) -> int:
            others = np.setdiff1d(np.arange(len(self.low)), some)
            return int(np.maximum(least[:, some].sum(axis=1), sums - most[:, others].sum(axis=1)).sum())

        groups = _fewest(groups, lambda some: forced(some) > self.high[some].sum())
        return contradiction(
            *self._said("high", groups),
            f"the chosen tasks, of whose shares at least {forced(groups)} rows are of {self._which(groups)}",
        )

    def _said(self, side: str, groups: list[int]) -> list[str]:
        codes = [int(self.limited[g]) for g in groups if g < len(self.limited)]
        return [self.level.said[side, i] for i in codes if (side, i) in self.level.said]

    def _which(self, groups: list[int]) -> str:
        return "these" if len(groups) > 1 else repr(self.labels.names[self.limited[groups[0]]])


def _room(table: np.ndarray, least: np.ndarray, most: np.ndarray) -> np.ndarray:
    """(groups, groups) int64: rows that can move from one group to another, over all cells."""
    out = np.array(
        [np.minimum((table - least)[:, g, None], most - table).sum(axis=0) for g in range(table.shape[1])]
    )
    np.fill_diagonal(out, 0)
    return out


def _path(room: np.ndarray, start: int, ends: np.ndarray) -> list[int] | None:
    """The shortest way from `start` to one of the ends, by the widest last step among equally short ones."""
    before, queue = {start: start}, deque([start])
    while queue:
        g = queue.popleft()
        there = [int(h) for h in np.argsort(-room[g], kind="stable") if room[g, h] and int(h) not in before]
        for h in there:
            before[h] = g
            if ends[h]:
                path = [h]
                while path[-1] != start:
                    path.append(before[path[-1]])
                return path[::-1]
        queue += there
    return None


def _reached(room: np.ndarray, start: int) -> list[int]:
    """All groups that there is a way to, the start among them, ascending."""
    found, queue = {start}, [start]
    while queue:
        new = [int(h) for h in np.flatnonzero(room[queue.pop()]) if int(h) not in found]
        found.update(new)
        queue += new
    return sorted(found)


def _fewest(groups: list[int], wrong) -> list[int]:
    """Groups left out one by one for as long as the others are wrong by themselves."""
    for g in list(groups):
        rest = [other for other in groups if other != g]
        if rest and wrong(rest):
            groups = rest
    return groups


def _move(table: np.ndarray, least: np.ndarray, most: np.ndarray, g: int, h: int, count: int) -> None:
    """Move `count` rows from group g to group h: each cell its share of what all could move, by largest remainder."""
    room = np.minimum(table[:, g] - least[:, g], most[:, h] - table[:, h])
    parts, rest = np.divmod(count * room, room.sum())
    parts[np.argsort(-rest, kind="stable")[: count - int(parts.sum())]] += 1
    table[:, g] -= parts
    table[:, h] += parts
