"""Runs (case, provider) tasks in a process of its own. Started by process.py; JSON lines in and out.

in   {"provider", "case", "pool", "limit", "dir"}     out  {"ready", ...} after a warm-up on the first rows
in   {"run": number}                                  out  {"seconds", "peak", ...}
in   {"count": true}                                  out  {"syncs", ...}: how often a run waits for the device
in   {"check": number, "against": file | null}        out  {"gate", "value", ...}: of what that run picked
in   {"describe": true}                               out  {"about": ...}: the device
Any of them may be answered by {"stopped": reason}. On the CPU a process has one task; where "pool" is null the worker
makes the pool on the device, and goes from task to task. Standard output belongs to the protocol alone; whatever a
package prints goes to standard error.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import gc
import json
import os
import resource
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from bench import gate
from bench.cases import Case, task_labels
from bench.providers import PROVIDERS, Picks

WARM_ROWS, WARM_PICKS = 500, 50
# A second one for the device: large enough for every phase of a selection, and n of the same remainder, which Triton
# compiles for. REHEARSED is what its interpreter does in a second.
SHAPE_ROWS, SHAPE_PICKS = 32_768, 500
REHEARSED_ROWS, REHEARSED_PICKS = 48, 3
SPARE = 1 << 30  # address space for stacks and arenas, which are reserved and hardly touched


def memory(field: str) -> int:
    """VmRSS, VmHWM (the peak) or VmSize of this process, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"no {field} in /proc/self/status")


def reset_peak() -> None:
    """VmHWM starts again from the memory in use now: neither the warm-up nor an earlier run counts."""
    Path("/proc/self/clear_refs").write_text("5")


def release() -> None:
    """Memory that malloc keeps after a run goes back to the system: other providers run while this one waits."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


class OutOfMemory(Exception):
    """A run asked for more than there is."""


class Task:
    """One (case, provider) on the CPU."""

    def __init__(self, message: dict):
        self.case, self.directory = Case(**message["case"]), Path(message["dir"])
        self.provider, self.limit = PROVIDERS[message["provider"]], message["limit"]
        self.select = self.provider.make()
        self.load(message["pool"])

    def load(self, pool: str) -> None:
        self.x = np.load(pool)

    def warm(self) -> dict:
        """A selection from the first rows: it compiles, and probes BLAS."""
        rows = min(WARM_ROWS, self.case.n)
        warm = self.select(self.x[:rows].copy(), self.case, min(WARM_PICKS, self.case.k, rows - 1))
        release()
        size = memory("VmSize") + int(self.limit) + SPARE
        resource.setrlimit(resource.RLIMIT_AS, (size, size))
        return {"ready": True, "rows": rows, **self.save("warm", warm)}

    def run(self, number: int) -> dict:
        release()
        reset_peak()
        before = memory("VmRSS")
        picks, seconds = self._timed(self.case.k)
        return {"seconds": seconds, "peak": memory("VmHWM") - before, **self.save(number, picks)}

    def _timed(self, k: int) -> tuple[Picks, float]:
        start = time.perf_counter()
        try:
            picks = self.select(self.x, self.case, k)
        except (MemoryError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and "alloc" not in str(error):
                raise
            reason = str(error).splitlines()[0] if str(error) else "MemoryError"
            free = (
                f"more than the {self.limit / 1e9:.1f} GB that are free"
                if self.limit is not None
                else "too much"
            )
            raise OutOfMemory(f"memory: {free} ({reason})") from None
        return picks, time.perf_counter() - start

    def save(self, number: int | str, picks: Picks) -> dict:
        path = self.directory / f"picks{number}.npz"
        gains = np.empty(0) if picks.gains is None else np.asarray(picks.gains, np.float64)
        np.savez(path, indices=np.asarray(picks.indices, np.int64), gains=gains)
        return {"picks": str(path), "notes": picks.notes}


class DeviceTask(Task):
    """One on the device: the pool is made there and stays for the next task, which is often of the same one."""

    pool: tuple = ()  # (what it is, tensor, source)

    def load(self, pool: None) -> None:
        from bench import device

        case, self.device = self.case, device
        key = (case.pool, case.n, case.d, case.seed)
        if not DeviceTask.pool or DeviceTask.pool[0] != key:
            DeviceTask.pool = ()
            device.release()
            DeviceTask.pool = (key, *device.make_pool(case))
        _, self.made, self.source = DeviceTask.pool
        self.x = self.made if case.where == "device" else self.made.float().cpu().numpy()
        if case.tasks:
            task_labels(case)  # drawn now: in no run
        small = self.device.REHEARSAL
        self.small = (REHEARSED_ROWS, REHEARSED_PICKS) if small else (WARM_ROWS, WARM_PICKS)
        self.picks = min(case.k, self.provider.picks or case.k)

    def warm(self) -> dict:
        # of tasks too it is one selection, as each of theirs
        case, device = dataclasses.replace(self.case, tasks=None), self.device
        rows, picks = min(self.small[0], case.n), min(self.small[1], case.k)
        self.rows, start = rows, time.perf_counter()
        self.warmed = self.select(self.x[:rows], case, picks)
        if not device.REHEARSAL:
            shape = min(SHAPE_ROWS + case.n % 16, case.n)
            # tasks are of any remainder, of which Triton knows two kinds
            for more in sorted({shape, SHAPE_ROWS} if self.case.tasks else {shape}):
                self.select(self.x[:more], case, min(SHAPE_PICKS, self.picks))
            if self.case.tasks:  # and what takes many of them at once
                some = dataclasses.replace(self.case, n=shape, k=SHAPE_PICKS, tasks=8, largest=shape // 2)
                self.select(self.x[:shape], some, some.k)
        device.release()
        warm = {"warm_rows": rows if device.REHEARSAL else shape, "warm_seconds": time.perf_counter() - start}
        return {"ready": True, "rows": rows, "data": self.source, **warm, **self.save("warm", self.warmed)}

    def run(self, number: int) -> dict:
        device = self.device
        device.release()
        release()
        with contextlib.suppress(
            OSError
        ):  # some containers forbid it: the host's peak is then that of all runs
            reset_peak()
        before, there = memory("VmRSS"), device.start_memory()
        picks, seconds = self._timed(self.picks)
        device.synchronize()
        taken = {**device.memory(there), **device.clocks()}
        device.release()
        peak = memory("VmHWM") - before
        return {"seconds": seconds, "peak": peak, "device": taken, **self.save(number, picks)}

    def count(self) -> dict:
        with self.device.count_syncs() as syncs:
            picks = self.select(self.x, self.case, self.picks)
        return {"syncs": syncs.count, "picked": len(picks.indices)}

    def check(self, number: int, against: str | None) -> dict:
        """{"gate", "value", ...}: ours is gated, f(S) of others is compared with that of as many picks of ours."""
        case, provider, device = self.case, self.provider, self.device
        with np.load(self.directory / f"picks{number}.npz") as file:
            picks, gains = file["indices"], file["gains"]
        if not provider.ours:
            out = {"value": gate.value(case, self.made, picks, device.Pool)}
            if against is not None:
                with np.load(against) as file:
                    ours = gate.value(case, self.made, file["indices"][: len(picks)], device.Pool)
                out["value_ratio"] = out["value"] / ours
            return out
        first = self.made[: self.rows].float().cpu().numpy()
        verdict, details = gate.check_reference(case, first, self.warmed.indices, provider.halves), {}
        if verdict == "pass":
            verdict, details = gate.check(case, self.made, picks, gains, provider.halves, device.Pool)
        device.release()
        return {"gate": verdict, "value": details.pop("value", None), "gate_details": details}


def answer_to(message: dict, task: Task | None) -> tuple[Task | None, dict]:
    if "provider" in message:
        task = (Task if message["pool"] is not None else DeviceTask)(message)
        return task, task.warm()
    if "run" in message:
        return task, task.run(message["run"])
    if "count" in message:
        return task, task.count()
    if "check" in message:
        return task, task.check(message["check"], message["against"])
    from bench import device

    return task, {"about": device.describe()}


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    task = None
    for line in sys.stdin:
        try:
            task, answer = answer_to(json.loads(line), task)
        except ImportError as error:
            answer = {"stopped": f"not installed: {error}"}
        except OutOfMemory as error:
            answer = {"stopped": str(error)}
        answers.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    main()
