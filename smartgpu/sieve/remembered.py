"""Graph cut and log-determinant on a stream: gains ask for similarities to the rows that the sets hold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from smartgpu.objectives.graph_cut import GraphCut
from smartgpu.objectives.log_det import GRID, LogDet
from smartgpu.sieve.between import PAIRS, PIECE, Between


class Remembered:
    """A batch, similarities of which to represented rows, rows of the sets and itself come from one product."""

    def __init__(
        self, between: Between, rows: np.ndarray | None, held: dict[int, np.ndarray], batch: np.ndarray
    ):
        self.keys = {key: i for i, key in enumerate(held)}
        r = 0 if rows is None else len(rows)
        sets = [] if rows is None else [rows]
        known = [np.stack(list(held.values()))] if held else []
        q, quantum = between([*sets, *known], batch, within=True)
        self.totals = q[:r].sum(axis=0, dtype=np.int64) * quantum
        self.known, self.own = q[r : len(q) - len(batch)], q[len(q) - len(batch) :]
        self.quantum = quantum
        self.diagonal = np.diagonal(self.own) * quantum

    def to(self, keys: Sequence[int], cols: np.ndarray) -> np.ndarray:
        """(|keys|, m) float64 similarities of rows of a set to candidates."""
        at = np.array([self.keys[key] for key in keys], np.int64)
        return self.known[np.ix_(at, cols)] * self.quantum

    def among(self, b: int, cols: np.ndarray) -> np.ndarray:
        """(m,) float64 similarities of row b of the batch to candidates."""
        return self.own[b, cols] * self.quantum


@dataclass(frozen=True)
class Nothing:
    """Of a value that needs no more of a set than its rows."""

    nbytes: int = 0


class Cut:
    """f(S) = sum_{i, j in S} s_ij over represented rows i, less lam sum_{i, j in S} s_ij."""

    remembers = True

    def __init__(self, spec: GraphCut, between: Between, rows: np.ndarray):
        self.spec, self.between, self.rows = spec, between, rows

    def nothing(self) -> Nothing:
        return Nothing()

    def worth_bytes(self, k: int, d: int) -> int:
        return 0

    def piece(self, held: int) -> int:
        return int(np.clip(PAIRS // (len(self.rows) + held + PIECE), 16, PIECE))

    def look(self, batch: np.ndarray, held: dict[int, np.ndarray]) -> CutLook:
        return CutLook(self.spec.lam, Remembered(self.between, self.rows, held, batch))


class CutLook:
    def __init__(self, lam: float, near: Remembered):
        self.lam, self.near = lam, near
        self.first = near.totals - lam * near.diagonal

    def adding(self, worth: Nothing, keys: Sequence[int], cols: np.ndarray) -> CutAdding:
        return CutAdding(self, worth, keys, cols)


class CutAdding:
    """A pick changes the gain of every row, up or down: all are brought up to date."""

    def __init__(self, look: CutLook, worth: Nothing, keys: Sequence[int], cols: np.ndarray):
        self.look, self.worth, self.cols = look, worth, cols
        self.gains = look.first[cols] - 2 * look.lam * look.near.to(keys, cols).sum(axis=0)

    def gain(self, b: int) -> float:
        return float(self.gains[b])

    def accept(self, b: int) -> None:
        self.gains = self.gains - 2 * self.look.lam * self.look.near.among(int(self.cols[b]), self.cols)


# -- log-determinant ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Factor:
    """inverse (m, m) float64: of the Cholesky factor of s_SS + lam I, in the order of the picks."""

    inverse: np.ndarray

    @property
    def nbytes(self) -> int:
        return self.inverse.nbytes


class Volume:
    """f(S) = log det(s_SS + lam I): exact on a stream, nothing is represented."""

    remembers = True
    rows = None

    def __init__(self, spec: LogDet, between: Between):
        if spec.lam <= 0:
            raise ValueError(f"log_det on a stream needs lam > 0, got {spec.lam}")
        self.spec, self.between = spec, between

    def nothing(self) -> Factor:
        return Factor(np.empty((0, 0)))

    def worth_bytes(self, k: int, d: int) -> int:
        return 8 * k * k

    def piece(self, held: int) -> int:
        return int(np.clip(PAIRS // (held + PIECE), 16, PIECE))

    def look(self, batch: np.ndarray, held: dict[int, np.ndarray]) -> VolumeLook:
        return VolumeLook(self.spec.lam, Remembered(self.between, None, held, batch))


class VolumeLook:
    def __init__(self, lam: float, near: Remembered):
        self.lam, self.near = lam, near
        self.first = self.log(near.diagonal + lam)

    def log(self, residual: np.ndarray) -> np.ndarray:
        return np.rint(np.log(np.maximum(residual, self.lam)) * GRID) / GRID

    def adding(self, worth: Factor, keys: Sequence[int], cols: np.ndarray) -> VolumeAdding:
        return VolumeAdding(self, worth, keys, cols)


class VolumeAdding:
    def __init__(self, look: VolumeLook, worth: Factor, keys: Sequence[int], cols: np.ndarray):
        self.look, self.inverse, self.cols = look, worth.inverse, cols
        self.entries = self.inverse @ look.near.to(
            keys, cols
        )  # (|S|, m): rows of the factor, were they picked
        residual = look.near.diagonal[cols] + look.lam - np.square(self.entries).sum(axis=0)
        self.residual = np.maximum(residual, look.lam)
        self.gains = look.log(self.residual)

    @property
    def worth(self) -> Factor:
        return Factor(self.inverse)

    def gain(self, b: int) -> float:
        return float(self.gains[b])

    def accept(self, b: int) -> None:
        m, pivot, mine = len(self.inverse), np.sqrt(self.residual[b]), self.entries[:, b]
        wider = np.zeros((m + 1, m + 1))
        wider[:m, :m] = self.inverse
        wider[m, :m] = -(mine @ self.inverse) / pivot
        wider[m, m] = 1 / pivot
        entry = (self.look.near.among(int(self.cols[b]), self.cols) - mine @ self.entries) / pivot
        self.inverse = wider
        self.entries = np.concatenate([self.entries, entry[None]])
        self.residual = np.maximum(self.residual - np.square(entry), self.look.lam)
        self.gains = self.look.log(self.residual)
