"""Everything that needs a GPU, in one command of under ten minutes: tests, kernels against their floors, selections.

python bench/gpu.py [--out FILE] [--skip-tests] [--rows N] [--seconds S]

1. the tests that carry the mark `gpu`;
2. every dense kernel of smartgpu.kernels, timed by CUDA events, against what the device can do, measured in the same
   run: its rate for 16-bit (or tf32) matrix products and its copy bandwidth;
3. whole selections on the device (bench/run.py's harness, with its gate) beside plain torch on the same device.

One JSON line per figure is appended to FILE. Exit status 1 where a test or a gate failed, 2 without a GPU.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.cases import DEVICE_CASES, ROOT
from bench.machine import describe
from bench.run import Bench, Limits

FEATURES = 768
SWEEP = (262_144, 768)  # the sweep that must reach a share of the matrix rate
BATCH = 256  # columns that tune.calls() asks for


def device() -> dict[str, Any]:
    import torch
    import triton

    name, (major, minor) = torch.cuda.get_device_name(), torch.cuda.get_device_capability()
    versions = {"torch": torch.__version__, "triton": triton.__version__, "cuda": torch.version.cuda}
    found = describe()
    found["versions"] = {**found["versions"], **versions}
    return {**found, "host": found["device"], "device": f"{name} (sm_{major}{minor})"}


def timed(call: Callable[[], Any], seconds: float = 0.4) -> tuple[float, float, float]:
    """Milliseconds of a call on the device: the 20th, 50th and 80th percentiles, after a warm-up."""
    import triton

    p50, p20, p80 = triton.testing.do_bench(call, warmup=100, rep=1e3 * seconds, quantiles=[0.5, 0.2, 0.8])
    return p20, p50, p80


def ceilings() -> dict[str, float]:
    """What this device can do: FLOP/s of large products in 16 bits and tf32, bytes/s read and written by a copy."""
    import torch

    n = 8192
    half = torch.randn(n, n, device="cuda", dtype=torch.float16)
    single = half.float()
    torch.backends.cuda.matmul.allow_tf32 = True
    out = {
        "half": 2e3 * n**3 / timed(lambda: half @ half.T)[1],
        "tf32": 2e3 * n**3 / timed(lambda: single @ single.T)[1],
    }
    torch.backends.cuda.matmul.allow_tf32 = False
    out["ieee"] = 2e3 * n**3 / timed(lambda: single @ single.T)[1]
    out["tf32x3"] = out["tf32"] / 3
    source = torch.empty(1 << 30, device="cuda", dtype=torch.uint8)
    target = torch.empty_like(source)
    out["bytes"] = 2e3 * source.numel() / timed(lambda: target.copy_(source))[1]
    return out


def work(kernel: str, n: int, d: int, size: int) -> tuple[float, float]:
    """(FLOP, bytes) that a dense kernel must do at least, for n rows of d features of `size` bytes."""
    once = size * n * d
    return {
        "sweep": (2.0 * n * n * d, 2 * once + 12.0 * n),
        "sweep_weighted": (2.0 * n * n * d, 2 * once + 20.0 * n),
        "symmetric": (1.0 * n * n * d, once + 12.0 * n),
        "symmetric_weighted": (1.0 * n * n * d, once + 20.0 * n),
        "columns": (2.0 * BATCH * n * d, once + 4.0 * BATCH * n),
        "fill": (2.0 * n * n * d, 2.0 * once),
        "top_k": (2.0 * n * n * d, once + 120.0 * n),
        "norms": (2.0 * n * d, once + 4.0 * n),
    }[kernel]


def kernels(rows: int, most: dict[str, float], append: Callable[[dict], None]) -> None:
    from smartgpu.kernels import tune

    plans = [("half", *SWEEP, ("sweep", "symmetric"))]
    plans += [(arithmetic, rows, FEATURES, None) for arithmetic in ("half", "tf32", "tf32x3", "ieee")]
    for arithmetic, n, d, only in plans:
        for kernel, call in tune.calls(arithmetic, n, d).items():
            if only is not None and kernel not in only:
                continue
            flop, moved = work(kernel, n, d, 2 if arithmetic == "half" else 4)
            p20, p50, p80 = timed(call)
            floor = 1e3 * max(flop / most[arithmetic], moved / most["bytes"])
            row = {"kernel": kernel, "arithmetic": arithmetic, "n": n, "d": d}
            row |= {"ms_p50": p50, "ms_p20": p20, "ms_p80": p80, "floor_ms": floor, "of_floor": floor / p50}
            row["tflop_s"] = 1e-9 * flop / p50
            append({key: round(v, 4) if isinstance(v, float) else v for key, v in row.items()})


def tests(seconds: float) -> bool:
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-m",
        "gpu",
        "-q",
        "-x",
        "--no-header",
        "-p",
        "no:cacheprovider",
    ]
    try:
        return subprocess.run(command, cwd=ROOT, timeout=seconds).returncode == 0
    except subprocess.TimeoutExpired:
        print(f"the tests took more than {seconds:.0f} s", file=sys.stderr)
        return False


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help=".jsonl file to which rows are appended; default: none")
    parser.add_argument("--skip-tests", action="store_true")
    parser.add_argument("--rows", type=int, default=65_536, help="rows of the kernels' pool")
    parser.add_argument("--seconds", type=float, default=540, help="no selection is begun after this")
    given = parser.parse_args(arguments)
    start = time.monotonic()
    try:
        import torch

        there = torch.cuda.is_available()
    except ImportError:
        there = False
    if not there:
        print("no NVIDIA GPU that torch can use", file=sys.stderr)
        return 2
    good = given.skip_tests or tests(given.seconds / 2)
    about, most = device(), ceilings()

    def append(row: dict[str, Any]) -> None:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%MZ")
        row = {**row, "ceilings": {k: round(v / 1e12, 2) for k, v in most.items()}, **about, "time": now}
        if given.out is not None:
            given.out.parent.mkdir(parents=True, exist_ok=True)
            with given.out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
        print(
            f"{row['kernel']:<20} {row['arithmetic']:<7} n {row['n']:>7} d {row['d']:>5}"
            f" {row['ms_p50']:10.3f} ms  {row['of_floor']:6.1%} of the floor"
        )

    kernels(given.rows, most, append)
    torch.cuda.empty_cache()
    bench = Bench(given.out, Limits(seconds=60, ours=120))
    bench.machine = about
    for case in DEVICE_CASES:
        if time.monotonic() - start > given.seconds:
            print(f"{case.name}: not begun, {given.seconds:.0f} s are over")
            continue
        bench.measure([case])
    good &= all(row.get("gate", "pass") == "pass" for row in bench.rows)
    print(f"{time.monotonic() - start:.0f} s")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
