"""select, rank, plan: the entry points."""

from __future__ import annotations

from typing import Any

import numpy as np

from smartgpu.objectives import Objective
from smartgpu.options import make_options
from smartgpu.planning import Plan, make_plan
from smartgpu.selecting import Call, Wanted, attempt
from smartgpu.selection import Selection
from smartgpu.similarity import Similarity


def select(
    X: Any,
    k: int | float | None = None,
    objective: str | Objective = "facility_location",
    similarity: str | Similarity = "cosine",
    *,
    coverage: float | None = None,
    budget: float | None = None,
    cost: Any = None,
    quotas: Any = None,
    given: Any = None,
    include: Any = None,
    exclude: Any = None,
    **options: Any,
) -> Selection:
    """Choose k rows of a pool greedily: at each pick the row of the largest gain, the lowest index among equals.

    X           (n, d) embeddings of any float dtype and layout: ndarray, memmap, torch or CuPy tensor, pyarrow list
                column, HF dataset with an embedding column; with similarity="precomputed" the matrix itself
                (represented x candidates), dense or scipy CSR
    k           rows to choose: an int is a count, a float in (0, 1] a share; may be left out where coverage or budget
                says how many
    objective   "facility_location", "graph_cut", "log_det", or an objective such as
                0.3 * FacilityLocation() + 0.7 * Modular(scores)
    similarity  "cosine", "cosine_shifted", "cosine_squared", "dot", "rbf", "exp_euclidean", "max_minus_sqeuclidean",
                "precomputed", or an object such as Rbf(gamma=0.5)
    coverage    stop at the smallest prefix with f(S) >= coverage f(V), a share in (0, 1]; monotone objectives only
    budget      what the chosen rows may cost together; never exceeded, whatever k is
    cost        (n,) numbers > 0, what each row takes of the budget: tokens, for example
    quotas      a smartgpu.Quotas, or a list of them for fields that nest: how many rows each group may or must give
    given       rows (numbers or a mask) that are already chosen: they count, but are not returned; or an (m, d) array
                of rows that are not in the pool, embedded the same way; a tuple may hold one of each
    include     rows that must be chosen: they are the first picks, in this order, and count for k, budget and quotas
    exclude     rows that may not be chosen, they are represented all the same; or smartgpu.Near(rows, s): all that
                are as similar as s to any of these; a list may hold several
    options     fields of smartgpu.Options, how to run: backend, threads, memory, seed, checkpoint, report, plan, ...

    Returns a Selection: indices (k,) int64 in pick order, gains (k,) float64, value f(S). Raises ValueError, TypeError
    naming the argument, before any work: also for a `memory` that cannot be met, with the least that can. On a GPU
    DeviceMemoryError (a MemoryError) where that is more than is free, and DeviceLostError (a RuntimeError) where it
    fails; ValueError too where a tensor that is used in place was changed before select() returned. Facility
    location costs O(n^2 d) per sweep and a handful of sweeps (lazy), O(n d) memory.

    For a monotone submodular objective f(S) is at least (1 - 1/e) f(OPT) (Nemhauser, Wolsey, Fisher 1978), with quotas
    f(OPT) / 2 (Fisher, Nemhauser, Wolsey 1978). With a budget two greedy runs, which share their dense work, take the
    largest gain / cost, and the largest gain, that can still be paid, down to the cheapest row; the second begins with
    the best single row. The better is returned: at least (1 - 1/e) / 2 f(OPT) (Leskovec et al., KDD 2007).
    """
    if k is None and coverage is None and budget is None:
        raise ValueError("k is missing: give the number of rows, a share of them, coverage= or budget=")
    if coverage is not None:
        _check_share("coverage", coverage)
    wanted = Wanted(k, coverage, budget, cost, quotas, given, include, exclude)
    return attempt(lambda how: Call.check(X, objective, similarity, how, wanted), make_options(options))


def rank(
    X: Any,
    objective: str | Objective = "facility_location",
    similarity: str | Similarity = "cosine",
    *,
    given: Any = None,
    exclude: Any = None,
    **options: Any,
) -> Selection:
    """Order the whole pool greedily: every prefix of the result is the greedy selection of that size.

    Arguments, result and errors as for select(); rows that are given or excluded are not ranked.
    """
    wanted = Wanted(given=given, exclude=exclude)
    return attempt(lambda how: Call.check(X, objective, similarity, how, wanted), make_options(options))


def plan(
    X: Any,
    k: int | float | None = None,
    objective: str | Objective = "facility_location",
    similarity: str | Similarity = "cosine",
    *,
    coverage: float | None = None,
    given: Any = None,
    exclude: Any = None,
    **options: Any,
) -> Plan:
    """What select() with these arguments will allocate, and about how long it will take; without k, of rank().

    The bytes follow from shapes, and are bounds that the selection keeps to. The time comes from a run on a few
    thousand evenly spaced rows, about half a second, scaled by the work: it is rough, within a factor of two or so.
    Raises as select() does, and ValueError for backend "reference". See smartgpu.Plan.
    """
    if coverage is not None:
        _check_share("coverage", coverage)
    wanted = Wanted(k, coverage, given=given, exclude=exclude)
    call = Call.check(X, objective, similarity, make_options(options), wanted)
    return make_plan(call.job, call.count, call.given, call.exclude, coverage)


def _check_share(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise TypeError(f"{name} must be a share in (0, 1], got {value!r}")
    if not 0 < value <= 1:
        raise ValueError(f"{name} must be a share in (0, 1], got {value}")
