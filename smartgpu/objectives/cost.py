"""What a selection costs, from shapes alone: the bytes that it must hold, and the work that its time follows."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from smartgpu.backends.footprint import Entries, Footprint
from smartgpu.shares import largest
from smartgpu.similarity import Matrix, Similarity


def apart(kind: Similarity, on_device: bool) -> bool:
    """Whether the prepared features of a represented row are its own: then a process prepares those of its share.

    Distances on a device are brought into the range of 16 bits by the largest of all rows.
    """
    return kind.by_row and not (on_device and kind.squared_norms)


@dataclass(frozen=True)
class Shape:
    """All that a cost depends on. r: represented rows where an objective names no others; d: 0 for a given matrix."""

    x: Any  # the pool: of an array no more than its shape, and whether its rows are used in place
    n: int
    r: int
    d: int
    k: int
    kind: Similarity
    footprint: Footprint
    coverage: bool = False
    entries: Entries | None = None
    swaps: bool = False  # chosen rows are exchanged for others afterwards
    processes: int = 1  # that choose together

    @classmethod
    def of(cls, x: Any, kind: Similarity, k: int, footprint: Footprint, coverage: bool) -> Shape:
        """The shape of a checked pool, and k rows to choose from it."""
        if not isinstance(x, Matrix):
            return cls(x, len(x), len(x), x.shape[1], k, kind, footprint, coverage)
        r, n = x.shape
        return cls(x, n, r, 0, k, kind, footprint, coverage, Entries.of(x))

    @property
    def features(self) -> list[Part]:
        """The candidates' features, or what a given matrix takes in the backend's form."""
        if self.entries is None:
            return [Part(self._called("the candidates"), self.footprint.features(self.x), "x")]
        size = self.footprint.matrix(self.entries)
        name = "matrix by column" if self.entries.stored else "matrix"
        return [Part(name, size, "x")] if size else []

    def own(self, rows: Any) -> Any:
        """As many of represented rows that are not the candidates as a process holds the features of: see apart()."""
        if (
            self.processes == 1
            or len(rows) < self.processes
            or not apart(self.kind, bool(self.footprint.place))
        ):
            return rows
        return rows[: largest(len(rows), self.processes)]

    def represented(self, rows: Any) -> list[Part]:
        """Features of represented rows that are not the candidates, with the candidates' own copy of their geometry."""
        if rows is None:
            return self.features
        key, rows = id(rows), self.own(rows)
        here, there = (self.footprint.features(a, b) for a, b in ((rows, self.x), (self.x, rows)))
        return [
            Part(self._called("the candidates"), there, ("x", key)),
            Part(self._called("represented rows"), here, key),
        ]

    def _called(self, whose: str) -> str:
        name = f"features of {whose}"
        if self.footprint.shares:
            return f"{name}, a share and two blocks of others"
        return f"{name}, a few blocks at a time" if self.footprint.stream else name

    def dense(self, r: int | None = None, weighted: bool = False) -> int:
        """Scratch of work on tiles of similarity."""
        return self.footprint.dense(self.n, self.r if r is None else r, weighted, self.entries)


class Part(NamedTuple):
    """Arrays that stay. Terms of a sum share parts of one name and key; a part without a key is a term's own."""

    name: str
    bytes: int
    key: Hashable = None


@dataclass(frozen=True)
class Cost:
    """What one objective, or a sum of them, takes.

    parts    what stays
    scratch  bytes that come and go, the most at one time
    extra    bytes that more memory would be used for at most, by `terms` terms together
    work     operations besides sweeps and besides what every pick costs
    """

    parts: tuple[Part, ...]
    scratch: int = 0
    extra: int = 0
    terms: int = 0
    work: float = 0.0

    @property
    def least(self) -> int:
        return sum(part.bytes for part in self.parts) + self.scratch

    def __add__(self, other: Cost) -> Cost:
        """Of a sum of objectives: terms share what has a key, and their scratch comes and goes in turn."""
        held = {(part.name, part.key) for part in self.parts if part.key is not None}
        more = tuple(p for p in other.parts if p.key is None or (p.name, p.key) not in held)
        return replace(
            self,
            parts=self.parts + more,
            scratch=max(self.scratch, other.scratch),
            extra=self.extra + other.extra,
            terms=self.terms + other.terms,
            work=self.work + other.work,
        )
