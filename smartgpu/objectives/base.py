"""What an objective and its state are.

An objective is a frozen spec: parameters and per-row arrays. Bound to a `Ground` it becomes a state, which answers
gains and takes picks. Maximizers know states only.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any, ClassVar, Protocol

import numpy as np

from smartgpu.backends import Backend, find_backend, open_backend
from smartgpu.backends.linear import LinearFeatures, Wide
from smartgpu.backends.sharded import Sharded, shard, travel
from smartgpu.checkpoint import fingerprint
from smartgpu.constraints import Found, Goal
from smartgpu.objectives.cost import Cost, Shape, apart
from smartgpu.similarity import Geometry, Matrix, Similarity
from smartgpu.workers import Workers


class Batch(Protocol):
    """Candidates evaluated together; their gains stay fresh while picks are accepted from among them."""

    gains: np.ndarray  # (m,) float64

    def narrow(self, positions: np.ndarray) -> None: ...  # go on with these candidates alone, in this order
    def accept(self, b: int) -> None: ...  # commit the candidate at position b and refresh `gains`


class Pause(Exception):
    """A state waits for the other of a pair, before it evaluates anything: see State.twin()."""


class State(Protocol):
    """An objective bound to a pool, and the set chosen so far.

    A gain computed t picks ago bounds today's gain from above once margin + slack t is added to it: `slack` is 0 for
    submodular objectives, `margin` is 0 where gains are exact and else bounds the rounding of two evaluations.
    """

    n: int
    slack: float
    margin: float
    max_batch: int  # candidates that evaluate() can take at once
    reach: int  # candidates to look at first for the next picks
    active: int  # of them, those worth keeping up to date together: few where that is dear

    def gains(self) -> np.ndarray: ...  # (n,) float64, fresh gains of all candidates
    def screen(
        self, cols: np.ndarray
    ) -> np.ndarray | None: ...  # (m,) better upper bounds, where cheaper than gains
    def bounds(
        self,
    ) -> tuple[np.ndarray, bool]: ...  # (n,) upper bounds on the gains now; True if they are the gains
    def improve(
        self,
    ) -> tuple[np.ndarray, bool] | None: ...  # better bounds, where work since has made them cheap
    def evaluate(self, cols: np.ndarray) -> Batch: ...  # cols (m,) int64, distinct
    def add(self, cols: np.ndarray) -> None: ...  # commit rows in this order
    def resident(
        self, goal: Goal
    ) -> Iterator[Found] | None: ...  # picks of the backend's own loop, committed; None where it has none
    def twin(
        self,
    ) -> tuple[State, Pair] | None: ...  # as this one, to make other picks; None where nothing can be shared
    def value(self) -> float: ...  # f(S)
    def total(self) -> float: ...  # f(V), what choosing everything would give


class Pair(Protocol):
    """Two states that share work: while both go on, each raises Pause where it would do work that both need."""

    def meet(self) -> None: ...  # both have paused: do it
    def end(self, state: State) -> None: ...  # one is done: the other goes on alone


class Eager:
    """What states have whose gains are cheap: bounds are gains, and there is nothing to improve."""

    reach, active = 256, 128

    def screen(self, cols: np.ndarray) -> None:
        return None

    def bounds(self) -> tuple[np.ndarray, bool]:
        return self.gains(), True

    def improve(self) -> None:
        return None

    def resident(self, goal: Goal) -> None:
        return None

    def twin(self) -> None:
        return None


class Ground:
    """The ground set: n candidates, their similarity, and the backends opened over them.

    x is the checked (n, d) matrix, or a `Matrix` for precomputed similarities. picks is how many rows will be chosen
    at most, where that is known; like (represented rows, candidates) the size of the pool that this one is a sample of,
    and as which it shall work. outside (m, d) are rows that are not in the pool and count as chosen. Where `how` holds
    shares, each process has the features of its share of the candidates, and those of others travel.
    """

    def __init__(
        self,
        x: np.ndarray | Matrix,
        kind: Similarity,
        backend: str = "numpy",
        *,
        picks: int | None = None,
        like: tuple[int, int] | None = None,
        outside: Any = None,
        ranks: Any = None,
        **how: Any,
    ):
        self.x, self.kind, self._name, self._how = x, kind, backend, how
        self.picks, self.like, self.outside, self.ranks = picks, like, outside, ranks
        self.n = x.shape[1] if isinstance(x, Matrix) else len(x)
        self._geometry: dict[int, Geometry] = {}
        self._backends: dict[int, Backend] = {}
        self._parts: list[Ground] = []

    def geometry(self, represented: np.ndarray | None = None) -> Geometry:
        """Prepared features of the candidates and of the represented rows (None: the candidates)."""
        key = id(represented)
        if key not in self._geometry:
            how = {"workers": self.workers, **self._how}
            self._geometry[key] = self.engine.prepare(self.kind, self.x, represented, **how)
        return self._geometry[key]

    def part(self, rows: np.ndarray) -> Ground:
        """The ground set of these rows alone, with their share of what may be taken, and the same threads."""
        x = self.x.cut(rows, rows) if isinstance(self.x, Matrix) else self.x[rows]
        share = len(rows) / self.n
        how = {**self._how, "workers": self.workers}
        for name in ("memory", "spare"):
            if how.get(name):
                how[name] = int(how[name] * share)
        picks = None if self.picks is None else min(self.picks, len(rows))
        part = Ground(x, self.kind, self._name, picks=picks, **how)
        self._parts.append(part)
        return part

    def backend(self, represented: np.ndarray | None = None) -> Backend:
        key = id(represented)
        if key not in self._backends:
            start = functools.partial(open_backend, self._name, **self._how)
            if self.apart(represented):  # of rows that are not candidates, each process prepares its own
                rows, r = self.ranks.share(len(represented)), len(represented)
                pool = self.engine.prepare(
                    self.kind, self.x, represented[rows], workers=self.workers, **self._how
                )
                self._backends[key] = Sharded(start, pool, pool, r, self.ranks)
            elif self._how.get("shares"):
                self._backends[key] = travel(start, self.geometry(), self.ranks, self.workers)
            else:
                pool = self.x if isinstance(self.x, Matrix) else self.geometry(represented)
                self._backends[key] = start(pool) if self.ranks is None else shard(start, pool, self.ranks)
        return self._backends[key]

    def apart(self, represented: Any) -> bool:
        """Whether no process has the features of all these rows: they are a row's own, and dealt out."""
        if self.ranks is None or represented is None or not apart(self.kind, self.engine.remote):
            return False
        return len(represented) >= self.ranks.size

    def features(self, represented: np.ndarray | None = None) -> tuple[LinearFeatures, LinearFeatures]:
        """Candidates' and represented rows' features, of one geometry, in float64 arithmetic."""
        geometry, how = self.geometry(represented), {"workers": self.workers, **self._how}
        x, rows = (self.engine.features(geometry, x, **how) for x in (geometry.x, geometry.rows))
        return x, rows

    def beside(self, others: Any, rows: Any) -> Geometry:
        """Features of rows of the pool, represented, and of others from elsewhere, candidates, in one geometry."""
        return self.engine.prepare(self.kind, others, rows, workers=self.workers, **self._apart)

    def open(self, geometry: Geometry) -> Backend:
        """A backend over such a geometry, which the caller drops."""
        return open_backend(self._name, geometry, **self._apart)

    def linear(self, geometry: Geometry, x: Any) -> LinearFeatures:
        """One of its two sets in float64 arithmetic."""
        return self.engine.features(geometry, x, workers=self.workers, **self._apart)

    @property
    def _apart(self) -> dict[str, Any]:
        names = ("threads", "precision") if self.engine.remote else ("threads", "stream")
        return {name: self._how[name] for name in names if name in self._how}

    def wide(self) -> Wide:
        return self.engine.wide(self.geometry(), **{"workers": self.workers, **self._how})

    @property
    def memory(self) -> int:
        """Bytes that states may take in all."""
        return self._how.get("memory") or self.engine.default_memory()

    @functools.cached_property
    def engine(self) -> type[Backend]:
        """The backend's class, which prepares features and computes with them."""
        return find_backend(self._name)

    @functools.cached_property
    def workers(self) -> Workers:
        return self._how.get("workers") or Workers(self._how.get("threads"))

    def distinct(self) -> tuple[np.ndarray, np.ndarray]:
        """(first (u,), inverse (n,)): the first row of each set of equal rows, and for each row its number there."""
        if isinstance(self.x, Matrix):
            return np.arange(self.n), np.arange(self.n)
        return self.features()[0].distinct()

    @property
    def dtypes(self) -> list[str]:
        """What similarities were made of: by the backends, and where features stay with one, in its algebra as well."""
        prepared = [g.dtype for g in self._geometry.values() if self.engine.remote]
        parts = (dtype for part in self._parts for dtype in part.dtypes)
        return sorted({*prepared, *(b.dtype for b in self._backends.values()), *parts})

    @property
    def sweeps(self) -> float:
        """Similarities computed so far, in sweeps."""
        own = sum(b.pairs / (b.r * b.n) for b in self._backends.values())
        return own + sum(part.sweeps * (part.n / self.n) ** 2 for part in self._parts)

    def check_inputs(self) -> None:
        """ValueError where tensors that are used in place were changed since."""
        for geometry in self._geometry.values():
            self.engine.check_inputs(geometry)
        for part in self._parts:
            part.check_inputs()

    @property
    def opened(self) -> list[Backend]:
        return [*self._backends.values(), *(b for part in self._parts for b in part.opened)]


class Objective:
    """A set function to maximise. Objectives add, and multiply by weights >= 0: 0.3 * GraphCut() + Modular(scores)."""

    name: ClassVar[str]
    similar: bool = True  # f depends on the similarity; else the rows of X may be sparse
    travels: bool = False  # of candidates it asks for sweeps and columns alone, and each represents itself

    def check(self, x: np.ndarray | Matrix, kind: Similarity) -> None:
        """Raises ValueError where the spec does not fit the pool, before any work."""

    def need_monotone(self, x: np.ndarray | Matrix, kind: Similarity) -> None:
        """Raises ValueError, saying why, where f may fall as rows are added: coverage means nothing then."""

    def need_swaps(self) -> int:
        """How many terms of f a search for swaps must follow row by row. Raises ValueError where it cannot."""
        raise ValueError(
            f"polish exchanges rows of facility location, its targets and their sums with quality; swaps for "
            f"{self.name} are not there yet"
        )

    def bind(self, ground: Ground) -> State:
        raise NotImplementedError

    def cost(self, shape: Shape) -> Cost:
        """What choosing from a pool of this shape allocates, and the work that its time follows."""
        raise NotImplementedError

    def on_host(self) -> Objective:
        """The spec without arrays on a device: what backends of the CPU take."""
        return self

    def take(self, rows: np.ndarray) -> Objective:
        """The spec for the sub-pool of these rows: per-row arrays cut, all else as it is."""
        return self

    @property
    def counted(self) -> bool:
        """Whether f depends on how many rows are asked for: then the first rows of more are not those of fewer."""
        return False

    def sized(self, r: int, k: int) -> Objective:
        """The spec for k rows to choose, r rows represented where it names no others: what is bound."""
        return self

    def describe(self) -> dict:
        """Name and parameters as JSON values; arrays by shape, dtype and fingerprint."""
        out: dict[str, Any] = {"name": self.name}
        for f in fields(self) if is_dataclass(self) else ():
            value = getattr(self, f.name)
            if hasattr(value, "dtype") and hasattr(value, "shape"):
                value = {"shape": list(value.shape), "dtype": str(value.dtype), "sha256": fingerprint(value)}
            out[f.name] = value
        return out

    def __mul__(self, weight: float) -> Objective:
        from smartgpu.objectives.weighted_sum import WeightedSum

        return WeightedSum(((weight, self),))

    __rmul__ = __mul__

    def __add__(self, other: Objective) -> Objective:
        from smartgpu.objectives.weighted_sum import WeightedSum

        if other == 0:  # sum([...]) starts from 0
            return self
        if not isinstance(other, Objective):
            return NotImplemented
        return WeightedSum(((1.0, self), (1.0, other)))

    __radd__ = __add__


def per_row(name: str, value: Any, n: int | None = None, *, missing: bool = False) -> np.ndarray:
    """A finite float64 vector, of length n where n is given. ValueError names the argument, expected and got.

    missing: NaN, which None becomes, is let through.
    """
    try:
        if hasattr(value, "detach"):  # a torch tensor, wherever it is
            value = value.detach().cpu()
        elif hasattr(value, "__cuda_array_interface__") and hasattr(value, "get"):  # CuPy's
            value = value.get()
        out = np.asarray(value, np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{name} must be numbers, one per row, got {type(value).__name__}: {error}"
        ) from None
    if out.ndim != 1 or (n is not None and len(out) != n):
        expected = "(n,)" if n is None else f"({n},)"
        raise ValueError(f"{name} must have shape {expected}, one number per row, got {out.shape}")
    bad = np.flatnonzero(np.isinf(out) if missing else ~np.isfinite(out))
    if len(bad):
        what = "infinite" if missing else "NaN or infinite"
        raise ValueError(f"{name} must be finite, got {len(bad)} {what} values, the first at row {bad[0]}")
    return out
