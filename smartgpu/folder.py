"""The output folder: what smartgpu wrote there, what is unfinished, what may be replaced.

While a run is unfinished, OUT/.partial holds what it is (run.json), how far it came (picks.npz) and what it has written
so far. The same command goes on from there. What is whole is moved up to OUT, selection.json last: where that stands
and .partial does not, the run is done.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from smartgpu.checkpoint import differences
from smartgpu.files import replacing

log = logging.getLogger("smartgpu")
PARTIAL, MANIFEST, ARRAYS = ".partial", "selection.json", "selection.npz"
WRITTEN = re.compile(r"(selected|ranked)(-[0-9]+)?(\.[a-z]+)?")  # names of files of chosen rows


class Folder:
    """OUT: refuses what another run left there, keeps the unfinished one, and knows when a run is whole."""

    def __init__(self, path: str, record: dict[str, Any], overwrite: bool):
        self.path = Path(path).expanduser()
        self.partial, self.manifest = self.path / PARTIAL, self.path / MANIFEST
        self.record = json.loads(json.dumps(record))
        if not path or (self.path.exists() and not self.path.is_dir()):
            raise ValueError(f"--out must be a folder, got {f'the file {path}' if path else 'no name'}")
        self._check_partial()
        if overwrite:
            self._drop()
        unfinished = _read_json(self.partial / "run.json")
        finished = self.held()
        self.new, self.whole = unfinished is None, False
        # An unfinished run was allowed to replace what is finished here: it comes first.
        if unfinished is not None:
            self._refuse_other(unfinished, "an unfinished selection")
            if (self.partial / "picks.npz").is_file():
                log.info("going on from the unfinished selection in %s", self.partial)
        elif finished is not None and not overwrite:
            self._refuse_other(finished.get("run"), "a selection")
            gone = [name for name in self._ours() if not (self.path / name).exists()]
            if gone:
                raise ValueError(
                    f"{self.path} lacks {', '.join(gone)} of its selection: --overwrite makes it anew"
                )
            self.whole = True

    def _refuse_other(self, there: Any, what: str) -> None:
        changed = differences(there, self.record) if isinstance(there, dict) else ["it is not of smartgpu"]
        if changed:
            shown = re.sub(r"'([0-9a-f]{12})[0-9a-f]{52}'", r"\1...", "; ".join(changed))
            raise ValueError(
                f"{self.path} holds {what} of other options or data ({shown}): choose another folder, "
                "or --overwrite to start anew"
            )

    def held(self) -> dict[str, Any] | None:
        """selection.json, None where there is none."""
        return _read_json(self.manifest)

    def _ours(self) -> list[str]:
        """Names in OUT that smartgpu wrote, by the manifests there; nothing else is ever replaced or removed."""
        names = []
        for path in (self.manifest, self.partial / MANIFEST):
            held = _read_json(path)
            if held is not None:
                try:
                    files = [str(cut["file"]) for cut in held["files"]]
                except (KeyError, TypeError):
                    raise ValueError(
                        f"{path} is not of smartgpu: move it, or choose another folder"
                    ) from None
                names += [name for name in [*files, ARRAYS] if name == ARRAYS or WRITTEN.fullmatch(name)]
        return list(dict.fromkeys(names))

    def _check_partial(self) -> None:
        """A .partial that holds anything but no run.json is somebody else's."""
        held = [path.name for path in self.partial.iterdir()] if self.partial.is_dir() else []
        if "run.json" not in held and any(not name.endswith(".tmp") for name in held):
            raise ValueError(f"{self.partial} is not of smartgpu: move it, or choose another folder")

    def _drop(self) -> None:
        """Forget an unfinished run."""
        if not self.manifest.is_file():  # files moved up by a run that was stopped at its very end
            _remove(self.path, self._ours())
        if self.partial.is_dir():
            shutil.rmtree(self.partial)

    @contextmanager
    def working(self, names: list[str]) -> Iterator[None]:
        """Around the work: OUT and .partial are there; gone again if this call made them and its input was bad."""
        ours = self._ours()
        for name in [*names, ARRAYS]:
            if name not in ours and os.path.lexists(self.path / name):
                raise ValueError(
                    f"{self.path / name} exists and is not of smartgpu: move it, or choose another folder"
                )
        made = not self.path.exists()
        try:
            self.partial.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OSError(error.errno, f"cannot make the folder {self.path}: {error.strerror}") from error
        try:
            with replacing(self.partial / "run.json", "w") as file:
                json.dump(self.record, file, indent=1)
            yield
        except (ValueError, ImportError):  # the same command would fail again: nothing to go on from
            if self.new:
                shutil.rmtree(self.partial)
                with contextlib.suppress(OSError):
                    if made:
                        self.path.rmdir()
            raise

    def finish(self, manifest: dict[str, Any]) -> None:
        """Everything is written in .partial: replace what an earlier run left in OUT by it."""
        before = self._ours()
        with replacing(self.partial / MANIFEST, "w") as file:
            json.dump(manifest, file, indent=1, ensure_ascii=False)
            file.write("\n")
        _remove(self.path, before)
        for name in [*(cut["file"] for cut in manifest["files"]), ARRAYS, MANIFEST]:
            os.replace(self.partial / name, self.path / name)
        shutil.rmtree(self.partial)


def _read_json(path: Path) -> dict[str, Any] | None:
    """The object in a file of ours, None where there is no file."""
    if not path.is_file():
        return None
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not of smartgpu ({error}): move it, or choose another folder") from None
    if not isinstance(held, dict):
        raise ValueError(f"{path} is not of smartgpu: move it, or choose another folder")
    return held


def _remove(folder: Path, names: list[str]) -> None:
    for path in (folder / name for name in names):
        if path.is_dir() and not path.is_symlink():
            if (path / "dataset_info.json").is_file():
                shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
