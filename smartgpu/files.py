"""Writing a file whole or not at all, and where the package keeps what it can make again."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any


@contextlib.contextmanager
def replacing(path: Path, mode: str = "wb") -> Iterator[IO[Any]]:
    """A file under a temporary name beside `path`, which it replaces when written whole; gone if anything fails."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    try:
        os.fchmod(handle, 0o666 & ~_umask())
        with os.fdopen(handle, mode, **({} if "b" in mode else {"encoding": "utf-8"})) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except OSError as error:
        _remove(name)
        raise type(error)(error.errno, f"cannot write {path}: {error.strerror or error}") from error
    except BaseException:
        _remove(name)
        raise


def default_cache() -> Path:
    """The package's cache folder: $SMARTGPU_CACHE, else $XDG_CACHE_HOME/smartgpu, else ~/.cache/smartgpu."""
    own = os.environ.get("SMARTGPU_CACHE")
    return Path(own or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "smartgpu").expanduser()


def _remove(name: str) -> None:
    with contextlib.suppress(OSError):
        os.unlink(name)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
