"""SMART mixtures: against the published procedure, built from submodlib, and stage 2 at the published scale, estimated.

python bench/mixture.py [--out FILE] [--repeats 3] [--scale]

Two cases on the real tasks (SMARTGPU_DATA, tasks/): mix, 64 tasks and 10,000 rows; many, a tenth of each of the 431.
Each provider runs in a process of its own, and they take turns. One JSON line per (case, provider).
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from bench.cases import FL, STAGE2, Case, alpaca_path, task_budgets, task_sizes, write_pool
from bench.machine import describe, package_version
from bench.run import append

N_TASKS, N_ROWS, SHARE = 64, 10_000, 0.1
LAM = 0.4
FAST = {"mix": 10.0, "many": 5.0}  # times faster than the procedure as published
SAMPLE = 50

Result = dict[str, np.ndarray]


# -- providers: mix(x, codes) and many(x, codes, budgets), both -> arrays; "rows" of all groups, one after the other ---


class Smartgpu:
    package = "smartgpu"

    def mix(self, x: np.ndarray, codes: np.ndarray) -> Result:
        import smartgpu

        m = smartgpu.mix(x, codes, N_TASKS, N_ROWS, order="rank")
        out = {name: np.array([getattr(t, name) for t in m.tasks]) for name in ("task", "gain", "budget")}
        return {**out, "rows": np.concatenate([t.indices for t in m.tasks])}

    def many(self, x: np.ndarray, codes: np.ndarray, budgets: np.ndarray) -> Result:
        import smartgpu

        found = smartgpu.select_many(x, codes, dict(enumerate(budgets.tolist())))
        return {"rows": np.concatenate([found[g].indices for g in range(len(budgets))])}


class Published:
    """The steps of SMART's code with submodlib: its C++ kernels, and all rows of all tasks ordered beforehand, whatever
    tasks and budgets are chosen."""

    package = "submodlib-py"
    tasks_ordered = "all"  # or "chosen"
    all_rows = True  # are ordered, in mix; not in many

    def kernel(self, x: np.ndarray) -> dict[str, Any]:
        return {"data": x, "metric": "cosine", "create_dense_cpp_kernel_in_python": False}

    def mix(self, x: np.ndarray, codes: np.ndarray) -> Result:
        from submodlib import GraphCutFunction

        rows = by_group(codes)
        means = np.stack([x[some].mean(axis=0) for some in rows])
        stage = GraphCutFunction(
            n=len(means), mode="dense", lambdaVal=LAM, ggsijs=cosine(means), separate_rep=False
        )
        picks = stage.maximize(budget=N_TASKS, optimizer="LazyGreedy", show_progress=False)
        tasks, gains = [j for j, _ in picks], np.array([g for _, g in picks])
        budgets = dict(
            zip(tasks, published_budgets(gains, [len(rows[j]) for j in tasks], N_ROWS), strict=True)
        )
        orders = {}
        for j in range(len(rows)) if self.tasks_ordered == "all" else tasks:
            if self.all_rows or budgets[j] < len(rows[j]):
                orders[j] = self.order(x, rows[j], len(rows[j]) - 1 if self.all_rows else budgets[j])
        whole = {j: rows[j] for j in tasks if budgets[j] == len(rows[j])}  # as they lie in the pool
        chosen = [whole[j] if j in whole else orders[j][: budgets[j]] for j in tasks]
        return {
            "task": np.array(tasks),
            "gain": gains,
            "budget": np.array(list(budgets.values())),
            "rows": np.concatenate(chosen),
        }

    def many(self, x: np.ndarray, codes: np.ndarray, budgets: np.ndarray) -> Result:
        groups = zip(by_group(codes), budgets.tolist(), strict=True)
        return {"rows": np.concatenate([self.order(x, rows, b) for rows, b in groups])}

    def order(self, x: np.ndarray, rows: np.ndarray, count: int) -> np.ndarray:
        from submodlib import FacilityLocationFunction

        model = FacilityLocationFunction(
            n=len(rows), mode="dense", separate_rep=False, **self.kernel(x[rows])
        )
        picks = model.maximize(budget=count, optimizer="LazyGreedy", show_progress=False)
        return rows[[j for j, _ in picks]]


class ChosenTasks(Published):
    """The same, but for the rows of tasks that are not chosen."""

    tasks_ordered = "chosen"


class Plain(ChosenTasks):
    """submodlib's constructor as its documentation shows it, which makes the kernel in Python; stops at the budget."""

    all_rows = False

    def kernel(self, x: np.ndarray) -> dict[str, Any]:
        return {"data": x, "metric": "cosine"}


class GivenKernel(ChosenTasks):
    """As fast as submodlib goes: it is given a kernel, made by one product of unit rows; stops at the budget."""

    all_rows = False

    def kernel(self, x: np.ndarray) -> dict[str, Any]:
        return {"sijs": cosine(x)}


PROVIDERS = {
    "smartgpu": Smartgpu,
    "submodlib-published": Published,
    "submodlib-chosen-tasks": ChosenTasks,
    "submodlib": Plain,
    "submodlib-given-kernel": GivenKernel,
}
IN_CASE = {"mix": tuple(PROVIDERS), "many": tuple(p for p in PROVIDERS if p != "submodlib-chosen-tasks")}


def by_group(codes: np.ndarray) -> list[np.ndarray]:
    return np.split(np.argsort(codes, kind="stable"), np.cumsum(np.bincount(codes))[:-1])


def cosine(x: np.ndarray) -> np.ndarray:
    """(n, n) float32, as sklearn's cosine_similarity."""
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    return unit @ unit.T


def published_budgets(gains: np.ndarray, sizes: list[int], total: int) -> list[int]:
    """Taylor softmax, floor, remainder from the first on, caps, the excess in turn: plain loops, as published."""
    f = [1.0 + g + g * g / 2 for g in gains.tolist()]
    ratio = [value / sum(f) for value in f]
    parts = [math.floor(total * r / sum(ratio)) for r in ratio]
    for i in range(total - sum(parts)):
        parts[i % len(parts)] += 1
    over = sum(max(b - size, 0) for b, size in zip(parts, sizes, strict=True))
    parts = [min(b, size) for b, size in zip(parts, sizes, strict=True)]
    while over:
        for i, size in enumerate(sizes):
            if over and parts[i] < size:
                parts[i] += 1
                over -= 1
    return parts


# -- one provider's process --------------------------------------------------------------------------------------------


def work(name: str) -> None:
    """JSON lines: {"x", "codes", "budgets", "out"}, then {"case"} again and again -> {"seconds"}."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    task = json.loads(sys.stdin.readline())
    try:
        provider = PROVIDERS[name]()
        version = package_version(provider.package)
        x, codes, budgets = (np.load(task[key]) for key in ("x", "codes", "budgets"))
        few = codes < 70  # a warm-up: imports, the probe of BLAS
        provider.many(x[few], codes[few], np.ones(codes[few].max() + 1, np.int64))
    except ImportError as error:
        answers.write(json.dumps({"stopped": f"not installed: {error}"}) + "\n")
        return
    answers.write(json.dumps({"version": version}) + "\n")
    for line in sys.stdin:
        case = json.loads(line)["case"]
        start = time.perf_counter()
        found = provider.mix(x, codes) if case == "mix" else provider.many(x, codes, budgets)
        seconds = time.perf_counter() - start
        np.savez(Path(task["out"]) / f"{name}-{case}.npz", **found)
        answers.write(json.dumps({"seconds": seconds}) + "\n")


class Worker:
    def __init__(self, name: str, task: dict[str, str]):
        command = [sys.executable, __file__, "--worker", name]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        self.ready = self.ask(task)

    def ask(self, message: dict[str, Any]) -> dict[str, Any]:
        self.process.stdin.write(json.dumps(message) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            return {"stopped": f"the process ended with status {self.process.wait()}"}
        return json.loads(answer)

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def measure(x: np.ndarray, codes: np.ndarray, repeats: int) -> list[dict[str, Any]]:
    """Rows of both cases, for all providers, who take turns."""
    budgets = np.maximum(1, np.round(SHARE * np.bincount(codes))).astype(np.int64)
    with tempfile.TemporaryDirectory(prefix="smartgpu-bench-") as folder:
        task = {"out": folder}
        for name, array in (("x", x), ("codes", codes), ("budgets", budgets)):
            task[name] = f"{folder}/{name}.npy"
            np.save(task[name], array)
        workers = {name: Worker(name, task) for name in PROVIDERS}
        rows = []
        try:
            for case in ("mix", "many"):
                times: dict[str, list[float]] = {name: [] for name in IN_CASE[case]}
                stopped: dict[str, str] = {}
                for _ in range(repeats):
                    for name, worker in ((name, workers[name]) for name in times):
                        got = worker.ready if "stopped" in worker.ready else worker.ask({"case": case})
                        if "stopped" in got:
                            stopped[name] = got["stopped"]
                        else:
                            times[name].append(got["seconds"])
                results = {name: np.load(f"{folder}/{name}-{case}.npz") for name in times if times[name]}
                rows += _rows(case, times, stopped, results, workers, (x, codes, budgets))
        finally:
            for worker in workers.values():
                worker.close()
    return rows


def _rows(case: str, times, stopped, results, workers, data) -> list[dict[str, Any]]:
    ours, out = statistics.median(times["smartgpu"]), []
    for name in times:
        row: dict[str, Any] = {"case": f"tasks_{case}", "provider": name}
        if name in stopped:
            out.append({**row, "stopped": stopped[name]})
            continue
        p20, p50, p80 = (round(1e3 * float(v), 3) for v in np.percentile(times[name], (20, 50, 80)))
        row |= {"ms_p50": p50, "ms_p20": p20, "ms_p80": p80, "repeats": len(times[name])}
        row["version"] = workers[name].ready["version"]
        if name != "smartgpu":
            row["times_ours"] = round(p50 / 1e3 / ours, 2)
            row |= compare(case, results["smartgpu"], results[name], *data)
        if name == "submodlib-published":
            row["must"], row["reached"] = FAST[case], row["times_ours"] >= FAST[case]
        out.append(row)
    return out


# -- are the answers the same? -----------------------------------------------------------------------------------------


def compare(case: str, ours, theirs, x: np.ndarray, codes: np.ndarray, budgets: np.ndarray) -> dict[str, Any]:
    """Where the orders part for the first time, how much better our pick is than theirs, in float64, relative.

    A group passes if its orders are one, or if the gains of the two picks differ by less than float32 can tell.
    """
    rows = by_group(codes)
    out: dict[str, Any] = {}
    labels = list(range(len(rows)))
    if case == "mix":
        means = np.stack([x[some].mean(axis=0, dtype=np.float64) for some in rows])
        s = unit64(means) @ unit64(means).T
        out["tasks"] = parting(s, ours["task"], theirs["task"], lam=LAM)
        out["gains_off"] = float(np.abs(ours["gain"] / theirs["gain"] - 1).max())
        out["budgets_equal"] = bool(np.array_equal(ours["budget"], theirs["budget"]))
        if out["tasks"] is not None or not out["budgets_equal"]:
            return {**out, "gate": "fail: tasks or budgets"}
        labels, budgets = ours["task"].tolist(), ours["budget"]
    ends = np.cumsum(budgets)[:-1]
    parted, equal = [], 0
    for g, mine, other in zip(
        labels, np.split(ours["rows"], ends), np.split(theirs["rows"], ends), strict=True
    ):
        equal += len(np.intersect1d(mine, other))
        if len(mine) == len(rows[g]):
            continue  # all rows: the published code takes them as they lie
        place = np.zeros(len(x), np.int64)
        place[rows[g]] = np.arange(len(rows[g]))
        u = unit64(x[rows[g]])
        margin = parting(u @ u.T, place[mine], place[other])
        if margin is not None:
            parted.append(margin)
    low, high = min(parted, default=0.0), max(parted, default=0.0)
    fine = low >= -2e-6 and high <= 2e-5
    return {
        **out,
        "rows_equal": round(equal / len(ours["rows"]), 5),
        "groups_parted": len(parted),
        "margin_least": low,
        "margin_most": high,
        "gate": "pass" if fine else "fail: picks differ by more than rounding",
    }


def unit64(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(np.asarray(x, np.float64), axis=1, keepdims=True)


def parting(s: np.ndarray, mine: np.ndarray, theirs: np.ndarray, lam: float | None = None) -> float | None:
    """(gain of our pick - gain of theirs) / the first gain, where two orders part; None if they do not.

    lam: graph cut, otherwise facility location.
    """
    apart = np.flatnonzero(mine != theirs)
    if not len(apart):
        return None
    t = int(apart[0])
    before = mine[:t]
    if lam is None:
        level = np.maximum(s[:, before].max(axis=1), 0) if t else np.zeros(len(s))
        gains, first = np.maximum(s - level[:, None], 0).sum(axis=0), np.maximum(s, 0).sum(axis=0).max()
    else:
        gains = s.sum(axis=0) - 2 * lam * s[before].sum(axis=0) - lam * s.diagonal()
        first = s.sum(axis=0).max()
    return float((gains[mine[t]] - gains[theirs[t]]) / first)


# -- the published scale -----------------------------------------------------------------------------------------------


def estimate(pool: np.ndarray, sizes: np.ndarray, budgets: np.ndarray) -> float:
    """Seconds for all groups by the planner: large ones one after the other, the others a thread each."""
    import smartgpu
    from smartgpu.groups import ALONE
    from smartgpu.workers import cpu_count

    alone = together = 0.0
    for n, b in zip(sizes.tolist(), budgets.tolist(), strict=True):
        if n > ALONE:
            alone += smartgpu.plan(pool[:n], b, backend="numpy").seconds
        else:
            together += smartgpu.plan(pool[:n], b, backend="numpy", threads=1).seconds
    return alone + together / cpu_count()


def published_scale(fraction: int) -> dict[str, Any]:
    """1 / fraction of stage 2 at the published scale: what the planner says, and for a sample what it took."""
    import smartgpu

    sizes = np.maximum(2, task_sizes(STAGE2) // fraction)
    budgets = task_budgets(sizes, max(STAGE2.k // fraction, STAGE2.tasks))
    row = {
        "case": f"stage2_scale_1_{fraction}",
        "provider": "smartgpu",
        "groups": STAGE2.tasks,
        "n": int(sizes.sum()),
        "d": STAGE2.d,
        "k": int(budgets.sum()),
    }
    with tempfile.TemporaryDirectory(prefix="smartgpu-bench-") as folder:
        whole = int(sizes.sum()) if fraction > 1 else int(sizes[0])
        path = Path(folder) / "pool.npy"
        write_pool(Case(FL, "gaussian", whole, 1, d=STAGE2.d), path)
        pool = np.load(path, mmap_mode="r")
        pool = np.array(pool) if fraction > 1 else pool
        row["planned_s"] = round(estimate(pool, sizes, budgets), 2)
        if fraction > 1:
            groups = np.repeat(np.arange(STAGE2.tasks), sizes)
            start, spent = time.perf_counter(), time.process_time()
            smartgpu.select_many(pool, groups, dict(enumerate(budgets.tolist())), backend="numpy")
            row["seconds"] = round(time.perf_counter() - start, 2)
            row["cpu_seconds"] = round(time.process_time() - spent, 2)  # of all threads
            row["planned_to_taken"] = round(row["planned_s"] / row["seconds"], 2)
    return row


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help=".jsonl file to which rows are appended; default: none")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--scale", action="store_true", help="stage 2 at the published scale, by the planner")
    parser.add_argument("--worker", choices=list(PROVIDERS), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        work(given.worker)
        return 0
    if given.scale:
        rows = (published_scale(fraction) for fraction in (SAMPLE, 1))
    else:
        folder = alpaca_path().parents[1] / "tasks"
        if not folder.is_dir():
            print(f"no {folder}: set SMARTGPU_DATA", file=sys.stderr)
            return 2
        import pyarrow.parquet as pq

        names = pq.read_table(folder / "tasks.parquet", columns=["task"])["task"].to_pylist()
        place = {name: i for i, name in enumerate(dict.fromkeys(names))}
        codes = np.array([place[name] for name in names])
        rows = measure(np.load(folder / "minilm.npy").astype(np.float32), codes, given.repeats)
    machine = describe()
    for row in rows:
        full = {**row, **machine, "time": datetime.now(UTC).strftime("%Y-%m-%dT%H:%MZ")}
        if given.out:
            append(given.out, full)
        print(json.dumps(row), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
