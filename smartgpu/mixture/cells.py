"""The cells of a mixture, each the rows of one task and template: what they can give, and what they shall give."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from smartgpu.labels import Label, Labels
from smartgpu.mixture.rounding import LARGEST, share_templates

Cell = tuple[int, Label | None]  # (task number, template)


@dataclass(frozen=True)
class Units:
    """What a mixture is shared out in: rows, or whole units of cost.

    A unit of cost is 1 where costs are whole numbers, else a power of two so small that the shares of a budget are
    whole numbers of it to nine digits; larger where the budget is too large for sums of shares to be exact.
    """

    cost: np.ndarray | None = None
    unit: float = 1.0

    @classmethod
    def of(cls, cost: np.ndarray, budget: float, tasks: int) -> Units:
        unit = 2.0 ** math.ceil(math.log2(budget / (LARGEST // (2 * tasks))))
        return cls(cost, max(unit, 1.0) if (cost == np.rint(cost)).all() else unit)

    def size(self, rows: np.ndarray) -> float:
        """How large a set of rows is."""
        return float(len(rows)) if self.cost is None else math.fsum(self.cost[rows]) / self.unit

    def amount(self, rows: np.ndarray) -> int:
        """The least amount that is enough for these rows, up to more than any total."""
        return min(math.ceil(self.size(rows)), LARGEST)

    def money(self, amount: int) -> float | None:
        return None if self.cost is None else amount * self.unit


@dataclass(frozen=True)
class Share:
    """What one chosen task gives, in units; `templates` is {None: budget} where there are none."""

    number: int
    gain: float
    weight: float
    budget: int
    before: int
    templates: dict[Label | None, int]

    @property
    def cells(self) -> dict[Cell, int]:
        """The amount of each (task number, template) that gives some."""
        return {(self.number, name): b for name, b in self.templates.items() if b}


class Cells:
    """The rows of each task by template, templates in the order of their first appearance in the pool."""

    def __init__(self, tasks: Sequence[np.ndarray], templates: Labels | None):
        self.keys: list[Cell] = []
        self.rows: list[np.ndarray] = []
        for number, rows in enumerate(tasks):
            if templates is None:
                self.keys.append((number, None))
                self.rows.append(rows)
                continue
            codes = templates.codes[rows]
            for t in np.unique(codes):
                self.keys.append((number, templates.names[t]))
                self.rows.append(rows[codes == t])
        self.number = {cell: g for g, cell in enumerate(self.keys)}
        self.task = np.array([number for number, _ in self.keys])

    def of(self, task: int) -> np.ndarray:
        """The numbers of a task's cells."""
        return np.arange(*np.searchsorted(self.task, [task, task + 1]))


@dataclass(frozen=True)
class Rooms:
    """Of each cell its size, and the least and the most that it can give, in units."""

    cells: Cells
    size: np.ndarray  # (cells,) float64
    low: np.ndarray  # (cells,) int64
    high: np.ndarray

    def by_task(self, values: np.ndarray) -> np.ndarray:
        """(tasks,) sums over the cells of each."""
        starts = np.searchsorted(self.cells.task, np.arange(self.cells.task[-1] + 1))
        return np.add.reduceat(values, starts)

    def templates(self, task: int, amount: int) -> dict[Label | None, int]:
        """The amount of a task, split over its templates."""
        of = self.cells.of(task)
        names = [self.cells.keys[g][1] for g in of]
        if names == [None]:
            return {None: amount}
        parts = share_templates(amount, names, self.size[of], self.low[of], self.high[of])
        return dict(zip(names, parts.tolist(), strict=True))


def cells_of(shares: list[Share]) -> dict[Cell, int]:
    """The amount of every cell that gives some."""
    return {cell: amount for share in shares for cell, amount in share.cells.items()}
