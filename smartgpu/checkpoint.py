"""Checkpoints: the picks of an unfinished selection, or what parts of a pool chose: the same call goes on from them."""

from __future__ import annotations

import hashlib
import json
import time
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from smartgpu.files import replacing

SECONDS = 5.0  # between writes


def fingerprint(x: np.ndarray) -> str:
    """sha256 of shape, dtype and content of an array, hex. Reads the array once, in blocks.

    A torch tensor has that of its host copy, bfloat16 as float32; sparse rows (CSR) that of their three arrays.
    """
    if hasattr(x, "indptr"):
        parts = x.indptr.astype(np.int64), x.indices.astype(np.int64), x.data
        text = f"{tuple(x.shape)} {' '.join(fingerprint(part) for part in parts)}"
        return hashlib.sha256(text.encode()).hexdigest()
    digest = hashlib.sha256(f"{tuple(x.shape)} {_on_host(x[:1]).dtype.str}".encode())
    for i in range(0, len(x), 4096):
        digest.update(np.ascontiguousarray(_on_host(x[i : i + 4096])).data)
    return digest.hexdigest()


def _on_host(block: Any) -> np.ndarray:
    if isinstance(block, np.ndarray):
        return block
    return (block.float() if str(block.dtype) == "torch.bfloat16" else block).cpu().numpy()


def differences(before: dict[str, Any], now: dict[str, Any], prefix: str = "") -> list[str]:
    """What differs between two records, one line each: 'seed: 0 there, 1 now'."""
    lines = []
    for key in sorted({*before, *now}):
        old, new = before.get(key), now.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            lines += differences(old, new, f"{prefix}{key}.")
        elif old != new:
            lines.append(f"{prefix}{key}: {old!r} there, {new!r} now")
    return lines


class _Kept:
    """Arrays in `path` (.npz, no pickle), with the record of the call that they belong to.

    The record names data and options; arrays of another record are refused, with what differs. A write goes to a
    temporary name and then replaces the file, so that an interrupted one leaves the previous checkpoint.
    """

    def __init__(self, path: str | Path, record: dict[str, Any]):
        self.path, self.record = Path(path), json.loads(json.dumps(record))
        self.saved = time.monotonic()

    def _read(self, *names: str) -> tuple[dict[str, Any], list[np.ndarray]] | None:
        """The record and the arrays of these names, None where there is no file. ValueError for an unreadable one."""
        try:
            with open(self.path, "rb") as handle, np.load(handle, allow_pickle=False) as file:
                return json.loads(str(file["record"])), [file[name] for name in names]
        except FileNotFoundError:
            return None
        except (KeyError, ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
            raise ValueError(
                f"checkpoint {self.path} cannot be read ({error}); remove it to start anew"
            ) from error

    def _refuse_other(self, record: dict[str, Any]) -> None:
        changed = differences(record, self.record)
        if changed:
            raise ValueError(
                f"checkpoint {self.path} is of another selection; remove it to start anew. "
                + "; ".join(changed)
            )

    @property
    def due(self) -> bool:
        """Whether the last write was some seconds ago."""
        return time.monotonic() - self.saved >= SECONDS

    def _write(self, **arrays: np.ndarray) -> None:
        with replacing(self.path) as file:
            np.savez(file, record=np.array(json.dumps(self.record)), **arrays)
        self.saved = time.monotonic()


class Checkpoint(_Kept):
    """Picks and gains so far. instead: the record of a call that failed, whose picks are not refused but dropped."""

    def __init__(self, path: str | Path, record: dict[str, Any], instead: dict[str, Any] | None = None):
        super().__init__(path, record)
        self.instead = json.loads(json.dumps(instead))

    def load(self) -> tuple[np.ndarray, np.ndarray]:
        """(indices, gains) so far, empty where there is no checkpoint. ValueError for one of another call."""
        found = self._read("indices", "gains")
        if found is None or found[0] == self.instead != self.record:
            return np.empty(0, np.int64), np.empty(0)
        self._refuse_other(found[0])
        indices, gains = found[1]
        return indices.astype(np.int64), gains.astype(np.float64)

    def check(self) -> None:
        """ValueError for picks of another call, by what the record given here names: the rest is not known yet."""
        found = self._read("indices", "gains")
        if found is not None:
            self._refuse_other({key: found[0].get(key) for key in self.record})

    def save(self, indices: list[int], gains: list[float], force: bool = False) -> None:
        """Write the picks so far, at most every few seconds unless forced."""
        if force or self.due:
            self._write(indices=np.array(indices, np.int64), gains=np.array(gains))


class Chosen(NamedTuple):
    """What one part of a partition chose.

    rows         (m,) int64, pool rows in pick order
    weights      (m,) float64, what each stands for
    evaluations  gains that were computed for it
    """

    rows: np.ndarray
    weights: np.ndarray
    evaluations: int


class PartsCheckpoint(_Kept):
    """What the parts of partition greedy have chosen so far, by (round, part)."""

    def load(self) -> dict[tuple[int, int], Chosen]:
        """Empty where there is no checkpoint. ValueError for one of another call, or one that is damaged."""
        found = self._read("parts", "rows", "weights")
        if found is None:
            return {}
        self._refuse_other(found[0])
        parts, rows, weights = found[1]
        if len(rows) != len(weights) or parts.shape[1:] != (4,) or parts[:, 2].sum() != len(rows):
            raise ValueError(
                f"checkpoint {self.path} cannot be read (its arrays do not fit); remove it to start anew"
            )
        ends = np.cumsum(parts[:, 2])[:-1]
        every = (
            zip(parts.tolist(), np.split(rows, ends), np.split(weights, ends), strict=True)
            if len(parts)
            else ()
        )
        return {(stage, part): Chosen(mine, those, count) for (stage, part, _, count), mine, those in every}

    def save(self, done: dict[tuple[int, int], Chosen], force: bool = False) -> None:
        """Write all that is done, at most every few seconds unless forced."""
        if not (force or self.due):
            return
        parts = [(*key, len(got.rows), got.evaluations) for key, got in done.items()]
        self._write(
            parts=np.array(parts, np.int64).reshape(-1, 4),  # round, part, rows, evaluations
            rows=np.concatenate([np.empty(0, np.int64), *(got.rows for got in done.values())]),
            weights=np.concatenate([np.empty(0), *(got.weights for got in done.values())]),
        )
