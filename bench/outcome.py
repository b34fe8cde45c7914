"""Does chosen data help? Mixtures of real tasks, scored on rows and tasks that were held out (docs/outcome.md).

python bench/outcome.py --out FILE [--quick] [--seeds 5]
python bench/outcome.py --out FILE --polish              # only: do swaps after greedy help SMART's rows?

One JSON line for each mixture, when it is measured; mixtures that FILE holds already are not measured again.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

import smartgpu
from bench.cases import alpaca_path
from bench.machine import describe, package_version
from bench.outcome_data import Split, Table, damage, few, read, split
from bench.outcome_figures import PERCENTILES, REPLICATES, Group, Sample, Scores, nearest
from bench.run import append

OBJECTIVES = ("graph_cut", "facility_location", "log_det")
POLISHED = "polished"
GC, FL, LD = OBJECTIVES
MOST_SEEDS = 6  # S^S draws of the bootstrap over seeds
KEPT = """method task_objective row_objective task_similarity similarity temperature order seed backend""".split()


@dataclass(frozen=True)
class Condition:
    """One mixture.

    tasks    how tasks are chosen: by an objective, "random", or "none": rows of the whole pool, whatever their task
    budgets  "smart" (Taylor softmax of the gains), "proportional" to sizes, "equal"; "none" of the whole pool
    rows     how rows are chosen: by an objective, "random", or "polished": facility location, then swaps
    m, n     tasks and rows; None is all there are
    damage   what was done to `share` of the pool's rows (see outcome_data.damage)
    """

    seed: int
    tasks: str
    budgets: str
    rows: str
    m: int | None
    n: int | None
    damage: str = "none"
    share: float = 0.0

    @property
    def reference(self) -> Condition | None:
        """What this one is compared with, prompt by prompt: undamaged itself, or SMART as published."""
        if self.damage != "none":
            return dataclasses.replace(self, damage="none", share=0.0)
        smart = Condition(self.seed, GC, "smart", FL, self.m, self.n)
        return None if self.n is None or self == smart else smart


@dataclass(frozen=True)
class Plan:
    """What is measured. grid, damaged, polished: (m, n); damages: (kind, share)."""

    n: tuple[int, ...]
    m: tuple[int | None, ...]
    grid: tuple[tuple[int, int], ...]
    budgets: tuple[int, tuple[int, ...]]  # m, and more numbers of rows
    tasks: tuple[tuple[int, ...], tuple[int, ...]]  # more numbers of tasks, and rows
    damaged: tuple[int, int]
    damages: tuple[tuple[str, float], ...]
    polished: tuple[tuple[int, int], ...] = ()  # (m, n)

    def conditions(self, seed: int) -> list[Condition]:
        """Each once, in the order in which they are measured."""
        return list(dict.fromkeys(self._all(seed)))

    def _all(self, seed: int) -> Iterator[Condition]:
        yield Condition(seed, "none", "none", "all", None, None)
        for m in self.m:
            for n in self.n:
                for rows in (FL, "random"):
                    for tasks, budgets in (
                        (GC, "smart"),
                        (GC, "proportional"),
                        (GC, "equal"),
                        ("random", "equal"),
                    ):
                        yield Condition(seed, tasks, budgets, rows, m, n)
                    if m is None:
                        yield Condition(seed, "none", "none", rows, None, n)
        for m, n in self.grid:
            yield from (Condition(seed, t, "smart", r, m, n) for t in OBJECTIVES for r in OBJECTIVES)
        m, more = self.budgets
        for n in sorted({*self.n, *more}):
            yield from (Condition(seed, GC, "smart", rows, m, n) for rows in (*OBJECTIVES, "random"))
        for m in self.tasks[0]:
            for n in self.tasks[1]:
                for tasks, budgets in ((GC, "smart"), (GC, "equal"), ("random", "equal")):
                    yield Condition(seed, tasks, budgets, FL, m, n)
        m, n = self.damaged
        for kind, share in self.damages:
            for rows in (*OBJECTIVES, "random"):
                yield Condition(seed, GC, "smart", rows, m, n, kind, share)
            yield Condition(seed, "random", "equal", "random", m, n, kind, share)
        for m, n in self.polished:
            yield from (Condition(seed, GC, "smart", rows, m, n) for rows in (FL, POLISHED))


DAMAGES = tuple((kind, share) for kind in ("responses", "garbage", "copies") for share in (0.05, 0.2))
FULL = Plan(
    n=(500, 2000, 10_000),
    m=(16, 64, 256, None),
    grid=((64, 2000), (256, 10_000)),
    budgets=(256, (1000, 5000, 20_000)),
    tasks=((8, 32, 128, 320), (2000, 10_000)),
    damaged=(64, 2000),
    damages=DAMAGES,
)
QUICK = Plan(
    n=(50, 300),
    m=(8, 24, None),
    grid=((24, 300),),
    budgets=(24, (600,)),
    tasks=((16,), (300,)),
    damaged=(24, 300),
    damages=DAMAGES,
)
POLISH = Plan((), (), (), (0, ()), ((), ()), (0, 0), (), ((16, 500), (64, 2000), (64, 10_000), (256, 10_000)))


class Pool:
    """A pool from which rows are chosen. What several mixtures share is computed once: the order of the tasks, and,
    of a pool that many are made from (`orders`), the order of all rows of every task. Mixtures are then prefixes.
    """

    def __init__(self, table: Table, seed: int, orders: bool = True):
        self.table, self.seed, self.ordered = table, seed, orders
        self.names = table.task.tolist()
        self.sizes = Counter(self.names)  # in the order of first appearance, as tasks are numbered
        self.rankings: dict[str, smartgpu.Selection] = {}
        self.orders: dict[str, dict[Any, smartgpu.Selection]] = {}
        self.whole: dict[str, np.ndarray] = {}

    def choose(self, c: Condition, most: int) -> tuple[np.ndarray, dict[str, Any]]:
        """The rows of a mixture, fewer than c.n where its tasks have no more, and its options.

        most: rows of any mixture
        """
        if c.tasks == "none":
            rows = np.arange(len(self.table)) if c.n is None else self._whole(c.rows, most)[: c.n]
            return rows, {"row_objective": {"name": c.rows}, "similarity": "cosine", "seed": self.seed}
        polish = c.rows == POLISHED
        done = {} if polish else dict(self._orders(c.rows))
        if c.tasks == "random":
            chosen = self.drawn[: c.m]
            how: dict[str, Any] = {"method": "random", "include": chosen}
        else:
            done["ranking"] = ranking = self._ranking(c.tasks)
            every = list(self.sizes)
            chosen = [every[i] for i in ranking.indices[: c.m]]
            how = {"method": c.budgets, "task_objective": c.tasks}
        n = min(c.n, sum(self.sizes[name] for name in chosen))
        m = smartgpu.mix(
            self.table.x,
            self.names,
            len(chosen),
            n,
            row_objective=FL if polish else c.rows,
            polish=polish,
            order="rank",
            seed=self.seed,
            backend="numpy",
            done=done,
            **how,
        )
        return m.indices, {name: m.options[name] for name in KEPT}

    @cached_property
    def drawn(self) -> list[str]:
        """All tasks in random order."""
        return np.random.default_rng([self.seed, 3]).permutation(np.array(list(self.sizes), object)).tolist()

    def _ranking(self, objective: str) -> smartgpu.Selection:
        """All tasks in the order in which SMART selects them."""
        if objective not in self.rankings:
            keep = {}
            smartgpu.mix(
                self.table.x,
                self.names,
                n_rows=1,
                task_objective=objective,
                backend="numpy",
                report=keep.__setitem__,
            )
            self.rankings[objective] = keep["ranking"]
        return self.rankings[objective]

    def _orders(self, rows: str) -> dict[Any, smartgpu.Selection]:
        """All rows of every task, best first, as mix(done=) takes them."""
        if rows == "random" or not self.ordered:
            return {}
        if rows not in self.orders:
            found = smartgpu.select_many(self.table.x, self.names, 1.0, rows, backend="numpy")
            self.orders[rows] = {(name, None): selection for name, selection in found.items()}
        return self.orders[rows]

    def _whole(self, rows: str, most: int) -> np.ndarray:
        if rows not in self.whole:
            n = len(self.table)
            if rows == "random":
                self.whole[rows] = np.random.default_rng([self.seed, 4]).permutation(n)[:most]
            else:
                found = smartgpu.select(self.table.x, min(most, n), rows, backend="numpy", memory="1GB")
                self.whole[rows] = found.indices
        return self.whole[rows]


@dataclass(frozen=True)
class Measured:
    samples: dict[str, Sample]  # by group
    row: dict[str, Any]


class Study:
    """One seed: what it holds out, the pools, and what has been measured."""

    def __init__(self, table: Table, seed: int, plan: Plan, scores: Scores):
        self.seed, self.scores, self.plan = seed, scores, plan
        self.split: Split = split(table, seed)
        pool = table.take(self.split.pool)
        self.pools = {("none", 0.0): Pool(pool, seed)}
        self.measured: dict[Condition, Measured] = {}
        self.groups = {}
        for name in ("seen", "new"):
            held = table.take(getattr(self.split, name))
            best = nearest(pool.x, np.arange(len(pool)), held.x)[1]
            self.groups[name] = Group(held, best, seed)

    def pool(self, c: Condition) -> Pool:
        key = c.damage, c.share
        if key not in self.pools:
            undamaged = self.pools["none", 0.0].table
            self.pools[key] = Pool(damage(undamaged, c.damage, c.share, self.seed), self.seed, orders=False)
        return self.pools[key]

    def measure(self, c: Condition) -> Measured:
        """Kept, because others are compared with it."""
        if c not in self.measured:
            self.measured[c] = self._measure(c)
        return self.measured[c]

    def _measure(self, c: Condition) -> Measured:
        start = time.perf_counter()
        pool = self.pool(c)
        table = pool.table
        rows, options = pool.choose(c, max(self.plan.n, default=0))
        chosen = time.perf_counter() - start
        row: dict[str, Any] = {**dataclasses.asdict(c), "options": options, **self.describe(table, rows)}
        samples = {}
        for name, group in self.groups.items():
            where, similarity = nearest(table.x, rows, group.held.x)
            truth, answer = group.held.response, table.response[where]
            samples[name] = group.sample(
                similarity, self.scores.rouge1(truth, answer), self.scores.exact(truth, answer)
            )
            worst = dict(zip(PERCENTILES, np.percentile(similarity, PERCENTILES), strict=True))
            row[name] = {
                "prompts": len(where),
                "tasks": len(set(group.held.task)),
                "similarity": {"mean": round(float(similarity.mean(dtype=np.float64)), 5)}
                | {f"p{p}": round(float(v), 5) for p, v in worst.items()},
                **samples[name].figures(),
            }
        row["seconds"] = {
            "choose": round(chosen, 3),
            "measure": round(time.perf_counter() - start - chosen, 3),
        }
        return Measured(samples, row)

    def describe(self, pool: Table, rows: np.ndarray) -> dict[str, Any]:
        """What the chosen rows are: how many, of how many tasks, spoiled and repeated ones among them."""
        shares = np.array(list(Counter(pool.task[rows]).values())) / len(rows)
        return {
            "pool_rows": len(pool),
            "pool_tasks": len(set(pool.task)),
            "n_rows": len(rows),
            "n_tasks": len(shares),
            "effective_tasks": round(float(np.exp(-(shares * np.log(shares)).sum())), 2),
            "marked": round(float(pool.marked[rows].mean()), 5),
            "marked_in_pool": round(float(pool.marked.mean()), 5),
            "repeated": round(1 - len(np.unique(pool.origin[rows])) / len(rows), 5),
        }

    def row(self, c: Condition) -> dict[str, Any]:
        """The figures of a mixture, and its differences from what it is compared with."""
        got = self.measure(c)
        row = {name: dict(value) if isinstance(value, dict) else value for name, value in got.row.items()}
        if c.reference is not None:
            against = "minus_smart" if c.damage == "none" else "minus_clean"
            other = self.measure(c.reference)
            for name, sample in got.samples.items():
                row[name][against] = (sample - other.samples[name]).figures()
        return row


def key(row: dict[str, Any]) -> tuple[Any, ...]:
    """What makes a row another's: its data and its condition."""
    return (row["data"], *(row[f.name] for f in dataclasses.fields(Condition)))


def measured_before(out: Path | None) -> set[tuple[Any, ...]]:
    if out is None or not out.is_file():
        return set()
    return {key(json.loads(line)) for line in out.read_text(encoding="utf-8").splitlines() if line.strip()}


def measure(table: Table, plan: Plan, seeds: Iterable[int], out: Path | None) -> list[dict[str, Any]]:
    """The rows that `out` does not hold yet, which are appended to it one by one."""
    data, machine = table.fingerprint(), describe()
    machine["versions"]["rouge-score"] = package_version("rouge-score")
    held, rows = measured_before(out), []
    scores = Scores(table.texts)
    try:
        for seed in seeds:
            todo = [
                c for c in plan.conditions(seed) if key({"data": data, **dataclasses.asdict(c)}) not in held
            ]
            if not todo:
                continue
            start = time.monotonic()
            study = Study(table, seed, plan, scores)
            for c in todo:
                now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%MZ")
                row = {"data": data, **study.row(c), "replicates": REPLICATES, **machine, "time": now}
                if out is not None:
                    append(out, row)
                rows.append(row)
            seconds = time.monotonic() - start
            print(
                f"seed {seed}: {len(todo)} mixtures in {seconds:.0f} s, {len(scores.keys)} pairs scored",
                flush=True,
            )
    finally:
        scores.close()
    return rows


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help=".jsonl file to which rows are appended")
    parser.add_argument("--quick", action="store_true", help="60 tasks, two seeds: a look, under a minute")
    parser.add_argument("--polish", action="store_true", help="only SMART's rows, swapped and not")
    parser.add_argument("--seeds", type=int, help=f"1 to {MOST_SEEDS}, default 5 (quick: 2)")
    given = parser.parse_args(arguments)
    seeds = given.seeds if given.seeds is not None else 2 if given.quick else 5
    folder = alpaca_path().parents[1] / "tasks"
    if not 1 <= seeds <= MOST_SEEDS:
        parser.error(f"--seeds must lie in [1, {MOST_SEEDS}], got {seeds}")
    if not folder.is_dir():
        parser.error(f"no {folder}: set SMARTGPU_DATA")
    if importlib.util.find_spec("rouge_score") is None:
        parser.error("the package rouge-score is missing: pip install -c constraints.txt -e '.[bench]'")
    if given.polish and given.quick:
        parser.error("--polish cannot be combined with --quick")
    table = read(folder)
    if given.quick:
        table = few(table, tasks=60, rows=60)
    start = time.monotonic()
    plan = POLISH if given.polish else QUICK if given.quick else FULL
    rows = measure(table, plan, range(seeds), given.out)
    print(f"{len(rows)} rows in {time.monotonic() - start:.0f} s, to {given.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
