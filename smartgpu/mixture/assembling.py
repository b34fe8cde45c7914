"""From what was selected in every cell to the mixture: tasks, and rows in the order that is asked for."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from smartgpu.backends import resolve
from smartgpu.job import versions
from smartgpu.mixture.cells import Cell, Share
from smartgpu.mixture.result import Mixture, Task
from smartgpu.selection import Selection

if TYPE_CHECKING:
    from smartgpu.mixture.mixer import Mixer


def assemble(mixer: Mixer, shares: list[Share], found: Mapping[Cell, Selection]) -> Mixture:
    """The mixture of these shares, from what was selected in every cell."""
    tasks = [_task(mixer, share, found) for share in shares]
    if not any(task.budget for task in tasks):
        raise ValueError(
            "no row is worth its cost: each one would lower what the row objective says of its task"
        )
    if mixer.order == "rank":
        indices = np.concatenate([task.indices for task in tasks])
    else:
        indices = _in_file_order(mixer, shares, found)
        indices = indices[np.random.default_rng(mixer.seed).permutation(len(indices))]
    return Mixture(
        tasks=tasks,
        indices=indices,
        n=mixer.job.n,
        n_tasks_in_pool=len(mixer.names),
        method=mixer.method,
        options=mixer.described,
        seconds=dict(mixer.seconds),
        versions=versions(resolve(mixer.job.options.backend)),
    )


def taken(mixer: Mixer, share: Share, found: Mapping[Cell, Selection]) -> dict[Cell, int]:
    """How many rows of each cell's selection the mixture takes, of those that give some."""
    if mixer.money is None:
        return share.cells
    cells = [(share.number, name) for name in share.templates]
    return {cell: found[cell].k for cell in cells if cell in found and found[cell].k}


def _task(mixer: Mixer, share: Share, found: Mapping[Cell, Selection]) -> Task:
    cells = taken(mixer, share, found)
    picks = [found[cell].indices[:b] for cell, b in cells.items()]
    gains = [found[cell].gains[:b] for cell, b in cells.items()]
    # Templates in turn, each as often as its share: every prefix holds them in about these shares.
    depth = [(np.arange(b) + 0.5) / b for b in cells.values()]
    order = np.argsort(np.concatenate([np.empty(0), *depth]), kind="stable")
    indices = np.concatenate([np.empty(0, np.int64), *picks])[order]
    paid: dict[str, float] = {}
    if mixer.money is not None:
        paid = {"allowance": share.budget * mixer.units.unit, "cost": math.fsum(mixer.cost[indices])}
    templates = {name: cells.get((share.number, name), 0) for name in share.templates}
    return Task(
        task=mixer.names[share.number],
        number=share.number,
        size=int(mixer.sizes[share.number]),
        gain=share.gain,
        weight=share.weight,
        budget=len(indices),
        budget_before_caps=share.before if mixer.money is None else share.before * mixer.units.unit,
        templates={} if mixer.templates is None else templates,
        indices=indices,
        gains=np.concatenate([np.empty(0), *gains])[order],
        selections={cell[1]: found[cell] for cell in cells},
        **paid,
    )


def _in_file_order(mixer: Mixer, shares: list[Share], found: Mapping[Cell, Selection]) -> np.ndarray:
    """What the published code shuffles: tasks and templates by first appearance, best rows first, but the rows of
    a template that gives all of them as they lie in the pool."""
    parts = []
    for share in sorted(shares, key=lambda s: s.number):
        for cell, b in taken(mixer, share, found).items():
            rows = mixer.cells.rows[mixer.cells.number[cell]]
            parts.append(rows if b == len(rows) else found[cell].indices[:b])
    return np.concatenate([np.empty(0, np.int64), *parts])
