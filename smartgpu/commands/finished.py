"""The selections of an unfinished mixture, kept in its folder: what mix() reports, and does not do again."""

from __future__ import annotations

import json
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from smartgpu.files import replacing
from smartgpu.selection import Selection

SECONDS = 5.0  # between writes


class Finished:
    """The selections of an unfinished mixture, in .partial/done-0.npz, done-1.npz, ... (no pickle).

    Written every few seconds: thousands of tasks take milliseconds each, less than a file of its own would.
    """

    def __init__(self, folder: Path):
        self.folder, self.waiting, self.saved = folder, [], time.monotonic()
        self.count = len(list(folder.glob("done-*.npz")))

    def load(self) -> dict[Any, Selection]:
        """What mix(done=...) takes."""
        found = {}
        for number in range(self.count):
            path = self.folder / f"done-{number}.npz"
            try:
                with open(path, "rb") as handle, np.load(handle, allow_pickle=False) as file:
                    records, indices, gains = json.loads(str(file["records"])), file["indices"], file["gains"]
            except (KeyError, ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
                raise ValueError(f"{path} cannot be read ({error}); --overwrite starts anew") from error
            at = 0
            for key, record in records:
                part = slice(at, at + record.pop("k"))
                found[key if isinstance(key, str) else tuple(key)] = Selection.restore(
                    record, indices[part], gains[part]
                )
                at = part.stop
        return found

    def report(self, key: Any, selection: Selection) -> None:
        self.waiting.append((key, selection))
        if time.monotonic() - self.saved >= SECONDS:
            self.flush()

    def flush(self) -> None:
        if self.waiting:
            records = [(key, selection.metadata()) for key, selection in self.waiting]
            arrays = {
                name: np.concatenate([getattr(selection, name) for _, selection in self.waiting])
                for name in ("indices", "gains")
            }
            with replacing(self.folder / f"done-{self.count}.npz") as file:
                np.savez(file, records=np.array(json.dumps(records)), **arrays)
            self.count += 1
            self.waiting = []
        self.saved = time.monotonic()
