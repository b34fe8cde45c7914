"""Pools for which exact greedy takes too long, or that are larger than memory: partition greedy in a few rounds.

All rounds but the last (partition_rounds.py) choose too many rows, each part of a partition by itself; the last chooses
k of these for the whole pool, by exact greedy on the true objective, or for a random sample of the pool. What passes
through memory are parts, and the rows that a process represents; the pool stays in its file.
"""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

import numpy as np

from smartgpu.arrays import as_count, as_matrix
from smartgpu.backends import resolve
from smartgpu.checkpoint import Checkpoint, PartsCheckpoint, differences
from smartgpu.job import Job
from smartgpu.labels import as_labels
from smartgpu.objectives import FacilityLocation, State
from smartgpu.objectives.base import per_row
from smartgpu.options import Options, make_options
from smartgpu.partition_rounds import Rounds, blocks
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
from smartgpu.workers import one_thread

PARTITIONS = ("random", "cluster")
KINDS = (Cosine, CosineShifted, CosineSquared, Rbf, ExpEuclidean)  # a row's features are its own
FEWEST = 100  # rows of a represented sample: the interval takes their mean for normally distributed
CONFIDENCE, DEVIATIONS = 0.95, 1.959964  # of a normal distribution, two-sided


def select_partitioned(
    X: Any,
    k: int | float,
    similarity: str | Similarity = "cosine",
    *,
    weights: Any = None,
    parts: int | None = None,
    partition: Any = "random",
    candidates: float = 10.0,
    rounds: int = 2,
    represented: int | float | None = None,
    sample: int = 1000,
    **options: Any,
) -> Selection:
    """Choose k rows by facility location, approximately, where select() would take too long or too much memory.

    X           (n, d) embeddings: an array, or a memmap (np.load(path, mmap_mode="r")) of any size, read in blocks
    k           rows to choose: an int is a count, a float in (0, 1] a share
    similarity  cosine, cosine_shifted, cosine_squared, rbf or exp_euclidean
    weights     (n,) numbers >= 0, what each row counts; None is 1 for all
    parts       of the first partition; None is as many as make parts of about 16,384 rows, fewer where memory is short
    partition   "random", "cluster" (each row with the nearest of as many random rows), or (n,) labels
    candidates  the last round has so many times k rows to choose from, of each part in proportion to its rows
    rounds      2 or more. With R of them the first R - 1 each take what is left, cut it into parts as large as those of
                the first, and let each part choose: n (candidates k / n)^(r / (R - 1)) rows are left by round r. From
                the second on a row counts for all rows of its part that were nearest to it
    represented rows, or a share of them, that the last round represents: a random sample. None is all
    sample      random rows whose gains are looked at in the end, to estimate what was lost; 0: none
    options     fields of smartgpu.Options. memory: what a process may take beyond X. With process_group the parts are
                dealt out, and the represented rows of the last round. checkpoint ("run.npz") keeps the picks of the
                last round, and beside it ("run.parts.npz") what parts have chosen: the same call goes on from both,
                with any number of processes, to the same result

    Returns a Selection with exact=False; value is f(S) on the whole pool, gains are those of the last round, and
    `approximation` says how rows were found: rounds, parts, candidates, `by_round` (parts and candidates of each but
    the last), seed, total (f(V)), share (value / total, None where that is 0), and of the sample its largest and mean
    gain after the last pick: about as much as any row could still add, beside the last gain. Raises as select() does.

    With represented=m the value is an estimate, from m rows drawn anew, without replacement and independent of those
    that the picks were made for: n mean(y), y_i = w_i max_{j in S} s_ij, with the interval
    n (mean(y) +- 1.96 sqrt((1 - m / n) var(y) / m)), which holds f(S) in about 95 of 100 draws where m is not small
    beside how unequal weights are. `approximation` has it as `interval`, divided by f(V) as `share_interval`, and
    beside them `represented`, `confidence`, and `value_on_represented`: f(S) on the rows that were optimised, times
    n / m, as the gains are, and therefore too large.

    O(n p d) for parts of p rows, then O(n c d) for c candidates (with represented=m, O(m c d)), a few times over. With
    k rows of every part, random partition greedy has in expectation a constant share of f(OPT) (Mirzasoleiman et al.,
    NIPS 2013; Barbosa et al., ICML 2015); with fewer, as here, that is not proven. Further rounds: Boether et al.,
    "On Distributed Larger-Than-Memory Subset Selection With Pairwise Submodular Functions", MLSys 2025.
    """
    how = make_options(options)
    ranks = join(how)
    search = ranks.all_of(
        lambda: _Search.check(
            X, k, similarity, weights, parts, partition, candidates, rounds, represented, sample, how
        )
    )
    ranks.agree(search.record, differences)
    ranks.all_of(lambda: search.check_before() if ranks.rank == 0 else None)
    with ranks.running():
        start = time.perf_counter()
        search.rounds.plan(ranks)
        union, evaluations, before = search.rounds.run(ranks, search.kept())
        seconds = {f"first round{'s' if rounds > 2 else ''}": time.perf_counter() - start}
    found, said = search.last_round(union)
    with ranks.running():
        found, estimated = search.valued(found, ranks)
        total = search.total()
        if estimated:  # no estimate is larger than what all rows together are worth
            found = dataclasses.replace(found, value=min(found.value, total))
            estimated["interval"] = [min(end, total) for end in estimated["interval"]]
            estimated["share_interval"] = [end / total for end in estimated["interval"]] if total else None
    approximation = {
        "method": "partition greedy",
        "rounds": int(rounds),
        "partition": search.rounds.partition if isinstance(search.rounds.partition, str) else "labels",
        "parts": search.rounds.parts,
        "candidates": len(union),
        "by_round": before,
        "seed": how.seed,
        "total": total,
        "share": found.value / total if total else None,
        **estimated,
        **said,
    }
    return dataclasses.replace(
        found,
        evaluations=found.evaluations + evaluations,
        seconds=seconds | found.seconds,
        approximation=approximation,
    )


@dataclasses.dataclass
class _Search:
    """The checked arguments of one call, and its last round. represented: rows of the sample, None for all."""

    rounds: Rounds
    k: int
    represented: int | None
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
        candidates: Any,
        rounds: Any,
        represented: Any,
        sample: Any,
        options: Options,
    ) -> _Search:
        kind = as_similarity(similarity)
        if not isinstance(kind, KINDS):
            known = ", ".join(each.name for each in KINDS)
            raise ValueError(
                f"similarity must be one whose features are a row's own, {known}: got {kind.name}"
            )
        _check_options(options)
        x = as_matrix(X, "X")
        n = len(x)
        count = as_count(k, n)
        check_numbers(candidates, rounds, sample)
        represented = as_represented(represented, n)
        if isinstance(partition, str):
            choose(partition, PARTITIONS, "partition")
        else:
            partition = as_labels(partition, n, "partition")
            parts = len(partition.names) if parts is None else parts
        if weights is not None:
            weights = per_row("weights", weights, n)
            FacilityLocation(weights)  # none below 0, some above
        parts = None if parts is None else as_count(parts, n, "parts")
        goal = float(candidates) * count
        before = Rounds(x, kind, weights, parts, partition, goal, int(rounds) - 1, options)
        return cls(before, count, represented, int(sample), options)

    def record(self) -> dict[str, Any]:
        """What processes must have in common."""
        how, path = self.options.to_dict(), self.options.checkpoint
        return {
            **self.rounds.record(),
            "k": self.k,
            "represented": self.represented,
            "sample": self.sample,
            "checkpoint": path and Path(path).name,
            **{name: how[name] for name in how if name not in ("threads", "progress")},
        }

    def check_before(self) -> None:
        """Refuse picks of another pool before the first round; the last, which has candidates, compares the rest."""
        path = self.options.checkpoint
        if path is None or not Path(path).exists():
            return
        record = {"similarity": self.rounds.kind.describe()}
        if self.represented is None:
            record["objective"] = FacilityLocation(self.rounds.weights, self.rounds.x).describe()
        Checkpoint(path, record).check()

    def kept(self) -> PartsCheckpoint | None:
        if self.options.checkpoint is None:
            return None
        return PartsCheckpoint(Path(self.options.checkpoint).with_suffix(".parts.npz"), self.rounds.record())

    def _drawn(self, number: int) -> np.ndarray | None:
        """(m,) rows of a represented sample, ascending, of independent ones this; None where all are represented."""
        if self.represented is None:
            return None
        rng = np.random.default_rng([self.options.seed, number])
        return np.sort(rng.choice(len(self.rounds.x), self.represented, replace=False))

    @property
    def scale(self) -> float:
        """How many rows a represented one stands for."""
        return 1.0 if self.represented is None else len(self.rounds.x) / self.represented

    def last_round(self, union: np.ndarray) -> tuple[Selection, dict[str, Any]]:
        """k rows of the union for the whole pool, or a sample of it; and what the gains of random rows say."""
        x, every = self.rounds.x, self.rounds.weights
        n, rng = len(x), np.random.default_rng([self.options.seed, 1])
        drawn = np.unique(rng.integers(n, size=min(self.sample, n)))
        others = np.setdiff1d(drawn, union, assume_unique=True)
        rows = np.concatenate([union, others])
        order = np.argsort(rows)
        rows = rows[order]
        represented = self._drawn(2)
        features, *of = self.rounds.gather([rows] if represented is None else [rows, represented])
        if represented is None:
            spec = FacilityLocation(every, x)
        else:
            weights = None if every is None else every[represented]
            if weights is not None and not weights.any():
                raise ValueError(
                    f"represented must be more than {self.represented} rows: all that were drawn have weight 0"
                )
            spec = FacilityLocation(weights, of[0])
        beside = np.flatnonzero(order >= len(union))
        said: dict[str, Any] = {}

        def look(state: State) -> None:
            """Gains of the sample after the last pick."""
            step = state.max_batch
            gains = [state.evaluate(beside[i : i + step]).gains for i in range(0, len(beside), step)]
            if gains:
                every = np.concatenate(gains) * self.scale
                said.update(
                    sampled=len(every), largest_gain=float(every.max()), mean_gain=float(every.mean())
                )

        def check(how: Options) -> Call:
            call = Call.check(
                features, spec, self.rounds.kind, how, Wanted(min(self.k, len(union)), exclude=beside)
            )
            call.look = look
            return call

        # the candidates, what is represented of the pool, and what was made of its rows
        held = features.nbytes + sum(part.nbytes for part in of) + 16 * n
        memory = self.rounds.memory if self.options.memory is None else max(self.rounds.memory - held, 1)
        found = attempt(check, dataclasses.replace(self.options, memory=memory))
        found = dataclasses.replace(
            found,
            indices=rows[found.indices],
            gains=found.gains * self.scale,
            value=found.value * self.scale,
            n=n,
            objective=FacilityLocation(every).describe(),
            options={**found.options, "memory": self.options.memory},
            exact=False,
            limits=None,
        )
        return found, said

    def valued(self, found: Selection, ranks: Ranks | Alone) -> tuple[Selection, dict[str, Any]]:
        """The selection with its value; where that is an estimate, what is said of it."""
        rows = self._drawn(3)
        if rows is None:
            return found, {}
        similarity = self._nearest(rows, found.indices, ranks)
        weights = self.rounds.weights
        value, low, high = estimate(similarity if weights is None else weights[rows] * similarity, found.n)
        said = {
            "represented": len(rows),
            "value_on_represented": found.value,
            "confidence": CONFIDENCE,
            "interval": [low, high],
        }
        return dataclasses.replace(found, value=value), said

    def _nearest(self, rows: np.ndarray, chosen: np.ndarray, ranks: Ranks | Alone) -> np.ndarray:
        """(m,) float64: how similar each of these rows is to the nearest chosen one, 0 at least."""
        among = ranks.size > 1 and len(rows) >= ranks.size
        mine = ranks.share(len(rows)) if among else slice(0, len(rows))
        candidates, x = self.rounds.gather([np.sort(chosen), rows[mine]])
        alone = self.rounds.alone(self.options.memory)
        ground = Job.check(candidates, FacilityLocation(None, x), self.rounds.kind, alone).ground()
        backend = ground.backend(x)
        level = backend.new_level()
        with one_thread():
            backend.raise_level(level, np.arange(len(chosen)))
        quanta = np.zeros(len(rows), np.int64)
        quanta[mine] = backend.level_values(level)
        return (ranks.sum(quanta, "similarities") if among else quanta) * backend.quantum

    def total(self) -> float:
        """f(V), where the nearest row to each is itself: 1 each, of rows of zeros what the kind says."""
        x, kind = self.rounds.x, self.rounds.kind
        weights = np.ones(len(x)) if self.rounds.weights is None else self.rounds.weights
        if isinstance(kind, (Rbf, ExpEuclidean)):
            return float(weights.sum())
        zero = np.concatenate([~block.any(axis=1) for _, block in blocks(x)])
        return float(
            weights[~zero].sum() + (0.5 if isinstance(kind, CosineShifted) else 0.0) * weights[zero].sum()
        )


def check_numbers(candidates: Any, rounds: Any, sample: Any = 0) -> None:
    """ValueError for what these cannot be, whatever the pool."""
    number = isinstance(candidates, (int, float)) and not isinstance(candidates, bool)
    if not number or not 1 <= candidates < np.inf:
        raise ValueError(f"candidates must be a number >= 1, how many times k, got {candidates!r}")
    for name, value, least in (("rounds", rounds, 2), ("sample", sample, 0)):
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
            raise ValueError(f"{name} must be an integer >= {least}, got {value!r}")


def as_represented(value: Any, n: int, name: str = "represented") -> int | None:
    """A number of represented rows, of which an interval can be believed; None for all."""
    if value is None:
        return None
    few, count = min(FEWEST, n), as_count(value, n, name)
    if count < few:
        raise ValueError(f"{name} must be at least {few} rows, for an interval to be believed, got {count}")
    return count


def _check_options(options: Options) -> None:
    for name in ("polish", "fallback"):
        if getattr(options, name) is not None:
            raise ValueError(f"{name} is not for select_partitioned")
    if resolve(options.backend) == "reference":
        raise ValueError("backend 'reference' is not for select_partitioned")
    check_checkpoint(options)


def estimate(y: np.ndarray, n: int) -> tuple[float, float, float]:
    """(value, low, high) of a sum over n rows, from those of m drawn without replacement: y (m,) float64 >= 0.

    n mean(y), and n (mean(y) +- 1.96 sqrt((1 - m / n) var(y) / m)), not below 0; var(y) divides by m - 1. A draw of
    all rows is the sum itself. (Cochran, Sampling Techniques, 1977, 2.8 and 2.13.)
    """
    m = len(y)
    value = n * float(y.mean())
    error = 0.0 if m == n else n * DEVIATIONS * float(np.sqrt((1 - m / n) * y.var(ddof=1) / m))
    return value, max(value - error, 0.0), value + error
