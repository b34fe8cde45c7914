"""partial_fit: smartgpu.SieveStreaming, on what a selector's function is in a stream.

Functions of features are themselves. Functions of similarities are measured on rows R: the reservoir that was given, or
rows of the stream: a uniform sample that is kept as it goes on for cosine and correlation, and its first
max_reservoir_size rows for euclidean. There the largest distance of all is not known, and f(S) is what S takes from the
squared distances to the mean m of R: sum_{i in R} max(0, |x_i - m|^2 - min_{j in S} |x_i - x_j|^2).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from smartgpu import compat
from smartgpu.compat.apricot import _pools
from smartgpu.compat.apricot.optimizers import SieveGreedy, make_optimizer
from smartgpu.objectives import FacilityLocation, GraphCut
from smartgpu.objectives.coverage import Coverage
from smartgpu.sieve import SieveStreaming
from smartgpu.similarity import CosineSquared, Dot

EPSILON = 0.1  # between thresholds, where the optimizer is not "sieve"
METRICS = ("cosine", "correlation", "euclidean", "sqeuclidean")


class Stream:
    """The sieves of one selector, and the rows that they hold."""

    def __init__(self, selector: Any):
        self.selector, self.k = selector, selector._limits(np.iinfo(np.int64).max, None)[1]["k"]
        if selector.initial_subset is not None:
            raise ValueError("initial_subset is not for partial_fit")
        if selector.custom or not hasattr(selector, "reservoir") or getattr(selector, "functions", None):
            raise NotImplementedError(
                f"{type(selector).__name__} has no partial_fit: it takes all rows at once"
            )
        self.weight, self.objective = selector._objective(None, None)
        streams = (Coverage, FacilityLocation, GraphCut)
        if not isinstance(self.objective, streams):
            raise NotImplementedError(
                f"{type(selector).__name__} has no partial_fit: f depends on all rows of a pool"
            )
        self.metric = selector.metric
        if selector.graph and self.metric not in METRICS:
            raise ValueError(
                f"metric must be one of {', '.join(METRICS)} for partial_fit, got {self.metric!r}"
            )
        if isinstance(self.objective, GraphCut):
            self._check_cut()
        optimizer = make_optimizer(
            "optimizer", selector.optimizer, selector.random_state, selector.optimizer_kwds
        )
        self.epsilon = optimizer.epsilon if isinstance(optimizer, SieveGreedy) else EPSILON
        self.seed = int(selector.random_state.randint(2**31 - 1))
        self.seen, self.width = 0, None if selector.reservoir is None else selector.reservoir.shape[1]
        self.map: Distances | None = None
        self.sieve: SieveStreaming | None = None
        self.rows: dict[int, np.ndarray] = {}  # those that the sieves hold, as they came
        self.first: list[np.ndarray] = []  # rows of the stream before there is a reservoir
        if selector.graph and selector.reservoir is not None:
            self._start(selector.reservoir)
        elif not self.far:
            self._start(None)

    @property
    def far(self) -> bool:
        """Whether similarities are made of distances."""
        return self.selector.graph and self.metric in ("euclidean", "sqeuclidean")

    def _check_cut(self) -> None:
        if self.selector.reservoir is None:
            raise ValueError(
                "GraphCutSelection.partial_fit needs reservoir: a sample of the stream would change its balance"
            )
        if self.far:
            raise ValueError(
                f"GraphCutSelection.partial_fit takes metrics cosine and correlation, got {self.metric!r}"
            )

    def _start(self, reservoir: np.ndarray | None) -> None:
        how = {
            name: compat.options[name]
            for name in ("backend", "threads", "precision")
            if name in compat.options
        }
        spec, kind, represented = self.objective, CosineSquared(), None
        if reservoir is not None:
            self.map = Distances(reservoir) if self.far else None
            kind = Dot() if self.far else kind
            represented = self.map.represented if self.far else self._features(reservoir)
        elif self.selector.graph:
            how["reservoir"] = self.selector.max_reservoir_size
        self.sieve = SieveStreaming(
            self.k, spec, kind, epsilon=self.epsilon, represented=represented, seed=self.seed, **how
        )

    def _features(self, x: np.ndarray) -> np.ndarray:
        """The rows as the sieves compare them."""
        if self.map is not None:
            return self.map(x)
        if self.metric == "correlation":
            return _pools.centred(x)
        return np.asarray(x, np.float64)

    def update(self, x: np.ndarray) -> None:
        """The next rows. ValueError for another width than before, and nothing has changed then."""
        if self.width not in (None, x.shape[1]):
            before = "the batches before" if self.seen else "reservoir"
            raise ValueError(f"X must have as many features as {before}, {self.width}, got {x.shape[1]}")
        if self.sieve is None:
            self._wait(x)
        else:
            self._take(x, self.seen)
        self.width, self.seen = x.shape[1], self.seen + len(x)

    def _wait(self, x: np.ndarray) -> None:
        self.first.append(np.array(x))
        held, size = sum(map(len, self.first)), self.selector.max_reservoir_size
        if held >= size:
            rows, self.first = np.concatenate(self.first), []
            self._start(rows[:size])
            self._take(rows, 0)

    def _take(self, x: np.ndarray, start: int) -> None:
        self.sieve.update(self._features(x))
        held = self.sieve.held.tolist()
        self.rows = {j: self.rows[j] if j < start else np.array(x[j - start], np.float64) for j in held}

    def result(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(ranking, gains, the rows). ValueError where fewer rows came than are to be chosen."""
        if self.seen < self.k:
            raise ValueError(f"n_samples is {self.k}, but the stream had {self.seen} rows so far")
        if self.sieve is None:  # they are all the rows there are
            whole = Stream(self.selector)
            whole.seen, rows = self.seen, np.concatenate(self.first)
            whole._start(rows)
            whole._take(rows, 0)
            return whole.result()
        found = self.sieve.result()
        rows = np.stack([self.rows[j] for j in found.indices.tolist()])
        return found.indices, self.weight * found.gains, rows


class Distances:
    """|y - m|^2 - |x - y|^2 = 2 x.y - |x|^2 of rows x to fixed rows y, less their mean m, as a dot product.

    Each has the other's constant beside it, scaled to the size of the rows.
    """

    def __init__(self, rows: np.ndarray):
        y = np.asarray(rows, np.float64)
        self.centre = y.mean(axis=0)
        y = y - self.centre
        self.scale = float(np.sqrt(np.einsum("ij,ij->i", y, y).max())) or 1.0
        self.represented = np.column_stack([np.sqrt(2) * y, np.full(len(y), self.scale)])

    def __call__(self, x: np.ndarray) -> np.ndarray:
        x = np.asarray(x, np.float64) - self.centre
        return np.column_stack([np.sqrt(2) * x, -np.einsum("ij,ij->i", x, x) / self.scale])
