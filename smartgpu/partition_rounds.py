"""The rounds of partition greedy before the last: what the parts of a partition choose, each by itself.

What passes through memory are parts; the pool stays in its file. Parts are dealt out to processes, and what they have
chosen is kept in a checkpoint, with which any number of processes goes on.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Iterator
from typing import Any

import numpy as np

from smartgpu.backends import resolve
from smartgpu.checkpoint import Chosen, PartsCheckpoint, fingerprint
from smartgpu.groups import deal
from smartgpu.job import Job, versions
from smartgpu.labels import Labels
from smartgpu.objectives import FacilityLocation
from smartgpu.options import Options, bytes_text
from smartgpu.ranks import Alone, Ranks
from smartgpu.selecting import Call, Wanted, attempt
from smartgpu.similarity import Similarity
from smartgpu.workers import default_memory, one_thread

ROWS = 1 << 14  # of a part, where nothing is said
BLOCK = 1 << 16  # rows read at once
EXCHANGES, EACH = (
    16,
    4,
)  # of what processes have chosen in a round, at most, where that is kept; parts of each between
log = logging.getLogger("smartgpu")


@dataclasses.dataclass
class Rounds:
    """From checked arguments to the candidates of the last round.

    weights    (n,) float64, or None
    parts      of the first round, and so of how many rows later parts are; None until plan() says
    partition  "random", "cluster", or the labels of the rows
    goal       how many candidates shall be left
    count      of rounds, the last one not counted
    """

    x: np.ndarray
    kind: Similarity
    weights: np.ndarray | None
    parts: int | None
    partition: str | Labels
    goal: float
    count: int
    options: Options
    memory: int = 0

    def plan(self, ranks: Ranks | Alone) -> None:
        """Set what the memory of the processes decides, the same on all of them."""
        own = self.options.memory
        self.memory = own or default_memory() // ranks.beside
        if self.parts is None:
            rows = self._fitting()
            rows = int(ranks.each(rows, "rows of a part").min()) if ranks.size > 1 else rows
            self.parts = -(-len(self.x) // rows)
        least = self._least(-(-len(self.x) // self.parts))
        if own is not None and own < least:
            raise ValueError(
                f"memory must be at least {bytes_text(least, up=True)} for {self.parts} parts, got {bytes_text(own)}"
            )

    def _fitting(self) -> int:
        """Rows of a part that fit the memory beside what is read at once."""
        rows = min(ROWS, len(self.x))
        while rows > 256 and self._least(rows) > self.memory:
            rows //= 2
        return rows

    def _least(self, rows: int) -> int:
        """Bytes for a part of so many rows: half of the memory is for what is read."""
        shape = np.broadcast_to(np.zeros((), self.x.dtype), (rows, self.x.shape[1]))
        job = Job.check(shape, FacilityLocation(), self.kind, self.alone(None)).sized(1)
        return 2 * job.budget(rows).cost.least

    def alone(self, memory: int | None) -> Options:
        """The options of a process by itself."""
        aside = {"process_group": None, "checkpoint": None, "report": None, "plan": False, "progress": False}
        return dataclasses.replace(self.options, memory=memory, **aside)

    def record(self) -> dict[str, Any]:
        """All that the candidates depend on."""
        how = self.options.to_dict()
        names = ("maximizer", "tie_break", "epsilon", "seed", "precision")
        labels = self.partition if isinstance(self.partition, str) else fingerprint(self.partition.codes)
        backend = resolve(self.options.backend)
        return {
            "data": self._data,
            "similarity": self.kind.describe(),
            "weights": None if self.weights is None else fingerprint(self.weights),
            "partition": labels,
            "parts": self.parts,
            "candidates": self.goal,
            "rounds": self.count + 1,
            "options": {"backend": backend, **{name: how[name] for name in names}},
            "versions": versions(backend),
        }

    @functools.cached_property
    def _data(self) -> str:
        return fingerprint(self.x)

    # -- the rounds ------------------------------------------------------------------------------------------------

    def run(
        self, ranks: Ranks | Alone, kept: PartsCheckpoint | None
    ) -> tuple[np.ndarray, int, list[dict[str, int]]]:
        """The candidates (c,) ascending, how many gains were evaluated, and what each round was.

        From the second round on a row counts for all rows of its part before that were nearest to it.
        """
        done: dict[tuple[int, int], Chosen] = {}
        if kept is not None:
            done = kept.load() if ranks.size == 1 else ranks.first(kept.load)
            if done:
                log.info("partition greedy goes on: %d parts are done in %s", len(done), kept.path)
        n, rows, weights, said = len(self.x), None, self.weights, []
        share = min(1.0, self.goal / n)
        for stage in range(self.count):
            groups = _groups(self._number(stage, rows, ranks))
            count = n if rows is None else len(rows)
            target = self.goal if stage == self.count - 1 else n * share ** ((stage + 1) / self.count)
            log.info(
                "partition greedy, round %d: %d parts of up to %d rows, about %d candidates; %s a process",
                *(stage + 1, len(groups), max(map(len, groups)), min(target, count), bytes_text(self.memory)),
            )
            work = _Round(self, stage, rows, weights, groups, target)
            work.run(ranks, done, kept if ranks.rank == 0 else None)
            mine = [done[stage, g] for g in range(len(groups))]
            rows = np.concatenate([got.rows for got in mine])
            order = np.argsort(rows)
            rows, weights = rows[order], np.concatenate([got.weights for got in mine])[order]
            said.append({"parts": len(groups), "candidates": len(rows)})
        return rows, sum(got.evaluations for got in done.values()), said

    def _number(self, stage: int, rows: np.ndarray | None, ranks: Ranks | Alone) -> np.ndarray:
        """The part of each of these rows (None: of all), int32."""
        n, parts = len(self.x), self.parts
        if rows is not None:
            most = -(-n // parts)  # rows of a part, in every round
            n, parts = len(rows), -(-len(rows) // most)
        rng = np.random.default_rng(self.options.seed if stage == 0 else [self.options.seed, 0, stage])
        if not isinstance(self.partition, str):
            codes = self.partition.codes if rows is None else self.partition.codes[rows]
            return codes.astype(np.int32)
        if self.partition == "random":
            return rng.integers(parts, size=n, dtype=np.int32)
        middle = np.sort(rng.choice(n, parts, replace=False))
        centres = _units(self.x[middle if rows is None else rows[middle]])
        out = np.zeros(n, np.int32)
        for b, i in enumerate(range(0, n, BLOCK)):
            part = slice(i, min(i + BLOCK, n))
            if b % ranks.size == ranks.rank:  # the same products, whoever makes them
                with one_thread():
                    block = np.asarray(self.x[part if rows is None else rows[part]])
                    out[part] = (_units(block) @ centres.T).argmax(axis=1)
        out = ranks.sum(out, "parts") if ranks.size > 1 else out
        return _split_large(out, 2 * -(-n // parts))

    def gather(self, groups: list[np.ndarray]) -> list[np.ndarray]:
        """The features of some sets of rows, each ascending: one pass over the pool, in order."""
        out = [np.empty((len(rows), self.x.shape[1]), self.x.dtype) for rows in groups]
        for part, block in blocks(self.x):
            for rows, there in zip(groups, out, strict=True):
                first, last = np.searchsorted(rows, (part.start, part.stop))
                there[first:last] = block[rows[first:last] - part.start]
        return out


@dataclasses.dataclass
class _Round:
    """One round: the groups of places in `rows` that are its parts, and how many rows all choose together."""

    rounds: Rounds
    stage: int
    rows: np.ndarray | None
    weights: np.ndarray | None  # of the rows
    groups: list[np.ndarray]
    target: float

    def run(
        self, ranks: Ranks | Alone, done: dict[tuple[int, int], Chosen], kept: PartsCheckpoint | None
    ) -> None:
        """What the parts choose that are not done, into `done` on all processes."""
        todo = {g: float(len(at)) ** 2 for g, at in enumerate(self.groups) if (self.stage, g) not in done}
        exchanges = 1
        if self.rounds.options.checkpoint is not None and ranks.size > 1:
            exchanges = max(1, min(EXCHANGES, len(todo) // (EACH * ranks.size)))
        for hands in deal(todo, ranks.size, exchanges):
            mine: dict[tuple[int, int], Chosen] = {}
            try:
                for g, got in self._choose(hands[ranks.rank]):
                    mine[self.stage, g] = got
                    if kept is not None and kept.due:
                        kept.save({**done, **mine})
            finally:  # of an interruption or an error too
                done |= mine
                if kept is not None:
                    kept.save(done, force=True)
            if ranks.size > 1:
                for found in ranks.share_all(mine):
                    done |= found
                if kept is not None:
                    kept.save(done, force=True)

    def _choose(self, mine: list[int]) -> Iterator[tuple[int, Chosen]]:
        options = self.rounds.alone(self.rounds.memory // 2)
        for some in self._at_once(mine):
            places = [self.groups[g] if self.rows is None else self.rows[self.groups[g]] for g in some]
            for g, rows, x in zip(some, places, self.rounds.gather(places), strict=True):
                yield g, self._one(x, rows, self.groups[g], options)

    def _at_once(self, mine: list[int]) -> Iterator[list[int]]:
        """Parts to read in one pass: as many as a quarter of the memory holds."""
        x, some, held = self.rounds.x, [], 0
        room = self.rounds.memory // 4 // (x.shape[1] * x.itemsize)
        for g in mine:
            size = len(self.groups[g])
            if some and held + size > room:
                yield some
                some, held = [], 0
            some.append(g)
            held += size
        if some:
            yield some

    def _one(self, x: np.ndarray, rows: np.ndarray, at: np.ndarray, options: Options) -> Chosen:
        """What the part with these pool rows chooses."""
        every = len(self.rounds.x) if self.rows is None else len(self.rows)
        count = min(len(rows), max(1, round(self.target * len(rows) / every)))
        weights = None if self.weights is None else self.weights[at]
        spec = FacilityLocation(weights if weights is None or weights.any() else None)
        kind, wanted = self.rounds.kind, Wanted(count)
        got = attempt(lambda how: Call.check(x, spec, kind, how, wanted), options)
        chosen, stands = got.indices, np.zeros(count)
        if self.stage < self.rounds.count - 1:  # for a round that represents these rows alone
            order = np.sort(chosen)
            backend = Job.check(x, FacilityLocation(), kind, options).ground().backend()
            with one_thread():
                nearest, _ = backend.nearest(order)
            sums = np.bincount(nearest, weights, minlength=count)
            stands = sums[np.searchsorted(order, chosen)]
        return Chosen(rows[chosen], stands, got.evaluations)


def blocks(x: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """The rows of a pool, in order."""
    for i in range(0, len(x), BLOCK):
        part = slice(i, min(i + BLOCK, len(x)))
        yield part, np.asarray(x[part])


def _groups(numbers: np.ndarray) -> list[np.ndarray]:
    """The places of each number that is there, ascending."""
    order = np.argsort(numbers, kind="stable")
    ends = np.cumsum(np.bincount(numbers))
    return [places for places in np.split(order, ends[:-1]) if len(places)]


def _units(x: np.ndarray) -> np.ndarray:
    x = x.astype(np.float32)
    norms = np.sqrt(np.einsum("ij,ij->i", x, x))
    return x / np.where(norms > 0, norms, 1)[:, None]


def _split_large(numbers: np.ndarray, most: int) -> np.ndarray:
    """Parts of more than `most` rows cut into several, their rows in turn."""
    counts, last = np.bincount(numbers), int(numbers.max())
    for part in np.flatnonzero(counts > most):
        rows = np.flatnonzero(numbers == part)
        pieces = -(-len(rows) // most)
        turn = np.arange(len(rows)) % pieces
        numbers[rows[turn > 0]] = last + turn[turn > 0]
        last += pieces - 1
    return numbers
