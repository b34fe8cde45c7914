"""Who selects in which group, and for how long: the queues of a launch, simulated with predicted times."""

import heapq

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("triton")

from smartgpu.backends import cuda_batch


def simulated(sizes, counts, d, multiprocessors):
    """The queues of a launch, simulated with predicted times.

    (when the last one ends, everybody's share of the work in blocks, the longest problem where it is shortest)
    """
    costs = predicted(sizes, counts, d)
    big, small = cuda_batch.deal(costs, counts, multiprocessors, True)
    assert sorted(big + small) == list(range(len(sizes)))
    assert (np.diff(costs[big]) <= 0).all() and (np.diff(costs[small]) <= 0).all()  # dearest first
    together = cuda_batch.in_cluster(costs, counts)
    ends = ended(together[big], costs[small], multiprocessors)
    return ends, costs.sum() / multiprocessors, np.minimum(costs, together).max()


def predicted(sizes, counts, d):
    how = ("facility_location", "cosine", "fp16")
    return np.array([cuda_batch.seconds(*how, n, k, d) for n, k in zip(sizes, counts, strict=True)])


def ended(clusters, blocks, multiprocessors):
    """Every problem goes to who is done first; blocks take the multiprocessors that clusters leave, now or later."""
    teams = min(cuda_batch.most_clusters(multiprocessors), len(clusters))
    free = [0.0] * teams
    for spent in clusters:
        free[free.index(min(free))] += spent
    free = [0.0] * (multiprocessors - teams * cuda_batch.CLUSTER) + free * cuda_batch.CLUSTER
    heapq.heapify(free)
    last = max(free)
    for spent in blocks:
        done = heapq.heappop(free) + spent
        heapq.heappush(free, done)
        last = max(last, done)
    return last


def test_queues_keep_every_multiprocessor_busy(rng):
    """Log-normal sizes from 20 to 5,000 rows. What clusters spend beyond a block does not count as work."""
    drawn = np.exp(rng.normal(np.log(20 * 5000) / 2, np.log(5000 / 20) / 6, 1840))
    sizes = np.clip(drawn, 20, 5000).astype(int)
    counts = np.maximum(1, sizes * 25_000 // sizes.sum())
    spent, share, _ = simulated(sizes, counts, 1024, 132)
    assert share / spent >= 0.9
    assert spent < 0.1  # the bar is 0.2 s, launches and transfers included
    # without clusters the largest task is longer than everybody's share
    costs = predicted(sizes, counts, 1024)
    assert max(costs) > share and ended([], np.sort(costs)[::-1], 132) > 1.5 * spent


@pytest.mark.parametrize("case", ["LAUNCH", "STAGE2"])
def test_queues_on_the_cases_that_are_timed(case):
    """The sizes of bench/cases.py, those of them that are not for the Triton engine."""
    cases = pytest.importorskip("bench.cases")
    case = getattr(cases, case)
    sizes = cases.task_sizes(case)
    counts, fits = cases.task_budgets(sizes, case.k), sizes <= cuda_batch.MOST[True][1]
    spent, share, _ = simulated(sizes[fits], counts[fits], case.d, 132)
    assert share / spent >= 0.9


def test_queues_on_the_pool_of_tasks(data_dir):
    pq = pytest.importorskip("pyarrow.parquet")
    tasks = pq.read_table(data_dir / "tasks" / "tasks.parquet", columns=["task"])["task"].combine_chunks()
    sizes = np.array([each["counts"] for each in tasks.value_counts().to_pylist()])
    counts = np.maximum(1, sizes // 10)
    spent, share, _ = simulated(sizes, counts, 384, 16)
    assert share / spent >= 0.9
    # 132 multiprocessors wait for the picks of the largest task, which follow each other: a third of the time is work
    for d in (384, 1024):
        spent, share, longest = simulated(sizes, counts, d, 132)
        assert longest > 2 * share and longest / spent >= 0.9


def test_a_deal_is_near_the_best(rng):
    """Of all numbers of problems that could go to clusters, in mixes of any kind."""
    for _ in range(40):
        n, multiprocessors = int(rng.integers(2, 120)), int(rng.choice([16, 64, 108, 132]))
        sizes = np.clip(np.exp(rng.normal(6, rng.uniform(0.3, 2), n)), 2, 8192).astype(int)
        counts = np.maximum(1, (sizes * 10 ** rng.uniform(-2.5, -0.5)).astype(int))
        costs = predicted(sizes, counts, 768)
        order, together = np.argsort(-costs, kind="stable"), cuda_batch.in_cluster(costs, counts)
        every = [ended(together[order[:m]], costs[order[m:]], multiprocessors) for m in range(n + 1)]
        spent, share, longest = simulated(sizes, counts, 768, multiprocessors)
        assert max(share, longest) <= spent * (1 + 1e-12)
        assert spent <= 1.25 * min(every)
