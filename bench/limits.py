"""What limits cost: a budget and quotas against the plain selection of as many rows, on Alpaca.

python bench/limits.py [--out FILE] [--rows 52002] [--picks 5000] [--repeats 3]

Costs are the lengths of the texts, quotas hold twenty made-up sources to 1.1 times an even share. The runs of one
comparison take turns in one process. One JSON line per (objective, limit); the figure to reach is 1.5.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

import smartgpu
from bench.cases import alpaca_path
from bench.machine import describe
from bench.run import append

OBJECTIVES = ("facility_location", "graph_cut", "log_det")
SOURCES = 20
MOST = 1.5  # times the plain selection of the same size


def lengths(path: Path, n: int) -> np.ndarray:
    """A quarter of a row's characters, rounded up: about its tokens."""
    import pyarrow.parquet as pq

    table = pq.read_table(path).slice(0, n)
    texts = [table.column(name).to_pylist() for name in ("instruction", "input", "output")]
    characters = [sum(len(text or "") for text in row) for row in zip(*texts, strict=True)]
    return np.maximum(np.ceil(np.array(characters) / 4), 1)


def in_turn(runs: dict[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            seconds[name].append(round(time.perf_counter() - start, 3))
    return seconds


def rows(x: np.ndarray, cost: np.ndarray, k: int, repeats: int):
    n = len(x)
    source = np.random.default_rng(0).integers(0, SOURCES, n)
    quotas = smartgpu.Quotas(source, maximum=int(1.1 * k / SOURCES) + 1)
    budget = float(cost.mean() * k)
    smartgpu.select(x[:500], 50)  # the probe for a BLAS layout, threads
    for objective in OBJECTIVES:
        limited = {
            "budget": lambda o=objective: smartgpu.select(x, objective=o, budget=budget, cost=cost),
            "quotas": lambda o=objective: smartgpu.select(x, k, o, quotas=quotas),
        }
        for name, run in limited.items():
            found = run()
            picks = len(found)
            seconds = in_turn(
                {name: run, "plain": lambda o=objective, p=picks: smartgpu.select(x, p, o)}, repeats
            )
            took = {what: statistics.median(values) for what, values in seconds.items()}
            yield {
                "case": f"{objective} {name}",
                "n": n,
                "d": x.shape[1],
                "k": picks,
                "seconds": took[name],
                "plain": took["plain"],
                "ratio": round(took[name] / took["plain"], 2),
                "must": MOST,
                "repeats": seconds,
                "value": found.value,
                "limits": {what: value for what, value in found.limits.items() if what != "quotas"},
                "time": datetime.now(UTC).isoformat(timespec="seconds"),
                **describe(),
            }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path)
    parser.add_argument("--rows", type=int, default=52_002)
    parser.add_argument("--picks", type=int, default=5000)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    path = alpaca_path()
    if not path.exists():
        parser.error(f"needs {path}: set SMARTGPU_DATA")
    x = np.load(path)[: options.rows].astype(np.float32)
    cost = lengths(path.parent / "alpaca.parquet", len(x))
    for row in rows(x, cost, options.picks, options.repeats):
        if options.out is not None:
            append(options.out, row)
        print(
            f"{row['case']:26}{row['k']:>7} rows  {row['seconds']:8.2f} s, plain {row['plain']:8.2f} s"
            f"  {row['ratio']:.2f} times, must be at most {MOST}",
            flush=True,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
