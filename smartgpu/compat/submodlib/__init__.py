"""submodlib's names, arguments and modules, computed by smartgpu.

>>> from smartgpu.compat.submodlib import FacilityLocationFunction
>>> f = FacilityLocationFunction(n=len(X), mode="dense", data=X)
>>> f.maximize(budget=100, optimizer="LazyGreedy")          # [(element, gain), ...]

With data= no n x n kernel is made. docs/differences.md lists where answers differ from submodlib-py 0.0.3.
"""

from types import ModuleType as _ModuleType

from smartgpu.compat.submodlib import functions, helper
from smartgpu.compat.submodlib.functions import *  # noqa: F403
from smartgpu.compat.submodlib.functions import ConcaveOverModular, FeatureBased
from smartgpu.version import __version__

__all__ = [*functions.__all__, "__version__", "functions", "helper"]

_cpp = _ModuleType(
    "submodlib_cpp", "What code takes from the compiled module: the names of concave functions."
)
_cpp.FeatureBased, _cpp.ConcaveOverModular = FeatureBased, ConcaveOverModular
ALIASES = {"submodlib_cpp": _cpp}  # modules that install() puts beside this one
