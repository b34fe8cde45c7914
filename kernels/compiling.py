"""Seconds spent on compiling kernels, so that a slow first call can say why.

Triton compiles a kernel when it is first launched, for its types and whatever of its sizes it specialises on, and keeps
the result on disk (TRITON_CACHE_DIR, by default ~/.triton/cache): later processes load it in milliseconds.
"""

import triton

_spent = 0.0
_before = triton.knobs.compilation.listener  # somebody else's, who is told as well


def _listen(**told):
    global _spent
    _spent += told["times"].total * 1e-6
    if _before is not None:
        _before(**told)


triton.knobs.compilation.listener = _listen


def seconds():
    """Seconds of compilation, and of loading what was compiled before, in this process since it imported this."""
    return _spent


def add(more):
    """Seconds that something else has spent on the same, which seconds() then counts."""
    global _spent
    _spent += more
