"""Rows in Arrow tables: parquet shards, HF dataset folders and csv, schema and dictionaries kept."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from smartgpu.io.files import is_gzip, read_gzip

END_OF_STREAM = (
    b"\xff\xff\xff\xff\0\0\0\0"  # Arrow takes a stream that is cut between two batches for a short one
)
BATCH = 16_384  # rows taken at once: a string column of a batch stays far below Arrow's 2 GiB


class ArrowRows:
    """A table of n rows; `counts` rows per file; `delimiter` where it came from csv."""

    def __init__(self, table: pa.Table, counts: Sequence[int], delimiter: str | None = None) -> None:
        self.table = table
        self.counts = tuple(counts)
        self.n = table.num_rows
        self.fields = tuple(table.column_names)
        self.delimiter = delimiter

    def batches(self, indices: np.ndarray, size: int = BATCH) -> Iterator[pa.Table]:
        """The rows `indices` (m,) int64 in their order, at most `size` at a time; at least one table."""
        for start in range(0, max(len(indices), 1), size):
            part = indices[start : start + size]
            columns = [_take(column, part) for column in self.table.columns]
            yield pa.Table.from_arrays(columns, schema=self.table.schema)

    def bytes_of(self, indices: np.ndarray) -> int:
        """About how many bytes these rows take in memory, from the mean row."""
        return int(self.table.nbytes / max(self.n, 1) * len(indices))

    def rows(self, indices: np.ndarray) -> list[dict]:
        return [row for batch in self.batches(indices) for row in batch.to_pylist()]

    def columns(self, names: Sequence[str], indices: np.ndarray | None = None) -> dict[str, Any]:
        """Numbers and booleans without nulls as arrays, everything else as lists."""
        return {name: _values(_take(self.table.column(name), indices)) for name in names}


def _take(column: pa.ChunkedArray, indices: np.ndarray | None) -> pa.ChunkedArray:
    """column[indices], by chunks: Arrow's take joins all of them first and overflows at 2 GiB of strings."""
    if indices is None:
        return column
    if column.num_chunks == 1:
        return column.take(pa.array(indices))
    ends = np.cumsum([len(chunk) for chunk in column.chunks])
    owner = np.searchsorted(ends, indices, side="right")
    order = np.argsort(owner, kind="stable")
    touched, first = np.unique(owner[order], return_index=True)
    pieces = [
        column.chunk(c).take(pa.array(indices[where] - (ends[c] - len(column.chunk(c)))))
        for c, where in zip(touched.tolist(), np.split(order, first[1:]), strict=False)
    ]
    inverse = np.empty(len(order), np.int64)
    inverse[order] = np.arange(len(order))
    return pa.chunked_array(pieces, type=column.type).take(pa.array(inverse))


def _values(column: pa.ChunkedArray) -> Any:
    kind = column.type
    plain = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)
    return column.to_numpy() if plain and column.null_count == 0 else column.to_pylist()


def read_parquet(files: Sequence[Path]) -> ArrowRows:
    """All shards as one table; ValueError names the file that is unreadable or whose fields do not fit."""
    tables = []
    for path in files:
        with open_parquet(path) as handle:
            try:
                tables.append(handle.read())
            except (pa.ArrowException, OSError) as error:
                raise ValueError(f"{path}: not a readable parquet file ({_first_line(error)})") from error
        names = tables[-1].column_names
        if len(set(names)) < len(names):
            raise ValueError(f"{path}: repeated field {next(c for c in names if names.count(c) > 1)!r}")
    _check_schemas(files, [table.schema for table in tables])
    table = pa.concat_tables(tables, promote_options="permissive") if len(tables) > 1 else tables[0]
    return ArrowRows(table, [t.num_rows for t in tables])


def open_parquet(path: Path) -> pq.ParquetFile:
    """The open file (a context manager); raises ValueError naming it where it is truncated or no parquet."""
    if not path.stat().st_size:
        raise ValueError(f"{path}: not a readable parquet file (0 bytes)")
    try:
        return pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, PermissionError):
            raise
        raise ValueError(f"{path}: not a readable parquet file ({_first_line(error)})") from error


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]


def _check_schemas(files: Sequence[Path], schemas: Sequence[pa.Schema]) -> None:
    """Shards may lack fields, hold nulls, or differ in width; another kind, int to float too, is an error."""
    seen: dict[str, tuple[Path, pa.Field]] = {}
    for path, schema in zip(files, schemas, strict=True):
        for field in schema:
            first, known = seen.setdefault(field.name, (path, field))
            mixed = pa.types.is_floating(known.type) != pa.types.is_floating(field.type)
            if mixed and not (pa.types.is_null(known.type) or pa.types.is_null(field.type)):
                both = None
            else:
                both = _unified(known, field)
            if both is None:
                raise ValueError(
                    f"{path}: field {field.name!r} is {field.type}, but {known.type} in {first}; cast one"
                )
            seen[field.name] = (first if both.type == known.type else path, both)


def _unified(a: pa.Field, b: pa.Field) -> pa.Field | None:
    try:
        return pa.unify_schemas([pa.schema([a]), pa.schema([b])], promote_options="permissive").field(0)
    except (pa.ArrowTypeError, pa.ArrowInvalid):
        return None


def read_hf(folder: Path, files: Sequence[Path]) -> ArrowRows:
    """A folder written by `Dataset.save_to_disk`, memory-mapped; needs datasets."""
    datasets = import_datasets("reading a HF dataset folder")
    for path in files:
        with open(path, "rb") as handle:
            handle.seek(max(path.stat().st_size - len(END_OF_STREAM), 0))
            if handle.read() != END_OF_STREAM:
                raise ValueError(f"{path}: not a readable Arrow file, or a truncated one (no end mark)")
    try:
        table = datasets.load_from_disk(str(folder)).with_format("arrow")[:]
    except (pa.ArrowException, OSError, KeyError, TypeError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # the system's; Arrow's have no number
            raise
        raise ValueError(f"{folder}: not a readable HF dataset folder ({_first_line(error)})") from error
    # which file a row came from is only known where there is one file
    return ArrowRows(table, [table.num_rows] if len(files) == 1 else ())


def import_datasets(purpose: str) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise ImportError(f"{purpose} needs datasets: pip install 'smartgpu[hf]' ({error})") from error
    return datasets


def read_csv(files: Sequence[Path]) -> ArrowRows:
    """csv as columns of strings, exactly as written; delimiter comma, else tab or semicolon by the header.

    raises  ValueError naming file and line: rows of another length than the header, bad or open quotes,
            invalid UTF-8, repeated names in a header; ValueError naming the file whose header differs from
            the first one's
    """
    chunks, counts, header, delimiter = [], [], None, ","
    for path in files:
        with _csv_text(path) as text:
            first = text.readline()
            text.seek(0)
            own = next((d for d in ",\t;" if d in first), ",")
            names, parts = _read_one_csv(text, path, own)
        if names is None:
            counts.append(0)
            continue
        if header is None:
            header, delimiter = names, own
        elif names != header:
            odd = sorted(set(names) ^ set(header)) or names
            raise ValueError(f"{path}: its header differs from that of {files[0]}: {', '.join(odd)}")
        chunks.extend(parts)
        counts.append(sum(len(part) for part in parts))
    schema = pa.schema([(name, pa.string()) for name in header or ()])
    return ArrowRows(pa.Table.from_batches(chunks, schema=schema), counts, delimiter)


@contextmanager
def _csv_text(path: Path) -> Iterator[io.TextIOWrapper]:
    """The file as text, checked: a decoding error inside csv.reader would not know its line."""
    raw = read_gzip(path) if is_gzip(path) else None
    with io.BytesIO(raw) if raw is not None else open(path, "rb") as handle:
        for number, line in enumerate(handle, 1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as error:
                bad = f"byte 0x{line[error.start]:02x}"
                raise ValueError(f"{path}, line {number}: invalid UTF-8 ({bad})") from error
    with io.BytesIO(raw) if raw is not None else open(path, "rb") as handle:
        yield io.TextIOWrapper(handle, encoding="utf-8-sig", newline="")


def _read_one_csv(
    text: io.TextIOWrapper, path: Path, delimiter: str
) -> tuple[list | None, list[pa.RecordBatch]]:
    limit = csv.field_size_limit(2**31 - 1)  # its default of 128 KiB is shorter than real answers
    reader = csv.reader(text, delimiter=delimiter, strict=True)
    header, parts, rows, line = None, [], [], 1
    try:
        for row in reader:
            if row and header is None:
                header = row
                if len(set(header)) < len(header):
                    repeated = next(name for name in header if header.count(name) > 1)
                    raise ValueError(f"{path}, line {line}: repeated field {repeated!r}")
            elif row:
                if len(row) != len(header):
                    raise ValueError(f"{path}, line {line}: {len(row)} values, expected {len(header)}")
                rows.append(row)
                if len(rows) == BATCH:
                    parts.append(_string_batch(header, rows))
                    rows = []
            line = reader.line_num + 1
    except csv.Error as error:
        what = (
            "the quoted value that starts here is never closed" if "unexpected end" in str(error) else error
        )
        raise ValueError(f"{path}, line {line}: malformed csv: {what}") from error
    finally:
        csv.field_size_limit(limit)
    if rows:
        parts.append(_string_batch(header, rows))
    return header, parts


def _string_batch(header: list[str], rows: list[list[str]]) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays(
        [pa.array(c, pa.string()) for c in zip(*rows, strict=True)], names=header
    )
