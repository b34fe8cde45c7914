"""Everything that needs a GPU, in one command of under ten minutes from cold.

python bench/gpu.py --out DIR [--seconds S] [--only STAGE ...] [--cases PATTERN ...]
python bench/gpu.py --out DIR --rehearse

1. tests       those that carry the mark `gpu`, in several processes; meanwhile others compile what is timed later
2. kernels     the device's two ceilings, and every kernel against its floor (bench/kernels.py)
3. launches    the kernels of csrc/, each compared with Triton's first and in a process of its own (bench/launches.py)
4. selections  bench/cases.py's DEVICE_CASES with bench/run.py's harness and gate, shortest first
5. swaps       a search for swaps in a million rows (bench/polish.py): seconds of a pass over all candidates
6. scale       a group of one process against the plain call; 4,000,000 rows by the plan's advice (bench/scale.py)

tests.jsonl, kernels.jsonl, launches.jsonl, selections.jsonl, swaps.jsonl and scale.jsonl in DIR get a line for each
figure the moment that it is measured. What the time left would not do is skipped, with a line that says so. --rehearse
goes through all of it in Triton's interpreter, on the CPU and with tiny pools: its rows say "rehearsal" and are never
judged.

Exit status 0 if nothing failed, 1 if a test, a kernel, a selection or a gate did, 2 without a GPU.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.cases import DEVICE_CASES, REHEARSAL, ROOT, TRITON, Case, quality
from bench.machine import describe, smi
from bench.musts import DEVICE_MUSTS, is_judged
from bench.process import Process, Stopped
from bench.providers import PROVIDERS
from bench.run import Bench, Limits, Runs, append, choose

STAGES = ("tests", "kernels", "launches", "selections", "swaps", "scale")
TESTS, KERNELS, LAUNCHES, SWAPS = 120.0, 60.0, 60.0, 70.0  # seconds; selections take what these leave
SCALE = 90.0  # of what is left in the end, for the last: with less it is not begun
REHEARSED_PARTS = ("pairs_fp16", "blocks", "tail")  # of bench/launches.py
SEARCH = 0.4  # of SWAPS, for the search: what is left is greedy, the bound and the ranking
PYTEST = (sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--no-header")
REHEARSED_TESTS = (
    "tests/test_kernels_sparse.py",
    6,
)  # one file and so many of its tests, which skip themselves
OVERHEAD = 5.0  # seconds of a task besides its run: pool, warm-up, gate
SLACK = 10.0  # a run may take so many times what it is expected to
OUTCOME = re.compile(r"^(tests/\S+::.*?) (PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS)\b")


# -- tests -------------------------------------------------------------------------------------------------------------


def collect(seconds: float, rehearse: bool) -> list[str]:
    """Names of the tests that carry the mark. Raises OSError where pytest cannot say."""
    where = REHEARSED_TESTS[0] if rehearse else "tests"
    command = [*PYTEST, "-m", "gpu", "--collect-only", "-q", where]
    got = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=seconds)
    names = [line for line in got.stdout.splitlines() if line.startswith("tests/") and "::" in line]
    if got.returncode != 0 or not names:
        raise OSError(f"pytest collects nothing: {(got.stdout + got.stderr).strip()[-400:]}")
    return names[: REHEARSED_TESTS[1]] if rehearse else names


def run_tests(names: list[str], seconds: float, log: Path) -> dict[str, Any]:
    """Outcomes of these tests in one process; those that it did not reach in time are "missing"."""
    command, start = [*PYTEST, "-v", "-rN", "--color=no", *names], time.monotonic()
    with log.open("w") as file:
        child = subprocess.Popen(
            command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            status = child.wait(max(seconds, 1))
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)  # tests start processes of their own
            status = child.wait()
    found = dict(m.groups() for m in map(OUTCOME.match, log.read_text(errors="replace").splitlines()) if m)
    done = {name: found[name] for name in names if name in found}
    count = {word.lower(): sum(v == word for v in done.values()) for word in ("PASSED", "SKIPPED")}
    failed = sorted(name for name, word in done.items() if word in ("FAILED", "ERROR"))
    return {
        "tests": len(names),
        **count,
        "failed": failed,
        "missing": len(names) - len(done),
        "status": status,
        "seconds": round(time.monotonic() - start, 1),
    }


def test_stage(out: Path, seconds: float, rehearse: bool, about: dict[str, Any]) -> bool:
    """Every test with the mark, dealt to several processes; those that fail there are run once more by themselves."""
    start, path = time.monotonic(), out / "tests.jsonl"

    def left() -> float:
        return seconds - (time.monotonic() - start)

    def tell(row: dict[str, Any]) -> None:
        append(path, {**row, **about, "time": now()})
        failed = "".join(f"\n  {name}" for name in row["failed"])
        print(
            f"tests {row['part']:<8} {row['passed']} passed, {row['skipped']} skipped, {len(row['failed'])} failed, "
            f"{row['missing']} not reached, {row['seconds']:.0f} s{failed}",
            flush=True,
        )

    try:
        names = collect(left(), rehearse)
    except (OSError, subprocess.TimeoutExpired) as error:
        empty = {"tests": 0, "passed": 0, "skipped": 0, "missing": 0, "seconds": 0.0}
        tell({"part": "collect", **empty, "failed": [str(error)[:500]]})
        return False
    jobs = 1 if rehearse else max(1, min(8, (os.cpu_count() or 1) // 2))
    with tempfile.TemporaryDirectory(prefix="smartgpu-gpu-") as folder, ThreadPoolExecutor(jobs) as threads:
        waiting = [
            threads.submit(run_tests, names[part::jobs], left(), Path(folder) / f"{part}")
            for part in range(jobs)
        ]
        rows = []
        for number, done in enumerate(as_completed(waiting)):
            rows.append(done.result())
            tell({"part": f"{number + 1}/{jobs}", **rows[-1]})
        failed = [name for row in rows for name in row["failed"]]
        missing = sum(row["missing"] for row in rows)
        if failed and left() > 10:  # a GPU shared with seven others may have been short of memory
            again = run_tests(failed, left(), Path(folder) / "again")
            tell({"part": "alone", **again})
            failed, missing = again["failed"], missing + again["missing"]
    some = rehearse or any(row["passed"] for row in rows)  # where all skip themselves nothing is shown
    return some and not failed and not missing


@contextlib.contextmanager
def compiling(rehearse: bool) -> Iterator[None]:
    """While the body runs, other processes compile the kernels that are timed afterwards."""
    count = 1 if rehearse else max(1, min(6, (os.cpu_count() or 1) // 3))
    children = [
        subprocess.Popen(
            [sys.executable, str(ROOT / "bench" / "kernels.py"), "--compile", str(number), str(count)],
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for number in range(count)
    ]
    try:
        yield
    finally:
        for child in children:  # what is not compiled by now is compiled when it is needed
            if child.poll() is None:
                child.kill()
            child.wait()


# -- kernels -----------------------------------------------------------------------------------------------------------


def kernel_stage(out: Path, seconds: float, about: dict[str, Any]) -> bool:
    """bench/kernels.py in a process of its own: what it does to the device ends with it."""
    command = [sys.executable, str(ROOT / "bench" / "kernels.py"), "--out", str(out / "kernels.jsonl")]
    try:
        got = subprocess.run([*command, "--seconds", f"{seconds:.0f}"], cwd=ROOT, timeout=seconds + 30)
    except subprocess.TimeoutExpired:
        row = {"kernel": "?", "failed": f"no answer for {seconds + 30:.0f} s", **about, "time": now()}
        append(out / "kernels.jsonl", row)
        print(row["failed"], file=sys.stderr)
        return False
    return got.returncode == 0


# -- launches ----------------------------------------------------------------------------------------------------------


def launch_stage(out: Path, seconds: float, rehearse: bool) -> bool:
    """bench/launches.py, which gives each of its parts a process and a share of the time."""
    command = [sys.executable, str(ROOT / "bench" / "launches.py"), "--out", str(out / "launches.jsonl")]
    command += ["--seconds", f"{300 if rehearse else seconds:.0f}"]
    command += ["--parts", *REHEARSED_PARTS] if rehearse else []
    return subprocess.run(command, cwd=ROOT).returncode == 0


# -- swaps, scale ------------------------------------------------------------------------------------------------------


def other_stage(
    name: str, command: list[str], out: Path, seconds: float, rehearse: bool, about: dict[str, Any]
) -> bool:
    """Another benchmark in a process of its own. A figure that is missed is in its row, and no failure."""
    path = out / f"{name}.jsonl"
    command = [sys.executable, *command, "--out", str(path), *(["--rehearse"] if rehearse else [])]
    try:
        limit = 300 if rehearse else seconds
        got = subprocess.run(command, cwd=ROOT, timeout=limit, stderr=subprocess.PIPE, text=True)
        failed = got.stderr.strip()[-500:] if got.returncode > 1 or "Traceback" in got.stderr else None
    except subprocess.TimeoutExpired:
        failed = f"no answer for {seconds:.0f} s"
    if failed is not None:
        append(path, {"case": name, "failed": failed, **about, "time": now()})
        print(failed, file=sys.stderr)
    return failed is None


def swap_stage(out: Path, seconds: float, rehearse: bool, about: dict[str, Any]) -> bool:
    search = f"{1 if rehearse else SEARCH * seconds:.0f}"
    command = ["bench/polish.py", "--device", "--seconds", search]
    return other_stage("swaps", command, out, seconds, rehearse, about)


def scale_stage(out: Path, seconds: float, rehearse: bool, about: dict[str, Any]) -> bool:
    if not rehearse and seconds < SCALE:
        print(f"scale: {max(seconds, 0):.0f} s are left, {SCALE:.0f} s are needed", file=sys.stderr)
        return True
    command = ["bench/scale.py", "device", "--seconds", f"{seconds - OVERHEAD:.0f}"]
    return other_stage("scale", command, out, seconds, rehearse, about)


# -- selections --------------------------------------------------------------------------------------------------------


class DeviceBench(Bench):
    """Cases on the device: one worker goes from task to task, and its death costs the case at hand only.

    until: a case that would not end by then (time.monotonic()) is not begun.
    """

    def __init__(self, out: Path | None, until: float, folder: Path, rehearse: bool = False):
        super().__init__(out, Limits(often=1.0, twice=4.0, warm=120.0))
        self.until, self.folder, self.rehearse = until, folder, rehearse
        self.process: Process | None = None
        self.tasks = 0
        self.about: dict[str, Any] = {}
        self.extra: dict[str, Any] = {}  # of the row at hand

    def close(self) -> None:
        if self.process is not None:
            self.process.close()
            self.process = None

    @property
    def left(self) -> float:
        return self.until - time.monotonic()

    def _measure(self, case: Case, wanted: list[str]) -> None:
        self.say(case.name)
        ours: str | None = None  # file of our picks, with which others are compared
        for name in wanted:
            self.extra = {}
            run = Runs(stopped=self._refusal(case, name) or self._too_late(case, name))
            if run.stopped is None:
                self._task(case, name, run, ours)
            if name == TRITON and run.stopped is None:
                ours = run.last["picks"]
            self._append(self._row(case, name, run, None, {}))

    def _too_late(self, case: Case, name: str) -> str | None:
        expected = self.expected(case, name) + OVERHEAD
        if expected <= self.left:
            return None
        return f"time: about {expected:.0f} s are needed, {max(self.left, 0):.0f} s are left"

    def expected(self, case: Case, name: str) -> float:
        """Seconds of one run: the bar's, times how far the case before it of this objective was from its own."""
        guess = PROVIDERS[name].expect or (case.expect if case.must is None else case.must)
        family = case.objective.removesuffix("_quality")
        slow = [row["slow"] for row in self.rows if row["objective"].startswith(family) and row.get("slow")]
        return guess * max(1.0, slow[-1] if slow and name == TRITON else 1.0)

    def _task(self, case: Case, name: str, run: Runs, ours: str | None) -> None:
        expected = self.expected(case, name)
        limit = 300.0 if self.rehearse else SLACK * expected + 20
        try:
            run.warm = self._begin(name, case)
            if not self.about:
                self.about = self.process.ask(30, describe=True)["about"]
            for number in range(3):
                run.last = self.process.run(number, min(limit, self.left))
                run.seconds.append(self._seconds(case, run.last))
                run.peaks.append(run.last["peak"])
                if self.limits.repeats(run.last["seconds"]) <= number + 1:
                    break
            run.checked = self.process.ask(self.left, check=number, against=ours)
        except Stopped as stop:
            self._stop(case, run, str(stop))
            return
        self.extra["warm"] = {key: run.warm[key] for key in ("warm_rows", "warm_seconds")}
        if name == TRITON and max(run.seconds) < self.limits.twice:
            self.extra |= self._waits(min(limit, self.left))
        if "looks" in run.last["notes"]:
            self.extra["looks_per_pick"] = round(run.last["notes"]["looks"] / case.k, 4)

    def _waits(self, seconds: float) -> dict[str, Any]:
        """Host synchronisations of one more run, which is not timed; {} where it did not end."""
        try:
            told = self.process.ask(seconds, count=True)
        except Stopped:
            self.close()
            return {}
        return {"syncs": told["syncs"], "syncs_per_pick": round(told["syncs"] / told["picked"], 4)}

    def _begin(self, name: str, case: Case) -> dict[str, Any]:
        """The worker's answer after the warm-up of its next task."""
        folder = self.folder / str(self.tasks)
        self.tasks += 1
        if self.process is None:
            self.process = Process(name, case, None, None, folder)
        else:
            self.process.begin(name, case, None, None, folder)
        return self.process.ready(min(self.limits.warm, self.left))

    def count_rest(self, cases: Iterable[Case]) -> None:
        """Long cases are run once more for this if there is time in the end; their rows are then written again."""
        for case in cases:
            rows = [row for row in self.rows if (row["case"], row["provider"]) == (case.name, TRITON)]
            if not rows or "ms_p50" not in rows[-1] or "syncs" in rows[-1]:
                continue
            expected = rows[-1]["ms_p50"] / 1e3 + 2 * OVERHEAD
            if expected > self.left:
                continue
            try:
                self._begin(TRITON, case)
            except Stopped:
                self.close()
                continue
            waits = self._waits(self.left)
            if waits:
                self._append(self._judged(case, TRITON, {**rows[-1], **waits}))

    def _stop(self, case: Case, run: Runs, reason: str) -> None:
        run.stopped = reason
        if not reason.startswith(("memory:", "not installed")):  # the worker was killed, or died
            self.close()
        if reason.startswith("time:"):
            self.extra["slow"] = SLACK

    def _seconds(self, case: Case, got: dict[str, Any]) -> float:
        """Without compilation, and scaled to k picks where fewer were timed."""
        notes, seconds, timed = got["notes"], got["seconds"], len(got["indices"])
        compiled = notes.get("phases_ms", {}).get("compile", 0.0)
        self.extra["compile_ms"] = compiled
        if timed < case.k:
            setup = notes["setup_seconds"]
            self.extra |= {
                "timed_picks": timed,
                "measured_ms": round(1e3 * seconds, 3),
                "scaled": "setup + (time - setup) k / timed_picks: every pick does the same work",
            }
            return setup + (seconds - setup) * case.k / timed
        return seconds - compiled / 1e3

    def _checked(self, case: Case, name: str, run: Runs, x: Any, known: dict) -> dict[str, Any]:
        return run.checked

    def _row(self, case: Case, name: str, run: Runs, x: Any, known: dict) -> dict[str, Any]:
        row = super()._row(case, name, run, x, known)
        about = self.about
        row |= {key: value for key, value in about.items() if key != "versions"}
        row["versions"] = {**row["versions"], **about.get("versions", {})}
        row |= {"host": row["device"], "gpu": about.get("gpu"), **self.extra}
        row["device"] = about.get("gpu", row["device"])
        row["data"] = run.warm.get("data")
        row["input"] = (
            "a float16 tensor on the device: its transfer is not in the time"
            if case.where == "device"
            else "a float32 array of the host: its transfer is in the time"
        )
        if case.objective == "facility_location_quality":
            row["quality"] = {"uniform in [0, 1), mean": round(float(quality(case).mean()), 6)}
            row["quality"]["weight alpha n / k"] = round(case.quality_weight, 4)
        row |= run.last.get("device", {})
        if case.memory is not None:
            row["device_limit_mb"] = 1e3 * float(case.memory.removesuffix("GB"))
        if "ms_p50" in row and name == TRITON and not self.rehearse:
            row["slow"] = round(row["ms_p50"] / 1e3 / (case.must or case.expect), 3)
        return {**row, "rehearsal": True} if self.rehearse else self._judged(case, name, row)

    def _judged(self, case: Case, name: str, row: dict[str, Any]) -> dict[str, Any]:
        """With the bars that it is measured against, which are for one H200."""
        if not is_judged(row):
            return row
        rows = {(r["case"], r["provider"]): r for r in [*self.rows, row]}
        mine = [must for must in DEVICE_MUSTS if must.at == (case.name, name)]
        row["musts"] = [entry for entry in (must.entry(rows) for must in mine) if entry is not None]
        return row


def selection_stage(
    out: Path, until: float, rehearse: bool, patterns: list[str] | None
) -> list[dict[str, Any]]:
    cases = choose(REHEARSAL if rehearse else DEVICE_CASES, patterns)
    with tempfile.TemporaryDirectory(prefix="smartgpu-gpu-") as folder:
        bench = DeviceBench(out / "selections.jsonl", until, Path(folder), rehearse)
        try:
            bench.measure(cases)
            bench.count_rest(cases)
            return bench.rows
        finally:
            bench.close()


# -- all of it ---------------------------------------------------------------------------------------------------------


def now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%MZ")


def final_table(rows: list[dict[str, Any]]) -> str:
    """Every bar with what was measured, then what was only measured."""
    by = {(row["case"], row["provider"]): row for row in rows}
    judged = {key: row for key, row in by.items() if is_judged(row)}
    lines = [must.judge(judged) for must in DEVICE_MUSTS] if judged else []
    for row in by.values():
        if "stopped" in row:
            lines.append(f"{'stopped':<13} {row['case']} {row['provider']}: {row['stopped']}")
        elif row.get("gate", "pass") != "pass":
            lines.append(f"{'GATE':<13} {row['case']} {row['provider']}: {row['gate']}")
        elif not row.get("musts"):
            lines.append(f"{'measured':<13} {row['case']} {row['provider']}: {row['ms_p50'] / 1e3:.4g} s")
    return "\n".join(lines)


def failed(row: dict[str, Any]) -> bool:
    """Whether a selection went wrong: what the time, or the memory of code that is not ours, did not allow, did not."""
    stopped = row.get("stopped", "")
    if stopped.startswith("time: about") or (stopped and not PROVIDERS[row["provider"]].ours):
        return False
    return bool(stopped) or row.get("gate", "pass") != "pass"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--out", type=Path, required=True, help="folder of the .jsonl files, to which rows are appended"
    )
    parser.add_argument("--seconds", type=float, default=560, help="for all of it")
    parser.add_argument(
        "--only", nargs="+", choices=STAGES, default=STAGES, metavar="STAGE", help=", ".join(STAGES)
    )
    parser.add_argument(
        "--cases", nargs="+", metavar="PATTERN", help="of the selections: parts of case names"
    )
    parser.add_argument("--rehearse", action="store_true", help="in Triton's interpreter, with tiny pools")
    given = parser.parse_args(arguments)
    start = time.monotonic()
    if given.rehearse:
        os.environ["TRITON_INTERPRET"] = "1"  # of the processes below
    else:
        from smartgpu.backends.gpu import find_gpu, interpreted

        if interpreted() or not find_gpu().usable:
            why = "TRITON_INTERPRET is set" if interpreted() else find_gpu().missing
            print(f"no GPU to measure: {why}", file=sys.stderr)
            return 2
    about = {**describe(), **({"rehearsal": True} if given.rehearse else smi())}
    given.out.mkdir(parents=True, exist_ok=True)
    good, rows = {}, []
    if "tests" in given.only:
        with compiling(given.rehearse) if "kernels" in given.only else contextlib.nullcontext():
            good["tests"] = test_stage(given.out, min(TESTS, given.seconds), given.rehearse, about)
    if "kernels" in given.only:
        good["kernels"] = kernel_stage(given.out, min(KERNELS, given.seconds), about)
    if "launches" in given.only:
        good["launches"] = launch_stage(given.out, min(LAUNCHES, given.seconds), given.rehearse)
    if "selections" in given.only:
        until = start + given.seconds - (SWAPS if "swaps" in given.only and not given.rehearse else 0)
        rows = selection_stage(given.out, until, given.rehearse, given.cases)
        good["selections"] = bool(rows) and not any(failed(row) for row in rows)
        print(final_table(rows))
    if "swaps" in given.only:
        left = max(min(SWAPS, start + given.seconds - time.monotonic()), 20.0)
        good["swaps"] = swap_stage(given.out, left, given.rehearse, about)
    if "scale" in given.only:
        left = start + given.seconds - time.monotonic()
        good["scale"] = scale_stage(given.out, left, given.rehearse, about)
    said = ", ".join(f"{stage} {'passed' if fine else 'FAILED'}" for stage, fine in good.items())
    print(f"{said}; {time.monotonic() - start:.0f} s; rows in {given.out}")
    return 0 if all(good.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
