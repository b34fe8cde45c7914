"""Rows of JSON and JSON Lines files, kept as byte ranges of the file and parsed only when asked for.

Nothing of a row is lost or rewritten: big integers, 1.0 against 1, escapes, key order and repeated keys stay
the bytes they were. A pool of a million rows costs 16 bytes a row here, plus the content of .gz files.
"""

from __future__ import annotations

import io
import json
import re
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from smartgpu.io.files import is_gzip, read_gzip

BOM = b"\xef\xbb\xbf"
BLANK = b" \t\r\n"  # JSON's own white space; bytes.strip() would also take \x0b and \x0c
_SPACE = re.compile(r"[ \t\r\n]*")


class _Source:
    """The bytes of one file: a .gz is held decompressed, any other is read when asked."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.data = read_gzip(path) if is_gzip(path) else None
        self.stamp = self._stamp()

    def _stamp(self) -> tuple[int, int]:
        stat = self.path.stat()
        return stat.st_size, stat.st_mtime_ns

    def open(self) -> BinaryIO:
        if self.data is not None:
            return io.BytesIO(self.data)
        if self._stamp() != self.stamp:
            raise ValueError(f"{self.path} changed since it was read")
        # 64 KiB: one read call serves many neighbouring rows, and a lone row of a scattered pick costs little
        return open(self.path, "rb", buffering=1 << 16)


class JsonRows:
    """Rows as byte ranges: `starts`, `stops` (n,) int64 into the file that `counts` (rows per file) says."""

    def __init__(
        self, sources: list[_Source], spans: list[tuple[array, array]], fields: tuple[str, ...]
    ) -> None:
        self._sources = sources
        self._starts, self._stops = (
            np.concatenate([np.asarray(pair[side], np.int64) for pair in spans]) for side in (0, 1)
        )
        self.counts = tuple(len(starts) for starts, _ in spans)
        self._ends = np.cumsum(self.counts)
        self.n = int(self._ends[-1])
        self.fields = fields

    def raw(self, indices: np.ndarray) -> Iterator[bytes]:
        """The bytes of each row, from `{` to `}`, in the order of `indices` (m,) int64."""
        owners = np.searchsorted(self._ends, indices, side="right")
        current, handle = -1, None
        try:
            for i, owner in zip(indices.tolist(), owners.tolist(), strict=True):
                if owner != current:
                    if handle is not None:
                        handle.close()
                    handle, current = self._sources[owner].open(), owner
                handle.seek(self._starts[i])
                size = int(self._stops[i] - self._starts[i])
                if len(row := handle.read(size)) != size:
                    raise ValueError(f"{self._sources[owner].path} changed since it was read")
                yield row
        finally:
            if handle is not None:
                handle.close()

    def bytes_of(self, indices: np.ndarray) -> int:
        """How many bytes these rows take."""
        return int((self._stops[indices] - self._starts[indices]).sum())

    def rows(self, indices: np.ndarray) -> list[dict]:
        return [json.loads(raw) for raw in self.raw(indices)]

    def columns(self, names: Sequence[str], indices: np.ndarray | None = None) -> dict[str, list[Any]]:
        """The values of several fields in one pass, None where a row lacks the field."""
        columns: dict[str, list[Any]] = {name: [] for name in names}
        for raw in self.raw(np.arange(self.n) if indices is None else indices):
            row = json.loads(raw)
            for name, values in columns.items():
                values.append(row.get(name))
        return columns


def read_json(files: Sequence[Path], fmt: str) -> tuple[JsonRows, str]:
    """Find and check every row of JSON ("json") or JSON Lines ("jsonl") files.

    returns  the rows and the format they are in: a .json file that holds JSON Lines counts as "jsonl"
    raises   ValueError naming file and line for malformed or truncated JSON, a row that is not an object and
             invalid UTF-8; ValueError for a .json file that holds one object instead of an array
    """
    sources, spans, kinds = [], [], {}
    fields: dict[str, None] = {}
    for path in files:
        source = _Source(path)
        with source.open() as handle:
            kind = _sniff(handle, path) if fmt == "json" else "jsonl"
            handle.seek(0)
            if kind == "json":
                spans.append(_scan_array(handle.read(), path, fields))
            elif fmt == "json":
                spans.append(_scan_lines_of_json(handle, path, fields))
            else:
                spans.append(_scan_lines(handle, path, fields))
        sources.append(source)
        kinds.setdefault(kind, path)
    if len(kinds) > 1:
        raise ValueError(f"{kinds['json']} is a JSON array, {kinds['jsonl']} holds JSON Lines: use one kind")
    return JsonRows(sources, spans, tuple(fields)), next(iter(kinds))


def _sniff(handle: BinaryIO, path: Path) -> str:
    for line in handle:
        body = line.removeprefix(BOM).lstrip(BLANK)
        if body:
            if body[:1] not in (b"[", b"{"):
                raise ValueError(f"{path}: expected an array of objects, found {body[:20]!r}")
            return "json" if body[:1] == b"[" else "jsonl"
    return "json"


def _decode(data: bytes, path: Path, line: int) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        at = line + data.count(b"\n", 0, error.start)
        raise ValueError(f"{path}, line {at}: invalid UTF-8 (byte 0x{data[error.start]:02x})") from error


def _bad_json(error: Exception, where: str) -> ValueError:
    if isinstance(error, json.JSONDecodeError):
        return ValueError(f"{where}: malformed JSON: {error.msg} at column {error.colno}")
    return ValueError(f"{where}: JSON that cannot be read: {error}")


def _scan_lines(handle: BinaryIO, path: Path, fields: dict[str, None]) -> tuple[array, array]:
    starts, stops, position = array("q"), array("q"), 0
    for number, line in enumerate(handle, 1):
        start, position = position, position + len(line)
        if number == 1 and line.startswith(BOM):
            start, line = start + len(BOM), line[len(BOM) :]
        body = line.strip(BLANK)
        if not body:
            continue
        where = f"{path}, line {number}"
        text = _decode(body, path, number)
        try:
            row = json.loads(text)
        except (ValueError, RecursionError) as error:
            hint = "; the file is a JSON array? then name it .json" if number == 1 and text[0] == "[" else ""
            cut = "; the file may be truncated" if not line.endswith(b"\n") else ""
            raise ValueError(f"{_bad_json(error, where)}{hint or cut}") from error
        if not isinstance(row, dict):
            raise ValueError(f"{where}: expected a JSON object, got {_kind(row)}")
        if not row.keys() <= fields.keys():
            fields.update(dict.fromkeys(row))
        start += len(line) - len(line.lstrip(BLANK))
        starts.append(start)
        stops.append(start + len(body))
    return starts, stops


def _scan_lines_of_json(handle: BinaryIO, path: Path, fields: dict[str, None]) -> tuple[array, array]:
    """JSON Lines in a .json file, unless the file is one object: is that a row, or a wrapper of rows?"""
    failure = None
    try:
        spans = _scan_lines(handle, path, fields)
        if len(spans[0]) != 1:
            return spans
    except ValueError as error:
        failure = error
    handle.seek(0)
    try:
        whole = json.loads(handle.read().decode("utf-8-sig"))
    except (ValueError, RecursionError):
        raise (failure or ValueError(f"{path}: malformed JSON")) from failure
    held = ", ".join(f"{key} ({_kind(value)})" for key, value in list(whole.items())[:8])
    raise ValueError(
        f"{path}: one JSON object at the top level, expected an array of objects; it holds {held}. Take the"
        " rows out first, for example: jq .data pool.json; or name a pool of one row .jsonl"
    )


def _kind(value: object) -> str:
    if isinstance(value, list):
        return f"an array of {len(value)}"
    if isinstance(value, bool) or value is None:
        return "null" if value is None else "a boolean"
    return {dict: "an object", str: "a string"}.get(type(value), "a number")


def _scan_array(data: bytes, path: Path, fields: dict[str, None]) -> tuple[array, array]:
    text = _decode(data.removeprefix(BOM), path, 1)
    offset, mark, ascii_only = len(data) - len(data.removeprefix(BOM)), 0, text.isascii()

    def byte_of(position: int) -> int:  # positions only ever grow, so each character is encoded once
        nonlocal offset, mark
        offset += position - mark if ascii_only else len(text[mark:position].encode())
        mark = position
        return offset

    def where(position: int) -> str:
        return f"{path}, line {text.count(chr(10), 0, position) + 1} (row {len(starts)})"

    def skip(position: int) -> int:
        return _SPACE.match(text, position).end()

    starts, stops, decoder = array("q"), array("q"), json.JSONDecoder()
    position = skip(skip(0) + 1)
    closed = not text or text[position : position + 1] == "]"
    while not closed:
        try:
            row, end = decoder.raw_decode(text, position)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{where(getattr(error, 'pos', position))}: {_reason(error, text)}") from error
        if not isinstance(row, dict):
            raise ValueError(f"{where(position)}: expected a JSON object, got {_kind(row)}")
        if not row.keys() <= fields.keys():
            fields.update(dict.fromkeys(row))
        starts.append(byte_of(position))
        stops.append(byte_of(end))
        position = skip(end)
        closed = text[position : position + 1] == "]"
        if not closed:
            if text[position : position + 1] != ",":
                what = (
                    "expected ',' or ']'"
                    if position < len(text)
                    else "the array is not closed, the file is truncated"
                )
                raise ValueError(f"{where(position)}: malformed JSON: {what}")
            position = skip(position + 1)
    if skip(position + 1) < len(text):
        raise ValueError(f"{where(skip(position + 1))}: malformed JSON: text after the closing ']'")
    return starts, stops


def _reason(error: Exception, text: str) -> str:
    if not isinstance(error, json.JSONDecodeError):
        return f"JSON that cannot be read: {error}"
    # an unterminated string is reported where it starts, so the distance to the end says nothing there
    cut = error.msg.startswith("Unterminated") or error.pos >= len(text.rstrip())
    return f"malformed JSON: {error.msg} at column {error.colno}" + (
        "; the file may be truncated" if cut else ""
    )
