"""The command line: every way in and out, what a run leaves behind, resuming, refusals, and what a person sees."""

import dataclasses
import fcntl
import json
import os
import pty
import re
import runpy
import signal
import struct
import subprocess
import sys
import termios
import zlib

import numpy as np
import pytest

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

import smartgpu
from smartgpu import checkpoint, cli
from smartgpu.commands import folder, select
from smartgpu.config import Config
from smartgpu.io import FORMATS, read_pool

N, D, K = 60, 8, 7
X = np.random.default_rng(3).normal(size=(N, D)).astype(np.float32)
ROWS = [{"id": i, "text": f"row {i}, größer", "deep": {"a": [i, None]}} for i in range(N)]
FLAT = [{"id": i, "text": f"row {i}, größer"} for i in range(N)]


@pytest.fixture
def smart(smart):
    """With a pool in the folder."""
    np.save("x.npy", X)
    write_lines("pool.jsonl", ROWS)
    return smart


@pytest.fixture
def embedder(monkeypatch):
    """A stand-in for the model: vectors from the text's bytes. Its calls are kept."""
    from smartgpu import embed

    calls = []

    def fake(texts, model=None, **how):
        calls.append((list(texts), model, how))
        return np.stack([np.random.default_rng(zlib.crc32(t.encode())).normal(size=D) for t in texts])

    monkeypatch.setattr(embed, "embed", fake)
    monkeypatch.setattr(
        embed, "find_model", lambda model: embed._Source(model or "stand-in", None, f"id of {model}")
    )
    return calls


def write_lines(path, rows):
    with open(path, "w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def write_csv(path, rows):
    with open(path, "w", encoding="utf-8") as file:
        file.write("id,text\n" + "".join(f'{row["id"]},"{row["text"]}"\n' for row in rows))


def with_embeddings(rows):
    values = pa.FixedSizeListArray.from_arrays(pa.array(X[: len(rows)].reshape(-1)), D)
    return pa.Table.from_pylist(rows).append_column("embeddings", values)


def make_pool(kind):
    """(POOL, whether the rows carry embeddings) for every kind of input."""
    if kind == "json":
        with open("p.json", "w", encoding="utf-8") as file:
            json.dump(ROWS, file)
    elif kind == "csv":
        write_csv("p.csv", FLAT)
    elif kind == "parquet":
        pq.write_table(pa.Table.from_pylist(ROWS), "p.parquet")
    elif kind == "parquet+embeddings":
        pq.write_table(with_embeddings(ROWS), "e.parquet")
        return "e.parquet", True
    elif kind in ("folder", "glob"):
        os.makedirs("shards/other", exist_ok=True)
        for part in range(12):  # part-10 comes after part-2
            write_lines(f"shards/part-{part}.jsonl", ROWS[part * 5 : part * 5 + 5])
        return ("shards" if kind == "folder" else "shards/part-*.jsonl"), False
    elif kind == "hf":
        datasets = pytest.importorskip("datasets")
        datasets.Dataset(pa.Table.from_pylist(ROWS)).save_to_disk("hf-pool")
        return "hf-pool", False
    elif kind == "npz":
        np.savez("e.npz", embeddings=X, other=np.arange(3))
        return "e.npz", True
    elif kind == "safetensors":
        pytest.importorskip("safetensors.numpy").save_file({"embeddings": X}, "e.safetensors")
        return "e.safetensors", True
    elif kind == "npy":
        return "x.npy", True
    return {"jsonl": "pool.jsonl"}.get(kind, f"p.{kind}"), False


def manifest(out="out"):
    with open(f"{out}/selection.json", encoding="utf-8") as file:
        return json.load(file)


def written(out="out"):
    return read_pool(os.path.join(out, manifest(out)["files"][0]["file"]))


def files(out):
    return {os.path.join(top, name)[len(str(out)) + 1 :] for top, _, names in os.walk(out) for name in names}


# ---- every way in, every way out ----

KINDS = [
    "json",
    "jsonl",
    "csv",
    "parquet",
    "folder",
    "glob",
    "hf",
    "npy",
    "npz",
    "safetensors",
    "parquet+embeddings",
]


@pytest.mark.parametrize("kind", KINDS)
def test_every_input_gives_the_picks_of_select(smart, kind):
    pool, carries = make_pool(kind)
    more = [] if carries else ["--embeddings", "x.npy"]
    status, out, err = smart("select", pool, "-k", K, "--out", "out", *more)
    assert (status, err) == (0, "")
    want = smartgpu.select(X, K)
    got = written()
    np.testing.assert_array_equal(got.numbers("source_row"), want.indices)
    np.testing.assert_array_equal(got.numbers("rank"), np.arange(K))
    np.testing.assert_array_equal(got.numbers("gain"), want.gains)
    np.testing.assert_array_equal(got.numbers("weight"), want.assign(X).weight)
    assert got.numbers("weight").sum() == N
    assert f"{K} of {N} rows by facility_location on cosine" in out
    if kind in ("npy", "npz", "safetensors"):
        np.testing.assert_array_equal(got.embeddings, X[want.indices])
        assert got.format == "parquet"
        return
    for row, j in zip(got.rows(range(K)), want.indices, strict=True):  # whole, in the pool's own format
        whole = (
            {name: row[name] for name in FLAT[0]} if kind == "csv" else {name: row[name] for name in ROWS[0]}
        )
        assert whole == ({k: str(v) for k, v in FLAT[j].items()} if kind == "csv" else ROWS[j])
    assert got.format == {"folder": "jsonl", "glob": "jsonl"}.get(kind, kind.partition("+")[0])


@pytest.mark.parametrize("form", sorted(FORMATS))
def test_every_output_format(smart, form):
    if form == "hf":
        pytest.importorskip("datasets")
    status, _, err = smart(
        "select", "pool.jsonl", "-k", K, "--out", "out", "--embeddings", "x.npy", "--format", form
    )
    assert (status, err) == (0, "")
    want = smartgpu.select(X, K).indices
    if form == "npz":
        with np.load("out/selected.npz", allow_pickle=False) as held:
            assert sorted(held) == ["gain", "indices", "rank", "source_row", "weight"]
            np.testing.assert_array_equal(held["indices"], want)
        return
    got = written()
    assert got.format == form
    np.testing.assert_array_equal(got.numbers("source_row"), want)
    assert [str(v) for v in got.column("text")] == [ROWS[j]["text"] for j in want]


def test_selection_json_says_what_was_done(smart):
    smart(
        "select",
        "x.npy",
        "-k",
        "0.1",
        "--out",
        "out",
        "--objective",
        "graph_cut",
        "--lam",
        "0.2",
        "--seed",
        "4",
    )
    want = smartgpu.select(X, 6, smartgpu.GraphCut(lam=0.2))
    held = manifest()
    assert held["schema"] == 1
    assert (held["k"], held["n"], held["value"]) == (6, N, want.value)
    assert held["objective"] == {"name": "graph_cut", "lam": 0.2, "represented": None}
    assert held["similarity"] == {"name": "cosine"}
    assert (held["options"]["maximizer"], held["options"]["seed"]) == ("lazy", 4)
    assert (held["options"]["backend"], held["backend"]) == ("numpy", "numpy")  # what "auto" stands for
    assert held["pool"]["fingerprint"] == read_pool("x.npy").fingerprint()
    assert (held["pool"]["source"], held["pool"]["rows"]) == ("x.npy", N)
    assert held["embeddings"] == {"file": "x.npy", "field": None, "shape": [N, D], "dtype": "float32"}
    assert held["files"] == [{"file": "selected.parquet", "k": 6, "value": want.value}]
    assert set(held["seconds"]) >= {"read", "select", "assign", "write"}
    assert held["versions"]["smartgpu"] == smartgpu.__version__
    assert files("out") == {"selected.parquet", "selection.json", "selection.npz"}
    loaded = smartgpu.Selection.load("out/selection.npz")
    np.testing.assert_array_equal(loaded.indices, want.indices)
    np.testing.assert_array_equal(loaded.gains, want.gains)


def test_sizes_are_nested_prefixes(smart):
    status, _, _ = smart("select", "x.npy", "--out", "out", "--sizes", "0.1", "9", "0.5", "6")
    assert status == 0
    assert [(cut["file"], cut["k"]) for cut in manifest()["files"]] == [
        ("selected-6.parquet", 6),
        ("selected-9.parquet", 9),
        ("selected-30.parquet", 30),
    ]
    whole = smartgpu.select(X, 30)
    for cut in manifest()["files"]:
        got, want = read_pool(f"out/{cut['file']}"), whole.prefix(cut["k"])
        np.testing.assert_array_equal(got.numbers("source_row"), want.indices)
        np.testing.assert_array_equal(got.numbers("weight"), want.assign(X).weight)
        assert cut["value"] == want.value


def test_coverage_rank_given_and_exclude(smart):
    assert smart("select", "x.npy", "--coverage", "0.6", "--out", "c")[0] == 0
    covered = smartgpu.select(X, coverage=0.6)
    np.testing.assert_array_equal(written("c").numbers("source_row"), covered.indices)
    assert smartgpu.evaluate(X, covered.indices).coverage >= 0.6
    assert smart("rank", "x.npy", "--out", "r")[0] == 0
    ranked = written("r")
    assert sorted(ranked.numbers("source_row")) == list(range(N))
    assert "weight" not in ranked.fields
    np.testing.assert_array_equal(ranked.numbers("source_row"), smartgpu.rank(X).indices)
    np.save("no.npy", np.array([3, 4]))
    status, _, err = smart("select", "x.npy", "-k", K, "--out", "g", "--given", "c", "--exclude", "no.npy")
    assert (status, err) == (0, "")
    want = smartgpu.select(X, K, given=covered.indices, exclude=[3, 4])
    np.testing.assert_array_equal(written("g").numbers("source_row"), want.indices)
    assert written("g").numbers("weight").sum() == N


@pytest.mark.parametrize(
    "chosen", ["out", "out/selection.npz", "out/selection.json", "rows.jsonl", "a.npy", "a.txt"]
)
def test_evaluate_reads_rows_from_any_tool(smart, chosen):
    smart("select", "x.npy", "-k", K, "--out", "out")
    rows = smartgpu.select(X, K).indices
    write_lines("rows.jsonl", [{"source_row": int(j), "other": "x"} for j in rows])
    np.save("a.npy", rows)
    with open("a.txt", "w") as file:
        file.write("\n".join(map(str, rows)) + "\n\n")
    want = smartgpu.evaluate(X, rows)
    status, out, err = smart("evaluate", "x.npy", "--chosen", chosen, "--json")
    assert (status, err) == (0, "")
    assert json.loads(out) == json.loads(json.dumps(want.to_dict()))
    assert smart("evaluate", "x.npy", "--chosen", chosen)[1] == f"{want}\n"


def test_text_is_embedded_and_shown(smart, embedder):
    status, out, err = smart("select", "pool.jsonl", "-k", 3, "--out", "out", "--max-tokens", "40")
    assert status == 0
    (texts, model, how), *rest = embedder
    assert texts == [row["text"] for row in ROWS] and not rest
    assert (model, how["max_tokens"], how["cache"], how["progress"]) == (None, 40, None, False)
    assert manifest()["embeddings"]["model"] == "stand-in"
    assert manifest()["embeddings"]["text"] == ["text"]
    assert err == f"smartgpu: embedding {N} rows from text\n"
    assert "rank      row       gain  text" in out
    first = int(written().numbers("source_row")[0])
    assert f"  row {first}, größer" in out
    # another model, and embeddings that the pool carries only give way to it when it is named
    pq.write_table(with_embeddings(ROWS), "e.parquet")
    assert smart("select", "e.parquet", "-k", 3, "--out", "own")[0] == 0
    assert len(embedder) == 1
    assert smart("select", "e.parquet", "-k", 3, "--out", "new", "--embedder", "m")[0] == 0
    assert embedder[1][1] == "m"


# ---- options ----


def test_every_field_is_a_flag_and_a_key(smart):
    commands = cli.parser()._subparsers._group_actions[0].choices
    for f in dataclasses.fields(Config):
        assert f.metadata["help"]
        for command in f.metadata["on"]:
            flags = {
                name
                for action in commands[command]._actions
                for name in (*action.option_strings, action.dest)
            }
            flag = f.name if f.metadata.get("positional") else "--" + f.name.replace("_", "-")
            assert flag in flags, (command, f.name)
    with open("all.yaml", "w") as file:  # defaults, by name, as YAML: JSON is YAML
        json.dump(
            {f.name: f.default for f in dataclasses.fields(Config) if "select" in f.metadata["on"]}, file
        )
    assert smart("select", "x.npy", "-k", K, "--out", "out", "--config", "all.yaml")[0] == 0


def test_config_file(smart):
    with open("run.yaml", "w") as file:
        file.write("pool: x.npy\nk: 0.05\nout: out\nobjective: log_det\ntie-break: high\n")
    assert smart("select", "--config", "run.yaml")[0] == 0
    assert (manifest()["k"], manifest()["objective"]["name"]) == (3, "log_det")
    assert manifest()["options"]["tie_break"] == "high"
    assert (
        smart("select", "--config", "run.yaml", "-k", "5", "--objective", "graph_cut", "--out", "o2")[0] == 0
    )
    assert (manifest("o2")["k"], manifest("o2")["objective"]["name"]) == (5, "graph_cut")  # flags win


@pytest.mark.parametrize(
    "text, parts",
    [
        ("objektive: graph_cut", ["'objektive'", "no option of select", "did you mean 'objective'?"]),
        ("zzz: 1", ["'zzz'", "options are pool, k, sizes"]),
        ("k: many", ["bad.yaml: k must be a number, got 'many'"]),
        ("overwrite: 1", ["overwrite must be true or false, got 1"]),
        ("seed: 1.5", ["seed must be an integer, got 1.5"]),
        ("objective: facility", ["must be one of facility_location", "did you mean 'facility_location'?"]),
        ("- a", ["must hold a mapping of options, got list"]),
        ("a: [", ["bad.yaml is not YAML"]),
    ],
)
def test_bad_config_file(smart, text, parts):
    with open("bad.yaml", "w") as file:
        file.write(text)
    refused(smart("select", "x.npy", "-k", K, "--out", "out", "--config", "bad.yaml"), *parts)


# ---- bad input ----


def refused(result, *parts, status=2):
    """One line on stderr that says all of `parts`, nothing on stdout, nothing written."""
    got, out, err = result
    assert (got, out) == (status, ""), err
    assert err.count("\n") == 1 and err.endswith("\n") and "Traceback" not in err
    for part in parts:
        assert part in err, (part, err)
    assert not os.path.exists("out")


BAD = {
    "k=0": ("-k 0", ["k must be at least 1, got 0"]),
    "k<0": ("-k -3", ["k must be at least 1, got -3"]),
    "k=share": ("-k 1.5", ["k as a share must lie in (0, 1], got 1.5"]),
    "k=nan": ("-k nan", ["k as a share must lie in (0, 1], got nan"]),
    "k=text": ("-k foo", ["-k", "expected a number of rows or a share such as 0.05, got 'foo'"]),
    "k>n": ("-k 61", ["k must be at most", "60", "got 61"]),
    "no k": ("", ["-k is missing", "--sizes", "--coverage"]),
    "sizes>n": ("--sizes 3 61", ["--sizes must be at most", "60", "got 61"]),
    "sizes+k": ("--sizes 3 -k 3", ["--sizes cannot be combined"]),
    "sizes+stochastic": ("--sizes 3 --maximizer stochastic", ["--sizes needs an exact maximizer"]),
    "coverage": ("--coverage 1.5", ["coverage must be a share in (0, 1], got 1.5"]),
    "not monotone": (
        "--coverage 0.5 --objective graph_cut --lam 3",
        ["coverage needs a monotone objective", "3"],
    ),
    "objective": (
        "-k 3 --objective facility",
        ["--objective must be one of facility_location", "got 'facility'"],
    ),
    "similarity": ("-k 3 --similarity cos", ["--similarity must be one of cosine", "did you mean 'cosine'?"]),
    "backend": ("-k 3 --backend cuda", ["--backend must be one of auto, numpy", "got 'cuda'"]),
    "maximizer": ("-k 3 --maximizer lazzy", ["did you mean 'lazy'?"]),
    "format": ("-k 3 --format xlsx", ["--format must be one of json", "got 'xlsx'"]),
    "lam<0": ("-k 3 --objective graph_cut --lam -1", ["lam must be >= 0", "got -1.0"]),
    "lam of none": ("-k 3 --lam 1", ["lam is an option of graph_cut and log_det, not of facility_location"]),
    "gamma of none": ("-k 3 --gamma 1", ["gamma is an option of rbf, not of cosine"]),
    "gamma<0": ("-k 3 --similarity rbf --gamma -1", ["gamma must be", "got -1.0"]),
    "not psd": ("-k 3 --objective log_det --similarity max_minus_sqeuclidean", ["positive semi-definite"]),
    "epsilon": ("-k 3 --epsilon 3", ["epsilon must lie in (0, 1), got 3.0"]),
    "threads": ("-k 3 --threads 0", ["threads must lie in [1,", "got 0"]),
    "threads=text": ("-k 3 --threads two", ["--threads: invalid int value: 'two'"]),
    "memory": ("-k 3 --memory 12QB", ["memory must be", "got '12QB'"]),
    "option": ("-k 3 --objektive graph_cut", ["unknown argument '--objektive'; did you mean --objective?"]),
    "given": ("-k 3 --given nosuch", ["no file or folder 'nosuch'"]),
    "given in exclude": (
        "-k 3 --given some.txt --exclude some.txt",
        ["row 1 is in --given and in --exclude"],
    ),
    "no room": ("-k 59 --exclude some.txt", ["k must be at most 58", "--exclude", "got 59"]),
    "rows>n": ("-k 3 --exclude far.txt", ["--exclude far.txt must be rows in [0, 60), got 60"]),
    "no number": ("-k 3 --exclude bad.txt", ["--exclude bad.txt, line 2", "got 'x'"]),
    "no integers": ("-k 3 --exclude half.npy", ["--exclude half.npy must be row numbers", "float64"]),
    "no rows": ("-k 3 --given pool.jsonl", ["must have a field 'source_row'", "id, text, deep"]),
    "broken npz": ("-k 3 --given torn.npz", ["--given torn.npz must hold row numbers"]),
    "config": ("-k 3 --config nosuch.yaml", ["--config: cannot read nosuch.yaml"]),
    "both": ("-k 3 --embeddings x.npy --embedder m", ["--embedder cannot be combined with --embeddings"]),
    "short": ("-k 3 --embeddings short.npy", ["short.npy must have one row per pool row: 60", "(10, 8)"]),
    "nan": (
        "-k 3 --embeddings nan.npy",
        ["nan.npy must be finite", "2 NaN or infinite values, the first in row 5"],
    ),
    "field": ("-k 3 --embedding-field nosuch", ["no field 'nosuch'", "id, text, deep"]),
    "text": ("-k 3 --text nosuch", ["--text: no field 'nosuch'", "id, text, deep"]),
    "matrix": ("-k 3 --similarity precomputed", ["needs the matrix"]),
    "not square": ("-k 3 --similarity precomputed --embeddings x.npy", ["one column per pool row: 60"]),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_before_anything_is_embedded(smart, embedder, name):
    flags, parts = BAD[name]
    for path, text in {
        "some.txt": "1\n2\n",
        "far.txt": "60\n",
        "bad.txt": "1\nx\n",
        "torn.npz": "PK",
    }.items():
        with open(path, "w") as file:
            file.write(text)
    np.save("half.npy", np.array([0.5, 1.0]))
    np.save("short.npy", X[:10])
    broken = X.copy()
    broken[5, 1], broken[9, 0] = np.nan, np.inf
    np.save("nan.npy", broken)
    refused(smart("select", "pool.jsonl", "--out", "out", *flags.split()), *parts)
    assert not embedder


POOLS = {
    "empty.jsonl": ("", ["empty.jsonl: the pool is empty"]),
    "bad.jsonl": ('{"text": "a"}\n{"text": b}\n', ["bad.jsonl, line 2: malformed JSON"]),
    "torn.jsonl": ('{"text": "a"}\n{"text": "b', ["torn.jsonl, line 2", "truncated"]),
    "other.jsonl": ('{"foo": 1, "bar": 2}\n', ["no text field found", "foo, bar", "--text"]),
    "bad.parquet": ("no", ["bad.parquet: not a readable parquet file"]),
    "bad.npy": ("no", ["bad.npy: an array of Python objects or a pickle, which is never loaded"]),
    "pool.xlsx": ("no", ["unsupported suffix '.xlsx'", ".jsonl"]),
    "pool.pkl": ("no", ["pickles are never loaded"]),
}


@pytest.mark.parametrize("name", POOLS)
def test_bad_pools_are_refused(smart, embedder, name):
    text, parts = POOLS[name]
    with open(name, "w") as file:
        file.write(text)
    refused(smart("select", name, "-k", 1, "--out", "out"), *parts)
    assert not embedder


def test_more_refusals(smart, monkeypatch):
    refused(smart("select", "pol.jsonl", "-k", 1, "--out", "out"), "near names: pool.jsonl")
    refused(smart("select", "-k", 1, "--out", "out"), "POOL is missing")
    refused(smart("select", "x.npy", "-k", 1), "--out is missing")
    refused(smart("select", "x.npy", "-k", 1, "--out", ""), "--out must be a folder")
    refused(smart("select", "x.npy", "-k", 1, "--out", "x.npy"), "--out must be a folder, got the file x.npy")
    refused(smart("evaluate", "x.npy"), "--chosen is missing")
    refused(smart("evaluate", "x.npy", "--chosen", "x.npy"), "--chosen x.npy must be one-dimensional")
    refused(smart("selct", "x.npy"), "invalid choice: 'selct'", "select")
    refused(smart(), "COMMAND")
    refused(smart("demo", "--out", "x.npy"), "--out must be a folder, got the file x.npy")
    refused(
        smart("select", "pool.jsonl", "-k", 1, "--out", "out", "--embedder", "no/such"),
        "'no/such'",
        "hf download",
    )
    write_lines("copies.jsonl", [{"text": "a"}] * 3)
    np.save("copies.npy", np.ones((3, 4)))
    status, _, err = smart(
        "select", "copies.npy", "-k", 2, "--out", "out", "--objective", "log_det", "--lam", "0"
    )
    assert status == 2 and err.count("\n") == 1 and "lam" in err
    assert not os.path.exists("out")  # what was begun is gone: the corrected command is not refused


def test_missing_libraries_are_named_with_their_pip_line(smart, monkeypatch):
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    monkeypatch.setattr("smartgpu.embed.DEFAULT_PACKAGE", "no-such-package-here")
    refused(smart("select", "pool.jsonl", "-k", 1, "--out", "out"), "pip install 'smartgpu[text]'")
    monkeypatch.setitem(sys.modules, "datasets", None)
    refused(
        smart("select", "x.npy", "-k", 1, "--out", "out", "--format", "hf"),
        "--format hf",
        "pip install 'smartgpu[hf]'",
    )


def test_a_bug_is_not_passed_off_as_bad_input(smart, monkeypatch):
    def wrong(*_):
        raise TypeError("a bug")

    monkeypatch.setattr(select, "run", wrong)
    with pytest.raises(TypeError, match="a bug"):
        smart("select", "x.npy", "-k", 1, "--out", "out")


def test_verbose_says_where_an_error_came_from(smart):
    _, _, err = smart("select", "x.npy", "-k", 0, "--out", "out", "-v")
    assert err.startswith("smartgpu select: k must be at least 1, got 0\n") and "Traceback" in err


# ---- the output folder ----


def test_a_finished_folder_is_not_done_again(smart, monkeypatch, embedder):
    command = ("select", "pool.jsonl", "-k", K, "--out", "out")
    assert smart(*command)[0] == 0
    before = {name: os.stat(f"out/{name}").st_mtime_ns for name in files("out")}
    status, out, _ = smart(*command)
    assert status == 0 and "holds this selection already" in out and f"{K} of {N} rows" in out
    assert before == {name: os.stat(f"out/{name}").st_mtime_ns for name in files("out")}
    assert len(embedder) == 1  # nothing is embedded to find that out
    assert (
        smart(*command, "--threads", "1", "--batch-size", "3", "-q")[0] == 0
    )  # options that change no result
    monkeypatch.chdir("out")
    assert (
        smart("select", "../pool.jsonl", "-k", K, "--out", "../out")[0] == 0
    )  # data count by content, not by path
    os.unlink("selected.jsonl")
    status, _, err = smart("select", "../pool.jsonl", "-k", K, "--out", ".")
    assert status == 2 and "lacks selected.jsonl" in err


def test_other_options_or_data_are_refused_with_the_difference(smart, embedder):
    assert smart("select", "pool.jsonl", "-k", K, "--out", "out")[0] == 0
    held = written().numbers("source_row")

    def differs(*parts, pool="pool.jsonl", more=("-k", K)):
        status, out, err = smart("select", pool, "--out", "out", *more)
        assert (status, out) == (2, "") and err.count("\n") == 1
        for part in ("out holds a selection of other options or data", "--overwrite", *parts):
            assert part in err, (part, err)
        np.testing.assert_array_equal(written().numbers("source_row"), held)

    differs("k: 7 there, 8 now", more=("-k", 8))
    differs("objective: 'facility_location' there, 'log_det' now", more=("-k", K, "--objective", "log_det"))
    differs("embeddings.model: 'stand-in' there, 'm' now", more=("-k", K, "--embedder", "m"))
    write_lines("changed.jsonl", [*ROWS[:-1], {"id": 0, "text": "other"}])
    differs("pool.fingerprint:", pool="changed.jsonl")
    status, _, err = smart("rank", "pool.jsonl", "--out", "out")
    assert status == 2 and "command: 'select' there, 'rank' now" in err


def test_overwrite_removes_only_what_smartgpu_wrote(smart):
    assert smart("select", "x.npy", "--out", "out", "--sizes", "3", "5")[0] == 0
    for name in ("mine.txt", "selected-9.parquet"):
        with open(f"out/{name}", "w") as file:
            file.write("mine")
    assert smart("select", "x.npy", "-k", 4, "--out", "out", "--overwrite", "--format", "csv")[0] == 0
    assert files("out") == {
        "mine.txt",
        "selected-9.parquet",
        "selected.csv",
        "selection.json",
        "selection.npz",
    }
    # a manifest that names files elsewhere cannot make it remove them
    with open("out/selection.json") as file:
        held = json.load(file)
    os.makedirs("selected-1")
    held["files"] = [
        {"file": name} for name in ("../pool.jsonl", "..", ".", "../selected-1", "mine.txt", "/etc/x")
    ]
    with open("out/selection.json", "w") as file:
        json.dump(held, file)
    os.unlink("out/selected.csv")
    assert smart("select", "x.npy", "-k", 4, "--out", "out", "--overwrite")[0] == 0
    assert os.path.exists("pool.jsonl") and os.path.isdir("selected-1") and os.path.exists("out/mine.txt")


def test_the_old_selection_stays_until_the_new_one_is_whole(smart, monkeypatch):
    assert smart("select", "x.npy", "-k", 3, "--out", "out")[0] == 0

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(select, "write_rows", interrupt)
        status, _, err = smart("select", "x.npy", "-k", 4, "--out", "out", "--overwrite")
        assert status == 130 and "the same command goes on from here" in err
    assert len(written().numbers("rank")) == 3
    assert "out/.partial" in {os.path.join("out", name) for name in os.listdir("out")}
    status, _, err = smart("select", "x.npy", "-k", 4, "--out", "out")  # goes on, without --overwrite
    assert status == 0 and "going on from the unfinished selection" in err
    assert len(written().numbers("rank")) == 4
    assert files("out") == {"selected.parquet", "selection.json", "selection.npz"}


@pytest.mark.parametrize("name", ["selected.jsonl", "selection.npz", "selection.json", ".partial/mine"])
def test_foreign_files_are_never_replaced(smart, name):
    os.makedirs("mine/.partial")
    with open(f"mine/{name}", "w") as file:
        file.write('{"mine": 1}')
    for more in ((), ("--overwrite",)):
        status, _, err = smart(
            "select", "pool.jsonl", "-k", 3, "--out", "mine", "--embeddings", "x.npy", *more
        )
        assert status == 2 and "not of smartgpu" in err
    with open(f"mine/{name}") as file:
        assert file.read() == '{"mine": 1}'


def test_the_pools_own_files_and_folder_are_no_output(smart):
    os.rename("pool.jsonl", "selected.jsonl")
    status, _, err = smart("select", "selected.jsonl", "-k", 3, "--out", ".", "--embeddings", "x.npy")
    assert status == 2 and "is the pool itself" in err
    os.makedirs("shards")
    write_lines("shards/a.jsonl", ROWS)
    for pool in ("shards", "shards/*.jsonl"):
        status, _, err = smart("select", pool, "-k", 3, "--out", "shards", "--embeddings", "x.npy")
        assert status == 2 and "folder of the pool" in err
    assert files("shards") == {"a.jsonl"}


# ---- stopping and going on ----

# Stops for good after the 40th pick was saved, as a machine that goes down would.
STOPPED = """
import sys, time
from smartgpu import checkpoint, cli
checkpoint.SECONDS = 0
save = checkpoint.Checkpoint.save
def slow(self, indices, gains, force=False):
    save(self, indices, gains, force)
    if len(indices) >= 40:
        print("saved", flush=True)
        time.sleep(600)
checkpoint.Checkpoint.save = slow
sys.exit(cli.main(sys.argv[1:]))
"""


def environment(**more):
    root = os.path.dirname(os.path.dirname(smartgpu.__file__))
    return {**os.environ, "PYTHONPATH": root, "PYTHONIOENCODING": "utf-8", **more}


@pytest.mark.parametrize("objective", ["facility_location", "graph_cut", "log_det"])
def test_a_killed_run_goes_on_and_ends_the_same(smart, monkeypatch, objective):
    x = np.random.default_rng(0).normal(size=(600, 16)).astype(np.float32)
    x[300:340] = x[:40]  # copies: ties
    np.save("big.npy", x)
    command = ["select", "big.npy", "-k", "150", "--objective", objective, "--format", "jsonl"]
    assert smart(*command, "--out", "whole")[0] == 0
    stopped = [sys.executable, "-c", STOPPED, *command, "--out", "out"]
    with subprocess.Popen(stopped, stdout=subprocess.PIPE, env=environment(), text=True) as process:
        assert process.stdout.readline() == "saved\n"
        process.send_signal(signal.SIGKILL)
    assert files("out") == {".partial/run.json", ".partial/picks.npz"}
    status, _, err = smart(*command[:3], "151", *command[4:], "--out", "out")
    assert status == 2 and "out holds an unfinished selection" in err and "k: 150 there, 151 now" in err
    np.save("other.npy", x[::-1])
    status, _, err = smart("select", "other.npy", *command[2:], "--out", "out")
    assert status == 2 and "pool.fingerprint" in err

    loaded, load = [], checkpoint.Checkpoint.load

    def spy(self):
        loaded.append((str(self.path), load(self)))
        return loaded[-1][1]

    monkeypatch.setattr(checkpoint.Checkpoint, "load", spy)
    status, _, err = smart(*command, "--out", "out")
    assert status == 0 and "going on from the unfinished selection in out/.partial" in err
    ((path, (picks, _)),) = loaded
    assert (path, len(picks)) == (os.path.join("out", ".partial", "picks.npz"), 40)
    for name in ("selected.jsonl",):
        with open(f"out/{name}", "rb") as ours, open(f"whole/{name}", "rb") as theirs:
            assert ours.read() == theirs.read()
    assert manifest("out")["value"] == manifest("whole")["value"]
    assert files("out") == {"selected.jsonl", "selection.json", "selection.npz"}


# The 3rd write of a checkpoint stops in its middle: by an error, an interruption, or the end of the process.
HALF_WRITTEN = """
import os, sys
import numpy as np
import smartgpu
from smartgpu import checkpoint
checkpoint.SECONDS = 0
savez, writes = np.savez, []
def half(file, **arrays):
    writes.append(file)
    if len(writes) < 3:
        return savez(file, **arrays)
    file.write(b"PK half of an archive")
    file.flush()
    if sys.argv[1] == "exit":
        os._exit(9)
    raise {"error": OSError(28, "No space left on device"), "interrupt": KeyboardInterrupt}[sys.argv[1]]
checkpoint.np.savez = half
try:
    smartgpu.select(np.load("x.npy"), 7, checkpoint="picks.npz")
except (OSError, KeyboardInterrupt) as error:
    print(error)
    os._exit(9)
"""


@pytest.mark.parametrize("how", ["error", "interrupt", "exit"])
def test_an_interrupted_checkpoint_write_leaves_the_one_before(smart, how):
    stopped = [sys.executable, "-c", HALF_WRITTEN, how]
    done = subprocess.run(stopped, env=environment(), capture_output=True, text=True)
    assert done.returncode == 9, done.stderr
    if how == "error":
        assert "cannot write picks.npz: No space left on device" in done.stdout
    left = [name for name in os.listdir(".") if "picks" in name and name != "picks.npz"]
    assert len(left) == (how == "exit")  # nobody is left to remove what a dead process wrote
    with np.load("picks.npz") as file:
        assert len(file["indices"]) == 2
    sel = smartgpu.select(X, K, checkpoint="picks.npz")
    whole = smartgpu.select(X, K)
    np.testing.assert_array_equal(sel.indices, whole.indices)
    np.testing.assert_array_equal(sel.gains, whole.gains)


def test_overwrite_starts_anew(smart, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(select, "write_rows", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert smart("select", "x.npy", "-k", 9, "--out", "out")[0] == 130
    assert files("out") == {".partial/run.json", ".partial/picks.npz"}
    status, _, err = smart("select", "x.npy", "-k", 4, "--out", "out", "--overwrite")
    assert (status, err) == (0, "")
    np.testing.assert_array_equal(written().numbers("source_row"), smartgpu.select(X, 4).indices)


@pytest.mark.parametrize("at", range(4))
def test_a_run_stopped_while_files_move_up_goes_on(smart, monkeypatch, at):
    moved, replace = [], os.replace

    def stop(source, target):
        if os.path.dirname(source).endswith(".partial") and not os.path.dirname(target).endswith(".partial"):
            moved.append(target)
            if len(moved) > at:
                raise KeyboardInterrupt
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(folder.os, "replace", stop)
        status = smart("select", "x.npy", "--sizes", "3", "5", "--out", "out")[0]
        assert status == 130
    status, _, err = smart("select", "x.npy", "--sizes", "4", "--out", "out")
    assert status == 2 and "sizes: [3, 5] there, [4] now" in err
    assert smart("select", "x.npy", "--sizes", "3", "5", "--out", "out")[0] == 0
    assert files("out") == {"selected-3.parquet", "selected-5.parquet", "selection.json", "selection.npz"}


FULL = """
import resource, sys
from smartgpu import cli
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), resource.RLIM_INFINITY))
sys.exit(cli.main(sys.argv[2:]))
"""


@pytest.mark.parametrize("room, what", [(400, "run.json"), (3000, "selected.jsonl")])
def test_a_full_disk_leaves_nothing_half_written(smart, room, what):
    long = [{"id": i, "text": "long " * 100} for i in range(N)]
    write_lines("long.jsonl", long)
    command = ["select", "long.jsonl", "-k", str(K), "--out", "out", "--embeddings", "x.npy"]
    full = [sys.executable, "-c", FULL, str(room), *command]
    done = subprocess.run(full, env=environment(), capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert done.stderr.count("\n") == 1 and "cannot write" in done.stderr and what in done.stderr
    assert "File too large" in done.stderr
    assert files("out") <= {".partial/run.json", ".partial/picks.npz"}
    assert smart(*command)[0] == 0  # once there is room again
    assert len(written().rows(range(K))) == K


# ---- what a person sees ----


def test_quiet_is_silent_on_stderr(smart, embedder):
    status, out, err = smart("select", "pool.jsonl", "-k", K, "--out", "out", "-q")
    assert (status, err) == (0, "") and f"{K} of {N} rows" in out
    assert not embedder[0][2]["progress"]


def in_terminal(*command):
    """(exit status, what a terminal of 100 columns shows) of a command."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))
    process = subprocess.Popen(command, stdout=theirs, stderr=theirs, stdin=theirs, env=environment())
    os.close(theirs)
    shown = b""
    while True:
        try:
            part = os.read(ours, 1 << 16)
        except OSError:  # the other end is closed
            break
        if not part:
            break
        shown += part
    os.close(ours)
    return process.wait(), shown.decode("utf-8", "replace")


def test_bars_show_in_a_terminal_only(smart):
    x = np.random.default_rng(0).normal(size=(1500, 8)).astype(np.float32)
    np.save("big.npy", x)
    command = [sys.executable, "-m", "smartgpu", "select", "big.npy", "-k", "700"]
    status, shown = in_terminal(*command, "--out", "a")
    assert status == 0
    assert re.search(r"picks: +\d+%\|.*/700 \[.*row/s", shown)
    status, shown = in_terminal(*command, "--out", "b", "-q")
    assert status == 0 and "picks" not in shown and "\r" not in shown.replace("\r\n", "")
    done = subprocess.run([*command, "--out", "c"], env=environment(), capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_reader_that_leaves_is_no_traceback(smart):
    command = f"{sys.executable} -m smartgpu select x.npy -k 3 --out out | true"
    done = subprocess.run(command, shell=True, env=environment(), capture_output=True, text=True)
    assert done.stderr == ""
    assert files("out") == {"selected.parquet", "selection.json", "selection.npz"}


def test_control_characters_of_a_row_do_not_reach_the_terminal(smart):
    write_lines("evil.jsonl", [{"text": "\x1b[31mred\x07\n\u202eend"}] * 2)
    np.save("two.npy", np.eye(2))
    status, out, _ = smart("select", "evil.jsonl", "-k", 1, "--out", "out", "--embeddings", "two.npy")
    assert status == 0 and "[31mred" in out
    assert all(c.isprintable() or c == "\n" for c in out)


# ---- the demo ----


def check_demo(smart):
    status, out, _ = smart("demo", "--out", "d", "-k", 40)
    assert status == 0
    assert "smartgpu select d/pool.jsonl -k 40 --out d/selection" in out
    assert "40 of " in out and "instruction + input" in out and "random rows" in out
    assert files("d") == {f"selection/{n}" for n in ("selected.jsonl", "selection.json", "selection.npz")} | {
        "pool.jsonl"
    }
    got = written("d/selection")
    assert got.n == 40 and len(set(got.column("task"))) > 20
    assert got.numbers("weight").sum() == manifest("d/selection")["n"] >= 3000
    status, out, _ = smart("demo", "--out", "d", "-k", 40)
    assert status == 0 and "already" in out


def test_demo_with_a_stand_in_for_the_model(smart, embedder):
    check_demo(smart)
    assert len(embedder) == 1
    write_lines("d/pool.jsonl", ROWS)
    status, _, err = smart("demo", "--out", "d")
    assert status == 2 and "is not the demo pool" in err
    assert read_pool("d/pool.jsonl").n == N


@pytest.mark.slow
def test_demo_with_the_real_model(smart):
    pytest.importorskip("sentence_transformers", reason="the text extra is not installed")
    check_demo(smart)


# ---- what the README and the examples say ----

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def test_the_examples_run(smart, embedder, capsys):
    runpy.run_path(os.path.join(ROOT, "examples", "quickstart.py"))
    out = capsys.readouterr().out
    assert "the first 40 picks hold 40 of 40 topics" in out and "weights add up to 2000" in out
    runpy.run_path(os.path.join(ROOT, "examples", "near_duplicates.py"))
    assert "of 1000 rows cover 99 % of the pool" in capsys.readouterr().out


def test_the_readme_runs(smart):
    with open(os.path.join(ROOT, "README.md"), encoding="utf-8") as file:
        text = file.read()
    np.save("embeddings.npy", np.random.default_rng(0).normal(size=(1100, 8)))
    held = {}
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(block, held)
    assert held["selection"].k == 1000 and held["small"].k == 200
    known = {
        name for f in dataclasses.fields(Config) for name in ("--" + f.name.replace("_", "-"), "--config")
    }
    smartgpu_lines = "\n".join(
        line
        for line in text.splitlines()
        if not line.startswith(("pip ", "python -m pytest")) and "bench/" not in line
    )
    others = {"--help", "--rehearse", "--nproc-per-node"}  # of bench/gpu.py, of torchrun
    assert set(re.findall(r"--[a-z][a-z-]+", smartgpu_lines)) <= known | others
