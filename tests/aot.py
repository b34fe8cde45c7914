"""Compile Triton kernels ahead of time for GPUs that are not here, and read what came out.

`record(target, launch, call)` runs a launcher with kernels/launch.py's `run` replaced and gives the jobs that it would
have started: the very arguments, constants and configurations of a real call, as triton specialises them.
`build(jobs)` compiles in subprocesses without TRITON_INTERPRET, so it works in a test process that interprets its
kernels. Registers, stack and shared memory are cuobjdump's, instructions nvdisasm's; both come with the triton wheel.
"""

import inspect
import json
import os
import re
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path

# Of one block, in bytes (CUDA programming guide, technical specifications): compute capability 9.0, 10.0, and for 80
# that of 8.6, 8.9 and 12.x, which use its table.
SHARED_LIMIT = {80: 99 * 1024, 90: 227 * 1024, 100: 227 * 1024}
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

    def complaints(self, target: int) -> list[str]:
        """What is wrong with any kernel: stack, spills, registers or shared memory beyond the target's limits."""
        found = []
        if self.stack or self.local:
            found.append(f"stack {self.stack}, local {self.local} bytes")
        if self.count(SPILL.pattern):
            found.append(f"{self.count(SPILL.pattern)} spills to local memory")
        if self.registers * self.threads > REGISTER_LIMIT:
            found.append(f"{self.registers} registers x {self.threads} threads")
        if self.shared > SHARED_LIMIT[target]:
            found.append(f"{self.shared} bytes of shared memory")
        return found


def record(target: int, launch, call) -> list[Job]:
    """The jobs that `call()` starts through launch.run on a GPU of compute capability `target`."""
    jobs = []
    run, arch = launch.run, launch.arch
    launch.run = lambda kernel, programs, config, x, **arguments: jobs.append(
        _job(kernel, target, config, arguments)
    )
    launch.arch = lambda device: target
    try:
        call()
    finally:
        launch.run, launch.arch = run, arch
    return jobs


def _job(kernel, target, config, arguments) -> Job:
    import triton.language as tl

    pointers = {"float16": "fp16", "bfloat16": "bf16", "float32": "fp32", "float64": "fp64"}
    pointers |= {"int32": "i32", "int64": "i64", "uint8": "u8"}
    signature, constexprs, divisible = {}, {}, []
    for name, parameter in inspect.signature(kernel.fn).parameters.items():
        value = arguments[name]
        constant = parameter.annotation is tl.constexpr
        # As at a launch: None and the integer 1 become constants, multiples of 16 are known to be some.
        if constant or value is None or (isinstance(value, int) and value == 1):
            signature[name] = "constexpr"
            constexprs[name] = False if name == "EMULATE" else value
        elif isinstance(value, int):
            signature[name] = "i32" if -(2**31) <= value < 2**31 else "i64"
            if value % 16 == 0:
                divisible.append(name)
        elif isinstance(value, float):
            signature[name] = "fp32"
        else:
            signature[name] = f"*{pointers[str(value.dtype).removeprefix('torch.')]}"
            if value.data_ptr() % 16 == 0:
                divisible.append(name)
    return Job(
        module=kernel.fn.__module__,
        kernel=kernel.fn.__name__,
        target=target,
        signature=signature,
        constexprs=constexprs,
        divisible=tuple(divisible),
        options={
            "num_warps": config.num_warps,
            "num_stages": config.num_stages,
            "enable_fp_fusion": False,
        },
    )


def build(jobs: list[Job]) -> list[Report]:
    """Compile all jobs in fresh processes, one for each CPU, with this one's import path.

    Raises RuntimeError with the error output of a process that failed.
    """
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    env["PYTHONPATH"] = os.pathsep.join(p or os.getcwd() for p in sys.path)
    command = [sys.executable, str(Path(__file__).resolve())]
    workers = min(os.cpu_count() or 1, len(jobs))

    def work(share):
        text = json.dumps([asdict(job) for job in share])
        return subprocess.run(command, input=text, env=env, capture_output=True, text=True)

    with ThreadPoolExecutor(workers) as pool:
        done = list(pool.map(work, [jobs[i::workers] for i in range(workers)]))
    reports = [None] * len(jobs)
    for i, process in enumerate(done):
        if process.returncode != 0:
            raise RuntimeError(f"ahead-of-time compilation failed:\n{process.stderr[-4000:]}")
        reports[i::workers] = [Report(**report) for report in json.loads(process.stdout)]
    return reports


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
    print(
        job["kernel"], job["target"], job["constexprs"], job["options"], file=sys.stderr
    )  # the last one, if it fails
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
