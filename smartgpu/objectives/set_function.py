"""Any function of the chosen rows, called as it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from smartgpu.arrays import as_matrix
from smartgpu.objectives.base import Eager, Ground, Objective
from smartgpu.objectives.cost import Cost, Part, Shape
from smartgpu.similarity import Matrix, Similarity


@dataclass(frozen=True, eq=False)
class SetFunction(Objective):
    """f(S) = function(rows of S, in pick order, behind `before`) - function(before); f of no rows is 0.

    function  called with (m, p) float64 rows and `keywords`; gives a finite number
    rows      (n, p) what it is told of each row of the pool: features, or similarities to the pool
    before    (b, p) rows that are there from the start and are no picks; None: none

    A gain is one call. Lazy greedy is exact where the function is submodular, which nobody checks; naive greedy is for
    any function. The lowest index wins among gains that are equal as the function returns them.
    """

    function: Callable[..., float]
    rows: Any
    before: Any = None
    keywords: dict[str, Any] = field(default_factory=dict)
    name: ClassVar[str] = "set_function"

    def __post_init__(self) -> None:
        if not callable(self.function):
            raise TypeError(f"function must be callable, got {type(self.function).__name__}")
        rows = as_matrix(self.rows, "rows").astype(np.float64, copy=False)
        before = (
            None if self.before is None else as_matrix(self.before, "before").astype(np.float64, copy=False)
        )
        if before is not None and before.shape[1] != rows.shape[1]:
            raise ValueError(
                f"before must have as many columns as rows, {rows.shape[1]}, got {before.shape[1]}"
            )
        object.__setattr__(self, "rows", rows)
        object.__setattr__(self, "before", before)

    def check(self, x: np.ndarray | Matrix, kind: Similarity) -> None:
        n = x.shape[1] if isinstance(x, Matrix) else len(x)
        if len(self.rows) != n:
            raise ValueError(f"rows must be one for each row of X, {n}, got {len(self.rows)}")

    def need_monotone(self, x: np.ndarray | Matrix, kind: Similarity) -> None:
        raise ValueError(
            "coverage needs a monotone objective, which a function of one's own is not known to be"
        )

    def take(self, rows: np.ndarray) -> SetFunction:
        return SetFunction(self.function, self.rows[rows], self.before, self.keywords)

    def cost(self, shape: Shape) -> Cost:
        held = (0 if self.before is None else len(self.before)) + shape.k + 1
        host = shape.footprint.host
        return Cost(
            (Part("chosen rows", host(16 * held * self.rows.shape[1])), Part("gains", host(16 * shape.n)))
        )

    def describe(self) -> dict:
        called = self.function
        name = f"{called.__module__}.{getattr(called, '__qualname__', type(called).__qualname__)}"
        return {
            **super().describe(),
            "function": name,
            "keywords": {k: repr(v) for k, v in self.keywords.items()},
        }

    def bind(self, ground: Ground) -> SetFunctionState:
        if ground.outside is not None:
            raise ValueError(
                "given rows that are not in the pool go into `before` of a function of one's own"
            )
        return SetFunctionState(self)


class SetFunctionState(Eager):
    """The chosen rows, with room for one more behind them."""

    slack = margin = 0.0
    reach = active = 1  # a call for each: never more than the next bound asks for

    def __init__(self, spec: SetFunction):
        self.spec, self.n = spec, len(spec.rows)
        self.max_batch = self.n
        before = np.empty((0, spec.rows.shape[1])) if spec.before is None else spec.before
        self.held, self.count = np.concatenate([before, np.zeros_like(spec.rows[:1])]), len(before)
        self.start = self.now = self._call(self.held[:-1]) if len(before) else 0.0

    def _call(self, rows: np.ndarray) -> float:
        value = self.spec.function(rows, **self.spec.keywords)
        try:
            out = float(value)
        except (TypeError, ValueError):
            raise TypeError(f"function must return a number, got {type(value).__name__}") from None
        if not np.isfinite(out):
            raise ValueError(f"function must return a finite number, got {out} for {len(rows)} rows")
        return out

    def gains(self) -> np.ndarray:
        return self.evaluate(np.arange(self.n)).gains

    def evaluate(self, cols: np.ndarray) -> SetFunctionBatch:
        return SetFunctionBatch(self, cols)

    def gain(self, j: int) -> float:
        self.held[self.count] = self.spec.rows[j]
        return self._call(self.held[: self.count + 1]) - self.now

    def add(self, cols: np.ndarray) -> None:
        if not len(cols):
            return
        rows = self.spec.rows[cols]
        self.held = np.concatenate([self.held[: self.count], rows, rows[:1]])
        self.count += len(cols)
        self.now = self._call(self.held[: self.count])

    def value(self) -> float:
        return self.now - self.start

    def total(self) -> float:
        before = self.held[: self.count][:0] if self.spec.before is None else self.spec.before
        return self._call(np.concatenate([before, self.spec.rows])) - self.start


class SetFunctionBatch:
    def __init__(self, state: SetFunctionState, cols: np.ndarray):
        self.state, self.cols = state, cols
        self.gains = np.array([state.gain(j) for j in cols.tolist()], np.float64)

    def narrow(self, positions: np.ndarray) -> None:
        self.cols, self.gains = self.cols[positions], self.gains[positions]

    def accept(self, b: int) -> None:
        self.state.add(self.cols[b : b + 1])
        if len(self.cols) > 1:
            self.gains = np.array([self.state.gain(j) for j in self.cols.tolist()], np.float64)
