"""Selections by several processes, and by partitions: time, messages, memory, and ten runs that are killed.

python bench/scale.py [processes] [partition] [large] [kills] [--out FILE] [--quick] [--table FILE]
python bench/scale.py device [--rehearse] [--seconds S] [--out FILE]

processes   two processes of one thread over gloo against one process of two, on Alpaca (SMARTGPU_DATA): k = 5,000
partition   k = 250 of 50,000 x 64: what partition greedy's choice is worth beside exact greedy's, by parts, candidates,
            rounds, and represented samples
large       k = 10,000 of 2,000,000 x 64 of the same kind, on disk in 16 bits, by two processes within 2 GB each
kills       a process of two or three killed at ten random moments; the command goes on with another number
device      on one GPU: a process group of one against the plain call; 4,000,000 x 384 by the plan's own advice
Half an hour on two cores; with --quick, on small pools, a minute or two. One JSON line each.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

import smartgpu
from bench.cases import ROOT, alpaca_path
from bench.machine import describe
from bench.run import append
from bench.worker import memory
from smartgpu.planning import LONG

D, K, BLOCK = 64, 10_000, 1 << 16
# Of the large pool: parts, how they are made, candidates, so many times k, rounds; the small pool says what that costs.
PARTS, WAY, TIMES, ROUNDS = 250, "cluster", 2.0, 3
# Of what selections allocate; the pool's pages, Python and torch come to it.
MEMORY = "1.35GB"


# -- processes ---------------------------------------------------------------------------------------------------------


def start(rank: int, size: int, port: int, work: Callable[..., Any], arguments: tuple, folder: str) -> None:
    """One process of a group: what work(*arguments) gives, to a file."""
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    store = dist.TCPStore("127.0.0.1", port, is_master=False)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size)
    found = work(*arguments)
    found["peak_mb"] = peak()
    Path(folder, f"{rank}.json").write_text(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()


def peak() -> float:
    """Most that was resident of this process, in MB. ru_maxrss is no less than that of the one that started it."""
    return round(memory("VmHWM") / 1e6, 1)


def together(size: int, work: Callable[..., Any], *arguments: Any) -> list[dict[str, Any]]:
    """What each of `size` processes gives."""
    import torch

    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    with tempfile.TemporaryDirectory() as folder:
        how = (size, store.port, work, arguments, folder)
        torch.multiprocessing.spawn(start, how, nprocs=size)
        return [json.loads(Path(folder, f"{rank}.json").read_text()) for rank in range(size)]


def select_alpaca(path: str, n: int, k: int, threads: int, memory: str, group: str | None) -> dict[str, Any]:
    x = np.load(path)[:n]
    begin = time.perf_counter()
    got = smartgpu.select(x, k, backend="numpy", threads=threads, memory=memory, process_group=group)
    return {
        "seconds": time.perf_counter() - begin,
        "indices": got.indices.tolist(),
        "sweeps": got.sweeps,
        "evaluations": got.evaluations,
        "phases": got.seconds,
        **(got.together or {}),
    }


def processes(quick: bool) -> Iterator[dict[str, Any]]:
    path = alpaca_path()
    if not path.exists():
        return
    n, k, repeats = (6000, 300, 1) if quick else (52_002, 5000, 2)
    one, two = [], []
    for _ in range(repeats):
        two.append(together(2, select_alpaca, str(path), n, k, 1, "1.5GB", "world")[0])
        one.append(together(1, select_alpaca, str(path), n, k, 2, "3GB", None)[0])
    assert all(run["indices"] == one[0]["indices"] for run in [*one, *two])
    for name, runs in (("one process, two threads", one), ("two processes, one thread each", two)):
        seconds = float(np.median([run["seconds"] for run in runs]))
        row = {"what": "processes", "run": name, "n": n, "k": k, "seconds": seconds, "repeats": repeats}
        row |= {name: runs[0][name] for name in ("sweeps", "evaluations", "phases", "peak_mb")}
        if "messages" in runs[0]:
            base = float(np.median([run["seconds"] for run in one]))
            row |= {"messages": runs[0]["messages"], "bytes": runs[0]["bytes"], "ratio": seconds / base}
            row |= {"messages_per_pick": row["messages"] / k, "bytes_per_pick": row["bytes"] / k}
        yield row


# -- a partition -------------------------------------------------------------------------------------------------------


def write_pool(path: Path, n: int) -> None:
    """Seeded: 2,000 clusters of unlike sizes around a common direction, in 16 bits, block by block."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((2000, D)) + 0.5
    share = rng.pareto(1.5, 2000) + 0.2
    out = np.lib.format.open_memmap(path, "w+", np.float16, (n, D))
    for i in range(0, n, BLOCK):
        m = min(BLOCK, n - i)
        out[i : i + m] = centres[rng.choice(2000, m, p=share / share.sum())] + 0.8 * rng.standard_normal(
            (m, D)
        )
    out.flush()


def select_parts(path: str, k: int, memory: str | None, group: str | None, **way: Any) -> dict[str, Any]:
    """way: arguments of select_partitioned."""
    x = np.load(path, mmap_mode="r")
    begin = time.perf_counter()
    how = {"backend": "numpy", "threads": 1, "memory": memory, "process_group": group}
    got = smartgpu.select_partitioned(x, k, **way, **how)
    seconds = time.perf_counter() - begin
    return {
        "seconds": seconds,
        "rows_per_second": len(x) / seconds,
        "value": got.value,
        "chosen": hashlib.sha256(got.indices.tobytes()).hexdigest(),
        "indices": got.indices.tolist(),
        "phases": got.seconds,
        "sweeps": got.sweeps,
        "evaluations": got.evaluations,
        **{name: value for name, value in got.approximation.items() if name != "method"},
        **(got.together or {}),
    }


def partition(quick: bool) -> Iterator[dict[str, Any]]:
    few, own = (4000, 40) if quick else (50_000, 250)
    ways = [
        {"partition": way, "candidates": times} for way in ("random", "cluster") for times in (2.0, 4.0, 10.0)
    ]
    ways += [{**way, "rounds": 3} for way in ways if way["candidates"] < 10]
    ways += [{"partition": "cluster", "candidates": 4.0, "represented": few // part} for part in (20, 10, 5)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "pool.npy")
        write_pool(path, few)
        x = np.load(path)
        exact = smartgpu.select(x, own, backend="numpy", threads=2)
        for way in ways:
            found = select_parts(str(path), own, None, None, parts=25, **way)
            name = f"{way['partition']}, {way['candidates']:g} k"
            name += "".join(f", {name} {way[name]}" for name in ("rounds", "represented") if name in way)
            # of a represented sample the value is an estimate: this is f(S)
            true = smartgpu.evaluate(x, found.pop("indices"), backend="numpy").value
            row = {"what": f"partition beside exact, {name}", "n": few, "d": D, "k": own}
            yield {**row, "exact": exact.value, "true": true, "of_exact": true / exact.value, **found}


def select_large(path: str, k: int, parts: int) -> dict[str, Any]:
    return select_parts(path, k, MEMORY, "world", parts=parts, partition=WAY, candidates=TIMES, rounds=ROUNDS)


def large(quick: bool) -> Iterator[dict[str, Any]]:
    n, k = (40_000, 400) if quick else (2_000_000, K)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "pool.npy")
        write_pool(path, n)
        runs = together(2, select_large, str(path), k, 25 if quick else PARTS)
    assert runs[0]["indices"] == runs[1].pop("indices")
    del runs[0]["indices"]
    peak = max(run["peak_mb"] for run in runs)
    yield {"what": "partition", "n": n, "d": D, "k": k, "memory": MEMORY, **runs[0], "peak_mb": peak}


# -- kills -------------------------------------------------------------------------------------------------------------


def launch(size: int, pool: Path, k: int, out: Path) -> subprocess.Popen:
    """The command under torchrun, a group of processes of its own."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(size)]
    command += ["-m", "smartgpu", "select", str(pool), "-k", str(k), "--out", str(out), "--backend", "numpy"]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    how = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}
    return subprocess.Popen(command, env=env, **how)


def ranks_of(launcher: int) -> list[int]:
    """The processes that it has started."""
    try:
        text = Path(f"/proc/{launcher}/task/{launcher}/children").read_text()
    except OSError:
        return []
    return [int(word) for word in text.split()]


def kills(quick: bool) -> Iterator[dict[str, Any]]:
    n, k, count = (8000, 800, 2) if quick else (16_000, 6000, 10)
    rng = np.random.default_rng(1)
    with tempfile.TemporaryDirectory() as folder:
        pool = Path(folder, "pool.npy")
        np.save(pool, rng.standard_normal((n, D)).astype(np.float32))
        begin = time.perf_counter()
        whole = launch(2, pool, k, Path(folder, "whole"))
        whole.communicate()
        seconds = time.perf_counter() - begin
        expected = smartgpu.Selection.load(Path(folder, "whole", "selection.npz"))
        same, named, told, kept = 0, 0, [], 0
        for number in range(count):
            out, sizes = Path(folder, str(number)), [2, 3] if number % 2 else [3, 2]
            run = launch(sizes[0], pool, k, out)
            time.sleep(float(rng.uniform(0.35, 0.95)) * seconds)  # somewhere in the selection
            victims = ranks_of(run.pid)
            killed = time.perf_counter()
            if victims:
                os.kill(victims[int(rng.integers(1, len(victims)))], signal.SIGKILL)
            _, errors = run.communicate()
            told.append(time.perf_counter() - killed)
            named += "ended the run: it does not answer" in errors
            kept += (out / ".partial" / "picks.npz").exists()
            again = launch(sizes[1], pool, k, out)
            again.communicate()
            got = smartgpu.Selection.load(out / "selection.npz")
            same += (
                got.indices.tolist() == expected.indices.tolist()
                and got.gains.tolist() == expected.gains.tolist()
            )
        yield {
            "what": "kills",
            "n": n,
            "d": D,
            "k": k,
            "kills": count,
            "identical": same,
            "with_checkpoint": kept,
            "named_by_rank_0": named,
            "seconds_to_the_end_of_all": [round(s, 2) for s in told],
        }


# -- one GPU -----------------------------------------------------------------------------------------------------------


def device(rehearse: bool, seconds: float) -> Iterator[dict[str, Any]]:
    """Rows of one GPU. What the time left would not do is told, not begun. rehearse: tiny, in Triton's interpreter."""
    import torch

    from bench.cases import FL, MILLION, Case
    from bench.device import describe as of_device
    from bench.device import make_pool

    until = time.monotonic() + seconds
    tiny = {"d": 32} if rehearse else {}

    def pool(n: int) -> tuple[Any, dict[str, Any]]:
        case = Case(FL, "gaussian", n, 1, where="device", **tiny)
        x, source = make_pool(case)
        return x, {
            "n": n,
            "d": case.d,
            "data": source,
            **of_device(),
            **({"rehearsal": True} if rehearse else {}),
        }

    def timed(call: Callable[[], Any]) -> tuple[float, Any]:
        begin = time.perf_counter()
        got = call()  # ends with picks on the host
        return time.perf_counter() - begin, got

    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    torch.distributed.init_process_group("gloo" if rehearse else "nccl", store=store, rank=0, world_size=1)
    x, about = pool(90 if rehearse else MILLION)
    k, seen, runs = (9 if rehearse else K), None, {"plain": [], "group": []}
    timed(lambda: smartgpu.select(x, k, backend="triton"))  # compiles
    for _ in range(3):
        for name, group in (("plain", None), ("group", "world")):
            took, got = timed(
                lambda group=group: smartgpu.select(x, k, backend="triton", process_group=group)
            )
            seen = got.indices if seen is None else seen
            assert (got.indices == seen).all()
            runs[name].append(took)
    torch.distributed.destroy_process_group()
    plain, group = (float(np.median(runs[name])) for name in ("plain", "group"))
    yield {
        "what": "one process under a group",
        "k": k,
        "seconds": group,
        "plain": plain,
        "ratio": group / plain,
        **about,
    }

    del x
    x, about = pool(200 if rehearse else 4 * MILLION)
    plan = smartgpu.plan(x, k, backend="triton")
    row = {"what": "by the plan", "k": k, "predicted": plan.seconds, "predicted_sweeps": plan.sweeps, **about}
    apart = plan.seconds > LONG
    left = until - time.monotonic()
    if not apart and plan.seconds > left:
        yield {**row, "stopped": f"time: about {plan.seconds:.0f} s are needed, {left:.0f} s are left"}
        return
    call = smartgpu.select_partitioned if apart else smartgpu.select
    took, got = timed(lambda: call(x, k, backend="triton"))
    yield {
        **row,
        "seconds": took,
        "sweeps": got.sweeps,
        "exact": got.exact,
        "phases": got.seconds,
        "value": got.value,
    }


# -- the page's table --------------------------------------------------------------------------------------------------


def table(path: Path) -> str:
    """What docs/scaling.md shows of these rows, the latest of each kind."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    last = {(row["what"], row.get("run")): row for row in rows if not row.get("quick")}
    lines = ["| measured on two cores | |", "| --- | --- |"]
    for (what, run), row in last.items():
        if what == "processes":
            text = f"{row['seconds']:.1f} s, {row['sweeps']:.2f} sweeps, {row['peak_mb'] / 1000:.1f} GB a process"
            if "ratio" in row:
                text += f"; {row['ratio']:.2f} of the time of one process; {row['messages']} messages and "
                text += f"{row['bytes'] / 1e6:.0f} MB in all, {row['messages_per_pick']:.2f} messages and "
                text += f"{row['bytes_per_pick'] / 1000:.1f} kB a pick"
            lines.append(f"| Alpaca, n = {row['n']:,}, k = {row['k']:,}: {run} | {text} |")
        elif what.startswith("partition"):
            share = row.get("true", row["value"]) / row["total"]
            text = f"f(S) {share:.1%} of f(V)"
            if "of_exact" in row:  # a small pool, for its value
                text += f", {row['of_exact']:.1%} of exact greedy's"
            else:
                text += f"; {row['seconds']:.0f} s, {row['rows_per_second']:,.0f} rows a second"
                text += f", {row['peak_mb'] / 1000:.2f} GB resident a process"
            if "represented" in row:
                low, high = row["share_interval"]
                text += f"; estimated {row['share']:.1%} ({low:.1%} to {high:.1%})"
            name = (
                f"partition greedy ({row['partition']}), n = {row['n']:,}, d = {row['d']}, k = {row['k']:,}: "
            )
            left = ", then ".join(f"{each['candidates']:,}" for each in row.get("by_round", [row]))
            name += f"{row['parts']} parts, {left} candidates"
            name += f", {row['represented']:,} rows represented" if "represented" in row else ""
            lines.append(f"| {name} | {text} |")
        else:
            text = f"{row['identical']} identical results, {row['with_checkpoint']} with picks kept"
            lines.append(f"| {row['kills']} runs killed, resumed by another number of processes | {text} |")
    return "\n".join(lines)


WORK = {"processes": processes, "partition": partition, "large": large, "kills": kills}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "what",
        nargs="*",
        choices=[*WORK, "device", []],
        default=[],
        help="all but device, where none is named",
    )
    parser.add_argument("--out", type=Path)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument(
        "--table", type=Path, help="print the page's table of these rows, and measure nothing"
    )
    parser.add_argument(
        "--rehearse", action="store_true", help="device: in Triton's interpreter, with tiny pools"
    )
    parser.add_argument("--seconds", type=float, default=500.0, help="device: for all of it")
    args = parser.parse_args()
    if args.rehearse:
        os.environ["TRITON_INTERPRET"] = "1"
    if args.table is not None:
        print(table(args.table))
        return 0
    for name in args.what or WORK:
        more = {} if name == "device" else {"quick": args.quick}
        for found in device(args.rehearse, args.seconds) if name == "device" else WORK[name](args.quick):
            row = {**describe(), **more, **found}
            row["time"] = datetime.now(UTC).isoformat(timespec="seconds")
            print(json.dumps({k: v for k, v in found.items() if k != "indices"}), flush=True)
            if args.out is not None:
                append(args.out, row)
    return 0


if __name__ == "__main__":
    sys.exit(main())
