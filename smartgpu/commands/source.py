"""What commands read: the pool with its embeddings, or the text to embed, and files of row numbers."""

from __future__ import annotations

import logging
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from smartgpu.arrays import as_matrix, as_rows
from smartgpu.checkpoint import fingerprint
from smartgpu.commands.folder import ARRAYS, MANIFEST, MIXTURE
from smartgpu.config import Config
from smartgpu.io import Pool, find_text, read_embeddings, read_pool, text_fields
from smartgpu.io.matrices import is_sparse_file, read_sparse
from smartgpu.seconds import Seconds

log = logging.getLogger("smartgpu")


@dataclass
class Source:
    """A pool with what it is selected by: embeddings (or a precomputed similarity) in x, else texts to embed."""

    pool: Pool
    x: np.ndarray | None
    texts: list[str] | None
    origin: dict[str, Any]  # where the embeddings come from, for the manifest

    def identity(self, config: Config) -> Any:
        """What the embeddings are, before anything is embedded: a hash, or the model and what it is given."""
        if self.x is not None:
            return fingerprint(self.x)
        from smartgpu import embed

        model = embed.find_model(config.embedder)  # one that is not here is refused
        self.origin |= {"model": model.name, "identity": model.identity, "max_tokens": config.max_tokens}
        return self.origin

    def vectors(self, config: Config, seconds: Seconds, progress: bool) -> np.ndarray:
        """The embeddings, made from the texts where the files hold none."""
        if self.x is None:
            from smartgpu.embed import embed

            log.info("embedding %d rows from %s", self.pool.n, " + ".join(self.origin["text"]))
            how = {"cache": config.cache, "batch_size": config.batch_size, "device": config.device}
            with seconds("embed"):
                self.x = embed(
                    self.texts, config.embedder, max_tokens=config.max_tokens, progress=progress, **how
                )
            self.texts = None
        return self.x


def read_source(config: Config) -> Source:
    """Read the pool and find its embeddings: in --embeddings, in the pool itself, or to be made from its text."""
    if config.pool is None:
        raise ValueError("POOL is missing: name a file, a folder of shards, a glob or embeddings")
    named = config.embeddings is not None or config.embedding_field is not None
    if named and config.embedder is not None:
        raise ValueError("--embedder cannot be combined with --embeddings or --embedding-field: which is it?")
    pool = read_pool(config.pool, embedding_field=None if config.embeddings else config.embedding_field)
    x, where = None, config.embeddings or config.pool
    precomputed = config.similarity == "precomputed"
    if precomputed and config.embeddings is not None and is_sparse_file(config.embeddings):
        return Source(pool, read_sparse(config.embeddings, pool.n), None, {"file": str(where), "field": None})
    if config.embeddings is not None:
        x, field = read_embeddings(config.embeddings, field=config.embedding_field), config.embedding_field
    elif pool.embeddings is not None and config.embedder is None and (named or config.text is None):
        x, field = pool.embeddings, pool.embedding_field
    if x is not None:
        x = as_matrix(x, f"{'the matrix' if precomputed else 'embeddings'} in {where}")
        if (x.shape[1] if precomputed else len(x)) != pool.n:
            what = "one column per pool row" if precomputed else "one row per pool row"
            raise ValueError(f"{where} must have {what}: {pool.n} in {config.pool}, got shape {x.shape}")
        if config.text:  # shown, not embedded: unknown names are refused all the same
            text_fields(pool, config.text)
        return Source(pool, x, None, {"file": str(where), "field": field})
    if precomputed:
        raise ValueError("--similarity precomputed needs the matrix: give it with --embeddings, or as POOL")
    return Source(pool, None, find_text(pool, config.text), {"text": list(text_fields(pool, config.text))})


def read_chosen(path: str | None, n: int, option: str) -> np.ndarray:
    """Row numbers from a file: an output folder, selection.npz, npy, one number a line, or rows with source_row."""
    if path is None:
        return np.empty(0, np.int64)
    where = Path(path).expanduser()
    where = where.parent if where.name in (MANIFEST, MIXTURE.manifest) else where
    where = next((path for path in (where / ARRAYS, where / MIXTURE.arrays) if path.is_file()), where)
    what = f"--{option} {path}"
    if where.suffix in (".npz", ".npy") and where.is_file():
        rows = _read_array(where, what)
    elif where.suffix == ".txt" and where.is_file():
        rows = []
        for number, line in enumerate(where.read_text(encoding="utf-8").splitlines(), 1):
            if line.strip():
                if not re.fullmatch(r"\s*[0-9]+\s*", line):
                    raise ValueError(f"{what}, line {number}: expected a row number, got {line[:40]!r}")
                rows.append(int(line))
    else:
        chosen = read_pool(path)
        name = next((c for c in ("smartgpu_source_row", "source_row") if c in chosen.fields), None)
        if name is None:
            held = ", ".join(chosen.fields) or "none"
            raise ValueError(f"{what} must have a field 'source_row'; its fields: {held}")
        numbers = chosen.numbers(name)
        rows = numbers.astype(np.int64) if (np.mod(numbers, 1) == 0).all() else numbers
    try:
        rows = as_rows(rows, n, what)
    except TypeError as error:  # not integers
        raise ValueError(str(error)) from error
    if not len(rows):
        raise ValueError(f"{what} holds no rows")
    return rows


def _read_array(path: Path, what: str) -> np.ndarray:
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return loaded
        with loaded:
            if "indices" not in loaded:
                raise ValueError(f"no array 'indices', only {', '.join(loaded)}")
            return loaded["indices"]
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{what} must hold row numbers: {error}") from error
