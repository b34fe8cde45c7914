"""select_many: one selection in each group of rows, all independent of each other."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from smartgpu.arrays import as_count
from smartgpu.checkpoint import differences, fingerprint
from smartgpu.constraints import Quotas, as_budget, as_costs, as_quotas
from smartgpu.groups import job_of, select_groups
from smartgpu.job import Job
from smartgpu.labels import Label, Labels, as_labels, listed
from smartgpu.near import Barred, Near, RowSets, bar
from smartgpu.objectives import Objective
from smartgpu.options import make_options
from smartgpu.parts import Cutter, Part, check_quotas, cut_quotas
from smartgpu.ranks import join
from smartgpu.selection import Selection
from smartgpu.similarity import Matrix, Similarity

SETS = ("given", "include", "exclude")


def select_many(
    X: Any,
    groups: Any,
    budgets: Mapping[Label, int | float] | int | float,
    objective: str | Objective = "facility_location",
    similarity: str | Similarity = "cosine",
    backend: str = "auto",
    *,
    cost: Any = None,
    rows: Mapping[Label, int | float] | int | float | None = None,
    quotas: Any = None,
    given: Any = None,
    include: Any = None,
    exclude: Any = None,
    threads: int | None = None,
    report: Callable[[Label, Selection], None] | None = None,
    done: Mapping[Label, Selection] | None = None,
    **options: Any,
) -> dict[Label, Selection]:
    """Choose rows inside every group, each group a pool of its own.

    X           (n, d) embeddings, as for select(); with similarity="precomputed" the (n, n) matrix
    groups      n labels, one per row: all ints or all strings, in any order
    budgets     {label: rows}, for every label that occurs and no other; or one number for all. As k of select(), a
                float in (0, 1] is a share of the group. With `cost`: {label: what its rows may cost together}, or one
                number for all, as budget of select()
    objective   as for select(); per-row arrays (weights, scores) have n entries, and each group gets its own
    cost        (n,) numbers > 0, what each row takes of its group's budget: tokens, for example
    rows        with `cost`, the most rows of each group besides, as budgets are without: whichever binds first
    quotas      a smartgpu.Quotas, or a list of them, whose labels have n entries: every group keeps to them by itself.
                Shares are of its own number of rows; what is asked of a label holds in the groups that have it, and a
                minimum in a group that has not is refused
    given, include, exclude   as for select(), rows of X: each group takes those that it has. Rows from elsewhere, and
                Near, hold for all
    threads     of the CPU: many small groups at once with one thread each, the largest one after the other with all
    report      called with (label, selection) when a group is done, from one thread at a time
    done        selections that are there already, as report() got them: their groups are not selected again
    options     fields of smartgpu.Options, as for select(), but for checkpoint and plan

    Returns {label: Selection} in the order in which labels first occur. The indices are rows of X; they, the gains and
    f(S) are, bit for bit, those of select(X[rows], budget) with the group's rows ascending and its part of the other
    arguments, whatever the order, the threads and what is done already. (On a GPU with CuPy, one launch selects in all
    groups; gains of graph cut and log-determinant then differ in their last places, see docs/kernels.md.) Raises,
    before any work, ValueError for what does not fit the groups (naming all that it does not), and as select() does.
    """
    how = make_options({"backend": backend, **options, "threads": threads})
    ranks = join(how)

    def check() -> tuple[Job, Labels, list[Part], dict[Label, Selection]]:
        job = Job.check(X, objective, similarity, how)
        check_groups(job)
        labels = as_labels(groups, job.n, "groups")
        sets, elsewhere, near = RowSets.of(job.n, given, include, exclude)
        job = job.beside(elsewhere, [each.rows for each in near])
        if rows is not None and cost is None:
            raise ValueError("rows goes with cost: without it, budgets are the rows of each group")
        costs = None if cost is None else as_costs(cost, job.n)
        asked = _asked(budgets, rows, costs, labels)
        parts = _parts(job, X, labels, asked, sets, near, costs, as_quotas(quotas))
        place = {name: g for g, name in enumerate(labels.names)}
        beyond = [name for name in done or () if name not in place]
        if beyond:
            raise ValueError(f"done has selections for {listed(beyond)}, which no row has")
        return (
            dataclasses.replace(job, ranks=ranks),
            labels,
            parts,
            {name: check_done(each, name, parts[place[name]], job) for name, each in (done or {}).items()},
        )

    job, labels, parts, kept = ranks.all_of(check)
    ranks.agree(lambda: _record(job, parts, list(kept)), differences)
    todo = [g for g in range(len(parts)) if labels.names[g] not in kept]
    found: dict[Label, Selection] = {}

    def finish(g: int, selection: Selection) -> None:
        found[labels.names[g]] = selection
        if report is not None:
            report(labels.names[g], selection)

    with ranks.running():
        select_groups(job, X, {g: parts[g] for g in todo}, finish)
    return {name: kept[name] if name in kept else found[name] for name in labels.names}


def _record(job: Job, parts: Sequence[Part], done: list[Any]) -> dict[str, Any]:
    """What processes must have in common."""
    return {
        **record(job),
        "groups": fingerprint(np.concatenate([part.rows for part in parts])),
        "asked": [[len(part.rows), part.count, part.money] for part in parts],
        "limits": [[fingerprint(getattr(part.sets, name)) for name in SETS] for part in parts],
        "costs": [None if part.cost is None else fingerprint(part.cost) for part in parts],
        "quotas": [[quotas.describe() for quotas in part.quotas] for part in parts],
        "done": done,
    }


def record(job: Job) -> dict[str, Any]:
    """What processes must have in common of a pool, and of how it is selected from."""
    described, x = job.described(), job.x
    arrays = [x] if not isinstance(x, Matrix) else [x.dense] if x.dense is not None else list(x.csc)
    how = {name: value for name, value in described["options"].items() if name not in ("threads", "progress")}
    return {
        "data": [fingerprint(array) for array in arrays],
        "objective": described["objective"],
        "similarity": described["similarity"],
        "versions": described["versions"],
        "options": how,
    }


def _asked(budgets: Any, rows: Any, cost: Any, labels: Labels) -> list[tuple[int | None, float | None]]:
    """(rows, money) of each group, in the order of labels.names. ValueError names all that do not fit."""
    sizes = labels.sizes()

    def count(value: Any, g: int, what: str) -> int:
        return as_count(value, int(sizes[g]), what)

    if cost is None:
        return [(number, None) for number in _per_group(budgets, labels, count, "budget")]
    money = _per_group(budgets, labels, lambda value, _, what: as_budget(value, what), "budget")
    if rows is None:
        return [(None, each) for each in money]
    return list(zip(_per_group(rows, labels, count, "number of rows"), money, strict=True))


def _per_group(values: Any, labels: Labels, read: Callable[[Any, int, str], Any], noun: str) -> list[Any]:
    """A number for each label, in the order of labels.names. ValueError names all labels whose does not fit."""
    if not isinstance(values, Mapping):
        values = dict.fromkeys(labels.names, values)
    wrong = []
    lacking = [name for name in labels.names if name not in values]
    if lacking:
        wrong.append(f"no {noun} for {listed(lacking)}")
    known = set(labels.names)
    beyond = [name for name in values if name not in known]
    if beyond:
        wrong.append(f"{noun}s for {listed(beyond)}, which no row has")
    out = []
    for g, name in enumerate(labels.names):
        if name in values:
            try:
                out.append(read(values[name], g, f"the {noun} of {name!r}"))
            except ValueError as error:
                wrong.append(str(error))
    _refuse(f"{noun}s do not fit the groups", wrong)
    return out


def _parts(
    job: Job,
    X: Any,
    labels: Labels,
    asked: list[tuple[int | None, float | None]],
    sets: RowSets,
    near: list[Near],
    cost: np.ndarray | None,
    quotas: tuple[Quotas, ...],
) -> list[Part]:
    """What is asked of each group. ValueError names all groups of which it cannot be had."""
    rows = labels.rows()
    fields = [check_quotas(each, job.n) for each in quotas]
    cut, wrong, parts = bar_groups(job, X, rows, sets, near, cost), [], []
    for g, (name, (count, money)) in enumerate(zip(labels.names, asked, strict=True)):
        try:
            own = tuple(cut_quotas(q, field, rows[g]) for q, field in zip(quotas, fields, strict=True))
            parts.append(cut.part(g, count, money, quotas=own).checked(job))
        except ValueError as error:
            wrong.append(f"{name!r}: {error}")
    _refuse("limits do not fit the groups", wrong)
    return parts


def _refuse(what: str, wrong: list[str]) -> None:
    if wrong:
        more = f"; and {len(wrong) - 8} more" if len(wrong) > 8 else ""
        raise ValueError(f"{what}: {'; '.join(wrong[:8])}{more}")


def bar_groups(
    job: Job,
    X: Any,
    groups: Sequence[np.ndarray],
    sets: RowSets,
    near: Sequence[Near],
    cost: np.ndarray | None = None,
) -> Cutter:
    """What cuts these sets into groups, with what is near excluded. O(n m d) where something is to be near to.

    Each group is a pool of its own, for similarities that depend on the pool. ValueError where such a row is included.
    """
    barred: list[tuple[Barred, ...]] = []
    for rows in groups if near else ():
        part = job_of(job, X, rows, job.options)
        found = [bar(part, each) for each in near]
        barred.append(tuple(dataclasses.replace(each, rows=rows[each.rows]) for each in found))
    sets = sets.without(each for some in barred for each in some)
    return Cutter(job.n, groups, sets, cost, barred)


def check_groups(job: Job) -> None:
    """ValueError for given similarities that cannot be cut into groups, and for options of a single selection."""
    if job.options.checkpoint is not None:
        raise ValueError(
            "checkpoint is for one selection: keep what report= is given, and hand it back as done="
        )
    if job.options.plan:
        raise ValueError("plan is for one selection: see smartgpu.plan for a group")
    if isinstance(job.x, Matrix) and job.x.shape[0] != job.x.shape[1]:
        raise ValueError(f"a precomputed similarity of groups must be square, rows x rows, got {job.x.shape}")


def check_done(selection: Selection, label: Any, part: Part, job: Job) -> Selection:
    """A finished selection of what is asked of a group, cut to it. ValueError where it is of something else."""
    count, limits = part.count, selection.limits or {}
    same = selection.n == job.n and selection.similarity == job.kind.describe()
    if not part.counted:
        same &= selection.k <= count
    elif job.objective.counted or job.options.polish is not None:  # the first rows of more are others
        same &= selection.k == count
    else:
        same &= selection.k >= count
    same &= limits.get("budget") == part.money
    quotas = json.loads(json.dumps([each.describe() for each in part.quotas]))  # as a file gives them back
    same &= json.loads(json.dumps(limits.get("quotas", []))) == quotas
    same &= limits.get("include", []) == part.rows[part.sets.include].tolist()
    if not (same and np.isin(selection.indices, part.rows[part.open], assume_unique=True).all()):
        what = f"{count}" if part.money is None else f"what {part.money:g} pays for"
        raise ValueError(
            f"done[{label!r}] must be a selection of {what} of the {part.room} rows of that group, got {selection!r}"
        )
    return selection.prefix(count) if count < selection.k else selection
