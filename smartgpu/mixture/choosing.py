"""Stage 2: the rows of each cell, within quotas over all of them, and a budget spent to its last row."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np

from smartgpu.constraints import Purse
from smartgpu.groups import select_groups
from smartgpu.job import Job
from smartgpu.labels import Label
from smartgpu.many import check_done
from smartgpu.mixture.balance import Balance
from smartgpu.mixture.cells import Cell, Cells, Share, Units, cells_of
from smartgpu.mixture.filling import Till, fill
from smartgpu.parts import Cutter, Part
from smartgpu.selection import Selection


@dataclass
class Chooser:
    """Chooses the rows of cells.

    names       of the tasks, by number        cut         what is asked of the rows of each cell
    units       what amounts are counted in    money       the budget, None where rows are counted
    full_order  order all rows of a cell       balance     the quotas over all cells
    timed       a stage's name -> a context that takes its seconds
    """

    job: Job
    X: Any
    names: tuple[Label, ...]
    cells: Cells
    cut: Cutter
    units: Units
    money: float | None
    full_order: bool
    timed: Callable[[str], AbstractContextManager]
    balance: Balance | None = None

    def part(self, cell: Cell, amount: int) -> Part:
        """What is asked of a cell, before quotas."""
        g = self.cells.number[cell]
        if self.full_order:
            return self.cut.part(g)
        return self.cut.part(g, None if self.money else amount, self.units.money(amount))

    def check(self, shares: list[Share]) -> None:
        """Raises ValueError, before rows are selected, where these shares buy nothing, or cannot keep to the quotas."""
        amounts = cells_of(shares)
        if self.money is not None:
            parts = [self.part(cell, amount) for cell, amount in amounts.items()]
            least = min((part.cost[part.open].min(initial=np.inf) for part in parts), default=np.inf)
            if least > self.money:
                what = (
                    f"at least {least}, the cost of their cheapest row"
                    if least < np.inf
                    else "of other tasks"
                )
                raise ValueError(f"budget must be {what}, for the chosen tasks to give any, got {self.money}")
        if self.balance is None:
            return
        least, most = self._groups(amounts)
        if self.money is None:
            self.balance.balanced(self.balance.start(list(amounts.values()), least, most), least, most)
        else:
            self.balance.allotted(least, least, most, *self._prices(amounts))

    def choose_all(
        self, shares: list[Share], done: Mapping, report: Callable | None
    ) -> dict[Cell, Selection]:
        """The rows of a mixture, by cell."""
        amounts = cells_of(shares)
        found = self.choose(amounts, done, report)
        if self.balance is not None:
            found |= self._balance(amounts, found, done, report)
        return found if self.money is None else self._fill(shares, found)

    def choose(
        self, amounts: Mapping[Cell, int], done: Mapping, report: Callable | None
    ) -> dict[Cell, Selection]:
        """The selection of each cell: as many rows as it gives, or all of them in order, or what its money pays for.

        A cell whose money does not pay for a row has none.
        """
        parts = {}
        for cell, amount in amounts.items():
            part = self.part(cell, amount)
            if part.money is None or part.cost[part.open].min(initial=np.inf) <= part.money:
                parts[cell] = part.checked(self.job)
        return self._select(parts, done, report)

    def _select(
        self, parts: Mapping[Cell, Part], done: Mapping, report: Callable | None, *why: str
    ) -> dict[Cell, Selection]:
        """Select what is asked, but for what is done. why: is added to the keys of these and of reports."""
        todo, found = {}, {}
        for cell, part in parts.items():
            key = (self.names[cell[0]], cell[1], *why)
            if key in done:
                found[cell] = check_done(done[key], key, part, self.job)
            else:
                todo[cell] = part

        def finish(cell: Cell, selection: Selection) -> None:
            found[cell] = selection
            if report is not None:
                report((self.names[cell[0]], cell[1], *why), selection)

        with self.timed("rows"):
            select_groups(self.job, self.X, todo, finish)
        return found

    def _groups(self, cells: Mapping[Cell, int]) -> tuple[np.ndarray, np.ndarray]:
        """(cells, groups of the quotas) the rows that each cell must and can give of each."""
        parts = [self.cut.part(self.cells.number[cell]) for cell in cells]
        least = self.balance.count([part.rows[part.sets.include] for part in parts])
        return least, self.balance.count([part.rows[part.open] for part in parts])

    def _balance(
        self,
        amounts: Mapping[Cell, int],
        found: Mapping[Cell, Selection],
        done: Mapping,
        report: Callable | None,
    ) -> dict[Cell, Selection]:
        """The cells that must give other numbers of a group for the mixture to keep to the quotas, selected again."""
        balance, sides = self.balance, self._groups(amounts)
        nothing = np.empty(0, np.int64)
        table = balance.count([found[cell].indices if cell in found else nothing for cell in amounts])
        totals = table.sum(axis=0)
        if (totals >= balance.low).all() and (totals <= balance.high).all():
            return {}
        if self.money is None:
            low = high = balance.balanced(table, *sides)
        else:
            prices = self._prices(amounts)
            try:
                low, high = balance.allotted(table, *sides, *prices)
            except ValueError:  # with the rows that were chosen: as it was found to be possible without
                low, high = balance.allotted(sides[0], *sides, *prices)
        parts = {}
        for cell, now, least, most in zip(amounts, table, low, high, strict=True):
            if (now < least).any() or (now > most).any():
                part = self.part(cell, amounts[cell])
                quotas = balance.quotas_of(part.rows, least, most)
                parts[cell] = dataclasses.replace(part, quotas=(quotas,)).checked(self.job)
        return self._select(parts, done, report, "quotas")

    def _prices(self, cells: Mapping[Cell, int]) -> tuple[list[list[np.ndarray]], np.ndarray]:
        """What the cheapest rows of each group cost in each cell beside those that it must give; its money for them."""
        prices, money = [], []
        for cell, amount in cells.items():
            part = self.part(cell, amount)
            must = math.fsum(part.cost[part.sets.include])
            free = np.setdiff1d(part.open, part.sets.include)
            code = self.balance.code[part.rows[free]]
            each = [np.sort(part.cost[free[code == g]]) for g in range(len(self.balance.low))]
            prices.append([np.concatenate([[0.0], np.cumsum(costs)]) for costs in each])
            money.append(part.money * (1 - 1e-12) - must)  # sums are rounded
        return prices, np.maximum(money, 0.0)

    def _fill(self, shares: list[Share], found: dict[Cell, Selection]) -> dict[Cell, Selection]:
        """With what whole rows left over of the budget spent."""
        tasks = []
        for share in shares:
            parts = {
                (share.number, name): self.part((share.number, name), b)
                for name, b in share.templates.items()
            }
            tasks.append({c: part.checked(self.job) if c in found else part for c, part in parts.items()})
        till = Till(Purse(self.cut.cost, self.money), self.balance and (self.balance.code, self.balance.high))
        for selection in found.values():
            for j in selection.indices.tolist():
                till.pay(j)
        plain = dataclasses.replace(self.job.options, progress=False, polish=None)
        quiet = dataclasses.replace(
            self.job, options=plain, ranks=None
        )  # cells in turn: each process fills all

        def choose(part: Part) -> Selection:
            got: list[Selection] = []
            select_groups(quiet, self.X, {0: part}, lambda _, selection: got.append(selection))
            return got[0]

        with self.timed("fill"):
            return fill(tasks, found, till, choose)
