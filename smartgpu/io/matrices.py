"""Embeddings as (n, d) float arrays: npy, npz and safetensors files, Arrow columns, lists in JSON rows."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from smartgpu.io.tables import open_parquet

NAMES = ("embeddings", "embedding", "vector")
_SAFETENSORS = {"F16": np.float16, "F32": np.float32, "F64": np.float64, "BF16": np.uint16}


def new_matrix(shape: tuple[int, int], dtype: Any, into: Path | None) -> np.ndarray:
    """An empty matrix: in memory, or as the .npy file `into`."""
    return np.empty(shape, dtype) if into is None else np.lib.format.open_memmap(into, "w+", dtype, shape)


def read_arrays(
    files: Sequence[Path], fmt: str, field: str | None, into: Path | None = None
) -> tuple[np.ndarray, tuple[int, ...]]:
    """The matrices of npy, npz or safetensors files, one below the other, and the rows of each.

    into     a .npy file that they are copied to where they are several; None: they go to memory

    returns  (n, d) float16 | float32 | float64, a read-only memmap where there is one file that allows it
    raises   ValueError naming the file: unreadable, not 2-D, not floating point, another d or dtype than the
             first
    """
    load = {"npy": _load_npy, "npz": _load_npz, "safetensors": _load_safetensors}[fmt]
    parts = [_checked(load(path, field), path) for path in files]
    for path, part in zip(files, parts, strict=True):
        if part.shape[1] != parts[0].shape[1] or part.dtype != parts[0].dtype:
            raise ValueError(
                f"{path}: {part.shape[1]} features of {part.dtype}, but"
                f" {parts[0].shape[1]} of {parts[0].dtype} in {files[0]}"
            )
    counts = tuple(len(part) for part in parts)
    if len(parts) == 1:
        return parts[0], counts
    out = new_matrix((sum(counts), parts[0].shape[1]), parts[0].dtype, into)
    return np.concatenate(parts, out=out), counts


def _checked(x: np.ndarray, where: object) -> np.ndarray:
    if x.ndim != 2 or x.shape[1] == 0:
        raise ValueError(f"{where}: embeddings must be (n, d) with d > 0, got shape {x.shape}")
    if x.dtype.kind != "f" or x.dtype.itemsize > 8:
        raise ValueError(f"{where}: embeddings must be float16, float32 or float64, got {x.dtype}")
    return x


def _load_npy(path: Path, field: str | None) -> np.ndarray:
    if field is not None:
        raise ValueError(f"{path}: a .npy file holds one array without a name, got the field {field!r}")
    try:
        # by its name: of a Path, numpy keeps where links lead, which other hosts need not have
        return np.load(str(path), mmap_mode="r" if path.stat().st_size else None, allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise _npy_error(path, error) from error


def _npy_error(path: object, error: Exception) -> Exception:
    if isinstance(error, PermissionError):
        return error
    if "ickle" in str(error) or "Python objects" in str(error):
        return ValueError(
            f"{path}: an array of Python objects or a pickle, which is never loaded; save numbers"
        )
    return ValueError(f"{path}: not a readable npy file, or a truncated one ({error})")


def _load_npz(path: Path, field: str | None) -> np.ndarray:
    try:
        with np.load(path, allow_pickle=False) as archive:
            if not hasattr(archive, "files"):
                raise ValueError("one bare array, not an archive")
            shapes = {name: _shape_in(archive, name) for name in archive.files}
            return archive[choose(shapes, field, path)]
    except (zipfile.BadZipFile, EOFError, OSError) as error:
        raise ValueError(f"{path}: not a readable npz file, or a truncated one ({error})") from error
    except ValueError as error:
        raise error if str(error).startswith(str(path)) else _npy_error(path, error) from error


def _shape_in(archive: Any, name: str) -> tuple[int, ...]:
    """The shape of one array of a npz, from its header alone; () where it cannot be one of numbers."""
    with archive.zip.open(f"{name}.npy") as handle:
        version = np.lib.format.read_magic(handle)
        read = (
            np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        )
        return read(handle)[0]


def choose(shapes: dict[str, tuple[int, ...]], field: str | None, where: object) -> str:
    """The named array; else one under a usual name; else the only 2-D one."""
    held = ", ".join(f"{name} {shape}" for name, shape in shapes.items()) or "none"
    if field is not None:
        if field not in shapes:
            raise ValueError(f"{where}: no array {field!r}; it holds {held}")
        return field
    flat = [name for name, shape in shapes.items() if len(shape) == 2]
    for name in (*NAMES, *(flat if len(flat) == 1 else ())):
        if name in flat:
            return name
    problem = "no 2-D array" if not flat else "several 2-D arrays, name one"
    raise ValueError(f"{where}: {problem}; it holds {held}")


def _load_safetensors(path: Path, field: str | None) -> np.ndarray:
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError as error:
        raise ImportError(
            f"reading {path} needs safetensors: pip install 'smartgpu[io]' ({error})"
        ) from error
    try:
        with safe_open(path, framework="np") as handle:  # checks header, offsets and length
            slices = {name: handle.get_slice(name) for name in handle.keys()}  # noqa: SIM118
            shapes = {name: tuple(part.get_shape()) for name, part in slices.items()}
            name = choose(shapes, field, path)
            dtype = slices[name].get_dtype()
    except SafetensorError as error:
        raise ValueError(f"{path}: not a readable safetensors file, or a truncated one ({error})") from error
    if dtype not in _SAFETENSORS:
        raise ValueError(f"{path}: {name} must be F16, BF16, F32 or F64, got {dtype}")
    if 0 in shapes[name]:
        return np.empty(shapes[name], np.float32)
    with open(path, "rb") as handle:
        size = int.from_bytes(handle.read(8), "little")
        offset = 8 + size + json.loads(handle.read(size))[name]["data_offsets"][0]
    x = np.memmap(str(path), _SAFETENSORS[dtype], "r", offset, shapes[name])
    if dtype != "BF16":
        return x
    wide = np.left_shift(x, 16, dtype=np.uint32)  # bfloat16 is the upper half of a float32
    return wide.view(np.float32)


def is_matrix(kind: pa.DataType) -> bool:
    """Whether a column of this type can be embeddings: lists of floats."""
    if isinstance(kind, pa.BaseExtensionType):
        kind = kind.storage_type
    lists = pa.types.is_fixed_size_list(kind) or pa.types.is_list(kind) or pa.types.is_large_list(kind)
    return lists and pa.types.is_floating(kind.value_type)


def find_column(schema: pa.Schema, field: str | None, where: object) -> str | None:
    """The embedding column: the named one, or the first usual name that holds lists of floats, or None."""
    if field is None:
        return next((n for n in NAMES if n in schema.names and is_matrix(schema.field(n).type)), None)
    if field not in schema.names:
        raise ValueError(f"{where}: no field {field!r}; the fields are {', '.join(schema.names)}")
    if not is_matrix(schema.field(field).type):
        raise ValueError(
            f"{where}: field {field!r} must hold lists of floats, got {schema.field(field).type}"
        )
    return field


def from_column(column: pa.ChunkedArray, where: str, start: int = 0) -> np.ndarray:
    """(n, d) from a list column in the dtype of its values; a view where the column is one chunk.

    start   number of its first row, for messages
    raises  ValueError naming the row that is null, holds a null, or has another length than row 0
    """
    parts, d = [], None
    for chunk in column.chunks:
        if len(chunk):
            parts.append(_from_chunk(chunk, start, d, where))
            start, d = start + len(chunk), parts[0].shape[1]
    if not parts:
        raise ValueError(f"{where}: the pool is empty (0 rows)")
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _from_chunk(chunk: pa.Array, start: int, d: int | None, where: str) -> np.ndarray:
    if isinstance(chunk, pa.ExtensionArray):
        chunk = chunk.storage
    if chunk.null_count:
        row = start + int(np.flatnonzero(chunk.is_null().to_numpy(zero_copy_only=False))[0])
        raise ValueError(f"{where}: row {row} is null, expected a list of floats")
    if pa.types.is_fixed_size_list(chunk.type):
        lengths = np.full(len(chunk), chunk.type.list_size)
    else:
        lengths = np.diff(chunk.offsets.to_numpy())
    d = int(lengths[0]) if d is None else d
    if (lengths != d).any():
        at = int(np.flatnonzero(lengths != d)[0])
        raise ValueError(f"{where}: row {start + at} has {lengths[at]} features, rows before have {d}")
    if d == 0:
        raise ValueError(f"{where}: row {start} has no features")
    values = chunk.flatten()
    if values.null_count:
        row = start + int(np.flatnonzero(values.is_null().to_numpy(zero_copy_only=False))[0]) // d
        raise ValueError(f"{where}: row {row} holds a null, expected {d} floats")
    return values.to_numpy().reshape(len(chunk), d)


def to_column(x: np.ndarray, kind: pa.DataType | None = None) -> pa.Array:
    """(n, d) as a list column, not copied where x is contiguous; fixed-size lists unless `kind` says else."""
    values = pa.array(np.ascontiguousarray(x, x.dtype.newbyteorder("=")).reshape(-1))
    kind = pa.list_(values.type, x.shape[1]) if kind is None else kind
    if pa.types.is_fixed_size_list(kind):
        return pa.FixedSizeListArray.from_arrays(values, type=kind)
    offsets = np.arange(0, x.size + 1, x.shape[1])
    if pa.types.is_large_list(kind):
        return pa.LargeListArray.from_arrays(pa.array(offsets), values, type=kind)
    return pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), values, type=kind)


def stream_parquet(
    files: Sequence[Path], field: str | None, into: Path | None = None
) -> tuple[np.ndarray, tuple[int, ...]]:
    """One embedding column of parquet shards, the others unread: memory is the result and one batch.

    into: a .npy file that the result is written to instead.
    """
    out, start, counts = None, 0, []
    for path in files:
        with open_parquet(path) as handle:
            counts.append(handle.metadata.num_rows)
    for path in files:
        with open_parquet(path) as handle:
            schema = handle.schema_arrow
            name = find_column(schema, field, path)
            if name is None:
                held = ", ".join(n for n in schema.names if is_matrix(schema.field(n).type)) or "none"
                raise ValueError(
                    f"{path}: no field named {', '.join(NAMES)}; fields with lists of floats: {held}"
                )
            read = 0
            try:
                for batch in handle.iter_batches(columns=[name]):
                    x = from_column(pa.chunked_array([batch.column(name)]), f"{path}, field {name!r}", read)
                    read += len(x)
                    if out is None:
                        out = new_matrix((sum(counts), x.shape[1]), x.dtype, into)
                    if x.shape[1] != out.shape[1] or x.dtype != out.dtype:
                        raise ValueError(
                            f"{path}: {x.shape[1]} features of {x.dtype}, but"
                            f" {out.shape[1]} of {out.dtype} in {files[0]}"
                        )
                    out[start : start + len(x)] = x
                    start += len(x)
            except (pa.ArrowException, OSError) as error:
                raise ValueError(f"{path}: not a readable parquet file ({error})") from error
    if out is None:
        raise ValueError(f"{files[0]}: the pool is empty (0 rows)")
    return out, tuple(counts)


def from_lists(values: Sequence[Any], where: str) -> np.ndarray:
    """(n, d) float32 from lists of numbers; ValueError names the row that is none or has another length."""
    first = values[0]
    d = len(first) if isinstance(first, list) else 0
    out = np.empty((len(values), d), np.float32)
    for row, value in enumerate(values):
        if not isinstance(value, list) or not all(type(v) in (int, float) for v in value):
            raise ValueError(f"{where}: row {row} is not a list of numbers")
        if len(value) != d or d == 0:
            raise ValueError(f"{where}: row {row} has {len(value)} features, row 0 has {d}")
        out[row] = value
    return out


SPARSE = ("data", "indices", "indptr", "shape", "format")  # of a file by scipy.sparse.save_npz


def is_sparse_file(path: str) -> bool:
    """Whether this is a sparse matrix in a file."""
    where = Path(path).expanduser()
    if where.suffix != ".npz" or not where.is_file() or not zipfile.is_zipfile(where):
        return False
    with zipfile.ZipFile(where) as archive:
        return {f"{name}.npy" for name in SPARSE} <= set(archive.namelist())


def read_sparse(path: str, n: int) -> Any:
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
