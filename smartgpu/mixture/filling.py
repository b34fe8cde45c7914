"""What whole rows leave over of a budget, offered again."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from smartgpu.constraints import Purse
from smartgpu.parts import Part
from smartgpu.selection import Selection


class Till:
    """What is left of a budget, and of the rows that each group of a quota may give: (group of each row, most)."""

    def __init__(self, purse: Purse, groups: tuple[np.ndarray, np.ndarray] | None):
        self.purse = purse
        self.code, self.room = (None, None) if groups is None else (groups[0], groups[1].copy())

    @property
    def left(self) -> float:
        return self.purse.left

    def pay(self, j: int) -> None:
        self.purse.pay(j)
        if self.room is not None:
            self.room[self.code[j]] -= 1

    def full(self, rows: np.ndarray) -> np.ndarray:
        """Which of these rows are of a group that may give no more, as places among them."""
        return np.empty(0, np.int64) if self.room is None else np.flatnonzero(self.room[self.code[rows]] <= 0)


def fill(
    tasks: Sequence[dict[Any, Part]],
    found: dict[Any, Selection],
    till: Till,
    choose: Callable[[Part], Selection],
) -> dict[Any, Selection]:
    """Tasks in turn are offered what is left: one row a round each, the best that it pays for, until it pays for none.

    tasks   what was asked of the cells of each task, tasks in the order in which they are offered more. Of its cells
            the one comes first that is furthest below its share
    found   what was chosen in those that could pay for a row
    till    what is left
    choose  selects what is asked of a part

    Returns the selections with these rows at their end. A cell whose best row would lower f(S) takes none.
    """
    found, waiting = dict(found), [dict(cells) for cells in tasks]
    while waiting:
        again = []
        for cells in waiting:
            for cell in sorted(cells, key=lambda c: _spent(found.get(c)) - cells[c].money):
                asked = _one_more(cells[cell], found.get(cell), till)
                got = None if asked is None else choose(asked)
                if got is None or not got.k:
                    del cells[cell]  # what is left grows no more
                    continue
                till.pay(int(got.indices[0]))
                found[cell] = _joined(found.get(cell), got)
                again.append(cells)
                break
        waiting = again
    return found


def _spent(selection: Selection | None) -> float:
    return 0.0 if selection is None else selection.limits["cost"]


def _one_more(part: Part, before: Selection | None, till: Till) -> Part | None:
    """One more row for what is left; None where no row can be paid."""
    given = part.sets.given
    if before is not None:
        given = np.concatenate([given, np.searchsorted(part.rows, before.indices)])
    closed = np.union1d(part.sets.exclude, np.setdiff1d(till.full(part.rows), given))
    sets = dataclasses.replace(part.sets, given=given, include=given[:0], exclude=closed)
    asked = dataclasses.replace(
        part, sets=sets, count=1, money=till.left, size=part.size or max(part.count, 1)
    )
    there = asked.open
    return asked if len(there) and part.cost[there].min() <= till.left else None


def _joined(first: Selection | None, more: Selection) -> Selection:
    """A selection and what was added to it, for which its budget grows by the cost."""
    paid = more.limits["cost"]
    if first is None:
        return dataclasses.replace(more, limits={**more.limits, "budget": paid})
    sums: dict[str, Any] = {
        name: getattr(first, name) + getattr(more, name) for name in ("evaluations", "sweeps")
    }
    limits = {name: first.limits[name] + paid for name in ("budget", "cost")}
    seconds = {
        name: first.seconds.get(name, 0.0) + more.seconds.get(name, 0.0)
        for name in {**first.seconds, **more.seconds}
    }
    return dataclasses.replace(
        first,
        indices=np.concatenate([first.indices, more.indices]),
        gains=np.concatenate([first.gains, more.gains]),
        value=first.value + float(more.gains.sum()),
        limits={**first.limits, **limits},
        seconds=seconds,
        polished=None,  # these are of fewer rows
        bound=None,
        **sums,
    )
