"""Who selects in which group, and for how long: the queues of a launch, simulated with predicted times."""

import heapq

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("triton")

from smartgpu.backends import cuda_batch


def balance(sizes, counts, d, multiprocessors):
    """The queues of a launch, simulated with predicted times.

    (share of all multiprocessors' time that is work, when the last one ends, when it could at best)
    """
    costs = np.array(
        [
            cuda_batch.seconds("facility_location", "cosine", "fp16", n, k, d)
            for n, k in zip(sizes, counts, strict=True)
        ]
    )
    big, small = cuda_batch.deal(costs, counts, multiprocessors, True)
    assert sorted(big + small) == list(range(len(sizes)))
    teams, busy = cuda_batch.most_clusters(multiprocessors), 0.0
    ends = [0.0] * teams
    for p in big:
        work = costs[p] - counts[p] * cuda_batch.STEP
        spent = work / cuda_batch.CLUSTER + counts[p] * cuda_batch.CLUSTER_STEP
        heapq.heappush(ends, heapq.heappop(ends) + spent)
        busy += cuda_batch.CLUSTER * spent
    # blocks take the multiprocessors that clusters leave, and then those that they are done with
    free = [0.0] * (multiprocessors - teams * cuda_batch.CLUSTER)
    free += [end for end in ends for _ in range(cuda_batch.CLUSTER)]
    heapq.heapify(free)
    for p in small:
        heapq.heappush(free, heapq.heappop(free) + costs[p])
        busy += costs[p]
    return (
        busy / (multiprocessors * max(free)),
        max(free),
        max(busy / multiprocessors, max(costs[small], default=0.0)),
    )


def test_queues_keep_every_multiprocessor_busy(rng):
    """Log-normal sizes from 20 to 5,000 rows."""
    drawn = np.exp(rng.normal(np.log(20 * 5000) / 2, np.log(5000 / 20) / 6, 1840))
    sizes = np.clip(drawn, 20, 5000).astype(int)
    counts = np.maximum(1, sizes * 25_000 // sizes.sum())
    share, spent, _ = balance(sizes, counts, 1024, 132)
    assert share >= 0.9
    assert spent < 0.1  # the bar is 0.2 s, launches and transfers included
    # without clusters the largest task is longer than everybody's share
    costs = [
        cuda_batch.seconds("facility_location", "cosine", "fp16", n, k, 1024)
        for n, k in zip(sizes, counts, strict=True)
    ]
    assert max(costs) > sum(costs) / 132


def test_queues_on_the_pool_of_tasks(data_dir):
    pq = pytest.importorskip("pyarrow.parquet")
    tasks = pq.read_table(data_dir / "tasks" / "tasks.parquet", columns=["task"])["task"].combine_chunks()
    sizes = np.array([each["counts"] for each in tasks.value_counts().to_pylist()])
    counts = np.maximum(1, sizes // 10)
    assert balance(sizes, counts, 384, 16)[0] >= 0.9
    # 132 multiprocessors wait for the picks of the largest task, which follow each other
    _, spent, best = balance(sizes, counts, 384, 132)
    assert best / spent >= 0.9
