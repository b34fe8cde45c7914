"""Drop-in modules for code written against other libraries: the same names and arguments, this package's answers.

    from smartgpu.compat.submodlib import FacilityLocationFunction   # one import changed, or
    smartgpu.compat.install()                                        # none: `import submodlib` is ours from here on

Signatures and translations only, and no peer is imported. docs/differences.md lists where answers differ.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import sys
from typing import Any

log = logging.getLogger("smartgpu")

options: dict[str, Any] = {}
"""Fields of smartgpu.Options that every selection of these modules is made with: backend, threads, memory, seed, ..."""

PEERS = ("submodlib", "apricot")


def install(*names: str, replace: bool = False) -> list[str]:
    """Let `import submodlib`, `import apricot` mean the modules of smartgpu.compat in this process.

    names    which of them; all that there are where none is named
    replace  also where the real one is imported already: what holds its classes keeps them

    Returns the names that are ours now, and logs them. ValueError for an unknown name; RuntimeError, and nothing
    changed, where the real one is imported already.
    """
    for name in names:
        if name not in PEERS:
            raise ValueError(f"unknown peer {name!r}: expected {' or '.join(PEERS)}")
    found = [name for name in names or PEERS if importlib.util.find_spec(f"{__name__}.{name}")]
    ours = {name: importlib.import_module(f"{__name__}.{name}") for name in found}
    for name, module in ours.items():
        if not replace and sys.modules.get(name, module) is not module:
            raise RuntimeError(
                f"{name} is imported already, from {getattr(sys.modules[name], '__file__', '?')}: call install() "
                "before, or with replace=True"
            )
    for name, module in ours.items():
        for known in [k for k in sys.modules if k == name or k.startswith(f"{name}.")]:
            del sys.modules[known]
        inside = f"{__name__}.{name}"
        for full, each in list(sys.modules.items()):
            if full == inside or full.startswith(f"{inside}."):
                sys.modules[name + full[len(inside) :]] = each
        for alias, each in getattr(module, "ALIASES", {}).items():
            sys.modules[alias] = each
        log.warning("%s is smartgpu.compat.%s in this process", name, name)
    return found
