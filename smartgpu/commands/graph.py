"""smartgpu graph: the nearest neighbours of a pool in a file, which --similarity precomputed reads."""

from __future__ import annotations

from pathlib import Path

from smartgpu import graph as _graph
from smartgpu.commands.source import read_source
from smartgpu.config import Config
from smartgpu.files import replacing
from smartgpu.options import bytes_text, parse_bytes
from smartgpu.seconds import Seconds


def run(config: Config, progress: bool) -> str:
    """`smartgpu graph POOL -k 32 OUT.npz`; what was written, in a line. Raises ValueError, FileExistsError."""
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

    source = read_source(config)
    most = source.pool.n - config.no_self
    if not 1 <= config.neighbors <= most:
        raise ValueError(f"-k must lie between 1 and {most}, got {config.neighbors}")
    how = {name: getattr(config, name) for name in ("backend", "threads", "precision")}
    memory = None if config.memory is None else parse_bytes(config.memory)
    found = _graph(
        source.vectors(config, Seconds(), progress),
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
