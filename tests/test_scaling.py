"""The cost model of docs/scaling.md: what one process says that several will compute and send, beside what they do."""

from unittest.mock import patch

import numpy as np
import pytest
from test_ranks import together

import smartgpu
from bench import model
from bench.model import PHASES, Cost, counted, measured, predicted, sweep
from smartgpu.backends import sharded
from smartgpu.groups import deal
from smartgpu.ranks import Ranks
from smartgpu.shares import BLOCK, FEW

N, D = 2 * FEW * BLOCK + 300, 8  # whole blocks of rows for each of two processes
MANY = 600


def pool():
    rng = np.random.default_rng(11)
    x = rng.standard_normal((30, D))[rng.integers(30, size=N)] + rng.standard_normal((N, D))
    return x.astype(np.float32)


X = pool()
# k, memory, and the survivors a candidate with which all ranks get all
WAYS = {
    "gathered": (20, None, N),
    "gathered late": (20, None, 512),  # not at once, but when some are dropped
    "dense": (4, "17MB", 0),
}


def run(name, group):
    k, memory, few = WAYS[name]
    with patch.object(sharded, "GATHER", few):
        return counted(X, k, group, threads=1, memory=memory)


def messages(work):
    """How many each group of ranks that work() makes has sent."""
    made, begin = [], Ranks.__init__

    def init(self, *how):
        made.append(self)
        begin(self, *how)

    with patch.object(Ranks, "__init__", init):
        work()
    return [ranks.messages for ranks in made]


def run_all(rank, folder):
    how = {"backend": "numpy", "threads": 1, "process_group": "world"}
    found = {name: run(name, "world") for name in WAYS}
    found["groups"] = messages(lambda: smartgpu.select_many(X[:MANY], np.arange(MANY) % 7, 3, **how))
    found["parts"] = messages(lambda: smartgpu.select_partitioned(X[:MANY], 5, parts=4, **how))
    return found


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    found = together(run_all, 2, tmp_path_factory.mktemp("scaling"))
    for each in found:
        if not isinstance(each, dict):
            raise AssertionError(f"a process failed: {each!r}")
    return found


@pytest.mark.parametrize("name", WAYS)
def test_pairs_messages_and_bytes_are_what_the_model_says(runs, name):
    one, two = run(name, None), [each[name] for each in runs]
    assert all(each["indices"] == one["indices"] for each in two)
    with patch.object(sharded, "GATHER", WAYS[name][2]):
        alone, said = (predicted(one["calls"], N, one["block"], size) for size in (1, 2))
    assert measured([one]) == alone
    seen = measured(two)
    assert (seen["prepare"].pairs, seen["prepare"].messages) == (0, model.PREPARE)
    assert 0 < seen.pop("prepare").bytes < 8000  # records, hosts and the like
    gone = {phase for phase in PHASES if said[phase] != Cost()} - {"prepare", "bounds"}
    if name == "dense":  # with half of the rows each, the same memory holds more columns at once
        batches, expected = seen.pop("columns"), said["columns"]
        assert expected.messages / 2 < batches.messages <= expected.messages
        assert batches.pairs == pytest.approx(expected.pairs, rel=0.02)
        assert batches.bytes == pytest.approx(expected.bytes, rel=0.02)
        assert gone == {"sweeps", "columns", "survivors"}  # looked for, and never few enough
    else:
        assert gone == {"columns", "survivors", "gathering"} | (
            {"tail"} if name == "gathered late" else set()
        )
    assert seen == {phase: said[phase] for phase in seen}


def test_groups_and_parts_send_what_the_model_says(runs):
    counts = np.bincount(np.arange(MANY) % 7)
    rounds = deal({g: int(m) * (int(m) + 3) for g, m in enumerate(counts)}, 2)
    for each in runs:
        assert each["groups"] == [model.AGREED + model.A_ROUND * len(rounds)]
        assert each["parts"][0] == model.PARTED + model.A_ROUND


@pytest.mark.parametrize("processes", [1, 2, 3, 8])
def test_pairs_of_a_sweep(processes):
    """Whole blocks: (1 - 1 / 2W) n^2, and half a tile for each of a process's blocks. Smaller pools: all pairs."""
    n = 10 * FEW * BLOCK * processes
    assert sweep(n, BLOCK, processes) == (1 - 1 / (2 * processes)) * n * n + n * BLOCK / 2
    assert (sweep(6000, BLOCK, processes) == 6000**2) == (processes > 1)
