"""Limits on what may be picked: a count, rows that are barred, a budget, quotas of groups."""

from smartgpu.constraints.base import Constraint, Found, Goal
from smartgpu.constraints.knapsack import Purse, as_budget, as_costs
from smartgpu.constraints.quotas import Quotas, Tree, as_quotas, contradiction

__all__ = [
    "Constraint",
    "Found",
    "Goal",
    "Purse",
    "Quotas",
    "Tree",
    "as_budget",
    "as_costs",
    "as_quotas",
    "contradiction",
]
