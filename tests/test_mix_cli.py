"""smartgpu mix: rows, files and manifest against smartgpu.mix; names, folders, resuming, refusals, the terminal."""

import json
import os
import signal
import subprocess
import sys
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

from conftest import ROOT

import smartgpu
from smartgpu import Near, QualityDiversity, Quotas
from smartgpu.commands import finished, mix
from smartgpu.io import read_pool
from smartgpu.mixture import Mixture, sweep

D, ROWS, TASKS = 8, 40, 7
SIZES = {"b": 30, "a": 25, "../x": 20, "": 15, "t/1": 12, "T/1": 8, "n" * 300: 10}
RNG = np.random.default_rng(11)
LABELS = RNG.permutation([task for task, size in SIZES.items() for _ in range(size)]).tolist()
N = len(LABELS)
CENTRES = {task: RNG.normal(size=D) for task in SIZES}
X = np.array([CENTRES[task] + 0.4 * RNG.normal(size=D) for task in LABELS]).astype(np.float32)
WORDINGS = [[None, "zs", "fs"][i] for i in RNG.integers(0, 3, N)]
TOKENS = RNG.integers(5, 60, N).tolist()
LANGS = RNG.choice(["en", "de", "fr"], N, p=[0.7, 0.2, 0.1]).tolist()
SCORES = RNG.random(N).round(3).tolist()
POOL = [
    {
        "id": i,
        "task": LABELS[i],
        "wording": WORDINGS[i],
        "prompt": f"größer {i}?",
        "response": f"yes {i}",
        "deep": [i, None],
        "tokens": TOKENS[i],
        "lang": LANGS[i],
        "score": SCORES[i],
    }
    for i in range(N)
]
MIX = ("--n-tasks", TASKS, "--n-rows", ROWS, "--embeddings", "x.npy")


@pytest.fixture
def smart(smart, tmp_path, monkeypatch):
    """In work/, with a pool there."""
    home = tmp_path / "work"
    home.mkdir()
    monkeypatch.chdir(home)
    np.save("x.npy", X)
    write_lines("pool.jsonl", POOL)
    return smart


@pytest.fixture
def embedder(monkeypatch):
    """A stand-in for the model: the vectors of X by row number. Its calls are kept."""
    from smartgpu import embed

    calls = []

    def fake(texts, model=None, **how):
        calls.append(how)
        return np.array([X[int(text.split()[1][:-1])] for text in texts])

    monkeypatch.setattr(embed, "embed", fake)
    monkeypatch.setattr(embed, "find_model", lambda model: embed._Source("stand-in", None, f"id of {model}"))
    return calls


def write_lines(path, rows):
    with open(path, "w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def manifest(out="out"):
    with open(f"{out}/mixture.json", encoding="utf-8") as file:
        return json.load(file)


def files(out):
    return {os.path.join(top, name)[len(str(out)) + 1 :] for top, _, names in os.walk(out) for name in names}


def content(out="out"):
    """Everything in OUT; of the manifest and the arrays without times."""
    held = {name: Path(out, name).read_bytes() for name in files(out)}
    said = json.loads(held.pop("mixture.json"))
    saved = Mixture.load(f"{out}/mixture.npz").to_dict()
    del held["mixture.npz"], said["created"], said["seconds"], saved["seconds"]
    return held, said, saved


def check(out, want):
    """The files in OUT hold the mixture `want`, row by row."""
    said = manifest(out)
    assert [(t["task"], t["budget"], t["gain"]) for t in said["tasks"]] == [
        (t.task, t.budget, t.gain) for t in want.tasks
    ]
    combined = read_pool(f"{out}/{said['files'][0]['file']}")
    assert said["files"][0]["rows"] == combined.n == len(want)
    np.testing.assert_array_equal(combined.numbers("source_row"), want.indices)
    place = {
        row: (rank, gain)
        for t in want.tasks
        for rank, (row, gain) in enumerate(zip(t.indices, t.gains, strict=True))
    }
    np.testing.assert_array_equal(combined.numbers("rank"), [place[row][0] for row in want.indices])
    np.testing.assert_array_equal(combined.numbers("gain"), [place[row][1] for row in want.indices])
    for record, task in zip(said["tasks"], want.tasks, strict=True):
        if not task.budget:
            assert record["file"] is None
            continue
        part = read_pool(f"{out}/{record['file']}")
        np.testing.assert_array_equal(part.numbers("source_row"), task.indices)
        np.testing.assert_array_equal(part.numbers("rank"), np.arange(task.budget))
        np.testing.assert_array_equal(part.numbers("gain"), task.gains)
    assert files(out) == {*(cut["file"] for cut in said["files"]), "mixture.json", "mixture.npz"}
    return combined


# ---- the rows are those of smartgpu.mix


@pytest.mark.parametrize("form", ["jsonl", "json", "csv", "parquet"])
@pytest.mark.parametrize("source", ["jsonl", "parquet"])
def test_rows_whole_in_every_format(smart, source, form):
    pool = "pool.jsonl"
    if source == "parquet":
        pool = "pool.parquet"
        pq.write_table(pa.Table.from_pylist(POOL), pool)
    status, _, err = smart("mix", pool, *MIX, "--out", "out", "--format", form)
    assert (status, err.replace("smartgpu: backend 'auto' is numpy: no NVIDIA driver was found\n", "")) == (
        0,
        "",
    )
    want = smartgpu.mix(X, LABELS, TASKS, ROWS)
    combined = check("out", want)
    assert combined.format == form
    for row, j in zip(combined.rows(range(len(want))), want.indices, strict=True):
        whole = POOL[j]
        if form == "csv":
            whole = {
                k: "" if v is None else v if isinstance(v, str) else json.dumps(v) for k, v in whole.items()
            }
        assert {name: row[name] for name in whole} == whole


def test_the_pools_format_is_the_default(smart):
    for name, form in (("pool.jsonl", "jsonl"), ("pool.parquet", "parquet")):
        pq.write_table(pa.Table.from_pylist(POOL), "pool.parquet")
        smart("mix", name, *MIX, "--out", form)
        assert os.path.isfile(f"{form}/mixed.{form}")


GRAPH_CUT, LOG_DET = smartgpu.GraphCut(0.3), smartgpu.LogDet(2.0)
CALLS = {
    "rank": ("--order rank", {"order": "rank"}),
    "templates": ("--template-field wording", {"templates": WORDINGS}),
    "full order": ("--full-order --template-field wording", {"full_order": True, "templates": WORDINGS}),
    "equal": ("--method equal --seed 5", {"method": "equal", "seed": 5}),
    "random": ("--method random --n-tasks 3 --n-rows 20", {"method": "random", "n_tasks": 3, "n_rows": 20}),
    "proportional": ("--method proportional", {"method": "proportional"}),
    "temperature": ("--method temperature --temperature 2", {"method": "temperature", "temperature": 2.0}),
    "softmax": ("--temperature 10", {"temperature": 10.0}),
    "share": ("--n-rows 0.5", {"n_rows": 0.5}),
    "all tasks": ("", {"n_tasks": None}),
    "tasks": ("--include a t/1 --drop b", {"include": ["a", "t/1"], "drop": ["b"], "n_tasks": 5}),
    "limits": ("--min-rows 4 --max-rows 9", {"min_rows": 4, "max_rows": 9}),
    "limits of some": (
        "--min-rows T/1=7 a=6 --max-rows b=5",
        {"min_rows": {"T/1": 7, "a": 6}, "max_rows": {"b": 5}},
    ),
    "task objective": ("--task-objective graph_cut --task-lam 0.3", {"task_objective": GRAPH_CUT}),
    "row objective": ("--row-objective log_det --row-lam 2", {"row_objective": LOG_DET}),
    "random rows": ("--row-objective random", {"row_objective": "random"}),
    "similarity": (
        "--similarity rbf --gamma 0.5 --task-similarity dot",
        {"similarity": smartgpu.Rbf(0.5), "task_similarity": "dot"},
    ),
    "task embeddings": ("--task-embeddings t.npy", {"task_embeddings": X[:7]}),
    "task matrix": ("--task-matrix s.npy", {"task_similarity": np.cov(X[:7])}),
    "budget": (
        "--budget 700 --cost-field tokens --template-field wording",
        {"n_rows": None, "budget": 700, "cost": TOKENS, "templates": WORDINGS},
    ),
    "characters": (
        "--budget 90 --cost chars --cost-text prompt response",
        {
            "n_rows": None,
            "budget": 90,
            "cost": [-(-len(row["prompt"] + row["response"]) // 4) for row in POOL],
        },
    ),
    "quotas": (
        "--quota-field lang --quota-min fr=6 --quota-max en=0.6",
        {"quotas": Quotas(LANGS, minimum={"fr": 6}, maximum={"en": 0.6}, name="lang")},
    ),
    "quality": (
        "--quality-field score --alpha 0.4 --quality-scale rank",
        {"row_objective": QualityDiversity(0.4, SCORES, "rank")},
    ),
    "row sets": (
        "--given given.txt --include-rows in.txt --exclude out.npy",
        {"given": [3, 8], "include_rows": [30, 7], "exclude": np.arange(50, 70)},
    ),
    "rows of other files": (
        "--given-from given.npy --exclude-near near.npy --exclude-above 0.95",
        {"given": X[:2] + 1, "exclude": Near(X[5:9] + 0.01, 0.95)},
    ),
    "all at once": (
        "--budget 700 --cost-field tokens --quality-field score --alpha 0.5 --include-rows in.txt --exclude out.npy",
        {
            "n_rows": None,
            "budget": 700,
            "cost": TOKENS,
            "include_rows": [30, 7],
            "row_objective": QualityDiversity(0.5, SCORES),
            "exclude": np.arange(50, 70),
        },
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_every_option_reaches_mix(smart, name):
    np.save("t.npy", X[:7])
    np.save("s.npy", np.cov(X[:7]))
    np.save("out.npy", np.arange(50, 70))
    np.save("given.npy", X[:2] + 1)
    np.save("near.npy", X[5:9] + 0.01)
    Path("given.txt").write_text("3\n8\n")
    Path("in.txt").write_text("30\n7\n")
    flags, how = CALLS[name]
    how = {"n_tasks": TASKS, "n_rows": ROWS, **how}
    given = ["--n-tasks", how["n_tasks"]] if how["n_tasks"] else []
    given += ["--n-rows", how["n_rows"]] if how["n_rows"] else []
    given += ["--embeddings", "x.npy", *flags.split()]
    status, _, err = smart("mix", "pool.jsonl", "--out", "out", *given)
    assert status == 0, err
    want = smartgpu.mix(X, LABELS, **how)
    check("out", want)
    said, theirs = manifest()["options"], want.to_dict()["options"]
    assert {k: said[k] for k in theirs if k != "backend"} == {
        k: v for k, v in json.loads(json.dumps(theirs)).items() if k != "backend"
    }


def test_integer_tasks_and_another_field(smart):
    numbers = [zlib.crc32(task.encode()) % 1000 for task in LABELS]
    write_lines("ints.jsonl", [{"kind": number, "i": i} for i, number in enumerate(numbers)])
    first = str(numbers[0])
    flags = ("--task-field", "kind", "--include", first, "--min-rows", f"{first}=9")
    assert smart("mix", "ints.jsonl", *MIX, *flags, "--out", "out")[0] == 0
    want = smartgpu.mix(X, numbers, TASKS, ROWS, include=[numbers[0]], min_rows={numbers[0]: 9})
    check("out", want)
    assert manifest()["tasks"][0]["task"] == numbers[0]
    assert manifest()["tasks"][0]["file"] == f"tasks/{first}.jsonl"


def test_embeddings_in_the_pool_and_from_text(smart, embedder):
    values = pa.FixedSizeListArray.from_arrays(pa.array(X.reshape(-1)), D)
    pq.write_table(pa.Table.from_pylist(POOL).append_column("embeddings", values), "e.parquet")
    smart("mix", "e.parquet", "--n-tasks", TASKS, "--n-rows", ROWS, "--out", "a", "--export", "trl")
    assert not embedder
    assert smart("mix", "pool.jsonl", "--n-tasks", TASKS, "--n-rows", ROWS, "--out", "b")[0] == 0
    assert len(embedder) == 1 and embedder[0]["cache"] is None
    want = smartgpu.mix(X, LABELS, TASKS, ROWS)
    check("a", want)
    check("b", want)
    assert manifest("b")["embeddings"]["text"] == ["prompt"]


def test_mixture_json_says_what_was_done(smart):
    smart("mix", "pool.jsonl", *MIX, "--out", "out", "--max-rows", 7)
    said = manifest()
    assert (said["n"], said["n_rows"], said["n_tasks"], said["n_tasks_in_pool"]) == (
        N,
        ROWS,
        TASKS,
        len(SIZES),
    )
    for task in said["tasks"]:
        assert task["size"] == SIZES[task["task"]] and task["budget"] <= 7
    assert (
        sum(t["budget"] for t in said["tasks"]) == sum(t["budget_before_caps"] for t in said["tasks"]) == ROWS
    )
    assert sum(t["weight"] for t in said["tasks"]) == pytest.approx(1)
    assert any(t["budget"] != t["budget_before_caps"] for t in said["tasks"])
    assert said["options"]["max_rows"] == 7 and said["versions"]["smartgpu"] == smartgpu.__version__
    assert said["pool"]["fingerprint"] == read_pool("pool.jsonl").fingerprint()
    assert len(said["run"]["embeddings"]) == 64 and said["embeddings"]["shape"] == [N, D]
    assert Mixture.load("out/mixture.npz").budgets == {t["task"]: t["budget"] for t in said["tasks"]}


# ---- names and folders


def test_nothing_is_written_outside_out(smart, tmp_path):
    pytest.importorskip("yaml")
    before = files(tmp_path)
    smart("mix", "pool.jsonl", *MIX, "--out", "deep/out", "--export", "axolotl")
    assert {name for name in files(tmp_path) - before if not name.startswith("work/deep/out/")} == set()
    said = manifest("deep/out")
    names = {t["task"]: t["file"] for t in said["tasks"]}
    assert names["a"] == "tasks/a.jsonl"
    for task, file in names.items():
        assert file is None or (os.path.dirname(file) == "tasks" and len(file) < 100)
        if task in ("../x", "", "t/1", "T/1"):
            assert file is None or file.count("-") >= 1
    lowered = Counter(file.lower() for file in names.values() if file)
    assert max(lowered.values()) == 1
    # an export goes by the same name
    held = {os.path.basename(f) for f in said["exports"]["axolotl"]["files"] if "data-" in f}
    assert held == {os.path.basename(f).replace(".jsonl", ".parquet") for f in names.values() if f}


@pytest.mark.parametrize("what", ["tasks", "exports", ".partial"])
def test_links_are_not_followed(smart, tmp_path, what):
    (tmp_path / "elsewhere").mkdir()
    os.mkdir("out")
    os.symlink(tmp_path / "elsewhere", f"out/{what}")
    status, out, err = smart("mix", "pool.jsonl", *MIX, "--out", "out", "--export", "trl")
    assert (status, out) == (2, "") and f"out/{what}" in err and "is not of smartgpu" in err
    assert list((tmp_path / "elsewhere").iterdir()) == []


@pytest.mark.parametrize(
    "name", ["mixed.jsonl", "mixture.npz", "mixture.json", "tasks", "tasks/a.jsonl", "exports/trl.yaml"]
)
def test_foreign_files_are_never_replaced(smart, name):
    path = os.path.join("out", name)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w") as file:
        file.write("mine")
    for more in ([], ["--overwrite"]):
        status, _, err = smart("mix", "pool.jsonl", *MIX, "--out", "out", "--export", "trl", *more)
        assert status == 2 and name in err and "is not of smartgpu" in err
    assert Path(path).read_text() == "mine" and files("out") == {name}


def test_out_is_not_where_the_pool_lies(smart):
    os.makedirs("shards/tasks")
    os.replace("pool.jsonl", "shards/tasks/part.jsonl")
    for pool, out in (("shards/tasks", "shards/tasks"), ("shards/tasks/part.jsonl", "shards")):
        status, _, err = smart("mix", pool, *MIX, "--out", out)
        assert status == 2 and "--out" in err and "another" in err
    assert files("shards") == {"tasks/part.jsonl"}


def test_a_finished_folder_is_not_done_again(smart, monkeypatch):
    smart("mix", "pool.jsonl", *MIX, "--out", "out")
    before = content()
    with monkeypatch.context() as patch:
        patch.setattr(
            mix, "mix", lambda *a, **k: smartgpu.mix(*a, **k) if len(a[1]) == 1 else pytest.fail("again")
        )
        status, out, _ = smart("mix", "pool.jsonl", *MIX, "--out", "out", "--threads", 1)
    assert status == 0 and "out holds this mixture already" in out
    assert content() == before
    for flags, difference in (
        (["--seed", 1], "seed: 23 there, 1 now"),
        (["--order", "rank"], "order: 'shuffled' there, 'rank' now"),
        (["--min-rows", 1], "min_rows: None there, ['1'] now"),
    ):
        status, _, err = smart("mix", "pool.jsonl", *MIX, "--out", "out", *flags)
        assert status == 2 and difference in err and "--overwrite" in err
    assert content() == before
    os.remove("out/tasks/a.jsonl")
    status, _, err = smart("mix", "pool.jsonl", *MIX, "--out", "out")
    assert status == 2 and "out lacks tasks/a.jsonl of its mixture" in err
    assert smart("mix", "pool.jsonl", *MIX, "--out", "out", "--overwrite")[0] == 0
    assert content() == before


def test_other_data_are_refused_with_the_difference(smart):
    np.save("t.npy", X[:7])
    smart("mix", "pool.jsonl", *MIX, "--out", "out", "--task-embeddings", "t.npy")
    np.save("t.npy", X[1:8])
    status, _, err = smart("mix", "pool.jsonl", *MIX, "--out", "out", "--task-embeddings", "t.npy")
    assert status == 2 and "tasks.task_embeddings:" in err
    np.save("x.npy", X[::-1])
    status, _, err = smart("mix", "pool.jsonl", *MIX, "--out", "out", "--task-embeddings", "t.npy")
    assert status == 2 and "embeddings:" in err


def test_overwrite_removes_only_what_smartgpu_wrote(smart):
    pytest.importorskip("yaml")
    smart("mix", "pool.jsonl", *MIX, "--out", "out", "--export", "trl,megatron-lm")
    for name in ("mine", "tasks/mine", "exports/mine"):
        with open(f"out/{name}", "w") as file:
            file.write("mine")
    smart(
        "mix",
        "pool.jsonl",
        "--n-tasks",
        2,
        "--n-rows",
        10,
        "--embeddings",
        "x.npy",
        "--out",
        "out",
        "--overwrite",
    )
    want = smartgpu.mix(X, LABELS, 2, 10)
    said = manifest()
    assert [t["task"] for t in said["tasks"]] == [t.task for t in want.tasks]
    listed = {cut["file"] for cut in said["files"]}
    assert files("out") == {*listed, "mixture.json", "mixture.npz", "mine", "tasks/mine", "exports/mine"}


def test_a_selection_and_a_mixture_share_a_folder(smart):
    smart("select", "pool.jsonl", "--embeddings", "x.npy", "-k", 5, "--out", "out")
    assert smart("mix", "pool.jsonl", *MIX, "--out", "out")[0] == 0
    assert smart("mix", "pool.jsonl", *MIX, "--out", "out", "--seed", 2, "--overwrite")[0] == 0
    assert {"selected.jsonl", "selection.json", "selection.npz", "mixture.json"} <= files("out")


@pytest.mark.parametrize("chosen", ["out", "out/mixture.json", "out/mixture.npz", "out/mixed.jsonl"])
def test_a_mixture_is_rows_that_can_be_scored_and_left_out(smart, chosen):
    smart("mix", "pool.jsonl", *MIX, "--out", "out")
    want = smartgpu.evaluate(X, smartgpu.mix(X, LABELS, TASKS, ROWS).indices)
    _, out, _ = smart("evaluate", "x.npy", "--chosen", chosen, "--json")
    assert json.loads(out)["value"] == want.value
    assert smart("select", "x.npy", "-k", 10, "--exclude", chosen, "--out", "more")[0] == 0
    more = smartgpu.Selection.load("more/selection.npz").indices
    assert len(more) == 10 and not set(more) & set(Mixture.load("out/mixture.npz").indices)


# ---- resuming

DRIVER = """
import os, signal, sys
from smartgpu import cli, exports
from smartgpu.commands import finished, folder, mix
finished.SECONDS = 0
place, count = sys.argv[1].split(":")
owner, name = {
    "report": (finished.Finished, "report"),
    "write": (mix, "write_rows"),
    "export": (exports, "_write_manifest"),
    "move": (folder.os, "replace"),
}[place]
real, left = getattr(owner, name), int(count)
def stop(*args, **how):
    global left
    done = real(*args, **how)
    if place != "move" or str(args[1]).startswith("out" + os.sep) and ".partial" not in str(args[1]):
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
    return done
setattr(owner, name, stop)
sys.exit(cli.main(sys.argv[2:]))
"""
LONG = (
    "mix",
    "pool.jsonl",
    *MIX,
    "--template-field",
    "wording",
    "--out",
    "out",
    "--export",
    "trl,megatron-lm",
)


def killed(where, *arguments):
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, where, *map(str, arguments)], env=env, capture_output=True
    )
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()


@pytest.mark.parametrize(
    "where",
    [
        "report:1",
        "report:2",
        "report:9",
        "write:1",
        "write:4",
        "export:1",
        "export:2",
        "move:1",
        "move:5",
        "move:12",
    ],
)
def test_a_killed_run_goes_on_and_ends_the_same(smart, monkeypatch, where):
    pytest.importorskip("yaml")
    assert smart(*LONG)[0] == 0
    want = content()
    os.rename("out", "whole")
    killed(where, *LONG)
    assert os.path.isfile("out/.partial/run.json")
    assert not os.path.exists("out/mixture.json")
    selected = []
    report = finished.Finished.report
    monkeypatch.setattr(
        finished.Finished, "report", lambda self, *a: (selected.append(a[0]), report(self, *a))
    )
    status, _, err = smart(*LONG)
    assert status == 0 and "going on from the unfinished mixture in out/.partial" in err
    assert content() == want
    cells = len({(LABELS[i], WORDINGS[i]) for i in Mixture.load("out/mixture.npz").indices})
    done = int(where.partition(":")[2]) if where.startswith("report") else 1 + cells
    assert len(selected) == 1 + cells - done  # what was done is not selected again
    assert not os.path.exists("out/.partial")


def test_an_interrupted_run_keeps_what_is_done(smart, monkeypatch):
    smart(*LONG)
    want = content()
    report, count = finished.Finished.report, []

    def stop(self, *args):
        report(self, *args)
        count.append(args[0])
        if len(count) == 6:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(finished.Finished, "report", stop)
        status, _, err = smart(*LONG, "--out", "again")
    assert status == 130 and "the same command goes on from here" in err
    assert files("again") == {
        ".partial/run.json",
        ".partial/done-0.npz",
    }  # written at once, in spite of SECONDS
    status, _, err = smart(*LONG, "--out", "other", "--seed", 1)
    assert status == 0
    status, _, err = smart(*LONG, "--out", "again", "--seed", 1)
    assert status == 2 and "an unfinished mixture of other options or data (seed: 23 there, 1 now)" in err
    assert smart(*LONG, "--out", "again")[0] == 0
    got = content("again")
    assert got[2] == want[2]
    assert {n: d for n, d in got[0].items() if n.startswith(("tasks", "mixed"))} == {
        n: d for n, d in want[0].items() if n.startswith(("tasks", "mixed"))
    }


@pytest.mark.parametrize(
    "flags",
    [
        ("--budget", 700, "--cost-field", "tokens"),
        ("--n-rows", ROWS, "--quota-field", "lang", "--quota-min", "fr=6"),
    ],
    ids=["budget", "quotas"],
)
def test_limits_go_on_too(smart, monkeypatch, flags):
    """Stopped in the middle: what was selected is kept, also where quotas made it select again."""
    call = (
        "mix",
        "pool.jsonl",
        "--n-tasks",
        TASKS,
        "--embeddings",
        "x.npy",
        *flags,
        "--template-field",
        "wording",
    )
    assert smart(*call, "--out", "whole")[0] == 0
    report, told = finished.Finished.report, []

    def stop(self, key, selection):
        report(self, key, selection)
        told.append(key)
        if len(told) == 17 if "--budget" in flags else len(key) == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(finished.Finished, "report", stop)
        assert smart(*call, "--out", "out")[0] == 130
    assert ("--budget" in flags) or told[-1][-1] == "quotas"
    again = []
    monkeypatch.setattr(finished.Finished, "report", lambda self, *a: (again.append(a[0]), report(self, *a)))
    status, _, err = smart(*call, "--out", "out")
    assert status == 0 and "going on from the unfinished mixture" in err
    assert not set(again) & set(told)
    assert content("out") == content("whole")


def test_what_is_done_and_torn_is_refused(smart, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(mix, "write_rows", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
        assert smart(*LONG)[0] == 130
    path = Path("out/.partial/done-0.npz")
    path.write_bytes(path.read_bytes()[:200])
    status, _, err = smart(*LONG)
    assert status == 2 and f"{path} cannot be read" in err and "--overwrite starts anew" in err
    assert smart(*LONG, "--overwrite")[0] == 0


def test_embeddings_are_kept_also_without_a_cache(smart, embedder, monkeypatch):
    flags = ("mix", "pool.jsonl", "--n-tasks", TASKS, "--n-rows", ROWS, "--out", "out", "--cache", "off")
    assert smart(*flags)[0] == 0
    assert embedder[0]["cache"] == os.path.join("out", ".partial", "cache")
    assert not os.path.exists("out/.partial")


def test_an_error_leaves_nothing(smart, monkeypatch):
    def fail(*args, **how):
        raise ValueError("no")

    monkeypatch.setattr(mix, "write_rows", fail)
    status, _, err = smart("mix", "pool.jsonl", *MIX, "--out", "out")
    assert (status, err.splitlines()[-1]) == (2, "smartgpu mix: no")
    assert not os.path.exists("out")


# ---- exports


def test_exports_hold_the_rows_of_the_mixture(smart, tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    pytest.importorskip("yaml")
    from test_exports import READERS, as_set

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    for order in ("rank", "shuffled"):
        out = Path(order)
        smart("mix", "pool.jsonl", *MIX, "--out", out, "--order", order, "--export", ",".join(READERS))
        want = Mixture.load(out / "mixture.npz")
        said = manifest(out)
        for name, reader in READERS.items():
            taken, counts = reader(out / "exports")
            rows = [int(turns[0]["content"].split()[1][:-1]) for turns in taken]
            assert [turns[1]["content"] for turns in taken] == [f"yes {row}" for row in rows]
            assert sorted(rows) == sorted(want.indices.tolist())
            if counts is None:
                assert rows == want.indices.tolist()
            else:
                assert counts == [t.budget for t in want.tasks if t.budget]
                if order == "rank":
                    assert rows == want.indices.tolist() and as_set(taken)
            assert set(said["exports"][name]["files"]) <= {cut["file"] for cut in said["files"]}


def test_exports_are_added_to_a_finished_mixture(smart, monkeypatch):
    pytest.importorskip("yaml")
    smart("mix", "pool.jsonl", *MIX, "--out", "out", "--export", "trl")
    smart(
        "mix",
        "pool.jsonl",
        *MIX,
        "--out",
        "both",
        "--export",
        "trl,megatron-lm",
        "--export-root",
        os.path.abspath("out"),
    )
    real = smartgpu.mix
    monkeypatch.setattr(mix, "mix", lambda *a, **k: real(*a, **k) if len(a[1]) == 1 else pytest.fail("again"))
    status, out, _ = smart("mix", "pool.jsonl", *MIX, "--out", "out", "--export", "megatron-lm")
    assert status == 0 and "megatron-lm: exports/megatron.sh" in out and "trl: exports/trl.yaml" in out
    assert content("out") == content("both")
    assert smart("mix", "pool.jsonl", *MIX, "--out", "out")[0] == 0  # without --export: they stay
    assert content("out") == content("both")


def test_rows_that_cannot_be_exported_are_named_before_any_work(smart, embedder):
    rows = [dict(row) for row in POOL]
    rows[7]["response"], rows[100]["response"] = "", None
    write_lines("bad.jsonl", rows)
    given = ("mix", "bad.jsonl", "--n-tasks", TASKS, "--n-rows", ROWS, "--out", "out")
    refused(
        smart(*given, "--export", "trl"),
        f"--export: 2 of the {N} rows of bad.jsonl cannot be exported (row 7: the response is empty",
        "row 100: the response is empty",
    )
    assert not embedder
    assert smart(*given)[0] == 0


def test_the_response_has_another_name(smart, embedder):
    write_lines(
        "said.jsonl",
        [{"task": row["task"], "prompt": row["prompt"], "said": row["response"]} for row in POOL],
    )
    given = (
        "mix",
        "said.jsonl",
        "--n-tasks",
        TASKS,
        "--n-rows",
        ROWS,
        "--out",
        "out",
        "--export",
        "open-instruct",
    )
    refused(
        smart(*given),
        "no field of the response is known: name it with --response-field",
        "task, prompt, said",
    )
    refused(smart(*given, "--response-field", "sad"), "no field 'sad'; the fields are task, prompt, said")
    assert not embedder
    assert smart(*given, "--response-field", "said")[0] == 0
    assert [path for path in files("out") if path.endswith(".sh")] == ["exports/open-instruct.sh"]


# ---- how many tasks


def test_sweep(smart, monkeypatch):
    calls = []
    from smartgpu.mixture import mixer

    real = mixer.rank
    monkeypatch.setattr(mixer, "rank", lambda *a, **k: (calls.append(a[1]), real(*a, **k))[1])
    status, out, err = smart(
        "mix", "pool.jsonl", "--sweep", "2, 4,7", "--n-rows", 20, "--embeddings", "x.npy", "--out", "out"
    )
    assert status == 0, err
    ranked = [size for size in calls if size > 1]  # one task: the dry run
    assert ranked == [7]
    want = sweep(X, LABELS, [2, 4, 7], 20)
    with open("out/sweep.json") as file:
        said = json.load(file)
    assert said["sweep"] == [row.to_dict() for row in want]
    assert said["pool"]["fingerprint"] == read_pool("pool.jsonl").fingerprint() and said["versions"]
    assert files("out") == {"sweep.json"}
    lines = [line.split() for line in out.splitlines()]
    for row in want:
        (line,) = [line for line in lines if line[:1] == [str(row.n_tasks)]]
        assert line[1] == f"{row.coverage:.2%}" and line[-1] == str(row.duplicates)
    # into the same folder: the mixture, and another table
    assert smart("mix", "pool.jsonl", *MIX, "--out", "out")[0] == 0
    assert (
        smart("mix", "pool.jsonl", "--sweep", "3", "--n-rows", 20, "--embeddings", "x.npy", "--out", "out")[0]
        == 0
    )
    assert len(json.loads(Path("out/sweep.json").read_text())["sweep"]) == 1
    status, out, _ = smart("mix", "pool.jsonl", "--sweep", "3", "--n-rows", 20, "--embeddings", "x.npy")
    assert status == 0 and "mixtures of 20 rows" in out
    paid = ("--budget", 500, "--cost-field", "tokens", "--exclude", "out.npy", "--embeddings", "x.npy")
    np.save("out.npy", np.arange(30))
    status, out, err = smart("mix", "pool.jsonl", "--sweep", "2,4", *paid)
    assert status == 0 and "mixtures of one budget" in out, err
    for row in sweep(X, LABELS, [2, 4], budget=500, cost=TOKENS, exclude=np.arange(30)):
        assert [str(row.n_rows), f"{row.cost:g}"] in [line.split()[-2:] for line in out.splitlines()]


# ---- options


def test_config_file(smart):
    pytest.importorskip("yaml")
    with open("run.yaml", "w") as file:
        file.write(
            "pool: pool.jsonl\nembeddings: x.npy\nout: out\nn-tasks: 7\nn_rows: 40\nmin_rows: {a: 6, T/1: 7}\n"
            "max_rows: 9\ninclude: [a]\nexport: [trl]\n"
        )
    assert smart("mix", "--config", "run.yaml")[0] == 0
    check_without_exports = smartgpu.mix(
        X, LABELS, 7, 40, min_rows={"a": 6, "T/1": 7}, max_rows=9, include=["a"]
    )
    check("out", check_without_exports)
    with open("sweep.yaml", "w") as file:
        file.write("pool: pool.jsonl\nembeddings: x.npy\nsweep: [2, 4]\nn_rows: 10\n")
    status, out, _ = smart("mix", "--config", "sweep.yaml")
    assert status == 0 and "mixtures of 10 rows" in out


def refused(result, *parts, status=2):
    """One line on stderr that says all of `parts`, nothing on stdout, nothing written."""
    got, out, err = result
    lines = [line for line in err.splitlines() if "no NVIDIA driver" not in line]
    assert (got, out) == (status, ""), err
    assert len(lines) == 1 and "Traceback" not in err, err
    for part in parts:
        assert part in err, (part, err)
    assert not os.path.exists("out")


BAD = {
    "no rows": ("--n-tasks 3", ["n_rows is missing"]),
    "rows and budget": (
        "--n-rows 9 --budget 90 --cost-field tokens",
        ["n_rows and budget cannot be combined"],
    ),
    "no cost": ("--budget 90", ["--budget goes with --cost-field or --cost"]),
    "no budget": ("--n-rows 9 --cost-field tokens", ["--budget goes with --cost-field or --cost"]),
    "budget of 0": ("--budget 0 --cost-field tokens", ["budget must be > 0 and finite"]),
    "small budget": (
        "--budget 2 --cost-field tokens",
        ["budget must be at least", "the cost of the cheapest row"],
    ),
    "budget and rows of tasks": (
        "--budget 90 --cost-field tokens --max-rows 3",
        ["max_rows cannot be combined with budget"],
    ),
    "budget and quotas": (
        "--budget 90 --cost-field tokens --quota-field lang --quota-max 0.3",
        ["is a share of k, and no k is given"],
    ),
    "quotas": (
        "--n-rows 9 --quota-field lang --quota-min fr=50",
        ["contradict each other: lang minimum['fr'] = 50"],
    ),
    "quota of nothing": ("--n-rows 9 --quota-min fr=50", ["--quota-min needs --quota-field"]),
    "near alone": ("--n-rows 9 --exclude-above 0.5", ["--exclude-near goes with --exclude-above"]),
    "rows>n": ("--n-rows 200", ["n_rows must be at most", "120", "got 200"]),
    "rows>tasks": ("--n-tasks 2 --n-rows 60", ["n_rows must be at most 55", "got 60"]),
    "rows=text": ("--n-rows many", ["--n-rows: expected a number of rows or a share", "'many'"]),
    "tasks": ("--n-rows 9 --n-tasks 8", ["n_tasks must lie in [1, 7]", "got 8"]),
    "tasks=0": ("--n-rows 9 --n-tasks 0", ["n_tasks must lie in [1, 7]", "got 0"]),
    "field": (
        "--n-rows 9 --task-field kind",
        ["--task-field: no field 'kind' in pool.jsonl", "id, task, wording, prompt"],
    ),
    "template": (
        "--n-rows 9 --template-field kind",
        ["--template-field: no field 'kind'", "id, task, wording"],
    ),
    "null": (
        "--n-rows 9 --task-field wording",
        ["--task-field: field 'wording' of pool.jsonl has", "rows without a label (None), the first is row"],
    ),
    "lists": (
        "--n-rows 9 --task-field deep",
        ["--task-field: field 'deep' of pool.jsonl must hold text or integers, row 0 holds list"],
    ),
    "include": (
        "--n-rows 9 --include T/11",
        ["include: task 'T/11' is not in the data; did you mean 'T/1'?"],
    ),
    "drop": ("--n-rows 9 --drop zebra", ["drop: task 'zebra' is not in the data", "there are 7"]),
    "both": (
        "--n-rows 9 --include a --drop a",
        ["these limits contradict each other: include 'a'; drop 'a'"],
    ),
    "too few": (
        "--n-rows 9 --n-tasks 1 --include a b",
        ["contradict each other: include, which names 2", "n_tasks = 1"],
    ),
    "min": ("--n-rows 20 --min-rows 4", ["contradict each other: min_rows = 4 for 7 tasks", "n_rows = 20"]),
    "min>max": (
        "--n-rows 20 --min-rows a=5 --max-rows 4",
        ["contradict each other: min_rows['a'] = 5; max_rows = 4"],
    ),
    "min>size": ("--n-rows 50 --min-rows T/1=9", ["min_rows['T/1'] = 9; the 8 rows of 'T/1'"]),
    "max": ("--n-rows 50 --max-rows 5", ["contradict each other: max_rows", "35 rows at most; n_rows = 50"]),
    "min=text": (
        "--n-rows 9 --min-rows some",
        ["--min-rows must be a number of rows, or TASK=NUMBER ..., got 'some'"],
    ),
    "min=both": (
        "--n-rows 9 --min-rows 3 a=4",
        ["--min-rows must be one number for all tasks, or TASK=NUMBER", "'3'"],
    ),
    "min twice": ("--n-rows 9 --min-rows a=3 a=4", ["--min-rows names a task twice: 'a'"]),
    "min of none": ("--n-rows 9 --min-rows q=4", ["min_rows: task 'q' is not in the data"]),
    "method": (
        "--n-rows 9 --method smrt",
        ["--method must be one of smart, proportional", "did you mean 'smart'?"],
    ),
    "temperature": ("--n-rows 9 --temperature 0", ["temperature", "0"]),
    "lam": (
        "--n-rows 9 --row-lam 1",
        ["row_lam is an option of graph_cut and log_det, not of facility_location"],
    ),
    "random lam": ("--n-rows 9 --row-objective random --row-lam 1", ["row_lam is an option of graph_cut"]),
    "task lam": ("--n-rows 9 --task-objective facility_location --task-lam 1", ["task_lam is an option of"]),
    "matrix": (
        "--n-rows 9 --task-matrix t.npy --task-embeddings t.npy",
        ["--task-matrix cannot be combined with"],
    ),
    "matrix kind": (
        "--n-rows 9 --task-matrix t.npy --task-similarity dot",
        ["--task-matrix cannot be combined with"],
    ),
    "not square": (
        "--n-rows 9 --task-matrix t.npy",
        ["task_similarity must have one row for each of the 7 tasks", "got 3"],
    ),
    "task rows": (
        "--n-rows 9 --task-embeddings t.npy",
        ["task_embeddings must have one row for each of the 7", "got 3"],
    ),
    "no file": ("--n-rows 9 --task-embeddings no.npy", ["no file or folder 'no.npy'"]),
    "trainer": ("--n-rows 9 --export tlr", ["--export must be one of trl, axolotl", "did you mean 'trl'?"]),
    "root": ("--n-rows 9 --export trl --export-root a*", ["a trainer cannot read from 'a*/exports'"]),
    "format": (
        "--n-rows 9 --format hf",
        ["--format of a mixture must be one of parquet, jsonl, json, csv, got 'hf'"],
    ),
    "sweep+tasks": ("--n-rows 9 --sweep 2 --n-tasks 3", ["--sweep cannot be combined with --n-tasks"]),
    "sweep+export": ("--n-rows 9 --sweep 2 --export trl", ["--sweep cannot be combined with --export"]),
    "sweep=text": ("--n-rows 9 --sweep 2,x", ["--sweep must be an integer, got 'x'"]),
    "sweep>tasks": ("--n-rows 9 --sweep 2,9", ["n_tasks must lie in [1, 7]", "got 9"]),
    "sweep rows": ("--sweep 2", ["n_rows is missing"]),
    "k": ("--n-rows 9 -k 3", ["unknown argument '-k'"]),
    "objective": ("--n-rows 9 --objective log_det", ["unknown argument '--objective'; did you mean"]),
    "similarity": ("--n-rows 9 --similarity precomputed", ["needs the matrix"]),
    "maximizer": ("--n-rows 9 --maximizer lazzy", ["did you mean 'lazy'?"]),
    "memory": ("--n-rows 9 --memory 12QB", ["memory must be", "got '12QB'"]),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_before_anything_is_embedded(smart, embedder, name):
    flags, parts = BAD[name]
    np.save("t.npy", X[:3])
    refused(smart("mix", "pool.jsonl", "--out", "out", *flags.split()), *parts)
    assert not embedder


def test_more_refusals(smart, embedder):
    refused(smart("mix", "--n-rows", 3, "--out", "out"), "POOL is missing")
    refused(smart("mix", "pool.jsonl", "--n-rows", 3), "--out is missing")
    refused(
        smart("mix", "x.npy", "--n-rows", 3, "--out", "out"),
        "--task-field: no field 'task'",
        "embeddings alone",
    )
    write_lines("none.jsonl", [{"prompt": "größer 0?", "task": "a"}, {"prompt": "größer 1?"}])
    refused(
        smart("mix", "none.jsonl", "--n-rows", 1, "--out", "out"),
        "field 'task' of none.jsonl has 1 rows without a label (None), the first is row 1",
    )
    write_lines("two.jsonl", [{"prompt": "größer 0?", "task": "a"}, {"prompt": "größer 1?", "task": 1}])
    refused(
        smart("mix", "two.jsonl", "--n-rows", 1, "--out", "out"),
        "field 'task' of two.jsonl must be all ints or all strings",
    )
    assert not embedder
    with open("file", "w") as file:
        file.write("mine")
    status, _, err = smart("mix", "pool.jsonl", *MIX, "--out", "file")
    assert status == 2 and "--out must be a folder, got the file file" in err
    os.makedirs("swept")
    with open("swept/sweep.json", "w") as file:
        file.write("{}")
    sweep_it = ("mix", "pool.jsonl", "--sweep", 2, "--n-rows", 10, "--embeddings", "x.npy", "--out", "swept")
    status, _, err = smart(*sweep_it)
    assert status == 2 and "sweep.json exists and is not of smartgpu" in err


# ---- what a person sees


def test_the_terminal(smart):
    rows = [dict(row, task=f"{row['task']}\x1b[31m\nred") for row in POOL]
    write_lines("pool.jsonl", rows)
    status, out, _ = smart("mix", "pool.jsonl", *MIX, "--out", "out", "--n-rows", 90)
    want = smartgpu.mix(X, [row["task"] for row in rows], TASKS, 90)
    assert status == 0 and "\x1b" not in out
    assert out.startswith(
        f"90 of {N} rows, 7 of 7 tasks (by smart, tasks by graph_cut, rows by facility_location)\n"
    )
    table = out.split("gain\n")[1].split("\n\n")[0].splitlines()
    budgets = [int(line.split()[-2]) for line in table]
    assert budgets == sorted((t.budget for t in want.tasks), reverse=True)
    assert max(map(len, table)) < 110
    full = sum(t.budget == t.size for t in want.tasks)
    assert full and f"tasks that give all their rows: {full} of 7" in out
    assert "out holds mixed.jsonl (90 rows), tasks/ (7 files), mixture.json and mixture.npz" in out


def test_many_tasks_are_summed_up(smart):
    labels = [f"task {i % 30:02}" for i in range(N)]
    write_lines("many.jsonl", [{"task": task} for task in labels])
    _, out, _ = smart("mix", "many.jsonl", "--embeddings", "x.npy", "--n-rows", 45, "--out", "out")
    want = smartgpu.mix(X, labels, None, 45)
    largest = sorted((t.budget for t in want.tasks), reverse=True)
    (rest,) = [line.split() for line in out.splitlines() if "22 more tasks" in line]
    assert rest[-1] == str(sum(largest[8:])) and rest[-2] == str(
        sum(t.size for t in want.tasks) - sum(t.size for t in sorted(want.tasks, key=lambda t: -t.budget)[:8])
    )


REAL = ("--n-tasks", 64, "--n-rows", 10_000, "--template-field", "template")


def test_real_tasks(smart, data_dir):
    """The command as a user runs it, on 59,513 real rows of 431 tasks."""
    folder = real(data_dir)
    status, _, err = smart(
        "mix", folder / "tasks.parquet", "--embeddings", folder / "minilm.npy", *REAL, "--out", "out"
    )
    assert status == 0, err
    pool, x = read_pool(folder / "tasks.parquet"), np.load(folder / "minilm.npy")
    want = smartgpu.mix(x, pool.column("task"), 64, 10_000, templates=pool.column("template"))
    assert [t["budget"] for t in manifest()["tasks"]] == [t.budget for t in want.tasks]
    combined = check("out", want)
    np.testing.assert_array_equal(combined.numbers("id"), want.indices)
    assert Counter(combined.column("task")) == want.budgets


@pytest.mark.slow
def test_exports_of_real_tasks(smart, data_dir, tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    pytest.importorskip("yaml")
    from test_exports import READERS, as_set

    folder = real(data_dir)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    given = ("--embeddings", folder / "minilm.npy", *REAL, "--order", "rank", "--export", ",".join(READERS))
    assert smart("mix", folder / "tasks.parquet", *given, "--out", "out")[0] == 0
    combined = read_pool("out/mixed.parquet")
    columns = combined.columns(["prompt", "response"])
    want = [
        [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]
        for prompt, response in zip(columns["prompt"], columns["response"], strict=True)
    ]
    for name, reader in READERS.items():
        taken, counts = reader(Path("out/exports"))
        assert taken == want, name
        assert counts is None or counts == [t["budget"] for t in manifest()["tasks"] if t["budget"]]
    assert len(as_set(want)) == 10_000


def real(data_dir):
    folder = data_dir / "tasks"
    if not (folder / "minilm.npy").is_file():
        pytest.skip(f"no {folder}")
    return folder
