"""Run cases against providers: gate, interleaved timings, one JSON line per (case, provider) when it is measured.

python bench/run.py [--quick] [--cases PATTERN ...] [--providers NAME ...] [--out FILE] [--list]
"""

from __future__ import annotations

import argparse
import dataclasses
import fnmatch
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from bench import gate
from bench.cases import ALPACA_ROWS, CASES, FL, QUICK, Case, alpaca_path, write_pool
from bench.machine import available_memory, describe, package_version
from bench.process import Process, Stopped
from bench.providers import PROVIDERS, threads

MB = 1e6
REFERENCE_ROWS = 2000  # pools up to here are compared with the naive float64 reference as a whole
YARDSTICK_ROWS = 60_000  # one product of a larger pool takes minutes
SHARE_OF_MEMORY = 0.85  # of what is free, for one run: nothing may swap or be killed
SETTLE = 0.1  # seconds between runs: the idle threads of the one before stop spinning


@dataclass
class Limits:
    """How often and how long. A run is repeated three times when it takes less than `often`, twice below `twice`."""

    seconds: float = 150.0  # for one run, warm-up apart
    eager: float = 30.0  # for one run of a provider that looks at all pairs for each pick
    ours: float = 600.0  # the largest case is for us alone
    warm: float = 180.0
    often: float = 5.0
    twice: float = 45.0

    def of(self, provider: str, case: Case) -> float:
        if PROVIDERS[provider].ours:
            return self.ours
        eager = PROVIDERS[provider].work is not None and case.objective == FL
        return min(self.eager, self.seconds) if eager else self.seconds

    def repeats(self, seconds: float) -> int:
        return 3 if seconds < self.often else 2 if seconds < self.twice else 1


@dataclass
class Runs:
    """What one provider did on one case."""

    seconds: list[float] = field(default_factory=list)
    peaks: list[int] = field(default_factory=list)
    last: dict[str, Any] = field(default_factory=dict)
    warm: dict[str, Any] = field(default_factory=dict)
    checked: dict[str, Any] = field(default_factory=dict)  # on the device, by the worker: verdict, f(S)
    stopped: str | None = None


class Bench:
    """One run of the benchmark: rows go to `out` as they are measured, and stay in `rows`."""

    def __init__(self, out: Path | None, limits: Limits, say: Callable[[str], None] = print):
        self.out, self.limits, self.say = out, limits, say
        self.rows: list[dict[str, Any]] = []
        self.machine = describe()

    def measure(self, cases: Iterable[Case], only: Iterable[str] | None = None) -> list[dict[str, Any]]:
        for case in cases:
            wanted = [p for p in providers(case) if case.objective in PROVIDERS[p].objectives]
            wanted = [p for p in wanted if only is None or p in only]
            if "blas" in wanted and (case.n > YARDSTICK_ROWS or self._has_product(case)):
                wanted.remove("blas")
            if wanted:
                self._measure(case, wanted)
        return self.rows

    def _measure(self, case: Case, wanted: list[str]) -> None:
        self.say(case.name)
        runs = {name: Runs(stopped=self._refusal(case, name)) for name in wanted}
        with tempfile.TemporaryDirectory(prefix="smartgpu-bench-") as folder:
            pool = Path(folder) / "pool.npy"
            try:
                if any(run.stopped is None for run in runs.values()):
                    write_pool(case, pool)
            except FileNotFoundError as error:
                return self.say(f"  skipped: {error.filename} is not there (set SMARTGPU_DATA)")
            self._run_all(case, pool, runs, Path(folder))
            x = np.load(pool, mmap_mode="r") if pool.exists() else None
            known: dict[bytes, dict[str, Any]] = {}  # the same picks need one check
            for name in sorted(wanted, key=lambda name: name != "blas"):
                self._append(self._row(case, name, runs[name], x, known))
        return None

    def _refusal(self, case: Case, name: str) -> str | None:
        """Why this provider is not even started, or None."""
        provider = PROVIDERS[name]
        if not provider.all_rows and case.k >= case.n:
            return "cannot select k = n"
        needs, free = provider.needs(case), SHARE_OF_MEMORY * available_memory()
        if needs > free:
            return f"memory: needs {needs / 1e9:.1f} GB for its n x n arrays, {free / 1e9:.1f} GB may be used"
        if provider.work is not None:
            mine = [r for r in self.rows if r["provider"] == name and r["objective"] == case.objective]
            mine = [r for r in mine if r.get("ms_p50")]
            if mine:
                row = max(mine, key=lambda row: row["n"] * row["k"])
                names = {f.name for f in dataclasses.fields(Case)} & row.keys()
                grown = provider.work(case) / provider.work(Case(**{n: row[n] for n in names}))
                expected, limit = row["ms_p50"] / 1e3 * grown, self.limits.of(name, case)
                if expected > limit:
                    return f"time: about {expected:.0f} s, from {row['case']}; the limit is {limit:.0f} s"
        return None

    def _run_all(self, case: Case, pool: Path, runs: dict[str, Runs], folder: Path) -> None:
        """Start everyone, then A B C, A B C, A B C: whatever drifts on the machine hits all of them."""
        processes: dict[str, Process] = {}
        try:
            for name, run in runs.items():
                if run.stopped is None:
                    limit = SHARE_OF_MEMORY * available_memory()
                    processes[name] = Process(name, case, pool, limit, folder / name)
            for name in list(processes):
                self._ask(processes, runs[name], name, lambda p: p.ready(self.limits.warm), "warm")
            for number in range(3):
                for name in list(processes):
                    if number and self.limits.repeats(max(runs[name].seconds)) <= number:
                        processes.pop(name).close()
                        continue
                    time.sleep(SETTLE)
                    limit = self.limits.of(name, case)
                    got = self._ask(
                        processes, runs[name], name, lambda p, t=number, s=limit: p.run(t, s), "last"
                    )
                    if got:
                        runs[name].seconds.append(got["seconds"])
                        runs[name].peaks.append(got["peak"])
        finally:
            for process in processes.values():
                process.close()

    def _ask(self, processes: dict[str, Process], run: Runs, name: str, question, keep: str) -> dict | None:
        try:
            got = question(processes[name])
        except Stopped as stop:
            run.stopped = str(stop)
            processes.pop(name).close()
            return None
        setattr(run, keep, got)
        return got

    def _row(self, case: Case, name: str, run: Runs, x: np.ndarray | None, known: dict) -> dict[str, Any]:
        provider = PROVIDERS[name]
        row: dict[str, Any] = {**case.describe(), "provider": name}
        if run.stopped is not None:
            row["stopped"] = run.stopped
        elif name == "blas":
            row.update(figures(run), gflop_s=round(2e-9 * case.n**2 * case.d / np.median(run.seconds), 1))
        else:
            picks = run.last["indices"]
            row.update(self._checked(case, name, run, x, known))
            if row.get("gate", "pass") == "pass":
                row.update(figures(run))
            repeated = len(picks) - len(np.unique(picks))
            if repeated and not provider.ours:
                row["repeated_rows"] = repeated
            row.update(run.last["notes"])
        if name != "blas" and "ms_p50" in row:
            product = self._has_product(case)
            if product:
                row["blas_ms"] = product["ms_p50"]
                row["ratio_to_blas"] = round(row["ms_p50"] / product["ms_p50"], 4)
        versions = dict(self.machine["versions"])
        if provider.package and provider.package != "smartgpu":
            versions[provider.package] = package_version(provider.package)
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%MZ")
        return {**row, **self.machine, "threads": threads(), "versions": versions, "time": now}

    def _checked(self, case: Case, name: str, run: Runs, x: np.ndarray, known: dict) -> dict[str, Any]:
        """The verdict on ours, f(S) of others."""
        provider, picks = PROVIDERS[name], run.last["indices"]
        if not provider.ours:
            return {"value": gate.value(case, x, picks)}
        key = picks.tobytes() + bytes([provider.halves])
        if key not in known:
            known[key] = self._gate(case, x, run, provider.halves)
        return known[key]

    def _gate(self, case: Case, x: np.ndarray, run: Runs, halves: bool) -> dict[str, Any]:
        """{"gate", ...}: the warm-up, and a small pool as a whole, against the reference; then pick by pick."""
        warm = run.warm["indices"]
        rows = run.warm["rows"]
        verdict = gate.check_reference(case, np.array(x[:rows]), warm, halves)
        if verdict == "pass" and case.n <= REFERENCE_ROWS:
            verdict = gate.check_reference(case, np.array(x), run.last["indices"], halves)
        if verdict != "pass":
            return {"gate": verdict}
        verdict, details = gate.check(case, x, run.last["indices"], run.last["gains"], halves)
        value = details.pop("value", None)
        return {"gate": verdict, "value": value, "gate_details": details}

    def _has_product(self, case: Case) -> dict[str, Any] | None:
        """The latest row of the yardstick for this n and d."""
        found = [r for r in self.rows if r["provider"] == "blas" and (r["n"], r["d"]) == (case.n, case.d)]
        found = [r for r in found if "ms_p50" in r]
        return found[-1] if found else None

    def _append(self, row: dict[str, Any]) -> None:
        self.rows.append(row)
        if self.out is not None:
            append(self.out, row)
        self.say(summary(row))


def append(path: Path, row: dict[str, Any]) -> None:
    """One line more, written at once: an interrupted run leaves whole lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    line = (json.dumps(row) + "\n").encode()
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(file, line)
        os.fsync(file)
    finally:
        os.close(file)


def providers(case: Case) -> tuple[str, ...]:
    """Who may run a case: those that it names, or all that run anywhere."""
    return case.providers or tuple(name for name, row in PROVIDERS.items() if not row.named)


def figures(run: Runs) -> dict[str, Any]:
    p20, p50, p80 = (round(1e3 * float(v), 3) for v in np.percentile(run.seconds, (20, 50, 80)))
    return {
        "ms_p50": p50,
        "ms_p20": p20,
        "ms_p80": p80,
        "repeats": len(run.seconds),
        "peak_mb": round(max(run.peaks) / MB, 1),
    }


def summary(row: dict[str, Any]) -> str:
    name = f"  {row['provider']:<20}"
    if "stopped" in row:
        return f"{name} stopped: {row['stopped']}"
    if "ms_p50" not in row:
        return f"{name} no figure, gate {row['gate']}"
    parts = [f"{name} {row['ms_p50'] / 1e3:9.3f} s  {row['peak_mb']:8.0f} MB"]
    parts += [f"device {row['device_peak_mb']:.0f} MB"] if "device_peak_mb" in row else []
    parts += [f"f {row['value']:.6g}"] if row.get("value") is not None else []
    parts += [f"sweeps {row['sweeps']:.2f}"] if "sweeps" in row else []
    parts += [f"gate {row['gate']}"] if "gate" in row else []
    parts += [f"{row['ratio_to_blas']:.3g} products"] if "ratio_to_blas" in row else []
    return "  ".join(parts)


def choose(cases: Iterable[Case], patterns: list[str] | None) -> list[Case]:
    """Cases that match one of the patterns: a whole name, shell wildcards, or else any part of the name."""
    cases = list(cases)
    if not patterns:
        return cases
    names = {case.name for case in cases}
    wild = [p if p in names or any(c in p for c in "*?[") else f"*{p}*" for p in patterns]
    return [case for case in cases if any(fnmatch.fnmatch(case.name, p) for p in wild)]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a few small cases, under two minutes")
    parser.add_argument("--cases", nargs="+", metavar="PATTERN", help="wildcards or parts of case names")
    parser.add_argument("--providers", nargs="+", metavar="NAME", choices=list(PROVIDERS))
    parser.add_argument("--out", type=Path, help=".jsonl file to which rows are appended; default: none")
    parser.add_argument("--list", action="store_true", help="print the cases and the providers")
    parser.add_argument("--limit", type=float, help="seconds for one run, default 150 (quick: 20)")
    given = parser.parse_args(arguments)
    cases = choose(QUICK if given.quick else CASES, given.cases)
    if given.list:
        for case in cases:
            who = case.providers or [p for p in providers(case) if case.objective in PROVIDERS[p].objectives]
            print(f"{case.name:<36} {' '.join(who)}")
        return 0
    if not cases:
        print(f"no case matches {given.cases}: see --list", file=sys.stderr)
        return 2
    if not alpaca_path().is_file():
        print(f"no {alpaca_path()}: cases on Alpaca ({ALPACA_ROWS} rows) are skipped, set SMARTGPU_DATA")
    limits = Limits()
    limits.seconds = given.limit or (20.0 if given.quick else limits.seconds)
    start = time.monotonic()
    rows = Bench(given.out, limits).measure(cases, given.providers)
    failed = [row for row in rows if row.get("gate", "pass") != "pass"]
    print(f"{len(rows)} rows in {time.monotonic() - start:.0f} s, {len(failed)} failed the gate")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
