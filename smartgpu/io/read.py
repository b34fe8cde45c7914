"""Reading a pool: the rows whole, and their embeddings where the files carry them."""

from __future__ import annotations

import os
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from smartgpu.io import files as _files
from smartgpu.io import matrices, tables
from smartgpu.io.lines import JsonRows, read_json
from smartgpu.io.tables import ArrowRows

Values = np.ndarray | list


@dataclass(frozen=True, eq=False)
class Pool:
    """A pool of n rows as read: the rows whole, and their embeddings where the files carry them.

    source           the path as given
    files            the files behind it, in reading order: row numbers count through them in this order
    format           "json" | "jsonl" | "csv" | "parquet" | "hf" | "npy" | "npz" | "safetensors"
    n                number of rows
    fields           names of the columns or JSON keys (the union over all rows), () for bare embeddings
    embeddings       (n, d) float16 | float32 | float64, read-only or a memmap where possible, or None
    embedding_field  the field they came from, None for bare embeddings and where there are none
    counts           rows per file, () where that is not known (a HF folder of several shards)
    """

    source: str
    files: tuple[Path, ...]
    format: str
    n: int
    fields: tuple[str, ...]
    embeddings: np.ndarray | None = field(default=None, repr=False)
    embedding_field: str | None = None
    counts: tuple[int, ...] = field(default=(), repr=False)
    store: JsonRows | ArrowRows | None = field(default=None, repr=False)

    def check_fields(self, names: Sequence[str], option: str | None = None) -> None:
        """Raise ValueError, listing the fields, unless all `names` are fields; `option` named them."""
        for name in names:
            if name not in self.fields:
                held = (
                    f"the fields are {', '.join(self.fields)}" if self.fields else "it holds embeddings alone"
                )
                raise ValueError(
                    f"{option + ': ' if option else ''}no field {name!r} in {self.source}; {held}"
                )

    def columns(self, names: Sequence[str]) -> dict[str, Values]:
        """The values of several fields in one pass; ValueError lists the fields where one is unknown."""
        self.check_fields(names)
        return self.store.columns(names) if names else {}

    def column(self, name: str) -> Values:
        """The values of one field, n of them, in row order.

        returns  the embeddings for the embedding field; an array where all values are booleans, all integers
                 of 64 bits, or all numbers; else a list, None where a row has no value. csv values stay
                 strings
        raises   ValueError, listing the fields, for an unknown field
        """
        self.check_fields([name])
        if name == self.embedding_field:
            return self.embeddings
        values = self.store.columns([name])[name]
        return _as_array(values) if isinstance(self.store, JsonRows) else values

    def numbers(self, name: str, *, missing: bool = False) -> np.ndarray:
        """One field as (n,) float64, strings such as csv's parsed; ValueError names the first other row.

        missing: rows without a value, or with empty text, are NaN.
        """
        values = self.column(name)
        if isinstance(values, np.ndarray) and values.ndim == 1:
            return values.astype(np.float64)
        out = np.empty(self.n)
        for row, value in enumerate(values):
            try:
                out[row] = np.nan if missing and (value is None or value == "") else float(value)
            except (TypeError, ValueError, OverflowError) as error:
                shown = repr(value)[:40]
                raise ValueError(
                    f"field {name!r} of {self.source}: row {row} is {shown}, expected a number"
                ) from error
        return out

    def rows(self, indices: Sequence[int] | np.ndarray) -> list[dict[str, Any]]:
        """Whole rows as dicts in the order of `indices` (m,) integers in [0, n); repeats are allowed."""
        chosen = self.check_indices(indices)
        if self.store is None:
            return [{"embeddings": row} for row in self.embeddings[chosen]]
        return self.store.rows(chosen)

    def check_indices(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """`indices` as (m,) int64; raises ValueError unless they are 1-D integers in [0, n)."""
        given = np.asarray(indices)
        if given.size == 0 and given.ndim == 1:
            return np.empty(0, np.int64)
        if given.ndim != 1 or given.dtype.kind not in "iu":
            raise ValueError(f"indices must be (m,) integers, got {given.dtype} of shape {given.shape}")
        bad = np.flatnonzero((given < 0) | (given >= self.n))
        if len(bad):
            raise ValueError(f"indices must be in [0, {self.n}), got {given[bad[0]]} at position {bad[0]}")
        return given.astype(np.int64)

    def locate(self, index: int) -> tuple[Path, int]:
        """The file that row `index` came from and its number there, both from 0."""
        if not self.counts:
            raise ValueError(f"{self.source}: the rows of a HF folder of several shards are not located")
        ends = np.cumsum(self.counts)
        at = int(np.searchsorted(ends, index, side="right"))
        return self.files[at], int(index - (ends[at] - self.counts[at]))

    def fingerprint(self) -> str:
        """sha256 (hex) over size and content of the files in reading order, not names and times."""
        return _files.fingerprint(self.files)


def read_pool(path: str | Path, *, embedding_field: str | None = None) -> Pool:
    """Read a pool, and check all of it: every row can be had later without an error of the data.

    path             a file, a folder of shards, a glob, or a HF dataset folder (`Dataset.save_to_disk`).
                     Shards are read in natural order of their names (part-2 before part-10); hidden and
                     `_`-prefixed files are left out; .json, .jsonl and .csv may be .gz
    embedding_field  the field that holds the embeddings. Default: in parquet and HF folders the first of
                     `embeddings`, `embedding`, `vector` that holds lists of floats; in a .npz or .safetensors
                     of several arrays the one of such a name, or the only 2-D one. JSON is searched only when
                     named
    raises           FileNotFoundError (near names listed); ImportError naming the pip line for HF folders and
                     safetensors; ValueError, naming file and line, field or row, for everything malformed,
                     for formats that are mixed or not supported, and for an empty pool
    """
    found, fmt = _files.find_files(path)
    if fmt in _files.BARE:
        x, counts = matrices.read_arrays(found, fmt, embedding_field)
        return _checked(Pool(str(path), found, fmt, len(x), (), x, None, counts))
    if fmt in ("json", "jsonl"):
        store, fmt = read_json(found, fmt)
    elif fmt == "csv":
        store = tables.read_csv(found)
    elif fmt == "parquet":
        store = tables.read_parquet(found)
    else:
        store = tables.read_hf(Path(path).expanduser(), found)
    _checked(Pool(str(path), found, fmt, store.n, store.fields))
    name, x = _embeddings(store, fmt, embedding_field, str(path))
    return Pool(str(path), found, fmt, store.n, store.fields, x, name, store.counts, store)


def _checked(pool: Pool) -> Pool:
    if pool.n == 0:
        raise ValueError(f"{pool.source}: the pool is empty (0 rows in {len(pool.files)} file(s))")
    return pool


def _embeddings(
    store: JsonRows | ArrowRows, fmt: str, wanted: str | None, source: str
) -> tuple[str | None, np.ndarray | None]:
    if fmt in ("json", "jsonl", "csv"):
        if wanted is None:
            return None, None
        if wanted not in store.fields:
            raise ValueError(f"{source}: no field {wanted!r}; the fields are {', '.join(store.fields)}")
        if fmt == "csv":
            raise ValueError(
                f"{source}: field {wanted!r} is text; csv cannot carry embeddings, use parquet or npy"
            )
        return wanted, matrices.from_lists(store.columns([wanted])[wanted], f"{source}, field {wanted!r}")
    name = matrices.find_column(store.table.schema, wanted, source)
    if name is None:
        return None, None
    column = store.table.column(name)
    x = matrices.from_column(column, f"{source}, field {name!r}")
    kind = column.type
    # parquet of many chunks was just copied into one block: let the table share it, so that there is one.
    # (A HF folder's chunks are memory-mapped files; 32-bit list offsets end at 2^31 values.)
    fits = not isinstance(kind, pa.BaseExtensionType) and (not pa.types.is_list(kind) or x.size < 2**31)
    if fmt == "parquet" and column.num_chunks > 1 and fits:
        at = store.table.schema.get_field_index(name)
        store.table = store.table.set_column(at, store.table.schema.field(at), matrices.to_column(x, kind))
    return name, x


def read_embeddings(path: str | Path, *, field: str | None = None) -> np.ndarray:
    """Embeddings alone, without reading the rows around them.

    path     .npy, .npz, .safetensors, parquet (file, folder or glob of any of these), a HF dataset folder, or
             JSON with `field`
    field    the array or field; default as for `read_pool`
    returns  (n, d) float16 | float32 | float64; a memmap for one .npy or .safetensors; bfloat16 comes as
             float32, JSON lists as float32
    raises   as `read_pool`, and ValueError where there are no embeddings
    """
    found, fmt = _files.find_files(path)
    if fmt == "parquet":
        return matrices.stream_parquet(found, field)[0]
    if fmt in ("json", "jsonl") and field is None:
        raise ValueError(f"{path}: name the field that holds the embeddings; it is not guessed in JSON")
    x = read_pool(path, embedding_field=field).embeddings
    if x is None:
        raise ValueError(
            f"{path}: no embeddings; expected a field named {', '.join(matrices.NAMES)}, or its name"
        )
    return x


def map_embeddings(path: str | Path, into: str | Path, *, field: str | None = None) -> np.ndarray:
    """Embeddings of any size, read as they are used: what select_partitioned() takes.

    path     .npy, .npz, .safetensors, parquet: a file, a folder of shards, a glob
    into     a .npy file to which several files, or parquet, are copied, batch by batch; written whole, or not at all
    field    as for `read_embeddings`
    returns  (n, d) a read-only memmap: of the file itself where it is one .npy or .safetensors, else of `into`
    raises   as `read_embeddings`
    """
    found, fmt = _files.find_files(path)
    into = Path(into).expanduser()
    if into.suffix != ".npy":
        raise ValueError(f"into must be a file name that ends in .npy, got {str(into)!r}")
    if into.resolve() in {file.resolve() for file in found}:
        raise ValueError(f"into must not be a file of the pool, got {str(into)!r}")
    part = into.with_name(f".{into.name}.{uuid.uuid4().hex}.part")  # another process may write the same
    try:
        if fmt == "parquet":
            x = matrices.stream_parquet(found, field, part)[0]
        elif fmt in _files.BARE:
            x = matrices.read_arrays(found, fmt, field, part)[0]
        else:
            raise ValueError(f"{path}: must be npy, npz, safetensors or parquet, got {fmt}")
        if not part.exists():
            return x
        x.flush()
        del x
        os.replace(part, into)
    finally:
        part.unlink(missing_ok=True)
    return np.load(into, mmap_mode="r")


def _as_array(values: list) -> Values:
    kinds = {type(value) for value in values}
    if kinds == {bool}:
        return np.array(values)
    if kinds == {int} and all(-(2**63) <= v < 2**63 for v in values):
        return np.array(values, np.int64)
    if float in kinds and kinds <= {int, float} and all(abs(v) <= 2**53 for v in values if type(v) is int):
        return np.array(values, np.float64)
    return values
