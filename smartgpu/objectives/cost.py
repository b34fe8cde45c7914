"""What a selection costs, from shapes alone: the bytes that it must hold, and the work that its time follows."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from smartgpu.backends import footprint
from smartgpu.similarity import Matrix, Similarity

MAXIMIZER = 64  # bytes a candidate: bounds, what is fresh, the candidates in order
PICK = 160  # bytes a pick: row and gain as Python numbers, then as arrays, and those of a checkpoint


@dataclass(frozen=True)
class Shape:
    """All that a cost depends on. r: represented rows where an objective names no others; d: 0 for a given matrix."""

    n: int
    r: int
    d: int
    k: int
    kind: Similarity
    threads: int
    coverage: bool = False
    stored: int = 0  # entries of a sparse matrix
    panel: int = 0  # of them, those of the fullest columns that make a tile

    @classmethod
    def of(cls, x: np.ndarray | Matrix, kind: Similarity, k: int, threads: int, coverage: bool) -> Shape:
        """The shape of a checked pool, and k rows to choose from it."""
        if not isinstance(x, Matrix):
            return cls(len(x), len(x), x.shape[1], k, kind, threads, coverage)
        stored = panel = 0
        if x.csc is not None:
            lengths = np.sort(np.diff(x.csc[0]))
            stored, panel = int(lengths.sum()), int(lengths[-footprint.ROWS :].sum())
        return cls(x.shape[1], x.shape[0], 0, k, kind, threads, coverage, stored, panel)

    @property
    def features(self) -> list[Part]:
        """The candidates' features, or what a sparse matrix takes by column."""
        if self.d:
            return [Part("features of the candidates", footprint.features(self.n, self.d), "x")]
        return [Part("matrix by column", 16 * self.stored + 8 * self.n, "x")] if self.stored else []

    def represented(self, rows: np.ndarray | None) -> list[Part]:
        """Features of represented rows that are not the candidates, with the candidates' own copy of their geometry."""
        if rows is None:
            return self.features
        here = Part("features of represented rows", footprint.features(len(rows), self.d), id(rows))
        own = [part._replace(key=(part.key, id(rows))) for part in self.features]
        return [*own, here]

    def dense(self, weighted: bool = False) -> int:
        """Scratch of the numpy backend."""
        squared = self.kind.squared_norms
        sparse = 84 * self.threads * self.panel + 8 * self.n * bool(self.panel)
        return footprint.scratch(self.n, self.d, self.threads, squared=squared, weighted=weighted) + sparse

    @property
    def reading(self) -> int:
        """What checking the input takes, besides what stays of it."""
        if self.d:
            return min(self.n * self.d, 1 << 20) + 256 * 1024
        return 24 * self.stored if self.stored else 5 << 20


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
