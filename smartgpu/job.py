"""The checked arguments of one call: what every entry point does first."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from typing import Any

import numpy as np

from smartgpu.arrays import as_matrix, as_similarity_matrix
from smartgpu.backends import resolve
from smartgpu.objectives import Ground, Objective, as_objective
from smartgpu.options import Options
from smartgpu.similarity import Matrix, Precomputed, Similarity, as_similarity
from smartgpu.version import __version__


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
        x = as_similarity_matrix(X) if isinstance(kind, Precomputed) else as_matrix(X)
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

    def ground(self) -> Ground:
        how = {name: getattr(self.options, name) for name in ("threads", "memory", "progress")}
        return Ground(self.x, self.kind, resolve(self.options.backend), **how)

    def described(self) -> dict[str, Any]:
        return {
            "n": self.n,
            "objective": self.objective.describe(),
            "similarity": self.kind.describe(),
            "options": self.options.to_dict(),
            "versions": versions(),
            "_spec": self.kind,
        }


def versions() -> dict[str, str]:
    return {"smartgpu": __version__, "python": platform.python_version(), "numpy": np.__version__}
