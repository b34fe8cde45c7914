"""Selections by several processes: bit for bit those of one, and what happens when a process fails.

Processes are spawned once for a number of ranks and make all calls, which CASES names; ranks are on the CPU, over gloo.
"""

import dataclasses
import os
import pickle
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT

import smartgpu
from smartgpu import (
    Clustered,
    ConcaveOverModular,
    DisparityMin,
    DisparitySum,
    FacilityLocation,
    FacilityLocationCMI,
    FacilityLocationMI,
    FeatureBased,
    GraphCut,
    LogDet,
    Modular,
    Near,
    QualityDiversity,
    Quotas,
    SaturatedCoverage,
    SumRedundancy,
    launch,
)
from smartgpu.backends import sharded
from smartgpu.backends.numpy import NumpyBackend
from smartgpu.cli import main
from smartgpu.groups import deal
from smartgpu.io import read_embeddings
from smartgpu.job import Job
from smartgpu.objectives.set_function import SetFunction
from smartgpu.options import Options
from smartgpu.ranks import RankError, Ranks
from smartgpu.shares import BLOCK, MOST, share
from smartgpu.shares import FEW as FEW_BLOCKS
from smartgpu.workers import Workers

N, D = 2100, 12  # more pairs than are stored unasked: bounds, sweeps, batches, then survivors
FEW = 230


def pool(n=N):
    rng = np.random.default_rng(7)
    x = rng.standard_normal((9, D))[rng.integers(9, size=n)] + rng.standard_normal((n, D))
    x[n // 2 :: 5] = x[: len(x[n // 2 :: 5])]  # copies, whose gains tie
    return x.astype(np.float32)


X, SMALL = pool(), pool(FEW)
Q = np.random.default_rng(3).random(N)
GROUPS = np.arange(N) % 6
MATRIX = (SMALL @ SMALL.T).astype(np.float32)
SKEWED = MATRIX * np.random.default_rng(4).random(MATRIX.shape).astype(np.float32)
TIGHT = "14MB"  # not enough for the survivors of X: batches of columns all the way


def sparse():
    scipy = pytest.importorskip("scipy.sparse")
    return scipy.csr_matrix(np.where(MATRIX > 8, MATRIX, 0))


def least(k):
    """So little memory that there is no room for survivors at all."""
    return smartgpu.plan(X, k, backend="numpy", threads=1).least


def worth(rows):
    return float(np.sqrt(np.maximum(rows, 0).sum()))


# name -> () -> (X, k, objective, similarity, more arguments)
CASES = {
    "fl": lambda: (X, 50, FacilityLocation(), "cosine", {}),
    "fl-tight": lambda: (X, 14, FacilityLocation(), "cosine", {"memory": TIGHT}),
    "fl-least": lambda: (X, 8, FacilityLocation(), "cosine", {"memory": least(8)}),
    "fl-weights": lambda: (X, 20, FacilityLocation(Q), "dot", {}),
    "fl-weights-tight": lambda: (X, 14, FacilityLocation(Q), "cosine_squared", {"memory": TIGHT}),
    "fl-rbf": lambda: (X, 14, FacilityLocation(), "rbf", {}),
    "fl-exp": lambda: (SMALL, 14, FacilityLocation(), "exp_euclidean", {}),
    "fl-max-minus": lambda: (X, 14, FacilityLocation(), "max_minus_sqeuclidean", {}),
    "fl-float16": lambda: (X.astype(np.float16), 60, FacilityLocation(), "cosine", {}),
    "fl-represented": lambda: (X, 14, FacilityLocation(Q[:1950], X[:1950] + 1), "cosine_shifted", {}),
    "fl-one-represented": lambda: (X, 5, FacilityLocation(None, X[:1]), "cosine", {}),
    "fl-all": lambda: (SMALL[:50], 50, FacilityLocation(), "cosine", {}),
    "fl-high": lambda: (X, 14, FacilityLocation(), "cosine", {"tie_break": "high"}),
    "fl-given": lambda: (
        X,
        24,
        FacilityLocation(),
        "cosine",
        {"given": np.arange(40), "exclude": np.arange(50, 900)},
    ),
    "fl-outside": lambda: (X, 14, FacilityLocation(), "cosine", {"given": X[:30] + 0.5}),
    "fl-include": lambda: (X, 12, FacilityLocation(), "cosine", {"include": [2000, 3, 77]}),
    "fl-near": lambda: (X, 12, FacilityLocation(), "cosine", {"exclude": Near(X[:4], 0.8)}),
    "fl-coverage": lambda: (X, None, FacilityLocation(Q), "rbf", {"coverage": 0.15}),
    "fl-budget": lambda: (X, None, FacilityLocation(), "cosine", {"budget": 6.0, "cost": Q + 0.1}),
    "fl-quotas": lambda: (X, 14, FacilityLocation(), "cosine", {"quotas": Quotas(GROUPS, {0: 4}, 4)}),
    "fl-naive": lambda: (X, 3, FacilityLocation(), "cosine", {"maximizer": "naive"}),
    "fl-stochastic": lambda: (X, 20, FacilityLocation(), "cosine", {"maximizer": "stochastic", "seed": 5}),
    "fl-threshold": lambda: (X, 20, FacilityLocation(), "cosine", {"maximizer": "threshold", "epsilon": 0.1}),
    "qdit": lambda: (X, 14, QualityDiversity(0.4, Q), "cosine", {}),
    "qdit-budget": lambda: (X, None, QualityDiversity(0.4, Q), "cosine", {"budget": 5.0, "cost": Q + 0.1}),
    "modular": lambda: (X, 20, Modular(Q), "cosine", {}),
    "mi": lambda: (X, 14, FacilityLocationMI(X[:25] + 0.3), "cosine", {}),
    "cmi": lambda: (X, 14, FacilityLocationCMI(X[:25] + 0.3, X[90:95] + 0.2), "cosine", {}),
    "gc": lambda: (X, 14, GraphCut(), "cosine", {}),
    "gc-rbf": lambda: (SMALL, 14, GraphCut(0.3), "rbf", {}),
    "gc-represented": lambda: (SMALL, 10, GraphCut(0.8, SMALL[:90] + 1), "cosine_squared", {}),
    "logdet": lambda: (X, 14, LogDet(), "cosine", {}),
    "logdet-rbf": lambda: (SMALL, 10, LogDet(), "rbf", {}),
    "sum": lambda: (
        X,
        24,
        0.5 * FacilityLocation(Q) + 0.3 * FacilityLocation(None, X[:900]) + 0.1 * GraphCut() + LogDet(),
        "cosine",
        {},
    ),
    "saturated": lambda: (SMALL, 10, SaturatedCoverage(), "rbf", {}),
    "saturated-tight": lambda: (X, 12, SaturatedCoverage(0.05), "rbf", {"memory": TIGHT}),
    "query": lambda: (SMALL, 10, ConcaveOverModular(SMALL[:9] + 0.1), "rbf", {}),
    "features": lambda: (SMALL, 10, FeatureBased(np.abs(SMALL)), "cosine", {}),
    "disparity-sum": lambda: (SMALL, 10, DisparitySum(), "cosine", {}),
    "disparity-min": lambda: (SMALL, 10, DisparityMin(), "rbf", {}),
    "redundancy": lambda: (SMALL, 10, SumRedundancy(), "cosine_shifted", {}),
    "clustered": lambda: (X, 14, Clustered("facility_location", GROUPS), "cosine", {}),
    "function": lambda: (SMALL, 6, SetFunction(worth, SMALL), "cosine", {}),
    "matrix-fl": lambda: (MATRIX, 10, FacilityLocation(), "precomputed", {}),
    "matrix-oblong": lambda: (SKEWED[:101], 10, FacilityLocation(Q[:101]), "precomputed", {}),
    "matrix-gc": lambda: (SKEWED, 10, GraphCut(), "precomputed", {}),
    "matrix-redundancy": lambda: (SKEWED, 10, SumRedundancy(), "precomputed", {}),
    "csr-fl": lambda: (sparse(), 10, FacilityLocation(), "precomputed", {}),
    "csr-saturated": lambda: (sparse(), 10, SaturatedCoverage(0.01), "precomputed", {}),
    "triton-fl": lambda: (SMALL[:90], 12, FacilityLocation(Q[:90]), "cosine", {"backend": "triton"}),
    "triton-represented": lambda: (
        (SMALL[:40], 4, FacilityLocation(Q[:70], SMALL[:70] + 1), "cosine", {"backend": "triton"})
    ),
    "triton-gc": lambda: (SMALL[:60], 5, GraphCut(), "rbf", {"backend": "triton"}),
}


def ask(name, **more):
    x, k, objective, similarity, arguments = CASES[name]()
    return smartgpu.select(
        x, k, objective, similarity, **{"threads": 1, "backend": "numpy", **arguments, **more}
    )


TASKS = np.sort(np.random.default_rng(5).integers(9, size=N))  # of unlike sizes
TEMPLATES = np.arange(N) % 2
COMMON = {"threads": 1, "backend": "numpy", "memory": None}
MANY = {
    "groups": lambda how: smartgpu.select_many(X, TASKS, 9, **COMMON, **how),
    "groups-graph-cut": lambda how: smartgpu.select_many(X, TASKS, 5, GraphCut(), "rbf", **COMMON, **how),
    "groups-budget": lambda how: smartgpu.select_many(X, TASKS, 2.0, cost=Q + 0.1, **COMMON, **how),
    "mixture": lambda how: smartgpu.mix(X, TASKS, 5, 80, TEMPLATES, **COMMON, **how),
    "mixture-budget": lambda how: smartgpu.mix(X, TASKS, 5, cost=Q + 0.1, budget=30.0, **COMMON, **how),
    "mixture-quotas": lambda how: smartgpu.mix(X, TASKS, 5, 80, quotas=Quotas(GROUPS, 12), **COMMON, **how),
}


def picks(found):
    """(label, indices, gains) of all groups; the tasks of a mixture, and its rows."""
    if isinstance(found, dict):
        return [(name, got.indices.tolist(), got.gains.tolist(), got.value) for name, got in found.items()]
    return [(t.task, t.budget, t.indices.tolist()) for t in found.tasks], found.indices.tolist()


# -- processes ---------------------------------------------------------------------------------------------------------


def start(rank, size, port, work, folder):
    """One process: what work(rank, folder) gives goes to a file, an exception in its place."""
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    os.environ["WORLD"] = str(size)
    store = dist.TCPStore("127.0.0.1", port, is_master=False)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size)
    try:
        found = work(rank, folder)
    except Exception as error:  # noqa: BLE001 - whatever it is, the test shows it
        found = error
    (folder / f"part{rank}").write_bytes(pickle.dumps(found))
    (folder / f"part{rank}").rename(folder / f"rank{rank}")
    os._exit(0)  # a message that nobody answers any more keeps no process


def together(work, size, folder: Path, seconds=240):
    """What each process gave, in order; None for one that did not come to an end."""
    torch = pytest.importorskip("torch")
    if not torch.distributed.is_available():
        pytest.skip("this torch was built without torch.distributed")
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    context = torch.multiprocessing.get_context("spawn")
    processes = [context.Process(target=start, args=(r, size, store.port, work, folder)) for r in range(size)]
    for process in processes:
        process.start()
    try:
        end = time.monotonic() + seconds
        for process in processes:
            process.join(max(end - time.monotonic(), 0))
    finally:
        for process in processes:
            process.kill()
            process.join()
    files = [folder / f"rank{r}" for r in range(size)]
    return [pickle.loads(file.read_bytes()) if file.exists() else None for file in files]


def caught(work):
    try:
        return work()
    except Exception as error:  # noqa: BLE001 - which one is looked at
        return error


def grouped(name):
    told = []
    found = MANY[name]({"process_group": "world", "report": lambda key, _: told.append(key)})
    return picks(found), told


# survivors are gathered on all ranks where they are few, as here; these once more, where they never are
APART = ("fl", "fl-weights", "fl-represented", "fl-coverage", "fl-quotas", "qdit", "cmi", "sum", "triton-fl")


def all_cases(rank, folder):
    found, looks = {}, []
    sharded.MEET = 3
    advance = sharded.GatheredLoop.advance
    sharded.GatheredLoop.advance = lambda *how: looks.append(how) or advance(*how)
    for name in CASES:
        if name.startswith("triton") and os.environ["WORLD"] != "2":  # slow in the interpreter: once
            continue
        try:
            found[name] = ask(name, process_group="world")
        except (Exception, pytest.skip.Exception) as error:  # noqa: BLE001 - shown by the test of it
            found[name] = error
    for name in MANY:
        found[name] = grouped(name)
    found["looks"] = len(looks)
    sharded.GATHER = 0
    for name in APART:
        if name in found:
            found[f"{name} apart"] = caught(lambda name=name: ask(name, process_group="world"))
    return found


@pytest.fixture(scope="module", params=[1, 2, 3], ids="W{}".format)
def selections(request, tmp_path_factory):
    size = request.param
    found = together(all_cases, size, tmp_path_factory.mktemp(f"ranks{size}"))
    for each in found:
        if not isinstance(each, dict):
            raise AssertionError(f"a process failed: {each!r}")
    return found


@pytest.fixture(scope="module")
def alone():
    held = {}

    def get(name):
        if name not in held:
            held[name] = ask(name)
        return held[name]

    return get


@pytest.mark.parametrize("name", [*CASES, *(f"{name} apart" for name in APART)])
def test_result_is_that_of_one_process(selections, alone, name):
    if name.startswith("triton"):
        pytest.importorskip("triton")
        if len(selections) != 2:
            pytest.skip("with two processes")
    expected = alone(name.removesuffix(" apart"))
    for got in (each[name] for each in selections):
        if isinstance(got, Exception):
            raise got
        assert got.indices.tolist() == expected.indices.tolist()
        assert got.gains.tolist() == expected.gains.tolist()
        assert (got.value, got.base_value, got.n) == (expected.value, expected.base_value, expected.n)
        assert got.limits == expected.limits


@pytest.mark.parametrize("name", MANY)
def test_groups_dealt_out_give_what_one_process_gives(selections, name):
    expected = picks(MANY[name]({}))
    for got, told in (each[name] for each in selections):
        assert got == expected
        assert len(told) == len(set(map(str, told)))
        if name == "groups":
            assert sorted(told) == sorted(set(TASKS.tolist()))


@pytest.mark.parametrize("size", [1, 2, 5])
@pytest.mark.parametrize("most", [1, 7, 1000])
def test_lists_of_all_ranks_are_put_together(rng, monkeypatch, size, most):
    monkeypatch.setattr(sharded, "MERGED", most)
    counts = rng.integers(4, size=(size, 30)).astype(np.int32)
    counts[:, :2] = counts[0, -3:] = 0
    parts = [
        [rng.integers(100, size=count).astype(np.int32) for count in of_rank] for of_rank in counts.tolist()
    ]
    got = sharded.merge(counts, [np.concatenate(of_rank) for of_rank in parts])
    assert got.tolist() == [value for j in range(30) for of_rank in parts for value in of_rank[j]]


def test_ranks_that_saw_other_gains_are_found(monkeypatch):
    class Two:
        rank = 0

        def each(self, value, what):
            return np.array([value, value + 1])

    one = sharded.ShardedSparse.__new__(sharded.ShardedSparse)
    one.ranks, one.batches = Two(), 0
    monkeypatch.setattr(sharded, "MEET", 2)
    one.meet(np.arange(3))
    with pytest.raises(RuntimeError, match="rank 1 has found other gains than rank 0"):
        one.meet(np.arange(3))


@pytest.mark.parametrize("size", [1, 3, 8])
def test_groups_are_dealt_out_by_cost(rng, size):
    costs = dict(enumerate((rng.pareto(1.0, 200) + 0.1).tolist()))
    rounds = deal(costs, size)
    dealt = [g for hands in rounds for hand in hands for g in hand]
    assert sorted(dealt) == sorted(costs) and len(rounds) <= 9
    for hands in rounds:
        loads = [sum(costs[g] for g in hand) for hand in hands]
        largest = max(costs[g] for hand in hands for g in hand)
        assert max(loads) - min(loads) <= largest


def test_all_ways_of_facility_location_were_gone(selections):
    """Tight memory: dense work to the end; else survivors, sums of few columns a pick, or none where all have all."""
    if len(selections) == 1:
        assert all(selections[0][name].together is None for name in CASES if name in selections[0])
        return
    one, other, few = (selections[0][name] for name in ("fl apart", "fl-tight", "fl"))
    assert other.sweeps > one.sweeps == few.sweeps
    assert few.together["messages"] < one.together["messages"] / 1.5
    assert (selections[0]["looks"] > 0) == (
        len(selections) == 2
    )  # the loop on the device, where triton's cases ran
    for selection in (one, other):
        said = selection.together
        assert said["processes"] == len(selections) and selection.k < said["messages"] < 6 * selection.k
    assert one.together["bytes"] / one.k < 40_000 < 8 * N * one.k  # a few sums of all, small ones otherwise


# -- shares ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("r", [1, 2, 7, 1000, FEW_BLOCKS * BLOCK * 2, 10**6, 10**9])
@pytest.mark.parametrize("size", [1, 2, 3, 64])
def test_shares_are_whole_blocks_of_all_rows(r, size):
    if r < size:
        return
    shares = [share(r, rank, size) for rank in range(size)]
    assert [s.start for s in shares] == [0, *(s.stop for s in shares[:-1])] and shares[-1].stop == r
    sizes = [s.stop - s.start for s in shares]
    block = BLOCK if r >= FEW_BLOCKS * BLOCK * size else max(1, r // MOST)
    assert all(s.start % block == 0 for s in shares)
    assert min(sizes) > 0 and max(sizes) - min(sizes) <= 2 * block


def test_a_process_is_planned_with_its_share_of_represented_rows():
    rows = np.broadcast_to(np.float32(0), (10**8, 384))
    for kind, shared in ((smartgpu.similarity.Cosine(), True), (smartgpu.similarity.Dot(), False)):
        job = Job(np.zeros((1000, 384), np.float32), kind, FacilityLocation(), Options(backend="numpy"))
        shape = job.sized(10)._cost(10, False)[0]
        least = [
            sum(part.bytes for part in dataclasses.replace(shape, processes=w).represented(rows))
            for w in (1, 8)
        ]
        assert least[0] > 4 * 10**8 * 384
        assert (least[1] < 1.01 * least[0] / 8) is shared


@pytest.mark.parametrize("first", [0, BLOCK, 2 * BLOCK, 100])
def test_tiles_of_a_share_that_serve_both_sides(first):
    """A run of the candidates as represented rows, against the same rows by themselves."""
    x = np.concatenate([X, X[:2000]])
    kind = smartgpu.similarity.Cosine()
    whole = NumpyBackend.prepare(kind, x, workers=Workers(1))
    rows = slice(first, len(x) if first == 2 * BLOCK else first + BLOCK)
    run, apart = whole.part(rows), whole.part(rows)
    apart.first = None
    weights = np.random.default_rng(1).integers(1 << 30, size=rows.stop - rows.start)
    got, expected = [], []
    for out, part in ((got, run), (expected, apart)):
        backend = NumpyBackend(part, threads=2, memory=1 << 30)
        assert (backend.own is not None) == (part is run and first != 100)
        level = backend.new_level()
        backend.raise_level(level, np.array([5, 900]))
        found = backend.survivors(level)
        out += [backend.excess(level), backend.excess(level, backend.new_weights(weights)), backend.totals()]
        out += [found.ptr, found.rows, found.raw]
        out.append(backend.sweep_pairs)
    for one, other in zip(got[:-1], expected[:-1], strict=True):
        assert np.array_equal(one, other)
    assert (got[-1] < expected[-1]) == (first != 100)


# -- what is refused, and what happens when a process fails ----------------------------------------------------------

AT = 12  # picks, after which a process fails


def refusals(rank, folder):
    """Calls that are refused on all processes; the group is whole after each."""
    x, own = SMALL, SMALL.copy()
    own[5, 3] += 0.25 * rank
    calls = {
        "many": lambda: smartgpu.select_many(own, np.arange(FEW) % 3, 2, process_group="world"),
        "mix": lambda: smartgpu.mix(x, np.arange(FEW) % 3, 2 + rank, 9, process_group="world"),
        "data": lambda: smartgpu.select(own, 5, process_group="world"),
        "k": lambda: smartgpu.select(x, 5 + rank, process_group="world"),
        "seed": lambda: smartgpu.select(x, 5, process_group="world", maximizer="stochastic", seed=rank),
        "objective": lambda: smartgpu.select(x, 5, FacilityLocation(Q[:FEW] + rank), process_group="world"),
        "limits": lambda: smartgpu.select(x, 5, process_group="world", exclude=[rank]),
        "argument": lambda: smartgpu.select(x, 5 if rank == 0 else 500, process_group="world"),
        "rows": lambda: smartgpu.select(x[:1], 1, process_group="world"),
        "fallback": lambda: smartgpu.select(x, 5, process_group="world", fallback="numpy"),
        "polish": lambda: smartgpu.select(x, 5, process_group="world", polish=True),
        "reference": lambda: smartgpu.select(x, 5, process_group="world", backend="reference"),
        "group": lambda: smartgpu.select(x, 5, process_group="all"),
        "timeout": lambda: smartgpu.select(x, 5, process_group="world", timeout=0),
        "checkpoint": lambda: smartgpu.select(x, 5, process_group="world", checkpoint=folder / "other.npz"),
        "resumed": lambda: interrupted(folder / "picks.npz"),
        "whole": lambda: smartgpu.select(x, 5, process_group="world"),
    }
    found = {name: caught(call) for name, call in calls.items()}
    found["apart"] = caught(lambda: apart(rank, folder))
    found["handed"] = handed(rank, folder)
    found |= unshared(rank, folder)
    found["failing"] = caught(lambda: interrupted(None, boom if rank == 1 else None))
    return found


def handed(rank, folder):
    """What rank 0 of a command hands to the others: an array, a file of one, a part of a file, and a sparse matrix."""
    launch._crew = Ranks("world", 60.0)
    path = folder / "handed.npy"
    if rank == 0:
        np.save(path, SMALL)
    mapped = np.load(path, mmap_mode="r") if rank == 0 else None
    some = {
        "array": SMALL[::2],
        "file": mapped,
        "part": None if mapped is None else mapped[7:],
        "pickled": sparse(),
    }
    got = {name: launch._hand_out(x if rank == 0 else None) for name, x in some.items()}
    return {
        "array": np.array_equal(got["array"], SMALL[::2]),
        "file": np.array_equal(got["file"], SMALL) and isinstance(got["file"], np.memmap),
        "part": np.array_equal(got["part"], SMALL[7:]),
        "pickled": abs(got["pickled"] - sparse()).max() == 0,
    }


def apart(rank, folder):
    """A selection with a checkpoint in a folder that rank 0 alone sees: whether a file is left here."""
    path = folder / f"host{rank}" / "apart.npz"
    smartgpu.select(SMALL, 5, process_group="world", checkpoint=path)
    return path.exists()


UNSHARED = {
    "absent": "cannot read /proc/self/cwd/absent.npy (",
    "short": "cannot read /proc/self/cwd/short.npy (",
    "other": "finds another file than rank 0 as /proc/self/cwd/other.npy: all processes must see the same folder",
    "late": "was given other data, options or versions than rank 0",  # not among the rows that are looked at first
}


def unshared(rank, folder):
    """What rank 0 maps by a name that leads each process to a folder of its own, as on hosts that share none."""
    home = folder / f"host{rank}"
    home.mkdir(exist_ok=True)
    os.chdir(home)
    late = X.copy()
    late[1] += 1
    theirs = {"same": X, "short": X[: N // 2], "other": X + 1, "late": late}
    for name in ("same", *UNSHARED) if rank == 0 else theirs:
        np.save(f"{name}.npy", X if rank == 0 else theirs[name])
    launch._crew = Ranks("world", 60.0)

    def choose(name):
        x = launch._hand_out(read_embeddings(f"/proc/self/cwd/{name}.npy") if rank == 0 else None)
        return smartgpu.select(x, 3, process_group="world", threads=1).indices.tolist()

    return {f"unshared {name}": caught(lambda name=name: choose(name)) for name in ("same", *UNSHARED)}


def interrupted(checkpoint, report=None, **more):
    return ask("fl", process_group="world", checkpoint=checkpoint, report=report, **more)


def boom(row, gain, seen=[]):  # noqa: B006 - counts calls
    seen.append(row)
    if len(seen) == AT:
        raise OSError("the disk is full")


def killed(rank, folder):
    """Rank 1 of three goes without a word, while each looks at survivors by itself."""
    sharded.MEET = 1

    def die(row, gain, seen=[]):  # noqa: B006
        seen.append(row)
        if rank == 1 and len(seen) == AT:
            os.kill(os.getpid(), signal.SIGKILL)

    start = time.monotonic()
    return caught(lambda: interrupted(folder / "picks.npz", die, timeout=60.0)), time.monotonic() - start


def hanging(rank, folder):
    def sleep(row, gain, seen=[]):  # noqa: B006
        seen.append(row)
        if rank == 1 and len(seen) == AT:
            time.sleep(4)

    start = time.monotonic()
    return caught(lambda: interrupted(None, sleep, timeout=1.0)), time.monotonic() - start


@pytest.fixture(scope="module")
def kill(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kill")
    return folder, together(killed, 3, folder)


@pytest.fixture(scope="module")
def refused(tmp_path_factory, kill):
    folder = tmp_path_factory.mktemp("refused")
    shutil.copy(kill[0] / "picks.npz", folder / "picks.npz")
    smartgpu.select(SMALL, 6, checkpoint=folder / "other.npz", backend="numpy")
    found = together(refusals, 2, folder)
    for each in found:
        if not isinstance(each, dict):
            raise AssertionError(f"a process failed: {each!r}")
    return found


HOST = socket.gethostname()
MESSAGES = {
    "many": (ValueError, f"rank 1 ({HOST}) was given other data"),
    "mix": (ValueError, "n_tasks: 2 there, 3 now"),
    "data": (ValueError, f"rank 1 ({HOST}) was given other data"),
    "k": (ValueError, "k: 5 there, 6 now"),
    "seed": (ValueError, "options.seed: 0 there, 1 now"),
    "objective": (ValueError, "objective.weights.sha256"),
    "limits": (ValueError, "exclude: "),
    "rows": (ValueError, "no more processes than X has rows, 1: got 2"),
    "fallback": (ValueError, "fallback is for one process"),
    "polish": (ValueError, "polish is for one process"),
    "reference": (ValueError, "backend 'reference' is for one process"),
    "group": (TypeError, "process_group must be a torch.distributed.ProcessGroup or 'world', got 'all'"),
    "timeout": (ValueError, "timeout must lie in (0"),
}


@pytest.mark.parametrize("name", MESSAGES)
def test_what_processes_cannot_do_together_is_refused_by_all(refused, name):
    kind, text = MESSAGES[name]
    for each in refused:
        assert type(each[name]) is kind and text in str(each[name]), repr(each[name])


def test_what_one_process_refuses_ends_the_call_of_all(refused):
    zero, one = refused
    assert type(one["argument"]) is ValueError and "k must be" in str(one["argument"])
    assert type(
        zero["argument"]
    ) is RankError and f"rank 1 ({HOST}) ended the run: ValueError: k must be" in str(zero["argument"])
    assert type(zero["checkpoint"]) is ValueError and "of another selection" in str(zero["checkpoint"])
    assert type(one["checkpoint"]) is RankError and "rank 0" in str(one["checkpoint"])
    assert zero["whole"].indices.tolist() == one["whole"].indices.tolist()


def test_what_rank_0_reads_is_what_the_others_get(refused):
    for each in refused:
        assert each["handed"] == {"array": True, "file": True, "part": True, "pickled": True}


@pytest.mark.parametrize("name", UNSHARED)
def test_a_folder_that_is_not_shared_is_refused_by_all(refused, name):
    for each in refused:
        error = each[f"unshared {name}"]
        assert type(error) is ValueError and f"rank 1 ({HOST}) {UNSHARED[name]}" in str(error), repr(error)
        assert each["unshared same"] == smartgpu.select(X, 3, backend="numpy", threads=1).indices.tolist()


def test_a_checkpoint_needs_to_be_seen_by_rank_0_alone(refused):
    assert [each["apart"] for each in refused] == [True, False]


def test_an_error_of_one_process_is_told_by_the_others(refused):
    zero, one = refused
    assert type(one["failing"]) is OSError
    assert type(zero["failing"]) is RankError
    assert str(zero["failing"]) == f"rank 1 ({HOST}) ended the run: OSError: the disk is full"


def test_a_process_that_dies_ends_the_run_of_all(kill):
    zero, dead, two = kill[1]
    assert dead is None
    for error, seconds in (zero, two):
        assert type(error) is RankError and f"rank 1 ({HOST}) ended the run: it does not answer" in str(error)
        assert seconds < 30


def test_a_process_that_hangs_ends_the_run_of_all_in_time(tmp_path):
    (zero, seconds), (one, _) = together(hanging, 2, tmp_path)
    assert type(zero) is RankError and f"rank 1 ({HOST}) ended the run: it does not answer within 1 s" in str(
        zero
    )
    assert seconds < 4
    assert type(one) is RankError  # it learns of it when it wakes up


def test_a_checkpoint_goes_on_with_any_number_of_processes(kill, refused, alone, tmp_path):
    with np.load(kill[0] / "picks.npz") as held:
        assert 0 < len(held["indices"]) < alone("fl").k
    picks = shutil.copy(kill[0] / "picks.npz", tmp_path / "picks.npz")
    resumed = ask("fl", checkpoint=picks)
    for got in (resumed, *(each["resumed"] for each in refused)):
        assert got.indices.tolist() == alone("fl").indices.tolist()
        assert got.gains.tolist() == alone("fl").gains.tolist()


def test_a_group_that_is_not_there_is_refused():
    pytest.importorskip("torch")
    with pytest.raises(ValueError, match="process_group is not initialised"):
        smartgpu.select(SMALL, 3, process_group="world")


def test_nccl_without_gpus_is_refused(monkeypatch):
    torch = pytest.importorskip("torch")
    dist = torch.distributed
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(dist, "get_backend", lambda group: "nccl")
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        with pytest.raises(ValueError, match="process_group is of NCCL, which needs GPUs"):
            smartgpu.select(SMALL, 3, process_group="world")
    finally:
        dist.destroy_process_group()


# -- the command line --------------------------------------------------------------------------------------------------


def torchrun(size, *arguments):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(size)]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*command, "-m", "smartgpu", *map(str, arguments)],
        env=env,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_the_command_refuses_a_pool_that_one_host_does_not_see(tmp_path):
    """Processes that something else than torchrun has started, each in a folder of its own."""
    torch = pytest.importorskip("torch")
    if not torch.distributed.is_available():
        pytest.skip("this torch was built without torch.distributed")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    env = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    command = [
        sys.executable,
        "-m",
        "smartgpu",
        "select",
        "/proc/self/cwd/pool.npy",
        "-k",
        "9",
        "--out",
        "out",
    ]
    running = []
    for rank in (0, 1):
        home = tmp_path / f"host{rank}"
        home.mkdir()
        if rank == 0:
            np.save(home / "pool.npy", SMALL)
        own = {**os.environ, **env, "MASTER_PORT": port, "RANK": str(rank)}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        running.append(subprocess.Popen([*command, "--backend", "numpy"], cwd=home, env=own, **pipes))
    try:
        said = [process.communicate(timeout=60) for process in running]
    finally:
        for process in running:
            process.kill()
    assert running[0].returncode == 2 and f"rank 1 ({HOST}) cannot read /proc/self/cwd/pool.npy" in said[0][1]
    assert running[1].returncode == 2 and said[1] == ("", "")  # rank 0 speaks for all
    assert [p.name for host in (0, 1) for p in (tmp_path / f"host{host}").iterdir()] == ["pool.npy"]


def test_the_command_started_by_torchrun_writes_what_one_process_writes(tmp_path):
    torch = pytest.importorskip("torch")
    if not torch.distributed.is_available():
        pytest.skip("this torch was built without torch.distributed")
    np.save(tmp_path / "pool.npy", SMALL)
    command = ("select", tmp_path / "pool.npy", "-k", 9, "--format", "csv", "--backend", "numpy", "--out")
    done = torchrun(2, *command, tmp_path / "two")
    assert done.returncode == 0, done.stderr
    assert "2 processes" in done.stdout and done.stdout.count("9 of 230 rows") == 1
    assert main([*map(str, command), str(tmp_path / "one"), "--quiet"]) == 0
    one, two = (smartgpu.Selection.load(tmp_path / name / "selection.npz") for name in ("one", "two"))
    assert two.indices.tolist() == one.indices.tolist() and two.gains.tolist() == one.gains.tolist()
    files = [sorted(p.name for p in (tmp_path / name).iterdir()) for name in ("one", "two")]
    assert files[0] == files[1]
    refused = torchrun(2, *command[:3], FEW + 1, *command[4:], tmp_path / "three")
    assert refused.returncode != 0 and refused.stderr.count("smartgpu select: k must be at most") == 1
    assert not (tmp_path / "three").exists()
