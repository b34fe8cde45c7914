"""Sieve-streaming++: sets that grow by every row whose gain reaches their threshold (Kazemi et al., ICML 2019)."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import groupby
from operator import itemgetter
from typing import Any, NamedTuple

import numpy as np

from smartgpu.sieve.values import Look, Value
from smartgpu.workers import Workers, one_thread


@dataclass(frozen=True)
class Sieve:
    """The set of one threshold: row numbers in the order of their picks, f, and what the value keeps of it."""

    keys: tuple[int, ...]
    value: float
    worth: Any


@dataclass(frozen=True)
class Sieves:
    """The sets of all thresholds (1 + epsilon)^i from max(found, top) / (2 k (1 + epsilon)) to top.

    top is the largest gain of a row alone so far, found the largest f of a set. A row joins every set of fewer than k
    rows to which it adds the threshold or more (and alone as well, which says nothing more where f is submodular). The
    best set has at least (1/2 - epsilon) f(OPT) where f is monotone and submodular; all together hold O(k / epsilon)
    rows. Which rows come together changes nothing. Never changed in place: take() gives the sieves after a batch.
    """

    k: int
    epsilon: float
    alive: dict[int, Sieve] = field(default_factory=dict)  # by i; none of them is empty
    best: Sieve | None = None  # found, also where its threshold was dropped
    top: float = 0.0
    least: int | None = None  # thresholds below were dropped
    evaluations: int = 0

    @property
    def found(self) -> float:
        return 0.0 if self.best is None else self.best.value

    @property
    def keys(self) -> set[int]:
        """The rows that any set holds."""
        sets = [*self.alive.values(), *([self.best] if self.best else [])]
        return {key for sieve in sets for key in sieve.keys}

    def take(self, value: Value, look: Look, start: int, workers: Workers) -> Sieves:
        """The sieves after a batch, whose rows are numbered from `start`."""
        tops = np.maximum.accumulate(np.maximum(look.first, self.top))
        if tops[-1] <= 0:
            return replace(self, evaluations=self.evaluations + len(tops))
        low = self._lowest(self.found, float(tops[tops > 0][0]))
        every = range(low, exponent(float(tops[-1]), self.epsilon, up=False) + 1)
        nothing = Sieve((), 0.0, value.nothing())
        before = {i: self.alive.get(i, nothing) for i in every}
        asked = [i for i in every if len(before[i].keys) < self.k]
        with one_thread():
            sifted = workers.run(lambda i: self._sift(i, before[i], look, start), asked)
        after = before | dict(zip(asked, (sift.sieve for sift in sifted), strict=True))
        best, found, won = self.best, self.found, None
        values = dict(zip(asked, (sift.values for sift in sifted), strict=True))
        steps = [(t, i, at) for i, sift in zip(asked, sifted, strict=True) for at, t in enumerate(sift.rows)]
        for t, group in groupby(sorted(steps), itemgetter(0)):  # row by row: what is dropped counts no more
            low = self._lowest(found, float(tops[t]))
            for _, i, at in group:
                if i >= low and values[i][at] > found:
                    found, won = values[i][at], (i, at + 1)
        if won is not None:
            i, picks = won
            best = after[i] if picks == len(values[i]) else self._sift(i, before[i], look, start, picks).sieve
        low = self._lowest(found, float(tops[-1]))
        alive = {i: sieve for i, sieve in after.items() if i >= low and sieve.keys}
        work = len(tops) + sum(sift.looked for sift in sifted)
        return replace(
            self, alive=alive, best=best, top=float(tops[-1]), least=low, evaluations=self.evaluations + work
        )

    def renewed(self, sets: dict[Any, Sieve]) -> Sieves:
        """The sieves after f has changed: `sets` under the keys of alive, and the best under None."""
        best = max(sets.values(), key=lambda sieve: sieve.value, default=None)
        return replace(self, alive={i: sets[i] for i in self.alive}, best=best)

    def _lowest(self, found: float, top: float) -> int:
        low = exponent(max(found, top) / (2 * self.k * (1 + self.epsilon)), self.epsilon, up=True)
        return low if self.least is None else max(low, self.least)

    def _sift(self, i: int, sieve: Sieve, look: Look, start: int, most: int | None = None) -> Sifted:
        """The set of one threshold after the batch; after `most` picks from it, if given."""
        least, room = (1 + self.epsilon) ** i, self.k - len(sieve.keys)
        room = room if most is None else min(room, most)
        cols = np.flatnonzero(look.first >= least)
        if not len(cols):
            return Sifted(sieve, [], [], 0)
        adding = look.adding(sieve.worth, sieve.keys, cols)
        rows, values, value, at = [], [], sieve.value, 0
        while len(rows) < room:
            reach = np.flatnonzero(adding.gains[at:] >= least)
            if not len(reach):
                break
            b = at + int(reach[0])
            gain, at = adding.gain(b), b + 1
            if gain >= least:
                adding.accept(b)
                value += gain
                rows.append(int(cols[b]))
                values.append(value)
        if rows:
            sieve = Sieve((*sieve.keys, *(start + b for b in rows)), value, adding.worth)
        return Sifted(sieve, rows, values, len(cols))


class Sifted(NamedTuple):
    """A set after a batch: which rows of the batch joined it, f after each, and how many gains were computed."""

    sieve: Sieve
    rows: list[int]
    values: list[float]
    looked: int


def counts(k: int, epsilon: float) -> list[int]:
    """How many rows the set of each threshold can hold at most, largest first: |S| threshold <= f(S) <= found."""
    lowest, out = 1 / (2 * k * (1 + epsilon)), []
    while lowest <= 1:
        out.append(min(k, int(1 / lowest)))
        lowest *= 1 + epsilon
    return out


def exponent(value: float, epsilon: float, up: bool) -> int:
    """The least i with (1 + epsilon)^i >= value, or the largest with <= value; value > 0."""
    i = round(np.log(value) / np.log1p(epsilon))
    while (1 + epsilon) ** i < value:
        i += 1
    while (1 + epsilon) ** (i - 1) >= value:
        i -= 1
    return i if up or (1 + epsilon) ** i == value else i - 1
