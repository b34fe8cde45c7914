"""Rows that are not in the pool: those that count as chosen already, and those that no chosen row may be close to."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from smartgpu import reference
from smartgpu.arrays import as_rows, on_host
from smartgpu.backends import resolve
from smartgpu.checkpoint import fingerprint
from smartgpu.job import Job
from smartgpu.objectives import outside

SLACK = 2.0**-20  # similarities are rounded; a row that is as close as `above` but for that is barred
TOLD = 20  # barred rows that a selection names


@dataclass(frozen=True, eq=False)
class Near:
    """Bars pool rows with a similarity of `above` or more to any of `rows`: select(X, k, exclude=Near(rows, 0.9)).

    rows   (m, d), embedded as the pool is: a benchmark that training data must not hold, for example
    above  a similarity, of the kind that is selected with. Rows within 1e-6 of it are barred as well

    O(n m d) once. Selection.limits["near"] says how many rows were barred, and which of `rows` the closest of them
    resemble. Raises TypeError, ValueError for other rows, and for a number that is not finite.
    """

    rows: Any
    above: float

    def __post_init__(self) -> None:
        if isinstance(self.above, bool) or not isinstance(self.above, (int, float, np.integer, np.floating)):
            raise TypeError(f"above must be a similarity, a number, got {type(self.above).__name__}")
        if not np.isfinite(self.above):
            raise ValueError(f"above must be a finite similarity, got {self.above}")
        object.__setattr__(self, "above", float(self.above))
        object.__setattr__(self, "rows", outside.as_outside("Near.rows", self.rows))


@dataclass(frozen=True)
class Barred:
    """What a Near bars: rows (b,) ascending, by (b,) the row of Near that each is closest to, and how close."""

    near: Near
    rows: np.ndarray
    by: np.ndarray
    similarity: np.ndarray

    def describe(self) -> dict[str, Any]:
        """As JSON values; the closest rows first."""
        closest = np.argsort(-self.similarity, kind="stable")[:TOLD]
        told = [
            {"row": int(self.rows[t]), "to": int(self.by[t]), "similarity": float(self.similarity[t])}
            for t in closest
        ]
        of = {"rows": len(self.near.rows), "sha256": fingerprint(self.near.rows)}
        return {"above": self.near.above, **of, "barred": len(self.rows), "closest": told}


@dataclass(frozen=True)
class RowSets:
    """Rows of a pool that count as chosen, that must be chosen (in this order), and that may not be."""

    given: np.ndarray
    include: np.ndarray
    exclude: np.ndarray
    name: str = "include"  # of the argument that gave `include`, for messages

    @classmethod
    def of(
        cls, n: int, given: Any, include: Any, exclude: Any, name: str = "include"
    ) -> tuple[RowSets, Any, list[Near]]:
        """As select() takes them: the rows of the pool, given rows from elsewhere or None, and what bars rows.

        Raises ValueError for a row in two of them, and as as_rows() does.
        """
        include = as_rows(include, n, name)
        given, elsewhere = split_given(given, n)
        exclude, near = split_exclude(exclude, n)
        for a, some, b, others in (
            ("given", given, "exclude", exclude),
            ("given", given, name, include),
            (name, include, "exclude", exclude),
        ):
            both = np.intersect1d(some, others)
            if len(both):
                raise ValueError(f"row {both[0]} is in {a} and in {b}")
        return cls(given, include, exclude, name), elsewhere, near

    def without(self, barred: Iterable[Barred]) -> RowSets:
        """With barred rows excluded, but for given ones. ValueError where one of them must be chosen."""
        barred = list(barred)
        for each in barred:
            both = np.intersect1d(self.include, each.rows)
            if len(both):
                to = each.by[each.rows == both[0]][0]
                raise ValueError(
                    f"row {both[0]} is in {self.name}, but as close as {each.near.above} to row {to} of exclude's Near"
                )
        closed = [np.setdiff1d(each.rows, self.given) for each in barred]
        return replace(self, exclude=np.unique(np.concatenate([self.exclude, *closed])))


def split_given(value: Any, n: int) -> tuple[np.ndarray, Any]:
    """given= as (row numbers of the pool, rows (m, d) from elsewhere or None); a tuple may hold one of each."""
    parts = list(value) if isinstance(value, tuple) and any(_two_dimensional(p) for p in value) else [value]
    elsewhere = [part for part in parts if _two_dimensional(part)]
    here = [as_rows(part, n, "given") for part in parts if not _two_dimensional(part)]
    if len(elsewhere) > 1 or len(here) > 1:
        raise ValueError(
            "given must be rows of the pool, an (m, d) array of rows from elsewhere, or a tuple of one and the other"
        )
    rows = here[0] if here else np.empty(0, np.int64)
    return rows, outside.as_outside("given", elsewhere[0]) if elsewhere else None


def split_exclude(value: Any, n: int) -> tuple[np.ndarray, list[Near]]:
    """exclude= as (row numbers of the pool, what bars rows close to it); a list or tuple may hold several."""
    parts = [value]
    if isinstance(value, (list, tuple)) and any(isinstance(part, Near) for part in value):
        parts = list(value)
    rows = [as_rows(part, n, "exclude") for part in parts if not isinstance(part, Near)]
    return np.unique(np.concatenate([np.empty(0, np.int64), *rows])), [
        p for p in parts if isinstance(p, Near)
    ]


def _two_dimensional(value: Any) -> bool:
    return value is not None and getattr(value, "ndim", 1) == 2


def bar(job: Job, near: Near) -> Barred:
    """The rows of the pool that it bars. O(n m d)."""
    outside.check_outside("Near.rows", near.rows, job.x, job.kind)
    if resolve(job.options.backend) == "reference":
        s = reference.similarities(on_host(near.rows), job.kind, job.dense())
        by, similarity = s.argmax(axis=1), s.max(axis=1)
    else:
        others = near.rows if resolve(job.options.backend) == "triton" else on_host(near.rows)
        by, similarity = outside.nearest(job.ground(), job.x, others)
    rows = np.flatnonzero(similarity >= near.above - SLACK)
    return Barred(near, rows, by[rows], similarity[rows])
