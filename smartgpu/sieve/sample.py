"""A uniform sample of a stream, in one pass (reservoir sampling; Vitter, 1985)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

ROW = 320  # bytes of a row that is held, beside its features: an array's head, places in tables


@dataclass
class Sample:
    """A uniform sample of a stream: each row replaces one that is held with probability size / rows so far."""

    size: int
    rng: np.random.Generator

    def __post_init__(self) -> None:
        self.parts: list[np.ndarray] = []  # until it is full
        self.table: np.ndarray | None = None
        self.keys: list[int] = []
        self.ids: list[int] = []
        self.drawn: dict[int, tuple[np.ndarray, int, int]] = {}  # by place, until settle()

    @property
    def full(self) -> bool:
        return len(self.keys) == self.size

    @property
    def rows(self) -> np.ndarray | None:
        if self.table is None and self.parts:
            self.table, self.parts = np.concatenate(self.parts), []
        return self.table

    @property
    def nbytes(self) -> int:
        held = [*self.parts, *([] if self.table is None else [self.table])]
        held += [row for row, _, _ in self.drawn.values()]
        return sum(rows.nbytes for rows in held) + ROW * (len(self.keys) + len(self.drawn))

    def add(self, x: np.ndarray, ids: np.ndarray, start: int) -> int:
        """The first rows, as many as there is room for."""
        room = self.size - len(self.keys)
        held = [] if self.table is None else [self.table]
        self.parts, self.table = [*held, *self.parts, x[:room].copy()], None
        self.keys += range(start, start + len(x[:room]))
        self.ids += ids[:room].tolist()
        return len(x[:room])

    def draw(self, x: np.ndarray, ids: np.ndarray, start: int) -> None:
        """Which of these rows, numbered from `start`, will be held, and where."""
        places = (self.rng.random(len(x)) * np.arange(start + 1, start + len(x) + 1)).astype(np.int64)
        for b in np.flatnonzero(places < self.size):
            self.drawn[int(places[b])] = x[b].copy(), start + int(b), int(ids[b])

    def settle(self) -> tuple[np.ndarray, np.ndarray]:
        """Hold the rows that were drawn: the places that change, and the rows there now."""
        at = np.array(sorted(self.drawn), np.int64)
        rows = np.stack([self.drawn[place][0] for place in at]) if len(at) else np.empty((0, 0))
        self.table = self.rows.copy()
        for place in at.tolist():
            self.table[place], self.keys[place], self.ids[place] = self.drawn[place]
        self.drawn = {}
        return at, rows
