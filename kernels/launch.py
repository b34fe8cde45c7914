"""How kernels are launched: frozen configurations per architecture, and the one place that starts a kernel.

A configuration decides speed and no bit of a result: dot products are one chain over k whatever the blocks are
(similarity.py), and what follows is integer. So a table may be retimed at any time, and nothing is tuned at a user's
call: `python -m smartgpu.kernels.tune` rewrites the table of the GPU that it runs on.
"""

from dataclasses import dataclass

import torch
import triton

# Decorators read this switch when a kernel is defined, so it is read once, with them.
INTERPRETED = bool(triton.knobs.runtime.interpret)
MOST_PROGRAMS = 2**31 - 1  # of one grid axis
WAVES = 8  # programs for each multiprocessor, where there is work enough: the last wave then costs little


@dataclass(frozen=True)
class LaunchConfig:
    """block_a x block_b pairs are one tile, block_k features one step of its dot products."""

    block_a: int
    block_b: int
    block_k: int
    num_warps: int
    num_stages: int


# The largest tiles that spill nothing for the dearest similarity kind (tests/test_aot.py; docs/kernels.md says why
# large is good); not timed yet. Side a is reduced into, side b is reduced over. Tiles of tensor cores have at least 64
# rows and 4 warps on sm_90, so that all of them run through wgmma. "half" is float16 and bfloat16, the others are the
# precisions of float32; "unaligned" serves every kernel where rows are no multiples of 16 elements apart.
# The table of sm_80 keeps to 99 KiB of shared memory, which 8.6, 8.9 and 12.x have as well.
# tune.py rewrites what stands between the two marks.
# <table>
TABLE = {
    80: {
        ("sweep", "half"): LaunchConfig(128, 128, 64, 8, 3),
        ("sweep", "tf32"): LaunchConfig(128, 128, 32, 8, 3),
        ("sweep", "tf32x3"): LaunchConfig(64, 128, 32, 8, 2),
        ("sweep", "ieee"): LaunchConfig(64, 64, 16, 8, 3),
        ("sweep_weighted", "half"): LaunchConfig(64, 256, 64, 8, 3),
        ("sweep_weighted", "tf32"): LaunchConfig(64, 256, 32, 8, 3),
        ("sweep_weighted", "tf32x3"): LaunchConfig(64, 128, 32, 8, 2),
        ("sweep_weighted", "ieee"): LaunchConfig(64, 128, 16, 8, 3),
        ("symmetric", "half"): LaunchConfig(64, 256, 64, 8, 3),
        ("symmetric", "tf32"): LaunchConfig(64, 256, 32, 8, 3),
        ("symmetric", "tf32x3"): LaunchConfig(64, 128, 32, 8, 2),
        ("symmetric", "ieee"): LaunchConfig(64, 128, 16, 8, 3),
        ("symmetric_weighted", "half"): LaunchConfig(64, 256, 64, 8, 3),
        ("symmetric_weighted", "tf32"): LaunchConfig(64, 256, 32, 8, 3),
        ("symmetric_weighted", "tf32x3"): LaunchConfig(64, 128, 32, 8, 2),
        ("symmetric_weighted", "ieee"): LaunchConfig(64, 128, 16, 8, 3),
        ("columns", "half"): LaunchConfig(64, 256, 64, 8, 3),
        ("columns", "tf32"): LaunchConfig(64, 256, 32, 8, 3),
        ("columns", "tf32x3"): LaunchConfig(64, 128, 32, 8, 3),
        ("columns", "ieee"): LaunchConfig(64, 128, 16, 8, 3),
        ("fill", "half"): LaunchConfig(64, 64, 64, 8, 3),
        ("fill", "tf32"): LaunchConfig(64, 64, 32, 8, 3),
        ("fill", "tf32x3"): LaunchConfig(64, 64, 16, 8, 3),
        ("fill", "ieee"): LaunchConfig(64, 64, 16, 8, 3),
        ("fill_symmetric", "half"): LaunchConfig(64, 64, 64, 8, 3),
        ("fill_symmetric", "tf32"): LaunchConfig(64, 64, 32, 8, 3),
        ("fill_symmetric", "tf32x3"): LaunchConfig(32, 64, 16, 8, 2),
        ("fill_symmetric", "ieee"): LaunchConfig(32, 64, 16, 8, 3),
        ("top_k", "half"): LaunchConfig(64, 64, 64, 8, 3),
        ("top_k", "tf32"): LaunchConfig(64, 64, 32, 8, 3),
        ("top_k", "tf32x3"): LaunchConfig(64, 128, 32, 8, 2),
        ("top_k", "ieee"): LaunchConfig(64, 128, 16, 8, 3),
        ("norms", "half"): LaunchConfig(64, 64, 64, 8, 3),
        ("norms", "tf32"): LaunchConfig(64, 64, 32, 8, 3),
        ("norms", "tf32x3"): LaunchConfig(64, 64, 32, 8, 3),
        ("norms", "ieee"): LaunchConfig(64, 64, 16, 8, 3),
        ("unaligned", "half"): LaunchConfig(64, 64, 32, 8, 2),
        ("unaligned", "tf32"): LaunchConfig(64, 64, 32, 8, 2),
        ("unaligned", "tf32x3"): LaunchConfig(32, 64, 16, 8, 2),
        ("unaligned", "ieee"): LaunchConfig(32, 64, 16, 8, 2),
    },
    90: {
        ("sweep", "half"): LaunchConfig(128, 256, 64, 8, 3),
        ("sweep", "tf32"): LaunchConfig(128, 256, 32, 8, 3),
        ("sweep", "tf32x3"): LaunchConfig(64, 128, 32, 8, 3),
        ("sweep", "ieee"): LaunchConfig(64, 128, 16, 8, 3),
        ("sweep_weighted", "half"): LaunchConfig(128, 256, 64, 8, 3),
        ("sweep_weighted", "tf32"): LaunchConfig(128, 256, 32, 8, 3),
        ("sweep_weighted", "tf32x3"): LaunchConfig(64, 128, 32, 8, 3),
        ("sweep_weighted", "ieee"): LaunchConfig(64, 128, 16, 8, 3),
        ("symmetric", "half"): LaunchConfig(128, 256, 64, 8, 3),
        ("symmetric", "tf32"): LaunchConfig(128, 256, 32, 8, 3),
        ("symmetric", "tf32x3"): LaunchConfig(64, 128, 32, 8, 2),
        ("symmetric", "ieee"): LaunchConfig(64, 128, 16, 8, 3),
        ("symmetric_weighted", "half"): LaunchConfig(128, 128, 64, 8, 3),
        ("symmetric_weighted", "tf32"): LaunchConfig(128, 128, 32, 8, 3),
        ("symmetric_weighted", "tf32x3"): LaunchConfig(64, 128, 32, 8, 3),
        ("symmetric_weighted", "ieee"): LaunchConfig(64, 128, 16, 8, 3),
        ("columns", "half"): LaunchConfig(128, 128, 64, 8, 3),
        ("columns", "tf32"): LaunchConfig(128, 128, 32, 8, 3),
        ("columns", "tf32x3"): LaunchConfig(64, 128, 32, 8, 3),
        ("columns", "ieee"): LaunchConfig(128, 128, 16, 8, 3),
        ("fill", "half"): LaunchConfig(64, 64, 64, 8, 3),
        ("fill", "tf32"): LaunchConfig(64, 64, 32, 8, 3),
        ("fill", "tf32x3"): LaunchConfig(64, 64, 32, 8, 3),
        ("fill", "ieee"): LaunchConfig(64, 64, 16, 8, 3),
        ("fill_symmetric", "half"): LaunchConfig(64, 64, 64, 8, 3),
        ("fill_symmetric", "tf32"): LaunchConfig(64, 64, 32, 8, 3),
        ("fill_symmetric", "tf32x3"): LaunchConfig(64, 64, 32, 8, 3),
        ("fill_symmetric", "ieee"): LaunchConfig(32, 64, 16, 8, 3),
        ("top_k", "half"): LaunchConfig(64, 128, 64, 4, 3),
        ("top_k", "tf32"): LaunchConfig(64, 128, 32, 4, 3),
        ("top_k", "tf32x3"): LaunchConfig(64, 128, 32, 8, 3),
        ("top_k", "ieee"): LaunchConfig(64, 128, 16, 8, 3),
        ("norms", "half"): LaunchConfig(64, 64, 64, 8, 3),
        ("norms", "tf32"): LaunchConfig(64, 64, 32, 8, 3),
        ("norms", "tf32x3"): LaunchConfig(64, 64, 32, 8, 3),
        ("norms", "ieee"): LaunchConfig(64, 64, 16, 8, 3),
        ("unaligned", "half"): LaunchConfig(64, 64, 32, 8, 2),
        ("unaligned", "tf32"): LaunchConfig(64, 64, 32, 8, 2),
        ("unaligned", "tf32x3"): LaunchConfig(64, 64, 16, 8, 2),
        ("unaligned", "ieee"): LaunchConfig(32, 64, 16, 8, 2),
    },
    100: {
        ("sweep", "half"): LaunchConfig(64, 256, 64, 8, 3),
        ("sweep", "tf32"): LaunchConfig(64, 256, 32, 8, 3),
        ("sweep", "tf32x3"): LaunchConfig(64, 128, 32, 8, 3),
        ("sweep", "ieee"): LaunchConfig(64, 128, 16, 8, 3),
        ("sweep_weighted", "half"): LaunchConfig(64, 256, 64, 8, 3),
        ("sweep_weighted", "tf32"): LaunchConfig(64, 256, 32, 8, 3),
        ("sweep_weighted", "tf32x3"): LaunchConfig(64, 64, 32, 8, 2),
        ("sweep_weighted", "ieee"): LaunchConfig(64, 128, 16, 8, 3),
        ("symmetric", "half"): LaunchConfig(64, 256, 64, 8, 3),
        ("symmetric", "tf32"): LaunchConfig(64, 256, 32, 8, 3),
        ("symmetric", "tf32x3"): LaunchConfig(64, 64, 32, 8, 3),
        ("symmetric", "ieee"): LaunchConfig(64, 128, 16, 8, 3),
        ("symmetric_weighted", "half"): LaunchConfig(64, 64, 64, 8, 3),
        ("symmetric_weighted", "tf32"): LaunchConfig(64, 64, 32, 8, 3),
        ("symmetric_weighted", "tf32x3"): LaunchConfig(64, 64, 32, 8, 3),
        ("symmetric_weighted", "ieee"): LaunchConfig(64, 128, 16, 8, 3),
        ("columns", "half"): LaunchConfig(64, 256, 64, 8, 3),
        ("columns", "tf32"): LaunchConfig(64, 256, 32, 8, 3),
        ("columns", "tf32x3"): LaunchConfig(64, 128, 32, 8, 3),
        ("columns", "ieee"): LaunchConfig(64, 128, 16, 8, 3),
        ("fill", "half"): LaunchConfig(64, 64, 64, 8, 3),
        ("fill", "tf32"): LaunchConfig(64, 64, 32, 8, 3),
        ("fill", "tf32x3"): LaunchConfig(64, 64, 32, 8, 3),
        ("fill", "ieee"): LaunchConfig(64, 64, 16, 8, 3),
        ("fill_symmetric", "half"): LaunchConfig(64, 64, 64, 8, 3),
        ("fill_symmetric", "tf32"): LaunchConfig(64, 64, 32, 8, 3),
        ("fill_symmetric", "tf32x3"): LaunchConfig(64, 64, 32, 8, 3),
        ("fill_symmetric", "ieee"): LaunchConfig(32, 64, 16, 8, 3),
        ("top_k", "half"): LaunchConfig(64, 64, 64, 4, 3),
        ("top_k", "tf32"): LaunchConfig(64, 64, 32, 4, 3),
        ("top_k", "tf32x3"): LaunchConfig(64, 64, 32, 8, 3),
        ("top_k", "ieee"): LaunchConfig(64, 128, 16, 8, 3),
        ("norms", "half"): LaunchConfig(64, 64, 64, 8, 3),
        ("norms", "tf32"): LaunchConfig(64, 64, 32, 8, 3),
        ("norms", "tf32x3"): LaunchConfig(64, 64, 32, 8, 3),
        ("norms", "ieee"): LaunchConfig(64, 64, 16, 8, 3),
        ("unaligned", "half"): LaunchConfig(64, 64, 32, 8, 2),
        ("unaligned", "tf32"): LaunchConfig(64, 64, 32, 8, 2),
        ("unaligned", "tf32x3"): LaunchConfig(64, 64, 16, 8, 2),
        ("unaligned", "ieee"): LaunchConfig(32, 64, 16, 8, 2),
    },
}
# </table>


def arch(device):
    """The compute capability of a device, 10 major + minor; in the interpreter that of Hopper, 90."""
    if INTERPRETED:
        return 90
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def table(arch):
    """The key in TABLE for a compute capability. Raises ValueError below 80."""
    if arch < 80:
        raise ValueError(
            f"these kernels need a GPU of compute capability 8.0 or more, got {arch // 10}.{arch % 10}"
        )
    # 12.x and what may follow has 8.x's kind of tensor core and as little shared memory
    return {8: 80, 9: 90, 10: 100, 11: 100}.get(arch // 10, 80)


def config(kernel, arch, arithmetic):
    """The launch of a kernel ("sweep", "columns", ...) on an architecture, for "half", "tf32", "tf32x3" or "ieee"."""
    return TABLE[table(arch)][kernel, arithmetic]


def tiles_of_a_program(tiles_a, tiles_b, device, most):
    """How many tiles of side b a program walks: enough for its share of the device, at most `most`.

    One grid axis holds 2^31 - 1 programs; beyond that the shares grow.
    """
    if INTERPRETED:
        wanted = 1
    else:
        wanted = WAVES * torch.cuda.get_device_properties(device).multi_processor_count
    tiles = max(1, min(most, tiles_b, tiles_a * tiles_b // wanted))
    return max(tiles, triton.cdiv(tiles_a * tiles_b, MOST_PROGRAMS - tiles_a))


def run(kernel, programs, config, x, **arguments):
    """Start a kernel on the current stream of the device that holds the tensor x.

    Floating-point contraction is off: it would depend on the code around an expression, and so would a pair's bits.
    """
    if programs > MOST_PROGRAMS:
        raise ValueError(f"a launch has at most 2^31 - 1 programs, this one needs {programs}")
    with torch.cuda.device_of(x):
        kernel[(programs,)](
            **arguments,
            num_warps=config.num_warps,
            num_stages=config.num_stages,
            enable_fp_fusion=False,
        )
