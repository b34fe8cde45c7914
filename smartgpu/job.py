"""The checked arguments of one call: what every entry point does first."""

from __future__ import annotations

import importlib
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from smartgpu.arrays import as_matrix, as_similarity_matrix, on_host
from smartgpu.backends import find_backend, resolve
from smartgpu.backends.gpu import DeviceMemoryError, need_gpu
from smartgpu.objectives import Ground, Objective, as_objective
from smartgpu.objectives.cost import Cost, Part, Shape
from smartgpu.objectives.outside import check_outside, scratch
from smartgpu.options import Options, bytes_text
from smartgpu.ranks import need_group
from smartgpu.similarity import Matrix, MaxMinusSqeuclidean, Precomputed, Similarity, as_similarity
from smartgpu.sparse import SparseRows, as_sparse_rows, is_sparse
from smartgpu.version import __version__

if TYPE_CHECKING:
    from smartgpu.ranks import Ranks


@dataclass
class Job:
    """Checked arguments of one call."""

    x: np.ndarray | Matrix
    kind: Similarity
    objective: Objective
    options: Options
    outside: Any = None  # rows that are not in the pool and count as chosen
    others: tuple[Any, ...] = ()  # all such rows that the pool's similarity to is asked for
    ranks: Any = None  # the processes among which groups are dealt out

    @classmethod
    def check(cls, X: Any, objective: Any, similarity: Any, options: Options) -> Job:
        kind, spec = as_similarity(similarity), as_objective(objective)
        backend = resolve(options.backend)
        on_device = backend == "triton"
        if on_device:
            need_gpu()
        elif options.precision != "auto":
            raise ValueError(f"precision is for backend 'triton', got {options.precision!r} with {backend!r}")
        else:
            spec = spec.on_host()
        read = as_similarity_matrix if isinstance(kind, Precomputed) else as_matrix
        rows = is_sparse(X) and not spec.similar and read is as_matrix
        x = as_sparse_rows(X) if rows else read(X, tensors=on_device)
        spec.check(x, kind)
        if options.polish is not None:
            if backend == "reference":
                raise ValueError("polish is not for backend 'reference', which is plain greedy")
            spec.need_swaps()
        return cls(x, kind, spec, options)

    @property
    def n(self) -> int:
        return self.x.shape[1] if isinstance(self.x, Matrix) else len(self.x)

    def sized(self, k: int) -> Job:
        """The job of choosing k rows."""
        return replace(self, objective=self.objective.sized(self.x.shape[0], k))

    def beside(self, outside: Any, others: list[Any]) -> Job:
        """The job with rows from elsewhere. Raises ValueError where these do not fit, or memory is short for them."""
        if outside is None and not others:
            return self
        if resolve(self.options.backend) != "triton":
            outside = None if outside is None else on_host(outside)
        if outside is not None:
            check_outside("given", outside, self.x, self.kind)
            others = [*others, outside]
        job = replace(self, outside=outside, others=tuple(others))
        if job.planned and not isinstance(job.x, Matrix):
            job.sized(1).budget(1)
        return job

    def dense(self) -> np.ndarray:
        """The pool for the reference; ValueError where its n x n matrices would be too large."""
        if self.n > 20_000:
            raise ValueError(f"backend 'reference' holds n x n matrices in float64: n <= 20000, got {self.n}")
        return self.x.to_dense() if isinstance(self.x, (Matrix, SparseRows)) else self.x

    @property
    def planned(self) -> bool:
        """Whether what the call allocates is known beforehand."""
        return resolve(self.options.backend) != "reference"

    def how(self) -> dict[str, Any]:
        """What the backend is told."""
        names = ("threads", "progress")
        if resolve(self.options.backend) == "triton":
            names += ("precision",)
        return {name: getattr(self.options, name) for name in names}

    def budget(self, picks: int, coverage: bool = False) -> Budget:
        """What choosing that many rows, given ones included, must hold, and what the memory leaves beside it.

        Raises ValueError where that is more than `memory`. From shapes alone: nothing is computed.
        """
        given = self.options.memory
        default, most = find_backend(self.options.backend).room(*self.sets)
        shape, cost = self._fitting(picks, coverage, most)
        least, where = cost.least, shape.footprint.place
        if given is not None and given < least:
            raise _too_little(least, where, given)
        memory = max(default, least) if given is None else given
        if most is None:
            return Budget(shape, cost, memory)
        if least > most:
            raise _no_room("the selection does not fit the device", least, most)
        return Budget(shape, cost, min(memory, most))

    def _fitting(self, picks: int, coverage: bool, most: int | None) -> tuple[Shape, Cost]:
        """Shape and cost: with features that are held, or if there is no room for all of them, in another way.

        On the CPU, where no memory is given, the room is half of what is free.
        """
        if most is None:
            room = self.options.memory or find_backend(self.options.backend).default_memory()
        else:
            room = min(self.options.memory or most, most)
        costs = []
        for way in self._ways():
            costs.append(self._cost(picks, coverage, **way))
            if costs[-1][1].least <= room:
                return costs[-1]
        return min(costs, key=lambda both: both[1].least)

    def _ways(self) -> list[dict[str, Any]]:
        """How features may be held, the fastest first: all, each process its share while others' travel, none."""
        if isinstance(self.x, Matrix):
            return [{}]
        ways: list[dict[str, Any]] = [{}, {"stream": True}]
        processes = 1 if self.options.process_group is None else need_group(self.options.process_group).size()
        here = resolve(self.options.backend) == "numpy" and not isinstance(self.kind, MaxMinusSqeuclidean)
        if here and 1 < processes <= self.n and self.objective.travels:
            ways.insert(1, {"stream": True, "shares": processes})
        return ways

    def together(self, budget: Budget, memory: int, ranks: Ranks) -> Budget:
        """The budget as one of processes that hold features in the same way: the first that fits where room is least.

        memory: what each may take, the same on all. Raises ValueError, on all, where no way fits.
        """
        if budget.shape.footprint.place or isinstance(self.x, Matrix):
            return replace(budget, memory=memory)
        given = self.options.memory
        room = given or find_backend(self.options.backend).default_memory() // ranks.beside
        room = int(ranks.each(room, "room").min())
        costs = [self._cost(budget.shape.k, budget.shape.coverage, **way) for way in self._ways()]
        least = [int(ranks.each(cost.least, "a way to hold features").max()) for _, cost in costs]
        fit = [at for at, size in enumerate(least) if size <= room]
        way = fit[0] if fit else int(np.argmin(least))
        if given and not fit:
            raise _too_little(least[way], "on all processes", given)
        return Budget(*costs[way], memory if given else max(memory, least[way]))

    def _cost(self, picks: int, coverage: bool, **how: Any) -> tuple[Shape, Cost]:
        """What the selection is and costs; stream: with features that stay on the host of a device, or unmade."""
        sizes = find_backend(self.options.backend).footprint(self.x, self.kind, **self.how(), **how)
        shape = Shape.of(self.x, self.kind, picks, sizes, coverage)
        if self.options.polish is not None:
            shape = replace(shape, swaps=True)
        if self.options.process_group is not None:
            shape = replace(shape, processes=need_group(self.options.process_group).size())
        return shape, self.objective.cost(shape) + Cost(
            (
                Part("bounds and order of the candidates", sizes.search(self.n)),
                Part("picks", sizes.picks(picks)),
                Part(sizes.fixed_name, sizes.fixed()),
            ),
            max(sizes.input(self.n, shape.entries), scratch(shape, *self.others)),
        )

    @property
    def sets(self) -> list[Any]:
        """What the caller's data are, where it matters on which device they lie."""
        return [self.x.dense if isinstance(self.x, Matrix) else self.x]

    @contextmanager
    def failures(self, budget: Budget | None, fresh: bool = False) -> Iterator[None]:
        """Inside, a device that fails is told of as DeviceMemoryError or DeviceLostError, with what can be done.

        fresh: nothing of the selection is on the device yet, and all that it needs must be free.
        """
        engine = find_backend(self.options.backend)
        least = budget.cost.least if budget else 0
        try:
            most = engine.room(*self.sets)[1] if fresh else None
            if most is not None and least > most:  # others may have taken some since it was planned
                raise DeviceMemoryError("the device is taken", most)
            with engine.failures(*self.sets):
                yield
        except DeviceMemoryError as error:
            raise _no_room(str(error), least, error.free) from error.__cause__

    def ground(self, budget: Budget | None = None, ranks: Ranks | None = None) -> Ground:
        how = {**self.how(), "memory": self.options.memory}
        if budget is None:
            most = find_backend(self.options.backend).room(*self.sets)[1]
            how["stream"] = self._fitting(1, False, most)[0].footprint.stream
        else:
            sizes = budget.shape.footprint
            how |= {"picks": budget.shape.k, "spare": budget.spare, "stream": sizes.stream}
            if sizes.place:  # what an objective's own arrays may take is there as well
                how["memory"] = budget.memory
            elif ranks is not None and sizes.shares:
                how["shares"] = sizes.shares
        return Ground(
            self.x, self.kind, resolve(self.options.backend), outside=self.outside, ranks=ranks, **how
        )

    def described(self) -> dict[str, Any]:
        return {
            "n": self.n,
            "objective": self.objective.describe(),
            "similarity": self.kind.describe(),
            "options": self.options.to_dict(),
            "versions": versions(resolve(self.options.backend)),
            "_spec": self.kind,
        }


@dataclass(frozen=True)
class Budget:
    """What a selection costs, and the memory that it may take."""

    shape: Shape
    cost: Cost
    memory: int

    @property
    def spare(self) -> int:
        """Bytes for each term that can use more than it must hold."""
        return (self.memory - self.cost.least) // max(self.cost.terms, 1)


def _too_little(least: int, where: str, given: int) -> ValueError:
    return ValueError(
        f"memory must be at least {bytes_text(least, up=True)} for this selection{where and ' '}{where}, got "
        f"{bytes_text(given)}"
    )


def _no_room(what: str, least: int, room: int) -> DeviceMemoryError:
    """The error of a selection that needs `least` bytes on a device that has `room`."""
    sure = int(0.97 * room)
    fits = f"memory={bytes_text(sure)!r} would fit" if sure >= least else "no memory= makes it fit"
    return DeviceMemoryError(
        f"{what}: {bytes_text(least, up=True)} at least are needed there, {bytes_text(room)} are free: {fits}. Other "
        "processes may hold the rest; with fallback='numpy' the CPU takes over",
        room,
    )


def versions(backend: str = "numpy") -> dict[str, str]:
    """Of what a selection on this backend depends on."""
    found = {"smartgpu": __version__, "python": platform.python_version(), "numpy": np.__version__}
    if backend == "triton":
        found |= {name: importlib.import_module(name).__version__ for name in ("torch", "triton")}
    return found
