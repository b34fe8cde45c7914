"""Similarities between some rows and others, by any backend."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from smartgpu.backends import find_backend
from smartgpu.similarity import Similarity
from smartgpu.workers import Workers

PIECE = 512  # rows of a batch that are looked at together, at most
PAIRS = 1 << 20  # similarities that a piece holds


class Between:
    """Similarities between rows, on any backend: quanta (|a|, |b|) int32 and the quantum."""

    def __init__(self, kind: Similarity, backend: str, how: dict[str, Any]):
        self.kind, self.backend, self.how = kind, backend, how
        self.pairs, self.dtype = 0, "float64"

    def __call__(
        self, a: Sequence[np.ndarray], b: np.ndarray, within: bool = False
    ) -> tuple[np.ndarray, float]:
        """a: sets of rows, one after the other, and then b (m, d) itself where `within`."""
        engine = find_backend(self.backend)
        pool = np.concatenate([b, *(rows for rows in a if len(rows))])
        mine, others = np.arange(len(b)), np.arange(len(b), len(pool))
        with engine.failures(pool):
            geometry = engine.prepare(
                self.kind, pool, None, workers=Workers(self.how.get("threads")), **self.how
            )
            backend = engine(geometry, **self.how)
            q = backend.block(np.concatenate([others, mine]) if within else others, mine)
        self.pairs, self.dtype = self.pairs + q.size, backend.dtype
        return q, backend.quantum
