"""Partition greedy: what it chooses is worth what it says, keeps to the memory, and does not depend on processes."""

import dataclasses
import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from test_ranks import caught, together

import smartgpu
from smartgpu.cli import main
from smartgpu.io import map_embeddings
from smartgpu.partition import _split_large

N, D, K = 3000, 10, 30


def pool():
    rng = np.random.default_rng(2)
    x = rng.standard_normal((25, D))[rng.integers(25, size=N)] + 0.6 * rng.standard_normal((N, D))
    x[7] = 0
    return x.astype(np.float16)


X = pool()
W = np.random.default_rng(3).random(N)
HOW = {"backend": "numpy", "threads": 1, "parts": 6}
PARTITIONS = {"random": "random", "cluster": "cluster", "labels": np.arange(N) // 500}


@pytest.fixture(scope="module")
def exact():
    return smartgpu.select(X, K, backend="numpy", threads=1)


def covered(rows, weights=None):
    """f(S), from the definition."""
    x = X.astype(np.float64)
    x /= np.maximum(np.linalg.norm(x, axis=1), 1e-300)[:, None]
    best = np.maximum((x @ x[rows].T).max(axis=1), 0)
    return float(best.sum() if weights is None else best @ weights)


@pytest.mark.parametrize("name", PARTITIONS)
@pytest.mark.parametrize("weights", [None, W], ids=["", "weights"])
def test_the_value_is_that_of_the_whole_pool(exact, name, weights):
    got = smartgpu.select_partitioned(X, K, partition=PARTITIONS[name], weights=weights, **HOW)
    assert len(set(got.indices.tolist())) == K and got.n == N and not got.exact
    assert got.value == pytest.approx(covered(got.indices, weights), rel=1e-5)
    said = got.approximation
    assert said["total"] == pytest.approx(
        (N if weights is None else W.sum()) - (1 if weights is None else W[7])
    )
    assert said["share"] == got.value / said["total"]
    assert (said["parts"], said["rounds"], said["method"]) == (6, 2, "partition greedy")
    if weights is None:
        assert exact.value * 0.97 < got.value < exact.value * 1.03
    drawn = covered(np.random.default_rng(0).choice(N, K, replace=False), weights)
    assert got.value > drawn
    assert "partition greedy" in str(got) and "% of f(V)" in str(got)


def test_the_sample_says_what_rows_would_still_add():
    got = smartgpu.select_partitioned(X, K, sample=N, candidates=1, **HOW)
    left = np.setdiff1d(np.arange(N), got.indices)
    gains = [covered([*got.indices, j]) - got.value for j in left[:: len(left) // 60]]
    said = got.approximation
    assert said["largest_gain"] >= max(gains) - 1e-3
    assert said["mean_gain"] == pytest.approx(np.mean(gains), rel=0.3)


def test_all_candidates_are_exact(exact):
    """With one part, and all its rows as candidates, both rounds are exact greedy."""
    got = smartgpu.select_partitioned(X, K, candidates=N / K, **{**HOW, "parts": 1})
    assert got.indices.tolist() == exact.indices.tolist() and got.gains.tolist() == exact.gains.tolist()


def processes(rank, folder):
    x = np.load(folder / "x.npy", mmap_mode="r")
    how = {**HOW, "process_group": "world", "memory": "60MB"}
    found = [smartgpu.select_partitioned(x, K, partition=name, **how) for name in PARTITIONS.values()]
    other = x if rank == 0 else np.asarray(x) + np.float16(1)
    refused = caught(lambda: smartgpu.select_partitioned(other, K, **how))
    return [(s.indices.tolist(), s.gains.tolist(), s.value, s.approximation) for s in found], refused


def test_the_result_does_not_depend_on_processes(tmp_path):
    np.save(tmp_path / "x.npy", X)
    found = together(processes, 2, tmp_path)
    for selections, refused in found:
        for got, name in zip(selections, PARTITIONS.values(), strict=True):
            one = smartgpu.select_partitioned(X, K, partition=name, **HOW)
            assert got == (one.indices.tolist(), one.gains.tolist(), one.value, one.approximation)
        assert type(refused) is ValueError and "rank 1" in str(refused) and "data" in str(refused)


def test_parts_that_are_too_large_are_cut():
    numbers = _split_large(np.repeat(np.arange(3), [100, 5, 23]).astype(np.int32), 30)
    counts = np.bincount(numbers)
    assert counts.max() <= 30 and counts.sum() == 128 and set(numbers[100:105]) == {1}


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"similarity": "dot"}, "similarity must be one whose features are a row's own"),
        ({"partition": "rows"}, "unknown partition 'rows': expected one of random, cluster"),
        ({"partition": [1, 2]}, "partition"),
        ({"candidates": 0.5}, "candidates must be a number >= 1"),
        ({"sample": -1}, "sample must be an integer >= 0"),
        ({"parts": N + 1}, "parts must be"),
        ({"polish": True}, "polish is not for select_partitioned"),
        ({"checkpoint": "picks.bin"}, "checkpoint must be a file name that ends in .npz"),
        ({"checkpoint": "p.npz", "maximizer": "stochastic"}, "checkpoint is for exact maximizers"),
        ({"weights": np.ones(3)}, "weights must have shape"),
    ],
)
def test_bad_input_names_the_argument(arguments, text):
    with pytest.raises(ValueError, match=text):
        smartgpu.select_partitioned(X, K, **{**HOW, **arguments})


def test_a_plan_of_hours_names_it():
    planned = smartgpu.plan(X, K, backend="numpy")
    assert "select_partitioned" not in str(planned)
    assert "select_partitioned" in str(dataclasses.replace(planned, seconds=1e5, sweeps=4.0))


def test_the_command_says_what_was_done(tmp_path, capsys):
    np.save(tmp_path / "pool.npy", X)
    command = ["select", str(tmp_path / "pool.npy"), "-k", str(K), "--backend", "numpy", "--format", "csv"]
    done = main([*command, "--partition", "random", "--parts", "6", "--out", str(tmp_path / "out")])
    assert done == 0 and "partition greedy: 6 parts (random)" in capsys.readouterr().out
    manifest = json.loads((tmp_path / "out" / "selection.json").read_text())
    expected = smartgpu.select_partitioned(X, K, **HOW)
    assert manifest["approximation"] == expected.approximation and manifest["exact"] is False
    got = smartgpu.Selection.load(tmp_path / "out" / "selection.npz")
    assert got.indices.tolist() == expected.indices.tolist() and got.approximation == expected.approximation
    for more, text in (
        (["--parts", "3"], "--parts is an option of --partition"),
        (
            ["--partition", "random", "--objective", "graph_cut"],
            "--objective cannot be combined with --partition",
        ),
        (["--partition", "random", "--similarity", "dot"], "--partition needs --similarity"),
    ):
        assert main([*command, *more, "--out", str(tmp_path / "no")]) == 2
        assert text in capsys.readouterr().err


# -- pools in files ----------------------------------------------------------------------------------------------------


def shards(folder, fmt):
    cuts = [X[:1100], X[1100:2900], X[2900:]]
    for i, part in enumerate(cuts):
        if fmt == "npy":
            np.save(folder / f"part-{i}.npy", part)
        elif fmt == "safetensors":
            pytest.importorskip("safetensors.numpy").save_file(
                {"embeddings": part}, folder / f"part-{i}.safetensors"
            )
        else:
            pa = pytest.importorskip("pyarrow")
            column = pa.FixedSizeListArray.from_arrays(pa.array(part.ravel()), D)
            table = pa.table({"id": np.arange(len(part)), "embedding": column})
            pytest.importorskip("pyarrow.parquet").write_table(
                table, folder / f"part-{i}.parquet", row_group_size=400
            )


@pytest.mark.parametrize("fmt", ["npy", "safetensors", "parquet"])
def test_shards_are_mapped_in_order(tmp_path, fmt):
    (tmp_path / "pool").mkdir()
    shards(tmp_path / "pool", fmt)
    x = map_embeddings(tmp_path / "pool", tmp_path / "all.npy")
    assert isinstance(x, np.memmap) and x.dtype == np.float16 and np.array_equal(x, X)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["all.npy", "pool"]


def test_one_file_is_mapped_itself(tmp_path):
    np.save(tmp_path / "x.npy", X)
    x = map_embeddings(tmp_path / "x.npy", tmp_path / "all.npy")
    assert isinstance(x, np.memmap) and not (tmp_path / "all.npy").exists()


def damage(folder, how):
    """What may have happened to the shards of a pool since they were read."""
    first, second, last = sorted(folder.iterdir())
    if how == "truncated":
        last.write_bytes(last.read_bytes()[:-40])
    elif how == "missing":
        second.unlink()
    elif how == "reordered":
        aside = first.rename(folder / "aside")
        second.rename(first)
        aside.rename(second)
    else:
        x = np.load(second)
        x[5, 0] += 1
        np.save(second, x)


@pytest.mark.parametrize("fmt", ["npy", "safetensors", "parquet"])
def test_a_truncated_shard_is_refused_and_leaves_nothing(tmp_path, fmt):
    (tmp_path / "pool").mkdir()
    shards(tmp_path / "pool", fmt)
    damage(tmp_path / "pool", "truncated")
    with pytest.raises(ValueError, match=rf"part-2\.{fmt}: not a readable {fmt} file"):
        map_embeddings(tmp_path / "pool", tmp_path / "all.npy")
    assert [p.name for p in tmp_path.iterdir()] == ["pool"]
    with pytest.raises(ValueError, match=r"into must be a file name that ends in \.npy"):
        map_embeddings(tmp_path / "pool", tmp_path / "all.bin")


@pytest.fixture(scope="module")
def unfinished(tmp_path_factory):
    """A pool in shards, and the checkpoint of a selection of it that stopped after some picks."""
    folder = tmp_path_factory.mktemp("unfinished")
    (folder / "pool").mkdir()
    shards(folder / "pool", "npy")

    def stop(row, gain, seen=[]):  # noqa: B006 - counts calls
        seen.append(row)
        if len(seen) == 9:
            raise KeyboardInterrupt

    x = map_embeddings(folder / "pool", folder / "all.npy")
    with pytest.raises(KeyboardInterrupt):
        smartgpu.select_partitioned(x, K, checkpoint=folder / "picks.npz", report=stop, **HOW)
    return folder


@pytest.mark.parametrize("how", ["whole", "missing", "reordered", "changed"])
def test_shards_that_changed_since_the_checkpoint_are_refused(unfinished, tmp_path, caplog, how):
    folder = Path(shutil.copytree(unfinished, tmp_path / "copy"))
    if how != "whole":
        damage(folder / "pool", how)
    x = map_embeddings(folder / "pool", folder / "all.npy")
    caplog.set_level("INFO", "smartgpu")
    again = {"checkpoint": folder / "picks.npz", **HOW}
    if how == "whole":
        with np.load(folder / "picks.npz") as held:
            assert 0 < len(held["indices"]) < K
        expected = smartgpu.select_partitioned(X, K, **HOW)
        assert smartgpu.select_partitioned(x, K, **again).indices.tolist() == expected.indices.tolist()
        return
    with pytest.raises(
        ValueError, match=r"picks\.npz is of another selection.*objective\.represented\.sha256"
    ):
        smartgpu.select_partitioned(x, K, **again)
    assert "partition greedy:" not in caplog.text  # before the first round
    picks = {"checkpoint": tmp_path / "exact.npz", "backend": "numpy", "threads": 1}
    rows = slice(1000, 1300)
    smartgpu.select(X[rows], 5, **picks)
    with pytest.raises(ValueError, match=r"exact\.npz is of another selection.*data: "):
        smartgpu.select(x[rows], 5, **picks)


@pytest.mark.parametrize("how", ["truncated", "missing", "reordered", "changed"])
def test_the_command_refuses_shards_that_changed(tmp_path, capsys, how):
    (tmp_path / "shards").mkdir()
    shards(tmp_path / "shards", "npy")
    (tmp_path / "pool.jsonl").write_text("".join(f'{{"id": {i}}}\n' for i in range(N)))
    command = ["select", str(tmp_path / "pool.jsonl"), "--embeddings", str(tmp_path / "shards"), "-k", "5"]
    command += ["--partition", "random", "--parts", "6", "--backend", "numpy", "--out", str(tmp_path / "out")]
    assert main([*command, "--quiet"]) == 0
    damage(tmp_path / "shards", how)
    assert main(command) == 2
    texts = {
        "truncated": "part-2.npy: not a readable npy file, or a truncated one",
        "missing": "must have one row per pool row: 3000 in",
    }
    assert texts.get(how, "a selection of other options or data (embeddings: ") in capsys.readouterr().err


def test_processes_that_map_into_one_file_do_not_disturb_each_other(tmp_path):
    (tmp_path / "pool").mkdir()
    shards(tmp_path / "pool", "npy")
    with ThreadPoolExecutor(4) as several:
        maps = list(several.map(lambda _: map_embeddings(tmp_path / "pool", tmp_path / "all.npy"), range(12)))
    assert all(np.array_equal(x, X) for x in maps)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["all.npy", "pool"]
