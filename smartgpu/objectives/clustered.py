"""Clustered objectives: one objective in every group of rows, each with the similarity of its own rows."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from smartgpu.labels import as_labels
from smartgpu.objectives.base import Batch, Eager, Ground, Objective, State
from smartgpu.objectives.cost import Cost, Part, Shape
from smartgpu.similarity import Matrix, Similarity
from smartgpu.sparse import SparseRows


@dataclass(frozen=True, eq=False)
class Clustered(Objective):
    """f(S) = sum over clusters c of f_c(S in c), where f_c is the objective on the pool that is the rows of c alone.

    objective  any objective that is not counted for k (a QualityDiversity of scale "paper" is not, others are)
    labels     (n,) ints or strings: the cluster of each row

    What the objective is, this is: monotone, submodular. Similarity between clusters is never computed: O(sum n_c^2 d)
    for facility location. submodlib's ClusteredFunction. Raises ValueError for labels of another length.
    """

    objective: Objective
    labels: Any
    name: ClassVar[str] = "clustered"

    def __post_init__(self) -> None:
        from smartgpu.objectives import as_objective

        object.__setattr__(self, "objective", as_objective(self.objective))
        if self.objective.counted:
            raise ValueError(
                f"clustered cannot take {self.objective.name}, which depends on how many rows are chosen"
            )
        if not isinstance(self.labels, np.ndarray) or self.labels.dtype.kind != "i" or self.labels.ndim != 1:
            object.__setattr__(self, "labels", as_labels(self.labels, len(self.labels), "labels").codes)

    @property
    def similar(self) -> bool:
        return self.objective.similar

    def check(self, x: np.ndarray | Matrix, kind: Similarity) -> None:
        n = x.shape[1] if isinstance(x, Matrix) else len(x)
        if isinstance(x, Matrix) and x.shape[0] != n:
            raise ValueError(f"clustered needs a square matrix, rows x rows, got {x.shape}")
        if len(self.labels) != n:
            raise ValueError(f"labels must have one label for each row of X, {n}, got {len(self.labels)}")
        if getattr(self.objective, "represented", None) is not None:
            raise ValueError("clustered takes no represented rows: every cluster represents its own")
        self.objective.check(x, kind)

    def need_monotone(self, x: np.ndarray | Matrix, kind: Similarity) -> None:
        self.objective.need_monotone(x, kind)

    def on_host(self) -> Clustered:
        return Clustered(self.objective.on_host(), self.labels)

    def take(self, rows: np.ndarray) -> Clustered:
        return Clustered(self.objective.take(rows), self.labels[rows])

    def cost(self, shape: Shape) -> Cost:
        """Of all clusters together; what comes and goes does so in turn."""
        held: dict[str, int] = {}
        scratch = extra = terms = 0
        work = 0.0
        for rows in _clusters(self.labels):
            cost = self._take(rows).cost(_part(shape, rows))
            for part in cost.parts:
                held[part.name] = held.get(part.name, 0) + part.bytes
            scratch, extra = max(scratch, cost.scratch), extra + cost.extra
            terms, work = max(terms, cost.terms), work + cost.work
        parts = [Part(name, size) for name, size in held.items()]
        parts.append(Part("rows of the clusters", self._copies(shape) + shape.footprint.host(80 * shape.n)))
        return Cost(tuple(parts), scratch, extra, terms, work)

    def _copies(self, shape: Shape) -> int:
        """Bytes of the clusters' own copies of their rows, or of a given matrix."""
        x = shape.x
        if not isinstance(x, Matrix):
            copied = getattr(x, "nbytes", 0) + 8 * len(x)
        else:
            sizes = np.bincount(self.labels).astype(np.int64)
            copied = 0 if x.dense is None else int((sizes**2).sum()) * x.dense.dtype.itemsize
            copied += 0 if x.csc is None else 16 * len(x.csc[2]) + 16 * shape.n
        on_host = isinstance(x, (np.ndarray, Matrix, SparseRows))
        return shape.footprint.host(copied) if on_host else copied

    def _take(self, rows: np.ndarray) -> Objective:
        return self.objective.take(rows).sized(len(rows), 1)

    def bind(self, ground: Ground) -> ClusteredState:
        if ground.outside is not None:
            raise ValueError(
                "given rows that are not in the pool have no cluster: clustered cannot count them"
            )
        parts = _clusters(self.labels)
        return ClusteredState([self._take(rows).bind(ground.part(rows)) for rows in parts], parts, ground.n)

    def describe(self) -> dict:
        return {**super().describe(), "objective": self.objective.describe()}


def _clusters(labels: np.ndarray) -> list[np.ndarray]:
    """The rows of each cluster, ascending."""
    order = np.argsort(labels, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(labels[order])) + 1)


def _part(shape: Shape, rows: np.ndarray) -> Shape:
    """The shape of the pool that these rows are."""
    x, m = shape.x, len(rows)
    if not isinstance(x, Matrix):
        x = x[:m]
    elif x.dense is not None:
        x = replace(x, shape=(m, m), dense=x.dense[:m, :m])
    else:
        x = x.cut(rows, rows)
    return Shape.of(x, shape.kind, min(shape.k, len(rows)), shape.footprint, shape.coverage)


class ClusteredState(Eager):
    """One state for each cluster; a pick changes the gains of its own alone."""

    def __init__(self, states: list[State], parts: list[np.ndarray], n: int):
        self.states, self.parts, self.n = states, parts, n
        self.slack, self.margin = max(s.slack for s in states), max(s.margin for s in states)
        self.reach, self.active = min(s.reach for s in states), min(s.active for s in states)
        self.cluster, self.place = np.empty(n, np.int64), np.empty(n, np.int64)
        for c, rows in enumerate(parts):
            self.cluster[rows], self.place[rows] = c, np.arange(len(rows))

    @property
    def max_batch(self) -> int:
        """Of them all: candidates may be of one cluster."""
        return min((s.max_batch for s in self.states if s.max_batch < s.n), default=self.n)

    def _gather(self, found: list[np.ndarray]) -> np.ndarray:
        out = np.empty(self.n)
        for rows, values in zip(self.parts, found, strict=True):
            out[rows] = values
        return out

    def gains(self) -> np.ndarray:
        return self._gather([state.gains() for state in self.states])

    def bounds(self) -> tuple[np.ndarray, bool]:
        found = [state.bounds() for state in self.states]
        return self._gather([values for values, _ in found]), all(fresh for _, fresh in found)

    def improve(self) -> tuple[np.ndarray, bool] | None:
        """Where a cluster has better bounds; the others keep those that are known."""
        found = [state.improve() for state in self.states]
        if all(better is None for better in found):
            return None
        values = [
            np.full(len(rows), np.inf) if better is None else better[0]
            for rows, better in zip(self.parts, found, strict=True)
        ]
        return self._gather(values), all(better is not None and better[1] for better in found)

    def evaluate(self, cols: np.ndarray) -> ClusteredBatch:
        return ClusteredBatch(self, cols)

    def add(self, cols: np.ndarray) -> None:
        for c in np.unique(self.cluster[cols]):
            self.states[c].add(self.place[cols[self.cluster[cols] == c]])

    def value(self) -> float:
        return float(sum(state.value() for state in self.states))

    def total(self) -> float:
        return float(sum(state.total() for state in self.states))


class ClusteredBatch:
    """A batch of each cluster that candidates are of, and where its candidates are among them."""

    def __init__(self, state: ClusteredState, cols: np.ndarray):
        of = state.cluster[cols]
        self.batches: dict[int, tuple[np.ndarray, Batch]] = {}
        for c in np.unique(of):
            at = np.flatnonzero(of == c)
            self.batches[int(c)] = at, state.states[c].evaluate(state.place[cols[at]])
        self.of = of
        self.gains = np.empty(len(cols))
        for at, batch in self.batches.values():
            self.gains[at] = batch.gains

    def narrow(self, positions: np.ndarray) -> None:
        kept = {}
        for c, (at, batch) in self.batches.items():
            here = np.flatnonzero(np.isin(positions, at))
            if len(here):
                batch.narrow(np.searchsorted(at, positions[here]))
                kept[c] = here, batch
        self.batches, self.of, self.gains = kept, self.of[positions], self.gains[positions]

    def accept(self, b: int) -> None:
        at, batch = self.batches[int(self.of[b])]
        batch.accept(int(np.searchsorted(at, b)))
        self.gains[at] = batch.gains
