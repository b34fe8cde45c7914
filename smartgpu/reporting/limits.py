"""What a choice kept to: how much of a budget it took, and how many rows of each group beside what quotas ask."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from smartgpu.constraints import Quotas, Tree
from smartgpu.constraints.quotas import UNLIMITED
from smartgpu.mixture import Mixture
from smartgpu.reporting.words import shown
from smartgpu.selection import Selection

MOST_GROUPS = 1_000  # listed one by one
LABEL = 80  # characters shown


def budget_of(result: Selection | Mixture) -> dict[str, Any] | None:
    """{"budget", "cost"}: what could be spent and what was, None where that is not known; None without a budget."""
    if isinstance(result, Mixture):
        budget, cost = result.options.get("budget"), result.cost
    else:
        budget, cost = ((result.limits or {}).get(name) for name in ("budget", "cost"))
    return None if budget is None else {"budget": float(budget), "cost": cost}


def quota_counts(
    quotas: Sequence[Quotas], rows: np.ndarray, n: int, k: int | None
) -> list[dict[str, Any]] | None:
    """Of each field its groups with the rows that they have, may give, must give, and gave; None without quotas.

    rows  chosen; k  what shares are of. At most MOST_GROUPS groups of a field, those with quotas of their own first.
    """
    if not quotas:
        return None
    out = []
    for level in Tree(quotas, n, k).levels:
        size, chosen = (
            np.bincount(codes, minlength=len(level.names)) for codes in (level.codes, level.codes[rows])
        )
        asked = (level.low > 0) | (level.high < UNLIMITED)
        order = np.lexsort((-size, ~asked))
        groups = [
            {
                "group": shown(level.names[g], LABEL)["text"],
                "size": int(size[g]),
                "least": int(level.low[g]),
                "most": None if level.high[g] >= UNLIMITED else int(level.high[g]),
                "chosen": int(chosen[g]),
            }
            for g in order[:MOST_GROUPS].tolist()
        ]
        out.append({"field": level.name, "groups": groups, "others": len(order) - len(groups)})
    return out
