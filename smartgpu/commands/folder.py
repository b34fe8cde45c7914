"""The output folder: what smartgpu wrote there, what is unfinished, what may be replaced.

While a run is unfinished, OUT/.partial holds what it is (run.json), how far it came (picks*.npz, done-*.npz) and what
it has written so far. The same command goes on from there. What is whole is moved up to OUT, the manifest last
(selection.json, mixture.json): where that stands and .partial does not, the run is done.
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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smartgpu.checkpoint import differences
from smartgpu.config import Config
from smartgpu.files import replacing
from smartgpu.io import Pool
from smartgpu.reporting.place import discard

log = logging.getLogger("smartgpu")
PARTIAL, MANIFEST, ARRAYS = ".partial", "selection.json", "selection.npz"
ALPHA_PATH, SWEEP = "alpha_path.json", "sweep.json"  # tables, beside or without a selection


@dataclass(frozen=True)
class Kind:
    """What a run makes: the names of its files, relative to OUT.

    written   the names of its files of rows: nothing else that a manifest lists is ever replaced or removed
    progress  what .partial holds of it when it is not new
    """

    noun: str
    manifest: str
    arrays: str
    written: re.Pattern[str]
    progress: str


_NAME = r"[A-Za-z0-9_][A-Za-z0-9._-]*"
SELECTION = Kind(
    "selection", MANIFEST, ARRAYS, re.compile(r"(selected|ranked)(-[0-9]+)?(\.[a-z]+)?"), "picks*.npz"
)
MIXTURE = Kind(
    "mixture",
    "mixture.json",
    "mixture.npz",
    re.compile(rf"mixed\.[a-z]+|tasks/{_NAME}|exports/{_NAME}(/{_NAME})?"),
    "done-*.npz",
)


class Folder:
    """OUT: refuses what another run left there, keeps the unfinished one, and knows when a run is whole."""

    def __init__(self, path: str, record: dict[str, Any], overwrite: bool, kind: Kind = SELECTION):
        self.path, self.kind = Path(path).expanduser(), kind
        self.partial, self.manifest = self.path / PARTIAL, self.path / kind.manifest
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
            self._refuse_other(unfinished, f"an unfinished {kind.noun}")
            if any(self.partial.glob(kind.progress)):
                log.info("going on from the unfinished %s in %s", kind.noun, self.partial)
        elif finished is not None and not overwrite:
            self._refuse_other(finished.get("run"), f"a {kind.noun}")
            gone = [name for name in self._ours() if not (self.path / name).exists()]
            if gone:
                raise ValueError(
                    f"{self.path} lacks {', '.join(gone[:5])} of its {kind.noun}: --overwrite makes it anew"
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
        """The manifest, None where there is none."""
        return _read_json(self.manifest)

    def _ours(self) -> list[str]:
        """Names in OUT that smartgpu wrote, by the manifests there; nothing else is ever replaced or removed."""
        names, arrays = [], self.kind.arrays
        for path in (self.manifest, self.partial / self.kind.manifest):
            held = _read_json(path)
            if held is not None:
                try:
                    files = [str(cut["file"]) for cut in held["files"]]
                except (KeyError, TypeError):
                    raise ValueError(
                        f"{path} is not of smartgpu: move it, or choose another folder"
                    ) from None
                names += [n for n in [*files, arrays] if n == arrays or self.kind.written.fullmatch(n)]
        return list(dict.fromkeys(names))

    def _check_partial(self) -> None:
        """A .partial that holds anything but no run.json is somebody else's."""
        held = [path.name for path in self.partial.iterdir()] if self.partial.is_dir() else []
        foreign = "run.json" not in held and any(not name.endswith(".tmp") for name in held)
        if foreign or self.partial.is_symlink():
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
        self.check_free(names)
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

    def check_free(self, names: list[str]) -> None:
        """Refuse names in OUT that another than smartgpu gave to something there."""
        ours = self._ours()
        inner = {parent.as_posix() for name in names for parent in Path(name).parents} - {"."}
        for name in [*names, self.kind.arrays, *inner]:
            foreign = name not in ours and os.path.lexists(self.path / name)
            if name in inner:  # a link could lead out of OUT
                foreign &= (self.path / name).is_symlink() or not (self.path / name).is_dir()
            if foreign:
                raise ValueError(
                    f"{self.path / name} exists and is not of smartgpu: move it, or choose another folder"
                )

    def finish(self, manifest: dict[str, Any]) -> None:
        """Everything is written in .partial: replace what an earlier run left in OUT by it."""
        before = self._ours()
        kind = self.kind
        self.describe(manifest, self.partial)
        _remove(self.path, before)
        discard(self.path)
        for name in [*(cut["file"] for cut in manifest["files"]), kind.arrays, kind.manifest]:
            (self.path / name).parent.mkdir(parents=True, exist_ok=True)
            os.replace(self.partial / name, self.path / name)
        shutil.rmtree(self.partial)

    def describe(self, manifest: dict[str, Any], folder: Path | None = None) -> None:
        """Write the manifest, into OUT unless another folder is named."""
        with replacing((folder or self.path) / self.kind.manifest, "w") as file:
            json.dump(manifest, file, indent=1, ensure_ascii=False)
            file.write("\n")

    def replace_files(self, manifest: dict[str, Any]) -> None:
        """Another manifest for a whole run whose new files are written: files that it no longer lists are removed."""
        listed = {self.kind.arrays, *(cut["file"] for cut in manifest["files"])}
        before = self._ours()
        self.describe(manifest)
        _remove(self.path, [name for name in before if name not in listed])


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
    inner = {parent for name in names for parent in Path(name).parents} - {Path()}
    for parent in sorted(inner, reverse=True):  # folders that are empty now, the innermost first
        with contextlib.suppress(OSError):
            (folder / parent).rmdir()


def check_outside(config: Config, pool: Pool) -> None:
    """Refuse an OUT whose files the pool would hold when it is read again."""
    out = Path(config.out).expanduser()
    alone = pool.files == (Path(pool.source).expanduser(),)
    if not alone and out.is_dir() and any(file.parent.samefile(out) for file in pool.files):
        raise ValueError(
            f"--out {config.out} is the folder of the pool, which would read its own output: name another"
        )
