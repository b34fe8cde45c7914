"""Pools in and out: every format whole and in order, every refusal with its file, line and field, no torso on disk."""

import csv
import gzip
import json
import os
import resource
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

from smartgpu.io import find_text, output_path, read_embeddings, read_pool, text_fields, write_rows
from smartgpu.io import tables as io_tables
from smartgpu.io import write as io_write

PICKS = [3, 0, 2]
EXTRA = {"rank": np.arange(3), "gain": np.array([2.5, 0.1, np.nan]), "kept": np.array([True, False, True])}
LINES = [
    '{"id": 123456789012345678901234567890, "one": 1.0, "two": 2, "text": "caf\\u00e9 \U0001f600"}',
    '{"text": "a\\nb", "nested": {"z": [1, {"y": null}], "a": 1e400}, "id": 1}',
    "{}",
    '{"text": "", "one": 1, "text": "twice", "id": -0.0}',
]


def write(path, *lines, end="\n"):
    path.write_bytes(end.join(lines).encode() + end.encode())
    return path


def jsonl(path, rows):
    return write(path, *(json.dumps(row) for row in rows))


def parquet(path, **columns):
    pq.write_table(pa.table(columns), path)
    return path


def fails(error, *parts, call=read_pool, **kwargs):
    """The call's error says all of `parts`; returns its text."""

    def check(*args):
        with pytest.raises(error) as caught:
            call(*args, **kwargs)
        for part in parts:
            assert part in str(caught.value), (part, str(caught.value))

    return check


# ---- JSON and JSON Lines ----


def test_jsonl_rows_keep_every_byte(tmp_path):
    pool = read_pool(write(tmp_path / "p.jsonl", *LINES))
    assert (pool.n, pool.format, pool.embeddings) == (4, "jsonl", None)
    assert pool.fields == ("id", "one", "two", "text", "nested")
    out = write_rows(pool, PICKS, {}, tmp_path / "out")
    assert out == tmp_path / "out.jsonl"
    assert out.read_bytes().decode().splitlines() == [LINES[i] for i in PICKS]


def test_jsonl_extras_go_behind_the_rows_own_keys(tmp_path):
    pool = read_pool(write(tmp_path / "p.jsonl", *LINES))
    got = write_rows(pool, PICKS, EXTRA, tmp_path / "o.jsonl").read_bytes().decode().splitlines()
    added = ('"rank": 0, "gain": 2.5, "kept": true}', '"rank": 1, "gain": 0.1, "kept": false}')
    assert got[0] == LINES[3][:-1] + ", " + added[0]
    assert got[1] == LINES[0][:-1] + ", " + added[1]
    assert got[2] == '{"rank": 2, "gain": null, "kept": true}'
    assert pool.rows([0, 0])[1]["id"] == 123456789012345678901234567890


@pytest.mark.parametrize("indent", [None, 4])
@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"], ids=["plain", "bom"])
def test_json_array(tmp_path, indent, bom):
    rows = [{"text": f"é{i},\n  ü", "n": [i, {"x": "]},{"}]} for i in range(5)]
    path = tmp_path / "p.json"
    path.write_bytes(bom + json.dumps(rows, indent=indent, ensure_ascii=False).encode())
    pool = read_pool(path)
    assert (pool.n, pool.format, pool.fields) == (5, "json", ("text", "n"))
    assert pool.rows([4, 1]) == [rows[4], rows[1]]
    out = write_rows(pool, [4, 1], {"rank": [0, 1]}, tmp_path / "o")
    assert out.suffix == ".json"
    assert json.loads(out.read_bytes()) == [rows[4] | {"rank": 0}, rows[1] | {"rank": 1}]
    lines = (
        write_rows(pool, [4, 1], {"rank": [0, 1]}, tmp_path / "o", "jsonl").read_bytes().decode().splitlines()
    )
    assert [json.loads(line) for line in lines] == [rows[4] | {"rank": 0}, rows[1] | {"rank": 1}]
    assert json.loads(write_rows(pool, [], {}, tmp_path / "none.json").read_bytes()) == []


def test_json_file_of_lines_is_json_lines(tmp_path):
    pool = read_pool(write(tmp_path / "p.json", *LINES))
    assert (pool.n, pool.format) == (4, "jsonl")


def test_blank_lines_bom_crlf_and_missing_last_newline(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}\r\n\r\n   \r\n  {"a": 2}  \r\n\n{"a": 3}')
    pool = read_pool(path)
    assert pool.column("a").tolist() == [1, 2, 3]
    assert write_rows(pool, [1], {}, tmp_path / "o.jsonl").read_bytes() == b'{"a": 2}\n'


@pytest.mark.parametrize("name", ["p.jsonl", "p.json", "p.csv"])
def test_gzip_reads_as_the_plain_file_does(tmp_path, name):
    content = {
        "p.jsonl": '{"a": "x"}\n{"a": "y"}\n',
        "p.json": '[{"a": "x"}, {"a": "y"}]',
        "p.csv": "a\nx\ny\n",
    }[name]
    path = tmp_path / f"{name}.gz"
    path.write_bytes(gzip.compress(content.encode()))
    pool = read_pool(path)
    assert pool.rows([1, 0]) == [{"a": "y"}, {"a": "x"}]
    assert output_path(pool, tmp_path / "o")[0].name == "o" + name[1:]
    path.write_bytes(gzip.compress(content.encode())[:-4])
    fails(ValueError, str(path), "gzip")(path)


@pytest.mark.parametrize(
    "content, parts",
    [
        (b'{"a": 1}\n\n{"a": 1\n{"a": 2}\n', ["line 3", "malformed JSON", "column"]),
        (b'{"a": 1}\n{"a": "trunca', ["line 2", "malformed", "truncated"]),
        (b'{"a": 1}\n[1, 2]\n', ["line 2", "expected a JSON object", "an array of 2"]),
        (b'{"a": 1}\nnull\n', ["line 2", "expected a JSON object", "null"]),
        (b'{"a": 1}\n{"a": "\xff"}\n', ["line 2", "invalid UTF-8", "0xff"]),
        (b'{"a": ' + b"[" * 100_000 + b"\n", ["line 1", "JSON"]),
        (b'[\n{"a": 1}\n]\n', ["line 1", "malformed", "name it .json"]),
        (b"\n\n", ["empty", "0 rows"]),
        (b"", ["empty", "0 rows"]),
    ],
)
def test_bad_lines_name_file_and_line(tmp_path, content, parts):
    path = tmp_path / "pool.jsonl"
    path.write_bytes(content)
    fails(ValueError, "pool.jsonl", *parts)(path)


@pytest.mark.parametrize(
    "content, parts",
    [
        (b'[\n {"a": 1},\n {"a": }\n]', ["line 3 (row 1)", "malformed"]),
        (b'[\n {"a": 1},\n {"a": 2}\n', ["(row 2)", "truncated"]),
        (b'[\n {"a": 1},\n {"a": "xy', ["line 3 (row 1)", "truncated"]),
        (b'[{"a": 1} {"a": 2}]', ["line 1", "','"]),
        (b'[{"a": 1}, 7]', ["row 1", "expected a JSON object", "a number"]),
        (b'[{"a": 1}]\n[]', ["line 2", "after the closing"]),
        (b'[\n{"a": "\xfe"}]', ["line 2", "invalid UTF-8"]),
        (b"[]", ["empty", "0 rows"]),
        (b'"text"', ["expected an array of objects"]),
        (b'{"data": [{"a": 1}], "v": 2}', ["one JSON object", "data (an array of 1)", "v (a number)", "jq"]),
        (b'{\n "data": [{"a": 1}]\n}', ["one JSON object", "data (an array of 1)"]),
        (b'{"a": 1}\n{"a": 2\n', ["line 2", "malformed"]),
    ],
)
def test_bad_json_names_file_line_and_row(tmp_path, content, parts):
    path = tmp_path / "pool.json"
    path.write_bytes(content)
    fails(ValueError, "pool.json", *parts)(path)


def test_a_million_rows_would_not_be_held(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_bytes(b"".join(b'{"text": "%s %d"}\n' % (b"x" * 500, i) for i in range(20_000)))
    tracemalloc.start()
    pool = read_pool(path)
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 20_000 * 40 and peak < 2_000_000  # the file is 10 MB, its dicts are 15
    assert pool.rows([19_999])[0]["text"].endswith(" 19999")


def test_a_file_that_changed_is_noticed(tmp_path):
    path = jsonl(tmp_path / "p.jsonl", [{"a": 1}, {"a": 2}])
    pool = read_pool(path)
    jsonl(path, [{"a": 1}])
    fails(ValueError, "p.jsonl", "changed", call=pool.rows)([1])


# ---- csv ----


def test_csv_keeps_strings_as_they_are(tmp_path):
    rows = [
        ["01", 'say "hi", you', "1.0"],
        ["", "two\nlines", "null"],
        ["x", " r\rn\r\n ", ""],
        ["é", "\ttab;", "NaN"],
    ]
    path = tmp_path / "p.csv"
    with open(path, "w", newline="", encoding="utf-8-sig") as handle:
        csv.writer(handle).writerows([["a", "b", "c"], *rows])
    pool = read_pool(path)
    assert (pool.format, pool.fields, pool.n) == ("csv", ("a", "b", "c"), 4)
    assert pool.column("a") == ["01", "", "x", "é"]
    out = write_rows(pool, PICKS, EXTRA, tmp_path / "o")
    with open(out, newline="", encoding="utf-8") as handle:
        got = list(csv.reader(handle, strict=True))
    assert got[0] == ["a", "b", "c", "rank", "gain", "kept"]
    assert [row[:3] for row in got[1:]] == [rows[i] for i in PICKS]
    assert [row[3:] for row in got[1:]] == [
        ["0", "2.5", "true"],
        ["1", "0.1", "false"],
        ["2", "", "true"],
    ]
    assert read_pool(out).column("b") == [rows[i][1] for i in PICKS]


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_csv_delimiter_long_values_and_one_column(tmp_path, delimiter):
    long = "y" * 200_000
    pool = read_pool(write(tmp_path / "p.csv", f"a{delimiter}b", f"1{delimiter}{long}"))
    assert pool.rows([0]) == [{"a": "1", "b": long}]
    assert write_rows(pool, [0], {}, tmp_path / "o").read_text() == f"a{delimiter}b\n1{delimiter}{long}\n"
    one = read_pool(write(tmp_path / "one.csv", "text", "x", "", '""', "z"))
    assert one.column("text") == ["x", "", "z"]  # a blank line is none, "" is a value
    assert read_pool(write_rows(one, [1, 2], {}, tmp_path / "two.csv")).column("text") == ["", "z"]


@pytest.mark.parametrize(
    "content, parts",
    [
        (b'a,b\n1,"x\ny"\n\n3\n', ["line 5", "1 values, expected 2"]),
        (b"a,b\n1,2,3\n", ["line 2", "3 values, expected 2"]),
        (b'a,b\n1,2\n3,"open\n4,5\n', ["line 3", "never closed"]),
        (b'a,b\n1,"x"y\n', ["line 2", "malformed csv"]),
        (b"a,a\n1,2\n", ["line 1", "repeated field 'a'"]),
        (b"a,b\n1,\xff\n", ["line 2", "invalid UTF-8"]),
        (b"a,b\n", ["empty", "0 rows"]),
        (b"", ["empty", "0 rows"]),
    ],
)
def test_bad_csv_names_file_and_line(tmp_path, content, parts):
    path = tmp_path / "pool.csv"
    path.write_bytes(content)
    fails(ValueError, "pool.csv", *parts)(path)


def test_csv_shards_need_one_header(tmp_path):
    write(tmp_path / "a.csv", "x,y", "1,2")
    write(tmp_path / "b.csv", "x,z", "1,2")
    fails(ValueError, "b.csv", "header", "y, z")(tmp_path)


# ---- parquet ----


def rich_table():
    field = pa.field("embeddings", pa.list_(pa.float16(), 4), metadata={"unit": "none"})
    columns = {
        "id": pa.array([1, 2, 2**62, None]),
        "when": pa.array([0, 1, 2, 3], pa.timestamp("us", "UTC")),
        "kind": pa.array(["x", "y", "x", None]).dictionary_encode(),
        "nested": pa.array([{"a": [1, 2]}, {"a": []}, None, {"a": None}]),
        "embeddings": pa.FixedSizeListArray.from_arrays(pa.array(np.arange(16, dtype=np.float16)), 4),
    }
    schema = pa.schema([pa.field(n, c.type) if n != "embeddings" else field for n, c in columns.items()])
    return pa.table(list(columns.values()), schema=schema.with_metadata({"made": "here"}))


@pytest.mark.parametrize("row_group", [2, 100], ids=["chunks", "chunk"])
def test_parquet_rows_schema_and_dictionaries_survive(tmp_path, row_group):
    table = rich_table()
    pq.write_table(table, tmp_path / "p.parquet", row_group_size=row_group)
    stored = pq.read_table(tmp_path / "p.parquet", partitioning=None)  # parquet itself renames list items
    pool = read_pool(tmp_path / "p.parquet")
    assert (pool.embedding_field, pool.embeddings.dtype, pool.embeddings.shape) == (
        "embeddings",
        np.float16,
        (4, 4),
    )
    np.testing.assert_array_equal(pool.embeddings, np.arange(16).reshape(4, 4))
    assert pool.column("embeddings") is pool.embeddings
    assert pool.column("id") == [1, 2, 2**62, None] and pool.column("kind") == ["x", "y", "x", None]
    assert pool.rows(PICKS) == table.take(PICKS).to_pylist()
    out = pq.read_table(write_rows(pool, PICKS, EXTRA, tmp_path / "o"), partitioning=None)
    assert out.schema.names == [*table.schema.names, *EXTRA]
    for name in table.schema.names:
        assert out.schema.field(name).equals(stored.schema.field(name), check_metadata=True), name
    assert out.schema.metadata[b"made"] == b"here"
    assert out.select(table.schema.names).to_pylist() == table.take(PICKS).to_pylist()
    assert [str(out.schema.field(n).type) for n in EXTRA] == ["int64", "double", "bool"]


@pytest.mark.parametrize("kind", ["list", "large_list", "fixed"])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_embedding_columns_of_every_list_type(tmp_path, kind, dtype, rng):
    x = rng.standard_normal((50, 3)).astype(dtype)
    value = pa.from_numpy_dtype(dtype)
    types = {"list": pa.list_(value), "large_list": pa.large_list(value), "fixed": pa.list_(value, 3)}
    pq.write_table(
        pa.table({"vector": pa.array(list(x), types[kind])}), tmp_path / "p.parquet", row_group_size=7
    )
    for got in (read_pool(tmp_path / "p.parquet").embeddings, read_embeddings(tmp_path / "p.parquet")):
        assert got.dtype == dtype
        np.testing.assert_array_equal(got, x)
    pool = read_pool(tmp_path / "p.parquet")
    assert pool.store.table.column("vector").num_chunks == 1  # the copy is shared, not held twice
    again = read_pool(write_rows(pool, np.arange(49, -1, -1), {}, tmp_path / "o.parquet"))
    assert again.store.table.schema.field("vector").type == pool.store.table.schema.field("vector").type
    np.testing.assert_array_equal(again.embeddings, x[::-1])


def test_embedding_column_is_found_by_name_and_type(tmp_path):
    lists = pa.array([[1.0, 0.0], [0.0, 1.0]])
    path = parquet(tmp_path / "p.parquet", embedding=["all", "words"], vector=lists, other=lists)
    assert read_pool(path).embedding_field == "vector"
    assert read_pool(path, embedding_field="other").embedding_field == "other"
    fails(ValueError, "'embedding'", "lists of floats", "string", embedding_field="embedding")(path)
    fails(ValueError, "'nope'", "embedding, vector, other", embedding_field="nope")(path)
    fails(ValueError, "lists of floats", "list<", embedding_field="a")(
        parquet(tmp_path / "i.parquet", a=[[1], [2]])
    )
    path = parquet(tmp_path / "q.parquet", other=lists, text=["a", "b"])
    assert read_pool(path).embeddings is None
    fails(ValueError, "q.parquet", "embeddings, embedding, vector", "other", call=read_embeddings)(path)


@pytest.mark.parametrize(
    "rows, part",
    [
        ([[1.0, 2.0], [1.0, 2.0], [1.0]], "row 2 has 1 features"),
        ([[1.0, 2.0], None, [1.0, 2.0]], "row 1 is null"),
        ([[1.0, 2.0], [1.0, 2.0], [1.0, None]], "row 2 holds a null"),
        ([[], [], []], "no features"),
    ],
)
def test_ragged_and_null_embeddings_name_the_row(tmp_path, rows, part):
    path = tmp_path / "p.parquet"
    pq.write_table(pa.table({"embeddings": pa.array(rows, pa.list_(pa.float32()))}), path, row_group_size=2)
    fails(ValueError, "p.parquet", "embeddings", part)(path)
    fails(ValueError, "p.parquet", "embeddings", part, call=read_embeddings)(path)


def test_unreadable_parquet_is_named(tmp_path):
    good = parquet(tmp_path / "a.parquet", text=["x"] * 100).read_bytes()
    for content in (good[:-10], good[: len(good) // 2], b"", b"PAR1 nonsense PAR1"):
        (tmp_path / "b.parquet").write_bytes(content)
        for call in (read_pool, read_embeddings):
            fails(ValueError, "b.parquet", "not a readable parquet", call=call)(tmp_path / "b.parquet")
    broken = bytearray(good)
    broken[4:40] = b"\xff" * 36  # the footer is fine, a page is not
    (tmp_path / "b.parquet").write_bytes(broken)
    fails(ValueError, "b.parquet", "not a readable parquet")(tmp_path)


def test_parquet_shards_are_unified_or_refused(tmp_path):
    parquet(tmp_path / "p-2.parquet", a=pa.array([1], pa.int32()), t=pa.array([None], pa.null()))
    parquet(tmp_path / "p-10.parquet", a=pa.array([2**40]), t=["x"], more=[1.5])
    pool = read_pool(tmp_path)
    assert [f.name for f in pool.files] == ["p-2.parquet", "p-10.parquet"]
    assert pool.rows([1, 0]) == [{"a": 2**40, "t": "x", "more": 1.5}, {"a": 1, "t": None, "more": None}]
    assert pool.locate(1) == (tmp_path / "p-10.parquet", 0)
    for values in (["text"], [0.5]):  # int to float would round what is above 2^53
        parquet(tmp_path / "p-11.parquet", a=values)
        fails(ValueError, "p-11.parquet", "'a'", "int64", "p-10.parquet")(tmp_path)


def test_dictionaries_differ_between_shards(tmp_path):
    for at, values in enumerate((["x", "y"], ["z", "x"])):
        parquet(tmp_path / f"{at}.parquet", kind=pa.array(values).dictionary_encode())
    pool = read_pool(tmp_path)
    assert pool.column("kind") == ["x", "y", "z", "x"]
    out = pq.ParquetFile(write_rows(pool, [2, 1, 3, 0], {}, tmp_path / "out.parquet")).read()
    assert pa.types.is_dictionary(out.schema.field("kind").type)
    assert out.column("kind").to_pylist() == ["z", "y", "x", "x"]


def test_folder_names_with_equals_signs_add_no_column(tmp_path):
    (tmp_path / "split=train").mkdir()
    assert read_pool(parquet(tmp_path / "split=train" / "p.parquet", text=["a"])).fields == ("text",)


def test_take_across_more_string_bytes_than_32_bits_address():
    chunk = pa.array(["x" * (1 << 20)] * 15 + ["last"])
    table = pa.table({"t": pa.chunked_array([chunk] * 160)})  # one chunk of 15 MB, 160 times
    store = io_tables.ArrowRows(table, [2560])
    assert store.table.nbytes > 2**31
    got = store.rows(np.array([2559, 0, 255]))
    assert [len(row["t"]) for row in got] == [4, 1 << 20, 4]


def test_batches_keep_order_over_their_borders():
    chunks = np.split(np.arange(1000), [0, 1, 400, 400, 999])
    store = io_tables.ArrowRows(pa.table({"a": pa.chunked_array([pa.array(c) for c in chunks])}), [1000])
    picks = np.random.default_rng(0).permutation(1000)
    for size in (1, 7, 1000, 5000):
        parts = list(store.batches(picks, size))
        assert [row for part in parts for row in part.column("a").to_pylist()] == picks.tolist()
    assert [len(part) for part in store.batches(picks[:0])] == [0]


# ---- arrays ----


def test_npy_is_mapped_and_shards_are_joined(tmp_path, rng):
    x = rng.standard_normal((6, 3)).astype(np.float16)
    np.save(tmp_path / "s10.npy", x[4:])
    np.save(tmp_path / "s9.npy", x[:4])
    assert isinstance(read_embeddings(tmp_path / "s9.npy"), np.memmap)
    pool = read_pool(tmp_path)
    assert (pool.format, pool.n, pool.fields, pool.counts) == ("npy", 6, (), (4, 2))
    np.testing.assert_array_equal(pool.embeddings, x)
    fails(ValueError, "embeddings alone", "'text'", call=pool.column)("text")
    np.testing.assert_array_equal(pool.rows([5])[0]["embeddings"], x[5])
    np.save(tmp_path / "s11.npy", x[:, :2])
    fails(ValueError, "s11.npy", "2 features", "3 of float16")(tmp_path)


@pytest.mark.parametrize(
    "array, parts",
    [
        (np.array([{"a": 1}], dtype=object), ["Python objects", "never loaded"]),
        (np.zeros(3), ["(n, d)", "(3,)"]),
        (np.zeros((3, 0)), ["(n, d)", "(3, 0)"]),
        (np.zeros((3, 2), np.int64), ["float16", "int64"]),
        (np.zeros((3, 2), np.complex64), ["float16", "complex64"]),
        (np.zeros((0, 2)), ["empty", "0 rows"]),
    ],
)
def test_bad_arrays_are_named(tmp_path, array, parts):
    np.save(tmp_path / "x.npy", array, allow_pickle=True)
    fails(ValueError, "x.npy", *parts)(tmp_path / "x.npy")
    np.savez(tmp_path / "x.npz", embeddings=array)
    if array.ndim == 2:
        fails(ValueError, "x.npz", *parts)(tmp_path / "x.npz")
    fails(ValueError, "x.npz", call=read_embeddings, field="embeddings")(tmp_path / "x.npz")


def test_truncated_arrays_and_pickles_are_refused(tmp_path):
    np.save(tmp_path / "x.npy", np.ones((9, 4)))
    np.savez(tmp_path / "x.npz", np.ones((9, 4)))
    for name in ("x.npy", "x.npz"):
        path = tmp_path / name
        content = path.read_bytes()
        for size in (len(content) - 40, 40, 0):
            path.write_bytes(content[:size])
            fails(ValueError, name, "truncated")(path)
    import pickle

    (tmp_path / "p.npy").write_bytes(pickle.dumps({"a": 1}))
    fails(ValueError, "p.npy", "never loaded")(tmp_path / "p.npy")
    (tmp_path / "p.npz").write_bytes(pickle.dumps({"a": 1}))
    fails(ValueError, "p.npz", "never loaded")(tmp_path / "p.npz")


def test_npz_and_safetensors_choose_the_array(tmp_path, rng):
    safetensors = pytest.importorskip("safetensors.numpy")
    a, b = rng.standard_normal((4, 3)), rng.standard_normal((4, 2)).astype(np.float32)

    def check(path, save):
        save(path, ids=np.arange(4), x=a)
        np.testing.assert_array_equal(read_embeddings(path), a)
        save(path, x=a, embeddings=b)
        np.testing.assert_array_equal(read_pool(path).embeddings, b)
        np.testing.assert_array_equal(read_embeddings(path, field="x"), a)
        fails(ValueError, path.name, "'y'", "x (4, 3)", call=read_embeddings, field="y")(path)
        save(path, x=a, z=b)
        fails(ValueError, path.name, "several 2-D arrays", "x (4, 3)", "z (4, 2)")(path)
        save(path, ids=np.arange(4))
        fails(ValueError, path.name, "no 2-D array", "ids (4,)")(path)

    check(tmp_path / "x.npz", lambda path, **arrays: np.savez(path, **arrays))
    check(tmp_path / "x.safetensors", lambda path, **arrays: safetensors.save_file(arrays, path))


def test_safetensors_bf16_truncation_and_dtype(tmp_path):
    pytest.importorskip("safetensors")
    values = np.array([[1.0, -2.5, 3e38], [1e-40, 0.0, -0.0]], np.float32)
    half = (values.view(np.uint32) >> 16).astype(np.uint16)
    path = tmp_path / "x.safetensors"

    def save(dtype, data):
        header = {"e": {"dtype": dtype, "shape": list(values.shape), "data_offsets": [0, data.nbytes]}}
        head = json.dumps(header).encode()
        path.write_bytes(len(head).to_bytes(8, "little") + head + data.tobytes())

    save("BF16", half)
    got = read_embeddings(path)
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got.view(np.uint32), half.astype(np.uint32) << 16)
    save("F32", values)
    assert isinstance(read_embeddings(path), np.memmap)
    np.testing.assert_array_equal(read_pool(path).embeddings, values)
    path.write_bytes(path.read_bytes()[:-3])
    fails(ValueError, "x.safetensors", "truncated")(path)
    save("I32", np.ones(values.shape, np.int32))
    fails(ValueError, "x.safetensors", "BF16", "I32")(path)


def test_embeddings_in_json_lists(tmp_path):
    path = jsonl(tmp_path / "p.jsonl", [{"e": [1, 2.5], "t": "a"}, {"e": [0.1, 3], "t": "b"}])
    assert read_pool(path).embeddings is None
    got = read_embeddings(path, field="e")
    np.testing.assert_array_equal(got, np.array([[1, 2.5], [0.1, 3]], np.float32))
    fails(ValueError, "name the field", call=read_embeddings)(path)
    fails(ValueError, "'x'", "e, t", embedding_field="x")(path)
    fails(ValueError, "row 0", "list of numbers", embedding_field="t")(path)
    fails(ValueError, "row 1 has 1 features", embedding_field="e")(
        jsonl(tmp_path / "q.jsonl", [{"e": [1, 2]}, {"e": [1]}])
    )
    fails(ValueError, "csv cannot carry", embedding_field="e")(write(tmp_path / "p.csv", "e,t", "1,2"))


# ---- paths ----


def test_folders_globs_and_natural_order(tmp_path):
    for name in (
        "part-10.jsonl",
        "part-9.jsonl",
        "part-1.jsonl.gz",
        ".hidden.jsonl",
        "_tmp.jsonl",
        "README.md",
    ):
        content = json.dumps({"f": name}).encode()
        (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    expected = ["part-1.jsonl.gz", "part-9.jsonl", "part-10.jsonl"]
    assert read_pool(tmp_path).column("f") == expected
    assert read_pool(str(tmp_path / "part-*")).column("f") == expected
    assert read_pool(str(tmp_path / "part-[0-9].jsonl")).column("f") == ["part-9.jsonl"]
    assert read_pool(tmp_path / ".hidden.jsonl").n == 1  # named by hand
    deep = tmp_path / "deep" / "er"
    deep.mkdir(parents=True)
    jsonl(deep / "x.jsonl", [{"f": "deep"}])
    assert read_pool(str(tmp_path / "**" / "x.jsonl")).column("f") == ["deep"]
    jsonl(tmp_path / "odd[1].jsonl", [{"f": "literal"}])
    assert read_pool(str(tmp_path / "odd[1].jsonl")).column("f") == ["literal"]
    fails(ValueError, "README.md", ".parquet", "**/*.parquet")(_only_readme(tmp_path))


def _only_readme(tmp_path):
    outer = tmp_path / "outer"
    (outer / "inner").mkdir(parents=True)
    (outer / "README.md").write_text("x")
    jsonl(outer / "inner" / "x.jsonl", [{"a": 1}])
    return outer


def test_wrong_paths_say_what_is_there(tmp_path):
    jsonl(tmp_path / "alpaca.jsonl", [{"a": 1}])
    fails(FileNotFoundError, "alpacca.jsonl", "near names: alpaca.jsonl")(tmp_path / "alpacca.jsonl")
    fails(FileNotFoundError, "nowhere", "does not exist")(tmp_path / "nowhere" / "x.jsonl")
    fails(FileNotFoundError, "no file matches", "*.parquet")(str(tmp_path / "*.parquet"))
    (tmp_path / "x.pkl").write_bytes(b"x")
    fails(ValueError, "'.pkl'", ".jsonl", ".safetensors", "pickles are never loaded")(tmp_path / "x.pkl")
    (tmp_path / "x.txt.gz").write_bytes(b"x")
    fails(ValueError, "'.txt.gz'", ".jsonl")(tmp_path / "x.txt.gz")
    write(tmp_path / "b.csv", "a", "1")
    fails(ValueError, "mixes formats", "jsonl: alpaca.jsonl", "csv: b.csv")(tmp_path)
    fails(ValueError, "several formats", "jsonl: alpaca.jsonl", "csv: b.csv")(str(tmp_path / "[ab]*"))
    write(tmp_path / "l1.json", *LINES)
    write(tmp_path / "l2.json", "[{}]")
    fails(ValueError, "l2.json is a JSON array", "l1.json holds JSON Lines")(str(tmp_path / "l*.json"))


def test_fingerprint_is_of_content_and_order(tmp_path):
    a = jsonl(tmp_path / "a.jsonl", [{"a": 1}])
    b = jsonl(tmp_path / "b.jsonl", [{"a": 22}])
    both = read_pool(str(tmp_path / "[ab].jsonl")).fingerprint()
    assert len(both) == 64 and both == read_pool(str(tmp_path / "[ab].jsonl")).fingerprint()
    a.rename(tmp_path / "c.jsonl")
    os.utime(b, (0, 0))
    assert read_pool(str(tmp_path / "[bc].jsonl")).fingerprint() != both  # other order
    (tmp_path / "c.jsonl").rename(tmp_path / "0.jsonl")
    assert read_pool(str(tmp_path / "[0b].jsonl")).fingerprint() == both  # other names and times
    jsonl(b, [{"a": 23}])
    assert read_pool(str(tmp_path / "[0b].jsonl")).fingerprint() != both


def test_columns_numbers_and_indices(tmp_path):
    rows = [
        {"i": 1, "f": 1, "b": True, "big": 2**70, "s": "1.5"},
        {"i": 2, "f": 0.5, "b": False, "big": 1, "s": "2"},
    ]
    pool = read_pool(jsonl(tmp_path / "p.jsonl", rows))
    assert pool.column("i").dtype == np.int64 and pool.column("f").tolist() == [1.0, 0.5]
    assert (
        pool.column("b").dtype == bool
        and pool.column("big") == [2**70, 1]
        and pool.column("s") == ["1.5", "2"]
    )
    assert pool.numbers("s").tolist() == [1.5, 2.0] and pool.numbers("i").dtype == np.float64
    fails(ValueError, "'x'", "i, f, b, big, s", call=pool.column)("x")
    bad = read_pool(jsonl(tmp_path / "q.jsonl", [{"q": 1}, {"q": "high"}, {}]))
    fails(ValueError, "'q'", "row 1", "'high'", "number", call=bad.numbers)("q")
    for indices, part in (
        ([0, 2], "[0, 2), got 2 at position 1"),
        ([-1], "got -1"),
        ([0.5], "float64"),
        ([[0]], "(1, 1)"),
    ):
        fails(ValueError, "indices", part, call=pool.rows)(indices)
    assert pool.rows([]) == []


# ---- text ----


@pytest.mark.parametrize(
    "row, used, text",
    [
        ({"instruction": "Do", "input": "it", "output": "no"}, ("instruction", "input"), "Do\nit"),
        ({"instruction": "Do", "input": "", "text": "no"}, ("instruction", "input"), "Do"),
        ({"instruction": "Do", "input": None}, ("instruction", "input"), "Do"),
        ({"instruction": "Do", "prompt": "no"}, ("instruction",), "Do"),
        ({"prompt": "p", "question": "q"}, ("prompt",), "p"),
        ({"question": "q", "text": "t"}, ("question",), "q"),
        ({"inputs": "i", "targets": "t"}, ("inputs",), "i"),
        ({"content": "c", "text": "t"}, ("text",), "t"),
        ({"content": "c"}, ("content",), "c"),
        ({"text": 12}, ("text",), "12"),
        ({"text": ["a", None, "b"]}, ("text",), "a\nb"),
        (
            {"text": "no", "messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "u1"},
                                        {"role": "assistant", "content": "a"}, {"role": "user", "content": "u2"}]},
            ("messages",),
            "u1\nu2",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "x"}, "y"]}]},
            ("messages",),
            "x\ny",
        ),
        ({"conversations": [{"from": "human", "value": "h"}, {"from": "gpt", "value": "g"}]}, ("conversations",), "h"),
        ({"prompt": [{"role": "user", "content": "u"}]}, ("prompt",), "u"),
        ({"messages": {"role": ["user", "assistant"], "content": ["u", "a"]}}, ("messages",), "u"),
        ({"messages": [{"role": None, "from": "human", "content": None, "value": "v"}]}, ("messages",), "v"),
    ],
)  # fmt: skip
def test_text_conventions(tmp_path, row, used, text):
    pool = read_pool(jsonl(tmp_path / "p.jsonl", [row]))
    assert (text_fields(pool), find_text(pool)) == (used, [text])
    try:
        pq.write_table(pa.Table.from_pylist([row]), tmp_path / "p.parquet")
    except pa.ArrowInvalid:  # parts of several kinds: JSON only
        return
    assert find_text(read_pool(tmp_path / "p.parquet")) == [text]


def test_text_fields_named_null_and_empty(tmp_path):
    rows = [{"q": "a", "c": "b"}, {"q": None, "c": "b"}, {"c": ""}, {"q": "\ud800x é"}]
    pool = read_pool(jsonl(tmp_path / "p.jsonl", rows))
    assert find_text(pool, ["c", "q"]) == ["b\na", "b", "", "\ufffdx é"]
    assert find_text(pool, "q") == ["a", "", "", "\ufffdx é"]
    fails(ValueError, "no text field", "q, c", "--text", "messages", call=find_text)(pool)
    fails(ValueError, "--text", "'z'", "q, c", call=find_text)(pool, ["q", "z"])
    fails(ValueError, "--text", "q, c", call=find_text)(pool, [])
    empty = read_pool(jsonl(tmp_path / "e.jsonl", [{"text": ""}, {"text": None, "other": "x"}]))
    fails(ValueError, "all 2 texts", "from text", "text, other", "--text", call=find_text)(empty)
    turn = read_pool(jsonl(tmp_path / "t.jsonl", [{"messages": []}, {"messages": [{"content": "x"}]}]))
    fails(ValueError, "'messages'", "row 1", "role", "content", call=find_text)(turn)
    np.save(tmp_path / "x.npy", np.ones((2, 2)))
    fails(ValueError, "npy pool holds embeddings alone", "--text", call=find_text)(
        read_pool(tmp_path / "x.npy")
    )
    path = parquet(tmp_path / "b.parquet", text=[b"bytes"])
    fails(ValueError, "'text'", "row 0 holds bytes", call=find_text)(read_pool(path))


# ---- writing ----


def pools(tmp_path):
    """The same four rows in every format that has fields."""
    rows = [{"text": f'row {i},\n"é"', "n": i, "score": i / 2} for i in range(4)]
    jsonl(tmp_path / "p.jsonl", rows)
    (tmp_path / "p.json").write_text(json.dumps(rows))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "p.parquet")
    with open(tmp_path / "p.csv", "w", newline="") as handle:
        csv.writer(handle).writerows([rows[0], *(row.values() for row in rows)])
    return rows


@pytest.mark.parametrize("source", ["json", "jsonl", "csv", "parquet"])
@pytest.mark.parametrize("target", ["json", "jsonl", "csv", "parquet"])
def test_every_format_into_every_other(tmp_path, source, target):
    rows = pools(tmp_path)
    pool = read_pool(tmp_path / f"p.{source}")
    out = write_rows(pool, PICKS, {"rank": [0, 1, 2], "tag": ["x", "y", "é"]}, tmp_path / "out", target)
    assert out == tmp_path / f"out.{target}"
    expected = [rows[i] | {"rank": at, "tag": "xyé"[at]} for at, i in enumerate(PICKS)]
    if source == "csv":
        expected = [{k: str(v) if k in ("n", "score") else v for k, v in row.items()} for row in expected]
    if target == "csv":
        expected = [{k: str(v) for k, v in row.items()} for row in expected]
    assert read_pool(out).rows([0, 1, 2]) == expected


@pytest.mark.parametrize("source", ["jsonl", "parquet"])
def test_hf_folder_there_and_back(tmp_path, source):
    datasets = pytest.importorskip("datasets")
    rows = pools(tmp_path)
    out = write_rows(read_pool(tmp_path / f"p.{source}"), PICKS, EXTRA, tmp_path / "hf", "hf")
    assert out == tmp_path / "hf" and not [p for p in tmp_path.iterdir() if p.name.startswith(".")]
    got = datasets.load_from_disk(str(out))
    assert got["n"][:] == [rows[i]["n"] for i in PICKS] and got["rank"][:] == [0, 1, 2]
    pool = read_pool(out)
    assert (pool.format, pool.n, pool.files[0].suffix) == ("hf", 3, ".arrow")
    again = write_rows(pool, [2, 0], {"rank": [7, 8]}, tmp_path / "two")
    assert read_pool(again).rows([0])[0] == {**rows[2], "rank": 2, "gain": pytest.approx(np.nan, nan_ok=True),
                                             "kept": True, "smartgpu_rank": 7}  # fmt: skip
    assert read_pool(write_rows(pool, [0], {}, tmp_path / "two", "hf")).n == 1  # replaces a data set
    assert pool.fingerprint() == read_pool(out).fingerprint()
    fails(ValueError, "pool itself", call=write_rows)(pool, [0], {}, out)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    fails(FileExistsError, "mine", "no HF dataset", call=write_rows)(pool, [0], {}, tmp_path / "mine", "hf")
    assert (tmp_path / "mine" / "thesis.tex").exists()


def test_hf_features_embeddings_and_dictionaries(tmp_path):
    datasets = pytest.importorskip("datasets")
    x = np.arange(12, dtype=np.float32).reshape(4, 3)
    features = datasets.Features(
        {
            "label": datasets.ClassLabel(names=["no", "yes"]),
            "embedding": datasets.List(datasets.Value("float32")),
        }
    )
    made = datasets.Dataset.from_dict({"label": [0, 1, 1, 0], "embedding": x}, features=features).select(
        [3, 1, 2, 0]
    )
    made.save_to_disk(str(tmp_path / "hf"))
    pool = read_pool(tmp_path / "hf")
    np.testing.assert_array_equal(pool.embeddings, x[[3, 1, 2, 0]])
    np.testing.assert_array_equal(read_embeddings(tmp_path / "hf"), pool.embeddings)
    out = datasets.load_from_disk(str(write_rows(pool, [1, 0], {}, tmp_path / "o")))
    assert out.features == features and out["embedding"][0] == [3, 4, 5]
    rich = tmp_path / "p.parquet"
    pq.write_table(rich_table(), rich)
    got = read_pool(write_rows(read_pool(rich), PICKS, {}, tmp_path / "h2", "hf"))
    assert got.rows([0, 1, 2]) == rich_table().take(PICKS).to_pylist()
    assert got.embeddings.dtype == np.float16


def test_hf_refusals(tmp_path):
    datasets = pytest.importorskip("datasets")
    made = datasets.Dataset.from_dict({"text": ["a"] * 100})
    datasets.DatasetDict(train=made, test=made).save_to_disk(str(tmp_path / "dd"))
    fails(ValueError, "DatasetDict", "train, test", str(tmp_path / "dd" / "train"))(tmp_path / "dd")
    shard = next((tmp_path / "dd" / "train").glob("*.arrow"))
    content = shard.read_bytes()
    for size in (
        len(content) - 8,
        len(content) // 2,
        0,
    ):  # the first cut is between two messages of the stream
        shard.write_bytes(content[:size])
        fails(ValueError, shard.name, "truncated")(tmp_path / "dd" / "train")
    shard.write_bytes(content[:40] + content[-8:])
    fails(ValueError, "train", "not a readable HF dataset")(tmp_path / "dd" / "train")
    shard.unlink()
    fails(FileNotFoundError, shard.name)(tmp_path / "dd" / "train")
    (tmp_path / "dd" / "test" / "state.json").write_text("{")
    fails(ValueError, "state.json", "HF dataset")(tmp_path / "dd" / "test")


@pytest.mark.parametrize("module, line", [("datasets", "smartgpu[hf]"), ("safetensors", "smartgpu[io]")])
def test_missing_extras_name_the_pip_line(tmp_path, monkeypatch, module, line):
    monkeypatch.setitem(sys.modules, module, None)
    (tmp_path / "state.json").write_text('{"_data_files": []}')
    (tmp_path / "dataset_info.json").write_text("{}")
    (tmp_path / "x.safetensors").write_bytes(b"x")
    fails(ImportError, f"pip install '{line}'")(
        tmp_path if module == "datasets" else tmp_path / "x.safetensors"
    )


@pytest.mark.parametrize("target", ["json", "jsonl", "csv", "parquet", "npz", None])
def test_bare_embeddings_out(tmp_path, target, rng):
    x = np.asfortranarray(rng.standard_normal((4, 3)).astype(np.float16))
    np.save(tmp_path / "x.npy", x)
    out = write_rows(read_pool(tmp_path / "x.npy"), PICKS, {"rank": [0, 1, 2]}, tmp_path / "o", target)
    assert out.suffix == f".{target or 'parquet'}"
    if target == "npz":
        with np.load(out) as got:
            assert got["indices"].tolist() == PICKS and got["rank"].tolist() == [0, 1, 2]
    elif target == "csv":
        got = read_pool(out)
        assert got.fields == ("embeddings", "rank")
        assert [json.loads(v) for v in got.column("embeddings")] == x[PICKS].tolist()
    else:
        got = read_pool(out, embedding_field="embeddings")
        assert got.fields == ("embeddings", "rank")
        np.testing.assert_array_equal(got.embeddings, x[PICKS])
        if target in (None, "parquet"):
            assert got.store.table.schema.field("embeddings").type == pa.list_(pa.float16(), 3)


def test_arrow_values_that_json_has_no_type_for(tmp_path):
    import datetime
    import decimal

    row = {
        "d": datetime.date(2026, 1, 2),
        "m": decimal.Decimal("1.10"),
        "b": b"\x00\xff",
        "x": [1.5, float("inf")],
    }
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "p.parquet")
    out = write_rows(read_pool(tmp_path / "p.parquet"), [0], {}, tmp_path / "o", "jsonl")
    assert json.loads(out.read_text()) == {"d": "2026-01-02", "m": "1.10", "b": "AP8=", "x": [1.5, None]}


def test_values_that_fit_no_column_are_refused_and_nothing_is_left(tmp_path):
    for value in ("x", 2**70, [1], "\ud800"):
        pool = read_pool(jsonl(tmp_path / "p.jsonl", [{"a": 1, "odd": 1}, {"a": 2, "odd": value}]))
        fails(ValueError, "'odd'", "jsonl", call=write_rows)(pool, [0, 1], {}, tmp_path / "o", "parquet")
    fails(ValueError, "row 1", "surrogate", call=write_rows)(pool, [0, 1], {}, tmp_path / "o", "csv")
    empty = read_pool(jsonl(tmp_path / "e.jsonl", [{"a": {}}]))
    fails(ValueError, "parquet cannot hold", call=write_rows)(empty, [0], {}, tmp_path / "o", "parquet")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["e.jsonl", "p.jsonl"]


def test_names_that_clash_get_a_prefix(tmp_path):
    pool = read_pool(jsonl(tmp_path / "p.jsonl", [{"rank": "old", "smartgpu_gain": 1, "gain": 2}]))
    out = read_pool(write_rows(pool, [0], {"rank": [0], "gain": [0.5]}, tmp_path / "o"))
    assert out.rows([0]) == [
        {"rank": "old", "smartgpu_gain": 1, "gain": 2, "smartgpu_rank": 0, "smartgpu_smartgpu_gain": 0.5}
    ]


def test_bad_output_arguments(tmp_path):
    pool = read_pool(jsonl(tmp_path / "p.jsonl", [{"a": 1}, {"a": 2}]))
    bad = [
        (([0, 2], {}, tmp_path / "o"), ["indices", "[0, 2)"]),
        (([0], {"rank": [0, 1]}, tmp_path / "o"), ["extra['rank']", "(1,)", "(2,)"]),
        (([0], {"rank": [None]}, tmp_path / "o"), ["extra['rank']", "object"]),
        (([0], {}, tmp_path / "o", "xml"), ["json, jsonl, csv, parquet, npz, hf", "'xml'"]),
        (([0], {}, tmp_path / "o.npy"), ["json, jsonl, csv, parquet, npz, hf", "'npy'"]),
        (([0], {}, tmp_path / "o.jsonl.gz"), ["compressed"]),
        (([0], {}, tmp_path / "o.csv", "parquet"), ["'parquet'", "o.csv"]),
        (([0], {}, tmp_path / "p.jsonl"), ["p.jsonl", "the pool itself"]),
    ]
    for args, parts in bad:
        fails(ValueError, *parts, call=write_rows)(pool, *args)
    fails(FileNotFoundError, "cannot write", "missing", call=write_rows)(
        pool, [0], {}, tmp_path / "missing" / "o"
    )
    assert [p.name for p in tmp_path.iterdir()] == ["p.jsonl"]
    long = "task." + "x" * 240  # a dot is no suffix, and the temporary name is no longer than the name
    assert write_rows(pool, [0], {}, tmp_path / long).name == long + ".jsonl"


@pytest.mark.parametrize("target", ["json", "jsonl", "csv", "parquet", "npz", "hf"])
def test_a_full_disk_leaves_what_was_there(tmp_path, target):
    if target == "hf":
        pytest.importorskip("datasets")
    rng = np.random.default_rng(0)
    rows = [{"text": rng.bytes(400).hex(), "n": i} for i in range(3000)]
    pool = read_pool(jsonl(tmp_path / "p.jsonl", rows))
    out = tmp_path / "out"
    out.mkdir()
    old = write_rows(pool, [0], {}, out / "o", target)
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*")}
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limit[1]))  # a real failing write, of the kernel's own
    try:
        with pytest.raises(OSError) as caught:
            write_rows(pool, np.arange(3000), {"gain": np.zeros(3000)}, old, target)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    for part in ("cannot write", str(old), "File too large", "MB were needed", "MB are free"):
        assert part in str(caught.value)
    assert {p: p.stat().st_mtime_ns for p in out.rglob("*")} == before


def test_no_space_left_is_reported_as_such(tmp_path, monkeypatch):
    pool = read_pool(jsonl(tmp_path / "p.jsonl", [{"a": 1}]))

    def full(handle):
        with open("/dev/full", "wb", buffering=0) as device:
            device.write(b"x")

    monkeypatch.setattr(io_write.os, "fsync", full)
    with pytest.raises(OSError) as caught:
        write_rows(pool, [0], {}, tmp_path / "o")
    assert caught.value.errno == 28 and "No space left on device" in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == ["p.jsonl"]


def test_interrupted_writing_leaves_nothing(tmp_path, monkeypatch):
    pool = read_pool(jsonl(tmp_path / "p.jsonl", [{"a": 1}]))

    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(io_write, "_write_json", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_rows(pool, [0], {}, tmp_path / "o")
    assert [p.name for p in tmp_path.iterdir()] == ["p.jsonl"]


# ---- whatever rows there are ----


def test_any_json_and_any_csv_come_back(tmp_path):
    hypothesis = pytest.importorskip("hypothesis")
    st = pytest.importorskip("hypothesis.strategies")
    text = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
    leaf = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | text
    value = st.recursive(
        leaf, lambda v: st.lists(v, max_size=3) | st.dictionaries(text, v, max_size=3), max_leaves=6
    )
    rows_of = st.lists(st.dictionaries(text, value, max_size=4), min_size=1, max_size=5)

    @hypothesis.settings(max_examples=25)
    @hypothesis.given(rows_of, st.booleans(), st.sampled_from([None, 2]))
    def json_rows(rows, ascii_only, indent):
        (tmp_path / "p.json").write_text(
            json.dumps(rows, ensure_ascii=ascii_only, indent=indent), encoding="utf-8"
        )
        (tmp_path / "p.jsonl").write_bytes(b"\n".join(json.dumps(row).encode() for row in rows))
        for source in ("p.json", "p.jsonl"):
            pool = read_pool(tmp_path / source)
            assert pool.rows(np.arange(pool.n)) == rows
            for target in ("o.json", "o.jsonl"):
                out = read_pool(
                    write_rows(pool, np.arange(pool.n)[::-1], {"#": np.arange(pool.n)}, tmp_path / target)
                )
                got = out.rows(np.arange(pool.n))
                assert [list(row.items())[:-1] for row in got] == [list(row.items()) for row in rows[::-1]]

    @hypothesis.settings(max_examples=25)
    @hypothesis.given(
        st.lists(st.lists(text, min_size=2, max_size=2), min_size=1, max_size=5), st.sampled_from(",;\t")
    )
    def csv_rows(rows, delimiter):
        with open(tmp_path / "p.csv", "w", newline="", encoding="utf-8") as handle:
            csv.writer(handle, delimiter=delimiter).writerows([["a", "b"], *rows])
        pool = read_pool(tmp_path / "p.csv")
        assert [list(row.values()) for row in pool.rows(np.arange(pool.n))] == rows
        again = read_pool(write_rows(pool, np.arange(pool.n), {}, tmp_path / "o.csv"))
        assert again.store.table.equals(pool.store.table)

    json_rows()
    csv_rows()


# ---- the real pool, and the package's promise ----


def test_alpaca(tmp_path, data_dir, alpaca):
    path = data_dir / "alpaca" / "alpaca.parquet"
    pool = read_pool(path)
    assert (pool.n, pool.fields) == (52_002, ("id", "instruction", "input", "output"))
    texts = find_text(pool)
    assert text_fields(pool) == ("instruction", "input")
    rows = pool.rows([5, 52_001])
    assert texts[5] == rows[0]["instruction"] + ("\n" + rows[0]["input"] if rows[0]["input"] else "")
    picks = np.random.default_rng(0).permutation(52_002)[:5000]
    out = read_pool(write_rows(pool, picks, {"rank": np.arange(5000)}, tmp_path / "o"))
    np.testing.assert_array_equal(out.column("id"), picks)
    lines = read_pool(write_rows(pool, picks, {"rank": np.arange(5000)}, tmp_path / "o.jsonl"))
    assert lines.rows(np.arange(5000)) == out.rows(np.arange(5000))
    assert find_text(lines) == [texts[i] for i in picks]
    x = read_pool(data_dir / "alpaca" / "minilm.npy")
    assert isinstance(x.embeddings, np.memmap) and x.n == pool.n
    np.testing.assert_array_equal(x.embeddings[::5000], alpaca[::5000])


def test_importing_smartgpu_imports_no_arrow():
    code = "import sys, smartgpu; assert 'pyarrow' not in sys.modules and 'datasets' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
