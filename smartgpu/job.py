"""The checked arguments of one call: what every entry point does first."""

from __future__ import annotations

import importlib
import platform
from dataclasses import dataclass
from typing import Any

import numpy as np

from smartgpu.arrays import as_matrix, as_similarity_matrix
from smartgpu.backends import footprint, resolve
from smartgpu.backends.gpu import need_gpu
from smartgpu.objectives import Ground, Objective, as_objective
from smartgpu.objectives.cost import MAXIMIZER, PICK, Cost, Part, Shape
from smartgpu.options import Options, bytes_text
from smartgpu.similarity import Matrix, Precomputed, Similarity, as_similarity
from smartgpu.version import __version__
from smartgpu.workers import cpu_count, default_memory


@dataclass
class Job:
    """Checked arguments of one call."""

    x: np.ndarray | Matrix
    kind: Similarity
    objective: Objective
    options: Options

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
        x = read(X, tensors=on_device)
        spec.check(x, kind)
        return cls(x, kind, spec, options)

    @property
    def n(self) -> int:
        return self.x.shape[1] if isinstance(self.x, Matrix) else len(self.x)

    def dense(self) -> np.ndarray:
        """The pool for the reference; ValueError where its n x n matrices would be too large."""
        if self.n > 20_000:
            raise ValueError(f"backend 'reference' holds n x n matrices in float64: n <= 20000, got {self.n}")
        return self.x.to_dense() if isinstance(self.x, Matrix) else self.x

    @property
    def planned(self) -> bool:
        """Whether what the call allocates is known beforehand: on the CPU."""
        return resolve(self.options.backend) == "numpy"

    def budget(self, picks: int, coverage: bool = False) -> Budget:
        """What choosing that many rows, given ones included, must hold, and what the memory leaves beside it.

        Raises ValueError where that is more than `memory`. From shapes alone: nothing is computed.
        """
        threads = self.options.threads or cpu_count()
        shape = Shape.of(self.x, self.kind, picks, threads, coverage)
        cost = self.objective.cost(shape) + Cost(
            (
                Part("bounds and order of the candidates", MAXIMIZER * self.n),
                Part("picks", PICK * picks),
                Part("threads, lists", footprint.SMALL),
            ),
            shape.reading,
        )
        least, given = cost.least, self.options.memory
        if given is not None and given < least:
            raise ValueError(
                f"memory must be at least {bytes_text(least, up=True)} for this selection, got {bytes_text(given)}"
            )
        return Budget(shape, cost, max(default_memory(), least) if given is None else given)

    def ground(self, budget: Budget | None = None) -> Ground:
        how = {name: getattr(self.options, name) for name in ("threads", "memory", "progress")}
        if budget is not None:
            how |= {"picks": budget.shape.k, "spare": budget.spare}
        backend = resolve(self.options.backend)
        if backend == "triton":
            how["precision"] = self.options.precision
        return Ground(self.x, self.kind, backend, **how)

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


def versions(backend: str = "numpy") -> dict[str, str]:
    """Of what a selection on this backend depends on."""
    found = {"smartgpu": __version__, "python": platform.python_version(), "numpy": np.__version__}
    if backend == "triton":
        found |= {name: importlib.import_module(name).__version__ for name in ("torch", "triton")}
    return found
