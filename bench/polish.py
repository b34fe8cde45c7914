"""Swaps after greedy beside FasterPAM (kmedoids), the same objective, in one run on Alpaca; or on a GPU.

python bench/polish.py [--out FILE] [--repeats 3]
python bench/polish.py --device [--rehearse] [--out FILE] [--seconds 60]

n = 10,000: f and time of greedy, of select(polish=True), greedy included, and of FasterPAM from three random starts.
FasterPAM wants an n x n matrix of distances, 1 - max(cosine, 0) in float32, all threads: its time is that of the search
on the matrix; making the matrix is timed beside it, and not counted. Ours starts from the embeddings.
n = 52,002: greedy and select(polish=True), where a matrix of distances would be 10.8 GB.
--device: a million rows, 10,000 of them chosen: seconds of one pass over all candidates.

All take turns. One JSON line per case, with medians and all that they are of; exit status 1 where a figure is missed.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

import smartgpu
from bench.cases import ALPACA_ROWS, FL, MILLION, Case, alpaca_path
from bench.machine import describe, package_version, smi
from bench.run import append

SMALL, PICKS = 10_000, (100, 1000)
LARGE = ALPACA_ROWS, 5000
STARTS = (0, 1, 2)  # random_state of FasterPAM
RISE, TIMES = 0.002, 2.0  # of the large case: f above greedy, and the time as a multiple of greedy's
PASS = 3.0  # seconds on one H200


def took(run: Callable[[], Any]) -> tuple[Any, float]:
    start = time.perf_counter()
    out = run()
    return out, time.perf_counter() - start


def in_turn(
    runs: dict[str, Callable[[], Any]], repeats: int
) -> tuple[dict[str, Any], dict[str, list[float]]]:
    """The last answer of each, and the seconds of all."""
    found: dict[str, Any] = {}
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            found[name], passed = took(run)
            seconds[name].append(round(passed, 3))
    return found, seconds


def distances(x: np.ndarray) -> np.ndarray:
    """(n, n) float32 1 - max(cosine, 0), so that n - loss is f."""
    u = x / np.linalg.norm(x, axis=1, keepdims=True)
    out = np.empty((len(x), len(x)), np.float32)
    for i in range(0, len(x), 1000):
        np.maximum(u[i : i + 1000] @ u.T, 0, out=out[i : i + 1000])
    return np.subtract(1, out, out=out)


def beside_kmedoids(x: np.ndarray, k: int, repeats: int) -> dict[str, Any]:
    import kmedoids

    matrix, making = took(lambda: distances(x))
    runs: dict[str, Callable[[], Any]] = ours(x, k)
    for seed in STARTS:
        runs[f"fasterpam {seed}"] = lambda s=seed: kmedoids.fasterpam(
            matrix, k, init="random", random_state=s
        )
    found, seconds = in_turn(runs, repeats)
    theirs = {
        seed: smartgpu.evaluate(x, np.sort(np.asarray(found[f"fasterpam {seed}"].medoids, np.int64))).value
        for seed in STARTS
    }
    row = figures(x, k, found, seconds)
    start = statistics.median([s for seed in STARTS for s in seconds[f"fasterpam {seed}"]])
    row |= {
        "fasterpam_values": list(theirs.values()),
        "fasterpam_seconds": start,
        "matrix_seconds": round(making, 3),
        "kmedoids": package_version("kmedoids"),
    }
    row["musts"] = [
        must("f, of the best of FasterPAM's starts", row["value"] / max(theirs.values()), ">=", 1.0),
        must("time, of one start of FasterPAM", row["seconds"] / start, "<", 1.0),
    ]
    return row


def large(x: np.ndarray, k: int, repeats: int) -> dict[str, Any]:
    row = figures(x, k, *in_turn(ours(x, k), repeats))
    row["musts"] = [
        must("f above greedy's", row["rise"], ">=", RISE),
        must("time, of greedy's", row["seconds"] / row["greedy_seconds"], "<=", TIMES),
    ]
    return row


def ours(x: np.ndarray, k: int) -> dict[str, Callable[[], Any]]:
    how = {"backend": "numpy"}
    return {
        "greedy": lambda: smartgpu.select(x, k, **how),
        "polished": lambda: smartgpu.select(x, k, polish=True, **how),
    }


def figures(x: np.ndarray, k: int, found: dict[str, Any], seconds: dict[str, list[float]]) -> dict[str, Any]:
    """What every row says of our two runs; f of both by evaluate()."""
    before, after = (smartgpu.evaluate(x, found[name].indices).value for name in ("greedy", "polished"))
    return {
        "case": Case(FL, "alpaca", len(x), k).name,
        "n": len(x),
        "d": x.shape[1],
        "k": k,
        "value": after,
        "greedy_value": before,
        "rise": after / before - 1,
        "gap": found["polished"].gap,
        "seconds": statistics.median(seconds["polished"]),
        "greedy_seconds": statistics.median(seconds["greedy"]),
        "polished": found["polished"].polished,
        "sweeps": found["polished"].sweeps,
        "repeats": seconds,
    }


def must(what: str, value: float, sense: str, limit: float) -> dict[str, Any]:
    reached = {">=": value >= limit, "<=": value <= limit, "<": value < limit}[sense]
    return {"what": what, "value": round(value, 6), "must": f"{sense} {limit:g}", "reached": reached}


def on_device(rehearse: bool, seconds: float) -> dict[str, Any]:
    """A search of so many seconds; its passes over all candidates are timed one by one."""
    from bench.device import describe as of_device
    from bench.device import make_pool
    from smartgpu.polish import Search

    case = Case(FL, "gaussian", MILLION, 10_000, where="device")
    case = Case(FL, "gaussian", 96, 6, d=32, where="device") if rehearse else case
    x, data = make_pool(case)
    passes: list[float] = []
    whole = Search._candidates

    def timed(search: Search) -> np.ndarray:
        out, passed = took(lambda: whole(search))  # it ends with figures on the host
        passes.append(round(passed, 4))
        return out

    Search._candidates = timed
    try:
        smartgpu.select(x[:500], min(50, case.k), backend="triton", polish=1)  # kernels are compiled
        passes.clear()
        found, total = took(lambda: smartgpu.select(x, case.k, backend="triton", polish=float(seconds)))
    finally:
        Search._candidates = whole
    row = {
        **case.describe(),
        "data": data,
        "value": found.value,
        "greedy_value": found.polished["before"],
        "gap": found.gap,
        "seconds": round(total, 3),
        "phases": found.seconds,
        "polished": found.polished,
        "pass_seconds": statistics.median(passes),
        "passes": passes,
        **of_device(),
    }
    if rehearse:
        return {**row, "rehearsal": True}
    return {**row, **smi(), "musts": [must("a pass over all candidates: s", row["pass_seconds"], "<=", PASS)]}


def on_alpaca(repeats: int) -> Iterator[dict[str, Any]]:
    x = np.load(alpaca_path()).astype(np.float32)
    smartgpu.select(x[:500], 50, backend="numpy", polish=True)  # the probe for a BLAS layout, threads
    for k in PICKS:
        yield beside_kmedoids(x[:SMALL], k, repeats)
    yield large(x[: LARGE[0]], LARGE[1], repeats)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", action="store_true")
    parser.add_argument("--rehearse", action="store_true", help="in Triton's interpreter, tiny: no figures")
    parser.add_argument("--seconds", type=float, default=60.0, help="of the search on a device")
    options = parser.parse_args(arguments)
    if options.rehearse:
        os.environ["TRITON_INTERPRET"] = "1"
    if not options.device and not alpaca_path().exists():
        parser.error(f"needs {alpaca_path()}: set SMARTGPU_DATA")
    rows = (
        iter([on_device(options.rehearse, options.seconds)]) if options.device else on_alpaca(options.repeats)
    )
    missed = 0
    for row in rows:
        row = {**row, **describe(), "time": datetime.now(UTC).isoformat(timespec="seconds")}
        if options.out is not None:
            append(options.out, row)
        value, before = row["value"], row["greedy_value"]
        print(f"{row['case']}: f {value:.6g}, greedy {before:.6g}, {row['seconds']:.3g} s", flush=True)
        for each in row.get("musts", ()):
            missed += not each["reached"]
            verdict = "reached" if each["reached"] else "MISSED"
            print(f"  {verdict:8} {each['what']}: {each['value']:.5g} ({each['must']})", flush=True)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
