"""smartgpu: choose training data from large pools with submodular functions, exactly.

>>> import smartgpu
>>> selection = smartgpu.select(X, k=1000)          # X (n, d): one embedding per row
>>> selection.indices, selection.gains, selection.value
"""

import logging as _logging

from smartgpu.api import plan, rank, select
from smartgpu.evaluation import Evaluation, evaluate
from smartgpu.objectives import FacilityLocation, GraphCut, LogDet, Modular, WeightedSum
from smartgpu.options import Options
from smartgpu.planning import Plan
from smartgpu.selection import Assignment, Selection
from smartgpu.similarity import (
    Cosine,
    CosineShifted,
    CosineSquared,
    Dot,
    ExpEuclidean,
    MaxMinusSqeuclidean,
    Precomputed,
    Rbf,
)
from smartgpu.version import __version__

_logging.getLogger("smartgpu").addHandler(_logging.NullHandler())

__all__ = [
    "Assignment",
    "Cosine",
    "CosineShifted",
    "CosineSquared",
    "Dot",
    "Evaluation",
    "ExpEuclidean",
    "FacilityLocation",
    "GraphCut",
    "LogDet",
    "MaxMinusSqeuclidean",
    "Modular",
    "Options",
    "Plan",
    "Precomputed",
    "Rbf",
    "Selection",
    "WeightedSum",
    "__version__",
    "evaluate",
    "plan",
    "rank",
    "select",
]
