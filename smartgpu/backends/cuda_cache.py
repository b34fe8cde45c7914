"""Machine code of csrc/ on disk: built once for a source, its options, an architecture and a compiler."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import re
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from smartgpu.files import replacing
from smartgpu.version import __version__

log = logging.getLogger("smartgpu")
PACKAGE = Path(__file__).resolve().parents[1]
CSRC = next(
    (p for p in (PACKAGE.parent / "csrc", PACKAGE / "csrc") if (p / "scalar.cuh").is_file()), PACKAGE / "csrc"
)
INCLUDE = re.compile(r'^#include "([\w.]+)"\n', re.MULTILINE)
WAIT = 300.0  # seconds for another process that builds


def source(name: str) -> str:
    """One translation unit: csrc/NAME.cu with the headers that it includes in their places, each once.

    Raises OSError where the sources are not installed.
    """
    seen: set[str] = set()

    def text(file: str) -> str:
        if file in seen or not (
            file.endswith(".cu") or (CSRC / file).is_file()
        ):  # tests have headers of their own
            return ""
        seen.add(file)
        return INCLUDE.sub(lambda found: text(found[1]), (CSRC / file).read_text(encoding="utf-8"))

    return text(f"{name}.cu").replace("#pragma once\n", "")


class Compiler(Protocol):
    """What turns sources into machine code for one architecture."""

    version: str  # of everything that the machine code depends on, the architecture included

    def compile(self, code: str, name: str, options: tuple[str, ...]) -> bytes: ...


@dataclass
class Cache:
    """Machine code in a folder, as files written whole.

    An entry is NAME-KEY.cubin with its sha256 beside it: one that does not match is built again. One process builds,
    the others wait for it. In a folder that cannot be used the code lies in a temporary one, for as long as this
    object, and one message says so.
    """

    folder: Path
    compiler: Compiler
    own: tempfile.TemporaryDirectory | None = field(default=None, init=False)

    def get(self, name: str, code: str, options: tuple[str, ...] = ()) -> Path:
        """The file of machine code. Raises what the compiler raises."""
        key = hashlib.sha256(
            "\0".join([code, *options, self.compiler.version, __version__]).encode()
        ).hexdigest()
        path = self.folder / f"{name}-{key[:24]}.cubin"
        if is_whole(path):
            return path
        binary: bytes | None = None
        try:
            with _locked(path.with_suffix(".lock")):
                if not is_whole(path):  # else another process has built it meanwhile
                    binary = self.compiler.compile(code, f"{name}.cu", options)
                    _store(path, binary)
            return path
        except OSError as error:
            if self.own is None:
                log.warning("CUDA kernels are not kept, and built again by every process: %s", error)
                self.own = tempfile.TemporaryDirectory(prefix="smartgpu-")
        path = Path(self.own.name) / path.name
        if not is_whole(path):
            _store(path, binary or self.compiler.compile(code, f"{name}.cu", options))
        return path


def is_whole(path: Path) -> bool:
    """Whether an entry is there, and as it was written."""
    try:
        said = path.with_suffix(".sha256").read_bytes().decode(errors="replace").strip()
        return hashlib.sha256(path.read_bytes()).hexdigest() == said
    except OSError:
        return False


def _store(path: Path, binary: bytes) -> None:
    with replacing(path) as file:
        file.write(binary)
    with replacing(path.with_suffix(".sha256"), "w") as file:
        file.write(hashlib.sha256(binary).hexdigest() + "\n")


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Inside, no other process builds this entry. A lock goes with the process that has it. OSError after WAIT."""
    import fcntl

    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        end = time.monotonic() + WAIT
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > end:
                    raise TimeoutError(f"another process has built {path.stem} for {WAIT:.0f} s") from None
                time.sleep(0.02)
        yield
