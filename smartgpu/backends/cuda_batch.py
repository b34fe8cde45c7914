"""Many small selections at once: csrc/batched_greedy.cu over torch tensors.

Which problems it takes, and how they are dealt to blocks and clusters of blocks, is decided here; what it computes is
described there.
"""

from __future__ import annotations

import functools
import heapq
import math
from dataclasses import dataclass

import numpy as np
import torch

from smartgpu.backends import QUANTUM, cuda
from smartgpu.backends.device import ARITHMETIC, Pool
from smartgpu.kernels import linear, similarity, sweeps

OBJECTIVES = ("facility_location", "graph_cut", "log_det")  # in the order of csrc/batched_greedy.cu
KINDS = {"cosine": 1, "cosine_shifted": 2, "cosine_squared": 3}  # csrc/scalar.cuh
AFFINE = {"cosine": (1.0, 0.0), "cosine_shifted": (0.5, 0.5), "cosine_squared": (0.0, 0.0)}
# Of csrc/problem.cuh's Batch.
FIELDS = tuple(
    "x stride d rows start picks order count objective kind low weights scale quantum factors a b lambda weight before "
    "after queue exchange workspace slot arena indices gains".split()
)
AHEAD = 4  # problems for each multiprocessor that a deal looks at one by one
THREADS, CLUSTER = 256, 8  # of a block; blocks of a cluster
OWN = 2048  # bytes of shared memory of a block besides, and of what the system keeps of it for each
# arithmetic -> bytes of shared memory for staged tiles, and blocks on a multiprocessor that registers are there for
TILES = {"fp16": (61440, 2), "bf16": (61440, 2), "tf32": (61440, 2), "tf32x3": (46080, 1)}
# Predicted for an H200, of one multiprocessor (docs/kernels.md): dense products, float64 ones, bytes of matrices, and
# the barriers and dependent reads of a pick in a block and in a cluster.
FLOPS, WIDE, BYTES = {"fp16": 1.6e12, "bf16": 1.6e12, "tf32": 0.8e12, "tf32x3": 0.25e12}, 1e11, 40e9
STEP, CLUSTER_STEP = 6e-6, 14e-6
# Predicted, by whether there are clusters: rows of the largest problem that a block, and a cluster, should take. Larger
# ones go to the Triton engine, which has the whole GPU for each.
MOST = {True: (8192, 16384), False: (8192, 8192)}


@dataclass(frozen=True)
class Problems:
    """Independent selections from one pool of features, all of one form.

    rows       of each problem its rows of the pool, (n,) int64
    counts     how many to choose in each
    objective  one of OBJECTIVES, with lam for the last two
    weights    (total,) int64 row weights of facility location, problem after problem, and what a quantum of a sum of
               them is worth, scale (problems,) float64; None: 1 and QUANTUM
    weight, before, after   a gain is before_j + weight g_j + after_j, (total,) float64 or None
    low        the lowest index wins ties, else the highest
    """

    rows: list[np.ndarray]
    counts: list[int]
    objective: str
    lam: float = 0.0
    weights: np.ndarray | None = None
    scale: np.ndarray | None = None
    weight: float = 1.0
    before: np.ndarray | None = None
    after: np.ndarray | None = None
    low: bool = True

    @property
    def sizes(self) -> np.ndarray:
        return np.array([len(rows) for rows in self.rows], np.int64)


@dataclass(frozen=True)
class Plan:
    """Problems for clusters and for blocks, dearest first, how many teams of each, and the bytes of one's workspace."""

    clusters: list[int]
    blocks: list[int]
    teams: tuple[int, int]
    slots: tuple[int, int]

    @property
    def bytes(self) -> int:
        return sum(t * (s + cuda.EXCHANGE) for t, s in zip(self.teams, self.slots, strict=True))


def arithmetic(dtype: torch.dtype, products: str) -> str | None:
    """Which kernel computes with such features; None for those that Triton alone computes with."""
    return next((how for how in TILES if ARITHMETIC[how] == (dtype, products)), None)


def resident(how: str, kernels: cuda.Kernels) -> int:
    """Blocks on a multiprocessor at a time."""
    staged, blocks = TILES[how]
    return max(1, min(blocks, kernels.shared[0] // (staged + OWN)))


def workspace(objective: str, kind: str, n: int, k: int, d: int) -> int:
    """Bytes of one problem's arrays: csrc/problem.cuh's Layout."""
    squared = kind == "cosine_squared"
    dense = objective == "facility_location" or (objective == "graph_cut" and squared)
    longer = max(n, d) if objective == "graph_cut" and not squared else n
    matrix = 4 * n * (-(-n // 8) * 8) if dense else 8 * k * n if objective == "log_det" else 0
    return sum(-(-size // 16) * 16 for size in (16, *[8 * longer] * 4, *[4 * n] * 3, matrix))


def needs(problems: Problems, kind: str, d: int) -> np.ndarray:
    """(problems,) bytes of workspace of each."""
    each = zip(problems.sizes.tolist(), problems.counts, strict=True)
    return np.array([workspace(problems.objective, kind, n, k, d) for n, k in each])


def seconds(objective: str, kind: str, how: str, n: int, k: int, d: int) -> float:
    """Predicted time of a problem in one block that has a multiprocessor to itself."""
    if objective == "facility_location" or (kind == "cosine_squared" and objective == "graph_cut"):
        tiles = -(-n // 128)
        products = tiles * (tiles + 1) / 2 * 128**2 * 2 * d / FLOPS[how]
        # both triangles written, read for the sums; a pick reads the rows that it changes, about n / t of them
        changed = math.log(k + 1) if objective == "facility_location" else k / n
        return products + 4.0 * n * n * (3 + changed) / BYTES + k * STEP
    each = 2.0 * n * d / WIDE + (0.0 if objective == "graph_cut" else n * k / WIDE)
    return (k + 2) * each + k * STEP


def most_clusters(multiprocessors: int) -> int:
    """Clusters at a time. One less than multiprocessors are there for: how many of a part of the GPU may form one is
    not told, and one that waits for its place would keep the blocks behind it waiting as well."""
    return max(1, multiprocessors // CLUSTER - 1)


def in_cluster(costs: np.ndarray, picks: np.ndarray) -> np.ndarray:
    """Predicted seconds in a cluster, from those in one block: blocks share all but the steps, which last longer."""
    return (costs - picks * STEP) / CLUSTER + picks * CLUSTER_STEP


def end(together: np.ndarray, alone: np.ndarray, multiprocessors: int) -> float:
    """Predicted seconds until clusters and blocks are done, from theirs for each problem, dearest first.

    Blocks find the multiprocessors that clusters leave, and then those that they are done with.
    """
    teams = min(most_clusters(multiprocessors), len(together))
    free = [0.0] * teams
    for each in together.tolist():  # to the cluster that is done first
        heapq.heappush(free, heapq.heappop(free) + each)
    last = max(free, default=0.0)
    free = [0.0] * (multiprocessors - CLUSTER * teams) + [done for done in free for _ in range(CLUSTER)]
    heapq.heapify(free)
    many = AHEAD * multiprocessors
    for each in alone[:many].tolist():
        done = heapq.heappop(free) + each
        heapq.heappush(free, done)
        last = max(last, done)
    return max(
        last, (sum(free) + float(alone[many:].sum())) / multiprocessors
    )  # the others fill what is left


def deal(
    costs: np.ndarray, picks: np.ndarray, multiprocessors: int, clusters: bool
) -> tuple[list[int], list[int]]:
    """(problems for clusters, for blocks), dearest first: the dearest ones to clusters, as many as let all end soonest.

    costs (problems,) predicted seconds in a block. Numbers about a fifth apart are tried, each by `end`.
    """
    order = np.argsort(-costs, kind="stable")
    together = in_cluster(costs, picks)
    first = order[together[order] < costs[order]] if clusters else order[:0]
    best, found = np.inf, (order[:0], order)
    count = 0
    while count <= len(first):
        taken = np.zeros(len(costs), bool)
        taken[first[:count]] = True
        here = first[:count], order[~taken[order]]
        spent = end(together[here[0]], costs[here[1]], multiprocessors)
        if spent < best:
            best, found = spent, here
        count += 1 + count // 5
    return found[0].tolist(), found[1].tolist()


def make_plan(
    problems: Problems, kind: str, how: str, d: int, kernels: cuda.Kernels, memory: int
) -> tuple[Plan, list]:
    """(plan, problems that do not fit it): too many rows for a block or cluster, or for the memory.

    memory  bytes of workspace at most: fewer teams work at a time where it is short
    """
    sizes, counts = problems.sizes, np.array(problems.counts)
    block, cluster = MOST[kernels.clusters]
    needed = needs(problems, kind, d)
    costs = np.array(
        [
            seconds(problems.objective, kind, how, n, k, d)
            for n, k in zip(sizes.tolist(), counts.tolist(), strict=True)
        ]
    )
    fits = (sizes <= cluster) & (needed + cuda.EXCHANGE <= memory // 2)
    where = np.flatnonzero(fits)
    big, small = deal(costs[where], counts[where], kernels.multiprocessors, kernels.clusters)
    move = [p for p in small if sizes[where[p]] > block]
    big = sorted(big + move, key=lambda p: -costs[where[p]])
    small = [p for p in small if sizes[where[p]] <= block]
    lists = [where[big].tolist(), where[small].tolist()]
    most = (most_clusters(kernels.multiprocessors), kernels.multiprocessors * resident(how, kernels))
    room = memory // max(1, sum(bool(some) for some in lists))
    slots = tuple(int(needed[some].max()) if some else 0 for some in lists)
    teams = tuple(
        min(most[u], len(some), max(1, room // (slots[u] + cuda.EXCHANGE))) if some else 0
        for u, some in enumerate(lists)
    )
    return Plan(*lists, teams, slots), np.flatnonzero(~fits).tolist()


def run(
    pool: Pool, problems: Problems, plan: Plan, kernels: cuda.Kernels
) -> list[tuple[np.ndarray, np.ndarray]]:
    """(indices, gains) of each problem of the plan, empty for others; indices are positions in its rows.

    Raises RuntimeError or OSError where a kernel cannot be built or started.
    """
    how, device = arithmetic(pool.x.dtype, pool.products), pool.device
    counts = np.zeros(len(problems.rows), np.int64)
    for p in (*plan.clusters, *plan.blocks):
        counts[p] = problems.counts[p]
    ends = np.concatenate([[0], np.cumsum(counts)])

    def put(values: np.ndarray | None) -> torch.Tensor | None:
        return None if values is None else torch.from_numpy(np.ascontiguousarray(values)).to(device)

    rows = put(np.concatenate(problems.rows))
    a, b = AFFINE[pool.kind.name]
    indices = torch.full((max(int(ends[-1]), 1),), -1, dtype=torch.int64, device=device)
    gains = torch.zeros(len(indices), dtype=torch.float64, device=device)
    values = {
        "x": pool.x,
        "stride": pool.x.stride(0) * pool.x.element_size(),
        "d": pool.x.shape[1],
        "rows": rows,
        "start": put(np.concatenate([[0], np.cumsum(problems.sizes)])),
        "picks": put(ends),
        "objective": OBJECTIVES.index(problems.objective),
        "kind": KINDS[pool.kind.name],
        "low": problems.low,
        "weights": put(problems.weights),
        "scale": put(problems.scale),
        "quantum": QUANTUM,
        "factors": _factors(pool.x, rows) if problems.objective == "log_det" else None,
        "a": a,
        "b": b,
        "lambda": float(problems.lam),
        "weight": float(problems.weight),
        "before": put(problems.before),
        "after": put(problems.after),
        "indices": indices,
        "gains": gains,
    }
    staged = TILES[how][0]
    arena = min(kernels.shared[1], kernels.shared[0] // resident(how, kernels)) - OWN - staged
    big = _Launch(values, plan.clusters, plan.teams[0], CLUSTER, plan.slots[0], device)
    small = _Launch(values, plan.blocks, plan.teams[1], 1, plan.slots[1], device)
    kernels.beside(  # clusters first: they need multiprocessors that are next to each other
        lambda: big.start(kernels, f"batched_greedy_{how}_cluster", staged),
        lambda: small.start(kernels, f"batched_greedy_{how}", staged, max(0, arena)),
    )
    found, worth = indices.cpu().numpy(), gains.cpu().numpy()
    return [(found[i:j], worth[i:j]) for i, j in zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True)]


class _Launch:
    """The queue and the workspace of some teams, of so many blocks each."""

    def __init__(
        self, values: dict, problems: list[int], teams: int, blocks: int, slot: int, device: torch.device
    ):
        self.problems, self.teams, self.blocks = problems, teams, blocks
        zeros = functools.partial(torch.zeros, dtype=torch.int64, device=device)
        self.values = {
            **values,
            "order": torch.tensor(problems, dtype=torch.int64, device=device),
            "count": len(problems),
            "queue": zeros(1),
            "exchange": zeros(teams * cuda.EXCHANGE // 8) if blocks > 1 else None,
            "workspace": torch.empty(teams * slot, dtype=torch.uint8, device=device),
            "slot": slot,
        }

    def start(self, kernels: cuda.Kernels, name: str, staged: int, arena: int = 0) -> None:
        """Nothing, where there are no problems."""
        if self.problems:
            given = cuda.pack(FIELDS, self.values | {"arena": arena})
            kernels.launch(name, self.blocks * self.teams, THREADS, given, shared=staged + arena)


def _factors(x: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """What brings rows to unit length in float64, as device_linear.Wide does."""
    squares = linear.squares(x, rows)
    return torch.where(squares > 0, squares.rsqrt(), 0.0)


# ---- are its similarities Triton's?

_apart: dict[tuple[torch.device, str], int | None] = {}


def near(d: int) -> int:
    """Quanta by which tensor cores may round the product of two unit rows of d features otherwise than others do.

    (d / 16 + 2) 2^-23: each step of k cuts off less than a unit in the last place of a sum below 1.
    """
    return -(-(d // 16 + 2) // 2)


def apart(how: str, kernels: cuda.Kernels) -> int | None:
    """How many quanta a pair is from Triton's at most, 0 where all bits are the same; None where that is more than
    rounding: then Triton does the work, and one message says so. Asked once for a device and an arithmetic.

    Both make one chain of k, but Triton may use other instructions of the tensor cores, which may round otherwise.
    """
    key = (kernels.device, how)
    if key not in _apart:
        _apart[key], most = 0, 0
        for n, d, kind in ((201, 1024, "cosine"), (40, 48, "cosine_shifted")):
            q, triton = _both(n, d, kind, how, kernels)
            far = int((q - triton).abs().max())
            most = max(most, far)
            _apart[key] = None if _apart[key] is None or far > near(d) else most
        if _apart[key] is None:
            cuda.tell(f"a similarity of {how} features is {most} quanta from that of Triton's kernels")
        elif most:
            text = "similarities of %s features in CUDA kernels are up to %d quanta of 2^-22 from those in Triton's: "
            cuda.log.info(text + "groups may choose otherwise where gains are as close", how, most)
    return _apart[key]


def _both(n: int, d: int, kind: str, how: str, kernels: cuda.Kernels) -> tuple[torch.Tensor, torch.Tensor]:
    """Quanta (n, n) of random unit rows, by csrc/ and by Triton."""
    device, (dtype, products) = kernels.device, ARITHMETIC[how]
    draws = np.random.default_rng(n).standard_normal((n, d))
    x = torch.from_numpy(draws / np.linalg.norm(draws, axis=1, keepdims=True)).to(device, dtype)
    if how == "tf32":
        x = similarity.round_to_tf32(x)
    q = torch.zeros((n, n), dtype=torch.int32, device=device)
    rows = torch.arange(n, dtype=torch.int64, device=device)
    values = dict.fromkeys(FIELDS) | {
        "x": x,
        "stride": x.stride(0) * x.element_size(),
        "d": d,
        "rows": rows,
        "start": torch.tensor([0, n], dtype=torch.int64, device=device),
        "kind": KINDS[kind],
    }
    given = cuda.pack(FIELDS, values)
    kernels.launch(f"quanta_{how}", 1, THREADS, given, q.data_ptr(), n, shared=TILES[how][0])
    form = similarity.Form(kind, precision=products)
    return q, sweeps.block(x, rows, x, rows, form).to(torch.int32)
