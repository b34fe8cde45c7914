"""What sets of rows are worth on a stream: gains of the rows of a batch to many sets, from one product.

A value never sees the stream again: what it needs of a set is in the set's `Worth`, which only replace() changes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from smartgpu.backends import QUANTUM
from smartgpu.objectives.base import Objective
from smartgpu.objectives.coverage import Coverage
from smartgpu.objectives.facility_location import FacilityLocation
from smartgpu.objectives.facility_location_state import WEIGHT_BITS
from smartgpu.objectives.graph_cut import GraphCut
from smartgpu.objectives.log_det import LogDet
from smartgpu.sieve.between import PAIRS, PIECE, Between
from smartgpu.sieve.remembered import Cut, Volume

SAFE = 256  # rows of int32 similarities whose sum cannot overflow


class Worth(Protocol):
    """What a value keeps of a set. Never changed in place: a set that grows gets another."""

    @property
    def nbytes(self) -> int: ...


class Adding(Protocol):
    """Some rows of a batch, and what each would add to one set."""

    gains: np.ndarray  # (m,) float64, upper bounds
    worth: Any  # of the set by now

    def gain(self, b: int) -> float: ...  # of row b, now
    def accept(self, b: int) -> None: ...


class Look(Protocol):
    """A batch under a value: what all sets share is computed."""

    first: np.ndarray  # (b,) float64, the gains to no rows

    def adding(self, worth: Any, keys: Sequence[int], cols: np.ndarray) -> Adding: ...


class Value(Protocol):
    """f on a stream. `rows` are the represented ones, or None; `remembers`: gains ask for the rows of the sets."""

    spec: Objective
    remembers: bool
    rows: np.ndarray | None

    def nothing(self) -> Any: ...  # the worth of no rows
    def look(self, batch: np.ndarray, held: dict[int, np.ndarray]) -> Look: ...
    def piece(self, held: int) -> int: ...  # rows to look at together, beside so many that are held
    def worth_bytes(self, k: int, d: int) -> int: ...  # of a set of k rows of d features


def make_value(spec: Objective, between: Between, rows: np.ndarray | None) -> Value:
    """The value of an objective. ValueError where it has none on a stream."""
    if isinstance(spec, FacilityLocation):
        return Nearest(spec, between, rows)
    if isinstance(spec, GraphCut):
        return Cut(spec, between, rows)
    if isinstance(spec, LogDet):
        return Volume(spec, between)
    if isinstance(spec, Coverage):
        return Covered(spec)
    raise ValueError(
        f"objective {spec.name!r} has no form for streams: expected facility_location, graph_cut, log_det, or a "
        "coverage of features such as FeatureBased"
    )


# -- facility location ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Levels:
    """level (r,) float32: the similarity of each represented row to the nearest row of the set, 0 at least; exact."""

    level: np.ndarray

    @property
    def nbytes(self) -> int:
        return self.level.nbytes


class Nearest:
    """f(S) = sum_i w_i max(0, max_{j in S} s_ij) over represented rows i."""

    remembers = False

    def __init__(self, spec: FacilityLocation, between: Between, rows: np.ndarray):
        self.spec, self.between, self.rows = spec, between, rows
        self.weights, self.power = None, 0
        if spec.weights is not None:
            self.power = WEIGHT_BITS - int(np.ceil(np.log2(spec.weights.sum()))) - 1
            self.weights = np.rint(np.ldexp(spec.weights, self.power)).astype(np.int64)

    def nothing(self) -> Levels:
        return Levels(np.zeros(len(self.rows), np.float32))

    def worth_bytes(self, k: int, d: int) -> int:
        return 4 * len(self.rows)

    def piece(self, held: int) -> int:
        return int(np.clip(PAIRS // len(self.rows), 16, PIECE))

    def look(self, batch: np.ndarray, held: dict[int, np.ndarray]) -> NearestLook:
        return NearestLook(self, *self.between([self.rows], batch))

    def changed(self, rows: np.ndarray, at: np.ndarray) -> None:
        """Other rows are represented at these places. Sets are to be brought up to date with renew()."""
        self.rows = self.rows.copy()
        self.rows[at] = rows
        self.spec = replace(self.spec, represented=self.rows)

    def renew(
        self, sets: Sequence[tuple[Levels, Sequence[int]]], held: dict[int, np.ndarray], at: np.ndarray
    ):
        """The worths of sets, (worth, keys) each, after changed() at these places."""
        keys = sorted({key for _, mine in sets for key in mine})
        place = {key: i for i, key in enumerate(keys)}
        q, quantum = np.empty((0, len(at)), np.int32), QUANTUM
        if keys:
            q, quantum = self.between([np.stack([held[key] for key in keys])], self.rows[at])
        out = []
        for worth, mine in sets:
            level = worth.level.copy()
            best = q[[place[key] for key in mine]].max(axis=0, initial=0)
            level[at] = best * quantum
            out.append(Levels(level))
        return out

    def value(self, worth: Levels) -> float:
        level = worth.level.astype(np.float64)
        weights = 1.0 if self.weights is None else np.ldexp(self.weights.astype(np.float64), -self.power)
        return float((level * weights).sum())


class NearestLook:
    def __init__(self, value: Nearest, q: np.ndarray, quantum: float):
        self.value, self.q, self.quantum = value, q, quantum
        self.scale = quantum * float(np.ldexp(1.0, -value.power))
        self.first = _excess(q, np.zeros(len(q), np.int32), value.weights) * self.scale

    def adding(self, worth: Levels, keys: Sequence[int], cols: np.ndarray) -> NearestAdding:
        return NearestAdding(self, worth, self.q if len(cols) == self.q.shape[1] else self.q[:, cols])


class NearestAdding:
    """Gains are brought up to date only on the rows whose level a pick has raised."""

    def __init__(self, look: NearestLook, worth: Levels, q: np.ndarray):
        self.look, self.q = look, q
        self.level = np.rint(worth.level / look.quantum).astype(np.int32)
        self.total = _excess(q, self.level, look.value.weights)
        self.gains = self.total * look.scale

    @property
    def worth(self) -> Levels:
        return Levels((self.level * self.look.quantum).astype(np.float32))

    def gain(self, b: int) -> float:
        return float(self.gains[b])

    def accept(self, b: int) -> None:
        column, value = self.q[:, b], self.look.value
        at = np.flatnonzero(column > self.level)
        if len(at):
            rows, weights = self.q[at], None if value.weights is None else value.weights[at]
            self.total += _excess(rows, column[at], weights) - _excess(rows, self.level[at], weights)
            self.level[at] = column[at]
            self.gains = self.total * self.look.scale


def _excess(q: np.ndarray, level: np.ndarray, weights: np.ndarray | None) -> np.ndarray:
    """(m,) int64 sum_i w_i max(q_ij - level_i, 0) of q (r, m), exact."""
    total = np.zeros(q.shape[1], np.int64)
    for i in range(0, len(q), SAFE):
        low = level[i : i + SAFE, None]
        over = np.maximum(q[i : i + SAFE], low)
        over -= low
        if weights is None:
            total += np.add.reduce(over, axis=0, dtype=np.int32)
        else:
            total += (over * weights[i : i + SAFE, None]).sum(axis=0)
    return total


# -- coverage of features -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sums:
    """sums (u,) float64 of each feature, or products: what the objective's curve makes of rows."""

    sums: np.ndarray

    @property
    def nbytes(self) -> int:
        return self.sums.nbytes


class Covered:
    """f(S) = sum_u w_u phi_u(sum_{j in S} x_ju): exact on a stream, nothing is represented."""

    remembers = False
    rows = None

    def __init__(self, spec: Coverage):
        if spec.features is not None:
            raise ValueError(
                f"{spec.name} on a stream takes its features from the batches: leave features out"
            )
        self.spec, self.curve, self.weights = spec, spec.curve, spec.masked
        self.u = 0

    def nothing(self) -> Sums:
        return Sums(np.full(self.u, self.curve.start))

    def worth_bytes(self, k: int, d: int) -> int:
        return 8 * d

    def piece(self, held: int) -> int:
        return int(np.clip(PAIRS // max(self.u, 1), 16, PIECE))

    def look(self, batch: np.ndarray, held: dict[int, np.ndarray]) -> CoveredLook:
        self.u = batch.shape[1]
        x = batch.astype(np.float64)
        return CoveredLook(self, x if self.curve.start == 0 else self.curve.start - x)

    def worth(self, sums: np.ndarray) -> np.ndarray:
        out = self.curve.phi(sums)
        return out.sum(axis=-1) if self.weights is None else (out * self.weights).sum(axis=-1)


class CoveredLook:
    def __init__(self, value: Covered, batch: np.ndarray):
        self.value, self.batch = value, batch
        nothing = value.nothing().sums
        self.first = value.worth(value.curve.both(nothing, batch)) - value.worth(nothing)

    def adding(self, worth: Sums, keys: Sequence[int], cols: np.ndarray) -> CoveredAdding:
        return CoveredAdding(self, worth, self.batch[cols])


class CoveredAdding:
    """Gains are those of the set at first, which bound all later ones; one is evaluated anew when it is asked for."""

    def __init__(self, look: CoveredLook, worth: Sums, rows: np.ndarray):
        self.value, self.rows, self.worth = look.value, rows, worth
        self.known = self.value.worth(worth.sums)
        self.gains = self.value.worth(self.value.curve.both(worth.sums, rows)) - self.known

    def gain(self, b: int) -> float:
        return float(self.value.worth(self._with(b).sums) - self.known)

    def accept(self, b: int) -> None:
        self.worth = self._with(b)
        self.known = self.value.worth(self.worth.sums)

    def _with(self, b: int) -> Sums:
        return Sums(self.value.curve.both(self.worth.sums, self.rows[b]))
