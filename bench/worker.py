"""One (case, provider) in a process of its own. Started by run.py; JSON lines in and out.

in   {"provider", "case", "pool", "limit", "dir"}     out  {"ready", ...} after a warm-up on the first rows
in   {"run": number}                                  out  {"seconds", "peak", ...} or {"stopped": reason}
Standard output belongs to the protocol alone; whatever a package prints goes to standard error.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import os
import resource
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from bench.cases import Case
from bench.providers import PROVIDERS, Picks

WARM_ROWS, WARM_PICKS = 500, 50
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


def save(directory: Path, number: int | str, picks: Picks) -> dict:
    path = directory / f"picks{number}.npz"
    gains = np.empty(0) if picks.gains is None else np.asarray(picks.gains, np.float64)
    np.savez(path, indices=np.asarray(picks.indices, np.int64), gains=gains)
    return {"picks": str(path), "notes": picks.notes}


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    def answer(**message: object) -> None:
        answers.write(json.dumps(message) + "\n")

    task = json.loads(sys.stdin.readline())
    case, directory = Case(**task["case"]), Path(task["dir"])
    try:
        select = PROVIDERS[task["provider"]].make()
    except ImportError as error:
        answer(stopped=f"not installed: {error}")
        return
    x = np.load(task["pool"])
    rows = min(WARM_ROWS, case.n)
    warm = select(x[:rows].copy(), case, min(WARM_PICKS, case.k, rows - 1))  # compiles, probes BLAS
    release()
    size = memory("VmSize") + int(task["limit"]) + SPARE
    resource.setrlimit(resource.RLIMIT_AS, (size, size))
    answer(ready=True, rows=rows, **save(directory, "warm", warm))

    for line in sys.stdin:
        number = json.loads(line)["run"]
        release()
        reset_peak()
        before = memory("VmRSS")
        start = time.perf_counter()
        try:
            picks = select(x, case, case.k)
        except (MemoryError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and "alloc" not in str(error):
                raise
            reason = str(error).splitlines()[0] if str(error) else "MemoryError"
            answer(stopped=f"memory: more than the {task['limit'] / 1e9:.1f} GB that are free ({reason})")
            return
        seconds = time.perf_counter() - start
        answer(seconds=seconds, peak=memory("VmHWM") - before, **save(directory, number, picks))


if __name__ == "__main__":
    main()
