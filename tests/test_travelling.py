"""Candidates that travel: no process holds all features, and the result is that of one process, bit for bit."""

import os
import signal
import socket
import time
import tracemalloc

import numpy as np
import pytest
from test_ranks import caught, together

import smartgpu
from smartgpu import FacilityLocation, FacilityLocationCMI, GraphCut, QualityDiversity, Quotas
from smartgpu.backends import travelling
from smartgpu.backends.numpy import NumpyBackend
from smartgpu.job import Job
from smartgpu.objectives import Ground
from smartgpu.options import Options
from smartgpu.ranks import RankError, Ranks
from smartgpu.shares import BLOCK, largest, share
from smartgpu.similarity import as_similarity

N, D = 2100, 96


def pool():
    rng = np.random.default_rng(7)
    x = rng.standard_normal((9, D))[rng.integers(9, size=N)] + rng.standard_normal((N, D))
    x[N // 2 :: 5] = x[: len(x[N // 2 :: 5])]  # copies, whose gains tie
    return x.astype(np.float16)


X = pool()
Q = np.random.default_rng(3).random(N)
GROUPS = np.arange(N) % 6
HOW = {"threads": 1, "backend": "numpy"}
CASES = {
    "plain": (8, FacilityLocation(), "cosine", {}),
    "weights": (8, FacilityLocation(Q), "dot", {}),
    "quality": (8, QualityDiversity(0.4, Q), "cosine", {}),
    "rbf-coverage": (None, FacilityLocation(), "rbf", {"coverage": 0.2}),
    "budget": (None, FacilityLocation(), "cosine_shifted", {"budget": 2.0, "cost": Q + 0.1}),
    "quotas": (14, FacilityLocation(Q), "cosine", {"quotas": Quotas(GROUPS, {0: 4}, 4)}),
    "given": (9, FacilityLocation(), "exp_euclidean", {"given": np.arange(400), "exclude": [500, 700]}),
    "target": (9, FacilityLocationCMI(X[:25] + 0.3, X[90:95] + 0.2), "cosine", {}),
}


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(travelling, "STRIPES", 1)


def leasts(name, size):
    """Bytes that a case takes at least: with all features on each process, and with those that travel."""
    k, objective, similarity, more = CASES[name]
    options = Options(**HOW)
    job = Job.check(X, objective, similarity, options).sized(k or N)
    picks = (k or N) + len(more.get("given", ()))
    if "budget" in more:
        picks = int(np.searchsorted(np.cumsum(np.sort(more["cost"])), more["budget"]))
    ways = ({}, {"stream": True, "shares": size})
    return [job._cost(picks, "coverage" in more, **way)[1].least for way in ways]


def ask(name, **how):
    k, objective, similarity, more = CASES[name]
    return smartgpu.select(X, k, objective, similarity, **{**HOW, **more, **how})


def tight(name, size, **how):
    """With the least that candidates that travel can do with, and the most that was held."""
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        found = ask(name, memory=leasts(name, size)[1], **how)
        return found, tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()


def asked(backend):
    """A level, and what sweeps, columns and survivors over it give."""
    level = backend.new_level()
    backend.raise_level(level, np.array([5, 900, 2099]))
    sparse = backend.survivors(level)
    return level, {
        "level": backend.level_values(level),
        "excess": backend.excess(level),
        "weighted": backend.excess(level, backend.new_weights(np.arange(N))),
        "totals": backend.totals(),
        "keep": backend.keep(level, np.array([7, 2000, 1100, 3])).excess,
        "row_max": backend.level_values(backend.row_max()),
        "nearest": backend.nearest(np.array([3, 2000, 800]))[0],
        "diagonal": backend.diagonal(),
        "survivors": sparse.excess(level),
        "pairs": len(sparse),
    }


def parts_of_a_selection(rank, size):
    """Sweeps and survivors of a backend with room for them, each with its share of the rows."""
    found = {}
    for similarity in ("cosine", "rbf"):
        ranks = Ranks("world", 60.0)
        how = {"threads": 2, "memory": 1 << 30, "stream": True, "shares": size}
        ground = Ground(X, as_similarity(similarity), ranks=ranks, **how)
        backend = ground.backend()
        level, found[similarity] = asked(backend)
        found[similarity]["computed"] = backend.pairs
        before = ranks.bytes, ranks.messages
        backend.excess(level)
        found[similarity]["sent"] = ranks.bytes - before[0], ranks.messages - before[1]
    return found


def work(rank, folder):
    size = int(os.environ["WORLD"])
    travelling.STRIPES = 1  # more than one block a share
    found = {"parts": parts_of_a_selection(rank, size)}
    for name in CASES:
        found[name] = caught(lambda name=name: tight(name, size, process_group="world"))
    every, travels = leasts("plain", size)
    other = smartgpu.plan(X, 5, GraphCut(), "rbf", **HOW).least - 1
    room = (
        (every - 1) * size if rank == 1 else 1 << 40
    )  # what all processes of a host may take: decided by the least
    NumpyBackend.default_memory = staticmethod(lambda: room)
    found["roomy"] = caught(lambda: ask("plain", process_group="world"))
    small = travels // 3
    found["refused"] = caught(lambda: ask("plain", process_group="world", memory=small))
    call = {"process_group": "world", "memory": other, **HOW}
    found["others"] = caught(lambda: smartgpu.select(X, 5, GraphCut(), "rbf", **call))
    return found


@pytest.fixture(scope="module", params=[2, 3], ids="W{}".format)
def selections(request, tmp_path_factory):
    found = together(work, request.param, tmp_path_factory.mktemp(f"travel{request.param}"))
    for each in found:
        if not isinstance(each, dict):
            raise AssertionError(f"a process failed: {each!r}")
    return found


@pytest.fixture(scope="module")
def alone():
    return {name: ask(name) for name in CASES}


def same(got, expected):
    if isinstance(got, Exception):
        raise got
    assert got.indices.tolist() == expected.indices.tolist()
    assert got.gains.tolist() == expected.gains.tolist()
    assert (got.value, got.base_value, got.limits) == (expected.value, expected.base_value, expected.limits)


@pytest.mark.parametrize("name", CASES)
def test_result_is_that_of_one_process(selections, alone, name):
    every, travels = leasts(name, len(selections))
    assert travels < every
    for each in selections:
        if isinstance(each[name], Exception):
            raise each[name]
        got, held = each[name]
        same(got, alone[name])
        assert held <= 1.01 * travels, f"held {held:,}, planned {travels:,}"
        assert got.together["bytes"] > X.size * 4  # all of them came by


def test_survivors_of_candidates_that_travel(selections, alone):
    for each in selections:
        same(each["roomy"], alone["plain"])
        assert each["roomy"].sweeps < each["plain"][0].sweeps
        assert each["roomy"].together["bytes"] > X.size * 4


@pytest.mark.parametrize("similarity", ["cosine", "rbf"])
def test_sweeps_and_columns_are_those_of_one_process(selections, similarity):
    ground = Ground(X, as_similarity(similarity), threads=2, memory=1 << 30)
    backend = ground.backend()
    expected = asked(backend)[1]
    size = len(selections)
    blocks = sum(
        -(-(s.stop - s.start) // backend.block_size) for s in (share(N, r, size) for r in range(size))
    )
    for each in selections:
        found = each["parts"][similarity]
        for name, value in expected.items():
            np.testing.assert_array_equal(found[name], value, err_msg=name)
        # a sweep: every feature once, with a tag for each block, and the sums; tiles of a share serve both sides
        sums = 8 * (N + 1)
        assert found["sent"] == (4 * (X.size + blocks) + sums, blocks + 1)
        shares = [share(N, rank, size) for rank in range(size)]
        saved = sum((s.stop - s.start) * (s.stop - s.start - 1) // 2 for s in shares)
        assert found["computed"] < 8 * (N * N - saved)


def test_what_fits_no_way_is_refused_and_what_cannot_travel_is_made_anew(selections):
    expected = smartgpu.select(X, 5, GraphCut(), "rbf", **HOW)
    for each in selections:
        assert type(each["refused"]) in (ValueError, RankError)
        assert "memory must be at least" in str(each["refused"])
        same(each["others"], expected)


@pytest.mark.parametrize("n", [10, 2100, 4 * BLOCK * 3, 10**6 + 1, 10**8])
@pytest.mark.parametrize("size", [2, 3, 8])
def test_no_share_is_larger_than_planned(n, size):
    shares = [share(n, rank, size) for rank in range(size)]
    assert max(s.stop - s.start for s in shares) <= largest(n, size) <= n / size + BLOCK


def test_the_plan_says_what_a_process_holds(monkeypatch):
    monkeypatch.undo()
    n, d = 10**8, 384
    job = Job(
        np.broadcast_to(np.float16(0), (n, d)), as_similarity("cosine"), FacilityLocation(), Options(**HOW)
    )
    parts = {part.name: part.bytes for part in job._cost(10, False, stream=True, shares=8)[1].parts}
    held = parts["features of the candidates, a share and two blocks of others"]
    assert 4 * n * d / 8 + 8 * n < held < 1.01 * (4 * n * d / 8 + 8 * n)


def dying(rank, folder):
    """Rank 1 of three goes without a word, in the middle of a sweep."""
    travelling.STRIPES = 1
    send = travelling.Travelling._send

    def die(self, at, seen=[]):  # noqa: B006 - counts calls
        seen.append(at)
        if rank == 1 and len(seen) == 9:
            os.kill(os.getpid(), signal.SIGKILL)
        return send(self, at)

    travelling.Travelling._send = die
    start, memory = time.monotonic(), leasts("plain", 3)[1]
    error = caught(lambda: ask("plain", process_group="world", memory=memory, timeout=20.0))
    return error, time.monotonic() - start


def test_a_process_that_dies_in_a_sweep_ends_the_run_of_all(tmp_path):
    zero, dead, two = together(dying, 3, tmp_path)
    assert dead is None
    for error, seconds in (zero, two):
        assert type(error) is RankError, repr(error)
        assert f"rank 1 ({socket.gethostname()}) ended the run: it does not answer" in str(error)
        assert seconds < 30
