"""Weighted sums of objectives: (1 - alpha) * FacilityLocation() + alpha * Modular(q)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from smartgpu.constraints import Found, Goal
from smartgpu.objectives.base import Batch, Ground, Objective, Pair, State
from smartgpu.objectives.cost import Cost, Part, Shape
from smartgpu.objectives.modular import ModularState
from smartgpu.similarity import Matrix, Similarity


@dataclass(frozen=True, eq=False)
class WeightedSum(Objective):
    """f(S) = sum_t c_t f_t(S), c_t >= 0: submodular and monotone if every term is. terms: ((c_t, objective_t), ...)."""

    terms: tuple[tuple[float, Objective], ...]
    name: ClassVar[str] = "weighted_sum"

    def __post_init__(self) -> None:
        flat: list[tuple[float, Objective]] = []
        for weight, term in self.terms:
            if isinstance(weight, bool) or not isinstance(weight, (int, float, np.integer, np.floating)):
                raise TypeError(f"the weight of an objective must be a number, got {type(weight).__name__}")
            if not (np.isfinite(weight) and weight >= 0):
                raise ValueError(f"the weight of an objective must be >= 0 and finite, got {weight}")
            inner = term.terms if type(term) is WeightedSum else ((1.0, term),)
            flat += [(float(weight) * c, t) for c, t in inner]
        object.__setattr__(self, "terms", tuple(flat))

    def check(self, x: np.ndarray | Matrix, kind: Similarity) -> None:
        for _, term in self.terms:
            term.check(x, kind)

    def need_monotone(self, x: np.ndarray | Matrix, kind: Similarity) -> None:
        for weight, term in self.terms:
            if weight > 0:
                term.need_monotone(x, kind)

    def need_swaps(self) -> int:
        found = sum(term.need_swaps() for weight, term in self.terms if weight > 0)
        if found > 1:
            raise ValueError(f"polish follows one facility location, got a sum of {found}")
        return found

    def cost(self, shape: Shape) -> Cost:
        whole = Cost((Part("sums of terms", shape.footprint.host(32 * shape.n)),))
        for weight, term in self.terms:
            if weight > 0:
                whole += term.cost(shape)
        return whole

    def on_host(self) -> WeightedSum:
        return WeightedSum(tuple((c, term.on_host()) for c, term in self.terms))

    def take(self, rows: np.ndarray) -> WeightedSum:
        return WeightedSum(tuple((c, term.take(rows)) for c, term in self.terms))

    @property
    def similar(self) -> bool:
        return any(term.similar for _, term in self.terms)

    @property
    def travels(self) -> bool:
        return self.similar and all(term.travels or not term.similar for _, term in self.terms)

    @property
    def counted(self) -> bool:
        return any(term.counted for c, term in self.terms if c > 0)

    def sized(self, r: int, k: int) -> WeightedSum:
        return WeightedSum(tuple((c, term.sized(r, k)) for c, term in self.terms))

    def bind(self, ground: Ground) -> WeightedSumState:
        flat: list[tuple[float, State]] = []
        for c, term in self.terms:
            if c > 0:
                state = term.bind(ground)
                inner = state.terms if isinstance(state, WeightedSumState) else [(1.0, state)]
                flat += [(c * weight, s) for weight, s in inner]
        return WeightedSumState(flat, ground.n)

    def describe(self) -> dict:
        return {"name": self.name, "terms": [{"weight": c, **term.describe()} for c, term in self.terms]}


class WeightedSumState:
    """Gains are summed in the order of the terms: rounding is monotone in each, so stale gains stay bounds."""

    def __init__(self, terms: list[tuple[float, State]], n: int):
        self.terms, self.n = terms, n
        self.slack = sum(c * s.slack for c, s in terms)
        self.margin = sum(c * s.margin for c, s in terms)
        self.reach = min((s.reach for _, s in terms), default=n)
        self.active = min((s.active for _, s in terms), default=n)

    @property
    def max_batch(self) -> int:
        return min((s.max_batch for _, s in self.terms), default=self.n)

    def gains(self) -> np.ndarray:
        return _sum([(c, s.gains()) for c, s in self.terms], self.n)

    def screen(self, cols: np.ndarray) -> None:
        return None

    def bounds(self) -> tuple[np.ndarray, bool]:
        return self._combine([state.bounds() for _, state in self.terms])

    def improve(self) -> tuple[np.ndarray, bool] | None:
        """Bounds again as soon as one term has better ones; the others give those they have at hand."""
        better = [state.improve() for _, state in self.terms]
        if all(b is None for b in better):
            return None
        return self._combine([b or state.bounds() for b, (_, state) in zip(better, self.terms, strict=True)])

    def _combine(self, parts: list[tuple[np.ndarray, bool]]) -> tuple[np.ndarray, bool]:
        values = [(c, value) for (c, _), (value, _) in zip(self.terms, parts, strict=True)]
        return _sum(values, self.n), all(fresh for _, fresh in parts)

    def evaluate(self, cols: np.ndarray) -> WeightedSumBatch:
        return WeightedSumBatch([(c, s.evaluate(cols)) for c, s in self.terms], len(cols))

    def add(self, cols: np.ndarray) -> None:
        for _, state in self.terms:
            state.add(cols)

    def resident(self, goal: Goal) -> Iterator[Found] | None:
        """One term's loop, where the others are modular: at most one of them behind it, so that sums have one order."""
        fixed = [isinstance(state, ModularState) for _, state in self.terms]
        if fixed.count(False) != 1 or len(fixed) - fixed.index(False) > 2:
            return None
        at = fixed.index(False)
        before, after = (
            _sum([(c, s.scores) for c, s in terms], self.n) if terms else None
            for terms in (self.terms[:at], self.terms[at + 1 :])
        )
        weight, state = self.terms[at]
        looks = state.resident(replace(goal, weight=weight, before=before, after=after))
        return None if looks is None else self._resident(looks)

    def _resident(self, looks: Iterator[Found]) -> Iterator[Found]:
        for found in looks:
            for _, state in self.terms:
                if isinstance(state, ModularState):
                    state.add(found.indices)
            yield found

    def twin(self) -> tuple[WeightedSumState, Pair] | None:
        """Where one term's work can be shared, and the others are modular."""
        others = [state for _, state in self.terms if not isinstance(state, ModularState)]
        shared = others[0].twin() if len(others) == 1 else None
        if shared is None:
            return None
        inner, pair = shared
        terms = [
            (c, ModularState(s.scores, s.base) if isinstance(s, ModularState) else inner)
            for c, s in self.terms
        ]
        for (_, new), (_, old) in zip(terms, self.terms, strict=True):
            if isinstance(new, ModularState):
                new.chosen = list(old.chosen)
        return WeightedSumState(terms, self.n), pair

    def within(self, cols: np.ndarray, low: np.ndarray | None) -> WeightedSumState:
        return WeightedSumState([(c, state.within(cols, low)) for c, state in self.terms], len(cols))

    def value(self) -> float:
        return float(sum(c * s.value() for c, s in self.terms))

    def total(self) -> float:
        return float(sum(c * s.total() for c, s in self.terms))


class WeightedSumBatch:
    def __init__(self, terms: list[tuple[float, Batch]], m: int):
        self.terms, self.m = terms, m
        self.gains = _sum([(c, b.gains) for c, b in terms], m)

    def narrow(self, positions: np.ndarray) -> None:
        for _, batch in self.terms:
            batch.narrow(positions)
        self.m, self.gains = len(positions), self.gains[positions]

    def accept(self, b: int) -> None:
        for _, batch in self.terms:
            batch.accept(b)
        self.gains = _sum([(c, batch.gains) for c, batch in self.terms], self.m)


def _sum(terms: list[tuple[float, np.ndarray]], n: int) -> np.ndarray:
    out = np.zeros(n)
    for weight, values in terms:
        out += weight * values
    return out
