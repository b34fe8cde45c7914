"""Time launch configurations on this GPU and rewrite its table in launch.py: `python -m smartgpu.kernels.tune`.

From the present configuration of a kernel it walks downhill: one field changed at a time, the fastest taken, until none
is faster. Every candidate must give the integers that the present configuration gives. Results go to the checkout's (or
the installed package's) launch.py, for review in a diff; nothing else in the package ever tunes.
"""

import argparse
import re
import sys
from dataclasses import replace
from pathlib import Path

import torch
import triton
from triton.runtime.errors import OutOfResources

from . import launch, neighbours, similarity, survivors, sweeps

ARITHMETICS = ("half", "tf32", "tf32x3", "ieee")
MARKED = re.compile(r"(?<=# <table>\n).*?(?=# </table>\n)", re.DOTALL)
CHOICES = {
    "block_a": (64, 128),
    "block_b": (64, 128, 256),
    "block_k": (16, 32, 64, 128),
    "num_warps": (4, 8),
    "num_stages": (2, 3, 4, 5),
}
GAIN = 0.98  # of the time: what is less than 2 % faster is not taken


def calls(arithmetic, n, d, device="cuda"):
    """kernel -> (call, the integers or norms that it must not change)."""
    dtype = torch.float16 if arithmetic == "half" else torch.float32
    form = similarity.Form("cosine", precision="ieee" if arithmetic == "half" else arithmetic)
    rbf = similarity.Form("rbf", gamma=1.0, precision=form.precision)
    generator = torch.Generator(device).manual_seed(0)
    x = torch.nn.functional.normalize(torch.randn(n, d, device=device, generator=generator)).to(dtype)
    y = x.clone()
    level = torch.full((n,), similarity.ONE // 8, dtype=torch.int32, device=device)
    weights = torch.randint(0, 2**20, (n,), device=device, generator=generator)
    cols = torch.randperm(n, device=device, generator=generator)[: min(n, 256)]
    ptr = torch.nn.functional.pad(survivors.count(x, x, level, form).cumsum(0), (1, 0))

    def fill():
        rows, q = survivors.fill(x, x, level, ptr, form)
        return (rows.long() * 1000003 + q).sum()  # the order inside a column is open

    return {
        "sweep": lambda: sweeps.excess(x, y, level, form),
        "sweep_weighted": lambda: sweeps.excess(x, y, level, form, weights=weights),
        "symmetric": lambda: sweeps.excess(x, x, level, form),
        "symmetric_weighted": lambda: sweeps.excess(x, x, level, form, weights=weights),
        "columns": lambda: sweeps.columns(x, x, cols, form),
        "fill": fill,
        "top_k": lambda: torch.cat(neighbours.top_k(x, x, 10, form), dim=1),
        "norms": lambda: similarity.squared_norms(x, rbf),
    }


def fits(kernel, arithmetic, config):
    """Whether a configuration can be right: the kernels' static assertions, and about what registers hold."""
    values = config.block_a * config.block_b // (32 * config.num_warps)
    most = {"half": 128, "tf32": 128, "tf32x3": 32, "ieee": 64}[arithmetic]
    if kernel == "norms" and config.block_a != config.block_b:
        return False
    return values <= most and config.block_b % config.block_a == 0


def near(config):
    """Configurations that differ in one field, by one step."""
    for field, choices in CHOICES.items():
        at = choices.index(getattr(config, field)) if getattr(config, field) in choices else 0
        for other in (at - 1, at + 1):
            if 0 <= other < len(choices):
                yield replace(config, **{field: choices[other]})
    if config.block_a == config.block_b:  # squares change both sides together
        for side in CHOICES["block_a"]:
            yield replace(config, block_a=side, block_b=side)


def best(kernel, arithmetic, start, call, say):
    """The configuration where the walk from `start` ends."""
    arch = launch.table(launch.arch("cuda"))
    table = launch.TABLE[arch]

    def time(config):
        """Milliseconds, and what came out; None where the device has not the resources."""
        table[kernel, arithmetic] = config
        try:
            out = call()
            return triton.testing.do_bench(call, warmup=25, rep=200, return_mode="median"), out
        except OutOfResources:
            return None
        finally:
            table[kernel, arithmetic] = start

    now, seen = start, {start}
    least, want = time(start)
    say(f"{kernel} {arithmetic}: {least:.3f} ms with {start}")
    moved = True
    while moved:
        moved, centre = False, now
        for config in near(centre):
            if config in seen or not fits(kernel, arithmetic, config):
                continue
            seen.add(config)
            timed = time(config)
            if timed is None:
                continue
            if not torch.equal(timed[1], want):
                raise RuntimeError(f"{kernel} {arithmetic}: {config} changes the result of {start}")
            if timed[0] < GAIN * least:
                least, now, moved = timed[0], config, True
                say(f"{kernel} {arithmetic}: {least:.3f} ms with {config}")
    return now


def render(table):
    """launch.TABLE as it stands in launch.py."""
    lines = ["TABLE = {"]
    for arch, configs in table.items():
        lines.append(f"    {arch}: {{")
        for (kernel, arithmetic), c in configs.items():
            fields = f"{c.block_a}, {c.block_b}, {c.block_k}, {c.num_warps}, {c.num_stages}"
            lines.append(f'        ("{kernel}", "{arithmetic}"): LaunchConfig({fields}),')
        lines.append("    },")
    return "\n".join([*lines, "}"]) + "\n"


def main(arguments=None):
    parser = argparse.ArgumentParser(
        prog="python -m smartgpu.kernels.tune", description=__doc__.splitlines()[0]
    )
    kernels = sorted({kernel for kernel, _ in launch.TABLE[80]})
    parser.add_argument("--kernel", action="append", choices=kernels, help="only this one (may be repeated)")
    parser.add_argument("--arithmetic", action="append", choices=ARITHMETICS, help="only this one (repeated)")
    parser.add_argument("--rows", type=int, default=65536)
    parser.add_argument("--features", type=int, default=768)
    parser.add_argument("--dry-run", action="store_true", help="time, and leave launch.py alone")
    options = parser.parse_args(arguments)
    if launch.INTERPRETED or not torch.cuda.is_available():
        why = "TRITON_INTERPRET=1 is set" if launch.INTERPRETED else "torch finds none"
        print(f"tune: timing needs an NVIDIA GPU, and {why}; launch.py is unchanged", file=sys.stderr)
        return 1
    device = torch.cuda.get_device_name()
    arch = launch.table(launch.arch("cuda"))
    print(f"{device}: table {arch}, {options.rows} rows, {options.features} features")
    for arithmetic in options.arithmetic or ARITHMETICS:
        for kernel, call in calls(arithmetic, options.rows, options.features).items():
            if kernel in (options.kernel or kernels):
                start = launch.TABLE[arch][kernel, arithmetic]
                launch.TABLE[arch][kernel, arithmetic] = best(kernel, arithmetic, start, call, print)
    if not options.dry_run:
        path = Path(launch.__file__)
        path.write_text(MARKED.sub(lambda _: render(launch.TABLE), path.read_text(), count=1))
        print(f"{path} rewritten")
    return 0


if __name__ == "__main__":
    sys.exit(main())
