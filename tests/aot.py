"""Compile Triton kernels ahead of time for GPUs that are not here, and read what came out.

`build(jobs)` compiles in one subprocess without TRITON_INTERPRET, so it works in a test process that interprets its
kernels. Registers, stack and shared memory are cuobjdump's, instructions nvdisasm's; both come with the triton wheel.
"""

import json
import os
import re
import subprocess
import sys
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path

# Of one block, in bytes: compute capability 8.0, 9.0, 10.0 (CUDA programming guide, technical specifications).
SHARED_LIMIT = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}
REGISTER_LIMIT = 64 * 1024  # of one multiprocessor: the most that one block can hold
SPILL = re.compile(r"^(STL|LDL)\b")  # stores to and loads from local memory


@dataclass(frozen=True)
class Job:
    """One kernel, one set of argument types and constexprs, one target."""

    module: str  # e.g. "smartgpu.kernels.similarity"
    kernel: str  # e.g. "_totals_kernel"
    target: int  # 80, 90, 100
    signature: dict  # argument -> "*fp16", "i32", "fp32", ..., or "constexpr"
    constexprs: dict
    divisible: tuple = ()  # arguments known to be multiples of 16, as pointers and even strides are
    options: dict = field(default_factory=dict)  # num_warps, num_stages, ...


@dataclass(frozen=True)
class Report:
    registers: int
    stack: int
    local: int
    shared: int  # dynamic shared memory, bytes
    threads: int
    instructions: dict  # opcode with its modifiers -> count

    def count(self, pattern: str) -> int:
        """How many instructions match a regular expression at their beginning."""
        return sum(c for opcode, c in self.instructions.items() if re.match(pattern, opcode))

    def check(self, target: int) -> None:
        """The gate for every kernel: no stack, no spills, registers and shared memory within the target's limits."""
        assert self.stack == 0 and self.local == 0, f"stack {self.stack}, local {self.local} bytes"
        assert not [o for o in self.instructions if SPILL.match(o)], "spills to local memory"
        held = self.registers * self.threads
        assert held <= REGISTER_LIMIT, f"{self.registers} registers x {self.threads} threads"
        assert self.shared <= SHARED_LIMIT[target], f"{self.shared} bytes of shared memory"


def build(jobs: list[Job]) -> list[Report]:
    """Compile all jobs in a fresh process with this one's import path; raises RuntimeError with its error output."""
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    env["PYTHONPATH"] = os.pathsep.join(p or os.getcwd() for p in sys.path)
    done = subprocess.run(
        [sys.executable, str(Path(__file__).resolve())],
        input=json.dumps([asdict(job) for job in jobs]),
        env=env,
        capture_output=True,
        text=True,
    )
    if done.returncode != 0:
        raise RuntimeError(f"ahead-of-time compilation failed:\n{done.stderr[-4000:]}")
    return [Report(**report) for report in json.loads(done.stdout)]


def _build_one(job: dict) -> dict:
    import importlib
    import tempfile

    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel = getattr(importlib.import_module(job["module"]), job["kernel"])
    position = {name: i for i, name in enumerate(kernel.arg_names)}
    source = ASTSource(
        kernel,
        job["signature"],
        constexprs={(position[name],): value for name, value in job["constexprs"].items()},
        attrs={(position[name],): [["tt.divisibility", 16]] for name in job["divisible"]},
    )
    compiled = triton.compile(source, target=GPUTarget("cuda", job["target"], 32), options=job["options"])
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(compiled.asm["cubin"])
        usage = _run(tools / "cuobjdump", "-res-usage", cubin)
        listing = _run(tools / "nvdisasm", "-c", cubin)
    used = {name: int(value) for name, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", usage)}
    # "/*0040*/  @!P0 HMMA.16816.F32 R4, ..." -> HMMA.16816.F32
    opcodes = re.findall(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]+)", listing)
    return {
        "registers": used["REG"],
        "stack": used["STACK"],
        "local": used["LOCAL"],
        "shared": compiled.metadata.shared,
        "threads": 32 * compiled.metadata.num_warps,
        "instructions": Counter(opcodes),
    }


def _run(tool: Path, *arguments) -> str:
    command = [str(tool), *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


if __name__ == "__main__":
    json.dump([_build_one(job) for job in json.load(sys.stdin)], sys.stdout)
