"""Sieve-streaming on Alpaca against greedy that sees everything; and its memory, for streams of 1, 4 and 16 times.

python bench/streaming.py [--out FILE] [--quick]

Values are f over the whole pool of 52,002 rows (SMARTGPU_DATA), as a share of lazy greedy's: "refined" is result(),
"sets" the best set alone. "sample" is the same on the rows that the sieve itself represented. About two minutes on two
cores; with --quick, on a sixteenth of the rows, a few seconds. One JSON line each.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import tracemalloc
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

import smartgpu
from bench.cases import alpaca_path
from bench.machine import describe
from bench.run import append
from smartgpu import FacilityLocation, SieveStreaming

SIZES = (100, 500)
RESERVOIRS = (1000, 4000)
BATCH, EPSILON = 2000, 0.1


def orders(n: int) -> dict[str, np.ndarray]:
    return {"shuffled": np.random.default_rng(0).permutation(n), "as published": np.arange(n)}


def fed(sieve: SieveStreaming, x: np.ndarray, order: np.ndarray) -> SieveStreaming:
    for i in range(0, len(order), BATCH):
        sieve.update(x[order[i : i + BATCH]], order[i : i + BATCH])
    return sieve


def values(x: np.ndarray) -> Iterator[dict[str, Any]]:
    """f of one pass, as a share of greedy's."""
    start = time.perf_counter()
    offline = smartgpu.select(x, min(max(SIZES), len(x) // 4))
    seconds = time.perf_counter() - start
    yield {"what": "offline", "k": offline.k, "value": offline.value, "seconds": seconds}
    for name, order in orders(len(x)).items():
        for k in sorted({min(k, offline.k) for k in SIZES}):
            for reservoir in RESERVOIRS if name == "shuffled" else RESERVOIRS[-1:]:
                start = time.perf_counter()
                sieve = fed(SieveStreaming(k, epsilon=EPSILON, reservoir=reservoir), x, order)
                refined = sieve.result()
                seconds, sets = time.perf_counter() - start, sieve.result(refine=False)
                best = offline.prefix(k).value
                on_sample = smartgpu.select(x, k, FacilityLocation(represented=sieve.represented))
                yield {
                    "what": "value",
                    "order": name,
                    "k": k,
                    "epsilon": EPSILON,
                    "reservoir": reservoir,
                    "refined": smartgpu.evaluate(x, refined.indices).value / best,
                    "sets": smartgpu.evaluate(x, sets.indices).value / best,
                    "sample_refined": refined.value / on_sample.value,
                    "sample_sets": sets.value / on_sample.value,
                    "rows_of_best_set": sets.k,
                    "held_bytes": sieve.held_bytes,
                    "planned_bytes": sieve.planned_bytes(x.shape[1], x.dtype),
                    "seconds": seconds,
                    "rows_per_second": len(x) / seconds,
                }


def memory(x: np.ndarray, k: int = 100) -> Iterator[dict[str, Any]]:
    """The peak of what one pass allocates, for streams of 1, 4 and 16 times a length."""
    order = orders(len(x))["shuffled"]
    for times in (1, 4, 16):
        part = order[: len(x) // 16 * times]
        tracemalloc.start()
        sieve = fed(SieveStreaming(k, epsilon=EPSILON, reservoir=RESERVOIRS[0]), x, part)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        yield {
            "what": "memory",
            "k": k,
            "rows": len(part),
            "peak_bytes": peak,
            "held_bytes": sieve.held_bytes,
            "planned_bytes": sieve.planned_bytes(x.shape[1], x.dtype),
        }


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--quick", action="store_true", help="a sixteenth of the rows")
    options = parser.parse_args(arguments)
    x = np.load(alpaca_path(), mmap_mode="r", allow_pickle=False)
    x = np.array(x[::16] if options.quick else x)
    machine = {"quick": options.quick, **describe()}
    for row in chain(values(x), memory(x)):
        print(json.dumps(row), flush=True)
        if options.out is not None:
            when = datetime.now(UTC).isoformat(timespec="seconds")
            append(options.out, {"benchmark": "streaming", "n": len(x), **row, "time": when, **machine})


if __name__ == "__main__":
    main()
