"""Pools for which exact greedy takes too long, or that are larger than memory: partition greedy in two rounds.

The first round chooses a few times too many rows, each part of a partition by itself; the second chooses k of these for
the whole pool, by exact greedy on the true objective. What passes through memory are parts, and the rows that a process
represents; the pool stays in its file.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from smartgpu.arrays import as_count, as_matrix
from smartgpu.backends import resolve
from smartgpu.checkpoint import Checkpoint, differences, fingerprint
from smartgpu.groups import deal
from smartgpu.job import Job, versions
from smartgpu.labels import as_labels
from smartgpu.objectives import FacilityLocation, State
from smartgpu.objectives.base import per_row
from smartgpu.options import Options, bytes_text, make_options
from smartgpu.ranks import Alone, Ranks, join
from smartgpu.selecting import Call, Wanted, attempt, check_checkpoint
from smartgpu.selection import Selection
from smartgpu.similarity import (
    Cosine,
    CosineShifted,
    CosineSquared,
    ExpEuclidean,
    Rbf,
    Similarity,
    as_similarity,
    choose,
)
from smartgpu.workers import default_memory, one_thread

PARTITIONS = ("random", "cluster")
ROWS = 1 << 14  # of a part, where nothing is said
BLOCK = 1 << 16  # rows read at once
KINDS = (Cosine, CosineShifted, CosineSquared, Rbf, ExpEuclidean)  # a row's features are its own
log = logging.getLogger("smartgpu")


def select_partitioned(
    X: Any,
    k: int | float,
    similarity: str | Similarity = "cosine",
    *,
    weights: Any = None,
    parts: int | None = None,
    partition: Any = "random",
    candidates: float = 10.0,
    sample: int = 1000,
    **options: Any,
) -> Selection:
    """Choose k rows by facility location, approximately, where select() would take too long or too much memory.

    X           (n, d) embeddings: an array, or a memmap (np.load(path, mmap_mode="r")) of any size, read in blocks
    k           rows to choose: an int is a count, a float in (0, 1] a share
    similarity  cosine, cosine_shifted, cosine_squared, rbf or exp_euclidean
    weights     (n,) numbers >= 0, what each row counts; None is 1 for all
    parts       of the partition; None is as many as make parts of about 16,384 rows, fewer where memory is short
    partition   "random", "cluster" (each row with the nearest of as many random rows), or (n,) labels
    candidates  the first round chooses so many times k rows, of each part in proportion to its rows
    sample      random rows whose gains are looked at in the end, to estimate what was lost; 0: none
    options     fields of smartgpu.Options. memory: what a process may take beyond X. With process_group the parts are
                dealt out, and the represented rows of the second round; checkpoint keeps the picks of the second

    Returns a Selection with exact=False; value is f(S) on the whole pool, gains are those of the second round, and
    `approximation` says how rows were found: parts, candidates, seed, total (f(V), None for kinds whose largest
    similarity of a row is not its own), share (value / total), and of the sample its largest and mean gain after the
    last pick: about as much as any row could still add, beside the last gain. Raises as select() does.

    O(n m d) for parts of m rows, then O(n c d) for c candidates, a few times over. With k rows of every part, random
    partition greedy has in expectation a constant share of f(OPT) (Mirzasoleiman et al., NIPS 2013; Barbosa et al.,
    ICML 2015); with fewer, as here, that is not proven.
    """
    how = make_options(options)
    ranks = join(how)
    search = ranks.all_of(
        lambda: _Search.check(X, k, similarity, weights, parts, partition, candidates, sample, how)
    )
    ranks.agree(search.record, differences)
    ranks.all_of(lambda: search.check_before() if ranks.rank == 0 else None)
    with ranks.running():
        start = time.perf_counter()
        numbers = search.number(ranks)
        union, evaluations = search.first_round(numbers, ranks)
        seconds = time.perf_counter() - start
        total = search.total()
    return search.second_round(union, total, evaluations, seconds)


@dataclasses.dataclass
class _Search:
    """The checked arguments of one call, and its rounds."""

    x: np.ndarray
    kind: Similarity
    k: int
    weights: np.ndarray | None
    parts: int
    partition: Any
    candidates: float
    sample: int
    options: Options

    @classmethod
    def check(
        cls,
        X: Any,
        k: Any,
        similarity: Any,
        weights: Any,
        parts: Any,
        partition: Any,
        candidates: float,
        sample: int,
        options: Options,
    ) -> _Search:
        kind = as_similarity(similarity)
        if not isinstance(kind, KINDS):
            known = ", ".join(each.name for each in KINDS)
            raise ValueError(
                f"similarity must be one whose features are a row's own, {known}: got {kind.name}"
            )
        for name in ("polish", "fallback"):
            if getattr(options, name) is not None:
                raise ValueError(f"{name} is not for select_partitioned")
        check_checkpoint(options)
        x = as_matrix(X, "X")
        n = len(x)
        count = as_count(k, n)
        if not isinstance(candidates, (int, float)) or not 1 <= candidates < np.inf:
            raise ValueError(f"candidates must be a number >= 1, how many times k, got {candidates!r}")
        if isinstance(sample, bool) or not isinstance(sample, (int, np.integer)) or sample < 0:
            raise ValueError(f"sample must be an integer >= 0, got {sample!r}")
        if isinstance(partition, str):
            choose(partition, PARTITIONS, "partition")
        else:
            partition = as_labels(partition, n, "partition")
            parts = len(partition.names) if parts is None else parts
        if weights is not None:
            weights = per_row("weights", weights, n)
            FacilityLocation(weights)  # none below 0, some above
        search = cls(x, kind, count, weights, 0, partition, float(candidates), int(sample), options)
        most = n if parts is None else as_count(parts, n, "parts")
        search.parts = -(-n // search.fitting()) if parts is None else most
        return search

    @property
    def memory(self) -> int:
        return self.options.memory or default_memory()

    def fitting(self) -> int:
        """Rows of a part that fit the memory beside what is read at once."""
        rows = min(ROWS, len(self.x))
        while rows > 256:
            shape = np.broadcast_to(np.zeros((), self.x.dtype), (rows, self.x.shape[1]))
            job = Job.check(shape, FacilityLocation(), self.kind, self._plain(None)).sized(1)
            if 2 * job.budget(rows).cost.least <= self.memory:
                break
            rows //= 2
        return rows

    def _plain(self, memory: int | None) -> Options:
        """The options of a process by itself."""
        aside = {"process_group": None, "checkpoint": None, "report": None, "plan": False, "progress": False}
        return dataclasses.replace(self.options, memory=memory, **aside)

    def record(self) -> dict[str, Any]:
        """What processes must have in common."""
        names = ("k", "parts", "candidates", "sample")
        labels = self.partition if isinstance(self.partition, str) else fingerprint(self.partition.codes)
        how = self.options.to_dict()
        return {
            "data": fingerprint(self.x),
            "similarity": self.kind.describe(),
            "weights": None if self.weights is None else fingerprint(self.weights),
            "partition": labels,
            "versions": versions(resolve(self.options.backend)),
            "checkpoint": self.options.checkpoint and Path(self.options.checkpoint).name,
            **{name: getattr(self, name) for name in names},
            **{name: how[name] for name in how if name not in ("threads", "progress")},
        }

    def check_before(self) -> None:
        """Refuse a checkpoint of another pool before the first round; the second, which has rows, compares the rest."""
        path = self.options.checkpoint
        if path is not None and Path(path).exists():
            pool = FacilityLocation(self.weights, self.x)
            Checkpoint(path, {"objective": pool.describe(), "similarity": self.kind.describe()}).check()

    # -- the partition ---------------------------------------------------------------------------------------------

    def number(self, ranks: Ranks | Alone) -> np.ndarray:
        """(n,) int32, the part of each row."""
        rng, n = np.random.default_rng(self.options.seed), len(self.x)
        if not isinstance(self.partition, str):
            return self.partition.codes.astype(np.int32)
        if self.partition == "random":
            return rng.integers(self.parts, size=n, dtype=np.int32)
        centres = _units(self.x[np.sort(rng.choice(n, self.parts, replace=False))])
        out = np.zeros(n, np.int32)
        for b, (part, block) in enumerate(self._blocks()):
            if b % ranks.size == ranks.rank:  # the same products, whoever makes them
                with one_thread():
                    out[part] = (_units(block) @ centres.T).argmax(axis=1)
        out = ranks.sum(out, "parts") if ranks.size > 1 else out
        return _split_large(out, 2 * -(-n // self.parts))

    def _blocks(self) -> Iterator[tuple[slice, np.ndarray]]:
        for i in range(0, len(self.x), BLOCK):
            part = slice(i, min(i + BLOCK, len(self.x)))
            yield part, np.asarray(self.x[part])

    def gather(self, groups: list[np.ndarray]) -> list[np.ndarray]:
        """The features of some sets of rows, each ascending: one pass over the pool, in order."""
        out = [np.empty((len(rows), self.x.shape[1]), self.x.dtype) for rows in groups]
        for part, block in self._blocks():
            for rows, there in zip(groups, out, strict=True):
                first, last = np.searchsorted(rows, (part.start, part.stop))
                there[first:last] = block[rows[first:last] - part.start]
        return out

    # -- the rounds ------------------------------------------------------------------------------------------------

    def first_round(self, numbers: np.ndarray, ranks: Ranks | Alone) -> tuple[np.ndarray, int]:
        """The rows that all parts choose, ascending, and how many gains were evaluated for it."""
        order = np.argsort(numbers, kind="stable")
        ends = np.cumsum(np.bincount(numbers))
        groups = [rows for rows in np.split(order, ends[:-1]) if len(rows)]
        del order
        (hands,) = deal({g: float(len(rows)) ** 2 for g, rows in enumerate(groups)}, ranks.size, 1)
        most = max(len(rows) for rows in groups)
        log.info(
            "partition greedy: %d parts of up to %d rows, about %d candidates; %s a process",
            *(len(groups), most, int(self.candidates * self.k), bytes_text(self.memory)),
        )
        found, evaluations = [np.empty(0, np.int64)], 0
        options = self._plain(self.memory // 2)
        for some in self._at_once(hands[ranks.rank], groups):
            for g, x in zip(some, self.gather([groups[g] for g in some]), strict=True):
                rows = groups[g]
                count = min(len(rows), max(1, round(self.candidates * self.k * len(rows) / len(self.x))))
                picked = self._one(x, rows, count, options)
                found.append(rows[picked.indices])
                evaluations += picked.evaluations
        mine = np.concatenate(found), evaluations
        every = ranks.share_all(mine) if ranks.size > 1 else [mine]
        return np.sort(np.concatenate([rows for rows, _ in every])), sum(count for _, count in every)

    def _one(self, x: np.ndarray, rows: np.ndarray, count: int, options: Options) -> Selection:
        weights = None if self.weights is None else self.weights[rows]
        if weights is not None and not weights.any():
            weights = None
        wanted = Wanted(count)
        return attempt(lambda how: Call.check(x, FacilityLocation(weights), self.kind, how, wanted), options)

    def _at_once(self, mine: list[int], groups: list[np.ndarray]) -> Iterator[list[int]]:
        """Parts to read in one pass: as many as a quarter of the memory holds."""
        some: list[int] = []
        room = self.memory // 4 // (self.x.shape[1] * self.x.itemsize)
        for g in mine:
            if some and sum(len(groups[h]) for h in [*some, g]) > room:
                yield some
                some = []
            some.append(g)
        if some:
            yield some

    def total(self) -> float | None:
        """f(V), where the nearest row to each is itself: 1 each, of rows of zeros what the kind says."""
        weights = np.ones(len(self.x)) if self.weights is None else self.weights
        if isinstance(self.kind, (Rbf, ExpEuclidean)):
            return float(weights.sum())
        zero = np.concatenate([~block.any(axis=1) for _, block in self._blocks()])
        return float(
            weights[~zero].sum()
            + (0.5 if isinstance(self.kind, CosineShifted) else 0.0) * weights[zero].sum()
        )

    def second_round(
        self, union: np.ndarray, total: float | None, evaluations: int, seconds: float
    ) -> Selection:
        """k rows of the union, for the whole pool."""
        n, rng = len(self.x), np.random.default_rng([self.options.seed, 1])
        drawn = np.unique(rng.integers(n, size=min(self.sample, n)))
        others = np.setdiff1d(drawn, union, assume_unique=True)
        rows = np.concatenate([union, others])
        order = np.argsort(rows)
        rows = rows[order]
        (x,) = self.gather([rows])
        beside = np.flatnonzero(order >= len(union))
        spec = FacilityLocation(self.weights, self.x)
        said: dict[str, Any] = {}

        def look(state: State) -> None:
            """Gains of the sample after the last pick."""
            step = state.max_batch
            gains = [state.evaluate(beside[i : i + step]).gains for i in range(0, len(beside), step)]
            if gains:
                every = np.concatenate(gains)
                said.update(
                    sampled=len(every), largest_gain=float(every.max()), mean_gain=float(every.mean())
                )

        def check(how: Options) -> Call:
            call = Call.check(x, spec, self.kind, how, Wanted(min(self.k, len(union)), exclude=beside))
            call.look = look
            return call

        held = x.nbytes + 16 * n  # the candidates, and what was made of the pool's rows
        memory = self.memory if self.options.memory is None else max(self.memory - held, 1)
        found = attempt(check, dataclasses.replace(self.options, memory=memory))
        partition = self.partition if isinstance(self.partition, str) else "labels"
        approximation = {
            "method": "partition greedy",
            "rounds": 2,
            "partition": partition,
            "parts": self.parts,
            "candidates": len(union),
            "seed": self.options.seed,
            "total": total,
            "share": None if not total else found.value / total,
            **said,
        }
        return dataclasses.replace(
            found,
            indices=rows[found.indices],
            n=n,
            objective=FacilityLocation(self.weights).describe(),
            options={**found.options, "memory": self.options.memory},
            exact=False,
            limits=None,
            evaluations=found.evaluations + evaluations,
            seconds={"first round": seconds, **found.seconds},
            approximation=approximation,
        )


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
