"""Stage 1: one embedding a task, and the order in which tasks are selected."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from smartgpu.api import select
from smartgpu.arrays import as_matrix, on_host
from smartgpu.labels import Label, listed
from smartgpu.objectives import Objective
from smartgpu.selection import Selection
from smartgpu.similarity import Precomputed, Similarity, as_similarity
from smartgpu.workers import Workers

BLOCK = 4096  # rows added up together: sums do not depend on threads


def task_means(x: Any, rows: list[np.ndarray], threads: int | None = None) -> np.ndarray:
    """(len(rows), d) float64: the mean of these rows of x (n, d), each set by itself; not normalised again.

    Sums are float64, over blocks of rows in order: the same bits whatever the threads. O(n d).
    """

    def work(some: np.ndarray) -> np.ndarray:
        total = np.zeros(x.shape[1])
        for start in range(0, len(some), BLOCK):
            part = some[start : start + BLOCK]
            run = part[-1] - part[0] + 1 == len(part)  # neighbours: no copy
            block = on_host(x[part[0] : part[-1] + 1] if run else x[part])
            half = block.dtype == np.float16  # by way of float32: numpy converts that way much faster
            total += (block.astype(np.float32) if half else block).astype(np.float64).sum(axis=0)
        return total / len(some)

    return np.stack(Workers(threads).run(work, rows))


def task_pool(
    embeddings: Any, similarity: Any, names: tuple[Label, ...]
) -> tuple[np.ndarray | None, Similarity]:
    """(embeddings, a kind) or (the similarity matrix, precomputed), one row per task in the order of `names`.

    None instead of embeddings where they are to be made from rows. ValueError where the shape is another.
    """
    if isinstance(similarity, (str, Similarity)):
        if isinstance(embeddings, Mapping):
            lacking = [task for task in names if task not in embeddings]
            if lacking:
                raise ValueError(f"task_embeddings has no vector for {listed(lacking)}")
            embeddings = [np.asarray(embeddings[task]) for task in names]
        if embeddings is not None:
            embeddings = _checked("task_embeddings", embeddings, names)
        return embeddings, as_similarity(similarity)
    if embeddings is not None:
        raise ValueError("task_embeddings cannot be given with a matrix as task_similarity")
    if hasattr(similarity, "toarray"):  # scipy's: there are few tasks
        similarity = similarity.toarray()
    matrix = _checked("task_similarity", similarity, names)
    if matrix.shape[0] != matrix.shape[1]:
        raise ValueError(
            f"task_similarity must be a kind, or a matrix, tasks x tasks, got shape {matrix.shape}"
        )
    return matrix, Precomputed()


def _checked(name: str, value: Any, names: tuple[Label, ...]) -> np.ndarray:
    out = as_matrix(value, name)
    if len(out) != len(names):
        raise ValueError(
            f"{name} must have one row for each of the {len(names)} tasks, by first appearance, got {len(out)}"
        )
    return out


def rank(
    x: Any, count: int, objective: Objective, similarity: Similarity, include: np.ndarray, how: dict[str, Any]
) -> Selection:
    """`count` tasks in the order of greedy selection; those to include come first, in the greedy order among them."""
    n = np.shape(x)[0]
    if not len(include):
        return select(x, count, objective, similarity, **how)
    others = np.setdiff1d(np.arange(n), include)
    first = select(x, len(include), objective, similarity, exclude=others, **how)
    if count == len(include):
        return first
    rest = select(x, count - len(include), objective, similarity, given=first.indices, **how)
    return dataclasses.replace(
        rest,
        indices=np.concatenate([first.indices, rest.indices]),
        gains=np.concatenate([first.gains, rest.gains]),
        base_value=first.base_value,
    )
