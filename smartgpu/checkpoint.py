"""Checkpoints: the picks of an unfinished selection, from which the same call goes on."""

from __future__ import annotations

import hashlib
import json
import time
import zipfile
from pathlib import Path
from typing import Any

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


class Checkpoint:
    """Picks and gains so far in `path` (.npz, no pickle), with the record of the call that they belong to.

    The record names data and options; picks of another record are refused, with what differs. A write goes to a
    temporary name and then replaces the file, so that an interrupted one leaves the previous checkpoint.
    instead: the record of a call that failed, whose picks are not refused but dropped.
    """

    def __init__(self, path: str | Path, record: dict[str, Any], instead: dict[str, Any] | None = None):
        self.path, self.record = Path(path), json.loads(json.dumps(record))
        self.instead = json.loads(json.dumps(instead))
        self.saved = time.monotonic()

    def load(self) -> tuple[np.ndarray, np.ndarray]:
        """(indices, gains) so far, empty where there is no checkpoint. ValueError for one of another call."""
        record, indices, gains = self._read()
        changed = [] if record is None else differences(record, self.record)
        if record is None or (changed and record == self.instead):
            return np.empty(0, np.int64), np.empty(0)
        self._refuse(changed)
        return indices, gains

    def check(self) -> None:
        """ValueError for picks of another call, by what the record given here names: the rest is not known yet."""
        there = self._read()[0]
        if there is not None:
            self._refuse(differences({key: there.get(key) for key in self.record}, self.record))

    def _read(self) -> tuple[dict[str, Any] | None, np.ndarray, np.ndarray]:
        try:
            with open(self.path, "rb") as handle, np.load(handle, allow_pickle=False) as file:
                record = json.loads(str(file["record"]))
                return record, file["indices"].astype(np.int64), file["gains"].astype(np.float64)
        except FileNotFoundError:
            return None, np.empty(0, np.int64), np.empty(0)
        except (KeyError, ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
            raise ValueError(
                f"checkpoint {self.path} cannot be read ({error}); remove it to start anew"
            ) from error

    def _refuse(self, changed: list[str]) -> None:
        if changed:
            raise ValueError(
                f"checkpoint {self.path} is of another selection; remove it to start anew. "
                + "; ".join(changed)
            )

    def save(self, indices: list[int], gains: list[float], force: bool = False) -> None:
        """Write the picks so far, at most every few seconds unless forced."""
        if not force and time.monotonic() - self.saved < SECONDS:
            return
        with replacing(self.path) as file:
            np.savez(
                file,
                indices=np.array(indices, np.int64),
                gains=np.array(gains),
                record=np.array(json.dumps(self.record)),
            )
        self.saved = time.monotonic()
