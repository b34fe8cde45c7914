"""What is asked of each of many groups: its rows, how many of them or for how much, which may or must be there."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from smartgpu.constraints import Quotas, contradiction
from smartgpu.job import Job
from smartgpu.labels import Label, Labels, unknown
from smartgpu.near import Barred, RowSets
from smartgpu.selecting import Call, select_checked
from smartgpu.selection import Selection

SIDES = ("minimum", "maximum", "exact")


@dataclass(frozen=True)
class Part:
    """What is asked of one group.

    rows      (m,) int64 pool rows, ascending
    count     rows to choose, at most
    sets      given, included and excluded rows, by their place in the group
    money     what the chosen may cost together, and what each costs, (m,)
    quotas    over the rows of the group; share_of: the number that their shares are of, None where there is none
    barred    what was excluded for what it is close to, in rows of the pool
    size      the number of rows that the objective is told of; None is `count`
    """

    rows: np.ndarray
    count: int
    sets: RowSets
    money: float | None = None
    cost: np.ndarray | None = None
    quotas: tuple[Quotas, ...] = ()
    share_of: int | None = None
    barred: tuple[Barred, ...] = ()
    size: int | None = None

    @property
    def room(self) -> int:
        """Rows that given and excluded ones leave."""
        return len(self.rows) - len(self.sets.given) - len(self.sets.exclude)

    @property
    def open(self) -> np.ndarray:
        """The places of the rows that may be chosen, ascending."""
        return np.setdiff1d(np.arange(len(self.rows)), np.concatenate([self.sets.given, self.sets.exclude]))

    @property
    def plain(self) -> bool:
        """A count of rows, and nothing else."""
        sets = self.sets
        closed = len(sets.given) + len(sets.include) + len(sets.exclude)
        return self.money is None and not self.quotas and not closed and not self.barred

    @property
    def counted(self) -> bool:
        """Whether a longer selection begins with this one."""
        return self.money is None and not self.quotas

    @property
    def limits(self) -> dict[str, Any]:
        """As Call takes them."""
        said = {name: getattr(self, name) for name in ("money", "cost", "quotas", "share_of", "barred")}
        return {**{name: getattr(self.sets, name) for name in ("given", "include", "exclude")}, **said}

    def checked(self, job: Job) -> Part:
        """The same with the rows that the money pays for at most. ValueError where nothing can be chosen so."""
        if self.room == 0:
            raise ValueError("nothing is left to choose: given and exclude hold all its rows")
        if self.count > self.room:
            raise ValueError(
                f"k must be at most {self.room}, the rows left by given and exclude, got {self.count}"
            )
        if len(self.sets.include) > self.count:
            raise ValueError(f"include names {len(self.sets.include)} of its rows, but k is {self.count}")
        if self.plain:
            return self
        shape = np.broadcast_to(np.float32(0), (len(self.rows), 1))
        call = Call(Job(shape, job.kind, job.objective, job.options), self.count, **self.limits)
        call.check_limits()
        return dataclasses.replace(self, count=call.count)

    def select(self, make: Any, options: Any, share: int | None) -> Selection:
        """The selection, in places of the group. make: options -> the group's Job."""

        def sized(how: Any) -> Job:
            return make(how).sized(self.size or self.count)

        return select_checked(sized, self.count, options, share, **({} if self.plain else self.limits))

    def in_pool(self, got: Selection, n: int, **more: Any) -> Selection:
        """The same selection in rows of the pool of n, with more of its fields changed."""
        limits = got.limits
        if limits and "include" in limits:
            limits = {**limits, "include": self.rows[limits["include"]].tolist()}
        return dataclasses.replace(got, indices=self.rows[got.indices], n=n, limits=limits, **more)


class Cutter:
    """Cuts what is asked of a pool into groups of its rows that do not overlap."""

    def __init__(
        self,
        n: int,
        groups: Sequence[np.ndarray],
        sets: RowSets,
        cost: np.ndarray | None = None,
        barred: Sequence[tuple[Barred, ...]] = (),
    ):
        self.groups, self.cost = groups, cost
        self.barred = barred or [()] * len(groups)
        self.owner, self.place = np.full(n, -1), np.zeros(n, np.int64)
        for g, rows in enumerate(groups):
            self.owner[rows], self.place[rows] = g, np.arange(len(rows))
        parts = zip(
            self._split(sets.given), self._split(sets.include), self._split(sets.exclude), strict=True
        )
        self.sets = [RowSets(*each) for each in parts]

    def _split(self, rows: np.ndarray) -> list[np.ndarray]:
        """These rows by group, as places in it, in their order."""
        owner = self.owner[rows]
        order = np.argsort(owner, kind="stable")
        ends = np.searchsorted(owner[order], np.arange(len(self.groups) + 1))
        return [self.place[rows[order[a:b]]] for a, b in itertools.pairwise(ends)]

    def part(self, g: int, count: int | None = None, money: float | None = None, **more: Any) -> Part:
        """What is asked of group g; without a count all rows that are left."""
        rows, sets = self.groups[g], self.sets[g]
        cost = None if money is None else self.cost[rows]
        number = len(rows) - len(sets.given) - len(sets.exclude) if count is None else count
        return Part(rows, number, sets, money, cost, barred=self.barred[g], share_of=count, **more)


def check_quotas(quotas: Quotas, n: int) -> Labels:
    """The labels of quotas over a pool. ValueError where a limit names one that no row has."""
    labels = quotas.labels(n)
    for side in SIDES:
        value = getattr(quotas, side)
        for label in value if isinstance(value, Mapping) else ():
            if label not in labels.names:
                raise ValueError(unknown(label, labels.names, f"quotas of {quotas.name!r}: {side}: group"))
    return labels


def cut_quotas(quotas: Quotas, labels: Labels, rows: np.ndarray) -> Quotas:
    """The quotas of these rows: limits that name a label are kept where the rows have it.

    ValueError where a minimum or an exact number names a label that none of them has.
    """
    there = labels.take(rows)
    limits: dict[str, Any] = {}
    for side in SIDES:
        value = getattr(quotas, side)
        if isinstance(value, Mapping):
            lacking: list[Label] = [label for label in value if label not in there.names and value[label]]
            if lacking and side != "maximum":
                raise ValueError(
                    contradiction(
                        f"{quotas.name} {side}[{lacking[0]!r}] = {value[lacking[0]]}",
                        f"no rows of {lacking[0]!r}",
                    )
                )
            value = {label: number for label, number in value.items() if label in there.names}
        limits[side] = value
    return Quotas(there, name=quotas.name, **limits)
