"""What limits the budgets of a mixture, and which of these limits contradict each other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from smartgpu.constraints import contradiction
from smartgpu.labels import Label, listed, unknown


@dataclass(frozen=True)
class Limits:
    """How many rows the tasks may give, in the order of `names`.

    A number for all is cut to what a task has; one that names a task stands as it is, and may contradict another.
    sizes are the rows of each task that may be chosen, must those that must be.
    """

    names: tuple[Label, ...]
    sizes: np.ndarray
    must: np.ndarray
    low: np.ndarray  # (tasks,) int64
    high: np.ndarray
    min_rows: Any
    max_rows: Any

    @classmethod
    def of(
        cls, names: tuple[Label, ...], sizes: np.ndarray, must: np.ndarray, min_rows: Any, max_rows: Any
    ) -> Limits:
        """Raises TypeError, ValueError for limits that are no numbers of rows, or that name no task."""
        low, high = np.zeros_like(sizes), sizes.copy()
        if min_rows is not None:
            low = _per_task("min_rows", min_rows, names, low)
            if not isinstance(min_rows, Mapping):
                low = np.minimum(low, sizes)
        if max_rows is not None:
            high = np.minimum(_per_task("max_rows", max_rows, names, high), sizes)
        return cls(names, sizes, must, np.maximum(low, must), high, min_rows, max_rows)

    def check(self, total: int, count: int, fixed: np.ndarray) -> None:
        """Raises ValueError where no `count` tasks, those numbered `fixed` among them, can give `total` rows.

        Before it is known which tasks are chosen: the least and the most that any choice can give. Called again with
        all tasks fixed it is exact. The message names the smallest set of limits that cannot hold together.
        """
        tight = np.flatnonzero(self.low > self.high)
        if len(tight):
            i = int(tight[0])
            by_max = self.max_rows is not None and self.high[i] < self.sizes[i]
            ceiling = (
                self._stated("max_rows", i) if by_max else f"the {self.sizes[i]} rows of {self.names[i]!r}"
            )
            raise _refusal(self._least(i), ceiling)
        others = np.setdiff1d(np.arange(len(self.names)), fixed)
        free = count - len(fixed)
        least = np.concatenate([self.low[fixed], np.sort(self.low[others])[:free]])
        if least.sum() > total:
            raise self._too_many(total, count, fixed, int(least.sum()))
        most = int(self.high[fixed].sum() + np.sort(self.high[others])[len(others) - free :].sum())
        if most < total:
            which = f"{count} chosen tasks" if free == 0 else f"{count} largest tasks"
            which = "all tasks" if count == len(self.names) else f"the {which}"
            if self.max_rows is not None and most < self._rows(fixed, others, free):
                raise _refusal(f"max_rows, by which {which} give {most} rows at most", f"n_rows = {total}")
            raise ValueError(f"n_rows must be at most {most}, the rows of {which}, got {total}")

    def _rows(self, fixed: np.ndarray, others: np.ndarray, free: int) -> int:
        return int(self.sizes[fixed].sum() + np.sort(self.sizes[others])[len(others) - free :].sum())

    def _too_many(self, total: int, count: int, fixed: np.ndarray, least: int) -> ValueError:
        """The fewest minima that are above the total."""
        if int(self.must.sum()) > total:
            return _refusal(f"include_rows, which names {self.must.sum()} rows", f"n_rows = {total}")
        if not isinstance(self.min_rows, Mapping):
            beside = " beside those of include_rows" if self.must.any() else ""
            return _refusal(
                f"min_rows = {self.min_rows} for {count} tasks{beside}, {least} rows at least",
                f"n_rows = {total}",
            )
        order = fixed[np.argsort(-self.low[fixed], kind="stable")]
        enough = int(np.searchsorted(np.cumsum(self.low[order]), total, side="right")) + 1
        if enough <= len(order):
            return _refusal(*(self._least(int(i)) for i in order[:enough]), f"n_rows = {total}")
        return _refusal(
            f"min_rows, by which any {count} tasks give {least} rows at least", f"n_rows = {total}"
        )

    def _least(self, i: int) -> str:
        """Why a task must give as many rows as it must."""
        if self.must[i] == self.low[i] and self.must[i]:
            return f"include_rows, {self.must[i]} rows of {self.names[i]!r}"
        return self._stated("min_rows", i)

    def _stated(self, name: str, i: int) -> str:
        value = getattr(self, name)
        if isinstance(value, Mapping):
            return f"{name}[{self.names[i]!r}] = {value[self.names[i]]}"
        return f"{name} = {value}"


def _refusal(*limits: str) -> ValueError:
    return ValueError(contradiction(*limits))


def _per_task(name: str, value: Any, names: tuple[Label, ...], default: np.ndarray) -> np.ndarray:
    if not isinstance(value, Mapping):
        return np.full_like(default, _rows(name, value))
    out, place = default.copy(), {task: i for i, task in enumerate(names)}
    for task, rows in value.items():
        if task not in place:
            raise ValueError(unknown(task, names, f"{name}: task"))
        out[place[task]] = _rows(f"{name}[{task!r}]", rows)
    return out


def _rows(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name} must be a number of rows, or a mapping from tasks to such, got {value!r}")
    if value < 0:
        raise ValueError(f"{name} must be >= 0, got {value}")
    return int(value)


def named_tasks(name: str, value: Any, names: tuple[Label, ...]) -> list[int]:
    """The numbers of the tasks that an option lists, in its order. ValueError for unknown and repeated ones."""
    if value is None:
        return []
    if isinstance(value, (str, int, np.integer)):
        value = [value]
    place = {task: i for i, task in enumerate(names)}
    out = []
    for task in value:
        if task not in place:
            raise ValueError(unknown(task, names, f"{name}: task"))
        if place[task] in out:
            raise ValueError(f"{name} names task {task!r} twice")
        out.append(place[task])
    return out


def check_choice(
    include: list[int],
    drop: list[int],
    n_tasks: int | None,
    names: tuple[Label, ...],
    dropped: int = 0,
    by: str = "include, which names",
) -> int:
    """How many tasks to choose of `names`; None is all. For messages: how many are dropped besides, and what includes.

    Raises ValueError where that many cannot be chosen, or where a task is both in include and in drop.
    """
    both = [names[i] for i in include if i in set(drop)]
    if both:
        raise _refusal(f"include {listed(both)}", f"drop {listed(both)}")
    left = len(names) - len(drop)
    if left == 0:
        raise ValueError(f"nothing is left to choose: drop holds all {len(names)} tasks")
    if n_tasks is None:
        return left
    if isinstance(n_tasks, bool) or not isinstance(n_tasks, (int, np.integer)):
        raise TypeError(f"n_tasks must be a number of tasks, got {n_tasks!r}")
    if not 1 <= n_tasks <= left:
        beside = f" beside {dropped} that are dropped" if dropped else ""
        raise ValueError(f"n_tasks must lie in [1, {left}], the number of tasks{beside}, got {n_tasks}")
    if len(include) > n_tasks:
        raise _refusal(f"{by} {len(include)} tasks", f"n_tasks = {n_tasks}")
    return int(n_tasks)
