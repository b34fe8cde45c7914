"""How long each phase of a call takes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Seconds(dict[str, float]):
    """Seconds by phase, added up: `with seconds("write"): ...`."""

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self[phase] = self.get(phase, 0.0) + time.perf_counter() - start

    def rounded(self) -> dict[str, float]:
        """For a file."""
        return {phase: round(value, 4) for phase, value in self.items()}
