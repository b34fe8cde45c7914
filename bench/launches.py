"""The kernels of csrc/: the same bits as Triton's first, then what the predictions in docs/kernels.md rest on.

python bench/launches.py --out FILE [--parts PART ...] [--seconds S]      (bench/gpu.py starts it)

Every part has a process of its own, so that one that breaks the device, or hangs, costs its own row only:
pairs_A    (A = fp16, bf16, tf32, tf32x3)  similarities against Triton's, bit by bit; FLOP/s of one block's tiles
blocks, clusters      whole selections of all three objectives against those of one by one; us a pick, s of the rest
tail       a selection whose sparse tail is one launch after the other against its steps; us a pick of the launches

Rows say "gate": "pass", or what differs, and then there is no figure; "apart" where pairs differ by rounding alone.
With TRITON_INTERPRET=1 they are a rehearsal: csrc/ as tests/host compiles it, with tiny pools.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

PARTS = ("pairs_fp16", "pairs_bf16", "pairs_tf32", "pairs_tf32x3", "blocks", "clusters", "tail")
SPANS = {"blocks": False, "clusters": True}


def seconds_of(work: Callable[[], Any], times: int = 5) -> float:
    """The median, of whole calls."""
    from bench import device

    out = []
    for _ in range(times + 1):  # the first one compiles and loads
        device.synchronize()
        start = time.perf_counter()
        work()
        device.synchronize()
        out.append(time.perf_counter() - start)
    return float(np.median(out[1:]))


def pairs(how: str, kernels: Any, tiny: bool) -> dict[str, Any]:
    import torch

    from smartgpu.backends import cuda, cuda_batch

    differing, most, near = 0, 0, True
    shapes = ((201, 1024), (300, 384), (40, 4096), (129, 16))
    for n, d in shapes[-1:] if tiny else shapes:
        q, triton = cuda_batch._both(n, d, "cosine", how, kernels)
        differing += int((q != triton).sum())
        far = int((q - triton).abs().max())
        most, near = max(most, far), near and far <= cuda_batch.near(d)
    row = {"part": f"pairs_{how}", "differing": differing, "quanta_apart": most}
    if not near:
        return {**row, "gate": f"fail: {most} quanta from Triton's, which does the work of {how}"}
    gate = f"apart: {differing} pairs differ from Triton's by rounding" if differing else "pass"
    n, d = (130, 32) if tiny else (1024, 1024)
    dtype = torch.float16 if how == "fp16" else torch.bfloat16 if how == "bf16" else torch.float32
    x = torch.randn((n, d), device=kernels.device, dtype=dtype) / d**0.5
    q = torch.empty((n, n), device=kernels.device, dtype=torch.int32)
    values = dict.fromkeys(cuda_batch.FIELDS) | {
        "x": x, "stride": d * x.element_size(), "d": d, "rows": torch.arange(n, device=kernels.device),
        "start": torch.tensor([0, n], device=kernels.device), "kind": cuda_batch.KINDS["cosine"],
    }  # fmt: skip
    given, shared = cuda.pack(cuda_batch.FIELDS, values), cuda_batch.TILES[how][0]
    spent = seconds_of(
        lambda: kernels.launch(f"quanta_{how}", 1, cuda_batch.THREADS, given, q.data_ptr(), n, shared=shared)
    )
    tiles = -(-n // 128)
    flop = tiles * (tiles + 1) / 2 * 128**2 * 2 * d
    return {**row, "gate": gate, "ms_p50": 1e3 * spent, "tflop_s": flop / spent / 1e12,
            "predicted_tflop_s": cuda_batch.FLOPS[how] / 1e12}  # fmt: skip


def selections(span: str, kernels: Any, tiny: bool) -> dict[str, Any]:
    import smartgpu
    from smartgpu.backends import cuda, cuda_batch, device
    from smartgpu.similarity import as_similarity

    rng = np.random.default_rng(0)
    n, d = (200, 32) if tiny else (4000, 1024)
    x = (rng.standard_normal((n, d)) + 0.3).astype(np.float32)
    x[n // 2 : n // 2 + n // 20] = x[: n // 20]
    pool = device.prepare(as_similarity("cosine"), x, precision="fp16")

    def launch(rows: list[np.ndarray], counts: list[int], objective: str) -> list:
        problems = cuda_batch.Problems(rows, counts, objective, lam=0.4)
        needed, every = (
            int(cuda_batch.needs(problems, "cosine", pool.x.shape[1]).max()),
            list(range(len(rows))),
        )
        teams = min(len(rows), 4)
        alone = cuda_batch.Plan([], every, (0, teams), (0, needed))
        plan = cuda_batch.Plan(every, [], (teams, 0), (needed, 0)) if SPANS[span] else alone
        return cuda_batch.run(pool, problems, plan, kernels)

    row = {"part": span, "objectives": 3}
    specs = {"facility_location": smartgpu.FacilityLocation(), "graph_cut": smartgpu.GraphCut(lam=0.4),
             "log_det": smartgpu.LogDet(lam=0.4)}  # fmt: skip
    sizes = (150, 20, 1) if tiny else (n, 2049, 700, 129, 128, 8, 1)
    rows = [np.sort(rng.permutation(n)[:m]) for m in sizes]
    counts = [min(m, 6 if tiny else 60) for m in sizes]
    for objective, spec in specs.items():
        found = launch(rows, counts, objective)
        for group, k, (indices, gains) in zip(rows, counts, found, strict=True):
            with cuda.without(kernels.device):
                want = smartgpu.select(x[group], k, spec, "cosine", backend="triton", precision="fp16")
            if objective != "facility_location":
                same = np.allclose(gains, want.gains, rtol=0, atol=1e-9)
            elif cuda_batch.apart("fp16", kernels) == 0:
                same = np.array_equal(indices, want.indices) and np.array_equal(gains, want.gains)
            else:  # candidates as close as rounding change places
                same = np.isclose(gains.sum(), want.value, rtol=1e-5)
            if not same:
                return {**row, "gate": f"fail: {objective} of {len(group)} rows differs from one by one"}
    one = [np.arange(150 if tiny else 2000)]
    few, many = (5, 40) if tiny else (10, 410)
    short, long = (seconds_of(lambda k=k: launch(one, [k], "facility_location")) for k in (few, many))
    predicted = cuda_batch.CLUSTER_STEP if SPANS[span] else cuda_batch.STEP
    return {**row, "gate": "pass", "us_pick": 1e6 * (long - short) / (many - few), "predicted_us_pick": 1e6 * predicted,
            "rows": len(one[0]), "ms_p50": 1e3 * short}  # fmt: skip


def tail(kernels: Any, tiny: bool) -> dict[str, Any]:
    import smartgpu
    from bench import device
    from smartgpu.backends import cuda

    rng = np.random.default_rng(0)
    n, k = (48, 20) if tiny else (100_000, 12_000)
    x = (rng.standard_normal((n, 16 if tiny else 64)) + 0.2).astype(np.float32)
    x[n // 2 : n // 2 + n // 20] = x[: n // 20]
    start, spent, launches = kernels.launch, 0.0, 0

    def timed(name: str, *more: Any, **how: Any) -> None:
        nonlocal spent, launches
        device.synchronize()
        began = time.perf_counter()
        start(name, *more, **how)
        device.synchronize()
        if name == "sparse_tail":
            spent, launches = spent + time.perf_counter() - began, launches + 1

    got = smartgpu.select(x, k, backend="triton")  # compiles
    kernels.launch = timed
    again = smartgpu.select(x, k, backend="triton")
    kernels.launch = start
    with cuda.without(kernels.device):
        want = smartgpu.select(x, k, backend="triton")
    row = {"part": "tail", "n": n, "k": k, "launches": launches}
    for sel in (got, again):
        if not np.array_equal(sel.indices, want.indices) or not np.array_equal(sel.gains, want.gains):
            return {**row, "gate": "fail: picks differ from those by steps"}
    if not launches:
        return {**row, "gate": "fail: no launch was made"}
    # all but the few dozen picks before survivors are stored
    return {**row, "gate": "pass", "us_pick": 1e6 * spent / k, "predicted_us_pick": 6.3}


def measure(part: str) -> dict[str, Any]:
    """One part, in this process."""
    from bench import device
    from smartgpu.backends import cuda
    from smartgpu.backends.device import open_device

    at = open_device()
    if device.REHEARSAL:
        sys.path.insert(0, str(ROOT / "tests"))
        import hostcuda

        cuda._known[at] = hostcuda.HostKernels(at)
    kernels = cuda.kernels(at)
    if kernels is None:
        return {"part": part, "gate": f"fail: no CUDA kernels: {cuda.find().missing or 'the log says why'}"}
    if part == "tail":
        row = tail(kernels, device.REHEARSAL)
    elif part in SPANS:
        row = selections(part, kernels, device.REHEARSAL)
    else:
        row = pairs(part.removeprefix("pairs_"), kernels, device.REHEARSAL)
    return {**row, **device.describe()}


def ask(part: str, seconds: float) -> dict[str, Any]:
    """The row of a part, from a process of its own; with "failed" where that died or did not answer in time."""
    if seconds < 2:
        return {"part": part, "failed": "time: it is over"}
    command = [sys.executable, str(Path(__file__).resolve()), "--here", part]
    try:
        got = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        return {"part": part, "failed": f"no answer for {seconds:.0f} s"}
    lines = got.stdout.splitlines()
    if got.returncode != 0 or not lines:
        return {"part": part, "failed": (got.stderr or got.stdout).strip()[-800:] or f"exit {got.returncode}"}
    row = json.loads(lines[-1])
    return row if row["gate"] == "pass" else {**row, "told": got.stderr.strip()[-400:]}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help=".jsonl file to which rows are appended; default: none")
    parser.add_argument(
        "--parts", nargs="+", choices=PARTS, default=PARTS, metavar="PART", help=", ".join(PARTS)
    )
    parser.add_argument("--seconds", type=float, default=60, help="for all of them")
    parser.add_argument("--here", choices=PARTS, help=argparse.SUPPRESS)  # what ask() starts
    given = parser.parse_args(arguments)
    if given.here:
        print(json.dumps(measure(given.here)))
        return 0
    from bench.machine import describe
    from bench.run import append

    end, machine, bad = time.monotonic() + given.seconds, describe(), 0

    def left() -> float:
        return end - time.monotonic()

    # those of pairs at once, a multiprocessor for each; then the others, one by one
    pairs = [part for part in given.parts if part.startswith("pairs")]
    with ThreadPoolExecutor(max(1, len(pairs))) as threads:
        rows = list(threads.map(lambda part: ask(part, left() / 2), pairs))
    others = [part for part in given.parts if part not in pairs]
    for number, part in enumerate(others):  # one that hangs leaves time for the rest
        rows.append(ask(part, left() / min(2, len(others) - number)))
    for row in rows:
        bad += "failed" in row or row["gate"].startswith("fail")
        row = {**machine, **row, "time": datetime.now(UTC).strftime("%Y-%m-%dT%H:%MZ")}
        if given.out is not None:
            append(given.out, row)
        figures = ("us_pick", "predicted_us_pick", "tflop_s", "predicted_tflop_s", "ms_p50")
        text = ", ".join(f"{name} {row[name]:.4g}" for name in figures if name in row)
        print(f"{row['part']:<13} {row.get('failed') or row['gate']}  {text}", flush=True)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
