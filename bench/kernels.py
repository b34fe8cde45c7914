"""Every kernel against its floor: what the device must do for it, at the rates that the same device just reached.

python bench/kernels.py --out FILE [--seconds S] [--rows N]       (bench/gpu.py starts it)

First the two ceilings: bytes/s of a copy, FLOP/s of products of random matrices. A kernel's floor is the larger of its
FLOP and its bytes at these rates, inputs read once; `of_floor` is floor / time. One JSON line for each, when it is
measured. --compile I N compiles every N-th kernel and times nothing: several at once fill Triton's cache.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from bench import device
from bench.machine import describe
from bench.run import append
from smartgpu.backends.resident import CHUNK, Replay
from smartgpu.kernels import compiling, greedy, linear, resident, swaps, tune, walk

BATCH = 256  # columns that tune.calls() asks for
HIGH = 1 << 22  # one, in quanta
ARITHMETICS = ("half", "tf32x3", "tf32", "ieee")


@dataclass(frozen=True)
class Sizes:
    """How large: the ceilings' matrices and copy, the dense kernels' pools, the pairs and rows of the others."""

    matrix: int = 8192
    copied: int = 1 << 30
    sweep: tuple[int, int] = (262_144, 768)  # of the two sweeps that must reach a share of the matrix rate
    dense: tuple[int, int] = (65_536, 768)
    rows: int = 1_000_000
    pairs: int = 200  # a column, on average: 1.6 GB in all
    features: int = 384
    seconds: float = 0.3  # for one figure


REHEARSAL = Sizes(64, 1 << 16, (64, 32), (64, 32), 128, 8, 32, 0.0)
COMPILED = Sizes(256, 1 << 16, (4096, 768), (4096, 768), 4096, 16, 384)


@dataclass(frozen=True)
class Call:
    """A kernel to time, and what it must do at least."""

    kernel: str
    arithmetic: str
    n: int
    d: int
    run: Callable[[], Any]
    bytes: float
    flop: float = 0.0
    times: int = 1  # that one run does it


def timed(call: Callable[[], Any], seconds: float) -> tuple[float, float, float]:
    """Milliseconds of a call: the 20th, 50th and 80th percentiles, by CUDA events after a warm-up; by the clock in a
    rehearsal."""
    if device.REHEARSAL:
        start = time.perf_counter()
        call()
        took = 1e3 * (time.perf_counter() - start)
        return took, took, took
    import triton

    p50, p20, p80 = triton.testing.do_bench(
        call, warmup=300 * seconds, rep=1e3 * seconds, quantiles=[0.5, 0.2, 0.8]
    )
    return p20, p50, p80


def ceilings(sizes: Sizes) -> Iterator[tuple[str, float]]:
    """(name, rate): FLOP/s of a product of random matrices in each arithmetic, bytes/s read and written by a copy."""
    n = sizes.matrix
    source = torch.empty(sizes.copied, device=device.HERE, dtype=torch.uint8)
    target = torch.empty_like(source)
    yield "bytes", 2e3 * source.numel() / timed(lambda: target.copy_(source), sizes.seconds)[1]
    half = torch.randn(n, n, device=device.HERE, dtype=torch.float16)  # zeros would run at higher clocks
    single = half.float()
    yield "half", 2e3 * n**3 / timed(lambda: half @ half.T, sizes.seconds)[1]
    torch.backends.cuda.matmul.allow_tf32 = True
    tf32 = 2e3 * n**3 / timed(lambda: single @ single.T, sizes.seconds)[1]
    torch.backends.cuda.matmul.allow_tf32 = False
    yield "tf32", tf32
    yield "tf32x3", tf32 / 3
    yield "ieee", 2e3 * n**3 / timed(lambda: single @ single.T, sizes.seconds)[1]


# -- kernels bound by products -----------------------------------------------------------------------------------------


def work(kernel: str, n: int, d: int, size: int) -> tuple[float, float]:
    """(FLOP, bytes) that a dense kernel must do at least, for n rows of d features of `size` bytes."""
    once = size * n * d
    return {
        "sweep": (2.0 * n * n * d, 2 * once + 12.0 * n),
        "sweep_weighted": (2.0 * n * n * d, 2 * once + 20.0 * n),
        "symmetric": (1.0 * n * n * d, once + 12.0 * n),
        "symmetric_weighted": (1.0 * n * n * d, once + 20.0 * n),
        "columns": (2.0 * BATCH * n * d, once + 4.0 * BATCH * n),
        "fill": (1.0 * n * n * d, once),
        "top_k": (2.0 * n * n * d, once + 120.0 * n),
        "norms": (2.0 * n * d, once + 4.0 * n),
    }[kernel]


def dense(arithmetic: str, n: int, d: int, only: tuple[str, ...] = ()) -> Iterator[Call]:
    for kernel, run in tune.calls(arithmetic, n, d, device.HERE).items():
        if not only or kernel in only:
            flop, moved = work(kernel, n, d, 2 if arithmetic == "half" else 4)
            yield Call(kernel, arithmetic, n, d, run, moved, flop)


# -- kernels bound by memory -------------------------------------------------------------------------------------------


def random(high: int, count: int, dtype: torch.dtype, generator: torch.Generator) -> torch.Tensor:
    return torch.randint(0, high, (count,), device=device.HERE, dtype=dtype, generator=generator)


def ragged(sizes: Sizes, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(ptr, rows, q): columns of random lengths and random rows."""
    counts = random(2 * sizes.pairs, sizes.rows, torch.int64, generator)
    ptr = torch.nn.functional.pad(counts.cumsum(0), (1, 0))
    nnz = int(ptr[-1])
    return ptr, *(random(high, nnz, torch.int32, generator) for high in (sizes.rows, HIGH))


def survivors(sizes: Sizes) -> Iterator[Call]:
    """The walk over stored pairs, of which half rise above the level."""
    n, generator = sizes.rows, torch.Generator(device.HERE).manual_seed(0)
    ptr, rows, q = ragged(sizes, generator)
    nnz = len(rows)
    level = torch.full((n,), HIGH // 2, dtype=torch.int32, device=device.HERE)
    weights = random(1 << 16, n, torch.int64, generator)
    some = torch.randperm(n, device=device.HERE, generator=generator)[: min(2048, n // 4)]
    # one column with every row: what raises the most levels
    whole, every = (
        torch.tensor([0, n], device=device.HERE),
        torch.arange(n, device=device.HERE, dtype=torch.int32),
    )
    their, stays = int((ptr[some + 1] - ptr[some]).sum()), int((q > HIGH // 2).sum())
    alive = walk.alive(ptr, rows, q, level)
    shared = 8.0 * n + 4.0 * n  # pointers, levels

    def call(kernel: str, run: Callable[[], Any], moved: float) -> Call:
        return Call(kernel, "int", n, 0, run, moved)

    yield call("sparse_excess", lambda: walk.sparse_excess(ptr, rows, q, level), 8.0 * nnz + shared + 8 * n)
    yield call(
        "sparse_excess_weighted",
        lambda: walk.sparse_excess(ptr, rows, q, level, weights=weights),
        8.0 * nnz + shared + 16 * n,
    )
    yield call(
        "sparse_excess_batch",
        lambda: walk.sparse_excess(ptr, rows, q, level, cols=some),
        8.0 * their + 32.0 * len(some),
    )
    top = torch.full_like(every, HIGH)
    yield call(
        "sparse_raise", lambda: walk.sparse_raise(whole, every, top, level.clone(), 0), 8.0 * n + 16.0 * n
    )
    yield call("alive", lambda: walk.alive(ptr, rows, q, level), 8.0 * nnz + shared + 8 * n)
    yield call(
        "compact", lambda: walk.compact(ptr, rows, q, level, alive), 8.0 * (nnz + stays) + shared + 16 * n
    )
    # a block of a pass over all candidates: their pairs, and a table of candidates and chosen rows, zeroed and written
    m, k = len(some), max(n // 100, 1)
    owner = random(k, n, torch.int32, generator)
    first, held = level + level // 2, int(ptr[m])
    yield call(
        "swap_gains",
        lambda: swaps.swap_gains(ptr[: m + 1], rows, q, first, level, owner, k),
        8.0 * held + 12.0 * n + 8.0 * m * (k + 2),
    )


def steps(sizes: Sizes) -> Iterator[Call]:
    """A step of the loop on the device: from survivors, its launches alone and as the graph that replays it."""
    n, generator = sizes.rows, torch.Generator(device.HERE).manual_seed(0)
    pairs = ragged(sizes, generator)
    level = torch.full((n,), HIGH // 2, dtype=torch.int32, device=device.HERE)
    search = resident.Search(n, n, torch.device(device.HERE), gain=(1.0 / HIGH,))
    search.key.copy_(walk.sparse_excess(*pairs, level)).mul_(1.0 / HIGH)
    fresh = torch.zeros(search.slots, dtype=torch.int64, device=device.HERE)
    scanned, evaluated = 8.0 * n, 8.0 * sizes.pairs * search.slots

    def step() -> None:
        search.scan(fresh, pairs=pairs, level=level)
        resident.fresh_excess(search, pairs, level, fresh)
        search.decide(fresh, "excess")

    def call(kernel: str, run: Callable[[], Any], moved: float, times: int = 1) -> Call:
        return Call(kernel, "int", n, 0, run, moved, 0.0, times)

    replay = Replay(step, search, CHUNK)
    replay(1)  # its first steps are not replayed: they compile, and are recorded
    yield call("scan", lambda: search.scan(fresh), scanned)
    yield call("fresh_excess", lambda: resident.fresh_excess(search, pairs, level, fresh), evaluated)
    yield call("step", lambda: replay(1), scanned + evaluated, replay.chunk)


def batch(sizes: Sizes) -> Iterator[Call]:
    """Greedy's step over kept columns, in which every level rises; and the best candidate."""
    r, generator = sizes.rows, torch.Generator(device.HERE).manual_seed(0)
    m = min(BATCH, r // 4)
    kept = torch.randint(0, HIGH, (m, r), device=device.HERE, dtype=torch.int32, generator=generator)
    weights = random(1 << 16, r, torch.int64, generator)
    low, level = (torch.zeros(r, dtype=torch.int32, device=device.HERE) for _ in range(2))
    excess = greedy.column_excess(kept, low)
    values = random(1 << 40, r, torch.int64, generator)
    open_ = torch.ones(r, dtype=torch.bool, device=device.HERE)

    def update(weights: torch.Tensor | None = None) -> None:
        level.copy_(low)
        greedy.update(kept, 0, level, excess, weights=weights)

    def call(kernel: str, run: Callable[[], Any], moved: float) -> Call:
        return Call(kernel, "int", r, 0, run, moved)

    once = 4.0 * m * r
    yield call("column_excess", lambda: greedy.column_excess(kept, low), once + 4.0 * r)
    yield call(
        "column_excess_weighted", lambda: greedy.column_excess(kept, low, weights=weights), once + 12.0 * r
    )
    # the level is set back each time: 8 bytes a row, and read, raised and written: 8 and the column's 4
    yield call("update", update, once + 20.0 * r)
    yield call("update_weighted", lambda: update(weights), once + 28.0 * r)
    yield call("best", lambda: greedy.best(values, open=open_), 9.0 * r)


def features(sizes: Sizes) -> Iterator[Call]:
    """Features times vectors in float64."""
    n, d, generator = sizes.rows, sizes.features, torch.Generator(device.HERE).manual_seed(0)
    x = torch.randn(n, d, device=device.HERE, generator=generator).half()
    v = torch.randn(d, 16, device=device.HERE, dtype=torch.float64, generator=generator)
    one, two = v[:, 0].contiguous(), v[:, :2].contiguous()
    behind = torch.full((n,), 16, dtype=torch.int64, device=device.HERE)
    once = 2.0 * n * d

    def call(kernel: str, run: Callable[[], Any], moved: float) -> Call:
        return Call(kernel, "float64", n, d, run, moved)

    yield call("times", lambda: linear.times(x, one), once + 8.0 * n)
    yield call("times_2", lambda: linear.times(x, two), once + 16.0 * n)
    yield call("squares", lambda: linear.squares(x), once + 8.0 * n)
    # bound by float64 arithmetic rather: its floor is that of memory all the same
    yield call("falls_16", lambda: linear.falls(x, v, behind), once + 24.0 * n)


# -- all of them -------------------------------------------------------------------------------------------------------


def everything(sizes: Sizes) -> Iterator[Callable[[], Iterator[Call]]]:
    """Groups of kernels that share their inputs, what matters most first; their memory is free before the next."""
    yield lambda: dense("half", *sizes.sweep, ("sweep", "symmetric"))
    yield lambda: survivors(sizes)
    yield lambda: steps(sizes)
    yield lambda: batch(sizes)
    yield lambda: features(sizes)
    for arithmetic in ARITHMETICS:
        yield lambda arithmetic=arithmetic: dense(arithmetic, *sizes.dense)


def compile_some(which: int, of: int) -> None:
    """Run every of-th group once, on small inputs of the same kinds of sizes."""
    for number, group in enumerate(everything(REHEARSAL if device.REHEARSAL else COMPILED)):
        if number % of == which:
            for call in group():
                call.run()


def measure(call: Call, most: dict[str, float], seconds: float) -> dict[str, Any]:
    before = compiling.seconds()
    call.run()
    compiled = compiling.seconds() - before
    p20, p50, p80 = (ms / call.times for ms in timed(call.run, seconds))
    rate = most.get(call.arithmetic)
    floor = 1e3 * max(call.bytes / most["bytes"], call.flop / rate if rate else 0.0)
    row = {"ms_p50": p50, "ms_p20": p20, "ms_p80": p80, "floor_ms": floor, "of_floor": floor / p50}
    row["tb_s"], row["tflop_s"] = 1e-9 * call.bytes / p50, 1e-9 * call.flop / p50
    return {**{key: round(value, 5) for key, value in row.items()}, "compile_s": round(compiled, 2)}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help=".jsonl file to which rows are appended; default: none")
    parser.add_argument("--seconds", type=float, default=60, help="no kernel is begun after this")
    parser.add_argument("--compile", nargs=2, type=int, metavar=("I", "N"))
    given = parser.parse_args(arguments)
    if not device.REHEARSAL and not torch.cuda.is_available():
        print("no NVIDIA GPU that torch can use", file=sys.stderr)
        return 2
    if given.compile:
        compile_some(*given.compile)
        return 0
    start, sizes = time.monotonic(), REHEARSAL if device.REHEARSAL else Sizes()
    about, here = device.describe(), describe()
    about["versions"] = {**here["versions"], **about["versions"]}
    machine = {**here, "host": here["device"], **about, "device": about["gpu"]}
    most: dict[str, float] = {}
    failed = 0

    def tell(row: dict[str, Any]) -> None:
        row = {**row, **machine, "time": datetime.now(UTC).strftime("%Y-%m-%dT%H:%MZ")}
        if given.out is not None:
            append(given.out, row)
        print(summary(row), flush=True)

    for name, rate in ceilings(sizes):
        most[name] = rate
        tell({"ceiling": name, "tera_per_s": round(rate / 1e12, 4)})
    for group in everything(sizes):
        device.release()
        calls = group()
        while True:
            row: dict[str, Any] = {"kernel": "inputs"}
            try:
                call = next(calls, None)
                if call is None:
                    break
                row = {"kernel": call.kernel, "arithmetic": call.arithmetic, "n": call.n, "d": call.d}
                if time.monotonic() - start > given.seconds:
                    tell({**row, "stopped": f"time: {given.seconds:.0f} s are over"})
                    continue
                tell({**row, **measure(call, most, sizes.seconds)})
            except Exception as error:  # noqa: BLE001 (whatever it is, the other kernels are still to be timed)
                failed += 1
                tell({**row, "failed": f"{type(error).__name__}: {error}"[:500]})
    return 1 if failed else 0


def summary(row: dict[str, Any]) -> str:
    if "ceiling" in row:
        return f"ceiling {row['ceiling']:<12} {row['tera_per_s']:10.3f} T/s"
    name = f"{row['kernel']:<22} {row.get('arithmetic', ''):<7}"
    if "ms_p50" not in row:
        return f"{name} {row.get('stopped') or row['failed']}"
    return (
        f"{name} n {row['n']:>8} d {row['d']:>4} {row['ms_p50']:10.3f} ms  floor {row['floor_ms']:9.3f} ms"
        f"  {row['of_floor']:6.1%}"
    )


if __name__ == "__main__":
    sys.exit(main())
