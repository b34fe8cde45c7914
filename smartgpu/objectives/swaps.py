"""What a search for swaps knows of facility location: of each represented row its nearest chosen rows.

With first_i and second_i the similarities of row i to its two nearest chosen rows (no lower than its floor), bringing
candidate j in for chosen row m changes f by G_j + C_jm - loss_m:

    loss_m = sum of w_i (first_i - second_i)                      over the rows i whose nearest is m
    G_j    = sum of w_i max(q_ij - first_i, 0)                    over all rows
    C_jm   = sum of w_i max(min(q_ij, first_i) - second_i, 0)     over the rows i whose nearest is m

so losses are shared by all candidates, and only pairs with q_ij > second_i matter (Schubert and Rousseeuw, Faster
k-Medoids Clustering, SISAP 2019, and FastPAM, Information Systems 2021, for dissimilarities). All are exact integers.

A row keeps its nearest few chosen rows at hand, and how similar any other can be at most. Where swaps use these up, the
row's second nearest is not known: until repair() has found it, its nearest row may not go.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from smartgpu.objectives.facility_location_state import FacilityLocationState

SHARE, FEW = 3, 600  # candidates that are looked at again and again: for each chosen row, and at least
PAIRS = 1 << 23  # of them, about, and no more
DEPTH = 4  # nearest chosen rows that are looked up
WIDTH = 6  # and that are kept at most, with those that come in

KEPT = ("q", "slot", "count", "unknown", "first", "second", "owner", "loss", "locked")


def looked_at(n: int, r: int, k: int) -> tuple[int, int]:
    """(candidates to look at again and again, about how many pairs these and the chosen rows have), from shapes."""
    share = min(1.0, 2 * DEPTH / max(k, 1))  # of the rows, that a candidate has pairs with
    few = min(max(SHARE * k, min(FEW, 40 * k)), int(PAIRS / (share * r)) + 1, n)
    return few, int(share * r * min(few + k, n))


class Nearest:
    """The nearest chosen rows of every represented row, as rows come and go. Slots number the chosen rows.

    q, slot     (r, WIDTH) int32, the most similar first; -1 beyond the `count` (r,) that are known
    unknown     (r,) int32, no other chosen row is more similar than that
    first, second, owner   as Standing has them; loss (k,) int64
    moved       (r,) bool, rows of which first, second or owner changed since somebody cleared it
    locked      (k,) bool, slots whose row may not go for now: a row nearest to it does not know its second nearest
    """

    def __init__(self, state: FacilityLocationState, low: np.ndarray, chosen: np.ndarray):
        """low (r,) int32: no row falls below it, whatever is chosen."""
        backend = state.backend
        self.state, self.low, self.weights = state, low, state.whole
        self.loss = np.zeros(len(chosen), np.int64)
        r = backend.r
        self.q, self.slot = (np.full((r, WIDTH), -1, np.int32) for _ in range(2))
        self.count, self.unknown = np.zeros(r, np.int32), np.zeros(r, np.int32)
        self.first, self.second, self.owner = (np.zeros(r, np.int32) for _ in range(3))
        room = (backend.memory - backend.held()) / backend.pair_bytes
        self.pairs = backend.pairs_for_swaps(state.weights, state.cap, room)
        self.uncertain: list[np.ndarray] = []
        self.locked = np.zeros(len(chosen), bool)
        self.moved = np.zeros(r, bool)
        every = np.arange(r)
        self.pairs.build(self._look(every, None, chosen), *_taken(state))
        self._note(every)

    def _look(self, rows: np.ndarray, some: np.ndarray | None, chosen: np.ndarray) -> np.ndarray:
        """Look up the nearest chosen rows; returns the level (m,) above which pairs with them can matter."""
        q, slot = self.pairs.top(chosen, DEPTH, some)
        low = self.low[rows]
        known = (slot >= 0) & (q > low[:, None])
        count = known.sum(axis=1)
        last = np.where(count == DEPTH, q[:, -1], low)
        self.q[rows], self.slot[rows] = -1, -1
        self.q[rows, :DEPTH], self.slot[rows, :DEPTH] = np.where(known, q, -1), np.where(known, slot, -1)
        self.count[rows], self.unknown[rows] = count, last
        return np.where(count == DEPTH, last - 1, low).astype(np.int32)

    def _note(self, rows: np.ndarray) -> None:
        """Nearest and second nearest of some rows, and what they make chosen rows worth."""
        q, low = self.q[rows], self.low[rows]
        first = np.maximum(q[:, 0], np.maximum(low, np.where(self.count[rows] < 1, self.unknown[rows], 0)))
        rest = np.where(self.count[rows] < 2, self.unknown[rows], q[:, 1])
        second = np.maximum(rest, low)
        owner = np.where(first > second, self.slot[rows, 0], -1)
        self.first[rows], self.second[rows], self.owner[rows] = first, second, owner
        self._weigh(rows, np.add)

    def _weigh(self, rows: np.ndarray, how: np.ufunc) -> None:
        owned = rows[self.owner[rows] >= 0]
        between = (self.first[owned] - self.second[owned]).astype(np.int64)
        if self.weights is not None:
            between *= self.weights[owned]
        how.at(self.loss, self.owner[owned], between)

    def save(self) -> list[np.ndarray]:
        """What restore() goes back to, unless rows were repaired since."""
        return [getattr(self, name).copy() for name in KEPT]

    def restore(self, saved: list[np.ndarray]) -> None:
        for name, value in zip(KEPT, saved, strict=True):
            getattr(self, name)[...] = value
        self.uncertain = []

    def value(self) -> int:
        """sum_i w_i first_i, quanta."""
        first = self.first.astype(np.int64)
        return int((first if self.weights is None else first * self.weights).sum())

    def weigh(self, rows: np.ndarray, q: np.ndarray) -> tuple[int, np.ndarray]:
        """(G_j, C_jm (k,) int64) of a candidate with these rows and quanta, all of its pairs that can matter."""
        second = self.second.take(rows)
        alive = (q > second).nonzero()[0]
        rows, q, second = rows.take(alive), q.take(alive), second.take(alive)
        first, owner = self.first.take(rows), self.owner.take(rows)
        over = np.maximum(q - first, 0).astype(np.int64)
        short = (np.minimum(q, first) - second).astype(np.int64)
        if self.weights is not None:
            weight = self.weights.take(rows)
            over *= weight
            short *= weight
        there = (owner >= 0).nonzero()[0]
        out = np.zeros(len(self.loss), np.int64)
        np.add.at(out, owner.take(there), short.take(there))
        return int(over.sum()), out

    def swap(self, slot: int, gone: tuple, come: tuple) -> None:
        """The row of the slot goes, another comes into it; gone and come are their (rows, quanta)."""
        rows, _ = gone
        there = self.slot.take(rows, axis=0) == slot
        hit = there.any(axis=1)
        out, at = rows[hit].astype(np.int64), there[hit].argmax(axis=1)
        rows, q = come
        use = q > np.maximum(self.low.take(rows), self.unknown.take(rows) - 1)
        into, q = rows[use].astype(np.int64), q[use]
        touched = np.unique(np.concatenate([out, into]))
        before = [table[touched] for table in (self.first, self.second, self.owner)]
        self._weigh(touched, np.subtract)
        self._drop(out, at)
        self._put(into, q, slot)
        self._note(touched)
        after = [table[touched] for table in (self.first, self.second, self.owner)]
        self.moved[touched[np.any([a != b for a, b in zip(before, after, strict=True)], axis=0)]] = True
        short = touched[(self.count[touched] < 2) & (self.unknown[touched] > self.low[touched])]
        if len(short):
            self.uncertain.append(short)
            self.locked[self.slot[short, 0]] = True

    def _drop(self, rows: np.ndarray, at: np.ndarray) -> None:
        place = np.arange(WIDTH)
        source = place + (place >= at[:, None])
        for table in (self.q, self.slot):
            held = np.concatenate([table[rows], np.full((len(rows), 1), -1, np.int32)], axis=1)
            table[rows] = np.take_along_axis(held, source, axis=1)
        self.count[rows] -= 1

    def _put(self, rows: np.ndarray, q: np.ndarray, slot: int) -> None:
        place = np.arange(WIDTH)
        at = (self.q[rows] >= q[:, None]).sum(axis=1)
        full = self.count[rows] == WIDTH
        lost = np.where(at < WIDTH, self.q[rows, -1], q)  # what is beyond the last place from here on
        self.unknown[rows] = np.where(full, np.maximum(self.unknown[rows], lost), self.unknown[rows])
        rows, q, at, full = (a[at < WIDTH] for a in (rows, q, at, full))
        source = place - (place > at[:, None])
        for table, value in ((self.q, q), (self.slot, slot)):
            moved = np.take_along_axis(table[rows], source, axis=1)
            moved[np.arange(len(rows)), at] = value
            table[rows] = moved
        self.count[rows] += ~full

    def repair(self, chosen: np.ndarray) -> int:
        """Look up what was used up, and give the pairs that this makes matter. Returns how many rows it was."""
        if not self.uncertain:
            return 0
        rows = np.unique(np.concatenate(self.uncertain))
        self.uncertain, self.locked[:] = [], False
        self._weigh(rows, np.subtract)
        self.pairs.extend(rows, self._look(rows, rows, chosen))
        self._note(rows)
        return len(rows)


def keep_survivors(state: Any) -> None:
    """Have greedy keep its survivors as they were stored, where the backend's search starts from them."""
    cover = terms(state)[0]
    if cover is not None:
        cover.keeps = cover.backend.keeps_survivors


def _taken(state: FacilityLocationState) -> tuple:
    """(greedy's survivors, the level (r,) that they are above), which the state holds no more; () without."""
    found, state.stored = state.stored, None
    return found or ()


def terms(state: Any) -> tuple[Any, float, np.ndarray | None]:
    """A state as (facility location's state or None, its factor, scores (n,) or None): what can be searched for swaps.

    Raises TypeError for others; Objective.need_swaps() has told of them before any work.
    """
    from smartgpu.objectives.facility_location_state import FacilityLocationState
    from smartgpu.objectives.modular import ModularState
    from smartgpu.objectives.weighted_sum import WeightedSumState

    inner = state.terms if isinstance(state, WeightedSumState) else [(1.0, state)]
    cover, factor, scores = None, 0.0, None
    for c, term in inner:
        if isinstance(term, ModularState):
            scores = c * term.scores if scores is None else scores + c * term.scores
        elif isinstance(term, FacilityLocationState) and cover is None:
            cover, factor = term, c
        else:
            raise TypeError(f"no swaps are known for {type(term).__name__} here")
    return cover, factor, scores
