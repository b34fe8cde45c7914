"""smartgpu graph: the nearest neighbours of a pool in a file, and such a file read as a precomputed similarity."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from smartgpu import graph as _graph
from smartgpu.config import Config
from smartgpu.files import replacing
from smartgpu.options import bytes_text, parse_bytes

ARRAYS = ("data", "indices", "indptr", "shape", "format")  # of a file by scipy.sparse.save_npz


def run(config: Config, progress: bool) -> str:
    """`smartgpu graph POOL -k 32 OUT.npz`; what was written, in a line. Raises ValueError, FileExistsError."""
    from smartgpu.commands import select

    if config.neighbors is None:
        raise ValueError("-k is missing: how many neighbours each row has")
    if config.out is None:
        raise ValueError("OUT is missing: name the file to write, ending in .npz")
    path = Path(config.out).expanduser()
    if path.suffix != ".npz" or path.is_dir():
        raise ValueError(f"OUT must be a file name that ends in .npz, got {config.out!r}")
    if path.exists() and not config.overwrite:
        raise ValueError(f"{path} exists: --overwrite replaces it")
    from scipy import sparse

    source = select.read_source(config)
    most = source.pool.n - config.no_self
    if not 1 <= config.neighbors <= most:
        raise ValueError(f"-k must lie between 1 and {most}, got {config.neighbors}")
    how = {name: getattr(config, name) for name in ("backend", "threads", "precision")}
    memory = None if config.memory is None else parse_bytes(config.memory)
    found = _graph(
        source.vectors(config, select.Seconds(), progress),
        config.neighbors,
        config.make_similarity(),
        own=not config.no_self,
        symmetric=config.symmetric,
        memory=memory,
        progress=progress,
        **how,
    )
    with replacing(path) as file:
        sparse.save_npz(file, found, compressed=False)
    size = bytes_text(path.stat().st_size)
    return f"{path} holds {found.nnz} similarities of {found.shape[0]} rows by {config.similarity}, {size}"


def is_graph(path: str) -> bool:
    """Whether this is a sparse matrix in a file."""
    where = Path(path).expanduser()
    if where.suffix != ".npz" or not where.is_file() or not zipfile.is_zipfile(where):
        return False
    with zipfile.ZipFile(where) as archive:
        return {f"{name}.npy" for name in ARRAYS} <= set(archive.namelist())


def read(path: str, n: int) -> Any:
    """The sparse matrix in a file, (r, n); ValueError where it has other columns or cannot be read."""
    from scipy import sparse

    try:
        found = sparse.load_npz(Path(path).expanduser()).tocsr()
        found.check_format()
    except (ValueError, EOFError, KeyError, OSError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"{path} must be a sparse matrix written by scipy or smartgpu graph: {error}"
        ) from error
    if found.shape[1] != n:
        raise ValueError(f"{path} must have one column per pool row: {n}, got shape {found.shape}")
    if not np.isfinite(found.data).all():
        raise ValueError(f"the matrix in {path} must be finite")
    return found
