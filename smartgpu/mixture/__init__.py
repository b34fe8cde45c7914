"""SMART mixtures: which tasks, how many rows of each, and which rows (arXiv 2403.08370)."""

from __future__ import annotations

from smartgpu.mixture.mixer import METHODS, ORDERS
from smartgpu.mixture.mixing import mix
from smartgpu.mixture.result import Mixture, Task
from smartgpu.mixture.rounding import budgets, split_templates, taylor_softmax
from smartgpu.mixture.sweeping import SweepRow, sweep

__all__ = [
    "METHODS",
    "ORDERS",
    "Mixture",
    "SweepRow",
    "Task",
    "budgets",
    "mix",
    "split_templates",
    "sweep",
    "taylor_softmax",
]
