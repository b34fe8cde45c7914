"""SieveStreaming: rows come in batches, each is seen once, and what is held does not grow with their number."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np

from smartgpu.arrays import as_matrix, on_host
from smartgpu.backends import resolve
from smartgpu.backends.gpu import need_gpu
from smartgpu.job import Job, versions
from smartgpu.objectives import FacilityLocation, GraphCut, Objective, as_objective
from smartgpu.options import Options
from smartgpu.selecting import select_checked
from smartgpu.selection import Selection
from smartgpu.sieve.between import PAIRS, PIECE, Between
from smartgpu.sieve.sample import ROW, Sample
from smartgpu.sieve.sieves import Sieves, counts
from smartgpu.sieve.values import Value, make_value
from smartgpu.similarity import MaxMinusSqeuclidean, Precomputed, Similarity, as_similarity
from smartgpu.workers import Workers, cpu_count

BLOCK = 512  # rows after which the sample takes those of them that it drew
TILES = 4 << 20  # bytes of a backend's scratch, for each thread


class SieveStreaming:
    """Choose k rows of a stream in one pass, in memory that does not depend on its length.

    k            rows to choose
    objective    as for select(): "facility_location", "log_det", GraphCut(represented=rows), FeatureBased() and other
                 coverages of features (which are the batches')
    similarity   as for select(), but "precomputed" and "max_minus_sqeuclidean", which depend on all rows
    epsilon      in (0, 1/2): the smaller, the more sets, rows held and work
    represented  (r, d) rows that facility location and graph cut represent
    reservoir    without them: facility location represents a uniform sample of that many rows of the stream; None is
                 max(2000, 8 k)
    seed         of the sample
    backend, threads, precision  as for select()

    update(X) takes the next rows, result() gives a Selection at any time, rows() what it chose. Sieve-streaming++
    (Kazemi et al., ICML 2019; after Badanidiyuru et al., KDD 2014): f(S) >= (1/2 - epsilon) f(OPT) where f is monotone
    and submodular. f is exact for log_det, for coverages, and with `represented`; on a sample it is that of the rows
    that it holds at the end, and the bound holds up to the error of a sample whose stream comes in random order. The
    result does not depend on how the stream is cut into batches (similarities other than cosines: up to rounding).
    Objects can be pickled, to go on later.

    For facility location one similarity of each row to each of r represented rows, and O(r log(k) / epsilon) integer
    operations a row after that; memory: planned_bytes(). Raises ValueError, TypeError naming the argument.
    """

    def __init__(
        self,
        k: int,
        objective: str | Objective = "facility_location",
        similarity: str | Similarity = "cosine",
        *,
        epsilon: float = 0.1,
        represented: Any = None,
        reservoir: int | None = None,
        seed: int = 0,
        backend: str = "auto",
        threads: int | None = None,
        precision: str = "auto",
    ):
        self.k = _whole("k", k)
        self.reservoir = max(2000, 8 * self.k) if reservoir is None else _whole("reservoir", reservoir)
        if isinstance(epsilon, bool) or not isinstance(epsilon, (int, float, np.integer, np.floating)):
            raise TypeError(f"epsilon must be a number, got {epsilon!r}")
        if not 0 < epsilon < 0.5:
            raise ValueError(f"epsilon must lie in (0, 0.5), got {epsilon}")
        self.epsilon = float(epsilon)
        self.options = Options(backend=backend, seed=seed, threads=threads, precision=precision)
        self.kind = as_similarity(similarity)
        if isinstance(self.kind, (Precomputed, MaxMinusSqeuclidean)):
            raise ValueError(f"similarity {self.kind.name!r} depends on all rows: it has no form for streams")
        self._between = Between(self.kind, self._backend(), self._how())
        spec = self._with_rows(as_objective(objective).on_host(), represented)
        self._sample: Sample | None = None
        if isinstance(spec, FacilityLocation) and spec.represented is None:
            self._sample = Sample(self.reservoir, np.random.default_rng(seed))
        rows = getattr(spec, "represented", None)
        self.spec, self._value = spec, None if self._sample else make_value(spec, self._between, rows)
        self._sieves = Sieves(self.k, self.epsilon)
        self._held: dict[int, np.ndarray] = {}  # rows of the sets, by their numbers in the stream
        self._ids: dict[int, int] = {}  # of these, and of the sample
        self._shape: tuple[int, np.dtype] | None = None
        self.seen = 0
        self.seconds = 0.0

    def _backend(self) -> str:
        name = resolve(self.options.backend)
        if name == "reference":
            raise ValueError("backend 'reference' is naive greedy: streams are not for it")
        if name == "triton":
            need_gpu()
        elif self.options.precision != "auto":
            raise ValueError(
                f"precision is for backend 'triton', got {self.options.precision!r} with {name!r}"
            )
        return name

    def _how(self) -> dict[str, Any]:
        how = {"threads": self.options.threads}
        return how | ({"precision": self.options.precision} if self._backend() == "triton" else {})

    def _with_rows(self, spec: Objective, represented: Any) -> Objective:
        """The objective with the rows that it represents, where it represents any."""
        if not isinstance(spec, (FacilityLocation, GraphCut)):
            if represented is not None:
                raise ValueError(f"represented is for facility_location and graph_cut, got {spec.name}")
            return spec
        if represented is not None:
            if spec.represented is not None:
                raise ValueError("represented is given twice: here and in the objective")
            spec = replace(spec, represented=represented).on_host()
        if spec.represented is None:
            if isinstance(spec, GraphCut):
                raise ValueError(
                    "graph_cut on a stream needs represented: a sample of the stream would change the balance of its "
                    "two sums as the stream goes on"
                )
            if spec.weights is not None:
                raise ValueError("weights are one per represented row: give represented too")
        else:
            spec.check(spec.represented, self.kind)
        return spec

    # -- the stream -----------------------------------------------------------------------------------------------

    def update(self, X: Any, ids: Any = None) -> SieveStreaming:
        """Take the next rows: X (b, d), ids (b,) integers that the result will name them by (default: 0, 1, 2, ...).

        Returns self. Raises ValueError, TypeError for NaN, another width or dtype than before, and ids that are not one
        integer per row or repeat: before any work, and nothing has changed then.
        """
        start = time.perf_counter()
        x = on_host(as_matrix(X))
        numbers = self._check(x, ids)
        self._shape = self._shape or (x.shape[1], x.dtype)
        at = 0
        if self._sample is not None and not self._sample.full:
            at = self._fill(x, numbers)
        while at < len(x):
            at = self._advance(x, numbers, at)
        self.seconds += time.perf_counter() - start
        return self

    def _check(self, x: np.ndarray, ids: Any) -> np.ndarray:
        """The rows' ids, (b,) int64."""
        rows = getattr(self.spec, "represented", None)
        if self._shape is not None:
            width, dtype = self._shape
            if x.shape[1] != width:
                raise ValueError(
                    f"X must have as many features as the batches before, {width}, got {x.shape[1]}"
                )
            if x.dtype != dtype:
                raise ValueError(f"X must have the dtype of the batches before, {dtype}, got {x.dtype}")
        elif rows is not None and rows.shape[1] != x.shape[1]:
            raise ValueError(
                f"X must have as many features as represented, {rows.shape[1]}, got {x.shape[1]}"
            )
        if rows is None:
            self.spec.check(x, self.kind)
        if ids is None:
            return np.arange(self.seen, self.seen + len(x))
        out = np.asarray(ids)
        if out.dtype.kind not in "iu":
            raise TypeError(f"ids must be integers, got dtype {out.dtype}")
        if out.shape != (len(x),):
            raise ValueError(f"ids must have shape ({len(x)},), one per row, got {out.shape}")
        if len(np.unique(out)) < len(out):
            raise ValueError("ids must not repeat")
        return out.astype(np.int64)

    def _fill(self, x: np.ndarray, ids: np.ndarray) -> int:
        """Rows into the sample until it is full; then they are what the sets are first made of."""
        sample = self._sample
        taken = sample.add(x, ids, self.seen)
        self.seen += taken
        if sample.full:
            self._value = make_value(replace(self.spec, represented=sample.rows), self._between, sample.rows)
            self._ids = dict(zip(sample.keys, sample.ids, strict=True))
            self._sift(sample.rows, np.array(sample.ids), 0)
        return taken

    def _advance(self, x: np.ndarray, ids: np.ndarray, at: int) -> int:
        """Rows from `at` on, up to where the sample changes."""
        end = len(x)
        if self._sample is not None:
            end = min(end, at + BLOCK - (self.seen - self.reservoir) % BLOCK)
        self._sift(x[at:end], ids[at:end], self.seen)
        if self._sample is not None:
            self._sample.draw(x[at:end], ids[at:end], self.seen)
        self.seen += end - at
        if self._sample is not None and (self.seen - self.reservoir) % BLOCK == 0:
            self._resample()
        return end

    def _sift(self, x: np.ndarray, ids: np.ndarray, start: int) -> None:
        """Rows against the sets, in pieces."""
        workers, at = Workers(self.options.threads), 0
        while at < len(x):
            piece = x[at : at + self._value.piece(len(self._held))]
            held = self._held if self._value.remembers else {}
            look = self._value.look(piece, held)
            self._sieves = self._sieves.take(self._value, look, start + at, workers)
            self._keep(piece, ids[at : at + len(piece)], start + at)
            at += len(piece)

    def _keep(self, piece: np.ndarray, ids: np.ndarray, start: int) -> None:
        """Hold the rows of the sets, and no others."""
        keys = self._sieves.keys
        new = [key for key in keys if key >= start]
        self._held = {key: row for key, row in self._held.items() if key in keys}
        self._held |= {key: piece[key - start].copy() for key in sorted(new)}
        known = keys if self._sample is None else keys | set(self._sample.keys)
        self._ids = {key: number for key, number in self._ids.items() if key in known}
        self._ids |= {key: int(ids[key - start]) for key in new}

    def _resample(self) -> None:
        """The sample takes the rows that it drew, and f changes with it."""
        at, rows = self._sample.settle()
        if not len(at):
            return
        value, sieves = self._value, self._sieves
        value.changed(rows, at)
        sets: dict[Any, Any] = {**sieves.alive, **({None: sieves.best} if sieves.best else {})}
        worths = value.renew([(sieve.worth, sieve.keys) for sieve in sets.values()], self._held, at)
        renewed = {
            i: replace(sieve, worth=worth, value=value.value(worth))
            for (i, sieve), worth in zip(sets.items(), worths, strict=True)
        }
        self._sieves = sieves.renewed(renewed)
        self._ids |= dict(zip(self._sample.keys, self._sample.ids, strict=True))
        known = set(self._held) | set(self._sample.keys)
        self._ids = {key: number for key, number in self._ids.items() if key in known}

    # -- what came of it ------------------------------------------------------------------------------------------

    @property
    def represented(self) -> np.ndarray | None:
        """(r, d) the rows that f is measured on by now; None for an objective that represents none."""
        if self._sample is not None and not self._sample.full:
            return self._sample.rows
        return self._value.rows

    def result(self, refine: bool = True) -> Selection:
        """The rows chosen so far: `indices` are their ids, `gains` add up to `value`, f on `represented`.

        refine  True: greedy also chooses k of all rows that are held, those of the sets and of the sample, and the
                better of this and of the best set is returned. False: the best set alone, as published: it may have
                fewer rows than k

        The stream may go on. Raises ValueError where it had fewer rows than k so far.
        """
        if not isinstance(refine, (bool, np.bool_)):
            raise TypeError(f"refine must be True or False, got {refine!r}")
        if self.seen < self.k:
            raise ValueError(f"k is {self.k}, but the stream had {self.seen} rows so far")
        start = time.perf_counter()
        whole = self._on_few() if self._sample is not None and not self._sample.full else self
        value, best = whole._value, whole._sieves.best
        keys = () if best is None else best.keys
        gains = _gains(value, [whole._held[key] for key in keys])
        evaluations, between = whole._sieves.evaluations, self._between
        if refine:
            rows = whole._rows()
            order = sorted(rows)
            if order:
                pool = np.stack([rows[key] for key in order])
                greedy = self._greedy(pool, value.spec)
                evaluations += greedy.evaluations
                if greedy.value > gains.sum() or (greedy.value == gains.sum() and greedy.k > len(keys)):
                    keys, gains = tuple(order[j] for j in greedy.indices), greedy.gains
        described = self.options.to_dict() | {"maximizer": "sieve", "epsilon": self.epsilon}
        if self._sample is not None:
            described["reservoir"] = self.reservoir
        backend = resolve(self.options.backend)
        r = 1 if value.rows is None else len(value.rows)
        return Selection(
            indices=np.array([whole._ids[key] for key in keys], np.int64),
            gains=gains,
            value=float(gains.sum()),
            base_value=0.0,
            n=self.seen,
            objective=value.spec.describe(),
            similarity=self.kind.describe(),
            options=described,
            backend=backend,
            dtype=between.dtype,
            evaluations=evaluations,
            sweeps=between.pairs / (self.seen * r),
            seconds={"update": self.seconds, "finish": time.perf_counter() - start},
            versions=versions(backend),
            exact=False,
            _spec=self.kind,
        )

    def rows(self, selection: Selection) -> np.ndarray:
        """(k, d) the chosen rows themselves, of what result() gave. ValueError where the stream has let one go."""
        rows, ids = self._rows(), dict(self._ids)
        if self._sample is not None:
            ids |= dict(zip(self._sample.keys, self._sample.ids, strict=True))
        keys = {number: key for key, number in ids.items() if key in rows}
        gone = [j for j in selection.indices.tolist() if j not in keys]
        if gone:
            raise ValueError(
                f"row {gone[0]} of the selection is not held any more: ask before the stream goes on"
            )
        found = [rows[keys[j]] for j in selection.indices.tolist()]
        return np.stack(found) if found else np.empty((0, self._shape[0]), self._shape[1])

    @property
    def held(self) -> np.ndarray:
        """(m,) int64 ids of all rows that are held, ascending: what a result may name, now or later."""
        ids = set(self._ids.values())
        if self._sample is not None:
            ids |= {*self._sample.ids, *(number for _, _, number in self._sample.drawn.values())}
        return np.array(sorted(ids), np.int64)

    def _rows(self) -> dict[int, np.ndarray]:
        """All rows that are held, of the sets and of the sample, by their numbers in the stream."""
        rows = dict(self._held)
        if self._sample is not None and self._sample.rows is not None:
            rows |= dict(zip(self._sample.keys, self._sample.rows, strict=True))
        return rows

    def _on_few(self) -> SieveStreaming:
        """The stream as it would be, were its rows so far all that the sample is to hold."""
        out, sample = copy.copy(self), self._sample
        out._value = make_value(replace(self.spec, represented=sample.rows), self._between, sample.rows)
        out._ids = dict(zip(sample.keys, sample.ids, strict=True))
        out._sift(sample.rows, np.array(sample.ids), 0)
        return out

    def _greedy(self, pool: np.ndarray, spec: Objective) -> Selection:
        options = replace(self.options, seed=0)
        return select_checked(
            lambda how: Job.check(pool, spec, self.kind, how), min(self.k, len(pool)), options
        )

    # -- memory ---------------------------------------------------------------------------------------------------

    def planned_bytes(self, d: int, dtype: Any = np.float32) -> int:
        """The most that an object takes for batches of d features, whatever their number, the input not counted.

        There are L = log(2 k (1 + epsilon)) / log(1 + epsilon) + 1 sets at most, the i-th of no more than
        h_i = min(k, 2 k (1 + epsilon)^(1 - i)) rows (k each where f is measured on a sample, which changes). Held are
        sum h_i rows of d features, r rows that are represented, and for each set 4 r bytes (facility location),
        8 h_i^2 (log_det) or 8 d (coverages); besides, a piece of the batch with its similarities, and scratch.
        """
        size, sizes = np.dtype(dtype).itemsize, counts(self.k, self.epsilon)
        if self._sample is not None:
            sizes = [self.k] * len(sizes)
        value = self._value
        r = self.reservoir if value is None else 0 if value.rows is None else len(value.rows)
        held = sum(sizes) + self.k
        rows = held * (size * d + ROW) + r * (2 * size * d + ROW) + BLOCK * (size * d + ROW)
        worths = sum(4 * r if value is None else value.worth_bytes(m, d) for m in [*sizes, self.k])
        pool = r + PIECE + (held if value is not None and value.remembers else 0)
        threads = self.options.threads or cpu_count()
        pairs = min(PIECE * pool, max(PAIRS, 16 * pool)) * 4 + PIECE * d * 8
        look = pool * d * (2 * size + 8) + (2 + 3 * threads) * pairs
        return int(rows + 2 * worths + 80 * sum(sizes) + look + threads * TILES)

    @property
    def held_bytes(self) -> int:
        """What is held between updates, by now."""
        held = sum(row.nbytes + ROW for row in self._held.values())
        sets = [*self._sieves.alive.values(), *([self._sieves.best] if self._sieves.best else [])]
        held += sum(sieve.worth.nbytes + 40 * len(sieve.keys) for sieve in sets)
        if self._sample is not None:
            held += self._sample.nbytes
        elif self._value.rows is not None:
            held += self._value.rows.nbytes
        return held


def _gains(value: Value, rows: list[np.ndarray]) -> np.ndarray:
    """(m,) float64: what each row adds to those before it."""
    if not rows:
        return np.empty(0)
    every = np.arange(len(rows))
    adding, out = value.look(np.stack(rows), {}).adding(value.nothing(), (), every), np.empty(len(rows))
    for b in every.tolist():
        out[b] = adding.gain(b)
        adding.accept(b)
    return out


def _whole(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")
    return int(value)


def select_stream(
    batches: Iterable[Any],
    k: int,
    objective: str | Objective = "facility_location",
    similarity: str | Similarity = "cosine",
    **options: Any,
) -> Selection:
    """Choose k rows of a stream of batches, each an array (b, d) or a pair (ids, array), in one pass.

    The rest as for SieveStreaming, whose result() this is. Raises ValueError for a stream of fewer rows than k.
    """
    sieve = SieveStreaming(k, objective, similarity, **options)
    for batch in batches:
        ids, x = batch if isinstance(batch, tuple) else (None, batch)
        sieve.update(x, ids)
    return sieve.result()
