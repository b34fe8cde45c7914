"""Writing chosen rows whole, in pick order, with extra columns; a file appears complete or not at all."""

from __future__ import annotations

import base64
import errno
import json
import math
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from smartgpu.io.files import BARE, format_of
from smartgpu.io.lines import BLANK, JsonRows
from smartgpu.io.matrices import to_column
from smartgpu.io.read import Pool
from smartgpu.io.tables import BATCH, ArrowRows, import_datasets

FORMATS = {"json": ".json", "jsonl": ".jsonl", "csv": ".csv", "parquet": ".parquet", "npz": ".npz", "hf": ""}
PREFIX = "smartgpu_"
_BREAK = re.compile(
    rb"(,?)[ \t]*[\r\n][ \t\r\n]*"
)  # JSON strings hold no raw line break: every one is layout


def write_rows(
    pool: Pool,
    indices: Sequence[int] | np.ndarray,
    extra: Mapping[str, Any],
    path: str | Path,
    format: str | None = None,
) -> Path:
    """Write the rows `indices` of the pool in that order, whole, each with its extra values behind its own.

    indices  (m,) integers in [0, n)
    extra    name -> (m,) numbers, booleans or strings. A name that the pool has as a field gets the prefix
             "smartgpu_". NaN and infinities become null in JSON
    path     where; the suffix of the format is added unless it is there. Its folder must exist
    format   "json" | "jsonl" | "csv" | "parquet" | "npz" (indices and extras alone) | "hf" (a folder for
             `datasets.load_from_disk`). Default: as the suffix of `path` says, else that of the pool; bare
             embeddings go to parquet, in a fixed-size-list column `embeddings`
    returns  the path written. It is written under a temporary name beside it, synced, then renamed; an
             existing file is replaced, an existing folder only if it is a HF dataset folder
    raises   ValueError for bad indices, lengths, formats, values that the format cannot hold (the field is
             named), and a path that is one of the pool's own files; ImportError for "hf" without datasets;
             OSError where the file cannot be written (disk full, ...), saying what, where and how much was
             needed; nothing is left

    JSON to JSON copies each row's bytes; parquet and HF go through Arrow with their schema. Other conversions
    keep every field; csv cells that are not text hold JSON, and null and NaN are empty cells.
    """
    chosen = pool.check_indices(indices)
    target, fmt = output_path(pool, path, format)
    extras = _named(pool, extra, len(chosen), fmt)
    needed = _size(pool, chosen, fmt) + sum(x.nbytes for x in extras.values())
    if fmt == "hf":
        datasets = import_datasets("writing a HF dataset folder")
        with _replacing(target, needed, folder=True) as temporary:
            _write_hf(datasets, temporary, pool, chosen, extras)
        return target
    with _replacing(target, needed) as handle:
        if fmt in ("json", "jsonl"):
            _write_json(handle, pool, chosen, extras, lines=fmt == "jsonl")
        elif fmt == "csv":
            _write_csv(handle, pool, chosen, extras)
        elif fmt == "parquet":
            _write_parquet(handle, pool, chosen, extras)
        else:
            np.savez(handle, indices=chosen, **extras)
    return target


def output_path(pool: Pool, path: str | Path, format: str | None = None) -> tuple[Path, str]:
    """The path and format that `write_rows` would write; raises ValueError as it does."""
    path = Path(path).expanduser()
    named = format_of(path)
    if format is None:
        default = "parquet" if pool.format in BARE else pool.format
        format = named or (default if path.suffix.lower() != ".gz" else None)
    if format not in FORMATS or path.suffix.lower() == ".gz":
        what = (
            f"{path.name!r} (compressed output is not written)"
            if path.suffix.lower() == ".gz"
            else repr(format)
        )
        raise ValueError(f"format must be one of {', '.join(FORMATS)}, got {what}")
    if named not in (None, format):
        raise ValueError(f"format {format!r} does not fit the suffix of {str(path)!r}")
    if named is None:
        path = path.with_name(path.name + FORMATS[format])
    own = {*pool.files, Path(pool.source).expanduser()}
    if path.exists() and any(p.exists() and p.samefile(path) for p in own):
        raise ValueError(f"{path} is the pool itself; write elsewhere")
    return path, format


def _named(pool: Pool, extra: Mapping[str, Any], m: int, fmt: str) -> dict[str, np.ndarray]:
    taken = {*pool.fields, *(("embeddings",) if pool.store is None else ())}
    if fmt == "npz":
        taken = {"indices", "file"}  # `file` is np.savez's own argument
    named = {}
    for name, values in extra.items():
        x = np.asarray(values)
        if x.shape != (m,) or x.dtype.kind not in "biufU":
            raise ValueError(
                f"extra[{name!r}] must be ({m},) numbers, booleans or strings, got {x.dtype} {x.shape}"
            )
        while name in taken:
            name = PREFIX + name
        taken.add(name)
        named[name] = x
    return named


def _size(pool: Pool, indices: np.ndarray, fmt: str) -> int:
    if fmt == "npz":
        return indices.nbytes
    if pool.store is None:
        return len(indices) * pool.embeddings.shape[1] * pool.embeddings.itemsize
    return pool.store.bytes_of(indices)


@contextmanager
def _replacing(target: Path, needed: int, folder: bool = False) -> Iterator[Any]:
    """A temporary file (open for writing) or folder beside `target` that becomes it, or vanishes."""
    # a name of its own: behind a target's name of 250 characters there would be no room for a suffix
    temporary = target.parent / f".smartgpu-{secrets.token_hex(6)}.tmp"
    if folder and target.exists() and not (target / "dataset_info.json").is_file():
        raise FileExistsError(f"cannot write {target}: it exists and is no HF dataset folder")
    try:
        if folder:
            temporary.mkdir()
            yield temporary
            for file in temporary.iterdir():
                _sync(file)
        else:
            with open(temporary, "xb") as handle:
                yield handle
                handle.flush()
                os.fsync(handle.fileno())
        _rename(temporary, target)
    except OSError as error:
        if error.filename is not None and Path(error.filename).parent not in (target.parent, temporary):
            raise  # reading the pool failed, not writing
        _remove(temporary)
        raise OSError(error.errno or errno.EIO, _cannot(target, error, needed)) from error
    finally:
        _remove(temporary)


def _cannot(target: Path, error: OSError, needed: int) -> str:
    room = ""
    if target.parent.is_dir():
        free = shutil.disk_usage(target.parent).free
        room = f"; about {needed / 1e6:.1f} MB were needed, {free / 1e6:.1f} MB are free"
    return f"cannot write {target}: {error.strerror or error}{room}"


def _rename(temporary: Path, target: Path) -> None:
    if temporary.is_dir() and target.exists():
        old = temporary.with_suffix(".old")
        os.rename(target, old)
        os.rename(temporary, target)
        shutil.rmtree(old)
    else:
        os.replace(temporary, target)
    _sync(target.parent)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _rows(pool: Pool, indices: np.ndarray) -> Iterator[dict[str, Any]]:
    """The rows as dicts, a batch in memory at a time."""
    if isinstance(pool.store, JsonRows):
        yield from (json.loads(raw) for raw in pool.store.raw(indices))
    elif isinstance(pool.store, ArrowRows):
        for batch in pool.store.batches(indices):
            yield from batch.to_pylist()
    else:
        for i in indices.tolist():
            yield {"embeddings": pool.embeddings[i].tolist()}


def _dumps(value: Any) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, default=_plain)
    except ValueError:
        return json.dumps(_finite(value), ensure_ascii=False, allow_nan=False, default=_plain)


def _plain(value: Any) -> Any:
    """Arrow's values that JSON has no type for: dates in ISO form, decimals as digits, bytes in base64."""
    if isinstance(value, np.generic):
        return _finite(value.item())
    if isinstance(value, bytes):
        return base64.b64encode(value).decode("ascii")
    return value.isoformat() if hasattr(value, "isoformat") else str(value)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value


def _encoded(text: str, row: int) -> bytes:
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(
            f"row {row} holds text that is no Unicode ({error.reason}); JSON Lines can keep it"
        ) from error


def _write_json(
    handle: BinaryIO, pool: Pool, indices: np.ndarray, extras: dict[str, np.ndarray], lines: bool
) -> None:
    if isinstance(pool.store, JsonRows):
        raws: Iterator[bytes] = pool.store.raw(indices)
    else:
        raws = (
            _encoded(_dumps(row), i) for i, row in zip(indices.tolist(), _rows(pool, indices), strict=True)
        )
    keys = [json.dumps(name, ensure_ascii=False) for name in extras]
    columns = [x.tolist() for x in extras.values()]
    handle.write(b"" if lines else b"[\n")
    for at, raw in enumerate(raws):
        added = ", ".join(f"{key}: {_dumps(column[at])}" for key, column in zip(keys, columns, strict=True))
        if lines and (b"\n" in raw or b"\r" in raw):
            raw = _BREAK.sub(lambda found: b", " if found[1] else b"", raw)
        if added:
            body = raw[:-1].rstrip(BLANK)
            raw = body + (b"" if body == b"{" else b", ") + added.encode() + b"}"
        handle.write(raw if lines or at == 0 else b",\n" + raw)
        handle.write(b"\n" if lines else b"")
    handle.write(b"" if lines else b"\n]\n" if len(indices) else b"]\n")


def _write_csv(handle: BinaryIO, pool: Pool, indices: np.ndarray, extras: dict[str, np.ndarray]) -> None:
    fields = pool.fields or ("embeddings",)
    delimiter = getattr(pool.store, "delimiter", None) or ","
    # csv.writer leaves a lone \r bare unless rows end in \r\n; readers then see a row end
    special = re.compile(
        f'[{delimiter}"\r\n]|^$' if len(fields) + len(extras) == 1 else f'[{delimiter}"\r\n]'
    )

    def line(cells: Sequence[str]) -> str:
        quoted = ('"' + c.replace('"', '""') + '"' if special.search(c) else c for c in cells)
        return delimiter.join(quoted) + "\n"

    def cell(value: Any) -> str:
        text = value if isinstance(value, str) else _dumps(value)
        return "" if text == "null" and not isinstance(value, str) else text

    handle.write(_encoded(line([*fields, *extras]), 0))
    columns = [x.tolist() for x in extras.values()]
    for at, row in enumerate(_rows(pool, indices)):
        cells = [cell(row.get(name)) for name in fields] + [cell(column[at]) for column in columns]
        handle.write(_encoded(line(cells), int(indices[at])))


def _tables(pool: Pool, indices: np.ndarray, extras: dict[str, np.ndarray]) -> Iterator[pa.Table]:
    """The rows and their extras as Arrow tables of one schema, in batches; at least one."""
    if isinstance(pool.store, JsonRows):
        batches = iter(_sliced(_typed(pool, indices)))
    elif isinstance(pool.store, ArrowRows):
        batches = pool.store.batches(indices)
    else:
        starts = range(0, max(len(indices), 1), BATCH)
        parts = (to_column(pool.embeddings[indices[s : s + BATCH]]) for s in starts)
        batches = (pa.table({"embeddings": part}) for part in parts)
    start = 0
    for batch in batches:
        for name, x in extras.items():
            part = x[start : start + len(batch)]
            batch = batch.append_column(name, pa.array(part, pa.string() if x.dtype.kind == "U" else None))
        start += len(batch)
        yield batch


def _sliced(table: pa.Table) -> list[pa.Table]:
    return [table.slice(s, BATCH) for s in range(0, max(len(table), 1), BATCH)]


def _typed(pool: Pool, indices: np.ndarray) -> pa.Table:
    """JSON rows as a table: one type per field, or ValueError naming the field that has several."""
    columns = pool.store.columns(pool.fields, indices)
    arrays = {}
    for name, values in columns.items():
        try:
            arrays[name] = pa.array(values)
        except (pa.ArrowException, OverflowError, UnicodeError) as error:
            raise ValueError(
                f"field {name!r} of {pool.source} has values that fit no one column type ({error}); "
                "write jsonl, which keeps rows as they are"
            ) from error
    return pa.table(arrays)


def _write_parquet(handle: BinaryIO, pool: Pool, indices: np.ndarray, extras: dict[str, np.ndarray]) -> None:
    writer = None
    try:
        for table in _tables(pool, indices, extras):
            if writer is None:
                writer = pq.ParquetWriter(handle, table.schema, compression="zstd")
            writer.write_table(table, row_group_size=BATCH)
        writer.close()
    except pa.ArrowNotImplementedError as error:
        raise ValueError(f"parquet cannot hold these rows ({error}); write jsonl") from error


def _write_hf(
    datasets: Any, folder: Path, pool: Pool, indices: np.ndarray, extras: dict[str, np.ndarray]
) -> None:
    table = pa.concat_tables([_undictionaried(part) for part in _tables(pool, indices, extras)])
    silent = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        datasets.Dataset(table).save_to_disk(str(folder))
    except pa.ArrowNotImplementedError as error:
        raise ValueError(f"a HF dataset cannot hold these rows ({error}); write jsonl") from error
    finally:
        if not silent:
            datasets.enable_progress_bars()


def _undictionaried(table: pa.Table) -> pa.Table:
    """datasets knows no dictionary columns: their values instead."""
    for at, field in enumerate(table.schema):
        if pa.types.is_dictionary(field.type):
            plain = field.with_type(field.type.value_type)
            table = table.set_column(at, plain, table.column(at).cast(plain.type))
    return table
