"""Partition greedy: what it chooses is worth what it says, keeps to the memory, and does not depend on processes."""

import dataclasses
import io
import json
import os
import shutil
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from test_ranks import caught, together

import smartgpu
from smartgpu import checkpoint, partition_rounds
from smartgpu.cli import main
from smartgpu.io import map_embeddings
from smartgpu.partition import estimate
from smartgpu.partition_rounds import _split_large

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


# -- further rounds ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PARTITIONS)
@pytest.mark.parametrize("rounds", [3, 5])
def test_further_rounds(exact, name, rounds):
    got = smartgpu.select_partitioned(X, K, partition=PARTITIONS[name], rounds=rounds, candidates=4, **HOW)
    assert got.value == pytest.approx(covered(got.indices), rel=1e-5)
    assert 0.95 * exact.value < got.value < 1.03 * exact.value
    said = got.approximation
    left = [each["candidates"] for each in said["by_round"]]
    assert (said["rounds"], len(left), said["candidates"]) == (rounds, rounds - 1, left[-1])
    for r, count in enumerate(left, 1):  # but for what every part rounds
        assert count == pytest.approx(N * (4 * K / N) ** (r / (rounds - 1)), abs=6)
    assert said["by_round"][0]["parts"] == 6
    if name != "labels":  # parts are as large in every round
        assert all(
            each["parts"] <= -(-before // 500) + 2 * (name == "cluster")
            for each, before in zip(said["by_round"], [N, *left], strict=False)
        )
    assert f"partition greedy in {rounds} rounds: 6 parts" in str(got) and f"{left[0]}, then" in str(got)
    assert got.method == f"approximate, partition greedy in {rounds} rounds"


def test_all_candidates_of_further_rounds_are_exact(exact):
    got = smartgpu.select_partitioned(X, K, candidates=N / K, rounds=4, **{**HOW, "parts": 1})
    assert got.indices.tolist() == exact.indices.tolist() and got.gains.tolist() == exact.gains.tolist()


@pytest.mark.parametrize("weights", [None, W], ids=["", "weights"])
def test_a_row_counts_for_those_nearest_to_it(tmp_path, weights):
    """The second round of three is greedy on the first one's rows, each with what was nearest to it in its part."""
    labels = PARTITIONS["labels"]
    how = {**HOW, "partition": labels, "weights": weights, "checkpoint": tmp_path / "run.npz"}
    smartgpu.select_partitioned(X, K, rounds=3, **how)
    kept = checkpoint.PartsCheckpoint(tmp_path / "run.parts.npz", record(tmp_path)).load()
    x = X.astype(np.float64)
    x /= np.maximum(np.linalg.norm(x, axis=1), 1e-300)[:, None]
    counts = np.ones(N) if weights is None else weights
    assert len(kept) == 12
    for part in range(6):
        rows, chosen = np.flatnonzero(labels == part), np.sort(kept[0, part].rows)
        nearest = chosen[(x[rows] @ x[chosen].T).argmax(axis=1)]
        stand = np.array([counts[rows[nearest == j]].sum() for j in chosen])
        found = kept[0, part].weights[np.argsort(kept[0, part].rows)]
        np.testing.assert_allclose(found, stand, rtol=1e-12)
        after = kept[1, part].rows
        got = smartgpu.select(
            X[chosen], len(after), smartgpu.FacilityLocation(found), backend="numpy", threads=1
        )
        assert chosen[got.indices].tolist() == after.tolist()


# -- a represented sample ----------------------------------------------------------------------------------------------


def test_an_interval_holds_the_sum_as_often_as_it_says(rng):
    y = rng.random(3000) ** 3
    for m in (100, 1000, 2900):
        draws = [estimate(y[rng.choice(3000, m, replace=False)], 3000) for _ in range(1000)]
        inside = np.mean([low <= y.sum() <= high for _, low, high in draws])
        assert 0.92 < inside < 0.97
        values = np.array([value for value, _, _ in draws])
        assert abs(values.mean() - y.sum()) < 4 * values.std() / 1000**0.5
    assert estimate(y, 3000) == (pytest.approx(y.sum()),) * 3


def test_a_represented_sample_says_its_error():
    held, over = [], []
    how = {**HOW, "parts": 2, "candidates": 2, "sample": 0}
    for seed in range(40):
        weights = W if seed % 2 else None
        got = smartgpu.select_partitioned(X, K, represented=300, weights=weights, seed=seed, **how)
        said, true = got.approximation, covered(got.indices, weights)
        low, high = said["interval"]
        assert low < got.value < high and said["represented"] == 300 and not got.exact
        assert said["share"] == got.value / said["total"]
        assert said["share_interval"] == [low / said["total"], high / said["total"]]
        assert said["value_on_represented"] == pytest.approx(got.gains.sum())
        held.append(low <= true <= high)
        over.append((said["value_on_represented"] - true) / true)
        assert abs(got.value / true - 1) < 0.15
    assert 34 <= sum(held) <= 40  # 38 are expected
    assert np.mean(over) > 0.005  # what was optimised is worth more there than in truth


def test_picks_are_those_for_the_sample():
    got = smartgpu.select_partitioned(
        X, K, represented=0.2, candidates=N / K, sample=0, **{**HOW, "parts": 1}
    )
    rows = np.sort(np.random.default_rng([0, 2]).choice(N, 600, replace=False))
    expected = smartgpu.select(X, K, smartgpu.FacilityLocation(None, X[rows]), backend="numpy", threads=1)
    assert got.indices.tolist() == expected.indices.tolist()
    np.testing.assert_allclose(got.gains, 5 * expected.gains, rtol=1e-12)
    with pytest.raises(ValueError, match="represented must be more than 100 rows: all that were drawn have"):
        weights = np.zeros(N)
        weights[7] = 1
        smartgpu.select_partitioned(X, K, represented=100, weights=weights, **HOW)


@pytest.mark.parametrize("weights", [None, W], ids=["", "weights"])
def test_a_sample_of_all_rows_is_the_pool(weights):
    whole = smartgpu.select_partitioned(X, K, weights=weights, **HOW)
    got = smartgpu.select_partitioned(X, K, weights=weights, represented=N, **HOW)
    assert got.indices.tolist() == whole.indices.tolist() and got.gains.tolist() == whole.gains.tolist()
    assert got.value == pytest.approx(whole.value, rel=1e-9)
    said = got.approximation
    assert (
        said["interval"] == [got.value, got.value]
        and said["largest_gain"] == whole.approximation["largest_gain"]
    )
    assert smartgpu.select_partitioned(X[:60], 3, parts=2, represented=60, backend="numpy").k == 3


def test_a_pool_of_zeros_is_worth_nothing():
    got = smartgpu.select_partitioned(np.zeros((300, 4), np.float32), 3, represented=150, rounds=3, parts=3)
    said = got.approximation
    assert (got.k, got.value, said["total"], said["interval"]) == (3, 0.0, 0.0, [0.0, 0.0])
    assert said["share"] is said["share_interval"] is None and "of f(V)" not in str(got)


def test_an_estimate_is_not_taken_for_the_value(tmp_path):
    got = smartgpu.select_partitioned(X, K, represented=300, **HOW)
    assert got.method == "approximate, partition greedy in 2 rounds, for a sample of the rows"
    text = str(got)
    assert f"f(S)     about {got.value:.6g} (" in text and "95% sure), estimated on 300 random rows" in text
    assert "f(S) is about" in text
    loaded = smartgpu.Selection.load(got.save(tmp_path / "got.npz"))
    assert loaded.value == got.value and loaded.approximation == got.approximation and not loaded.exact
    short = got.prefix(K - 1)
    assert short.approximation["value_on_represented"] == short.value == pytest.approx(got.gains[:-1].sum())
    assert "interval" not in short.approximation and "on 300 represented rows, scaled: too large" in str(
        short
    )
    assert got.prefix(K).value == got.value and not short.exact
    pytest.importorskip("jinja2")
    from smartgpu.reporting import _of_selection

    assert _of_selection(got, (), (), ()).covered is None
    assert _of_selection(smartgpu.select_partitioned(X, K, **HOW), (), (), ()).covered is not None


def test_on_triton(device):
    x, how = X[:110], {"parts": 2, "rounds": 3, "candidates": 2, "represented": 100, "sample": 9}
    got = smartgpu.select_partitioned(x, 3, backend="triton", **how)
    host = smartgpu.select_partitioned(x, 3, backend="numpy", **how)
    assert got.backend == "triton" and len(set(got.indices.tolist())) == 3
    assert got.approximation["by_round"] == host.approximation["by_round"]
    assert got.value == pytest.approx(host.value, rel=0.02)  # features are 16-bit: others may be picked


# -- processes ---------------------------------------------------------------------------------------------------------

VARIANTS = [
    *({"partition": partition} for partition in PARTITIONS.values()),
    {"partition": "cluster", "rounds": 3, "represented": 400},
]


def processes(rank, folder):
    x = np.load(folder / "x.npy", mmap_mode="r")
    how = {**HOW, "process_group": "world", "memory": "60MB"}
    found = [smartgpu.select_partitioned(x, K, **variant, **how) for variant in VARIANTS]
    other = x if rank == 0 else np.asarray(x) + np.float16(1)
    refused = caught(lambda: smartgpu.select_partitioned(other, K, **how))
    return [(s.indices.tolist(), s.gains.tolist(), s.value, s.approximation) for s in found], refused


def test_the_result_does_not_depend_on_processes(tmp_path):
    np.save(tmp_path / "x.npy", X)
    found = together(processes, 2, tmp_path)
    for selections, refused in found:
        for got, variant in zip(selections, VARIANTS, strict=True):
            one = smartgpu.select_partitioned(X, K, **variant, **HOW)
            assert got == (one.indices.tolist(), one.gains.tolist(), one.value, one.approximation)
        assert type(refused) is ValueError and "rank 1" in str(refused) and "data" in str(refused)


@pytest.mark.parametrize("parts", [None, 2])
def test_too_little_memory_is_refused_with_what_would_do(rng, parts):
    x, how = (
        rng.standard_normal((3000, 16)).astype(np.float32),
        {"backend": "numpy", "threads": 1, "parts": parts},
    )
    with pytest.raises(
        ValueError, match=r"memory must be at least [0-9.]+MB for \d+ parts, got 10.0kB"
    ) as refused:
        smartgpu.select_partitioned(x, 5, memory="10KB", **how)
    least = str(refused.value).split()[5]
    assert smartgpu.select_partitioned(x, 5, memory=least, **how).k == 5


def test_what_is_held_keeps_to_the_memory(tmp_path, rng):
    pool = np.lib.format.open_memmap(tmp_path / "pool.npy", "w+", np.float32, (16_000, 8))
    pool[:] = rng.standard_normal((50, 8))[rng.integers(50, size=16_000)] + rng.standard_normal((16_000, 8))
    how = {"backend": "numpy", "threads": 1, "candidates": 2, "sample": 100}
    tracemalloc.start()
    try:
        got = smartgpu.select_partitioned(pool, 10, memory="20MB", **how)
        held = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert 5e6 < held < 20e6, f"held {held:,}"
    assert got.k == 10 and got.options["memory"] == 20_000_000


# -- a checkpoint of the parts -----------------------------------------------------------------------------------------

KEPT = {**HOW, "parts": 24, "rounds": 3}


class Counted:
    """Stands for partition_rounds.attempt: counts parts, and fails instead of the last that it lets through."""

    def __init__(self, most=np.inf, fail=None):
        self.most, self.fail, self.count, self.attempt = most, fail, 0, partition_rounds.attempt

    def __call__(self, *args):
        if self.count >= self.most:
            self.fail()
        self.count += 1
        return self.attempt(*args)


def interrupt():
    raise KeyboardInterrupt


def picks(selection):
    return selection.indices.tolist(), selection.gains.tolist(), selection.value, selection.approximation


@pytest.fixture(scope="module")
def uninterrupted():
    return smartgpu.select_partitioned(X, K, **KEPT)


@pytest.mark.parametrize("most", [1, 9, 26])  # the last of these in the second round
def test_a_run_goes_on_with_the_parts_that_are_done(tmp_path, monkeypatch, uninterrupted, most):
    how = {**KEPT, "checkpoint": tmp_path / "run.npz"}
    stopped, counted = Counted(most, interrupt), Counted()
    monkeypatch.setattr(partition_rounds, "attempt", stopped)
    with pytest.raises(KeyboardInterrupt):
        smartgpu.select_partitioned(X, K, **how)
    assert [p.name for p in tmp_path.iterdir()] == ["run.parts.npz"]
    monkeypatch.setattr(partition_rounds, "attempt", counted)
    got = smartgpu.select_partitioned(X, K, **how)
    parts = sum(each["parts"] for each in uninterrupted.approximation["by_round"])
    assert counted.count == parts - most
    assert picks(got) == picks(uninterrupted) and got.evaluations == uninterrupted.evaluations
    assert picks(smartgpu.select_partitioned(X, K, **how)) == picks(got) and counted.count == parts - most


def test_parts_are_kept_while_others_are_chosen(tmp_path, monkeypatch, uninterrupted):
    """What a kill leaves is what was written last, not what an exception still writes."""
    found = []

    def look():
        found.append(len(checkpoint.PartsCheckpoint(tmp_path / "run.parts.npz", record(tmp_path)).load()))
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "SECONDS", 0)
    monkeypatch.setattr(partition_rounds, "attempt", Counted(9, look))
    with pytest.raises(KeyboardInterrupt):
        smartgpu.select_partitioned(X, K, **KEPT, checkpoint=tmp_path / "run.npz")
    assert found == [9]


def record(folder):
    return json.loads(str(np.load(folder / "run.parts.npz")["record"]))


def test_parts_of_another_call_are_refused(tmp_path):
    path = tmp_path / "run.npz"
    how = {**HOW, "checkpoint": path}
    smartgpu.select_partitioned(X, K, **how)
    path.unlink()
    for more, text in (
        ({"seed": 1}, "options.seed: 0 there, 1 now"),
        ({"parts": 5}, "parts: 6 there, 5 now"),
        ({"rounds": 3}, "rounds: 2 there, 3 now"),
        ({"candidates": 5}, "candidates: 300.0 there, 150.0 now"),
        ({"weights": W}, "weights: None there"),
        ({"partition": "cluster"}, "partition: 'random' there, 'cluster' now"),
        ({"similarity": "rbf"}, "similarity.name: 'cosine' there, 'rbf' now"),
        ({"X": X + np.float16(1)}, "data: '"),
    ):
        with pytest.raises(
            ValueError, match=r"run\.parts\.npz is of another selection; remove it"
        ) as refused:
            smartgpu.select_partitioned(**{"X": X, "k": K, **how, **more})
        assert text in str(refused.value)
    parts = tmp_path / "run.parts.npz"
    whole = parts.read_bytes()
    parts.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"run\.parts\.npz cannot be read .*; remove it to start anew"):
        smartgpu.select_partitioned(X, K, **how)
    arrays = dict(np.load(io.BytesIO(whole)))
    np.savez(parts, **{**arrays, "rows": arrays["rows"][1:]})
    with pytest.raises(ValueError, match="its arrays do not fit"):
        smartgpu.select_partitioned(X, K, **how)
    parts.write_bytes(whole)
    # what only the last round depends on may differ
    assert smartgpu.select_partitioned(X, K, represented=300, sample=0, **how).k == K


def killed(rank, folder):
    x = np.load(folder / "x.npy", mmap_mode="r")
    how = {**KEPT, "process_group": "world", "checkpoint": folder / "run.npz"}
    if rank == 1:
        partition_rounds.attempt = Counted(6, lambda: os._exit(1))
    return str(caught(lambda: smartgpu.select_partitioned(x, K, **how)))


def resumed(rank, folder):
    x = np.load(folder / "x.npy", mmap_mode="r")
    partition_rounds.attempt = Counted()
    got = smartgpu.select_partitioned(
        x, K, **KEPT, process_group="world", checkpoint=folder / "two" / "run.npz"
    )
    return picks(got), partition_rounds.attempt.count


def test_any_number_of_processes_goes_on(tmp_path, monkeypatch, uninterrupted):
    np.save(tmp_path / "x.npy", X)
    first, gone = together(killed, 2, tmp_path)
    assert gone is None and "rank 1" in first and "ended the run" in first
    done = len(checkpoint.PartsCheckpoint(tmp_path / "run.parts.npz", record(tmp_path)).load())
    assert 8 <= done < 24  # of three exchanges of eight parts the first, and what rank 0 has chosen since
    (tmp_path / "two").mkdir()
    (tmp_path / "two" / "run.parts.npz").write_bytes((tmp_path / "run.parts.npz").read_bytes())
    parts = sum(each["parts"] for each in uninterrupted.approximation["by_round"])
    one = Counted()
    monkeypatch.setattr(partition_rounds, "attempt", one)
    got = smartgpu.select_partitioned(X, K, **KEPT, checkpoint=tmp_path / "run.npz")
    assert picks(got) == picks(uninterrupted) and one.count == parts - done
    (a, counted), (b, more) = together(resumed, 2, tmp_path)
    assert a == b == picks(uninterrupted) and counted + more == parts - done and min(counted, more) > 0


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
        ({"candidates": True}, "candidates must be a number >= 1"),
        ({"rounds": 1}, "rounds must be an integer >= 2, got 1"),
        ({"rounds": 2.5}, "rounds must be an integer >= 2, got 2.5"),
        ({"rounds": True}, "rounds must be an integer >= 2, got True"),
        (
            {"represented": 99},
            "represented must be at least 100 rows, for an interval to be believed, got 99",
        ),
        ({"represented": 0.01}, "represented must be at least 100 rows"),
        (
            {"represented": N + 1},
            "represented must be at most the number of rows to choose from, 3000, got 3001",
        ),
        ({"represented": 1.5}, "represented as a share must lie in"),
        ({"checkpoint": "run.bin"}, r"checkpoint must be a file name that ends in \.npz, got 'run\.bin'"),
        ({"checkpoint": "run.npz", "maximizer": "stochastic"}, "checkpoint is for exact maximizers"),
        ({"backend": "reference"}, "backend 'reference' is not for select_partitioned"),
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
    long = dataclasses.replace(planned, seconds=1e5, sweeps=4.0)
    assert "about 28 hours" in str(long) and "select_partitioned" in str(long)
    for other in ({"similarity": "dot"}, {"objective": "saturated_coverage"}, {"seconds": 3600.0}):
        assert "select_partitioned" not in str(dataclasses.replace(long, **other))  # where it can help alone


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
        (["--rounds", "3"], "--rounds is an option of --partition"),
        (["--represented", "300"], "--represented is an option of --partition"),
        (["--partition", "random", "--rounds", "1"], "rounds must be an integer >= 2, got 1"),
        (["--partition", "random", "--represented", "9"], "--represented must be at least 100 rows"),
        (["--partition", "random", "--parts", "9999"], "--parts must be at most"),
        (
            ["--partition", "random", "--objective", "graph_cut"],
            "--objective cannot be combined with --partition",
        ),
        (["--partition", "random", "--similarity", "dot"], "--partition needs --similarity"),
    ):
        assert main([*command, *more, "--out", str(tmp_path / "no")]) == 2
        assert text in capsys.readouterr().err


def test_the_command_goes_on_and_says_what_it_estimated(tmp_path, capsys, monkeypatch):
    np.save(tmp_path / "pool.npy", X)
    command = ["select", str(tmp_path / "pool.npy"), "-k", str(K), "--backend", "numpy", "--format", "csv"]
    command += ["--partition", "cluster", "--parts", "6", "--rounds", "3", "--represented", "0.1"]
    command += ["--out", str(tmp_path / "out")]
    stopped, counted = Counted(4, interrupt), Counted()
    monkeypatch.setattr(partition_rounds, "attempt", stopped)
    assert main(command) == 130
    assert (tmp_path / "out" / ".partial" / "picks.parts.npz").exists()
    monkeypatch.setattr(partition_rounds, "attempt", counted)
    capsys.readouterr()
    assert main(command) == 0
    out = capsys.readouterr().out
    assert "partition greedy in 3 rounds" in out and "estimated on 300 random rows" in out
    manifest = json.loads((tmp_path / "out" / "selection.json").read_text())
    how = {"partition": "cluster", "rounds": 3, "represented": 0.1, **HOW}
    expected = smartgpu.select_partitioned(X, K, **how)
    assert manifest["approximation"] == expected.approximation and manifest["exact"] is False
    assert manifest["value"] == expected.value and not (tmp_path / "out" / ".partial").exists()
    parts = sum(each["parts"] for each in expected.approximation["by_round"])
    assert counted.count == 2 * parts - 4  # the second time for `expected`


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
