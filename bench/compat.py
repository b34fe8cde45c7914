"""Every function that a peer and smartgpu.compat share, from data, ours against the peer's: one JSON line each.

python bench/compat.py --peer submodlib|apricot [--only PATTERN ...] [--n 10000] [--k N] [--out FILE] [--list]

Each library runs in a process of its own, after a warm-up on 300 rows, three times where that is quick; medians. What
is timed is the peer's own code: a constructor given data, and greedy. Values are f of the picks by smartgpu's function
for both, beside the sum of the gains that each library said.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from bench.cases import ALPACA_ROWS, ROOT, alpaca_path
from bench.machine import available_memory, describe, package_version
from bench.run import MB, SHARE_OF_MEMORY, Limits, append
from bench.worker import SPARE, memory, release, reset_peak

WARM_ROWS, WARM_PICKS = 300, 20
BESIDE = 20  # rows of a query, and of a private set
CONCEPTS, PER_ROW = 5000, 10
LIMIT = 900.0  # seconds for one library on one function

# (elements or rows chosen, gains as the library says them)
Picks = tuple[list[int], list[float]]
PACKAGES = {"submodlib": "submodlib-py", "apricot": "apricot-select"}


class Data:
    """What functions take: n rows of Alpaca, others as query and private set, concepts and counts made from them."""

    def __init__(self, x: np.ndarray, n: int, k: int):
        self.n, self.k = n, k
        self.x, self.query, self.private = x[:n], x[-2 * BESIDE : -BESIDE], x[-BESIDE:]
        self.plus = np.abs(self.x)
        # concepts: which features are a row's largest, one after the other; a row covers a feature as it is large
        top = np.argsort(-self.x, axis=1, kind="stable")[:, : PER_ROW + 1]
        self.sets = [set(row.tolist()) for row in (top[:, :-1] * 384 + top[:, 1:]) % CONCEPTS]
        self.chances = np.clip(self.plus * 0.1, 0, 1)


def read(n: int) -> np.ndarray:
    """(n + 2 BESIDE, 384) float32: Alpaca's first rows and its last, or Gaussian ones where it is not there."""
    if alpaca_path().is_file():
        x = np.load(alpaca_path(), mmap_mode="r")
        if n > ALPACA_ROWS - 2 * BESIDE:
            raise SystemExit(f"--n must be at most {ALPACA_ROWS - 2 * BESIDE}, the rows of Alpaca, got {n}")
        return np.concatenate([x[:n], x[-2 * BESIDE :]]).astype(np.float32)
    return np.random.default_rng(0).standard_normal((n + 2 * BESIDE, 384)).astype(np.float32)


# -- submodlib -----------------------------------------------------------------------------------------------------

# name -> (class, its arguments). Disparity asks for similarities in [0, 1], concave over modular for >= 0: euclidean's.
EUCLIDEAN = {"metric": "euclidean"}
SUBMODLIB: dict[str, tuple[str, Callable[[Data], dict[str, Any]]]] = {
    "facility_location": ("FacilityLocation", lambda d: {"mode": "dense", "data": d.x}),
    "facility_location_sparse": (
        "FacilityLocation",
        lambda d: {"mode": "sparse", "num_neighbors": 50, "data": d.x},
    ),
    "facility_location_euclidean": (
        "FacilityLocation",
        lambda d: {"mode": "dense", "data": d.x, **EUCLIDEAN},
    ),
    "graph_cut": ("GraphCut", lambda d: {"mode": "dense", "lambdaVal": 0.4, "data": d.x}),
    "log_determinant": ("LogDeterminant", lambda d: {"mode": "dense", "lambdaVal": 1, "data": d.x}),
    "disparity_sum": ("DisparitySum", lambda d: {"mode": "dense", "data": d.x, **EUCLIDEAN}),
    "disparity_min": ("DisparityMin", lambda d: {"mode": "dense", "data": d.x, **EUCLIDEAN}),
    "clustered": (
        "Clustered",
        lambda d: {
            "f_name": "FacilityLocation",
            "mode": "multi",
            "data": d.x,
            "cluster_lab": (np.arange(d.n) % 20).tolist(),
            "num_clusters": 20,
        },
    ),
    "feature_based": (
        "FeatureBased",
        lambda d: {"features": d.plus, "numFeatures": d.x.shape[1], "sparse": False},
    ),
    "set_cover": ("SetCover", lambda d: {"cover_set": d.sets, "num_concepts": CONCEPTS}),
    "probabilistic_set_cover": (
        "ProbabilisticSetCover",
        lambda d: {"probs": d.chances.tolist(), "num_concepts": 384},
    ),
    "set_cover_mi": (
        "SetCoverMutualInformation",
        lambda d: {"cover_set": d.sets, "num_concepts": CONCEPTS, "query_concepts": set(range(1000))},
    ),
    "probabilistic_set_cover_cg": (
        "ProbabilisticSetCoverConditionalGain",
        lambda d: {"probs": d.chances.tolist(), "num_concepts": 384, "private_concepts": set(range(50))},
    ),
    "facility_location_mi": ("FacilityLocationMutualInformation", lambda d: _query(d)),
    "facility_location_variant_mi": ("FacilityLocationVariantMutualInformation", lambda d: _query(d)),
    "graph_cut_mi": ("GraphCutMutualInformation", lambda d: _query(d)),
    "concave_over_modular": ("ConcaveOverModular", lambda d: {**_query(d), **EUCLIDEAN}),
    "log_determinant_mi": ("LogDeterminantMutualInformation", lambda d: {**_query(d), "lambdaVal": 1}),
    "facility_location_cg": ("FacilityLocationConditionalGain", lambda d: _private(d)),
    "graph_cut_cg": ("GraphCutConditionalGain", lambda d: {**_private(d), "lambdaVal": 0.4}),
    "log_determinant_cg": ("LogDeterminantConditionalGain", lambda d: {**_private(d), "lambdaVal": 1}),
    "facility_location_cmi": (
        "FacilityLocationConditionalMutualInformation",
        lambda d: {**_query(d), **_private(d)},
    ),
    "log_determinant_cmi": (
        "LogDeterminantConditionalMutualInformation",
        lambda d: {**_query(d), **_private(d), "lambdaVal": 1},
    ),
}


def _query(d: Data) -> dict[str, Any]:
    return {"data": d.x, "num_queries": len(d.query), "queryData": d.query}


def _private(d: Data) -> dict[str, Any]:
    return {"data": d.x, "num_privates": len(d.private), "privateData": d.private}


def run_submodlib(library: ModuleType, name: str, d: Data) -> Picks:
    short, arguments = SUBMODLIB[name]
    f = getattr(library, f"{short}Function")(n=d.n, **arguments(d))
    picks = f.maximize(d.k, "LazyGreedy", show_progress=False)
    return [i for i, _ in picks], [gain for _, gain in picks]


def worth_submodlib(library: ModuleType, name: str, d: Data, picks: list[int]) -> float:
    short, arguments = SUBMODLIB[name]
    return getattr(library, f"{short}Function")(n=d.n, **arguments(d)).evaluate(set(picks))


# -- apricot -------------------------------------------------------------------------------------------------------

# name -> (class, its arguments, what it is fitted on). Graph cut's alpha keeps gains above 0 for 10 % of the rows.
APRICOT: dict[str, tuple[str, dict[str, Any], str]] = {
    "facility_location": ("FacilityLocation", {"metric": "cosine"}, "x"),
    "facility_location_euclidean": ("FacilityLocation", {"metric": "euclidean"}, "x"),
    "facility_location_corr": ("FacilityLocation", {"metric": "corr"}, "x"),
    "graph_cut": ("GraphCut", {"metric": "cosine", "alpha": 2.5}, "x"),
    "graph_cut_euclidean": ("GraphCut", {"metric": "euclidean", "alpha": 2.5}, "x"),
    "saturated_coverage": ("SaturatedCoverage", {"metric": "cosine"}, "x"),
    "sum_redundancy": ("SumRedundancy", {"metric": "cosine"}, "x"),
    "feature_based": ("FeatureBased", {"concave_func": "sqrt"}, "plus"),
    "feature_based_log": ("FeatureBased", {"concave_func": "log"}, "plus"),
    "max_coverage": ("MaxCoverage", {"threshold": 5.0}, "plus"),
    "mixture": ("Mixture", {"metric": "cosine"}, "x"),
    "custom": ("Custom", {"function": lambda rows: float(np.sqrt(rows.sum(axis=0)).sum())}, "plus"),
}


def _selector(library: ModuleType, name: str, k: int, **more: Any) -> tuple[Any, str]:
    short, arguments, on = APRICOT[name]
    if short == "Mixture":
        parts = [library.FacilityLocationSelection(k), library.GraphCutSelection(k, alpha=2.5)]
        arguments = {**arguments, "functions": parts, "weights": np.array([1.0, 0.1])}
    return getattr(library, f"{short}Selection")(k, **arguments, **more), on


def run_apricot(library: ModuleType, name: str, d: Data) -> Picks:
    """Lazy greedy: its own default for facility location, and the fastest that it has for most."""
    selector, on = _selector(library, name, d.k, optimizer="lazy")
    selector.fit(getattr(d, on).astype(np.float64))
    return selector.ranking.tolist(), selector.gains.tolist()


def worth_apricot(library: ModuleType, name: str, d: Data, picks: list[int]) -> float:
    """f of the picks, each row once: by our module's objective."""
    import smartgpu

    selector, on = _selector(library, name, d.k)
    data, kind, table = selector._data(getattr(d, on).astype(np.float64))
    weight, objective = selector._objective(table, None)
    return weight * smartgpu.evaluate(data, list(dict.fromkeys(picks)), objective, kind).value


# peer -> (names, how one runs, what picks are worth by our module). A peer's functions all run by one call.
PEERS: dict[str, tuple[list[str], Callable[..., Picks], Callable[..., float]]] = {
    "submodlib": (list(SUBMODLIB), run_submodlib, worth_submodlib),
    "apricot": (list(APRICOT), run_apricot, worth_apricot),
}


# -- a process for each library ------------------------------------------------------------------------------------


def work(message: dict[str, Any]) -> dict[str, Any]:
    """In the worker: warm up, run, and what was found."""
    _, run, worth = PEERS[message["peer"]]
    library = importlib.import_module(message["library"])
    x, n, k = np.load(message["pool"]), message["n"], message["k"]
    if message.get("picks") is not None:
        return {"value": float(worth(library, message["name"], Data(x, n, k), message["picks"]))}
    rows = min(WARM_ROWS, n)
    few = np.concatenate([x[:rows], x[-2 * BESIDE :]])
    run(library, message["name"], Data(few, rows, min(WARM_PICKS, rows - 1)))
    size = memory("VmSize") + int(message["limit"]) + SPARE
    resource.setrlimit(resource.RLIMIT_AS, (size, size))
    data, seconds, peaks = Data(x, n, k), [], []
    while len(seconds) < (Limits().repeats(seconds[0]) if seconds else 1):
        release()
        reset_peak()
        before, start = memory("VmRSS"), time.perf_counter()
        picks, gains = run(library, message["name"], data)
        seconds.append(time.perf_counter() - start)
        peaks.append(memory("VmHWM") - before)
    return {"seconds": seconds, "peak": max(peaks), "picks": picks, "gains": float(np.sum(gains))}


def ask(message: dict[str, Any], limit: float) -> dict[str, Any]:
    """A worker's answer, or {"stopped": why}."""
    command = [sys.executable, __file__, "--worker", json.dumps(message)]
    child = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        out, err = child.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        child.kill()
        child.communicate()
        return {"stopped": f"time: more than {limit:.0f} s"}
    if child.returncode == 0:
        return json.loads(out.splitlines()[-1])
    last = (err.strip().splitlines() or ["no message"])[-1]
    killed = child.returncode == -signal.SIGKILL or "MemoryError" in last or "bad_alloc" in last
    return {"stopped": f"memory: {last}" if killed else f"error: {last}"}


def measure(
    peer: str, name: str, n: int, k: int, pool: Path, limit: float, out: Path | None, say=print
) -> list[dict]:
    """The peer's row, then ours, which says how much faster it is."""
    rows: list[dict[str, Any]] = []
    message = {"peer": peer, "name": name, "n": n, "k": k, "pool": str(pool)}
    ours = f"smartgpu.compat.{peer}"
    for library in (peer, ours):
        message["limit"] = SHARE_OF_MEMORY * available_memory()
        got = ask({**message, "library": library}, limit)
        row: dict[str, Any] = {
            "case": f"compat-{peer}-{name}-n{n}-k{k}",
            "n": n,
            "d": 384,
            "k": k,
            "function": name,
        }
        row |= {"pool": "alpaca" if alpaca_path().is_file() else "gaussian", "provider": library}
        if "stopped" in got:
            row["stopped"] = got["stopped"]
        else:
            row |= {
                "ms_p50": round(1e3 * float(np.median(got["seconds"])), 2),
                "repeats": len(got["seconds"]),
            }
            row |= {"peak_mb": round(got["peak"] / MB, 1), "picks": len(got["picks"]), "gains": got["gains"]}
            said = ask({**message, "library": ours, "picks": got["picks"]}, limit)
            row["value"] = said.get("value")
            if rows and "ms_p50" in rows[0]:
                row["times_faster"] = round(rows[0]["ms_p50"] / row["ms_p50"], 2)
                if row["value"] is not None and rows[0]["value"]:
                    row["value_ratio"] = row["value"] / rows[0]["value"]
        about = describe()
        about["versions"] |= {} if library == ours else {PACKAGES[peer]: package_version(PACKAGES[peer])}
        row |= {**about, "time": datetime.now(UTC).strftime("%Y-%m-%dT%H:%MZ")}
        rows.append(row)
        if out is not None:
            append(out, row)
        say(summary(row))
    return rows


def summary(row: dict[str, Any]) -> str:
    name = f"{row['function']:<30} {row['provider']:<26}"
    if "stopped" in row:
        return f"{name} stopped: {row['stopped'][:100]}"
    faster = f"  {row['times_faster']:.1f} times as fast" if "times_faster" in row else ""
    value = row["gains"] if row["value"] is None else row["value"]
    return f"{name} {row['ms_p50'] / 1e3:9.3f} s {row['peak_mb']:8.0f} MB  f {value:.6g}{faster}"


def _means(pattern: str, name: str) -> bool:
    return name == pattern[:-1] if pattern.endswith("$") else pattern in name


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer", choices=sorted(PEERS), default="submodlib")
    parser.add_argument(
        "--only", nargs="+", metavar="PATTERN", help="parts of function names; NAME$ is all of one"
    )
    parser.add_argument("--n", type=int, default=10_000)
    parser.add_argument("--k", type=int, help="default n / 10")
    parser.add_argument("--limit", type=float, default=LIMIT, help="seconds for one library on one function")
    parser.add_argument(
        "--out", type=Path, help=".jsonl file to which rows are appended, each as it is measured"
    )
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.worker:
        answer = work(json.loads(given.worker))
        sys.stdout.flush()
        os.write(1, (json.dumps(answer) + "\n").encode())
        return 0
    names = [x for x in PEERS[given.peer][0] if given.only is None or any(_means(p, x) for p in given.only)]
    if given.list or not names:
        print("\n".join(names) or f"no function matches {given.only}")
        return 0 if names else 2
    importlib.import_module(given.peer)  # missing: says so now
    n, k = given.n, given.k or max(1, given.n // 10)
    with tempfile.TemporaryDirectory(prefix="smartgpu-compat-") as folder:
        pool = Path(folder) / "pool.npy"
        np.save(pool, read(n))
        rows = [
            row for name in names for row in measure(given.peer, name, n, k, pool, given.limit, given.out)
        ]
    ratios = [row["times_faster"] for row in rows if "times_faster" in row]
    slower = [row["function"] for row in rows if row.get("times_faster", 1) < 1]
    middle = f", median {np.median(ratios):.1f} times as fast" if ratios else ""
    print(f"{len(ratios)} functions compared{middle}")
    if slower:
        print(f"slower than {given.peer}: {', '.join(slower)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
